"""Pointwise nests in which some array lies the other way: square blocks are read along its rows and turned in registers.

The lanes run where the results are contiguous. An operand that is contiguous along another axis would be gathered, an element
a line of cache; instead blocks a cache line wide and high are walked, and in them tiles of lanes x lanes, whose rows are
loaded along the operand's axis and transposed by shuffles. Edges are left to the strips of `llvm_rows`.
"""

from __future__ import annotations

from flame.compiler.index_math import E
from flame.compiler.kernel import Kernel, Load
from flame.compiler.llvm_axes import product, unit_axes
from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_point import Linear
from flame.compiler.llvm_rows import Entry, RowWriter
from flame.compiler.llvm_text import Int, element, transpose
from flame.compiler.nests import Nest, loads_of
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import bool_

LINE_BYTES = 64


def turned_loads(kernel: Kernel, nest: Nest, lane: str) -> tuple[str, list[Load]]:
    """The axis along which operands lie the other way, and their loads; none where turning does not apply."""
    if nest.reduces or not lane or any(s.axes for s in nest.sweeps):
        return "", []
    found: dict[str, list[Load]] = {}
    for t in dict.fromkeys(t for s in nest.stores for t in loads_of(kernel, s)):
        units = unit_axes(kernel, t)
        if lane in kernel.domains[t.name] and lane not in units and not t.mask and t.dtype is not bool_:
            for a in units & frozenset(nest.outer):
                found.setdefault(a, []).append(t)
    if not found:
        return "", []
    return max(found.items(), key=lambda item: (len(item[1]), item[0]))


class TurnWriter(RowWriter):
    """A nest with turned loads. The loop over `axis` goes by blocks."""

    def __init__(self, kernel: Kernel, nest: Nest, schedule: CpuSchedule, target: CpuTarget, entry: Entry):
        super().__init__(kernel, nest, schedule, target, entry)
        self.axis, self.turned = turned_loads(kernel, nest, self.outer_lane)
        widest = max((t.dtype.itemsize for t in self.turned), default=4)
        self.block = max(self.lanes, LINE_BYTES // widest)

    def describe(self) -> str:
        return super().describe() + f", blocks of {self.block} turned along {self.axis}"

    def _rounds(self, axes: list[str]) -> E:
        plain = product(self.kernel, tuple(a for a in axes if a != self.axis))
        if self.axis not in axes:
            return plain
        return plain * ((self.kernel.axes[self.axis] + (self.block - 1)) // self.block)

    def _bind_outer(self, axis: str, i: Int) -> None:
        at = self.function.mul(i, self.block) if axis == self.axis else i
        self.point.bind(axis, Linear(at, aligned=axis == self.axis))

    def _at_outer(self, first: Int, last: Int) -> None:
        f, p = self.function, self.point
        start = p.axes[self.axis][0].scalar
        extent = p.integer_of(self.kernel.axes[self.axis])
        end = f.add(start, self.block)
        full = f.sub(last, f.rem(f.sub(last, first), self.block))

        def whole() -> None:
            with p.scope():
                f.loop(first, full, self.block, [], lambda i, _: self._block(i, start))
            if not (isinstance(full, int) and full == last):
                self._lines(start, end, full, last)

        if isinstance(extent, int) and extent % self.block == 0:
            whole()
            return
        with p.scope():
            inside = f.emit(f"icmp sle i64 {end}, {extent}")
            f.choose(inside, whole, lambda: self._lines(start, extent, first, last))

    def _lines(self, start: Int, end: Int, first: Int, last: Int) -> None:
        """The edges: one line of lanes after the other."""

        def line(i: str, _: list[str]) -> list[str]:
            self.point.bind(self.axis, Linear(i))
            self._strips(first, last)
            return []

        with self.point.scope():
            self.function.loop(start, end, 1, [], line)

    def _block(self, lane_start: str, start: Int) -> list[str]:
        f, n = self.function, self.lanes

        def across(j: str, _: list[str]) -> list[str]:
            with self.point.scope():
                f.loop(start, f.add(start, self.block), n, [], lambda i, _: self._tile(j, i))
            return []

        with self.point.scope():
            f.loop(lane_start, f.add(lane_start, self.block), n, [], across)
        return []

    def _tile(self, j: str, i: str) -> list[str]:
        """lanes x lanes points from (axis = i, lanes = j)."""
        f, n, lane = self.function, self.lanes, self.outer_lane
        rows: dict[str, list[str]] = {t.name: [] for t in self.turned}
        for q in range(n):
            p = self.point.fork()
            p.open()
            p.bind(self.axis, Linear(i, 1, None, True))
            p.bind(lane, Linear(f.add(j, q)))
            for t in self.turned:
                rows[t.name].append(p.need(t.name).text)
        columns = {t.name: transpose(f, element(t.dtype), rows[t.name], n) for t in self.turned}
        for q in range(n):
            p = self.point.fork()
            p.open()
            p.bind(self.axis, Linear(f.add(i, q)))
            p.bind(lane, Linear(j, 1, None, True))
            for t in self.turned:
                p.define(t.name, Value(columns[t.name][q], t.dtype, n))
            values = [p.need(s.value) for s in self.nest.stores]
            for s, value in zip(self.nest.stores, values, strict=True):
                p.store(s, value)
        return []
