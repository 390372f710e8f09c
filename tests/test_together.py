"""Small pointwise kernels of different sizes share a launch, on GPUs, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

import flame
from flame.compiler.graph import Builder, Graph
from flame.compiler.interpret import interpret
from flame.compiler.kernel import verify
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep, Program
from flame.compiler.program_interpret import run_interpreted as meaning
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import GENERIC_CPU, gpu
from flame.compiler.to_triton import to_triton
from flame.ops.elementwise import add, exp, mul
from flame.primitive import Spec
from flame.runtime.triton_tools import run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

GPU = gpu("sm_90")
SIZES = [(40,), (3, 7), (100,), (1,), (64, 9), (5,)]


def updates(sizes: list[tuple[int, ...]]) -> Graph:
    """For each size two results of an array and a number that all share."""
    graph = Graph(name="updates")
    with Builder(graph) as b:
        rate = b.input(Spec((), flame.float32))
        out = []
        for s in sizes:
            p, g = b.input(Spec(s, flame.float32)), b.input(Spec(s, flame.float32))
            m = add(mul(p, 0.9), g)
            out += [m, add(p, mul(exp(m), rate))]
    graph.outputs = out
    return graph


def programs(sizes: list[tuple[int, ...]]) -> tuple[Program, Program]:
    return compile_graph(updates(sizes), GPU, verify=True), compile_graph(updates(sizes), GENERIC_CPU, verify=True)


def test_updates_of_all_sizes_share_launches() -> None:
    made, apart = programs(SIZES)
    assert len(made.steps) == 3 and len(apart.steps) == 6  # a single number, and 5 beside 576, stay apart
    r = np.random.default_rng(0)
    arrays = [r.standard_normal(v.shape).astype(np.float32) for v in made.graph.inputs]
    for got, want in zip(meaning(made, arrays), meaning(apart, arrays), strict=True):
        np.testing.assert_array_equal(got, want)
    assert any("share a launch" in d.reason for d in made.decisions)


@pytest.mark.parametrize("in_place", [False, True])
def test_their_source_computes_what_they_mean(in_place: bool) -> None:
    pairs = tuple((1 + 2 * i, 2 * i + 1) for i in range(len(SIZES))) if in_place else ()
    program = compile_graph(updates(SIZES), GPU, updates=pairs, verify=True)
    r = np.random.default_rng(1)
    for step in program.steps:
        assert isinstance(step, KernelStep)
        verify(step.kernel)
        want = {
            b: r.standard_normal([e.const or 0 for e in buffer.shape]).astype(np.float32)
            for b, buffer in step.kernel.buffers.items()
        }
        if in_place and len(step.kernel.buffers) > 10:
            assert any(b.role == "inout" for b in step.kernel.buffers.values())
        got = {b: a.copy() for b, a in want.items()}
        interpret(step.kernel, want, {})
        run_interpreted(to_triton(step.kernel, choose_gpu(step.kernel, GPU)), got)
        for b in want:
            np.testing.assert_allclose(got[b], want[b], rtol=2e-6, atol=1e-6)


def test_what_depends_on_another_or_is_large_stays_apart() -> None:
    graph = Graph(name="chain")
    with Builder(graph) as b:
        x, y = b.input(Spec((50,), flame.float32)), b.input(Spec((1 << 19,), flame.float32))
        z = b.input(Spec((60,), flame.float32))
        graph.outputs = [exp(x), exp(y), exp(z)]
    program = compile_graph(graph, GPU, verify=True)
    lengths = sorted(max(e.const or 0 for e in k.axes.values()) for k in program.kernels)
    assert lengths == [60, 1 << 19]
