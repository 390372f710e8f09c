"""Attention as one primitive and its gradient as another: what no kernel of one contraction can hold.

    attention(q, k, v[, bias, keep]; scale, causal, softcap) -> (y, lse)
        e = scale * q k^T, bent to softcap * tanh(e / softcap) if softcap is not 0, plus a floating bias; minus infinity where
        a boolean bias is False, and where a key comes after its query (causal)
        p = softmax(e); y = (p * keep) v; lse = log sum exp e. A row that attends to nothing is 0, its lse minus infinity
    attention_grad(q, k, v, lse, delta, g[, bias, keep]; scale, causal, softcap) -> (dq, dk, dv)
        p = exp(e - lse); ds = p * (keep * g v^T - delta), by the slope of the bend; dq = scale ds k; dk = scale ds^T q;
        dv = (p * keep)^T g

with q [.., H, T, E], k [.., K, S, E], v [.., K, S, V], y and g [.., H, T, V], lse and delta [.., H, T]. The dimensions in front
are equal, but for the last of them: K divides H, and heads of queries share keys in groups of H / K. `bias` and `keep`
broadcast to [.., H, T, S]; the number 0 is no bias, and 1 keeps everything. `keep` is what dropout multiplies by. Neither has a
gradient here: who needs one asks for smaller primitives. Narrow floats are computed in float32, in which lse and delta stand.
The gradient is that of Dao et al., "FlashAttention" (2022), section 3, which computes the scores again and keeps none: delta is
the sum of g * y along the last dimension.

`composed` gives both in smaller primitives, for targets that have no routine of their own and for derivatives of higher order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype, float32, float64
from flame.ops.blas import product
from flame.ops.contract import matmul, transposed
from flame.ops.create import full, iota
from flame.ops.declare import draw, draws, is_narrow, quiet, widened
from flame.ops.elementwise import add, div, exp, log, mul, neg, sub, tanh
from flame.ops.logic import cast, eq, le, where
from flame.ops.movement import expand, reshape
from flame.ops.reduce import amax
from flame.ops.reduce import sum as reduce_sum
from flame.primitive import Number, Primitive, Spec, broadcast_shapes, joint, register

_REFUSED = {"lower": "a routine or kernels of its own, or made of smaller primitives"}


def _check(name: str, q: Spec, k: Spec, v: Spec, more: tuple[Spec | Number, ...]) -> None:
    ds = {x.dtype for x in (q, k, v)}
    if len(ds) > 1 or q.dtype.kind != "f":
        raise RuntimeError(
            f"{name}: expected query, key and value of one floating dtype, but got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    fits = (
        q.ndim >= 2
        and q.ndim == k.ndim == v.ndim
        and q.shape[:-3] == k.shape[:-3] == v.shape[:-3]
        and k.shape[-3:-2] == v.shape[-3:-2]
        and (q.shape[-3:-2] == k.shape[-3:-2] or (k.shape[-3] > 0 and q.shape[-3] % k.shape[-3] == 0))
        and q.shape[-1] == k.shape[-1]
        and k.shape[-2] == v.shape[-2]
    )
    if not fits:
        raise RuntimeError(
            f"{name}: expected query [.., H, T, E], key [.., K, S, E] and value [.., K, S, V] with K dividing H, but got "
            f"{list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    if len(more) not in (0, 2):
        raise RuntimeError(f"{name}: takes a bias and what to keep, or neither, but got {len(more)} operands more")
    scores = (*q.shape[:-1], k.shape[-2])
    for word, x in zip(("bias", "keep"), more):
        if isinstance(x, Spec) and (x.ndim > len(scores) or broadcast_shapes(x.shape, scores, op=name) != scores):
            raise RuntimeError(f"{name}: expected a {word} that broadcasts to {list(scores)}, but got {list(x.shape)}")
        if isinstance(x, Spec) and x.dtype.kind != "f" and not (word == "bias" and x.dtype.kind == "b"):
            raise RuntimeError(f"{name}: expected a floating {word}, but got {x.dtype}")


def _wide(d: dtype) -> dtype:
    return float64 if d is float64 else float32


def _infer(
    q: Spec, k: Spec, v: Spec, *more: Spec | Number, scale: float, causal: bool, softcap: float = 0.0
) -> tuple[Spec, Spec]:
    _check("attention", q, k, v, more)
    return Spec((*q.shape[:-1], v.shape[-1]), q.dtype), Spec(q.shape[:-1], _wide(q.dtype))


def _grad_infer(
    q: Spec,
    k: Spec,
    v: Spec,
    lse: Spec,
    delta: Spec,
    g: Spec,
    *more: Spec | Number,
    scale: float,
    causal: bool,
    softcap: float = 0.0,
) -> tuple[Spec, Spec, Spec]:
    _check("attention_grad", q, k, v, more)
    y, rows = _infer(q, k, v, *more, scale=scale, causal=causal)
    if g != y or lse != rows or delta != rows:
        raise RuntimeError(f"attention_grad: expected g {y}, lse and delta {rows}, but got {g}, {lse} and {delta}")
    return q, k, v


# ---- on arrays


def _grouped(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Keys and values for every head of the queries, and how many of those share one."""
    heads = q.shape[-3] // k.shape[-3] if q.ndim > 2 and q.shape != k.shape and k.shape[-3] else 1
    return (k, v, 1) if heads == 1 else (np.repeat(k, heads, -3), np.repeat(v, heads, -3), heads)


