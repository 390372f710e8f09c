"""Mathematical functions of float64 in vectors, within 2 units in the last place: for machines whose library takes them one by one.

    exp, expm1, tanh      x = n ln(2) + r, |r| <= ln(2) / 2, and the exponential series up to r^13 / 13!
    exp2, sinh, cosh      the same; sinh below 1 by its own series, up to x^17 / 17!
    log, log1p            x = 2^e (1 + f), s = f / (2 + f), log(1 + f) = f - (f^2/2 - s (f^2/2 + R)), R = 2/3 s^2 + 2/5 s^4 + ..
    erf, erfc             the series of erf up to x^37 for |x| < 1; else erfc(a) = e^(-a^2) (1 + 2 a) e^(a^2) erfc(a) / (1 + 2 a),
                          where the product in the middle is a polynomial in (a - 4) / (a + 4) (Shepherd and Laframboise, 1981)
    sin, cos, tan         x = q pi / 2 + r, |r| <= pi / 4, r as a sum of two; the series up to r^17 / 17!. Tan within 4 units

The series are cut where what follows is less than a tenth of a unit. The reduction of sin, cos and tan needs an fma that rounds
once; arguments from 2^30 on are the library's (`m.rarely`). Logarithms as sums of two, powers and gamma are in
`vector_powers64.py`, inverse trigonometry in `vector_angles64.py`; of `LIBM`'s functions fmod alone stays with the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flame.dtypes import float64, int64, uint64
from flame.ops.machine import Machine

_LOG2_E = 1.4426950408889634
LN2_HIGH = 0x162E42FE * 2.0**-29  # 29 bits: times up to 2^11 exactly
LN2_LOW = 1.8206359985041462e-09  # ln(2) less that
_SHIFTER = 1.5 * 2.0**52  # adding it leaves the nearest whole number in the low bits
#: (e^r - 1 - r) / r^2
_SERIES = tuple(1 / math.factorial(k) for k in range(2, 14))
#: (2^r - 1) / r
_SERIES_OF_2 = tuple(math.log(2) ** k / math.factorial(k) for k in range(1, 14))
#: (sinh(x) - x) / x^3 in x^2
_SINH = tuple(1 / math.factorial(k) for k in range(3, 18, 2))
#: R / s^2
ATANH = tuple(2 / (2 * k + 1) for k in range(1, 12))
_ONE_BITS, _ROOT_HALF_BITS = 0x3FF0000000000000, 0x3FE6A09E667F3BCD


def polynomial(m: Machine, x: Any, coefficients: tuple[float, ...]) -> Any:
    """c[0] + c[1] x + c[2] x^2 + ..., Horner's way."""
    out: Any = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        out = m.fma(x, out, c)
    return out


def by_halves(m: Machine, x: Any, coefficients: tuple[float, ...]) -> Any:
    """As `polynomial`, even and odd powers side by side: a long one is waited for half as long."""
    z = m.mul(x, x)
    return m.fma(x, polynomial(m, z, coefficients[1::2]), polynomial(m, z, coefficients[::2]))


def _power_of_2(m: Machine, t: Any) -> Any:
    """2^n by t = n + _SHIFTER, for -1022 <= n <= 1023."""
    return m.bitcast(m.add(m.shift_left(m.bitcast(t, int64), 52), _ONE_BITS), float64)


def _less_1(m: Machine, high: Any, low: Any) -> Any:
    """e^(high + low) - 1 for at most ln(2) / 2."""
    r = m.add(high, low)
    return m.add(high, m.fma(m.mul(r, r), polynomial(m, r, _SERIES), low))


def _reduced(m: Machine, x: Any, low: Any = None) -> tuple[Any, Any]:
    """n, and e^r - 1, for |x| < 2^10; `low` is what x lacks."""
    n = m.sub(m.fma(x, _LOG2_E, _SHIFTER), _SHIFTER)
    high = m.fma(n, -LN2_HIGH, x)
    return n, _less_1(m, high, m.mul(n, -LN2_LOW) if low is None else m.fma(n, -LN2_LOW, low))


