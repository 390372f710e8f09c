"""One nest as a function of LLVM IR: pointwise work, and reductions along rows or down columns.

Lanes run along one axis, chosen by the bytes that are moved with stride 1. Where it is an outer axis, several vectors stand
side by side, each with accumulators of its own that walk down the inner axes (a strip of columns); where it is an inner axis,
an outer point is a row, and each sweep walks it with several accumulators that are joined at its end. What is dear and read
again by a later sweep of the row is kept in stack memory.

Chunks cut the outer axes: as many leading ones, flattened, as there is need of, and blocks of the lanes' axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flame.compiler.cpu_cost import EXPENSIVE, called_often, cone, microseconds, op_cost, statement_cost
from flame.compiler.index_math import E, ex, var
from flame.compiler.kernel import Kernel, Load, Op, Reduce, Store
from flame.compiler.llvm_ahead import Ahead, next_row
from flame.compiler.llvm_axes import inside, lanes_for, product, size, vector_axis
from flame.compiler.llvm_choice import ChoosingPoint
from flame.compiler.llvm_machine import LlvmMachine, Value
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_reduce import JOIN, Accumulator, State, identity
from flame.compiler.llvm_text import Function, Int, element, existing_lanes, vector, wide
from flame.compiler.nests import PART, Nest, Sweep, part_of, sinks_of, walked
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget, Phase

PARTS = 16  #: chunks of a nest that reductions run across, each with accumulators of its own in memory
SUM_ROUNDS = 256  #: additions in a row to one accumulator, before it is added to another: long sums stay accurate
TAPS = 600  #: instructions that a window's points may be written out to
EDGES = 8  #: vectors of a row outside the part without masks that are written out
EVEN = 4  #: a few chunks are this many or twice or three times as many, so that two or four threads have the same to do
KEEP_BYTES = 64 << 10  #: of stack memory for what later sweeps of a row read again


@dataclass
class Entry:
    """A function with the kernel's parameters read: what every renderer begins with."""

    function: Function
    machine: LlvmMachine
    buffers: dict[str, str]
    symbols: dict[str, str]


def begin(name: str, kernel: Kernel, places: dict[str, E], target: CpuTarget, external: int) -> Entry:
    """Open an entry function. `places` gives the buffers that lie in workspace, by their offset in bytes; the first
    `external` buffers of the kernel are the caller's."""
    f = Function(name, [("ptr", "bufs"), ("ptr", "syms"), ("i64", "begin"), ("i64", "end")])
    machine = LlvmMachine(f, target, called_often(kernel))
    symbols = {s: f.load("i64", f.address("%syms", i, "i64"), 8) for i, s in enumerate(kernel.symbols)}
    buffers = {}
    for i, b in enumerate(b for b in kernel.buffers if b not in places):
        buffers[b] = f.load("ptr", f.address("%bufs", i, "ptr"), 8)
    if places:
        workspace = f.load("ptr", f.address("%bufs", external, "ptr"), 8)
        at = Point(kernel, f, machine, 1, {}, symbols)
        for b, offset in places.items():
            buffers[b] = f.address(workspace, at.integer_of(offset), "i8")
    return Entry(f, machine, buffers, symbols)


