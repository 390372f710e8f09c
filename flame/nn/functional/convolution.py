"""Convolution, pooling, padding, resampling: channels first, batches optional where PyTorch allows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.functions.parts import PAD, WINDOW, constant_pad
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.shape import PERMUTE, RESHAPE
from flame.primitive import composite, registered
from flame.tensor import Tensor

CONV, CONV_INPUT_GRAD = registered("conv"), registered("conv_input_grad")
SUM, ARGMAX, GATHER = map(registered, ("sum", "argmax", "gather"))


def tuples(x: Any, n: int, op: str, what: str) -> tuple[int, ...]:
    """An int or a sequence of n ints, as n ints."""
    if isinstance(x, int):
        return (x,) * n
    x = tuple(int(v) for v in x)
    if len(x) == 1:
        return x * n
    if len(x) != n:
        raise RuntimeError(f"{op}: expected {what} to be a single integer value or a list of {n} values, but got {list(x)}")
    return x


def _padding(padding: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], op: str) -> tuple:
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(kernel)
        if padding != "same":
            raise ValueError(f"Invalid padding string {padding!r}, should be one of 'valid', 'same'")
        if any(s != 1 for s in stride):
            raise ValueError("padding='same' is not supported for strided convolutions")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in tuples(padding, len(kernel), op, "padding"))


def _conv(n: int) -> Any:
    name = f"conv{n}d"

    @composite
    def conv(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:  # fmt: skip
        x, w = tensor_operand(input, name), tensor_operand(weight, name, "weight")
        if w.ndim != n + 2:
            raise RuntimeError(f"{name}: expected a {n + 2}D weight, but got weight of size {list(w.shape)}")
        single = x.ndim == n + 1
        if single:
            x = x.unsqueeze(0)  # type: ignore[attr-defined]
        if x.ndim != n + 2:
            raise RuntimeError(
                f"Expected {n + 1}D (unbatched) or {n + 2}D (batched) input to {name}, but got input of size: {list(input.shape)}"
            )
        s, d = tuples(stride, n, name, "stride"), tuples(dilation, n, name, "dilation")
        y = CONV(x, w, stride=s, padding=_padding(padding, tuple(w.shape[2:]), s, d, name), dilation=d, groups=int(groups))
        if bias is not None:
            y = y + bias.reshape(-1, *[1] * n)  # type: ignore[attr-defined]
        return y.squeeze(0) if single else y  # type: ignore[attr-defined]

    conv.__name__ = conv.__qualname__ = name
    conv.__doc__ = (
        f"{n}-d cross-correlation: input [N, C, ...], weight [O, C / groups, ...]; padding an int, ints, 'same', 'valid'."
    )
    return conv


conv1d, conv2d, conv3d = _conv(1), _conv(2), _conv(3)


def _conv_transpose(n: int) -> Any:
    name = f"conv_transpose{n}d"

    @composite
    def conv_transpose(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
        groups: int = 1, dilation: Any = 1,
    ) -> Tensor:  # fmt: skip
        x = tensor_operand(input, name)
        single = x.ndim == n + 1
        if single:
            x = x.unsqueeze(0)  # type: ignore[attr-defined]
        if x.ndim != n + 2 or weight.ndim != n + 2 or x.shape[1] != weight.shape[0]:
            raise RuntimeError(
                f"{name}: input {list(input.shape)} does not fit weight {list(weight.shape)} (in, out / groups, ...)"
            )
        s, d = tuples(stride, n, name, "stride"), tuples(dilation, n, name, "dilation")
        p, extra = tuples(padding, n, name, "padding"), tuples(output_padding, n, name, "output_padding")
        k = tuple(weight.shape[2:])
        for e, si, di in zip(extra, s, d, strict=True):
            if e >= max(si, di):
                raise RuntimeError("output padding must be smaller than either stride or dilation")
        size = tuple(
            (m - 1) * si - 2 * pi + di * (ki - 1) + e + 1
            for m, si, pi, di, ki, e in zip(x.shape[2:], s, p, d, k, extra, strict=True)
        )
        y = CONV_INPUT_GRAD(
            x, weight, input_shape=(x.shape[0], weight.shape[1] * groups, *size), stride=s, padding=tuple((v, v) for v in p),
            dilation=d, groups=int(groups),
        )  # fmt: skip
        if bias is not None:
            y = y + bias.reshape(-1, *[1] * n)  # type: ignore[attr-defined]
        return y.squeeze(0) if single else y  # type: ignore[attr-defined]

    conv_transpose.__name__ = conv_transpose.__qualname__ = name
    return conv_transpose


conv_transpose1d, conv_transpose2d, conv_transpose3d = _conv_transpose(1), _conv_transpose(2), _conv_transpose(3)


# -------------------------------------------------------------------- pooling


def _windows(
    x: Tensor, n: int, kernel: tuple, stride: tuple, padding: tuple, dilation: tuple, ceil_mode: bool, fill: Any, op: str
):  # type: ignore[no-untyped-def]
    """[N, C, out..., kernel...], the input padded with `fill`."""
    lo, hi = [0, 0], [0, 0]
    for i in range(n):
        size, k, s, p, d = x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]
        span = d * (k - 1) + 1
        room = size + 2 * p - span
        if room < 0:
            raise RuntimeError(
                f"{op}: the kernel (size {k}, dilation {d}) is larger than the padded input (size {size + 2 * p})"
            )
        out = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (out - 1) * s >= size + p:
            out -= 1
        lo.append(p)
        hi.append(max(p, (out - 1) * s + span - size - p))
    if any(lo) or any(hi):
        x = PAD(x, lo=tuple(lo), hi=tuple(hi), value=fill)
    for i in range(n):
        x = WINDOW(x, dim=2 + i, size=kernel[i], step=stride[i], dilation=dilation[i])
    return x


def _batched(input: Tensor, n: int, op: str) -> tuple[Tensor, bool]:
    x = tensor_operand(input, op)
    if x.ndim not in (n + 1, n + 2):
        raise RuntimeError(f"{op}: Expected {n + 1}D or {n + 2}D (batch mode) tensor, but got input of size {list(x.shape)}")
    return (x.unsqueeze(0), True) if x.ndim == n + 1 else (x, False)  # type: ignore[attr-defined]


def _max_pool(n: int) -> Any:
    name = f"max_pool{n}d"

    @composite
    def max_pool(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:  # fmt: skip
        x, single = _batched(input, n, name)
        k = tuples(kernel_size, n, name, "kernel_size")
        s = k if stride is None or stride == [] else tuples(stride, n, name, "stride")
        p, d = tuples(padding, n, name, "padding"), tuples(dilation, n, name, "dilation")
        for pi, ki in zip(p, k, strict=True):
            if pi > ki // 2:
                raise RuntimeError(f"pad should be at most half of effective kernel size, but got pad={pi}, kernel_size={ki}")
        if x.dtype.kind == "f":
            fill: Any = float("-inf")
        else:
            fill = 0 if x.dtype.kind == "u" else -(1 << (8 * x.dtype.itemsize - 1))
        w = _windows(x, n, k, s, p, d, ceil_mode, fill, name)
        out, m = tuple(w.shape[: n + 2]), math.prod(k)
        flat = RESHAPE(w, shape=(*out, m))
        # the first maximum of each window takes the whole gradient, as PyTorch's does
        at = ARGMAX(flat.detach(), dim=(n + 2,), keepdim=True)
        y = RESHAPE(GATHER(flat, at, dim=n + 2), shape=out)
        if return_indices:
            index = _flat_positions(RESHAPE(at, shape=out), n, k, s, p, d, tuple(x.shape[2:]))
            return (y.squeeze(0), index.squeeze(0)) if single else (y, index)  # type: ignore[attr-defined]
        return y.squeeze(0) if single else y  # type: ignore[attr-defined]

    max_pool.__name__ = max_pool.__qualname__ = name
    return max_pool


def _flat_positions(at: Tensor, n: int, k: tuple, s: tuple, p: tuple, d: tuple, size: tuple) -> Tensor:
    """Places inside windows as places in the flattened plane."""
    total: Any = None
    for i in range(n):
        inside = at // math.prod(k[i + 1 :]) % k[i]
        start = registered("iota")(size=at.shape[2 + i], dtype=dtypes.int64).reshape(-1, *[1] * (n - 1 - i)) * s[i] - p[i]
        here = inside * d[i] + start
        total = here if total is None else total * size[i] + here
    return total


max_pool1d, max_pool2d, max_pool3d = _max_pool(1), _max_pool(2), _max_pool(3)


def _avg_pool(n: int) -> Any:
    name = f"avg_pool{n}d"

    @composite
    def avg_pool(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        x, single = _batched(input, n, name)
        k = tuples(kernel_size, n, name, "kernel_size")
        s = k if stride is None or stride == [] else tuples(stride, n, name, "stride")
        p, one = tuples(padding, n, name, "padding"), (1,) * n
        dims = tuple(range(n + 2, 2 * n + 2))
        y = SUM(_windows(x, n, k, s, p, one, ceil_mode, 0, name), dim=dims, keepdim=False)
        if divisor_override is not None:
            if divisor_override == 0:
                raise RuntimeError("divisor must be not zero")
            y = y / float(divisor_override)
        elif (count_include_pad or not any(p)) and not ceil_mode:
            y = y / float(math.prod(k))
        else:
            ones = PUBLIC["ones"]((1, 1, *x.shape[2:]), dtype=x.dtype)
            if count_include_pad:
                ones = PAD(ones, lo=(0, 0, *p), hi=(0, 0, *p), value=1)
                p = (0,) * n
            y = y / SUM(_windows(ones, n, k, s, p, one, ceil_mode, 0, name), dim=dims, keepdim=False)
        return y.squeeze(0) if single else y  # type: ignore[attr-defined]

    avg_pool.__name__ = avg_pool.__qualname__ = name
    return avg_pool


avg_pool1d, avg_pool2d, avg_pool3d = _avg_pool(1), _avg_pool(2), _avg_pool(3)


def _adaptive(n: int, mode: str) -> Any:
    name = f"adaptive_{mode}_pool{n}d"

    @composite
    def adaptive(input: Tensor, output_size: Any) -> Tensor:
        x, single = _batched(input, n, name)
        want = output_size if isinstance(output_size, Sequence) else (output_size,) * n
        want = tuple(x.shape[2 + i] if v is None else int(v) for i, v in enumerate(want))
        for i, m in enumerate(want):
            size, d = x.shape[2 + i], 2 + i
            if size % m == 0 if m else False:
                s = tuple(x.shape)
                y = RESHAPE(x, shape=(*s[:d], m, size // m, *s[d + 1 :]))
                x = y.mean(d + 1) if mode == "avg" else y.amax(d + 1)  # type: ignore[attr-defined]
            else:
                parts = []
                for j in range(m):
                    a, b = j * size // m, -(-(j + 1) * size // m)
                    part = x.narrow(d, a, b - a)  # type: ignore[attr-defined]
                    parts.append(part.mean(d, True) if mode == "avg" else part.amax(d, True))
                x = PUBLIC["cat"](parts, d)
        return x.squeeze(0) if single else x  # type: ignore[attr-defined]

    adaptive.__name__ = adaptive.__qualname__ = name
    return adaptive


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (_adaptive(n, "avg") for n in (1, 2, 3))
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (_adaptive(n, "max") for n in (1, 2, 3))


# -------------------------------------------------------------------- padding and resampling


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Padding by pairs, for the last dimension first; mode constant, reflect, replicate or circular."""
    if mode == "constant":
        v = 0 if value is None else value
        return constant_pad(input, pad, v if input.dtype.kind == "f" else int(v))
    if value is not None and value != 0:
        raise ValueError(f'Padding mode "{mode}" doesn\'t take in value argument')
    x = input
    for i in range(len(pad) // 2):
        lo, hi, d = int(pad[2 * i]), int(pad[2 * i + 1]), x.ndim - 1 - i
        n = x.shape[d]
        match mode:
            case "reflect":
                if max(lo, hi) >= n:
                    raise RuntimeError(
                        f"Padding size should be less than the corresponding input dimension, but got: padding ({lo}, {hi}) at "
                        f"dimension {d} of input {list(x.shape)}"
                    )
                index = [abs(j) if j < n else 2 * (n - 1) - j for j in range(-lo, n + hi)]
            case "replicate":
                index = [min(max(j, 0), n - 1) for j in range(-lo, n + hi)]
            case "circular":
                if max(lo, hi) > n:
                    raise RuntimeError("Padding value causes wrapping around more than once.")
                index = [j % n for j in range(-lo, n + hi)]
            case _:
                raise RuntimeError(f"Unrecognised padding mode {mode}")
        x = PUBLIC["index_select"](x, d, PUBLIC["tensor"](index))
    return x


@composite
def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    r = upscale_factor
    *lead, c, h, w = input.shape
    if c % (r * r):
        raise RuntimeError(
            f"pixel_shuffle expects its input's 'channel' dimension to be divisible by the square of upscale_factor, but {c} is "
            f"divisible by {r * r}"
        )
    n = len(lead)
    x = RESHAPE(input, shape=(*lead, c // (r * r), r, r, h, w))
    x = PERMUTE(x, dims=(*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return RESHAPE(x, shape=(*lead, c // (r * r), h * r, w * r))


@composite
def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    r = downscale_factor
    *lead, c, h, w = input.shape
    n = len(lead)
    x = RESHAPE(input, shape=(*lead, c, h // r, r, w // r, r))
    x = PERMUTE(x, dims=(*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return RESHAPE(x, shape=(*lead, c * r * r, h // r, w // r))


@composite
def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """[N, C, ...] with the channels of `groups` interleaved."""
    n, c, *rest = input.shape
    if c % groups:
        raise RuntimeError(f"Number of channels must be divisible by groups. Got {c} channels and {groups} groups.")
    x = RESHAPE(input, shape=(n, groups, c // groups, *rest))
    return RESHAPE(PERMUTE(x, dims=(0, 2, 1, *range(3, x.ndim))), shape=tuple(input.shape))


@composite
def interpolate(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Tensor:  # fmt: skip
    """Resampling of the spatial dimensions: mode nearest, or linear, bilinear, trilinear."""
    n = input.ndim - 2
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}.get(n)
    if mode not in ("nearest", linear):
        raise NotImplementedError(f"interpolate: mode {mode!r} on {n} spatial dimensions is not supported: nearest or {linear}")
    if antialias:
        raise NotImplementedError("interpolate: antialias=True is not supported")
    if (size is None) == (scale_factor is None):
        raise ValueError("one of size and scale_factor should be defined, and not both")
    old = tuple(input.shape[2:])
    if size is not None:
        new = tuples(size, n, "interpolate", "size")
        scales = [a / b for a, b in zip(old, new, strict=True)]
    else:
        f = [float(scale_factor)] * n if not isinstance(scale_factor, Sequence) else [float(v) for v in scale_factor]
        new = tuple(math.floor(a * v) for a, v in zip(old, f, strict=True))
        scales = [1.0 / v for v in f]
    x = input
    for i in range(n):
        d, a, b = 2 + i, old[i], new[i]
        if mode == "nearest":
            x = PUBLIC["index_select"](x, d, PUBLIC["tensor"]([min(int(j * scales[i]), a - 1) for j in range(b)]))
            continue
        if align_corners:
            at = [j * (a - 1) / (b - 1) if b > 1 else 0.0 for j in range(b)]
        else:
            at = [max((j + 0.5) * scales[i] - 0.5, 0.0) for j in range(b)]
        low = [min(int(v), a - 1) for v in at]
        weight = PUBLIC["tensor"]([v - k for v, k in zip(at, low, strict=True)], dtype=x.dtype).reshape(-1, *[1] * (n - 1 - i))
        left = PUBLIC["index_select"](x, d, PUBLIC["tensor"](low))
        right = PUBLIC["index_select"](x, d, PUBLIC["tensor"]([min(k + 1, a - 1) for k in low]))
        x = left * (1 - weight) + right * weight
    return to_dtype(x, input.dtype)


def upsample(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None
) -> Tensor:
    return interpolate(input, size, scale_factor, mode, align_corners)
