"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from flame.autograd.tape import assign
from flame.optim.optimizer import Optimizer, check, check_rate, filled
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

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            g = g + p * group["weight_decay"]  # type: ignore[operator]
        if momentum:
            share = 1.0 - group["dampening"]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"], share = filled(p), 1.0
            velocity = state["momentum_buffer"] * momentum + g * share
            assign(state["momentum_buffer"], velocity)
            g = g + velocity * momentum if group["nesterov"] else velocity
        assign(p, p - g * group["lr"])  # type: ignore[operator]
