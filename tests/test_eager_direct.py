"""Small operations that go straight to NumPy do what the long way does."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

import flame
from flame.autograd.tape import Direct
from flame.autograd.watch import watching

OPERATORS = ("add", "sub", "mul", "truediv", "lt", "ge", "eq", "ne")
DTYPES = ("float16", "bfloat16", "float32", "float64", "int64", "bool")


def operands(dtype: str) -> list[Any]:
    r = np.random.default_rng(3)
    d = getattr(flame, dtype)
    shapes: tuple[tuple[int, ...], ...] = ((), (1,), (3, 4), (4, 1), (0, 4), (4, 3))
    made: list[Any] = [flame.tensor(r.uniform(-2, 2, s)).to(d) for s in shapes]
    return [*made, made[-1].t(), 3, 0.1, 1e300, 10**400, True]


def outcome(f: Any, *xs: Any) -> Any:
    """A result's dtype, shape, layout and bits, or what was raised."""
    try:
        y = f(*xs)
    except Exception as e:
        return type(e), str(e)
    if not isinstance(y, flame.Tensor):
        return y
    a = y.detach().to(flame.float64).numpy() if y.dtype is not flame.bool else y.numpy()
    return y.dtype, y.stride(), y.requires_grad, a.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_give_the_same_bits_and_the_same_errors(dtype: str) -> None:
    seen: list[str] = []

    def watcher(process: Any, primitive: Any, xs: tuple, params: dict) -> Any:
        seen.append(primitive.name)
        return process(primitive, xs, params)

    xs = operands(dtype)
    for name in OPERATORS:
        for f in (getattr(operator, name), getattr(flame.Tensor, f"__r{name}__", None)):
            for x in xs[:7]:
                for y in xs if f is not None else ():
                    assert f is not None
                    short = outcome(f, x, y)
                    with watching(watcher):
                        long = outcome(f, x, y)
                    assert short == long, (name, x, y)
    for g in (flame.exp, flame.neg, flame.abs, flame.sqrt, flame.maximum):
        for x in xs[:7]:
            given = (x, x) if g is flame.maximum else (x,)
            short = outcome(g, *given)
            with watching(watcher):
                assert short == outcome(g, *given)
    assert {"add", "lt"} <= set(seen)


def test_history_is_recorded_where_there_is_any() -> None:
    x, y = flame.ones(3, requires_grad=True), flame.tensor([1.0, 2.0, 3.0])
    for z, want in ((x + y, 1.0), (2.0 - x, -1.0), (x.exp(), float(np.exp(np.float32(1)))), (x[:] * 3.0, 3.0)):
        assert z.requires_grad
        np.testing.assert_allclose(flame.autograd.grad(z.sum(), x)[0].numpy(), want, rtol=1e-6)
    assert not (x > y).requires_grad
    with flame.no_grad():
        assert not (x + y).requires_grad
        assert not x.exp().requires_grad


def test_a_view_whose_base_was_written_has_a_history() -> None:
    w = flame.ones(2, requires_grad=True)
    base = flame.zeros(4)
    seen = base[:2]
    base.copy_(flame.cat([w, w]) * 2.0)
    (g,) = flame.autograd.grad((seen + 1.0).sum(), w)
    np.testing.assert_array_equal(g.numpy(), [2.0, 2.0])


def test_what_a_kernel_does_on_many_elements_is_left_to_it() -> None:
    from flame.ops.elementwise import add, exp

    assert Direct.of(add).most > 1 << 40
    assert Direct.of(exp).most == flame.runtime.eager_kernels.LEAST


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_of_two_zeros_relu_and_clamp_give_that_of_their_operand(dtype: str) -> None:
    for n in (1, 8, 63, 64, 1000, 40000):
        x = flame.full((n,), -0.0, dtype=getattr(flame, dtype))
        for f in (flame.relu, lambda t: t.clamp(0, 1), lambda t: t.clamp(min=0), flame.nn.functional.relu6):
            assert flame.signbit(f(x)).all(), n
            compiled = flame.compile(f)
            for _ in range(2):
                assert flame.signbit(compiled(x)).all(), n
