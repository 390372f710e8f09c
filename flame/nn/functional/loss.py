"""Losses. None reads a value, so that all can be captured; `reduction` is "none", "mean" or "sum"."""

from __future__ import annotations

import math
import warnings
from typing import Any

from flame import dtypes
from flame.autograd.modes import no_grad
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import as_floating, promoted, tensor_operand, to_dtype
from flame.functions.refusing import exact
from flame.functions.taking import typed
from flame.nn.functional import fused
from flame.nn.functional.activation import linear, log_softmax, logsigmoid, pairwise_distance, softplus
from flame.nn.functional.chunked_entropy import LinearCrossEntropyOptions, entropy_in_chunks
from flame.primitive import broadcast_shapes, composite, registered
from flame.tensor import Tensor

EXP, LOG, LOG1P, ABS, RELU, SQRT = map(registered, ("exp", "log", "log1p", "abs", "relu", "sqrt"))
WHERE, MAXIMUM, MINIMUM, SUM, GATHER, INDEX_SELECT, RESHAPE = map(
    registered, ("where", "maximum", "minimum", "sum", "gather", "index_select", "reshape")
)


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")


def reduced(loss: Tensor, reduction: str) -> Tensor:
    _check_reduction(reduction)
    if reduction == "none":
        return loss
    total = SUM(loss, dim=tuple(range(loss.ndim)), keepdim=False) if loss.ndim else loss
    return total if reduction == "sum" else total * (1.0 / loss.numel() if loss.numel() else math.nan)


def _factor(x: Tensor, t: Tensor, reduction: str) -> float:
    """What the sum over what two tensors broadcast to is multiplied by, to be its mean."""
    _check_reduction(reduction)
    n = math.prod(broadcast_shapes(tuple(x.shape), tuple(t.shape)) if x.shape != t.shape else x.shape)
    return 1.0 / n if n else math.nan


def _operands(input: Any, target: Any, op: str) -> tuple[Tensor, Tensor]:
    return promoted(tensor_operand(input, op), tensor_operand(target, op, "target"))  # type: ignore[return-value]


# -------------------------------------------------------------------- classes


def _class_dim(x: Tensor) -> int:
    return 0 if x.ndim == 1 else 1


def _per_class(v: Tensor, x: Tensor) -> Tensor:
    """A vector over classes, shaped to broadcast with `x`."""
    return RESHAPE(v, shape=(1,) * _class_dim(x) + (v.numel(),) + (1,) * (x.ndim - _class_dim(x) - 1))


