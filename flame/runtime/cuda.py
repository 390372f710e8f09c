"""GPUs: what there is, and the way to each.

    available(), device_count()                     asked of the machine, once
    gpu(index) -> Gpu                               raises MissingTargetError, with what to install, where there is none
    Stream, Event                                   PyTorch's; work goes to the calling thread's current stream
    use_driver(driver)                              another driver for a while: how tests run all of this without a GPU

A device is opened when first asked for, through its primary context, which other libraries in the process share. Nothing may
be used in a process forked after that.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from flame.errors import CudaError, MissingTargetError
from flame.runtime.cublas import open_library
from flame.runtime.cuda_driver import Driver, open_driver
from flame.runtime.cuda_gpu import Compiler, Gpu, Process
from flame.runtime.cuda_plan import launcher
from flame.runtime.device import device
from flame.runtime.gpu_kernels import binary_of
from flame.runtime.locks import Lock


class Stream:
    """A queue of work on a device. PyTorch's `cuda.Stream`: `Stream(device=None, priority=0)`; a lower number is more urgent.

    Raises MissingTargetError where there is no GPU.
    """

    __slots__ = ("_before", "cuda_stream", "gpu", "priority")

    def __init__(self, device: Any = None, priority: int = 0):
        self._set(gpu(device_index(device)), None, priority)

    def _set(self, on: Gpu, handle: int | None, priority: int = 0) -> Stream:
        self.gpu, self.priority = on, priority
        #: the driver's handle
        self.cuda_stream: int = on.stream_handle(priority) if handle is None else handle
        self._before: list[int] = []
        return self

    @classmethod
    def of(cls, on: Gpu, handle: int) -> Stream:
        """The stream that the driver knows by `handle`."""
        return cls.__new__(cls)._set(on, handle)

    @property
    def device(self) -> device:
        return self.gpu.device

    @property
    def device_index(self) -> int:
        return self.gpu.index

    def query(self) -> bool:
        """Whether all its work is done."""
        with self.gpu.calling():
            return self.gpu.driver.stream_is_done(self.cuda_stream)

    def synchronize(self) -> None:
        """Wait for all its work. Raises IndexError where an index was out of range in it."""
        self.gpu.synchronize_stream(self.cuda_stream)

    def wait_event(self, event: Event) -> None:
        """Work given from now on waits for what the event marks; the caller does not."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Work given from now on waits for what `stream` has been given so far."""
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        """Mark this place in the stream."""
        event = Event() if event is None else event
        event.record(self)
        return event

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """(least, greatest) urgency."""
        on = gpu()
        with on.calling():
            return on.driver.priority_range()

    def __enter__(self) -> Stream:
        self._before.append(self.gpu.current_stream)
        self.gpu.set_stream(self.cuda_stream)
        return self

    def __exit__(self, *error: object) -> None:
        self.gpu.set_stream(self._before.pop())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and (self.gpu, self.cuda_stream) == (other.gpu, other.cuda_stream)

    def __hash__(self) -> int:
        return hash((self.gpu.index, self.cuda_stream))

    def __repr__(self) -> str:
        return f"<flame.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"


