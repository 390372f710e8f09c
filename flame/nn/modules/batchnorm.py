"""Normalisation with running statistics: over batches, and over instances."""

from __future__ import annotations

from typing import Any

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.nn import functional as F
from flame.nn import init
from flame.nn.modules.linear import fresh
from flame.nn.modules.module import Module
from flame.tensor import Tensor


class _NormBase(Module):
    _version = 2  #: 1 had no num_batches_tracked
    _ranks: tuple[int, ...]

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, device: Any = None, dtype: Any = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        make = lambda wanted: fresh(num_features, dtype=dtype, device=device) if wanted else None
        self.register_parameter("weight", make(affine))
        self.register_parameter("bias", make(affine and bias))
        zeros, ones = PUBLIC["zeros"], PUBLIC["ones"]
        track = track_running_stats
        self.register_buffer("running_mean", zeros(num_features, dtype=dtype, device=device) if track else None)
        self.register_buffer("running_var", ones(num_features, dtype=dtype, device=device) if track else None)
        self.register_buffer("num_batches_tracked", PUBLIC["tensor"](0, dtype=dtypes.int64, device=device) if track else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in self._ranks:
            raise ValueError(f"expected {' or '.join(f'{n}D' for n in self._ranks)} input (got {input.ndim}D input)")

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *rest: Any) -> None:
        key = prefix + "num_batches_tracked"
        if local_metadata.get("version", 1) < 2 and self.track_running_stats and key not in state_dict:
            have = self.num_batches_tracked
            state_dict[key] = PUBLIC["tensor"](0, dtype=dtypes.int64) if have is None else have
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class _BatchNorm(_NormBase):
    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        momentum: Any = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a plain mean over all batches so far, without reading the count
                momentum = 1.0 / self.num_batches_tracked.to(self.running_mean.dtype)
        by_batch = self.training or self.running_mean is None
        tracks = not self.training or self.track_running_stats
        return F.batch_norm(
            input, self.running_mean if tracks else None, self.running_var if tracks else None, self.weight, self.bias, by_batch,
            momentum, self.eps,
        )  # fmt: skip


class BatchNorm1d(_BatchNorm):
    """[N, C] or [N, C, L], by the mean and variance of each channel over the batch."""

    _ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """[N, C, H, W], by the mean and variance of each channel over the batch."""

    _ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """[N, C, D, H, W], by the mean and variance of each channel over the batch."""

    _ranks = (5,)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm of any rank; with one process there is nothing to synchronise. A `process_group` is refused (ValueError)."""

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, process_group: Any = None, device: Any = None, dtype: Any = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        if process_group is not None:
            raise ValueError("SyncBatchNorm: flame has no process groups: pass process_group=None")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")


class _InstanceNorm(_NormBase):
    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = False, track_running_stats: bool = False,
        device: Any = None, dtype: Any = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        single = input.ndim == self._ranks[0]
        y = F.instance_norm(
            input.unsqueeze(0) if single else input, self.running_mean, self.running_var, self.weight, self.bias,  # type: ignore[attr-defined]
            self.training or not self.track_running_stats, 0.0 if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip
        return y.squeeze(0) if single else y  # type: ignore[attr-defined]


class InstanceNorm1d(_InstanceNorm):
    """[N, C, L] or [C, L], each channel of each sample by its own mean and variance."""

    _ranks = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    """[N, C, H, W] or [C, H, W], each channel of each sample by its own mean and variance."""

    _ranks = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    """[N, C, D, H, W] or [C, D, H, W], each channel of each sample by its own mean and variance."""

    _ranks = (4, 5)