def _scaled(m: Machine, less_1: Any, n: Any, halvings: int = 0) -> Any:
    """(1 + less_1) 2^(n - halvings), in two steps of which the first is exact: subnormal results are rounded once."""
    t = m.fma(n, 0.5, _SHIFTER)
    rest = m.add(m.sub(n, m.sub(t, _SHIFTER)), _SHIFTER - halvings)
    return m.mul(m.mul(m.add(less_1, 1.0), _power_of_2(m, t)), _power_of_2(m, rest))


def exp_of_sum(m: Machine, high: Any, low: Any) -> Any:
    """e^(high + low) for |high| < 2^10 and a low that it does not contain."""
    n, less_1 = _reduced(m, high, low)
    return _scaled(m, less_1, n)


def exp(m: Machine, x: Any) -> Any:
    n, less_1 = _reduced(m, m.maximum(m.minimum(x, 710.0), -746.0))
    return _scaled(m, less_1, n)


def exp2(m: Machine, x: Any) -> Any:
    x = m.maximum(m.minimum(x, 1025.0), -1076.0)
    n = m.sub(m.add(x, _SHIFTER), _SHIFTER)
    r = m.sub(x, n)
    return _scaled(m, m.mul(r, polynomial(m, r, _SERIES_OF_2)), n)


def _half_exp(m: Machine, a: Any) -> Any:
    """e^a / 2 for a >= 0."""
    n, less_1 = _reduced(m, m.minimum(a, 712.0))
    return _scaled(m, less_1, n, halvings=1)


def sinh(m: Machine, x: Any) -> Any:
    a, z = m.abs(x), m.mul(x, x)
    half = _half_exp(m, a)
    large = m.sub(half, m.div(m.const(0.25, float64), half))
    sign = m.bitwise_and(m.bitcast(x, int64), -(1 << 63))
    large = m.bitcast(m.bitwise_or(m.bitcast(large, int64), sign), float64)
    return m.where(m.lt(a, 1.0), m.fma(m.mul(x, z), polynomial(m, z, _SINH), x), large)


def cosh(m: Machine, x: Any) -> Any:
    half = _half_exp(m, m.abs(x))
    return m.add(half, m.div(m.const(0.25, float64), half))


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


def split(m: Machine, x: Any) -> tuple[Any, Any]:
    """x = 2^e (1 + f) for a positive finite x: e and f, 1 + f in [sqrt(1/2), sqrt(2))."""
    tiny = m.lt(x, 2.0**-1022)
    x = m.where(tiny, m.mul(x, 2.0**54), x)
    bits = m.add(m.bitcast(x, uint64), _ONE_BITS - _ROOT_HALF_BITS)
    e = m.bitcast(m.bitwise_or(m.shift_right(bits, 52), 0x4330000000000000), float64)
    e = m.sub(e, m.where(tiny, 2.0**52 + 1023 + 54, m.const(2.0**52 + 1023, float64)))
    return e, m.sub(m.bitcast(m.add(m.bitwise_and(bits, (1 << 52) - 1), _ROOT_HALF_BITS), float64), 1.0)


def _log(m: Machine, x: Any) -> Any:
    """The logarithm of a positive finite number."""
    e, f = split(m, x)
    s = m.div(f, m.add(f, 2.0))
    z, half = m.mul(s, s), m.mul(m.mul(f, f), 0.5)
    inner = m.fma(s, m.fma(z, polynomial(m, z, ATANH), half), m.mul(e, LN2_LOW))
    return m.fma(e, LN2_HIGH, m.sub(f, m.sub(half, inner)))


def at_the_ends(m: Machine, x: Any, y: Any) -> Any:
    """y = a logarithm of x, put right where x is 0, negative, infinite or NaN."""
    y = m.where(m.lt(x, math.inf), y, x)  # inf and NaN give themselves
    return m.where(m.gt(x, 0.0), y, m.where(m.eq(x, 0.0), m.const(-math.inf, float64), m.const(math.nan, float64)))


