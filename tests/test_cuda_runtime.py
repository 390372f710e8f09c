"""Devices, streams, copies and kernels through a driver that checks every call and runs kernels in Triton's interpreter."""

from __future__ import annotations

import ctypes
import multiprocessing
import threading
from collections.abc import Iterator

import kernels_for_tests as made
import ml_dtypes
import numpy as np
import pytest
from fake_cuda import FakeLibrary, gpu_for_tests

import flame
from flame.compiler.schedule import choose_gpu
from flame.compiler.to_triton import TritonSource, to_triton
from flame.errors import CompileError, CudaError, MissingTargetError, OutOfMemoryError
from flame.knobs import knobs
from flame.runtime import cuda
from flame.runtime.cuda import Event, Stream
from flame.runtime.cuda_gpu import Gpu, Memory
from flame.runtime.cuda_plan import ARENA, CONSTANT, FIRST
from flame.runtime.triton_tools import compile_triton

pytest.importorskip("triton", reason="Triton is installed on Linux only")

CASES = made.cases()


@pytest.fixture
def fake() -> Iterator[FakeLibrary]:
    with gpu_for_tests() as library:
        yield library


def source_of(name: str, gpu: Gpu) -> TritonSource:
    kernel, _, symbols = CASES[name]
    return to_triton(kernel, choose_gpu(kernel, gpu.target, symbols))


def put(gpu: Gpu, array: np.ndarray) -> Memory:
    memory = gpu.allocate(array.nbytes, "made.py:1")
    gpu.copy_in(memory, np.ascontiguousarray(array))
    return memory


def read(gpu: Gpu, memory: Memory, like: np.ndarray) -> np.ndarray:
    out = np.empty_like(like)
    gpu.copy_out(out, memory)
    return out


def close(got: np.ndarray, want: np.ndarray) -> None:
    narrow = want.dtype.itemsize == 2 and want.dtype.kind in "fV"
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
    else:
        got, want = got.astype(np.float64), want.astype(np.float64)
        np.testing.assert_allclose(got, want, rtol=2e-2 if narrow else 1e-4, atol=2e-2 if narrow else 1e-4)


# ---- kernels


@pytest.mark.parametrize("name", [n for n in CASES if n != "attention"][::3])
def test_a_kernel_launched_is_the_kernel_interpreted(name: str, fake: FakeLibrary) -> None:
    kernel, buffers, symbols = CASES[name]
    gpu = cuda.gpu()
    source = source_of(name, gpu)
    memory = {n: put(gpu, a) for n, a in buffers.items()}
    parameters = [memory[p.buffer] if p.buffer else symbols[p.symbol] for p in source.parameters]
    gpu.compile(source).launch(source.grid(symbols), parameters)
    expected = made.run(CASES[name])
    for n in kernel.outputs:
        close(read(gpu, memory[n], buffers[n]), expected[n])


def test_a_whole_program_is_one_call_that_is_right_for_other_addresses_too(fake: FakeLibrary) -> None:
    """Softmax of a softmax: the first result lies in an arena."""
    name = next(n for n in CASES if n.startswith("softmax"))
    kernel, buffers, symbols = CASES[name]
    (given,), (out,) = [[b for b in kernel.buffers if (b in kernel.outputs) is o] for o in (False, True)]
    gpu = cuda.gpu()
    source = source_of(name, gpu)
    f = gpu.compile(source, "softmax model.py:3")
    order = [p.buffer for p in source.parameters]
    first = {given: (FIRST, 0), out: (ARENA, 128)}
    second = {given: (ARENA, 128), out: (FIRST + 1, 0)}
    grid = source.grid(symbols)
    plan = gpu.plan([f.step(grid, [places[b] for b in order]) for places in (first, second)], 2)
    nbytes = buffers[given].nbytes
    for k in range(3):
        x = buffers[given] + np.float32(k)
        a, b, arena = put(gpu, x), gpu.allocate(nbytes), gpu.allocate(nbytes + 128)
        before = fake.calls["cuLaunchKernel"]
        gpu.run(plan, arena.address, a.address, b.address)
        assert fake.calls["cuLaunchKernel"] == before + 2
        e = np.exp(x - x.max(1, keepdims=True))
        e /= e.sum(1, keepdims=True)
        e = np.exp(e - e.max(1, keepdims=True))
        close(read(gpu, b, x), e / e.sum(1, keepdims=True))
    with pytest.raises(TypeError, match="another number of words"):
        gpu.run(plan, arena.address, a.address)


