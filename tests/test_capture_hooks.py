"""Python that backward calls: hooks of leaves in every place, and custom functions, whose own operations are captured."""

from __future__ import annotations

from typing import Any

import pytest

import flame
from flame.autograd import Function, grad
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor, watch


class Scaled(Function):
    """exp(x), with a gradient of its own that reads what was written in place before it was saved."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = x.exp()
        y.mul_(1.0)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, y = ctx.saved_tensors
        return g * y * x.cos()


class Overwriting(Function):
    """Writes what it saved: refused where it is read."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = x * 2.0
        ctx.save_for_backward(y)
        y.add_(1.0)
        return y * 1.0

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (y,) = ctx.saved_tensors
        return g * y


class Counting(Function):
    """Reads a value, and raises at the third of its backward passes."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.total = x.sum().item()
        return x * 3.0

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        Counting.passes += 1
        if Counting.passes % 3 == 0:
            raise ValueError("not this time")
        return g * ctx.total + g.sum().item()


@program
def hooked_leaves_are_frozen_and_thawed_between_forward_and_backward(wrap):
    """The leaf's end of the tape, and its hooks, are those that the first graph knows."""
    w, seen = tensor(3, seed=1, grad=True), []
    w.register_hook(lambda g: seen.append(g.detach() * 1.0))
    w.register_post_accumulate_grad_hook(lambda p: seen.append(None if p.grad is None else p.grad.clone()))

    @wrap
    def f(x, thaw):
        y = (w * x).exp().sum()
        w.requires_grad_(False)
        z = (w * x).sum()
        if thaw:
            w.requires_grad_(True)
            z = z + (w * x * x).sum()
        (y + z).backward()
        w.requires_grad_(True)
        return z.detach(), len(seen)

    return drive(f, [(x, i % 3 != 2) for i, x in enumerate(batches(3))], w, lambda: seen[-3:])


@program
def leaf_hooks_of_all_kinds(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    seen: list = []
    w.register_hook(lambda g: g.clamp(-0.5, 0.5))
    w.register_hook(lambda g: seen.append(g.detach() * 1.0))
    v.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(0.5))

    @wrap
    def f(x):
        (w * x * v).exp().sum().backward()
        return w.grad + v.grad

    return drive(f, batches(3), w, v, lambda: seen[-1])


@program
def leaf_hook_that_reads_a_value(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    seen: list = []
    w.register_hook(lambda g: seen.append(g.sum().item()))
    v.register_hook(lambda g: g * 2.0 if g.sum() > 0 else g)

    @wrap
    def f(x):
        (w * x * v).sum().backward()

    return drive(f, batches(3), w, v, seen)


@program
def leaf_hook_registered_and_removed_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, twice):
        handle = w.register_hook(lambda g: g * 2.0)
        (w * x).sum().backward()
        handle.remove()
        if twice:
            (w * x).sum().backward()

    return drive(f, [(x, i % 3 == 2) for i, x in enumerate(batches(3))], w)


@program
def leaf_hooks_through_inputs_and_grad(wrap):
    w, v = tensor(3, seed=1, grad=True), tensor(3, seed=2, grad=True)
    seen: list = []
    w.register_hook(lambda g: seen.append(1) or g * 3.0)
    v.register_hook(lambda g: seen.append(2) or g * 5.0)

    @wrap
    def f(x):
        loss = (w * x * v).exp().sum()
        loss.backward(inputs=[w], retain_graph=True)
        a, b = grad(loss, [v, w], create_graph=True)
        (c,) = grad((a * b).sum(), w)
        return a, b, c

    return drive(f, batches(3), w, v, lambda: sorted(seen))


@program
def leaf_hook_under_create_graph(wrap):
    w = tensor(3, seed=1, grad=True)
    w.register_hook(lambda g: g * g)

    @wrap
    def f(x):
        w.grad = None
        (w * x).exp().sum().backward(create_graph=True)
        total = (w.grad * x).sum()
        w.grad = None
        total.backward()

    return drive(f, batches(3), w)


@program
def hook_that_raises(wrap):
    w = tensor(3, seed=1, grad=True)
    calls: list = []

    def hook(g):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise ValueError("no")

    w.register_hook(hook)

    @wrap
    def f(x):
        w.grad = None
        y = x * 2.0
        found = watch(lambda: (w * y).sum().backward())
        return y + 1.0, found

    return drive(f, batches(3), w, calls)


