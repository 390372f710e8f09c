"""Unrolled loops: steps that differ in the place that they read are one kernel, whose place is a run-time number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from graphs_for_tests import evaluate, op, random_inputs

import flame
from flame import dtypes
from flame.capture.compiled import Compiled
from flame.compiler import kernel as kernel_ir
from flame.compiler.graph import Builder, Graph
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep, Program
from flame.compiler.program_interpret import run_interpreted
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import Target
from flame.compiler.templates import places_of
from flame.compiler.to_triton import to_triton
from flame.primitive import Spec
from flame.runtime import cpu
from flame.runtime.executable import BACKENDS, Executable
from flame.runtime.recipe import decoded, encoded


def unrolled(f: Callable[..., Any], shape: tuple[int, ...], places: Sequence[tuple[int, ...]], dims: tuple[int, ...]) -> Graph:
    """f(slice at each place) for every place, one result each; a place gives one index for each of `dims`."""
    b = Builder(Graph(name="unrolled"))
    x, w = b.input(Spec(shape, dtypes.float32)), b.input(Spec((), dtypes.float32))
    with b:
        for p in places:
            starts = [0] * len(shape)
            stops = list(shape)
            for d, at in zip(dims, p, strict=True):
                starts[d], stops[d] = at, at + 1
            part = op("slice", x, starts=tuple(starts), stops=tuple(stops), steps=(1,) * len(shape))
            b.graph.outputs.append(f(part, w))
    return b.graph


def distinct(program: Program) -> int:
    return len({kernel_ir.digest(k) for k in program.kernels})


def check(graph: Graph) -> Program:
    """The program, whose kernels verify, and which gives what the graph means on every backend and as a recipe."""
    program = compile_graph(graph, cpu.target(), verify=True)
    arrays = random_inputs(graph, 3)
    meant = evaluate(graph, arrays, precise=True)
    ready = [Executable(program, backend=b) for b in BACKENDS]
    again = Executable.of(decoded(encoded(ready[0].recipe)))
    assert again is not None
    for got in (run_interpreted(program, arrays), *(e([a.copy() for a in arrays]) for e in (*ready, again))):
        for a, b in zip(got, meant, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-5)
    return program


def row(part: Any, w: Any) -> Any:
    """Something that does not join its neighbours: a reduction of its own."""
    return op("sum", op("mul", op("sin", part), w), dim=(0, 1, 2), keepdim=False)


@pytest.mark.parametrize("dim, size", [(0, 9), (1, 12), (2, 8)])
def test_places_along_a_dimension_are_one_kernel(dim: int, size: int) -> None:
    shape = tuple(size if d == dim else n for d, n in enumerate((5, 33, 40)))
    graph = unrolled(row, shape, [(t,) for t in range(size)], (dim,))
    assert len(places_of(graph)) == size
    program = check(graph)
    assert distinct(program) < size / 2
    starts = [v for s in program.steps if isinstance(s, KernelStep) for v in s.symbols.values()]
    assert sorted(starts) == list(range(size))


def test_places_along_two_dimensions() -> None:
    places = [(i, j) for i in range(3) for j in range(9)]
    program = check(unrolled(row, (3, 9, 130), places, (0, 1)))
    assert distinct(program) < 9


def test_few_places_are_left_as_they_are() -> None:
    graph = unrolled(row, (7, 20, 10), [(t,) for t in range(7)], (0,))
    assert places_of(graph) == {}
    program = check(graph)
    assert all(not s.symbols for s in program.steps if isinstance(s, KernelStep))


def test_a_slice_of_what_is_computed_inside_a_kernel_has_no_place() -> None:
    b = Builder(Graph(name="inside"))
    x = b.input(Spec((16, 30), dtypes.float32))
    with b:
        y = op("exp", x)
        for t in range(16):
            part = op("slice", y, starts=(t, 0), stops=(t + 1, 30), steps=(1, 1))
            b.graph.outputs.append(op("sum", part, dim=(0, 1), keepdim=False))
    check(b.graph)


def test_two_places_of_one_array_in_one_kernel() -> None:
    """x[t] * x[t + 1] with the two apart by one, and by none at the end."""
    b = Builder(Graph(name="two"))
    x = b.input(Spec((12, 50), dtypes.float32))
    with b:
        parts = [op("slice", x, starts=(t, 0), stops=(t + 1, 50), steps=(1, 1)) for t in range(12)]
        for t in range(12):
            b.graph.outputs.append(op("amax", op("mul", parts[t], parts[min(t + 1, 11)]), dim=(1,), keepdim=False))
    program = check(b.graph)
    assert distinct(program) < 8


def test_a_step_and_a_place_in_one_slice() -> None:
    b = Builder(Graph(name="steps"))
    x = b.input(Spec((9, 31), dtypes.float32))
    with b:
        for t in range(9):
            part = op("slice", x, starts=(t, 3), stops=(t + 1, 30), steps=(1, 4))
            b.graph.outputs.append(op("sum", part, dim=(0, 1), keepdim=False))
    check(b.graph)


def test_a_kernel_with_a_place_renders_for_a_gpu() -> None:
    target = Target("cuda", "sm_90", lanes=32, units=132, cache=227 * 1024)
    graph = unrolled(row, (9, 33, 40), [(t,) for t in range(9)], (0,))
    program = compile_graph(graph, target, verify=True)
    (kernel,) = {kernel_ir.digest(k): k for k in program.kernels if k.symbols}.values() or [program.kernels[0]]
    source = to_triton(kernel, choose_gpu(kernel, target, {}))
    assert all(f"size_{n}" in source.text for n in kernel.symbols)


@pytest.mark.parametrize("steps", [9, 40])
def test_an_unrolled_network_trains_alike_eager_and_compiled(steps: int) -> None:
    """Forward, backward and update through every step; each step's kernels are made once."""
    x = flame.linspace(-1, 1, 3 * steps * 4).reshape(3, steps, 4).sin()

    def train(compile: bool) -> tuple[list[float], Any]:
        flame.manual_seed(1)
        cell = flame.nn.Linear(12, 8)
        optimizer = flame.optim.AdamW(cell.parameters(), lr=0.01)

        def step() -> Any:
            optimizer.zero_grad()
            h = flame.zeros(3, 8)
            for t in range(steps):
                h = flame.tanh(cell(flame.cat([h, x[:, t]], 1)))
            loss = (h * h).mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        f = flame.compile(step) if compile else step
        return [f().item() for _ in range(5)], f

    (eager, _), (compiled, f) = train(False), train(True)
    np.testing.assert_allclose(compiled, eager, rtol=2e-5)
    assert len(f.kernels) < 30 and not f.stats.fallbacks
    assert all(isinstance(c, Compiled) and c.executable is not None for c in f.compiled_graphs())