def _of_target(
    logp: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> Tensor:
    """The negative log probability of each target class: a gather, never a one-hot matrix.

    Mean is over the weights of the targets that are not ignored. Smoothing mixes in the mean over all classes
    (Szegedy et al., 2016).
    """
    _check_reduction(reduction)
    d = _class_dim(logp)
    classes = logp.shape[d]
    if tuple(target.shape) != (*logp.shape[:d], *logp.shape[d + 1 :]):
        if logp.ndim == 1 and target.ndim == 1:
            raise ValueError(f"For 1D input, 1D target must have size 1, but got target size: {target.shape[0]}")
        if logp.ndim and target.ndim and d and logp.shape[0] != target.shape[0]:
            raise ValueError(f"Expected input batch_size ({logp.shape[0]}) to match target batch_size ({target.shape[0]}).")
        raise RuntimeError(f"Expected target size {[*logp.shape[:d], *logp.shape[d + 1 :]]}, got {list(target.shape)}")
    if weight is not None and tuple(weight.shape) != (classes,):
        raise RuntimeError(
            f"weight tensor should be defined either for all {classes} classes or no classes but got weight tensor of shape: "
            f"{list(weight.shape)}"
        )
    target = to_dtype(target, dtypes.int64)
    valid = target != ignore_index
    safe = WHERE(valid, target, 0)
    picked = GATHER(logp, RESHAPE(safe, shape=(*target.shape[:d], 1, *target.shape[d:])), dim=d)
    loss = -RESHAPE(picked, shape=tuple(target.shape))
    share: Any = None
    if weight is not None:
        share = WHERE(valid, INDEX_SELECT(weight, safe, dim=0) if safe.ndim else PUBLIC["take"](weight, safe), 0.0)
        loss = loss * share
    loss = WHERE(valid, loss, 0.0)
    if smoothing:
        spread = logp if weight is None else logp * _per_class(weight, logp)
        spread = WHERE(valid, -SUM(spread, dim=(d,), keepdim=False), 0.0)
        loss = loss * (1.0 - smoothing) + spread * (smoothing / classes)
    if reduction != "mean":
        return reduced(loss, reduction)
    if share is None:
        share = to_dtype(valid, loss.dtype)
    return reduced(loss, "sum") / reduced(share, "sum")


@composite
@typed
def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None, ignore_index: int = -100,
    reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """The negative of the log probabilities in `input` [N, C, ...] at the classes in `target` [N, ...]."""
    x, t = tensor_operand(input, "nll_loss"), tensor_operand(target, "nll_loss", "target")
    if x.ndim == 0:
        raise RuntimeError("nll_loss: Expected input of at least one dimension")
    if t.dtype.kind not in "iu":
        raise RuntimeError(f"expected scalar type Long but found {t.dtype!r}")
    return _of_target(x, t, weight, ignore_index, legacy(size_average, reduce, reduction), 0.0)


@composite
@typed
def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None, ignore_index: int = -100,
    reduce: Any = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """-log softmax(input) [N, C, ...] at the target: classes [N, ...] of integers, or probabilities of the input's shape."""
    x, t = tensor_operand(input, "cross_entropy"), tensor_operand(target, "cross_entropy", "target")
    reduction = legacy(size_average, reduce, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if x.ndim == 0:
        raise RuntimeError("cross_entropy: Expected input of at least one dimension")
    d = _class_dim(x)
    hard = t.shape != x.shape and t.dtype.kind in "iu"
    sizes = tuple(x.shape)
    if hard and weight is None and x.dtype.kind == "f" and tuple(t.shape) == sizes[:d] + sizes[d + 1 :]:
        _check_reduction(reduction)
        share = label_smoothing / x.shape[d] if label_smoothing else 0.0
        return fused.class_entropy(
            x, t, share, dim=d, ignore=ignore_index, reduction=reduction, smoothing=label_smoothing
        )  # fmt: skip
    logp = log_softmax(x, d)
    if t.shape != x.shape or t.dtype.kind != "f":
        if t.dtype.kind == "f" or t.dtype.kind == "b":
            raise RuntimeError(f"expected scalar type Long but found {t.dtype!r}")
        return _of_target(logp, t, weight, ignore_index, reduction, label_smoothing)
    if ignore_index >= 0:
        raise RuntimeError("ignore_index is not supported for floating point target")
    classes = x.shape[d]
    if label_smoothing:
        t = t * (1.0 - label_smoothing) + label_smoothing / classes
    loss = logp * t
    if weight is not None:
        loss = loss * _per_class(weight, x)
    loss = -SUM(loss, dim=(d,), keepdim=False)
    if reduction != "mean":
        return reduced(loss, reduction)
    return reduced(loss, "sum") * (1.0 / max(x.numel() // max(classes, 1), 1))


def legacy(size_average: Any, reduce: Any, reduction: str) -> str:
    """The reduction that PyTorch's two old flags meant, where they are given."""
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


# -------------------------------------------------------------------- distances


def _weighted(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """The loss times its weights; their mean is over the weights."""
    if weight is None:
        return reduced(loss, reduction)
    loss = loss * weight
    if reduction == "mean":
        return reduced(loss, "sum") / reduced(PUBLIC["broadcast_to"](weight, loss.shape), "sum")
    return reduced(loss, reduction)


@composite
@typed
def mse_loss(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(input - target) squared."""
    x, t = _operands(input, target, "mse_loss")
    reduction = legacy(size_average, reduce, reduction)
    if weight is None:
        return fused.squared(x, t, _factor(x, t, reduction), reduction=reduction)
    d = x - t
    return _weighted(d * d, weight, reduction)


@composite
@typed
def l1_loss(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """|input - target|."""
    x, t = _operands(input, target, "l1_loss")
    reduction = legacy(size_average, reduce, reduction)
    if weight is None and x.dtype.kind == "f":
        return fused.absolute(x, t, _factor(x, t, reduction), reduction=reduction)
    return _weighted(PUBLIC["abs"](x - t), weight, reduction)


@composite
def smooth_l1_loss(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """d^2 / (2 beta) where d = |input - target| < beta, else d - beta / 2."""
    if beta < 0:
        raise RuntimeError("smooth_l1_loss does not support negative values for beta.")
    x, t = _operands(input, target, "smooth_l1_loss")
    reduction = legacy(size_average, reduce, reduction)
    return fused.smooth_absolute(x, t, _factor(x, t, reduction), beta=beta, reduction=reduction)


@composite
@typed
def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """d^2 / 2 where d = |input - target| <= delta, else delta (d - delta / 2) (Huber, 1964)."""
    if delta <= 0:
        raise RuntimeError("huber_loss does not support non-positive values for delta.")
    x, t = _operands(input, target, "huber_loss")
    if weight is None:
        return fused.huber(x, t, _factor(x, t, reduction), delta=delta, reduction=reduction)
    return reduced(fused.huber(x, t, 0.0, delta=delta, reduction="none") * weight, reduction)


# -------------------------------------------------------------------- binary and probabilistic


def _log_likelihood(x: Tensor, t: Tensor) -> Tensor:
    """log of a Bernoulli's probability, each logarithm at least -100."""
    return t * MAXIMUM(LOG(x), -100.0) + (1.0 - t) * MAXIMUM(LOG1P(-x), -100.0)


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None, weight: Tensor | None = None,
    reduction: str = "mean", ignore_index: int | None = None, label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
) -> Tensor:  # fmt: skip
    """cross_entropy(linear(input, linear_weight, linear_bias), target): input [N, F], linear_weight [C, .., F], target [N, ..].

    With `options` the rows go through in chunks, whose logits alone are in memory at a time (see `LinearCrossEntropyOptions`): for
    targets that are classes, without label smoothing and further dimensions; else they are ignored, with a warning. Derivatives
    are then of first order. Compiled, too, one chunk is in memory after the other.
    """
    x, w = tensor_operand(input, "linear_cross_entropy"), tensor_operand(linear_weight, "linear_cross_entropy", "linear_weight")
    if w.ndim < 2 or x.ndim not in (1, 2) or x.shape[-1] != w.shape[-1]:
        raise RuntimeError(
            f"linear_cross_entropy: expected input [N, F] and linear_weight [C, .., F], but got {list(x.shape)} and {list(w.shape)}"
        )
    if w.ndim > 2 and x.ndim == 1:
        raise RuntimeError(
            f"linear_cross_entropy: K-dimensional loss defined by linear_weight shape {list(w.shape)} requires batched input, "
            f"[N, {w.shape[-1]}], got unbatched input with shape {list(x.shape)}"
        )
    if options is not None:
        t = tensor_operand(target, "linear_cross_entropy", "target")
        if w.ndim == 2 and not label_smoothing and t.dtype is dtypes.int64 and t.ndim == x.ndim - 1:
            _check_reduction(reduction)
            if x.ndim == 2 and t.shape[0] != x.shape[0]:
                raise ValueError(f"Expected input batch_size ({x.shape[0]}) to match target batch_size ({t.shape[0]}).")
            given = (x, t) if x.ndim == 2 else (x.unsqueeze(0), t.unsqueeze(0))  # type: ignore[attr-defined]
            ignored = -100 if ignore_index is None else ignore_index
            loss = entropy_in_chunks(given[0], w, given[1], linear_bias, weight, reduction, ignored, options)
            return loss if x.ndim == 2 or reduction != "none" else loss.squeeze(0)  # type: ignore[attr-defined]
        warnings.warn(
            "linear_cross_entropy: options are ignored: chunks need targets that are classes (int64), linear_weight [C, F] and no "
            f"label smoothing, but got target {t.dtype} {list(t.shape)}, linear_weight {list(w.shape)}, {label_smoothing=}",
            stacklevel=2,
        )
    rows = math.prod(w.shape[:-1])
    b = None if linear_bias is None else linear_bias.reshape(rows)
    logits = linear(x, w.reshape(rows, w.shape[-1]), b).reshape(*x.shape[:-1], *w.shape[:-1])
    return cross_entropy(
        logits, target, weight, ignore_index=-100 if ignore_index is None else ignore_index, reduction=reduction,
        label_smoothing=label_smoothing,
    )  # fmt: skip


@composite
@typed
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """-(t log x + (1 - t) log(1 - x)) of probabilities x; logarithms are cut at -100, slopes at those of x (1 - x) = 1e-12."""
    x, t = _operands(input, target, "binary_cross_entropy")
    if x.shape != t.shape:
        raise ValueError(
            f"Using a target size ({t.shape!r}) that is different to the input size ({x.shape!r}) is deprecated. Please ensure "
            "they have the same size."
        )
    fixed = x.detach()  # type: ignore[attr-defined]
    saturated = fixed * (1.0 - fixed) < 1e-12
    inside = _log_likelihood(WHERE(saturated, 0.5, x), t)
    outside = _log_likelihood(fixed, t) - (x - fixed) * ((fixed - t) * 1e12)
    loss = -WHERE(saturated, outside, inside)
    return reduced(loss if weight is None else loss * weight, legacy(size_average, reduce, reduction))


@composite
@typed
def binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean", pos_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """binary_cross_entropy of sigmoid(input), computed so that nothing overflows; `pos_weight` scales the t log x part."""
    x, t = _operands(input, target, "binary_cross_entropy_with_logits")
    if x.shape != t.shape:
        raise ValueError(f"Target size ({t.shape!r}) must be the same as input size ({x.shape!r})")
    if pos_weight is None and weight is None:
        reduction = legacy(size_average, reduce, reduction)
        return fused.logistic(x, t, _factor(x, t, reduction), reduction=reduction)
    if pos_weight is None:
        loss = fused.logistic(x, t, 0.0, reduction="none")
    else:
        rest = LOG1P(EXP(-ABS(x)))
        loss = (1.0 - t) * x + ((pos_weight - 1.0) * t + 1.0) * (rest + RELU(-x))
    return reduced(loss if weight is None else loss * weight, legacy(size_average, reduce, reduction))


@composite
@typed
@exact
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """target (log target - input), of log probabilities `input`; also reduction "batchmean"."""
    x, t = _operands(input, target, "kl_div")
    loss = EXP(t) * (t - x) if log_target else PUBLIC["xlogy"](t, t) - t * x
    if reduction == "batchmean":
        return reduced(loss, "sum") / loss.shape[0] if loss.ndim else loss
    return reduced(loss, legacy(size_average, reduce, reduction))


@composite
@typed
@exact
def poisson_nll_loss(
    input: Tensor, target: Tensor, log_input: bool = True, full: bool = False, size_average: Any = None, eps: float = 1e-8,
    reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """exp(input) - target input, or input - target log(input + eps); `full` adds Stirling's term for target > 1."""
    x, t = as_floating(*_operands(input, target, "poisson_nll_loss"))
    loss = EXP(x) - t * x if log_input else x - t * LOG(x + eps)
    if full:
        if target.dtype.kind == "b":
            raise RuntimeError(f"poisson_nll_loss(): Stirling's term has no meaning for a target of {target.dtype!r}")
        big = WHERE(t > 1, t, 1.0)
        loss = loss + WHERE(t > 1, big * LOG(big) - big + LOG(big * (2 * math.pi)) * 0.5, 0.0)
    return reduced(loss, legacy(size_average, reduce, reduction))


@composite
@typed
def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """(log var + (input - target)^2 / var) / 2, with var at least eps (no gradient flows through that limit)."""
    x, t = _operands(input, target, "gaussian_nll_loss")
    v = var if isinstance(var, Tensor) else PUBLIC["full"](tuple(x.shape), float(var), dtype=x.dtype)
    if v.shape != x.shape:
        if tuple(x.shape[:-1]) == tuple(v.shape):
            v = v.unsqueeze(-1)  # type: ignore[attr-defined]
        elif not (v.ndim == x.ndim and all(a == b or b == 1 for a, b in zip(x.shape, v.shape, strict=True))):
            raise ValueError("var is of incorrect size")
    with no_grad():
        lift = MAXIMUM(v, eps) - v
    v = v + lift
    d = x - t
    loss = (LOG(v) + d * d / v) * 0.5
    return reduced(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


# -------------------------------------------------------------------- margins and embeddings


@composite
def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """max(0, -target (input1 - input2) + margin)."""
    if not input1.ndim == input2.ndim == target.ndim:
        raise RuntimeError(
            "margin_ranking_loss : All input tensors should have same dimension but got sizes: "
            f"input1: {list(input1.shape)}, input2: {list(input2.shape)}, target: {list(target.shape)}"
        )
    return reduced(RELU(-target * (input1 - input2) + float(margin)), legacy(size_average, reduce, reduction))


@composite
@typed
def hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Tensor:
    """input where the target is 1, max(0, margin - input) where it is -1."""
    x, t = _operands(input, target, "hinge_embedding_loss")
    loss = WHERE(t != 1, RELU(margin - x), 0.0) + WHERE(t != -1, x, 0.0)
    return reduced(loss, legacy(size_average, reduce, reduction))


@composite
@typed
def soft_margin_loss(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Tensor:
    """log(1 + exp(-target input))."""
    x, t = _operands(input, target, "soft_margin_loss")
    z = t * x
    if z.shape != x.shape:
        raise RuntimeError(
            f"soft_margin_loss: output with shape {list(x.shape)} doesn't match the broadcast shape "
            f"{list(z.shape)} of input and target"
        )
    return reduced(softplus(-z), legacy(size_average, reduce, reduction))


@composite
@typed
def multilabel_soft_margin_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """The mean over classes of binary cross-entropies of logits."""
    x, t = _operands(input, target, "multilabel_soft_margin_loss")
    loss = -(t * logsigmoid(x) + (1.0 - t) * logsigmoid(-x))
    loss = loss if weight is None else loss * weight
    return reduced(loss.mean(-1), legacy(size_average, reduce, reduction))  # type: ignore[attr-defined]


@composite
@typed
def multi_margin_loss(
    input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None, size_average: Any = None,
    reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """The mean over the other classes of max(0, margin - input[target] + input)^p, scaled by the target's weight."""
    if p not in (1, 2):
        raise ValueError("only p == 1 and p == 2 supported")
    x, t = tensor_operand(input, "multi_margin_loss"), tensor_operand(target, "multi_margin_loss", "target")
    if legacy(size_average, reduce, reduction) not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if weight is not None and weight.ndim != 1:
        raise ValueError(f"multi_margin_loss: weight must be one-dimensional, but got {list(weight.shape)}")
    if x.ndim > 2:
        raise RuntimeError(f"Expected non-empty vector or matrix with optional 0-dim batch size, but got: {list(x.shape)}")
    single = x.ndim <= 1
    x, t = (x.reshape(1, -1), t.reshape(1)) if single else (x, t)  # type: ignore[attr-defined]
    classes = x.shape[1]
    at = RESHAPE(t, shape=(t.shape[0], 1))
    z = RELU(x - GATHER(x, at, dim=1) + margin)
    z = z if p == 1 else z * z
    if weight is not None:
        z = z * RESHAPE(INDEX_SELECT(weight, t, dim=0), shape=(t.shape[0], 1))
    other = registered("iota")(size=classes, dtype=dtypes.int64) != at
    loss = SUM(WHERE(other, z, 0.0), dim=(1,), keepdim=False) * (1.0 / classes)
    return reduced(RESHAPE(loss, shape=()) if single else loss, legacy(size_average, reduce, reduction))


@composite
@typed
def multilabel_margin_loss(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Tensor:
    """The sum of max(0, 1 - input[label] + input[other]) / classes, over labels up to the first -1 and all other classes."""
    x, t = tensor_operand(input, "multilabel_margin_loss"), tensor_operand(target, "multilabel_margin_loss", "target")
    if legacy(size_average, reduce, reduction) not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if tuple(t.shape) != tuple(x.shape) and not (x.ndim < 2 and t.numel() == x.numel() and t.ndim < 2):
        raise RuntimeError(f"inconsistent target size: {list(t.shape)} for input of size: {list(x.shape)}")
    single = x.ndim <= 1
    x, t = (x.reshape(1, -1), t.reshape(1, -1)) if single else (x, t)  # type: ignore[attr-defined]
    n, classes = x.shape
    ended = PUBLIC["cumsum"](to_dtype(t < 0, dtypes.int64), 1) > 0
    labels = WHERE(ended, 0, t)
    is_label = PUBLIC["scatter_add"](PUBLIC["zeros"](n, classes), 1, labels, to_dtype(~ended, dtypes.float32)) > 0
    gap = RELU(1.0 - GATHER(x, labels, dim=1).unsqueeze(2) + x.unsqueeze(1))  # [n, label, class]
    counts = ~ended.unsqueeze(2) & ~is_label.unsqueeze(1)  # type: ignore[attr-defined]
    loss = SUM(WHERE(counts, gap, 0.0), dim=(1, 2), keepdim=False) * (1.0 / classes)
    return reduced(RESHAPE(loss, shape=()) if single else loss, legacy(size_average, reduce, reduction))


@composite
def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """1 - cos where the target is 1, max(0, cos - margin) where it is -1."""
    a, b = as_floating(input1, input2)
    dot = lambda u, v: SUM(u * v, dim=(u.ndim - 1,), keepdim=False)
    cos = dot(a, b) / SQRT((dot(a, a) + 1e-12) * (dot(b, b) + 1e-12))
    loss = WHERE(target == 1, 1.0 - cos, 0.0) + WHERE(target == -1, RELU(cos - float(margin)), 0.0)
    return reduced(loss, legacy(size_average, reduce, reduction))


def _triplet(near: Tensor, far: Tensor, margin: float, reduction: str) -> Tensor:
    if margin <= 0:
        raise ValueError(f"margin must be greater than 0, got {margin}")
    return reduced(RELU(near - far + float(margin)), reduction)


@composite
def triplet_margin_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0, p: float = 2, eps: float = 1e-6, swap: bool = False,
    size_average: Any = None, reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """max(0, |anchor - positive| - |anchor - negative| + margin); `swap` takes the nearer of anchor and positive to negative."""
    near, far = pairwise_distance(anchor, positive, p, eps), pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = MINIMUM(far, pairwise_distance(positive, negative, p, eps))
    return _triplet(near, far, margin, legacy(size_average, reduce, reduction))


def triplet_margin_with_distance_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, *, distance_function: Any = None, margin: float = 1.0, swap: bool = False,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """As triplet_margin_loss, with a distance of the caller's own."""
    distance = pairwise_distance if distance_function is None else distance_function
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = MINIMUM(far, distance(positive, negative))
    return _triplet(near, far, margin, reduction)
