"""Pooling: maxima and means over windows, fixed, adaptive and random ones, and their inverses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.functions.parts import PAD, WINDOW
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.random import uniform
from flame.functions.refusing import exact
from flame.functions.shape import RESHAPE
from flame.functions.taking import typed_as
from flame.nn.functional.convolution import tuples
from flame.precision import precise
from flame.primitive import composite, force, registered
from flame.tensor import Tensor

SUM, AMAX, ARGMAX, GATHER, INDEX_SELECT, SCATTER, FLOOR, WINDOW_PICK = map(
    registered, ("sum", "amax", "argmax", "gather", "index_select", "scatter", "floor", "window_pick")
)


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


def _check_windows(x: Tensor, kernel: tuple, stride: tuple, padding: tuple, dilation: tuple, op: str) -> None:
    """Raise RuntimeError where windows have no size, don't move, or lie in the padding alone."""
    for what, values in (("kernel_size", kernel), ("stride", stride), ("dilation", dilation)):
        for v in values:
            if v <= 0:
                raise RuntimeError(f"{op}() {what} must be greater than zero, but got {v}")
    for p, k, d in zip(padding, kernel, dilation, strict=True):
        if p < 0:
            raise RuntimeError(f"{op}() padding must be non-negative, but got {p}")
        if p > (d * (k - 1) + 1) // 2:
            raise RuntimeError(
                f"{op}: pad should be at most half of effective kernel size, but got pad={p}, kernel_size={k} and dilation={d}"
            )
    if 0 in x.shape[1:]:
        raise RuntimeError(f"{op}: Expected 2D or more dimensions of positive size beside the batch, but got {list(x.shape)}")


def _batched(input: Tensor, n: int, op: str, least: int = 0) -> tuple[Tensor, bool]:
    """With a batch, and whether there was none. Raises IndexError for fewer than `least` dimensions, RuntimeError for other
    numbers than n + 1 and n + 2."""
    x = tensor_operand(input, op)
    if x.ndim < least:
        raise IndexError(f"{op}: Expected {n + 1}D or {n + 2}D (batch mode) tensor, but got input of size {list(x.shape)}")
    if x.ndim not in (n + 1, n + 2):
        raise RuntimeError(f"{op}: Expected {n + 1}D or {n + 2}D (batch mode) tensor, but got input of size {list(x.shape)}")
    return (x.unsqueeze(0), True) if x.ndim == n + 1 else (x, False)  # type: ignore[attr-defined]


