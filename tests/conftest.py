"""What every test may rely on: a kernel cache of its own, verification after every pass, fixed seeds, and the second oracle.

`pytest -n auto --dist worksteal` runs them in several processes (pytest-xdist), which share one kernel cache.

Options: `--update-golden` rewrites the golden files instead of comparing with them; `--fake-gpu` runs tests/gpu without a GPU.
Tests marked `gpu` are deselected where there is none, which the summary tells. Tests marked `oracle` get PyTorch by
the fixture `torch`; where it is not installed they are skipped, and say so.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

# Before the first import of flame, which reads its knobs once. What the caller has set is left as it is.
_cache = tempfile.TemporaryDirectory(prefix="flame-tests-")
os.environ.setdefault("FLAME_CACHE_DIR", _cache.name)
os.environ.setdefault("FLAME_VERIFY", "1")
os.environ.setdefault("FLAME_NEVER_SLOWER", "0")  # what runs is then no matter of the clock; test_trial.py has its own
if "PYTEST_XDIST_WORKER" in os.environ:
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_name, "1")  # processes that all multiply on all cores wait for each other

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from flame.runtime import cuda  # noqa: E402
from tests.gpu.parts import InParts, OneProcess  # noqa: E402
from tests.gpu.results import Results  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_TORCH = "the second oracle is not installed: pip install 'flame-jit[oracle]'"

hypothesis.settings.register_profile(
    "flame",
    deadline=None,  # a shared machine's clock says nothing about an example
    derandomize=True,  # the same examples on every machine
    database=None,
    max_examples=50,
)
hypothesis.settings.load_profile("flame")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files instead of comparing with them")
    parser.addoption("--fake-gpu", action="store_true", help="try the GPU suite on a driver that interprets kernels")
    parser.addoption("--whole", action="store_true", help="with --fake-gpu: every case, without limits of time")
    parser.addoption(
        "--one-process", type=int, help="run the GPU suite in this process, and tell of it on a file descriptor (or 0)"
    )
    parser.addoption("--out", type=Path, help="a folder for the GPU suite's results (write --out=FOLDER)")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "gpu" or hasattr(config, "workerinput"):
        return
    to = config.getoption("--one-process")
    if to is None:
        config.pluginmanager.register(Results(config.getoption("--out")))
        config.pluginmanager.register(InParts(config))
    elif to:
        config.pluginmanager.register(OneProcess(config, to))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m gpu` looks at nothing but the GPU suite: what another file lacks on that machine is no matter there."""
    if config.option.markexpr == "gpu" and collection_path.parent == ROOT / "tests" and collection_path.suffix == ".py":
        return True
    return None


MOST_PROCESSES = 8  # of `-n auto`: each takes about 1 GB
_without_gpu: list[pytest.Item] = []
_told: list[int] = []  # how many each worker left out


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, MOST_PROCESSES)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    _told.append(getattr(node, "workeroutput", {}).get("without_gpu", 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left = max([len(_without_gpu), *_told])
    if left:
        terminalreporter.write_line(
            f"{left} tests of tests/gpu were left out: there is no GPU. On a machine with one: python -m pytest -m gpu"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _without_gpu[:] = [i for i in items if i.get_closest_marker("gpu")]
    if _without_gpu:
        if config.getoption("--fake-gpu") or cuda.available():
            _without_gpu.clear()
        else:
            config.hook.pytest_deselected(items=_without_gpu)
            items[:] = [i for i in items if not i.get_closest_marker("gpu")]
    if find_spec("torch") is None:
        for item in items:
            if item.get_closest_marker("oracle"):
                item.add_marker(pytest.mark.skip(reason=WITHOUT_TORCH))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["without_gpu"] = len(_without_gpu)
    _cache.cleanup()


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True when golden files are to be rewritten."""
    return request.config.getoption("--update-golden")


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers on every run."""
    return np.random.default_rng(20240229)


@pytest.fixture(scope="session")
def torch() -> Iterator[ModuleType]:
    """PyTorch, for tests marked `oracle`."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = (
        False  # (2.13's gradients of convolutions by oneDNN end in "free(): invalid pointer" with one thread)
    )
    yield torch
    torch.set_num_threads(threads)
