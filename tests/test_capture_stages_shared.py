"""Hooks and custom functions that do more than compute: they change what others see, raise, call backward, come and go.

Each program runs eagerly and compiled, over calls that take the path again and calls that leave it, as in `test_capture_stages`;
what it raises is compared, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import flame
from flame.utils.checkpoint import checkpoint
from tests.fuzz_capture import difference
from tests.test_capture_stages import FIXED, Exp, Square, TwoOfTwo, run

Function = flame.autograd.Function


class State:
    """What lives outside of a compiled function, made anew for each run."""

    def __init__(self) -> None:
        self.calls = 0
        self.total = flame.zeros(3)
        self.kept: list = []
        self.handle: Any = None
        self.other = flame.tensor([1.0, -2.0, 0.5], requires_grad=True)


NAMES: dict[str, Callable] = {}


def step(f: Callable) -> Callable:
    NAMES[f.__name__] = f
    return f


def attempt(log: list, f: Callable[[], Any]) -> Any:
    try:
        return f()
    except Exception as e:
        log.append(type(e).__name__)
        return None


# ---------------------------------------------------------------- hooks


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
    y.register_hook(lambda g: (s.kept.append(g * 1.0), g * 2.0)[1])
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


# ---------------------------------------------------------------- custom functions


class Sparing(Function):
    """No zeros for gradients that are not there."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w)
        return x * w, x + w, x - w

    @staticmethod
    def backward(ctx: Any, a: Any, b: Any, c: Any) -> Any:
        x, w = ctx.saved_tensors
        gx = gw = None
        for g, dx, dw in ((a, w, x), (b, 1.0, 1.0), (c, 1.0, -1.0)):
            if g is not None:
                gx = g * dx if gx is None else gx + g * dx
                gw = g * dw if gw is None else gw + g * dw
        return gx, gw


@step
def gradients_that_are_none(s: State, w: Any, x: Any, log: list) -> Any:
    p, q, r = Sparing.apply(w * x, w.exp())
    (p * 2.0 + r).sum().backward(retain_graph=True)
    q.sum().backward(retain_graph=True)
    flame.autograd.grad(q.sum() + 0 * w.sum(), w)
    return q.detach()


class Aimless(Function):
    @staticmethod
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return None, g


@step
def gives_none(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: log.append("called"))
    (Aimless.apply(y, w).sum()).backward()
    log.append(flame.autograd.grad(Aimless.apply(w * x, w * 2.0).sum(), [w, w.detach().requires_grad_()], allow_unused=True)[1])
    return y.detach()


