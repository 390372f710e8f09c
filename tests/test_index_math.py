"""Index expressions: simplification keeps every value, and what is proved is true."""

from __future__ import annotations

import gc
import itertools
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flame.compiler import index_math
from flame.compiler.index_math import (
    Bounds,
    Div,
    E,
    Mod,
    divisions,
    evaluate,
    ex,
    extreme,
    implied,
    names,
    nonneg,
    show,
    simplify,
    simplify_conds,
    subst,
    val,
    var,
)
from flame.ops.access import Cond

i, j, k, n, m = map(var, "ijknm")


def random_expression(r: random.Random, leaves: list[E], depth: int) -> E:
    """Built as the lowering of views builds them: sums, strides, divisions and remainders by positive numbers."""
    if depth == 0 or r.random() < 0.15:
        return r.choice([*leaves, ex(r.randint(-7, 7))])
    a = random_expression(r, leaves, depth - 1)
    match r.randrange(8):
        case 0 | 1:
            return a + random_expression(r, leaves, depth - 1)
        case 2:
            return a - random_expression(r, leaves, depth - 1)
        case 3:
            return a * r.choice([2, 3, 4, 6, 12, -1])
        case 4:
            return a // r.choice([ex(1), ex(2), ex(3), ex(4), ex(6), ex(12), n, m * 2, n * m])
        case 5:
            return r.choice(leaves) * r.choice(leaves) + a
        case 6:
            return a % r.choice([ex(2), ex(3), ex(4), ex(6), ex(12), n, m * 3, n * m])
        case _:
            d = r.choice([2, 3, 4, 6])
            return (a // d) * d + a % d if r.random() < 0.5 else a // d * r.randint(1, 5) + a % d


def random_box(r: random.Random) -> tuple[Bounds, list[dict[str, int]]]:
    """Bounds, and every point inside them for a few values of the symbols."""
    extents = {"i": r.choice([ex(1), ex(4), ex(7), ex(12), n]), "j": r.choice([ex(3), ex(6), m]), "k": ex(r.choice([2, 4]))}
    low, high = r.randint(-3, 2), r.randint(2, 5)
    symbols = {"n": r.choice([1, 2, 3]), "m": r.choice([1, 2])}
    bounds = Bounds(extents, symbols, {"v": (ex(low), ex(high))})
    points = []
    for dn, dm in ((0, 0), (1, 0), (3, 2)):
        env = {"n": symbols["n"] + dn, "m": symbols["m"] + dm}
        sizes = [range(evaluate(e, env)) for e in extents.values()]
        for p in itertools.product(*sizes, (low, high)):
            points.append({**env, **dict(zip(extents, p[:3], strict=True)), "%v": p[3]})
    return bounds, points


def columns(points: list[dict[str, int]]) -> dict[str, np.ndarray]:
    return {name: np.array([p[name] for p in points]) for name in points[0]}


def fuzz(count: int, seed: int) -> Iterator[tuple[random.Random, Bounds, dict[str, np.ndarray], list[E]]]:
    r = random.Random(seed)
    for _ in range(count):
        bounds, points = random_box(r)
        yield (
            r,
            bounds,
            columns(points),
            [random_expression(r, [i, j, k, i, j, n, m, val("v")], r.randint(1, 4)) for _ in range(6)],
        )


def full(x: object, like: dict[str, np.ndarray]) -> np.ndarray:
    return np.broadcast_to(np.asarray(x), like["i"].shape)


def test_simplification_keeps_every_value() -> None:
    smaller = 0
    for _, bounds, points, exprs in fuzz(250, 1):
        for e in exprs:
            s = simplify(e, bounds)
            smaller += len(list(divisions(s))) < len(list(divisions(e)))
            np.testing.assert_array_equal(full(evaluate(s, points), points), full(evaluate(e, points), points), str((e, s)))
            assert simplify(s, bounds) is s or str(simplify(s, bounds)).count("//") <= str(s).count("//")
    assert smaller > 150


def test_operators_are_integer_arithmetic() -> None:
    """The expression that the operators build has the value that Python's integers have, without any bounds."""
    r = random.Random(2)
    for _ in range(400):
        p = {"i": r.randint(-20, 20), "j": r.randint(-20, 20), "k": r.randint(-3, 3), "n": 4, "m": 3, "%v": r.randint(-9, 9)}

        def build(leaves: list, d: int, q: random.Random, p: dict = p) -> object:
            return random_expression(q, leaves, d)

        seed = r.random()
        e = build([i, j, k, val("v"), n], 4, random.Random(seed))
        direct = subst(e, {"n": 4, "m": 3})
        assert evaluate(e, p) == evaluate(direct, p) == subst(direct, p).const


def test_chains_of_two_divisions_are_integer_arithmetic() -> None:
    points = {"i": np.arange(-60, 60)}
    numbers = (1, 2, 3, 4, 6, 12)
    for a, b, c, d in itertools.product(numbers, numbers, (1, 2, 3, -1), (0, 1, 5)):
        x, at = c * i + d, c * points["i"] + d
        for e, want in [
            (x // a // b, at // a // b),
            (x // a % b, at // a % b),
            (x % a // b, at % a // b),
            (x % a % b, at % a % b),
            (x % (a * b) // b * a + x // b, at % (a * b) // b * a + at // b),
        ]:
            np.testing.assert_array_equal(full(evaluate(e, points), points), want, str((e, a, b, c, d)))


def test_proofs_are_never_wrong() -> None:
    proved = 0
    for _, bounds, points, exprs in fuzz(250, 3):
        for e in exprs:
            at = full(evaluate(e, points), points)
            if nonneg(e, bounds):
                proved += 1
                assert at.min() >= 0, (e, bounds.axes, bounds.symbols)
            for sign in (-1, 1):
                end = extreme(e, sign, bounds)
                if end is not None:
                    assert names(end) <= {"n", "m"}
                    assert (sign * (full(evaluate(end, points), points) - at) >= 0).all(), (e, end, sign)
    assert proved > 200


def test_implications_hold_wherever_their_hypotheses_do() -> None:
    proved = 0
    for r, bounds, points, exprs in fuzz(250, 4):
        hyps = [Cond(exprs[0] - r.randint(0, 3)), Cond(exprs[1], r.choice(["ge", "ge", "eq"]))]
        holds = full(True, points).copy()
        for h in hyps:
            x = full(evaluate(h.expr, points), points)
            holds &= x >= 0 if h.kind == "ge" else x == 0
        for e in [*exprs[2:], exprs[0] + 1, exprs[0] * 2 - 1, exprs[0] + exprs[1], (exprs[0] + 2) // 3]:
            if implied(e, hyps, bounds):
                proved += not nonneg(e, bounds)
                assert (full(evaluate(e, points), points)[holds] >= 0).all(), (e, hyps)
    assert proved > 100


def test_simplified_conditions_hold_at_the_same_points() -> None:
    dropped = disproved = 0
    for r, bounds, points, exprs in fuzz(250, 5):
        conds = [Cond(e - r.randint(-3, 6), r.choice(["ge", "ge", "ge", "eq"])) for e in exprs[:4]]

        def holds(cs: tuple[Cond, ...] | list[Cond], points: dict = points) -> np.ndarray:
            out = full(True, points).copy()
            for c in cs:
                x = full(evaluate(c.expr, points), points)
                out &= x >= 0 if c.kind == "ge" else x == 0
            return out

        got = simplify_conds(conds, bounds)
        if got is None:
            disproved += 1
            assert not holds(conds).any()
        else:
            dropped += len(got) < len(conds)
            np.testing.assert_array_equal(holds(got), holds(conds), str((conds, got)))
    assert dropped > 60 and disproved > 20


@pytest.mark.parametrize(
    ("e", "simple"),
    [
        ((i * 5 + j) // 5, i),
        ((i * 5 + j) % 5, j),
        ((i * 20 + j * 4 + k) // 4 % 5, j),
        ((i * 20 + j * 4 + k) % 20, j * 4 + k),
        (i // 4 * 4 + i % 4, i),
        (((i * 5 + j) * n) % (n * 5), j * n),
        ((i * n + var("s")) // n, i),
        ((i * n + var("s")) % n, var("s")),
        (((i * n + var("s")) * m) // (n * m), i),
        ((i // 2) // 3, i // 6),
        (i % 12, i),
        ((i * 6 + j) // 3 % 2, j // 3),
        ((i + 5) // 24, ex(0)),
        ((i - 12) // 12, ex(-1)),
        ((i - 12) % 12, i),
        (i // 4 * 4 + i // 2 % 2 * 2 + i % 2, i),
        ((i * (n + 1) + var("s")) // (n + 1), i),
    ],
)
def test_what_views_of_views_leave_is_removed(e: E, simple: E) -> None:
    bounds = Bounds({"i": 12, "j": 5, "k": 4, "s": n}, {"n": 1, "m": 1})
    assert simplify(e, bounds) is simple


def test_proofs_that_lowering_relies_on() -> None:
    bounds = Bounds({"i": 12, "j": n, "r": 3}, {"n": 2})
    j, r = var("j"), var("r")
    assert nonneg(n - 1 - j, bounds) and not nonneg(n - 2 - j, bounds)
    assert nonneg(n * n - 1 - (j * n + j), bounds)
    assert nonneg((n + 3) // 4 * 4 - n, bounds) and not nonneg(n - (n + 3) // 4 * 4, bounds)
    assert not nonneg(n // 4 * 4 - n, bounds) and nonneg(n - n // 4 * 4, bounds) and nonneg(n // 4 * 4 - n + 3, bounds)
    assert nonneg(3 - n % 4, bounds) and not nonneg(2 - n % 4, bounds)
    below = Bounds({}, {}, {"v": (-3, 2), "w": (-1, 5)})
    assert not nonneg(val("v") * val("w") + 5, below) and extreme(val("v") * val("w"), 1, below) is None
    row = 2 * i + r - 1
    assert not nonneg(row, bounds)
    assert implied(row // 2, [Cond(row)], bounds)
    assert implied(i - 1, [Cond(2 * i - 1)], bounds)
    assert implied(11 - i, [], bounds) and implied(n - 1 - (j + 1), [Cond(n - 2 - j)], bounds)
    assert simplify_conds([Cond(i - 2), Cond(2 * i - 3), Cond(11 - i)], bounds) == (Cond(i - 2),)
    assert simplify_conds([Cond(i - 5), Cond(3 - i)], bounds) is None
    assert simplify_conds([Cond(4 * i - 6, "eq")], bounds) is None
    assert simplify_conds([Cond(4 * i % 2, "eq")], bounds) == ()


def test_equal_expressions_are_one_object() -> None:
    assert (i + 1) * (i - 1) is i * i - 1
    assert j + i is i + j and (i + j) - j is i and i - i == 0 and hash(ex(3)) == hash(3)
    assert pickle.loads(pickle.dumps((i + j) // 4 * n)) is (i + j) // 4 * n
    assert names((i + val("v")) // 4 * n) == {"i", "%v", "n"}
    assert [type(a) for a in divisions((i % 6) * 2 // 5)] == [Mod, Div]


def test_printing_is_python() -> None:
    for _, _, points, exprs in fuzz(60, 6):
        for e in exprs:
            text = show(e, {"%v": "v"})
            env = {name.strip("%"): x for name, x in points.items()}
            np.testing.assert_array_equal(full(eval(text, {}, env), points), full(evaluate(e, points), points), text)
    assert str(3 * i + j * n // 4 - 2) == "3*i + (j*n) // 4 - 2"
    assert show(i * 64 + j, {"i": "pid", "j": "cols[None, :]"}) == "64*pid + cols[None, :]"


def test_division_by_what_is_not_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        i // -2
    assert i // 0 == 0 and i % 0 == 0  # an axis of an empty array: there is no point to be wrong at


def test_empty_axes_prove_nothing_about_others() -> None:
    bounds = Bounds({"i": 0, "j": 4}, {})
    assert not nonneg(j - 1, bounds) and simplify(j // 4, bounds) == 0


def test_simplifying_a_long_chain_of_views_stays_quick() -> None:
    """A chain of reshapes of the same array: the index stays as small as the first one's."""
    e = var("a") * 210 + var("b") * 30 + var("c") * 6 + var("d")
    bounds = Bounds({"a": 8, "b": 7, "c": 5, "d": 6})
    calls = 0
    for sizes in itertools.islice(itertools.cycle([(8, 210), (56, 30), (8, 7, 30), (280, 6), (1680,)]), 200):
        index, left = [], e
        for s in reversed(sizes):
            index.append(left % s)
            left = left // s
        e = ex(0)
        for x, s in zip(reversed(index), sizes, strict=True):
            e = e * s + simplify(x, bounds)
        e = simplify(e, bounds)
        calls += 1
        assert len(e.terms) == 4 and not list(divisions(e))
    assert calls == 200


def test_equal_expressions_are_one_object_on_every_thread_and_are_forgotten_when_nobody_holds_them() -> None:
    def meet(_: int) -> list[E]:
        return [(var(f"thread_{j}") + j % 7) * 3 // 5 for j in range(400)]

    before = len(index_math._interned)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(meet, range(8))
    for other in others:
        assert all(a is b for a, b in zip(first, other, strict=True))
        del other
    del first, others
    gc.collect()
    var("one_more")
    assert len(index_math._interned) <= before + 50  # (constants are kept)
