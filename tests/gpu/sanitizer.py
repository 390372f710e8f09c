"""compute-sanitizer over part of the GPU suite: what it is, where it is found, and how it is called.

    found() -> path or None             on the path, beside CUDA, or in NVIDIA's package
    run(tool, check) -> process         0: nothing found; 9: something, which its output tells; else the tests themselves failed

Every allocation is the driver's then (FLAME_CUDA_CACHING=0), so that a byte beside one is in nobody's memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
#: accesses out of bounds; accesses of one program's threads that no barrier orders; barriers that not all threads come to
CHECKS: Final = ("memcheck", "racecheck", "synccheck")
#: a kernel of each kind: a sum by rows and one by columns, a row that is swept, two results, tiles of products, a write over an
#: input, an edge, a lookup, windows
KERNELS: Final = (
    "row_sum_float32", "column_sum_float32", "softmax_float32_3000", "layer_norm_float32", "matmul_nn_float16", "inout", "pad",
    "gather", "convolution_stride2",
)  # fmt: skip
SECONDS: Final = 120
FOUND: Final = 9


def places() -> Iterator[Path]:
    """Where it may be that no path names."""
    yield from sorted(Path("/usr/local").glob("cuda*/bin"), reverse=True)
    beside = find_spec("nvidia")
    for folder in beside.submodule_search_locations or () if beside is not None else ():
        yield from sorted(Path(folder).glob("*/bin"), reverse=True)


def found() -> str | None:
    at = os.pathsep.join(map(str, places()))
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=at)


def run(tool: str, check: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """The kernels' tests under one check; `flags` are for pytest."""
    command = [tool, "--tool", check, "--error-exitcode", str(FOUND), "--print-limit", "20", sys.executable, "-m", "pytest"]
    command += [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "--one-process=0",
        *flags,
        "tests/gpu/test_on_gpu_runtime.py",
    ]
    command += ["-k", f"test_a_kernel_is_what_it_means and ({' or '.join(KERNELS)})"]
    environment = {**os.environ, "FLAME_CUDA_CACHING": "0", "PYTHONPATH": "."}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
