"""cuDNN is not used: the switches that programs set are kept, and change nothing."""

from __future__ import annotations

from typing import Any

enabled = True
benchmark = False
deterministic = False
allow_tf32 = True
benchmark_limit: int | None = 10


def is_available() -> bool:
    return False


def version() -> Any:
    return None
