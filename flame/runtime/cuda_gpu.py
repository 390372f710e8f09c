"""One GPU: its memory, copies, and kernels that can be launched. Streams are the driver's handles here.

    Gpu(process, index)                             opened: its primary context is retained. Made by `cuda.gpu`
    gpu.allocate(nbytes) -> Memory                  freed when it dies; gpu.copy_in, copy_out, copy, fill
    gpu.load(binary, source) -> Function            function.launch(grid, parameters)
    gpu.plan(steps, words), gpu.run(plan, ...)      many launches by one call

Work goes to the calling thread's current stream unless another is named. Every call makes the context current on its thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Final, NoReturn

import numpy as np

from flame.compiler.target import Target
from flame.compiler.target import gpu as described
from flame.compiler.to_triton import TritonSource
from flame.errors import CompileError, CudaError
from flame.knobs import knobs
from flame.runtime import gpu_kernels
from flame.runtime.cuda_driver import Attribute, Driver
from flame.runtime.cuda_graph import GraphPlan, Graphs
from flame.runtime.cuda_host import PinnedAllocator, plain_bytes
from flame.runtime.cuda_memory import Allocator, Block
from flame.runtime.cuda_plan import Launcher, LaunchPlan, LaunchStep, failure
from flame.runtime.device import device
from flame.runtime.gpu_checks import Checks
from flame.runtime.locks import Lock
from flame.runtime.triton_tools import Binary

#: bytes up to which host memory is copied aside, so that a copy to the device need not be waited for
_STAGED: Final = 64 << 10
#: streams of one urgency that a device has; more `Stream`s share them, as in PyTorch
_STREAMS: Final = 32

Compiler = Callable[[TritonSource, str], Binary]


class _Local(threading.local):
    """What is current on a thread: a device, and a stream of each."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, int] = {}


@dataclass(slots=True)
class Process:
    """What the devices of a process share."""

    driver: Driver
    compiler: Compiler
    launcher: Launcher
    #: a library of matrix products; raises MissingTargetError
    products: Callable[[], Any]
    local: _Local = field(default_factory=_Local)
    forked: bool = False  #: it is a child of one that had opened the driver


class Memory:
    """`nbytes` at `address` on a device, until it dies. (What `Gpu.adopt` made keeps its owner alive instead.)"""

    __slots__ = ("__weakref__", "_block", "_owner", "address", "gpu", "nbytes")

    def __init__(self, gpu: Gpu, address: int, nbytes: int, block: Block | None, owner: object = None):
        self.gpu, self.address, self.nbytes = gpu, address, nbytes
        self._block, self._owner = block, owner

    def __del__(self) -> None:
        block = getattr(self, "_block", None)  # (one that was never begun has none)
        if block is not None:
            self.gpu.memory.returned.append(block)

    @property
    def device(self) -> device:
        return self.gpu.device

    def record_stream(self, stream: int) -> None:
        """`stream` works on it: it is not handed out again before that stream has passed the place where it died."""
        if self._block is not None:
            self.gpu.memory.record(self._block, stream)

    def __repr__(self) -> str:
        return f"Memory({self.nbytes} bytes at {self.address:#x} on {self.device})"


