"""Triton for sorting along a dimension, stably, and for places in sorted rows.

    sort(making, x, spec, dim, descending, out, values)      out: the sorted values, or their positions
    search(making, ...)                                       how many elements of a sorted row lie before each of x

Two steps. Blocks of a row are sorted by counting: an element's place is the number of elements of its block that come before
it, which is one comparison of all pairs, without exchanges. Then runs are merged in pairs, doubling in length with each launch:
an element's place in the merged run is its place in its own plus the number of elements of the other run that come before it,
found by bisection. Ties go by position, so the order is one and the sort stable. What moves is a row of positions; keys are read
from x where they lie. NaN counts as the largest.

Of n elements this compares n * (BLOCK + log2(n / BLOCK) * log2(n)) pairs; rows up to BLOCK are one launch.
"""

from __future__ import annotations

import math

from flame.compiler.gpu_routine import Array, Making, written
from flame.compiler.index_math import var
from flame.compiler.schedule_tiles import power_of_two
from flame.compiler.to_triton import TritonSource
from flame.dtypes import bool_, dtype, int32, int64
from flame.primitive import Spec

#: elements that are sorted by comparing all pairs
BLOCK = 512

_BEFORE = '''
@triton.jit
def _less(a, b):
    """Whether a is less; NaN is the largest."""
    return (a < b) | ((b != b) & (a == a))


@triton.jit
def _before(a, i, b, j):
    """Whether a, which stands at i, is sorted before b at j."""
    return {first} | (~{then} & (i < j))
'''


def _order(descending: bool) -> str:
    less, more = "_less(a, b)", "_less(b, a)"
    text = _BEFORE.format(first=more if descending else less, then=less if descending else more)
    return text.strip("\n") + "\n\n\n"


