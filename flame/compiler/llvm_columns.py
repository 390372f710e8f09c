"""Sums down the columns of a matrix in rows, a product with a vector among them: row by row, with accumulators in memory.

    y[n] = sum over k of x[k] * w[k, n]          column[n] = sum over k of w[k, n]

Strips of registers walk down the matrix, and touch another page at each row. Here a run of columns whose accumulators fit into
the nearest cache is taken at once, and some rows side by side: each is then a stream that the processor reads ahead.
"""

from __future__ import annotations

from collections.abc import Callable

from flame.compiler.cpu_cost import cone, statement_cost
from flame.compiler.index_math import E, ex
from flame.compiler.kernel import Kernel, Load, Reduce
from flame.compiler.llvm_axes import size, unit_axes
from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_reduce import JOIN, Accumulator, State
from flame.compiler.llvm_rows import RowWriter
from flame.compiler.llvm_text import Int, element, wide
from flame.compiler.nests import Nest, loads_of

COLUMNS = 1024  #: whose accumulators are in memory at once
ROWS = 8  #: side by side
CHUNK_BYTES = 2048  #: least length of what a chunk reads of a row: the processor reads ahead within a page
LEAST_COLUMNS, LEAST_ROWS = 256, 64
CHEAP = 8  #: instructions an element, up to which memory is what is waited for


def column_sums(kernel: Kernel, nest: Nest, lane: str) -> bool:
    """Is a nest with lanes along `lane` such a sum, and large enough?"""
    if len(nest.reduces) != 1 or nest.across or nest.joins is not None or lane not in nest.outer:
        return False
    r = nest.reduces[0]
    if r.dtype.kind != "f" or (isinstance(r, Reduce) and r.op != "sum") or len(r.axes) != 1:
        return False
    (k,) = r.axes
    if any(s.axes for s in nest.sweeps if not s.reduces) or any(s.stores for s in nest.sweeps if s.reduces):
        return False
    if size(kernel, kernel.axes[lane]) < LEAST_COLUMNS or size(kernel, kernel.axes[k]) < LEAST_ROWS:
        return False
    loads: list[Load] = loads_of(kernel, r)
    if any(t.mask for t in loads) or sum(statement_cost(kernel, v) for v in cone(kernel, r)) > CHEAP:
        return False
    matrices = [t for t in loads if {k, lane} <= kernel.domains[t.name]]
    return bool(matrices) and all(lane in unit_axes(kernel, t) for t in matrices)


class ColumnWriter(RowWriter):
    """A nest of sums down columns."""

    def describe(self) -> str:
        return super().describe() + f", {ROWS} rows side by side"

    def _chunk_count(self, cost: float, points: E) -> E:
        chunks = super()._chunk_count(cost, points)
        n, item = self.kernel.axes[self.outer_lane].const, self.nest.reduces[0].dtype.itemsize
        if chunks.const is None or n is None:
            return chunks
        return ex(max(1, min(chunks.const, n * item // CHUNK_BYTES)))

    def _full_strips(self, first: Int, last: Int, exact: bool = False) -> None:
        f = self.function
        full = f.sub(last, f.rem(f.sub(last, first), self.lanes))

        def block(b: str, _: list[str]) -> list[str]:
            self._block(b, f.least(f.sub(full, b), COLUMNS))
            return []

        with self.point.scope():
            f.loop(first, full, COLUMNS, [], block)
        with self.point.scope():
            f.loop(full, last, self.lanes, [], lambda i, _: self._strip(i, 1, None if exact else last))

    def _block(self, start: str, count: Int) -> None:
        """`count` columns from `start`, whole vectors."""
        f, n = self.function, self.lanes
        sweep = next(s for s in self.nest.sweeps if s.reduces)
        a = Accumulator(self.kernel, sweep.reduces[0], self.machine, n, ordered=True)
        (k,) = sweep.axes
        t = element(a.dtype)
        v, align = wide(t, n), n * a.dtype.itemsize
        memory = self._memory(t)
        extent = self.point.integer_of(self.kernel.axes[k])
        (zero,) = a.start()

        def along(points: list[Point], body: Callable[[list[Point], str], None]) -> None:
            """For every vector of the block, with `points` there."""

            def one(j: str, _: list[str]) -> list[str]:
                before = [dict(p.axes) for p in points]
                for p in points:
                    p.open()
                    p.bind(self.outer_lane, Linear(f.add(start, j), 1, None, True))
                body(points, f.address(memory, j, t))
                for p, axes in zip(points, before, strict=True):
                    p.close(axes)
                return []

            f.loop(0, count, n, [], one)

        def add(points: list[Point], place: str) -> None:
            state: State = [zero]
            for p in points:
                state = a.step(state, p, masked=False)
            old = Value(f.load(v, place, align), a.dtype, n)
            f.store(v, self.machine.emit(JOIN["sum"], state[0], old).text, place, align)

        def some(rows: int, i: str) -> list[str]:
            points = []
            for r in range(rows):
                p = self.point.fork()
                p.open()
                p.bind(k, Linear(f.add(i, r)))
                points.append(p)
                p.open()
            along(points, add)
            return []

        def clear(points: list[Point], place: str) -> None:
            f.store(v, zero.text, place, align)

        def finish(points: list[Point], place: str) -> None:
            (p,) = points
            p.define(a.statement.name, Value(f.load(v, place, align), a.dtype, n))
            for q in self.nest.sweeps:
                if q is not sweep:
                    self._take(p, q, [], [], masked=False)

        along([], clear)
        whole = f.sub(extent, f.rem(extent, ROWS))
        with self.point.scope():
            f.loop(0, whole, ROWS, [], lambda i, _: some(ROWS, i))
        with self.point.scope():
            f.loop(whole, extent, 1, [], lambda i, _: some(1, i))
        p = self.point.fork()
        p.open()
        along([p], finish)

    def _memory(self, t: str) -> str:
        if not hasattr(self, "_accumulators"):
            self._accumulators = self.function.scratch(t, COLUMNS)
        return self._accumulators
