"""Attention whose scores are changed by a function of their position, as one primitive and its gradient as another.

    flex_attention(q, k, v, *tables; modification, scale) -> (y, lse)
        s = scale * q k^T;  e = modification(s, b, h, i, j, *tables);  p = softmax(e);  y = p v;  lse = log sum exp e
    flex_attention_grad(q, k, v, lse, delta, g, *tables; modification, scale) -> (dq, dk, dv)
        p = exp(e - lse); ds = the cotangent of s, given that of e, which is p * (g v^T - delta); dq = scale ds k; and so on

with q [B, H, T, E], k [B, K, S, E], v [B, K, S, V], K dividing H, as in `flame.ops.attention`, whose conventions hold here too:
a row that attends to nothing is 0, and narrow floats are computed in float32. b, h, i, j are int32: a score's place.

A MODIFICATION is data, so that it can be a parameter: steps over single numbers, which mean the same on arrays that broadcast.

    modification ::= step* for e, then step* for ds      values are numbered: s, b, h, i, j, tables, steps; the cotangent, steps
    step         ::= elementwise primitive of numbers | index_nd of a table at an int for each of its dimensions

Tables are tensors of any shape that steps look up, or single numbers; they have no gradient here. Two of them, int [T], may be
`bounds`: a promise that e is minus infinity wherever not first[i] <= j < last[i], so that a CPU leaves such scores out. (Kernels
of a GPU see it in the steps: `flame.compiler.chain.limits`.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import _BY_NUMPY, dtype, float32, float64
from flame.ops.attention import (
    _as,
    _bounded,
    _check,
    _column,
    _flat,
    _grouped,
    _heads,
    _last,
    _repeated,
    _shared,
    sample_of_gradient,
)
from flame.ops.blas import product
from flame.ops.contract import matmul, transposed
from flame.ops.create import full, iota
from flame.ops.declare import draw, draws, is_narrow, quiet, widened
from flame.ops.elementwise import add, div, exp, log, mul, sub
from flame.ops.logic import eq, where
from flame.ops.movement import expand, reshape
from flame.ops.reduce import amax
from flame.ops.replay import pulled
from flame.primitive import Number, Primitive, Spec, joint, register, registered

SCORE, PLACES, TABLES = 0, 5, 5  #: the number of the score, how many values a score's place ends at, the first table's number
_REFUSED = {"lower": "kernels of its own, or made of smaller primitives"}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: operands are numbers of values (`V`) or plain numbers."""

    primitive: str
    operands: tuple[V | Number, ...]
    params: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class V:
    """The value of that number."""

    n: int


@dataclass(frozen=True, slots=True)
class Modification:
    tables: int
    forward: tuple[Step, ...]
    result: V
    backward: tuple[Step, ...]
    slope: V | None  #: None: e does not vary with s
    bounds: tuple[int, int] | None = None  #: which tables say the first key that a query sees, and the one after the last

    def modified(self, values: list[Any], run: Callable[..., Any]) -> Any:
        """e of [s, b, h, i, j, *tables]; `values` grows by the steps' results. `run(primitive, *operands, **params)` does one."""
        _run(self.forward, values, run)
        return values[self.result.n]

    def pulled(self, values: list[Any], cotangent: Any, run: Callable[..., Any]) -> Any:
        """The cotangent of s, of the values that `modified` left; None where there is none."""
        values.append(cotangent)
        _run(self.backward, values, run)
        return None if self.slope is None else values[self.slope.n]


def _run(steps: tuple[Step, ...], values: list[Any], run: Callable[..., Any]) -> None:
    for s in steps:
        operands = [values[o.n] if isinstance(o, V) else o for o in s.operands]
        values.append(run(registered(s.primitive), *operands, **dict(s.params)))


def _bind(p: Primitive, *operands: Any, **params: Any) -> Any:
    return p(*operands, **params)


def _wide(d: dtype) -> dtype:
    return float64 if d is float64 else float32


