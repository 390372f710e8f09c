"""Operations of the random programs of `tests.fuzz_capture` around gradients: inside of the compiled function, and between calls.

What they are given is said in `tests.fuzz_features`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import flame
import flame.nn.functional as F
from flame.utils.checkpoint import checkpoint
from tests.fuzz_features import Scene, inside, outside
from tests.fuzz_world import Halved, Pair, Refusing, World, rounded

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
    y.register_hook(lambda g: s.world.heard.append(g.detach().sum()) if c < 0.5 else g * 0.5)
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
def numpy_between(s: Scene, t: Any, b: float, c: float) -> Any:
    """NumPy writes what backward reads."""
    w0 = s.world.weights[0]
    y = (s.world.shared * w0 * w0).exp()
    loss = (y * s.world.shared).sum() * 0.01
    if b < 0.7:
        s.world.array[int(b * 5)] += 0.25
    if c < 0.6:
        s.attempt(lambda: loss.backward(retain_graph=c < 0.3))
        return None
    got = flame.autograd.grad(loss, w0, create_graph=True)[0]
    if b < 0.4:
        s.world.array[0] -= 0.25
    return t + got


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
    y = t * w2 if c < 0.7 else t.detach() * w2
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
    """(Of temporaries, and differentiated at once: eager guards what it runs again on, and may run it again a second time, where a
    compiled function has an ordinary graph.)"""
    w0, w1, _ = s.world.weights
    f = lambda u, a, b: F.dropout((u * a).tanh() @ b, 0.3)
    y = checkpoint(f, t.detach() * 1.0, w0 * 1.0, w1 * 1.0, use_reentrant=c < 0.3)
    if y.requires_grad:
        y.sum().backward()
    return y.detach()


@inside
def staged(s: Scene, t: Any, b: float, c: float) -> Any:
    """Hooks on inner results, called in a backward pass inside: they change, look on, read, raise, are taken away."""
    w0, w1, _ = s.world.weights
    y = (t.detach() * w0) @ w1
    z = y.tanh()

    def raises(g: Any) -> Any:
        raise RuntimeError("Trying to backward: no")  # (which of this and the tape's refusals comes first is not promised)

    hooks = (
        lambda g: g * 0.5,
        lambda g: s.world.heard.append(g.sum()),
        lambda g: s.world.heard.append(g.sum().item()),
        raises,
        lambda g: g * s.k + y.detach(),
    )
    handle = y.register_hook(hooks[int(b * 5)])
    z.register_hook(hooks[int(c * 5)])
    if b > 0.9:
        handle.remove()
    loss = (z * y).sum() + (z * w0).sum()
    s.attempt(lambda: loss.backward(retain_graph=0.3 < c < 0.6))
    if 0.3 < c < 0.6:
        s.attempt(lambda: loss.backward(inputs=[w0]))
    return z if b < 0.2 else z.detach()


@inside
def staged_custom(s: Scene, t: Any, b: float, c: float) -> Any:
    """Custom functions with hooks and in each other, differentiated inside, once or twice."""
    w0 = s.world.weights[0]
    y = Halved.apply(t.detach() * w0)
    if b < 0.5:
        y.register_hook(lambda g: g * 2.0)
    p, _ = Pair.apply(y, w0 if c < 0.5 else w0 * 0.5, float(s.k))
    loss = (p * y).sum()
    if b < 0.3 or b > 0.9:
        (g,) = flame.autograd.grad(loss, w0, create_graph=True)
        (g * g).sum().backward()
        return t + g if c < 0.3 else None
    loss.backward(retain_graph=c < 0.2)
    return y if c < 0.2 else y.detach()


@inside
def hooks_of_hooks(s: Scene, t: Any, b: float, c: float) -> Any:
    """Hooks on inner results that hook others, take them away, or call backward, in a pass inside or one after the call."""
    w0, w1, _ = s.world.weights
    y = (t.detach() * w0) @ w1
    z = y.tanh()
    handle = y.register_hook(lambda g: g * 0.5)
    deep: list = []

    def again(g: Any) -> None:
        if not deep:
            deep.append(1)
            z.sum().backward(retain_graph=True) if z.requires_grad and flame.is_grad_enabled() else None

    acts = (
        lambda g: (y.register_hook(lambda h: h * h), None)[1],
        lambda g: handle.remove(),
        again,
        lambda g: (z.register_hook(lambda h: h * 3.0), g * 1.5)[1],
    )
    z.register_hook(acts[int(b * 4)])
    loss = (z * y).sum() + (z * w0).sum()
    if c < 0.7:
        s.attempt(lambda: loss.backward(retain_graph=c < 0.3))
    return z if c < 0.2 or c > 0.7 else z.detach()


@inside
def autocast(s: Scene, t: Any, b: float, c: float) -> Any:
    w0, w1, _ = s.world.weights
    with flame.autocast("cpu", dtype=flame.bfloat16, enabled=s.flag if b < 0.5 else True):
        y = rounded(t) @ rounded(w1)
        z = (rounded(y.float()) * w0).sum()
    if c < 0.4 and z.requires_grad:
        z.backward(retain_graph=True)
    return rounded(y.float())


@inside
def batched(s: Scene, t: Any, b: float, c: float) -> Any:
    w0 = s.world.weights[0]
    d = t.detach()
    if not d.shape[0]:
        return None
    if c < 0.5:
        return flame.func.vmap(lambda r: (r * w0.detach()).tanh() * s.k)(d)
    return flame.func.vmap(flame.func.grad(lambda r: (r * r * w0.detach()).sum()))(d)


@inside
def default_dtype(s: Scene, t: Any, b: float, c: float) -> Any:
    flame.set_default_dtype(flame.float64 if s.flag else flame.float32)
    try:
        y = flame.full((3,), 0.5) + (flame.ones(3) if b < 0.5 else flame.tensor([1.0, 2.0, 3.0]))
    finally:
        flame.set_default_dtype(flame.float32)
    s.log.append(str(y.dtype))
    return t + y.float()


# ---------------------------------------------------------------- between two calls


@outside
def outer_double(world: World, result: list, call: int, c: float) -> None:
    of = world.weights if c < 0.5 else world.weights[int(c * 3) :]
    got = flame.autograd.grad(result[0], of, create_graph=True, allow_unused=True)
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
def outer_hooks(world: World, result: list, call: int, c: float) -> None:
    """Hooks on results that others depend on, heard in first and second derivatives at once; some hook again."""
    y = result[1]
    if not y.requires_grad or not result[0].requires_grad:
        return
    acts = (lambda g: g * g, lambda g: g.tanh() + 0.5, lambda g: (y.register_hook(lambda h: h * 2.0), None)[1])
    handle = y.register_hook(acts[int(c * 3)])
    (g,) = flame.autograd.grad(result[0], world.weights[0], create_graph=c < 0.8, retain_graph=True, allow_unused=True)
    if g is not None:
        (g.sum() * 0.5 + result[0]).backward(retain_graph=True)
    if c < 0.5:
        handle.remove()


@outside
def outer_inputs(world: World, result: list, call: int, c: float) -> None:
    of = world.weights if c < 0.4 else [world.weights[int(c * 3)]]
    result[0].backward(inputs=of, retain_graph=True)


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
    """Read, and written between forward and backward, where nothing notices."""
    a = np.asarray((result[1] if c < 0.7 else world.weights[0]).detach())
    world.noted.append(float(a.sum()))
    if 0.3 < c and a.size:
        a.reshape(-1)[0] += 0.25
