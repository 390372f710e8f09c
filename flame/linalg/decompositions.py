"""QR, eigenvalues, singular values, and what is made of them: pseudo-inverses, ranks, least squares."""

from __future__ import annotations

from typing import Any, NamedTuple

from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed, with_out
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.shape import EXPAND, RESHAPE, take_slice, unsqueeze
from flame.linalg.arguments import batched, epsilon, matrices, same_dtype
from flame.primitive import broadcast_shapes, registered
from flame.tensor import Tensor

QR, GEQRF, EIGH, SVD, SVDVALS, PINV = map(registered, ("qr", "geqrf", "eigh", "svd", "svdvals", "pinv"))
WHERE, FULL = registered("where"), registered("full")


class QRResult(NamedTuple):
    """What qr gives."""

    Q: Tensor
    R: Tensor


class Eigh(NamedTuple):
    """What eigh gives."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class SVDResult(NamedTuple):
    """What linalg.svd gives."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class LegacySVD(NamedTuple):
    """What the older svd gives."""

    U: Tensor
    S: Tensor
    V: Tensor


class Lstsq(NamedTuple):
    """What lstsq gives."""

    solution: Tensor
    residuals: Tensor
    rank: Tensor
    singular_values: Tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return PUBLIC["matmul"](a, b)


def _empty(x: Tensor) -> Tensor:
    return FULL(0, shape=(0,), dtype=x.dtype)


# -------------------------------------------------------------------- QR


@with_out
def qr(A: Tensor, mode: str = "reduced") -> QRResult:
    """Q R = A with orthonormal Q and upper triangular R; mode "reduced", "complete", or "r" (Q is then empty)."""
    a = matrices(A, "linalg.qr")
    if mode not in ("reduced", "complete", "r"):
        raise RuntimeError(
            f"qr received unrecognized mode '{mode}' but expected one of 'reduced' (default), 'r', or 'complete'"
        )
    if mode == "r":
        if a.requires_grad:
            raise RuntimeError(
                "The derivative of linalg.qr depends on Q, which is not computed when mode='r'. Please use "
                "linalg.qr(A, mode='reduced') if you are going to require gradients"
            )
        return QRResult(_empty(a), QR(a, mode="reduced")[1])
    if mode == "complete" and a.requires_grad and a.shape[-2] > a.shape[-1]:
        raise RuntimeError("The QR decomposition is not differentiable when mode='complete' and nrows > ncols")
    return QRResult(*QR(a, mode="reduced" if a.shape[-2] <= a.shape[-1] else mode))


@formed("qr")
def legacy_qr(input: Tensor, some: bool = True) -> QRResult:
    """The older form of linalg.qr: reduced, or complete with some=False."""
    return qr(input, "reduced" if some else "complete")


class Geqrf(NamedTuple):
    """What geqrf gives."""

    a: Tensor
    tau: Tensor


@formed()
def geqrf(input: Tensor) -> Geqrf:
    """Householder reflectors and their factors, as LAPACK has them; for householder_product and ormqr. Not differentiable."""
    return Geqrf(*GEQRF(matrices(input, "geqrf", "input")))


def _reflectors(A: Tensor, tau: Tensor, op: str) -> tuple[Tensor, Tensor]:
    a, t = matrices(A, op), tensor_operand(tau, op, "tau")
    m, n = a.shape[-2:]
    if m < n:
        raise RuntimeError(f"{op}: input.shape[-2] must be greater than or equal to input.shape[-1]")
    if t.ndim != a.ndim - 1 or t.shape[-1] > n:
        raise RuntimeError(
            f"{op}: input.shape[-1] must be greater than or equal to tau.shape[-1], and tau must have one dimension less: got "
            f"{list(a.shape)} and {list(t.shape)}"
        )
    if a.dtype is not t.dtype:
        raise RuntimeError(f"{op}: tau dtype {t.dtype!r} does not match input dtype {a.dtype!r}")
    if tuple(t.shape[:-1]) != tuple(a.shape[:-2]):
        raise RuntimeError(
            f"{op}: Expected batch dimensions of tau to be equal to input.shape[:-2], but got {list(t.shape[:-1])}"
        )
    low = PUBLIC["tril"](a, -1) + PUBLIC["eye"](m, n, dtype=a.dtype)
    return low, t


