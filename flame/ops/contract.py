"""Contractions: matmul, the general two-operand contraction, convolution and its two gradients.

Each is a sum of products over some axes; `lower` says which elements meet. Products are carried in float32 for float16 and
bfloat16 and rounded once; integers are exact (they wrap). Convolutions are channels-first with 1 to 3 spatial dimensions:

    conv(x[n, c, *s], w[o, c / groups, *k]) -> y[n, o, *t]      y[t] = sum over c, k of x[t * stride + k * dilation - lo] * w[k]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype
from flame.ops.access import Choice, Cond, Contraction, E, Index
from flame.ops.blas import product
from flame.ops.declare import draw, draws, is_narrow, quiet, widened
from flame.ops.elementwise import conj
from flame.ops.movement import permute
from flame.primitive import Primitive, Spec, broadcast_shapes, register

Ints = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]

_CONTRACTED = tuple(d for d in dtypes.ALL if d.kind != "b")


def _one_dtype(name: str, a: Spec, b: Spec) -> dtype:
    if a.dtype is not b.dtype:
        raise RuntimeError(f"{name}: expected both operands to have the same dtype, but got {a.dtype} and {b.dtype}")
    if a.dtype.kind == "b":
        raise NotImplementedError(f'"{name}" not implemented for {a.dtype}')
    return a.dtype


def _product(f: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f(a, b) carried in the accumulator's dtype, rounded to the operands'."""
    if is_narrow(a.dtype):
        return quiet.run(quiet.run(f, widened(a), widened(b)).astype, a.dtype, order="C")
    return np.asarray(quiet.run(f, a, b), order="C")


# -------------------------------------------------------------------------------------------------------------- matmul


def _matmul_infer(a: Spec, b: Spec) -> Spec:
    if a.ndim < 2 or b.ndim < 2:
        raise RuntimeError(f"matmul: both arguments need to be at least 2D here, but they are {a.ndim}D and {b.ndim}D")
    d = _one_dtype("matmul", a, b)
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({a.shape[-2]}x{a.shape[-1]} and {b.shape[-2]}x{b.shape[-1]})"
        )
    batch = broadcast_shapes(a.shape[:-2], b.shape[:-2], op="matmul")
    return Spec(batch + (a.shape[-2], b.shape[-1]), d)


def _batch(index: Index, x: Spec) -> Index:
    """The batch part of an operand's index: where it broadcasts, 0."""
    lead = len(index) - x.ndim
    return tuple(0 if x.shape[d] == 1 else index[lead + d] for d in range(x.ndim - 2))


def _matmul_lower(index: Index, a: Spec, b: Spec) -> Contraction:
    return Contraction(
        (a.shape[-1],),
        lambda axes: Choice(0, _batch(index, a) + (index[-2], axes[0])),
        lambda axes: Choice(1, _batch(index, b) + (axes[0], index[-1])),
    )


def transposed(x: Any) -> Any:
    """The last two dimensions exchanged."""
    n = len(x.shape)
    return permute(x, dims=(*range(n - 2), n - 1, n - 2))


