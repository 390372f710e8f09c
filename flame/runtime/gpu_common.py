"""Kernels that most programs use, compiled before they are asked for: the first eager operations on a GPU then wait for none.

    common(gpu, dtypes) -> sources           what eager runs for them, at sizes of a few kinds; eager uses these from then on
    prepare(gpu, dtypes, wait)               compiled side by side in processes of their own, for this process and the disk's cache

A node that is known for sizes in general is used at its first sizes already (`flame.runtime.gpu_eager`), so what is compiled here
serves whatever sizes come, as far as they ask for one of the schedules that the sizes below ask for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final

from flame.compiler.concrete import program_at
from flame.compiler.program import KernelStep
from flame.compiler.to_triton import TritonSource
from flame.dtypes import dtype
from flame.errors import CompileError, CudaError, Refused
from flame.primitive import registered
from flame.runtime import gpu_kernels
from flame.runtime.gpu_eager import node_of

#: how many elements an array has, and rows and columns
_FLAT: Final = (1 << 10, 1 << 16, 1 << 24)
_ROWS: Final = ((64, 64), (4096, 1024), (8192, 8192))
#: of what is summed by rows, whose blocks are as long as a row
_SWEPT: Final = tuple((4096, 1 << n) for n in range(7, 14))

_BINARY: Final = ("add", "sub", "mul", "div")
_UNARY: Final = ("neg", "exp", "log", "sqrt", "rsqrt", "tanh", "erf", "relu", "copy")
_Call = tuple[str, tuple[tuple[int, ...], ...], dict[str, Any], tuple[tuple[int, ...], ...]]


def _calls() -> Iterator[_Call]:
    """(primitive, dimensions of its arrays, its parameters, kinds of sizes) of what most programs do to arrays of one dtype."""
    flat, rows, row, column = (-1,), (-1, -1), (-1,), (-1, 1)
    for name in _BINARY:
        yield name, (flat, flat), {}, tuple((n, n) for n in _FLAT)
        yield name, (rows, column), {}, tuple((m, n, m) for m, n in _ROWS)
    for name in ("add", "mul"):
        yield name, (rows, row), {}, tuple((m, n, n) for m, n in _ROWS)
    for name in _UNARY:
        yield name, (flat,), {}, tuple((n,) for n in _FLAT)
    for name in ("sum", "amax"):
        for keepdim in (False, True):
            yield name, (rows,), {"dim": (1,), "keepdim": keepdim}, _SWEPT
        yield name, (rows,), {"dim": (0,), "keepdim": False}, _ROWS
        yield name, (rows,), {"dim": (0, 1), "keepdim": False}, _ROWS
        yield name, (flat,), {"dim": (0,), "keepdim": False}, tuple((n,) for n in _FLAT)
    yield "matmul", (rows, rows), {}, tuple((m, k, k, k) for m, k in _ROWS)


def common(gpu: Any, dtypes: Iterable[dtype]) -> list[TritonSource]:
    """The sources, each once. What has no kernel for a dtype is left out."""
    found: dict[str, TritonSource] = {}
    chosen = list(dtypes)
    for d in chosen:
        calls = [*_calls(), *(("cast", ((-1,),), {"dtype": to}, tuple((n,) for n in _FLAT)) for to in chosen if to is not d)]
        for name, dimensions, params, kinds in calls:
            node = node_of(gpu, registered(name), [(d.numpy, shape) for shape in dimensions], params)
            for sizes in kinds:
                try:
                    program = program_at(*node.in_general(sizes))
                    for step in program.steps:
                        if isinstance(step, KernelStep):
                            symbols = {n: step.symbols[n] for n in step.kernel.symbols}
                            source = gpu_kernels.source_of(step.kernel, gpu.target, symbols)
                            found[source.digest] = source
                except (Refused, CompileError):
                    continue
    return list(found.values())


def prepare(gpu: Any, dtypes: Iterable[dtype], wait: bool = False) -> threading.Thread:
    """Start doing so; `wait` until it is done. What cannot be compiled is left for the operation that asks for it, which raises."""

    def work() -> None:
        try:
            gpu.prepare(common(gpu, chosen))
        except (CudaError, CompileError, Refused):
            return

    chosen = tuple(dtypes)
    thread = threading.Thread(target=work, name="flame common kernels", daemon=True)
    thread.start()
    if wait:
        thread.join()
    return thread
