"""Writing a part of a tensor functionally: scattered reductions, masked writes, and the scatters that undo views; strided
views themselves."""

from __future__ import annotations

from typing import Any

from flame import dtypes
from flame.autograd.tape import assign
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed
from flame.functions.indexing import INDEX_PUT, SCATTER, SCATTER_ADD, _index_operand, _source
from flame.functions.promotion import operand, tensor_operand, to_dtype
from flame.functions.shape import COPY, EXPAND, RESHAPE, as_shape, wrap_dim
from flame.primitive import registered
from flame.tensor import Tensor, method

FULL, WHERE, GATHER, CUMSUM, INDEX_SELECT = map(registered, ("full", "where", "gather", "cumsum", "index_select"))
SCATTER_REDUCE, SLICE_SCATTER, DIAGONAL_SCATTER = map(registered, ("scatter_reduce", "slice_scatter", "diagonal_scatter"))
AS_STRIDED, AS_STRIDED_SCATTER = registered("as_strided"), registered("as_strided_scatter")

# -------------------------------------------------------------------- reductions that scatter


def _identity(d: dtypes.dtype, reduce: str) -> Any:
    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    low = reduce == "amax"
    if d.kind == "f":
        return float("-inf") if low else float("inf")
    if d.kind == "b":
        return not low
    bits = 8 * d.itemsize
    if d.kind == "u":
        return 0 if low else (1 << bits) - 1
    return -(1 << (bits - 1)) if low else (1 << (bits - 1)) - 1


def _reduced(x: Tensor, d: int, index: Tensor, src: Tensor, reduce: str, include_self: bool) -> Tensor:
    if not include_self:
        x = SCATTER(x, index, FULL(_identity(x.dtype, reduce), shape=tuple(index.shape), dtype=x.dtype), dim=d)
    if reduce == "sum":
        return SCATTER_ADD(x, index, src, dim=d)
    if reduce == "mean":
        ones = FULL(1, shape=tuple(x.shape), dtype=x.dtype)
        count = ones if include_self else SCATTER(ones, index, FULL(0, shape=tuple(index.shape), dtype=x.dtype), dim=d)
        count = SCATTER_ADD(count, index, FULL(1, shape=tuple(index.shape), dtype=x.dtype), dim=d)
        count = WHERE(count == 0, 1, count)
        total = SCATTER_ADD(x, index, src, dim=d)
        return total / count if x.dtype.kind == "f" else PUBLIC["floor_divide"](total, count)
    return SCATTER_REDUCE(x, index, src, dim=d, reduce=reduce)


_REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")


