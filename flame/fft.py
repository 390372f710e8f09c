"""flame.fft: discrete Fourier transforms under torch.fft's names, through NumPy's pocketfft.

`norm` is "backward" (the inverse is scaled by 1 / n; the default), "ortho" (both by 1 / sqrt(n)) or "forward" (the forward one).
Real and integer inputs become complex in the precision of their dtype. Sizes `n` and `s` cut, or fill with zeros. Transforms are
eager: compiled code runs them between its kernels (FL1017 in docs/graph-breaks.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flame import dtypes
from flame.dtypes import dtype as DType
from flame.functions import PUBLIC
from flame.functions.creation import _device
from flame.functions.forms import with_out
from flame.functions.parts import constant_pad, flip, roll
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.shape import take_slice, wrap_dim
from flame.functions.taking import typed
from flame.precision import precise
from flame.primitive import registered
from flame.tensor import Tensor

FFT, RFFT, IRFFT, COPY = map(registered, ("fft_complex", "rfft_complex", "irfft_complex", "copy"))

_NORMS = ("backward", "ortho", "forward")


def _scaled(y: Tensor, norm: str | None, count: int, inverse: bool, op: str) -> Tensor:
    norm = norm or "backward"
    if norm not in _NORMS:
        raise RuntimeError(f'Invalid normalization mode: "{norm}" (in {op}; expected one of {", ".join(_NORMS)})')
    if norm == "ortho":
        return y * (1.0 / math.sqrt(count))
    return y * (1.0 / count) if (norm == "backward") == inverse else y


def _promoted(x: Any, op: str, to_complex: bool) -> Tensor:
    t = tensor_operand(x, op)
    d = t.dtype
    if d.is_narrow_float:
        raise RuntimeError(f"Unsupported dtype {d!r} (in {op}): cast to float32")
    if d.kind not in "fc":
        d = dtypes.get_default_dtype()
    if not to_complex and d.kind == "c":
        raise RuntimeError(f"{op} expects a real input tensor, but got {d!r}")
    return to_dtype(t, d.to_complex() if to_complex else d)


def _fitted(x: Tensor, dim: int, n: int | None, op: str) -> Tensor:
    """Cut, or filled with zeros, to n elements along dim."""
    have = x.shape[dim]
    n = have if n is None else n
    if n < 1:
        raise RuntimeError(f"Invalid number of data points ({n}) specified (in {op})")
    if n < have:
        return take_slice(x, dim, 0, n)
    return constant_pad(x, (0, 0) * (x.ndim - dim - 1) + (0, n - have)) if n > have else x


def _dims(x: Tensor, s: Any, dim: Any, op: str) -> tuple[tuple[int, ...], list[int | None]]:
    """The dimensions of a transform of several, and their sizes (None: as they are)."""
    if dim is None:
        count = x.ndim if s is None else len(s)
        if count > x.ndim:
            raise RuntimeError(f"Got shape with {count} values but input tensor only has {x.ndim} dimensions.")
        dims = tuple(range(x.ndim - count, x.ndim))
    else:
        dims = tuple(wrap_dim(d, x.ndim, op) for d in (dim if isinstance(dim, Sequence) else (dim,)))
        if len(set(dims)) != len(dims):
            raise RuntimeError("FFT dims must be unique")
    if s is not None and len(s) != len(dims):
        raise RuntimeError("When given, dim and shape arguments must have the same length")
    sizes: list[int | None] = [None] * len(dims) if s is None else [None if n == -1 else n for n in s]
    return dims, sizes


def _one_dim(x: Tensor, dim: Any, op: str) -> int:
    if x.ndim == 0:
        raise IndexError(f"Dimension specified as {dim} but tensor has no dimensions")
    return wrap_dim(dim, x.ndim, op)


def _many(x: Tensor, dims: tuple[int, ...], sizes: list, norm: str | None, inverse: bool, op: str) -> Tensor:
    for d, n in zip(dims, sizes, strict=True):
        x = _fitted(x, d, n, op)
    count = math.prod(x.shape[d] for d in dims)
    return _scaled(FFT(x, dims=dims, inverse=inverse), norm, count, inverse, op)


def _complex_to_complex(name: str, inverse: bool) -> None:
    def one(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
        x = _promoted(input, name, True)
        d = _one_dim(x, dim, name)
        return _many(x, (d,), [n], norm, inverse, name)

    def several(input: Tensor, s: Any = None, dim: Any = None, norm: str | None = None) -> Tensor:
        x = _promoted(input, name + "n", True)
        dims, sizes = _dims(x, s, dim, name + "n")
        return _many(x, dims, sizes, norm, inverse, name + "n") if dims else COPY(x)

    _enter(name, one, several, "inverse " * inverse + "discrete Fourier transform")


def _enter(name: str, one: Any, several: Any, what: str) -> None:
    def two(input: Tensor, s: Any = None, dim: Any = (-2, -1), norm: str | None = None) -> Tensor:
        return several(input, s, dim, norm)

    for f, n, where in (
        (one, name, "one dimension"),
        (two, name + "2", "two dimensions"),
        (several, name + "n", "several dimensions"),
    ):
        f.__name__ = f.__qualname__ = n
        f.__doc__ = f"The {what} along {where}."
        globals()[n] = with_out(f, n)


_complex_to_complex("fft", False)
_complex_to_complex("ifft", True)


def _real_forward(x: Tensor, dims: tuple[int, ...], sizes: list, norm: str | None, op: str) -> Tensor:
    if not dims:
        raise RuntimeError(f"{op} must transform at least one axis")
    for d, n in zip(dims, sizes, strict=True):
        x = _fitted(x, d, n, op)
    count = math.prod(x.shape[d] for d in dims)
    y = RFFT(x, dim=dims[-1])
    y = FFT(y, dims=dims[:-1], inverse=False) if len(dims) > 1 else y
    return _scaled(y, norm, count, False, op)


def _real_inverse(x: Tensor, dims: tuple[int, ...], sizes: list, norm: str | None, op: str) -> Tensor:
    if not dims:
        raise RuntimeError(f"{op} must transform at least one axis")
    last = dims[-1]
    n = 2 * (x.shape[last] - 1) if sizes[-1] is None else sizes[-1]
    if n < 1:
        raise RuntimeError(f"Invalid number of data points ({n}) specified (in {op})")
    for d, k in zip(dims[:-1], sizes[:-1], strict=True):
        x = _fitted(x, d, k, op)
    x = _fitted(x, last, n // 2 + 1, op)
    count = math.prod(x.shape[d] for d in dims[:-1]) * n
    x = FFT(x, dims=dims[:-1], inverse=True) if len(dims) > 1 else x
    return _scaled(IRFFT(x, dim=last, n=n), norm, count, True, op)


def _real_transforms() -> None:
    def rfft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
        x = _promoted(input, "rfft", False)
        return _real_forward(x, (_one_dim(x, dim, "rfft"),), [n], norm, "rfft")

    def rfftn(input: Tensor, s: Any = None, dim: Any = None, norm: str | None = None) -> Tensor:
        x = _promoted(input, "rfftn", False)
        return _real_forward(x, *_dims(x, s, dim, "rfftn"), norm, "rfftn")

    def irfft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
        x = _promoted(input, "irfft", True)
        return _real_inverse(x, (_one_dim(x, dim, "irfft"),), [n], norm, "irfft")

    def irfftn(input: Tensor, s: Any = None, dim: Any = None, norm: str | None = None) -> Tensor:
        x = _promoted(input, "irfftn", True)
        return _real_inverse(x, *_dims(x, s, dim, "irfftn"), norm, "irfftn")

    _enter("rfft", rfft, rfftn, "first half of the Fourier transform of real numbers")
    _enter("irfft", irfft, irfftn, "inverse of rfft, which gives real numbers")


_real_transforms()


def _hermitian_transforms() -> None:
    """hfft is irfft of the conjugate without its scale, ihfft the conjugate of rfft with it."""
    other = {"backward": "forward", "forward": "backward", "ortho": "ortho"}

    def turned(norm: str | None, op: str) -> str:
        norm = norm or "backward"
        if norm not in _NORMS:
            raise RuntimeError(f'Invalid normalization mode: "{norm}" (in {op})')
        return other[norm]

    def hfft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
        x = PUBLIC["conj"](_promoted(input, "hfft", True))
        return _real_inverse(x, (_one_dim(x, dim, "hfft"),), [n], turned(norm, "hfft"), "hfft")

    def hfftn(input: Tensor, s: Any = None, dim: Any = None, norm: str | None = None) -> Tensor:
        x = PUBLIC["conj"](_promoted(input, "hfftn", True))
        return _real_inverse(x, *_dims(x, s, dim, "hfftn"), turned(norm, "hfftn"), "hfftn")

    def ihfft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
        x = _promoted(input, "ihfft", False)
        return PUBLIC["conj"](_real_forward(x, (_one_dim(x, dim, "ihfft"),), [n], turned(norm, "ihfft"), "ihfft"))

    def ihfftn(input: Tensor, s: Any = None, dim: Any = None, norm: str | None = None) -> Tensor:
        x = _promoted(input, "ihfftn", False)
        return PUBLIC["conj"](_real_forward(x, *_dims(x, s, dim, "ihfftn"), turned(norm, "ihfftn"), "ihfftn"))

    _enter("hfft", hfft, hfftn, "Fourier transform of half a signal that is its own mirrored conjugate")
    _enter("ihfft", ihfft, ihfftn, "inverse of hfft")


_hermitian_transforms()


def _frequencies(n: int, d: float, dtype: DType | None, device: Any, requires_grad: bool, half: bool) -> Tensor:
    _device(device)
    if n < 1:
        raise RuntimeError(f"Invalid number of data points ({n}) specified")
    k = PUBLIC["arange"](n // 2 + 1 if half else n, dtype=dtypes.float64)
    if not half:
        k = PUBLIC["where"](k < (n + 1) // 2, k, k - float(n))
    y = to_dtype(k * (1.0 / (n * d)), dtype or dtypes.get_default_dtype())
    return y.requires_grad_() if requires_grad else y  # type: ignore[attr-defined]


@with_out
def fftfreq(
    n: int, d: float = 1.0, *, dtype: DType | None = None, layout: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """The frequencies of an n-point transform at a sample spacing of d: 0, positive ones, negative ones."""
    return _frequencies(n, d, dtype, device, requires_grad, False)


@with_out
def rfftfreq(
    n: int, d: float = 1.0, *, dtype: DType | None = None, layout: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """The frequencies of an n-point transform of real numbers."""
    return _frequencies(n, d, dtype, device, requires_grad, True)


def _shifted(input: Tensor, dim: Any, back: bool) -> Tensor:
    x = tensor_operand(input, "fftshift")
    dims = list(range(x.ndim)) if dim is None else [wrap_dim(d, x.ndim) for d in (dim if isinstance(dim, Sequence) else [dim])]
    return roll(x, [(x.shape[d] + 1) // 2 if back else x.shape[d] // 2 for d in dims], dims) if dims else COPY(x)


def fftshift(input: Tensor, dim: Any = None) -> Tensor:
    """The zero frequency moved to the middle."""
    return _shifted(input, dim, False)


def ifftshift(input: Tensor, dim: Any = None) -> Tensor:
    """The reverse of fftshift."""
    return _shifted(input, dim, True)


# -------------------------------------------------------------------- short-time transforms, in flame's own namespace


@precise
@typed
def stft(
    input: Tensor, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: Tensor | None = None,
    center: bool = True, pad_mode: str = "reflect", normalized: bool = False, onesided: bool | None = None,
    return_complex: bool | None = None, align_to_window: bool | None = None,
) -> Tensor:  # fmt: skip
    """The Fourier transforms of windows of a signal [.., time]: [.., frequencies, frames], or parts last without
    return_complex."""
    x = tensor_operand(input, "stft")
    if x.ndim not in (1, 2) or x.dtype.kind not in "fc":
        raise RuntimeError(f"stft: expected a 1D or 2D tensor of floating values, but got {list(x.shape)} {x.dtype!r}")
    if return_complex is None and x.dtype.kind != "c":
        raise RuntimeError("stft requires the return_complex parameter be given for real inputs, and will further require that "
                           "return_complex=True in a future PyTorch release.")  # fmt: skip
    hop = n_fft // 4 if hop_length is None else hop_length
    width = n_fft if win_length is None else win_length
    single = x.ndim == 1
    x = x.unsqueeze(0) if single else x  # type: ignore[attr-defined]
    if center:
        p = n_fft // 2
        if pad_mode == "constant":
            x = constant_pad(x, (p, p))
        elif pad_mode == "reflect":
            n = x.shape[1]
            if p >= n:
                raise RuntimeError(f"stft: padding of {p} is not smaller than the signal of {n}, as pad_mode='reflect' asks")
            x = PUBLIC["cat"]([flip(take_slice(x, 1, 1, p + 1), 1), x, flip(take_slice(x, 1, n - p - 1, n - 1), 1)], 1)
        else:
            raise RuntimeError(
                f"stft: pad_mode {pad_mode!r} is not supported: use 'reflect' or 'constant', or pad the signal yourself"
            )
    if not 0 < n_fft <= x.shape[1]:
        raise RuntimeError(f"stft: expected 0 < n_fft <= {x.shape[1]}, but got n_fft={n_fft}")
    if hop <= 0:
        raise RuntimeError(f"stft: expected hop_length > 0, but got hop_length={hop}")
    if not 0 < width <= n_fft:
        raise RuntimeError(f"stft: expected 0 < win_length <= n_fft, but got win_length={width}")
    w = _analysis_window(window, width, n_fft, x.dtype, "stft")
    frames = x.unfold(1, n_fft, hop)  # type: ignore[attr-defined]
    frames = frames * w if w is not None else COPY(frames)
    half = onesided if onesided is not None else not (x.dtype.kind == "c" or (w is not None and w.dtype.kind == "c"))
    y = RFFT(frames, dim=2) if half else FFT(to_dtype(frames, frames.dtype.to_complex()), dims=(2,), inverse=False)
    y = y * (1.0 / math.sqrt(n_fft)) if normalized else y
    y = PUBLIC["transpose"](y, 1, 2)
    y = y.squeeze(0) if single else y
    return y if return_complex or return_complex is None else PUBLIC["view_as_real"](y)


def _analysis_window(window: Any, width: int, n_fft: int, d: DType, op: str) -> Any:
    if window is None:
        if width == n_fft:
            return None
        window = PUBLIC["ones"](width, dtype=d.to_real())
    if window.ndim != 1 or window.shape[0] != width:
        raise RuntimeError(f"{op}: expected a 1D window tensor of size equal to win_length={width}, but got window with size "
                           f"{list(window.shape)}")  # fmt: skip
    left = (n_fft - width) // 2
    return constant_pad(window, (left, n_fft - width - left)) if width < n_fft else window


def istft(
    input: Tensor, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: Tensor | None = None,
    center: bool = True, normalized: bool = False, onesided: bool | None = None, length: int | None = None,
    return_complex: bool = False,
) -> Tensor:  # fmt: skip
    """The signal whose stft is nearest to `input` [.., frequencies, frames], complex (D. Griffin and J. Lim, 1984)."""
    x = tensor_operand(input, "istft")
    if x.dtype.kind != "c":
        raise RuntimeError(
            "istft requires a complex-valued input tensor matching the output from stft with return_complex=True."
        )
    if x.ndim not in (2, 3):
        error = IndexError if x.ndim < 2 else RuntimeError
        raise error(f"istft: expected a tensor with 2 or 3 dimensions, but got {x.ndim}")
    hop = n_fft // 4 if hop_length is None else hop_length
    width = n_fft if win_length is None else win_length
    half = (x.shape[-2] != n_fft) if onesided is None else onesided
    if x.shape[-2] != (n_fft // 2 + 1 if half else n_fft):
        raise RuntimeError(f"istft: expected the frequency dimension (3rd to the last) of the input tensor to match n_fft "
                           f"/ 2 + 1 when onesided=True or n_fft when onesided=False, but got {x.shape[-2]}")  # fmt: skip
    if not 0 < hop <= width or not 0 < width <= n_fft:
        raise RuntimeError(f"istft: expected 0 < hop_length <= win_length <= n_fft, but got {hop}, {width}, {n_fft}")
    single = x.ndim == 2
    x = PUBLIC["transpose"](x.unsqueeze(0) if single else x, 1, 2)  # type: ignore[attr-defined]
    real = x.dtype.to_real()
    w = _analysis_window(window, width, n_fft, real, "istft")
    w = PUBLIC["ones"](n_fft, dtype=real) if w is None else w
    scale = 1.0 / math.sqrt(n_fft) if normalized else 1.0 / n_fft
    if return_complex:
        frames = FFT(_whole(x, n_fft) if half else x, dims=(2,), inverse=True) * scale
    else:
        frames = IRFFT(x if half else take_slice(x, 2, 0, n_fft // 2 + 1), dim=2, n=n_fft) * scale
    count = frames.shape[1]
    total = n_fft + hop * (count - 1)
    add_up = lambda f: _overlapped(f, total, hop)
    y = add_up(frames * w)
    weight = add_up(PUBLIC["broadcast_to"](w * w, (1, count, n_fft)))
    start = n_fft // 2 if center else 0
    stop = start + length if length is not None else total - (n_fft // 2 if center else 0)
    y, weight = (take_slice(v, 1, start, min(stop, total)) for v in (y, weight))
    if bool((PUBLIC["abs"](weight) < 1e-11).any()):
        raise RuntimeError("window overlap add min: 1: the windows do not cover the signal everywhere")
    y = y / weight
    if stop > total:
        y = constant_pad(y, (0, stop - total))
    return y.squeeze(0) if single else y


def _whole(x: Tensor, n: int) -> Tensor:
    """All n coefficients along dimension 2, of which the first half is given."""
    rest = flip(take_slice(x, 2, 1, n - x.shape[2] + 1), 2)
    return PUBLIC["cat"]([x, PUBLIC["conj"](rest)], 2)


def _overlapped(frames: Tensor, total: int, hop: int) -> Tensor:
    """Frames [b, count, n] added up `hop` apart."""
    b, count, n = frames.shape
    at = PUBLIC["arange"](count).unsqueeze(1) * hop + PUBLIC["arange"](n)
    zero = PUBLIC["zeros"]((b, total), dtype=frames.dtype)
    return PUBLIC["index_add"](zero, 1, at.reshape(-1), frames.reshape(b, -1))


PUBLIC.update(stft=stft, istft=istft)
Tensor.stft, Tensor.istft = stft, istft  # type: ignore[attr-defined]
