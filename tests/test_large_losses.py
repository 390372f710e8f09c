"""Losses over large vocabularies: what GPU programs of a loss and its gradients keep in memory, and what their kernels compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_cuda import gpu_for_tests
from fake_cuda_launches import LaunchesOnly

import flame
import flame.nn.functional as F
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep, Program
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.nn import LinearCrossEntropyOptions
from flame.runtime.triton_tools import run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

ROWS, CLASSES = 48, 1003


def program_of(f: Any, *args: Any) -> Program:
    compiled = flame.compile(f)
    for _ in range(2):
        for a in args:
            a.grad = None
        compiled(*args)
    (graph,) = compiled.graphs
    return compile_graph(graph, gpu("sm_90"), verify=True)


@pytest.mark.parametrize(("d", "smoothing"), [(flame.float32, 0.1), (flame.bfloat16, 0.0)])
def test_no_softmax_is_kept(d: Any, smoothing: float) -> None:
    """The gradient is the one array of the logits' size that is written; all else is a few numbers a row."""
    flame.manual_seed(2)
    x, y = flame.randn(ROWS, CLASSES).to(d).requires_grad_(), flame.randint(0, CLASSES, (ROWS,))

    def step(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(x, y, label_smoothing=smoothing)
        loss.backward()
        return loss

    program = program_of(step, x, y)
    large = [s.kind for s in program.slots if s.spec.numel >= ROWS * CLASSES]
    assert sorted(large) == ["input", "output"]
    assert program.arena_bytes <= 4096

    slots = {}
    given = {tuple(t.shape): t.detach().clone().numpy() for t in (x, y)}
    for i, s in enumerate(program.slots):
        shape = tuple(s.spec.shape)
        slots[i] = given[shape] if s.kind == "input" else np.zeros(shape, s.spec.dtype.numpy)
    for step_ in program.steps:
        assert isinstance(step_, KernelStep)
        source = to_triton(step_.kernel, choose_gpu(step_.kernel, gpu("sm_90")))
        run_interpreted(source, {b: slots[i] for b, i in step_.buffers.items()}, step_.symbols)
    (gradient,) = [slots[i] for i, s in enumerate(program.slots) if s.kind == "output" and s.spec.numel == ROWS * CLASSES]
    wide = x.detach().double().requires_grad_()
    (want,) = flame.autograd.grad(F.cross_entropy(wide, y, label_smoothing=smoothing), wide)
    tolerance = 1e-6 if d is flame.float32 else 1e-2
    np.testing.assert_allclose(gradient.astype(np.float64), want.numpy(), rtol=tolerance, atol=tolerance / ROWS)


def chunked(options: Any) -> Any:
    def step(x: Any, w: Any, y: Any) -> Any:
        loss = F.linear_cross_entropy(x, w, y, options=options)
        loss.backward()
        return loss

    return step


def test_chunks_of_a_linear_map_on_a_gpu() -> None:
    """Compiled, in Triton's interpreter: loss and gradients are those of float64 (by bfloat16); the last chunk is smaller."""
    flame.manual_seed(4)
    x, w, y = flame.randn(7, 9), flame.randn(37, 9), flame.randint(0, 37, (7,))
    y[2] = -100
    wide = [t.double().requires_grad_() for t in (x, w)]
    loss = F.linear_cross_entropy(*wide, y)
    want = [loss, *flame.autograd.grad(loss, wide)]
    with gpu_for_tests() as driver:
        a, b = (t.to("cuda").to(flame.bfloat16).requires_grad_() for t in (x, w))
        step = flame.compile(chunked(LinearCrossEntropyOptions(batch_chunk_size=3)))
        for _ in range(3):
            a.grad = b.grad = None
            got = [step(a, b, y.to("cuda")), a.grad, b.grad]
        assert len(step.graphs) == 1 and not driver.violations
        for g, e in zip(got, want, strict=True):
            size = float(e.abs().max())
            np.testing.assert_allclose(g.detach().cpu().double().numpy(), e.detach().numpy(), rtol=3e-2, atol=3e-2 * size)


def test_chunks_of_a_linear_map_are_in_memory_one_after_the_other() -> None:
    """8192 x 131072 of 4096 features in bfloat16: logits take 2 GiB. In memory are a chunk's logits and their cotangent, 512 MiB,
    the sum of the weight's gradients in float32, 2 GiB, the first of its terms, 1 GiB, and the gradients themselves, 1.06 GiB."""
    rows, classes, features = 8192, 131072, 4096
    with gpu_for_tests(library=LaunchesOnly(compiling=False)):
        x, w = (flame.zeros(n, features, device="cuda", dtype=flame.bfloat16).requires_grad_() for n in (rows, classes))
        y = flame.zeros(rows, device="cuda", dtype=flame.int64)
        step = flame.compile(chunked(LinearCrossEntropyOptions(batch_chunk_size=1024)))
        for _ in range(3):
            x.grad = w.grad = None
            flame.cuda.synchronize()
            before = flame.cuda.memory_allocated()
            flame.cuda.reset_peak_memory_stats()
            step(x, w, y)
        flame.cuda.synchronize()
        assert flame.cuda.max_memory_allocated() - before < (5.2 + 0.1) * 2**30
        del x, w, y, step
