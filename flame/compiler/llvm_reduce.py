"""Reductions in registers: what an accumulator starts as, how an element enters it, how two are joined, and lanes at the end.

An accumulator is a list of SSA values: one, or for arg reductions the best value and its position. All forms work on scalars
as well (one lane).
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.index_math import E, ex, var
from flame.compiler.kernel import Contract, Kernel, Reduce
from flame.compiler.llvm_machine import LlvmMachine, Value
from flame.compiler.llvm_point import Point
from flame.compiler.llvm_text import element, wide
from flame.dtypes import bool_, dtype, int32, int64, uint8
from flame.dtypes import dtype as DType

State = list[Value]


def identity(op: str, d: dtype) -> bool | int | float:
    """The neutral element of a monoid."""
    match op:
        case "sum" | "any":
            return 0
        case "prod" | "all":
            return 1
        case "max" | "argmax" | "min" | "argmin":
            least = op.endswith("max")
            if d.kind == "f":
                return float("-inf") if least else float("inf")
            if d.kind == "b":
                return not least
            bits = 8 * d.itemsize
            if d.kind == "u":
                return 0 if least else (1 << bits) - 1
            return -(1 << (bits - 1)) if least else (1 << (bits - 1)) - 1
    raise NotImplementedError(op)


#: monoid -> basic operation
JOIN = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum", "any": "logical_or", "all": "logical_and"}


@dataclass(frozen=True)
class Accumulator:
    """How one `reduce` or `contract` statement is accumulated with that many lanes."""

    kernel: Kernel
    statement: Reduce | Contract
    machine: LlvmMachine
    lanes: int
    ordered: bool = False  #: elements come by ascending position, so that a later one has to be better

    @property
    def op(self) -> str:
        return self.statement.op if isinstance(self.statement, Reduce) else "sum"

    @property
    def is_arg(self) -> bool:
        return self.op.startswith("arg")

    @property
    def dtype(self) -> dtype:
        """Of what is compared or added."""
        if not self.is_arg:
            return self.statement.dtype
        kind = self.kernel.definitions[self.statement.operands[0]].dtype
        return uint8 if kind is bool_ else kind

    @property
    def place(self) -> DType:
        """Of positions: as narrow as what they belong to, where there are few."""
        n = 1
        for a in self.statement.axes:
            n *= self.kernel.axes[a].const or 1 << 31
        return int32 if self.ordered and n < 1 << 31 and self.dtype.itemsize <= 4 else int64

    @property
    def types(self) -> list[str]:
        """The register types of the state."""
        value = wide(element(self.dtype), self.lanes)
        return [value, wide(element(self.place), self.lanes)] if self.is_arg else [value]

    def start(self) -> State:
        first = self.machine.widen(self.machine.const(identity(self.op, self.dtype), self.dtype), self.lanes)
        if not self.is_arg:
            return [first]
        if self.ordered:  # the first one is the answer where none is better
            return [first, self.machine.widen(self.machine.const(0, self.place), self.lanes)]
        # past every position, so that an element equal to the identity still beats it
        return [first, self.machine.widen(self.machine.const((1 << 63) - 1, int64), self.lanes)]

    def restore(self, texts: list[str]) -> State:
        """The state from the names that carry it around a loop."""
        kinds = [self.dtype, self.place] if self.is_arg else [self.dtype]
        return [Value(t, d, self.lanes) for t, d in zip(texts, kinds, strict=True)]

    def step(self, state: State, point: Point, masked: bool) -> State:
        """Take in the element at `point`; `masked`: only in the lanes of its tail."""
        m, s = self.machine, self.statement
        exists = Value(point.tail, bool_, self.lanes) if masked and point.tail is not None and self.lanes > 1 else None
        if isinstance(s, Contract):
            a, b = (m.widen(m.cast(point.need(v), s.dtype), self.lanes) for v in s.operands)
            if exists is not None:
                a = m.emit("where", exists, a, 0)
                b = m.emit("where", exists, b, 0)
            return [m.emit("fma", a, b, state[0])]
        x = m.widen(m.cast(point.need(s.operands[0]), self.dtype), self.lanes)
        if self.is_arg and self.ordered:
            return self._later(state, [x, m.cast(self._position(point), self.place)], exists)
        if self.is_arg:
            return self._better(state, [x, self._position(point)], exists)
        if exists is not None:
            x = m.emit("where", exists, x, m.const(identity(self.op, self.dtype), self.dtype))
        return [m.emit(JOIN[self.op], x, state[0])]

    def _position(self, point: Point) -> Value:
        """Where the element stands, row-major over the reduced axes."""
        place: E = ex(0)
        for a in self.statement.axes:
            place = place * self.kernel.axes[a] + var(a)
        at, _ = point.linear(place)
        if at.uniform:
            return self.machine.widen(Value(str(at.scalar), int64), self.lanes)
        f = point.function
        text = point.spread(at)
        if point.integer == "i32":
            text = f.emit(f"sext {wide('i32', self.lanes)} {text} to {wide('i64', self.lanes)}")
        return Value(text, int64, self.lanes)

    def _later(self, state: State, new: State, exists: Value | None) -> State:
        """The extreme of two candidates of which the second stands later: it has to be better, or the first NaN."""
        m = self.machine
        (best, at), (x, place) = state, new
        takes = m.emit("gt" if self.op == "argmax" else "lt", x, best)
        if x.dtype.kind == "f":
            no_worse = m.emit("le" if self.op == "argmax" else "ge", x, best)
            takes = m.emit("logical_and", m.emit("logical_not", no_worse), m.emit("eq", best, best))
        if exists is not None:
            takes = m.emit("logical_and", takes, exists)
        return [m.emit("where", takes, x, best), m.emit("where", takes, place, at)]

    def _better(self, state: State, new: State, exists: Value | None = None) -> State:
        """The extreme of two candidates, NaN above all, the first of equals."""
        m = self.machine
        (best, at), (x, place) = state, new
        beats = m.emit("gt" if self.op == "argmax" else "lt", x, best)
        earlier = m.emit("lt", place, at)
        level = m.emit("logical_and", m.emit("eq", x, best), earlier)
        takes = m.emit("logical_or", beats, level)
        if x.dtype.kind == "f":
            x_nan, best_nan = m.emit("ne", x, x), m.emit("ne", best, best)
            first_nan = m.emit("logical_and", x_nan, m.emit("logical_or", m.emit("logical_not", best_nan), earlier))
            takes = m.emit("logical_or", takes, first_nan)
        if exists is not None:
            takes = m.emit("logical_and", takes, exists)
        return [m.emit("where", takes, x, best), m.emit("where", takes, place, at)]

    def join(self, a: State, b: State) -> State:
        if self.is_arg:
            return self._better(a, b)
        return [self.machine.emit(JOIN[self.op], a[0], b[0])]

    def join_all(self, states: list[State]) -> State:
        """Several accumulators into one, as a tree."""
        while len(states) > 1:
            pairs = [self.join(states[i], states[i + 1]) for i in range(0, len(states) - 1, 2)]
            states = pairs + (states[-1:] if len(states) % 2 else [])
        return states[0]

    def finish(self, state: State, across_lanes: bool) -> Value:
        """The result: lanes joined where they were reduced."""
        m, n = self.machine, self.lanes
        if across_lanes and n > 1:
            half = n // 2
            while half:
                turned = []
                for v in state:
                    order = [(i + half) % n for i in range(n)]
                    turned.append(Value(m.function.shuffle(element(v.dtype), n, v.text, v.text, order), v.dtype, n))
                state = self.join(state, turned)
                half //= 2
            state = [Value(m.function.emit(f"extractelement {v.type} {v.text}, i64 0"), v.dtype) for v in state]
        if not self.is_arg:
            return state[0]
        if self.ordered:
            return m.cast(state[1], int64)
        nothing = m.emit("eq", state[1], (1 << 63) - 1)  # of no elements: 0
        return m.emit("where", nothing, 0, state[1])
