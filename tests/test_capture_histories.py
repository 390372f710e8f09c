"""Where gradients, views and writes meet: the same memory under several histories, refusals of the tape."""

from __future__ import annotations

import pytest

import flame
from flame.autograd import grad
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor


@program
def returned_view_base_is_outside(wrap):
    w = tensor(6, seed=1, grad=True)
    f = wrap(lambda: w.view(2, 3)[1])

    def g(i):
        y = f()
        (y * 2).sum().backward()
        return y

    return drive(g, range(7), w)


@program
def returned_view_then_write_base_outside(wrap):
    b = tensor(6, seed=1)
    w = tensor(3, seed=2, grad=True)
    f = wrap(lambda: b.view(2, 3)[1])

    def g(i):
        y = f()
        b.mul_(0.5)
        return y * w

    return drive(g, range(7), w, b, after=lambda y: y.sum().backward())


@program
def returned_view_of_temp_written_with_history(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        y = x * w
        return y, y[1:]

    def after(r):
        y, v = r
        v.mul_(3.0)
        (y * 2).sum().backward()

    return drive(f, batches(4), w, after=after)


@program
def returned_view_of_view_written_base_has_history(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        y = x * w
        return y.view(2, 2), y.view(2, 2)[1], y

    def after(r):
        a, v, y = r
        y.add_(1.0)
        (a * 2).sum().backward(retain_graph=True)
        v.mul_(2.0)
        y.sum().backward()

    return drive(f, batches(4), w, after=after)


@program
def only_view_returned_with_history(wrap):
    w = tensor(4, seed=2, grad=True)
    f = wrap(lambda x: (x * w)[1:])

    def after(v):
        v.mul_(3.0)
        (v * v).sum().backward()

    return drive(f, batches(4), w, after=after)


@program
def detached_view_returned(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        y = x * w
        return y, y.detach()[1:], y[1:].detach()

    def after(r):
        r[1].zero_()
        r[2][0] = 5.0
        r[0].sum().backward()

    return drive(f, batches(4), w, after=after)


@program
def write_to_detached_inside(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        y = x * w
        d = y.detach()
        d[0] = 7.0
        return (y * 2).sum(), y

    return drive(f, batches(4), w, after=lambda r: r[0].backward())


@program
def no_grad_write_view_then_grad(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        y = x * w
        v = y[1:]
        with flame.no_grad():
            v.mul_(2.0)
            u = y[:2]
            u.add_(1.0)
        return (v + 1).sum() + y.sum(), u, v

    return drive(f, batches(4), w, after=lambda r: r[0].backward())


@program
def view_created_in_no_grad_then_written(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        y = x * w
        with flame.no_grad():
            v = y[1:]
        v.mul_(w[1:])
        return y.sum(), v.requires_grad

    return drive(f, batches(4), w, after=lambda r: r[0].backward())


@program
def parameter_written_and_used(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        a = x * w
        with flame.no_grad():
            w.mul_(0.5)
        b = x * w
        return a.sum() + b.sum()

    return drive(f, batches(4), w, after=lambda y: y.backward())


@program
def parameter_written_and_used_squared(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        a = w * w
        with flame.no_grad():
            w.mul_(0.5)
        b = x * w
        return a.sum(), b.sum()

    return drive(f, batches(4), w, after=lambda y: y[1].backward())


@program
def parameter_data_written(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        w.data.mul_(0.9)
        w.data[0] = 1.0
        return (x * w * w).sum()

    return drive(f, batches(4), w, after=lambda y: y.backward())


@program
def parameter_data_assigned(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        w.data = w.data * 0.9 + x
        return (x * w).sum()

    return drive(f, batches(4), w, after=lambda y: y.backward())


@program
def parameter_data_assigned_outside(wrap):
    w = tensor(4, seed=2, grad=True)
    f = wrap(lambda x: (x * w).sum())

    def g(x):
        w.data = w.data * 0.9 + x
        return f(x)

    return drive(g, batches(4), w, after=lambda y: y.backward())


@program
def param_data_swap_shape(wrap):
    w = tensor(4, seed=2, grad=True)
    f = wrap(lambda x: (x * w).sum())

    def g(x, i):
        w.grad = None
        w.data = tensor(1 if i in (2, 3) else 4, seed=i)
        return f(x)

    return drive(g, [(x, i) for i, x in enumerate(batches(4))], w, after=lambda y: y.backward())


@program
def param_views_across(wrap):
    flat = tensor(6, seed=2, grad=True)
    a, b = flat[:3], flat[3:]

    @wrap
    def f(x):
        return (x * a).sum() + (b * b).sum()

    def g(x):
        y = f(x)
        y.backward(retain_graph=True)
        with flame.no_grad():
            flat.sub_(flat.grad, alpha=0.1)
        return y

    return drive(g, batches(3), flat)


@program
def flat_params_views_inside(wrap):
    flat = tensor(6, seed=2, grad=True)

    @wrap
    def f(x):
        a, b = flat[:3], flat[3:]
        flat.grad = None
        y = (x * a).sum() + (b * b).sum()
        y.backward()
        with flame.no_grad():
            flat.sub_(flat.grad, alpha=0.1)
        return y.detach(), a, b

    return drive(f, batches(3), flat)


@program
def grad_buffer_views(wrap):
    flat = flame.zeros(6)
    a, b = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    a.grad, b.grad = flat[:3], flat[3:]

    @wrap
    def f(x):
        flat.zero_()
        (a * b * x).sum().backward()
        return flat.norm()

    return drive(f, batches(3), a, b, flat)


@program
def grad_is_alias_of_another(wrap):
    a, b = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    g = flame.zeros(3)
    a.grad = g
    b.grad = g

    @wrap
    def f(x):
        (a * b * x).sum().backward()
        return g * 1

    return drive(f, batches(3), a, b, g)


@program
def grads_swapped(wrap):
    a, b = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        (a * b * x).sum().backward()
        a.grad, b.grad = b.grad, a.grad
        return a.grad * 1

    return drive(f, batches(3), a, b)


@program
def loss_grad_wrt_grad_field(wrap):
    a = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        a.grad = None
        (a**3 * x).sum().backward(create_graph=True)
        pen = (a.grad**2).sum()
        a.grad = None
        pen.backward()
        return pen

    return drive(f, batches(3), a)


@program
def inputs_arg_outside_graph(wrap):
    a = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (a * x).exp().sum())

    def g(x):
        y = f(x)
        (d,) = grad(y, a, retain_graph=True)
        (e,) = grad(y, a)
        return [d, e]

    return drive(g, batches(3), a)


@program(follows=False)
def loop_with_growing_history_list(wrap):
    a = tensor(3, seed=1, grad=True)
    hist = []

    @wrap
    def f(x):
        hist.append((a * x).tanh())
        return sum(h.sum() for h in hist)

    def g(x):
        y = f(x)
        y.backward(retain_graph=True)
        return y

    return drive(g, batches(3), a)


@program
def escape_then_backward_later(wrap):
    a = tensor(3, seed=1, grad=True)
    kept = []

    @wrap
    def f(x):
        h = (a * x).tanh()
        kept.append(h)
        return h.detach().sum()

    seen = drive(f, batches(3, n=5), a)
    for h in kept:
        h.sum().backward()
        seen += drive(lambda: a, [()])
    return seen


@program
def escaped_intermediates_and_result_backward_order(wrap):
    a = tensor(3, seed=1, grad=True)
    kept = []

    @wrap
    def f(x):
        h = (a * x).tanh()
        kept.append(h)
        return (h * a).exp().sum()

    def after(y):
        kept[-1].sum().backward(retain_graph=True)
        y.backward()

    def after2(y):
        y.backward(retain_graph=True)
        kept[-1].sum().backward()

    return drive(f, batches(3, n=5), a, after=after) + drive(f, batches(3, n=5), a, after=after2)


@program
def escaped_intermediate_second_time_err(wrap):
    a = tensor(3, seed=1, grad=True)
    kept = []

    @wrap
    def f(x):
        h = (a * x).tanh()
        kept.append(h)
        return (h * a).exp().sum()

    def after(y):
        y.backward()
        kept[-1].sum().backward()

    return drive(f, batches(3, n=6), a, after=after)


@program
def not_saved_second_time_ok(wrap):
    a = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (a + x).sum() * 2)

    def after(y):
        y.backward()
        y.backward()

    return drive(f, batches(3, n=6), a, after=after)


@program
def result_freed_graph_kept(wrap):
    a = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (a * x).exp())

    def g(x):
        y = f(x)
        z = (y * 2).sum()
        del y
        z.backward()
        return z

    return drive(g, batches(3), a)


@program
def write_result_outside_needed_by_backward(wrap):
    a = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (a * x).exp())

    def after(y):
        y.detach().zero_()
        y.sum().backward()

    return drive(f, batches(3), a, after=after)


@program
def write_result_not_needed(wrap):
    a = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (a * x) + 1)

    def after(y):
        y.detach().zero_()
        (y * 1).sum().backward()

    return drive(f, batches(3), a, after=after)


@program
def write_input_needed(wrap):
    a = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (a * x) + 1)

    def g(x):
        y = f(x)
        x.zero_()
        y.sum().backward()
        return y

    return drive(g, batches(3), a)


@program
def write_input_inside_after_use(wrap):
    a = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = a * x
        x.zero_()
        return y.sum()

    return drive(f, batches(3), a, after=lambda y: y.backward())


@program
def view_of_a_view_written_after_a_break(wrap):
    w = tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        y = x * w
        v = y.view(2, 2)
        v.sum().item()
        v[0].mul_(w[:2])
        first = (y * 2).sum() + v.sum()
        v[1, 0] = 3.0
        return first + (y * y.detach()).sum() + v[1].sum()

    return drive(f, batches(4), w, after=lambda y: y.backward())


@program(native=False)
def views_written_in_every_segment(wrap):
    w = tensor(6, seed=2, grad=True)

    @wrap
    def f(x):
        y = x * w
        v = y.view(2, 3)
        total = 0.0
        for i in range(3):
            v[i % 2].add_(w[:3] * v.sum().item())
            v.t()[i].mul_(0.5)
            total = total + v[1, 1:].sum() + y[2:].sum()
        return total, y, v

    return drive(f, batches(6), w, after=lambda r: r[0].backward())


@program
def row_of_a_leaf_is_not_written_after_a_break(wrap):
    w = tensor(2, 3, seed=2, grad=True)

    @wrap
    def f(x):
        row = w[1]
        x.sum().item()
        try:
            row[0] += 1.0
        except RuntimeError as e:
            return str(e)[:30], row * 2
        return "written", row

    return drive(f, batches(3), w)


@program
def equal_results_do_not_share_memory(wrap):
    w = tensor(3, seed=2, grad=True)
    f = wrap(lambda x: (x * w, x * w, (x * w).tanh(), (x * w).tanh(), x + 1, x + 1))

    def after(r):
        r[4].mul_(2.0)
        r[0].add_(1.0)
        r[2].detach().add_(1.0)
        (r[0] + r[1] + r[3]).sum().backward()

    return drive(f, batches(3), w, after=after)


@program
def an_input_written_that_only_the_other_result_needs(wrap):
    w, v = tensor(3, seed=2, grad=True), tensor(3, seed=3, grad=True)
    f = wrap(lambda x: (x * w, (x.detach().exp() * v).sum(), v * 3))

    def g(x, which):
        r = f(x)
        x.mul_(2.0)
        r[which].sum().backward()
        return [r[0], r[2]]

    return drive(g, [(x, (2, 2, 2, 0, 2, 0, 2)[i]) for i, x in enumerate(batches(3))], w, v)


@program
def a_gradient_past_a_freed_part_of_an_earlier_segment(wrap):
    w, v = tensor(3, seed=2, grad=True), tensor(3, seed=3, grad=True)
    f = wrap(lambda x: ((x * w).exp(), (x * v).exp()))

    def g(x):
        a, b = f(x)
        b.sum().backward()
        first = grad((a * b).sum(), w, retain_graph=True, allow_unused=True)
        return [first, a]

    return drive(g, batches(3), w, v)


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
