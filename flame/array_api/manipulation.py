"""Shapes, joins, selections: the standard's manipulation and indexing functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flame import dtypes
from flame.array_api.data_types import array, of_kind, result_type
from flame.functions import PUBLIC
from flame.functions.promotion import to_dtype
from flame.functions.shape import wrap_dim
from flame.primitive import registered
from flame.tensor import Tensor

COPY, INDEX_SELECT = registered("copy"), registered("index_select")


def _arrays(arrays: Any, op: str) -> list[Tensor]:
    if isinstance(arrays, Tensor) or not isinstance(arrays, Sequence) or not arrays:
        raise ValueError(f"{op}: expected a sequence of at least one array")
    d = result_type(*(array(x, op, "arrays") for x in arrays))
    return [to_dtype(x, d) for x in arrays]


def concat(arrays: Any, /, *, axis: int | None = 0) -> Tensor:
    """The arrays one after the other along an axis; flattened first if that is None."""
    xs = _arrays(arrays, "concat")
    if axis is None:
        return registered("cat")(*(x.reshape(-1) for x in xs), dim=0)
    if any(x.ndim == 0 for x in xs):
        raise ValueError("concat: zero-dimensional arrays can't be joined along an axis: use stack, or axis=None")
    return registered("cat")(*xs, dim=wrap_dim(axis, xs[0].ndim, "concat"))


def stack(arrays: Any, /, *, axis: int = 0) -> Tensor:
    """The arrays, of one shape, along a new axis."""
    return PUBLIC["stack"](_arrays(arrays, "stack"), axis)


def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices along an axis, as a tuple of views."""
    return tuple(PUBLIC["unbind"](array(x, "unstack"), axis))


def expand_dims(x: Tensor, /, axis: int = 0) -> Tensor:
    """With an axis of size 1 at the place `axis` of the result. Raises IndexError where there is no such place."""
    return PUBLIC["unsqueeze"](array(x, "expand_dims"), axis)


def squeeze(x: Tensor, /, axis: int | tuple[int, ...]) -> Tensor:
    """Without these axes. Raises ValueError for one whose size is not 1."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    dims = [wrap_dim(a, array(x, "squeeze").ndim, "squeeze") if x.ndim else _no_axis(a) for a in axes]
    wrong = [d for d in dims if x.shape[d] != 1]
    if wrong:
        raise ValueError(f"squeeze: axis {wrong[0]} of {list(x.shape)} has size {x.shape[wrong[0]]}, not 1")
    return x.reshape(tuple(n for d, n in enumerate(x.shape) if d not in dims))


def _no_axis(a: int) -> int:
    raise IndexError(f"squeeze: a 0-d array has no axis {a}")


def flip(x: Tensor, /, *, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """Elements in reverse order along the axes (None: all)."""
    return PUBLIC["flip"](
        array(x, "flip"), tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    )


def moveaxis(x: Tensor, source: Any, destination: Any, /) -> Tensor:
    return PUBLIC["movedim"](array(x, "moveaxis"), source, destination)


def permute_dims(x: Tensor, /, axes: tuple[int, ...]) -> Tensor:
    """The axes in another order. Raises ValueError where `axes` does not name each once."""
    dims = tuple(a + x.ndim if a < 0 else a for a in axes)
    if sorted(dims) != list(range(array(x, "permute_dims").ndim)):
        raise ValueError(f"permute_dims: axes {axes} do not name each of {x.ndim} axes once")
    return PUBLIC["permute"](x, dims)


def repeat(x: Tensor, repeats: Any, /, *, axis: int | None = None) -> Tensor:
    """Each element (slice, along an axis) that often."""
    r = of_kind(repeats, "iu", "repeat", "repeats") if isinstance(repeats, Tensor) else repeats
    if isinstance(r, Tensor):
        r = to_dtype(r, dtypes.int64)
        if r.ndim == 0 or r.numel() == 1:
            r = int(r.reshape(()))
    return PUBLIC["repeat_interleave"](array(x, "repeat").reshape(-1) if axis is None else x, r, 0 if axis is None else axis)


def tile(x: Tensor, repetitions: tuple[int, ...], /) -> Tensor:
    """Copies beside each other, that many along each axis."""
    return PUBLIC["tile"](array(x, "tile"), tuple(repetitions))


def reshape(x: Tensor, /, shape: tuple[int, ...], *, copy: bool | None = None) -> Tensor:
    """Another shape, one size of which may be -1. copy=True never shares memory, False raises ValueError where it must."""
    y = PUBLIC["reshape"](array(x, "reshape"), tuple(shape))
    if copy:
        return COPY(y) if _shares(x, y) else y
    if copy is False and y.numel() and not _shares(x, y):
        raise ValueError(f"reshape: {list(x.shape)} with strides {x.stride()} does not become {list(y.shape)} without a copy")
    return y


def _shares(x: Tensor, y: Tensor) -> bool:
    return y is x or y._view is not None


def roll(x: Tensor, /, shift: Any, *, axis: Any = None) -> Tensor:
    """Elements moved on by `shift`, those at the end to the beginning; in the flattened array if axis is None."""
    if axis is None:
        return PUBLIC["roll"](array(x, "roll"), shift)
    axes = axis if isinstance(axis, tuple) else (axis,)
    shifts = shift if isinstance(shift, tuple) else (shift,) * len(axes)
    return PUBLIC["roll"](array(x, "roll"), shifts, axes)


def _indices(x: Any, op: str) -> Tensor:
    i = of_kind(x, "iu", op, "indices")
    return to_dtype(i, dtypes.int64)


def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    """The slices that `indices` names along an axis, which may be left out for vectors. Raises IndexError outside."""
    if axis is None and array(x, "take").ndim != 1:
        raise ValueError(f"take: an axis must be given for an array of {x.ndim} dimensions")
    return INDEX_SELECT(x, _indices(indices, "take"), dim=wrap_dim(axis or 0, array(x, "take").ndim, "take"))


def take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int = -1) -> Tensor:
    """The elements that `indices` names along an axis; the other axes broadcast."""
    i = _indices(indices, "take_along_axis")
    if i.ndim != array(x, "take_along_axis").ndim:
        raise ValueError(f"take_along_axis: x has {x.ndim} dimensions, indices {i.ndim}: they must have equally many")
    return PUBLIC["take_along_dim"](x, i, axis)
