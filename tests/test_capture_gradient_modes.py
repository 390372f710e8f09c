"""Gradient modes, switches of requires_grad, and histories that begin or end inside of a compiled function."""

from __future__ import annotations

import pytest

import flame
from flame.autograd import grad
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor

# -------------------------------------------------------------------- modes


@program
def no_grad_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        with flame.no_grad():
            a = x * w
        return a, a * w

    return drive(f, batches(3), w, after=lambda r: r[1].sum().backward())


@program
def called_under_no_grad_sometimes(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp().sum())
    seen = []
    for i, x in enumerate(batches(3, n=9)):
        with flame.set_grad_enabled(i not in (2, 3, 6)):
            seen += drive(f, [x], w)
    return seen


@program
def called_under_no_grad_only_views(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda: (w[1:], w.detach(), w))
    seen = []
    for i in range(8):
        with flame.set_grad_enabled(i % 3 != 1):
            seen += drive(f, [()], w)
    return seen


@program
def enable_grad_inside_no_grad(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        with flame.no_grad():
            a = x * w
            with flame.enable_grad():
                b = a * w
                (g,) = grad(b.sum(), w)
            c = b * 2
        return a, b, c, g

    return drive(f, batches(3), w)


@program
def inference_mode_flips(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: ((x * w).exp(), flame.is_grad_enabled(), flame.is_inference_mode_enabled()))
    seen = []
    for i, x in enumerate(batches(3, n=8)):
        with flame.inference_mode(i % 3 == 2):
            seen += drive(f, [x], w)
    return seen


@program
def grad_mode_left_switched(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, on):
        y = x * w
        flame.set_grad_enabled(on)
        return y, x * w

    seen = []
    for i, x in enumerate(batches(3)):
        seen += drive(f, [(x, i % 3 != 1)], flame.is_grad_enabled)
        flame.set_grad_enabled(True)
    return seen


@program
def decorated_no_grad(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    @flame.no_grad()
    def f(x):
        return x * w

    @flame.no_grad()
    @wrap
    def g(x):
        return x * w

    return drive(lambda x: (f(x), g(x)), batches(3), w)


@program
def requires_grad_flips_outside(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).sum())
    seen = []
    for i, x in enumerate(batches(3, n=9)):
        w.requires_grad_(i not in (2, 3, 7))
        seen += drive(f, [x], w, after=lambda y: y.backward() if y.requires_grad else None)
    return seen


@program
def requires_grad_flips_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, on):
        w.requires_grad_(on)
        y = (x * w).sum()
        return y, y.requires_grad

    return drive(f, [(x, i % 3 != 2) for i, x in enumerate(batches(3))], w)


@program
def detach_and_reattach(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x * w).exp()
        d = h.detach()
        d2 = d.requires_grad_()
        y = (d2 * w).sum()
        return h, d, y

    return drive(f, batches(3), w, after=lambda r: r[2].backward())


