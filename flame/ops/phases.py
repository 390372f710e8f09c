"""The gradient of a strided convolution's input, in primitives that walk no holes.

    composed                  primitive's name -> the same in smaller ones
    has_phases(g, w, **how)   whether that is possible, and worth it

A stride of s spreads the cotangent out: of every s positions along a dimension one comes from each tap. Positions that are equal
modulo s are reached by the same taps, a stride apart, so each such phase is the gradient of a convolution of stride 1 with a part
of the weight. The phases are computed one by one, and laid side by side. No product is with a zero.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

from flame.ops.contract import conv_input_grad
from flame.ops.create import full
from flame.ops.movement import cat, pad, reshape
from flame.ops.movement import slice as slice_of

Ints = tuple[int, ...]

MOST = 9  #: phases: beyond, each is small
LEAST = 16  #: channels of the input that a product of matrices is worth


def has_phases(g: Any, w: Any, *, input_shape: Ints, stride: Ints, dilation: Ints, groups: int, **_: Any) -> bool:
    """Whether there are a few phases, of known sizes and with taps that lie side by side; and channels enough, or one a group."""
    if w.shape[1] < LEAST and not w.shape[1] == 1 < groups:
        return False
    sizes = (*input_shape[2:], *g.shape[2:], *w.shape[2:])
    known = all(type(n) is int and n > 0 for n in sizes) and all(n >= s for n, s in zip(input_shape[2:], stride, strict=True))
    return known and 1 < prod(stride) <= MOST and all(s == 1 or d == 1 for s, d in zip(stride, dilation, strict=True))


def _phase(g: Any, w: Any, r: Ints, space: Ints, how: dict[str, Any], input_shape: Ints, stride: Ints) -> Any:
    """The positions that are r modulo the stride, as an array of the sizes `space`."""
    shape = (*input_shape[:2], *space)
    first = tuple((a + lo) % s for a, (lo, _), s in zip(r, how["padding"], stride, strict=True))  # tap
    taps = tuple(-((f - k) // s) for f, k, s in zip(first, w.shape[2:], stride, strict=True))
    if min(taps) < 1:
        return full(0, shape=shape, dtype=g.dtype)
    part = slice_of(w, starts=(0, 0, *first), stops=w.shape, steps=(1, 1, *stride))
    padding, reached = [], []
    for a, n, k, t, s, d, (lo, _) in zip(r, space, taps, g.shape[2:], stride, how["dilation"], how["padding"], strict=True):
        before = (a + lo) // s  # position q is reached from result q + before - tap * dilation
        after = t - n - before + d * (k - 1)
        padding.append((before, max(after, 0)))
        reached.append(n + min(after, 0))  # the positions behind are in no window
    if min(reached) < 1:
        return full(0, shape=shape, dtype=g.dtype)
    how = how | {"padding": tuple(padding), "stride": (1,) * len(r)}
    return _filled(conv_input_grad(g, part, input_shape=(*input_shape[:2], *reached), **how), space)


def _filled(x: Any, space: Ints) -> Any:
    """`x`, zero up to the sizes `space`."""
    lack = tuple(m - n for m, n in zip(space, x.shape[2:], strict=True))
    return pad(x, lo=(0,) * len(x.shape), hi=(0, 0, *lack), value=0) if any(lack) else x


def _input_grad_composed(g: Any, w: Any, *, input_shape: Ints, stride: Ints, phases: bool = False, **how: Any) -> tuple[Any]:
    space = input_shape[2:]
    most = tuple(-(-n // s) for n, s in zip(space, stride, strict=True))
    parts = []
    for r in product(*map(range, stride)):
        here = tuple(-((a - n) // s) for a, n, s in zip(r, space, stride, strict=True))
        parts.append(_filled(_phase(g, w, r, here, how, input_shape, stride), most))
    for d in reversed(range(2, len(input_shape))):  # side by side along the last dimension first
        s = stride[d - 2]
        together = []
        for i in range(0, len(parts), s):
            x = parts[i]
            if s > 1:
                wide = (*x.shape[: d + 1], 1, *x.shape[d + 1 :])
                x = cat(*[reshape(p, shape=wide) for p in parts[i : i + s]], dim=d + 1)
                x = reshape(x, shape=(*x.shape[:d], x.shape[d] * s, *x.shape[d + 2 :]))
            together.append(x)
        parts = together
    (x,) = parts
    if tuple(x.shape) != tuple(input_shape):
        x = slice_of(x, starts=(0,) * len(input_shape), stops=tuple(input_shape), steps=(1,) * len(input_shape))
    return (x,)


composed: dict[str, Callable[..., tuple[Any, ...]]] = {"conv_input_grad": _input_grad_composed}
