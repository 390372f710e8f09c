"""The caching allocator: leases never overlap, streams never see each other's leftovers, and every byte is accounted for."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from fake_cuda import FakeLibrary, gpu_for_tests
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.errors import OutOfMemoryError
from flame.knobs import knobs
from flame.runtime import cuda
from flame.runtime.cuda import Stream
from flame.runtime.cuda_gpu import Gpu, Memory
from flame.runtime.cuda_memory import GRAIN, SMALL

MIB = 1 << 20


@pytest.fixture
def fake() -> Iterator[FakeLibrary]:
    with gpu_for_tests() as library:
        yield library


def check(gpu: Gpu, fake: FakeLibrary, live: list[Memory]) -> None:
    """The allocator's own account of itself is whole, and agrees with who holds what."""
    snapshot = gpu.memory.snapshot()
    stats = gpu.memory.statistics()
    pending = sum(b.size for b in gpu.memory._pending)
    spans = sorted((m.address, m.nbytes) for m in live)
    for (a, n), (b, _) in zip(spans, spans[1:]):
        assert a + n <= b
    blocks = {}
    for segment in snapshot:
        at = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == at and block["size"] > 0 and block["size"] % GRAIN == 0
            blocks[at] = block
            at += block["size"]
        assert at == segment["address"] + segment["total_size"]
    assert {a for a, b in blocks.items() if b["state"] == "active_allocated"} == {m.address for m in live}
    for m in live:
        assert m.nbytes <= blocks[m.address]["size"] and blocks[m.address]["requested_size"] == m.nbytes
    in_use = [b for b in blocks.values() if b["state"] == "active_allocated"]
    assert stats["allocation.all.current"] == len(live)
    assert stats["allocated_bytes.all.current"] == sum(b["size"] for b in in_use)
    assert stats["requested_bytes.all.current"] == sum(m.nbytes for m in live)
    assert stats["active_bytes.all.current"] == sum(b["size"] for b in in_use) + pending
    assert stats["reserved_bytes.all.current"] == fake.allocated() == sum(s["total_size"] for s in snapshot)
    assert stats["segment.all.current"] == len(snapshot)
    for name in ("allocation", "allocated_bytes", "requested_bytes", "active", "active_bytes", "segment", "reserved_bytes"):
        for pool in ("small_pool", "large_pool", "all"):
            now, peak, came, went = (stats[f"{name}.{pool}.{k}"] for k in ("current", "peak", "allocated", "freed"))
            assert 0 <= now <= peak and came - went == now, (name, pool)
        for k in ("current", "allocated", "freed"):
            assert stats[f"{name}.all.{k}"] == stats[f"{name}.small_pool.{k}"] + stats[f"{name}.large_pool.{k}"]


