"""Windows that slide over planes (depthwise convolutions and their gradients): random sizes against float64 and eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flame import dtypes as dt
from flame.compiler.graph import Builder, Graph
from flame.compiler.pipeline import compile_graph
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.to_llvm import to_llvm
from flame.ops.contract import conv_sizes
from flame.primitive import Spec, registered
from flame.runtime import cpu
from flame.runtime.executable import Executable

MARK = "over {} planes"


def notes(graph: Graph) -> str:
    """What the renderer chose for the kernels of a graph."""
    return "; ".join(n for k in compile_graph(graph, cpu.target()).kernels for n in to_llvm(k, CpuSchedule(), cpu.host()).notes)


def draw(r: np.random.Generator, rank: int = 2) -> tuple[tuple, tuple, tuple, dict[str, Any]]:
    """An image, a result and a weight of a depthwise convolution, and how it is done."""
    kernel = tuple(int(r.choice([1, 2, 3, 5, 7] if i < rank - 1 else [2, 3, 5, 11])) for i in range(rank))
    stride = tuple(int(r.choice([1, 1, 2, 3])) for _ in range(rank))
    dilation = tuple(int(r.choice([1, 1, 2])) if s == 1 else 1 for s in stride)
    padding = tuple((int(r.integers(0, k)), int(r.integers(0, k))) for k in kernel)
    size = [int(r.choice([1, 4, 7, 14, 31])) for _ in range(rank - 1)] + [int(r.choice([8, 14, 17, 33, 70, 300]))]
    size = [n * s + d * k for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
    how: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    out = conv_sizes(tuple(size), kernel, stride, padding, dilation)
    n, c = int(r.integers(1, 3)), int(r.integers(2, 6))
    return (n, c, *size), (n, c, *out), (c, 1, *kernel), how | {"groups": c}


def check(graph: Graph, arrays: list[np.ndarray], exact: np.ndarray, eager: np.ndarray) -> None:
    """The error against float64 is at most about twice eager's."""
    (got,) = Executable(compile_graph(graph, cpu.target(), verify=True))(arrays)

    def error(y: np.ndarray) -> float:
        return float(np.sqrt(np.mean((y.astype(np.float64) - exact) ** 2)))

    noise = float(np.finfo(got.dtype).eps) * float(np.sqrt(np.mean(exact**2)))
    assert got.shape == exact.shape and error(got) <= 2 * error(eager) + 4 * noise


@pytest.mark.parametrize("seed", range(12))
def test_windows_over_planes(seed: int) -> None:
    """Work before and after; what is added runs along whole planes, or along lines alone."""
    r = np.random.default_rng(seed)
    d = [dt.float32, dt.float64, dt.float32, dt.float16][seed % 4]
    x, y, w, how = draw(r)
    around, line = seed % 3 > 0, seed % 3 > 1
    beside = (1,) * (len(y) - 1) + y[-1:] if line else y

    def function(conv: Callable, absolute: Callable, add: Callable, expand: Callable) -> Callable[[Any, Any, Any], Any]:
        def f(image: Any, weight: Any, beside: Any) -> Any:
            out = conv(absolute(image) if around else image, weight, **how)
            return add(out, expand(beside)) if around else out

        return f

    b = Builder()
    given = [b.input(Spec(s, d), n) for s, n in ((x, "x"), (w, "w"), (beside, "y"))]
    with b:
        conv, absolute, add, expand = (registered(n) for n in ("conv", "abs", "add", "expand"))
        b.graph.outputs = [function(conv, absolute, add, lambda a: expand(a, shape=y))(*given)]
    assert MARK.format(x[0] * x[1]) in notes(b.graph), (x, w, how)
    plain = function(registered("conv").eager, np.abs, np.add, lambda a: a)
    arrays = [r.standard_normal(s).astype(d.numpy) for s in (x, w, beside)]
    check(b.graph, arrays, plain(*(a.astype(np.float64) for a in arrays)), plain(*arrays))


