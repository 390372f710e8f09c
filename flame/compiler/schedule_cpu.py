"""How a kernel is run on a CPU: one frozen record beside the kernel, and the heuristics that choose it.

`choose_cpu(kernel, target)` answers with the schedule that sizes and target suggest; a tuner may hand `to_llvm` another one.
Every schedule gives the same results up to the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.kernel import Kernel
from flame.compiler.target_cpu import CpuTarget


@dataclass(frozen=True, slots=True)
class CpuSchedule:
    """Sizes that `to_llvm` takes as given. Zero: the renderer's own choice."""

    lanes: int = 0  #: elements a vector value
    unroll: int = 4  #: vectors handled side by side in an innermost loop, each with accumulators of its own
    vector_axis: str = ""  #: the axis that lanes run along
    chunk_us: float = 30.0  #: least estimated microseconds a chunk
    max_chunks: int = 128
    #: contractions: rows and vectors of the register tile, depth and rows of a packed block, vector panels of a block of B
    tile_rows: int = 0
    tile_vectors: int = 0
    block_depth: int = 0
    block_rows: int = 0
    block_panels: int = 0


def choose_cpu(kernel: Kernel, target: CpuTarget) -> CpuSchedule:
    """The schedule that the kernel's sizes and the target suggest (symbols counted at their least)."""
    return CpuSchedule()
