"""float32 functions of angles, and angles of numbers: sin, cos, tan, asin, acos, atan, atan2 (see `vector_math.py`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flame.dtypes import float32, float64, int32, int64, uint32
from flame.ops.machine import Machine
from flame.ops.vector_bits import copysign, is_negative, leading_bits
from flame.ops.vector_library import library_in_float64
from flame.ops.vector_math64 import polynomial

#: the bits of 2 / pi, 26 zeros in front
_TWO_OVER_PI = (0x28, 0xBE60DB93, 0x91054A7F, 0x09D5F47D, 0x4D377036, 0xD8A5664F, 0x10E4107F, 0x9458EAF7)
#: (sin(r) - r) / r^3 and (cos(r) - 1 + r^2 / 2) / r^4 in z = r^2 for |r| <= pi / 4, 2e-10 and 1e-10
_SIN = (-0.1666666716337204, 0.008333380334079266, -0.0001985349808819592, 2.8372471660986776e-06)
_COS = (0.04166664555668831, -0.00138873013202101, 2.443066841806285e-05)
_HALF_PI = math.pi / 2
_HALF_PI_HIGH = 3217 / 2048  # 12 bits
_HALF_PI_LOW = _HALF_PI - _HALF_PI_HIGH


def _quadrant(m: Machine, a: Any) -> tuple[Any, Any]:
    """a = q pi / 2 + r for float32 a >= 0 of any size: q modulo 4 (int32), and r in [-pi/4, pi/4] to full precision.

    Payne and Hanek's reduction ("Radian reduction for trigonometric functions", 1983): of 2 / pi only the 96 bits are
    multiplied that decide the quadrant and the fraction. Arithmetic is on 32-bit words.
    """
    bits = m.bitcast(a, uint32)
    small = m.lt(a, math.pi / 4)
    exponent = m.shift_right(bits, 23)
    start = m.where(small, m.const(0, uint32), m.sub(exponent, 126))  # of the 96 bits, from the front
    by_words, shift = m.shift_right(start, 5), m.bitwise_and(start, 31)

    def bit(k: int) -> Any:
        return m.ne(m.bitwise_and(by_words, 1 << k), 0)

    words = [m.const(w, uint32) for w in _TWO_OVER_PI]
    words = [m.where(bit(2), words[i + 4], words[i]) for i in range(4)] + words[4:7]
    words = [m.where(bit(1), words[i + 2], words[i]) for i in range(5)]
    words = [m.where(bit(0), words[i + 1], words[i]) for i in range(4)]
    back = m.sub(31, shift)
    w0, w1, w2 = (
        m.bitwise_or(m.shift_left(words[i], shift), m.shift_right(m.shift_right(words[i + 1], 1), back)) for i in range(3)
    )
    # mantissa * (w0 w1 w2), the upper 64 of the low 96 bits: 2 bits of quadrant, 62 of fraction
    mantissa = m.bitwise_or(m.bitwise_and(bits, 0x7FFFFF), 0x800000)
    carry_in = m.mul_high(mantissa, w2)
    middle = m.add(m.mul(mantissa, w1), carry_in)
    carry = m.where(m.lt(middle, carry_in), m.const(1, uint32), m.const(0, uint32))
    high = m.add(m.add(m.mul(mantissa, w0), m.mul_high(mantissa, w1)), carry)
    q = m.shift_right(m.add(high, 1 << 29), 30)
    rest = m.bitcast(m.sub(high, m.shift_left(q, 30)), int32)  # in [-2^29, 2^29], unit 2^-30
    # the 62 bits as three float32 of 24, 24 and 14 bits, then times pi / 2
    first = m.cast(m.shift_right(rest, 6), float32)
    taken = m.bitwise_or(m.shift_left(m.bitwise_and(m.bitcast(rest, uint32), 63), 18), m.shift_right(middle, 14))
    second = m.cast(m.bitcast(taken, int32), float32)
    third = m.cast(m.bitcast(m.bitwise_and(middle, 0x3FFF), int32), float32)
    lead = leading_bits(m, first)
    tail = m.fma(second, 2.0**-24, m.add(m.sub(first, lead), m.mul(third, 2.0**-38)))
    r = m.fma(lead, _HALF_PI_HIGH * 2.0**-24, m.fma(tail, _HALF_PI * 2.0**-24, m.mul(lead, _HALF_PI_LOW * 2.0**-24)))
    return m.where(small, m.const(0, int32), m.bitcast(q, int32)), m.where(small, a, r)


def _sin_cos(m: Machine, r: Any) -> tuple[Any, Any]:
    z = m.mul(r, r)
    sine = m.fma(m.mul(r, z), polynomial(m, z, _SIN), r)
    cosine = m.add(m.fma(m.mul(z, z), polynomial(m, z, _COS), m.mul(z, -0.5)), 1.0)
    return sine, cosine


_HALF_PI_REST = 6.123233995736766e-17
_TO_WHOLE = 1.5 * 2.0**52


def _near_quadrant(m: Machine, x: Any) -> tuple[Any, Any]:
    """As `_quadrant`, by float64, for |x| < 2^30 of either sign: float32 comes no nearer to multiples of pi / 2 than 2^-30."""
    wide = m.cast(x, float64)
    t = m.fma(wide, 2 / math.pi, _TO_WHOLE)
    q = m.sub(t, _TO_WHOLE)
    r = m.fma(q, -_HALF_PI_REST, m.fma(q, -_HALF_PI, wide))
    return m.cast(m.bitcast(t, int64), int32), m.cast(r, float32)


def _turned(m: Machine, x: Any, name: str, f: Callable[[Any, Any], Any]) -> Any:
    """f(q, r) of the quarter turns in x on machines of wide vectors, where few arguments are large: those are the library's."""
    return m.rarely(name, m.logical_not(m.lt(m.abs(x), 2.0**30)), f(*_near_quadrant(m, x)), x)


