"""What a kernel's text alone says about the range of its floating values: enough for cheaper code with the same results.

    at_most_zero(kernel, v)   x - max(x), -|x|, -(x * x)
    from_one(kernel, v)       the sum of e^(x - max(x)) over at least what the maximum was taken over: softmax's denominator

Either answer holds for every input but for NaN, which may stand anywhere.
"""

from __future__ import annotations

from flame.compiler.kernel import Kernel, Op, Reduce


def at_most_zero(kernel: Kernel, name: str) -> bool:
    """Is a value never above 0?"""
    s = kernel.definitions[name]
    match s:
        case Op(op="sub"):
            return _below_largest(kernel, s) is not None
        case Op(op="neg"):
            x = kernel.definitions[s.operands[0]]
            return isinstance(x, Op) and (x.op == "abs" or (x.op == "mul" and x.operands[0] == x.operands[1]))
    return False


def from_one(kernel: Kernel, name: str) -> bool:
    """Does a value lie between 1 and a number of elements?"""
    s = kernel.definitions[name]
    if not isinstance(s, Reduce) or s.op != "sum":
        return False
    e = kernel.definitions[s.operands[0]]
    if not isinstance(e, Op) or e.op != "exp":
        return False
    d = kernel.definitions[e.operands[0]]
    largest = _below_largest(kernel, d) if isinstance(d, Op) and d.op == "sub" else None
    return largest is not None and frozenset(largest.axes) <= frozenset(s.axes)  # one of the terms is e^0


def _below_largest(kernel: Kernel, s: Op) -> Reduce | None:
    """The maximum that is taken off one of the elements it is the maximum of."""
    m = kernel.definitions[s.operands[1]]
    return m if isinstance(m, Reduce) and m.op == "max" and m.operands[0] == s.operands[0] else None
