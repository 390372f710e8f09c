"""The native side of a program: a plan (a table of words) and the two functions that run it.

    plan    ::= arrays widest steps at release | expected array* | step*           each word an i64
    array   ::= dtype object, number of dimensions, extents
    step    ::= function syms chunks parallel buffers place*
              | 0 0 1 0 1 place                                    a guard: ends the run if the byte there is not 0
    place   ::= n >= 0: the call's array n | n < 0: -1 - n bytes into the arena

    flame_run(plan, arena, pointers)               runs the steps; `pointers` are the arrays' addresses
    flame_enter(plan, arena, array...)             a Python builtin: checks the arrays and runs the steps, without the
                                                   interpreter lock if `release` is not 0
    flame_answer(plan, arena, arrays)              the same for a list of the first arrays: the others are made, and a list of
                                                   them is the answer

A plan is never written after it was made, so any number of threads may run it. `flame_enter` reads NumPy arrays where they
lie; it answers None, or the number of the first array that is not exactly what the plan expects (and has then run nothing), as
does `flame_answer` (-1: there is no memory for the others). The offsets they read at and the function that makes an array are
NumPy's binary interface, unchanged since 1.0 and compiled into every extension module; they are tried on real arrays before first
use, and where they do not hold (another interpreter than CPython), the same checks and calls are made by Python. One call costs
0.2 us natively, several by Python.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flame import dtypes
from flame.primitive import Spec
from flame.runtime import llvm_jit, threads
from flame.runtime.locks import Lock

_C_CONTIGUOUS_ALIGNED: Final = 0x0001 | 0x0100  # NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED
_HEAD: Final = object.__basicsize__
#: PyArrayObject_fields after the object head: data, nd, dimensions, strides, base, descr, flags
_FIELDS: Final = {
    name: _HEAD + offset for name, offset in {"data": 0, "nd": 8, "dimensions": 16, "descr": 40, "flags": 48}.items()
}

#: plans estimated to take at most so many microseconds keep the interpreter lock
KEEP_LOCK: Final = 20.0

_RUN: Final = """
@flame_pool = external global i8
declare void @flame_parallel_for(ptr, ptr, ptr, ptr, i64)

define void @flame_run(ptr %plan, ptr %arena, ptr %pointers) {
entry:
  %widest.p = getelementptr i64, ptr %plan, i64 1
  %widest = load i64, ptr %widest.p
  %steps.p = getelementptr i64, ptr %plan, i64 2
  %steps = load i64, ptr %steps.p
  %at.p = getelementptr i64, ptr %plan, i64 3
  %at = load i64, ptr %at.p
  %first = getelementptr i64, ptr %plan, i64 %at
  %bufs = alloca ptr, i64 %widest
  br label %next
next:
  %i = phi i64 [0, %entry], [%i1, %ran]
  %step = phi ptr [%first, %entry], [%after, %ran]
  %more = icmp slt i64 %i, %steps
  br i1 %more, label %read, label %leave
read:
  %fn = load ptr, ptr %step
  %syms.p = getelementptr i64, ptr %step, i64 1
  %syms = load ptr, ptr %syms.p
  %chunks.p = getelementptr i64, ptr %step, i64 2
  %chunks = load i64, ptr %chunks.p
  %parallel.p = getelementptr i64, ptr %step, i64 3
  %parallel = load i64, ptr %parallel.p
  %n.p = getelementptr i64, ptr %step, i64 4
  %n = load i64, ptr %n.p
  %places = getelementptr i64, ptr %step, i64 5
  %after = getelementptr i64, ptr %places, i64 %n
  br label %place
place:
  %j = phi i64 [0, %read], [%j1, %placed]
  %unplaced = icmp slt i64 %j, %n
  br i1 %unplaced, label %look, label %call
look:
  %where.p = getelementptr i64, ptr %places, i64 %j
  %where = load i64, ptr %where.p
  %array = icmp sge i64 %where, 0
  br i1 %array, label %given, label %scratch
given:
  %pointer.p = getelementptr ptr, ptr %pointers, i64 %where
  %pointer = load ptr, ptr %pointer.p
  br label %placed
scratch:
  %offset = sub i64 -1, %where
  %temp = getelementptr i8, ptr %arena, i64 %offset
  br label %placed
placed:
  %address = phi ptr [%pointer, %given], [%temp, %scratch]
  %buf = getelementptr ptr, ptr %bufs, i64 %j
  store ptr %address, ptr %buf
  %j1 = add i64 %j, 1
  br label %place
call:
  %guard = icmp eq ptr %fn, null
  br i1 %guard, label %look.at.guard, label %work
look.at.guard:
  %flag.p = load ptr, ptr %bufs
  %flag = load i8, ptr %flag.p
  %stop = icmp ne i8 %flag, 0
  br i1 %stop, label %leave, label %ran
work:
  %alone = icmp eq i64 %parallel, 0
  br i1 %alone, label %serial, label %spread
serial:
  call void %fn(ptr %bufs, ptr %syms, i64 0, i64 %chunks)
  br label %ran
spread:
  call void @flame_parallel_for(ptr @flame_pool, ptr %fn, ptr %bufs, ptr %syms, i64 %chunks)
  br label %ran
ran:
  %i1 = add i64 %i, 1
  br label %next
leave:
  ret void
}
"""

_ENTER: Final = """
@_Py_NoneStruct = external global i8
@PyArray_Type = external global i8
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare void @Py_IncRef(ptr)
declare ptr @PyLong_AsVoidPtr(ptr)
declare ptr @PyLong_FromLongLong(i64)

