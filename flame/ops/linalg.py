"""Dense linear algebra as library calls: solves, determinants and exponentials of batches of matrices, float32 and float64.

Every operand is [..., m, n] with equal batch dimensions (whoever calls has broadcast them). `check=False` lets a singular or
indefinite matrix through: the result is then NaN for it, and `info`, the second result, says where it failed (0: it did not).
Derivative rules follow M. Giles, "Collected matrix derivative results for forward and reverse mode algorithmic
differentiation" (2008).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype, int32, int64
from flame.errors import LinAlgError
from flame.ops.contract import matmul
from flame.ops.create import iota
from flame.ops.declare import draws, quiet
from flame.ops.elementwise import add, conj, mul, neg, sub
from flame.ops.logic import cast, eq, ge, where
from flame.ops.movement import pad, permute, reshape, slice
from flame.ops.reduce import sum
from flame.primitive import Primitive, Spec, register

LIBRARY = {"lower": "a factorisation takes its columns one after the other: computed by the library"}
Samples = Callable[[], Iterator[tuple[tuple, dict]]]

# ------------------------------------------------------------------------------------------------- words of the rules


def adjoint(x: Any) -> Any:
    """The conjugate transpose of matrices."""
    n = len(x.shape)
    return conj(permute(x, dims=(*range(n - 2), n - 1, n - 2)))


def triangle(x: Any, *, upper: bool, offset: int = 0) -> Any:
    """The part of matrices on one side of a diagonal; zero elsewhere."""
    n, m = x.shape[-2:]
    i = reshape(iota(size=n, dtype=int64), shape=(n, 1))
    j = iota(size=m, dtype=int64)
    away = sub(j, i)
    return where(ge(away, offset) if upper else ge(offset, away), x, 0.0)


def on_diagonal(v: Any) -> Any:
    """Matrices with the last dimension on their diagonal."""
    n = v.shape[-1]
    i = reshape(iota(size=n, dtype=int64), shape=(n, 1))
    return where(eq(iota(size=n, dtype=int64), i), reshape(v, shape=(*v.shape[:-1], 1, n)), 0.0)


def like(v: Any, x: Any) -> Any:
    """v in x's dtype: real factors of complex matrices."""
    return v if v.dtype is x.dtype else cast(v, dtype=x.dtype)


def column(v: Any) -> Any:
    """[..., n] as [..., n, 1]."""
    return reshape(v, shape=(*v.shape, 1))


def row(v: Any) -> Any:
    """[..., n] as [..., 1, n]."""
    return reshape(v, shape=(*v.shape[:-1], 1, v.shape[-1]))


def first_columns(x: Any, stop: int) -> Any:
    s = tuple(x.shape)
    return slice(x, starts=(0,) * len(s), stops=(*s[:-1], stop), steps=(1,) * len(s)) if stop != s[-1] else x


# ------------------------------------------------------------------------------------------------- words of the records


#: what takes complex matrices too
_COMPLEX_TOO = {"geqrf"} | {
    f"linalg.{n}"
    for n in "inv solve det slogdet cholesky solve_triangular eigh svd qr lu_factor matrix_exp pinv ldl_factor ldl_solve".split()
}


def check_matrices(name: str, x: Spec, *, square: bool = False) -> None:
    if x.ndim < 2:
        raise RuntimeError(f"{name}: The input tensor A must have at least 2 dimensions, but got {list(x.shape)}")
    if x.dtype not in (dtypes.float32, dtypes.float64) and not (x.dtype.kind == "c" and name in _COMPLEX_TOO):
        raise NotImplementedError(f'"{name}" not implemented for {x.dtype}: cast to float32 or float64')
    if square and x.shape[-1] != x.shape[-2]:
        raise RuntimeError(
            f"{name}: A must be batches of square matrices, but they are {x.shape[-2]} by {x.shape[-1]} matrices"
        )


def _same_square(name: str) -> Callable[[Spec], Spec]:
    """The shape rule of what makes square matrices of square matrices."""

    def infer(x: Spec) -> Spec:
        check_matrices(name, x, square=True)
        return x

    return infer


