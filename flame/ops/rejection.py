"""Draws that take as many random numbers as chance asks for: gamma, Poisson, binomial, von Mises.

    sample(parameters..., seed, offset)      element i of n reads the words offset + WORDS * i, ... of the seed's stream

Each element has a part of the stream to itself, long enough that no draw comes to its end (an attempt is refused less than once in
two, and there are 31 or more of them), so a draw is a function of its place alone: the same eager and compiled, whole and in parts.
The generator goes on by WORDS an element. They run in float64 as library calls; parameters broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import int64
from flame.ops import special
from flame.ops.declare import draw, draws, quiet
from flame.ops.elementwise import mul
from flame.ops.random import philox
from flame.primitive import Number, Primitive, Spec, broadcast_shapes, register

WORDS = 256
_BLOCKS = WORDS // 4
_REASON = {"lower": "it draws until a number is accepted: computed by the library"}
_TINY = np.finfo(np.float64).tiny


class Stream:
    """The words of every element: a block of four makes two uniform numbers in (0, 1) of 53 bits."""

    def __init__(self, seed: Any, offset: Any):
        self.seed, self.first = int(seed), int(offset) // 4

    def uniforms(self, elements: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
        counter = (np.uint64(self.first) + elements.astype(np.uint64) * np.uint64(_BLOCKS)) + np.uint64(block)
        w = philox(counter, self.seed).astype(np.float64)
        two = [(np.floor(w[:, k] / 32) * 67108864.0 + np.floor(w[:, k + 1] / 64) + 0.5) * 2.0**-53 for k in (0, 2)]
        return two[0], two[1]

    def normal(self, elements: np.ndarray, block: int) -> np.ndarray:
        u, v = self.uniforms(elements, block)
        return np.sqrt(-2 * np.log(u)) * np.cos(2 * math.pi * v)


def accepted(
    n: int, attempt: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]], blocks: int, start: int = 0
) -> np.ndarray:
    """`attempt(elements, block)` gives proposals and whether each is taken; it is asked again for those that are not."""
    out = np.zeros(n)
    left = np.arange(n)
    for block in range(start, _BLOCKS - blocks + 1, blocks):
        if not left.size:
            break
        got, fine = attempt(left, block)
        out[left] = got
        left = left[~fine]
    return out


def _infer(name: str, count: int) -> Callable[..., Spec]:
    def infer(*operands: Spec | Number) -> Spec:
        parameters = operands[:count]
        specs = [s for s in parameters if isinstance(s, Spec)]
        if len(specs) != count or len({s.dtype for s in specs}) != 1 or specs[0].dtype.kind != "f":
            raise RuntimeError(
                f"{name}: expected {count} tensors of one floating dtype, but got {', '.join(map(str, parameters))}"
            )
        for s in operands[count:]:
            if isinstance(s, Spec) and (s.shape or s.dtype is not int64):
                raise RuntimeError(f"{name}: expected a number or a 0-d int64 tensor as seed and offset, but got {s}")
        return Spec(broadcast_shapes(*(s.shape for s in specs), op=name), specs[0].dtype)

    return infer


def _eager(sample: Callable[..., np.ndarray], count: int) -> Callable[..., np.ndarray]:
    def eager(*operands: Any) -> np.ndarray:
        *parameters, seed, offset = operands
        d = parameters[0].dtype
        whole = np.broadcast_arrays(*parameters)
        flat = [p.astype(np.float64).reshape(-1) for p in whole]
        y = quiet.run(sample, *flat, Stream(seed, offset))
        return np.asarray(quiet.run(y.astype, d)).reshape(whole[0].shape)

    return eager


def _samples(name: str, *ranges: tuple[float, float], whole: int = 0) -> Callable[[], Iterator[tuple[tuple, dict]]]:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        for d in dtypes.FLOATS:
            for shape in ((3, 5), (), (0, 2), (1,)):
                xs = [draw(r, d, shape, *span) for span in ranges]
                xs[:whole] = [np.asarray(np.floor(x.astype(np.float32)), x.dtype) for x in xs[:whole]]
                yield (*xs, 7, 12), {}

    return samples


# -------------------------------------------------------------------------------------------------------------- gamma


def _gamma(a: np.ndarray, stream: Stream) -> np.ndarray:
    """G. Marsaglia and W. Tsang, "A simple method for generating gamma variables" (2000); below 1, times u ** (1/a) of a + 1."""
    small = a < 1
    d = np.where(small, a + 1, a) - 1 / 3
    c = 1 / np.sqrt(9 * d)

    def attempt(at: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
        z, (u, _) = stream.normal(at, block), stream.uniforms(at, block + 1)
        v = (1 + c[at] * z) ** 3
        fine = (v > 0) & (np.log(u) < 0.5 * z * z + d[at] * (1 - v + np.log(np.where(v > 0, v, 1))))
        return d[at] * v, fine | ~np.isfinite(d[at])

    y = accepted(a.size, attempt, 2, start=2)
    some = np.flatnonzero(small)
    if some.size:
        u, _ = stream.uniforms(some, 0)
        y[some] = np.exp(np.log(y[some]) + np.log(u) / a[some])
    return np.where(a > 0, np.maximum(y, _TINY), np.where(a == 0, 0.0, np.nan))


def _slope(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """d x / d a where x is a draw: minus the derivative of the distribution function P(a, x) by a, over the density.

    M. Figurnov, S. Mohamed and A. Mnih, "Implicit reparameterization gradients" (2018). P below a + 1 by its series, 1 - P above by
    its continued fraction (DLMF 8.7.1 and 8.9.2), each differentiated term by term, in multiples of the density; above a = 10 ** 4
    by the normal approximation of the cube root (Wilson and Hilferty, 1931), whose error is of the order 1 / a there.
    """
    x = np.maximum(x, _TINY)
    out = np.empty_like(x)
    big = a > 1e4
    root = np.cbrt(x / np.where(big, a, 1.0))
    s = 1 / (3 * np.sqrt(np.where(big, a, 1.0)))
    z = (root - 1 + s * s) / s
    by_a = root**3 + 3 * x / np.maximum(root, _TINY) * (s * s - z * s / 2) / np.where(big, a, 1.0)
    out = np.where(big, by_a, out)
    series = ~big & (x < a + 1)
    if series.any():
        b, y = a[series], x[series]
        term, total, by_b, harmonic = 1 / b, 1 / b, -1 / (b * b), 1 / b
        for k in range(1, 2000):
            term = term * y / (b + k)
            harmonic = harmonic + 1 / (b + k)
            total = total + term
            by_b = by_b - term * harmonic
            if np.all(term * harmonic <= 1e-17 * np.abs(by_b)):
                break
        out[series] = -y * ((np.log(y) - special.digamma(b)) * total + by_b)
    rest = ~big & ~series
    if rest.any():
        out[rest] = _fraction_slope(a[rest], x[rest])
    return out


def _fraction_slope(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The same by Lentz' evaluation of the continued fraction of Gamma(a, x), with its derivative by a."""
    b = x + 1 - a
    db = -np.ones_like(a)
    c, dc = np.full_like(a, 1e300), np.zeros_like(a)
    d = 1 / b
    dd = -db * d * d
    h, dh = d, dd
    for k in range(1, 2000):
        n, dn = -k * (k - a), np.full_like(a, float(k))
        b = b + 2
        e = n * d + b
        de = dn * d + n * dd + db
        c, dc = b + n / c, db + (dn - n * dc / c) / c
        d = 1 / e
        dd = -de * d * d
        step = d * c
        dstep = dd * c + d * dc
        h, dh = h * step, dh * step + h * dstep
        if np.all((np.abs(step - 1) < 1e-16) & (np.abs(h * dstep) <= 1e-16 * np.abs(dh))):
            break
    return x * ((np.log(x) - special.digamma(a)) * h + dh)


