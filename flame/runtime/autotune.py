"""Schedules by measurement, for `mode="max-autotune"`: a kernel's candidates are run on this machine, and the best is kept on disk.

    tuned(kernel, symbols) -> CpuSchedule

The heuristics' own schedule is the first candidate, and stays unless another is faster by more than `GAIN`, so that noise changes
nothing. What was chosen is an entry of the cache: the same kernel, sizes, threads and machine are measured once. Schedules change
the order of sums, and with it results by rounding.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from flame.compiler.index_math import evaluate
from flame.compiler.kernel import Contract, Kernel, Load, Store, numel
from flame.compiler.llvm_axes import unit_axes
from flame.compiler.llvm_tiling import spare
from flame.compiler.nests import in_stages, plan
from flame.compiler.schedule_cpu import CpuSchedule, choose_cpu
from flame.errors import CompileError, Refused
from flame.runtime import cache, cpu, llvm_jit, memory, threads
from flame.runtime.cpu import PARALLEL_MICROSECONDS, NativeKernel
from flame.runtime.entry import NativeStep, Plan, entry

GAIN: Final = 0.04  #: of time, that a candidate must save to be taken
SECONDS: Final = 0.004  #: for each candidate in a round, or three runs
ROUNDS: Final = 3  #: of all candidates in turn, and then as many of the best beside the first
MOST_BYTES: Final = 1 << 30  #: of a kernel's arrays; larger ones keep what the heuristics say

#: what the last measurements gave, by the kernel's name: (schedule, microseconds) of each candidate
measured: dict[str, list[tuple[CpuSchedule, float]]] = {}
_chosen: dict[str, CpuSchedule] = {}  #: in this process, by the entry's name


def candidates(kernel: Kernel) -> list[CpuSchedule]:
    """The heuristics' schedule, and what differs from it in one thing."""
    target = cpu.host()
    first = choose_cpu(kernel, target)
    found = [first]

    def vary(**changes: Any) -> None:
        found.append(dataclasses.replace(first, **changes))

    contraction = next((s for s in kernel.statements if isinstance(s, Contract)), None)
    if contraction is not None:
        free = target.registers - spare(contraction.dtype, target)
        for rows in (4, 6, 8) if target.registers == 16 else (8, 12, 14):
            vary(tile_rows=rows, tile_vectors=max(1, min(8, free // (rows + 1))))
        for depth in (256, 384):
            vary(block_depth=depth)
        vary(chunk_us=4 * first.chunk_us)
    else:
        for unroll in (1, 2, 8):
            vary(unroll=unroll)
        for chunk_us in (first.chunk_us / 3, 4 * first.chunk_us):
            vary(chunk_us=chunk_us)
        nests = plan(in_stages(kernel))
        if len(nests) == 1 and not nests[0].across:
            moved = [t for t in kernel.statements if isinstance(t, Load | Store)]
            for axis in dict.fromkeys(a for t in moved for a in kernel.axes if a in unit_axes(kernel, t)):
                vary(vector_axis=axis)
    return list(dict.fromkeys(found))


def tuned(kernel: Kernel, symbols: Mapping[str, int]) -> CpuSchedule:
    """The schedule that runs this kernel fastest at these values of its symbols."""
    target = cpu.host()
    values = tuple(symbols[s] for s in kernel.symbols)
    plain, digest = cpu.named(kernel)
    circumstances = (llvm_jit.fingerprint(target), llvm_jit.version(), cpu.source_fingerprint("runtime/*.py"))
    name = cache.key("schedule", digest, repr(values), str(threads.get_num_threads()), *circumstances)
    store = cache.shared()
    known = _chosen.get(name) or _decoded(store.get(name), candidates(plain))
    if known is not None:
        return known
    best = _chosen[name] = _measure(kernel.name, plain, dict(zip(plain.symbols, values, strict=True)))
    store.put(name, json.dumps(dataclasses.asdict(best)).encode())
    return best


def _decoded(entry: bytes | None, tried: Sequence[CpuSchedule]) -> CpuSchedule | None:
    """The schedule of an entry; None where it holds none of those that would be tried."""
    if entry is None:
        return None
    try:
        found = CpuSchedule(**json.loads(entry))
    except (ValueError, TypeError):
        return None
    return found if found in tried else None


def _measure(name: str, kernel: Kernel, symbols: dict[str, int]) -> CpuSchedule:
    tried = candidates(kernel)
    sizes = [int(evaluate(numel(b), symbols)) * b.dtype.itemsize for b in kernel.buffers.values()]
    if not math.prod(sizes) or sum(sizes) > MOST_BYTES:
        return tried[0]
    took: dict[CpuSchedule, float] = {}
    ready: dict[CpuSchedule, NativeKernel] = {}
    for schedule in tried:
        try:
            ready[schedule] = cpu.load(kernel, schedule=schedule)
        except (Refused, CompileError, AssertionError, NotImplementedError, ValueError):
            if schedule is tried[0]:
                raise  # another one that the renderer cannot follow is no candidate

    def compare(some: list[CpuSchedule]) -> CpuSchedule:
        for _ in range(ROUNDS):
            for s in some:
                took[s] = min(took.get(s, math.inf), seconds(ready[s], symbols))
        return min(some, key=took.__getitem__)

    first = tried[0]
    best = compare(list(ready))
    if best is not first:
        best = compare([first, best])
    measured[name] = [(s, 1e6 * t) for s, t in took.items()]
    return best if took[best] < (1 - GAIN) * took[first] else first


def seconds(native: NativeKernel, symbols: dict[str, int]) -> float:
    """The least seconds of a run, on arrays of zeros (positions are then in range) and ones."""
    kernel = native.kernel
    arrays: list[np.ndarray] = []
    for b in kernel.buffers.values():
        shape = tuple(int(evaluate(e, symbols)) for e in b.shape)
        array = memory.shared.maker(shape, b.dtype.numpy)()
        array[...] = 1 if b.dtype.kind == "f" else 0
        arrays.append(array)
    workspace = native.workspace(symbols)
    block = memory.shared.take_arena(max(workspace, 1))
    places = (*range(len(arrays)), *((-1,) if workspace else ()))
    steps = []
    for p in native.phases:
        chunks = p.count(symbols)
        parallel = chunks > 1 and (bool(symbols) or p.microseconds >= PARALLEL_MICROSECONDS)
        steps.append(NativeStep(p.function, places, chunks, parallel, tuple(symbols.values()), p.microseconds))
    made = Plan([], steps)
    if made.parallel and threads.shared.wanting:
        threads.shared.start()
    pointers = (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
    run, least, rounds = entry().run, math.inf, 0
    alone = not made.parallel or threads.get_num_threads() == 1
    now = time.thread_time if alone else time.perf_counter  # neighbours on the machine do not count in the first
    end = now() + SECONDS
    try:
        while rounds < 3 or now() < end:
            begin = now()
            run(made.address, block.address, ctypes.addressof(pointers))
            least = min(least, now() - begin)
            rounds += 1
    finally:
        memory.shared.give_arena(block)
    return least
