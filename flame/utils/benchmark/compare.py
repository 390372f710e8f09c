"""`Compare`: measurements as tables: a row for each sub-label (and number of threads), a column for each description."""

from __future__ import annotations

from collections.abc import Iterable

from flame.utils.benchmark.measurement import Measurement, select_unit, trim_sigfig

_GOOD, _BETTER, _WORSE, _BAD, _END = "\033[92m\033[1m", "\033[2m\033[92m", "\033[2m\033[91m", "\033[31m\033[1m", "\033[0m"


class Compare:
    """Tables of measurements, one for each label. Those of one task are merged."""

    def __init__(self, results: Iterable[Measurement]) -> None:
        self._results: list[Measurement] = []
        self.extend_results(results)
        self._trim = False
        self._colours = ""
        self._warn = False

    def extend_results(self, results: Iterable[Measurement]) -> None:
        """Add measurements. Raises ValueError for anything else."""
        for r in results:
            if not isinstance(r, Measurement):
                raise ValueError(f"Expected an instance of `Measurement`, got {type(r)} instead.")
            self._results.append(r)

    def trim_significant_figures(self) -> None:
        """Show only the digits that hold."""
        self._trim = True

    def colorize(self, rowwise: bool = False) -> None:
        """Colour what is fast and what is slow, of a column or (rowwise) of a row."""
        self._colours = "row" if rowwise else "column"

    def highlight_warnings(self) -> None:
        """Mark measurements that are spread wide."""
        self._warn = True

    def print(self) -> None:
        """Print the tables."""
        print(str(self))

    def __str__(self) -> str:
        labels: dict[str, list[Measurement]] = {}
        for m in Measurement.merge(self._results):
            labels.setdefault(m.label or "", []).append(m)
        return "\n".join(self._table(label, group) for label, group in labels.items())

    def _table(self, label: str, group: list[Measurement]) -> str:
        unit, scale = select_unit(min(m.median for m in group))
        columns = list(dict.fromkeys((m.env or "", m.description or "") for m in group))
        rows: dict[tuple[int, str], dict[tuple[str, str], Measurement]] = {}
        for x in sorted(group, key=lambda m: m.num_threads):
            rows.setdefault((x.num_threads, x.sub_label or x.stmt), {})[x.env or "", x.description or ""] = x
        heads = ["", *[" ".join(filter(None, c)) for c in columns]]
        cells = {k: [self._cell(row.get(c), scale) for c in columns] for k, row in rows.items()}
        widths = [max(len(s) for _, s in rows) + 6]
        widths += [max(len(heads[i + 1]), *(len(row[i]) for row in cells.values())) + 2 for i in range(len(columns))]
        join = lambda parts: "  |  ".join(parts)
        title = f"[{'-' * 4} {label} {'-' * 4}]".center(sum(widths) + 5 * len(columns)) if label else ""
        lines = [title] if title else []
        lines.append(
            join([heads[0].ljust(widths[0]), *[h.center(w) for h, w in zip(heads[1:], widths[1:], strict=True)]]).rstrip()
        )
        last = 0
        for (n, name), row in cells.items():
            if n != last:
                lines.append(f"{n} threads: ".ljust(sum(widths) + 5 * len(columns), "-"))
                last = n
            shown = []
            for i, (text, w) in enumerate(zip(row, widths[1:], strict=True)):
                m = rows[n, name].get(columns[i])
                beside = rows[n, name].values() if self._colours == "row" else (r.get(columns[i]) for r in rows.values())
                others = [o for o in beside if o is not None]
                shown.append(self._coloured(text.center(w), m, [o.median for o in others]))
            lines.append(join([("      " + name).ljust(widths[0]), *shown]).rstrip())
        warned = "(! XX%) Measurement has high variance, where XX is the IQR / median * 100.\n" if self._warn else ""
        return "\n".join([*lines, "", f"Times are in {_long(unit)} ({unit}).", warned])

    def _cell(self, m: Measurement | None, scale: float) -> str:
        if m is None:
            return ""
        value = m.median / scale
        if self._trim:
            value = trim_sigfig(value, m.significant_figures)
        text = f"{value:.0f}" if value >= 1000 else f"{value:.4g}" if self._trim else f"{value:.1f}"
        if self._warn and m.has_warnings:
            text += f" (! {100 * m.iqr / m.median:.0f}%)"
        return text

    def _coloured(self, text: str, m: Measurement | None, among: list[float]) -> str:
        if not self._colours or m is None:
            return text
        best = min(among)
        for most, colour in ((1.1, _GOOD), (1.25, _BETTER), (2.0, ""), (5.0, _WORSE)):
            if m.median <= most * best:
                return f"{colour}{text}{_END}" if colour else text
        return f"{_BAD}{text}{_END}"


def _long(unit: str) -> str:
    return {"ns": "nanoseconds", "us": "microseconds", "ms": "milliseconds", "s": "seconds"}[unit]
