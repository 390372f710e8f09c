"""How fast flame is on a GPU: `python -m benchmarks.gpu [--only TEXT] [--seconds 520] [--out FOLDER] [--small] [--fake]`.

One table: kernels and models, eager and compiled, beside PyTorch (eager, torch.compile, and with max-autotune where that can be
waited for) if it is installed. Every framework is a process of its own (`benchmarks/gpu_rows.py`); they take turns row by row on
the one device. A figure is the median of the device's time of a call, its caches flushed before each; of "call overhead" the
clock's.
The last columns are what flame compiled reaches (TB/s or TFLOP/s) and how many times as fast as PyTorch's best it is.

What fails or takes longer than --patience is left empty and told below; when --seconds are over, the rest is left out and named.
Results of frameworks are compared by their sums: what differs by more than 5% is marked. `--out` writes gpu-DATE.json and .md.
`--small --fake` tries this program itself where there is no GPU: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.capture import duration, machine

HERE = Path(__file__).resolve().parent
COLUMNS = ("torch eager", "torch compiled", "torch tuned", "flame eager", "flame compiled", "flame tuned")
Results = dict[str, dict[str, dict[str, Any]]]  #: row -> column -> figures


class Worker:
    """A process that measures rows of one framework when asked."""

    def __init__(self, framework: str, flags: list[str], cache: str, patience: float):
        self.name, self.patience = framework, patience
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {
            **os.environ,
            "PYTHONPATH": path,
            "FLAME_CACHE_DIR": cache,
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch",
        }
        self.command = [sys.executable, str(HERE / "gpu_rows.py"), framework, *flags]
        self._start()

    def _start(self) -> None:
        self.said = b""
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HERE.parent
        )
        self.head: dict[str, Any] = self._answer(self.patience)

    def _answer(self, seconds: float) -> Any:
        """The next line of JSON. Raises RuntimeError where the process died, or has nothing to say for too long."""
        out = self.process.stdout
        assert out is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as waiting:
            waiting.register(out, selectors.EVENT_READ)
            while True:
                line, end, rest = self.said.partition(b"\n")
                if end:
                    self.said = rest
                    if line.startswith(b"{"):  # other lines are a library's
                        return json.loads(line)
                    continue
                more = os.read(out.fileno(), 1 << 16) if waiting.select(max(until - time.monotonic(), 0.0)) else b""
                if not more:
                    self.process.kill()
                    raise RuntimeError(f"{self.name} ended with {self.process.wait()}, or took longer than {seconds:.0f} s")
                self.said += more

    def measure(self, row: str, seconds: float) -> dict[str, dict[str, Any]]:
        """By variant; where the process came to an end, why."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{row}\n".encode())
            self.process.stdin.flush()
            return self._answer(min(seconds, self.patience))
        except (RuntimeError, OSError) as failed:
            self.process.kill()
            self.process.wait()
            self._start()
            return {"compiled": {"error": str(failed)}}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def table(results: Results) -> str:
    used = [c for c in COLUMNS if any(c in found for found in results.values())]
    lines = [f"| | {' | '.join(used)} | flame reaches | against torch |", "|---|" + "---:|" * (len(used) + 2)]
    for row, found in results.items():
        seconds = {c: found[c]["seconds"] for c in used if "seconds" in found.get(c, {})}
        cells = [duration(seconds[c]) + ("*" if found[c].get("differs") else "") if c in seconds else "" for c in used]
        mine = min((s for c, s in seconds.items() if c in COLUMNS[4:]), default=0.0)
        peer = min((s for c, s in seconds.items() if c.startswith("torch")), default=0.0)
        about = next((f for f in found.values() if "seconds" in f), {})
        reaches = ""
        if mine and about.get("operations"):
            reaches = f"{about['operations'] / mine / 1e12:.0f} TFLOP/s"
        elif mine and about.get("bytes"):
            reaches = f"{about['bytes'] / mine / 1e12:.2f} TB/s"
        lines.append(f"| {row} | {' | '.join(cells)} | {reaches} | {f'{peer / mine:.2f}' if mine and peer else ''} |")
    return "\n".join(lines)


def compare(found: dict[str, dict[str, Any]]) -> None:
    """Mark what is not the first framework's eager result."""
    measured = [f for f in found.values() if "sum" in f]
    for f in measured[1:]:
        a, b = measured[0]["sum"], f["sum"]
        f["differs"] = not abs(a - b) <= 0.05 * max(abs(a), abs(b), 1.0)


def report(results: Results, workers: list[Worker], left_out: list[str], seconds: float) -> str:
    about = [f"- {what}: {found}" for what, found in machine().items()]
    about.append(
        f"- device: {workers[-1].head['device']}; measured: " + ", ".join(f"{w.name} {w.head['version']}" for w in workers)
    )
    about.append(f"- {datetime.date.today()}, {seconds:.0f} s; * the result differs from the first column's by more than 5%")
    errors = [f"- {row}, {c}: {f['error']}" for row, found in results.items() for c, f in found.items() if "error" in f]
    parts = ["# Speed on a GPU", "", *about, ""]
    if errors:
        parts += ["What failed:", "", *errors, ""]
    if left_out:
        parts += [f"Not reached in the time given: {', '.join(left_out)}.", ""]
    return "\n".join([*parts, table(results), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--seconds", type=float, default=520.0, help="when to stop")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds that one row of one framework may take")
    parser.add_argument("--out", type=Path, help="a folder for the results")
    parser.add_argument("--small", action="store_true", help="sizes that an interpreter can run")
    parser.add_argument("--fake", action="store_true", help="run flame on a driver that interprets kernels, and no peer")
    given = parser.parse_args()
    begun = time.monotonic()
    flags = [f for f in ("small", "fake") if getattr(given, f)]
    frameworks = [f for f in ("torch", "flame") if f == "flame" or (find_spec("torch") and not given.fake)]
    results: Results = {}
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="flame-benchmark-") as cache:
        workers = [Worker(f, flags, cache, given.patience) for f in frameworks]
        try:
            for row in workers[-1].head["rows"]:
                if given.only not in row:
                    continue
                rest = given.seconds - (time.monotonic() - begun)
                if rest < 5:
                    left_out.append(row)
                    continue
                found: dict[str, dict[str, Any]] = {}
                for w in workers:
                    found |= {f"{w.name} {v}": figures for v, figures in w.measure(row, max(rest, 5.0)).items()}
                compare(found)
                results[row] = found
                print(table({row: found}).splitlines()[-1], file=sys.stderr, flush=True)
                if given.out:  # what was measured is there, whatever happens next
                    given.out.mkdir(parents=True, exist_ok=True)
                    (given.out / f"gpu-{datetime.date.today()}.json").write_text(
                        json.dumps(results, indent=1), encoding="utf-8"
                    )
            said = report(results, workers, left_out, time.monotonic() - begun)
        finally:
            for w in workers:
                w.close()
    if given.out:
        (given.out / f"gpu-{datetime.date.today()}.md").write_text(said, encoding="utf-8")
    print(said)


if __name__ == "__main__":
    main()
