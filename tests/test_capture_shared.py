"""Memory that NumPy writes without a word after a path was left: what the tape saved there is what the user sees, as eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame


def result_itself(t: Any) -> tuple[Any, Any]:
    y = t.exp()
    return y, y


def base_of_a_saved_view(t: Any) -> tuple[Any, Any]:
    y = t * 1.0
    v = y[1:]
    return y, v * v


def view_of_a_result(t: Any) -> tuple[Any, Any]:
    y = t.exp()
    return y[:1], y


def saved_after_a_write(t: Any) -> tuple[Any, Any]:
    y = t * 1.0
    y.add_(0.5)
    return y, y * y


def part_written(t: Any) -> tuple[Any, Any]:
    y = t * 1.0
    v = y[1:]
    v.add_(0.5)
    return y, v * v


def transposed_part_written(t: Any) -> tuple[Any, Any]:
    y = t * 1.0
    v = y.t()
    v.mul_(0.5)
    return y, v * v


def written_before_it_was_kept(t: Any) -> tuple[Any, Any]:
    y = (t * 1.0).exp_()
    return y, y + 0.0


def whole_overwritten(t: Any) -> tuple[Any, Any]:
    z = t.exp()
    y = t.detach() * 1.0
    y.copy_(z.detach())
    return y, z


PROGRAMS: list[Callable[[Any], tuple[Any, Any]]] = [
    result_itself, base_of_a_saved_view, view_of_a_result, saved_after_a_write, part_written, transposed_part_written,
    written_before_it_was_kept, whole_overwritten,
]  # fmt: skip


def gradients(program: Callable, wrap: Callable[[Callable], Callable], leaves_at: int) -> list[np.ndarray]:
    """The gradients of six calls, of which some take another path at their end. NumPy writes between forward and backward."""
    w = flame.tensor([0.5, -0.25, 1.0], requires_grad=True)

    def body(x: Any, call: int) -> tuple[Any, Any]:
        shown, of = program(x * w)
        if call >= leaves_at:
            of = of * 2.0 + float(call)
        return shown, of.sum()

    f = wrap(body)
    found = []
    for call in range(6):
        w.grad = None
        shown, loss = f(flame.tensor(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)), call)
        shown.detach().numpy()[...] += 0.25
        loss.backward()
        found.append(w.grad.numpy().copy())
    return found


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("leaves_at", [2, 4])
def test_numpy_writes_what_the_tape_saved_after_a_path_was_left(program: Callable, leaves_at: int) -> None:
    want = gradients(program, lambda f: f, leaves_at)
    got = gradients(program, lambda f: flame.compile(f, backend="eager"), leaves_at)
    for call, (a, b) in enumerate(zip(want, got, strict=True)):
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=f"call {call}")


def test_an_outside_tensor_written_on_the_path_that_was_left() -> None:
    def run(wrap: Callable) -> list[np.ndarray]:
        w = flame.tensor([0.5, -0.25, 1.0], requires_grad=True)
        buffer = flame.ones(3)

        def body(call: int) -> Any:
            buffer.mul_(1.5)
            y = w * buffer
            return y.sum() if call < 2 else (y * 2.0).sum()

        f, found = wrap(body), []
        for call in range(5):
            w.grad = None
            loss = f(call)
            buffer.detach().numpy()[0] += 1.0
            loss.backward()
            found.append(w.grad.numpy().copy())
            buffer = flame.ones(3)
        return found

    for a, b in zip(run(lambda f: f), run(lambda f: flame.compile(f, backend="eager")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
