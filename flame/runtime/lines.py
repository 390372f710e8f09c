"""Which of the user's lines is running."""

from __future__ import annotations

import sys
from typing import Any


def user_source() -> str:
    """file:line of the innermost frame outside flame; its demo is a user's program."""
    f: Any = sys._getframe(1)
    while f is not None:
        module = f.f_globals.get("__name__", "")
        if not module.startswith("flame.") or module.startswith("flame.demo."):
            return f"{f.f_code.co_filename}:{f.f_lineno}"
        f = f.f_back
    return ""
