"""Kernels compiled for a GPU, each once: in this process by what it computes, on disk by its text and Triton's version.

source_of(kernel, target, hints)   a kernel's source under the schedule chosen for these sizes
binary_of(source, arch)            its binary
prepare(sources, arch)             those of many, compiled side by side where they are new, for `binary_of` to find
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flame.compiler.kernel import Kernel, digest
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import Target
from flame.compiler.to_triton import TritonSource, to_triton
from flame.runtime import cache
from flame.runtime.gpu_binary import read, written
from flame.runtime.locks import Lock
from flame.runtime.triton_pool import compile_all
from flame.runtime.triton_tools import Binary, compile_triton, load_triton

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
    return _known(source, arch) or _keep(source, arch, compile_triton(source, arch))


def prepare(sources: Iterable[TritonSource], arch: str) -> None:
    """Have the binaries of these sources ready. Those that Triton refuses are left for `binary_of`, which raises."""
    new = {s.digest: s for s in sources if _known(s, arch) is None}
    for source, made in zip(new.values(), compile_all([(s, arch) for s in new.values()]), strict=True):
        if isinstance(made, Binary):
            _keep(source, arch, made)


def _known(source: TritonSource, arch: str) -> Binary | None:
    """A binary from this process or from disk."""
    found = _binaries.get((source.digest, arch))
    if found is None:
        stored = cache.shared().get(_name(source, arch))
        found = None if stored is None else read(stored)
        if found is not None:
            with _lock:
                found = _binaries.setdefault((source.digest, arch), found)
    return found


def _keep(source: TritonSource, arch: str, made: Binary) -> Binary:
    cache.shared().put(_name(source, arch), written(made))
    with _lock:
        return _binaries.setdefault((source.digest, arch), made)


def _name(source: TritonSource, arch: str) -> str:
    return cache.key("triton", load_triton().__version__, source.digest, arch)
