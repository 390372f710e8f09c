"""A program in NumPy: what compiled graphs mean, and what every runtime is held to.

Kernels run by `interpret.py`, calls by their primitives' eager functions, all on one real arena laid out as the program says,
so that a wrong memory plan gives wrong results. Slow; for tests, and for the "interpret" backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flame.compiler.interpret import interpret
from flame.compiler.program import Argument, CallStep, Program
from flame.primitive import Spec


def run_interpreted(
    program: Program, arrays: Sequence[np.ndarray], *, precise: bool = False, library: bool = False
) -> list[np.ndarray]:
    """The results of a program on arrays of its inputs' specs, each a fresh C-contiguous array (the same one for one slot), or
    the contiguous input array that it was written over.

    `precise` computes in float64 inside kernels and rounds at their stores. `library` runs kernels that have a library call
    by that call. Memory that nobody has written holds what would show: all bits set, which is NaN for every float.
    """
    memory: list[np.ndarray] = []
    arena = np.full(program.arena_bytes, 0xFF, np.uint8)
    for s in program.slots:
        if s.kind == "input":
            memory.append(_checked(arrays[s.index], s.spec, s.index))
        elif s.kind == "output":
            memory.append(_window(np.full(s.bytes, 0xFF, np.uint8), s.spec))
        else:
            memory.append(_window(arena[s.offset : s.offset + s.bytes], s.spec))
    for step in program.steps:
        if isinstance(step, CallStep):
            _call(step, memory)
        elif step.library is not None and library:
            _call(step.library, memory)
        else:
            interpret(step.kernel, {b: memory[i] for b, i in step.buffers.items()}, step.symbols, precise)
        if any(i in program.guards and memory[i].any() for i in step.writes):
            break
    return [memory[i] for i in program.outputs]


def _checked(array: np.ndarray, spec: Spec, i: int) -> np.ndarray:
    if array.shape != spec.shape or array.dtype != spec.dtype.numpy:
        raise TypeError(f"input {i} is to be {spec}, but got {array.dtype}{list(array.shape)}")
    return np.ascontiguousarray(array).reshape(spec.shape)


def _window(raw: np.ndarray, spec: Spec) -> np.ndarray:
    """Bytes as an array of `spec`."""
    return raw.view(spec.dtype.numpy).reshape(spec.shape)


def _call(step: CallStep, memory: list[np.ndarray]) -> None:
    def value(x: Any) -> Any:
        if not isinstance(x, Argument):
            return x
        array = memory[x.slot]
        for primitive, params in x.views:
            array = primitive.eager(array, **params)
        return array

    got = step.node.primitive.eager(*map(value, step.arguments), **step.node.params)
    for i, array in zip(step.outputs, got if isinstance(got, tuple) else (got,), strict=True):
        if i >= 0:
            memory[i][...] = array
