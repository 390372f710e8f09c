"""Convolutions on a GPU: operands laid out channels last, strided gradients by phases, against eager; and the code they become."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import flame.ops  # noqa: F401
from flame import dtypes as dt
from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.index_math import evaluate
from flame.compiler.interpret import interpret
from flame.compiler.kernel import Load
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import CallStep, KernelStep, Program
from flame.compiler.schedule import choose_gpu, sides
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.ops.contract import conv_sizes
from flame.primitive import Spec, registered
from flame.runtime.triton_tools import compile_triton, run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

GPU = gpu("sm_90")
WHICH = ("conv", "conv_input_grad", "conv_weight_grad")


def graph_of(which: str, x: tuple, w: tuple, d: dt.dtype, **given: Any) -> Graph:
    rank = len(x) - 2
    how: dict[str, Any] = {"stride": (1,) * rank, "padding": ((1, 1),) * rank, "dilation": (1,) * rank, "groups": 1} | given
    y = (x[0], w[0], *conv_sizes(x[2:], w[2:], how["stride"], how["padding"], how["dilation"]))
    shapes = {"conv": (x, w), "conv_input_grad": (y, w), "conv_weight_grad": (x, y)}[which]
    more = {"conv": {}, "conv_input_grad": {"input_shape": x}, "conv_weight_grad": {"weight_shape": w}}[which]
    b = Builder()
    with b:
        b.graph.outputs = [registered(which)(*(b.input(Spec(s, d)) for s in shapes), **more, **how)]
    return b.graph


def run(program: Program, arrays: list[np.ndarray], triton: bool) -> list[np.ndarray]:
    """A program step by step; `triton`: its products in Triton's interpreter, under small tiles."""
    slots: dict[int, np.ndarray] = dict(zip(program.inputs, arrays))
    for i, s in enumerate(program.slots):
        slots.setdefault(i, np.zeros(s.spec.shape, s.spec.dtype.numpy))
    for step in program.steps:
        assert isinstance(step, KernelStep)
        buffers = {b: slots[s] for b, s in step.buffers.items()}
        chosen = choose_gpu(step.kernel, GPU)
        if triton and chosen.form == "dot":
            run_interpreted(to_triton(step.kernel, replace(chosen, m_block=32, n_block=16, k_block=16)), buffers)
        else:
            interpret(
                step.kernel,
                {b: a.reshape([int(evaluate(n, {})) for n in step.kernel.buffers[b].shape]) for b, a in buffers.items()},
            )
    return [slots[i] for i in program.outputs]


def check(graph: Graph, seed: int, triton: bool) -> Program:
    r = np.random.default_rng(seed)
    arrays = [r.standard_normal(v.shape).astype(v.dtype.numpy) for v in graph.inputs]
    (n,) = graph.nodes
    wide = [a.astype(np.float64) for a in arrays]
    want = n.primitive.eager(*wide, **n.params)
    program = compile_graph(graph, GPU, verify=True)
    (got,) = run(program, arrays, triton)
    tolerance = 1e-2 if n.output.dtype.itemsize == 2 else 1e-5
    np.testing.assert_allclose(
        got.astype(np.float64), want, rtol=0, atol=tolerance * max(1.0, float(np.abs(want).max(initial=0)))
    )
    return program


