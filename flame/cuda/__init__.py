"""flame.cuda: PyTorch's questions about GPUs, streams and events, answered by `flame.runtime.cuda`.

Questions have answers on every machine (`is_available()`, `device_count()`, `memory_allocated()`); whatever needs a GPU raises
MissingTargetError, a RuntimeError that says what to install, where there is none. A device is opened when it is first used.
Memory is in `memory`. Draws come from one generator for all devices (flame.random), so seeding one seeds all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flame import random
from flame.cuda.memory import (
    empty_cache,
    get_per_process_memory_fraction,
    host_memory_reserved,
    ipc_collect,
    max_memory_allocated,
    max_memory_cached,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_cached,
    memory_reserved,
    memory_snapshot,
    memory_stats,
    memory_stats_as_nested_dict,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_max_memory_allocated,
    reset_max_memory_cached,
    reset_peak_memory_stats,
    set_per_process_memory_fraction,
)
from flame.dtypes import bfloat16, dtype, float32
from flame.errors import CudaError, OutOfMemoryError
from flame.runtime import cuda, gpu_common
from flame.runtime.cuda import Event, Stream
from flame.runtime.cuda_gpu import Properties
from flame.tensor import Tensor

AcceleratorError = CudaError

__all__ = [
    "AcceleratorError", "CudaError", "Event", "ExternalStream", "OutOfMemoryError", "Stream", "StreamContext",
    "can_device_access_peer", "current_device", "current_stream", "default_stream", "device",
    "device_count", "device_of", "empty_cache", "get_arch_list", "get_device_capability", "get_device_name",
    "get_device_properties", "get_per_process_memory_fraction", "get_rng_state", "get_rng_state_all", "host_memory_reserved",
    "init", "initial_seed", "ipc_collect", "is_available", "is_bf16_supported", "is_current_stream_capturing",
    "is_initialized", "is_tf32_supported", "manual_seed", "manual_seed_all", "max_memory_allocated", "max_memory_cached",
    "max_memory_reserved", "mem_get_info", "memory_allocated", "memory_cached", "memory_reserved", "memory_snapshot",
    "memory_stats", "memory_stats_as_nested_dict", "memory_summary", "precompile", "reset_accumulated_memory_stats",
    "reset_max_memory_allocated", "reset_max_memory_cached", "reset_peak_memory_stats", "seed", "seed_all", "set_device",
    "set_per_process_memory_fraction", "set_rng_state", "set_rng_state_all", "set_stream", "stream", "synchronize",
]  # fmt: skip


# ---- devices


def is_available() -> bool:
    """Whether tensors can live on a GPU."""
    return cuda.available()


def device_count() -> int:
    """How many GPUs this process sees."""
    return cuda.device_count()


def is_initialized() -> bool:
    """Whether a GPU has been opened in this process."""
    return cuda.opened()


def init() -> None:
    """Open the current device."""
    cuda.gpu()


def precompile(*dtypes: dtype, device: Any = None, wait: bool = False) -> None:
    """Compile what most eager programs run (arithmetic, sums, products, casts; by default of float32 and bfloat16) on all
    processors, beside the program, so that its first operations find it. Done once for a machine: kernels are kept on disk.

    `wait` returns when it is done. Raises MissingTargetError where there is no GPU.
    """
    gpu_common.prepare(cuda.gpu(cuda.device_index(device)), dtypes or (float32, bfloat16), wait)


def current_device() -> int:
    """The number of the calling thread's current device."""
    return cuda.current_device()


def set_device(device: Any) -> None:
    """Make a device the calling thread's current one; a negative number changes nothing.

    Raises RuntimeError where there is none of that number.
    """
    cuda.set_device(cuda.device_index(device))


class device:
    """A context in which another device is current: `with flame.cuda.device(1): ...`; None or a negative number changes
    nothing."""

    def __init__(self, device: Any):
        self.idx = -1 if device is None else cuda.device_index(device)

    def __enter__(self) -> None:
        self.prev_idx = cuda.current_device()
        if self.idx >= 0:
            cuda.set_device(self.idx)

    def __exit__(self, *error: object) -> None:
        cuda.set_device(self.prev_idx)


class device_of(device):
    """The context of the device that a tensor is on; for one on the CPU it changes nothing."""

    def __init__(self, obj: Tensor):
        super().__init__(obj.device if obj.device.type == "cuda" else None)

    def __enter__(self) -> None:
        if self.idx >= 0:
            super().__enter__()

    def __exit__(self, *error: object) -> None:
        if self.idx >= 0:
            super().__exit__(*error)


def synchronize(device: Any = None) -> None:
    """Wait for all work on a device, by default the current one."""
    cuda.gpu(cuda.device_index(device)).synchronize()


