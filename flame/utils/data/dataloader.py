"""`DataLoader`: batches of a dataset, fetched in this process or ahead of their use by worker processes.

A loader keeps settings; `iter(loader)` makes an epoch. Without workers that is a plain loop. With workers each has a pipe of its
own: requests go out in turn (`prefetch_factor` a worker ahead), answers are handed on in order, and a worker that dies is seen by
its pipe. See `worker.py` for what is said on the pipe, `transfer.py` for how batches come through it.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import connection
from multiprocessing.context import BaseContext
from typing import Any

from flame.functions.random import Generator
from flame.runtime import cuda
from flame.tensor import Tensor
from flame.utils.data.collate import default_collate, default_convert
from flame.utils.data.dataset import IterableDataset
from flame.utils.data.sampler import BatchSampler, RandomSampler, Sampler, SequentialSampler, drawn_seed
from flame.utils.data.transfer import receive
from flame.utils.data.worker import End, Fetcher, work

_FIXED = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")


class _Forever(Sampler[Any]):
    """What is sampled of an iterable dataset: nothing in particular, without end."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield None


class DataLoader:
    """Batches of `dataset`, in the order of `sampler` (shuffled if `shuffle`), collated by `collate_fn`.

    `num_workers` processes fetch ahead; `multiprocessing_context` says how they start ("fork", "spawn", "forkserver", or None for
    the platform's way). An exception in a worker is raised here, of the same type and with the worker's traceback. Raises
    ValueError for settings that exclude each other, as PyTorch's.
    """

    def __init__(
        self, dataset: Any, batch_size: int | None = 1, shuffle: bool | None = None, sampler: Iterable | None = None,
        batch_sampler: Iterable | None = None, num_workers: int = 0, collate_fn: Callable | None = None, pin_memory: bool = False,
        drop_last: bool = False, timeout: float = 0, worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None, generator: Generator | None = None, *, prefetch_factor: int | None = None,
        persistent_workers: bool = False, pin_memory_device: str = "", in_order: bool = True,
    ) -> None:  # fmt: skip
        if num_workers < 0:
            raise ValueError("num_workers option should be non-negative; use num_workers=0 to disable multiprocessing.")
        if timeout < 0:
            raise ValueError("timeout option should be non-negative")
        if num_workers == 0 and prefetch_factor is not None:
            raise ValueError(
                "prefetch_factor option could only be specified in multiprocessing. Let num_workers > 0 to enable multiprocessing, "
                "otherwise set prefetch_factor to None."
            )
        if prefetch_factor is not None and prefetch_factor < 0:
            raise ValueError("prefetch_factor option should be non-negative")
        if persistent_workers and num_workers == 0:
            raise ValueError("persistent_workers option needs num_workers > 0")
        self.dataset, self.num_workers, self.timeout = dataset, num_workers, timeout
        self.prefetch_factor = 2 if num_workers > 0 and prefetch_factor is None else prefetch_factor
        self.pin_memory, self.pin_memory_device, self.in_order = pin_memory, pin_memory_device, in_order
        self.worker_init_fn, self.persistent_workers = worker_init_fn, persistent_workers
        self._iterable = isinstance(dataset, IterableDataset)
        if self._iterable:
            self._check_iterable(shuffle, sampler, batch_sampler)
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError("batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, and drop_last")
            batch_size, drop_last = None, False
        elif batch_size is None and drop_last:
            raise ValueError("batch_size=None option disables auto-batching and is mutually exclusive with drop_last")
        if sampler is None:
            if self._iterable:
                sampler = _Forever()
            else:
                sampler = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
        if batch_size is not None and batch_sampler is None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size, self.drop_last, self.sampler, self.batch_sampler = batch_size, drop_last, sampler, batch_sampler
        self.generator = generator
        batched = batch_sampler is not None
        self.collate_fn: Callable = collate_fn or (default_collate if batched else default_convert)
        self.multiprocessing_context = multiprocessing_context
        self._workers: _Workers | None = None
        self.__dict__["_made"] = True

    def _check_iterable(self, shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
        for name, value, allowed in (("shuffle", shuffle, (False, None)), ("sampler", sampler, (None,))):
            if value not in allowed:
                raise ValueError(f"DataLoader with IterableDataset: expected unspecified {name} option, but got {name}={value}")
        if batch_sampler is not None:
            raise ValueError(
                f"DataLoader with IterableDataset: expected unspecified batch_sampler option, but got batch_sampler={batch_sampler}"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and self.__dict__.get("_made"):
            raise ValueError(f"{name} attribute should not be set after {type(self).__name__} is initialized")
        if name == "multiprocessing_context":
            value = self._context(value)
        object.__setattr__(self, name, value)

    def _context(self, given: Any) -> BaseContext | None:
        if given is None:
            return None
        if not self.num_workers:
            raise ValueError(
                f"multiprocessing_context can only be used with multi-process loading (num_workers > 0), but got num_workers="
                f"{self.num_workers}"
            )
        if isinstance(given, str):
            known = multiprocessing.get_all_start_methods()
            if given not in known:
                raise ValueError(
                    f"multiprocessing_context option should specify a valid start method in {known!r}, but got "
                    f"multiprocessing_context={given!r}"
                )
            return multiprocessing.get_context(given)
        if not isinstance(given, BaseContext):
            raise TypeError(
                "multiprocessing_context option should be a valid context object or a string specifying the start method, but got "
                f"multiprocessing_context={given!r}"
            )
        return given

    @property
    def _places(self) -> Iterable:
        """What each batch is made of: lists of indices, or single indices."""
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    def _fetcher(self) -> Callable[[], Fetcher]:
        """Makes the fetcher; it goes to worker processes, so it holds nothing of the loader but what is needed."""
        return functools.partial(
            Fetcher, self.dataset, self.batch_sampler is not None, self.collate_fn, self.drop_last, self._iterable
        )

    def __iter__(self) -> Iterator[Any]:
        if self.pin_memory and not cuda.available():
            warnings.warn(
                "'pin_memory' argument is set as true but no accelerator is found, then device pinned memory won't be used.",
                UserWarning,
                stacklevel=2,
            )
        seed = drawn_seed(self.generator)
        if not self.num_workers:
            return _Epoch(_here(self._fetcher()(), iter(self._places)), self)
        if not self.persistent_workers:
            return _Epoch(_Ahead(self, _Workers(self, seed), None), self)
        if self._workers is None or self._workers.closed:
            self._workers = _Workers(self, seed)
            return _Epoch(_Ahead(self, self._workers, None), self)
        return _Epoch(_Ahead(self, self._workers, seed), self)

    def __len__(self) -> int:
        if not self._iterable:
            return len(self._places)  # type: ignore[arg-type]
        n = len(self.dataset)
        if self.batch_size is None:
            return n
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


class _Epoch(Iterator[Any]):
    """One pass over a loader's batches; says so where an iterable dataset has more than it promised."""

    def __init__(self, batches: Iterator[Any], loader: DataLoader) -> None:
        self._batches, self._loader, self._yielded = batches, loader, 0
        self._promised: int | None = None
        if loader._iterable and hasattr(type(loader.dataset), "__len__"):
            self._promised = len(loader)

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._yielded += 1
        if self._promised is not None and self._yielded == self._promised + 1:
            warnings.warn(
                f"Length of IterableDataset {self._loader.dataset} was reported to be {self._promised} (when accessing "
                f"len(dataloader)), but {self._yielded} samples have been fetched: where several workers iterate over the dataset, "
                "each should take its own part (see get_worker_info)",
                UserWarning,
                stacklevel=2,
            )
        return _pinned(batch) if self._loader.pin_memory and cuda.available() else batch

    def __len__(self) -> int:
        return len(self._loader)


def _pinned(x: Any) -> Any:
    """`x` with `pin_memory()` of all that have one."""
    if isinstance(x, Tensor) or hasattr(x, "pin_memory"):
        return x.pin_memory()
    if isinstance(x, Mapping):
        return type(x)({k: _pinned(v) for k, v in x.items()})  # type: ignore[call-arg]
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(_pinned, x))
    return type(x)(map(_pinned, x)) if isinstance(x, list | tuple) else x


def _here(fetcher: Fetcher, places: Iterator[Any]) -> Iterator[Any]:
    """Batches fetched in this process."""
    for place in places:
        try:
            yield fetcher.fetch(place)
        except End:
            return


# -------------------------------------------------------------------- worker processes


class WorkerDied(RuntimeError):
    """A worker process ended without being told to."""


def _finish(owner: int, processes: list[Any], pipes: list[Any]) -> None:
    """Tell workers that it is enough, and see to it that they end. A process that was forked off later leaves them alone."""
    if os.getpid() != owner:
        return
    for pipe in pipes:
        try:
            pipe.send(None)
        except (OSError, ValueError):
            pass
        pipe.close()
    until = time.monotonic() + 5.0
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.terminate()
            process.join(1.0)
            if process.is_alive():
                process.kill()
                process.join()


class _Workers:
    """The worker processes of a loader, and one epoch after the other by them."""

    def __init__(self, loader: DataLoader, seed: int) -> None:
        context = loader.multiprocessing_context or multiprocessing.get_context()
        self.count, self.timeout = loader.num_workers, loader.timeout
        self.pipes: list[Any] = []
        self.processes: list[Any] = []
        self.generation = 0
        self._finalizer = weakref.finalize(self, _finish, os.getpid(), self.processes, self.pipes)
        fetcher = loader._fetcher()
        try:
            for k in range(self.count):
                ours, theirs = context.Pipe()
                process = context.Process(  # type: ignore[attr-defined]
                    target=work, args=(theirs, fetcher, seed, k, self.count, loader.worker_init_fn), daemon=True
                )
                self.pipes.append(ours)
                process.start()
                self.processes.append(process)
                theirs.close()
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    def close(self) -> None:
        self._finalizer()

    def begin(self, seed: int | None) -> int:
        """A new epoch's number; a `seed` begins it in workers that have had one already."""
        self.generation += 1
        if seed is not None:
            for k in range(self.count):
                self.send(k, ("epoch", seed))
        return self.generation

    def send(self, k: int, request: tuple) -> None:
        try:
            self.pipes[k].send(request)
        except (BrokenPipeError, ConnectionResetError, ValueError):
            raise self._died(k) from None

    def answer(self, workers: Iterable[int], generation: int) -> tuple[int, tuple]:
        """The next answer of this epoch by any of `workers`. Raises RuntimeError where one died or nothing came in time."""
        waiting = {self.pipes[k]: k for k in workers}
        until = time.monotonic() + self.timeout if self.timeout else None
        while True:
            ready = connection.wait(list(waiting), None if until is None else max(0.0, until - time.monotonic()))
            if not ready:
                raise RuntimeError(f"DataLoader timed out after {self.timeout} seconds")
            pipe: Any = ready[0]
            try:
                answer = receive(pipe)
            except (EOFError, ConnectionResetError, BrokenPipeError):
                raise self._died(waiting[pipe]) from None
            epoch, index = answer[1]
            if epoch == generation:
                return index, answer

    def _died(self, k: int) -> WorkerDied:
        process = self.processes[k]
        process.join(2.0)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"exited with code {code}"
        if code == -9:
            how += " (out of memory?)"
        return WorkerDied(f"DataLoader worker {k} (pid {process.pid}) {how} unexpectedly")


class _Ahead(Iterator[Any]):
    """One epoch by worker processes: requests go out ahead, answers are handed on, in the order of requests if that is wanted.

    Indices of batches carry the epoch's number, so that answers to an epoch that was given up are known.
    """

    def __init__(self, loader: DataLoader, workers: _Workers, seed: int | None) -> None:
        self.workers, self.generation = workers, workers.begin(seed)
        self.places = iter(loader._places)
        self.most = max(1, loader.prefetch_factor or 0) * loader.num_workers
        self.in_order, self.persistent = loader.in_order, loader.persistent_workers
        self.open = [True] * workers.count  # who has more
        self.asked: dict[int, int] = {}  # batch -> worker
        self.answers: dict[int, tuple] = {}
        self.given = self.wanted = self.turn = 0
        self.fill()

    def fill(self) -> None:
        """Ask for batches, the workers in turn (or, where order does not matter, the one that has least to do)."""
        while any(self.open) and len(self.asked) + len(self.answers) < self.most:
            try:
                place = next(self.places)
            except StopIteration:
                self.open = [False] * self.workers.count
                return
            if self.in_order:
                while not self.open[self.turn]:
                    self.turn = (self.turn + 1) % self.workers.count
                k, self.turn = self.turn, (self.turn + 1) % self.workers.count
            else:
                busy = list(self.asked.values())
                k = min((w for w in range(self.workers.count) if self.open[w]), key=busy.count)
            self.workers.send(k, ("batch", (self.generation, self.given), place))
            self.asked[self.given] = k
            self.given += 1

    def __next__(self) -> Any:
        if self.generation != self.workers.generation:
            raise RuntimeError("this epoch was given up: another one was begun on the same persistent workers")
        try:
            while True:
                self.fill()
                ready = (self.wanted in self.answers) if self.in_order else bool(self.answers)
                if not ready:
                    if not self.asked:
                        break
                    index, answer = self.workers.answer(self.asked.values(), self.generation)
                    worker = self.asked.pop(index)
                    if answer[0] == "end":
                        self.open[worker] = False
                    self.answers[index] = answer
                    continue
                index = self.wanted if self.in_order else next(iter(self.answers))
                answer = self.answers.pop(index)
                self.wanted += 1
                if answer[0] == "batch":
                    return answer[2]
                if answer[0] == "error":
                    raise _raised(answer[2], answer[3])
        except WorkerDied:
            self.workers.close()
            raise
        if not self.persistent:
            self.workers.close()
        raise StopIteration


def _raised(kind: Any, text: str) -> BaseException:
    """An exception of a worker's, as it is raised here."""
    if issubclass(kind, KeyError):  # its message would be shown with all line breaks escaped
        return type(kind.__name__, (kind,), {"__str__": lambda self: str(self.args[0]), "__module__": kind.__module__})(text)
    try:
        return kind(text)
    except Exception:
        return RuntimeError(text)
