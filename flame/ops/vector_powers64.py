"""Float64 functions in vectors that need a logarithm finer than float64: log2, log10, pow, acosh and lgamma.

    log_in_two     x = 2^e (1 + f), s = f / (2 + f), log(1 + f) = 2 s + s^3 (2/3 + 2/5 s^2 + ...) with s, s^2, 2/3 and all that is
                   added to them as sums of two (Dekker's): a relative error of 2^-64
    log2, log10    f - f^2 / 2 times log2(e) or log10(e) as a sum, the rest in float64: powers of the base are exact
    pow            e^(y log |x|), within 1 unit: 745 times the logarithm's error is little
    acosh          log(1 + v), v = t + sqrt(t (t + 2)), t = x - 1, every sum kept in two
    lgamma         from 8 on Stirling's series; below, log gamma(2 + t) = t Q(t) for |t| <= 1/2 and the logarithm of the factors
                   between. Of 0 and less it is the library's (`m.rarely`): near the zeros there nothing short of its tables
                   of them keeps relative accuracy

Products are exact by an fma that rounds once: machines whose fma rounds twice are not given these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flame.dtypes import float64
from flame.ops.machine import Machine
from flame.ops.vector_bits import signed_power
from flame.ops.vector_math64 import ATANH, LN2_HIGH, LN2_LOW, at_the_ends, by_halves, exp_of_sum, polynomial, split

Sum = tuple[Any, Any]

#: 2/5, 2/7, ... of 2 atanh(s), in s^2 <= 0.0295
_ATANH = tuple(2 / (2 * k + 1) for k in range(2, 14))
_TWO_THIRDS, _TWO_THIRDS_LOW = 2 / 3, 3.700743415417188e-17
_LOG2_E, _LOG10_E = (1.4426950408889634, 2.0355273740931033e-17), (0.4342944819032518, 1.098319650216765e-17)
_LOG10_2 = (0.301029995663157, 8.241712586023572e-13)  # 40 bits: times up to 2^11 exactly


def _product(m: Machine, a: Any, b: Any) -> Sum:
    p = m.mul(a, b)
    return p, m.fma(a, b, m.neg(p))


def _ordered_sum(m: Machine, a: Any, b: Any) -> Sum:
    """a + b, |a| >= |b| or a = 0."""
    s = m.add(a, b)
    return s, m.sub(b, m.sub(s, a))


def _sum(m: Machine, a: Any, b: Any) -> Sum:
    s = m.add(a, b)
    back = m.sub(s, a)
    return s, m.add(m.sub(a, m.sub(s, back)), m.sub(b, back))


def log_in_two(m: Machine, x: Any) -> Sum:
    """The logarithm of a positive finite number as a sum."""
    e, f = split(m, x)
    d = m.add(f, 2.0)
    s = m.div(f, d)
    left = m.sub(m.fma(m.neg(s), d, f), m.mul(s, m.sub(f, m.sub(d, 2.0))))
    s_low = m.mul(left, m.mul(m.sub(1.0, s), 0.5))  # 1 / (2 + f) is (1 - s) / 2
    z, z_low = _product(m, s, s)
    z_low = m.fma(m.add(s, s), s_low, z_low)
    c, c_low = _ordered_sum(m, m.const(_TWO_THIRDS, float64), m.mul(z, by_halves(m, z, _ATANH)))
    c_low = m.add(c_low, _TWO_THIRDS_LOW)
    cube, cube_low = _product(m, s, z)
    cube_low = m.add(cube_low, m.fma(s, z_low, m.mul(s_low, z)))
    t, t_low = _product(m, cube, c)
    t_low = m.add(t_low, m.fma(cube, c_low, m.mul(cube_low, c)))
    near, near_low = _ordered_sum(m, m.add(s, s), t)
    near_low = m.add(near_low, m.fma(s_low, 2.0, t_low))
    high, high_low = _ordered_sum(m, m.mul(e, LN2_HIGH), near)
    of_2, of_2_low = _product(m, e, m.const(LN2_LOW, float64))
    high, lost = _ordered_sum(m, high, of_2)
    return _ordered_sum(m, high, m.add(lost, m.add(high_low, m.add(near_low, of_2_low))))


def _log_in_base(m: Machine, x: Any, factor: Sum, of_2: Sum) -> Any:
    """log(x) times the factor: of f - f^2 / 2 the product is kept as a sum. `of_2` is the logarithm of 2."""
    e, f = split(m, x)
    s = m.div(f, m.add(f, 2.0))
    z, half = m.mul(s, s), m.mul(m.mul(f, f), 0.5)
    high = m.sub(f, half)
    low = m.fma(s, m.fma(z, by_halves(m, z, ATANH), half), m.sub(m.sub(f, high), half))
    of_f, of_f_low = _product(m, high, m.const(factor[0], float64))
    of_f_low = m.add(of_f_low, m.fma(high, factor[1], m.mul(low, factor[0])))
    y, y_low = _ordered_sum(m, m.mul(e, of_2[0]), of_f)
    return at_the_ends(m, x, m.add(y, m.add(y_low, m.fma(e, of_2[1], of_f_low))))


def log2(m: Machine, x: Any) -> Any:
    return _log_in_base(m, x, _LOG2_E, (1.0, 0.0))


def log10(m: Machine, x: Any) -> Any:
    return _log_in_base(m, x, _LOG10_E, _LOG10_2)


def pow(m: Machine, x: Any, y: Any) -> Any:
    a = m.abs(x)
    high, low = log_in_two(m, a)
    none = m.const(0.0, float64)
    ends = m.logical_or(m.eq(a, 0.0), m.eq(a, math.inf))
    high = m.where(ends, m.where(m.eq(a, 0.0), m.const(-math.inf, float64), m.const(math.inf, float64)), high)
    size = m.maximum(m.minimum(y, 2.0**100), -(2.0**100))  # of an x beside 1 that is out of range already
    t, t_low = _product(m, size, high)
    t_low = m.where(m.lt(m.abs(t), 800.0), m.fma(size, m.where(ends, none, low), t_low), none)
    return signed_power(m, x, y, exp_of_sum(m, m.maximum(m.minimum(t, 800.0), -800.0), t_low))


def acosh(m: Machine, x: Any) -> Any:
    t = m.sub(x, 1.0)
    square, square_low = _product(m, t, t)
    w, w_low = _sum(m, m.add(t, t), square)
    root = m.sqrt(w)
    left = m.add(m.fma(m.neg(root), root, w), m.add(w_low, square_low))
    root_low = m.div(left, m.maximum(m.add(root, root), 1e-300))
    v, v_low = _sum(m, t, root)
    u, u_low = _ordered_sum(m, m.const(1.0, float64), v)
    u_low = m.where(m.gt(v, 1.0), m.sub(1.0, m.sub(u, v)), u_low)
    far = m.gt(x, 1e8)
    high, low = log_in_two(m, m.where(far, x, u))
    rest = m.where(far, m.const(math.log(2), float64), m.div(m.add(u_low, m.add(v_low, root_low)), u))
    y = m.where(m.lt(x, math.inf), m.add(high, m.add(low, rest)), x)
    return m.where(m.lt(x, 1.0), m.const(math.nan, float64), y)


#: log gamma(2 + t) / t for |t| <= 1/2, 1e-17
_GAMMA = (
    0.42278433509846713, 0.3224670334241132, -0.06735230105319563, 0.02058080842778338, -0.007385551028935545,
    0.002890510330865901, -0.0011927539009983087, 0.0005096695196526673, -0.00022315497746292723, 9.945761692157133e-05,
    -4.4923727564247656e-05, 2.050601970174762e-05, -9.45628851510172e-06, 4.3828545383846665e-06, -1.9743106888421067e-06,
    9.242852225162277e-07, -5.811277768921246e-07, 2.7475390051909663e-07,
)  # fmt: skip
#: log gamma(x) - (x - 1/2) (log(x) - 1) - log(2 pi) / 2 + 1/2, times x, in 1 / x^2 for x >= 8, 5e-18
_STIRLING = (
    0.08333333333333333, -0.0027777777777776747, 0.0007936507935117282, -0.0005952380234291253, 0.000841732526802233,
    -0.0019149659121622845, 0.006208136766203285, -0.020855820837011485,
)  # fmt: skip


def lgamma(m: Machine, x: Any) -> Any:
    few, below = m.lt(x, 0.5), m.lt(x, 1.5)
    t = m.where(few, x, m.where(below, m.sub(x, 1.0), m.sub(x, 2.0)))
    one, none = m.const(1.0, float64), m.const(0.0, float64)
    next_1 = m.add(x, 1.0)
    factors, lost = _product(m, x, next_1)  # gamma(x + 2) / gamma(x)
    lost = m.where(few, m.div(m.fma(x, m.sub(x, m.sub(next_1, 1.0)), lost), factors), none)
    factors = m.where(few, factors, m.where(below, x, one))
    for k in range(1, 7):
        more = m.gt(x, k + 1.5)
        factors = m.where(more, m.mul(factors, m.sub(x, float(k))), factors)
        t = m.where(more, m.sub(t, 1.0), t)
    far = m.ge(x, 8.0)
    high, low = log_in_two(m, m.where(far, x, factors))
    inverse = m.div(one, x)
    series = m.fma(inverse, polynomial(m, m.mul(inverse, inverse), _STIRLING), 0.5 * math.log(2 * math.pi) - 0.5)
    w = m.sub(x, 0.5)
    stirling = m.fma(w, m.sub(high, 1.0), m.fma(w, low, series))
    low = m.add(low, lost)
    q = by_halves(m, t, _GAMMA)
    of_2, of_2_low = _product(m, t, q)
    near, near_low = _sum(m, m.where(below, m.neg(high), high), of_2)
    near = m.add(near, m.add(near_low, m.add(of_2_low, m.where(below, m.neg(low), low))))
    y = m.where(m.lt(x, math.inf), m.where(far, stirling, near), x)
    return m.rarely("lgamma", m.le(x, 0.0), y, x)


#: functions by name; all but acosh are in `LIBM`
POWERS: dict[str, Callable[..., Any]] = {"log2": log2, "log10": log10, "pow": pow, "acosh": acosh, "lgamma": lgamma}
