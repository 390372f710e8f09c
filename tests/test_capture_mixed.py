"""Programs that attack several things at once: identities, nested compiled calls, views with history, memory lent to NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

import flame
from flame import nn
from flame.autograd import grad
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor


@program
def conversions_that_are_the_tensor_itself(wrap):
    @wrap
    def f(x):
        seen = [
            x.float() is x,
            x.to(flame.float32) is x,
            x.contiguous() is x,
            x.cpu() is x,
            flame.as_tensor(x) is x,
            x.type_as(x) is x,
        ]
        x.float().add_(1.0)
        x.reshape(-1).mul_(2.0)
        x.flatten()[0] = 5.0
        x.expand_as(x).clone().add_(3.0)
        x.squeeze().sub_(0.5)
        x.view_as(x)[1] = 0.0
        return seen, x * 1

    return drive(lambda x: [f(x), x], batches(3))


@program
def conversions_of_results(wrap):
    @wrap
    def f(x):
        y = x * 2
        a, b, c, d = y.float(), y.contiguous(), y.reshape(-1), y.flatten()
        a.add_(1.0)
        b.mul_(2.0)
        c[0] = 9.0
        d[1:].zero_()
        return y, a is y, b is y, a, c, d

    return drive(f, batches(3))


@program
def whole_assignment(wrap):
    buffer = flame.zeros(3)
    scalar = flame.zeros(())

    @wrap
    def f(x):
        buffer[...] = x
        buffer[:] = buffer * 2
        scalar[()] = x.sum()
        scalar[...] += 1
        buffer.copy_(buffer)
        scalar.fill_(scalar)
        return buffer + scalar

    return drive(f, batches(3), buffer, scalar)


@program
def zero_sized_writes(wrap):
    buffer = flame.zeros(4)

    @wrap
    def f(x, n):
        buffer[:n] = x[:n]
        buffer[n:n].add_(1.0)
        x[:0].zero_()
        return buffer.sum(), buffer[:n]

    return drive(f, [(x, n) for x, n in zip(batches(4), (0, 0, 2, 4, 0, 1, 2), strict=True)], buffer)


@program
def static_and_class_methods(wrap):
    class Net:
        k = 2.0
        a = staticmethod(wrap(lambda x: x * 3))

        @classmethod
        def b(cls, x):
            return x * cls.k

    b = wrap(Net.b)

    def g(x):
        Net.k += 0.5
        return [Net.a(x), b(x), Net().a(x)]

    return drive(g, batches(3))


@program
def hook_that_calls_a_compiled_function(wrap):
    w = tensor(3, seed=1, grad=True)
    inner = wrap(lambda g: g * 2 + 1)
    w.register_hook(lambda g: inner(g))
    f = wrap(lambda x: (x * w).exp().sum())
    return drive(f, batches(3), w, after=lambda y: y.backward())


@program
def custom_function_that_calls_a_compiled_function(wrap):
    inner = wrap(lambda g: g.tanh() * 2)

    class Op(flame.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return inner(x)

        @staticmethod
        def backward(ctx, g):
            return inner(g)

    w = tensor(3, seed=1, grad=True)
    return drive(lambda x: Op.apply(x * w).sum(), batches(3), w, after=lambda y: y.backward())


@program
def returns_the_parameter(wrap):
    w = nn.Parameter(tensor(3, seed=1))

    @wrap
    def f(x):
        return w, w.T, w.detach(), w.data, x + w

    def g(x):
        r = f(x)
        r[4].sum().backward()
        with flame.no_grad():
            r[0].mul_(0.5)
        r[2].add_(0.1)
        return [r[0] is w, r]

    return drive(g, batches(3), w)


@program
def pointers_are_equal_for_one_memory(wrap):
    @wrap
    def f(x):
        y = x * 2
        v = y[1:]
        return y.data_ptr() == y.view(-1).data_ptr(), v.data_ptr() - y.data_ptr(), y.add_(1.0), v

    return drive(f, batches(3))


@program
def chained_compiled_stages_with_state(wrap):
    h = flame.zeros(3)
    a = wrap(lambda x: h.add_(x).tanh())
    b = wrap(lambda y: h.mul_(0.5) + y)
    return drive(lambda x: b(a(b(x))), batches(3), h)


@program
def interleaved_two_functions_share_a_parameter(wrap):
    w = tensor(3, seed=1, grad=True)
    f, g = wrap(lambda x: (x * w).sum()), wrap(lambda x: (x * w * w).sum())

    def both(x):
        p = f(x)
        q = g(x)
        (p * q).backward()
        with flame.no_grad():
            w.sub_(w.grad * 0.1)
        w.grad = None
        return [p, q]

    return drive(both, batches(3), w)


@program
def gradient_through_results_of_three_calls(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x, h: (x * w + h).tanh())

    def g(x):
        a = f(x, flame.zeros(3))
        b = f(x * 2, a)
        c = f(x, b + a)
        (da,) = grad(c.sum(), a, retain_graph=True)
        (c.sum() + b.square().sum()).backward()
        return [a, b, c, da]

    return drive(g, batches(3), w)


@program
def argument_is_an_outside_view_with_history(wrap):
    w = tensor(6, seed=1, grad=True)

    @wrap
    def f(v):
        v.mul_(2.0)
        return v.sum()

    def g(i):
        y = w * 1.5
        v = y[1:4]
        s = f(v)
        (s + y.square().sum()).backward()
        return [y, v]

    return drive(g, range(7), w)


@program
def argument_and_its_base_with_history(wrap):
    w = tensor(6, seed=1, grad=True)

    @wrap
    def f(y, v):
        v.mul_(2.0)
        a = y.sum()
        y.add_(1.0)
        return a + (v * v).sum()

    def g(i):
        y = w * 1.5
        v = y[1:4]
        f(y, v).backward()
        return [y, v]

    return drive(g, range(7), w)


@program
def float_from_math_functions(wrap):
    f = wrap(lambda x, i: x * math.cos(i) + math.exp(-i) - round(math.pi, i) + divmod(i, 2)[1] + x * (i / 3) // 1)
    return drive(f, [(x, i) for i, x in enumerate(batches(3, n=9))])


@program
def warmup_then_cosine(wrap):
    w = tensor(3, seed=1, grad=True)
    n = 0

    @wrap
    def step(x):
        nonlocal n
        rate = n / 3 if n < 3 else 0.5 * (1 + math.cos(math.pi * (n - 3) / 6))
        n += 1
        w.grad = None
        ((x * w) ** 2).sum().backward()
        with flame.no_grad():
            w.add_(w.grad, alpha=-rate * 0.1)
        return rate

    return drive(step, batches(3, n=10), w)


@program
def index_put_accumulate(wrap):
    t = flame.zeros(4)

    @wrap
    def f(i, x):
        t.index_put_((i,), x, accumulate=True)
        return t[i]

    return drive(
        f,
        [
            (flame.tensor(i), tensor(3, seed=k))
            for k, i in enumerate([[0, 0, 1], [1, 2, 3], [3, 3, 3], [0, 1, 2], [2, 2, 0], [1, 1, 1]])
        ],
        t,
    )


@program
def gradient_into_index_and_mask(wrap):
    w = tensor(5, seed=1, grad=True)

    @wrap
    def f(x, i):
        y = w[i] * x[:2]
        z = w.clone()
        z[x > 0] = 0.0
        z[i] = y
        return z.sum() + w[x < 0].sum()

    return drive(
        f, [(x, flame.tensor([k % 5, (k * 2) % 5])) for k, x in enumerate(batches(5))], w, after=lambda y: y.backward()
    )


@program
def memory_handed_to_numpy_and_dropped(wrap):
    b = flame.zeros(3)

    @wrap
    def f(x):
        b.add_(x)
        s = float(b.numpy().sum())
        b.mul_(0.5)
        return b * s

    return drive(f, batches(3, n=9), b)


@program
def memory_kept_by_numpy_later_dropped(wrap):
    b = flame.zeros(3)
    keep: list = []

    @wrap
    def f(x):
        b.add_(x)
        return b * 2

    seen = []
    for i, x in enumerate(batches(3, n=10)):
        if i == 2:
            keep.append(b.numpy())
        if i in (3, 4):
            keep[0][0] += 10
        if i == 6:
            keep.clear()
        seen += drive(f, [x], b)
    return seen


@program
def memory_kept_by_numpy_view(wrap):
    b = flame.zeros(3)
    keep: list = []

    @wrap
    def f(x):
        y = b + x
        for k in keep:
            k[0] += 1
        z = b + x
        b.add_(1.0)
        return y, z

    seen = []
    for i, x in enumerate(batches(3, n=10)):
        if i == 2:
            keep.append(b.numpy()[1:])
        if i == 5:
            keep.append(np.asarray(b))
        seen += drive(f, [x], b)
    return seen


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
