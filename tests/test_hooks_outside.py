"""Hooks on the results of compiled functions, which backward passes outside call: they come and go, and call backward again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import flame
from tests.fuzz_capture import difference, observe

NAMES: dict[str, Callable] = {}


def step(f: Callable) -> Callable:
    NAMES[f.__name__] = f
    return f


@step
def registers(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    z.register_hook(lambda g: (y.register_hook(lambda h: h * 3.0), None)[1])
    loss.backward()


@step
def registers_on_the_way_from_one(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    z.register_hook(lambda g: (y.register_hook(lambda h: h * 3.0), None)[1])
    z.sum().backward()


@step
def takes_away(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    handle = y.register_hook(lambda h: h * 3.0)
    z.register_hook(lambda g: handle.remove())
    loss.backward()


@step
def takes_itself_away(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    handles: list = []
    handles.append(y.register_hook(lambda h: (handles.pop().remove(), h * 3.0)[1]))
    loss.backward(retain_graph=True)
    loss.backward()


@step
def calls_backward(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    deep: list = []

    def hook(g: Any) -> Any:
        if len(deep) < 2:
            deep.append(1)
            loss.backward(retain_graph=True)
        return g * 2.0

    y.register_hook(hook)
    loss.backward(retain_graph=True)


@step
def frees(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    z.register_hook(flame.enable_grad()(lambda g: (y.sum().backward(), None)[1]))
    loss.backward()


@step
def raises_then_works(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    def hook(g: Any) -> Any:
        log.append("called")
        if len(log) == 1:
            raise KeyError("first")
        return g * 2.0

    y.register_hook(hook)
    try:
        loss.backward(retain_graph=True)
    except KeyError:
        w.grad = None
    loss.backward()


@step
def asks_for_what_is_hooked(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    y.register_hook(lambda g: g * 2.0)
    z.register_hook(lambda g: g + 1.0)
    log += flame.autograd.grad(loss, [y, w, z], retain_graph=True)
    log += flame.autograd.grad(loss, [w], create_graph=True)
    log[-1].sum().backward()


@step
def penalty_and_loss(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    """The hook hears the sum of what comes from both."""
    y.register_hook(lambda g: g * g)
    y.register_hook(lambda g: log.append(g.detach() * 2.0))
    (g,) = flame.autograd.grad(loss, w, create_graph=True)
    log.append(flame.autograd.grad(g.sum() + loss + z.sum(), [z, y, w], retain_graph=True))
    log.append(flame.autograd.grad(g.sum() + z.sum(), [w], retain_graph=True))
    (g.sum() + loss).backward()
    try:
        loss.backward()
    except RuntimeError as e:
        log.append(str(e)[:30])


@step
def kept_through_both(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    y.retain_grad()
    (g,) = flame.autograd.grad(loss, w, create_graph=True)
    handle = z.register_hook(lambda g: g * 2.0 + 1.0)
    (g.sum() + loss).backward(retain_graph=True)
    handle.remove()
    (g.sum() + loss).backward()
    log.append(y.grad)


@step
def opened_then_written(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    y.register_hook(lambda g: g * g)
    (g,) = flame.autograd.grad(loss, w, create_graph=True)
    with flame.no_grad():
        z.mul_(2.0)
    try:
        (g.sum() + loss).backward()
    except RuntimeError as e:
        log.append(str(e)[:60])
        w.grad = None


@step
def keeps(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    y.register_hook(lambda g: g * 2.0)
    y.retain_grad()
    z.retain_grad()
    loss.backward(retain_graph=True)
    z.sum().backward()
    log += [y.grad, z.grad]


@step
def of_another_kind(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    for wrong in (lambda g: g.sum(), lambda g: 1.0, lambda g: g.double()):
        handle = y.register_hook(wrong)
        try:
            loss.backward(retain_graph=True)
        except (RuntimeError, TypeError) as e:
            log.append(f"{type(e).__name__}: {e}")
        handle.remove()
        w.grad = None
    loss.backward()


@step
def of_a_view(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    v = y[1:]
    v.register_hook(lambda g: g * 2.0)
    y.register_hook(lambda g: g * 3.0)
    (v.sum() + loss).backward()


@step
def after_a_write(y: Any, z: Any, loss: Any, w: Any, log: list) -> None:
    u = y * 1.0
    y.register_hook(lambda g: g * 2.0)
    y.mul_(2.0)
    y.register_hook(lambda g: g * 3.0)
    (y.sum() + u.sum()).backward()


def seen(program: Callable, wrap: Callable[[Callable], Callable]) -> list:
    w = flame.tensor([0.5, -0.25, 1.0], requires_grad=True)

    def body(x: Any) -> Any:
        y = w * x
        z = y.exp()
        return y, z, (z * y * w).sum()

    f = wrap(body)
    found = []
    for call in range(4):
        w.grad = None
        log: list = []
        y, z, loss = f(flame.tensor([0.5, -1.0, 2.0]) * (call + 1))
        try:
            program(y, z, loss, w, log)
        except (RuntimeError, TypeError) as e:
            log.append(type(e).__name__)
            w.grad = None  # how far backward came is not promised
        found.append(observe([w, log]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_same_as_eager(name: str) -> None:
    found = difference(
        seen(NAMES[name], lambda f: f), seen(NAMES[name], lambda f: flame.compile(f, backend="eager")), rtol=1e-5, atol=1e-6
    )
    assert not found, found
