"""Operations of the random programs of `tests.fuzz_capture` around whole models: training steps of small networks of several kinds,
transforms of functions, copies by pickle, other threads, replayed functions, views that share memory in unusual ways.

What they are given is said in `tests.fuzz_features`.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import flame
import flame.nn.functional as F
from flame import nn
from tests.fuzz_features import Scene, inside, outside
from tests.fuzz_world import World, tensor


class Tied(nn.Module):
    """An embedding whose weight is the last layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.last = nn.Linear(3, 5, bias=False)
        self.last.weight = self.table.weight

    def forward(self, x: Any) -> Any:
        return self.last(self.table((x.detach() * 2).long() % 5).tanh()).sum(-1)


class Attending(nn.Module):
    """Attention over the rows, with a residual and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.three = nn.Linear(3, 9)

    def forward(self, x: Any) -> Any:
        q, k, v = self.three(self.norm(x)).unsqueeze(0).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(0)


class Sliding(nn.Module):
    """A convolution over the columns, and group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.slide = nn.Conv1d(1, 2, 3, padding=1)
        self.norm = nn.GroupNorm(2, 2)

    def forward(self, x: Any) -> Any:
        return self.norm(F.silu(self.slide(x.unsqueeze(1)))).mean(1)


MODELS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.25), nn.Linear(4, 3)),
    lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None), nn.GELU(), nn.Linear(4, 3)),
    Tied,
    Attending,
    Sliding,
)
OPTIMIZERS: tuple[Callable[[list], Any], ...] = (
    lambda ps: flame.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=0.01),
    lambda ps: flame.optim.AdamW(ps, lr=0.02),
    lambda ps: flame.optim.Adagrad(ps, lr=0.02),
    lambda ps: flame.optim.NAdam(ps, lr=0.01),
)


def learner(world: World, b: float) -> tuple[Any, Any, Any]:
    """A model, its optimizer and the schedule of that, the same at every call of a program."""
    if world.learner is None:
        with flame.random.fork_rng():
            net = MODELS[int(b * len(MODELS))]()
        with flame.no_grad():
            for i, p in enumerate(net.parameters()):
                p.copy_(tensor(*p.shape, seed=50 + i) * 0.5 + 0.1)
        optimizer = OPTIMIZERS[int(b * 20) % len(OPTIMIZERS)](list(net.parameters()))
        world.learner = net, optimizer, flame.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    return world.learner


@inside
def learn(s: Scene, t: Any, b: float, c: float) -> Any:
    """A whole training step."""
    net, optimizer, schedule = learner(s.world, b)
    x = t.detach()
    if x.shape[0] < 2:
        return None
    net.train(c < 0.5 or s.flag)
    optimizer.zero_grad(set_to_none=c < 0.8)
    loss = F.mse_loss(net(x), x * 0.5) if net(x).ndim == 2 else net(x).square().mean()
    if c < 0.7 or s.flag:
        loss.backward()
        if c > 0.4:
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return t + loss.detach()


@inside
def predict(s: Scene, t: Any, b: float, c: float) -> Any:
    net, _, _ = learner(s.world, b)
    if t.shape[0] < 2:
        return None
    net.eval()
    with flame.set_grad_enabled(c < 0.5):
        y = net(t)
    return y if y.shape == t.shape else t * y.sum()


@inside
def called_functionally(s: Scene, t: Any, b: float, c: float) -> Any:
    """A module with other parameters than its own."""
    linear = s.world.module().linear
    ours = {"weight": s.world.weights[1], "bias": s.world.weights[0] if c < 0.5 else linear.bias * 2.0}
    return flame.func.functional_call(linear, ours, (t,))


@inside
def transformed(s: Scene, t: Any, b: float, c: float) -> Any:
    w = s.world.weights[0].detach() if b < 0.5 else s.world.weights[0]
    f = lambda u: (u * w).tanh() * s.k
    d = t.detach().sum(0)
    match int(c * 4):
        case 0:
            made = flame.func.jvp(f, (d,), (w,))[1]
        case 1:
            made = flame.func.jacrev(f)(d).sum(0)
        case 2:
            value, pull = flame.func.vjp(f, d)
            made = pull(value)[0]
        case _:
            made = flame.func.hessian(lambda u: f(u).sum())(d).sum(0)
    s.log.append(made.requires_grad)
    return t + made


@inside
def pickled(s: Scene, t: Any, b: float, c: float) -> Any:
    got = pickle.loads(pickle.dumps({"t": t.detach(), "n": s.world.count}))
    s.world.copied = got["t"][:1]
    got["t"].mul_(2.0)
    return t + got["t"]


@inside
def copied_module(s: Scene, t: Any, b: float, c: float) -> Any:
    """Of another dtype."""
    kind = flame.float64 if c < 0.6 else flame.bfloat16
    other = copy.deepcopy(s.world.module().linear).to(kind)
    s.log.append([str(p.dtype) for p in other.parameters()])
    return other(t.double()).float() if c < 0.6 else t * 1.0


@inside
def other_thread(s: Scene, t: Any, b: float, c: float) -> Any:
    """It runs while this function is captured, and its result comes here."""
    got: list = []
    given = tensor(2, 3, seed=70)

    def work() -> None:
        y = s.world.inner(given, tensor(3, seed=71, grad=c < 0.5))
        got.append(y.detach())
        s.world.noted.append(float(y.sum()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return t + got[0].sum(0)


@inside
def strange_views(s: Scene, t: Any, b: float, c: float) -> Any:
    y = t * 1.0
    n = y.shape[0]
    match int(c * 5):
        case 0:
            y.diagonal().mul_(3.0)
        case 1 if n > 1:
            y.as_strided((2, 2), (3, 1), 1).add_(1.0)
        case 2 if n:
            y.unsqueeze(0).transpose(1, 2)[0, 1:, :1].mul_(2.0)
        case 3:
            y.view(n, 3, 1).permute(2, 1, 0).flatten(0, 1)[0].sub_(s.k)
        case _ if n > 1:
            p, q = y.tensor_split(2)
            p.add_(1.0)
            q.t().mul_(0.5)
    return y


@outside
def outer_replay(world: World, result: list, call: int, c: float) -> None:
    """A function that is replayed, whose closure, arguments and numbers change now and then."""
    w = world.weights[0]
    y = world.replayed(result[-1].detach(), w.detach() if c < 0.7 else w, 0.5 if call < 4 else 0.25)
    if y.requires_grad:
        y.sum().backward()
    world.noted.append(y.detach().clone())
    if call == 3:
        with flame.no_grad():
            w.add_(0.125)


@outside
def outer_threads(world: World, result: list, call: int, c: float) -> None:
    """Two threads call one compiled function at once."""
    x, w = result[-1].detach(), world.weights[0].detach()
    got: dict = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: world.inner(x * (i + 1), w)})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    world.noted.append(float(np.asarray(got[0].sum() + got[1].sum())))


@outside
def outer_model(world: World, result: list, call: int, c: float) -> None:
    """The model's state goes through a file's worth of pickle between two calls."""
    if world.learner is None:
        return
    net, optimizer, schedule = world.learner
    state = pickle.loads(pickle.dumps([net.state_dict(), optimizer.state_dict(), schedule.state_dict()]))
    for x, y in zip((net, optimizer, schedule), state, strict=True):
        x.load_state_dict(y)
    if call == 4:
        for p in list(net.parameters())[:1]:
            p.requires_grad_(c < 0.5)
