"""How fast compiled programs run on a CPU: `python -m benchmarks.cpu [--threads 1] [--rounds 3] [--only TEXT] [--python torch=PATH]
[--python jax=PATH] [--against FILE.json] [--peers-cache FOLDER] [--out FOLDER]`.

One table: kernels and small models, beside PyTorch (eager and compiled) and JAX where they are installed (in this Python, or in
the one that --python names). Every framework is a process of its own (`benchmarks/cpu_rows.py`), and they take turns row by row.
A figure is the median over the rounds of the least seconds of a call; the ratio says how many times as fast as the best peer
flame is (its own eager mode is no peer). A second table has the seconds of the first two calls, in which things are compiled.
What fails in one framework is left empty, and a process that dies or answers nothing for `--patience` seconds is begun anew for
the next row. Nothing is asserted. `--against` takes the peers' figures from an earlier run; `--out` writes cpu-DATE-THREADS.md and
.json, and into benchmarks/results also the summary in README.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import selectors
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
OWN = ("flame", "flame eager")


class Worker:
    """A process that measures rows of one framework when asked."""

    def __init__(self, framework: str, python: str, threads: int, cache: str, patience: float, rows: str = ""):
        self.name, self.patience = framework, patience
        limits = {"OMP_NUM_THREADS": str(threads), "FLAME_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        if threads == 1:
            limits["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        caches = {"FLAME_CACHE_DIR": "flame", "TORCHINDUCTOR_CACHE_DIR": "torch"}
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, **limits, "PYTHONPATH": path}
        self.environment |= {k: os.path.join(cache, v) for k, v in caches.items()}
        self.command = [python, str(HERE / "cpu_rows.py"), framework, str(threads), *filter(None, [rows])]
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        head = self._answer()
        self.version: str = head["version"]
        self.rows: list[str] = head["rows"]

    def _answer(self) -> Any:
        """The next line of the process. Raises RuntimeError where it died, or has nothing to say for too long."""
        out = self.process.stdout
        assert out is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(out, selectors.EVENT_READ)
            line = out.readline() if waiting.select(self.patience) else b""
        if line:
            return json.loads(line)
        self.process.kill()
        raise RuntimeError(f"{' '.join(self.command)} ended with {self.process.wait()}: run it by hand to see why")

    def measure(self, row: str) -> dict[str, list[float]]:
        """By column of the table, seconds of a call and of the first one; nothing where the process came to an end."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{row}\n".encode())
            self.process.stdin.flush()
            answer = self._answer()
        except (RuntimeError, OSError) as failed:
            print(f"{row}: {self.name} failed: {failed}", file=sys.stderr)
            self.process.kill()
            self._start()
            return {}
        return {f"{self.name} {variant}".strip(): figures for variant, figures in answer.items()}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(workers: list[Worker], rounds: int, only: list[str]) -> tuple[Figures, Figures]:
    """Seconds of calls, a figure a round, and of first calls."""
    figures: Figures = {}
    first: Figures = {}
    rows = [r for r in workers[0].rows if not only or any(text in r for text in only)]
    for row in rows:
        failed: set[str] = set()
        for _ in range(rounds):
            for w in workers:
                if w.name in failed:
                    continue
                answer = w.measure(row)
                if not answer:
                    failed.add(w.name)
                for column, (seconds, at_first) in answer.items():
                    figures.setdefault((row, column), []).append(seconds)
                    first.setdefault((row, column), [at_first])
        print(f"{row}: {', '.join(f'{c} {duration(statistics.median(s))}' for (r, c), s in figures.items() if r == row)}",
              file=sys.stderr)  # fmt: skip
    return figures, first


def ratios(figures: Figures) -> dict[str, float]:
    """How many times as fast as the best peer flame is, by row."""
    out = {}
    for row in dict.fromkeys(row for row, _ in figures):
        peers = [statistics.median(s) for (r, c), s in figures.items() if r == row and c not in OWN]
        own = figures.get((row, "flame"))
        if peers and own:
            out[row] = min(peers) / statistics.median(own)
    return out


def table(figures: Figures, ratio: dict[str, float]) -> str:
    columns = sorted({c for _, c in figures}, key=lambda c: ([c.startswith(f) for f in FRAMEWORKS].index(True), c))
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


