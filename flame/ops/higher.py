"""Higher transcendental functions as library calls: Bessel functions, incomplete gamma, zeta, normal quantiles, scaled erfc.

Each is computed in float64, element by element in NumPy, by a textbook series whose source stands beside it, and rounded to
the operand's dtype. DLMF is the NIST Digital Library of Mathematical Functions, https://dlmf.nist.gov.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from flame import dtypes
from flame.ops import special
from flame.ops.create import full
from flame.ops.declare import FLOAT, INTEGER, elementwise, is_narrow, widened
from flame.ops.declare import operands as sampled
from flame.ops.elementwise import add, div, exp, lgamma, log, mul, neg, pow, sign, sub
from flame.ops.logic import cast, eq, where
from flame.primitive import Primitive, Spec, register

SERIES = "a series of its own for each range: computed by the library, not in a kernel"
_wide, _positive = sampled(FLOAT, (-9, 9)), sampled(FLOAT, (0.2, 6))


def in_float64(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`f` of float64 arrays, rounded to the dtype of the first array."""

    def eager(*xs: Any) -> np.ndarray:
        d = next(x.dtype for x in xs if isinstance(x, np.ndarray))
        ys = np.broadcast_arrays(*[np.asarray(x, np.float64) for x in xs])
        return np.asarray(f(*ys)).astype(d)

    return eager


def _array(x: Any, like: Any) -> Any:
    """An operand of a rule as an array: a number becomes one of no dimensions."""
    return x if hasattr(x, "shape") else full(x, shape=(), dtype=like.dtype)


# ------------------------------------------------------------------------------------------- modified Bessel functions


_NODES = np.cos(np.linspace(0.0, math.pi, 65))


def _bessel(order: int, x: np.ndarray) -> np.ndarray:
    """exp(-|x|) I_order(x), order 0 or 1: the mean of exp(x cos t), or of x exp(x cos t) sin(t) ** 2, over a period by the
    trapezoidal rule, which converges geometrically (DLMF 10.32.2); from 30 on the asymptotic series (10.40.1)."""
    a = np.abs(x)
    near = np.minimum(a, 30.0)
    weights = np.full(65, 1.0 / 64)
    weights[[0, -1]] /= 2
    weights = weights * (1 - _NODES**2 if order else 1.0)
    small = np.zeros_like(a)
    for c, w in zip(_NODES, weights, strict=True):
        small += w * np.exp(near * (c - 1.0))
    small = small * near if order else small
    far = np.maximum(a, 30.0)
    term = np.ones_like(a)
    series = np.ones_like(a)
    for k in range(1, 25):
        term = term * ((2 * k - 1) ** 2 - 4 * order * order) / (8 * k * far)
        series += term
    y = np.where(a < 30.0, small, series / np.sqrt(2 * math.pi * far))
    y = np.where(np.isnan(a), np.nan, np.where(np.isinf(a), 0.0, y))
    return np.copysign(y, x) if order else y


i0e: Primitive = elementwise(
    "i0e",
    FLOAT,
    in_float64(lambda x: _bessel(0, x)),
    vjp=(lambda g, y, x: mul(g, sub(i1e(x), mul(sign(x), y))),),
    opaque=SERIES,
    samples=_wide,
    doc="exp(-|x|) times the modified Bessel function of the first kind and order 0.",
)
i0: Primitive = elementwise(
    "i0",
    FLOAT,
    in_float64(lambda x: _bessel(0, x) * np.exp(np.abs(x))),
    vjp=(lambda g, _y, x: mul(g, i1(x)),),
    opaque=SERIES,
    samples=_wide,
    doc="The modified Bessel function of the first kind and order 0.",
)


def _i1_slope(g: Any, y: Any, x: Any) -> Any:
    """I1' = I0 - I1 / x, and 1/2 at 0."""
    zero = eq(x, 0.0)
    return mul(g, where(zero, 0.5, sub(i0(x), div(y, where(zero, 1.0, x)))))


def _i1e_slope(g: Any, y: Any, x: Any) -> Any:
    zero = eq(x, 0.0)
    rest = mul(y, add(sign(x), div(1.0, where(zero, 1.0, x))))
    return mul(g, where(zero, 0.5, sub(i0e(x), rest)))


i1: Primitive = elementwise(
    "i1",
    FLOAT,
    in_float64(lambda x: _bessel(1, x) * np.exp(np.abs(x))),
    vjp=(_i1_slope,),
    opaque=SERIES,
    samples=_wide,
    doc="The modified Bessel function of the first kind and order 1.",
)
i1e: Primitive = elementwise(
    "i1e",
    FLOAT,
    in_float64(lambda x: _bessel(1, x)),
    vjp=(_i1e_slope,),
    opaque=SERIES,
    samples=_wide,
    doc="exp(-|x|) times the modified Bessel function of the first kind and order 1.",
)

