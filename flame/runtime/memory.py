"""Memory that is handed out again: arrays for results, and scratch arenas for what lives within one call.

    empty ::= small: NumPy's own allocation | large: array -> lease -> block          block ::= aligned bytes of one size class

Fresh pages cost more than the arithmetic of most kernels (64 MiB: 42 ms by first touch, 8 ms when reused), so a large block
goes back to its size class when its array dies, not to the system. A lease is the base object of the array made over it: the
array, its views, memoryviews and DLPack capsules keep it alive, and only when the last of them is gone does its block become
free. NumPy asks for huge pages itself when it allocates 4 MiB or more, so blocks are NumPy allocations.

Nothing here takes a lock where an object may be dying (a lease can be collected anywhere, in the middle of an allocation too):
giving back is one list append, and byte counts are derived from the lists.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from flame.runtime.locks import Lock

ALIGNMENT: Final = 64
#: below this NumPy's allocator is as fast, and pages are warm anyway
SMALL: Final = 32 << 10
#: what may lie unused beyond half of the most that was ever used at once
_SPARE: Final = 256 << 20
#: free bytes of the C library's heap from which on it is asked for them
_MUCH: Final = 32 << 20
#: the error for so many bytes that are not to be had
Refuse = Callable[[int], Exception]


class Block:
    """`size` bytes at `address`, aligned to ALIGNMENT."""

    __slots__ = ("raw", "address", "size", "bytes")

    def __init__(self, size: int):
        self.raw = np.empty(size + ALIGNMENT, np.uint8)
        start = -self.raw.ctypes.data % ALIGNMENT
        self.bytes = self.raw[start : start + size]
        self.address: int = self.bytes.ctypes.data
        self.size = size


@dataclass(eq=False, slots=True)
class SizeClass:
    """Free blocks of one size, and the type of the leases over them (a ctypes array, because its buffer is cheap to make)."""

    size: int
    lease: Any
    free: list[Block] = field(default_factory=list)
    used: int = 0  #: when it last served, on the allocator's own count
    reuses: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Bytes, of large blocks only, and how often one was wanted."""

    live: int  #: of arrays that somebody holds
    cached: int  #: free, kept for later
    peak: int  #: the most that was live when a block was made or these were asked for
    allocations: int
    reuses: int


def size_class(n: int) -> int:
    """The least size of a block that serves `n` bytes: four to eight steps to a doubling, so at most a quarter is wasted."""
    shift = max(n, ALIGNMENT).bit_length() - 3
    return (n + (1 << shift) - 1) >> shift << shift