def test_sizes_are_passed_as_numbers_of_a_plan(fake: FakeLibrary) -> None:
    name = "pointwise_symbolic"
    kernel, buffers, symbols = CASES[name]
    gpu = cuda.gpu()
    source = source_of(name, gpu)
    memory = {n: put(gpu, a) for n, a in buffers.items()}
    numbers = {n: FIRST + i for i, n in enumerate(memory)}
    places = [(numbers[p.buffer], 0) if p.buffer else (CONSTANT, symbols[p.symbol]) for p in source.parameters]
    plan = gpu.plan([gpu.compile(source).step(source.grid(symbols), places)], len(memory))
    gpu.run(plan, 0, *(m.address for m in memory.values()))
    expected = made.run(CASES[name])
    for n in kernel.outputs:
        close(read(gpu, memory[n], buffers[n]), expected[n])


def test_a_real_binary_takes_the_same_way() -> None:
    """Compiled by Triton for the device, with whatever scratch pointers its version appends."""
    with gpu_for_tests():
        gpu = cuda.gpu()
        source = source_of("pointwise_float32", gpu)
        binary = compile_triton(source, gpu.target.arch)
        kernel, buffers, symbols = CASES["pointwise_float32"]
        memory = {n: put(gpu, a) for n, a in buffers.items()}
        f = gpu.load(binary, source)
        assert gpu.load(binary, source) is f
        f.launch(source.grid(symbols), [memory[p.buffer] for p in source.parameters])
        for n in kernel.outputs:
            close(read(gpu, memory[n], buffers[n]), made.run(CASES["pointwise_float32"])[n])


