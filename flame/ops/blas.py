"""Matrix products of NumPy's, with the threads of its BLAS called only where they can help: `product(a, b)`.

OpenBLAS spreads a product over its threads from 64 x 64 x 64 on, and each waits for the others turning in a circle. A product of
128 x 64 x 192 takes 40 us alone; on two threads not less, and on two cores that have something else to do as well (a compiler's
threads, say) a time slice of the scheduler, 20 ms and more. So products in between have one thread. (128 x 64 x 256: 66 us alone
and 71 on two idle cores; 256 x 256 x 256: 370 us and 280.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

#: multiply-adds up to which OpenBLAS has one thread anyway, and up to which it gets one
_ALONE: Final = 64**3
_FEW: Final = 128**3


class _Threads(NamedTuple):
    """How many threads BLAS uses, for the process."""

    get: Callable[[], int]
    set: Callable[[int], None]


def _openblas() -> _Threads | None:
    """Of the OpenBLAS that NumPy came with; None where it has another."""
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]  # (finds what that was linked with)
    except (AttributeError, OSError, TypeError):
        return None
    for name in ("scipy_openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads", "openblas_{}_num_threads"):
        try:
            got = _Threads(library[name.format("get")], library[name.format("set")])
        except AttributeError:
            continue
        got.get.argtypes, got.get.restype = [], ctypes.c_int  # type: ignore[attr-defined]
        got.set.argtypes, got.set.restype = [ctypes.c_int], None  # type: ignore[attr-defined]
        return got
    return None


_threads: Final = _openblas()


def product(a: np.ndarray, b: np.ndarray) -> Any:
    """np.matmul(a, b) of arrays of at least two dimensions."""
    shape = a.shape
    if _threads is None or not _ALONE < shape[-2] * shape[-1] * b.shape[-1] <= _FEW:
        return np.matmul(a, b)
    # The number is the process's: of calls on several threads, those that see more than one thread give back what they saw.
    before = _threads.get()
    if before <= 1:
        return np.matmul(a, b)
    _threads.set(1)
    try:
        return np.matmul(a, b)
    finally:
        _threads.set(before)