def log(m: Machine, x: Any) -> Any:
    return at_the_ends(m, x, _log(m, x))


def log1p(m: Machine, x: Any) -> Any:
    """log(u) for u = 1 + x rounded, and what was rounded away, over u."""
    u = m.add(x, 1.0)
    lost = m.where(m.lt(x, 1.0), m.sub(x, m.sub(u, 1.0)), m.sub(1.0, m.sub(u, x)))
    y = m.where(m.eq(u, 1.0), x, m.add(_log(m, u), m.div(lost, u)))
    return at_the_ends(m, u, m.where(m.lt(u, math.inf), y, u))


#: pi / 2 as a sum, 159 bits
_HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591833e-33)
_FAR = 2.0**30  #: from here on, the library
_SIN = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(1, 9))
_COS = tuple((-1) ** k / math.factorial(2 * k) for k in range(2, 9))


def _quadrant(m: Machine, x: Any) -> tuple[Any, Any, Any]:
    """The bits of q, and high and low part of r, where x = q pi / 2 + r and |x| < 2^30.

    Doubles come as near to multiples of pi / 2 as 2^-60, so every product with a part of pi / 2 is exact, by its two halves, and
    what subtractions lose is added to the low part (Dekker's and Knuth's sums).
    """
    t = m.fma(x, 2 / math.pi, _SHIFTER)
    q = m.sub(t, _SHIFTER)
    first = m.mul(q, _HALF_PI[0])
    of_first = m.fma(q, _HALF_PI[0], m.neg(first))
    a = m.sub(x, first)
    b = m.sub(a, of_first)
    lost = m.sub(m.sub(a, b), of_first)
    second = m.mul(q, _HALF_PI[1])
    of_second = m.fma(q, _HALF_PI[1], m.neg(second))
    c = m.sub(b, second)
    back = m.sub(b, c)
    lost = m.add(lost, m.add(m.sub(b, m.add(c, back)), m.sub(back, second)))
    low = m.sub(lost, m.fma(q, _HALF_PI[2], of_second))
    high = m.add(c, low)
    return m.bitcast(t, int64), high, m.add(m.sub(c, high), low)


def _sin_cos(m: Machine, r: Any, low: Any) -> tuple[Any, Any]:
    z = m.mul(r, r)
    half = m.mul(z, 0.5)
    sine = m.add(r, m.fma(m.mul(r, z), polynomial(m, z, _SIN), m.fma(m.neg(low), half, low)))
    near = m.sub(1.0, half)
    rest = m.sub(m.sub(1.0, near), half)
    cosine = m.add(near, m.fma(m.mul(z, z), polynomial(m, z, _COS), m.sub(rest, m.mul(r, low))))
    return sine, cosine


def _far(m: Machine, x: Any) -> Any:
    """Where an argument is large, infinite or NaN."""
    return m.logical_not(m.lt(m.abs(x), _FAR))


def _sine_at(m: Machine, q: Any, sine: Any, cosine: Any) -> Any:
    y = m.where(m.ne(m.bitwise_and(q, 1), 0), cosine, sine)
    return m.bitcast(m.bitwise_xor(m.bitcast(y, int64), m.shift_left(m.bitwise_and(q, 2), 62)), float64)


def _by_quadrants(m: Machine, x: Any, name: str, f: Callable[..., Any]) -> Any:
    """f(q, r, low) of the quarter turns in x; large numbers by the library where the machine does not turn them itself."""
    near = _quadrant(m, x)
    all_over = m.far_quadrant(x, *near)
    return m.rarely(name, _far(m, x), f(*near), x) if all_over is None else f(*all_over)


def sin(m: Machine, x: Any) -> Any:
    def of(q: Any, r: Any, low: Any) -> Any:
        return m.where(m.eq(x, 0.0), x, _sine_at(m, q, *_sin_cos(m, r, low)))

    return _by_quadrants(m, x, "sin", of)


