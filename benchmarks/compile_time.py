"""What compiling costs: `python -m benchmarks.compile_time [--rounds 3] [--python torch=PATH] [--limit SECONDS] [--out FOLDER]`.

Every program of `benchmarks/compile_programs.py` in fresh processes, first with an empty cache of compiled code, then with what
the first one left. Per program: seconds until its first compiled result (recording, following, compiling, running), of the call
that compiled, and of a later call; processor seconds beside the wall's, which others on the machine stretch; memory. Beside
them PyTorch's inductor where it is installed (in this Python, or in the one that --python names), for the programs that end
within the limit. Nothing is asserted. `--out` writes compile-DATE.md and .json there.
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

from benchmarks.capture import HERE, duration, machine
from benchmarks.compile_programs import PROGRAMS

#: programs that PyTorch is given as well: it takes minutes for longer ones
PEERS = ("digits, training step", "GPT of 3 layers, training step", "GPT of 12 layers, training step",
         "MLP of 50 layers, forward and backward", "RNN of 100 steps, training step", "1,000 elementwise operations")  # fmt: skip

Facts = dict[str, Any]
NOTES = """\
Medians over the rounds. "First result" is the time from the first call until the first compiled call has ended, with all eager
and recording calls in between (an optimizer's first step makes its state, so that a training step compiles in its third call;
PyTorch compiles in its first); "compiling call" is that one call alone; "later" is the fastest call afterwards. In brackets:
processor seconds, which neighbours on the machine do not stretch as they do the wall's. Cold begins with an empty cache, warm
is a second process. Kernels are counted once each, launches as often as they run in a step. MB are what the process grew by
from its first call to its last, at its largest."""


def measure(framework: str, python: str, program: str, cache: str, limit: float) -> Facts | None:
    """One process; None where it takes longer than the limit, or fails."""
    names = {"FLAME_CACHE_DIR": "flame", "TORCHINDUCTOR_CACHE_DIR": "torch"}
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": path} | {k: os.path.join(cache, v) for k, v in names.items()}
    command = [python, str(HERE / "compile_programs.py"), framework, program]
    try:
        got = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=limit, check=True
        )
    except subprocess.TimeoutExpired:
        print(f"{framework}: {program} takes longer than {limit:.0f} s", file=sys.stderr)
        return None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no word"])[-1]
        print(f"{framework}: {program} fails: {last}", file=sys.stderr)
        return None
    except OSError as error:
        print(f"{framework}: {error}", file=sys.stderr)
        return None
    return json.loads(got.stdout.splitlines()[-1])


def compiling(f: Facts) -> int:
    """The call that compiled with an empty cache: of flame's, the longest after the first, which only records."""
    return max(range(1, len(f["calls"])), key=f["busy"].__getitem__) if "operations" in f else 0


def summary(facts: list[Facts], compiled: int) -> Facts:
    """Of the rounds of one program in one state of the cache; `compiled` is the call that compiles."""

    def middle(of: Any) -> float:
        return statistics.median(map(of, facts))

    return {
        "first": middle(lambda f: sum(f["calls"][: compiled + 1])),
        "first_busy": middle(lambda f: sum(f["busy"][: compiled + 1])),
        "call": middle(lambda f: f["calls"][compiled]),
        "call_busy": middle(lambda f: f["busy"][compiled]),
        "later": min(t for f in facts for t in f["calls"][compiled + 1 :]),
        "memory": middle(lambda f: f["memory"]),
        **{k: facts[0][k] for k in ("operations", "launches", "kernels", "version") if k in facts[0]},
    }


def both(wall: float, busy: float) -> str:
    return f"{duration(wall)} ({duration(busy)})"


def table(found: dict[str, dict[str, Facts]]) -> str:
    head = ["", "operations", "kernels / launches", "cold: first result", "compiling call", "warm: first result",
            "compiling call", "warm / cold", "later", "MB"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for program, states in found.items():
        c, w = states["cold"], states["warm"]
        cells = [
            program, f"{c['operations']:,}", f"{c['kernels']} / {c['launches']:,}", both(c["first"], c["first_busy"]),
            both(c["call"], c["call_busy"]), both(w["first"], w["first_busy"]), both(w["call"], w["call_busy"]),
            f"{w['call_busy'] / c['call_busy']:.0%}", duration(w["later"]), f"{c['memory']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peers(found: dict[str, dict[str, Facts]], torch: dict[str, dict[str, Facts]]) -> str:
    lines = ["| first result | flame, cold | torch, cold | flame, warm | torch, warm |", "|---|---:|---:|---:|---:|"]
    for program, states in torch.items():
        cells = [duration(found[program][s]["first"]) + " | " + duration(states[s]["first"]) for s in ("cold", "warm")]
        lines.append(f"| {program} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one process may take")
    parser.add_argument("--only", default="", help="programs whose names contain this")
    parser.add_argument("--python", action="append", default=[], metavar="FRAMEWORK=PATH", help="another Python that has it")
    parser.add_argument("--out", type=Path, help="folder for compile-DATE.md and compile-DATE.json")
    given = parser.parse_args()
    pythons = dict(p.split("=", 1) for p in given.python)
    found: dict[str, dict[str, Facts]] = {}
    beside: dict[str, dict[str, Facts]] = {}
    for program in (p for p in PROGRAMS if given.only in p):
        for framework, into in (("flame", found), ("torch", beside)):
            if framework == "torch" and program not in PEERS:
                continue
            rounds: list[tuple[Facts, Facts]] = []
            for _ in range(given.rounds if framework == "flame" else 1):
                with tempfile.TemporaryDirectory() as cache:
                    python = pythons.get(framework, sys.executable)
                    cold = measure(framework, python, program, cache, given.limit)
                    warm = measure(framework, python, program, cache, given.limit) if cold else None
                if cold is None or warm is None:
                    break
                rounds.append((cold, warm))
            if rounds:
                which = compiling(rounds[0][0])
                into[program] = {
                    "cold": summary([c for c, _ in rounds], which),
                    "warm": summary([w for _, w in rounds], which),
                }
        print(f"{program} is done", file=sys.stderr)
    about = [f"- {what}: {value}" for what, value in machine().items()]
    versions = {s["cold"]["version"] for s in beside.values()}
    load = (
        f"; {os.getloadavg()[0]:.1f} processes were running on average in the last minute" if hasattr(os, "getloadavg") else ""
    )
    about.append(f"- measured: {given.rounds} rounds{''.join(f', beside torch {v}' for v in sorted(versions))}{load}")
    parts = ["# What compiling costs", "", NOTES, "", *about, "", table(found)]
    if beside:
        parts += ["", peers(found, beside)]
    text = "\n".join([*parts, ""])
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        stem = given.out / f"compile-{datetime.date.today().isoformat()}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        kept = {"machine": machine(), "flame": found, "torch": beside}
        stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
