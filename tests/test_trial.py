"""Never slower: what is slower compiled is handed to eager, by a clock that the test turns; and what is not judged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import flame
from flame.autograd.engine import clocks
from flame.capture import trial
from flame.capture.trial import APART, CLEAR, FIRST, LATER, PAIRS, REST, Passes, Trial
from flame.knobs import knobs
from flame.primitive import force
from flame.runtime.executable import Executable


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


def test_what_is_faster_compiled_runs_eagerly_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 1.0, 2.0)
    f = flame.compile(clock.step)
    calls(f, 200, flame.ones(3))
    assert clock.ran.count("eager") == 2 * CLEAR and f._trial is None and not codes(f)


def test_delayed_eager_calls_do_not_settle_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first eager calls take ten times as long, by something else on the machine; compiled is slower nevertheless."""
    clock = Clock(monkeypatch, 3.0, 20.0)
    f = flame.compile(clock.step)
    while clock.ran.count("eager") < CLEAR:
        calls(f, 1, flame.ones(3))
    clock.eager = 2.0
    calls(f, 3 * LATER * FIRST, flame.ones(3))
    assert codes(f) == ["FL3006"]


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
    calls(f, 2 * LATER * FIRST + 4 * PAIRS, flame.ones(3))
    assert not codes(f) and f._trial is None


def test_a_tenth_is_not_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 2.1, 2.0)
    f = flame.compile(clock.step)
    calls(f, 200, flame.ones(3))
    assert not codes(f) and clock.ran.count("eager") == 2 * PAIRS


def test_calls_on_other_arguments_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large calls are slow, compiled or not: a compiled large one beside an eager small one says nothing."""
    clock = Clock(monkeypatch, 1.0, 1.0)

    def step(x: Any) -> Any:
        clock.now += 10.0 * x.shape[0]
        return clock.step(x)

    f = flame.compile(step, dynamic=False)
    for k in range(8 * FIRST):
        calls(f, 1, flame.ones(3 - k % 2))
    assert not codes(f) and clock.ran.count("eager") == APART, "it is not tried for good, either"


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


class BackwardClock(Clock):
    """And seconds that the backward of a compiled and of an eager call take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, forward: tuple[float, float], backward: tuple[float, float]):
        super().__init__(monkeypatch, *forward)
        self.backward = backward

    def epoch(self, f: Any, n: int, passes: int = 1) -> list[float]:
        """Gradients of n calls, each with so many passes (none: the next one has them)."""
        got: list[float] = []
        for k in range(n):
            x = flame.tensor([0.5, -1.0, k * 0.25], requires_grad=True)
            loss = (f(x) * x).sum()
            x.register_hook(self.passed)
            for _ in range(passes):
                loss.backward(retain_graph=True)
            got += [] if x.grad is None else x.grad.tolist()
        return got

    def passed(self, g: Any) -> None:
        self.now += self.backward[self.ran[-1] == "eager"]


