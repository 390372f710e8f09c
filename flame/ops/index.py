"""Reading and writing at positions that are data: gather, index_select, index_nd, and their writing counterparts.

Positions are integer tensors. gather, scatter and scatter_add refuse negative ones, as PyTorch does; the others count them
from the end. Positions out of range raise IndexError when eager. The reads are index changes that a kernel can make; the
writes may meet at one element, and are library calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.errors import PositionError
from flame.ops.access import At, Choice, Index, Read
from flame.ops.create import full
from flame.ops.declare import INTEGER, draw, draws, is_narrow, quiet, widened
from flame.ops.movement import pad
from flame.primitive import Primitive, Spec, broadcast_shapes, register

Ints = tuple[int, ...]
_WRITES_MEET = {"lower": "several positions may name one element, so that writes would race: computed by the library"}


def _is_index(name: str, index: Any) -> None:
    if not isinstance(index, Spec) or index.dtype.kind not in INTEGER:
        raise RuntimeError(f"{name}(): Expected dtype int64 or int32 for index, but got {index}")


def _same(name: str, a: Spec, b: Spec) -> None:
    if a.dtype is not b.dtype:
        raise RuntimeError(f"{name}(): Expected self.dtype to be equal to src.dtype, but got {a.dtype} and {b.dtype}")


def _is_dim(name: str, x: Spec, dim: int) -> None:
    if not 0 <= dim < x.ndim:
        raise IndexError(f"{name}: Dimension out of range (expected to be in range of [0, {x.ndim - 1}], but got {dim})")


def _check(index: np.ndarray, size: int, dim: int, least: int = 0) -> None:
    """Raise IndexError for a position outside [least, size)."""
    if index.size and (index.min() < least or index.max() >= size):
        bad = next(int(i) for i in index.flat if not least <= i < size)
        raise PositionError(f"index {bad} is out of bounds for dimension {dim} with size {size}")


def _along(from_end: bool) -> Any:
    """Where positions along one dimension must lie; `from_end`: negative ones count from the end."""

    def positions(x: Spec, index: Spec, *_src: Any, dim: int) -> tuple:
        n = x.shape[dim]
        return ((1, dim, n, -n if from_end else 0),)

    return positions


def _across(first: int) -> Any:
    """The same for several index operands, from operand `first` on."""

    def positions(x: Spec, *operands: Any, dims: Ints, accumulate: bool = False) -> tuple:
        return tuple((first + k, d, x.shape[d], -x.shape[d]) for k, d in enumerate(dims))

    return positions


def _nothing(spec: Any) -> Any:
    return full(0, shape=spec.shape, dtype=spec.dtype)


def _added(out: np.ndarray, where: Any, v: Any) -> np.ndarray:
    """`out` with v added at positions that may repeat; narrow floats are added up in float32."""
    if is_narrow(out.dtype):
        wide = widened(out)
        quiet.run(np.add.at, wide, where, widened(v))
        return quiet.run(wide.astype, out.dtype)
    quiet.run(np.add.at, out, where, v)
    return out


# ---------------------------------------------------------------------------- gather and scatter: one position an element


def _fits(name: str, x: Spec, index: Spec, dim: int, what: str) -> None:
    if index.ndim != x.ndim:
        raise RuntimeError(
            f"{name}(): Index tensor must have the same number of dimensions as {what} tensor: {index.ndim} and {x.ndim}"
        )
    if any(a > b for d, (a, b) in enumerate(zip(index.shape, x.shape, strict=True)) if d != dim):
        raise RuntimeError(
            f"{name}(): Size does not match: expected index {list(index.shape)} to be no larger than {what} {list(x.shape)} "
            f"apart from dimension {dim}"
        )


def _gather_infer(x: Spec, index: Spec, *, dim: int) -> Spec:
    _is_index("gather", index)
    _is_dim("gather", x, dim)
    _fits("gather", x, index, dim, "input")
    return Spec(index.shape, x.dtype)


def _grid(index: np.ndarray, dim: int) -> Any:
    """The full positions that `index` stands for: itself along `dim`, its own place along the others."""
    return tuple(index if d == dim else i for d, i in enumerate(np.ogrid[tuple(map(slice, index.shape))]))


def _gather_eager(x: np.ndarray, index: np.ndarray, *, dim: int) -> np.ndarray:
    _check(index, x.shape[dim], dim)
    return np.asarray(x[_grid(index, dim)], order="C")


def _gather_lower(at: At, index: Index, x: Spec, i: Spec, *, dim: int) -> Read:
    along = at.load_index(1, index, x.shape[dim])
    return Read((Choice(0, index[:dim] + (along,) + index[dim + 1 :]),))


def _scatter_infer(name: str) -> Any:
    def infer(x: Spec, index: Spec, src: Spec, *, dim: int) -> Spec:
        _is_index(name, index)
        _is_dim(name, x, dim)
        _same(name, x, src)
        _fits(name, x, index, dim, "self")
        _fits(name, src, index, -1, "src")
        return x

    return infer


def _part(src: np.ndarray, index: np.ndarray) -> np.ndarray:
    return src if src.shape == index.shape else src[tuple(map(slice, index.shape))]


def _scatter_eager(x: np.ndarray, index: np.ndarray, src: np.ndarray, *, dim: int) -> np.ndarray:
    _check(index, x.shape[dim], dim)
    out = np.array(x, order="C")
    out[_grid(index, dim)] = _part(src, index)
    return out


def _scatter_add_eager(x: np.ndarray, index: np.ndarray, src: np.ndarray, *, dim: int) -> np.ndarray:
    _check(index, x.shape[dim], dim)
    return _added(np.array(x, order="C"), _grid(index, dim), _part(src, index))


def _src_vjp(g: Any, _y: Any, _x: Any, index: Any, _src: Any, *, dim: int) -> Any:
    back = gather(g, index, dim=dim)
    rest = tuple(n - m for n, m in zip(_src.shape, index.shape, strict=True))
    return pad(back, lo=(0,) * len(rest), hi=rest, value=0) if max(rest) else back


_cases: tuple[tuple[Ints, Ints, int], ...] = (
    ((4, 5), (3, 5), 0),
    ((4, 5), (4, 2), 1),
    ((4, 5), (2, 7), 1),
    ((6,), (3,), 0),
    ((3, 2, 4), (2, 2, 3), 2),
    ((3, 4), (0, 4), 0),
)


def _gather_samples(name: str, writes: bool) -> Any:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        for d in dtypes.ALL:
            for shape, at, dim in _cases:
                index = r.integers(0, shape[dim], at)
                if name == "scatter":  # where positions repeat, which write stays is not defined
                    index = np.argsort(r.random((*at[:dim], shape[dim], *at[dim + 1 :])), axis=dim)
                    index = index[(slice(None),) * dim + (slice(0, at[dim]),)]
                operands = (draw(r, d, shape), index) + ((draw(r, d, tuple(n + 1 for n in index.shape)),) if writes else ())
                yield operands, {"dim": dim}
            index = np.argsort(r.random((3, 3)), axis=0).astype(np.int32)
            yield (draw(r, d, (3, 3)), index) + ((draw(r, d, (3, 3)),) if writes else ()), {"dim": 0}

    return samples


gather: Primitive = register(
    "gather",
    kind="index",
    positions=_along(False),
    infer=_gather_infer,
    eager=_gather_eager,
    vjp=(lambda g, _y, _x, index, *, dim: scatter_add(_nothing(_x), index, g, dim=dim), None),
    lower=_gather_lower,
    samples=_gather_samples("gather", False),
    doc="gather(x, index, *, dim): x at `index` along dim and at the same place along the others.",
)
scatter: Primitive = register(
    "scatter",
    kind="index",
    positions=_along(False),
    infer=_scatter_infer("scatter"),
    eager=_scatter_eager,
    vjp=(lambda g, _y, _x, index, _src, *, dim: scatter(g, index, _nothing(_src), dim=dim), None, _src_vjp),
    refused=_WRITES_MEET,
    samples=_gather_samples("scatter", True),
    doc="scatter(x, index, src, *, dim): x with src written at `index` along dim.",
)
scatter_add: Primitive = register(
    "scatter_add",
    kind="index",
    positions=_along(False),
    infer=_scatter_infer("scatter_add"),
    eager=_scatter_add_eager,
    vjp=(lambda g, _y, _x, _index, _src, *, dim: g, None, _src_vjp),
    refused=_WRITES_MEET,
    samples=_gather_samples("scatter_add", True),
    doc="scatter_add(x, index, src, *, dim): x with src added at `index` along dim.",
)

# ------------------------------------------------------------------- index_select and index_add: one position a whole slice


def _select_infer(x: Spec, index: Spec, *, dim: int) -> Spec:
    _is_index("index_select", index)
    _is_dim("index_select", x, dim)
    return Spec(x.shape[:dim] + index.shape + x.shape[dim + 1 :], x.dtype)


def _select_eager(x: np.ndarray, index: np.ndarray, *, dim: int) -> np.ndarray:
    _check(index, x.shape[dim], dim, -x.shape[dim])
    return np.asarray(x.take(index, axis=dim), order="C")


def _select_lower(at: At, index: Index, x: Spec, i: Spec, *, dim: int) -> Read:
    along = at.load_index(1, index[dim : dim + i.ndim], x.shape[dim])
    return Read((Choice(0, index[:dim] + (along,) + index[dim + i.ndim :]),))


def _add_infer(x: Spec, index: Spec, src: Spec, *, dim: int) -> Spec:
    want = _select_infer(x, index, dim=dim)
    _same("index_add", x, src)
    if src.shape != want.shape:
        raise RuntimeError(f"index_add(): expected src to have shape {list(want.shape)}, but got {list(src.shape)}")
    return x


def _add_eager(x: np.ndarray, index: np.ndarray, src: np.ndarray, *, dim: int) -> np.ndarray:
    """Slices sorted by position and added up run by run: much faster than `np.add.at` on rows."""
    n = x.shape[dim]
    _check(index, n, dim, -n)
    out = np.array(x, order="C")
    if not src.size:
        return out
    flat = index.reshape(-1)
    flat = np.where(flat < 0, flat + n, flat)
    order = np.argsort(flat, kind="stable")
    flat = flat[order]
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    rows = src.reshape(x.shape[:dim] + (flat.size,) + x.shape[dim + 1 :]).take(order, axis=dim)
    narrow = is_narrow(x.dtype)
    rows = widened(rows) if narrow else rows
    sums = quiet.run(np.add.reduceat, rows, starts, axis=dim)
    where = (slice(None),) * dim + (flat[starts],)
    if narrow:
        out[where] = quiet.run((widened(out[where]) + sums).astype, x.dtype)
    else:
        out[where] = quiet.run(np.add, out[where], sums)
    return out


def _select_samples(writes: bool) -> Any:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(f"index_select {writes}")
        for d in dtypes.ALL:
            for shape, at, dim in (
                ((5, 3), (7,), 0),
                ((5, 3), (2, 4), 0),
                ((2, 4, 3), (5,), 1),
                ((4,), (), 0),
                ((3, 2), (0,), 1),
            ):
                index = np.asarray(r.integers(-shape[dim], shape[dim], at))
                src = shape[:dim] + at + shape[dim + 1 :]
                yield (draw(r, d, shape), index) + ((draw(r, d, src),) if writes else ()), {"dim": dim}
            yield (draw(r, d, (3, 2)), np.asarray([2, 0, 2], np.int32)) + ((draw(r, d, (3, 2)),) if writes else ()), {"dim": 0}

    return samples


index_select: Primitive = register(
    "index_select",
    kind="index",
    positions=_along(True),
    infer=_select_infer,
    eager=_select_eager,
    vjp=(lambda g, _y, _x, index, *, dim: index_add(_nothing(_x), index, g, dim=dim), None),
    lower=_select_lower,
    samples=_select_samples(False),
    doc="index_select(x, index, *, dim): dim is replaced by the dimensions of `index`, each holding the slice named there.",
)
index_add: Primitive = register(
    "index_add",
    kind="index",
    positions=_along(True),
    infer=_add_infer,
    eager=_add_eager,
    vjp=(
        lambda g, _y, _x, _index, _src, *, dim: g,
        None,
        lambda g, _y, _x, index, _src, *, dim: index_select(g, index, dim=dim),
    ),
    refused=_WRITES_MEET,
    samples=_select_samples(True),
    doc="index_add(x, index, src, *, dim): x with the slices of src added where `index` says.",
)

# ---------------------------------------------------------------------- index_nd and index_put: several dimensions at once


def _nd_shape(name: str, x: Spec, indices: tuple[Spec, ...], dims: Ints) -> tuple[Ints, int]:
    """The result's shape, and the first of its dimensions that comes from the indices (NumPy's rule)."""
    if not indices or len(indices) != len(dims) or list(dims) != sorted(set(dims)):
        raise IndexError(f"{name}: expected an index for each of the dimensions {dims} in order, but got {len(indices)}")
    for i, d in zip(indices, dims, strict=True):
        _is_index(name, i)
        _is_dim(name, x, d)
    try:
        broadcast = broadcast_shapes(*(i.shape for i in indices))
    except RuntimeError as e:
        shapes = ", ".join(str(list(i.shape)) for i in indices)
        raise IndexError(f"shape mismatch: indexing tensors could not be broadcast together with shapes {shapes}") from e
    adjacent = dims[-1] - dims[0] == len(dims) - 1
    rest = tuple(n for d, n in enumerate(x.shape) if d not in dims)
    start = dims[0] if adjacent else 0
    return rest[:start] + broadcast + rest[start:], start


def _nd_infer(x: Spec, *indices: Spec, dims: Ints) -> Spec:
    return Spec(_nd_shape("index", x, indices, dims)[0], x.dtype)


def _nd_where(x: np.ndarray, indices: tuple[np.ndarray, ...], dims: Ints) -> Any:
    where: list[Any] = [slice(None)] * x.ndim
    for i, d in zip(indices, dims, strict=True):
        _check(i, x.shape[d], d, -x.shape[d])
        where[d] = i
    return tuple(where)


def _nd_eager(x: np.ndarray, *indices: np.ndarray, dims: Ints) -> np.ndarray:
    if len(dims) == 1 and indices[0].ndim:  # one index: in a third of the time
        try:
            return x.take(indices[0], dims[0])
        except IndexError:  # it says which one
            pass
    return np.asarray(x[_nd_where(x, indices, dims)], order="C")


def _nd_lower(at: At, index: Index, x: Spec, *indices: Spec, dims: Ints) -> Read:
    _, start = _nd_shape("index", x, indices, dims)
    rank = max(i.ndim for i in indices)
    inner, rest = index[start : start + rank], iter(index[:start] + index[start + rank :])
    out = []
    for d in range(x.ndim):
        if d in dims:
            k = dims.index(d)
            s = indices[k].shape
            place = tuple(0 if n == 1 else e for n, e in zip(s, inner[rank - len(s) :], strict=True))
            out.append(at.load_index(k + 1, place, x.shape[d]))
        else:
            out.append(next(rest))
    return Read((Choice(0, tuple(out)),))


def _put_infer(x: Spec, v: Spec, *indices: Spec, dims: Ints, accumulate: bool) -> Spec:
    shape, _ = _nd_shape("index_put", x, indices, dims)
    _same("index_put", x, v)
    if broadcast_shapes(shape, v.shape, op="index_put") != shape:
        raise RuntimeError(
            f"shape mismatch: value tensor of shape {list(v.shape)} cannot be broadcast to indexing result of shape "
            f"{list(shape)}"
        )
    return x


def _put_eager(x: np.ndarray, v: np.ndarray, *indices: np.ndarray, dims: Ints, accumulate: bool) -> np.ndarray:
    where = _nd_where(x, indices, dims)
    out = np.array(x, order="C")
    if accumulate:
        return _added(out, where, v)
    out[where] = v
    return out


def _put_x_vjp(g: Any, _y: Any, _x: Any, _v: Any, *indices: Any, dims: Ints, accumulate: bool) -> Any:
    return g if accumulate else index_put(g, _nothing(_v), *indices, dims=dims, accumulate=False)


_nd_cases: tuple[tuple[Ints, tuple[Ints, ...], Ints], ...] = (
    ((4, 5), ((3,), (3,)), (0, 1)),
    ((4, 5, 6), ((2, 1), (3,)), (0, 1)),
    ((4, 5, 6), ((2,), (2,)), (0, 2)),
    ((3, 4, 2, 5), ((2,), (3, 1)), (1, 3)),
    ((4, 5, 6), ((2,),), (1,)),
    ((4, 5, 6), ((), ()), (1, 2)),
    ((4, 5), ((0,), (0,)), (0, 1)),
)


def _nd_samples(writes: bool) -> Any:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(f"index_nd {writes}")
        for d in dtypes.ALL:
            for shape, at, dims in _nd_cases:
                for accumulate in (True, False) if writes and d.kind != "b" else (False,):
                    indices = tuple(np.asarray(r.integers(-shape[k], shape[k], s)) for k, s in zip(dims, at, strict=True))
                    if writes and not accumulate:  # each place once, or which write stays is not defined
                        indices = tuple(
                            r.permutation(shape[k])[: math.prod(s)].reshape(s) for k, s in zip(dims, at, strict=True)
                        )
                    specs = tuple(Spec(i.shape, dtypes.int64) for i in indices)
                    v = _nd_infer(Spec(shape, d), *specs, dims=dims).shape
                    params = {"dims": dims} | ({"accumulate": accumulate} if writes else {})
                    yield (draw(r, d, shape),) + ((draw(r, d, v),) if writes else ()) + indices, params

    return samples


index_nd: Primitive = register(
    "index_nd",
    kind="index",
    positions=_across(1),
    infer=_nd_infer,
    eager=_nd_eager,
    vjp=(lambda g, _y, _x, *indices, dims: index_put(_nothing(_x), g, *indices, dims=dims, accumulate=True),),
    lower=_nd_lower,
    samples=_nd_samples(False),
    doc="index_nd(x, *indices, dims): x[..., i, j, ...] with broadcasting indices at `dims`, NumPy's rule for where they go.",
)
index_put: Primitive = register(
    "index_put",
    kind="index",
    positions=_across(2),
    infer=_put_infer,
    eager=_put_eager,
    vjp=(
        _put_x_vjp,
        lambda g, _y, _x, _v, *indices, dims, accumulate: index_nd(g, *indices, dims=dims),
    ),
    refused=_WRITES_MEET,
    samples=_nd_samples(True),
    doc="index_put(x, v, *indices, dims, accumulate): x with v written (or added) where index_nd would read.",
)
