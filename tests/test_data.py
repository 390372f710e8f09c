"""Datasets, samplers, collating, DataLoader with worker processes: beside PyTorch's, and when things fail."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import flame
from flame.utils import data
from flame.utils.data import DataLoader, transfer

#: newer Pythons warn of every fork beside threads; the workers here run no thread of their parent's
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

Pair = namedtuple("Pair", "x y")


class Squares(data.Dataset):
    """Large tensors, which go through shared memory, beside small parts, which do not."""

    def __init__(self, n: int = 20, side: int = 64) -> None:
        self.n, self.side = n, side

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        return {"x": flame.full((self.side, self.side), float(i)), "i": i, "half": np.full(3, i, np.float16), "name": str(i)}


class Numbers(data.IterableDataset):
    """0 .. n - 1, a part of them in each worker."""

    def __init__(self, n: int, promised: int | None = None) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        info = data.get_worker_info()
        return iter(range(info.id, self.n, info.num_workers) if info else range(self.n))


class Failing(data.Dataset):
    """Does something else at one place."""

    def __init__(self, at: int, what: Callable[[], Any]) -> None:
        self.at, self.what = at, what

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        return self.what() if i == self.at else i


class Drawn(data.Dataset):
    """Random numbers of each kind."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> list:
        info = data.get_worker_info()
        return [flame.rand(()).item(), np.random.rand(), info.id if info else -1, info.seed if info else -1]


def rows(loader: Any) -> list:
    return [b.tolist() if hasattr(b, "tolist") else b for b in loader]


# -------------------------------------------------------------------- beside PyTorch

LOADERS: list[tuple[int, dict]] = [
    (10, dict()),
    (10, dict(batch_size=4)),
    (10, dict(batch_size=4, drop_last=True)),
    (10, dict(batch_size=None)),
    (3, dict(batch_size=5)),
    (0, dict(batch_size=5)),
    (10, dict(batch_sampler=[[1, 2], [9]])),
    (10, dict(sampler=[3, 3, 1], batch_size=2)),
    (6, dict(batch_size=2, collate_fn=tuple)),
]


@pytest.mark.oracle
@pytest.mark.parametrize("iterable", [False, True])
@pytest.mark.parametrize(("n", "settings"), LOADERS, ids=str)
def test_loaders_give_pytorchs_batches(torch: Any, n: int, settings: dict, iterable: bool) -> None:
    def loader(library: Any) -> Any:
        if not iterable:
            return library.DataLoader(list(range(n)), **settings)
        cls = type("Stream", (library.IterableDataset,), {"__iter__": lambda self: iter(range(n)), "__len__": lambda self: n})
        return library.DataLoader(cls(), **settings)

    if iterable and ("sampler" in settings or "batch_sampler" in settings):
        for library in (data, torch.utils.data):
            with pytest.raises(ValueError, match="expected unspecified"):
                loader(library)
        return
    a, b = loader(data), loader(torch.utils.data)
    assert rows(a) == rows(b) and len(a) == len(b)


SAMPLES: dict[str, list] = {
    "floats": [1.0, 2.5],
    "ints": [1, -2],
    "booleans": [True, False],
    "text": ["a", "b"],
    "bytes": [b"a", b"b"],
    "arrays": [np.ones((2, 3), np.int16), np.zeros((2, 3), np.int16)],
    "array scalars": [np.float32(1), np.float32(2)],
    "tuples": [(1, 2.0), (3, 4.0)],
    "lists": [[1, "a"], [2, "b"]],
    "dicts": [{"k": 1, "l": (1.5, [2])}, {"k": 2, "l": (2.5, [3])}],
    "ordered dicts": [OrderedDict(b=1, a=2), OrderedDict(b=3, a=4)],
    "named tuples": [Pair(1, np.ones(2)), Pair(2, np.zeros(2))],
    "ranges": [range(2), range(2, 4)],
}


