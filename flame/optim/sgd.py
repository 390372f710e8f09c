"""Stochastic gradient descent."""

from __future__ import annotations

from functools import cache
from typing import Any

from flame.autograd.tape import assign, update
from flame.optim.optimizer import Optimizer, Rule, check, check_rate, each, filled, moving
from flame.tensor import Tensor


class SGD(Optimizer):
    """p -= lr * g, or lr times a running sum of g: `momentum` (Polyak, 1964), `nesterov` (Sutskever et al., 2013)."""

    def __init__(
        self, params: Any, lr: Any = 1e-3, momentum: float = 0, dampening: float = 0, weight_decay: float = 0,
        nesterov: bool = False, *, maximize: bool = False, foreach: bool | None = None, differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        check_rate(lr)
        check(momentum >= 0.0, "momentum value", momentum)
        check(weight_decay >= 0.0, "weight_decay value", weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params,
            dict(
                lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov, maximize=maximize,
                foreach=foreach, differentiable=differentiable, fused=fused,
            ),
        )  # fmt: skip

    def _step(self, group: dict[str, Any]) -> None:
        momentum, decay = group["momentum"], group["weight_decay"]
        numbers = (group["lr"], decay, momentum, 1.0 - group["dampening"])
        plain: list[Tensor] = []
        begun: list[Tensor] = []
        for p, g in moving(group):
            if not momentum:
                plain += (p, g)
                continue
            state = self.state[p]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = filled(p)
                begun += (p, g, state["momentum_buffer"])
            else:
                plain += (p, g, state["momentum_buffer"])
        rule = _sgd(bool(momentum), bool(group["nesterov"]), bool(decay))
        if begun:  # a buffer begins as the gradient, without dampening
            update(rule, begun, (*numbers[:3], 1.0))
        if plain:
            update(rule, plain, numbers)


@cache
def _sgd(momentum: bool, nesterov: bool, decay: bool) -> Rule:
    def move(p: Any, g: Any, *rest: Any) -> None:
        *buffer, lr, shrink, kept, share = rest
        if decay:
            g = g + p * shrink
        if momentum:
            velocity = buffer[0] * kept + g * share
            assign(buffer[0], velocity)
            g = g + velocity * kept if nesterov else velocity
        assign(p, p - g * lr)

    return each(3 if momentum else 2, move)
