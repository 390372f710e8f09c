"""Looking on at operations as they run eagerly: `with watching(f): ...` has every primitive go through `f`.

`f(process, primitive, operands, params)` answers with what `process(primitive, operands, params)` gives. Where nobody watches,
nothing is there to be asked: the base interpreter is another one only meanwhile. All threads are watched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flame.autograd.tape import Eager, eager
from flame.primitive import Primitive, placement

Process = Callable[[Primitive, tuple, dict], Any]
Watcher = Callable[[Process, Primitive, tuple, dict], Any]

watchers: list[Watcher] = []  #: who watches now
_lock = threading.Lock()


def watch(f: Watcher) -> None:
    """Begin to watch; who began last is asked first."""
    with _lock:
        watchers.append(f)
        _install()


def unwatch(f: Watcher) -> None:
    """End it."""
    with _lock:
        watchers.remove(f)
        _install()


@contextmanager
def watching(f: Watcher) -> Iterator[None]:
    """Watch meanwhile."""
    watch(f)
    try:
        yield
    finally:
        unwatch(f)


def _install() -> None:
    placement.watched = bool(watchers)
    if not watchers:
        vars(eager).pop("process", None)
        return
    process: Process = Eager.process.__get__(eager)
    for f in watchers:
        process = _through(f, process)
    vars(eager)["process"] = process


def _through(f: Watcher, process: Process) -> Process:
    return lambda primitive, operands, params: f(process, primitive, operands, params)
