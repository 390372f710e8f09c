"""Fusion: the kernels of a graph compute what its nodes do, are as few as they should be, and every decision has a reason."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from graphs_for_tests import evaluate, op, random_graph, random_inputs, transformer

import flame.ops  # noqa: F401  (fills the registry)
from flame import dtypes as dt
from flame.compiler.autodiff import pull_back
from flame.compiler.fusion import fuse
from flame.compiler.graph import Builder, Graph, Node, Value
from flame.compiler.groups import Groups
from flame.compiler.index_math import divisions
from flame.compiler.interpret import interpret
from flame.compiler.kernel import Load, digest, numel, verify
from flame.compiler.link import own_results
from flame.compiler.program import Fused
from flame.compiler.simplify import simplify
from flame.compiler.target import GENERIC_CPU, Target
from flame.compiler.templates import Templates
from flame.dtypes import dtype
from flame.primitive import Spec

CPU = Target("cpu", lanes=8, units=2)
LIBRARY = Target("cpu", lanes=8, units=2, library_matmul=True)
GPU = Target("cuda", "sm_90", lanes=32, units=132, cache=228 * 1024)
TARGETS = {"cpu": CPU, "library": LIBRARY, "gpu": GPU}


def run(graph: Graph, fused: Fused, arrays: Sequence[np.ndarray], precise: bool = True) -> list[np.ndarray]:
    """Every step in order, kernels verified and interpreted; memory is rubbish before it is written."""
    have: dict[Value, np.ndarray] = dict(zip(graph.inputs, arrays, strict=True))
    for step in fused.steps:
        if isinstance(step, Node):
            got = step.primitive.eager(*(have[x] if isinstance(x, Value) else x for x in step.operands), **step.params)
            have.update(zip(step.outputs, got if isinstance(got, tuple) else (got,), strict=True))
            continue
        kernel, buffers, _ = step
        verify(kernel)
        assert list(buffers) == list(kernel.buffers)
        given = {}
        for b, v in buffers.items():
            assert kernel.buffers[b].dtype is v.dtype and numel(kernel.buffers[b]).const == v.spec.numel
            if kernel.buffers[b].role == "out":
                assert v not in have, f"{v} is written twice"
                have[v] = np.full(v.shape, 77, v.dtype.numpy)
            given[b] = have[v]
        interpret(kernel, given, {}, precise)
    return [have[o] for o in graph.outputs]


def kernels(fused: Fused) -> list[Any]:
    return [s[0] for s in fused.steps if not isinstance(s, Node)]


def check(graph: Graph, fused: Fused, arrays: Sequence[np.ndarray], tolerance: float = 1e-6) -> None:
    """The kernels' results against the graph's, both computed in float64."""
    for got, expected in zip(run(graph, fused, arrays), evaluate(graph, arrays, precise=True), strict=True):
        a, b = got.astype(np.float64), expected.astype(np.float64)
        scale = np.abs(b[np.isfinite(b)]).max(initial=1e-3)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


# ---------------------------------------------------------------------------------------- named cases

Case = Callable[[Builder], Any]
CASES: dict[str, tuple[Case, int]] = {}


def case(most: int) -> Callable[[Case], Case]:
    """A function that builds a graph with a builder in force and gives its results, and how many kernels it may take."""

    def enter(f: Case) -> Case:
        CASES[f.__name__] = f, most
        return f

    return enter


def inputs(b: Builder, *shapes: tuple[int, ...], d: dtype = dt.float32) -> list[Value]:
    return [b.input(Spec(s, d)) for s in shapes]


def mean(x: Value, *dim: int) -> Value:
    return op("mul", op("sum", x, dim=dim, keepdim=True), float(1 / np.prod([x.shape[i] for i in dim])))


def softmax(x: Value, dim: int) -> Value:
    e = op("exp", op("sub", x, op("amax", x, dim=(dim,), keepdim=True)))
    return op("div", e, op("sum", e, dim=(dim,), keepdim=True))


def gelu(x: Value) -> Value:
    return op("mul", op("mul", x, 0.5), op("add", op("erf", op("mul", x, 0.5**0.5)), 1.0))


def normalised(x: Value, *dim: int) -> tuple[Value, Value, Value]:
    m = mean(x, *dim)
    e = op("sub", x, m)
    r = op("rsqrt", op("add", mean(op("mul", e, e), *dim), 1e-5))
    return op("mul", e, r), m, r


@case(1)
def gelu_with_broadcast(b: Builder) -> Any:
    x, bias, y = inputs(b, (37, 50), (50,), (37, 1))
    return op("mul", gelu(op("add", x, bias)), y)


@case(1)
def pads_of_two_values(b: Builder) -> Any:
    (x,) = inputs(b, (5, 6))
    once = op("pad", x, lo=(1, 0), hi=(0, 2), value=7.0)
    return op("pad", op("permute", once, dims=(1, 0)), lo=(0, 1), hi=(3, 1), value=0)


@case(1)
def an_array_and_its_transpose(b: Builder) -> Any:
    (x,) = inputs(b, (30, 20))
    e = op("exp", x)
    return e, op("mul", op("permute", e, dims=(1, 0)), 2.0)


@case(1)
def views(b: Builder) -> Any:
    x, y = inputs(b, (40, 60), (30, 20))
    t = op("slice", op("permute", x, dims=(1, 0)), starts=(5, 1), stops=(35, 40), steps=(1, 2))
    return op("mul", t, op("flip", y, dims=(1,)))


@case(1)
def reshape_with_division(b: Builder) -> Any:
    x, y = inputs(b, (12, 35), (20, 21))
    return op("add", op("exp", op("reshape", op("permute", x, dims=(1, 0)), shape=(20, 21))), y)


@case(2)
def pad_with_a_value(b: Builder) -> Any:
    (x,) = inputs(b, (6, 8, 10))
    e = op("exp", x)
    return op("add", e, 0.5), op("pad", e, lo=(0, 1, 2), hi=(0, 2, 1), value=7.0)


@case(1)
def concatenation(b: Builder) -> Any:
    x, y, z = inputs(b, (5, 3), (5, 4), (5, 9))
    return op(
        "relu", op("add", op("cat", op("exp", x), y, op("slice", z, starts=(0, 1), stops=(5, 9), steps=(1, 4)), dim=1), 1.0)
    )


@case(1)
def softmax_of_rows(b: Builder) -> Any:
    return softmax(*inputs(b, (33, 100)), 1)


@case(1)
def softmax_of_columns(b: Builder) -> Any:
    return softmax(*inputs(b, (33, 100)), 0)


@case(1)
def softmax_of_half(b: Builder) -> Any:
    return softmax(*inputs(b, (33, 100), d=dt.float16), 1)


@case(1)
def layer_norm_with_statistics(b: Builder) -> Any:
    x, w, c = inputs(b, (40, 96), (96,), (96,))
    y, m, r = normalised(x, 1)
    return op("add", op("mul", y, w), c), m, r


@case(1)
def residual_and_layer_norm(b: Builder) -> Any:
    x, z, w = inputs(b, (2, 20, 96), (2, 20, 96), (96,))
    s = op("add", x, z)
    y, _, r = normalised(s, 2)
    return s, op("mul", y, w), r


@case(1)
def normed_rows_as_a_matrix(b: Builder) -> Any:
    y, _, _ = normalised(*inputs(b, (4, 10, 24)), 2)
    return op("reshape", op("permute", op("reshape", y, shape=(4, 10, 2, 12)), dims=(0, 2, 1, 3)), shape=(8, 10, 12))


@case(2)
def layer_norm_backward(b: Builder) -> Any:
    g, x, w, m, r = inputs(b, (40, 96), (40, 96), (96,), (40, 1), (40, 1))
    xh, gw = op("mul", op("sub", x, m), r), op("mul", g, w)
    dx = op("mul", op("sub", op("sub", gw, mean(gw, 1)), op("mul", xh, mean(op("mul", gw, xh), 1))), r)
    column = {"dim": (0,), "keepdim": False}
    return dx, op("sum", op("mul", g, xh), **column), op("sum", g, **column)


@case(1)
def group_norm(b: Builder) -> Any:
    x, w = inputs(b, (2, 12, 5, 4), (12, 1, 1))
    y, _, _ = normalised(op("reshape", x, shape=(2, 3, 80)), 2)
    return op("mul", op("reshape", y, shape=(2, 12, 5, 4)), w)


@case(1)
def batch_norm(b: Builder) -> Any:
    x, w = inputs(b, (6, 3, 5, 4), (3, 1, 1))
    y, m, r = normalised(x, 0, 2, 3)
    return op("mul", y, w), m, r


@case(2)
def cross_entropy(b: Builder) -> Any:
    (x,) = inputs(b, (50, 70))
    t = b.input(Spec((50,), dt.int64))
    m = op("amax", x, dim=(1,), keepdim=True)
    total = op("add", op("log", op("sum", op("exp", op("sub", x, m)), dim=(1,), keepdim=True)), m)
    loss = op("sub", total, op("gather", x, op("reshape", t, shape=(50, 1)), dim=1))
    return loss, mean(loss, 0)


@case(1)
def loss_through_log_softmax(b: Builder) -> Any:
    (x,) = inputs(b, (50, 70))
    t = b.input(Spec((50, 1), dt.int64))
    d = op("sub", x, op("amax", x, dim=(1,), keepdim=True))
    y = op("sub", d, op("log", op("sum", op("exp", d), dim=(1,), keepdim=True)))
    return op("neg", op("gather", y, t, dim=1))


@case(1)
def columns_and_their_extremes(b: Builder) -> Any:
    (x,) = inputs(b, (130, 70))
    how = {"dim": (0,), "keepdim": False}
    return op("sum", x, **how), op("amax", x, **how), op("argmin", x, **how), op("all", op("gt", x, -9.0), **how)


@case(1)
def mean_of_images(b: Builder) -> Any:
    return mean(*inputs(b, (4, 5, 9, 11)), 0, 2, 3)


@case(1)
def linear_and_gelu(b: Builder) -> Any:
    x, w, c = inputs(b, (45, 70), (50, 70), (50,))
    return gelu(op("add", op("matmul", x, op("permute", w, dims=(1, 0))), c))


@case(1)
def linear_of_bfloat16(b: Builder) -> Any:
    x, w, c = inputs(b, (33, 64), (64, 40), (40,), d=dt.bfloat16)
    return op("relu", op("add", op("matmul", x, w), c))


@case(2)
def perceptron(b: Builder) -> Any:
    x, w, v = inputs(b, (45, 32), (32, 64), (64, 24))
    return op("matmul", gelu(op("matmul", x, w)), v)


@case(1)
def heads_of_a_matmul(b: Builder) -> Any:
    x, w = inputs(b, (40, 24), (24, 24))
    y = op("reshape", op("matmul", x, w), shape=(2, 20, 3, 8))
    return op("mul", op("permute", y, dims=(0, 2, 1, 3)), 0.25)


@case(1)
def batched_matmul_of_transposes(b: Builder) -> Any:
    q, k = inputs(b, (2, 20, 3, 16), (2, 24, 3, 16))
    return op("mul", op("matmul", op("permute", q, dims=(0, 2, 1, 3)), op("permute", k, dims=(0, 2, 3, 1))), 0.25)


@case(1)
def batched_weight_gradient(b: Builder) -> Any:
    x, g, w = inputs(b, (4, 10, 12), (4, 10, 14), (12, 14))
    y = op("matmul", op("permute", x, dims=(0, 2, 1)), g)
    return op("sub", w, op("mul", op("sum", y, dim=(0,), keepdim=False), 0.1))


@case(1)
def matmul_of_a_padded_function(b: Builder) -> Any:
    x, y = inputs(b, (6, 16), (21, 18))
    return op("matmul", op("pad", x, lo=(0, 2), hi=(0, 3), value=0), y)


PLAIN = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
STRIDED = PLAIN | {"stride": (2, 2)}


@case(1)
def convolution(b: Builder) -> Any:
    x, w, c = inputs(b, (2, 5, 12, 12), (7, 5, 3, 3), (7, 1, 1))
    return op("relu", op("add", op("conv", x, w, **STRIDED), c))


@case(2)
def convolution_of_a_function(b: Builder) -> Any:
    x, w = inputs(b, (2, 5, 6, 6), (7, 5, 3, 3))
    return op("conv", op("exp", x), w, **PLAIN)


@case(1)
def grouped_convolution(b: Builder) -> Any:
    x, w = inputs(b, (2, 6, 9, 8), (4, 3, 3, 3))
    return op("conv", x, w, **(PLAIN | {"groups": 2}))


@case(1)
def convolution_gradient_of_input(b: Builder) -> Any:
    g, w = inputs(b, (2, 7, 12, 12), (7, 5, 3, 3))
    return op("conv_input_grad", g, w, input_shape=(2, 5, 12, 12), **PLAIN)


@case(1)
def convolution_gradient_of_weight(b: Builder) -> Any:
    x, g = inputs(b, (2, 5, 12, 12), (2, 7, 6, 6))
    return op("conv_weight_grad", x, g, weight_shape=(7, 5, 3, 3), **STRIDED)


@case(1)
def embedding(b: Builder) -> Any:
    table, places = inputs(b, (40, 24), (7, 24))
    i = b.input(Spec((5, 7), dt.int64))
    return op("add", op("index_select", table, i, dim=0), places)


@case(3)
def attention(b: Builder) -> Any:
    q, k, v = inputs(b, *[(2, 3, 20, 16)] * 3)
    s = op("mul", op("matmul", q, op("permute", k, dims=(0, 1, 3, 2))), 0.25)
    i = op("iota", size=20, dtype=dt.int64)
    keep = op("le", op("reshape", i, shape=(1, 20)), op("reshape", i, shape=(20, 1)))
    return op("matmul", softmax(op("where", keep, s, -1e30), 3), v)


@case(1)
def dropout(b: Builder) -> Any:
    (x,) = inputs(b, (64, 64))
    seed, offset = b.input(Spec((), dt.int64)), b.input(Spec((), dt.int64))
    bits = op("random_bits", seed, offset, shape=(64, 64))
    uniform = op("mul", op("cast", op("shift_right", op("cast", bits, dtype=dt.int64), 8), dtype=dt.float32), 2.0**-24)
    return op("where", op("lt", uniform, 0.5), op("mul", x, 2.0), 0.0)


@case(1)
def maximum_of_windows(b: Builder) -> Any:
    (x,) = inputs(b, (2, 3, 8, 8))
    w = op("window", op("window", x, dim=2, size=2, step=2, dilation=1), dim=3, size=2, step=2, dilation=1)
    return op("amax", w, dim=(4, 5), keepdim=False)


@case(2)
def a_row_of_a_padded_sum(b: Builder) -> Any:
    """Its place in the sum is no place to store it at: the sum's other rows have none."""
    x, y = inputs(b, (1, 4), (6, 4))
    row = op("mul", x, x)
    total = op("add", y, op("pad", row, lo=(5, 0), hi=(0, 0), value=0.0))
    return [total, op("sum", total, dim=(0,), keepdim=False), row]


