"""Random numbers: the same draws eager and compiled, and the generator left in the same state."""

from __future__ import annotations

import pytest

import flame
from flame.nn import functional as F
from tests.capture_programs import Case, agree, batches, cases, drive, of_sizes, program, tensor, watch


def offset():
    return [flame.default_generator.offset, flame.initial_seed()]


@program
def dropout_every_call(wrap):
    f = wrap(lambda x: F.dropout(x, 0.5))
    return drive(f, batches(16), offset)


@program
def dropout_with_gradient(wrap):
    w = tensor(16, seed=1, grad=True)
    f = wrap(lambda x: F.dropout(x * w, 0.3).square().sum())
    return drive(f, batches(16), w, offset, after=lambda y: y.backward())


@program
def dropout_trains_inside(wrap):
    w = tensor(16, seed=1, grad=True)

    @wrap
    def f(x):
        w.grad = None
        F.dropout((x * w).tanh(), 0.3).sum().backward()
        with flame.no_grad():
            w.sub_(w.grad * 0.1)

    return drive(f, batches(16), w, offset)


@program
def dropout_rate_changes(wrap):
    f = wrap(lambda x, p, on: F.dropout(x, p, training=on))
    rates = (0.5, 0.5, 0.1, 0.0, 1.0, 0.5, 0.1)
    return drive(f, [(x, p, i != 5) for i, (x, p) in enumerate(zip(batches(16), rates, strict=True))], offset)


@program(native=False)
def every_distribution(wrap):
    def f(x):
        weights = x.abs()
        made = flame.rand(3), flame.randn(3), flame.randint(0, 9, (3,)), flame.randperm(5), flame.normal(0.0, 2.0, (3,))
        like = flame.rand_like(x), flame.randn_like(x), flame.bernoulli(weights.clamp(0, 1))
        drawn = flame.multinomial(weights, 2), flame.multinomial(weights, 4, replacement=True)
        z = flame.zeros(3)
        filled = z.uniform_(-1, 1).clone(), z.normal_().clone(), z.exponential_().clone(), z.bernoulli_(0.3).clone()
        whole = flame.zeros(3, dtype=flame.int64).random_(0, 5)
        typed = flame.rand(2, dtype=flame.float64), flame.rand(3, dtype=flame.float16), flame.randn(3, dtype=flame.bfloat16)
        return made, like, drawn, filled, whole, typed

    return drive(wrap(f), batches(4), offset)


@program
def two_draws_differ(wrap):
    @wrap
    def f(x):
        a, b = flame.rand(4), flame.rand(4)
        return a, b, bool((a == b).all())

    return drive(f, batches(4), offset)


@program
def seeded_outside_each_time(wrap):
    f = wrap(lambda x: x + flame.randn(3))

    def g(x, s):
        flame.manual_seed(s)
        return f(x)

    return drive(g, [(x, i % 3) for i, x in enumerate(batches(3))], offset)


@program
def seeded_inside(wrap):
    @wrap
    def f(x, s):
        flame.manual_seed(s)
        return x + flame.randn(3), flame.rand(2)

    return drive(f, [(x, (1, 1, 2, 3, 1, 1 << 40, -1)[i]) for i, x in enumerate(batches(3))], offset)


@program
def fork_inside(wrap):
    @wrap
    def f(x):
        a = flame.rand(3)
        with flame.fork_rng():
            b = flame.rand(3)
        c = flame.rand(3)
        return a, b, c, x

    return drive(f, batches(3), offset)


@program
def state_saved_and_restored_inside(wrap):
    @wrap
    def f(x):
        state = flame.get_rng_state()
        a = flame.rand(3)
        flame.set_rng_state(state)
        b = flame.rand(3)
        return a - b, a, x

    return drive(f, batches(3), offset)


@program
def state_restored_outside(wrap):
    f = wrap(lambda x: x + flame.randn(3))
    state = flame.get_rng_state()

    def g(x, again):
        if again:
            flame.set_rng_state(state)
        return f(x)

    return drive(g, [(x, i in (2, 5)) for i, x in enumerate(batches(3))], offset)


@program
def own_generator(wrap):
    g = flame.Generator().manual_seed(5)
    f = wrap(lambda x: x + flame.rand(3, generator=g) + flame.rand(3))
    return drive(f, batches(3), offset, lambda: [g.offset, g.initial_seed()])


@program
def two_generators_swapped(wrap):
    gs = [flame.Generator().manual_seed(5), flame.Generator().manual_seed(6)]

    @wrap
    def f(x, i):
        return x + flame.randn(3, generator=gs[i]), flame.rand(2, generator=gs[1 - i])

    return drive(f, [(x, i in (2, 3, 6)) for i, x in enumerate(batches(3))], lambda: [g.offset for g in gs])


