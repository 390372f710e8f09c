"""Activations, normalisations and losses as functions of primitives that run as one program (`flame.autograd.fused`).

The functions that users call stand beside these, with their checks, defaults and promotion.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flame.autograd.fused import fused, fused_where, with_number
from flame.dtypes import int64
from flame.functions.fused import exponentials, narrowed, wide
from flame.primitive import registered

ADD, SUB, MUL, DIV, NEG, ABS, WHERE, CAST = map(registered, ("add", "sub", "mul", "div", "neg", "abs", "where", "cast"))
EXP, EXPM1, LOG, LOG1P, ERF, TANH, SIGMOID = map(registered, ("exp", "expm1", "log", "log1p", "erf", "tanh", "sigmoid"))
RELU, MAXIMUM, MINIMUM, SUM, RSQRT = map(registered, ("relu", "maximum", "minimum", "sum", "rsqrt"))
GT, LT, LE, NE, GATHER, RESHAPE = map(registered, ("gt", "lt", "le", "ne", "gather", "reshape"))


# -------------------------------------------------------------------- activations


@fused
def hardtanh(x: Any, *, low: float, high: float) -> Any:
    return MINIMUM(high, MAXIMUM(low, x))  # (of two zeros the second is the answer: it is x's)


@fused
def leaky_relu(x: Any, *, slope: float) -> Any:
    return WHERE(GT(x, 0), x, MUL(x, slope))


@fused
def elu(x: Any, *, alpha: float) -> Any:
    return WHERE(GT(x, 0), x, MUL(EXPM1(x), alpha))


@fused
def selu(x: Any) -> Any:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return MUL(WHERE(GT(x, 0), x, MUL(EXPM1(x), alpha)), scale)


@fused
def celu(x: Any, *, alpha: float) -> Any:
    return WHERE(GT(x, 0), x, MUL(EXPM1(DIV(x, alpha)), alpha))


@fused
def gelu(x: Any, *, tanh: bool) -> Any:
    if tanh:
        inner = MUL(ADD(x, MUL(MUL(MUL(x, x), x), 0.044715)), math.sqrt(2.0 / math.pi))
        return MUL(MUL(x, 0.5), ADD(TANH(inner), 1.0))
    return MUL(MUL(x, 0.5), ADD(ERF(MUL(x, math.sqrt(0.5))), 1.0))


@fused
def silu(x: Any) -> Any:
    return MUL(x, SIGMOID(x))


@fused
def mish(x: Any) -> Any:
    return MUL(x, TANH(softplus.f(x, beta=1.0, threshold=20.0)))


@fused
def softplus(x: Any, *, beta: float, threshold: float) -> Any:
    z = MUL(x, beta) if beta != 1.0 else x
    smooth = ADD(LOG1P(EXP(NEG(ABS(z)))), RELU(z))
    return WHERE(GT(z, threshold), x, DIV(smooth, beta) if beta != 1.0 else smooth)


@fused
def logsigmoid(x: Any) -> Any:
    return SUB(MINIMUM(x, 0.0), LOG1P(EXP(NEG(ABS(x)))))


@fused
def hardsigmoid(x: Any) -> Any:
    return DIV(MINIMUM(MAXIMUM(ADD(x, 3.0), 0.0), 6.0), 6.0)


@fused
def hardswish(x: Any) -> Any:
    return DIV(MUL(x, MINIMUM(MAXIMUM(ADD(x, 3.0), 0.0), 6.0)), 6.0)


# -------------------------------------------------------------------- normalisations


def _scaled(y: Any, weight: Any, bias: Any) -> Any:
    y = y if weight is None else MUL(y, weight)
    return y if bias is None else ADD(y, bias)


def _mean(x: Any, n: Any, dims: tuple[int, ...]) -> Any:
    return DIV(SUM(x, dim=dims, keepdim=True), n)


@fused
def layer_norm(x: Any, weight: Any, bias: Any, n: float, *, k: int, eps: float) -> Any:
    """Over the last k dimensions, of n elements."""
    given, x, dims = x, wide(x), tuple(range(x.ndim - k, x.ndim))
    d = SUB(x, _mean(x, n, dims))
    return narrowed(_scaled(MUL(d, RSQRT(ADD(_mean(MUL(d, d), n, dims), eps))), weight, bias), given)


@fused
def rms_norm(x: Any, weight: Any, n: float, *, k: int, eps: float) -> Any:
    given, x, dims = x, wide(x), tuple(range(x.ndim - k, x.ndim))
    return narrowed(_scaled(MUL(x, RSQRT(ADD(_mean(MUL(x, x), n, dims), eps))), weight, None), given)


@fused
def batch_norm(x: Any, mean: Any, var: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    """By given statistics, which like weight and bias are of shape [1, C, 1, ..]."""
    given = x
    return narrowed(_scaled(MUL(SUB(wide(x), mean), RSQRT(ADD(var, eps))), weight, bias), given)


@fused
def batch_norm_of_batch(x: Any, weight: Any, bias: Any, n: float, *, dims: tuple[int, ...], eps: float) -> Any:
    """By the batch's own statistics over `dims`, n elements a channel; and these, mean and variance."""
    given, x = x, wide(x)
    m = _mean(x, n, dims)
    d = SUB(x, m)
    v = _mean(MUL(d, d), n, dims)
    return narrowed(_scaled(MUL(d, RSQRT(ADD(v, eps))), weight, bias), given), m, v