class RowWriter:
    """Writes one nest."""

    def __init__(self, kernel: Kernel, nest: Nest, schedule: CpuSchedule, target: CpuTarget, entry: Entry):
        self.kernel, self.nest, self.target, self.schedule = kernel, nest, target, schedule
        self.function, self.machine = entry.function, entry.machine
        self.lanes = schedule.lanes or lanes_for(kernel, nest, target)
        axis = schedule.vector_axis or vector_axis(kernel, nest, self.lanes)
        self.outer_lane = axis if axis in nest.outer and not nest.across else ""
        self.unroll = self._unroll()
        self.point: Point = ChoosingPoint(
            kernel, self.function, self.machine, self.lanes, entry.buffers, entry.symbols, entry.function.name
        )
        self.sweep = 0
        self.kept: dict[str, tuple[int, str, tuple[str, ...]]] = {}  # value -> (sweep that makes it, memory, axes)
        self.ahead: Ahead | None = None
        if not self.outer_lane:
            self._choose_kept()
            self.point.special = self._special
            self.ahead = next_row(kernel, nest, self.kept, target)

    def describe(self) -> str:
        """What was chosen, for people."""
        sweeps = "; ".join(f"over {', '.join(s.axes) or 'a point'}" for s in self.nest.sweeps)
        lane = f", {self.lanes} lanes along {self.outer_lane}" if self.outer_lane else f", {self.lanes} lanes along rows"
        kept = f", kept {', '.join(self.kept)}" if self.kept else ""
        return f"for {', '.join(self.nest.outer) or 'one point'}{lane}, {self.unroll} side by side: {sweeps}{kept}"

    def _unroll(self) -> int:
        """Vectors side by side: fewer where one is many instructions already. Without sums to keep apart, the processor overlaps
        the rounds of a loop of two dozen instructions by itself: more of them side by side take longer to compile, and no less
        to run."""
        heaviest = 0
        for s in self.nest.sweeps:
            values = dict.fromkeys(v for t in sinks_of(s) for v in cone(self.kernel, t))
            heaviest = max(heaviest, sum(statement_cost(self.kernel, v) for v in values))
        self.heaviest = heaviest
        if self.outer_lane and self.nest.reduces and self.target.registers >= 16 and heaviest <= 12:
            return 2 * self.schedule.unroll
        if not self.nest.reduces and not self.nest.across:
            return max(1, min(self.schedule.unroll, 24 // max(heaviest, 1)))
        return self.schedule.unroll if heaviest <= 60 else max(1, self.schedule.unroll // 2) if heaviest <= 150 else 1

    # -- what is kept between the sweeps of a row

    def _choose_kept(self) -> None:
        sweeps = self.nest.sweeps
        made: dict[str, int] = {}
        again: set[str] = set()
        for i, sweep in enumerate(sweeps):
            for t in sinks_of(sweep):
                for v in cone(self.kernel, t):
                    if made.setdefault(v, i) != i:
                        again.add(v)
        for v in sorted(again, key=list(self.kernel.definitions).index):
            s = self.kernel.definitions[v]
            first = sweeps[made[v]]
            if not isinstance(s, Op) or not frozenset(self.kernel.domains[v]) & frozenset(first.axes):
                continue
            kinds = tuple(self.kernel.definitions[o].dtype for o in s.operands)
            row = product(self.kernel, first.axes).const
            if op_cost(s.op, kinds) < EXPENSIVE or row is None or s.dtype.name == "bool":
                continue
            using = [q for q in sweeps if any(v in cone(self.kernel, t) for t in sinks_of(q))]
            if any(frozenset(q.axes) != frozenset(first.axes) for q in using):
                continue
            if (row + self.lanes) * s.dtype.itemsize > KEEP_BYTES // max(1, len(self.kept) + 1):
                continue
            lane = self._inner_lane(first)
            axes = tuple(a for a in first.axes if a != lane) + ((lane,) if lane else ())
            memory = self.function.scratch(element(s.dtype), row + self.lanes)
            self.kept[v] = (made[v], memory, axes)

    def _special(self, name: str) -> Value | None:
        if name not in self.kept:
            return None
        first, memory, axes = self.kept[name]
        d = self.kernel.definitions[name].dtype
        t, f = element(d), self.function
        place = ex(0)
        for a in axes:
            place = place * self.kernel.axes[a] + var(a)
        at, _ = self.point.linear(place)
        lanes = self.lanes if at.stride else 1
        pointer = f.address(memory, at.scalar, t)
        if self.sweep > first:
            return Value(f.load(wide(t, lanes), pointer, d.itemsize), d, lanes)
        value, _ = self.point.compute(name)
        value = self.machine.widen(value, lanes)
        f.store(value.type, value.text, pointer, d.itemsize)
        return value

    # -- loops

    def write(self, entry: str) -> Phase:
        """Write the body of the entry function; gives the phase it is."""
        kernel, nest = self.kernel, self.nest
        sinks = [*nest.reduces, *nest.across, *nest.stores]
        points = ex(1)
        for s in sinks:
            here = product(kernel, tuple(sorted(walked(kernel, s))))
            points = here if size(kernel, here) > size(kernel, points) else points
        cost = microseconds(kernel, sinks, points, self.target)
        plain = [a for a in nest.outer if a != self.outer_lane]
        if nest.across:
            self._in_parts(plain)
            return Phase(entry, ex(PARTS), cost)
        chunks = self._chunk_count(cost, points)
        self._chunked(plain, chunks)
        return Phase(entry, chunks, cost)

    def _in_parts(self, plain: list[str]) -> None:
        """Chunk by chunk, whatever the range, so that the sums are the same: clear the chunk's accumulators, walk its rows."""
        f, p = self.function, self.point

        def part(c: str, _: list[str]) -> list[str]:
            p.bind(PART, Linear(c))
            for r in self.nest.across:
                self._clear(r)
            total = p.integer_of(product(self.kernel, tuple(plain)))
            low, high = f.div(f.mul(c, total), PARTS), f.div(f.mul(f.add(c, 1), total), PARTS)

            def row(i: str, _: list[str]) -> list[str]:
                self._unflatten(i, plain)
                self._at_outer(0, 1)
                return []

            with p.scope():
                f.loop(low, high, 1, [], row)
            return []

        with p.scope():
            f.loop("%begin", "%end", 1, [], part)

    def _part(self, r: Reduce) -> Load:
        """Where a chunk accumulates a reduction that runs across."""
        index = (var(PART), *(var(a) for a in self.kernel.axes if a in self.kernel.domains[r.name]))
        return Load(part_of(r.name), part_of(r.name), index, (), 0, r.dtype)

    def _clear(self, r: Reduce) -> None:
        columns = tuple(a for a in self.kernel.axes if a in self.kernel.domains[r.name])
        start = self.machine.const(identity(r.op, r.dtype), r.dtype)
        place = self._part(r)
        sweep = Sweep(columns, stores=[Store(place.buffer, place.index, r.name)])
        lane = columns[-1]
        others = list(columns[:-1])
        with self.point.scope():
            self.point.define(r.name, start)
            self._along(sweep, [], others, lane, [[]])

    def _chunk_count(self, cost: float, points: E) -> E:
        """About `chunk_us` of work each, no more than there are outer points; an expression where sizes are symbolic."""
        outer = product(self.kernel, self.nest.outer)
        wanted = max(1, int(cost / self.schedule.chunk_us))
        if wanted > 2:  # (seven chunks are four and three to two threads)
            wanted += -wanted % EVEN
        if outer.const is not None and points.const is not None:
            lanes = self.lanes if self.outer_lane else 1
            return ex(max(1, min(wanted, self.schedule.max_chunks, -(-outer.const // lanes))))
        if not self.nest.outer:
            return ex(1)
        each = max(1, int(size(self.kernel, points) * self.schedule.chunk_us / max(cost, 1e-6)))
        return ex(1) + points // each

    def _chunked(self, plain: list[str], chunks: E) -> None:
        """Loops over the outer axes, [begin, end) of the chunks."""
        p, f, kernel, lane = self.point, self.function, self.kernel, self.outer_lane
        step = self.lanes * self.unroll
        if chunks.const == 1:
            # the caller may pass an empty range
            def whole() -> None:
                self._nested(plain, lambda: self._at_outer(0, p.integer_of(kernel.axes[lane]) if lane else 1))

            with p.scope():
                f.when(f.emit("icmp slt i64 %begin, %end"), whole)
            return
        count = p.integer_of(chunks)
        flattened: list[str] = []
        wanted = chunks.const
        while len(flattened) < len(plain) and (wanted is None or size(kernel, self._rounds(flattened)) < 4 * wanted):
            flattened.append(plain[len(flattened)])
        rest = plain[len(flattened) :]
        cut = bool(lane) and (wanted is None or size(kernel, self._rounds(flattened)) < 2 * wanted)
        n: Int = p.integer_of(kernel.axes[lane]) if lane else 1
        block = step
        if cut and flattened:
            block = step * max(1, 1024 // step)
        blocks: Int = f.div(f.add(n, block - 1), block) if cut else 1
        total = f.mul(p.integer_of(self._rounds(flattened)), blocks)
        low = f.div(f.mul("%begin", total), count)
        high = f.div(f.mul("%end", total), count)
        if cut and not flattened:
            first, last = f.mul(low, block), f.least(f.mul(high, block), n)
            self._nested(rest, lambda: self._at_outer(first, last))
            return

        def one(i: str, _: list[str]) -> list[str]:
            left: Int = i
            first: Int = 0
            last = n
            if cut:
                b = f.rem(left, blocks)
                left = f.div(left, blocks)
                first = f.mul(b, block)
                last = f.least(f.add(first, block), n)
            self._unflatten(left, flattened)
            self._nested(rest, lambda: self._at_outer(first, last))
            return []

        with p.scope():
            f.loop(low, high, 1, [], one)

    def _rounds(self, axes: list[str]) -> E:
        """How many times loops over some outer axes go round."""
        return product(self.kernel, tuple(axes))

    def _bind_outer(self, axis: str, i: Int) -> None:
        """Round `i` of the loop over an outer axis."""
        self.point.bind(axis, Linear(i))

    def _unflatten(self, index: Int, axes: list[str]) -> None:
        """Bind axes to the digits of one index, the last axis the fastest."""
        f = self.function
        for i, a in enumerate(reversed(axes)):
            if i == len(axes) - 1:
                self._bind_outer(a, index)
            else:
                n = self.point.integer_of(self._rounds([a]))
                self._bind_outer(a, f.rem(index, n))
                index = f.div(index, n)

    def _nested(self, axes: list[str], body: Callable[[], None]) -> None:
        """Loops of one point each, outermost first."""
        if not axes:
            body()
            return
        p = self.point

        def one(i: str, _: list[str]) -> list[str]:
            self._bind_outer(axes[0], i)
            self._nested(axes[1:], body)
            return []

        n = p.integer_of(self._rounds(axes[:1]))
        with p.scope():
            self.function.loop(0, n, 1, [], one)

    def _at_outer(self, first: Int, last: Int) -> None:
        """At one outer point, or along [first, last) of the lanes' outer axis."""
        if self.outer_lane:
            self._strips(first, last)
        else:
            with self.point.scope():
                self._row()

    # -- lanes along an outer axis

    def _strips(self, first: Int, last: Int) -> None:
        free = inside(self.kernel, self.outer_lane, [*self.nest.stores, *self.nest.reduces], self.lanes)
        if free is None:
            self._full_strips(first, last)
            return
        f, (low, high) = self.function, free
        begin, end = f.most(first, low), f.least(last, high)
        self._single_strips(first, f.least(begin, last), last)
        self.point.within = {self.outer_lane: free}
        self._full_strips(begin, f.most(end, begin), exact=True)
        self.point.within = {}
        self._single_strips(f.most(end, begin), last, last)

    def _single_strips(self, first: Int, until: Int, last: Int) -> None:
        """One vector after the other."""
        n = self.lanes
        if isinstance(first, int) and isinstance(until, int):
            if until - first <= 2 * n:
                for i in range(first, until, n):
                    with self.point.scope():
                        self._strip(i, 1, None if i + n <= until else last)
                return
        with self.point.scope():
            self.function.loop(first, until, n, [], lambda i, _: self._strip(i, 1, last))

    def _full_strips(self, first: Int, last: Int, exact: bool = False) -> None:
        """Strips in [first, last); `exact`: no lane is beyond the end."""
        f, step = self.function, self.lanes * self.unroll
        full = f.sub(last, f.rem(f.sub(last, first), step))
        if not isinstance(full, int) or not isinstance(first, int) or full > first:
            with self.point.scope():
                f.loop(first, full, step, [], lambda i, _: self._strip(i, self.unroll, None))
        if isinstance(full, int) and isinstance(last, int) and full == last:
            return

        def remainder(i: str, _: list[str]) -> list[str]:
            return self._strip(i, 1, None if exact else last)

        with self.point.scope():
            f.loop(full, last, self.lanes, [], remainder)

    def _strip(self, start: Int, copies: int, last: Int | None) -> list[str]:
        """`copies` vectors side by side from `start`; lanes at `last` and beyond do not exist."""
        f = self.function
        points = []
        for u in range(copies):
            p = self.point.fork()
            points.append(p)
            p.open()
            if last is not None:
                p.tail = existing_lanes(self.function, start, last, self.lanes)
            p.bind(self.outer_lane, Linear(f.add(start, self.lanes * u), 1, None, True))
        for sweep in self.nest.sweeps:
            # (lane by lane in the axes' order: a strip is walked down by one accumulator a lane)
            accumulators = [Accumulator(self.kernel, r, self.machine, self.lanes, ordered=True) for r in sweep.reduces]
            states = [[a.start() for a in accumulators] for _ in points]
            states = self._down(points, sweep, accumulators, list(sweep.axes), states)
            for p, state in zip(points, states, strict=True):
                for a, s in zip(accumulators, state, strict=True):
                    p.define(a.statement.name, a.finish(s, across_lanes=False))
        return []

    def _down(
        self, points: list[Point], sweep: Sweep, accumulators: list[Accumulator], axes: list[str], states: list[list[State]]
    ) -> list[list[State]]:
        """Loops over the inner axes with the states of every copy carried."""
        if not axes:
            return [self._take(p, sweep, accumulators, s, masked=False) for p, s in zip(points, states, strict=True)]
        n = points[0].integer_of(self.kernel.axes[axes[0]])
        if isinstance(n, int) and len(points) * size(self.kernel, product(self.kernel, tuple(axes))) <= self._taps():
            return self._unrolled(points, sweep, accumulators, axes, n, states)

        def one(i: str, names: list[str]) -> list[str]:
            inner = unpacked(accumulators, names, len(points))
            for p in points:
                p.bind(axes[0], Linear(i))
            return packed(self._down(points, sweep, accumulators, axes[1:], inner))

        before = [dict(p.axes) for p in points]
        for p in points:
            p.open()
        states = self._sums(0, n, 1, accumulators, states, one)
        for p, axes_before in zip(points, before, strict=True):
            p.close(axes_before)
        return states

    def _taps(self) -> int:
        """Points of inner axes that are written one by one, vectors side by side counted: few where one is many instructions."""
        return TAPS // max(4, self.heaviest)

    def _unrolled(
        self,
        points: list[Point],
        sweep: Sweep,
        accumulators: list[Accumulator],
        axes: list[str],
        n: int,
        states: list[list[State]],
    ) -> list[list[State]]:
        """The loop over a short inner axis, written out: indices and most masks are known at each of its points."""
        for i in range(n):
            before = [dict(p.axes) for p in points]
            for p in points:
                p.open()
                p.bind(axes[0], Linear(i))
            states = self._down(points, sweep, accumulators, axes[1:], states)
            for p, axes_before in zip(points, before, strict=True):
                p.close(axes_before)
        return states

    # -- lanes along an inner axis

    def _inner_lane(self, sweep: Sweep) -> str:
        """The lanes' axis of one sweep of a row; the same for all sweeps over the same axes, which share what is kept."""
        if self.schedule.vector_axis in sweep.axes:
            return self.schedule.vector_axis
        part = Nest(self.nest.outer, [q for q in self.nest.sweeps if frozenset(q.axes) == frozenset(sweep.axes)])
        score_axis = vector_axis(self.kernel, part, self.lanes)
        return score_axis if score_axis in sweep.axes else sweep.axes[-1] if sweep.axes else ""

    def _row(self) -> None:
        for i, sweep in enumerate(self.nest.sweeps):
            self.sweep = i
            lane = self._inner_lane(sweep)
            accumulators = [Accumulator(self.kernel, r, self.machine, self.lanes if lane else 1) for r in sweep.reduces]
            if not lane:
                state = self._take(self.point, sweep, accumulators, [a.start() for a in accumulators], masked=False)
                results = [a.finish(s, across_lanes=False) for a, s in zip(accumulators, state, strict=True)]
            else:
                copies = self.unroll
                states = [[a.start() for a in accumulators] for _ in range(copies)]
                others = [a for a in sweep.axes if a != lane]
                states = self._along(sweep, accumulators, others, lane, states)
                results = []
                for k, a in enumerate(accumulators):
                    joined = a.join_all([s[k] for s in states])
                    results.append(a.finish(joined, across_lanes=True))
            for a, value in zip(accumulators, results, strict=True):
                self.point.define(a.statement.name, value)

    def _along(
        self, sweep: Sweep, accumulators: list[Accumulator], others: list[str], lane: str, states: list[list[State]]
    ) -> list[list[State]]:
        p, copies = self.point, len(states)
        if not others:
            return self._lane_loop(sweep, accumulators, lane, states)
        n = p.integer_of(self.kernel.axes[others[0]])

        def one(i: str, names: list[str]) -> list[str]:
            p.bind(others[0], Linear(i))
            return packed(self._along(sweep, accumulators, others[1:], lane, unpacked(accumulators, names, copies)))

        with p.scope():
            names = self.function.loop(0, n, 1, carried(states), one)
        return unpacked(accumulators, names, copies)

    def _lane_loop(
        self, sweep: Sweep, accumulators: list[Accumulator], lane: str, states: list[list[State]]
    ) -> list[list[State]]:
        """Along the lanes' axis: full vectors `unroll` at a time, then one at a time, the last under a mask."""
        p, f, n, copies = self.point, self.function, self.lanes, len(states)
        extent = p.integer_of(self.kernel.axes[lane])
        step = n * copies
        free = inside(self.kernel, lane, sinks_of(sweep), n)
        if free is not None and isinstance(extent, int) and extent - (free[1] - free[0]) > EDGES * n:
            free = None  # edges are written out
        first = 0
        full: Int
        if free is not None:
            first, end = free
            full = end - (end - first) % step
        else:
            full = f.sub(extent, f.rem(extent, step))

        def at(i: Int, state: list[State], tail: str | None) -> list[State]:
            with p.scope():
                p.tail = tail
                p.bind(lane, Linear(i, 1, None, True))
                return self._take(p, sweep, accumulators, state, masked=True)

        def many(i: str, names: list[str]) -> list[str]:
            inner = unpacked(accumulators, names, copies)
            after = packed([at(f.add(i, n * u), s, None) for u, s in enumerate(inner)])
            if self.ahead is not None and self.ahead.sweep is sweep:
                self.ahead.fetch(p, lane, i, n, copies)
            return after

        if full != first:
            with p.scope():
                if free is not None:
                    p.within = p.within | {lane: free}
                states = self._sums(first, full, step, accumulators, states, many)
                if free is not None:
                    p.within = {a: r for a, r in p.within.items() if a != lane}
        if isinstance(full, int) and isinstance(extent, int):
            left = [*range(0, first, n), *range(full, extent, n)]
            if len(left) < 4 or copies > len(left) or free is not None:
                for u, i in enumerate(left):
                    tail = None if extent - i >= n else vector([int(j < extent - i) for j in range(n)], "i1")
                    states[u % copies] = at(i, states[u % copies], tail)
                return states

        def one(i: str, names: list[str]) -> list[str]:
            (state,) = unpacked(accumulators, names, 1)
            return packed([at(i, state, existing_lanes(self.function, i, extent, n))])

        with p.scope():
            names = f.loop(full, extent, n, carried(states[:1]), one)
        return [*unpacked(accumulators, names, 1), *states[1:]]

    def _sums(
        self,
        low: int,
        high: Int,
        step: int,
        accumulators: list[Accumulator],
        states: list[list[State]],
        body: Callable[[str, list[str]], list[str]],
    ) -> list[list[State]]:
        """A loop that carries accumulators. Where it is long and they are floating sums, it goes by blocks, each of which
        starts from nothing and is then added to what came before."""
        f, copies = self.function, len(states)
        block = step * SUM_ROUNDS
        short = isinstance(high, int) and high - low <= 2 * block
        if short or not any(a.op == "sum" and a.dtype.kind == "f" for a in accumulators):
            return unpacked(accumulators, f.loop(low, high, step, carried(states), body), copies)

        def one(i: str, names: list[str]) -> list[str]:
            before = unpacked(accumulators, names, copies)
            fresh = [[a.start() for a in accumulators] for _ in range(copies)]
            end = f.least(f.add(i, block), high)
            here = unpacked(accumulators, f.loop(i, end, step, carried(fresh), body), copies)
            pairs = [zip(accumulators, x, y, strict=True) for x, y in zip(before, here, strict=True)]
            return packed([[a.join(x, y) for a, x, y in pair] for pair in pairs])

        return unpacked(accumulators, f.loop(low, high, block, carried(states), one), copies)

    def _take(self, p: Point, sweep: Sweep, accumulators: list[Accumulator], state: list[State], masked: bool) -> list[State]:
        """One point: enter what is reduced, then store what is stored (everything is read before anything is written)."""
        new = [a.step(s, p, masked) for a, s in zip(accumulators, state, strict=True)]
        values = [p.need(t.value) for t in sweep.stores]
        elements = [p.need(r.operands[0]) for r in sweep.across]
        for t, value in zip(sweep.stores, values, strict=True):
            p.store(t, value)
        for r, x in zip(sweep.across, elements, strict=True):
            place = self._part(r)
            old = p.load(place)
            p.store(Store(place.buffer, place.index, r.name), self.machine.emit(JOIN[r.op], x, old))
        return new


def packed(states: list[list[State]]) -> list[str]:
    """States as the flat list of names that a loop carries."""
    return [v.text for copy in states for s in copy for v in s]


def carried(states: list[list[State]]) -> list[tuple[str, str]]:
    return [(v.type, v.text) for copy in states for s in copy for v in s]


def unpacked(accumulators: list[Accumulator], names: list[str], copies: int) -> list[list[State]]:
    out, rest = [], iter(names)
    for _ in range(copies):
        out.append([a.restore([next(rest) for _ in a.types]) for a in accumulators])
    return out