declare void @Py_DecRef(ptr)
declare void @PyErr_Clear()
declare i64 @PyList_Size(ptr)
declare ptr @PyList_GetItem(ptr, i64)
declare ptr @PyList_New(i64)
declare i32 @PyList_SetItem(ptr, i64, ptr)

; the first of n objects that is not what is expected, or -1: then their addresses are known, and `at` is behind what was expected
define internal i64 @flame_fit(ptr %plan, ptr %objects, i64 %n, ptr %pointers, ptr %at) {
entry:
  %expected0 = getelementptr i64, ptr %plan, i64 5
  br label %next
next:
  %i = phi i64 [0, %entry], [%i1, %good]
  %expected = phi ptr [%expected0, %entry], [%after, %good]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %type, label %fit
type:
  %object.p = getelementptr ptr, ptr %objects, i64 %i
  %object = load ptr, ptr %object.p
  %type.p = getelementptr i8, ptr %object, i64 $type
  %its.type = load ptr, ptr %type.p
  %exact = icmp eq ptr %its.type, @PyArray_Type
  br i1 %exact, label %head, label %bad
head:
  %descr.p = getelementptr i8, ptr %object, i64 $descr
  %descr = load ptr, ptr %descr.p
  %descr.want = load ptr, ptr %expected
  %descr.ok = icmp eq ptr %descr, %descr.want
  %flags.p = getelementptr i8, ptr %object, i64 $flags
  %flags = load i32, ptr %flags.p
  %flags.on = and i32 %flags, $wanted
  %flags.ok = icmp eq i32 %flags.on, $wanted
  %nd.p = getelementptr i8, ptr %object, i64 $nd
  %nd32 = load i32, ptr %nd.p
  %nd = sext i32 %nd32 to i64
  %nd.want.p = getelementptr i64, ptr %expected, i64 1
  %nd.want = load i64, ptr %nd.want.p
  %nd.ok = icmp eq i64 %nd, %nd.want
  %ok1 = and i1 %descr.ok, %flags.ok
  %ok = and i1 %ok1, %nd.ok
  br i1 %ok, label %shape, label %bad
shape:
  %dims.p = getelementptr i8, ptr %object, i64 $dimensions
  %dims = load ptr, ptr %dims.p
  %dims.want = getelementptr i64, ptr %expected, i64 2
  %after = getelementptr i64, ptr %dims.want, i64 %nd
  br label %dim
dim:
  %d = phi i64 [0, %shape], [%d1, %extent]
  %left = icmp slt i64 %d, %nd
  br i1 %left, label %extent, label %good
extent:
  %have.p = getelementptr i64, ptr %dims, i64 %d
  %have = load i64, ptr %have.p
  %want.p = getelementptr i64, ptr %dims.want, i64 %d
  %want = load i64, ptr %want.p
  %d1 = add i64 %d, 1
  %fits = icmp eq i64 %have, %want
  br i1 %fits, label %dim, label %bad
good:
  %data.p = getelementptr i8, ptr %object, i64 $data
  %data = load ptr, ptr %data.p
  %pointer = getelementptr ptr, ptr %pointers, i64 %i
  store ptr %data, ptr %pointer
  %i1 = add i64 %i, 1
  br label %next
bad:
  ret i64 %i
fit:
  store ptr %expected, ptr %at
  ret i64 -1
}