def _max_pool(n: int) -> Any:
    name = f"max_pool{n}d"

    @composite
    @partial(exact, name=name)
    def max_pool(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:  # fmt: skip
        x, single = _batched(input, n, name)
        k = tuples(kernel_size, n, name, "kernel_size")
        s = k if stride is None or not isinstance(stride, int) and not len(stride) else tuples(stride, n, name, "stride")
        p, d = tuples(padding, n, name, "padding"), tuples(dilation, n, name, "dilation")
        _check_windows(x, k, s, p, d, name)
        if x.dtype.kind == "f":
            fill: Any = float("-inf")
        else:
            fill = 0 if x.dtype.kind == "u" else -(1 << (8 * x.dtype.itemsize - 1))
        w = _windows(x, n, k, s, p, d, ceil_mode, fill, name)
        out, m = tuple(w.shape[: n + 2]), math.prod(k)
        flat = RESHAPE(w, shape=(*out, m))
        if not return_indices and not (force.grad and x.requires_grad):  # nobody asks where the maxima are
            y = RESHAPE(AMAX(flat, dim=(n + 2,), keepdim=True), shape=out)
            return y.squeeze(0) if single else y  # type: ignore[attr-defined]
        # the first maximum of each window takes the whole gradient, as PyTorch's does
        at = ARGMAX(flat.detach(), dim=(n + 2,), keepdim=True)
        where = RESHAPE(at, shape=out)
        if m <= 255:
            where = to_dtype(where, dtypes.uint8)
        y = WINDOW_PICK(x, where, kernel=k, step=s, dilation=d, lo=p, fill=fill)
        if return_indices:
            index = _flat_positions(RESHAPE(at, shape=out), n, k, s, p, d, tuple(x.shape[2:]))
            return (y.squeeze(0), index.squeeze(0)) if single else (y, index)  # type: ignore[attr-defined]
        return y.squeeze(0) if single else y  # type: ignore[attr-defined]

    max_pool.__name__ = max_pool.__qualname__ = name
    return precise(max_pool, name)


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
    @typed_as(name)
    @partial(exact, name=name)
    def avg_pool(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        x, single = _batched(input, n, name, 3 if n == 2 else 0)
        k = tuples(kernel_size, n, name, "kernel_size")
        s = k if stride is None or not isinstance(stride, int) and not len(stride) else tuples(stride, n, name, "stride")
        p, one = tuples(padding, n, name, "padding"), (1,) * n
        _check_windows(x, k, s, p, one, name)
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
    return precise(avg_pool, name)


avg_pool1d, avg_pool2d, avg_pool3d = _avg_pool(1), _avg_pool(2), _avg_pool(3)


def _spatial(input: Tensor, n: int, op: str) -> tuple[Tensor, bool]:
    if n > 1 and isinstance(input, Tensor) and input.ndim <= n:
        raise ValueError(f"{op}: Input dimension should be at least {n + 1}, but the input has shape {list(input.shape)}")
    return _batched(input, n, op)


def _wanted(output_size: Any, x: Tensor, n: int, op: str) -> tuple[int, ...]:
    """The result's spatial size; None stands for the input's."""
    sizes = list(output_size) if isinstance(output_size, Sequence) else [output_size] * n
    if len(sizes) != n:
        raise RuntimeError(f"{op}: expected an output_size of {n} numbers, but got {sizes}")
    want = tuple(x.shape[2 + i] if v is None else int(v) for i, v in enumerate(sizes))
    if min(want) < 0:
        raise RuntimeError(f"{op}: elements of output_size must be greater than or equal to 0, but got {want}")
    return want


def _adaptive_avg(n: int) -> Any:
    name = f"adaptive_avg_pool{n}d"

    @composite
    @typed_as(name)
    def adaptive(input: Tensor, output_size: Any) -> Tensor:
        x, single = _spatial(input, n, name)
        for i, m in enumerate(_wanted(output_size, x, n, name)):
            size, d = x.shape[2 + i], 2 + i
            if size % m == 0 if m else False:
                s = tuple(x.shape)
                x = RESHAPE(x, shape=(*s[:d], m, size // m, *s[d + 1 :])).mean(d + 1)  # type: ignore[attr-defined]
            else:
                bins = [(j * size // m, -(-(j + 1) * size // m)) for j in range(m)]
                parts = [x.narrow(d, a, b - a).mean(d, True) for a, b in bins]  # type: ignore[attr-defined]
                x = PUBLIC["cat"](parts, d) if parts else x.narrow(d, 0, 0)  # type: ignore[attr-defined]
        return x.squeeze(0) if single else x  # type: ignore[attr-defined]

    adaptive.__name__ = adaptive.__qualname__ = name
    adaptive.__doc__ = "Means over windows chosen so that the result has `output_size` (an int, ints, or None for the input's)."
    return precise(adaptive, name)


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = map(_adaptive_avg, (1, 2, 3))


def _bins(size: int, m: int) -> list[list[int]]:
    """The elements of each of m adaptive windows, the last one repeated where a window is shorter than the longest."""
    bins = [list(range(j * size // m, -(-(j + 1) * size // m))) for j in range(m)]
    longest = max(map(len, bins), default=1)
    return [b + b[-1:] * (longest - len(b)) for b in bins]


def _adaptive_max(n: int) -> Any:
    name = f"adaptive_max_pool{n}d"

    @composite
    @typed_as(name)
    def adaptive(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        x, single = _spatial(input, n, name)
        want = _wanted(output_size, x, n, name)
        size = tuple(x.shape[2:])
        if all(m and k % m == 0 for k, m in zip(size, want, strict=True)):
            pool = (max_pool1d, max_pool2d, max_pool3d)[n - 1]
            return pool(input, [k // m for k, m in zip(size, want, strict=True)], return_indices=return_indices)
        places = np.zeros((1, 1), np.int64)  # (results, candidates) in the flattened plane
        for k, m in zip(size, want, strict=True):
            b = np.asarray(_bins(k, m), np.int64).reshape(m, -1)
            places = places[:, None, :, None] * k + b[None, :, None, :]
            places = places.reshape(places.shape[0] * m, -1)
        where = PUBLIC["tensor"](places)
        values = INDEX_SELECT(RESHAPE(x, shape=(*x.shape[:2], math.prod(size))), where, dim=2)
        y, index = _first_maximum(values, where.expand(*x.shape[:2], *where.shape), (*x.shape[:2], *want))  # type: ignore[attr-defined]
        if single:
            y, index = y.squeeze(0), index.squeeze(0)  # type: ignore[attr-defined]
        return (y, index) if return_indices else y

    adaptive.__name__ = adaptive.__qualname__ = name
    adaptive.__doc__ = (
        "Maxima over windows chosen so that the result has `output_size`; with `return_indices` their places in the plane too."
    )
    return precise(adaptive, name)


def _first_maximum(values: Tensor, places: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The first largest of [N, C, results, candidates], which takes the whole gradient, and its place; both of `shape`."""
    if not values.numel():
        return RESHAPE(values, shape=shape), RESHAPE(places, shape=shape)
    at = ARGMAX(values.detach(), dim=(3,), keepdim=True)  # type: ignore[attr-defined]
    return RESHAPE(GATHER(values, at, dim=3), shape=shape), RESHAPE(GATHER(places, at, dim=3), shape=shape)


adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = map(_adaptive_max, (1, 2, 3))


# -------------------------------------------------------------------- further means and maxima


def _lp_pool(n: int) -> Any:
    name = f"lp_pool{n}d"
    average = (avg_pool1d, avg_pool2d, avg_pool3d)[n - 1]

    @composite
    def lp_pool(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Tensor:
        k = tuples(kernel_size, n, name, "kernel_size")
        y = average(PUBLIC["pow"](input, norm_type), k, k if stride is None else stride, 0, ceil_mode)
        y = PUBLIC["sign"](y) * PUBLIC["relu"](PUBLIC["abs"](y))
        return PUBLIC["pow"](y * float(math.prod(k)), 1.0 / norm_type)

    lp_pool.__name__ = lp_pool.__qualname__ = name
    lp_pool.__doc__ = "(sum of x ** norm_type over each window) ** (1 / norm_type)."
    return precise(lp_pool, name)


lp_pool1d, lp_pool2d, lp_pool3d = _lp_pool(1), _lp_pool(2), _lp_pool(3)


def _starts(u: Tensor, size: int, pool: int, out: int) -> Tensor:
    """Where random windows begin [N, C, out], by u in [0, 1) [N, C]: steps of floor or ceil of the ratio, never past the end."""
    alpha = (size - pool) / (out - 1) if out > 1 else 0.0
    steps = PUBLIC["arange"](out, dtype=u.dtype)
    u = u.unsqueeze(-1)  # type: ignore[attr-defined]
    begin = FLOOR((steps + u) * alpha) - FLOOR(u * alpha)
    last = (steps == out - 1).expand(*begin.shape)  # type: ignore[attr-defined]
    return to_dtype(PUBLIC["where"](last, float(size - pool), begin), dtypes.int64)


def _fractional(n: int) -> Any:
    name = f"fractional_max_pool{n}d"

    @composite
    @typed_as(name)
    def pool(
        input: Tensor, kernel_size: Any, output_size: Any = None, output_ratio: Any = None, return_indices: bool = False,
        _random_samples: Tensor | None = None,
    ) -> Any:  # fmt: skip
        if output_size is None and output_ratio is None:
            raise ValueError(f"{name} requires specifying either an output_size or an output_ratio")
        x, single = _batched(input, n, name, n + 1)
        k, size = tuples(kernel_size, n, name, "kernel_size"), tuple(x.shape[2:])
        if output_size is None:
            r = (output_ratio,) * n if isinstance(output_ratio, int | float) else tuple(output_ratio)
            if len(r) != n or not all(0 < v < 1 for v in r):
                raise ValueError(
                    f"{name} requires output_ratio to either be a single float or tuple of floats in (0, 1), got {r}"
                )
            output_size = [int(m * v) for m, v in zip(size, r, strict=True)]
        out = tuples(output_size, n, name, "output_size")
        for m, ki, o in zip(size, k, out, strict=True):
            if o < 1 or o + ki - 1 > m:
                raise RuntimeError(f"{name}: windows of {k} do not give {out} results of an input of {size}")
        u = uniform((*x.shape[:2], n), x.dtype) if _random_samples is None else _random_samples
        if tuple(u.shape) != (*x.shape[:2], n):
            raise RuntimeError(f"{name}: expected random samples of shape {[*x.shape[:2], n]}, but got {list(u.shape)}")
        places: Any = None
        for i in range(n):  # in two dimensions the first number belongs to the width, as in PyTorch
            start = _starts(u.select(2, n - 1 - i if n == 2 else i), size[i], k[i], out[i])  # type: ignore[attr-defined]
            here = start.unsqueeze(-1) + PUBLIC["arange"](k[i])  # type: ignore[attr-defined]
            if places is None:
                places = here
                continue
            places = places.unsqueeze(3).unsqueeze(-1) * size[i] + here.unsqueeze(2).unsqueeze(-2)
            places = RESHAPE(places, shape=(*x.shape[:2], math.prod(out[: i + 1]), math.prod(k[: i + 1])))
        flat = RESHAPE(x, shape=(*x.shape[:2], math.prod(size)))
        values = GATHER(flat, RESHAPE(places, shape=(*x.shape[:2], math.prod(out) * math.prod(k))), dim=2)
        values = RESHAPE(values, shape=tuple(places.shape))
        y, index = _first_maximum(values, places, (*x.shape[:2], *out))
        if single:
            y, index = y.squeeze(0), index.squeeze(0)  # type: ignore[attr-defined]
        return (y, index) if return_indices else y

    pool.__name__ = pool.__qualname__ = name
    pool.__doc__ = (
        "Maxima over windows at pseudo-random distances (Graham, 2014), to `output_size` or the input's times `output_ratio`."
    )
    return precise(pool, name)


fractional_max_pool2d, fractional_max_pool3d = _fractional(2), _fractional(3)


def _with_indices(pool: Any) -> Any:
    def both(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        kwargs["return_indices"] = True
        return pool(*args, **kwargs)

    both.__name__ = both.__qualname__ = f"{pool.__name__}_with_indices"
    both.__doc__ = f"`{pool.__name__}`, and the places of the maxima in the flattened plane."
    return both


max_pool1d_with_indices, max_pool2d_with_indices, max_pool3d_with_indices = map(
    _with_indices, (max_pool1d, max_pool2d, max_pool3d)
)
adaptive_max_pool1d_with_indices, adaptive_max_pool2d_with_indices, adaptive_max_pool3d_with_indices = map(
    _with_indices, (adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d)
)
fractional_max_pool2d_with_indices, fractional_max_pool3d_with_indices = map(
    _with_indices, (fractional_max_pool2d, fractional_max_pool3d)
)


def _unpooled(output_size: Any, usual: list[int], s: tuple[int, ...]) -> list[int]:
    """The spatial part of an `output_size`, which is within a stride of the usual one."""
    n, size = len(usual), [int(v) for v in output_size]
    if len(size) == n + 2:
        size = size[2:]
    if len(size) != n:
        raise ValueError(
            f"output_size should be a sequence containing {n} or {n + 2} elements, but it has a length of {len(size)}"
        )
    for m, u, si in zip(size, usual, s, strict=True):
        if not u - si < m < u + si:
            raise ValueError(f"invalid output_size {size} (each must be within the stride {s} of {usual})")
    return size


def _max_unpool(n: int) -> Any:
    name = f"max_unpool{n}d"

    @composite
    @typed_as(name)
    def unpool(
        input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
    ) -> Tensor:
        k = tuples(kernel_size, n, name, "kernel_size")
        s = k if stride is None else tuples(stride, n, name, "stride")
        p = tuples(padding, n, name, "padding")
        if input.ndim < n:
            raise IndexError(f"{name}: input of size {list(input.shape)} has not {n} dimensions")
        usual = [(m - 1) * si + ki - 2 * pi for m, si, ki, pi in zip(input.shape[input.ndim - n :], s, k, p, strict=True)]
        size = usual if output_size is None else _unpooled(output_size, usual, s)
        x, single = _batched(input, n, name)
        if indices.dtype is not dtypes.int64:
            raise RuntimeError(f"{name}: elements in indices should be of type int64 but got {indices.dtype!r}")
        if indices.shape != input.shape:
            raise RuntimeError(
                f"{name}: expected shape of indices to be the same as that of the input ({list(input.shape)}), but got "
                f"{list(indices.shape)}"
            )
        flat = (*x.shape[:2], math.prod(x.shape[2:]))
        zeros = PUBLIC["zeros"](*x.shape[:2], math.prod(size), dtype=x.dtype)
        y = SCATTER(zeros, RESHAPE(indices, shape=flat), RESHAPE(x, shape=flat), dim=2)
        y = RESHAPE(y, shape=(*x.shape[:2], *size))
        return y.squeeze(0) if single else y  # type: ignore[attr-defined]

    unpool.__name__ = unpool.__qualname__ = name
    unpool.__doc__ = "Values put back to where max pooling found them (`indices`), zeros elsewhere."
    return precise(unpool, name)


max_unpool1d, max_unpool2d, max_unpool3d = _max_unpool(1), _max_unpool(2), _max_unpool(3)
