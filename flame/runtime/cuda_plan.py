"""Launches without Python in between: one kernel, or all kernels of a program, by one call of a builtin.

    plan  ::= steps widest bases release step*                                           each word an i64
    step  ::= function grid.x grid.y grid.z threads shared n place*                      n places, one for each parameter
    place ::= base offset                    the parameter's value: bases[base] + offset

    bases ::= 0 | the arena's address | the call's further words: addresses of arrays, numbers

    enter(plan, context, stream, arena, word...)   puts the steps on the stream; None, or what went wrong: see `failure`
    launch(function, x, y, z, threads, shared, context, stream, parameter...)   one kernel

A plan is never written after it was made, so any number of threads may run it: the values are put together on the caller's
stack, and the driver has copied them when its call returns. A place whose base is 0 is a constant (a size, or a null pointer).
`enter` gives up the interpreter lock for plans of more than KEEP_LOCK steps. The driver's two entry points that are called are
linked in by their addresses. Where native code can't be had (no llvmlite, not CPython) the same is done by Python, at some
microseconds a launch.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from flame.runtime import llvm_jit
from flame.runtime.cuda_driver import SUCCESS, Driver
from flame.runtime.entry import builtin
from flame.runtime.locks import Lock

#: plans of so many steps keep the interpreter lock: giving it up may cost waiting for a busy thread's turn
KEEP_LOCK: Final = 16
#: the bases of every plan that are not the call's own words
CONSTANT, ARENA, FIRST = 0, 1, 2

_HEAD: Final = 4
_STEP: Final = 7

#: for every module that Python calls: how it reads its arguments, and what it answers with
PRELUDE: Final = """
@_Py_NoneStruct = external global i8
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare void @Py_IncRef(ptr)
declare i64 @PyLong_AsUnsignedLongLongMask(ptr)
declare ptr @PyLong_FromLongLong(i64)
declare ptr @PyErr_Occurred()

; the words of Python integers; false, with Python's error set, where one is none
define i1 @flame_cuda_words(ptr %objects, i64 %count, ptr %words) {
entry:
  br label %next
next:
  %i = phi i64 [0, %entry], [%i1, %read]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %read, label %done
read:
  %object.p = getelementptr ptr, ptr %objects, i64 %i
  %object = load ptr, ptr %object.p
  %word = call i64 @PyLong_AsUnsignedLongLongMask(ptr %object)
  %word.p = getelementptr i64, ptr %words, i64 %i
  store i64 %word, ptr %word.p
  %i1 = add i64 %i, 1
  br label %next
done:
  %error = call ptr @PyErr_Occurred()
  %fine = icmp eq ptr %error, null
  ret i1 %fine
}

define ptr @flame_cuda_answer(i64 %code) {
entry:
  %fine = icmp eq i64 %code, 0
  br i1 %fine, label %none, label %number
none:
  call void @Py_IncRef(ptr @_Py_NoneStruct)
  ret ptr @_Py_NoneStruct
number:
  %object = call ptr @PyLong_FromLongLong(i64 %code)
  ret ptr %object
}
"""

_TEXT: Final = (
    PRELUDE
    + """
declare i32 @flame_driver_launch(ptr, i32, i32, i32, i32, i32, i32, i32, ptr, ptr, ptr)
declare i32 @flame_driver_current(ptr)

