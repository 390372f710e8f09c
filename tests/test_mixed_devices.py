"""Tensors of several devices in one operation: a compiled function raises what eager does, and changes as little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cuda import gpu_for_tests

import flame

X = np.arange(4, dtype=np.float32)

WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "operation": lambda here, there: (there * 2) + here,
    "other way round": lambda here, there: (here * 2) + there,
    "in place": lambda here, there: here.add_(there),
    "in place on the GPU": lambda here, there: there.add_(here),
    "gradient": lambda here, there: flame.autograd.grad((there * there.detach()).requires_grad_(), here.requires_grad_(), here),
}


@pytest.mark.parametrize("way", WAYS)
def test_devices_that_are_mixed_are_refused_as_eagerly(way: str) -> None:
    with gpu_for_tests():
        for f in (WAYS[way], flame.compile(WAYS[way])):
            for _ in range(3):
                here, there = flame.tensor(X), flame.tensor(X, device="cuda")
                with pytest.raises(RuntimeError) as raised:
                    f(here, there)
                assert not isinstance(raised.value, RecursionError)
                assert np.array_equal(here.detach().numpy(), X) and np.array_equal(there.cpu().numpy(), X)


def test_a_function_that_refused_devices_serves_tensors_of_one() -> None:
    with gpu_for_tests():
        f = flame.compile(lambda a, b: a * 2 + b)
        here, there = flame.tensor(X), flame.tensor(X, device="cuda")
        for _ in range(3):
            with pytest.raises(RuntimeError, match="same device"):
                f(here, there)
            assert np.array_equal(f(there, there).cpu().numpy(), 3 * X)
            assert np.array_equal(f(here, here).numpy(), 3 * X)


def test_data_goes_from_device_to_device_inside_a_compiled_function() -> None:
    def f(here: Any, there: Any) -> Any:
        here.copy_(there * 2)
        there.copy_(here + 1)
        return here

    with gpu_for_tests():
        g = flame.compile(f)
        for _ in range(3):
            here, there = flame.tensor(X), flame.tensor(X, device="cuda")
            g(here, there)
            assert np.array_equal(here.numpy(), 2 * X) and np.array_equal(there.cpu().numpy(), 2 * X + 1)
