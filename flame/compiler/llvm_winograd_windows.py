"""Which contractions are convolutions of 3 x 3 windows that Winograd's transforms serve better than their products.

winograd(kernel, groups, nest, target) -> Winograd        None where the products themselves serve as well
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.contract_groups import Groups, loads_under, positions
from flame.compiler.index_math import names, subst, var
from flame.compiler.kernel import Kernel
from flame.compiler.llvm_axes import product, size, unit_axes
from flame.compiler.nests import Nest, loads_of
from flame.compiler.target_cpu import CpuTarget

LEAST_CHANNELS, LEAST_ROWS, LEAST_TILES = 16, 16, 32


@dataclass(frozen=True)
class Slid:
    """A tap and the output's axis that it is added to, or taken from (`flipped`)."""

    tap: str
    along: str
    flipped: bool


@dataclass(frozen=True)
class Winograd:
    lines: Slid
    places: Slid
    channels: tuple[str, ...]  #: of k, what is no tap
    outer: tuple[str, ...]  #: of n, what is not along them


def winograd(kernel: Kernel, g: Groups, nest: Nest, target: CpuTarget) -> Winograd | None:
    """How the taps of a 3 x 3 window lie in a contraction, if it is one of that kind and of a size that gains."""
    d = g.contract.dtype
    lanes = target.vector_bytes // d.itemsize
    if g.batch or d.kind != "f" or lanes % 4 or any(kernel.axes[a].const is None for a in (*g.m, *g.n, *g.k)):
        return None
    if len(g.n) < 2 or len(g.k) < 3:
        return None
    places = _slid(kernel, g, g.n[-1], g.k)
    lines = None
    if places is not None:
        lines = _slid(kernel, g, g.n[-2], tuple(a for a in g.k if a != places.tap))
    if places is None or lines is None:
        return None
    loads = loads_under(kernel, g.right)
    if not any(places.along in unit_axes(kernel, s) for s in loads):
        return None
    if any(places.along not in unit_axes(kernel, s) for s in nest.stores):
        return None
    # a block that is computed again must find what its epilogue reads as it was
    read = {s.buffer for t in nest.stores for s in loads_of(kernel, t)} | {s.buffer for s in loads}
    if read & {t.buffer for t in nest.stores}:
        return None
    channels = tuple(a for a in g.k if a not in (lines.tap, places.tap))
    outer = tuple(a for a in g.n if a not in (lines.along, places.along))
    depth, rows, planes = (size(kernel, product(kernel, axes)) for axes in (channels, g.m, outer))
    tiles = planes * -(-size(kernel, kernel.axes[lines.along]) // 2) * -(-size(kernel, kernel.axes[places.along]) // 2)
    if depth < LEAST_CHANNELS or rows < LEAST_ROWS or tiles < LEAST_TILES:
        return None
    return Winograd(lines, places, channels, outer)


def _slid(kernel: Kernel, g: Groups, along: str, taps: tuple[str, ...]) -> Slid | None:
    """The tap of extent 3 that an axis of the output slides with: the factor depends on their sum, or difference, alone."""
    read = positions(kernel, g.right)
    here = [e for e in read if along in names(e)]
    for tap in taps if here else ():
        if kernel.axes[tap].const != 3:
            continue
        for sign in (1, -1):
            shifted = {along: var(along) - var(tap) * sign}
            if all(tap not in names(subst(e, shifted)) for e in here) and not any(
                tap in names(e) for e in read if along not in names(e)
            ):
                return Slid(tap, along, sign < 0)
    return None
