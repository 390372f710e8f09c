"""What stands at a place of each window added up where windows overlap, as a routine: the gradient of a maximum over windows.

    out = 0;  out[a, o * step - lo + place * dilation] += g[a, o]  for every window o, in order; places outside are skipped

A chunk is a run of planes (the dimensions in front): each stays in cache, is cleared and then written to, one element a window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flame.compiler.llvm_machine import LlvmMachine, Value
from flame.compiler.llvm_text import Function, Int, element, module, wide
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import dtype as DType
from flame.dtypes import int64

MOST_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class WindowPut:
    """What the code depends on."""

    dtype: DType
    index: DType
    kernel: tuple[int, ...]
    step: tuple[int, ...]
    dilation: tuple[int, ...]


def window_put(what: WindowPut, target: CpuTarget) -> str:
    """The entry @window_put: buffers g, at, out; symbols: planes, chunks, then by dimension the windows, the sizes and lo."""
    n = len(what.kernel)
    f = Function("window_put", [("ptr", "bufs"), ("ptr", "syms"), ("i64", "begin"), ("i64", "end")])
    m = LlvmMachine(f, target)
    t, kind, lanes = element(what.dtype), element(what.index), max(2, target.vector_bytes // what.dtype.itemsize)
    g, at, out = (f.load("ptr", f.address("%bufs", i, "ptr"), 8) for i in range(3))
    planes, count, *rest = (f.load("i64", f.address("%syms", i, "i64"), 8) for i in range(2 + 3 * n))
    windows, sizes, lows = rest[:n], rest[n : 2 * n], rest[2 * n :]

    def product(xs: list[str]) -> Int:
        total: Int = 1
        for x in xs:
            total = f.mul(total, x)
        return total

    in_plane, of_plane = product(windows), product(sizes)
    low, high = (f.div(f.mul(p, planes), count) for p in ("%begin", "%end"))

    def plane(a: str, _: list[str]) -> list[str]:
        first = f.mul(a, in_plane)
        source, places, to = f.address(g, first, t), f.address(at, first, kind), f.address(out, f.mul(a, of_plane), t)
        full = f.mul(f.div(of_plane, lanes), lanes)
        for begin, end, width in ((0, full, lanes), (full, of_plane, 1)):
            zero = "zeroinitializer" if width > 1 else m.const(0, what.dtype).text

            def clear(c: str, _: list[str], width: int = width, zero: str = zero) -> list[str]:
                f.store(wide(t, width), zero, f.address(to, c, t), what.dtype.itemsize)
                return []

            f.loop(begin, end, width, [], clear)

        def along(i: int, number: Int, starts: list[Int]) -> None:
            def one(o: str, _: list[str]) -> list[str]:
                here = f.sub(f.mul(o, what.step[i]), lows[i])
                window = f.add(f.mul(number, windows[i]), o)
                if i + 1 < n:
                    along(i + 1, window, [*starts, here])
                else:
                    put(window, [*starts, here])
                return []

            f.loop(0, windows[i], 1, [], one)

        def put(window: Int, starts: list[Int]) -> None:
            narrow = Value(f.load(kind, f.address(places, window, kind), what.index.itemsize), what.index)
            p: Int = m.cast(narrow, int64).text
            x = Value(f.load(t, f.address(source, window, t), what.dtype.itemsize), what.dtype)
            where: Int = 0
            inside = ""
            for i in range(n):
                digit = f.div(p, math.prod(what.kernel[i + 1 :]))
                if i:
                    digit = f.rem(digit, what.kernel[i])
                h = f.add(f.mul(digit, what.dilation[i]), starts[i])
                holds = f.emit(f"icmp ult i64 {h}, {sizes[i]}")
                inside = f.emit(f"and i1 {inside}, {holds}") if inside else holds
                where = f.add(f.mul(where, sizes[i]), h)

            def add() -> None:
                place = f.address(to, where, t)
                old = Value(f.load(t, place, what.dtype.itemsize), what.dtype)
                f.store(t, m.emit("add", old, x).text, place, what.dtype.itemsize)

            f.when(inside, add)

        along(0, 0, [])
        return []

    f.loop(low, high, 1, [], plane)
    return f"; window_put {what}\n" + module([f])
