"""Windows of M points, under torch.signal.windows' names.

`sym=True` gives the symmetric window (for filters), `sym=False` the periodic one (for spectra), which is the symmetric window of
M + 1 points without its last. Sums of cosines and definitions are those of F. Harris, "On the use of windows for harmonic
analysis with the discrete Fourier transform" (1978).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from flame import dtypes
from flame.dtypes import dtype as DType
from flame.formats import strided
from flame.functions import PUBLIC
from flame.functions.creation import _device
from flame.functions.promotion import to_dtype
from flame.tensor import Tensor


def _window(
    name: str, M: int, sym: bool, dtype: DType | None, layout: Any, device: Any, requires_grad: bool, f: Callable
) -> Tensor:
    """f of the places 0, 1, ... and of the number of steps between the first and the last."""
    _device(device)
    d = dtype or dtypes.get_default_dtype()
    if layout not in (None, strided):
        raise ValueError(f"{name} is implemented for strided tensors only, got: {layout}")
    if d not in (dtypes.float32, dtypes.float64):
        raise ValueError(f"{name} expects float32 or float64 dtypes, got: {d!r}")
    if M < 0:
        raise ValueError(f"{name} requires non-negative window length, got M={M}")
    if M <= 1:
        w = PUBLIC["ones"]((M,), dtype=d)
    else:
        k = PUBLIC["arange"](M, dtype=dtypes.float64)
        w = to_dtype(f(k, M - 1 if sym else M), d)
    return w.requires_grad_() if requires_grad else w  # type: ignore[attr-defined]


def _cosines(k: Tensor, n: int, a: Iterable[float]) -> Tensor:
    """a0 - a1 cos(t) + a2 cos(2 t) - ... with t once around."""
    total: Any = 0.0
    for i, c in enumerate(a):
        total = total + PUBLIC["cos"](k * (2 * math.pi * i / n)) * (c if i % 2 == 0 else -c)
    return total


def general_cosine(M: int, *, a: Iterable[float], sym: bool = True, dtype: DType | None = None, layout: Any = None,
                   device: Any = None, requires_grad: bool = False) -> Tensor:  # fmt: skip
    """The sum of cosines with the coefficients `a`, signs alternating."""
    if not isinstance(a, Iterable):
        raise TypeError("Coefficients must be a list/tuple")
    coefficients = list(a)
    if not coefficients:
        raise ValueError("Coefficients cannot be empty")
    return _window("general_cosine", M, sym, dtype, layout, device, requires_grad, lambda k, n: _cosines(k, n, coefficients))


def general_hamming(M: int, *, alpha: float = 0.54, sym: bool = True, dtype: DType | None = None, layout: Any = None,
                    device: Any = None, requires_grad: bool = False) -> Tensor:  # fmt: skip
    """alpha - (1 - alpha) cos(t)."""
    return general_cosine(
        M, a=[alpha, 1.0 - alpha], sym=sym, dtype=dtype, layout=layout, device=device, requires_grad=requires_grad
    )


def _sum_of_cosines(name: str, a: list[float], text: str) -> Callable[..., Tensor]:
    def function(M: int, *, sym: bool = True, dtype: DType | None = None, layout: Any = None, device: Any = None,
                 requires_grad: bool = False) -> Tensor:  # fmt: skip
        return _window(name, M, sym, dtype, layout, device, requires_grad, lambda k, n: _cosines(k, n, a))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    return function


hann = _sum_of_cosines("hann", [0.5, 0.5], "Half of 1 - cos(t): von Hann's window.")
blackman = _sum_of_cosines("blackman", [0.42, 0.5, 0.08], "Blackman's window, three terms.")
nuttall = _sum_of_cosines("nuttall", [0.3635819, 0.4891775, 0.1365995, 0.0106411], "Nuttall's window, four terms.")


def hamming(M: int, *, sym: bool = True, dtype: DType | None = None, layout: Any = None, device: Any = None,
            requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Hamming's window: general_hamming with 0.54."""
    return general_hamming(M, sym=sym, dtype=dtype, layout=layout, device=device, requires_grad=requires_grad)


