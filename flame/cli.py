"""The console command `flame`: `flame demo`, `flame doctor`, `flame --version`. Entered at `main`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import flame
from flame.demo.main import demo
from flame.doctor import facts
from flame.errors import MissingTargetError


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="flame", description="flame: eager deep learning that compiles itself")
    top.add_argument("--version", action="version", version=f"flame {flame.__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    d = commands.add_parser("demo", help="train two small models eagerly and compiled, and compare")
    d.add_argument("--quick", action="store_true", help="smaller models and fewer steps: under a minute")
    d.add_argument("--out", type=Path, default=Path("flame-demo"), metavar="DIR", help="where files go (default: %(default)s)")
    d.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    d.add_argument("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")

    commands.add_parser("doctor", help="what flame finds on this machine")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    asked = parser().parse_args(arguments)
    try:
        if asked.command == "demo":
            demo(quick=asked.quick, out=asked.out, device=asked.device, seed=asked.seed)
        else:
            doctor()
    except MissingTargetError as missing:
        print(f"flame: {missing}", file=sys.stderr)
        return 1
    return 0


def doctor() -> None:
    """Print what `facts` finds."""
    shown = Table("what", "found", show_edge=False)
    for what, found in facts():
        shown.add_row(what, found)
    Console().print(shown)
