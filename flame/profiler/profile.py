"""`profile`: a context manager that notes what runs inside, and shows it as tables and as a trace.

    with profile(record_shapes=True) as p:
        step(x, y)
    print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))
    p.export_chrome_trace("trace.json")                 # for chrome://tracing and ui.perfetto.dev

Eager operations, nodes of backward, compiled functions, each kernel of a compiled program with the user's lines, and phases of
compiling are events. While one profile is on, compiled programs run kernel by kernel. Off, it costs nothing.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flame import cuda
from flame.profiler.events import Event, EventList, averages, nested
from flame.profiler.naming import Owners, name_kernels, owners
from flame.profiler.schedule import ProfilerAction, ProfilerActivity, always
from flame.profiler.taps import Listener

_lock = threading.Lock()
_clock = time.perf_counter_ns


class _Now:
    """Who listens, if anybody does."""

    listener: Listener | None = None


class profile:
    """Profile what runs between `start()` and `stop()`, or inside of `with`.

    activities: `ProfilerActivity`s; None is all that are there. schedule: which steps (as told by `step()`) are recorded, see
    `schedule`; None is all. on_trace_ready: called with the profile after the last recorded step of each cycle, and at the end.
    record_shapes: shapes of operands, so that rows can be grouped by them. profile_memory: bytes that results take.
    with_stack: the user's lines of every event. with_flops: floating-point operations of products.
    The other arguments of PyTorch's are taken and change nothing.
    Raises RuntimeError where another profile is on.
    """

    def __init__(
        self,
        *,
        activities: Iterable[ProfilerActivity] | None = None,
        schedule: Callable[[int], ProfilerAction] | None = None,
        on_trace_ready: Callable[..., Any] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        with_modules: bool = False,
        experimental_config: Any = None,
        execution_trace_observer: Any = None,
        acc_events: bool = False,
        use_cuda: bool | None = None,
        custom_trace_id_callback: Any = None,
    ) -> None:
        wanted = set(supported_activities() if activities is None else activities)
        if not wanted:
            raise AssertionError("No valid profiler activities found")
        if not wanted & supported_activities():
            raise AssertionError(f"No activity of {wanted} can be profiled here: supported are {supported_activities()}")
        self._schedule = always if schedule is None else schedule
        self._scheduled = schedule is not None
        self.on_trace_ready = on_trace_ready
        self._settings = (record_shapes, profile_memory, with_stack, with_flops)
        self.step_num = 0
        self._listener: Listener | None = None
        self._events: list[Event] = []
        self._unnamed: list[tuple[Event, Any, int]] = []
        self._owners: Owners = {}
        self._metadata: dict[str, Any] = {}
        self._began = 0
        self._ready: EventList | None = None
        self._action = ProfilerAction.NONE

    # ---------------------------------------------------------------- when

    def __enter__(self) -> profile:
        self.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()

    def start(self) -> None:
        self._take(self._schedule(self.step_num))

    def stop(self) -> None:
        recorded = self._listener is not None
        self._end_step()
        self._silence()
        if self.on_trace_ready is not None and recorded:
            self.on_trace_ready(self)
        self._action = ProfilerAction.NONE

    def step(self) -> None:
        """The next step of the loop begins."""
        self._end_step()
        done = self._action is ProfilerAction.RECORD_AND_SAVE
        self.step_num += 1
        if done:
            self._silence()
            if self.on_trace_ready is not None:
                self.on_trace_ready(self)
        self._take(self._schedule(self.step_num), anew=done)

    def _take(self, action: ProfilerAction, anew: bool = False) -> None:
        self._action = action
        if action in (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE):
            if self._listener is None:
                if anew or self._scheduled:
                    self._events, self._unnamed, self._ready = [], [], None
                self._listen()
            self._began = _clock()
        else:
            self._silence()

    def _end_step(self) -> None:
        if self._listener is not None and self._scheduled:
            self._listener.record("step", f"ProfilerStep#{self.step_num}", self._began, _clock())

    def _listen(self) -> None:
        with _lock:
            if _Now.listener is not None:
                raise RuntimeError("another profile is on: stop it first (one profile is on at a time in a process)")
            self._listener = _Now.listener = Listener(*self._settings)
        self._listener.start()

    def _silence(self) -> None:
        if self._listener is None:
            return
        self._listener.stop()
        with _lock:
            _Now.listener = None
        self._events += self._listener.events
        self._unnamed += self._listener.unnamed
        self._owners |= owners()
        self._listener = None
        self._ready = None

    # ---------------------------------------------------------------- what

    def events(self) -> EventList:
        """Everything that was seen, by thread and beginning, nested."""
        if self._ready is None:
            name_kernels(self._unnamed, self._owners)
            self._unnamed = []
            self._ready = EventList(nested(self._events))
        return self._ready

    def key_averages(self, group_by_input_shape: bool = False, group_by_stack_n: int = 0) -> EventList:
        """Sums by name: rows with `key`, `count`, `self_cpu_time_total`, `cpu_time_total` and others, in microseconds."""
        return averages(self.events(), group_by_input_shape, group_by_stack_n)

    def add_metadata(self, key: str, value: str) -> None:
        """Have a string stand in the trace."""
        self._metadata[key] = value

    def add_metadata_json(self, key: str, value: str) -> None:
        """Have a JSON value stand in the trace."""
        self._metadata[key] = json.loads(value)

    def export_chrome_trace(self, path: str) -> None:
        """Write the events in the format of chrome://tracing and Perfetto; compressed if the name ends in .gz."""
        text = json.dumps(self._trace())
        if str(path).endswith(".gz"):
            with gzip.open(path, "wt", encoding="utf-8") as f:
                f.write(text)
        else:
            Path(path).write_text(text, encoding="utf-8")

    def _trace(self) -> dict[str, Any]:
        pid = os.getpid()
        shown = []
        for e in self.events():
            more: dict[str, Any] = dict(e.arguments)
            if e.shapes:
                more["Input Dims"] = e.input_shapes
            if e.source or e.stack:
                more["source"] = e.source or e.stack[0]
            if e.stack:
                more["Call stack"] = ";".join(reversed(e.stack))
            if e.flops:
                more["flops"] = e.flops
            if e.bytes:
                more["bytes"] = e.bytes
            shown.append(
                {
                    "ph": "X", "cat": e.kind, "name": e.name, "pid": pid, "tid": e.thread, "ts": e.begin / 1e3,
                    "dur": e.nanoseconds / 1e3, "args": more,
                }
            )  # fmt: skip
        return {"schemaVersion": 1, "displayTimeUnit": "ms", "traceEvents": shown, **self._metadata}

    def export_stacks(self, path: str, metric: str = "self_cpu_time_total") -> None:
        """Write lines "outer;inner microseconds" for flame graphs; needs with_stack=True (else ValueError)."""
        if metric not in ("self_cpu_time_total", "self_cuda_time_total"):
            raise ValueError(f"export_stacks(metric={metric!r}): expected self_cpu_time_total")
        if not self._settings[2]:
            raise ValueError("export_stacks() needs a profile with_stack=True")
        sums: dict[str, int] = {}
        for e in self.events():
            key = ";".join([*reversed(e.stack), e.name])
            sums[key] = sums.get(key, 0) + int(e.self_cpu_time_total)
        Path(path).write_text("".join(f"{k} {n}\n" for k, n in sums.items() if n), encoding="utf-8")