def _reflected(x: Tensor, v: Tensor, t: Tensor, k: int, conjugate: bool = False) -> Tensor:
    """(1 - t_k v_k v_k^H) x."""
    d = v.ndim
    u = take_slice(v, d - 1, k, k + 1)
    f = unsqueeze(take_slice(t, t.ndim - 1, k, k + 1), -1)
    return x - matmul(u * (f.conj() if conjugate and f.is_complex() else f), matmul(u.mH, x))  # type: ignore[attr-defined]


@with_out
def householder_product(A: Tensor, tau: Tensor) -> Tensor:
    """The first n columns of the product of Householder reflectors: Q of what geqrf gives."""
    v, t = _reflectors(A, tau, "linalg.householder_product")
    m, n = v.shape[-2:]
    q = EXPAND(PUBLIC["eye"](m, n, dtype=v.dtype), shape=tuple(v.shape))
    for k in reversed(range(t.shape[-1])):
        q = _reflected(q, v, t, k)
    return q


formed("orgqr")(householder_product)


@formed()
def ormqr(input: Tensor, tau: Tensor, other: Tensor, left: bool = True, transpose: bool = False) -> Tensor:
    """Q other (other Q with left=False; Q^T for Q if `transpose`), with Q the product of all reflectors of geqrf."""
    a, t = matrices(input, "ormqr", "input"), tensor_operand(tau, "ormqr", "tau")
    c = matrices(other, "ormqr", "other")
    k = t.shape[-1] if t.ndim else 0
    if t.ndim != a.ndim - 1 or k > a.shape[-1]:
        raise RuntimeError("ormqr: tau must have one dimension less than input, and no more elements than it has columns")
    if c.ndim != a.ndim or c.shape[-2 if left else -1] != a.shape[-2]:
        raise RuntimeError(
            f"ormqr: other.shape[{-2 if left else -1}] must be greater than or equal to tau.shape[-1] "
            f"and equal to input.shape[-2], "
            f"but got {list(c.shape)} and {list(a.shape)}"
        )
    if k != min(c.shape[-2 if left else -1], a.shape[-1]):
        raise RuntimeError(
            f"ormqr: tau.shape[-1] must be equal to min(other.shape[{-2 if left else -1}], input.shape[-1]), but got "
            f"{list(t.shape)}, {list(c.shape)} and {list(a.shape)}"
        )
    for what, x in (("tau", t), ("other", c)):
        if x.dtype is not a.dtype:
            raise RuntimeError(
                f"ormqr: Expected input and {what} to have the same dtype, but input "
                f"has dtype {a.dtype!r} and {what} "
                f"has dtype {x.dtype!r}"
            )
    m, n = a.shape[-2:]
    v = PUBLIC["tril"](take_slice(a, a.ndim - 1, 0, min(m, n)), -1) + PUBLIC["eye"](m, min(m, n), dtype=a.dtype)
    if not left:
        return ormqr(a, t, c.mH, True, not transpose).mH  # type: ignore[attr-defined]
    for i in range(k) if transpose else reversed(range(k)):
        c = _reflected(c, v, t, i, transpose)
    return c


# -------------------------------------------------------------------- eigenvalues


def _triangle(UPLO: str, op: str) -> bool:
    if not isinstance(UPLO, str) or UPLO.upper() not in ("L", "U"):
        raise RuntimeError(f"Expected UPLO argument to be 'L' or 'U', but got {UPLO}")
    return UPLO.upper() == "U"


