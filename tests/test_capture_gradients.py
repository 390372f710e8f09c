"""Gradients through capture: backward outside and inside of compiled functions, accumulation, refusals."""

from __future__ import annotations

import pytest

import flame
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor


def total(y):
    """A loss of all there is in a result."""
    return y.sum() if isinstance(y, flame.Tensor) else sum(t.sum() for t in y)


# -------------------------------------------------------------------- backward outside


@program
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


@program
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


@program
def backward_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        loss = (x * w).tanh().sum()
        loss.backward()
        return loss

    return drive(f, batches(3), w)


@program
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


def test_second_order_inside_is_one_compiled_program() -> None:
    """A gradient penalty (and its backward) is captured and compiled with all the rest: no break, nothing interpreted."""
    w, v = tensor(8, 8, seed=1, grad=True), tensor(8, 1, seed=2, grad=True)

    def step(x):
        out = ((x @ w).tanh() @ v).sum()
        (g,) = flame.autograd.grad(out, x, create_graph=True)
        loss = ((g.norm(dim=1) - 1) ** 2).mean() + out
        w.grad = v.grad = None
        loss.backward()
        return loss.detach()

    f = flame.compile(step, backend="llvm")
    for x in batches(16, 8, n=4, grad=True):
        f(x)
    assert not f.stats.breaks and not f.stats.fallbacks and f.stats.flushed == 3 and f.stats.compiled == 1, f.stats
    assert len(f.graphs) == 1 and f.kernels


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
