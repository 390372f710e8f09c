"""The GPU suite: what must hold on hardware. `python -m pytest -m gpu [--out=FOLDER]` from a plain checkout; nothing here runs
without a GPU, but for `--fake-gpu`, which tries the suite itself on a driver that runs kernels in Triton's interpreter: a few
cases of each kind, or with `--whole` every one, whose results are then compared as on a GPU (half an hour and more).

It has nine minutes, in parts that are processes of their own (`parts.py`).
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest
from fake_cuda import FakeLibrary, gpu_for_tests

from flame.errors import HostDetourWarning
from flame.runtime import cuda


@pytest.fixture(scope="session")
def dry(request: pytest.FixtureRequest) -> bool:
    """Whether this is a try without a GPU: sizes are to be small, and times mean nothing."""
    return bool(request.config.getoption("--fake-gpu"))


@pytest.fixture(scope="session")
def brief(dry: bool, request: pytest.FixtureRequest) -> bool:
    """Whether a few of many cases will do: a try without a GPU that is not asked for all of them."""
    return dry and not request.config.getoption("--whole")


@pytest.fixture(autouse=True)
def hardware(dry: bool) -> Iterator[FakeLibrary | None]:
    """The device that tests run on: real (None), or a fake one for each test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HostDetourWarning)
        if dry:
            with gpu_for_tests() as fake:
                yield fake
            return
        yield None
        gc.collect()
        gpu = cuda.gpu()
        gpu.checks.close()
        gpu.synchronize()
