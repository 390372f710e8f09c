"""What calls of a compiled function take of memory where their path ends early: no more than the same operations take eagerly."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

import flame
from flame import nn
from flame.knobs import knobs


def peaks(call: Callable[[], Any], calls: int) -> list[int]:
    """The most bytes alive in each call, beyond what was alive before it."""
    found = []
    tracemalloc.start()
    try:
        for _ in range(calls):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            call()
            found.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return found


def training_step() -> Callable[[], Any]:
    flame.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(10) for m in (nn.Linear(64, 64), nn.Tanh(), nn.LayerNorm(64))))
    optimizer = flame.optim.AdamW(model.parameters(), lr=1e-3)
    x = flame.randn(512, 64)

    def step() -> Any:
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


def forward_that_ends_late() -> Callable[[], Any]:
    flame.manual_seed(0)
    x, calls = flame.randn(512, 64), []

    def step() -> Any:
        calls.append(0)
        y = x
        with flame.no_grad():
            for _ in range(30):
                y = (y * 1.01).tanh()
            return y.sin() if len(calls) % 2 else y.cos()

    return step


@pytest.mark.parametrize("program", [training_step, forward_that_ends_late])
def test_leaving_a_path_takes_no_more_than_eager(program: Callable[[], Callable], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "eager_kernels", False)  # (their composites keep less than the operations that are recorded)
    eager = max(peaks(program(), 3))
    compiled = peaks(flame.compile(program()), 2)  # it records, and leaves the recorded path late
    assert max(compiled) <= 1.3 * eager + 300_000
