"""Sums, means, extremes, truth, order, sets: what the standard calls statistical, searching, sorting, set and utility functions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from flame import dtypes
from flame.array_api.data_types import array, of_kind, together
from flame.dtypes import dtype as DType
from flame.functions import PUBLIC
from flame.functions.promotion import to_dtype
from flame.functions.shape import wrap_dim
from flame.primitive import registered
from flame.tensor import Tensor, wrap

SUM, PROD, AMAX, AMIN, ALL, ANY, NE, COPY = map(registered, ("sum", "prod", "amax", "amin", "all", "any", "ne", "copy"))
ARGMAX, ARGMIN, SORT, ARGSORT, CAT, FULL = map(registered, ("argmax", "argmin", "sort", "argsort", "cat", "full"))
Axis = int | tuple[int, ...] | None


def _axes(x: Tensor, axis: Axis, op: str) -> tuple[int, ...]:
    """The axes in order; all for None. Raises IndexError for one that is not there, ValueError for one given twice."""
    if axis is None:
        return tuple(range(x.ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    for a in given:
        if not -x.ndim <= a < x.ndim:
            raise IndexError(f"{op}: axis {a} is out of bounds for an array of {x.ndim} dimensions")
    dims = tuple(sorted(a % x.ndim for a in given))
    if len(set(dims)) != len(dims):
        raise ValueError(f"{op}: duplicate axes in {axis}")
    return dims


def _wide(d: DType) -> DType:
    """What sums of a dtype are in."""
    return dtypes.uint64 if d.kind == "u" else dtypes.int64 if d.kind in "bi" else d


def _total(p: Any, x: Any, axis: Axis, dtype: DType | None, keepdims: bool, op: str) -> Tensor:
    t = of_kind(x, "iufc", op)
    d = dtype or _wide(t.dtype)
    dims = _axes(t, axis, op)
    y = to_dtype(t, d)
    y = p(y, dim=dims, keepdim=keepdims) if dims else COPY(y)
    return to_dtype(y, d)


def sum(x: Tensor, /, *, axis: Axis = None, dtype: DType | None = None, keepdims: bool = False) -> Tensor:
    """Sums; of integers in int64 or uint64, of floats in their own dtype, unless one is given."""
    return _total(SUM, x, axis, dtype, keepdims, "sum")


def prod(x: Tensor, /, *, axis: Axis = None, dtype: DType | None = None, keepdims: bool = False) -> Tensor:
    """Products; of integers in int64 or uint64, of floats in their own dtype, unless one is given."""
    return _total(PROD, x, axis, dtype, keepdims, "prod")


def _extreme(p: Any, x: Any, axis: Axis, keepdims: bool, op: str) -> Tensor:
    t = of_kind(x, "iuf", op)
    dims = _axes(t, axis, op)
    _not_empty(t, dims, op)
    return p(t, dim=dims, keepdim=keepdims) if dims else COPY(t)


def _not_empty(x: Tensor, dims: tuple[int, ...], op: str) -> None:
    if 0 in [x.shape[d] for d in dims]:
        raise ValueError(f"{op}: an axis of size 0 has no extreme: the shape is {list(x.shape)}")


def max(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest; NaN where there is one. Raises ValueError over nothing."""
    return _extreme(AMAX, x, axis, keepdims, "max")


