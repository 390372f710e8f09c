"""Convolutions of 3 x 3 windows by Winograd's F(2 x 2, 3 x 3): 16 products where 4 outputs of 9 taps take 36.

    WinogradWriter(kernel, nest, groups, found, ...).write(...)        of what `llvm_winograd_windows.winograd` found

    phase 0   weights transformed, G w G':   [point][row panel][channel][MR]
    phase 1   a chunk is a run of blocks of rows of tiles (a tile: 2 x 2 outputs), or where those are few, of parts of the rows
              of the result in one. For each block:
                the image's lines padded, channel by channel, and transformed, B' d B:   [point][channel][tile]
                for each of the 16 points:  row panels * column panels, in registers      [point][row][tile]
                back, A' m A, and the epilogue, on vectors of neighbouring outputs

Lavin and Gray, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308), section 4.1. An output depends on the
elements of its own window alone, so no NaN reaches a neighbour; the transforms of the image and of the result add and subtract,
those of the weights halve, so that small integers stay exact. The sums are over channels and not over channels * 9, which makes
up for what the transforms round: the error against float64 is about that of the products. (F(4 x 4, 3 x 3) has ten times it.)
An infinity minus an infinity is no number, though, where the products might have had a result: a block with a result that is
not finite is computed again, product by product.
"""

from __future__ import annotations

from copy import copy

from flame.compiler.contract_groups import Groups, K, M, N, digits, over
from flame.compiler.index_math import E, ex, var
from flame.compiler.kernel import Kernel, Store
from flame.compiler.llvm_axes import product, size
from flame.compiler.llvm_contract import ContractWriter
from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_padded_copy import CHANNEL, LINE, OUTER, PLACE, Padded
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_rows import begin
from flame.compiler.llvm_text import Function, Int, existing_lanes, repeat, store_tile, suffix, wide
from flame.compiler.llvm_tiling import Tiling, choose_tiling
from flame.compiler.llvm_winograd_windows import Winograd
from flame.compiler.nests import Nest
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget, Phase

Y, X = "winograd_y", "winograd_x"  #: of an output
TAPS = 9
POINTS = 16
BLOCK = 112  #: tiles of a block, about: what is transformed has to stay near, and the weights are read once a block
DEPTH = 128  #: channels summed in registers at a time: a column panel stays in the nearest cache
MOST_CHUNKS = 16
FEW_UNITS = 4  #: blocks below which the rows of the result are cut as well, so that several threads have work
PART_ROWS = 128  #: ... into no less: each part's thread transforms the image for itself
ASIDE = 80  #: elements between points beyond their arrays: 16 streams a multiple of a page apart compete for the cache


