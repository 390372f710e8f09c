"""Never slower: what is slower compiled is handed to eager, by a clock that the test turns; and what is not judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import flame
from flame.capture import trial
from flame.capture.trial import FIRST, PAIRS, REST, Trial
from flame.knobs import knobs
from flame.primitive import force


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "never_slower", True)


class Clock:
    """Seconds that a compiled and an eager call take; which of the two ran is told by the interpreter in force."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, compiled: float, eager: float):
        self.now, self.compiled, self.eager = 0.0, compiled, eager
        self.ran: list[str] = []
        monkeypatch.setattr(trial, "clock", lambda: self.now)

    def step(self, x: Any) -> Any:
        followed = force.interpreter is not None
        self.ran.append("compiled" if followed else "eager")
        self.now += self.compiled if followed else self.eager
        return x * 2 + 1


def calls(f: Any, n: int, x: Any) -> None:
    want = np.asarray(x.numpy()) * 2 + 1
    for _ in range(n):
        np.testing.assert_array_equal(f(x).numpy(), want)


def codes(f: Any) -> list[str]:
    return [reason[:6] for _, reason in f.stats.fallbacks]


def test_what_is_faster_compiled_runs_eagerly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 1.0, 2.0)
    f = flame.compile(clock.step)
    calls(f, 200, flame.ones(3))
    assert clock.ran.count("eager") == 1 and f._trial is None and not codes(f)


def test_what_is_slower_runs_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 3.0, 2.0)
    f = flame.compile(clock.step)
    calls(f, 4 * FIRST, flame.ones(3))
    assert codes(f) == ["FL3006"] and "1.50 times" in str(f.stats)
    before = len(clock.ran)
    calls(f, 20, flame.ones(3))
    assert set(clock.ran[before:]) == {"eager"}
    # it is measured again at the doubling of its calls; where it wins, it is given back
    clock.compiled = 1.0
    calls(f, 8 * FIRST, flame.ones(3))
    assert codes(f) == ["FL3006", "FL3007"]
    before = len(clock.ran)
    calls(f, 8, flame.ones(3))
    assert set(clock.ran[before:]) == {"compiled"}


def test_one_lost_round_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 3.0, 2.0)
    f = flame.compile(clock.step)
    calls(f, FIRST + 2 * PAIRS, flame.ones(3))
    assert f._trial is not None and f._trial.ratio == 1.5 and not f._trial.eager
    clock.compiled = 1.9  # about as fast
    calls(f, 6 * FIRST, flame.ones(3))
    assert not codes(f) and f._trial is None


def test_a_tenth_is_not_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 2.1, 2.0)
    f = flame.compile(clock.step)
    calls(f, 100, flame.ones(3))
    assert not codes(f) and clock.ran.count("eager") == PAIRS


def test_calls_on_other_arguments_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large calls are slow, compiled or not: a compiled large one beside an eager small one says nothing."""
    clock = Clock(monkeypatch, 1.0, 1.0)

    def step(x: Any) -> Any:
        clock.now += 10.0 * x.shape[0]
        return clock.step(x)

    f = flame.compile(step, dynamic=False)
    for k in range(8 * FIRST):
        calls(f, 1, flame.ones(3 - k % 2))
    assert not codes(f)


@pytest.mark.parametrize(
    "how", [{"fullgraph": True}, {"mode": "replay"}, {"backend": "llvm"}, {"options": {"never_slower": False}}]
)
def test_what_is_not_judged(how: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 3.0, 2.0)
    f = flame.compile(clock.step, **how)
    assert f._trial is None
    calls(f, 3, flame.ones(3))
    with pytest.raises(ValueError, match="never_slower=1: expected True or False"):
        flame.compile(clock.step, options={"never_slower": 1})


def test_results_with_gradients_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 3.0, 2.0)
    f = flame.compile(clock.step)
    for _ in range(40):
        f(flame.ones(3, requires_grad=True)).sum().backward()
    assert f._trial is None and not codes(f) and "eager" not in clock.ran


def test_a_training_step_is_the_same_whoever_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side effects and random numbers go on where the other left them."""

    def train(compiled: bool) -> Iterator[Any]:
        flame.manual_seed(3)
        net = flame.nn.Sequential(flame.nn.Linear(5, 4), flame.nn.Dropout(0.5), flame.nn.Linear(4, 1))
        opt = flame.optim.Adam(net.parameters(), lr=0.1)
        x = flame.randn(6, 5)

        def step() -> Any:
            opt.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            opt.step()
            clock.step(x.detach())
            return loss.detach()

        f = flame.compile(step) if compiled else step
        for _ in range(5 * FIRST):
            yield f().item()
        if compiled:
            assert codes(f) == ["FL3006"]
        yield from (p.detach().numpy() for p in net.parameters())

    clock = Clock(monkeypatch, 3.0, 2.0)
    for got, want in zip(list(train(True)), list(train(False)), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-6)