def min(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest; NaN where there is one. Raises ValueError over nothing."""
    return _extreme(AMIN, x, axis, keepdims, "min")


def _count(x: Tensor, dims: tuple[int, ...]) -> int:
    return math.prod(x.shape[d] for d in dims)


def mean(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean of floating numbers; NaN over nothing."""
    t = of_kind(x, "fc", "mean")
    dims = _axes(t, axis, "mean")
    return SUM(t, dim=dims, keepdim=keepdims) / float(_count(t, dims)) if dims else COPY(t)


def var(x: Tensor, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The mean squared distance from the mean, divided by the count less `correction`; NaN where that is not positive."""
    t = of_kind(x, "f", "var")
    dims = _axes(t, axis, "var")
    left = _count(t, dims) - correction
    if not dims or left <= 0 or not t.numel():
        apart = t - mean(t, axis=axis, keepdims=True)
        total = SUM(apart * apart, dim=dims, keepdim=keepdims) if dims else apart * apart
        return total / (left if left > 0 else 0.0)
    return PUBLIC["var"](t, dims, correction=correction, keepdim=keepdims)


def std(x: Tensor, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The square root of the variance."""
    return PUBLIC["sqrt"](var(x, axis=axis, correction=correction, keepdims=keepdims))


def _cumulative(p: Any, first: int, x: Any, axis: int | None, dtype: DType | None, include_initial: bool, op: str) -> Tensor:
    t = of_kind(x, "iufc", op)
    if axis is None and t.ndim != 1:
        raise ValueError(f"{op}: an axis must be given for an array of {t.ndim} dimensions")
    if t.ndim == 0:
        raise ValueError(f"{op}: a 0-d array has no axis")
    (dim,) = _axes(t, axis, op)
    d = dtype or _wide(t.dtype)
    y = to_dtype(p(to_dtype(t, d), dim=dim), d)
    if not include_initial:
        return y
    start = FULL(first, shape=tuple(1 if k == dim else n for k, n in enumerate(t.shape)), dtype=d)
    return CAT(start, y, dim=dim)


def cumulative_sum(
    x: Tensor, /, *, axis: int | None = None, dtype: DType | None = None, include_initial: bool = False
) -> Tensor:
    """Running sums along an axis; with a 0 before them if `include_initial`."""
    return _cumulative(registered("cumsum"), 0, x, axis, dtype, include_initial, "cumulative_sum")


def cumulative_prod(
    x: Tensor, /, *, axis: int | None = None, dtype: DType | None = None, include_initial: bool = False
) -> Tensor:
    """Running products along an axis; with a 1 before them if `include_initial`."""
    return _cumulative(registered("cumprod"), 1, x, axis, dtype, include_initial, "cumulative_prod")


def _truth(p: Any, x: Any, axis: Axis, keepdims: bool, op: str) -> Tensor:
    t = array(x, op)
    t = t if t.dtype.kind == "b" else NE(t, 0)
    dims = _axes(t, axis, op)
    return p(t, dim=dims, keepdim=keepdims) if dims else COPY(t)


def all(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element is not 0; NaN is not."""
    return _truth(ALL, x, axis, keepdims, "all")


def any(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether some element is not 0."""
    return _truth(ANY, x, axis, keepdims, "any")


def count_nonzero(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """How many elements are not 0, as int64."""
    t = array(x, "count_nonzero")
    t = to_dtype(t if t.dtype.kind == "b" else NE(t, 0), dtypes.int64)
    dims = _axes(t, axis, "count_nonzero")
    return SUM(t, dim=dims, keepdim=keepdims) if dims else t


def _place(p: Any, x: Any, axis: int | None, keepdims: bool, op: str) -> Tensor:
    t = of_kind(x, "iuf", op)
    dims = _axes(t, axis, op)
    _not_empty(t, dims, op)
    return p(t, dim=dims, keepdim=keepdims)


def argmax(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where the largest stands first; in the flattened array if axis is None."""
    return _place(ARGMAX, x, axis, keepdims, "argmax")


def argmin(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where the smallest stands first; in the flattened array if axis is None."""
    return _place(ARGMIN, x, axis, keepdims, "argmin")


def nonzero(x: Tensor, /) -> tuple[Tensor, ...]:
    """The indices of elements that are not 0, one array an axis, in row-major order. Reads values."""
    t = array(x, "nonzero")
    if t.ndim == 0:
        raise ValueError("nonzero: a 0-d array has no indices")
    return tuple(PUBLIC["nonzero"](t, as_tuple=True))


def searchsorted(x1: Tensor, x2: Any, /, *, side: str = "left", sorter: Tensor | None = None) -> Tensor:
    """Where elements of x2 would be put into the sorted vector x1 (sorted by `sorter`) to keep it so."""
    if side not in ("left", "right"):
        raise ValueError(f'searchsorted: side must be "left" or "right", got {side!r}')
    if of_kind(x1, "iuf", "searchsorted", "x1").ndim != 1:
        raise ValueError(f"searchsorted: x1 must have one dimension, but has {x1.ndim}")
    a, b = together("searchsorted", "iuf", x1, x2)
    if sorter is not None:
        a = registered("index_select")(a, to_dtype(of_kind(sorter, "iu", "searchsorted", "sorter"), dtypes.int64), dim=0)
    return registered("searchsorted")(a, b, right=side == "right")


def sort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """Sorted along an axis; equal elements keep their order."""
    t = of_kind(x, "iuf", "sort")
    return SORT(t, dim=wrap_dim(axis, _with_axis(t, "sort"), "sort"), descending=descending)


def argsort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The indices that sort along an axis; equal elements keep their order."""
    t = of_kind(x, "iuf", "argsort")
    return ARGSORT(t, dim=wrap_dim(axis, _with_axis(t, "argsort"), "argsort"), descending=descending)


def _with_axis(x: Tensor, op: str) -> int:
    if x.ndim == 0:
        raise ValueError(f"{op}: a 0-d array has no axis")
    return x.ndim


class unique_all_result(NamedTuple):
    values: Tensor
    indices: Tensor
    inverse_indices: Tensor
    counts: Tensor


class unique_counts_result(NamedTuple):
    values: Tensor
    counts: Tensor


class unique_inverse_result(NamedTuple):
    values: Tensor
    inverse_indices: Tensor


def unique_all(x: Tensor, /) -> unique_all_result:
    """Different values in order, where each first stands, which of them each element is, and how often each occurs.

    NaNs are all different from each other. Reads values.
    """
    a = array(x, "unique_all")._read()
    values, first, inverse, counts = np.unique(a, return_index=True, return_inverse=True, return_counts=True, equal_nan=False)
    whole = [np.ascontiguousarray(v, np.int64) for v in (first, inverse.reshape(a.shape), counts)]
    whole[1] = whole[1].reshape(a.shape)
    return unique_all_result(wrap(values), *map(wrap, whole))


def unique_counts(x: Tensor, /) -> unique_counts_result:
    """Different values in order, and how often each occurs; NaNs are all different."""
    got = unique_all(x)
    return unique_counts_result(got.values, got.counts)


def unique_inverse(x: Tensor, /) -> unique_inverse_result:
    """Different values in order, and which of them each element is; NaNs are all different."""
    got = unique_all(x)
    return unique_inverse_result(got.values, got.inverse_indices)


def unique_values(x: Tensor, /) -> Tensor:
    """Different values in order; NaNs are all different."""
    return wrap(np.unique(array(x, "unique_values")._read(), equal_nan=False))


def diff(x: Tensor, /, *, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Tensor:
    """Differences of neighbours along an axis, n times."""
    if n < 0:
        raise ValueError(f"diff: n must not be negative, got {n}")
    t = of_kind(x, "iufc", "diff")
    dim = wrap_dim(axis, _with_axis(t, "diff"), "diff")
    parts = [p for p in (prepend, t, append) if p is not None]
    if len(parts) > 1:
        t = CAT(*together("diff", "iufc", *parts), dim=dim)
    for _ in range(n):
        k = t.shape[dim]
        t = PUBLIC["narrow"](t, dim, 1, k - 1) - PUBLIC["narrow"](t, dim, 0, k - 1) if k else t
    return COPY(t) if n == 0 else t
