"""Contractions of which one factor slides: the weight gradient of a convolution, without its matrix of windows.

The gradient by a tap reads the image at position * step + tap: rows of the result that differ in their tap alone read the same
memory, shifted. So the image is copied once, padded, and rows read it where it lies; what runs along lanes are the columns of the
other factor (the cotangent's channels), packed once for all.

    sliding(kernel, groups, target) -> Slide        None where packing each tap by itself serves as well

    phase 0   the other factor packed:   [outer point][block of lines][panel][k][NR]
    phase 1   a chunk is a run of row panels and one of column panels. For each outer point and block of lines:
                the image's part padded:  [channel][line][place]
                for each column panel, for each row panel:   tile += rows where they lie * column panel, in registers
              after the last: the epilogue
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import product as pairs_of

from flame.compiler.contract_groups import BATCH, Groups, K, M, N, digits, loads_under, over, positions
from flame.compiler.index_math import E, ex, names, subst, var
from flame.compiler.kernel import Kernel
from flame.compiler.llvm_axes import product, size, unit_axes
from flame.compiler.llvm_contract import ContractWriter
from flame.compiler.llvm_padded_copy import CHANNEL, LINE, OUTER, PLACE, Padded
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_rows import begin
from flame.compiler.llvm_text import Function, Int, suffix, wide
from flame.compiler.llvm_tiling import Tiling
from flame.compiler.nests import Nest
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget, Phase

LEAST_TAPS, MOST_TAPS = 4, 81
LEAST_DEPTH = 512  #: products summed, from which on stores that are no vectors cost nothing
MOST_COLUMNS = 384  #: of the other factor: beyond, each packed element of the image is used often enough
SHORTEST, LONGEST = 7, 1024  #: places of a line
BLOCK = 448  #: products of a block, about
PANELS = 6  #: row panels of a chunk at least: each column panel is read once for all of them


@dataclass(frozen=True)
class Pair:
    """A tap and the axis that is summed along with it: the factor is read at `along * step + tap`."""

    tap: str
    along: str
    step: int


@dataclass(frozen=True)
class Slide:
    groups: Groups  #: its left factor slides
    lines: Pair | None
    places: Pair
    channels: tuple[str, ...]  #: of m, what is no tap of these pairs
    outer: tuple[str, ...]  #: of k, what is not along them


def sliding(kernel: Kernel, g: Groups, target: CpuTarget) -> Slide | None:
    """How a factor slides, if it does so along the last summed axis, and the sizes are those that gain."""
    if g.batch or g.contract.dtype.kind != "f" or any(kernel.axes[a].const is None for a in (*g.m, *g.n, *g.k)):
        return None
    turned = replace(g, left=g.right, right=g.left, m=g.n, n=g.m)
    for way in (g, turned):
        columns, depth = (size(kernel, product(kernel, axes)) for axes in (way.n, way.k))
        if not target.lanes_f32 <= columns <= MOST_COLUMNS or depth < LEAST_DEPTH:
            continue
        places = _pair(kernel, way, way.k[-1], way.m)
        if places is None or not SHORTEST <= size(kernel, kernel.axes[places.along]) <= LONGEST:
            continue
        if not any(places.tap in unit_axes(kernel, t) for t in loads_under(kernel, way.left)):
            continue
        left = tuple(a for a in way.m if a != places.tap)
        lines = _pair(kernel, way, way.k[-2], left) if len(way.k) > 1 else None
        taken = {p.tap for p in (places, lines) if p} | {p.along for p in (places, lines) if p}
        taps = size(kernel, kernel.axes[places.tap] * (kernel.axes[lines.tap] if lines else 1))
        if LEAST_TAPS <= taps <= MOST_TAPS:
            channels, outer = (tuple(a for a in axes if a not in taken) for axes in (way.m, way.k))
            return Slide(way, lines, places, channels, outer)
    return None


def _pair(kernel: Kernel, g: Groups, along: str, taps: Sequence[str]) -> Pair | None:
    """The tap that an axis slides with: everything read depends on tap + step * axis alone."""
    here = [e for e in positions(kernel, g.left) if along in names(e)]
    for tap, e in pairs_of(taps, here[:1]):
        terms = dict(e.terms)
        step, one = terms.get((along,), 0), terms.get((tap,), 0)
        if one != 1 or step < 1:
            continue
        shifted = {tap: var(tap) - var(along) * step}
        if all(along not in names(subst(e, shifted)) for e in here):
            return Pair(tap, along, step)
    return None


class SlidingWriter(ContractWriter):
    """Writes the two phases of a contraction whose left factor slides."""

    def __init__(
        self, kernel: Kernel, nest: Nest, slide: Slide, schedule: CpuSchedule, target: CpuTarget, name: str, workspace_at: E
    ):
        super().__init__(kernel, nest, slide.groups, schedule, target, name, workspace_at)
        self.slide, t = slide, self.tiling
        self.step, self.pairs = 1, ""
        count, lines = self._sizes(kernel)
        depth = lines * self.width
        self.tiling = Tiling(t.lanes, t.rows, t.vectors, depth, 1)
        self.lines_a_block, self.blocks_of_lines = lines, -(-count // lines)
        self.outer_points = size(kernel, product(kernel, slide.outer))
        self.pitch = -(-self.window[1] // t.lanes) * t.lanes
        self.piece = self.block_window * self.pitch  #: elements of a channel's part
        self.rows_in_all, self.columns_in_all = (size(kernel, self.kernel.axes[a]) for a in (M, N))
        self.row_panels, self.column_panels = -(-self.rows_in_all // t.rows), -(-self.columns_in_all // t.columns)
        self.panel = (depth + t.lanes) * t.columns
        self._cut_again(depth)
        slid = over(kernel, self._axes_slid(kernel), self._at_taps(kernel))
        of_copy = self.window[1], self.pitch, self.piece
        self.padded = Padded(slid, self.groups.left, self.dtype, t.lanes, *of_copy, self._value)
        self.other = self._other(kernel)
        self._lay_out(workspace_at)

    def _sizes(self, kernel: Kernel) -> tuple[int, int]:
        """How many lines there are, and of them in a block; sets how large what they read is."""
        lines, places = self.slide.lines, self.slide.places

        def n(axis: str) -> int:
            return size(kernel, kernel.axes[axis])

        self.width = n(places.along)
        count = n(lines.along) if lines else 1
        taps = n(lines.tap) if lines else 1
        self.taps_of_line = n(places.tap)
        self.taps_in_all = taps * self.taps_of_line
        of_block = max(1, min(count, BLOCK // self.width))
        of_block = -(-count // -(-count // of_block))
        self.line_step = lines.step if lines else 1
        self.window = (self.line_step * (count - 1) + taps, places.step * (self.width - 1) + self.taps_of_line)
        self.block_window = self.line_step * (of_block - 1) + taps
        return count, of_block

    def _cut_again(self, depth: int) -> None:
        """Chunks: row panels first, column panels where those are too few."""
        t = self.tiling
        work = 2e-5 * self.rows_in_all * self.columns_in_all * depth * self.blocks_of_lines * self.outer_points
        wanted = int(max(1, min(16, work / (2 * self.schedule.chunk_us))))
        rows = max(min(self.row_panels, PANELS), -(-self.row_panels // wanted))
        columns = self.column_panels
        while columns > 1 and -(-self.row_panels // rows) * -(-self.column_panels // columns) < wanted // 2:
            columns = -(-columns // 2)
        self.rows_a_chunk, self.columns_a_chunk = rows, columns
        self.chunks_of_rows, self.chunks_of_columns = -(-self.row_panels // rows), -(-self.column_panels // columns)
        self.most_channels = (rows * t.rows + self.taps_in_all - 2) // self.taps_in_all + 1

    def _axes_slid(self, kernel: Kernel) -> dict[str, E]:
        slide = self.slide
        axes = {OUTER: product(kernel, slide.outer), CHANNEL: product(kernel, slide.channels)}
        return axes | {LINE: ex(self.window[0]), PLACE: ex(self.window[1]), N: product(kernel, slide.groups.n)}

    def _at_taps(self, kernel: Kernel) -> dict[str, E | int]:
        """The kernel's axes by those of the padded image: it is read where tap and position add up to line and place."""
        slide = self.slide
        at = digits(kernel, OUTER, slide.outer) | digits(kernel, CHANNEL, slide.channels)
        for pair, axis in ((slide.lines, LINE), (slide.places, PLACE)):
            if pair is not None:
                at |= {pair.tap: var(axis), pair.along: 0}
        return at | digits(kernel, N, slide.groups.n)

    def _other(self, kernel: Kernel) -> Kernel:
        """The kernel by columns and k, one outer point at a time."""
        slide = self.slide
        along = tuple(p.along for p in (slide.lines, slide.places) if p is not None)
        axes = {OUTER: product(kernel, slide.outer), N: product(kernel, slide.groups.n), K: product(kernel, along)}
        at = digits(kernel, OUTER, slide.outer) | digits(kernel, N, slide.groups.n) | digits(kernel, K, along)
        return over(kernel, axes | {a: kernel.axes[a] for a in slide.groups.m}, at)

    def _lay_out(self, at: E) -> None:
        t, item = self.tiling, self.dtype.itemsize

        def rounded(n: int) -> int:
            return -(-n // 64) * 64

        self.right_at = at
        right = rounded(self.outer_points * self.blocks_of_lines * self.column_panels * self.panel * item)
        self.offsets_bytes = rounded(self.rows_a_chunk * t.rows * 8)
        self.tiles_bytes = rounded(self.rows_a_chunk * self.columns_a_chunk * t.rows * t.columns * item)
        self.own_bytes = self.offsets_bytes + self.tiles_bytes + rounded((self.most_channels * self.piece + t.lanes) * item)
        self.own_at = at + right
        self.chunk_count = self.chunks_of_rows * self.chunks_of_columns
        self.workspace_end = self.own_at + self.own_bytes * self.chunk_count

    def describe(self) -> str:
        t = self.tiling
        block = f"{self.lines_a_block} lines of {self.width} a block"
        return f"tiles of {t.rows} x {t.vectors} vectors of {t.lanes}, {block}, {self.taps_in_all} taps of one padded copy"

    # -- phases

    def write(self, places: dict[str, E], external: int) -> tuple[list[Function], list[Phase], list[str]]:
        """The functions, phases and constants."""
        functions, phases, constants = [self._tile_function()], [], []
        for suffix_, write in (("pack", self._pack_right), ("main", self._main)):
            entry = begin(f"{self.name}_{suffix_}", self.kernel, places, self.target, external)
            f = entry.function
            p = Point(self.kernel, f, entry.machine, self.tiling.lanes, entry.buffers, entry.symbols, f.name)
            phases.append(write(p, f.load("ptr", f.address("%bufs", external, "ptr"), 8)))
            functions.append(f)
            constants += p.globals()
        return functions, phases, constants

    def _right_panel(self, p: Point, base: str, outer: Int, block: Int, panel: Int) -> str:
        f = p.function
        right = f.address(base, p.integer_of(self.right_at), "i8")
        number = f.add(f.mul(f.add(f.mul(outer, self.blocks_of_lines), block), self.column_panels), panel)
        return f.address(right, f.mul(number, self.panel), self.t)

    def _depth_of(self, f: Function, block: Int) -> tuple[Int, Int]:
        """The first product of a block, and how many it has."""
        first, most = f.mul(block, self.tiling.depth or 0), size(self.other, self.other.axes[K])
        return first, f.least(f.sub(most, first), self.tiling.depth or 0)

    def _pack_right(self, p: Point, base: str) -> Phase:
        """Phase 0: a chunk is a run of panels."""
        f = p.function
        total = self.outer_points * self.blocks_of_lines * self.column_panels
        cost = 1e-3 * total * self.panel
        chunks = max(1, min(total, int(cost / self.schedule.chunk_us), self.schedule.max_chunks))
        low, high = (f.div(f.mul(x, total), chunks) for x in ("%begin", "%end"))
        packer = copy(self)  # packs by the axes of the other factor
        packer.kernel, packer.taps = self.other, 1
        p.kernel = self.other

        def one(i: str, _: list[str]) -> list[str]:
            panel, rest = f.rem(i, self.column_panels), f.div(i, self.column_panels)
            block, outer = f.rem(rest, self.blocks_of_lines), f.div(rest, self.blocks_of_lines)
            p.bind(OUTER, Linear(outer))
            first, depth = self._depth_of(f, block)
            target = self._right_panel(p, base, outer, block, panel)
            width = self.tiling.columns
            packer._pack(p, self.groups.right, N, f.mul(panel, width), width, target, first, depth)
            return []

        with p.scope():
            f.loop(low, high, 1, [], one)
        return Phase(f.name, ex(chunks), cost)

    def _main(self, p: Point, base: str) -> Phase:
        """Phase 1."""
        f, t = p.function, self.tiling
        own = f.address(base, p.integer_of(self.own_at), "i8")
        cost = 2e-5 * self.rows_in_all * self.columns_in_all * size(self.other, self.other.axes[K]) * self.outer_points

        def chunk(i: str, _: list[str]) -> list[str]:
            here = f.address(own, f.mul(i, self.own_bytes), "i8")
            tiles = f.address(here, self.offsets_bytes, "i8")
            piece = f.address(tiles, self.tiles_bytes, "i8")
            block_of_rows, block_of_columns = f.rem(i, self.chunks_of_rows), f.div(i, self.chunks_of_rows)
            first_row, first_column = f.mul(block_of_rows, self.rows_a_chunk), f.mul(block_of_columns, self.columns_a_chunk)
            last_row = f.least(f.add(first_row, self.rows_a_chunk), self.row_panels)
            last_column = f.least(f.add(first_column, self.columns_a_chunk), self.column_panels)
            first_channel = f.div(f.mul(first_row, t.rows), self.taps_in_all)
            final = f.least(f.mul(last_row, t.rows), self.rows_in_all)
            last_channel = f.add(f.div(f.sub(final, 1), self.taps_in_all), 1)
            self._offsets(f, here, f.mul(first_row, t.rows), f.mul(last_row, t.rows), first_channel)
            p.bind(BATCH, Linear(0))

            def tile_of(row: str, column: str) -> str:
                number = f.add(f.mul(f.sub(row, first_row), self.columns_a_chunk), f.sub(column, first_column))
                return f.address(tiles, f.mul(number, t.rows * t.columns), self.t)

            def block(b: str, _: list[str]) -> list[str]:
                outer, of_lines = f.div(b, self.blocks_of_lines), f.rem(b, self.blocks_of_lines)
                first_line = f.mul(of_lines, self.lines_a_block * self.line_step)
                lines_read = f.least(f.sub(self.window[0], first_line), self.block_window)
                self.padded.copy(p, piece, outer, first_line, lines_read, (first_channel, last_channel))
                depth = self._depth_of(f, of_lines)[1]
                lines = f.div(depth, self.width)

                def column(j: str, _: list[str]) -> list[str]:
                    right = self._right_panel(p, base, outer, of_lines, j)

                    def row(r: str, _: list[str]) -> list[str]:
                        offsets = f.address(here, f.mul(f.sub(r, first_row), t.rows), "i64")
                        pointers = f"ptr {piece}, ptr {offsets}, ptr {right}, ptr {tile_of(r, j)}"
                        f.do(f"call void @{self.name}_tile({pointers}, i64 {lines}, i64 {b})")
                        return []

                    f.loop(first_row, last_row, 1, [], row)
                    return []

                f.loop(first_column, last_column, 1, [], column)
                return []

            with p.scope():
                f.loop(0, self.outer_points * self.blocks_of_lines, 1, [], block)

            def finish(r: str, _: list[str]) -> list[str]:
                def column(j: str, _: list[str]) -> list[str]:
                    self._epilogue(p, r, j, tile_of(r, j))
                    return []

                with p.scope():
                    f.loop(first_column, last_column, 1, [], column)
                return []

            with p.scope():
                f.loop(first_row, last_row, 1, [], finish)
            return []

        with p.scope():
            f.loop("%begin", "%end", 1, [], chunk)
        return Phase(f.name, ex(self.chunk_count), cost)

    def _offsets(self, f: Function, table: str, first: Int, last: Int, first_channel: Int) -> None:
        """Where each row begins in the padded part: rows past the end are the last one again."""

        def row(r: str, _: list[str]) -> list[str]:
            at = f.least(r, self.rows_in_all - 1)
            channel, tap = f.sub(f.div(at, self.taps_in_all), first_channel), f.rem(at, self.taps_in_all)
            line, place = f.div(tap, self.taps_of_line), f.rem(tap, self.taps_of_line)
            offset = f.add(f.add(f.mul(channel, self.piece), f.mul(line, self.pitch)), place)
            f.store("i64", str(offset), f.address(table, f.sub(r, first), "i64"), 8)
            return []

        f.loop(first, last, 1, [], row)

    def _tile_function(self) -> Function:
        """tile = (goes_on ? tile : 0) + rows of the padded part * right panel, over some lines."""
        t, item = self.tiling, self.dtype.itemsize
        parameters = [("ptr noalias", x) for x in ("piece", "offsets", "right", "tile")]
        parameters += [("i64", "lines"), ("i64", "goes_on")]
        f = Function(f"{self.name}_tile", parameters, attributes="nounwind noinline", linkage="internal")
        v, step = wide(self.t, t.lanes), self.slide.places.step
        starts = [f.address("%piece", f.load("i64", f.address("%offsets", r, "i64"), 8), self.t) for r in range(t.rows)]

        def multiply(sums: list[str], rows: list[str], right: str, at: int) -> list[str]:
            columns = [
                f.load(v, f.address(right, at * t.columns + j * t.lanes, self.t), t.lanes * item) for j in range(t.vectors)
            ]
            out = []
            for i, row in enumerate(rows):
                x = f.splat(f.load(self.t, f.address(row, at * step, self.t), item), self.t, t.lanes)
                for j, y in enumerate(columns):
                    given: list[tuple[str, Int]] = [(v, x), (v, y), (v, sums[i * t.vectors + j])]
                    out.append(f.call(v, f"llvm.fma.{suffix(self.t, t.lanes)}", given))
            return out

        together = _together(self.width)
        whole = self.width // together * together

        def line(n: str, sums: list[str]) -> list[str]:
            rows = [f.address(s, f.mul(n, self.line_step * self.pitch), self.t) for s in starts]
            right = f.address("%right", f.mul(n, self.width * t.columns), self.t)

            def some(x: Int, sums: list[str]) -> list[str]:
                here = [f.address(r, f.mul(x, step), self.t) for r in rows]
                there = f.address(right, f.mul(x, t.columns), self.t)
                for at in range(together):
                    sums = multiply(sums, here, there, at)
                return sums

            sums = some(0, sums) if whole == together else f.loop(0, whole, together, [(v, s) for s in sums], some)
            for at in range(whole, self.width):
                sums = multiply(sums, rows, right, at)
            return sums

        zero = [(v, "zeroinitializer")] * (t.rows * t.vectors)
        sums = f.loop(0, "%lines", 1, zero, line)
        places = [f.address("%tile", i * t.lanes, self.t) for i in range(len(sums))]
        align = t.lanes * item

        def store() -> None:
            for x, place in zip(sums, places, strict=True):
                f.store(v, x, place, align)

        def add() -> None:
            for x, place in zip(sums, places, strict=True):
                f.store(v, f.emit(f"fadd {v} {x}, {f.load(v, place, align)}"), place, align)

        f.choose(f.emit("icmp ne i64 %goes_on, 0"), add, store)
        return f


def _together(width: int) -> int:
    """Places of a line that are written out side by side: all of a short line, else a part of it that fits."""
    if width <= 16:
        return width
    return next((n for n in (8, 7, 6, 5, 4) if width % n == 0), 8)
