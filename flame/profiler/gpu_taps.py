"""Kernels on GPUs, as a profile sees them: each between two events of the driver, so that its time is the device's.

    watch = GpuWatch(record); watch.start(); ...; watch.stop()           `record` is given every kernel as an event, at the end

While it is on, plans of several launches are put on their stream one by one, with an event behind each; nothing waits for the
device meanwhile. At the end it is waited for, once. The device's clock is laid over the host's at the first launch on a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from flame.runtime.cuda_gpu import Gpu
from flame.runtime.cuda_plan import LaunchPlan, LaunchStep
from flame.runtime.gpu_autotune import ByLibrary

#: device, stream, note of the kernel, and the numbers of the events before and behind it
Launch = tuple[Gpu, int, str, int, int]


class GpuWatch:
    """Collects the launches of `Gpu.put`."""

    def __init__(self, record: Callable[[str, str, int, int, str], Any]):
        self._record = record
        self._launches: list[Launch] = []
        self._events: dict[Gpu, list[int]] = {}
        self._origin: dict[Gpu, int] = {}  #: the host's nanoseconds when the first event of a device had passed

    def put(self, put: Callable[..., None], gpu: Gpu, plan: LaunchPlan, queue: int, arena: int, words: Sequence[int]) -> None:
        """In place of `Gpu.put`."""
        before = self._begun(gpu, queue)

        def after(step: LaunchStep) -> None:
            nonlocal before
            behind = self._mark(gpu, queue)
            self._launches.append((gpu, queue, step.note, before, behind))
            before = behind

        gpu.run_apart(plan, arena, words, queue, after)

    def by_library(self, launch: Callable[..., None], called: ByLibrary, grid: object, addresses: Any) -> None:
        """In place of `ByLibrary.launch`."""
        gpu = called.product.gpu
        queue = gpu.current_stream
        before = self._begun(gpu, queue)
        launch(called, grid, addresses)
        self._launches.append((gpu, queue, str(called), before, self._mark(gpu, queue)))

    def _begun(self, gpu: Gpu, queue: int) -> int:
        """A mark before a launch; the first on a device also lays its clock over the host's."""
        if gpu not in self._origin:
            self._mark(gpu, queue)
            with gpu.calling():
                gpu.driver.synchronize_event(self._events[gpu][0])
            self._origin[gpu] = time.perf_counter_ns()
        return self._mark(gpu, queue)

    def stop(self) -> None:
        """Wait for the devices, and record what was launched on them."""
        for gpu, events in self._events.items():
            with gpu.calling():
                for event in events:
                    gpu.driver.synchronize_event(event)
                for on, queue, note, before, behind in self._launches:
                    if on is gpu:
                        begin, end = (
                            self._origin[gpu] + int(1e6 * gpu.driver.elapsed_ms(events[0], events[i])) for i in (before, behind)
                        )
                        name, _, source = note.partition(", ")
                        self._record(name, source, begin, max(end, begin + 1), f"{gpu.device} stream {queue:#x}")
            for event in events:
                gpu.give_event(event, True, False)
        self._launches, self._events, self._origin = [], {}, {}

    def _mark(self, gpu: Gpu, queue: int) -> int:
        """An event on the stream; its number."""
        events = self._events.setdefault(gpu, [])
        with gpu.calling():
            event = gpu.take_event(True, False)
            gpu.driver.record_event(event, queue)
        events.append(event)
        return len(events) - 1