def bartlett(M: int, *, sym: bool = True, dtype: DType | None = None, layout: Any = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:  # fmt: skip
    """A triangle that begins and ends at 0."""
    return _window(
        "bartlett", M, sym, dtype, layout, device, requires_grad, lambda k, n: 1.0 - PUBLIC["abs"](k * (2.0 / n) - 1.0)
    )


def cosine(M: int, *, sym: bool = True, dtype: DType | None = None, layout: Any = None, device: Any = None,
           requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Half a wave of a sine."""
    return _window(
        "cosine", M, sym, dtype, layout, device, requires_grad, lambda k, n: PUBLIC["sin"]((k + 0.5) * (math.pi / (n + 1)))
    )


def exponential(M: int, *, center: float | None = None, tau: float = 1.0, sym: bool = True, dtype: DType | None = None,
                layout: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:  # fmt: skip
    """exp(-|k - center| / tau)."""
    if tau <= 0:
        raise ValueError(f"Tau must be positive, got: {tau} instead.")
    if sym and center is not None:
        raise ValueError("Center must be None for symmetric windows")
    return _window(
        "exponential", M, sym, dtype, layout, device, requires_grad,
        lambda k, n: PUBLIC["exp"](PUBLIC["abs"](k - (n / 2 if center is None else center)) * (-1.0 / tau)),
    )  # fmt: skip


def gaussian(M: int, *, std: float = 1.0, sym: bool = True, dtype: DType | None = None, layout: Any = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:  # fmt: skip
    """exp(-(k - centre)**2 / (2 std**2))."""
    if std <= 0:
        raise ValueError(f"Standard deviation must be positive, got: {std} instead.")
    return _window(
        "gaussian", M, sym, dtype, layout, device, requires_grad, lambda k, n: PUBLIC["exp"](((k - n / 2) / std) ** 2 * -0.5)
    )


def kaiser(M: int, *, beta: float = 12.0, sym: bool = True, dtype: DType | None = None, layout: Any = None, device: Any = None,
           requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Kaiser's window, I0(beta sqrt(1 - x**2)) / I0(beta)."""
    if beta < 0:
        raise ValueError(f"beta must be non-negative, got: {beta} instead.")

    def shape(k: Tensor, n: int) -> Tensor:
        x = k * (2.0 / n) - 1.0
        top = PUBLIC["i0"](PUBLIC["sqrt"](PUBLIC["clamp"](1.0 - x * x, min=0.0)) * beta)
        return top / PUBLIC["i0"](PUBLIC["tensor"](float(beta), dtype=dtypes.float64))

    return _window("kaiser", M, sym, dtype, layout, device, requires_grad, shape)


def _legacy(name: str, f: Callable[..., Tensor], *places: str) -> None:
    """The function of flame's own namespace: name(window_length, periodic=True, ...)."""

    def function(window_length: int, periodic: bool = True, *args: Any, dtype: DType | None = None, layout: Any = None,
                 device: Any = None, pin_memory: bool = False, requires_grad: bool = False, **kwargs: Any) -> Tensor:  # fmt: skip
        kwargs |= dict(zip(places, args, strict=False))
        return f(
            window_length, sym=not periodic, dtype=dtype, layout=layout, device=device, requires_grad=requires_grad, **kwargs
        )

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{(f.__doc__ or '').strip()} Periodic by default."
    PUBLIC[name] = function


_legacy("hann_window", hann)
_legacy("hamming_window", general_hamming, "alpha")
_legacy("blackman_window", blackman)
_legacy("bartlett_window", bartlett)
_legacy("kaiser_window", kaiser, "beta")

__all__ = [
    "bartlett", "blackman", "cosine", "exponential", "gaussian", "general_cosine", "general_hamming", "hamming", "hann",
    "kaiser", "nuttall",
]  # fmt: skip