@pytest.mark.parametrize("seed", range(5))
def test_gradients_of_the_image(seed: int) -> None:
    r = np.random.default_rng(100 + seed)
    d = [dt.float32, dt.float64][seed % 2]
    x, y, w, how = draw(r)
    how |= {"stride": (1, 1)}
    y = (*y[:2], *conv_sizes(x[2:], w[2:], how["stride"], how["padding"], how["dilation"]))
    b = Builder()
    with b:
        given = [b.input(Spec(s, d), n) for s, n in ((y, "g"), (w, "w"))]
        b.graph.outputs = [registered("conv_input_grad")(*given, input_shape=x, **how)]
    assert MARK.format(x[0] * x[1]) in notes(b.graph), (x, w, how)
    arrays = [r.standard_normal(s).astype(d.numpy) for s in (y, w)]
    eager = registered("conv_input_grad").eager
    exact = eager(*(a.astype(np.float64) for a in arrays), input_shape=x, **how)
    check(b.graph, arrays, exact, eager(*arrays, input_shape=x, **how))


def test_infinities_stay_where_they_are() -> None:
    """What a tile computes beyond a line's end goes nowhere, and masked places are zero."""
    x, w = np.ones((1, 2, 6, 13), np.float32), np.ones((2, 1, 3, 3), np.float32)
    x[0, 0, 2, 12], x[0, 1, 5, 0] = np.inf, np.nan
    how: dict[str, Any] = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 2}
    b = Builder()
    with b:
        b.graph.outputs = [
            registered("conv")(b.input(Spec(x.shape, dt.float32), "x"), b.input(Spec(w.shape, dt.float32), "w"), **how)
        ]
    (got,) = Executable(compile_graph(b.graph, cpu.target(), verify=True))([x, w])
    np.testing.assert_array_equal(got, registered("conv").eager(x, w, **how))


@pytest.mark.parametrize("seed", range(8))
def test_gradients_of_the_weight(seed: int) -> None:
    r = np.random.default_rng(200 + seed)
    d = [dt.float32, dt.float64, dt.float32, dt.float16][seed % 4]
    x, y, w, how = draw(r)
    y, x = (3, *y[1:]), (3, *x[1:])
    around = seed % 3 == 0
    b = Builder()
    with b:
        image, cotangent = b.input(Spec(x, d), "x"), b.input(Spec(y, d), "g")
        got = registered("conv_weight_grad")(registered("exp")(image) if around else image, cotangent, weight_shape=w, **how)
        b.graph.outputs = [registered("mul")(got, 0.25) if around else got]
    assert f"planes of {x[1]} channels" in notes(b.graph), (x, w, how)

    def plain(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        out = registered("conv_weight_grad").eager(np.exp(x) if around else x, g, weight_shape=w, **how)
        return out * out.dtype.type(0.25) if around else out

    arrays = [r.standard_normal(s).astype(d.numpy) for s in (x, y)]
    check(b.graph, arrays, plain(*(a.astype(np.float64) for a in arrays)), plain(*arrays))


def test_infinities_reach_the_taps_that_read_them() -> None:
    """What is read beyond a line's end, the next line's infinity among it, does not count."""
    x, g = np.ones((1, 2, 10, 13), np.float32), np.ones((1, 2, 8, 11), np.float32)
    x[0, 0, 0, 12], x[0, 1, 9, 0] = np.inf, np.inf
    how: dict[str, Any] = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 2}
    b = Builder()
    with b:
        image, cotangent = b.input(Spec(x.shape, dt.float32), "x"), b.input(Spec(g.shape, dt.float32), "g")
        b.graph.outputs = [registered("conv_weight_grad")(image, cotangent, weight_shape=(2, 1, 3, 3), **how)]
    assert "planes of 2 channels" in notes(b.graph)
    (got,) = Executable(compile_graph(b.graph, cpu.target(), verify=True))([x, g])
    exact = np.full((2, 1, 3, 3), 88, np.float32)
    exact[0, 0, 0, 2] = exact[1, 0, 2, 0] = np.inf
    np.testing.assert_array_equal(got, exact)
