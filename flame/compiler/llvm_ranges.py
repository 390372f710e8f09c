"""Cheaper code for operations whose operands are known to lie in a range (`value_ranges.py`)."""

from __future__ import annotations

from flame.compiler.kernel import Op
from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_point import Point
from flame.compiler.value_ranges import at_most_zero, from_one
from flame.dtypes import float32
from flame.ops.vector_math import exp_of_negative


class RangedPoint(Point):
    """A point at which exponents at most 0 have an exponential of their own, and rows are multiplied by reciprocals."""

    def compute(self, name: str) -> tuple[Value, int]:
        s = self.kernel.definitions[name]
        if isinstance(s, Op) and s.op == "exp" and s.dtype is float32 and at_most_zero(self.kernel, s.operands[0]):
            x = self.need(s.operands[0])
            depth = self.depth_of(s.operands[0])
            with self._at(depth):
                return exp_of_negative(self.machine, x), depth
        if isinstance(s, Op) and s.op == "div" and from_one(self.kernel, s.operands[1]):
            x, y = (self.need(v) for v in s.operands)
            depth, outside = (self.depth_of(v) for v in s.operands)
            if outside < depth:
                inverse = self._reciprocal(s.operands[1], y)
                with self._at(depth):
                    return self.machine.emit("mul", x, inverse), depth
        return super().compute(name)

    def _reciprocal(self, name: str, x: Value) -> Value:
        """A division takes five times as long as a multiplication: a row's is done once, where its divisor stands."""
        found = self._find(("reciprocal", name))
        if found is not None:
            return found[0]
        depth = self.depth_of(name)
        with self._at(depth):
            inverse = self.machine.emit("div", self.machine.const(1.0, x.dtype), x)
        self.scopes[depth].memo["reciprocal", name] = inverse
        return inverse
