"""Devices by name, and memory that is handed out again."""

from __future__ import annotations

import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flame import dtypes
from flame.errors import MissingTargetError, OutOfMemoryError
from flame.functions.placing import resolved
from flame.runtime import cuda
from flame.runtime.device import as_device, device
from flame.runtime.memory import SMALL, Allocator, size_class

# ---- devices


@pytest.mark.parametrize(
    "made, type, index, text",
    [
        (device("cpu"), "cpu", None, "cpu"),
        (device("cpu:0"), "cpu", 0, "cpu:0"),
        (device("cuda"), "cuda", None, "cuda"),
        (device("cuda:3"), "cuda", 3, "cuda:3"),
        (device("cuda", 1), "cuda", 1, "cuda:1"),
        (device(type="cuda", index=0), "cuda", 0, "cuda:0"),
        (device(2), "cuda", 2, "cuda:2"),
        (device(device("cuda:1")), "cuda", 1, "cuda:1"),
    ],
)
def test_a_device_is_a_type_and_an_index(made: device, type: str, index: int | None, text: str) -> None:
    assert (made.type, made.index, str(made)) == (type, index, text)
    assert eval(repr(made)) == made and hash(eval(repr(made))) == hash(made)
    assert pickle.loads(pickle.dumps(made)) == made


def test_devices_are_equal_by_name_alone() -> None:
    assert device("cpu") != device("cpu:0") and device("cuda:0") != device("cuda:1") and device("cpu") != "cpu"
    assert len({device("cpu"), device("cpu"), device("cuda")}) == 2
    with pytest.raises(AttributeError, match="not writable"):
        device("cpu").type = "cuda"  # type: ignore[misc]


@pytest.mark.parametrize("text", ["gpu", "", "CPU", "cpu:", "cuda:-1", "cuda:x", "cuda:01", "cuda:1:2", "cpu:1", ":0", "c 1"])
def test_a_wrong_device_string_is_an_error(text: str) -> None:
    with pytest.raises(RuntimeError):
        device(text)


@pytest.mark.parametrize("arguments", [(1.5,), (None,), (True,), ("cpu", "0"), (device("cpu"), 0), (1, 1)])
def test_a_wrong_device_argument_is_a_type_error(arguments: tuple) -> None:
    with pytest.raises(TypeError):
        device(*arguments)


def test_cuda_is_refused_when_it_is_used() -> None:
    assert resolved(None) == resolved("cpu") == device("cpu")
    assert as_device("cuda").type == "cuda"
    if not cuda.available():
        with pytest.raises(MissingTargetError):
            resolved("cuda:0")


# ---- memory

FLOAT = np.dtype(np.float32)


@pytest.fixture
def allocator() -> Allocator:
    return Allocator()


def test_a_block_comes_back_when_the_last_view_of_it_is_gone(allocator: Allocator) -> None:
    a = allocator.empty((100, 200), FLOAT)
    address = a.ctypes.data
    views: list = [a[3:], a.T[::2], a.view(np.int32)[1], memoryview(a), np.asarray(a), a.reshape(-1)[5:7], a.__dlpack__()]
    views.append(np.frombuffer(views[3], np.uint8))
    del a
    while views:
        assert allocator.statistics().cached == 0
        other = allocator.empty((100, 200), FLOAT)
        assert other.ctypes.data != address
        del other
        allocator.release()
        views.pop(0)
    gc.collect()
    assert allocator.statistics().live == 0
    assert allocator.empty((100, 200), FLOAT).ctypes.data == address


@pytest.mark.parametrize("name", dtypes.BY_NAME)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (0, 7), (17, 1025), (1 << 16,)])
def test_arrays_are_what_numpy_would_make(allocator: Allocator, name: str, shape: tuple[int, ...]) -> None:
    d = dtypes.by_name(name).numpy
    a = allocator.empty(shape, d)
    assert type(a) is np.ndarray and a.shape == shape and a.dtype is d
    assert a.flags.c_contiguous and a.flags.aligned and a.flags.writeable
    if a.nbytes >= SMALL:
        assert a.ctypes.data % 64 == 0
    a[...] = 1
    assert (a == np.ones(shape, d)).all()


