"""More operations of the random programs of `tests.fuzz_capture`: what Python, modules, optimizers and autograd do around tensors.

    inside  ::= operation(scene, t, b, c) -> tensor or None     runs in the compiled function; a tensor joins those that it has
    outside ::= operation(world, result, call, c)               runs between two calls, on what the last one returned

`t` is a tensor of three columns; b and c are random numbers in [0, 1). What an operation may raise is caught where a program would
do so, and noted by its type; other errors end the call.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import flame
import flame.nn.functional as F
from flame import nn
from tests.fuzz_world import Halved, Pair, Refusing, World

Inside = Callable[..., Any]
INSIDE: dict[str, Inside] = {}
OUTSIDE: dict[str, Callable[..., None]] = {}


class Scene:
    """One call: its world, its argument, its number, and the tensors that it has made so far."""

    def __init__(self, world: World, x: Any, k: Any, flag: bool, have: list, log: list, matrix: Callable, vector: Callable):
        self.world, self.x, self.k, self.flag = world, x, k, flag
        self.have, self.log, self.matrix, self.vector = have, log, matrix, vector

    def attempt(self, f: Callable[[], Any]) -> Any:
        """What a call gives; where it raises, None, and the error's type is noted."""
        try:
            return f()
        except (RuntimeError, TypeError, ValueError, IndexError) as e:
            self.log.append(type(e).__name__)
            return None


def inside(f: Inside) -> Inside:
    INSIDE[f.__name__] = f
    return f


def outside(f: Callable[..., None]) -> Callable[..., None]:
    OUTSIDE[f.__name__] = f
    return f


# ---------------------------------------------------------------- Python's state: globals, attributes, closures, containers

counter = 0


@inside
def global_count(s: Scene, t: Any, b: float, c: float) -> Any:
    global counter
    counter = (counter + 1) % 3
    return t * counter


@inside
def attribute(s: Scene, t: Any, b: float, c: float) -> Any:
    before, s.world.kept = s.world.kept, t.detach().sum(0) if c < 0.7 else t.sum(0).detach() * 1.0
    s.world.count += 1
    return t + before if before is not None else t + s.world.count


@inside
def closure(s: Scene, t: Any, b: float, c: float) -> Any:
    total = t.sum(0)

    def more(y: Any) -> Any:
        nonlocal total
        total = total + y.sum(0) * s.k
        return total

    more(t)
    return t + more(s.matrix(b))


@inside
def grow_list(s: Scene, t: Any, b: float, c: float) -> Any:
    s.world.grown.append(t.detach().sum(0) if c < 0.7 else t.detach()[:1].sum(0))
    if len(s.world.grown) > 4 and c < 0.5:
        s.world.grown.clear()
        return None
    return flame.stack(s.world.grown)


@inside
def grow_dict(s: Scene, t: Any, b: float, c: float) -> Any:
    s.world.table[len(s.world.table) % 5] = t.detach().mean(0) * 1.0 if t.shape[0] else flame.zeros(3)
    return t + sum(s.world.table.values())


@inside
def ordered(s: Scene, t: Any, b: float, c: float) -> Any:
    rows = sorted([t.sum(), s.vector(b).sum(), t.detach().max() if t.numel() else t.sum()], key=lambda v: v.item())
    return t * rows[0].detach() + rows[-1]


@inside
def generator_rows(s: Scene, t: Any, b: float, c: float) -> Any:
    def rows() -> Iterator[Any]:
        for i in range(t.shape[0]):
            yield t[i] * (i + 1)

    return t + sum(rows(), start=flame.zeros(3)) if c < 0.6 else flame.stack([*rows(), s.vector(b)])


@inside
def suspended(s: Scene, t: Any, b: float, c: float) -> Any:
    def values() -> Iterator[Any]:
        held = t.detach().sum(0)
        while True:
            yield held
            held = held * 0.5

    if s.world.source is None:
        s.world.source = values()
    return t + next(s.world.source)


@inside
def recursion(s: Scene, t: Any, b: float, c: float) -> Any:
    def down(y: Any, n: int) -> Any:
        return y if n == 0 else down(y * 0.5, n - 1) + n

    return down(t, int(c * 4))


@inside
def context(s: Scene, t: Any, b: float, c: float) -> Any:
    @contextmanager
    def scaled() -> Iterator[Any]:
        y = t * 2.0
        try:
            yield y
        finally:
            s.world.kept = y.detach().sum(0)

    with scaled() as y:
        return y + 1


