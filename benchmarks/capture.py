"""What capture costs: `python -m benchmarks.capture [--rounds 3] [--python torch=PATH] [--python jax=PATH] [--out FOLDER]`.

One table: following an operation, cached calls, a training step, a break, first calls in a fresh process and in a second one,
beside PyTorch and JAX where they are installed (in this Python, or in the one that --python names). Every framework is a process
of its own (`benchmarks/capture_rows.py`) with one thread, and the frameworks take turns row by row. Figures are medians over the
rounds, with the smallest and the largest. Nothing is asserted. `--out` writes capture-DATE.md and .json there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from flame.doctor import facts

HERE = Path(__file__).resolve().parent
FRAMEWORKS = ("flame", "torch", "jax")
FIRST = ("import", "first compiled result")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "FLAME_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}

Figures = dict[tuple[str, str], list[float]]  #: (row, framework) -> seconds, one a round


def environment(cache: str) -> dict[str, str]:
    """One thread, and caches of compiled code in a folder of their own."""
    caches = {"FLAME_CACHE_DIR": "flame", "TORCHINDUCTOR_CACHE_DIR": "torch", "JAX_COMPILATION_CACHE_DIR": "jax"}
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": path} | {k: os.path.join(cache, v) for k, v in caches.items()}


class Worker:
    """A process that measures rows of one framework when asked."""

    def __init__(self, framework: str, python: str, cache: str):
        self.command = [python, str(HERE / "capture_rows.py"), framework]
        self.environment = environment(cache)
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        head = self._answer()
        self.version: str = head["version"]
        self.rows: list[str] = head["rows"]

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.command)} ended with {self.process.wait()}: run it by hand to see why")
        return json.loads(line)

    def measure(self, row: str) -> float | None:
        assert self.process.stdin is not None
        print(row, file=self.process.stdin, flush=True)
        return self._answer()

    def first(self, cache: str) -> dict[str, float]:
        """Import and first compiled result, in a fresh process."""
        got = subprocess.run([*self.command, "first"], env=environment(cache), capture_output=True, text=True, check=True)
        return json.loads(got.stdout.splitlines()[-1])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(workers: dict[str, Worker], rounds: int) -> Figures:
    figures: Figures = {}

    def note(row: str, framework: str, seconds: float | None) -> None:
        if seconds is not None:
            figures.setdefault((row, framework), []).append(seconds)

    for turn in range(rounds):
        for row in rows_of(workers):
            for name, w in workers.items():
                if row in w.rows:
                    note(row, name, w.measure(row))
        for name, w in workers.items():
            with tempfile.TemporaryDirectory() as cache:
                for which in ("empty cache", "second process"):
                    for row, seconds in w.first(cache).items():
                        note(row if row == "import" else f"{row}, {which}", name, seconds)
        print(f"round {turn + 1} of {rounds} is done", file=sys.stderr)
    return figures


def rows_of(workers: dict[str, Worker]) -> list[str]:
    """Every row once; flame's own first, then those that have peers."""
    own = [r for r in workers["flame"].rows if not any(r in w.rows for n, w in workers.items() if n != "flame")]
    return own + [r for r in workers["flame"].rows if r not in own]


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def table(figures: Figures, names: list[str]) -> str:
    rows = list(dict.fromkeys(row for row, _ in figures))
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for row in rows:
        cells = []
        for name in names:
            got = figures.get((row, name))
            cells.append(
                "" if not got else f"{duration(statistics.median(got))} ({duration(min(got))} to {duration(max(got))})"
            )
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


NOTES = """\
Times are medians over the rounds, with the smallest and the largest. "following" is one operation (or composite) inside of a
compiled function while its path is followed, before anything is computed; a call that is not marked eager is a cached call of a
compiled function (`flame.compile`, `torch.compile`, `jax.jit`); "its program alone" is what of that is no capture: the compiled
program called with arrays. A break is the difference between a function with an `item()`
in the middle and the same without it. The training step is 75 linear layers of 8 x 8 in a row: flame and JAX compile all of it,
PyTorch forward and backward. First compiled result: a three-layer network, forward and backward, from the end of the import,
with an empty cache of compiled code and once more in a second process. Capture's native code is in force but for the last two
rows: it comes by itself, on a thread of its own, at a function's 24th call."""


def machine() -> dict[str, str]:
    """What a figure depends on, without this machine's paths."""
    wanted = ("flame", "Python", "processor", "vectors", "numpy", "llvmlite")
    return {what: found.replace(f", {sys.executable}", "") for what, found in facts() if what in wanted}


def report(figures: Figures, workers: dict[str, Worker], rounds: int) -> str:
    about = [f"- {what}: {found}" for what, found in machine().items()]
    versions = ", ".join(f"{n} {w.version}" for n, w in workers.items())
    load = f"{os.getloadavg()[0]:.1f} processes were running on average in the last minute" if hasattr(os, "getloadavg") else ""
    about += [f"- measured: {versions}; one thread each, {rounds} rounds" + (f"; {load}" if load else "")]
    return "\n".join(["# What capture costs", "", NOTES, "", *about, "", table(figures, list(workers)), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", action="append", default=[], metavar="FRAMEWORK=PATH", help="another Python that has it")
    parser.add_argument("--out", type=Path, help="folder for capture-DATE.md and capture-DATE.json")
    given = parser.parse_args()
    pythons = dict(p.split("=", 1) for p in given.python)
    with tempfile.TemporaryDirectory() as cache:
        workers: dict[str, Worker] = {}
        for name in FRAMEWORKS:
            try:
                workers[name] = Worker(name, pythons.get(name, sys.executable), cache)
            except RuntimeError as missing:
                if name == "flame":
                    raise
                print(f"without {name}: {missing}", file=sys.stderr)
        figures = measure(workers, given.rounds)
        text = report(figures, workers, given.rounds)
        for w in workers.values():
            w.close()
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        stem = given.out / f"capture-{datetime.date.today().isoformat()}"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        listed = [{"row": row, "framework": name, "seconds": got} for (row, name), got in figures.items()]
        kept = json.dumps({"machine": machine(), "figures": listed}, indent=1)
        stem.with_suffix(".json").write_text(kept + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
