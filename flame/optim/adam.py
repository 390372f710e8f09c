"""Adam and its relatives: a running mean of gradients over the root of a running mean of their squares."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from flame.autograd.tape import assign, update
from flame.functions.elementwise import PUBLIC
from flame.optim.optimizer import Optimizer, Rule, check, check_rate, each, filled, moving
from flame.tensor import Tensor


def check_settings(lr: Any, betas: tuple, eps: float, weight_decay: float) -> None:
    check_rate(lr)
    check(eps >= 0.0, "epsilon value", eps)
    for i, b in enumerate(betas):
        check(0.0 <= b < 1.0, f"beta parameter at index {i}", b)
    check(weight_decay >= 0.0, "weight_decay value", weight_decay)


def mean_moved(mean: Any, towards: Any, share: float) -> Any:
    """A running mean, gone its share of the way, where it lies and as a value."""
    new = mean + (towards - mean) * share
    assign(mean, new)
    return new


def square_moved(mean: Any, g: Any, kept: float, share: float) -> Any:
    """A running mean of squares, likewise."""
    new = mean * kept + g * g * share
    assign(mean, new)
    return new


def decay_of(group: dict[str, Any]) -> tuple[str, Any]:
    """How weights decay, and the number for it: "decoupled" (they are multiplied by it), "added" (that much of them goes to the
    gradient), or "" (not at all)."""
    decay = group["weight_decay"]
    if group["decoupled_weight_decay"]:
        return "decoupled" if decay else "", 1 - group["lr"] * decay
    return "added" if decay else "", decay


def decayed(kind: str, p: Any, g: Any, number: Any) -> tuple[Any, Any]:
    """The parameter and the gradient with which a step goes on."""
    match kind:
        case "decoupled":
            return p * number, g
        case "added":
            return p, g + p * number
        case _:
            return p, g


class Adam(Optimizer):
    """Kingma and Ba (2015); `amsgrad` keeps the largest second moment (Reddi et al., 2018)."""

    _decoupled = False
    _decay = 0.0

    def __init__(
        self, params: Any, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float | None = None, amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
        decoupled_weight_decay: bool | None = None,
    ) -> None:  # fmt: skip
        decay = self._decay if weight_decay is None else weight_decay
        check_settings(lr, betas, eps, decay)
        super().__init__(
            params,
            dict(
                lr=lr, betas=tuple(betas), eps=eps, weight_decay=decay, amsgrad=amsgrad, maximize=maximize, foreach=foreach,
                capturable=capturable, differentiable=differentiable, fused=fused,
                decoupled_weight_decay=self._decoupled if decoupled_weight_decay is None else decoupled_weight_decay,
            ),
        )  # fmt: skip

    def _step(self, group: dict[str, Any]) -> None:
        amsgrad, lr = group["amsgrad"], group["lr"]
        by_step: dict[float, list[Tensor]] = {}
        for p, g in moving(group):
            state = self.state[p]
            if not state:
                state.update(step=0.0, exp_avg=filled(p), exp_avg_sq=filled(p))
                if amsgrad:
                    state["max_exp_avg_sq"] = filled(p)
            state["step"] = step = state["step"] + 1.0
            batch = by_step.setdefault(step, [])
            batch += (p, g, state["exp_avg"], state["exp_avg_sq"])
            if amsgrad:
                batch.append(state["max_exp_avg_sq"])
        (beta1, beta2), (kind, shrink) = group["betas"], decay_of(group)
        rule = _adam(bool(amsgrad), kind)
        for step, batch in by_step.items():
            root, rate = math.sqrt(1 - beta2**step), lr / (1 - beta1**step)
            update(rule, batch, (1 - beta1, beta2, 1 - beta2, shrink, root, group["eps"], rate))


@cache
def _adam(amsgrad: bool, decay: str) -> Rule:
    def move(p: Any, g: Any, m: Any, v: Any, *rest: Any) -> None:
        *most, towards_g, kept, towards_gg, shrink, root, eps, rate = rest
        x, g = decayed(decay, p, g, shrink)
        mean, square = mean_moved(m, g, towards_g), square_moved(v, g, kept, towards_gg)
        if amsgrad:
            square = PUBLIC["maximum"](most[0], square)
            assign(most[0], square)
        assign(p, x - mean / (square.sqrt() / root + eps) * rate)

    return each(5 if amsgrad else 4, move)


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameter and not the gradient (Loshchilov and Hutter, 2019)."""

    _decoupled = True
    _decay = 1e-2


class Adamax(Optimizer):
    """Adam with the largest recent gradient in place of the second moment (Kingma and Ba, 2015)."""

    def __init__(
        self, params: Any, lr: Any = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0,
        foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False, capturable: bool = False,
    ) -> None:  # fmt: skip
        check_settings(lr, betas, eps, weight_decay)
        super().__init__(
            params,
            dict(
                lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, foreach=foreach, maximize=maximize,
                differentiable=differentiable, capturable=capturable,
            ),
        )  # fmt: skip

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        if not state:
            state.update(step=0.0, exp_avg=filled(p), exp_inf=filled(p))
        state["step"] = step = state["step"] + 1.0
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        numbers = (1 - beta1, beta2, group["eps"], decay, group["lr"] / (1 - beta1**step))
        return _adamax(bool(decay)), (p, g, state["exp_avg"], state["exp_inf"]), numbers