def test_live_arrays_never_share_memory(allocator: Allocator, rng: np.random.Generator) -> None:
    alive: list[tuple[int, np.ndarray]] = []
    for i in range(2000):
        if alive and rng.random() < 0.5:
            alive.pop(int(rng.integers(len(alive))))
        else:
            a = allocator.empty((int(rng.integers(1, 60_000)),), np.dtype(np.int64 if i % 2 else np.int16))
            a[...] = i % 30_000
            alive.append((i % 30_000, a))
        for value, a in alive[-3:]:
            assert a[0] == a[-1] == value
    assert all((a == value).all() for value, a in alive)
    s = allocator.statistics()
    assert s.live == sum(size_class(a.nbytes) for _, a in alive if a.nbytes >= SMALL)
    assert s.reuses > 200 and s.peak >= s.live


def test_a_size_class_wastes_at_most_a_quarter() -> None:
    for n in [1, 63, 64, 65, *range(SMALL, 4 * SMALL, 97), (1 << 30) + 1, 5 << 32]:
        assert n <= size_class(n) <= max(64, n + n // 4) and size_class(size_class(n)) == size_class(n)


def test_what_lies_unused_is_bounded() -> None:
    allocator = Allocator(spare=1 << 20)
    for i in range(200):  # ever new sizes, each used once
        allocator.empty((SMALL + 5000 * i,), np.dtype(np.uint8))
    s = allocator.statistics()
    assert s.cached <= (1 << 20) + 2 * s.peak
    allocator.release()
    assert allocator.statistics().cached == 0 == allocator.statistics().live


def test_no_memory_means_trying_again_without_what_is_cached(allocator: Allocator, monkeypatch: pytest.MonkeyPatch) -> None:
    allocator.empty((1 << 20,), FLOAT)
    assert allocator.statistics().cached
    real, refused = np.empty, []

    def scarce(*a: object, **k: object) -> np.ndarray:
        if allocator.statistics().cached:
            refused.append(a)
            raise MemoryError
        return real(*a, **k)  # type: ignore[call-overload]

    monkeypatch.setattr(np, "empty", scarce)
    assert allocator.empty((1 << 21,), FLOAT).shape == (1 << 21,)
    assert refused
    monkeypatch.undo()
    with pytest.raises(MemoryError):
        allocator.empty((1 << 60,), np.dtype(np.uint8))


def test_small_arrays_are_refused_as_large_ones_are(allocator: Allocator, monkeypatch: pytest.MonkeyPatch) -> None:
    real, answers = np.empty, iter([MemoryError, None, MemoryError, MemoryError])

    def scarce(*a: object, **k: object) -> np.ndarray:
        if (error := next(answers)) is not None:
            raise error
        return real(*a, **k)  # type: ignore[call-overload]

    allocator.empty((1 << 20,), FLOAT)
    monkeypatch.setattr(np, "empty", scarce)
    make = allocator.maker((3, 4), FLOAT, lambda n: OutOfMemoryError(f"{n} bytes"))  # type: ignore[arg-type, return-value]
    assert make().shape == (3, 4)
    assert not allocator.statistics().cached  # was given back before the second try
    with pytest.raises(OutOfMemoryError, match="^48 bytes$"):
        make()


def test_threads_allocate_at_the_same_time(allocator: Allocator) -> None:
    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        kept = []
        for _ in range(300):
            a = allocator.empty((int(rng.integers(SMALL, 2 * SMALL)),), np.dtype(np.uint8))
            a[...] = seed
            kept.append(a)
            if len(kept) > 5:
                if not (kept.pop(0) == seed).all():
                    return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert allocator.statistics().live == 0


def test_an_arena_serves_one_call_at_a_time(allocator: Allocator) -> None:
    a = allocator.take_arena(1000)
    b = allocator.take_arena(1000)
    assert a is not b and a.size >= 1000 and a.address % 64 == 0
    allocator.give_arena(a)
    assert allocator.take_arena(10) is a
    allocator.give_arena(a)
    c = allocator.take_arena(1 << 20)
    assert c.size >= 1 << 20 and c is not a
