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

import flame
import flame.nn.functional as F
from flame import nn
from tests.fuzz_world import World

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
def other_data(s: Scene, t: Any, b: float, c: float) -> Any:
    """Of another dtype, while losses of the old data wait for their backward pass."""
    w = s.world.weights[2]
    s.world.losses.append((t.detach() * w).sum())
    w.data = w.detach().double() * 0.5 if c < 0.7 else w.detach().half()
    loss = (t.detach() * w).sum()
    if b < 0.6:
        (loss + s.world.losses[-1]).backward(retain_graph=True)
    w.data = w.detach().float()
    w.grad = None
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
