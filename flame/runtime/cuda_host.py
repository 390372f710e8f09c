"""Pinned host memory: arrays whose pages the GPU reads and writes itself, so that copies run beside everything else.

Pinning costs a millisecond, so blocks are kept by size, as in `flame.runtime.memory`. A copy that is still running when its
array dies goes on safely: the stream leaves a mark on the block, and the block serves again when all its marks are passed.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from flame.errors import OutOfMemoryError
from flame.runtime.cuda_driver import Driver
from flame.runtime.locks import Lock
from flame.runtime.memory import size_class

_LEAST: Final = 4096


class PinnedBlock:
    """`size` pinned bytes at `address`; `marks` are events that must have passed before it serves again."""

    __slots__ = ("address", "size", "marks")

    def __init__(self, address: int, size: int):
        self.address, self.size = address, size
        self.marks: list[int] = []


class Lease:
    """Keeps a block from serving somebody else; the base of the arrays over it."""

    __slots__ = ("__array_interface__", "__weakref__", "_give", "block")

    def __init__(self, block: PinnedBlock, nbytes: int, give: Callable[[PinnedBlock], None]):
        self.block = block
        self._give = give
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (block.address, False), "version": 3}

    def __del__(self) -> None:
        self._give(self.block)


class PinnedAllocator:
    """The pinned memory of one device's context. `activate` makes that context current on the calling thread."""

    def __init__(self, driver: Driver, activate: Callable[[], None]):
        self.driver, self.activate = driver, activate
        self._returned: deque[PinnedBlock] = deque()
        self._free: dict[int, deque[PinnedBlock]] = {}
        self._blocks: list[tuple[int, PinnedBlock]] = []  #: all, by address
        self._lock = Lock()

    @property
    def reserved(self) -> int:
        """Bytes pinned, in use or not."""
        with self._lock:
            return sum(block.size for _, block in self._blocks)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A fresh C-contiguous array in pinned memory, contents undefined. Raises OutOfMemoryError where no more can be pinned."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        lease = Lease(self._take(nbytes), nbytes, self._returned.append)
        return np.asarray(lease).view(dtype).reshape(shape)

    def stage(self, array: np.ndarray) -> tuple[PinnedBlock, int]:
        """A copy of a C-contiguous array in pinned memory and its address; whoever has it calls `mark`, then `give`."""
        block = self._take(array.nbytes)
        held = np.asarray(Lease(block, array.nbytes, lambda _: None))
        held[...] = array.reshape(-1).view(np.uint8)
        return block, block.address

    def give(self, block: PinnedBlock) -> None:
        self._returned.append(block)

    def mark(self, block: PinnedBlock, stream: int) -> None:
        """The stream has been given work on the block."""
        self.activate()
        event = self.driver.create_event()
        self.driver.record_event(event, stream)
        with self._lock:
            block.marks.append(event)
            # What has passed need not be kept: an array that is copied in every step gathers no marks.
            while len(block.marks) > 1 and self.driver.event_is_done(block.marks[0]):
                self.driver.destroy_event(block.marks.pop(0))

    def find(self, array: np.ndarray) -> PinnedBlock | None:
        """The block that all of an array lies in."""
        start = array.ctypes.data
        with self._lock:
            at = bisect.bisect_right(self._blocks, start, key=lambda entry: entry[0]) - 1
            if at >= 0:
                block = self._blocks[at][1]
                if start + array.nbytes <= block.address + block.size and start < block.address + block.size:
                    return block
        return None

    def release(self, wait: bool = False) -> None:
        """Unpin what nobody uses; `wait` for copies that still run."""
        with self._lock:
            self._collect()
            for blocks in self._free.values():
                for _ in range(len(blocks)):
                    block = blocks.popleft()
                    if wait:
                        self._wait(block)
                    if self._passed(block):
                        self._unpin(block)
                    else:
                        blocks.append(block)

    def close(self) -> None:
        """Unpin everything."""
        with self._lock:
            self.release(wait=True)
            for _, block in list(self._blocks):
                self._wait(block)
                self._passed(block)
                self._unpin(block)

    def _wait(self, block: PinnedBlock) -> None:
        self.activate()
        for event in block.marks:
            self.driver.synchronize_event(event)

    def _unpin(self, block: PinnedBlock) -> None:
        self.activate()
        self._blocks = [entry for entry in self._blocks if entry[1] is not block]
        self.driver.free_host(block.address)

    def _take(self, nbytes: int) -> PinnedBlock:
        size = size_class(max(nbytes, _LEAST))
        with self._lock:
            self._collect()
            free = self._free.setdefault(size, deque())
            if free and self._passed(free[0]):
                return free.popleft()
            self.activate()
            try:
                address = self.driver.allocate_host(size)
            except OutOfMemoryError:
                self.release(wait=True)
                address = self.driver.allocate_host(size)
            block = PinnedBlock(address, size)
            bisect.insort(self._blocks, (address, block), key=lambda entry: entry[0])
            return block

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._free.setdefault(block.size, deque()).append(block)

    def _passed(self, block: PinnedBlock) -> bool:
        if block.marks:
            self.activate()
            while block.marks and self.driver.event_is_done(block.marks[-1]):
                self.driver.destroy_event(block.marks.pop())
        return not block.marks


def plain_bytes(array: Any, what: str) -> np.ndarray:
    """The array, if a copy can read or write it where it lies. Raises TypeError or ValueError where not."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{what} must be a NumPy array, not {type(array).__name__}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{what} must be C-contiguous")
    return array
