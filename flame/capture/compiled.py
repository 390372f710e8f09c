"""Graphs of a capture turned into things that run, and the record of what was turned into what.

Equal graphs of one function (a path whose set of results grew back, the same segment after another break) share their programs by
their text, and so do equal graphs of other processes: what was compiled once is found on disk (`flame.runtime.index`).
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from flame.compiler.autodiff import differentiate
from flame.compiler.concrete import graph_at, program_at
from flame.compiler.dims import Space, space_of
from flame.compiler.graph import Graph, Value
from flame.compiler.partition import Joint, Residual
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import Decision, Program
from flame.compiler.spelling import Unspellable, lines, spelled
from flame.compiler.target import Target
from flame.compiler.target_cpu import LlvmSource
from flame.errors import MissingTargetError
from flame.knobs import knobs
from flame.reasons import NOT_COMPILED
from flame.runtime import cpu, index
from flame.runtime.cuda import gpu
from flame.runtime.device import CPU, device
from flame.runtime.executable import Backend, Executable
from flame.runtime.gpu_copy import duplicate
from flame.runtime.gpu_eager import run as run_on_gpu
from flame.runtime.gpu_program import GpuExecutable
from flame.runtime.routines import routines_of

#: modes in which a program's launches on a GPU become a graph of its driver
GRAPH_MODES = frozenset({"reduce-overhead", "max-autotune"})

NO_SIZES: Mapping[str, int] = {}
#: sets of sizes for which a program is kept ready to run
MOST_SIZES = 64
#: modes in which schedules are measured
TUNED_MODES = frozenset({"max-autotune", "max-autotune-no-cudagraphs"})
#: sets of sizes that one program is kept on disk for by one process
KEPT_SIZES = 16


class Compiled:
    """A graph, its program, and the executable; where compiling failed, the reason, and the primitives run one by one.

    `updates` are pairs (input, result) by number: the result may come back in the input's own memory, unless one of the results
    `guards` is true: then all others are undefined. What was found on disk brings its executable along, `ready`; its graph and
    its program are then made when somebody looks at them. If it has symbols, that is for their values in `space`, and for others
    that `more` finds: it `serves` no others.
    """

    __slots__ = ("executable", "symbols", "__dict__")  #: (those that every call asks for)

    def __init__(
        self,
        capture: Any,
        graph: Callable[[], Graph],
        role: str,
        updates: Sequence = (),
        guards: Sequence[int] = (),
        ready: Executable | None = None,
        device: device = CPU,
        space: Space | None = None,
    ):
        self._gpu = None if device.type == "cpu" else gpu(device.index)
        self._graph = graph
        self.role = role
        self.executable: Any = ready
        self.failure = ""
        self._asked = updates, guards
        self._at: dict[tuple[int, ...], Callable] = {}  #: by the values of the symbols
        self._graphs = capture.options.mode in GRAPH_MODES
        self._backend: Backend = "interpret" if capture.options.backend == "interpret" else "llvm"
        self._tune = self._backend == "llvm" and capture.options.mode in TUNED_MODES
        self._target = None
        self.space: Space | None = None
        self.symbols: tuple[str, ...] = ()
        #: of what was found on disk: looks there for the executables at other sizes
        self.more: Callable[[Mapping[str, int]], bool] | None = None
        #: told of what was made for sizes, to keep it
        self.made: Callable[[Mapping[str, int]], None] | None = None
        if ready is not None:
            self._target = cpu.target()
            if space is not None:
                self.space, self.symbols = space, tuple(space.values)
                self.take(space.values, ready)
        else:
            self._compile(capture)
        #: whether no two results share memory
        self.distinct = self.executable is None or self.executable.distinct

    def _compile(self, capture: Any) -> None:
        graph = self.graph
        self.space = space_of(graph)
        if self.space is not None:
            self.symbols = tuple(self.space.values)
        if knobs.log:
            say("graph", f"captured, {self.role}:\n{graph}")
        try:
            if capture.options.backend == "triton" and self._gpu is None:
                raise _Unwanted("backend='triton' was asked for, and the tensors are on the CPU")
            if capture.options.backend == "eager":
                raise _Unwanted("backend='eager' was asked for")
            with cpu.ahead(self._routines()):
                program = self._made
            if self.symbols:
                assert self.space is not None
                self._at[tuple(self.space.values[n] for n in self.symbols)] = self._bound(self.space.values)
            else:
                self.executable = self._executable(program)
        except _Unwanted as e:
            self.failure = str(e)
        except Exception as e:  # whatever a pass trips over must not stop a program that runs eagerly: it is recorded and shown
            if knobs.verify:
                raise
            self.failure = NOT_COMPILED.text(f"{graph.name} ({self.role})", f"{type(e).__name__}: {e}")
            capture.stats.count(capture.stats.fallbacks, graph.name, self.failure)
            print(f"flame: {self.failure}", file=sys.stderr)

    @property
    def gpu(self) -> Target | None:
        """The GPU that it is compiled for, if it is for one."""
        return None if self._gpu is None else self._gpu.target

    def _executable(self, program: Program) -> Any:
        if self._gpu is None:
            return Executable(program, backend=self._backend, tune=self._tune)
        return GpuExecutable(program, self._gpu, self._graphs, self._tune)

    def _routines(self) -> list[tuple[str, LlvmSource]]:
        """What can be compiled before the graph is."""
        if self._gpu is not None or self._backend != "llvm" or self.space is not None:
            return []
        return routines_of(self.graph, self._target or cpu.target(), cpu.host())

    @functools.cached_property
    def graph(self) -> Graph:
        return self._graph()

    @functools.cached_property
    def _made(self) -> Program:
        updates, guards = self._asked
        log = say if knobs.log else None
        target = self._target or (cpu.target() if self._gpu is None else self._gpu.target)
        return compile_graph(self.graph, target, updates=updates, guards=guards, log=log, verify=knobs.verify)

    @property
    def program(self) -> Program | None:
        """What the graph was compiled to; None where that failed or was not wanted."""
        return None if self.failure else self._made

    def __call__(self, arrays: list[np.ndarray], sizes: Mapping[str, int] = NO_SIZES) -> list[np.ndarray]:
        """Run it, for these values of the graph's symbols."""
        run: Executable | None = self.executable
        if self.symbols:
            return self.at(sizes)(arrays)
        return interpret_graph(self.graph, arrays, self._gpu) if run is None else run(arrays)

    def take(self, sizes: Mapping[str, int], executable: Executable) -> None:
        """What was found on disk for these values of the symbols."""
        self._at[self._key(sizes)] = executable

    def executable_at(self, sizes: Mapping[str, int]) -> Any:
        """What runs at these values of the symbols, if it is ready."""
        return self._at.get(self._key(sizes))

    def serves(self, sizes: Mapping[str, int]) -> bool:
        """Whether it can run at these values of the symbols, as far as what was found on disk goes."""
        if self.more is None or self._key(sizes) in self._at:
            return True
        return len(self._at) < MOST_SIZES and self.more(sizes)

    def _key(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple([sizes[n] for n in self.symbols])

    def at(self, sizes: Mapping[str, int]) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
        """What runs it for these values of the symbols, and can be kept."""
        if not self.symbols:
            return (
                self.executable
                if self.executable is not None
                else functools.partial(interpret_graph, self.graph, gpu=self._gpu)
            )
        key = self._key(sizes)
        run = self._at.get(key)
        if run is None:
            if len(self._at) >= MOST_SIZES:
                del self._at[next(iter(self._at))]
            run = self._at[key] = self._bound({n: sizes[n] for n in self.symbols})
            if self.made is not None:
                self.made(sizes)
        return run

    def _bound(self, sizes: dict[str, int]) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
        """What runs at these sizes: the same kernels, with memory planned anew."""
        program = self.program
        if program is None:
            graph = graph_at(self.graph, sizes)
            return lambda arrays: interpret_graph(graph, arrays, self._gpu)
        executable = self._executable(program_at(program, sizes))
        self.executable = self.executable or executable
        return executable

    def executables(self) -> list[Executable]:
        """What runs it, for whatever sizes."""
        made = [self.executable, *self._at.values()]
        return [e for e in made if isinstance(e, Executable)]

    @property
    def decisions(self) -> list[Decision]:
        program = self.program
        mine = [] if program is None else list(program.decisions)
        return mine + (list(self.executable.decisions) if self.executable is not None else [])


class _Unwanted(Exception):
    pass


@contextmanager
def collector_paused() -> Iterator[None]:
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


def interpret_graph(graph: Graph, arrays: Sequence[Any], gpu: Any = None) -> list[Any]:
    """Each node by its primitive's eager meaning; results share no memory with inputs or each other."""
    held: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    for n in graph.nodes:
        try:
            operands = [held[o] if isinstance(o, Value) else o for o in n.operands]
            got = n.primitive.eager(*operands, **n.params) if gpu is None else run_on_gpu(gpu, n.primitive, operands, n.params)
        except (IndexError, RuntimeError, ValueError, ZeroDivisionError) as e:
            raise type(e)(f"{e} ({n.primitive.name} at {n.source})") from e
        for o, a in zip(n.outputs, got if isinstance(got, tuple) else (got,), strict=True):
            held[o] = a
    return [duplicate(held[o]) for o in graph.outputs]


def compile_segment(
    capture: Any, graph: Graph, updates: Sequence[tuple[int, int]] = (), guards: Sequence[int] = (), device: device = CPU
) -> Compiled:
    space = space_of(graph)
    about = Identity.of(graph, f"{updates} {guards}{_how(capture)}", (), device)
    if space is not None:
        return _of_sizes(capture, graph, space, about, updates, guards, device)
    key = (about.name, about.lines) if about.name else (str(graph), tuple(updates), tuple(guards), device)
    got = capture.programs.get(key)
    if got is None:
        found = about.look_up(capture, [graph.name])
        ready = found.executables[0] if found is not None else None
        got = capture.programs[key] = Compiled(capture, lambda: graph, "forward", updates, guards, ready, device)
        if ready is None:
            about.keep(capture, None, [got])
    return got


def _of_sizes(
    capture: Any,
    graph: Graph,
    space: Space,
    about: Identity,
    updates: Sequence[tuple[int, int]],
    guards: Sequence[int],
    device: device,
) -> Compiled:
    """A graph with symbols: one program for all sizes of which the facts hold that compiling rested on."""
    known = capture.programs.setdefault((str(graph), str(space.least), tuple(updates), tuple(guards), device), [])
    for got in known:
        if all(f.holds(space.values) for f in got.space.facts):
            for f in got.space.facts:
                space.learn(f)
            return got
    found = about.at(space.values).look_up(capture, [graph.name])
    if found is not None:
        got = Compiled(capture, lambda: graph, "forward", updates, guards, found.executables[0], device, space)
        _look_for_more(capture, about, None, [got])
    else:
        got = Compiled(capture, lambda: graph, "forward", updates, guards, None, device)
        known.append(got)
        _keep_each(capture, about, None, [got])
    return got


def _look_for_more(capture: Any, about: Identity, facts: Any, made: Sequence[Compiled]) -> None:
    """Programs that were found on disk look there for those at other sizes, with the same facts."""
    names = [c.executable.name for c in made]
    absent: set[tuple] = set()

    def more(sizes: Mapping[str, int]) -> bool:
        key = tuple(sorted(sizes.items()))
        found = None if key in absent else about.at(sizes).look_up(capture, names)
        if found is None or found.facts != facts:
            absent.add(key)
            return False
        for c, e in zip(made, found.executables, strict=True):
            c.take(sizes, e)
        return True

    for c in made:
        c.more = more


def _keep_each(capture: Any, about: Identity, facts: Any, made: Sequence[Compiled]) -> None:
    """Programs that were compiled are kept for each set of sizes that they all have run at: some of them."""
    if not about.usable(capture) or any(c.failure for c in made):
        return
    room = KEPT_SIZES

    def keep(sizes: Mapping[str, int]) -> None:
        nonlocal room
        executables = [c.executable_at(sizes) for c in made]
        if room and all(isinstance(e, Executable) for e in executables):
            room -= 1
            index.enter(about.at(sizes).name, about.lines, facts, executables)

    space = made[0].space
    if space is not None:
        keep(space.values)
    for c in made:
        c.made = keep


def compile_pair(
    capture: Any, graph: Graph, wrt: Sequence[int], of: Sequence[int], blocked: Sequence[Value], device: device = CPU
) -> tuple[Compiled, Compiled, tuple, tuple]:
    """Forward with residuals, backward, where the residuals come from, where the gradients are."""

    @functools.cache
    def joint() -> Joint:
        made = differentiate(graph, list(wrt), list(of), blocked=set(blocked))
        made.forward.name, made.backward.name = names
        return made

    names = graph.name, f"{graph.name}_backward"
    about, space = Identity.of(graph, f"{list(wrt)} {list(of)}{_how(capture)}", blocked, device), space_of(graph)
    found = (about if space is None else about.at(space.values)).look_up(capture, names)
    ready = found.executables if found is not None else (None, None)
    forward = Compiled(capture, lambda: joint().forward, "forward", ready=ready[0], device=device, space=space)
    backward = Compiled(capture, lambda: joint().backward, "backward", ready=ready[1], device=device, space=space)
    if found is not None:
        if space is not None:
            _look_for_more(capture, about, found.facts, [forward, backward])
        residuals, gradients = found.facts
        return forward, backward, tuple(Residual(*r) for r in residuals), tuple(gradients)
    facts = [[[r.source, r.index] for r in joint().residuals], list(joint().gradients)]
    if space is None:
        about.keep(capture, facts, [forward, backward])
    else:
        _keep_each(capture, about, facts, [forward, backward])
    return forward, backward, joint().residuals, joint().gradients


def _how(capture: Any) -> str:
    """What of a function's options decides what its graphs become on disk."""
    return " tuned" if capture.options.mode in TUNED_MODES else ""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a graph is known by among programs on disk. No `name`: it has a parameter that only this process knows, or it is for
    a GPU, whose kernels are kept one by one. What is kept of a graph with symbols is how it runs at some sizes (`at`)."""

    name: str
    lines: str

    @classmethod
    def of(cls, graph: Graph, facts: str, marked: Sequence[Value] = (), device: device = CPU) -> Identity:
        if device.type != "cpu":
            return cls("", "")
        try:
            return cls(index.name(spelled(graph, marked), facts), lines(graph))
        except (Unspellable, MissingTargetError):
            return cls("", "")

    def at(self, sizes: Mapping[str, int]) -> Identity:
        """The same at these values of its symbols."""
        return Identity(index.name(self.name, f"{sorted(sizes.items())}"), self.lines) if self.name else self

    def usable(self, capture: Any) -> bool:
        """Programs are looked for and kept where native code is made, and not where every pass is to be verified or shown."""
        native = capture.options.backend not in ("eager", "interpret")
        return bool(self.name) and native and not knobs.verify and knobs.log.isdisjoint(PASSES)

    def look_up(self, capture: Any, names: Sequence[str]) -> index.Found | None:
        return index.look_up(self.name, self.lines, names) if self.usable(capture) else None

    def keep(self, capture: Any, facts: Any, made: Sequence[Compiled]) -> None:
        if self.usable(capture) and all(isinstance(c.executable, Executable) for c in made):
            index.enter(self.name, self.lines, facts, [c.executable for c in made])


#: topics of FLAME_LOG that show what the passes do
PASSES = frozenset({"graph", "fusion", "kernels", "passes"})
