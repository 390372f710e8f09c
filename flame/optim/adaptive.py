"""Optimizers that scale each element by its own history: RMSprop, Adagrad, Adadelta, Rprop; and ASGD, which averages its path."""

from __future__ import annotations

from functools import cache
from typing import Any

from flame.autograd.tape import assign
from flame.functions.elementwise import PUBLIC
from flame.optim.adam import mean_moved, square_moved
from flame.optim.optimizer import Optimizer, Rule, check, check_rate, each, filled
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

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        momentum, centered, decay, alpha = group["momentum"], group["centered"], group["weight_decay"], group["alpha"]
        if not state:
            state.update(step=0.0, square_avg=filled(p))
            if momentum:
                state["momentum_buffer"] = filled(p)
            if centered:
                state["grad_avg"] = filled(p)
        state["step"] += 1.0
        kept = [state[k] for k in ("grad_avg", "momentum_buffer") if k in state]
        numbers = (alpha, 1 - alpha, group["eps"], decay, momentum, group["lr"])
        return _rmsprop(bool(centered), bool(momentum), bool(decay)), (p, g, state["square_avg"], *kept), numbers


@cache
def _rmsprop(centered: bool, momentum: bool, decay: bool) -> Rule:
    def move(p: Any, g: Any, v: Any, *rest: Any) -> None:
        *buffers, kept, share, eps, shrink, inertia, lr = rest
        if decay:
            g = g + p * shrink
        square = square_moved(v, g, kept, share)
        if centered:
            mean = mean_moved(buffers[0], g, share)
            square = square - mean * mean
        step = g / (square.sqrt() + eps)
        if momentum:
            step = buffers[-1] * inertia + step
            assign(buffers[-1], step)
        assign(p, p - step * lr)

    return each(3 + centered + momentum, move)


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

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        if not state:
            state.update(step=0.0, sum=filled(p, float(group["initial_accumulator_value"])))
        state["step"] = step = state["step"] + 1.0
        rate, decay = group["lr"] / (1 + (step - 1) * group["lr_decay"]), group["weight_decay"]
        return _adagrad(bool(decay)), (p, g, state["sum"]), (group["eps"], decay, rate)


@cache
def _adagrad(decay: bool) -> Rule:
    def move(p: Any, g: Any, total: Any, eps: float, shrink: float, rate: Any) -> None:
        if decay:
            g = g + p * shrink
        new = total + g * g
        assign(total, new)
        assign(p, p - g / (new.sqrt() + eps) * rate)

    return each(3, move)


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

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        if not state:
            state.update(step=0.0, square_avg=filled(p), acc_delta=filled(p))
        state["step"] += 1.0
        rho, decay = group["rho"], group["weight_decay"]
        numbers = (rho, 1 - rho, group["eps"], decay, group["lr"])
        return _adadelta(bool(decay)), (p, g, state["square_avg"], state["acc_delta"]), numbers


@cache
def _adadelta(decay: bool) -> Rule:
    def move(p: Any, g: Any, v: Any, moved: Any, kept: float, share: float, eps: float, shrink: float, lr: Any) -> None:
        if decay:
            g = g + p * shrink
        square = square_moved(v, g, kept, share)
        step = (moved + eps).sqrt() / (square + eps).sqrt() * g
        square_moved(moved, step, kept, share)
        assign(p, p - step * lr)

    return each(4, move)


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

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        if not state:
            state.update(step=0.0, prev=filled(p), step_size=filled(p, float(group["lr"])))
        state["step"] += 1.0
        return _RPROP, (p, g, state["prev"], state["step_size"]), (*group["etas"], *group["step_sizes"])


def _rprop(p: Any, g: Any, before: Any, size: Any, shrink: float, grow: float, least: float, most: float) -> None:
    where = PUBLIC["where"]
    turn = g * before
    new = (size * where(turn > 0, grow, where(turn < 0, shrink, 1.0))).clamp(least, most)
    assign(size, new)
    g = where(turn < 0, 0.0, g)
    assign(before, g)
    assign(p, p - g.sign() * new)


_RPROP = each(4, _rprop)


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

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        lr, lambd, decay = float(group["lr"]), group["lambd"], group["weight_decay"]
        if not state:
            state.update(step=0.0, eta=lr, mu=1.0, ax=filled(p))
        state["step"] = step = state["step"] + 1.0
        eta, mu = state["eta"], state["mu"]
        state["eta"] = lr / (1 + lambd * lr * step) ** group["alpha"]
        state["mu"] = 1 / max(1.0, step - group["t0"])
        return _asgd(mu == 1, bool(decay)), (p, g, state["ax"]), (decay, 1 - lambd * eta, eta, mu)


@cache
def _asgd(begins: bool, decay: bool) -> Rule:
    """`begins`: the average is still where the path is."""

    def move(p: Any, g: Any, mean: Any, shrink: float, kept: float, rate: float, share: float) -> None:
        if decay:
            g = g + p * shrink
        new = p * kept - g * rate
        assign(mean, new if begins else mean + (new - mean) * share)
        assign(p, new)

    return each(3, move)