@inside
def finish(s: Scene, t: Any, b: float, c: float) -> Any:
    s.log.append("finally")
    try:
        if not s.flag:
            raise KeyError("early")
        return t * 1.5
    except KeyError:
        t = t - 1
    finally:
        s.world.count += 2
    return t


@inside
def raise_after_effects(s: Scene, t: Any, b: float, c: float) -> Any:
    def fails() -> None:
        s.world.buffer.mul_(0.9)
        y = t * w0
        if c < 0.5:
            s.world.escaped.append(y)
        y @ flame.ones(7, 2)

    w0 = s.world.weights[0]
    s.attempt(fails)
    return t + s.world.buffer.sum()


# ---------------------------------------------------------------- numbers from shapes and values


@inside
def shape_arange(s: Scene, t: Any, b: float, c: float) -> Any:
    return t + flame.arange(t.shape[0]).unsqueeze(1) * (0.1 if c < 0.5 else s.k)


@inside
def shape_zeros(s: Scene, t: Any, b: float, c: float) -> Any:
    n = t.shape[0]
    return flame.cat([flame.zeros(n, 3) + 0.5, t])[: n + 1] if c < 0.5 else flame.ones(2 * n, 3)[n:] * t


@inside
def shape_reshape(s: Scene, t: Any, b: float, c: float) -> Any:
    n = t.shape[0]
    flat = t.reshape(n * 3)
    return flat.reshape(3, n).t() * 1.0 if c < 0.5 else flat.view(n, 3, 1).sum(-1)


