"""Recurrent layers on a CPU as one routine: all steps of a part of the batch, its states in cache.

    forward     w packed by blocks of columns of the state, the gates of a block side by side
                for each step, block and few rows:  gates of the block = h w^T, in registers; then the cell, on the tile just made

Rows of a batch know nothing of each other, so a chunk is some of its rows through all of the steps, and chunks never wait for one
another. The size of the state and the kind of cell are constants of the code; steps, batch and chunks are read when it runs.
Narrow floats are computed in float32. `flame.compiler.llvm_recurrent_grad` writes the gradient with what stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from flame.compiler.llvm_machine import LlvmMachine, Value
from flame.compiler.llvm_text import (
    Function,
    Int,
    element,
    memory_element,
    module,
    repeat,
    store_tile,
    suffix,
    transpose,
    vector,
    wide,
)
from flame.compiler.recurrent_plan import GATES, Recurrent, RecurrentRoutine
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import float32, float64


def forward(what: Recurrent, target: CpuTarget) -> RecurrentRoutine:
    """Buffers as the operands and results of `recurrent`."""
    return _Forward(what, target).routine()


class RecurrentWriter(ABC):
    """What both ways have in common."""

    name = ""
    buffers: dict[str, list[str]]  #: mode -> names of the buffers, in order

    def __init__(self, what: Recurrent, target: CpuTarget):
        self.what, self.size, self.gates = what, what.size, GATES[what.mode]
        self.wide = float64 if what.dtype is float64 else float32
        self.lanes = max(2, target.vector_bytes // self.wide.itemsize)
        self.accumulators = 12 if target.registers <= 16 else 24
        self.t, self.v = element(self.wide), wide(element(self.wide), self.lanes)
        self.memory = memory_element(what.dtype)
        self.align = self.wide.itemsize
        self.each_gate = 4 if self.gates == 1 else 1  #: vectors of a gate in a block of columns
        self.block = self.each_gate * self.lanes
        self.padded = -(-self.size // max(self.block, 4)) * max(self.block, 4)
        self.exact = self.padded == self.size
        self.f = Function(self.name, [("ptr", "bufs"), ("ptr", "syms"), ("i64", "begin"), ("i64", "end")])
        self.m = LlvmMachine(self.f, target)
        self.tiles: dict[int, Function] = {}

    def routine(self) -> RecurrentRoutine:
        f = self.f
        fixed, each = self._scratch()
        names = self.buffers[self.what.mode if self.gates > 1 else "RNN"]
        self.buffer = {n: f.load("ptr", f.address("%bufs", i, "ptr"), 8) for i, n in enumerate(names)}
        workspace = f.load("ptr", f.address("%bufs", len(names), "ptr"), 8)
        self.steps, self.batch, chunks, own = (f.load("i64", f.address("%syms", i, "i64"), 8) for i in range(4))
        self.rows_of_step = f.mul(self.batch, self.size)

        def chunk(c: str, _: list[str]) -> list[str]:
            low, high = (f.div(f.mul(x, self.batch), chunks) for x in (c, f.add(c, 1)))
            self.first, self.count = low, f.sub(high, low)
            at: Int = f.mul(c, own)
            self.scratch: dict[str, str] = {}
            for n, (constant, times) in self._places.items():
                self.scratch[n] = f.address(workspace, f.add(at, f.add(constant, f.mul(self.count, times))), self.t)
            self._chunk()
            return []

        f.loop("%begin", "%end", 1, [], chunk)
        text = f"; {self.name} {self.what}\n" + module([*self.tiles.values(), f])
        return RecurrentRoutine(text, self.name, self.what, fixed, each, self.wide.itemsize)

    @abstractmethod
    def _sizes(self) -> list[tuple[str, int, int]]:
        """Scratch memory: its name, a constant number of elements, and how many more for each row."""

    @abstractmethod
    def _chunk(self) -> None:
        """Write all steps of some rows of the batch."""

    def _scratch(self) -> tuple[int, int]:
        self._places: dict[str, tuple[int, int]] = {}
        fixed = each = 0
        for name, constant, times in self._sizes():
            self._places[name] = (fixed, each)
            fixed, each = fixed + -(-constant // 16) * 16, each + times
        return fixed, each

    # -- steps and rows

    def _time(self, k: Int) -> Int:
        """Which step is the k-th."""
        return self.f.sub(self.f.sub(self.steps, 1), k) if self.what.reverse else k

    def _row(self, name: str, t: Int, row: Int, width: int) -> str:
        """Row `row` of the chunk at step t, of an array [T, N, width]."""
        f = self.f
        at = f.add(f.mul(t, self.batch), f.add(self.first, row))
        return f.address(self.buffer[name], f.mul(at, width), self.memory)

    def _state(self, name: str, row: Int) -> str:
        """A row of an array [N, size]."""
        f = self.f
        return f.address(self.buffer[name], f.mul(f.add(self.first, row), self.size), self.memory)

    def _previous(self, name: str, initial: str, k: Int, row: Int) -> str:
        """A row of the state before the k-th step."""
        f = self.f
        is_first = f.emit(f"icmp eq i64 {k}, 0")
        before = self._row(name, self._time(f.most(f.sub(k, 1), 0)), row, self.size)
        return f.emit(f"select i1 {is_first}, ptr {self._state(initial, row)}, ptr {before}")

    def _by_rows(self, most: int, body: Callable[[Int, int], None]) -> None:
        """body(row, how many) for all rows of the chunk, `most` at a time, and for what is left."""
        f = self.f
        whole = f.mul(f.div(self.count, most), most)

        def some(r: str, _: list[str]) -> list[str]:
            body(r, most)
            return []

        f.loop(0, whole, most, [], some)
        left = f.sub(self.count, whole)
        for n in range(1, most):
            f.when(f.emit(f"icmp eq i64 {left}, {n}"), lambda n=n: body(whole, n))  # type: ignore[misc]

    # -- vectors

    def _mask(self, column: Int) -> str | None:
        """The lanes of the state from a column on; None: all of them are there."""
        f, n = self.f, self.lanes
        if self.exact:
            return None
        left = f.splat(str(f.sub(self.size, column)), "i64", n)
        return f.emit(f"icmp sgt {wide('i64', n)} {left}, {vector(range(n), 'i64')}")

    def _load(self, row: str, at: Int, mask: str | None) -> Value:
        """Elements of a row in the caller's memory, 0 where there are none."""
        f, n, d, t = self.f, self.lanes, self.what.dtype, self.memory
        place = f.address(row, at, t)
        if mask is None:
            return self.m.cast(Value(f.load(wide(t, n), place, d.itemsize), d, n), self.wide)
        zero = repeat("0" if t.startswith("i") else "0.0", t, n)
        given: list[tuple[str, Int]] = [(f"ptr align {d.itemsize}", place), (wide("i1", n), mask), (wide(t, n), zero)]
        return self.m.cast(Value(f.call(wide(t, n), f"llvm.masked.load.{suffix(t, n)}.p0", given), d, n), self.wide)

    def _store(self, x: Value, row: str, at: Int, mask: str | None) -> None:
        f, n, d, t = self.f, self.lanes, self.what.dtype, self.memory
        x, place = self.m.cast(x, d), f.address(row, at, t)
        if mask is None:
            f.store(x.type, x.text, place, d.itemsize)
            return
        self.m.store_some(t, n, x.text, place, d.itemsize, mask)

    def _get(self, base: str, at: Int) -> Value:
        """A vector of scratch memory."""
        return Value(self.f.load(self.v, self.f.address(base, at, self.t), self.align), self.wide, self.lanes)

    def _put(self, x: Value, base: str, at: Int) -> None:
        self.f.store(self.v, x.text, self.f.address(base, at, self.t), self.align)

    def _do(self, op: str, *xs: Value | float) -> Value:
        return self.m.emit(op, *xs)

    def _apply(self, op: str, x: Value) -> Value:
        return self.m.apply(op, [x], self.wide)

    def _together(self, op: str, *xs: Value) -> list[Value]:
        """`op` of several vectors as of one: their instructions alternate, and none waits for its own last result."""
        f, n = self.f, self.lanes
        whole, last = xs[0].text, n
        for x in xs[1:]:
            grown = f.shuffle(self.t, n, x.text, x.text, [i % n for i in range(last)])
            whole, last = f.shuffle(self.t, last, whole, grown, range(last + n)), last + n
        found = self._apply(op, Value(whole, self.wide, last)).text
        parts = [f.shuffle(self.t, last, found, found, range(i * n, i * n + n)) for i in range(len(xs))]
        return [Value(part, self.wide, n) for part in parts]

    def _slope(self, s: Value) -> Value:
        """Of a sigmoid."""
        return self._do("mul", s, self._do("sub", self._one(), s))

    def _bend(self, y: Value) -> Value:
        """The slope of tanh where it is y."""
        return self._do("sub", self._one(), self._do("mul", y, y))

    def _one(self) -> Value:
        return self.m.widen(self.m.const(1.0, self.wide), self.lanes)

    def _copy_in(self, name: str, to: str, width: int) -> None:
        """Rows of a state into scratch rows of that width; zeros beyond them."""
        f = self.f

        def row(r: str, _: list[str]) -> list[str]:
            source, target = self._state(name, r), f.address(to, f.mul(r, width), self.t)

            def columns(j: str, _: list[str]) -> list[str]:
                self._put(self._load(source, j, self._mask(j)), target, j)
                return []

            f.loop(0, self.padded, self.lanes, [], columns)
            return []

        f.loop(0, self.count, 1, [], row)

    def _copy_out(self, source: str, width: int, name: str) -> None:
        f = self.f

        def row(r: str, _: list[str]) -> list[str]:
            at, target = f.address(source, f.mul(r, width), self.t), self._state(name, r)

            def columns(j: str, _: list[str]) -> list[str]:
                self._store(self._get(at, j), target, j, self._mask(j))
                return []

            f.loop(0, self.padded, self.lanes, [], columns)
            return []

        f.loop(0, self.count, 1, [], row)

    # -- products, by tiles

    def _tile(self, rows: int, left: str, row: int, right: str, to: str, to_row: int, depth: Int, goes_on: Int) -> None:
        """to = (goes_on ? to : 0) + left * right over `depth`, a multiple of 4; `right` is packed in lines of a tile's width."""
        if rows not in self.tiles:
            self.tiles[rows] = self._tile_function(rows)
        given = f"ptr {left}, i64 {row}, ptr {right}, ptr {to}, i64 {to_row}, i64 {depth}, i64 {goes_on}"
        self.f.do(f"call void @{self.name}_tile{rows}({given})")

    @property
    @abstractmethod
    def vectors(self) -> int:
        """Of a tile's width."""

    def _tile_function(self, rows: int) -> Function:
        parameters = [("ptr noalias", "left"), ("i64", "row"), ("ptr noalias", "right"), ("ptr noalias", "to")]
        parameters += [("i64", "to_row"), ("i64", "depth"), ("i64", "goes_on")]
        f = Function(f"{self.name}_tile{rows}", parameters, attributes="nounwind noinline", linkage="internal")
        lefts = ["%left"]
        for _ in range(rows - 1):
            lefts.append(f.address(lefts[-1], "%row", self.t))

        def four(i: str, sums: list[str]) -> list[str]:
            # what there is fewer of stays in registers, beside 12 sums of 16
            for u in range(4):
                k = f.add(i, u)
                line = f.address("%right", f.mul(k, self.vectors * self.lanes), self.t)

                def element(r: int, k: Int = k) -> str:
                    return f.splat(f.load(self.t, f.address(lefts[r], k, self.t), self.align), self.t, self.lanes)

                def column(j: int, line: str = line) -> str:
                    return f.load(self.v, f.address(line, j * self.lanes, self.t), self.align)

                sums = self._multiply(f, sums, rows, element, column)
            return sums

        sums = f.loop(0, "%depth", 4, [(self.v, "zeroinitializer")] * (rows * self.vectors), four)
        store_tile(f, sums, rows, self.t, self.lanes)
        return f

    def _multiply(
        self, f: Function, sums: list[str], rows: int, element: Callable[[int], str], column: Callable[[int], str]
    ) -> list[str]:
        """One step of the depth of a tile."""
        out = list(sums)

        def fma(r: int, j: int, x: str, y: str) -> None:
            at = r * self.vectors + j
            out[at] = f.call(self.v, f"llvm.fma.{suffix(self.t, self.lanes)}", [(self.v, x), (self.v, y), (self.v, sums[at])])

        if rows < self.vectors:
            left = [element(r) for r in range(rows)]
            for j in range(self.vectors):
                y = column(j)
                for r in range(rows):
                    fma(r, j, left[r], y)
        else:
            right = [column(j) for j in range(self.vectors)]
            for r in range(rows):
                x = element(r)
                for j in range(self.vectors):
                    fma(r, j, x, right[j])
        return out


