"""Gradients through capture: backward inside and outside, accumulation, second order, hooks, custom functions, modes."""

from __future__ import annotations

import pytest

import flame
from flame.autograd import Function, grad
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor, watch


def total(y):
    """A loss of all there is in a result."""
    return y.sum() if isinstance(y, flame.Tensor) else sum(t.sum() for t in y)


# -------------------------------------------------------------------- backward outside


@program(native=True)
def backward_outside(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: ((x * w).tanh() * w).sum())
    return drive(f, batches(3), w, after=lambda y: y.backward())


@program
def backward_outside_of_two_results(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    f = wrap(lambda x: ((x * w).exp(), (x * v * w).sin()))
    return drive(f, batches(3), w, v, after=lambda r: (r[0].sum() + r[1].sum() * 2).backward())


@program
def backward_of_one_result_then_the_other(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        return (x * w).exp(), (x + w).sin()

    def after(r):
        r[0].sum().backward()
        r[1].sum().backward()

    return drive(f, batches(3), w, after=after)


@program
def backward_of_results_that_share_their_history(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x * w).exp()
        return h.sum(), (h * h).sum()

    def after(r):
        r[0].backward()
        r[1].backward()

    return drive(f, batches(3), w, after=after)


@program
def backward_of_results_that_share_their_history_retained(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x * w).exp()
        return h.sum(), (h * h).sum()

    def after(r):
        r[0].backward(retain_graph=True)
        r[1].backward()

    return drive(f, batches(3), w, after=after)


@program
def backward_of_only_one_of_two(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    f = wrap(lambda x: ((x * w).exp(), (x * v).sin()))
    n = [0]

    def after(r):
        n[0] += 1
        r[n[0] % 2].sum().backward()

    return drive(f, batches(3), w, v, after=after)


@program
def unused_result_carries_gradient(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: ((x * w).exp(), x * 2, (w * w).detach(), x.argmax()))
    return drive(f, batches(3), w, after=lambda r: r[0].sum().backward())


@program
def second_backward_is_refused(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp().sum())

    def after(y):
        y.backward()
        y.backward()

    return drive(f, batches(3), w, after=after)


@program
def second_backward_with_retain(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp().sum())

    def after(y):
        y.backward(retain_graph=True)
        y.backward(retain_graph=True)
        y.backward()

    return drive(f, batches(3), w, after=after)


@program
def input_requires_grad_sometimes(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: ((x * w).tanh()).sum())
    xs = [tensor(3, seed=i, grad=i % 3 == 1) for i in range(9)]
    return drive(f, xs, w, xs, after=lambda y: y.backward())


@program
def input_is_itself_a_result(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    f = wrap(lambda x: (x * w).exp())
    return drive(lambda x: f(f(x * v) * v), batches(3), w, v, after=lambda y: y.sum().backward())


@program(native=True)
def compiled_layers_in_a_chain(wrap):
    ws = [tensor(3, 3, seed=i, grad=True) for i in range(3)]
    layer = wrap(lambda x, w: (x @ w).relu() + x)

    def model(x):
        for w in ws:
            x = layer(x, w)
        return x.sum()

    return drive(model, batches(2, 3), ws, after=lambda y: y.backward())


@program
def given_cotangent(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: x * w)
    return drive(f, batches(3), w, after=lambda y: y.backward(tensor(3, seed=5)))


@program
def gradient_of_a_view_result(wrap):
    w = tensor(4, seed=1, grad=True)
    f = wrap(lambda x: (w[1:], (x * w).view(2, 2).t()))
    return drive(f, batches(4), w, after=lambda r: (r[0].sum() + (r[1] * 3).sum()).backward())


@program
def no_backward_on_most_calls(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp().sum())
    seen = []
    for i, x in enumerate(batches(3, n=9)):
        seen += drive(f, [x], w, after=(lambda y: y.backward()) if i % 4 == 3 else None)
    return seen


@program
def backward_a_few_calls_later(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp().sum())
    losses: list = []
    seen = []
    for i, x in enumerate(batches(3, n=9)):
        losses.append(f(x))
        if i >= 3:
            losses.pop(0).backward()
        seen += drive(lambda: w, [()])
    return seen


@program
def weight_changed_before_backward(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp().sum())

    def after(y):
        with flame.no_grad():
            w.add_(1.0)
        y.backward()

    return drive(f, batches(3), w, after=after)


@program
def weight_changed_before_backward_that_reads_it(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w * w).sum())

    def after(y):
        with flame.no_grad():
            w.add_(1.0)
        y.backward()

    return drive(f, batches(3), w, after=after)


@program
def result_changed_before_backward(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).exp())

    def after(y):
        y.detach().add_(1.0)
        y.sum().backward()

    return drive(f, batches(3), w, after=after)


@program
def result_written_with_history_before_backward(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).sin())

    def after(y):
        y.mul_(2.0)
        y.sum().backward()

    return drive(f, batches(3), w, after=after)


@program
def input_changed_before_backward(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x * w).sum())

    def g(x):
        y = f(x)
        x.add_(1.0)
        y.backward()
        return y

    return drive(g, batches(3), w)