define i64 @flame_cuda_run(ptr %plan, ptr %context, ptr %stream, ptr %bases) {
entry:
  %steps = load i64, ptr %plan
  %widest.p = getelementptr i64, ptr %plan, i64 1
  %widest = load i64, ptr %widest.p
  %first = getelementptr i64, ptr %plan, i64 4
  %values = alloca i64, i64 %widest
  %pointers = alloca ptr, i64 %widest
  %set = call i32 @flame_driver_current(ptr %context)
  %current = icmp eq i32 %set, 0
  br i1 %current, label %next, label %unset
unset:
  %unset64 = zext i32 %set to i64
  ret i64 %unset64
next:
  %i = phi i64 [0, %entry], [%i1, %launched]
  %step = phi ptr [%first, %entry], [%after, %launched]
  %more = icmp slt i64 %i, %steps
  br i1 %more, label %read, label %leave
read:
  %i1 = add i64 %i, 1
  %function = load ptr, ptr %step
  %x.p = getelementptr i64, ptr %step, i64 1
  %x = load i32, ptr %x.p
  %y.p = getelementptr i64, ptr %step, i64 2
  %y = load i32, ptr %y.p
  %z.p = getelementptr i64, ptr %step, i64 3
  %z = load i32, ptr %z.p
  %threads.p = getelementptr i64, ptr %step, i64 4
  %threads = load i32, ptr %threads.p
  %shared.p = getelementptr i64, ptr %step, i64 5
  %shared = load i32, ptr %shared.p
  %n.p = getelementptr i64, ptr %step, i64 6
  %n = load i64, ptr %n.p
  %places = getelementptr i64, ptr %step, i64 7
  %n2 = shl i64 %n, 1
  %after = getelementptr i64, ptr %places, i64 %n2
  br label %place
place:
  %j = phi i64 [0, %read], [%j1, %put]
  %left = icmp slt i64 %j, %n
  br i1 %left, label %put, label %call
put:
  %j2 = shl i64 %j, 1
  %base.p = getelementptr i64, ptr %places, i64 %j2
  %base = load i64, ptr %base.p
  %offset.p = getelementptr i64, ptr %base.p, i64 1
  %offset = load i64, ptr %offset.p
  %from.p = getelementptr i64, ptr %bases, i64 %base
  %from = load i64, ptr %from.p
  %value = add i64 %from, %offset
  %value.p = getelementptr i64, ptr %values, i64 %j
  store i64 %value, ptr %value.p
  %pointer.p = getelementptr ptr, ptr %pointers, i64 %j
  store ptr %value.p, ptr %pointer.p
  %j1 = add i64 %j, 1
  br label %place
call:
  %code = call i32 @flame_driver_launch(ptr %function, i32 %x, i32 %y, i32 %z, i32 %threads, i32 1, i32 1, i32 %shared,
                                        ptr %stream, ptr %pointers, ptr null)
  %fine = icmp eq i32 %code, 0
  br i1 %fine, label %launched, label %failed
launched:
  br label %next
failed:
  %which = shl i64 %i1, 32
  %code64 = zext i32 %code to i64
  %failure = or i64 %which, %code64
  ret i64 %failure
leave:
  ret i64 0
}

define ptr @flame_cuda_enter(ptr %self, ptr %args, i64 %count) {
entry:
  %short = icmp slt i64 %count, 4
  br i1 %short, label %bad, label %read
read:
  %words = alloca i64, i64 %count
  %fine = call i1 @flame_cuda_words(ptr %args, i64 %count, ptr %words)
  br i1 %fine, label %check, label %error
error:
  ret ptr null
check:
  %plan = load ptr, ptr %words
  %expected.p = getelementptr i64, ptr %plan, i64 2
  %expected = load i64, ptr %expected.p
  %given = sub i64 %count, 2
  %fits = icmp eq i64 %expected, %given
  br i1 %fits, label %start, label %bad
bad:
  %wrong = call ptr @flame_cuda_answer(i64 -1)
  ret ptr %wrong
start:
  %context.p = getelementptr i64, ptr %words, i64 1
  %context = load ptr, ptr %context.p
  %bases = getelementptr i64, ptr %words, i64 2
  %stream = load ptr, ptr %bases
  store i64 0, ptr %bases
  %release.p = getelementptr i64, ptr %plan, i64 3
  %release = load i64, ptr %release.p
  %keep = icmp eq i64 %release, 0
  br i1 %keep, label %kept, label %free
kept:
  %code1 = call i64 @flame_cuda_run(ptr %plan, ptr %context, ptr %stream, ptr %bases)
  br label %done
free:
  %state = call ptr @PyEval_SaveThread()
  %code2 = call i64 @flame_cuda_run(ptr %plan, ptr %context, ptr %stream, ptr %bases)
  call void @PyEval_RestoreThread(ptr %state)
  br label %done
done:
  %code = phi i64 [%code1, %kept], [%code2, %free]
  %answer = call ptr @flame_cuda_answer(i64 %code)
  ret ptr %answer
}

