"""A CUDA device on which everything is checked and nothing computed: whole models at their full sizes, on any machine.

    with gpu_for_tests(library=LaunchesOnly()) as fake: ...       as in fake_cuda, but memory holds zeros whatever is done to it

Memory is address space that nothing is written to, of an H100's size or another's. Kernels are compiled by Triton for the device
(`compiling=False`: they are said to be), so that their threads, shared memory and parameters are those of the launch on hardware.
`largest` is the most memory that was taken at once; `used` counts launches of every kernel.

    rehearsed(call, gpu) -> sources       the kernels that `call` would have compiled one by one on `gpu`, which is not touched
"""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from fake_cuda import FakeDriver, FakeLibrary

from flame.compiler.to_triton import TritonSource
from flame.runtime import cuda, gpu_eager
from flame.runtime.cuda_driver import Attribute
from flame.runtime.cuda_gpu import Compiler, Gpu
from flame.runtime.gpu_kernels import binary_of
from flame.runtime.triton_tools import Binary

#: bytes of an H100's memory that programs may take
H100 = 79 << 30
_LAZY = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)  # (named since Python 3.13)


class LaunchesOnly(FakeLibrary):
    """A device of sm_90 whose work is done as soon as it is given."""

    def __init__(self, memory: int = H100, compiling: bool = True):
        super().__init__(memory=memory, lazy=False)
        self.compiling = compiling
        self.largest = 0
        self.used: Counter[str] = Counter()

    def compiler(self) -> Compiler:
        return binary_of if self.compiling else self.compile

    def announced(self, code: bytes, source: TritonSource) -> None:
        if code not in self.compiled:
            self.compiled[code] = binary_of(source, "sm_90")

    def _room(self, nbytes: int) -> np.ndarray:
        return np.frombuffer(mmap.mmap(-1, nbytes, flags=_LAZY), np.uint8)

    def _allocate(self, out: int, nbytes: int, pinned: bool) -> None:
        super()._allocate(out, nbytes, pinned)
        self.largest = max(self.largest, self.allocated())

    def _move(self, to: int, start: int, nbytes: int) -> None:
        if not any(m.address <= to < m.address + m.size and not m.pinned for m in self.memory.values()):
            ctypes.memset(to, 0, nbytes)

    def _aside(self, host: int, nbytes: int) -> Any:
        return ctypes.c_char(0)

    def _set(self, to: int, nbytes: int, value: bytes) -> None:
        """Zeros stay."""

    def _run(self, source: TritonSource, buffers: dict[str, tuple[int, Any]], symbols: dict[str, int]) -> None:
        self.used[source.entry] += 1


class Rehearsal(LaunchesOnly):
    """A device like `gpu`, which notes what is to be compiled for it and has nothing compiled."""

    def __init__(self, gpu: Gpu):
        super().__init__(memory=gpu.total_memory, compiling=False)
        self.gpu = gpu
        self.sources: dict[str, TritonSource] = {}

    def _cuDeviceGetAttribute(self, out: int, which: int, device: int) -> None:
        self._put(out, self.gpu.driver.attribute(self.gpu.index, Attribute(which)), ctypes.c_int)

    def compile(self, source: TritonSource, arch: str) -> Binary:
        self.sources[source.digest] = source
        return super().compile(source, arch)


def rehearsed(call: Callable[[], object], gpu: Gpu) -> list[TritonSource]:
    """The sources, each once, of a call that makes all that it works on. What it computes is zeros, and it must not mind."""
    library = Rehearsal(gpu)
    with cuda.use_driver(FakeDriver(library), library.compiler(), lambda: library.products()):
        here = cuda.gpu()
        # what eager compiles for a node depends on the calls of it that there were
        for node in [n for n in gpu_eager._nodes.values() if n.gpu is gpu]:
            copied = gpu_eager.node_of(here, node.primitive, node.kinds, node.params)
            copied.constants, copied.seen = set(node.constants), dict(node.seen)
            copied.general = {c: list(known) for c, known in node.general.items()}
        call()
        for key in [k for k, n in gpu_eager._nodes.items() if n.gpu is here]:
            del gpu_eager._nodes[key]
        for call_key in [k for k in gpu_eager._ready if k[0] is here]:
            del gpu_eager._ready[call_key]
    return list(library.sources.values())
