"""Mathematical functions on the abstract machine, element by element and without branches: what kernels compute.

    float32   argument reduction and polynomials of our own, within 2 units in the last place (ULP) of the exact result, tan
              within 4. Subnormals, infinities, NaN and signed zeros are right.
    float64   the platform's library (`m.libm`) or what is written out (`vector_library.py`); the library in float32 too where
              it is as good (`m.native`)

The polynomials are minimax fits made for this file: weighted least squares on Chebyshev nodes, reweighted (Lawson) until the
error levels, in extended precision; coefficients are rounded to float32 one after the other, refitting the rest. Constants
that are split into a sum have so few bits in their first part that its products are exact, so that nothing here relies on a
fused `fma`; one that rounds once only makes it more accurate.

A definition is a function of the machine and its values; `special.py` runs them on NumPy, the renderers on everything else.
Those of angles are in `vector_angles.py`, and are found here as well.
"""

from __future__ import annotations

import math
from typing import Any

from flame.dtypes import float32, float64, int32
from flame.ops.machine import Machine
from flame.ops.vector_angles import acos as acos
from flame.ops.vector_angles import asin as asin
from flame.ops.vector_angles import atan as atan
from flame.ops.vector_angles import atan2 as atan2
from flame.ops.vector_angles import cos as cos
from flame.ops.vector_angles import sin as sin
from flame.ops.vector_angles import tan as tan
from flame.ops.vector_bits import SHIFTER, copysign, leading_bits, signed_power, times_power_of_2, whole
from flame.ops.vector_library import WIDE, library_in_float64
from flame.ops.vector_math64 import polynomial

# ------------------------------------------------------------------------------------------------------------ exponentials

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 355 / 512, -2.1219444005469057e-4  # 9 bits: times up to 2^15 exactly
#: (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2, relative error of e^r 3e-9
_EXP = (0.4999999403953552, 0.1666651964187622, 0.04166825860738754, 0.008368855342268944, 0.001382172922603786)
#: the same as _EXP, relative error of e^r - 1 4e-10
_EXPM1 = (
    0.5, 0.1666666716337204, 0.041666485369205475, 0.00833320152014494, 0.0013933067675679922, 0.00019950050045736134,
)  # fmt: skip
#: (2^r - 1) / r for |r| <= 1/2, 3e-9
_EXP2 = (
    0.6931471824645996, 0.24022647738456726, 0.055503591895103455,
    0.009618504904210567, 0.001339124166406691, 0.00015327497385442257,
)  # fmt: skip


def _reduced(m: Machine, x: Any) -> tuple[Any, Any, Any, Any]:
    """x = n ln(2) + r: n as int32, r, and r in two parts of which the first is exact."""
    n, i = whole(m, m.mul(x, _LOG2_E))
    high, low = m.fma(n, -_LN2_HIGH, x), m.mul(n, -_LN2_LOW)
    return i, m.add(high, low), high, low


def _exp_of_part(m: Machine, x: Any, shifter: float) -> tuple[Any, Any]:
    """x = n ln(2) + r: n + shifter, whose low bits are those of n + shifter - SHIFTER, and e^r."""
    t = m.fma(x, _LOG2_E, shifter)
    n = m.sub(t, shifter)
    r = m.fma(n, -_LN2_LOW, m.fma(n, -_LN2_HIGH, x))
    return t, m.fma(r, m.fma(r, polynomial(m, r, _EXP), 1.0), 1.0)


def _exp(m: Machine, x: Any, *, halvings: int = 0) -> Any:
    """e^x / 2^halvings for float32 x. Scaled in two steps of which the first is exact, so that subnormal results are rounded
    once; the exponents of both, biased, are the halves of what stands in the low bits of t."""
    x = m.maximum(m.minimum(x, 90.0), -105.0)  # beyond, results are infinite and 0 already; NaN passes
    t, y = _exp_of_part(m, x, SHIFTER + 254 - halvings)
    both = m.bitcast(t, int32)
    half = m.shift_right(both, 1)
    for k in (half, m.sub(both, half)):
        y = m.mul(y, m.bitcast(m.shift_left(k, 23), float32))
    return y


