"""Attention as one primitive and its gradient as another: what no kernel of one contraction can hold.

    attention(q, k, v; scale, causal) -> (y, lse)
        e = scale * q k^T, minus infinity where a key comes after its query (causal); y = softmax(e) v; lse = log sum exp e
    attention_grad(q, k, v, lse, delta, g; scale, causal) -> (dq, dk, dv)
        p = exp(e - lse); ds = p * (g v^T - delta); dq = scale ds k; dk = scale ds^T q; dv = p^T g

with q [.., T, E], k [.., S, E], v [.., S, V], y and g [.., T, V], lse and delta [.., T], the dimensions in front equal. Narrow
floats are computed in float32, in which lse and delta stand. The gradient is that of Dao et al., "FlashAttention" (2022), section
3, which computes the scores again and keeps none: delta is the sum of g * y along the last dimension.

`composed` gives both in smaller primitives, for targets that have no routine of their own and for derivatives of higher order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype, float32, float64
from flame.ops.contract import matmul, transposed
from flame.ops.create import full, iota
from flame.ops.declare import draw, draws, is_narrow, quiet, widened
from flame.ops.elementwise import add, div, exp, log, mul, neg, sub
from flame.ops.logic import cast, le, where
from flame.ops.movement import reshape
from flame.ops.reduce import amax
from flame.ops.reduce import sum as reduce_sum
from flame.primitive import Primitive, Spec, joint, register

_REFUSED = {"lower": "a routine of its own on a CPU, and made of smaller primitives elsewhere"}


def _check(name: str, q: Spec, k: Spec, v: Spec) -> None:
    ds = {x.dtype for x in (q, k, v)}
    if len(ds) > 1 or q.dtype.kind != "f":
        raise RuntimeError(
            f"{name}: expected query, key and value of one floating dtype, but got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    fits = (
        q.ndim >= 2
        and q.ndim == k.ndim == v.ndim
        and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
        and q.shape[-1] == k.shape[-1]
        and k.shape[-2] == v.shape[-2]
    )
    if not fits:
        raise RuntimeError(
            f"{name}: expected query [.., T, E], key [.., S, E] and value [.., S, V], but got {list(q.shape)}, {list(k.shape)} and "
            f"{list(v.shape)}"
        )


def _wide(d: dtype) -> dtype:
    return float64 if d is float64 else float32


def _infer(q: Spec, k: Spec, v: Spec, *, scale: float, causal: bool) -> tuple[Spec, Spec]:
    _check("attention", q, k, v)
    return Spec((*q.shape[:-1], v.shape[-1]), q.dtype), Spec(q.shape[:-1], _wide(q.dtype))


def _grad_infer(
    q: Spec, k: Spec, v: Spec, lse: Spec, delta: Spec, g: Spec, *, scale: float, causal: bool
) -> tuple[Spec, Spec, Spec]:
    _check("attention_grad", q, k, v)
    y, rows = _infer(q, k, v, scale=scale, causal=causal)
    if g != y or lse != rows or delta != rows:
        raise RuntimeError(f"attention_grad: expected g {y}, lse and delta {rows}, but got {g}, {lse} and {delta}")
    return q, k, v


def _scores(q: np.ndarray, k: np.ndarray, scale: float, causal: bool) -> np.ndarray:
    e = np.matmul(q * q.dtype.type(scale), np.swapaxes(k, -1, -2))
    if causal:
        e = np.where(np.arange(k.shape[-2]) <= np.arange(q.shape[-2])[:, None], e, e.dtype.type(-math.inf))
    return e


def _eager(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    d = q.dtype
    if is_narrow(d):
        q, k, v = map(widened, (q, k, v))

    def run() -> tuple[np.ndarray, np.ndarray]:
        e = _scores(q, k, scale, causal)
        top = e.max(-1, keepdims=True, initial=-math.inf)
        np.exp(e - top, out=e)
        total = e.sum(-1, keepdims=True)
        y = np.matmul(e, v) / total
        return y.astype(d), (top + np.log(total))[..., 0]

    y, lse = quiet.run(run)
    return np.asarray(y, order="C"), np.asarray(lse, order="C")


def _grad_eager(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    lse: np.ndarray,
    delta: np.ndarray,
    g: np.ndarray,
    *,
    scale: float,
    causal: bool,
) -> tuple[np.ndarray, ...]:
    d = q.dtype
    if is_narrow(d):
        q, k, v, g = map(widened, (q, k, v, g))

    def run() -> list[np.ndarray]:
        p = np.exp(_scores(q, k, scale, causal) - lse[..., None])
        ds = p * (np.matmul(g, np.swapaxes(v, -1, -2)) - delta[..., None]) * q.dtype.type(scale)
        dq, dk = np.matmul(ds, k), np.matmul(np.swapaxes(ds, -1, -2), q)
        return [x.astype(d) for x in (dq, dk, np.matmul(np.swapaxes(p, -1, -2), g))]

    return tuple(np.asarray(x, order="C") for x in quiet.run(run))


# ---- in smaller primitives


def _as(x: Any, d: dtype) -> Any:
    return x if x.dtype is d else cast(x, dtype=d)


def _column(x: Any) -> Any:
    """A row statistic as [.., T, 1]."""
    return reshape(x, shape=(*x.shape, 1))


def _flat(x: Any) -> Any:
    return reshape(x, shape=x.shape[:-1])


def _last(x: Any) -> Any:
    """The sum along the last dimension, which stays."""
    return reduce_sum(x, dim=(len(x.shape) - 1,), keepdim=True)


def _exponents(q: Any, k: Any, scale: float, causal: bool) -> Any:
    e = matmul(mul(q, scale), transposed(k))
    if not causal:
        return e
    rows = reshape(iota(size=q.shape[-2], dtype=dtypes.int32), shape=(q.shape[-2], 1))
    return where(le(iota(size=k.shape[-2], dtype=dtypes.int32), rows), e, full(-math.inf, shape=(), dtype=e.dtype))


def _attention(q: Any, k: Any, v: Any, *, scale: float, causal: bool) -> tuple[Any, Any]:
    d = q.dtype
    e = _exponents(q, k, scale, causal)
    top = amax(e, dim=(len(e.shape) - 1,), keepdim=True)
    p = exp(sub(e, top))
    total = _last(p)
    lse = _flat(add(_as(top, _wide(d)), log(_as(total, _wide(d)))))
    return matmul(div(p, total), v), lse


def _attention_grad(
    q: Any, k: Any, v: Any, lse: Any, delta: Any, g: Any, *, scale: float, causal: bool
) -> tuple[Any, Any, Any]:
    d, wide = q.dtype, _wide(q.dtype)
    p = exp(sub(_as(_exponents(q, k, scale, causal), wide), _column(lse)))
    ds = _as(mul(p, sub(_as(matmul(g, transposed(v)), wide), _column(delta))), d)
    dq, dk = mul(matmul(ds, k), scale), mul(matmul(transposed(ds), q), scale)
    return dq, dk, matmul(transposed(_as(p, d)), g)


#: primitive's name -> the same in smaller ones
composed: dict[str, Callable[..., tuple[Any, ...]]] = {"attention": _attention, "attention_grad": _attention_grad}


# ---- derivatives


def _vjp(g: Any, y: Any, q: Any, k: Any, v: Any, *, scale: float, causal: bool) -> tuple[Any, ...]:
    (gy, g_lse), (y, lse) = g, y
    wide = lse.dtype
    delta = sub(_flat(_last(mul(_as(gy, wide), _as(y, wide)))), g_lse)
    return attention_grad(q, k, v, lse, delta, gy, scale=scale, causal=causal)


def _grad_vjp(
    g: Any, _y: Any, q: Any, k: Any, v: Any, lse: Any, delta: Any, h: Any, *, scale: float, causal: bool
) -> tuple[Any, ...]:
    """With a, b, c the cotangents of dq, dk and dv, and h what the rules above call g."""
    d, wide = q.dtype, lse.dtype
    a, b, c = (_as(x, wide) for x in g)
    q, k, v, h = (_as(x, wide) for x in (q, k, v, h))
    p = exp(sub(_exponents(q, k, scale, causal), _column(lse)))
    slopes = sub(matmul(h, transposed(v)), _column(delta))
    ds = mul(p, slopes)
    on_ds = mul(add(matmul(a, transposed(k)), matmul(q, transposed(b))), scale)
    on_slopes = mul(on_ds, p)
    on_e = mul(add(matmul(h, transposed(c)), mul(on_ds, slopes)), p)
    dq = mul(add(matmul(on_e, k), matmul(ds, b)), scale)
    dk = mul(add(matmul(transposed(on_e), q), matmul(transposed(ds), a)), scale)
    dv, dh = matmul(transposed(on_slopes), h), add(matmul(p, c), matmul(on_slopes, v))
    d_lse, d_delta = neg(_flat(_last(on_e))), neg(_flat(_last(on_slopes)))
    return _as(dq, d), _as(dk, d), _as(dv, d), d_lse, d_delta, _as(dh, d)


# ---- the records

_cases = (((), 3, 5, 2, 4), ((2,), 1, 1, 1, 1), ((2, 3), 7, 4, 5, 3), ((1,), 20, 20, 8, 8))


def _samples(name: str) -> Callable[[], Iterator[tuple[tuple, dict]]]:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        for d in (x for x in dtypes.ALL if x.kind == "f"):
            for lead, t, s, e, w in _cases:
                for causal in (False, True):
                    q, k, v = (draw(r, d, (*lead, *x), -1, 1) for x in ((t, e), (s, e), (s, w)))
                    how: dict[str, Any] = {"scale": 0.7, "causal": causal}
                    if name == "attention":
                        yield (q, k, v), how
                        continue
                    g = draw(r, d, (*lead, t, w), -1, 1)
                    y, lse = _eager(q, k, v, **how)
                    wide = widened if is_narrow(g.dtype) else np.asarray
                    yield (q, k, v, lse, np.asarray((wide(g) * wide(y)).sum(-1)), g), how

    return samples


attention: Primitive = register(
    "attention",
    kind="opaque",
    infer=_infer,
    eager=_eager,
    vjp=joint(_vjp),
    refused=_REFUSED,
    samples=_samples("attention"),
    doc="attention(q, k, v, *, scale, causal): softmax(scale q k^T) v, and the logarithm of each row's sum of exponentials.",
)
attention_grad: Primitive = register(
    "attention_grad",
    kind="opaque",
    infer=_grad_infer,
    eager=_grad_eager,
    vjp=joint(_grad_vjp),
    refused=_REFUSED,
    samples=_samples("attention_grad"),
    doc="attention_grad(q, k, v, lse, delta, g, *, scale, causal): the cotangents of attention's operands.",
)
