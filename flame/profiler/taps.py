"""What a profiler listens to: places in the framework that are wrapped while somebody listens, and are as they were otherwise.

    tap ::= owner, name of a function or method on it, (name of the event and its kind, from the call's arguments)

A switch at each of these places would cost every program something; a tap costs those alone who profile. Operations are watched
(`flame.autograd.watch`), and programs run step by step (`flame.runtime.apart`), so that each kernel has a time of its own.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from flame.autograd import watch
from flame.autograd.function import FunctionNode
from flame.autograd.tape import Node
from flame.capture import native
from flame.capture.segment import Plan
from flame.capture.segment_node import SegmentNode
from flame.compiler.pipeline import Passes
from flame.jit import CompiledFunction
from flame.ops.flops import flops
from flame.primitive import Primitive
from flame.profiler.events import Event
from flame.profiler.gpu_taps import GpuWatch
from flame.runtime import cpu, index
from flame.runtime.apart import Apart
from flame.runtime.cuda_gpu import Gpu
from flame.runtime.executable import Executable
from flame.runtime.gpu_autotune import ByLibrary
from flame.runtime.gpu_program import GpuExecutable
from flame.runtime.lines import named
from flame.tensor import Tensor

_clock = time.perf_counter_ns


def user_stack() -> tuple[str, ...]:
    """file:line of the frames outside of flame, innermost first; its demo is a user's program."""
    found, f = [], sys._getframe(1)
    while f is not None:
        module = f.f_globals.get("__name__", "")
        if not module.startswith("flame.") or module.startswith("flame.demo."):
            found.append(f"{named(f.f_code.co_filename)}:{f.f_lineno}")
        f = f.f_back  # type: ignore[assignment]
    return tuple(found)


class Listener:
    """Collects events from `start()` to `stop()`. One listens at a time (see `flame.profiler.profile`)."""

    def __init__(self, shapes: bool, memory: bool, stacks: bool, count_flops: bool):
        self.events: list[Event] = []
        self._shapes, self._memory, self._stacks, self._flops = shapes, memory, stacks, count_flops
        self._undo: list[Callable[[], None]] = []
        self._apart: weakref.WeakKeyDictionary[Executable, Apart] = weakref.WeakKeyDictionary()
        self._inside: set[CompiledFunction] = set()
        #: programs whose steps were timed: event -> (executable, step), to be named when somebody looks
        self.unnamed: list[tuple[Event, Executable, int]] = []

    def start(self) -> None:
        self._undo.append(native.pause())
        watch.watch(self._operation, whole=True)
        self._undo.append(lambda: watch.unwatch(self._operation))
        self._tap(Node, "apply", lambda node, *_: ("backward", node.name()))
        self._tap(FunctionNode, "apply", lambda node, *_: ("backward", node.name()))
        self._tap(SegmentNode, "apply", lambda node, *_: ("backward", node.name()))
        self._wrap(CompiledFunction, "__call__", self._function)
        self._tap(Plan, "make", lambda plan, *_: ("compile", f"compile {plan.graph.name}"))
        self._tap(Passes, "run", lambda passes, name, *_: ("compile", f"pass: {name}"))
        self._tap(cpu, "prepare", lambda *_: ("compile", "native code"))
        self._tap(index, "look_up", lambda *_: ("compile", "look up on disk"))
        self._wrap(Executable, "__call__", self._program)
        self._tap(GpuExecutable, "__call__", lambda program, *_: ("program", f"program {program.name}"))
        gpu = GpuWatch(self._gpu_kernel)
        self._undo.append(gpu.stop)
        self._wrap(Gpu, "put", gpu.put)
        self._wrap(ByLibrary, "launch", gpu.by_library)

    def stop(self) -> None:
        while self._undo:
            self._undo.pop()()

    def record(self, kind: str, name: str, begin: int, end: int, **more: Any) -> Event:
        e = Event(kind, name, begin, end, threading.get_ident(), **more)
        if self._stacks and not e.stack:
            e.stack = user_stack()
        self.events.append(e)
        return e

    # ---- the places

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """`around(f, *args, **kwargs)` in place of what `owner` calls `f`."""
        f = vars(owner)[name]

        @functools.wraps(f)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            return around(f, *args, **kwargs)

        setattr(owner, name, tapped)
        self._undo.append(lambda: setattr(owner, name, f))

    def _tap(self, owner: Any, name: str, named: Callable[..., tuple[str, str]]) -> None:
        """Time what `owner` calls `name`."""

        def around(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            begin = _clock()
            try:
                return f(*args, **kwargs)
            finally:
                kind, shown = named(*args)
                self.record(kind, shown, begin, _clock())

        self._wrap(owner, name, around)

    def _function(self, call: Callable[..., Any], f: CompiledFunction, *args: Any, **kwargs: Any) -> Any:
        """A call of a compiled function; calls of the same one inside of it (to time it, or by recursion) are part of it."""
        if f in self._inside:
            return call(f, *args, **kwargs)
        self._inside.add(f)
        begin = _clock()
        try:
            return call(f, *args, **kwargs)
        finally:
            self._inside.discard(f)
            self.record("function", f"compiled {f._capture.name}", begin, _clock())

    def _gpu_kernel(self, name: str, source: str, begin: int, end: int, where: str) -> None:
        e = self.record("gpu", name, begin, end, source=source, stack=("",))
        e.thread, e.stack = hash(where) & 0x7FFFFFFF, ()
        e.arguments["on"] = where

    def _operation(self, process: watch.Process, primitive: Primitive, operands: tuple, params: dict) -> Any:
        begin = _clock()
        got = process(primitive, operands, params)
        end = _clock()
        outs = got if type(got) is tuple else (got,)
        more: dict[str, Any] = {}
        if self._shapes:
            more["shapes"] = tuple([tuple(o.shape) if isinstance(o, Tensor) else () for o in operands])
        if self._flops:
            more["flops"] = flops(primitive.name, operands, params, outs)
        if self._memory and not primitive.view:
            more["bytes"] = sum(t._array.nbytes for t in outs if t._array is not None)
        self.record("operation", primitive.name, begin, end, **more)
        return got

    def _program(self, f: Callable[..., Any], executable: Executable, arrays: Any) -> Any:
        apart = self._apart.get(executable)
        if apart is None:
            apart = self._apart[executable] = Apart(executable)
        timed: list[tuple[int, int, int]] = []
        begin = _clock()
        results = apart(arrays, lambda step, b, e: timed.append((step, b, e)))
        end = _clock()
        taken = sum(r.nbytes for r in results) if self._memory else 0
        self.record("program", f"program {executable.name}", begin, end, bytes=taken)
        for step, b, e in timed:
            self.unnamed.append((self.record("kernel", f"step {step}", b, e), executable, step))
        return results