def _exp_of_negative(m: Machine, x: Any) -> Any:
    """e^x for float32 x <= 0 (or NaN), a third fewer instructions than `_exp`: 2^24 e^x is a normal number or 0, so that one
    step of scaling is exact."""
    t, y = _exp_of_part(m, m.maximum(x, -105.0), SHIFTER + 127 + 24)
    return m.mul(m.mul(y, m.bitcast(m.shift_left(m.bitcast(t, int32), 23), float32)), 2.0**-24)


def _exp_normal(m: Machine, x: Any) -> Any:
    """e^x for float32 -87 <= x <= 88, where it is a normal number."""
    t, y = _exp_of_part(m, x, SHIFTER + 127)
    return m.mul(y, m.bitcast(m.shift_left(m.bitcast(t, int32), 23), float32))


def _with_exponent(m: Machine, y: Any, t: Any) -> Any:
    """y times 2^n, a normal number, by t = n + SHIFTER: what stands above n in its bits is shifted out. NaN stays NaN."""
    return m.mul(y, m.bitcast(m.add(m.shift_left(m.bitcast(t, int32), 23), 127 << 23), float32))


@library_in_float64
def exp(m: Machine, x: Any) -> Any:
    return _exp(m, x)


def exp_of_negative(m: Machine, x: Any) -> Any:
    """`exp` of what is known not to be positive."""
    return exp(m, x) if m.dtype(x) is float64 or "exp" in m.native else _exp_of_negative(m, x)


@library_in_float64
def exp2(m: Machine, x: Any) -> Any:
    return _exp2(m, x)


def _exp2(m: Machine, x: Any) -> Any:
    x = m.maximum(m.minimum(x, 129.0), -151.0)
    n, i = whole(m, x)
    r = m.sub(x, n)
    return times_power_of_2(m, m.fma(r, polynomial(m, r, _EXP2), 1.0), i)


@library_in_float64
def expm1(m: Machine, x: Any) -> Any:
    limited = m.maximum(m.minimum(x, 89.0), -18.0)
    i, r, high, low = _reduced(m, limited)
    p = m.add(high, m.fma(m.mul(r, r), polynomial(m, r, _EXPM1), low))
    scale = m.bitcast(m.shift_left(m.add(i, 126), 23), float32)  # 2^(n - 1): 2^128 is no float32
    y = m.mul(m.fma(scale, p, m.sub(scale, 0.5)), 2.0)
    return m.where(m.eq(i, 0), m.where(m.eq(x, 0.0), x, p), y)


def sigmoid(m: Machine, x: Any) -> Any:
    """1 / (1 + e^-x), through e = e^-|x|, so that it goes down to the subnormals: with w = e / (1 + e) it is 1 - w for
    positive x, and w for negative, which as e - e w is more accurate."""
    e = exp_of_negative(m, m.neg(m.abs(x)))
    w = m.div(e, m.add(e, 1.0))
    return m.where(m.lt(x, 0.0), m.fma(m.neg(e), w, e), m.sub(1.0, w))


#: (sinh(x) - x) / x^3 in z = x^2 <= 1, 3e-10; (tanh(x) - x) / x^3 in z = x^2 <= 0.36, 3e-9
_SINH = (0.1666666716337204, 0.008333311416208744, 0.00019842635083477944, 2.7839255380968098e-06)
_TANH = (-0.33333298563957214, 0.13331939280033112, -0.05378512293100357, 0.020800316706299782, -0.005900179035961628)


@library_in_float64
def sinh(m: Machine, x: Any) -> Any:
    a, z = m.abs(x), m.mul(x, x)
    small = m.fma(m.mul(x, z), polynomial(m, z, _SINH), x)
    half = _exp(m, a, halvings=1)
    return m.where(m.lt(a, 1.0), small, copysign(m, m.sub(half, m.div(m.const(0.25, float32), half)), x))