@inside
def shape_slice(s: Scene, t: Any, b: float, c: float) -> Any:
    n = t.shape[0]
    return (t[: n // 2], t[n - 1 :] if n else t, t[max(n - 2, 0) :], t[::2])[int(c * 4)]


@inside
def shape_arithmetic(s: Scene, t: Any, b: float, c: float) -> Any:
    n = t.shape[0]
    return (t / (n + 1), t * t.numel() ** 0.5, t - n % 2, t + n * s.k, t * len(t) - n // 2)[int(c * 5)]


@inside
def shape_branch(s: Scene, t: Any, b: float, c: float) -> Any:
    return t.tanh() if t.shape[0] > 2 else t * 2


@inside
def shape_loop(s: Scene, t: Any, b: float, c: float) -> Any:
    total = flame.zeros(3)
    for i, row in enumerate(t if c < 0.5 else t.unbind(0)):
        total = total + row * i
    return t + total


@inside
def shape_text(s: Scene, t: Any, b: float, c: float) -> Any:
    s.log.append(f"{tuple(t.shape)} {t.numel()} {t.dtype} {t.stride()} {t.ndim}")
    return t.expand(t.shape[0], 3)


@inside
def shape_split(s: Scene, t: Any, b: float, c: float) -> Any:
    if t.shape[0] < 2:
        return None
    p, q = t.split([1, t.shape[0] - 1])
    return q + p


@inside
def int_of_value(s: Scene, t: Any, b: float, c: float) -> Any:
    n = int(t.detach().abs().sum().clamp(max=50.0)) % 3
    return t[:n] if c < 0.5 else t * n


@inside
def while_value(s: Scene, t: Any, b: float, c: float) -> Any:
    for _ in range(3):
        if t.detach().abs().sum().item() < 4:
            break
        t = t * 0.4
    return t


@inside
def tolist(s: Scene, t: Any, b: float, c: float) -> Any:
    s.log.append(t.sum(1).tolist() if c < 0.5 else float(t.sum()))


@inside
def number_kinds(s: Scene, t: Any, b: float, c: float) -> Any:
    k = s.k
    return (
        t * k,
        k - t,
        t.add(w, alpha=k) if (w := s.vector(b)) is not None else t,
        t // (abs(k) + 1),
        flame.where(t > 0, t, k),
    )[int(c * 5)]


@inside
def full_of(s: Scene, t: Any, b: float, c: float) -> Any:
    y = flame.full((3,), s.k) if c < 0.5 else flame.tensor([float(s.k), 1.0, 2.0])
    return t + y


# ---------------------------------------------------------------- dtypes


@inside
def integers(s: Scene, t: Any, b: float, c: float) -> Any:
    i = (t.detach() * 5).int()
    return t + ((i // 2) % 3 + (i & 1) + (i << 1)).float() * (i / 2)


@inside
def masks(s: Scene, t: Any, b: float, c: float) -> Any:
    m = (t > 0) & ~(t > 0.5) | (t < s.k)
    return t * m + m.sum() * 0.1 + m.any(0).float()


@inside
def mixed_floats(s: Scene, t: Any, b: float, c: float) -> Any:
    y = t.double() * s.vector(b) if c < 0.5 else t.bfloat16() * s.vector(b)
    s.log.append(str(y.dtype))
    return y.float()


@inside
def long_index(s: Scene, t: Any, b: float, c: float) -> Any:
    if not t.shape[0]:
        return None
    i = t.detach().argmin(0)
    return t[i] if c < 0.5 else t.index_select(0, i)


@inside
def scattered(s: Scene, t: Any, b: float, c: float) -> Any:
    i = flame.tensor([0, 2, 1])
    return flame.zeros_like(t).scatter_add(1, i.expand(t.shape[0], 3), t) if c < 0.5 else t.index_fill(1, i[:1], 0.5)


# ---------------------------------------------------------------- aliases, views, writes, lifetimes


@inside
def outer_window(s: Scene, t: Any, b: float, c: float) -> Any:
    if c < 0.3:
        s.world.window.add_(0.25)
    elif c < 0.6:
        s.world.buffer.mul_(0.75)
    return s.world.window * 1.0 + s.world.buffer[1:3]


@inside
def second_argument(s: Scene, t: Any, b: float, c: float) -> Any:
    y = s.x if c < 0.4 else s.x[1:] if c < 0.7 else s.x.detach()
    y.mul_(0.5)
    return s.x + (y if y.shape == s.x.shape else 1.0)


@inside
def write_all(s: Scene, t: Any, b: float, c: float) -> Any:
    y = t * 1.0
    y[...] = s.vector(b) if c < 0.5 else s.k
    return y


@inside
def swap(s: Scene, t: Any, b: float, c: float) -> Any:
    if t.shape[0] < 2:
        return None
    y = t.clone()
    y[0], y[1] = y[1].clone(), y[0].clone()
    return y


@inside
def out_of(s: Scene, t: Any, b: float, c: float) -> Any:
    y = flame.empty_like(t.detach())
    s.attempt(lambda: flame.mul(t if c < 0.3 else t.detach(), s.k, out=y))
    return y if not c < 0.3 else None


@inside
def overlapping(s: Scene, t: Any, b: float, c: float) -> Any:
    y = t.clone()
    p, q = y[:, :2], y[:, 1:]
    p.add_(q if c < 0.5 else 1.0)
    return y + q.sum()


@inside
def transposed_write(s: Scene, t: Any, b: float, c: float) -> Any:
    y = t.clone()
    y.t()[1].mul_(3.0)
    y.t().reshape(-1).add_(1.0)
    return y


@inside
def expanded_write(s: Scene, t: Any, b: float, c: float) -> Any:
    y = s.vector(b).expand(2, 3)
    s.attempt(lambda: y.add_(1.0))
    s.attempt(lambda: t.add_(flame.ones(9, 3)))
    return y


@inside
def mask_fill(s: Scene, t: Any, b: float, c: float) -> Any:
    return t.clone().masked_fill_(t.detach() > 0.3, s.k)


@inside
def weak(s: Scene, t: Any, b: float, c: float) -> Any:
    """(When what nobody holds is gone is not part of the promise: a segment may hold it until it ends, the tape longer.)"""
    y = t * 2.0
    r = weakref.ref(y)
    y = y + 1.0 if c < 0.5 else r() * 1.5
    s.log.append(r is not None)
    return y


@inside
def delete_base(s: Scene, t: Any, b: float, c: float) -> Any:
    y = t * 1.0
    v = y[:1]
    del y
    v.add_(1.0)
    return v


@inside
def deep_copy(s: Scene, t: Any, b: float, c: float) -> Any:
    s.world.copied = copy.deepcopy([s.world.weights[0], s.world.buffer] if c < 0.6 else {"t": t.detach()})
    return t + (s.world.copied[0] if c < 0.6 else 1.0)


@inside
def new_data(s: Scene, t: Any, b: float, c: float) -> Any:
    w = s.world.weights[2]
    w.data = w.detach() * 0.5 if c < 0.5 else flame.ones(3)
    return t * w


@inside
def replaced_weight(s: Scene, t: Any, b: float, c: float) -> Any:
    s.world.weights[2] = (s.world.weights[2].detach() + 0.1).requires_grad_()
    return t * s.world.weights[2]


@inside
def identity(s: Scene, t: Any, b: float, c: float) -> Any:
    y = t.contiguous() if c < 0.3 else t.float() if c < 0.6 else t.to(flame.float32)
    s.log.append(y is t)
    y.add_(0.5)
    return t + y


# ---------------------------------------------------------------- modules, optimizers, random numbers


@inside
def module(s: Scene, t: Any, b: float, c: float) -> Any:
    net = s.world.module()
    net.train(s.flag if c < 0.5 else True)
    return s.attempt(lambda: net(t))


@inside
def module_hook(s: Scene, t: Any, b: float, c: float) -> Any:
    net = s.world.module()
    if "forward" in s.world.handles:
        s.world.handles.pop("forward").remove()
    else:
        s.world.handles["forward"] = net.linear.register_forward_hook(lambda m, args, y: y * 2.0)
    return net.linear(t)


@inside
def frozen(s: Scene, t: Any, b: float, c: float) -> Any:
    net = s.world.module()
    net.linear.weight.requires_grad_(s.flag)
    return net.linear(t)


@inside
def reload(s: Scene, t: Any, b: float, c: float) -> Any:
    net = s.world.module()
    state = {k: v.detach().clone() for k, v in net.state_dict().items()}
    y = F.linear(t, net.linear.weight * 2.0)
    net.load_state_dict(state)
    return y


@inside
def train(s: Scene, t: Any, b: float, c: float) -> Any:
    net, optimizer = s.world.module(), s.world.trainer(b)
    optimizer.zero_grad(set_to_none=c < 0.7)
    loss = (net.linear(t.detach()) ** 2).mean() if t.numel() else net.linear.bias.sum()
    loss.backward()
    if c < 0.4:
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    optimizer.step()
    if c > 0.3:
        s.world.schedule.step()
    return t + loss.detach()


@inside
def moving_average(s: Scene, t: Any, b: float, c: float) -> Any:
    with flame.no_grad():
        for m, w in zip(s.world.momenta, s.world.weights, strict=True):
            m.lerp_(w, 0.3)
    return t + s.world.momenta[0]


@inside
def dropout(s: Scene, t: Any, b: float, c: float) -> Any:
    return F.dropout(t, 0.5, training=s.flag)


@inside
def drawn(s: Scene, t: Any, b: float, c: float) -> Any:
    match int(c * 5):
        case 0:
            return t + flame.rand(3, generator=s.world.generator)
        case 1:
            return t + flame.randint(0, 5, (3,))
        case 2:
            return t[flame.randperm(t.shape[0])]
        case 3:
            return t + flame.empty(3).uniform_(-1, 1)
        case _:
            return t + flame.bernoulli(flame.full((3,), 0.5))


@inside
def rng_state(s: Scene, t: Any, b: float, c: float) -> Any:
    state = flame.get_rng_state()
    y = flame.rand(3)
    if c < 0.6:
        flame.set_rng_state(state)
    with flame.fork_rng():
        z = flame.rand(3)
    return t + y - z + flame.rand(3)


# ---------------------------------------------------------------- gradients inside of the function


@inside
def modes(s: Scene, t: Any, b: float, c: float) -> Any:
    w0 = s.world.weights[0]
    with flame.no_grad():
        y = t * w0
        with flame.enable_grad():
            z = t * w0
            with flame.set_grad_enabled(s.flag):
                u = t + w0
        with flame.inference_mode(c < 0.5):
            v = t.detach() * 2.0
    s.log.append([q.requires_grad for q in (y, z, u, v)])
    return y + z + u + v.clone()


@inside
def tensor_hook(s: Scene, t: Any, b: float, c: float) -> Any:
    y = t * s.world.weights[0]
    y.register_hook(lambda g: s.world.noted.append(g.detach().sum()) if c < 0.5 else g * 0.5)
    if c < 0.3:
        y.sum().backward(retain_graph=True)
    return y


@inside
def leaf_hook(s: Scene, t: Any, b: float, c: float) -> Any:
    if "leaf" in s.world.handles:
        s.world.handles.pop("leaf").remove()
    else:
        s.world.handles["leaf"] = s.world.weights[0].register_hook(lambda g: g * 3.0)
    return t * s.world.weights[0]


@inside
def post_hook(s: Scene, t: Any, b: float, c: float) -> Any:
    def note(p: Any) -> None:
        s.world.noted.append(p.grad.detach().clone())
        if c < 0.3:
            p.grad = None

    if "post" in s.world.handles and c < 0.7:
        s.world.handles.pop("post").remove()
    elif "post" not in s.world.handles:
        s.world.handles["post"] = s.world.weights[2].register_post_accumulate_grad_hook(note)
    (t * s.world.weights[2]).sum().backward(retain_graph=True)


@inside
def retained(s: Scene, t: Any, b: float, c: float) -> Any:
    y = t * s.world.weights[0]
    y.retain_grad()
    (y * y).sum().backward(retain_graph=True)
    return t + y.grad.detach().sum(0)


@inside
def into_inputs(s: Scene, t: Any, b: float, c: float) -> Any:
    w0, w1, w2 = s.world.weights
    y = t * w0 * w2 + (t @ w1)
    y.sum().backward(inputs=[w0] if c < 0.5 else [w2, w1], retain_graph=True)
    return y


@inside
def custom_pair(s: Scene, t: Any, b: float, c: float) -> Any:
    y, sign = Pair.apply(t, s.world.weights[0], float(s.k))
    s.log.append([y.requires_grad, sign.requires_grad])
    return y + sign


@inside
def custom_between(s: Scene, t: Any, b: float, c: float) -> Any:
    w0 = s.world.weights[0]
    loss = (Halved.apply(t.detach() * w0) * w0).sum()
    if c < 0.5:
        loss.backward()
        return None
    (g,) = flame.autograd.grad(loss, w0, create_graph=True)
    return t + g


@inside
def custom_raises(s: Scene, t: Any, b: float, c: float) -> Any:
    y = Refusing.apply(t * s.world.weights[0])
    s.attempt(lambda: y.sum().backward())


@inside
def several_losses(s: Scene, t: Any, b: float, c: float) -> Any:
    w0, w1, w2 = s.world.weights
    d = t.detach()
    p, q = d * w0, (d @ w1).tanh() * w2
    if c < 0.5:
        flame.autograd.backward([p.sum(), q.sum()])
    else:
        flame.autograd.backward([p, q], [flame.ones_like(p), q.detach() * s.k])
    return d + q.detach()


@inside
def unused(s: Scene, t: Any, b: float, c: float) -> Any:
    w0, w1, w2 = s.world.weights
    loss = (t.detach() * w0).sum()
    got = flame.autograd.grad(loss, [w0, w1, w2], allow_unused=True, materialize_grads=c < 0.5)
    s.log.append([g is None for g in got])
    return t + got[0]


@inside
def undefined(s: Scene, t: Any, b: float, c: float) -> Any:
    w1 = s.world.weights[1]
    p, q, r = w1.unbind(0)
    v = (q * r.detach()).sum() if c < 0.5 else (w1.max(1).values * p.detach()).sum()
    v.backward()
    return t * r


@inside
def penalty(s: Scene, t: Any, b: float, c: float) -> Any:
    w0, w1, _ = s.world.weights
    y = t.detach().clone().requires_grad_()
    out = ((y * w0).tanh() @ w1).sum()
    (g,) = flame.autograd.grad(out, y, create_graph=True)
    ((g * g).sum() + out).backward()
    return t + g.detach()


@inside
def penalty_of_weights(s: Scene, t: Any, b: float, c: float) -> Any:
    w0, w1, _ = s.world.weights
    out = ((t.detach() * w0).tanh() @ w1).pow(2).sum()
    g0, g1 = flame.autograd.grad(out, [w0, w1], create_graph=True)
    if c < 0.5:
        ((g0 * g0).sum() + (g1 * w1).sum()).backward()
        return None
    return t + g0 * 0.1


@inside
def third_order(s: Scene, t: Any, b: float, c: float) -> Any:
    w0 = s.world.weights[0]
    y = ((t.detach() * w0) ** 4).sum() * 0.1
    (g,) = flame.autograd.grad(y, w0, create_graph=True)
    (h,) = flame.autograd.grad(g.sum(), w0, create_graph=c < 0.6)
    if c < 0.6:
        h.sum().backward()
    return t + h.detach() * 0.1


@inside
def accumulate(s: Scene, t: Any, b: float, c: float) -> Any:
    w0 = s.world.weights[0]
    for i in range(2):
        (t.detach() * w0 * (i + 1)).sum().backward()
    with flame.no_grad():
        w0.grad.mul_(0.5)
    if c < 0.3:
        w0.grad = w0.grad * 0.5


@inside
def retain_twice(s: Scene, t: Any, b: float, c: float) -> Any:
    loss = (t.detach() * s.world.weights[0]).exp().mean() if t.numel() else s.world.weights[0].sum()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=c < 0.5)
    if c < 0.8:
        s.attempt(loss.backward)


@inside
def write_between(s: Scene, t: Any, b: float, c: float) -> Any:
    w0 = s.world.weights[0]
    y = t.detach() * w0
    z = y.exp() if c < 0.5 else y * y
    match int(b * 4):
        case 0:
            y.add_(1.0)
        case 1:
            z.add_(1.0)
        case 2:
            y[:1].mul_(2.0)
        case _:
            y.detach().mul_(2.0)
    s.attempt(lambda: z.sum().backward())


@inside
def leaf_write_between(s: Scene, t: Any, b: float, c: float) -> Any:
    w0 = s.world.weights[0]
    loss = (t.detach() * w0 * w0).sum() if c < 0.5 else (t.detach() * w0).sum()
    with flame.no_grad():
        w0.add_(0.01)
    s.attempt(loss.backward)
    s.attempt(lambda: w0.add_(1.0))
    s.attempt(lambda: w0[:1].add_(1.0))


@inside
def toggled(s: Scene, t: Any, b: float, c: float) -> Any:
    w2 = s.world.weights[2]
    w2.requires_grad_(False)
    y = t.detach() * w2  # (what is asked for its derivative later is asked as it is then: eager alone sees the flag come back)
    w2.requires_grad_(True)
    return y + t * w2


@inside
def nested(s: Scene, t: Any, b: float, c: float) -> Any:
    y = s.world.inner(t, s.world.weights[0])
    if c < 0.4:
        y.sum().backward(retain_graph=True)
    return y


@inside
def nested_new(s: Scene, t: Any, b: float, c: float) -> Any:
    return s.world.wrap(lambda u: u * s.k + 1)(t)


@inside
def checkpointed(s: Scene, t: Any, b: float, c: float) -> Any:
    checkpoint = getattr(getattr(getattr(flame, "utils", None), "checkpoint", None), "checkpoint", None)
    if checkpoint is None:
        return None
    w0, w1, _ = s.world.weights
    y = checkpoint(lambda u: F.dropout((u * w0).tanh() @ w1, 0.3), t, use_reentrant=c < 0.3)
    if c < 0.6 and y.requires_grad:
        y.sum().backward(retain_graph=True)
    return y


# ---------------------------------------------------------------- between two calls


@outside
def outer_double(world: World, result: list, call: int, c: float) -> None:
    """(With respect to all weights: what was written since is refused by a compiled function also where gradient of it is not
    asked for.)"""
    got = flame.autograd.grad(result[0], world.weights, create_graph=True, allow_unused=True)
    squares = [(g * g).sum() for g in got if g is not None and g.requires_grad]
    if squares:
        sum(squares[1:], start=squares[0]).backward()


@outside
def outer_retain(world: World, result: list, call: int, c: float) -> None:
    result[0].backward(retain_graph=True)
    result[0].backward(retain_graph=c < 0.5)
    if c < 0.2:
        result[0].backward()


@outside
def outer_write(world: World, result: list, call: int, c: float) -> None:
    with flame.no_grad():
        (world.weights[0], world.weights[1], result[1], world.buffer, result[-1])[int(c * 5)].mul_(0.9)


@outside
def outer_partial(world: World, result: list, call: int, c: float) -> None:
    for t in result[2][:1]:
        if t.requires_grad:
            t.sum().backward(retain_graph=c < 0.5)


@outside
def outer_hook(world: World, result: list, call: int, c: float) -> None:
    if result[1].requires_grad:
        result[1].register_hook(lambda g: g * 2.0)
        result[1].retain_grad()
        result[1].sum().backward(retain_graph=True)
        world.noted.append(None if result[1].grad is None else result[1].grad.detach().clone())


@outside
def outer_inputs(world: World, result: list, call: int, c: float) -> None:
    result[0].backward(inputs=world.weights, retain_graph=True)


@outside
def outer_swap(world: World, result: list, call: int, c: float) -> None:
    if call == 3:
        world.weights[2] = (world.weights[2].detach() * 0.5).requires_grad_(c < 0.7)
    if call == 4:
        world.buffer = world.buffer.clone()


@outside
def outer_keep(world: World, result: list, call: int, c: float) -> None:
    world.losses.append(result[0])


@outside
def outer_nested(world: World, result: list, call: int, c: float) -> None:
    y = world.inner(world.buffer[:2] * (call + 1), world.weights[0])
    y.sum().backward()


@outside
def outer_numpy(world: World, result: list, call: int, c: float) -> None:
    a = np.asarray(result[1].detach())
    if a.flags.writeable:
        a *= 0.5
    world.noted.append(float(a.sum()))