def sort(making: Making, x: Array, spec: Spec, dim: int, descending: bool, out: Array, values: bool) -> None:
    """Add the launches that sort x along `dim`: its elements (`values`) or their positions, as int64, are written to `out`."""
    if not spec.numel:
        return
    n, columns = (spec.shape[dim], math.prod(spec.shape[dim + 1 :])) if spec.ndim else (1, 1)
    sizes = {"total": spec.numel, "n": n, "columns": columns, "blocks": -(-n // BLOCK)}
    what = "value" if values else "position"
    if n <= BLOCK:
        making.launch(_blocks(spec.dtype, descending, what, sizes), {"x": x, "out": out}, sizes)
        return
    # positions are int32: no dimension that fits in memory has more than 2**31 elements of a key and a position
    here, there = making.array((spec.numel,), int32), making.array((spec.numel,), int32)
    making.launch(_blocks(spec.dtype, descending, "order", sizes), {"x": x, "out": here}, sizes)
    width = BLOCK
    while width < n:
        last = 2 * width >= n
        sizes |= {"width": width, "steps": width.bit_length()}
        source = _merge(spec.dtype, descending, what if last else "order", sizes)
        making.launch(source, {"x": x, "order": here, "out": out if last else there}, sizes)
        here, there, width = there, here, 2 * width


def _key(d: dtype) -> str:
    """What turns a loaded element into one that compares."""
    return ".to(tl.int32)" if d is bool_ else ".to(tl.float32)" if d.is_narrow_float else ""


def _stored(d: dtype, what: str) -> tuple[str, dtype]:
    """The text of a stored element, and its dtype."""
    if what == "value":
        return ("key != 0" if d is bool_ else f"key.to(tl.{d.name})"), d
    return ("mine.to(tl.int64)", int64) if what == "position" else ("mine", int32)


def _blocks(d: dtype, descending: bool, what: str, sizes: dict[str, int]) -> TritonSource:
    block = max(16, power_of_two(min(sizes["n"], BLOCK)))
    text, held = _stored(d, what)
    place = "row * n + first + rank" if what == "order" else "base + (first + rank) * columns"
    entry = {"order": "sort_blocks", "value": "sort", "position": "argsort"}[what]
    source = f"""{_order(descending)}@triton.jit
def {entry}(x_ptr, out_ptr, total, n, columns, blocks, BLOCK: tl.constexpr, STEP: tl.constexpr):
    pid = tl.program_id(0).to(INDEX)
    row = pid // blocks
    first = pid % blocks * BLOCK
    base = row // columns * (n * columns) + row % columns
    mine = (first + tl.arange(0, BLOCK)).to(tl.int32)
    inside = mine < n
    key = tl.load(x_ptr + base + mine * columns, mask=inside){_key(d)}

    # how many of the block come before each
    rank = tl.zeros([BLOCK], tl.int32)
    for start in range(0, BLOCK, STEP):
        theirs = (first + start + tl.arange(0, STEP)).to(tl.int32)
        there = theirs < n
        other = tl.load(x_ptr + base + theirs * columns, mask=there){_key(d)}
        ahead = _before(other[None, :], theirs[None, :], key[:, None], mine[:, None]) & there[None, :]
        rank += tl.sum(ahead.to(tl.int32), 1)
    tl.store(out_ptr + {place}, {text}, mask=inside)
"""
    symbols = ["total", "n", "columns", "blocks"]
    constants = {"BLOCK": block, "STEP": 16}
    # one program a block of a row: total // n rows of `blocks` each
    directions = [(var("total") // var("n") * var("blocks"), 1)]
    return written(entry, source, [("x", d), ("out", held)], symbols, constants, directions, sizes=sizes)


def _merge(d: dtype, descending: bool, what: str, sizes: dict[str, int]) -> TritonSource:
    text, held = _stored(d, what)
    place = "row * n + place" if what == "order" else "base + place * columns"
    entry = {"order": "merge_runs", "value": "merge_to_values", "position": "merge_to_positions"}[what]
    source = f"""{_order(descending)}@triton.jit
def {entry}(x_ptr, order_ptr, out_ptr, total, n, columns, width, steps, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = t < total
    row = t // n
    k = t % n
    base = row // columns * (n * columns) + row % columns
    mine = tl.load(order_ptr + t, mask=inside, other=0)
    key = tl.load(x_ptr + base + mine * columns, mask=inside){_key(d)}

    # bisect the other run of the pair: how many of its elements come before this one
    pair = k // (2 * width) * (2 * width)
    left = k - pair < width
    own = tl.where(left, pair, pair + width)
    begin = tl.minimum(tl.where(left, pair + width, pair), n)
    low = begin
    high = tl.minimum(begin + width, n)
    for _ in range(0, steps):
        middle = (low + high) // 2
        open = (low < high) & inside
        theirs = tl.load(order_ptr + row * n + middle, mask=open, other=0)
        other = tl.load(x_ptr + base + theirs * columns, mask=open){_key(d)}
        ahead = _before(other, theirs, key, mine)
        low = tl.where(open & ahead, middle + 1, low)
        high = tl.where(open & ~ahead, middle, high)
    place = pair + (k - own) + (low - begin)
    tl.store(out_ptr + {place}, {text}, mask=inside)
"""
    symbols = ["total", "n", "columns", "width", "steps"]
    buffers = [("x", d), ("order", int32), ("out", held)]
    return written(entry, source, buffers, symbols, {"BLOCK": 256}, [(var("total"), 256)], sizes=sizes)


def search(making: Making, rows: tuple[Array, Spec], x: tuple[Array, Spec], right: bool, out: Array) -> None:
    """Add the launch that writes for each element of x how many elements of its sorted row lie before it (`right`: or are
    equal to it), as int64. A single row is everybody's."""
    if not x[1].numel:
        return
    d, n = rows[1].dtype, rows[1].shape[-1]
    each = x[1].shape[-1] if rows[1].ndim > 1 else 0
    sizes = {"total": x[1].numel, "n": n, "each": each, "steps": n.bit_length()}
    ahead = "~_less(key, other)" if right else "_less(other, key)"
    source = f"""{_order(False)}@triton.jit
def searchsorted(rows_ptr, x_ptr, out_ptr, total, n, each, steps, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = t < total
    key = tl.load(x_ptr + t, mask=inside){_key(d)}
    base = {"t // each * n" if each else "t * 0"}
    low = tl.zeros([BLOCK], INDEX)
    high = low + n
    for _ in range(0, steps):
        middle = (low + high) // 2
        open = (low < high) & inside
        other = tl.load(rows_ptr + base + middle, mask=open){_key(d)}
        ahead = {ahead}
        low = tl.where(open & ahead, middle + 1, low)
        high = tl.where(open & ~ahead, middle, high)
    tl.store(out_ptr + t, low.to(tl.int64), mask=inside)
"""
    buffers = [("rows", d), ("x", d), ("out", int64)]
    symbols = ["total", "n", "each", "steps"]
    making.launch(
        written("searchsorted", source, buffers, symbols, {"BLOCK": 256}, [(var("total"), 256)], sizes=sizes),
        {"rows": rows[0], "x": x[0], "out": out},
        sizes,
    )
