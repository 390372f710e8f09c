"""Reductions over the dimensions `dim` (sorted, non-negative; all of them for a full reduction), kept as size 1 by `keepdim`.

Sums and products of integers and booleans are int64; float16 and bfloat16 are carried in float32 and rounded once. amax and
amin carry NaN, argmax and argmin take the first of equals and count NaN as the extreme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import bool_, dtype, int64
from flame.ops.access import Reduction
from flame.ops.declare import ANY, BOOL, NUMBER, draw, draws, is_narrow, quiet, widened
from flame.ops.elementwise import conj, div, mul
from flame.ops.logic import cast, eq, where
from flame.ops.movement import expand, reshape
from flame.primitive import Primitive, Spec, register

Dims = tuple[int, ...]


def reduced_shape(shape: tuple[int, ...], dim: Dims, keepdim: bool) -> tuple[int, ...]:
    if keepdim:
        return tuple(1 if d in dim else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in dim)


def spread(g: Any, like: Any, dim: Dims) -> Any:
    """A reduction's result (or its cotangent) brought to the shape that was reduced."""
    shape = like.shape
    if len(dim) == len(shape) and not g.shape:
        return expand(g, shape=shape)
    kept = reduced_shape(shape, dim, True)
    return expand(g if g.shape == kept else reshape(g, shape=kept), shape=shape)


def _integers_grow(d: dtype) -> dtype:
    return d if d.kind in "fc" else int64


def _infer(name: str, takes: str, gives: Callable[[dtype], dtype], *, empty: bool, whole_or_one: bool) -> Callable[..., Spec]:
    def infer(x: Spec, *, dim: Dims, keepdim: bool) -> Spec:
        if x.dtype.kind not in takes and not (x.dtype.kind == "c" and name in ("sum", "prod")):
            hint = ": compare with 0 first" if takes == BOOL else ""
            raise NotImplementedError(f'"{name}" not implemented for {x.dtype}{hint}')
        if list(dim) != sorted(set(dim)) or not set(dim) <= set(range(x.ndim)):
            raise IndexError(f"{name}: dims {list(dim)} are not in order in a tensor of {x.ndim} dimensions")
        if whole_or_one and len(dim) not in (1, x.ndim):
            raise RuntimeError(f"{name}: expected one dimension or all of them, but got {list(dim)} of {x.ndim}")
        at = next((d for d in dim if x.shape[d] == 0), None)
        if not empty and at is not None:
            raise IndexError(f"{name}(): Expected reduction dim {at} to have non-zero size.")
        return Spec(reduced_shape(x.shape, dim, keepdim), gives(x.dtype))

    return infer


def _eager(f: Callable[..., Any], gives: Callable[[dtype], dtype]) -> Callable[..., np.ndarray]:
    def eager(x: np.ndarray, *, dim: Dims, keepdim: bool) -> np.ndarray:
        d = x.dtype
        if d.kind == "f" and d.itemsize > 2:  # (what is summed as it is)
            out = quiet.run(f, x, dim, None, None, keepdim)
            return np.asarray(out, order="C") if type(out) is not np.ndarray or not out.flags.c_contiguous else out
        out_dtype = d if d.kind in "fcV" else gives(dtypes.from_numpy_dtype(d)).numpy
        if is_narrow(d):
            x = widened(x)
        elif d != out_dtype and f in (np.add.reduce, np.multiply.reduce):
            x = x.astype(out_dtype)
        out = quiet.run(f, x, axis=dim, keepdims=keepdim)
        return np.asarray(out).astype(out_dtype, order="C", copy=False)

    return eager