def _float64(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def eager(*xs: np.ndarray) -> np.ndarray:
        whole = np.broadcast_arrays(*xs)
        y = quiet.run(f, *(x.astype(np.float64).reshape(-1) for x in whole))
        return np.asarray(quiet.run(y.astype, xs[0].dtype)).reshape(whole[0].shape)

    return eager


def _pair_infer(a: Spec, x: Spec) -> Spec:
    return _infer("gamma_slope", 2)(a, x)


def _pair_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("gamma_slope")
    for d in dtypes.FLOATS:
        for shape in ((3, 5), (), (0, 2)):
            yield (draw(r, d, shape, 0.3, 5.0), draw(r, d, shape, 0.1, 9.0)), {}


gamma_slope: Primitive = register(
    "gamma_slope",
    kind="opaque",
    infer=_pair_infer,
    eager=_float64(_slope),
    samples=_pair_samples,
    refused={
        "scalar": "a series of its own for each range: computed by the library, not in a kernel",
        "vjp": "draws are differentiated once by their parameters",
    },
    doc="gamma_slope(a, x): the derivative by a of a draw x of the gamma distribution of shape a.",
)
gamma_sample: Primitive = register(
    "gamma_sample",
    kind="random",
    infer=_infer("gamma_sample", 1),
    eager=_eager(_gamma, 1),
    vjp=(lambda g, y, a, _seed, _offset: mul(g, gamma_slope(a, y)), None, None),
    refused=_REASON,
    samples=_samples("gamma", (0.2, 5.0)),
    doc="gamma_sample(a, seed, offset): draws of the gamma distributions of shape a and rate 1, differentiable by a.",
)

# ---------------------------------------------------------------------------------------------------- Poisson, binomial


def _by_inversion(u: np.ndarray, first: np.ndarray, ratio: Callable[[int], np.ndarray], most: int) -> np.ndarray:
    """The least k with u < P(X <= k), adding up probabilities that follow from each other by `ratio`."""
    p, total, k = first, first.copy(), np.zeros_like(u)
    for i in range(1, most):
        above = u > total
        if not above.any():
            break
        k = np.where(above, i, k)
        p = p * ratio(i)
        total = total + np.where(above, p, 0.0)
    return k


def _log_factorial(k: np.ndarray) -> np.ndarray:
    return special.lgamma(k + 1)


def _poisson(rate: np.ndarray, stream: Stream) -> np.ndarray:
    """By inversion below 10, else W. Hormann's transformed rejection PTRS (1993)."""
    every = np.arange(rate.size)
    low = np.where(rate < 10, rate, 1.0)
    u, _ = stream.uniforms(every, 0)
    y = _by_inversion(u, np.exp(-low), lambda i: low / i, 100)
    large = np.flatnonzero(rate >= 10)
    if large.size:
        m = rate[large]
        b = 0.931 + 2.53 * np.sqrt(m)
        a = -0.059 + 0.02483 * b
        inverse = 1.1239 + 1.1328 / (b - 3.4)
        v_r = 0.9277 - 3.6224 / (b - 2)

        def attempt(at: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
            u, v = stream.uniforms(large[at], block)
            u = u - 0.5
            us = 0.5 - np.abs(u)
            k = np.floor((2 * a[at] / us + b[at]) * u + m[at] + 0.43)
            at_once = (us >= 0.07) & (v <= v_r[at])
            out = (k < 0) | ((us < 0.013) & (v > us))
            left = np.log(v * inverse[at] / (a[at] / (us * us) + b[at]))
            fine = left <= k * np.log(m[at]) - m[at] - _log_factorial(np.maximum(k, 0))
            return k, at_once | (~out & fine)

        y[large] = accepted(large.size, attempt, 1, start=1)
    return np.where(rate >= 0, y, np.nan)


def _binomial(n: np.ndarray, p: np.ndarray, stream: Stream) -> np.ndarray:
    """By inversion where n p < 10, else W. Hormann's transformed rejection BTRS (1993), for the rarer of the two outcomes."""
    turned = p > 0.5
    q = np.where(turned, 1 - p, p)
    every = np.arange(n.size)
    few = n * q < 10
    u, _ = stream.uniforms(every, 0)
    m, r = np.where(few, n, 1.0), np.where(few, q, 0.1)
    odds = r / (1 - r)
    y = _by_inversion(u, np.exp(m * np.log1p(-r)), lambda i: np.maximum(m - i + 1, 0) / i * odds, 120)
    large = np.flatnonzero(~few)
    if large.size:
        size, r = n[large], q[large]
        spread = np.sqrt(size * r * (1 - r))
        b = 1.15 + 2.53 * spread
        a = -0.0873 + 0.0248 * b + 0.01 * r
        c = size * r + 0.5
        v_r = 0.92 - 4.2 / b
        alpha = (2.83 + 5.1 / b) * spread
        mode = np.floor((size + 1) * r)
        top = _log_factorial(mode) + _log_factorial(size - mode)
        log_odds = np.log(r / (1 - r))

        def attempt(at: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
            u, v = stream.uniforms(large[at], block)
            u = u - 0.5
            us = 0.5 - np.abs(u)
            k = np.floor((2 * a[at] / us + b[at]) * u + c[at])
            at_once = (us >= 0.07) & (v <= v_r[at])
            out = (k < 0) | (k > size[at])
            inside = np.where(out, 0, k)
            left = np.log(v * alpha[at] / (a[at] / (us * us) + b[at]))
            right = top[at] - _log_factorial(inside) - _log_factorial(size[at] - inside) + (inside - mode[at]) * log_odds[at]
            return k, at_once | (~out & (left <= right))

        y[large] = accepted(large.size, attempt, 1, start=1)
    y = np.where(turned, n - y, y)
    return np.where((n >= 0) & (p >= 0) & (p <= 1), y, np.nan)


poisson_sample: Primitive = register(
    "poisson_sample",
    kind="random",
    infer=_infer("poisson_sample", 1),
    eager=_eager(_poisson, 1),
    refused=_REASON | {"vjp": "whole numbers do not vary smoothly with the rate"},
    samples=_samples("poisson", (0.1, 30.0)),
    doc="poisson_sample(rate, seed, offset): draws of Poisson distributions.",
)
binomial_sample: Primitive = register(
    "binomial_sample",
    kind="random",
    infer=_infer("binomial_sample", 2),
    eager=_eager(_binomial, 2),
    refused=_REASON | {"vjp": "whole numbers do not vary smoothly with the probability"},
    samples=_samples("binomial", (1.0, 90.0), (0.05, 0.95), whole=1),
    doc="binomial_sample(n, p, seed, offset): how many of n trials succeed, each with probability p.",
)

# ------------------------------------------------------------------------------------------------------------ von Mises


def _von_mises(k: np.ndarray, stream: Stream) -> np.ndarray:
    """D. Best and N. Fisher, "Efficient simulation of the von Mises distribution" (1979); nearly uniform for a tiny k."""
    tau = 1 + np.sqrt(1 + 4 * k * k)
    rho = (tau - np.sqrt(2 * tau)) / (2 * np.where(k == 0, 1, k))
    s = np.where(k < 1e-5, 1 / np.maximum(k, 1e-300) + k, (1 + rho * rho) / (2 * np.where(k < 1e-5, 1, rho)))

    def attempt(at: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
        (u, v), (w, _) = stream.uniforms(at, block), stream.uniforms(at, block + 1)
        z = np.cos(math.pi * u)
        f = (1 + s[at] * z) / (s[at] + z)
        f = np.where(k[at] < 1e-5, z, f)
        c = k[at] * (s[at] - f)
        fine = (c * (2 - c) - v > 0) | (np.log(c / v) + 1 - c >= 0) | (k[at] < 1e-5)
        return np.where(w < 0.5, -1, 1) * np.arccos(np.clip(f, -1, 1)), fine

    return accepted(k.size, attempt, 2)


von_mises_sample: Primitive = register(
    "von_mises_sample",
    kind="random",
    infer=_infer("von_mises_sample", 1),
    eager=_eager(_von_mises, 1),
    refused=_REASON | {"vjp": "its draws have no derivative in PyTorch either: differentiate log_prob"},
    samples=_samples("von_mises", (0.2, 9.0)),
    doc="von_mises_sample(k, seed, offset): angles in [-pi, pi] of von Mises distributions of concentration k about 0.",
)
