"""Matrix products beside NumPy's BLAS: `python -m benchmarks.gemm [--threads 1] [--rounds 5] [--only TEXT] [--part 1/1] [--out
FOLDER]`.

Forty shapes: squares, odd sizes, every transposition, few rows, vectors, deep and flat ones, batches, float64; then narrow dtypes.
Both sides make a fresh result, in one process and in turn; a figure is the least of all rounds, of a whole call (for flame that is
a compiled function's in replay mode, Python included; short ones are timed several at once). The last column is the native code
alone, beside NumPy's product into memory that is there. Nothing is asserted. `--out` writes gemm-DATE-THREADS.md and .json, and
keeps what they say of shapes that this run does not measure: `--part 2/3` measures every third shape from the second on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """(m, k) times (k, n), `form` saying which of the two lies transposed in memory (N: as written, T: transposed)."""

    m: int
    k: int
    n: int
    form: str = "NN"
    batch: int = 0
    dtype: str = "float32"

    def __str__(self) -> str:
        lead = f"{self.batch} x " if self.batch else ""
        plain = self.dtype == "float32"
        return f"{lead}{self.m} x {self.k} x {self.n} {self.form}{'' if plain else ' ' + self.dtype}"

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n * max(1, self.batch)


SHAPES = [
    *(Shape(n, n, n) for n in (16, 32, 64, 100, 128, 256, 384, 512, 768, 1024)),
    *(Shape(*s) for s in ((17, 33, 65), (127, 127, 127), (255, 257, 511), (333, 1000, 77))),
    *(Shape(n, n, n, form) for form in ("NT", "TN", "TT") for n in (64, 256, 512)),
    *(Shape(m, 768, 3072, "NT") for m in (1, 2, 4, 8, 16, 32, 128)),
    Shape(1, 1024, 1024),
    Shape(8, 768, 3072),
    Shape(1024, 1024, 1),
    Shape(1024, 1024, 1, "TN"),
    Shape(2048, 64, 2048, "NT"),
    Shape(64, 2048, 64),
    Shape(4096, 16, 256),
    Shape(128, 64, 128, "NN", 64),
    Shape(256, 256, 256, "NN", 0, "float64"),
    Shape(512, 512, 512, "NT", 0, "float64"),
]
#: what NumPy has no fast product of: beside its float32 one of the same size, and not in the mean. int8 sums as int32
NARROW = [Shape(n, n, n, "NN", 0, d) for d in ("bfloat16", "float16", "int8") for n in (256, 512)]


#: functions that read nothing from outside, which each call would have to look at
PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "NN": lambda x, y: x @ y,
    "NT": lambda x, y: x @ y.mT,
    "TN": lambda x, y: x.mT @ y,
    "TT": lambda x, y: x.mT @ y.mT,
}


def sides(shape: Shape) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], float], Callable[[], Any]]:
    """A call of flame's and one of NumPy's; the seconds of the one's native code, and the other into memory that is there."""
    import numpy as np

    import flame
    from flame.runtime import autotune, cpu

    r = np.random.default_rng(0)
    lead = (shape.batch,) if shape.batch else ()

    def operand(rows: int, columns: int, turned: bool) -> Any:
        size = (columns, rows) if turned else (rows, columns)
        x = r.standard_normal((*lead, *size))
        return x.astype(shape.dtype) if shape not in NARROW else (20 * x).astype("float32")

    a, b = operand(shape.m, shape.k, shape.form[0] == "T"), operand(shape.k, shape.n, shape.form[1] == "T")
    turn = tuple(f == "T" for f in shape.form)
    x, y = (flame.tensor(z).to(getattr(flame, shape.dtype)) for z in (a, b))

    product = PRODUCTS[shape.form] if shape.dtype != "int8" else lambda x, y: x.int() @ y.int()
    compiled = flame.compile(product, mode="replay")
    for _ in range(2):
        compiled(x, y)
    u, v = (z.swapaxes(-1, -2) if t else z for z, t in zip((a, b), turn, strict=True))
    out = np.matmul(u, v)
    native = [cpu.load(k.kernel) for k in compiled.kernels]

    def alone() -> float:
        return sum(autotune.seconds(k, {}) for k in native)

    return lambda: compiled(x, y), lambda: np.matmul(u, v), alone, lambda: np.matmul(u, v, out=out)


