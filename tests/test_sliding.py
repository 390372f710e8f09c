"""Weight gradients that read one padded copy of the image: random sizes, strides and paddings against float64 and eager."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flame import dtypes as dt
from flame.compiler.graph import Builder, Graph
from flame.compiler.llvm_slide import LEAST_DEPTH
from flame.compiler.pipeline import compile_graph
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.to_llvm import to_llvm
from flame.ops.contract import conv_sizes
from flame.primitive import Spec, registered
from flame.runtime import cpu
from flame.runtime.executable import Executable

MARK = "one padded copy"


def notes(graph: Graph) -> str:
    """What the renderer chose for the kernels of a graph."""
    return "; ".join(n for k in compile_graph(graph, cpu.target()).kernels for n in to_llvm(k, CpuSchedule(), cpu.host()).notes)


def gradient(x: tuple, g: tuple, w: tuple, how: dict[str, Any], d: dt.dtype, around: bool = False) -> Graph:
    """A weight's gradient; `around`: of a function of the image, and a function of it."""
    b = Builder()
    image, cotangent = b.input(Spec(x, d), "x"), b.input(Spec(g, d), "g")
    with b:
        read = registered("abs")(registered("add")(image, 1.0)) if around else image
        out = registered("conv_weight_grad")(read, cotangent, weight_shape=w, **how)
        b.graph.outputs = [registered("mul")(out, 0.25) if around else out]
    return b.graph


def check(graph: Graph, arrays: list[np.ndarray], how: dict[str, Any], w: tuple, around: bool) -> None:
    """The error against float64 is at most about twice eager's."""

    def eager(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        out = registered("conv_weight_grad").eager(np.abs(x + 1) if around else x, g, weight_shape=w, **how)
        return out * 0.25 if around else out

    (got,) = Executable(compile_graph(graph, cpu.target(), verify=True))(arrays)
    exact = eager(*(a.astype(np.float64) for a in arrays))

    def error(y: np.ndarray) -> float:
        return float(np.sqrt(np.mean((y.astype(np.float64) - exact) ** 2)))

    noise = float(np.finfo(got.dtype).eps) * float(np.sqrt(np.mean(exact**2)))
    assert got.shape == w and error(got) <= 2 * error(eager(*arrays)) + 4 * noise, how


@pytest.mark.parametrize("seed", range(10))
def test_gradients_of_any_window(seed: int) -> None:
    r = np.random.default_rng(seed)
    d = [dt.float32, dt.float64, dt.float32, dt.float16][seed % 4]
    stride, kernel = (int(r.integers(1, 4)), int(r.integers(1, 4))), (int(r.integers(1, 6)), int(r.integers(4, 8)))
    padding = tuple((int(r.integers(0, k)), int(r.integers(0, k))) for k in kernel)
    size = (int(r.choice([1, 5, 8, 13])) + kernel[0], int(r.choice([7, 14, 16, 17, 29, 56])) * stride[1] + kernel[1])
    how: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": (1, 1), "groups": 1}
    out = conv_sizes(size, kernel, stride, padding, (1, 1))
    n = -(-LEAST_DEPTH // (out[0] * out[1]))
    c, o = int(r.integers(4, 9)), int(r.integers(16, 40))  # (no fewer rows and columns than a vector of any machine has)
    x, g, w = (n, c, *size), (n, o, *out), (o, c, *kernel)
    around = bool(seed % 3 == 0)
    graph = gradient(x, g, w, how, d, around)
    assert MARK in notes(graph), (x, g, w, how)
    check(graph, [r.standard_normal(s).astype(d.numpy) for s in (x, g)], how, w, around)


@pytest.mark.parametrize("rank", [1, 3])
def test_lines_and_volumes(rank: int) -> None:
    r = np.random.default_rng(rank)
    size, k = ((600,), (5,)) if rank == 1 else ((6, 9, 20), (2, 3, 3))
    how: dict[str, Any] = {"stride": (1,) * rank, "padding": ((1, 1),) * rank, "dilation": (1,) * rank, "groups": 1}
    out = conv_sizes(size, k, how["stride"], how["padding"], how["dilation"])
    x, g, w = (2, 4, *size), (2, 19, *out), (19, 4, *k)
    graph = gradient(x, g, w, how, dt.float32)
    assert MARK in notes(graph)
    check(graph, [r.standard_normal(s).astype(np.float32) for s in (x, g)], how, w, False)


def test_what_does_not_slide_or_gain_is_packed() -> None:
    def of(c: int, o: int, size: int, k: int, **other: Any) -> str:
        how: dict[str, Any] = {"stride": (1, 1), "padding": ((1, 1),) * 2, "dilation": (1, 1), "groups": 1} | other
        out = conv_sizes((size,) * 2, (k,) * 2, how["stride"], how["padding"], how["dilation"])
        shape = (o, c // how["groups"], k, k)
        return notes(gradient((2, c, size, size), (2, o, *out), shape, how, dt.float32))

    assert MARK in of(8, 16, 30, 3)
    assert MARK not in of(8, 16, 30, 1, padding=((0, 0),) * 2)  # no taps
    assert MARK not in of(8, 16, 30, 3, dilation=(2, 2))
    assert MARK not in of(8, 16, 30, 3, groups=2)
    assert MARK not in of(8, 16, 10, 3)  # few products
    assert MARK not in of(8, 512, 30, 3)  # each packed element is used often
