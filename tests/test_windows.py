"""Windows on a CPU: depthwise convolutions and pools of every stride, padding and width, compiled against eager."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
from flame import dtypes as dt
from flame.compiler.graph import Builder, Graph
from flame.compiler.pipeline import compile_graph
from flame.compiler.program_interpret import run_interpreted
from flame.primitive import Spec, registered
from flame.runtime import cpu
from flame.runtime.executable import Executable

F = flame.nn.functional
TOLERANCE = {dt.float32: 2e-5, dt.float64: 1e-12, dt.float16: 4e-3, dt.bfloat16: 3e-2}


def agree(graph: Graph, arrays: list[np.ndarray], what: Any) -> None:
    """Native code and the interpreter on one program, each with its own memory."""
    program = compile_graph(graph, cpu.target(), verify=True)
    want = run_interpreted(program, arrays)
    for a, b in zip(Executable(program)(arrays), want, strict=True):
        rtol = TOLERANCE.get(graph.outputs[0].dtype, 0.0)
        scale = max(1.0, float(np.abs(b.astype(np.float64)).max(initial=0.0)))
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=rtol, atol=rtol * scale, err_msg=str(what))


@pytest.mark.parametrize("seed", range(24))
def test_depthwise_convolutions_and_their_gradients(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = [dt.float32, dt.float32, dt.float64, dt.bfloat16, dt.float16][seed % 5]
    n, c = int(rng.integers(1, 3)), int(rng.integers(1, 5))
    size = (int(rng.integers(1, 9)), int(rng.choice([3, 7, 8, 9, 16, 23, 24, 33, 56, 71])))
    kernel = (int(rng.integers(1, 4)), int(rng.choice([1, 2, 3, 5, 7])))
    stride, dilation = ((int(rng.integers(1, 4)), int(rng.integers(1, 4))) for _ in range(2))
    reach = [dl * (k - 1) + 1 for dl, k in zip(dilation, kernel, strict=True)]
    padding = tuple(
        (max(0, r - s), int(rng.integers(0, 4))) if r > s else tuple(int(v) for v in rng.integers(0, 3, 2))
        for r, s in zip(reach, size, strict=True)
    )
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": c}
    b = Builder()
    x, w = b.input(Spec((n, c, *size), d), "x"), b.input(Spec((c, 1, *kernel), d), "w")
    with b:
        y = registered("conv")(x, w, **how)
        g = registered("mul")(y, 0.5)
        gx = registered("conv_input_grad")(g, w, input_shape=x.shape, **how)
        gw = registered("conv_weight_grad")(x, g, weight_shape=w.shape, **how)
    b.graph.outputs = [y, gx, gw]
    arrays = [rng.standard_normal(v.shape).astype(v.dtype.numpy) for v in b.graph.inputs]
    agree(b.graph, arrays, (d.name, n, c, size, kernel, how))


@pytest.mark.parametrize("seed", range(16))
def test_convolutions_by_tiles_and_their_gradients(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    d = [dt.float32, dt.float32, dt.float64, dt.bfloat16][seed % 4]
    n, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    c, o = groups * int(rng.integers(2, 9)), groups * int(rng.integers(4, 17))
    kernel = (int(rng.integers(1, 6)), int(rng.choice([1, 3, 5, 7])))
    size = (int(rng.integers(8, 20)), int(rng.choice([14, 16, 24, 31, 40])))
    stride, dilation = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    padding = tuple((int(rng.integers(0, 3)), int(rng.integers(1, 4))) for _ in range(2))
    how = {"stride": (1, stride), "padding": padding, "dilation": (1, dilation), "groups": groups}
    if dilation * (kernel[1] - 1) >= sum(padding[1]) + size[1]:
        size = (size[0], size[1] + 12)
    b = Builder()
    x, w = b.input(Spec((n, c, *size), d), "x"), b.input(Spec((o, c // groups, *kernel), d), "w")
    with b:
        y = registered("conv")(x, w, **how)
        g = registered("mul")(y, 0.5)
        gx = registered("conv_input_grad")(g, w, input_shape=x.shape, **how)
        gw = registered("conv_weight_grad")(x, g, weight_shape=w.shape, **how)
    b.graph.outputs = [y, gx, gw]
    arrays = [rng.standard_normal(v.shape).astype(v.dtype.numpy) for v in b.graph.inputs]
    agree(b.graph, arrays, (d.name, n, c, o, size, kernel, how))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pools_forward_and_backward(name: str, threads: int) -> None:
    pool = getattr(F, name)
    before = flame.get_num_threads()
    flame.set_num_threads(threads)
    try:
        for width, k, s, p in [(5, 2, 2, 0), (17, 3, 2, 1), (24, 3, 1, 1), (40, 3, 2, 1), (33, 5, 3, 2), (64, 2, 2, 1)]:
            x = flame.randn(2, 3, 11, width).requires_grad_()
            y = x.detach().clone().requires_grad_()
            compiled = flame.compile(lambda t, k=k, s=s, p=p: pool(t, k, s, p))
            for _ in range(3):
                a, b = pool(x, k, s, p), compiled(y)
                np.testing.assert_allclose(b.detach().numpy(), a.detach().numpy(), rtol=1e-5, atol=1e-6)
                g = flame.randn(*a.shape)
                a.backward(g), b.backward(g)
                np.testing.assert_allclose(y.grad.numpy(), x.grad.numpy(), rtol=1e-5, atol=1e-5)
                x.grad = y.grad = None
    finally:
        flame.set_num_threads(before)


@pytest.mark.parametrize("d", [dt.float32, dt.float64, dt.int32, dt.uint8, dt.bool_], ids=lambda d: d.name)
def test_every_second_element_and_what_lies_beyond_the_edges(d: Any) -> None:
    for width in (1, 2, 15, 16, 31, 64, 65):
        b = Builder()
        x = b.input(Spec((3, width), d), "x")
        with b:
            padded = registered("pad")(x, lo=(1, 3), hi=(0, 2), value=True if d is dt.bool_ else 1)
            every = registered("slice")(padded, starts=(0, 1), stops=padded.shape, steps=(2, 2))
            b.graph.outputs = [every, registered("slice")(x, starts=(0, 0), stops=x.shape, steps=(1, 2))]
        values = np.random.default_rng(width).integers(0, 2 if d is dt.bool_ else 100, (3, width)).astype(d.numpy)
        agree(b.graph, [values], (d.name, width))


def test_the_maximum_is_the_same_whether_or_not_somebody_asks_where_it_is() -> None:
    for dtype in (flame.float32, flame.int64):
        x = flame.randint(-4, 4, (2, 3, 9, 17)).to(dtype)
        if dtype.is_floating_point:
            x[0, 0, 3, 3] = float("nan")
            x[1, 2] = float("-inf")
        want = F.max_pool2d(x, 3, 2, 1, return_indices=True)[0].numpy()
        pool = flame.compile(lambda t: F.max_pool2d(t, 3, 2, 1))
        wanted = [x.clone().requires_grad_()] if dtype.is_floating_point else []
        for _ in range(3):
            for t in (x, *wanted):
                for y in (F.max_pool2d(t, 3, 2, 1), pool(t)):
                    assert y.requires_grad == t.requires_grad
                    np.testing.assert_array_equal(y.detach().numpy(), want)