@fused
def group_norm(x: Any, weight: Any, bias: Any, n: float, *, groups: int, eps: float) -> Any:
    """Groups of channels, each of n elements."""
    s, given = x.shape, x
    rest = s[1] // groups
    for size in s[2:]:
        rest = rest * size
    y = RESHAPE(wide(x), shape=(s[0], groups, rest))
    d = SUB(y, _mean(y, n, (2,)))
    y = RESHAPE(MUL(d, RSQRT(ADD(_mean(MUL(d, d), n, (2,)), eps))), shape=tuple(s))
    return narrowed(_scaled(y, weight, bias), given)


# -------------------------------------------------------------------- losses


def _reduced(loss: Any, factor: Any, reduction: str) -> Any:
    """The losses of all elements; "mean" is their sum times `factor`."""
    if reduction == "none":
        return loss
    total = SUM(loss, dim=tuple(range(loss.ndim)), keepdim=False) if loss.ndim else loss
    return total if reduction == "sum" else with_number(MUL, total, factor)


@fused
def squared(x: Any, t: Any, factor: float, *, reduction: str) -> Any:
    d = SUB(x, t)
    return _reduced(MUL(d, d), factor, reduction)


@fused
def absolute(x: Any, t: Any, factor: float, *, reduction: str) -> Any:
    return _reduced(ABS(SUB(x, t)), factor, reduction)


@fused
def smooth_absolute(x: Any, t: Any, factor: float, *, beta: float, reduction: str) -> Any:
    d = SUB(x, t)
    a = ABS(d)
    loss = a if beta == 0 else WHERE(LT(a, beta), MUL(MUL(d, d), 0.5 / beta), SUB(a, 0.5 * beta))
    return _reduced(loss, factor, reduction)


@fused
def huber(x: Any, t: Any, factor: float, *, delta: float, reduction: str) -> Any:
    d = SUB(x, t)
    a = ABS(d)
    return _reduced(WHERE(LE(a, delta), MUL(MUL(d, d), 0.5), MUL(SUB(a, 0.5 * delta), delta)), factor, reduction)


@fused
def logistic(x: Any, t: Any, factor: float, *, reduction: str) -> Any:
    """Binary cross entropy of sigmoid(x)."""
    return _reduced(ADD(SUB(RELU(x), MUL(x, t)), LOG1P(EXP(NEG(ABS(x))))), factor, reduction)


_UNSIGNED = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}
_most: Any = np.maximum.reduce


def _classes_exist(x: Any, target: Any, *_: Any, dim: int, ignore: int, **__: Any) -> bool:
    """Whether every target that counts is a class (what is not is reported by the operation that looks it up)."""
    if not target.size:
        return True
    classes = x.shape[dim]
    if _most(target.reshape(-1).view(_UNSIGNED[target.dtype.itemsize])) < classes:  # (what is negative is then the largest)
        return True
    counts = target[target != ignore]
    return not counts.size or bool(0 <= counts.min() and counts.max() < classes)


@fused_where(_classes_exist)
def class_entropy(x: Any, target: Any, share: float, *, dim: int, ignore: int, reduction: str, smoothing: float) -> Any:
    """-log softmax(x) along `dim` at the target classes; smoothing mixes in the sum over classes times `share`."""
    z, total = exponentials(wide(x), dim)
    logp = narrowed(SUB(z, LOG(total)), x)
    shape = tuple(target.shape)
    target = target if target.dtype is int64 else CAST(target, dtype=int64)
    valid = NE(target, ignore)
    picked = GATHER(logp, RESHAPE(WHERE(valid, target, 0), shape=(*shape[:dim], 1, *shape[dim:])), dim=dim)
    loss = WHERE(valid, NEG(RESHAPE(picked, shape=shape)), 0.0)
    if smoothing:
        spread = WHERE(valid, NEG(SUM(logp, dim=(dim,), keepdim=False)), 0.0)
        loss = ADD(MUL(loss, 1.0 - smoothing), with_number(MUL, spread, share))
    if reduction != "mean":
        return _reduced(loss, None, reduction)
    return DIV(_reduced(loss, None, "sum"), _reduced(CAST(valid, dtype=loss.dtype), None, "sum"))
