"""Symbolic sizes: what a space proves and notes, and graphs that are compiled once and run at many sizes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from flame import dtypes as dt
from flame.compiler.autodiff import differentiate
from flame.compiler.concrete import graph_at, program_at
from flame.compiler.dims import Dim, Fact, Space, at, hint, same_sizes
from flame.compiler.graph import Builder, Graph
from flame.compiler.index_math import evaluate as value_of
from flame.compiler.index_math import ex, var
from flame.compiler.pipeline import compile_graph
from flame.primitive import Spec, registered
from flame.runtime import cpu
from flame.runtime.executable import Executable
from flame.symbol import evaluate as number_of
from tests.graphs_for_tests import evaluate, random_inputs

SIZES = [(7, 5), (2, 2), (3, 9), (33, 17), (5, 5), (2, 40)]


def space(s0: int = 7, s1: int = 5) -> Space:
    return Space({"s0": s0, "s1": s1}, {"s0": 2, "s1": 2})


def op(name: str, *operands: Any, **params: Any) -> Any:
    return registered(name)(*operands, **params)


# ---------------------------------------------------------------------------------------------------- arithmetic and facts


def test_arithmetic_is_that_of_ints() -> None:
    r = random.Random(0)
    for _ in range(400):
        sp = space()
        values = {"s0": r.randint(2, 40), "s1": r.randint(2, 40)}
        x, y = sp.symbol("s0"), sp.symbol("s1")
        a, b = values["s0"], values["s1"]
        for _ in range(6):
            k, what = r.randint(1, 9), r.choice("+ - * // % ** swap".split())
            match what:
                case "+":
                    x, a = x + y + k, a + b + k
                case "-":
                    x, a = k - x + y * 3, k - a + b * 3
                case "*":
                    x, a = x * k * y, a * k * b
                case "//":
                    x, a = x // k, a // k
                case "%":
                    x, a = (x + y) % k, (a + b) % k
                case "**":
                    x, a = y**2 - x, b**2 - a
                case "swap":
                    x, y, a, b = y, x, b, a
            assert at(x, values) == a and at(y, values) == b
            if type(x) is int:
                break


def test_numbers_of_sizes_are_expressions_of_slots() -> None:
    sp = space()
    x = sp.symbol("s0") * 3 + 1
    for got, want in ((1 / x, 1 / 22), (x / 2, 11.0), (x * 0.5, 11.0), (x**0.5, 22**0.5), (2.0 - x, -20.0)):
        assert got.value == want
        assert number_of(got.expr, [9, 5]) == {1 / 22: 1 / 28, 11.0: 14.0, 22**0.5: 28**0.5, -20.0: -26.0}[want]


def test_what_is_proved_needs_no_fact() -> None:
    sp = space()
    x, y = sp.symbol("s0"), sp.symbol("s1")
    assert x >= 2 and x > 1 and x != 1 and x != 0 and not x < 2 and x * y >= x and x + y > x and x * 2 != 3
    assert x == sp.symbol("s0") and x * y == y * x and x + 1 != x and hash(x + y) == hash(y + x)
    assert (x * y) // y == x and (x * 6) % 3 == 0 and sp.facts == []


def test_what_is_not_proved_is_answered_from_now_and_noted() -> None:
    sp = space()
    x, y = sp.symbol("s0"), sp.symbol("s1")
    assert x > y and not x < 7 and x <= 7
    assert [str(f) for f in sp.facts] == ["s0 - s1 - 1 >= 0", "s0 - 7 >= 0", "7 - s0 >= 0"]
    assert x > y  # known now
    assert len(sp.facts) == 3
    assert all(f.holds({"s0": 7, "s1": 5}) for f in sp.facts) and not all(f.holds({"s0": 7, "s1": 9}) for f in sp.facts)


def test_different_expressions_are_unequal_unless_granted() -> None:
    sp = space(8, 8)
    x, y = sp.symbol("s0"), sp.symbol("s1")
    assert x != y and x != 8 and sp.facts == []
    with sp.granting():
        assert x == y
    assert sp.facts == [Fact(var("s0") - var("s1"), "eq")]
    assert x == y and x + 1 == y + 1 and hash(x) == hash(y)  # one of the two is gone
    assert set(sp.symbols) == {"s1"}


def test_an_equation_eliminates_a_symbol() -> None:
    sp = space(6, 12)
    x, y = sp.symbol("s0"), sp.symbol("s1")
    with sp.granting():
        assert (x * 4, y * 2) == (y * 2, x * 4)
    assert y == x * 2 and (y * y) // x == 4 * x


def test_using_the_number_itself_fixes_it() -> None:
    sp = space()
    x = sp.symbol("s0")
    assert list(range(x)) == list(range(7))
    assert sp.facts == [Fact(var("s0") - 7, "eq")] and x == 7
    assert "abcdefghij"[sp.symbol("s1")] == "f"


def test_hints_note_nothing() -> None:
    sp = space()
    x = sp.symbol("s0")
    assert hint(x * 3) == 21 and hint(4) == 4 and sp.facts == []
    assert same_sizes([x, 3, 4], [4, x, 3]) and not same_sizes([x, 3], [3, 3]) and not same_sizes([x], [x, x])
    assert type(x - x) is int and type(x) is Dim and value_of(ex(x), {"s0": 9}) == 9


# ------------------------------------------------------------------------------------------------------------- whole graphs


def built(f: Any, *shapes: Sequence[Any]) -> tuple[Space, Graph]:
    sp = space()
    builder = Builder(Graph())
    inputs = [builder.input(Spec(tuple(sp.symbol(d) if isinstance(d, str) else d for d in s), dt.float32)) for s in shapes]
    with builder:
        got = f(*inputs)
    builder.graph.outputs = list(got) if isinstance(got, tuple) else [got]
    return sp, builder.graph


def check(sp: Space, graph: Graph, sizes: Sequence[tuple[int, int]] = tuple(SIZES), backend: Any = "llvm") -> int:
    """Compile once, run at each set of sizes for which the facts hold; how many those were."""
    program = compile_graph(graph, cpu.target(), verify=True)
    ran = 0
    for n, pair in enumerate(sizes):
        values = dict(zip(("s0", "s1"), pair, strict=True))
        if not all(f.holds(values) for f in sp.facts):
            continue
        here = graph_at(graph, values)
        here.verify()
        arrays = random_inputs(here, n)
        got = Executable(program_at(program, values), backend=backend)([a.copy() for a in arrays])
        for a, want in zip(got, evaluate(here, arrays, precise=True), strict=True):
            assert a.shape == want.shape
            np.testing.assert_allclose(a, want, rtol=2e-4, atol=1e-5 * max(1.0, float(np.abs(want).max(initial=0))))
        ran += 1
    return ran


def softmax(x: Any) -> Any:
    e = op("exp", op("sub", x, op("amax", x, dim=(x.ndim - 1,), keepdim=True)))
    return op("div", e, op("sum", e, dim=(x.ndim - 1,), keepdim=True))


def heads(x: Any, w: Any) -> Any:
    b, t, c = x.shape
    y = op("permute", op("reshape", op("matmul", x, w), shape=(b, t, 2, c // 2)), dims=(0, 2, 1, 3))
    y = op("matmul", softmax(op("matmul", y, op("permute", y, dims=(0, 1, 3, 2)))), y)
    return op("reshape", op("permute", y, dims=(0, 2, 1, 3)), shape=(b, t, c))


def _places(shape: Any) -> list:
    """The row and the column of every element."""
    n, m = shape
    rows, columns = op("iota", size=n, dtype=dt.float32), op("iota", size=m, dtype=dt.float32)
    return [op("expand", op("reshape", rows, shape=(n, 1)), shape=shape), op("expand", columns, shape=shape)]


PROGRAMS = {
    "chain": (lambda a, b: op("exp", op("mul", a, b)), ("s0", "s1", 6), ("s1", 6)),
    "softmax": (softmax, ("s0", "s1")),
    "mean": (lambda a: op("sum", a, dim=(0, 1), keepdim=False), ("s0", "s1")),
    "linear": (lambda a, w, b: op("maximum", op("add", op("matmul", a, w), b), 0), ("s0", 33), (33, 24), (24,)),
    "heads": (heads, ("s0", "s1", 8), (8, 8)),
    "flatten": (lambda a: op("exp", op("reshape", a, shape=(a.shape[0] * a.shape[1], 6))), ("s0", "s1", 6)),
    "unflatten": (lambda a: op("exp", op("reshape", a, shape=(a.shape[0], 2, 3, a.shape[1]))), ("s0", "s1", 6)),
    "shift": (
        lambda a: op(
            "sub", *(op("slice", a, starts=(0, i), stops=(a.shape[0], a.shape[1] - 1 + i), steps=(1, 1)) for i in (0, 1))
        ),
        ("s0", "s1"),
    ),
    "cat": (lambda a, b: op("mul", op("cat", a, b, dim=1), 2.0), ("s0", "s1"), ("s0", 3)),
    "pad": (lambda a: op("exp", op("pad", a, lo=(0, 2), hi=(1, 0), value=0)), ("s0", "s1")),
    "causal": (
        lambda a: op("where", op("ge", op("sub", *_places(a.shape)), 0), a, 0.0),
        ("s0", "s1"),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_once_for_all_sizes(name: str) -> None:
    f, *shapes = PROGRAMS[name]
    sp, graph = built(f, *shapes)
    assert check(sp, graph) >= len(SIZES) - 2, sp.facts
    assert check(sp, graph, SIZES[:3], "interpret") >= 1


@pytest.mark.parametrize("name", ["chain", "softmax", "mean", "linear", "heads", "flatten"])
def test_gradients_compiled_once_for_all_sizes(name: str) -> None:
    f, *shapes = PROGRAMS[name]
    sp, graph = built(f, *shapes)
    joint = differentiate(graph, list(range(len(shapes))), [0])
    for g in (joint.forward, joint.backward):
        assert check(sp, g) == len(SIZES), sp.facts


def test_every_operation_is_a_kernel_at_symbolic_sizes_too() -> None:
    for f, *shapes in PROGRAMS.values():
        _, graph = built(f, *shapes)
        program = compile_graph(graph, cpu.target())
        assert len(program.kernels) == len(program.steps), [str(d) for d in program.decisions if d.verdict == "called"]


def random_graph(seed: int) -> tuple[Space, Graph]:
    """Shapes over two symbols and small constants; operations that keep, merge, cut and reduce them."""
    r = random.Random(seed)

    def grow(*have: Any) -> Any:
        values = list(have)
        for _ in range(r.randint(3, 8)):
            x = r.choice(values)
            n = x.ndim
            match r.choice("unary binary sum permute merge slice pad cat expand matmul".split()):
                case "unary":
                    values.append(op(r.choice(["tanh", "sigmoid", "relu", "neg"]), x))
                case "binary":
                    same = [y for y in values if y.shape == x.shape]
                    values.append(op(r.choice(["add", "mul", "maximum"]), x, r.choice(same)))
                case "sum" if n:
                    dims = (r.randrange(n),)
                    values.append(op(r.choice(["sum", "amax"]), x, dim=dims, keepdim=r.random() < 0.5))
                case "permute" if n > 1:
                    values.append(op("permute", x, dims=tuple(r.sample(range(n), n))))
                case "merge" if n > 1:
                    d = r.randrange(n - 1)
                    shape = (*x.shape[:d], x.shape[d] * x.shape[d + 1], *x.shape[d + 2 :])
                    values.append(op("reshape", x, shape=shape))
                case "slice" if n:
                    d = r.randrange(n)
                    if x.shape[d] != 1 and x.shape[d] >= 2:
                        starts = tuple(int(i == d) for i in range(n))
                        values.append(op("slice", x, starts=starts, stops=x.shape, steps=(1,) * n))
                case "pad" if n:
                    lo = tuple(r.randint(0, 2) for _ in range(n))
                    values.append(op("pad", x, lo=lo, hi=lo[::-1], value=0))
                case "cat" if n:
                    values.append(op("cat", x, op("neg", x), dim=r.randrange(n)))
                case "expand":
                    values.append(op("expand", x, shape=(r.choice([3, have[0].shape[0]]), *x.shape)) if n < 3 else x)
                case "matmul" if n == 2:
                    values.append(op("matmul", x, op("permute", x, dims=(1, 0))))
        return tuple(values[-2:])

    return built(grow, ("s0", "s1"), ("s1", 4), (3, "s0"))


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_graphs(first: int) -> None:
    ran = 0
    for seed in range(first, first + 20):
        sp, graph = random_graph(seed)
        ran += check(sp, graph, SIZES[:4], "llvm" if seed % 4 == 0 else "interpret")
    assert ran > 40
