"""Whole compilations: graph to program on a target, run in NumPy, against the graph; and what the runner of passes promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graphs_for_tests import evaluate, op, random_graph, random_inputs, transformer

from flame import dtypes as dt
from flame.compiler import pipeline
from flame.compiler.autodiff import joint_graph
from flame.compiler.graph import Builder, Graph
from flame.compiler.pipeline import Passes, compile_graph
from flame.compiler.program import Program
from flame.compiler.program_interpret import run_interpreted
from flame.compiler.target import GENERIC_CPU, Target
from flame.errors import CompileError, VerificationError
from flame.primitive import Spec

LIBRARY = Target("cpu", lanes=8, library_matmul=True)
GPU = Target("cuda", "sm_90", lanes=32, units=132)


def agree(g: Graph, program: Program, arrays: list[np.ndarray], library: bool = False) -> None:
    """The program's results are the graph's: exact real numbers, to the rounding of the results' dtype."""
    precise = not library
    with np.errstate(all="ignore"):
        got = run_interpreted(program, arrays, precise=precise, library=library)
        expected = evaluate(g, arrays, precise=True)
    for v, a, b in zip(g.outputs, got, expected, strict=True):
        assert a.shape == v.shape and a.dtype == v.dtype.numpy
        if v.dtype.kind != "f":
            assert np.mean(a == b) > 0.9 if a.size else True, v  # a float next to a step may fall on its other side
            continue
        x, y = a.astype(np.float64), b.astype(v.dtype.numpy).astype(np.float64)
        # temps are rounded to their dtype between kernels, so a narrow float's error is a few of its own units
        unit = {2: 2e-2, 4: 1e-4, 8: 1e-9}[v.dtype.itemsize]
        size = max(1.0, float(np.max(np.abs(y[np.isfinite(y)]), initial=0)))
        assert np.allclose(x, y, rtol=unit, atol=unit * size, equal_nan=True), f"{v}\n{g}\n{program}"


@pytest.mark.parametrize("target", [GENERIC_CPU, LIBRARY, GPU], ids=["cpu", "library", "gpu"])
def test_compiled_random_graphs_give_the_graphs_results(target: Target) -> None:
    dtypes = itertools.cycle([(dt.float32,), (dt.float64,), (dt.bfloat16, dt.float32)])
    for seed, floats in zip(range(5000, 5045), dtypes, strict=False):
        g = random_graph(seed, outputs=3, floats=floats)
        program = compile_graph(g, target, verify=True)
        assert len(program.steps) <= len(g.nodes)
        agree(g, program, random_inputs(g, seed))


def test_odd_and_empty_sizes_compile() -> None:
    for seed in range(5100, 5125):
        g = random_graph(seed, nodes=8, sizes=(0, 1, 1, 7))
        agree(g, compile_graph(g, GENERIC_CPU, verify=True), random_inputs(g, seed))


@pytest.mark.parametrize("target", [GENERIC_CPU, LIBRARY, GPU], ids=["cpu", "library", "gpu"])
def test_a_training_step_of_a_transformer_compiles(target: Target) -> None:
    g = transformer(layers=1, batch=2, length=6, width=16, heads=2, words=20)
    joint, _ = joint_graph(g, list(range(2, len(g.inputs))), [0])
    program = compile_graph(joint, target, verify=True)
    arrays = random_inputs(joint, 5, -0.5, 0.5)
    agree(joint, program, arrays)
    agree(joint, program, arrays, library=True)
    assert len(program.steps) < len(joint.nodes) / 3, "hardly anything was fused"
    again = compile_graph(joint, target)
    assert str(again) == str(program), "two compilations of one graph differ"


def wide_graph() -> Graph:
    b = Builder()
    x = b.input(Spec((4, 4), dt.float32), "x")
    with b:
        b.graph.outputs = [op("add", op("exp", op("neg", op("neg", x))), 1.0)]
    return b.graph


def test_passes_are_named_timed_and_shown() -> None:
    ticks = itertools.count()
    told: list[tuple[str, str]] = []
    compile_graph(wide_graph(), GENERIC_CPU, log=lambda topic, text: told.append((topic, text)), clock=lambda: next(ticks))
    passes = [text.splitlines()[0] for topic, text in told if topic == "passes"]
    for name in ("simplify", "own results", "fuse", "link", "in place", "plan memory"):
        assert any(f": {name} in 1000.00 ms: " in line for line in passes), passes
    (shown,) = [text for topic, text in told if topic == "graph"]
    assert shown.startswith("after simplify:") and "neg" not in shown
    assert any(topic == "kernels" and "store" in text for topic, text in told)
    assert {topic for topic, _ in told} <= {"passes", "graph", "fusion", "kernels"}


def test_a_pass_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(graph: Graph) -> Graph:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(pipeline, "simplify", failing)
    with pytest.raises(CompileError, match="the pass 'simplify' failed: ZeroDivisionError: by nothing"):
        compile_graph(wide_graph(), GENERIC_CPU)


def test_a_pass_that_breaks_the_graph_is_blamed_when_verifying(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(graph: Graph) -> Graph:
        return Graph(graph.inputs, graph.nodes[::-1], graph.outputs)

    monkeypatch.setattr(pipeline, "simplify", breaking)
    with pytest.raises(VerificationError, match="after simplify"):
        compile_graph(wide_graph(), GENERIC_CPU, verify=True)


def test_a_graph_that_capture_got_wrong_is_blamed_on_capture() -> None:
    g = wide_graph()
    g.nodes.reverse()
    with pytest.raises(VerificationError, match="after capture"):
        compile_graph(g, GENERIC_CPU, verify=True)


def test_nothing_is_verified_unless_asked() -> None:
    seen = []

    class Watched(Graph):
        def verify(self, after: str = "") -> None:
            seen.append(after)

    passes = Passes("g")
    passes.run("look", lambda: Watched())
    assert seen == []
    Passes("g", verify=True).run("look", lambda: Watched())
    assert seen == ["look"]
