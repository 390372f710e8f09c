"""Hooks inside of compiled functions that do more than compute: they change what others see, raise, call backward, come and go.

Errors included, each program runs eagerly and compiled, over calls that take the path again and calls that leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import flame
from tests.stages_for_tests import State, attempt, both
from tests.test_capture_stages import Square

NAMES: dict[str, Callable] = {}


def step(f: Callable) -> Callable:
    NAMES[f.__name__] = f
    return f


@step
def counts(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x

    def hook(g: Any) -> Any:
        s.calls += 1
        return g * s.calls

    y.register_hook(hook)
    (y * y).sum().backward()
    return y.detach()


@step
def writes_outside(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: (s.total.add_(g), None)[1])
    (y * y).sum().backward()
    return s.total * 2.0


@step
def writes_what_it_is_given(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g.mul_(2.0))
    (y * y).sum().backward()
    return y.detach()


@step
def writes_its_tensor(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = y * 3.0
    z.register_hook(lambda g: (y.detach().mul_(2.0), None)[1])
    attempt(log, (z * w).sum().backward)
    return y.detach()


@step
def writes_what_backward_reads(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = (y * y) * 3.0
    z.register_hook(lambda g: (y.detach().mul_(2.0), None)[1])
    attempt(log, z.sum().backward)
    return y.detach()


@step
def keeps_for_the_next_call(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: s.kept.append(g * 2.0))
    (y * y).sum().backward()
    return s.kept[-2] if len(s.kept) > 1 else y.detach()


@step
def hook_registers_a_hook(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = y.exp()

    def hook(g: Any) -> None:
        y.register_hook(lambda h: h * 3.0)

    z.register_hook(hook)
    (z * w).sum().backward(retain_graph=True)
    z.sum().backward()
    return y.detach()


@step
def hook_registers_on_itself(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x

    def hook(g: Any) -> None:
        y.register_hook(lambda h: h * 3.0)

    y.register_hook(hook)
    loss = (y * y).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return y.detach()


@step
def hook_removes_itself(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    handles: list = []

    def hook(g: Any) -> Any:
        handles[0].remove()
        return g * 2.0

    handles.append(y.register_hook(hook))
    loss = (y * y).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return y.detach()


@step
def hook_removes_the_next(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = y.exp()
    inner = y.register_hook(lambda g: g * 7.0)
    z.register_hook(lambda g: inner.remove())
    z.sum().backward()
    return y.detach()


@step
def hook_differentiates_something_else(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x

    def hook(g: Any) -> Any:
        with flame.enable_grad():
            (s.other * g.detach() * w).sum().backward()
        return g + s.other.grad

    y.register_hook(hook)
    (y * y).sum().backward()
    s.kept[:] = [s.other.grad]
    if s.calls % 3 == 2:
        s.other.grad = None
    s.calls += 1
    return y.detach()


@step
def hook_asks_for_more_of_the_graph(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = y.exp()
    loss = (z * z).sum()
    y.register_hook(lambda g: g + flame.autograd.grad(loss, z, retain_graph=True)[0])
    loss.backward(retain_graph=True)
    return z.detach()


@step
def hook_calls_backward_again(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    loss = (y * y).sum()
    deep: list = []

    def hook(g: Any) -> Any:
        if not deep:
            deep.append(1)
            loss.backward(retain_graph=True)
        return g * 2.0

    y.register_hook(hook)
    loss.backward(retain_graph=True)
    return y.detach()


@step
def raises_now_and_then(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = y.exp()
    s.calls += 1

    def hook(g: Any) -> Any:
        s.kept.append(g * 1.0)
        if s.calls in (2, 4):
            raise ValueError("now")
        return g * 2.0

    z.register_hook(hook)
    attempt(log, (z * y).sum().backward)
    return s.kept[-1] * z.detach()


@step
def another_hook_each_third_call(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    s.calls += 1
    if s.calls % 3:
        y.register_hook(lambda g: g * 2.0)
    if s.calls == 5:
        y.register_hook(lambda g: g + x)
    (y * y).sum().backward()
    return y.detach()


@step
def hook_by_a_number_that_changes(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    s.calls += 1
    k = s.calls * 0.5
    y.register_hook(lambda g: g * k)
    (y * y).sum().backward()
    return y.detach()


@step
def of_the_wrong_shape(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g.sum())
    attempt(log, (y * y).sum().backward)
    return y.detach()


@step
def no_tensor(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: 2.0)
    attempt(log, (y * y).sum().backward)
    return y.detach()


@step
def on_a_view_written_later(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    v = y[1:]
    v.register_hook(lambda g: g * 3.0)
    y.mul_(2.0)
    v.register_hook(lambda g: g * 5.0)
    v.add_(1.0)
    y.register_hook(lambda g: g * 7.0)
    ((y * x).sum() + v.sum()).backward()
    return y.detach()


@step
def on_both_sides_of_a_write(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.retain_grad()
    y.exp_()
    y.register_hook(lambda g: g * 0.5)
    (y * w).sum().backward()
    return y.detach() if y.grad is None else y.grad


@step
def on_rows(s: State, w: Any, x: Any, log: list) -> Any:
    y = (w * x).expand(2, 3)
    rows = y.unbind(0)
    rows[0].register_hook(lambda g: g * 2.0)
    p, q = (w * x).split([1, 2])
    q.register_hook(lambda g: g * 3.0)
    ((rows[0] * rows[1]).sum() + p.sum() * q.sum()).backward()
    return y.detach()


@step
def kept_twice_and_accumulated(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.retain_grad()
    y.retain_grad()
    loss = (y * y).sum()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    first = y.grad
    y.grad = None
    loss.backward()
    return first + y.grad


@step
def kept_of_a_hooked_one(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g * 2.0)
    y.retain_grad()
    y.register_hook(lambda g: g * 5.0)
    (y * y).sum().backward()
    return y.grad


@step
def leaf_made_here(s: State, w: Any, x: Any, log: list) -> Any:
    v = (x * 2.0).requires_grad_()
    v.register_hook(lambda g: g * 2.0)
    y = v * w
    y.register_hook(lambda g: g + 1.0)
    y.sum().backward()
    return v.grad


@step
def two_losses(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: [s.kept.append(g * 1.0), g * 2.0][1])  # type: ignore[func-returns-value]
    p, q = y.exp(), y.tanh()
    p.sum().backward(retain_graph=True)
    q.sum().backward()
    return s.kept[-1] + s.kept[-2]


@step
def gradient_mode_in_hooks(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: log.append((flame.is_grad_enabled(), g.requires_grad, g.is_leaf)))
    loss = (y * y * y).sum()
    (g,) = flame.autograd.grad(loss, w, create_graph=True)
    g.sum().backward()
    return g.detach()


@step
def hook_that_uses_the_weight(s: State, w: Any, x: Any, log: list) -> Any:
    """The hook's own operations are differentiated by the second order."""
    y = w * x
    y.register_hook(lambda g: g * w)
    (g,) = flame.autograd.grad(y.exp().sum(), w, create_graph=True)
    (g * g).sum().backward()
    return g.detach()