def _infer(q: Spec, k: Spec, v: Spec, *tables: Spec, modification: Modification, scale: float) -> tuple[Spec, Spec]:
    _check("flex_attention", q, k, v, ())
    if q.ndim != 4 or len(tables) != modification.tables:
        raise RuntimeError(
            f"flex_attention: expected query [B, H, T, E] and {modification.tables} tables, got {list(q.shape)} and {len(tables)}"
        )
    return Spec((*q.shape[:-1], v.shape[-1]), q.dtype), Spec(q.shape[:-1], _wide(q.dtype))


def _grad_infer(
    q: Spec, k: Spec, v: Spec, lse: Spec, delta: Spec, g: Spec, *tables: Spec, modification: Modification, scale: float
) -> tuple[Spec, Spec, Spec]:
    y, rows = _infer(q, k, v, *tables, modification=modification, scale=scale)
    if g != y or lse != rows or delta != rows:
        raise RuntimeError(f"flex_attention_grad: expected g {y}, lse and delta {rows}, but got {g}, {lse} and {delta}")
    return q, k, v


# ---- on arrays


def _eager_run(p: Primitive, *operands: Any, **params: Any) -> Any:
    return p.eager(*operands, **params)


_ROWS = 128  #: queries at a time where bounds say which keys they see

Stretch = tuple[slice, slice]


def _stretches(modification: Modification, q: np.ndarray, k: np.ndarray, tables: tuple) -> Iterator[Stretch]:
    """Queries, and the keys that any of them sees."""
    t, s = q.shape[-2], k.shape[-2]
    if modification.bounds is None:
        yield slice(0, t), slice(0, s)
        return
    first, last = (tables[n] for n in modification.bounds)
    for begin in range(0, t, _ROWS):
        rows = slice(begin, min(begin + _ROWS, t))
        seen = first[rows] < last[rows]
        low = int(first[rows].min(initial=s, where=seen))
        yield rows, slice(max(low, 0), min(int(last[rows].max(initial=low, where=seen)), s))


def _arrays(q: np.ndarray, k: np.ndarray, scale: float, tables: tuple, where: Stretch) -> list[Any]:
    """s of a stretch of queries and keys, its place, the tables."""
    rows, keys = where
    s = product(q[..., rows, :] * q.dtype.type(scale), np.swapaxes(k[..., keys, :], -1, -2))
    begins = (0, 0, rows.start, keys.start)
    at = [
        np.arange(o, o + n, dtype=np.int32).reshape([-1 if d == x else 1 for x in range(4)])
        for d, (n, o) in enumerate(zip(s.shape, begins, strict=True))
    ]
    return [s, *at, *tables]


