"""Programs whose sizes change from call to call: the same as eager at every size, and compiled a few times for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
import flame.nn.functional as F
from tests.capture_programs import Case, Wrap, agree, cases, program
from tests.fuzz_capture import difference, observe

SIZES = (5, 5, 7, 7, 3, 2, 9, 1, 16, 0, 7, 5)
PAIRS = ((3, 5), (3, 5), (4, 6), (4, 6), (7, 2), (2, 9), (6, 6), (1, 4), (4, 1), (8, 3), (3, 5))


def tensor(*shape: int, seed: int = 0, grad: bool = False) -> Any:
    a = np.random.default_rng([seed, *shape]).uniform(-1, 1, shape).astype(np.float32)
    return flame.tensor(a, requires_grad=grad)


def calls(f: Any, *arguments: Callable[..., Any], sizes: Any = SIZES) -> list:
    """What `f` gives at every size, or how it fails."""
    seen = []
    for n in sizes:
        given = [make(*n) if isinstance(n, tuple) else make(n) for make in arguments]
        try:
            seen.append(observe(f(*given)))
        except (RuntimeError, ValueError, IndexError) as error:
            seen.append(f"{type(error).__name__}")
        seen.append([observe(g.grad) for g in given if g.requires_grad])
    return seen


def over_sizes(sizes: Any = SIZES, **options: Any) -> Callable[[Callable], Callable]:
    """Register a function of one tensor that is made by its size."""

    def register(f: Callable) -> Callable:
        width = 1 if not isinstance(sizes[0], tuple) else 2

        def body(wrap: Wrap) -> list:
            return calls(
                wrap(f),
                (lambda n: tensor(n, 6, grad=True)) if width == 1 else (lambda n, m: tensor(n, m, 6, grad=True)),
                sizes=sizes,
            )

        body.__name__, body.__module__ = f.__name__, __name__
        program(body, **options)
        return f

    return register


@over_sizes(native=True)
def rows_are_normalised(x: Any) -> Any:
    return F.softmax(F.layer_norm(x, (6,)) * 2, dim=-1)


@over_sizes(native=True)
def mean_over_what_varies(x: Any) -> Any:
    return x.mean(0), x.sum() / x.shape[0] if x.shape[0] else x.sum(), x.var(0, unbiased=False)


@over_sizes(native=True)
def loss_and_backward(x: Any) -> Any:
    loss = (x.tanh() ** 2).mean()
    loss.backward()
    return loss


@over_sizes(PAIRS, native=True)
def merged_and_taken_apart(x: Any) -> Any:
    n, m, c = x.shape
    return x.reshape(n * m, c) * 2, x.view(n, m, 2, c // 2).transpose(1, 2).reshape(n, 2, -1)


@over_sizes(PAIRS, native=True)
def attention(x: Any) -> Any:
    n, m, c = x.shape
    q = x.view(n, m, 2, 3).transpose(1, 2)
    scores = (q @ q.transpose(-1, -2)) * c**-0.5
    scores = scores.masked_fill(flame.tril(flame.ones(m, m)) == 0, float("-inf"))
    y = (F.softmax(scores, -1) @ q).transpose(1, 2).reshape(n, m, c)
    y.sum().backward()
    return y


@over_sizes(PAIRS)
def shifted_against_itself(x: Any) -> Any:
    return (x[:, 1:] - x[:, :-1]).abs().sum((1, 2)), x[:, -1], x[:, ::2]


@over_sizes()
def halves(x: Any) -> Any:
    n = x.shape[0] // 2
    return x[:n] + 1, x[n:] * 2, x.shape[0] % 3


@over_sizes()
def arithmetic_on_sizes(x: Any) -> Any:
    n = x.shape[0]
    return x * n, x + n * 2 - 1, x / (n + 1), x * float(n) ** 0.5, flame.full((n, 2), n)


@over_sizes()
def branches_on_sizes(x: Any) -> Any:
    if x.shape[0] > 4:
        return x.sum(0)
    return x.amax(0) if x.shape[0] else x


@over_sizes()
def a_loop_as_long_as_the_input(x: Any) -> Any:
    h = flame.zeros(6)
    for row in x[:4]:
        h = (h + row).tanh()
    return h


@over_sizes(PAIRS)
def positions_and_masks(x: Any) -> Any:
    n, m, _ = x.shape
    place = flame.arange(m)
    mask = place[None, :] <= place[:, None]
    return (x + place[None, :, None]).sum(), mask, flame.zeros(n, m).masked_fill(flame.ones(n, m) > 0, 3.0), flame.eye(m)


@over_sizes()
def padded_to_a_multiple(x: Any) -> Any:
    short = -x.shape[0] % 4
    y = F.pad(x, (0, 0, 0, short))
    return y.view(-1, 4, 6).sum(1) if y.shape[0] else y


@over_sizes()
def joined_with_itself(x: Any) -> Any:
    return flame.cat([x, x.flip(0), flame.ones(3, 6)]), flame.stack([x, x]), x.repeat(2, 1)


@over_sizes(native=True)
def written_in_place(x: Any) -> Any:
    y = x.detach().clone()
    y[1:] += 1
    y[:, 2] = 0
    y.mul_(2)
    return y


@over_sizes()
def written_through_views(x: Any) -> Any:
    y = x * 1
    v = y.view(-1)
    v.mul_(3)
    y[: y.shape[0] // 2].add_(1)
    return y, v


@over_sizes()
def square_only_by_chance(x: Any) -> Any:
    return x @ tensor(6, 7), x[:6].sum() if x.shape[0] >= 6 else x, x.shape == (6, 6)


@over_sizes((4, 4, 6, 6, 5, 8, 7, 10, 3, 12))
def errors_of_some_sizes(x: Any) -> Any:
    return x.view(x.shape[0] // 2, 2, 6) * 2  # odd sizes fail


@over_sizes()
def indices_from_sizes(x: Any) -> Any:
    return x[x.shape[0] - 1] * 2, x[flame.arange(x.shape[0] - 1, -1, -1)]


@over_sizes()
def the_longest_rows(x: Any) -> Any:
    value, at = x.norm(dim=1).sort(descending=True)
    return value, x[at], x.argmax(0), x.cumsum(0)


@over_sizes()
def second_derivatives(x: Any) -> Any:
    y = (x**3).mean()
    (g,) = flame.autograd.grad(y, x, create_graph=True)
    (g * g).sum().backward()
    return g


@over_sizes()
def dropped_at_random(x: Any) -> Any:
    y = F.dropout(x, 0.5)
    y.sum().backward()
    return y, flame.rand(x.shape[0], 2), flame.randn_like(x)


@over_sizes()
def values_read_between(x: Any) -> Any:
    y = x * 2
    if x.shape[0] and y.sum().item() > 0:
        return y[: x.shape[0] - 1] + 1
    return y - 1


@over_sizes()
def expanded(x: Any) -> Any:
    n = x.shape[0]
    return x[:, None, :].expand(n, n, 6).sum(0), x.mean(1, keepdim=True).expand_as(x), x.unsqueeze(0).broadcast_to((2, n, 6))


@over_sizes()
def not_contiguous(x: Any) -> Any:
    return x.t() * 2, x.t()[1:].sum(0)


@program
def two_inputs_that_vary_alike_and_then_do_not(wrap: Wrap) -> list:
    f = wrap(lambda x, y: (x.sum(0) + y.sum(0)) * x.shape[0])
    sizes = [(3, 3), (3, 3), (5, 5), (5, 5), (7, 7), (4, 9), (9, 4), (6, 6), (2, 3)]
    return calls(f, lambda n, m: tensor(n, 6), lambda n, m: tensor(m, 6, seed=1), sizes=sizes)


@program
def inputs_that_broadcast_now_and_then(wrap: Wrap) -> list:
    f = wrap(lambda x, y: x * y)
    return calls(
        f,
        lambda n, m: tensor(n, 6),
        lambda n, m: tensor(m, 6),
        sizes=[(3, 1), (3, 1), (3, 3), (4, 1), (4, 4), (1, 5), (5, 5), (6, 4), (7, 1)],
    )


@program
def windows_on_longer_rows(wrap: Wrap) -> list:
    """Batches for a language model: inputs and targets are views of one array."""
    flame.manual_seed(3)
    table, head = nn.Embedding(7, 6), nn.Linear(6, 7)

    def step(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(head(table(x)).flatten(0, 1), y.reshape(-1))
        loss.backward()
        return loss

    f, seen = wrap(step), []
    for n, m in PAIRS:
        data = (flame.arange(n * (m + 1)) * 5 % 7).view(n, m + 1)
        seen.append(observe(f(data[:, :-1], data[:, 1:])))
    return [*seen, observe(head.weight.grad), observe(table.weight.grad)]


@program
def transposed_inputs(wrap: Wrap) -> list:
    f = wrap(lambda x: (x * 2, x.stride(), x.is_contiguous()))
    return calls(f, lambda n: tensor(6, n).t())


@program
def a_network_with_buffers(wrap: Wrap) -> list:
    flame.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 3))
    opt = flame.optim.AdamW(net.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Any:
        opt.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        return loss

    f = wrap(step)
    seen = calls(f, lambda n: tensor(n, 6), lambda n: flame.arange(n) % 3, sizes=[s for s in SIZES if s > 1])
    return [seen, [observe(v) for v in net.state_dict().values()]]


@program
def convolution_over_lengths(wrap: Wrap) -> list:
    flame.manual_seed(3)
    conv = nn.Conv1d(2, 3, 3, padding=1)

    def f(x: Any) -> Any:
        y = F.max_pool1d(F.relu(conv(x)), 2)
        y.mean().backward()
        return y

    f = wrap(f)
    return [calls(f, lambda n: tensor(n, 2, 8)), calls(f, lambda n: tensor(2, 2, 2 * n + 2)), observe(conv.weight.grad)]


@program
def embedding_of_ragged_lists(wrap: Wrap) -> list:
    flame.manual_seed(3)
    table = nn.Embedding(11, 4)

    def f(parts: Any) -> Any:
        return flame.stack([table(p).mean(0) for p in parts])

    f = wrap(f)
    rng, seen = np.random.default_rng(5), []
    for _ in range(10):
        lengths = rng.integers(2, 9, 3)
        seen.append(observe(f([flame.tensor(rng.integers(0, 11, int(n))) for n in lengths])))
    return seen


@program
def generation_with_a_growing_cache(wrap: Wrap) -> list:
    flame.manual_seed(3)
    table, q, k, v = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    @wrap
    def step(token: Any, keys: Any, values: Any) -> Any:
        x = table(token)
        keys, values = flame.cat([keys, k(x)], 1), flame.cat([values, v(x)], 1)
        y = F.softmax(q(x) @ keys.transpose(1, 2) / 8**0.5, -1) @ values
        return (y @ table.weight.t()).argmax(-1), keys, values

    seen = []
    with flame.no_grad():
        for _ in range(2):
            token, keys, values = flame.tensor([[1], [4]]), flame.zeros(2, 0, 8), flame.zeros(2, 0, 8)
            for _ in range(9):
                token, keys, values = step(token, keys, values)
                seen.append([observe(token), observe(keys)])
    return seen


@program
def generation_with_a_filled_cache(wrap: Wrap) -> list:
    flame.manual_seed(3)
    table, q, k = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    cache = flame.zeros(2, 16, 8)

    @wrap
    def step(token: Any, place: int) -> Any:
        x = table(token)
        cache[:, place : place + 1] = k(x)
        seen = cache[:, : place + 1]
        return ((F.softmax(q(x) @ seen.transpose(1, 2), -1) @ seen) @ table.weight.t()).argmax(-1)

    seen, token = [], flame.tensor([[1], [4]])
    with flame.no_grad():
        for place in range(12):
            token = step(token, place)
            seen.append(observe(token))
    return [*seen, observe(cache)]


@program
def a_loop_that_data_ends(wrap: Wrap) -> list:
    def f(x: Any) -> Any:
        n = 0
        while x.abs().max() > 1e-2:
            x, n = x * 0.5, n + 1
        return x, n

    f = wrap(f)
    return [observe(f(tensor(3 + n % 3, 4) * 2.0**n)) for n in range(9)]


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)


# --------------------------------------------------------------------------------------------------- how often is compiled

COUNTED: dict[str, tuple[Callable, tuple[Callable, ...]]] = {
    "linear": (lambda x: F.relu(F.linear(x, tensor(5, 6))), (lambda n: tensor(n, 6),)),
    "mean": (lambda x: x.tanh().mean(), (lambda n: tensor(n, 6),)),
    "softmax over what varies": (lambda x: F.softmax(x, 0), (lambda n: tensor(n, 6),)),
    "attention": (attention, (lambda n: tensor(2, n, 6, grad=True),)),
    "loss": (
        lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1),
        (lambda n: tensor(n, 6), lambda n: flame.arange(n) % 6),
    ),
    "shift": (lambda x: x[1:] - x[:-1], (lambda n: tensor(n, 6),)),
    "norm": (lambda x: F.layer_norm(x, (6,)) + F.batch_norm(x, None, None, training=True), (lambda n: tensor(n, 6),)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_three_compilations_are_enough_for_all_sizes(name: str) -> None:
    """Of 2 and more: one for the first size, one for all others, one where the first two said too little."""
    f, make = COUNTED[name]
    compiled = flame.compile(f)
    for n in (5, 5, 7, 7, *range(3, 40), 100, 128):
        compiled(*(m(n) for m in make))
    assert compiled.stats.compiled <= 3 and not compiled.given_up, compiled.stats
    assert not compiled.stats.fallbacks


def test_training_at_any_batch_and_length_is_compiled_three_times_at_most() -> None:
    flame.manual_seed(0)
    table, body, head = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7)
    opt = flame.optim.AdamW([*table.parameters(), *body.parameters(), *head.parameters()])

    def step(x: Any) -> Any:
        opt.zero_grad()
        y = head(F.gelu(body(table(x[:, :-1]))))
        loss = F.cross_entropy(y.reshape(-1, 7), x[:, 1:].reshape(-1))
        loss.backward()
        opt.step()
        return loss

    compiled, rng = flame.compile(step), np.random.default_rng(0)
    for _ in range(30):
        n, m = (int(v) for v in rng.integers(2, 30, 2))
        assert np.isfinite(float(compiled(flame.tensor(rng.integers(0, 7, (n, m + 1))))))
    assert compiled.stats.compiled <= 3 and not compiled.given_up, compiled.stats


def test_views_of_longer_rows_are_compiled_three_times_at_most() -> None:
    f = flame.compile(lambda x: F.softmax(x * 2, 1).sum(0))
    for n in (3, 3, 5, 5, *range(2, 12)):
        data = tensor(4, n + 1)
        assert f(data[:, :-1]).shape == (n,)
    assert f.stats.compiled <= 3 and f.stats.recorded <= 30, f.stats


def test_without_symbolic_sizes_every_shape_is_a_path() -> None:
    f = flame.compile(lambda x: x * 2, dynamic=False)
    for n in (2, 2, 3, 3, 4, 4):
        f(tensor(n))
    assert f.stats.compiled == 3
    for dynamic in (None, True):
        g = flame.compile(lambda x: x * 2, dynamic=dynamic)
        for n in (2, 2, 3, 3, 4, 4, 5, 5):
            g(tensor(n))
        assert g.stats.compiled == 2


def test_a_guess_that_does_not_hold_is_noticed() -> None:
    """Between 4 and 6 the parameter is the size less 2; at 9 it is not."""
    part = {4: 2, 6: 4, 9: 3}
    f = flame.compile(lambda x: x[: part[x.shape[0]]] * 2)
    for n in (4, 4, 6, 6, 9, 9, 6, 9, 4):
        assert f(tensor(n)).shape == (part[n],)


def test_backward_of_another_size_meanwhile() -> None:
    """What backward needs of the sizes is that of its own call, whatever was called since."""

    def f(x: Any) -> Any:
        return F.softmax(x, 0).tanh().sum(1) * x.shape[0]

    c = flame.compile(f)
    for n in (3, 3, 5, 5):
        c(tensor(n, 4))
    pairs = []
    for n in (3, 6, 9, 5):
        a, b = tensor(n, 4, grad=True), tensor(n, 4, grad=True)
        pairs.append((a, b, c(a), f(b)))
    for a, b, got, want in reversed(pairs):
        got.sum().backward()
        want.sum().backward()
        assert not difference(observe(want), observe(got), rtol=1e-4, atol=1e-5)
        assert not difference(observe(b.grad), observe(a.grad), rtol=1e-4, atol=1e-5)


def test_an_index_out_of_range_names_the_size_of_this_call() -> None:
    f = flame.compile(lambda x, i: x[i] * 2)
    for n in (3, 3, 5, 5, 8):
        f(tensor(n), flame.tensor([0, n - 1]))
    with pytest.raises(IndexError, match="index 6 is out of bounds for dimension 0 with size 6"):
        f(tensor(6), flame.tensor([0, 6]))
