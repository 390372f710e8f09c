"""Kernels compiled for a GPU, each once: in this process by what it computes, on disk by its text and Triton's version.

prepared(kernels, target)    the binaries of many kernels, compiled side by side where some are new
loaded(gpu, kernel, hints)   a kernel that the GPU can launch

payload ::= length of header (8 bytes) | header, JSON | assembly text | machine code
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from flame.compiler.kernel import Kernel, digest
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import Target
from flame.compiler.to_triton import TritonSource, to_triton
from flame.runtime import cache
from flame.runtime.locks import Lock
from flame.runtime.triton_tools import Binary, compile_triton, load_triton

_FIELDS: Final = (
    "entry",
    "arch",
    "shared",
    "threads",
    "registers",
    "stack",
    "spills",
    "scratch_pointers",
    "scratch",
    "scratch_align",
)

_binaries: dict[tuple[str, str], Binary] = {}
_sources: dict[tuple, TritonSource] = {}
_lock = Lock()


def source_of(kernel: Kernel, target: Target, hints: Mapping[str, int]) -> TritonSource:
    """A kernel's Triton source under the schedule that is chosen for these sizes. Raises Refused."""
    key = (digest(kernel), target, tuple(sorted(hints.items())))
    found = _sources.get(key)
    if found is None:
        found = _sources[key] = to_triton(kernel, choose_gpu(kernel, target, hints))
    return found


def binary_of(source: TritonSource, arch: str) -> Binary:
    """The compiled source: known, or read from disk, or compiled now. Raises CompileError."""
    key = (source.digest, arch)
    found = _binaries.get(key)
    if found is None:
        name = cache.key("triton", load_triton().__version__, source.digest, arch)
        stored = cache.shared().get(name)
        found = None if stored is None else _read(stored)
        if found is None:
            found = compile_triton(source, arch)
            cache.shared().put(name, _written(found))
        with _lock:
            found = _binaries.setdefault(key, found)
    return found


def _written(b: Binary) -> bytes:
    about: dict[str, Any] = {name: getattr(b, name) for name in _FIELDS}
    about["warnings"] = list(b.warnings)
    text = b.asm.encode()
    about["text"] = len(text)
    header = json.dumps(about).encode()
    return len(header).to_bytes(8, "little") + header + text + b.code


def _read(payload: bytes) -> Binary | None:
    """The binary of an entry, or None where another version wrote something else."""
    try:
        size = int.from_bytes(payload[:8], "little")
        about = json.loads(payload[8 : 8 + size])
        end = 8 + size + about["text"]
        text = payload[8 + size : end].decode()
        return Binary(code=payload[end:], asm=text, warnings=tuple(about["warnings"]), **{n: about[n] for n in _FIELDS})
    except (ValueError, KeyError, TypeError):
        return None