def plain(x: Any) -> Any:
    """Types and values; tensors by dtype, shape and values."""
    if hasattr(x, "dtype"):
        return ("tensor", str(x.dtype).split(".")[1], tuple(x.shape), x.tolist())
    if isinstance(x, dict):
        return type(x).__name__, {k: plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return type(x).__name__, [plain(v) for v in x]
    return x


@pytest.mark.oracle
@pytest.mark.parametrize("key", SAMPLES)
def test_collating_is_pytorchs(torch: Any, key: str) -> None:
    theirs = torch.utils.data
    assert plain(data.default_collate(SAMPLES[key])) == plain(theirs.default_collate(SAMPLES[key]))
    assert plain(data.default_convert(SAMPLES[key])) == plain(theirs.default_convert(SAMPLES[key]))


def test_collating_refuses_what_does_not_stack() -> None:
    with pytest.raises(RuntimeError, match=r"stack expects each tensor to be equal size, but got \[2\] at entry 0 and \[3\]"):
        data.default_collate([flame.ones(2), flame.ones(2), flame.ones(3)])
    with pytest.raises(RuntimeError, match="equal size"):
        data.default_collate([[1], [1, 2]])
    for bad in ([object()], [None], [np.array(["a"])], [{"k": np.array([None])}]):
        with pytest.raises(TypeError, match="batch must contain tensors"):
            data.default_collate(bad)


@pytest.mark.oracle
def test_samplers_and_datasets_are_pytorchs(torch: Any) -> None:
    both = []
    for library, tensor in ((data, flame.tensor), (torch.utils.data, torch.tensor)):
        d = library.TensorDataset(tensor([1.0, 2.0, 3.0]), tensor([4, 5, 6]))
        e = library.Subset(d, [2, 0])
        c = d + e
        s = library.StackDataset([1, 2], (3, 4))
        k = library.StackDataset(a=d, b=[7, 8, 9])
        parts = [len(p) for p in library.random_split(range(10), [0.33, 0.33, 0.34])]
        shares = [
            list(library.DistributedSampler(range(7), 3, r, shuffle=False, drop_last=last))
            for r in range(3)
            for last in (False, True)
        ]
        batches = list(library.BatchSampler([1, 2, 3, 4, 5], 2, False)), list(library.BatchSampler([1, 2, 3], 2, True))
        got = [c[i] for i in (0, 3, 4, -1)], len(c), s[1], len(s), k[2], e[1], s.__getitems__([0, 1]), e.__getitems__([1])
        both.append(str([plain(list(got)), parts, shares, batches]))
    assert both[0] == both[1]


# -------------------------------------------------------------------- random orders


def test_random_orders_are_orders() -> None:
    flame.manual_seed(0)
    assert sorted(data.RandomSampler(range(50))) == list(range(50)) != list(data.RandomSampler(range(50)))
    many = list(data.RandomSampler(range(4), num_samples=10))
    assert sorted(many[:4]) == sorted(many[4:8]) == [0, 1, 2, 3] and len(many) == 10
    drawn = list(data.RandomSampler(range(4), replacement=True, num_samples=3000))
    assert len(drawn) == 3000 and min(Counter(drawn).values()) > 600
    assert sorted(data.SubsetRandomSampler([5, 7, 9])) == [5, 7, 9]
    weighted = list(data.WeightedRandomSampler([0.0, 1.0, 3.0], 2000))
    assert Counter(weighted)[0] == 0 and 1300 < Counter(weighted)[2] < 1700
    assert sorted(data.WeightedRandomSampler([1.0, 1.0, 1.0], 3, replacement=False)) == [0, 1, 2]
    a, b = data.random_split(range(10), [7, 3])
    assert sorted([*a, *b]) == list(range(10))


def test_orders_follow_their_generator() -> None:
    orders = [list(DataLoader(range(30), None, True, generator=flame.Generator().manual_seed(s))) for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    loader = DataLoader(range(30), None, True)
    flame.manual_seed(3)
    one = [list(loader), list(loader)]
    flame.manual_seed(3)
    assert one == [list(loader), list(loader)] and one[0] != one[1]
    sampler = data.DistributedSampler(range(10), 2, 0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first and sorted([*sampler, *_rank(1, 1)]) == list(range(10))


def _rank(rank: int, epoch: int) -> data.DistributedSampler:
    s = data.DistributedSampler(range(10), 2, rank)
    s.set_epoch(epoch)
    return s


# -------------------------------------------------------------------- worker processes


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_batches(context: str) -> None:
    alone = list(DataLoader(Squares(), 6))
    together = list(DataLoader(Squares(), 6, num_workers=2 if context == "fork" else 1, multiprocessing_context=context))
    assert len(alone) == len(together) == 4
    for a, b in zip(alone, together, strict=True):
        assert plain(a) == plain(b)
        b["x"].add_(1.0)  # memory that came is the receiver's own
        b["i"].add_(1)
        assert b["x"][1, 0, 0].item() == b["i"][1].item()


def test_workers_divide_an_iterable_dataset() -> None:
    assert sorted(sum(rows(DataLoader(Numbers(11), 3, num_workers=2)), [])) == list(range(11))
    assert sorted(rows(DataLoader(Numbers(5), None, num_workers=3))) == list(range(5))
    assert rows(DataLoader(Numbers(1), 2, num_workers=3)) == [[0]]
    assert sorted(sum(rows(DataLoader(Numbers(9), 2, num_workers=2, drop_last=True)), [])) == [*range(8)]
    loader = DataLoader(Numbers(6), 2, num_workers=2, persistent_workers=True)
    assert [sorted(sum(rows(loader), [])) for _ in range(2)] == [list(range(6))] * 2


def test_batches_may_come_as_they_are_ready() -> None:
    slow = Failing(0, lambda: time.sleep(0.3) or 0)
    got = rows(DataLoader(slow, 2, num_workers=2, in_order=False))
    assert sorted(got) == [[0, 1], [2, 3], [4, 5], [6, 7]] and got[0] != [0, 1]
    assert rows(DataLoader(slow, 2, num_workers=2)) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_every_worker_draws_its_own_numbers_again_and_again() -> None:
    def epoch(loader: DataLoader) -> list:
        return [sample for batch in loader for sample in zip(*[c.tolist() for c in batch], strict=True)]

    def loaders() -> Iterator[DataLoader]:
        for persistent in (False, True):
            generator = flame.Generator().manual_seed(5)
            yield DataLoader(Drawn(), 2, num_workers=2, generator=generator, persistent_workers=persistent)

    first, second = ([epoch(loader), epoch(loader)] for loader in loaders())
    assert first == second  # the same seeds, whoever works
    draws = [s[:2] for e in first for s in e]
    assert len({d for pair in draws for d in pair}) == 16
    assert [s[2] for s in first[0]] == [0, 0, 1, 1] and first[0][2][3] == first[0][0][3] + 1
    assert data.get_worker_info() is None


def test_persistent_workers_are_the_same_processes() -> None:
    loader = DataLoader(Failing(-1, int), 4, num_workers=2, persistent_workers=True, collate_fn=lambda b: os.getpid())
    one, two = list(loader), list(loader)
    assert one == two and len(set(one)) == 2
    unfinished = iter(loader)
    next(unfinished)
    assert list(loader) == one
    with pytest.raises(RuntimeError, match="given up"):
        next(unfinished)
    assert len(set(list(DataLoader(range(4), 2, num_workers=2, collate_fn=lambda b: os.getpid())) + one)) == 4
    workers = loader._workers.processes
    del loader, unfinished
    gc.collect()
    assert not any(p.is_alive() for p in workers)


def test_an_epoch_left_early_leaves_no_process_behind() -> None:
    before = set(multiprocessing.active_children())
    for _ in DataLoader(Squares(100), 2, num_workers=2):
        break
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


def raising(e: Exception) -> Callable[[], Any]:
    def f() -> Any:
        raise e

    return f


class Odd(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)


def test_what_goes_wrong_in_a_worker_is_said_here() -> None:
    for e, kind in ((ValueError("bad value"), ValueError), (KeyError("bad value"), KeyError), (Odd(1, 2), RuntimeError)):
        with pytest.raises(kind, match=r"in DataLoader worker process 1.\nOriginal Traceback(.|\n)*(bad value|\(1, 2\))"):
            list(DataLoader(Failing(5, raising(e)), 4, num_workers=2))
    loader = iter(DataLoader(Failing(2, raising(ValueError("once"))), 2, num_workers=2))
    assert next(loader).tolist() == [0, 1]
    with pytest.raises(ValueError, match="once"):
        next(loader)
    assert rows(loader) == [[4, 5], [6, 7]]  # the rest goes on
    with pytest.raises(RuntimeError, match="killed by signal 9"):
        list(DataLoader(Failing(5, lambda: os.kill(os.getpid(), signal.SIGKILL)), 4, num_workers=2))
    with pytest.raises(RuntimeError, match="exited with code 3"):
        list(DataLoader(Failing(5, lambda: os._exit(3)), 4, num_workers=2))
    with pytest.raises(RuntimeError, match="timed out after 0.1 seconds"):
        list(DataLoader(Failing(1, lambda: time.sleep(0.8)), 4, num_workers=1, timeout=0.1))
    with pytest.raises(ValueError, match="no start"):
        list(DataLoader(range(4), num_workers=1, worker_init_fn=lambda k: raising(ValueError("no start"))()))
    with pytest.raises(Exception, match="Can't pickle|cannot pickle|Can't get"):
        list(DataLoader(Failing(1, lambda: lambda: 0), 4, num_workers=1, collate_fn=list))
    w = flame.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="no leaf"):
        list(DataLoader(Failing(1, lambda: w * 2), None, num_workers=1))


def test_workers_are_prepared_and_tensors_keep_what_they_are() -> None:
    def prepare(k: int) -> None:
        info = data.get_worker_info()
        assert info is not None and info.id == k
        info.dataset.at = 100 + k

    class Told(Failing):
        def __getitem__(self, i: int) -> Any:
            return flame.nn.Parameter(flame.full((5000,), float(self.at))), flame.ones(2).bfloat16(), flame.zeros(0, 3)

    for k, (p, b, z) in enumerate(DataLoader(Told(0, int), None, num_workers=2, worker_init_fn=prepare)):
        assert isinstance(p, flame.nn.Parameter) and p.requires_grad and p[0].item() == 100 + k % 2
        assert b.dtype is flame.bfloat16 and b.tolist() == [1.0, 1.0] and tuple(z.shape) == (0, 3)


def test_without_shared_memory_batches_go_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = multiprocessing.Pipe()
    x = {"a": flame.arange(5000.0), "b": [np.arange(9000)], "c": 1}
    for memory in (transfer._memory, lambda size: None):
        monkeypatch.setattr(transfer, "_memory", memory)
        got: list[Any] = []
        t = threading.Thread(target=lambda: got.append(transfer.receive(two)))
        t.start()
        transfer.send(one, x)
        t.join()
        assert plain(got[0]["a"]) == plain(x["a"]) and np.array_equal(got[0]["b"][0], x["b"][0]) and got[0]["c"] == 1
        got[0]["a"].zero_()
        got[0]["b"][0][:] = 0
    one.close()
    with pytest.raises(EOFError):
        transfer.receive(two)


# -------------------------------------------------------------------- what is refused


@pytest.mark.oracle
@pytest.mark.parametrize(
    "settings",
    [
        dict(num_workers=-1), dict(timeout=-1), dict(prefetch_factor=2), dict(prefetch_factor=-1, num_workers=1),
        dict(persistent_workers=True), dict(sampler=[0], shuffle=True), dict(batch_sampler=[[0]], batch_size=2),
        dict(batch_sampler=[[0]], drop_last=True), dict(batch_size=None, drop_last=True), dict(batch_size=0),
        dict(multiprocessing_context="fork"), dict(multiprocessing_context="knife", num_workers=1),
        dict(multiprocessing_context=3, num_workers=1),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_exclude_each_other_are_refused_as_pytorch_does(torch: Any, settings: dict) -> None:
    errors = []
    for library in (data, torch.utils.data):
        with pytest.raises((ValueError, TypeError)) as e:
            library.DataLoader(range(4), **settings)
        errors.append(e.type)
    assert errors[0] is errors[1]


def test_bad_samplers_and_datasets_are_refused() -> None:
    with pytest.raises(ValueError, match="does not equal the length"):
        data.random_split(range(4), [1, 2])
    with pytest.raises(ValueError, match="whole numbers"):
        data.random_split(range(4), [1.5, 2.5])
    with pytest.raises(ValueError, match="num_samples"):
        data.RandomSampler(range(3), num_samples=-1)
    with pytest.raises(TypeError, match="replacement"):
        data.RandomSampler(range(3), replacement=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive integer"):
        data.WeightedRandomSampler([1.0], 0)
    with pytest.raises(ValueError, match="1d sequence"):
        data.WeightedRandomSampler([[1.0]], 1)  # type: ignore[list-item]
    with pytest.raises(AssertionError, match="Size mismatch"):
        data.TensorDataset(flame.ones(2), flame.ones(3))
    with pytest.raises(AssertionError, match="empty"):
        data.ConcatDataset([])
    with pytest.raises(ValueError, match="not both"):
        data.StackDataset([1], a=[1])
    with pytest.raises(RuntimeError, match="give num_replicas"):
        data.DistributedSampler(range(3))
    with pytest.raises(ValueError, match="Invalid rank 2"):
        data.DistributedSampler(range(3), 2, 2)
    with pytest.raises(NotImplementedError):
        data.Dataset()[0]
    with pytest.raises(IndexError):
        data.ConcatDataset([[1], [2]])[2]  # type: ignore[list-item]
    loader = DataLoader(range(3))
    with pytest.raises(ValueError, match="should not be set"):
        loader.batch_size = 3
    with pytest.warns(UserWarning, match="pin_memory"):
        [[a]] = DataLoader(flame.utils.data.TensorDataset(flame.ones(2)), 2, pin_memory=True)
    assert not a.is_pinned()
    for make in (flame.ones(3).pin_memory, lambda: flame.zeros(3, pin_memory=True)):
        with pytest.raises(RuntimeError, match="Cannot access accelerator device"):
            make()

    class Liar(Numbers):
        def __len__(self) -> int:
            return 2

    with pytest.warns(UserWarning, match="reported to be 2"):
        assert rows(DataLoader(Liar(3), None)) == [0, 1, 2]


def test_a_model_is_trained_on_batches_by_workers() -> None:
    flame.manual_seed(1)
    x = flame.randn(64, 3)
    y = x @ flame.tensor([[1.0], [-2.0], [0.5]])
    model = flame.nn.Linear(3, 1)
    optimizer = flame.optim.SGD(model.parameters(), lr=0.2)

    @flame.compile
    def step(a: flame.Tensor, b: flame.Tensor) -> flame.Tensor:
        optimizer.zero_grad()
        loss = (model(a) - b).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    loader = DataLoader(data.TensorDataset(x, y), 16, True, num_workers=1, persistent_workers=True)
    losses = [step(a, b).item() for _ in range(6) for a, b in loader]
    assert losses[-1] < losses[0] / 100