@pytest.mark.parametrize("backward, slower", [((5.0, 1.0), True), ((1.0, 1.0), False), ((1.0, 5.0), False)])
def test_backward_is_part_of_what_a_call_takes(
    backward: tuple[float, float], slower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = BackwardClock(monkeypatch, (1.0, 1.0), backward)
    f = flame.compile(clock.step)
    got = clock.epoch(f, 5 * FIRST)
    assert codes(f) == ["FL3006"] * slower
    assert clock.ran[-5:] == ["eager" if slower else "compiled"] * 5
    want = BackwardClock(monkeypatch, (1.0, 1.0), backward)
    assert got == want.epoch(want.step, 5 * FIRST)


def test_a_slower_forward_that_backward_makes_good_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = BackwardClock(monkeypatch, (3.0, 1.0), (1.0, 9.0))
    f = flame.compile(clock.step)
    clock.epoch(f, 20 * FIRST)
    assert not codes(f) and f._trial is None and clock.ran.count("eager") == 2 * CLEAR


@pytest.mark.parametrize("passes, judged", [(0, False), (1, True), (3, True)])
def test_calls_whose_gradients_nobody_took_are_not_judged(passes: int, judged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = BackwardClock(monkeypatch, (3.0, 2.0), (3.0, 2.0))
    f = flame.compile(clock.step)
    clock.epoch(f, 5 * FIRST, passes)
    assert codes(f) == ["FL3006"] * judged and ("eager" in clock.ran) is judged


def test_a_call_is_no_clock_of_other_threads_or_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = BackwardClock(monkeypatch, (3.0, 2.0), (3.0, 2.0))
    f = flame.compile(clock.step)
    clock.epoch(f, FIRST, 0)
    assert len(clocks) == 1 and f._trial is not None
    other = threading.Thread(target=clock.epoch, args=(lambda x: x * 2, 3))
    other.start()
    other.join()
    (waiting,) = clocks
    assert isinstance(waiting, Passes) and waiting.count == 0
    clock.epoch(lambda x: x * 2, Passes.MOST)
    assert not clocks, "it still listens"
    del waiting


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_flap(seed: int) -> None:
    """One call in five is delayed, by up to ten times: what is as fast stays compiled, what takes twice as long becomes eager,
    and neither comes back and forth."""
    for compiled in (0.4, 1.0, 2.0):
        r = np.random.default_rng(seed)
        t, changes, eager = Trial(), 0, 0
        for _ in range(4000):
            turn = "" if t.done else t.turn()
            eager += turn == "eager" or (not turn and t.eager)
            if turn:
                delayed = r.uniform(1, 10) if r.random() < 0.2 else r.uniform(0.95, 1.05)
                changes += t.took("kind", delayed * (compiled if turn == "compiled" else 1.0))
        assert changes <= 3 * (compiled == 2), (compiled, changes)
        assert eager > 2000 if compiled == 2 else eager < 60, (compiled, eager)


def test_a_slow_kernel_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program takes three times as long as an eager call. Values, gradients, random numbers and side effects go on as if
    it did not."""
    clock = Clock(monkeypatch, 0.0, 1.0)

    def train(compiled: bool) -> tuple[list, Any]:
        flame.manual_seed(5)
        net = flame.nn.Sequential(flame.nn.Linear(6, 8), flame.nn.Dropout(0.25), flame.nn.Linear(8, 1))
        seen: list[int] = []

        def loss(x: Any) -> Any:
            seen.append(len(seen))
            clock.step(1.0)
            return net(x).square().mean() + flame.rand(1).sum()

        f, out = flame.compile(loss) if compiled else loss, []
        for _ in range(8 * FIRST):
            net.zero_grad()
            y = f(flame.randn(7, 6))
            y.backward()
            out += [y.item(), *(p.grad.clone().numpy() for p in net.parameters())]
        assert seen == list(range(8 * FIRST))
        return out, f

    whole, ran = Executable._set_up, []

    def set_up(self: Any, *given: Any) -> None:
        whole(self, *given)
        enter = self._enter
        assert self._only is not None and enter is not None
        self._answer, self._enter = None, lambda *arrays: slow(enter, arrays)

    def slow(enter: Any, arrays: tuple) -> Any:
        clock.now += 3.0
        ran.append(len(arrays))
        return enter(*arrays)

    want, _ = train(False)
    monkeypatch.setattr(Executable, "_set_up", set_up)
    got, f = train(True)
    assert ran and codes(f) == ["FL3006"] and "FL3006" in str(f.stats)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


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
    round_ = ["compiled", "eager"] * CLEAR
    assert turns == [""] * (FIRST - 1) + round_ + [""] * (LATER * FIRST - FIRST - 1) + round_ and t.ratio == 0.25


def differentiate_twice(f: Any, w: Any, x: Any) -> list[float]:
    (g,) = flame.autograd.grad(f(x).sum(), w, create_graph=True)
    return flame.autograd.grad((g * g).sum(), w)[0].tolist()


def test_what_is_differentiated_twice_outside_runs_eagerly_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "clock", lambda: 0.0)
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
