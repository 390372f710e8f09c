"""Convolutions by Winograd's transforms: random sizes, paddings and epilogues against float64 and eager, and what is not finite."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
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
from tests.llvm_for_tests import HOST, Runner

MARK = "Winograd"


def notes(graph: Graph) -> str:
    """What the renderer chose for the kernels of a graph."""
    return "; ".join(n for k in compile_graph(graph, cpu.target()).kernels for n in to_llvm(k, CpuSchedule(), cpu.host()).notes)


def how(padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)), **other: Any) -> dict[str, Any]:
    return {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1} | other


def forward(x: tuple, w: tuple, params: dict[str, Any], d: dt.dtype = dt.float32, around: bool = False) -> Graph:
    """A convolution; `around`: of a function of the image, with a bias and an addend of the result's shape."""
    b = Builder()
    image, weight = b.input(Spec(x, d), "x"), b.input(Spec(w, d), "w")
    with b:
        read = registered("abs")(image) if around else image
        out = registered("conv")(read, weight, **params)
        if around:
            more = b.input(Spec(out.shape, d), "more")
            out = registered("maximum")(registered("add")(out, more), 0.0)
        b.graph.outputs = [out]
    return b.graph


def eager(x: np.ndarray, w: np.ndarray, *more: np.ndarray, **params: Any) -> np.ndarray:
    out = registered("conv").eager(np.abs(x) if more else x, w, **params)
    return np.maximum(out + more[0], 0) if more else out


def compiled(graph: Graph, arrays: list[np.ndarray]) -> np.ndarray:
    return Executable(compile_graph(graph, cpu.target(), verify=True))(arrays)[0]


def error(y: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.mean((y - exact) ** 2)))


def check(got: np.ndarray, by_eager: np.ndarray, exact: np.ndarray, said: object) -> None:
    """The error against float64 is at most about twice eager's."""
    noise = float(np.finfo(got.dtype).eps) * float(np.sqrt(np.mean(exact**2)))
    assert got.shape == exact.shape and error(got, exact) <= 2 * error(by_eager, exact) + noise, said


@pytest.mark.parametrize("seed", range(6))
def test_any_size_and_padding(seed: int) -> None:
    r = np.random.default_rng(seed)
    d = [dt.float32, dt.float32, dt.float64, dt.float16][seed % 4]
    padding: Any = tuple((int(r.integers(0, 3)), int(r.integers(0, 3))) for _ in range(2))
    size = int(r.choice([6, 9, 13, 17, 30])), int(r.choice([7, 8, 15, 16, 19, 33]))
    n, c, o = int(r.integers(2, 5)), int(r.choice([16, 19, 40, 150])), int(r.choice([16, 18, 31]))
    x, w, params = (n, c, *size), (o, c, 3, 3), how(padding)
    out = (n, o, *conv_sizes(size, (3, 3), (1, 1), padding, (1, 1)))
    around = bool(seed % 3 == 0)
    graph = forward(x, w, params, d, around)
    if n * -(-out[2] // 2) * -(-out[3] // 2) >= 32:
        assert MARK in notes(graph), (x, w, params)
    arrays = [r.standard_normal(s).astype(d.numpy) for s in ((x, w, out) if around else (x, w))]
    exact = eager(*(a.astype(np.longdouble if d is dt.float64 else np.float64) for a in arrays), **params)
    check(compiled(graph, arrays), eager(*arrays, **params), exact, (x, w, params))


def test_errors_of_many_channels() -> None:
    r = np.random.default_rng(5)
    normal, w = r.standard_normal((1, 600, 12, 12)), r.standard_normal((24, 600, 3, 3))
    graph = forward(normal.shape, w.shape, how())
    assert MARK in notes(graph)
    run = Executable(compile_graph(graph, cpu.target(), verify=True))
    for kind, x in {"normal": normal, "positive": np.maximum(normal, 0), "far from zero": normal + 5}.items():
        arrays = [x.astype(np.float32), w.astype(np.float32)]
        exact = eager(*(a.astype(np.float64) for a in arrays), **how())
        check(run(arrays)[0], eager(*arrays, **how()), exact, kind)


@pytest.mark.parametrize(("rows", "parts"), [(300, 2), (700, 4)])
def test_few_tiles_are_shared_by_rows(rows: int, parts: int) -> None:
    """Parts of the result's rows are computed alone, in any order, and are what one run over all of them gives; a part with
    a result that is not finite is computed again."""
    r = np.random.default_rng(7)
    size = (2, 17, 8, 9) if parts == 4 else (3, 17, 16, 18)
    arrays = [r.standard_normal(s).astype(np.float32) for s in (size, (rows, 17, 3, 3))]
    arrays[1][rows - 1, 3, 1, 1] = np.inf
    (kernel,) = compile_graph(forward(size, arrays[1].shape, how()), cpu.target()).kernels
    runner = Runner(kernel)
    assert f"{parts} parts of the result's rows" in "; ".join(runner.source.notes)
    with np.errstate(all="ignore"):
        exact, other = (eager(*(a.astype(d) for a in arrays), **how()) for d in (np.float64, np.float32))
    for split in (False, True):
        got = np.full(exact.shape, 7, np.float32)
        runner.bind(dict(zip(kernel.buffers, [*arrays, got], strict=True)), {}, split=split)()
        np.testing.assert_array_equal(got[:, -1], exact[:, -1])
        check(got[:, :-1], other[:, :-1], exact[:, :-1], split)


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 2), (2, 1))])
def test_gradients_of_images(padding: Any) -> None:
    r = np.random.default_rng(1)
    image, w, params = (2, 17, 13, 18), (20, 17, 3, 3), how(padding)
    size = conv_sizes(image[2:], (3, 3), (1, 1), padding, (1, 1))
    g = (2, 20, *size)
    b = Builder()
    cotangent, weight = b.input(Spec(g, dt.float32), "g"), b.input(Spec(w, dt.float32), "w")
    gradient = registered("conv_input_grad")
    with b:
        b.graph.outputs = [gradient(cotangent, weight, input_shape=image, **params)]
    assert MARK in notes(b.graph)
    arrays = [r.standard_normal(s).astype(np.float32) for s in (g, w)]
    exact = gradient.eager(*(a.astype(np.float64) for a in arrays), input_shape=image, **params)
    check(compiled(b.graph, arrays), gradient.eager(*arrays, input_shape=image, **params), exact, padding)


