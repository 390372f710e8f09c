"""Functions of nn.functional as PyTorch's top namespace spells them: a reduction is a number (0 none, 1 the mean, 2 the sum), what
is optional stands elsewhere, and flags of cuDNN have no effect. Without a number nothing is reduced: PyTorch's signatures say
"Mean", which its parser of arguments reads as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame.nn import functional as F
from flame.tensor import Tensor

_REDUCTIONS = ("none", "mean", "sum")


def _reduction(n: int, op: str) -> str:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{op}(): argument 'reduction' must be int (0 none, 1 mean, 2 sum), not {type(n).__name__}")
    if not 0 <= n < len(_REDUCTIONS):
        raise ValueError(f"{op}(): reduction must be 0 (none), 1 (mean) or 2 (sum), but got {n}")
    return _REDUCTIONS[n]


def kl_div(input: Tensor, target: Tensor, reduction: int = 0, *, log_target: bool = False) -> Tensor:
    """nn.functional.kl_div, its reduction by number."""
    return F.kl_div(input, target, reduction=_reduction(reduction, "kl_div"), log_target=log_target)


def ctc_loss(
    log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int = 0, reduction: int = 0,
    zero_infinity: bool = False,
) -> Tensor:  # fmt: skip
    """nn.functional.ctc_loss, its reduction by number."""
    how = _reduction(reduction, "ctc_loss")
    return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, how, zero_infinity)


def binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 0
) -> Tensor:
    """nn.functional.binary_cross_entropy_with_logits, its reduction by number."""
    how = _reduction(reduction, "binary_cross_entropy_with_logits")
    return F.binary_cross_entropy_with_logits(input, target, weight, reduction=how, pos_weight=pos_weight)


def cosine_embedding_loss(input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 0) -> Tensor:
    """nn.functional.cosine_embedding_loss, its reduction by number."""
    how = _reduction(reduction, "cosine_embedding_loss")
    return F.cosine_embedding_loss(input1, input2, target, margin, reduction=how)


def hinge_embedding_loss(input: Tensor, target: Tensor, margin: float = 1.0, reduction: int = 0) -> Tensor:
    """nn.functional.hinge_embedding_loss, its reduction by number."""
    return F.hinge_embedding_loss(input, target, margin, reduction=_reduction(reduction, "hinge_embedding_loss"))


def margin_ranking_loss(input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 0) -> Tensor:
    """nn.functional.margin_ranking_loss, its reduction by number."""
    return F.margin_ranking_loss(input1, input2, target, margin, reduction=_reduction(reduction, "margin_ranking_loss"))


def poisson_nll_loss(input: Tensor, target: Tensor, log_input: bool, full: bool, eps: float, reduction: int) -> Tensor:
    """nn.functional.poisson_nll_loss, its reduction by number."""
    how = _reduction(reduction, "poisson_nll_loss")
    return F.poisson_nll_loss(input, target, log_input, full, eps=eps, reduction=how)


def triplet_margin_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0, p: float = 2.0, eps: float = 1e-6,
    swap: bool = False, reduction: int = 0,
) -> Tensor:  # fmt: skip
    """nn.functional.triplet_margin_loss, its reduction by number."""
    how = _reduction(reduction, "triplet_margin_loss")
    return F.triplet_margin_loss(anchor, positive, negative, margin, p, eps, swap, reduction=how)


def instance_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Tensor:  # fmt: skip
    """nn.functional.instance_norm in the top namespace's order of arguments; `cudnn_enabled` has no effect."""
    return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def feature_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """Whole features, input[i, j], set to 0 with probability p, as nn.functional.dropout3d does; for any number of dimensions
    above 1. Raises RuntimeError for fewer."""
    if input.ndim < 2:
        raise RuntimeError(f"Feature dropout requires at least 2 dimensions in the input, but got {input.ndim}")
    sizes = (*input.shape[:2], *[1] * (input.ndim - 2))
    return input * F.dropout(input.detach().new_ones(sizes), p, train)


def feature_alpha_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """nn.functional.feature_alpha_dropout as the top namespace spells it."""
    return F.feature_alpha_dropout(input, p, train)


def norm_except_dim(v: Tensor, pow: int = 2, dim: int = 0) -> Tensor:
    """The norm over all dimensions but `dim`, which keep size 1; over all, a number, for dim -1."""
    if dim == -1:
        return v.norm(pow)
    return v.norm(pow, [d for d in range(v.ndim) if d != dim % v.ndim], keepdim=True) if v.ndim > 1 else v.abs()


FUNCTIONS: tuple[Callable[..., Any], ...] = (
    kl_div, ctc_loss, binary_cross_entropy_with_logits, cosine_embedding_loss, hinge_embedding_loss, margin_ranking_loss,
    poisson_nll_loss, triplet_margin_loss, instance_norm, feature_dropout, feature_alpha_dropout, norm_except_dim,
)  # fmt: skip
