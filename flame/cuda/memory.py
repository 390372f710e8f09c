"""flame.cuda.memory: what the memory of a GPU is used for, by PyTorch's names. Figures are 0 where no GPU has been opened."""

from __future__ import annotations

from typing import Any

from flame.runtime import cuda
from flame.runtime.cuda_gpu import Gpu
from flame.runtime.cuda_statistics import spelled


def _opened(device: Any) -> Gpu | None:
    """The device, if it has been opened; asking what it holds opens none."""
    if not cuda.opened():
        return None
    return cuda.runtime().gpus.get(cuda.device_index(device))


def memory_stats(device: Any = None) -> dict[str, int]:
    """The allocator's accounts: counts and bytes, "{allocation,segment,active,inactive_split,allocated_bytes,reserved_bytes,
    active_bytes,inactive_split_bytes,requested_bytes}.{all,small_pool,large_pool}.{current,peak,allocated,freed}" (of
    inactive_split: current), "num_ooms" and so on. Empty where the device has not been opened."""
    on = _opened(device)
    return {} if on is None else on.memory.statistics()


def memory_stats_as_nested_dict(device: Any = None) -> dict[str, Any]:
    """`memory_stats` as dictionaries in dictionaries."""
    nested: dict[str, Any] = {}
    for name, value in memory_stats(device).items():
        *path, last = name.split(".")
        where = nested
        for part in path:
            where = where.setdefault(part, {})
        where[last] = value
    return nested


def memory_allocated(device: Any = None) -> int:
    """Bytes that tensors hold, in whole blocks."""
    return memory_stats(device).get("allocated_bytes.all.current", 0)


def max_memory_allocated(device: Any = None) -> int:
    """The most that `memory_allocated` has been since the start, or since `reset_peak_memory_stats`."""
    return memory_stats(device).get("allocated_bytes.all.peak", 0)


def memory_reserved(device: Any = None) -> int:
    """Bytes that the allocator holds, for tensors or to hand out again."""
    return memory_stats(device).get("reserved_bytes.all.current", 0)


def max_memory_reserved(device: Any = None) -> int:
    """The most that `memory_reserved` has been since the start, or since `reset_peak_memory_stats`."""
    return memory_stats(device).get("reserved_bytes.all.peak", 0)


memory_cached, max_memory_cached = memory_reserved, max_memory_reserved


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let peaks start from what there is now."""
    on = _opened(device)
    if on is not None:
        on.memory.reset_peaks()


reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats


def reset_accumulated_memory_stats(device: Any = None) -> None:
    """Let totals ("allocated", "freed") and the counts of failures start from 0."""
    on = _opened(device)
    if on is not None:
        on.memory.reset_totals()


def host_memory_reserved(device: Any = None) -> int:
    """Bytes of pinned host memory."""
    on = _opened(device)
    return 0 if on is None else on.pinned.reserved


def memory_snapshot(device: Any = None) -> list[dict[str, Any]]:
    """Every segment with its blocks: addresses, sizes, streams, states, and the user's lines that asked for them."""
    on = _opened(device)
    return [] if on is None else on.memory.snapshot()


def empty_cache() -> None:
    """Hand what no tensor holds back to the driver, on every device. Waits for them."""
    if cuda.opened():
        for on in cuda.runtime().gpus.values():
            on.memory.release()
            on.pinned.release()


def ipc_collect() -> None:
    """Nothing: memory is not shared between processes."""


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes of a device, by its driver."""
    return cuda.gpu(cuda.device_index(device)).memory_info()


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Let this process reserve no more than a part of a device's memory. Raises TypeError or ValueError for no such part."""
    if not isinstance(fraction, float):
        raise TypeError("Invalid type for fraction argument, must be `float`")
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
    on = cuda.gpu(cuda.device_index(device))
    on.memory.limit = None if fraction == 1 else int(fraction * on.total_memory)


def get_per_process_memory_fraction(device: Any = None) -> float:
    """The part of a device's memory that this process may reserve."""
    on = cuda.gpu(cuda.device_index(device))
    return 1.0 if on.memory.limit is None else on.memory.limit / on.total_memory


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """`memory_stats` as a table for people; `abbreviated`: without the pools."""
    stats = memory_stats(device)
    index = cuda.device_index(device) if cuda.available() else 0
    head = (
        f"memory of cuda:{index}: {stats.get('num_ooms', 0)} times out of memory, {stats.get('num_alloc_retries', 0)} retries"
    )
    rows: list[tuple[str, ...]] = [("", "now", "most", "came", "went")]
    for name in ("allocated_bytes", "requested_bytes", "active_bytes", "reserved_bytes", "allocation", "segment"):
        for pool in ("all",) if abbreviated else ("all", "large_pool", "small_pool"):
            values = [stats.get(f"{name}.{pool}.{kind}", 0) for kind in ("current", "peak", "allocated", "freed")]
            show = spelled if name.endswith("bytes") else str
            title = name.replace("_", " ") if pool == "all" else f"  {pool.replace('_', ' ')}"
            rows.append((title, *map(show, values)))
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    lines = ["  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:]))]) for r in rows]
    return "\n".join([head, *lines]) + "\n"
