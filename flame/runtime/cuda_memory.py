"""Device memory that is handed out again: a caching allocator whose blocks belong to streams.

    segment ::= block+                       what the driver gave, one stretch of addresses
    block   ::= address size stream state    state: live (a lease holds it) | pending (other streams may be at it) | free

A block that is given back is free at once for its own stream, since what that stream is given later runs later. A lease that
another stream works on is told so (`record`); when it dies its block is pending until that stream has passed. Free blocks are
kept by size in bins, whole as they were used, because programs ask for the same sizes again; only when a bin and the best fit
among the free blocks of the stream fail are binned blocks merged with their neighbours, and split to fit. Sizes and limits of
segments are those of PyTorch's allocator (c10/cuda/CUDACachingAllocator), with which many programs were tuned.

A lease may be collected anywhere, in the middle of an allocation too: its end is one append to a list, and everything else is
done under a lock when memory is next asked for or counted.
"""

from __future__ import annotations

import bisect
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from flame.errors import OutOfMemoryError
from flame.runtime.cuda_driver import Driver
from flame.runtime.cuda_statistics import Account, Accounts, spelled

GRAIN: Final = 512  #: sizes are multiples of it
SMALL: Final = 1 << 20  #: requests up to it come from segments of _SMALL_SEGMENT
_SMALL_SEGMENT: Final = 2 << 20
_LARGE_SEGMENT: Final = 20 << 20  #: of requests up to _LARGE; greater ones have a segment of their own
_LARGE: Final = 10 << 20
_ROUND: Final = 2 << 20


class Block:
    """A stretch of a segment; `before` and `after` are its neighbours there."""

    __slots__ = ("address", "size", "requested", "stream", "pool", "before", "after", "state", "users", "line", "events", "bin")

    def __init__(self, address: int, size: int, stream: int, pool: int, bin: list[Block]):
        self.address, self.size, self.stream, self.pool, self.bin = address, size, stream, pool, bin
        self.requested = 0
        self.before: Block | None = None
        self.after: Block | None = None
        self.state = "free"
        self.users: set[int] | None = None  #: other streams that worked on it since it was taken
        self.line = ""  #: the user's line that asked for it
        self.events: list[int] = []

    @property
    def whole(self) -> bool:
        """Is it all of its segment?"""
        return self.before is None and self.after is None