def _quarter(m: Machine, q: Any, r: Any) -> Any:
    """sin(q pi / 2 + r)."""
    sine, cosine = _sin_cos(m, r)
    y = m.where(m.ne(m.bitwise_and(q, 1), 0), cosine, sine)
    return m.where(m.ne(m.bitwise_and(q, 2), 0), m.neg(y), y)


def _sine_at(m: Machine, x: Any, q: Any, r: Any) -> Any:
    """sin(q pi / 2 + r); NaN where x is not finite."""
    y = _quarter(m, q, r)
    return m.where(m.lt(m.abs(x), math.inf), y, m.const(math.nan, float32))


@library_in_float64
def sin(m: Machine, x: Any) -> Any:
    if m.vectors:
        return _turned(m, x, "sin", lambda q, r: m.where(m.eq(x, 0.0), x, _quarter(m, q, r)))
    q, r = _quadrant(m, m.abs(x))
    y = _sine_at(m, x, q, r)
    return m.where(is_negative(m, x), m.neg(y), y)


@library_in_float64
def cos(m: Machine, x: Any) -> Any:
    if m.vectors:
        return _turned(m, x, "cos", lambda q, r: _quarter(m, m.add(q, 1), r))
    q, r = _quadrant(m, m.abs(x))
    return _sine_at(m, x, m.add(q, 1), r)


@library_in_float64
def tan(m: Machine, x: Any) -> Any:
    q, r = _quadrant(m, m.abs(x))
    sine, cosine = _sin_cos(m, r)
    odd = m.ne(m.bitwise_and(q, 1), 0)
    y = m.div(m.where(odd, m.neg(cosine), sine), m.where(odd, sine, cosine))
    y = m.where(is_negative(m, x), m.neg(y), y)
    return m.where(m.lt(m.abs(x), math.inf), y, m.const(math.nan, float32))


#: (atan(x) - x) / x^3 in z = x^2 <= 1, 2e-9; (asin(x) - x) / x^3 in z = x^2 <= 1/4, 3e-10
_ATAN = (
    -0.33333301544189453, 0.1999862790107727, -0.1426512598991394, 0.10956933349370956, -0.08417543023824692,
    0.05820125713944435, -0.03142214193940163, 0.011046255007386208, -0.0018231159774586558,
)  # fmt: skip
_ASIN = (
    0.16666659712791443, 0.0750051960349083, 0.044514212757349014,
    0.03182906657457352, 0.014362824149429798, 0.03761693835258484,
)  # fmt: skip


def _odd(m: Machine, x: Any, z: Any, coefficients: tuple[float, ...]) -> Any:
    return m.fma(m.mul(x, z), polynomial(m, z, coefficients), x)


def _from(m: Machine, high: float, low: float, y: Any) -> Any:
    """(high + low) - y."""
    return m.sub(high, m.sub(y, low))


_PI = (3.1415927410125732, -8.742277657347586e-08)  # float32(pi), and what is missing
_RIGHT = (_PI[0] / 2, _PI[1] / 2)


@library_in_float64
def atan(m: Machine, x: Any) -> Any:
    a = m.abs(x)
    large = m.gt(a, 1.0)
    t = m.where(large, m.div(m.const(1.0, float32), a), a)
    y = _odd(m, t, m.mul(t, t), _ATAN)
    return copysign(m, m.where(large, _from(m, *_RIGHT, y), y), x)


@library_in_float64
def atan2(m: Machine, y: Any, x: Any) -> Any:
    a, b = m.abs(y), m.abs(x)
    long, short = m.maximum(a, b), m.minimum(a, b)
    t = m.where(m.eq(long, short), m.const(1.0, float32), m.div(short, long))  # also where both are infinite
    t = m.where(m.eq(long, 0.0), m.const(0.0, float32), t)
    angle = _odd(m, t, m.mul(t, t), _ATAN)
    angle = m.where(m.gt(a, b), _from(m, *_RIGHT, angle), angle)
    return copysign(m, m.where(is_negative(m, x), _from(m, *_PI, angle), angle), y)


def _half_angle(m: Machine, x: Any) -> tuple[Any, Any, Any]:
    """Whether |x| > 1/2; s, which is |x| where not and sqrt((1 - |x|) / 2) where so; and asin(s) - s."""
    a = m.abs(x)
    large = m.gt(a, 0.5)
    z = m.where(large, m.mul(m.sub(1.0, a), 0.5), m.mul(a, a))
    s = m.where(large, m.sqrt(z), a)
    return large, s, m.mul(m.mul(s, z), polynomial(m, z, _ASIN))


@library_in_float64
def asin(m: Machine, x: Any) -> Any:
    large, s, rest = _half_angle(m, x)
    lead = leading_bits(m, s)  # pi / 2 - 2 lead is exact, or much larger than its rounding
    tail = m.add(m.sub(s, lead), rest)
    far = m.sub(m.sub(_RIGHT[0], m.add(lead, lead)), m.sub(m.add(tail, tail), _RIGHT[1]))
    return copysign(m, m.where(large, far, m.add(s, rest)), x)


@library_in_float64
def acos(m: Machine, x: Any) -> Any:
    large, s, rest = _half_angle(m, x)
    p = m.add(s, rest)
    near = m.where(m.lt(x, 0.0), _from(m, *_PI, m.add(p, p)), m.add(p, p))
    return m.where(large, near, _from(m, *_RIGHT, copysign(m, p, x)))
