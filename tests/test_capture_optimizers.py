"""Optimizers, schedules and whole training steps, compiled or half compiled."""

from __future__ import annotations

import copy

import pytest

import flame
from flame import nn, optim
from flame.nn import functional as F
from tests.capture_programs import Case, agree, batches, cases, drive, program, tensor


def parameters(net):
    return lambda: list(net.state_dict().values())


def gradients(net):
    return lambda: [p.grad for p in net.parameters()]


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(net, step, xs, *world):
    return drive(step, xs, parameters(net), gradients(net), *world)


# -------------------------------------------------------------------- optimizers


def optimizers(net):
    ps = list(net.parameters())
    return {
        "sgd": lambda: optim.SGD(ps, lr=0.1),
        "momentum": lambda: optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        "adam": lambda: optim.Adam(ps, lr=0.05),
        "adamw": lambda: optim.AdamW(ps, lr=0.05, weight_decay=0.1),
        "amsgrad": lambda: optim.Adam(ps, lr=0.05, amsgrad=True, maximize=True),
        "rmsprop": lambda: optim.RMSprop(ps, lr=0.01, momentum=0.5, centered=True),
        "adagrad": lambda: optim.Adagrad(ps, lr=0.1),
        "adadelta": lambda: optim.Adadelta(ps, lr=1.0),
        "nadam": lambda: optim.NAdam(ps, lr=0.05),
        "radam": lambda: optim.RAdam(ps, lr=0.05),
        "adamax": lambda: optim.Adamax(ps, lr=0.05),
        "rprop": lambda: optim.Rprop(ps, lr=0.01),
    }


def inside(name):
    """The whole training step compiled, with one optimizer."""

    def body(wrap):
        net = small()
        o = optimizers(net)[name]()

        @wrap
        def step(x):
            o.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            o.step()
            return loss

        return train(net, step, batches(4, 3, n=8))

    body.__name__ = f"{name}_inside"
    body.__module__ = __name__
    return body


for _name in optimizers(small()):
    program(inside(_name), native=_name in ("momentum", "adamw"))


@program
def step_compiled_alone(wrap):
    net = small()
    o = optim.AdamW(net.parameters(), lr=0.05)
    update = wrap(o.step)

    def step(x):
        o.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        update()
        return loss

    return train(net, step, batches(4, 3))


@program
def optimizer_outside(wrap):
    net = small()
    o = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    f = wrap(lambda x: net(x).square().mean())

    def step(x):
        o.zero_grad()
        loss = f(x)
        loss.backward()
        o.step()
        return loss

    return train(net, step, batches(4, 3))


@program
def zero_grad_both_ways(wrap):
    net = small()
    o = optim.SGD(net.parameters(), lr=0.1)

    @wrap
    def step(x, none):
        o.zero_grad(set_to_none=none)
        loss = net(x).square().mean()
        loss.backward()
        o.step()
        return loss

    return train(net, step, [(x, i % 4 < 2) for i, x in enumerate(batches(4, 3, n=9))])


@program(native=False)
def clipped_gradients(wrap):
    net = small()
    o = optim.SGD(net.parameters(), lr=0.1)

    @wrap
    def step(x, limit):
        o.zero_grad()
        loss = (net(x) * 10).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), limit)
        o.step()
        return loss, norm

    return train(net, step, [(x, (1.0, 1.0, 0.5, 100.0, 1.0, 0.1, 1.0)[i]) for i, x in enumerate(batches(4, 3))])


@program
def clipped_values(wrap):
    net = small()

    @wrap
    def step(x):
        net.zero_grad()
        (net(x) * 10).square().mean().backward()
        nn.utils.clip_grad_value_(net.parameters(), 0.1)
        return nn.utils.parameters_to_vector(net.parameters()).norm()

    return train(net, step, batches(4, 3))


@program
def accumulated_gradients(wrap):
    net = small()
    o = optim.AdamW(net.parameters(), lr=0.05)

    @wrap
    def step(x, i):
        loss = net(x).square().mean() / 3
        loss.backward()
        if i % 3 == 2:
            o.step()
            o.zero_grad()
        return loss

    return train(net, step, [(x, i) for i, x in enumerate(batches(4, 3, n=12))])


@program
def schedules(wrap):
    net = small()
    o = optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    s = optim.lr_scheduler.SequentialLR(
        o, [optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3), optim.lr_scheduler.CosineAnnealingLR(o, 6)], milestones=[3]
    )

    @wrap
    def step(x):
        o.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        o.step()
        s.step()
        return loss

    return train(net, step, batches(4, 3, n=10), lambda: s.get_last_lr())