def test_an_error_in_a_measured_call_leaves_the_trial_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 3.0, 2.0)
    fails = [False]

    def step(x: Any) -> Any:
        if fails[0]:
            raise KeyError("mine")
        return clock.step(x)

    f = flame.compile(step)
    for k in range(6 * FIRST):
        fails[0] = k % 7 == 3
        if fails[0]:
            with pytest.raises(KeyError, match="mine"):
                f(flame.ones(3))
        else:
            calls(f, 1, flame.ones(3))
    assert codes(f) == ["FL3006"]


def test_the_state_machine_ends_at_the_first_clear_win() -> None:
    t = Trial()
    turns = []
    while not t.done:
        turns.append(t.turn())
        if turns[-1]:
            t.took("kind", 1.0 if turns[-1] == "compiled" else 4.0)
    assert turns == [""] * (FIRST - 1) + ["compiled", "eager"] and t.ratio == 0.25


def differentiate_twice(f: Any, w: Any, x: Any) -> list[float]:
    (g,) = flame.autograd.grad(f(x).sum(), w, create_graph=True)
    return flame.autograd.grad((g * g).sum(), w)[0].tolist()


def test_what_is_differentiated_twice_outside_runs_eagerly_for_a_while() -> None:
    w, x = flame.tensor([0.5, -0.25, 1.0], requires_grad=True), flame.tensor([1.0, 2.0, 3.0])

    def body(v: Any) -> Any:
        return (w * v).tanh() * w

    f, want = flame.compile(body), differentiate_twice(body, w, x)
    for _ in range(5 + REST):
        np.testing.assert_allclose(differentiate_twice(f, w, x), want, rtol=1e-5)
    assert "FL3008" in str(f.stats) and f.stats.calls == 5  # one recorded, three followed, one after the rest
    for _ in range(10):
        np.testing.assert_allclose(differentiate_twice(f, w, x), want, rtol=1e-5)
    assert f.stats.calls == 5, "the second rest is longer than the first"
    for _ in range(4 * REST):
        f(x).sum().backward()
    assert f.stats.calls > 5 + REST, "it was not given back to its kernels"


@pytest.mark.parametrize("how", [{"fullgraph": True}, {"backend": "llvm"}, {"options": {"never_slower": False}}])
def test_second_derivatives_hand_over_only_what_is_judged(how: dict) -> None:
    w, x = flame.tensor([0.5, -0.25, 1.0], requires_grad=True), flame.tensor([1.0, 2.0, 3.0])
    f = flame.compile(lambda v: (w * v).tanh(), **how)
    for _ in range(8):
        differentiate_twice(f, w, x)
    assert f.stats.calls == 8 and "FL3008" not in str(f.stats)


def test_one_call_in_three_is_not_handed_over() -> None:
    w, x = flame.tensor([0.5, -0.25, 1.0], requires_grad=True), flame.tensor([1.0, 2.0, 3.0])
    f = flame.compile(lambda v: (w * v).tanh())
    for _ in range(6):
        differentiate_twice(f, w, x)
        f(x).sum().backward()
        f(x)
    assert f.stats.calls == 18 and "FL3008" not in str(f.stats)
