"""Batches from one process to another: a message through a pipe, and the memory of large arrays beside it, without a copy.

    message ::= what remains of the batch when large arrays are taken out, and their sizes
    memory  ::= one file without a name that holds all of them; its descriptor goes through the same pipe

The receiver maps the file, so its arrays are the sender's memory. A file without a name is gone when the last process lets go of
it, however that process ends, so that nothing is left behind. Where memory can't be had (a small /dev/shm), arrays go through the
pipe. The pipes are between a program and its own worker processes; what they carry is pickled as `multiprocessing` does it.
"""

from __future__ import annotations

import io
import mmap
import os
import tempfile
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from flame import dtypes
from flame.tensor import Tensor, wrap

SMALL = 1 << 14  #: bytes of an array that goes with the message
ALIGNED = 64


def _rebuilt(cls: type, data: Any, name: str, shape: tuple[int, ...], requires_grad: bool) -> Tensor:
    t = wrap(np.frombuffer(data, dtypes.BY_NAME[name].numpy).reshape(shape), cls)
    return t.requires_grad_() if requires_grad else t


class _Pickler(reduction.ForkingPickler):
    """Takes the memory of arrays and tensors out of the stream."""

    def reducer_override(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return NotImplemented
        if x.requires_grad and not x.is_leaf:
            raise RuntimeError(
                "a batch holds a tensor that requires grad and is no leaf, whose history can't go to another process: detach() it"
            )
        a = np.ascontiguousarray(x._read())
        data: Any = a.reshape(-1).view(np.uint8) if a.size else np.zeros(0, np.uint8)
        return _rebuilt, (type(x), data, x.dtype.name, tuple(x.shape), bool(x.requires_grad))


def _memory(size: int) -> int | None:
    """The descriptor of a file without a name, its memory reserved; None where there is not enough."""
    fd = -1
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("flame", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as f:
                fd = os.dup(f.fileno())
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.truncate(fd, size)
        return fd
    except OSError:
        if fd >= 0:
            os.close(fd)
        return None


def _places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each array begins, and the size of all."""
    starts, at = [], 0
    for n in sizes:
        starts.append(at)
        at += -(-n // ALIGNED) * ALIGNED
    return starts, at


def send(pipe: Connection, x: Any) -> None:
    """Send `x`. Raises what pickling raises, before anything is sent."""
    large: list[memoryview] = []

    def keep(buffer: Any) -> bool:
        """Whether a buffer stays with the message."""
        raw = buffer.raw()
        if raw.nbytes < SMALL:
            return True
        large.append(raw)
        return False

    stream = io.BytesIO()
    _Pickler(stream, 5, True, keep).dump(x)
    sizes = [m.nbytes for m in large]
    starts, total = _places(sizes)
    fd = _memory(total) if large else None
    if large and fd is None:
        stream = io.BytesIO()
        _Pickler(stream, 5).dump(x)
        sizes = []
    try:
        if fd is not None:
            with mmap.mmap(fd, total) as shared:
                for start, m in zip(starts, large, strict=True):
                    shared[start : start + m.nbytes] = m  # type: ignore[assignment]
        pipe.send((stream.getbuffer().tobytes(), sizes))
        if fd is not None:
            reduction.send_handle(pipe, fd, None)  # type: ignore[arg-type]
    finally:
        if fd is not None:
            os.close(fd)


def receive(pipe: Connection) -> Any:
    """What was sent. Raises EOFError where the other side is gone."""
    message, sizes = pipe.recv()
    if not sizes:
        return reduction.ForkingPickler.loads(message)
    fd = reduction.recv_handle(pipe)
    try:
        starts, total = _places(sizes)
        shared = memoryview(mmap.mmap(fd, total))
    finally:
        os.close(fd)
    buffers = [shared[start : start + n] for start, n in zip(starts, sizes, strict=True)]
    return reduction.ForkingPickler.loads(message, buffers=buffers)