def _scores(q: np.ndarray, k: np.ndarray, bias: Any, scale: float, causal: bool, softcap: float) -> tuple:
    """The exponents, and the slope of the bend (None without one)."""
    t, slope = q.dtype.type, None
    e = product(q * t(scale), np.swapaxes(k, -1, -2))
    if softcap:
        bent = np.tanh(e / t(softcap))
        e, slope = bent * t(softcap), 1 - bent * bent
    if isinstance(bias, np.ndarray):
        e = np.where(bias, e, t(-math.inf)) if bias.dtype.kind == "b" else e + bias.astype(e.dtype)
    if causal:
        e = np.where(np.arange(k.shape[-2]) <= np.arange(q.shape[-2])[:, None], e, t(-math.inf))
    return e, slope


def _kept(p: np.ndarray, keep: Any) -> np.ndarray:
    return p * keep.astype(p.dtype) if isinstance(keep, np.ndarray) else p


def _finite(x: np.ndarray) -> np.ndarray:
    """0 in the place of minus infinity: the highest exponent of a row that attends to nothing."""
    return np.where(x == -math.inf, x.dtype.type(0), x)


def _eager(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    bias: Any = 0.0,
    keep: Any = 1.0,
    *,
    scale: float,
    causal: bool,
    softcap: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    d = q.dtype
    k, v, _ = _grouped(q, k, v)
    if is_narrow(d):
        q, k, v = map(widened, (q, k, v))

    def run() -> tuple[np.ndarray, np.ndarray]:
        e, _ = _scores(q, k, bias, scale, causal, softcap)
        top = _finite(e.max(-1, keepdims=True, initial=-math.inf))
        np.exp(e - top, out=e)
        total = e.sum(-1, keepdims=True)
        y = product(_kept(e, keep), v) / np.where(total == 0, total.dtype.type(1), total)
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
    bias: Any = 0.0,
    keep: Any = 1.0,
    *,
    scale: float,
    causal: bool,
    softcap: float = 0.0,
) -> tuple[np.ndarray, ...]:
    d, of_k, of_v = q.dtype, k.shape, v.shape
    k, v, heads = _grouped(q, k, v)
    if is_narrow(d):
        q, k, v, g = map(widened, (q, k, v, g))

    def shared(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Added up over the heads that share it."""
        return x if heads == 1 else x.reshape(*shape[:-2], heads, *shape[-2:]).sum(-3)

    def run() -> list[np.ndarray]:
        e, slope = _scores(q, k, bias, scale, causal, softcap)
        p = np.exp(e - _finite(lse)[..., None])
        ds = p * (_kept(product(g, np.swapaxes(v, -1, -2)), keep) - delta[..., None]) * q.dtype.type(scale)
        ds = ds if slope is None else ds * slope
        dk, dv = product(np.swapaxes(ds, -1, -2), q), product(np.swapaxes(_kept(p, keep), -1, -2), g)
        return [x.astype(d) for x in (product(ds, k), shared(dk, of_k), shared(dv, of_v))]

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


def _heads(q: Any, k: Any) -> int:
    """How many heads of queries share a head of keys."""
    return 1 if len(q.shape) < 3 or q.shape[-3] == k.shape[-3] else q.shape[-3] // k.shape[-3]


def _repeated(x: Any, heads: int) -> Any:
    """A head of keys for each head of queries."""
    if heads == 1:
        return x
    *lead, n, s, e = x.shape
    each = expand(reshape(x, shape=(*lead, n, 1, s, e)), shape=(*lead, n, heads, s, e))
    return reshape(each, shape=(*lead, n * heads, s, e))


def _shared(x: Any, heads: int) -> Any:
    """The cotangents of heads that share keys, added up."""
    if heads == 1:
        return x
    *lead, n, s, e = x.shape
    return reduce_sum(reshape(x, shape=(*lead, n // heads, heads, s, e)), dim=(len(lead) + 1,), keepdim=False)


def _exponents(q: Any, k: Any, bias: Any, scale: float, causal: bool, softcap: float) -> tuple[Any, Any]:
    """The exponents, and tanh of the scores where they are bent."""
    e, bent = matmul(mul(q, scale), transposed(k)), None
    if softcap:
        bent = tanh(div(e, softcap))
        e = mul(bent, softcap)
    least = full(-math.inf, shape=(), dtype=e.dtype)
    if not isinstance(bias, int | float):
        e = where(bias, e, least) if bias.dtype.kind == "b" else add(e, _as(bias, e.dtype))
    if causal:
        rows = reshape(iota(size=q.shape[-2], dtype=dtypes.int32), shape=(q.shape[-2], 1))
        e = where(le(iota(size=k.shape[-2], dtype=dtypes.int32), rows), e, least)
    return e, bent


def _times(x: Any, keep: Any) -> Any:
    return x if isinstance(keep, int | float) else mul(x, _as(keep, x.dtype))


def _bounded(x: Any) -> Any:
    """0 in the place of minus infinity."""
    return where(eq(x, -math.inf), full(0.0, shape=(), dtype=x.dtype), x)


def _may_be_empty(bias: Any) -> bool:
    """May a row attend to nothing?"""
    return not isinstance(bias, int | float)


def _attention(
    q: Any, k: Any, v: Any, bias: Any = 0.0, keep: Any = 1.0, *, scale: float, causal: bool, softcap: float = 0.0
) -> tuple[Any, Any]:
    d, heads = q.dtype, _heads(q, k)
    k, v = _repeated(k, heads), _repeated(v, heads)
    e, _ = _exponents(q, k, bias, scale, causal, softcap)
    top = amax(e, dim=(len(e.shape) - 1,), keepdim=True)
    if _may_be_empty(bias):
        top = _bounded(top)
    p = exp(sub(e, top))
    total = _last(p)
    lse = _flat(add(_as(top, _wide(d)), log(_as(total, _wide(d)))))
    if _may_be_empty(bias):
        total = where(eq(total, 0.0), full(1.0, shape=(), dtype=total.dtype), total)
    return matmul(_times(div(p, total), keep), v), lse


def _attention_grad(
    q: Any,
    k: Any,
    v: Any,
    lse: Any,
    delta: Any,
    g: Any,
    bias: Any = 0.0,
    keep: Any = 1.0,
    *,
    scale: float,
    causal: bool,
    softcap: float = 0.0,
) -> tuple[Any, Any, Any]:
    d, wide, heads = q.dtype, _wide(q.dtype), _heads(q, k)
    k, v = _repeated(k, heads), _repeated(v, heads)
    e, bent = _exponents(q, k, bias, scale, causal, softcap)
    p = exp(sub(_as(e, wide), _column(_bounded(lse) if _may_be_empty(bias) else lse)))
    slopes = _as(mul(p, sub(_times(_as(matmul(g, transposed(v)), wide), keep), _column(delta))), d)
    ds = slopes if bent is None else mul(slopes, sub(1.0, mul(bent, bent)))
    dq, dk = mul(matmul(ds, k), scale), mul(matmul(transposed(ds), q), scale)
    dv = matmul(transposed(_as(_times(p, keep), d)), g)
    return dq, _shared(dk, heads), _shared(dv, heads)


#: primitive's name -> the same in smaller ones
composed: dict[str, Callable[..., tuple[Any, ...]]] = {"attention": _attention, "attention_grad": _attention_grad}


# ---- derivatives


def _vjp(g: Any, y: Any, q: Any, k: Any, v: Any, *more: Any, **how: Any) -> tuple[Any, ...]:
    (gy, g_lse), (y, lse) = g, y
    wide = lse.dtype
    delta = sub(_flat(_last(mul(_as(gy, wide), _as(y, wide)))), g_lse)
    return (*attention_grad(q, k, v, lse, delta, gy, *more, **how), *(None for _ in more))


def _grad_vjp(
    g: Any,
    _y: Any,
    q: Any,
    k: Any,
    v: Any,
    lse: Any,
    delta: Any,
    h: Any,
    *more: Any,
    scale: float,
    causal: bool,
    softcap: float = 0.0,
) -> tuple[Any, ...]:
    """With a, b, c the cotangents of dq, dk and dv, and h what the rules above call g."""
    d, wide, heads = q.dtype, lse.dtype, _heads(q, k)
    bias, keep = more or (0.0, 1.0)
    a, b, c = (_as(x, wide) for x in g)
    q, k, v, h = (_as(x, wide) for x in (q, k, v, h))
    k, v, b, c = (_repeated(x, heads) for x in (k, v, b, c))
    e, bent = _exponents(q, k, bias, scale, causal, softcap)
    p = exp(sub(e, _column(_bounded(lse))))
    slopes = sub(_times(matmul(h, transposed(v)), keep), _column(delta))
    ds = mul(p, slopes)
    on_bend = mul(add(matmul(a, transposed(k)), matmul(q, transposed(b))), scale)
    bend = None if bent is None else sub(1.0, mul(bent, bent))
    on_ds = on_bend if bend is None else mul(on_bend, bend)
    on_slopes = mul(on_ds, p)
    on_e = mul(add(_times(matmul(h, transposed(c)), keep), mul(on_ds, slopes)), p)
    d_lse, d_delta = neg(_flat(_last(on_e))), neg(_flat(_last(on_slopes)))
    if bend is not None:  # through the bend and through its slope, which is -2 tanh(u) (1 - tanh(u)^2) / softcap
        on_e = mul(bend, sub(on_e, mul(mul(mul(on_bend, ds), bent), 2.0 / softcap)))
        ds = mul(ds, bend)
    dq = mul(add(matmul(on_e, k), matmul(ds, b)), scale)
    dk = mul(add(matmul(transposed(on_e), q), matmul(transposed(ds), a)), scale)
    on_products = _times(on_slopes, keep)
    dv, dh = matmul(transposed(on_products), h), add(matmul(_times(p, keep), c), matmul(on_products, v))
    dk, dv = _shared(dk, heads), _shared(dv, heads)
    return _as(dq, d), _as(dk, d), _as(dv, d), d_lse, d_delta, _as(dh, d), *(None for _ in more)


# ---- the records

_cases = (((), 3, 5, 2, 4), ((2,), 1, 1, 1, 1), ((2, 3), 7, 4, 5, 3), ((1,), 20, 20, 8, 8))


def sample_of_gradient(forward: Callable, qkv: tuple, g: np.ndarray, more: tuple, how: dict[str, Any]) -> tuple[tuple, dict]:
    """What a forward pass's gradient is called with, given the cotangent `g`."""
    y, lse = forward(*qkv, *more, **how)
    wide = widened if is_narrow(g.dtype) else np.asarray
    return (*qkv, lse, np.asarray((wide(g) * wide(y)).sum(-1)), g, *more), how


def _samples(name: str) -> Callable[[], Iterator[tuple[tuple, dict]]]:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        for d in (x for x in dtypes.ALL if x.kind == "f"):
            for n, (lead, t, s, e, w) in enumerate(_cases):
                for causal in (False, True):
                    of_keys = (*lead[:-1], 1) if n == 2 else lead
                    q = draw(r, d, (*lead, t, e), -1, 1)
                    k, v = (draw(r, d, (*of_keys, s, x), -1, 1) for x in (e, w))
                    how: dict[str, Any] = {"scale": 0.7, "causal": causal}
                    more: tuple = ()
                    if n == 0:
                        how["softcap"], more = 1.5, (draw(r, dtypes.bool_, (t, s), 0, 1), draw(r, d, (t, s), 0, 2))
                    elif n == 2:
                        more = (draw(r, d, (3, 1, s), -1, 1), 1.0)
                    if name == "attention":
                        yield (q, k, v, *more), how
                        continue
                    yield sample_of_gradient(_eager, (q, k, v), draw(r, d, (*lead, t, w), -1, 1), more, how)

    return samples


attention: Primitive = register(
    "attention",
    kind="opaque",
    infer=_infer,
    eager=_eager,
    vjp=joint(_vjp, first=3),
    refused=_REFUSED,
    samples=_samples("attention"),
    doc="attention(q, k, v[, bias, keep], *, scale, causal, softcap): softmax(scale q k^T) v, and the logarithm of each row's sum.",
)
attention_grad: Primitive = register(
    "attention_grad",
    kind="opaque",
    infer=_grad_infer,
    eager=_grad_eager,
    vjp=joint(_grad_vjp, first=6),
    refused=_REFUSED,
    samples=_samples("attention_grad"),
    doc="attention_grad(q, k, v, lse, delta, g[, bias, keep], *, scale, causal, softcap): the cotangents of q, k and v.",
)