def _matmul_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("matmul")
    shapes = (
        ((3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((3, 4), (2, 4, 1)),
        ((1, 7), (7, 1)),
        ((0, 3), (3, 2)),
        ((2, 0), (0, 3)),
        ((33, 17), (17, 9)),
    )
    for d in _CONTRACTED:
        for a, b in shapes:
            yield (draw(r, d, a, -2, 2), draw(r, d, b, -2, 2)), {}


matmul: Primitive = register(
    "matmul",
    kind="contract",
    infer=_matmul_infer,
    eager=lambda a, b: _product(product, a, b),
    vjp=(lambda g, _y, _a, b: matmul(g, conj(transposed(b))), lambda g, _y, a, _b: matmul(conj(transposed(a)), g)),
    lower=_matmul_lower,
    samples=_matmul_samples,
    doc="matmul(a, b): a[.., m, k] by b[.., k, n], the dimensions in front broadcasting.",
)

# ------------------------------------------------------------------------------------------------------------ contract


def _letters(spec: str, a: Spec, b: Spec) -> tuple[str, str, str, dict[str, int]]:
    """The letters of "ij,jk->ik", checked, and their sizes."""
    left, _, out = spec.partition("->")
    la, _, lb = left.partition(",")
    if len(la) != a.ndim or len(lb) != b.ndim or any(len(set(s)) != len(s) for s in (la, lb, out)):
        raise RuntimeError(f"contract: {spec!r} does not name each dimension of {a} and {b} once")
    sizes: dict[str, int] = {}
    for letter, n in itertools.chain(zip(la, a.shape, strict=True), zip(lb, b.shape, strict=True)):
        if sizes.setdefault(letter, n) != n:
            raise RuntimeError(f"contract: {spec!r}: dimension {letter!r} has sizes {sizes[letter]} and {n}")
    alone = [c for c in sizes if c not in out and (c not in la or c not in lb)]
    if alone or any(c not in sizes for c in out):
        raise RuntimeError(f"contract: {spec!r}: a summed dimension must be in both operands, one of the result in either")
    return la, lb, out, sizes


def _contract_infer(a: Spec, b: Spec, *, spec: str) -> Spec:
    d = _one_dtype("contract", a, b)
    _, _, out, sizes = _letters(spec, a, b)
    return Spec(tuple(sizes[c] for c in out), d)


def _contract_lower(index: Index, a: Spec, b: Spec, *, spec: str) -> Contraction:
    la, lb, out, sizes = _letters(spec, a, b)
    summed = [c for c in la if c not in out]

    def side(operand: int, letters: str) -> Any:
        def read(axes: Index) -> Choice:
            where: dict[str, E] = dict(zip(out, index, strict=True)) | dict(zip(summed, axes, strict=True))
            return Choice(operand, tuple(where[c] for c in letters))

        return read

    return Contraction(tuple(sizes[c] for c in summed), side(0, la), side(1, lb))


def _contract_eager(a: np.ndarray, b: np.ndarray, *, spec: str) -> np.ndarray:
    """Through one batched matrix product: [batch, m, k] by [batch, k, n], then the result's order."""
    left, _, out = spec.partition("->")
    la, _, lb = left.partition(",")
    batch = [c for c in out if c in la and c in lb]
    rows = [c for c in la if c in out and c not in lb]
    columns = [c for c in lb if c in out and c not in la]
    summed = [c for c in la if c not in out]
    sizes = dict(zip(la + lb, a.shape + b.shape, strict=True))

    def size(letters: list[str]) -> int:
        return math.prod(sizes[c] for c in letters)

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a = a.transpose([la.index(c) for c in batch + rows + summed]).reshape(size(batch), size(rows), size(summed))
        b = b.transpose([lb.index(c) for c in batch + summed + columns]).reshape(size(batch), size(summed), size(columns))
        order = batch + rows + columns
        y = product(a, b).reshape([sizes[c] for c in order])
        return y.transpose([order.index(c) for c in out])

    return np.asarray(_product(multiply, a, b), order="C")


def _contract_vjp(operand: int, g: Any, other: Any, spec: str) -> Any:
    left, _, out = spec.partition("->")
    la, _, lb = left.partition(",")
    return contract(g, other, spec=f"{out},{lb}->{la}" if operand == 0 else f"{out},{la}->{lb}")


def _contract_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("contract")
    sizes = {"b": 2, "h": 3, "i": 4, "j": 5, "k": 6, "z": 0, "u": 1}
    for d in _CONTRACTED:
        for spec in ("ij,jk->ik", "bhik,bhjk->bhij", "bij,jk->kib", "i,j->ij", "i,i->", "ij,ij->ji", "iz,zj->ij", "ubi,iu->bu"):
            la, lb = spec.split("->")[0].split(",")
            yield tuple(draw(r, d, tuple(sizes[c] for c in s), -2, 2) for s in (la, lb)), {"spec": spec}


contract: Primitive = register(
    "contract",
    kind="contract",
    infer=_contract_infer,
    eager=_contract_eager,
    vjp=(
        lambda g, _y, _a, b, *, spec: _contract_vjp(0, g, b, spec),
        lambda g, _y, a, _b, *, spec: _contract_vjp(1, g, a, spec),
    ),
    lower=_contract_lower,
    samples=_contract_samples,
    doc='contract(a, b, *, spec): two operands as in einsum, "ij,jk->ik"; a summed letter stands in both.',
)

# --------------------------------------------------------------------------------------------------------- convolution


def conv_sizes(space: Ints, kernel: Ints, stride: Ints, padding: Padding, dilation: Ints) -> Ints:
    """The spatial size of a convolution's result."""
    return tuple(
        (n + lo + hi - d * (k - 1) - 1) // s + 1
        for n, k, s, (lo, hi), d in zip(space, kernel, stride, padding, dilation, strict=True)
    )


def _conv_check(x: Spec, w: Spec, *, stride: Ints, padding: Padding, dilation: Ints, groups: int) -> Spec:
    rank = x.ndim - 2
    d = _one_dtype("conv", x, w)
    if not 1 <= rank <= 3 or w.ndim != x.ndim:
        raise RuntimeError(
            f"Expected 3D to 5D input to conv and a weight of as many dimensions, but got input of size: {list(x.shape)} and "
            f"weight of size {list(w.shape)}"
        )
    if not len(stride) == len(padding) == len(dilation) == rank:
        raise RuntimeError(f"conv: expected {rank} strides, paddings and dilations, but got {stride}, {padding}, {dilation}")
    if min(stride) < 1 or min(dilation) < 1 or groups < 1 or min(min(p) for p in padding) < 0:
        raise RuntimeError("non-positive stride, dilation or groups, or negative padding, is not supported")
    if x.shape[1] != w.shape[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(w.shape)}, expected input{list(x.shape)} to have "
            f"{w.shape[1] * groups} channels, but got {x.shape[1]} channels instead"
        )
    if w.shape[0] % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got weight of size "
            f"{list(w.shape)} instead"
        )
    out = conv_sizes(x.shape[2:], w.shape[2:], stride, padding, dilation)
    if min(out) < 0 or min(w.shape[2:]) < 1 or any(n + lo + hi < dl * (k - 1) + 1 for n, k, (lo, hi), dl in zip(
        x.shape[2:], w.shape[2:], padding, dilation, strict=True
    )):  # fmt: skip
        padded = [n + lo + hi for n, (lo, hi) in zip(x.shape[2:], padding, strict=True)]
        raise RuntimeError(
            f"Calculated padded input size per channel: {padded}. Kernel size: {list(w.shape[2:])}. Kernel size can't be "
            "greater than actual input size"
        )
    return Spec((x.shape[0], w.shape[0], *out), d)