@library_in_float64
def cosh(m: Machine, x: Any) -> Any:
    half = _exp(m, m.abs(x), halvings=1)
    return m.add(half, m.div(m.const(0.25, float32), half))


@library_in_float64
def tanh(m: Machine, x: Any) -> Any:
    a, z = m.abs(x), m.mul(x, x)
    small = m.fma(m.mul(x, z), polynomial(m, z, _TANH), x)
    e = _exp_normal(m, m.minimum(m.add(a, a), 40.0))
    large = m.sub(1.0, m.div(m.const(2.0, float32), m.add(e, 1.0)))
    return copysign(m, m.where(m.lt(a, 0.6), small, large), x)


# -------------------------------------------------------------------------------------------------------------- logarithms

_ROOT_HALF_BITS = 0x3F3504F3
#: (log(1 + f) - f + f^2 / 2) / f^3 for 1 + f in [sqrt(1/2), sqrt(2)], relative error of the logarithm 7e-10
_LOG = (
    0.3333331048488617, -0.24999986588954926, 0.20002223551273346, -0.16669249534606934, 0.14218716323375702,
    -0.12384402006864548, 0.11872619390487671, -0.11789370328187943, 0.06915612518787384,
)  # fmt: skip


def _split(m: Machine, x: Any) -> tuple[Any, Any]:
    """x = 2^e (1 + f) for positive finite float32 x, subnormal ones too: e (float32) and f, 1 + f in [sqrt(1/2), sqrt(2))."""
    tiny = m.lt(x, 2.0**-126)
    x = m.where(tiny, m.mul(x, 2.0**24), x)
    bits = m.sub(m.bitcast(x, int32), _ROOT_HALF_BITS)
    e = m.cast(m.shift_right(bits, 23), float32)
    mantissa = m.bitcast(m.add(m.bitwise_and(bits, 0x7FFFFF), _ROOT_HALF_BITS), float32)
    return m.where(tiny, m.sub(e, 24.0), e), m.sub(mantissa, 1.0)


def _log_tail(m: Machine, f: Any) -> Any:
    """log(1 + f) - f."""
    return m.mul(m.mul(f, f), m.fma(f, polynomial(m, f, _LOG), -0.5))


def _at_the_ends(m: Machine, x: Any, y: Any) -> Any:
    """y = some logarithm of x, put right where x is 0, negative, infinite or NaN."""
    y = m.where(m.lt(x, math.inf), y, x)  # inf and NaN give themselves
    return m.where(m.gt(x, 0.0), y, m.where(m.eq(x, 0.0), m.const(-math.inf, float32), m.const(math.nan, float32)))


@library_in_float64
def log(m: Machine, x: Any) -> Any:
    e, f = _split(m, x)
    low = m.fma(e, _LN2_LOW, _log_tail(m, f))
    return _at_the_ends(m, x, m.fma(e, _LN2_HIGH, m.add(f, low)))


def _log_in_base(m: Machine, x: Any, factor: tuple[float, float], of_2: tuple[float, float]) -> Any:
    """log(x) * factor; the factor and the logarithm of 2 are given in two parts."""
    e, f = _split(m, x)
    high = leading_bits(m, f)
    low = m.fma(m.sub(f, high), factor[0], m.fma(f, factor[1], m.mul(_log_tail(m, f), factor[0] + factor[1])))
    y = m.fma(e, of_2[0], m.mul(high, factor[0]))
    return _at_the_ends(m, x, m.add(y, m.fma(e, of_2[1], low) if of_2[1] else low))


@library_in_float64
def log2(m: Machine, x: Any) -> Any:
    return _log_in_base(m, x, (5908 / 4096, _LOG2_E - 5908 / 4096), (1.0, 0.0))


