"""What a compiled function tells of itself: what differed, old and new, at which line, and why it was compiled."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import flame
from flame.capture.trace import MOST_REASONS, Statistics
from flame.knobs import knobs

HERE = __file__


def diverged(f: Any, first: tuple, second: tuple, **options: Any) -> str:
    """What is said where a second call leaves the path of the first."""
    compiled = flame.compile(f, **options)
    compiled(*first), compiled(*first), compiled(*second)
    [(source, reason)] = compiled.stats.diverged
    assert re.fullmatch(rf"{re.escape(HERE)}:\d+", source)
    return reason


def ones(*shape: int, **how: Any) -> Any:
    return flame.ones(*shape, **how)


@pytest.mark.parametrize(
    "f, first, second, said",
    [
        (lambda x, k: x * k, (ones(3), 2.0), (ones(3), 3.5), "operand 2 was 2.0 and is 3.5"),
        (lambda x, k: x * k, (ones(3), 0.0), (ones(3), -0.0), "operand 2 was 0.0 and is -0.0"),
        (lambda x, k: x + k, (ones(3), 2), (ones(3), 2.0), "operand 2 was 2 and is 2.0"),
        (lambda x, d: x.sum(d), (ones(3, 3), 0), (ones(3, 3), 1), "dim was (0,) and is (1,)"),
        (lambda x, keep: x.sum(0, keepdim=keep), (ones(3), False), (ones(3), True), "keepdim was False and is True"),
        (
            lambda x, y, swap: y - x * 2 if swap else x * 2 - y,
            (ones(3), ones(3), False),
            (ones(3), ones(3), True),
            "operand 1 was the",
        ),
    ],
)
def test_other_operands_are_named_old_and_new(f: Any, first: tuple, second: tuple, said: str) -> None:
    reason = diverged(f, first, second, dynamic=False)
    assert reason.startswith("FL2002") and said in reason


SHARED = np.ones((3, 3), np.float32)
LEAF = flame.ones(3, 3, requires_grad=True)


@pytest.mark.parametrize(
    "first, second, now, was",
    [
        (ones(3, 3), ones(4, 3), "a tensor of float32[4, 3] is used", "one of float32[3, 3] was recorded"),
        (ones(3, 3), ones(3, 3).double(), "float64[3, 3]", "float32[3, 3]"),
        (ones(3, 3), ones(3, 3).t(), "with strides of (4, 12) bytes", "with strides of (12, 4) bytes"),
        (ones(3, 3), ones(3, 3, requires_grad=True), "that requires a gradient", "that requires none"),
        (
            ones(3, 3, requires_grad=True),
            ones(3, 3, requires_grad=True) * 1,
            "that is the result of an operation",
            "that is a leaf",
        ),
        (ones(3, 3), flame.from_numpy(SHARED), "whose memory NumPy shares", "whose memory is its own"),
    ],
)
def test_another_tensor_is_described_as_far_as_it_differs(first: Any, second: Any, now: str, was: str) -> None:
    reason = diverged(lambda x: x * 2, (first,), (second,), dynamic=False)
    assert reason.startswith("FL2003") and now in reason and was in reason
    assert reason.index(now) < reason.index(was)


def test_the_same_tensor_under_two_names() -> None:
    x = ones(3)
    reason = diverged(lambda a, b: a.detach() + b, (ones(3), ones(3)), (x, x.detach()))
    assert "came before under another name" in reason and "that came once" in reason


def test_gradient_mode_is_named() -> None:
    f = flame.compile(lambda x: x * 2)
    x = ones(3)
    f(x), f(x)
    with flame.no_grad():
        f(x)
    [(_, reason)] = f.stats.diverged
    assert "gradient mode was on and is off" in reason


def test_compilations_come_with_their_causes() -> None:
    def f(x: Any, d: int, keep: bool) -> Any:
        y = x * 2
        if d == 9:
            y.sum().item()
        z = y.sum(min(d, 1))
        return (y, z) if keep else z

    compiled = flame.compile(f, dynamic=False)
    x = ones(3, 3)
    for args in ((0, False), (0, False), (0, False), (0, True), (0, True), (1, False), (1, False), (9, False), (9, False)):
        compiled(x, *args)
    causes = [reason for _, reason in compiled.stats.compilations]
    assert causes[0] == "the path was followed for the first time"
    assert any("more of what it computes is used afterwards (1 more)" in c for c in causes)
    assert any("dim was (0,) and is (1,)" in c for c in causes)
    assert any("after a break" in c for c in causes)
    assert sum(compiled.stats.compilations.values()) == compiled.stats.compiled
    text = str(compiled.stats)
    for line in ("9 calls", "breaks:", "2 x", "other paths:", "compilations:", "FL1001", f"{HERE}:"):
        assert line in text, text
    e = flame.explain(compiled, x, 1, True)
    assert [c.reason for c in e.compilations] == ["the path was followed for the first time"]
    assert "Compiled, in" in str(e) and "followed for the first time" in e.to_html()


def test_the_log_says_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(knobs, "log", frozenset(["recompiles", "breaks", "capture"]))
    f = flame.compile(lambda x, k: (x * k).sum().item())
    f(ones(3), 2.0), f(ones(3), 2.0), f(ones(3), 4.0), f(ones(3), 4.0)
    err = capsys.readouterr().err
    assert "operand 2 was 2.0 and is 4.0" in err and "FL1001" in err and "call 4" in err
    assert re.search(r"compiled in \d+\.\d\d s: the path was followed for the first time", err)


def test_counters_name_every_function_alive() -> None:
    def one_of_its_name(x: Any) -> Any:
        return x * 2

    f = flame.compile(one_of_its_name)
    f(ones(3))
    [stats] = flame.compiler.counters()["one_of_its_name"]
    assert stats is f.stats and stats.calls == 1
    del f, stats
    import gc

    gc.collect()
    assert "one_of_its_name" not in flame.compiler.counters()


def test_reasons_do_not_grow_without_end() -> None:
    s = Statistics()
    for i in range(3 * MOST_REASONS):
        s.count(s.diverged, "here.py:1", f"FL2002 operand 2 was {i} and is {i + 1}")
    assert len(s.diverged) == MOST_REASONS + 1 and sum(s.diverged.values()) == 3 * MOST_REASONS
