"""Convolutions and transposed convolutions in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flame.nn import functional as F
from flame.nn import init
from flame.nn.functional.convolution import tuples
from flame.nn.modules.linear import fresh
from flame.nn.modules.module import Module
from flame.nn.parameter import Parameter
from flame.tensor import Tensor

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Conv(Module):
    """Weights and settings of a convolution over `_n` dimensions; `_transposed` swaps the weight's channels."""

    _n: int
    _transposed = False
    bias: Parameter | None

    def _set_up(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any,
        groups: int, bias: bool, padding_mode: str, device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        if groups <= 0:
            raise ValueError("groups must be a positive integer")
        if in_channels % groups:
            raise ValueError("in_channels must be divisible by groups")
        if out_channels % groups:
            raise ValueError("out_channels must be divisible by groups")
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {set(_PADDING_MODES)}, but got padding_mode='{padding_mode}'")
        name = type(self).__name__
        each = lambda v, what: tuples(v, self._n, name, what)
        self.in_channels, self.out_channels, self.groups, self.padding_mode = in_channels, out_channels, groups, padding_mode
        self.kernel_size = each(kernel_size, "kernel_size")
        self.stride, self.dilation = each(stride, "stride"), each(dilation, "dilation")
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"Invalid padding string {padding!r}, should be one of {{'valid', 'same'}}")
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError("padding='same' is not supported for strided convolutions")
            self.padding: Any = padding
        else:
            self.padding = each(padding, "padding")
        self.output_padding = each(output_padding, "output_padding")
        channels = (in_channels, out_channels // groups) if self._transposed else (out_channels, in_channels // groups)
        self.weight = fresh(*channels, *self.kernel_size, dtype=dtype, device=device)
        self.register_parameter("bias", fresh(out_channels, dtype=dtype, device=device) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(inputs of one output), weights and biases."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in, _ = init.fans(self.weight)
            if fan_in:
                bound = 1 / math.sqrt(fan_in)
                init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        parts = [str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}", f"stride={self.stride}"]
        if isinstance(self.padding, str) or any(self.padding):
            parts.append(f"padding={self.padding}")
        if any(d != 1 for d in self.dilation):
            parts.append(f"dilation={self.dilation}")
        if any(self.output_padding):
            parts.append(f"output_padding={self.output_padding}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join(parts)


class _Forward(_Conv):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._set_up(
            in_channels, out_channels, kernel_size, stride, padding, 0, dilation, groups, bias, padding_mode, device, dtype
        )

    def _around(self) -> list[int]:
        """The padding as pairs, last dimension first."""
        pairs: list[tuple[int, int]] = []
        for i, (k, d) in enumerate(zip(self.kernel_size, self.dilation, strict=True)):
            if self.padding == "same":
                pairs.append((d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2))
            else:
                pairs.append((0, 0) if self.padding == "valid" else (self.padding[i],) * 2)
        return [v for pair in reversed(pairs) for v in pair]

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv, padding = getattr(F, f"conv{self._n}d"), self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._around(), mode=self.padding_mode), 0
        return conv(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv1d(_Forward):
    """[N, C, L] -> [N, O, L']; weight [O, C / groups, kernel]."""

    _n = 1


class Conv2d(_Forward):
    """[N, C, H, W] -> [N, O, H', W']; weight [O, C / groups, *kernel]."""

    _n = 2


class Conv3d(_Forward):
    """[N, C, D, H, W] -> [N, O, D', H', W']; weight [O, C / groups, *kernel]."""

    _n = 3


class _Transposed(_Conv):
    _transposed = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
        groups: int = 1, bias: bool = True, dilation: Any = 1, padding_mode: str = "zeros", device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if padding_mode != "zeros":
            raise ValueError(f'Only "zeros" padding mode is supported for {type(self).__name__}')
        self._set_up(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation, groups, bias, padding_mode, device,
            dtype,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        extra = self.output_padding if output_size is None else self._extra(input, list(output_size))
        conv = getattr(F, f"conv_transpose{self._n}d")
        return conv(input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation)

    def _extra(self, input: Tensor, output_size: list[int]) -> tuple[int, ...]:
        """The output padding that gives the wanted size. Raises ValueError for a size that no padding gives."""
        n = self._n
        if len(output_size) == input.ndim:
            output_size = output_size[-n:]
        if len(output_size) != n:
            raise ValueError(
                f"ConvTranspose{n}D: for {input.ndim}D input, output_size must have {n} or {input.ndim} elements "
                f"(got {len(output_size)})"
            )
        least = [
            (size - 1) * s - 2 * p + d * (k - 1) + 1
            for size, s, p, d, k in zip(
                input.shape[-n:], self.stride, self.padding, self.dilation, self.kernel_size, strict=True
            )
        ]
        if any(not m <= want < m + s for want, m, s in zip(output_size, least, self.stride, strict=True)):
            most = [m + s - 1 for m, s in zip(least, self.stride, strict=True)]
            raise ValueError(
                f"requested an output size of {output_size}, but valid sizes range from {least} to {most} (for an input of "
                f"{list(input.shape[2:])})"
            )
        return tuple(want - m for want, m in zip(output_size, least, strict=True))


class ConvTranspose1d(_Transposed):
    """The gradient of Conv1d with respect to its input, as a layer; weight [C, O / groups, kernel]."""

    _n = 1


class ConvTranspose2d(_Transposed):
    """The gradient of Conv2d with respect to its input, as a layer; weight [C, O / groups, *kernel]."""

    _n = 2


class ConvTranspose3d(_Transposed):
    """The gradient of Conv3d with respect to its input, as a layer; weight [C, O / groups, *kernel]."""

    _n = 3
