"""The GPU suite and the GPU benchmark do not fall over: both are tried on a driver that runs kernels in Triton's interpreter."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import fake_cuda
import pytest
import test_cuda_runtime
from fake_cuda_launches import LaunchesOnly, Rehearsal

import flame
from benchmarks import gpu as gpu_benchmark
from benchmarks.gpu_rows import Worker, compiled_ahead
from flame.errors import CudaError, OutOfMemoryError
from flame.runtime import cuda
from tests.capture_programs import Case, Wrap, agree, array, batches, drive
from tests.gpu import sanitizer

pytest.importorskip("triton", reason="Triton is installed on Linux only")

ROOT = Path(__file__).resolve().parent.parent
QUICK = "described or events or handed_back"


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


BREAKS = """
import os, time, pytest
from flame.errors import CudaError
from flame.runtime import cuda
from tests.capture_programs import Case, Wrap, agree, array, batches, drive
from tests.gpu import sanitizer
pytestmark = pytest.mark.gpu
def test_1_right(): pass
def test_2_crashes(): os.abort()
def test_3_right(): pass
def test_4_loses_the_device():
    def gpu(): raise CudaError("CUDA_ERROR_ILLEGAL_ADDRESS", 700, "")
    cuda.opened, cuda.gpu = lambda: True, gpu
    assert False, "wrong"
