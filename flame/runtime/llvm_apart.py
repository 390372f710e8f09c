"""Object code that takes seconds to make, made by a process of its own.

    making = begin(text, baseline(), passes=1, what="...")     None: it is on disk, or no other process can make it
    making.wait()                                              then `llvm_jit.cached_object` finds it, or makes it where that failed

This process keeps its interpreter, and LLVM, to itself meanwhile, and may end at any time: the child goes on and leaves what it
makes on disk, for the next one.

    question ::= JSON: [folder of the store, text, target, passes, what]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from flame.compiler.target_cpu import CpuTarget
from flame.runtime import cache, children, llvm_jit

_PATIENCE = 120.0  #: seconds after which a child is given up


class Making:
    """A child at work."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process
        llvm_jit.immortal(process)  # (that it outlives this process is meant: nobody warns of it)

    def wait(self) -> None:
        """Until it ended."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def begin(text: str, cpu: CpuTarget, *, passes: int, what: str) -> Making | None:
    """Begin with what `llvm_jit.cached_object` of the same arguments would make."""
    store = cache.shared()
    if store.disabled or store.holds(llvm_jit.name_of(text, cpu, passes=passes)):
        return None
    target = asdict(cpu) | {"features": sorted(cpu.features)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        with tempfile.TemporaryFile() as question:  # (a pipe would have to be fed by this process, which may end)
            question.write(json.dumps([str(store.folder.parent.absolute()), text, target, passes, what]).encode())
            question.seek(0)
            return Making(children.start(__name__, "serve", stdin=question, **quiet))
    except OSError:
        return None


# ---- in the child


def serve() -> None:
    """Answer one question."""
    folder, text, target, passes, what = json.load(sys.stdin.buffer)
    cpu = CpuTarget(**target | {"features": frozenset(target["features"])})
    llvm_jit.cached_object(text, cpu, passes=passes, what=what, store=cache.DiskCache(Path(folder)))
