"""Kernels compiled side by side in other processes: the same binaries, whatever becomes of a worker."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace

import kernels_for_tests as made
import pytest

from flame.compiler.schedule import choose_gpu
from flame.compiler.target import gpu
from flame.compiler.to_triton import TritonSource, to_triton
from flame.errors import CompileError
from flame.runtime import gpu_kernels, triton_pool
from flame.runtime.triton_pool import compile_all
from flame.runtime.triton_tools import Binary, compile_triton

pytest.importorskip("triton", reason="Triton is installed on Linux only")

CASES = made.cases()


def sources(n: int) -> list[TritonSource]:
    plain = ("slice", "pad", "permute", "repeat", "casts", "row_argmax_float32")
    return [to_triton(CASES[c][0], choose_gpu(CASES[c][0], gpu("sm_90"), CASES[c][2])) for c in plain[:n]]


@pytest.fixture(autouse=True)
def _no_workers_left() -> Iterator[None]:
    yield
    triton_pool.dismiss()


def test_sources_can_be_sent() -> None:
    for s in sources(6):
        again = pickle.loads(pickle.dumps(s))
        assert again == s and again.digest == s.digest and again.grid({}) == s.grid({})


def test_workers_answer_in_order_and_hand_errors_back() -> None:
    jobs = [(s, "sm_90") for s in sources(4)]
    broken = replace(jobs[1][0], text=jobs[1][0].text.replace("tl.load(", "tl.nonsense("))
    answers = compile_all([*jobs[:2], (broken, "sm_90"), *jobs[2:]], workers=2)
    assert isinstance(answers[2], CompileError) and "nonsense" in str(answers[2])
    del answers[2]
    for (source, arch), b in zip(jobs, answers, strict=True):
        assert isinstance(b, Binary) and b.code == compile_triton(source, arch).code


def test_a_worker_that_dies_is_done_without() -> None:
    (worker,) = triton_pool._staff.at_least(1)
    worker.process.kill()
    answers = compile_all([(s, "sm_90") for s in sources(2)], workers=2)
    assert all(isinstance(b, Binary) for b in answers)
    assert not worker.alive


def test_little_work_starts_no_process() -> None:
    assert all(isinstance(b, Binary) for b in compile_all([(s, "sm_90") for s in sources(2)]))
    assert not triton_pool._staff._workers


def test_workers_end_with_the_pipe() -> None:
    (worker,) = triton_pool._staff.at_least(1)
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(timeout=60) is not None
    assert os.getpid() != worker.process.pid


def test_what_was_prepared_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[int] = []

    def counted(given: list, workers: int | None = None) -> list:
        jobs.append(len(given))
        return compile_all(given, workers)

    monkeypatch.setattr(gpu_kernels, "compile_all", counted)
    monkeypatch.setattr(gpu_kernels, "_binaries", {})
    some = [replace(s, text=s.text + "# prepared\n") for s in sources(3)]
    gpu_kernels.prepare([*some, some[0]], "sm_90")
    monkeypatch.setattr(gpu_kernels, "compile_triton", None)  # nothing is left to compile
    assert all(gpu_kernels.binary_of(s, "sm_90").code for s in some)
    monkeypatch.setattr(gpu_kernels, "_binaries", {})  # as in another process, which finds them on disk
    gpu_kernels.prepare(some, "sm_90")
    assert jobs == [3, 0]
