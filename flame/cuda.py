"""Questions about CUDA, answered honestly: this version compiles GPU kernels but has no runtime that launches them."""

from __future__ import annotations

from typing import Any

from flame.runtime.device import require


def is_available() -> bool:
    """Whether tensors can live on a GPU."""
    return False


def device_count() -> int:
    return 0


def is_initialized() -> bool:
    return False


def current_device() -> int:
    """Raises MissingTargetError: there is none."""
    require("cuda")
    return 0


def set_device(device: Any) -> None:
    require("cuda")


def synchronize(device: Any = None) -> None:
    require("cuda")


def get_device_name(device: Any = None) -> str:
    require("cuda")
    return ""


def manual_seed(seed: int) -> None:
    """Accepted without a GPU, as in PyTorch: there is no generator to seed."""


def manual_seed_all(seed: int) -> None:
    """Accepted without a GPU, as in PyTorch: there is no generator to seed."""


def empty_cache() -> None:
    """Nothing is cached where nothing is allocated."""


def memory_allocated(device: Any = None) -> int:
    return 0


def max_memory_allocated(device: Any = None) -> int:
    return 0
