"""Programs of one kernel, and of a chain of them, as the linker would make them: what the tests of the runtime run."""

from __future__ import annotations

import numpy as np
from kernels_for_tests import F32, Case, Make, i

from flame import dtypes
from flame.compiler.graph import Graph
from flame.compiler.index_math import evaluate
from flame.compiler.kernel import Kernel
from flame.compiler.program import KernelStep, Program, Slot
from flame.primitive import Spec


def specs(case: Case) -> dict[str, Spec]:
    kernel, _, symbols = case
    return {b.name: Spec(tuple(int(evaluate(e, symbols)) for e in b.shape), b.dtype) for b in kernel.buffers.values()}


def program_of(case: Case) -> tuple[Program, list[np.ndarray]]:
    """A program of one kernel, and its inputs."""
    kernel, arrays, symbols = case
    slots, buffers, inputs, outputs = [], {}, [], []
    for name, spec in specs(case).items():
        given = kernel.buffers[name].role == "in"
        of = inputs if given else outputs
        buffers[name] = len(slots)
        slots.append(Slot(spec, "input" if given else "output", len(of)))
        of.append(buffers[name])
    step = KernelStep(kernel, buffers, dict(symbols), notes=(f"{kernel.name} model.py:7",))
    names = list(kernel.buffers)
    given_arrays = [arrays[names[s]].reshape(slots[s].spec.shape) for s in inputs]
    return Program(kernel.name, Graph(), tuple(slots), (step,), tuple(inputs), tuple(outputs)), given_arrays


def add_one(n: int, d: dtypes.dtype = F32) -> Kernel:
    m = Make("add_one", i=n)
    m.store("y", (i,), m.op("add", m.load("x", (i,), d), m.const(1 if d.kind == "i" else 1.0, d)))
    return m.case()[0]


def chain(n: int, temps: int, d: dtypes.dtype = F32) -> Program:
    """x + 1 + 1 + ..., through temps that lie one behind the other in the arena."""
    spec = Spec((n,), d)
    room = -(-spec.nbytes // 64) * 64
    slots = [Slot(spec, "input"), *(Slot(spec, "temp", 0, t * room) for t in range(temps)), Slot(spec, "output")]
    steps = [KernelStep(add_one(n, d), {"x": s, "y": s + 1}) for s in range(temps + 1)]
    return Program("chain", Graph(), tuple(slots), tuple(steps), (0,), (temps + 1,), temps * room)
