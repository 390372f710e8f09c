"""Layers on a GPU: what they make, and their gradients, stay there, and nothing is computed on the host meanwhile.

Where everything lies is seen without computing anything: launches are checked and not run. What layers compute on a GPU is tried on
hardware (`tests/gpu`), and by the operations they are made of.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import fake_cuda
import pytest
from fake_cuda import gpu_for_tests
from gpu_layers_for_tests import CONTAINERS, LAYERS, made, tensors

import flame
from flame import nn
from flame.autograd import tape
from flame.errors import HostDetourWarning

pytest.importorskip("triton", reason="Triton is installed on Linux only")

PARTS = 4
#: which differ from others in the number of dimensions alone, or are made of layers that are tried themselves
LONG = re.compile(r"Transformer|Lazy.*[23]d|(?<!Conv)(?<!Transpose)3d|Pad1d|Dropout1d|BatchNorm1d|InstanceNorm1d")


@pytest.fixture(autouse=True)
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fake_cuda, "run_interpreted", lambda *_: None)
    monkeypatch.setattr("fake_cuda.FRESH", 0)
    with gpu_for_tests(), warnings.catch_warnings():
        warnings.simplefilter("error", HostDetourWarning)
        warnings.simplefilter("ignore", FutureWarning)  # of layers that have another name by now
        yield


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The primitives that were computed on the host, on arrays with elements or from nothing."""
    seen: list[str] = []
    placed = tape._placed

    def watched(primitive: Any, operands: tuple, arrays: list, place: str) -> Any:
        found = placed(primitive, operands, arrays, place)
        if found is None and (any(getattr(a, "ndim", 0) for a in arrays) or primitive.kind in ("create", "random")):
            seen.append(primitive.name)
        return found

    monkeypatch.setattr(tape, "_placed", watched)
    return seen


def test_every_layer_is_tried() -> None:
    layers = {n for n, c in vars(nn).items() if isinstance(c, type) and issubclass(c, nn.Module)}
    assert layers == LAYERS.keys() | CONTAINERS


@pytest.mark.parametrize("part", range(PARTS))
def test_layers_stay_on_their_device(part: int, on_host: list[str]) -> None:
    for name in [n for n in sorted(LAYERS) if not LONG.search(n)][part::PARTS]:
        for args, kwargs, inputs in LAYERS[name][:1]:
            layer, given = made(name, args, kwargs, "cuda"), [make("cuda") for make in inputs]
            if name.startswith("Lazy"):  # (parameters are first made on the host, there too)
                layer(*given)
            on_host.clear()
            results = tensors(layer(*given))
            total = sum([y.sum() for y in results if y.dtype.is_floating_point])
            if total.requires_grad:
                total.backward()
            assert not on_host, (name, set(on_host))
            assert results and all(y.is_cuda for y in results), name
            leaves = [*layer.parameters(), *(x for x in given if isinstance(x, flame.Tensor))]
            assert all(x.grad is None or x.grad.is_cuda for x in leaves), name
