"""Operations of the random programs of `tests.fuzz_capture` around how things are compiled: limits, kinds of sizes, modes, stances,
whole modules compiled as they are or in place, recurrent layers, many threads at once, generation with caches.

    form    ::= a choice for the whole program: what the function is compiled with, and under which stance it is called

What operations are given is said in `tests.fuzz_features`. A global that replayed functions read is `factor`.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flame
from flame import nn
from tests.fuzz_features import Scene, inside, outside
from tests.fuzz_world import World, tensor

#: what the function of a program is compiled with: a choice of the "compiled_with" form
HOW: tuple[dict[str, Any], ...] = (
    {"dynamic": False},
    {"dynamic": True},
    {"options": {"recompile_limit": 2}},
    {"options": {"recompile_limit": 4}, "dynamic": False},
    {"options": {"background": True}},
    {"mode": "replay"},
    {"mode": "reduce-overhead"},
)
STANCES = ("force_eager", "eager_on_recompile", "default")

factor = 1.5


def stance(c: float | None, call: int) -> AbstractContextManager:
    """The stance of a call, where it is not the usual one."""
    if c is None or call not in (2, 3, 5):
        return nullcontext()
    return flame.compiler.set_stance(STANCES[int(c * 6) % 3] if call != 5 else STANCES[int(c * 2)])


def _made(world: World, name: str, make: Any) -> Any:
    """Something of the world's, made at its first use."""
    if name not in world.switched:
        world.switched[name] = make()
    return world.switched[name]


def _filled(module: Any) -> Any:
    with flame.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(tensor(*p.shape, seed=80 + i) * 0.5)
    return module


def _like_others(world: World, module: Any, **how: Any) -> None:
    """Compile a module in place, as the world's functions are."""
    settings = getattr(world.inner, "settings", None)
    if settings is not None:
        module.compile(backend=settings["backend"], **how)


# ---------------------------------------------------------------- inside


@inside
def no_break_wanted(s: Scene, t: Any, b: float, c: float) -> Any:
    with flame.compiler.error_on_graph_break(s.flag if c < 0.5 else True):
        return (t * s.vector(b)).tanh()


@inside
def recurrent(s: Scene, t: Any, b: float, c: float) -> Any:
    """An LSTM or GRU over the rows, its state kept from call to call, perhaps trained."""
    with flame.random.fork_rng():
        net = _made(s.world, "recurrent", lambda: _filled((nn.LSTM, nn.GRU)[int(b * 2)](3, 3, batch_first=True)))
    if not t.shape[0]:
        return None
    y, state = net(t.unsqueeze(0) if c < 0.5 else t.detach().unsqueeze(0), s.world.switched.get("state"))
    s.world.switched["state"] = (
        tuple(z.detach() for z in state) if isinstance(state, tuple) else state.detach() if c < 0.7 else None
    )
    if 0.5 < c < 0.8:
        y.sum().backward()
        with flame.no_grad():
            for p in net.parameters():
                p.sub_(p.grad, alpha=0.01)
                p.grad = None
        y = y.detach()
    return y.squeeze(0)


@inside
def cached_rows(s: Scene, t: Any, b: float, c: float) -> Any:
    """Attention over a cache that grows by a row, or lies ready and is filled, as generation does it."""
    with flame.no_grad():
        row = t.detach().sum(0, keepdim=True).tanh()
        if c < 0.5:
            rows = s.world.switched.get("grown")
            rows = row if rows is None else flame.cat([rows, row], 0)
            s.world.switched["grown"] = rows if rows.shape[0] < 6 else None
        else:
            table = _made(s.world, "table", lambda: flame.zeros(8, 3))
            at = s.world.switched["at"] = (s.world.switched.get("at", -1) + 1) % 8
            if b < 0.5:
                table[at] = row[0]
            else:
                table.index_copy_(0, flame.tensor([at]), row)
            rows = table[: at + 1]
        seen = (row @ rows.t()).softmax(-1) @ rows
    return t + seen


# ---------------------------------------------------------------- between two calls


@outside
def outer_global(world: World, result: list, call: int, c: float) -> None:
    """A replayed function whose global changes now and then, and is put back."""
    global factor
    f = _made(world, "replays", lambda: world.wrap(lambda x: (x * factor).tanh() + len(x), mode="replay"))
    factor = (1.5, 1.5, 1.5, 2.5, 2.5, 1.5 if c < 0.5 else 3, 1.5)[call]
    try:
        for _ in range(2):
            world.noted.append(f(result[-1].detach()))
    finally:
        factor = 1.5


@outside
def outer_limit(world: World, result: list, call: int, c: float) -> None:
    """A loop of ever other lengths, whose function is handed over to eager before long."""

    def body(x: Any, n: int) -> Any:
        for _ in range(n):
            x = x * 0.5 + 1
        return x * world.weights[0]

    f = _made(world, "limited", lambda: world.wrap(body, options={"recompile_limit": 2}))
    for n in (call, call + 1, 1):
        y = f(result[-1].detach(), n)
        y.sum().backward()
        world.noted.append(y.detach())


@outside
def outer_sizes(world: World, result: list, call: int, c: float) -> None:
    f = _made(world, "sizes", lambda: world.wrap(lambda x, w: ((x @ x.t()) * x.shape[0]).sum(0) + w.sum(), dynamic=c < 0.5))
    for n in (call, 2, call + 3):
        y = f(tensor(n, 3, seed=call), world.weights[0])
        y.sum().backward()
        world.noted.append(y.detach())


@outside
def outer_module(world: World, result: list, call: int, c: float) -> None:
    """A module compiled as a whole, in place or as another one, whose mode flips and whose weights are frozen or another's."""

    def make() -> tuple[Any, Any]:
        with flame.random.fork_rng():
            net = _filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)))
        if c < 0.5:
            return net, world.wrap(net)
        _like_others(world, net)
        return net, net

    net, f = _made(world, "module", make)
    net.train(call != 3)
    if call == 4:
        net[0].weight.requires_grad_(False)
    if call == 5:
        net[3].load_state_dict({"weight": world_weight(world), "bias": flame.ones(3)})
    x = flame.cat([result[-1].detach(), tensor(2, 3, seed=7)], 0)
    y = f(x)
    y.square().sum().backward()
    world.noted.extend([y.detach(), [p.grad for p in net.parameters()], list(net.buffers())])
    for p in net.parameters():
        p.grad = None


def world_weight(world: World) -> Any:
    return flame.cat([world.weights[1].detach(), world.weights[0].detach().unsqueeze(1)], 1)


@outside
def outer_crowd(world: World, result: list, call: int, c: float) -> None:
    """Two to eight threads call one compiled function at once, each with a leaf of its own."""
    many = 2 + int(c * 7)
    x, got = result[-1].detach(), {}

    def work(i: int) -> None:
        w = tensor(3, seed=i, grad=True)
        for _ in range(2):
            world.inner(x, w).sum().backward()
        got[i] = w.grad

    threads = [threading.Thread(target=work, args=(i,)) for i in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    world.noted.append([got.get(i) for i in range(many)])


@outside
def outer_background(world: World, result: list, call: int, c: float) -> None:
    """What is compiled on a thread of its own: called before, meanwhile and after."""
    f = _made(world, "background", lambda: world.wrap(lambda x, w: (x * w).tanh() * 2, options={"background": True}))
    for i in range(3):
        y = f(result[-1].detach(), world.weights[0])
        y.sum().backward()
        if i == 1 and c < 0.5 and hasattr(f, "wait"):
            f.wait()
    world.noted.append(y.detach())
