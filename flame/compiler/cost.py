"""What a kernel costs, in estimated nanoseconds: the one currency that fusion decides in.

    time = bytes / bandwidth + operations / rate + launch

The figures of a target are orders of magnitude, not measurements: fusion asks which of two plans is cheaper, and both are
priced alike. A byte counts once for each buffer that a kernel touches, as if caches were perfect; operations are counted at
every point of a value's domain, an elementwise primitive by the basic operations that its definition makes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from flame import dtypes
from flame.compiler.index_math import evaluate
from flame.compiler.kernel import Contract, Kernel, Load, Op, Reduce, bytes_moved, reads, typical
from flame.compiler.target import Target
from flame.dtypes import dtype
from flame.ops.machine import COMPARISONS, Machine
from flame.primitive import REGISTRY, Primitive

#: side of the output tile that a GPU computes before it reads its operands again
_TILE = 128
#: bytes from which on arrays that wait for each other are a matter of memory, and a launch is none of time
LARGE = 16 << 20
#: operations that basic operations are worth; the others count 1
_WEIGHTS = {"div": 4.0, "sqrt": 4.0, "floor_divide_int": 8.0, "remainder_int": 8.0, "cast": 0.5, "bitcast": 0.0}
_LIBRARY_FUNCTION, _RANDOM_WORD = 40.0, 100.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes and scalar operations a nanosecond, and nanoseconds to start a kernel."""

    bandwidth: float
    operations: float
    launch: float


@dataclass(frozen=True, slots=True)
class Cost:
    bytes: int
    operations: float
    time: float  #: nanoseconds, with the launch


@cache
def rates(target: Target) -> Rates:
    if target.is_gpu:
        return Rates(bandwidth=12.0 * target.units, operations=150.0 * max(target.units, 8), launch=3000.0)
    threads = max(target.units, 1)
    return Rates(bandwidth=8.0 * min(threads, 4), operations=2.0 * target.lanes * threads, launch=300.0)


class _Counter(Machine):
    """A machine that computes nothing and counts; its values are dtypes."""

    def __init__(self) -> None:
        self.count = 0.0

    def emit(self, op: str, *operands: Any) -> Any:
        self.count += _WEIGHTS.get(op, 1.0)
        if op in COMPARISONS or op.startswith("logical"):
            return dtypes.bool_
        return next((x for x in reversed(operands) if isinstance(x, dtype)), dtypes.float32)

    def const(self, value: bool | int | float, d: dtype) -> Any:
        return d

    def cast(self, x: Any, d: dtype) -> Any:
        self.count += _WEIGHTS["cast"]
        return d

    def bitcast(self, x: Any, d: dtype) -> Any:
        return d

    def dtype(self, x: Any) -> dtype:
        return x

    def libm(self, name: str, *x: Any) -> Any:
        self.count += _LIBRARY_FUNCTION
        return next(v for v in x if isinstance(v, dtype))

    def rarely(self, name: str, condition: Any, value: Any, *x: Any) -> Any:
        return value


@cache
def operations(p: Primitive, d: dtype, operands: int) -> float:
    """Basic operations for one element of an elementwise primitive on operands of dtype `d`; others: 1."""
    if p.name == "cast":
        return _WEIGHTS["cast"]
    if p.kind == "random":
        return _RANDOM_WORD
    if p.scalar is None or p.scalar.define is None:
        return _WEIGHTS.get(p.name, 1.0)
    counter = _Counter()
    p.scalar.define(counter, *[d.accumulator] * operands)
    return counter.count


def cost(kernel: Kernel, target: Target) -> Cost:
    """The estimated time of one run. Symbols count as typical."""
    env = typical(kernel)
    sizes = {a: max(e.const if e.const is not None else int(evaluate(e, env)), 1) for a, e in kernel.axes.items()}

    def points(domain: Iterable[str]) -> int:
        return math.prod(sizes[a] for a in domain)

    again = _recomputed(kernel, sizes) if target.is_gpu else {}
    work = 0.0
    moved = bytes_moved(kernel)
    for s in kernel.statements:
        match s:
            case Op():
                p = REGISTRY.get(s.op)
                d = kernel.definitions[s.operands[-1]].dtype if s.operands else s.dtype
                each = operations(p, d, len(s.operands)) if p is not None else _WEIGHTS.get(s.op, 1.0)
                work += each * points(kernel.domains[s.name]) * again.get(s.name, 1)
            case Reduce():
                work += points(kernel.domains[s.operands[0]])
            case Contract():
                a, b = (kernel.domains[v] for v in s.operands)
                work += points(a | b) / 4
            case Load() if s.name in again:
                moved += points(kernel.domains[s.name]) * s.dtype.itemsize * (again[s.name] - 1)
    r = rates(target)
    return Cost(moved, work, moved / r.bandwidth + work / r.operations + r.launch)


def _recomputed(kernel: Kernel, sizes: dict[str, int]) -> dict[str, int]:
    """How often a GPU makes each value of a contraction's prologue: once for every tile along the axes it lacks."""
    contraction = kernel.contraction
    if contraction is None:
        return {}
    everything = frozenset().union(*(kernel.domains[v] for v in contraction.operands))
    times: dict[str, int] = {}
    for v in contraction.operands:
        lacking = math.prod(sizes[a] for a in everything - kernel.domains[v])
        pending = [v]
        while pending:
            x = pending.pop()
            if x not in times and kernel.domains[x]:
                times[x] = -(-lacking // _TILE)
                pending.extend(reads(kernel.definitions[x]))
    return times
