"""Averages of a model's weights over its training: `AveragedModel` with running or exponential means, the schedule for it, and
`update_bn`, which gives the average its own batch statistics.

    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    for x, y in loader:
        step(x, y)
        averaged.update_parameters(model)
    update_bn(loader, averaged)

(Izmailov et al., 2018: Averaging weights leads to wider optima.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Literal

from flame import dtypes
from flame.autograd import no_grad
from flame.autograd.tape import assign, update
from flame.functions.elementwise import PUBLIC
from flame.nn.modules.batchnorm import _BatchNorm
from flame.nn.modules.module import Module
from flame.optim.lr_scheduler import LRScheduler
from flame.optim.optimizer import Optimizer, each
from flame.tensor import Tensor

__all__ = [
    "AveragedModel",
    "SWALR",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]


def _drawn(mean: Any, new: Any, share: float) -> None:
    assign(mean, mean + (new - mean) * share)


def _weighed(mean: Any, new: Any, kept: float) -> None:
    assign(mean, (mean * kept + new * (1 - kept)).to(mean.dtype))


_DRAWN = each(2, _drawn)


def _pairs(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return list(chain.from_iterable(zip(a, b, strict=True)))


def _floating(ts: Sequence[Tensor]) -> bool:
    return ts[0].is_floating_point() or ts[0].is_complex()  # type: ignore[attr-defined]


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"Invalid decay value {decay} provided. Please provide a value in [0,1] range.")


def get_ema_multi_avg_fn(decay: float = 0.999) -> Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]:
    """Exponential means of many tensors in one pass. Raises ValueError where `decay` is not in [0, 1]."""
    _check_decay(decay)

    @no_grad()
    def average(means: Sequence[Tensor], new: Sequence[Tensor], n: Any) -> None:
        if _floating(means):
            update(_DRAWN, _pairs(means, new), (1 - decay,))
        else:
            for mean, x in zip(means, new, strict=True):
                _weighed(mean, x, decay)

    return average


def get_swa_multi_avg_fn() -> Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]:
    """Means over all that there was, of many tensors in one pass."""

    @no_grad()
    def average(means: Sequence[Tensor], new: Sequence[Tensor], n: Any) -> None:
        if _floating(means):
            update(_DRAWN, _pairs(means, new), (1 / (int(n) + 1),))
        else:
            for mean, x in zip(means, new, strict=True):
                assign(mean, (mean + (x - mean) / (int(n) + 1)).to(mean.dtype))  # type: ignore[operator]

    return average


def get_ema_avg_fn(decay: float = 0.999) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The exponential mean of one tensor. Raises ValueError where `decay` is not in [0, 1]."""
    _check_decay(decay)
    return no_grad()(lambda mean, new, n: mean * decay + new * (1 - decay))


def get_swa_avg_fn() -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The mean of one tensor over all that there was."""
    return no_grad()(lambda mean, new, n: mean + (new - mean) / (n + 1))


class AveragedModel(Module):
    """A copy of `model` (as `module`) whose parameters are means of those that `update_parameters` was shown.

    avg_fn(mean, new, n): the next mean of one parameter; multi_avg_fn(means, news, n): moves all means in place; by default the
    plain mean. n is the buffer `n_averaged`. Buffers are averaged too with `use_buffers`, else copied.
    """

    n_averaged: Tensor

    def __init__(
        self, model: Module, device: Any = None, avg_fn: Callable[..., Any] | None = None,
        multi_avg_fn: Callable[..., None] | None = None, use_buffers: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise AssertionError("Only one of avg_fn and multi_avg_fn should be provided")
        self.module = copy.deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", PUBLIC["tensor"](0, dtype=dtypes.int64, device=device))
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @no_grad()
    def update_parameters(self, model: Module) -> None:
        """Take the parameters of `model` into the means; the first time they are copied."""
        of = lambda m: [*m.parameters(), *(m.buffers() if self.use_buffers else ())]
        means, new = of(self.module), [t.to(m.device) for m, t in zip(of(self.module), of(model), strict=True)]
        if int(self.n_averaged) == 0:
            for mean, x in zip(means, new, strict=True):
                mean.copy_(x)
        elif self.avg_fn is not None:
            for mean, x in zip(means, new, strict=True):
                mean.copy_(self.avg_fn(mean, x, self.n_averaged))
        else:
            together: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
            for mean, x in zip(means, new, strict=True):
                pair = together.setdefault((mean.device, mean.dtype), ([], []))
                pair[0].append(mean)
                pair[1].append(x)
            average = self.multi_avg_fn or get_swa_multi_avg_fn()
            for ms, xs in together.values():
                average(ms, xs, self.n_averaged)
        if not self.use_buffers:
            for mean, x in zip(self.module.buffers(), model.buffers(), strict=True):
                mean.copy_(x)
        self.n_averaged += 1


@no_grad()
def update_bn(loader: Iterable[Any], model: Module, device: Any = None) -> None:
    """Compute the running statistics of the model's batch norms anew, as means over a pass over `loader`: batches, or tuples and
    lists whose first entry is what the model is called with."""
    momenta = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm)}
    if not momenta:
        return
    was_training = model.training
    model.train()
    for m in momenta:
        m.reset_running_stats()
        m.momentum = None
    try:
        for batch in loader:
            x = batch[0] if isinstance(batch, list | tuple) else batch
            model(x if device is None else x.to(device))
    finally:
        for m, momentum in momenta.items():
            m.momentum = momentum
        model.train(was_training)


class SWALR(LRScheduler):
    """From the present rates to `swa_lr` (one number, or one a group) within `anneal_epochs`, by a cosine or in a line."""

    def __init__(
        self, optimizer: Optimizer, swa_lr: float, anneal_epochs: int = 10, anneal_strategy: Literal["cos", "linear"] = "cos",
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"anneal_strategy must by one of 'cos' or 'linear', instead got {anneal_strategy}")
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ValueError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
        groups = optimizer.param_groups
        rates = list(swa_lr) if isinstance(swa_lr, list | tuple) else [swa_lr] * len(groups)
        if len(rates) != len(groups):
            raise ValueError(
                f"swa_lr must have the same length as optimizer.param_groups: swa_lr has {len(rates)}, "
                f"optimizer.param_groups has {len(groups)}"
            )
        for group, rate in zip(groups, rates, strict=True):
            group["swa_lr"] = rate
        self.anneal_epochs, self._anneal_strategy = anneal_epochs, anneal_strategy
        super().__init__(optimizer, last_epoch)

    def _share(self, epoch: int) -> float:
        """How far towards `swa_lr` an epoch is."""
        t = max(0.0, min(1.0, epoch / max(1, self.anneal_epochs)))
        return (1 - math.cos(math.pi * t)) / 2 if self._anneal_strategy == "cos" else t

    def get_lr(self) -> list[Any]:
        # The rate from which it went is found again from the present one, so that schedules may take turns.
        epoch = self._step_count - 1
        if self.anneal_epochs == 0:
            epoch = max(1, epoch)
        before, now = self._share(epoch - 1), self._share(epoch)
        rates = []
        for group in self.optimizer.param_groups:
            lr, end = group["lr"], group["swa_lr"]
            begin = end if before == 1 else (lr - before * end) / (1 - before)
            rates.append(end * now + begin * (1 - now))
        return rates
