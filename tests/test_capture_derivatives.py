"""autograd.grad, second order, hooks, custom functions, gradient modes."""

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
