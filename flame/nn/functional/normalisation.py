"""Normalisations and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flame import dtypes
from flame.autograd.modes import no_grad
from flame.autograd.tape import assign
from flame.functions.fused import wide
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.random import uniform
from flame.functions.reduction import mean
from flame.functions.refusing import exact
from flame.functions.taking import typed
from flame.nn.functional import fused
from flame.nn.functional.activation import dropout, softmax
from flame.primitive import composite, registered
from flame.tensor import Tensor

RSQRT, WHERE, RESHAPE, MATMUL = map(registered, ("rsqrt", "where", "reshape", "matmul"))
ATTENTION, CAST = map(registered, ("attention", "cast"))


def _narrowed(y: Tensor, x: Tensor) -> Tensor:
    """A result computed from `wide(x)` in the dtype of x, rounded once; scales and shifts may be wider than x."""
    return to_dtype(y, x.dtype) if x.dtype.kind == "f" and x.dtype.itemsize < 4 else y


def _alike(x: Tensor, *others: Tensor | None) -> tuple:
    """x, and what its widened elements are computed with in their common dtype; x itself is cast only where that is wider still."""
    own = x.dtype if x.dtype.kind != "f" or x.dtype.itemsize >= 4 else dtypes.float32
    common = own
    for o in others:
        if o is not None and o.dtype is not common:
            common = dtypes.promote_types(common, o.dtype)
    return (x if common is own else to_dtype(x, common), *[None if o is None else to_dtype(o, common) for o in others])


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@composite
@typed
def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Over the last dimensions: minus the mean, over the standard deviation (biased), scaled and shifted (Ba et al., 2016)."""
    x = tensor_operand(input, "layer_norm")
    shape = tuple(normalized_shape)
    k = len(shape)
    if not k or tuple(x.shape[-k:]) != shape:
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [*, {', '.join(map(str, shape))}], but got input of "
            f"size{list(x.shape)}"
        )
    x, weight, bias = _alike(x, weight, bias)
    return fused.layer_norm(x, weight, bias, float(math.prod(shape)), k=k, eps=eps)


