"""How matrices are taken from arguments: checked, promoted, batches broadcast."""

from __future__ import annotations

from typing import Any

from flame import dtypes
from flame.functions.promotion import tensor_operand
from flame.functions.shape import EXPAND, wrap_dim
from flame.primitive import broadcast_shapes
from flame.tensor import Tensor


def floating_tensor(x: Any, op: str, place: str = "A") -> Tensor:
    """A tensor of a floating dtype. Raises RuntimeError for others."""
    t = tensor_operand(x, op, place)
    if t.dtype.kind not in "fc":
        raise NotImplementedError(f"{op}: Expected a floating point or complex tensor as input. Got {t.dtype!r}")
    return t


def matrices(x: Any, op: str, place: str = "A", *, square: bool = False) -> Tensor:
    """A tensor of at least two dimensions, float32 or float64. Raises RuntimeError for others."""
    t = floating_tensor(x, op, place)
    if t.ndim < 2:
        raise RuntimeError(f"{op}: The input tensor {place} must have at least 2 dimensions.")
    if t.dtype.is_narrow_float:
        raise NotImplementedError(
            f'"{op}" not implemented for {t.dtype!r}: Low precision dtypes not supported. Got {t.dtype!r}'
        )
    if square and t.shape[-1] != t.shape[-2]:
        raise RuntimeError(
            f"{op}: {place} must be batches of square matrices, but they are {t.shape[-2]} by {t.shape[-1]} matrices"
        )
    return t


def same_dtype(a: Tensor, b: Tensor, op: str) -> None:
    if a.dtype is not b.dtype:
        raise RuntimeError(
            f"{op}: Expected A and B to have the same dtype, but found A of type {a.dtype!r} and B of type {b.dtype!r}"
        )


def batched(a: Tensor, b: Tensor, op: str) -> tuple[Tensor, Tensor]:
    """Two batches of matrices with their batch dimensions broadcast."""
    lead = broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]), op=op)
    return EXPAND(a, shape=(*lead, *a.shape[-2:])), EXPAND(b, shape=(*lead, *b.shape[-2:]))


def two_dims(dim: Any, ndim: int, op: str) -> tuple[int, int]:
    if not isinstance(dim, tuple | list) or len(dim) != 2:
        raise RuntimeError(f"{op}: dim must be a 2-tuple. Got {dim}")
    a, b = wrap_dim(dim[0], ndim, op), wrap_dim(dim[1], ndim, op)
    if a == b:
        raise RuntimeError(f"{op}: dims must be different. Got ({dim[0]}, {dim[1]})")
    return a, b


def epsilon(d: dtypes.dtype) -> float:
    return 2.0**-52 if d.itemsize == (16 if d.kind == "c" else 8) else 2.0**-23
