"""The same function on arguments of another layout, dtype or emptiness in each call: transposed, strided, expanded, reversed, of
one element, of none, of every dtype. Each is a path of its own, and two of them may not be taken for one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import flame
from tests.capture_programs import agree, cases, drive, program


def arguments() -> Iterator[Any]:
    b = flame.arange(24).float().reshape(4, 6) / 7 - 1
    square = b[:4, :4]
    yield from (square, square.t(), b[:, ::2][:, :3][:3], flame.ones(1, 4).expand(4, 4), square.contiguous(), b[:0, :4])
    yield from ((square * 3).int(), square.double(), square > 0, square.half(), square.bfloat16(), (square * 3).long().t())
    yield flame.from_numpy(np.asfortranarray(np.arange(16, dtype=np.float32).reshape(4, 4)))
    yield from (b.flip(0)[:, 1:5], b[1:3, 2:6], b[:1, :1])


def over(body: Any) -> Any:
    """A program that calls the function with all arguments, twice."""

    def program_of(wrap: Any) -> list:
        f = wrap(body)
        return drive(f, [*arguments(), *arguments()])

    program_of.__name__, program_of.__module__ = body.__name__, body.__module__
    return program(program_of)


@over
def elementwise(x):
    return x * 2 + 1, x.abs() if x.dtype is not flame.bool else ~x, x.t() * x if x.shape[0] == x.shape[1] else x


@over
def reductions(x):
    return x.sum(0), x.sum(1), x.float().mean(), x.amax(0) if x.numel() and x.dtype is not flame.bool else x


@over
def views(x):
    return x.t(), x[::2], x.reshape(-1), x.unsqueeze(1).expand(-1, 2, -1) * 1, x.flip(1), x[1:].t()[:2]


@over
def writes(x):
    y = x.clone()
    y[::2] = 1
    y.t()[:1] = 0
    y[:, -1:].add_(y[:, :1])
    return y


@over
def products(x):
    return x.float() @ x.float().t(), x.float().cumsum(0), x.float().softmax(-1)


@over
def choices(x):
    return flame.where(x > 0, x, 0), (x > 0) & (x < 1), x.float().clamp(-0.5, 0.5).round()


@over
def joined(x):
    return flame.cat([x, x.flip(0)]), flame.stack([x, x.t()], -1) if x.shape[0] == x.shape[1] else x, x.repeat(2, 1)


@over
def picked(x):
    return x[[0, -1]] if x.shape[0] else x, x[x > 0], x.gather(1, (x > 0).long()) if x.shape[1] > 1 else x


@program
def gradients_of_every_layout(wrap):
    f = wrap(lambda x, w: ((x * w).tanh() * x).sum() + x[1:].sum())
    leaves = [x.detach().requires_grad_() for x in [*arguments(), *arguments()] if x.dtype is flame.float32]
    given = [(x, flame.full((x.shape[1],), 0.5)) for x in leaves]
    return drive(f, given, leaves, after=lambda y: y.backward())


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Any, backend: str) -> None:
    agree(case, backend)
