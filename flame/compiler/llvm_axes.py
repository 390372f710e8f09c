"""What a nest's vectors run along: sizes of axes, the lanes' axis, and where along it no mask forbids anything."""

from __future__ import annotations

from collections.abc import Sequence

from flame.compiler.cpu_cost import cone
from flame.compiler.index_math import E, evaluate, ex, extreme, names, var
from flame.compiler.kernel import Kernel, Load, Store, domain_of, typical
from flame.compiler.llvm_address import address
from flame.compiler.nests import Nest, Sink, loads_of, walked
from flame.compiler.target_cpu import CpuTarget


def product(kernel: Kernel, axes: tuple[str, ...]) -> E:
    """How many points some axes have."""
    out = ex(1)
    for a in axes:
        out = out * kernel.axes[a]
    return out


def size(kernel: Kernel, e: E) -> int:
    """An extent for heuristics: symbols at a typical value."""
    return int(evaluate(e, typical(kernel)))


def lanes_for(kernel: Kernel, nest: Nest, target: CpuTarget) -> int:
    """The width of vectors: a register of the widest floating type computed with, or of the widest type if there is none."""
    names = {v for s in [*nest.reduces, *nest.stores] for v in cone(kernel, s)} | {r.name for r in nest.reduces}
    kinds = [kernel.definitions[v].dtype for v in names]
    floats = [max(4, d.itemsize) for d in kinds if d.kind == "f"]
    widest = max(floats or [d.itemsize for d in kinds] or [4])
    return max(2, target.vector_bytes // widest)


def vector_axis(kernel: Kernel, nest: Nest, lanes: int) -> str:
    """The axis along which most bytes are moved with stride 1; "" if there is no axis worth it."""
    score: dict[str, float] = {}
    sinks = [*nest.reduces, *nest.stores]
    moved: dict[int, Load | Store] = {id(t): t for s in sinks for t in loads_of(kernel, s)}
    moved |= {id(t): t for t in nest.stores}
    for t in moved.values():
        touched = domain_of(kernel, t.index)
        points = 1.0
        for a in touched:
            points *= size(kernel, kernel.axes[a])
        weight = points * kernel.buffers[t.buffer].dtype.itemsize * (1.5 if isinstance(t, Store) else 1.0)
        unit, every_second = unit_axes(kernel, t), isinstance(t, Load) and unit_axes(kernel, t, 2)
        for a in touched:
            n = size(kernel, kernel.axes[a])
            gain = 4 * weight if a in unit else 2 * weight if every_second and a in every_second else 0.0
            score[a] = score.get(a, 0.0) + (gain * min(1.0, n / lanes) if gain else -weight)
    candidates = [a for a in kernel.axes if any(a in walked(kernel, s) for s in sinks)]
    if not candidates:
        return ""
    # an axis that nothing is addressed by (a broadcast result) moves nothing; the last axis wins among equals
    return max(candidates, key=lambda a: (score.get(a, 0.0), list(kernel.axes).index(a)))


def unit_axes(kernel: Kernel, t: Load | Store, step: int = 1) -> set[str]:
    """The axes along which an address moves by one element, or by `step`."""
    e = address(kernel, t)
    return {m[0] for m, c in e.terms if c == step and len(m) == 1 and isinstance(m[0], str) and m[0] in kernel.axes}


def inside(kernel: Kernel, lane: str, sinks: Sequence[Sink], lanes: int) -> tuple[int, int] | None:
    """The part of the lanes' axis, in whole vectors, where every mask that varies along it either forbids nothing or forbids
    everything (a shift that wraps around reads one of two places); None where masks do not depend on it, or the part is too
    short to be worth code of its own."""
    bounds, n = kernel.bounds, lanes
    extent = kernel.axes[lane].const
    if extent is None:
        return None
    first, last = 0, extent
    moved: list[Load | Store] = [t for s in sinks for t in (loads_of(kernel, s))]
    moved += [t for t in sinks if isinstance(t, Store)]
    masks = dict.fromkeys(c for t in moved for c in t.mask if lane in names(c.expr))
    for c in masks:
        step = sum(k for m, k in c.expr.terms if m == (lane,))
        rest = c.expr - var(lane) * step
        least, most = extreme(rest, -1, bounds), extreme(rest, 1, bounds)
        if c.kind != "ge" or not step or lane in names(rest) or least is None or least.const is None:
            return None
        holds = _where(step, least.const, extent)
        if most is not None and most.const is not None:
            fails = _where(-step, -most.const - 1, extent)
            holds = max(holds, fails, key=lambda part: part[1] - part[0])
        first, last = max(first, holds[0]), min(last, holds[1])
    first, last = -(-first // n) * n, last // n * n  # vectors begin at multiples of the lanes
    return (first, last) if masks and last - first >= 2 * n else None


def _where(step: int, rest: int, extent: int) -> tuple[int, int]:
    """The part of [0, extent) where step * i + rest >= 0."""
    if step > 0:
        return min(extent, max(0, -(rest // step))), extent
    return 0, max(0, min(extent, rest // -step + 1))
