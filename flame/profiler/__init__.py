"""Where time and memory go: `profile` and its tables and traces, `record_function`, and `flame.profiler.memory`."""

from flame.profiler import memory
from flame.profiler.profile import profile, record_function, supported_activities, tensorboard_trace_handler
from flame.profiler.schedule import ProfilerAction, ProfilerActivity, schedule

__all__ = [
    "ProfilerAction", "ProfilerActivity", "memory", "profile", "record_function", "schedule", "supported_activities",
    "tensorboard_trace_handler",
]  # fmt: skip
