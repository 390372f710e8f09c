"""Python in the midst of backward passes: hooks on results and custom functions inside of a compiled function, without a break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
from tests.fuzz_capture import difference, observe

NAMES: dict[str, Callable] = {}


def step(f: Callable) -> Callable:
    NAMES[f.__name__] = f
    return f


class Square(flame.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * g * x


class Exp(flame.autograd.Function):
    """Saves its result, and keeps another tensor as an attribute."""

    @staticmethod
    def forward(ctx: Any, x: Any, k: float) -> Any:
        y = x.exp()
        ctx.save_for_backward(y)
        ctx.scaled = x * k
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (y,) = ctx.saved_tensors
        return g * y + ctx.scaled * 0.0, None


class TwoOfTwo(flame.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.save_for_backward(x, w)
        sign = (x > 0).float()
        ctx.mark_non_differentiable(sign)
        return x * w, x + w, sign

    @staticmethod
    def backward(ctx: Any, g: Any, h: Any, _: Any) -> Any:
        x, w = ctx.saved_tensors
        return g * w + h, g * x + h


@step
def factor(w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g * 0.5)
    loss = (y * y).sum()
    loss.backward()
    return loss.detach()


@step
def chain_of_hooks(w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g.clamp(-0.5, 0.5))
    z = y.exp()
    z.register_hook(lambda g: g * y.detach())
    z.register_hook(lambda g: g + 1.0)
    (z * z + y).sum().backward()
    return z.detach()


@step
def looks_on(w: Any, x: Any, log: list) -> Any:
    y = (w * x).tanh()
    y.register_hook(lambda g: log.append(g * 2.0))
    (y * w).sum().backward()
    return y.detach()


@step
def kept_gradient(w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.retain_grad()
    z = y.exp()
    z.retain_grad()
    (z * y).sum().backward()
    return y.grad + z.grad


@step
def removed_hook(w: Any, x: Any, log: list) -> Any:
    y = w * x
    handle = y.register_hook(lambda g: g * 100.0)
    with y.register_hook(lambda g: g * 2.0):
        (y * y).sum().backward(retain_graph=True)
    handle.remove()
    y.sum().backward()
    return y.detach()


@step
def hook_on_a_view_and_its_base(w: Any, x: Any, log: list) -> Any:
    y = w * x
    v = y[1:]
    v.register_hook(lambda g: g * 3.0)
    y.register_hook(lambda g: g * 2.0)
    (v * v).sum().backward()
    return y.detach()


@step
def hook_of_one_result_of_two(w: Any, x: Any, log: list) -> Any:
    values, _ = (w * x).reshape(3, 1).expand(3, 2).contiguous().max(1)
    p, q, r = (w * x).unbind(0)
    q.register_hook(lambda g: g * 2.0)
    (values.sum() * p * q + r).backward()
    return values.detach()


@step
def hook_then_written(w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g * 2.0)
    y.mul_(x)
    y.register_hook(lambda g: g * 5.0)
    y.sum().backward()
    return y.detach()


@step
def asked_for_some(w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g * 2.0)
    z = y.exp()
    z.register_hook(lambda g: g * 3.0)
    return flame.autograd.grad(z.sum() + (w * w).sum(), [w, y, z])


@step
def hook_off_the_way(w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: log.append(g))
    z = w * 2.0
    return flame.autograd.grad((y + z * z).sum(), z)


@step
def into_inputs(w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g * 2.0)
    (y * y).sum().backward(inputs=[w])
    return y.detach()


@step
def custom(w: Any, x: Any, log: list) -> Any:
    loss = (Square.apply(w * x) * w).sum()
    loss.backward()
    return loss.detach()


@step
def custom_of_a_leaf_and_a_number(w: Any, x: Any, log: list) -> Any:
    loss = Exp.apply(w, 2.0).sum() + Exp.apply(w * x, 3.0).sum()
    loss.backward()
    return loss.detach()


@step
def custom_with_hook(w: Any, x: Any, log: list) -> Any:
    y = Square.apply(Square.apply(w) * x)
    y.register_hook(lambda g: g * 0.5)
    y.sum().backward()
    return y.detach()


@step
def custom_of_several(w: Any, x: Any, log: list) -> Any:
    p, q, sign = TwoOfTwo.apply(w * x, x)
    log.append((p.requires_grad, sign.requires_grad, p.is_leaf))
    (p * sign + (q if x.shape[0] else p)).sum().backward()
    return p.detach()


@step
def custom_one_result_unused(w: Any, x: Any, log: list) -> Any:
    _, q, _ = TwoOfTwo.apply(w * x, x)
    (q * w).sum().backward()
    return q.detach()


@step
def second_time(w: Any, x: Any, log: list) -> Any:
    loss = Square.apply(w * x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    try:
        loss.backward()
    except RuntimeError as e:
        log.append(str(e)[:40])
    return loss.detach()


@step
def saved_then_written(w: Any, x: Any, log: list) -> Any:
    y = w * x
    loss = Square.apply(y).sum()
    y.detach().mul_(2.0)
    try:
        loss.backward()
    except RuntimeError as e:
        log.append(str(e)[:60])
    return loss.detach()


@step
def penalty(w: Any, x: Any, log: list) -> Any:
    y = Square.apply(w * x)
    y.register_hook(lambda g: g * 2.0)
    (g,) = flame.autograd.grad(y.exp().sum(), w, create_graph=True)
    (g * g).sum().backward()
    return g.detach()


@step
def several_losses(w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g * 2.0)
    z = Square.apply(y)
    flame.autograd.backward([z, y.sum()], [z.detach(), None])
    return z.detach()


@step
def in_a_loop(w: Any, x: Any, log: list) -> Any:
    y = w * x
    for i in range(4):
        y = Square.apply(y) * 0.5
        y.register_hook(lambda g, i=i: g * (1.0 + i))
    y.sum().backward()
    return y.detach()


@step
def raises_in_backward(w: Any, x: Any, log: list) -> Any:
    y = w * x

    def refuse(g: Any) -> Any:
        raise KeyError("no gradient today")

    y.register_hook(refuse)
    try:
        (y * y).sum().backward()
    except KeyError as e:
        log.append(str(e))
    (w * x).sum().backward()
    return y.detach()


#: these end the graph: what the hook reads, or what is returned, has to be there
BREAKING = {"reads_in_a_hook", "backward_outside", "reads_in_backward"}


@step
def reads_in_a_hook(w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = y.exp()
    y.register_hook(lambda g: g * 0.5)
    z.register_hook(lambda g: log.append(g.sum().item()))
    (z * w).sum().backward()
    return y.detach()


class Reading(Square):
    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * g * x if x.sum().item() > 0 else g * x


@step
def reads_in_backward(w: Any, x: Any, log: list) -> Any:
    (Reading.apply(w * x) * w).sum().backward()
    return x * 2.0


@step
def backward_outside(w: Any, x: Any, log: list) -> Any:
    y = Square.apply(w * x)
    y.register_hook(lambda g: g * 3.0)
    return (y * y).sum()


def run(program: Callable, wrap: Callable[[Callable], Callable], sizes: tuple[int, ...], turn: bool) -> list:
    """What is seen over several calls. `turn`: some calls take another path after the gradients, and one before."""
    w = flame.tensor([0.5, -0.25, 1.0], requires_grad=True)
    log: list = []

    def body(x: Any, call: int) -> Any:
        if turn and call == 4:
            x = x + 1.0
        got = program(w, x, log)
        if turn and call in (3, 5):
            flame.autograd.backward((w * x).sum())
        return got

    f = wrap(body)
    seen = []
    for call, n in enumerate(sizes):
        w.grad = None
        x = flame.tensor(
            np.linspace(-1, 1, 3 * n, dtype=np.float32).reshape(n, 3) if n else np.array([0.5, -1, 2], np.float32) * (1 + call)
        )
        got = f(x, call)
        if isinstance(got, flame.Tensor) and got.requires_grad:
            got.backward()
        seen.append(observe([got, w, list(log)]))
    return seen


FIXED = (0,) * 7


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_same_as_eager(name: str, turn: bool) -> None:
    compiled: list = []

    def wrap(f: Callable) -> Callable:
        compiled.append(flame.compile(f, backend="eager"))
        return compiled[0]

    program = NAMES[name]
    found = difference(run(program, lambda f: f, FIXED, turn), run(program, wrap, FIXED, turn), rtol=1e-5, atol=1e-6)
    assert not found, found
    if not turn and name not in BREAKING:
        assert not compiled[0].stats.breaks, compiled[0].stats
        assert not compiled[0].stats.diverged or name in ("second_time", "saved_then_written", "raises_in_backward")


@pytest.mark.parametrize("name", ["factor", "chain_of_hooks", "custom", "custom_of_several", "in_a_loop", "several_losses"])
def test_sizes_that_vary(name: str) -> None:
    sizes = (2, 2, 3, 3, 5, 7, 4, 1, 2)
    found = difference(
        run(NAMES[name], lambda f: f, sizes, False),
        run(NAMES[name], lambda f: flame.compile(f, backend="eager"), sizes, False),
        rtol=1e-5,
        atol=1e-6,
    )
    assert not found, found


@pytest.mark.parametrize("name", ["chain_of_hooks", "custom_with_hook", "penalty", "kept_gradient"])
def test_kernels(name: str) -> None:
    found = difference(run(NAMES[name], lambda f: f, FIXED, False), run(NAMES[name], flame.compile, FIXED, False))
    assert not found, found


def test_stages_hold_no_memory_after_the_call() -> None:
    """What a Function saved is let go with the graph: it is no result of the compiled segment."""
    w = flame.tensor([0.5, -0.25, 1.0], requires_grad=True)

    @flame.compile(backend="eager")
    def f(x: Any) -> Any:
        w.grad = None
        (Exp.apply(w * x, 2.0) * Square.apply(x * w)).sum().backward()

    for _ in range(4):
        f(flame.ones(3))
    assert len(f.graphs) == 1 and not f.stats.breaks
    assert len(f.graphs[0].outputs) <= 2, f.graphs[0]


def test_fullgraph_takes_hooks_and_custom_functions() -> None:
    w = flame.tensor([0.5, -0.25, 1.0], requires_grad=True)

    @flame.compile(fullgraph=True, backend="eager")
    def f(x: Any) -> Any:
        w.grad = None
        return NAMES["custom_with_hook"](w, x, [])

    for _ in range(4):
        f(flame.ones(3))
    assert f.stats.compiled == 1