define internal void @flame_go(ptr %plan, ptr %arena, ptr %pointers) {
  %release.p = getelementptr i64, ptr %plan, i64 4
  %release = load i64, ptr %release.p
  %short = icmp eq i64 %release, 0
  br i1 %short, label %keep, label %free
keep:
  call void @flame_run(ptr %plan, ptr %arena, ptr %pointers)
  ret void
free:
  %state = call ptr @PyEval_SaveThread()
  call void @flame_run(ptr %plan, ptr %arena, ptr %pointers)
  call void @PyEval_RestoreThread(ptr %state)
  ret void
}

define ptr @flame_enter(ptr %self, ptr %args, i64 %count) {
  %plan.o = load ptr, ptr %args
  %plan = call ptr @PyLong_AsVoidPtr(ptr %plan.o)
  %arena.p = getelementptr ptr, ptr %args, i64 1
  %arena.o = load ptr, ptr %arena.p
  %arena = call ptr @PyLong_AsVoidPtr(ptr %arena.o)
  %objects = getelementptr ptr, ptr %args, i64 2
  %n = load i64, ptr %plan
  %pointers = alloca ptr, i64 %n
  %at = alloca ptr
  %wrong = call i64 @flame_fit(ptr %plan, ptr %objects, i64 %n, ptr %pointers, ptr %at)
  %fits = icmp eq i64 %wrong, -1
  br i1 %fits, label %run, label %bad
bad:
  %answer = call ptr @PyLong_FromLongLong(i64 %wrong)
  ret ptr %answer
run:
  call void @flame_go(ptr %plan, ptr %arena, ptr %pointers)
  call void @Py_IncRef(ptr @_Py_NoneStruct)
  ret ptr @_Py_NoneStruct
}
"""

_ANSWER: Final = """
declare ptr @PyArray_NewFromDescr(ptr, ptr, i32, ptr, ptr, ptr, i32, ptr)

