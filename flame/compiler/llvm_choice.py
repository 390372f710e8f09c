"""Choices between values, where it is known what is chosen or where either comes from memory.

An array that is rolled, or joined of parts, is read as `where(position < edge, load, load)`. Inside a part of the lanes' axis
where such a comparison is the same for all (`llvm_axes.inside`), it is a constant, and only what is chosen is computed. Where a
comparison is the same for all lanes but not known, the address is chosen instead of the value: one load and not two.
"""

from __future__ import annotations

from flame.compiler.index_math import E, ex, names
from flame.compiler.kernel import Const, IndexOf, Load, Op
from flame.compiler.llvm_address import address
from flame.compiler.llvm_machine import Value
from flame.compiler.llvm_ranges import RangedPoint
from flame.compiler.llvm_text import memory_element, wide
from flame.dtypes import bool_
from flame.ops.access import Cond
from flame.ops.machine import COMPARISONS


class ChoosingPoint(RangedPoint):
    """A point that knows what it chooses."""

    def compute(self, name: str) -> tuple[Value, int]:
        s = self.kernel.definitions[name]
        if isinstance(s, Op) and s.op in COMPARISONS:
            found = self._compared(s)
            return super().compute(name) if found is None else found
        if isinstance(s, Op) and s.op == "where":
            condition = self.need(s.operands[0])
            if condition.text in ("true", "false"):
                chosen = s.operands[1 if condition.text == "true" else 2]
                value = self.need(chosen)
                return value, max(self.depth_of(s.operands[0]), self.depth_of(chosen))
            found = self._one_load(s) if condition.lanes == 1 else None
            if found is not None:
                return found
        return super().compute(name)

    def _compared(self, s: Op) -> tuple[Value, int] | None:
        """A comparison of positions that holds for all lanes here, or for none."""
        a, b = (self._position(v) for v in s.operands)
        if a is None or b is None:
            return None
        expr, kind, right = _CONDITIONS[s.op](a, b)
        known = self._known(Cond(expr, kind))
        if known is None:
            return None
        depth = max((self.axes[x][1] for x in names(expr) if x in self.axes), default=0)
        return Value("true" if known is right else "false", bool_), depth

    def _position(self, name: str) -> E | None:
        s = self.kernel.definitions[name]
        if isinstance(s, IndexOf) and s.dtype.kind == "i" and s.dtype.itemsize >= 4:
            return s.expr
        return ex(int(s.value)) if isinstance(s, Const) and s.dtype.kind in "iu" else None

    def _one_load(self, s: Op) -> tuple[Value, int] | None:
        """where(condition, load, load) as a load from one of two addresses, whose lanes are neighbours."""
        a, b = (self.kernel.definitions[v] for v in s.operands[1:])
        if not (isinstance(a, Load) and isinstance(b, Load)) or a.dtype is bool_ or self.tail is not None or self.kernel.values:
            return None
        if self._find(a.name) is not None or self._find(b.name) is not None:
            return None
        condition, depth = self.need(s.operands[0]), self.depth_of(s.operands[0])
        apart = address(self.kernel, b) - address(self.kernel, a)
        if a.buffer != b.buffer or not self._guarded(s, a, b) or self.varies(names(apart)):
            return None
        t = memory_element(a.dtype)
        pointer, rest, at = self.pointer_of(a)
        if rest.vector is not None or rest.stride not in (0, 1):
            return None
        f, n = self.function, self.lanes if rest.stride else 1
        away, deep = self.linear(apart)
        depth = max(depth, deep)
        with self._at(depth):
            step = f.emit(f"select i1 {condition.text}, i64 0, i64 {away.scalar}")
        depth = max(depth, at)
        with self._at(depth):
            return Value(f.load(wide(t, n), f.address(pointer, step, t), a.dtype.itemsize), a.dtype, n), depth

    def _guarded(self, s: Op, a: Load, b: Load) -> bool:
        """Does a choice take either load only where its mask allows it?"""
        comparison = self.kernel.definitions[s.operands[0]]
        if not isinstance(comparison, Op) or comparison.op not in COMPARISONS:
            return not a.mask and not b.mask
        left, right = (self._position(v) for v in comparison.operands)
        if left is None or right is None:
            return not a.mask and not b.mask
        expr, kind, holds = _CONDITIONS[comparison.op](left, right)
        true, false = {Cond(expr, kind)}, {Cond(-expr - 1)} if kind == "ge" else set()
        return (true if holds else false).issuperset(a.mask) and (false if holds else true).issuperset(b.mask)


#: comparison -> of its operands, the expression, the kind of condition, and what that has to be for the comparison to hold
_CONDITIONS = {
    "ge": lambda a, b: (a - b, "ge", True),
    "gt": lambda a, b: (a - b - 1, "ge", True),
    "le": lambda a, b: (b - a, "ge", True),
    "lt": lambda a, b: (b - a - 1, "ge", True),
    "eq": lambda a, b: (a - b, "eq", True),
    "ne": lambda a, b: (a - b, "eq", False),
}
