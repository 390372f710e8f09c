"""An `Explanation` for people: `plain(e)` text, `rendered(e)` for rich, `page(e)` HTML.

All three are written from one list of sections (`sections`), each a title and rows of text.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from flame.drawing import MOST, draw
from flame.errors import CompileError, MissingTargetError

#: rows of a section that text shows; a page shows all
_ROWS = 12


@dataclass(frozen=True, slots=True)
class Section:
    """A table with a title. `columns` may be empty: then there is one row a line."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(e: Any, limit: int | None = _ROWS) -> list[Section]:
    """What there is to say; `limit` is how many rows of a long section are shown."""
    found = [Section(f"{e.name}: eager and compiled", (), tuple(_figures(e)))]
    graphs = [
        (s.graph.name, s.role, str(s.operations), str(s.kernels), str(s.calls), size(s.bytes_moved), size(s.bytes_eager))
        for s in e.segments
    ]
    columns = ("graph", "role", "operations", "kernels", "calls", "bytes moved", "op by op")
    found.append(Section("Graphs", columns, _some(graphs, limit)))
    kernels = [(k.name, str(k.uses), k.runs_by or "not run", size(k.bytes_moved), gathered(k.notes)) for k in e.kernels]
    found.append(Section("Kernels", ("kernel", "uses", "by", "bytes", "of"), _some(kernels, limit)))
    happenings = (
        ("Breaks", e.breaks), ("Left the recorded path", e.divergences), ("Compiled", e.compilations), ("Ran op by op", e.fallbacks)
    )  # fmt: skip
    for title, events in happenings:
        happened = [(short(v.source), v.reason, str(v.count)) for v in events]
        found.append(Section(f"{title}, in {e.calls} calls", ("line", "reason", "times"), _some(happened, limit)))
    remedies = {v.code: v.remedy for v in (*e.breaks, *e.divergences, *e.fallbacks) if v.code}
    found.append(Section("What to do", (), tuple(sorted(remedies.items()))))
    found.append(Section("Not fused", ("times", "reason", "for example"), _some(_refusals(e), limit)))
    verdicts: dict[str, int] = {}
    for d in e.decisions:
        verdicts[d.verdict] = verdicts.get(d.verdict, 0) + 1
    rows = [(v, str(n)) for v, n in sorted(verdicts.items(), key=lambda x: -x[1])]
    found.append(Section("Decisions", ("verdict", "how many"), tuple(rows)))
    return [s for s in found if s.rows]


def _figures(e: Any) -> Iterable[tuple[str, ...]]:
    speed = e.eager_ms / e.compiled_ms if e.compiled_ms else math.inf
    yield "eager", f"{e.eager_ms:.3f} ms"
    yield "compiled", f"{e.compiled_ms:.3f} ms ({speed:.2f} times as fast)"
    first = e.first_compiled_seconds
    yield "first compiled call", "no call ran kernels" if math.isnan(first) else f"over after {first:.2f} s"
    yield "of that compiling", f"{e.compile_seconds:.2f} s"
    d = e.difference
    if d.absolute:
        yield (
            "largest difference",
            f"{d.ulp:.0f} ULP, {d.absolute:.3g} absolute, {d.relative:.3g} of the largest value ({d.where})",
        )
    else:
        yield "largest difference", "none: equal to the bit, or NaN in both"
    if not d.repeatable:
        yield "", "two eager calls differ as well: the function keeps state elsewhere, so this says little"
    if e.given_up:
        yield "runs eagerly now", e.given_up


def _refusals(e: Any) -> list[tuple[str, str, str]]:
    """Refused fusions by reason, numbers apart; the most frequent first."""
    found: dict[str, list[Any]] = {}
    for d in e.refused:
        found.setdefault(re.sub(r"\d+", "N", d.reason), []).append(d)
    ranked = sorted(found.values(), key=lambda ds: -len(ds))
    return [(str(len(ds)), ds[0].reason, ds[0].what) for ds in ranked]


