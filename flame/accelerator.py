"""flame.accelerator: questions about the accelerator of the process, answered honestly: tensors live on the CPU."""

from __future__ import annotations

from typing import Any

from flame.runtime.device import require


def is_available() -> bool:
    """Whether tensors can live on an accelerator."""
    return False


def device_count() -> int:
    return 0


def current_accelerator(check_available: bool = False) -> Any:
    """The device of the accelerator: None, as there is none."""
    return None


def current_device_index() -> int:
    """Raises MissingTargetError: there is none."""
    require("cuda")
    return 0


def synchronize(device: Any = None) -> None:
    """Raises MissingTargetError: there is none to wait for."""
    require("cuda")
