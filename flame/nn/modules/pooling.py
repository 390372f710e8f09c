"""Pooling modules."""

from __future__ import annotations

from typing import Any

from flame.nn import functional as F
from flame.nn.functional.convolution import tuples
from flame.nn.modules.module import Module
from flame.tensor import Tensor


class _MaxPool(Module):
    _n: int

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.return_indices, self.ceil_mode = padding, dilation, return_indices, ceil_mode

    def forward(self, input: Tensor) -> Any:
        pool = getattr(F, f"max_pool{self._n}d")
        return pool(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """The maximum of each window of [N, C, L]."""

    _n = 1


class MaxPool2d(_MaxPool):
    """The maximum of each window of [N, C, H, W]."""

    _n = 2


class MaxPool3d(_MaxPool):
    """The maximum of each window of [N, C, D, H, W]."""

    _n = 3


class _AvgPool(Module):
    _n: int

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode, self.count_include_pad = padding, ceil_mode, count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        pool = getattr(F, f"avg_pool{self._n}d")
        return pool(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor_override
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool1d(_AvgPool):
    """The mean of each window of [N, C, L]."""

    _n = 1

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
    ) -> None:
        k, s, p = (tuples(v, 1, "AvgPool1d", "size") for v in (kernel_size, kernel_size if stride is None else stride, padding))
        super().__init__(k, s, p, ceil_mode, count_include_pad)


class AvgPool2d(_AvgPool):
    """The mean of each window of [N, C, H, W]."""

    _n = 2


class AvgPool3d(_AvgPool):
    """The mean of each window of [N, C, D, H, W]."""

    _n = 3


class _Adaptive(Module):
    _function: Any

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        return type(self)._function(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_Adaptive):
    """Means over windows chosen so that the result has `output_size`."""

    _function = staticmethod(F.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_Adaptive):
    """Means over windows chosen so that the result has `output_size`."""

    _function = staticmethod(F.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_Adaptive):
    """Means over windows chosen so that the result has `output_size`."""

    _function = staticmethod(F.adaptive_avg_pool3d)


class _AdaptiveMax(_Adaptive):
    def __init__(self, output_size: Any, return_indices: bool = False) -> None:
        super().__init__(output_size)
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        return type(self)._function(input, self.output_size, self.return_indices)


def _adaptive_max(n: int) -> type:
    body = {
        "_function": staticmethod(getattr(F, f"adaptive_max_pool{n}d")), "__module__": __name__,
        "__doc__": "Maxima over windows chosen so that the result has `output_size`, and with `return_indices` their places.",
    }  # fmt: skip
    return type(f"AdaptiveMaxPool{n}d", (_AdaptiveMax,), body)


AdaptiveMaxPool1d, AdaptiveMaxPool2d, AdaptiveMaxPool3d = map(_adaptive_max, (1, 2, 3))


class _LPPool(Module):
    _n: int

    def __init__(self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> None:
        super().__init__()
        self.norm_type, self.kernel_size, self.stride, self.ceil_mode = norm_type, kernel_size, stride, ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        pool = getattr(F, f"lp_pool{self._n}d")
        return pool(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)

    def extra_repr(self) -> str:
        return f"norm_type={self.norm_type}, kernel_size={self.kernel_size}, stride={self.stride}, ceil_mode={self.ceil_mode}"


class LPPool1d(_LPPool):
    """The p-norm of each window of [N, C, L]."""

    _n = 1


class LPPool2d(_LPPool):
    """The p-norm of each window of [N, C, H, W]."""

    _n = 2


class LPPool3d(_LPPool):
    """The p-norm of each window of [N, C, D, H, W]."""

    _n = 3


class _MaxUnpool(Module):
    _n: int

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__()
        name = type(self).__name__
        self.kernel_size = tuples(kernel_size, self._n, name, "kernel_size")
        self.stride = self.kernel_size if stride is None else tuples(stride, self._n, name, "stride")
        self.padding = tuples(padding, self._n, name, "padding")

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        unpool = getattr(F, f"max_unpool{self._n}d")
        return unpool(input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_MaxUnpool):
    """Values put back to where MaxPool1d found them."""

    _n = 1


class MaxUnpool2d(_MaxUnpool):
    """Values put back to where MaxPool2d found them."""

    _n = 2


class MaxUnpool3d(_MaxUnpool):
    """Values put back to where MaxPool3d found them."""

    _n = 3


class _FractionalMaxPool(Module):
    _n: int

    def __init__(
        self, kernel_size: Any, output_size: Any = None, output_ratio: Any = None, return_indices: bool = False,
        _random_samples: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        name, n = type(self).__name__, self._n
        self.kernel_size = tuples(kernel_size, n, name, "kernel_size")
        self.return_indices = return_indices
        self.register_buffer("_random_samples", _random_samples)
        if (output_size is None) == (output_ratio is None):
            raise ValueError(f"{name} requires specifying either an output size, or a pooling ratio, and not both")
        self.output_size = None if output_size is None else tuples(output_size, n, name, "output_size")
        self.output_ratio = (output_ratio,) * n if isinstance(output_ratio, int | float) else output_ratio
        if self.output_ratio is not None and not all(0 < r < 1 for r in self.output_ratio):
            raise ValueError(f"output_ratio must be between 0 and 1 (got {output_ratio})")

    def forward(self, input: Tensor) -> Any:
        pool = getattr(F, f"fractional_max_pool{self._n}d")
        return pool(input, self.kernel_size, self.output_size, self.output_ratio, self.return_indices, self._random_samples)


class FractionalMaxPool2d(_FractionalMaxPool):
    """Maxima over windows of [N, C, H, W] at pseudo-random distances (Graham, 2014)."""

    _n = 2


class FractionalMaxPool3d(_FractionalMaxPool):
    """Maxima over windows of [N, C, D, H, W] at pseudo-random distances (Graham, 2014)."""

    _n = 3
