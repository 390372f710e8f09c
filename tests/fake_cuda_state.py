"""The state of a fake CUDA device and how its work runs (see fake_cuda, which has the calls).

Work is lazy: a stream's work happens when somebody waits for it (or, a step at a time, asks whether it is done), and not
before. What was not waited for is therefore not there, on every run.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flame.compiler.to_triton import TritonSource
from flame.errors import MissingTargetError
from flame.runtime.cuda_driver import Attribute, signatures, symbol
from flame.runtime.cuda_gpu import Compiler
from flame.runtime.triton_tools import Binary

ERRORS = {
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    3: ("CUDA_ERROR_NOT_INITIALIZED", "initialization error"),
    101: ("CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"),
    201: ("CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    400: ("CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"),
    500: ("CUDA_ERROR_NOT_FOUND", "named symbol not found"),
    600: ("CUDA_ERROR_NOT_READY", "device not ready"),
    700: ("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"),
    719: ("CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"),
    999: ("CUDA_ERROR_UNKNOWN", "unknown error"),
}
INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_CONTEXT, INVALID_HANDLE, NOT_FOUND = 1, 2, 3, 201, 400, 500
NOT_READY, ILLEGAL_ADDRESS, LAUNCH_FAILED, UNKNOWN = 600, 700, 719, 999

CANARY, FRESH = 0xA5, 0xCB
GUARD = 512

#: an H100's
ATTRIBUTES = {
    Attribute.MAX_THREADS_PER_BLOCK: 1024,
    Attribute.MAX_SHARED_MEMORY_PER_BLOCK: 48 << 10,
    Attribute.WARP_SIZE: 32,
    Attribute.MULTIPROCESSOR_COUNT: 132,
    Attribute.L2_CACHE_SIZE: 50 << 20,
    Attribute.MAX_THREADS_PER_MULTIPROCESSOR: 2048,
    Attribute.COMPUTE_CAPABILITY_MAJOR: 9,
    Attribute.COMPUTE_CAPABILITY_MINOR: 0,
    Attribute.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: 228 << 10,
    Attribute.MAX_REGISTERS_PER_MULTIPROCESSOR: 65536,
    Attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: 227 << 10,
}

#: may be called without a context
_FREE_OF_CONTEXT = frozenset(
    "cuInit cuDriverGetVersion cuGetErrorName cuGetErrorString cuDeviceGetCount cuDeviceGetName cuDeviceTotalMem "
    "cuDeviceGetAttribute cuDeviceCanAccessPeer cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease cuCtxSetCurrent".split()
)


class Failure(Exception):
    """A call answers with this code."""

    def __init__(self, code: int):
        self.code = code


@dataclass(eq=False)
class Memory:
    address: int
    size: int
    held: np.ndarray
    context: int
    pinned: bool = False
    pending: int = 0  #: copies from or to it that have not run

    def intact(self) -> bool:
        return bool((self.held[:GUARD] == CANARY).all() and (self.held[GUARD + self.size :] == CANARY).all())


@dataclass(eq=False)
class FakeStream:
    context: int
    work: deque[Any] = field(default_factory=deque)


@dataclass(eq=False)
class Mark:
    """One recording of an event."""

    stream: FakeStream
    when: float = 0.0  #: not 0 once it has been passed


@dataclass(eq=False)
class FakeEvent:
    context: int
    timing: bool
    mark: Mark | None = None  #: the last


@dataclass(eq=False)
class FakeFunction:
    source: TritonSource
    module: int
    code: bytes
    dynamic: int = 48 << 10


@dataclass
class Planned:
    """A failure that was ordered."""

    code: int
    after: int
    times: int
    sticky: bool


class Device:
    """What the calls act on, how tests steer it, and what is around every call. Its subclass has a method for each call."""

    def __init__(self, devices: int = 1, memory: int = 1 << 30, lazy: bool = True):
        self.devices, self.capacity, self.lazy = devices, memory, lazy
        self.calls: Counter[str] = Counter()
        self.cost: Callable[[TritonSource], float] = lambda source: (
            0.0
        )  #: milliseconds of a launch, beside the one of every work
        self.launches: list[str] = []  #: names of the kernels that have run
        self.violations: list[str] = []
        self.loading: tuple[bytes, TritonSource] | None = None
        self.compiled: dict[bytes, Binary] = {}
        self.started = False
        self.broken = 0  #: the error that every call answers with
        self.contexts: Counter[int] = Counter()  #: how often each is retained
        self.memory: dict[int, Memory] = {}
        self.freed: dict[int, int] = {}  #: addresses that were freed, and their sizes
        self.streams: dict[int, FakeStream] = {}
        self.events: dict[int, FakeEvent] = {}
        self.modules: dict[int, TritonSource] = {}
        self.images: dict[int, bytes] = {}  #: modules' binaries
        self.functions: dict[int, FakeFunction] = {}
        self.graphs: dict[int, dict[int, Any]] = {}  #: node -> its work
        self.executables: dict[int, dict[int, Any]] = {}
        self._local = threading.local()
        self._lock = threading.RLock()
        self._next = 0x1000
        self._clock = 0.0
        self._planned: dict[str, Planned] = {}
        self._failing: dict[str, int] = {}
        self._words: dict[int, tuple[bytes, bytes]] = {}
        for name, types in signatures().items():
            setattr(self, symbol(name), ctypes.CFUNCTYPE(ctypes.c_int, *types)(self._entry(name)))

    # ---- for tests

    def compiler(self) -> Compiler:
        """What sources are compiled by for this device."""
        return self.compile

    def announced(self, code: bytes, source: TritonSource) -> None:
        """A binary that is about to be loaded."""

    def compile(self, source: TritonSource, arch: str) -> Binary:
        """Instead of Triton's compiler: a binary that only this driver can load."""
        code = b"\x7fFAKE" + arch.encode() + source.digest.encode()
        lent = (384, 128) if source.descriptors else (0, 1)
        made = Binary(source.entry, arch, code, "", (16 << 10) * source.stages, source.warps * 32, 0, 0, 0, 2, *lent)
        self.compiled[code] = made
        return made

    def products(self) -> Any:
        """A library of matrix products for this device: none, but for tests that put one here."""
        raise MissingTargetError("there is no library of matrix products here")

    def fail(self, call: str, code: int, after: int = 0, times: int = 1, sticky: bool = False) -> None:
        """Let the next `times` calls after `after` good ones fail; a sticky error is every later call's answer too."""
        self._planned[call] = Planned(code, after, times, sticky)

    def fail_kernel(self, entry: str, code: int = ILLEGAL_ADDRESS) -> None:
        """Let a kernel fail when it runs: from then on every call answers so."""
        self._failing[entry] = code

    def check(self) -> None:
        """Raises AssertionError where something was wrong, or is left over."""
        wrong = list(self.violations)
        for what, left in (
            ("memory", [hex(a) for a, m in self.memory.items() if not m.pinned]),
            ("pinned memory", [hex(a) for a, m in self.memory.items() if m.pinned]),
            ("streams", list(self.streams)),
            ("events", list(self.events)),
            ("modules", list(self.modules)),
            ("graphs", [*self.graphs, *self.executables]),
            ("contexts", [c for c, n in self.contexts.items() if n]),
        ):
            if left:
                wrong.append(f"left over: {len(left)} of {what}: {left[:5]}")
        assert not wrong, "\n".join(wrong)

    def allocated(self) -> int:
        return sum(m.size for m in self.memory.values() if not m.pinned)

    # ---- what is around every call

    def _entry(self, name: str) -> Callable[..., int]:
        handler = getattr(self, f"_{name}")

        def call(*arguments: Any) -> int:
            with self._lock:
                try:
                    if name.startswith("cuGetError"):
                        return handler(*arguments)
                    self.calls[name] += 1
                    if self.broken:
                        return self.broken
                    if not self.started and name != "cuInit":
                        self.wrong(f"{name} before cuInit")
                        return NOT_INITIALIZED
                    if name not in _FREE_OF_CONTEXT and not getattr(self._local, "context", 0):
                        self.wrong(f"{name} without a context on this thread")
                        return INVALID_CONTEXT
                    planned = self._planned.get(name)
                    if planned is not None:
                        if planned.after:
                            planned.after -= 1
                        else:
                            planned.times -= 1
                            if not planned.times:
                                del self._planned[name]
                            if planned.sticky:
                                self.broken = planned.code
                            return planned.code
                    handler(*(0 if a is None else a for a in arguments))
                    return self.broken
                except Failure as failure:
                    return failure.code
                except Exception as error:
                    self.wrong(f"{name}: {type(error).__name__}: {error}")
                    return UNKNOWN

        return call

    def wrong(self, what: str) -> None:
        self.violations.append(what)

    def _refuse(self, what: str, code: int = INVALID_VALUE) -> Failure:
        self.wrong(what)
        return Failure(code)

    def _handle(self) -> int:
        self._next += 16
        return self._next

    @property
    def context(self) -> int:
        return self._local.context

    @staticmethod
    def _put(pointer: int, value: int, kind: Any = ctypes.c_uint64) -> None:
        kind.from_address(pointer).value = value

    def _device(self, index: int) -> int:
        if not 0 <= index < self.devices:
            raise self._refuse(f"there is no device {index}", 101)
        return index

    def _stream(self, handle: int) -> FakeStream:
        key = handle or -self.context  # every context has its default stream
        if not handle:
            self.streams_of_contexts.setdefault(key, FakeStream(self.context))
            return self.streams_of_contexts[key]
        stream = self.streams.get(handle)
        if stream is None:
            raise self._refuse(f"stream {handle:#x} does not live", INVALID_HANDLE)
        if stream.context != self.context:
            raise self._refuse(f"stream {handle:#x} is of another context than the current one", INVALID_HANDLE)
        return stream

    @property
    def streams_of_contexts(self) -> dict[int, FakeStream]:
        return self.__dict__.setdefault("_defaults", {})

    def _event(self, handle: int) -> FakeEvent:
        if handle not in self.events:
            raise self._refuse(f"event {handle:#x} does not live", INVALID_HANDLE)
        return self.events[handle]

    # ---- work

    def _submit(self, handle: int, work: Any) -> None:
        stream = self._stream(handle)
        stream.work.append(work)
        if not self.lazy:
            self._drain(stream)

    def _step(self, stream: FakeStream) -> None:
        work = stream.work.popleft()
        self._clock += 1.0
        match work:
            case ("record", Mark() as mark):
                mark.when = self._clock
            case ("wait", Mark() as mark):
                self._pass(mark)
            case ("graph", list(launches)):
                for launch in launches:
                    launch()
            case _:
                work()

    def _pass(self, mark: Mark) -> None:
        while not mark.when:
            self._step(mark.stream)

    def _drain(self, stream: FakeStream) -> None:
        while stream.work:
            self._step(stream)

    def _drain_all(self) -> None:
        for stream in [*self.streams.values(), *self.streams_of_contexts.values()]:
            self._drain(stream)

    def _find(self, address: int, nbytes: int, what: str) -> Memory:
        """The device memory that the bytes lie in."""
        for m in self.memory.values():
            if m.address <= address and address + nbytes <= m.address + m.size and not m.pinned:
                return m
        for start, size in self.freed.items():
            if start <= address < start + size:
                raise self._refuse(f"{what}: {address:#x} was freed", ILLEGAL_ADDRESS)
        raise self._refuse(f"{what}: {nbytes} bytes at {address:#x} lie in no memory that is allocated", ILLEGAL_ADDRESS)

    def _pinned(self, address: int, nbytes: int) -> Memory | None:
        for m in self.memory.values():
            if m.pinned and m.address <= address and address + nbytes <= m.address + m.size:
                return m
        return None
