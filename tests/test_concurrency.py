"""Compiled functions in programs with several threads and processes: right results, no waiting for ever, honest counts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flame
from flame import jit
from flame.errors import GraphBreakError

ROOT = Path(__file__).resolve().parent.parent
THREADS = 8
PATIENCE = 60.0  #: seconds after which a thread counts as stuck

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


def together(work: Callable[[int], Any], n: int = THREADS) -> list:
    """`work(i)` on `n` threads that start at one moment; raises what any of them raised."""
    barrier = threading.Barrier(n)
    results: list = [None] * n
    errors: list[BaseException] = []

    def run(i: int) -> None:
        barrier.wait(PATIENCE)
        try:
            results[i] = work(i)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(PATIENCE)
    assert not any(t.is_alive() for t in threads), "a thread is stuck"
    if errors:
        raise errors[0]
    return results


@pytest.fixture(autouse=True)
def nothing_left_in_force() -> Any:
    yield
    assert jit._region.keys == [None] and jit.force.interpreter is None


def array(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(3,), (64, 257)])
def test_one_function_on_many_threads(shape: tuple[int, ...]) -> None:
    f = flame.compile(lambda x, k: (x * k).tanh() + x)

    def work(i: int) -> list:
        x = flame.tensor(array(*shape, seed=i))
        return [f(x, float(1 + i)).numpy() for _ in range(20)]

    for i, seen in enumerate(together(work)):
        x = array(*shape, seed=i)
        want = np.tanh(x.astype(np.float64) * (1 + i)) + x
        for got in seen:
            np.testing.assert_allclose(got, want, atol=2e-6)
    assert f.stats.calls + sum(f.stats.fallbacks.values()) >= THREADS  # counts of eager calls may be lost, not made up
    assert f.stats.calls + sum(f.stats.fallbacks.values()) <= 20 * THREADS
    assert f.stats.flushed > 0 and not f.given_up


@pytest.mark.parametrize("n", [5, 96])
def test_gradients_of_one_function_on_many_threads(n: int) -> None:
    """Forward passes take turns, but backward runs outside of regions: several threads are in one compiled backward at once."""
    w = flame.tensor(array(n, n, seed=99), requires_grad=True)
    f = flame.compile(lambda x, w: ((x @ w).tanh() * x).sum())
    f(flame.tensor(array(n, n, seed=0)), w)

    def work(i: int) -> list:
        x = flame.tensor(array(n, n, seed=i))
        return [flame.autograd.grad(f(x, w), [w])[0].numpy() for _ in range(8)]

    for i, seen in enumerate(together(work)):
        x = array(n, n, seed=i).astype(np.float64)
        t = np.tanh(x @ array(n, n, seed=99).astype(np.float64))
        want = x.T @ (x * (1 - t * t))
        for got in seen:
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


class Cubed(flame.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return 3.0 * g * ctx.saved_tensors[0] ** 2


@pytest.mark.parametrize("inside", [True, False])
def test_hooks_and_custom_functions_on_many_threads(inside: bool) -> None:
    """One compiled function, whose backward passes call Python; each thread's hooks hear its own gradients."""
    heard = threading.local()

    def body(x: Any, v: Any, k: float) -> Any:
        y = Cubed.apply(x * v)
        y.register_hook(lambda g: (heard.all.append(k), g * k)[1])
        return flame.autograd.grad((y * x).sum(), [v])[0] if inside else (y * x).sum()

    f = flame.compile(body)

    def work(i: int) -> Any:
        x, v = flame.tensor(array(5, seed=i)), flame.tensor(array(5, seed=50 + i), requires_grad=True)
        heard.all = []
        found = [f(x, v, 1.0 + i) for _ in range(8)]
        if not inside:
            found = [flame.autograd.grad(loss, [v])[0] for loss in found]
        assert heard.all == [1.0 + i] * 8
        return [g.numpy() for g in found]

    for i, seen in enumerate(together(work)):
        x, v = array(5, seed=i).astype(np.float64), array(5, seed=50 + i).astype(np.float64)
        for got in seen:
            np.testing.assert_allclose(got, x * (1 + i) * 3 * (x * v) ** 2 * x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hooked", [True, False])
def test_one_graph_differentiated_on_many_threads(hooked: bool) -> None:
    """The results of one call, first and second derivatives, from several threads at once."""
    w = flame.tensor(array(6, seed=1), requires_grad=True)

    def body(x: Any) -> Any:
        y = w * x
        return y, (y.exp() * y).sum()

    f = flame.compile(body)
    for _ in range(3):
        y, loss = f(flame.tensor(array(6, seed=2)))
    if hooked:
        y.register_hook(lambda g: g * 2.0)

    def work(i: int) -> list:
        found = []
        for _ in range(6):
            (g,) = flame.autograd.grad(loss, [w], retain_graph=True, create_graph=i % 2 == 1)
            found.append(g.detach().numpy())
        return found

    x = array(6, seed=2).astype(np.float64)
    y = x * w.detach().numpy()
    want = (np.exp(y) * y + np.exp(y)) * x * (2.0 if hooked else 1.0)
    for seen in together(work):
        for got in seen:
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_training_step_of_its_own_on_every_thread() -> None:
    def train(i: int, wrap: Callable) -> np.ndarray:
        w = flame.tensor(array(4, 4, seed=i), requires_grad=True)
        x = flame.tensor(array(6, 4, seed=50 + i))

        @wrap
        def step() -> Any:
            w.grad = None
            loss = ((x @ w).tanh() - 0.3).square().mean()
            loss.backward()
            with flame.no_grad():
                w.sub_(0.5 * w.grad)
            return loss.detach()

        for _ in range(12):
            step()
        return w.detach().numpy()

    want = [train(i, lambda f: f) for i in range(THREADS)]
    for got, eager in zip(together(lambda i: train(i, flame.compile)), want, strict=True):
        np.testing.assert_allclose(got, eager, rtol=1e-4, atol=1e-5)


class Inside:
    """A thread that stands inside of a compiled call, between two operations, until it is let go."""

    def __init__(self, follow: bool) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.pending: Any = None
        self.result: Any = None
        self.wait = False

        def f(x: Any) -> Any:
            y = self.pending = x * 2
            if self.wait:
                self.entered.set()
                assert self.go.wait(PATIENCE)
            return y + 1

        self.f = flame.compile(f)
        for _ in range(2 if follow else 0):
            self.f(flame.ones(3))
        self.wait = True
        self.thread = threading.Thread(target=self._call, daemon=True)

    def _call(self) -> None:
        self.result = self.f(flame.ones(3))

    def __enter__(self) -> Inside:
        self.thread.start()
        assert self.entered.wait(PATIENCE)
        return self

    def __exit__(self, *error: Any) -> None:
        self.go.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive() and self.result.tolist() == [3, 3, 3]


@pytest.mark.parametrize("follow", [False, True])
def test_while_one_thread_is_inside_others_run_eagerly(follow: bool) -> None:
    g = flame.compile(lambda x: (x * 3, flame.compiler.is_compiling()))
    with Inside(follow) as other:
        y, compiling = g(flame.ones(2))
        assert y.tolist() == [3, 3] and not compiling
        other.wait = False
        assert other.f(flame.ones(3)).tolist() == [3, 3, 3], "the same function, too"
        assert [r[:6] for _, r in g.stats.fallbacks] == ["FL3004"] and g.stats.calls == 0
    assert other.result.tolist() == [3, 3, 3]
    assert g(flame.ones(2))[1], "and afterwards it is captured"


def test_a_pending_tensor_on_another_thread_says_what_is_wrong() -> None:
    with Inside(follow=True) as other:
        for use in (lambda t: t + 1, lambda t: t.tolist(), lambda t: t.numpy(), lambda t: flame.compile(lambda x: x * 2)(t)):
            with pytest.raises(RuntimeError, match="another thread"):
                use(other.pending)
        with pytest.raises(RuntimeError, match="another thread"):
            together(lambda i: other.pending * 2, 2)
    assert other.pending.tolist() == [2, 2, 2]


def test_an_exception_in_a_thread_opens_the_region_for_others() -> None:
    @flame.compile
    def f(x: Any, fail: bool) -> Any:
        y = x * 2
        if fail:
            raise KeyError("on purpose")
        return y + 1

    def work(i: int) -> int:
        raised = 0
        for call in range(12):
            fail = (call + i) % 3 == 0
            try:
                assert f(flame.ones(3), fail).tolist() == [3, 3, 3] and not fail
            except KeyError:
                raised += fail
        return raised

    assert together(work) == [4] * THREADS
    flushed = f.stats.flushed
    f(flame.ones(3), False)
    f(flame.ones(3), False)
    assert f.stats.flushed > flushed


def test_demands_are_a_threads_own() -> None:
    f = flame.compile(lambda x: x.sum().item())

    def work(i: int) -> bool:
        raised = 0
        for _ in range(20):
            with flame.compiler.error_on_graph_break(i % 2 == 0):
                try:
                    f(flame.ones(3))
                except GraphBreakError:
                    raised += 1
        return raised > 0

    raised = together(work)
    assert not any(raised[1::2])


def test_reset_while_others_call() -> None:
    f = flame.compile(lambda x: (x * 2 + 1).exp())

    def work(i: int) -> None:
        for _ in range(30):
            if i == 0:
                flame.compiler.reset()
            else:
                np.testing.assert_allclose(f(flame.ones(4)).numpy(), np.exp(np.full(4, 3.0)), rtol=1e-6)

    together(work, 4)


# ---- processes


def python(code: str, *args: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen) -> list[str]:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError("the process is stuck") from None
    assert process.returncode == 0, err[-3000:]
    return out.splitlines()


FORK = """
import os, sys, threading
import numpy as np, flame

def model(x, w):
    return (x @ w).tanh().sum(1)

x, w = flame.ones(300, 64) * 0.01, flame.ones(64, 300)
f = flame.compile(model)
want = f(x, w).numpy()
f(x, w)
entered, go = threading.Event(), threading.Event()

@flame.compile
def waits(x):
    y = x * 2
    entered.set()
    go.wait(60)
    return y

other = threading.Thread(target=waits, args=(x,), daemon=True)
if sys.argv[1] == "inside":
    other.start()
    entered.wait(60)

def check(who):
    before = f.stats.flushed
    for _ in range(3):
        np.testing.assert_allclose(f(x, w).numpy(), want, rtol=1e-5)
    assert f.stats.flushed == before + 3, (who, f.stats)
    g = flame.compile(lambda x: x * 2 + 1)  # compiled anew
    for _ in range(3):
        assert g(x)[0, 0].item() == np.float32(0.01) * 2 + 1
    assert g.stats.compiled == 1, (who, g.stats)
    print(who, "ok", flush=True)

child = os.fork()
if child == 0:
    try:
        check("child")
        os._exit(0)
    except BaseException as e:
        print("child", repr(e), file=sys.stderr, flush=True)
        os._exit(1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go.set()
if other.ident:
    other.join()
check("parent")
sys.exit(code)
"""


@needs_fork
@pytest.mark.parametrize("when", ["after", "inside"])
def test_a_forked_child_goes_on_compiled(when: str) -> None:
    """Also where another thread of the parent was inside a region at the fork, which in the child never ends."""
    assert output(python(FORK, when)) == ["child ok", "parent ok"]


FORK_INSIDE = """
import os, sys
import flame

@flame.compile
def f(x):
    y = x * 2
    child = os.fork()
    if child == 0:
        return ("child", y + 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return ("parent" if code == 0 else "child failed", y + 1)

for call in range(3):
    who, y = f(flame.ones(3))
    assert y.tolist() == [3, 3, 3]
    if who == "child":
        os._exit(0)
    print(call, who, flush=True)
"""


@needs_fork
def test_a_fork_inside_a_region_goes_on_in_both() -> None:
    assert output(python(FORK_INSIDE)) == ["0 parent", "1 parent", "2 parent"]


FILL = """
import sys
import numpy as np, flame
rng = np.random.default_rng(0)
x = flame.tensor(rng.uniform(-1, 1, (33, 20)).astype(np.float32))
w = flame.tensor(rng.uniform(-1, 1, (20, 17)).astype(np.float32), requires_grad=True)
f = flame.compile(lambda x: flame.softmax(x @ w, -1).square().sum())
for _ in range(3):
    w.grad = None
    loss = f(x)
    loss.backward()
print(loss.item(), w.grad.sum().item(), len(f.stats.fallbacks))
"""


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    env = {"FLAME_CACHE_DIR": str(tmp_path), "FLAME_CACHE": "1"}
    first, second = python(FILL, **env), python(FILL, **env)
    want = output(first)
    assert output(second) == want
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert files, "something was kept"
    assert output(python(FILL, **env)) == want
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files, "a third finds all it needs"
