"""Gradients that stop or are looked at inside of a compiled segment: a result that other results of it depend on has a hook, keeps
its gradient, or is what a gradient is asked for; and memory that is written between forward and backward."""

from __future__ import annotations

from typing import Any

import pytest

import flame
from tests.capture_programs import agree, batches, cases, drive, program, tensor, watch


def two_results(wrap: Any, w: Any) -> Any:
    """h and a loss that depends on h, from one segment."""

    def f(x: Any) -> Any:
        h = (x * w).tanh()
        return h, (h * h).sum() + h.sum()

    return wrap(f)


@program
def gradient_with_respect_to_a_result(wrap):
    w = tensor(3, seed=1, grad=True)
    f = two_results(wrap, w)

    def g(x):
        h, loss = f(x)
        return flame.autograd.grad(loss, [h, w], retain_graph=True) + flame.autograd.grad(loss, h)

    return drive(g, batches(4, 3))


@program
def a_result_that_keeps_its_gradient(wrap):
    w = tensor(3, seed=1, grad=True)
    f = two_results(wrap, w)

    def g(x):
        h, loss = f(x)
        h.retain_grad()
        loss.backward()
        return h.grad

    return drive(g, batches(4, 3), w)


@program
def a_hook_on_a_result_changes_what_flows_on(wrap):
    w = tensor(3, seed=1, grad=True)
    f, seen = two_results(wrap, w), []

    def g(x):
        h, loss = f(x)
        h.register_hook(lambda g: seen.append(g.sum()) or g * 10)
        handle = h.register_hook(lambda g: g + 1)
        loss.backward(retain_graph=True)
        handle.remove()
        (loss + h.mean()).backward()

    return drive(g, batches(4, 3), w, seen)


@program
def backward_into_a_result_alone(wrap):
    w = tensor(3, seed=1, grad=True)
    f = two_results(wrap, w)

    def g(x):
        h, loss = f(x)
        loss.backward(inputs=[h])
        return h.grad, w.grad

    return drive(g, batches(4, 3))


@program
def second_derivative_from_a_result(wrap):
    w = tensor(3, seed=1, grad=True)
    f = two_results(wrap, w)

    def g(x):
        h, loss = f(x)
        (d,) = flame.autograd.grad(loss, h, create_graph=True)
        ((d * d).sum() + loss).backward()
        return d

    return drive(g, batches(4, 3), w)


@program
def a_chain_of_results(wrap):
    w = tensor(3, seed=1, grad=True)
    seen: list = []

    def f(x):
        a = x * w
        b = a.exp()
        c = b.sum(0)
        return a, b, c, c.sum()

    f = wrap(f)

    def g(x):
        a, b, c, loss = f(x)
        for i, t in enumerate((a, b, c)):
            t.register_hook(lambda g, i=i: seen.append((i, g.sum())))
        b.retain_grad()
        (loss + a.sum()).backward()
        return b.grad

    return drive(g, batches(4, 3), w, seen)


@program
def a_result_wanted_that_the_loss_does_not_reach(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    f = wrap(lambda x: (x * w, (x * v).sum()))

    def g(x):
        h, loss = f(x)
        return flame.autograd.grad(loss, [h, w, v], allow_unused=True)

    return drive(g, batches(4, 3))


@program
def inputs_written_before_a_second_derivative(wrap):
    w, b = tensor(3, seed=1, grad=True), tensor(3, seed=2)
    f = wrap(lambda x: ((x + b) * w).tanh().sum() + (b * 2).sum())

    def g(x):
        loss = f(x)
        b.mul_(0.5)
        (d,) = flame.autograd.grad(loss, w, create_graph=True)
        b.add_(1.0)
        (d * d).sum().backward()

    return drive(g, batches(4, 3), w, b)


@program
def a_saved_parameter_written_before_a_second_derivative(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: ((x * w) ** 3).sum())

    def g(x, when):
        loss = f(x)
        with flame.no_grad():
            if when == 0:
                w.mul_(0.5)
        (d,) = flame.autograd.grad(loss, w, create_graph=True)
        with flame.no_grad():
            if when == 1:
                w.mul_(0.5)
        (d * d).sum().backward()

    return drive(g, [(x, i % 3) for i, x in enumerate(batches(4, 3))], w)


@program
def a_view_of_an_input_is_saved(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x.t()[:, 1:] * w[0]).sum() + (x[1] * w).sum())

    def g(x, when):
        loss = f(x)
        if when:
            x[0].mul_(2.0)
        loss.backward()

    return drive(g, [(x, i % 2) for i, x in enumerate(batches(4, 3))], w)


