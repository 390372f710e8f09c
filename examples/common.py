"""What the example scripts share: their command line, and a loop that shows progress, saves, and goes on where a kill left it.

A checkpoint holds everything that the next step depends on: models, optimizers, schedulers, the random state, the step's number.
It is written beside its target and takes its place at once, so a kill leaves the last one or the one before. Batches are made from
the step's number, so that a run that was killed and goes on ends with the very parameters of one that was not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import flame


def options(description: str, argv: list[str] | None, steps: int, **more: Any) -> argparse.Namespace:
    """The command line that all examples have, and what one adds: `name=default`, a bool being a switch."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps, help="how many steps to train")
    parser.add_argument("--compile", action="store_true", help="compile the training step")
    parser.add_argument("--checkpoint", default="", help="a file to save to, and to go on from where it is there")
    parser.add_argument("--save-every", type=int, default=100, help="steps between two checkpoints")
    parser.add_argument("--log-every", type=int, default=20, help="steps between two lines of progress")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="sizes that take seconds, to try it out")
    for name, default in more.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return parser.parse_args(argv)


def compiled(step: Callable, args: argparse.Namespace) -> Callable:
    """The step, compiled if that was asked for."""
    return flame.compile(step) if args.compile else step


def draws(args: argparse.Namespace, step: int) -> np.random.Generator:
    """Random numbers that depend on the seed and the step alone."""
    return np.random.default_rng((args.seed, step))


def train(
    args: argparse.Namespace,
    parts: dict[str, Any],
    step: Callable[[int], dict[str, Any]],
    after: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Call `step(i)` for every i that is left, and show what it measures (numbers, or tensors of one element).

    `parts` are whatever has state_dict() and load_state_dict(): they are saved, and loaded where the checkpoint is there.
    `after(i)` is called after each step. The last measurements are returned.
    """
    path = Path(args.checkpoint) if args.checkpoint else None
    begin = _resume(path, parts) if path is not None and path.exists() else 0
    clock, last, measured = time.perf_counter(), begin, {}
    for i in range(begin, args.steps):
        measured = step(i)
        done = i + 1
        if done % args.log_every == 0 or done == args.steps:
            values = {k: float(v) for k, v in measured.items()}
            rate = (done - last) / (time.perf_counter() - clock)
            shown = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
            print(f"step {done:>6}/{args.steps}  {shown}  {rate:.1f} steps/s", flush=True)
            clock, last = time.perf_counter(), done
        if path is not None and (done % args.save_every == 0 or done == args.steps):
            _save(path, parts, done)
        if after is not None:
            after(i)
    return {k: float(v) for k, v in measured.items()}


def _save(path: Path, parts: dict[str, Any], step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    states = {name: part.state_dict() for name, part in parts.items()}
    flame.save({"step": step, "rng": flame.get_rng_state(), "parts": states}, path)
    print(f"saved step {step} to {path}", flush=True)


def _resume(path: Path, parts: dict[str, Any]) -> int:
    state = flame.load(path)
    missing = parts.keys() ^ state["parts"].keys()
    if missing:
        sys.exit(f"{path} is a checkpoint of something else: {', '.join(sorted(missing))} is in one and not in the other")
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    flame.set_rng_state(state["rng"])
    print(f"goes on from step {state['step']} of {path}", flush=True)
    return state["step"]