# ------------------------------------------------------------------------------------------------------ error functions


def _erfcx(x: np.ndarray) -> np.ndarray:
    """exp(x * x) erfc(x): the definition below 3, Laplace's continued fraction from there on (DLMF 7.9.1)."""
    near = np.minimum(x, 3.0)
    by_definition = np.exp(near * near) * special.erfc(near)
    far = np.maximum(x, 3.0)
    tail = far
    for k in range(60, 0, -1):
        tail = far + 0.5 * k / tail
    return np.where(x < 3.0, by_definition, np.where(np.isnan(x), np.nan, 1.0 / (tail * math.sqrt(math.pi))))


erfcx: Primitive = elementwise(
    "erfcx",
    FLOAT,
    in_float64(_erfcx),
    vjp=(lambda g, y, x: mul(g, sub(mul(mul(x, y), 2.0), 2 / math.sqrt(math.pi))),),
    opaque=SERIES,
    samples=sampled(FLOAT, (-2, 6)),
    doc="exp(x * x) * erfc(x), without overflow for large x.",
)
_normal = NormalDist()


def _quantile(p: float) -> float:
    if 0.0 < p < 1.0:
        return _normal.inv_cdf(p)
    return -math.inf if p == 0.0 else math.inf if p == 1.0 else math.nan


ndtri: Primitive = elementwise(
    "ndtri",
    FLOAT,
    in_float64(lambda p: np.asarray(np.frompyfunc(_quantile, 1, 1)(p), np.float64)),
    vjp=(lambda g, y, _p: mul(g, mul(exp(mul(mul(y, y), 0.5)), math.sqrt(2 * math.pi))),),
    opaque="Wichura's AS 241, from Python's statistics: computed by the library",
    samples=sampled(FLOAT, (0.05, 0.95)),
    doc="The x below which a standard normal falls with probability p.",
)

# --------------------------------------------------------------------------------------------- zeta and polygamma

#: B(2k) / (2k)! of the Euler-Maclaurin formula
_EULER = tuple(
    b / math.factorial(2 * k)
    for k, b in enumerate(
        (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330), 1
    )
)


