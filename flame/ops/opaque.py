"""Primitives that run as library calls: scans and sorts. No kernel spells them; they stand alone between kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype, int64, uint64
from flame.ops.create import full
from flame.ops.declare import draw, draws, is_narrow, quiet, widened
from flame.ops.elementwise import conj, div, mul
from flame.ops.index import scatter_add
from flame.ops.logic import eq, logical_and, where
from flame.ops.movement import flip
from flame.primitive import Primitive, Spec, register

_SCAN = {"lower": "a scan runs in order along its dimension: computed by the library"}
_SORT = {"lower": "sorting is a library call"}


def _is_dim(name: str, x: Spec, dim: int) -> None:
    if not 0 <= dim < x.ndim:
        raise IndexError(f"{name}: Dimension out of range (expected to be in range of [0, {x.ndim - 1}], but got {dim})")


def _samples(name: str, **params: Any) -> Callable[[], Iterator[tuple[tuple, dict]]]:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        for d in dtypes.ALL:
            for shape, dim in (((3, 5), 1), ((3, 5), 0), ((4,), 0), ((1, 3), 0), ((0, 2), 0), ((2, 3, 4), 1)):
                for more in [{"descending": False}, {"descending": True}] if "descending" in params else [{}]:
                    yield (draw(r, d, shape, -2, 2),), {"dim": dim, **more}

    return samples


def _scan_infer(name: str) -> Callable[..., Spec]:
    def infer(x: Spec, *, dim: int) -> Spec:
        _is_dim(name, x, dim)
        return Spec(x.shape, x.dtype if x.dtype.kind in "fc" else int64)

    return infer


def _scan_eager(f: np.ufunc) -> Callable[..., np.ndarray]:
    def eager(x: np.ndarray, *, dim: int) -> np.ndarray:
        if is_narrow(x.dtype):
            return quiet.run(quiet.run(f.accumulate, widened(x), axis=dim).astype, x.dtype, order="C")
        wide = x if x.dtype.kind in "fc" else x.astype(np.int64)
        return np.asarray(quiet.run(f.accumulate, wide, axis=dim), order="C")

    return eager


def _after(g: Any, dim: int) -> Any:
    """The sum of g from each place to the end."""
    return flip(cumsum(flip(g, dims=(dim,)), dim=dim), dims=(dim,))


def _cumprod_vjp(g: Any, y: Any, x: Any, *, dim: int) -> Any:
    """sum over the later results of g * y / x_k; at the first 0 with that factor taken out, behind it nothing."""
    x, y = conj(x), conj(y)
    zero = eq(x, 0.0)
    first = logical_and(zero, eq(cumsum(zero, dim=dim), 1))
    without = cumprod(where(first, 1.0, x), dim=dim)
    at_first = where(first, _after(mul(g, without), dim), 0.0)
    return where(zero, at_first, div(_after(mul(g, y), dim), where(zero, 1.0, x)))


cumsum: Primitive = register(
    "cumsum",
    kind="opaque",
    infer=_scan_infer("cumsum"),
    eager=_scan_eager(np.add),
    vjp=(lambda g, _y, _x, *, dim: _after(g, dim),),
    refused=_SCAN,
    samples=_samples("cumsum"),
    doc="cumsum(x, *, dim): running sums; integers and booleans give int64.",
)
cumprod: Primitive = register(
    "cumprod",
    kind="opaque",
    infer=_scan_infer("cumprod"),
    eager=_scan_eager(np.multiply),
    vjp=(_cumprod_vjp,),
    refused=_SCAN,
    samples=_samples("cumprod"),
    doc="cumprod(x, *, dim): running products; integers and booleans give int64.",
)


def _sort_infer(name: str, gives: dtype | None) -> Callable[..., Spec]:
    def infer(x: Spec, *, dim: int, descending: bool) -> Spec:
        _is_dim(name, x, dim)
        return Spec(x.shape, gives or x.dtype)

    return infer


def _argsort_eager(x: np.ndarray, *, dim: int, descending: bool) -> np.ndarray:
    """Stable both ways: descending sorts the reversed array and counts back."""
    if is_narrow(x.dtype):
        x = widened(x)
    if not descending:
        return np.asarray(np.argsort(x, axis=dim, kind="stable"), np.int64, order="C")
    back = np.flip(np.argsort(np.flip(x, dim), axis=dim, kind="stable"), dim)
    return np.asarray(x.shape[dim] - 1 - back, np.int64, order="C")


def _sort_eager(x: np.ndarray, *, dim: int, descending: bool) -> np.ndarray:
    wide = widened(x) if is_narrow(x.dtype) else x
    out = np.sort(wide, axis=dim, kind="stable")
    return np.array(np.flip(out, dim) if descending else out, x.dtype, order="C")


def _sort_vjp(g: Any, _y: Any, x: Any, *, dim: int, descending: bool) -> Any:
    order = argsort(x, dim=dim, descending=descending)
    return scatter_add(full(0, shape=x.shape, dtype=x.dtype), order, g, dim=dim)


sort: Primitive = register(
    "sort",
    kind="opaque",
    infer=_sort_infer("sort", None),
    eager=_sort_eager,
    vjp=(_sort_vjp,),
    refused=_SORT,
    samples=_samples("sort", descending=True),
    doc="sort(x, *, dim, descending): stable; NaN counts as the largest.",
)
argsort: Primitive = register(
    "argsort",
    kind="opaque",
    infer=_sort_infer("argsort", int64),
    eager=_argsort_eager,
    refused=_SORT | {"vjp": "indices have no derivative"},
    samples=_samples("argsort", descending=True),
    doc="argsort(x, *, dim, descending): the positions that sort x, stable; NaN counts as the largest.",
)


def _bits_infer(x: Spec, *, dims: tuple[int, ...], keepdim: bool) -> Spec:
    return Spec(tuple(1 if i in dims else n for i, n in enumerate(x.shape) if keepdim or i not in dims), uint64)


def _bits_eager(x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
    wide = x.astype(np.float64 if is_narrow(x.dtype) or x.dtype.kind == "f" else np.int64).view(np.uint64)
    reduce: Any = np.bitwise_xor.reduce
    return np.asarray(reduce(wide, axis=dims, keepdims=keepdim), order="C")


def _bits_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("xor_bits")
    for d in dtypes.ALL:
        for shape, dims in (((3, 5), (1,)), ((3, 5), (0, 1)), ((), ()), ((0, 2), (0,))):
            yield (draw(r, d, shape, -2, 2),), {"dims": dims, "keepdim": d.itemsize == 4}


xor_bits: Primitive = register(
    "xor_bits",
    kind="opaque",
    infer=_bits_infer,
    eager=_bits_eager,
    refused={"lower": "bits of 64: computed by the library", "vjp": "bits have no derivative"},
    samples=_bits_samples,
    doc="xor_bits(x, *, dims, keepdim): the exclusive or of the elements' bits, as float64 or int64 has them.",
)
