"""What `explain` runs leaves everything as it was: methods' attributes, tapes, random streams, gradients."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

import flame
from flame.snapshot import Snapshot
from tests.test_explain import trained

# ---- state


class Trainer:
    """State in an object of the user's own."""

    def __init__(self) -> None:
        self.steps = 0
        self.history: list[float] = []
        self.best: dict[str, float] = {"loss": 1.0}
        self.tags = {"a"}
        self.array = np.zeros(3)
        self.weight = flame.ones(2, requires_grad=True)
        self.generator = flame.Generator().manual_seed(3)

    def step(self, scale: float = 2.0) -> Any:
        self.steps += 1
        self.history.append(self.steps)
        self.best["loss"] = 0.5
        self.best["more"] = 1.0
        self.tags.add("b")
        self.array += 1
        self.generator.offset += 4
        (self.weight * scale).sum().backward()
        with flame.no_grad():
            self.weight.sub_(self.weight.grad)
        return self.weight


_counter = 0


def test_what_a_method_changes_is_put_back() -> None:
    t = Trainer()
    weight, memory = t.weight, t.weight._array
    s = Snapshot(t.step)
    for _ in range(2):
        t.step()
        assert t.weight.tolist() == [-1, -1]
        s.restore()
        assert (t.steps, t.history, t.best, t.tags, t.array.tolist()) == (0, [], {"loss": 1.0}, {"a"}, [0, 0, 0])
        assert t.generator.offset == 0 and t.weight is weight and weight._array is memory
        assert t.weight.tolist() == [1, 1] and t.weight.grad is None and t.weight._version == 0


def test_a_tape_from_before_still_holds() -> None:
    w = flame.zeros(2, requires_grad=True)
    with flame.no_grad():
        w.add_(1)
    y = (w * w).sum()

    def f() -> None:
        with flame.no_grad():
            w.mul_(3)

    s = Snapshot(f)
    f()
    assert w._version == 2
    s.restore()
    y.backward()
    assert w._version == 1 and w.grad.tolist() == [2, 2]


def test_random_streams_are_put_back() -> None:
    draw_all = lambda: (random.random(), np.random.rand(), flame.rand(1).item())
    s = Snapshot(draw_all)
    first = draw_all()
    assert draw_all() != first
    s.restore()
    assert draw_all() == first


def test_gradients_and_variables_are_put_back() -> None:
    total, w = 0, flame.ones(2, requires_grad=True)
    w.grad = flame.full((2,), 5.0)

    def f() -> None:
        nonlocal total
        global _counter
        total += 1
        _counter += 1
        w.grad.add_(1)
        w.grad = w.grad * 2
        w.data = flame.zeros(2)

    s = Snapshot(f)
    f()
    assert total == 1 and _counter == 1 and s.tensors()["w.grad"].tolist() == [12, 12]
    s.restore()
    assert total == 0 and _counter == 0 and w.tolist() == [1, 1] and w.grad.tolist() == [5, 5]
    assert s.tensors().keys() == {"w", "w.grad"}


def test_state_is_known_by_names_of_modules() -> None:
    step, model, optimizer = trained()
    step(flame.randn(4, 6), flame.randint(0, 3, (4,)))
    names = Snapshot(step).tensors()
    assert {"model.0.weight", "model.0.weight.grad", "model.3.running_mean"} <= names.keys()
    assert sum("exp_avg_sq" in n for n in names) == len(list(model.parameters()))
