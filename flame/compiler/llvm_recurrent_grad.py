"""The gradient of a recurrent layer on a CPU, as one routine.

    w packed by panels
    for each step, the last first:      cotangents of the gates from those of the state, to memory and scratch;
                                        dh = those w, the depth by blocks that stay in the nearest cache

Rows of a batch are cut into chunks, and narrow floats computed in float32, as in `flame.compiler.llvm_recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable

from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_recurrent import RecurrentWriter
from flame.compiler.llvm_text import Int, vector, wide
from flame.compiler.recurrent_plan import Recurrent, RecurrentRoutine
from flame.compiler.target_cpu import CpuTarget

_DEPTH = 128  #: of a block of the product


def backward(what: Recurrent, target: CpuTarget) -> RecurrentRoutine:
    """Buffers as the operands and results of `recurrent_grad`, where nothing flows into what was kept."""
    return _Backward(what, target).routine()


class _Backward(RecurrentWriter):
    name = "recurrent_grad"
    buffers = {
        "RNN": ["w", "h", "y", "gy", "dgi", "dh"],
        "LSTM": ["w", "h", "c0", "cells", "gates", "gy", "gc", "dgi", "dh", "dc"],
        "GRU": ["w", "h", "y", "gates", "gy", "dgi", "dh"],
    }

    @property
    def vectors(self) -> int:
        return 4

    @property
    def across(self) -> int:
        """Columns of dh in scratch: whole panels."""
        panel = 4 * self.lanes
        return -(-self.padded // panel) * panel

    def _sizes(self) -> list[tuple[str, int, int]]:
        deep = self.gates * self.padded
        cells = [("dc", 0, self.padded)] if self.what.mode == "LSTM" else []
        return [("w", deep * self.across, 0), ("dz", 0, deep), ("dh", 0, self.across), *cells]

    def _chunk(self) -> None:
        f, lstm = self.f, self.what.mode == "LSTM"
        self._pack()
        dh = self.scratch["dh"]

        def clear(j: str, _: list[str]) -> list[str]:
            f.store(self.v, "zeroinitializer", f.address(dh, j, self.t), self.align)
            return []

        f.loop(0, f.mul(self.count, self.across), self.lanes, [], clear)
        if lstm:
            self._copy_in("gc", self.scratch["dc"], self.padded)

        def step(i: str, _: list[str]) -> list[str]:
            k = f.sub(f.sub(self.steps, 1), i)
            f.loop(0, self.count, 1, [], lambda r, _: self._row_of_step(k, r))
            self._product()
            return []

        f.loop(0, self.steps, 1, [], step)
        self._copy_out(dh, self.across, "dh")
        if lstm:
            self._copy_out(self.scratch["dc"], self.padded, "dc")

    def _pack(self) -> None:
        """w as [panel of columns][gate and row][column]; zeros beyond them."""
        f, n, panel, deep = self.f, self.lanes, 4 * self.lanes, self.gates * self.padded

        def one(p: str, _: list[str]) -> list[str]:
            base = f.address(self.scratch["w"], f.mul(p, deep * panel), self.t)
            for g in range(self.gates):

                def row(j: str, _: list[str], g: int = g) -> list[str]:
                    there = f.least(j, self.size - 1)
                    source = f.address(self.buffer["w"], f.mul(f.add(there, g * self.size), self.size), self.memory)
                    target = f.address(base, f.mul(f.add(j, g * self.padded), panel), self.t)
                    for v in range(4):
                        column = f.add(f.mul(p, panel), v * n)
                        self._put(self._weights(source, column, j), target, v * n)
                    return []

                f.loop(0, self.padded, 1, [], row)
            return []

        f.loop(0, self.across // panel, 1, [], one)

    def _weights(self, source: str, column: Int, row: Int) -> Value:
        """Some columns of a row of w; zeros where there is neither."""
        f, n = self.f, self.lanes
        if self.exact and self.across == self.size:
            return self._load(source, column, None)
        left = f.splat(str(f.sub(self.size, column)), "i64", n)
        columns = f.emit(f"icmp sgt {wide('i64', n)} {left}, {vector(range(n), 'i64')}")
        there = f.splat(f.emit(f"icmp slt i64 {row}, {self.size}"), "i1", n)
        return self._load(source, column, f.emit(f"and {wide('i1', n)} {columns}, {there}"))

    def _product(self) -> None:
        """dh (+)= dz w, by blocks of the depth."""
        f, panel, deep = self.f, 4 * self.lanes, self.gates * self.padded
        rows = self.accumulators // 4
        goes_on = 1 if self.what.mode == "GRU" else 0

        def block(k: str, _: list[str]) -> list[str]:
            depth = f.least(_DEPTH, f.sub(deep, k))
            add = 1 if goes_on else f.emit(f"zext i1 {f.emit(f'icmp ne i64 {k}, 0')} to i64")

            def one(p: str, _: list[str]) -> list[str]:
                right = f.address(self.scratch["w"], f.mul(f.add(f.mul(p, deep), k), panel), self.t)

                def some(r: Int, n: int) -> None:
                    left = f.address(self.scratch["dz"], f.add(f.mul(r, deep), k), self.t)
                    to = f.address(self.scratch["dh"], f.add(f.mul(r, self.across), f.mul(p, panel)), self.t)
                    self._tile(n, left, deep, right, to, self.across, depth, add)

                self._by_rows(rows, some)
                return []

            f.loop(0, self.across // panel, 1, [], one)
            return []

        f.loop(0, deep, _DEPTH, [], block)

    def _row_of_step(self, k: Int, row: Int) -> list[str]:
        """The cotangents of a row's gates at the k-th step, to memory and to scratch."""
        f, size, t = self.f, self.size, self._time(k)
        gy, out = self._row("gy", t, row, size), self._row("dgi", t, row, self.gates * size)
        dh = f.address(self.scratch["dh"], f.mul(row, self.across), self.t)
        dz = f.address(self.scratch["dz"], f.mul(row, self.gates * self.padded), self.t)
        make = {"LSTM": self._lstm, "GRU": self._gru}.get(self.what.mode, self._simple)
        cell = make(k, t, row)

        def columns(j: str, _: list[str]) -> list[str]:
            mask = self._mask(j)
            slope = self._do("add", self._load(gy, j, mask), self._get(dh, j))
            for g, (x, into_state) in enumerate(cell(slope, j, mask, dh)):
                self._store(x, f.address(out, g * size, self.memory), j, mask)
                self._put(into_state, dz, f.add(g * self.padded, j))
            return []

        f.loop(0, self.padded, self.lanes, [], columns)
        return []

    def _simple(self, k: Int, t: Int, row: Int) -> Callable[..., list[tuple[Value, Value]]]:
        y_row = self._row("y", t, row, self.size)

        def cell(dh: Value, j: Int, mask: str | None, _: str) -> list[tuple[Value, Value]]:
            y = self._load(y_row, j, mask)
            if self.what.mode == "RNN_TANH":
                dz = self._do("mul", dh, self._bend(y))
            else:
                zero = self.m.widen(self.m.const(0.0, self.wide), self.lanes)
                dz = self._do("where", self._do("gt", y, zero), dh, zero)
            return [(dz, dz)]

        return cell

    def _lstm(self, k: Int, t: Int, row: Int) -> Callable[..., list[tuple[Value, Value]]]:
        f, size, mul, add = self.f, self.size, self._times, self._sum
        gates, cells = self._row("gates", t, row, 4 * size), self._row("cells", t, row, size)
        previous = self._previous("cells", "c0", k, row)
        carried = f.address(self.scratch["dc"], f.mul(row, self.padded), self.t)

        def cell(dh: Value, j: Int, mask: str | None, _: str) -> list[tuple[Value, Value]]:
            i, forget, g, o = (self._load(f.address(gates, n * size, self.memory), j, mask) for n in range(4))
            bent, before = self._apply("tanh", self._load(cells, j, mask)), self._load(previous, j, mask)
            dc = add(self._get(carried, j), mul(mul(dh, o), self._bend(bent)))
            self._put(mul(dc, forget), carried, j)
            found = [
                mul(mul(dc, g), self._slope(i)),
                mul(mul(dc, before), self._slope(forget)),
                mul(mul(dc, i), self._bend(g)),
                mul(mul(dh, bent), self._slope(o)),
            ]
            return [(x, x) for x in found]

        return cell

    def _gru(self, k: Int, t: Int, row: Int) -> Callable[..., list[tuple[Value, Value]]]:
        f, size, mul, sub = self.f, self.size, self._times, lambda a, b: self._do("sub", a, b)
        gates, previous = self._row("gates", t, row, 4 * size), self._previous("y", "h", k, row)

        def cell(dh: Value, j: Int, mask: str | None, carried: str) -> list[tuple[Value, Value]]:
            r, u, n, s = (self._load(f.address(gates, g * size, self.memory), j, mask) for g in range(4))
            before = self._load(previous, j, mask)
            dn = mul(mul(dh, sub(self._one(), u)), self._bend(n))
            du = mul(mul(dh, sub(before, n)), self._slope(u))
            dr = mul(mul(dn, s), self._slope(r))
            self._put(mul(dh, u), carried, j)
            return [(dr, dr), (du, du), (dn, mul(dn, r))]

        return cell

    def _times(self, a: Value, b: Value) -> Value:
        return self._do("mul", a, b)

    def _sum(self, a: Value, b: Value) -> Value:
        return self._do("add", a, b)
