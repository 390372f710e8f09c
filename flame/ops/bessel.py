"""Bessel functions of the first and second kind, modified ones of the second, and Airy's, of orders 0 and 1, as library calls.

Each is computed in float64 by expressions over whole arrays, one for each range of the argument, and rounded to the operand's
dtype. PyTorch computes no derivatives of these; here each has one, of every order, made of the others.

DLMF is the NIST Digital Library of Mathematical Functions, https://dlmf.nist.gov; A&S is M. Abramowitz and I. Stegun, "Handbook
of Mathematical Functions" (1964).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from flame.ops.declare import FLOAT, elementwise
from flame.ops.declare import operands as sampled
from flame.ops.elementwise import add, cos, div, mul, neg, sub
from flame.ops.higher import SERIES, in_float64
from flame.ops.logic import eq, lt, where
from flame.primitive import Primitive

# ------------------------------------------------------------------------------------------- first and second kind

_EULER_GAMMA = 0.57721566490153286
_FROM = 60  #: the order from which Miller's recurrence starts
_LEAST, _FAR = 0.01, 25.0  #: below, two terms of the power series; from there on, Hankel's expansion


def _miller(x: np.ndarray) -> list[np.ndarray]:
    """J_0 ... J_60 of x in [0.01, 25]: the recurrence downwards from any start (DLMF 3.6(v)), scaled so that
    J_0 + 2 J_2 + 2 J_4 + ... is 1 (10.12.4)."""
    out = [np.zeros_like(x)] * (_FROM + 1)
    out[_FROM] = np.full_like(x, 1e-290)
    above = np.zeros_like(x)
    for k in range(_FROM, 0, -1):
        out[k - 1] = 2 * k / x * out[k] - above
        above = out[k]
    scale = 1 / (out[0] + 2 * functools.reduce(np.add, out[2::2]))
    return [y * scale for y in out]


def _hankel(order: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J and Y of large x (DLMF 10.17.3 and 10.17.4): the terms fall until k is about 2 x."""
    p, q = np.ones_like(x), np.zeros_like(x)
    term = np.ones_like(x)
    for k in range(1, 31):
        term = term * ((4 * order * order - (2 * k - 1) ** 2) / (8 * k)) / x
        to = q if k % 2 else p
        to += term if k % 4 in (0, 1) else -term
    s, c = np.sin(x), np.cos(x)
    sine, cosine = (s - c, s + c) if order == 0 else (-s - c, s - c)  # of x - (2 order + 1) pi / 4, times the root of 2
    factor = 1 / np.sqrt(math.pi * x)
    return factor * (p * cosine - q * sine), factor * (p * sine + q * cosine)


def _first(order: int, x: np.ndarray) -> np.ndarray:
    """J of any real x."""
    a = np.abs(x)
    middle = np.clip(np.where(np.isnan(a), 1.0, a), _LEAST, _FAR)
    quarter = np.minimum(a, 1.0) ** 2 / 4
    small = 1 - quarter * (1 - quarter * (0.25 - quarter / 36)) if order == 0 else a / 2 * (1 - quarter * (0.5 - quarter / 12))
    y = np.where(a < _LEAST, small, np.where(a < _FAR, _miller(middle)[order], _hankel(order, np.maximum(a, _FAR))[0]))
    y = np.where(np.isfinite(a), y, np.nan)
    return np.copysign(1.0, x) * y if order else y


