"""Losses over large vocabularies: what a GPU program of a loss and its gradient keeps in memory, and what its kernels are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
import flame.nn.functional as F
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep, Program
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
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
