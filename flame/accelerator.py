"""flame.accelerator: the accelerator of the process, which is a GPU where there is one, under torch.accelerator's names."""

from __future__ import annotations

from typing import Any

from flame.runtime import cuda
from flame.runtime.cuda import Stream
from flame.runtime.device import device


def is_available() -> bool:
    """Whether tensors can live on an accelerator."""
    return cuda.available()


def device_count() -> int:
    """How many accelerators this process sees."""
    return cuda.device_count()


def current_accelerator(check_available: bool = False) -> device | None:
    """The device of the accelerator, without an index; None where there is none."""
    return device("cuda") if cuda.available() else None


def current_device_index() -> int:
    """The number of the calling thread's current device. Raises MissingTargetError where there is none."""
    return cuda.current_device()


def set_device_index(device: Any) -> None:
    """Make a device the calling thread's current one. Raises MissingTargetError where there is none."""
    cuda.set_device(cuda.device_index(device))


current_device_idx, set_device_idx = current_device_index, set_device_index


class device_index:
    """A context in which the device of that number is current; None changes nothing."""

    def __init__(self, device: int | None):
        self.idx = device

    def __enter__(self) -> None:
        if self.idx is not None:
            self.prev_idx = cuda.current_device()
            cuda.set_device(self.idx)

    def __exit__(self, *error: object) -> None:
        if self.idx is not None:
            cuda.set_device(self.prev_idx)


def current_stream(device: Any = None) -> Stream:
    """The stream that the calling thread's work on a device goes to."""
    return cuda.current_stream(cuda.device_index(device))


def set_stream(stream: Stream) -> None:
    """Make a stream its device's current one."""
    cuda.set_device(stream.device_index)
    stream.gpu.set_stream(stream.cuda_stream)


def synchronize(device: Any = None) -> None:
    """Wait for all work on a device. Raises MissingTargetError where there is none."""
    cuda.gpu(cuda.device_index(device)).synchronize()
