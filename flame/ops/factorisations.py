"""Factorisations of batches of matrices as library calls: QR, eigenvalues of symmetric ones, singular values, LU.

Derivative rules are Giles' (see flame.ops.linalg), and for the singular value decomposition J. Townsend's, "Differentiating the
SVD" (2016). Where two eigenvalues or singular values coincide the vectors have no derivative, and theirs is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import int32, int64
from flame.errors import LinAlgError
from flame.ops.contract import matmul
from flame.ops.create import full, iota
from flame.ops.declare import draws
from flame.ops.elementwise import add, conj, div, mul, sub
from flame.ops.linalg import (
    ANY_SHAPE,
    LIBRARY,
    SQUARE,
    adjoint,
    check_matrices,
    column,
    contiguous,
    first_columns,
    like,
    on_diagonal,
    row,
    sampled_matrices,
    solve_triangular,
    triangle,
)
from flame.ops.logic import eq, where
from flame.ops.movement import pad, reshape, slice
from flame.ops.strided import diagonal
from flame.primitive import Primitive, Spec, register

# ------------------------------------------------------------------------------------------------------ QR


def _qr_infer(x: Spec, *, mode: str) -> tuple[Spec, Spec]:
    check_matrices("linalg.qr", x)
    *batch, m, n = x.shape
    k = min(m, n)
    if mode == "complete":
        return Spec((*batch, m, m), x.dtype), x
    if mode == "reduced":
        return Spec((*batch, m, k), x.dtype), Spec((*batch, k, n), x.dtype)
    raise RuntimeError(f"qr received unrecognized mode '{mode}' but expected one of 'reduced' (default), 'r', or 'complete'")


def _qr_eager(x: np.ndarray, *, mode: str) -> tuple[np.ndarray, np.ndarray]:
    if 0 in x.shape:
        a, b = _qr_infer(Spec(x.shape, dtypes.from_numpy_dtype(x.dtype)), mode=mode)
        q = np.broadcast_to(np.eye(*a.shape[-2:], dtype=x.dtype), a.shape)
        return contiguous(q), np.zeros(b.shape, x.dtype)
    q, r = np.linalg.qr(x, mode=mode)  # type: ignore[call-overload]
    return contiguous(q), contiguous(r)


def _symmetric_from_upper(m: Any) -> Any:
    """The symmetric (Hermitian) matrix that has m's lower triangle."""
    low = triangle(m, upper=False, offset=-1)
    middle = diagonal(m, offset=0, dim1=len(m.shape) - 2, dim2=len(m.shape) - 1)
    return add(add(low, adjoint(low)), on_diagonal(mul(add(middle, conj(middle)), 0.5) if m.dtype.is_complex else middle))


def _qr_vjp(g: Any, y: Any, x: Any, *, mode: str) -> Any:
    """Giles' rule where there are at least as many rows as columns; else the first m columns are factored, and the rest is
    q^T x, whose cotangent is added (H. J. Liao et al., 2019)."""
    gq, gr = g
    q, r = y
    m, n = x.shape[-2:]
    if m < n:
        left = first_columns(r, m)
        gleft, gright = first_columns(gr, m), _rest(gr, m)
        gq = add(gq, matmul(_rest(x, m), adjoint(gright)))
        return _beside(_qr_square(gq, gleft, q, left), matmul(q, gright))
    return _qr_square(gq, gr, q, r)


def _rest(x: Any, start: int) -> Any:
    s = tuple(x.shape)
    return slice(x, starts=(*(0,) * (len(s) - 1), start), stops=s, steps=(1,) * len(s))


def _beside(a: Any, b: Any) -> Any:
    n, m = a.shape[-1], b.shape[-1]
    lead = (0,) * (len(a.shape) - 1)
    zero = (0,) * len(a.shape)
    return add(pad(a, lo=zero, hi=(*lead, m), value=0), pad(b, lo=(*lead, n), hi=zero, value=0))


def _qr_square(gq: Any, gr: Any, q: Any, r: Any) -> Any:
    m = sub(matmul(r, adjoint(gr)), matmul(adjoint(gq), q))
    inner = add(gq, matmul(q, _symmetric_from_upper(m)))
    return adjoint(solve_triangular(r, adjoint(inner), upper=True, unitriangular=False))