@program
def input_not_read_by_backward_is_changed(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (x + w.sin()).sum())

    def g(x):
        y = f(x)
        x.add_(1.0)
        y.backward()
        return y

    return drive(g, batches(3), w)


# -------------------------------------------------------------------- backward inside


@program(native=True)
def backward_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        loss = (x * w).tanh().sum()
        loss.backward()
        return loss

    return drive(f, batches(3), w)


@program(native=True)
def training_step_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        w.grad = None
        loss = ((x * w).tanh() - 1).square().mean()
        loss.backward()
        with flame.no_grad():
            w.sub_(w.grad, alpha=0.1)
        return loss.detach()

    return drive(f, batches(3, n=9), w)


@program
def training_step_with_a_log(wrap):
    w = tensor(3, seed=1, grad=True)
    log: list = []

    @wrap
    def f(x):
        loss = ((x * w).tanh() - 1).square().mean()
        loss.backward()
        log.append(loss.item())
        with flame.no_grad():
            w.add_(w.grad * -0.1)
            w.grad.zero_()
        return w.norm()

    return drive(f, batches(3, n=9), w, log)


@program
def accumulates_over_calls(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, last):
        (x * w).exp().sum().backward()
        if last:
            with flame.no_grad():
                w.sub_(w.grad * 0.01)
            w.grad = None

    return drive(f, [(x, i % 3 == 2) for i, x in enumerate(batches(3, n=9))], w)


@program
def accumulates_within_a_call(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        w.grad = None
        for i in range(3):
            (x * w * i).exp().sum().backward()
        return w.grad.clone()

    return drive(f, batches(3), w)


@program
def gradient_object_kept_while_accumulating(wrap):
    w = tensor(3, seed=1, grad=True)
    kept: list = []

    @wrap
    def f(x):
        (x * w).sin().sum().backward()
        kept.append(w.grad)
        return w.grad * 2

    return drive(f, batches(3), w, kept)


@program
def gradient_shared_by_two_leaves(wrap):
    a, b = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        (a + b).backward(x)
        a.grad.mul_(2.0)
        return a.grad is b.grad

    return drive(f, batches(3), a, b)


@program
def cotangent_becomes_the_gradient(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        w.grad = None
        (w * 1).backward(x)
        w.grad.add_(100.0)
        return x * 1

    return drive(f, batches(3), w)


@program
def backward_inside_of_an_outside_graph(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(h):
        (h * v).sum().backward()
        return h.detach() * 2

    return drive(lambda x: f((x * w).exp()), batches(3), w, v)


@program(follows=False)
def backward_inside_twice_refused(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        loss = (x * w).exp().sum()
        loss.backward()
        loss.backward()
        return loss

    return drive(f, batches(3), w)


@program
def backward_inside_and_outside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x * w).exp()
        h.sum().backward(retain_graph=True)
        return h * w

    return drive(f, batches(3), w, after=lambda y: y.sum().backward())


@program
def backward_of_a_part_then_outside_of_the_whole(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x * w).exp()
        h.sum().backward()
        return (h * w).sum()

    return drive(f, batches(3), w, after=lambda y: y.backward())


@program
def backward_with_inputs_argument(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        (x * w * v).sum().backward(inputs=[w])
        return x * 2

    return drive(f, batches(3), w, v)


@program
def autograd_backward_of_several(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        flame.autograd.backward([(x * w).sum(), (w * w)], [None, x])
        return x * 2

    return drive(f, batches(3), w)


@program
def unused_parameters_get_no_gradient(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x, both):
        y = x * w
        if both:
            y = y * v
        y.sum().backward()

    return drive(f, [(x, i in (2, 5)) for i, x in enumerate(batches(3))], w, v)


@program
def multiplied_by_zero_is_still_used(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        (x * w + v * 0).sum().backward()
        return None if v.grad is None else v.grad * 1

    return drive(f, batches(3), w, v)


@program
def grad_set_by_hand(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        w.grad = x * 2
        (x * w).sum().backward()
        return w.grad * 1

    return drive(f, batches(3), w)


@program
def grad_zeroed_both_ways(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, how):
        if how == 0:
            w.grad = None
        elif how == 1 and w.grad is not None:
            w.grad.zero_()
        elif how == 2 and w.grad is not None:
            w.grad.detach_().fill_(1.0)
        (x * w).sum().backward()
        return w.grad * 1

    return drive(f, [(x, (0, 0, 1, 1, 2, 3, 0, 1, 2)[i]) for i, x in enumerate(batches(3, n=9))], w)


@program
def grad_cleared_outside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        (x * w).exp().sum().backward()
        return w.grad.norm()

    def g(x, clear):
        if clear:
            w.grad = None
        return f(x)

    return drive(g, [(x, i in (1, 2, 5)) for i, x in enumerate(batches(3))], w)


# -------------------------------------------------------------------- autograd.grad and second order


@program(native=True)
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


@program(native=True)
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

    return drive(f, [(x, (0.5, 0.5, 0.1, 0.5, 0.2, 0.2, 0.5)[i]) for i, x in enumerate(batches(3))], w, after=lambda y: y.backward())


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


@program(native=True)
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