class record_function:
    """A context manager and a decorator: what runs inside is one event of this name, where somebody profiles."""

    def __init__(self, name: str, args: str | None = None) -> None:
        self.name = name
        self.args = args
        self._began: list[tuple[int, Listener | None]] = []

    def __enter__(self) -> record_function:
        listener = _Now.listener
        self._began.append((0 if listener is None else _clock(), listener))
        return self

    def __exit__(self, *error: Any) -> None:
        begin, listener = self._began.pop()
        if listener is not None:
            e = listener.record("user", self.name, begin, _clock())
            if self.args is not None:
                e.arguments["args"] = self.args

    def __call__(self, f: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(f)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            with record_function(self.name, self.args):
                return f(*args, **kwargs)

        return recorded


def supported_activities() -> set[ProfilerActivity]:
    """What can be profiled on this machine."""
    return {ProfilerActivity.CPU} | ({ProfilerActivity.CUDA} if cuda.is_available() else set())


def tensorboard_trace_handler(
    dir_name: str, worker_name: str | None = None, use_gzip: bool = False
) -> Callable[[profile], None]:
    """An `on_trace_ready` that writes each trace into a folder, as `worker.time.pt.trace.json`."""

    def write(p: profile) -> None:
        folder = Path(dir_name)
        folder.mkdir(parents=True, exist_ok=True)
        worker = worker_name or f"{socket.gethostname()}_{os.getpid()}"
        p.export_chrome_trace(str(folder / f"{worker}.{time.time_ns()}.pt.trace.json{'.gz' if use_gzip else ''}"))

    return write
