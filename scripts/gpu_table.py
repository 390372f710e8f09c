"""Compile every kernel for every GPU, and write what they use: tests/golden/gpu_kernels.txt.

    python scripts/gpu_table.py             all kernels for sm_80, sm_90, sm_100 and gfx942 (some minutes); rewrites the table
    python scripts/gpu_table.py --new       only kernels that the table does not have; what is no more is taken out
    python scripts/gpu_table.py --check     all, compared: fails on kernels that do not compile, spill, or are not in the table

A row is a kernel: its name, then for each target its registers, bytes of shared memory and spills. What CI compiles of it says
tests/test_gpu_table.py, which reads this table.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gpu_table_for_tests as table  # type: ignore[import-not-found]  # noqa: E402
from gpu_kernels_for_tests import everything  # type: ignore[import-not-found]  # noqa: E402

from flame.runtime.triton_tools import load_triton  # noqa: E402


def main() -> int:
    begin = time.perf_counter()
    known = table.read() if "--new" in sys.argv or "--check" in sys.argv else {}
    rows: dict[str, dict[str, table.Use]] = {}
    failed: list[str] = []
    compiled = 0
    for arch in table.TARGETS:
        named = table.distinct(everything(arch))
        if "--new" in sys.argv:
            old = {n: known[n][arch] for n in named if arch in known.get(n, {})}
            for name, use in old.items():
                rows.setdefault(name, {})[arch] = use
            named = {n: s for n, s in named.items() if n not in old}
        uses, errors = table.compiled(named.items(), arch)
        compiled += len(uses)
        failed += errors
        for name, use in uses.items():
            rows.setdefault(name, {})[arch] = use
        print(f"{arch}: {len(uses)} binaries, {time.perf_counter() - begin:.0f} s", flush=True)
    spilling = [f"{n} for {a}: {u}" for n, row in rows.items() for a, u in row.items() if u.spills]
    print(f"{len(rows)} kernels, {compiled} binaries in {time.perf_counter() - begin:.0f} s; {len(failed)} failed")
    print(*failed, *(f"spills: {s}" for s in spilling), sep="\n")
    if "--check" in sys.argv:
        missing = sorted(rows.keys() - known.keys())
        print(*(f"not in the table: {n}" for n in missing), sep="\n")
        return int(bool(failed or missing))
    table.write(rows, load_triton().__version__)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
