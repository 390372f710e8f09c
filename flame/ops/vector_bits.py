"""Floats as bits: signs, leading bits, nearest whole numbers, powers of 2, signs of powers, for the functions of
`vector_math.py`."""

from __future__ import annotations

import math
from typing import Any

from flame.dtypes import by_name, dtype, float32, int32
from flame.ops.machine import Machine


def integers(d: dtype) -> dtype:
    return by_name(f"int{8 * d.itemsize}")


def is_negative(m: Machine, x: Any) -> Any:
    """Whether the sign bit is set (also of -0.0)."""
    return m.lt(m.bitcast(x, integers(m.dtype(x))), 0)


def copysign(m: Machine, x: Any, y: Any) -> Any:
    """The magnitude of x with the sign of y."""
    d = m.dtype(x)
    i = integers(d)
    sign = -(1 << (8 * d.itemsize - 1))
    bits = m.bitwise_or(m.bitwise_and(m.bitcast(x, i), ~sign), m.bitwise_and(m.bitcast(y, i), sign))
    return m.bitcast(bits, d)


def leading_bits(m: Machine, x: Any) -> Any:
    """x cut to its 12 leading bits, so that products of two such are exact."""
    return m.bitcast(m.bitwise_and(m.bitcast(x, int32), -4096), float32)


SHIFTER = 1.5 * 2.0**23  # adding it leaves a float32's nearest whole number in its low bits
SHIFTER_BITS = 0x4B400000


def whole(m: Machine, x: Any) -> tuple[Any, Any]:
    """The nearest whole number of |x| < 2^22, as float32 and as int32. (A float-to-int cast of NaN would be undefined.)"""
    t = m.add(x, SHIFTER)
    return m.sub(t, SHIFTER), m.sub(m.bitcast(t, int32), SHIFTER_BITS)


def times_power_of_2(m: Machine, x: Any, n: Any) -> Any:
    """x * 2^n for -252 <= n <= 254, in two steps of which the first is exact: subnormal results are rounded once."""
    half = m.shift_right(n, 1)
    for k in (half, m.sub(n, half)):
        x = m.mul(x, m.bitcast(m.shift_left(m.add(k, 127), 23), float32))
    return x


def signed_power(m: Machine, x: Any, y: Any, magnitude: Any) -> Any:
    """x^y from |x|^y: its sign, and the exceptions of C's pow."""
    d = m.dtype(x)
    a, size = m.abs(x), m.abs(y)
    # x^0 and 1^y are 1 whatever the other is, and so is (-1)^inf
    one = m.logical_or(m.eq(y, 0.0), m.logical_or(m.eq(x, 1.0), m.logical_and(m.eq(a, 1.0), m.eq(size, math.inf))))
    nan = m.logical_or(m.ne(x, x), m.ne(y, y))
    integral = m.eq(m.trunc(y), y)
    half = m.mul(y, 0.5)
    odd = m.logical_and(integral, m.ne(m.trunc(half), half))
    magnitude = m.where(m.logical_and(odd, is_negative(m, x)), m.neg(magnitude), magnitude)
    rooted = m.logical_and(m.logical_and(m.lt(x, 0.0), m.lt(a, math.inf)), m.logical_not(integral))
    y = m.where(m.logical_or(nan, rooted), m.const(math.nan, d), magnitude)
    return m.where(one, m.const(1.0, d), y)
