"""Orthogonal polynomials, by their three-term recurrences, and their derivatives of every order: one primitive for all families.

    p[k + 1] = (a x + b) p[k] - c p[k - 1], the numbers a, b and c by family and k

The recurrences are DLMF's (NIST Digital Library of Mathematical Functions, https://dlmf.nist.gov), 18.9(i). Differentiated
`order` times they give the derivatives, so that the derivative of the primitive is the primitive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from flame.dtypes import FLOATS
from flame.ops.declare import FLOAT, draw, draws, infer_elementwise, meaning
from flame.ops.elementwise import mul
from flame.ops.higher import in_float64
from flame.primitive import Primitive, Spec, register

Numbers = tuple[float, float, float]

#: family -> what is computed of x first (scale, shift), p[1] = a x + b of that, and (a, b, c) of k >= 1
FAMILIES: Final[dict[str, tuple[tuple[float, float], tuple[float, float], Callable[[int], Numbers]]]] = {
    "chebyshev_t": ((1, 0), (1, 0), lambda k: (2, 0, 1)),
    "chebyshev_u": ((1, 0), (2, 0), lambda k: (2, 0, 1)),
    "chebyshev_v": ((1, 0), (2, -1), lambda k: (2, 0, 1)),
    "chebyshev_w": ((1, 0), (2, 1), lambda k: (2, 0, 1)),
    "shifted_chebyshev_t": ((2, -1), (1, 0), lambda k: (2, 0, 1)),
    "shifted_chebyshev_u": ((2, -1), (2, 0), lambda k: (2, 0, 1)),
    "shifted_chebyshev_v": ((2, -1), (2, -1), lambda k: (2, 0, 1)),
    "shifted_chebyshev_w": ((2, -1), (2, 1), lambda k: (2, 0, 1)),
    "hermite_h": ((1, 0), (2, 0), lambda k: (2, 0, 2 * k)),
    "hermite_he": ((1, 0), (1, 0), lambda k: (1, 0, k)),
    "laguerre_l": ((1, 0), (-1, 1), lambda k: (-1 / (k + 1), (2 * k + 1) / (k + 1), k / (k + 1))),
    "legendre_p": ((1, 0), (1, 0), lambda k: ((2 * k + 1) / (k + 1), 0, k / (k + 1))),
}


def _infer(x: Spec | float, n: Spec | float, *, family: str, order: int) -> Spec:
    return infer_elementwise("orthogonal_polynomial", FLOAT, None)(x, n)


def _values(x: np.ndarray, n: np.ndarray, family: str, order: int) -> np.ndarray:
    """The `order`-th derivative by x of p[n](x), n cut to a whole number; 0 where n is negative or NaN."""
    (scale, shift), (a, b), numbers = FAMILIES[family]
    degree = np.trunc(np.where(np.isfinite(n), n, -1.0))
    x = scale * x + shift if scale != 1 else x
    zero = np.zeros_like(x)
    # p[k - 1] and p[k] with their derivatives, by the inner variable
    before, here = [np.ones_like(x), *[zero] * order], [a * x + b, *[zero] * order]
    if order:
        here[1] = np.full_like(x, a)
    out = np.where(degree == 0, before[order], np.where(degree == 1, here[order], zero))
    for k in range(1, int(degree.max(initial=0))):
        a, b, c = numbers(k)
        factor = a * x + b
        after = [factor * here[j] - c * before[j] + (j * a * here[j - 1] if j else 0.0) for j in range(order + 1)]
        before, here = here, after
        np.copyto(out, here[order], where=degree == k + 1)
    return out * float(scale) ** order


def _eager(x: Any, n: Any, *, family: str, order: int) -> np.ndarray:
    return meaning(in_float64(lambda a, b: _values(a, b, family, order)))(x, n)


def _slope(g: Any, _y: Any, x: Any, n: Any, *, family: str, order: int) -> Any:
    return mul(g, orthogonal_polynomial(x, n, family=family, order=order + 1))


def _samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("orthogonal_polynomial")
    for d in FLOATS:
        for family in FAMILIES:
            for shapes in (((3, 5), (5,)), ((), ()), ((0, 4), (4,))) if d.itemsize > 2 else (((3, 5), (5,)),):
                x, n = draw(r, d, shapes[0], -1, 1), np.asarray(r.integers(-1, 5, shapes[1])).astype(d.numpy)
                yield (x, n), {"family": family, "order": 0}
        yield (draw(r, d, (2, 3), -1, 1), 3.0), {"family": "legendre_p", "order": 1}
        yield (0.5, np.arange(4).astype(d.numpy)), {"family": "hermite_h", "order": 2}


orthogonal_polynomial: Primitive = register(
    "orthogonal_polynomial",
    kind="opaque",
    infer=_infer,
    eager=_eager,
    vjp=(_slope, None),
    refused={"scalar": "its recurrence takes as many steps as the degrees ask for: computed by the library"},
    samples=_samples,
    doc="orthogonal_polynomial(x, n, *, family, order): the `order`-th derivative of the family's polynomial of degree n.",
)
