"""The profiler under the names that it had first (`torch.autograd.profiler`): a thin cover of `flame.profiler.profile`."""

from __future__ import annotations

from typing import Any

from flame.profiler.events import Average, EventList
from flame.profiler.profile import profile as Profile
from flame.profiler.profile import record_function

__all__ = ["emit_nvtx", "profile", "record_function"]


class profile(Profile):
    """Profile what runs inside of `with`; nothing where `enabled` is false. What it shows is that of `flame.profiler.profile`.

    record_shapes, with_flops, profile_memory, with_stack: as there. The other arguments of PyTorch's change nothing.
    Raises RuntimeError where it is entered twice, and where what was seen is asked for before it ends.
    """

    def __init__(
        self, enabled: bool = True, *, use_cpu: bool = True, use_device: str | None = None, record_shapes: bool = False,
        with_flops: bool = False, profile_memory: bool = False, with_stack: bool = False, with_modules: bool = False,
        use_kineto: bool = False, use_cuda: bool | None = None, experimental_config: Any = None, acc_events: bool = False,
        custom_trace_id_callback: Any = None, post_processing_timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            record_shapes=record_shapes, with_flops=with_flops, profile_memory=profile_memory, with_stack=with_stack
        )
        self.enabled, self.entered, self._ended = enabled, False, False

    def __enter__(self) -> profile:
        if self.enabled:
            if self.entered:
                raise RuntimeError("Profiler context manager is not reentrant")
            self.entered = True
            self.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.enabled:
            self.stop()
            self._ended = True

    def events(self) -> EventList:
        if not self._ended:
            raise RuntimeError("Profiler didn't finish running")
        return super().events()

    @property
    def function_events(self) -> EventList:
        return self.events()

    def table(
        self, sort_by: str | None = None, row_limit: int = 100, max_src_column_width: int = 75, max_name_column_width: int = 55,
        max_shapes_column_width: int = 80, header: str | None = None, top_level_events_only: bool = False,
    ) -> str:  # fmt: skip
        """Every event as a row; `key_averages().table()` has sums by name."""
        return self.events().table(
            sort_by,
            row_limit,
            max_src_column_width,
            max_name_column_width,
            max_shapes_column_width,
            header,
            top_level_events_only,
        )

    def total_average(self) -> Average:
        """The sum of all events."""
        return self.events().total_average()

    @property
    def self_cpu_time_total(self) -> float:
        """Microseconds of all events, each counted once."""
        return self.total_average().self_cpu_time_total

    def __str__(self) -> str:
        return str(self.events()) if self._ended else "<unfinished profiler_legacy_profile>"


class emit_nvtx:
    """Not there: raises NotImplementedError. Kernels are named in the trace of `flame.profiler.profile`."""

    def __init__(self, enabled: bool = True, record_shapes: bool = False) -> None:
        raise NotImplementedError(
            "emit_nvtx() is not supported: use flame.profiler.profile and export_chrome_trace, which name every kernel"
        )