def _arg_eager(f: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def eager(x: np.ndarray, *, dim: Dims, keepdim: bool) -> np.ndarray:
        if is_narrow(x.dtype):
            x = widened(x)
        if len(dim) == 1:
            return np.asarray(f(x, axis=dim[0], keepdims=keepdim))
        return np.asarray(f(x)).reshape(reduced_shape(x.shape, dim, keepdim))

    return eager


def _samples(name: str, takes: str, low: float, high: float, empty: bool, whole_or_one: bool) -> Callable[..., Any]:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        for d in dtypes.ALL:
            if d.kind not in takes:
                continue
            for shape, dim in (((3, 5), (1,)), ((3, 5), (0,)), ((4, 3, 5), (0, 2)), ((2, 3), (0, 1)), ((7,), (0,)), ((), ())):
                if not (whole_or_one and len(dim) not in (1, len(shape))):
                    for keepdim in (False, True):
                        yield (draw(r, d, shape, low, high),), {"dim": dim, "keepdim": keepdim}
            yield (draw(r, d, (0, 3), low, high),), {"dim": (1,), "keepdim": False}
            yield (draw(r, d, (1, 1), low, high),), {"dim": (0,), "keepdim": False}
            if empty:
                yield (draw(r, d, (0, 3), low, high),), {"dim": (0,), "keepdim": False}

    return samples


def _reduction(
    name: str,
    op: str,
    takes: str,
    eager: Callable[..., Any],
    *,
    gives: Callable[[dtype], dtype],
    vjp: Any,
    empty: bool = True,
    whole_or_one: bool = False,
    span: tuple[float, float] = (-4, 4),
    doc: str = "",
) -> Primitive:
    return register(
        name,
        kind="reduce",
        infer=_infer(name, takes, gives, empty=empty, whole_or_one=whole_or_one),
        eager=eager if whole_or_one else _eager(eager, gives),
        vjp=None if isinstance(vjp, str) else (vjp,),
        refused={"vjp": vjp} if isinstance(vjp, str) else {},
        lower=Reduction(op),
        samples=_samples(name, takes, *span, empty, whole_or_one),
        doc=doc,
    )


def _prod_vjp(g: Any, y: Any, x: Any, *, dim: Dims, keepdim: bool) -> Any:
    """The product of the others: y / x where no factor is 0; at the only 0, the product of the rest; else 0."""
    zero = eq(x, 0.0)
    rest = prod(where(zero, 1.0, x), dim=dim, keepdim=True)
    zeros = spread(sum(zero, dim=dim, keepdim=True), x, dim)
    others = where(zero, where(eq(zeros, 1), rest, 0.0), where(eq(zeros, 0), div(rest, x), 0.0))
    return mul(spread(g, x, dim), conj(others))


def _extreme_vjp(g: Any, y: Any, x: Any, *, dim: Dims, keepdim: bool) -> Any:
    """Shared evenly among the elements that equal the extreme."""
    at = eq(x, spread(y, x, dim))
    count = sum(cast(at, dtype=g.dtype), dim=dim, keepdim=True)
    share = div(g if keepdim else reshape(g, shape=count.shape), count)
    return where(at, share, 0.0)


sum: Primitive = _reduction(
    "sum",
    "sum",
    ANY,
    np.add.reduce,
    gives=_integers_grow,
    vjp=lambda g, _y, _x, *, dim, keepdim: spread(g, _x, dim),
)
prod: Primitive = _reduction("prod", "prod", ANY, np.multiply.reduce, gives=_integers_grow, vjp=_prod_vjp, span=(-2, 2))
amax: Primitive = _reduction("amax", "max", NUMBER, np.maximum.reduce, gives=lambda d: d, vjp=_extreme_vjp, empty=False)
amin: Primitive = _reduction("amin", "min", NUMBER, np.minimum.reduce, gives=lambda d: d, vjp=_extreme_vjp, empty=False)
any: Primitive = _reduction("any", "any", BOOL, np.logical_or.reduce, gives=lambda d: bool_, vjp="booleans have no derivative")
all: Primitive = _reduction("all", "all", BOOL, np.logical_and.reduce, gives=lambda d: bool_, vjp="booleans have no derivative")
argmax: Primitive = _reduction(
    "argmax",
    "argmax",
    NUMBER,
    _arg_eager(np.argmax),
    gives=lambda d: int64,
    vjp="indices have no derivative",
    empty=False,
    whole_or_one=True,
    doc="The first index of the largest, along one dimension or in the flattened tensor.",
)
argmin: Primitive = _reduction(
    "argmin",
    "argmin",
    NUMBER,
    _arg_eager(np.argmin),
    gives=lambda d: int64,
    vjp="indices have no derivative",
    empty=False,
    whole_or_one=True,
    doc="The first index of the smallest, along one dimension or in the flattened tensor.",
)
