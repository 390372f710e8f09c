"""Weight gradients of windows that slide over planes: depthwise convolutions, where every plane has weights of its own.

Each tap is a dot product of the cotangent with the image, shifted. Lanes run along the lines of a plane; a few taps at a time
keep their sums in registers, so that a vector of the cotangent is read once for all of them.

    tapped_of(kernel, nest, target) -> Tapped       None where the contraction is no such one
    TapWriter(...).write(entry)                     its one phase; a chunk is a run of channels

    for each channel:
        for each image, for each block of lines:   the image's part and the cotangent's, padded, in the nearest cache
            for each few taps:   sums += image at the tap * cotangent, over the block
        for each tap:   the lanes joined; the epilogue
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.contract_groups import digits, positions
from flame.compiler.index_math import E, ex
from flame.compiler.kernel import Contract, Kernel, Load, Store
from flame.compiler.llvm_axes import product, size, unit_axes
from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_padded import Padded, Window, alone, slides
from flame.compiler.llvm_planes import MOST_TAPS, carried_over, lone_contraction, pairings, worth_planes
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_reduce import Accumulator
from flame.compiler.llvm_rows import Entry
from flame.compiler.llvm_text import Int, element, existing_lanes, suffix, wide
from flame.compiler.nests import Nest, loads_of
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget, Phase

CHANNEL, IMAGE = "tapped_channel", "tapped_image"
BLOCK_BYTES = 10 << 10  #: of the image's part, about; the cotangent's is no larger
LEAST_POINTS = 64  #: of a channel, summed


@dataclass(frozen=True)
class Tapped:
    """A contraction over the points of planes: `image` slides with the taps, `cotangent` does not know of them."""

    contract: Contract
    image: str
    cotangent: str
    lines: Window
    places: Window
    channels: tuple[str, ...]  #: of the result's axes, those that are no taps
    images: tuple[str, ...]  #: of the summed axes, those in front of lines and places


def tapped_of(kernel: Kernel, nest: Nest, target: CpuTarget) -> Tapped | None:
    """How the one contraction of a nest sums over planes, tap by tap."""
    c = lone_contraction(kernel, nest)
    if c is None:
        return None
    summed = tuple(a for a in kernel.axes if a in c.axes)
    if len(summed) < 2:
        return None
    *images, line, place = summed
    for image, cotangent in (c.operands, c.operands[::-1]):
        taps = [a for a in nest.outer if a in kernel.domains[image] and a not in kernel.domains[cotangent]]
        channels = tuple(a for a in nest.outer if a not in taps)
        if not 1 <= len(taps) <= 2 or not frozenset(summed) <= kernel.domains[image] & kernel.domains[cotangent]:
            continue
        if not 2 <= size(kernel, product(kernel, tuple(taps))) <= MOST_TAPS:
            continue
        if size(kernel, product(kernel, summed)) < LEAST_POINTS or not channels:
            continue
        read = positions(kernel, image)
        for y, x in pairings(tuple(taps)):
            lines, places = slides(kernel, read, line, y), slides(kernel, read, place, x)
            if lines is None or places is None or not worth_planes(lines, places):
                continue
            if not _along(kernel, image, place, places.step) or not _along(kernel, cotangent, place, 1):
                continue
            return Tapped(c, image, cotangent, lines, places, channels, tuple(images))
    return None


def _along(kernel: Kernel, factor: str, place: str, step: int) -> bool:
    """Does a factor read memory along places?"""
    loads: list[Load] = loads_of(kernel, Store("", (), factor))
    return any(place in unit_axes(kernel, t, step) for t in loads)


class TapWriter:
    """Writes a weight gradient over planes."""

    def __init__(self, kernel: Kernel, nest: Nest, tapped: Tapped, schedule: CpuSchedule, target: CpuTarget, entry: Entry):
        self.kernel, self.tapped, self.schedule, self.entry = kernel, tapped, schedule, entry
        self.dtype = tapped.contract.dtype
        self.t, self.lanes = element(self.dtype), max(2, target.vector_bytes // self.dtype.itemsize)
        lines, places = tapped.lines, tapped.places
        groups = {CHANNEL: tapped.channels, IMAGE: tapped.images}
        numbered = digits(kernel, CHANNEL, tapped.channels) | digits(kernel, IMAGE, tapped.images)
        self.image = Padded(kernel, tapped.image, self.dtype, self.lanes, lines, places, groups, numbered)
        beside = alone(lines), alone(places)
        self.cotangent = Padded(kernel, tapped.cotangent, self.dtype, self.lanes, *beside, groups, numbered)
        self.block, self.blocks = self.image.block_of_lines(BLOCK_BYTES)
        self.channels, self.images = (size(kernel, product(kernel, a)) for a in (tapped.channels, tapped.images))
        taps = {w.tap: kernel.axes[w.tap] for w in (lines, places) if w.tap}
        axes = {CHANNEL: product(kernel, tapped.channels), **taps} | {a: kernel.axes[a] for a in tapped.contract.axes}
        at: dict[str, E | int] = dict(digits(kernel, CHANNEL, tapped.channels))
        self.result, self.stores = carried_over(kernel, nest.stores, axes, at)
        most = target.registers - 4
        self.lines_at_once = max(1, min(lines.taps, most // places.taps))
        self.places_at_once = min(places.taps, most)

    def describe(self) -> str:
        t = self.tapped
        at_once = f"{self.lines_at_once} x {self.places_at_once} at once"
        return f"{t.lines.taps} x {t.places.taps} taps over {self.images} planes of {self.channels} channels, {at_once}"

    def write(self, entry_name: str) -> Phase:
        """Write the body of the entry function; gives the phase it is."""
        f, t, itemsize, n = self.entry.function, self.tapped, self.dtype.itemsize, self.lanes
        p = Point(self.kernel, f, self.entry.machine, n, self.entry.buffers, self.entry.symbols, f.name)
        self.point = p
        v, taps = wide(self.t, n), t.lines.taps * t.places.taps
        points = self.channels * self.images * t.lines.count * t.places.count
        cost = 2e-5 * points * (taps + 8) * itemsize / 4
        chunks = max(1, min(self.channels, int(cost / self.schedule.chunk_us), self.schedule.max_chunks))
        image = f.scratch(self.t, self.image.elements(self.block) + n)
        cotangent = f.scratch(self.t, self.cotangent.elements(self.block) + n)
        sums = f.scratch(self.t, taps * n)
        a = Accumulator(self.kernel, t.contract, self.entry.machine, n)

        def place(tap: Int) -> str:
            return f.address(sums, f.mul(tap, n), self.t)

        def channel(i: str, _: list[str]) -> list[str]:
            def clear(tap: str, _: list[str]) -> list[str]:
                f.store(v, "zeroinitializer", place(tap), n * itemsize)
                return []

            f.loop(0, taps, 1, [], clear)

            def part(b: str, _: list[str]) -> list[str]:
                first = f.mul(f.rem(b, self.blocks), self.block)
                here = f.least(f.sub(t.lines.count, first), self.block)
                at = {CHANNEL: Linear(i), IMAGE: Linear(f.div(b, self.blocks))}
                with p.scope():
                    self.image.fill(p, image, at, first, here)
                    self.cotangent.fill(p, cotangent, at, first, here)
                for low in range(0, t.lines.taps, self.lines_at_once):
                    for left in range(0, t.places.taps, self.places_at_once):
                        self._some_taps(low, left, image, cotangent, sums, here)
                return []

            f.loop(0, self.images * self.blocks, 1, [], part)
            q = p.fork()
            q.kernel = self.result
            q.open()
            q.bind(CHANNEL, Linear(i))

            def finish(tap: str, _: list[str]) -> list[str]:
                for w, digit in ((t.lines, f.div(tap, t.places.taps)), (t.places, f.rem(tap, t.places.taps))):
                    if w.tap:
                        q.bind(w.tap, Linear(digit))
                total = Value(f.load(v, place(tap), n * itemsize), self.dtype, n)
                q.define(t.contract.name, a.finish([total], across_lanes=True))
                for s in self.stores:
                    q.store(s)
                return []

            with q.scope():
                f.loop(0, taps, 1, [], finish)
            return []

        low, high = (f.div(f.mul(x, self.channels), chunks) for x in ("%begin", "%end"))
        with p.scope():
            f.loop(low, high, 1, [], channel)
        return Phase(entry_name, ex(chunks), cost)

    def _some_taps(self, low: int, left: int, image: str, cotangent: str, sums: str, count: Int) -> None:
        """Some taps' sums over the lines of a block."""
        f, t, n, itemsize = self.entry.function, self.tapped, self.lanes, self.dtype.itemsize
        v = wide(self.t, n)
        rows = range(low, min(low + self.lines_at_once, t.lines.taps))
        columns = range(left, min(left + self.places_at_once, t.places.taps))
        taps = [(y, x) for y in rows for x in columns]
        places = [f.address(sums, (y * t.places.taps + x) * n, self.t) for y, x in taps]
        whole = t.places.count // n * n

        def existing(x: str, tail: str | None) -> str:
            """Both factors are 0 beyond a line's end: either may be infinite there."""
            return x if tail is None else f.emit(f"select {wide('i1', n)} {tail}, {v} {x}, {v} zeroinitializer")

        def line(i: str, sums: list[str]) -> list[str]:
            g = self.cotangent.line_at(f, cotangent, i)
            line = self.image.line_at(f, image, f.mul(i, t.lines.step))
            starts = {y: self.image.line_at(f, line, t.lines.turn * y + t.lines.offset) for y in rows}

            def vector(x: Int, sums: list[str], tail: str | None) -> list[str]:
                here = existing(f.load(v, f.address(g, x, self.t), itemsize), tail)
                out = []
                for (row, column), s in zip(taps, sums, strict=True):
                    at = f.address(f.address(starts[row], x, self.t), self.image.shift(column), self.t)
                    there = existing(f.load(v, at, itemsize), tail)
                    given: list[tuple[str, Int]] = [(v, here), (v, there), (v, s)]
                    out.append(f.call(v, f"llvm.fma.{suffix(self.t, n)}", given))
                return out

            if whole <= 2 * n:
                for x in range(0, whole, n):
                    sums = vector(x, sums, None)
            else:
                sums = f.loop(0, whole, n, [(v, s) for s in sums], lambda x, sums: vector(x, sums, None))
            return vector(whole, sums, tail) if tail is not None else sums

        tail = existing_lanes(f, 0, t.places.count - whole, n) if whole < t.places.count else None
        zero = [(v, "zeroinitializer")] * len(taps)  # a block's sums are short, and so are sums of blocks
        for x, place in zip(f.loop(0, count, 1, zero, line), places, strict=True):
            f.store(v, f.emit(f"fadd {v} {x}, {f.load(v, place, n * itemsize)}"), place, n * itemsize)
