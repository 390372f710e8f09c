"""Gradients of strided convolutions by phases: against the primitive at random sizes; compiled against eager."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import flame
import flame.nn.functional as F
from flame.ops import phases
from flame.ops.contract import conv_input_grad, conv_sizes


@st.composite
def gradients(draw: st.DrawFn) -> tuple[tuple, tuple, dict]:
    """Shapes of a cotangent and a weight, and how they are convolved."""
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(rank))

    size, k, stride = each(1, 9), each(1, 4), each(1, 3)
    padding = tuple(zip(each(0, 3), each(0, 3), strict=True))
    dilation = tuple(1 if s > 1 else d for s, d in zip(stride, each(1, 2), strict=True))
    assume(all(n + a + b > d * (t - 1) for n, (a, b), d, t in zip(size, padding, dilation, k, strict=True)))
    c = draw(st.sampled_from((1, phases.LEAST)))
    out = conv_sizes(size, k, stride, padding, dilation)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (2, 2 * groups, *out), (2 * groups, c, *k), {"input_shape": (2, c * groups, *size), **how}


@given(gradients(), st.integers(0, 2**32 - 1))
def test_phases_are_the_gradient(case: tuple, seed: int) -> None:
    g_shape, w_shape, how = case
    r = np.random.default_rng(seed)
    g, w = (flame.tensor(r.standard_normal(s)) for s in (g_shape, w_shape))
    assume(phases.has_phases(g, w, **how))
    want = conv_input_grad(g, w, **how).numpy()
    (got,) = phases.composed["conv_input_grad"](g, w, **how)
    assert got.shape == want.shape and got.dtype == g.dtype
    np.testing.assert_allclose(got.numpy(), want, atol=1e-11)


@pytest.mark.parametrize("dtype", [flame.float32, flame.float64, flame.bfloat16])
@pytest.mark.parametrize(
    ("size", "c", "o", "k", "stride", "groups"), [(11, 8, 8, 3, 2, 8), (9, 16, 6, 3, 2, 1), (8, 32, 4, 1, 3, 2)]
)
def test_compiled_is_eager(dtype: flame.dtype, size: int, c: int, o: int, k: int, stride: int, groups: int) -> None:
    flame.manual_seed(size)
    x, w = flame.randn(2, c, size, size), flame.randn(o, c // groups, k, k)

    def f(x: flame.Tensor, w: flame.Tensor) -> tuple[flame.Tensor, ...]:
        y = F.conv2d(x, w, None, stride, k // 2, 1, groups)
        back = F.conv_transpose2d(y, w, None, stride, k // 2, 0, groups)
        return y, back, *flame.autograd.grad((y * y).sum() + (back * back).sum(), (x, w))

    exact = f(*(t.double().requires_grad_() for t in (x, w)))
    compiled = flame.compile(f)
    for _ in range(3):
        got = compiled(*(t.to(dtype).requires_grad_() for t in (x, w)))
    tolerance = {flame.float64: 1e-12, flame.float32: 1e-5, flame.bfloat16: 0.1}[dtype]
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == dtype
        scale = b.abs().max().item()
        assert (a.double() - b).abs().max().item() <= tolerance * scale
    names = " ".join(kernel.name for kernel in compiled.kernels)
    assert names.count("conv_input_grad") + names.count("conv_transpose") > 1  # by phases, not by a call


def test_batches_of_any_size_share_the_phases() -> None:
    w = flame.randn(16, 1, 3, 3)

    def f(x: flame.Tensor) -> flame.Tensor:
        (g,) = flame.autograd.grad((F.conv2d(x, w, None, 2, 1, 1, 16) ** 2).sum(), (x,))
        return g

    compiled = flame.compile(f)
    for n in (2, 3, 5, 1, 7, 4):
        x = flame.randn(n, 16, 7, 6, requires_grad=True)
        np.testing.assert_allclose(compiled(x).numpy(), f(x).numpy(), rtol=1e-4, atol=1e-5)
    assert compiled.stats.compiled <= 3
