"""How each primitive runs on a batch: one rule a kind, and one a name where the kind does not say enough.

    rule(primitive, size, operands, batches, params) -> result(s), each with the examples along its first dimension

`batches[i]` says that operand i has the examples along its first dimension; the others are the same for all `size` of them (or
numbers), and at least one is batched (or the primitive draws anew for each). A rule is written in primitives, over whatever
values the interpreter in force takes. `RULES` has one for every primitive of the registry; a test compares each with a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flame.dtypes import int64
from flame.primitive import REGISTRY, Primitive, broadcast_shapes, registered
from flame.tensor import Tensor

RESHAPE, EXPAND, PERMUTE, IOTA, COPY = map(registered, ("reshape", "expand", "permute", "iota", "copy"))
SLICE, CAT = map(registered, ("slice", "cat"))
MATMUL, INDEX_ND, INDEX_PUT, INDEX_SELECT = map(registered, ("matmul", "index_nd", "index_put", "index_select"))
Rule = Callable[[Primitive, int, list, list, dict], Any]

# ------------------------------------------------------------------------------------------------- words of the rules


def shaped(x: Any, batch: bool, rank: int) -> Any:
    """An operand whose example has fewer dimensions than `rank` with ones after the batch, so that it broadcasts."""
    missing = rank - (x.ndim - batch) if batch else 0
    return RESHAPE(x, shape=(x.shape[0], *[1] * missing, *x.shape[1:])) if missing > 0 else x


def spread(x: Any, batch: bool, size: int) -> Any:
    """An operand with the examples along its first dimension, a view where it is the same for all."""
    return x if batch or not isinstance(x, Tensor) else EXPAND(x, shape=(size, *x.shape))


def moved(x: Any, a: int, b: int) -> Any:
    """x with dimension a at the place b."""
    if a == b:
        return x
    dims = [d for d in range(x.ndim) if d != a]
    dims.insert(b, a)
    return PERMUTE(x, dims=tuple(dims))


def merged(x: Any, at: int) -> Any:
    """The first dimension, which counts examples, joined with the example's dimension `at` (the examples outside)."""
    y = moved(x, 0, at)
    s = tuple(y.shape)
    return RESHAPE(y, shape=(*s[:at], s[at] * s[at + 1], *s[at + 2 :]))


