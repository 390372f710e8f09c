"""A norm's gradients by its input and by its weights come from one reading of memory, on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn.functional as F
from flame.compiler.graph import Graph
from flame.compiler.interpret import interpret
from flame.compiler.kernel import Kernel
from flame.compiler.panels import panels
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep, Program
from flame.compiler.program_interpret import run_interpreted as meaning
from flame.compiler.schedule import GpuSchedule, choose_gpu, panel_of
from flame.compiler.schedule_candidates import candidates
from flame.compiler.target import GENERIC_CPU, Target, gpu
from flame.compiler.to_triton import to_triton
from flame.errors import Refused
from flame.runtime.triton_tools import compile_triton, run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

#: a GPU so small that few rows keep it busy
SMALL = replace(gpu("sm_90"), units=4)


def layer_norm(x: Any, w: Any, b: Any) -> Any:
    return F.layer_norm(x, (x.shape[-1],), w, b)


def rms_norm(x: Any, w: Any, b: Any) -> Any:
    return F.rms_norm(x, (x.shape[-1],), w) + b


def backward_of(f: Callable, shape: tuple[int, ...], d: Any = flame.float32) -> list[Graph]:
    """The graphs of a training step of one norm: all gradients, after a product with what comes from above."""
    x, w, b = (flame.randn(*s).to(d).requires_grad_() for s in (shape, shape[-1:], shape[-1:]))
    above = flame.randn(*shape).to(d)

    def step(x: Any, w: Any, b: Any, above: Any) -> Any:
        (f(x, w, b) * above).sum().backward()
        return x.grad, w.grad, b.grad

    compiled = flame.compile(step)
    for _ in range(3):
        x.grad = w.grad = b.grad = None
        compiled(x, w, b, above)
    return list(compiled.graphs)


def joined(program: Program) -> list[KernelStep]:
    return [s for s in program.steps if isinstance(s, KernelStep) and panel_of(s.kernel)]


def compiled_for(graphs: list[Graph], target: Target) -> list[Program]:
    return [compile_graph(g, target, verify=True) for g in graphs]


def numbers(shape: list[int], d: np.dtype, r: np.random.Generator) -> np.ndarray:
    return (r.random(shape) + 0.5).astype(d) if not shape or shape[-1] == 1 else r.standard_normal(shape).astype(d)


@pytest.mark.parametrize(("f", "shape"), [(layer_norm, (48, 20)), (layer_norm, (4, 15, 7)), (rms_norm, (24, 33))])
def test_rows_and_columns_are_done_in_one_walk(f: Callable, shape: tuple[int, ...]) -> None:
    graphs = backward_of(f, shape)
    programs = compiled_for(graphs, SMALL)
    steps = [s for p in programs for s in joined(p)]
    assert steps, "rows and columns were not joined"
    r = np.random.default_rng(0)
    for p, g in zip(programs, graphs, strict=True):
        arrays = [numbers(list(v.shape), v.dtype.numpy, r) for v in g.inputs]
        got = meaning(p, [a.copy() for a in arrays])
        want = meaning(compile_graph(g, GENERIC_CPU), [a.copy() for a in arrays])
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1, float(np.abs(b).max(initial=0))))
    for s in steps:
        chosen = choose_gpu(s.kernel, SMALL)
        for schedule in (chosen, replace(chosen, x_block=1, wide=True), replace(chosen, x_block=2)):
            same_as_meant(s.kernel, schedule)
        with pytest.raises(Refused, match="wants a panel"):
            to_triton(s.kernel, GpuSchedule(x_block=1, r_block=8))
        with pytest.raises(Refused, match="wants a panel"):
            to_triton(s.kernel, replace(chosen, r_block=4))
        assert len(candidates(s.kernel, SMALL)) > 2


def same_as_meant(kernel: Kernel, schedule: GpuSchedule) -> None:
    r = np.random.default_rng(1)
    want = {n: numbers([e.const or 0 for e in b.shape], b.dtype.numpy, r) for n, b in kernel.buffers.items()}
    got = {n: a.copy() for n, a in want.items()}
    interpret(kernel, want, {})
    source = to_triton(kernel, schedule)
    run_interpreted(source, got, {})
    for n in kernel.outputs:
        a, b = got[n].astype(np.float64), want[n].astype(np.float64)
        narrow = want[n].dtype.itemsize == 2
        size = max(1.0, float(np.abs(b).max(initial=0)))
        tolerance = 2e-2 if narrow else 2e-5
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * size, err_msg=source.text)


def test_narrow_floats_are_summed_in_float32() -> None:
    steps = [s for p in compiled_for(backward_of(layer_norm, (32, 24), flame.bfloat16), SMALL) for s in joined(p)]
    for s in steps:
        assert {b.dtype.name for n, b in s.kernel.buffers.items() if n.startswith("part")} == {"float32"}
        same_as_meant(s.kernel, choose_gpu(s.kernel, SMALL))
    assert steps


def test_rows_that_cannot_be_cut_evenly_stay_apart_with_the_reason() -> None:
    assert panels(48, SMALL) == 16 and panels(47, SMALL) == 0 and panels(7, SMALL) == 0
    assert panels(8192, gpu("sm_90")) == 512
    programs = compiled_for(backward_of(layer_norm, (47, 20)), SMALL)
    assert not any(joined(p) for p in programs)
    assert any("equal panels" in d.reason for p in programs for d in p.decisions)
    assert not any(joined(p) for p in compiled_for(backward_of(layer_norm, (48, 20)), GENERIC_CPU))


@pytest.mark.parametrize(("row", "d"), [(768, flame.bfloat16), (4096, flame.float32)])
def test_norms_of_real_models_spill_nothing(row: int, d: Any) -> None:
    target = replace(gpu("sm_90"), units=16)
    steps = [s for p in compiled_for(backward_of(layer_norm, (64, row), d), target) for s in joined(p)]
    assert steps
    for s in steps:
        binary = compile_triton(to_triton(s.kernel, choose_gpu(s.kernel, target)), "sm_90")
        assert binary.spills == 0 and binary.registers * binary.threads <= target.registers