@step
def third_order(s: State, w: Any, x: Any, log: list) -> Any:
    y = Square.apply(w * x)
    y.register_hook(lambda g: g * 0.5)
    (g,) = flame.autograd.grad((y * y).sum(), w, create_graph=True)
    (h,) = flame.autograd.grad((g * g).sum(), w, create_graph=True)
    h.sum().backward()
    return h.detach()


@step
def under_autocast(s: State, w: Any, x: Any, log: list) -> Any:
    with flame.autocast("cpu", dtype=flame.bfloat16):
        y = (w * x).reshape(1, 3) @ (w * 2.0).reshape(3, 1)
        y.register_hook(lambda g: log.append(str(g.dtype)))
        z = Square.apply(y)
        z.register_hook(lambda g: g * 2.0)
        z.float().sum().backward()
    return z.detach().float()


@step
def waits_for_the_next_call(s: State, w: Any, x: Any, log: list) -> Any:
    """A result of this call is hooked in the next, and differentiated there."""
    if s.kept:
        y, loss = s.kept
        y.register_hook(lambda g: g * 3.0)
        loss.backward()
    y = w * x
    y.register_hook(lambda g: g * 2.0)
    s.kept[:] = [y, (y * y).sum()]
    return y.detach()


@step
def taken_away_in_the_next_call(s: State, w: Any, x: Any, log: list) -> Any:
    if s.kept:
        s.handle.remove()
        s.kept.pop().backward()
    y = w * x
    s.handle = y.register_hook(lambda g: g * 2.0)
    s.kept.append((y * y).sum())
    return y.detach()


