"""Measuring how long statements take: `Timer` times one, `Measurement` is what it found, `Compare` lays several out as a table."""

from flame.utils.benchmark.compare import Compare
from flame.utils.benchmark.measurement import Measurement, TaskSpec, select_unit, trim_sigfig
from flame.utils.benchmark.timer import Timer

__all__ = ["Compare", "Measurement", "TaskSpec", "Timer", "select_unit", "trim_sigfig"]