def _eager(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *tables: Any, modification: Modification, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    d = q.dtype
    k, v, _ = _grouped(q, k, v)
    if is_narrow(d):
        q, k, v = map(widened, (q, k, v))
    y, lse = np.empty((*q.shape[:-1], v.shape[-1]), d), np.empty(q.shape[:-1], _wide(_BY_NUMPY[d]).numpy)
    for rows, keys in _stretches(modification, q, k, tables):
        values = _arrays(q, k, scale, tables, (rows, keys))
        e = np.broadcast_to(modification.modified(values, _eager_run), values[0].shape)

        def run(e: np.ndarray, rows: slice, keys: slice) -> None:
            top = e.max(-1, keepdims=True, initial=-math.inf)
            top = np.where(top == -math.inf, top.dtype.type(0), top)
            p = np.exp(e - top)
            total = p.sum(-1, keepdims=True)
            y[..., rows, :] = product(p, v[..., keys, :]) / np.where(total == 0, total.dtype.type(1), total)
            lse[..., rows] = (top + np.log(total))[..., 0]

        quiet.run(run, e, rows, keys)
    return y, lse


def _grad_eager(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    lse: np.ndarray,
    delta: np.ndarray,
    g: np.ndarray,
    *tables: Any,
    modification: Modification,
    scale: float,
) -> tuple[np.ndarray, ...]:
    d, of_k, of_v = q.dtype, k.shape, v.shape
    k, v, heads = _grouped(q, k, v)
    if is_narrow(d):
        q, k, v, g = map(widened, (q, k, v, g))
    dq, dk, dv = (np.zeros(x.shape, q.dtype) for x in (q, k, v))
    factor = q.dtype.type(scale)

    def shared(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return x if heads == 1 else x.reshape(*shape[:-2], heads, *shape[-2:]).sum(-3)

    for rows, keys in _stretches(modification, q, k, tables):
        values = _arrays(q, k, scale, tables, (rows, keys))
        e = np.broadcast_to(modification.modified(values, _eager_run), values[0].shape)
        some_q, some_k, some_v, some_g = q[..., rows, :], k[..., keys, :], v[..., keys, :], g[..., rows, :]
        top, mean = _column_of(lse, rows), _column_of(delta, rows)

        def slopes(e: Any = e, g: Any = some_g, v: Any = some_v, top: Any = top, mean: Any = mean) -> tuple:
            p = np.exp(e - np.where(top == -math.inf, top.dtype.type(0), top))
            return p, p * (product(g, np.swapaxes(v, -1, -2)) - mean)

        p, ds = quiet.run(slopes)
        ds = modification.pulled(values, ds, _eager_run)
        ds = np.zeros(e.shape, q.dtype) if ds is None else np.broadcast_to(ds, e.shape)
        dq[..., rows, :] = quiet.run(product, ds, some_k)
        dk[..., keys, :] += quiet.run(product, np.swapaxes(ds, -1, -2), some_q)
        dv[..., keys, :] += quiet.run(product, np.swapaxes(p, -1, -2), some_g)
    found = (dq * factor, shared(dk, of_k) * factor, shared(dv, of_v))
    return tuple(np.asarray(quiet.run(x.astype, d), order="C") for x in found)


def _column_of(x: np.ndarray, rows: slice) -> np.ndarray:
    """Some of the rows' statistics as [.., n, 1]."""
    return x[..., rows, None]


# ---- in smaller primitives


def places(shape: tuple[Any, ...]) -> list[Any]:
    """b, h, i and j of scores of this shape, each along its own dimension."""
    out = []
    for d, n in enumerate(shape):
        out.append(reshape(iota(size=n, dtype=dtypes.int32), shape=tuple(n if d == x else 1 for x in range(4))))
    return out


def _values(q: Any, k: Any, scale: float, tables: tuple) -> list[Any]:
    s = mul(matmul(q, transposed(k)), scale)
    return [s, *places(tuple(s.shape)), *tables]


def _attention(q: Any, k: Any, v: Any, *tables: Any, modification: Modification, scale: float) -> tuple[Any, Any]:
    d, wide, heads = q.dtype, _wide(q.dtype), _heads(q, k)
    q, k, v = (_as(x, wide) for x in (q, k, v))
    k, v = _repeated(k, heads), _repeated(v, heads)
    values = _values(q, k, scale, tables)
    e = _whole(modification.modified(values, _bind), values[0])
    top = _bounded(amax(e, dim=(len(e.shape) - 1,), keepdim=True))
    p = exp(sub(e, top))
    total = _last(p)
    lse = _flat(add(top, log(total)))
    total = where(eq(total, 0.0), full(1.0, shape=(), dtype=wide), total)
    return _as(div(matmul(p, v), total), d), lse


def _whole(e: Any, s: Any) -> Any:
    """e of the shape of s, where it does not vary with all of its place."""
    if tuple(e.shape) == tuple(s.shape):
        return e
    return expand(e if len(e.shape) == 4 else reshape(e, shape=(1, 1, 1, 1)), shape=tuple(s.shape))


def _attention_grad(
    q: Any, k: Any, v: Any, lse: Any, delta: Any, g: Any, *tables: Any, modification: Modification, scale: float
) -> tuple[Any, Any, Any]:
    d, wide, heads = q.dtype, _wide(q.dtype), _heads(q, k)
    q, k, v, g = (_as(x, wide) for x in (q, k, v, g))
    k, v = _repeated(k, heads), _repeated(v, heads)
    values = _values(q, k, scale, tables)
    s = values[0]
    e = _whole(modification.modified(values, _bind), s)
    p = exp(sub(e, _column(_bounded(lse))))
    ds = modification.pulled(values, mul(p, sub(matmul(g, transposed(v)), _column(delta))), _bind)
    ds = full(0.0, shape=tuple(s.shape), dtype=s.dtype) if ds is None else _whole(ds, s)
    dq, dk = mul(matmul(ds, k), scale), mul(matmul(transposed(ds), q), scale)
    dv = matmul(transposed(p), g)
    return _as(dq, d), _as(_shared(dk, heads), d), _as(_shared(dv, heads), d)


#: primitive's name -> the same in smaller ones
composed: dict[str, Callable[..., tuple[Any, ...]]] = {
    "flex_attention": _attention,
    "flex_attention_grad": _attention_grad,
}


def _vjp(g: Any, y: Any, q: Any, k: Any, v: Any, *tables: Any, **how: Any) -> tuple[Any, ...]:
    (gy, g_lse), (y, lse) = g, y
    wide = lse.dtype
    delta = sub(_flat(_last(mul(_as(gy, wide), _as(y, wide)))), g_lse)
    return (*flex_attention_grad(q, k, v, lse, delta, gy, *tables, **how), *(None for _ in tables))


def _grad_vjp(g: Any, _y: Any, *operands: Any, **how: Any) -> tuple[Any, ...]:
    steps = functools.partial(_attention_grad, **how)
    found = pulled(steps, operands, g)[:6]
    return (*found, *(None for _ in operands[6:]))


# ---- the records


def _sampled() -> Modification:
    """tanh(s) + table[h, i - j] where j <= i."""
    forward = (
        Step("tanh", (V(0),)),  # 6
        Step("sub", (V(3), V(4))),
        Step("index_nd", (V(5), V(2), V(7)), (("dims", (0, 1)),)),
        Step("add", (V(6), V(8))),
        Step("ge", (V(3), V(4))),
        Step("where", (V(10), V(9), -math.inf)),  # 11
    )
    backward = (
        Step("where", (V(10), V(12), 0.0)),  # 12 is the cotangent
        Step("mul", (V(6), V(6))),
        Step("sub", (1.0, V(14))),
        Step("mul", (V(13), V(15))),
    )
    return Modification(1, forward, V(11), backward, V(16))


def _samples(name: str) -> Callable[[], Iterator[tuple[tuple, dict]]]:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        how: dict[str, Any] = {"modification": _sampled(), "scale": 0.7}
        for d in (x for x in dtypes.ALL if x.kind == "f"):
            for heads in (2, 1):
                q, k, v = (
                    draw(r, d, (2, 2, 7, 5), -1, 1),
                    draw(r, d, (2, heads, 4, 5), -1, 1),
                    draw(r, d, (2, heads, 4, 3), -1, 1),
                )
                table = draw(r, _wide(d), (2, 7), -1, 1)
                if name == "flex_attention":
                    yield (q, k, v, table), how
                    continue
                yield sample_of_gradient(_eager, (q, k, v), draw(r, d, (2, 2, 7, 3), -1, 1), (table,), how)

    return samples


flex_attention: Primitive = register(
    "flex_attention",
    kind="opaque",
    infer=_infer,
    eager=_eager,
    vjp=joint(_vjp, first=3),
    refused=_REFUSED,
    samples=_samples("flex_attention"),
    doc="flex_attention(q, k, v, *tables, *, modification, scale): attention, scores changed by a function of their place.",
)
flex_attention_grad: Primitive = register(
    "flex_attention_grad",
    kind="opaque",
    infer=_grad_infer,
    eager=_grad_eager,
    vjp=joint(_grad_vjp, first=6),
    refused=_REFUSED,
    samples=_samples("flex_attention_grad"),
    doc="flex_attention_grad(q, k, v, lse, delta, g, *tables, *, modification, scale): the cotangents of q, k and v.",
)
