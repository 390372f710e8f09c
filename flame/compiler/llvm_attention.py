"""Attention on a CPU as one routine: no matrix of scores ever stands in memory, and keys that a causal mask hides cost nothing.

    forward     for each head and block of its queries:
                    K packed as panels of its transpose, V as panels                        once a chunk of queries
                    for a few rows of queries:  scores = Q K^T, in scratch (all keys of the row block: it fits in cache)
                                                softmax of each row over the keys it may see
                                                y = P V, divided by the sums
    backward    for each head, for a few rows of queries:
                    P = exp(Q K^T * scale - lse) and dP = dY V^T in scratch, dS = P * (dP - delta)
                    dQ = dS K, and dK += dS^T Q, dV += P^T dY, which gather in scratch

All products go through one register tile, on operands that are packed and padded so that it has no edges. Sizes of a head
(its widths, whether it is causal, the scale) are constants of the code; how many heads, queries and keys there are is read when
it runs. Narrow floats are computed in float32. Rows are exact softmaxes, not online ones: a block of 12 rows of 8192 keys is
400 KB. The backward recomputes the scores from `lse`, as in Dao et al., "FlashAttention" (2022).
"""

from __future__ import annotations

from collections.abc import Callable

from flame.compiler.attention_plan import QUERIES, Attention, Plan, Routine, up
from flame.compiler.llvm_machine import LlvmMachine, Value
from flame.compiler.llvm_text import (
    Function,
    Int,
    element,
    existing_lanes,
    memory_element,
    module,
    repeat,
    store_tile,
    suffix,
    transpose,
    wide,
)
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import bool_, dtype, float32, float64
from flame.ops.vector_math import exp_of_negative


def forward(attention: Attention, target: CpuTarget) -> Routine:
    """y, lse = attention(q, k, v): buffers q, k, v, y, lse."""
    return _Writer(attention, target, backward=False).routine()


def backward(attention: Attention, target: CpuTarget) -> Routine:
    """dq, dk, dv = attention_grad(q, k, v, lse, delta, g): buffers in that order, then dq, dk, dv."""
    return _Writer(attention, target, backward=True).routine()


