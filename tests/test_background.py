"""Compiling in the background: eager's results until it is done, the program's afterwards, and a quiet end of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flame
from flame.capture import background
from flame.capture import compiled as compiling
from flame.knobs import knobs
from flame.runtime.locks import ForkWaits

ROOT = Path(__file__).resolve().parent.parent
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


class Gate:
    """Holds the compiling thread before its next compilation until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.open, self.reached = threading.Event(), threading.Event()
        original = compiling.compile_graph

        def waits(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            assert threading.current_thread().name == "flame compiles" and self.open.wait(30)
            return original(*args, **kwargs)

        patch.setattr(compiling, "compile_graph", waits)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    g = Gate(monkeypatch)
    yield g
    g.open.set()


def in_background(f: Any, **options: Any) -> Any:
    return flame.compile(f, options={"background": True}, **options)


def x(*shape: int, seed: int = 0) -> Any:
    return flame.tensor(np.random.default_rng(seed).uniform(-1, 1, shape or (4,)).astype(np.float32))


def test_calls_go_on_eagerly_and_then_use_the_program(gate: Gate) -> None:
    f = in_background(lambda a: (a * 2).exp().sum())
    want = (x() * 2).exp().sum().item()
    for _ in range(5):
        np.testing.assert_allclose(f(x()).item(), want, rtol=1e-6)
    assert gate.reached.wait(30) and f.stats.compiled == 0 and not f.wait(0.01) and f.stats.recorded < 6
    gate.open.set()
    assert f.wait(30) and f.stats.compiled == 1
    for _ in range(3):
        np.testing.assert_allclose(f(x()).item(), want, rtol=1e-6)
    assert f.stats.compiled == 1 and len(f.kernels) == 1 and not f.stats.fallbacks
    assert f.settings["options"]["background"] and flame.compile(f.__wrapped__, **f.settings).settings == f.settings


def test_no_gradient_is_lost_before_meanwhile_and_after(gate: Gate) -> None:
    def train(wrap: Any, opened_at: int) -> tuple:
        w = flame.tensor(np.full((4, 4), 0.1, np.float32), requires_grad=True)
        total = flame.zeros(4)

        @wrap
        def loss_of(a: Any) -> Any:
            total.add_(a[0])
            return (a @ w).tanh().square().mean()

        seen = []
        for i in range(9):
            if i == opened_at:
                gate.open.set()
                assert loss_of.wait(30)
            loss = loss_of(x(3, 4, seed=i))
            loss.backward()
            with flame.no_grad():
                w.sub_(0.5 * w.grad)
            seen.append(w.grad.numpy().copy())
            w.grad = None
        return seen, total.tolist(), w.detach().numpy(), loss_of

    want = train(lambda f: f, -1)
    got = train(in_background, 5)
    for a, b in zip(want[0], got[0], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)
    assert got[1] == pytest.approx(want[1])
    np.testing.assert_allclose(got[2], want[2], rtol=1e-5)
    assert got[3].stats.compiled >= 1 and got[3].stats.flushed > 3


def test_breaks_random_numbers_and_more_results(gate: Gate) -> None:
    def f(a: Any, keep: bool) -> Any:
        b = flame.rand(4) * a
        n = b.sum().item()
        c = b * n
        return (b, c) if keep else c

    compiled = in_background(f)
    for i in range(12):
        if i == 6:
            gate.open.set()
        if i > 6:
            assert compiled.wait(30)
        flame.manual_seed(i)
        want = f(x(), i % 3 == 2)
        flame.manual_seed(i)
        got = compiled(x(), i % 3 == 2)
        for a, b in zip(want if type(want) is tuple else (want,), got if type(got) is tuple else (got,), strict=True):
            np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-5)
    assert compiled.wait(30) and compiled.stats.compiled >= 2


