"""Factors of a contraction that tiles read where they lie, in place of a packed copy.

    left_in_place(kernel, groups, tiling, target) -> InPlace | None      over the grouped kernel's M and K
    right_in_place(...)                                                  over N and K

Packing a factor touches each of its elements twice more, and is repaid by neighbours in memory when a panel is read again and
again from a far cache. It is not repaid where rows of the left factor run along k (a panel is as many streams as it has rows,
and each is read from start to end), nor where all of a factor stays in the nearest cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flame.compiler.contract_groups import K, M, N
from flame.compiler.index_math import names, var
from flame.compiler.kernel import Kernel, Load
from flame.compiler.llvm_address import address
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import dtype


@dataclass(frozen=True, slots=True)
class InPlace:
    """The load of a factor and its strides, in elements, along its group and along k."""

    load: Load
    along: int
    depth: int


def _plain(kernel: Kernel, name: str, group: str, d: dtype) -> InPlace | None:
    """A factor that is an unmasked load of the contraction's own dtype, at constant strides of its axes."""
    s = kernel.definitions[name]
    if not isinstance(s, Load) or s.mask or s.dtype is not d or any(kernel.axes[a].const is None for a in (M, N, K)):
        return None
    e = address(kernel, s)
    along, depth = (dict(e.terms).get((axis,), 0) for axis in (group, K))
    rest = names(e - var(group) * along - var(K) * depth)
    return None if rest & {M, N, K} or any(n.startswith("%") for n in rest) else InPlace(s, along, depth)


def left_in_place(kernel: Kernel, name: str, d: dtype, target: CpuTarget) -> InPlace | None:
    got = _plain(kernel, name, M, d)
    if got is None:
        return None
    depth = kernel.axes[K].const or 0
    if got.depth == 1:
        # rows a page apart compete for the same sets of the cache (1024 cubed: 27.6 ms, and 25.5 packed)
        return got if got.along * d.itemsize % 4096 or depth <= 128 else None
    # each k is a line of the cache, of which a panel takes a part
    return got if got.along == 1 and depth * 64 <= target.l1 // 2 else None


def right_in_place(kernel: Kernel, name: str, d: dtype, target: CpuTarget) -> InPlace | None:
    got = _plain(kernel, name, N, d)
    if got is None or got.along != 1:
        return None
    depth, columns = kernel.axes[K].const or 0, kernel.axes[N].const or 0
    # a panel is a line of the cache for each k: they must not fall into few of its sets
    sets = 64 // math.gcd(64, max(1, got.depth * d.itemsize // 64))
    return got if depth * columns * d.itemsize <= 2 * target.l1 and depth <= 4 * sets else None


def in_lines(kernel: Kernel, name: str, d: dtype) -> InPlace | None:
    """A factor in rows along its own group, which is packed line by line."""
    got = _plain(kernel, name, N, d)
    return got if got is not None and got.along == 1 and got.depth > 1 else None