@library_in_float64
def log10(m: Machine, x: Any) -> Any:
    of_e, of_2 = math.log10(math.e), math.log10(2)
    return _log_in_base(m, x, (3557 / 8192, of_e - 3557 / 8192), (9864 / 32768, of_2 - 9864 / 32768))


@library_in_float64
def log1p(m: Machine, x: Any) -> Any:
    """Through u = 1 + x, with what rounding took from u put back: it is c, and log(u + c) = log(u) + c / u."""
    u = m.add(x, 1.0)
    c = m.where(m.gt(x, 1.0), m.sub(1.0, m.sub(u, x)), m.sub(x, m.sub(u, 1.0)))
    e, f = _split(m, u)
    near = m.eq(e, 0.0)  # there x itself is f
    f = m.where(near, x, f)
    low = m.fma(e, _LN2_LOW, m.add(_log_tail(m, f), m.where(near, 0.0, m.div(c, u))))
    y = m.fma(e, _LN2_HIGH, m.add(f, low))
    return m.where(m.eq(x, 0.0), x, _at_the_ends(m, u, y))


def asinh(m: Machine, x: Any) -> Any:
    a = m.abs(x)
    small = log1p(m, m.add(a, m.div(m.mul(a, a), m.add(m.sqrt(m.fma(a, a, 1.0)), 1.0))))
    large = m.add(log(m, a), math.log(2))
    return copysign(m, m.where(m.gt(a, 1e8), large, small), x)


def acosh(m: Machine, x: Any) -> Any:
    if m.vectors and m.dtype(x) is float64:
        return WIDE["acosh"](m, x)
    t = m.sub(x, 1.0)
    small = log1p(m, m.add(t, m.sqrt(m.fma(t, t, m.mul(t, 2.0)))))
    y = m.where(m.gt(x, 1e8), m.add(log(m, x), math.log(2)), small)
    return m.where(m.lt(x, 1.0), m.const(math.nan, m.dtype(x)), y)


def atanh(m: Machine, x: Any) -> Any:
    a = m.abs(x)
    return copysign(m, m.mul(log1p(m, m.div(m.mul(a, 2.0), m.sub(1.0, a))), 0.5), x)


# ------------------------------------------------------------------------------------------------------------ error function

#: erf(x) / x - 1 in z = x^2 for |x| < 0.95, 9e-10
_ERF = (
    0.12837916612625122, -0.3761262893676758, 0.11283625662326813, -0.026855740696191788,
    0.0051924604922533035, -0.0008050804026424885, 8.002774848137051e-05,
)  # fmt: skip
#: log2(1 - erf(a)) for 0.92 <= a <= 4, absolute error of erf 1e-10
_ERF_TAIL = (
    0.00025373336393386126, -1.629554033279419, -0.9137091040611267, -0.15623454749584198,
    0.03625238686800003, -0.00602244958281517, 0.00062781129963696, -3.052186730201356e-05,
)  # fmt: skip
#: (1 + 2 a) e^(a^2) erfc(a) in t = (a - 2) / (a + 2) for 0.45 <= a <= 10.2, 7e-9
_ERFC = (
    1.2769783735275269, -0.09276381134986877, -0.16603049635887146, 0.1640498787164688, -0.05421321094036102,
    -0.00801467802375555, 0.008661583065986633, 0.001176144345663488, -0.001263160491362214, -0.00026055407943204045,
)  # fmt: skip


@library_in_float64
def erf(m: Machine, x: Any) -> Any:
    a = m.abs(x)
    z = m.mul(x, x)
    small = m.fma(x, polynomial(m, z, _ERF), x)
    q = polynomial(m, m.minimum(a, 4.0), _ERF_TAIL)
    t = m.add(q, SHIFTER)
    r = m.sub(q, m.sub(t, SHIFTER))
    large = m.sub(1.0, _with_exponent(m, m.fma(r, polynomial(m, r, _EXP2), 1.0), t))
    return m.where(m.lt(a, 0.92), small, copysign(m, large, x))