class Increment(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        x.add_(1.0)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * 2.0


@step
def dirty(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = Increment.apply(y)
    log.append(z is y)
    (z * w).sum().backward()
    return y.detach()


class Same(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * 3.0


@step
def gives_its_argument(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = Same.apply(y)
    log.append((z is y, z.requires_grad))
    (z * y).sum().backward()
    return z.detach()


class Flat(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.shape = x.shape
        return x.view(-1)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g.view(ctx.shape) * 2.0


@step
def gives_a_view(s: State, w: Any, x: Any, log: list) -> Any:
    y = (w * x).reshape(3, 1)
    z = Flat.apply(y)
    (z * w).sum().backward()
    return z.detach()


@step
def gives_a_view_that_is_written(s: State, w: Any, x: Any, log: list) -> Any:
    y = (w * x).reshape(3, 1) * 1.0
    z = Flat.apply(y)
    attempt(log, lambda: z.mul_(2.0))
    attempt(log, (z * w).sum().backward)
    return y.detach()


class Mixed(Function):
    """Results that are no tensors, one that is not differentiable, one of integers."""

    @staticmethod
    def forward(ctx: Any, x: Any, k: Any, names: Any) -> Any:
        i = (x * 4).int()
        mask = x > 0
        ctx.mark_non_differentiable(mask)
        ctx.save_for_backward(x, mask)
        ctx.k = k
        return x * k, "text", i, mask, None

    @staticmethod
    def backward(ctx: Any, g: Any, *rest: Any) -> Any:
        x, mask = ctx.saved_tensors
        return flame.where(mask, g * ctx.k, g), None, None


@step
def results_of_all_kinds(s: State, w: Any, x: Any, log: list) -> Any:
    y, text, i, mask, nothing = Mixed.apply(w * x, 2.0, {"a": 1})
    log.append((text, nothing, i.requires_grad, mask.requires_grad))
    (y * i * mask).sum().backward()
    return i + mask.int()


class Remembers(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.count = 0
        ctx.x = x
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        ctx.count += 1
        return g * ctx.x * ctx.count


@step
def state_of_its_own(s: State, w: Any, x: Any, log: list) -> Any:
    loss = Remembers.apply(w * x).sum()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    loss.backward()
    return loss.detach()


class Nested(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = Square.apply(x)
        ctx.save_for_backward(x, y)
        return y + x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, y = ctx.saved_tensors
        return Exp.apply(g * 0.1, 2.0) + g * y


@step
def functions_in_functions(s: State, w: Any, x: Any, log: list) -> Any:
    y = Nested.apply(w * x)
    (g,) = flame.autograd.grad((y * y).sum(), w, create_graph=True)
    (g * g).sum().backward()
    return y.detach()


class Differentiates(Function):
    """Its backward calls grad itself, on what it computes again."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        with flame.enable_grad():
            x = x.detach().requires_grad_()
            y = x.exp()
        return flame.autograd.grad(y, x, g)[0]


@step
def recomputes(s: State, w: Any, x: Any, log: list) -> Any:
    (Differentiates.apply(w * x) * w).sum().backward()
    return x * 2.0


@step
def in_a_checkpoint(s: State, w: Any, x: Any, log: list) -> Any:
    def stretch(u: Any) -> Any:
        v = Square.apply(u)
        v.register_hook(lambda g: g * 2.0)
        return v.exp()

    checkpoint(stretch, w * x, use_reentrant=False).sum().backward()
    return x * 2.0


@step
def in_a_reentrant_checkpoint(s: State, w: Any, x: Any, log: list) -> Any:
    checkpoint(lambda u: Square.apply(u) * w, w * x, use_reentrant=True).sum().backward()
    return x * 2.0


class Writes(Function):
    @staticmethod
    def forward(ctx: Any, x: Any, total: Any) -> Any:
        total.add_(x)
        ctx.total = total
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        ctx.total.mul_(0.5)
        return g * ctx.total, None


@step
def writes_in_both_ways(s: State, w: Any, x: Any, log: list) -> Any:
    y = Writes.apply(w * x, s.total)
    (y * y).sum().backward()
    return s.total + 0.0


class Picky(Function):
    @staticmethod
    def forward(ctx: Any, x: Any, s: Any) -> Any:
        s.calls += 1
        ctx.s = s
        if s.calls == 3:
            raise ValueError("not the third")
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        if ctx.s.calls == 5:
            raise KeyError("nor the fifth")
        return (g, None) if ctx.s.calls != 6 else (g, None, None, 1)


@step
def raises_at_times(s: State, w: Any, x: Any, log: list) -> Any:
    y = attempt(log, lambda: Picky.apply(w * x, s))
    if y is not None:
        attempt(log, (y * w).sum().backward)
    return x * 2.0


class WrongShape(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g.sum()


@step
def a_gradient_of_the_wrong_shape(s: State, w: Any, x: Any, log: list) -> Any:
    attempt(log, WrongShape.apply(w * x).sum().backward)
    return x * 2.0


class Looks(Function):
    """What it is told of its operands decides what it does."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, w = ctx.saved_tensors
        return g * w if ctx.needs_input_grad[0] else None, g * x if ctx.needs_input_grad[1] else None


@step
def needs_that_change(s: State, w: Any, x: Any, log: list) -> Any:
    s.calls += 1
    s.other.requires_grad_(s.calls % 3 != 0)
    a = w * x if s.calls % 4 else x
    y = Looks.apply(a, s.other)
    if y.requires_grad:
        y.sum().backward()
    s.kept[:] = [s.other.grad]
    return y.detach()


@step
def saved_result_is_returned(s: State, w: Any, x: Any, log: list) -> Any:
    """The caller writes the result between calls of backward that read it."""
    y = Exp.apply(w * x, 2.0)
    loss = y.sum()
    loss.backward(retain_graph=True)
    y.detach().mul_(2.0)
    attempt(log, loss.backward)
    return y.detach()


@step
def one_tensor_twice(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    p, q, _ = TwoOfTwo.apply(y, y)
    (p * q).sum().backward()
    return p.detach()


@step
def in_turns(s: State, w: Any, x: Any, log: list) -> Any:
    """Another function at the same place, from call to call."""
    s.calls += 1
    f = (Square, Remembers, Differentiates)[s.calls // 2 % 3]
    (f.apply(w * x) * w).sum().backward()
    return x * 2.0


@step
def one_function_of_another_closure(s: State, w: Any, x: Any, log: list) -> Any:
    s.calls += 1

    class Scales(Function):
        k = s.calls * 1.0

        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2.0

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * Scales.k

    Scales.apply(w * x).sum().backward()
    return x * 2.0


class Stopped(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.mark_non_differentiable(x)
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g


@step
def after_the_mark(s: State, w: Any, x: Any, log: list) -> Any:
    y = Stopped.apply(w * x)
    log.append(y.requires_grad)
    attempt(log, (y * w).sum().backward)
    return y.detach()


class Apart(Function):
    @staticmethod
    def forward(x: Any, k: float) -> Any:
        return x * k, x + k

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.k = inputs
        ctx.save_for_backward(x, *output)

    @staticmethod
    def backward(ctx: Any, g: Any, h: Any) -> Any:
        x, p, q = ctx.saved_tensors
        return g * ctx.k * p + h * q * x, None


@step
def context_set_up_apart(s: State, w: Any, x: Any, log: list) -> Any:
    s.calls += 1
    p, q = Apart.apply(w * x, float(s.calls // 2))
    (p * q).sum().backward()
    return p.detach() + q.detach()


@step
def undefined_then_used(s: State, w: Any, x: Any, log: list) -> Any:
    """Which results get gradient differs from call to call."""
    s.calls += 1
    p, q, r = Sparing.apply(w * x, w * 1.0)
    ((p if s.calls % 2 else q) * (r if s.calls % 3 else 1.0)).sum().backward()
    return p.detach()


class Detaching(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x.detach())
        return x.detach()

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * x


@step
def a_result_that_shares_memory(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    z = Detaching.apply(y)
    (z * 2.0).sum().backward(retain_graph=True)
    y.detach().add_(1.0)
    attempt(log, (z * w).sum().backward)
    return z.detach()


@step
def random_in_backward(s: State, w: Any, x: Any, log: list) -> Any:
    y = w * x
    y.register_hook(lambda g: g * flame.rand(3))
    (y * flame.rand(3)).sum().backward()
    return flame.rand(3)


def both(program: Callable, compile: Callable[[Callable], Callable], turn: bool) -> str:
    """Where eager and compiled differ."""
    seen = []
    for wrap in (lambda f: f, compile):
        flame.manual_seed(1)
        s = State()

        def body(w: Any, x: Any, log: list, s: State = s) -> Any:
            got = program(s, w, x, log)
            kept = [t for t in s.kept if isinstance(t, flame.Tensor) and not t.requires_grad]
            return [got, s.total.clone(), *[t + 0.0 for t in kept]]

        seen.append(run(body, wrap, FIXED, turn))
    return difference(*seen, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_same_as_eager(name: str, turn: bool) -> None:
    found = both(NAMES[name], lambda f: flame.compile(f, backend="eager"), turn)
    assert not found, found
