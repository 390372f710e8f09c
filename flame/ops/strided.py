"""Views by strides: the diagonal of two dimensions, any strided window of a vector, and how each is written.

`as_strided` reads a vector, so that its strides and its offset count elements of it; whoever calls flattens. Parameters are
canonical: dimensions non-negative and in order, sizes and strides of equal length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided as numpy_strided

from flame import dtypes
from flame.dtypes import int64
from flame.ops.access import At, Choice, Cond, E, Index, Read
from flame.ops.create import full, iota
from flame.ops.declare import draw, draws
from flame.ops.elementwise import add, mul
from flame.ops.index import index_add
from flame.ops.movement import reshape
from flame.primitive import Primitive, Spec, register

Ints = tuple[int, ...]


def _nothing(spec: Any) -> Any:
    return full(0, shape=spec.shape, dtype=spec.dtype)


# ------------------------------------------------------------------------------------------------------------ diagonals


def diagonal_length(h: int, w: int, offset: int) -> int:
    """How many elements of an h by w matrix have column - row == offset."""
    return max(0, min(h, w - offset) if offset >= 0 else min(h + offset, w))


def _diagonal_infer(x: Spec, *, offset: int, dim1: int, dim2: int) -> Spec:
    if dim1 == dim2 or not (0 <= dim1 < x.ndim and 0 <= dim2 < x.ndim):
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}, and must be dimensions of {x}")
    rest = tuple(n for d, n in enumerate(x.shape) if d not in (dim1, dim2))
    return Spec((*rest, diagonal_length(x.shape[dim1], x.shape[dim2], offset)), x.dtype)


def _diagonal_eager(x: np.ndarray, *, offset: int, dim1: int, dim2: int) -> np.ndarray:
    rest = [d for d in range(x.ndim) if d not in (dim1, dim2)]
    n = diagonal_length(x.shape[dim1], x.shape[dim2], offset)
    shape = (*(x.shape[d] for d in rest), n)
    if not n:
        return x[(slice(None, 0),) * x.ndim].reshape(shape) if 0 not in shape[:-1] else np.empty(shape, x.dtype)
    start = [slice(None)] * x.ndim
    start[dim1], start[dim2] = slice(max(-offset, 0), None), slice(max(offset, 0), None)
    y = x[tuple(start)]
    return numpy_strided(y, shape, (*(x.strides[d] for d in rest), x.strides[dim1] + x.strides[dim2]))


def _diagonal_lower(at: At, index: Index, x: Spec, *, offset: int, dim1: int, dim2: int) -> Read:
    rest = iter(index[:-1])
    i = index[-1]
    place = {dim1: i + max(-offset, 0), dim2: i + max(offset, 0)}
    return Read((Choice(0, tuple(place[d] if d in place else next(rest) for d in range(x.ndim))),))


def _diagonal_scatter_infer(x: Spec, v: Spec, *, offset: int, dim1: int, dim2: int) -> Spec:
    want = _diagonal_infer(x, offset=offset, dim1=dim1, dim2=dim2)
    if v != want:
        raise RuntimeError(f"diagonal_scatter: expected src to be {want}, as the diagonal is, but got {v}")
    return x


def _diagonal_scatter_eager(x: np.ndarray, v: np.ndarray, *, offset: int, dim1: int, dim2: int) -> np.ndarray:
    out = np.array(x, order="C")
    if v.size:
        _diagonal_eager(out, offset=offset, dim1=dim1, dim2=dim2)[...] = v
    return out


def _diagonal_scatter_lower(at: At, index: Index, x: Spec, v: Spec, *, offset: int, dim1: int, dim2: int) -> Read:
    i, j = index[dim1], index[dim2]
    rest = tuple(e for d, e in enumerate(index) if d not in (dim1, dim2))
    k = i - max(-offset, 0)
    conds = [Cond(j - i - offset, "eq")]
    if offset < 0:
        conds.append(Cond(k))
    conds.append(Cond(v.shape[-1] - 1 - k))
    return Read((Choice(1, (*rest, k), tuple(conds)), Choice(0, index)))


_diagonal_cases: tuple[tuple[Ints, dict], ...] = (
    ((4, 4), {"offset": 0, "dim1": 0, "dim2": 1}),
    ((3, 5), {"offset": 1, "dim1": 0, "dim2": 1}),
    ((5, 3), {"offset": -2, "dim1": 0, "dim2": 1}),
    ((2, 3, 4), {"offset": 0, "dim1": 1, "dim2": 2}),
    ((3, 2, 4), {"offset": -1, "dim1": 2, "dim2": 0}),
    ((2, 2), {"offset": 3, "dim1": 0, "dim2": 1}),
    ((0, 3), {"offset": 0, "dim1": 0, "dim2": 1}),
)


def _diagonal_samples(writes: bool) -> Any:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(f"diagonal {writes}")
        for d in dtypes.ALL:
            for shape, params in _diagonal_cases:
                v = _diagonal_infer(Spec(shape, d), **params)
                yield (draw(r, d, shape),) + ((draw(r, d, v.shape),) if writes else ()), params

    return samples


diagonal: Primitive = register(
    "diagonal",
    kind="movement",
    view=True,
    infer=_diagonal_infer,
    eager=_diagonal_eager,
    vjp=(lambda g, _y, _x, **where: diagonal_scatter(_nothing(_x), g, **where),),
    lower=_diagonal_lower,
    samples=_diagonal_samples(False),
    doc="diagonal(x, *, offset, dim1, dim2): where the index of dim2 is that of dim1 plus offset, as a last dimension.",
)
diagonal_scatter: Primitive = register(
    "diagonal_scatter",
    kind="movement",
    infer=_diagonal_scatter_infer,
    eager=_diagonal_scatter_eager,
    vjp=(
        lambda g, _y, _x, _v, **where: diagonal_scatter(g, _nothing(_v), **where),
        lambda g, _y, _x, _v, **where: diagonal(g, **where),
    ),
    lower=_diagonal_scatter_lower,
    samples=_diagonal_samples(True),
    doc="diagonal_scatter(x, v, *, offset, dim1, dim2): x with its diagonal replaced by v.",
)

# ------------------------------------------------------------------------------------------------- any strides, of a vector


def _strided_infer(x: Spec, *, size: Ints, stride: Ints, offset: int) -> Spec:
    if x.ndim != 1 or len(size) != len(stride) or any(n < 0 for n in (*size, *stride, offset)):
        raise RuntimeError(
            f"as_strided: expected sizes, strides and an offset that are not negative, but got {size}, {stride}, {offset}"
        )
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and last >= x.shape[0]:
        raise RuntimeError(
            f"setStorage: sizes {list(size)}, strides {list(stride)}, storage offset {offset}, requiring a storage of {last + 1} "
            f"elements, are out of bounds for a storage of {x.shape[0]} elements"
        )
    return Spec(size, x.dtype)


def _strided_eager(x: np.ndarray, *, size: Ints, stride: Ints, offset: int) -> np.ndarray:
    _strided_infer(Spec(x.shape, dtypes.from_numpy_dtype(x.dtype)), size=size, stride=stride, offset=offset)
    if 0 in size:
        return x[:0].reshape(size)
    return numpy_strided(x[offset:], size, tuple(s * x.strides[0] for s in stride))


def places(size: Ints, stride: Ints, offset: int) -> Any:
    """The position in the vector of each element, as an int64 array of shape `size`."""
    at: Any = full(offset, shape=size, dtype=int64)
    for d, (n, s) in enumerate(zip(size, stride, strict=True)):
        step = mul(reshape(iota(size=n, dtype=int64), shape=(n,) + (1,) * (len(size) - d - 1)), s)
        at = add(at, step)
    return at


def _strided_vjp(g: Any, _y: Any, _x: Any, *, size: Ints, stride: Ints, offset: int) -> Any:
    return index_add(_nothing(_x), places(size, stride, offset), g, dim=0)


def _strided_lower(at: At, index: Index, x: Spec, *, size: Ints, stride: Ints, offset: int) -> Read:
    e: E = offset
    for i, s in zip(index, stride, strict=True):
        e = i * s + e
    return Read((Choice(0, (e,)),))


def shows_an_element_twice(size: Ints, stride: Ints) -> bool:
    """Whether two places of such a view may be one element of memory. (It may say so of strides that interleave.)"""
    extent = 0
    for s, n in sorted((s, n) for s, n in zip(stride, size, strict=True) if n > 1):
        if s <= extent:
            return True
        extent += s * (n - 1)
    return False


def _strided_scatter_infer(x: Spec, v: Spec, *, size: Ints, stride: Ints, offset: int) -> Spec:
    want = _strided_infer(x, size=size, stride=stride, offset=offset)
    if v != want:
        raise RuntimeError(f"as_strided_scatter: expected src to be {want}, but got {v}")
    return x


def _strided_scatter_eager(x: np.ndarray, v: np.ndarray, *, size: Ints, stride: Ints, offset: int) -> np.ndarray:
    out = np.array(x, order="C")
    _strided_eager(out, size=size, stride=stride, offset=offset)[...] = v
    return out


_strided_cases: tuple[tuple[Ints, dict], ...] = (
    ((12,), {"size": (3, 2), "stride": (4, 1), "offset": 1}),
    ((12,), {"size": (2, 2, 2), "stride": (1, 2, 5), "offset": 0}),
    ((5,), {"size": (), "stride": (), "offset": 3}),
    ((6,), {"size": (0, 3), "stride": (1, 1), "offset": 0}),
)
_overlapping: tuple[tuple[Ints, dict], ...] = (((7,), {"size": (5, 3), "stride": (1, 1), "offset": 0}),)


def _strided_samples(writes: bool) -> Any:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(f"as_strided {writes}")
        for d in dtypes.ALL:
            for shape, params in _strided_cases if writes else _strided_cases + _overlapping:
                yield (draw(r, d, shape),) + ((draw(r, d, params["size"]),) if writes else ()), params

    return samples


as_strided: Primitive = register(
    "as_strided",
    kind="movement",
    view=True,
    infer=_strided_infer,
    eager=_strided_eager,
    vjp=(_strided_vjp,),
    lower=_strided_lower,
    samples=_strided_samples(False),
    doc="as_strided(x, *, size, stride, offset): elements of a vector at offset + the sum of index times stride.",
)
as_strided_scatter: Primitive = register(
    "as_strided_scatter",
    kind="opaque",
    infer=_strided_scatter_infer,
    eager=_strided_scatter_eager,
    vjp=(
        lambda g, _y, _x, _v, **where: as_strided_scatter(g, _nothing(_v), **where),
        lambda g, _y, _x, _v, **where: as_strided(g, **where),
    ),
    refused={"lower": "which element of src lands at a place follows from no division of its index: computed by the library"},
    samples=_strided_samples(True),
    doc="as_strided_scatter(x, v, *, size, stride, offset): a vector with v written where as_strided would read.",
)
