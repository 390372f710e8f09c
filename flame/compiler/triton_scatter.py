"""Triton for writes whose place is a value: scatter, scatter_add, scatter_reduce, index_add, index_put, as_strided_scatter.

All are one thing: the result is x, and for every position p the `columns` numbers of src at p are put into, or combined with,
the row of x that a KEY names. Keys are computed by an ordinary kernel: where scatter writes is where gather reads, so the key of
an element is what the reading twin gives of the numbers 0, 1, 2, ... in x's place.

    put        a store for each element (of equal keys, any one)
    add        atomic additions into x's copy, in float32 for narrower floats and in int32 for narrower integers
    in order   keys are sorted (stably), then one program for each run of equal keys combines it in the order of positions: the
               same bits on every run. Products and extremes are always done so; sums and puts where `deterministic` asks for it

Keys that leave x are skipped: whoever calls has checked them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flame.compiler import triton_sort
from flame.compiler.gpu_routine import Array, Making, written
from flame.compiler.index_math import var
from flame.compiler.schedule_tiles import power_of_two
from flame.dtypes import bool_, dtype, int32, int64
from flame.ops.create import iota
from flame.ops.index import gather, index_nd, index_select
from flame.ops.logic import cast, copy
from flame.ops.movement import expand, reshape, slice
from flame.ops.strided import as_strided
from flame.primitive import Spec

Operand = tuple[Array, Spec]

_COMBINE = {
    "add": "a + b",
    "or": "a | b",
    "prod": "a * b",
    "put": "b",
    "amax": "tl.maximum(a, b{})",
    "amin": "tl.minimum(a, b{})",
}
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Writes:
    """`lead` blocks of x, each of `rows` rows; position p of each block goes to the row `key[p]` of that block."""

    keys: Array  #: int64[positions], in [0, rows)
    positions: int
    source: Array  #: [lead, positions, columns]
    lead: int
    rows: int
    columns: int


def scatter(making: Making, name: str, x: Operand, index: Operand, src: Operand, dim: int, how: str, out: Array) -> None:
    """Add the launches of scatter and its like: `how` is put, add, prod, amax or amin."""
    shape, at = x[1].shape, index[1].shape
    keys = _keys(making, x[1], lambda ids, i: gather(ids, i, dim=dim), [index], shape, index[1].numel, name)
    values = src[0]
    if src[1].shape != at and index[1].numel:
        values = making.array(at, src[1].dtype)
        part = {"starts": (0,) * len(at), "stops": at, "steps": (1,) * len(at)}
        making.graph(lambda v: [slice(v, **part)], [src], [values], f"{name}_part")
    writes = Writes(keys, index[1].numel, values, 1, x[1].numel, 1)
    _write(making, x, writes, how, out)


def index_add(making: Making, x: Operand, index: Operand, src: Operand, dim: int, out: Array) -> None:
    shape = x[1].shape
    rows = (shape[dim],)
    keys = _keys(making, x[1], lambda ids, i: index_select(ids, i, dim=0), [index], rows, index[1].numel, "index_add")
    lead, columns = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    _write(making, x, Writes(keys, index[1].numel, src[0], lead, shape[dim], columns), "add", out)


def index_put(
    making: Making, x: Operand, v: Operand, indices: Sequence[Operand], dims: tuple[int, ...], add: bool, out: Array
) -> None:
    shape = x[1].shape
    last = dims[-1] + 1
    together = dims[-1] - dims[0] == len(dims) - 1
    front = shape[:last] if together else shape  # dimensions behind the last index stay as they are: whole rows are written
    columns = math.prod(shape[len(front) :])
    read = index_nd.infer(Spec(front, int64), *[s for _, s in indices], dims=dims).shape
    full = (*read, *shape[len(front) :])
    keys = _keys(making, x[1], lambda ids, *i: index_nd(ids, *i, dims=dims), list(indices), front, math.prod(read), "index_put")
    values = v[0]
    if v[1].shape != full and math.prod(full):
        values = making.array(full, v[1].dtype)
        making.graph(lambda a: [copy(expand(a, shape=full))], [v], [values], "index_put_part")
    writes = Writes(keys, math.prod(read), values, 1, math.prod(front), columns)
    _write(making, x, writes, "add" if add else "put", out)


def strided(making: Making, x: Operand, v: Operand, params: dict[str, Any], out: Array) -> None:
    n = v[1].numel
    keys = _keys(making, x[1], lambda ids: as_strided(ids, **params), [], x[1].shape, n, "as_strided_scatter")
    _write(making, x, Writes(keys, n, v[0], 1, x[1].numel, 1), "put", out)


def _keys(
    making: Making, x: Spec, read: Callable, indices: list[Operand], shape: tuple[int, ...], count: int, name: str
) -> Array:
    """Where each position goes: `read` of the numbers of x's elements (or rows), which have that shape."""
    keys = making.array((count,), int64)
    if count:
        rows = math.prod(shape)

        def numbered(*at: Any) -> list[Any]:
            return [copy(reshape(read(reshape(iota(size=rows, dtype=int64), shape=shape), *at), shape=(count,)))]

        making.graph(numbered, indices, [keys], f"{name}_keys")
    return keys