define ptr @flame_answer(ptr %self, ptr %args, i64 %count) {
entry:
  %plan.o = load ptr, ptr %args
  %plan = call ptr @PyLong_AsVoidPtr(ptr %plan.o)
  %arena.p = getelementptr ptr, ptr %args, i64 1
  %arena.o = load ptr, ptr %arena.p
  %arena = call ptr @PyLong_AsVoidPtr(ptr %arena.o)
  %list.p = getelementptr ptr, ptr %args, i64 2
  %list = load ptr, ptr %list.p
  %n = load i64, ptr %plan
  %given = call i64 @PyList_Size(ptr %list)
  %list.ok = icmp sge i64 %given, 0
  br i1 %list.ok, label %size, label %no.list.given
size:
  %few = icmp sle i64 %given, %n
  br i1 %few, label %begin, label %bad
begin:
  %pointers = alloca ptr, i64 %n
  %objects = alloca ptr, i64 %n
  %at = alloca ptr
  br label %next
next:
  %i = phi i64 [0, %begin], [%i1, %take]
  %more = icmp slt i64 %i, %given
  br i1 %more, label %take, label %look
take:
  %object = call ptr @PyList_GetItem(ptr %list, i64 %i)
  %object.p = getelementptr ptr, ptr %objects, i64 %i
  store ptr %object, ptr %object.p
  %i1 = add i64 %i, 1
  br label %next
look:
  %wrong = call i64 @flame_fit(ptr %plan, ptr %objects, i64 %given, ptr %pointers, ptr %at)
  %fits = icmp eq i64 %wrong, -1
  br i1 %fits, label %room, label %bad
bad:
  %told = phi i64 [%n, %size], [%wrong, %look], [-1, %no.memory]
  %answer = call ptr @PyLong_FromLongLong(i64 %told)
  ret ptr %answer
room:
  %fresh = sub i64 %n, %given
  %made = call ptr @PyList_New(i64 %fresh)
  %none = icmp eq ptr %made, null
  br i1 %none, label %no.list, label %fill
fill:
  %expected0 = load ptr, ptr %at
  br label %another
another:
  %k = phi i64 [%given, %fill], [%k1, %put]
  %expected = phi ptr [%expected0, %fill], [%after, %put]
  %wanted = icmp slt i64 %k, %n
  br i1 %wanted, label %make, label %run
make:
  %descr = load ptr, ptr %expected
  %nd.p = getelementptr i64, ptr %expected, i64 1
  %nd = load i64, ptr %nd.p
  %nd32 = trunc i64 %nd to i32
  %dims = getelementptr i64, ptr %expected, i64 2
  %after = getelementptr i64, ptr %dims, i64 %nd
  call void @Py_IncRef(ptr %descr)
  %array = call ptr @PyArray_NewFromDescr(
    ptr @PyArray_Type, ptr %descr, i32 %nd32, ptr %dims, ptr null, ptr null, i32 0, ptr null)
  %absent = icmp eq ptr %array, null
  br i1 %absent, label %drop, label %put
put:
  %data.p = getelementptr i8, ptr %array, i64 $data
  %data = load ptr, ptr %data.p
  %pointer = getelementptr ptr, ptr %pointers, i64 %k
  store ptr %data, ptr %pointer
  %place = sub i64 %k, %given
  %done = call i32 @PyList_SetItem(ptr %made, i64 %place, ptr %array)
  %k1 = add i64 %k, 1
  br label %another
run:
  call void @flame_go(ptr %plan, ptr %arena, ptr %pointers)
  ret ptr %made
drop:
  call void @Py_DecRef(ptr %made)
  br label %no.memory
no.list:
  br label %no.memory
no.memory:
  call void @PyErr_Clear()
  br label %bad
no.list.given:
  ret ptr null
}
"""
_PYTHON: Final = (
    "PyEval_SaveThread", "PyEval_RestoreThread", "Py_IncRef", "Py_DecRef", "PyErr_Clear", "PyLong_AsVoidPtr",
    "PyLong_FromLongLong", "PyList_Size", "PyList_GetItem", "PyList_New", "PyList_SetItem",
)  # fmt: skip
_FASTCALL: Final = 0x0080
# of NumPy's table of functions: PyArray_Type, and PyArray_NewFromDescr(type, dtype, nd, extents, strides, data, flags, object)
_ARRAY_TYPE, _NEW_FROM_DESCR = 2, 94


@dataclass(frozen=True, slots=True)
class NativeStep:
    """One phase of a kernel. `places` as in the grammar above; `symbols` are the values behind `syms`. A guard has function 0."""

    function: int
    places: tuple[int, ...]
    chunks: int
    parallel: bool = False
    symbols: tuple[int, ...] = ()
    microseconds: float = 0.0  #: an estimate; 0 where there is none


class Plan:
    """A plan in memory. `enter(plan.address, arena address, *arrays)` runs it (see `entry`)."""

    def __init__(self, arrays: Sequence[Spec], steps: Sequence[NativeStep]):
        self.arrays = tuple(arrays)
        steps = [s for s in steps if s.chunks > 0]
        words: list[int] = []
        for spec in arrays:
            words += [id(spec.dtype.numpy), spec.ndim, *spec.shape]
        at = 5 + len(words)
        symbols = np.array([v for s in steps for v in s.symbols] or [0], np.int64)
        address = symbols.ctypes.data
        for s in steps:
            words += [s.function, address, s.chunks, int(s.parallel), len(s.places), *s.places]
            address += 8 * len(s.symbols)
        widest = max((len(s.places) for s in steps), default=0)
        #: whether any step wants the pool's workers
        self.parallel = any(s.parallel for s in steps)
        # Without the lock other threads go on; but getting it back may take a busy one's whole turn (5 ms).
        release = self.parallel or any(not s.microseconds for s in steps) or sum(s.microseconds for s in steps) > KEEP_LOCK
        self._words = np.array([len(self.arrays), widest, len(steps), at, int(release), *words], np.int64)
        self._symbols = symbols
        self._dtypes = [spec.dtype.numpy for spec in arrays]  # they are known by address
        self.address: int = self._words.ctypes.data


class _MethodDef(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("method", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]


@dataclass(frozen=True, slots=True)
class Entry:
    """`enter` and `answer` as said above, and `run(plan address, arena address, address of pointers)`, which checks nothing."""

    enter: Callable[..., int | None] | None
    run: Callable[[int, int, int], None]
    answer: Callable[[int, int, list], list[np.ndarray] | int] | None


_entry: Entry | None = None
_lock: Final = Lock()


def entry() -> Entry:
    """The functions, compiled when first asked for. `enter` is None where arrays can't be read natively, `answer` where they
    can't be made so."""
    global _entry
    with _lock:
        if _entry is None:
            _entry = _link()
        return _entry


