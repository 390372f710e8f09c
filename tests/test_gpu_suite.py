"""The GPU suite and the GPU benchmark do not fall over: both are tried on a driver that runs kernels in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flame.runtime import cuda

pytest.importorskip("triton", reason="Triton is installed on Linux only")

ROOT = Path(__file__).resolve().parent.parent
QUICK = "described or events or ordered or handed_back or told_and_survived or (bytes and 1000) or row_any"


def run(*command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_suite_runs_on_the_fake_driver() -> None:
    ran = run(
        "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "--fake-gpu", "tests/gpu/test_on_gpu_runtime.py", "-k", QUICK
    )
    assert ran.returncode == 0 and " passed" in ran.stdout and "deselected" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.skipif(cuda.available(), reason="this machine has a GPU")
def test_without_a_gpu_the_suite_is_left_out_and_says_so() -> None:
    ran = run("pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu")
    assert ran.returncode == 5, ran.stdout + ran.stderr  # no test was run
    assert "tests of tests/gpu were left out: there is no GPU" in ran.stdout


def test_the_benchmark_runs_on_the_fake_driver(tmp_path: Path) -> None:
    ran = run("benchmarks.gpu", "--small", "--fake", "--only", "call overhead", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.rstrip().splitlines()[-1].startswith("| call overhead |")
    [written] = tmp_path.glob("*.json")
    results = json.loads(written.read_text(encoding="utf-8"))
    figures = results["call overhead"]
    assert set(figures) == {"flame eager", "flame compiled"}
    assert all(f["seconds"] > 0 and not f.get("differs") for f in figures.values())