@library_in_float64
def erfc(m: Machine, x: Any) -> Any:
    """1 - erf(x) near 0, else e^(-a^2) times a polynomial, both with float64 on the inside: the square alone needs it."""
    small = m.sub(1.0, m.fma(x, polynomial(m, m.mul(x, x), _ERF), x))
    a = m.cast(m.minimum(m.abs(x), 10.5), float64)
    square = m.neg(m.mul(a, a))
    n = m.rint(m.mul(square, _LOG2_E))
    r = m.cast(m.fma(n, -math.log(2), square), float32)
    less_1 = m.fma(m.mul(r, r), polynomial(m, r, _EXP), r)
    t = m.div(m.sub(a, 2.0), m.add(a, 2.0))
    scaled = m.div(polynomial(m, t, _ERFC), m.fma(a, 2.0, 1.0))
    _, i = whole(m, m.cast(n, float32))
    tail = times_power_of_2(m, m.cast(m.fma(scaled, m.cast(less_1, float64), scaled), float32), i)
    return m.where(m.lt(m.abs(x), 0.5), small, m.where(m.lt(x, 0.0), m.sub(2.0, tail), tail))


# ---------------------------------------------------------------------------------- powers and gamma: float64 on the inside

#: (atanh(s) / s - 1) / s^2 in z = s^2 <= 0.0295, 2e-16
_ATANH = (
    0.3333333333329308, 0.20000000026424125, 0.14285708514527948,
    0.11111689650289333, 0.09061691809977532, 0.08411535188641027,
)  # fmt: skip


def _log_wide(m: Machine, x: Any) -> Any:
    """The natural logarithm of a positive finite float32, as float64 (relative error about 4e-16)."""
    e, f = _split(m, x)
    f = m.cast(f, float64)
    s = m.div(f, m.add(f, 2.0))
    z = m.mul(s, s)
    half = m.fma(m.mul(s, z), polynomial(m, z, _ATANH), s)
    return m.fma(m.cast(e, float64), math.log(2), m.add(half, half))


def pow(m: Machine, x: Any, y: Any) -> Any:
    match m.dtype(x):
        case d if d.kind != "f":
            return _integer_pow(m, x, y)
        case d if d is float64:
            return WIDE["pow"](m, x, y) if m.vectors else m.libm("pow", x, y)
        case _:
            return _float_pow(m, x, y)


def _integer_pow(m: Machine, x: Any, y: Any) -> Any:
    """By squaring, one step a bit of the exponent (wrapping). To a negative power: of 1 and -1 what parity says, of others 0."""
    d = m.dtype(x)
    out, base, bits = m.const(1, d), x, y
    for _ in range(d.itemsize * 8 - 1):
        out = m.where(m.ne(m.bitwise_and(bits, 1), 0), m.mul(out, base), out)
        base = m.mul(base, base)
        bits = m.shift_right(bits, 1)
    if d.kind != "i" or isinstance(y, int):  # (numbers below 0 are refused)
        return out
    no_unit = m.logical_and(m.ne(x, 1), m.ne(x, -1))
    return m.where(m.logical_and(m.lt(y, 0), no_unit), m.const(0, d), out)


def _float_pow(m: Machine, x: Any, y: Any) -> Any:
    """2^(y log2 |x|) with the sign and the exceptions of C's pow."""
    a = m.abs(x)
    log_a = m.mul(_log_wide(m, a), _LOG2_E)
    log_a = m.where(m.eq(a, 0.0), m.const(-math.inf, float64), m.where(m.eq(a, math.inf), m.const(math.inf, float64), log_a))
    t = m.mul(m.cast(y, float64), log_a)
    t = m.maximum(m.minimum(t, 160.0), -160.0)
    n = m.rint(t)
    magnitude = _power_of_2(m, n, m.cast(m.sub(t, n), float32))
    return signed_power(m, x, y, magnitude)


