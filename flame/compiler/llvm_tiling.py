"""How a contraction is cut on a CPU: tiles that fill the registers, blocks that fill a core's own cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flame.compiler.contract_groups import K, M, N
from flame.compiler.kernel import Kernel
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import dtype

MOST_CHUNKS = 64  #: of a contraction: each has its own packed block in workspace


@dataclass(frozen=True)
class Tiling:
    """Sizes: MR x (NV * lanes) tiles, blocks of `depth` (None: all of k) and of `panels` of n."""

    lanes: int
    rows: int
    vectors: int
    depth: int | None
    panels: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


def spare(d: dtype, target: CpuTarget) -> int:
    """Registers that a tile leaves free: for the broadcast element; for a product that is not added at once, as x86's of integers
    (int8, AVX2, 4 x 3 vectors spilled two of its sums); and, of 32, two for loads ahead (4 x 6 spilled on NEON and AVX-512)."""
    return 1 + (d.kind != "f" and target.is_x86) + 2 * (target.registers > 16)


def choose_tiling(kernel: Kernel, d: dtype, schedule: CpuSchedule, target: CpuTarget, taps: int = 1) -> Tiling:
    """Of a grouped kernel: the tile that fills the registers with the least waste at the edge, the blocks that fill L2."""
    lanes = max(2, target.vector_bytes // d.itemsize)
    rows_in_all, columns_in_all, depth_in_all = (kernel.axes[a].const for a in (M, N, K))
    free = target.registers - spare(d, target)
    shapes = []
    for rows in range(1, 15):
        vectors = min(8, free // (rows + 1))  # rows*vectors accumulators and `vectors` of the right panel
        if vectors >= 2:
            shapes.append((rows, vectors))
    if columns_in_all is not None and columns_in_all <= lanes:
        shapes = [(min(14, free - 2, rows), 1) for rows in range(1, 15)]

    def waste(shape: tuple[int, int]) -> tuple[float, int]:
        rows, vectors = shape
        done = 1.0
        if rows_in_all is not None:
            done *= -(-rows_in_all // rows) * rows / max(1, rows_in_all)
        if columns_in_all is not None:
            width = vectors * lanes
            done *= -(-columns_in_all // width) * width / max(1, columns_in_all)
        loads = 1 / rows + 1 / (vectors * 2)  # loads a multiply-add: right vectors, broadcasts
        return (done * (1 + max(0.0, loads - 0.4)), -rows * vectors)

    best_rows, best_vectors = min(shapes, key=waste)
    rows, vectors = schedule.tile_rows or best_rows, schedule.tile_vectors or best_vectors
    depth: int | None = None
    if depth_in_all is None or depth_in_all > 1024:
        blocks = -(-depth_in_all // 512) if depth_in_all else 1
        unit = math.lcm(8, taps)
        depth = -(-depth_in_all // blocks // unit) * unit if depth_in_all else 512 // unit * unit
    depth = schedule.block_depth or depth
    panel = (depth or depth_in_all or 512) * vectors * lanes * d.itemsize
    panels = schedule.block_panels or max(1, target.l2 // 2 // max(1, panel))
    return Tiling(lanes, rows, vectors, depth, panels)


def chunks_for(work: float, schedule: CpuSchedule) -> int:
    """Into how many chunks so many microseconds of a contraction are to be cut: up to 8 of some 20 microseconds, up to 16 of 60,
    and more once each is a millisecond. Smaller blocks pack less at a time and read the left factor again more often (1024 cubed:
    64 chunks take 3% longer than 20), but two threads take 26 us for the two chunks of 127 cubed and 48 for one."""
    parts = work / schedule.chunk_us
    return int(max(1, min(8, parts / (2 / 3)), min(16, parts / 2), min(MOST_CHUNKS, work / 1000)))
