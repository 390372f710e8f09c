"""Library calls that go through elements in order: running extremes, running log-sums, places in sorted rows, scattered
reductions. No kernel spells them; they stand alone between kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import int64
from flame.errors import PositionError
from flame.ops.declare import draw, draws, is_narrow, quiet, widened
from flame.ops.elementwise import div, exp, mul, sub
from flame.ops.index import gather, scatter_add
from flame.ops.logic import cast, eq, where
from flame.ops.movement import flip, pad, slice
from flame.ops.opaque import cumsum
from flame.ops.reduce import amax
from flame.primitive import Primitive, Spec, register

_SCAN = {"lower": "a scan runs in order along its dimension: computed by the library"}
Samples = Callable[[], Iterator[tuple[tuple, dict]]]


def _is_dim(name: str, x: Spec, dim: int) -> None:
    if not 0 <= dim < x.ndim:
        raise IndexError(f"{name}: Dimension out of range (expected to be in range of [0, {x.ndim - 1}], but got {dim})")


def _rows(name: str, floats: bool = False) -> Samples:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        for d in dtypes.ALL:
            if d.kind == "f" or not floats:
                for shape, dim in (((3, 5), 1), ((3, 5), 0), ((4,), 0), ((1, 3), 0), ((0, 2), 0), ((2, 3, 4), 1)):
                    yield (draw(r, d, shape, -2, 2),), {"dim": dim}

    return samples


# ------------------------------------------------------------------------------------------------------ running extremes


def _extreme_index(running: np.ufunc, reached: np.ufunc) -> Callable[..., np.ndarray]:
    """Where the running extreme was last reached. A NaN is the extreme from where it stands on."""

    def eager(x: np.ndarray, *, dim: int) -> np.ndarray:
        x = widened(x) if is_narrow(x.dtype) else x
        top = quiet.run(running.accumulate, x, axis=dim)
        at = quiet.run(reached, x, top) | (x != x)
        n = x.shape[dim]
        place = np.arange(n).reshape((n,) + (1,) * (x.ndim - dim - 1))
        return np.ascontiguousarray(np.maximum.accumulate(np.where(at, place, 0), axis=dim), np.int64)

    return eager


def _index_infer(name: str) -> Callable[..., Spec]:
    def infer(x: Spec, *, dim: int) -> Spec:
        _is_dim(name, x, dim)
        return Spec(x.shape, int64)

    return infer


cummax_index: Primitive = register(
    "cummax_index",
    kind="opaque",
    infer=_index_infer("cummax"),
    eager=_extreme_index(np.maximum, np.greater_equal),
    refused=_SCAN | {"vjp": "indices have no derivative"},
    samples=_rows("cummax"),
    doc="cummax_index(x, *, dim): where the largest element so far was last seen.",
)
cummin_index: Primitive = register(
    "cummin_index",
    kind="opaque",
    infer=_index_infer("cummin"),
    eager=_extreme_index(np.minimum, np.less_equal),
    refused=_SCAN | {"vjp": "indices have no derivative"},
    samples=_rows("cummin"),
    doc="cummin_index(x, *, dim): where the smallest element so far was last seen.",
)

# ---------------------------------------------------------------------------------------------------- running log-sums


def _logcumsumexp_infer(x: Spec, *, dim: int) -> Spec:
    _is_dim("logcumsumexp", x, dim)
    if x.dtype.kind != "f":
        raise NotImplementedError(f'"logcumsumexp" not implemented for {x.dtype}: it takes floating-point tensors')
    return x


def _logcumsumexp_eager(x: np.ndarray, *, dim: int) -> np.ndarray:
    y = quiet.run(np.logaddexp.accumulate, widened(x) if is_narrow(x.dtype) else x, axis=dim)
    return np.asarray(quiet.run(y.astype, x.dtype), order="C")


def _logcumsumexp_vjp(g: Any, y: Any, x: Any, *, dim: int) -> Any:
    """exp(x_i) times the sum of g_j exp(-y_j) over the later j; both shifted by the largest x."""
    if 0 in x.shape:
        return g
    top = amax(x, dim=(dim,), keepdim=True)
    top = where(eq(top, -np.inf), 0.0, top)
    weighted = mul(g, where(eq(y, -np.inf), 0.0, exp(sub(top, y))))
    return mul(exp(sub(x, top)), flip(cumsum(flip(weighted, dims=(dim,)), dim=dim), dims=(dim,)))


logcumsumexp: Primitive = register(
    "logcumsumexp",
    kind="opaque",
    infer=_logcumsumexp_infer,
    eager=_logcumsumexp_eager,
    vjp=(_logcumsumexp_vjp,),
    refused=_SCAN,
    samples=_rows("logcumsumexp", floats=True),
    doc="logcumsumexp(x, *, dim): log of the running sum of exponentials.",
)

# ----------------------------------------------------------------------------------------------- places in sorted rows


def _searchsorted_infer(rows: Spec, x: Spec, *, right: bool) -> Spec:
    if rows.dtype is not x.dtype:
        raise RuntimeError(
            f"searchsorted(): boundary tensor should have same dtype as input value tensor, but got boundary tensor of "
            f"{rows.dtype} and input tensor of {x.dtype}"
        )
    if rows.ndim != 1 and rows.shape[:-1] != x.shape[:-1]:
        raise RuntimeError(
            f"searchsorted(): boundaries tensor should be 1 dimension or the first N-1 dimensions of boundaries tensor and input "
            f"value tensor must match, but we got boundaries tensor {list(rows.shape)} and input value tensor {list(x.shape)}"
        )
    return Spec(x.shape, int64)


def _searchsorted_eager(rows: np.ndarray, x: np.ndarray, *, right: bool) -> np.ndarray:
    if is_narrow(rows.dtype):
        rows, x = widened(rows), widened(x)
    side: Any = "right" if right else "left"
    if rows.ndim == 1:
        return np.asarray(np.searchsorted(rows, x, side), np.int64, order="C")
    out = np.zeros(x.shape, np.int64)
    for at in np.ndindex(*rows.shape[:-1]):
        out[at] = np.searchsorted(rows[at], x[at], side)
    return out


def _searchsorted_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("searchsorted")
    for d in dtypes.ALL:
        for rows, x in (((5,), (2, 3)), ((2, 6), (2, 4)), ((0,), (3,)), ((2, 3), (2, 0)), ((4,), ())):
            a = draw(r, d, rows, -2, 2)
            for right in (False, True):
                yield (np.sort(a.astype(np.float64)).astype(d.numpy), draw(r, d, x, -2, 2)), {"right": right}


searchsorted: Primitive = register(
    "searchsorted",
    kind="opaque",
    infer=_searchsorted_infer,
    eager=_searchsorted_eager,
    refused={"lower": "a binary search takes steps that depend on values: computed by the library", "vjp": "indices have none"},
    samples=_searchsorted_samples,
    doc="searchsorted(rows, x, *, right): how many elements of the sorted last dimension lie before each of x.",
)

# -------------------------------------------------------------------------------------------------- scattered reductions

_AT: dict[str, Any] = {"prod": np.multiply.at, "amax": np.maximum.at, "amin": np.minimum.at}


def _reduce_infer(x: Spec, index: Spec, src: Spec, *, dim: int, reduce: str) -> Spec:
    if reduce not in _AT:
        raise RuntimeError(f"reduce argument must be either sum, prod, mean, amax or amin, got {reduce}.")
    return scatter_add.infer(x, index, src, dim=dim)


def _reduce_eager(x: np.ndarray, index: np.ndarray, src: np.ndarray, *, dim: int, reduce: str) -> np.ndarray:
    n = x.shape[dim]
    if index.size and (index.min() < 0 or index.max() >= n):
        bad = next(int(i) for i in index.flat if not 0 <= i < n)
        raise PositionError(f"index {bad} is out of bounds for dimension {dim} with size {n}")
    at = tuple(index if d == dim else i for d, i in enumerate(np.ogrid[_spans(index.shape)]))
    part = src[_spans(index.shape)]
    narrow = is_narrow(x.dtype)
    out = widened(x) if narrow else np.array(x, order="C")
    quiet.run(_AT[reduce], out, at, widened(part) if narrow else part)
    return np.asarray(quiet.run(out.astype, x.dtype), order="C") if narrow else out


def _spans(shape: tuple[int, ...]) -> tuple:
    return tuple(np.s_[:n] for n in shape)


def _shown(src: Any, index: Any) -> Any:
    """The part of src that index names."""
    if src.shape == index.shape:
        return src
    return slice(src, starts=(0,) * len(index.shape), stops=tuple(index.shape), steps=(1,) * len(index.shape))


def _whole(g: Any, _src: Any) -> Any:
    """A cotangent of that part as one of src."""
    rest = tuple(n - m for n, m in zip(_src.shape, g.shape, strict=True))
    return pad(g, lo=(0,) * len(rest), hi=rest, value=0) if any(rest) else g


def _counted(x: Any, of_x: Any, index: Any, of_src: Any, dim: int) -> Any:
    """How many of an element and of what is scattered onto it hold true, in x's dtype."""
    return scatter_add(cast(of_x, dtype=x.dtype), index, cast(of_src, dtype=x.dtype), dim=dim)


