"""Which steps of a loop are profiled: `schedule(wait=, warmup=, active=, repeat=)` says it of every step's number."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class ProfilerActivity(Enum):
    """What is profiled."""

    CPU = "cpu"
    CUDA = "cuda"


class ProfilerAction(Enum):
    """What is done during a step."""

    NONE = 0
    WARMUP = 1
    RECORD = 2
    RECORD_AND_SAVE = 3


def schedule(
    *, wait: int, warmup: int, active: int, repeat: int = 0, skip_first: int = 0, skip_first_wait: int = 0
) -> Callable[[int], ProfilerAction]:
    """Skip `skip_first` steps, then again and again (`repeat` times; 0: to the end): wait, warm up, record.

    With `skip_first_wait` other than 0 the first cycle does not wait. Raises AssertionError for negative numbers, and for nothing
    active.
    """
    if min(wait, warmup, repeat, skip_first) < 0 or active <= 0:
        raise AssertionError(
            "Invalid profiler schedule arguments: wait, warmup, repeat and skip_first must be at least 0 and active positive, got "
            f"wait={wait}, warmup={warmup}, active={active}, repeat={repeat}, skip_first={skip_first}"
        )

    def action(step: int) -> ProfilerAction:
        if step < 0:
            raise AssertionError(f"Step must be non-negative. Got {step}.")
        if step < skip_first:
            return ProfilerAction.NONE
        step -= skip_first
        if skip_first_wait:
            step += wait
        cycle = wait + warmup + active
        if repeat > 0 and step // cycle >= repeat:
            return ProfilerAction.NONE
        at = step % cycle
        if at < wait:
            return ProfilerAction.NONE
        if at < wait + warmup:
            return ProfilerAction.WARMUP
        return ProfilerAction.RECORD if at < cycle - 1 else ProfilerAction.RECORD_AND_SAVE

    return action


def always(step: int) -> ProfilerAction:
    """Every step is recorded."""
    return ProfilerAction.RECORD
