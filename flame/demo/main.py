"""The command `flame demo`: train both tasks both ways, show what came of it, and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.text import Text

import flame
from flame.demo.report import kernel_to_show, table, triton_of, write_files
from flame.demo.tasks import Task, digits_task, text_task
from flame.demo.train import Outcome, Run, train
from flame.doctor import facts


def device_to_use(asked: str) -> str:
    """The device for `--device`: "auto" is a CUDA GPU where there is one, else the CPU."""
    if asked != "auto":
        return asked
    return "cuda" if flame.cuda.is_available() else "cpu"


def demo(*, quick: bool, out: Path, device: str = "auto", seed: int = 0, console: Console | None = None) -> list[Outcome]:
    """Run the whole demo and return its outcomes. Writes under `out`; prints to `console`."""
    console = console or Console()
    device = device_to_use(device)
    found = facts()
    tasks = [digits_task(quick, seed), text_task(quick, seed)]
    outcomes = [both_ways(task, device, seed, console) for task in tasks]
    show(outcomes, device, console)
    written = write_files(out, outcomes, found)
    for what, path in written.items():
        console.print(Text(f"{what:8} {path.resolve()}"), soft_wrap=True)
    return outcomes


def both_ways(task: Task, device: str, seed: int, console: Console) -> Outcome:
    """Train one task eagerly, then compiled, with a progress bar for each."""
    runs = []
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for compiled in (False, True):
            name = f"{task.name}, {'compiled' if compiled else 'eager'}"
            bar = progress.add_task(f"{name:16}", total=task.steps if compiled else task.eager_steps, figures="")

            def after_step(run: Run, bar=bar) -> None:
                recent = run.seconds[-10:]
                figures = f"loss {run.losses[-1]:.3f}, {len(recent) / sum(recent):6.1f} steps/s"
                progress.update(bar, completed=len(run.losses), figures=figures)

            run, model = train(task, compiled=compiled, device=device, seed=seed, after_step=after_step)
            run.result = task.result(model)
            runs.append(run)
    return Outcome(task, *runs)


def show(outcomes: Sequence[Outcome], device: str, console: Console) -> None:
    """Print one kernel, what was learned, and the table."""
    kernel = kernel_to_show(outcomes)
    if kernel is not None:
        console.rule(Text(f"one of the generated kernels: {kernel.name}"))
        source = triton_of(kernel).replace(f"{Path(flame.__file__).parent.parent}/", "")
        console.print(Syntax(source, "python", background_color="default", word_wrap=True))
    for o in outcomes:
        console.rule(Text(o.task.title))
        console.print(Text(o.compiled.result))
    console.rule()
    console.print(table(outcomes, f"eager and compiled, from the same seed, on {device}"))