class WinogradWriter(ContractWriter):
    """Writes the two phases."""

    def __init__(
        self,
        kernel: Kernel,
        nest: Nest,
        g: Groups,
        found: Winograd,
        schedule: CpuSchedule,
        target: CpuTarget,
        name: str,
        workspace_at: E,
    ):
        super().__init__(kernel, nest, g, schedule, target, name, workspace_at)
        self.found, self.taps = found, 1
        n = {x: size(kernel, e) for x, e in self._extents(kernel).items()}
        self.rows_in_all, self.depth, self.planes, self.height, self.width = (n[x] for x in (M, CHANNEL, OUTER, Y, X))
        self.tile_lines, self.tiles_a_line = -(-self.height // 2), -(-self.width // 2)
        self.lines_in_all = self.planes * self.tile_lines
        self._cut_blocks(schedule, target)
        self._kernels(kernel, nest)
        self._lay_out(workspace_at)

    def _extents(self, kernel: Kernel) -> dict[str, E]:
        w = self.found
        return {
            M: product(kernel, self.groups.m),
            CHANNEL: product(kernel, w.channels),
            OUTER: product(kernel, w.outer),
            Y: kernel.axes[w.lines.along],
            X: kernel.axes[w.places.along],
        }

    def _cut_blocks(self, schedule: CpuSchedule, target: CpuTarget) -> None:
        """Rows of tiles a block; the register tile by what that makes."""
        blocks = max(1, round(self.lines_in_all * self.tiles_a_line / BLOCK))
        if blocks > 1:
            blocks += blocks % 2  # two threads have as many each
        self.lines_a_block = -(-self.lines_in_all // blocks)
        self.blocks = ex(-(-self.lines_in_all // self.lines_a_block))
        self.parts = max(1, min(FEW_UNITS // (self.blocks.const or 1), self.rows_in_all // PART_ROWS))
        self.units = (self.blocks.const or 1) * self.parts
        self.chunk_count = min(self.units, MOST_CHUNKS)
        self.tiles = self.lines_a_block * self.tiles_a_line
        axes = {M: ex(self.rows_in_all), N: ex(self.tiles), K: ex(min(self.depth, DEPTH))}
        self.tiling = choose_tiling(Kernel(self.name, {}, axes, {}, ()), self.dtype, schedule, target)
        t = self.tiling
        self.tiling = Tiling(t.lanes, t.rows, t.vectors, None, 1)
        self.row_panels = -(-self.rows_in_all // t.rows)

    def _kernels(self, kernel: Kernel, nest: Nest) -> None:
        """The kernel by the axes of each part: the padded image, the weights, the result."""
        w, g, extents = self.found, self.groups, self._extents(kernel)
        slides = (w.lines, LINE), (w.places, PLACE)
        of_image = digits(kernel, OUTER, w.outer) | digits(kernel, CHANNEL, w.channels)
        of_rows = digits(kernel, M, g.m)
        at = of_image | of_rows
        for s, axis in slides:  # a tap t of output o reads place o + t, or o + 2 - t
            at |= {s.along: var(axis), s.tap: 2} if s.flipped else {s.along: var(axis), s.tap: 0}
        axes = {OUTER: extents[OUTER], CHANNEL: extents[CHANNEL], LINE: extents[Y] + 2, PLACE: extents[X] + 2, M: extents[M]}
        t = self.tiling
        self.pitch_padded = -(-(2 * (self.tiles_a_line + t.lanes) + 2) // t.lanes) * t.lanes
        self.lines_padded = 2 * self.lines_a_block + 2
        one = self.lines_padded * self.pitch_padded
        lines_of = self.width + 2, self.pitch_padded, one
        slid = over(kernel, axes, at)
        self.padded = Padded(slid, g.right, self.dtype, t.lanes, *lines_of, self._value)

        at = digits(kernel, K, (*w.channels, w.lines.tap, w.places.tap)) | of_rows
        at |= {s.tap: ex(2) - at[s.tap] for s, _ in slides if s.flipped}
        axes = {M: extents[M], K: extents[CHANNEL] * TAPS} | {a: kernel.axes[a] for a in g.n}
        self.weights = over(kernel, axes, at)

        added = [t for t in nest.stores if not any(t is s for s in kernel.statements)]
        whole = Kernel(kernel.name, kernel.buffers, kernel.axes, kernel.symbols, (*kernel.statements, *added), kernel.values)
        at = digits(kernel, OUTER, w.outer) | of_rows | {w.lines.along: var(Y), w.places.along: var(X)}
        axes = {OUTER: extents[OUTER], M: extents[M], Y: extents[Y], X: extents[X]} | {a: kernel.axes[a] for a in g.k}
        self.out = over(whole, axes, at)
        pairs = [(a, b) for a, b in zip(whole.statements, self.out.statements, strict=True) if isinstance(b, Store)]
        self.stores = [b for t in nest.stores for a, b in pairs if a is t and isinstance(b, Store)]

    def _lay_out(self, at: E) -> None:
        t, item = self.tiling, self.dtype.itemsize

        def rounded(n: int) -> int:
            return -(-n // 64) * 64

        line = 64 // item
        self.pitch = -(-(self.tiles + t.lanes) // line) * line
        self.pitch += line * (self.pitch // line % 2 == 0)  # an odd number of lines, so that they spread over the cache
        self.panel = -(-(self.depth * t.rows + t.lanes) // line) * line
        self.weights_point = self.row_panels * self.panel + ASIDE
        self.image_point = self.depth * self.pitch + ASIDE
        self.result_point = self.row_panels * t.rows * self.pitch + ASIDE
        weights = rounded(POINTS * self.weights_point * item)
        self.piece_bytes = rounded((self.lines_padded * self.pitch_padded + t.lanes) * item)
        self.image_bytes = rounded(POINTS * self.image_point * item)
        own = self.piece_bytes + self.image_bytes + rounded(POINTS * self.result_point * item)
        elements = self.rows_in_all * self.depth * TAPS
        self.packing_cost = 2e-3 * elements
        self.packing_chunks = max(1, min(self.row_panels, MOST_CHUNKS, int(self.packing_cost / self.schedule.chunk_us)))
        self.packed_bytes = rounded((self.depth * TAPS + t.lanes) * t.rows * item + t.lanes * item)
        self.own_bytes = own
        self.weights_at, self.own_at = at, at + weights
        self.workspace_end = self.own_at + max(own * self.chunk_count, self.packed_bytes * self.packing_chunks)

    def describe(self) -> str:
        t = self.tiling
        blocks = f"{self.blocks} blocks of {self.lines_a_block} rows of {self.tiles_a_line}"
        rows = f" and {self.parts} parts of the result's rows" if self.parts > 1 else ""
        return f"Winograd's F(2 x 2, 3 x 3), {blocks}{rows}, tiles of {t.rows} x {t.vectors} vectors of {t.lanes}"

    # -- phases

    def write(self, places: dict[str, E], external: int) -> tuple[list[Function], list[Phase], list[str]]:
        """The functions, phases and constants."""
        rest = self.tiles % self.tiling.columns
        self.tail_vectors = -(-rest // self.tiling.lanes)
        functions = [self._product(self.tiling.vectors), self._scatter()]
        if 0 < self.tail_vectors < self.tiling.vectors:
            functions.append(self._product(self.tail_vectors))
        phases, constants = [], []
        for part, kernel, write in (("weights", self.weights, self._weights), ("main", self.out, self._main)):
            entry = begin(f"{self.name}_{part}", kernel, places, self.target, external)
            f = entry.function
            p = Point(kernel, f, entry.machine, self.tiling.lanes, entry.buffers, entry.symbols, f.name)
            phases.append(write(p, f.load("ptr", f.address("%bufs", external, "ptr"), 8)))
            functions.append(f)
            constants += p.globals()
        return functions, phases, constants

    def _weights(self, p: Point, base: str) -> Phase:
        """Phase 0: a panel of rows is packed tap by tap, then transformed. A chunk is a run of panels."""
        f, t, item = p.function, self.tiling, self.dtype.itemsize
        v = wide(self.t, t.lanes)
        packer = copy(self)
        packer.kernel = packer.tapped = self.weights
        chunks = self.packing_chunks
        low, high = (f.div(f.mul(x, self.row_panels), chunks) for x in ("%begin", "%end"))
        to = f.address(base, p.integer_of(self.weights_at), "i8")
        packed = f.address(f.address(base, p.integer_of(self.own_at), "i8"), f.mul("%begin", self.packed_bytes), "i8")
        half = repeat("0.5", self.t, t.lanes)

        def halves(a: str, b: str, c: str) -> list[str]:
            """G times three elements."""
            outer = f.emit(f"fmul {v} {f.emit(f'fadd {v} {a}, {c}')}, {half}")
            middle = f.emit(f"fmul {v} {b}, {half}")
            return [a, f.emit(f"fadd {v} {outer}, {middle}"), f.emit(f"fsub {v} {outer}, {middle}"), c]

        def panel(i: str, _: list[str]) -> list[str]:
            packer._pack(p, self.groups.left, M, f.mul(i, t.rows), t.rows, packed, 0, self.depth * TAPS)
            there = f.address(to, f.mul(i, self.panel), self.t)

            def channel(c: str, _: list[str]) -> list[str]:
                read, write = (f.address(x, f.mul(c, n * t.rows), self.t) for x, n in ((packed, TAPS), (there, 1)))
                for j in range(0, t.rows, t.lanes):
                    w = [f.load(v, f.address(read, k * t.rows + j, self.t), item) for k in range(TAPS)]
                    columns = [halves(*w[x::3]) for x in range(3)]
                    for y in range(4):
                        for x, value in enumerate(halves(*(column[y] for column in columns))):
                            place = f.address(write, (4 * y + x) * self.weights_point + j, self.t)
                            f.store(v, value, place, item)
                return []

            f.loop(0, self.depth, 1, [], channel)
            return []

        with p.scope():
            f.loop(low, high, 1, [], panel)
        return Phase(f.name, ex(chunks), self.packing_cost)

    def _main(self, p: Point, base: str) -> Phase:
        """Phase 1: a chunk is a run of parts of blocks; it transforms the image of a block once."""
        f = p.function
        own = f.address(f.address(base, p.integer_of(self.own_at), "i8"), f.mul("%begin", self.own_bytes), "i8")
        weights = f.address(base, p.integer_of(self.weights_at), "i8")
        image = f.address(own, self.piece_bytes, "i8")
        result = f.address(image, self.image_bytes, "i8")
        wrong = f.scratch(self.t, self.tiling.lanes)

        low, high = (f.div(f.mul(x, self.units), self.chunk_count) for x in ("%begin", "%end"))

        def unit(i: str, _: list[str]) -> list[str]:
            first = f.mul(f.div(i, self.parts), self.lines_a_block)
            last = f.least(f.add(first, self.lines_a_block), self.lines_in_all)
            part = f.rem(i, self.parts)
            if self.parts == 1:
                self._image(p, own, image, first, last)
            else:
                new = f.emit(f"or i1 {f.emit(f'icmp eq i64 {part}, 0')}, {f.emit(f'icmp eq i64 {i}, {low}')}")
                with p.scope():
                    f.when(new, lambda: self._image(p, own, image, first, last))
            panels = [f.div(f.mul(x, self.row_panels), self.parts) for x in (part, f.add(part, 1))]
            rows = f.mul(panels[0], self.tiling.rows), f.least(f.mul(panels[1], self.tiling.rows), self.rows_in_all)
            self._products(f, weights, image, result, (panels[0], panels[1]))
            self._results(p, result, rows, first, last, wrong)
            self._again_where_not_finite(p, rows, first, last, wrong)
            return []

        with p.scope():
            f.loop(low, high, 1, [], unit)
        cost = 2e-5 * POINTS * self.rows_in_all * self.depth * self.lines_in_all * self.tiles_a_line
        return Phase(f.name, ex(self.chunk_count), 1.3 * cost)

    def _image(self, p: Point, piece: str, image: str, first: Int, last: Int) -> None:
        """The lines that a block reads, padded and transformed channel by channel."""
        f = p.function

        def plane(b: str, _: list[str]) -> list[str]:
            low = f.most(f.sub(first, f.mul(b, self.tile_lines)), 0)
            high = f.least(f.sub(last, f.mul(b, self.tile_lines)), self.tile_lines)
            line = f.mul(low, 2)
            lines = f.least(f.add(f.mul(f.sub(high, low), 2), 2), f.sub(self.height + 2, line))
            at = f.mul(f.sub(f.add(f.mul(b, self.tile_lines), low), first), self.tiles_a_line)

            def channel(c: str, _: list[str]) -> list[str]:
                self.padded.copy(p, piece, b, line, lines, (c, f.add(c, 1)))
                to = f.address(image, f.add(f.mul(c, self.pitch), at), self.t)

                def tiles(y: str, _: list[str]) -> list[str]:
                    read = f.address(piece, f.mul(y, 2 * self.pitch_padded), self.t)
                    write = f.address(to, f.mul(y, self.tiles_a_line), self.t)
                    f.do(f"call void @{self.name}_scatter(ptr {read}, ptr {write})")
                    return []

                f.loop(0, f.sub(high, low), 1, [], tiles)
                return []

            f.loop(0, self.depth, 1, [], channel)
            return []

        with p.scope():
            end = f.add(f.div(f.sub(last, 1), self.tile_lines), 1)
            f.loop(f.div(first, self.tile_lines), end, 1, [], plane)

    def _scatter(self) -> Function:
        """A row of tiles, from four padded lines to the 16 points. The tiles of a whole vector stand in an order that costs no
        exchange between parts of a register, which `_back` undoes; those of the last one, where the next row begins within
        it, in their own."""
        t, item = self.tiling, self.dtype.itemsize
        f = Function(f"{self.name}_scatter", [("ptr noalias", "piece"), ("ptr noalias", "to")], attributes="nounwind noinline",
                     linkage="internal")  # fmt: skip
        v = wide(self.t, t.lanes)

        def differences(d: list[str]) -> list[str]:
            """B' times four elements."""
            return [
                f.emit(f"fsub {v} {d[0]}, {d[2]}"), f.emit(f"fadd {v} {d[1]}, {d[2]}"),
                f.emit(f"fsub {v} {d[2]}, {d[1]}"), f.emit(f"fsub {v} {d[1]}, {d[3]}"),
            ]  # fmt: skip

        def tiles(x: Int, orders: list[list[int]]) -> list[str]:
            rows = []
            for y in range(4):
                d = []
                for offset in (0, 2):
                    place = f.address("%piece", f.mul(x, 2), self.t)
                    place = f.address(place, y * self.pitch_padded + offset, self.t)
                    a, b = (f.load(v, f.address(place, j * t.lanes, self.t), item) for j in (0, 1))
                    d += [f.shuffle(self.t, t.lanes, a, b, order) for order in orders]
                rows.append(differences(d))
            to = f.address("%to", x, self.t)
            for j in range(4):
                for i, value in enumerate(differences([row[j] for row in rows])):
                    f.store(v, value, f.address(to, (4 * i + j) * self.image_point, self.t), item)
            return []

        whole = self.tiles_a_line // t.lanes * t.lanes
        f.loop(0, whole, t.lanes, [], lambda x, _: tiles(x, _every_second(t.lanes, 4)))
        if whole < self.tiles_a_line:
            tiles(whole, _every_second(t.lanes, t.lanes))
        return f

    def _products(self, f: Function, weights: str, image: str, result: str, panels: tuple[Int, Int]) -> None:
        """At each point, some panels of rows * tiles."""
        t = self.tiling
        whole = self.tiles // t.columns

        def some(point: str, k: int, deep: int) -> None:
            left = f.address(f.address(weights, f.mul(point, self.weights_point), self.t), k * t.rows, self.t)
            right = f.address(f.address(image, f.mul(point, self.image_point), self.t), k * self.pitch, self.t)
            to = f.address(result, f.mul(point, self.result_point), self.t)

            def column(at: Int, vectors: int) -> None:
                there, of_tile = f.address(right, at, self.t), f.address(to, at, self.t)

                def row(i: str, _: list[str]) -> list[str]:
                    panel = f.address(left, f.mul(i, self.panel), self.t)
                    place = f.address(of_tile, f.mul(i, t.rows * self.pitch), self.t)
                    f.do(f"call void @{self.name}_product{vectors}(ptr {panel}, ptr {there}, ptr {place}, i64 {self.pitch}, "
                         f"i64 {deep}, i64 {k})")  # fmt: skip
                    return []

                f.loop(*panels, 1, [], row)

            def columns(j: str, _: list[str]) -> list[str]:
                column(f.mul(j, t.columns), t.vectors)
                return []

            f.loop(0, whole, 1, [], columns)
            if self.tail_vectors:
                column(whole * t.columns, self.tail_vectors)

        def point(i: str, _: list[str]) -> list[str]:
            for k in range(0, self.depth, DEPTH):
                some(i, k, min(DEPTH, self.depth - k))
            return []

        f.loop(0, POINTS, 1, [], point)

    def _product(self, vectors: int) -> Function:
        """A register tile: rows of `to` = (goes_on ? rows of `to` : 0) + left panel * right columns, over `deep` channels."""
        t, item = self.tiling, self.dtype.itemsize
        parameters = [("ptr noalias", x) for x in ("left", "right", "to")]
        parameters += [("i64", x) for x in ("to_row", "deep", "goes_on")]
        f = Function(f"{self.name}_product{vectors}", parameters, attributes="nounwind noinline", linkage="internal")
        v, together = wide(self.t, t.lanes), 4

        def step(k: Int, offset: int, sums: list[str]) -> list[str]:
            line = f.address(f.address("%right", f.mul(k, self.pitch), self.t), offset * self.pitch, self.t)
            columns = [f.load(v, f.address(line, j * t.lanes, self.t), t.lanes * item) for j in range(vectors)]
            here = f.address("%left", f.mul(k, t.rows), self.t)
            out = []
            for i in range(t.rows):
                x = f.splat(f.load(self.t, f.address(here, offset * t.rows + i, self.t), item), self.t, t.lanes)
                for j, y in enumerate(columns):
                    given: list[tuple[str, Int]] = [(v, x), (v, y), (v, sums[i * vectors + j])]
                    out.append(f.call(v, f"llvm.fma.{suffix(self.t, t.lanes)}", given))
            return out

        def many(k: str, sums: list[str]) -> list[str]:
            for u in range(together):
                sums = step(k, u, sums)
            return sums

        zero = [(v, "zeroinitializer")] * (t.rows * vectors)
        full = f.emit(f"and i64 %deep, -{together}")
        sums = f.loop(0, full, together, zero, many)
        sums = f.loop(full, "%deep", 1, [(v, s) for s in sums], lambda k, sums: step(k, 0, sums))
        store_tile(f, sums, t.rows, self.t, t.lanes)
        return f

    # -- results

    def _results(self, p: Point, result: str, rows: tuple[Int, Int], first: Int, last: Int, wrong: str) -> None:
        """Back to outputs, row by row of the result, each with its epilogue; `wrong` becomes NaN where one is not finite."""
        f, t, item = p.function, self.tiling, self.dtype.itemsize
        v = wide(self.t, t.lanes)
        f.store(v, "zeroinitializer", wrong, t.lanes * item)
        reach = 2 * t.lanes
        whole = self.width // reach * t.lanes  # tiles in vectors of which all outputs exist
        rest, all_tiles = self.width % reach, self.tiles_a_line % t.lanes == 0

        def row(o: str, _: list[str]) -> list[str]:
            p.bind(M, Linear(o))
            of_row = f.address(result, f.mul(o, self.pitch), self.t)

            def tiles(u: str, _: list[str]) -> list[str]:
                p.bind(OUTER, Linear(f.div(u, self.tile_lines)))
                y = f.mul(f.rem(u, self.tile_lines), 2)
                here = f.address(of_row, f.mul(f.sub(u, first), self.tiles_a_line), self.t)

                def some(x: str, _: list[str]) -> list[str]:
                    self._back(p, f.address(here, x, self.t), y, f.mul(x, 2), reach, True, wrong)
                    return []

                with p.scope():
                    f.loop(0, whole, t.lanes, [], some)
                if rest:
                    with p.scope():
                        self._back(p, f.address(here, whole, self.t), y, 2 * whole, rest, all_tiles, wrong)
                return []

            with p.scope():
                f.loop(first, last, 1, [], tiles)
            return []

        with p.scope():
            f.loop(*rows, 1, [], row)

    def _back(self, p: Point, tile: str, y: Int, x: Int, count: int, whole: bool, wrong: str) -> None:
        """`count` outputs of two lines from vectors of the 16 points, whose tiles all exist or not."""
        f, t, item = p.function, self.tiling, self.dtype.itemsize
        lanes, v = t.lanes, wide(self.t, t.lanes)

        def sums(m: list[str]) -> list[str]:
            """A' times four elements."""
            a = f.emit(f"fadd {v} {f.emit(f'fadd {v} {m[0]}, {m[1]}')}, {m[2]}")
            return [a, f.emit(f"fsub {v} {f.emit(f'fsub {v} {m[1]}, {m[2]}')}, {m[3]}")]

        columns = []
        for j in range(4):
            of_column = [f.address(tile, (4 * i + j) * self.result_point, self.t) for i in range(4)]
            columns.append(sums([f.load(v, place, item) for place in of_column]))
        lines = [sums([column[i] for column in columns]) for i in range(2)]
        part = 4 if whole else lanes

        def line(i: int) -> None:
            even, odd = lines[i]
            for j, order in enumerate(_in_turn(lanes, part)):
                rest = count - j * lanes
                if rest <= 0:
                    continue
                value = f.shuffle(self.t, lanes, even, odd, order)
                self._seen(f, value, rest, wrong)
                with p.scope():
                    p.bind(Y, Linear(f.add(y, i)))
                    p.bind(X, Linear(f.add(x, j * lanes), 1, None, True))
                    if rest < lanes:
                        p.tail = existing_lanes(f, 0, rest, lanes)
                    self._finish(p, value)

        line(0)
        if self.height % 2:
            with p.scope():
                f.when(f.emit(f"icmp slt i64 {y}, {self.height - 1}"), lambda: line(1))
        else:
            line(1)

    def _seen(self, f: Function, value: str, rest: int, wrong: str) -> None:
        """wrong += value * 0, of the lanes that exist."""
        t = self.tiling
        v, align = wide(self.t, t.lanes), t.lanes * self.dtype.itemsize
        if rest < t.lanes:
            value = f.shuffle(self.t, t.lanes, value, "zeroinitializer", [i if i < rest else t.lanes for i in range(t.lanes)])
        given: list[tuple[str, Int]] = [(v, value), (v, "zeroinitializer"), (v, f.load(v, wrong, align))]
        f.store(v, f.call(v, f"llvm.fma.{suffix(self.t, t.lanes)}", given), wrong, align)

    def _finish(self, p: Point, value: str) -> None:
        """The epilogue at a point."""
        p.define(self.groups.contract.name, Value(value, self.dtype, self.tiling.lanes))
        values = [p.need(s.value) for s in self.stores]
        for s, x in zip(self.stores, values, strict=True):
            p.store(s, x)

    def _again_where_not_finite(self, p: Point, rows: tuple[Int, Int], first: Int, last: Int, wrong: str) -> None:
        """A block's results product by product, if some were not finite."""
        f, t = p.function, self.tiling
        v = wide(self.t, t.lanes)
        x = f.load(v, wrong, t.lanes * self.dtype.itemsize)
        some = f.call("i1", f"llvm.vector.reduce.or.v{t.lanes}i1",
                      [(wide("i1", t.lanes), f.emit(f"fcmp uno {v} {x}, {x}"))])  # fmt: skip

        def again() -> None:
            with p.scope():
                f.loop(*rows, 1, [], row)

        def row(o: str, _: list[str]) -> list[str]:
            p.bind(M, Linear(o))
            with p.scope():
                f.loop(first, last, 1, [], tiles)
            return []

        def tiles(u: str, _: list[str]) -> list[str]:
            p.bind(OUTER, Linear(f.div(u, self.tile_lines)))
            y = f.mul(f.rem(u, self.tile_lines), 2)
            with p.scope():
                f.loop(y, f.least(f.add(y, 2), self.height), 1, [], line)
            return []

        def line(y: str, _: list[str]) -> list[str]:
            p.bind(Y, Linear(y))

            def vector_at(x: str, _: list[str]) -> list[str]:
                p.tail = existing_lanes(f, x, self.width, t.lanes)
                (total,) = f.loop(0, self.depth, 1, [(v, "zeroinitializer")], lambda c, sums: channel(c, sums, y, x))
                with p.scope():
                    p.bind(X, Linear(x, 1, None, True))
                    self._finish(p, total)
                return []

            with p.scope():
                f.loop(0, self.width, t.lanes, [], vector_at)
            return []

        def channel(c: str, total: list[str], y: str, x: str) -> list[str]:
            for tap in range(TAPS):
                a, b = p.fork(), p.fork()
                a.kernel, b.kernel = self.weights, self.padded.kernel
                for q in (a, b):
                    q.open()
                a.bind(K, Linear(f.add(f.mul(c, TAPS), tap)))
                b.bind(CHANNEL, Linear(c))
                b.bind(LINE, Linear(f.add(y, tap // 3)))
                b.bind(PLACE, Linear(f.add(x, tap % 3), 1))
                w, image = self._value(a, self.groups.left), self._value(b, self.groups.right)
                given: list[tuple[str, Int]] = [(v, w.text), (v, image.text), (v, total[0])]
                total = [f.call(v, f"llvm.fma.{suffix(self.t, t.lanes)}", given)]
            return total

        with p.scope():
            f.when(some, again)


def _every_second(lanes: int, part: int) -> list[list[int]]:
    """The even, and the odd elements of two vectors: within parts of a register, those of the first before those of the second."""
    half = part // 2
    from_each = [i // part * part + 2 * (i % half) + (lanes if i % part >= half else 0) for i in range(lanes)]
    return [from_each, [i + 1 for i in from_each]]


def _in_turn(lanes: int, part: int) -> list[list[int]]:
    """Back: the elements of two vectors in turn, as two vectors, where their order is that of `_every_second`."""
    order = _every_second(lanes, part)[0]
    lane_of = {element // 2: lane for lane, element in enumerate(order)}
    every = [lane_of[i // 2] + (lanes if i % 2 else 0) for i in range(2 * lanes)]
    return [every[:lanes], every[lanes:]]