def text(*parts: str) -> str:
    """The functions as LLVM IR: the one that runs a plan, and `parts`; without any, all there are."""
    numbers = {**_FIELDS, "type": _HEAD - 8, "wanted": _C_CONTIGUOUS_ALIGNED}
    return re.sub(r"\$(\w+)", lambda m: str(numbers[m[1]]), "".join((_RUN, *(parts or (_ENTER, _ANSWER)))))


def _link() -> Entry:
    imports = {"flame_pool": threads.shared.address, "flame_parallel_for": threads.shared.parallel_for}
    parts, symbols = [""], ["flame_run"]
    if arrays_are_readable():
        parts.append(_ENTER)
        symbols.append("flame_enter")
        for name in _PYTHON:
            address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
            assert address is not None
            imports[name] = address
        imports["_Py_NoneStruct"] = id(None)
        imports["PyArray_Type"] = id(np.ndarray)
        new = _new_from_descr()
        if new:
            imports["PyArray_NewFromDescr"] = new
            parts.append(_ANSWER)
            symbols.append("flame_answer")
    obj = llvm_jit.cached_object(text(*parts), llvm_jit.baseline(), what="program entry")
    code = llvm_jit.link(obj, symbols, imports, what="program entry")
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(code["flame_run"])
    enter = builtin(b"enter", code["flame_enter"]) if "flame_enter" in symbols else None
    answer = builtin(b"answer", code["flame_answer"]) if "flame_answer" in symbols else None
    return Entry(enter, run, answer if answer is not None and _makes(answer) else None)


def _new_from_descr() -> int:
    """The address of the C function that makes arrays, in NumPy's table for extension modules; 0 where there is none."""
    table = getattr(np._core._multiarray_umath, "_ARRAY_API", None)  # type: ignore[attr-defined]
    if table is None:
        return 0
    take = ctypes.pythonapi.PyCapsule_GetPointer
    take.restype, take.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found = (ctypes.c_void_p * (_NEW_FROM_DESCR + 1)).from_address(take(table, None))
    return (found[_NEW_FROM_DESCR] or 0) if found[_ARRAY_TYPE] == id(np.ndarray) else 0


def _makes(answer: Callable[[int, int, list], Any]) -> bool:
    """Whether arrays are made as they should be: of a plan that takes one, and does nothing."""
    specs = (Spec((1,), dtypes.int64), Spec((2, 0, 3), dtypes.float32), Spec((), dtypes.bool_), Spec((3, 5), dtypes.float64))
    got = answer(Plan(specs, ()).address, 0, [np.zeros(1, np.int64)])
    if type(got) is not list or len(got) != 3:
        return False
    return all(
        type(a) is np.ndarray and a.shape == s.shape and a.dtype is s.dtype.numpy and a.flags.carray and a.flags.owndata
        for a, s in zip(got, specs[1:], strict=True)
    )


def builtin(name: bytes, address: int) -> Callable[..., Any]:
    """A Python builtin of native code: a function of (self, arguments, their number) that answers with an object."""
    definition = _MethodDef(name, address, _FASTCALL, None)
    _definitions.append(definition)  # the builtin refers to it
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return make(ctypes.addressof(definition), None, None)


_definitions: Final[list[_MethodDef]] = []


def arrays_are_readable() -> bool:
    """Whether this interpreter's objects and NumPy's arrays lie in memory as `flame_enter` reads them."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    trials: list[np.ndarray] = [
        np.zeros((3, 5), np.float32),
        np.zeros((), np.int64),
        np.zeros((4, 6), bool)[::2],
        np.zeros((0, 7)),
    ]
    return all(_reads(a) for a in trials)


def _reads(a: np.ndarray) -> bool:
    def word(offset: int) -> int:
        return ctypes.c_int64.from_address(id(a) + offset).value

    if word(_HEAD - 8) != id(np.ndarray) or word(_FIELDS["data"]) != a.ctypes.data or word(_FIELDS["descr"]) != id(a.dtype):
        return False
    if ctypes.c_int32.from_address(id(a) + _FIELDS["nd"]).value != a.ndim:
        return False
    dimensions = word(_FIELDS["dimensions"])
    if a.ndim and tuple((ctypes.c_int64 * a.ndim).from_address(dimensions)) != a.shape:
        return False
    return ctypes.c_int32.from_address(id(a) + _FIELDS["flags"]).value == a.flags.num
