"""An element of each window, chosen by its place: what a maximum over windows is made of, where it has a derivative.

    window_pick(x, at; kernel, step, dilation, lo, fill)     y[.., o] = x[.., o * step - lo + place * dilation]
    window_put(g, at; size, kernel, step, dilation, lo)      x[.., the same] += g[.., o], zero elsewhere

The last len(kernel) dimensions are windowed. `at` counts the places of a window in row-major order; a place outside of x reads
`fill` and takes nothing. What is put may land on one element several times: the windows' order is the order of the sums. On a
CPU a routine puts, one write a window; `composed` spells it in smaller primitives for other targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.ops.access import At, Choice, Cond, Index, Read
from flame.ops.create import full, iota
from flame.ops.declare import draw, draws, is_narrow, quiet, widened
from flame.ops.logic import cast, eq, where
from flame.ops.movement import pad, reshape, window_grad
from flame.ops.movement import slice as slice_of
from flame.primitive import Number, Primitive, Spec, register

Ints = tuple[int, ...]


def _counts(size: Ints, at: Ints, kernel: Ints, name: str) -> int:
    """How many dimensions stand in front of those that are windowed."""
    lead = len(at) - len(kernel)
    if lead < 0 or len(size) != len(kernel) or any(k < 1 for k in kernel):
        raise RuntimeError(f"{name}: expected windows of {len(kernel)} dimensions, but got {list(size)} and places {list(at)}")
    return lead


def _is_place(name: str, at: Any) -> None:
    if not isinstance(at, Spec) or at.dtype.kind not in "ui":
        raise RuntimeError(f"{name}: expected places that are integers, but got {at}")


def _pick_infer(x: Spec, at: Spec, *, kernel: Ints, step: Ints, dilation: Ints, lo: Ints, fill: Number) -> Spec:
    _is_place("window_pick", at)
    lead = _counts(x.shape[len(at.shape) - len(kernel) :], at.shape, kernel, "window_pick")
    if x.shape[:lead] != at.shape[:lead]:
        raise RuntimeError(f"window_pick: expected places for {x}, but got {at}")
    return Spec(at.shape, x.dtype)


def _put_infer(g: Spec, at: Spec, *, size: Ints, kernel: Ints, step: Ints, dilation: Ints, lo: Ints) -> Spec:
    _is_place("window_put", at)
    lead = _counts(size, at.shape, kernel, "window_put")
    if g.shape != at.shape:
        raise RuntimeError(f"window_put: expected a place for each element of {g}, but got {at}")
    return Spec((*g.shape[:lead], *size), g.dtype)


def _places(at: np.ndarray, size: Ints, kernel: Ints, step: Ints, dilation: Ints, lo: Ints) -> tuple[np.ndarray, np.ndarray]:
    """For each window the position of its place in the flattened operand, and whether it lies inside."""
    n, lead = len(kernel), at.ndim - len(kernel)
    flat = np.arange(math.prod(at.shape[:lead])).reshape(*at.shape[:lead], *[1] * n)
    holds = np.ones((1,) * at.ndim, bool)
    for i in range(n):
        inside = at.astype(np.int64) // math.prod(kernel[i + 1 :]) % kernel[i]
        start = np.arange(at.shape[lead + i]).reshape(-1, *[1] * (n - 1 - i)) * step[i] - lo[i]
        here = inside * dilation[i] + start
        holds = holds & (here >= 0) & (here < size[i])
        flat = flat * size[i] + here
    return flat, holds


def _pick_eager(
    x: np.ndarray, at: np.ndarray, *, kernel: Ints, step: Ints, dilation: Ints, lo: Ints, fill: Number
) -> np.ndarray:
    flat, holds = _places(at, x.shape[at.ndim - len(kernel) :], kernel, step, dilation, lo)
    if not x.size:
        return np.full(at.shape, fill, x.dtype)
    found = np.where(holds, np.ravel(x)[np.where(holds, flat, 0)], np.asarray(fill).astype(x.dtype))
    return np.ascontiguousarray(found)


def _put_eager(g: np.ndarray, at: np.ndarray, *, size: Ints, kernel: Ints, step: Ints, dilation: Ints, lo: Ints) -> np.ndarray:
    flat, holds = _places(at, size, kernel, step, dilation, lo)
    wide = widened(g) if is_narrow(g.dtype) else g
    out = np.zeros(math.prod((*g.shape[: g.ndim - len(kernel)], *size)), wide.dtype)
    holds = np.broadcast_to(holds, g.shape)
    quiet.run(np.add.at, out, np.broadcast_to(flat, g.shape)[holds], wide[holds])
    return out.astype(g.dtype, copy=False).reshape(*g.shape[: g.ndim - len(kernel)], *size)


def _pick_lower(
    at: At, index: Index, x: Spec, p: Spec, *, kernel: Ints, step: Ints, dilation: Ints, lo: Ints, fill: Number
) -> Read:
    lead = len(index) - len(kernel)
    place = at.load_index(1, index, math.prod(kernel))
    here, conds = [], []
    for i, k in enumerate(kernel):
        e = index[lead + i] * step[i] + place // math.prod(kernel[i + 1 :]) % k * dilation[i] - lo[i]
        conds += [Cond(e), Cond(x.shape[lead + i] - 1 - e)]
        here.append(e)
    return Read((Choice(0, (*index[:lead], *here), tuple(conds)),), fill)


def _put_composed(g: Any, at: Any, *, size: Ints, kernel: Ints, step: Ints, dilation: Ints, lo: Ints) -> tuple[Any]:
    """Every window in full, zero but at its place, added up dimension by dimension."""
    n, lead = len(kernel), len(at.shape) - len(kernel)
    wide = (*at.shape, 1)
    places = cast(iota(size=math.prod(kernel), dtype=dtypes.int32), dtype=at.dtype)
    zero = full(0, shape=(), dtype=g.dtype)
    x = where(eq(reshape(at, shape=wide), places), reshape(g, shape=wide), zero)
    x = reshape(x, shape=(*at.shape, *kernel))
    reach = [(at.shape[lead + i] - 1) * step[i] + (kernel[i] - 1) * dilation[i] + 1 for i in range(n)]
    for i in reversed(range(n)):
        shape = (*at.shape[: lead + i], reach[i], *x.shape[lead + i + 1 : -1])
        x = window_grad(x, 1, shape=shape, dim=lead + i, step=step[i], dilation=dilation[i])
    starts = (0,) * lead + tuple(lo)
    stops = tuple(at.shape[:lead]) + tuple(min(r, low + s) for r, low, s in zip(reach, lo, size, strict=True))
    x = slice_of(x, starts=starts, stops=stops, steps=(1,) * len(starts))
    rest = (0,) * lead + tuple(s - (b - a) for s, a, b in zip(size, starts[lead:], stops[lead:], strict=True))
    return (pad(x, lo=(0,) * len(rest), hi=rest, value=0) if any(rest) else x,)


#: primitive's name -> the same in smaller ones
composed: dict[str, Callable[..., tuple[Any, ...]]] = {"window_put": _put_composed}


_cases: tuple[tuple[Ints, dict[str, Ints]], ...] = (
    ((2, 3, 7, 8), {"kernel": (3, 3), "step": (2, 2), "dilation": (1, 1), "lo": (1, 1), "out": (4, 4)}),
    ((2, 9), {"kernel": (2,), "step": (3,), "dilation": (2,), "lo": (0,), "out": (3,)}),
    ((1, 4, 3, 5), {"kernel": (2, 1, 3), "step": (1, 1, 2), "dilation": (1, 2, 1), "lo": (0, 0, 1), "out": (3, 3, 3)}),
    ((5,), {"kernel": (2,), "step": (1,), "dilation": (1,), "lo": (0,), "out": (4,)}),
    ((0, 4), {"kernel": (2,), "step": (2,), "dilation": (1,), "lo": (0,), "out": (2,)}),
)


def _samples(puts: bool) -> Callable[[], Iterator[tuple[tuple, dict]]]:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(f"window {puts}")
        for k, d in enumerate(d for d in dtypes.ALL if d.kind != "b" or not puts):
            for shape, given in _cases:
                how: dict[str, Any] = {n: v for n, v in given.items() if n != "out"}
                n = len(how["kernel"])
                lead, size = shape[: len(shape) - n], shape[len(shape) - n :]
                at = r.integers(0, math.prod(how["kernel"]), (*lead, *given["out"]))
                at = at.astype((np.int64, np.uint8, np.int32)[k % 3])
                if puts:
                    yield (draw(r, d, at.shape), at), how | {"size": size}
                else:
                    yield (draw(r, d, shape), at), how | {"fill": 1}

    return samples


window_pick: Primitive = register(
    "window_pick",
    kind="index",
    infer=_pick_infer,
    eager=_pick_eager,
    vjp=(
        lambda g, _y, _x, at, *, kernel, step, dilation, lo, fill: window_put(
            g, at, size=_x.shape[len(_x.shape) - len(kernel) :], kernel=kernel, step=step, dilation=dilation, lo=lo
        ),
        None,
    ),
    lower=_pick_lower,
    samples=_samples(False),
    doc="window_pick(x, at, *, kernel, step, dilation, lo, fill): of each window the element at a place; outside of x `fill`.",
)
window_put: Primitive = register(
    "window_put",
    kind="opaque",
    infer=_put_infer,
    eager=_put_eager,
    vjp=(
        lambda g, _y, _g, at, *, size, kernel, step, dilation, lo: window_pick(
            g, at, kernel=kernel, step=step, dilation=dilation, lo=lo, fill=0
        ),
        None,
    ),
    refused={
        "lower": "windows overlap, so that writes would race: a routine of its own on a CPU, smaller primitives elsewhere"
    },
    samples=_samples(True),
    doc="window_put(g, at, *, size, kernel, step, dilation, lo): each element added where window_pick would read.",
)
