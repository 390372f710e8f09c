"""A parameter is given data of another dtype or shape while graphs of its old data are alive."""

from __future__ import annotations

from typing import Any

import pytest

import flame
from flame.autograd import grad
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor

# ---- a parameter is given data of another dtype or shape while graphs of its old data are alive


def _two_losses(wrap, new, ask):
    """What is computed before and after `w.data = new(w)`, differentiated in one pass by `ask`."""
    w = tensor(3, seed=1, grad=True)
    inner = w * 1.0
    f = wrap(lambda x: (w * x).sum() + (inner * inner).sum())

    def g(x):
        w.grad = None
        w.data = w.data.float()[:3] * 1.0
        first = f(x)
        w.data = new(w)
        second = f(x[: w.shape[0]])
        return ask(first, second, w), str(w.dtype)

    return drive(g, batches(3), w)


def _summed(first, second, w):
    (first + second).backward(retain_graph=True)
    return w.grad


@program
def data_of_another_dtype_between_two_losses(wrap):
    return _two_losses(wrap, lambda w: w.detach().double() * 2.0, _summed)


@program
def data_of_another_dtype_and_hooks_that_are_taken_away(wrap):
    heard = []

    def ask(first, second, w):
        heard.clear()
        with w.register_hook(lambda g: heard.append(str(g.dtype))):
            third = (w * 3).sum()
            w.data = w.data.float()
            _summed(third, (w * 2).sum(), w)
        (third + second).backward(retain_graph=True)
        return w.grad, list(heard)

    return _two_losses(wrap, lambda w: w.detach().double(), ask)


@program
def data_of_another_dtype_and_the_gradient_of_what_it_is_now(wrap):
    return _two_losses(wrap, lambda w: w.detach().double(), lambda p, q, w: grad(p + q, w, retain_graph=True))


@program
def data_of_another_shape_between_two_losses(wrap):
    return _two_losses(wrap, lambda w: w.detach()[:1] * 1.0, _summed)


@program
def data_of_a_result_of_another_dtype(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = w * x
        y.data = y.detach().double() * 2.0
        return (y * y).sum(), y

    return drive(f, batches(3), w, after=lambda got: got[0].backward())


@program
def data_that_can_not_be_differentiated(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        w.data = x.int()
        return w * x

    return drive(f, batches(3), w)


@pytest.mark.oracle
def test_data_of_another_dtype_is_pytorchs(torch: Any) -> None:
    """`.data` assigned between forward passes that one backward pass goes through: gradients, their dtypes, and what hooks hear."""

    def programs(m: Any) -> list[Any]:
        def losses(new: Any) -> tuple[Any, Any, Any]:
            w = m.tensor([1.0, 2.0, 3.0], requires_grad=True)
            first = (w * m.tensor([1.0, 1.0, 2.0])).sum()
            if first.requires_grad and new is not None:
                w.data = m.tensor([1.0, 2.0, 4.0], dtype=getattr(m, new))
            return w, first, (w * 3).sum()

        def both(new: str) -> Any:
            w, first, second = losses(new)
            (first + second).backward()
            return w.grad

        def in_turn(new: str, last: bool) -> Any:
            w, first, second = losses(new)
            for loss in (second, first) if last else (first, second):
                loss.backward()
            return w.grad

        def heard(new: str) -> Any:
            w, first, second = losses(None)
            got: list = []
            w.register_hook(lambda g: got.append(g))
            w.data = w.data.to(getattr(m, new))
            (first + (w * 5).sum() + second).backward()
            return sorted((str(g.dtype).split(".")[-1], g.tolist()) for g in [*got, w.grad])

        def result(new: str) -> Any:
            w = m.tensor([1.0, 2.0, 3.0], requires_grad=True)
            y = w * 2
            y.data = m.tensor([1.0, 2.0, 4.0], dtype=getattr(m, new))
            (y * y).sum().backward()
            return w.grad

        def back_again() -> Any:
            w, first, second = losses("float64")
            w.data = w.data.float()
            (first + second + (w * 5).sum()).backward()
            return w.grad

        def of_now(new: str) -> Any:
            w, first, second = losses(new)
            return m.autograd.grad(first + second, w)[0]

        def integers() -> Any:
            w, _, _ = losses(None)
            with pytest.raises(RuntimeError, match="data set to a tensor that requires gradients must be floating point"):
                w.data = m.tensor([1, 2, 3])
            return w

        kinds = ("float64", "float16", "bfloat16", "float32")
        found = [f(kind) for kind in kinds for f in (both, heard, result, of_now)]
        found += [in_turn(kind, last) for kind in kinds for last in (False, True)] + [back_again(), integers()]
        return [(str(g.dtype).split(".")[-1], g.tolist()) if hasattr(g, "dtype") else g for g in found]

    assert programs(flame) == programs(torch)


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
