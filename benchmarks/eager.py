"""How fast eager operations run on a CPU: `python -m benchmarks.eager [--threads 1 2] [--rounds 5] [--only TEXT] [--python PATH]
[--out FOLDER]`.

40 common operators at 100, 64K and 4M elements in float32, beside PyTorch eager where it is installed (in this Python, or in the
one that --python names). Each framework is a process of its own, and they take turns operator by operator, so that both meet the
same machine. A figure is the least seconds of a call over the rounds; the ratio says how many times as fast as PyTorch flame is.
Both have run many operations before. A second table has what a small operation costs, without and with gradient. The goals'
figures stand last; nothing is asserted.
`--out` writes eager-DATE.md, with a part for each number of threads.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.capture import duration, machine

HERE = Path(__file__).resolve().parent
SWEEPS = 4  #: over operators that take microseconds
SIZES = {"100": 100, "64K": 1 << 16, "4M": 1 << 22}


def operators(t: Any, n: int) -> dict[str, Callable[[], Any]]:
    """The operators over n elements of `t` (flame or PyTorch), by name: calls that take nothing."""
    f = t.nn.functional
    t.manual_seed(0)
    x, y, p = t.randn(n), t.randn(n), t.rand(n) + 0.5
    rows = max(1, int(math.sqrt(n)) // 2)
    m = t.randn(rows, n // rows)
    cut = m.shape[1]
    w, b = t.randn(cut), t.randn(cut)
    k = int(math.sqrt(n))
    a, c = t.randn(k, k), t.randn(k, k)
    target = t.randint(0, cut, (rows,))
    flags = x > 0
    index = t.randint(0, rows, (rows,))
    return {
        "add": lambda: x + y, "mul": lambda: x * y, "div": lambda: x / p, "add number": lambda: x + 1.5, "neg": lambda: -x,
        "abs": lambda: x.abs(), "maximum": lambda: t.maximum(x, y), "clamp": lambda: x.clamp(-1, 1), "gt": lambda: x > y,
        "where": lambda: t.where(flags, x, y), "exp": lambda: x.exp(), "log": lambda: p.log(), "sqrt": lambda: p.sqrt(),
        "tanh": lambda: x.tanh(), "sigmoid": lambda: x.sigmoid(), "erf": lambda: x.erf(), "sin": lambda: x.sin(),
        "pow": lambda: p**2.5, "relu": lambda: f.relu(x), "gelu": lambda: f.gelu(x), "silu": lambda: f.silu(x),
        "softplus": lambda: f.softplus(x), "sum": lambda: x.sum(), "mean rows": lambda: m.mean(-1),
        "mean columns": lambda: m.mean(0), "max rows": lambda: m.amax(-1), "argmax": lambda: m.argmax(-1), "var": lambda: m.var(-1),
        "norm": lambda: m.norm(dim=-1), "cumsum": lambda: m.cumsum(-1), "softmax": lambda: f.softmax(m, -1),
        "log_softmax": lambda: f.log_softmax(m, -1), "layer_norm": lambda: f.layer_norm(m, (cut,), w, b),
        "cross_entropy": lambda: f.cross_entropy(m, target), "mse_loss": lambda: f.mse_loss(x, y), "matmul": lambda: a @ c,
        "transpose copy": lambda: a.t().contiguous(), "cat": lambda: t.cat([x, y]), "index_select": lambda: m[index],
        "add_": lambda: x.add_(1e-9),
    }  # fmt: skip


def overheads(t: Any) -> dict[str, Callable[[], Any]]:
    """Operations so small that only their cost is seen."""
    x, y = t.randn(4), t.randn(4)
    g = t.randn(4, requires_grad=True)
    return {
        "x + y": lambda: x + y,
        "x * 2.0": lambda: x * 2.0, "exp": lambda: x.exp(), "sum": lambda: x.sum(), "view": lambda: x.view(2, 2),
        "x[0]": lambda: x[0], "x + y, with gradient": lambda: g + y, "exp, with gradient": lambda: g.exp(),
        "sum, with gradient": lambda: g.sum(),
    }  # fmt: skip


def least(call: Callable[[], Any], rounds: int) -> float:
    """Seconds of a call: the least over rounds of some milliseconds each."""
    call(), call()
    start = time.perf_counter()
    call()
    count = max(1, min(20000, int(0.003 / max(time.perf_counter() - start, 1e-7))))
    best = math.inf
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - start) / count)
    return best


def warm(t: Any, name: str) -> None:
    """As many additions as a program that runs for a second: flame has native code of eager operations by then."""
    x = t.randn(4)
    for _ in range(60_000):
        x + x
    if name == "flame":
        importlib.import_module("flame.capture.native").wait()


def serve(name: str, threads: int) -> None:
    """Answer "size operator rounds" lines with seconds, one JSON value a line."""
    t: Any = __import__(name)
    t.set_num_threads(threads)
    warm(t, name)
    made: dict[str, dict[str, Callable[[], Any]]] = {}
    print(json.dumps([t.__version__, list(operators(t, 100)), list(overheads(t))]), flush=True)
    for line in sys.stdin:
        size, operator, rounds = json.loads(line)
        if size not in made:
            made = {size: overheads(t) if size == "small" else operators(t, SIZES[size])}
        with t.no_grad() if "gradient" not in operator else t.enable_grad():
            print(json.dumps(least(made[size][operator], rounds)), flush=True)


class Peer:
    """A process that measures one framework."""

    def __init__(self, name: str, python: str, threads: int):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "FLAME_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
        }
        env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.eager", "--serve", name, "--threads", str(threads)],
            env=env, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        self.there = bool(line)
        self.version, self.operators, self.small = json.loads(line) if line else ("", [], [])

    def ask(self, size: str, operator: str, rounds: int) -> float:
        if not self.there:
            return math.nan
        self.process.stdin.write(json.dumps([size, operator, rounds]) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return json.loads(self.process.stdout.readline())  # type: ignore[union-attr]

    def close(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


def both(ours: Peer, theirs: Peer, size: str, operators: list[str], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of each operator, flame's and PyTorch's. What takes microseconds is gone through several times, as a machine that
    others use is slow for longer than all rounds of one operator take."""
    found: dict[str, tuple[float, float]] = {}
    for _ in range(SWEEPS if size in ("100", "small") else 1):
        for o in operators:
            a, b = ours.ask(size, o, rounds), theirs.ask(size, o, rounds)
            found[o] = (min(a, found[o][0]), min(b, found[o][1])) if o in found else (a, b)
    return found


