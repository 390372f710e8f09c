"""Results written over the inputs they replace: the same numbers, in the caller's memory, or nothing written at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphs_for_tests import random_graph, random_inputs, same_bits

import flame
from flame import dtypes as dt
from flame.compiler.index_math import ex, var
from flame.compiler.kernel import Buffer, Contract, Kernel, Load, Op, Reduce, Store
from flame.compiler.memory import may_be_one
from flame.compiler.pipeline import compile_graph
from flame.compiler.program_interpret import run_interpreted
from flame.runtime import cpu
from flame.runtime.executable import Executable

nn, F = flame.nn, flame.nn.functional


def pairs(graph: Any) -> list[tuple[int, int]]:
    """Every input with a result of its spec, each in one pair."""
    found, taken = [], set()
    for i, x in enumerate(graph.inputs):
        for r, y in enumerate(graph.outputs):
            if r not in taken and y.spec == x.spec and y.node is not None:
                taken.add(r)
                found.append((i, r))
                break
    return found


def test_random_graphs_give_the_same_results_in_their_inputs_memory() -> None:
    updated = 0
    for seed in range(60):
        graph = random_graph(seed, nodes=14)
        graph.name = "updating"
        plain = compile_graph(graph, cpu.target(), verify=True)
        program = compile_graph(graph, cpu.target(), updates=pairs(graph), verify=True)
        arrays = random_inputs(graph, seed)
        want = run_interpreted(plain, arrays)
        for run in (lambda a, p=program: run_interpreted(p, a), Executable(program, backend="interpret")):
            given = [a.copy() for a in arrays]
            got = run(given)
            assert all(map(same_bits, got, want)), (seed, str(program))
            written = {program.inputs.index(s): program.outputs.index(s) for s in program.updated}
            for i, (before, after) in enumerate(zip(arrays, given, strict=True)):
                assert same_bits(after, want[written[i]] if i in written else before), (seed, i)
        updated += len(program.updated)
    assert updated > 40


def test_a_kernel_may_write_over_what_it_reads_at_the_same_place_alone() -> None:
    i, j, f, square = var("i"), var("j"), dt.float32, (ex(4), ex(4))
    x, w, y = Buffer("x", f, square), Buffer("w", f, square), Buffer("y", f, square, "out")

    def kernel(*statements: Any, **axes: int) -> Kernel:
        sizes = {a: ex(n) for a, n in (axes or {"i": 4, "j": 4}).items()}
        return Kernel("k", {b.name: b for b in (x, w, y)}, sizes, {}, statements)

    old, store = Load("a", "x", (i, j), (), 0, f), Store("y", (i, j), "c")
    k = var("k")
    left, right = Load("l", "w", (i, k), (), 0, f), Load("r", "x", (k, j), (), 0, f)
    product = Contract("p", ("l", "l2"), ("k",), f)
    epilogue = (left, Load("l2", "w", (j, k), (), 0, f), product, old, Op("c", "add", ("a", "p"), f), store)
    assert may_be_one(kernel(old, Op("c", "add", ("a", "a"), f), store), "x", "y")
    assert may_be_one(kernel(*epilogue, i=4, j=4, k=4), "x", "y")
    own = (left, right, Contract("p", ("l", "r"), ("k",), f), old, Op("c", "add", ("a", "p"), f), store)
    assert not may_be_one(kernel(*own, i=4, j=4, k=4), "x", "y"), "what the product is made of"
    assert not may_be_one(kernel(Load("a", "x", (j, i), (), 0, f), Op("c", "add", ("a", "a"), f), store), "x", "y"), "turned"
    row = (old, Reduce("s", "sum", ("a",), ("j",), f), Op("c", "sub", ("a", "s"), f), store)
    assert not may_be_one(kernel(*row), "x", "y"), "a row that is read twice"
    total = (Load("b", "w", (i, j), (), 0, f), Reduce("s", "sum", ("b",), ("j",), f), old, Op("c", "sub", ("a", "s"), f))
    assert may_be_one(kernel(*total, store), "x", "y"), "the sum is of another array"
    waits = (*total, Op("d", "exp", ("c",), f), Reduce("t", "sum", ("d",), ("j",), f), store)
    assert not may_be_one(kernel(*waits), "x", "y"), "summed again after the update"
    other = Buffer("z", f, square, "out")
    later = (*total, Reduce("t", "max", ("b",), ("j",), f), Op("e", "mul", ("a", "t"), f), store, Store("z", (i, j), "e"))
    two = Kernel("k", {b.name: b for b in (x, w, y, other)}, {"i": ex(4), "j": ex(4)}, {}, later)
    assert not may_be_one(two, "x", "y"), "read again for what waits for another reduction"


def trained(compile: Callable, make: Callable, steps: int = 4, **options: Any) -> tuple[Any, Any, list[float], Any]:
    """(model, optimizer, losses, the step) after some steps on fixed data."""
    flame.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.LayerNorm(40), nn.Linear(40, 7))
    optimizer = make(net.parameters())
    x, y = flame.randn(16, 24), flame.randint(0, 7, (16,))

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step = compile(step)
    losses = [step(x, y).item() for _ in range(steps)]
    return net, optimizer, losses, step


MAKERS: dict[str, Callable] = {
    "adamw": lambda ps: flame.optim.AdamW(ps, lr=1e-2),
    "amsgrad": lambda ps: flame.optim.Adam(ps, lr=1e-2, amsgrad=True),
    "momentum": lambda ps: flame.optim.SGD(ps, lr=1e-2, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_parameters_and_state_are_updated_where_they_lie(name: str) -> None:
    eager, _, want, _ = trained(lambda f: f, MAKERS[name])
    net, _, got, step = trained(flame.compile, MAKERS[name])
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for p, q in zip(eager.parameters(), net.parameters(), strict=True):
        np.testing.assert_allclose(q.detach().numpy(), p.detach().numpy(), rtol=1e-4, atol=1e-6)
    programs = [c.program for c in step.compiled_graphs()]
    assert any(len(p.updated) >= 4 for p in programs), "both weights and their state"


def test_a_wrong_index_leaves_everything_as_it_was() -> None:
    net, optimizer, _, step = trained(flame.compile, MAKERS["adamw"])
    assert any(c.program.updated and c.program.guards for c in step.compiled_graphs())
    before = [p.detach().clone() for p in net.parameters()]
    state = [v.clone() for s in optimizer.state.values() for v in s.values() if isinstance(v, flame.Tensor)]
    bad = flame.randint(0, 7, (16,))
    bad[3] = 7
    with pytest.raises(IndexError):
        step(flame.randn(16, 24), bad)
    after = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, flame.Tensor)]
    assert all(flame.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(flame.equal(a, b) for a, b in zip(state, after, strict=True))
    assert np.isfinite(step(flame.randn(16, 24), flame.randint(0, 7, (16,))).item()), "and it goes on"


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "shared with NumPy", "unaligned"])
def test_memory_of_any_layout_gets_its_new_value(layout: str) -> None:
    def array() -> np.ndarray:
        a = np.arange(35, dtype=np.float32).reshape(5, 7)
        if layout == "unaligned":
            raw = np.zeros(35 * 4 + 1, np.uint8)[1:].view(np.float32)
            raw[:] = a.ravel()
            return raw.reshape(5, 7)
        return a.T if layout == "transposed" else a

    def step(t: Any) -> Any:
        t.mul_(2.0).add_(1.0)
        return t.sum()

    a, b = array(), array()
    x, y = flame.from_numpy(a), flame.from_numpy(b)
    if layout == "contiguous":
        x, y = x.clone(), y.clone()
    compiled = flame.compile(step)
    for _ in range(4):
        assert step(x).item() == compiled(y).item()
        assert flame.equal(x, y)
    if layout == "shared with NumPy":
        assert (a == b).all()


def test_what_was_read_before_the_write_keeps_its_value() -> None:
    def step(t: Any) -> Any:
        before = t + 0.0
        same = t.clone()
        t.mul_(3.0)
        return before, same, t * 1.0, t.detach()

    x, y = flame.randn(6, 5), None
    y = x.clone()
    compiled = flame.compile(step)
    for _ in range(4):
        for a, b in zip(step(x), compiled(y), strict=True):
            assert flame.equal(a, b)
        assert flame.equal(x, y)


def test_two_windows_of_one_value() -> None:
    def step(t: Any, u: Any) -> Any:
        v = t * 0.5 + 1.0
        t.copy_(v)
        u.copy_(v)
        return v

    x, u = flame.randn(4, 9), flame.zeros(4, 9)
    y, w = x.clone(), u.clone()
    compiled = flame.compile(step)
    for _ in range(4):
        a, b = step(x, u), compiled(y, w)
        a.add_(1.0), b.add_(1.0)
        assert flame.equal(a, b) and flame.equal(x, y) and flame.equal(u, w)
