"""Simplification keeps every bit and removes what it promises to; the pipeline verifies, names and shows its passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from graphs_for_tests import evaluate, op, random_graph, random_inputs, same_bits, transformer

from flame import dtypes as dt
from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.rewrite import eliminate_dead, rebuild, static_key
from flame.compiler.simplify import COMMUTATIVE, EQUATIONS, holds, simplify
from flame.errors import VerificationError
from flame.primitive import REGISTRY, Spec

F, D, H, B, I = (dt.float32, dt.float64, dt.float16, dt.bfloat16, dt.int32)


def graph_of(f: Callable[..., Value | Sequence[Value]], *specs: Spec) -> Graph:
    b = Builder()
    xs = [b.input(s, "xyzw"[i]) for i, s in enumerate(specs)]
    with b:
        out = f(*xs)
    b.graph.outputs = [out] if isinstance(out, Value) else list(out)
    return b.graph


def names(g: Graph) -> list[str]:
    return [n.primitive.name for n in g.nodes]


def check(g: Graph, seed: int = 0) -> Graph:
    """Simplify; the result is well formed, has the same specs, and gives the same bits."""
    g.verify()
    s = simplify(g)
    s.verify("simplify")
    assert s.inputs == g.inputs and [o.spec for o in s.outputs] == [o.spec for o in g.outputs]
    assert len({v.name for v in s.values()}) == len(list(s.values())), "two values have one name"
    arrays = random_inputs(g, seed)
    for a in arrays:  # the values that algebra goes wrong on
        if a.dtype.kind in "fV" and a.size:
            rng = np.random.default_rng(seed)
            flat = a.reshape(-1)
            special = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0]
            flat[rng.integers(0, flat.size, 1 + flat.size // 4)] = rng.choice(special, 1 + flat.size // 4).astype(a.dtype)
    with np.errstate(all="ignore"):
        for i, (a, b) in enumerate(zip(evaluate(g, arrays), evaluate(s, arrays), strict=True)):
            assert same_bits(a, b), f"{g.name}: result {i} changed\n{g}\n{s}\n{a}\n{b}"
    return s


@pytest.mark.parametrize("floats", [(F,), (D,), (H, F), (B, F), (F, D, B)], ids=lambda ds: "-".join(d.name for d in ds))
def test_random_graphs_keep_every_bit(floats: tuple) -> None:
    shorter = total = 0
    for seed in range(60):
        g = random_graph(1000 * len(floats) + seed, nodes=16, floats=floats)
        s = check(g, seed)
        live = eliminate_dead(g)
        total += len(live.nodes)
        shorter += len(live.nodes) - len(s.nodes)
    assert shorter > total / 20, "the graphs are wasteful on purpose"


def test_odd_sizes_and_empty_arrays_keep_every_bit() -> None:
    for seed in range(80):
        check(random_graph(7000 + seed, nodes=10, sizes=(0, 1, 1, 2, 7)), seed)


def test_simplifying_twice_changes_nothing_more() -> None:
    for seed in range(60):
        once = simplify(random_graph(2000 + seed, nodes=16))
        assert names(simplify(once)) == names(once)


V = Spec((3, 4), F)
N = Spec((3, 4), I)
#: what is written, on which specs -> the primitives that are left
CASES: dict[str, tuple[Callable[..., Value | Sequence[Value]], list[Spec], list[str]]] = {
    "x * 1": (lambda x: op("mul", x, 1), [V], []),
    "1.0 * x": (lambda x: op("mul", 1.0, x), [V], []),
    "x / 1": (lambda x: op("div", x, 1), [V], []),
    "x + -0.0": (lambda x: op("add", x, -0.0), [V], []),
    "x + 0.0 stays": (lambda x: op("add", x, 0.0), [V], ["add"]),
    "x - 0.0": (lambda x: op("sub", x, 0.0), [V], []),
    "x - -0.0 stays": (lambda x: op("sub", x, -0.0), [V], ["sub"]),
    "0.0 - x stays": (lambda x: op("sub", 0.0, x), [V], ["sub"]),
    "x * 0.0 stays": (lambda x: op("mul", x, 0.0), [V], ["mul"]),
    "x - x stays": (lambda x: op("sub", x, x), [V], ["sub"]),
    "n + 0": (lambda n: op("add", n, 0), [N], []),
    "n * 0": (lambda n: op("mul", n, 0), [N], ["full"]),
    "n - n": (lambda n: op("sub", n, n), [N], ["full"]),
    "x / 2 is x * 0.5": (lambda x: op("div", x, 2), [V], ["mul"]),
    "x / 3 stays": (lambda x: op("div", x, 3), [V], ["div"]),
    "x / -0.25": (lambda x: op("div", x, -0.25), [V], ["mul"]),
    "x / 2^-140 stays": (lambda x: op("div", x, 2.0**-140), [V], ["div"]),
    "neg neg": (lambda x: op("neg", op("neg", x)), [V], []),
    "x + neg y": (lambda x, y: op("add", x, op("neg", y)), [V, V], ["sub"]),
    "neg x + y": (lambda x, y: op("add", op("neg", x), y), [V, V], ["sub"]),
    "x - neg y": (lambda x, y: op("sub", x, op("neg", y)), [V, V], ["add"]),
    "neg x * neg y": (lambda x, y: op("mul", op("neg", x), op("neg", y)), [V, V], ["mul"]),
    "abs neg": (lambda x: op("abs", op("neg", x)), [V], ["abs"]),
    "relu relu": (lambda x: op("relu", op("relu", x)), [V], ["relu"]),
    "maximum(x, x)": (lambda x: op("maximum", x, x), [V], []),
    "equal by order": (lambda x, y: [op("mul", x, y), op("mul", y, x)], [V, V], ["mul"]),
    "unequal by order": (lambda x, y: [op("sub", x, y), op("sub", y, x)], [V, V], ["sub", "sub"]),
    "0.0 and -0.0 differ": (lambda x: [op("mul", x, 0.0), op("mul", x, -0.0)], [V], ["mul", "mul"]),
    "number types differ": (
        lambda: [op("full", 1, shape=(2,), dtype=F), op("full", 1.0, shape=(2,), dtype=F)], [], ["full", "full"],
    ),
    "where(c, x, x)": (lambda x, c: op("where", c, x, x), [V, Spec((3, 1), dt.bool_)], []),
    "where(not c, x, y)": (
        lambda x, y, c: op("where", op("logical_not", c), x, y), [V, V, Spec((4,), dt.bool_)], ["where"],
    ),
    "where(true, x, y)": (
        lambda x, y: op("where", op("full", True, shape=(3, 4), dtype=dt.bool_), x, y), [V, V], [],
    ),
    "constants fold": (
        lambda x: op("mul", x, op("exp", op("full", 0.0, shape=(3, 4), dtype=F))), [V], [],
    ),
    "a full operand is a number": (lambda x: op("add", x, op("full", 2.0, shape=(1, 4), dtype=F)), [V], ["add"]),
    "a full operand that gives the shape": (
        lambda x: op("add", x, op("full", 2.0, shape=(3, 4), dtype=F)), [Spec((4,), F)], ["add", "reshape", "expand"],
    ),
    "expand of an operand": (lambda x, y: op("add", x, op("expand", y, shape=(3, 4))), [V, Spec((1, 4), F)], ["add"]),
    "leading ones of an operand": (
        lambda x, y: op("add", x, op("reshape", y, shape=(1, 4))), [V, Spec((4,), F)], ["add"],
    ),
    "expand goes last": (
        lambda x: op("exp", op("expand", x, shape=(3, 4))), [Spec((1, 4), F)], ["exp", "expand"],
    ),
    "cast to itself": (lambda x: op("cast", x, dtype=F), [V], []),
    "cast there and back": (lambda x: op("cast", op("cast", x, dtype=D), dtype=F), [V], []),
    "narrow and back stays": (lambda x: op("cast", op("cast", x, dtype=H), dtype=F), [V], ["cast", "cast"]),
    "int by float": (lambda n: op("cast", op("cast", n, dtype=D), dtype=I), [N], []),
    "int by a short float stays": (lambda n: op("cast", op("cast", n, dtype=F), dtype=I), [N], ["cast", "cast"]),
    "copy": (lambda x: op("copy", op("copy", x)), [V], []),
    "reshape twice": (lambda x: op("reshape", op("reshape", x, shape=(12,)), shape=(2, 6)), [V], ["reshape"]),
    "reshape and back": (lambda x: op("reshape", op("reshape", x, shape=(12,)), shape=(3, 4)), [V], []),
    "permute twice": (lambda x: op("permute", op("permute", x, dims=(1, 0)), dims=(1, 0)), [V], []),
    "permute three": (
        lambda x: op("permute", op("permute", x, dims=(1, 2, 0)), dims=(1, 2, 0)), [Spec((2, 3, 4), F)], ["permute"],
    ),
    "permute of ones": (lambda x: op("permute", x, dims=(1, 0)), [Spec((1, 4), F)], ["reshape"]),
    "permute by identity": (lambda x: op("permute", x, dims=(0, 1)), [V], []),
    "expand to its shape": (lambda x: op("expand", x, shape=(3, 4)), [V], []),
    "slice of all": (lambda x: op("slice", x, starts=(0, 0), stops=(3, 4), steps=(1, 1)), [V], []),
    "slice of a slice": (
        lambda x: op(
            "slice", op("slice", x, starts=(1, 1), stops=(3, 4), steps=(1, 2)), starts=(0, 1), stops=(2, 2), steps=(2, 1)
        ),
        [V], ["slice"],
    ),
    "slice of a cat": (
        lambda x, y: op("slice", op("cat", x, y, dim=0), starts=(3, 0), stops=(6, 4), steps=(1, 1)), [V, V], [],
    ),
    "slice across a cat stays": (
        lambda x, y: op("slice", op("cat", x, y, dim=0), starts=(2, 0), stops=(4, 4), steps=(1, 1)), [V, V], ["cat", "slice"],
    ),
    "flip twice": (lambda x: op("flip", op("flip", x, dims=(0, 1)), dims=(1, 0)), [V], []),
    "flips add up": (lambda x: op("flip", op("flip", x, dims=(0,)), dims=(1,)), [V], ["flip"]),
    "pad by nothing": (lambda x: op("pad", x, lo=(0, 0), hi=(0, 0), value=1.0), [V], []),
    "cat of one": (lambda x: op("cat", x, dim=1), [V], []),
    "cat with nothing": (lambda x, y: op("cat", x, y, dim=1), [V, Spec((3, 0), F)], []),
    "scatter over all": (
        lambda x, v: op("slice_scatter", x, v, starts=(0, 0), stops=(3, 4), steps=(1, 1)), [V, V], [],
    ),
    "scatter of one a row": (
        lambda x, i, v: op("scatter_add", x, i, v, dim=1), [V, Spec((3, 1), dt.int64), Spec((3, 1), F)],
        ["iota", "eq", "add", "where"],
    ),
    "scatter of two a row stays": (
        lambda x, i, v: op("scatter", x, i, v, dim=1), [V, Spec((3, 2), dt.int64), Spec((3, 2), F)], ["scatter"],
    ),
    "sum of one": (lambda x: op("sum", x, dim=(1,), keepdim=False), [Spec((3, 1), F)], ["reshape", "add"]),
    "sum of one integer": (lambda n: op("sum", n, dim=(1,), keepdim=True), [Spec((3, 1), dt.int64)], []),
    "amax of one": (lambda x: op("amax", x, dim=(0,), keepdim=False), [Spec((1, 4), F)], ["reshape"]),
    "argmax of one": (lambda x: op("argmax", x, dim=(0,), keepdim=False), [Spec((1, 4), F)], ["full"]),
    "sum of zeros": (lambda: op("sum", op("full", 0.0, shape=(3, 4), dtype=F), dim=(0,), keepdim=False), [], ["full"]),
    "moved constant": (lambda: op("permute", op("full", 2.0, shape=(3, 4), dtype=F), dims=(1, 0)), [], ["full"]),
    "groups of a turned matrix": (
        lambda a, b: op("grouped_mm", op("permute", a, dims=(1, 0)), b, op("full", 6, shape=(1,), dtype=dt.int32)),
        [Spec((4, 6), F), Spec((1, 4, 5), F)], ["full", "grouped_mm"],
    ),
    "dead": (lambda x, y: [op("exp", x), op("log", y)][:1], [V, V], ["exp"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_equation_leaves(case: str) -> None:
    f, specs, left = CASES[case]
    s = check(graph_of(f, *specs))
    assert sorted(names(s)) == sorted(left), str(s)


def test_every_equation_fires_in_a_case_above() -> None:
    fired: set[str] = set()

    def watched(e: Callable) -> Callable:
        def run(rw: object, n: object) -> object:
            got = e(rw, n)
            if got is not None:
                fired.add(e.__name__)
            return got

        return run

    table = {k: [watched(e) for e in es] for k, es in EQUATIONS.items()}
    for f, specs, _ in CASES.values():
        rebuild(graph_of(f, *specs), table, COMMUTATIVE)
    rebuild(graph_of(lambda: op("pad", op("full", 2.0, shape=(2,), dtype=F), lo=(1,), hi=(0,), value=2.0)), table, COMMUTATIVE)
    rebuild(graph_of(lambda: op("amax", op("full", 2.0, shape=(2,), dtype=F), dim=(0,), keepdim=False)), table, COMMUTATIVE)
    rebuild(
        graph_of(lambda x: op("expand", op("expand", x, shape=(2, 3)), shape=(4, 2, 3)), Spec((1, 3), F)), table, COMMUTATIVE
    )
    assert {e.__name__ for es in EQUATIONS.values() for e in es} - fired == set()


def test_the_primitives_that_equations_name_exist() -> None:
    assert set(EQUATIONS) - {"*"} <= set(REGISTRY) and COMMUTATIVE <= set(REGISTRY)


@pytest.mark.parametrize("a", dt.ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("b", dt.ALL, ids=lambda d: d.name)
def test_what_a_dtype_holds_survives_the_way_there_and_back(a: dt.dtype, b: dt.dtype) -> None:
    if a.kind == "f":
        info = np.array([0.0, -0.0, 1 / 3, 65504.0, 3e38, 1e300, 6e-8, 1e-40, 5e-324])
        with np.errstate(all="ignore"):
            x = info.astype(a.numpy)
    elif a.kind == "b":
        x = np.array([False, True])
    else:
        low, high = np.iinfo(a.numpy).min, np.iinfo(a.numpy).max
        x = np.array([low, low + 1, 0, 1, high // 3, high - 1, high], a.numpy)
    with np.errstate(all="ignore"):
        y = x.astype(b.numpy)
        exact = [_exactly(p) == _exactly(q) for p, q in zip(x, y, strict=True)]
    assert not holds(b, a) or all(exact)
    assert holds(b, a) or not all(exact), "it could be promised"


def _exactly(x: np.generic) -> object:
    """The number that an element is, in Python, where numbers do not round."""
    value = x.item()
    return value, math.copysign(1, value) if value == 0 else 0


def test_numbers_are_told_apart_by_type_and_bits() -> None:
    keys = [static_key(x) for x in (1, True, 1.0, 0.0, -0.0, 0, False, math.nan, (1, 2), (1.0, 2), "1", F, D)]
    assert len(set(keys)) == len(keys)
    assert static_key(math.nan) == static_key(math.nan)


def test_notes_sources_and_names_pass_to_what_replaces_a_node() -> None:
    b = Builder()
    x, y = b.input(V, "x"), b.input(V, "y")
    with b:
        b.note, b.source = "residual", "model.py:7"
        z = op("add", x, op("neg", y))
        z.name = "z"
        b.note = b.source = ""
        b.graph.outputs = [op("exp", z)]
    s = simplify(b.graph)
    assert [(n.primitive.name, n.output.name, n.note, n.source) for n in s.nodes] == [
        ("sub", "z", "residual", "model.py:7"),
        ("exp", b.graph.outputs[0].name, "", ""),
    ]


def test_an_equation_that_changes_a_spec_is_caught() -> None:
    def wrong(rw: object, n: object) -> Value:
        return n.operands[0]  # type: ignore[attr-defined]

    g = graph_of(lambda x: op("sum", x, dim=(0,), keepdim=False), V)
    with pytest.raises(VerificationError, match="wrong gives"):
        rebuild(g, {"sum": [wrong]})


def test_dead_code_goes_and_inputs_stay() -> None:
    g = graph_of(lambda x, y: [op("exp", x), op("log", y)], V, V)
    g.outputs = g.outputs[:1]
    e = eliminate_dead(g)
    assert names(e) == ["exp"] and e.inputs == g.inputs


def test_a_training_graph_shrinks_and_keeps_every_bit() -> None:
    g = transformer(layers=2)
    arrays = random_inputs(g, 1, -0.5, 0.5)
    s = simplify(g)
    s.verify()
    assert same_bits(evaluate(g, arrays)[0], evaluate(s, arrays)[0])
    assert len(s.nodes) < len(g.nodes)
