"""Programs around checkpointed stretches: what they compute, draw, write, and enter is the same compiled as eagerly."""

from __future__ import annotations

from typing import Any

import pytest

import flame
import flame.nn.functional as F
from flame import nn
from flame.utils.checkpoint import checkpoint, checkpoint_sequential
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor


def offset() -> int:
    return flame.default_generator.offset


@program
def backward_outside(wrap):
    w = tensor(3, 3, seed=1, grad=True)
    f = wrap(lambda x: checkpoint(lambda u: (u @ w).tanh(), x * w.sum(), use_reentrant=False).sum())
    return drive(f, batches(4, 3), w, after=lambda loss: loss.backward())


@program
def backward_inside(wrap):
    w = tensor(3, 3, seed=1, grad=True)

    @wrap
    def f(x):
        w.grad = None
        loss = checkpoint(lambda u, v: (u @ v).tanh(), x, w, use_reentrant=True).sum()
        loss.backward()
        return loss.detach()

    return drive(f, batches(4, 3), w)


@program
def draws_the_same_again(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(
        lambda x: checkpoint(lambda u: F.dropout(u * w, 0.5) * flame.rand(3), x, use_reentrant=False).sum() + flame.rand(1)
    )
    return drive(f, batches(4, 3), w, offset, after=lambda loss: loss.sum().backward())


@program
def in_each_other(wrap):
    w, v = tensor(3, 3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    def inner(u: Any) -> Any:
        return checkpoint(lambda t: (t * v).exp(), u @ w, use_reentrant=False)

    f = wrap(lambda x: checkpoint(inner, x, use_reentrant=False).mean())
    return drive(f, batches(4, 3), w, v, after=lambda loss: loss.backward())


@program
def one_layer_after_the_other(wrap):
    flame.manual_seed(3)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(4)))
    f = wrap(lambda x: checkpoint_sequential(net, 2, x, use_reentrant=False).sum())
    return drive(f, batches(4, 3, grad=True), *net.parameters(), after=lambda loss: loss.backward())


@program
def second_derivatives_through_it(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        (g,) = flame.autograd.grad(checkpoint(lambda u: (u * w).exp(), x, use_reentrant=False).sum(), w, create_graph=True)
        (g * g).sum().backward()
        return g.detach()

    return drive(f, batches(4, 3), w)


@program(native=False)
def contexts_of_its_own(wrap):
    """The first of the two is entered, whoever runs the stretch."""
    w = tensor(3, 3, seed=1, grad=True)

    def contexts() -> Any:
        return flame.autocast("cpu", dtype=flame.bfloat16), flame.autocast("cpu", dtype=flame.bfloat16)

    @wrap
    def f(x):
        y = checkpoint(lambda u: u @ w, x, use_reentrant=False, context_fn=contexts)
        return y.float().sum(), str(y.dtype)

    return drive(f, batches(4, 3), w, after=lambda r: r[0].backward())


@program(native=False)
def contexts_without_gradient(wrap):
    w = tensor(3, 3, seed=1)

    def contexts() -> Any:
        return flame.autocast("cpu", dtype=flame.bfloat16), flame.autocast("cpu", dtype=flame.bfloat16)

    @wrap
    def f(x):
        with flame.no_grad():
            return str(checkpoint(lambda u: u @ w, x, use_reentrant=False, context_fn=contexts).dtype)

    assert f(tensor(3, 3)) == "flame.bfloat16"
    return drive(f, batches(4, 3))


@program
def nested_arguments_and_results(wrap):
    w = tensor(3, seed=1, grad=True)

    def stretch(parts: Any, k: float, extra: Any = None) -> Any:
        return {"a": parts[0] * k * w, "b": [parts[1]["c"].exp(), k, extra]}

    @wrap
    def f(x):
        got = checkpoint(stretch, (x, {"c": x * 0.5}), 2.0, extra="text", use_reentrant=False)
        return got["a"].sum() + got["b"][0].sum(), got["b"][1:]

    return drive(f, batches(4, 3, grad=True), w, after=lambda r: r[0].backward())


@program
def hooks_and_breaks_inside_of_it(wrap):
    w = tensor(3, seed=1, grad=True)

    def stretch(u: Any) -> Any:
        y = u * w
        y.register_hook(lambda g: g * 2.0)
        return y * 2.0 if y.detach().sum().item() > 0 else y * 3.0

    f = wrap(lambda x: checkpoint(stretch, x, use_reentrant=False).sum())
    return drive(f, batches(4, 3), w, after=lambda loss: loss.backward())


@program
def what_it_reads_is_written_before_backward(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        u = x * 1.0
        y = checkpoint(lambda t: (t * w).exp(), u, use_reentrant=False)
        u.add_(1.0)
        return y.sum()

    return drive(f, batches(4, 3), w, after=lambda loss: loss.backward())


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
