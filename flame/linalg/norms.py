"""Norms of vectors and matrices, and condition numbers."""

from __future__ import annotations

import math
from typing import Any

from flame.dtypes import dtype as DType
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import with_out
from flame.functions.promotion import number, to_dtype
from flame.functions.shape import RESHAPE, wrap_dims
from flame.linalg.arguments import floating_tensor, matrices, two_dims
from flame.primitive import registered
from flame.tensor import Tensor

SVDVALS, INVERSE = registered("svdvals"), registered("inverse")


def _converted(x: Tensor, d: DType | None, op: str) -> Tensor:
    if d is None:
        return x
    if d.kind not in "fc":
        raise RuntimeError(f"{op}: dtype should be floating point or complex, but got {d!r}")
    if d.kind != x.dtype.kind:
        raise RuntimeError(
            f"{op}: dtype should be {'complex' if x.dtype.kind == 'c' else 'real'} for a {x.dtype!r} input, but got {d!r}"
        )
    if d.itemsize < x.dtype.itemsize:
        raise RuntimeError(
            f"{op}: the dtype of the input ({x.dtype!r}) should be convertible without narrowing to the specified dtype ({d!r})"
        )
    return to_dtype(x, d)


@with_out
def vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Tensor:
    """The norm of order `ord` (a number, infinities among them) over `dim`, or of all elements."""
    t = _converted(floating_tensor(x, "linalg.vector_norm", "x"), dtype, "linalg.vector_norm")
    p = number(ord)
    if p is None:
        raise TypeError(f"linalg_vector_norm(): argument 'ord' must be Number, not {type(ord).__name__}")
    dims = wrap_dims(dim, t.ndim, "linalg.vector_norm")
    return PUBLIC["norm"](t, p, None if dim is None else dims, keepdim)


def _two_norms(x: Tensor, dims: tuple[int, int], keepdim: bool, how: Any) -> Tensor:
    """A function of the singular values over two dimensions."""
    rest = [d for d in range(x.ndim) if d not in dims]
    y = how(SVDVALS(PUBLIC["permute"](x, (*rest, *dims))))
    return RESHAPE(y, shape=tuple(1 if d in dims else n for d, n in enumerate(x.shape))) if keepdim else y


@with_out
def matrix_norm(
    A: Tensor, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: DType | None = None
) -> Tensor:
    """The norm of matrices over two dimensions: "fro", "nuc", 1, -1, 2, -2, inf or -inf."""
    op = "linalg.matrix_norm"
    x = _converted(floating_tensor(A, op), dtype, op)
    if x.ndim < 2:
        raise RuntimeError(f"{op}: The input tensor A must have at least 2 dimensions.")
    a, b = two_dims(dim, x.ndim, op)
    if isinstance(ord, str):
        if ord == "fro":
            return vector_norm(x, 2, (a, b), keepdim)
        if ord == "nuc":
            return _two_norms(matrices(x, op), (a, b), keepdim, lambda s: PUBLIC["sum"](s, -1))
        raise RuntimeError(f"{op}: Order {ord} not supported.")
    p = number(ord)
    if p is None or abs(p) not in (1, 2, math.inf):
        raise RuntimeError(f"{op}: Order {ord} not supported.")
    pick = PUBLIC["amax"] if p > 0 else PUBLIC["amin"]
    if abs(p) == 2:
        return _two_norms(matrices(x, op), (a, b), keepdim, lambda s: pick(s, -1))
    if abs(p) == math.inf:
        a, b = b, a
    return pick(vector_norm(x, 1, a, True), b, True) if keepdim else pick(vector_norm(x, 1, a), b - 1 if b > a else b)


@with_out
def norm(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Tensor:
    """A vector or matrix norm: of vectors over one dimension, of matrices over two; without `ord` the 2-norm of all elements."""
    x = floating_tensor(A, "linalg.norm")
    if dim is not None and not isinstance(dim, int):
        if len(dim) not in (1, 2) and ord is not None:
            raise RuntimeError(f"linalg.norm: If dim is specified, it must be of length 1 or 2. Got {list(dim)}")
    elif dim is None and ord is not None and x.ndim not in (1, 2):
        raise RuntimeError(f"linalg.norm: If dim is not specified but ord is, the input must be 1D or 2D. Got {x.ndim}D.")
    if ord is not None and ((not isinstance(dim, int) and dim is not None and len(dim) == 2) or (dim is None and x.ndim == 2)):
        return matrix_norm(x, ord, (0, 1) if dim is None else dim, keepdim, dtype=dtype)
    if isinstance(ord, str):
        raise RuntimeError(f"linalg.norm: order {ord!r} is one of matrices, but dim names one dimension (or the input is 1D)")
    return vector_norm(x, 2 if ord is None else ord, dim, keepdim, dtype=dtype)


@with_out
def cond(A: Tensor, p: Any = None) -> Tensor:
    """The condition number by the norm `p`: None and 2 divide the largest singular value by the smallest."""
    a = matrices(A, "linalg.cond")
    if p is None or p in (2, -2):
        s = SVDVALS(a)
        if a.shape[-1] == 0 or a.shape[-2] == 0:
            return PUBLIC["zeros"](tuple(a.shape[:-2]), dtype=s.dtype)
        first, last = PUBLIC["select"](s, -1, 0), PUBLIC["select"](s, -1, -1)
        return last / first if p == -2 else first / last
    if a.shape[-1] != a.shape[-2]:
        raise RuntimeError(
            f"linalg.cond with {p} norm type: A must be batches of square matrices, but they are {a.shape[-2]} by "
            f"{a.shape[-1]} matrices"
        )
    if isinstance(p, str) and p not in ("fro", "nuc"):
        raise RuntimeError(f"linalg.cond got an invalid norm type: {p}")
    if not isinstance(p, str) and abs(p) not in (1, math.inf):
        raise RuntimeError(f"linalg.cond got an invalid norm type: {p}")
    if a.numel() == 0:
        return PUBLIC["zeros"](tuple(a.shape[:-2]), dtype=a.dtype)
    inverse, info = INVERSE(a, check=False)
    y = matrix_norm(a, p) * matrix_norm(inverse, p)
    return registered("where")(info > 0, math.inf, y)
