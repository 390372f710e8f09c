"""Kernel -> Triton source, as a person would have written it.

`to_triton(kernel, schedule)` answers with a `TritonSource`: the text of a module with one kernel in it and the small functions
it calls, what the kernel's parameters are, the values of its compile-time constants, and its grid as a function of symbols.
The text is a function of kernel and schedule alone. Parameters are the buffers' pointers in the kernel's order (aligned to 16
bytes), then the symbols' values as 32-bit integers (64 where the schedule is wide).

Where it is written: `triton_rows` (pointwise, reductions), `triton_panel` (rows with sums of columns), `triton_contract` (tiled
products) and `triton_chain` (attention) decide on tiles and loops, `triton_body` writes the statements inside them, `triton_text`
spells single operations. Compiling it is `flame.runtime`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from flame.compiler.index_math import E, evaluate
from flame.compiler.kernel import Contract, Kernel, Op, Reduce, Statement
from flame.compiler.schedule import GpuSchedule, positions
from flame.compiler.triton_body import Body
from flame.compiler.triton_chain import Chained
from flame.compiler.triton_contract import Dot
from flame.compiler.triton_panel import Panel
from flame.compiler.triton_rows import Rows
from flame.compiler.triton_text import LANGUAGE
from flame.dtypes import dtype, int32, int64


@dataclass(frozen=True, slots=True)
class Parameter:
    """A run-time parameter of a kernel: the pointer to a buffer, or a symbol's value."""

    name: str
    dtype: dtype
    buffer: str = ""
    symbol: str = ""

    @property
    def type(self) -> str:
        """As Triton's signatures spell it."""
        letters = LANGUAGE[self.dtype.name][1]
        return f"*{letters}" if self.buffer else letters


@dataclass(frozen=True, slots=True)
class Grid:
    """The number of programs: called with the symbols' values it gives a launch's three dimensions.

    `directions` are (points, points a program): the programs are the product of the quotients, rounded up. A launch of no
    programs (an array without elements) is to be left out. `most`: no more than so many; each does several programs' work.
    """

    directions: tuple[tuple[E, int], ...]
    most: int = 0

    def __call__(self, symbols: Mapping[str, int] | None = None) -> tuple[int, int, int]:
        n = 1
        for points, block in self.directions:
            n *= -(-evaluate(points, symbols or {}) // block)
        return min(n, self.most or n), 1, 1


@dataclass(frozen=True, slots=True)
class TritonSource:
    """A kernel in Triton. `text` is a module; `entry` its kernel's name."""

    text: str
    entry: str
    parameters: tuple[Parameter, ...]
    constexprs: dict[str, int]
    grid: Grid
    warps: int
    stages: int
    fp_fusion: bool
    wide: bool
    counted: tuple[E, ...]
    #: the kernel writes descriptors of arrays for the copy engine: a launch hands it memory for them, as many bytes for each
    #: program as the binary says (`Binary.scratch`)
    descriptors: bool = False

    def fits(self, symbols: Mapping[str, int] | None = None) -> bool:
        """May it be launched for these values of the symbols? False: they need a schedule that is `wide`."""
        return self.wide or all(evaluate(e, symbols or {}) < 2**31 - 2**20 for e in self.counted)

    @property
    def digest(self) -> str:
        """A hash of all that compiling depends on, versions apart."""
        signature = [p.type for p in self.parameters]
        what = (self.text, signature, sorted(self.constexprs.items()), self.warps, self.stages, self.fp_fusion)
        return hashlib.sha256(repr(what).encode()).hexdigest()


def to_triton(kernel: Kernel, schedule: GpuSchedule) -> TritonSource:
    """Render a kernel under a schedule. Raises Refused where the schedule does not fit the kernel."""
    if schedule.form == "rows":
        kernel = sums_of_products(kernel)
    body = Body(kernel, schedule.wide)
    rows = Panel if Panel.takes(kernel, schedule) else Rows
    forms: dict[str, type[Rows] | type[Dot] | type[Chained]] = {"rows": rows, "dot": Dot, "chain": Chained}
    form = forms[schedule.form](kernel, schedule, body)
    form.render()
    size = int64 if schedule.wide else int32
    parameters = (
        *(Parameter(body.pointers[b.name], b.dtype, buffer=b.name) for b in kernel.buffers.values()),
        *(Parameter(body.sizes[n], size, symbol=n) for n in kernel.symbols),
    )
    entry = body.entry
    names = [*(p.name for p in parameters), *(f"{c}: tl.constexpr" for c in body.constants)]
    signature = ", ".join(names)
    if len(signature) + len(entry) > 100:
        signature = "".join(f"\n    {n}," for n in names) + "\n"
    parts = ["import triton", "import triton.language as tl"]
    if body.uses_libdevice or body.functions.uses_libdevice:
        parts.append("from triton.language.extra import libdevice")
    for text in body.functions.texts.values():
        parts += ["", "", text]
    parts += ["", "", "@triton.jit", f"def {entry}({signature}):"]
    parts += body.finished() or ["    pass"]
    return TritonSource(
        text="\n".join(parts) + "\n",
        entry=entry,
        parameters=parameters,
        constexprs=dict(body.constants),
        grid=Grid(tuple(form.programs), schedule.programs if schedule.form == "dot" else 0),
        warps=schedule.warps,
        stages=schedule.stages,
        fp_fusion=schedule.fp_fusion,
        wide=schedule.wide,
        counted=positions(kernel),
        descriptors=body.describes,
    )


def sums_of_products(kernel: Kernel) -> Kernel:
    """The kernel with each contraction written as a reduction: factors are cast to its dtype first, so products of narrow
    types are exact as before."""
    if not any(isinstance(s, Contract) for s in kernel.statements):
        return kernel
    taken = set(kernel.definitions)

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    out: list[Statement] = []
    for s in kernel.statements:
        if not isinstance(s, Contract):
            out.append(s)
            continue
        factors = []
        for v in s.operands:
            if kernel.definitions[v].dtype is not s.dtype:
                out.append(Op(fresh(f"{v}_wide"), "cast", (v,), s.dtype))
                v = out[-1].name  # type: ignore[union-attr]
            factors.append(v)
        if s.axes:
            out.append(Op(fresh(f"{s.name}_product"), "mul", tuple(factors), s.dtype))
            out.append(Reduce(s.name, "sum", (out[-1].name,), s.axes, s.dtype, s.note))  # type: ignore[union-attr]
        else:
            out.append(Op(s.name, "mul", tuple(factors), s.dtype, s.note))
    return Kernel(kernel.name, kernel.buffers, kernel.axes, kernel.symbols, out, kernel.values)
