"""Sums, extremes, norms, statistics, sorting."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flame import dtypes
from flame.dtypes import dtype as DType
from flame.functions import fused
from flame.functions.elementwise import PUBLIC, public
from flame.functions.promotion import cast, deliver, tensor_operand, to_dtype
from flame.functions.shape import RESHAPE, take_slice, wrap_dim, wrap_dims
from flame.functions.taking import typed
from flame.primitive import followed, force, registered
from flame.tensor import Tensor

SUM, PROD, AMAX, AMIN, ARGMAX, ARGMIN, ANY, ALL = map(
    registered, ("sum", "prod", "amax", "amin", "argmax", "argmin", "any", "all")
)
CUMSUM, CUMPROD, SORT, ARGSORT, GATHER = map(registered, ("cumsum", "cumprod", "sort", "argsort", "gather"))


_OF_BOOLEANS = {AMAX: ANY, AMIN: ALL}


def _reduce(p: Any, x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    if p in _OF_BOOLEANS and x.dtype.kind == "b":
        p = _OF_BOOLEANS[p]
    if not dims:
        return p(RESHAPE(x, shape=(1,)), dim=(0,), keepdim=False) if x.ndim == 0 else registered("copy")(x)
    return p(x, dim=dims, keepdim=keepdim)


def _axis(dim: Any, axis: Any) -> Any:
    if dim is not None and axis is not None:
        raise TypeError("got multiple values for argument 'dim': it was given as 'axis' too")
    return axis if dim is None else dim


@public()
@followed
def sum(
    input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None, out: Tensor | None = None,
    axis: Any = None,
    keepdims: bool = False,
) -> Tensor:  # fmt: skip
    """The sum over `dim` (an int, several, or all). Integers and booleans are summed as int64."""
    x = tensor_operand(input, "sum")
    if dim is axis is dtype is out is None and x.ndim:  # the commonest, straight
        return SUM(x, dim=tuple(range(x.ndim)), keepdim=keepdim or keepdims)
    x = to_dtype(x, dtype) if dtype is not None else x
    dims = wrap_dims(_axis(dim, axis), x.ndim, "sum")
    y = _reduce(SUM, x, dims, keepdim or keepdims)
    return deliver(y if dtype is None else to_dtype(y, dtype), out, "sum")


@public()
@followed
def mean(
    input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None, out: Tensor | None = None,
    axis: Any = None,
    keepdims: bool = False,
) -> Tensor:  # fmt: skip
    """The mean over `dim`. Raises RuntimeError for integers, unless `dtype` is given."""
    x = tensor_operand(input, "mean")
    x = to_dtype(x, dtype) if dtype is not None else x
    if x.dtype.kind not in "fc":
        raise NotImplementedError(
            "mean(): could not infer output dtype. Input dtype must be either a floating point or complex dtype. "
            f"Got: {x.dtype!r}"
        )
    dims = wrap_dims(_axis(dim, axis), x.ndim, "mean")
    n = math.prod(x.shape[d] for d in dims)
    total = _reduce(SUM, x, dims, keepdim or keepdims)
    return deliver(total / float(n) if n else total * float("nan"), out, "mean")


@public()
@followed
def prod(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Tensor:
    """The product over one dimension, or all."""
    x = tensor_operand(input, "prod")
    x = to_dtype(x, dtype) if dtype is not None else x
    y = _reduce(PROD, x, wrap_dims(dim, x.ndim, "prod"), keepdim)
    return y if dtype is None else to_dtype(y, dtype)


class Aminmax(NamedTuple):
    """What aminmax gives."""

    min: Tensor
    max: Tensor


class Extreme(NamedTuple):
    """What max, min, median, sort, topk along a dimension give."""

    values: Tensor
    indices: Tensor


def _no_elements(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op}(): Expected reduction dim to be specified for input.numel() == 0. Specify the reduction dim with the 'dim' argument."
    )


def _empty_check(x: Tensor, dims: tuple[int, ...], op: str) -> None:
    if len(dims) == x.ndim > 1 and x.numel() == 0:
        raise _no_elements(op)
    s = x.shape
    for d in dims:
        if s[d] == 0:
            raise IndexError(f"{op}(): Expected reduction dim {d} to have non-zero size.")


def _arg(p: Any, name: str) -> None:
    def function(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        x = tensor_operand(input, name)
        if x.numel() == 0 and dim is None:
            raise IndexError(
                f"{name}(): Expected reduction dim to be specified for input.numel() == 0. Specify the reduction dim."
            )
        if x.ndim == 0:
            x = RESHAPE(x, shape=(1,))
            return p(x, dim=(0,), keepdim=False)
        if dim is None:
            return p(x, dim=tuple(range(x.ndim)), keepdim=keepdim)
        d = wrap_dim(dim, x.ndim, name)
        _empty_check(x, (d,), name)
        return p(x, dim=(d,), keepdim=keepdim)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"The index of the {name[3:]}imum along `dim` (its first place), or in the flattened tensor; int64."
    public(name)(followed(typed(function)))


_arg(ARGMAX, "argmax")
_arg(ARGMIN, "argmin")


def _extreme(p: Any, arg: Any, pair: Any, name: str) -> None:
    def function(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Any = None, out: Any = None) -> Any:
        x = tensor_operand(input, name)
        if isinstance(dim, Tensor) or other is not None:
            return deliver(PUBLIC[pair](x, dim if other is None else other), out, name)
        if dim is None:
            if x.numel() == 0:
                raise _no_elements(name)
            return deliver(_reduce(p, x, tuple(range(x.ndim)), False), out, name)
        if out is not None:
            pair_of = zip(function(x, dim, keepdim), out, strict=True)
            return Extreme(*(deliver(y, o, name + "_pair") for y, o in pair_of))
        if x.ndim == 0:
            wrap_dim(dim, 0, name)
            return Extreme(registered("copy")(x), PUBLIC["zeros"]((), dtype=dtypes.int64))
        d = wrap_dim(dim, x.ndim, name)
        _empty_check(x, (d,), name)
        index = arg(cast(x, dtype=dtypes.uint8) if x.dtype.kind == "b" else x.detach(), dim=(d,), keepdim=True)  # type: ignore[attr-defined]
        values = GATHER(x, index, dim=d)
        if not keepdim:
            s = tuple(x.shape)[:d] + tuple(x.shape)[d + 1 :]
            values, index = RESHAPE(values, shape=s), RESHAPE(index, shape=s)
        return Extreme(values, index)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"The {name}imum of all elements; with `dim` (values, indices) along it; with a tensor the elementwise {name}imum."
    )
    public(name)(followed(function))


_extreme(AMAX, ARGMAX, "maximum", "max")
_extreme(AMIN, ARGMIN, "minimum", "min")


def _reduced(p: Any, name: str) -> None:
    def function(input: Tensor, dim: Any = (), keepdim: bool = False, *, out: Tensor | None = None) -> Tensor:
        x = tensor_operand(input, name)
        dims = wrap_dims(dim, x.ndim, name)
        if (dim is None or dim == ()) and x.numel() == 0:
            raise _no_elements(name)
        _empty_check(x, dims, name)
        return deliver(_reduce(p, x, dims, keepdim), out, name)

    function.__name__ = function.__qualname__ = name
    public(name)(followed(function))


_reduced(AMAX, "amax")
_reduced(AMIN, "amin")


@public()
@followed
def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Aminmax:
    """The smallest and the largest element, along one dimension or of all."""
    x = tensor_operand(input, "aminmax")
    if x.numel() == 0 and dim is None:
        raise RuntimeError("aminmax(): cannot compute aminmax over an empty dimension as the operation has no identity.")
    dims = () if dim is None else wrap_dim(dim, x.ndim, "aminmax")
    return Aminmax(PUBLIC["amin"](x, dims, keepdim), PUBLIC["amax"](x, dims, keepdim))


def _truth(p: Any, name: str) -> None:
    def function(input: Tensor, dim: Any = None, keepdim: bool = False, *, axis: Any = None) -> Tensor:
        x = tensor_operand(input, name)
        d = x.dtype
        if d.kind != "b":
            x = x != 0
        y = _reduce(p, x, wrap_dims(_axis(dim, axis), x.ndim, name), keepdim)
        return to_dtype(y, d) if d is dtypes.uint8 else y

    function.__name__ = function.__qualname__ = name
    public(name)(followed(function))


_truth(ANY, "any")
_truth(ALL, "all")


@public()
@followed
def count_nonzero(input: Tensor, dim: Any = None) -> Tensor:
    return sum(input != 0, dim)


@public()
@followed
def var(
    input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    """The variance over `dim`: squared deviations from the mean over n - correction (1 unless told otherwise)."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    x = tensor_operand(input, "var")
    if x.dtype.kind == "c":  # squared distances in the plane: those of both parts
        return var(x.real, dim, unbiased, keepdim, correction=correction) + var(
            x.imag, dim, unbiased, keepdim, correction=correction
        )
    if x.dtype.kind != "f":
        raise RuntimeError(f"std and var only support floating point and complex dtypes, but got {x.dtype!r}")
    dims = wrap_dims(dim, x.ndim, "var")
    c = (1 if unbiased in (None, True) else 0) if correction is None else correction
    n = math.prod(x.shape[d] for d in dims)
    free = n - c
    if n and free > 0 and dims:
        return fused.var(x, float(n), float(free), dims=dims, keepdim=keepdim)
    d = x - mean(x, dims, True)
    total = sum(d * d, dims, keepdim)
    return total / float(free) if free > 0 else total * float("nan") if n == 0 or c == n else total / 0.0


