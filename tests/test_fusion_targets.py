"""What the target decides in fusion: library products, prologues, sweeps, reductions in parts."""

from __future__ import annotations

import pytest
from graphs_for_tests import op, random_inputs

import flame.ops  # noqa: F401  (fills the registry)
from flame import dtypes as dt
from flame.compiler.fusion import fuse
from flame.compiler.graph import Builder, Graph, Node
from flame.compiler.target import Target
from tests.test_fusion import CPU, GPU, LIBRARY, check, gelu, inputs, kernels, softmax

# ---------------------------------------------------------------------------------------- what the target changes


def large_linear(bias_first: bool = False) -> Graph:
    b = Builder()
    x, w, c = inputs(b, (128, 256), (128, 256), (128,))
    with b:
        x = gelu(x) if bias_first else x
        b.graph.outputs = [gelu(op("add", op("matmul", x, op("permute", w, dims=(1, 0))), c))]
    return b.graph


def test_a_library_gets_large_products_on_plain_views() -> None:
    graph = large_linear()
    fused = fuse(graph, LIBRARY)
    nodes = [s[2] for s in fused.steps if not isinstance(s, Node)]
    assert [n.primitive.name if n else None for n in nodes] == ["matmul", None]
    kernel, buffers, node = fused.steps[0]  # type: ignore[misc]
    assert node is not None and set(buffers.values()) == {*graph.inputs[:2], node.output}
    assert len(fuse(graph, CPU).steps) == 1
    check(graph, fused, random_inputs(graph))


def test_a_prologue_is_free_where_operands_are_packed_and_not_on_a_gpu() -> None:
    graph = large_linear(bias_first=True)
    assert len(fuse(graph, CPU).steps) == 1
    wide = Builder()
    x, w = inputs(wide, (512, 512), (512, 4096))
    with wide:
        wide.graph.outputs = [op("matmul", op("lgamma", gelu(x)), w)]
    assert len(fuse(wide.graph, GPU).steps) == 2


def test_rows_that_are_few_and_long_are_not_swept_again() -> None:
    def rows(n: int, m: int, target: Target) -> int:
        b = Builder()
        with b:
            b.graph.outputs = [softmax(*inputs(b, (n, m)), 1)]
        return len(fuse(b.graph, target).steps)

    assert rows(256, 4096, GPU) == 1 and rows(64, 4096, CPU) == 1
    assert rows(2, 1 << 16, GPU) > 1
    assert rows(1, 1 << 20, CPU) > 1


@pytest.mark.parametrize("target", [CPU, GPU], ids=str)
def test_reductions_with_few_results_are_done_in_parts(target: Target) -> None:
    b = Builder()
    (x,) = inputs(b, (300, 2000), d=dt.float64)
    with b:
        whole = op("sum", op("exp", x), dim=(0, 1), keepdim=False)
        b.graph.outputs = [op("mul", whole, 0.5), op("amax", x, dim=(0, 1), keepdim=False)]
    fused = fuse(b.graph, target)
    first, second = kernels(fused)
    assert set(first.outputs) == set(second.inputs) and any(d.verdict == "split" for d in fused.decisions)
    check(b.graph, fused, random_inputs(b.graph), 1e-12)
    rows = Builder()
    (x,) = inputs(rows, (4096, 2000))
    with rows:
        rows.graph.outputs = [op("sum", x, dim=(1,), keepdim=False)]
    assert len(fuse(rows.graph, target).steps) == 1


def test_a_gpu_splits_a_long_product_with_a_small_result() -> None:
    b = Builder()
    x, y = inputs(b, (32, 8192), (8192, 16), d=dt.float64)
    with b:
        b.graph.outputs = [op("add", op("matmul", x, y), 1.0)]
    fused = fuse(b.graph, GPU)
    assert len(fused.steps) == 2
    check(b.graph, fused, random_inputs(b.graph), 1e-12)
