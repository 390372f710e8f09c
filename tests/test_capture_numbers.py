"""Python numbers that change from call to call, sizes that change, and every dtype and promotion."""

from __future__ import annotations

import enum
import fractions
import math

import numpy as np
import pytest

import flame
from tests.capture_programs import Case, agree, batches, cases, drive, of_sizes, program, tensor

nan, inf = math.nan, math.inf


# -------------------------------------------------------------------- numbers


@program
def a_rate_that_decays(wrap):
    f = wrap(lambda x, k: x * k + k)
    return drive(f, [(x, 0.9**i) for i, x in enumerate(batches(3))])


@program
def a_counter(wrap):
    f = wrap(lambda x, i: (x * i, x + i, x - i, i - x, x / (i + 1), x**i))
    return drive(f, [(x, i) for i, x in enumerate(batches(3))])


@program
def integers_then_floats_then_booleans(wrap):
    f = wrap(lambda x, k: (x * k, flame.arange(3) * k, flame.arange(3) + k))
    return drive(f, [(x, k) for x, k in zip(batches(3, n=10), (1, 1, 1.0, True, 2, 2.0, False, 0, 0.0, 1), strict=True)])


@program
def nan_and_signed_zero_and_infinity(wrap):
    f = wrap(lambda x, k: (x * k, 1 / (flame.zeros(3) + k), flame.zeros(3) * k, x.clamp(min=k), flame.where(x > 0, x, k)))
    return drive(
        f,
        [
            (x, k)
            for x, k in zip(batches(3, n=12), (nan, nan, 0.0, -0.0, 0.0, inf, -inf, 1.0, nan, -0.0, -1.0, 0.0), strict=True)
        ],
    )


@program
def sign_of_zero_is_kept(wrap):
    f = wrap(lambda x, k: flame.copysign(x, flame.full((3,), k)) + flame.full_like(x, k))
    return drive(f, [(x, k) for x, k in zip(batches(3, n=8), (0.0, 0.0, -0.0, 0.0, -0.0, 1.0, -1.0, -0.0), strict=True)])