MARKS = ("<!-- benchmarks.cpu -->", "<!-- end of benchmarks.cpu -->")


def into_readme(page: Path, results: Path) -> None:
    """Put the summaries of the newest results for each number of threads between the page's marks."""
    newest = {f.stem.rsplit("-", 1)[1]: f for f in sorted(results.glob("cpu-*-*-*-*.md"))}
    lines = []
    for threads, f in sorted(newest.items(), key=lambda x: int(x[0])):
        said = next(line for line in f.read_text(encoding="utf-8").splitlines() if line.startswith("Against the best peer"))
        lines.append(f"- [{threads} thread{'s' * (threads != '1')}]({f.relative_to(page.parent).as_posix()}): {said}")
    before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text("\n".join([before + MARKS[0], *lines, MARKS[1] + after]), encoding="utf-8")


def report(
    figures: Figures, first: Figures, workers: list[Worker], threads: int, rounds: int, earlier: dict[str, str], warm: bool
) -> str:
    about = [f"- {what}: {found}" for what, found in machine().items()]
    versions = ", ".join(f"{n} {v}" for n, v in (earlier | {w.name: w.version for w in workers}).items())
    clock = "seconds of the processor" if threads == 1 else "seconds of the clock"
    about.append(f"- measured: {versions}; {threads} thread{'s' * (threads > 1)} each, {rounds} rounds, {clock}")
    if hasattr(os, "getloadavg"):
        about.append(f"- {os.getloadavg()[2]:.1f} processes were running on average in the last quarter of an hour")
    parts = ["# Compiled programs on a CPU", "", *about, "", table(figures, ratios(figures)), "", summary(figures), ""]
    kept = " What others had compiled in an earlier run was kept." if warm else ""
    parts += ["## The first two calls", "", f"Seconds of the clock, compiling included.{kept}", "", table(first, {}), ""]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="rows whose name has this text")
    parser.add_argument("--python", action="append", default=[], metavar="FRAMEWORK=PATH", help="another Python that has it")
    parser.add_argument("--against", type=Path, help="a result file to take the peers' figures from")
    parser.add_argument(
        "--patience", type=float, default=180.0, help="seconds that a row may take a framework, compiling included"
    )
    parser.add_argument("--cache", help="folder for compiled code, kept from run to run")
    parser.add_argument("--peers-cache", help="such a folder for the others alone, whose first calls then say nothing")
    parser.add_argument("--out", type=Path, help="folder for the report and its figures")
    given = parser.parse_args()
    pythons = dict(p.split("=", 1) for p in given.python)
    earlier: dict[str, Any] = json.loads(given.against.read_text()) if given.against else {}
    with tempfile.TemporaryDirectory() as temporary:
        workers: list[Worker] = []
        for name in FRAMEWORKS[:1] if earlier else FRAMEWORKS:
            try:
                folder = given.cache or (name != "flame" and given.peers_cache) or temporary
                workers.append(Worker(name, pythons.get(name, sys.executable), given.threads, folder, given.patience))
            except RuntimeError as missing:
                if name == "flame":
                    raise
                print(f"without {name}: {missing}", file=sys.stderr)
        figures, first = measure(workers, given.rounds, given.only)
        measured = {row for row, _ in figures}
        for f in earlier.get("figures", []):
            if f["column"] not in OWN and f["row"] in measured:
                figures[f["row"], f["column"]] = f["seconds"]
        versions = earlier.get("versions", {}) | {w.name: w.version for w in workers}
        text = report(figures, first, workers, given.threads, given.rounds, versions, bool(given.cache or given.peers_cache))
        for w in workers:
            w.close()
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        stem = given.out / f"cpu-{datetime.date.today().isoformat()}-{given.threads}"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        listed = [
            {"row": row, "column": c, "seconds": got, "first": first.get((row, c), [None])[0]}
            for (row, c), got in figures.items()
        ]
        kept = {"machine": machine(), "versions": versions, "threads": given.threads, "figures": listed}
        stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        if given.out.resolve() == HERE / "results":
            into_readme(HERE.parent / "README.md", HERE / "results")


if __name__ == "__main__":
    main()
