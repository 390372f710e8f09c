"""Casts between float32 and the 8-bit floats, on bits: what every machine does where it has no instruction of that meaning.

    widened(m, bits, d)      the float32 that 8 bits of `d` stand for, exactly
    narrowed(m, x, d)        float32 rounded to the nearest of `d`, ties to even, as 8 bits
    halved(m, bits, d)       the same number as float16, which holds all of both formats

float8_e4m3fn has 4 bits of exponent (bias 7) and no infinities: beyond 464 it is NaN. float8_e5m2 is float16 without its last 8
bits. Meaning and names are those of "FP8 Formats for Deep Learning" (Micikevicius et al., 2022) and of `ml_dtypes`. (The GPU's own
instruction gives the largest number instead of NaN or infinity, which is why it is not taken.)
"""

from __future__ import annotations

from typing import Any

from flame.dtypes import dtype, float8_e4m3fn, float16, float32, int16, int32, uint8
from flame.ops.machine import Machine

_INFINITY = 0x7F800000
_NAN = 0x7FC00000


def widened(m: Machine, bits: Any, d: dtype) -> Any:
    b = m.cast(bits, int32)
    size = m.bitwise_and(b, 0x7F)
    if d is float8_e4m3fn:
        number = m.bitcast(m.mul(m.bitcast(m.shift_left(size, 20), float32), 2.0**120), int32)
        number = m.where(m.eq(size, 0x7F), m.const(_NAN, int32), number)
    else:
        place = m.shift_left(size, 21)
        number = m.bitcast(m.mul(m.bitcast(place, float32), 2.0**112), int32)
        number = m.where(m.ge(size, 0x7C), m.bitwise_or(place, _INFINITY), number)
    return m.bitcast(m.bitwise_or(number, m.shift_left(m.bitwise_and(b, 0x80), 24)), float32)


def narrowed(m: Machine, x: Any, d: dtype) -> Any:
    # numbers below the least normal one are rounded by adding a power of two whose last place is theirs
    cut, bias, least, power, most = (20, 7, 2.0**-6, 2.0**14, 0x7F) if d is float8_e4m3fn else (21, 15, 2.0**-14, 2.0**7, 0x7C)
    word = m.bitcast(x, int32)
    size = m.bitwise_and(word, 0x7FFFFFFF)
    odd = m.bitwise_and(m.shift_right(size, cut), 1)
    up = ((bias - 127) << 23) + (1 << (cut - 1)) - 1
    normal = m.minimum(m.shift_right(m.add(m.add(size, up), odd), cut), most)
    number = m.bitcast(size, float32)
    small = m.sub(m.bitcast(m.add(number, power), int32), _bits(power))
    found = m.where(m.lt(size, _bits(least)), small, normal)
    found = m.where(m.gt(size, _INFINITY), m.const(0x7F if most == 0x7F else 0x7E, int32), found)
    return m.cast(m.bitwise_or(found, m.bitwise_and(m.shift_right(word, 24), 0x80)), uint8)


def halved(m: Machine, bits: Any, d: dtype) -> Any:
    b = m.cast(bits, int16)
    if d is not float8_e4m3fn:
        return m.bitcast(m.shift_left(b, 8), float16)
    size = m.bitwise_and(b, 0x7F)
    # 2^8 is what the exponents' zeros differ by; it takes the numbers of a mantissa alone to where they belong
    number = m.mul(m.bitcast(m.shift_left(size, 7), float16), 256.0)
    half = m.where(m.eq(size, 0x7F), m.const(0x7E00, int16), m.bitcast(number, int16))
    return m.bitcast(m.bitwise_or(half, m.shift_left(m.bitwise_and(b, 0x80), 8)), float16)


def _bits(power: float) -> int:
    """The bits of a power of two as float32."""
    exponent = 0
    while 2.0**exponent != power:
        exponent += 1 if power > 1 else -1
    return (exponent + 127) << 23
