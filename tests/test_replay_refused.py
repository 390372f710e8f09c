"""What replay refuses, what its audits catch, and what it leaves behind: errors, switches, memory, threads."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
from flame import nn
from flame.capture.watching import Unprovable, Watch
from flame.errors import ReplayError
from tests.test_replay import CALLS, agrees, array, close, of_shapes, tensor

# ---- what is refused


def never(f: Callable, calls: list, code: str) -> Any:
    compiled = agrees(f, calls, replayed=0)
    assert compiled.stats.replayed == 0
    assert code in {r.split()[0] for _, r in compiled.stats.fallbacks}, compiled.stats
    return compiled


class Hidden:
    __slots__ = ("t",)

    def __init__(self, t: Any) -> None:
        self.t = t


@pytest.mark.parametrize("n", [12])
def test_refusals_have_their_codes(n: int) -> None:
    calls = of_shapes((3,), n=n)
    count = [0]
    cell = {"t": flame.zeros(3)}
    generator = flame.Generator()
    never(lambda x: x * 2 if x.sum() > 0 else x, calls, "FL5001")
    never(lambda x: x + flame.tensor([1.0, 2.0, 3.0]), calls, "FL5002")
    never(lambda x: cell["t"].copy_(x) * 1, calls, "FL5003")
    never(lambda x: x + flame.rand(3, generator=generator) * 0, calls, "FL5005")
    never(lambda x: (flame.manual_seed(3), x + flame.rand(3))[1], calls, "FL5005")
    never(lambda x: x[1:], calls, "FL5007")
    never(lambda x: (x * 2, {1, 2})[0:2], calls, "FL5008")
    hidden = Hidden(tensor(3))
    never(lambda x: x * hidden.t, calls, "FL5010")
    numbers = iter(range(1000))
    never(lambda x: x * 2 if numbers else x, calls, "FL5010")
    kept = []

    def counts(x):
        count[0] += 1
        return x * 2

    def keeps(x):
        kept.append(x * 3)
        return x * 2

    def stashes(x):
        x.stash = x * 3
        return x * 2

    never(counts, calls, "FL5009")
    never(keeps, calls, "FL5011")
    never(stashes, calls, "FL5011")
    assert count[0] == 2 * n and len(kept) == 2 * n, "the Python ran every time"
    t = flame.ones(3)
    never(lambda x: x + t, [(t,)] * n, "FL5012")


def test_hooks_keep_python() -> None:
    w = tensor(3, grad=True)
    seen = []
    w.register_hook(lambda g: seen.append(1))
    net = nn.Linear(3, 3)
    net.register_forward_hook(lambda m, a, y: y + 1)
    for f in (lambda x: x * w, net):
        c = flame.compile(f, mode="replay")
        for (x,) in of_shapes((3,), n=8):
            c(x)
        assert c.stats.replayed == 0 and "FL5004" in {r.split()[0] for _, r in c.stats.fallbacks}


def test_a_clock_is_refused_or_caught() -> None:
    ticks = itertools.count(1)

    tick = ticks.__next__  # a method of the library, which replay takes for a constant
    compiled = flame.compile(lambda x: x * float(tick()), mode="replay")
    for i in range(12):
        assert compiled(flame.ones(1)).item() == i + 1
    assert compiled.stats.replayed == 0
    assert "FL5006" in {r.split()[0] for _, r in compiled.stats.fallbacks}


def test_python_that_decides_by_something_unseen_is_caught_by_an_audit() -> None:
    def f(x):
        return x * 2 if os.environ.get("FLAME_TEST_REPLAY") is None else x * 3

    compiled = flame.compile(f, mode="replay")
    x = tensor(3)
    for _ in range(5):
        compiled(x)
    assert compiled.stats.replayed >= 1
    os.environ["FLAME_TEST_REPLAY"] = "1"
    try:
        with pytest.raises(ReplayError, match=r"FL5014 .* f .*another path"):
            for _ in range(20):
                compiled(x)
        before = compiled.stats.replayed
        for _ in range(10):
            assert compiled(x).tolist() == (x * 3).tolist()
        assert compiled.stats.replayed == before, "it never replays again"
        compiled.reset()
        for _ in range(10):
            assert compiled(x).tolist() == (x * 3).tolist()
        assert compiled.stats.replayed > 0, "but for after a reset"
    finally:
        del os.environ["FLAME_TEST_REPLAY"]


@pytest.mark.parametrize("what", ["constant", "tensor", "structure", "kept"])
def test_an_audit_compares_results(what: str) -> None:
    def f(x):
        y, z = x * 2, x * 3
        on = "FLAME_TEST_REPLAY" in os.environ
        match what:
            case "constant":
                return y, 4 if on else 3
            case "tensor":
                return (z, y) if on else (y, z)
            case "structure":
                return [y] if on else (y,)
            case _:
                if on:
                    x.stash = z
                return y

    compiled = flame.compile(f, mode="replay")
    for _ in range(5):
        compiled(tensor(3))
    assert compiled.stats.replayed >= 1
    os.environ["FLAME_TEST_REPLAY"] = "1"
    try:
        with pytest.raises(ReplayError, match="FL5014"):
            for _ in range(20):
                compiled(tensor(3))
    finally:
        del os.environ["FLAME_TEST_REPLAY"]


def test_audits_come_after_1_3_7_replays() -> None:
    runs = []

    class Loud(nn.Module):
        def forward(self, x):
            ran(1)
            return x * 2

    ran = runs.append  # a method of a built-in type, which replay takes for a constant
    f = flame.compile(Loud(), mode="replay")
    with_python = []
    for _ in range(40):
        before = len(runs)
        f(tensor(3))
        with_python.append(len(runs) > before)
    assert [i for i, ran in enumerate(with_python) if ran] == [0, 1, 2, 4, 7, 12, 21, 38]


def test_a_tree_that_grows_meanwhile_is_no_difference() -> None:
    """Numbers and sizes become symbols when others are seen; an audit may then find its old path known in another way."""
    net = nn.Linear(3, 2)

    def f(x, k):
        return net(x) * k + x.shape[0]

    compiled = flame.compile(f, mode="replay")
    x = tensor(4, 3)
    with flame.no_grad():
        for i in range(60):
            close(compiled(x, 2.0), f(x, 2.0))
            if i in (5, 11, 17):
                for _ in range(2):
                    close(compiled(tensor(i, 3), float(i)), f(tensor(i, 3), float(i)))
            if i in (7, 13):
                with pytest.raises(RuntimeError):
                    compiled(tensor(2, i), 2.0)
    assert compiled.stats.replayed >= 20, compiled.stats


def test_a_number_that_became_a_symbol_does_not_hide_a_difference() -> None:
    def f(x):
        return x * (2.0 if "FLAME_TEST_REPLAY" not in os.environ else 3.0)

    compiled = flame.compile(f, mode="replay")
    for _ in range(5):
        compiled(tensor(3))
    os.environ["FLAME_TEST_REPLAY"] = "1"
    try:
        with pytest.raises(ReplayError, match="mul at .*with other operands"):
            for _ in range(20):
                compiled(tensor(3))
    finally:
        del os.environ["FLAME_TEST_REPLAY"]


def test_wrong_memory_is_caught_though_nothing_told() -> None:
    net = nn.Linear(3, 3)
    f = flame.compile(net, mode="replay")
    with flame.no_grad():
        for _ in range(5):
            f(tensor(2, 3))
        net.weight._array = array(3, 3, seed=8)  # behind everybody's back
        with pytest.raises(ReplayError, match="nothing told"):
            for _ in range(30):
                f(tensor(2, 3))


# ---- errors, modes, memory


def test_errors_are_the_same() -> None:
    f = flame.compile(lambda x, i: x[i], mode="replay")
    x = tensor(3)
    for _ in range(CALLS):
        f(x, flame.tensor([0, 2]))
    assert f.stats.replayed
    with pytest.raises(IndexError, match="out of bounds"):
        f(x, flame.tensor([0, 5]))
    assert f(x, flame.tensor([2, 2])).tolist() == [x[2].item()] * 2


def test_switches_stop_replay() -> None:
    f = flame.compile(lambda x: (x * 2, flame.compiler.is_compiling()), mode="replay")
    x = tensor(3)
    for _ in range(CALLS):
        assert f(x)[1] is True
    with flame.compiler.set_stance("force_eager"):
        assert f(x)[1] is False
    outer = flame.compile(lambda x: f(x)[0] + 1)
    for _ in range(3):
        close(outer(x), x * 2 + 1)
    with flame.compiler.set_stance("fail_on_recompile"):
        f(x)
    f.reset()
    assert f.stats.replayed == f.stats.calls == 0
    assert f.settings["mode"] == "replay" and flame.compile(f, mode="replay") is f


def test_a_gradient_that_is_returned_is_todays() -> None:
    w = tensor(3, grad=True)
    f = flame.compile(lambda x: (x * 2, w.grad, w), mode="replay")
    for i in range(9):
        w.grad = tensor(3, seed=i)
        with flame.no_grad():
            y, g, same = f(tensor(3, seed=i))
        assert g is w.grad and same is w and y.tolist() == (tensor(3, seed=i) * 2).tolist()


def test_nothing_of_a_call_is_kept() -> None:
    f = flame.compile(lambda d: d["x"] * 2 + d["y"], mode="replay")
    seen = []
    for i in range(CALLS):
        d = {"x": tensor(3, seed=i), "y": tensor(3, seed=i + 1)}
        y = f(d)
        seen += [weakref.ref(y), *(weakref.ref(t) for t in d.values())]
        del d, y
    gc.collect()
    assert not any(r() is not None for r in seen)


def test_swapped_weights_are_let_go() -> None:
    net = nn.Linear(3, 3)
    f = flame.compile(net, mode="replay")
    x = tensor(2, 3)
    seen = []
    for i in range(6):
        net.weight = nn.Parameter(tensor(3, 3, seed=i))
        seen.append(weakref.ref(net.weight))
        for _ in range(5):
            close(f(x), net(x))
    gc.collect()
    assert sum(r() is not None for r in seen) <= 2


def test_a_watch_names_what_changed_and_what_it_can_not_see() -> None:
    settings = {"a": 1, "b": [1, 2]}

    def f():
        return settings["a"]

    watch = Watch([("f", f)])
    assert watch.still() and watch.difference() == ""
    settings["a"] = 2
    assert not watch.holds() and "a of a dict" in watch.difference()
    settings["a"] = 1
    assert watch.still()
    settings["b"].append(3)
    assert "list of 2" in watch.difference()
    with pytest.raises(Unprovable, match="FL5010.*generator"):
        Watch([("g", (i for i in range(3)))])


def test_replay_and_threads() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    f = flame.compile(net, mode="replay")
    with flame.no_grad():
        for i in range(CALLS):
            f(tensor(4, 6, seed=i))
    errors = []

    def work(i: int) -> None:
        try:
            for grad in (False, True):
                with flame.set_grad_enabled(grad):
                    for k in range(30):
                        x = tensor(4, 6, seed=100 * i + k)
                        got = f(x)
                        np.testing.assert_allclose(got.detach().numpy(), net(x).detach().numpy(), rtol=1e-4, atol=1e-6)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors and not any(t.is_alive() for t in threads)
