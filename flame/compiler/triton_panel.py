"""Triton for kernels that reduce rows and sum columns in one walk: see `flame.compiler.panels`.

A program has a panel of rows. It walks down it `x_block` rows at a time: a tile of rows is swept as by `triton_rows`, which gives
their reductions and stores, and what the columns' sums want of it is added to accumulators as large as the tile. Below the last
row they are folded to one number a column, and stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.index_math import var
from flame.compiler.kernel import Kernel, Reduce, Store, domain
from flame.compiler.schedule import GpuSchedule, panel_of, product
from flame.compiler.schedule_tiles import power_of_two
from flame.compiler.triton_body import NO_DIMS, Lanes
from flame.compiler.triton_rows import Rows, identity
from flame.compiler.triton_text import Text, literal, tl
from flame.dtypes import bool_
from flame.errors import Refused


@dataclass(frozen=True, slots=True)
class _Adds(Store):
    """What stands for a sum of columns among a tile's tasks: the tile of its operand is added to an accumulator."""

    reduction: Reduce | None = None


class Panel(Rows):
    """Writes the body of one kernel; used as `Rows` is."""

    @staticmethod
    def takes(kernel: Kernel, schedule: GpuSchedule) -> bool:
        """Does the schedule ask for a panel whose rows are one tile?"""
        along = product(kernel.axes[a] for a in kernel.reduce_axes if a != schedule.panel)
        return bool(schedule.panel) and along.const is not None and along.const <= schedule.r_block

    def render(self) -> None:
        body, kernel, down = self.body, self.kernel, self.schedule.panel
        self.swept -= {down}
        sums = [s for s in kernel.statements if isinstance(s, Reduce) and s.axes == (down,)]
        along = [a for a in kernel.axes if a in self.swept]
        row = body.count(along).const
        if panel_of(kernel) != down or not sums or not along or row is None:
            raise Refused(f"{kernel.name} is not walked down {down}: it does not reduce rows, and sum columns last")
        stored = frozenset[str]().union(*(domain(kernel, s) for s in kernel.stores))
        panels = [a for a in kernel.axes if a in stored and a not in self.swept and a != down and a not in body.still]
        x_block = min(self.schedule.x_block, power_of_two(body.count((down,)).const or 1))
        if panels:
            self.programs.append((body.count(panels), 1))
            name = body.walker(panels, "panel")
            body.line(f"{name} = tl.program_id(0){'.to(tl.int64)' if body.wide else ''}")
            body.place(Lanes(name, tuple(panels)))
        block = self._block(self.swept, row)
        if x_block > 1:
            body.constant("X_BLOCK", x_block)
        body.scopes[0].tile = ("X_BLOCK", block) if x_block > 1 else (block,)
        self._parts = {q.name: self._start_sum(q) for q in sums}
        body.comment(f"rows, and what they add to {', '.join(self._parts.values())}")
        self._walk(sums, x_block)
        for q in sums:
            self._fold(q, x_block)
        self.level([s for s in kernel.stores if down not in domain(kernel, s)], frozenset())

    def _start_sum(self, q: Reduce) -> str:
        body, kind = self.body, self._kind(q)
        part = body.names.fresh(f"{q.name}_part")
        body.line(f"{part} = tl.full({body.shape()}, {literal(identity(q.op, kind), kind)}, {tl(kind)})")
        return part

    def _walk(self, sums: list[Reduce], x_block: int) -> None:
        """The loop over the panel's rows."""
        body, down = self.body, self.schedule.panel
        size = body.size(body.count((down,)))
        start = body.names.fresh(f"{down}_start")
        rows = [s for s in self.kernel.stores if down in domain(self.kernel, s)]
        with body.loop(f"for {start} in range(0, {size}, {'X_BLOCK' if x_block > 1 else 1}):"):
            wide = ".to(tl.int64)" if body.wide else ""
            name = body.walker((down,), "down")
            if x_block > 1:
                text = f"{start} + tl.arange(0, X_BLOCK)[:, None]"
                body.line(f"{name} = ({text}){wide}" if wide else f"{name} = {text}")
                body.place(Lanes(name, (down,), 0, self._mask(f"{name}_in", name, (down,), x_block)))
            else:
                body.line(f"{name} = tl.cast({start}, tl.int{64 if body.wide else 32})")
                body.place(Lanes(name, (down,)))
            place = (var(down), *(var(a) for a in sorted(self.swept)))
            self.level([*rows, *(_Adds(self._parts[q.name], place, q.operands[0], (), q) for q in sums)], frozenset())

    def _fold(self, q: Reduce, x_block: int) -> None:
        """One number a column, from the accumulator's rows."""
        body, part = self.body, self._parts[q.name]
        if x_block > 1:
            self._reduce(q, [part], body.scopes[-1], across=0)
        elif q.dtype is bool_:
            body.define(q.name, f"{part} != 0", frozenset((0,)))
        else:
            body.scopes[-1].values[q.name] = (Text(part, q.dtype), frozenset((0,)))

    # ---- a sum of columns among the tasks of a tile

    def _is_in_place(self, t: Store) -> bool:
        return not isinstance(t, _Adds) and super()._is_in_place(t)

    def _called(self, t: Store) -> str:
        return f"add to {t.buffer}" if isinstance(t, _Adds) else super()._called(t)

    def _put(self, t: Store) -> None:
        if not isinstance(t, _Adds):
            self.body.store(t)
            return
        body, q = self.body, t.reduction
        assert q is not None
        kind = self._kind(q)
        value, dims = body.lookup(t.value)
        text = f"{value.tensor}.to(tl.int32)" if value.dtype is bool_ else value.tensor
        masks = [lanes for lanes in body.lanes_of((self.schedule.panel, *self.swept)) if lanes.mask]
        if masks:
            text = f"tl.where({' & '.join(m.mask for m in masks)}, {text}, {literal(identity(q.op, kind), kind)})"
            dims = dims.union(*(m.dims for m in masks), NO_DIMS)
        self._accumulate(q, [t.buffer], [body.spread(text, dims)])