def geometric(xs: list[float]) -> float:
    xs = [x for x in xs if x == x]
    return math.exp(sum(map(math.log, xs)) / len(xs)) if xs else math.nan


#: microseconds that an operation on 4 elements may cost, without and with gradient; how fast beside PyTorch eager is to be
GOALS = {"without gradient": 2.0, "with gradient": 4.0, "beside PyTorch": 0.9}
PLAIN, DIFFERENTIATED = "x + y", "x + y, with gradient"


def goals(threads: int, small: dict[str, tuple[float, float]], hundred: list[tuple[float, float]], whole: float) -> str:
    """What became of the goals; `hundred`: seconds at 100 elements."""
    parts = []
    for name, operator in (("without gradient", PLAIN), ("with gradient", DIFFERENTIATED)):
        others = [1e6 * v[0] for o, v in small.items() if ("gradient" in o) == ("gradient" in operator)]
        first = 1e6 * small[operator][0]
        parts.append(f"a small operation {name}: {first:.2f} µs (up to {max(others):.2f}; goal {GOALS[name]:g})")
    limits = " and ".join(f"{sum(1e6 * a <= limit for a, _ in hundred)} in {limit:g} µs" for limit in (2.0, 4.0))
    mean = geometric([b / a for a, b in hundred])
    parts.append(f"100 elements: {limits} of {len(hundred)} operators, {mean:.2f} times as fast as PyTorch")
    parts.append(f"64K and 4M elements: {whole:.2f} times as fast as PyTorch (goal {GOALS['beside PyTorch']:g})")
    return f"Goals, {threads} thread{'s' * (threads > 1)}: " + "; ".join(parts) + "."


def table(threads: int, rounds: int, only: str, python: str) -> tuple[str, str]:
    """The tables, and what became of the goals."""
    ours, theirs = Peer("flame", sys.executable, threads), Peer("torch", python, threads)
    head = f"flame {ours.version} beside PyTorch {theirs.version} eager, {threads} thread{'s' * (threads > 1)}"
    head += "".join(f"\n- {k}: {v}" for k, v in machine().items())
    rows = [head, "", "| operator | " + " | ".join(f"{s}: flame | PyTorch | ratio" for s in SIZES) + " |"]
    rows.append("|---" * (1 + 3 * len(SIZES)) + "|")
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for size in SIZES:  # a size at a time: its tensors are made once
        for operator, seconds in both(ours, theirs, size, [o for o in ours.operators if only in o], rounds).items():
            found[size, operator] = seconds
    for operator in [o for o in ours.operators if only in o]:
        cells = [(*found[s, operator], found[s, operator][1] / found[s, operator][0]) for s in SIZES]
        rows.append(f"| {operator} | " + " | ".join(f"{duration(a)} | {duration(b)} | {r:.2f}" for a, b, r in cells) + " |")
    means = [geometric([b / a for (s, _), (a, b) in found.items() if s == size]) for size in SIZES]
    rows.append("| geometric mean | " + " | ".join(f"| | {m:.2f}" for m in means) + " |")
    whole = geometric([b / a for (s, _), (a, b) in found.items() if s != "100"])
    rows += ["", "| small operation | flame | PyTorch |", "|---|---|---|"]
    small = both(ours, theirs, "small", ours.small, rounds)
    rows += [f"| {o} | {duration(a)} | {duration(b)} |" for o, (a, b) in small.items()]
    ours.close()
    theirs.close()
    hundred = [v for (size, _), v in found.items() if size == "100"]
    return "\n".join(rows) + "\n", goals(threads, small, hundred, whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.threads[0])
        return
    made = [table(n, args.rounds, args.only, args.python) for n in args.threads]
    text = "\n".join([*[t for t, _ in made], *[f"{g}\n" for _, g in made]])
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"eager-{datetime.date.today()}.md").write_text(text)


if __name__ == "__main__":
    main()
