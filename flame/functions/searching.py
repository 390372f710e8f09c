"""Finding elements: places in sorted rows, membership, distinct elements, positions of what is not zero."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed
from flame.functions.promotion import number, operand, promoted, result_type, tensor_operand, to_dtype
from flame.functions.shape import RESHAPE, as_shape, take_slice, wrap_dim
from flame.functions.taking import typed
from flame.primitive import registered
from flame.tensor import Tensor, beside

FULL, WHERE, SEARCHSORTED, SORT, ARGSORT, INDEX_SELECT, IOTA, GATHER = map(
    registered, ("full", "where", "searchsorted", "sort", "argsort", "index_select", "iota", "gather")
)


def _right(right: bool, side: str | None, op: str) -> bool:
    if side is None:
        return bool(right)
    if side not in ("left", "right"):
        raise RuntimeError(f"{op}(): side can only be 'left' or 'right' but got {side}")
    if right and side == "left":
        raise RuntimeError(f"{op}(): side and right can't be set to opposites, got side of left while right was True")
    return side == "right"


def _places(rows: Tensor, values: Any, right: bool, out_int32: bool, op: str) -> Tensor:
    if isinstance(values, Tensor):
        x = values
    else:
        v = number(values)
        if v is None:
            raise TypeError(f"{op}(): argument 'input' must be Tensor or Number, not {type(values).__name__}")
        keeps = rows.dtype.kind == "f" or type(v) is not float
        x = FULL(v, shape=(), dtype=rows.dtype if keeps else dtypes.get_default_dtype())
    if x.dtype is not rows.dtype:
        if isinstance(values, Tensor):
            raise RuntimeError(
                f"torch.{op}(): boundary tensor and input value tensor should have same dtype, but got boundary tensor dtype "
                f"{rows.dtype!r} and input value tensor dtype {x.dtype!r}".replace("torch.", "")
            )
        d = result_type(rows, x)
        rows, x = to_dtype(rows, d), to_dtype(x, d)
    if x.ndim == 0:
        if rows.ndim != 1:
            raise RuntimeError(
                f"{op}(): input value can be a scalar only when boundaries tensor dimension is 1, but we got boundaries tensor "
                f"dim({rows.ndim})"
            )
        y = RESHAPE(SEARCHSORTED(rows.detach(), RESHAPE(x, shape=(1,)).detach(), right=right), shape=())
    else:
        y = SEARCHSORTED(rows.detach(), x.detach(), right=right)
    return to_dtype(y, dtypes.int32) if out_int32 else y


@formed(method=False)
def searchsorted(
    sorted_sequence: Tensor,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Tensor:
    """Where each element would be put into the sorted last dimension of `sorted_sequence`: before equals, or behind them if
    `right`. `sorter` (of argsort) says what the order of an unsorted sequence is."""
    rows = tensor_operand(sorted_sequence, "searchsorted", "sorted_sequence")
    after = _right(right, side, "searchsorted")
    if rows.ndim == 0:
        raise RuntimeError("searchsorted(): boundaries tensor should have positive dimension, but got 0 dimension")
    if sorter is not None:
        if sorter.shape != rows.shape:
            raise RuntimeError(
                f"searchsorted(): boundary and sorter must have the same size, but got boundary tensor {list(rows.shape)} and "
                f"got sorter tensor {list(sorter.shape)}"
            )
        if sorter.dtype is not dtypes.int64:
            raise RuntimeError(f"searchsorted(): sorter must be a tensor of long dtype but got dtype {sorter.dtype!r}")
        rows = GATHER(rows, sorter, dim=rows.ndim - 1)
    return _places(rows, input, after, out_int32, "searchsorted")


@formed(method=False)
@typed
def bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """The number of the bucket between sorted `boundaries` in which each element lies."""
    rows = tensor_operand(boundaries, "bucketize", "boundaries")
    if rows.ndim != 1:
        raise RuntimeError(f"bucketize(): boundaries tensor must be 1 dimension, but got dim({rows.ndim})")
    return _places(rows, input, right, out_int32, "bucketize")


@formed(method=False)
@typed
def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Whether each element is among the test elements (or is not, with `invert`)."""
    a, b = elements, test_elements
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        raise TypeError("isin(): expected at least one Tensor among its arguments")
    if not isinstance(a, Tensor):
        a = FULL(operand(a, "isin", "elements"), shape=(), dtype=b.dtype)
    if not isinstance(b, Tensor):
        b = FULL(operand(b, "isin", "test_elements"), shape=(), dtype=a.dtype)
    a, b = promoted(a.detach(), b.detach())
    n = b.numel()
    if n == 0:
        return FULL(bool(invert), shape=tuple(a.shape), dtype=dtypes.bool_)
    if n <= 16:
        found: Any = PUBLIC["any"](PUBLIC["unsqueeze"](a, -1) == RESHAPE(b, shape=(n,)), -1)
    else:
        rows = SORT(RESHAPE(b, shape=(n,)), dim=0, descending=False)
        flat = RESHAPE(a, shape=(a.numel(),))
        at = PUBLIC["clamp"](SEARCHSORTED(rows, flat, right=False), max=n - 1)
        found = RESHAPE(INDEX_SELECT(rows, at, dim=0) == flat, shape=tuple(a.shape))
    return ~found if invert else found


