"""Schedules worth measuring: what `mode="max-autotune"` tries on a GPU, as data.

    candidates(kernel, target, hints) -> [GpuSchedule]      the heuristics' choice first, each once, at most `limit`

Only what fits is offered: tiles whose operands go into shared memory, rows whose values go into registers. Every one gives the
same results up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from flame.compiler.index_math import evaluate
from flame.compiler.kernel import Kernel, domain
from flame.compiler.schedule import GpuSchedule, choose_gpu, held_values, power_of_two, product, row_warps, sides
from flame.compiler.target import Target

#: what one kernel may cost to tune: each candidate is compiled and run some times
LIMIT = 24

#: rows, columns, depth and warps of a tiled product with operands of two bytes; of wider ones the depth shrinks
_TILES = (
    (128, 256, 64, 8),
    (256, 128, 64, 8),
    (128, 128, 64, 8),
    (128, 128, 64, 4),
    (128, 128, 32, 4),
    (128, 64, 64, 4),
    (64, 128, 64, 4),
    (64, 256, 32, 4),
    (64, 64, 64, 4),
    (64, 32, 64, 4),
    (32, 64, 64, 4),
    (32, 32, 128, 4),
    (16, 64, 128, 4),
    (64, 16, 128, 4),
)


def candidates(kernel: Kernel, target: Target, hints: Mapping[str, int] | None = None, limit: int = LIMIT) -> list[GpuSchedule]:
    """Schedules to measure, the most promising first. `hints` are likely values of the symbols, as for `choose_gpu`."""
    first = choose_gpu(kernel, target, hints)
    env = {n: max(low, 512) for n, low in kernel.symbols.items()} | dict(hints or {})
    others = _dots(kernel, target, first, env) if first.form == "dot" else _rows(kernel, target, first, env)
    return list(dict.fromkeys((first, *others)))[:limit]


def shared_bytes(kernel: Kernel, s: GpuSchedule) -> int:
    """An estimate of the shared memory of a tiled product: the operands' tiles of the stages in flight."""
    contraction = kernel.contraction
    assert contraction is not None
    widths = [kernel.definitions[v].dtype.itemsize for v in contraction.operands]
    a, b = s.m_block * s.k_block * widths[0], s.n_block * s.k_block * widths[1]
    return (a + b) * max(s.stages - 1, 1)


def _dots(kernel: Kernel, target: Target, first: GpuSchedule, env: Mapping[str, int]) -> Iterator[GpuSchedule]:
    found, contraction = sides(kernel), kernel.contraction
    assert found is not None and contraction is not None
    m, n = (power_of_two(evaluate(product(kernel.axes[a] for a in side), env)) for side in (found.m, found.n))
    width = max(kernel.definitions[v].dtype.itemsize for v in contraction.operands)
    for stages in (3, 4, 5, 2):
        for rows, columns, depth, warps in _TILES:
            k = max(32 if width == 1 else 16, depth * 2 // width)
            s = replace(first, m_block=rows, n_block=columns, k_block=k, warps=warps, stages=stages)
            accumulators = rows * columns * max(width, 4) // 4 // (warps * target.lanes)
            fits = rows <= max(16, m) and columns <= max(16, n) and accumulators <= target.thread_registers - 64
            if fits and shared_bytes(kernel, s) <= target.cache:
                yield s


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
