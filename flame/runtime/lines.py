"""Which of the user's lines is running, and how it is named."""

from __future__ import annotations

import sys
from typing import Any


def named(file: str) -> str:
    """A file as it is shown: a notebook's cell by its number, as in IPython's tracebacks (its file's name is a hash)."""
    notebook = sys.modules.get("IPython")
    shell = None if notebook is None else notebook.get_ipython()
    cell_of = getattr(getattr(shell, "compile", None), "format_code_name", None)  # (IPython 8 and later)
    cell = None if cell_of is None else cell_of(file)
    return file if cell is None else cell[1]


def user_source() -> str:
    """file:line of the innermost frame outside flame; its demo is a user's program."""
    f: Any = sys._getframe(1)
    while f is not None:
        module = f.f_globals.get("__name__", "")
        if not module.startswith("flame.") or module.startswith("flame.demo."):
            return f"{named(f.f_code.co_filename)}:{f.f_lineno}"
        f = f.f_back
    return ""