@program
def parts_of_a_graph_are_freed_as_eagerly(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    def f(x):
        a = x * w
        return (a * a).sum(), (a * v).sum(), (x + v).sum()

    f = wrap(f)

    def g(x, order):
        r = f(x)
        found = [watch(lambda i=i: r[i].backward(retain_graph=order == 2)) for i in ((0, 1, 2), (2, 1, 0), (0, 0, 1))[order]]
        if any(found):  # how far a failing backward came is not part of the promise
            w.grad = v.grad = None
        return found

    return drive(g, [(x, i % 3) for i, x in enumerate(batches(4, 3))], w, v)


@program
def a_path_left_after_a_write_refuses_as_eagerly(wrap):
    w = tensor(3, seed=1, grad=True)

    def f(x, other):
        a = (x * w).exp()
        b = a * 2.0
        a.add_(1.0)
        return (b if other else b.tanh()), a

    f = wrap(f)

    def g(x, other):
        b, a = f(x, other)
        return watch(lambda: b.sum().backward()), watch(lambda: a.sum().backward())

    return drive(g, [(x, i in (3, 5)) for i, x in enumerate(batches(4, 3))], w)


@program
def a_detached_alias_comes_first(wrap):
    w = tensor(3, seed=1, grad=True)

    def f(x, other):
        t = x * w
        t.sum().item()
        y = t.detach() + 1.0
        t.add_(y)
        z = t * 1.0
        t.mul_(0.5)
        return (z + t).sum() * (2.0 if other else 1.0) + (t.sum() if other else 0.0)

    f = wrap(f)
    return drive(f, [(x, i in (3, 5)) for i, x in enumerate(batches(4, 3))], w, after=lambda loss: loss.backward())


@program
def what_was_overwritten_has_a_gradient_of_zero(wrap):
    w = tensor(3, seed=1, grad=True)

    def f(x, how):
        y = x * w
        match how:
            case 0:
                y[...] = 2.0
            case 1:
                y.copy_(x)
            case 2:
                y[1].zero_()
            case 3:
                y.fill_(0.5).mul_(w)
        return y.requires_grad, y.is_leaf, y.sum()

    f = wrap(f)
    given = [(x, i // 2 % 4) for i, x in enumerate(batches(4, 3, n=10))]
    return drive(f, given, w, after=lambda r: r[2].backward())


@program
def backward_into_inputs_inside(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    def f(x):
        h = x * w
        loss = (h * v).tanh().sum()
        loss.backward(inputs=[w, h], retain_graph=True)
        loss.backward(inputs=v)
        return h.grad, loss.detach()

    return drive(wrap(f), batches(4, 3), w, v)


@program
def backward_into_inputs_with_a_graph(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    def f(x):
        (x * w * w * v).sum().backward(inputs=[w], create_graph=True)
        penalty = (w.grad * w.grad).sum()
        w.grad = None
        penalty.backward()

    return drive(wrap(f), batches(4, 3), w, v)


@program
def a_hook_that_differentiates_the_same_segment(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: ((x * w).tanh(), (x * w * w).sum()))

    def g(x):
        h, loss = f(x)
        seen: list = []
        h.register_hook(lambda _: seen.append(flame.autograd.grad(loss, w, retain_graph=True)[0]))
        h.sum().backward(retain_graph=True)
        h.mean().backward()
        return seen, watch(loss.backward)

    return drive(g, batches(4, 3))


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Any, backend: str) -> None:
    agree(case, backend)