SIZES = st.one_of(
    st.sampled_from([0, 1, 511, 512, 513, SMALL - 1, SMALL, SMALL + 1, 10 * MIB - 1, 10 * MIB, 21 * MIB]),
    st.integers(0, 8 * GRAIN),
    st.integers(SMALL, 12 * MIB),
)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("take"), SIZES, st.integers(0, 2)),
        st.tuples(st.just("drop"), st.integers(0, 99), st.integers(0, 2)),
        st.tuples(st.just("lend"), st.integers(0, 99), st.integers(0, 2)),
        st.tuples(st.sampled_from(["empty", "wait"]), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("caching", [True, False])
@settings(max_examples=15, report_multiple_bugs=False)
@given(moves=MOVES)
def test_whatever_is_taken_and_dropped_the_accounts_are_right(caching: bool, moves: list[tuple[str, int, int]]) -> None:
    before, knobs.cuda_caching = knobs.cuda_caching, caching
    try:
        with gpu_for_tests(memory=200 * MIB) as fake:
            gpu = cuda.gpu()
            streams = [Stream.of(gpu, 0), Stream(), Stream()]
            live: list[Memory] = []
            for move, n, which in moves:
                stream = streams[which].cuda_stream
                if move == "take":
                    try:
                        m = gpu.allocate(n, f"line {n}", stream)
                    except OutOfMemoryError:
                        assert sum(x.nbytes for x in live) + n > 100 * MIB
                        continue
                    # what was here before must be done with it: nobody else's work comes after this
                    gpu.fill(m, 1 + len(live) % 200, min(n, 4096), stream)
                    live.append(m)
                elif move == "empty":
                    gpu.memory.release()
                elif move == "wait":
                    gpu.synchronize()
                elif live:
                    m = live[n % len(live)]
                    if move == "drop":
                        live.remove(m)
                        del m
                    elif m.nbytes:
                        gpu.fill(m, 0, min(m.nbytes, 4096), stream)
                        m.record_stream(stream)
            m = None  # type: ignore[assignment]
            check(gpu, fake, live)
            live.clear()
            gpu.memory.release()
            check(gpu, fake, [])
            assert fake.allocated() == 0
    finally:
        knobs.cuda_caching = before


def test_nobody_gets_memory_that_another_stream_is_still_to_read(fake: FakeLibrary) -> None:
    """Random programs on several streams: every buffer keeps its contents until its last reader."""
    gpu = cuda.gpu()
    rng = random.Random(7)
    streams = [Stream.of(gpu, 0), Stream(), Stream(), Stream()]
    results: list[tuple[int, np.ndarray]] = []
    for i in range(1, 200):
        home, reader = rng.choice(streams), rng.choice(streams)
        n = rng.choice([16, 1024, 5000])
        m = gpu.allocate(n, stream=home.cuda_stream)
        gpu.fill(m, i, n, home.cuda_stream)
        reader.wait_stream(home)
        out = gpu.pinned.empty((n,), np.dtype(np.uint8))
        gpu.copy_out(out, m, reader.cuda_stream, non_blocking=True)
        if reader != home:
            m.record_stream(reader.cuda_stream)
        results.append((i, out))
        del m
        if rng.random() < 0.1:
            rng.choice(streams).synchronize()
    gpu.synchronize()
    assert all((out == i % 256).all() for i, out in results)
    assert gpu.memory.statistics()["segment.all.current"] < 20  # it was reused all the same
    out = None  # type: ignore[assignment]
    results.clear()


def test_without_a_record_the_reader_would_see_what_came_after(fake: FakeLibrary) -> None:
    """What the test above holds against: the fake runs work as late as it may."""
    gpu, side = cuda.gpu(), Stream()
    m = gpu.allocate(512)
    gpu.fill(m, 1, 512)
    side.wait_stream(cuda.current_stream())
    out = gpu.pinned.empty((512,), np.dtype(np.uint8))
    gpu.copy_out(out, m, side.cuda_stream, non_blocking=True)
    address = m.address
    del m
    again = gpu.allocate(512)
    assert again.address == address
    gpu.fill(again, 2, 512)
    cuda.current_stream().synchronize()
    side.synchronize()
    assert (out == 2).all()


def test_what_died_serves_again_on_its_own_stream_only(fake: FakeLibrary) -> None:
    gpu, side = cuda.gpu(), Stream()
    a = gpu.allocate(1000)
    where = a.address
    del a
    with side:
        b = gpu.allocate(1000)
    c = gpu.allocate(1000)
    assert c.address == where != b.address
    d = gpu.allocate(5 * MIB)
    where = d.address
    del d
    parts = [gpu.allocate(3 * MIB) for _ in range(6)]  # of the 20 MiB that the large one was a part of
    assert fake.calls["cuMemAlloc"] == 3 and where in [m.address for m in parts]


def test_neighbours_that_died_are_one_again(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 0, 3, 1)):
        parts: list[Memory | None] = [gpu.allocate(5 * MIB) for _ in range(4)]
        assert fake.calls["cuMemAlloc"] == 1
        for i in order:
            parts[i] = None
        whole = gpu.allocate(20 * MIB)
        assert fake.calls["cuMemAlloc"] == 1
        del whole