def zeta_values(s: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The sum over k >= 0 of (q + k) ** -s: terms up to q + k >= 12 + s, then Euler and Maclaurin's formula (DLMF 25.11.5)."""
    whole = s == np.floor(s)
    pole = (q <= 0) & (q == np.floor(q))
    bad = (s < 1) | ((q < 0) & ~whole & ~pole) | np.isnan(s) | np.isnan(q)
    at = np.where(bad | pole, 1.0, q)
    power = np.where(bad, 2.0, s)
    total = np.zeros_like(at)
    while np.any(low := at < np.minimum(12 + power, 60)):
        total += np.where(low, np.where(low, at, 1.0) ** -power, 0.0)
        at = np.where(low, at + 1, at)
    with np.errstate(all="ignore"):
        tail = at ** (1 - power) / (power - 1) + 0.5 * at**-power
        factor = power * at ** (-power - 1)
        for k, c in enumerate(_EULER, 1):
            tail += c * factor
            factor = factor * (power + 2 * k - 1) * (power + 2 * k) / (at * at)
    y = np.where(power == 1, np.inf, total + tail)
    return np.where(bad, np.nan, np.where(pole, np.inf, y))


def _zeta_slope(g: Any, _y: Any, s: Any, q: Any) -> Any:
    s = _array(s, g)
    return neg(mul(g, mul(s, zeta(add(s, 1.0), q))))


zeta: Primitive = elementwise(
    "zeta",
    FLOAT,
    in_float64(zeta_values),
    vjp=(None, _zeta_slope),
    opaque=SERIES,
    samples=sampled(FLOAT, (1.5, 6), (0.3, 8)),
    doc="zeta(s, q): Hurwitz's zeta function, the sum over k >= 0 of (q + k) ** -s.",
)

# -------------------------------------------------------------------------------------------- incomplete gamma functions


def _gamma_parts(a: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The regularised lower and upper incomplete gamma functions: below a + 1 by the series (DLMF 8.11.4), above by Legendre's
    continued fraction (8.9.2) in Lentz's form."""
    bad = (a < 0) | (x < 0) | np.isnan(a) | np.isnan(x) | ((a == 0) & (x == 0)) | (np.isinf(a) & np.isinf(x))
    simple = bad | (a == 0) | (x == 0) | np.isinf(a) | np.isinf(x)
    s, z = np.where(simple, 1.0, a), np.where(simple, 1.0, x)
    scale = np.exp(s * np.log(z) - z - special.lgamma(s))
    use_series = z < s + 1
    term = 1 / s
    total, k = term.copy(), s.copy()
    while True:
        k += 1
        term = term * np.where(use_series, z, 0.0) / k
        total += term
        if not np.any(np.abs(term) > np.abs(total) * 1e-17):
            break
    tiny = 1e-300
    b = np.where(use_series, 1.0, z) + 1 - np.where(use_series, 0.0, s)
    c, d = np.full_like(b, 1 / tiny), 1 / b
    h = d.copy()
    for i in range(1, 100_000):
        an = -i * (i - np.where(use_series, 0.0, s))
        b = b + 2
        d = an * d + b
        c = b + an / c
        d = 1 / np.where(np.abs(d) < tiny, tiny, d)
        c = np.where(np.abs(c) < tiny, tiny, c)
        step = d * c
        h *= step
        if not np.any(~use_series & (np.abs(step - 1) > 1e-15)):
            break
    lower = np.where(use_series, total * scale, 1 - h * scale)
    upper = np.where(use_series, 1 - total * scale, h * scale)
    one = (a == 0) | (np.isinf(x) & ~np.isinf(a))
    lower = np.where(simple, np.where(one & (x > 0), 1.0, 0.0), lower)
    upper = np.where(simple, np.where(one & (x > 0), 0.0, 1.0), upper)
    return np.where(bad, np.nan, lower), np.where(bad, np.nan, upper)


def _gamma_slope(g: Any, _y: Any, a: Any, x: Any) -> Any:
    a, x = _array(a, g), _array(x, g)
    return mul(g, exp(sub(sub(mul(sub(a, 1.0), log(x)), x), lgamma(a))))


igamma: Primitive = elementwise(
    "igamma",
    FLOAT,
    in_float64(lambda a, x: _gamma_parts(a, x)[0]),
    vjp=(None, _gamma_slope),
    opaque=SERIES,
    samples=sampled(FLOAT, (0.3, 6), (0.2, 8)),
    doc="igamma(a, x): the regularised lower incomplete gamma function; its derivative is by x alone.",
)
igammac: Primitive = elementwise(
    "igammac",
    FLOAT,
    in_float64(lambda a, x: _gamma_parts(a, x)[1]),
    vjp=(None, lambda g, y, a, x: neg(_gamma_slope(g, y, a, x))),
    opaque=SERIES,
    samples=sampled(FLOAT, (0.3, 6), (0.2, 8)),
    doc="igammac(a, x): the regularised upper incomplete gamma function; its derivative is by x alone.",
)

# --------------------------------------------------------------------------------------------------- whole numbers

_EUCLID = "Euclid's algorithm takes as many steps as the numbers ask for: computed by the library"
gcd: Primitive = elementwise(
    "gcd", INTEGER, np.gcd, vjp="it takes integers only", opaque=_EUCLID, samples=sampled(INTEGER, (-9, 9), (-9, 9))
)
lcm: Primitive = elementwise(
    "lcm", INTEGER, np.lcm, vjp="it takes integers only", opaque=_EUCLID, samples=sampled(INTEGER, (-3, 3), (-3, 3))
)

# ------------------------------------------------------------------------------------------------ mantissa and exponent


def _frexp_infer(x: Spec) -> tuple[Spec, Spec]:
    if x.dtype.kind != "f":
        raise NotImplementedError(f'"frexp" not implemented for {x.dtype}: it takes floating-point tensors')
    return x, Spec(x.shape, dtypes.int32)


def _frexp_eager(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    m, e = np.frexp(widened(x) if is_narrow(x.dtype) else x)
    return np.asarray(m, x.dtype, order="C"), np.asarray(e, np.int32, order="C")


def _frexp_vjp(g: Any, y: Any, _x: Any) -> Any:
    return mul(g[0], pow(full(2.0, shape=(), dtype=_x.dtype), cast(neg(y[1]), dtype=_x.dtype)))


frexp: Primitive = register(
    "frexp",
    kind="opaque",
    infer=_frexp_infer,
    eager=_frexp_eager,
    vjp=(_frexp_vjp,),
    refused={"lower": "it has two results: computed by the library"},
    samples=_wide,
    doc="frexp(x): mantissa in [0.5, 1) and int32 exponent with x == mantissa * 2 ** exponent.",
)
