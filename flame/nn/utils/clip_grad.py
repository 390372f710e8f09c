"""Limiting gradients, by their common norm or one by one. No value is read unless `error_if_nonfinite`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

from flame.autograd import no_grad
from flame.functions.elementwise import PUBLIC
from flame.tensor import Tensor


def _list(parameters: Any) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _grads(parameters: Any) -> list[Tensor]:
    return [p.grad for p in _list(parameters) if p.grad is not None]  # type: ignore[attr-defined]


@no_grad()
def get_total_norm(
    tensors: Any, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """The norm of all elements of all tensors together."""
    ts = _list(tensors)
    p = float(norm_type)
    if not ts:
        return PUBLIC["tensor"](0.0)
    if p == math.inf:
        total = PUBLIC["stack"]([t.abs().max() for t in ts]).max()  # type: ignore[attr-defined]
    else:
        powers: list[Any] = [(t * t).sum() if p == 2.0 else (t.abs() ** p).sum() for t in ts]  # type: ignore[attr-defined]
        total = powers[0]
        for q in powers[1:]:
            total = total + q
        total = total.sqrt() if p == 2.0 else total ** (1.0 / p)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise RuntimeError(
            f"The total norm of order {p} for gradients from `parameters` is non-finite, so it cannot be clipped. To disable this "
            "error and scale the gradients by the non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    return total


@no_grad()
def clip_grads_with_norm_(parameters: Any, max_norm: float, total_norm: Tensor, foreach: bool | None = None) -> None:
    """Scale the gradients by max_norm / total_norm where that is below 1."""
    scale = (float(max_norm) / (total_norm + 1e-6)).clamp(max=1.0)
    for g in _grads(parameters):
        g.mul_(scale)  # type: ignore[attr-defined]


def clip_grad_norm_(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """Scale the gradients in place so that their common norm is at most `max_norm`. Returns the norm that they had."""
    ps = _list(parameters)
    total = get_total_norm(_grads(ps), norm_type, error_if_nonfinite)
    clip_grads_with_norm_(ps, max_norm, total)
    return total


@no_grad()
def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float, foreach: bool | None = None) -> None:
    """Limit each element of the gradients to [-clip_value, clip_value], in place."""
    for g in _grads(parameters):
        g.clamp_(min=-float(clip_value), max=float(clip_value))  # type: ignore[attr-defined]


def clip_grad_norm(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """The older name of `clip_grad_norm_`; calling it warns."""
    warnings.warn(
        "`nn.utils.clip_grad_norm` is now deprecated in favor of `nn.utils.clip_grad_norm_`.", FutureWarning, stacklevel=2
    )
    return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