def parted(x: Any, at: int, size: int) -> Any:
    """The reverse of `merged`."""
    s = tuple(x.shape)
    return moved(RESHAPE(x, shape=(*s[:at], size, s[at] // size if size else 0, *s[at + 1 :])), at, 0)


def count(size: int, rank: int) -> Any:
    """The examples' numbers, to stand as an index beside others of `rank` dimensions."""
    return RESHAPE(IOTA(size=size, dtype=int64), shape=(size, *[1] * rank))


# ------------------------------------------------------------------------------------------- kinds that broadcast or lead


def _elementwise(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    rank = max(x.ndim - b for x, b in zip(xs, batches) if isinstance(x, Tensor))
    return p(*(shaped(x, b, rank) if b else x for x, b in zip(xs, batches)), **params)


def _leading(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    """What takes any dimensions in front, equal for all operands; parameters that count dimensions from the front move on."""
    moved_on = dict(params)
    for name in ("dim", "dim1", "dim2"):
        if name in params:
            moved_on[name] = params[name] + 1
    if "dims" in params:
        moved_on["dims"] = tuple(d + 1 for d in params["dims"])
    return p(*(spread(x, b, size) for x, b in zip(xs, batches)), **moved_on)


def _attention(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    """Its last two operands, if there are more than tensors with rows, broadcast to the scores."""
    rows = 3 if len(xs) < 6 else 6
    rank = xs[0].ndim - batches[0]
    more = [shaped(x, b, rank) if b else x for x, b in zip(xs[rows:], batches[rows:])]
    return p(*(spread(x, b, size) for x, b in zip(xs[:rows], batches[:rows])), *more, **params)


def _one_by_one(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    """What counts along its first dimension itself: each example by itself."""
    whole = [spread(x, b, size) for x, b in zip(xs, batches, strict=True)]
    rows = []
    for i in range(size):
        at = IOTA(size=1, dtype=int64) + i
        example = [RESHAPE(INDEX_SELECT(x, at, dim=0), shape=tuple(x.shape)[1:]) if isinstance(x, Tensor) else x for x in whole]
        rows.append(p(*example, **params))
    stack = registered("cat")
    several = isinstance(rows[0], tuple)
    columns = zip(*rows, strict=True) if several else (rows,)
    found = tuple(stack(*[RESHAPE(y, shape=(1, *y.shape)) for y in column], dim=0) for column in columns)
    return found if several else found[0]


def _recurrent(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    """Examples are more rows of the batch; one after the other where each has weights of its own."""
    shared = {0} if p.name == "recurrent_grad" else {1, 3} if params["mode"] == "GRU" else {1}
    if any(batches[i] for i in shared):
        each = [p(*(_example(x, i) if b else x for x, b in zip(xs, batches)), **params) for i in range(size)]
        found = [_stack(parts) for parts in (zip(*each) if isinstance(each[0], tuple) else (each,))]
        return tuple(found) if isinstance(each[0], tuple) else found[0]
    rows = lambda x: x.ndim - 2  # steps come first in what has three dimensions
    given = [x if i in shared else merged(spread(x, b, size), rows(x) - b) for i, (x, b) in enumerate(zip(xs, batches))]
    got = p(*given, **params)
    return tuple(parted(y, rows(y), size) for y in got) if isinstance(got, tuple) else parted(got, rows(got), size)


def _example(x: Any, i: int) -> Any:
    s = tuple(x.shape)
    one = SLICE(x, starts=(i, *[0] * (len(s) - 1)), stops=(i + 1, *s[1:]), steps=(1,) * len(s))
    return RESHAPE(one, shape=s[1:])


def _stack(xs: Any) -> Any:
    return CAT(*(RESHAPE(x, shape=(1, *x.shape)) for x in xs), dim=0)


# ----------------------------------------------------------------------------------------------------------- reductions


def _reduce(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    return p(xs[0], dim=tuple(d + 1 for d in params["dim"]), keepdim=params["keepdim"])


def _arg(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    (x,), dim = xs, params["dim"]
    if len(dim) == 1:
        return _reduce(p, size, xs, batches, params)
    flat = p(RESHAPE(x, shape=(size, math.prod(x.shape[1:]))), dim=(1,), keepdim=False)
    return RESHAPE(flat, shape=(size, *[1] * (x.ndim - 1))) if params["keepdim"] else flat


# ------------------------------------------------------------------------------------------------------------- movement


def _permute(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    return p(xs[0], dims=(0, *(d + 1 for d in params["dims"])))


def _reshape(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    return p(xs[0], shape=(size, *params["shape"]))


def _expand(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    return p(shaped(xs[0], True, len(params["shape"])), shape=(size, *params["shape"]))


def _slice(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    starts, stops, steps = (0, *params["starts"]), (size, *params["stops"]), (1, *params["steps"])
    return p(*(spread(x, b, size) for x, b in zip(xs, batches)), starts=starts, stops=stops, steps=steps)


def _pad(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    return p(xs[0], lo=(0, *params["lo"]), hi=(0, *params["hi"]), value=params["value"])


def _window_grad(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    return p(*xs, **params | {"shape": (size, *params["shape"]), "dim": params["dim"] + 1})


def _as_strided(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    """Examples lie one after the other in one vector, and are one more stride."""
    vectors = [spread(x, b, size) for x, b in zip(xs, batches)]
    n = vectors[0].shape[1]
    flat = RESHAPE(vectors[0], shape=(size * n,))
    y = p(flat, *vectors[1:], size=(size, *params["size"]), stride=(n, *params["stride"]), offset=params["offset"])
    return y if len(xs) == 1 else RESHAPE(y, shape=(size, n))


# ------------------------------------------------------------------------------------------------------------- creation


def _full(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    shape = params["shape"]
    return COPY(EXPAND(RESHAPE(xs[0], shape=(size, *[1] * len(shape))), shape=(size, *shape)))


def _random(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    """Parameters that are numbers are seed and place in the stream, the same for all; what follows counts examples first."""
    more = {"shape": (size, *params["shape"])} if "shape" in params else {}
    rank = max((x.ndim - b for x, b in zip(xs, batches) if isinstance(x, Tensor)), default=0)
    return p(
        *(shaped(spread(x, b, size), True, rank) if isinstance(x, Tensor) else x for x, b in zip(xs, batches)), **params | more
    )


# ---------------------------------------------------------------------------------------------------------- contractions


def _matmul(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    (a, b), (in_a, in_b) = xs, batches
    if in_a and not in_b and a.ndim == 3 and b.ndim == 2:  # one product of many rows
        return RESHAPE(p(merged(a, 0), b), shape=(size, a.shape[1], b.shape[1]))
    rank = max(a.ndim - in_a, b.ndim - in_b)
    return p(shaped(a, in_a, rank), shaped(b, in_b, rank))


def _contract(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    spec = params["spec"]
    new = next(c for c in "zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in spec)
    inputs, _, out = spec.partition("->")
    first, _, second = inputs.partition(",")
    return p(*xs, spec=f"{new * batches[0]}{first},{new * batches[1]}{second}->{new}{out}")


def _conv(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    """Examples stand beside the images where weights are one, else each is a group of channels."""
    (x, w), groups = xs, params["groups"]
    if not batches[1]:
        return parted(p(merged(x, 0), w, **params), 0, size)
    if not batches[0] and groups == 1:
        return parted(p(x, merged(w, 0), **params), 1, size)
    y = p(merged(spread(x, batches[0], size), 1), merged(w, 0), **params | {"groups": groups * size})
    return parted(y, 1, size)


def _conv_input_grad(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    (g, w), (n, c, *space) = xs, params["input_shape"]
    if not batches[1]:
        return parted(p(merged(g, 0), w, **params | {"input_shape": (size * n, c, *space)}), 0, size)
    how = params | {"input_shape": (n, size * c, *space), "groups": size * params["groups"]}
    return parted(p(merged(spread(g, batches[0], size), 1), merged(w, 0), **how), 1, size)


def _conv_weight_grad(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    (x, g), (o, *rest) = [spread(x, b, size) for x, b in zip(xs, batches)], params["weight_shape"]
    how = params | {"weight_shape": (size * o, *rest), "groups": size * params["groups"]}
    return parted(p(merged(x, 1), merged(g, 1), **how), 0, size)


# -------------------------------------------------------------------------------------------------------------- indices


def _index_select(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    (x, index), dim = xs, params["dim"]
    if not batches[1]:
        return p(x, index, dim=dim + 1)
    if not batches[0]:
        return moved(p(x, index, dim=dim), dim, 0)
    rank = index.ndim - 1
    y = INDEX_ND(x, count(size, rank), index, dims=(0, dim + 1))  # [size, *index, what precedes dim, what follows it]
    return _after(y, rank, dim)


def _after(y: Any, rank: int, at: int) -> Any:
    """[size, rank dimensions of indices, the others] with those of indices behind the first `at` others."""
    order = (0, *range(1 + rank, 1 + rank + at), *range(1, 1 + rank), *range(1 + rank + at, y.ndim))
    return PERMUTE(y, dims=order) if at and rank else y


def _before(v: Any, rank: int, at: int) -> Any:
    """The reverse of `_after`."""
    order = (0, *range(1 + at, 1 + at + rank), *range(1, 1 + at), *range(1 + at + rank, v.ndim))
    return PERMUTE(v, dims=order) if at and rank else v


def _index_add(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    x, index, src = (xs[0], xs[1], spread(xs[2], batches[2], size))
    x, dim = spread(x, batches[0], size), params["dim"]
    if not batches[1]:
        return p(x, index, src, dim=dim + 1)
    rank = index.ndim - 1
    v = _before(src, rank, dim)
    return INDEX_PUT(x, v, count(size, rank), index, dims=(0, dim + 1), accumulate=True)


def _nd(indices: list, batches: list, dims: tuple) -> tuple[list, int, int]:
    """Indices of one rank (their batch in front), that rank, and how many dimensions of x stand before theirs in the result."""
    rank = max(i.ndim - b for i, b in zip(indices, batches))
    start = dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0
    return [shaped(i, b, rank) for i, b in zip(indices, batches)], rank, start


def _index_nd(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    x, dims = xs[0], params["dims"]
    indices, rank, start = _nd(xs[1:], batches[1:], dims)
    adjacent = dims[-1] - dims[0] == len(dims) - 1
    if not any(batches[1:]):
        y = p(x, *indices, dims=tuple(d + 1 for d in dims))
        return y if adjacent else moved(y, rank, 0)
    if not batches[0]:
        return moved(p(x, *indices, dims=dims), start, 0)
    y = p(x, count(size, rank), *indices, dims=(0, *(d + 1 for d in dims)))
    return _after(y, rank, start)


def _index_put(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    x, dims, accumulate = spread(xs[0], batches[0], size), params["dims"], params["accumulate"]
    indices, rank, start = _nd(xs[2:], batches[2:], dims)
    places = broadcast_shapes(*(tuple(i.shape)[b:] for i, b in zip(xs[2:], batches[2:])))
    rest = tuple(n for d, n in enumerate(tuple(x.shape)[1:]) if d not in dims)
    whole = (size, *rest[:start], *places, *rest[start:])
    v = EXPAND(shaped(spread(xs[1], batches[1], size), True, len(whole) - 1), shape=whole)
    if any(batches[2:]):
        where = {"dims": (0, *(d + 1 for d in dims)), "accumulate": accumulate}
        return p(x, _before(v, rank, start), count(size, rank), *indices, **where)
    if dims[-1] - dims[0] != len(dims) - 1:
        v = moved(v, 0, rank)
    return p(x, v, *indices, dims=tuple(d + 1 for d in dims), accumulate=accumulate)


def _searchsorted(p: Primitive, size: int, xs: list, batches: list, params: dict) -> Any:
    (rows, x), (in_rows, in_x) = xs, batches
    if not in_rows and rows.ndim == 1:
        return p(rows, x, **params)
    if rows.ndim - in_rows > 1:
        return _leading(p, size, xs, batches, params)
    shape = tuple(x.shape)[in_x:]
    flat = RESHAPE(spread(x, in_x, size), shape=(size, math.prod(shape)))
    return RESHAPE(p(rows, flat, **params), shape=(size, *shape))


_BY_NAME: dict[str, Rule] = {
    "argmax": _arg, "argmin": _arg,
    "permute": _permute, "reshape": _reshape, "expand": _expand, "slice": _slice, "slice_scatter": _slice, "pad": _pad,
    "window_grad": _window_grad, "as_strided": _as_strided, "as_strided_scatter": _as_strided,
    "full": _full,
    "matmul": _matmul, "contract": _contract, "conv": _conv, "conv_input_grad": _conv_input_grad,
    "conv_weight_grad": _conv_weight_grad,
    "index_select": _index_select, "index_add": _index_add, "index_nd": _index_nd, "index_put": _index_put,
    "searchsorted": _searchsorted,
    "flip": _leading, "cat": _leading, "diagonal": _leading, "diagonal_scatter": _leading, "window": _leading,
    "attention": _attention, "attention_grad": _attention, "flex_attention": _one_by_one, "flex_attention_grad": _one_by_one,
    "grouped_mm": _one_by_one,
    "gather": _leading, "scatter": _leading, "scatter_add": _leading,

    "recurrent": _recurrent, "recurrent_grad": _recurrent,
    "window_pick": _leading,
}  # fmt: skip
_BY_KIND: dict[str, Rule] = {"elementwise": _elementwise, "reduce": _reduce, "random": _random, "opaque": _leading}


class _Rules(Mapping[Primitive, Rule]):
    """The rule of a primitive: that of its name, else that of its kind. An opaque record that refuses a `scalar` is an
    elementwise one, which no kernel spells."""

    def __getitem__(self, p: Primitive) -> Rule:
        found = _BY_NAME.get(p.name) or _BY_KIND.get("elementwise" if "scalar" in p.refused else p.kind)
        if found is None:
            raise KeyError(p)
        return found

    def __iter__(self) -> Iterator[Primitive]:
        return (p for p in REGISTRY.values() if p in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, p: object) -> bool:
        return isinstance(p, Primitive) and (p.name in _BY_NAME or "scalar" in p.refused or p.kind in _BY_KIND)


RULES = _Rules()
