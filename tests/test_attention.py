"""Attention: the routine of a CPU, the meaning of the primitives and what they are made of elsewhere, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
from flame import dtypes as dt
from flame.compiler.graph import Builder, Graph
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import CallStep
from flame.compiler.program_interpret import run_interpreted
from flame.compiler.target import Target
from flame.primitive import Spec, registered
from flame.runtime import cpu
from flame.runtime.executable import Executable
from flame.runtime.recipe import decoded, encoded

F = flame.nn.functional
TOLERANCE = {dt.float32: 3e-6, dt.float64: 1e-13, dt.float16: 2e-3, dt.bfloat16: 2e-2}
#: leading dimensions, queries, keys, width, width of values
SIZES = [
    ((), 1, 1, 1, 1),
    ((2,), 5, 7, 3, 9),
    ((3,), 50, 37, 16, 16),
    ((1, 2), 64, 64, 64, 32),
    ((2,), 200, 200, 40, 24),
    ((1,), 13, 250, 8, 8),
    ((2,), 33, 20, 20, 7),
    ((1,), 400, 100, 33, 65),
]


def graph_of(sizes: tuple, d: Any, causal: bool) -> Graph:
    lead, t, s, e, w = sizes
    b = Builder()
    q, k, v, g = (b.input(Spec((*lead, *x), d), n) for x, n in (((t, e), "q"), ((s, e), "k"), ((s, w), "v"), ((t, w), "g")))
    how = {"scale": e**-0.5, "causal": causal}
    with b:
        y, lse = registered("attention")(q, k, v, **how)
        wide = lambda x: registered("cast")(x, dtype=lse.dtype)
        delta = registered("sum")(registered("mul")(wide(y), wide(g)), dim=(len(lead) + 1,), keepdim=False)
        grads = registered("attention_grad")(q, k, v, lse, delta, g, **how)
    b.graph.outputs = [y, lse, *grads]
    return b.graph


def arrays_for(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    r = np.random.default_rng(seed)
    return [r.standard_normal(v.shape).astype(v.dtype.numpy) for v in graph.inputs]


def exact(arrays: list[np.ndarray], causal: bool) -> list[np.ndarray]:
    """y, lse, dq, dk, dv in float64, by the book."""
    q, k, v, g = (a.astype(np.float64) for a in arrays)
    scale = q.shape[-1] ** -0.5
    e = np.einsum("...ie,...je->...ij", q, k) * scale
    if causal:
        e = np.where(np.arange(k.shape[-2]) <= np.arange(q.shape[-2])[:, None], e, -np.inf)
    lse = np.log(np.exp(e - e.max(-1, keepdims=True)).sum(-1)) + e.max(-1)
    p = np.exp(e - lse[..., None])
    y = p @ v
    ds = p * (np.einsum("...iw,...jw->...ij", g, v) - (g * y).sum(-1)[..., None]) * scale
    return [y, lse, ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ g]


def close(got: np.ndarray, want: np.ndarray, d: Any) -> None:
    scale = max(1.0, float(np.abs(want).max(initial=0.0)))
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=4 * TOLERANCE[d] * scale)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d", list(TOLERANCE), ids=lambda d: d.name)
def test_the_routine_computes_it(d: Any, causal: bool) -> None:
    before = flame.get_num_threads()
    for threads, sizes in enumerate(SIZES if d is dt.float32 else SIZES[1:4]):
        flame.set_num_threads(1 + threads % 2)
        graph = graph_of(sizes, d, causal)
        arrays = arrays_for(graph)
        program = compile_graph(graph, cpu.target(), verify=True)
        run = Executable(program)
        assert run.recipe.runs.count("call") == 0, "natively"
        want = exact(arrays, causal)
        for results in (run(arrays), run(arrays), run_interpreted(program, arrays)):
            for a, b in zip(results, want, strict=True):
                close(a, b, d)
    flame.set_num_threads(before)


def test_a_gpu_has_kernels_for_it() -> None:
    gpu = Target("cuda", "sm_90", lanes=32, units=132, cache=227 << 10)
    for sizes in SIZES[1:6]:
        for causal in (False, True):
            graph = graph_of(sizes, dt.float32, causal)
            program = compile_graph(graph, gpu, verify=True)
            assert not any(isinstance(s, CallStep) for s in program.steps)
            arrays = arrays_for(graph)
            for a, b in zip(run_interpreted(program, arrays), exact(arrays, causal), strict=True):
                close(a, b, dt.float32)


def test_a_recipe_names_the_routine() -> None:
    graph = graph_of(SIZES[2], dt.float32, True)
    run = Executable(compile_graph(graph, cpu.target()))
    again = Executable.of(decoded(encoded(run.recipe)))
    assert again is not None
    arrays = arrays_for(graph)
    for a, b in zip(run(arrays), again(arrays), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_result_that_nobody_reads_needs_no_memory_of_the_callers() -> None:
    graph = graph_of(SIZES[3], dt.float32, True)
    graph.outputs = graph.outputs[:1]
    arrays = arrays_for(graph)
    run = Executable(compile_graph(graph, cpu.target()))
    (y,) = run(arrays)
    close(y, exact(arrays, True)[0], dt.float32)


@pytest.mark.parametrize("causal", [False, True])
def test_compiled_training_agrees_with_eager(causal: bool) -> None:
    q, k, v = (flame.randn(2, 3, 21, 12).requires_grad_() for _ in range(3))
    g = flame.randn(2, 3, 21, 12)

    def step() -> Any:
        for t in (q, k, v):
            t.grad = None
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        (y * g).sum().backward()
        return y.detach(), q.grad, k.grad, v.grad

    compiled = flame.compile(step)
    want = [t.numpy().copy() for t in step()]
    for a, b in zip(want, exact([t.detach().numpy() for t in (q, k, v)] + [g.numpy()], causal)[:1], strict=False):
        close(a, b, dt.float32)
    for _ in range(3):
        for a, b in zip(compiled(), want, strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=1e-5)
    assert any("attention_grad" in str(c.program) for c in compiled.compiled_graphs())


def test_derivatives_of_the_gradient() -> None:
    q, k, v = (flame.randn(2, 5, 4, dtype=flame.float64).requires_grad_() for _ in range(3))

    def plain(q: Any, k: Any, v: Any) -> Any:
        return F.softmax((q @ k.transpose(-2, -1)) * 0.5, -1) @ v

    found = []
    for f in (lambda *x: F.scaled_dot_product_attention(*x), plain):
        gs = flame.autograd.grad(f(q, k, v).square().sum(), (q, k, v), create_graph=True)
        found.append(flame.autograd.grad(sum((x * x).sum() for x in gs), (q, k, v)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-10)


def test_nan_stays_in_its_row_and_large_scores_do_not_overflow() -> None:
    for f in (lambda *x: F.scaled_dot_product_attention(*x, is_causal=True), None):
        run = f or flame.compile(lambda *x: F.scaled_dot_product_attention(*x, is_causal=True))
        q, k, v = flame.randn(1, 30, 8) * 1e3, flame.randn(1, 30, 8) * 1e3, flame.randn(1, 30, 8)
        for _ in range(3):
            assert np.isfinite(run(q, k, v).numpy()).all()
        q[0, 11, 3] = float("nan")
        for _ in range(3):
            rows = np.isnan(run(q, k, v).numpy()).any(-1)[0]
            assert rows[11] and rows.sum() == 1


def test_what_does_not_fit_is_refused_in_words() -> None:
    attention = registered("attention")
    a, b = Spec((2, 5, 4), dt.float32), Spec((2, 5, 3), dt.float32)
    with pytest.raises(RuntimeError, match="query"):
        attention.infer(a, b, a, scale=1.0, causal=False)
    with pytest.raises(RuntimeError, match="one floating dtype"):
        attention.infer(a, a, Spec((2, 5, 4), dt.float64), scale=1.0, causal=False)


@pytest.mark.oracle
def test_it_is_pytorchs(torch: Any) -> None:
    for causal in (False, True):
        q, k, v = (flame.randn(2, 3, 17, 8).requires_grad_() for _ in range(3))
        others = [torch.tensor(t.detach().numpy(), requires_grad=True) for t in (q, k, v)]
        a = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        b = torch.nn.functional.scaled_dot_product_attention(*others, is_causal=causal)
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-5, atol=1e-6)
        a.square().sum().backward(), b.square().sum().backward()
        for t, u in zip((q, k, v), others, strict=True):
            np.testing.assert_allclose(t.grad.numpy(), u.grad.numpy(), rtol=1e-4, atol=1e-5)
