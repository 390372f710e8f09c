"""Which operands of a product the copy engine of a GPU (TMA) can fetch: matrices that lie as its descriptors say.

    matrix_of(kernel, value, own, summed)        how an operand lies, or None
    describable(kernel, factors, sides)          can both operands be fetched so?

One instruction then copies a whole tile to shared memory, with zeros beyond the edges, and no thread computes an address.
"""

from __future__ import annotations

from flame.compiler.chain import coefficient
from flame.compiler.index_math import E, names, var
from flame.compiler.kernel import Kernel, Load, flat


def matrix_of(kernel: Kernel, v: str, own: tuple[str, ...], summed: tuple[str, ...]) -> tuple[Load, int, bool, E] | None:
    """How an operand lies in memory, if the copy engine takes it so: its load, the stride of the outer dimension, whether the
    own axis is the inner one, and where the matrix begins. One axis a side, the inner one of stride 1, all else multiples of
    16 bytes; no masks, no prologue."""
    s = kernel.definitions[v]
    if not isinstance(s, Load) or s.mask or len(own) != 1 or len(summed) != 1:
        return None
    address = flat(kernel, s)
    a, b = coefficient(address, own[0]), coefficient(address, summed[0])
    if a is None or b is None or min(a, b) < 1 or 1 not in (a, b):
        return None
    turned = b != 1
    outer = a if not turned else b
    unit = max(1, 16 // s.dtype.itemsize)
    origin = address - var(own[0]) * a - var(summed[0]) * b
    whole = all(c % unit == 0 for _, c in origin.terms)
    if outer % unit or not whole or any(n[0] == "%" for n in names(origin)):
        return None
    return s, outer, turned, origin


def describable(
    kernel: Kernel, factors: tuple[str, str], m: tuple[str, ...], n: tuple[str, ...], summed: tuple[str, ...]
) -> bool:
    """Do both operands of the kernel's contraction, as they are multiplied, lie so?"""
    return all(matrix_of(kernel, v, own, summed) is not None for v, own in zip(factors, (m, n), strict=True))
