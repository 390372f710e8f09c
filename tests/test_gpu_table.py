"""Kernels compile for GPUs that are not there, spill nothing, and use no more registers than they did.

CI compiles the operators in float32, the routines and the kernels of real models' rows for sm_90, and a third of the operators for
each other target; which third goes by name. `scripts/gpu_table.py` compiles everything for every target and writes the table.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Iterator

import gpu_table_for_tests as table
import pytest

pytest.importorskip("triton", reason="Triton is installed on Linux only")

import gpu_kernels_for_tests as kernels

from flame.compiler.to_triton import TritonSource
from flame.primitive import REGISTRY
from flame.runtime.triton_tools import load_triton

#: kinds of kernels that keep what they work on in registers; tiled products may not
PLAIN = ("operator/", "routine/", "rows/")
OTHERS = ("sm_80", "sm_100", "gfx942")


def chosen(arch: str) -> Iterator[tuple[str, TritonSource]]:
    if arch == "sm_90":
        yield from kernels.of_operators(arch, ("float32",))
        yield from kernels.of_rows(arch)
        yield from kernels.of_routines(arch, ("float32",))
        return
    mine = OTHERS.index(arch)
    for name, source in kernels.of_operators(arch, ("float32",)):
        if zlib.crc32(name.encode()) % 3 == mine:
            yield name, source


def is_plain(name: str, row: dict[str, table.Use]) -> bool:
    kind, which, *_ = name.split("/")
    if kind == "operator" and REGISTRY[which].kind == "contract":
        return False
    return name.startswith(PLAIN) and not table.is_product(row)


def is_of_this_triton() -> bool:
    return table.version() == load_triton().__version__


@pytest.mark.parametrize("arch", table.TARGETS)
def test_kernels_compile_and_use_what_the_table_says(arch: str) -> None:
    known = table.read()
    uses, failed = table.compiled(chosen(arch), arch)
    assert not failed, "\n".join(failed)
    assert len(uses) > 20
    new = sorted(n for n in uses.keys() - known.keys() if n.startswith("operator/"))
    assert not new, f"not in the table, run scripts/gpu_table.py: {new}"
    same = is_of_this_triton()
    for name, use in uses.items():
        # a kernel of two names stands in the table under the one that came first there
        if not is_plain(name, known.get(name, {arch: use})):
            continue
        assert use.spills == 0, f"{name} for {arch}: {use}"
        before = known.get(name, {}).get(arch)
        if before is not None and same:
            # room for what neighbouring passes change; a kernel that grows by more has lost something
            told = f"{name} for {arch}: {use.registers} registers where the table has {before.registers}"
            assert use.registers <= before.registers * 1.25 + 16, told


def test_the_table_has_every_target_and_no_spills() -> None:
    rows = table.read()
    assert len(rows) > 500
    for name, row in rows.items():
        # (a model's rows may be cut into other kernels where a GPU has more multiprocessors)
        assert row.keys() == set(table.TARGETS) or name.startswith(("rows/", "tiles/", "corpus/")), name
        if is_plain(name, row):
            assert all(u.spills == 0 for u in row.values()), name


def test_the_table_is_of_all_operators_routines_and_models_and_of_no_others() -> None:
    named: dict[str, set[str]] = {}
    for row in table.read():
        kind, which, *_ = row.split("/")
        named.setdefault(kind, set()).add(which)
    assert named == {
        "operator": {p.name for p in REGISTRY.values() if p.scalar is not None or p.lower is not None},
        "routine": {p.name for p in REGISTRY.values() if kernels.has_routine(p)},
        "case": set(kernels.made.cases()),
        "rows": set(kernels.ROWS),
        "tiles": {*kernels.TILES, "experts bfloat16 8x1024x512"},
        "corpus": set(kernels.PROGRAMS),
    }


def test_source_is_the_same_in_every_process() -> None:
    """Whatever the order of sets is there."""
    code = (
        "import gpu_kernels_for_tests as k\n"
        "for f in (k.of_operators, k.of_routines):\n"
        "    for name, s in f('sm_90', ('float32', 'int64')): print(name, s.digest)"
    )
    said = []
    for seed in ("1", "77"):
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
        said.append(done.stdout)
    assert said[0] == said[1] and said[0].count("\n") > 100
