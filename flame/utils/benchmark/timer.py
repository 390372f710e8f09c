"""`Timer`: a statement (Python source) timed with warm caches, on a given number of threads."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

from flame.runtime import threads
from flame.utils.benchmark.measurement import Measurement, TaskSpec


class Timer:
    """Times `stmt`, with `setup` run before, in the names of `globals` (the module of `timeit` does the work).

    label, sub_label, description, env: what tables call it. num_threads: threads of flame's pool meanwhile. language: "python".
    Raises ValueError for anything but Python source.
    """

    def __init__(
        self,
        stmt: str = "pass",
        setup: str = "pass",
        global_setup: str = "",
        timer: Callable[[], float] = timeit.default_timer,
        globals: dict[str, Any] | None = None,
        label: str | None = None,
        sub_label: str | None = None,
        description: str | None = None,
        env: str | None = None,
        num_threads: int = 1,
        language: Any = "python",
    ) -> None:
        if not isinstance(stmt, str):
            raise ValueError(f"Timer: expected stmt to be Python source, but got {type(stmt).__name__}")
        if str(language).lower() not in ("python", "language.python", "py"):
            raise ValueError(f"Timer: only Python is timed here, not {language!r}")
        if global_setup:
            raise ValueError("Timer: global_setup is for C++ only; use setup")
        self._globals = dict(globals or {})
        self._spec = TaskSpec(stmt, setup, global_setup, label, sub_label, description, env, num_threads)
        self._timer = timeit.Timer(_dedented(stmt), _dedented(setup), timer, globals=self._globals)

    def _run(self, number: int) -> float:
        before = threads.get_num_threads()
        threads.set_num_threads(self._spec.num_threads)
        try:
            return self._timer.timeit(number)
        finally:
            threads.set_num_threads(before)

    def timeit(self, number: int = 1_000_000) -> Measurement:
        """One run of `number` times, after a warm-up of a hundredth (at least twice)."""
        self._run(max(number // 100, 2))
        return Measurement(number, [self._run(number)], self._spec)

    def repeat(self, repeat: int = -1, number: int = -1) -> None:
        raise NotImplementedError("use Timer.timeit, blocked_autorange or adaptive_autorange")

    def autorange(self, callback: Any = None) -> None:
        raise NotImplementedError("use Timer.blocked_autorange")

    def _block(self, target: float) -> int:
        """How often to execute in one run, so that it takes about `target` seconds and is long enough for the clock."""
        number = 1
        self._run(1)
        while True:
            taken = self._run(number)
            if taken >= target or number >= 10**9:
                return number
            number = max(number * 2, min(number * 10, int(number * target / max(taken, 1e-9))))

    def blocked_autorange(self, callback: Callable[[int, float], Any] | None = None, min_run_time: float = 0.2) -> Measurement:
        """Runs of equal length, until `min_run_time` seconds are measured. `callback(number, seconds)` sees each run."""
        number = self._block(min_run_time / 1000 if min_run_time < 1 else 1e-3)
        times: list[float] = []
        while sum(times) < min_run_time:
            times.append(self._run(number))
            if callback is not None:
                callback(number, times[-1])
        return Measurement(number, times, self._spec)

    def adaptive_autorange(
        self,
        threshold: float = 0.1,
        *,
        min_run_time: float = 0.01,
        max_run_time: float = 10.0,
        callback: Callable[[int, float], Any] | None = None,
    ) -> Measurement:
        """Runs until the interquartile range is below `threshold` of the median, for `min_run_time` to `max_run_time` seconds."""
        number = self._block(0.05 if min_run_time >= 0.05 else min_run_time)
        times: list[float] = []
        while True:
            times.append(self._run(number))
            if callback is not None:
                callback(number, times[-1])
            low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
            steady = len(times) >= 3 and high - low < threshold * middle
            if sum(times) >= max_run_time or (steady and sum(times) >= min_run_time):
                return Measurement(number, times, self._spec)


def _dedented(text: str) -> str:
    """Source that may stand indented in a string of several lines."""
    lines = text.strip("\n").rstrip().splitlines()
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    cut = min(indents, default=0)
    return "\n".join(line[cut:] for line in lines) or "pass"