@program
def one_number_used_twice_then_two(wrap):
    f = wrap(lambda x, a, b: x * a + b)
    ks = [(1.0, 1.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (2.0, 5.0), (4.0, 4.0), (5.0, 2.0), (1.0, 1.0)]
    return drive(f, [(x, a, b) for x, (a, b) in zip(batches(3, n=8), ks, strict=True)])


@program
def two_numbers_change_at_different_times(wrap):
    f = wrap(lambda x, a, b: (x * a).exp() * b - a)
    ks = [(1.0, 5.0), (1.0, 5.0), (2.0, 5.0), (2.0, 6.0), (1.0, 5.0), (3.0, 3.0), (4.0, 5.0), (4.0, 4.0)]
    return drive(f, [(x, a, b) for x, (a, b) in zip(batches(3, n=8), ks, strict=True)])


@program
def a_changing_number_in_a_gradient(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x, k: ((x * w * k) ** 2).sum() + (w**k).abs().sum() if k != 1.5 else (w * k).sum())
    ks = (2.0, 2.0, 3.0, 4.0, 1.5, 2.0, 5.0, 0.0)
    return drive(f, [(x, k) for x, k in zip(batches(3, n=8), ks, strict=True)], w, after=lambda y: y.backward())


@program
def powers_of_many_kinds(wrap):
    w = tensor(3, seed=1, grad=True)
    f = wrap(lambda x, k: ((x.abs() + 0.5 + w * 0.1) ** k).sum())
    ks = (2, 2, 3, 2.0, 0.5, -1, 0, 1, 3.0, 2)
    return drive(f, [(x, k) for x, k in zip(batches(3, n=10), ks, strict=True)], w, after=lambda y: y.backward())


@program
def a_changing_number_with_backward_inside(wrap):
    w = tensor(3, seed=1, grad=True)

    @wrap
    def f(x, k, rate):
        w.grad = None
        ((x * w).tanh() * k).sum().backward()
        with flame.no_grad():
            w.sub_(w.grad, alpha=rate)

    return drive(f, [(x, float(i), 0.1 / (i + 1)) for i, x in enumerate(batches(3, n=9))], w)


@program
def alpha_and_value_arguments(wrap):
    @wrap
    def f(x, k):
        y = x.add(x, alpha=k).sub(x, alpha=k * 2)
        return y, flame.addcmul(x, x, x, value=k), flame.addcdiv(x, x, x + 2, value=k), flame.lerp(x, y, k), x.clamp(-k, k)

    return drive(f, [(x, k) for x, k in zip(batches(3), (0.5, 0.5, 1.0, 2.0, 0.0, 0.25, 0.5), strict=True)])


@program
def numpy_scalars(wrap):
    f = wrap(lambda x, k: x * k)
    ks = [np.float32(2), np.float32(2), np.float64(2.5), np.int64(3), 3, np.bool_(True), np.float32(0.1), 0.1]
    return drive(f, [(x, k) for x, k in zip(batches(3, n=8), ks, strict=True)])


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 4


class Money(float):
    """A float with a name."""


@program
def subclasses_of_numbers(wrap):
    f = wrap(lambda x, k: (x * k, flame.arange(3) * k))
    ks = [Level.LOW, Level.LOW, 1, Level.HIGH, Money(2.5), 2.5, True, Money(1.0)]
    return drive(f, [(x, k) for x, k in zip(batches(3, n=8), ks, strict=True)])


@program
def numbers_that_are_not_numbers(wrap):
    f = wrap(lambda x, k: x * k)
    return drive(
        f, [(x, k) for x, k in zip(batches(3), (2.0, 2.0, "a", fractions.Fraction(1, 2), None, 2.0, 3.0), strict=True)]
    )


@program
def large_integers(wrap):
    f = wrap(lambda i, k: (i + k, i * k, i // 7 + k))
    given = [(flame.tensor([1, -2, 3]), k) for k in (1 << 40, 1 << 40, (1 << 53) + 1, -(1 << 62), 5, 2, (1 << 53) + 1)]
    return drive(f, given)


@program
def a_number_outside_of_its_dtype(wrap):
    f = wrap(lambda i, k: i + k)
    given = [(flame.tensor([1, 2], dtype=flame.uint8), k) for k in (1, 1, 255, 300, -1, 3)]
    return drive(f, given)


@program
def integer_division_and_remainder(wrap):
    f = wrap(lambda i, k: (i // k, i % k, flame.div(i, k, rounding_mode="trunc"), i.float() // k, i.float() % k))
    given = [(flame.tensor([-7, 7, 0, 5]), k) for k in (2, 2, 3, -2, -3, 1, 5)]
    return drive(f, given)


@program
def a_number_from_a_tensor(wrap):
    f = wrap(lambda x: x * x.abs().max().item() + int(x.sum().item() * 3))
    return drive(f, batches(3))


@program
def a_zero_dimensional_tensor_as_a_rate(wrap):
    rate = flame.tensor(1.0)

    @wrap
    def f(x):
        rate.mul_(0.5)
        return x * rate, flame.arange(3) * rate

    return drive(f, batches(3), rate)


@program
def shapes_as_numbers(wrap):
    f = wrap(lambda x: (x * x.shape[0], x.sum() / x.numel(), x / len(x) if len(x) else x, x.size(-1) ** 0.5))
    return drive(f, of_sizes((3, 3, 4, 5, 1, 0, 3, 7), 2))


@program
def an_attention_scale(wrap):
    f = wrap(lambda q: ((q @ q.t()) / math.sqrt(q.shape[-1])).softmax(-1) @ q)
    return drive(f, [tensor(3, d, seed=d) for d in (4, 4, 5, 6, 4, 1)])


@program
def fill_and_full(wrap):
    buffer = flame.zeros(3)

    @wrap
    def f(k):
        buffer.fill_(k)
        return flame.full((2,), k), buffer * 2, flame.zeros(2) + k, flame.full_like(buffer, k)

    return drive(f, [1.0, 1.0, 2.0, 3, True, nan, 1.0], buffer)


@program
def ranges(wrap):
    f = wrap(lambda n, s: (flame.arange(n), flame.arange(0, n, s), flame.linspace(0, n, 4), flame.arange(n) * s, flame.eye(n)))
    return drive(f, [(3, 1), (3, 1), (4, 2), (3, 2), (1, 1), (0, 1), (4, 3), (3, 1)])


@program
def thresholds_compared(wrap):
    f = wrap(lambda x, k: ((x > k).sum(), (x <= k).float().mean(), (x == k).any(), flame.maximum(x, flame.tensor(k))))
    return drive(f, [(x, k) for x, k in zip(batches(5), (0.0, 0.0, 0.5, -0.5, 2.0, 0.25, 0.0), strict=True)])


@program
def loop_counts(wrap):
    @wrap
    def f(x, n):
        for i in range(n):
            x = x * 0.5 + i
        return x

    return drive(f, [(x, n) for x, n in zip(batches(3, n=10), (2, 2, 3, 0, 1, 5, 2, 0, 3, 4), strict=True)])


@program
def number_only_used_by_python(wrap):
    @wrap
    def f(x, k):
        if k > 3:
            return x * 2
        return x + 1

    return drive(f, [(x, i) for i, x in enumerate(batches(3, n=8))])


@program
def numbers_in_static_parameters(wrap):
    f = wrap(lambda x, d, k: (x.sum(d, keepdim=k), x.roll(d, 0), x.softmax(d), x.cumsum(d)))
    return drive(f, [(x, i % 2, bool(i % 3)) for i, x in enumerate(batches(2, 3, n=8))])


@program
def booleans_and_ones_as_parameters(wrap):
    f = wrap(lambda x, k: x.sum(0, keepdim=k))
    return drive(f, [(x, k) for x, k in zip(batches(2, 3), (True, True, False, True, False, False, True), strict=True)])


@program
def epsilon_in_layer_norm(wrap):
    f = wrap(lambda x, e: flame.nn.functional.layer_norm(x, (3,), eps=e))
    return drive(f, [(x, e) for x, e in zip(batches(2, 3), (1e-5, 1e-5, 0.5, 0.1, 1e-5, 1.0, 0.5), strict=True)])


@program
def negative_numbers_and_unary_minus(wrap):
    f = wrap(lambda x, k: (-x * -k, x - -k, abs(x) ** abs(k), +x))
    return drive(f, [(x, k) for x, k in zip(batches(3), (1.0, 1.0, -2.0, 2.0, -0.5, 3.0, 1.0), strict=True)])


@program
def more_than_a_few_different_numbers(wrap):
    f = wrap(lambda x, a, b, c: x * a + b * x.sin() - c)
    rng = np.random.default_rng(3)
    return drive(f, [(x, *map(float, rng.normal(size=3))) for x in batches(3, n=14)])


# -------------------------------------------------------------------- sizes


@program
def batches_of_changing_size(wrap):
    w = tensor(3, 2, seed=1, grad=True)
    f = wrap(lambda x: ((x @ w).relu().sum(-1)).mean() if x.shape[0] else (x @ w).sum())
    return drive(f, of_sizes((4, 4, 6, 5, 1, 0, 4, 9), 3), w, after=lambda y: y.backward())


@program
def zero_and_one_sized(wrap):
    def f(x):
        return (
            x.sum(),
            x.prod(),
            x + x.sum(0),
            x.unsqueeze(0).expand(2, *x.shape).sum(0),
            x.reshape(-1, 1),
            (x > 0).all(),
            (x > 0).any(),
        )

    return drive(wrap(f), of_sizes((0, 0, 1, 1, 2, 0, 1, 3, 2), 2))


@program
def reductions_of_nothing_raise(wrap):
    def f(x):
        try:
            return x.max()
        except (RuntimeError, IndexError, ValueError) as e:
            return type(e).__name__, x.sum()

    return drive(wrap(f), of_sizes((0, 0, 2, 0, 1, 2, 3)))


@program
def broadcast_changes(wrap):
    f = wrap(lambda a, b: (a + b, (a * b).sum(0)))
    shapes = [
        ((3,), (3,)),
        ((3,), (3,)),
        ((3,), (1,)),
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((3,), (3,)),
        ((), (3,)),
        ((1, 1), (1,)),
    ]
    return drive(f, [(tensor(*a, seed=i), tensor(*b, seed=9 + i)) for i, (a, b) in enumerate(shapes)])


@program
def broadcast_gradients_change(wrap):
    f = wrap(lambda a, b: (a * b).sum())
    shapes = [((3,), (3,)), ((3,), (3,)), ((3,), (1,)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((2, 3), (3,)), ((), (3,))]
    given = [(tensor(*a, seed=i, grad=True), tensor(*b, seed=9 + i, grad=True)) for i, (a, b) in enumerate(shapes)]
    return drive(f, given, given, after=lambda y: y.backward())


@program
def mismatched_shapes_raise_every_time(wrap):
    f = wrap(lambda a, b: a * 2 + b)
    return drive(f, [(tensor(3), tensor(n)) for n in (3, 3, 4, 4, 3, 1, 5, 3)])


@program
def ranks_change(wrap):
    f = wrap(lambda x: x.softmax(-1) + x.mean(-1, keepdim=True))
    return drive(f, [tensor(*s, seed=i) for i, s in enumerate([(3,), (3,), (2, 3), (2, 2, 3), (3,), (1, 3), (2, 3)])])


@program
def size_one_is_no_size_n(wrap):
    w = tensor(1, 3, seed=1)
    f = wrap(lambda x: x + w.expand(x.shape[0], 3) if x.shape[0] != 1 else x * w)
    return drive(f, of_sizes((2, 2, 1, 1, 3, 2, 1), 3))


@program
def padding_to_the_longest(wrap):
    @wrap
    def f(xs):
        n = max(x.shape[0] for x in xs)
        return flame.stack([flame.cat([x, flame.zeros(n - x.shape[0])]) for x in xs])

    return drive(f, [(of_sizes(s, seed=i),) for i, s in enumerate([(2, 3), (2, 3), (1, 1), (0, 2), (3, 2), (2, 3), (4, 1, 2)])])


# -------------------------------------------------------------------- dtypes

FLOATS = (flame.float16, flame.bfloat16, flame.float32, flame.float64)
ALL = (*FLOATS, flame.uint8, flame.int8, flame.int16, flame.int32, flame.int64, flame.bool)


def of_dtype(d, n=4, seed=0):
    if d is flame.bool:
        return tensor(n, seed=seed) > 0
    return (tensor(n, seed=seed) * (1 if d.is_floating_point else 40)).abs().to(d)


def _each_apart(wrap, f, givens):
    """One compiled function for each combination of dtypes, called three times."""
    return [drive(wrap(f), [given] * 3) for given in givens]


@program(native=False)
def every_promotion(wrap):
    pairs = [(of_dtype(a, seed=1), of_dtype(b, seed=2)) for a in ALL for b in ALL]
    return _each_apart(wrap, lambda a, b: a + b, pairs[::3])


@program(native=False)
def every_promotion_in_products(wrap):
    pairs = [(of_dtype(a, seed=1), of_dtype(b, seed=2)) for a in ALL for b in ALL]
    return _each_apart(wrap, lambda a, b: (a * b, a / (b + 1), flame.maximum(a, b)), pairs[1::3])


@program(native=False)
def every_promotion_with_a_number(wrap):
    return _each_apart(
        wrap,
        lambda a, k: (a * k, a + k, k - a.float(), a.clone().mul_(True)),
        [(of_dtype(a), k) for a in ALL for k in (True, 2, 2.5)],
    )


@program(native=False)
def every_promotion_with_a_zero_dimensional(wrap):
    pairs = [(of_dtype(a), of_dtype(b, 1, seed=3)) for a in ALL for b in ALL]
    return _each_apart(wrap, lambda a, b: a * b[0], pairs[::4])


@program(native=False)
def every_promotion_of_where(wrap):
    pairs = [(of_dtype(a), of_dtype(b, seed=3)) for a in ALL for b in ALL]
    return _each_apart(wrap, lambda a, b: (flame.where(a > b, a, b), flame.where(a == b, a, 2)), pairs[2::4])


@program
def one_input_of_each_dtype_in_turn(wrap):
    f = wrap(lambda x: (x + x, x * 2, x.sum(), x.float().exp(), x == x))
    return drive(f, [of_dtype(d, seed=i) for _ in range(2) for i, d in enumerate(ALL)])


@program(native=False)
def casts_there_and_back(wrap):
    f = wrap(lambda x, d: x.to(d).to(flame.float32) + x.to(d).sum().float())
    return drive(
        f, [(tensor(4, seed=i) * 10 if d is not flame.uint8 else tensor(4, seed=i).abs(), d) for i, d in enumerate(ALL * 2)]
    )


@program(native=False)
def gradients_in_each_floating_dtype(wrap):
    ws = [tensor(4, seed=1).to(d).requires_grad_() for d in FLOATS]
    f = wrap(lambda x, w: (x.to(w.dtype) * w).sin().sum())
    return drive(f, [(tensor(4, seed=i), ws[i % 4]) for i in range(8)], ws, after=lambda y: y.backward())


@program(native=False)
def mixed_precision_by_hand(wrap):
    w = tensor(4, 4, seed=1, grad=True)

    @wrap
    def f(x):
        h = (x.bfloat16() @ w.bfloat16()).float()
        return (h.relu() * 4).mean()

    return drive(f, batches(2, 4), w, after=lambda y: y.backward())


@program
def loss_scaling(wrap):
    w = tensor(4, seed=1, grad=True)
    scale = 4.0

    @wrap
    def f(x):
        nonlocal scale
        w.grad = None
        ((x.half() * w.half()).float().sum() * scale).backward()
        finite = bool(w.grad.isfinite().all())
        if finite:
            with flame.no_grad():
                w.sub_(w.grad / scale, alpha=0.01)
            scale *= 8
        else:
            scale /= 2
        return finite

    return drive(f, batches(4, n=10), w, lambda: scale)


@program
def default_dtype_changes(wrap):
    f = wrap(lambda i: (flame.zeros(2), i / 2, flame.ones(2) * 0.1, flame.arange(2.0)))
    seen = []
    try:
        for k in range(8):
            flame.set_default_dtype(flame.float64 if k % 3 == 2 else flame.float32)
            seen += drive(f, [flame.tensor([k, 3])])
    finally:
        flame.set_default_dtype(flame.float32)
    return seen


@program
def bit_operations(wrap):
    f = wrap(lambda i, k: (i & k, i | k, i ^ k, i << (k % 5), i >> (k % 5), ~i))
    return drive(
        f,
        [
            (flame.tensor([1, 200, -3], dtype=d), k)
            for d, k in zip((flame.int32, flame.int32, flame.int64, flame.int16) * 2, (1, 1, 3, 5, 2, 7, 3, 6), strict=True)
        ],
    )


@program(native=False)
def comparisons_of_mixed_dtypes(wrap):
    pairs = [(of_dtype(a, seed=1), of_dtype(b, seed=2)) for a in ALL for b in ALL]
    return _each_apart(wrap, lambda a, b: (a < b, a == b, flame.minimum(a, b)), pairs[1::5])


@program(native=False)
def arithmetic_of_booleans(wrap):
    fs = [
        lambda a, b: (
            a + b,
            a * b,
            a & b,
            a + True,
            a * 2,
            a.sum() + b,
            a / b.float(),
            a.cumsum(0),
            a.any() + b.all(),
            a.max(),
        ),
        lambda a, b: (a.clone().add_(b), a.clone().mul_(b), flame.add(a, b), flame.maximum(a, b), a.amin()),
        lambda a, b: a - b,
        lambda a, b: -a,
    ]
    return [drive(wrap(f), [(of_dtype(flame.bool, seed=i), of_dtype(flame.bool, seed=9 - i)) for i in range(3)]) for f in fs]


@program
def integer_overflow_wraps(wrap):
    f = wrap(lambda i: (i * 3, i + 100, -i, i.sum()))
    return drive(
        f,
        [
            flame.tensor([100, 50, 7], dtype=d)
            for d in (flame.int8, flame.int8, flame.uint8, flame.int16, flame.int8, flame.int32)
        ],
    )


@pytest.mark.parametrize("case, backend", cases(__name__))
def test_same_as_eager(case: Case, backend: str) -> None:
    agree(case, backend)
