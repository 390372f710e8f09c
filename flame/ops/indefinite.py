"""Factors of symmetric (Hermitian) matrices that need not be definite, as library calls: L D L^T with blocks of one or two rows.

Bunch and Kaufman's partial pivoting (J. Bunch and L. Kaufman, Math. Comp. 31, 1977) over the lower triangle, one matrix after the
other, in the form of LAPACK's sytrf: L below the diagonal, D on it and beside it; pivots count from 1, and where two rows in turn
have the same negative one, their block of D is 2 x 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from flame.dtypes import float32, float64, int32
from flame.errors import LinAlgError
from flame.ops.declare import draws
from flame.ops.elementwise import conj
from flame.ops.linalg import LIBRARY, SQUARE, check_matrices, sampled_matrices
from flame.primitive import Primitive, Spec, register

_ALPHA = (1 + math.sqrt(17)) / 8


def _factor_infer(x: Spec, *, hermitian: bool, check: bool) -> tuple[Spec, Spec, Spec]:
    check_matrices("linalg.ldl_factor", x, square=True)
    return x, Spec(x.shape[:-1], int32), Spec(x.shape[:-2], int32)


def _size(x: np.ndarray) -> np.ndarray:
    """Magnitudes as LAPACK compares them: |re| + |im|."""
    return np.abs(x.real) + np.abs(x.imag) if x.dtype.kind == "c" else np.abs(x)


def _pivot(a: np.ndarray, k: int) -> tuple[int, int]:
    """Which row comes to row k, and how many rows its block of D has: (0, 0) where the column is zero or NaN."""
    here, column = _size(a[k, k]), _size(a[k + 1 :, k])
    largest = column.max(initial=0)
    if max(here, largest) == 0 or np.isnan(here):
        return 0, 0
    if here >= _ALPHA * largest:
        return k, 1
    r = k + 1 + int(np.argmax(column))
    row = max(_size(a[r, k:r]).max(initial=0), _size(a[r + 1 :, r]).max(initial=0))
    if here >= _ALPHA * largest * (largest / row):
        return k, 1
    return r, 1 if _size(a[r, r]) >= _ALPHA * row else 2


def _exchange(a: np.ndarray, k: int, kk: int, kp: int, turned: Any) -> None:
    """Rows and columns kk and kp of the lower triangle, from column k on."""
    a[kp + 1 :, [kk, kp]] = a[kp + 1 :, [kp, kk]]
    between = a[kk + 1 : kp, kk].copy()
    a[kk + 1 : kp, kk], a[kp, kk + 1 : kp] = turned(a[kp, kk + 1 : kp]), turned(between)
    a[kp, kk] = turned(a[kp, kk])
    a[kk, kk], a[kp, kp] = a[kp, kp], a[kk, kk]
    if kk > k:
        a[kk, k], a[kp, k] = a[kp, k], a[kk, k]


def _factored(a: np.ndarray, pivots: np.ndarray, hermitian: bool) -> int:
    """One matrix, in place; the place (from 1) of the first zero block, or 0."""
    turned = np.conj if hermitian else lambda x: x
    n, k, info = len(a), 0, 0
    while k < n:
        if hermitian:
            a[k, k] = a[k, k].real
        at, block = _pivot(a, k)
        if not block:
            info, pivots[k] = info or k + 1, k + 1
            k += 1
            continue
        end = k + block
        if at != end - 1:
            _exchange(a, k, end - 1, at, turned)
        pivots[k:end] = at + 1 if block == 1 else -(at + 1)
        d = a[k:end, k:end]
        if block == 2:
            d = np.array([[d[0, 0], turned(d[1, 0])], [d[1, 0], d[1, 1]]])
        rest = a[end:, k:end].copy()
        if len(rest):
            factor = np.linalg.solve(d.T, rest.T).T if block == 2 else rest / d
            a[end:, end:] -= np.tril(factor @ turned(rest).T)
            a[end:, k:end] = factor
            if hermitian:
                i = np.arange(end, n)
                a[i, i] = a[i, i].real
        k = end
    return info


def _factor_eager(x: np.ndarray, *, hermitian: bool, check: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    out = np.tril(x)
    pivots, info = np.zeros(x.shape[:-1], np.int32), np.zeros(x.shape[:-2], np.int32)
    with np.errstate(all="ignore"):
        for at in np.ndindex(*x.shape[:-2]):
            info[at] = _factored(out[at], pivots[at], hermitian and x.dtype.kind == "c")
    if check and info.any():
        raise LinAlgError(
            f"linalg.ldl_factor: D has a zero at place {int(info[info != 0][0])}: the matrix is singular, and can't be solved with"
        )
    return np.ascontiguousarray(out), pivots, info


def _solve_infer(ld: Spec, pivots: Spec, b: Spec, *, hermitian: bool) -> Spec:
    check_matrices("linalg.ldl_solve", ld, square=True)
    return b


def _solved(a: np.ndarray, pivots: np.ndarray, b: np.ndarray, hermitian: bool) -> None:
    """One system, in place (LAPACK's sytrs): through the blocks downwards, and up again."""
    turned = np.conj if hermitian else lambda x: x
    starts, k = [], 0
    while k < len(a):
        starts.append((k, 1 if pivots[k] > 0 else 2))
        k += starts[-1][1]
    for k, block in starts:
        end, at = k + block, abs(int(pivots[k])) - 1
        b[[end - 1, at]] = b[[at, end - 1]]
        b[end:] -= a[end:, k:end] @ b[k:end]
        if block == 1:
            b[k] /= a[k, k]
        else:
            low = a[k + 1, k]
            b[k:end] = np.linalg.solve(np.array([[a[k, k], turned(low)], [low, a[k + 1, k + 1]]]), b[k:end])
    for k, block in reversed(starts):
        end, at = k + block, abs(int(pivots[k])) - 1
        b[k:end] -= turned(a[end:, k:end]).T @ b[end:]
        b[[end - 1, at]] = b[[at, end - 1]]


def _solve_eager(ld: np.ndarray, pivots: np.ndarray, b: np.ndarray, *, hermitian: bool) -> np.ndarray:
    out = np.array(b, order="C")
    with np.errstate(all="ignore"):
        for at in np.ndindex(*ld.shape[:-2]):
            _solved(ld[at], pivots[at], out[at], hermitian and ld.dtype.kind == "c")
    return out


def _solve_slope(g: Any, _y: Any, ld: Any, pivots: Any, _b: Any, *, hermitian: bool) -> Any:
    """The cotangent of b: the adjoint of A is A where it is Hermitian, its conjugate where it is symmetric."""
    if hermitian or not g.dtype.is_complex:
        return ldl_solve(ld, pivots, g, hermitian=hermitian)
    return conj(ldl_solve(ld, pivots, conj(g), hermitian=False))


def _solve_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("ldl_solve")
    for d in (float32, float64):
        for *lead, n in ((4,), (2, 3), (1,), (0,)):
            x = r.uniform(-1, 1, (*lead, n, n)).astype(d.numpy)
            ld, pivots, _ = _factor_eager(x, hermitian=False, check=False)
            yield (ld, pivots, r.uniform(-1, 1, (*lead, n, 2)).astype(d.numpy)), {"hermitian": False}


ldl_factor: Primitive = register(
    "ldl_factor",
    kind="opaque",
    infer=_factor_infer,
    eager=_factor_eager,
    refused=LIBRARY | {"vjp": "its factors have none in PyTorch either: differentiate linalg.solve"},
    samples=sampled_matrices("ldl_factor", SQUARE, hermitian=(False, True), check=(False, False)),
    doc="ldl_factor(x, *, hermitian, check): L and D of x = L D L^T in one matrix, pivots, and info; reads the lower triangle.",
)
ldl_solve: Primitive = register(
    "ldl_solve",
    kind="opaque",
    infer=_solve_infer,
    eager=_solve_eager,
    vjp=(None, None, _solve_slope),
    refused=LIBRARY,
    samples=_solve_samples,
    doc="ldl_solve(ld, pivots, b, *, hermitian): the y with x y = b, given x's ldl_factor.",
)
