"""What may be compiled: methods, partials, callables, classes; what is refused; compiled functions in compiled functions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import flame
from tests.test_modes import ones, same

# ---- what may be compiled


class Scale:
    def __init__(self, k: float):
        self.k = k

    @flame.compile
    def twice(self, x: Any) -> Any:
        """Twice k."""
        return x * self.k * 2

    def once(self, x: Any) -> Any:
        return x * self.k

    def __call__(self, x: Any) -> Any:
        return x * self.k + 1


def test_methods_decorated_and_bound() -> None:
    a, b = Scale(2.0), Scale(3.0)
    for _ in range(4):
        assert same(a.twice(ones(2)), ones(2) * 4) and same(b.twice(ones(2)), ones(2) * 6)
        assert same(Scale.twice(a, ones(2)), ones(2) * 4)
    assert a.twice.__self__ is a and a.twice.__doc__ == "Twice k." and a.twice.stats.calls == 12
    once = flame.compile(a.once)
    for _ in range(3):
        assert same(once(ones(2)), ones(2) * 2)
    assert once.stats.flushed == 2 and once.__name__ == "once"


def test_partials_and_callables() -> None:
    def f(x: Any, k: float, *, shift: float) -> Any:
        return x * k + shift

    p = flame.compile(functools.partial(f, k=2.0, shift=1.0))
    c = flame.compile(Scale(2.0))
    built_in = flame.compile(flame.exp)
    for _ in range(3):
        assert same(p(ones(2)), ones(2) * 3) and same(c(ones(2)), ones(2) * 3)
        np.testing.assert_allclose(built_in(ones(2)).numpy(), np.e, rtol=1e-6)
    assert (p.stats.flushed, c.stats.flushed, built_in.stats.flushed) == (2, 2, 2)
    assert repr(p) == "<compiled f>" and repr(c) == "<compiled Scale>"


def test_a_class_has_its_calls_compiled() -> None:
    @flame.compile
    class Add:
        def __init__(self, n: float):
            self.n = n

        def __call__(self, x: Any) -> Any:
            return x + self.n, flame.compiler.is_compiling()

    @flame.compile
    class Net(flame.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = flame.nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            return self.inner(x), flame.compiler.is_compiling()

    add, net = Add(1.0), Net()
    assert isinstance(add, Add) and isinstance(net, flame.nn.Module) and len(list(net.parameters())) == 2
    for _ in range(3):
        y, inside = add(ones(2))
        assert same(y, ones(2) * 2) and inside
        y, inside = net(ones(2))
        np.testing.assert_allclose(y.detach().numpy(), net.inner(ones(2)).detach().numpy(), rtol=1e-6)
        assert inside
    assert Add.__call__.stats.flushed == 2 and flame.compile(Add) is Add
    with pytest.raises(TypeError, match="can't be called"):
        flame.compile(type("Plain", (), {}))


def generator() -> Any:
    yield 1


async def coroutine() -> None: ...


async def stream() -> Any:
    yield 1


class Suspended:
    def __call__(self) -> Any:
        yield 1


@pytest.mark.parametrize(
    "bad, kind",
    [
        (generator, "generator"),
        (functools.partial(generator), "generator"),
        (coroutine, "coroutine"),
        (stream, "asynchronous"),
        (Suspended(), "generator"),
        (Suspended, "generator"),
    ],
    ids=["function", "partial", "coroutine", "stream", "object", "class"],
)
def test_what_is_suspended_in_the_middle_is_refused(bad: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"FL4001.*{kind}.*[Cc]ompile the function"):
        flame.compile(bad)


@pytest.mark.parametrize("bad", [3, "f", None.__class__(), [1]])
def test_what_can_not_be_called_is_refused(bad: Any) -> None:
    if bad is None:
        assert callable(flame.compile(bad)), "no argument: a decorator"
    else:
        with pytest.raises(TypeError, match="expects a function or a Module"):
            flame.compile(bad)


def test_compiling_twice_is_compiling_once() -> None:
    f = flame.compile(lambda x: x * 2)
    assert flame.compile(f) is f and flame.compile(f, mode="default") is f
    strict = flame.compile(f, fullgraph=True)
    assert strict is not f and strict.settings["fullgraph"] and strict.__wrapped__ is f.__wrapped__
    assert flame.compile(strict) is strict
    net = flame.compile(flame.nn.Linear(2, 2))
    assert flame.compile(net) is net
    other = flame.compile(net, fullgraph=True)
    assert other is not net and other._orig_mod is net._orig_mod and other._compiled.settings["fullgraph"]
    assert flame.compile(f, disable=True) is f


def test_settings_make_the_same_function_again() -> None:
    f = flame.compile(lambda x: x, fullgraph=True, mode="max-autotune", backend="interpret", options={"recompile_limit": 7})
    assert flame.compile(f.__wrapped__, **f.settings).settings == f.settings


def test_compiled_functions_in_compiled_functions_are_one_graph() -> None:
    inner = flame.compile(lambda x: x * 2, fullgraph=True)

    @flame.compile
    def outer(x: Any) -> Any:
        return inner(x) + inner(x + 1)

    for _ in range(4):
        assert same(inner(ones(2)), ones(2) * 2)
        assert same(outer(ones(2)), ones(2) * 6)
    assert outer.stats.compiled == 1 and len(outer.graphs[0].nodes) > 2 and not outer.stats.breaks


def test_one_compiled_function_serves_two_others_and_itself() -> None:
    @flame.compile
    def power(x: Any, n: int) -> Any:
        return x if n == 0 else x * power(x, n - 1)

    a, b = flame.compile(lambda x: power(x, 2)), flame.compile(lambda x: power(x, 1))
    for _ in range(3):
        assert a(ones(2) * 2).tolist() == [8, 8] and b(ones(2) * 2).tolist() == [4, 4]
        assert power(ones(2) * 2, 3).tolist() == [16, 16]
