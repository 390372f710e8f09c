"""What was seen while a program ran: events in time, how they nest, and their sums by name.

    event ::= kind name begin end thread [shapes] [source] [flops] [bytes]
    kind  ::= operation    a primitive that ran eagerly                     | backward   a node of the tape
            | function     a call of a compiled function                    | program    one run of a compiled segment
            | kernel       a step of such a run, with the user's lines      | compile    a phase of compiling
            | user         `record_function`                                | step       ProfilerStep#n
            | gpu          a kernel on a GPU, in the device's time: its "thread" is a stream there

Times are nanoseconds of `time.perf_counter_ns`. Events of one thread nest: what is inside of another is its child.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

#: which kinds count as work of the CPU's, and not as what is around it
SORTS = (
    "self_cpu_time_total", "cpu_time_total", "cpu_time", "self_cuda_time_total", "cuda_time_total", "self_cpu_memory_usage",
    "cpu_memory_usage", "count", "flops",
)  # fmt: skip


@dataclass(eq=False, slots=True)
class Event:
    """Something that took time on one thread."""

    kind: str
    name: str
    begin: int
    end: int
    thread: int
    shapes: tuple = ()
    source: str = ""  #: the user's line (or lines, for a kernel)
    stack: tuple[str, ...] = ()  #: the user's lines around it, innermost first
    flops: int = 0
    bytes: int = 0  #: that its results took
    arguments: dict[str, Any] = field(default_factory=dict)
    parent: Event | None = None
    children: list[Event] = field(default_factory=list)

    @property
    def nanoseconds(self) -> int:
        return self.end - self.begin

    @property
    def cpu_time_total(self) -> float:
        """Microseconds, with what is inside of it; of a kernel on a GPU none."""
        return 0.0 if self.kind == "gpu" else self.nanoseconds / 1e3

    @property
    def cuda_time_total(self) -> float:
        """Microseconds of a kernel on a GPU."""
        return self.nanoseconds / 1e3 if self.kind == "gpu" else 0.0

    device_time_total = self_device_time_total = self_cuda_time_total = cuda_time_total

    @property
    def self_cpu_time_total(self) -> float:
        """Microseconds, without what is inside of it; of a kernel on a GPU none."""
        return 0.0 if self.kind == "gpu" else max(0, self.nanoseconds - sum(c.nanoseconds for c in self.children)) / 1e3

    @property
    def key(self) -> str:
        return self.name

    @property
    def input_shapes(self) -> list:
        return [list(s) for s in self.shapes]

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}: {self.cpu_time_total:.1f} us>"


def nested(events: Iterable[Event]) -> list[Event]:
    """The events by their beginning, each with its parent and children set."""
    ordered = sorted(events, key=lambda e: (e.thread, e.begin, -e.end))
    open_: list[Event] = []
    for e in ordered:
        e.parent, e.children = None, []
        while open_ and (open_[-1].thread != e.thread or open_[-1].end < e.end):
            open_.pop()
        if open_:
            e.parent = open_[-1]
            open_[-1].children.append(e)
        open_.append(e)
    return ordered


@dataclass(slots=True)
class Average:
    """Events of one name (and shapes, or lines, where it is grouped by these)."""

    key: str
    kind: str
    count: int = 0
    cpu_time_total: float = 0.0
    self_cpu_time_total: float = 0.0
    cuda_time_total: float = 0.0
    cpu_memory_usage: int = 0
    self_cpu_memory_usage: int = 0
    flops: int = 0
    input_shapes: list = field(default_factory=list)
    source: str = ""

    @property
    def cpu_time(self) -> float:
        """Microseconds a call."""
        return self.cpu_time_total / self.count if self.count else 0.0

    @property
    def self_cuda_time_total(self) -> float:
        return self.cuda_time_total

    device_time_total = self_device_time_total = self_cuda_time_total

    def add(self, e: Event) -> None:
        self.count += 1
        self.cuda_time_total += e.cuda_time_total
        outer = e.parent
        while outer is not None and (outer.name != e.name or outer.kind != e.kind):
            outer = outer.parent
        if outer is None:  # (what is inside of one of its own name was counted with that)
            self.cpu_time_total += e.cpu_time_total
            self.cpu_memory_usage += _bytes_inside(e)
        self.self_cpu_time_total += e.self_cpu_time_total
        self.self_cpu_memory_usage += e.bytes
        self.flops += e.flops


def _bytes_inside(e: Event) -> int:
    return e.bytes + sum(map(_bytes_inside, e.children))


class EventList(list):
    """Averages, or events, with a table of them."""

    def table(
        self,
        sort_by: str | None = None,
        row_limit: int = 100,
        max_src_column_width: int = 75,
        max_name_column_width: int = 55,
        max_shapes_column_width: int = 80,
        header: str | None = None,
        top_level_events_only: bool = False,
    ) -> str:
        """Rows by time (or another of `SORTS`), as PyTorch lays them out.

        Raises AttributeError for a name that is none of them.
        """
        rows: Sequence[Average] = averages(self) if self and isinstance(self[0], Event) else list(self)
        if top_level_events_only and self and isinstance(self[0], Event):
            rows = averages([e for e in self if e.parent is None])
        by = "self_cpu_time_total" if sort_by is None else sort_by.replace("device", "cuda")
        if "cuda" in by and not any(r.cuda_time_total for r in rows):
            by = by.replace("cuda", "cpu")
        if by not in SORTS:
            raise AttributeError(f"table(sort_by={sort_by!r}): expected one of {', '.join(SORTS)}")
        total = sum(r.self_cpu_time_total for r in rows)
        rows = sorted(rows, key=lambda r: -getattr(r, by))[: row_limit if row_limit > 0 else None]
        share = lambda t: f"{100 * t / total:.2f}%" if total else "0.00%"
        columns: list[tuple[str, Any]] = [
            ("Name", lambda r: _short(r.key, max_name_column_width)),
            ("Self CPU %", lambda r: share(r.self_cpu_time_total)),
            ("Self CPU", lambda r: _time(r.self_cpu_time_total)),
            ("CPU total %", lambda r: share(r.cpu_time_total)),
            ("CPU total", lambda r: _time(r.cpu_time_total)),
            ("CPU time avg", lambda r: _time(r.cpu_time)),
        ]
        total_cuda = sum(r.cuda_time_total for r in rows)
        if total_cuda:
            columns += [
                ("CUDA %", lambda r: f"{100 * r.cuda_time_total / total_cuda:.2f}%"),
                ("CUDA total", lambda r: _time(r.cuda_time_total)),
            ]
        if any(r.cpu_memory_usage for r in rows):
            columns += [
                ("CPU Mem", lambda r: size(r.cpu_memory_usage)),
                ("Self CPU Mem", lambda r: size(r.self_cpu_memory_usage)),
            ]
        columns.append(("# of Calls", lambda r: str(r.count)))
        if any(r.flops for r in rows):
            columns.append(("Total MFLOPs", lambda r: f"{r.flops / 1e6:.3f}" if r.flops else "--"))
        if any(r.input_shapes for r in rows):
            columns.append(("Input Shapes", lambda r: _short(str(r.input_shapes or ""), max_shapes_column_width)))
        if any(r.source for r in rows):
            columns.append(("Source Location", lambda r: _short(r.source, max_src_column_width, keep_end=True)))
        cells = [[name for name, _ in columns], *[[show(r) for _, show in columns] for r in rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        rule = "  ".join("-" * w for w in widths)
        line = lambda row: "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        text = [rule, line(cells[0]), rule, *map(line, cells[1:]), rule, f"Self CPU time total: {_time(total)}"]
        text += [f"CUDA time total: {_time(total_cuda)}", ""] if total_cuda else [""]
        return "\n".join(([header] if header else []) + text)

    def total_average(self) -> Average:
        """All of them in one."""
        rows: Sequence[Average] = averages(self) if self and isinstance(self[0], Event) else list(self)
        got = Average("Total", "total")
        for r in rows:
            got.count += r.count
            got.self_cpu_time_total += r.self_cpu_time_total
            got.cpu_time_total += r.self_cpu_time_total
            got.self_cpu_memory_usage += r.self_cpu_memory_usage
            got.flops += r.flops
        return got

    def __str__(self) -> str:
        return self.table()


def averages(events: Iterable[Event], by_shape: bool = False, by_lines: int = 0) -> EventList:
    """Sums by kind and name; also by input shapes, or by so many of the user's lines."""
    found: dict[tuple, Average] = {}
    for e in events:
        lines = e.stack[:by_lines] if by_lines else ()
        key = (e.kind, e.name, e.source if e.kind in ("kernel", "gpu") else "", e.shapes if by_shape else (), lines)
        a = found.get(key)
        if a is None:
            a = found[key] = Average(e.name, e.kind, input_shapes=e.input_shapes if by_shape else [])
            a.source = " < ".join(lines) if lines else e.source if e.kind in ("kernel", "gpu") else ""
        a.add(e)
    return EventList(found.values())


def size(n: float) -> str:
    """Bytes in words."""
    for unit, scale in (("Gb", 2**30), ("Mb", 2**20), ("Kb", 2**10)):
        if abs(n) >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{int(n)} b"


def _time(us: float) -> str:
    return f"{us / 1e6:.3f}s" if us >= 1e6 else f"{us / 1e3:.3f}ms" if us >= 1e3 else f"{us:.3f}us"


def _short(text: str, width: int, keep_end: bool = False) -> str:
    if width <= 0 or len(text) <= width:
        return text
    return "..." + text[3 - width :] if keep_end else text[: width - 3] + "..."
