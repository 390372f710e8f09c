"""Hooks on saved tensors, and gradients that are accumulated and clipped inside of compiled steps."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame.autograd.graph import disable_saved_tensors_hooks, save_on_cpu, saved_tensors_hooks


def _program(x, w):
    """Saves operands, results, leaves and broadcast tensors."""
    y = F.layer_norm(flame.tanh(x @ w), (4,)) * w[0]
    return (F.softmax(y, -1) * x.exp()).sum() + flame.cat([y, x]).pow(2).mean()


def _leaves(seed=0):
    flame.manual_seed(seed)
    return flame.randn(3, 4, requires_grad=True), flame.randn(4, 4, requires_grad=True)


def test_gradients_through_hooks_are_the_same_to_the_bit():
    x, w = _leaves()
    want = flame.autograd.grad(_program(x, w), (x, w))
    packed, unpacked = [], []

    def pack(t):
        packed.append(t)
        return t.numpy(force=True).tobytes(), t.shape, t.dtype

    def unpack(kept):
        data, shape, dtype = kept
        unpacked.append(shape)
        return flame.tensor(np.frombuffer(bytearray(data), dtype.numpy).reshape(tuple(shape)))

    with saved_tensors_hooks(pack, unpack):
        y = _program(x, w)
    assert packed and not unpacked and all(t.grad_fn is None for t in packed)
    got = flame.autograd.grad(y, (x, w))
    assert len(unpacked) == len(packed)
    assert all(flame.equal(a, b) for a, b in zip(got, want, strict=True))
    n = len(packed)
    _program(x, w)
    assert len(packed) == n, "outside nothing is packed"


def test_second_derivatives_and_retained_graphs():
    x, w = _leaves()
    want = flame.autograd.grad(flame.autograd.grad(_program(x, w), x, create_graph=True)[0].square().sum(), (x, w))
    with saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        y = _program(x, w)
    for _ in range(2):
        (g,) = flame.autograd.grad(y, x, create_graph=True)
        got = flame.autograd.grad(g.square().sum(), (x, w), retain_graph=True)
        for a, b in zip(got, want, strict=True):
            assert flame.allclose(a, b, rtol=1e-5, atol=1e-6)
    flame.autograd.grad(y, x)
    with pytest.raises(RuntimeError, match="a second time"):
        flame.autograd.grad(y, x)


def test_what_was_packed_counts_and_nothing_else_is_held():
    x = flame.ones(3, requires_grad=True)
    with saved_tensors_hooks(lambda t: 5.0, lambda n: flame.full((3,), n)):
        y = (x * 1) ** 2
    y.sum().backward()
    assert flame.equal(x.grad, flame.full((3,), 10.0))
    with save_on_cpu():
        z = (x * 3).square()
    z.sum().backward()
    with saved_tensors_hooks(lambda t: None, lambda n: flame.ones(3)):
        a = x.detach() + 1
        held = weakref.ref(a._array)
        b = x * a
    del a
    gc.collect()
    assert held() is None
    b.sum().backward()


def test_hooks_nest_and_custom_functions_use_them():
    seen = []

    class Square(flame.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x, None)
            return x * x

        @staticmethod
        def backward(ctx, g):
            x, nothing = ctx.saved_tensors
            assert nothing is None
            return 2 * g * x

    def hooks(name):
        return saved_tensors_hooks(lambda t: (seen.append(name), t.detach())[1], lambda t: t)

    x = flame.tensor([3.0], requires_grad=True)
    with hooks("outer"):
        y = Square.apply(x)
        with hooks("inner"):
            y = Square.apply(y)
        y = y * x
    y.backward()
    assert seen == ["outer", "inner", "outer", "outer"] and x.grad.item() == 5 * 81.0


def test_hooks_that_give_something_else_are_refused():
    x = flame.ones(3, requires_grad=True)
    for unpack, error, match in (
        (lambda t: 1, TypeError, "expected to be a Tensor"),
        (lambda t: t[:2], RuntimeError, "to give"),
    ):
        with saved_tensors_hooks(lambda t: t.clone(), unpack):
            y = (x * x).sum()
        with pytest.raises(error, match=match):
            y.backward()
    with disable_saved_tensors_hooks("not here"), pytest.raises(RuntimeError, match="not here"):
        with saved_tensors_hooks(lambda t: t, lambda t: t):
            pass
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        pass


def test_compiled_functions_run_eagerly_where_hooks_are_in_force():
    x, w = _leaves()
    f = flame.compile(_program)
    for _ in range(3):
        f(x, w)
    packed = []
    with saved_tensors_hooks(lambda t: packed.append(1) or t.clone(), lambda t: t):
        got = flame.autograd.grad(f(x, w), (x, w))
    assert packed
    want = flame.autograd.grad(_program(x, w), (x, w))
    assert all(flame.equal(a, b) for a, b in zip(got, want, strict=True))

    @flame.compile
    def inside(x, w):
        a = x * 2
        with saved_tensors_hooks(lambda t: packed.append(2) or t.clone(), lambda t: t):
            b = (a @ w).tanh()
        return (b * a).sum()

    for _ in range(3):
        packed.clear()
        got = flame.autograd.grad(inside(x, w), (x, w))
        assert 2 in packed
        assert all(flame.isfinite(g).all() for g in got)
    want = flame.autograd.grad((((2 * x) @ w).tanh() * (2 * x)).sum(), (x, w))
    assert all(flame.allclose(a, b, rtol=1e-5) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("make", [
    lambda ps: flame.optim.SGD(ps, lr=0.1, momentum=0.9), lambda ps: flame.optim.AdamW(ps, lr=0.01),
    lambda ps: flame.optim.RMSprop(ps, lr=0.01),
], ids=["SGD", "AdamW", "RMSprop"])  # fmt: skip
def test_gradients_are_accumulated_and_clipped_inside_of_a_compiled_step(make):
    flame.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    data = [(flame.randn(4, 6), flame.randn(4, 1)) for _ in range(12)]

    def train(compiled: bool):
        model = copy.deepcopy(first)
        optimizer = make(model.parameters())

        def step(batches):
            optimizer.zero_grad()
            total = 0.0
            for x, t in batches:
                loss = F.mse_loss(model(x), t) / len(batches)
                loss.backward()
                total = total + loss.detach()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            return total, norm

        f = flame.compile(step, fullgraph=True) if compiled else step
        seen = [tuple(v.item() for v in f(data[i : i + 3])) for i in range(0, 12, 3)]
        return seen, [p.detach().numpy() for p in model.parameters()], f

    (seen, parameters, f), (want, plain, _) = train(True), train(False)
    np.testing.assert_allclose(seen, want, rtol=1e-4)
    for a, b in zip(parameters, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert any(n > 0.5 for _, n in want), "something was clipped"
    assert not f.stats.breaks and f.stats.compiled <= 2


def test_accumulation_over_several_compiled_calls():
    """Backward in one compiled function, the step in another: `.grad` carries over."""
    flame.manual_seed(0)
    model = nn.Linear(3, 1)
    twin = copy.deepcopy(model)
    optimizer, other = flame.optim.SGD(model.parameters(), lr=0.1), flame.optim.SGD(twin.parameters(), lr=0.1)

    @flame.compile
    def backward(x):
        model(x).square().mean().backward()

    @flame.compile
    def step():
        nn.utils.clip_grad_value_(model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(4):
        xs = [flame.randn(5, 3) for _ in range(3)]
        for x in xs:
            backward(x)
            twin(x).square().mean().backward()
        step()
        nn.utils.clip_grad_value_(twin.parameters(), 0.3)
        other.step()
        other.zero_grad()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert flame.allclose(p, q, rtol=1e-4, atol=1e-6) and p.grad is None