def _second(order: int, x: np.ndarray) -> np.ndarray:
    """Y of x > 0: Neumann's series over J (A&S 9.1.88 and 9.1.89), -inf at 0, NaN below."""
    middle = np.clip(np.where(x > 0, x, 1.0), _LEAST, _FAR)
    js = _miller(middle)
    log = np.log(middle / 2) + _EULER_GAMMA
    total = np.zeros_like(x)
    for k in range(1, _FROM // 2):
        total += (-1) ** k * (js[2 * k] / k if order == 0 else js[2 * k + 1] * ((2 * k + 1) / (k * (k + 1))))
    if order == 0:
        near = 2 / math.pi * (log * js[0] - 2 * total)
    else:
        near = 2 / math.pi * ((log - 1) * js[1] - js[0] / middle - total)
    least = np.where(x > 0, np.minimum(x, _LEAST), 1.0)
    log, quarter = np.log(least / 2) + _EULER_GAMMA, least**2 / 4
    if order == 0:
        small = 2 / math.pi * (log * (1 - quarter * (1 - quarter / 4)) + quarter * (1 - 0.375 * quarter))
    else:  # DLMF 10.8.1
        small = -2 / math.pi / least + least / math.pi * (
            log - 0.5 - quarter / 2 * (log - 1.25) + quarter**2 / 12 * (log - 5 / 3)
        )
    y = np.where(x < _LEAST, small, np.where(x < _FAR, near, _hankel(order, np.maximum(x, _FAR))[1]))
    return np.where((x < 0) | ~np.isfinite(x), np.nan, np.where(x == 0, -np.inf, y))


# ------------------------------------------------------------------------------------------- modified, of the second kind

_NODES = 24


def _scaled_k(order: float, x: np.ndarray) -> np.ndarray:
    """exp(x) K(x) of x >= 1: the integral of exp(-x (cosh t - 1)) cosh(order t) (DLMF 10.32.9) by the trapezoidal rule, whose
    error falls like exp(-9.9 / step) here."""
    step = np.minimum(0.2, 0.7 / np.sqrt(x))
    total = np.full_like(x, 0.5)
    for k in range(1, _NODES + 1):
        t = step * k
        total += np.exp(-2 * x * np.sinh(t / 2) ** 2) * np.cosh(order * t)
    return step * total


def _k(order: int, x: np.ndarray, scaled: bool) -> np.ndarray:
    """K, or exp(x) K, of x > 0: below 1 its power series (DLMF 10.31.1 and 10.31.2); inf at 0, NaN below."""
    small = np.where((x > 0) & (x < 1), x, 0.5)
    log, quarter = np.log(small / 2) + _EULER_GAMMA, small**2 / 4
    total, term, harmonic = np.zeros_like(x), np.ones_like(x), 0.0
    for k in range(12):
        if order == 0:  # (the terms of I, times what stands beside them)
            total += term * (harmonic - log)
            term = term * quarter / (k + 1) ** 2
        else:
            total += term * (log - harmonic - 0.5 / (k + 1))
            term = term * quarter / ((k + 1) * (k + 2))
        harmonic += 1 / (k + 1)
    near = total if order == 0 else 1 / small + small / 2 * total
    far = np.where(x >= 1, np.where(np.isinf(x), 1.0, x), 1.0)
    y = np.where(x < 1, near * np.exp(small) if scaled else near, _scaled_k(order, far) * (1.0 if scaled else np.exp(-far)))
    return np.where((x < 0) | np.isnan(x), np.nan, np.where(x == 0, np.inf, np.where(np.isinf(x), 0.0, y)))


# ------------------------------------------------------------------------------------------- Airy

_EDGE, _TERMS = 10, 30  #: Taylor series about the whole numbers up to 10, outside asymptotic ones
_AT_0 = "0.35502805388781723926006318600418317639797917419917724058332651030081"  #: Ai(0), DLMF 9.2.3
_SLOPE_AT_0 = "-0.2588194037928067984051835601892039634790911383549345822100018138561028"  #: Ai'(0), DLMF 9.2.4


@functools.cache
def _taylor() -> np.ndarray:
    """The coefficients of Ai's Taylor series about -10, -9, ..., 10, [terms, places]: Maclaurin's (DLMF 9.4.1) summed in decimal
    numbers, as it cancels, and from there on by y'' = x y."""
    rows = []
    with localcontext() as context:
        context.prec = 70
        c = [Decimal(_AT_0), Decimal(_SLOPE_AT_0), Decimal(0)]
        for n in range(3, 240):
            c.append(c[n - 3] / (n * (n - 1)))
        for x in map(Decimal, range(-_EDGE, _EDGE + 1)):
            y, slope = Decimal(0), Decimal(0)
            for n in range(len(c) - 1, -1, -1):  # Horner, of the series and of its derivative
                slope = slope * x + y
                y = y * x + c[n]
            t = [y, slope, x * y / 2]
            for n in range(3, _TERMS):
                t.append((x * t[n - 2] + t[n - 3]) / (n * (n - 1)))
            rows.append([float(v) for v in t])
    return np.array(rows).T


def _airy(derivative: int, x: np.ndarray) -> np.ndarray:
    """Ai, or its derivative: 0 at inf, NaN at -inf."""
    middle = np.clip(np.where(np.isnan(x), 0.0, x), -_EDGE, _EDGE)
    place = np.rint(middle)
    h, series = middle - place, _taylor()
    row = place.astype(np.intp) + _EDGE
    near = np.zeros_like(x)
    for n in range(_TERMS - 1, derivative - 1, -1):
        near = near * h + series[n][row] * (n if derivative else 1)
    a = np.where(np.abs(x) > _EDGE, np.minimum(np.abs(x), 1e100), _EDGE)
    root = np.sqrt(a)
    z = a * root * (2 / 3)
    # DLMF 9.7.5 and 9.7.6 on the right, 9.7.9 and 9.7.10 on the left: sums of every term, and of every second
    u, right, even, odd = np.ones_like(x), np.ones_like(x), np.ones_like(x), np.zeros_like(x)
    for k in range(1, 30):
        u = u * ((6 * k - 5) * (6 * k - 3) * (6 * k - 1) / (216 * k * (2 * k - 1))) / z
        term = u * ((6 * k + 1) / (1 - 6 * k)) if derivative else u
        right += -term if k % 2 else term
        to = odd if k % 2 else even
        to += -term if k % 4 in (2, 3) else term
    above, scale = np.exp(-z) / (2 * math.sqrt(math.pi)), np.sqrt(root)
    s, c = np.sin(z), np.cos(z)
    sine, cosine = s - c, s + c  # of z - pi / 4, times the root of 2
    if derivative:
        positive, negative = -scale * above * right, scale / math.sqrt(2 * math.pi) * (sine * even - cosine * odd)
    else:
        positive, negative = above / scale * right, (cosine * even + sine * odd) / (scale * math.sqrt(2 * math.pi))
    y = np.where(x > _EDGE, positive, np.where(x < -_EDGE, negative, near))
    return np.where(np.isnan(x) | (x == -np.inf), np.nan, y)


# ------------------------------------------------------------------------------------------- the primitives


def _of_x(g: Any, y: Any, x: Any) -> Any:
    """y / x without a NaN at 0, where the derivatives of what is smooth there are written out."""
    return div(y, where(eq(x, 0.0), 1.0, x))


def _declared(name: str, f: Callable[[np.ndarray], np.ndarray], slope: Any, span: tuple[float, float], doc: str) -> Primitive:
    return elementwise(name, FLOAT, in_float64(f), vjp=(slope,), opaque=SERIES, samples=sampled(FLOAT, span), doc=doc)


_ALL, _ABOVE = (-30, 30), (0.3, 30)
bessel_j0: Primitive = _declared(
    "bessel_j0",
    lambda x: _first(0, x),
    lambda g, _y, x: neg(mul(g, bessel_j1(x))),
    _ALL,
    "The Bessel function of the first kind and order 0.",
)
bessel_j1: Primitive = _declared(
    "bessel_j1",
    lambda x: _first(1, x),
    lambda g, y, x: mul(g, where(eq(x, 0.0), 0.5, sub(bessel_j0(x), _of_x(g, y, x)))),
    _ALL,
    "The Bessel function of the first kind and order 1.",
)
bessel_y0: Primitive = _declared(
    "bessel_y0",
    lambda x: _second(0, x),
    lambda g, _y, x: neg(mul(g, bessel_y1(x))),
    _ABOVE,
    "The Bessel function of the second kind and order 0; NaN below 0.",
)
bessel_y1: Primitive = _declared(
    "bessel_y1",
    lambda x: _second(1, x),
    lambda g, y, x: mul(g, sub(bessel_y0(x), div(y, x))),
    _ABOVE,
    "The Bessel function of the second kind and order 1; NaN below 0.",
)
modified_bessel_k0: Primitive = _declared(
    "modified_bessel_k0",
    lambda x: _k(0, x, False),
    lambda g, _y, x: neg(mul(g, modified_bessel_k1(x))),
    _ABOVE,
    "The modified Bessel function of the second kind and order 0; NaN below 0.",
)
modified_bessel_k1: Primitive = _declared(
    "modified_bessel_k1",
    lambda x: _k(1, x, False),
    lambda g, y, x: neg(mul(g, add(modified_bessel_k0(x), div(y, x)))),
    _ABOVE,
    "The modified Bessel function of the second kind and order 1; NaN below 0.",
)
scaled_modified_bessel_k0: Primitive = _declared(
    "scaled_modified_bessel_k0",
    lambda x: _k(0, x, True),
    lambda g, y, x: mul(g, sub(y, scaled_modified_bessel_k1(x))),
    _ABOVE,
    "exp(x) times the modified Bessel function of the second kind and order 0; NaN below 0.",
)
scaled_modified_bessel_k1: Primitive = _declared(
    "scaled_modified_bessel_k1",
    lambda x: _k(1, x, True),
    lambda g, y, x: mul(g, sub(sub(y, scaled_modified_bessel_k0(x)), div(y, x))),
    _ABOVE,
    "exp(x) times the modified Bessel function of the second kind and order 1; NaN below 0.",
)
airy_ai: Primitive = _declared(
    "airy_ai", lambda x: _airy(0, x), lambda g, _y, x: mul(g, airy_ai_slope(x)), (-15, 9), "Airy's function Ai."
)
airy_ai_slope: Primitive = _declared(
    "airy_ai_slope",
    lambda x: _airy(1, x),
    lambda g, _y, x: mul(g, mul(x, airy_ai(x))),
    (-15, 9),
    "The derivative of Airy's function Ai.",
)


def _spherical(x: np.ndarray) -> np.ndarray:
    safe = np.where((x == 0) | np.isinf(x), 1.0, x)
    return np.where(x == 0, 1.0, np.where(np.isinf(x), 0.0, np.sin(safe) / safe))


def _spherical_slope(g: Any, y: Any, x: Any) -> Any:
    """(cos x - y) / x; near 0, where that cancels, its series -x / 3 + x^3 / 30 - ..."""
    square = mul(x, x)
    series = mul(mul(x, -1 / 3), sub(1.0, mul(mul(square, 0.1), sub(1.0, mul(square, 1 / 28)))))
    tiny = lt(square, 1e-4)
    return mul(g, where(tiny, series, div(sub(cos(x), y), where(tiny, 1.0, x))))


spherical_bessel_j0: Primitive = _declared(
    "spherical_bessel_j0", _spherical, _spherical_slope, _ALL, "The spherical Bessel function of order 0: sin(x) / x, 1 at 0."
)
