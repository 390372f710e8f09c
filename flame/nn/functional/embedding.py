"""Rows of tables: `embedding`, and `embedding_bag`, which adds up (or averages, or takes maxima of) several rows each."""

from __future__ import annotations

from typing import Any

import numpy as np

from flame import dtypes
from flame.autograd.modes import no_grad
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.taking import typed
from flame.primitive import beside, composite, registered
from flame.tensor import Tensor

INDEX_SELECT, WHERE, INDEX_ADD, SUM, ARGMAX, GATHER, MAXIMUM = map(
    registered, ("index_select", "where", "index_add", "sum", "argmax", "gather", "maximum")
)


def _places(input: Any, op: str) -> Tensor:
    """Integers that name rows, as int64."""
    i = tensor_operand(input, op)
    if i.dtype.name not in ("int64", "int32"):
        raise RuntimeError(
            f"Expected tensor for argument #1 'indices' to have one of the following scalar types: Long, Int; but got {i.dtype!r}"
            f" instead (while checking arguments for {op})"
        )
    return to_dtype(i, dtypes.int64)


def _padding(padding_idx: int | None, weight: Tensor) -> int | None:
    if padding_idx is None:
        return None
    n = weight.shape[0]
    if not -n <= padding_idx < n:
        raise AssertionError(f"Padding_idx must be within num_embeddings: got {padding_idx} for {n} rows")
    return padding_idx % n


def _renormalised(weight: Tensor, i: Tensor, max_norm: float, norm_type: float) -> None:
    """Scale the rows that are named, in place, to at most `max_norm`."""
    with no_grad():
        rows = INDEX_SELECT(weight, i.reshape(-1), dim=0)
        norm = PUBLIC["norm"](rows, norm_type, 1, True)
        weight.index_copy_(0, i.reshape(-1), WHERE(norm > max_norm, rows * (max_norm / (norm + 1e-7)), rows))


def _by_frequency(rows: Tensor, i: Tensor, count: int) -> Tensor:
    """Rows whose gradients are divided by how often each is named."""
    with no_grad():
        ones = PUBLIC["ones"](i.numel(), dtype=rows.dtype)
        times = INDEX_ADD(PUBLIC["zeros"](count, dtype=rows.dtype), i.reshape(-1), ones, dim=0)
        share = (1.0 / INDEX_SELECT(times, i, dim=0)).unsqueeze(-1)
    return rows * share + (rows - rows * share).detach()


def _refuse_sparse(sparse: bool, op: str) -> None:
    if sparse:
        raise RuntimeError(
            f"{op}: sparse=True is not supported, since flame has no sparse tensors: gradients are dense, with sparse=False"
        )


@composite
def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """The rows of `weight` [rows, width] that integers [..] name -> [.., width]. The row `padding_idx` gets no gradient.

    With `max_norm` the rows that are named are first scaled to at most that norm, in place; with `scale_grad_by_freq` gradients
    are divided by how often a row is named. Raises RuntimeError for other than integers and for `sparse`.
    """
    i = _places(input, "embedding")
    _refuse_sparse(sparse, "embedding")
    if weight.ndim != 2:
        raise RuntimeError(f"embedding: 'weight' must be 2-D, but got {list(weight.shape)}")
    padding_idx = _padding(padding_idx, weight)
    if max_norm is not None:
        _renormalised(weight, i, max_norm, norm_type)
    out = INDEX_SELECT(weight, i, dim=0)
    if not weight.requires_grad:
        return out
    if scale_grad_by_freq:
        out = _by_frequency(out, i, weight.shape[0])
    if padding_idx is not None:
        out = WHERE((i == padding_idx).unsqueeze(-1), out.detach(), out)
    return out


# -------------------------------------------------------------------- bags


def _bags(offsets: Any, length: int, last: bool) -> list[int]:
    """Where each bag begins, and the end of the last: checked offsets."""
    o = tensor_operand(offsets, "embedding_bag", "offsets")
    if o.ndim != 1 or o.dtype.name not in ("int64", "int32"):
        raise ValueError(f"offsets has to be a 1D Tensor of integers, but got {list(o.shape)} of {o.dtype!r}")
    at = [int(v) for v in o.tolist()]
    if last and not at:
        raise ValueError("include_last_offset: number of offset should be at least 1")
    if at and at[0] != 0:
        raise RuntimeError(
            f"offsets[0] has to be 0, i.e., the first sequence in the mini-batch has to start from position 0, got {at[0]}"
        )
    ends = at if last else [*at, length]
    if any(a > b for a, b in zip(ends, ends[1:], strict=False)) or (ends and ends[-1] > length):
        raise RuntimeError(f"offsets have to grow up to the input's length {length}, but got {at}")
    return ends