def test_volumes_take_their_planes() -> None:
    r = np.random.default_rng(2)
    x, w = (1, 9, 4, 10, 12), (16, 9, 3, 3, 3)
    params = {"stride": (1,) * 3, "padding": ((1, 1),) * 3, "dilation": (1,) * 3, "groups": 1}
    graph = forward(x, w, params)
    assert MARK in notes(graph)
    arrays = [r.standard_normal(s).astype(np.float32) for s in (x, w)]
    exact = eager(*(a.astype(np.float64) for a in arrays), **params)
    check(compiled(graph, arrays), eager(*arrays, **params), exact, x)


def test_small_integers_are_exact() -> None:
    r = np.random.default_rng(3)
    arrays = [r.integers(-9, 10, s).astype(np.float32) for s in ((2, 24, 11, 20), (17, 24, 3, 3))]
    graph = forward((2, 24, 11, 20), (17, 24, 3, 3), how())
    assert MARK in notes(graph)
    np.testing.assert_array_equal(compiled(graph, arrays), eager(*arrays, **how()))


def test_what_is_not_finite_stays_in_its_window() -> None:
    """Of three images one has an element that is not finite, or whose transform is not: as the products have it."""
    r = np.random.default_rng(4)
    plain = [np.abs(r.standard_normal(s)).astype(np.float32) for s in ((3, 16, 13, 15), (16, 16, 3, 3))]
    graph = forward(plain[0].shape, plain[1].shape, how())
    assert MARK in notes(graph)
    run = Executable(compile_graph(graph, cpu.target(), verify=True))
    for changed, value in product((0, 1), (np.inf, -np.inf, np.nan, 3e38)):  # the image, the weight
        arrays = [a.copy() for a in plain]
        arrays[changed][1, 3, 2, 2] = value
        if value == 3e38:  # (a sum of two of them overflows, and the product with a small weight does not)
            arrays[changed][1, 3, 2, 0 if changed else 3] = value
            arrays[1 - changed] *= 1e-4
        with np.errstate(all="ignore"):
            want = eager(*(a.astype(np.float64) for a in arrays), **how()).astype(np.float32)
        (got,) = run(arrays)
        there = np.isfinite(want)
        np.testing.assert_array_equal(np.isfinite(got), there)
        np.testing.assert_array_equal(got[~there], want[~there])
        scale = np.max(np.abs(want[there]))
        np.testing.assert_allclose(np.where(there, got, 0), np.where(there, want, 0), atol=3e-6 * scale)


@pytest.mark.parametrize("lanes", [4, 16])
def test_other_processors(lanes: int) -> None:
    """Vectors of other widths, by code for them that this processor runs in parts or in halves."""
    r = np.random.default_rng(6)
    target = replace(HOST, lanes_f32=lanes, registers=32 if lanes == 16 else 16)
    graph = forward((2, 18, 12, 21), (19, 18, 3, 3), how())
    (kernel,) = compile_graph(graph, cpu.target()).kernels
    arrays = [r.standard_normal(s).astype(np.float32) for s in ((2, 18, 12, 21), (19, 18, 3, 3))]
    runner = Runner(kernel, cpu=target)
    assert MARK in "; ".join(runner.source.notes)
    got = np.empty((2, 19, 12, 21), np.float32)
    runner.bind(dict(zip(kernel.buffers, [*arrays, got], strict=True)), {}, split=True)()
    exact = eager(*(a.astype(np.float64) for a in arrays), **how())
    check(got, eager(*arrays, **how()), exact, lanes)


def test_what_is_no_such_window_is_multiplied() -> None:
    def of(x: tuple, w: tuple, d: dt.dtype = dt.float32, **other: Any) -> str:
        return notes(forward(x, w, how(**other), d))

    assert MARK in of((2, 16, 16, 16), (16, 16, 3, 3))
    assert MARK not in of((2, 16, 16, 16), (16, 16, 3, 3), stride=(2, 2))
    assert MARK not in of((2, 16, 16, 16), (16, 16, 3, 3), dilation=(2, 2))
    assert MARK not in of((2, 32, 16, 16), (32, 16, 3, 3), groups=2)
    assert MARK not in of((2, 16, 16, 16), (16, 16, 5, 5))
    assert MARK not in of((2, 16, 16, 16), (16, 16, 3, 1), padding=((1, 1), (0, 0)))
    assert MARK not in of((2, 3, 16, 16), (16, 3, 3, 3))  # few channels
    assert MARK not in of((1, 16, 4, 4), (16, 16, 3, 3))  # few tiles for the weights' transforms
