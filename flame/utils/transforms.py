"""Images as training needs them: crops, flips, scales and normalisation, as operations on tensors [..., C, H, W].

Names and arguments are torchvision's. Where its random transforms take one choice for a whole batch, these take one for each image
of it; for a single image the two are the same. Choices are drawn from flame's generator and read no values, so that transforms can
stand inside of a compiled step. Everything is differentiable but for the choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.nn import functional as F
from flame.tensor import Tensor

__all__ = [
    "CenterCrop", "Compose", "Normalize", "Pad", "RandomCrop", "RandomHorizontalFlip", "RandomVerticalFlip", "Resize", "ToDtype",
]  # fmt: skip


def _image(x: Any, name: str) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim < 3:
        got = f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected an image or a batch of them, a tensor [..., C, H, W], but got {got}")
    return x


def _pair(size: Any, name: str) -> tuple[int, int]:
    """Height and width, of an int or two of them."""
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) == 1:
        both *= 2
    if len(both) != 2 or any(not isinstance(n, int) or n < 1 for n in both):
        raise ValueError(f"{name}: expected size to be a positive int or two of them, but got {size!r}")
    return both  # type: ignore[return-value]


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, img: Tensor) -> Tensor:
        for t in self.transforms:
            img = t(img)
        return img

    def __repr__(self) -> str:
        return "\n".join(["Compose(", *[f"    {t}" for t in self.transforms], ")"])


class _Transform:
    def __repr__(self) -> str:
        shown = [f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_")]
        return f"{type(self).__name__}({', '.join(shown)})"


class Pad(_Transform):
    """`padding` pixels on each side, of `fill` or of the image itself (padding_mode "edge", "reflect").

    An int; or left and right, top and bottom; or left, top, right, bottom. Raises ValueError for anything else.
    """

    def __init__(self, padding: Any, fill: float = 0, padding_mode: str = "constant") -> None:
        sides = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
        if len(sides) == 2:
            sides *= 2
        if len(sides) != 4:
            raise ValueError(f"Padding must be an int or a 1, 2, or 4 element tuple, not a {len(sides)} element tuple")
        if padding_mode not in _MODES:
            raise ValueError(f"Padding mode should be either {', '.join(_MODES)}, but got {padding_mode!r}")
        self.padding, self.fill, self.padding_mode = sides, fill, padding_mode

    def __call__(self, img: Tensor) -> Tensor:
        left, top, right, bottom = self.padding
        return F.pad(_image(img, "Pad"), (left, right, top, bottom), _MODES[self.padding_mode],
                     self.fill if self.padding_mode == "constant" else None)  # fmt: skip


_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}


class CenterCrop(_Transform):
    """The middle of an image. What lies outside of a smaller one is 0."""

    def __init__(self, size: Any) -> None:
        self.size = _pair(size, "CenterCrop")

    def __call__(self, img: Tensor) -> Tensor:
        x, (h, w) = _image(img, "CenterCrop"), self.size
        dy, dx = max(h - x.shape[-2], 0), max(w - x.shape[-1], 0)
        if dy or dx:
            x = F.pad(x, (dx // 2, (dx + 1) // 2, dy // 2, (dy + 1) // 2))
        top, left = round((x.shape[-2] - h) / 2), round((x.shape[-1] - w) / 2)
        return x[..., top : top + h, left : left + w]


class RandomCrop(_Transform):
    """A part of `size` at a random place, of the image padded by `padding` (see `Pad`), for each image of a batch another.

    Raises ValueError for an image that is smaller, unless `pad_if_needed`.
    """

    def __init__(
        self, size: Any, padding: Any = None, pad_if_needed: bool = False, fill: float = 0, padding_mode: str = "constant"
    ) -> None:
        self.size, self.padding, self.pad_if_needed = _pair(size, "RandomCrop"), padding, pad_if_needed
        self.fill, self.padding_mode = fill, padding_mode
        self._pad = None if padding is None else Pad(padding, fill, padding_mode)

    def __call__(self, img: Tensor) -> Tensor:
        x, (h, w) = _image(img, "RandomCrop"), self.size
        if self._pad is not None:
            x = self._pad(x)
        dy, dx = max(h - x.shape[-2], 0), max(w - x.shape[-1], 0)
        if (dy or dx) and not self.pad_if_needed:
            raise ValueError(f"Required crop size {(h, w)} is larger than input image size {tuple(x.shape[-2:])}")
        if dy or dx:
            x = Pad((dx, dy), self.fill, self.padding_mode)(x)
        rows = _places(x, h, x.shape[-2] - h)
        columns = _places(x, w, x.shape[-1] - w)
        x = _picked(x, rows, -2)
        return _picked(x, columns, -1)


def _places(x: Tensor, length: int, most: int) -> Tensor:
    """For each image, `length` numbers in a row from a random one of 0 to `most` on: [images, length]."""
    begin = PUBLIC["randint"](0, most + 1, (math.prod(x.shape[:-3]), 1))
    return begin + PUBLIC["arange"](length)


def _picked(x: Tensor, at: Tensor, dim: int) -> Tensor:
    """The rows (or columns) `at` of each image."""
    shape = list(x.shape)
    shape[dim] = at.shape[1]
    lead = at.reshape(*x.shape[:-3], 1, *((at.shape[1], 1) if dim == -2 else (1, at.shape[1])))  # type: ignore[attr-defined]
    return PUBLIC["gather"](x, dim, lead.expand(*shape))


class _Flip(_Transform):
    _dim = -1

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"{type(self).__name__}: expected p to be a probability, but got {p!r}")
        self.p = p

    def __call__(self, img: Tensor) -> Tensor:
        x = _image(img, type(self).__name__)
        turned = PUBLIC["rand"](*x.shape[:-3], 1, 1, 1) < self.p
        return PUBLIC["where"](turned, x.flip(self._dim), x)  # type: ignore[attr-defined]


class RandomHorizontalFlip(_Flip):
    """With probability `p` for each image, left and right change places."""


class RandomVerticalFlip(_Flip):
    """With probability `p` for each image, top and bottom change places."""

    _dim = -2


class Resize(_Transform):
    """To a height and width; an int is the length of the shorter side, and the other goes along (to `max_size` at most).

    interpolation: "nearest", "bilinear", "bicubic". antialias: whether a smaller image is a mean over what it leaves out.
    """

    def __init__(self, size: Any, interpolation: str = "bilinear", max_size: int | None = None, antialias: bool = True) -> None:
        if interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(f"Resize: expected interpolation to be nearest, bilinear or bicubic, but got {interpolation!r}")
        _pair(size, "Resize")
        self.size, self.interpolation, self.max_size, self.antialias = size, interpolation, max_size, antialias

    def __call__(self, img: Tensor) -> Tensor:
        x = _image(img, "Resize")
        lead, (h, w) = x.shape[:-3], x.shape[-2:]
        if isinstance(self.size, int) or len(tuple(self.size)) == 1:
            short = _pair(self.size, "Resize")[0]
            scale = short / min(h, w)
            if self.max_size is not None and max(h, w) * scale > self.max_size:
                scale = self.max_size / max(h, w)
            target = (max(int(h * scale), 1), max(int(w * scale), 1))
        else:
            target = _pair(self.size, "Resize")
        flat = x.reshape(math.prod(lead), *x.shape[-3:])  # type: ignore[attr-defined]
        smooth = {} if self.interpolation == "nearest" else {"align_corners": False, "antialias": self.antialias}
        y = F.interpolate(flat, size=target, mode=self.interpolation, **smooth)
        return y.reshape(*lead, x.shape[-3], *target)


class Normalize(_Transform):
    """(x - mean) / std, by channel. Raises ValueError for a deviation of 0, TypeError for images of integers."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        if any(s == 0 for s in std):
            raise ValueError(f"std evaluated to zero, leading to division by zero: {list(std)}")
        self.mean, self.std, self.inplace = tuple(mean), tuple(std), inplace

    def __call__(self, img: Tensor) -> Tensor:
        x = _image(img, "Normalize")
        if not x.dtype.is_floating_point:
            raise TypeError(f"Input tensor should be a float tensor. Got {x.dtype!r}.")
        mean, std = (PUBLIC["tensor"](list(v), dtype=x.dtype).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std) if self.inplace else (x - mean) / std  # type: ignore[attr-defined]


class ToDtype(_Transform):
    """To a dtype; with `scale`, whole numbers of 0 to the largest become 0 to 1, and the other way round."""

    def __init__(self, dtype: dtypes.dtype, scale: bool = False) -> None:
        self.dtype, self.scale = dtype, scale

    def __call__(self, img: Tensor) -> Tensor:
        x = _image(img, "ToDtype")
        if not self.scale or x.dtype.is_floating_point is self.dtype.is_floating_point:
            return x.to(self.dtype)  # type: ignore[attr-defined]
        if self.dtype.is_floating_point:
            return x.to(self.dtype) / _largest(x.dtype)  # type: ignore[attr-defined]
        return (x * (_largest(self.dtype) + 1.0 - 1e-3)).to(self.dtype)  # type: ignore[attr-defined, operator]


def _largest(d: dtypes.dtype) -> int:
    return 2 ** (8 * d.itemsize - (d.kind == "i")) - 1
