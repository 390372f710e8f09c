"""autograd.grad, second and higher orders, hooks, custom functions."""

from __future__ import annotations

import pytest

import flame
from flame.autograd import Function, grad
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor


def total(y):
    """A loss of all there is in a result."""
    return y.sum() if isinstance(y, flame.Tensor) else sum(t.sum() for t in y)


# -------------------------------------------------------------------- autograd.grad and second order


@program
def grad_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        (g,) = grad((x * w).tanh().sum(), w)
        return g * 2

    return drive(f, batches(3), w)


@program
def grad_of_the_input(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        x = x.detach().requires_grad_()
        (g,) = grad((x * w).tanh().sum(), x)
        return (x + 0.1 * g.sign()).detach()

    return drive(f, batches(3), w)


@program
def gradient_penalty(wrap):
    w = tensor(3, 3, seed=1, grad=True)

    @wrap
    def f(x):
        y = (x @ w).tanh().sum()
        (g,) = grad(y, x, create_graph=True)
        loss = y + (g.norm() - 1) ** 2
        loss.backward()
        return loss

    return drive(f, [tensor(2, 3, seed=i, grad=True) for i in range(7)], w)


@program
def gradient_penalty_backward_outside(wrap):
    w = tensor(3, 3, seed=1, grad=True)

    @wrap
    def f(x):
        y = (x @ w).tanh().sum()
        (g,) = grad(y, x, create_graph=True)
        return y + (g.square().sum() - 1) ** 2

    return drive(f, [tensor(2, 3, seed=i, grad=True) for i in range(7)], w, after=lambda y: y.backward())


@program
def double_backward_outside(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w**3).sum())

    def g(x):
        (d,) = grad(f(x), w, create_graph=True)
        (dd,) = grad(d.sum(), w, create_graph=True)
        dd.sum().backward()
        return [d, dd]

    return drive(g, batches(3), w)


