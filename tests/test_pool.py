"""Maxima over windows and where they are: the routine, the smaller primitives, and positions kept in registers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import flame
from flame import dtypes as dt
from flame.compiler.graph import Builder
from flame.compiler.pipeline import compile_graph
from flame.compiler.target import Target
from flame.ops.pool import composed
from flame.primitive import Spec, registered
from flame.runtime import cpu
from flame.runtime.executable import Executable

PUT = registered("window_put")


def random_windows(r: np.random.Generator, n: int) -> dict[str, Any]:
    """Sizes, windows that need not fit them, and how many there are of each dimension."""
    how: dict[str, Any] = {k: [] for k in ("size", "kernel", "step", "dilation", "lo", "out")}
    for _ in range(n):
        k, d, lo = int(r.integers(1, 5)), int(r.integers(1, 3)), int(r.integers(0, 3))
        size, step = int(r.integers(1, 23)), int(r.integers(1, 4))
        out = max(1, (size + 2 * lo - d * (k - 1) - 1) // step + 1)
        for name, x in zip(how, (size, k, step, d, lo, out), strict=True):
            how[name].append(x)
    return {name: tuple(xs) for name, xs in how.items()}


@pytest.mark.parametrize("d", [dt.float32, dt.float64, dt.int32, dt.bfloat16, dt.uint8], ids=lambda d: d.name)
def test_windows_are_put_natively_as_they_are_eagerly(d: Any) -> None:
    r = np.random.default_rng(5)
    before = flame.get_num_threads()
    for k in range(12):
        flame.set_num_threads(1 + k % 3)
        how = random_windows(r, 1 + k % 3)
        lead = (int(r.integers(1, 5)),) * (k % 3)
        shape = (*lead, *how.pop("out"))
        of = (dt.int64, dt.uint8, dt.int32)[k % 3]
        b = Builder()
        g, at = b.input(Spec(shape, d), "g"), b.input(Spec(shape, of), "at")
        with b:
            b.graph.outputs = [PUT(g, at, **how)]
        arrays = [
            r.integers(0, 5, shape).astype(d.numpy),
            r.integers(0, math.prod(how["kernel"]), shape).astype(of.numpy),
        ]
        run = Executable(compile_graph(b.graph, cpu.target(), verify=True))
        assert ("call" in run.recipe.runs) == (d.itemsize < 4), "narrow numbers by the eager function"
        want = PUT.eager(*arrays, **how)
        np.testing.assert_array_equal(run(arrays)[0], want, err_msg=str(how))
        if d is not dt.bfloat16:  # (which is rounded once a dimension there)
            (made,) = composed["window_put"](*map(flame.tensor, arrays), **how)
            np.testing.assert_array_equal(made.numpy(), want, err_msg=f"composed {how}")
    flame.set_num_threads(before)


def test_a_gpu_puts_windows_by_smaller_primitives() -> None:
    b = Builder()
    g, at = b.input(Spec((2, 3, 4), dt.float32), "g"), b.input(Spec((2, 3, 4), dt.uint8), "at")
    with b:
        b.graph.outputs = [PUT(g, at, size=(6, 9), kernel=(3, 2), step=(2, 2), dilation=(1, 1), lo=(1, 0))]
    program = compile_graph(b.graph, Target("cuda", "sm_90", lanes=32))
    assert program.steps and all(hasattr(s, "kernel") for s in program.steps)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("d", [dt.float32, dt.float64, dt.bfloat16, dt.int8, dt.int64], ids=lambda d: d.name)
def test_the_first_extreme_down_a_column(name: str, d: Any) -> None:
    """Columns are walked down by one accumulator a lane: ties, NaN and infinities that equal the accumulator's start."""
    r = np.random.default_rng(2)
    for shape in ((1, 9), (7, 40), (40, 17), (5, 3)):
        x = r.integers(0, 3, shape).astype(d.numpy)
        if d.kind == "f":
            x[:, ::3] = -np.inf if name == "argmax" else np.inf
            x[r.random(shape) < 0.1] = np.nan
        t = flame.tensor(x.astype(np.float32)).to(d) if d is dt.bfloat16 else flame.tensor(x)
        f = flame.compile(lambda t: getattr(t, name)(0))
        want = getattr(np, name)(x.astype(np.float64), 0)
        for _ in range(3):
            np.testing.assert_array_equal(f(t).numpy(), want)


@pytest.mark.oracle
def test_gradients_are_those_of_the_oracle(torch: Any) -> None:
    r = np.random.default_rng(9)
    for k in range(8):
        n = 1 + k % 3
        kernel, step, pad = int(r.integers(2, 4)), int(r.integers(1, 4)), int(r.integers(0, 2))
        x = r.standard_normal((2, 3, *r.integers(5, 12, n))).astype(np.float32)
        x[r.random(x.shape) < 0.3] = 0.5

        def gradients(lib: Any, wrap: Any) -> list[Any]:
            t = lib.tensor(x).requires_grad_()
            pool = getattr(lib.nn.functional, f"max_pool{n}d")

            def step_(t: Any = t, pool: Any = pool) -> Any:
                t.grad = None
                y = pool(t, kernel, step, pad, ceil_mode=bool(k % 2))
                (y * y).sum().backward()
                return y.detach(), t.grad

            for _ in range(3):
                y, g = wrap(step_)()
            return [y.numpy(), g.numpy()]

        want = gradients(torch, lambda f: f)
        compiled: dict[Any, Any] = {}
        for wrap in (lambda f: f, lambda f: compiled.setdefault(f, flame.compile(f))):
            for a, b in zip(gradients(flame, wrap), want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)
