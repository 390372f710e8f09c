"""How fast compiled programs run on a CPU: `python -m benchmarks.cpu [--threads 1] [--rounds 3] [--only TEXT] [--python torch=PATH]
[--python jax=PATH] [--against FILE.json] [--out FOLDER]`.

One table: kernels and small models, beside PyTorch (eager and compiled) and JAX where they are installed (in this Python, or in
the one that --python names). Every framework is a process of its own (`benchmarks/cpu_rows.py`), and they take turns row by row.
A figure is the median over the rounds of the least seconds of a call; the ratio says how many times as fast as the best peer
flame is. Nothing is asserted. `--against` takes the peers' figures from an earlier run; `--out` writes cpu-DATE-THREADS.md and
.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.capture import duration, machine

HERE = Path(__file__).resolve().parent
FRAMEWORKS = ("flame", "torch", "jax")
Figures = dict[tuple[str, str], list[float]]  #: (row, framework and variant) -> seconds, one a round


class Worker:
    """A process that measures rows of one framework when asked."""

    def __init__(self, framework: str, python: str, threads: int, cache: str):
        self.name = framework
        limits = {"OMP_NUM_THREADS": str(threads), "FLAME_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        if threads == 1:
            limits["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        caches = {"FLAME_CACHE_DIR": "flame", "TORCHINDUCTOR_CACHE_DIR": "torch"}
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **limits, "PYTHONPATH": path} | {k: os.path.join(cache, v) for k, v in caches.items()}
        self.command = [python, str(HERE / "cpu_rows.py"), framework, str(threads)]
        self.process = subprocess.Popen(
            self.command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
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

    def measure(self, row: str) -> dict[str, float]:
        """Seconds by column of the table."""
        assert self.process.stdin is not None
        print(row, file=self.process.stdin, flush=True)
        return {f"{self.name} {variant}".strip(): seconds for variant, seconds in self._answer().items()}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(workers: list[Worker], rounds: int, only: list[str]) -> Figures:
    figures: Figures = {}
    rows = [r for r in workers[0].rows if not only or any(text in r for text in only)]
    for row in rows:
        for _ in range(rounds):
            for w in workers:
                for column, seconds in w.measure(row).items():
                    figures.setdefault((row, column), []).append(seconds)
        print(f"{row}: {', '.join(f'{c} {duration(statistics.median(s))}' for (r, c), s in figures.items() if r == row)}",
              file=sys.stderr)  # fmt: skip
    return figures


def ratios(figures: Figures) -> dict[str, float]:
    """How many times as fast as the best peer flame is, by row."""
    out = {}
    for row in dict.fromkeys(row for row, _ in figures):
        peers = [statistics.median(s) for (r, c), s in figures.items() if r == row and c != "flame"]
        own = figures.get((row, "flame"))
        if peers and own:
            out[row] = min(peers) / statistics.median(own)
    return out


def table(figures: Figures) -> str:
    columns = sorted({c for _, c in figures}, key=lambda c: [c.startswith(f) for f in FRAMEWORKS].index(True))
    columns = list(dict.fromkeys(columns))
    ratio = ratios(figures)
    lines = [f"| | {' | '.join(columns)} | ratio |", "|---|" + "---:|" * (len(columns) + 1)]
    for row in dict.fromkeys(row for row, _ in figures):
        cells = []
        for c in columns:
            got = figures.get((row, c))
            cells.append("" if got is None else duration(statistics.median(got)))
        lines.append(f"| {row} | {' | '.join(cells)} | {f'{ratio[row]:.2f}' if row in ratio else ''} |")
    return "\n".join(lines)


def summary(figures: Figures) -> str:
    found = list(ratios(figures).values())
    if not found:
        return ""
    mean = math.exp(sum(map(math.log, found)) / len(found))
    behind = f"{sum(x < 0.95 for x in found)} of {len(found)} rows below 0.95"
    return f"Against the best peer of each row: {mean:.2f} times as fast by geometric mean, {behind}."


def report(figures: Figures, workers: list[Worker], threads: int, rounds: int, earlier: dict[str, str]) -> str:
    about = [f"- {what}: {found}" for what, found in machine().items()]
    versions = ", ".join(f"{n} {v}" for n, v in (earlier | {w.name: w.version for w in workers}).items())
    clock = "seconds of the processor" if threads == 1 else "seconds of the clock"
    about.append(f"- measured: {versions}; {threads} thread{'s' * (threads > 1)} each, {rounds} rounds, {clock}")
    if hasattr(os, "getloadavg"):
        about.append(f"- {os.getloadavg()[2]:.1f} processes were running on average in the last quarter of an hour")
    return "\n".join(["# Compiled programs on a CPU", "", *about, "", table(figures), "", summary(figures), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="rows whose name has this text")
    parser.add_argument("--python", action="append", default=[], metavar="FRAMEWORK=PATH", help="another Python that has it")
    parser.add_argument("--against", type=Path, help="a result file to take the peers' figures from")
    parser.add_argument("--cache", help="folder for compiled code, kept from run to run")
    parser.add_argument("--out", type=Path, help="folder for the report and its figures")
    given = parser.parse_args()
    pythons = dict(p.split("=", 1) for p in given.python)
    earlier: dict[str, Any] = json.loads(given.against.read_text()) if given.against else {}
    with tempfile.TemporaryDirectory() as temporary:
        workers: list[Worker] = []
        for name in FRAMEWORKS[:1] if earlier else FRAMEWORKS:
            try:
                workers.append(Worker(name, pythons.get(name, sys.executable), given.threads, given.cache or temporary))
            except RuntimeError as missing:
                if name == "flame":
                    raise
                print(f"without {name}: {missing}", file=sys.stderr)
        figures = measure(workers, given.rounds, given.only)
        measured = {row for row, _ in figures}
        for f in earlier.get("figures", []):
            if f["column"] != "flame" and f["row"] in measured:
                figures[f["row"], f["column"]] = f["seconds"]
        versions = earlier.get("versions", {}) | {w.name: w.version for w in workers}
        text = report(figures, workers, given.threads, given.rounds, versions)
        for w in workers:
            w.close()
    print(text)
    if given.out is not None:
        stem = given.out / f"cpu-{datetime.date.today().isoformat()}-{given.threads}"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        listed = [{"row": row, "column": c, "seconds": got} for (row, c), got in figures.items()]
        kept = {"machine": machine(), "versions": versions, "threads": given.threads, "figures": listed}
        stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