def _some(rows: Sequence[tuple[str, ...]], limit: int | None) -> tuple[tuple[str, ...], ...]:
    if limit is None or len(rows) <= limit + 1:
        return tuple(rows)
    rest = len(rows) - limit
    return (*rows[:limit], (f"and {rest} more", *[""] * (len(rows[0]) - 1)))


def size(n: int) -> str:
    """Bytes for people."""
    if n < 1024:
        return f"{n} B"
    for unit in ("KiB", "MiB", "GiB"):
        n_ = n / 1024
        if n_ < 1024 or unit == "GiB":
            return f"{n_:.1f} {unit}"
        n = n_  # type: ignore[assignment]
    raise AssertionError


def gathered(notes: Iterable[str]) -> str:
    """Notes ("softmax  model.py:12") by line: "softmax, mul (model.py:12)"."""
    lines: dict[str, list[str]] = {}
    for note in notes:
        words, _, source = note.rpartition("  ")
        lines.setdefault(short(source), []).extend([words] if words else [])
    return "; ".join(f"{', '.join(dict.fromkeys(w))} ({line})" if w else line for line, w in lines.items())


def short(source: str) -> str:
    """A note or "file:line" with paths under the working directory written from there."""
    here = os.getcwd() + os.sep
    return source.replace(here, "")


# ---- in a terminal


def plain(e: Any, width: int = 120) -> str:
    """As text, without colour; long cells are wrapped."""
    out = []
    for s in sections(e):
        out += [s.title, "-" * len(s.title)]
        rows = ([s.columns] if s.columns else []) + list(s.rows)
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        while sum(widths) + 2 * len(widths) > width:
            widths[widths.index(max(widths))] -= 1
        for r in rows:
            cells = [wrap(c, w) or [""] for c, w in zip(r, widths)]
            for line in zip_longest(*cells, fillvalue=""):
                out.append("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip())
        out.append("")
    return "\n".join(out).rstrip()


def rendered(e: Any) -> Any:
    """For rich: a group of tables."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables = []
    for s in sections(e):
        t = Table(title=Text(s.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, show_header=bool(s.columns))
        for c in s.columns or ("",) * len(s.rows[0]):
            t.add_column(c, overflow="fold")
        for r in s.rows:
            t.add_row(*map(Text, r))
        tables.append(t)
    return Group(*tables)


# ---- as a page

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .2rem .8rem; border-bottom: 1px solid #ddd; vertical-align: top; }
pre { background: #f6f6f6; padding: .8rem; overflow: auto; font-size: 13px; }
svg { max-width: 100%; height: auto; }
"""


def page(e: Any, whole: bool = True) -> str:
    """As HTML: `whole` is a document with drawings, sources and every decision; else the tables alone."""
    parts = []
    for s in sections(e, None if whole else _ROWS):
        rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in r) + "</tr>" for r in s.rows)
        head = "<tr>" + "".join(f"<th>{escape(c)}</th>" for c in s.columns) + "</tr>" if s.columns else ""
        parts.append(f"<h3>{escape(s.title)}</h3><table>{head}{rows}</table>")
    if not whole:
        return "\n".join(parts)
    for g in e.graphs:
        if len(g.nodes) <= MOST:
            parts.append(_folded(f"graph {g.name}, drawn", draw(g)))
        parts.append(_folded(f"graph {g.name}, as text", f"<pre>{escape(str(g))}</pre>"))
    for k in e.kernels:
        texts = [f"<h4>kernel IR</h4><pre>{escape(str(k))}</pre>"]
        for title, attribute in (("Triton", "triton"), ("LLVM IR", "llvm")):
            texts.append(f"<h4>{title}</h4><pre>{escape(_source(k, attribute))}</pre>")
        parts.append(_folded(f"kernel {k.name}", "\n".join(texts)))
    listed = "\n".join(map(str, e.decisions))
    parts.append(_folded(f"all {len(e.decisions)} decisions", f"<pre>{escape(listed)}</pre>"))
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(e.name)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h2>{escape(e.name)}</h2>\n{body}\n</body></html>\n"
    )


def _source(k: Any, attribute: str) -> str:
    try:
        return getattr(k, attribute)
    except (CompileError, MissingTargetError) as missing:
        return str(missing)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
