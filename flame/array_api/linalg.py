"""The standard's linear algebra: the products of the main namespace and its `linalg` extension."""

from __future__ import annotations

from typing import Any, NamedTuple

from flame import linalg
from flame.array_api.data_types import array, of_kind, together
from flame.array_api.elementwise import matrix_transpose
from flame.array_api.reductions import sum as sum_of
from flame.dtypes import dtype as DType
from flame.functions import PUBLIC
from flame.functions.promotion import to_dtype
from flame.primitive import registered
from flame.tensor import Tensor


class EighResult(NamedTuple):
    eigenvalues: Tensor
    eigenvectors: Tensor


class QRResult(NamedTuple):
    Q: Tensor
    R: Tensor


class SlogdetResult(NamedTuple):
    sign: Tensor
    logabsdet: Tensor


class SVDResult(NamedTuple):
    U: Tensor
    S: Tensor
    Vh: Tensor


def _floating(x: Any, op: str, least: int = 2) -> Tensor:
    t = of_kind(x, "fc", op)
    if t.ndim < least:
        raise ValueError(f"{op}: expected at least {least} dimensions, but got {list(t.shape)}")
    return t


def _square(x: Any, op: str) -> Tensor:
    t = _floating(x, op)
    if t.shape[-1] != t.shape[-2]:
        raise ValueError(f"{op}: expected square matrices, but got {list(t.shape)}")
    return t


def matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """Matrix products; vectors count as rows on the left and columns on the right. Raises ValueError for shapes that do not fit."""
    a, b = together("matmul", "iufc", array(x1, "matmul", "x1"), array(x2, "matmul", "x2"))
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else -1]:
        raise ValueError(f"matmul: the shapes {list(a.shape)} and {list(b.shape)} do not fit")
    return PUBLIC["matmul"](a, b)


def tensordot(x1: Tensor, x2: Tensor, /, *, axes: Any = 2) -> Tensor:
    """Sums of products over the last `axes` axes of x1 and the first of x2, or over the pairs of axes given."""
    a, b = together("tensordot", "iufc", array(x1, "tensordot", "x1"), array(x2, "tensordot", "x2"))
    return PUBLIC["tensordot"](a, b, axes if isinstance(axes, int) else tuple(list(s) for s in axes))