@case(1)
def updates_of_equal_parameters(b: Builder) -> Any:
    results = []
    for _ in range(3):
        p, g, m = inputs(b, (64,), (64,), (64,))
        moved = op("add", op("mul", m, 0.9), g)
        results += [moved, op("sub", p, op("mul", moved, 0.01))]
    return results


@functools.cache
def built(name: str) -> Graph:
    builder = Builder()
    with builder:
        got = CASES[name][0](builder)
    builder.graph.outputs = [*got] if isinstance(got, list | tuple) else [got]
    builder.graph.name = name
    return builder.graph


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_a_case_is_right_and_takes_no_more_kernels_than_it_should(name: str, target: str) -> None:
    graph = built(name)
    fused = fuse(graph, TARGETS[target])
    narrow = min((v.dtype.itemsize for v in graph.values() if v.dtype.kind == "f"), default=4) == 2
    check(graph, fused, random_inputs(graph, 3), 2e-2 if narrow else 2e-6)
    assert len(fused.steps) == len(kernels(fused)) <= CASES[name][1], [k.name for k in kernels(fused)]


# ---------------------------------------------------------------------------------------- random graphs


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_keep_their_results(seed: int, target: str) -> None:
    graph = own_results(random_graph(1000 + seed, nodes=8 + seed % 20, floats=(dt.float64,), outputs=1 + seed % 4))
    check(graph, fuse(graph, TARGETS[target]), random_inputs(graph, seed), 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_of_narrow_floats_stay_near(seed: int) -> None:
    graph = own_results(random_graph(2000 + seed, smooth=True, floats=(dt.bfloat16, dt.float16, dt.float32)))
    check(graph, fuse(graph, GPU if seed % 2 else CPU), random_inputs(graph, seed, -1, 1), 0.1)


def training_step(layers: int, **sizes: int) -> Graph:
    """A GPT's loss, gradients and Adam updates in one simplified graph."""
    graph = transformer(layers, **sizes)
    b = Builder(graph)
    weights = graph.inputs[2:]
    with b:
        one = op("full", 1.0, shape=(), dtype=dt.float32)
    gradients = pull_back(b, [graph.outputs[0]], [one], weights)
    for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        m, v = b.input(w.spec, f"m{i}"), b.input(w.spec, f"v{i}")
        with b:
            m2 = op("add", op("mul", m, 0.9), op("mul", g, 0.1))
            v2 = op("add", op("mul", v, 0.99), op("mul", op("mul", g, g), 0.01))
            graph.outputs += [m2, v2, op("sub", w, op("mul", op("div", m2, op("add", op("sqrt", v2), 1e-8)), 1e-3))]
    return simplify(graph)


@pytest.mark.parametrize("target", TARGETS)
def test_a_training_step_is_right(target: str) -> None:
    graph = training_step(1, batch=2, length=8, width=16, words=32)
    check(graph, fuse(graph, TARGETS[target]), random_inputs(graph, 1, 0.1, 1), 1e-4)


def test_more_layers_bring_hardly_any_new_kernels() -> None:
    few, many = (kernels(fuse(training_step(n), CPU)) for n in (3, 6))
    assert len(many) > 1.5 * len(few)
    more = len({digest(k) for k in many} - {digest(k) for k in few})
    assert more <= 3, "only the last of a batch of small updates, and where a search gave up, may differ"
    assert len({id(k) for k in many}) < len(many) / 2, "equal groups share one kernel object"


# ---------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (1, 1, 1), (7,)])
def test_small_and_empty_shapes(shape: tuple[int, ...]) -> None:
    b = Builder()
    x, y = inputs(b, shape, shape)
    every = tuple(range(len(shape)))
    with b:
        z = op("add", op("exp", x), y)
        more = op("cat", op("reshape", z, shape=(z.spec.numel,)), op("full", 2.0, shape=(1,), dtype=dt.float32), dim=0)
        b.graph.outputs = [z, op("sum", z, dim=every, keepdim=False), more, op("prod", z, dim=every, keepdim=True)]
    for target in TARGETS.values():
        check(b.graph, fuse(b.graph, target), random_inputs(b.graph))


def test_products_over_nothing_are_zero() -> None:
    b = Builder()
    x, w, e = inputs(b, (3, 0), (0, 4), (0, 3))
    with b:
        b.graph.outputs = [op("add", op("matmul", x, w), 1.0), op("matmul", e, x)]
    fused = fuse(b.graph, CPU)
    got = run(b.graph, fused, random_inputs(b.graph))
    np.testing.assert_array_equal(got[0], np.ones((3, 4)))
    assert got[1].shape == (0, 0)


def test_results_that_are_views_are_copied_and_may_repeat() -> None:
    b = Builder()
    (x,) = inputs(b, (3, 4))
    with b:
        t = op("permute", x, dims=(1, 0))
        row = op("slice", x, starts=(0, 0), stops=(1, 4), steps=(1, 1))
        b.graph.outputs = [t, op("reshape", t, shape=(12,)), t, op("expand", row, shape=(5, 4))]
    check(b.graph, fuse(b.graph, CPU), random_inputs(b.graph))


def test_calls_stand_between_kernels() -> None:
    b = Builder()
    (x,) = inputs(b, (5, 6))
    with b:
        s = op("sort", op("exp", x), dim=1, descending=False)
        b.graph.outputs = [op("mul", s[0] if isinstance(s, tuple) else s, 2.0)]
    fused = fuse(b.graph, CPU)
    assert [isinstance(s, Node) for s in fused.steps] == [False, True, False]
    check(b.graph, fused, random_inputs(b.graph))
    assert any(d.verdict == "called" and "sort" in d.what for d in fused.decisions)


def test_a_dilated_gradient_is_a_call_on_a_cpu_and_a_kernel_on_a_gpu() -> None:
    b = Builder()
    g, w = inputs(b, (2, 7, 6, 6), (7, 5, 3, 3))
    with b:
        b.graph.outputs = [op("conv_input_grad", g, w, input_shape=(2, 5, 12, 12), **STRIDED)]
    for target, calls in ((CPU, 1), (GPU, 0)):
        fused = fuse(b.graph, target)
        assert sum(isinstance(s, Node) for s in fused.steps) == calls
        check(b.graph, fused, random_inputs(b.graph))


def test_groups_of_a_convolution_are_an_axis() -> None:
    (kernel,) = kernels(fuse(built("grouped_convolution"), CPU))
    loads = [s for s in kernel.statements if isinstance(s, Load)]
    assert not any(True for s in loads for e in s.index for _ in divisions(e))


def test_kernels_that_differ_in_a_number_are_not_shared() -> None:
    b = Builder()
    x, y, z = inputs(b, (300, 400), (300, 400), (300, 400))
    with b:
        b.graph.outputs = [op("mul", x, 2.0), op("mul", y, 3.0), op("mul", z, 2.0), op("add", z, -0.0), op("add", y, 0.0)]
    arrays = [np.full((300, 400), -0.0, np.float32)] * 3
    got = run(b.graph, fuse(b.graph, CPU), arrays)
    for a, expected in zip(got, evaluate(b.graph, arrays), strict=True):
        assert np.array_equal(np.signbit(a), np.signbit(expected))
    check(b.graph, fuse(b.graph, CPU), random_inputs(b.graph))


def test_templates_tell_what_is_stored_apart() -> None:
    b = Builder()
    (x,) = inputs(b, (3, 4))
    with b:
        e = op("exp", x)
        y = op("neg", e)
    templates = Templates(CPU)
    templates.under(lambda v: v.node is None or v in (e, y))
    buffers = [templates.lower((e, y), stored).buffers for stored in ([y], [e], [e, y])]
    assert [{*found.values()} for found in buffers] == [{x, y}, {x, e}, {x, e, y}]


# ---------------------------------------------------------------------------------------- reasons, names


def test_every_decision_has_a_reason_that_names_values_of_this_graph() -> None:
    graph = training_step(2)
    fused = fuse(graph, GPU)
    names = {v.name for v in graph.values()}
    assert {d.verdict for d in fused.decisions} >= {"fused", "refused", "stored"}
    for d in fused.decisions:
        assert d.what and d.reason
        assert set(re.findall(r"%(\w+)", f"{d.what} {d.reason}")) <= names, d


def test_kernels_are_named_after_what_they_do_and_say_where_it_stands() -> None:
    b = Builder()
    b.note, b.source = "softmax", "model.py:12"
    with b:
        b.graph.outputs = [softmax(*inputs(b, (33, 100)), 1)]
    (kernel,) = kernels(fuse(b.graph, GENERIC_CPU))
    assert kernel.name == "softmax_33x100"
    assert all(s.note == "softmax  model.py:12" for s in kernel.statements if hasattr(s, "note") and not isinstance(s, Load))
    (kernel,) = kernels(fuse(built("linear_and_gelu"), CPU))
    assert kernel.name.startswith("matmul_") and kernel.name.endswith("45x50x70")


# ---------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize("seed", range(30))
def test_merging_groups_keeps_an_order_to_run_in(seed: int) -> None:
    rng = random.Random(seed)
    groups = Groups()
    values = [Value(Spec((), dt.float32), None, 0, f"v{i}") for i in range(40)]
    reads = {}
    for i, v in enumerate(values):
        reads[v] = rng.sample(values[max(0, i - 12) : i], min(i, rng.randrange(4)))
        groups.add((v,), reads[v])
    merged = 0
    for _ in range(300):
        a, b = groups.of[rng.choice(values)], groups.of[rng.choice(values)]
        if a is b or groups.why_not(a, b):
            continue
        groups.merge(a, b)
        merged += 1
        order = {g: i for i, g in enumerate(groups.all())}
        assert len({g.rank for g in order}) == len(order)
        for v in values:
            for x in reads[v]:
                assert order[groups.of[x]] <= order[groups.of[v]]
                assert groups.of[x] is groups.of[v] or groups.of[v] in groups.below(groups.of[x])
    assert merged > 5