@dataclass(frozen=True, slots=True)
class Properties:
    """What `flame.cuda.get_device_properties` answers, by PyTorch's names."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    warp_size: int
    max_threads_per_multi_processor: int
    regs_per_multiprocessor: int
    shared_memory_per_block: int
    shared_memory_per_block_optin: int
    shared_memory_per_multiprocessor: int
    L2_cache_size: int
    is_integrated: int
    is_multi_gpu_board: int
    pci_bus_id: int
    pci_device_id: int
    pci_domain_id: int


class Function:
    """A loaded kernel. `parameters` are the source's; the pointers that Triton adds after them are passed by `launch`."""

    __slots__ = ("gpu", "handle", "name", "note", "nulls", "parameters", "scratch", "shared", "threads")

    def __init__(self, gpu: Gpu, handle: int, binary: Binary, source: TritonSource, note: str):
        self.gpu, self.handle, self.name, self.parameters = gpu, handle, source.entry, source.parameters
        self.threads, self.shared = binary.threads, binary.shared
        self.nulls = (0,) * binary.scratch_pointers
        self.scratch = binary.scratch  #: bytes that each program is lent
        #: what errors call it: its name, and the user's lines where they are known
        self.note = note or source.entry

    def launch(self, grid: tuple[int, int, int], parameters: Sequence[int | Memory], stream: int | None = None) -> None:
        """Put `grid` programs on a stream (by default the current one). Parameters are addresses or Memory for buffers, ints
        for sizes, in the source's order. Memory must be kept until the stream has passed, or have been allocated on it.

        Raises TypeError for another number of parameters, CudaError where the driver refuses.
        """
        if len(parameters) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} parameters, got {len(parameters)}")
        x, y, z = grid
        if not (x and y and z):
            return
        on = self.gpu
        values = [p.address if type(p) is Memory else p for p in parameters]
        queue = on.current_stream if stream is None else stream
        nulls = self.nulls
        if self.scratch:  # freed below in the stream's order: the next to have it comes after this launch
            lent = on.allocate(x * y * z * self.scratch, self.note, stream=queue)
            nulls = (lent.address, *nulls[1:])
        answer = on.launcher.launch(self.handle, x, y, z, self.threads, self.shared, on.context, queue, *values, *nulls)
        if answer is not None:
            raise on.error(failure(answer)[1], f"the launch of {self.note}")
        on.recent.append(self.note)
        if knobs.launch_blocking:
            on.wait_blocking(queue)

    def step(
        self, grid: tuple[int, int, int], places: Sequence[tuple[int, int]], note: str = "", lent: tuple[int, int] | None = None
    ) -> LaunchStep:
        """This kernel as a step of a plan: `places` as in `cuda_plan`, one for each of `parameters`, and for the memory that it is
        lent: `scratch` bytes for each program."""
        if len(places) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} parameters, got {len(places)} places")
        nulls = tuple((n, 0) for n in self.nulls)
        if self.scratch:
            if lent is None:
                raise TypeError(f"{self.name} is lent {self.scratch} bytes for each of its programs: their place is missing")
            nulls = (lent, *nulls[1:])
        return LaunchStep(self.handle, grid, self.threads, self.shared, (*places, *nulls), note or self.note)

    def __repr__(self) -> str:
        return f"Function({self.name} on {self.gpu.device})"


