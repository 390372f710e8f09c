"""Adam and its relatives: a running mean of gradients over the root of a running mean of their squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from flame.autograd.tape import assign, update
from flame.functions.elementwise import PUBLIC
from flame.optim.optimizer import Optimizer, check, check_rate, filled, moving
from flame.tensor import Tensor


def check_settings(lr: Any, betas: tuple, eps: float, weight_decay: float) -> None:
    check_rate(lr)
    check(eps >= 0.0, "epsilon value", eps)
    for i, b in enumerate(betas):
        check(0.0 <= b < 1.0, f"beta parameter at index {i}", b)
    check(weight_decay >= 0.0, "weight_decay value", weight_decay)


def first_moment(state: dict[str, Any], g: Any, beta: float) -> Any:
    """The running mean of gradients, updated."""
    m = state["exp_avg"]
    new = m + (g - m) * (1 - beta)
    assign(m, new)
    return new


def second_moment(state: dict[str, Any], g: Any, beta: float) -> Any:
    """The running mean of squared gradients, updated."""
    v = state["exp_avg_sq"]
    new = v * beta + g * g * (1 - beta)
    assign(v, new)
    return new


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
        amsgrad, decay, lr = group["amsgrad"], group["weight_decay"], group["lr"]
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
        (beta1, beta2), decoupled = group["betas"], group["decoupled_weight_decay"]
        rule = _RULES[amsgrad, ("decoupled" if decoupled else "added") if decay else ""]
        shrink = 1 - lr * decay if decoupled else decay
        for step, batch in by_step.items():
            root, rate = math.sqrt(1 - beta2**step), lr / (1 - beta1**step)
            update(rule, batch, (1 - beta1, beta2, 1 - beta2, shrink, root, group["eps"], rate))


def _rule(amsgrad: bool, decay: str) -> Callable[[Sequence[Any], tuple], None]:
    """Parameters, gradients and moments in turn, all moved by the same numbers. `decay` is "decoupled", "added" or none."""
    width = 5 if amsgrad else 4

    def rule(tensors: Sequence[Any], numbers: tuple) -> None:
        towards_g, beta2, towards_gg, shrink, root, eps, rate = numbers
        for i in range(0, len(tensors), width):
            p, g, m, v = tensors[i : i + 4]
            x = p
            if decay == "decoupled":
                x = x * shrink
            elif decay:
                g = g + p * shrink
            m_new = m + (g - m) * towards_g
            assign(m, m_new)
            v_new = v * beta2 + g * g * towards_gg
            assign(v, v_new)
            if amsgrad:
                v_new = PUBLIC["maximum"](tensors[i + 4], v_new)
                assign(tensors[i + 4], v_new)
            assign(p, x - m_new / (v_new.sqrt() / root + eps) * rate)

    return rule


_RULES = {(a, d): _rule(a, d) for a in (False, True) for d in ("", "added", "decoupled")}


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

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=0.0, exp_avg=filled(p), exp_inf=filled(p))
        state["step"] = step = state["step"] + 1.0
        beta1, beta2 = group["betas"]
        if group["weight_decay"]:
            g = g + p * group["weight_decay"]  # type: ignore[operator]
        m = first_moment(state, g, beta1)
        u = PUBLIC["maximum"](state["exp_inf"] * beta2, g.abs() + group["eps"])
        assign(state["exp_inf"], u)
        assign(p, p - m / u * (group["lr"] / (1 - beta1**step)))  # type: ignore[operator]


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

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=0.0, mu_product=1.0, exp_avg=filled(p), exp_avg_sq=filled(p))
        state["step"] = step = state["step"] + 1.0
        lr, (beta1, beta2), decay, x = group["lr"], group["betas"], group["momentum_decay"], p
        if group["weight_decay"]:
            if group["decoupled_weight_decay"]:
                x = x * (1 - lr * group["weight_decay"])  # type: ignore[operator]
            else:
                g = g + p * group["weight_decay"]  # type: ignore[operator]
        mu = beta1 * (1.0 - 0.5 * 0.96 ** (step * decay))
        mu_next = beta1 * (1.0 - 0.5 * 0.96 ** ((step + 1) * decay))
        state["mu_product"] = product = state["mu_product"] * mu
        m, v = first_moment(state, g, beta1), second_moment(state, g, beta2)
        scale = (v / (1 - beta2**step)).sqrt() + group["eps"]
        moved = g / scale * (lr * (1 - mu) / (1 - product)) + m / scale * (lr * mu_next / (1 - product * mu_next))
        assign(p, x - moved)  # type: ignore[operator]


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

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=0.0, exp_avg=filled(p), exp_avg_sq=filled(p))
        state["step"] = step = state["step"] + 1.0
        lr, (beta1, beta2), x = group["lr"], group["betas"], p
        if group["weight_decay"]:
            if group["decoupled_weight_decay"]:
                x = x * (1 - lr * group["weight_decay"])  # type: ignore[operator]
            else:
                g = g + p * group["weight_decay"]  # type: ignore[operator]
        m, v = first_moment(state, g, beta1), second_moment(state, g, beta2)
        bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / bias2
        if length > 5.0:
            rect = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
            m = m / (v.sqrt() + group["eps"]) * (math.sqrt(bias2) * rect)
        assign(p, x - m * (lr / bias1))  # type: ignore[operator]


class SparseAdam(Optimizer):
    """Not supported: it is for sparse gradients, and flame's are dense. Making one raises RuntimeError."""

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "SparseAdam is for sparse gradients, which flame does not have: use Adam, with sparse=False in the embeddings"
        )
