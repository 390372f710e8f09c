"""How fast flame is on a GPU: `python -m benchmarks.gpu [--only TEXT] [--seconds 510] [--out FOLDER] [--small] [--fake]`.

One table: kernels and models, eager and compiled, beside PyTorch (eager, torch.compile, and with max-autotune) if it is installed.
A figure is the median of the device's time of a call, its caches flushed before each; of "call overhead" the clock's. The last
columns are what flame reaches (TB/s, also as a part of the best copy's, or TFLOP/s) and how many times as fast as PyTorch's best.

Several processes (`benchmarks/gpu_rows.py`) make rows ready at once, most of which is compiling; while one of them is timed, all
others are stopped. Rows come in the order of what they tell; what tries many kernels comes last, one process at a time. What
fails or takes longer than --patience is left empty and told below; when --seconds are over, the rest is left out and named. What
runs out of memory beside other processes is tried again when these have ended.
Results of frameworks are compared by their sums: what differs by more than 5% is marked. `--out` writes gpu-DATE.json and .md
after every figure, and so does being told to end. Where there is no GPU `--small --fake` tries this program itself with kernels
that are interpreted, and `--fake` alone at full size: kernels are compiled, launches checked and not run. Figures then mean
nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.capture import duration, machine

HERE = Path(__file__).resolve().parent
COLUMNS = ("torch eager", "torch compiled", "torch tuned", "flame eager", "flame compiled", "flame tuned")
#: the row that others are compared with that do nothing but move bytes
COPY = "copy 1 GiB"
PROCESSES = 3  #: of each framework
Results = dict[str, dict[str, dict[str, Any]]]  #: row -> column -> figures


class Worker:
    """A process that makes rows of one framework ready, and times them, when asked."""

    def __init__(self, framework: str, flags: list[str], cache: str):
        self.name, self.cache = framework, cache
        self.command = [sys.executable, str(HERE / "gpu_rows.py"), framework, *flags]
        self.task: tuple[str, str] | None = None  #: row, variant
        self.head: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // PROCESSES)),
            "TORCHINDUCTOR_CACHE_DIR": f"{self.cache}/torch", "FLAME_CACHE_DIR": self.cache,
        }  # fmt: skip
        self.said, self.since = b"", time.monotonic()
        self.process = subprocess.Popen(
            self.command, env={**os.environ, **environment, "PYTHONPATH": path}, cwd=HERE.parent,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, **what: Any) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # (that it has ended is seen by who waits for its answer)
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()

    def fileno(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def answer(self) -> dict[str, Any] | None:
        """The next line of JSON, where all of it has come. Raises EOFError where the process has ended."""
        while select.select([self], [], [], 0)[0]:
            more = os.read(self.fileno(), 1 << 16)
            if not more:
                raise EOFError(f"its process ended with {self.process.wait()}")
            self.said += more
        while b"\n" in self.said:
            line, _, self.said = self.said.partition(b"\n")
            if line.startswith(b"{"):  # other lines are a library's
                return json.loads(line)
        return None

    def wait(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            got = self.answer()
            if got is not None:
                return got
            select.select([self], [], [], 0.2)
        raise TimeoutError(f"it said nothing for {seconds:.0f} s")

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


class Course:
    """All that is to be measured, by processes that work side by side."""

    def __init__(self, frameworks: list[str], flags: list[str], cache: str, given: argparse.Namespace, processes: int):
        self.given, self.begun = given, time.monotonic()
        self.results: Results = {}
        self.workers = [Worker(f, flags, cache) for _ in range(processes) for f in frameworks]
        self.waiting: dict[str, list[tuple[str, str]]] = {f: [] for f in frameworks}
        self.again: list[
            tuple[str, tuple[str, str]]
        ] = []  #: (framework, row and variant) that had too little memory beside others
        self.alone = False
        self.told: Callable[[], None] = lambda: None
        first = {w.name: w for w in reversed(self.workers)}
        for w in self.workers:
            if w is first[w.name]:
                w.head = w.wait(max(given.patience, 120.0))
        self.heads = {f: w.head for f, w in first.items()}
        rows = [r for r in self.heads[frameworks[-1]]["rows"] if given.only in r]
        for f in frameworks:
            self.waiting[f] = [(r, v) for r in rows for v in ("eager", "compiled")]
            self.waiting[f] += [(r, "tuned") for r in rows if r in self.heads[f]["tuned"]]

    def rest(self) -> float:
        return self.given.seconds - (time.monotonic() - self.begun)

    def run(self) -> list[str]:
        """Measure until all is done or the time is over; what was not reached."""
        while self.rest() > 0:
            if self.again and not any(w.task for w in self.workers) and not any(map(self._plain, self.waiting.values())):
                self._try_alone(*self.again.pop(0))
                continue
            for w in self.workers:
                if w.task is None and self._may_start(w):
                    w.task = self.waiting[w.name].pop(0)
                    w.since = time.monotonic()
                    w.ask(prepare=w.task[0], variant=w.task[1])
            busy = [w for w in self.workers if w.task is not None]
            if not busy:
                break
            select.select(busy, [], [], 0.5)
            for w in busy:
                self._look(w)
        left = [w.task for w in self.workers if w.task] + [t for tasks in self.waiting.values() for t in tasks]
        left += [task for _, task in self.again]
        return list(dict.fromkeys(f"{row} ({variant})" for row, variant in left))

    def _may_start(self, w: Worker) -> bool:
        tasks = self.waiting[w.name]
        if not tasks:
            return False
        quiet = all(o.task is None for o in self.workers)
        if self._plain(tasks):
            return not any(o.task and o.task[1] == "tuned" for o in self.workers)
        # (what measures for itself wants the device for itself)
        return quiet and not self.again and not any(map(self._plain, self.waiting.values()))

    @staticmethod
    def _plain(tasks: list[tuple[str, str]]) -> bool:
        """Is the next task one that may be made ready beside others?"""
        return bool(tasks) and tasks[0][1] != "tuned"

    def _try_alone(self, framework: str, task: tuple[str, str]) -> None:
        """A task in a fresh process, the only one on the device; the others start anew after the last of such tasks."""
        for w in self.workers:
            w.close()
        w = next(w for w in self.workers if w.name == framework)
        w.start()
        w.task, self.alone = task, True
        w.ask(prepare=task[0], variant=task[1])
        while w.task is not None and self.rest() > 0:
            select.select([w], [], [], 0.5)
            self._look(w)
        self.alone = False
        for o in self.workers:
            if o is not w and not self.again:
                o.start()

    def _look(self, w: Worker) -> None:
        """Time what has become ready; tell of what has failed."""
        assert w.task is not None
        try:
            made = w.answer()
            if made is None:
                if time.monotonic() - w.since > self.given.patience:
                    raise TimeoutError(f"it was not ready after {self.given.patience:.0f} s")
                return
            if "version" in made:  # (a process that was started later says so first)
                return
            if "error" not in made:
                made |= self._timed(w)
        except (EOFError, TimeoutError) as failed:
            made = {"error": str(failed)}
            w.close()
            w.start()
        row, variant = task = w.task
        w.task = None
        if made.pop("memory", False) and not self.alone:
            self.again.append((w.name, task))
            made["error"] += " (beside other processes)"
        self.results.setdefault(row, {})[f"{w.name} {variant}"] = made
        shown = duration(made["seconds"]) if "seconds" in made else made["error"]
        print(f"{time.monotonic() - self.begun:5.0f} s  {row}, {w.name} {variant}: {shown}", file=sys.stderr, flush=True)
        self.told()

    def _timed(self, w: Worker) -> dict[str, Any]:
        others = [o for o in self.workers if o is not w]
        begun = time.monotonic()
        for o in others:
            o.signal(signal.SIGSTOP)
        try:
            time.sleep(0.05)  # (for what they have launched to come to its end)
            w.ask(time=True)
            return w.wait(self.given.patience)
        finally:
            for o in others:
                o.signal(signal.SIGCONT)
                o.since += time.monotonic() - begun

    def close(self) -> None:
        for w in self.workers:
            w.close()


def table(results: Results) -> str:
    used = [c for c in COLUMNS if any(c in found for found in results.values())]
    lines = [f"| | {' | '.join(used)} | flame reaches | against torch |", "|---|" + "---:|" * (len(used) + 2)]
    copied = [f["bytes"] / f["seconds"] for f in results.get(COPY, {}).values() if "seconds" in f]
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
            rate = about["bytes"] / mine
            reaches = f"{rate / 1e12:.2f} TB/s" + (f" ({rate / max(copied):.0%})" if copied else "")
        lines.append(f"| {row} | {' | '.join(cells)} | {reaches} | {f'{peer / mine:.2f}' if mine and peer else ''} |")
    return "\n".join(lines)


def compare(found: dict[str, dict[str, Any]]) -> None:
    """Mark what is not the first column's result."""
    measured = [found[c] for c in COLUMNS if "sum" in found.get(c, {})]
    for f in measured[1:]:
        a, b = measured[0]["sum"], f["sum"]
        f["differs"] = not abs(a - b) <= 0.05 * max(abs(a), abs(b), 1.0)