def _batched(a: Spec, b: Spec, name: str) -> None:
    if a.dtype is not b.dtype:
        raise RuntimeError(f"{name}: Expected A and B to have the same dtype, but found {a.dtype} and {b.dtype}")
    if b.ndim < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise RuntimeError(f"{name}: Incompatible shapes of A and B for the equation AX = B: {list(a.shape)}, {list(b.shape)}")


def contiguous(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(x.shape)


def _draw(r: np.random.Generator, d: dtype, shape: tuple[int, ...], kind: str = "") -> np.ndarray:
    """Random matrices: well-conditioned where square; symmetric or positive definite on demand."""
    a = r.uniform(-1, 1, shape)
    m, n = shape[-2:]
    if kind == "spd":
        a = a @ np.swapaxes(a, -1, -2) + np.eye(n)
    elif kind == "symmetric":
        a = (a + np.swapaxes(a, -1, -2)) / 2 + np.diag(np.arange(n))
    else:
        a = a + np.eye(m, n) * np.arange(1, n + 1) * 1.5
    return a.astype(d.numpy)


def sampled_matrices(name: str, shapes: Any, kind: str = "", second: Any = None, **params: tuple) -> Samples:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        names = list(params)
        for d in (dtypes.float32, dtypes.float64):
            for k, shape in enumerate(shapes):
                xs = [_draw(r, d, shape, kind)]
                if second is not None:
                    xs.append(r.uniform(-1, 1, (*shape[:-1], second)).astype(d.numpy))
                for choice in range(len(params[names[0]])) if names else [0]:
                    if not names or k < 2 or choice == 0:
                        yield tuple(xs), {n: params[n][choice] for n in names}

    return samples


SQUARE = ((3, 3), (2, 4, 4), (1, 1), (0, 0), (0, 3, 3))
ANY_SHAPE = ((4, 3), (3, 4), (2, 3, 3), (1, 1))

# ------------------------------------------------------------------------------------------------------ solving


def _per_matrix(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, out: np.ndarray, info: np.ndarray) -> None:
    """Matrix by matrix, after the library refused the batch: which ones fail, and NaN for those."""
    for at in np.ndindex(*x.shape[:-2]):
        try:
            out[at] = f(x[at])
        except np.linalg.LinAlgError:
            out[at], info[at] = np.nan, 1


def _inverse_infer(x: Spec, *, check: bool) -> tuple[Spec, Spec]:
    check_matrices("linalg.inv", x, square=True)
    return x, Spec(x.shape[:-2], int32)


def _inverse_eager(x: np.ndarray, *, check: bool) -> tuple[np.ndarray, np.ndarray]:
    info = np.zeros(x.shape[:-2], np.int32)
    try:
        return contiguous(np.linalg.inv(x)), info
    except np.linalg.LinAlgError:
        if check:
            raise LinAlgError(
                "linalg.inv: The inversion could not be completed because the input matrix is singular."
            ) from None
    out = np.empty(x.shape, x.dtype)
    _per_matrix(np.linalg.inv, x, out, info)
    return out, info


def _inverse_vjp(g: Any, y: Any, _x: Any, *, check: bool) -> Any:
    back = adjoint(y[0])
    return neg(matmul(matmul(back, g[0]), back))


inverse: Primitive = register(
    "inverse",
    kind="opaque",
    infer=_inverse_infer,
    eager=_inverse_eager,
    vjp=(_inverse_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("inverse", SQUARE, check=(True, False)),
    doc="inverse(x, *, check): inverses of square matrices, and info.",
)


def _solve_infer(a: Spec, b: Spec, *, check: bool) -> tuple[Spec, Spec]:
    check_matrices("linalg.solve", a, square=True)
    _batched(a, b, "linalg.solve")
    return b, Spec(a.shape[:-2], int32)


def _solve_eager(a: np.ndarray, b: np.ndarray, *, check: bool) -> tuple[np.ndarray, np.ndarray]:
    info = np.zeros(a.shape[:-2], np.int32)
    try:
        return contiguous(np.linalg.solve(a, b)), info
    except np.linalg.LinAlgError:
        if check:
            raise LinAlgError("linalg.solve: The solver failed because the input matrix is singular.") from None
    out = np.empty(b.shape, b.dtype)
    for at in np.ndindex(*a.shape[:-2]):
        try:
            out[at] = np.linalg.solve(a[at], b[at])
        except np.linalg.LinAlgError:
            out[at], info[at] = np.nan, 1
    return out, info


def _solve_b(g: Any, _y: Any, a: Any, _b: Any, *, check: bool) -> Any:
    return solve(adjoint(a), g[0], check=check)[0]


def _solve_a(g: Any, y: Any, a: Any, _b: Any, *, check: bool) -> Any:
    return neg(matmul(solve(adjoint(a), g[0], check=check)[0], adjoint(y[0])))


solve: Primitive = register(
    "solve",
    kind="opaque",
    infer=_solve_infer,
    eager=_solve_eager,
    vjp=(_solve_a, _solve_b),
    refused=LIBRARY,
    samples=sampled_matrices("solve", SQUARE, second=2, check=(True, False)),
    doc="solve(a, b, *, check): the x with a x = b, and info.",
)


def _triangular_infer(a: Spec, b: Spec, *, upper: bool, unitriangular: bool) -> Spec:
    check_matrices("linalg.solve_triangular", a, square=True)
    _batched(a, b, "linalg.solve_triangular")
    return b


def _triangular_eager(a: np.ndarray, b: np.ndarray, *, upper: bool, unitriangular: bool) -> np.ndarray:
    """Substitution, row by row; division by a zero of the diagonal gives infinities, as in LAPACK's trtrs."""

    def substitute() -> np.ndarray:
        x = np.array(b, order="C")
        n = a.shape[-1]
        for k in range(n):
            i, known = (n - 1 - k, np.s_[n - k : n]) if upper else (k, np.s_[:k])
            if k:
                x[..., i, :] -= (a[..., i : i + 1, known] @ x[..., known, :])[..., 0, :]
            if not unitriangular:
                x[..., i, :] /= a[..., i, i, None]
        return x

    return quiet.run(substitute)


def _triangular_b(g: Any, _y: Any, a: Any, _b: Any, *, upper: bool, unitriangular: bool) -> Any:
    return solve_triangular(adjoint(a), g, upper=not upper, unitriangular=unitriangular)


def _triangular_a(g: Any, y: Any, a: Any, _b: Any, *, upper: bool, unitriangular: bool) -> Any:
    back = solve_triangular(adjoint(a), g, upper=not upper, unitriangular=unitriangular)
    whole = neg(matmul(back, adjoint(y)))
    return triangle(whole, upper=upper, offset=(1 if upper else -1) if unitriangular else 0)


solve_triangular: Primitive = register(
    "solve_triangular",
    kind="opaque",
    infer=_triangular_infer,
    eager=_triangular_eager,
    vjp=(_triangular_a, _triangular_b),
    refused=LIBRARY,
    samples=sampled_matrices(
        "solve_triangular", SQUARE, second=2, upper=(True, False, True), unitriangular=(False, False, True)
    ),
    doc="solve_triangular(a, b, *, upper, unitriangular): the x with a x = b, reading one triangle of a alone.",
)

# ------------------------------------------------------------------------------------------------------ Cholesky


def _cholesky_infer(x: Spec, *, check: bool) -> tuple[Spec, Spec]:
    check_matrices("linalg.cholesky", x, square=True)
    return x, Spec(x.shape[:-2], int32)


def _cholesky_eager(x: np.ndarray, *, check: bool) -> tuple[np.ndarray, np.ndarray]:
    info = np.zeros(x.shape[:-2], np.int32)
    try:
        return contiguous(np.linalg.cholesky(x)), info
    except np.linalg.LinAlgError:
        pass
    out = np.full(x.shape, np.nan, x.dtype)
    for at in np.ndindex(*x.shape[:-2]):
        try:
            out[at] = np.linalg.cholesky(x[at])
        except np.linalg.LinAlgError:
            info[at] = next(k for k in range(1, x.shape[-1] + 1) if not _is_definite(x[at][:k, :k]))
            if check:
                where_ = f"(Batch element {at[0] if len(at) == 1 else list(at)}): " if at else ""
                raise LinAlgError(
                    f"linalg.cholesky: {where_}The factorization could not be completed because the input is not "
                    f"positive-definite (the leading minor of order {info[at]} is not positive-definite)."
                ) from None
    return out, info


def _is_definite(x: np.ndarray) -> bool:
    try:
        np.linalg.cholesky(x)
    except np.linalg.LinAlgError:
        return False
    return True


def _cholesky_vjp(g: Any, y: Any, _x: Any, *, check: bool) -> Any:
    left = y[0]
    phi = triangle(matmul(adjoint(left), g[0]), upper=False)
    phi = sub(phi, mul(on_diagonal(_diagonal_of(phi)), 0.5))
    half = solve_triangular(adjoint(left), phi, upper=True, unitriangular=False)
    whole = adjoint(solve_triangular(adjoint(left), adjoint(half), upper=True, unitriangular=False))
    return mul(add(whole, adjoint(whole)), 0.5)


def _diagonal_of(x: Any) -> Any:
    n = x.shape[-1]
    i = reshape(iota(size=n, dtype=int64), shape=(n, 1))
    return sum(where(eq(iota(size=n, dtype=int64), i), x, 0.0), dim=(len(x.shape) - 1,), keepdim=False)


cholesky: Primitive = register(
    "cholesky",
    kind="opaque",
    infer=_cholesky_infer,
    eager=_cholesky_eager,
    vjp=(_cholesky_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("cholesky", SQUARE, "spd", check=(True, False)),
    doc="cholesky(x, *, check): the lower triangular l with l l^T = x, and info; reads the lower triangle of x alone.",
)

# ------------------------------------------------------------------------------------------------------ determinants


def _slogdet_infer(x: Spec) -> tuple[Spec, Spec]:
    check_matrices("linalg.slogdet", x, square=True)
    return Spec(x.shape[:-2], x.dtype), Spec(x.shape[:-2], x.dtype.to_real())


def _slogdet_eager(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sign, log = quiet.run(np.linalg.slogdet, x)
    return np.asarray(sign, x.dtype), np.asarray(log, x.real.dtype)


def _slogdet_vjp(g: Any, y: Any, x: Any) -> Any:
    """The logarithm's; and, of complex matrices, that of the sign, which turns with the imaginary part of the logarithm."""
    by_log = like(g[1], x)
    if x.dtype.is_complex:
        turned = mul(conj(g[0]), y[0])
        by_log = sub(by_log, mul(sub(turned, conj(turned)), 0.5))
    return mul(column(column(by_log)), adjoint(inverse(x, check=False)[0]))


slogdet: Primitive = register(
    "slogdet",
    kind="opaque",
    infer=_slogdet_infer,
    eager=_slogdet_eager,
    vjp=(_slogdet_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("slogdet", SQUARE),
    doc="slogdet(x): the sign and the logarithm of the absolute value of the determinant.",
)


def _det_infer(x: Spec) -> Spec:
    check_matrices("linalg.det", x, square=True)
    return Spec(x.shape[:-2], x.dtype)


def _cofactor_eager(x: np.ndarray) -> np.ndarray:
    """u diag(the product of the other singular values) v, times the signs: right for singular matrices too."""
    n = x.shape[-1]
    if x.size == 0:
        return np.zeros(x.shape, x.dtype)
    u, s, v = np.linalg.svd(x)
    others = np.stack([np.prod(np.delete(s, k, -1), -1) for k in range(n)], -1)
    turn = np.linalg.det(u) * np.linalg.det(v)
    return np.asarray(((u.conj() * (others * turn[..., None])[..., None, :]) @ v.conj()), x.dtype)


def _cofactor_vjp(g: Any, y: Any, x: Any) -> Any:
    """With z the inverse's transpose: <z, g> y - z g^T y."""
    z = adjoint(inverse(x, check=False)[0])
    n, y = len(x.shape), conj(y)
    turned = permute(g, dims=(*range(n - 2), n - 1, n - 2))
    return sub(mul(sum(mul(z, g), dim=(n - 2, n - 1), keepdim=True), y), matmul(matmul(z, turned), y))


cofactor: Primitive = register(
    "cofactor",
    kind="opaque",
    infer=_same_square("linalg.det"),
    eager=_cofactor_eager,
    vjp=(_cofactor_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("cofactor", SQUARE),
    doc="cofactor(x): the derivative of the determinant by each element, for singular matrices too.",
)
det: Primitive = register(
    "det",
    kind="opaque",
    infer=_det_infer,
    eager=lambda x: np.asarray(quiet.run(np.linalg.det, x), x.dtype, order="C"),
    vjp=(lambda g, _y, x: mul(column(column(g)), conj(cofactor(x))),),
    refused=LIBRARY,
    samples=sampled_matrices("det", SQUARE),
    doc="det(x): determinants.",
)

# ------------------------------------------------------------------------------------------------------ the exponential

#: Pade's coefficients of order 13, and the norm up to which they suffice (N. Higham, 2005)
_PADE = (
    64764752532480000.0, 32382376266240000.0, 7771770303897600.0, 1187353796428800.0, 129060195264000.0, 10559470521600.0,
    670442572800.0, 33522128640.0, 1323241920.0, 40840800.0, 960960.0, 16380.0, 182.0, 1.0,
)  # fmt: skip
_THETA = 5.371920351148152


def _exp_eager(x: np.ndarray) -> np.ndarray:
    """Scaling and squaring, matrix by matrix with the scaling that each needs (N. Higham, 2005)."""
    if x.size == 0:
        return np.array(x, order="C")
    a = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
    size = np.abs(a).sum(-2).max(-1)
    steps = np.where(np.isfinite(size) & (size > _THETA), np.ceil(np.log2(np.maximum(size, 1e-300) / _THETA)), 0).astype(int)
    a = a / (2.0**steps)[..., None, None]
    one = np.eye(a.shape[-1])
    a2 = a @ a
    a4 = a2 @ a2
    a6 = a4 @ a2
    b = _PADE
    u = a @ (a6 @ (b[13] * a6 + b[11] * a4 + b[9] * a2) + b[7] * a6 + b[5] * a4 + b[3] * a2 + b[1] * one)
    v = a6 @ (b[12] * a6 + b[10] * a4 + b[8] * a2) + b[6] * a6 + b[4] * a4 + b[2] * a2 + b[0] * one
    y = np.linalg.solve(v - u, v + u)
    for k in range(int(steps.max(initial=0))):
        y = np.where((steps > k)[..., None, None], y @ y, y)
    return np.asarray(y, x.dtype, order="C")


def _exp_vjp(g: Any, _y: Any, x: Any) -> Any:
    """The exponential of [[x^T, g], [0, x^T]] has the derivative in its upper right (Najfeld and Havel, 1995)."""
    n = x.shape[-1]
    lead = (0,) * (len(x.shape) - 2)
    back = adjoint(x)
    zero = (0,) * len(x.shape)
    block = add(
        add(pad(back, lo=zero, hi=(*lead, n, n), value=0), pad(back, lo=(*lead, n, n), hi=zero, value=0)),
        pad(g, lo=(*lead, 0, n), hi=(*lead, n, 0), value=0),
    )
    stops = (*x.shape[:-2], n, 2 * n)
    return slice(matrix_exp(block), starts=(*lead, 0, n), stops=stops, steps=(1,) * len(x.shape))


matrix_exp: Primitive = register(
    "matrix_exp",
    kind="opaque",
    infer=_same_square("linalg.matrix_exp"),
    eager=lambda x: quiet.run(_exp_eager, x),
    vjp=(_exp_vjp,),
    refused=LIBRARY,
    samples=sampled_matrices("matrix_exp", SQUARE),
    doc="matrix_exp(x): exponentials of square matrices.",
)