def test_out_of_memory_says_who_holds_it() -> None:
    with gpu_for_tests(memory=100 * MIB) as fake:
        gpu = cuda.gpu()
        held = [
            gpu.allocate(30 * MIB, "model.py:10"),
            gpu.allocate(20 * MIB, "model.py:10"),
            gpu.allocate(40 * MIB, "data.py:3"),
        ]
        gpu.allocate(8 * MIB, "gone.py:1")
        with pytest.raises(OutOfMemoryError) as caught:
            gpu.allocate(60 * MIB, "model.py:12")
        said = str(caught.value)
        assert said.startswith("CUDA out of memory. Tried to allocate 60.00 MiB. GPU 0 has a total capacity of 100.00 MiB")
        lines = said.splitlines()
        assert lines[-2:] == ["  model.py:10: 50.00 MiB, 2 allocations", "  data.py:3: 40.00 MiB"]
        stats = gpu.memory.statistics()
        assert stats["num_ooms"] == 1 and stats["num_alloc_retries"] >= 1
        check(gpu, fake, held)
        held.clear()
        assert gpu.allocate(90 * MIB).nbytes  # what was cached goes back first
        assert issubclass(OutOfMemoryError, RuntimeError)


def test_the_last_memory_is_taken_without_a_margin() -> None:
    with gpu_for_tests(memory=4 * MIB) as fake:
        gpu = cuda.gpu()
        m = gpu.allocate(3 * MIB)  # a segment would be 20 MiB
        check(gpu, fake, [m])


def test_a_process_can_be_given_a_part_of_a_device() -> None:
    with gpu_for_tests(memory=100 * MIB):
        gpu = cuda.gpu()
        gpu.memory.limit = 50 * MIB
        held = gpu.allocate(30 * MIB)
        with pytest.raises(OutOfMemoryError, match="may reserve 50.00 MiB at most"):
            gpu.allocate(30 * MIB)
        del held
        assert gpu.allocate(50 * MIB).nbytes


def test_peaks_and_totals_start_anew_where_asked(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    a = gpu.allocate(2 * MIB)
    b = gpu.allocate(4 * MIB)
    del b
    gpu.memory.reset_peaks()
    stats = gpu.memory.statistics()
    assert stats["allocated_bytes.all.peak"] == stats["allocated_bytes.all.current"] == 2 * MIB
    assert stats["allocated_bytes.all.allocated"] == 6 * MIB
    gpu.memory.reset_totals()
    c = gpu.allocate(MIB)
    stats = gpu.memory.statistics()
    assert stats["allocated_bytes.all.allocated"] == MIB and stats["allocated_bytes.all.freed"] == 0
    assert stats["allocated_bytes.all.peak"] == 3 * MIB
    del a, c


def test_leases_may_die_anywhere(fake: FakeLibrary) -> None:
    """In cycles, collected while memory is being allocated, and on other threads."""
    gpu = cuda.gpu()

    class Cycle:
        def __init__(self) -> None:
            self.me, self.memory = self, gpu.allocate(1000)

    def work() -> None:
        for _ in range(200):
            Cycle()
            gpu.allocate(3000)

    threads = [threading.Thread(target=work) for _ in range(3)]
    before = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert gpu.memory.statistics()["allocation.all.current"] == 0
    check(gpu, fake, [])


def test_other_peoples_memory_is_kept_not_freed(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    owner = gpu.allocate(512)

    class Owner:
        memory = owner

    lent = Owner()
    m = gpu.adopt(owner.address, 512, lent)
    m.record_stream(Stream().cuda_stream)
    del lent
    gpu.fill(m, 3, 512)
    assert m.device == gpu.device and repr(m).startswith("Memory(512 bytes at 0x")
    count = gpu.memory.statistics()["allocation.all.current"]
    del m
    assert gpu.memory.statistics()["allocation.all.current"] == count == 1
    with pytest.raises(ValueError, match="-1 bytes"):
        gpu.allocate(-1)
