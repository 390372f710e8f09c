"""Histograms: counts of integers, of numbers in equal bins, and of points in cells."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.reduction import AMAX, sum
from flame.functions.shape import RESHAPE, take_slice
from flame.functions.taking import typed
from flame.primitive import registered
from flame.tensor import Tensor

WHERE, FULL = map(registered, ("where", "full"))
FLOOR, SEARCHSORTED, SCATTER_ADD = map(registered, ("floor", "searchsorted", "scatter_add"))
CUMMAX, CUMMIN, CUMSUM = registered("cummax_index"), registered("cummin_index"), registered("cumsum")


@formed()
def bincount(input: Tensor, weights: Any = None, minlength: int = 0) -> Tensor:
    """How often each non-negative integer occurs in a vector, or the sum of its weights. Its size is the largest one's: reads
    values."""
    x = tensor_operand(input, "bincount")
    if x.dtype.kind not in "ui":
        raise NotImplementedError(f'"bincount" not implemented for {x.dtype!r}: it takes integers')
    if x.ndim != 1 or minlength < 0:
        raise RuntimeError(
            "bincount only supports 1-d non-negative integral inputs." if x.ndim != 1 else "minlength should be >= 0"
        )
    a = x._read()
    if a.size and a.min() < 0:
        raise RuntimeError("bincount only supports 1-d non-negative integral inputs.")
    if weights is not None and tuple(weights.shape) != tuple(x.shape):
        raise RuntimeError("weights should be 1-d and have the same length as input")
    n = max(int(a.max()) + 1 if a.size else 0, minlength)
    index = to_dtype(x, dtypes.int64)
    if weights is None:
        return SCATTER_ADD(FULL(0, shape=(n,), dtype=dtypes.int64), index, FULL(1, shape=(len(a),), dtype=dtypes.int64), dim=0)
    w = weights.detach() if weights.dtype is dtypes.float32 else to_dtype(weights.detach(), dtypes.float64)
    return SCATTER_ADD(FULL(0, shape=(n,), dtype=w.dtype), index, w, dim=0)


def _limits(x: Tensor, low: Any, high: Any, op: str) -> tuple[float, float]:
    """The range of a histogram: as given, or that of the elements (which reads them); opened where it is a point."""
    if low == high == 0 and x.numel():
        a = x.detach()
        low, high = float(PUBLIC["amin"](a)), float(AMAX(RESHAPE(a, shape=(a.numel(),)), dim=(0,), keepdim=False))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RuntimeError(f"range of [{low}, {high}] is not finite")
    if low > high:
        raise RuntimeError(f"{op}: max must be larger than min")
    return (low - (op == "histc"), high + 1) if low == high and op == "histc" else (low, high)


@formed()
@typed
def histc(input: Tensor, bins: int = 100, min: Any = 0, max: Any = 0) -> Tensor:
    """Counts of the elements in `bins` equal bins of [min, max] (of the elements' range where both are 0)."""
    x = tensor_operand(input, "histc")
    if x.dtype.kind == "b":
        raise NotImplementedError(f'"histc" not implemented for {x.dtype!r}')
    if bins <= 0:
        raise RuntimeError("bins must be > 0")
    low, high = _limits(x, min, max, "histc")
    flat = to_dtype(RESHAPE(x.detach(), shape=(x.numel(),)), dtypes.float64)
    place = to_dtype(FLOOR((flat - float(low)) * (bins / (high - low))), dtypes.int64)
    inside = (flat >= float(low)) & (flat <= float(high))
    place = PUBLIC["clamp"](WHERE(inside, place, 0), 0, bins - 1)
    return SCATTER_ADD(FULL(0, shape=(bins,), dtype=x.dtype), place, to_dtype(inside, x.dtype), dim=0)


class Histogram(NamedTuple):
    """What histogram gives."""

    hist: Tensor
    bin_edges: Tensor


def _counts(x: Tensor, edges: Sequence[Tensor], weight: Any, density: bool) -> Tensor:
    """Counts of the rows of x (points) in the cells between edges; the last edge belongs to the last cell."""
    shape = tuple(e.numel() - 1 for e in edges)
    place: Any = 0
    inside: Any = None
    for k, e in enumerate(edges):
        v = PUBLIC["select"](x, 1, k)
        top = take_slice(e, 0, e.numel() - 1, e.numel())
        i = SEARCHSORTED(e, v, right=True) - 1
        i = WHERE(v == top, shape[k] - 1, i)
        ok = (i >= 0) & (i < shape[k])
        inside = ok if inside is None else inside & ok
        place = place * shape[k] + PUBLIC["clamp"](i, 0, shape[k] - 1)
    w = to_dtype(inside, x.dtype)
    if weight is not None:
        w = w * to_dtype(RESHAPE(weight, shape=(weight.numel(),)), x.dtype)
    counts = SCATTER_ADD(FULL(0, shape=(math.prod(shape),), dtype=x.dtype), place, w, dim=0)
    y = RESHAPE(counts, shape=shape)
    if density:
        y = y / sum(y)
        for k, e in enumerate(edges):
            width = take_slice(e, 0, 1, e.numel()) - take_slice(e, 0, 0, e.numel() - 1)
            y = y / RESHAPE(width, shape=tuple(n if j == k else 1 for j, n in enumerate(shape)))
    return y


def _edges(x: Tensor, bins: int, span: Any) -> Tensor:
    low, high = span if span is not None else _limits(x, 0, 0, "histogram")
    if low > high:
        raise RuntimeError("histogram(): max should not exceed min")
    if low == high:
        low, high = low - 0.5, high + 0.5
    return PUBLIC["linspace"](low, high, bins + 1, dtype=x.dtype)


@formed()
def histogram(input: Tensor, bins: Any, *, range: Any = None, weight: Any = None, density: bool = False) -> Histogram:
    """Counts in `bins` equal bins (an int), or between given edges (a sorted vector)."""
    x = tensor_operand(input, "histogram").detach()
    if x.dtype.kind != "f":
        raise NotImplementedError(f'"histogram_cpu" not implemented for {x.dtype!r}')
    if isinstance(bins, int) and bins <= 0:
        raise RuntimeError(f"histogram(): bins must be > 0, but got {bins}")
    edges = _edges(x, bins, range) if isinstance(bins, int) else bins
    if isinstance(bins, Tensor) and bins.dtype is not x.dtype:
        raise RuntimeError("histogramdd(): input tensor and bins tensors should have the same dtype")
    points = RESHAPE(x, shape=(x.numel(), 1))
    return Histogram(_counts(points, [edges], weight, density), edges)


class HistogramDD(NamedTuple):
    """What histogramdd gives."""

    hist: Tensor
    bin_edges: list


@typed
def histogramdd(input: Tensor, bins: Any, *, range: Any = None, weight: Any = None, density: bool = False) -> HistogramDD:
    """A histogram of points, the last dimension holding their coordinates; `bins` an int, ints, or edges a coordinate."""
    x = tensor_operand(input, "histogramdd").detach()
    if x.ndim < 2:
        raise RuntimeError("histogramdd(): input tensor should have at least 2 dimensions")
    n = x.shape[-1]
    x = RESHAPE(x, shape=(x.numel() // builtins.max(n, 1), n))
    many = [bins] * n if isinstance(bins, int) else list(bins)
    if len(many) != n:
        raise RuntimeError(
            f"histogramdd(): the size of bins should be equal to the innermost dimension of the input, got {len(many)} and {n}"
        )
    spans = [None] * n if range is None else [tuple(range[2 * k : 2 * k + 2]) for k in builtins.range(n)]
    edges = [_edges(PUBLIC["select"](x, 1, k), b, spans[k]) if isinstance(b, int) else b for k, b in enumerate(many)]
    return HistogramDD(_counts(x, edges, weight, density), edges)


PUBLIC["histogramdd"] = histogramdd
