"""Distances of rows, and slices limited in length."""

from __future__ import annotations

import builtins
from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.reduction import sum
from flame.functions.shape import unsqueeze, wrap_dim
from flame.precision import precise
from flame.primitive import registered
from flame.tensor import Tensor

WHERE = registered("where")
SQRT = registered("sqrt")
CUMMAX, CUMMIN, CUMSUM = registered("cummax_index"), registered("cummin_index"), registered("cumsum")


def safe_root(squares: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0."""
    zero = squares == 0
    return WHERE(zero, 0.0, SQRT(WHERE(zero, 1.0, squares)))


@formed(inplace=True)
def renorm(input: Tensor, p: Any, dim: int, maxnorm: Any) -> Tensor:
    """Slices along `dim` scaled down where their p-norm is larger than `maxnorm`."""
    x = tensor_operand(input, "renorm")
    if p <= 0:
        raise RuntimeError("renorm: non-positive-norm not supported")
    if x.ndim < 2:
        raise RuntimeError(f"renorm: input needs at least 2 dimensions, got {x.ndim} dimensions")
    if maxnorm < 0:
        raise RuntimeError(f"renorm: expected maxnorm to be >= 0 but got {maxnorm}")
    d = wrap_dim(dim, x.ndim, "renorm")
    others = tuple(i for i in builtins.range(x.ndim) if i != d)
    length = PUBLIC["norm"](x, p, others, True)
    return x * WHERE(length > float(maxnorm), float(maxnorm) / (length + 1e-7), 1.0)


@precise
def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = "use_mm_for_euclid_dist_if_necessary") -> Tensor:
    """The p-norm distances of each row of x1 [.., n, k] to each of x2 [.., m, k]: [.., n, m], batches broadcasting.

    p = 2 of more than 25 rows goes through one matrix product, unless `compute_mode` is "donot_use_mm_for_euclid_dist".
    """
    a, b = tensor_operand(x1, "cdist", "x1"), tensor_operand(x2, "cdist", "x2")
    modes = ("use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist", None)
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        raise RuntimeError(f"cdist only supports floating-point dtypes, X1 got: {a.dtype!r}")
    if a.ndim < 2 or b.ndim < 2:
        raise RuntimeError(f"cdist only supports at least 2D tensors, X1 got: {a.ndim}D, X2 got: {b.ndim}D")
    if a.shape[-1] != b.shape[-1]:
        raise RuntimeError(f"X1 and X2 must have the same number of columns. X1: {a.shape[-1]} X2: {b.shape[-1]}")
    if p < 0:
        raise RuntimeError("cdist only supports non-negative p values")
    if compute_mode not in modes:
        raise ValueError(f"{compute_mode} is not a valid value for compute_mode")
    many = a.shape[-2] > 25 or b.shape[-2] > 25
    if p == 2 and (compute_mode == modes[1] or (compute_mode in (modes[0], None) and many)):
        squares = sum(a * a, -1, True) + unsqueeze(sum(b * b, -1), -2)
        return safe_root(PUBLIC["clamp"](squares - PUBLIC["matmul"](a * 2.0, PUBLIC["transpose"](b, -2, -1)), min=0.0))
    apart = unsqueeze(a, -2) - unsqueeze(b, -3)
    if a.shape[-1] == 0:
        return sum(apart, -1)
    if p == 0:
        return sum(to_dtype(apart != 0, apart.dtype), -1) + sum(apart * 0.0, -1)
    return PUBLIC["norm"](apart, p, -1)


PUBLIC["cdist"] = cdist
