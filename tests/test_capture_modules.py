"""Modules and buffers: a model's life between and inside of compiled calls."""

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


@program
def module_forward_and_backward(wrap):
    net = small()
    f = wrap(net)
    return drive(f, batches(5, 3), gradients(net), after=lambda y: y.square().mean().backward())


@program
def batch_norm_running_statistics(wrap):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    f = wrap(net)
    seen = []
    for i, x in enumerate(batches(5, 3, n=9)):
        net.train(i not in (3, 4, 7))
        seen += drive(f, [x], parameters(net), gradients(net), after=lambda y: y.sum().backward())
    return seen


@program(native=False)
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


@program(native=False)
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
    dtypes = [
        flame.float32,
        flame.float32,
        flame.float64,
        flame.float64,
        flame.bfloat16,
        flame.float32,
        flame.float16,
        flame.float32,
    ]
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


@program(native=False)
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
    return drive(
        f,
        list(zip(batches(2, 3, n=8), skips, strict=True)),
        *map(gradients, layers),
        after=lambda y: y.backward() if y.requires_grad else None,
    )


@program(native=False)
def convolution_and_pooling(wrap):
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    f = wrap(net)
    xs = [tensor(n, 1, 4, 4, seed=n) for n in (2, 2, 3, 1, 2, 4)]
    return drive(
        f, xs, gradients(net), after=lambda y: F.cross_entropy(y, flame.zeros(y.shape[0], dtype=flame.int64)).backward()
    )


@program
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


@program(native=False)
def losses_of_every_kind(wrap):
    net = nn.Linear(3, 3)
    labels = flame.tensor([0, 2, 1, 1])

    @wrap
    def f(x, i):
        y = net(x)
        return [
            lambda: F.cross_entropy(y, labels), lambda: F.nll_loss(y.log_softmax(-1), labels), lambda: F.mse_loss(y, x),
            lambda: F.l1_loss(y, x), lambda: F.binary_cross_entropy_with_logits(y, (x > 0).float()),
            lambda: F.cross_entropy(y, labels, label_smoothing=0.1, ignore_index=1),
            lambda: F.kl_div(y.log_softmax(-1), x.softmax(-1)),
        ][i]()  # fmt: skip

    return drive(f, [(x, i % 7) for i, x in enumerate(batches(4, 3, n=21))], gradients(net), after=lambda y: y.backward())


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
