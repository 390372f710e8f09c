"""Child processes that run a function of flame's: nothing of the parent's main module is imported or run again (as
`multiprocessing` would), no thread or lock is inherited (as by `fork`).

    process = start("flame.runtime.triton_pool", "serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

The function is called without arguments and talks over its pipes. A session of its own keeps Ctrl-C in a terminal from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

_CODE = """
import sys
sys.path[:] = sys.argv[3:]
from importlib import import_module
getattr(import_module(sys.argv[1]), sys.argv[2])()
"""


def start(module: str, function: str, **settings: Any) -> subprocess.Popen[bytes]:
    """The process. Raises OSError where there can be none: no room for it, or this program is not the interpreter (it is embedded,
    or frozen), so that starting it again would start something else."""
    name = os.path.basename(sys.executable or "").lower()
    if getattr(sys, "frozen", False) or not name.startswith(("python", "pypy")):
        raise OSError(f"sys.executable is {sys.executable!r}, which is no Python")
    path = [p or os.getcwd() for p in sys.path]
    command = [sys.executable, "-c", _CODE, module, function, *path]
    return subprocess.Popen(command, start_new_session=True, **settings)
