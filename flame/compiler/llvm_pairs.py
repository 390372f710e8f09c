"""Products of narrow integers, two steps of k at a time: x86's multiply-add of int16 pairs (vpmaddwd) into int32.

    packed line k and k + 1 of a panel, int32         ->  one line of pairs, each two int16 in 32 bits
    acc += a[k] * b[k] + a[k + 1] * b[k + 1]              one instruction for 16 products on AVX2, and an addition

What is packed was int8, uint8 or int16, so its lower halves are its values. Only the sum of two products of -2^15 with themselves
leaves int32, and wraps as the additions do.
"""

from __future__ import annotations

from flame.compiler.kernel import Kernel, Op
from flame.compiler.llvm_text import Function, Int, repeat, wide
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import bool_, dtype, int8, int16, int32, uint8

_NARROW = (int8, uint8, int16, bool_)


def in_pairs(kernel: Kernel, left: str, right: str, d: dtype, target: CpuTarget) -> bool:
    """May these factors of a contraction in `d` be taken so?"""
    if d is not int32 or not target.is_x86 or not target.features & {"avx2", "avx512bw"}:
        return False
    if target.lanes_f32 == 16 and "avx512bw" not in target.features or target.lanes_f32 < 8:
        return False

    def narrow(name: str) -> bool:
        s = kernel.definitions[name]
        return s.dtype in _NARROW or isinstance(s, Op) and s.op == "cast" and kernel.definitions[s.operands[0]].dtype in _NARROW

    return narrow(left) and narrow(right)


def multiply_add(f: Function, lanes: int, x: str, y: str, z: str) -> str:
    """z + the pairs' products."""
    v, halves = wide("i32", lanes), wide("i16", 2 * lanes)
    name = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"
    a, b = (f.emit(f"bitcast {v} {w} to {halves}") for w in (x, y))
    return f.emit(f"add {v} {f.call(v, name, [(halves, a), (halves, b)])}, {z}")


def pair_lines(f: Function, panel: str, lines: Int, width: int, lanes: int) -> None:
    """Make a packed panel one of pairs, where it lies. After an odd last line comes one of zeros.

    A vector may end in the next lines: they are pairs not made yet, or lines that were read already, as long as it is no longer
    than two lines.
    """
    n = lanes if lanes <= 2 * width else 1
    t = wide("i32", n)

    def pair(i: Int, second: bool) -> None:
        here = f.address(panel, f.mul(i, 2 * width), "i32")
        made = []
        for j in range(0, width, n):
            a = f.emit(f"and {t} {f.load(t, f.address(here, j, 'i32'), 4)}, {repeat('65535', 'i32', n)}")
            if second:
                b = f.load(t, f.address(here, width + j, "i32"), 4)
                a = f.emit(f"or {t} {a}, {f.emit(f'shl {t} {b}, ' + repeat('16', 'i32', n))}")
            made.append(a)
        there = f.address(panel, f.mul(i, width), "i32")
        for j, x in zip(range(0, width, n), made, strict=True):
            f.store(t, x, f.address(there, j, "i32"), 4)

    def whole(i: str, _: list[str]) -> list[str]:
        pair(i, True)
        return []

    half = f.div(lines, 2)
    f.loop(0, half, 1, [], whole)
    if isinstance(lines, int):
        if lines % 2:
            pair(half, False)
        return
    f.when(f.emit(f"icmp ne i64 {f.rem(lines, 2)}, 0"), lambda: pair(half, False))