class _Columns:
    """The im2col matrices of a convolution, an image at a time so that they stay in cache: [groups, c / groups * k, places].

    With stride 1 a place is a position in the flattened padded image, from the first result's to the last's: all of a row of
    the matrix is then one run of memory, which copies several times faster, for a few places between the rows of the image
    that no result needs. Where those would be many, and with other strides, the places are the results.
    """

    def __init__(self, x: np.ndarray, kernel: Ints, *, stride: Ints, padding: Padding, dilation: Ints, groups: int):
        _, channels, *space = x.shape
        self.images = x
        self.out = conv_sizes(tuple(space), kernel, stride, padding, dilation)
        padded = tuple(n + lo + hi for n, (lo, hi) in zip(space, padding, strict=True))
        self.room = None if padded == tuple(space) else np.zeros((channels, *padded), x.dtype)
        self.inner = (slice(None), *(slice(lo, lo + n) for n, (lo, _) in zip(space, padding, strict=True)))
        steps = [math.prod(padded[i + 1 :]) for i in range(len(padded))]  # strides of the padded image, in elements
        run = sum((n - 1) * s for n, s in zip(self.out, steps, strict=True)) + 1
        self.flat = max(stride) == 1 and run <= 1.5 * math.prod(self.out)
        self.places: Ints = (run,) if self.flat else self.out
        self.width = math.prod(self.places)
        item, plane = x.itemsize, math.prod(padded)
        #: where each result lies among the places
        self.result_strides = tuple(item * s for s in (steps if self.flat else _row_major(self.out)))
        self.shape = (groups, channels // groups, *kernel, *self.places)
        by_place = (1,) if self.flat else tuple(s * n for s, n in zip(steps, stride, strict=True))
        by_tap = tuple(s * d for s, d in zip(steps, dilation, strict=True))
        self.strides = tuple(item * n for n in (channels // groups * plane, plane, *by_tap, *by_place))

    def of(self, i: int) -> np.ndarray:
        image = np.ascontiguousarray(self.images[i])
        if self.room is not None:
            self.room[self.inner] = image
            image = self.room
        view = np.ndarray(self.shape, image.dtype, image, 0, self.strides)  # as_strided took longer than small products
        return view.reshape(self.shape[0], math.prod(self.shape[1 : -len(self.places)]), self.width)

    def results(self, y: np.ndarray) -> np.ndarray:
        """The results in a C-contiguous y[groups, m, places], as a view [groups, m, *out]."""
        return np.ndarray((*y.shape[:2], *self.out), y.dtype, y, 0, (*y.strides[:2], *self.result_strides))


def _row_major(shape: Ints) -> Ints:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _conv_eager(x: np.ndarray, w: np.ndarray, **how: Any) -> np.ndarray:
    groups, kernel = how["groups"], w.shape[2:]
    out = conv_sizes(x.shape[2:], kernel, how["stride"], how["padding"], how["dilation"])
    if 0 in (*x.shape, *w.shape, *out):
        return np.zeros((x.shape[0], w.shape[0], *out), x.dtype)

    def multiply(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        columns = _Columns(x, kernel, **how)
        weights = w.reshape(groups, w.shape[0] // groups, -1)
        y = np.empty((x.shape[0], groups, w.shape[0] // groups, *out), x.dtype)
        for i in range(x.shape[0]):
            y[i] = columns.results(product(weights, columns.of(i)))
        return y.reshape(x.shape[0], w.shape[0], *out)

    return _product(multiply, x, w)


def _conv_lower(index: Index, x: Spec, w: Spec, *, stride: Ints, padding: Padding, dilation: Ints, groups: int) -> Contraction:
    n, o, *t = index
    per_group = w.shape[0] // groups

    def left(axes: Index) -> Choice:
        c, *k = axes
        at = tuple(ti * s + ki * d - lo for ti, ki, s, d, (lo, _) in zip(t, k, stride, dilation, padding, strict=True))
        conds = []
        for e, size, (lo, hi) in zip(at, x.shape[2:], padding, strict=True):
            conds += [Cond(e)] * (lo > 0) + [Cond(size - 1 - e)] * (hi > 0)
        channel = c if groups == 1 else (o // per_group) * w.shape[1] + c
        return Choice(0, (n, channel, *at), tuple(conds))

    return Contraction(w.shape[1:], left, lambda axes: Choice(1, (o, *axes)))


def _input_grad_infer(g: Spec, w: Spec, *, input_shape: Ints, phases: bool = False, **how: Any) -> Spec:
    y = _conv_check(Spec(input_shape, g.dtype), w, **how)
    if y != g:
        raise RuntimeError(f"conv_input_grad: expected the cotangent to be {y}, but got {g}")
    return Spec(input_shape, g.dtype)


def _input_grad_eager(g: np.ndarray, w: np.ndarray, *, input_shape: Ints, phases: bool = False, **how: Any) -> np.ndarray:
    groups, padding, dilation, kernel = how["groups"], how["padding"], how["dilation"], w.shape[2:]
    if 0 in (*g.shape, *w.shape):
        return np.zeros(input_shape, g.dtype)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if max(how["stride"]) == 1 and all(lo <= r and hi <= r for r, (lo, hi) in zip(reach, padding, strict=True)):
        # a convolution again: of the cotangent, with the kernel turned round and its channels exchanged
        back = np.flip(w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).swapaxes(1, 2), tuple(range(3, w.ndim + 1)))
        outer = tuple((r - lo, r - hi) for r, (lo, hi) in zip(reach, padding, strict=True))
        return _conv_eager(g, back.reshape(input_shape[1], w.shape[0] // groups, *kernel), **(how | {"padding": outer}))
    out = g.shape[2:]
    padded = tuple(n + lo + hi for n, (lo, hi) in zip(input_shape[2:], padding, strict=True))
    inner: Any = (..., *(slice(lo, lo + n) for n, (lo, _) in zip(input_shape[2:], padding, strict=True)))

    def multiply(g: np.ndarray, w: np.ndarray) -> np.ndarray:
        n, c = input_shape[:2]
        weights = w.reshape(groups, w.shape[0] // groups, -1).transpose(0, 2, 1)
        cotangents = g.reshape(n, groups, w.shape[0] // groups, -1)
        x = np.empty(input_shape, g.dtype)
        for i in range(n):
            columns = product(weights, cotangents[i]).reshape(c, *kernel, *out)
            image = np.zeros((c, *padded), g.dtype)
            for at in np.ndindex(*kernel):
                to: Any = (slice(None),)
                for k, d, t, s in zip(at, dilation, out, how["stride"], strict=True):
                    to += (slice(k * d, k * d + (t - 1) * s + 1, s),)
                tap: Any = (slice(None), *at)
                image[to] += columns[tap]
            x[i] = image[inner]
        return x

    return _product(multiply, g, w)


def _phase(i: E, stride: int, dilation: int, lo: int) -> tuple[E, E]:
    """The first tap that reaches input position i, of those a stride apart; and the result that it reaches from it.

    Tap k reaches it from result t where t * stride = i + lo - k * dilation. With i = stride * q + r that is a matter of r, the
    phase: k is the inverse of the dilation times r + lo, modulo the stride, plus a multiple of the stride."""
    q, r = i // stride, i % stride
    tap = ((r + lo) * pow(dilation, -1, stride)) % stride
    return tap, q + (r + lo - tap * dilation) // stride


def _input_grad_lower(
    index: Index,
    g: Spec,
    w: Spec,
    *,
    input_shape: Ints,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    phases: bool = False,
) -> Contraction:
    """With `phases`, of each strided dimension only the taps that reach a position are summed, which depend on the position
    modulo the stride; without, all of them, most being masked. (A dilation that shares a factor with the stride has no phases.)"""
    n, c, *at = index
    by_phase = [phases and s > 1 and math.gcd(s, d) == 1 for s, d in zip(stride, dilation, strict=True)]
    extents = tuple(-(-k // s) if p else k for k, s, p in zip(w.shape[2:], stride, by_phase, strict=True))
    per_group = w.shape[0] // groups

    def out_channel(o: E) -> E:
        return o if groups == 1 else (c // w.shape[1]) * per_group + o

    def left(axes: Index) -> Choice:
        o, *k = axes
        conds, places = [], []
        for i, ki, s, d, (lo, _), size, p, taps in zip(
            at, k, stride, dilation, padding, g.shape[2:], by_phase, w.shape[2:], strict=True
        ):
            if p:
                tap, t = _phase(i, s, d, lo)
                e = t - ki * d
                conds += [Cond(e), Cond(size - 1 - e), Cond(taps - 1 - (tap + ki * s))]
                places.append(e)
                continue
            e = i + lo - ki * d
            conds += [Cond(e), Cond((size - 1) * s - e)] + [Cond(e % s, "eq")] * (s > 1)
            places.append(e // s if s > 1 else e)
        return Choice(0, (n, out_channel(o), *places), tuple(conds))

    def right(axes: Index) -> Choice:
        o, *k = axes
        conds, taps = [], []
        for i, ki, s, d, (lo, _), p, count in zip(at, k, stride, dilation, padding, by_phase, w.shape[2:], strict=True):
            tap = _phase(i, s, d, lo)[0] + ki * s if p else ki
            taps.append(tap)
            conds += [Cond(count - 1 - tap)] * p
        return Choice(1, (out_channel(o), c if groups == 1 else c % w.shape[1], *taps), tuple(conds))

    return Contraction((per_group, *extents), left, right)


def _weight_grad_infer(x: Spec, g: Spec, *, weight_shape: Ints, **how: Any) -> Spec:
    y = _conv_check(x, Spec(weight_shape, x.dtype), **how)
    if y != g:
        raise RuntimeError(f"conv_weight_grad: expected the cotangent to be {y}, but got {g}")
    return Spec(weight_shape, x.dtype)


def _weight_grad_eager(x: np.ndarray, g: np.ndarray, *, weight_shape: Ints, **how: Any) -> np.ndarray:
    if 0 in (*x.shape, *g.shape, *weight_shape):
        return np.zeros(weight_shape, x.dtype)

    def multiply(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        columns = _Columns(x, weight_shape[2:], **how)
        rows = (how["groups"], weight_shape[0] // how["groups"])
        total = np.zeros((*rows, math.prod(weight_shape[1:])), x.dtype)
        spread = np.zeros((*rows, columns.width), x.dtype)  # 0 at the places that are no results
        results = columns.results(spread)
        for i in range(x.shape[0]):
            results[...] = g[i].reshape(*rows, *columns.out)
            total += product(spread, columns.of(i).transpose(0, 2, 1))
        return total.reshape(weight_shape)

    return _product(multiply, x, g)


def _weight_grad_lower(
    index: Index,
    x: Spec,
    g: Spec,
    *,
    weight_shape: Ints,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
) -> Contraction:
    o, c, *k = index
    per_group = weight_shape[0] // groups

    def left(axes: Index) -> Choice:
        n, *t = axes
        at = tuple(ti * s + ki * d - lo for ti, ki, s, d, (lo, _) in zip(t, k, stride, dilation, padding, strict=True))
        conds = []
        for e, size, (lo, hi) in zip(at, x.shape[2:], padding, strict=True):
            conds += [Cond(e)] * (lo > 0) + [Cond(size - 1 - e)] * (hi > 0)
        channel = c if groups == 1 else (o // per_group) * weight_shape[1] + c
        return Choice(0, (n, channel, *at), tuple(conds))

    def right(axes: Index) -> Choice:
        n, *t = axes
        return Choice(1, (n, o, *t))

    return Contraction((x.shape[0], *g.shape[2:]), left, right)


_conv_cases: tuple[tuple[Ints, Ints, dict], ...] = (
    ((2, 3, 8), (4, 3, 3), {"stride": (1,), "padding": ((1, 1),), "dilation": (1,), "groups": 1}),
    ((1, 2, 6, 5), (3, 2, 3, 2), {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}),
    ((2, 4, 7, 6), (6, 2, 3, 3), {"stride": (2, 1), "padding": ((1, 1), (0, 2)), "dilation": (1, 2), "groups": 2}),
    ((2, 3, 5, 5), (3, 1, 2, 2), {"stride": (2, 3), "padding": ((0, 1), (1, 0)), "dilation": (1, 1), "groups": 3}),
    ((1, 2, 4, 4, 4), (2, 2, 2, 2, 2), {"stride": (1,) * 3, "padding": ((0, 0),) * 3, "dilation": (1,) * 3, "groups": 1}),
    ((2, 3, 4, 4), (5, 3, 1, 1), {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}),
    ((0, 3, 4), (2, 3, 3), {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": 1}),
    ((1, 2, 9), (2, 2, 2), {"stride": (4,), "padding": ((0, 0),), "dilation": (3,), "groups": 1}),
)


def _conv_samples(which: str) -> Any:
    def samples() -> Iterator[tuple[tuple, dict]]:
        r = draws(which)
        for d in _CONTRACTED:
            for x, w, how in _conv_cases:
                y = _conv_check(Spec(x, d), Spec(w, d), **how).shape
                operands, extra = {
                    "conv": ((x, w), {}),
                    "conv_input_grad": ((y, w), {"input_shape": x}),
                    "conv_weight_grad": ((x, y), {"weight_shape": w}),
                }[which]
                yield tuple(draw(r, d, s, -2, 2) for s in operands), how | extra

    return samples


conv: Primitive = register(
    "conv",
    kind="contract",
    infer=_conv_check,
    eager=_conv_eager,
    vjp=(
        lambda g, _y, _x, w, **how: conv_input_grad(g, conj(w), input_shape=_x.shape, **how),
        lambda g, _y, x, _w, **how: conv_weight_grad(conj(x), g, weight_shape=_w.shape, **how),
    ),
    lower=_conv_lower,
    samples=_conv_samples("conv"),
    doc="conv(x, w, *, stride, padding, dilation, groups): padding is ((lo, hi), ...), one pair a spatial dimension.",
)
conv_input_grad: Primitive = register(
    "conv_input_grad",
    kind="contract",
    infer=_input_grad_infer,
    eager=_input_grad_eager,
    vjp=(
        lambda g, _y, _g, w, *, input_shape, phases=False, **how: conv(g, conj(w), **how),
        lambda g, _y, cotangent, _w, *, input_shape, phases=False, **how: conv_weight_grad(
            g, conj(cotangent), weight_shape=_w.shape, **how
        ),
    ),
    lower=_input_grad_lower,
    samples=_conv_samples("conv_input_grad"),
    doc="conv_input_grad(g, w, *, input_shape, ...): the cotangent of conv's input; a transposed convolution.",
)
conv_weight_grad: Primitive = register(
    "conv_weight_grad",
    kind="contract",
    infer=_weight_grad_infer,
    eager=_weight_grad_eager,
    vjp=(
        lambda g, _y, _x, cotangent, *, weight_shape, **how: conv_input_grad(conj(cotangent), g, input_shape=_x.shape, **how),
        lambda g, _y, x, _g, *, weight_shape, **how: conv(conj(x), g, **how),
    ),
    lower=_weight_grad_lower,
    samples=_conv_samples("conv_weight_grad"),
    doc="conv_weight_grad(x, g, *, weight_shape, ...): the cotangent of conv's weight.",
)
