"""Tensors, eager operations and compiled regions: the tests that CI runs through a fake driver, on the device itself."""

from __future__ import annotations

import inspect

import pytest
import test_gpu_tensors

pytestmark = pytest.mark.gpu

for _name, _test in list(vars(test_gpu_tensors).items()):
    if _name.startswith("test_") and "fake" not in inspect.signature(_test).parameters:
        globals()[_name] = _test