def get_device_properties(device: Any = None) -> Properties:
    """Name, capability, memory and so on, by PyTorch's names."""
    return cuda.gpu(cuda.device_index(device)).properties


def get_device_name(device: Any = None) -> str:
    return get_device_properties(device).name


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """(major, minor)"""
    return cuda.gpu(cuda.device_index(device)).capability


def can_device_access_peer(device: Any, peer_device: Any) -> bool:
    """Whether one device reaches another's memory itself."""
    found = cuda.runtime()
    mine, theirs = cuda.device_index(device), cuda.device_index(peer_device)
    return found.gpu(mine).driver.can_access_peer(mine, found.gpu(theirs).index)


def get_arch_list() -> list[str]:
    """The architectures of this machine's GPUs, for which kernels are compiled when they are needed; none without a GPU."""
    return sorted({cuda.gpu(i).target.arch for i in range(device_count())})


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Whether the current device computes in bfloat16; `including_emulation`: or has kernels that compute it otherwise."""
    return is_available() and (including_emulation or get_device_capability()[0] >= 8)


def is_tf32_supported() -> bool:
    return is_available() and get_device_capability()[0] >= 8


# ---- streams


def current_stream(device: Any = None) -> Stream:
    """The stream that the calling thread's work on a device goes to."""
    return cuda.current_stream(cuda.device_index(device))


def default_stream(device: Any = None) -> Stream:
    """The stream that is current where none was chosen."""
    return Stream.of(cuda.gpu(cuda.device_index(device)), 0)


def set_stream(stream: Stream | None) -> None:
    """Make a stream its device's current one, and its device the current one. None changes nothing."""
    if stream is not None:
        cuda.set_device(stream.device_index)
        stream.gpu.set_stream(stream.cuda_stream)


@contextmanager
def StreamContext(stream: Stream | None) -> Iterator[Stream | None]:
    """A context in which `stream` is current, and its device is; None changes nothing."""
    if stream is None:
        yield None
        return
    device, before = cuda.current_device(), stream.gpu.current_stream
    set_stream(stream)
    try:
        yield stream
    finally:
        stream.gpu.set_stream(before)
        cuda.set_device(device)


stream = StreamContext


def ExternalStream(stream_ptr: int, device: Any = None) -> Stream:
    """A stream that somebody else made, by its driver's handle; it must live as long as it is used."""
    return Stream.of(cuda.gpu(cuda.device_index(device)), stream_ptr)


def is_current_stream_capturing() -> bool:
    """False: programs become graphs without a stream that captures (`compile(mode="reduce-overhead")`)."""
    return False


# ---- random numbers


def manual_seed(seed: int) -> None:
    """Seed the generator, which all devices share. Without a GPU nothing happens, as in PyTorch."""
    if is_available():
        random.manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """As `manual_seed`."""
    manual_seed(seed)


def seed() -> None:
    """Seed the generator with a number that is not known."""
    if is_available():
        random.seed()


seed_all = seed


def initial_seed() -> int:
    """The number that the generator was seeded with."""
    cuda.runtime()
    return random.initial_seed()


def get_rng_state(device: Any = "cuda") -> Tensor:
    """The generator's state."""
    cuda.device_index(device)
    return random.get_rng_state()


def set_rng_state(new_state: Tensor, device: Any = "cuda") -> None:
    """Set the generator's state to what `get_rng_state` gave."""
    cuda.device_index(device)
    random.set_rng_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    """The state for each device: the same for all."""
    return [random.get_rng_state() for _ in range(device_count())]


def set_rng_state_all(new_states: list[Tensor]) -> None:
    for state in new_states:
        random.set_rng_state(state)


_REFUSED = {
    "CUDAGraph": 'flame.compile(f, mode="reduce-overhead") launches a compiled program as a graph',
    "graph": 'flame.compile(f, mode="reduce-overhead") launches a compiled program as a graph',
    "make_graphed_callables": 'flame.compile(f, mode="reduce-overhead") launches a compiled program as a graph',
    "graph_pool_handle": 'flame.compile(f, mode="reduce-overhead") keeps graphs without pools',
    "MemPool": "the caching allocator has one pool a stream",
    "nvtx": "flame.profiler names what ran",
    "caching_allocator_alloc": "tensors hold memory: flame.empty(n, dtype=flame.uint8, device='cuda')",
    "utilization": "the package nvidia-ml-py asks the driver for it",
    "temperature": "the package nvidia-ml-py asks the driver for it",
    "power_draw": "the package nvidia-ml-py asks the driver for it",
    "clock_rate": "the package nvidia-ml-py asks the driver for it",
}


def __getattr__(name: str) -> Any:
    instead = _REFUSED.get(name)
    if instead is None:
        raise AttributeError(f"module 'flame.cuda' has no attribute {name!r}")
    raise AttributeError(f"flame.cuda.{name} is not there: {instead}")