@with_out
def eigh(A: Tensor, UPLO: str = "L") -> Eigh:
    """Eigenvalues (ascending) and eigenvectors of symmetric matrices, of which one triangle is read."""
    a = matrices(A, "linalg.eigh", square=True)
    return Eigh(*EIGH(a, upper=_triangle(UPLO, "linalg.eigh")))


@with_out
def eigvalsh(A: Tensor, UPLO: str = "L") -> Tensor:
    """Eigenvalues (ascending) of symmetric matrices."""
    a = matrices(A, "linalg.eigvalsh", square=True)
    return EIGH(a, upper=_triangle(UPLO, "linalg.eigvalsh"))[0]


class Eig(NamedTuple):
    """What eig gives."""

    eigenvalues: Tensor
    eigenvectors: Tensor


@with_out
def eig(A: Tensor) -> Eig:
    """Eigenvalues and eigenvectors of square matrices, complex. Eigenvectors are right up to a complex factor each; gradients
    are those of what does not depend on these factors."""
    a = matrices(A, "linalg.eig", square=True)
    return Eig(*registered("eig_complex")(a))


@with_out
def eigvals(A: Tensor) -> Tensor:
    """Eigenvalues of square matrices, complex."""
    return eig(A)[0]


# -------------------------------------------------------------------- singular values


@with_out
def svd(A: Tensor, full_matrices: bool = True, *, driver: str | None = None) -> SVDResult:
    """U diag(S) Vh = A, singular values in descending order; U and Vh square, or thin with full_matrices=False."""
    a = matrices(A, "linalg.svd")
    if driver is not None:
        raise RuntimeError("linalg.svd: keyword argument `driver=` is only supported on CUDA inputs with cuSOLVER backend.")
    return SVDResult(*SVD(a, full_matrices=bool(full_matrices)))


@with_out
def svdvals(A: Tensor, *, driver: str | None = None) -> Tensor:
    """Singular values in descending order."""
    return SVDVALS(matrices(A, "linalg.svdvals"))


@formed("svd")
def legacy_svd(input: Tensor, some: bool = True, compute_uv: bool = True) -> LegacySVD:
    """The older form: U diag(S) V^H = input, thin if `some`; without compute_uv U and V are zeros."""
    a = matrices(input, "svd", "input")
    if not compute_uv:
        m, n = a.shape[-2:]
        zeros = [FULL(0, shape=(*a.shape[:-2], k, k), dtype=a.dtype) for k in (m, n)]
        return LegacySVD(zeros[0], SVDVALS(a), zeros[1])
    u, s, v = SVD(a, full_matrices=not some)
    return LegacySVD(u, s, v.mH)  # type: ignore[attr-defined]


def _least(values: Tensor, a: Tensor, atol: Any, rtol: Any) -> Tensor:
    """What singular values count as 0: atol, or rtol times the largest, whichever is more; rtol is max(m, n) eps if neither
    is given."""
    top = PUBLIC["amax"](values, -1, True) if values.shape[-1] else PUBLIC["sum"](values, -1, True)
    if rtol is None:
        usual = epsilon(a.dtype) * max(a.shape[-2:])
        if atol is None:
            rtol = usual
        elif isinstance(atol, Tensor):
            rtol = WHERE(to_dtype(atol, values.dtype) > 0, 0.0, FULL(usual, shape=(), dtype=values.dtype))
        else:
            rtol = 0.0 if atol > 0 else usual
    relative = top * (unsqueeze(to_dtype(rtol, values.dtype), -1) if isinstance(rtol, Tensor) else float(rtol))
    absolute: Any = 0.0 if atol is None else atol
    absolute = unsqueeze(to_dtype(absolute, values.dtype), -1) if isinstance(absolute, Tensor) else float(absolute)
    return PUBLIC["maximum"](relative, absolute) if isinstance(absolute, Tensor) else PUBLIC["clamp"](relative, min=absolute)


def _spectrum(a: Tensor, hermitian: bool) -> Tensor:
    if hermitian:
        return PUBLIC["abs"](EIGH(a, upper=False)[0])
    return SVDVALS(a)


