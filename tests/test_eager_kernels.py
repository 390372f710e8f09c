"""Large eager calls run as native kernels: with the same meaning, for every dtype and layout, and never where they may not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import flame
from flame import dtypes
from flame.errors import CompileError
from flame.primitive import REGISTRY, Primitive, Spec
from flame.runtime import eager_kernels
from flame.runtime.eager_kernels import LEAST, LEAST_OF_MANY, EagerDraw, EagerKernel, is_worth_it

KERNELS = eager_kernels.eager_kernels()
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 5e-7, "float64": 1e-15}


def like_samples(p: Primitive, d: dtypes.dtype, n: int) -> list[np.ndarray] | None:
    """Operands of n elements with the values that the primitive's samples have; None where it does not take the dtype."""
    r = np.random.default_rng(3)
    for operands, _ in p.samples() if p.samples else ():
        if all(isinstance(o, np.ndarray) and o.dtype == d.numpy and o.size > 9 for o in operands):
            return [r.choice(o.reshape(-1), n) for o in operands]
    return None


def cases() -> Iterator[tuple[str, dtypes.dtype]]:
    """Every function in float32, and some in the other dtypes: what differs there is one cast."""
    for p in KERNELS:
        for d in dtypes.FLOATS if p.name in ("erf", "pow", "relu", "exp") else (dtypes.float32,):
            xs = like_samples(p, d, 1) if p.kind == "elementwise" else None
            if xs is not None and is_worth_it(p, d, len(xs)):
                yield p.name, d


@pytest.mark.parametrize("name, d", [*cases()], ids=str)
def test_native_and_numpy_agree(name: str, d: dtypes.dtype) -> None:
    p = REGISTRY[name]
    xs = like_samples(p, d, LEAST + 5)
    assert xs is not None
    kernel = EagerKernel(p)
    got, want = kernel(*xs), p.eager(*xs)
    assert kernel.made and not kernel.off, kernel.off
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_allclose(
        got.astype(np.float64), want.astype(np.float64), rtol=4 * TOLERANCE[d.name], atol=2 * TOLERANCE[d.name]
    )


def test_the_functions_that_numpy_has_not_are_among_them() -> None:
    for name in ("erf", "erfc", "sigmoid", "lgamma", "erfinv", "relu", "exp", "tanh"):
        assert is_worth_it(REGISTRY[name], dtypes.float32, 1), name
    for name in ("floor", "isnan", "copy", "square"):
        assert REGISTRY[name] not in KERNELS or not is_worth_it(REGISTRY[name], dtypes.float32, 1), name
    assert is_worth_it(REGISTRY["remainder"], dtypes.float32, 2)
    assert not is_worth_it(REGISTRY["add"], dtypes.float32, 2)
    assert not is_worth_it(REGISTRY["sign"], dtypes.int32, 1)


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.T, lambda x: x[::2], lambda x: x[:, None, ::-1]])
def test_any_layout_gives_a_contiguous_result_of_the_same_shape(make: Any) -> None:
    x = make(np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32))
    before = x.copy()
    got = EagerKernel(REGISTRY["erf"])(x)
    np.testing.assert_allclose(got, REGISTRY["erf"].eager(x), atol=2e-7)
    assert got.shape == x.shape and got.flags.c_contiguous and got.flags.writeable
    np.testing.assert_array_equal(x, before)
    assert not np.may_share_memory(got, x)


def test_numbers_are_operands_and_unequal_shapes_are_numpys() -> None:
    pow_, x = REGISTRY["pow"], np.linspace(0.1, 3, LEAST, dtype=np.float32)
    kernel = EagerKernel(pow_)
    np.testing.assert_allclose(kernel(x, 2.5), x.astype(np.float64) ** 2.5, rtol=1e-6)
    np.testing.assert_allclose(kernel(2.5, x), 2.5 ** x.astype(np.float64), rtol=1e-6)
    assert len(kernel.made) == 2
    half = x.astype(np.float16)
    np.testing.assert_array_equal(kernel(half, 1.1), pow_.eager(half, 1.1))
    np.testing.assert_allclose(kernel(x.reshape(-1, 2), x[:2]), pow_.eager(x.reshape(-1, 2), x[:2]))
    assert len(kernel.made) == 2, "these were to be left to NumPy"


@pytest.mark.parametrize(
    "seed, offset, shape", [(0, 0, (LEAST,)), (-3, 7, (129, 128)), (1 << 40, (1 << 35) + 2, (LEAST + 1, 1))]
)
def test_random_bits_are_the_same_to_the_bit(seed: int, offset: int, shape: tuple[int, ...]) -> None:
    p = REGISTRY["random_bits"]
    kernel = EagerDraw(p)
    for s, o in ((seed, offset), (np.asarray(seed), np.asarray(offset))):
        np.testing.assert_array_equal(kernel(s, o, shape=shape), p.eager(seed, offset, shape=shape))
    assert kernel.made and not kernel.off


def test_a_stream_is_the_same_drawn_at_once_and_in_parts() -> None:
    flame.manual_seed(5)
    whole = flame.rand(4 * LEAST).numpy()
    flame.manual_seed(5)
    parts = [flame.rand(n).numpy() for n in (4, LEAST, LEAST - 4, 2 * LEAST)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_small_arrays_never_meet_the_compiler() -> None:
    for name, most in (("exp", LEAST), ("erf", LEAST_OF_MANY)):
        kernel = EagerKernel(REGISTRY[name])
        for n in (0, 1, most - 1):
            assert kernel(np.zeros(n, np.float32)).shape == (n,)
        assert not kernel.made
        kernel(np.zeros(most, np.float32))
        assert kernel.made


def test_where_compiling_fails_numpy_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise CompileError("no such processor")

    monkeypatch.setattr(eager_kernels, "Executable", fails)
    kernel = EagerKernel(REGISTRY["erf"])
    x = np.linspace(-3, 3, LEAST, dtype=np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(kernel(x), REGISTRY["erf"].eager(x))
    assert kernel.off == "no such processor"


def test_only_so_many_sizes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager_kernels, "_MOST", 3)
    kernel = EagerKernel(REGISTRY["relu"])
    for n in range(LEAST, LEAST + 8):
        x = np.full(n, -1, np.float32)
        assert not kernel(x).any()
    assert len(kernel.made) == 3


def test_threads_may_call_at_once() -> None:
    kernel = EagerKernel(REGISTRY["sigmoid"])
    xs = [np.full(LEAST + i % 3, i, np.float32) for i in range(32)]
    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(xs, pool.map(kernel, xs), strict=True):
            np.testing.assert_allclose(y, 1 / (1 + np.exp(-x)), rtol=1e-6)


def test_gradients_go_through_them() -> None:
    x = flame.linspace(-2, 2, LEAST).requires_grad_()
    flame.erf(x).sum().backward()
    v = x.detach().numpy().astype(np.float64)
    np.testing.assert_allclose(x.grad.numpy(), 2 / np.sqrt(np.pi) * np.exp(-(v**2)), rtol=1e-5)


def test_specs_are_what_the_shape_rule_says() -> None:
    for name in ("erf", "relu"):
        p = REGISTRY[name]
        for d in dtypes.FLOATS:
            x = np.ones((2, LEAST), d.numpy)
            want = p.infer(Spec(x.shape, d))
            got = EagerKernel(p)(x)
            assert (got.shape, got.dtype) == (want.shape, want.dtype.numpy)
