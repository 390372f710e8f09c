"""Lowering: a kernel pulled out of a graph computes what the graph's primitives compute, and says no with a reason."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import numpy as np
import pytest

import flame.ops
from flame import dtypes
from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.interpret import interpret
from flame.compiler.kernel import verify
from flame.compiler.lower import Lowered, lower
from flame.primitive import REGISTRY, Primitive

for _module in pkgutil.iter_modules(flame.ops.__path__):
    importlib.import_module(f"flame.ops.{_module.name}")

LOWERED = [p for p in REGISTRY.values() if p.scalar is not None or p.lower is not None]
#: largest error allowed, as a multiple of the dtype's epsilon times the largest element
TOLERANCE = 64


def traced(primitive: Primitive, operands: tuple, params: dict[str, Any]) -> tuple[Graph, list[np.ndarray]]:
    """The graph of one application, and the arrays that are its inputs."""
    builder = Builder()
    arrays, given = [], []
    for x in operands:
        if isinstance(x, np.ndarray | np.generic):
            arrays.append(np.ascontiguousarray(x).reshape(np.shape(x)))
            given.append(builder.input(flame.primitive.Spec(np.shape(x), dtypes.from_numpy_dtype(x.dtype))))
        else:
            given.append(x)
    with builder:
        builder.graph.outputs = [primitive(*given, **params)]
    return builder.graph, arrays


def run(lowered: Lowered, arrays: dict[Value, np.ndarray]) -> dict[Value, np.ndarray]:
    """Verify the kernel, and run it; what it stores is filled with rubbish before."""
    verify(lowered.kernel)
    buffers = {}
    for b, v in lowered.buffers.items():
        out = lowered.kernel.buffers[b].role == "out"
        buffers[b] = np.full(v.shape, 77, v.dtype.numpy) if out else arrays[v]
    interpret(lowered.kernel, buffers)
    return {v: buffers[b] for b, v in lowered.buffers.items() if lowered.kernel.buffers[b].role == "out"}


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    if dtypes.from_numpy_dtype(got.dtype).kind != "f":
        np.testing.assert_array_equal(got, expected)
        return
    epsilon = {2: 2.0**-7, 4: 2.0**-23, 8: 2.0**-52}[got.dtype.itemsize]
    a, b = got.astype(np.float64), expected.astype(np.float64)
    finite = np.abs(b[np.isfinite(b)])
    np.testing.assert_allclose(a, b, rtol=tolerance * epsilon, atol=tolerance * epsilon * max(finite.max(initial=0), 1e-30))


@pytest.mark.parametrize("primitive", LOWERED, ids=lambda p: p.name)
def test_every_primitive_alone_is_a_kernel_that_agrees_with_eager(primitive: Primitive) -> None:
    assert primitive.samples is not None
    for operands, params in primitive.samples():
        graph, arrays = traced(primitive, operands, params)
        out = graph.outputs[0]
        lowered = lower([out], lambda v: v.node is None)
        got = run(lowered, dict(zip(graph.inputs, arrays, strict=True)))[out]
        given = iter(arrays)
        eager = primitive.eager(*(next(given) if isinstance(x, np.ndarray | np.generic) else x for x in operands), **params)
        assert_close(got, np.asarray(eager))
