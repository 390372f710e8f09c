"""Windows that slide over planes, each plane with weights of its own: depthwise convolutions, and the gradient of their input.

Such a contraction has no rows or columns to share what is packed, so nothing is: lanes run along the lines of a plane.

    planes_of(kernel, nest, target) -> Planes       None where the contraction is no such one
    PlaneWriter(...).write(entry)                   its one phase; a chunk is a run of blocks of lines

    for each block of lines of a plane:
        the part of the image that it reads, padded, in the nearest cache    [line][phase of the step][place]
        for each tile of lines and vectors:  sums += weight of the tap * image, in registers, tap by tap
        the epilogue, along the block as one run where its memory is one
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.contract_groups import digits, over, positions
from flame.compiler.index_math import E, ex, names, var
from flame.compiler.kernel import Contract, Kernel, Load, Store
from flame.compiler.llvm_axes import product, size, unit_axes
from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_padded import Padded, Window, slides
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_rows import Entry
from flame.compiler.llvm_text import Int, element, existing_lanes, suffix, wide
from flame.compiler.nests import Nest, loads_of
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget, Phase

PLANE, RUN, FLAT = "plane", "plane_run", "plane_at"
NARROWEST, WIDEST = 4, 4096  #: places of a line
MOST_TAPS, MOST_STEP = 81, 4
IMAGE_BYTES = 14 << 10  #: of a block's padded part, about: it stays in the nearest cache beside what is made of it


@dataclass(frozen=True)
class Planes:
    """A contraction over windows: `image` slides along `lines` and `places`, `weight` varies with the taps alone in a plane."""

    contract: Contract
    image: str
    weight: str
    lines: Window
    places: Window
    plane: tuple[str, ...]  #: the axes that number planes

    @property
    def taps(self) -> int:
        return self.lines.taps * self.places.taps


def planes_of(kernel: Kernel, nest: Nest, target: CpuTarget) -> Planes | None:
    """How the one contraction of a nest slides over planes."""
    c = lone_contraction(kernel, nest)
    if c is None or len(c.axes) > 2:
        return None
    for image, weight in (c.operands, c.operands[::-1]):
        free = [a for a in nest.outer if a in kernel.domains[image] and a not in kernel.domains[weight]]
        if len(free) < 2 or size(kernel, product(kernel, c.axes)) > MOST_TAPS:
            continue
        *_, line, place = free
        if not all(place in unit_axes(kernel, t) for t in nest.stores):
            continue
        reads = positions(kernel, image)
        for taps in pairings(c.axes):
            lines, places = (slides(kernel, reads, a, tap) for a, tap in zip((line, place), taps, strict=True))
            if lines is None or places is None or not worth_planes(lines, places):
                continue
            if not any(unit_axes(kernel, t, places.step) & {place} for t in loads_of(kernel, Store("", (), image))):
                continue
            return Planes(c, image, weight, lines, places, tuple(a for a in nest.outer if a not in (line, place)))
    return None


def lone_contraction(kernel: Kernel, nest: Nest) -> Contract | None:
    """The contraction of floating numbers and known sizes that is all of a nest but stores at its points."""
    if len(nest.reduces) != 1 or not isinstance(nest.reduces[0], Contract) or nest.across or nest.joins is not None:
        return None
    c = nest.reduces[0]
    first = next(s for s in nest.sweeps if s.reduces)
    if first.stores or any(s.axes for s in nest.sweeps if s is not first) or c.dtype.kind != "f" or kernel.values:
        return None
    return c if all(kernel.axes[a].const is not None for a in (*nest.outer, *c.axes)) and c.axes else None


def worth_planes(lines: Window, places: Window) -> bool:
    """Are lines long enough for vectors, and short enough for the nearest cache?"""
    return max(lines.step, places.step) <= MOST_STEP and places.count >= NARROWEST and places.reach <= WIDEST


def pairings(taps: tuple[str, ...]) -> list[tuple[str, str]]:
    """What may be the taps of lines and of places; "" is none."""
    return [("", taps[0]), (taps[0], "")] if len(taps) == 1 else [(taps[0], taps[1]), (taps[1], taps[0])]


class PlaneWriter:
    """Writes a contraction over windows."""

    def __init__(self, kernel: Kernel, nest: Nest, planes: Planes, schedule: CpuSchedule, target: CpuTarget, entry: Entry):
        self.kernel, self.planes, self.schedule, self.target, self.entry = kernel, planes, schedule, target, entry
        self.dtype = planes.contract.dtype
        self.t, self.lanes = element(self.dtype), max(2, target.vector_bytes // self.dtype.itemsize)
        numbered = digits(kernel, PLANE, planes.plane)
        self.padded = Padded(
            kernel, planes.image, self.dtype, self.lanes, planes.lines, planes.places, {PLANE: planes.plane}, numbered
        )
        lines, places = planes.lines, planes.places
        self.block, self.blocks = self.padded.block_of_lines(IMAGE_BYTES)
        self.vectors = -(-places.count // self.lanes)
        self.tile_lines, self.tile_vectors = _tile(self.block, self.vectors, target)
        self.count = size(kernel, product(kernel, planes.plane))
        taps = {w.tap: kernel.axes[w.tap] for w in (lines, places) if w.tap}
        at: dict[str, E | int] = {**numbered, lines.axis: 0, places.axis: 0}
        self.weights = over(kernel, {PLANE: product(kernel, planes.plane), **taps}, at)
        self.result, self.stores = self._along_runs(nest, numbered, taps)

    def _along_runs(self, nest: Nest, numbered: dict[str, E | int], taps: dict[str, E]) -> tuple[Kernel, list[Store]]:
        """The kernel by runs of places: a plane is one where that is how it is stored, else each of its lines."""
        lines, places = self.planes.lines, self.planes.places
        every = product(self.kernel, (lines.axis, places.axis))
        count = self.kernel.axes[places.axis]
        plane = product(self.kernel, self.planes.plane)
        ways: list[tuple[dict[str, E], dict[str, E | int]]] = [
            ({PLANE: plane, FLAT: every}, {lines.axis: var(FLAT) // count, places.axis: var(FLAT) % count}),
            ({PLANE: plane, RUN: self.kernel.axes[lines.axis], FLAT: count}, {lines.axis: var(RUN), places.axis: var(FLAT)}),
        ]
        for axes, at in ways:
            kernel, stores = carried_over(self.kernel, nest.stores, axes | taps, numbered | at)
            moved: list[Load | Store] = [*stores, *(t for s in stores for t in loads_of(kernel, s))]
            if all(FLAT in unit_axes(kernel, t) or not _varies(t) for t in moved):
                break
        return kernel, stores

    @property
    def flat(self) -> bool:
        """Is a plane one run?"""
        return RUN not in self.result.axes

    def describe(self) -> str:
        tile = f"tiles of {self.tile_lines} lines x {self.tile_vectors} vectors of {self.lanes}"
        return f"windows of {self.planes.taps} taps over {self.count} planes, {self.block} lines a block, {tile}"

    def write(self, entry_name: str) -> Phase:
        """Write the body of the entry function; gives the phase it is."""
        f, planes, itemsize = self.entry.function, self.planes, self.dtype.itemsize
        p = Point(self.kernel, f, self.entry.machine, self.lanes, self.entry.buffers, self.entry.symbols, f.name)
        self.point = p
        lines, places = planes.lines, planes.places
        units = self.count * self.blocks
        outputs = self.count * lines.count * places.count
        cost = 2e-5 * outputs * (planes.taps + 8) * itemsize / 4
        chunks = max(1, min(units, int(cost / self.schedule.chunk_us), self.schedule.max_chunks))
        rounded = -(-self.block // self.tile_lines) * self.tile_lines
        image = f.scratch(self.t, self.padded.elements(rounded) + (self.tile_vectors + 1) * self.lanes)
        made = f.scratch(self.t, rounded * places.count + (self.tile_vectors + 1) * self.lanes)
        weights = f.scratch(self.t, planes.taps)

        def unit(i: str, _: list[str]) -> list[str]:
            plane, block = f.div(i, self.blocks), f.rem(i, self.blocks)
            first = f.mul(block, self.block)
            here = f.least(f.sub(lines.count, first), self.block)
            self._weigh(weights, plane)
            self.padded.fill(p, image, {PLANE: Linear(plane)}, first, here)
            f.loop(0, here, self.tile_lines, [], lambda y, _: self._tiles(y, image, weights, made))
            self._epilogue(made, plane, first, here)
            return []

        low, high = (f.div(f.mul(x, units), chunks) for x in ("%begin", "%end"))
        with p.scope():
            f.loop(low, high, 1, [], unit)
        return Phase(entry_name, ex(chunks), cost)

    def _weigh(self, to: str, plane: Int) -> None:
        """The plane's weights, one after the other."""
        f, lines, places = self.entry.function, self.planes.lines, self.planes.places
        q = self.point.fork()
        q.kernel = self.weights
        q.open()
        q.bind(PLANE, Linear(plane))

        def one(i: str, _: list[str]) -> list[str]:
            for w, at in ((lines, f.div(i, places.taps)), (places, f.rem(i, places.taps))):
                if w.tap:
                    q.bind(w.tap, Linear(at))
            x = q.machine.cast(q.need(self.planes.weight), self.dtype)
            f.store(self.t, x.text, f.address(to, i, self.t), self.dtype.itemsize)
            return []

        with q.scope():
            f.loop(0, self.planes.taps, 1, [], one)

    def _tiles(self, y: str, image: str, weights: str, made: str) -> list[str]:
        """The tiles of some lines, from the last to the first: what a tile writes past its line's end is written again, by the
        tile that begins the next line."""
        f, places = self.entry.function, self.planes.places
        count = -(-self.vectors // self.tile_vectors)
        line = self.padded.line_at(f, image, f.mul(y, self.planes.lines.step))
        to = f.address(made, f.mul(y, places.count), self.t)

        def tile(i: str, _: list[str]) -> list[str]:
            start = f.mul(f.sub(count - 1, i), self.tile_vectors * self.lanes)
            self._tile(f.address(line, start, self.t), weights, f.address(to, start, self.t))
            return []

        if count == 1:
            self._tile(line, weights, to)
        else:
            f.loop(0, count, 1, [], tile)
        return []

    def _tile(self, image: str, weights: str, to: str) -> None:
        f, lines, places, n, itemsize = (
            self.entry.function,
            self.planes.lines,
            self.planes.places,
            self.lanes,
            self.dtype.itemsize,
        )
        v = wide(self.t, n)
        pitch = self.padded.line

        def tap(line: str, weight: str, at: str, sums: list[str]) -> list[str]:
            """One tap: `line` is where the tile's first line begins for this tap of lines, `at` where the place's begins in it."""
            w = f.splat(f.load(self.t, weight, itemsize), self.t, n)
            out = []
            for r in range(self.tile_lines):
                for j in range(self.tile_vectors):
                    x = f.load(v, f.address(at, r * lines.step * pitch + j * n, self.t), itemsize)
                    given: list[tuple[str, Int]] = [(v, w), (v, x), (v, sums[r * self.tile_vectors + j])]
                    out.append(f.call(v, f"llvm.fma.{suffix(self.t, n)}", given))
            return out

        def of_line(ky: Int, sums: list[str]) -> list[str]:
            line = self.padded.line_at(f, image, f.add(f.mul(ky, lines.turn), lines.offset))
            weight = f.address(weights, f.mul(ky, places.taps), self.t)
            if places.step == 1 and places.taps > 9:

                def one(kx: str, sums: list[str]) -> list[str]:
                    at = f.address(line, f.add(f.mul(kx, places.turn), places.offset), self.t)
                    return tap(line, f.address(weight, kx, self.t), at, sums)

                return f.loop(0, places.taps, 1, [(v, s) for s in sums], one)
            for kx in range(places.taps):
                at = f.address(line, self.padded.shift(kx), self.t)
                sums = tap(line, f.address(weight, kx, self.t), at, sums)
            return sums

        zero = ["zeroinitializer"] * (self.tile_lines * self.tile_vectors)
        sums = of_line(0, zero) if lines.taps == 1 else f.loop(0, lines.taps, 1, [(v, z) for z in zero], of_line)
        for i, x in enumerate(sums):
            r, j = divmod(i, self.tile_vectors)
            f.store(v, x, f.address(to, r * places.count + j * n, self.t), itemsize)

    def _epilogue(self, made: str, plane: Int, first: Int, here: Int) -> None:
        """What becomes of a block of lines."""
        f, n, places = self.entry.function, self.lanes, self.planes.places
        v = wide(self.t, n)
        q = self.point.fork()
        q.kernel = self.result
        q.open()
        q.bind(PLANE, Linear(plane))
        begin = f.mul(first, places.count) if self.flat else 0
        length = f.mul(here, places.count) if self.flat else places.count
        aligned = not self.flat or self.blocks == 1 or self.block * places.count % n == 0

        def vector(line: str, i: Int) -> None:
            q.bind(FLAT, Linear(f.add(begin, i), 1, None, aligned))
            x = f.load(v, f.address(line, i, self.t), self.dtype.itemsize)
            q.define(self.planes.contract.name, Value(x, self.dtype, n))
            values = [q.need(s.value) for s in self.stores]
            for s, value in zip(self.stores, values, strict=True):
                q.store(s, value)

        def run(line: str) -> None:
            whole = f.sub(length, f.rem(length, n))

            def some(i: str, _: list[str]) -> list[str]:
                vector(line, i)
                return []

            def rest() -> None:
                with q.scope():
                    q.tail = existing_lanes(f, whole, length, n)
                    vector(line, whole)
                q.tail = None

            with q.scope():
                f.loop(0, whole, n, [], some)
            if isinstance(whole, int) and isinstance(length, int):
                if whole < length:
                    rest()
            else:
                f.when(f.emit(f"icmp slt i64 {whole}, {length}"), rest)

        def of_line(y: str, _: list[str]) -> list[str]:
            q.bind(RUN, Linear(f.add(first, y)))
            run(f.address(made, f.mul(y, places.count), self.t))
            return []

        with q.scope():
            if self.flat:
                run(made)
            else:
                f.loop(0, here, 1, [], of_line)


def _varies(t: Load | Store) -> bool:
    return any(FLAT in names(e) for e in (*t.index, *(c.expr for c in t.mask)))


def carried_over(kernel: Kernel, stores: list[Store], axes: dict[str, E], at: dict[str, E | int]) -> tuple[Kernel, list[Store]]:
    """A kernel over other axes, and what became of some stores: its own, or ones that were added to a nest."""
    added = [t for t in stores if not any(t is s for s in kernel.statements)]
    before = Kernel(kernel.name, kernel.buffers, kernel.axes, kernel.symbols, (*kernel.statements, *added), kernel.values)
    after = over(before, axes, at)
    became = {id(s): t for s, t in zip(before.statements, after.statements, strict=True) if isinstance(t, Store)}
    return after, [became[id(t)] for t in stores]


def _tile(lines: int, vectors: int, target: CpuTarget) -> tuple[int, int]:
    """Lines and vectors of a tile of sums: those that fill the registers and leave the least over."""
    most = min(16, target.registers - (2 if target.is_x86 else 3))

    def cycles(shape: tuple[int, int]) -> tuple[float, int]:
        rows, columns = shape
        each = max(8, rows * columns) + 2  # fewer sums than that wait for each other; a weight is loaded a tap
        return -(-lines // rows) * -(-vectors // columns) * each, -columns

    shapes = [(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1) if r <= lines and c <= vectors]
    return min(shapes, key=cycles)
