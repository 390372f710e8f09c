"""A CUDA driver without a GPU: what flame's runtime does on a device, done on host memory and checked at every call.

    with gpu_for_tests() as fake: ...        flame runs through a fresh FakeDriver; at the end nothing may be left over or wrong

`FakeLibrary` has the entry points of libcuda that `cuda_driver.DECLARATIONS` names, as C functions, so the real `CudaDriver`
and the native launching code run unchanged above it. Device memory is host memory between canaries. A launch unpacks its
parameters as the kernel's source says and runs the kernel in Triton's interpreter.

Work is lazy: a stream's work happens when somebody waits for it (or, a step at a time, asks whether it is done), and not
before. What was not waited for is therefore not there, on every run.

Checked: that calls come after cuInit with their context current; that handles are alive and memory neither freed twice nor
used after it was freed, nor written beside; that parameters, grid, threads and shared memory are those the source was compiled
for and pointers are aligned as promised; that pinned memory outlives the copies from it; that all is
handed back. Failures can be ordered (`fail`, `fail_kernel`).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from fake_cuda_state import (
    ATTRIBUTES,
    CANARY,
    ERRORS,
    FRESH,
    GUARD,
    INVALID_CONTEXT,
    INVALID_HANDLE,
    INVALID_VALUE,
    NOT_FOUND,
    NOT_READY,
    OUT_OF_MEMORY,
    Device,
    Failure,
    FakeEvent,
    FakeFunction,
    FakeStream,
    Mark,
    Memory,
)

from flame.compiler.to_triton import TritonSource
from flame.primitive import placement
from flame.runtime import cuda
from flame.runtime.cuda_driver import Attribute, CudaDriver, KernelNode
from flame.runtime.triton_tools import run_interpreted


class FakeDriver(CudaDriver):
    """`CudaDriver` over a FakeLibrary, which learns here what a binary was compiled from."""

    def __init__(self, library: FakeLibrary | None = None):
        self.fake = FakeLibrary() if library is None else library
        super().__init__(self.fake)

    def load_module(self, code: bytes, source: object = None) -> int:
        assert isinstance(source, TritonSource)
        self.fake.loading = (code, source)
        self.fake.announced(code, source)
        return super().load_module(code, source)


class FakeLibrary(Device):
    """libcuda, as far as flame calls it."""

    # ---- what bytes are: a subclass has launches alone

    def _room(self, nbytes: int) -> np.ndarray:
        """Bytes for an allocation and what is around it."""
        raw = np.empty(nbytes, np.uint8)
        raw[: min(nbytes, 1 << 16)] = FRESH
        return raw

    def _move(self, to: int, start: int, nbytes: int) -> None:
        ctypes.memmove(to, start, nbytes)

    def _aside(self, host: int, nbytes: int) -> Any:
        """A copy of bytes of the host, and where it is."""
        return ctypes.create_string_buffer(ctypes.string_at(host, nbytes), nbytes)

    def _set(self, to: int, nbytes: int, value: bytes) -> None:
        ctypes.memmove(to, value * (nbytes // len(value)), nbytes)

    def _run(self, source: TritonSource, buffers: dict[str, tuple[int, Any]], symbols: dict[str, int]) -> None:
        """A kernel, on buffers of (address, dtype)."""
        arrays = {}
        for buffer, (address, dtype) in buffers.items():
            m = self._find(address, 0, f"{source.entry}: {buffer}")
            count = (m.address + m.size - address) // dtype.itemsize
            whole = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
            arrays[buffer] = np.frombuffer(whole, np.uint8).view(dtype.numpy)
        run_interpreted(source, arrays, symbols)

    # ---- calls

    def _cuInit(self, flags: int) -> None:
        self.started = True

    def _cuDriverGetVersion(self, out: int) -> None:
        self._put(out, 13000, ctypes.c_int)

    def _text(self, code: int, out: int, which: int) -> int:
        if code not in ERRORS:
            return INVALID_VALUE
        words = self._words.setdefault(code, tuple(w.encode() for w in ERRORS[code]))  # type: ignore[arg-type]
        ctypes.c_char_p.from_address(out).value = words[which]
        return 0

    def _cuGetErrorName(self, code: int, out: int) -> int:
        return self._text(code, out, 0)

    def _cuGetErrorString(self, code: int, out: int) -> int:
        return self._text(code, out, 1)

    def _cuDeviceGetCount(self, out: int) -> None:
        self._put(out, self.devices, ctypes.c_int)

    def _cuDeviceGetName(self, out: int, length: int, device: int) -> None:
        text = f"Fake H100 {self._device(device)}".encode()[: length - 1] + b"\0"
        ctypes.memmove(out, text, len(text))

    def _cuDeviceTotalMem(self, out: int, device: int) -> None:
        self._device(device)
        self._put(out, self.capacity)

    def _cuDeviceGetAttribute(self, out: int, which: int, device: int) -> None:
        self._put(out, ATTRIBUTES.get(Attribute(which), self._device(device)), ctypes.c_int)

    def _cuDeviceCanAccessPeer(self, out: int, device: int, peer: int) -> None:
        self._put(out, int(self._device(device) != self._device(peer)), ctypes.c_int)

    def _cuDevicePrimaryCtxRetain(self, out: int, device: int) -> None:
        context = 0x100 + self._device(device)
        self.contexts[context] += 1
        self._put(out, context)

    def _cuDevicePrimaryCtxRelease(self, device: int) -> None:
        context = 0x100 + self._device(device)
        if not self.contexts[context]:
            raise self._refuse(f"the context of device {device} was not retained", INVALID_CONTEXT)
        self.contexts[context] -= 1

    def _cuCtxSetCurrent(self, context: int) -> None:
        if context and not self.contexts[context]:
            raise self._refuse(f"context {context:#x} does not live", INVALID_CONTEXT)
        self._local.context = context

    def _cuCtxSynchronize(self) -> None:
        self._drain_all()

    def _cuCtxGetStreamPriorityRange(self, least: int, greatest: int) -> None:
        self._put(least, 0, ctypes.c_int)
        self._put(greatest, -5, ctypes.c_int)

    def _cuStreamCreateWithPriority(self, out: int, flags: int, priority: int) -> None:
        if not -5 <= priority <= 0:
            raise self._refuse(f"priority {priority}")
        handle = self._handle()
        self.streams[handle] = FakeStream(self.context)
        self._put(out, handle)

    def _cuStreamDestroy(self, handle: int) -> None:
        self._drain(self._stream(handle))
        del self.streams[handle]

    def _cuStreamSynchronize(self, handle: int) -> None:
        self._drain(self._stream(handle))

    def _cuStreamQuery(self, handle: int) -> None:
        stream = self._stream(handle)
        if stream.work:
            self._step(stream)
            raise Failure(NOT_READY)

    def _cuStreamWaitEvent(self, handle: int, event: int, flags: int) -> None:
        e = self._event(event)
        if e.mark is not None:
            self._submit(handle, ("wait", e.mark))

    def _cuEventCreate(self, out: int, flags: int) -> None:
        handle = self._handle()
        self.events[handle] = FakeEvent(self.context, not flags & 2)
        self._put(out, handle)

    def _cuEventDestroy(self, handle: int) -> None:
        self._event(handle)
        del self.events[handle]

    def _cuEventRecord(self, handle: int, stream: int) -> None:
        event, s = self._event(handle), self._stream(stream)
        if event.context != self.context:
            raise self._refuse("an event is recorded in another context than it was made in", INVALID_HANDLE)
        event.mark = Mark(s)
        self._submit(stream, ("record", event.mark))

    def _cuEventSynchronize(self, handle: int) -> None:
        mark = self._event(handle).mark
        if mark is not None:
            self._pass(mark)

    def _cuEventQuery(self, handle: int) -> None:
        mark = self._event(handle).mark
        if mark is not None and not mark.when:
            self._step(mark.stream)
            raise Failure(NOT_READY)

    def _cuEventElapsedTime(self, out: int, start: int, end: int) -> None:
        a, b = self._event(start), self._event(end)
        if not (a.timing and b.timing and a.mark and b.mark):
            raise self._refuse("the time of an event that has none", INVALID_HANDLE)
        if not (a.mark.when and b.mark.when):
            raise Failure(NOT_READY)
        self._put(out, b.mark.when - a.mark.when, ctypes.c_float)  # type: ignore[arg-type]

    def _cuMemGetInfo(self, free: int, total: int) -> None:
        self._put(free, self.capacity - self.allocated())
        self._put(total, self.capacity)

    def _allocate(self, out: int, nbytes: int, pinned: bool) -> None:
        if not nbytes:
            raise self._refuse("an allocation of 0 bytes")
        if not pinned and self.allocated() + nbytes > self.capacity:
            raise Failure(OUT_OF_MEMORY)
        raw = self._room(nbytes + 3 * GUARD)
        start = -(raw.ctypes.data + GUARD) % 512
        held = raw[start : start + nbytes + 2 * GUARD]
        held[:GUARD] = held[GUARD + nbytes :] = CANARY
        m = Memory(held.ctypes.data + GUARD, nbytes, held, self.context, pinned)
        self.memory[m.address] = m
        self.freed = {a: n for a, n in self.freed.items() if a + n <= m.address or m.address + m.size <= a}
        self._put(out, m.address)

    def _release(self, address: int, pinned: bool) -> None:
        m = self.memory.get(address)
        if m is None or m.pinned != pinned:
            twice = address in self.freed
            raise self._refuse(f"{address:#x} was {'freed before' if twice else 'never allocated'}", INVALID_VALUE)
        if pinned and m.pending:
            self.wrong(f"pinned memory at {address:#x} is freed while a copy of it waits to run")
        self._drain_all()
        if not m.intact():
            self.wrong(f"memory beside the {m.size} bytes at {address:#x} was written to")
        del self.memory[address]
        self.freed[address] = m.size

    def _cuMemAlloc(self, out: int, nbytes: int) -> None:
        self._allocate(out, nbytes, False)

    def _cuMemFree(self, address: int) -> None:
        self._release(address, False)

    def _cuMemHostAlloc(self, out: int, nbytes: int, flags: int) -> None:
        self._allocate(out, nbytes, True)

    def _cuMemFreeHost(self, address: int) -> None:
        self._release(address, True)

    def _transfer(self, to: int, start: int, nbytes: int, stream: int, pinned: Memory | None, checked: list[int]) -> None:
        for address in checked:
            self._find(address, nbytes, "a copy")
        if pinned is not None:
            pinned.pending += 1

        def work() -> None:
            if pinned is not None:
                pinned.pending -= 1
            for address in checked:
                self._find(address, nbytes, "a copy")
            self._move(to, start, nbytes)

        self._submit(stream, work)

    def _cuMemcpyHtoDAsync(self, to: int, host: int, nbytes: int, stream: int) -> None:
        pinned = self._pinned(host, nbytes)
        if pinned is None:  # the driver copies it aside before it returns
            aside = self._aside(host, nbytes)
            self._find(to, nbytes, "a copy")
            self._submit(stream, lambda: self._move(to, ctypes.addressof(aside), nbytes))
            return
        self._transfer(to, host, nbytes, stream, pinned, [to])

    def _cuMemcpyDtoHAsync(self, host: int, start: int, nbytes: int, stream: int) -> None:
        pinned = self._pinned(host, nbytes)
        self._transfer(host, start, nbytes, stream, pinned, [start])
        if pinned is None:
            self._drain(self._stream(stream))

    def _cuMemcpyDtoDAsync(self, to: int, start: int, nbytes: int, stream: int) -> None:
        if max(to, start) < min(to, start) + nbytes:
            raise self._refuse("a copy between stretches that overlap")
        self._transfer(to, start, nbytes, stream, None, [to, start])

    def _cuMemcpyPeerAsync(self, to: int, mine: int, start: int, theirs: int, nbytes: int, stream: int) -> None:
        for address, context in ((to, mine), (start, theirs)):
            if self._find(address, nbytes, "a copy").context != context:
                raise self._refuse("a copy names another device than its memory is on")
        self._transfer(to, start, nbytes, stream, None, [to, start])

    def _fill(self, to: int, nbytes: int, stream: int, value: bytes) -> None:
        self._find(to, nbytes, "a fill")

        def work() -> None:
            self._find(to, nbytes, "a fill")
            self._set(to, nbytes, value)

        self._submit(stream, work)

    def _cuMemsetD8Async(self, to: int, value: int, count: int, stream: int) -> None:
        self._fill(to, count, stream, bytes([value]))

    def _cuMemsetD32Async(self, to: int, value: int, count: int, stream: int) -> None:
        self._fill(to, 4 * count, stream, value.to_bytes(4, "little"))

    def _cuModuleLoadData(self, out: int, image: int) -> None:
        if self.loading is None:
            raise self._refuse("a module of unknown source")
        code, source = self.loading
        self.loading = None
        if ctypes.string_at(image, len(code)) != code:
            raise self._refuse("a module's image is not the binary that was announced")
        handle = self._handle()
        self.modules[handle], self.images[handle] = source, code
        self._put(out, handle)

    def _cuModuleUnload(self, handle: int) -> None:
        if handle not in self.modules:
            raise self._refuse("a module that does not live is unloaded", INVALID_HANDLE)
        self._drain_all()
        del self.modules[handle], self.images[handle]

    def _cuModuleGetFunction(self, out: int, module: int, name: int) -> None:
        if module not in self.modules:
            raise self._refuse("a function of a module that does not live", INVALID_HANDLE)
        if ctypes.string_at(name).decode() != self.modules[module].entry:
            raise Failure(NOT_FOUND)
        handle = self._handle()
        self.functions[handle] = FakeFunction(self.modules[module], module, self.images[module])
        self._put(out, handle)

    def _cuFuncSetAttribute(self, function: int, which: int, value: int) -> None:
        if which != 8 or value > ATTRIBUTES[Attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN]:
            raise self._refuse(f"function attribute {which} = {value}")
        self.functions[function].dynamic = value

    def _cuLaunchKernel(
        self,
        function: int,
        x: int,
        y: int,
        z: int,
        bx: int,
        by: int,
        bz: int,
        shared: int,
        stream: int,
        kernel: int,
        extra: int,
    ) -> None:
        self._submit(stream, self._launch(function, (x, y, z), (bx, by, bz), shared, kernel, extra))

    def _launch(
        self, function: int, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, kernel: int, extra: int
    ) -> Callable[[], None]:
        """A launch that is checked, to be run later."""
        f = self.functions.get(function)
        if f is None or f.module not in self.modules:
            raise self._refuse("a launch of a function that does not live", INVALID_HANDLE)
        source = f.source
        name = source.entry
        if extra or not kernel:
            raise self._refuse(f"{name}: parameters are passed as pointers")
        binary = self.compiled.get(f.code)
        threads = source.warps * 32 if binary is None else binary.threads
        if block != (threads, 1, 1):
            raise self._refuse(f"{name}: launched with {block} threads, compiled for {threads}")
        if shared > f.dynamic:
            raise self._refuse(f"{name}: {shared} bytes of shared memory without leave")
        if binary is not None and binary.shared != shared:
            raise self._refuse(f"{name}: launched with {shared} bytes of shared memory, compiled for {binary.shared}")
        pointers = (ctypes.c_uint64 * (len(source.parameters) + 2)).from_address(kernel)
        buffers: dict[str, tuple[int, Any]] = {}
        symbols: dict[str, int] = {}
        for p, at in zip(source.parameters, pointers):
            if p.symbol:
                kind = ctypes.c_int32 if p.dtype.itemsize == 4 else ctypes.c_int64
                symbols[p.symbol] = kind.from_address(at).value
                continue
            address = ctypes.c_uint64.from_address(at).value
            buffers[p.buffer] = (address, p.dtype)
            if address % 16:
                raise self._refuse(f"{name}: {p.name} is at {address:#x}, which is not a multiple of 16")
            self._find(address, 0, f"{name}: {p.name}")
        if binary is not None:
            first, *rest = (ctypes.c_uint64.from_address(at).value for at in pointers[len(source.parameters) :])
            if any(rest) or bool(first) != bool(binary.scratch):
                raise self._refuse(f"{name}: of its scratch pointers only that of memory it is lent is not null")
            if first:
                self._find(first, math.prod(grid) * binary.scratch, f"{name}: memory that it is lent")
        if not source.fits(symbols):
            raise self._refuse(f"{name}: sizes {symbols} need 64-bit offsets")
        if source.grid(symbols) != grid or 0 in grid:
            raise self._refuse(f"{name}: launched as {grid} programs, its source asks for {source.grid(symbols)}")

        def work() -> None:
            if name in self._failing:
                self.broken = self._failing[name]
                raise Failure(self.broken)
            self._run(source, buffers, symbols)
            self._clock += self.cost(source)
            self.launches.append(name)

        return work

    def _cuGraphCreate(self, out: int, flags: int) -> None:
        graph = self._handle()
        self.graphs[graph] = {}
        self._put(out, graph)

    def _node(self, address: int) -> Callable[[], None]:
        n = KernelNode.from_address(address)
        if n.kernel or n.context:
            raise self._refuse("a node of a kernel or context that is not said by its function")
        return self._launch(n.function, tuple(n.grid), tuple(n.block), n.shared, n.parameters or 0, n.extra or 0)

    def _cuGraphAddKernelNode(self, out: int, graph: int, after: int, count: int, node: int) -> None:
        nodes = self.graphs[graph]
        before = (ctypes.c_uint64 * count).from_address(after)[:] if count else []
        if before != list(nodes)[-1:]:
            raise self._refuse("a graph's nodes are to run one after another")
        handle = self._handle()
        nodes[handle] = self._node(node)
        self._put(out, handle)

    def _cuGraphExecKernelNodeSetParams(self, executable: int, node: int, launch: int) -> None:
        if node not in self.executables.get(executable, {}):
            raise self._refuse("a node that the executable graph does not have", INVALID_HANDLE)
        self.executables[executable][node] = self._node(launch)

    def _cuGraphInstantiate(self, out: int, graph: int, flags: int) -> None:
        if graph not in self.graphs:
            raise self._refuse("a graph that does not live", INVALID_HANDLE)
        executable = self._handle()
        self.executables[executable] = dict(self.graphs[graph])
        self._put(out, executable)

    def _cuGraphDestroy(self, graph: int) -> None:
        if self.graphs.pop(graph, None) is None:
            raise self._refuse("a graph is destroyed twice", INVALID_HANDLE)

    def _cuGraphLaunch(self, executable: int, stream: int) -> None:
        if executable not in self.executables:
            raise self._refuse("a graph that does not live is launched", INVALID_HANDLE)
        self._submit(stream, ("graph", list(self.executables[executable].values())))

    def _cuGraphExecDestroy(self, executable: int) -> None:
        if self.executables.pop(executable, None) is None:
            raise self._refuse("an executable graph is destroyed twice", INVALID_HANDLE)


@contextmanager
def gpu_for_tests(check: bool = True, library: FakeLibrary | None = None, **kwargs: Any) -> Iterator[FakeLibrary]:
    """flame runs on a fake device (see FakeLibrary for what can be said of it); at the end all must be well."""
    driver = FakeDriver(FakeLibrary(**kwargs) if library is None else library)
    try:
        with cuda.use_driver(driver, driver.fake.compiler(), lambda: driver.fake.products()):
            yield driver.fake
    finally:
        placement.gpu = False
    if check:
        driver.fake.check()