class Allocator:
    """Size classes and their accounts. The process has one, `shared`; tests make their own."""

    def __init__(self, spare: int = _SPARE):
        self.spare = spare
        self._classes: dict[int, SizeClass] = {}
        self._arenas: list[Block] = []
        self._lock = Lock()
        self._held = 0  # bytes of every block that exists, live or free
        self._peak = 0
        self._clock = itertools.count(1)
        self._misses = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A fresh C-contiguous array, contents undefined."""
        return self.maker(shape, dtype)()

    def maker(self, shape: tuple[int, ...], dtype: np.dtype, refuse: Refuse = MemoryError) -> Callable[[], np.ndarray]:
        """A function that makes such arrays: what does not change from call to call is worked out once. Where the system has no
        more, it raises `refuse(bytes)`."""
        n = math.prod(shape) * dtype.itemsize
        array: Any = np.ndarray
        if n < SMALL:
            return self._small(shape, dtype, n, refuse)
        c = self._class(size_class(n))
        take, serve, lease, clock = c.free.pop, self._serve, c.lease.from_address, self._clock

        def make() -> np.ndarray:
            try:
                block = take()
            except IndexError:
                block = serve(c, refuse)
            else:
                c.reuses += 1
            c.used = next(clock)
            owner = lease(block.address)
            owner.block = block
            return array(shape, dtype, owner)

        return make

    def _small(self, shape: tuple[int, ...], dtype: np.dtype, nbytes: int, refuse: Refuse) -> Callable[[], np.ndarray]:
        """A maker of arrays that NumPy allocates."""
        empty, release = np.empty, self.release  # (a free variable is read faster than a module's attribute)

        def make() -> np.ndarray:
            try:
                return empty(shape, dtype)
            except MemoryError:
                release()
            try:
                return empty(shape, dtype)
            except MemoryError:
                raise refuse(nbytes) from None

        return make

    def take_arena(self, size: int, refuse: Refuse = MemoryError) -> Block:
        """Scratch memory of at least `size` bytes, to be handed to `give_arena`; programs that run in turn share one. Raises
        `refuse(bytes)` where the system has no more."""
        try:
            block = self._arenas.pop()
        except IndexError:
            return self._block(size_class(size), refuse)
        # One that is too small is dropped: the larger will serve whoever used it.
        return block if block.size >= size else self._block(size_class(size), refuse)

    def give_arena(self, block: Block) -> None:
        self._arenas.append(block)

    def release(self) -> None:
        """Hand all that is free back to the system."""
        with self._lock:
            self._arenas.clear()
            for c in self._classes.values():
                self._drop(c, len(c.free))

    def statistics(self) -> Statistics:
        with self._lock:
            cached = self._cached()
            live = self._held - cached
            reuses = sum(c.reuses for c in self._classes.values())
            return Statistics(live, cached, max(self._peak, live), reuses + self._misses, reuses)

    def _cached(self) -> int:
        return sum(c.size * len(c.free) for c in self._classes.values())

    def _class(self, size: int) -> SizeClass:
        with self._lock:
            c = self._classes.get(size)
            if c is None:
                free: list[Block] = []
                c = self._classes[size] = SizeClass(size, _lease_type(size, free), free)
            return c

    def _serve(self, c: SizeClass, refuse: Refuse = MemoryError) -> Block:
        """A new block of a class that has none free."""
        with self._lock:
            cached = self._cached()
            peak = max(self._peak, self._held - cached + c.size)
            bound = min(peak // 2 + self.spare, _PHYSICAL // 2)
            for other in sorted(self._classes.values(), key=lambda o: o.used):
                if cached <= bound:
                    break
                dropped = self._drop(other, -((bound - cached) // other.size))
                cached -= dropped
            block = self._block(c.size, refuse)
            self._peak = peak
            self._held += c.size
            self._misses += 1
            return block

    def _block(self, size: int, refuse: Refuse) -> Block:
        """A new block; what is free goes first, if need be."""
        try:
            return Block(size)
        except MemoryError:
            self.release()
        try:
            return Block(size)
        except MemoryError:
            raise refuse(size) from None

    def _drop(self, c: SizeClass, count: int) -> int:
        """Forget up to `count` free blocks of a class; the bytes that went."""
        gone = 0
        while gone < count:
            try:
                c.free.pop()
            except IndexError:
                break
            gone += 1
        self._held -= gone * c.size
        return gone * c.size


def _lease_type(size: int, free: list[Block]) -> Any:
    give = free.append

    def __del__(self: Any) -> None:
        give(self.block)

    return type("Lease", (ctypes.c_char * size,), {"__del__": __del__, "__doc__": "Keeps a block from being free."})


class _HeapInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


@functools.cache
def _heap() -> tuple[Callable[[], _HeapInfo], Callable[[int], int]] | None:
    """What glibc says of its heap, and the way to shrink it; None for other C libraries."""
    try:
        library = ctypes.CDLL(None)
        info, shrink = library.mallinfo2, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    info.restype, shrink.argtypes = _HeapInfo, [ctypes.c_size_t]
    return info, shrink


def trim() -> None:
    """Give back to the system what the C library keeps of freed memory, where that is much.

    Arrays of up to 32 MB that eager operations made lie in glibc's heap, which shrinks from its end only: whatever small thing
    was allocated last holds all of them. Called when a program was compiled that takes the place of such operations.
    """
    heap = _heap()
    if heap is not None:
        info, shrink = heap
        if info().fordblks >= _MUCH:
            shrink(0)


def _physical() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


_PHYSICAL: Final = _physical()
shared: Final = Allocator()
