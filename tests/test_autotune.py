"""mode="max-autotune": every candidate computes the same, the fastest is taken if it saves enough, and it is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kernels_for_tests as given
import numpy as np
import pytest
from llvm_for_tests import Runner

import flame
from flame.compiler.schedule_cpu import CpuSchedule
from flame.runtime import autotune, cache

CASES = given.cases()
#: one of each class of kernels
TUNED = [n for n in CASES if n.startswith(("pointwise", "softmax", "row_argmax", "matmul", "convolution", "layer_norm"))][::3]


@pytest.mark.parametrize("name", TUNED)
def test_every_candidate_computes_what_the_interpreter_does(name: str) -> None:
    kernel, arrays, symbols = CASES[name]
    want = given.expected(CASES[name])
    tried = autotune.candidates(kernel)
    assert len(tried) > 3 and tried[0] == CpuSchedule()
    for schedule in tried[1:]:
        fresh = {b: a.copy() for b, a in arrays.items()}
        Runner(kernel, schedule=schedule).bind(fresh, symbols)()
        for b in want:
            d = kernel.buffers[b].dtype
            with np.errstate(over="ignore"):
                got, exact = (np.asarray(x[b]).astype(d.numpy).astype(np.float64) for x in (fresh, want))
            scale = 2e-2 if d.itemsize == 2 else 1e-4
            np.testing.assert_allclose(
                got, exact, rtol=scale, atol=scale * (np.abs(exact).max(initial=1.0)), err_msg=str(schedule)
            )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs that take as long as the test says, by the schedule; and how many were measured."""
    say: dict[str, Any] = {"seconds": lambda s: 1.0, "runs": 0}

    def seconds(native: Any, symbols: dict[str, int]) -> float:
        say["runs"] += 1
        return say["seconds"](native.schedule)

    monkeypatch.setattr(autotune, "seconds", seconds)
    return say


def tuned_product(m: int) -> tuple[Any, np.ndarray, np.ndarray]:
    a, b = flame.randn(m, 40), flame.randn(40, 33)
    f = flame.compile(lambda a, b: flame.relu(a @ b), mode="max-autotune")
    for _ in range(3):
        y = f(a, b)
    return f, y.numpy(), np.maximum(a.numpy().astype(np.float64) @ b.numpy(), 0)


def test_the_fastest_is_taken_and_kept(clock: dict[str, Any]) -> None:
    clock["seconds"] = lambda s: 0.5 if s.block_depth == 256 else 1.0
    for again in range(2):
        f, got, want = tuned_product(37)
        np.testing.assert_allclose(got, want, atol=1e-4)
        assert (clock["runs"] == 0) is bool(again), "measured once, and found on disk then"
        (native,) = _executables(f)
        assert native.schedule.block_depth == 256
        clock["runs"] = 0
        autotune._chosen.clear()  # as another process is


def _executables(f: Any) -> list[Any]:
    """The native kernels that a compiled function runs."""
    found = []
    for c in f._capture.programs.values():
        found += list(c.executable.kernels.values())
    return found


def test_a_few_percent_change_nothing(clock: dict[str, Any]) -> None:
    clock["seconds"] = lambda s: 1.0 if s == CpuSchedule() else 0.98
    f, got, want = tuned_product(39)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert clock["runs"] > 3 and [k.schedule for k in _executables(f)] == [CpuSchedule()]


def test_it_measures_for_real_and_forgives_a_damaged_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    before = flame.get_num_threads()
    for threads in (1, 2):
        flame.set_num_threads(threads)
        _, got, want = tuned_product(41)
        np.testing.assert_allclose(got, want, atol=1e-4)
    flame.set_num_threads(before)
    some = [CpuSchedule(), CpuSchedule(tile_rows=4, tile_vectors=3)]
    for entry in (b"{", b'{"tiles": 3}', None, b"[]", b'{"tile_rows": 1000}', b'{"tile_rows": "4"}', b'{"unroll": -1}'):
        assert autotune._decoded(entry, some) is None, entry
    assert autotune._decoded(b'{"tile_rows": 4, "tile_vectors": 3}', some) == some[1]
    autotune._chosen.clear()
    kept = {"get": cache.shared().get}
    monkeypatch.setattr(type(cache.shared()), "get", lambda self, name: b"{" if kept["get"](name) else None)
    _, got, want = tuned_product(43)
    np.testing.assert_allclose(got, want, atol=1e-4)


PROCESS = """
import numpy as np, flame
from flame.runtime import autotune
f = flame.compile(lambda a, b: flame.tanh(a @ b), mode="max-autotune")
a, b = flame.ones(24, 47), flame.ones(47, 31)
for _ in range(3):
    y = f(a, b)
assert float(y[0, 0]) == 1.0
print(len(autotune.measured), sorted(map(repr, autotune._chosen.values())))
"""


def test_a_second_process_does_not_measure_again(tmp_path: Path) -> None:
    """Nor does it choose anything else; a damaged cache is measured over."""
    env = {**os.environ, "FLAME_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}

    def process() -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", PROCESS], env=env, capture_output=True, text=True, check=True)
        many, chosen = done.stdout.split(maxsplit=1)
        return int(many), chosen

    assert process()[0] == 1
    assert process()[0] == 0
    for entry in [p for p in tmp_path.rglob("*") if p.is_file()]:
        entry.write_bytes(entry.read_bytes()[:-7] + b"damaged")
    assert process()[0] == 1
