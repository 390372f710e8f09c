"""Triton for a chain of contractions: attention and its gradients, with scores that are never in memory.

A program holds a tile of rows: its operands of the inner contractions, and accumulators of the outer ones. It goes along the
walked axis, `N_BLOCK` at a time: operands are read once and serve all contractions, scores are made on tensor cores, changed
by whatever stands between (a mask, a bias, dropout), and contracted again. With a softmax the running maximum and sum of each
row are kept, and accumulators are scaled when the maximum moves (Dao et al., "FlashAttention", 2022).

Where positions alone say that scores are minus infinity (`chain.limits`), tiles beyond are not walked, and those in which no
score is are walked by a loop that does not ask: causal attention costs half of full attention, a window its width.
"""

from __future__ import annotations

from flame.compiler.chain import Chain, Looked, chain, coefficient, limits
from flame.compiler.index_math import E, names, subst, var
from flame.compiler.kernel import Contract, Kernel, Load, Reduce, domain, reads, stage
from flame.compiler.schedule import GpuSchedule
from flame.compiler.schedule_tiles import power_of_two
from flame.compiler.triton_body import Body, Lanes, Scope
from flame.compiler.triton_text import Text, spell, typed
from flame.dtypes import float32
from flame.errors import Refused

ROW = frozenset((0,))
TILE = frozenset((0, 1))