@program
def truncated_backpropagation(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(h, x):
        h = h.detach()
        for t in range(2):
            h = (h * w + x[t]).tanh()
        h.sum().backward()
        return h

    seen, h = [], flame.zeros(3)
    for x in batches(2, 3):
        h = f(h, x)
        seen += drive(lambda h=h: h, [()], w)
    return seen


@program
def leaves_made_inside(wrap):
    @wrap
    def f(x):
        a = flame.ones(3, requires_grad=True)
        b = x.clone().requires_grad_()
        (a * b * x).sum().backward()
        return a.grad, b.grad, a, b

    return drive(f, batches(3))


@program
def in_place_with_history(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = x * w
        y.mul_(w)
        y[0] = w[1]
        y[1:].add_(w[:2])
        return y.sum()

    return drive(f, batches(3), w, after=lambda y: y.backward())


@program(follows=False)
def in_place_on_a_leaf_is_refused(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = x * w
        w.add_(1.0)
        return y

    return drive(f, batches(3), w)


@program
def in_place_on_an_argument_with_history(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(h):
        h.mul_(2.0)
        h[0] = 0.0
        return h.sum()

    return drive(lambda x: f(x * w), batches(3), w, after=lambda y: y.backward())


@program
def in_place_on_an_outside_buffer_gives_it_history(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, buffer):
        buffer.mul_(w).add_(x)
        return (buffer * 2).sum()

    def g(x):
        buffer = flame.ones(3)
        y = f(x, buffer)
        (y + buffer.sum()).backward()
        return [y, buffer]

    return drive(g, batches(3), w)


@program
def saved_value_overwritten_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = (x * w).exp()
        z = y.sum()
        y.add_(1.0)
        return z

    return drive(f, batches(3), w, after=lambda z: z.backward())


@program(follows=False)
def error_in_backward_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = x * w
        try:
            y.backward()
        except RuntimeError as e:
            return y.sum(), type(e).__name__
        return y.sum(), "no error"

    return drive(f, batches(3), w, after=lambda r: r[0].backward())


@program(follows=False)
def backward_without_history_is_refused(wrap):
    @wrap
    def f(x):
        y = (x * 2).sum()
        y.backward()
        return y

    return drive(f, batches(3))


@program
def is_leaf_and_requires_grad_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = x * w
        d = y.detach()
        v = w[1:]
        return [t.requires_grad for t in (x, w, y, d, v)], [t.is_leaf for t in (x, w, y, d, v)], y

    return drive(f, batches(3), w)


@program
def views_of_what_was_written_inside_want_gradients(wrap):
    w = tensor(4, seed=1, grad=True)

    @wrap
    def f(x):
        y = x * 1
        v = y[1:]
        u = v.view(3, 1)
        d = y.detach()
        before = [t.requires_grad for t in (y, v, u, d)]
        y.mul_(w)
        asked = [t.requires_grad for t in (y, v, u, d)], [t.is_leaf for t in (y, v, u, d)]
        return before, asked, (v * 2).sum() + u.sum(), v, u, d

    return drive(f, batches(4), w, after=lambda r: r[2].backward())


@program
def views_of_what_lost_its_history(wrap):
    w = tensor(4, seed=1, grad=True)

    @wrap
    def f(x):
        y = x * w
        v = y[1:]
        y.zero_()
        asked = [t.requires_grad for t in (y, v)], [t.is_leaf for t in (y, v)]
        v.add_(x[1:])
        return asked, y, v

    return drive(f, batches(4), w)


@program
def arguments_that_gain_and_lose_history(wrap):
    w = tensor(4, seed=1, grad=True)

    @wrap
    def f(x, h):
        asked = []
        for t in (x, h):
            asked.append((t.requires_grad, t.is_leaf))
        x.view(-1)[1:].mul_(w[1:])
        h.zero_()
        for t in (x, h, h.detach(), x[2:]):
            asked.append((t.requires_grad, t.is_leaf))
        return asked, x.sum() + h.sum()

    return drive(lambda x: [f(x, x * w), x], batches(4), w, after=lambda r: r[0][1].backward())


@program
def out_argument_with_history_is_refused(wrap):
    w = tensor(3, seed=1, grad=True)
    out = flame.zeros(3)

    @wrap
    def f(x):
        y = x * w
        try:
            flame.add(y, 1.0, out=out)
        except RuntimeError as e:
            return y, type(e).__name__
        return y, "written"

    return drive(f, batches(3), w, out)


@program
def grad_fn_read_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = x * w
        named = y.grad_fn is not None, w.grad_fn is None, (x * 2).grad_fn is None
        return named, y

    return drive(f, batches(3), w, after=lambda r: r[1].sum().backward())


@program
def checks_whether_a_gradient_is_there(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        had = w.grad is not None
        y = (x * w).sum()
        if had and w.grad.sum() > 0:
            y = y * 2
        y.backward()
        return had, y

    return drive(f, batches(3), w)


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