def _power_of_2(m: Machine, n: Any, r: Any) -> Any:
    """2^(n + r) for whole n (float64) and |r| <= 1/2."""
    _, i = whole(m, m.cast(n, float32))
    return times_power_of_2(m, m.fma(r, polynomial(m, r, _EXP2), 1.0), i)


#: sin(pi r) / (pi r) - 1 in z = r^2 <= 1/4, from the Taylor series
_SIN_PI = tuple((-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k + 1) for k in range(1, 12))
#: the coefficients of 1/z, 1/z^3, ... in Stirling's series
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)


def _log_sum(m: Machine, x: Any) -> Any:
    """The logarithm of a float64 within float32's normal range, from that of its float32 part."""
    near = m.cast(x, float32)
    wide = m.cast(near, float64)
    d = m.div(m.sub(x, wide), wide)
    return m.add(_log_wide(m, near), m.fma(m.mul(d, d), -0.5, d))


@library_in_float64
def lgamma(m: Machine, x: Any) -> Any:
    """log |gamma(x)|: arguments below 8 are shifted up by 8, then Stirling's series; reflected below 0."""
    reflected = m.lt(x, 0.0)
    a = m.where(reflected, m.sub(m.const(1.0, float64), m.cast(x, float64)), m.cast(x, float64))
    few = m.lt(a, 8.0)
    factors = m.add(a, 1.0)
    for k in range(2, 8):
        factors = m.mul(factors, m.add(a, float(k)))
    z = m.where(few, m.add(a, 8.0), a)
    inverse = m.div(m.const(1.0, float64), z)
    series = m.mul(inverse, polynomial(m, m.mul(inverse, inverse), _STIRLING))
    stirling = m.fma(m.sub(z, 0.5), m.sub(_log_sum(m, z), 1.0), m.add(series, 0.5 * math.log(2 * math.pi) - 0.5))
    safe = m.where(few, factors, m.const(1.0, float64))
    first = m.where(few, a, m.const(1.0, float64))
    up = m.sub(stirling, m.add(_log_sum(m, first), _log_sum(m, safe)))
    # gamma(x) gamma(1 - x) = pi / sin(pi x)
    wide = m.cast(x, float64)
    r = m.sub(wide, m.rint(wide))
    sine = m.mul(m.abs(r), m.fma(m.mul(r, r), polynomial(m, m.mul(r, r), _SIN_PI), 1.0))  # sin(pi |r|) / pi
    below = m.sub(m.neg(_log_sum(m, m.maximum(sine, 1e-30))), up)
    y = m.cast(m.where(reflected, below, up), float32)
    pole = m.logical_and(m.le(x, 0.0), m.eq(m.floor(x), x))
    y = m.where(m.logical_or(pole, m.eq(x, math.inf)), m.const(math.inf, float32), y)
    y = m.where(m.logical_or(m.eq(x, 1.0), m.eq(x, 2.0)), m.const(0.0, float32), y)
    # near 0, where 1 - x would round x away: log |gamma(x)| = -log |x| - 0.577 x
    close = m.sub(m.mul(x, -0.5772156649015329), log(m, m.abs(x)))
    return m.where(m.lt(m.abs(x), 2.0**-20), m.where(m.eq(x, 0.0), m.const(math.inf, float32), close), y)


def hypot(m: Machine, x: Any, y: Any) -> Any:
    """sqrt(x * x + y * y) without overflow in between; infinite if either is, even beside NaN."""
    x, y = m.abs(x), m.abs(y)
    large, small = m.maximum(x, y), m.minimum(x, y)
    ratio = m.where(m.eq(large, 0.0), large, m.div(small, large))
    length = m.mul(large, m.sqrt(m.fma(ratio, ratio, 1.0)))
    infinite = m.logical_or(m.eq(x, math.inf), m.eq(y, math.inf))
    return m.where(infinite, math.inf, length)