def vecdot(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """Inner products along an axis, of the conjugate of x1 and x2.

    Raises ValueError where the axis is not counted from the end (the arrays broadcast in front of it) or its sizes differ.
    """
    a, b = together("vecdot", "iufc", array(x1, "vecdot", "x1"), array(x2, "vecdot", "x2"))
    least = min(a.ndim, b.ndim)
    if axis >= 0:
        raise ValueError(f"vecdot: axis must be negative, got {axis}")
    if axis < -least:
        raise IndexError(f"vecdot: axis {axis} is out of bounds for arrays of {a.ndim} and {b.ndim} dimensions")
    if a.shape[axis] != b.shape[axis]:
        raise ValueError(f"vecdot: the sizes of axis {axis} differ: {a.shape[axis]} and {b.shape[axis]}")
    a, b = PUBLIC["movedim"](a, axis, -1), PUBLIC["movedim"](b, axis, -1)
    a = registered("conjugate")(a) if a.dtype.kind == "c" else a
    return to_dtype((a * b).sum(-1), a.dtype)


def cholesky(x: Tensor, /, *, upper: bool = False) -> Tensor:
    """The triangular factor of positive definite matrices, which is read from the one triangle."""
    return linalg.cholesky(_square(x, "cholesky"), upper=upper)


def cross(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """Cross products along an axis of size 3."""
    a, b = together("cross", "iufc", array(x1, "cross", "x1"), array(x2, "cross", "x2"))
    least = min(a.ndim, b.ndim)
    if not -least <= axis < least:
        raise IndexError(f"cross: axis {axis} is out of bounds for arrays of {a.ndim} and {b.ndim} dimensions")
    if a.shape[axis] != 3 or b.shape[axis] != 3:
        raise ValueError(f"cross: axis {axis} must have size 3, but has {a.shape[axis]} and {b.shape[axis]}")
    return linalg.cross(*PUBLIC["broadcast_tensors"](a, b), dim=axis)


def det(x: Tensor, /) -> Tensor:
    return linalg.det(_square(x, "det"))


def diagonal(x: Tensor, /, *, offset: int = 0) -> Tensor:
    """The diagonals of matrices, as a last axis."""
    if array(x, "diagonal").ndim < 2:
        raise ValueError(f"diagonal: expected at least 2 dimensions, but got {list(x.shape)}")
    return linalg.diagonal(x, offset=offset)


def eigh(x: Tensor, /) -> EighResult:
    """Eigenvalues in ascending order, and eigenvectors, of symmetric or Hermitian matrices."""
    return EighResult(*linalg.eigh(_square(x, "eigh")))


def eigvalsh(x: Tensor, /) -> Tensor:
    return linalg.eigvalsh(_square(x, "eigvalsh"))


def inv(x: Tensor, /) -> Tensor:
    return linalg.inv(_square(x, "inv"))


def matrix_norm(x: Tensor, /, *, keepdims: bool = False, ord: Any = "fro") -> Tensor:
    return linalg.matrix_norm(_floating(x, "matrix_norm"), ord, keepdim=keepdims)


def matrix_power(x: Tensor, n: int, /) -> Tensor:
    return linalg.matrix_power(_square(x, "matrix_power"), n)


def matrix_rank(x: Tensor, /, *, rtol: Any = None) -> Tensor:
    """How many singular values are above rtol times the largest."""
    return linalg.matrix_rank(_floating(x, "matrix_rank"), rtol=rtol)


def outer(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The products of all pairs of elements of two vectors."""
    a, b = together("outer", "iufc", array(x1, "outer", "x1"), array(x2, "outer", "x2"))
    if a.ndim != 1 or b.ndim != 1:
        raise ValueError(f"outer: expected vectors, but got {list(a.shape)} and {list(b.shape)}")
    return a.reshape(-1, 1) * b


def pinv(x: Tensor, /, *, rtol: Any = None) -> Tensor:
    return linalg.pinv(_floating(x, "pinv"), rtol=rtol)


def qr(x: Tensor, /, *, mode: str = "reduced") -> QRResult:
    if mode not in ("reduced", "complete"):
        raise ValueError(f'qr: mode must be "reduced" or "complete", got {mode!r}')
    return QRResult(*linalg.qr(_floating(x, "qr"), mode))


def slogdet(x: Tensor, /) -> SlogdetResult:
    return SlogdetResult(*linalg.slogdet(_square(x, "slogdet")))


def solve(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The x with x1 x = x2. x2 is a vector only if it has one dimension; else matrices, whose batches broadcast."""
    a, b = together("solve", "fc", array(x1, "solve", "x1"), array(x2, "solve", "x2"))
    _square(a, "solve")
    if b.ndim == 1:
        return linalg.solve(a, PUBLIC["unsqueeze"](b, -1)).squeeze(-1)
    if b.ndim < 1 or b.shape[-2] != a.shape[-1]:
        raise ValueError(f"solve: {list(a.shape)} and {list(b.shape)} do not fit")
    lead = PUBLIC["broadcast_shapes"](tuple(a.shape)[:-2], tuple(b.shape)[:-2])
    return linalg.solve(
        PUBLIC["broadcast_to"](a, (*lead, *tuple(a.shape)[-2:])), PUBLIC["broadcast_to"](b, (*lead, *tuple(b.shape)[-2:]))
    )


def svd(x: Tensor, /, *, full_matrices: bool = True) -> SVDResult:
    return SVDResult(*linalg.svd(_floating(x, "svd"), full_matrices))


def svdvals(x: Tensor, /) -> Tensor:
    return linalg.svdvals(_floating(x, "svdvals"))


def trace(x: Tensor, /, *, offset: int = 0, dtype: DType | None = None) -> Tensor:
    """Sums of the diagonals of matrices; of integers in int64 or uint64."""
    return sum_of(diagonal(of_kind(x, "iufc", "trace"), offset=offset), axis=-1, dtype=dtype)


def vector_norm(x: Tensor, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Tensor:
    """Norms of vectors along axes; of all elements if axis is None."""
    t = of_kind(x, "fc", "vector_norm")
    if axis == ():
        return PUBLIC["abs"](t) if ord != 0 else PUBLIC["ne"](t, 0).to(t.dtype.to_real())
    return linalg.vector_norm(t, ord, axis, keepdims)


__all__ = [
    "cholesky", "cross", "det", "diagonal", "eigh", "eigvalsh", "inv", "matmul", "matrix_norm", "matrix_power", "matrix_rank",
    "matrix_transpose", "outer", "pinv", "qr", "slogdet", "solve", "svd", "svdvals", "tensordot", "trace", "vecdot",
    "vector_norm",
]  # fmt: skip
