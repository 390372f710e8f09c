"""How fast mathematical functions are on a CPU: `python -m benchmarks.maths [--only NAME,...] [--rounds 7] [--python PATH]
[--out FOLDER]`.

The functions of one or two floats that `RANGES` lists, over a million float32 and float64, on one thread: what
flame compiles, what its eager operations take, NumPy, and PyTorch eager where it is installed (in this Python, or in the one that
--python names). The engines are processes of their own that take turns function by function, so that all meet the same machine. A
figure is the least processor milliseconds of a call over the rounds, allocation of the result included; the last column says how
many times as fast as the faster of NumPy and PyTorch the compiled function is. The rows that lose are listed below each table.
Nothing is asserted. `--out` writes maths-DATE.md and .json there.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.capture import machine

HERE = Path(__file__).resolve().parent
N = 1_000_000
ENGINES = ("flame compiled", "flame eager", "numpy", "torch eager")
#: name -> the operands' ranges, in which nothing is special
RANGES: dict[str, tuple[tuple[float, float], ...]] = {
    **{n: ((-10.0, 10.0),) for n in "exp exp2 expm1 sin cos tan atan sinh cosh tanh asinh sigmoid erf erfc".split()},
    **{n: ((0.01, 100.0),) for n in "log log2 log10 log1p sqrt rsqrt reciprocal lgamma".split()},
    **{n: ((-0.99, 0.99),) for n in "asin acos atanh erfinv".split()},
    "acosh": ((1.0, 50.0),),
    "pow": ((0.01, 20.0), (-5.0, 5.0)),
    "atan2": ((-5.0, 5.0), (-5.0, 5.0)),
    "hypot": ((-5.0, 5.0), (-5.0, 5.0)),
    "fmod": ((-50.0, 50.0), (0.5, 5.0)),
}


def of_numpy(name: str) -> Callable[..., Any] | None:
    """NumPy's function, as people write it; None where it has none."""
    spelled = {"pow": "power", "acos": "arccos", "asin": "arcsin", "atan": "arctan", "atan2": "arctan2", "acosh": "arccosh",
               "asinh": "arcsinh", "atanh": "arctanh"}.get(name, name)  # fmt: skip
    own: dict[str, Callable[..., Any]] = {
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "rsqrt": lambda x: 1 / np.sqrt(x),
    }
    return own.get(name) or getattr(np, spelled, None)


def call_of(engine: str, name: str, dtype: str) -> Callable[[], Any] | None:
    r = np.random.default_rng(0)
    arrays = [r.uniform(low, high, N).astype(dtype) for low, high in RANGES[name]]
    if engine == "numpy":
        own = of_numpy(name)
        return None if own is None else lambda: own(*arrays)
    t: Any = importlib.import_module(engine.split()[0])
    f = getattr(t, name)
    operands = [t.from_numpy(a) for a in arrays]
    if engine == "flame compiled":
        compiled = t.compile(lambda *xs: f(*xs))
        for _ in range(20):
            compiled(*operands)
        return lambda: compiled(*operands)
    return lambda: f(*operands)


def serve(engine: str) -> None:
    """Answer [function, dtype] lines with milliseconds, or null."""
    version = importlib.import_module(engine.split()[0]).__version__
    if engine != "numpy":
        importlib.import_module(engine.split()[0]).set_num_threads(1)
    print(json.dumps(version), flush=True)
    made: dict[tuple[str, str], Callable[[], Any] | None] = {}
    for line in sys.stdin:
        name, dtype = json.loads(line)
        if (name, dtype) not in made:
            made = {(name, dtype): call_of(engine, name, dtype)}
        call = made[name, dtype]
        print(json.dumps(None if call is None else least(call)), flush=True)


def least(call: Callable[[], Any]) -> float:
    """Processor milliseconds of a call: the least of some."""
    call()
    best, start = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - start < 0.03:
        begin = time.thread_time()
        call()
        best = min(best, time.thread_time() - begin)
    return best * 1e3


class Engine:
    """A process that measures one engine."""

    def __init__(self, name: str, python: str):
        limits = {"OMP_NUM_THREADS": "1", "FLAME_NUM_THREADS": "1", "FLAME_NEVER_SLOWER": "0"}
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [python, "-m", "benchmarks.maths", "--serve", name]
        self.process = subprocess.Popen(
            command, env={**os.environ, **limits, "PYTHONPATH": path}, cwd=HERE.parent, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        self.version = json.loads(first) if first else None

    def ask(self, name: str, dtype: str) -> float | None:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([name, dtype]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


Found = dict[str, dict[str, dict[str, float]]]  #: dtype -> function -> engine -> milliseconds


def ratio(got: dict[str, float]) -> float | None:
    """How many times as fast as the best peer the compiled function is."""
    peers = [got[e] for e in ("numpy", "torch eager") if e in got]
    return min(peers) / got["flame compiled"] if peers else None


def table(found: Found) -> str:
    lines = []
    for dtype, functions in found.items():
        lines += [
            f"## {dtype}",
            "",
            f"| ms | {' | '.join(ENGINES)} | times the best peer |",
            "|---|" + "---:|" * (len(ENGINES) + 1),
        ]
        ratios = {name: r for name, got in functions.items() if (r := ratio(got)) is not None}
        for name, got in functions.items():
            cells = [f"{got[e]:.2f}" if e in got else "" for e in ENGINES]
            lines.append(f"| {name} | {' | '.join(cells)} | {f'{ratios[name]:.2f}' if name in ratios else ''} |")
        lost = sorted((r, name) for name, r in ratios.items() if r < 1)
        said = ", ".join(f"{name} ({r:.2f})" for r, name in lost) or "nothing"
        lines += ["", f"Geometric mean: {statistics.geometric_mean(ratios.values()):.2f}. Where we lose: {said}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="functions, with commas between")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--out", type=Path, help="folder for maths-DATE.md and maths-DATE.json")
    parser.add_argument("--serve", metavar="ENGINE", help="measure in this process what is asked")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    names = given.only.split(",") if given.only else list(RANGES)
    if unknown := set(names) - set(RANGES):
        parser.error(f"no functions of the table: {', '.join(sorted(unknown))}; they are {', '.join(RANGES)}")
    engines = {e: Engine(e, given.python if e.startswith("torch") else sys.executable) for e in ENGINES}
    engines = {e: p for e, p in engines.items() if p.version is not None}
    found: Found = {}
    for dtype in given.dtypes:
        for name in names:
            got: dict[str, float] = {}
            for _ in range(given.rounds):
                for e, process in engines.items():
                    took = process.ask(name, dtype)
                    if took is not None:
                        got[e] = min(took, got.get(e, math.inf))
            found.setdefault(dtype, {})[name] = got
    versions = ", ".join(dict.fromkeys(f"{e.split()[0]} {p.version}" for e, p in engines.items()))
    for process in engines.values():
        process.end()
    about = [*(f"- {what}: {value}" for what, value in machine().items()), f"- measured: {versions}; {given.rounds} rounds"]
    text = "\n".join(
        ["# How fast mathematical functions are", "", *(__doc__ or "").splitlines()[3:], "", *about, "", table(found)]
    )
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        stem = given.out / f"maths-{datetime.date.today().isoformat()}"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        kept = {"machine": machine(), "versions": versions, "found": found}
        stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