class _Writer:
    """Writes one routine."""

    def __init__(self, attention: Attention, target: CpuTarget, backward: bool):
        self.a, self.target, self.backward = attention, target, backward
        self.wide = float64 if attention.dtype is float64 else float32
        self.lanes = max(2, target.vector_bytes // self.wide.itemsize)
        self.rows, self.vectors = (6, 2) if target.registers <= 16 else (12, 2)
        self.columns = self.vectors * self.lanes
        self.t, self.v = element(self.wide), wide(element(self.wide), self.lanes)
        self.align = self.wide.itemsize
        self.plan = Plan(attention, self.rows, self.columns, self.wide.itemsize)
        self.name = "attention_grad" if backward else "attention"
        self.f = Function(self.name, [("ptr", "bufs"), ("ptr", "syms"), ("i64", "begin"), ("i64", "end")])
        self.m = LlvmMachine(self.f, target)

    def routine(self) -> Routine:
        self._entry()
        text = f"; {self.name} {self.a}\n" + module([self._tile_function(), self.f])
        return Routine(text, self.name, self.a, self.backward, self.rows, self.columns, self.wide.itemsize)

    # -- the entry

    def _entry(self) -> None:
        f, a = self.f, self.a
        names = ["q", "k", "v", "lse", "delta", "g", "dq", "dk", "dv"] if self.backward else ["q", "k", "v", "y", "lse"]
        self.buffers = {n: f.load("ptr", f.address("%bufs", i, "ptr"), 8) for i, n in enumerate(names)}
        workspace = f.load("ptr", f.address("%bufs", len(names), "ptr"), 8)
        heads, self.queries, self.keys, chunks, own = (f.load("i64", f.address("%syms", i, "i64"), 8) for i in range(5))
        scratch = f.address(workspace, f.mul("%begin", own), self.t)
        padding = up(self.rows, self.columns)
        whole = f.mul(f.div(f.add(self.keys, self.columns - 1), self.columns), self.columns)
        self.capacity = f.add(whole, padding)
        self.scratch = {
            n: f.address(scratch, f.add(f.mul(self.capacity, times), constant), self.t)
            for n, (constant, times) in self.plan.places(0, self.backward).items()
        }
        blocks: Int = 1 if self.backward else f.div(f.add(self.queries, QUERIES - 1), QUERIES)
        items = f.mul(heads, blocks)
        low, high = (f.div(f.mul(x, items), chunks) for x in ("%begin", "%end"))

        def item(i: str, _: list[str]) -> list[str]:
            head = f.div(i, blocks)
            self.at: dict[str, str] = {}
            for n, pointer in self.buffers.items():
                rows, width = self._shape(n)
                t = memory_element(self._kind(n))
                self.at[n] = f.address(pointer, f.mul(head, f.mul(rows, width)), t)
            if self.backward:
                self._backward_head()
            else:
                first = f.mul(f.rem(i, blocks), QUERIES)
                self._forward_block(first, f.least(f.add(first, QUERIES), self.queries))
            return []

        f.loop(low, high, 1, [], item)
        assert a.width > 0

    def _shape(self, name: str) -> tuple[Int, int]:
        """Rows of a head, and their width."""
        a = self.a
        rows = self.keys if name in ("k", "v", "dk", "dv") else self.queries
        width = 1 if name in ("lse", "delta") else a.value_width if name in ("v", "dv", "y", "g") else a.width
        return rows, width

    def _kind(self, name: str) -> dtype:
        """lse and delta stand in memory as they are computed."""
        return self.wide if name in ("lse", "delta") else self.a.dtype

    # -- forward

    def _forward_block(self, first: Int, last: Int) -> None:
        f, p = self.f, self.plan
        limit = f.least(self.keys, last) if self.a.causal else self.keys
        self._pack_turned("k", limit, self.a.width, p.depth, "turned")
        self._pack_straight("v", limit, self.a.value_width, p.values, "straight")

        def rows(i: str, _: list[str]) -> list[str]:
            self._load_rows("q", i, self.a.width, p.depth, "q", self.a.scale)
            seen = f.least(self._seen(i), limit)
            panels = self._times(seen)
            self._product_turned("q", p.depth, "turned", "scores", panels)
            f.loop(0, f.least(p.block, f.sub(last, i)), 1, [], lambda r, _: self._softmax_row(i, r, panels))
            self._product_straight("scores", "straight", p.values, "o", self._fours(seen))
            f.loop(0, f.least(p.block, f.sub(last, i)), 1, [], lambda r, _: self._finish_row(i, r))
            return []

        f.loop(first, last, p.block, [], rows)

    def _seen(self, i: Int) -> Int:
        """How many keys some row of the block at `i` may see."""
        if not self.a.causal:
            return self.keys
        return self.f.least(self.keys, self.f.add(i, self.plan.block))

    def _own(self, row: Int) -> Int:
        """How many keys one row may see."""
        return self.f.least(self.keys, self.f.add(row, 1)) if self.a.causal else self.keys

    def _times(self, n: Int) -> Int:
        """Panels of columns."""
        return self.f.div(self.f.add(n, self.columns - 1), self.columns)

    def _fours(self, n: Int) -> Int:
        return self.f.mul(self.f.div(self.f.add(n, 3), 4), 4)

    def _softmax_row(self, i: Int, r: Int, panels: Int) -> list[str]:
        f, m = self.f, self.m
        row = f.address(self.scratch["scores"], f.mul(r, self.capacity), self.t)
        own = self._own(f.add(i, r))
        end = f.mul(panels, self.columns)
        least = self._splat(m.const(float("-inf"), self.wide))
        (top,) = self._along(row, own, own, [least], lambda x, s, _j, _e: [m.emit("maximum", x, s[0])], least, 4)
        top = self._across("maximum", top)
        high = self._splat(top)
        zero = self._splat(m.const(0.0, self.wide))

        def power(x: Value, s: list[Value], j: Int, exists: str | None) -> list[Value]:
            e = exp_of_negative(m, m.emit("sub", x, high))
            if exists is not None:
                e = m.emit("where", Value(exists, bool_, self.lanes), e, zero)
            f.store(self.v, e.text, f.address(row, j, self.t), self.align)
            return [m.emit("add", e, s[0])]

        (total,) = self._along(row, own, end, [zero], power, None, 2)
        total = self._across("add", total)
        inverse = m.emit("div", m.const(1.0, self.wide), total)
        f.store(self.t, inverse.text, f.address(self.scratch["sums"], r, self.t), self.align)
        lse = m.emit("add", m.apply("log", [total], self.wide), top)
        f.store(self.t, lse.text, f.address(self.at["lse"], f.add(i, r), self.t), self.align)
        return []

    def _finish_row(self, i: Int, r: Int) -> list[str]:
        f, p = self.f, self.plan
        inverse = Value(f.load(self.t, f.address(self.scratch["sums"], r, self.t), self.align), self.wide)
        self._store_row("y", f.add(i, r), f.address(self.scratch["o"], f.mul(r, p.values), self.t), inverse)
        return []

    # -- backward

    def _backward_head(self) -> None:
        f, p, a = self.f, self.plan, self.a
        self._pack_turned("k", self.keys, a.width, p.depth, "turned")
        self._pack_straight("k", self.keys, a.width, p.depth, "keys")
        self._pack_turned("v", self.keys, a.value_width, p.values, "straight")
        for name, width in (("dk", p.depth), ("dv", p.values)):
            zeros = self.scratch[name]
            f.loop(0, f.mul(self.capacity, width), self.lanes, [], lambda j, _, zeros=zeros: self._clear(zeros, j))  # type: ignore[misc]

        def rows(i: str, _: list[str]) -> list[str]:
            self._load_rows("q", i, a.width, p.depth, "q", a.scale)
            self._load_rows("g", i, a.value_width, p.values, "g", None)
            seen = self._seen(i)
            tall = f.mul(f.div(f.add(seen, self.rows - 1), self.rows), self.rows)
            panels = self._times(seen)
            self._product_turned("q", p.depth, "turned", "scores", panels)
            self._product_turned("g", p.values, "straight", "dp", panels)
            end = f.mul(self._times(tall), self.columns)
            f.loop(0, p.block, 1, [], lambda r, _: self._score_row(i, r, end))
            self._product_straight("dp", "keys", p.depth, "o", self._fours(seen))
            some = f.least(p.block, f.sub(self.queries, i))
            scale = self.m.const(a.scale, self.wide)
            f.loop(0, some, 1, [], lambda r, _: self._store_row(
                "dq", f.add(i, r), f.address(self.scratch["o"], f.mul(r, p.depth), self.t), scale) or [])  # fmt: skip
            self._product_added("dp", "q", p.depth, "dk", tall)
            self._product_added("scores", "g", p.values, "dv", tall)
            return []

        f.loop(0, self.queries, p.block, [], rows)
        for name, width in (("dk", p.depth), ("dv", p.values)):
            f.loop(0, self.keys, 1, [], lambda j, _, name=name, width=width: self._store_row(  # type: ignore[misc]
                name, j, f.address(self.scratch[name], f.mul(j, width), self.t), None) or [])  # fmt: skip

    def _clear(self, base: str, j: Int) -> list[str]:
        self.f.store(self.v, "zeroinitializer", self.f.address(base, j, self.t), self.align)
        return []

    def _score_row(self, i: Int, r: Int, end: Int) -> list[str]:
        """P over the scores, dS over dP; nothing where there is no key or no query."""
        f, m = self.f, self.m
        at = f.add(i, r)
        there = f.emit(f"icmp slt i64 {at}, {self.queries}")
        own = f.emit(f"select i1 {there}, i64 {self._own(at)}, i64 0")
        safe = f.least(at, f.sub(self.queries, 1))
        row, slopes = (f.address(self.scratch[n], f.mul(r, self.capacity), self.t) for n in ("scores", "dp"))
        lse, delta = (
            self._splat(Value(f.load(self.t, f.address(self.at[n], safe, self.t), self.align), self.wide))
            for n in ("lse", "delta")
        )
        zero = self._splat(m.const(0.0, self.wide))

        def slope(x: Value, s: list[Value], j: Int, exists: str | None) -> list[Value]:
            place = f.address(slopes, j, self.t)
            p = exp_of_negative(m, m.emit("sub", x, lse))
            ds = m.emit("mul", p, m.emit("sub", Value(f.load(self.v, place, self.align), self.wide, self.lanes), delta))
            if exists is not None:
                keep = Value(exists, bool_, self.lanes)
                p, ds = m.emit("where", keep, p, zero), m.emit("where", keep, ds, zero)
            f.store(self.v, p.text, f.address(row, j, self.t), self.align)
            f.store(self.v, ds.text, place, self.align)
            return []

        self._along(row, own, end, [], slope, None, 2)
        return []

    # -- rows of scratch

    def _along(
        self,
        row: str,
        own: Int,
        end: Int,
        states: list[Value],
        step: Callable[[Value, list[Value], Int, str | None], list[Value]],
        other: Value | None,
        copies: int,
    ) -> list[Value]:
        """states = step(vector, states, its place, mask) along [0, end); elements from `own` on do not exist (`other`)."""
        f, n = self.f, self.lanes

        def load(j: Int) -> Value:
            return Value(f.load(self.v, f.address(row, j, self.t), self.align), self.wide, n)

        def states_of(names: list[str]) -> list[Value]:
            return [Value(x, self.wide, n) for x in names]

        def many(j: str, names: list[str]) -> list[str]:
            s = states_of(names)
            for u in range(copies):
                s = step(load(f.add(j, u * n)), s, f.add(j, u * n), None)
            return [x.text for x in s]

        def last(j: str, names: list[str]) -> list[str]:
            exists = existing_lanes(f, j, own, n)
            x = load(j)
            if other is not None:
                x = self.m.emit("where", Value(exists, bool_, n), x, other)
            return [x.text for x in step(x, states_of(names), j, exists)]

        whole = f.mul(f.div(own, n * copies), n * copies)
        names = f.loop(0, whole, n * copies, [(s.type, s.text) for s in states], many)
        names = f.loop(whole, end, n, [(self.v, x) for x in names], last)
        return states_of(names)

    def _across(self, op: str, x: Value) -> Value:
        """One value of all lanes."""
        f, n = self.f, self.lanes
        half = n // 2
        while half:
            turned = f.shuffle(self.t, n, x.text, x.text, [(i + half) % n for i in range(n)])
            x = self.m.emit(op, x, Value(turned, self.wide, n))
            half //= 2
        return Value(f.emit(f"extractelement {x.type} {x.text}, i64 0"), self.wide)

    def _splat(self, x: Value) -> Value:
        return self.m.widen(x, self.lanes)

    # -- rows of the caller's arrays

    def _vector(self, pointer: str, at: int, width: int, d: dtype) -> Value:
        """Elements [at, at + lanes) of a row that is `width` long, 0 beyond it, as they are computed with."""
        f, n, t = self.f, self.lanes, memory_element(d)
        if at >= width:
            return self._splat(self.m.const(0.0, self.wide))
        place = f.address(pointer, at, t)
        if at + n <= width:
            text = f.load(wide(t, n), place, d.itemsize)
        else:
            mask = "<" + ", ".join(f"i1 {int(at + j < width)}" for j in range(n)) + ">"
            zero = "0" if t.startswith("i") else "0.0"
            given: list[tuple[str, Int]] = [
                (f"ptr align {d.itemsize}", place), (wide("i1", n), mask), (wide(t, n), repeat(zero, t, n))
            ]  # fmt: skip
            text = f.call(wide(t, n), f"llvm.masked.load.{suffix(t, n)}.p0", given)
        return self.m.cast(Value(text, d, n), self.wide)

    def _store_row(self, name: str, row: Int, source: str, factor: Value | None) -> list[str]:
        """A row of a result, from scratch."""
        f, n, d = self.f, self.lanes, self.a.dtype
        _, width = self._shape(name)
        t = memory_element(d)
        to = f.address(self.at[name], f.mul(row, width), t)
        for at in range(0, width, n):
            x = Value(f.load(self.v, f.address(source, at, self.t), self.align), self.wide, n)
            if factor is not None:
                x = self.m.emit("mul", x, factor)
            x = self.m.cast(x, d)
            place = f.address(to, at, t)
            if at + n <= width:
                f.store(x.type, x.text, place, d.itemsize)
            else:
                mask = "<" + ", ".join(f"i1 {int(at + j < width)}" for j in range(n)) + ">"
                self.m.store_some(t, n, x.text, place, d.itemsize, mask)
        return []

    def _load_rows(self, name: str, first: Int, width: int, padded: int, to: str, factor: float | None) -> None:
        """A block of rows into scratch; zeros for rows that are not there."""
        f, d = self.f, self.a.dtype
        t = memory_element(d)

        def row(r: str, _: list[str]) -> list[str]:
            at = f.add(first, r)
            target = f.address(self.scratch[to], f.mul(r, padded), self.t)

            def copy() -> None:
                source = f.address(self.at[name], f.mul(at, width), t)
                for j in range(0, padded, self.lanes):
                    x = self._vector(source, j, width, d)
                    if factor is not None:
                        x = self.m.emit("mul", x, self.m.const(factor, self.wide))
                    f.store(self.v, x.text, f.address(target, j, self.t), self.align)

            def clear() -> None:
                for j in range(0, padded, self.lanes):
                    self._clear(target, j)

            f.choose(f.emit(f"icmp slt i64 {at}, {self.queries}"), copy, clear)
            return []

        f.loop(0, self.plan.block, 1, [], row)

    def _pack_straight(self, name: str, limit: Int, width: int, padded: int, to: str) -> None:
        """Rows as panels of columns, [panel][row][columns]; rows from `limit` up to the next multiple of 4 are 0."""
        f, d = self.f, self.a.dtype
        t = memory_element(d)

        def place(j: Int, column: int) -> str:
            panel, inside = divmod(column, self.columns)
            start = f.add(f.mul(f.add(f.mul(self.capacity, panel), j), self.columns), inside)
            return f.address(self.scratch[to], start, self.t)

        def row(j: str, _: list[str]) -> list[str]:
            source = f.address(self.at[name], f.mul(j, width), t)
            for c in range(0, padded, self.lanes):
                f.store(self.v, self._vector(source, c, width, d).text, place(j, c), self.align)
            return []

        def clear(j: str, _: list[str]) -> list[str]:
            for c in range(0, padded, self.lanes):
                f.store(self.v, "zeroinitializer", place(j, c), self.align)
            return []

        f.loop(0, limit, 1, [], row)
        f.loop(limit, self._fours(limit), 1, [], clear)

    def _pack_turned(self, name: str, limit: Int, width: int, padded: int, to: str) -> None:
        """Rows as panels of their transpose, [panel][element][columns]; rows past the end repeat the last one."""
        f, n, d = self.f, self.lanes, self.a.dtype
        t = memory_element(d)

        def block(j: str, _: list[str]) -> list[str]:
            rows = [f.address(self.at[name], f.mul(f.least(f.add(j, r), f.sub(limit, 1)), width), t) for r in range(n)]
            panel, inside = f.div(j, self.columns), f.rem(j, self.columns)
            target = f.address(self.scratch[to], f.add(f.mul(panel, padded * self.columns), inside), self.t)
            for c in range(0, padded, n):
                turned = transpose(f, self.t, [self._vector(p, c, width, d).text for p in rows], n)
                for e, x in enumerate(turned):
                    f.store(self.v, x, f.address(target, (c + e) * self.columns, self.t), self.align)
            return []

        f.loop(0, f.mul(self._times(limit), self.columns), n, [], block)

    # -- products, by tiles

    def _tile(
        self, left: str, row: Int, k: Int, right: str, right_k: Int, to: str, to_row: Int, depth: Int, goes_on: bool
    ) -> None:
        f = self.f
        f.do(f"call void @{self.name}_tile(ptr {left}, i64 {row}, i64 {k}, ptr {right}, i64 {right_k}, ptr {to}, i64 {to_row}, "
             f"i64 {depth}, i64 {int(goes_on)})")  # fmt: skip

    def _product_turned(self, left: str, depth: int, right: str, to: str, panels: Int) -> None:
        """to[block, keys] = left[block, depth] * right, panel by panel, which stays in the nearest cache."""
        f = self.f

        def panel(j: str, _: list[str]) -> list[str]:
            b = f.address(self.scratch[right], f.mul(j, depth * self.columns), self.t)
            for r in range(0, self.plan.block, self.rows):
                a = f.address(self.scratch[left], r * depth, self.t)
                c = f.address(self.scratch[to], f.add(f.mul(self.capacity, r), f.mul(j, self.columns)), self.t)
                self._tile(a, depth, 1, b, self.columns, c, self.capacity, depth, False)
            return []

        f.loop(0, panels, 1, [], panel)

    def _product_straight(self, left: str, right: str, width: int, to: str, keys: Int) -> None:
        """to[block, width] = left[block, keys] * right, which is packed in panels of columns."""
        f = self.f
        for c in range(0, width, self.columns):
            b = f.address(self.scratch[right], f.mul(self.capacity, c), self.t)
            for r in range(0, self.plan.block, self.rows):
                a = f.address(self.scratch[left], f.mul(self.capacity, r), self.t)
                o = f.address(self.scratch[to], r * width + c, self.t)
                self._tile(a, self.capacity, 1, b, self.columns, o, width, keys, False)

    def _product_added(self, left: str, right: str, width: int, to: str, keys: Int) -> None:
        """to[keys, width] += left[block, keys] transposed * right[block, width]."""
        f = self.f

        def rows(j: str, _: list[str]) -> list[str]:
            a = f.address(self.scratch[left], j, self.t)
            for c in range(0, width, self.columns):
                b = f.address(self.scratch[right], c, self.t)
                o = f.address(self.scratch[to], f.add(f.mul(j, width), c), self.t)
                self._tile(a, 1, self.capacity, b, width, o, width, self.plan.block, True)
            return []

        f.loop(0, keys, self.rows, [], rows)

    def _tile_function(self) -> Function:
        """to = (goes_on ? to : 0) + left * right over `depth`, a multiple of 4; strides are in elements."""
        parameters = [("ptr noalias", "left"), ("i64", "row"), ("i64", "k"), ("ptr noalias", "right"), ("i64", "right_k")]
        parameters += [("ptr noalias", "to"), ("i64", "to_row"), ("i64", "depth"), ("i64", "goes_on")]
        f = Function(f"{self.name}_tile", parameters, attributes="nounwind noinline", linkage="internal")
        lefts = ["%left"]
        for _ in range(self.rows - 1):
            lefts.append(f.address(lefts[-1], "%row", self.t))

        def step(i: Int, sums: list[str]) -> list[str]:
            b = f.address("%right", f.mul(i, "%right_k"), self.t)
            at = f.mul(i, "%k")
            columns = [f.load(self.v, f.address(b, j * self.lanes, self.t), self.align) for j in range(self.vectors)]
            out = []
            for r in range(self.rows):
                x = f.splat(f.load(self.t, f.address(lefts[r], at, self.t), self.align), self.t, self.lanes)
                for j in range(self.vectors):
                    given: list[tuple[str, Int]] = [(self.v, x), (self.v, columns[j]), (self.v, sums[r * self.vectors + j])]
                    out.append(f.call(self.v, f"llvm.fma.{suffix(self.t, self.lanes)}", given))
            return out

        def four(i: str, sums: list[str]) -> list[str]:
            for u in range(4):
                sums = step(f.add(i, u), sums)
            return sums

        sums = f.loop(0, "%depth", 4, [(self.v, "zeroinitializer")] * (self.rows * self.vectors), four)
        store_tile(f, sums, self.rows, self.t, self.lanes)
        return f