@program
def optimizer_in_a_hook(wrap):
    ws = [tensor(3, seed=i, grad=True) for i in (1, 2)]

    def step(p):
        with flame.no_grad():
            p.sub_(p.grad, alpha=0.1)
        p.grad = None

    for w in ws:
        w.register_post_accumulate_grad_hook(step)

    @wrap
    def f(x):
        loss = ((ws[0] * x).tanh() * ws[1]).sum()
        loss.backward()
        return loss

    return drive(f, batches(3), *ws)


@program
def shared_leaf_hooked(wrap):
    w = tensor(3, seed=1, grad=True)
    held = w.detach().numpy()
    w.register_hook(lambda g: g * 2.0)

    @wrap
    def f(x):
        w.grad = None
        (w * x * w).sum().backward(inputs=[w])

    return drive(f, batches(3), w, lambda: float(held.sum()))


@program
def custom_function_of_all_orders(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        w.grad = None
        y = Scaled.apply(w * x)
        (g,) = grad((y * w).sum(), w, create_graph=True)
        (g * g).sum().backward()
        return y.detach(), g.detach()

    return drive(f, batches(3), w)


@program
def custom_function_differentiated_outside(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x: (Scaled.apply(w * x) + Scaled.apply(x * 0.5)).tanh())
    return drive(f, batches(3), w, after=lambda y: y.sum().backward())


@program
def custom_function_without_gradient(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        with flame.no_grad():
            a = Scaled.apply(w * x)
        return a + Scaled.apply(x), a.requires_grad

    return drive(f, batches(3), w)


@program
def custom_function_that_overwrites_what_it_saved(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x):
        w.grad = None
        return watch(lambda: Overwriting.apply(w * x).sum().backward())

    return drive(f, batches(3))


@program
def custom_function_that_reads_and_raises(wrap):
    w = tensor(3, seed=1, grad=True)
    Counting.passes = 0

    @wrap
    def f(x):
        w.grad = None
        y = x * 2.0
        found = watch(lambda: Counting.apply(w * y).sum().backward())
        return y + 1.0, found, None if w.grad is None else w.grad * 1.0

    return drive(f, batches(3), w)


@program
def custom_function_saves_what_was_written_before(wrap):
    w, buffer = tensor(3, seed=1, grad=True), tensor(3, seed=2)

    @wrap
    def f(x):
        x.copy_(w * 1.5)
        buffer.add_(1.0)
        return Scaled.apply(x) * Scaled.apply(buffer * w[1:2])

    return drive(f, batches(3), w, buffer, after=lambda y: y.sum().backward())


@program
def version_inside(wrap):
    buffer = tensor(3, seed=1)

    @wrap
    def f(x):
        y = x * 2.0
        seen = [y._version, buffer._version]
        y.add_(1.0)
        y[1:].mul_(2.0)
        buffer.add_(x)
        return y, seen[0], y._version, y[1:]._version, buffer._version - seen[1]

    return drive(f, batches(3), buffer)


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)


def breaks_of(f: Any) -> list:
    compiled = flame.compile(f, backend="eager")
    for x in batches(3):
        compiled(x)
    assert compiled.stats.followed, "nothing was followed"
    return sorted({reason.split()[0] for _, reason in compiled.stats.breaks})


def test_hooks_of_leaves_do_not_end_the_graph() -> None:
    w = tensor(3, seed=1, grad=True)
    w.register_hook(lambda g: g.clamp(-0.5, 0.5))
    w.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(0.5))

    def step(x):
        w.grad = None
        with w.register_hook(lambda g: g * 2.0):
            (w * x).exp().sum().backward()

    assert breaks_of(step) == []


def test_a_custom_function_ends_the_graph_only_where_gradient_is_wanted() -> None:
    w = tensor(3, seed=1, grad=True)
    assert breaks_of(lambda x: Scaled.apply(x * 2.0) + 1.0) == []
    assert breaks_of(lambda x: Scaled.apply(w * x)) == ["FL1005"]


def test_what_a_custom_function_computes_is_captured() -> None:
    """Its forward before a break, its backward between two."""
    w = tensor(3, seed=1, grad=True)

    @flame.compile
    def step(x):
        w.grad = None
        Scaled.apply(w * x).sum().backward()

    for x in batches(3):
        step(x)
    graphs = [{n.primitive.name for n in g.nodes} for g in step.graphs]
    assert any("exp" in names for names in graphs) and any("cos" in names for names in graphs)