@program
def hessian_vector_products(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(v):
        (g,) = grad((w**3).sum(), w, create_graph=True)
        (h,) = grad((g * v).sum(), w)
        return h

    return drive(f, batches(3), w)


@program
def jacobian_rows(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = (w * x).sin() * w.sum()
        return flame.stack([grad(y[i], w, retain_graph=True)[0] for i in range(3)])

    return drive(f, batches(3), w)


@program
def grad_with_unused(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x, allow):
        got = grad((x * w).sum(), [w, v], allow_unused=allow)
        return [g is None for g in got]

    return drive(f, [(x, i not in (2, 5)) for i, x in enumerate(batches(3))], w, v)


@program
def grad_materialised(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    f = wrap(lambda x: grad((x * w).sum(), [w, v], materialize_grads=True))
    return drive(f, batches(3), w, v)


@program
def grad_of_an_intermediate(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x * w).exp()
        y = (h * h).sum()
        gh, gw = grad(y, [h, w])
        return gh, gw

    return drive(f, batches(3), w)


@program
def meta_learning_step(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, rate):
        (g,) = grad(((x * w) ** 2).sum(), w, create_graph=True)
        fast = w - rate * g
        loss = ((x + 1) * fast).square().sum()
        loss.backward()
        return loss

    return drive(f, [(x, (0.1, 0.1, 0.2, 0.3, 0.1, 0.5, 0.1)[i]) for i, x in enumerate(batches(3))], w)


@program
def newton_iterations(wrap):
    @wrap
    def f(x):
        for _ in range(3):
            x = x.detach().requires_grad_()
            y = (x**4).sum()
            (g,) = grad(y, x, create_graph=True)
            (h,) = grad(g.sum(), x)
            x = x - g / (h + 1)
        return x.detach()

    return drive(f, batches(3))


@program
def create_graph_grad_used_outside(wrap):
    a = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        a.grad = None
        (a**3 * x).sum().backward(create_graph=True)
        return a.grad

    def g(x):
        gg = f(x)
        a.grad = None
        (gg**2).sum().backward()
        return gg

    return drive(g, batches(3), a)


@program
def higher_order_three(wrap):
    a = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = (a**4 * x).sum()
        for _ in range(3):
            (g,) = grad(y, a, create_graph=True)
            y = g.sum()
        return y

    return drive(f, batches(3), a, after=lambda y: y.backward())


@program
def second_order_through_compiled_outside(wrap):
    a = tensor(3, 3, seed=1, grad=True)
    f = wrap(lambda x: (x @ a).tanh().square().sum())

    def g(x):
        (d,) = grad(f(x), x, create_graph=True)
        d.norm().backward()
        return d

    return drive(g, [tensor(2, 3, seed=i, grad=True) for i in range(7)], a)


@program
def second_order_two_outputs(wrap):
    a = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: ((x * a).exp(), (a * a * x).sin(), x * 2))

    def g(x):
        p, q, r = f(x)
        (d,) = grad((p * q + r).sum(), a, create_graph=True)
        (d * d).sum().backward()
        return d

    return drive(g, batches(3), a)


@program
def grad_outputs_traced(wrap):
    a = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = (a * x).exp()
        v = flame.ones_like(y).requires_grad_()
        (g,) = grad(y, a, v, create_graph=True)
        (jv,) = grad(g, v, x)
        return jv, g

    return drive(f, batches(3), a)


# -------------------------------------------------------------------- hooks and custom functions


@program
def hook_registered_outside(wrap):
    w = tensor(3, seed=1, grad=True)
    log: list = []

    @wrap
    def f(x):
        loss = (x * w).exp().sum()
        loss.backward()
        return loss

    seen = drive(f, batches(3, n=3), w)
    handle = w.register_hook(lambda g: log.append(g.sum().item()) or g * 2)
    seen += drive(f, batches(3, n=3, seed=7), w, log)
    handle.remove()
    return seen + drive(f, batches(3, n=3, seed=9), w, log)


@program
def hook_registered_inside(wrap):
    w = tensor(3, seed=1, grad=True)
    log: list = []

    @wrap
    def f(x):
        h = (x * w).exp()
        h.register_hook(lambda g: log.append(g.sum().item()) or g * 3)
        return (h * h).sum()

    return drive(f, batches(3), w, log, after=lambda y: y.backward())


@program
def hook_on_a_result(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp())
    log: list = []

    def after(y):
        y.register_hook(lambda g: log.append(g.sum().item()) or g * 0.5)
        (y * 2).sum().backward()

    return drive(f, batches(3), w, log, after=after)


@program
def retain_grad_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x * w).exp()
        h.retain_grad()
        (h * h).sum().backward()
        return h.grad * 1

    return drive(f, batches(3), w)


@program
def retain_grad_of_a_result(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp())

    def after(y):
        y.retain_grad()
        (y * 2).sum().backward()

    return drive(f, batches(3), w, after=after)


@program
def post_accumulate_hook_steps_the_weight(wrap):
    w = tensor(3, seed=1, grad=True)

    def step(p):
        with flame.no_grad():
            p.sub_(p.grad, alpha=0.1)
        p.grad = None

    w.register_post_accumulate_grad_hook(step)

    @wrap
    def f(x):
        loss = (x * w).exp().sum()
        loss.backward()
        return loss

    return drive(f, batches(3), w)


class Clip(Function):
    """Identity whose gradient is clipped."""

    @staticmethod
    def forward(ctx, x, limit):
        ctx.limit = limit
        ctx.save_for_backward(x)
        return x * 1

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g.clamp(-ctx.limit, ctx.limit) * (x.abs() < 2), None


@program
def custom_function_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, k):
        return (Clip.apply(x * w * 3, k) * w).sum()

    return drive(
        f, [(x, (0.5, 0.5, 0.1, 0.5, 0.2, 0.2, 0.5)[i]) for i, x in enumerate(batches(3))], w, after=lambda y: y.backward()
    )


@program
def custom_function_and_backward_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        loss = (Clip.apply(x * w, 0.4) * x).sum()
        loss.backward()
        return loss, w.grad.clone()

    return drive(f, batches(3), w)


class TwoResults(Function):
    @staticmethod
    def forward(ctx, x):
        y, i = x.max(), x.argmax()
        ctx.save_for_backward(x, i)
        ctx.mark_non_differentiable(i)
        return y, i

    @staticmethod
    def backward(ctx, g, _):
        x, i = ctx.saved_tensors
        return flame.zeros_like(x).scatter(0, i.view(1), g.view(1))


@program
def custom_function_with_two_results(wrap):
    w = tensor(4, seed=1, grad=True)

    @wrap
    def f(x):
        y, i = TwoResults.apply(x * w)
        return y * 2, i

    return drive(f, batches(4), w, after=lambda r: r[0].backward())


@program
def straight_through_estimator(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = x * w
        return (y + (y.round() - y).detach()).sum()

    return drive(f, batches(3), w, after=lambda y: y.backward())


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
