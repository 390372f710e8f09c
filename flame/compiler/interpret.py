"""The kernel IR in NumPy, one dimension an axis: what a kernel means, and what every renderer is held to.

`interpret(kernel, buffers, symbols)` runs a kernel on arrays, which its stores change in place. A value is an array whose
dimension number k is the kernel's axis number k, of that axis's extent where the value varies with it and 1 where not. It
is slow and needs room for every value over its whole domain.

Beyond the meaning given in `kernel.py`: a reduction over no elements gives its identity (max of integers: the least one;
arg reductions: 0). An index that leaves its buffer where the mask holds raises IndexError, and so do two points that store
to one address: a renderer may do anything there. `precise` computes all floating arithmetic in float64 and rounds at the
stores alone, for an oracle of a kernel's rounding error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flame.compiler.index_math import E, evaluate
from flame.compiler.kernel import Const, Contract, IndexOf, Kernel, Load, Op, Reduce, Store, identity
from flame.dtypes import dtype
from flame.ops.access import Cond
from flame.ops.machine import BASIC, NumpyMachine
from flame.primitive import REGISTRY

MACHINE = NumpyMachine()


def interpret(
    kernel: Kernel,
    buffers: Mapping[str, np.ndarray],
    symbols: Mapping[str, int] | None = None,
    precise: bool = False,
) -> Mapping[str, np.ndarray]:
    """Run `kernel` on C-contiguous arrays, one a buffer, of its shape (or of that many elements); gives `buffers` back."""
    run = _Run(kernel, buffers, dict(symbols or {}), precise)
    with np.errstate(all="ignore"):
        for s in kernel.statements:
            match s:
                case Const():
                    run.define(s.name, np.asarray(s.value, run.numpy(s.dtype)))
                case IndexOf():
                    run.define(s.name, run.expression(s.expr).astype(run.numpy(s.dtype)))
                case Load():
                    run.define(s.name, run.load(s))
                case Op():
                    run.define(s.name, run.op(s, *(run.values[v] for v in s.operands)))
                case Reduce():
                    run.define(s.name, run.reduce(s, run.values[s.operands[0]]))
                case Contract():
                    run.define(s.name, run.contract(s, *(run.values[v] for v in s.operands)))
                case Store():
                    run.store(s)
    return buffers


class _Run:
    """One run of a kernel: the values so far, and the integers that index expressions name."""

    def __init__(self, kernel: Kernel, buffers: Mapping[str, np.ndarray], symbols: dict[str, int], precise: bool):
        self.kernel = kernel
        self.precise = precise
        self.axes = list(kernel.axes)
        self.extents = [int(evaluate(e, symbols)) for e in kernel.axes.values()]
        self.values: dict[str, np.ndarray] = {}
        self.environment: dict[str, Any] = dict(symbols)
        for i, a in enumerate(self.axes):
            self.environment[a] = np.arange(self.extents[i]).reshape([-1 if j == i else 1 for j in range(len(self.axes))])
        self.arrays: dict[str, np.ndarray] = {}
        for b in kernel.buffers.values():
            if not buffers[b.name].flags.c_contiguous:
                raise ValueError(f"{kernel.name}: the array for {b.name} is not contiguous")
            self.arrays[b.name] = buffers[b.name].reshape([int(evaluate(e, symbols)) for e in b.shape])

    def numpy(self, d: dtype) -> np.dtype:
        return np.dtype(np.float64) if self.precise and d.kind == "f" else d.numpy

    def define(self, name: str, x: np.ndarray) -> None:
        x = x.reshape([1] * (len(self.axes) - x.ndim) + list(x.shape))
        self.values[name] = x
        if x.dtype.kind in "iub":
            self.environment["%" + name] = x.astype(np.int64)

    def expression(self, e: E) -> np.ndarray:
        return np.asarray(evaluate(e, self.environment), np.int64)

    def mask(self, conds: tuple[Cond, ...]) -> np.ndarray:
        out = np.asarray(True)
        for c in conds:
            x = self.expression(c.expr)
            out = out & (x >= 0 if c.kind == "ge" else x == 0)
        return out

    def address(self, s: Load | Store) -> tuple[list[np.ndarray], np.ndarray]:
        """The indices of a load or store, 0 where its mask does not hold; and the mask."""
        mask, array = self.mask(s.mask), self.arrays[s.buffer]
        index = [self.expression(e) for e in s.index]
        for e, x, d in zip(s.index, index, array.shape, strict=True):
            if np.any(((x < 0) | (x >= d)) & mask):
                raise IndexError(f"{self.kernel.name}: {e} leaves [0, {d}) of {s.buffer}")
        return [np.where(mask, x, 0) for x in index], mask

    def load(self, s: Load) -> np.ndarray:
        index, mask = self.address(s)
        array, kind = self.arrays[s.buffer], self.numpy(s.dtype)
        other = np.asarray(s.other, kind)
        if array.size == 0:
            return np.broadcast_to(other, np.broadcast_shapes(mask.shape, *(x.shape for x in index)))
        return np.where(mask, array[tuple(index)].astype(kind), other)

    def store(self, s: Store) -> None:
        index, mask = self.address(s)
        *index, mask, x = np.broadcast_arrays(*index, mask, self.values[s.value])
        array = self.arrays[s.buffer]
        if not index:
            if mask.all() and x.size:
                array[...] = x.ravel()[0]
            return
        kept = tuple(i[mask] for i in index)
        if array.size:
            where = np.ravel_multi_index(kept, array.shape)
            if len(where) > 1 and np.bincount(where).max() > 1:
                raise IndexError(f"{self.kernel.name}: two points store to one address of {s.buffer}")
        array[kept] = x[mask]

    def op(self, s: Op, *x: np.ndarray) -> np.ndarray:
        if s.op == "cast":
            return x[0].astype(self.numpy(s.dtype))
        if s.op == "bitcast":
            real = x[0].astype(self.kernel.definitions[s.operands[0]].dtype.numpy)
            return real.view(s.dtype.numpy).astype(self.numpy(s.dtype))
        scalar = None if s.op in BASIC else REGISTRY[s.op].scalar
        got = MACHINE.emit(s.op, *x) if scalar is None or scalar.define is None else scalar.define(MACHINE, *x)
        return np.asarray(got).astype(self.numpy(s.dtype))

    def reduce(self, s: Reduce, x: np.ndarray) -> np.ndarray:
        over = [self.axes.index(a) for a in s.axes]
        shape = [self.extents[i] if i in over else n for i, n in enumerate(x.shape)]
        x = np.broadcast_to(x, shape)
        kind, axes = self.numpy(s.dtype), tuple(over)
        if math.prod(shape[i] for i in over) == 0:
            return np.full([1 if i in over else n for i, n in enumerate(shape)], identity(s.op, s.dtype), kind)
        match s.op:
            case "sum":
                return np.sum(x, axis=axes, keepdims=True, dtype=kind)
            case "prod":
                return np.prod(x, axis=axes, keepdims=True, dtype=kind)
            case "max":
                return np.max(x, axis=axes, keepdims=True)
            case "min":
                return np.min(x, axis=axes, keepdims=True)
            case "any":
                return np.any(x, axis=axes, keepdims=True)
            case "all":
                return np.all(x, axis=axes, keepdims=True)
            case "argmax" | "argmin":  # NumPy's take the first, and NaN as the extreme
                rows = np.moveaxis(x, over, range(-len(over), 0))
                rows = rows.reshape([*rows.shape[: x.ndim - len(over)], -1])
                found = (np.argmax if s.op == "argmax" else np.argmin)(rows, axis=-1)
                return np.expand_dims(found, tuple(sorted(over))).astype(kind)
        raise ValueError(f"no reduction is named {s.op!r}")

    def contract(self, s: Contract, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        kind, n = self.numpy(s.dtype), len(self.axes)
        over = {self.axes.index(a) for a in s.axes}
        shape = [1 if i in over else b if a == 1 else a for i, (a, b) in enumerate(zip(x.shape, y.shape, strict=True))]
        here = {i for z in (x, y) for i in range(n) if z.shape[i] != 1}
        terms = [(z.astype(kind).squeeze(), [i for i in range(n) if z.shape[i] != 1]) for z in (x, y)]
        (a, of_a), (b, of_b) = terms
        out = np.einsum(a, of_a, b, of_b, [i for i in sorted(here) if i not in over], optimize=True)
        repeats = math.prod(self.extents[i] for i in over - here)  # axes that neither factor varies with
        out = np.asarray(out).reshape(shape).astype(kind)
        return out if repeats == 1 else np.zeros_like(out) if repeats == 0 else out * kind.type(repeats)


def empty_buffers(kernel: Kernel, symbols: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Zero-filled arrays for the kernel's outputs, by name."""
    shapes = {b.name: [int(evaluate(e, symbols or {})) for e in b.shape] for b in kernel.buffers.values() if b.role == "out"}
    return {name: np.zeros(shape, kernel.buffers[name].dtype.numpy) for name, shape in shapes.items()}