@public()
@followed
def std(
    input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    return PUBLIC["sqrt"](var(input, dim, unbiased, keepdim, correction=correction))


@public()
@followed
def var_mean(
    input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Any = None
) -> tuple:
    return var(input, dim, unbiased, keepdim, correction=correction), mean(
        input, None if isinstance(dim, bool) else dim, keepdim
    )


@public()
@followed
def std_mean(
    input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Any = None
) -> tuple:
    return std(input, dim, unbiased, keepdim, correction=correction), mean(
        input, None if isinstance(dim, bool) else dim, keepdim
    )


@public()
@followed
def logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """log of the sum of exponentials, shifted by the maximum so that it does not overflow."""
    x = tensor_operand(input, "logsumexp")
    x = x if x.dtype.kind in "fc" else cast(x, dtype=dtypes.get_default_dtype())
    dims = wrap_dims(dim, x.ndim, "logsumexp")
    if any(x.shape[d] == 0 for d in dims):  # (the maximum of nothing is not there; the sum of nothing is 0)
        return PUBLIC["log"](SUM(PUBLIC["exp"](x), dim=dims, keepdim=keepdim))
    if not dims:
        return logsumexp(x.reshape(1), 0).reshape(()) if x.dtype.kind == "c" else registered("copy")(x)  # type: ignore[attr-defined]
    if x.dtype.kind == "c":
        top = AMAX(x.real.detach(), dim=dims, keepdim=True)  # type: ignore[attr-defined]
        top = registered("where")(registered("isinf")(top), 0.0, top)
        out = PUBLIC["log"](SUM(PUBLIC["exp"](x - top), dim=dims, keepdim=True)) + top
        return out if keepdim else RESHAPE(out, shape=tuple(d for i, d in enumerate(x.shape) if i not in dims))
    return fused.logsumexp(x, dims=dims, keepdim=keepdim)


@public()
@followed
def norm(input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: DType | None = None) -> Tensor:
    """The vector p-norm over `dim` (all by default); "fro" is the 2-norm."""
    x = tensor_operand(input, "norm")
    x = to_dtype(x, dtype) if dtype is not None else x
    if x.dtype.kind == "c" and p != "nuc":
        x = PUBLIC["abs"](x)
    if x.dtype.kind not in "fc":
        raise NotImplementedError(f"linalg.vector_norm: Expected a floating point or complex tensor as input. Got {x.dtype!r}")
    dims = wrap_dims(dim, x.ndim, "norm")
    p = 2 if p in ("fro", None) else p
    if p == "nuc":
        if len(dims) != 2:
            raise RuntimeError(f"linalg.matrix_norm: dim must be a 2-tuple. Got {list(dims)}")
        rest = [d for d in range(x.ndim) if d not in dims]
        y = sum(registered("svdvals")(PUBLIC["permute"](x, (*rest, *dims))), -1)
        return RESHAPE(y, shape=tuple(1 if d in dims else n for d, n in enumerate(x.shape))) if keepdim else y
    if isinstance(p, str):
        raise RuntimeError(f"linalg.matrix_norm: Order {p} not supported.")
    p = float(p)
    if x.dtype.is_narrow_float:  # powers leave the range of float16
        return to_dtype(norm(to_dtype(x, dtypes.float32), p, dim, keepdim), x.dtype)
    if p == 2:
        if dims:
            return fused.root_of_squares(x, dims=dims, keepdim=keepdim, smooth=force.grad and x.requires_grad)
        return _root(_reduce(SUM, x * x, dims, keepdim), 0.5)
    if (p < 0 or p == math.inf) and any(x.shape[d] == 0 for d in dims):
        where = "an empty tensor" if dim is None or len(dims) == x.ndim else f"dimensions {list(dims)}, of which one is empty"
        raise RuntimeError(
            f"linalg.vector_norm cannot compute the {p} norm on {where}, because the operation does not have an identity"
        )
    a = PUBLIC["abs"](x)
    if p == math.inf:
        return _reduce(AMAX, a, dims, keepdim)
    if p == -math.inf:
        return _reduce(AMIN, a, dims, keepdim)
    if p == 0:
        return _reduce(SUM, registered("where")(registered("isnan")(a), 1.0, registered("sign")(a)), dims, keepdim)
    if p == 1:
        return _reduce(SUM, a, dims, keepdim)
    if 0 < p < 1 and force.grad and a.requires_grad:  # powers whose slope is infinite at 0: derivative 0 there
        zero = a == 0
        powers = registered("where")(zero, 0.0, registered("where")(zero, 1.0, a) ** p)
        return _root(_reduce(SUM, powers, dims, keepdim), 1.0 / p)
    return _root(_reduce(SUM, a**p, dims, keepdim), 1.0 / p)


def _root(total: Tensor, power: float) -> Tensor:
    """A root of what is not negative, with derivative 0 at 0."""
    if not (force.grad and total.requires_grad):
        return total**power
    zero = total == 0
    return registered("where")(zero, 0.0 if power > 0 else math.inf, registered("where")(zero, 1.0, total) ** power)


@public()
@followed
def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    return norm(input - other, p)


@public()
@followed
@typed
def nansum(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return sum(registered("where")(registered("isnan")(input), 0.0, input) if input.dtype.kind == "f" else input, dim, keepdim)


@public()
@followed
@typed
def nanmean(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return nansum(input, dim, keepdim) / sum(to_dtype(~registered("isnan")(input), input.dtype), dim, keepdim)


def _cumulative(p: Any, name: str) -> None:
    def function(input: Tensor, dim: Any = None, *, dtype: DType | None = None, axis: Any = None) -> Tensor:
        x = tensor_operand(input, name)
        d = _axis(dim, axis)
        if d is None:
            raise TypeError(f"{name}() missing 1 required positional arguments: 'dim'")
        if dtype is not None:
            x = to_dtype(x, dtype)
        elif x.dtype.kind not in "fc":
            x = to_dtype(x, dtypes.int64)
        at = wrap_dim(d, x.ndim, name)
        y = registered("copy")(x) if x.ndim == 0 else p(x, dim=at)
        return y if dtype is None else to_dtype(y, dtype)

    function.__name__ = function.__qualname__ = name
    public(name)(followed(function))


_cumulative(CUMSUM, "cumsum")
_cumulative(CUMPROD, "cumprod")


@public()
@followed
@typed
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The indices that sort along `dim`; equal elements keep their order."""
    x = tensor_operand(input, "argsort")
    if x.ndim == 0:
        return PUBLIC["zeros"]((), dtype=dtypes.int64)
    return ARGSORT(x.detach(), dim=wrap_dim(dim, x.ndim, "argsort"), descending=bool(descending))  # type: ignore[attr-defined]


@public()
@followed
@typed
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Extreme:
    """(values, indices) in order along `dim`; equal elements keep theirs."""
    x = tensor_operand(input, "sort")
    index = argsort(x, dim, descending)
    return Extreme(registered("copy")(x) if x.ndim == 0 else GATHER(x, index, dim=wrap_dim(dim, x.ndim, "sort")), index)


@public()
@followed
@typed
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Extreme:
    """The k largest (or smallest) elements along `dim`, in order, and their indices."""
    x = tensor_operand(input, "topk")
    d = wrap_dim(dim, x.ndim, "topk")
    if x.ndim == 0:
        return Extreme(registered("copy")(x), PUBLIC["zeros"]((), dtype=dtypes.int64))
    if not 0 <= k <= x.shape[d]:
        raise RuntimeError("selected index k out of range")
    index = take_slice(argsort(x, d, largest), d, 0, k)
    return Extreme(GATHER(x, index, dim=d), index)


@public()
@followed
@typed
def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Extreme:
    x = tensor_operand(input, "kthvalue")
    d = wrap_dim(dim, x.ndim, "kthvalue")
    if x.ndim == 0:
        if k != 1:
            raise RuntimeError(f"kthvalue(): selected number k out of range for dimension {d}")
        return Extreme(registered("copy")(x), PUBLIC["zeros"]((), dtype=dtypes.int64))
    if not x.shape[d]:
        raise IndexError(f"kthvalue(): Expected reduction dim {d} to have non-zero size.")
    if not 1 <= k <= x.shape[d]:
        raise RuntimeError(f"kthvalue(): selected number k out of range for dimension {d}")
    index = take_slice(argsort(x, d), d, k - 1, k)
    values = GATHER(x, index, dim=d)
    if keepdim:
        return Extreme(values, index)
    s = tuple(x.shape)[:d] + tuple(x.shape)[d + 1 :]
    return Extreme(RESHAPE(values, shape=s), RESHAPE(index, shape=s))


@public()
@followed
@typed
def median(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The lower median of all elements, or (values, indices) along `dim`."""
    if dim is None:
        x = RESHAPE(input, shape=(input.numel(),))
        return kthvalue(x, (x.numel() + 1) // 2, 0).values if x.numel() else x.sum() * float("nan")  # type: ignore[attr-defined]
    d = wrap_dim(dim, input.ndim, "median")
    if input.ndim == 0:
        return kthvalue(input, 1, 0, keepdim)
    _empty_check(input, (d,), "median")
    return kthvalue(input, (input.shape[d] + 1) // 2, d, keepdim)