@typed
def unique_consecutive(input: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None) -> Any:
    """The first of each run of equal elements (or slices along `dim`); optionally where each went and how long the runs are.
    Reads values."""
    x = tensor_operand(input, "unique_consecutive")
    a = x._read()
    if dim is None:
        rows, d = a.reshape(-1), 0
    else:
        d = wrap_dim(dim, x.ndim, "unique_consecutive")
        rows = np.moveaxis(a, d, 0)
    n = rows.shape[0]
    flat = rows.reshape(n, math.prod(rows.shape[1:]))
    starts = np.concatenate(([True], (flat[1:] != flat[:-1]).any(1))) if n else np.zeros(0, bool)
    where = np.flatnonzero(starts)
    values = beside(x, np.ascontiguousarray(np.moveaxis(rows[where], 0, d)))
    inverse = np.cumsum(starts, dtype=np.int64) - 1
    counts = np.diff(np.append(where, n)).astype(np.int64)
    out = [values]
    if return_inverse:
        out.append(beside(x, inverse.reshape(a.shape) if dim is None else inverse))
    if return_counts:
        out.append(beside(x, counts))
    return tuple(out) if len(out) > 1 else values


PUBLIC["unique_consecutive"] = Tensor.unique_consecutive = unique_consecutive  # type: ignore[attr-defined]


@formed()
def nonzero_static(input: Tensor, *, size: int, fill_value: int = -1) -> Tensor:
    """The positions of the first `size` elements that are not zero, [size, ndim]; `fill_value` where there are fewer."""
    x = tensor_operand(input, "nonzero_static")
    if size < 0:
        raise RuntimeError("nonzero_static: 'size' must be an non-negative integer")
    n, shape = x.numel(), tuple(x.shape)
    if n == 0 or not shape:
        full = FULL(fill_value, shape=(size, len(shape)), dtype=dtypes.int64)
        return full
    zero = RESHAPE(x.detach() == 0 if x.dtype.kind != "b" else ~x, shape=(n,))
    order = ARGSORT(zero, dim=0, descending=False)  # stable: what is not zero first, in order
    count = n - PUBLIC["sum"](zero)
    if size > n:
        order = PUBLIC["constant_pad_nd"](order, (0, size - n), 0)
    order = take_slice(order, 0, 0, size)
    there = IOTA(size=size, dtype=dtypes.int64) < count
    columns = [WHERE(there, c, fill_value) for c in unravel_index(order, shape)]
    return PUBLIC["stack"](columns, 1)


@formed(method=False)
def unravel_index(indices: Tensor, shape: Any) -> tuple:
    """Flat positions in a tensor of `shape` as one position a dimension."""
    i = tensor_operand(indices, "unravel_index", "indices")
    if i.dtype.kind not in "ui":
        raise TypeError(f"expected 'indices' to be an integer dtype, but got {i.dtype!r}")
    i = to_dtype(i, dtypes.int64)
    sizes = as_shape((shape,) if isinstance(shape, int | list | tuple) else (tuple(shape.tolist()),), "unravel_index")
    if any(n < 0 for n in sizes):
        raise ValueError(f"'shape' cannot have negative values, but got {tuple(sizes)}")
    out = []
    for d, n in enumerate(sizes):
        step = math.prod(sizes[d + 1 :])
        out.append(PUBLIC["remainder"](PUBLIC["floor_divide"](i, max(step, 1)), max(n, 1)))
    return tuple(out)


def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """All combinations of r elements of a vector, in order: [count, r]."""
    x = tensor_operand(input, "combinations")
    if x.ndim != 1:
        raise RuntimeError(f"Expect a 1D vector, but got shape {list(x.shape)}")
    if r < 0:
        raise RuntimeError(f"Expect a non-negative number, but got {r}")
    if r == 0:
        return FULL(0, shape=(0,), dtype=x.dtype)
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    index = np.array(list(choose(range(x.shape[0]), r)), np.int64).reshape(-1, r)
    return INDEX_SELECT(x, beside(x, index), dim=0)


PUBLIC["combinations"] = combinations
