"""What happens between forward and backward to what backward needs: NumPy writes it without a word, a flag is turned, memory is
written before a second derivative, a graph is partly damaged and only its sound part is asked for."""

from __future__ import annotations

import numpy as np
import pytest

import flame
from flame.autograd import grad
from tests.capture_programs import Case, agree, array, batches, cases, drive, program, tensor, watch
from tests.fuzz_capture import observe

# ---- flags that are turned around an operation


@program
def frozen_around_an_operation_and_thawed(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        w.requires_grad_(False)
        y = v * x * w
        w.requires_grad_(True)
        return y

    def g(x):
        (first,) = grad(f(x).sum(), v, create_graph=True)
        w.grad = None
        return first, watch(lambda: (first * first).sum().backward())

    return drive(g, batches(3), w, v)


@program
def frozen_after_the_operation(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    f = wrap(lambda x: (v * w * x).exp())

    def g(x):
        y = f(x)
        w.requires_grad_(False)
        (first,) = grad(y.sum(), v, create_graph=True)
        w.requires_grad_(True)
        w.grad = None
        return first, watch(lambda: (first * first).sum().backward())

    return drive(g, batches(3), w, v)


# ---- NumPy writes


@program
def numpy_writes_a_result_before_backward(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = w * x
        z = y.exp()
        return z, (z * y).sum()

    def g(x):
        z, loss = f(x)
        z.detach().numpy()[0] = 5.0
        w.grad = None
        loss.backward()
        return z

    return drive(g, batches(3), w)


@program
def numpy_writes_part_of_a_result_through_a_view(wrap):
    w = tensor(4, seed=1, grad=True)

    @wrap
    def f(x):
        z = (w * x).exp()
        return z[1:], (z * z).sum()

    def g(x):
        part, loss = f(x)
        part.detach().numpy()[-1] = 3.0
        w.grad = None
        loss.backward(retain_graph=True)
        first = w.grad
        part.detach().numpy()[-1] = -1.0
        loss.backward()
        return first, part

    return drive(g, batches(4), w)


@program
def numpy_writes_an_argument_before_backward(wrap):
    w = tensor(3, seed=1, grad=True)
    a = array(3, seed=2)
    x = flame.from_numpy(a)
    f = wrap(lambda: (w * x * x).sum())

    def g(i):
        a[:] = i + 1
        loss = f()
        if i % 2:
            a[1] = 9.0
        w.grad = None
        loss.backward()

    return drive(g, range(6), w)


@program
def numpy_writes_an_argument_between_inside(wrap):
    w = tensor(3, seed=1, grad=True)
    a = array(3, seed=2)
    x = flame.from_numpy(a)

    @wrap
    def f(i, between):
        a[:] = i + 1
        loss = (w * x * x).sum()
        if between:
            a[1] = 9.0
        loss.backward()

    def g(i):
        w.grad = None
        f(i, i % 3 != 2)

    return drive(g, range(8), w)


@program
def numpy_writes_a_parameter_before_backward(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (w * w * x).exp().sum())

    def g(x):
        loss = f(x)
        shown = w.detach().numpy()
        before = float(shown[0])
        shown[0] = 2.0
        w.grad = None
        loss.backward()
        shown[0] = before

    return drive(g, batches(3), w)


@program
def numpy_writes_a_written_parameter(wrap):
    w, v = tensor(3, seed=1), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        w.add_(x)
        return (w * v * v).sum()

    def g(x):
        loss = f(x)
        w.numpy()[0] = 2.0
        v.grad = None
        loss.backward()

    return drive(g, batches(3), w, v)


@program
def numpy_reads_only(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        z = (w * x).exp()
        return z, (z * z).sum()

    def g(x):
        z, loss = f(x)
        seen = float(z.detach().numpy().sum())
        w.grad = None
        loss.backward()
        return seen

    return drive(g, batches(3), w)


@program
def numpy_writes_before_a_second_derivative(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        z = (w * x).exp()
        return z, (z * z).sum()

    def g(x):
        z, loss = f(x)
        (first,) = grad(loss, w, create_graph=True)
        z.detach().numpy()[0] = 1.5
        w.grad = None
        first.sum().backward()
        return first

    return drive(g, batches(3), w)


@program
def shared_memory_under_two_edges_counts_once(wrap):
    """A parameter that NumPy holds is another input at each use, and has one gradient."""
    w = tensor(3, seed=1, grad=True)
    held = w.detach().numpy()
    f = wrap(lambda x: (w * w * x).sum())

    def g(x):
        (first,) = grad(f(x), w, create_graph=True)
        w.grad = None
        (first * first).sum().backward()
        return first, float(held.sum())

    return drive(g, batches(3), w)


# ---- memory is written before a second derivative


@program
def result_written_before_second_backward(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (w * x).exp())

    def g(x):
        z = f(x)
        (first,) = grad(z.sum(), w, create_graph=True)
        with flame.no_grad():
            z.mul_(2.0)
        w.grad = None
        return first, watch(lambda: first.sum().backward())

    return drive(g, batches(3), w)


@program
def another_result_written_before_second_backward(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        y = w * x
        return y + 1.0, y.exp()

    def g(x):
        free, z = f(x)
        (first,) = grad(z.sum(), w, create_graph=True)
        with flame.no_grad():
            free.mul_(2.0)
        w.grad = None
        return first, watch(lambda: first.sum().backward())

    return drive(g, batches(3), w)


@program
def argument_written_before_second_backward(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (w * w * x).sum())

    def g(x):
        (first,) = grad(f(x), w, create_graph=True)
        x.mul_(2.0)
        w.grad = None
        return first, watch(lambda: first.sum().backward())

    return drive(g, batches(3), w)


@program
def written_before_the_first_and_walked_by_the_second(wrap):
    w, v, u = (tensor(3, seed=i, grad=True) for i in (1, 2, 3))
    f = wrap(lambda x: (w.exp() * u * v * x).sum())

    def g(x):
        loss = f(x)
        with flame.no_grad():
            u.mul_(1.5)
        first = watch(lambda: grad(loss, v, create_graph=True, retain_graph=True))
        second = watch(lambda: grad(loss, w, create_graph=True, retain_graph=True))
        return first, second

    return drive(g, batches(3), w, v, u)


# ---- a damaged graph, of which only the sound part is asked for


def asked(call, *weights):
    """What a backward pass gives or raises, and the gradients if it did not: how far one came that raised is not promised."""
    got = watch(call)
    if not isinstance(got, str):
        got = [got, observe([w.grad for w in weights])]
    for w in weights:
        w.grad = None
    return got


@program
def overwritten_inside_and_another_input_asked_for(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        z = (w * x).exp()
        with flame.no_grad():
            z.mul_(2.0)
        return (z + v * v * x).sum()

    def g(x):
        loss = f(x)
        return [
            asked(lambda: loss.backward(inputs=[v], retain_graph=True), w, v),
            asked(lambda: loss.backward(inputs=[v, w], retain_graph=True), w, v),
            asked(lambda: grad(loss, v, create_graph=True), w, v),
            asked(loss.backward, w, v),
        ]

    return drive(g, batches(3), w, v)


@program
def overwritten_outside_and_another_input_asked_for(wrap):
    w, v, u = (tensor(3, seed=i, grad=True) for i in (1, 2, 3))
    f = wrap(lambda x: (w * u * x + v * v * x).sum())

    def g(x):
        loss = f(x)
        with flame.no_grad():
            u.mul_(1.5)
        return [
            asked(lambda: loss.backward(inputs=[v], retain_graph=True), w, v),
            asked(lambda: loss.backward(inputs=[u], retain_graph=True), w, u),
            asked(lambda: loss.backward(inputs=[v, w], retain_graph=True), w, v),
            asked(loss.backward, w, v),
        ]

    return drive(g, batches(3), w, v, u)


@program
def freed_inside_and_another_input_asked_for(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        a = (w * w * x).sum()
        a.backward()
        return a + (v * v * x).sum()

    def g(x):
        loss = f(x)
        return [
            asked(lambda: loss.backward(inputs=[v], retain_graph=True), w, v),
            asked(lambda: loss.backward(inputs=[w], retain_graph=True), w, v),
            asked(lambda: loss.backward(inputs=[v]), w, v),
            asked(lambda: loss.backward(inputs=[v]), w, v),
            asked(loss.backward, w, v),
        ]

    return drive(g, batches(3), w, v)


@program
def freed_outside_and_another_input_asked_for(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        a = (w * w * x).sum()
        return a, a + (v * v * x).sum()

    def g(x):
        a, loss = f(x)
        a.backward()
        return [
            asked(lambda: loss.backward(inputs=[v], retain_graph=True), w, v),
            asked(lambda: loss.backward(inputs=[v, w]), w, v),
            asked(lambda: loss.backward(inputs=[v]), w, v),
        ]

    return drive(g, batches(3), w, v)


@program
def a_parameter_written_in_the_segment_that_is_partly_sound(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        z = (w * w * x).sum() + (v * v * x).sum()
        with flame.no_grad():
            w.mul_(0.5)
        return z

    def g(x):
        loss = f(x)
        return [
            asked(lambda: loss.backward(inputs=[v], retain_graph=True), w, v),
            asked(lambda: loss.backward(inputs=[w], retain_graph=True), w, v),
        ]

    return drive(g, batches(3), w, v)


@program
def a_hook_on_a_partly_damaged_result(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)

    @wrap
    def f(x):
        z = (w * x).exp()
        s = v * v * x
        with flame.no_grad():
            z.mul_(2.0)
        return s, (z + s).sum()

    def g(x):
        s, loss = f(x)
        s.register_hook(lambda d: d * 3.0)
        return [
            asked(lambda: loss.backward(inputs=[v], retain_graph=True), w, v),
            asked(lambda: grad(loss, [s], retain_graph=True), w, v),
            asked(lambda: grad(loss, [s, w]), w, v),
        ]

    return drive(g, batches(3), w, v)


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)


def test_what_is_only_read_stays_compiled() -> None:
    """Reading a result with NumPy between forward and backward costs a copy, and not the compiled backward."""
    w = tensor(3, seed=1, grad=True)

    @flame.compile
    def f(x):
        z = (w * x).exp()
        return z, (z * z).sum()

    for x in batches(3):
        z, loss = f(x)
        np.asarray(z.detach()).sum()
        node = loss.grad_fn
        loss.backward()
        assert getattr(node, "opened", None) is None