qr: Primitive = register(
    "qr",
    kind="opaque",
    infer=_qr_infer,
    eager=_qr_eager,
    vjp=(_qr_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("qr", (*ANY_SHAPE, (0, 0), (3, 0)), mode=("reduced",)),
    doc="qr(x, *, mode): q r = x, q orthonormal, r upper triangular; mode 'reduced' or 'complete'.",
)


def _geqrf_infer(x: Spec) -> tuple[Spec, Spec]:
    check_matrices("geqrf", x)
    return x, Spec((*x.shape[:-2], min(x.shape[-2:])), x.dtype)


def _geqrf_eager(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if 0 in x.shape:
        return np.array(x, order="C"), np.zeros((*x.shape[:-2], min(x.shape[-2:])), x.dtype)
    h, tau = np.linalg.qr(x, mode="raw")
    return contiguous(np.swapaxes(h, -1, -2)), contiguous(tau)


geqrf: Primitive = register(
    "geqrf",
    kind="opaque",
    infer=_geqrf_infer,
    eager=_geqrf_eager,
    refused=LIBRARY | {"vjp": "its reflectors have none in PyTorch either: differentiate linalg.qr"},
    samples=sampled_matrices("geqrf", ANY_SHAPE),
    doc="geqrf(x): the reflectors and their factors of LAPACK's QR.",
)

# ------------------------------------------------------------------------------------------------ eigenvalues, singular values


def _eigh_infer(x: Spec, *, upper: bool) -> tuple[Spec, Spec]:
    check_matrices("linalg.eigh", x, square=True)
    return Spec(x.shape[:-1], x.dtype.to_real()), x


def _eigh_eager(x: np.ndarray, *, upper: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        w, v = np.linalg.eigh(x, "U" if upper else "L")
    except np.linalg.LinAlgError as e:
        raise LinAlgError(f"linalg.eigh: The algorithm failed to converge: {e}") from None
    return contiguous(w), contiguous(v)


def _eigh_vjp(g: Any, y: Any, _x: Any, *, upper: bool) -> Any:
    w, v = y
    apart = sub(row(w), column(w))
    same = eq(apart, 0.0)
    turned = where(same, 0.0, div(matmul(adjoint(v), g[1]), like(where(same, 1.0, apart), v)))
    return matmul(matmul(v, add(turned, like(on_diagonal(g[0]), v))), adjoint(v))


eigh: Primitive = register(
    "eigh",
    kind="opaque",
    infer=_eigh_infer,
    eager=_eigh_eager,
    vjp=(_eigh_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("eigh", SQUARE, "symmetric", upper=(False, True)),
    doc="eigh(x, *, upper): eigenvalues in ascending order and eigenvectors of symmetric matrices.",
)


def _svd_infer(x: Spec, *, full_matrices: bool) -> tuple[Spec, Spec, Spec]:
    check_matrices("linalg.svd", x)
    *batch, m, n = x.shape
    k = min(m, n)
    a, b = (m, n) if full_matrices else (k, k)
    return Spec((*batch, m, a), x.dtype), Spec((*batch, k), x.dtype.to_real()), Spec((*batch, b, n), x.dtype)


def _svd_eager(x: np.ndarray, *, full_matrices: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if 0 in x.shape:
        a, b, c = _svd_infer(Spec(x.shape, dtypes.from_numpy_dtype(x.dtype)), full_matrices=full_matrices)
        ones = [contiguous(np.broadcast_to(np.eye(*p.shape[-2:], dtype=x.dtype), p.shape)) for p in (a, c)]
        return ones[0], np.zeros(b.shape, b.dtype.numpy), ones[1]
    try:
        u, s, v = np.linalg.svd(x, full_matrices=full_matrices)
    except np.linalg.LinAlgError as e:
        raise LinAlgError(f"linalg.svd: The algorithm failed to converge: {e}") from None
    return contiguous(u), contiguous(s), contiguous(v)


def _svd_vjp(g: Any, y: Any, _x: Any, *, full_matrices: bool) -> Any:
    gu, gs, gv = g
    u, s, v = y
    k = s.shape[-1]
    u, gu = first_columns(u, k), first_columns(gu, k)
    v, gv = first_columns(adjoint(v), k), first_columns(adjoint(gv), k)  # n by k
    squares = mul(s, s)
    apart = sub(row(squares), column(squares))
    same = eq(apart, 0.0)
    e = like(where(same, 1.0, apart), u)
    by_s, gs = like(s, u), like(gs, u)
    a, b = matmul(adjoint(u), gu), matmul(adjoint(v), gv)
    turned = sub(a, adjoint(a))
    a = where(same, 0.0, div(turned, e))
    b = where(same, 0.0, div(sub(b, adjoint(b)), e))
    inner = add(add(mul(a, row(by_s)), mul(column(by_s), b)), on_diagonal(gs))
    if u.dtype.is_complex:  # singular vectors turn together: what is imaginary on the diagonal counts once
        n = len(turned.shape)
        inner = add(inner, on_diagonal(div(diagonal(turned, offset=0, dim1=n - 2, dim2=n - 1), mul(by_s, 2.0))))
    out = matmul(matmul(u, inner), adjoint(v))
    if u.shape[-2] > k:
        scaled = div(gu, row(by_s))
        out = add(out, matmul(sub(scaled, matmul(u, matmul(adjoint(u), scaled))), adjoint(v)))
    if v.shape[-2] > k:
        scaled = div(gv, row(by_s))
        out = add(out, matmul(u, adjoint(sub(scaled, matmul(v, matmul(adjoint(v), scaled))))))
    return out


svd: Primitive = register(
    "svd",
    kind="opaque",
    infer=_svd_infer,
    eager=_svd_eager,
    vjp=(_svd_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("svd", (*ANY_SHAPE, (0, 2)), full_matrices=(False,)),
    doc="svd(x, *, full_matrices): u diag(s) vh = x, singular values in descending order.",
)


def _svdvals_vjp(g: Any, _y: Any, x: Any) -> Any:
    u, _, v = svd(x, full_matrices=False)
    return matmul(mul(u, row(like(g, u))), v)


svdvals: Primitive = register(
    "svdvals",
    kind="opaque",
    infer=lambda x: _svd_infer(x, full_matrices=False)[1],
    eager=lambda x: _svd_eager(x, full_matrices=False)[1] if 0 in x.shape else contiguous(np.linalg.svd(x, compute_uv=False)),
    vjp=(_svdvals_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("svdvals", (*ANY_SHAPE, (0, 2))),
    doc="svdvals(x): singular values in descending order.",
)


def _pinv_infer(x: Spec, *, atol: float, rtol: float, hermitian: bool) -> Spec:
    check_matrices("linalg.pinv", x, square=hermitian)
    return Spec((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)


def _pinv_eager(x: np.ndarray, *, atol: float, rtol: float, hermitian: bool) -> np.ndarray:
    """By the singular values above max(atol, rtol * largest); of Hermitian matrices by the eigenvalues, reading one triangle."""
    if x.size == 0:
        return np.zeros((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)
    if hermitian:
        w, v = np.linalg.eigh(x)
        s, u, vh = w, v, np.swapaxes(v, -1, -2).conj()
    else:
        u, s, vh = np.linalg.svd(x, full_matrices=False)
    size = np.abs(s)
    keep = size > np.maximum(atol, rtol * size.max(-1, keepdims=True))
    factors = np.where(keep, 1 / np.where(keep, s, 1), 0).astype(s.dtype)
    back = np.swapaxes(vh, -1, -2).conj() * factors[..., None, :]
    return contiguous((back @ np.swapaxes(u, -1, -2).conj()).astype(x.dtype, copy=False))


def _pinv_vjp(g: Any, y: Any, x: Any, *, atol: float, rtol: float, hermitian: bool) -> Any:
    """G. Golub and V. Pereyra, "The differentiation of pseudo-inverses" (1973): right where the rank does not change."""
    back, turned = adjoint(y), adjoint(g)
    whole = matmul(turned, matmul(y, back))
    left = sub(whole, matmul(x, matmul(y, whole)))
    whole = matmul(matmul(back, y), turned)
    right = sub(whole, matmul(matmul(whole, y), x))
    return sub(add(left, right), matmul(matmul(back, g), back))


def _pinv_samples() -> Iterator[tuple[tuple, dict]]:
    how = {"atol": 0.0, "rtol": 1e-3, "hermitian": False}
    for operands, _ in sampled_matrices("pinv", (*ANY_SHAPE, (0, 3, 3), (3, 0)))():
        yield operands, how
    r = draws("pinv")
    for d in (np.float32, np.float64):
        yield ((r.standard_normal((4, 2)) @ r.standard_normal((2, 3))).astype(d),), how


pinv: Primitive = register(
    "pinv",
    kind="opaque",
    infer=_pinv_infer,
    eager=_pinv_eager,
    vjp=(_pinv_vjp,),
    refused=LIBRARY,
    samples=_pinv_samples,
    doc="pinv(x, *, atol, rtol, hermitian): pseudo-inverses; singular values up to max(atol, rtol * largest) count as 0.",
)

# ------------------------------------------------------------------------------------------------------ LU


def _pivots_infer(x: Spec) -> tuple[Spec, Spec, Spec]:
    check_matrices("linalg.lu_factor", x)
    *batch, m, n = x.shape
    return Spec((*batch, min(m, n)), int32), Spec((*batch, m), int64), Spec(tuple(batch), int32)


def _pivots_eager(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Partial pivoting (Golub and Van Loan, 3.4.3): the rows exchanged (from 1), the order they end in, the first zero pivot."""
    *batch, m, n = x.shape
    k = min(m, n)
    a = np.array(x, order="C").reshape(math.prod(batch), m, n)
    every = np.arange(len(a))
    pivots = np.zeros((len(a), k), np.int32)
    order = np.tile(np.arange(m), (len(a), 1))
    info = np.zeros(len(a), np.int32)
    for j in range(k):  # (of complex numbers the larger |re| + |im|, as in LAPACK)
        p = j + np.argmax(np.abs(a[:, j:, j].real) + np.abs(a[:, j:, j].imag), 1)
        pivots[:, j] = p + 1
        for t in (a, order):
            t[every, j], t[every, p] = t[every, p].copy(), t[every, j].copy()
        pivot = a[:, j, j]
        zero = pivot == 0
        info = np.where(zero & (info == 0), j + 1, info).astype(np.int32)
        factor = a[:, j + 1 :, j] / np.where(zero, 1, pivot)[:, None]
        a[:, j + 1 :, j] = factor
        a[:, j + 1 :, j + 1 :] -= factor[:, :, None] * a[:, None, j, j + 1 :]
    return pivots.reshape(*batch, k), order.reshape(*batch, m), info.reshape(tuple(batch))


lu_pivots: Primitive = register(
    "lu_pivots",
    kind="opaque",
    infer=_pivots_infer,
    eager=_pivots_eager,
    refused=LIBRARY | {"vjp": "indices have no derivative"},
    samples=sampled_matrices("lu_pivots", (*ANY_SHAPE, (0, 3, 3))),
    doc="lu_pivots(x): rows exchanged by partial pivoting (from 1), the order of rows that results, and info.",
)


def _packed_infer(x: Spec) -> Spec:
    check_matrices("linalg.lu_factor", x, square=True)
    return x


def _packed_eager(x: np.ndarray) -> np.ndarray:
    a = np.array(x, order="C")
    for j in range(a.shape[-1] - 1):
        pivot = a[..., j, j]
        factor = a[..., j + 1 :, j] / np.where(pivot == 0, 1, pivot)[..., None]
        a[..., j + 1 :, j] = factor
        a[..., j + 1 :, j + 1 :] -= factor[..., :, None] * a[..., None, j, j + 1 :]
    return a


def _packed_vjp(g: Any, y: Any, _x: Any) -> Any:
    n = y.shape[-1]
    i = reshape(iota(size=n, dtype=int64), shape=(n, 1))
    unit = where(eq(iota(size=n, dtype=int64), i), full(1.0, shape=(), dtype=y.dtype), triangle(y, upper=False, offset=-1))
    up = triangle(y, upper=True)
    a = triangle(matmul(adjoint(unit), triangle(g, upper=False, offset=-1)), upper=False, offset=-1)
    b = triangle(matmul(triangle(g, upper=True), adjoint(up)), upper=True)
    left = solve_triangular(adjoint(unit), add(a, b), upper=True, unitriangular=True)
    return adjoint(solve_triangular(up, adjoint(left), upper=True, unitriangular=False))


lu_packed: Primitive = register(
    "lu_packed",
    kind="opaque",
    infer=_packed_infer,
    eager=_packed_eager,
    vjp=(_packed_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("lu_packed", SQUARE),
    doc="lu_packed(x): l and u of l u = x in one matrix, without exchanging rows.",
)


def _order_infer(p: Spec, *, rows: int) -> Spec:
    if p.dtype is not int32 or p.ndim < 1:
        raise RuntimeError(f"lu_unpack: torch.int32 dtype is expected for LU_pivots, but got {p}".replace("torch.", "flame."))
    return Spec((*p.shape[:-1], rows), int64)


def _order_eager(p: np.ndarray, *, rows: int) -> np.ndarray:
    flat = p.reshape(math.prod(p.shape[:-1]), p.shape[-1])
    order = np.tile(np.arange(rows), (len(flat), 1))
    every = np.arange(len(flat))
    for j in range(p.shape[-1]):
        k = flat[:, j] - 1
        order[every, j], order[every, k] = order[every, k].copy(), order[every, j].copy()
    return order.reshape(*p.shape[:-1], rows)


def _order_samples() -> Iterator[tuple[tuple, dict]]:
    yield (np.asarray([[2, 3, 3], [1, 2, 3]], np.int32),), {"rows": 3}
    yield (np.asarray([3, 2], np.int32),), {"rows": 4}


pivot_order: Primitive = register(
    "pivot_order",
    kind="opaque",
    infer=_order_infer,
    eager=_order_eager,
    refused=LIBRARY | {"vjp": "indices have no derivative"},
    samples=_order_samples,
    doc="pivot_order(p, *, rows): the order that rows end in after the exchanges p (from 1).",
)
