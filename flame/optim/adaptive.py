"""Optimizers that scale each element by its own history: RMSprop, Adagrad, Adadelta, Rprop; and ASGD, which averages its path."""

from __future__ import annotations

from typing import Any

from flame.autograd.tape import assign
from flame.functions.elementwise import PUBLIC
from flame.optim.optimizer import Optimizer, check, check_rate, filled
from flame.tensor import Tensor


class RMSprop(Optimizer):
    """p -= lr * g / (root of the running mean of g^2 + eps) (Hinton, 2012); `centered` subtracts the mean's square."""

    def __init__(
        self, params: Any, lr: Any = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0, momentum: float = 0,
        centered: bool = False, capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_rate(lr)
        check(eps >= 0.0, "epsilon value", eps)
        check(momentum >= 0.0, "momentum value", momentum)
        check(weight_decay >= 0.0, "weight_decay value", weight_decay)
        check(alpha >= 0.0, "alpha value", alpha)
        super().__init__(
            params,
            dict(
                lr=lr, momentum=momentum, alpha=alpha, eps=eps, centered=centered, weight_decay=weight_decay, capturable=capturable,
                foreach=foreach, maximize=maximize, differentiable=differentiable,
            ),
        )  # fmt: skip

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=0.0, square_avg=filled(p))
            if group["momentum"]:
                state["momentum_buffer"] = filled(p)
            if group["centered"]:
                state["grad_avg"] = filled(p)
        state["step"] += 1.0
        alpha = group["alpha"]
        if group["weight_decay"]:
            g = g + p * group["weight_decay"]  # type: ignore[operator]
        v = state["square_avg"] * alpha + g * g * (1 - alpha)
        assign(state["square_avg"], v)
        if group["centered"]:
            mean = state["grad_avg"]
            new = mean + (g - mean) * (1 - alpha)
            assign(mean, new)
            v = v - new * new
        move = g / (v.sqrt() + group["eps"])
        if group["momentum"]:
            move = state["momentum_buffer"] * group["momentum"] + move
            assign(state["momentum_buffer"], move)
        assign(p, p - move * group["lr"])  # type: ignore[operator]


class Adagrad(Optimizer):
    """p -= lr * g / (root of the sum of all g^2 + eps) (Duchi et al., 2011)."""

    def __init__(
        self, params: Any, lr: Any = 1e-2, lr_decay: float = 0, weight_decay: float = 0, initial_accumulator_value: float = 0,
        eps: float = 1e-10, foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        check_rate(lr)
        check(lr_decay >= 0.0, "lr_decay value", lr_decay)
        check(weight_decay >= 0.0, "weight_decay value", weight_decay)
        check(initial_accumulator_value >= 0.0, "initial_accumulator_value value", initial_accumulator_value)
        check(eps >= 0.0, "epsilon value", eps)
        super().__init__(
            params,
            dict(
                lr=lr, lr_decay=lr_decay, eps=eps, weight_decay=weight_decay, initial_accumulator_value=initial_accumulator_value,
                foreach=foreach, maximize=maximize, differentiable=differentiable, fused=fused,
            ),
        )  # fmt: skip
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].update(step=0.0, sum=filled(p, float(initial_accumulator_value)))

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=0.0, sum=filled(p, float(group["initial_accumulator_value"])))
        state["step"] = step = state["step"] + 1.0
        if group["weight_decay"]:
            g = g + p * group["weight_decay"]  # type: ignore[operator]
        total = state["sum"] + g * g
        assign(state["sum"], total)
        rate = group["lr"] / (1 + (step - 1) * group["lr_decay"])
        assign(p, p - g / (total.sqrt() + group["eps"]) * rate)  # type: ignore[operator]


class Adadelta(Optimizer):
    """Steps in the units of the parameter: root mean square of moves over that of gradients (Zeiler, 2012)."""

    def __init__(
        self, params: Any, lr: Any = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0, foreach: bool | None = None,
        *, capturable: bool = False, maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_rate(lr)
        check(0.0 <= rho <= 1.0, "rho value", rho)
        check(eps >= 0.0, "epsilon value", eps)
        check(weight_decay >= 0.0, "weight_decay value", weight_decay)
        super().__init__(
            params,
            dict(
                lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize, capturable=capturable, foreach=foreach,
                differentiable=differentiable,
            ),
        )  # fmt: skip

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=0.0, square_avg=filled(p), acc_delta=filled(p))
        state["step"] += 1.0
        rho, eps = group["rho"], group["eps"]
        if group["weight_decay"]:
            g = g + p * group["weight_decay"]  # type: ignore[operator]
        v = state["square_avg"] * rho + g * g * (1 - rho)
        assign(state["square_avg"], v)
        moved = state["acc_delta"]
        delta = (moved + eps).sqrt() / (v + eps).sqrt() * g
        assign(moved, moved * rho + delta * delta * (1 - rho))
        assign(p, p - delta * group["lr"])  # type: ignore[operator]


class Rprop(Optimizer):
    """Steps by the sign of the gradient, grown while it keeps and shrunk when it turns (Riedmiller and Braun, 1993)."""

    def __init__(
        self, params: Any, lr: Any = 1e-2, etas: tuple[float, float] = (0.5, 1.2), step_sizes: tuple[float, float] = (1e-6, 50),
        *, capturable: bool = False, foreach: bool | None = None, maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_rate(lr)
        check(0.0 < etas[0] < 1.0 < etas[1], "eta values", f"{etas[0]}, {etas[1]}")
        super().__init__(
            params,
            dict(
                lr=lr, etas=etas, step_sizes=step_sizes, foreach=foreach, maximize=maximize, differentiable=differentiable,
                capturable=capturable,
            ),
        )  # fmt: skip

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=0.0, prev=filled(p), step_size=filled(p, float(group["lr"])))
        state["step"] += 1.0
        (shrink, grow), (least, most) = group["etas"], group["step_sizes"]
        where = PUBLIC["where"]
        turn = g * state["prev"]
        size = (state["step_size"] * where(turn > 0, grow, where(turn < 0, shrink, 1.0))).clamp(least, most)
        assign(state["step_size"], size)
        g = where(turn < 0, 0.0, g)
        assign(state["prev"], g)
        assign(p, p - g.sign() * size)  # type: ignore[operator]


class ASGD(Optimizer):
    """Stochastic gradient descent that also averages its path, as `ax` in the state (Polyak and Juditsky, 1992)."""

    def __init__(
        self, params: Any, lr: Any = 1e-2, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6, weight_decay: float = 0,
        foreach: bool | None = None, maximize: bool = False, differentiable: bool = False, capturable: bool = False,
    ) -> None:  # fmt: skip
        check_rate(lr)
        check(weight_decay >= 0.0, "weight_decay value", weight_decay)
        super().__init__(
            params,
            dict(
                lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay, foreach=foreach, maximize=maximize,
                differentiable=differentiable, capturable=capturable,
            ),
        )  # fmt: skip

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        lr, lambd = float(group["lr"]), group["lambd"]
        if not state:
            state.update(step=0.0, eta=lr, mu=1.0, ax=filled(p))
        state["step"] = step = state["step"] + 1.0
        if group["weight_decay"]:
            g = g + p * group["weight_decay"]  # type: ignore[operator]
        new = p * (1 - lambd * state["eta"]) - g * state["eta"]  # type: ignore[operator]
        assign(state["ax"], new if state["mu"] == 1 else state["ax"] + (new - state["ax"]) * state["mu"])
        assign(p, new)
        state["eta"] = lr / (1 + lambd * lr * step) ** group["alpha"]
        state["mu"] = 1 / max(1.0, step - group["t0"])
