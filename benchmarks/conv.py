"""Convolution layers beside PyTorch's (oneDNN): `python -m benchmarks.conv [--threads 1] [--rounds 3] [--only TEXT] [--python PATH]
[--out FOLDER]`.

The layers of ResNet-18 and 50, MobileNetV2 and a U-Net on two images, each forward, and forward with the gradients of input and
weights. flame compiles, PyTorch (of this Python, or of the one that --python names) is eager: its convolutions are library calls
either way. Both run in processes of their own (`benchmarks/cpu_rows.py`) and take turns; a figure is the median over the rounds of
the least seconds of a call. Nothing is asserted. `--out` writes conv-DATE-THREADS.md and .json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.capture import duration, machine
from benchmarks.cpu import Figures, Worker, measure

PEER = "torch eager"


def ratios(figures: Figures) -> dict[str, float]:
    """How many times as fast as PyTorch flame is, by row."""
    found = {}
    for row in dict.fromkeys(row for row, _ in figures):
        own, other = figures.get((row, "flame")), figures.get((row, PEER))
        if own and other:
            found[row] = statistics.median(other) / statistics.median(own)
    return found


def summary(found: dict[str, float], what: str, kind: str) -> str:
    some = [r for row, r in found.items() if row.endswith("training") is (kind == "training")]
    if not some:
        return ""
    mean = math.exp(sum(map(math.log, some)) / len(some))
    return (
        f"{what}: {mean:.2f} times as fast by geometric mean, {sum(r < 0.95 for r in some)} of {len(some)} layers below 0.95."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="layers whose name has this text")
    parser.add_argument("--python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--out", type=Path, help="folder for the report and its figures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        pythons = {"flame": sys.executable, "torch": given.python}
        workers = [Worker(name, path, given.threads, temporary, 180.0, "layers") for name, path in pythons.items()]
        figures, _ = measure(workers, given.rounds, given.only)
        versions = ", ".join(f"{w.name} {w.version}" for w in workers)
        for w in workers:
            w.close()
    found = ratios(figures)
    lines = ["| | flame | PyTorch | ratio |", "|---|---:|---:|---:|"]
    for row, ratio in found.items():
        own, other = (duration(statistics.median(figures[row, c])) for c in ("flame", PEER))
        lines.append(f"| {row} | {own} | {other} | {ratio:.2f} |")
    about = [f"- {what}: {is_}" for what, is_ in machine().items()]
    about.append(f"- measured: {versions}; {given.threads} thread{'s' * (given.threads > 1)} each, {given.rounds} rounds")
    said = [summary(found, "Forward", "forward"), summary(found, "With gradients", "training")]
    text = "\n".join(["# Convolutions on a CPU", "", *about, "", *lines, "", *said, ""])
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        stem = given.out / f"conv-{datetime.date.today().isoformat()}-{given.threads}"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        listed = [{"row": row, "column": c, "seconds": got} for (row, c), got in figures.items()]
        kept = {"machine": machine(), "threads": given.threads, "figures": listed}
        stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