def least(call: Callable[[], Any], now: Callable[[], float]) -> float:
    """The least seconds of a call, in a thirtieth of a second; `now` is for calls that others may interrupt."""
    begin = time.perf_counter()
    call()
    took = time.perf_counter() - begin
    if took < 1e-3:
        now = time.perf_counter  # (the time of a process is counted too coarsely, and the least of many is undisturbed)
    times = max(1, int(5e-5 / max(took, 1e-7)))
    best, end = math.inf, now() + 0.03
    while True:
        begin = now()
        for _ in range(times):
            call()
        after = now()
        best = min(best, (after - begin) / times)
        if after > end:
            return best


def measure(shape: Shape, rounds: int, now: Callable[[], float]) -> list[float]:
    """The least seconds of flame's call, NumPy's call, flame's native code and NumPy's product, taken in turn."""
    own, other, alone, product = sides(shape)
    best = [math.inf] * 4
    for call in (own, other):
        for _ in range(3):
            call()
    for _ in range(rounds):
        here = [least(own, now), least(other, now), alone(), least(product, now)]
        best = [min(x, y) for x, y in zip(best, here, strict=True)]
    return best


COLUMNS = ("flame", "numpy", "flame alone", "numpy alone")


def _kept(stem: Path | None) -> dict[str, dict[str, float]]:
    """What an earlier part of the same table measured, by shape."""
    try:
        found = json.loads(stem.with_suffix(".json").read_text())["figures"] if stem else []
    except OSError:
        return {}
    return {f.pop("shape"): f for f in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], help="shapes whose name has this text")
    parser.add_argument("--part", default="1/1", help="2/3: the second third of the shapes")
    parser.add_argument("--out", type=Path, help="folder for the report and its figures")
    given = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FLAME_NUM_THREADS"):
        if os.environ.get(name) != str(given.threads):  # these are read when the libraries are loaded
            os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FLAME_NUM_THREADS"), str(given.threads))
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gemm", *sys.argv[1:]])
    if given.threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from benchmarks.capture import duration, machine

    now = time.process_time if given.threads == 1 else time.perf_counter
    lines = ["| m x k x n | flame | NumPy | flame, GFLOP/s | ratio | native code alone |", "|---|---:|---:|---:|---:|---:|"]
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    stem = given.out and given.out / f"gemm-{datetime.date.today().isoformat()}-{given.threads}"
    ratios, alone, figures = [], [], _kept(stem)
    part, parts = map(int, given.part.split("/"))
    for number, shape in enumerate([*SHAPES, *NARROW]):
        if number % parts == part - 1 and (not given.only or any(text in str(shape) for text in given.only)):
            figures[str(shape)] = dict(zip(COLUMNS, measure(shape, given.rounds, now), strict=True))
            print(shape, *map(duration, figures[str(shape)].values()), file=sys.stderr, flush=True)
        elif str(shape) not in figures:
            continue
        own, other, native, product = (figures[str(shape)][c] for c in COLUMNS)
        if shape in SHAPES:
            ratios.append(other / own)
            alone.append(product / native)
        speed, ratio = shape.flops / own / 1e9, f"{other / own:.2f} | {product / native:.2f}"
        lines.append(f"| {shape} | {duration(own)} | {duration(other)} | {speed:.1f} | {ratio} |")

    def said(ratios: list[float]) -> str:
        mean = math.exp(sum(map(math.log, ratios)) / max(1, len(ratios)))
        return f"{mean:.2f} times as fast by geometric mean, {sum(r < 0.95 for r in ratios)} of {len(ratios)} shapes below 0.95"

    about = [f"- {what}: {found}" for what, found in machine().items()]
    about.append(f"- {given.threads} thread{'s' * (given.threads > 1)} each, the least of {given.rounds} rounds")
    total = f"Against NumPy: {said(ratios)}. Native code alone: {said(alone)}."
    text = "\n".join(["# Matrix products on a CPU", "", *about, "", *lines, "", total, ""])
    print(text)
    if stem is not None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        kept = {"machine": machine(), "threads": given.threads, "figures": [{"shape": s, **f} for s, f in figures.items()]}
        stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
