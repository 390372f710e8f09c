"""Statistics along a dimension: quantiles, medians, modes, running extremes, covariances."""

from __future__ import annotations

import math
from typing import Any

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed
from flame.functions.promotion import as_floating, number, result_type, tensor_operand, to_dtype
from flame.functions.reduction import ARGMAX, ARGSORT, GATHER, Extreme, sort, sum
from flame.functions.shape import RESHAPE, take_slice, unsqueeze, wrap_dim, wrap_dims
from flame.functions.taking import typed
from flame.primitive import registered
from flame.tensor import Tensor

WHERE, FULL, COPY, IOTA, ISNAN, PAD = map(registered, ("where", "full", "copy", "iota", "isnan", "pad"))
FLOOR, CEIL, SQRT, LOGCUMSUMEXP = map(registered, ("floor", "ceil", "sqrt", "logcumsumexp"))
CUMMAX, CUMMIN, CUMSUM = registered("cummax_index"), registered("cummin_index"), registered("cumsum")


def without(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    """`x` without a dimension of size 1, unless it is to be kept."""
    s = tuple(x.shape)
    return x if keepdim else RESHAPE(x, shape=s[:dim] + s[dim + 1 :])


def zeros_of(x: Tensor) -> Tensor:
    return FULL(0, shape=tuple(x.shape), dtype=dtypes.int64)


# -------------------------------------------------------------------- order statistics


_INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")


def _quantile(name: str, skip_nan: bool) -> Any:
    def function(input: Tensor, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear") -> Tensor:
        x = tensor_operand(input, name)
        if x.dtype not in (dtypes.float32, dtypes.float64):
            raise RuntimeError(f"{name}() input tensor must be either float or double dtype")
        if x.numel() == 0:
            raise RuntimeError(f"{name}() input tensor must be non-empty")
        if interpolation not in _INTERPOLATIONS:
            raise RuntimeError(
                f"{name}() interpolation must be one of linear, lower, higher, midpoint or nearest, but got {interpolation}"
            )
        if isinstance(q, Tensor):
            if q.ndim > 1:
                raise RuntimeError(f"{name}() q must be a scalar or 1D tensor")
            if q.dtype is not x.dtype:
                raise RuntimeError(f"{name}() q tensor must be same dtype as the input tensor")
            points: Any = q
        else:
            v = number(q)
            if v is None:
                raise TypeError(f"{name}(): argument 'q' must be Tensor or float, not {type(q).__name__}")
            if not 0 <= v <= 1:
                raise RuntimeError(f"{name}() q must be in the range [0, 1] but got {v}")
            points = FULL(float(v), shape=(), dtype=x.dtype)
        ndim = x.ndim
        if dim is None:
            d, rows = 0, RESHAPE(x, shape=(x.numel(),))
        else:
            d, rows = wrap_dim(dim, ndim, name), RESHAPE(x, shape=(1,)) if ndim == 0 else x
        rows = PUBLIC["movedim"](rows, d, -1)
        n = rows.shape[-1]
        ordered = registered("sort")(rows, dim=rows.ndim - 1, descending=False)  # NaN last
        bad = PUBLIC["any"](ISNAN(rows), -1, True)
        flat_q = RESHAPE(points, shape=(points.numel(),))
        if skip_nan:
            count = to_dtype(sum(to_dtype(~ISNAN(rows), dtypes.int64), -1, True), x.dtype)
            rank = flat_q * PUBLIC["clamp"](count - 1, min=0.0)
        else:
            rank = WHERE(bad, float(n - 1), flat_q * float(n - 1))
        if interpolation == "lower":
            rank = FLOOR(rank)
        elif interpolation == "higher":
            rank = CEIL(rank)
        elif interpolation == "nearest":
            rank = registered("round")(rank)
        rank = PUBLIC["broadcast_to"](rank, (*rows.shape[:-1], flat_q.numel()))
        low = FLOOR(rank)
        below = GATHER(ordered, to_dtype(low, dtypes.int64), dim=rows.ndim - 1)
        if interpolation in ("linear", "midpoint"):
            weight = FULL(0.5, shape=(), dtype=x.dtype) if interpolation == "midpoint" else rank - low
            above = GATHER(ordered, to_dtype(CEIL(rank), dtypes.int64), dim=rows.ndim - 1)
            below = PUBLIC["lerp"](below, above, weight)
        y = PUBLIC["movedim"](below, -1, 0)  # (q, ..., without dim)
        if keepdim:
            y = RESHAPE(y, shape=(y.shape[0], *[1] * ndim)) if dim is None else (unsqueeze(y, d + 1) if ndim else y)
        if ndim == 0 and dim is not None:
            y = RESHAPE(y, shape=(y.shape[0],))
        return y if points.ndim else RESHAPE(y, shape=tuple(y.shape)[1:])

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        "The q-th quantiles (q a number in [0, 1] or a vector of them, whose dimension comes first) along `dim` or of all "
        f"elements; {'NaN is left out' if skip_nan else 'NaN where there is one'}. float32 and float64."
    )
    return formed(name)(function)


quantile = _quantile("quantile", False)
nanquantile = _quantile("nanquantile", True)


@formed()
@typed
def nanmedian(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The lower median of the elements that are not NaN: of all, or (values, indices) along `dim`."""
    x = tensor_operand(input, "nanmedian")
    if dim is None:
        if x.numel() == 0:
            return FULL(math.nan, shape=(), dtype=x.dtype)
        return nanmedian(RESHAPE(x, shape=(x.numel(),)), 0).values
    d = wrap_dim(dim, x.ndim, "nanmedian")
    if x.ndim == 0:
        return Extreme(COPY(x), zeros_of(x))
    order = ARGSORT(x.detach(), dim=d, descending=False)
    count = sum(to_dtype(~ISNAN(x), dtypes.int64) if x.dtype.kind == "f" else PUBLIC["ones_like"](zeros_of(x)), d, True)
    at = PUBLIC["clamp"](PUBLIC["floor_divide"](count - 1, 2), min=0)
    index = GATHER(order, at, dim=d)
    return Extreme(without(GATHER(x, index, dim=d), d, keepdim), without(index, d, keepdim))


@formed()
@typed
def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Extreme:
    """The most frequent element along `dim` (the smallest of several), and the last place where it stands."""
    x = tensor_operand(input, "mode")
    d = wrap_dim(dim, x.ndim, "mode")
    if x.ndim == 0:
        return Extreme(COPY(x), zeros_of(x))
    n = x.shape[d]
    if n == 0:
        raise IndexError(f"mode(): Expected reduction dim {d} to have non-zero size.")
    order = ARGSORT(x.detach(), dim=d, descending=False)
    values = GATHER(x.detach(), order, dim=d)
    place = RESHAPE(IOTA(size=n, dtype=dtypes.int64), shape=(n,) + (1,) * (x.ndim - d - 1))
    starts = take_slice(values, d, 1, n) != take_slice(values, d, 0, n - 1)
    begin = WHERE(PAD(starts, lo=_at(x.ndim, d, 1), hi=(0,) * x.ndim, value=True), place, 0)
    run = place - GATHER(begin, CUMMAX(begin, dim=d), dim=d)
    last = ARGMAX(run, dim=(d,), keepdim=True)
    index = GATHER(order, last, dim=d)
    return Extreme(without(GATHER(x, index, dim=d), d, keepdim), without(index, d, keepdim))


def _at(ndim: int, d: int, value: int) -> tuple[int, ...]:
    return tuple(value if i == d else 0 for i in range(ndim))


@formed()
@typed
def msort(input: Tensor) -> Tensor:
    """Sorted along the first dimension."""
    x = tensor_operand(input, "msort")
    return COPY(x) if x.ndim == 0 else sort(x, 0).values


def _running(name: str, p: Any) -> None:
    def function(input: Tensor, dim: int) -> Extreme:
        x = tensor_operand(input, name)
        d = wrap_dim(dim, x.ndim, name)
        if x.ndim == 0:
            return Extreme(COPY(x), zeros_of(x))
        index = p(x.detach(), dim=d)
        return Extreme(GATHER(x, index, dim=d), index)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"The {'largest' if name == 'cummax' else 'smallest'} element so far along `dim`, and where it stands."
    formed(name)(typed(function))


_running("cummax", CUMMAX)
_running("cummin", CUMMIN)


@formed()
@typed
def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """The logarithm of the running sum of exponentials along `dim`."""
    (x,) = as_floating(tensor_operand(input, "logcumsumexp"))
    d = wrap_dim(dim, x.ndim, "logcumsumexp")
    return COPY(x) if x.ndim == 0 else LOGCUMSUMEXP(x, dim=d)


# -------------------------------------------------------------------- covariance


@formed()
def cov(input: Tensor, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Tensor:
    """The covariance matrix of the rows of a matrix, whose columns are observations; a vector is one row."""
    x = tensor_operand(input, "cov")
    if x.ndim > 2:
        raise RuntimeError(f"cov(): expected input to have two or fewer dimensions but got an input with {x.ndim} dimensions")
    if x.dtype.kind == "b":
        raise RuntimeError("cov(): bool dtype is not supported for input")
    (x,) = as_floating(x)
    x = x if x.ndim == 2 else RESHAPE(x, shape=(1, x.numel()))
    n = x.shape[1]
    w: Any = None
    for name, v in (("fweights", fweights), ("aweights", aweights)):
        if v is None:
            continue
        if v.ndim > 1:
            raise RuntimeError(
                f"cov(): expected {name} to have one or fewer dimensions but got {name} with {v.ndim} dimensions"
            )
        if (v.dtype.kind not in "ui") if name == "fweights" else (v.dtype.kind != "f"):
            raise RuntimeError(f"cov(): expected {name} to have {'integral' if name == 'fweights' else 'floating point'} dtype")
        if v.numel() != n:
            raise RuntimeError(f"cov(): expected {name} to have the same numel as there are observations in the input")
        if n and bool((v < 0).any()):
            raise RuntimeError(f"cov(): {name} cannot be negative")
        v = to_dtype(RESHAPE(v, shape=(n,)), result_type(v, x))
        w = v if w is None else w * v
    total = sum(w) if w is not None else float(n)
    centre = sum(x * w if w is not None else x, 1, True) / total
    if w is None or correction == 0:
        norm = total - float(correction)
    elif aweights is None:
        norm = total - float(correction)
    else:
        norm = total - sum(w * to_dtype(aweights, x.dtype)) * float(correction) / total
    norm = PUBLIC["clamp"](PUBLIC["real"](norm), min=0.0) if isinstance(norm, Tensor) else max(norm, 0.0)
    x = x - centre
    c = PUBLIC["matmul"](to_dtype(x, centre.dtype), PUBLIC["conj"](PUBLIC["t"](x * w if w is not None else x)))
    c = c / (norm if isinstance(norm, Tensor) else FULL(norm, shape=(), dtype=c.dtype))
    return PUBLIC["squeeze"](c) if c.numel() == 1 else c


@formed()
def corrcoef(input: Tensor) -> Tensor:
    """Pearson's correlation coefficients of the rows of a matrix."""
    x = tensor_operand(input, "corrcoef")
    if x.ndim > 2:
        raise RuntimeError(
            f"corrcoef(): expected input to have two or fewer dimensions but got an input with {x.ndim} dimensions"
        )
    c = cov(x)
    if c.ndim == 0:
        return c / c
    s = SQRT(PUBLIC["diagonal"](c))
    y = c / unsqueeze(s, 1) / unsqueeze(s, 0)
    return y if y.dtype.kind == "c" else PUBLIC["clamp"](y, -1.0, 1.0)


@formed(method=True)
def hash_tensor(input: Tensor, dim: Any = (), *, keepdim: bool = False, mode: int = 0) -> Tensor:
    """The exclusive or of the elements' bits over `dim` (an int, several, or all), uint64: of floats as float64, of integers and
    booleans as int64 has them.

    Raises RuntimeError for another mode than 0 and for an empty tensor without `dim`, IndexError for empty dimensions,
    NotImplementedError for complex numbers.
    """
    x = tensor_operand(input, "hash_tensor")
    if mode != 0:
        raise RuntimeError(f"Unknown hash_tensor mode: {mode}")
    if x.dtype.is_complex:
        raise NotImplementedError(f'"hash_tensor" not implemented for {x.dtype!r}')
    dims = wrap_dims(dim, x.ndim, "hash_tensor")
    if x.numel() == 0:
        if dim is None or dim == () or dim == []:
            raise RuntimeError(
                "hash_tensor: Expected reduction dim to be specified for input.numel() == 0. Specify the reduction dim with the "
                "'dim' argument."
            )
        for d in dims:
            if x.shape[d] == 0:
                raise IndexError(f"hash_tensor: Expected reduction dim {d} to have non-zero size.")
    return registered("xor_bits")(x, dims=dims, keepdim=keepdim)
