"""Reductions with too little to do side by side, done in two steps: parts first, then their join.

A kernel keeps the machine busy with the points that its results have. A full sum has one, a weight gradient of a narrow layer
a few tiles: the rest of the machine would watch. `flame.compiler.transform.split_reduction` cuts the longest reduced axis;
here it is decided whether, and into how many parts.
"""

from __future__ import annotations

import math

from flame.compiler.cost import Cost, rates
from flame.compiler.graph import Value
from flame.compiler.kernel import Kernel, Load, flat
from flame.compiler.program import FusedKernel
from flame.compiler.target import Target
from flame.compiler.transform import split_reduction
from flame.primitive import Spec

#: a CPU kernel of fewer nanoseconds is not worth a second one
_WORTH_THREADS = 60_000.0
#: bytes and multiply-adds that one multiprocessor gets through in a nanosecond
_UNIT_BYTES, _UNIT_PRODUCTS = 50.0, 500.0
#: reduced elements that a part should have at least, and side of a GPU's tile
_LEAST, _TILE = 1024, 128


def parts_of(kernel: Kernel, cost: Cost, target: Target) -> int:
    """Into how many parts the kernel's reduction should be cut; 1: as it is."""
    swept = kernel.reduce_axes
    if not swept or target.units < 2:
        return 1
    length = math.prod(kernel.axes[a].const or 1 for a in swept)
    kept = {a: n.const or 1 for a, n in kernel.axes.items() if a not in swept}
    points = math.prod(kept.values())
    if not target.is_gpu:
        return min(2 * target.units, length // _LEAST) if points < target.units and cost.time > _WORTH_THREADS else 1
    contraction = kernel.contraction
    if contraction is not None:
        left, right = (frozenset(kept) & kernel.domains[v] for v in contraction.operands)
        batch = math.prod(kept[a] for a in left & right)
        running = batch * math.prod(-(-math.prod(kept[a] for a in side) // _TILE) for side in (left - right, right - left))
        each = points * length / _UNIT_PRODUCTS
    else:
        columns = _innermost(kernel).isdisjoint(swept)  # a block of neighbouring columns is one program
        running = -(-points // _TILE) if columns else points
        each = cost.bytes / _UNIT_BYTES
    running = max(running, 1)
    if 2 * running > target.units or each / running < 2 * rates(target).launch:
        return 1
    return max(1, min(2 * target.units // running, length // _LEAST))


def _innermost(kernel: Kernel) -> set[str]:
    """The axes that some load walks with stride 1."""
    found: set[str] = set()
    for s in kernel.statements:
        if isinstance(s, Load):
            found |= {m[0] for m, c in flat(kernel, s).terms if c == 1 and len(m) == 1 and isinstance(m[0], str)}
    return found


def split(kernel: Kernel, cost: Cost, target: Target) -> tuple[Kernel, Kernel] | None:
    """The kernels of the parts and of the join, where two kernels are better than one and can be had."""
    if kernel.symbols:  # into how many parts depends on sizes that are not known yet
        return None
    parts = parts_of(kernel, cost, target)
    return split_reduction(kernel, parts) if parts > 1 else None


def steps_of(first: Kernel, second: Kernel, buffers: dict[str, Value]) -> list[FusedKernel]:
    """The two as steps on the one kernel's values, with new ones for the parts in between."""
    values = dict(buffers)
    name = next(v.name for b, v in buffers.items() if b in second.outputs)
    for b in first.outputs:
        part = first.buffers[b]
        values[b] = Value(Spec(tuple(e.const or 0 for e in part.shape), part.dtype), None, 0, f"{name}_{b}")
    return [(k, {b: values[b] for b in k.buffers}, None) for k in (first, second)]
