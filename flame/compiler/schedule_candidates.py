"""Schedules worth measuring: what `mode="max-autotune"` tries on a GPU, as data.

    candidates(kernel, target, hints) -> [GpuSchedule]      the heuristics' choice first, each once, at most `limit`

Only what fits is offered: tiles whose operands go into shared memory (`flame.compiler.schedule_tiles` knows them), rows whose
values go into registers. Every one gives the same results up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from flame.compiler.index_math import evaluate
from flame.compiler.kernel import Kernel, domain
from flame.compiler.schedule import GpuSchedule, choose_gpu, held_values, product, row_warps, tiled_candidates
from flame.compiler.schedule_tiles import power_of_two
from flame.compiler.target import Target

#: what one kernel may cost to tune: each candidate is compiled and run some times
LIMIT = 24


def candidates(kernel: Kernel, target: Target, hints: Mapping[str, int] | None = None, limit: int = LIMIT) -> list[GpuSchedule]:
    """Schedules to measure, the most promising first. `hints` are likely values of the symbols, as for `choose_gpu`."""
    first = choose_gpu(kernel, target, hints)
    env = {n: max(low, 512) for n, low in kernel.symbols.items()} | dict(hints or {})
    others = _rows(kernel, target, first, env) if first.form == "rows" else tiled_candidates(kernel, target, hints)
    return list(dict.fromkeys((first, *others)))[:limit]


def _rows(kernel: Kernel, target: Target, first: GpuSchedule, env: Mapping[str, int]) -> Iterator[GpuSchedule]:
    swept = {a for a in kernel.reduce_axes if kernel.axes[a] != 1}
    if not swept:
        yield from _pointwise(kernel, target, first, env)
        return
    if first.panel:
        for x in (1, 2, 4, 8):
            if x * first.r_block <= 16384:
                for warps in (4, 8, 16):
                    yield replace(first, x_block=x, warps=warps)
        return
    longest = power_of_two(evaluate(product(kernel.axes[a] for a in swept), env))
    columns = first.x_block >= 32 and first.r_block < longest
    blocks = [first.r_block] if columns else []
    blocks += [r for r in (512, 1024, 2048, 4096, 8192, 16384, 32768) if r <= longest]
    if columns:
        for x in (32, 64, 128):
            for r in (16, 32, 64, 128):
                if r <= longest and 256 <= x * r <= 8192:
                    for warps in (4, 8):
                        yield replace(first, x_block=x, r_block=r, warps=warps)
        return
    held = max(1.0, held_values(kernel, swept))
    for r in sorted(set(blocks), reverse=True):
        x = first.x_block if r == first.r_block else 1
        usual = row_warps(target, x * r)
        for warps in dict.fromkeys((usual, usual * 2, max(1, usual // 2))):
            threads = warps * target.lanes
            if threads > 1024:
                continue
            each = x * r / threads
            if 1 <= each <= 64 and 16 + each * held <= min(target.thread_registers, target.registers // threads):
                yield replace(first, x_block=x, r_block=r, warps=warps)
    if first.x_block > 1:
        for x in (first.x_block // 2, first.x_block * 2):
            yield replace(first, x_block=x, warps=row_warps(target, x * first.r_block))


def _pointwise(kernel: Kernel, target: Target, first: GpuSchedule, env: Mapping[str, int]) -> Iterator[GpuSchedule]:
    stored = frozenset[str]().union(*(domain(kernel, s) for s in kernel.stores))
    points = evaluate(product(kernel.axes[a] for a in kernel.axes if a in stored), env)
    if first.columns:
        for x, y, warps in ((32, 32, 4), (64, 32, 4), (32, 64, 4), (64, 64, 8), (16, 128, 4), (128, 16, 4)):
            yield replace(first, x_block=x, y_block=y, warps=warps)
    rows_only = replace(first, columns=(), rows=())
    for block, warps in ((1024, 4), (512, 4), (2048, 8), (1024, 8), (256, 4), (2048, 4), (4096, 8), (128, 4)):
        if block <= power_of_two(points):
            yield replace(rows_only, x_block=block, warps=warps)
