"""LLVM kernels, run on this machine, against the kernel IR's interpreter."""

from __future__ import annotations

import kernels_for_tests as given
import numpy as np
import pytest
from llvm_for_tests import Runner

from flame.compiler.kernel import Kernel

TOLERANCE = {"float32": 3e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1.6e-2}
CASES = given.cases()


def agree(kernel: Kernel, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    for name, w in want.items():
        tolerance = TOLERANCE.get(kernel.buffers[name].dtype.name, 0)
        np.testing.assert_allclose(
            got[name].astype(np.float64), np.asarray(w, np.float64), rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_what_the_interpreter_does_whole_and_chunk_by_chunk(name: str) -> None:
    kernel, arrays, symbols = CASES[name]
    want = given.expected(CASES[name])
    runner = Runner(kernel)
    for split in (False, True):
        fresh = {b: a.copy() for b, a in arrays.items()}
        runner.bind(fresh, symbols, split)()
        agree(kernel, fresh, want)