@beside
@typed
def embedding_bag(
    input: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None, norm_type: float = 2,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False, per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor:  # fmt: skip
    """The sum, mean or max of the rows in each bag -> [bags, width]; an empty bag gives zeros.

    input [bags, size], or [n] with the places where bags begin in `offsets`. `per_sample_weights`, of the input's shape, multiply
    rows (mode "sum"). Rows at `padding_idx` are left out. Raises ValueError and RuntimeError as PyTorch does.
    """
    i = _places(input, "embedding_bag")
    _refuse_sparse(sparse, "embedding_bag")
    if weight.ndim != 2:
        raise ValueError(f"weight has to be a 2D Tensor, but got Tensor of dimension {weight.ndim}")
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f"mode has to be one of sum, mean or max, got {mode!r}")
    if per_sample_weights is not None:
        if mode != "sum":
            raise NotImplementedError(
                "embedding_bag: per_sample_weights was not None. per_sample_weights is only supported for mode='sum' (got "
                f"mode='{mode}')."
            )
        if per_sample_weights.shape != i.shape:
            raise ValueError(
                f"embedding_bag: If per_sample_weights ({list(per_sample_weights.shape)}) is not None, then it must have the same "
                f"shape as the input ({list(i.shape)})"
            )
    if scale_grad_by_freq and mode == "max":
        raise RuntimeError("embedding_bag: scale_grad_by_freq is only supported for modes 'sum' and 'mean'")
    if i.ndim == 2:
        if offsets is not None:
            raise ValueError(
                "if input is 2D, then offsets has to be None, as input is treated is a mini-batch of fixed length sequences. "
                f"However, found offsets of type {type(offsets)}"
            )
        counts = [i.shape[1]] * i.shape[0]
        i = i.reshape(-1)
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.reshape(-1)
    elif i.ndim == 1:
        if offsets is None:
            raise ValueError("offsets has to be a 1D Tensor but got None")
        ends = _bags(offsets, i.shape[0], include_last_offset)
        counts = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        if sum(counts) < i.shape[0]:  # what stands behind the last offset belongs to no bag
            i = i[: sum(counts)]
            per_sample_weights = None if per_sample_weights is None else per_sample_weights[: sum(counts)]
    else:
        raise ValueError(f"input has to be 1D or 2D Tensor, but got Tensor of dimension {i.ndim}")
    padding_idx = _padding(padding_idx, weight)
    if max_norm is not None:
        _renormalised(weight, i, max_norm, norm_type)
    rows = INDEX_SELECT(weight, i, dim=0)
    if scale_grad_by_freq and weight.requires_grad:
        rows = _by_frequency(rows, i, weight.shape[0])
    keep = None if padding_idx is None else (i != padding_idx).unsqueeze(-1)
    if mode == "max":
        return _largest(rows, keep, counts)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if keep is not None:
        rows = WHERE(keep, rows, 0.0)
    bag = PUBLIC["tensor"](np.repeat(np.arange(len(counts)), counts))
    total = INDEX_ADD(PUBLIC["zeros"](len(counts), weight.shape[1], dtype=weight.dtype), bag, rows, dim=0)
    if mode == "sum":
        return total
    if keep is None:
        sizes = PUBLIC["tensor"](np.maximum(counts, 1).reshape(-1, 1), dtype=weight.dtype)
    else:
        ones = to_dtype(keep, weight.dtype)
        sizes = INDEX_ADD(PUBLIC["zeros"](len(counts), 1, dtype=weight.dtype), bag, ones, dim=0)
        sizes = MAXIMUM(sizes, 1.0)
    return total / sizes


def _largest(rows: Tensor, keep: Tensor | None, counts: list[int]) -> Tensor:
    """The first largest element of each column in each bag; zeros for a bag without rows."""
    starts = np.cumsum([0, *counts])[:-1]
    longest = max(counts, default=0)
    width = rows.shape[1]
    if not longest:
        return PUBLIC["zeros"](len(counts), width, dtype=rows.dtype)
    within = np.arange(longest)[None, :]
    inside = within < np.asarray(counts).reshape(-1, 1)
    where = PUBLIC["tensor"](np.where(inside, starts[:, None] + within, 0))
    mask = PUBLIC["tensor"](inside).unsqueeze(-1)
    if keep is not None:
        mask = mask & INDEX_SELECT(keep, where, dim=0)
    values = WHERE(mask, INDEX_SELECT(rows, where, dim=0), float("-inf"))  # [bags, longest, width]
    at = ARGMAX(values.detach(), dim=(1,), keepdim=True)
    best = GATHER(values, at, dim=1).squeeze(1)
    return WHERE(mask.any(1), best, 0.0)