def _nonzero_product(x: Any, index: Any, src: Any, dim: int) -> tuple[Any, Any]:
    """The product of the factors that are not 0, and the number of those that are."""
    zero_x, zero_src = eq(x, 0.0), eq(src, 0.0)
    rest = scatter_reduce(where(zero_x, 1.0, x), index, where(zero_src, 1.0, src), dim=dim, reduce="prod")
    return rest, _counted(x, zero_x, index, zero_src, dim)


def _others(v: Any, rest: Any, zeros: Any) -> Any:
    """The product of the other factors than v."""
    zero = eq(v, 0.0)
    alone = where(eq(zeros, 1.0), rest, 0.0)
    return where(zero, alone, where(eq(zeros, 0.0), div(rest, where(zero, 1.0, v)), 0.0))


def _reduce_x(g: Any, y: Any, x: Any, index: Any, src: Any, *, dim: int, reduce: str) -> Any:
    src = _shown(src, index)
    if reduce == "prod":
        return mul(g, _others(x, *_nonzero_product(x, index, src, dim)))
    here = eq(x, y)
    return where(here, div(g, _counted(x, here, index, eq(src, gather(y, index, dim=dim)), dim)), 0.0)


def _reduce_src(g: Any, y: Any, x: Any, index: Any, src: Any, *, dim: int, reduce: str) -> Any:
    part = _shown(src, index)
    if reduce == "prod":
        rest, zeros = _nonzero_product(x, index, part, dim)
        others = _others(part, gather(rest, index, dim=dim), gather(zeros, index, dim=dim))
        return _whole(mul(gather(g, index, dim=dim), others), src)
    there = eq(part, gather(y, index, dim=dim))
    count = _counted(x, eq(x, y), index, there, dim)
    count = where(eq(count, 0.0), 1.0, count)
    return _whole(where(there, gather(div(g, count), index, dim=dim), 0.0), src)


def _reduce_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("scatter_reduce")
    for d in dtypes.ALL:
        if d.kind != "b":
            for shape, at, dim in (((4, 5), (3, 5), 0), ((4, 5), (2, 7), 1), ((6,), (3,), 0), ((3, 4), (0, 4), 0)):
                index = r.integers(0, shape[dim], at)
                for reduce in _AT:
                    src = draw(r, d, tuple(n + 1 for n in at), 0.2, 3)
                    yield (draw(r, d, shape, 0.2, 3), index, src), {"dim": dim, "reduce": reduce}


scatter_reduce: Primitive = register(
    "scatter_reduce",
    kind="opaque",
    infer=_reduce_infer,
    eager=_reduce_eager,
    vjp=(_reduce_x, None, _reduce_src),
    refused={"lower": "several positions may name one element, so that writes would race: computed by the library"},
    samples=_reduce_samples,
    doc="scatter_reduce(x, index, src, *, dim, reduce): x multiplied by, or the extreme of it and, src at `index` along dim.",
)