@composite
@typed
def rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Over the last dimensions: divided by the root of the mean square (Zhang and Sennrich, 2019)."""
    x = tensor_operand(input, "rms_norm")
    k = len(tuple(normalized_shape))
    if not k or tuple(x.shape[-k:]) != tuple(normalized_shape):
        if x.ndim < len(normalized_shape):
            raise ValueError(f"Input tensor must have at least {len(normalized_shape)} dimensions, but got {x.ndim}")
        raise RuntimeError(f"rms_norm: the last dimensions of input {list(x.shape)} must be {list(normalized_shape)}")
    e = (
        {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[x.dtype.to_real().name]
        if eps is None
        else eps
    )
    x, weight = _alike(x, weight)
    return fused.rms_norm(x, weight, float(math.prod(normalized_shape)), k=k, eps=e)


def _along_channels(v: Tensor | None, ndim: int) -> Tensor | None:
    return None if v is None else RESHAPE(v, shape=(1, v.numel(), *[1] * (ndim - 2)))


def _move(running: Tensor, now: Tensor, momentum: Any) -> None:
    """A running statistic (which may be wider than the data's dtype), moved towards what it is now."""
    assign(running, running * (1.0 - momentum) + to_dtype(now, running.dtype) * momentum)  # type: ignore[operator]


def _both_or_neither(running_mean: Tensor | None, running_var: Tensor | None) -> None:
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")


@composite
@typed
@exact
def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Each channel by its mean and variance over batch and space (Ioffe and Szegedy, 2015); running statistics are updated in
    place while training, with the unbiased variance."""
    x = tensor_operand(input, "batch_norm")
    n = x.ndim
    _both_or_neither(running_mean, running_var)
    if n < 2:
        raise RuntimeError(f"batch_norm: expected at least 2D input (got {n}D input)")
    c = x.shape[1]
    for name, v in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)):
        if v is not None and v.numel() != c:
            raise RuntimeError(f"{name} should contain {c} elements not {v.numel()}")
    if training:
        dims = (0, *range(2, n))
        count = x.numel() // max(c, 1)
        if count <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}")
        x, weight, bias = _alike(x, _along_channels(weight, n), _along_channels(bias, n))
        y, m, v = fused.batch_norm_of_batch(x, weight, bias, float(count), dims=dims, eps=eps)
        if running_mean is not None and running_var is not None:
            with no_grad():
                _move(running_mean, RESHAPE(m, shape=(c,)), momentum)
                _move(running_var, RESHAPE(v, shape=(c,)) * (count / (count - 1)), momentum)
        return y
    if running_mean is None or running_var is None:
        raise ValueError("batch_norm: running_mean and running_var are needed where training is False")
    several = (_along_channels(t, n) for t in (running_mean, running_var, weight, bias))
    x, m, v, weight, bias = _alike(x, *several)
    return fused.batch_norm(x, m, v, weight, bias, eps=eps)


@composite
@typed
def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Each channel of each sample by its own mean and variance (Ulyanov et al., 2016), or by running ones; with both, the
    running ones move towards the means over the batch, with the unbiased variance."""
    x = tensor_operand(input, "instance_norm")
    _both_or_neither(running_mean, running_var)
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if x.ndim < 2:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {list(x.shape)}")
    n, c = x.ndim, x.shape[1]
    dims, count = tuple(range(2, n)), math.prod(x.shape[2:])
    if count <= 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {list(x.shape)}")
    given, x = x, wide(x)
    m = mean(x, dims, True)
    d = x - m
    v = mean(d * d, dims, True)
    if running_mean is not None and running_var is not None:
        with no_grad():
            per_channel = lambda t: RESHAPE(mean(t, 0, False), shape=(c,))
            _move(running_mean, per_channel(m), momentum)
            _move(running_var, per_channel(v) * (count / (count - 1)), momentum)
    return _narrowed(_scaled(d * RSQRT(v + eps), _along_channels(weight, n), _along_channels(bias, n)), given)


@composite
@typed
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Groups of channels by their mean and variance over channels and space (Wu and He, 2018)."""
    x = tensor_operand(input, "group_norm")
    s = tuple(x.shape)
    if len(s) < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {len(s)}")
    if s[1] % num_groups:
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, but got input of shape {list(s)} and "
            f"num_groups={num_groups}"
        )
    x, weight, bias = _alike(x, _along_channels(weight, len(s)), _along_channels(bias, len(s)))
    return fused.group_norm(x, weight, bias, float(math.prod(s[1:]) // num_groups), groups=num_groups, eps=eps)


@composite
@typed
def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    if input.ndim < 3:
        raise ValueError(f"Expected 3D or higher dimensionality input (got {input.ndim} dimensions)")
    sq = input * input
    lo, hi = [0] * input.ndim, [0] * input.ndim
    lo[1], hi[1] = size // 2, (size - 1) // 2
    w = registered("window")(registered("pad")(sq, lo=tuple(lo), hi=tuple(hi), value=0), dim=1, size=size, step=1, dilation=1)
    return input / (mean(w, w.ndim - 1) * alpha + k) ** beta


def _as_routine(q: Tensor, k: Tensor, v: Tensor, factor: Any, mask: Tensor | None, grouped: bool) -> bool:
    """Whether attention is the primitive: dimensions that do not broadcast, a scale that is a plain number, and a mask that
    needs no gradient."""
    if q.dtype.kind != "f" or type(factor) is not float or not q.ndim == k.ndim == v.ndim:
        return False
    if mask is not None and (mask.dtype.kind not in "bf" or mask.requires_grad or mask.ndim > q.ndim):
        return False
    (*lead, t, e), (*of_keys, s, e2), (*of_values, s2, w) = q.shape, k.shape, v.shape
    if type(e) is not int or type(w) is not int or not (e == e2 and s == s2) or of_keys != of_values:
        return False
    if grouped and lead and type(lead[-1]) is type(of_keys[-1]) is int and of_keys[-1] and lead[-1] % of_keys[-1] == 0:
        lead, of_keys = lead[:-1], of_keys[:-1]
    if lead != of_keys or 0 in (e, w, s, t) or 0 in q.shape:
        return False
    scores = (*q.shape[:-1], s)
    return mask is None or all(n in (1, m) for n, m in zip(reversed(mask.shape), reversed(scores)))


def _kept(shape: tuple, p: float) -> Any:
    """What dropout multiplies by: 0 with probability p, else 1 / (1 - p)."""
    return CAST(uniform(shape, dtypes.float32) >= p, dtype=dtypes.float32) * (1.0 / (1.0 - p))


@composite
@exact
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(query @ key^T * scale + mask) @ value over [..., L, E], [..., S, E], [..., S, Ev].

    A boolean mask says where to attend; a floating one is added. `is_causal` attends to keys not after the query. `enable_gqa`
    lets heads of the query share heads of key and value. A row that attends to nothing is 0.
    """
    q, k, v = (
        tensor_operand(t, "scaled_dot_product_attention", n) for t, n in ((query, "query"), (key, "key"), (value, "value"))
    )
    if q.dtype is not k.dtype or q.dtype is not v.dtype:
        raise RuntimeError(
            f"Expected query, key, and value to have the same dtype, but got query.dtype: {q.dtype!r} key.dtype: {k.dtype!r} and "
            f"value.dtype: {v.dtype!r} instead."
        )
    if q.ndim < 2 or k.ndim < 2 or v.ndim < 2:
        raise RuntimeError("scaled_dot_product_attention: query, key and value need at least 2 dimensions")
    if is_causal and attn_mask is not None:
        raise RuntimeError("_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True")
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {dropout_p}")
    if _as_routine(q, k, v, factor, attn_mask, bool(enable_gqa)) and dropout_p < 1.0:
        more: tuple = ()
        if attn_mask is not None or dropout_p:
            keep = _kept((*q.shape[:-1], k.shape[-2]), dropout_p) if dropout_p else 1.0
            more = (0.0 if attn_mask is None else attn_mask, keep)
        return ATTENTION(q, k, v, *more, scale=factor, causal=bool(is_causal))[0]
    if enable_gqa:
        n = q.shape[-3]
        k = k.repeat_interleave(n // k.shape[-3], -3)  # type: ignore[attr-defined]
        v = v.repeat_interleave(n // v.shape[-3], -3)  # type: ignore[attr-defined]
    s = MATMUL(q * factor, k.transpose(-2, -1))  # type: ignore[attr-defined]
    if is_causal:
        iota = registered("iota")
        rows = RESHAPE(iota(size=q.shape[-2], dtype=dtypes.int32), shape=(q.shape[-2], 1))
        s = WHERE(iota(size=k.shape[-2], dtype=dtypes.int32) <= rows, s, float("-inf"))
    elif attn_mask is not None:
        s = WHERE(attn_mask, s, float("-inf")) if attn_mask.dtype.kind == "b" else s + attn_mask
    p = softmax(s, -1)
    if dropout_p:
        p = dropout(p, dropout_p)
    return MATMUL(p, v)