class _Forward(RecurrentWriter):
    name = "recurrent"
    buffers = {
        "RNN": ["gi", "w", "h", "y"],
        "LSTM": ["gi", "w", "h", "c0", "y", "c", "cells", "gates"],
        "GRU": ["gi", "w", "h", "b", "y", "gates"],
    }

    @property
    def vectors(self) -> int:
        return self.gates * self.each_gate

    def _sizes(self) -> list[tuple[str, int, int]]:
        cells = [("cell", 0, self.padded)] if self.what.mode == "LSTM" else []
        packed = self.gates * self.padded * self.padded
        return [("w", packed, 0), ("one", 0, self.padded), ("other", 0, self.padded), *cells]

    def _chunk(self) -> None:
        f, lstm = self.f, self.what.mode == "LSTM"
        self._pack()
        self._copy_in("h", self.scratch["one"], self.padded)
        if lstm:
            self._copy_in("c0", self.scratch["cell"], self.padded)
        rows = self.accumulators // self.vectors
        width = self.vectors * self.lanes
        sums = f.scratch(self.t, rows * width)

        def step(k: str, states: list[str]) -> list[str]:
            before, after = states
            t = self._time(k)

            def block(b: str, _: list[str]) -> list[str]:
                right = f.address(self.scratch["w"], f.mul(b, self.padded * width), self.t)

                def some(r: Int, n: int) -> None:
                    left = f.address(before, f.mul(r, self.padded), self.t)
                    self._tile(n, left, self.padded, right, sums, width, self.padded, 0)

                    def row(i: str, _: list[str]) -> list[str]:
                        made = f.address(sums, f.mul(i, width), self.t)
                        self._cell(t, f.add(r, i), f.mul(b, self.block), made, before, after)
                        return []

                    f.loop(0, n, 1, [], row)

                self._by_rows(rows, some)
                return []

            f.loop(0, self.padded // self.block, 1, [], block)
            return [after, before]

        f.loop(0, self.steps, 1, [("ptr", self.scratch["one"]), ("ptr", self.scratch["other"])], step)
        if lstm:
            self._copy_out(self.scratch["cell"], self.padded, "c")

    def _pack(self) -> None:
        """w as [block of columns][element of the state][gate][column]; zeros where there is no column or element."""
        f, n, width = self.f, self.lanes, self.vectors * self.lanes

        def block(b: str, _: list[str]) -> list[str]:
            for g in range(self.gates):
                for v in range(self.each_gate):
                    column = f.add(f.mul(b, self.block), v * n)
                    target = f.address(self.scratch["w"], f.mul(b, self.padded * width), self.t)
                    target = f.address(target, (g * self.each_gate + v) * n, self.t)
                    self._pack_part(g, column, target, width)
            return []

        f.loop(0, self.padded // self.block, 1, [], block)

    def _pack_part(self, gate: int, column: Int, target: str, width: int) -> None:
        f, n = self.f, self.lanes

        def elements(k: str, _: list[str]) -> list[str]:
            mask, lines = self._mask(k), []
            for r in range(n):
                at = f.least(f.add(column, r), self.size - 1)
                row = f.address(self.buffer["w"], f.mul(f.add(at, gate * self.size), self.size), self.memory)
                here = mask
                if mask is not None:
                    there = f.splat(f.emit(f"icmp slt i64 {f.add(column, r)}, {self.size}"), "i1", n)
                    here = f.emit(f"and {wide('i1', n)} {mask}, {there}")
                lines.append(self._load(row, k, here).text)
            for e, x in enumerate(transpose(f, self.t, lines, n)):
                f.store(self.v, x, f.address(target, f.mul(f.add(k, e), width), self.t), self.align)
            return []

        f.loop(0, self.padded, n, [], elements)

    def _cell(self, t: Int, row: Int, column: Int, sums: str, before: str, after: str) -> None:
        """What a step makes of the products with the state, for a block of columns of one row."""
        f, size = self.f, self.size
        gi = self._row("gi", t, row, self.gates * size)
        y = self._row("y", t, row, size)
        new = f.address(after, f.mul(row, self.padded), self.t)
        for v in range(self.each_gate):
            at = f.add(column, v * self.lanes)
            mask = self._mask(at)
            x = [self._load(f.address(gi, g * size, self.memory), at, mask) for g in range(self.gates)]
            z = [self._get(sums, (g * self.each_gate + v) * self.lanes) for g in range(self.gates)]
            if self.what.mode == "LSTM":
                h = self._lstm(t, row, at, mask, x, z)
            elif self.what.mode == "GRU":
                h = self._gru(t, row, at, mask, x, z, f.address(before, f.mul(row, self.padded), self.t))
            else:
                h = self._apply("tanh" if self.what.mode == "RNN_TANH" else "relu", self._do("add", x[0], z[0]))
            self._put(h, new, at)
            self._store(h, y, at, mask)

    def _keep(self, t: Int, row: Int, at: Int, mask: str | None, kept: list[Value]) -> None:
        gates = self._row("gates", t, row, 4 * self.size)
        for g, x in enumerate(kept):
            self._store(x, self.f.address(gates, g * self.size, self.memory), at, mask)

    def _lstm(self, t: Int, row: Int, at: Int, mask: str | None, x: list[Value], z: list[Value]) -> Value:
        i, f, g, o = (self._do("add", a, b) for a, b in zip(x, z, strict=True))
        (i, f, o), g = self._together("sigmoid", i, f, o), self._apply("tanh", g)
        cell = self.f.address(self.scratch["cell"], self.f.mul(row, self.padded), self.t)
        c = self._do("add", self._do("mul", f, self._get(cell, at)), self._do("mul", i, g))
        self._put(c, cell, at)
        self._store(c, self._row("cells", t, row, self.size), at, mask)
        self._keep(t, row, at, mask, [i, f, g, o])
        return self._do("mul", o, self._apply("tanh", c))

    def _gru(self, t: Int, row: Int, at: Int, mask: str | None, x: list[Value], z: list[Value], before: str) -> Value:
        b = [self._load(self.f.address(self.buffer["b"], g * self.size, self.memory), at, mask) for g in range(3)]
        hr, hu, s = (self._do("add", a, c) for a, c in zip(z, b, strict=True))
        r, u = self._together("sigmoid", self._do("add", x[0], hr), self._do("add", x[1], hu))
        n = self._apply("tanh", self._do("add", x[2], self._do("mul", r, s)))
        self._keep(t, row, at, mask, [r, u, n, s])
        return self._do("add", n, self._do("mul", u, self._do("sub", self._get(before, at), n)))
