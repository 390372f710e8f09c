"""L-BFGS: quasi-Newton steps from the last few gradients (Nocedal, 1980), with a line search that satisfies Wolfe's conditions.

It decides by values at every iteration, so it reads losses and inner products; a compiled closure stays compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flame.autograd import enable_grad, no_grad
from flame.functions.elementwise import PUBLIC
from flame.optim.optimizer import Optimizer, check_rate
from flame.tensor import Tensor


@dataclass
class Point:
    """A place on the line: the step, the loss, its gradient, and the gradient along the line."""

    t: float
    loss: float
    grad: Tensor
    slope: float


def _cubic_minimum(a: Point, b: Point, low: float, high: float) -> float:
    """Where the cubic through two points and their slopes is least, within [low, high]; the middle where there is no minimum.

    Nocedal and Wright, Numerical Optimization, 3.59.
    """
    if a.t == b.t:
        return (low + high) / 2
    if a.t > b.t:
        a, b = b, a
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if not square >= 0:
        return (low + high) / 2
    d2 = math.sqrt(square)
    bottom = b.slope - a.slope + 2 * d2
    if not bottom:
        return (low + high) / 2
    t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / bottom)
    return min(max(t, low), high)


def strong_wolfe(
    at: Callable[[float], Point], start: Point, t: float, size: float, most: int, change: float = 1e-9, c1: float = 1e-4,
    c2: float = 0.9,
) -> tuple[Point, int]:  # fmt: skip
    """A point on the line that satisfies the strong Wolfe conditions, and how often the loss was computed.

    Bracketing, then zooming in (Nocedal and Wright, algorithms 3.5 and 3.6), with cubic interpolation. `size` is the largest
    element of the direction, `most` how often to look at most.
    """
    low = lambda p: p.loss > start.loss + c1 * p.t * start.slope
    flat = lambda p: abs(p.slope) <= -c2 * start.slope
    before, now = start, at(t)
    looked = 1
    tries = 0
    ends: list[Point] = []
    while tries < most:
        if low(now) or (tries > 1 and now.loss >= before.loss) or not math.isfinite(now.loss):
            ends = [before, now]
            break
        if flat(now):
            return now, looked
        if now.slope >= 0:
            ends = [before, now]
            break
        t = _cubic_minimum(before, now, now.t + 0.01 * (now.t - before.t), now.t * 10)
        before, now = now, at(t)
        looked += 1
        tries += 1
    if not ends:
        ends = [start, now]
    best, other = sorted(ends, key=lambda p: p.loss)
    stuck = False
    while tries < most:
        width = abs(best.t - other.t)
        if width * size < change:
            break
        least, largest = min(best.t, other.t), max(best.t, other.t)
        t = _cubic_minimum(best, other, least, largest)
        # near an end of the bracket twice, or beyond it: a tenth of the width inside of it
        margin = 0.1 * width
        if min(largest - t, t - least) < margin:
            if stuck or t >= largest or t <= least:
                t = largest - margin if abs(t - largest) < abs(t - least) else least + margin
                stuck = False
            else:
                stuck = True
        else:
            stuck = False
        now = at(t)
        looked += 1
        tries += 1
        if low(now) or now.loss >= best.loss:
            other = now
            if other.loss < best.loss:
                best, other = other, best
        else:
            if flat(now):
                return now, looked
            if now.slope * (other.t - best.t) >= 0:
                other = best
            best = now
    return best, looked


class LBFGS(Optimizer):
    """`step(closure)` makes up to `max_iter` iterations; one group of parameters. `line_search_fn`: None or "strong_wolfe".

    The closure clears gradients, computes the loss and its gradients, and returns the loss. Raises ValueError for several groups,
    RuntimeError for another line search.
    """

    def __init__(
        self, params: Any, lr: Any = 1, max_iter: int = 20, max_eval: int | None = None, tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9, history_size: int = 100, line_search_fn: str | None = None,
    ) -> None:  # fmt: skip
        check_rate(lr)
        super().__init__(
            params,
            dict(
                lr=lr, max_iter=max_iter, max_eval=max_iter * 5 // 4 if max_eval is None else max_eval,
                tolerance_grad=tolerance_grad, tolerance_change=tolerance_change, history_size=history_size,
                line_search_fn=line_search_fn,
            ),
        )  # fmt: skip
        if len(self.param_groups) != 1:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")

    @property
    def _params(self) -> list[Tensor]:
        return self.param_groups[0]["params"]

    def _gradient(self) -> Tensor:
        """The gradients of all parameters, flattened."""
        return PUBLIC["cat"](
            [PUBLIC["zeros_like"](p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in self._params]
        )

    def _move(self, places: list[Tensor], t: float, d: Tensor) -> None:
        """Set the parameters to `places` + t d."""
        at = 0
        for p, x in zip(self._params, places, strict=True):
            p.copy_(x + d[at : at + p.numel()].reshape(p.shape) * t)
            at += p.numel()

    def _direction(self, state: dict[str, Any], g: Tensor) -> Tensor:
        """The inverse Hessian's approximation times -g, by the two-loop recursion."""
        q = -g
        steps, changes, ro = state["old_stps"], state["old_dirs"], state["ro"]
        shares: list[float] = [0.0] * len(changes)
        for i in range(len(changes) - 1, -1, -1):
            shares[i] = steps[i].dot(q).item() * ro[i]
            q = q - changes[i] * shares[i]
        d = q * state["H_diag"]
        for i in range(len(changes)):
            d = d + steps[i] * (shares[i] - changes[i].dot(d).item() * ro[i])
        return d

    @no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Iterate. Returns the loss at the start."""
        if closure is None:
            raise TypeError("LBFGS.step() needs a closure that computes the loss and its gradients")
        for hook in list(self._pre_hooks.values()):
            hook(self, (closure,), {})
        loss = self._iterate(enable_grad()(closure))
        self._step_count += 1
        for hook in list(self._post_hooks.values()):
            hook(self, (closure,), {})
        return loss

    def _iterate(self, closure: Callable[[], Any]) -> Any:
        group = self.param_groups[0]
        lr, search = float(group["lr"]), group["line_search_fn"]
        if search not in (None, "strong_wolfe"):
            raise RuntimeError("only 'strong_wolfe' is supported")
        state = self.state[self._params[0]]
        if not state:
            state.update(func_evals=0, n_iter=0)
        first = closure()
        loss, evaluated = float(first), 1
        state["func_evals"] += 1
        g = self._gradient()
        largest = lambda x: x.abs().max().item() if x.numel() else 0.0
        if largest(g) <= group["tolerance_grad"]:
            return first
        iterations = 0
        while iterations < group["max_iter"]:
            iterations += 1
            state["n_iter"] += 1
            if state["n_iter"] == 1:
                state.update(d=-g, old_dirs=[], old_stps=[], ro=[], H_diag=1.0)
            else:
                self._learn(state, g, group["history_size"])
                state["d"] = self._direction(state, g)
            d = state["d"]
            state["prev_flat_grad"], state["prev_loss"] = g.clone(), loss
            before = loss
            t = min(1.0, 1.0 / g.abs().sum().item()) * lr if state["n_iter"] == 1 else lr
            state["t"] = t
            slope = g.dot(d).item()
            if slope > -group["tolerance_change"]:
                break
            places = [p.detach().clone() for p in self._params]
            if search is not None:

                def at(step: float, places: list[Tensor] = places, d: Tensor = d) -> Point:
                    self._move(places, step, d)
                    value = float(closure())
                    grad = self._gradient()
                    return Point(step, value, grad, grad.dot(d).item())

                start = Point(0.0, loss, g, slope)
                found, looked = strong_wolfe(at, start, t, largest(d), group["max_eval"] - evaluated)
                loss, g, t = found.loss, found.grad, found.t
                self._move(places, t, d)
            else:
                self._move(places, t, d)
                looked = 0
                if iterations != group["max_iter"]:  # the last gradient would not be used
                    loss, looked = float(closure()), 1
                    g = self._gradient()
            state["t"] = t
            evaluated += looked
            state["func_evals"] += looked
            if (
                evaluated >= group["max_eval"]
                or largest(g) <= group["tolerance_grad"]
                or largest(d) * abs(t) <= group["tolerance_change"]
                or abs(loss - before) < group["tolerance_change"]
            ):
                break
        return first

    def _learn(self, state: dict[str, Any], g: Tensor, most: int) -> None:
        """Remember the last step and how the gradient changed along it, where that is convex enough."""
        change, moved = g - state["prev_flat_grad"], state["d"] * float(state["t"])
        curvature = change.dot(moved).item()
        if curvature <= 1e-10:
            return
        if len(state["old_dirs"]) == most:
            for name in ("old_dirs", "old_stps", "ro"):
                state[name].pop(0)
        state["old_dirs"].append(change)
        state["old_stps"].append(moved)
        state["ro"].append(1.0 / curvature)
        state["H_diag"] = curvature / change.dot(change).item()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take state and settings; numbers that PyTorch keeps as tensors become numbers."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in ("t", "H_diag", "prev_loss"):
                if state.get(name) is not None:
                    state[name] = float(state[name])
            if "ro" in state:
                state["ro"] = [float(v) for v in state["ro"]]
            state.pop("al", None)
