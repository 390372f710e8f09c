"""Rows added where an index says, as a routine: the gradient of an embedding.

    out = x;  out[a, index[j], :] += src[a, j, :]  for every j, in order

Chunks are runs of columns (and of the dimensions in front), so that no two write one element and sums are taken in one order.
Where `out` is `x`'s own memory nothing is copied. Positions outside of x are skipped: whoever calls looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.llvm_machine import LlvmMachine, Value
from flame.compiler.llvm_text import Function, Int, element, module, wide
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import dtype as DType
from flame.dtypes import int64

COLUMNS = 128  #: of a chunk
MOST_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class IndexAdd:
    """What the code depends on."""

    dtype: DType
    index: DType


def chunks(lead: int, columns: int) -> int:
    return max(1, min(MOST_CHUNKS, lead * -(-columns // COLUMNS)))


def index_add(what: IndexAdd, target: CpuTarget) -> str:
    """The entry @index_add: buffers x, index, src, out; symbols: dimensions in front, rows of x, positions, columns, chunks."""
    f = Function("index_add", [("ptr", "bufs"), ("ptr", "syms"), ("i64", "begin"), ("i64", "end")])
    m = LlvmMachine(f, target)
    t, n = element(what.dtype), max(2, target.vector_bytes // what.dtype.itemsize)
    x, index, src, out = (f.load("ptr", f.address("%bufs", i, "ptr"), 8) for i in range(4))
    lead, rows, positions, columns, count = (f.load("i64", f.address("%syms", i, "i64"), 8) for i in range(5))
    blocks = f.div(f.add(columns, COLUMNS - 1), COLUMNS)
    items = f.mul(lead, blocks)
    low, high = (f.div(f.mul(p, items), count) for p in ("%begin", "%end"))
    apart = f.emit(f"icmp ne ptr {x}, {out}")
    size = what.dtype.itemsize

    def along(first: Int, last: Int, at: str, to: str, adds: bool) -> None:
        """to[first:last] = or += at[first:last]"""
        full = f.add(first, f.mul(f.div(f.sub(last, first), n), n))
        for begin, end, lanes in ((first, full, n), (full, last, 1)):

            def one(c: str, _: list[str], lanes: int = lanes) -> list[str]:
                kind, place = wide(t, lanes), f.address(to, c, t)
                v = Value(f.load(kind, f.address(at, c, t), size), what.dtype, lanes)
                if adds:
                    v = m.emit("add", Value(f.load(kind, place, size), what.dtype, lanes), v)
                f.store(kind, v.text, place, size)
                return []

            f.loop(begin, end, lanes, [], one)

    def item(i: str, _: list[str]) -> list[str]:
        a, first = f.div(i, blocks), f.mul(f.rem(i, blocks), COLUMNS)
        last = f.least(f.add(first, COLUMNS), columns)
        here = f.mul(f.mul(a, rows), columns)
        target_rows = f.address(out, here, t)

        def copy() -> None:
            source = f.address(x, here, t)

            def row(r: str, _: list[str]) -> list[str]:
                start = f.mul(r, columns)
                along(first, last, f.address(source, start, t), f.address(target_rows, start, t), False)
                return []

            f.loop(0, rows, 1, [], row)

        f.when(apart, copy)
        given = f.address(src, f.mul(f.mul(a, positions), columns), t)

        def position(j: str, _: list[str]) -> list[str]:
            narrow = Value(
                f.load(element(what.index), f.address(index, j, element(what.index)), what.index.itemsize), what.index
            )
            p = m.cast(narrow, int64).text
            below = f.emit(f"icmp slt i64 {p}, 0")
            p = f.emit(f"select i1 {below}, i64 {f.add(p, rows)}, i64 {p}")

            def add() -> None:
                along(first, last, f.address(given, f.mul(j, columns), t), f.address(target_rows, f.mul(p, columns), t), True)

            f.when(f.emit(f"icmp ult i64 {p}, {rows}"), add)
            return []

        f.loop(0, positions, 1, [], position)
        return []

    f.loop(low, high, 1, [], item)
    return f"; index_add {what}\n" + module([f])
