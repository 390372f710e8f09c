"""What is left of a truncating division of floats, exactly, in vectors: x - trunc(x / y) y by one fma that rounds once.

The quotient has to be a number of fewer bits than a float has; where it is larger, as where something is infinite, NaN or
divided by 0, the platform's library computes (`m.rarely`), as it does throughout on machines whose library is as fast.
"""

from __future__ import annotations

from typing import Any

from flame.dtypes import float64
from flame.ops.machine import Machine
from flame.ops.vector_bits import copysign


def fmod(m: Machine, x: Any, y: Any) -> Any:
    """C's fmod of float32 or float64."""
    if not m.vectors:
        return m.libm("fmod", x, y)
    a, b = m.abs(x), m.abs(y)
    ratio = m.div(a, b)
    less = m.lt(a, b)
    left = m.fma(m.neg(m.trunc(ratio)), b, a)
    left = m.where(m.lt(left, 0.0), m.add(left, b), left)  # the quotient was rounded up to a whole number
    near = copysign(m, m.where(less, a, left), x)
    within = m.logical_or(less, m.lt(ratio, 2.0 ** (52 if m.dtype(x) is float64 else 23)))
    return m.rarely("fmod", m.logical_not(within), near, x, y)