@step
def break_between(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g * 2.0)
    log.append(y.sum().item())
    z = Square.apply(y)
    z.register_hook(lambda g: g + 1.0)
    z.sum().backward()
    return y.detach()


@step
def suspended(s: State, w: Any, x: Any, log: list) -> Any:
    def parts() -> Any:
        y = w * x
        y.register_hook(lambda g: g * 2.0)
        yield y
        (y * y).sum().backward()
        yield y.detach()

    if s.kept:
        s.kept.append(next(s.kept.pop(0)))
        s.kept.clear()
    it = parts()
    got = next(it).detach()
    s.kept.append(it)
    return got


@step
def removed_by_exit(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    loss = (y * y).sum()
    try:
        with y.register_hook(lambda g: g * 2.0):
            loss.backward(retain_graph=True)
            raise KeyError
    except KeyError:
        loss.backward()
    return y.detach()


@step
def on_what_needs_none(s: State, w: Any, x: Any, log: list) -> Any:
    with flame.no_grad():
        y = w * x
    attempt(log, lambda: y.register_hook(lambda g: g))
    attempt(log, lambda: y.retain_grad())
    (w * y).sum().backward()
    return y


@step
def the_graph_is_gone(s: State, w: Any, x: Any, log: list) -> Any:
    y = (w * x).exp()
    z = y * y
    y.register_hook(lambda g: g * 2.0)
    z.sum().backward()
    attempt(log, z.sum().backward)
    attempt(log, lambda: flame.autograd.grad(y.sum(), w))
    return z.detach()


@step
def partly_gone(s: State, w: Any, x: Any, log: list) -> Any:
    y = (w * x).exp()
    y.register_hook(lambda g: g * 2.0)
    p, q = y.tanh(), y * 3.0
    p.sum().backward()
    attempt(log, q.sum().backward)
    return y.detach()


@step
def frees_in_the_midst(s: State, w: Any, x: Any, log: list) -> Any:
    """A hook frees what the pass that it is called in comes through next."""
    y = (w * x).exp()
    z = y * y
    z.register_hook(flame.enable_grad()(lambda g: (y.sum().backward(), None)[1]))
    attempt(log, z.sum().backward)
    return y.detach()


@step
def module_hooks(s: State, w: Any, x: Any, log: list) -> Any:
    if s.handle is None:
        s.handle = flame.nn.Linear(3, 3)
        with flame.no_grad():
            s.handle.weight.fill_(0.5)
            s.handle.bias.fill_(0.1)
        s.handle.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2.0,))
    y = s.handle(w * x)
    (y * y).sum().backward()
    s.kept[:] = [s.handle.weight.grad.clone()]
    s.handle.zero_grad()
    return y.detach()


@step
def hook_reads_and_registers(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = y.exp()

    def hook(g: Any) -> None:
        log.append(g.sum().item())
        y.register_hook(lambda h: h * 3.0)

    z.register_hook(hook)
    (z * y).sum().backward()
    return y.detach()


@step
def hook_registers_behind(s: State, w: Any, x: Any, log: list) -> Any:
    """What the pass came through before is not called any more."""
    y = w * x
    z = y.exp()
    y.register_hook(lambda g: (z.register_hook(lambda h: h * 3.0), None)[1])
    loss = (z * y).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return y.detach()


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_same_as_eager(name: str, turn: bool) -> None:
    found = both(NAMES[name], lambda f: flame.compile(f, backend="eager"), turn)
    assert not found, found
