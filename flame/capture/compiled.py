"""Graphs of a capture turned into things that run, and the record of what was turned into what.

Equal graphs of one function (a path whose set of results grew back, the same segment after another break) share their programs by
their printed text.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from flame.compiler.autodiff import differentiate
from flame.compiler.concrete import graph_at, program_at
from flame.compiler.dims import space_of
from flame.compiler.graph import Graph, Value
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import Decision, Program
from flame.knobs import knobs
from flame.reasons import NOT_COMPILED
from flame.runtime import cpu
from flame.runtime.executable import Backend, Executable

NO_SIZES: Mapping[str, int] = {}
#: sets of sizes for which a program is kept ready to run
MOST_SIZES = 64


class Compiled:
    """A graph, its program, and the executable; where compiling failed, the reason, and the primitives run one by one.

    `updates` are pairs (input, result) by number: the result may come back in the input's own memory, unless one of the results
    `guards` is true: then all others are undefined.
    """

    def __init__(self, capture: Any, graph: Graph, role: str, updates: Sequence = (), guards: Sequence[int] = ()):
        self.graph = graph
        self.role = role
        self.program: Program | None = None
        self.executable: Any = None
        self.failure = ""
        self.space = space_of(graph)
        self.symbols = () if self.space is None else tuple(self.space.values)
        self._at: dict[tuple[int, ...], Callable] = {}  #: by the values of the symbols
        self._backend: Backend = "interpret" if capture.options.backend == "interpret" else "llvm"
        backend = capture.options.backend
        if knobs.log:
            say("graph", f"captured, {role}:\n{graph}")
        try:
            if backend == "eager":
                raise _Unwanted("backend='eager' was asked for")
            log = say if knobs.log else None
            self.program = compile_graph(graph, cpu.target(), updates=updates, guards=guards, log=log, verify=knobs.verify)
            if self.symbols:
                assert self.space is not None
                self._at[tuple(self.space.values[n] for n in self.symbols)] = self._bound(self.space.values)
            else:
                self.executable = Executable(self.program, backend=self._backend)
        except _Unwanted as e:
            self.failure = str(e)
        except Exception as e:  # whatever a pass trips over must not stop a program that runs eagerly: it is recorded and shown
            if knobs.verify:
                raise
            self.program = None
            self.failure = NOT_COMPILED.text(f"{graph.name} ({role})", f"{type(e).__name__}: {e}")
            capture.stats.count(capture.stats.fallbacks, graph.name, self.failure)
            print(f"flame: {self.failure}", file=sys.stderr)
        #: whether no two results share memory
        self.distinct = self.executable is None or self.executable.distinct

    def __call__(self, arrays: list[np.ndarray], sizes: Mapping[str, int] = NO_SIZES) -> list[np.ndarray]:
        """Run it, for these values of the graph's symbols."""
        if not self.symbols:
            return self.executable(arrays) if self.executable is not None else interpret_graph(self.graph, arrays)
        key = tuple([sizes[n] for n in self.symbols])
        run = self._at.get(key)
        if run is None:
            if len(self._at) >= MOST_SIZES:
                del self._at[next(iter(self._at))]
            run = self._at[key] = self._bound({n: sizes[n] for n in self.symbols})
        return run(arrays)

    def _bound(self, sizes: dict[str, int]) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
        """What runs at these sizes: the same kernels, with memory planned anew."""
        if self.program is None:
            graph = graph_at(self.graph, sizes)
            return lambda arrays: interpret_graph(graph, arrays)
        executable = Executable(program_at(self.program, sizes), backend=self._backend)
        self.executable = self.executable or executable
        return executable

    @property
    def decisions(self) -> list[Decision]:
        mine = [] if self.program is None else list(self.program.decisions)
        return mine + (list(self.executable.decisions) if self.executable is not None else [])


class _Unwanted(Exception):
    pass


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No cyclic garbage collection meanwhile: a compilation makes very many small objects, most of which live until its end,
    and walking them again and again took a tenth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def say(topic: str, text: str) -> None:
    """Print to stderr if FLAME_LOG names the topic."""
    if topic in knobs.log:
        print(f"[flame {topic}] {text}", file=sys.stderr)


def interpret_graph(graph: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each node by its primitive's eager meaning; results share no memory with inputs or each other."""
    held: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    for n in graph.nodes:
        try:
            got = n.primitive.eager(*[held[o] if isinstance(o, Value) else o for o in n.operands], **n.params)
        except (IndexError, RuntimeError, ValueError, ZeroDivisionError) as e:
            raise type(e)(f"{e} ({n.primitive.name} at {n.source})") from e
        for o, a in zip(n.outputs, got if isinstance(got, tuple) else (got,), strict=True):
            held[o] = a
    return [np.array(held[o], order="C") for o in graph.outputs]


def compile_segment(
    capture: Any, graph: Graph, updates: Sequence[tuple[int, int]] = (), guards: Sequence[int] = ()
) -> Compiled:
    space = space_of(graph)
    of_sizes = "" if space is None else f"{space.least} {[*map(str, space.facts)]}"
    key = str(graph), of_sizes, tuple(updates), tuple(guards)
    got = capture.programs.get(key)
    if got is None:
        got = capture.programs[key] = Compiled(capture, graph, "forward", updates, guards)
    return got


def compile_pair(
    capture: Any, graph: Graph, wrt: Sequence[int], of: Sequence[int], blocked: Sequence[Value]
) -> tuple[Compiled, Compiled, tuple, tuple]:
    """Forward with residuals, backward, where the residuals come from, where the gradients are."""
    joint = differentiate(graph, list(wrt), list(of), blocked=set(blocked))
    joint.forward.name = graph.name
    joint.backward.name = f"{graph.name}_backward"
    return (
        Compiled(capture, joint.forward, "forward"),
        Compiled(capture, joint.backward, "backward"),
        joint.residuals,
        joint.gradients,
    )
