"""One training run of a task, eager or compiled, with every step timed: `train(task, compiled=...)`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import flame
from flame import Tensor
from flame.demo.tasks import Task

#: steps at the start of a run, and after the first compiled one, that say nothing about its speed
WARM_UP = 3


@dataclass
class Run:
    """What one run did. `seconds[i]` is the time of step i, its loss read back included."""

    compiled: bool
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    #: the first step that ran as kernels; None: none did
    first_compiled: int | None = None
    kernels: list[Any] = field(default_factory=list)
    result: str = ""

    @property
    def step_seconds(self) -> float:
        """The median time of a step once the run is warm."""
        warm = WARM_UP + (self.first_compiled or 0)
        return statistics.median(self.seconds[warm:] or self.seconds[-1:])

    @property
    def seconds_to_first_compiled(self) -> float | None:
        """From the start of training to the end of the first step that ran as kernels."""
        return None if self.first_compiled is None else sum(self.seconds[: self.first_compiled + 1])


@dataclass(frozen=True)
class Outcome:
    """A task's two runs, from the same seed and over the same batches."""

    task: Task
    eager: Run
    compiled: Run

    @property
    def speedup(self) -> float:
        return self.eager.step_seconds / self.compiled.step_seconds

    @property
    def largest_loss_difference(self) -> float:
        """Over the steps that both runs took."""
        return max(abs(a - b) for a, b in zip(self.eager.losses, self.compiled.losses))


def train(
    task: Task,
    *,
    compiled: bool,
    device: str = "cpu",
    seed: int = 0,
    after_step: Callable[[Run], None] = lambda run: None,
) -> tuple[Run, Any]:
    """Train `task`'s model. Returns the run and the trained model; `after_step(run)` is told of each step."""
    flame.manual_seed(seed)
    model = task.model().to(device)
    optimizer = flame.optim.AdamW(model.parameters(), lr=task.learning_rate)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(model, x, y)
        loss.backward()
        optimizer.step()
        return loss

    take: Any = flame.compile(step) if compiled else step
    run = Run(compiled)
    for i in range(task.steps if compiled else task.eager_steps):
        x, y = (flame.tensor(a, device=device) for a in task.batch(i))
        start = perf_counter()
        loss = take(x, y).item()
        run.seconds.append(perf_counter() - start)
        run.losses.append(loss)
        if compiled and run.first_compiled is None and len(take.kernels) > 0:
            run.first_compiled = i
        after_step(run)
    if compiled:
        run.kernels = list(take.kernels)
    return run, model