@cache
def _adamax(decay: bool) -> Rule:
    def move(p: Any, g: Any, m: Any, u: Any, share: float, kept: float, eps: float, shrink: float, rate: Any) -> None:
        if decay:
            g = g + p * shrink
        mean = mean_moved(m, g, share)
        most = PUBLIC["maximum"](u * kept, g.abs() + eps)
        assign(u, most)
        assign(p, p - mean / most * rate)

    return each(4, move)


class NAdam(Optimizer):
    """Adam with Nesterov's momentum (Dozat, 2016)."""

    def __init__(
        self, params: Any, lr: Any = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0,
        momentum_decay: float = 4e-3, decoupled_weight_decay: bool = False, *, foreach: bool | None = None, maximize: bool = False,
        capturable: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_settings(lr, betas, eps, weight_decay)
        check(momentum_decay >= 0.0, "momentum_decay value", momentum_decay)
        super().__init__(
            params,
            dict(
                lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay,
                decoupled_weight_decay=decoupled_weight_decay, maximize=maximize, foreach=foreach, capturable=capturable,
                differentiable=differentiable,
            ),
        )  # fmt: skip

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        if not state:
            state.update(step=0.0, mu_product=1.0, exp_avg=filled(p), exp_avg_sq=filled(p))
        state["step"] = step = state["step"] + 1.0
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["momentum_decay"]
        mu = beta1 * (1.0 - 0.5 * 0.96 ** (step * decay))
        mu_next = beta1 * (1.0 - 0.5 * 0.96 ** ((step + 1) * decay))
        state["mu_product"] = product = state["mu_product"] * mu
        by_g, by_mean = lr * (1 - mu) / (1 - product), lr * mu_next / (1 - product * mu_next)
        kind, shrink = decay_of(group)
        numbers = (1 - beta1, beta2, 1 - beta2, shrink, 1 - beta2**step, group["eps"], by_g, by_mean)
        return _nadam(kind), (p, g, state["exp_avg"], state["exp_avg_sq"]), numbers


@cache
def _nadam(decay: str) -> Rule:
    def move(
        p: Any, g: Any, m: Any, v: Any,
        towards_g: float, kept: float, towards_gg: float, shrink: Any, bias: float, eps: float, by_g: Any, by_mean: Any,
    ) -> None:  # fmt: skip
        x, g = decayed(decay, p, g, shrink)
        mean, square = mean_moved(m, g, towards_g), square_moved(v, g, kept, towards_gg)
        scale = (square / bias).sqrt() + eps
        assign(p, x - (g / scale * by_g + mean / scale * by_mean))

    return each(4, move)


class RAdam(Optimizer):
    """Adam that waits until the second moment's variance is known (Liu et al., 2020)."""

    def __init__(
        self, params: Any, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0,
        decoupled_weight_decay: bool = False, *, foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
        differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_settings(lr, betas, eps, weight_decay)
        super().__init__(
            params,
            dict(
                lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, maximize=maximize, foreach=foreach,
                capturable=capturable, decoupled_weight_decay=decoupled_weight_decay, differentiable=differentiable,
            ),
        )  # fmt: skip

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        if not state:
            state.update(step=0.0, exp_avg=filled(p), exp_avg_sq=filled(p))
        state["step"] = step = state["step"] + 1.0
        lr, (beta1, beta2) = group["lr"], group["betas"]
        bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / bias2
        known = length > 5.0
        rectified = 1.0
        if known:
            rectified = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) * math.sqrt(
                bias2
            )
        kind, shrink = decay_of(group)
        numbers = (1 - beta1, beta2, 1 - beta2, shrink, rectified, group["eps"], lr / bias1)
        return _radam(kind, known), (p, g, state["exp_avg"], state["exp_avg_sq"]), numbers


@cache
def _radam(decay: str, known: bool) -> Rule:
    """`known`: is the second moment's variance?"""

    def move(
        p: Any, g: Any, m: Any, v: Any,
        towards_g: float, kept: float, towards_gg: float, shrink: Any, rectified: float, eps: float, rate: Any,
    ) -> None:  # fmt: skip
        x, g = decayed(decay, p, g, shrink)
        mean, square = mean_moved(m, g, towards_g), square_moved(v, g, kept, towards_gg)
        assign(p, x - (mean / (square.sqrt() + eps) * rectified if known else mean) * rate)

    return each(4, move)


class SparseAdam(Optimizer):
    """Not supported: it is for sparse gradients, and flame's are dense. Making one raises RuntimeError."""

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "SparseAdam is for sparse gradients, which flame does not have: use Adam, with sparse=False in the embeddings"
        )
