"""Modules, buffers, optimizers and schedules: a model's life between and inside of compiled calls."""

from __future__ import annotations

import copy
import pickle

import pytest

import flame
from flame import nn, optim
from flame.nn import functional as F
from tests.capture_programs import Case, agree, batches, cases, drive, of_sizes, program, tensor


def parameters(net):
    return lambda: list(net.state_dict().values())


def gradients(net):
    return lambda: [p.grad for p in net.parameters()]


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(net, step, xs, *world):
    return drive(step, xs, parameters(net), gradients(net), *world)


# -------------------------------------------------------------------- modules


@program(native=True)
def module_forward_and_backward(wrap):
    net = small()
    f = wrap(net)
    return drive(f, batches(5, 3), gradients(net), after=lambda y: y.square().mean().backward())


@program(native=True)
def batch_norm_running_statistics(wrap):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    f = wrap(net)
    seen = []
    for i, x in enumerate(batches(5, 3, n=9)):
        net.train(i not in (3, 4, 7))
        seen += drive(f, [x], parameters(net), gradients(net), after=lambda y: y.sum().backward())
    return seen


@program
def batch_norm_in_a_training_step(wrap):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    o = optim.SGD(net.parameters(), lr=0.1)

    @wrap
    def step(x):
        o.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        o.step()
        return loss

    return train(net, step, batches(3, 1, 4, 4))


@program
def batch_norm_of_one_sample_is_refused(wrap):
    net = nn.BatchNorm1d(3)
    return drive(wrap(net), of_sizes((4, 4, 1, 4, 2, 1), 3), parameters(net))


@program
def batch_norm_with_cumulative_average(wrap):
    net = nn.BatchNorm1d(3, momentum=None)
    return drive(wrap(net), batches(4, 3), parameters(net))


@program
def train_and_eval_flips_inside(wrap):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    @wrap
    def f(x, training):
        net.train(training)
        return net(x), net.training

    return drive(f, [(x, i % 3 != 2) for i, x in enumerate(batches(5, 3, n=9))], parameters(net))


@program
def tied_weights(wrap):
    net = nn.ModuleDict({"a": nn.Embedding(5, 3), "b": nn.Linear(3, 5, bias=False)})
    net["b"].weight = net["a"].weight

    @wrap
    def f(t):
        return F.cross_entropy(net["b"](net["a"](t).tanh()), t)

    return drive(f, [flame.tensor([i % 5, 2, 1]) for i in range(7)], gradients(net), after=lambda y: y.backward())


@program
def ties_made_and_broken_between_calls(wrap):
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    own = b.weight
    f = wrap(lambda x: b(a(x).relu()).sum())
    seen = []
    for i, x in enumerate(batches(2, 3, n=9)):
        b.weight = a.weight if i in (2, 3, 6) else own
        seen += drive(f, [x], gradients(a), gradients(b), after=lambda y: y.backward())
    return seen


