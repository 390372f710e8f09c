"""Eager operations on a GPU: what falls back to the host says so and is listed, and what is compiled ahead is what is used."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from fake_cuda import FakeLibrary, gpu_for_tests

import flame
from flame.errors import HostDetourWarning
from flame.primitive import REGISTRY
from flame.runtime import cuda, gpu_checks, gpu_common, gpu_eager, gpu_program

pytest.importorskip("triton", reason="Triton is installed on Linux only")

STATUS = Path(__file__).resolve().parent.parent / "docs" / "gpu-status.md"
#: which make something of nothing, where they are told to, or are the way between devices
PLACED = {"full", "iota", "random_bits", "transfer"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibrary]:
    monkeypatch.setattr(fake_cuda, "run_interpreted", lambda *_: None)  # what kernels compute is no matter here,
    monkeypatch.setattr(gpu_checks._Batch, "raise_if_wrong", lambda batch: None)  # nor what they say of indices
    with gpu_for_tests() as library:
        yield library


def test_nothing_falls_back_to_the_host_in_silence(fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every primitive there is: its result is on the device, and what was read back meanwhile was told of."""
    detours = set()
    for name, p in sorted(REGISTRY.items()):
        assert p.samples is not None, name
        operands, params = next(iter(p.samples()))
        monkeypatch.setattr(gpu_program, "_told", set())
        given = [flame.tensor(o, device="cuda") if isinstance(o, np.ndarray) else o for o in operands]
        before = fake.calls["cuMemcpyDtoHAsync"]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            made: Any = p(*given, **params)
        if name in PLACED:
            continue
        assert all(t.is_cuda for t in (made if isinstance(made, tuple) else (made,)) if isinstance(t, flame.Tensor)), name
        if any(issubclass(w.category, HostDetourWarning) for w in told):
            detours.add(name)
        else:
            assert fake.calls["cuMemcpyDtoHAsync"] == before, f"{name} is computed on the host in silence"
    with pytest.warns(HostDetourWarning, match="^mul has no kernel"):
        z = flame.tensor([1j, 2.0], device="cuda")
        assert (z * z).is_cuda
    told_of = STATUS.read_text(encoding="utf-8").split("## Computed on the host")[1].split("##")[0]
    assert set(re.findall(r"`(\w+)`", told_of)) == detours


def test_what_is_compiled_ahead_is_what_eager_runs(fake: FakeLibrary) -> None:
    gpu_eager._nodes.clear()
    gpu = cuda.gpu()
    ahead = {s.digest.encode() for s in gpu_common.common(gpu, (flame.float32,))}
    assert len(ahead) > 50 and not fake.compiled
    x, w = flame.ones(4096, 256, device="cuda"), flame.ones(256, 256, device="cuda")
    made = len(fake.compiled)
    for y in (x + x, x * x, x.exp(), x.sum(-1), x - x.amax(1, keepdim=True), x + w.sum(0), x.sum()):
        assert y.is_cuda
    new = [c for c in list(fake.compiled)[made:] if not any(digest in c for digest in ahead)]
    assert not new and fake.compiled, [fake.compiled[c].entry for c in new]
    gpu_eager._nodes.clear()


def test_compiling_ahead_goes_on_beside_the_program(fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(type(cuda.gpu()), "prepare", lambda self, sources: asked.append(len(sources)))
    flame.cuda.precompile(flame.float32, wait=True)
    assert len(asked) == 1 and asked[0] > 20