def cos(m: Machine, x: Any) -> Any:
    return _by_quadrants(m, x, "cos", lambda q, r, low: _sine_at(m, m.add(q, 1), *_sin_cos(m, r, low)))


def tan(m: Machine, x: Any) -> Any:
    def of(q: Any, r: Any, low: Any) -> Any:
        sine, cosine = _sin_cos(m, r, low)
        odd = m.ne(m.bitwise_and(q, 1), 0)
        y = m.div(m.where(odd, m.neg(cosine), sine), m.where(odd, sine, cosine))
        return m.where(m.eq(x, 0.0), x, y)

    return _by_quadrants(m, x, "tan", of)


#: erf(x) / x - 1 in x^2
_ERF = (
    2 / math.sqrt(math.pi) - 1,
    *((-1) ** k * 2 / math.sqrt(math.pi) / (math.factorial(k) * (2 * k + 1)) for k in range(1, 19)),
)
#: (1 + 2 a) e^(a^2) erfc(a) in t = (a - 4) / (a + 4) for 0.48 <= a <= 27.4, 3e-18: collocated at Chebyshev's nodes in 200 bits
_ERFC = (
    1.2329951186255526, -0.13962111684056255, 0.015379652102619169, 0.06809705425469607, -0.1010390660362629,
    0.0937328349982362, -0.06633036581338114, 0.03716751553913752, -0.01619773404107936, 0.005031969965979393,
    -0.0007577734286601019, -0.00019925665467404884, 0.00015062240881032622, -2.4399208392529183e-05,
    -1.1224502783919236e-05, 5.7091842651619894e-06, 2.991905188474414e-07, -8.233593751499029e-07, 6.734919820795745e-08,
    1.063410096581757e-07, -1.2345658578981488e-08, -1.0710508582361839e-08,
)  # fmt: skip
_ERFC_LOW = -4.422240628e-17  #: what its first coefficient lacks


def _near(m: Machine, x: Any) -> Any:
    """erf(x) for |x| <= 1."""
    return m.fma(x, by_halves(m, m.mul(x, x), _ERF), x)


def _tail(m: Machine, a: Any, *, subnormal: bool) -> Any:
    """erfc(a) for 0.48 <= a <= 27.4."""
    t = m.div(m.sub(a, 4.0), m.add(a, 4.0))
    varies = by_halves(m, t, _ERFC[1:])
    r = m.fma(t, varies, _ERFC[0])
    lost = m.fma(t, varies, m.add(m.sub(_ERFC[0], r), _ERFC_LOW))
    d = m.fma(a, 2.0, 1.0)
    y = m.div(r, d)
    rest = m.add(m.fma(m.neg(y), d, r), lost)
    short = m.fma(m.neg(y), m.fma(a, 2.0, m.sub(1.0, d)), rest)  # of the division, of d and of r
    y = m.fma(short, m.mul(y, 0.85), y)  # 1 / d is y / r, and r from 1 to 1.3
    square = m.mul(a, a)
    low = m.fma(a, a, m.neg(square))
    n, less_1 = _reduced(m, m.neg(square))
    y = m.fma(y, m.sub(less_1, m.fma(low, less_1, low)), y)
    if not subnormal:
        return m.mul(y, _power_of_2(m, m.add(n, _SHIFTER)))
    half = m.fma(n, 0.5, _SHIFTER)
    other = m.add(m.sub(n, m.sub(half, _SHIFTER)), _SHIFTER)
    return m.mul(m.mul(y, _power_of_2(m, half)), _power_of_2(m, other))


def erf(m: Machine, x: Any) -> Any:
    a = m.abs(x)
    far = m.sub(1.0, _tail(m, m.maximum(m.minimum(a, 6.0), 0.5), subnormal=False))
    sign = m.bitwise_and(m.bitcast(x, int64), -(1 << 63))
    far = m.bitcast(m.bitwise_or(m.bitcast(far, int64), sign), float64)
    return m.where(m.lt(a, 1.0), _near(m, x), far)


