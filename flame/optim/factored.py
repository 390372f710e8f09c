"""Optimizers for matrices: Adafactor, which keeps row and column means of squares, and Muon, which steps by orthogonal matrices."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from flame import dtypes
from flame.autograd.tape import assign
from flame.functions.promotion import to_dtype
from flame.optim.adam import mean_moved
from flame.optim.optimizer import Optimizer, Rule, check_rate, each, filled
from flame.primitive import registered
from flame.tensor import Tensor

MAXIMUM = registered("maximum")

#: the distance from 1 to the next number
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def _require(fits: bool, text: str) -> None:
    if not fits:
        raise ValueError(text)


class Adafactor(Optimizer):
    """A second moment from its row and column means, and steps relative to the parameter's size (Shazeer and Stern, 2018)."""

    def __init__(
        self, params: Any, lr: Any = 1e-2, beta2_decay: float = -0.8, eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0, weight_decay: float = 0.0, *, foreach: bool | None = None, maximize: bool = False,
    ) -> None:  # fmt: skip
        check_rate(lr)
        _require(beta2_decay <= 0.0, f"beta2_decay should be <= 0 but is: {beta2_decay}")
        _require(eps[0] is None or eps[0] >= 0.0, f"epsilon1 should be >= 0 but is: {eps[0]}")
        _require(eps[1] >= 0.0, f"epsilon2 should be >= 0 but is: {eps[1]}")
        _require(d >= 1.0, f"Clipping threshold d should be >= 1 but is: {d}")
        _require(weight_decay >= 0.0, f"weight_decay should be >= 0 but is: {weight_decay}")
        super().__init__(
            params,
            dict(lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay, foreach=foreach, maximize=maximize),
        )

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        matrix = p.ndim > 1
        if not state:
            state["step"] = 0.0
            if matrix:
                state["row_var"] = filled(p, shape=(*p.shape[:-1], 1))
                state["col_var"] = filled(p, shape=(*p.shape[:-2], 1, p.shape[-1]))
            else:
                state["variance"] = filled(p)
        state["step"] = step = state["step"] + 1.0
        lr, decay, (eps1, eps2) = float(group["lr"]), group["weight_decay"], group["eps"]
        eps1 = _EPSILON[p.dtype.name] if eps1 is None else eps1
        numbers = (
            step ** group["beta2_decay"],
            eps1,
            eps1 * eps1,
            eps2,
            min(lr, 1 / math.sqrt(step)),
            1 - lr * decay,
            group["d"],
        )
        moments = (state["row_var"], state["col_var"]) if matrix else (state["variance"],)
        return _adafactor(matrix, bool(decay)), (p, g, *moments), numbers


@cache
def _adafactor(matrix: bool, decay: bool) -> Rule:
    def move(p: Any, g: Any, *rest: Any) -> None:
        *moments, share, eps1, eps1_squared, eps2, rate, kept, most = rest
        size = math.sqrt(max(p.numel(), 1))
        alpha = MAXIMUM((p * p).sum().sqrt() / size, eps2) * rate
        x = p * kept if decay else p
        if matrix:
            row = mean_moved(moments[0], (g * g).mean(-1, True), share)
            column = mean_moved(moments[1], (g * g).mean(-2, True), share)
            v = row * column / row.mean(-2, True).clamp(min=eps1)
        else:
            v = mean_moved(moments[0], g * g, share)
        update = v.clamp(min=eps1_squared).rsqrt() * g
        rms = (update * update).sum().sqrt() / size / most
        assign(p, x - update * (alpha / MAXIMUM(rms, 1.0)))

    return each(4 if matrix else 3, move)


class Muon(Optimizer):
    """Momentum whose matrix is replaced by the nearest orthogonal one, roughly (Jordan et al., 2024). Parameters are matrices.

    The polynomial iteration of Newton and Schulz runs in bfloat16. `adjust_lr_fn`: "original" (None) or "match_rms_adamw".
    """

    def __init__(
        self, params: Any, lr: Any = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95, nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315), eps: float = 1e-7, ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:  # fmt: skip
        if isinstance(lr, Tensor):
            check_rate(lr)
        else:
            _require(lr >= 0.0, f"Learning rate should be >= 0 but is: {lr}")
        _require(momentum >= 0.0, f"momentum should be >= 0 but is: {momentum}")
        _require(weight_decay >= 0.0, f"weight decay should be >= 0 but is: {weight_decay}")
        _require(
            adjust_lr_fn in (None, "original", "match_rms_adamw"),
            f"Adjust learning rate function {adjust_lr_fn} is not supported",
        )
        super().__init__(
            params,
            dict(
                lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, ns_coefficients=ns_coefficients, eps=eps,
                ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn,
            ),
        )  # fmt: skip

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.ndim != 2:
                self.param_groups.pop()
                raise ValueError(f"Muon only supports 2D parameters whereas we found a parameter with size: {p.shape!r}")

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        if not state:
            state["momentum_buffer"] = filled(p)
        m, lr, (rows, columns) = group["momentum"], group["lr"], p.shape
        match group["adjust_lr_fn"]:
            case "match_rms_adamw":
                ratio = 0.2 * math.sqrt(max(rows, columns))
            case _:
                ratio = math.sqrt(max(1.0, rows / columns))
        rule = _muon(bool(group["nesterov"]), tuple(group["ns_coefficients"]), group["ns_steps"])
        numbers = (1 - m, m, group["eps"], 1 - lr * group["weight_decay"], lr * ratio)
        return rule, (p, g, state["momentum_buffer"]), numbers


@cache
def _muon(nesterov: bool, coefficients: tuple[float, float, float], steps: int) -> Rule:
    def move(p: Any, g: Any, buffer: Any, share: float, m: float, eps: float, kept: Any, rate: Any) -> None:
        mean = mean_moved(buffer, g, share)
        update = orthogonalised(g + (mean - g) * m if nesterov else mean, coefficients, steps, eps)
        assign(p, p * kept - to_dtype(update, p.dtype) * rate)

    return each(3, move)


def orthogonalised(g: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """U V^T of g = U S V^T, roughly: its singular values are drawn towards 1 by a quintic, `steps` times, in bfloat16."""
    if steps >= 100:
        raise ValueError("Number of steps must be less than 100 for computational efficiency")
    if len(coefficients) != 3:
        raise ValueError("Coefficients must be a tuple of exactly 3 values")
    a, b, c = coefficients
    x = to_dtype(g, dtypes.bfloat16)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / MAXIMUM((x * x).sum().sqrt(), eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = x * a + (gram * b + (gram @ gram) * c) @ x
    return x.mT if tall else x
