"""Products of narrow numbers, two steps of k at a time, where the processor has an instruction for it.

    packed line k and k + 1 of a panel, 32 bits each  ->  one line of pairs, each two numbers of 16 bits in 32
    acc += a[k] * b[k] + a[k + 1] * b[k + 1]              one instruction for twice as many products

Narrow integers into int32 by x86's multiply-add of int16 pairs (vpmaddwd, and an addition): what is packed was int8, uint8 or
int16, so its lower halves are its values. Only the sum of two products of -2^15 with themselves leaves int32, and wraps as the
additions do.

bfloat16 into float32 by vdpbf16ps (AVX512-BF16) and bfdot (Armv8.6): what is packed was widened, its upper halves are its values.
Sums are float32, rounded once a product (to odd for the first of two on Arm); numbers below 2^-126 count as zero.
"""

from __future__ import annotations

from typing import Literal

from flame.compiler.kernel import Kernel, Op
from flame.compiler.llvm_text import Function, Int, repeat, wide
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import bfloat16, bool_, dtype, float32, int8, int16, int32, uint8

_NARROW = (int8, uint8, int16, bool_)

Pairs = Literal["", "int16", "bfloat16"]  #: of what; "": of nothing


def in_pairs(kernel: Kernel, left: str, right: str, d: dtype, target: CpuTarget) -> Pairs:
    """Whether these factors of a contraction in `d` are taken so."""

    def was(name: str, *kinds: dtype) -> bool:
        s = kernel.definitions[name]
        return s.dtype in kinds or isinstance(s, Op) and s.op == "cast" and kernel.definitions[s.operands[0]].dtype in kinds

    if d is float32 and _has_bfloat16(target) and was(left, bfloat16) and was(right, bfloat16):
        return "bfloat16"
    if d is not int32 or not target.is_x86 or not target.features & {"avx2", "avx512bw"}:
        return ""
    if target.lanes_f32 == 16 and "avx512bw" not in target.features or target.lanes_f32 < 8:
        return ""
    return "int16" if was(left, *_NARROW) and was(right, *_NARROW) else ""


def _has_bfloat16(target: CpuTarget) -> bool:
    if target.is_x86:
        return "avx512bf16" in target.features and target.lanes_f32 == 16
    return "bf16" in target.features and target.lanes_f32 == 4 and target.triple.startswith(("aarch64", "arm64"))


def multiply_add(f: Function, kind: Pairs, lanes: int, x: str, y: str, z: str) -> str:
    """z + the pairs' products."""
    if kind == "bfloat16":
        v, halves = wide("float", lanes), wide("bfloat", 2 * lanes)
        name = "llvm.x86.avx512bf16.dpbf16ps.512" if lanes == 16 else "llvm.aarch64.neon.bfdot.v4f32.v8bf16"
        a, b = (f.emit(f"bitcast {v} {w} to {halves}") for w in (x, y))
        return f.call(v, name, [(v, z), (halves, a), (halves, b)])
    v, halves = wide("i32", lanes), wide("i16", 2 * lanes)
    name = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"
    a, b = (f.emit(f"bitcast {v} {w} to {halves}") for w in (x, y))
    return f.emit(f"add {v} {f.call(v, name, [(halves, a), (halves, b)])}, {z}")


def pair_lines(f: Function, kind: Pairs, panel: str, lines: Int, width: int, lanes: int) -> None:
    """Make a packed panel one of pairs, where it lies. After an odd last line comes one of zeros.

    A vector may end in the next lines: they are pairs not made yet, or lines that were read already, as long as it is no longer
    than two lines.
    """
    n = lanes if lanes <= 2 * width else 1
    t, sixteen, upper = wide("i32", n), repeat("16", "i32", n), kind == "bfloat16"

    def pair(i: Int, second: bool) -> None:
        here = f.address(panel, f.mul(i, 2 * width), "i32")
        made = []
        for j in range(0, width, n):
            a = f.load(t, f.address(here, j, "i32"), 4)
            a = f.emit(f"lshr {t} {a}, {sixteen}" if upper else f"and {t} {a}, {repeat('65535', 'i32', n)}")
            if second:
                b = f.load(t, f.address(here, width + j, "i32"), 4)
                b = f.emit(f"and {t} {b}, {repeat('-65536', 'i32', n)}" if upper else f"shl {t} {b}, {sixteen}")
                a = f.emit(f"or {t} {a}, {b}")
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
