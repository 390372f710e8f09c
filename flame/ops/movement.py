"""Primitives that move elements without computing: permute, reshape, expand, slice, flip, pad, cat, slice_scatter, window.

Parameters are canonical, made so by whoever calls: dimensions are non-negative, slices name every dimension with
0 <= start <= stop <= size and step >= 1. In a kernel each is a change of index, never a copy. `view` says that NumPy's result
shares the operand's memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from flame import dtypes
from flame.ops.access import At, Choice, Cond, Contraction, E, Index, Read
from flame.ops.create import full
from flame.ops.declare import draw, draws, is_narrow, widened
from flame.primitive import Number, Primitive, Spec, register
from flame.symbol import plain

Ints = tuple[int, ...]


def _sampled(name: str, *cases: tuple[tuple[Ints, ...], dict]) -> Callable[[], Iterator[tuple[tuple, dict]]]:
    """Each case (operands' shapes, parameters) in every dtype."""

    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        for d in dtypes.ALL:
            for shapes, params in cases:
                yield tuple(draw(r, d, s) for s in shapes), params

    return samples


def _one(at: Index, *conds: Cond) -> Read:
    return Read((Choice(0, at, conds),))


# ------------------------------------------------------------------------------------------------------------- permute


def _permute_infer(x: Spec, *, dims: Ints) -> Spec:
    if sorted(dims) != list(range(x.ndim)):
        raise RuntimeError(
            f"permute(sparse_coo): number of dimensions in the tensor input does not match the length of the desired ordering "
            f"of dimensions i.e. input.dim() = {x.ndim} is not equal to len(dims) = {len(dims)}"
            if len(dims) != x.ndim
            else f"permute(): duplicate or missing dims in {list(dims)} for a tensor of {x.ndim} dimensions"
        )
    return Spec(tuple(x.shape[d] for d in dims), x.dtype)


def inverse(dims: Ints) -> Ints:
    """The permutation that undoes `dims`."""
    out = [0] * len(dims)
    for i, d in enumerate(dims):
        out[d] = i
    return tuple(out)


permute: Primitive = register(
    "permute",
    kind="movement",
    view=True,
    infer=_permute_infer,
    eager=lambda x, *, dims: x.transpose(dims),
    vjp=(lambda g, _y, _x, *, dims: permute(g, dims=inverse(dims)),),
    lower=lambda at, index, x, *, dims: _one(tuple(index[i] for i in inverse(dims))),
    samples=_sampled(
        "permute",
        (((2, 3, 4),), {"dims": (2, 0, 1)}),
        (((3, 5),), {"dims": (1, 0)}),
        (((0, 3),), {"dims": (1, 0)}),
        (((),), {"dims": ()}),
        (((4,),), {"dims": (0,)}),
    ),
)

# ------------------------------------------------------------------------------------------------------------- reshape


def _reshape_infer(x: Spec, *, shape: Ints) -> Spec:
    if math.prod(shape) != x.numel or any(n < 0 for n in shape):
        raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {x.numel}")
    return Spec(shape, x.dtype)


def _runs(old: Ints, new: Ints) -> Iterator[tuple[range, range]]:
    """The shortest runs of dimensions of the two shapes that hold equally many elements (no size is 0)."""
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0, a, b = i, j, 1, 1
        while True:
            if plain(a) <= plain(b) and i < len(old):
                a, i = a * old[i], i + 1
            elif j < len(new):
                b, j = b * new[j], j + 1
            else:
                a, i = a * old[i], i + 1
            if (a == b and (i > i0 or j > j0)) or (i == len(old) and j == len(new)):
                break
        yield range(i0, i), range(j0, j)


def _reshape_lower(at: At, index: Index, x: Spec, *, shape: Ints) -> Read:
    if x.numel == 0:
        return _one((0,) * x.ndim)
    out: list[E] = [0] * x.ndim
    for olds, news in _runs(x.shape, shape):
        flat: E = 0
        for j in news:
            flat = flat * shape[j] + index[j]
        for i in reversed(olds):
            n = x.shape[i]
            if i == next((k for k in olds if x.shape[k] != 1), None):  # what is left is in range already
                out[i] = flat
                break
            if n != 1:
                out[i], flat = flat % n, flat // n
    return _one(tuple(out))


reshape: Primitive = register(
    "reshape",
    kind="movement",
    view=True,
    infer=_reshape_infer,
    eager=lambda x, *, shape: x.reshape(shape),
    vjp=(lambda g, _y, _x, *, shape: reshape(g, shape=_x.shape),),
    lower=_reshape_lower,
    samples=_sampled(
        "reshape",
        (((2, 3, 4),), {"shape": (6, 4)}),
        (((2, 3, 4),), {"shape": (3, 8)}),
        (((6, 4),), {"shape": (2, 3, 2, 2)}),
        (((4, 6),), {"shape": (6, 4)}),
        (((1, 5, 1),), {"shape": (5,)}),
        (((5,),), {"shape": (1, 5, 1)}),
        (((),), {"shape": (1, 1)}),
        (((1,),), {"shape": ()}),
        (((0, 3),), {"shape": (5, 0)}),
    ),
    doc="reshape(x, *, shape): the elements in row-major order under another shape; a view where strides allow.",
)

# -------------------------------------------------------------------------------------------------------------- expand


def _expand_infer(x: Spec, *, shape: Ints) -> Spec:
    if len(shape) < x.ndim:
        raise RuntimeError(
            f"expand: the number of sizes provided ({len(shape)}) must be greater or equal to the number of dimensions in the "
            f"tensor ({x.ndim})"
        )
    lead = len(shape) - x.ndim
    for i, n in enumerate(x.shape):
        if n != shape[lead + i] and n != 1:
            raise RuntimeError(
                f"The expanded size of the tensor ({shape[lead + i]}) must match the existing size ({n}) at non-singleton "
                f"dimension {lead + i}.  Target sizes: {list(shape)}.  Tensor sizes: {list(x.shape)}"
            )
    return Spec(shape, x.dtype)


def _expand_eager(x: np.ndarray, *, shape: Ints) -> np.ndarray:
    if x.size == 1 and x.ndim <= len(shape) and x.dtype.isbuiltin == 1:  # (what broadcast_to does, in a third of the time)
        out = np.ndarray(shape, x.dtype, x, 0, (0,) * len(shape))
        out.flags.writeable = False
        return out
    return np.broadcast_to(x, shape)


expand: Primitive = register(
    "expand",
    kind="movement",
    view=True,
    infer=_expand_infer,
    eager=_expand_eager,
    vjp=(lambda g, _y, _x, *, shape: g,),
    lower=lambda at, index, x, *, shape: _one(
        tuple(0 if n == 1 else i for n, i in zip(x.shape, index[len(index) - x.ndim :], strict=True))
    ),
    samples=_sampled(
        "expand",
        (((3, 1),), {"shape": (3, 5)}),
        (((3,),), {"shape": (2, 3)}),
        (((),), {"shape": (2, 2)}),
        (((1, 4),), {"shape": (0, 4)}),
        (((2, 3),), {"shape": (2, 3)}),
    ),
)

# --------------------------------------------------------------------------------------------------- slice and its reverse


def _slice_sizes(x: Spec, starts: Ints, stops: Ints, steps: Ints) -> Ints:
    if not len(starts) == len(stops) == len(steps) == x.ndim:
        raise RuntimeError(f"slice: expected {x.ndim} starts, stops and steps, but got {starts}, {stops}, {steps}")
    for n, a, b, s in zip(x.shape, starts, stops, steps, strict=True):
        if not 0 <= a <= b <= n or s < 1:
            raise RuntimeError(f"slice: {a}:{b}:{s} is not a slice of a dimension of size {n} with a positive step")
    return tuple(-((a - b) // s) for a, b, s in zip(starts, stops, steps, strict=True))


def _slices(starts: Ints, stops: Ints, steps: Ints) -> Any:
    return tuple(map(_python_slice, starts, stops, steps))


_python_slice: Any = slice


def _slice_vjp(g: Any, _y: Any, _x: Any, *, starts: Ints, stops: Ints, steps: Ints) -> Any:
    if all(s == 1 for s in steps):
        hi = tuple(n - b for n, b in zip(_x.shape, stops, strict=True))
        return pad(g, lo=starts, hi=hi, value=0)
    zeros = full(0, shape=_x.shape, dtype=_x.dtype)
    return slice_scatter(zeros, g, starts=starts, stops=stops, steps=steps)


_slice_cases: tuple[tuple[Ints, dict], ...] = (
    ((4, 6), {"starts": (1, 0), "stops": (3, 6), "steps": (1, 1)}),
    ((4, 7), {"starts": (0, 1), "stops": (4, 6), "steps": (3, 2)}),
    ((5,), {"starts": (2,), "stops": (2,), "steps": (1,)}),
    ((0, 2), {"starts": (0, 1), "stops": (0, 2), "steps": (1, 1)}),
    ((), {"starts": (), "stops": (), "steps": ()}),
    ((1, 9), {"starts": (0, 8), "stops": (1, 9), "steps": (1, 4)}),
)

slice: Primitive = register(
    "slice",
    kind="movement",
    view=True,
    infer=lambda x, *, starts, stops, steps: Spec(_slice_sizes(x, starts, stops, steps), x.dtype),
    eager=lambda x, *, starts, stops, steps: x[_slices(starts, stops, steps) or ...],
    vjp=(_slice_vjp,),
    lower=lambda at, index, x, *, starts, stops, steps: _one(
        tuple(i * s + a for i, a, s in zip(index, starts, steps, strict=True))
    ),
    samples=_sampled("slice", *(((s,), params) for s, params in _slice_cases)),
)


def _scatter_infer(x: Spec, v: Spec, *, starts: Ints, stops: Ints, steps: Ints) -> Spec:
    sizes = _slice_sizes(x, starts, stops, steps)
    if v.shape != sizes or v.dtype is not x.dtype:
        raise RuntimeError(f"slice_scatter: expected src to be {Spec(sizes, x.dtype)}, as the slice is, but got {v}")
    return x


def _scatter_eager(x: np.ndarray, v: np.ndarray, *, starts: Ints, stops: Ints, steps: Ints) -> np.ndarray:
    out = np.array(x, order="C")
    out[_slices(starts, stops, steps) or ...] = v
    return out


def _scatter_lower(at: At, index: Index, x: Spec, v: Spec, *, starts: Ints, stops: Ints, steps: Ints) -> Read:
    conds: list[Cond] = []
    inside: list[E] = []
    for i, n, a, b, s in zip(index, x.shape, starts, stops, steps, strict=True):
        if a > 0:
            conds.append(Cond(i - a))
        if b < n:
            conds.append(Cond(b - 1 - i))
        if s > 1:
            conds.append(Cond((i - a) % s, "eq"))
        inside.append((i - a) // s if s > 1 else i - a)
    return Read((Choice(1, tuple(inside), tuple(conds)), Choice(0, index)))


def _scatter_vjp(g: Any, _y: Any, _x: Any, _v: Any, **where: Ints) -> Any:
    return slice_scatter(g, full(0, shape=_v.shape, dtype=_v.dtype), **where)


def _sizes_of(shape: Ints, params: dict) -> Ints:
    return _slice_sizes(Spec(shape, dtypes.float32), **params)


slice_scatter: Primitive = register(
    "slice_scatter",
    kind="movement",
    infer=_scatter_infer,
    eager=_scatter_eager,
    vjp=(_scatter_vjp, lambda g, _y, _x, _v, **where: slice(g, **where)),
    lower=_scatter_lower,
    samples=_sampled("slice_scatter", *(((s, _sizes_of(s, params)), params) for s, params in _slice_cases)),
    doc="slice_scatter(x, v, *, starts, stops, steps): x with the slice replaced by v.",
)

# ----------------------------------------------------------------------------------------------------- flip, pad and cat


def _flip_infer(x: Spec, *, dims: Ints) -> Spec:
    if any(not 0 <= d < x.ndim for d in dims) or len(set(dims)) != len(dims):
        raise RuntimeError(f"flip: dims {list(dims)} are not different dimensions of a tensor of {x.ndim} dimensions")
    return x


flip: Primitive = register(
    "flip",
    kind="movement",
    infer=_flip_infer,
    eager=lambda x, *, dims: np.array(np.flip(x, dims), order="C"),
    vjp=(lambda g, _y, _x, *, dims: flip(g, dims=dims),),
    lower=lambda at, index, x, *, dims: _one(tuple(x.shape[d] - 1 - i if d in dims else i for d, i in enumerate(index))),
    samples=_sampled(
        "flip",
        (((3, 4),), {"dims": (0,)}),
        (((3, 4),), {"dims": (0, 1)}),
        (((0, 4),), {"dims": (1,)}),
        (((5,),), {"dims": ()}),
    ),
)


def _pad_infer(x: Spec, *, lo: Ints, hi: Ints, value: Number) -> Spec:
    if not len(lo) == len(hi) == x.ndim or any(n < 0 for n in lo + hi):
        raise RuntimeError(f"pad: expected {x.ndim} non-negative widths on each side, but got {lo} and {hi}")
    return Spec(tuple(a + n + b for a, n, b in zip(lo, x.shape, hi, strict=True)), x.dtype)


def _pad_eager(x: np.ndarray, *, lo: Ints, hi: Ints, value: Number) -> np.ndarray:
    out = np.full(tuple(a + n + b for a, n, b in zip(lo, x.shape, hi, strict=True)), value, x.dtype)
    out[tuple(_python_slice(a, a + n) for a, n in zip(lo, x.shape, strict=True)) or ...] = x
    return out


def _pad_vjp(g: Any, _y: Any, _x: Any, *, lo: Ints, hi: Ints, value: Number) -> Any:
    stops = tuple(a + n for a, n in zip(lo, _x.shape, strict=True))
    return slice(g, starts=lo, stops=stops, steps=(1,) * len(lo))


def _pad_lower(at: At, index: Index, x: Spec, *, lo: Ints, hi: Ints, value: Number) -> Read:
    conds = [Cond(i - a) for i, a in zip(index, lo, strict=True) if a]
    conds += [Cond(a + n - 1 - i) for i, a, n, b in zip(index, lo, x.shape, hi, strict=True) if b]
    return Read((Choice(0, tuple(i - a for i, a in zip(index, lo, strict=True)), tuple(conds)),), value)


pad: Primitive = register(
    "pad",
    kind="movement",
    infer=_pad_infer,
    eager=_pad_eager,
    vjp=(_pad_vjp,),
    lower=_pad_lower,
    samples=_sampled(
        "pad",
        (((3, 4),), {"lo": (1, 0), "hi": (0, 2), "value": 0}),
        (((3,),), {"lo": (2,), "hi": (1,), "value": 1}),
        (((0, 2),), {"lo": (1, 0), "hi": (1, 0), "value": 1}),
        (((),), {"lo": (), "hi": (), "value": 0}),
    ),
    doc="pad(x, *, lo, hi, value): `value` before and after the elements of each dimension.",
)


def _cat_infer(*xs: Spec, dim: int) -> Spec:
    if not xs:
        raise RuntimeError("cat: expected a non-empty list of Tensors")
    first = xs[0]
    if not 0 <= dim < first.ndim:
        raise RuntimeError(
            "zero-dimensional tensor (at position 0) cannot be concatenated" if not first.ndim else f"cat: {dim}"
        )
    for k, x in enumerate(xs):
        if x.ndim != first.ndim:
            raise RuntimeError(f"Tensors must have same number of dimensions: got {first.ndim} and {x.ndim}")
        if x.dtype is not first.dtype:
            raise RuntimeError(f"cat: expected tensors of one dtype, but got {first.dtype} and {x.dtype}")
        for d, (a, b) in enumerate(zip(first.shape, x.shape, strict=True)):
            if a != b and d != dim:
                raise RuntimeError(
                    f"Sizes of tensors must match except in dimension {dim}. Expected size {a} but got size {b} for tensor "
                    f"number {k} in the list."
                )
    total = sum(x.shape[dim] for x in xs)
    return Spec(first.shape[:dim] + (total,) + first.shape[dim + 1 :], first.dtype)


def _cat_vjp(g: Any, _y: Any, *_xs: Any, operand: int, dim: int) -> Any:
    start = sum(x.shape[dim] for x in _xs[:operand])
    starts = tuple(start if d == dim else 0 for d in range(len(g.shape)))
    stops = tuple(a + n for a, n in zip(starts, _xs[operand].shape, strict=True))
    return slice(g, starts=starts, stops=stops, steps=(1,) * len(starts))


def _cat_lower(at: At, index: Index, *xs: Spec, dim: int) -> Read:
    choices, start, total = [], 0, sum(x.shape[dim] for x in xs)
    for k, x in enumerate(xs):
        n = x.shape[dim]
        after = [Cond(index[dim] - start)] if start else []
        before = [Cond(start + n - 1 - index[dim])] if start + n < total else []
        if n:
            choices.append(Choice(k, index[:dim] + (index[dim] - start,) + index[dim + 1 :], (*after, *before)))
        start += n
    return Read(tuple(choices))


cat: Primitive = register(
    "cat",
    kind="movement",
    infer=_cat_infer,
    eager=lambda *xs, dim: np.ascontiguousarray(np.concatenate(xs, dim)),
    vjp=_cat_vjp,
    lower=_cat_lower,
    samples=_sampled(
        "cat",
        (((2, 3), (1, 3)), {"dim": 0}),
        (((2, 3), (2, 1), (2, 4)), {"dim": 1}),
        (((0,), (3,)), {"dim": 0}),
        (((2, 2),), {"dim": 1}),
        (((2, 2), (2, 0)), {"dim": 1}),
    ),
    doc="cat(*xs, dim): the operands one after the other along a dimension.",
)

# -------------------------------------------------------------------------------------------------------------- windows


def _window_count(n: int, size: int, step: int, dilation: int) -> int:
    return (n - (size - 1) * dilation - 1) // step + 1


def _window_infer(x: Spec, *, dim: int, size: int, step: int, dilation: int) -> Spec:
    if not 0 <= dim < x.ndim or size < 1 or step < 1 or dilation < 1:
        raise RuntimeError(f"unfold: expected a dimension of {x}, and size, step > 0, but got {dim}, {size}, {step}")
    if (size - 1) * dilation + 1 > x.shape[dim]:
        raise RuntimeError(
            f"maximum size for tensor at dimension {dim} is {x.shape[dim]} but size is {(size - 1) * dilation + 1}"
        )
    count = _window_count(x.shape[dim], size, step, dilation)
    return Spec(x.shape[:dim] + (count,) + x.shape[dim + 1 :] + (size,), x.dtype)


def _window_eager(x: np.ndarray, *, dim: int, size: int, step: int, dilation: int) -> np.ndarray:
    count = _window_count(x.shape[dim], size, step, dilation)
    shape = x.shape[:dim] + (count,) + x.shape[dim + 1 :] + (size,)
    at = x.strides[dim]
    return as_strided(x, shape, x.strides[:dim] + (at * step,) + x.strides[dim + 1 :] + (at * dilation,))


_window_cases: tuple[tuple[Ints, dict], ...] = (
    ((2, 7), {"dim": 1, "size": 3, "step": 1, "dilation": 1}),
    ((2, 8), {"dim": 1, "size": 2, "step": 2, "dilation": 1}),
    ((9, 2), {"dim": 0, "size": 3, "step": 2, "dilation": 2}),
    ((2, 8, 3), {"dim": 1, "size": 2, "step": 3, "dilation": 1}),
    ((4,), {"dim": 0, "size": 4, "step": 1, "dilation": 1}),
    ((0, 4), {"dim": 1, "size": 2, "step": 1, "dilation": 1}),
)

window: Primitive = register(
    "window",
    kind="movement",
    view=True,
    infer=_window_infer,
    eager=_window_eager,
    vjp=(
        lambda g, _y, _x, *, dim, size, step, dilation: window_grad(
            g, 1, shape=_x.shape, dim=dim, step=step, dilation=dilation
        ),
    ),
    lower=lambda at, index, x, *, dim, size, step, dilation: _one(
        index[:dim] + (index[dim] * step + index[-1] * dilation,) + index[dim + 1 : -1]
    ),
    samples=_sampled("window", *(((s,), params) for s, params in _window_cases)),
    doc="window(x, *, dim, size, step, dilation): `dim` counts windows; what each holds is a new last dimension.",
)


def _window_grad_infer(g: Spec, one: Number, *, shape: Ints, dim: int, step: int, dilation: int) -> Spec:
    size = g.shape[-1]
    back = _window_infer(Spec(shape, g.dtype), dim=dim, size=size, step=step, dilation=dilation)
    if back != g:
        raise RuntimeError(f"window_grad: expected {back}, the windows of {list(shape)}, but got {g}")
    return Spec(shape, g.dtype)


def _window_grad_eager(g: np.ndarray, one: Number, *, shape: Ints, dim: int, step: int, dilation: int) -> np.ndarray:
    wide = widened(g) if is_narrow(g.dtype) else g
    out = np.zeros(shape, wide.dtype)
    count = g.shape[dim]
    for k in range(g.shape[-1]):
        at = _python_slice(k * dilation, k * dilation + (count - 1) * step + 1, step)
        out[(_python_slice(None),) * dim + (at,)] += wide[..., k]
    return out.astype(g.dtype, copy=False)


def _window_grad_lower(index: Index, g: Spec, one: Number, *, shape: Ints, dim: int, step: int, dilation: int) -> Contraction:
    def left(axes: Index) -> Choice:
        (k,) = axes
        start = index[dim] - k * dilation
        conds = [Cond(start), Cond((g.shape[dim] - 1) * step - start)]
        if step > 1:
            conds.append(Cond(start % step, "eq"))
        return Choice(0, index[:dim] + (start // step,) + index[dim + 1 :] + (k,), tuple(conds))

    return Contraction((g.shape[-1],), left, lambda axes: Choice(1, ()))


def _window_grad_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("window_grad")
    for d in dtypes.ALL:
        if d.kind != "b":
            for shape, params in _window_cases:
                g = _window_infer(Spec(shape, d), **params)
                yield (draw(r, d, g.shape), 1), {k: v for k, v in params.items() if k != "size"} | {"shape": shape}


window_grad: Primitive = register(
    "window_grad",
    kind="contract",
    infer=_window_grad_infer,
    eager=_window_grad_eager,
    vjp=(
        lambda g, _y, _g, _one, *, shape, dim, step, dilation: window(
            g, dim=dim, size=_g.shape[-1], step=step, dilation=dilation
        ),
        None,
    ),
    lower=_window_grad_lower,
    samples=_window_grad_samples,
    doc="window_grad(g, 1, *, shape, dim, step, dilation): windows added up where they overlap, a contraction with 1.",
)