def test_5_is_not_reached_by_that(): assert not cuda.opened()
def test_6_is_skipped(): pytest.skip("for a reason")
def test_7_hangs(): time.sleep(60)
"""
QUICKER = "from tests.gpu import parts; parts.PARTS = (parts.Part('others', '', 60, patience=6),)"


def test_what_breaks_one_process_of_the_suite_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "test_breaks.py").write_text(BREAKS, encoding="utf-8")
    (tmp_path / "quicker.py").write_text(QUICKER, encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        "PYTEST_ADDOPTS": f"-p tests.conftest -p quicker -c {ROOT / 'pyproject.toml'} --rootdir {tmp_path}",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "--fake-gpu", f"--out={tmp_path}"]
    ran = subprocess.run(
        [*command, str(tmp_path / "test_breaks.py")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "| others | 3 | 3 | 1 |" in ran.stdout, ran.stdout + ran.stderr
    lines = [json.loads(line) for line in (tmp_path / "suite.jsonl").read_text(encoding="utf-8").splitlines()]
    # pytest's own summary of what was skipped comes before it
    assert "INTERNALERROR" not in ran.stdout and ran.stdout.rstrip().splitlines()[-1].startswith("| others |"), ran.stdout
    told = {about["test"].split("::")[1]: about.get("why", "") for about in lines}
    assert len(lines) == len(told) == 7
    assert "its process ended with SIGABRT" in told["test_2_crashes"] and "test_2_crashes" in told["test_2_crashes"]
    assert "wrong" in told["test_4_loses_the_device"]
    assert "said nothing for 6 s" in told["test_7_hangs"]


@pytest.mark.skipif(cuda.available(), reason="this machine has a GPU")
def test_without_a_gpu_the_suite_is_left_out_and_says_so() -> None:
    ran = run("pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu")
    assert ran.returncode == 5, ran.stdout + ran.stderr  # no test was run
    assert "tests of tests/gpu were left out: there is no GPU" in ran.stdout


def test_what_raises_on_a_gpu_in_both_modes_is_no_agreement() -> None:
    def body(wrap: Wrap) -> list:
        f = wrap(lambda x: flame.from_numpy(array(3)) + x)
        return drive(f, batches(3, n=2))

    case = Case(body, __name__, native=True, follows=False, host=False)
    host = body(lambda f: f)
    agree(case, "auto", host=host)
    with fake_cuda.gpu_for_tests(check=False):
        flame.set_default_device("cuda")
        try:
            agree(case, "auto")
            with pytest.raises(AssertionError, match="run eagerly, differs from the CPU at .*Expected all tensors"):
                agree(case, "auto", host=host)
        finally:
            flame.set_default_device(None)


def test_the_benchmark_runs_on_the_fake_driver(tmp_path: Path) -> None:
    ran = run("benchmarks.gpu", "--small", "--fake", "--only", "call overhead", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.rstrip().splitlines()[-1].startswith("| call overhead |")
    [written] = tmp_path.glob("*.json")
    results = json.loads(written.read_text(encoding="utf-8"))
    figures = results["call overhead"]
    assert set(figures) == {"flame eager", "flame compiled"}
    assert all(f["seconds"] > 0 and not f.get("differs") for f in figures.values())


#: a sanitizer that has what it is given run on the fake device, and finds something under racecheck
SANITIZER = """#!{python}
import os, subprocess, sys
options, command = sys.argv[1:7], sys.argv[7:]
assert options[::2] == ["--tool", "--error-exitcode", "--print-limit"] and command[1:3] == ["-m", "pytest"], sys.argv
assert os.environ["FLAME_CUDA_CACHING"] == "0"
found = options[1] == "racecheck"
code = 0 if found else subprocess.run([*command, "--fake-gpu", "--whole"]).returncode
print(f"========= {{'Race reported between Write access' if found else 'ERROR SUMMARY: 0 errors'}}")
sys.exit(int(options[3]) if found else code)
"""


def test_a_sanitizer_is_found_called_and_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER.format(python=sys.executable), encoding="utf-8")
    monkeypatch.setattr(sanitizer, "places", lambda: iter([tmp_path]))
    assert sanitizer.found() in (None, shutil.which("compute-sanitizer"))  # (it can't be run)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitizer.found() == str(tool)
    kernels = [n for n in test_cuda_runtime.CASES if n != "attention"][::2]
    assert all(any(chosen in n for n in kernels) for chosen in sanitizer.KERNELS)
    monkeypatch.setattr(sanitizer, "KERNELS", ("pad", "row_sum_float32"))
    ran = sanitizer.run(str(tool), "memcheck")
    assert ran.returncode == 0 and "2 passed" in ran.stdout and "ERROR SUMMARY: 0" in ran.stdout, ran.stdout + ran.stderr
    ran = sanitizer.run(str(tool), "racecheck")
    assert ran.returncode == sanitizer.FOUND and "Race reported" in ran.stdout, ran.stdout + ran.stderr


#: a worker of the benchmark whose row "large" finds no room beside a process of its kind
ROOM = """
import json, os, sys
from pathlib import Path
here = Path(sys.argv[1])
(here / str(os.getpid())).touch()
def alive(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True
say = lambda **what: print(json.dumps(what), flush=True)
say(version="1", device="none", rows=["small", "large", "too large"], tuned=["small"])
for line in sys.stdin:
    asked = json.loads(line)
    if "time" in asked:
        say(seconds=1.0)
    elif asked["prepare"] == "too large":
        say(error="OutOfMemoryError: 1", memory=True)
    elif asked["prepare"] == "large" and sum(alive(int(p.name)) for p in here.iterdir()) > 1:
        say(error="OutOfMemoryError: 2", memory=True)
    else:
        say(sum=1.0, bytes=0, operations=0)
"""


def test_what_finds_no_memory_beside_others_is_tried_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.py").write_text(ROOM, encoding="utf-8")
    pids = tmp_path / "pids"
    pids.mkdir()

    class Made(gpu_benchmark.Worker):
        def start(self) -> None:
            self.command = [sys.executable, str(tmp_path / "rows.py"), str(pids)]
            super().start()

    monkeypatch.setattr(gpu_benchmark, "Worker", Made)
    given = argparse.Namespace(patience=20.0, seconds=60.0, only="")
    course = gpu_benchmark.Course(["flame"], [], str(tmp_path), given, processes=2)
    try:
        assert course.run() == []
        report = gpu_benchmark.report(course, [])
    finally:
        course.close()
    for row, variant in (("small", "eager"), ("large", "eager"), ("large", "compiled"), ("small", "tuned")):
        assert course.results[row][f"flame {variant}"].get("seconds") == 1.0, (row, variant, course.results)
    assert course.results["too large"]["flame eager"] == {"error": "OutOfMemoryError: 1"}
    assert "- too large, flame compiled: OutOfMemoryError: 1\n" in report


def test_eager_rows_are_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal finds all that the row compiles then."""
    device = LaunchesOnly(compiling=False)
    monkeypatch.setattr(device, "announced", lambda code, source: None)  # (what memory kernels are lent is no matter here)
    monkeypatch.setattr(Rehearsal, "announced", lambda self, code, source: None)
    with fake_cuda.gpu_for_tests(library=device):
        worker = Worker(flame, True, True, compiled_ahead)
        asked: list[set[bytes]] = []
        monkeypatch.setattr(cuda.gpu(), "prepare", lambda sources: asked.append({s.digest.encode() for s in sources}))
        for row in ("softmax 8192", "GPT-2 inference"):
            asked.clear()
            before = set(device.compiled)
            made = worker.answer({"prepare": row, "variant": "eager"})
            assert "error" not in made and made["ahead"] == len(asked[0]) > 2, made
            late = {b for b in set(device.compiled) - before if not any(a in b for a in asked[0])}
            assert not late and not device.violations
            assert "ahead" not in worker.answer({"prepare": row, "variant": "compiled"})
        del worker


def launched(rows: Sequence[str], small: bool) -> LaunchesOnly:
    """Rows of the benchmark, eager and compiled, made ready where launches are checked and not run."""
    device = LaunchesOnly(compiling=False)
    with fake_cuda.gpu_for_tests(library=device):
        worker = Worker(flame, True, small)
        for row in rows:
            for variant in ("eager", "compiled"):
                made = worker.answer({"prepare": row, "variant": variant})
                assert "error" not in made and not device.violations, (row, variant, made, device.violations)
        del worker
    return device


def test_rows_of_models_can_be_made() -> None:
    launched(["GPT-2 training", "Llama 1B, 1024 tokens"], small=True)


def test_rows_can_be_made_at_their_full_sizes() -> None:
    """One of each kind; arrays of gigabytes are address space here."""
    device = launched(
        ["layer norm 262144 back", "cross entropy 8192x131072", "matmul 8192x8192x8192", "attention 16384 back",
         "conv 3x3 64 at 56 back"], small=False,
    )  # fmt: skip
    assert device.used and 3 << 30 < device.largest < 64 << 30


def test_a_device_without_work_checks_launches_all_the_same() -> None:
    device = LaunchesOnly(memory=1 << 30, compiling=False)
    with fake_cuda.gpu_for_tests(check=False, library=device):
        x = flame.ones(4, device="cuda")
        assert float((x + x).sum()) == 0 and not device.violations
        gpu = cuda.gpu()
        [function] = [f for f in gpu._functions.values() if "add" in f.name]
        with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
            function.launch((1, 1, 1), [4096] * len(function.parameters))
        assert "lie in no memory" in device.violations[0]
        with pytest.raises(OutOfMemoryError):
            flame.empty(1 << 28, 2, device="cuda")
        del function