@program
def schedule_outside_of_an_adam_step(wrap):
    net = small()
    o = optim.Adam(net.parameters(), lr=0.1)
    s = optim.lr_scheduler.StepLR(o, 3, 0.5)

    @wrap
    def step(x):
        o.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        o.step()
        return loss

    def both(x):
        loss = step(x)
        s.step()
        return loss

    return train(net, both, batches(4, 3, n=10), lambda: s.get_last_lr())


@program
def rate_set_by_hand(wrap):
    net = small()
    o = optim.SGD([{"params": net[0].parameters(), "lr": 0.01}, {"params": net[2].parameters()}], lr=0.1)

    @wrap
    def step(x, rate):
        o.param_groups[1]["lr"] = rate
        o.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        o.step()
        return loss

    return train(net, step, [(x, r) for x, r in zip(batches(4, 3), (0.1, 0.1, 0.2, 0.01, 0.0, 0.1, 0.3), strict=True)])


@program
def only_some_parameters_get_gradients(wrap):
    net = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
    o = optim.Adam(net.parameters(), lr=0.1)

    @wrap
    def step(x, i):
        o.zero_grad()
        loss = net[i](x).square().mean()
        loss.backward()
        o.step()
        return loss

    return train(net, step, [(x, (i // 2) % 3) for i, x in enumerate(batches(4, 3, n=10))])


@program
def optimizer_state_saved_and_loaded(wrap):
    net = small()
    o = optim.Adam(net.parameters(), lr=0.1)

    @wrap
    def step(x):
        o.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        o.step()
        return loss

    seen = train(net, step, batches(4, 3, n=4))
    saved = copy.deepcopy((net.state_dict(), o.state_dict()))
    seen += train(net, step, batches(4, 3, n=3))
    net.load_state_dict(saved[0])
    o.load_state_dict(saved[1])
    return seen + train(net, step, batches(4, 3, n=4))


@program
def optimizer_replaced_on_the_way(wrap):
    net = small()
    box = [optim.SGD(net.parameters(), lr=0.1)]

    @wrap
    def step(x):
        box[0].zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        box[0].step()
        return loss

    seen = train(net, step, batches(4, 3, n=4))
    box[0] = optim.AdamW(net.parameters(), lr=0.01)
    return seen + train(net, step, batches(4, 3, n=5))


@program
def parameters_added_on_the_way(wrap):
    net, more = nn.Linear(3, 3), nn.Linear(3, 3)
    o = optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    on = False

    @wrap
    def step(x):
        o.zero_grad()
        y = net(x)
        y = more(y) if on else y
        loss = y.square().mean()
        loss.backward()
        o.step()
        return loss

    seen = train(net, step, batches(4, 3, n=4))
    on = True
    o.add_param_group({"params": list(more.parameters())})
    return seen + train(net, step, batches(4, 3, n=5), parameters(more))


@program
def early_stopping_on_the_loss(wrap):
    net = small()
    o = optim.SGD(net.parameters(), lr=0.2)

    @wrap
    def fit(x, y):
        best, losses = 1e9, []
        for _ in range(6):
            o.zero_grad()
            loss = F.mse_loss(net(x), y)
            loss.backward()
            o.step()
            losses.append(loss.item())
            if losses[-1] > best * 0.98:
                break
            best = losses[-1]
        return losses

    return train(net, fit, [(x, tensor(4, 2, seed=i)) for i, x in enumerate(batches(4, 3, n=6))])


@program(native=False)
def two_networks_against_each_other(wrap):
    maker, judge = nn.Linear(2, 3), nn.Linear(3, 1)
    om, oj = optim.Adam(maker.parameters(), lr=0.05), optim.Adam(judge.parameters(), lr=0.05)

    @wrap
    def step(real):
        fake = maker(flame.randn(4, 2))
        oj.zero_grad()
        lj = F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()
        lj.backward()
        oj.step()
        om.zero_grad()
        lm = F.softplus(-judge(fake)).mean()
        lm.backward()
        om.step()
        return lj, lm

    return train(maker, step, batches(4, 3), parameters(judge), gradients(judge))


@program(native=False)
def perturbed_weights_and_back(wrap):
    net = small()
    o = optim.SGD(net.parameters(), lr=0.1)

    @wrap
    def step(x):
        o.zero_grad()
        net(x).square().mean().backward()
        with flame.no_grad():
            norm = flame.stack([p.grad.norm() for p in net.parameters()]).norm()
            moves = [p.grad * (0.05 / (norm + 1e-12)) for p in net.parameters()]
            for p, e in zip(net.parameters(), moves, strict=True):
                p.add_(e)
        o.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        with flame.no_grad():
            for p, e in zip(net.parameters(), moves, strict=True):
                p.sub_(e)
        o.step()
        return loss

    return train(net, step, batches(4, 3))


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