def random_sizes(r: random.Random) -> tuple[tuple, tuple, dict]:
    rank, groups = r.choice((1, 2, 2, 3)), r.choice((1, 1, 2, 3))
    channels, results = groups * r.choice((1, 2, 16)), groups * r.choice((1, 2, 16))
    kernel = tuple(r.randint(1, 4 if rank < 3 else 2) for _ in range(rank))
    dilation = tuple(r.randint(1, 3) for _ in range(rank))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    size = tuple(m + r.randint(0, 7 if rank < 3 else 3) for m in reach)
    padding = tuple((r.randint(0, 2), r.randint(0, 2)) for _ in range(rank))
    stride = tuple(r.randint(1, 4) for _ in range(rank))
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (r.randint(1, 2), channels, *size), (results, channels // groups, *kernel), how


@pytest.mark.parametrize("seed", range(40))
def test_random_convolutions_on_a_gpu_are_what_eager_computes(seed: int) -> None:
    r = random.Random(seed)
    x, w, how = random_sizes(r)
    for which in WHICH:
        program = check(graph_of(which, x, w, r.choice((dt.float32, dt.float16)), **how), seed, False)
        assert not any(isinstance(s, CallStep) for s in program.steps)


#: input, weight, and what differs from stride 1, padding 1
CASES: dict[str, tuple[tuple, tuple, dict]] = {
    "1d": ((2, 16, 21), (16, 16, 3), {}),
    "2d": ((1, 16, 7, 9), (24, 16, 3, 3), {}),
    "3d": ((1, 16, 3, 4, 5), (16, 16, 2, 2, 2), {}),
    "strided": ((1, 16, 8, 10), (16, 16, 3, 3), {"stride": (2, 2)}),
    "strided, odd": ((2, 16, 7, 9), (16, 16, 3, 3), {"stride": (2, 3)}),
    "strided and dilated": ((1, 16, 12, 9), (16, 16, 3, 3), {"stride": (3, 1), "dilation": (2, 2)}),
    "grouped": ((1, 32, 6, 6), (32, 16, 3, 3), {"groups": 2}),
    "depthwise": ((1, 8, 6, 7), (8, 1, 3, 3), {"groups": 8}),
    "one tap": ((2, 16, 5, 5), (40, 16, 1, 1), {"padding": ((0, 0), (0, 0))}),
}


@pytest.mark.parametrize("name", CASES)
def test_their_triton_computes_it_too(name: str) -> None:
    x, w, how = CASES[name]
    for which in WHICH:
        check(graph_of(which, x, w, dt.float16, **how), 1, True)


def test_a_strided_gradient_sums_only_the_taps_that_reach() -> None:
    graph = graph_of("conv_input_grad", (2, 16, 8, 8), (32, 16, 3, 3), dt.float16, stride=(2, 2))
    (kernel,) = (k for k in compile_graph(graph, GPU).kernels if k.contraction is not None)
    found = sides(kernel)
    assert found is not None and len(found.batch) == 2, "the phases"
    contraction = kernel.contraction
    assert contraction is not None
    assert sorted(int(evaluate(kernel.axes[a], {})) for a in contraction.axes) == [2, 2, 32]
    holes = [c for s in kernel.statements if isinstance(s, Load) for c in s.mask if c.kind == "eq"]
    assert not holes


def two_layers(d: dt.dtype) -> Graph:
    b = Builder()
    x, w1, w2 = (b.input(Spec(s, d)) for s in ((2, 16, 8, 8), (32, 16, 3, 3), (16, 32, 3, 3)))
    how: dict[str, Any] = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    with b:
        y = registered("relu")(registered("conv")(x, w1, **how))
        b.graph.outputs = [registered("conv")(y, w2, **how)]
    return b.graph


def test_what_makes_an_image_stores_it_as_the_next_convolution_reads_it() -> None:
    graph = two_layers(dt.float16)
    program = compile_graph(graph, GPU, verify=True)
    products = [k for k in program.kernels if k.contraction is not None]
    copies = [k for k in program.kernels if k.contraction is None]
    assert len(products) == 2 and len(copies) <= 3, "of the input and the weights"
    r = np.random.default_rng(0)
    arrays = [r.standard_normal(v.shape).astype(np.float16) for v in graph.inputs]
    values: dict[Value, np.ndarray] = dict(zip(graph.inputs, (a.astype(np.float64) for a in arrays)))
    for n in graph.nodes:
        values[n.output] = n.primitive.eager(*(values[x] for x in n.values), **n.params)
    want = values[graph.outputs[0]]
    np.testing.assert_allclose(run(program, arrays, False)[0].astype(np.float64), want, atol=2e-2 * np.abs(want).max())


def test_images_that_lie_channels_last_are_not_copied() -> None:
    b = Builder()
    x, w = b.input(Spec((2, 8, 8, 16), dt.float16)), b.input(Spec((16, 3, 3, 16), dt.float16))
    how: dict[str, Any] = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    with b:
        b.graph.outputs = [registered("conv")(*(registered("permute")(v, dims=(0, 3, 1, 2)) for v in (x, w)), **how)]
    assert len(compile_graph(b.graph, GPU).steps) == 1


@pytest.mark.parametrize(("which", "arch"), [("conv", "sm_80"), ("conv_input_grad", "sm_90"), ("conv_weight_grad", "sm_90")])
def test_tensor_cores_are_fed_16_bytes_at_a_time(which: str, arch: str) -> None:
    stride = (2, 2) if which == "conv_input_grad" else (1, 1)
    graph = graph_of(which, (32, 64, 56, 56), (64, 64, 3, 3), dt.float16, stride=stride)
    kernel = next(k for k in compile_graph(graph, gpu(arch)).kernels if k.contraction is not None)
    binary = compile_triton(to_triton(kernel, choose_gpu(kernel, gpu(arch))), arch)
    assert ("wgmma.mma_async" if arch == "sm_90" else "mma.sync") in binary.asm
    assert "cp.async.cg" in binary.asm and "cp.async.ca" not in binary.asm and not re.search(r"\bld\.global", binary.asm)
    assert binary.spills == 0
