"""Triton for everything that is not a tiled contraction: pointwise kernels, and reductions of any nesting.

Axes that no statement reduces are parallel: the grid walks them, `x_block` points a program. The others are SWEPT inside a
program: a reduction sweeps its axes, a store sweeps the swept axes of its address, and what stands in later stages sweeps
again. A sweep over few points (no more than `r_block`) is one tile, and its values stay for the next sweep over the same
axes; a longer one is a loop, and each sweep computes its values anew. Where a sweep needs reductions that vary along some of
its axes (a mean of row sums), those axes become an outer loop, a point at a time, around the inner sweeps. So every kernel of
the grammar has a rendering, and the usual ones (a row, a column, a softmax) get the source that one would write by hand.

In a looped sweep a sum of exp(x - maximum of x) is carried along with the maximum and rescaled when that grows (Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018), so that the row is read once for both: see `_online`.

Masks are applied to values, not to addresses, before they enter a reduction: what a masked lane loads may have become
anything by then (exp(0) = 1). Maximum and minimum carry NaN by an explicit test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from flame.compiler.index_math import E
from flame.compiler.kernel import Kernel, Load, Op, Reduce, Store, domain, reads, stage
from flame.compiler.schedule import GpuSchedule
from flame.compiler.schedule_tiles import power_of_two
from flame.compiler.triton_body import NO_DIMS, Body, Dims, Lanes, Scope
from flame.compiler.triton_text import Text, literal, spell, tl
from flame.dtypes import bool_, dtype, int32
from flame.errors import Refused

Axes = frozenset[str]

#: stores of a pointwise kernel up to which all values are computed first, so that loads are on their way together
MANY_STORES = 6


def identity(op: str, d: dtype) -> bool | int | float:
    """What a reduction starts from."""
    if op in ("sum", "any"):
        return 0
    if op in ("prod", "all"):
        return 1
    low = op in ("max", "argmax")
    if d.kind == "f":
        return -math.inf if low else math.inf
    info = np.iinfo(d.numpy)
    return int(info.min if low else info.max)


class Rows:
    """Writes the body of one kernel. Call `render()` once; `programs` then says how many points the grid
    covers, and how many of them a program takes, along each of its directions."""

    def __init__(self, kernel: Kernel, schedule: GpuSchedule, body: Body):
        self.kernel = kernel
        self.schedule = schedule
        self.body = body
        self.stages = stage(kernel)
        self.swept = frozenset(a for a in kernel.reduce_axes if a not in body.still)
        self.programs: list[tuple[E, int]] = []
        self._blocks: dict[Axes, str] = {}
        self._sweeps = 0
        self._riders: dict[str, list[Reduce]] = {}  #: a maximum -> the sums of exponentials that are carried along with it

    # ---- which programs

    def render(self) -> None:
        stored = frozenset().union(*(domain(self.kernel, s) for s in self.kernel.stores))
        parallel = [a for a in self.kernel.axes if a in stored and a not in self.swept and a not in self.body.still]
        columns = [a for a in self.schedule.columns if a in parallel]
        rows = [a for a in self.schedule.rows if a in parallel and a not in columns]
        rows += [a for a in parallel if a not in rows and a not in columns]
        if columns and not self.swept:
            self._two_dimensional(rows, columns)
        else:
            self._parallel(rows + columns)
        self.level(self.kernel.stores, frozenset())

    def _mask(self, name: str, lanes: str, axes: Iterable[str], block: int) -> str:
        """Write the test that a position is inside, unless blocks of this size fit exactly; its name or nothing."""
        count = self.body.count(axes)
        if count.const and count.const % block == 0:
            return ""
        mask = self.body.names.fresh(name)
        self.body.line(f"{mask} = {lanes} < {self.body.size(count)}")
        return mask

    def _parallel(self, axes: list[str]) -> None:
        body, block = self.body, self.schedule.x_block
        swept = any(self._points(s) != 1 for s in self._sets())
        if not axes:
            body.scopes[0].tile = ("R_BLOCK",) if swept else ()
            return
        self.programs.append((body.count(axes), block))
        pid = "tl.program_id(0).to(tl.int64)" if body.wide else "tl.program_id(0)"
        name = body.walker(axes, "x")
        if block == 1:
            body.scopes[0].tile = ("R_BLOCK",) if swept else ()
            body.line(f"{name} = {pid}")
            body.place(Lanes(name, tuple(axes)))
            return
        body.scopes[0].tile = ("X_BLOCK", "R_BLOCK") if swept else ("X_BLOCK",)
        body.constant("X_BLOCK", block)
        column = "[:, None]" if swept else ""
        lanes = f"tl.arange(0, X_BLOCK){column}"
        body.line(f"{name} = {pid} * X_BLOCK + {lanes}")
        body.place(Lanes(name, tuple(axes), 0, self._mask(f"{name}_in", name, axes, block)))

    def _two_dimensional(self, rows: list[str], columns: list[str]) -> None:
        """A tile with a side along each of two groups of axes, so that memory that runs along either is read in order."""
        body, schedule = self.body, self.schedule
        body.scopes[0].tile = ("X_BLOCK", "Y_BLOCK")
        body.constant("X_BLOCK", schedule.x_block)
        body.constant("Y_BLOCK", schedule.y_block)
        across = body.count(columns)
        self.programs += [(body.count(rows), schedule.x_block), (across, schedule.y_block)]
        wide = ".to(tl.int64)" if body.wide else ""
        tile, tiles = body.names.fresh("tile"), body.names.fresh("tiles_across")
        x = body.walker(rows, "x")
        y = body.walker(columns, "y")
        body.line(f"{tile} = tl.program_id(0){wide}")
        body.line(f"{tiles} = tl.cdiv({body.size(across)}, Y_BLOCK)")
        body.line(f"{x} = {tile} // {tiles} * X_BLOCK + tl.arange(0, X_BLOCK)[:, None]")
        body.line(f"{y} = {tile} % {tiles} * Y_BLOCK + tl.arange(0, Y_BLOCK)[None, :]")
        x_in = self._mask(f"{x}_in", x, rows, schedule.x_block)
        y_in = self._mask(f"{y}_in", y, columns, schedule.y_block)
        body.place(Lanes(x, tuple(rows), 0, x_in))
        body.place(Lanes(y, tuple(columns), 1, y_in))

    # ---- what is swept, in which order

    def _sets(self) -> set[Axes]:
        """The sets of axes that statements sweep."""
        return {self._axes(s, frozenset()) for s in self.kernel.statements if isinstance(s, Reduce | Store)}

    def _points(self, axes: Axes) -> int | None:
        return self.body.count(axes).const

    def _axes(self, task: Reduce | Store, bound: Axes) -> Axes:
        wanted = frozenset(task.axes) if isinstance(task, Reduce) else domain(self.kernel, task)
        return (wanted & self.swept) - bound

    def _stage(self, task: Reduce | Store) -> int:
        return max((self.stages[v] for v in reads(task)), default=0)

    def level(self, tasks: Iterable[Store | Reduce], bound: Axes) -> None:
        """Do `tasks`, where the axes `bound` have one value each, with the reductions they need that do not vary along
        axes still to be swept; those that do are done inside the sweeps."""
        tasks = list(tasks)
        here = [q for q in self._reductions(tasks) if not (self.kernel.domains[q.name] & self.swept) - bound]
        groups: dict[tuple[int, Axes], list[Store | Reduce]] = {}
        again = {a for t in (*here, *tasks) if isinstance(t, Reduce) for a in t.axes if a in bound}
        if again:
            raise Refused(f"a reduction over {', '.join(sorted(again))} is needed at each point of them: it wants a panel")
        for t in (*here, *tasks):
            groups.setdefault((self._stage(t), self._axes(t, bound)), []).append(t)
        self._ride(groups)
        self._delay_stores(groups)
        for (_, axes), group in sorted(groups.items(), key=lambda g: (g[0][0], not g[0][1], sorted(g[0][1]))):
            if axes:
                self.sweep(group, axes, bound)
            else:
                self._at_a_point(group)

    def _reductions(self, tasks: Iterable[Store | Reduce]) -> list[Reduce]:
        """The reductions that `tasks` need and that are not there yet, in the kernel's order."""
        missing = self.body.missing(v for t in tasks for v in reads(t))
        done = {t.name for t in tasks if isinstance(t, Reduce)}
        found = (self.kernel.definitions[v] for v in self.kernel.definitions if v in missing and v not in done)
        return [s for s in found if isinstance(s, Reduce)]

    def _ride(self, groups: dict[tuple[int, Axes], list[Store | Reduce]]) -> None:
        """Take sums that can be carried along with a maximum out of their own sweep, where sweeps are loops."""
        for (_, axes), group in list(groups.items()):
            points = self._points(axes)
            if not axes or points is not None and points <= self.schedule.r_block:
                continue
            tops = {t.name: t for t in group if isinstance(t, Reduce) and t.op == "max" and self._kind(t).kind == "f"}
            if not tops or any(self.kernel.domains[q.name] & axes for q in self._reductions(group)):
                continue
            for (_, others), later in groups.items():
                for q in [q for q in later if isinstance(q, Reduce)] if others == axes else []:
                    top = self._top_of(q)
                    if top in tops and set(tops[top].axes) == set(q.axes):
                        self._riders.setdefault(top, []).append(q)
                        later.remove(q)
        for key in [k for k, group in groups.items() if not group]:
            del groups[key]

    def _top_of(self, q: Reduce) -> str:
        """The maximum m of x, if `q` is the sum of exp(x - m); else nothing."""
        made = self.kernel.definitions
        e = made[q.operands[0]]
        if q.op != "sum" or not isinstance(e, Op) or e.op != "exp":
            return ""
        d = made[e.operands[0]]
        if not isinstance(d, Op) or d.op != "sub":
            return ""
        x, top = d.operands
        m = made[top]
        return top if isinstance(m, Reduce) and m.op == "max" and m.operands == (x,) else ""

    def _delay_stores(self, groups: dict[tuple[int, Axes], list[Store | Reduce]]) -> None:
        """A buffer updated in place is written last of all: a later sweep may read values from it anew. A sweep that would
        only store is joined with the next one over the same axes."""
        last = 1 + max((g for g, _ in groups), default=0)
        for (_, axes), group in list(groups.items()):
            in_place = [t for t in group if isinstance(t, Store) and self._is_in_place(t)]
            if in_place:
                groups.setdefault((last, axes), []).extend(in_place)
                group[:] = [t for t in group if t not in in_place]
        for (g, axes), group in sorted(groups.items(), key=lambda i: i[0][0]):
            later = [h for h, other in groups if other == axes and h > g]
            if axes and later and all(isinstance(t, Store) for t in group):
                groups[min(later), axes].extend(group)
                group.clear()
            if not group:
                del groups[g, axes]
        swept = [self._points(axes) for g, axes in groups if g == last and axes]
        if len(swept) > 1 and any(n is None or n > self.schedule.r_block for n in swept):
            raise Refused("buffers are updated in place in sweeps over different axes")

    def _is_in_place(self, t: Store) -> bool:
        return self.kernel.buffers[t.buffer].role == "inout"

    def _at_a_point(self, group: list[Store | Reduce]) -> None:
        """Stores that sweep nothing, and reductions over axes of a single point."""
        stores = [t for t in group if isinstance(t, Store)]
        if len(stores) == len(group) > MANY_STORES:
            self._one_after_the_other(stores)
            return
        self.body.compute(v for t in group for v in reads(t))
        for t in group:
            if isinstance(t, Reduce):
                value, dims = self.body.lookup(t.operands[0])
                first = t.op in ("argmax", "argmin")
                self.body.scopes[-1].values[t.name] = (Text.number(0, t.dtype), NO_DIMS) if first else (value, dims)
        for t in stores:
            self.body.store(t)

    def _one_after_the_other(self, stores: list[Store]) -> None:
        """Each store as soon as its value is there, or registers would hold them all; but what is read from a buffer that is
        updated in place is read before it is written."""
        loads = [s for s in self.kernel.definitions.values() if isinstance(s, Load)]
        for t in stores:
            needed = self.body.missing(v for u in stores for v in reads(u))
            self.body.compute([*reads(t), *(s.name for s in loads if s.buffer == t.buffer and s.name in needed)])
            self.body.store(t)

    # ---- one sweep

    def sweep(self, group: list[Store | Reduce], axes: Axes, bound: Axes) -> None:
        """Do reductions and stores over the same axes."""
        body = self.body
        inner = [q for q in self._reductions(group) if self.kernel.domains[q.name] & axes]
        outer: Axes = frozenset().union(*(self.kernel.domains[q.name] & axes for q in inner))
        along = [a for a in self.kernel.axes if a in axes - outer]
        outside = [a for a in self.kernel.axes if a in outer]
        reduces = [t for t in group if isinstance(t, Reduce)]
        points = self._points(frozenset(along))
        single = points is not None and points <= self.schedule.r_block
        self._title(group)
        if single and not outside:
            self._along(group, along, True, None)
            return
        partial = {q.name: self._start(q, along) for q in reduces}
        if not outside:
            self._along(group, along, single, partial)
        else:
            step = body.names.fresh("step")
            with body.loop(f"for {step} in range(0, {body.size(body.count(outside))}):"):
                name = body.walker(outside, "outer")
                body.line(f"{name} = tl.cast({step}, tl.int{64 if body.wide else 32})")
                body.place(Lanes(name, tuple(outside)))
                self.level(inner, bound | outer)
                self._along(group, along, single, partial)
        for q in reduces:
            self._finish(q, partial[q.name], bool(along))

    def _title(self, group: list[Store | Reduce]) -> None:
        what = []
        for t in group:
            if isinstance(t, Store):
                what.append(self._called(t))
            else:
                what.append(f"{t.op} over {', '.join(t.axes)}")
                what += [f"{q.op} of exp(x - {t.op}) with it" for q in self._riders.get(t.name, ())]
        if any(isinstance(t, Reduce) for t in group) or self._sweeps:
            self.body.comment("; ".join(dict.fromkeys(what)))
        self._sweeps += 1

    def _called(self, t: Store) -> str:
        return f"store {t.buffer}"

    def _put(self, t: Store) -> None:
        """Do a store: its value is there."""
        self.body.store(t)

    def _block(self, axes: Axes, points: int | None) -> str:
        """The constant that says how many lanes a sweep over these axes has."""
        lanes = self.schedule.r_block if points is None else min(power_of_two(points), self.schedule.r_block)
        known = self._blocks.get(axes)
        if known is None:
            taken = [n for n in self._blocks.values() if self.body.constants[n] == lanes]
            n = len(set(self._blocks.values()))
            known = taken[0] if taken else self.body.constant("R_BLOCK" if n == 0 else f"R{n}_BLOCK", lanes)
            self._blocks[axes] = known
        return known

    def _along(self, group: list[Store | Reduce], along: list[str], single: bool, partial: dict[str, list[str]] | None) -> None:
        """The lanes of a sweep: one tile, or a loop over tiles; nothing to walk where `along` is empty."""
        body = self.body
        if not along:
            self._work(group, partial, "", body.scopes[-1])
            return
        here = body.scopes[-1]
        axes = frozenset(along)
        block = self._block(axes, self._points(axes))
        tile = (*body.tile[:-1], block)
        arange = f"tl.arange(0, {block})" + ("[None, :]" if len(tile) == 2 else "")
        if single:
            known = here.inner.get(axes)
            if known is None:
                known = here.inner[axes] = Scope(tile=tile)
                name = body.walker(along, "r")
                with body.scope(known):
                    body.line(f"{name} = {arange}{'.to(tl.int64)' if body.wide else ''}")
                    mask = self._mask(f"{name}_in", name, along, body.constants[block])
                    body.place(Lanes(name, tuple(along), len(tile) - 1, mask))
            self._hoist(group, axes)
            with body.scope(known):
                self._work(group, partial, known.lanes[0].mask, here)
            return
        self._hoist(group, axes)
        name = body.walker(along, "r")
        start = body.names.fresh(f"{name}_start")
        with body.loop(f"for {start} in range(0, {body.size(body.count(along))}, {block}):") as scope:
            scope.tile = tile
            body.line(f"{name} = ({start} + {arange}).to(tl.int64)" if body.wide else f"{name} = {start} + {arange}")
            mask = self._mask(f"{name}_in", name, along, body.constants[block])
            body.place(Lanes(name, tuple(along), len(tile) - 1, mask))
            self._work(group, partial, mask, here)

    def _hoist(self, group: list[Store | Reduce], axes: Axes) -> None:
        """What does not vary in the sweep is computed before it, unless it needs a reduction that is still to come."""
        wanted = [v for t in group for v in reads(t)]
        missing = self.body.missing(wanted)
        waits: set[str] = set()
        for v, s in self.kernel.definitions.items():
            if v in missing and (isinstance(s, Reduce) or not waits.isdisjoint(reads(s))):
                waits.add(v)
        self.body.compute(wanted, only=lambda v: v not in waits and not self.kernel.domains[v] & axes)

    def _work(self, group: list[Store | Reduce], partial: dict[str, list[str]] | None, mask: str, outside: Scope) -> None:
        """One tile's part of a sweep. Values come first and stores last, since a store may change what a value is read from;
        without accumulators (`partial`) the reductions are done with this tile, and their values belong to `outside`."""
        body = self.body
        body.compute(v for t in group for v in reads(t))
        for t in group:
            if isinstance(t, Reduce):
                terms = self._masked(t, mask)
                if t.name in self._riders and partial is not None:
                    self._online(t, partial[t.name], terms[0], mask)
                elif partial is None:
                    self._reduce(t, [body.spread(text, dims) for text, dims in terms], outside)
                else:
                    self._accumulate(t, partial[t.name], [text for text, _ in terms])
        for t in group:
            if isinstance(t, Store):
                self._put(t)

    # ---- reductions

    def _kind(self, q: Reduce) -> dtype:
        """The dtype that a reduction is carried in."""
        given = self.kernel.definitions[q.operands[0]].dtype
        return int32 if given is bool_ else given

    def _masked(self, q: Reduce, mask: str) -> list[tuple[str, Dims]]:
        """What enters a reduction from one tile, the identity where the tile hangs over: a value, for arg reductions with
        its place."""
        body, kind = self.body, self._kind(q)
        value, dims = body.lookup(q.operands[0])
        text = value.tensor
        if value.dtype is bool_:
            text = f"{text}.to(tl.int32)"
        terms = [(text, dims, identity(q.op, kind))]
        if q.op in ("argmax", "argmin"):
            terms.append((*self._place_in(q), self._beyond()))
        if not mask:
            return [(text, dims) for text, dims, _ in terms]
        last = frozenset((len(body.tile) - 1,))
        other = [literal(i, kind) if n == 0 else str(i) for n, (_, _, i) in enumerate(terms)]
        return [(f"tl.where({mask}, {text}, {o})", dims | last) for (text, dims, _), o in zip(terms, other)]

    def _beyond(self) -> int:
        return 2**63 - 1 if self.body.wide else 2**31 - 1

    def _place_in(self, q: Reduce) -> tuple[str, Dims]:
        """The position along the reduced axes, in the order in which the statement names them."""
        from_here = self.kernel.axes
        terms: list[str] = []
        dims = NO_DIMS
        below = self.body.count(())
        for a in reversed(q.axes):
            if a not in self.body.still:
                text, along = self.body.where_is(a)
                terms.append(text if below == 1 else f"{text} * {self.body.size(below)}")
                dims |= along
            below = below * from_here[a]
        text = " + ".join(reversed(terms))
        return (f"({text})" if len(terms) > 1 else text), dims

    def _reduce(self, q: Reduce, terms: list[str], scope: Scope, across: int = -1) -> None:
        """Fold whole tiles along their last dimension, or along `across`, and define the reduction's value in `scope`."""
        body = self.body
        axis = across % len(body.tile)
        column = ("[None, :]", "[:, None]")[axis] if len(body.tile) == 2 else ""
        dims: Dims = frozenset(range(len(body.tile))) - {axis}
        text = terms[0]
        if q.op in ("argmax", "argmin"):
            f = body.functions.library("_first_greatest" if q.op == "argmax" else "_first_least")
            extreme, place = body.names.fresh(f"{q.name}_value"), body.names.fresh(f"{q.name}_place")
            body.line(f"{extreme}, {place} = tl.reduce(({terms[0]}, {terms[1]}), {axis}, {f})", q.note)
            body.define(q.name, f"{place}{column}.to(tl.int64)", dims, scope=scope)
            return
        match q.op:
            case "sum":
                text = f"tl.sum({text}, {axis}){column}"
            case "prod":
                text = f"tl.reduce({text}, {axis}, {body.functions.library('_multiply')}){column}"
            case "any":
                text = f"tl.max({text}, {axis}){column} != 0"
            case "all":
                text = f"tl.min({text}, {axis}){column} != 0"
            case "max" | "min" if self._kind(q).kind != "f":
                text = f"tl.{q.op}({text}, {axis}){column}"
            case "max" | "min":
                text = f"tl.reduce({text}, {axis}, {body.functions.library(f'_{q.op}imum')}){column}"
        if q.dtype.kind in "iu" and q.dtype.itemsize < 4:
            text = f"({text}).to({tl(q.dtype)})"  # the language widens small integers before it folds them
        body.define(q.name, text, dims, q.note, scope=scope)

    def _online(self, m: Reduce, carried: list[str], term: tuple[str, Dims], mask: str) -> None:
        """One tile of a maximum and of the sums of exp(x - maximum) that ride on it: what was summed so far is scaled to the new
        maximum. While that is minus infinity, nothing is subtracted: differences of infinities are no numbers."""
        body, kind = self.body, self._kind(m)
        axis = len(body.tile) - 1
        column = "[:, None]" if axis == 1 else ""
        part, *sums = carried
        top, shift = body.names.fresh(f"{m.name}_top"), body.names.fresh("shift")
        f = body.functions.library("_maximum")
        body.line(f"{top} = {f}({part}, tl.reduce({body.spread(*term)}, {axis}, {f}){column})", m.note)
        body.line(f'{shift} = tl.where({top} == float("-inf"), 0.0, {top})')
        x, dims = body.lookup(m.operands[0])
        for q, total in zip(self._riders[m.name], sums, strict=True):
            e, rest = body.names.fresh(q.operands[0]), body.names.fresh("rest")
            body.line(f"{e} = {spell('exp', (Text(f'{x.tensor} - {shift}', kind),), kind, body.functions)}", q.note)
            body.line(f"{rest} = {spell('exp', (Text(f'{part} - {shift}', kind),), kind, body.functions)}")
            inside = f"tl.where({mask}, {e}, {literal(0.0, kind)})" if mask else e
            along = (dims | frozenset((axis,))) if mask else dims
            body.line(f"{total} = {total} * {rest} + tl.sum({body.spread(inside, along)}, {axis}){column}")
        body.line(f"{part} = {top}")

    def _start_online(self, m: Reduce) -> list[str]:
        """One value a row of the maximum, and of each sum."""
        body, kind = self.body, self._kind(m)
        rows = ", ".join((*body.tile[:-1], "1")) if len(body.tile) > 1 else ""
        carried = [body.names.fresh(f"{q.name}_part") for q in (m, *self._riders[m.name])]
        for name, start in zip(carried, (-math.inf, *[0.0] * (len(carried) - 1)), strict=True):
            body.line(f"{name} = tl.full([{rows}], {literal(start, kind)}, {tl(kind)})")
        return carried

    def _finish_online(self, m: Reduce, carried: list[str]) -> None:
        """Where all was minus infinity, the differences are no numbers, and so is their sum."""
        body, kind = self.body, self._kind(m)
        dims: Dims = frozenset(range(len(body.tile) - 1))
        body.scopes[-1].values[m.name] = (Text(carried[0], kind), dims)
        for q, total in zip(self._riders[m.name], carried[1:], strict=True):
            body.define(q.name, f'tl.where({carried[0]} == float("-inf"), float("nan"), {total})', dims, q.note)

    def _start(self, q: Reduce, along: list[str]) -> list[str]:
        """Write the accumulators of a reduction that takes several tiles: a tile each, or one value for each row."""
        body, kind = self.body, self._kind(q)
        if q.name in self._riders:
            return self._start_online(q)
        tile = (*body.tile[:-1], self._block(frozenset(along), self._points(frozenset(along))) if along else "1")
        shape = "[]" if tile == ("1",) else f"[{', '.join(tile)}]"
        part = body.names.fresh(f"{q.name}_part")
        body.line(f"{part} = tl.full({shape}, {literal(identity(q.op, kind), kind)}, {tl(kind)})")
        if q.op not in ("argmax", "argmin"):
            return [part]
        place = body.names.fresh(f"{q.name}_place")
        body.line(f"{place} = tl.full({shape}, {self._beyond()}, tl.int{64 if body.wide else 32})")
        return [part, place]

    def _accumulate(self, q: Reduce, partial: list[str], terms: list[str]) -> None:
        body, acc, x = self.body, partial[0], terms[0]
        match q.op:
            case "sum":
                text = f"{acc} + {x}"
            case "prod":
                text = f"{acc} * {x}"
            case "any":
                text = f"tl.maximum({acc}, {x})"
            case "all":
                text = f"tl.minimum({acc}, {x})"
            case "max" | "min" if self._kind(q).kind != "f":
                text = f"tl.{q.op}imum({acc}, {x})"
            case "max" | "min":
                text = f"{body.functions.library(f'_{q.op}imum')}({acc}, {x})"
            case _:
                f = body.functions.library("_first_greatest" if q.op == "argmax" else "_first_least")
                acc, text = ", ".join(partial), f"{f}({', '.join((*partial, *terms))})"
        body.line(f"{acc} = {text}", q.note)

    def _finish(self, q: Reduce, partial: list[str], tiled: bool) -> None:
        """Fold what is left of a reduction over several tiles."""
        if q.name in self._riders:
            self._finish_online(q, partial)
            return
        if tiled:
            self._reduce(q, partial, self.body.scopes[-1])
            return
        dims = frozenset(range(len(self.body.tile) - 1))
        if q.op in ("argmax", "argmin"):
            self.body.define(q.name, f"{partial[1]}.to(tl.int64)", dims)
        elif q.dtype is bool_:
            self.body.define(q.name, f"{partial[0]} != 0", dims)
        else:
            self.body.scopes[-1].values[q.name] = (Text(partial[0], q.dtype), dims)