class Allocator:
    """The memory of one device. `activate` makes its context current on the calling thread.

    `caching` False gives every lease an allocation of its own, freed when the lease has died: slower, and each access out of
    bounds is the driver's (or a checker's) to see.
    """

    __slots__ = (
        "_all", "_bins", "_free", "_live", "_lock", "_pending", "_segments", "accounts", "activate", "caching", "driver", "limit",
        "returned", "what",
    )  # fmt: skip

    def __init__(self, driver: Driver, activate: Callable[[], None], what: str = "GPU", caching: bool = True):
        self.driver, self.activate, self.what, self.caching = driver, activate, what, caching
        self.limit: int | None = None  #: bytes that may be reserved at most
        self.accounts = Accounts()
        self._live, self._all = self.accounts.live, self.accounts.live[2]
        #: blocks whose leases have died, not looked at yet
        self.returned: deque[Block] = deque()
        self._bins: dict[tuple[int, int], list[Block]] = {}  #: (stream, size) -> free blocks as they came back
        self._free: dict[tuple[int, int], list[tuple[int, int, Block]]] = {}  #: (stream, pool) -> by size, address; merged
        self._pending: list[Block] = []
        self._segments: dict[int, Block] = {}  #: address -> its first block
        self._lock = threading.RLock()  # (no fork's business: a child may not use the device)

    def take(self, nbytes: int, stream: int, line: str = "") -> Block:
        """A block of at least `nbytes` for work on `stream`. Whoever takes it appends it to `returned` in the end.

        Raises OutOfMemoryError where neither the device nor the cache has that much, naming who holds most.
        """
        if nbytes < 0:
            raise ValueError("memory of {} bytes cannot be allocated".format(nbytes))  # noqa: UP032  (translated to native code)
        size = (nbytes + GRAIN - 1) // GRAIN * GRAIN or GRAIN
        self._lock.acquire()
        try:
            if self.returned:
                self._collect()
            if self._pending:
                self._poll()
            bin = self._bins.get((stream, size))
            block: Block = bin.pop() if bin else self._find(nbytes, size, stream)
            block.state = "live"
            block.requested = nbytes
            block.line = line
            size = block.size
            account: Account = self._live[block.pool]
            account.add(size, nbytes)
            account = self._all
            account.add(size, nbytes)
            if self._pending:
                self._count_pending()
            return block
        finally:
            self._lock.release()

    def record(self, block: Block, stream: int) -> None:
        """A stream other than the block's own is given work on it."""
        if stream != block.stream:
            with self._lock:
                if block.users is None:
                    block.users = set()
                block.users.add(stream)

    def release(self) -> None:
        """Hand every segment that nobody uses back to the driver (`empty_cache`). Waits for the device."""
        with self._lock:
            self._collect()
            self.activate()
            for block in self._pending:
                for event in block.events:
                    self.driver.synchronize_event(event)
            self._poll()
            self._merge()
            self._release_free()

    def close(self) -> None:
        """Hand all segments back, live or not; the allocator is of no more use."""
        with self._lock:
            self.release()
            for address in self._segments:
                self.driver.free(address)
            self._segments.clear()

    # ---- counting

    def count(self) -> None:
        """Bring the statistics up to date."""
        with self._lock:
            self._collect()
            if self._pending:
                self._poll()
            self._count_pending()

    def statistics(self) -> dict[str, int]:
        """By PyTorch's names of `memory_stats`."""
        with self._lock:
            self.count()
            free = [b for first in self._segments.values() for b in _chain(first) if b.state == "free" and not b.whole]
            split = [[b.size for b in free if b.pool == pool] for pool in (0, 1)]
            return self.accounts.named([(len(sizes), sum(sizes)) for sizes in split])

    def reset_peaks(self) -> None:
        with self._lock:
            self.count()
            self.accounts.reset_peaks()
            self._count_pending()

    def reset_totals(self) -> None:
        with self._lock:
            self.count()
            self.accounts.reset_totals()

    def snapshot(self) -> list[dict[str, Any]]:
        """Segments with their blocks, by PyTorch's names of `memory_snapshot`; a block's `line` is the user's."""
        states = {"live": "active_allocated", "pending": "active_pending_free", "free": "inactive"}
        with self._lock:
            self.count()
            found = []
            for address, first in sorted(self._segments.items()):
                blocks = list(_chain(first))
                active = sum(b.size for b in blocks if b.state != "free")
                found.append(
                    {
                        "address": address,
                        "total_size": sum(b.size for b in blocks),
                        "stream": first.stream,
                        "segment_type": ("small", "large")[first.pool],
                        "allocated_size": sum(b.size for b in blocks if b.state == "live"),
                        "active_size": active,
                        "requested_size": sum(b.requested for b in blocks if b.state != "free"),
                        "blocks": [
                            {
                                "address": b.address,
                                "size": b.size,
                                "requested_size": b.requested if b.state != "free" else 0,
                                "state": states[b.state],
                                "line": b.line if b.state != "free" else "",
                            }
                            for b in blocks
                        ],
                    }
                )
            return found

    def _count_pending(self) -> None:
        """Bring the accounts of what is active up to date: what is live, and what is pending."""
        for i, (live, active) in enumerate(zip(self._live, self.accounts.active, strict=True)):
            waiting = [b for b in self._pending if i == 2 or b.pool == i]
            active.count = live.count + len(waiting)
            active.bytes = live.bytes + sum(b.size for b in waiting)
            active.peak_count = max(active.peak_count, active.count, live.peak_count)
            active.peak_bytes = max(active.peak_bytes, active.bytes, live.peak_bytes)
            gone = (len(waiting), sum(b.size for b in waiting))
            active.base = live.base
            active.freed[:2] = live.freed[0] - gone[0], live.freed[1] - gone[1]

    # ---- giving back

    def _collect(self) -> None:
        """Look at the blocks whose leases have died."""
        returned = self.returned
        while returned:
            block: Block = returned.popleft()
            account: Account = self._live[block.pool]
            account.remove(block.size, block.requested)
            account = self._all
            account.remove(block.size, block.requested)
            if block.users:
                self._await_users(block)
            elif self.caching:
                block.state = "free"
                block.bin.append(block)
            else:
                block.state = "free"
                self._drop(block)

    def _await_users(self, block: Block) -> None:
        self.activate()
        for stream in block.users or ():
            event = self.driver.create_event()
            self.driver.record_event(event, stream)
            block.events.append(event)
        block.users = None
        block.state = "pending"
        self._pending.append(block)

    def _poll(self) -> None:
        """Blocks that other streams have passed become free."""
        self.activate()
        waiting = []
        for block in self._pending:
            while block.events and self.driver.event_is_done(block.events[-1]):
                self.driver.destroy_event(block.events.pop())
            if block.events:
                waiting.append(block)
            elif self.caching:
                block.state = "free"
                block.bin.append(block)
            else:
                self._drop(block)
        self._pending = waiting

    # ---- finding

    def _find(self, nbytes: int, size: int, stream: int) -> Block:
        """A block that no bin had: of the merged free ones, of a new segment, or of one that others no longer need."""
        if not self.caching:
            return self._segment(nbytes, size, size, stream, int(size > SMALL))
        pool = int(size > SMALL)
        block = self._fit(size, stream, pool)
        if block is None and self._merge(stream, pool):
            block = self._fit(size, stream, pool)
        if block is None:
            if pool == 0:
                reserve = _SMALL_SEGMENT
            elif size < _LARGE:
                reserve = _LARGE_SEGMENT
            else:
                reserve = (size + _ROUND - 1) // _ROUND * _ROUND
            block = self._segment(nbytes, size, reserve, stream, pool)
        rest = block.size - size
        if rest >= (GRAIN if pool == 0 else SMALL + 1):
            self._split(block, size)
        # Large blocks may be more than was asked for; they come back for the next request of this size.
        block.bin = self._bins.setdefault((stream, size), [])
        return block

    def _fit(self, size: int, stream: int, pool: int) -> Block | None:
        """The least free block that is large enough."""
        free = self._free.get((stream, pool))
        if free:
            at = bisect.bisect_left(free, (size, 0))
            if at < len(free):
                return free.pop(at)[2]
        return None

    def _split(self, block: Block, size: int) -> None:
        """Cut a block down to `size`; the rest is free."""
        rest = Block(block.address + size, block.size - size, block.stream, block.pool, block.bin)
        rest.before, rest.after = block, block.after
        if block.after is not None:
            block.after.before = rest
        block.after = rest
        block.size = size
        self._put(rest)

    def _put(self, block: Block) -> None:
        bisect.insort(self._free.setdefault((block.stream, block.pool), []), (block.size, block.address, block))

    def _merge(self, stream: int | None = None, pool: int | None = None) -> bool:
        """Take blocks out of their bins (all, or one stream's of one pool) and merge them with free neighbours; whether any
        was there."""
        taken: list[Block] = []
        for (s, size), bin in self._bins.items():
            if (stream is None or s == stream) and (pool is None or (size > SMALL) == bool(pool)):
                taken += bin
                bin.clear()
        for block in taken:
            block.state = "binned"
        for block in taken:
            for neighbour in (block.before, block.after):
                if neighbour is not None and neighbour.state == "free":  # and so among the merged
                    free = self._free[neighbour.stream, neighbour.pool]
                    del free[bisect.bisect_left(free, (neighbour.size, neighbour.address))]
                    first, second = (neighbour, block) if neighbour is block.before else (block, neighbour)
                    first.size += second.size
                    first.after = second.after
                    if second.after is not None:
                        second.after.before = first
                    block = first
            block.state = "free"
            self._put(block)
        return bool(taken)

    # ---- the driver's side

    def _segment(self, nbytes: int, size: int, reserve: int, stream: int, pool: int) -> Block:
        """One free block that is a new segment of `reserve` bytes."""
        self.activate()
        address = self._ask(reserve)
        if address is None:
            self.accounts.retries += 1
            self.release()
            address = self._ask(reserve)
        if address is None and reserve > size:
            # the last of the memory: no more than what is needed
            reserve = size
            address = self._ask(reserve)
        if address is None:
            self.accounts.ooms += 1
            raise OutOfMemoryError(self._complaint(nbytes))
        block = Block(address, reserve, stream, pool, [])
        self._segments[address] = block
        for account in (self.accounts.segments[pool], self.accounts.segments[2]):
            account.add(reserve, reserve)
        return block

    def _ask(self, nbytes: int) -> int | None:
        if self.limit is not None and self.accounts.reserved + nbytes > self.limit:
            return None
        try:
            return self.driver.allocate(nbytes)
        except OutOfMemoryError:
            return None

    def _release_free(self) -> None:
        for key, free in self._free.items():
            for _, _, block in free:
                if block.whole:
                    self._drop(block)
            self._free[key] = [entry for entry in free if not entry[2].whole]

    def _drop(self, block: Block) -> None:
        """Give a segment of one free block back."""
        self.activate()
        self.driver.free(block.address)  # waits for the device, so whatever still runs on it ends before
        del self._segments[block.address]
        for account in (self.accounts.segments[block.pool], self.accounts.segments[2]):
            account.remove(block.size, block.size)

    def _complaint(self, nbytes: int) -> str:
        free, total = self.driver.memory_info()
        live = [b for first in self._segments.values() for b in _chain(first) if b.state == "live"]
        held, reserved = self._all.bytes, self.accounts.reserved
        text = (
            f"CUDA out of memory. Tried to allocate {spelled(nbytes)}. {self.what} has a total capacity of {spelled(total)}, of "
            f"which {spelled(free)} is free. Of the memory that this process has reserved ({spelled(reserved)}), "
            f"{spelled(held)} is in use."
        )
        if self.limit is not None:
            text += f" This process may reserve {spelled(self.limit)} at most (set_per_process_memory_fraction)."
        sizes: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for b in live:
            sizes[b.line] += b.size
            counts[b.line] += 1
        if live:
            text += "\nMost is held by what was made at:"
        for line, size in sizes.most_common(8):
            many = f", {counts[line]} allocations" if counts[line] > 1 else ""
            text += f"\n  {line or '(a line that is not known)'}: {spelled(size)}{many}"
        return text


def _chain(first: Block) -> Iterator[Block]:
    block: Block | None = first
    while block is not None:
        yield block
        block = block.after
