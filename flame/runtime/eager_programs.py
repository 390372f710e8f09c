"""Functions over primitives, as native programs that eager calls run: fused, on arrays of any sizes.

    EagerProgram(name, f, static)              f(*values, **static) is written with primitives, as derivative rules are
    program.ready(operands, wrt)               what runs it on operands of these shapes, and its derivative

    operand ::= (shape, dtype) | dtype (a number, which is read in it) | None
    Ready   ::= forward, and where derivatives are wanted: backward, residuals, gradients

Sizes of 2 and more are symbols, and equal ones one symbol (0 and 1 mean something else to broadcasting); so one trace and one
compilation serve all sizes of a pattern of which the facts hold that were found on the way (`flame.compiler.dims`). How it runs
at some sizes is kept on disk under the text of its graph, as with captured graphs. What `f` is written in keeps its bits whatever
ran before: which program runs depends on shapes and dtypes alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flame.compiler.autodiff import differentiate
from flame.compiler.concrete import program_at
from flame.compiler.dims import LEAST, Space
from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.partition import Residual
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import Program
from flame.compiler.spelling import spelled
from flame.dtypes import dtype
from flame.errors import CompileError, MissingTargetError, Refused, VerificationError
from flame.knobs import knobs
from flame.primitive import Spec, registered
from flame.runtime import cpu, index
from flame.runtime.executable import Executable
from flame.runtime.locks import compiling

COPY = registered("copy")
Operand = tuple[tuple[int, ...], dtype] | dtype | None
#: what may be in the way of native code: operands it happens to are left to NumPy
REFUSALS: Final = (CompileError, MissingTargetError, Refused, VerificationError, TypeError, NotImplementedError)
#: sets of sizes for which one program is kept on disk by one process
_KEPT: Final = 64


class Tracer(Builder):
    """Builds the graph of a function; `fixed` values are those that no derivative flows through."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.blocked: list[Value] = []

    def fixed(self, v: Value) -> Value:
        copy: Value = self.process(COPY, (v,), {})
        self.blocked.append(copy)
        return copy


@dataclass(frozen=True, slots=True)
class Ready:
    """What runs: `forward` gives the function's `results`, then further residuals; `backward` takes `residuals`, then a cotangent
    of each floating result, and its results are numbered by `gradients`, one for each input that derivatives are wanted by."""

    forward: Executable
    results: int
    backward: Executable | None = None
    residuals: tuple[Residual, ...] = ()
    gradients: tuple[int | None, ...] = ()


@dataclass(slots=True)
class _Traced:
    """The graph at some sizes, and what it was compiled to."""

    space: Space
    graph: Graph
    blocked: list[Value]
    text: str
    programs: tuple[Program, ...] = ()
    residuals: tuple[Residual, ...] = ()
    gradients: tuple[int | None, ...] = ()

    def holds(self, sizes: Mapping[str, int]) -> bool:
        return all(f.holds(sizes) for f in self.space.facts)


def pattern_of(operands: Sequence[Operand]) -> tuple[tuple, dict[str, int]]:
    """The operands with symbols in place of sizes, and what the symbols are."""
    symbols: dict[int, str] = {}
    pattern: list[Any] = []
    for o in operands:
        if type(o) is tuple:
            shape = tuple([n if n < LEAST else symbols.setdefault(n, f"s{len(symbols)}") for n in o[0]])
            pattern.append((shape, o[1]))
        else:
            pattern.append(o)
    return tuple(pattern), {name: n for n, name in symbols.items()}


@dataclass(eq=False)
class EagerProgram:
    """See the head of this file."""

    name: str
    f: Callable[..., Any]
    static: Mapping[str, Any]
    _traced: dict[tuple, list[_Traced]] = field(default_factory=dict)
    _kept: int = 0

    def ready(self, operands: Sequence[Operand], wrt: tuple[int, ...] = ()) -> Ready:
        """What runs it, and its derivative by the inputs `wrt`: operands, numbered without those that are None.

        Raises one of REFUSALS where that can't be compiled.
        """
        pattern, sizes = pattern_of(operands)
        with compiling:
            was_on = gc.isenabled()
            gc.disable()
            try:
                return self._ready(pattern, sizes, wrt)
            finally:
                if was_on:
                    gc.enable()

    def _ready(self, pattern: tuple, sizes: dict[str, int], wrt: tuple[int, ...]) -> Ready:
        made = self._traced.setdefault((pattern, wrt), [])
        traced = next((t for t in made if t.holds(sizes)), None)
        if traced is None:
            traced = self._trace(pattern, sizes)
            made.append(traced)
        about = f"eager {wrt} {sorted(sizes.items())}"
        where = index.name(traced.text, about)
        count = len(traced.graph.outputs)
        names = (self.name, f"{self.name}_backward")[: 2 if wrt else 1]
        kept = not knobs.verify and not knobs.log
        found = index.look_up(where, "", names) if kept else None
        if found is not None:
            residuals, gradients = found.facts
            forward, *more = found.executables
            return Ready(forward, count, more[0] if more else None, tuple(Residual(*r) for r in residuals), tuple(gradients))
        if not traced.programs:
            self._compile(traced, wrt)
            if not traced.holds(sizes):  # (what compiling learned is of these very sizes)
                raise CompileError(f"{self.name}: the facts that it rests on do not hold of its own sizes")
        executables = [Executable(program_at(p, sizes)) for p in traced.programs]
        if kept and self._kept < _KEPT:
            self._kept += 1
            facts = [[[r.source, r.index] for r in traced.residuals], list(traced.gradients)]
            index.enter(where, "", facts, executables)
        return Ready(executables[0], count, executables[1] if wrt else None, traced.residuals, traced.gradients)

    def _trace(self, pattern: tuple, sizes: dict[str, int]) -> _Traced:
        space = Space(sizes, dict.fromkeys(sizes, LEAST))
        graph = Graph(name=self.name)
        tracer = Tracer(graph)
        tracer.note = self.name
        values: list[Any] = []
        for o in pattern:
            if type(o) is tuple:
                values.append(tracer.input(Spec(tuple([space.symbol(n) if type(n) is str else n for n in o[0]]), o[1])))
            else:
                values.append(None if o is None else tracer.input(Spec((), o)))
        with tracer:
            got = self.f(*values, **self.static)
        graph.outputs = list(got) if isinstance(got, tuple) else [got]
        return _Traced(space, graph, tracer.blocked, spelled(graph, tracer.blocked))

    def _compile(self, t: _Traced, wrt: tuple[int, ...]) -> None:
        target = cpu.target()
        if not wrt:
            t.programs = (compile_graph(t.graph, target, verify=knobs.verify),)
            return
        of = [i for i, v in enumerate(t.graph.outputs) if v.dtype.is_floating_point]
        joint = differentiate(t.graph, wrt, of, blocked=set(t.blocked))
        joint.forward.name, joint.backward.name = self.name, f"{self.name}_backward"
        t.programs = tuple(compile_graph(g, target, verify=knobs.verify) for g in (joint.forward, joint.backward))
        t.residuals, t.gradients = joint.residuals, joint.gradients
