"""Views that repeat nothing can be written: `expand` to the same sizes, or with leading dimensions of size 1."""

from __future__ import annotations

import numpy as np
import pytest

import flame

CASES = [((5,), (1, -1)), ((5, 2), (5, 2)), ((1, 3), (1, 3)), ((), (1, 1)), ((0, 2), (1, 0, 2)), ((3, 4), (1, 1, 3, -1))]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape, sizes", CASES)
def test_what_repeats_nothing_is_written(shape: tuple, sizes: tuple, compiled: bool) -> None:
    def write(x: flame.Tensor) -> flame.Tensor:
        v = x.expand(*sizes)
        v.add_(1.0)
        v.copy_(v * 2)
        return v

    f = flame.compile(write) if compiled else write
    for _ in range(4):
        a = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
        x = flame.tensor(a)
        v = f(x)
        np.testing.assert_array_equal(x.numpy(), (a + 1) * 2)
        np.testing.assert_array_equal(v.numpy(), ((a + 1) * 2).reshape(v.shape))


def test_of_a_transposed_tensor_and_with_gradient() -> None:
    w = flame.randn(4, 3, requires_grad=True)
    y = w * 1.0
    y.t().expand(1, -1, -1).mul_(3.0)
    y.sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), np.full((4, 3), 3.0, np.float32))


def test_what_is_repeated_is_not_written() -> None:
    with pytest.raises(RuntimeError, match="single memory location"):
        flame.zeros(1, 3).expand(2, 3).add_(1)
