"""Calls that go from addresses to launches give what all others give, natively and in Python, and leave no memory behind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeLibrary, gpu_for_tests

import flame
from flame.capture import native
from flame.errors import CudaError
from flame.native import layout
from flame.runtime.gpu_program import GpuExecutable
from flame.runtime.gpu_straight import Straight

pytest.importorskip("triton", reason="Triton is installed on Linux only")


@pytest.fixture(params=["off", "on"])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeLibrary]:
    if request.param == "on" and layout.usable():
        pytest.skip(layout.usable())
    before = native._State.force
    native.switch(request.param)
    with gpu_for_tests() as library:
        yield library
    native.switch("on" if "capture" in before else "eager" if before else "off")


def two_results(x: Any, y: Any) -> Any:
    z = x * 2 + y
    return z, z.sum(-1), x


def written(x: Any, y: Any) -> Any:
    x.mul_(2)
    return (x + y).exp()


def by_an_array_between(x: Any, y: Any) -> Any:
    return flame.softmax(x @ y.t(), -1) @ y


def made(device: str) -> dict[str, list[Any]]:
    """Operands: as kernels read them, turned, beginning at no multiple of 16 bytes, and empty."""
    flat = flame.arange(60, dtype=flame.float32).to(device) / 60
    return {
        "plain": [flat[:24].reshape(4, 6).clone(), flat[24:48].reshape(4, 6).clone()],
        "turned": [flat[:24].reshape(6, 4).t(), flat[24:48].reshape(4, 6).clone()],
        "crooked": [flat[1:25].reshape(4, 6), flat[27:51].reshape(4, 6)],
        "empty": [flat[:0].reshape(0, 6), flat[:0].reshape(0, 6)],
    }


def values(got: Any) -> list[np.ndarray]:
    return [t.cpu().numpy() for t in (got if isinstance(got, tuple) else (got,))]


@pytest.mark.parametrize("f", [two_results, written, by_an_array_between], ids=lambda f: f.__name__)
def test_all_layouts_give_the_same(f: Callable, fake: FakeLibrary) -> None:
    compiled = flame.compile(f, options={"never_slower": False})
    for kind, wanted in made("cpu").items():
        if f is not two_results and kind != "plain":  # (one function shows what arrays do)
            continue
        for _ in range(3):
            there = made("cuda")[kind]
            want = values(f(*[t.clone() for t in wanted]))
            for a, b in zip(values(compiled(*there)), want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            for a, b in zip(values(f(*made("cuda")[kind])), want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_memory_is_handed_back_and_accounts_are_kept(fake: FakeLibrary) -> None:
    x, y = (flame.ones(40, 50, device="cuda") for _ in range(2))
    step = flame.compile(two_results, options={"never_slower": False})
    for _ in range(3):
        step(x, y)
    gc.collect()
    before, taken = flame.cuda.memory_allocated(), flame.cuda.memory_stats()["allocation.all.allocated"]
    calls = fake.calls["cuLaunchKernel"]
    for _ in range(5):
        kept = step(x, y)
        assert flame.cuda.memory_allocated() > before
    del kept
    assert flame.cuda.memory_allocated() == before and fake.calls["cuLaunchKernel"] > calls
    assert flame.cuda.memory_stats()["allocation.all.allocated"] == taken + 10


def test_one_kernel_is_one_call_and_two_allocations_need_no_other_way(
    fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = (flame.ones(8, 9, device="cuda") for _ in range(2))
    step = flame.compile(by_an_array_between, options={"never_slower": False})
    for _ in range(3):
        step(x, y)
    monkeypatch.setattr(GpuExecutable, "_step_by_step", lambda *_: pytest.fail("not straight"))
    step(x, y)


def test_a_launch_that_fails_names_its_kernel(fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (flame.ones(8, 9, device="cuda") for _ in range(2))
    step = flame.compile(two_results, options={"never_slower": False})
    for _ in range(3):
        step(x, y)
    [compiled] = [c for c in step.compiled_graphs() if isinstance(c.executable, GpuExecutable)]
    straight = compiled.executable._straight
    assert type(straight) is Straight
    with pytest.raises(TypeError, match="another number of words"):
        straight.run([0] * 9)
    fake.fail("cuLaunchKernel", 701)
    with pytest.raises(CudaError) as told:
        step(x, y)
    assert straight.plan.steps[0].note.split(",")[0] in str(told.value)
