"""What a worker process of a DataLoader does: fetch batches as they are asked for, and say what went wrong.

    request ::= ("batch", index, places) | ("epoch", seed) | None                   None: end
    answer  ::= ("batch", index, batch) | ("end", index) | ("error", index, exception type, text)

"end" is an iterable dataset's: this worker has no more. A thread takes requests off the pipe at once, so that the main process
never waits for a worker that is busy or that itself waits to send.
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from flame.functions.random import manual_seed
from flame.runtime.threads import set_num_threads
from flame.utils.data.transfer import send


@dataclass(frozen=True)
class WorkerInfo:
    """What `get_worker_info()` tells inside of a worker process."""

    id: int
    num_workers: int
    seed: int
    dataset: Any


_info: WorkerInfo | None = None


def get_worker_info() -> WorkerInfo | None:
    """In a worker process: its id, the number of workers, its seed, its copy of the dataset. None in the main process."""
    return _info


class End(Exception):
    """An iterable dataset has no more."""


@dataclass
class Fetcher:
    """Batches of a dataset. `places` are indices, one index (without batching), or for iterable datasets how many."""

    dataset: Any
    batched: bool
    collate: Callable[[Any], Any]
    drop_last: bool
    iterable: bool

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.iterator = iter(self.dataset) if self.iterable else None

    def fetch(self, places: Any) -> Any:
        """The next batch. Raises End."""
        if self.iterator is not None:
            if not self.batched:
                for sample in self.iterator:
                    return self.collate(sample)
                raise End
            samples = list(itertools.islice(self.iterator, len(places)))
            if not samples or (self.drop_last and len(samples) < len(places)):
                raise End
            return self.collate(samples)
        if not self.batched:
            return self.collate(self.dataset[places])
        many = getattr(self.dataset, "__getitems__", None)
        return self.collate([self.dataset[i] for i in places] if many is None else many(places))


def seed_worker(seed: int, worker: int) -> None:
    """Random numbers of a worker of its own: flame's, Python's and NumPy's."""
    manual_seed(seed + worker)
    random.seed(seed + worker)
    np.random.seed(np.random.SeedSequence([seed & 0xFFFFFFFF, seed >> 32, worker]).generate_state(4))


def described(e: BaseException, worker: int) -> tuple[type, str]:
    """An exception's type and all that is to be said of it."""
    text = "".join(traceback.format_exception(e))
    return type(e), f"Caught {type(e).__name__} in DataLoader worker process {worker}.\nOriginal {text}"


def work(pipe: Connection, fetcher: Callable[[], Fetcher], seed: int, worker: int, num_workers: int, init: Any) -> None:
    """Answer requests until the main process says that it is enough, or is gone."""
    global _info
    set_num_threads(1)
    requests: queue.SimpleQueue = queue.SimpleQueue()

    def listen() -> None:
        try:
            while (request := pipe.recv()) is not None:
                requests.put(request)
        except (EOFError, OSError):
            pass
        requests.put(None)

    threading.Thread(target=listen, daemon=True).start()
    failure: tuple[type, str] | None = None
    f: Fetcher | None = None
    try:
        seed_worker(seed, worker)
        # the dataset is here before worker_init_fn, which may change it; iteration begins after
        made = fetcher()
        _info = WorkerInfo(worker, num_workers, seed + worker, made.dataset)
        if init is not None:
            init(worker)
        made.restart()
        f = made
    except Exception as e:
        failure = described(e, worker)
    ended = False
    while (request := requests.get()) is not None:
        if request[0] == "epoch":
            seed_worker(request[1], worker)
            try:
                if f is not None:
                    _info = WorkerInfo(worker, num_workers, request[1] + worker, f.dataset)
                    f.restart()
                    failure, ended = None, False
            except Exception as e:
                failure = described(e, worker)
            continue
        _, index, places = request
        try:
            if failure is None and f is not None and not ended:
                try:
                    answer: tuple = ("batch", index, f.fetch(places))
                except End:
                    answer, ended = ("end", index), True
                except Exception as e:
                    answer = ("error", index, *described(e, worker))
            else:
                answer = ("end", index) if failure is None else ("error", index, *failure)
            reply(pipe, answer, worker)
        except (BrokenPipeError, ConnectionResetError):
            return


def reply(pipe: Connection, answer: tuple, worker: int) -> None:
    """Send an answer; where it can't be sent, send why."""
    try:
        send(pipe, answer)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as e:
        kind, text = described(e, worker)
        try:
            send(pipe, ("error", answer[1], kind, text))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception:  # a class that only this process knows
            send(pipe, ("error", answer[1], RuntimeError, text))
