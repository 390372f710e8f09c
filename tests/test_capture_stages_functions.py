"""Custom functions inside of compiled functions: what they keep, mark, refuse, write and give, in each other and in checkpoints.

Errors included, each program runs eagerly and compiled, over calls that take the path again and calls that leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import flame
from flame.utils.checkpoint import checkpoint
from tests.stages_for_tests import State, attempt, both
from tests.test_capture_stages import Exp, Square, TwoOfTwo

Function = flame.autograd.Function
NAMES: dict[str, Callable] = {}


def step(f: Callable) -> Callable:
    NAMES[f.__name__] = f
    return f


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


class Written(Function):
    """A result that was made before a value was looked at, and is filled after it, as solvers do."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        out = flame.empty(2, *x.shape)
        out[0] = x
        if float(x.sum()) < 1e9:
            out[1] = x * 2
        return out

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g[0] * 3.0 + g[1]


@step
def gives_what_it_wrote(s: State, w: Any, x: Any, log: list) -> Any:
    z = Written.apply(w * x)
    (z * w).sum().backward()
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


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_same_as_eager(name: str, turn: bool) -> None:
    found = both(NAMES[name], lambda f: flame.compile(f, backend="eager"), turn)
    assert not found, found
