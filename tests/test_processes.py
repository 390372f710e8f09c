"""Compiled functions in worker processes, forked and spawned; a disk that is full."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flame
from flame import nn

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    """What a program prints: it is written to a file, so that spawned workers can import it."""
    path = folder / "program.py"
    path.write_text(code, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FLAME_CACHE": "0", **environment}
    got = subprocess.run([sys.executable, str(path), *arguments], env=env, capture_output=True, text=True, timeout=240)
    assert got.returncode == 0, got.stderr[-3000:]
    return got.stdout


WORKERS = """
import multiprocessing, sys
import numpy as np
import flame
from flame import nn

@flame.compile
def double(x):
    return (x * 2).tanh()

@flame.compile(mode="replay")
def replayed(x):
    return (x * 2).tanh()

def train(seed):
    flame.manual_seed(seed)
    net = flame.compile(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))
    x = flame.randn(16, 4)
    losses = []
    for _ in range(4):
        net.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        with flame.no_grad():
            for p in net.parameters():
                p.sub_(0.1 * p.grad)
        losses.append(loss.item())
    assert losses[-1] < losses[0] and net.stats.compiled and not net.stats.fallbacks
    return losses

def several(x):
    got = [f(x) for f in (double, replayed) for _ in range(5)]
    assert double.stats.flushed >= 4 and replayed.stats.replayed >= 1, (double.stats, replayed.stats)
    assert flame.get_num_threads() >= 1
    return [g.tolist() for g in got]

if __name__ == "__main__":
    x = flame.ones(3)
    for _ in range(5):
        double(x), replayed(x)  # compiled before the workers exist
    want = train(1)
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.map(train, [1, 1]) == [want, want]
        for rows in pool.map(several, [x, x * 2]):
            assert all(np.allclose(r, rows[0]) for r in rows)
        for y in pool.map(double, [x, x, x]):
            assert y.tolist() == double(x).tolist()
    print("ok")
"""


@pytest.mark.parametrize("method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()])
def test_workers_use_compiled_functions(method: str, tmp_path: Path) -> None:
    assert run(WORKERS, tmp_path, method).strip() == "ok"


LOADERS = """
import sys
import flame
from flame import nn
from flame.utils.data import DataLoader, Dataset

@flame.compile
def prepared(x):
    return (x * 2).tanh().sum(0) + 1

class Rows(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return prepared(flame.full((3, 4), i / 12)), flame.tensor(float(i))

def batches(workers):
    return DataLoader(Rows(), 4, num_workers=workers, multiprocessing_context=sys.argv[1] if workers else None)

def trained(workers, loop_inside):
    flame.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))
    optimizer = flame.optim.AdamW(net.parameters(), lr=0.01)

    def step(x, y):
        optimizer.zero_grad()
        loss = (net(x)[:, 0] - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def epoch(loader):
        return [step(x, y) for x, y in loader]

    run = flame.compile(epoch) if loop_inside else None
    step = step if loop_inside else flame.compile(step)
    losses = []
    for _ in range(5 if loop_inside else 2):
        loader = batches(workers)
        losses += [loss.item() for loss in (run(loader) if loop_inside else epoch(loader))]
    f = run if loop_inside else step
    assert f.stats.followed and f.stats.compiled and not f.stats.fallbacks, f.stats
    return losses

if __name__ == "__main__":
    for _ in range(3):
        prepared(flame.ones(3, 4))
    want = trained(0, False)
    for inside in (False, True)[sys.argv[1] == "spawn" :]:  # workers begin between two calls, or in the midst of one
        got = trained(1, inside)
        assert len(got) >= len(want), (want, got)
        assert all(abs(a - b) < 1e-4 * max(1, abs(a)) for a, b in zip(want, got)), (want, got)
    print("ok")
"""


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "forkserver"])
def test_compiled_functions_on_both_sides_of_a_loader(method: str, tmp_path: Path) -> None:
    assert run(LOADERS, tmp_path, method).strip() == "ok"


FULL = """
import resource, signal
import flame
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # every file is full after 64 bytes
from flame.runtime import cache

f = flame.compile(lambda x: ((x @ x).softmax(-1) * 3).sum(0))
for _ in range(3):
    y = f(flame.ones(8, 8))
g = flame.compile(lambda x: x.exp() + 1)
for _ in range(3):
    g(flame.ones(8, 8))
assert abs(y[0].item() - 3) < 1e-5 and f.stats.compiled == g.stats.compiled == 1, f.stats
assert not f.stats.fallbacks and "File too large" in cache.shared().disabled, cache.shared().disabled
print("ok")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")
def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path: Path) -> None:
    assert run(FULL, tmp_path, FLAME_CACHE="1", FLAME_CACHE_DIR=str(tmp_path / "kept")).strip() == "ok"
    left = [p for p in (tmp_path / "kept").rglob("*") if p.is_file()]
    assert not left, "nothing half written stays"


@flame.compile(mode="replay")
def module_level(x: Any) -> Any:
    return x * 2


class Holder:
    @flame.compile
    def method(self, x: Any) -> Any:
        return x * 3


def test_compiled_functions_are_pickled_by_name_and_copied_as_themselves() -> None:
    for f in (module_level, Holder.method):
        assert pickle.loads(pickle.dumps(f)) is f and copy.deepcopy(f) is f and copy.copy(f) is f
    bound = pickle.loads(pickle.dumps(Holder().method))
    assert bound(flame.ones(2)).tolist() == [3, 3]
    aside = flame.compile(nn.functional.relu, fullgraph=True)
    again = pickle.loads(pickle.dumps(aside))
    assert again is not aside and again.settings == aside.settings and again(flame.ones(1)).tolist() == [1]
    local = flame.compile(lambda x: x)
    assert copy.deepcopy(local).__wrapped__ is local.__wrapped__
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(local)


def test_a_model_that_holds_compiled_functions_is_copied_and_pickled() -> None:
    net = nn.Linear(2, 2)
    net.act = flame.compile(nn.functional.relu)  # type: ignore[assignment]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.act is not net.act and other.act(flame.ones(1)).tolist() == [1]
        assert other.weight.tolist() == net.weight.tolist()