@formed(inplace=True)
def scatter_reduce(input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    """`src` combined at `index` along `dim` by `reduce`: "sum", "prod", "mean", "amax" or "amin"; with what is there already,
    unless `include_self` is False."""
    x, s = tensor_operand(input, "scatter_reduce"), tensor_operand(src, "scatter_reduce", "src")
    if reduce not in _REDUCTIONS:
        raise RuntimeError(f"reduce argument must be either sum, prod, mean, amax or amin, got {reduce}.")
    i = _index_operand(index, "scatter_reduce")
    d = wrap_dim(dim, x.ndim, "scatter_reduce")
    shape = tuple(x.shape)
    if x.ndim == 0:
        x, i, s = (RESHAPE(t, shape=(t.numel(),)) for t in (x, i, s))
    elif i.numel() == 0:
        return COPY(x)
    return RESHAPE(_reduced(x, d, i, _source(x, i, s, "scatter_reduce"), reduce, include_self), shape=shape)


@formed(inplace=True)
def index_reduce(input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    """As scatter_reduce, a whole slice for each element of the vector `index`; `reduce` is "prod", "mean", "amax" or "amin"."""
    x, s = tensor_operand(input, "index_reduce"), tensor_operand(source, "index_reduce", "source")
    if reduce not in _REDUCTIONS[1:]:
        raise RuntimeError(f"index_reduce(): Expected reduce to be one of prod, mean, amax or amin but got {reduce}.")
    i = _index_operand(index, "index_reduce")
    if i.ndim > 1:
        raise IndexError("index_reduce(): Index is supposed to be a vector")
    if s.dtype is not x.dtype:
        raise RuntimeError(
            f"index_reduce(): self and source expected to have the same dtype, but got (self) {x.dtype!r} and (source) {s.dtype!r}"
        )
    shape = tuple(x.shape)
    d = wrap_dim(dim, x.ndim, "index_reduce")
    if s.ndim == 0 and i.numel() != 1:
        raise IndexError(f"index_reduce_(): source is one element, and index has {i.numel()}")
    if s.ndim and x.ndim and s.ndim == x.ndim and s.shape[d] != i.numel():
        raise RuntimeError(
            f"index_reduce_(): Number of indices ({i.numel()}) should be equal to source.size(dim): ({s.shape[d]}), for dim: {d}"
        )
    if x.ndim and s.ndim != x.ndim:
        raise RuntimeError(f"index_reduce_(): source of shape {list(s.shape)} has not the dimensions of input {list(x.shape)}")
    if x.ndim == 0 and s.numel() != i.numel():
        raise RuntimeError(f"index_reduce_(): Number of indices ({i.numel()}) should be equal to source's ({s.numel()})")
    if x.ndim == 0:
        x, s = RESHAPE(x, shape=(1,)), RESHAPE(s, shape=(s.numel(),))
    lined = [1] * x.ndim
    lined[d] = i.numel()
    i = EXPAND(RESHAPE(i, shape=tuple(lined)), shape=tuple(s.shape))
    return RESHAPE(_reduced(x, d, i, s, reduce, include_self), shape=shape)


# -------------------------------------------------------------------- masks and flat positions


@formed(inplace=True)
def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """The elements of `source`, in order, where `mask` is true; else the tensor's own."""
    x, m, s = (
        tensor_operand(input, "masked_scatter"),
        tensor_operand(mask, "masked_scatter", "mask"),
        tensor_operand(source, "masked_scatter", "source"),
    )
    if m.dtype.kind != "b":
        raise RuntimeError(f"masked_scatter_ only supports boolean masks, but got mask with dtype {m.dtype!r}")
    if x.dtype is not s.dtype:
        raise RuntimeError(f"masked_scatter: expected self and source to have same dtypes but got {x.dtype!r} and {s.dtype!r}")
    shape = PUBLIC["broadcast_shapes"](tuple(x.shape), tuple(m.shape))
    x, m = EXPAND(x, shape=tuple(shape)), EXPAND(m, shape=tuple(shape))
    n, have = m.numel(), s.numel()
    if n > have and int(PUBLIC["sum"](m)) > have:
        raise RuntimeError(
            "masked_scatter: expected the number of elements in source to be no smaller than the number of true elements in mask"
        )
    if n == 0 or have == 0:
        return COPY(x)
    flat = RESHAPE(m, shape=(n,))
    place = PUBLIC["clamp"](CUMSUM(flat, dim=0) - 1, 0, have - 1)
    return WHERE(m, RESHAPE(INDEX_SELECT(RESHAPE(s, shape=(have,)), place, dim=0), shape=tuple(shape)), x)


@formed(inplace=True)
def put(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """`source` written (or added) at flat positions."""
    x, s = tensor_operand(input, "put"), tensor_operand(source, "put", "source")
    i = _index_operand(index, "put")
    if s.dtype is not x.dtype:
        raise RuntimeError(f"put_(): self and source expected to have the same dtype, but got {x.dtype!r} and {s.dtype!r}")
    if i.numel() != s.numel():
        raise IndexError(
            f"put_(): Expected source and index to have the same number of elements, but got source.numel() = {s.numel()}, "
            f"index.numel() = {i.numel()}"
        )
    if x.numel() == 0:
        if i.numel():
            raise IndexError("put_(): Cannot put elements into an empty tensor")
        return COPY(x)
    flat = INDEX_PUT(
        RESHAPE(x, shape=(x.numel(),)),
        RESHAPE(s, shape=(s.numel(),)),
        RESHAPE(i, shape=(i.numel(),)),
        dims=(0,),
        accumulate=bool(accumulate),
    )
    return RESHAPE(flat, shape=tuple(x.shape))


# -------------------------------------------------------------------- the reverse of views


def _part(src: Tensor, input: Tensor, shape: tuple[int, ...], op: str) -> Tensor:
    if tuple(src.shape) != shape:
        raise RuntimeError(
            f"expected src to have a size equal to the slice of self. src size = {list(src.shape)}, slice size = {list(shape)}"
        )
    return to_dtype(src, input.dtype)


@formed()
def select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """A copy with `src` in the place that select(input, dim, index) shows."""
    x, s = tensor_operand(input, "select_scatter"), tensor_operand(src, "select_scatter", "src")
    d, shape = wrap_dim(dim, x.ndim, "select_scatter"), tuple(x.shape)
    n = shape[d]
    if not -n <= index < n:
        raise IndexError(f"select(): index {index} out of range for tensor of size {list(shape)} at dimension {d}")
    s = _part(s, x, shape[:d] + shape[d + 1 :], "select_scatter")
    return _into(x, RESHAPE(s, shape=(*shape[:d], 1, *shape[d + 1 :])), d, index % n, index % n + 1, 1)


def _into(x: Tensor, v: Tensor, d: int, start: int, stop: int, step: int) -> Tensor:
    starts, stops, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
    starts[d], stops[d], steps[d] = start, stop, step
    return SLICE_SCATTER(x, v, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


@formed()
def slice_scatter(input: Tensor, src: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Tensor:
    """A copy with `src` in the slice start:end:step of `dim`."""
    x, s = tensor_operand(input, "slice_scatter"), tensor_operand(src, "slice_scatter", "src")
    if step <= 0:
        raise RuntimeError("slice step must be positive")
    d = wrap_dim(dim, x.ndim, "slice_scatter")
    a, b, _ = slice(start, end, step).indices(x.shape[d])
    b = max(a, b)
    shape = list(x.shape)
    shape[d] = -(-(b - a) // step)
    return _into(x, _part(s, x, tuple(shape), "slice_scatter"), d, a, b, step)


@formed()
def diagonal_scatter(input: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A copy with `src` on a diagonal."""
    x, s = tensor_operand(input, "diagonal_scatter"), tensor_operand(src, "diagonal_scatter", "src")
    a, b = wrap_dim(dim1, x.ndim, "diagonal"), wrap_dim(dim2, x.ndim, "diagonal")
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    shape = PUBLIC["diagonal"](x, offset, a, b).shape
    return DIAGONAL_SCATTER(x, _part(s, x, tuple(shape), "diagonal_scatter"), offset=offset, dim1=a, dim2=b)


# -------------------------------------------------------------------- strided views


def _memory(x: Tensor) -> tuple[Tensor, int]:
    """The memory that a tensor lies in, as a vector, and where in it the tensor begins."""
    if x._view is not None:
        base = x._view.base
        if base.is_contiguous():
            return RESHAPE(base, shape=(base.numel(),)), x.storage_offset() - base.storage_offset()
    if x.is_contiguous():
        return RESHAPE(x, shape=(x.numel(),)), 0
    order = tuple(sorted(range(x.ndim), key=lambda d: (-x.stride(d), d)))
    y = PUBLIC["permute"](x, order)
    if not y.is_contiguous():
        raise RuntimeError(
            f"as_strided: the memory of a tensor of strides {tuple(x.stride())} and shape {list(x.shape)} is not known as a whole: "
            "call contiguous() on it first"
        )
    return RESHAPE(y, shape=(y.numel(),)), 0


def _strides(size: Any, stride: Any, op: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    s, t = as_shape((size,), op), as_shape((stride,), op)
    if len(s) != len(t):
        raise RuntimeError(f"mismatch in length of strides and shape: {len(t)} and {len(s)}")
    if any(n < 0 for n in t):
        raise RuntimeError(f"{op}: Negative strides are not supported at the moment, got strides: {list(t)}")
    if any(n < 0 for n in s):
        raise RuntimeError(f"Storage size calculation overflowed with sizes={list(s)} and strides={list(t)}")
    return s, t


@formed()
def as_strided(input: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    """A view of the memory that the tensor lies in, by sizes, strides and an offset (default: the tensor's own)."""
    x = tensor_operand(input, "as_strided")
    s, t = _strides(size, stride, "as_strided")
    flat, start = _memory(x)
    at = start if storage_offset is None else int(storage_offset)
    if at < 0:
        raise RuntimeError(f"Tensor: invalid storage offset {at}")
    return AS_STRIDED(flat, size=s, stride=t, offset=at)


@formed()
def as_strided_scatter(input: Tensor, src: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    """A copy with `src` written where as_strided(input, size, stride, storage_offset) shows it."""
    x, v = tensor_operand(input, "as_strided_scatter"), tensor_operand(src, "as_strided_scatter", "src")
    s, t = _strides(size, stride, "as_strided_scatter")
    if tuple(v.shape) != s:
        raise RuntimeError(
            f"expected src to have a size equal to the slice of self. src size = {list(v.shape)}, slice size = {list(s)}"
        )
    flat = RESHAPE(x, shape=(x.numel(),))
    y = AS_STRIDED_SCATTER(flat, to_dtype(v, x.dtype), size=s, stride=t, offset=int(storage_offset or 0))
    return RESHAPE(y, shape=tuple(x.shape))


@method()
def as_strided_(self: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    """This tensor object shown by other sizes and strides of its memory."""
    got = as_strided(self, size, stride, storage_offset)
    self._array, self._view, self._node = got._array, got._view, got._node
    return self


@method()
def fill_diagonal_(self: Tensor, fill_value: Any, wrap: bool = False) -> Tensor:
    """`fill_value` on the main diagonal; with `wrap` a tall matrix's diagonal begins anew below."""
    if self.ndim < 2:
        raise RuntimeError("dimensions must larger than 1")
    if self.ndim > 2 and len(set(self.shape)) > 1:
        raise RuntimeError("all dimensions of input must be of equal length")
    n = min(self.shape)
    step = sum(self.stride())
    places = n
    if wrap and self.ndim == 2 and self.shape[0] > self.shape[1] + 1:
        places = -(-self.numel() // (self.shape[1] + 1))
    if not self.is_contiguous():
        new = COPY(self)
        fill_diagonal_(new, fill_value, wrap)
        return assign(self, new)
    as_strided(self, (places,), (step,)).fill_(operand(fill_value, "fill_diagonal_", "fill_value"))  # type: ignore[attr-defined]
    return self
