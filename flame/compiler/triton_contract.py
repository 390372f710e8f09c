"""Triton for a contraction with what is fused to it: matrix products, batched ones, convolutions and their gradients.

The axes of the result are the rows (of the left operand alone), the columns (of the right alone) and the batch; a program
makes one tile of rows by columns, tiles being dealt out in groups of rows so that neighbours share what they read. The summed
axes are walked `k_block` at a time in one loop, which Triton pipelines: lanes run along all of them flattened, or along one
(`k_lanes`, a convolution's channels) with the others a point at a time, so that addresses are affine in the lanes.

What feeds an operand is computed on its tile, each side under names of its own, and made 0 beyond the summed axes' end after
that: a masked lane would otherwise put in whatever its prologue makes of it. The epilogue is computed on the accumulator.
"""

from __future__ import annotations

from dataclasses import replace

from flame.compiler.copy_engine import matrix_of
from flame.compiler.index_math import E
from flame.compiler.kernel import Contract, Kernel, Load, domain_of, reads
from flame.compiler.schedule import GpuSchedule, factors, sides, unit_stride_axis
from flame.compiler.triton_body import Body, Lanes, Scope
from flame.compiler.triton_text import Text, tl, typed
from flame.dtypes import FLOAT8, dtype, float8_e4m3fn, float32
from flame.errors import Refused


