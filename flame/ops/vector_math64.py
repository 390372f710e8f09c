"""Mathematical functions of float64 in vectors, within 2 units in the last place: for machines whose library takes them one by one.

    exp, expm1, tanh      x = n ln(2) + r, |r| <= ln(2) / 2, and the exponential series up to r^13 / 13!
    log, log1p            x = 2^e (1 + f), s = f / (2 + f), log(1 + f) = f - (f^2/2 - s (f^2/2 + R)), R = 2/3 s^2 + 2/5 s^4 + ..

The series are cut where what follows is less than a tenth of a unit. `LIBM`'s other functions stay with the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flame.dtypes import float64, int64, uint64
from flame.ops.machine import Machine

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0x162E42FE * 2.0**-29  # 29 bits: times up to 2^11 exactly
_LN2_LOW = 1.8206359985041462e-09  # ln(2) less that
_SHIFTER = 1.5 * 2.0**52  # adding it leaves the nearest whole number in the low bits
#: (e^r - 1 - r) / r^2
_SERIES = tuple(1 / math.factorial(k) for k in range(2, 14))
#: R / s^2
_ATANH = tuple(2 / (2 * k + 1) for k in range(1, 12))
_ONE_BITS, _ROOT_HALF_BITS = 0x3FF0000000000000, 0x3FE6A09E667F3BCD


def polynomial(m: Machine, x: Any, coefficients: tuple[float, ...]) -> Any:
    """c[0] + c[1] x + c[2] x^2 + ..., Horner's way."""
    out: Any = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        out = m.fma(x, out, c)
    return out


def _power_of_2(m: Machine, t: Any) -> Any:
    """2^n by t = n + _SHIFTER, for -1022 <= n <= 1023."""
    return m.bitcast(m.add(m.shift_left(m.bitcast(t, int64), 52), _ONE_BITS), float64)


def _reduced(m: Machine, x: Any) -> tuple[Any, Any]:
    """n, and e^r - 1, for |x| < 2^10."""
    n = m.sub(m.fma(x, _LOG2_E, _SHIFTER), _SHIFTER)
    high, low = m.fma(n, -_LN2_HIGH, x), m.mul(n, -_LN2_LOW)
    r = m.add(high, low)
    return n, m.add(high, m.fma(m.mul(r, r), polynomial(m, r, _SERIES), low))


def exp(m: Machine, x: Any) -> Any:
    n, less_1 = _reduced(m, m.maximum(m.minimum(x, 710.0), -746.0))
    t = m.fma(n, 0.5, _SHIFTER)  # in two steps of which the first is exact: subnormal results are rounded once
    rest = m.add(m.sub(n, m.sub(t, _SHIFTER)), _SHIFTER)
    return m.mul(m.mul(m.add(less_1, 1.0), _power_of_2(m, t)), _power_of_2(m, rest))


def expm1(m: Machine, x: Any) -> Any:
    n, less_1 = _reduced(m, m.maximum(m.minimum(x, 710.0), -40.0))
    scale = _power_of_2(m, m.add(m.sub(n, 1.0), _SHIFTER))  # 2^(n - 1): 2^1024 is no float64
    y = m.mul(m.fma(scale, less_1, m.sub(scale, 0.5)), 2.0)
    return m.where(m.eq(n, 0.0), m.where(m.eq(x, 0.0), x, less_1), y)


def tanh(m: Machine, x: Any) -> Any:
    a = m.abs(x)
    e = expm1(m, m.minimum(m.add(a, a), 44.0))
    d = m.add(e, 2.0)
    y = m.div(e, d)
    rest = m.fma(m.neg(y), m.sub(e, m.sub(d, 2.0)), m.fma(m.neg(y), d, e))  # of the division, and of the sum below it
    y = m.where(m.lt(a, 0.5), m.fma(rest, m.mul(m.sub(1.0, y), 0.5), y), y)  # 1 / (e + 2) is (1 - y) / 2
    sign = m.bitwise_and(m.bitcast(x, int64), -(1 << 63))
    return m.bitcast(m.bitwise_or(m.bitcast(y, int64), sign), float64)


def _log(m: Machine, x: Any) -> Any:
    """The logarithm of a positive finite number."""
    tiny = m.lt(x, 2.0**-1022)
    x = m.where(tiny, m.mul(x, 2.0**54), x)
    bits = m.add(m.bitcast(x, uint64), _ONE_BITS - _ROOT_HALF_BITS)
    e = m.bitcast(m.bitwise_or(m.shift_right(bits, 52), 0x4330000000000000), float64)
    e = m.sub(e, m.where(tiny, 2.0**52 + 1023 + 54, m.const(2.0**52 + 1023, float64)))
    f = m.sub(m.bitcast(m.add(m.bitwise_and(bits, (1 << 52) - 1), _ROOT_HALF_BITS), float64), 1.0)
    s = m.div(f, m.add(f, 2.0))
    z, half = m.mul(s, s), m.mul(m.mul(f, f), 0.5)
    inner = m.fma(s, m.fma(z, polynomial(m, z, _ATANH), half), m.mul(e, _LN2_LOW))
    return m.fma(e, _LN2_HIGH, m.sub(f, m.sub(half, inner)))


def _at_the_ends(m: Machine, x: Any, y: Any) -> Any:
    """y = log(x), put right where x is 0, negative, infinite or NaN."""
    y = m.where(m.lt(x, math.inf), y, x)  # inf and NaN give themselves
    return m.where(m.gt(x, 0.0), y, m.where(m.eq(x, 0.0), m.const(-math.inf, float64), m.const(math.nan, float64)))


def log(m: Machine, x: Any) -> Any:
    return _at_the_ends(m, x, _log(m, x))


def log1p(m: Machine, x: Any) -> Any:
    """log(u) for u = 1 + x rounded, and what was rounded away, over u."""
    u = m.add(x, 1.0)
    lost = m.where(m.lt(x, 1.0), m.sub(x, m.sub(u, 1.0)), m.sub(1.0, m.sub(u, x)))
    y = m.where(m.eq(u, 1.0), x, m.add(_log(m, u), m.div(lost, u)))
    return _at_the_ends(m, u, m.where(m.lt(u, math.inf), y, u))


#: functions of `LIBM` by name
WIDE: dict[str, Callable[[Machine, Any], Any]] = {"exp": exp, "expm1": expm1, "tanh": tanh, "log": log, "log1p": log1p}