class Gpu:
    """One device, opened. Made by `gpu()`."""

    def __init__(self, process: Process, index: int):
        driver = self.driver = process.driver
        self._process = process
        self.local = process.local
        self._alive()
        self.index = index
        self.device = _named(index)
        self.name = driver.device_name(index)
        self.total_memory = driver.total_memory(index)
        self.context = driver.retain_context(index)
        self.launcher = process.launcher
        self.memory = Allocator(driver, self.activate, f"GPU {index}", knobs.cuda_caching)
        self.pinned = PinnedAllocator(driver, self.activate)
        self.graphs = Graphs(driver, self.activate, self.launcher.enter)
        #: what was launched last, for errors that show late
        self.recent: deque[str] = deque(maxlen=8)
        #: whether indices were in range
        self.checks = Checks(self)
        self._lock = Lock()
        self._functions: dict[tuple[str, bytes], Function] = {}
        self._modules: list[int] = []
        self._streams: dict[int, list[int]] = {}
        self._streams_given: dict[int, int] = {}
        self._events: dict[tuple[bool, bool], deque[int]] = {}
        self._libraries: dict[str, Any] = {}

    # ---- what it is

    @cached_property
    def properties(self) -> Properties:
        ask = lambda a: self.driver.attribute(self.index, a)
        return Properties(
            self.name,
            ask(Attribute.COMPUTE_CAPABILITY_MAJOR),
            ask(Attribute.COMPUTE_CAPABILITY_MINOR),
            self.total_memory,
            ask(Attribute.MULTIPROCESSOR_COUNT),
            ask(Attribute.WARP_SIZE),
            ask(Attribute.MAX_THREADS_PER_MULTIPROCESSOR),
            ask(Attribute.MAX_REGISTERS_PER_MULTIPROCESSOR),
            ask(Attribute.MAX_SHARED_MEMORY_PER_BLOCK),
            ask(Attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            ask(Attribute.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
            ask(Attribute.L2_CACHE_SIZE),
            ask(Attribute.INTEGRATED),
            ask(Attribute.MULTI_GPU_BOARD),
            ask(Attribute.PCI_BUS_ID),
            ask(Attribute.PCI_DEVICE_ID),
            ask(Attribute.PCI_DOMAIN_ID),
        )

    @property
    def capability(self) -> tuple[int, int]:
        return self.properties.major, self.properties.minor

    @cached_property
    def _targets(self) -> dict[bool, Target]:
        """By whether float32 may be multiplied on tensor cores."""
        p = self.properties
        sheet = described(f"sm_{p.major}{p.minor}")
        plain = replace(sheet, lanes=p.warp_size, units=p.multi_processor_count, cache=p.shared_memory_per_block_optin)
        return {False: plain, True: replace(plain, matmul_precision="high")}

    @property
    def target(self) -> Target:
        """The device as the compiler needs to know it: its architecture's data sheet, with its own figures, and the precision
        that is chosen for float32."""
        return self._targets[knobs.matmul_precision != "highest"]

    # ---- calling the driver

    def activate(self) -> None:
        """Make its context current on this thread."""
        self._alive()
        self.driver.set_current(self.context)

    def _alive(self) -> None:
        if self._process.forked:
            raise RuntimeError(
                "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the 'spawn' "
                "start method"
            )

    @contextmanager
    def calling(self) -> Iterator[None]:
        """The driver may be called for this device; an error says what was launched before."""
        self.activate()
        try:
            yield
        except CudaError as error:
            self._note(error)
            raise

    def error(self, code: int, what: str) -> RuntimeError:
        error = self.driver.error(code, what, self.context)
        self._note(error)
        return error

    def _note(self, error: RuntimeError) -> None:
        if self.recent:
            error.add_note(
                f"launched last on {self.device}: {', '.join(self.recent)}. A kernel that fails is noticed by a later call: "
                "run with CUDA_LAUNCH_BLOCKING=1 to be told at once which it is."
            )

    def wait_blocking(self, stream: int) -> None:
        """After a launch, under CUDA_LAUNCH_BLOCKING=1."""
        with self.calling():
            self.driver.synchronize_stream(stream)

    def synchronize(self) -> None:
        """Wait for all work on the device. Raises PositionError where an index was out of range."""
        self.checks.send()
        with self.calling():
            self.driver.synchronize()
        self.checks.look()

    def synchronize_stream(self, stream: int) -> None:
        """Wait for all work of a stream. Raises PositionError where an index was out of range."""
        if self.checks.waiting:
            self.checks.send(stream)
        with self.calling():
            self.driver.synchronize_stream(stream)
        if self.checks.sent:
            self.checks.look()

    # ---- streams and events

    @property
    def current_stream(self) -> int:
        """The calling thread's; 0 is the device's default stream."""
        return self.local.streams.get(self.index, 0)

    def set_stream(self, stream: int) -> None:
        self.local.streams[self.index] = stream

    def wait_for(self, stream: int, of: Gpu, other: int) -> None:
        """Work given to `stream` from now on waits for what `other` of the device `of` has been given so far."""
        with of.calling():
            event = of.take_event(False, False)
            of.driver.record_event(event, other)
        with self.calling():
            self.driver.wait_event(stream, event)
        of.give_event(event, False, False)  # (whoever waits does so for the record that there was)

    def stream_handle(self, priority: int) -> int:
        """One of the device's streams of that urgency, in turn."""
        with self._lock, self.calling():
            least, greatest = self.driver.priority_range()
            priority = max(greatest, min(priority, least))
            streams = self._streams.setdefault(priority, [])
            n = self._streams_given.get(priority, 0)
            self._streams_given[priority] = n + 1
            if len(streams) < _STREAMS:
                streams.append(self.driver.create_stream(priority))
            return streams[n % _STREAMS]

    def take_event(self, timing: bool, blocking: bool) -> int:
        try:
            return self._events[timing, blocking].pop()
        except (KeyError, IndexError):
            return self.driver.create_event(timing, blocking)

    def give_event(self, handle: int, timing: bool, blocking: bool) -> None:
        """May be called anywhere: it asks nothing of the driver."""
        self._events.setdefault((timing, blocking), deque()).append(handle)

    # ---- memory

    def allocate(self, nbytes: int, user_line: str = "", stream: int | None = None) -> Memory:
        """Memory for work on the stream (by default the current one); `user_line` says who asked, should it run out.

        Raises OutOfMemoryError.
        """
        queue = self.local.streams.get(self.index, 0) if stream is None else stream
        block: Block = self.memory.take(nbytes, queue, user_line)
        return Memory(self, block.address, nbytes, block)

    def adopt(self, address: int, nbytes: int, owner: object) -> Memory:
        """Memory that is somebody else's, who is kept alive with it."""
        return Memory(self, address, nbytes, None, owner)

    def copy_in(
        self, destination: Memory | int, source: np.ndarray, stream: int | None = None, non_blocking: bool = False
    ) -> None:
        """Copy a C-contiguous host array to the device. When it returns the array may be changed, unless it is pinned and
        `non_blocking` is asked for: then it must keep its contents until the stream has passed."""
        if not plain_bytes(source, "copy_in(): the source").nbytes:
            return
        queue, to = self._queue(stream), _address(destination)
        nbytes = source.nbytes
        with self.calling():
            block = self.pinned.find(source)
            if block is None and nbytes <= _STAGED:
                block, address = self.pinned.stage(source)
                self.driver.copy_in(to, address, nbytes, queue)
                self.pinned.mark(block, queue)
                self.pinned.give(block)
                return
            self.driver.copy_in(to, source.ctypes.data, nbytes, queue)
            if block is not None and non_blocking:
                self.pinned.mark(block, queue)
            else:
                self.driver.synchronize_stream(queue)

    def copy_out(
        self, destination: np.ndarray, source: Memory | int, stream: int | None = None, non_blocking: bool = False
    ) -> None:
        """Copy from the device to a C-contiguous host array. It is filled when this returns, unless it is pinned and
        `non_blocking` is asked for: then when the stream has passed. Raises PositionError where an index was out of range in
        work that was waited for."""
        if not plain_bytes(destination, "copy_out(): the destination").nbytes:
            return
        if not destination.flags.writeable:
            raise ValueError("copy_out(): the destination is read-only")
        queue = self._queue(stream)
        block = self.pinned.find(destination) if non_blocking else None
        if block is None and self.checks.waiting:
            self.checks.send(queue)
        with self.calling():
            self.driver.copy_out(destination.ctypes.data, _address(source), destination.nbytes, queue)
            if block is not None:
                self.pinned.mark(block, queue)
                return
            self.driver.synchronize_stream(queue)
        if self.checks.sent:
            self.checks.look()

    def copy(
        self, destination: Memory | int, source: Memory | int, nbytes: int, stream: int | None = None, of: Gpu | None = None
    ) -> None:
        """Copy on the device, or from the device `of`, whose current stream is waited for. The stretches may not overlap."""
        if not nbytes:
            return
        queue, to, start = self._queue(stream), _address(destination), _address(source)
        if of is None or of is self:
            with self.calling():
                self.driver.copy(to, start, nbytes, queue)
            return
        theirs = of.current_stream
        self.wait_for(queue, of, theirs)
        with self.calling():
            self.driver.copy_peer(to, self.context, start, of.context, nbytes, queue)
        of.wait_for(theirs, self, queue)  # so that what is freed there is not overwritten before it was read

    def fill(self, destination: Memory | int, byte: int, nbytes: int, stream: int | None = None) -> None:
        """Set every byte."""
        if nbytes:
            queue = self._queue(stream)
            with self.calling():
                self.driver.fill8(_address(destination), byte & 0xFF, nbytes, queue)

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes of the device, by the driver."""
        with self.calling():
            return self.driver.memory_info()

    def _queue(self, stream: int | None) -> int:
        return self.current_stream if stream is None else stream

    # ---- kernels

    def load(self, binary: Binary, source: TritonSource, note: str = "") -> Function:
        """A kernel ready to launch. `note` is what errors call it (its name and the user's lines). Equal code is loaded once.

        Raises CompileError where it was compiled for another device or needs more shared memory than this one has.
        """
        key = (source.entry, binary.code)
        with self._lock:
            found = self._functions.get(key)
            if found is not None:
                return found
            most = self.properties.shared_memory_per_block_optin
            if binary.arch.rstrip("a") != self.target.arch:
                raise CompileError(f"{source.entry} was compiled for {binary.arch}; {self.device} is {self.target.arch}")
            if binary.shared > most:
                raise CompileError(
                    f"{source.entry} needs {binary.shared} bytes of shared memory, {self.device} ({self.name}) has {most}"
                )
            with self.calling():
                try:
                    module = self.driver.load_module(binary.code, source)
                    self._modules.append(module)
                    handle = self.driver.function(module, source.entry)
                    if binary.shared > self.properties.shared_memory_per_block:
                        self.driver.allow_shared(handle, binary.shared)
                except RuntimeError as error:
                    error.add_note(f"while loading {note or source.entry}")
                    raise
            found = self._functions[key] = Function(self, handle, binary, source, note)
            return found

    def prepare(self, sources: Sequence[TritonSource]) -> None:
        """Have sources that `compile` will be asked for compiled side by side."""
        if self._process.compiler is gpu_kernels.binary_of:
            gpu_kernels.prepare(sources, self.target.arch)

    def compile(self, source: TritonSource, note: str = "") -> Function:
        """A source compiled for this device and loaded. Raises CompileError."""
        return self.load(self._process.compiler(source, self.target.arch), source, note)

    def library(self, name: str, make: Callable[[], Any]) -> Any:
        """What a library keeps on this device, made by the first call; its `close` is called before the device's own."""
        with self._lock:
            if name not in self._libraries:
                self._libraries[name] = make()
            return self._libraries[name]

    def products(self) -> Any:
        """The library of matrix products. Raises MissingTargetError where there is none."""
        return self._process.products()

    def plan(self, steps: Sequence[LaunchStep], words: int, graph: bool = False) -> LaunchPlan:
        """The steps as one plan, for calls with `words` addresses and numbers of their own. `graph`: launch it as a graph of
        the driver where that pays."""
        return GraphPlan(steps, words) if graph else LaunchPlan(steps, words)

    def run(self, plan: LaunchPlan, arena: int, *words: int, stream: int | None = None) -> None:
        """Put a plan's launches on a stream. Raises TypeError for another number of words, CudaError where a launch fails."""
        self.put(plan, self._queue(stream), arena, words)

    def put(self, plan: LaunchPlan, queue: int, arena: int, words: Sequence[int]) -> None:
        """The same, of words that are at hand."""
        if knobs.launch_blocking:
            self._run_blocking(plan, arena, words, queue)
            return
        if type(plan) is GraphPlan:
            self._alive()
            answer = self.graphs.run(plan, self.context, queue, arena, words)
        else:
            answer = self.launcher.enter(*(plan.address, self.context, queue, arena, *words))
        if answer is not None:
            self._failed(plan, answer)
        self.recent.append(plan.note)

    def _run_blocking(self, plan: LaunchPlan, arena: int, words: Sequence[int], queue: int) -> None:
        self.run_apart(plan, arena, words, queue, lambda step: self.wait_blocking(queue))

    def _failed(self, plan: LaunchPlan, answer: int) -> NoReturn:
        step, code = failure(answer)
        raise self.error(code, "a launch" if step is None else f"the launch of {plan.steps[step].note}")

    def run_apart(
        self, plan: LaunchPlan, arena: int, words: Sequence[int], queue: int, after: Callable[[LaunchStep], None]
    ) -> None:
        """A step at a time; `after` is called when one was put on the stream."""
        if len(words) + 2 != plan.bases:
            failure(-1)
        bases = (0, arena, *words)
        for s in plan.steps:
            values = [bases[base] + offset for base, offset in s.places]
            self.recent.append(s.note)
            answer = self.launcher.launch(s.function, *s.grid, s.threads, s.shared, self.context, queue, *values)
            if answer is not None:
                raise self.error(failure(answer)[1], f"the launch of {s.note}")
            after(s)

    def close(self) -> None:
        """Hand everything back to the driver."""
        self.activate()
        self.driver.synchronize()
        self.checks.close()
        for library in self._libraries.values():
            library.close()
        self._libraries.clear()
        self.graphs.close()
        self.memory.close()
        self.pinned.close()
        for events in self._events.values():
            for event in events:
                self.driver.destroy_event(event)
        for streams in self._streams.values():
            for stream in streams:
                self.driver.destroy_stream(stream)
        for module in self._modules:
            self.driver.unload_module(module)
        self._functions.clear()
        self.driver.release_context(self.index)

    def __repr__(self) -> str:
        return f"Gpu({self.device}: {self.name})"


@cache
def _named(index: int) -> device:
    """One object for each device of the process, so that it may be compared by identity, whatever driver it is opened through."""
    return device("cuda", index)


def _address(where: Memory | int) -> int:
    return where if isinstance(where, int) else where.address
