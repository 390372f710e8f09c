"""Lowering: a kernel pulled out of a graph computes what the graph's primitives compute, and says no with a reason."""

from __future__ import annotations

import importlib
import itertools
import math
import pkgutil
import random
from typing import Any

import numpy as np
import pytest

import flame.ops
from flame import dtypes
from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.index_math import divisions, evaluate, ex, names, simplify, var
from flame.compiler.interpret import interpret
from flame.compiler.kernel import expressions, verify
from flame.compiler.lower import Lowered, lower
from flame.compiler.writer import Writer
from flame.errors import Refused
from flame.primitive import REGISTRY, Primitive, Spec

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
            given.append(builder.input(Spec(np.shape(x), dtypes.from_numpy_dtype(x.dtype))))
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


# ---------------------------------------------------------------------------------------- what has no form


def kernel_of(build: Any, *shapes: tuple[int, ...]) -> Lowered:
    """The kernel of the values that `build` makes of float32 inputs."""
    builder = Builder()
    given = [builder.input(Spec(s, dtypes.float32)) for s in shapes]
    with builder:
        got = build(*given)
    return lower(got if isinstance(got, list) else [got], lambda v: v.node is None)


def op(name: str, *operands: Any, **params: Any) -> Any:
    return REGISTRY[name](*operands, **params)


def total(x: Any, *dim: int) -> Any:
    return op("sum", x, dim=dim, keepdim=True)


REFUSED: dict[str, tuple[Any, tuple[tuple[int, ...], ...], str]] = {
    "a row that is summed again for each column": (
        lambda x, y: op("add", x, total(y, 1)), ((4, 5), (4, 6)), r"sweeps 6, the kernel 5"),
    "sums of unlike rows": (
        lambda x, y: op("add", op("add", x, total(x, 2)), op("reshape", total(y, 1), shape=(3, 1, 1))),
        ((3, 4, 5), (3, 5)), r"would be computed 4 times"),
    "two contractions": (
        lambda x: op("matmul", op("matmul", x, x), x), ((4, 4),), r"one contraction, and this one has another"),
    "a softmax of a product": (
        lambda x, y: op("div", y, op("add", total(op("exp", op("matmul", x, x)), 1), total(y, 1))), ((4, 4), (4, 4)),
        r"holds one contraction, and this one has reductions already"),
    "a product read at every other row": (
        lambda x: op("slice", op("matmul", x, x), starts=(0, 0), stops=(4, 4), steps=(2, 1)), ((4, 4),), r"not once for each"),
    "results of unlike shapes": (
        lambda x, y: [op("exp", x), op("exp", y)], ((4, 5), (4, 6)), r"walks \[4, 5\], the kernel \[4, 6\]"),
    "a library call": (lambda x: op("mul", op("sort", x, dim=0, descending=False), 2.0), ((4,),), r"library call"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_form_is_refused_with_a_reason(what: str) -> None:
    build, shapes, reason = REFUSED[what]
    with pytest.raises(Refused, match=reason):
        kernel_of(build, *shapes)


def test_a_reason_names_the_composite_and_the_value() -> None:
    builder = Builder()
    builder.note = "softmax"
    x = builder.input(Spec((4, 4), dtypes.float32))
    with builder:
        y = op("matmul", x, op("matmul", x, x))
    with pytest.raises(Refused, match=r"softmax's matmul %v0: a kernel holds one contraction"):
        lower([y], lambda v: v.node is None)


# ---------------------------------------------------------------------------------------- what covers what


@pytest.mark.parametrize("seed", range(200))
def test_a_cover_is_a_one_to_one_map_onto_the_elements(seed: int) -> None:
    rng = random.Random(seed)
    w = Writer()
    for _ in range(rng.randint(1, 3)):
        w.axis(rng.randint(2, 4), "i")
    axes = list(w.axes)
    shape, index = [], []
    for _ in range(rng.randint(1, 3)):
        picked = rng.sample(axes, min(len(axes), rng.choice([1, 1, 2])))
        e, size = ex(0), 1
        for a in picked:  # often a mixed-radix number, at times one with a wrong stride
            e = e * (w.axes[a] if rng.random() < 0.8 else rng.randint(1, 3)) + var(a)
            size *= w.axes[a]
        if rng.random() < 0.2:
            e, size = e // 2, -(-size // 2)
        shape.append(size)
        index.append(simplify(e, w.bounds))
    if rng.random() < 0.3:  # a padded sum's row, which is there at one point of its axis
        shape.append(1)
        index.append(var(rng.choice(axes)) - rng.randint(0, 2))
    cover = w.cover(tuple(index), tuple(shape))
    points = [dict(zip(axes, p, strict=True)) for p in itertools.product(*(range(w.axes[a]) for a in axes))]
    hit = [tuple(evaluate(e, p) for e in index) for p in points]
    named = {n for e in index for n in names(e)}
    reached = {h for h in hit if all(0 <= i < d for i, d in zip(h, shape, strict=True))}
    onto = len(reached) == math.prod(shape) == math.prod(w.axes[a] for a in named) and reached == set(hit)
    if cover is not None:
        assert onto and cover == named
    else:
        assert not onto or any(True for e in index for _ in divisions(e)) or len(shape) > 1


def test_an_axis_is_split_where_statistics_are_read_by_the_group() -> None:
    def norm(x: Any) -> Any:
        grouped = op("reshape", x, shape=(2, 3, 8))
        return op("reshape", op("sub", grouped, total(grouped, 2)), shape=(2, 12, 2))

    kernel = kernel_of(norm, (2, 12, 2)).kernel
    assert [e.const for e in kernel.axes.values()] == [2, 3, 4, 2]
    assert not any(True for s in kernel.statements for e in expressions(s) for _ in divisions(e))


@pytest.mark.parametrize("d", [dtypes.int64, dtypes.int32, dtypes.int8, dtypes.uint8], ids=str)
def test_an_index_that_nobody_checked_stays_inside(d: Any) -> None:
    builder = Builder()
    table, index = builder.input(Spec((5, 3), dtypes.float32)), builder.input(Spec((8,), d))
    with builder:
        y = op("index_select", table, index, dim=0)
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    i = np.array([0, 4, -1, -5, 5, 100, -6, -100]).astype(d.numpy)
    got = run(lower([y], lambda v: v.node is None), {table: x, index: i})[y]
    at = i.astype(np.int64)
    np.testing.assert_array_equal(got, x[np.clip(np.where(at < 0, at + 5, at), 0, 4)])


def test_a_part_of_what_is_looked_up_is_read_where_the_index_meets_it() -> None:
    """Of `cat(a, b)[i]`, a is read nowhere behind its end."""
    builder = Builder()
    a, b = (builder.input(Spec((n,), dtypes.float32)) for n in (3, 2))
    index = builder.input(Spec((5,), dtypes.int64))
    with builder:
        y = op("index_select", op("cat", op("neg", a), b, dim=0), index, dim=0)
    lowered = lower([y], lambda v: v.node is None)
    x = np.arange(1, 6, dtype=np.float32)
    i = np.array([4, 0, 3, -1, 2])
    got = run(lowered, {a: x[:3], b: x[3:], index: i})[y]
    np.testing.assert_array_equal(got, np.where(np.arange(5) < 3, -x, x)[i])
