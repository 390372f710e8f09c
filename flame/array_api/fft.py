"""The standard's `fft` extension: flame.fft under its names, for floating arrays alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame import fft as transforms
from flame.array_api.data_types import array, of_kind
from flame.dtypes import dtype as DType
from flame.tensor import Tensor


def _one(name: str, kinds: str) -> Callable:
    compute = getattr(transforms, name)

    def f(x: Tensor, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Tensor:
        return compute(of_kind(x, kinds, name), n, axis, _norm(norm, name))

    f.__name__ = f.__qualname__ = name
    f.__doc__ = compute.__doc__
    return f


def _several(name: str, kinds: str) -> Callable:
    compute = getattr(transforms, name)

    def f(x: Tensor, /, *, s: Any = None, axes: Any = None, norm: str = "backward") -> Tensor:
        return compute(of_kind(x, kinds, name), s, axes, _norm(norm, name))

    f.__name__ = f.__qualname__ = name
    f.__doc__ = compute.__doc__
    return f


def _norm(norm: Any, op: str) -> str:
    if norm not in ("backward", "ortho", "forward"):
        raise ValueError(f'{op}: norm must be "backward", "ortho" or "forward", got {norm!r}')
    return norm


fft, ifft = _one("fft", "fc"), _one("ifft", "fc")
fftn, ifftn = _several("fftn", "fc"), _several("ifftn", "fc")
rfft, irfft = _one("rfft", "f"), _one("irfft", "fc")
rfftn, irfftn = _several("rfftn", "f"), _several("irfftn", "fc")
hfft, ihfft = _one("hfft", "fc"), _one("ihfft", "f")


def fftfreq(n: int, /, *, d: float = 1.0, dtype: DType | None = None, device: Any = None) -> Tensor:
    """The frequencies of a transform's results, in cycles per unit of the spacing d."""
    return transforms.fftfreq(n, d, dtype=dtype, device=device)


def rfftfreq(n: int, /, *, d: float = 1.0, dtype: DType | None = None, device: Any = None) -> Tensor:
    """The frequencies of a real transform's results, in cycles per unit of the spacing d."""
    return transforms.rfftfreq(n, d, dtype=dtype, device=device)


def fftshift(x: Tensor, /, *, axes: Any = None) -> Tensor:
    """The zero frequency in the middle."""
    return transforms.fftshift(array(x, "fftshift"), axes)


def ifftshift(x: Tensor, /, *, axes: Any = None) -> Tensor:
    """The reverse of fftshift."""
    return transforms.ifftshift(array(x, "ifftshift"), axes)


__all__ = [
    "fft", "fftfreq", "fftn", "fftshift", "hfft", "ifft", "ifftn", "ifftshift", "ihfft", "irfft", "irfftn", "rfft", "rfftfreq",
    "rfftn",
]  # fmt: skip
