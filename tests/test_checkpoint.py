"""`flame.utils.checkpoint`: the same gradients, wherever they lead, with less kept; and what goes wrong."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
from flame.utils.checkpoint import CheckpointError, checkpoint, checkpoint_sequential


def model() -> nn.Module:
    flame.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2))


def both(run: Any, leaves: Any) -> list[list[np.ndarray]]:
    """Results and gradients of `run(call)` without and with checkpoints."""
    out = []
    for call in (lambda f, *a, **k: f(*a, **k), checkpoint):
        flame.manual_seed(7)
        ts = leaves()
        y = run(call, *ts)
        after = flame.rand(1)  # the stream is where it would have been
        y.square().sum().backward()
        out.append([y.detach().numpy(), after.numpy(), *(t.grad.numpy() for t in ts if t.grad is not None)])
    assert len(out[0]) == len(out[1]) > 2
    return out


def agree(pair: list[list[np.ndarray]]) -> None:
    for a, b in zip(*pair, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_are_those_without_it() -> None:
    m = model()

    def leaves() -> list:
        m.zero_grad()
        return [flame.ones(5, 3, requires_grad=True), *m.parameters()]

    agree(both(lambda call, x, *ps: call(m, x), leaves))
    agree(both(lambda call, x, *ps: call(m[3:], call(m[:3], x)), leaves))
    agree(both(lambda call, x, *ps: call(m, x.detach()), leaves))  # parameters alone want gradients
    agree(both(lambda call, x, *ps: call(lambda: m(x)), leaves))  # what stands around the function, too


def test_arguments_and_results_may_be_nested() -> None:
    def leaves() -> list:
        return [flame.ones(3, requires_grad=True), flame.full((3,), 2.0, requires_grad=True)]

    def f(pair: tuple, *, more: dict) -> Any:
        a, (b, n) = pair
        return {"y": [a * b * n, more["k"].detach() + 1], "n": n, "i": flame.arange(3)}

    def run(call: Any, a: Any, b: Any) -> Any:
        h = a.exp()
        got = call(f, (h, (b, 3)), more={"k": b * 2})
        assert got["n"] == 3 and not got["y"][1].requires_grad and got["i"].dtype is flame.int64
        return got["y"][0] + got["y"][1] + h

    agree(both(run, leaves))

    def around(call: Any, a: Any, b: Any) -> Any:
        h = a.exp() * b
        return call(lambda x: x * h.sin(), b) + h  # a tensor with history that is no argument

    for x, y in zip(*both(around, leaves), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_gradients_of_gradients_go_through() -> None:
    x = flame.tensor([0.3, -0.7], requires_grad=True)
    out = []
    for call in (lambda f, a: f(a), checkpoint):
        (g,) = flame.autograd.grad(call(lambda a: a.sin() * a, x).sum(), x, create_graph=True)
        (h,) = flame.autograd.grad(g.square().sum(), x)
        out.append([g.detach().numpy(), h.numpy()])
    for a, b in zip(*out, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_what_is_between_is_not_kept() -> None:
    alive: list[Any] = []

    def f(x: flame.Tensor) -> flame.Tensor:
        h = (x * 2).exp()
        alive.append(weakref.ref(h))
        return h.sin()

    x = flame.ones(4, requires_grad=True)
    y = checkpoint(f, x)
    gc.collect()
    assert alive[0]() is None and len(alive) == 1
    y.sum().backward()
    assert len(alive) == 2
    np.testing.assert_allclose(x.grad.numpy(), np.cos(np.exp(2.0)) * np.exp(2.0) * 2, rtol=1e-5)
    with flame.no_grad():
        assert not checkpoint(f, x).requires_grad
    assert not checkpoint(lambda a: a + 1, flame.ones(2)).requires_grad


def test_a_function_that_changes_its_mind_is_noticed() -> None:
    sizes = iter([3, 4, 3, 4])
    f = lambda x: x[: next(sizes)] * 2
    x = flame.ones(5, requires_grad=True)
    with pytest.raises(CheckpointError, match="other results"):
        checkpoint(f, x).sum().backward()
    y = x * 1.0
    z = checkpoint(lambda a: a * a, y)
    y.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        z.sum().backward()
    with pytest.raises(ValueError, match="determinism_check"):
        checkpoint(f, x, determinism_check="x")


def test_contexts_are_entered_around_both_runs() -> None:
    log = []

    @contextmanager
    def noted(name: str) -> Any:
        log.append(name)
        yield

    x = flame.ones(2, requires_grad=True)
    y = checkpoint(lambda a: a * a, x, context_fn=lambda: (noted("first"), noted("again")), use_reentrant=False)
    assert log == ["first"]
    y.sum().backward()
    assert log == ["first", "again"]


def test_a_sequence_in_stretches() -> None:
    m, x = model().eval(), flame.randn(5, 3)
    want = m(x)
    want.sum().backward()
    gradients = [p.grad.numpy().copy() for p in m.parameters()]
    for segments in (1, 2, 3, 6):
        m.zero_grad()
        y = checkpoint_sequential(m, segments, x)
        np.testing.assert_array_equal(y.detach().numpy(), want.detach().numpy())
        y.sum().backward()
        for p, g in zip(m.parameters(), gradients, strict=True):
            np.testing.assert_array_equal(p.grad.numpy(), g)
    for segments in (0, 7):
        with pytest.raises(ValueError, match="segments"):
            checkpoint_sequential(m, segments, x)


def test_compiled_it_is_a_call() -> None:
    m, x = model().eval(), flame.randn(5, 3)

    @flame.compile(fullgraph=True)
    def step(x: flame.Tensor) -> flame.Tensor:
        y = checkpoint(m, x, use_reentrant=False).square().sum()
        y.backward()
        return y

    gradients = []
    for _ in range(3):
        m.zero_grad()
        step(x)
        gradients.append([p.grad.numpy().copy() for p in m.parameters()])
    for a, b in zip(gradients[0], gradients[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
