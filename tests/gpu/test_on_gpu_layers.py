"""Layers, forward and backward, are the host's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from gpu_layers_for_tests import LAYERS, made, tensors

import flame

pytestmark = pytest.mark.gpu

#: what is tried without a GPU
TRIED = ("Linear", "CrossEntropyLoss", "Embedding", "LayerNorm", "ConvTranspose2d", "CTCLoss", "Upsample", "EmbeddingBag")


def run(name: str, args: tuple, kwargs: dict, inputs: tuple, device: str) -> list[np.ndarray]:
    """Results, and gradients of their weighted sum."""
    layer, given = made(name, args, kwargs, device), [make(device) for make in inputs]
    flame.manual_seed(1)
    results = tensors(layer(*given))
    total: Any = 0.0
    for y in results:
        if y.dtype.is_floating_point:
            total = total + (y * flame.arange(y.numel(), device=device).cos().reshape(tuple(y.shape))).sum()
    if isinstance(total, flame.Tensor) and total.requires_grad:
        total.backward()
    leaves = [*layer.parameters(), *(x for x in given if isinstance(x, flame.Tensor))]
    return [t.detach().cpu().numpy() for t in (*results, *(x.grad for x in leaves if x.grad is not None))]


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers_are_the_hosts(name: str, brief: bool) -> None:
    if brief and name not in TRIED:
        pytest.skip("takes long in an interpreter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for args, kwargs, inputs in LAYERS[name]:
            got, want = (run(name, args, kwargs, inputs, d) for d in ("cuda", "cpu"))
            assert len(got) == len(want)
            for a, b in zip(got, want, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
