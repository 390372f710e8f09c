"""Resampling: `interpolate` on a regular grid, `grid_sample` at given places, `affine_grid` for such places.

    interpolate: for each dimension in turn, y[j] = sum over k of weight[j, k] x[place[j, k]]
    grid_sample: the same sum over the corners around a place, gathered from the flattened plane

Places and weights of a regular grid are known on the host; those of given places are computed, and have gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.refusing import exact
from flame.functions.taking import typed
from flame.nn.functional.convolution import tuples
from flame.nn.functional.pooling import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from flame.primitive import composite, registered
from flame.tensor import Tensor

FLOOR, ROUND, GATHER, INDEX_SELECT, MATMUL, FMOD, ABS, WHERE, MINIMUM, MAXIMUM = map(
    registered, ("floor", "round", "gather", "index_select", "matmul", "fmod", "abs", "where", "minimum", "maximum")
)

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _cubic(t: Any, a: float) -> list[Any]:
    """Weights of four neighbours at distances 1 + t, t, 1 - t, 2 - t by Keys' cubic convolution (1981)."""
    near = lambda x: ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = lambda x: ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    return [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]


# -------------------------------------------------------------------- regular grids


def _taps(mode: str, size: int, out: int, scale: float, align: bool) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights [out, taps] along one dimension of `size` elements."""
    j = np.arange(out, dtype=np.float64)
    if mode.startswith("nearest"):
        s = np.float32(scale)
        at = (j.astype(np.float32) + np.float32(0.5) * (mode == "nearest-exact")) * s
        return np.minimum(np.floor(at).astype(np.int64), size - 1)[:, None], np.ones((out, 1))
    if align:
        at = j * ((size - 1) / (out - 1)) if out > 1 else j * 0.0
    else:
        at = (j + 0.5) * scale - 0.5
        at = at if mode == "bicubic" else np.maximum(at, 0.0)
    low = np.floor(at).astype(np.int64)
    t = at - low
    if mode == "bicubic":
        places, weights = low[:, None] + np.arange(-1, 3), np.stack(_cubic(t, -0.75), 1)
    else:
        low = np.minimum(low, size - 1)
        t = at - low
        places, weights = np.stack([low, low + 1], 1), np.stack([1.0 - t, t], 1)
    return np.clip(places, 0, size - 1), weights


def _filter(mode: str, size: int, out: int, scale: float) -> np.ndarray:
    """Weights [out, size] of a filter that widens where the result is smaller, so that nothing is skipped."""
    reach = (2.0 if mode == "bicubic" else 1.0) * max(scale, 1.0)
    w = np.zeros((out, size))
    for j in range(out):
        center = scale * (j + 0.5)
        first = max(int(center - reach + 0.5), 0)
        last = min(int(center + reach + 0.5), size)
        x = np.abs((np.arange(first, last) - center + 0.5) / max(scale, 1.0))
        if mode == "bicubic":
            near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
            v = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
        else:
            v = np.maximum(1.0 - x, 0.0)
        w[j, first:last] = v / v.sum()
    return w


def _resampled(x: Tensor, dim: int, mode: str, out: int, scale: float, align: bool) -> Tensor:
    places, weights = _taps(mode, x.shape[dim], out, scale, align)
    total: Any = None
    for k in range(places.shape[1]):
        part = INDEX_SELECT(x, PUBLIC["tensor"](places[:, k]), dim=dim)
        if places.shape[1] == 1:
            return part
        w = PUBLIC["tensor"](weights[:, k], dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1 - dim))
        total = part * w if total is None else total + part * w
    return total


@composite
@typed
def interpolate(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Tensor:  # fmt: skip
    """Resampling of the spatial dimensions of [N, C, ...] to `size`, or by `scale_factor`.

    Modes: nearest, nearest-exact, area; linear, bilinear, trilinear for 1, 2, 3 dimensions; bicubic for 2. `antialias`
    (bilinear and bicubic) filters where the result is smaller. Raises ValueError for settings that exclude each other,
    NotImplementedError for a mode that does not suit the input.
    """
    x = tensor_operand(input, "interpolate")
    n = x.ndim - 2
    if mode in ("nearest", "area", "nearest-exact"):
        if align_corners is not None:
            raise ValueError(
                "align_corners option can only be set with the interpolating modes: linear | bilinear | bicubic | trilinear"
            )
    elif mode not in ("linear", "bilinear", "bicubic", "trilinear"):
        raise NotImplementedError(
            "Input Error: Only 3D, 4D and 5D input Tensors supported (got "
            f"{x.ndim}D) for the modes: nearest | linear | bilinear | bicubic | trilinear | area | nearest-exact (got {mode})"
        )
    given = size if size is not None else scale_factor
    if isinstance(given, list | tuple) and len(given) != n:
        raise ValueError(
            f"Input and output must have the same number of spatial dimensions, but got input with spatial dimensions of "
            f"{list(x.shape[2:])} and {'output size' if size is not None else 'scale_factor'} of {list(given)}"
        )
    if n not in (1, 2, 3) or mode not in ("nearest", "area", "nearest-exact", _LINEAR[n]) and (mode, n) != ("bicubic", 2):
        raise NotImplementedError(f"interpolate: mode {mode!r} on {n} spatial dimensions: got input of size {list(x.shape)}")
    if antialias and not (mode in ("bilinear", "bicubic") and n == 2):
        raise ValueError("Anti-alias option is restricted to bilinear and bicubic modes and requires a 4-D tensor as input")
    if size is not None and scale_factor is not None:
        raise ValueError("only one of size or scale_factor should be defined")
    if size is None and scale_factor is None:
        raise ValueError("either size or scale_factor should be defined")
    old = tuple(x.shape[2:])
    if size is not None:
        if recompute_scale_factor:
            raise ValueError("recompute_scale_factor is not meaningful with an explicit size.")
        if isinstance(size, list | tuple) and len(size) != n:
            raise ValueError(
                f"Input and output must have the same number of spatial dimensions, but got input with spatial dimensions of "
                f"{list(old)} and output size of {size}."
            )
        new, scales = tuples(size, n, "interpolate", "size"), None
    else:
        f = [float(v) for v in scale_factor] if isinstance(scale_factor, Sequence) else [float(scale_factor)] * n
        if len(f) != n:
            raise ValueError(
                f"Input and scale_factor must have the same number of spatial dimensions, but got input with spatial dimensions of "
                f"{list(old)} and scale_factor of shape {f}."
            )
        new = tuple(math.floor(a * v) for a, v in zip(old, f, strict=True))
        scales = None if recompute_scale_factor else [1.0 / v for v in f]
    if min((*old, *new), default=1) < 1:
        raise RuntimeError(f"Input and output sizes should be greater than 0, but got input {list(old)} output {list(new)}")
    if mode == "area":
        return (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)[n - 1](x, new)
    if isinstance(align_corners, str):
        raise TypeError("interpolate(): argument 'align_corners' must be bool, not str")
    align = bool(align_corners)
    d = x.dtype
    if d.kind == "u" and not mode.startswith("nearest"):  # images in bytes: weights are fractions, results are rounded
        scale_of = {"size": new} if scales is None else {"scale_factor": tuple(1.0 / v for v in scales)}
        y = interpolate(to_dtype(x, dtypes.float32), **scale_of, mode=mode, align_corners=align_corners, antialias=antialias)  # type: ignore[arg-type]
        return to_dtype(FLOOR(MINIMUM(MAXIMUM(y, 0.0), 255.0) + 0.5), d)
    for i in range(n):
        scale = old[i] / new[i] if scales is None else scales[i]
        if antialias:
            if align:
                scale = (old[i] - 1) / (new[i] - 1) if new[i] > 1 else 0.0
            w = PUBLIC["tensor"](_filter(mode, old[i], new[i], scale), dtype=d)
            x = MATMUL(w, x) if i == 0 else MATMUL(x, w.mT)
        else:
            x = _resampled(x, 2 + i, mode, new[i], scale, align)
    return to_dtype(x, d)


@typed
def upsample(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None
) -> Tensor:
    """`interpolate` by its older name."""
    return interpolate(input, size, scale_factor, mode, align_corners)


@typed
def upsample_nearest(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """`interpolate` to the nearest element."""
    return interpolate(input, size, scale_factor, mode="nearest")


@typed
def upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """`interpolate` bilinearly with aligned corners."""
    return interpolate(input, size, scale_factor, mode="bilinear", align_corners=True)


# -------------------------------------------------------------------- given places


@composite
def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
    """Places for `grid_sample`: theta [N, 2, 3] (or [N, 3, 4]) applied to the grid of an output of `size` (N, C, ...)."""
    t = tensor_operand(theta, "affine_grid")
    n = len(size) - 2
    if not t.dtype.is_floating_point:
        raise ValueError(f"Expected theta to have floating point type, but got {t.dtype!r}")
    if n not in (2, 3):
        raise NotImplementedError(
            f"affine_grid only supports 4D and 5D sizes, for 2D and 3D affine transforms, respectively. Got size {list(size)}."
        )
    if t.ndim != 3 or tuple(t.shape[1:]) != (n, n + 1):
        raise ValueError(
            f"Expected a batch of {n}D affine matrices of shape Nx{n}x{n + 1} for size {list(size)}. Got {list(t.shape)}."
        )
    if min(size) <= 0:
        raise ValueError(f"Expected non-zero, positive output size. Got {list(size)}")
    places = []
    for m in reversed(size[2:]):  # x comes first
        line = np.linspace(-1.0, 1.0, m) if m > 1 else np.zeros(1)
        places.append(line if align_corners else line * ((m - 1) / m))
    base = np.stack([*np.meshgrid(*reversed(places), indexing="ij")[::-1], np.ones(tuple(size[2:]))], -1)
    flat = PUBLIC["tensor"](base.reshape(1, -1, n + 1), dtype=t.dtype)
    return MATMUL(flat, t.mT).reshape(size[0], *size[2:], n)


def _reflected(x: Tensor, low: int, high: int) -> Tensor:
    """x reflected into [low / 2, high / 2]."""
    if low == high:
        return x * 0.0
    start, span = low / 2, (high - low) / 2
    x = ABS(x - start)
    rest, flips = FMOD(x, span), FLOOR(x / span)
    return WHERE(FMOD(flips, 2.0) == 0.0, rest, span - rest) + start


def _inside(x: Tensor, size: int, padding: str, align: bool) -> Tensor:
    """Coordinates in pixels as the way of padding sees them."""
    if padding == "zeros":
        return x
    if padding == "reflection":
        x = _reflected(x, 0, 2 * (size - 1)) if align else _reflected(x, -1, 2 * size - 1)
    return MINIMUM(MAXIMUM(x, 0.0), float(size - 1))


def _gathered(flat: Tensor, at: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """flat [N, C, plane] at whole coordinates [N, places] -> values [N, C, places] (any where outside), and which are inside."""
    index: Any = 0
    valid: Any = None
    for x, m in zip(at, size, strict=True):
        ok = (x >= 0.0) & (x <= float(m - 1))
        valid = ok if valid is None else valid & ok
        index = index * m + to_dtype(MINIMUM(MAXIMUM(x, 0.0), float(m - 1)), dtypes.int64)
    n, c = flat.shape[:2]
    return GATHER(flat, index.unsqueeze(1).expand(n, c, index.shape[1]), dim=2), valid.unsqueeze(1)


@composite
@typed
@exact
def grid_sample(
    input: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Tensor:
    """input [N, C, H, W] (or with depth) at the places grid [N, .., 2 or 3] in [-1, 1], x first -> [N, C, ..].

    Modes bilinear, nearest, bicubic (4-d input); beyond the borders "zeros", "border" or "reflection". Both have gradients.
    Raises ValueError for unknown modes, RuntimeError for shapes that do not fit.
    """
    x, g = tensor_operand(input, "grid_sample"), tensor_operand(grid, "grid_sample", "grid")
    if mode not in ("bilinear", "nearest", "bicubic"):
        raise ValueError(
            f"nn.functional.grid_sample(): expected mode to be 'bilinear', 'nearest' or 'bicubic', but got: '{mode}'"
        )
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(
            "nn.functional.grid_sample(): expected padding_mode to be 'zeros', 'border', or 'reflection', but got: "
            f"'{padding_mode}'"
        )
    n = x.ndim - 2
    if n not in (2, 3) or g.ndim != x.ndim or g.shape[0] != x.shape[0] or g.shape[-1] != n or x.dtype is not g.dtype:
        raise RuntimeError(
            "grid_sampler(): expected 4D or 5D input and grid with the same number of dimensions, batch size and dtype, and grid "
            f"to have size {n} in last dimension, but got input with sizes {list(x.shape)} and grid with sizes {list(g.shape)}"
        )
    if mode == "bicubic" and n != 2:
        raise RuntimeError("grid_sampler(): bicubic interpolation only supports 4D input")
    if 0 in x.shape[2:]:
        raise RuntimeError(f"grid_sampler(): expected input to have non-empty spatial dimensions, but got {list(x.shape)}")
    align, size, out = bool(align_corners), tuple(x.shape[2:]), tuple(g.shape[1:-1])
    count, channels = x.shape[:2]
    flat = x.reshape(count, channels, math.prod(size))
    g = g.reshape(count, math.prod(out), n)
    pixels = []
    for k, m in enumerate(size):
        p = g.select(2, n - 1 - k)
        pixels.append((p + 1.0) * (0.5 * (m - 1)) if align else ((p + 1.0) * float(m) - 1.0) * 0.5)
    if mode == "nearest":
        at = [ROUND(_inside(p, m, padding_mode, align)) for p, m in zip(pixels, size, strict=True)]
        corners = [(at, 1.0)]
    elif mode == "bilinear":
        pixels = [_inside(p, m, padding_mode, align) for p, m in zip(pixels, size, strict=True)]
        low = [FLOOR(p.detach()) for p in pixels]
        corners = []
        for offsets in itertools.product((0, 1), repeat=n):
            weight: Any = 1.0
            for p, a, o in zip(pixels, low, offsets, strict=True):
                weight = (p - a if o else 1.0 - (p - a)) * weight
            corners.append(([a + float(o) for a, o in zip(low, offsets, strict=True)], weight))
    else:
        low = [FLOOR(p.detach()) for p in pixels]
        weights = [_cubic(p - a, -0.75) for p, a in zip(pixels, low, strict=True)]
        corners = []
        for i, j in itertools.product(range(4), repeat=2):
            at = [_inside(a + float(o - 1), m, padding_mode, align) for a, o, m in zip(low, (i, j), size, strict=True)]
            corners.append((at, weights[0][i] * weights[1][j]))
    total: Any = None
    for at, weight in corners:
        values, valid = _gathered(flat, at, size)
        part = values if isinstance(weight, float) else values * weight.unsqueeze(1)
        part = WHERE(valid, part, 0.0)
        total = part if total is None else total + part
    return total.reshape(count, channels, *out)