class Chained:
    """Writes the body of one kernel. Call `render()` once; `programs` then says how many points the grid covers, and how
    many of them a program takes, along each of its directions."""

    def __init__(self, kernel: Kernel, schedule: GpuSchedule, body: Body):
        found = chain(kernel)
        if found is None:
            raise Refused("not a chain of contractions")
        self.kernel = kernel
        self.schedule = schedule
        self.body = body
        self.chain: Chain = found
        self.rows = tuple(a for a in found.rows if not schedule.rows or a in schedule.rows)
        if not self.rows:
            raise Refused(f"none of the rows {', '.join(found.rows)} is in the schedule")
        taken = {*found.batch, *found.rows} - set(self.rows)
        self.batch = tuple(a for a in kernel.axes if a in taken)
        *outside, self.lane = sorted(found.walked, key=lambda a: (kernel.axes[a].const or 1 << 30, list(kernel.axes).index(a)))
        self.outside = tuple(outside)
        self.programs: list[tuple[E, int]] = []
        self.limits = limits(kernel, found)
        self._depth = stage(kernel)
        self._blocks: dict[str, str] = {}  #: axis of numbers of a head -> its constant
        self._held: dict[str, str] = {}  #: rows' operand -> its tile
        self._acc: dict[str, str] = {}  #: outer contraction -> its accumulator
        self._state: tuple[str, str] = ("", "")  #: running maximum and sum

    def render(self) -> None:
        body, schedule = self.body, self.schedule
        body.constant("M_BLOCK", schedule.m_block)
        body.constant("N_BLOCK", schedule.n_block)
        for axis in dict.fromkeys(self._numbers(c) for c, _, _ in (*self.chain.inner, *self.chain.outer)):
            self._block_of(axis)
        if self.chain.softmax is not None and self.chain.softmax.op == "exp2":
            body.spellings = {"exp2": "tl.exp2({0})", "log2": "tl.log2({0})"}  # narrow results: the instruction will do
        body.scopes[0].tile = ("M_BLOCK", "N_BLOCK")
        if any(isinstance(s, Load) and s.dtype.is_narrow_float for s in self.kernel.statements):
            body.spellings.setdefault("exp2", "tl.exp2({0})")
        first, last = self._place_tile()
        for c, a, _ in self.chain.inner:
            if a not in self._held:
                with body.scope(Scope(tile=("M_BLOCK", self._block_of(self._numbers(c))))):
                    self._held[a] = self._operand(a, self._place_numbers(self._numbers(c)))
        self._start()
        self._hoist()
        if self.outside:
            step = body.names.fresh("step")
            with body.loop(f"for {step} in range(0, {body.size(body.count(self.outside))}):"):
                outer = body.walker(self.outside, "outer")
                body.line(f"{outer} = tl.cast({step}, tl.int{64 if body.wide else 32})")
                body.place(Lanes(outer, self.outside))
                self._walk(first, last)
        else:
            self._walk(first, last)
        self._finish()

    # ---- axes

    def _numbers(self, c: Contract) -> str:
        """The axis of a head's numbers: what an inner contraction sums over, what an outer one leaves."""
        found: set[str] | frozenset[str] = set(c.axes) - set(self.chain.walked)
        found = found or self.kernel.domains[c.name] - {*self.chain.batch, *self.chain.rows}
        if len(found) != 1:
            raise Refused(f"{c.name} has {len(found)} axes of numbers, not one")
        return next(iter(found))

    def _block_of(self, axis: str) -> str:
        """The constant that holds all of an axis of numbers."""
        known = self._blocks.get(axis)
        if known is None:
            extent = self.kernel.axes[axis].const
            if extent is None:
                raise Refused(f"the extent of {axis} is symbolic")
            name = "D_BLOCK" if not self._blocks else "E_BLOCK" if len(self._blocks) == 1 else f"E{len(self._blocks)}_BLOCK"
            known = self._blocks[axis] = self.body.constant(name, max(16, power_of_two(extent)))
        return known

    def _place_numbers(self, axis: str) -> str:
        """Lanes along a head's numbers, in the innermost scope; their mask."""
        body, block = self.body, self._block_of(axis)
        name = body.walker((axis,), axis)
        body.line(f"{name} = tl.arange(0, {block})[None, :]{'.to(tl.int64)' if body.wide else ''}")
        mask = ""
        if self.kernel.axes[axis] != body.constants[block]:
            mask = body.names.fresh(f"{name}_in")
            body.line(f"{mask} = {name} < {body.size(self.kernel.axes[axis])}")
        body.place(Lanes(name, (axis,), 1, mask))
        return mask

    def _place_tile(self) -> tuple[str, str]:
        """Which rows and which member of the batch a program works on; the names of its first and last row."""
        body, schedule = self.body, self.schedule
        rows, batch = body.count(self.rows), body.count(self.batch)
        self.programs = [(batch, 1), (rows, schedule.m_block)]
        tile, first, last = (body.names.fresh(x) for x in ("tile", "first", "last"))
        wide = ".to(tl.int64)" if body.wide else ""
        body.line(f"{tile} = tl.program_id(0){wide}")
        tiles = body.names.fresh("tiles")
        body.line(f"{tiles} = tl.cdiv({body.size(rows)}, M_BLOCK)")
        if self.batch:
            z = body.walker(self.batch, "z")
            body.line(f"{z} = {tile} // {tiles}")
            body.line(f"{tile} = {tile} % {tiles}")
            body.place(Lanes(z, self.batch))
        if len(self.rows) == 1 and any(
            coefficient(e, self.lane) == -1 and (coefficient(e, self.rows[0]) or 0) > 0
            for e in self.limits.visible
            if isinstance(e, E)
        ):
            body.line(f"{first} = ({tiles} - 1 - {tile}) * M_BLOCK", "the longest rows first")
        else:
            body.line(f"{first} = {tile} * M_BLOCK")
        body.line(f"{last} = min({first} + M_BLOCK, {body.size(rows)}) - 1")
        m = body.walker(self.rows, "m")
        body.line(f"{m} = ({first} + tl.arange(0, M_BLOCK))[:, None]")
        mask = ""
        if not (rows.const and rows.const % schedule.m_block == 0):
            mask = body.names.fresh(f"{m}_in")
            body.line(f"{mask} = {m} < {body.size(rows)}")
        body.place(Lanes(m, self.rows, 0, mask))
        return first, last

    # ---- operands

    def _operand(self, v: str, *masks: str) -> str:
        """Write a tile of what enters a contraction, 0 where it hangs over; its name."""
        body, s = self.body, self.kernel.definitions[v]
        hint = s.buffer if isinstance(s, Load) else v
        if isinstance(s, Load) and (not s.mask or s.other == 0):
            body.compute(reads(s))
            text, dims = body.load(s, zero=True)
        else:
            body.compute([v])
            value, dims = body.lookup(v)
            text = value.alone
            for mask in filter(None, masks):
                text, dims = f"tl.where({mask}, {text}, {typed(0, s.dtype)})", dims | TILE
        name = body.names.fresh(f"{hint}_tile")
        body.line(f"{name} = {body.spread(text, dims)}", getattr(s, "note", ""))
        return name

    # ---- before, along, after

    def _start(self) -> None:
        """Accumulators, and the running maximum and sum."""
        body = self.body
        body.comment(f"sum over {', '.join((*self.outside, self.lane))}")
        for c, _, _ in self.chain.outer:
            acc = self._acc[c.name] = body.names.fresh("acc")
            body.line(f"{acc} = tl.zeros([M_BLOCK, {self._block_of(self._numbers(c))}], tl.float32)")
        if self.chain.softmax is not None:
            top, total = self._state = body.names.fresh("row_max"), body.names.fresh("row_sum")
            body.line(f'{top} = tl.full([M_BLOCK, 1], float("-inf"), tl.float32)')
            body.line(f"{total} = tl.zeros([M_BLOCK, 1], tl.float32)")

    def _between(self) -> set[str]:
        """What stands between the contractions."""
        out: set[str] = set()
        pending = [a for _, a, _ in self.chain.outer]
        while pending:
            v = pending.pop()
            s = self.kernel.definitions[v]
            if v not in out and not isinstance(s, Contract | Reduce):
                out.add(v)
                pending += reads(s)
            elif isinstance(s, Reduce):
                pending += [x for x in s.operands if x not in out]
        return out

    def _hoist(self) -> None:
        """What is the same all along is computed before."""
        walked = set(self.chain.walked)
        fixed = {v for v in self._between() if not self._depth[v] and not self.kernel.domains[v] & walked}
        self.body.compute(sorted(fixed, key=list(self.kernel.definitions).index), only=lambda v: v in fixed)

    def _walk(self, first: str, last: str) -> None:
        """The loops along the lanes' axis."""
        body, lane, block = self.body, self.lane, self.schedule.n_block
        count = self.kernel.axes[lane]
        size = body.size(count)
        even = count.const is not None and count.const % block == 0
        ends, whole_ends, starts, whole_starts, sure = [size], [size], [], [], True
        for e in self.limits.visible:
            sides = self._looked(e) if isinstance(e, Looked) else self._extremes(e, first, last)
            if sides is None:
                sure = False
                continue
            upper, least, most = sides
            if upper:
                ends.append(most)
                whole_ends.append(least)
            else:
                starts.append(most)
                whole_starts.append(least)
        if len(ends) == 1 and not starts:
            if even or (count.const is not None and count.const < 4 * block):
                self._loop("0", size, even and sure)
            else:
                whole = body.names.fresh("whole")
                body.line(f"{whole} = {size} // N_BLOCK * N_BLOCK")
                self._loop("0", whole, True, sure)
                self._loop(whole, size, False)
            return

        def name(hint: str, text: str) -> str:
            n = body.names.fresh(hint)
            body.line(f"{n} = {text}")
            return n

        def nested(f: str, terms: list[str]) -> str:
            out = terms[0]
            for t in terms[1:]:
                out = f"{f}({out}, {t})"
            return out

        end = name("end", nested("min", ends)) if len(ends) > 1 else size
        if any(isinstance(e, Looked) for e in self.limits.visible):
            # one loop that asks everywhere: a second one for tiles that hide nothing costs registers, and most tiles hide something
            start = name("start", f"{nested('max', ['0', *starts])} // N_BLOCK * N_BLOCK") if starts else "0"
            self._loop(start, end, False)
            return
        whole_end = name("whole_end", f"{nested('min', whole_ends)} // N_BLOCK * N_BLOCK")
        if starts:
            start = name("start", f"{nested('max', ['0', *starts])} // N_BLOCK * N_BLOCK")
            whole_start = name("whole_start", f"tl.cdiv({nested('max', ['0', *whole_starts])}, N_BLOCK) * N_BLOCK")
            self._loop(start, f"min({whole_start}, {end})", False)
            self._loop(f"max({start}, {whole_start})", whole_end, True, sure)
            if len(ends) > 1 or not even:
                self._loop(f"max({whole_start}, {whole_end})", end, False)
        else:
            self._loop("0", whole_end, True, sure)
            self._loop(f"max({whole_end}, 0)", end, False)

    def _extremes(self, e: E, first: str, last: str) -> tuple[bool, str, str] | None:
        """For a condition e >= 0 on the walked position: is it bounded above? and by what, for the row that sees least, and
        for the one that sees most. None where rows and symbols alone do not say it."""
        body, a = self.body, coefficient(e, self.lane)
        if a not in (1, -1):
            return None
        rest = e - var(self.lane) * a
        row = self.rows[0] if len(self.rows) == 1 else ""
        by_row = coefficient(rest, row) if row else 0
        named = names(rest)
        whole = {x: self.kernel.axes[x] for x in self.rows if x in named and not row}
        if by_row is None or any(n != row and n not in self.kernel.symbols and n not in whole for n in named):
            return None
        if any(coefficient(rest, x) is None for x in whole):
            return None

        def at(most: bool) -> str:
            env = {row: last if (by_row > 0) == most else first} if row else {}
            put = {x: (n - 1 if ((coefficient(rest, x) or 0) > 0) == most else 0) for x, n in whole.items()}
            value = subst(rest, put)
            return f"({body.spell_index(value + 1 if a < 0 else -value, env)})"

        return a < 0, at(False), at(True)

    def _looked(self, bound: Looked) -> tuple[bool, str, str] | None:
        """The same for a bound that every row looks up: the extremes over the tile's rows. (Rows that hang over add what can only
        make more be walked.)"""
        body = self.body
        rest = bound.position - var(self.lane)
        if rest.const is None:
            return None
        body.compute([bound.value])
        value, dims = body.lookup(bound.value)
        size = body.size(self.kernel.axes[self.lane])
        held = body.names.fresh("until" if bound.upper else "since")
        text = f"tl.minimum(tl.maximum({value.alone}, {-1 if bound.plus else 0}), {size})"  # (so that no sum overflows)
        body.line(f"{held} = {text}.to(tl.int{64 if body.wide else 32})")
        shift = bound.plus - rest.const
        more = f" + {shift}" if shift > 0 else f" - {-shift}" if shift else ""
        least, most = ("min", "max") if bound.upper else ("max", "min")

        def extreme(which: str) -> str:
            return f"(tl.{which}({held}){more})" if dims else f"({held}{more})"

        return bound.upper, extreme(least), extreme(most)

    def _loop(self, start: str, end: str, whole: bool, sure: bool = True) -> None:
        """Tiles from `start` to `end`; `whole`: none hangs over, nor (if that is `sure`) has a score that positions hide."""
        body = self.body
        begin = body.names.fresh(f"{self.lane}_start")
        with body.loop(f"for {begin} in range({start}, {end}, N_BLOCK):"):
            body.passed = self.limits.decided if whole and sure else {}
            self._tile(begin, whole)
            body.passed = {}

    def _tile(self, begin: str, whole: bool) -> None:
        body, found = self.body, self.chain
        count = self.kernel.axes[self.lane]
        even = whole or (count.const is not None and count.const % self.schedule.n_block == 0)
        wide = ".to(tl.int64)" if body.wide else ""
        tiles: dict[str, str] = {}
        for c, _, b in (*found.inner, *found.outer):
            if b not in tiles:
                with body.scope(Scope(tile=("N_BLOCK", self._block_of(self._numbers(c))))):
                    here = self._place_lane(f"({begin} + tl.arange(0, N_BLOCK)){wide}[:, None]", 0, even)
                    tiles[b] = self._operand(b, here, self._place_numbers(self._numbers(c)))
        mask = self._place_lane(f"({begin} + tl.arange(0, N_BLOCK)){wide}[None, :]", 1, even)
        for c, a, b in found.inner:
            s = body.names.fresh("scores")
            body.line(f"{s} = tl.dot({self._held[a]}, tl.trans({tiles[b]}){self._precision(a)})", c.note)
            body.scopes[-1].values[c.name] = (Text(s, c.dtype), TILE)
        if found.softmax is not None:
            self._online(mask)
        left: dict[str, str] = {}
        for c, a, b in found.outer:
            if a not in left:
                body.compute([a])
                value, dims = body.lookup(a)
                left[a] = value.alone
                if mask and found.softmax is None:  # else what hangs over is exp(-inf)
                    left[a], dims = f"tl.where({mask}, {left[a]}, {typed(0, value.dtype)})", dims | TILE
                if dims != TILE or mask and found.softmax is None:
                    name = body.names.fresh(f"{a}_tile")
                    body.line(f"{name} = {body.spread(left[a], dims)}")
                    left[a] = name
            acc = self._acc[c.name]
            body.line(f"{acc} = tl.dot({left[a]}, {tiles[b]}, {acc}{self._precision(b)})", c.note)

    def _place_lane(self, text: str, dim: int, even: bool) -> str:
        """The walked position along a dimension of the tile; its mask."""
        body = self.body
        name = body.walker((self.lane,), self.lane)
        body.line(f"{name} = {text}")
        mask = ""
        if not even:
            mask = body.names.fresh(f"{name}_in")
            body.line(f"{mask} = {name} < {body.size(self.kernel.axes[self.lane])}")
        body.place(Lanes(name, (self.lane,), dim, mask))
        return mask

    def _precision(self, v: str) -> str:
        kind = self.kernel.definitions[v].dtype
        return f', input_precision="{self.schedule.precision}"' if kind is float32 else ""

    def _online(self, mask: str) -> None:
        """The maximum and sum so far, and what was summed up under the old maximum scaled to the new one."""
        body, s = self.body, self.chain.softmax
        assert s is not None
        top, total = self._state
        body.compute([s.scores])
        x, dims = body.lookup(s.scores)
        if mask:
            name = body.names.fresh(f"{s.scores}_seen")
            body.line(f'{name} = tl.where({mask}, {x.text}, float("-inf"))')
            x = Text(name, x.dtype)
            body.scopes[-1].values[s.scores] = (x, dims | TILE)
        new = body.names.fresh("new_max")
        body.line(f"{new} = tl.maximum({top}, tl.max({x.text}, 1)[:, None])")
        here = body.scopes[-1].values
        here[s.top] = (Text(new, float32), ROW)
        body.compute([s.power])
        under, _ = body.lookup(s.under)
        down = body.names.fresh("down")
        given = body.spellings.get(s.op)
        difference = Text(f"({top} - {under.alone})", float32)
        power = spell(s.op, (difference,), float32, body.functions) if given is None else given.format(difference.text)
        body.line(f"{down} = {power}")
        body.line(f"{total} = {total} * {down} + tl.sum({body.lookup(s.power)[0].text}, 1)[:, None]")
        for acc in self._acc.values():
            body.line(f"{acc} = {acc} * {down}")
        body.line(f"{top} = {new}")

    def _finish(self) -> None:
        """What is stored."""
        body, found = self.body, self.chain
        body.comment("the result")
        outside = body.scopes[-1].values
        for c, _, _ in found.outer:
            outside[c.name] = (Text(self._acc[c.name], c.dtype), TILE)
        if found.softmax is not None:
            outside[found.softmax.top] = (Text(self._state[0], float32), ROW)
            outside[found.softmax.total] = (Text(self._state[1], float32), ROW)
        kept = {*found.batch, *found.rows}
        for axis in dict.fromkeys(next(iter(sorted(domain(self.kernel, s) - kept)), "") for s in self.kernel.stores):
            stores = [s for s in self.kernel.stores if next(iter(sorted(domain(self.kernel, s) - kept)), "") == axis]
            if not axis:
                for s in stores:
                    body.compute(reads(s))
                    body.store(s)
                continue
            with body.scope(Scope(tile=("M_BLOCK", self._block_of(axis)))):
                self._place_numbers(axis)
                for s in stores:
                    body.compute(reads(s))
                    body.store(s)
