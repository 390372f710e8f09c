"""The differential fuzzer of capture: past findings as they were minimised, and fresh programs from fixed seeds for a while."""

from __future__ import annotations

import random
import time

import pytest

from tests.fuzz_capture import OPERATIONS, Program, check, generate

#: Programs that once differed. An operation that is chosen by value (a, b, c) keeps its numbers.
PAST: list[tuple[str, Program]] = [
    (
        "which refusal of the tape comes first",
        [
            ("view_of_view", 0.05, 0.4, 0.71), ("transpose", 0.1, 0.68, 0.52), ("clamp", 0.82, 0.95, 0.55),
            ("setrow", 0.56, 0.18, 0.87), ("backward", 0.63, 0.18, 0.51),
        ],
    ),
    ("an argument that was given a history is no leaf", [("history_write", 0.22, 0.38, 0.85), ("flags", 0.22, 0.68, 0.6)]),
    (
        "a view of a view of a leaf is not written after a break",
        [("leaf_view", 0.72, 0.01, 0.89), ("inner_leaf", 0.83, 0.31, 0.33), ("iadd_row", 0.53, 0.98, 0.82)],
    ),
    (
        "a gradient that does not go through all of an earlier segment",
        [("history_write", 0.97, 0.58, 0.09), ("grad", 0.72, 0.47, 0.2)],
    ),
    (
        "a written result that backward does not read",
        [("keep_loss", 0.68, 0.49, 0.49), ("numpy_peek", 0.36, 0.79, 0.04), ("view_of_view", 0.78, 0.64, 0.77)],
    ),
    (
        "writing through a view of a view made before a break",
        [
            ("add", 0.18, 0.3, 0.39), ("add", 0.57, 0.29, 0.55), ("relu", 0.83, 0.3, 0.06), ("slice", 0.49, 0.79, 0.14),
            ("truth", 0.17, 0.98, 0.93), ("expand", 0.89, 0.98, 0.29), ("setslice", 0.68, 0.93, 0.65),
        ],
    ),
    (
        "a view of a leaf that was made and written under no_grad has the leaf's history",
        [("leaf_view", 0.97, 0.67, 0.23), ("no_grad_view", 0.99, 0.79, 0.02), ("custom", 0.61, 0.3, 0.1)],
    ),
]  # fmt: skip

SECONDS = 60
SEEDS = range(9000, 9900)


def test_every_operation_is_drawn() -> None:
    drawn = {op for seed in SEEDS[:400] for op, *_ in generate(random.Random(seed))}
    assert drawn == set(OPERATIONS)


@pytest.mark.parametrize("name, program", PAST, ids=[name for name, _ in PAST])
def test_past_findings(name: str, program: Program) -> None:
    assert not check(program), name


def test_random_programs() -> None:
    """As many seeds as the time allows, at least forty: which ones fail never depends on the clock, only how many are tried."""
    stats: dict = {}
    stop = time.monotonic() + SECONDS
    for done, seed in enumerate(SEEDS):
        if done >= 40 and time.monotonic() > stop:
            break
        found = check(generate(random.Random(seed)), "eager", stats)
        assert not found, f"seed {seed}: {found}  (python -m tests.fuzz_capture {seed} {seed + 1} minimises it)"
    assert stats["followed"] > stats["calls"], "capture followed next to nothing"


def test_random_programs_compiled() -> None:
    stats: dict = {}
    for seed in range(12):
        found = check(generate(random.Random(seed)), "llvm", stats)
        assert not found, f"seed {seed}: {found}  (python -m tests.fuzz_capture {seed} {seed + 1} --backend llvm minimises it)"