def test_what_the_thread_raises_is_recorded_and_the_path_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pass broke")

    monkeypatch.setattr(compiling, "differentiate", broken)
    monkeypatch.setattr(knobs, "verify", False)
    w = flame.ones(4, requires_grad=True)
    f = in_background(lambda a: (a * w).sum())
    for _ in range(4):
        w.grad = None
        f(x()).backward()
        assert w.grad.tolist() == x().tolist()
        assert f.wait(30)
    [(_, reason)] = f.stats.fallbacks
    assert reason.startswith("FL3003") and "a pass broke" in reason and f.stats.compiled == 0
    monkeypatch.undo()
    f.reset()
    for _ in range(3):
        f(x())
        assert f.wait(30)
    assert f.stats.compiled == 1


def test_reset_stances_and_fullgraph_meanwhile(gate: Gate) -> None:
    f = in_background(lambda a: a * 2, fullgraph=True)
    f(x()), f(x())
    with flame.compiler.set_stance("fail_on_recompile"), pytest.raises(flame.errors.RecompileError):
        f(x())
    with flame.compiler.set_stance("eager_on_recompile"):
        assert f(x()).tolist() == (x() * 2).tolist()
    f.reset()
    assert f.wait(0) and f(x()).tolist() == (x() * 2).tolist()
    for bad in (1, "yes", None):
        with pytest.raises(ValueError, match="background"):
            flame.compile(lambda a: a, options={"background": bad})


def test_many_threads_and_functions_share_the_compiling_thread() -> None:
    made = [in_background(lambda a, k=k: (a * k).tanh() + k) for k in range(6)]
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for _ in range(10):
                for k, f in enumerate(made):
                    a = x(5, seed=i)
                    np.testing.assert_allclose(f(a).numpy(), np.tanh(a.numpy() * k) + k, rtol=1e-5, atol=1e-6)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors and not any(t.is_alive() for t in threads)
    assert all(f.wait(30) for f in made)
    assert sum(t.name == "flame compiles" for t in threading.enumerate()) <= 1


def test_a_job_that_can_have_no_thread_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    background._queue.thread and background._queue.thread.join(30)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    job = background.submit(lambda: done.append(1))
    assert job.over and done == [1] and background._queue.thread is None


def run(code: str, *arguments: str) -> list[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FLAME_CACHE": "0"}
    got = subprocess.run([sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, timeout=120)
    assert got.returncode == 0, got.stderr[-3000:]
    assert "Traceback" not in got.stderr and "Fatal" not in got.stderr, got.stderr
    return got.stdout.splitlines()


END = """
import flame
fs = [flame.compile(lambda x, k=k: ((x @ x).softmax(-1) * k).sum(0), options={"background": True}) for k in range(20)]
for f in fs:
    f(flame.ones(40, 40)); f(flame.ones(40, 40))
print("ends", flush=True)
"""


def test_a_process_ends_while_it_compiles() -> None:
    assert run(END) == ["ends"]


FORK = """
import os, threading
import flame
make = lambda k: flame.compile(lambda x: ((x @ x).softmax(-1) * k).sum(0), options={"background": True})
fs = [make(k) for k in range(8)]
x = flame.ones(24, 24)
for f in fs:
    f(x); f(x)

def check(who):
    for k, f in enumerate(fs):
        for _ in range(2):
            y = f(x)
            assert f.wait(60), who
        assert abs(y[0].item() - k) < 1e-4, (who, k, y)
        assert f.stats.compiled == 1 and f.stats.flushed >= 2, (who, k, f.stats)
    print(who, flush=True)

child = os.fork()
if child == 0:
    check("child")
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 0, code
check("parent")
"""


@needs_fork
def test_a_fork_while_it_compiles_goes_on_in_both() -> None:
    assert run(FORK) == ["child", "parent"]


@needs_fork
def test_a_fork_waits_for_such_a_lock() -> None:
    lock = ForkWaits()
    inside, go, order = threading.Event(), threading.Event(), []

    def holds() -> None:
        with lock:
            inside.set()
            go.wait(30)
            order.append("released")

    t = threading.Thread(target=holds)
    t.start()
    assert inside.wait(30)
    threading.Timer(0.05, go.set).start()
    child = os.fork()
    if child == 0:
        with lock:  # open in the child
            os._exit(0 if order == ["released"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    t.join(30)
    with lock:
        pass