def report(course: Course, left_out: list[str]) -> str:
    about = [f"- {what}: {found}" for what, found in machine().items()]
    heads = course.heads
    about.append(
        f"- device: {heads['flame']['device']}; measured: " + ", ".join(f"{f} {h['version']}" for f, h in heads.items())
    )
    took = time.monotonic() - course.begun
    about.append(f"- {datetime.date.today()}, {took:.0f} s; * the result differs from the first column's by more than 5%")
    about.append("- attention in torch is whatever its scaled_dot_product_attention chooses (FlashAttention 2, or cuDNN's)")
    results = course.results
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
    parser.add_argument("--seconds", type=float, default=510.0, help="when to stop")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds in which a row is to be ready")
    parser.add_argument("--processes", type=int, help="of each framework; by default as many as there are processors for")
    parser.add_argument("--out", type=Path, help="a folder for the results")
    parser.add_argument("--small", action="store_true", help="sizes that an interpreter can run")
    parser.add_argument("--fake", action="store_true", help="run flame on a driver without a GPU, and no peer")
    given = parser.parse_args()
    flags = [f for f in ("small", "fake") if getattr(given, f)]
    frameworks = [f for f in ("torch", "flame") if f == "flame" or (find_spec("torch") and not given.fake)]
    processes = given.processes or max(1, min(PROCESSES, (os.cpu_count() or 1) // 4))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # (workers that are stopped while another is timed have to end too)
    with tempfile.TemporaryDirectory(prefix="flame-benchmark-", ignore_cleanup_errors=True) as cache:
        course = Course(frameworks, flags, cache, given, processes)

        def keep(left_out: list[str]) -> str:
            order = course.heads["flame"]["rows"]
            course.results = dict(sorted(course.results.items(), key=lambda entry: order.index(entry[0])))
            for found in course.results.values():
                compare(found)
            said = report(course, left_out)
            if given.out:
                given.out.mkdir(parents=True, exist_ok=True)
                name = given.out / f"gpu-{datetime.date.today()}"
                name.with_suffix(".json").write_text(json.dumps(course.results, indent=1), encoding="utf-8")
                name.with_suffix(".md").write_text(said, encoding="utf-8")
            return said

        course.told = lambda: void(keep([]))
        try:
            print(keep(course.run()))
        finally:
            course.close()


def void(made: object) -> None:
    """For calls whose results are not wanted."""


if __name__ == "__main__":
    main()
