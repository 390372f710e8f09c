"""Convolution, padding, shuffles of channels and windows taken apart: channels first, batches optional where PyTorch allows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.functions.parts import PAD, WINDOW, constant_pad
from flame.functions.promotion import tensor_operand
from flame.functions.shape import PERMUTE, RESHAPE
from flame.functions.taking import typed_as
from flame.precision import precise
from flame.primitive import composite, registered
from flame.tensor import Tensor

CONV, CONV_INPUT_GRAD, WINDOW_GRAD = map(registered, ("conv", "conv_input_grad", "window_grad"))


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
            raise RuntimeError(f"Invalid padding string {padding!r}, should be one of 'valid', 'same'")
        if any(s != 1 for s in stride):
            raise RuntimeError("padding='same' is not supported for strided convolutions")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in tuples(padding, len(kernel), op, "padding"))


def _with_bias(y: Tensor, bias: Tensor, op: str) -> Tensor:
    """A number added to each channel. Raises RuntimeError unless there are as many."""
    if tuple(bias.shape) != (y.shape[1],):
        raise RuntimeError(
            f"{op}: expected bias to be 1-dimensional with {y.shape[1]} elements, but got bias of size {list(bias.shape)} instead"
        )
    return y + bias.reshape(-1, *[1] * (y.ndim - 2))  # type: ignore[attr-defined]


def _conv(n: int) -> Any:
    name = f"conv{n}d"

    @composite
    @typed_as(name)
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
        if groups <= 0:
            raise RuntimeError(f"{name}: non-positive groups is not supported: got groups={groups}")
        if w.shape[0] < groups:
            raise RuntimeError(
                f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, but got weight of size "
                f"{list(w.shape)} instead"
            )
        if bias is not None and bias.dtype is not w.dtype:
            raise RuntimeError(f"{name}: Input type ({w.dtype!r}) and bias type ({bias.dtype!r}) should be the same")
        if isinstance(groups, float):
            raise TypeError(f"{name}(): argument 'groups' must be int, not float")
        s, d = tuples(stride, n, name, "stride"), tuples(dilation, n, name, "dilation")
        y = CONV(x, w, stride=s, padding=_padding(padding, tuple(w.shape[2:]), s, d, name), dilation=d, groups=int(groups))
        if bias is not None:
            y = _with_bias(y, bias, name)
        return y.squeeze(0) if single else y  # type: ignore[attr-defined]

    conv.__name__ = conv.__qualname__ = name
    conv.__doc__ = (
        f"{n}-d cross-correlation: input [N, C, ...], weight [O, C / groups, ...]; padding an int, ints, 'same', 'valid'."
    )
    return precise(conv, name)


conv1d, conv2d, conv3d = _conv(1), _conv(2), _conv(3)


def _with_wide_ends(f: Any, x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any, extra: Any, groups: int,
                    dilation: Any) -> Tensor:  # fmt: skip
    """A transposed convolution whose output padding reaches a whole stride: without padding, then cut, then filled up."""
    y = f(x, w, None, stride, 0, 0, groups, dilation)
    edges: list[int] = []
    for p, e in zip(reversed(padding), reversed(extra), strict=True):
        edges += [-p, e - p]
    y = constant_pad(y, edges)
    return y if bias is None else _with_bias(y, bias, f.__name__)


def _conv_transpose(n: int) -> Any:
    name = f"conv_transpose{n}d"

    @composite
    @typed_as(name)
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
        for e, si in zip(extra, s, strict=True):
            if e >= si:
                return _with_wide_ends(conv_transpose, input, weight, bias, s, p, extra, int(groups), d)
        size = tuple(
            (m - 1) * si - 2 * pi + di * (ki - 1) + e + 1
            for m, si, pi, di, ki, e in zip(x.shape[2:], s, p, d, k, extra, strict=True)
        )
        if any(v < 1 for v in size):
            raise RuntimeError(
                f"{name}: input {list(x.shape)} gives an output of size {list(size)}: its spatial dimensions are too small"
            )
        y = CONV_INPUT_GRAD(
            x, weight, input_shape=(x.shape[0], weight.shape[1] * groups, *size), stride=s, padding=tuple((v, v) for v in p),
            dilation=d, groups=int(groups),
        )  # fmt: skip
        if bias is not None:
            y = _with_bias(y, bias, name)
        return y.squeeze(0) if single else y  # type: ignore[attr-defined]

    conv_transpose.__name__ = conv_transpose.__qualname__ = name
    return precise(conv_transpose, name)


conv_transpose1d, conv_transpose2d, conv_transpose3d = _conv_transpose(1), _conv_transpose(2), _conv_transpose(3)


# -------------------------------------------------------------------- padding and shuffling


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Padding by pairs, for the last dimension first; mode constant, reflect, replicate or circular."""
    if isinstance(pad, str):
        raise TypeError("pad(): argument 'pad' must be a tuple of ints, not str")
    if mode == "constant":
        v = 0 if value is None else value
        return constant_pad(input, pad, v if input.dtype.kind == "f" else int(v))
    if value is not None and value != 0:
        raise ValueError(f'Padding mode "{mode}" doesn\'t take in value argument')
    pairs, odd = divmod(len(pad), 2)
    if odd or pairs > input.ndim:
        raise RuntimeError(f"pad(): expected a pair for at most each of {input.ndim} dimensions, but got {len(pad)} numbers")
    if pairs not in (1, 2, 3) or input.ndim not in (pairs + 1, pairs + 2):
        raise NotImplementedError(
            f"Padding size {len(pad)} is not supported for {input.ndim}D input tensor: with mode={mode!r} 1, 2 or 3 pairs pad the "
            "last dimensions of a tensor that has one or two more"
        )
    return (_repeated_pad if mode == "circular" else _reflected_pad)(input, pad, mode)