@program
def parameters_swapped_between_calls(wrap):
    net = nn.Linear(3, 2)
    ws = [net.weight, nn.Parameter(tensor(2, 3, seed=8)), nn.Parameter(tensor(4, 3, seed=9))]
    bias = net.bias
    f = wrap(net)
    seen = []
    for i, x in enumerate(batches(2, 3, n=9)):
        net.weight = ws[(i // 2) % 3]
        net.bias = None if (i // 2) % 3 == 2 else bias
        seen += drive(f, [x], lambda: [w.grad for w in ws], after=lambda y: y.sum().backward())
    return seen


@program
def frozen_and_thawed(wrap):
    net = small()
    f = wrap(net)
    seen = []
    for i, x in enumerate(batches(2, 3, n=10)):
        net[0].requires_grad_(i not in (2, 3, 6))
        net.requires_grad_(i != 8)
        seen += drive(f, [x], gradients(net), after=lambda y: y.sum().backward())
    return seen


@program
def state_dict_loaded_between_calls(wrap):
    net = small()
    f = wrap(net)
    saved = copy.deepcopy(net.state_dict())
    o = optim.SGD(net.parameters(), lr=0.5)
    seen = []
    for i, x in enumerate(batches(2, 3, n=9)):
        if i in (3, 6):
            net.load_state_dict(saved)
        o.zero_grad()
        seen += drive(f, [x], parameters(net), after=lambda y: y.square().sum().backward())
        o.step()
    return seen


@program
def state_dict_loaded_inside(wrap):
    net = nn.Linear(3, 3)
    saved = [copy.deepcopy(net.state_dict()), {k: v * 2 for k, v in net.state_dict().items()}]

    @wrap
    def f(x, i):
        net.load_state_dict(saved[i])
        return net(x)

    return drive(f, [(x, i % 2) for i, x in enumerate(batches(2, 3))], parameters(net))


@program
def cast_between_calls(wrap):
    net = small()
    f = wrap(net)
    dtypes = [flame.float32, flame.float32, flame.float64, flame.float64, flame.bfloat16, flame.float32, flame.float16, flame.float32]
    seen = []
    for x, d in zip(batches(2, 3, n=8), dtypes, strict=True):
        net.to(d)
        seen += drive(f, [x.to(d)], gradients(net), after=lambda y: y.sum().backward())
        net.zero_grad()
    return seen


@program
def deep_copied_model(wrap):
    net = small()
    f = wrap(net)
    g = copy.deepcopy(net)
    seen = drive(f, batches(2, 3, n=3))
    with flame.no_grad():
        for p in g.parameters():
            p.mul_(2.0)
    h = wrap(g)
    return seen + drive(lambda x: (f(x), h(x)), batches(2, 3, n=5))


@program
def pickled_model(wrap):
    net = small()
    f = wrap(net)
    seen = drive(f, batches(2, 3, n=3))
    again = wrap(pickle.loads(pickle.dumps(net)))
    return seen + drive(lambda x: (f(x), again(x)), batches(2, 3, n=5))


@program
def exponential_moving_average_of_weights(wrap):
    net = small()
    average = copy.deepcopy(net).requires_grad_(False)
    o = optim.SGD(net.parameters(), lr=0.2)

    @wrap
    def step(x):
        o.zero_grad()
        loss = (net(x) - average(x)).square().mean() + net(x).square().mean()
        loss.backward()
        o.step()
        with flame.no_grad():
            for a, p in zip(average.parameters(), net.parameters(), strict=True):
                a.lerp_(p, 0.1)
        return loss

    return train(net, step, batches(2, 3), parameters(average))


@program
def target_network_copied_every_few_steps(wrap):
    net, target = nn.Linear(3, 2), nn.Linear(3, 2)
    n = 0

    @wrap
    def step(x):
        nonlocal n
        n += 1
        with flame.no_grad():
            goal = target(x) * 0.9 + 1
        loss = F.smooth_l1_loss(net(x), goal)
        net.zero_grad()
        loss.backward()
        with flame.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
        if n % 3 == 0:
            target.load_state_dict(net.state_dict())
        return loss

    return train(net, step, batches(4, 3, n=9), parameters(target))


@program
def forward_hooks(wrap):
    net = small()
    log: list = []
    f = wrap(net)
    seen = drive(f, batches(2, 3, n=3))
    handle = net[0].register_forward_hook(lambda m, a, y: log.append(y.sum()) or y * 2)
    seen += drive(f, batches(2, 3, n=4), log)
    handle.remove()
    return seen + drive(f, batches(2, 3, n=3), log)


@program
def buffers_replaced_inside(wrap):
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", flame.zeros((), dtype=flame.int64))
            self.register_buffer("mean", flame.zeros(3))

        def forward(self, x):
            self.n += 1
            self.mean = self.mean + (x - self.mean) / self.n
            return x - self.mean

    net = Counter()
    return drive(wrap(net), batches(3), parameters(net))


@program
def module_list_of_changing_length(wrap):
    net = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = net

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).relu() + x
            return x

    f = wrap(Stack())
    seen = []
    for i, x in enumerate(batches(2, 3, n=9)):
        if i in (3, 6):
            net.append(nn.Linear(3, 3))
        seen += drive(f, [x], gradients(net), after=lambda y: y.sum().backward())
    return seen


@program
def layer_dropped_by_chance(wrap):
    layers = [nn.Linear(3, 3) for _ in range(3)]

    @wrap
    def f(x, skip):
        for i, layer in enumerate(layers):
            if i not in skip:
                x = x + layer(x).tanh()
        return x.sum()

    skips = [(), (), (1,), (0, 2), (), (1,), (0, 1, 2), (2,)]
    return drive(f, list(zip(batches(2, 3, n=8), skips, strict=True)), *map(gradients, layers), after=lambda y: y.backward() if y.requires_grad else None)


@program
def convolution_and_pooling(wrap):
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    f = wrap(net)
    xs = [tensor(n, 1, 4, 4, seed=n) for n in (2, 2, 3, 1, 2, 4)]
    return drive(f, xs, gradients(net), after=lambda y: F.cross_entropy(y, flame.zeros(y.shape[0], dtype=flame.int64)).backward())


@program(native=True)
def attention_block(wrap):
    net = nn.ModuleDict({"norm": nn.LayerNorm(4), "qkv": nn.Linear(4, 12), "out": nn.Linear(4, 4)})

    @wrap
    def f(x):
        q, k, v = net["qkv"](net["norm"](x)).chunk(3, -1)
        q, k, v = (t.view(*t.shape[:2], 2, 2).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + net["out"](y.transpose(1, 2).flatten(2))

    xs = [tensor(2, n, 4, seed=n) for n in (3, 3, 4, 3, 1, 5)]
    return drive(f, xs, gradients(net), after=lambda y: y.square().mean().backward())


@program
def recurrent_cell(wrap):
    cell = nn.Linear(6, 4)

    @wrap
    def f(xs, h):
        for x in xs.unbind(1):
            h = cell(flame.cat([x, h], -1)).tanh()
        return h

    xs = [(tensor(3, n, 2, seed=n), flame.zeros(3, 4)) for n in (2, 2, 3, 2, 1, 0, 4)]
    return drive(f, xs, gradients(cell), after=lambda y: y.sum().backward() if y.requires_grad else None)


@program
def losses_of_every_kind(wrap):
    net = nn.Linear(3, 3)
    labels = flame.tensor([0, 2, 1, 1])

    @wrap
    def f(x, i):
        y = net(x)
        return [
            lambda: F.cross_entropy(y, labels), lambda: F.nll_loss(y.log_softmax(-1), labels), lambda: F.mse_loss(y, x),
            lambda: F.l1_loss(y, x), lambda: F.binary_cross_entropy_with_logits(y, (x > 0).float()),
            lambda: F.cross_entropy(y, labels, label_smoothing=0.1, ignore_index=1), lambda: F.kl_div(y.log_softmax(-1), x.softmax(-1)),
        ][i]()  # fmt: skip

    return drive(f, [(x, i % 7) for i, x in enumerate(batches(4, 3, n=21))], gradients(net), after=lambda y: y.backward())


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


@program
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


@program(native=True)
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


@program
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


@program
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
