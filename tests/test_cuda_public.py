"""flame.cuda and flame.accelerator: PyTorch's names, on a machine without a GPU and on one with two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_cuda import FakeLibrary, gpu_for_tests

import flame
from flame.errors import MissingTargetError
from flame.runtime import cuda

without_gpu = pytest.mark.skipif(cuda.available(), reason="this machine has a GPU")

#: what has an answer on every machine
ANSWERS: list[tuple[Callable[[], Any], Any]] = [
    (flame.cuda.is_available, False),
    (flame.cuda.device_count, 0),
    (flame.cuda.is_initialized, False),
    (flame.cuda.memory_allocated, 0),
    (flame.cuda.max_memory_allocated, 0),
    (flame.cuda.memory_reserved, 0),
    (flame.cuda.max_memory_reserved, 0),
    (flame.cuda.host_memory_reserved, 0),
    (flame.cuda.memory_stats, {}),
    (flame.cuda.memory_snapshot, []),
    (flame.cuda.empty_cache, None),
    (flame.cuda.reset_peak_memory_stats, None),
    (flame.cuda.reset_accumulated_memory_stats, None),
    (flame.cuda.ipc_collect, None),
    (flame.cuda.seed_all, None),
    (lambda: flame.cuda.manual_seed(3), None),
    (lambda: flame.cuda.manual_seed_all(3), None),
    (flame.cuda.get_arch_list, []),
    (flame.cuda.get_rng_state_all, []),
    (flame.cuda.is_bf16_supported, False),
    (flame.cuda.is_current_stream_capturing, False),
    (flame.accelerator.is_available, False),
    (flame.accelerator.device_count, 0),
    (flame.accelerator.current_accelerator, None),
]
NEEDS: list[Callable[[], Any]] = [
    flame.cuda.init,
    flame.cuda.current_device,
    flame.cuda.synchronize,
    flame.cuda.get_device_name,
    flame.cuda.get_device_capability,
    flame.cuda.get_device_properties,
    flame.cuda.current_stream,
    flame.cuda.default_stream,
    flame.cuda.Stream,
    flame.cuda.mem_get_info,
    flame.cuda.initial_seed,
    lambda: flame.cuda.set_device(0),
    lambda: flame.cuda.Event().record(),
    lambda: flame.cuda.device(0).__enter__(),
    lambda: flame.cuda.set_per_process_memory_fraction(0.5),
    flame.accelerator.current_device_index,
    flame.accelerator.synchronize,
    lambda: flame.accelerator.set_device_index(0),
]


@without_gpu
@pytest.mark.parametrize("ask, answer", ANSWERS)
def test_questions_are_answered_without_a_gpu(ask: Callable[[], Any], answer: Any) -> None:
    state = flame.get_rng_state()
    assert ask() == answer
    assert bool((flame.get_rng_state() == state).all())


@without_gpu
@pytest.mark.parametrize("ask", NEEDS)
def test_what_needs_a_gpu_says_so(ask: Callable[[], Any]) -> None:
    with pytest.raises(MissingTargetError, match="no GPU that flame can run on.*device 'cpu'"):
        ask()
    with flame.cuda.stream(None) as s:
        assert s is None


@pytest.fixture
def fake() -> Iterator[FakeLibrary]:
    with gpu_for_tests(devices=2) as library:
        yield library


def test_devices_are_described(fake: FakeLibrary) -> None:
    assert flame.cuda.is_available() and flame.cuda.device_count() == 2 and not flame.cuda.is_initialized()
    assert flame.cuda.get_device_name(1) == flame.cuda.get_device_properties("cuda:1").name == "Fake H100 1"
    assert flame.cuda.get_device_capability(flame.device("cuda")) == (9, 0)
    assert flame.cuda.get_device_properties().multi_processor_count == 132
    assert flame.cuda.get_arch_list() == ["sm_90"] and flame.cuda.is_bf16_supported() and flame.cuda.is_tf32_supported()
    assert flame.cuda.can_device_access_peer(0, 1) and not flame.cuda.can_device_access_peer(0, 0)
    assert flame.cuda.is_initialized() and flame.cuda.mem_get_info() == (1 << 30, 1 << 30)
    assert flame.accelerator.current_accelerator() == flame.device("cuda") and flame.accelerator.device_count() == 2
    with pytest.raises(ValueError, match="Expected a cuda device, but got: cpu"):
        flame.cuda.get_device_name("cpu")
    with pytest.raises(RuntimeError, match="invalid device ordinal: 5, of 2"):
        flame.cuda.set_device(5)


def test_the_current_device_is_set_and_restored(fake: FakeLibrary) -> None:
    seen = [flame.cuda.current_device()]
    with flame.cuda.device(1):
        seen.append(flame.cuda.current_device())
        with flame.cuda.device(None), flame.cuda.device(-1):
            seen.append(flame.cuda.current_device())
        with flame.cuda.device_of(flame.ones(2)):
            seen.append(flame.cuda.current_device())
        with flame.accelerator.device_index(0):
            seen.append(flame.accelerator.current_device_index())
        with flame.accelerator.device_index(None):
            seen.append(flame.cuda.current_device())
    seen.append(flame.cuda.current_device())
    flame.accelerator.set_device_index(1)
    flame.cuda.set_device(-1)
    seen.append(flame.cuda.current_device())
    assert seen == [0, 1, 1, 1, 0, 1, 0, 1]
    flame.cuda.set_device(0)


def test_the_current_stream_is_set_and_restored(fake: FakeLibrary) -> None:
    here, there = flame.cuda.Stream(), flame.cuda.Stream(device=1)
    with flame.cuda.stream(here):
        assert flame.cuda.current_stream() == here
        with flame.cuda.stream(there):
            assert flame.cuda.current_device() == 1 and flame.cuda.current_stream() == there
            assert flame.cuda.current_stream(0) == here
        assert flame.cuda.current_device() == 0
    assert flame.cuda.current_stream() == flame.cuda.default_stream() != here
    assert flame.cuda.ExternalStream(here.cuda_stream) == here
    flame.accelerator.set_stream(here)
    assert flame.accelerator.current_stream() == here and hash(flame.cuda.current_stream()) == hash(here)
    flame.cuda.set_stream(None)
    flame.cuda.set_stream(flame.cuda.default_stream(0))
    assert "cuda:1" in repr(there) and here.query()
    flame.accelerator.synchronize()
    flame.cuda.synchronize(1)


def test_memory_is_accounted_for_under_pytorchs_names(fake: FakeLibrary) -> None:
    assert flame.cuda.memory_allocated() == 0
    gpu = cuda.gpu()
    held = gpu.allocate(3 << 20, "here.py:1")
    assert flame.cuda.memory_allocated() == flame.cuda.max_memory_allocated() == 3 << 20
    assert flame.cuda.memory_reserved() == flame.cuda.max_memory_reserved() == 20 << 20
    assert flame.cuda.memory_allocated(1) == 0
    nested = flame.cuda.memory_stats_as_nested_dict()
    assert nested["allocated_bytes"]["large_pool"]["current"] == 3 << 20 and nested["num_ooms"] == 0
    [segment] = flame.cuda.memory_snapshot()
    assert segment["blocks"][0]["line"] == "here.py:1"
    table = flame.cuda.memory_summary()
    assert "3.00 MiB" in table and "large pool" in table and "pool" not in flame.cuda.memory_summary(abbreviated=True)
    del held
    flame.cuda.empty_cache()
    assert flame.cuda.memory_reserved() == 0 and flame.cuda.max_memory_allocated() == 3 << 20
    flame.cuda.reset_peak_memory_stats()
    flame.cuda.reset_accumulated_memory_stats()
    assert flame.cuda.max_memory_allocated() == 0 and flame.cuda.memory_stats()["num_device_alloc"] == 0
    flame.cuda.set_per_process_memory_fraction(0.01)
    assert abs(flame.cuda.get_per_process_memory_fraction() - 0.01) < 1e-6
    with pytest.raises(flame.cuda.OutOfMemoryError, match="may reserve"):
        gpu.allocate(20 << 20)
    flame.cuda.set_per_process_memory_fraction(1.0)
    assert flame.cuda.get_per_process_memory_fraction() == 1.0
    for wrong, error in ((2.0, ValueError), (1, TypeError)):
        with pytest.raises(error, match="fraction"):
            flame.cuda.set_per_process_memory_fraction(wrong)


def test_one_generator_serves_all_devices(fake: FakeLibrary) -> None:
    flame.cuda.manual_seed(5)
    a = flame.rand(3)
    flame.manual_seed(5)
    assert bool((flame.rand(3) == a).all()) and flame.cuda.initial_seed() == 5
    state = flame.cuda.get_rng_state()
    b = flame.rand(3)
    flame.cuda.set_rng_state(state)
    assert bool((flame.rand(3) == b).all())
    states = flame.cuda.get_rng_state_all()
    assert len(states) == 2
    flame.cuda.set_rng_state_all(states)
    flame.cuda.seed()


def test_what_is_left_out_says_what_to_use() -> None:
    with pytest.raises(AttributeError, match='mode="reduce-overhead"'):
        flame.cuda.CUDAGraph  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        flame.cuda.nothing  # noqa: B018
    missing = [n for n in flame.cuda.__all__ if not hasattr(flame.cuda, n)]
    assert not missing