def _wrapped(n: int, lo: int, hi: int) -> list[int]:
    """Places along a dimension that is cut at one end and wrapped around at the other."""
    kept = range(max(-lo, 0), n - max(-hi, 0))
    first, last = max(lo, 0), max(hi, 0)
    return [kept[(j - first) % len(kept)] for j in range(first + len(kept) + last)]


def _repeated_pad(input: Tensor, pad: Sequence[int], mode: str) -> Tensor:
    """Padding by elements of the tensor itself."""
    x = input
    if x.dtype.kind == "b" and mode != "circular":
        raise NotImplementedError(f'"{mode}_pad" not implemented for {x.dtype!r}: cast to another dtype first')
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
                if lo < 0 or hi < 0:  # what is wrapped around comes from what is left after cutting
                    index = _wrapped(n, lo, hi)
            case _:
                raise NotImplementedError(f"Unrecognised padding mode {mode}")
        x = PUBLIC["index_select"](x, d, PUBLIC["tensor"](index))
    return x


_reflected_pad = precise(_repeated_pad, "reflected_pad")


def _at_least(input: Tensor, dims: int, op: str) -> None:
    if input.ndim < dims:
        raise RuntimeError(
            f"{op} expects input to have at least {dims} dimensions, but got input with {input.ndim} dimension(s)"
        )


