"""What the demo shows and leaves behind: the summary table, one kernel, and a folder with report, plots and kernels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from flame.compiler.graph import identifier
from flame.demo.svg import Series, bar_chart, line_chart
from flame.demo.train import Outcome
from flame.errors import CompileError

#: a kernel longer than this is not shown on a terminal while there is a shorter one
LINES_TO_SHOW = 80


def rows(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """The summary as a header and rows of text, the same on the terminal and in the report."""
    header = [
        "model",
        "eager steps/s",
        "compiled steps/s",
        "speed-up",
        "first compiled step",
        "kernels",
        "largest loss difference",
    ]
    body = []
    for o in outcomes:
        first = o.compiled.seconds_to_first_compiled
        body.append(
            [
                o.task.name,
                f"{1 / o.eager.step_seconds:.1f}",
                f"{1 / o.compiled.step_seconds:.1f}",
                f"{o.speedup:.2f}x",
                "never" if first is None else f"{first:.2f} s",
                str(len(o.compiled.kernels)),
                f"{o.largest_loss_difference:.1e}",
            ]
        )
    return header, body


def table(outcomes: Sequence[Outcome], title: str) -> Table:
    """The summary for a terminal."""
    header, body = rows(outcomes)
    shown = Table(title=title, title_justify="left")
    shown.add_column(header[0], style="bold")
    for name in header[1:]:
        shown.add_column(name, justify="right")
    for row in body:
        shown.add_row(*row)
    return shown


def triton_of(kernel: Any) -> str:
    """The kernel's Triton source, or in a comment why it has none."""
    try:
        return kernel.triton
    except CompileError as reason:
        return f"# {reason}\n"


def kernel_to_show(outcomes: Sequence[Outcome]) -> Any | None:
    """The kernel that says most within a screen or two: one with a sum in it, and most of the operations that a user called."""
    kernels = [k for o in outcomes for k in o.compiled.kernels]

    def merit(kernel: Any) -> tuple[bool, bool, int, int]:
        source = triton_of(kernel)
        lines = source.count("\n")
        fits = lines <= LINES_TO_SHOW
        called = set(re.findall(r"# ([a-z]\w+) +\S+:\d+$", source, flags=re.MULTILINE))
        return fits, "tl.sum(" in source, len(called), lines if fits else -lines

    return max(kernels, key=merit, default=None)


def plots(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """File names and SVG texts: each task's losses, and the time of a step."""
    made = {}
    for o in outcomes:
        lines = [Series("eager", o.eager.losses), Series("compiled", o.compiled.losses)]
        made[f"loss_{o.task.name}.svg"] = line_chart(f"Training loss: {o.task.title}", lines, "step", "loss")
    bars = [(name, [1000 * getattr(o, name).step_seconds for o in outcomes]) for name in ("eager", "compiled")]
    made["step_time.svg"] = bar_chart("Time of a training step (median)", [o.task.name for o in outcomes], bars, "milliseconds")
    return made


def write_files(out: Path, outcomes: Sequence[Outcome], facts: Sequence[tuple[str, str]]) -> dict[str, Path]:
    """Write everything under `out`. Returns what was written: the report, the plots' folder and the kernels' folder."""
    drawn = plots(outcomes)
    (out / "plots").mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        (out / "plots" / name).write_text(svg, encoding="utf-8")
    for o in outcomes:
        folder = out / "kernels" / o.task.name
        folder.mkdir(parents=True, exist_ok=True)
        for old in [*folder.glob("*.py"), *folder.glob("*.ll")]:
            old.unlink()  # another run's kernels would pass for this one's
        for i, kernel in enumerate(o.compiled.kernels):
            stem = f"{i:02d}_{identifier(kernel.name)}"
            (folder / f"{stem}.py").write_text(triton_of(kernel), encoding="utf-8")
            (folder / f"{stem}.ll").write_text(kernel.llvm, encoding="utf-8")
    report = out / "report.html"
    report.write_text(page(outcomes, drawn, facts), encoding="utf-8")
    return {"report": report, "plots": out / "plots", "kernels": out / "kernels"}


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>flame demo</title>
<style>
:root {{ --ink: #222; --faint: #ddd; --paper: #fff; --soft: #f5f3f0; color-scheme: light dark; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e8e6e3; --faint: #3a3a3a; --paper: #1b1b1d; --soft: #26262a; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid var(--faint); text-align: left; vertical-align: top; }}
.figures td:not(:first-child), .figures th:not(:first-child) {{ text-align: right; }}
pre {{ background: var(--soft); padding: 1rem; overflow-x: auto; font-size: 13px; line-height: 1.4; }}
svg {{ width: 100%; height: auto; margin: 1rem 0; }}
summary {{ cursor: pointer; padding: .2rem 0; }}
</style>
</head>
<body>
<h1>flame demo</h1>
<p>Each model was trained twice from the same seed and over the same batches: eagerly, and with its whole training step
(forward, loss, backward, optimizer) in one function under <code>flame.compile</code>. Where the eager run is slow, it takes
fewer steps than the compiled one.</p>
{summary}
{plots}
<h2>What was learned</h2>
{results}
<h2>The kernels</h2>
{kernels}
<h2>The machine</h2>
{facts}
</body>
</html>
"""


def page(outcomes: Sequence[Outcome], drawn: dict[str, str], facts: Sequence[tuple[str, str]]) -> str:
    """The report as one HTML text that needs no other file."""
    header, body = rows(outcomes)
    results, kernels = [], []
    for o in outcomes:
        results.append(f"<h3>{escape(o.task.title)}</h3>")
        for run in (o.eager, o.compiled):
            name = "compiled" if run.compiled else "eager"
            results.append(
                f"<p>{name}, after {len(run.losses)} steps, loss {run.losses[-1]:.4f}:</p><pre>{escape(run.result)}</pre>"
            )
        kernels.append(f"<h3>{escape(o.task.title)}: {len(o.compiled.kernels)} kernels</h3>")
        for kernel in o.compiled.kernels:
            kernels.append(
                f"<details><summary><code>{escape(kernel.name)}</code></summary><pre>{escape(triton_of(kernel))}</pre></details>"
            )
    return _PAGE.format(
        summary=_html_table([header, *body], "figures"),
        plots="\n".join(drawn.values()),
        results="\n".join(results),
        kernels="\n".join(kernels),
        facts=_html_table([("what", "found"), *facts]),
    )


def _html_table(lines: Sequence[Sequence[str]], style: str = "") -> str:
    cells = []
    for i, line in enumerate(lines):
        tag = "td" if i else "th"
        cells.append("<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in line) + "</tr>")
    return f'<table class="{style}">' + "\n".join(cells) + "</table>"
