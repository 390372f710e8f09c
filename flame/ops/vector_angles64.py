"""Inverse trigonometry of float64 in vectors, within 2 units in the last place: what `vector_math64.py` is, for angles.

    atan, atan2   |t| <= tan(pi / 8), from x, (x - 1) / (x + 1) or -1 / x, and a polynomial in t^2; what the division leaves is kept
    asin, acos    below 1/2 a polynomial in x^2, else through the half angle: acos(x) = 2 asin(sqrt((1 - x) / 2))

The polynomials are collocated at Chebyshev's nodes in 300 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flame.dtypes import float64
from flame.ops.machine import Machine
from flame.ops.vector_bits import copysign, is_negative
from flame.ops.vector_math64 import by_halves

#: (atan(t) / t - 1) / t^2 in t^2 <= tan(pi / 8)^2, 5e-17; (asin(s) / s - 1) / s^2 in s^2 <= 1/4, 2e-17
_ATAN = (
    -0.3333333333333333, 0.19999999999995516, -0.14285714284665682, 0.11111111015187018, -0.0909090457530649,
    0.07692183125376892, -0.06664510525508936, 0.05858140904866328, -0.050854078345894844, 0.03923044778479309,
    -0.019175404711104935,
)  # fmt: skip
_ASIN = (
    0.16666666666666669, 0.07499999999998433, 0.04464285714635543, 0.030381944138531247, 0.02237217294214989,
    0.017352392720869973, 0.013971212973552933, 0.011479177415184906, 0.01032281435018578, 0.005457506718640358,
    0.01740087944269402, -0.014851887071247204, 0.028757851367421566,
)  # fmt: skip
_PI, _PI_LOW = math.pi, 1.2246467991473532e-16


def _atan_up_to_1(m: Machine, a: Any) -> tuple[Any, Any]:
    """atan(a) for 0 <= a <= 1 as a sum."""
    middle = m.gt(a, math.tan(math.pi / 8))
    zero = m.const(0.0, float64)
    t = m.div(m.where(middle, m.sub(a, 1.0), a), m.where(middle, m.add(a, 1.0), m.const(1.0, float64)))
    return _atan_from(m, t, m.where(middle, _PI / 4, zero), m.where(middle, _PI_LOW / 4, zero))


def _atan_from(m: Machine, t: Any, base: Any, low: Any) -> tuple[Any, Any]:
    """base + low + atan(t), |t| <= tan(pi / 8) and at most base, or base 0."""
    z = m.mul(t, t)
    rest = m.fma(m.mul(t, z), by_halves(m, z, _ATAN), low)
    near = m.add(base, t)
    return near, m.add(m.sub(t, m.sub(near, base)), rest)


def atan(m: Machine, x: Any) -> Any:
    a = m.minimum(m.abs(x), 2.0**1000)
    one, zero = m.const(1.0, float64), m.const(0.0, float64)
    middle, large = m.gt(a, math.tan(math.pi / 8)), m.gt(a, math.tan(math.pi * 3 / 8))

    def by_size(of_large: Any, of_middle: Any, of_small: Any) -> Any:
        return m.where(large, of_large, m.where(middle, of_middle, of_small))

    above = m.add(a, 1.0)
    over, under = by_size(m.neg(one), m.sub(a, 1.0), a), by_size(a, above, one)
    t = m.div(over, under)
    rest = m.fma(m.neg(t), under, over)
    rest = m.sub(rest, m.mul(t, by_size(zero, m.sub(a, m.sub(above, 1.0)), zero)))
    inverse = by_size(m.neg(t), m.mul(m.sub(1.0, t), 0.5), zero)  # of what is under: 1 / (a + 1) is (1 - t) / 2
    base, low = by_size(_PI / 2, m.const(_PI / 4, float64), zero), by_size(_PI_LOW / 2, m.const(_PI_LOW / 4, float64), zero)
    near, tail = _atan_from(m, t, base, m.fma(rest, inverse, low))
    return copysign(m, m.add(near, tail), x)


def _from(m: Machine, turn: float, near: Any, rest: Any) -> tuple[Any, Any]:
    """turn pi - (near + rest)."""
    left = m.sub(turn * _PI, near)
    return left, m.add(m.sub(m.sub(turn * _PI, left), near), m.sub(turn * _PI_LOW, rest))


def atan2(m: Machine, y: Any, x: Any) -> Any:
    a, b = m.abs(y), m.abs(x)
    long, short = m.maximum(a, b), m.minimum(a, b)
    t = m.where(m.eq(long, short), m.const(1.0, float64), m.div(short, long))  # also where both are infinite
    t = m.where(m.eq(long, 0.0), m.const(0.0, float64), t)
    near, rest = _atan_up_to_1(m, t)
    for condition, turn in ((m.gt(a, b), 0.5), (is_negative(m, x), 1.0)):
        other, left = _from(m, turn, near, rest)
        near, rest = m.where(condition, other, near), m.where(condition, left, rest)
    return copysign(m, m.add(near, rest), y)


def _half_angle(m: Machine, x: Any) -> tuple[Any, Any, Any]:
    """Whether |x| > 1/2; s, which is |x| where not and sqrt((1 - |x|) / 2) where so; and asin(s) - s."""
    a = m.abs(x)
    large = m.gt(a, 0.5)
    z = m.where(large, m.mul(m.sub(1.0, a), 0.5), m.mul(a, a))
    s = m.where(large, m.sqrt(z), a)
    return large, s, m.mul(m.mul(s, z), by_halves(m, z, _ASIN))


def asin(m: Machine, x: Any) -> Any:
    large, s, rest = _half_angle(m, x)
    left, tail = _from(m, 0.5, m.add(s, s), m.add(rest, rest))
    return copysign(m, m.where(large, m.add(left, tail), m.add(s, rest)), x)


def acos(m: Machine, x: Any) -> Any:
    large, s, rest = _half_angle(m, x)
    twice, twice_rest = m.add(s, s), m.add(rest, rest)
    left, tail = _from(m, 1.0, twice, twice_rest)
    near = m.where(m.lt(x, 0.0), m.add(left, tail), m.add(twice, twice_rest))
    left, tail = _from(m, 0.5, copysign(m, s, x), copysign(m, rest, x))
    return m.where(large, near, m.add(left, tail))


#: functions of `LIBM` by name
ANGLES: dict[str, Callable[..., Any]] = {"asin": asin, "acos": acos, "atan": atan, "atan2": atan2}