@composite
def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    _at_least(input, 3, "pixel_shuffle")
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
    _at_least(input, 3, "pixel_unshuffle")
    r = downscale_factor
    *lead, c, h, w = input.shape
    n = len(lead)
    x = RESHAPE(input, shape=(*lead, c, h // r, r, w // r, r))
    x = PERMUTE(x, dims=(*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return RESHAPE(x, shape=(*lead, c * r * r, h // r, w // r))


@composite
def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """[N, C, ...] with the channels of `groups` interleaved."""
    _at_least(input, 3, "channel_shuffle")
    n, c, *rest = input.shape
    if c % groups:
        raise RuntimeError(f"Number of channels must be divisible by groups. Got {c} channels and {groups} groups.")
    x = RESHAPE(input, shape=(n, groups, c // groups, *rest))
    return RESHAPE(PERMUTE(x, dims=(0, 2, 1, *range(3, x.ndim))), shape=tuple(input.shape))


def native_channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """`channel_shuffle` under its other name."""
    return channel_shuffle(input, groups)


# -------------------------------------------------------------------- windows as columns


def _planes(input: Tensor, ranks: tuple[int, int], op: str) -> tuple[Tensor, bool]:
    """The input with a batch dimension, and whether it had none."""
    x = tensor_operand(input, op)
    if x.ndim not in ranks:
        error = IndexError if x.ndim < 3 == ranks[0] else RuntimeError
        raise error(f"{op}: Expected {ranks[0]}D or {ranks[1]}D (batch mode) tensor, but got input of size {list(x.shape)}")
    return (x.unsqueeze(0), True) if x.ndim == ranks[0] else (x, False)  # type: ignore[attr-defined]


def _counts(size: tuple, k: tuple, s: tuple, p: tuple, d: tuple, op: str) -> list[int]:
    """How many windows fit along each dimension."""
    out = []
    for n, ki, si, pi, di in zip(size, k, s, p, d, strict=True):
        room = n + 2 * pi - di * (ki - 1) - 1
        if room < 0:
            raise RuntimeError(
                f"{op}: the kernel {k} (dilation {d}) is larger than the padded plane, of {size} with padding {p}"
            )
        out.append(room // si + 1)
    return out


def _geometry(op: str, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> list[tuple[int, ...]]:
    got = []
    for name, v, least in (
        ("kernel_size", kernel_size, 1),
        ("dilation", dilation, 1),
        ("padding", padding, 0),
        ("stride", stride, 1),
    ):
        got.append(tuples(v, 2, op, name))
        if min(got[-1]) < least:
            raise RuntimeError(f"{op}: {name} should be at least {least}, but got {got[-1]}")
    return got


@composite
@typed_as("im2col")
def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """The windows of [N, C, H, W] as columns: [N, C x kernel elements, windows]; all without N too."""
    k, d, p, s = _geometry("unfold", kernel_size, dilation, padding, stride)
    x, single = _planes(input, (3, 4), "unfold")
    _counts(tuple(x.shape[2:]), k, s, p, d, "unfold")
    if any(p):
        x = PAD(x, lo=(0, 0, *p), hi=(0, 0, *p), value=0)
    for i in range(2):
        x = WINDOW(x, dim=2 + i, size=k[i], step=s[i], dilation=d[i])
    n, c, h, w = x.shape[:4]
    y = RESHAPE(PERMUTE(x, dims=(0, 1, 4, 5, 2, 3)), shape=(n, c * k[0] * k[1], h * w))
    return y.squeeze(0) if single else y  # type: ignore[attr-defined]


@composite
def fold(input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """Columns [N, C x kernel elements, windows] added up where windows overlap -> [N, C, *output_size]; all without N too."""
    k, d, p, s = _geometry("fold", kernel_size, dilation, padding, stride)
    size = tuples(output_size, 2, "fold", "output_size")
    x, single = _planes(input, (2, 3), "fold")
    h, w = _counts(size, k, s, p, d, "fold")
    n, rows, columns = x.shape
    if rows % (k[0] * k[1]):
        raise RuntimeError(
            f"Expected size of input's dimension 1 to be divisible by the product of kernel_size, but got input.size(1)={rows} and "
            f"kernel_size={k}."
        )
    if columns != h * w:
        raise RuntimeError(
            f"Given output_size={size}, kernel_size={k}, dilation={d}, padding={p}, stride={s}, expected size of input's dimension "
            f"2 to match the calculated number of sliding blocks {h} * {w} = {h * w}, but got input.size(2)={columns}."
        )
    c = rows // (k[0] * k[1])
    y = PERMUTE(RESHAPE(x, shape=(n, c, *k, h, w)), dims=(0, 1, 4, 5, 2, 3))
    full = (size[0] + 2 * p[0], size[1] + 2 * p[1])
    y = WINDOW_GRAD(y, 1, shape=(n, c, h, full[1], k[0]), dim=3, step=s[1], dilation=d[1])
    y = WINDOW_GRAD(y, 1, shape=(n, c, *full), dim=2, step=s[0], dilation=d[0])
    y = y[:, :, p[0] : full[0] - p[0], p[1] : full[1] - p[1]]
    return y.squeeze(0) if single else y  # type: ignore[attr-defined]