define ptr @flame_cuda_launch(ptr %self, ptr %args, i64 %count) {
entry:
  %short = icmp slt i64 %count, 8
  br i1 %short, label %bad, label %read
bad:
  %wrong = call ptr @flame_cuda_answer(i64 -1)
  ret ptr %wrong
read:
  %words = alloca i64, i64 %count
  %pointers = alloca ptr, i64 %count
  %fine = call i1 @flame_cuda_words(ptr %args, i64 %count, ptr %words)
  br i1 %fine, label %point, label %error
error:
  ret ptr null
point:
  %values = getelementptr i64, ptr %words, i64 8
  %n = sub i64 %count, 8
  br label %next
next:
  %j = phi i64 [0, %point], [%j1, %put]
  %left = icmp slt i64 %j, %n
  br i1 %left, label %put, label %set
put:
  %value.p = getelementptr i64, ptr %values, i64 %j
  %pointer.p = getelementptr ptr, ptr %pointers, i64 %j
  store ptr %value.p, ptr %pointer.p
  %j1 = add i64 %j, 1
  br label %next
set:
  %context.p = getelementptr i64, ptr %words, i64 6
  %context = load ptr, ptr %context.p
  %code0 = call i32 @flame_driver_current(ptr %context)
  %current = icmp eq i32 %code0, 0
  br i1 %current, label %call, label %done
call:
  %function = load ptr, ptr %words
  %x.p = getelementptr i64, ptr %words, i64 1
  %x = load i32, ptr %x.p
  %y.p = getelementptr i64, ptr %words, i64 2
  %y = load i32, ptr %y.p
  %z.p = getelementptr i64, ptr %words, i64 3
  %z = load i32, ptr %z.p
  %threads.p = getelementptr i64, ptr %words, i64 4
  %threads = load i32, ptr %threads.p
  %shared.p = getelementptr i64, ptr %words, i64 5
  %shared = load i32, ptr %shared.p
  %stream.p = getelementptr i64, ptr %words, i64 7
  %stream = load ptr, ptr %stream.p
  %code1 = call i32 @flame_driver_launch(ptr %function, i32 %x, i32 %y, i32 %z, i32 %threads, i32 1, i32 1, i32 %shared,
                                         ptr %stream, ptr %pointers, ptr null)
  br label %done
done:
  %code = phi i32 [%code0, %set], [%code1, %call]
  %code64 = zext i32 %code to i64
  %answer = call ptr @flame_cuda_answer(i64 %code64)
  ret ptr %answer
}
"""
)
_PYTHON: Final = (
    "PyEval_SaveThread",
    "PyEval_RestoreThread",
    "Py_IncRef",
    "PyLong_AsUnsignedLongLongMask",
    "PyLong_FromLongLong",
    "PyErr_Occurred",
)
_ENTRIES: Final = ("flame_cuda_enter", "flame_cuda_launch")


@dataclass(frozen=True, slots=True)
class LaunchStep:
    """One kernel of a plan. `places` are (base, offset) for each of its parameters; `note` says what it is, for errors."""

    function: int
    grid: tuple[int, int, int]
    threads: int
    shared: int
    places: tuple[tuple[int, int], ...]
    note: str = ""


class LaunchPlan:
    """A plan in memory, for a call with `words` words of its own. Steps of no programs are left out.

    Raises ValueError for a place that names no base, and for a grid that no device can launch.
    """

    def __init__(self, steps: Sequence[LaunchStep], words: int):
        self.steps = tuple(s for s in steps if 0 not in s.grid)
        bases = FIRST + words
        table: list[int] = []
        for s in self.steps:
            if s.grid[0] >= 2**31 or max(s.grid[1:]) >= 2**16:
                raise ValueError(f"{s.note}: {s.grid} programs are more than a device launches at once")
            if any(not 0 <= base < bases for base, _ in s.places):
                raise ValueError(f"{s.note}: a parameter's place is none of the plan's {bases} bases")
            table += [s.function, *s.grid, s.threads, s.shared, len(s.places)]
            table += [n for place in s.places for n in place]
        widest = max((len(s.places) for s in self.steps), default=0)
        head = [len(self.steps), max(widest, 1), bases, int(len(self.steps) > KEEP_LOCK)]
        # Constants may be any 64 bits: unsigned ones are stored as the same bits.
        self._table = np.array([n & (2**64 - 1) for n in (*head, *table)], np.uint64)
        self.bases = bases
        names = [s.note for s in self.steps]
        #: what errors that show later call it
        self.note = " ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        self.address: int = self._table.ctypes.data


@dataclass(frozen=True, slots=True)
class Launcher:
    """The two builtins, for one driver. Their answer None means that all is well; otherwise see `failure`."""

    enter: Callable[..., int | None]
    launch: Callable[..., int | None]


def failure(answer: int) -> tuple[int | None, int]:
    """(the step that failed, the driver's code), from an `answer` that is not None; the step is None where the context could
    not be made current. An answer of -1 says that the number of words was wrong, which raises TypeError."""
    if answer < 0:
        raise TypeError("a launch got another number of words than its plan or kernel takes")
    return (answer >> 32) - 1 if answer >> 32 else None, answer & 0xFFFFFFFF


def native() -> bool:
    """Whether there is native code here that reads Python's numbers."""
    return llvm_jit.available() and sys.implementation.name == "cpython" and ctypes.sizeof(ctypes.c_void_p) == 8


@functools.cache
def _object(text: str) -> bytes:
    return llvm_jit.cached_object(text, llvm_jit.baseline(), what="launches")


_lock: Final = Lock()


def link(text: str, entries: Sequence[str], calls: Mapping[str, int]) -> llvm_jit.Linked:
    """Native code that calls the driver: `calls` are entry points as `flame_driver_NAME`, with their addresses."""
    imports = {f"flame_driver_{name}": address for name, address in calls.items()}
    for name in _PYTHON:
        found = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        assert found is not None
        imports[name] = found
    imports["_Py_NoneStruct"] = id(None)
    with _lock:
        return llvm_jit.link(_object(text), entries, imports, what="launches")


def launcher(driver: Driver) -> Launcher:
    """The builtins that call this driver, or Python functions that do the same."""
    if not native():
        return in_python(driver)
    code = link(_TEXT, _ENTRIES, {"launch": driver.launch_address, "current": driver.current_address})
    return Launcher(builtin(b"enter", code["flame_cuda_enter"]), builtin(b"launch", code["flame_cuda_launch"]))


def in_python(driver: Driver) -> Launcher:
    """The same by Python: the native code's meaning, and what runs where there is none."""
    pointer, result = ctypes.c_void_p, ctypes.c_int
    numbers = [ctypes.c_uint] * 7
    start = ctypes.CFUNCTYPE(result, pointer, *numbers, pointer, pointer, pointer)(driver.launch_address)
    current = ctypes.CFUNCTYPE(result, pointer)(driver.current_address)

    def one(function: int, grid: Sequence[int], threads: int, shared: int, stream: int, values: Sequence[int]) -> int:
        held = (ctypes.c_uint64 * max(len(values), 1))(*values)
        at = ctypes.addressof(held)
        pointers = (pointer * max(len(values), 1))(*range(at, at + 8 * len(values), 8))
        return start(function, *grid, threads, 1, 1, shared, stream, ctypes.addressof(pointers), None)

    def enter(plan: int, context: int, stream: int, *words: int) -> int | None:
        def read(at: int, n: int) -> list[int]:
            return list((ctypes.c_uint64 * n).from_address(plan + 8 * at)) if n else []

        steps, _, expected, _ = read(0, _HEAD)
        if expected != len(words) + 1:
            return -1
        if code := current(context):
            return code
        bases = (0, *words)
        at = _HEAD
        for i in range(steps):
            function, x, y, z, threads, shared, n = read(at, _STEP)
            places = read(at + _STEP, 2 * n)
            values = [bases[places[2 * j]] + places[2 * j + 1] & (2**64 - 1) for j in range(n)]
            if code := one(function, (x, y, z), threads, shared, stream, values):
                return (i + 1) << 32 | code
            at += _STEP + 2 * n
        return None

    def launch(
        function: int, x: int, y: int, z: int, threads: int, shared: int, context: int, stream: int, *values: int
    ) -> int | None:
        code = current(context)
        if code == SUCCESS:
            code = one(function, (x, y, z), threads, shared, stream, [v & (2**64 - 1) for v in values])
        return code or None

    return Launcher(enter, launch)
