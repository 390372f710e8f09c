"""Products whose factors both run along the summed axis, with few rows or one: dot products, a small tile of them at once.

    a linear layer on a handful of rows, x (m, k) and weights (n, k)       a matrix times a vector, a (n, k) and x (k)

Packing the large factor would cost more than the product. Instead a few of its rows are read side by side, lanes along k, each
once, and multiplied with several rows of the small one: accumulators of all these pairs stand in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.index_math import E
from flame.compiler.kernel import Contract, Kernel, Load
from flame.compiler.llvm_axes import product, size, unit_axes
from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_reduce import Accumulator, State
from flame.compiler.llvm_rows import Entry, RowWriter, carried, packed, unpacked
from flame.compiler.llvm_text import Int, existing_lanes
from flame.compiler.nests import Nest, loads_of
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import bool_

MOST_ROWS = 16
LONG = 256  #: of k; shorter rows spend more on joining lanes than packing costs, from 8 rows on
MOST_SIDE = 4  #: of a tile: rows are streams from memory, of which a processor follows few


@dataclass(frozen=True, slots=True)
class DotTile:
    """`rows` points of `small` (the axis "" with one point, for a vector) by `columns` points of `large`; the factors' values."""

    small: str
    rows: int
    large: str
    columns: int
    mine: str  #: the operand that varies along `small`
    other: str


def dot_tile(kernel: Kernel, nest: Nest, target: CpuTarget) -> DotTile | None:
    """The tile, where this form applies."""
    if len(nest.reduces) != 1 or not isinstance(nest.reduces[0], Contract) or not nest.outer:
        return None
    c = nest.reduces[0]
    first = next(s for s in nest.sweeps if s.reduces)
    if first.stores or len(c.axes) != 1 or any(s.axes for s in nest.sweeps if s is not first):
        return None
    (k,) = c.axes
    loads: list[Load] = [t for t in loads_of(kernel, c) if k in kernel.domains[t.name]]
    if len(loads) < 2 or any(k not in unit_axes(kernel, t) for t in loads):
        return None
    a, b = c.operands
    for mine, other in ((a, b), (b, a)):
        on_mine, on_other = kernel.domains[mine], kernel.domains[other]
        rows = [x for x in nest.outer if x in on_mine and x not in on_other]
        lines = [x for x in nest.outer if x in on_other and x not in on_mine]
        if not lines or len(rows) > 1:
            continue
        n = kernel.axes[rows[0]].const if rows else 1
        most = MOST_ROWS if size(kernel, kernel.axes[k]) >= LONG else MOST_ROWS // 2
        if n is None or n > most or (rows and n < 2) or size(kernel, product(kernel, nest.outer)) < 4 * n:
            continue
        if not rows and size(kernel, kernel.axes[k]) < 4 * target.lanes_f32:
            continue
        height, width = _sides(n, kernel.axes[lines[-1]].const, target.registers)
        if height * width > 1:
            return DotTile(rows[0] if rows else "", height, lines[-1], width, mine, other)
    return None


def _sides(rows: int, lines: int | None, registers: int) -> tuple[int, int]:
    """Divisors of both extents whose products fit into registers, with the fewest loads a multiplication."""
    best, found = 0.0, (1, 1)
    for h in range(1, min(rows, MOST_SIDE) + 1):
        for w in range(1, MOST_SIDE + 1):
            if rows % h or (w > 1 and (lines is None or lines % w)) or h * w + min(h, w) + 1 > registers:
                continue
            worth = h * w / (h + w) + h * w / 1000
            if worth > best:
                best, found = worth, (h, w)
    return found


class DotWriter(RowWriter):
    """A nest of dot products, tile by tile: `large` is walked outside `small`."""

    def __init__(self, kernel: Kernel, nest: Nest, schedule: CpuSchedule, target: CpuTarget, entry: Entry, tile: DotTile):
        self.tile = tile
        self.steps = {tile.large: tile.columns} | ({tile.small: tile.rows} if tile.small else {})
        nest.outer = (*(a for a in nest.outer if a not in self.steps), *self.steps)
        super().__init__(kernel, nest, schedule, target, entry)
        self.outer_lane = ""
        self.unroll = max(1, min(4, 12 // (tile.rows * tile.columns)))

    def describe(self) -> str:
        t = self.tile
        return super().describe() + f", tiles of {t.rows} x {t.columns}"

    def _rounds(self, axes: list[str]) -> E:
        n = product(self.kernel, ())
        for a in axes:
            n = n * (self.kernel.axes[a] // self.steps.get(a, 1))
        return n

    def _bind_outer(self, axis: str, i: Int) -> None:
        self.point.bind(axis, Linear(self.function.mul(i, self.steps.get(axis, 1))))

    def _beside(self, axis: str, count: int) -> list[Point]:
        """The present point and those that follow it along an axis."""
        points = []
        for r in range(count):
            p = self.point.fork()
            p.open()
            if axis:
                p.bind(axis, Linear(self.function.add(self.point.axes[axis][0].scalar, r)))
            points.append(p)
        return points

    def _row(self) -> None:
        f, n, copies, tile, m = self.function, self.lanes, self.unroll, self.tile, self.machine
        rows, columns = self._beside(tile.small, tile.rows), self._beside(tile.large, tile.columns)
        sweep = next(s for s in self.nest.sweeps if s.reduces)
        (k,) = sweep.axes
        a = Accumulator(self.kernel, sweep.reduces[0], m, n)
        extent = self.point.integer_of(self.kernel.axes[k])
        full = f.sub(extent, f.rem(extent, n * copies))
        every = [a] * (tile.rows * tile.columns)

        def vector(p: Point, name: str, i: Int, tail: str | None) -> Value:
            """A factor along k from `i` on, nothing where lanes do not exist."""
            before = dict(p.axes)
            p.open()
            p.bind(k, Linear(i, 1, None, True))
            p.tail = tail
            x = m.widen(m.cast(p.need(name), a.dtype), n)
            p.tail = None
            p.close(before)
            return x if tail is None else m.emit("where", Value(tail, bool_, n), x, 0)

        def at(i: Int, states: list[State], masked: bool) -> list[State]:
            tail = existing_lanes(f, i, extent, n) if masked else None
            xs = [vector(p, tile.other, i, tail) for p in columns]
            out = []
            for r, p in enumerate(rows):
                y = vector(p, tile.mine, i, tail)
                out += [[m.emit("fma", y, x, states[r * tile.columns + s][0])] for s, x in enumerate(xs)]
            return out

        def many(i: str, names: list[str]) -> list[str]:
            return packed([at(f.add(i, n * u), s, False) for u, s in enumerate(unpacked(every, names, copies))])

        def one(i: str, names: list[str]) -> list[str]:
            return packed([at(i, unpacked(every, names, 1)[0], True)])

        both = [*rows, *columns]
        before = [dict(p.axes) for p in both]
        for p in both:
            p.open()
        states = [[a.start() for _ in every] for _ in range(copies)]
        states = self._sums(0, full, n * copies, every, states, many)
        if not (isinstance(full, int) and full == extent):
            states[:1] = unpacked(every, f.loop(full, extent, n, carried(states[:1]), one), 1)
        for p, axes in zip(both, before, strict=True):
            p.close(axes)
        for r, p in enumerate(rows):
            for s in range(tile.columns):
                q = p.fork()
                q.open()
                q.bind(tile.large, Linear(f.add(self.point.axes[tile.large][0].scalar, s)))
                joined = a.join_all([copy[r * tile.columns + s] for copy in states])
                q.define(a.statement.name, a.finish(joined, across_lanes=True))
                for t in self.nest.stores:
                    q.store(t)