def _tolerances(tol: Any, atol: Any, rtol: Any, op: str) -> tuple[Any, Any]:
    for name, v in (("atol", atol), ("rtol", rtol), ("tol", tol)):
        if isinstance(v, Tensor) and v.dtype.kind == "c":
            raise RuntimeError(f"{op}: {name} tensor of complex type is not supported.")
    return (atol, rtol) if tol is None else (tol, 0.0)


@with_out
def matrix_rank(A: Tensor, tol: Any = None, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Tensor:
    """How many singular values are larger than max(atol, rtol * largest); int64."""
    a = matrices(A, "linalg.matrix_rank", square=hermitian)
    atol, rtol = _tolerances(tol, atol, rtol, "linalg.matrix_rank")
    lead = broadcast_shapes(tuple(a.shape[:-2]), *[tuple(t.shape) for t in (atol, rtol) if isinstance(t, Tensor)])
    values = _spectrum(a.detach(), hermitian)  # type: ignore[attr-defined]
    if 0 in a.shape[-2:]:
        return FULL(0, shape=lead, dtype=PUBLIC["arange"](0).dtype)
    return PUBLIC["sum"](values > _least(values, a, atol, rtol), -1)


@with_out
def pinv(A: Tensor, rcond: Any = None, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Tensor:
    """The Moore-Penrose pseudo-inverse; singular values up to max(atol, rtol * largest) count as 0."""
    a = matrices(A, "linalg.pinv", square=hermitian)
    rtol = rcond if rcond is not None else rtol
    if not isinstance(atol, Tensor) and not isinstance(rtol, Tensor):
        if rtol is None:
            rtol = epsilon(a.dtype) * max(a.shape[-2:]) if not atol else 0.0
        return PINV(a, atol=float(atol or 0.0), rtol=float(rtol), hermitian=bool(hermitian))
    if a.numel() == 0:
        return FULL(0, shape=(*a.shape[:-2], a.shape[-1], a.shape[-2]), dtype=a.dtype)
    if hermitian:
        w, v = EIGH(a, upper=False)
        size = PUBLIC["abs"](w)
        keep = size > _least(size.detach(), a, atol, rtol)
        inverse = WHERE(keep, 1.0 / WHERE(keep, w, 1.0), 0.0)
        return matmul(v * unsqueeze(inverse, -2), v.mH)
    u, s, vh = SVD(a, full_matrices=False)
    keep = s > _least(s.detach(), a, atol, rtol)
    inverse = WHERE(keep, 1.0 / WHERE(keep, s, 1.0), 0.0)
    return matmul(vh.mH * unsqueeze(inverse, -2), u.mH)


@formed()
def pinverse(input: Tensor, rcond: float = 1e-15) -> Tensor:
    """The pseudo-inverse; the older form of linalg.pinv."""
    return pinv(input, rcond=rcond)


_DRIVERS = ("gelsy", "gels", "gelsd", "gelss")


@with_out
def lstsq(A: Tensor, B: Tensor, rcond: float | None = None, *, driver: str | None = None) -> Lstsq:
    """The X that makes |A X - B| least, and among several the shortest.

    Residuals (of full-rank A with more rows than columns), ranks (not for driver "gels") and singular values ("gelsd",
    "gelss") are empty where PyTorch leaves them so. Computed through the singular value decomposition for every driver.
    """
    op = "linalg.lstsq"
    a, b = matrices(A, op), tensor_operand(B, op, "B")
    if driver is not None and driver not in _DRIVERS:
        raise RuntimeError(f"{op}: parameter `driver` should be one of (gels, gelsy, gelsd, gelss), not {driver}")
    driver = driver or "gelsy"
    if b.ndim < 1:
        raise RuntimeError(f"{op}: other must have at least 1 dimension.")
    same_dtype(a, b, op)
    vector = b.ndim == 1 or (a.ndim - 1 == b.ndim and tuple(a.shape[:-1]) == tuple(b.shape))
    b = unsqueeze(b, -1) if vector else b
    m, n = a.shape[-2:]
    if b.shape[-2] != m:
        raise RuntimeError(f"{op}: input.size(-2) should match other.size(-{1 if vector else 2})")
    a, b = batched(a, b, op)
    x = matmul(pinv(a, rtol=epsilon(a.dtype) * max(m, n) if rcond is None else rcond), b)
    rank = matrix_rank(a, rtol=epsilon(a.dtype) * max(m, n) if rcond is None else rcond)
    real = a.dtype.to_real()
    residuals = to_dtype(_empty(a), real)
    if m > n and driver != "gelsy" and (driver == "gels" or bool((rank == n).all())):
        off = matmul(a, x) - b
        residuals = PUBLIC["sum"](PUBLIC["square"](PUBLIC["abs"](off)), -2)
        residuals = RESHAPE(residuals, shape=tuple(residuals.shape)[:-1]) if vector else residuals
    values = SVDVALS(a.detach()) if driver in ("gelsd", "gelss") else to_dtype(_empty(a), real)
    x = RESHAPE(x, shape=tuple(x.shape)[:-1]) if vector else x
    return Lstsq(x, residuals, rank if driver != "gels" else to_dtype(_empty(a), rank.dtype), values)


# -------------------------------------------------------------------- low rank


def _approximate_basis(a: Tensor, q: int, niter: int, mean: Any) -> Tensor:
    """Orthonormal columns whose span holds most of A's, by random products and subspace iteration (N. Halko et al., 2009)."""
    times = (lambda x: matmul(a, x)) if mean is None else (lambda x: matmul(a, x) - matmul(mean, x))
    back = lambda x: matmul(a.mH, x) if mean is None else matmul(a.mH, x) - matmul(mean.mH, x)
    draw = PUBLIC["randn"](*a.shape[:-2], a.shape[-1], q, dtype=a.dtype)
    basis = QR(times(draw), mode="reduced")[0]
    for _ in range(niter):
        basis = QR(times(QR(back(basis), mode="reduced")[0]), mode="reduced")[0]
    return basis


def svd_lowrank(A: Tensor, q: int | None = 6, niter: int | None = 2, M: Any = None) -> tuple:
    """Approximate U, S, V of the q largest singular values, of A - M if M is given, by a random projection (N. Halko et al.,
    2009)."""
    a = matrices(A, "svd_lowrank")
    q = 6 if q is None else q
    mean = None if M is None else EXPAND(M, shape=tuple(a.shape))
    tall = a.shape[-2] >= a.shape[-1]
    x = a if tall else a.mH  # type: ignore[attr-defined]
    shift = mean if mean is None or tall else mean.mH  # type: ignore[attr-defined]
    basis = _approximate_basis(x, q, 2 if niter is None else niter, shift)
    small = matmul(basis.mH, x) - (matmul(basis.mH, shift) if shift is not None else 0.0)  # type: ignore[attr-defined]
    u, s, vh = SVD(small, full_matrices=False)
    u, v = matmul(basis, u), vh.mH
    return (u, s, v) if tall else (v, s, u)


def pca_lowrank(A: Tensor, q: int | None = None, center: bool = True, niter: int = 2) -> tuple:
    """Principal components: svd_lowrank of A, its columns' means taken off if `center`. q is at most min(m, n), 6 by default."""
    a = matrices(A, "pca_lowrank")
    m, n = a.shape[-2:]
    q = min(6, m, n) if q is None else q
    if not 0 <= q <= min(m, n):
        raise ValueError(f"q(={q}) must be non-negative integer and not greater than min(m, n)={min(m, n)}")
    if niter < 0:
        raise ValueError(f"niter(={niter}) must be non-negative integer")
    return svd_lowrank(a - PUBLIC["mean"](a, -2, True) if center else a, q, niter)


PUBLIC.update(svd_lowrank=svd_lowrank, pca_lowrank=pca_lowrank)
