"""What windows slide over, as one padded copy: lines as long as the windows reach, the phases of a step apart.

    slides(kernel, positions, axis, tap) -> Window     a factor that is read at step * axis + turn * tap alone
    Padded(...).fill(point, memory, ...)               the copy of a block of lines, prologue and masks applied once an element

A line of the copy holds, for each phase of the places' step, what lies at phase, phase + step, ... : windows then read neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from flame.compiler.contract_groups import over
from flame.compiler.index_math import E, ex, names, var
from flame.compiler.kernel import Kernel, Store
from flame.compiler.llvm_axes import inside, product, size
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_text import Function, Int, element, existing_lanes, wide
from flame.dtypes import dtype

LINE, PLACE = "padded_line", "padded_place"
WRITTEN_OUT = 4  #: vectors of a line that are written side by side, each with masks that are made before the lines


@dataclass(frozen=True)
class Window:
    """A factor is read at step * axis + turn * tap + offset, counted from the least such place. No tap: at the axis itself."""

    axis: str
    tap: str
    step: int
    turn: int
    count: int  #: points of the axis
    taps: int

    @property
    def offset(self) -> int:
        return max(0, -self.turn * (self.taps - 1))

    @property
    def reach(self) -> int:
        """Places that are read."""
        return self.step * (self.count - 1) + abs(self.turn) * (self.taps - 1) + 1

    def read_at(self, place: E) -> dict[str, E | int]:
        """The axis and the tap for a place."""
        if not self.tap:
            return {self.axis: place}
        if self.step == 1:
            return {self.axis: place - self.offset, self.tap: 0}
        return {self.axis: 0, self.tap: (place - self.offset) * self.turn}


def alone(w: Window) -> Window:
    """The axis of a window, read without taps."""
    return Window(w.axis, "", 1, 1, w.count, 1)


def slides(kernel: Kernel, read: list[E], axis: str, tap: str) -> Window | None:
    """How positions move along an axis and its tap, if each depends on one sum of both alone."""
    n = size(kernel, kernel.axes[axis])
    here = [e for e in read if axis in names(e) or tap in names(e)]
    if not tap:
        return Window(axis, "", 1, 1, n, 1) if here else None
    ways = set()
    for e in here:
        step, turn = (sum(c for m, c in e.terms if m == (a,)) for a in (axis, tap))
        if any(m not in ((axis,), (tap,)) and _holds(m, {axis, tap}) for m, _ in e.terms) or not step or not turn:
            return None
        ways.add((step, turn) if step > 0 else (-step, -turn))
    if len(ways) != 1:
        return None
    ((step, turn),) = ways
    found = Window(axis, tap, step, turn, n, size(kernel, kernel.axes[tap]))
    return found if step == 1 or abs(turn) == 1 else None


def _holds(monomial: tuple, axes: set[str]) -> bool:
    return bool(names(E({monomial: 1})) & axes)


class Padded:
    """The copy of a factor's lines, [line][phase][place], in elements of a dtype."""

    def __init__(
        self,
        kernel: Kernel,
        factor: str,
        d: dtype,
        lanes: int,
        lines: Window,
        places: Window,
        groups: Mapping[str, tuple[str, ...]],
        numbered: Mapping[str, E | int],
    ):
        self.factor, self.dtype, self.lanes, self.lines, self.places = factor, d, lanes, lines, places
        self.t = element(d)
        self.lengths = [-(-(places.reach - phase) // places.step) for phase in range(places.step)]
        self.phase = -(-self.lengths[0] // lanes) * lanes  #: elements of a phase
        self.line = self.phase * places.step
        self.kernels = []
        for phase, length in enumerate(self.lengths):
            axes = {name: product(kernel, members) for name, members in groups.items()}
            axes |= {LINE: ex(lines.reach), PLACE: ex(length)}
            at = {**numbered, **lines.read_at(var(LINE)), **places.read_at(var(PLACE) * places.step + phase)}
            self.kernels.append(over(kernel, axes, at))

    def block_of_lines(self, most: int) -> tuple[int, int]:
        """How many lines of windows share a copy of about so many bytes, and how many blocks there are."""
        lines = self.lines
        tall = abs(lines.turn) * (lines.taps - 1) + 1
        fit = (most // (self.line * self.dtype.itemsize) - tall) // lines.step + 1
        blocks = -(-lines.count // max(1, min(lines.count, fit)))
        each = -(-lines.count // blocks)
        return each, -(-lines.count // each)

    def read_by(self, count: Int, f: Function | None = None) -> Int:
        """The lines that `count` lines of windows read."""
        lines = self.lines
        rest = abs(lines.turn) * (lines.taps - 1) + 1 - lines.step
        if isinstance(count, int):
            return count * lines.step + rest
        assert f is not None
        return f.add(f.mul(count, lines.step), rest)

    def elements(self, count: int) -> int:
        """Room for `count` lines of windows."""
        read = self.read_by(count)
        assert isinstance(read, int)
        return read * self.line

    def line_at(self, f: Function, memory: str, line: Int) -> str:
        return f.address(memory, f.mul(line, self.line), self.t)

    def shift(self, tap: int) -> int:
        """Where along a line a tap of places begins."""
        at = self.places.turn * tap + self.places.offset
        return at % self.places.step * self.phase + at // self.places.step

    def fill(self, p: Point, memory: str, at: dict[str, Linear], first: Int, count: Int) -> None:
        """Copy what the lines of windows [first, first + count) read."""
        f = p.function
        start, read = f.mul(first, self.lines.step), self.read_by(count, f)
        for phase, kernel in enumerate(self.kernels):
            q = p.fork()
            q.kernel = kernel
            q.open()
            for axis, here in at.items():
                q.bind(axis, here)
            self._fill_phase(q, f.address(memory, phase * self.phase, self.t), self.lengths[phase], start, read)

    def _fill_phase(self, q: Point, memory: str, length: int, start: Int, count: Int) -> None:
        f, n = q.function, self.lanes
        free = inside(q.kernel, PLACE, [Store("", (), self.factor)], n)  # no masks along a line but at its ends
        vectors = -(-length // n)
        low, high = (0, 0) if vectors <= WRITTEN_OUT else free or (0, length // n * n)
        edges = [x for x in range(0, vectors * n, n) if not low <= x < high]
        parts: list[tuple[int, int]] = [(low, high)] if low < high else []
        if len(edges) > WRITTEN_OUT:
            parts, edges = list(pairwise(sorted({0, low, high, length // n * n}))), [length // n * n] * (length % n > 0)
        beside = []
        for x in edges:
            r = q.fork()
            r.open()
            r.bind(PLACE, Linear(x, 1, None, True))
            if x + n > length:
                r.tail = existing_lanes(f, x, length, n)
            beside.append((x, r))

        def put(r: Point, to: str, x: Int) -> None:
            value = r.machine.widen(r.machine.cast(r.need(self.factor), self.dtype), n)
            f.store(wide(self.t, n), value.text, f.address(to, x, self.t), self.dtype.itemsize)

        def line(y: str, _: list[str]) -> list[str]:
            to = self.line_at(f, memory, y)
            for x, r in beside:
                r.bind(LINE, Linear(f.add(start, y)))
                put(r, to, x)
            q.bind(LINE, Linear(f.add(start, y)))

            def some(x: str, _: list[str]) -> list[str]:
                q.bind(PLACE, Linear(x, 1, None, True))
                put(q, to, x)
                return []

            for first, last in parts:
                with q.scope():
                    q.within = {PLACE: (first, last)}
                    f.loop(first, last, n, [], some)
            q.within = {}
            return []

        before = [dict(r.axes) for _, r in beside]
        for _, r in beside:
            r.open()
        with q.scope():
            f.loop(0, count, 1, [], line)
        for (_, r), axes in zip(beside, before, strict=True):
            r.close(axes)
