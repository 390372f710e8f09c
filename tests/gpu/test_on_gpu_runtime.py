"""The runtime on hardware: memory, copies, streams, events, graphs, launches, and what errors say."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import test_cuda_graph
import test_cuda_runtime

import flame
from flame.errors import OutOfMemoryError
from flame.runtime import cuda
from flame.runtime.cuda import Event, Stream
from tests.gpu import sanitizer

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = [n for n in test_cuda_runtime.CASES if n != "attention"]


@pytest.mark.parametrize("name", KERNELS[::2])
def test_a_kernel_is_what_it_means(name: str, brief: bool) -> None:
    if brief and KERNELS.index(name) % 20:
        pytest.skip("CI runs these kernels elsewhere")
    test_cuda_runtime.test_a_kernel_launched_is_the_kernel_interpreted(name, None)  # type: ignore[arg-type]


def test_the_device_is_described() -> None:
    p = flame.cuda.get_device_properties()
    assert p.major >= 7 and p.warp_size == 32 and p.multi_processor_count > 0
    free, total = flame.cuda.mem_get_info()
    assert 0 < free <= total <= p.total_memory * 1.01
    print(p, cuda.runtime().driver.version())


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("n", [1, 1000, 1 << 16, 1 << 24])
def test_bytes_come_back_as_they_went(n: int, pinned: bool, dry: bool, rng: np.random.Generator) -> None:
    gpu = cuda.gpu()
    n = min(n, 1 << 18) if dry else n
    x = gpu.pinned.empty((n,), np.dtype(np.uint8)) if pinned else np.empty(n, np.uint8)
    x[...] = rng.integers(0, 256, n)
    want = x.copy()
    there, again = gpu.allocate(n), gpu.allocate(n)
    gpu.copy_in(there, x, non_blocking=pinned)
    gpu.copy(again, there, n)
    if pinned:
        gpu.synchronize()
    x[...] = 0
    gpu.copy_out(x, again, non_blocking=pinned)
    gpu.synchronize()
    np.testing.assert_array_equal(x, want)


def test_streams_are_ordered_by_events(dry: bool) -> None:
    gpu, side = cuda.gpu(), Stream(priority=-1)
    n = 1 << (12 if dry else 26)
    a, b = gpu.allocate(n), gpu.allocate(n)
    out = np.empty(n, np.uint8)
    for value in range(1, 6):
        gpu.fill(a, value, n)
        side.wait_stream(cuda.current_stream())
        with side:
            gpu.copy(b, a, n)
        a.record_stream(side.cuda_stream)
        b.record_stream(side.cuda_stream)
        cuda.current_stream().wait_stream(side)
        gpu.copy_out(out, b)
        assert (out == value).all()


def test_events_tell_the_time(dry: bool) -> None:
    gpu = cuda.gpu()
    n = 1 << (12 if dry else 28)
    a = gpu.allocate(n)
    start, end = Event(enable_timing=True), Event(enable_timing=True)
    start.record()
    for _ in range(20):
        gpu.fill(a, 1, n)
    end.record()
    assert not end.query()
    end.synchronize()
    assert 0.0 < start.elapsed_time(end) < 10_000


def test_memory_is_reused_and_handed_back(dry: bool) -> None:
    gpu = cuda.gpu()
    gc.collect()
    flame.cuda.empty_cache()
    before = flame.cuda.memory_reserved()
    sizes = [1 << 10, 1 << 20, 3 << 20, (8 if dry else 100) << 20]
    for _ in range(20):
        held = [gpu.allocate(n) for n in sizes]
        for m in held:
            gpu.fill(m, 1, m.nbytes)
        del m, held
    stats = flame.cuda.memory_stats()
    assert stats["segment.all.current"] <= len(sizes) + 10
    flame.cuda.empty_cache()
    assert flame.cuda.memory_reserved() <= before
    assert not dry or stats["num_ooms"] == 0


def test_running_out_of_memory_is_told_and_survived(dry: bool) -> None:
    gpu = cuda.gpu()
    held = [gpu.allocate(8 << 20, "suite.py:1")]
    flame.cuda.set_per_process_memory_fraction(0.05)
    try:
        with pytest.raises(OutOfMemoryError, match=r"(?s)out of memory. Tried.*suite.py:1: 8.00 MiB"):
            for _ in range(1000):
                held.append(gpu.allocate(int(gpu.total_memory * 0.02), "suite.py:2"))
    finally:
        flame.cuda.set_per_process_memory_fraction(1.0)
        held.clear()
    with pytest.raises(OutOfMemoryError):
        gpu.allocate(2 * gpu.total_memory)
    x = flame.ones(100, device="cuda")
    assert float(x.sum()) == 100


def test_a_graph_gives_what_its_plan_gives() -> None:
    chain = test_cuda_graph.Chain(cuda.gpu())
    inputs = chain.inputs()
    kept = [chain.run(inputs) for _ in range(6)]
    assert chain.plan.graph is not None  # type: ignore[attr-defined]
    for m in kept:
        chain.check(m)
    chain.x = {b: a + np.float32(1) for b, a in chain.x.items()}
    chain.check(chain.run(chain.inputs()))
    chain.check(chain.run(chain.inputs(), chain.gpu.allocate(2 * chain.stride)))


def test_threads_work_on_streams_of_their_own() -> None:
    wrong = []

    def work(k: int) -> None:
        with Stream() as s:
            x = flame.full((1000,), float(k), device="cuda")
            for _ in range(5):
                x = x * 2 + 1
            s.synchronize()
            if not np.allclose(x.cpu().numpy(), 32.0 * k + 31):
                wrong.append(k)

    flame.ones(3, device="cuda") * 2 + 1
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_launch_is_cheap(dry: bool) -> None:
    """Printed, not asserted: the figures of this machine."""
    gpu = cuda.gpu()
    chain = test_cuda_graph.Chain(gpu)
    inputs = chain.inputs()
    steps = chain.plan.steps
    rounds = 3 if dry else 2000
    words = [m.address for m in (*inputs, chain.gpu.allocate(chain.nbytes))]
    for name, plan in (("plan", gpu.plan(steps, len(words))), ("graph", gpu.plan(steps, len(words), graph=True))):
        for _ in range(3):
            gpu.run(plan, chain.arena.address, *words)
        gpu.synchronize()
        begun = time.perf_counter()
        for _ in range(rounds):
            gpu.run(plan, chain.arena.address, *words)
        took = time.perf_counter() - begun
        gpu.synchronize()
        print(f"{name}: {took / rounds * 1e6:.2f} us a call of {len(steps)} launches")


BROKEN = """
import sys; sys.path[:0] = ["tests"]
import numpy as np, test_cuda_graph as t
from flame.errors import CudaError
from flame.runtime import cuda
chain = t.Chain(cuda.gpu())
[x] = chain.inputs()
try:
    chain.gpu.run(chain.plan, 4096, x.address, x.address)
    chain.gpu.synchronize()
except CudaError as error:
    print(error, *error.__notes__)
"""


def test_a_wild_pointer_is_an_error_that_names_kernels(dry: bool) -> None:
    if dry:
        pytest.skip("a wild pointer needs a device of its own")
    ran = subprocess.run([sys.executable, "-c", BROKEN], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "ILLEGAL_ADDRESS" in ran.stdout and "step 0" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.parametrize("check", sanitizer.CHECKS)
def test_memory_checkers_find_nothing(check: str, dry: bool) -> None:
    tool = sanitizer.found()
    if dry or tool is None:
        pytest.skip("compute-sanitizer is not here")
    ran = sanitizer.run(tool, check)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    print(ran.stdout.strip().splitlines()[-1])
