"""A recurrent layer over all steps of a batch as one primitive, and its gradient as another: RNNs of tanh or relu, LSTM, GRU.

    recurrent(gi, w, h[, more]; mode, reverse) -> results
        "RNN_TANH", "RNN_RELU"   gi, w, h0         -> y                        h = f(gi[t] + w h)
        "LSTM"                   gi, w, h0, c0     -> y, c, cells, gates       i, f, g, o = gi[t] + w h, sigmoid but for g: tanh;
                                                                               c = f c + i g; h = o tanh(c)
        "GRU"                    gi, w, h0, b      -> y, gates                 r, z = sigmoid(gi[t] + w h + b); s = w h + b;
                                                                               n = tanh(gi[t] + r s); h = n + z (h - n)
    recurrent_grad(w, h0, kept, cotangents; mode, reverse) -> those of gi, h0 (and c0)
        "RNN_TANH", "RNN_RELU"   w, h0, y, gy
        "LSTM"                   w, h0, c0, cells, gates, gy, gc[, g_cells, g_gates]
        "GRU"                    w, h0, y, gates, gy[, g_gates]

with gi [T, N, G H] (the inputs' projections, biases added), w [G H, H], states [N, H], b [3 H]; y and cells [T, N, H] are the
states of all steps, c [N, H] is the last cell, and gates [T, N, 4 H] are i, f, g, o after their functions, or r, z, n, s.
`reverse` goes from the last step to the first. Hochreiter and Schmidhuber (1997), with forget gates; Cho et al. (2014), the
reset gate behind the product. Narrow floats are computed in float32.

The gradient goes through the steps once, for the cotangents of the gates and of the states. What w and b get is then one
product of all steps' cotangents and states, and one sum. Where nothing flows into what was kept, its cotangents are left out.

The steps are written once, in smaller primitives (`composed`): arrays go through them under an interpreter of NumPy functions,
targets that have no routine expand them, and derivatives of the gradient are theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype, float32
from flame.ops.contract import matmul, transposed
from flame.ops.create import full
from flame.ops.declare import draw, draws, is_narrow, widened
from flame.ops.elementwise import add, mul, relu, sigmoid, sub, tanh
from flame.ops.logic import cast, gt, where
from flame.ops.movement import cat, reshape
from flame.ops.movement import slice as slice_of
from flame.ops.reduce import sum as reduce_sum
from flame.ops.replay import pulled
from flame.primitive import Number, Primitive, Spec, interpreting, joint, register

#: mode -> gates, operands after gi and w, and results
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
_REFUSED = {"lower": "a routine of its own, or made of smaller primitives"}


# ---- shapes


def _infer(gi: Spec, w: Spec, h: Spec, *more: Spec, mode: str, reverse: bool) -> Any:
    gates = GATES[mode]
    t, n, width = gi.shape if gi.ndim == 3 else (0, 0, -1)
    size = h.shape[-1] if h.ndim == 2 else 0
    wanted = {"LSTM": [(n, size)], "GRU": [(3 * size,)]}.get(mode, [])
    found = [m.shape for m in more]
    if len({gi.dtype, w.dtype, h.dtype, *(m.dtype for m in more)}) > 1 or gi.dtype.kind != "f":
        raise RuntimeError(
            f"recurrent: expected operands of one floating dtype, but got {', '.join(map(str, (gi, w, h, *more)))}"
        )
    if width != gates * size or w.shape != (width, size) or h.shape != (n, size) or found != wanted or t == 0:
        raise RuntimeError(
            f"recurrent: expected for {mode} [T, N, {gates} H] with T > 0, [{gates} H, H], [N, H] and what {mode} has more, but "
            f"got {', '.join(str(list(x.shape)) for x in (gi, w, h, *more))}"
        )
    y, kept = Spec((t, n, size), gi.dtype), Spec((t, n, 4 * size), gi.dtype)
    return (y, h, y, kept) if mode == "LSTM" else (y, kept) if mode == "GRU" else y


def _grad_infer(w: Spec, h: Spec, *more: Spec | Number, mode: str, reverse: bool) -> tuple[Spec, ...]:
    gy = more[{"LSTM": 3, "GRU": 2}.get(mode, 1)]
    assert isinstance(gy, Spec)
    if gy.ndim != 3 or gy.shape[1:] != h.shape or w.shape != (GATES[mode] * h.shape[1], h.shape[1]):
        raise RuntimeError(f"recurrent_grad: a cotangent {gy} for weights {w} and states {h}")
    dgi = Spec((*gy.shape[:2], w.shape[0]), gy.dtype)
    return (dgi, h, h) if mode == "LSTM" else (dgi, h)


# ---- the steps, in smaller primitives


def _at(x: Any, t: int) -> Any:
    """x[t]."""
    n, width = x.shape[1:]
    return reshape(slice_of(x, starts=(t, 0, 0), stops=(t + 1, n, width), steps=(1, 1, 1)), shape=(n, width))


def _parts(x: Any, count: int) -> list[Any]:
    """What lies side by side in the last dimension."""
    lead, size = tuple(x.shape[:-1]), x.shape[-1] // count
    zeros, ones = (0,) * len(lead), (1,) * (len(lead) + 1)
    return [slice_of(x, starts=(*zeros, k * size), stops=(*lead, (k + 1) * size), steps=ones) for k in range(count)]


def _stacked(rows: list[Any]) -> Any:
    """Steps as one array, in order."""
    n, width = rows[0].shape
    rows = [reshape(r, shape=(1, n, width)) for r in rows]
    return rows[0] if len(rows) == 1 else cat(*rows, dim=0)


def _order(steps: int, reverse: bool) -> list[int]:
    return list(range(steps))[:: -1 if reverse else 1]


def _in_order(found: list[Any], reverse: bool) -> Any:
    return _stacked(found[:: -1 if reverse else 1])


def _forward(gi: Any, w: Any, h: Any, *more: Any, mode: str, reverse: bool) -> tuple[Any, ...]:
    turned = transposed(w)
    ys: list[Any] = []
    cells: list[Any] = []
    kept: list[Any] = []
    (c,) = more if mode == "LSTM" else (None,)
    for t in _order(gi.shape[0], reverse):
        x, z = _at(gi, t), matmul(h, turned)
        if mode == "LSTM":
            i, f, g, o = _parts(add(x, z), 4)
            i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
            c = add(mul(f, c), mul(i, g))
            h = mul(o, tanh(c))
            cells.append(c)
            kept.append(cat(i, f, g, o, dim=1))
        elif mode == "GRU":
            (xr, xz, xn), (hr, hz, s) = _parts(x, 3), _parts(add(z, more[0]), 3)
            r, u = sigmoid(add(xr, hr)), sigmoid(add(xz, hz))
            n = tanh(add(xn, mul(r, s)))
            h = add(n, mul(u, sub(h, n)))
            kept.append(cat(r, u, n, s, dim=1))
        else:
            h = (tanh if mode == "RNN_TANH" else relu)(add(x, z))
        ys.append(h)
    y = _in_order(ys, reverse)
    if mode == "LSTM":
        return y, c, _in_order(cells, reverse), _in_order(kept, reverse)
    return (y, _in_order(kept, reverse)) if mode == "GRU" else (y,)


def _plus(x: Any, g: Any) -> Any:
    """x + g; g may be the number 0."""
    return x if isinstance(g, int | float) else add(x, g)


def _step_of(g: Any, t: int) -> Any:
    return g if isinstance(g, int | float) else _at(g, t)


def _sides(g: Any, count: int) -> list[Any]:
    return [g] * count if isinstance(g, int | float) else _parts(g, count)


def _slope(s: Any) -> Any:
    """Of a sigmoid."""
    return mul(s, sub(1.0, s))


def _backward(w: Any, h0: Any, *more: Any, mode: str, reverse: bool) -> tuple[Any, ...]:
    dh: Any = 0.0
    dc: Any = 0.0
    found: list[Any] = []
    g_cells: Any = 0.0
    g_gates: Any = 0.0
    if mode == "LSTM":
        c0, cells, gates, gy, dc, *into = more
        g_cells, g_gates = into or (0.0, 0.0)
    elif mode == "GRU":
        y, gates, gy, *into = more
        (g_gates,) = into or (0.0,)
    else:
        y, gy = more
    order = _order(gy.shape[0], reverse)
    for k in reversed(range(len(order))):
        t = order[k]
        dh = _plus(_at(gy, t), dh)
        if mode == "LSTM":
            i, f, g, o = _parts(_at(gates, t), 4)
            gi, gf, gg, go = _sides(_step_of(g_gates, t), 4)
            bent = tanh(_at(cells, t))
            dc = _plus(dc, _step_of(g_cells, t))
            dc = add(dc, mul(mul(dh, o), sub(1.0, mul(bent, bent))))
            before = _at(cells, order[k - 1]) if k else c0
            di = mul(_plus(mul(dc, g), gi), _slope(i))
            df = mul(_plus(mul(dc, before), gf), _slope(f))
            dg = mul(_plus(mul(dc, i), gg), sub(1.0, mul(g, g)))
            do = mul(_plus(mul(dh, bent), go), _slope(o))
            dz = cat(di, df, dg, do, dim=1)
            found.append(dz)
            dh, dc = matmul(dz, w), mul(dc, f)
        elif mode == "GRU":
            r, u, n, s = _parts(_at(gates, t), 4)
            gr, gu, gn, gs = _sides(_step_of(g_gates, t), 4)
            before = _at(y, order[k - 1]) if k else h0
            dn = mul(_plus(mul(dh, sub(1.0, u)), gn), sub(1.0, mul(n, n)))
            du = mul(_plus(mul(dh, sub(before, n)), gu), _slope(u))
            dr = mul(_plus(mul(dn, s), gr), _slope(r))
            found.append(cat(dr, du, dn, dim=1))
            dh = add(matmul(cat(dr, du, _plus(mul(dn, r), gs), dim=1), w), mul(dh, u))
        else:
            out = _at(y, t)
            if mode == "RNN_TANH":
                dz = mul(dh, sub(1.0, mul(out, out)))
            else:
                dz = where(gt(out, 0.0), dh, 0.0)
            found.append(dz)
            dh = matmul(dz, w)
    dgi = _in_order(found[::-1], reverse)
    return (dgi, dh, dc) if mode == "LSTM" else (dgi, dh)


def _computed(f: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """The steps on narrow floats in float32."""

    def run(*operands: Any, **how: Any) -> tuple[Any, ...]:
        d = operands[0].dtype
        if not d.is_narrow_float:
            return f(*operands, **how)
        wide = [x if isinstance(x, int | float) else cast(x, dtype=float32) for x in operands]
        return tuple(cast(y, dtype=d) for y in f(*wide, **how))

    return run


#: primitive's name -> the same in smaller ones
composed: dict[str, Callable[..., tuple[Any, ...]]] = {
    "recurrent": _computed(_forward),
    "recurrent_grad": _computed(_backward),
}


# ---- on arrays


class _OfArrays:
    """The interpreter under which the steps are computed by NumPy."""

    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        return primitive.eager(*operands, **params)

    def composite(self, f: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Any:
        return f(*args, **kwargs)


_of_arrays = _OfArrays()


def _eager(f: Callable[..., Any], one: bool) -> Callable[..., Any]:
    def run(*operands: Any, mode: str, reverse: bool) -> Any:
        d = operands[0].dtype
        if is_narrow(d):
            operands = tuple(widened(x) if isinstance(x, np.ndarray) else x for x in operands)
        with interpreting(_of_arrays):
            found = [np.asarray(y, d, order="C") for y in f(*operands, mode=mode, reverse=reverse)]
        return found[0] if one and len(found) == 1 else tuple(found)

    return run


# ---- derivatives


def _flowing(*pairs: tuple[Any, Any]) -> tuple[Any, ...]:
    """The cotangents of what was kept, zeros for those that are missing; none where all are."""
    if all(g is None for g, _ in pairs):
        return ()
    return tuple(_or_zeros(g, y) for g, y in pairs)


def _or_zeros(g: Any, y: Any) -> Any:
    return full(0, shape=tuple(y.shape), dtype=y.dtype) if g is None else g


def _vjp(g: Any, y: Any, _gi: Any, w: Any, h: Any, *more: Any, mode: str, reverse: bool) -> tuple[Any, ...]:
    how: dict[str, Any] = {"mode": mode, "reverse": reverse}
    dc: tuple[Any, ...] = ()
    db: tuple[Any, ...] = ()
    if mode == "LSTM":
        gy, gc, g_cells, g_gates = g
        out, last, cells, gates = y
        gy, gc = _or_zeros(gy, out), _or_zeros(gc, last)
        dgi, dh, *dc = recurrent_grad(w, h, *more, cells, gates, gy, gc, *_flowing((g_cells, cells), (g_gates, gates)), **how)
        dz = dgi
    elif mode == "GRU":
        (gy, g_gates), (out, gates) = g, y
        gy, into = _or_zeros(gy, out), _flowing((g_gates, gates))
        dgi, dh = recurrent_grad(w, h, out, gates, gy, *into, **how)
        dr, du, dn = _parts(dgi, 3)
        dz = cat(dr, du, _plus(mul(dn, _parts(gates, 4)[0]), _parts(into[0], 4)[3] if into else 0.0), dim=2)
        db = (reduce_sum(dz, dim=(0, 1), keepdim=False),)
    else:
        out = y
        dgi, dh = recurrent_grad(w, h, y, g, **how)
        dz = dgi
    t, n, size = out.shape
    first = reshape(h, shape=(1, n, size))
    if t > 1:
        rest = slice_of(out, starts=(int(reverse), 0, 0), stops=(t - 1 + int(reverse), n, size), steps=(1, 1, 1))
        first = cat(*((rest, first) if reverse else (first, rest)), dim=0)
    dw = matmul(transposed(reshape(dz, shape=(t * n, dz.shape[2]))), reshape(first, shape=(t * n, size)))
    return dgi, dw, dh, *dc, *db


def _grad_vjp(g: Any, _y: Any, *operands: Any, mode: str, reverse: bool) -> tuple[Any, ...]:
    steps = functools.partial(composed["recurrent_grad"], mode=mode, reverse=reverse)
    return tuple(_or_zeros(got, x) for got, x in zip(pulled(steps, operands, g), operands, strict=True))


# ---- the records

_cases = ((3, 2, 4, False), (2, 3, 9, True), (1, 1, 1, False), (4, 17, 8, True), (2, 0, 3, False))


def _samples(name: str) -> Callable[[], Iterator[tuple[tuple, dict]]]:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(name)
        for d in (x for x in dtypes.ALL if x.kind == "f"):
            for mode, gates in GATES.items():
                for t, n, size, reverse in _cases:
                    how: dict[str, Any] = {"mode": mode, "reverse": reverse}
                    operands = _drawn(r, d, mode, gates, t, n, size)
                    if name == "recurrent":
                        yield operands, how
                        continue
                    results = recurrent.eager(*operands, **how)
                    yield _grad_operands(r, d, mode, operands, results, n == 17), how

    return samples


def _drawn(r: Any, d: dtype, mode: str, gates: int, t: int, n: int, size: int) -> tuple[np.ndarray, ...]:
    shapes = [(t, n, gates * size), (gates * size, size), (n, size)]
    shapes += [(n, size)] if mode == "LSTM" else [(3 * size,)] if mode == "GRU" else []
    return tuple(draw(r, d, s, -1, 1) for s in shapes)


def _grad_operands(r: Any, d: dtype, mode: str, operands: tuple, results: Any, absent: bool) -> tuple:
    """What the gradient takes; nothing flows into what is kept if `absent`."""
    _, w, h, *more = operands
    y, *kept = results if isinstance(results, tuple) else (results,)
    like = lambda x: draw(r, d, x.shape, -1, 1)
    if mode == "LSTM":
        _, cells, gates = kept
        into = () if absent else (like(cells), like(gates))
        return (w, h, *more, cells, gates, like(y), like(h), *into)
    if mode == "GRU":
        return (w, h, y, kept[0], like(y), *(() if absent else (like(kept[0]),)))
    if mode == "RNN_RELU":  # away from the edge, at which differences see a jump
        y = np.where(y > 0, y + y.dtype.type(0.1), y.dtype.type(-0.5)).astype(y.dtype)
    return w, h, y, like(y)


recurrent: Primitive = register(
    "recurrent",
    kind="opaque",
    infer=_infer,
    eager=_eager(_forward, one=True),
    vjp=joint(_vjp, absent=True),
    refused=_REFUSED,
    samples=_samples("recurrent"),
    doc="recurrent(gi, w, h[, more], *, mode, reverse): the states of a recurrent layer at all steps, and what its gradient reads.",
)
recurrent_grad: Primitive = register(
    "recurrent_grad",
    kind="opaque",
    infer=_grad_infer,
    eager=_eager(_backward, one=False),
    vjp=joint(_grad_vjp),
    refused=_REFUSED,
    samples=_samples("recurrent_grad"),
    doc="recurrent_grad(w, h, kept, cotangents, *, mode, reverse): the cotangents of a recurrent layer's projections and states.",
)
