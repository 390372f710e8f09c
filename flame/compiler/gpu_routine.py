"""What runs a primitive on a GPU that no single kernel of the IR holds: scans, sorts, scattered writes.

    routine ::= launch* scratch*
    launch  ::= a TritonSource, the array of each of its buffers, the values of its symbols
    array   ::= operand i | result i | scratch i                 contiguous, row-major

Launches run in order on one stream. A scratch array is memory of that shape that holds nothing before the first launch and is
free after the last. Nothing has to be cleared beforehand: what needs a start value has a launch that writes it.

`Making` is a routine in the making: written sources are added by `launch`, whole graphs by `graph` (which is how casts, copies
and positions are computed: by the kernels that fusion makes of them). Which primitives have a routine:
`flame.compiler.gpu_routines`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.index_math import E, evaluate, ex, var
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import Argument, KernelStep
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import Target
from flame.compiler.to_triton import Grid, Parameter, TritonSource, to_triton
from flame.dtypes import dtype, int32, int64
from flame.primitive import Number, Primitive, Spec


@dataclass(frozen=True, slots=True)
class Array:
    """An array of a routine."""

    kind: Literal["operand", "result", "scratch"]
    index: int

    def __str__(self) -> str:
        return f"{self.kind} {self.index}"


@dataclass(frozen=True, slots=True)
class Launch:
    """`arrays` has the array of every buffer parameter of `source`, by the buffer's name."""

    source: TritonSource
    arrays: Mapping[str, Array]
    symbols: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        given = [f"{b}={a}" for b, a in self.arrays.items()] + [f"{n}={v}" for n, v in self.symbols.items()]
        return f"{self.source.entry}({', '.join(given)}) on {self.source.grid(self.symbols)[0]} programs"


@dataclass(frozen=True, slots=True)
class GpuRoutine:
    launches: tuple[Launch, ...]
    scratch: tuple[Spec, ...] = ()

    def __str__(self) -> str:
        return "\n".join([*(f"scratch {i}: {s}" for i, s in enumerate(self.scratch)), *map(str, self.launches)])


#: how a primitive that a graph leaves as a call is run: (its launches are added to `making`)
Call = Callable[
    ["Making", Primitive, Sequence[Array | Number], Sequence[Spec | Number], Mapping[str, Any], Sequence[Array]], None
]


class Making:
    """A routine in the making. `deterministic`: equal operands are to give equal bits, however programs are timed."""

    def __init__(self, target: Target, deterministic: bool, call: Call):
        self.target = target
        self.deterministic = deterministic
        self.launches: list[Launch] = []
        self.scratch: list[Spec] = []
        self._call = call

    def array(self, shape: Sequence[int], d: dtype) -> Array:
        """Fresh scratch memory."""
        self.scratch.append(Spec(tuple(shape), d))
        return Array("scratch", len(self.scratch) - 1)

    def launch(self, source: TritonSource, arrays: Mapping[str, Array], symbols: Mapping[str, int]) -> None:
        given = {p.symbol: symbols[p.symbol] for p in source.parameters if p.symbol}
        self.launches.append(Launch(source, dict(arrays), given))

    def graph(
        self, f: Callable[..., Sequence[Value]], inputs: Sequence[tuple[Array, Spec]], outputs: Sequence[Array], name: str
    ) -> None:
        """Compute `outputs` from `inputs`: `f` makes values of values by primitives."""
        graph = Graph(name=name)
        with Builder(graph) as builder:
            values = [builder.input(spec) for _, spec in inputs]
            graph.outputs = list(f(*values))
        program = compile_graph(graph, self.target)
        place: dict[int, Array] = {s: a for s, (a, _) in zip(program.inputs, inputs, strict=True)}
        place |= dict(zip(program.outputs, outputs, strict=True))
        for i, s in enumerate(program.slots):
            if s.kind == "temp":
                place[i] = self.array(s.spec.shape, s.spec.dtype)
        for step in program.steps:
            if isinstance(step, KernelStep):
                source = to_triton(step.kernel, choose_gpu(step.kernel, self.target, step.symbols))
                self.launch(source, {b: place[i] for b, i in step.buffers.items()}, step.symbols)
                continue
            arrays: list[Array | Number] = [place[a.slot] if isinstance(a, Argument) else a for a in step.arguments]
            specs = [x.spec if isinstance(x, Value) else x for x in step.node.operands]
            made = [
                place[i] if i >= 0 else self.array(v.shape, v.dtype)
                for i, v in zip(step.outputs, step.node.outputs, strict=True)
            ]
            self._call(self, step.node.primitive, arrays, specs, step.node.params, made)

    def routine(self) -> GpuRoutine:
        return GpuRoutine(tuple(self.launches), tuple(self.scratch))


def written(
    entry: str,
    text: str,
    buffers: Sequence[tuple[str, dtype]],
    symbols: Sequence[str],
    constexprs: Mapping[str, int],
    directions: Sequence[tuple[E | int, int]],
    *,
    warps: int = 4,
    sizes: Mapping[str, int],
    reach: int = 0,
) -> TritonSource:
    """A source written by hand. `text` holds the kernel `entry`, whose parameters are NAME_ptr for each buffer, then the symbols,
    then the constants; INDEX in it becomes the type of positions: 64 bits where `sizes`, the symbols' values, ask for it, or
    positions up to `reach` do."""
    counted = (_product(directions), *map(var, symbols))
    wide = reach >= 2**31 - 2**20 or any(evaluate(e, sizes) >= 2**31 - 2**20 for e in counted)
    held = int64 if wide else int32
    parameters = (
        *(Parameter(f"{b}_ptr", d, buffer=b) for b, d in buffers),
        *(Parameter(n, held, symbol=n) for n in symbols),
    )
    return TritonSource(
        text="import triton\nimport triton.language as tl\n\n\n" + text.strip("\n").replace("INDEX", f"tl.{held.name}") + "\n",
        entry=entry,
        parameters=parameters,
        constexprs=dict(constexprs),
        grid=Grid(tuple((ex(e), block) for e, block in directions)),
        warps=warps,
        stages=3,
        fp_fusion=False,
        wide=wide,
        counted=counted,
    )


def _product(directions: Sequence[tuple[E | int, int]]) -> E:
    out = ex(1)
    for e, _ in directions:
        out = out * e
    return out
