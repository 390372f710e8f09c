"""Derivatives of graphs against finite differences, and the cut between forward and backward against its promises."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from graphs_for_tests import evaluate, op, random_graph, random_inputs, same_bits, transformer

from flame import dtypes as dt
from flame.compiler.autodiff import differentiate, joint_graph, pull_back
from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.min_cut import UNBOUNDED, Network
from flame.compiler.partition import Joint
from flame.compiler.simplify import simplify
from flame.primitive import Primitive, Rule, Spec


def run(j: Joint, arrays: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]) -> tuple[list, list]:
    """Results and gradients (None where none flows)."""
    j.forward.verify()
    j.backward.verify()
    out = evaluate(j.forward, arrays)
    kept = [arrays[r.index] if r.source == "input" else out[r.index] for r in j.residuals]
    grads = evaluate(j.backward, [*kept, *cotangents])
    return out[: j.results], [None if k is None else grads[k] for k in j.gradients]


def graph_of(f: Callable[..., Value | Sequence[Value]], *specs: Spec) -> Graph:
    b = Builder()
    xs = [b.input(s) for s in specs]
    with b:
        out = f(*xs)
    b.graph.outputs = [out] if isinstance(out, Value) else list(out)
    return b.graph


def gradients(f: Callable[..., Value], *arrays: np.ndarray, optimize: bool = True) -> list[np.ndarray | None]:
    """Gradients of the sum of f by every array."""
    g = graph_of(f, *(Spec(a.shape, dt.from_numpy_dtype(a.dtype)) for a in arrays))
    wrt = [i for i, a in enumerate(arrays) if a.dtype.kind in "fV"]
    j = differentiate(g, wrt, [0], optimize=optimize)
    return run(j, arrays, [np.ones(g.outputs[0].shape, g.outputs[0].dtype.numpy)])[1]


@pytest.mark.parametrize("optimize", [True, False], ids=["simplified", "plain"])
@pytest.mark.parametrize("block", range(4))
def test_gradients_of_random_graphs_are_the_finite_differences(block: int, optimize: bool) -> None:
    for seed in range(block * 25, block * 25 + 25):
        g = random_graph(seed, smooth=True, floats=(dt.float64,))
        wrt = [i for i, v in enumerate(g.inputs) if v.dtype.kind == "f"]
        of = list(range(len(g.outputs)))
        rng = np.random.default_rng(seed)
        arrays = random_inputs(g, seed)
        cotangents = [rng.standard_normal(o.shape) for o in g.outputs]
        out, grads = run(differentiate(g, wrt, of, optimize=optimize), arrays, cotangents)
        for a, b in zip(out, evaluate(g, arrays), strict=True):
            assert same_bits(a, b), f"seed {seed}: the forward pass changed"
        along = {i: rng.standard_normal(g.inputs[i].shape) for i in wrt}

        def f(t: float) -> float:
            moved = evaluate(g, [x + t * along[i] if i in along else x for i, x in enumerate(arrays)])
            return sum(float((c * y).sum()) for c, y in zip(cotangents, moved, strict=True))

        h = 1e-6
        expected = (f(h) - f(-h)) / (2 * h)
        got = sum(float((d * along[i]).sum()) for i, d in zip(wrt, grads, strict=True) if d is not None)
        assert abs(got - expected) <= 1e-6 * (1 + abs(got) + abs(expected)), f"seed {seed}: {got} against {expected}"


@pytest.mark.parametrize("block", range(2))
def test_one_joint_graph_and_two_graphs_give_the_same_bits(block: int) -> None:
    for seed in range(500 + block * 20, 520 + block * 20):
        g = random_graph(seed, smooth=True, floats=(dt.float32, dt.float64))
        wrt = [i for i, v in enumerate(g.inputs) if v.dtype.kind == "f"]
        of = list(range(len(g.outputs)))
        arrays = random_inputs(g, seed)
        cotangents = [np.full(o.shape, 0.75, o.dtype.numpy) for o in g.outputs]
        _, grads = run(differentiate(g, wrt, of), arrays, cotangents)
        joint, place = joint_graph(g, wrt, of)
        joint.verify()
        out = evaluate(joint, [*arrays, *cotangents])
        for d, k in zip(grads, place, strict=True):
            assert (d is None) == (k is None)
            assert d is None or same_bits(d, out[k])


def test_broadcast_operands_get_gradients_of_their_own_shape() -> None:
    rng = np.random.default_rng(0)
    shapes = [(), (1,), (3,), (2, 1), (2, 3), (1, 3), (4, 2, 3), (4, 1, 1), (0, 3), (1, 0, 1)]
    for s, t in itertools.product(shapes, shapes):
        x, y = rng.standard_normal(s), rng.standard_normal(t)
        try:
            shape = np.broadcast_shapes(s, t)
        except ValueError:
            continue
        dx, dy = gradients(lambda x, y: op("mul", x, y), x, y)
        ones = np.ones(shape)
        for d, other, mine in ((dx, y, x), (dy, x, y)):
            full = ones * other
            lead = tuple(range(full.ndim - mine.ndim))
            expected = full.sum(lead)
            expected = expected.sum(tuple(i for i, n in enumerate(mine.shape) if n == 1 != expected.shape[i]), keepdims=True)
            np.testing.assert_allclose(d, expected.reshape(mine.shape), rtol=1e-12)


def test_gradients_have_the_operands_dtype() -> None:
    x = np.ones((3, 2), np.float16)
    (d,) = gradients(lambda x: op("mul", op("cast", x, dtype=dt.float64), 3.0), x)
    assert d is not None and d.dtype == np.float16 and np.all(d == 3)


def test_nothing_flows_through_integers_blocked_values_or_to_the_unused() -> None:
    g = graph_of(
        lambda x, y, z: op("mul", op("cast", op("cast", x, dtype=dt.int32), dtype=dt.float32), y),
        *[Spec((3,), dt.float32)] * 3,
    )
    assert differentiate(g, [0, 1, 2], [0]).gradients == (None, 0, None)
    b = Builder()
    x = b.input(Spec((3,), dt.float32))
    with b:
        held = op("sin", x)
        y = op("mul", held, x)
    g = b.graph
    g.outputs = [y]
    a = np.array([0.5, 1.0, 2.0], np.float32)
    j = differentiate(g, [0], [0], blocked={held}, optimize=False)
    np.testing.assert_array_equal(run(j, [a], [np.ones(3, np.float32)])[1][0], np.sin(a))


def test_a_result_that_is_an_input_and_one_that_repeats() -> None:
    g = graph_of(lambda x: [x, op("mul", x, 2.0), x], Spec((2,), dt.float64))
    j = differentiate(g, [0], [0, 1, 2])
    out, (d,) = run(j, [np.array([3.0, 4.0])], [np.full(2, 1.0), np.full(2, 10.0), np.full(2, 100.0)])
    assert d is not None and d.tolist() == [121.0, 121.0]
    assert [o.tolist() for o in out] == [[3, 4], [6, 8], [3, 4]]


def test_an_integer_result_has_no_gradient_and_says_so() -> None:
    g = graph_of(lambda x: op("cast", x, dtype=dt.int64), Spec((2,), dt.float32))
    with pytest.raises(RuntimeError, match="floating-point dtype have gradients"):
        differentiate(g, [0], [0])


def test_a_cotangent_of_another_shape_is_refused() -> None:
    b = Builder()
    x, g = b.input(Spec((2,), dt.float32)), b.input(Spec((3,), dt.float32))
    with pytest.raises(RuntimeError, match="cotangent"):
        pull_back(b, [x], [g], [x])


def test_second_derivatives_come_from_differentiating_the_joint_graph() -> None:
    def cubic(x: Value) -> Value:
        return op("mul", op("mul", x, x), x)

    g = graph_of(cubic, Spec((4,), dt.float64))
    joint, (k,) = joint_graph(g, [0], [0])
    joint.outputs = [joint.outputs[k or 0]]
    x = np.array([-1.0, 0.5, 2.0, 3.0])
    _, (dd, _) = run(differentiate(joint, [0, 1], [0]), [x, np.ones(4)], [np.ones(4)])
    np.testing.assert_allclose(dd, 6 * x)


def test_primitives_with_several_results_get_tuples_and_zeros() -> None:
    seen = []

    def rule(g: tuple, y: tuple, _x: Value) -> Value:
        seen.append((len(g), len(y)))
        return op("add", op("mul", g[0], 2.0), op("mul", g[1], 3.0))

    both = Primitive("both", "opaque", lambda x: (x, x), lambda x: (2 * x, 3 * x), vjp=(Rule.of(rule),))
    g = graph_of(lambda x: both(x), Spec((2,), dt.float64))
    _, (d,) = run(differentiate(g, [0], [1]), [np.ones(2)], [np.ones(2)])
    assert seen == [(2, 2)] and d is not None and d.tolist() == [3.0, 3.0]
    _, (d,) = run(differentiate(g, [0], [0, 1]), [np.ones(2)], [np.ones(2), np.ones(2)])
    assert d is not None and d.tolist() == [5.0, 5.0]


def test_cheap_chains_are_recomputed_and_hard_values_are_kept() -> None:
    def f(x: Value, w: Value) -> Value:
        y = op("matmul", x, w)
        return op("mul", op("add", y, 1.0), op("mul", y, y))

    g = graph_of(f, Spec((64, 64), dt.float32), Spec((64, 64), dt.float32))
    j = differentiate(g, [0, 1], [0])
    assert [v.node.primitive.name for v in j.forward.outputs[1:] if v.node] == ["matmul"]
    assert j.kept_bytes == 64 * 64 * 4
    names = [n.primitive.name for n in j.backward.nodes]
    assert names.count("matmul") == 2, "the contraction of the forward pass runs again"
    assert any(d.verdict == "saved" for d in j.decisions) and any(d.verdict == "recomputed" for d in j.decisions)


def test_a_small_statistic_is_kept_in_place_of_what_it_was_made_from() -> None:
    def f(x: Value) -> Value:
        return op("mul", x, op("sum", op("exp", x), dim=(1,), keepdim=True))

    g = graph_of(f, Spec((64, 1000), dt.float32))
    j = differentiate(g, [0], [0])
    assert j.kept_bytes == 64 * 4


def test_random_draws_and_reductions_never_run_twice() -> None:
    for seed in range(60):
        g = random_graph(seed, smooth=True)
        wrt = [i for i, v in enumerate(g.inputs) if v.dtype.kind == "f"]
        j = differentiate(g, wrt, list(range(len(g.outputs))))
        early = {o.name for n in j.forward.nodes for o in n.outputs}
        for n in j.backward.nodes:
            if n.output.name in early:
                assert n.primitive.kind in ("elementwise", "movement", "create"), n


def test_dropout_keeps_its_mask_and_not_its_random_bits() -> None:
    def dropout(x: Value) -> Value:
        bits = op("random_bits", 1, 0, shape=x.shape)
        keep = op("lt", op("cast", op("shift_right", bits, 8), dtype=dt.float32), 0.5 * 2**24)
        return op("where", keep, op("mul", op("exp", x), 2.0), 0.0)

    g = graph_of(dropout, Spec((128, 64), dt.float32))
    j = differentiate(g, [0], [0])
    assert [o.dtype for o in j.forward.outputs[1:]] == [dt.bool_] and j.kept_bytes == 128 * 64
    assert not any(n.primitive.kind == "random" for n in j.backward.nodes)


def test_keeping_is_never_dearer_than_keeping_what_backward_reads() -> None:
    """The cut against the plain choice: every value that a backward node reads, written once and read once."""
    for seed in range(40):
        g = random_graph(seed, smooth=True, sizes=(8, 16, 3))
        wrt = [i for i, v in enumerate(g.inputs) if v.dtype.kind == "f"]
        joint, _ = joint_graph(g, wrt, list(range(len(g.outputs))))
        joint = simplify(joint)
        late = set(joint.inputs[len(g.inputs) :])
        read: set[Value] = set()
        for n in joint.nodes:
            if any(v in late for v in n.values):
                late.update(n.outputs)
                read.update(v for v in n.values if v not in late)
        plain = sum(2 * v.spec.nbytes for v in read if v not in joint.inputs and v not in joint.outputs[: len(g.outputs)])
        plain += sum(v.spec.nbytes for v in read if v in joint.inputs or v in joint.outputs[: len(g.outputs)])
        assert 2 * differentiate(g, wrt, list(range(len(g.outputs)))).kept_bytes <= plain


def test_the_minimum_cut_is_that_of_all_subsets() -> None:
    rng = np.random.default_rng(7)
    for _ in range(60):
        n = int(rng.integers(3, 8))
        edges = [(int(a), int(b), int(rng.integers(0, 9))) for a, b in rng.integers(0, n, (2 * n, 2)) if a != b]
        net = Network()
        for _ in range(n - 2):
            net.node()
        for a, b, c in edges:
            net.edge(a, b, c)
        side = net.source_side()
        assert side[0] and not side[1]

        def cost(s: Sequence[bool]) -> int:
            return sum(c for a, b, c in edges if s[a] and not s[b])

        best = min(cost((True, False, *rest)) for rest in itertools.product((True, False), repeat=n - 2))
        assert cost(side) == best


def test_a_network_without_a_finite_cut_is_refused() -> None:
    net = Network()
    net.edge(0, 1, UNBOUNDED)
    with pytest.raises(ValueError, match="unbounded"):
        net.source_side()


def test_a_transformer_is_differentiated_and_keeps_little() -> None:
    g = transformer(layers=2, batch=2, length=8, width=16, heads=2, words=32, d=dt.float64)
    wrt = list(range(2, len(g.inputs)))
    arrays = random_inputs(g, 3, -0.5, 0.5)
    j = differentiate(g, wrt, [0])
    (loss,), grads = run(j, arrays, [np.asarray(1.0)])
    assert same_bits(loss, evaluate(g, arrays)[0])
    assert all(d is not None for d in grads)
    rng = np.random.default_rng(0)
    along = [np.zeros_like(a) if a.dtype.kind == "i" else rng.standard_normal(a.shape) for a in arrays]
    h = 1e-6
    up, down = (evaluate(g, [a + (s * h * d).astype(a.dtype) for a, d in zip(arrays, along, strict=True)])[0] for s in (1, -1))
    got = sum(float((d * along[i]).sum()) for i, d in zip(wrt, grads, strict=True))
    assert abs(got - float(up - down) / (2 * h)) < 1e-6 * (1 + abs(got))


def test_the_work_grows_with_the_nodes_and_not_with_their_square() -> None:
    """Counted, not timed: a graph of four times the layers has about four times the nodes in all graphs."""
    small, large = (differentiate(g, list(range(2, len(g.inputs))), [0]) for g in (transformer(2), transformer(8)))
    assert len(large.backward.nodes) < 5 * len(small.backward.nodes)