@program
def draws_only_sometimes(wrap):
    @wrap
    def f(x, noisy):
        if noisy:
            x = x + flame.randn(3)
        return x * 2

    return drive(f, [(x, i % 3 == 1) for i, x in enumerate(batches(3, n=9))], offset)


@program
def draw_is_not_used(wrap):
    @wrap
    def f(x):
        flame.rand(5)
        return x * 2

    return drive(f, batches(3), offset)


@program
def draw_decides_a_branch(wrap):
    @wrap
    def f(x):
        return x * 2 if flame.rand(()) > 0.5 else x - 1

    return drive(f, batches(3, n=12), offset)


@program
def drop_path_by_a_python_number(wrap):
    @wrap
    def f(x):
        for i in range(3):
            if flame.rand(1).item() < 0.5:
                continue
            x = x * (i + 2)
        return x

    return drive(f, batches(3, n=12), offset)


@program
def draw_of_changing_size(wrap):
    f = wrap(lambda x: x + flame.randn(x.shape[0], 1))
    return drive(f, of_sizes((3, 3, 5, 5, 1, 0, 3, 5), 2), offset)


@program
def draw_after_an_exception(wrap):
    @wrap
    def f(x, fail):
        y = x + flame.randn(3)
        if fail:
            raise ValueError("after a draw")
        return y + flame.rand(3)

    return drive(f, [(x, i in (1, 4)) for i, x in enumerate(batches(3))], offset)


@program(native=False)
def draw_in_a_loop_of_changing_length(wrap):
    @wrap
    def f(x, n):
        for _ in range(n):
            x = x + flame.randn(3) * 0.1
        return x

    return drive(f, [(x, n) for x, n in zip(batches(3, n=8), (1, 1, 3, 3, 2, 0, 1, 3), strict=True)], offset)


@program
def randperm_batches(wrap):
    data = tensor(8, 2, seed=1)

    @wrap
    def f():
        order = flame.randperm(8)
        return [data[order[i : i + 3]].sum(0) for i in range(0, 8, 3)], order

    return drive(f, [()] * 6, offset)


@program
def noise_written_into_a_buffer(wrap):
    noise = flame.zeros(4)

    @wrap
    def f(x):
        noise.normal_()
        y = x + noise
        noise.uniform_(0, 1)
        return y * noise

    return drive(f, batches(4), noise, offset)


@program
def reparametrised_sample(wrap):
    mean, log_std = tensor(4, seed=1, grad=True), tensor(4, seed=2, grad=True)

    @wrap
    def f(x):
        z = mean + log_std.exp() * flame.randn_like(mean)
        return ((z - x) ** 2).mean()

    return drive(f, batches(4), mean, log_std, offset, after=lambda y: y.backward())


@program
def gumbel_softmax(wrap):
    logits = tensor(5, seed=1, grad=True)

    @wrap
    def f(tau):
        u = flame.rand(5)
        soft = ((logits - (-(u + 1e-9).log() + 1e-9).log()) / tau).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), 5).float()
        return ((hard - soft.detach() + soft) * flame.arange(5)).sum()

    return drive(f, [1.0, 1.0, 0.9, 0.8, 0.7, 1.0, 0.9], logits, offset, after=lambda y: y.backward())


@program
def sampled_tokens(wrap):
    table = tensor(6, 6, seed=1)

    @wrap
    def f(token):
        p = (table[token] * 3).softmax(-1)
        return flame.multinomial(p, 1)

    seen, token = [], flame.tensor([0])
    for _ in range(10):
        token = f(token).view(1)
        seen.append(watch(token.tolist))
    return [seen, offset()]


@program
def checkpointed_block(wrap):
    w = tensor(8, seed=1, grad=True)

    @wrap
    def f(x):
        state = flame.default_generator.offset
        y = F.dropout(x * w, 0.5)
        flame.default_generator.offset = state
        z = F.dropout(x * w, 0.5)
        return (y - z).abs().sum(), y.sum()

    return drive(f, batches(8), w, offset, after=lambda r: r[1].backward())


@program
def interleaved_with_eager_draws(wrap):
    f = wrap(lambda x: x + flame.randn(3))

    def g(x):
        a = flame.rand(2)
        y = f(x)
        return [a, y, flame.rand(2)]

    return drive(g, batches(3), offset)


@program(native=False)
def module_dropout_in_train_and_eval(wrap):
    net = flame.nn.Sequential(flame.nn.Linear(4, 8), flame.nn.ReLU(), flame.nn.Dropout(0.5), flame.nn.Linear(8, 2))
    f = wrap(net)
    seen = []
    for i, x in enumerate(batches(3, 4, n=9)):
        net.train(i % 3 != 2)
        seen += drive(f, [x], offset)
    return seen


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
