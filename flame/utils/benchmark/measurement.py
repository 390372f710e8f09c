"""`Measurement`: times of one statement, and what they say of it: the median, how far they spread, how many digits hold."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

#: below so many runs, or above such a spread (of the interquartile range in the median), a measurement warns
FEW_RUNS, SPREAD_TO_WARN, SPREAD_TO_DISTRUST = 5, 0.1, 0.25
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def select_unit(t: float) -> tuple[str, float]:
    """The unit in which a time of `t` seconds is best said, and how many seconds it is."""
    exponent = 3 * math.floor(math.log10(max(t, 1e-12)) / 3)
    unit = {-9: "ns", -6: "us", -3: "ms"}.get(min(max(exponent, -9), 0), "s")
    return unit, _UNITS[unit]


def trim_sigfig(x: float, n: int) -> float:
    """`x` rounded to `n` significant figures."""
    if x == 0 or not math.isfinite(x):
        return x
    magnitude = math.ceil(math.log10(abs(x)))
    scale = 10.0 ** (magnitude - n)
    return float(round(x / scale) * scale)


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What was measured: the statement, and what it is called in tables."""

    stmt: str
    setup: str
    global_setup: str = ""
    label: str | None = None
    sub_label: str | None = None
    description: str | None = None
    env: str | None = None
    num_threads: int = 1

    @property
    def title(self) -> str:
        if self.label is not None:
            return self.label + (f": {self.sub_label}" if self.sub_label else "")
        return self.stmt if "\n" not in self.stmt else f"stmt: {self.stmt.splitlines()[0]} ..."

    def setup_str(self) -> str:
        return "" if self.setup == "pass" or not self.setup else f"setup: {self.setup.strip()}"

    def summarize(self) -> str:
        """The title and what stands around it, line by line."""
        lines = [self.title, self.description or "", self.setup_str(), self.global_setup, f"{self.num_threads} thread(s)"]
        return "\n".join(line for line in lines if line)


class Measurement:
    """Times of a statement. `raw_times` are those of runs of `number_per_run` times each, in seconds."""

    def __init__(
        self, number_per_run: int, raw_times: list[float], task_spec: TaskSpec, metadata: dict[Any, Any] | None = None
    ) -> None:
        self.number_per_run = number_per_run
        self.raw_times = list(raw_times)
        self.task_spec = task_spec
        self.metadata = metadata

    def __getattr__(self, name: str) -> Any:
        """What the task is called by: label, sub_label, description, env, num_threads, stmt, setup, title."""
        if (
            name.startswith("_")
            or name == "task_spec"
            or name not in {f.name for f in dataclasses.fields(TaskSpec)} | {"title"}
        ):
            raise AttributeError(f"'Measurement' object has no attribute {name!r}")
        return getattr(self.task_spec, name)

    @functools.cached_property
    def times(self) -> list[float]:
        """Seconds for one execution, of each run."""
        return [t / self.number_per_run for t in self.raw_times]

    def _some(self) -> np.ndarray:
        if not self.raw_times:
            raise ValueError("there are no times in this measurement")
        return np.sort(np.asarray(self.times))

    @property
    def median(self) -> float:
        return float(np.median(self._some()))

    @property
    def mean(self) -> float:
        return float(np.mean(self._some()))

    @property
    def iqr(self) -> float:
        """The interquartile range: half of the runs lie within it."""
        low, high = np.quantile(self._some(), [0.25, 0.75])
        return float(high - low)

    @property
    def meets_confidence(self) -> bool:
        return not self.has_warnings

    @property
    def has_warnings(self) -> bool:
        """Whether there are few runs, or they are spread wide."""
        return len(self.raw_times) < FEW_RUNS or self.iqr > SPREAD_TO_WARN * self.median

    @property
    def significant_figures(self) -> int:
        """About how many digits of the median hold: 95% of normally distributed times would agree in them."""
        times = self._some()
        spread = 1.96 * (self.iqr / 1.349) / math.sqrt(max(len(times), 1))
        digits = math.ceil(math.log10(max(self.median / spread, 10))) if spread else 5
        return int(min(max(digits, 1), 5))

    @staticmethod
    def merge(measurements: Iterable[Measurement]) -> list[Measurement]:
        """Measurements of one task joined to one."""
        groups: dict[TaskSpec, list[Measurement]] = {}
        for m in measurements:
            groups.setdefault(m.task_spec, []).append(m)
        return [Measurement(1, [t for m in ms for t in m.times], task, None) for task, ms in groups.items()]

    def __repr__(self) -> str:
        unit, scale = select_unit(self.median)
        shown = trim_sigfig(self.median / scale, max(self.significant_figures, 3))
        n = len(self.times)
        lines = [object.__repr__(self), self.task_spec.summarize()]
        if n == 1:
            lines.append(f"  {shown:.4g} {unit}")
        else:
            lines.append(f"  Median: {shown:.4g} {unit}")
            lines.append(f"  IQR:    {self.iqr / scale:.3g} {unit}")
        lines.append(
            f"  {n} measurement{'s' if n > 1 else ''}, {self.number_per_run} runs per measurement, {self.num_threads} thread(s)"
        )
        if n > 1 and self.has_warnings:
            spread = self.iqr / self.median
            how = "This could indicate system fluctuation." if spread > SPREAD_TO_DISTRUST else "Use with care."
            lines.append(f"  WARNING: Interquartile range is {100 * spread:.1f}% of the median. {how}")
        return "\n".join(lines)