def erfc(m: Machine, x: Any) -> Any:
    a = m.abs(x)
    tail = _tail(m, m.maximum(m.minimum(a, 27.3), 0.48), subnormal=True)
    return m.where(m.lt(a, 0.5), m.sub(1.0, _near(m, x)), m.where(m.lt(x, 0.0), m.sub(2.0, tail), tail))


#: erfinv(x) / x in w = -log(1 - x^2): in w - 3.125 up to 6.25; in sqrt(w) - 3.25 up to 4; in sqrt(w) - 5 up to 6.02. 1e-16
_ERFINV = (
    1.6536545626831027, 0.24015818242558834, -0.006033670871426851, -0.0007407025341546431, 0.00018673420801981186,
    -1.3882523393957483e-05, -1.3654691758785656e-06, 4.23478816822246e-07, -2.907039127564132e-08, -4.1126604371632185e-09,
    1.051223377050429e-09, -5.414303283919504e-11, -1.2978805369932565e-11, 2.6305268312595183e-12, -8.07192593899004e-14,
    -4.0020031087558496e-14, 6.521333511502239e-15, -3.94018812230432e-17, -1.2215637192404172e-16, 1.5510787009902526e-17,
    6.075050702072414e-19, -3.4734793888538036e-19, 1.999259988861535e-20, 3.194015548136271e-21, -3.5932028927020693e-22,
)  # fmt: skip
_ERFINV_TAIL = (
    3.0838856104922208, 1.0052589676941652, 0.00537091455357168, -0.003751208508215561, 0.0024914420969817607,
    -0.0016882755357337071, 0.0009532893637435638, -0.00035503780975963814, 2.4031257015092525e-05, 6.828708654753377e-05,
    -4.731898412011245e-05, 1.2465167157087251e-05, 2.9257291901789823e-06, -3.986084395214756e-06, 1.4987130784186127e-06,
    -2.7004219280868947e-08, -2.713451105439456e-07, 1.3104351499972014e-07, 6.969241977629694e-10, -1.5102695423335065e-08,
)  # fmt: skip
_ERFINV_FAR = (
    4.849906401408584, 1.0103004648645444, -0.00013871931835245796, -0.00021503011977853077, 7.599527736707556e-05,
    -1.9681771416677265e-05, 4.526059928540178e-06, -9.930247367388698e-07, 2.2901520416224806e-07, -6.757211610278426e-08,
    2.9126009508163138e-08, -1.5224238609644573e-08, 7.641409580649255e-09, -3.5052550519633517e-09, 1.49196614339718e-09,
    -4.1778208203116613e-10, -2.3217273931922995e-11, 3.812499213948148e-11,
)  # fmt: skip


def erfinv(m: Machine, x: Any) -> Any:
    """By polynomials in the logarithm of 1 - x^2 (M. Giles, Approximating the erfinv function, GPU Computing Gems, 2010)."""
    a = m.abs(x)
    w = m.neg(log(m, m.mul(m.sub(1.0, a), m.add(a, 1.0))))
    root = m.sqrt(w)
    near = by_halves(m, m.sub(w, 3.125), _ERFINV)
    tail = by_halves(m, m.sub(root, 3.25), _ERFINV_TAIL)
    far = by_halves(m, m.sub(root, 5.0), _ERFINV_FAR)
    y = m.mul(x, m.where(m.lt(w, 6.25), near, m.where(m.lt(root, 4.0), tail, far)))
    y = m.where(m.eq(x, 0.0), x, m.where(m.eq(a, 1.0), m.mul(x, math.inf), y))
    return m.where(m.gt(a, 1.0), m.const(math.nan, float64), y)


#: functions of `LIBM` by name
FUNCTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "exp": exp, "exp2": exp2, "expm1": expm1, "sinh": sinh, "cosh": cosh, "tanh": tanh, "log": log, "log1p": log1p,
    "sin": sin, "cos": cos, "tan": tan, "erf": erf, "erfc": erfc,
}  # fmt: skip