class Dot:
    """Writes the body of one kernel. Call `render()` once; `programs` then says how many points the grid covers, and how
    many of them a program takes, along each of its directions."""

    def __init__(self, kernel: Kernel, schedule: GpuSchedule, body: Body):
        found = sides(kernel)
        if found is None or not (found.m and found.n and found.k):
            raise Refused("not one contraction with rows and columns, of a type that tiles are multiplied in")
        self.kernel = kernel
        self.schedule = schedule
        self.body = body
        self.programs: list[tuple[E, int]] = []
        self._described: dict[int, tuple[str, str, bool, bool]] = {}
        self._tiles = self._firsts = "", ""
        contraction = next(s for s in kernel.statements if isinstance(s, Contract))
        self.contraction = replace(contraction, operands=factors(kernel, contraction))
        self.sides = replace(found, m=self._ordered(found.m, 0), n=self._ordered(found.n, 1))

    def _ordered(self, axes: tuple[str, ...], operand: int) -> tuple[str, ...]:
        """The axes of a side with that one last along which the operand's memory runs, so that neighbouring lanes read
        neighbouring elements."""
        pending, seen = [self.contraction.operands[operand]], set[str]()
        while pending:
            v = pending.pop()
            s = self.kernel.definitions[v]
            a = unit_stride_axis(self.kernel, s) if isinstance(s, Load) else None
            if a in axes:
                return (*(x for x in axes if x != a), a)
            pending += [x for x in reads(s) if x not in seen]
            seen.update(reads(s))
        return axes

    def render(self) -> None:
        body, schedule = self.body, self.schedule
        body.constant("M_BLOCK", schedule.m_block)
        body.constant("N_BLOCK", schedule.n_block)
        body.constant("K_BLOCK", schedule.k_block)
        body.constant("GROUP", schedule.group)
        body.scopes[0].tile = ("M_BLOCK", "N_BLOCK")
        tile = body.names.fresh("tile")
        wide = ".to(tl.int64)" if body.wide else ""
        if not schedule.programs:
            body.line(f"{tile} = tl.program_id(0){wide}")
            self._count_tiles()
            self._make(tile)
            return
        body.constant("PROGRAMS", schedule.programs)
        tiles = self._count_tiles()
        if schedule.descriptors and not self.sides.batch:
            self._describe()
        turn = body.names.fresh("turn")
        body.comment("a tile after the other")
        with body.loop(f"for {turn} in tl.range(tl.program_id(0), {tiles}, PROGRAMS, flatten=True):"):
            body.line(f"{tile} = {turn}{wide}")
            self._make(tile)

    def _make(self, tile: str) -> None:
        """Write what makes one tile."""
        body = self.body
        self._place_tile(tile)
        body.compute(self.contraction.operands, only=self._fixed)
        body.comment(f"sum over {', '.join(self.sides.k)}")
        acc = body.names.fresh("acc")
        body.line(f"{acc} = tl.zeros([M_BLOCK, N_BLOCK], {tl(self.contraction.dtype)})")
        if self.schedule.k_lanes in self.sides.k and len(self.sides.k) > 1:
            self._sum_along_one(acc)
        else:
            self._sum_flattened(acc)
        body.scopes[-1].values[self.contraction.name] = (Text(acc, self.contraction.dtype), frozenset((0, 1)))
        body.comment("the result")
        body.compute(v for s in self.kernel.stores for v in reads(s))
        for s in self.kernel.stores:
            body.store(s)

    def _fixed(self, v: str) -> bool:
        """Is it the same at every step, so that it is computed before the loop?"""
        return all(self.kernel.domains[u].isdisjoint(self.contraction.axes) for u in self.body.missing([v]))

    def _count_tiles(self) -> str:
        """Write how many tiles there are each way; how many in all."""
        body, schedule, found = self.body, self.schedule, self.sides
        rows, columns, batch = (body.count(axes) for axes in (found.m, found.n, found.batch))
        self.programs = [(batch, 1), (rows, schedule.m_block), (columns, schedule.n_block)]
        self._tiles = tiles_m, tiles_n = body.names.fresh("tiles_m"), body.names.fresh("tiles_n")
        if schedule.descriptors:
            self._firsts = body.names.fresh("m_first"), body.names.fresh("n_first")
        body.line(f"{tiles_m} = tl.cdiv({body.size(rows)}, M_BLOCK)")
        body.line(f"{tiles_n} = tl.cdiv({body.size(columns)}, N_BLOCK)")
        return " * ".join([*([body.size(batch)] if found.batch else []), tiles_m, tiles_n])

    def _place_tile(self, tile: str) -> None:
        """Which rows, columns and batch member it is made of."""
        body, schedule, found = self.body, self.schedule, self.sides
        rows, columns = body.count(found.m), body.count(found.n)
        m, n = body.walker(found.m, "m"), body.walker(found.n, "n")
        tiles_m, tiles_n = self._tiles
        first, height = body.names.fresh("first"), body.names.fresh("height")
        if found.batch:
            z = body.walker(found.batch, "z")
            body.line(f"{z} = {tile} // ({tiles_m} * {tiles_n})")
            body.line(f"{tile} = {tile} % ({tiles_m} * {tiles_n})")
            body.place(Lanes(z, found.batch))
        body.line(f"{first} = {tile} // (GROUP * {tiles_n}) * GROUP")
        body.line(f"{height} = min({tiles_m} - {first}, GROUP)")
        body.line(f"{tile} = {tile} % (GROUP * {tiles_n})")
        if schedule.descriptors:
            m_first, n_first = self._firsts
            body.line(f"{m_first} = ({first} + {tile} % {height}) * M_BLOCK")
            body.line(f"{n_first} = {tile} // {height} * N_BLOCK")
            body.line(f"{m} = ({m_first} + tl.arange(0, M_BLOCK))[:, None]")
            body.line(f"{n} = ({n_first} + tl.arange(0, N_BLOCK))[None, :]")
        else:
            body.line(f"{m} = (({first} + {tile} % {height}) * M_BLOCK + tl.arange(0, M_BLOCK))[:, None]")
            body.line(f"{n} = ({tile} // {height} * N_BLOCK + tl.arange(0, N_BLOCK))[None, :]")
        m_in = self._mask(m, rows, schedule.m_block)
        n_in = self._mask(n, columns, schedule.n_block)
        body.place(Lanes(m, found.m, 0, m_in))
        body.place(Lanes(n, found.n, 1, n_in))
        if schedule.descriptors and not self._described:
            self._describe()

    def _describe(self) -> None:
        for operand, block in enumerate(("M_BLOCK", "N_BLOCK")):
            self._describe_one(operand, self._firsts[operand], block)

    def _describe_one(self, operand: int, own_first: str, own_block: str) -> None:
        """Write the descriptor of an operand's matrix, [own axis, summed axis] or turned, whichever has stride 1 inside."""
        body, v = self.body, self.contraction.operands[operand]
        own = (self.sides.m, self.sides.n)[operand]
        found = matrix_of(self.kernel, v, own, self.sides.k)
        if found is None:
            raise Refused(f"{v} does not lie as the copy engine takes it")
        load, stride, turned, origin = found
        body.compute(reads(load))
        start, _ = body.index(origin)
        base = body.pointers[load.buffer] if start == "0" else f"{body.pointers[load.buffer]} + ({start})"
        sizes = [body.size(body.count(own)), body.size(body.count(self.sides.k))]
        blocks = [own_block, "K_BLOCK"]
        name = body.names.fresh(f"{load.buffer}_tiles")
        order = slice(None, None, -1 if turned else 1)
        body.line(
            f"{name} = tl.make_tensor_descriptor({base}, shape=[{', '.join(sizes[order])}], strides=[{stride}, 1], "
            f"block_shape=[{', '.join(blocks[order])}])"
        )
        body.describes = True
        # the tile as the product takes it: rows by summed for the left operand, summed by columns for the right one
        self._described[operand] = (name, own_first, turned, (turned and operand == 0) or (not turned and operand == 1))

    def _copied(self, operand: int, start: str) -> str:
        """Write the copy of one operand's tile; its name."""
        name, own_first, turned, transpose = self._described[operand]
        at = f"[{start}, {own_first}]" if turned else f"[{own_first}, {start}]"
        out = self.body.names.fresh("ab"[operand])
        tile = self._multiplied(f"{name}.load({at})", self.contraction.operands[operand])
        self.body.line(f"{out} = {tile}{'.T' if transpose else ''}")
        return out

    def _multiplied(self, text: str, v: str) -> str:
        """A tile as the product takes it: the bits of 8-bit floats as numbers."""
        kind = self.kernel.definitions[v].dtype
        if kind not in FLOAT8:
            return text
        if not self.schedule.float8:
            return f"{self.body.functions.float8('halved', kind)}({text})"
        return f"{text}.to({'tl.float8e4nv' if kind is float8_e4m3fn else 'tl.float8e5'}, bitcast=True)"

    def _mask(self, lanes: str, count: E, block: int) -> str:
        if count.const and count.const % block == 0:
            return ""
        mask = self.body.names.fresh(f"{lanes}_in")
        self.body.line(f"{mask} = {lanes} < {self.body.size(count)}")
        return mask

    def _sum_flattened(self, acc: str) -> None:
        body = self.body
        start = body.names.fresh("k_start")
        count = body.size(body.count(self.sides.k))
        walk = f"range(0, {count}, K_BLOCK)"
        if self.schedule.specialized:
            walk = f"tl.{walk[:-1]}, warp_specialize=True)"
        with body.loop(f"for {start} in {walk}:"):
            self._multiply(acc, start, self.sides.k)

    def _sum_along_one(self, acc: str) -> None:
        """One loop over the points of the other axes and the tiles of the lanes' axis; not two, which are not pipelined."""
        body, lanes = self.body, self.schedule.k_lanes
        others = tuple(a for a in self.sides.k if a != lanes)
        tiles, step = body.names.fresh("tiles_k"), body.names.fresh("step")
        body.line(f"{tiles} = tl.cdiv({body.size(body.count((lanes,)))}, K_BLOCK)")
        with body.loop(f"for {step} in range(0, {body.size(body.count(others))} * {tiles}):"):
            outer, start = body.walker(others, "outer"), body.names.fresh("k_start")
            body.line(f"{outer} = {step} // {tiles}")
            body.line(f"{start} = {step} % {tiles} * K_BLOCK")
            body.place(Lanes(outer, others))
            self._multiply(acc, start, (lanes,))

    def _multiply(self, acc: str, start: str, axes: tuple[str, ...]) -> None:
        """One step of the loop: a tile of each operand, and their product."""
        body = self.body
        wide = ".to(tl.int64)" if body.wide else ""
        factors = [self._copied(i, start) for i in sorted(self._described)]
        for side, operand, tile, own, dim, across in (
            ("a", self.contraction.operands[0], ("M_BLOCK", "K_BLOCK"), self.sides.m, 1, "[None, :]"),
            ("b", self.contraction.operands[1], ("K_BLOCK", "N_BLOCK"), self.sides.n, 0, "[:, None]"),
        ):
            if self._described:
                break
            with body.scope(Scope(tile=tile)):
                k = body.names.fresh(f"k_{side}")
                body.line(f"{k} = ({start} + tl.arange(0, K_BLOCK)){wide}{across}")
                mask = self._mask(k, body.count(axes), self.schedule.k_block)
                body.place(Lanes(k, axes, dim, mask))
                factors.append(self._factor(side, operand, mask, own))
        precision = f', input_precision="{self.schedule.precision}"' if self._kind() is float32 else ""
        if self.schedule.float8:  # tensor cores of sm_90 keep 14 bits of a sum: it is moved to whole registers on the way
            precision = f", max_num_imprecise_acc={min(128, self.schedule.k_block)}"
        out = f", out_dtype={tl(self.contraction.dtype)}" if self.contraction.dtype is not float32 else ""
        body.line(f"{acc} = tl.dot({factors[0]}, {factors[1]}, {acc}{precision}{out})", self.contraction.note)

    def _kind(self) -> dtype:
        return self.kernel.definitions[self.contraction.operands[0]].dtype

    def _factor(self, side: str, operand: str, mask: str, own: tuple[str, ...]) -> str:
        """Write one operand's tile, 0 beyond the end of the summed axes; its name."""
        body = self.body
        s = self.kernel.definitions[operand]
        if isinstance(s, Load) and not body.has(operand) and (not s.mask or s.other == 0):
            body.compute(reads(s))
            text, dims = body.load(s, zero=True)
            touched = domain_of(self.kernel, (*s.index, *(c.expr for c in s.mask)))
            masked = not mask or any(lanes.mask == mask for lanes in body.lanes_of(touched))
        else:
            body.compute([operand])
            value, dims = body.lookup(operand)
            text, masked = value.alone, not mask
        if not masked:
            text = f"tl.where({mask}, {text}, {typed(0, s.dtype)})"
            dims |= {1 if side == "a" else 0}
        text = self._multiplied(text, operand)
        name = body.names.fresh(side)
        body.line(f"{name} = {body.spread(text, dims)}", getattr(s, "note", ""))
        return name
