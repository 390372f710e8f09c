"""The machine that a graph is compiled for, as far as fusion and scheduling need to know it.

Pure data: whoever owns the device (`flame.runtime`) fills it in; tests and cross-compilation write it by hand, or take a GPU
by its data sheet (`gpu("sm_90")`). What only one renderer needs (LLVM's triple, cache sizes for packing) stands in that
renderer's own description.
"""

from __future__ import annotations

import re
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
    #: bytes that one unit keeps close by: the L2 of a core, or the shared memory that one program of a GPU may take
    cache: int = 512 * 1024
    #: further abilities by the vendor's names ("avx2", "fma", "bf16", "fp8")
    features: frozenset[str] = frozenset()
    #: large contractions on plain operands are left to the platform's library (NumPy's BLAS, cuBLASLt)
    library_matmul: bool = False
    #: how products of float32 are taken: as float32, or of the 10 bits that tensor cores read ("high", where they can)
    matmul_precision: Literal["highest", "high"] = "highest"
    #: GPUs: 32-bit registers of a multiprocessor, the most that one thread may have, and warps that it holds at a time
    registers: int = 65536
    thread_registers: int = 255
    warps: int = 64

    @property
    def is_gpu(self) -> bool:
        return self.kind == "cuda"

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}"


#: A plain CPU with 128-bit vectors and no library: what tests compile for unless they say otherwise.
GENERIC_CPU = Target("cpu", lanes=4)

# ---- GPUs by their data sheets

#: the GPU that source is written for where none is named
DEFAULT_GPU = "sm_90"


@dataclass(frozen=True, slots=True)
class DataSheet:
    """The figures of an architecture's largest common product."""

    lanes: int  #: of a warp
    units: int  #: multiprocessors
    shared: int  #: KiB of shared memory that one program may take
    registers: int  #: 32-bit registers of a multiprocessor, in thousands (1024)
    thread_registers: int  #: of them, the most that one thread may have
    warps: int  #: that a multiprocessor holds
    features: tuple[str, ...] = ()


_TENSOR = ("fp16", "bf16", "tf32", "async_copy")
_GPUS = {
    "sm_70": DataSheet(32, 80, 96, 64, 255, 64, ("fp16",)),
    "sm_75": DataSheet(32, 40, 64, 64, 255, 32, ("fp16",)),
    "sm_80": DataSheet(32, 108, 163, 64, 255, 64, _TENSOR),
    "sm_86": DataSheet(32, 84, 99, 64, 255, 48, _TENSOR),
    "sm_89": DataSheet(32, 128, 99, 64, 255, 48, (*_TENSOR, "fp8")),
    "sm_90": DataSheet(32, 132, 227, 64, 255, 64, (*_TENSOR, "fp8", "tma", "wgmma")),
    "sm_100": DataSheet(32, 148, 227, 64, 255, 64, (*_TENSOR, "fp8", "tma", "tcgen05")),
    "sm_120": DataSheet(32, 170, 99, 64, 255, 48, (*_TENSOR, "fp8", "tma")),
    "gfx90a": DataSheet(64, 104, 64, 128, 512, 32, ("fp16", "bf16")),
    "gfx942": DataSheet(64, 304, 64, 128, 512, 32, ("fp16", "bf16", "tf32")),  # (its fp8 is of another format)
    "gfx950": DataSheet(64, 256, 160, 128, 512, 32, ("fp16", "bf16", "fp8")),
    "gfx1100": DataSheet(32, 96, 64, 96, 256, 32, ("fp16", "bf16")),
}


def gpu(arch: str = DEFAULT_GPU) -> Target:
    """A GPU of that architecture, as its data sheet describes it; an NVIDIA one that is not in the table as the next older one.

    Raises ValueError for a name that is neither "sm_NN" nor "gfxNNN".
    """
    number = re.fullmatch(r"sm_(\d+)a?", arch)
    if number is None and re.fullmatch(r"gfx[0-9a-f]+", arch) is None:
        raise ValueError(f"{arch!r} is no GPU architecture: expected sm_80, sm_90, sm_100, gfx942 or the like")
    if number is not None:
        older = [n for n in _GPUS if n.startswith("sm_") and int(n[3:]) <= int(number[1])]
        known = max(older, key=lambda n: int(n[3:]), default="sm_70")
    else:
        known = arch if arch in _GPUS else "gfx90a" if arch.startswith("gfx9") else "gfx1100"
    sheet = _GPUS[known]
    return Target(
        "cuda",
        arch,
        lanes=sheet.lanes,
        units=sheet.units,
        cache=sheet.shared * 1024,
        features=frozenset(sheet.features),
        registers=sheet.registers * 1024,
        thread_registers=sheet.thread_registers,
        warps=sheet.warps,
    )