class Event:
    """A mark in a stream. PyTorch's `cuda.Event`; with `enable_timing` the time between two can be read."""

    __slots__ = ("_blocking", "_gpu", "_handle", "_timing")

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False):
        self._timing, self._blocking = enable_timing, blocking
        self._gpu: Gpu | None = None
        self._handle = 0
        if interprocess:
            raise RuntimeError("events of several processes are not supported: synchronise, and tell the other process")

    def __del__(self) -> None:
        if self._gpu is not None:
            self._gpu.give_event(self._handle, self._timing, self._blocking)

    @property
    def cuda_event(self) -> int:
        """The driver's handle; 0 before the first `record`."""
        return self._handle

    @property
    def device(self) -> device | None:
        return None if self._gpu is None else self._gpu.device

    def record(self, stream: Stream | None = None) -> None:
        """Mark the place that the stream (by default the current one) has come to. Raises RuntimeError if that is another
        device's than the first time."""
        stream = current_stream() if stream is None else stream
        on = stream.gpu
        if self._gpu is not None and self._gpu is not on:
            raise RuntimeError(f"Event device {self._gpu.device} does not match recording stream's device {on.device}")
        with on.calling():
            if self._gpu is None:
                self._handle = on.take_event(self._timing, self._blocking)
                self._gpu = on
            on.driver.record_event(self._handle, stream.cuda_stream)

    def wait(self, stream: Stream | None = None) -> None:
        """Have the stream (by default the current one) wait here for the mark. Nothing, where it was never recorded."""
        if self._gpu is not None:
            stream = current_stream() if stream is None else stream
            with stream.gpu.calling():
                stream.gpu.driver.wait_event(stream.cuda_stream, self._handle)

    def query(self) -> bool:
        """Whether what it marks is done."""
        if self._gpu is None:
            return True
        with self._gpu.calling():
            return self._gpu.driver.event_is_done(self._handle)

    def synchronize(self) -> None:
        """Wait for what it marks."""
        if self._gpu is not None:
            with self._gpu.calling():
                self._gpu.driver.synchronize_event(self._handle)

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this mark to `end_event`. Raises RuntimeError where one was not recorded, is not made for timing,
        or is not done."""
        if not (self._timing and end_event._timing):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        if self._gpu is None or end_event._gpu is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        if not (self.query() and end_event.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        with self._gpu.calling():
            return self._gpu.driver.elapsed_ms(self._handle, end_event._handle)

    def ipc_handle(self) -> bytes:
        raise RuntimeError("events of several processes are not supported")

    def __repr__(self) -> str:
        return f"<flame.cuda.Event {self._handle:#x}>" if self._gpu is not None else "<flame.cuda.Event uninitialized>"


class Runtime:
    """A driver and the devices opened through it. The process has one; `use_driver` puts another in its place."""

    def __init__(self, driver: Driver, compiler: Compiler, products: Callable[[], Any]):
        self.driver = driver
        self.process = Process(driver, compiler, launcher(driver), products)
        self.count = driver.device_count()
        self.gpus: dict[int, Gpu] = {}
        self._lock = Lock()

    def gpu(self, index: int) -> Gpu:
        found = self.gpus.get(index)
        if found is None:
            if not 0 <= index < self.count:
                raise RuntimeError(f"CUDA error: invalid device ordinal: {index}, of {self.count}")
            with self._lock:
                found = self.gpus.get(index)
                if found is None:
                    found = self.gpus[index] = Gpu(self.process, index)
        return found

    def close(self) -> None:
        """Hand everything back. (A device that has failed for good takes nothing back.)"""
        for g in self.gpus.values():
            with suppress(CudaError):
                g.close()
        self.gpus.clear()


_runtime: Runtime | None = None
#: why there is none, once that is known
_missing: str = ""
_opening: Final = Lock()


def runtime() -> Runtime:
    """The process's runtime, opened by the first call. Raises MissingTargetError where there is no driver or no device."""
    global _runtime, _missing
    found = _runtime
    if found is not None:
        return found
    with _opening:
        if _runtime is None and not _missing:
            try:
                driver = open_driver()
                made = Runtime(driver, binary_of, partial(open_library, driver.version()[0]))
                if not made.count:
                    raise MissingTargetError(
                        "the CUDA driver finds no GPU (is CUDA_VISIBLE_DEVICES empty?); run on device 'cpu'"
                    )
                _runtime = made
            except MissingTargetError as error:
                _missing = str(error)
        if _runtime is None:
            raise MissingTargetError(_missing)
        return _runtime


def available() -> bool:
    """Whether there is a GPU that programs can run on."""
    try:
        return runtime().count > 0
    except MissingTargetError:
        return False


def opened() -> bool:
    """Whether a device has been opened in this process."""
    return _runtime is not None and bool(_runtime.gpus)


def synchronize_all() -> None:
    """Wait for every device that was opened."""
    if _runtime is not None:
        for g in list(_runtime.gpus.values()):
            g.synchronize()


def device_count() -> int:
    return runtime().count if available() else 0


def current_device() -> int:
    """The calling thread's current device."""
    return runtime().process.local.device


def set_device(index: int) -> None:
    found = runtime()
    if not 0 <= index < found.count:
        raise RuntimeError(f"CUDA error: invalid device ordinal: {index}, of {found.count}")
    found.process.local.device = index


def device_index(d: Any = None) -> int:
    """The number of a device as users write it; the current one for None and "cuda". Raises ValueError for another type."""
    if d is None:
        return current_device()
    if isinstance(d, bool) or not isinstance(d, int):
        named = d if isinstance(d, device) else device(d)
        if named.type != "cuda":
            raise ValueError(f"Expected a cuda device, but got: {named}")
        return current_device() if named.index is None else named.index
    return current_device() if d < 0 else d


def gpu(index: int | None = None) -> Gpu:
    """The device of that number, by default the current one, opened.

    Raises MissingTargetError where there is no GPU, RuntimeError where there is none of that number.
    """
    found = runtime()
    return found.gpu(found.process.local.device if index is None else index)


def current_stream(index: int | None = None) -> Stream:
    """The calling thread's current stream of a device, by default of the current one."""
    on = gpu(index)
    return Stream.of(on, on.current_stream)


def _none() -> Any:
    raise MissingTargetError("there is no library of matrix products for this driver")


@contextmanager
def use_driver(driver: Driver, compiler: Compiler = binary_of, products: Callable[[], Any] = _none) -> Iterator[Runtime]:
    """Everything in this module goes through `driver`, kernels through `compiler` and products that a library is to compute
    through the one that `products` gives, until the context ends; then all that was taken is handed back. For tests, on one
    thread."""
    global _runtime
    before, _runtime = _runtime, Runtime(driver, compiler, products)
    made = _runtime
    try:
        yield made
    finally:
        _runtime = before
        gc.collect()  # leases in cycles
        made.close()


def _in_child() -> None:
    if _runtime is not None:
        _runtime.process.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
