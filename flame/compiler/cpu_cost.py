"""What statements cost on a CPU, roughly: vector instructions an element, and so microseconds a nest.

The figures only decide how work is cut into chunks, how far loops are unrolled and what is kept rather than computed again.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from flame.compiler.index_math import E, evaluate
from flame.compiler.kernel import Const, Contract, IndexOf, Kernel, Load, Op, Reduce, Store, reads, typical
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import by_name
from flame.dtypes import dtype as DType
from flame.ops.machine import BASIC, COMPARISONS, Machine
from flame.primitive import REGISTRY

_SLOW = {"div": 5, "sqrt": 6, "floor_divide_int": 20, "remainder_int": 20}
_LIBRARY_CALL = 60  #: a C function a lane
_CALL = 8  #: a function of vectors
EXPENSIVE = 8  #: from here on, a value that another sweep reads is kept rather than computed again


class _Counter(Machine):
    """Values are dtypes; counts operations."""

    vectors = True

    def __init__(self) -> None:
        self.count = 0
        self.calls = 0  #: of C functions

    def emit(self, op: str, *operands: Any) -> DType:
        self.count += _SLOW.get(op, 1)
        like = next(d for d in reversed(operands) if isinstance(d, DType))
        return by_name("bool") if op in COMPARISONS else like

    def const(self, value: bool | int | float, d: DType) -> DType:
        return d

    def cast(self, x: DType, d: DType) -> DType:
        self.count += 1
        return d

    def bitcast(self, x: DType, d: DType) -> DType:
        return d

    def dtype(self, x: DType) -> DType:
        return x

    def libm(self, name: str, *x: DType) -> DType:
        self.count += _LIBRARY_CALL
        self.calls += 1
        return x[0]

    def rarely(self, name: str, condition: DType, value: DType, *x: DType) -> DType:
        self.count += _CALL
        return value


@lru_cache(maxsize=4096)
def op_cost(op: str, kinds: tuple[DType, ...]) -> int:
    """Vector instructions of an `Op`."""
    if op in BASIC:
        return _SLOW.get(op, 1)
    counter = _counted(op, kinds)
    return 1 if counter is None else counter.count


#: applications of one primitive in a kernel, and instructions of each, from which on it is a function instead of being written
#: out; and the work of a kernel up to which that is so, in instructions of one lane: some 20 us
_OFTEN, _LONG, _LITTLE = 8, 12, 1 << 20


def called_often(kernel: Kernel) -> frozenset[str]:
    """The primitives that a short kernel applies often: written out, a hundred of them take LLVM 0.3 s. As functions they take
    a tenth of that, and run up to 1.4 times as long, since neighbours don't overlap: nothing for a kernel of much work."""
    count: dict[str, int] = {}
    work = 0.0
    for s in kernel.definitions.values():
        if isinstance(s, Op) and s.op not in BASIC and s.op not in ("cast", "bitcast"):
            cost = op_cost(s.op, tuple(kernel.definitions[v].dtype for v in s.operands))
            if cost >= _LONG:
                count[s.op] = count.get(s.op, 0) + 1
                work += cost
    work *= math.prod(math.inf if e.const is None else e.const for e in kernel.axes.values())
    return frozenset(op for op, n in count.items() if n >= _OFTEN) if work <= _LITTLE else frozenset()


def calls_library(op: str, kinds: tuple[DType, ...]) -> bool:
    """Does an `Op` call a C function for each lane?"""
    counter = None if op in BASIC else _counted(op, kinds)
    return counter is not None and counter.calls > 0


def _counted(op: str, kinds: tuple[DType, ...]) -> _Counter | None:
    """The operations of a primitive's definition; None where it has none."""
    p = REGISTRY.get(op)
    if p is None or p.scalar is None or p.scalar.define is None:
        return None
    counter = _Counter()
    p.scalar.define(counter, *kinds)
    return counter


def statement_cost(kernel: Kernel, name: str) -> int:
    """Vector instructions of one statement."""
    match kernel.definitions[name]:
        case Const():
            return 0
        case IndexOf():
            return 1
        case Load():
            return 2
        case Op() as s:
            return op_cost(s.op, tuple(kernel.definitions[v].dtype for v in s.operands))
    return 1


def cone(kernel: Kernel, s: Reduce | Contract | Store, known: Collection[str] = ()) -> list[str]:
    """The values computed for a sink: everything below it down to other reductions, and to what is `known`."""
    found: dict[str, None] = {}
    todo = list(reads(s))
    while todo:
        v = todo.pop()
        if v in found or v in known or isinstance(kernel.definitions[v], Reduce | Contract):
            continue
        found[v] = None
        todo += reads(kernel.definitions[v])
    return list(found)


def microseconds(kernel: Kernel, sinks: list[Reduce | Contract | Store], walked: E, target: CpuTarget) -> float:
    """An estimate for sinks that are run over `walked` points together, on one core (symbols at a typical value)."""
    values = dict.fromkeys(v for s in sinks for v in cone(kernel, s))
    work = sum(statement_cost(kernel, v) for v in values) + 2 * len(sinks)
    points = int(evaluate(walked, typical(kernel)))
    return points * work / target.lanes_f32 * 1e-3 * 0.5
