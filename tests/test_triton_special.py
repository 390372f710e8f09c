"""Pointwise primitives on the values that go wrong: both zeros, NaN, infinities, the ends of the integers, and all their pairs.

Every primitive with a scalar form, in every dtype that it takes, as a GPU is given it: through fusion, rendered to Triton, run by
its interpreter, and held to eager operations by the sign of a zero too. One program holds all dtypes of a primitive.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame  # noqa: F401
from flame import dtypes
from flame.compiler.graph import Builder, Graph
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.dtypes import from_numpy_dtype
from flame.primitive import REGISTRY, Spec
from flame.runtime.triton_tools import run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

GPU = gpu("sm_90")
POINTWISE = sorted(p.name for p in REGISTRY.values() if p.kind == "elementwise" and p.scalar is not None)
#: integers have no quotient by zero: eager operations raise
QUOTIENTS = ("floor_divide", "trunc_divide", "remainder", "fmod")
#: which of two zeros is the greater no standard says, and NumPy's answer varies with the position
EITHER_ZERO = ("maximum", "minimum", "fmax", "fmin")


def special(d: dtypes.dtype, few: bool) -> np.ndarray:
    if d is dtypes.bool_:
        return np.array([False, True])
    if d.kind == "f":
        tiny = float(np.finfo(np.float64 if d is dtypes.float64 else np.float32).tiny) * 4
        values = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, -2.5]
        more = [-0.5, 1.5, -1.5, 2.5, 3.0, -3.0, tiny, -tiny, 1e4, -1e4]
        return np.array(values if few else values + more).astype(d.numpy)
    ends = np.iinfo(d.numpy)
    return np.array([0, 1, 2, 3, 7, 31, ends.max] + ([-1, -2, -3, -7, ends.min] if ends.min else []), d.numpy)


def operands(name: str, kinds: tuple[dtypes.dtype, ...]) -> list[np.ndarray]:
    """Every combination of special values, one position each."""
    sides = [special(d, len(kinds) > 2) for d in kinds]
    if name in QUOTIENTS and kinds[1].kind != "f":
        sides[1] = sides[1][sides[1] != 0]
    if name == "philox_word":
        sides[1] = sides[1][sides[1] >= 0]  # a position
    return [a.ravel() for a in np.meshgrid(*sides, indexing="ij")]


def forms(name: str) -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    found = {}
    for given, params in (REGISTRY[name].samples or list)():
        kinds = tuple(from_numpy_dtype(a.dtype) for a in given if isinstance(a, np.ndarray))
        if len(kinds) == len(given) and not any(k.kind == "c" for k in kinds):
            found[str((kinds, params))] = (operands(name, kinds), params)
    size = max(g[0].size for g, _ in found.values())
    return [([np.resize(a, size) for a in g], q) for g, q in found.values()]


def wrong(name: str, got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Where they differ: integers at all, floats by more than rounding or in the sign of a zero."""
    if want.dtype.kind in "iub":
        return got != want
    a, b = got.astype(np.float64), want.astype(np.float64)
    tolerance = 1e-12 if want.dtype == np.float64 else 1e-5 if want.dtype == np.float32 else 2e-2
    far = ~np.isclose(a, b, rtol=tolerance, atol=1e-30, equal_nan=True)
    turned = (np.signbit(a) != np.signbit(b)) & ~np.isnan(b)
    return far | (turned & (b != 0) if name in EITHER_ZERO else turned)


@pytest.mark.parametrize("name", POINTWISE)
def test_special_values_are_what_eager_operations_give(name: str) -> None:
    p, tried = REGISTRY[name], forms(name)
    graph = Graph(name=name)
    with Builder(graph) as builder:
        made = [p(*(builder.input(Spec(a.shape, from_numpy_dtype(a.dtype))) for a in g), **q) for g, q in tried]
    graph.outputs = made
    program = compile_graph(graph, GPU)
    with np.errstate(all="ignore"):
        wanted = [np.asarray(p.eager(*g, **q)) for g, q in tried]
    slots: dict[int, np.ndarray] = dict(zip(program.inputs, (a for g, _ in tried for a in g), strict=True))
    for step in program.steps:
        assert isinstance(step, KernelStep)
        for buffer, i in step.buffers.items():
            if i not in slots:
                slots[i] = np.zeros(wanted[0].shape, step.kernel.buffers[buffer].dtype.numpy)
        source = to_triton(step.kernel, choose_gpu(step.kernel, GPU, step.symbols))
        run_interpreted(source, {b: slots[i] for b, i in step.buffers.items()}, step.symbols)
    for (given, params), i, want in zip(tried, program.outputs, wanted, strict=True):
        with np.errstate(all="ignore"):
            at = np.flatnonzero(wrong(name, slots[i], want))[:5]
        rows = [([str(a[j]) for a in given], f"{slots[i][j]} for {want[j]}") for j in at]
        assert not rows, f"{[str(a.dtype) for a in given]} {params}: {rows}"