def test_wrong_launches_are_refused(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    source = source_of("pointwise_float32", gpu)
    f = gpu.compile(source)
    with pytest.raises(TypeError, match=f"{source.entry} takes {len(source.parameters)} parameters, got 1"):
        f.launch((1, 1, 1), [0])
    with pytest.raises(TypeError, match="places"):
        f.step((1, 1, 1), [])
    f.launch((0, 1, 1), [0] * len(source.parameters))
    assert not fake.calls["cuLaunchKernel"]
    binary = fake.compile(source, "sm_80")
    with pytest.raises(CompileError, match="was compiled for sm_80; cuda:0 is sm_90"):
        gpu.load(binary, source)


def test_an_error_names_the_kernel_and_its_lines() -> None:
    with gpu_for_tests(check=False) as fake:
        gpu = cuda.gpu()
        source = source_of("scalar", gpu)
        f = gpu.compile(source, "exp model.py:12")
        memory = [gpu.allocate(1024) for _ in source.parameters]
        fake.fail("cuLaunchKernel", 719)
        with pytest.raises(CudaError, match=r"CUDA_ERROR_LAUNCH_FAILED.*the launch of exp model.py:12"):
            f.launch((1, 1, 1), memory)
        plan = gpu.plan([f.step((1, 1, 1), [(FIRST, 0)] * len(memory), f"{n} model.py:7") for n in "ab"], 1)
        fake.fail("cuLaunchKernel", 719, after=1)
        with pytest.raises(CudaError, match=r"the launch of b model.py:7"):
            gpu.run(plan, 0, memory[0].address)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_kernel_that_fails_shows_later_or_at_once_if_asked(blocking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "launch_blocking", blocking)
    with gpu_for_tests(check=False) as fake:
        gpu = cuda.gpu()
        name = "pointwise_float32"
        kernel, buffers, symbols = CASES[name]
        source = source_of(name, gpu)
        f = gpu.compile(source, "mul model.py:5")
        memory = {n: put(gpu, a) for n, a in buffers.items()}
        gpu.synchronize()
        fake.fail_kernel(source.entry)
        launch = lambda: f.launch(source.grid(symbols), [memory[p.buffer] for p in source.parameters])
        if not blocking:
            launch()
        with pytest.raises(CudaError, match="ILLEGAL_ADDRESS") as caught:
            launch() if blocking else gpu.synchronize()
        assert "mul model.py:5" in caught.value.__notes__[0]
        assert "every later call on that device fails in this process. Start a new one" in str(caught.value)
        array, plan = buffers[kernel.outputs[0]], gpu.plan([f.step((1, 1, 1), [(FIRST, 0)] * len(f.parameters))], 1)
        held = memory[kernel.outputs[0]]
        later = [
            lambda: gpu.allocate(4 << 20), gpu.synchronize, lambda: put(gpu, array), lambda: read(gpu, held, array), launch,
            lambda: gpu.run(plan, 0, held.address), lambda: Event().record(), lambda: Stream().synchronize(), gpu.memory_info,
            lambda: gpu.pinned.empty((1 << 20,), np.dtype(np.uint8)), lambda: gpu.compile(source_of("scalar", gpu)),
        ]  # fmt: skip
        for call in later:
            with pytest.raises(CudaError, match=r"ILLEGAL_ADDRESS.*lost before, as cu(Stream|Ctx)Synchronize found out"):
                call()
        memory.clear()  # what lies there may die
        assert float(flame.ones(3).sum()) == 3


def test_a_device_that_is_lost_is_not_another() -> None:
    with gpu_for_tests(check=False, devices=2) as fake:
        for gpu in (cuda.gpu(0), cuda.gpu(1)):
            fake.fail("cuCtxSynchronize", 719, times=2)
            with pytest.raises(CudaError, match="is lost with it"):
                gpu.synchronize()
            with pytest.raises(CudaError, match="was lost before, as cuCtxSynchronize found out"):
                gpu.synchronize()
        fake.fail("cuCtxSynchronize", 201)
        with pytest.raises(CudaError, match=r"INVALID_CONTEXT: invalid device context \(cuCtxSynchronize\)$"):
            gpu.synchronize()


# ---- copies


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "float16", "bfloat16", "float64", "complex64"])
@pytest.mark.parametrize("n", [0, 1, 1000, 40_000])
def test_bytes_come_back_as_they_went(n: int, dtype: str, fake: FakeLibrary, rng: np.random.Generator) -> None:
    d = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x = np.frombuffer(rng.bytes(n * d.itemsize), np.uint8).copy()
    x = (x & 1 if dtype == "bool" else x).view(d)
    gpu = cuda.gpu()
    a, b = put(gpu, x), gpu.allocate(x.nbytes)
    gpu.copy(b, a, x.nbytes)
    np.testing.assert_array_equal(read(gpu, b, x).view(np.uint8), x.view(np.uint8))
    gpu.fill(b, 0xFF, x.nbytes)
    assert (read(gpu, b, x).view(np.uint8) == 0xFF).all()


