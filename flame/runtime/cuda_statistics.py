"""What a device's memory is used for, in numbers: the accounts that the allocator keeps, and PyTorch's names for them.

    account ::= count bytes requested        now; the most there were; and how many came and went since they were last reset

An account is one flat record, because every allocation writes to two of them: its pool's, and that of both pools.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

#: PyTorch's names of the pools, of both together last
POOLS: Final = ("small_pool", "large_pool", "all")


class Account:
    """How many there are, their bytes, and the bytes that were asked for."""

    __slots__ = ("base", "bytes", "count", "freed", "peak_bytes", "peak_count", "peak_requested", "requested")

    def __init__(self) -> None:
        self.count = self.bytes = self.requested = 0
        self.peak_count = self.peak_bytes = self.peak_requested = 0
        self.freed = [0, 0, 0]
        self.base = (0, 0, 0)  #: what there was when the totals were last reset

    def add(self, size: int, requested: int) -> None:
        count = self.count = self.count + 1
        total = self.bytes = self.bytes + size
        asked = self.requested = self.requested + requested
        if count > self.peak_count:
            self.peak_count = count
        if total > self.peak_bytes:
            self.peak_bytes = total
        if asked > self.peak_requested:
            self.peak_requested = asked

    def remove(self, size: int, requested: int) -> None:
        self.count -= 1
        self.bytes -= size
        self.requested -= requested
        freed = self.freed
        freed[0] = freed[0] + 1
        freed[1] = freed[1] + size
        freed[2] = freed[2] + requested

    def now(self) -> tuple[int, int, int]:
        return self.count, self.bytes, self.requested

    def peaks(self) -> tuple[int, int, int]:
        return self.peak_count, self.peak_bytes, self.peak_requested

    def taken(self) -> tuple[int, ...]:
        """All that came since the totals were last reset."""
        return tuple(n + f - b for n, f, b in zip(self.now(), self.freed, self.base, strict=True))

    def reset_peaks(self) -> None:
        self.peak_count, self.peak_bytes, self.peak_requested = self.now()

    def reset_totals(self) -> None:
        self.base = self.now()
        self.freed = [0, 0, 0]

    def named(self, pool: str, names: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Pairs as in `memory_stats`; `names` are those of the three numbers (a third may be missing)."""
        for i, name in enumerate(names):
            yield f"{name}.{pool}.current", self.now()[i]
            yield f"{name}.{pool}.peak", self.peaks()[i]
            yield f"{name}.{pool}.allocated", self.taken()[i]
            yield f"{name}.{pool}.freed", self.freed[i]


class Accounts:
    """Of the small pool, the large one, and both: what is in use (`live`), what is in use or waits for another stream to be
    done with it (`active`), and the segments."""

    def __init__(self) -> None:
        self.live = [Account() for _ in POOLS]
        self.active = [Account() for _ in POOLS]
        self.segments = [Account() for _ in POOLS]
        self.retries = self.ooms = 0

    @property
    def reserved(self) -> int:
        return self.segments[2].bytes

    def reset_peaks(self) -> None:
        for account in (*self.live, *self.active, *self.segments):
            account.reset_peaks()

    def reset_totals(self) -> None:
        for account in (*self.live, *self.active, *self.segments):
            account.reset_totals()
        self.retries = self.ooms = 0

    def named(self, split: Sequence[tuple[int, int]]) -> dict[str, int]:
        """By PyTorch's names; `split` are the free parts of segments in either pool, how many and their bytes."""
        found: dict[str, int] = {}
        for i, pool in enumerate(POOLS):
            found |= self.live[i].named(pool, ("allocation", "allocated_bytes", "requested_bytes"))
            found |= self.active[i].named(pool, ("active", "active_bytes"))
            found |= self.segments[i].named(pool, ("segment", "reserved_bytes"))
            parts = split if pool == "all" else split[i : i + 1]
            found[f"inactive_split.{pool}.current"] = sum(n for n, _ in parts)
            found[f"inactive_split_bytes.{pool}.current"] = sum(b for _, b in parts)
        device = self.segments[2]
        return dict(sorted(found.items())) | {
            "num_alloc_retries": self.retries,
            "num_ooms": self.ooms,
            "num_device_alloc": device.taken()[0],
            "num_device_free": device.freed[0],
            "max_split_size": -1,
        }


def spelled(nbytes: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes} bytes"