def _write(making: Making, x: Operand, w: Writes, how: str, out: Array) -> None:
    d = x[1].dtype
    if not x[1].numel:
        return
    if how == "add" and d is bool_:
        how = "or"
    elements = w.lead * w.positions * w.columns
    in_order = how in ("prod", "amax", "amin") or (making.deterministic and how != "or")
    if in_order or not elements:
        making.graph(lambda a: [copy(a)], [x], [out], "start")
        if elements:
            _in_order(making, w, how, d, out)
        return
    carried = _carried(d) if how in ("add", "or") else d
    into = out if carried is d else making.array(x[1].shape, carried)
    making.graph(lambda a: [copy(a) if carried is d else cast(a, dtype=carried)], [x], [into], "start")
    _at_once(making, w, how, d, carried, into)
    if carried is not d:
        spec = Spec(x[1].shape, carried)
        making.graph(lambda a: [cast(a, dtype=d)], [(into, spec)], [out], "rounded")


def _carried(d: dtype) -> dtype:
    """What sums are carried in while they are in memory: a type that GPUs add to atomically."""
    if d.kind == "f":
        return d.accumulator
    return int32 if d.itemsize < 4 else d


def _sizes(w: Writes) -> dict[str, int]:
    return {"lead": w.lead, "positions": w.positions, "columns": w.columns, "rows": w.rows}


def _at_once(making: Making, w: Writes, how: str, d: dtype, carried: dtype, into: Array) -> None:
    """A thread an element, in no order."""
    sizes = _sizes(w)
    entry = "put_rows" if how == "put" else "add_rows"
    value = "v" if carried is d else f"v.to(tl.{carried.name})"
    act = {
        "put": f"tl.store(to, {value}, mask=inside)",
        "add": f'tl.atomic_add(to, {value}, mask=inside, sem="relaxed")',
        "or": f'tl.atomic_or(to, {value}, mask=inside, sem="relaxed")',
    }[how]
    source = f"""@triton.jit
def {entry}(key_ptr, src_ptr, out_ptr, lead, positions, columns, rows, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = t < lead * positions * columns
    c = t % columns
    p = t // columns % positions
    block = t // columns // positions
    key = tl.load(key_ptr + p, mask=inside, other=0).to(INDEX)
    inside = inside & (key >= 0) & (key < rows)
    v = tl.load(src_ptr + t, mask=inside)
    to = out_ptr + ((block * rows + key) * columns + c)
    {act}
"""
    directions = [(var("lead") * var("positions") * var("columns"), _BLOCK)]
    buffers = [("key", int64), ("src", d), ("out", carried)]
    made = written(
        entry, source, buffers, list(sizes), {"BLOCK": _BLOCK}, directions, sizes=sizes | {"rows": w.rows * w.columns}
    )
    making.launch(made, {"key": w.keys, "src": w.source, "out": into}, sizes)


def _in_order(making: Making, w: Writes, how: str, d: dtype, out: Array) -> None:
    """Positions sorted by key; the first of each run of equal keys combines the run, position by position."""
    order = making.array((w.positions,), int64)
    triton_sort.sort(making, w.keys, Spec((w.positions,), int64), 0, False, order, values=False)
    sizes = _sizes(w)
    block = min(power_of_two(w.columns), 256)
    carried = int32 if d is bool_ else d.accumulator
    nan = ", propagate_nan=tl.PropagateNan.ALL" if carried.kind == "f" else ""
    wide = f".to(tl.{carried.name})" if carried is not d else ""
    back = " != 0" if d is bool_ else f".to(tl.{d.name})" if carried is not d else ""
    narrow = (
        f"({_COMBINE[how].format(nan)}).to(tl.{d.name})" if d.kind in "iu" and d.itemsize < 4 else _COMBINE[how].format(nan)
    )
    source = f"""@triton.jit
def _combine(a, b):
    return {narrow}


@triton.jit
def combine_runs(key_ptr, order_ptr, src_ptr, out_ptr, lead, positions, columns, rows, C_BLOCK: tl.constexpr):
    blocks = tl.cdiv(columns, C_BLOCK)
    pid = tl.program_id(0).to(INDEX)
    c = pid % blocks * C_BLOCK + tl.arange(0, C_BLOCK)
    i = pid // blocks % positions
    block = pid // blocks // positions
    inside = c < columns

    # a run begins where the key before is another
    p = tl.load(order_ptr + i)
    key = tl.load(key_ptr + p)
    earlier = tl.load(order_ptr + i - 1, mask=i > 0, other=0)
    before = tl.load(key_ptr + earlier, mask=i > 0, other=-1)
    first = (before != key) & (key >= 0) & (key < rows)
    to = out_ptr + ((block * rows + key.to(INDEX)) * columns + c)
    total = tl.load(to, mask=inside & first){wide}
    current = tl.where(first, key, -1)
    while current == key:
        v = tl.load(src_ptr + ((block * positions + p.to(INDEX)) * columns + c), mask=inside){wide}
        total = _combine(total, v)
        i += 1
        p = tl.load(order_ptr + i, mask=i < positions, other=0)
        current = tl.load(key_ptr + p, mask=i < positions, other=-1)
    tl.store(to, total{back}, mask=inside & first)
"""
    directions = [(var("columns"), block), (var("positions"), 1), (var("lead"), 1)]
    buffers = [("key", int64), ("order", int64), ("src", d), ("out", d)]
    warps = 4 if block >= 128 else 1
    reach = sizes | {"rows": w.rows * w.columns}
    constants = {"C_BLOCK": block}
    made = written("combine_runs", source, buffers, list(sizes), constants, directions, warps=warps, sizes=reach)
    making.launch(made, {"key": w.keys, "order": order, "src": w.source, "out": out}, sizes)
