"""mode="max-autotune" on a GPU: candidates are timed by the device's clock, here a fake one, and the fastest is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from fake_cuda import FakeLibrary, gpu_for_tests

import flame
from flame.compiler.to_triton import TritonSource
from flame.errors import CompileError
from flame.runtime import cache, gpu_autotune
from flame.runtime.cuda import gpu
from flame.runtime.triton_tools import run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibrary]:
    store = cache.DiskCache(tmp_path)
    monkeypatch.setattr(cache, "shared", lambda: store)
    monkeypatch.setattr(gpu_autotune, "_chosen", {})
    monkeypatch.setattr(gpu_autotune, "measured", {})
    monkeypatch.setattr(gpu_autotune, "ROUNDS", 1)
    monkeypatch.setattr(fake_cuda, "run_interpreted", lambda *_: None)  # what kernels compute is no matter here
    with gpu_for_tests() as library:
        yield library


def tuned(f: Callable, *inputs: Any) -> tuple[Any, Any]:
    """A function compiled so, and what it gives."""
    g = flame.compile(f, mode="max-autotune-no-cudagraphs", options={"never_slower": False})
    for _ in range(2):
        y = g(*(x.cuda() for x in inputs))
    flame.cuda.synchronize()
    return g, y


def cheap(when: Callable[[TritonSource], bool]) -> Callable[[TritonSource], float]:
    return lambda source: 0.0 if when(source) else 5.0


ROWS = lambda x: flame.softmax(x, -1)


def test_the_fastest_candidate_is_taken_and_kept(fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    x = flame.randn(3, 600)
    fake.cost = cheap(lambda s: s.warps == 2)
    tuned(ROWS, x)
    [times] = gpu_autotune.measured.values()
    assert len(times) > 2 and len({s for s, _ in times}) == len(times)
    [chosen] = gpu_autotune._chosen.values()
    assert chosen.warps == 2 and chosen != times[0][0]
    launches = len(fake.launches)
    monkeypatch.setattr(gpu_autotune, "_chosen", {})
    gpu_autotune.measured.clear()
    tuned(ROWS, x)  # found on disk
    assert (
        not gpu_autotune.measured
        and fake.launches[launches:].count("softmax_3x600") == 1
        and [*gpu_autotune._chosen.values()] == [chosen]
    )
    tuned(ROWS, flame.randn(5, 600))  # other sizes are measured for themselves
    assert gpu_autotune.measured


def test_the_heuristics_choice_stays_unless_another_saves_enough(fake: FakeLibrary) -> None:
    fake.cost = lambda s: 5.0 if s.warps > 1 else 5.0 * (1 - gpu_autotune.GAIN / 2)
    tuned(ROWS, flame.randn(3, 600))
    [times] = gpu_autotune.measured.values()
    assert [*gpu_autotune._chosen.values()] == [times[0][0]]


def test_what_the_compiler_refuses_and_large_arrays_are_left_out(fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    compile = fake.compile

    def picky(source: TritonSource, arch: str) -> Any:
        if source.warps == 2:
            raise CompileError("too few")
        return compile(source, arch)

    monkeypatch.setattr(gpu()._process, "compiler", picky)
    tuned(ROWS, flame.randn(3, 600))
    [times] = gpu_autotune.measured.values()
    assert times and all(s.warps != 2 for s, _ in times)
    gpu_autotune.measured.clear()
    monkeypatch.setattr(gpu_autotune, "MOST_BYTES", 100)
    tuned(ROWS, flame.randn(4, 600))
    assert not gpu_autotune.measured


def test_kernels_of_the_copy_engine_are_lent_memory_by_programs(fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of = gpu_autotune.candidates
    monkeypatch.setattr(gpu_autotune, "candidates", lambda *about: [s for s in all_of(*about) if s.descriptors][-1:] * 2)
    monkeypatch.setattr(fake_cuda, "run_interpreted", run_interpreted)
    a, b = flame.randn(64, 64, dtype=flame.float16), flame.randn(64, 64, dtype=flame.float16)
    _, y = tuned(lambda a, b: flame.relu(a @ b), a, b)
    [chosen] = gpu_autotune._chosen.values()
    assert chosen.descriptors
    np.testing.assert_allclose(y.cpu().numpy(), flame.relu(a @ b).numpy(), rtol=2e-2, atol=1e-2)
