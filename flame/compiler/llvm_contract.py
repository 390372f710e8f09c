"""Contractions as tiles of registers: matrix products, batched ones, and convolutions, with any prologue and epilogue.

The axes of a contraction fall into four groups by the domains of its factors: m (left only), n (right only), batch (both) and k
(summed). Each group is made one axis (`grouped`), so that everything below speaks of left[batch, m, k] * right[batch, n, k];
which addresses that means is for index simplification to find out. n holds the result's unit stride.

    phase 0   left packed once:    panels of MR rows,    [batch][panel][k][MR]      (none where it is read in place)
    phase 1   for each block of panels of n (and, where those are few, of rows); a chunk is a run of blocks:
                for each block of k:   right packed:     [panel][k][NR], small enough to stay in L2 and used at once
                  for each left panel, for each right panel:   tile += left panel * right panel, in registers
                  after the last block of k:                   the epilogue, on the tile

Prologues run as elements are packed, once each. Rows and columns beyond the edge are packed as whatever their masked loads
give; what they lead to is never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flame.compiler.contract_groups import BATCH, REST, TAP, Groups, K, M, N, by_taps, grouped, taps_of
from flame.compiler.index_math import E, ex
from flame.compiler.kernel import Kernel, Store
from flame.compiler.llvm_axes import size, unit_axes
from flame.compiler.llvm_in_place import InPlace, in_lines, left_in_place, right_in_place
from flame.compiler.llvm_machine import LlvmMachine, Value
from flame.compiler.llvm_pairs import in_pairs, multiply_add, pair_lines
from flame.compiler.llvm_point import Linear, Point
from flame.compiler.llvm_rows import begin
from flame.compiler.llvm_text import Function, Int, element, existing_lanes, suffix, transpose, wide
from flame.compiler.llvm_tiling import MOST_CHUNKS, Tiling, choose_tiling, chunks_for
from flame.compiler.nests import Nest, loads_of
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget, Phase


class ContractWriter:
    """Writes the two phases of a contraction."""

    def __init__(
        self, kernel: Kernel, nest: Nest, g: Groups, schedule: CpuSchedule, target: CpuTarget, name: str, workspace_at: E
    ):
        self.groups, self.target, self.schedule, self.name = g, target, schedule, name
        self.kernel = grouped(kernel, g)
        self.stores = [s for s in self.kernel.statements if isinstance(s, Store)]
        self.stores = [self._same_store(kernel, t) for t in nest.stores]
        self.dtype = g.contract.dtype
        self.taps = taps_of(kernel, g)
        self.tiling = choose_tiling(self.kernel, self.dtype, schedule, target, self.taps)
        if self.tiling.depth is not None and self.tiling.depth % self.taps:
            self.taps = 1
        self.tapped = by_taps(self.kernel, self.taps) if self.taps > 1 else self.kernel
        self.t = element(self.dtype)
        self.left = left_in_place(self.kernel, g.left, self.dtype, target)
        self.right = right_in_place(self.kernel, g.right, self.dtype, target)
        self.pairs = in_pairs(self.kernel, g.left, g.right, self.dtype, target)
        self.step = 2 if self.pairs else 1  #: of k, in a line of a packed panel
        self.lines = in_lines(self.kernel, g.right, self.dtype) if self.right is None else None
        k, t = self.kernel, self.tiling
        lanes, item = t.lanes, self.dtype.itemsize
        self.left_panels = (k.axes[M] + (t.rows - 1)) // t.rows
        self.right_panels = (k.axes[N] + (t.columns - 1)) // t.columns
        self.left_panel = (k.axes[K] + lanes) * t.rows  # elements; each panel has room for what full vectors write past it
        self._cut()
        depth = ex(t.depth) if t.depth is not None else k.axes[K]
        self.right_panel = (depth + lanes) * t.columns
        tiles = self.block_rows * t.panels * (t.rows * t.columns) if t.depth is not None else ex(t.rows * t.columns)
        self.own = _rounded((self.right_panel * t.panels + tiles) * item)
        self.left_bytes = _rounded(k.axes[BATCH] * self.left_panels * self.left_panel * item + lanes * item)
        if self.left is not None:
            self.left_bytes = ex(0)
        self.left_at = workspace_at
        self.own_at = workspace_at + self.left_bytes
        self.blocks = k.axes[BATCH] * self.column_blocks * self.row_blocks
        few, blocks = MOST_CHUNKS // 4, self.blocks.const
        self.chunks = ex(few if blocks is None else max(1, blocks if blocks <= few else min(blocks, self.wanted)))
        self.workspace_end = self.own_at + self.own * self.chunks

    def _same_store(self, before: Kernel, t: Store) -> Store:
        """A store of the kernel, or one that was added to its nest, over the grouped axes."""
        stores = [s for s in before.statements if isinstance(s, Store)]
        after = [s for s in self.kernel.statements if isinstance(s, Store)]
        for a, b in zip(stores, after, strict=True):
            if a is t:
                return b
        added = Kernel(before.name, before.buffers, before.axes, before.symbols, (*before.statements, t), before.values)
        return [s for s in grouped(added, self.groups).statements if isinstance(s, Store)][-1]

    def _cut(self) -> None:
        """Blocks of panels: as large as L2 allows, smaller where that makes too few chunks."""
        k, t = self.kernel, self.tiling
        batch, lefts, rights = k.axes[BATCH].const, self.left_panels.const, self.right_panels.const
        self.block_rows: E = self.left_panels  # left panels a chunk
        panels = t.panels
        self.row_blocks: E = ex(1)
        self.wanted = MOST_CHUNKS  #: chunks; what each packs has a place of its own, and a few places stay near
        depth = k.axes[K].const
        if batch is not None and lefts is not None and rights is not None and depth is not None:
            work = 2e-5 * batch * lefts * t.rows * rights * t.columns * depth  # microseconds at 100 GF/s
            self.wanted = wanted = chunks_for(work, self.schedule)
            blocks = -(-rights // panels)
            while panels > 1 and batch * blocks < wanted and (panels * t.columns > 64 or batch * blocks == 1):
                panels = -(-panels // 2)
                blocks = -(-rights // panels)
            if batch * blocks < wanted and lefts > 1:
                cuts = min(lefts, -(-wanted // max(1, batch * blocks)), max(1, lefts * t.rows // 96))
                each = -(-lefts // cuts)
                self.block_rows, self.row_blocks = ex(each), ex(-(-lefts // each))
        self.tiling = Tiling(t.lanes, t.rows, t.vectors, t.depth, max(1, min(panels, rights) if rights else panels))
        self.column_blocks = (self.right_panels + (self.tiling.panels - 1)) // self.tiling.panels

    def describe(self) -> str:
        t = self.tiling
        blocks = f"k by {t.depth}" if t.depth is not None else "all of k"
        where = [side for side, found in (("left", self.left), ("right", self.right)) if found is not None]
        in_place = f", {' and '.join(where)} in place" if where else ""
        blocks += f", in pairs of {self.pairs}" if self.pairs else ""
        return f"tiles of {t.rows} x {t.vectors} vectors of {t.lanes}, {blocks}, {t.panels} panels a block{in_place}"

    # -- phases

    def write(self, places: dict[str, E], external: int) -> tuple[list[Function], list[Phase], list[str]]:
        """The functions, phases and constants."""
        tile = self._tile_function()
        functions, phases, constants = [tile], [], []
        for suffix_, write in (("pack", self._pack_left), ("main", self._main)):
            if suffix_ == "pack" and self.left is not None:
                continue
            entry = begin(f"{self.name}_{suffix_}", self.kernel, places, self.target, external)
            p = Point(
                self.kernel, entry.function, entry.machine, self.tiling.lanes, entry.buffers, entry.symbols, entry.function.name
            )
            base = entry.function.load("ptr", entry.function.address("%bufs", external, "ptr"), 8)
            phases.append(write(p, base))
            functions.append(entry.function)
            constants += p.globals()
        return functions, phases, constants

    def _pack_left(self, p: Point, base: str) -> Phase:
        """Phase 0: a chunk is a run of panels."""
        f, k, t = p.function, self.kernel, self.tiling
        panels = p.integer_of(self.left_panels)
        total = k.axes[BATCH] * self.left_panels
        elements = k.axes[BATCH] * k.axes[M] * k.axes[K]
        cost = 1e-3 * size(k, elements)
        chunks = ex(1)
        if total.const is not None:
            chunks = ex(max(1, min(total.const, int(cost / self.schedule.chunk_us), self.schedule.max_chunks)))
        elif cost > 0:
            chunks = 1 + elements // 40000
        count, all_panels = p.integer_of(chunks), p.integer_of(total)
        low, high = f.div(f.mul("%begin", all_panels), count), f.div(f.mul("%end", all_panels), count)
        left = f.address(base, p.integer_of(self.left_at), "i8")
        length = p.integer_of(self.left_panel)

        def one(i: str, _: list[str]) -> list[str]:
            batch, panel = f.div(i, panels), f.rem(i, panels)
            p.bind(BATCH, Linear(batch))
            target = f.address(left, f.mul(i, length), self.t)
            depth = p.integer_of(k.axes[K])
            self._pack(p, self.groups.left, M, f.mul(panel, t.rows), t.rows, target, 0, depth)
            if self.pairs:
                pair_lines(f, self.pairs, target, depth, t.rows, t.lanes)
            return []

        with p.scope():
            f.loop(low, high, 1, [], one)
        return Phase(f.name, chunks, cost)

    def _main(self, p: Point, base: str) -> Phase:
        """Phase 1: a chunk is a run of blocks, and has a place of its own for what it packs."""
        f, k, t = p.function, self.kernel, self.tiling
        left = f.address(base, p.integer_of(self.left_at), "i8")
        own = f.address(f.address(base, p.integer_of(self.own_at), "i8"), f.mul("%begin", p.integer_of(self.own)), "i8")
        right = own
        tiles = f.address(own, p.integer_of(self.right_panel * t.panels), self.t)
        column_blocks, row_blocks = p.integer_of(self.column_blocks), p.integer_of(self.row_blocks)
        lefts, rights = p.integer_of(self.left_panels), p.integer_of(self.right_panels)
        depth = p.integer_of(k.axes[K])
        cost = 2.5e-5 * size(k, k.axes[BATCH] * k.axes[M] * k.axes[N] * k.axes[K])  # as measured, 80 GF/s on one core

        def block(i: str, _: list[str]) -> list[str]:
            row_block, rest = f.rem(i, row_blocks), f.div(i, row_blocks)
            column_block, batch = f.rem(rest, column_blocks), f.div(rest, column_blocks)
            p.bind(BATCH, Linear(batch))
            first_left = f.mul(row_block, p.integer_of(self.block_rows))
            last_left = f.least(f.add(first_left, p.integer_of(self.block_rows)), lefts)
            first_right = f.mul(column_block, t.panels)
            last_right = f.least(f.add(first_right, t.panels), rights)
            panels_of_batch = f.address(left, f.mul(f.mul(batch, lefts), p.integer_of(self.left_panel)), self.t)
            b = Block(panels_of_batch, right, tiles, first_left, last_left, first_right, last_right)
            step = t.depth
            if step is None:
                self._block(p, b, 0, depth, True)
                return []

            def of_depth(k0: str, _: list[str]) -> list[str]:
                self._block(p, b, k0, f.least(f.sub(depth, k0), step), False)
                return []

            with p.scope():
                f.loop(0, depth, step, [], of_depth)
            return []

        blocks, chunks = p.integer_of(self.blocks), p.integer_of(self.chunks)
        low, high = f.div(f.mul("%begin", blocks), chunks), f.div(f.mul("%end", blocks), chunks)
        with p.scope():
            f.loop(low, high, 1, [], block)
        return Phase(f.name, self.chunks, cost)

    def _block(self, p: Point, b: Block, k0: Int, kc: Int, whole: bool) -> None:
        """One block of k: pack the right panels, then every left panel with every right one."""
        f, t = p.function, self.tiling
        length = p.integer_of(self.right_panel)

        def packed_at(panel: Int) -> str:
            return f.address(b.right, f.mul(f.sub(panel, b.first_right), length), self.t)

        def right_at(panel: str) -> tuple[str, Int]:
            """Where a panel begins, and its stride along k."""
            if self.right is None:
                return packed_at(panel), t.columns
            here = p.place(self.right.load, {N: f.mul(panel, t.columns), K: k0})
            if not self._right_has_tail:
                return here, self.right.depth
            whole = f.emit(f"icmp slt i64 {panel}, {full_panels}")
            pointer = f.emit(f"select i1 {whole}, ptr {here}, ptr {packed_at(panel)}")
            return pointer, f.emit(f"select i1 {whole}, i64 {self.right.depth}, i64 {t.columns}")

        def pack(j: str, _: list[str]) -> list[str]:
            self._pack(p, self.groups.right, N, f.mul(j, t.columns), t.columns, packed_at(j), k0, kc)
            if self.pairs:
                pair_lines(f, self.pairs, packed_at(j), kc, t.columns, t.lanes)
            return []

        full_panels = f.div(p.integer_of(self.kernel.axes[N]), t.columns)
        if self.right is None or self._right_has_tail:
            with p.scope():
                first = b.first_right if self.right is None else f.most(b.first_right, full_panels)
                if self.lines is not None:
                    whole_until = f.least(b.last_right, full_panels)
                    self._pack_lines(p, self.lines, first, whole_until, right_at_first=packed_at(first), k0=k0, kc=kc)
                    first = f.most(first, whole_until)
                f.loop(first, b.last_right, 1, [], pack)
        last = True if whole else f.emit(f"icmp sge i64 {f.add(k0, kc)}, {p.integer_of(self.kernel.axes[K])}")
        goes_on: Int = 0
        if not whole:
            goes_on = f.emit(f"zext i1 {f.emit(f'icmp sgt i64 {k0}, 0')} to i64")

        def rows(i: str, _: list[str]) -> list[str]:
            if self.left is not None:
                panel = p.place(self.left.load, {M: f.mul(i, t.rows), K: k0})
                rows_here = f.least(t.rows, f.sub(p.integer_of(self.kernel.axes[M]), f.mul(i, t.rows)))
            else:
                start = f.mul(i, p.integer_of(self.left_panel))
                panel, rows_here = f.address(b.left, f.add(start, f.mul(f.div(k0, self.step), t.rows)), self.t), t.rows

            def columns(j: str, _: list[str]) -> list[str]:
                right, stride = right_at(j)
                tile = b.tiles
                if not whole:
                    number = f.add(f.mul(f.sub(i, b.first_left), t.panels), f.sub(j, b.first_right))
                    tile = f.address(b.tiles, f.mul(number, t.rows * t.columns), self.t)
                deep = f.div(f.add(kc, self.step - 1), self.step)
                more = f"i64 {deep}, i64 {goes_on}, i64 {stride}, i64 {rows_here}"
                f.do(f"call void @{self.name}_tile(ptr {panel}, ptr {right}, ptr {tile}, {more})")
                if last is True:
                    self._epilogue(p, i, j, tile)
                else:
                    with p.scope():
                        f.when(str(last), lambda: self._epilogue(p, i, j, tile))
                return []

            with p.scope():
                f.loop(b.first_right, b.last_right, 1, [], columns)
            return []

        with p.scope():
            f.loop(b.first_left, b.last_left, 1, [], rows)

    def _tile_function(self) -> Function:
        """tile = (goes_on ? tile : 0) + left panel * right panel, over kc."""
        t, d = self.tiling, self.dtype
        parameters = [
            ("ptr noalias", "left"),
            ("ptr noalias", "right"),
            ("ptr noalias", "tile"),
            ("i64", "kc"),
            ("i64", "goes_on"),
        ]
        parameters += [("i64", "stride"), ("i64", "rows")]  # along k, of the right factor; rows of the left one
        f = Function(f"{self.name}_tile", parameters, attributes="nounwind noinline", linkage="internal")
        v = wide(self.t, t.lanes)
        align = t.lanes * d.itemsize
        stride: Int = t.columns if self.right is None else "%stride" if self._right_has_tail else self.right.depth
        align_right = align if self.right is None else d.itemsize
        rows_known = self.left is None or (self.kernel.axes[M].const or 1) % t.rows == 0
        along, depth = (1, t.rows) if self.left is None else (self.left.along, self.left.depth)
        # rows past the end read the last one again
        lines = [f.mul(r if rows_known else f.least(r, f.sub("%rows", 1)), along) for r in range(t.rows)]
        apart = not rows_known or along > 1
        starts = [f.address("%left", line, self.t) if apart else "%left" for line in lines]

        # steps side by side: where they are mixed up, registers run out (so with integers, whose multiply and add are two)
        together = 1 if d.kind != "f" else 4 if t.rows * t.vectors <= 16 else 1

        def step(k: Int, offset: int, right: str, sums: list[str]) -> list[str]:
            """Line `offset` after line k, whose right panel begins at `right`."""
            columns = [f.load(v, f.address(right, j * t.lanes, self.t), align_right) for j in range(t.vectors)]
            out = []
            here = [f.address(s, f.mul(k, depth), self.t) for s in (starts if apart else starts[:1])]
            for i in range(t.rows):
                place = f.address(here[i if apart else 0], offset * depth + (0 if apart else i * along), self.t)
                x = f.splat(f.load(self.t, place, d.itemsize), self.t, t.lanes)
                for j in range(t.vectors):
                    out.append(self._multiply_add(f, v, x, columns[j], sums[i * t.vectors + j]))
            return out

        def steps(count: int) -> Callable[[str, list[str]], list[str]]:
            def body(i: str, carried: list[str]) -> list[str]:
                right, *sums = carried  # (carried, for a product of i and the stride costs a register and the time)
                for u in range(count):
                    sums = step(i, u, right, sums)
                    right = f.address(right, stride, self.t)
                return [right, *sums]

            return body

        sums = ["%right", *["zeroinitializer"] * (t.rows * t.vectors)]
        full = "%kc" if self._comes_in(together * self.step) else f.emit(f"and i64 %kc, -{together}")
        sums = f.loop(0, full, together, list(zip(["ptr"] + [v] * len(sums), sums)), steps(together))
        if full != "%kc":
            sums = f.loop(full, "%kc", 1, list(zip(["ptr"] + [v] * len(sums), sums)), steps(1))
        sums = sums[1:]
        places = [f.address("%tile", i * t.lanes, self.t) for i in range(len(sums))]

        def store(values: list[str]) -> None:
            for x, place in zip(values, places, strict=True):
                f.store(v, x, place, align)

        def add() -> None:
            how = "fadd" if d.kind == "f" else "add"
            store([f.emit(f"{how} {v} {x}, {f.load(v, place, align)}") for x, place in zip(sums, places, strict=True)])

        if t.depth is None:
            store(sums)
        else:
            f.choose(f.emit("icmp ne i64 %goes_on, 0"), add, lambda: store(sums))
        return f

    @property
    def _right_has_tail(self) -> bool:
        """Is the last panel of a right factor that is read in place not whole? (That one is packed.)"""
        return (self.kernel.axes[N].const or 1) % self.tiling.columns != 0

    def _comes_in(self, n: int) -> bool:
        """Is every block of k a multiple of n long?"""
        depth = self.kernel.axes[K].const
        return depth is not None and depth % n == 0 and (self.tiling.depth or 0) % n == 0

    def _multiply_add(self, f: Function, v: str, x: str, y: str, z: str) -> str:
        if self.pairs:
            return multiply_add(f, self.pairs, self.tiling.lanes, x, y, z)
        if self.dtype.kind == "f":
            return f.call(v, f"llvm.fma.{suffix(self.t, self.tiling.lanes)}", [(v, x), (v, y), (v, z)])
        return f.emit(f"add {v} {f.emit(f'mul {v} {x}, {y}')}, {z}")

    def _epilogue(self, p: Point, i: str, j: str, tile: str) -> None:
        """What becomes of a finished tile."""
        f, t = p.function, self.tiling
        n = p.integer_of(self.kernel.axes[N])
        start = f.mul(j, t.columns)
        if isinstance(n, int) and n % t.columns == 0:
            self._epilogue_rows(p, i, start, tile, None)
            return
        fits = f.emit(f"icmp sle i64 {f.add(start, t.columns)}, {n}")
        with p.scope():  # what both branches share stands in front of them
            f.choose(
                fits,
                lambda: self._epilogue_rows(p, i, start, tile, None),
                lambda: self._epilogue_rows(p, i, start, tile, n),
            )

    def _epilogue_rows(self, p: Point, i: str, start: Int, tile: str, last: Int | None) -> None:
        f, t, m = p.function, self.tiling, p.integer_of(self.kernel.axes[M])
        first_row = f.mul(i, t.rows)
        rows = f.least(t.rows, f.sub(m, first_row))
        if isinstance(m, int) and m % t.rows == 0:
            rows = t.rows
        points = []
        for j in range(t.vectors):
            q = p.fork()
            q.open()
            at = f.add(start, j * t.lanes)
            if last is not None:
                q.tail = existing_lanes(f, at, last, t.lanes)
            q.bind(N, Linear(at, 1, None, True))
            points.append(q)

        def row(r: str, _: list[str]) -> list[str]:
            line = f.address(tile, f.mul(r, t.columns), self.t)
            for j, q in enumerate(points):
                q.bind(M, Linear(f.add(first_row, r)))
                x = f.load(wide(self.t, t.lanes), f.address(line, j * t.lanes, self.t), t.lanes * self.dtype.itemsize)
                q.define(self.groups.contract.name, Value(x, self.dtype, t.lanes))
                values = [q.need(s.value) for s in self.stores]
                for s, value in zip(self.stores, values, strict=True):
                    q.store(s, value)
            return []

        before = [dict(q.axes) for q in points]
        for q in points:
            q.open()
        f.loop(0, rows, 1, [], row)
        for q, axes in zip(points, before, strict=True):
            q.close(axes)

    # -- packing

    def _pack(self, p: Point, name: str, group: str, start: Int, width: int, target: str, k0: Int, kc: Int) -> None:
        """target[k * width + j] = factor at (start + j, k0 + k) for k in [0, kc)."""
        if self._runs_along_k(name, group):
            self._pack_turned(p, name, group, start, width, target, k0, kc)
        else:
            self._pack_straight(p, name, group, start, width, target, k0, kc)

    def _runs_along_k(self, name: str, group: str) -> bool:
        """Is the factor's memory contiguous along k, and not along its other group?"""
        k = self.kernel
        probe = Store("", (), name)
        loads = [t for t in loads_of(k, probe) if group in k.domains[t.name] or K in k.domains[t.name]]
        along_k = any(K in unit_axes(k, t) for t in loads)
        depth = k.axes[K].const
        if depth is not None and depth < self.tiling.lanes:
            return False
        return along_k and not any(group in unit_axes(k, t) for t in loads)

    def _value(self, p: Point, name: str) -> Value:
        m: LlvmMachine = p.machine
        return m.widen(m.cast(p.need(name), self.dtype), self.tiling.lanes)

    def _pack_straight(self, p: Point, name: str, group: str, start: Int, width: int, target: str, k0: Int, kc: Int) -> None:
        """Lanes along the group: a vector a line and k, tap by tap. Where the last vector writes past its line, lines are written
        in order, so that the next one follows."""
        f, lanes = p.function, self.tiling.lanes
        n = p.integer_of(self.kernel.axes[group])
        vectors = -(-width // lanes)
        taps = self.taps if width % lanes == 0 else 1
        v = wide(self.t, lanes)

        def lines(masked: bool) -> None:
            for tap in range(taps):
                lines_of(tap, masked)

        def lines_of(tap: int, masked: bool) -> None:
            points = []
            for j in range(vectors):
                q = p.fork()
                q.open()
                at = f.add(start, j * lanes)
                if masked:
                    q.tail = existing_lanes(f, at, n, lanes)
                q.bind(group, Linear(at, 1, None, width % lanes == 0))
                if taps > 1:
                    q.kernel = self.tapped
                    q.bind(TAP, Linear(tap))
                points.append(q)
            first = f.div(k0, taps)

            def line(k: str, _: list[str]) -> list[str]:
                to = f.address(target, f.mul(f.add(f.mul(k, taps), tap), width), self.t)
                for j, q in enumerate(points):
                    q.bind(REST if taps > 1 else K, Linear(f.add(first, k)))
                    x = self._value(q, name)
                    f.store(v, x.text, f.address(to, j * lanes, self.t), self.dtype.itemsize)
                return []

            before = [dict(q.axes) for q in points]
            for q in points:
                q.open()
            f.loop(0, f.div(kc, taps), 1, [], line)
            for q, axes in zip(points, before, strict=True):
                q.close(axes)

        reach = vectors * lanes
        if isinstance(n, int) and n % width == 0 and reach == width:
            lines(False)
            return
        fits = f.emit(f"icmp sle i64 {f.add(start, reach)}, {n}")
        with p.scope():
            f.choose(fits, lambda: lines(False), lambda: lines(True))

    def _pack_lines(self, p: Point, where: InPlace, first: Int, last: Int, right_at_first: str, k0: Int, kc: Int) -> None:
        """Whole panels [first, last) of a right factor in rows, line by line across all of them: memory is read in long runs."""
        f, t = p.function, self.tiling
        v, item = wide(self.t, t.lanes), self.dtype.itemsize
        source = p.place(where.load, {N: f.mul(first, t.columns), K: k0})
        panels, length = f.sub(last, first), p.integer_of(self.right_panel)

        def line(k: str, _: list[str]) -> list[str]:
            here = f.address(source, f.mul(k, where.depth), self.t)
            there = f.address(right_at_first, f.mul(k, t.columns), self.t)

            def panel(j: str, _: list[str]) -> list[str]:
                read = f.address(here, f.mul(j, t.columns), self.t)
                write = f.address(there, f.mul(j, length), self.t)
                for i in range(t.vectors):
                    x = f.load(v, f.address(read, i * t.lanes, self.t), item)
                    f.store(v, x, f.address(write, i * t.lanes, self.t), item)
                return []

            f.loop(0, panels, 1, [], panel)
            return []

        f.loop(0, kc, 1, [], line)

    def _pack_turned(self, p: Point, name: str, group: str, start: Int, width: int, target: str, k0: Int, kc: Int) -> None:
        """Lanes along k: as many rows as lanes, turned in registers. Rows past the end repeat the last one."""
        f, lanes = p.function, self.tiling.lanes
        if width == lanes or width % lanes:
            self._turn(p, name, group, start, width, target, width, k0, kc)
            return

        def some(j: str, _: list[str]) -> list[str]:
            first = f.mul(j, lanes)
            self._turn(p, name, group, f.add(start, first), lanes, f.address(target, first, self.t), width, k0, kc)
            return []

        with p.scope():  # a loop, because code for every row of a wide panel took longer to compile than to run
            f.loop(0, width // lanes, 1, [], some)

    def _turn(self, p: Point, name: str, group: str, start: Int, count: int, target: str, width: int, k0: Int, kc: Int) -> None:
        """`count` rows of a panel whose lines are `width` long."""
        f, lanes = p.function, self.tiling.lanes
        n = p.integer_of(self.kernel.axes[group])
        v = wide(self.t, lanes)
        points = []
        for r in range(count):
            q = p.fork()
            q.open()
            q.bind(group, Linear(f.least(f.add(start, r), f.sub(n, 1))))
            points.append(q)
        aligned = (k0 if isinstance(k0, int) else self.tiling.depth or 1) % lanes == 0  # k0 counts whole blocks

        def block(k: str, masked: bool) -> list[str]:
            tail = existing_lanes(f, k, kc, lanes) if masked else None
            rows = []
            before = [dict(q.axes) for q in points]
            for q in points:
                q.open()
                q.tail = tail
                q.bind(K, Linear(f.add(k0, k), 1, None, aligned))
                rows.append(self._value(q, name).text)
            for q, axes in zip(points, before, strict=True):
                q.tail = None
                q.close(axes)
            turned = []
            for j in range(0, count, lanes):
                few = rows[j : j + lanes]
                turned.append(transpose(f, self.t, few + ["zeroinitializer"] * (lanes - len(few)), lanes))
            to = f.address(target, f.mul(k, width), self.t)
            for i in range(lanes):  # line by line: what a line writes past its end, the next one overwrites
                for j, columns in enumerate(turned):
                    f.store(v, columns[i], f.address(to, i * width + j * lanes, self.t), self.dtype.itemsize)
            return []

        whole = kc if self._comes_in(lanes) else f.sub(kc, f.rem(kc, lanes))
        for first, last, masked in ((0, whole, False), (whole, kc, True)):
            if first == last:
                continue
            before = [dict(q.axes) for q in points]
            for q in points:
                q.open()
            f.loop(first, last, lanes, [], lambda k, _, masked=masked: block(k, masked))  # type: ignore[misc]
            for q, axes in zip(points, before, strict=True):
                q.close(axes)


@dataclass(frozen=True)
class Block:
    """A block of the result: its packed memory, and panel ranges."""

    left: str
    right: str
    tiles: str
    first_left: Int
    last_left: Int
    first_right: Int
    last_right: Int


def _rounded(bytes_: E) -> E:
    return (bytes_ + 63) // 64 * 64