@pytest.mark.parametrize("n", [100, 1 << 20])
def test_a_host_array_may_change_once_it_is_copied(n: int, fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    x = np.arange(n, dtype=np.float32)
    for y in (x.copy(), gpu.pinned.empty((n,), np.dtype(np.float32))):
        y[...] = x
        m = put(gpu, y)
        y[...] = -1
        np.testing.assert_array_equal(read(gpu, m, x), x)


def test_pinned_memory_is_copied_beside_the_caller_and_outlives_the_copy(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    n = 1000
    x = gpu.pinned.empty((n,), np.dtype(np.float32))
    x[...] = 3
    m = gpu.allocate(x.nbytes)
    gpu.copy_in(m, x, non_blocking=True)
    x[...] = 4  # it has not run yet, so this is what will be copied
    address = x.ctypes.data
    del x
    y = gpu.pinned.empty((n,), np.dtype(np.float32))
    assert y.ctypes.data != address  # the copy still needs the first
    gpu.copy_out(y, m, non_blocking=True)
    gpu.synchronize()
    assert (y == 4).all()
    del y
    z = gpu.pinned.empty((n,), np.dtype(np.float32))
    gpu.pinned.empty((n,), np.dtype(np.float32))
    assert z.ctypes.data == address
    gpu.pinned.release(wait=True)
    assert gpu.pinned.reserved == gpu.pinned.find(z).size  # type: ignore[union-attr]
    assert gpu.pinned.find(np.zeros(3)) is None


def test_what_cannot_be_copied_is_refused(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    m = gpu.allocate(800)
    x = np.zeros((10, 10))
    with pytest.raises(ValueError, match="C-contiguous"):
        gpu.copy_in(m, x.T[::2])
    with pytest.raises(TypeError, match="NumPy array, not list"):
        gpu.copy_in(m, [1])  # type: ignore[arg-type]
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        gpu.copy_out(x, m)


def test_devices_copy_to_each_other_in_order() -> None:
    with gpu_for_tests(devices=2) as fake:
        a, b = cuda.gpu(0), cuda.gpu(1)
        x = np.arange(50_000, dtype=np.float32)
        there = put(a, x)
        here = b.allocate(x.nbytes)
        b.copy(here, there, x.nbytes, of=a)
        a.fill(there, 0, x.nbytes)  # on its own stream, after the copy has read
        np.testing.assert_array_equal(read(b, here, x), x)
        assert fake.calls["cuMemcpyPeerAsync"] == 1


# ---- streams and events


def test_work_of_two_streams_is_ordered_by_events_alone(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    side = Stream()
    n = 64
    x = np.arange(n, dtype=np.float32)
    m, out = put(gpu, x), gpu.allocate(x.nbytes)
    gpu.synchronize()
    for ordered in (True, False):
        gpu.fill(out, 0, x.nbytes)
        gpu.synchronize()
        with side:
            assert cuda.current_stream() == side != Stream.of(gpu, 0)
            gpu.copy(out, m, x.nbytes)
        if ordered:
            cuda.current_stream().wait_stream(side)
        want = x if ordered else np.zeros_like(x)
        np.testing.assert_array_equal(read(gpu, out, x), want)
    gpu.synchronize()


def test_events_mark_places_in_streams(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    m = gpu.allocate(512)
    start, end, plain = Event(enable_timing=True), Event(enable_timing=True), Event()
    assert start.query() and start.device is None and start.cuda_event == 0
    start.wait()
    start.synchronize()
    with pytest.raises(RuntimeError, match="must be recorded"):
        start.elapsed_time(end)
    start.record()
    gpu.fill(m, 1, 512)
    stream = cuda.current_stream()
    assert stream.record_event(end) is end
    with pytest.raises(RuntimeError, match="must be completed"):
        start.elapsed_time(end)
    assert not stream.query()
    end.synchronize()
    assert stream.query() and end.query()
    assert start.elapsed_time(end) > 0
    plain.record()
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        start.elapsed_time(plain)
    with pytest.raises(RuntimeError, match="several processes"):
        Event(interprocess=True)


def test_an_event_belongs_to_one_device() -> None:
    with gpu_for_tests(devices=2):
        e = Event()
        e.record(cuda.current_stream(0))
        with pytest.raises(RuntimeError, match="cuda:0 does not match recording stream's device cuda:1"):
            e.record(cuda.current_stream(1))
        e.wait(cuda.current_stream(1))
        with pytest.raises(ValueError, match="Expected a cuda device, but got: cpu"):
            Stream("cpu")
        assert Stream("cuda:1").device_index == 1
        del e


def test_streams_are_shared_when_there_are_many(fake: FakeLibrary) -> None:
    low, high = Stream.priority_range()
    streams = [Stream(priority=high) for _ in range(40)]
    assert len(set(streams)) == 32 == fake.calls["cuStreamCreateWithPriority"]
    assert Stream(priority=-99) not in [Stream(priority=low)] and low > high


def test_each_thread_has_its_own_current_stream_and_device() -> None:
    with gpu_for_tests(devices=2):
        seen = []

        def other() -> None:
            seen.append((cuda.current_device(), cuda.current_stream().cuda_stream))
            gpu = cuda.gpu()
            seen.append(read(gpu, put(gpu, np.ones(3)), np.ones(3)).sum())

        cuda.set_device(1)
        with Stream() as s:
            assert cuda.current_stream() == s
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert seen == [(0, 0), 3.0]
        assert cuda.current_device() == 1
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            cuda.set_device(2)


# ---- devices


def test_a_device_is_described_for_the_compiler(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    assert cuda.available() and cuda.device_count() == 1 and cuda.opened()
    assert str(gpu.target) == "cuda:sm_90" and gpu.target.units == 132 and gpu.target.cache == 227 << 10
    assert gpu.capability == (9, 0) and gpu.name == "Fake H100 0" and gpu.total_memory == 1 << 30
    assert gpu.memory_info() == (1 << 30, 1 << 30)
    assert gpu.properties.L2_cache_size == 50 << 20
    assert cuda.gpu(0) is gpu
    with pytest.raises(RuntimeError, match="invalid device ordinal: 1, of 1"):
        cuda.gpu(1)


@pytest.mark.skipif(cuda.available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_says_so() -> None:
    assert not cuda.available() and cuda.device_count() == 0 and not cuda.opened()
    for ask in (cuda.gpu, cuda.current_device, Stream, lambda: cuda.set_device(0)):
        with pytest.raises(MissingTargetError, match="device 'cpu'"):
            ask()


def test_a_driver_without_devices_is_a_machine_without_a_gpu() -> None:
    with gpu_for_tests(devices=0):
        assert not cuda.available() and cuda.device_count() == 0


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told_to_be_spawned(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    held = [gpu.allocate(100)]

    def child(pipe) -> None:  # type: ignore[no-untyped-def]
        said = []
        for use in (lambda: gpu.allocate(8 << 20), lambda: gpu.synchronize(), lambda: cuda.gpu().copy_in(held[0], np.ones(3))):
            try:
                use()
            except RuntimeError as error:
                said.append(str(error))
        held.clear()
        pipe.send(said)

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    said = ours.recv()
    process.join()
    assert len(said) == 3 and all("'spawn' start method" in s for s in said)


# ---- the fake itself: each check can fail


def test_the_fake_driver_sees_what_is_wrong() -> None:
    with gpu_for_tests(check=False) as fake:
        gpu = cuda.gpu()
        driver = gpu.driver
        gpu.activate()
        a = driver.allocate(1000)
        driver.free(a)
        with pytest.raises(CudaError, match="INVALID_VALUE"):
            driver.free(a)
        with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
            driver.fill8(a, 0, 10, 0)
        b = driver.allocate(1000)
        with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
            driver.copy(b, b + 2000, 100, 0)
        with pytest.raises(CudaError, match="INVALID_VALUE"):
            driver.copy(b, b + 10, 100, 0)
        source = source_of("pointwise_float32", gpu)
        f = gpu.compile(source)
        n = len(source.parameters)
        for grid, where in (((1, 1, 1), b + 4), ((77, 1, 1), b), ((1, 1, 1), 4096)):
            with pytest.raises(CudaError):
                f.launch(grid, [where] * n)
        with pytest.raises(CudaError, match="INVALID_HANDLE"):
            driver.record_event(12345, 0)
        host = driver.allocate_host(100)
        driver.copy_in(b, host, 100, 0)
        driver.free_host(host)
        np.frombuffer((ctypes.c_char * 1).from_address(b + 1000), np.uint8)[...] = 0
        driver.free(b)
        said = "\n".join(fake.violations)
        for part in (
            "freed before",
            "was freed",
            "lie in no memory",
            "overlap",
            "not a multiple of 16",
            "its source asks for",
            "event 0x3039 does not live",
            "waits to run",
            "beside the 1000 bytes",
        ):
            assert part in said
        driver.allocate(100)
        driver.create_stream()
        with pytest.raises(AssertionError, match=r"(?s)left over: 1 of memory.*left over: 1 of streams"):
            fake.check()


def test_failures_can_be_ordered_of_the_fake(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    fake.fail("cuMemAlloc", 2, after=1, times=2)
    first = gpu.allocate(8 << 20)
    with pytest.raises(OutOfMemoryError):
        gpu.allocate(30 << 20)
    assert gpu.allocate(30 << 20).nbytes and first.nbytes
