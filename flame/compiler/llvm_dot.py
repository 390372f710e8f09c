"""Products with few rows whose factors both run along the summed axis: dot products, several rows of the small factor at once.

    a linear layer on a handful of rows, x (m, k) and weights (n, k), m at most 8

Packing the large factor would cost more than the product. Instead a row of it is read once, lanes along k, and multiplied with
several rows of the small one, whose accumulators stand side by side in registers.
"""

from __future__ import annotations

from flame.compiler.index_math import E
from flame.compiler.kernel import Contract, Kernel, Load
from flame.compiler.llvm_axes import product, size, unit_axes
from flame.compiler.llvm_point import Linear
from flame.compiler.llvm_reduce import Accumulator, State
from flame.compiler.llvm_rows import Entry, RowWriter, carried, packed, unpacked
from flame.compiler.llvm_text import Int, existing_lanes
from flame.compiler.nests import Nest, loads_of
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget

MOST_ROWS = 8


def dot_axis(kernel: Kernel, nest: Nest) -> tuple[str, int]:
    """The axis of the rows that are taken together, and how many at once; ("", 0) where this form does not apply."""
    nothing = ("", 0)
    if len(nest.reduces) != 1 or not isinstance(nest.reduces[0], Contract) or len(nest.outer) < 2:
        return nothing
    c = nest.reduces[0]
    first = next(s for s in nest.sweeps if s.reduces)
    if first.stores or len(c.axes) != 1 or any(s.axes for s in nest.sweeps if s is not first):
        return nothing
    (k,) = c.axes
    loads: list[Load] = [t for t in loads_of(kernel, c) if k in kernel.domains[t.name]]
    if len(loads) < 2 or any(k not in unit_axes(kernel, t) for t in loads):
        return nothing
    left, right = (kernel.domains[v] for v in c.operands)
    for mine, others in ((left, right), (right, left)):
        rows = [a for a in nest.outer if a in mine and a not in others]
        if len(rows) != 1:
            continue
        n = kernel.axes[rows[0]].const
        if n is None or not 2 <= n <= MOST_ROWS or size(kernel, product(kernel, nest.outer)) < 4 * n:
            continue
        together = n
        return rows[0], together
    return nothing


class DotWriter(RowWriter):
    """A nest of dot products. `rows` divides the extent of `axis`, which is walked innermost."""

    def __init__(self, kernel: Kernel, nest: Nest, schedule: CpuSchedule, target: CpuTarget, entry: Entry):
        self.axis, self.rows = dot_axis(kernel, nest)
        nest.outer = (*(a for a in nest.outer if a != self.axis), self.axis)
        super().__init__(kernel, nest, schedule, target, entry)
        self.outer_lane = ""
        self.unroll = max(1, min(4, (target.registers - 2) // self.rows))

    def describe(self) -> str:
        return super().describe() + f", {self.rows} rows of {self.axis} at once"

    def _rounds(self, axes: list[str]) -> E:
        n = product(self.kernel, tuple(axes))
        return n // self.rows if self.axis in axes else n

    def _bind_outer(self, axis: str, i: Int) -> None:
        self.point.bind(axis, Linear(self.function.mul(i, self.rows) if axis == self.axis else i))

    def _row(self) -> None:
        f, n, copies = self.function, self.lanes, self.unroll
        base = self.point
        start = base.axes[self.axis][0].scalar
        points = []
        for r in range(self.rows):
            p = base.fork()
            p.open()
            p.bind(self.axis, Linear(f.add(start, r)))
            points.append(p)
        sweep = next(s for s in self.nest.sweeps if s.reduces)
        (k,) = sweep.axes
        a = Accumulator(self.kernel, sweep.reduces[0], self.machine, n)
        extent = base.integer_of(self.kernel.axes[k])
        full = f.sub(extent, f.rem(extent, n * copies))
        every = [a] * self.rows

        def at(i: Int, states: list[State], masked: bool) -> list[State]:
            out = []
            for p, state in zip(points, states, strict=True):
                before = dict(p.axes)
                p.open()
                p.bind(k, Linear(i, 1, None, True))
                p.tail = existing_lanes(f, i, extent, n) if masked else None
                out.append(a.step(state, p, masked))
                p.tail = None
                p.close(before)
            return out

        def many(i: str, names: list[str]) -> list[str]:
            return packed([at(f.add(i, n * u), s, False) for u, s in enumerate(unpacked(every, names, copies))])

        def one(i: str, names: list[str]) -> list[str]:
            return packed([at(i, unpacked(every, names, 1)[0], True)])

        before = [dict(p.axes) for p in points]
        for p in points:
            p.open()
        states = [[a.start() for _ in points] for _ in range(copies)]
        states = self._sums(0, full, n * copies, every, states, many)
        if not (isinstance(full, int) and full == extent):
            states[:1] = unpacked(every, f.loop(full, extent, n, carried(states[:1]), one), 1)
        for p, axes in zip(points, before, strict=True):
            p.close(axes)
        for r, p in enumerate(points):
            p.define(a.statement.name, a.finish(a.join_all([s[r] for s in states]), across_lanes=True))
            for t in self.nest.stores:
                p.store(t)
