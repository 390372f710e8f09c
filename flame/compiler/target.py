"""The machine that a graph is compiled for, as far as fusion and scheduling need to know it.

Pure data: whoever owns the device (`flame.runtime`) fills it in; tests and cross-compilation write it by hand. What only
one renderer needs (LLVM's triple, cache sizes for packing) stands in that renderer's own description.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Target:
    """A processor that kernels run on."""

    kind: Literal["cpu", "cuda"]
    #: LLVM's name of the CPU ("znver3", "generic"), or the GPU architecture ("sm_90")
    arch: str = "generic"
    #: float32 elements that one instruction handles: a vector register, or a warp
    lanes: int = 8
    #: what runs at the same time: threads of the pool, or streaming multiprocessors
    units: int = 1
    #: bytes that one unit keeps close by: the L2 of a core, or a multiprocessor's shared memory
    cache: int = 512 * 1024
    #: further abilities by the vendor's names ("avx2", "fma", "bf16")
    features: frozenset[str] = frozenset()
    #: large contractions on plain operands are left to the platform's library (NumPy's BLAS, cuBLASLt)
    library_matmul: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.kind == "cuda"

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}"


#: A plain CPU with 128-bit vectors and no library: what tests compile for unless they say otherwise.
GENERIC_CPU = Target("cpu", lanes=4)
