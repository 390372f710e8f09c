"""The adversarial programs for capture, with every tensor on the GPU: compiled, they do what they do eagerly there, and that
is what they do on the CPU: an error in both modes is agreement only where the CPU has it too."""

from __future__ import annotations

import importlib

import pytest

import flame
from tests.capture_programs import Case, agree, cases

pytestmark = pytest.mark.gpu

MODULES = ("calls", "control", "effects", "gradients", "indexing", "lifetimes", "modules", "optimizers", "sizes", "updates")


def programs(area: str) -> list[Case]:
    """Those that also run natively on a CPU, for the others take long or round at other places, and that need no CPU's memory."""
    name = f"test_capture_{area}"
    module = importlib.import_module(name)
    return [p.values[0] for p in cases(module.__name__) if p.values[1] == "llvm" and not p.values[0].host]


PROGRAMS = [pytest.param(case, id=f"{area}-{case.name}") for area in MODULES for case in programs(area)[::2]]
TRIED = {f"{p.values[0].module}.{p.values[0].name}" for p in PROGRAMS[::50]}


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs_agree(case: Case, brief: bool) -> None:
    if brief and f"{case.module}.{case.name}" not in TRIED:
        pytest.skip("takes long in an interpreter")
    flame.manual_seed(0)
    host = case.body(lambda f: f)
    flame.set_default_device("cuda")
    try:
        agree(case, "auto", host=host)
    finally:
        flame.set_default_device(None)
