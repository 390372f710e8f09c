"""Looking on at operations as they run eagerly: `with watching(f): ...` has every primitive go through `f`.

`f(process, primitive, operands, params)` answers with what `process(primitive, operands, params)` gives. Where nobody watches,
nothing is there to be asked: the base interpreter is another one only meanwhile. All threads are watched.

Composites that run as one program (`flame.autograd.fused`) are taken apart into their operations for whoever watches, unless all
who do take them `whole`: as one operation, under the composite's name. So who only looks on changes nothing of what runs.
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
_whole: list[Watcher] = []  #: who of these takes composites as they run
_lock = threading.Lock()


def watch(f: Watcher, *, whole: bool = False) -> None:
    """Begin to watch; who began last is asked first."""
    with _lock:
        watchers.append(f)
        if whole:
            _whole.append(f)
        _install()


def unwatch(f: Watcher) -> None:
    """End it."""
    with _lock:
        watchers.remove(f)
        if f in _whole:
            _whole.remove(f)
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
    placement.watched, placement.apart = bool(watchers), len(_whole) < len(watchers)
    if not watchers:
        vars(eager).pop("process", None)
        return
    vars(eager)["process"] = watched(Eager.process.__get__(eager))


def watched(process: Process) -> Process:
    """`process` under the eyes of all who watch."""
    for f in list(watchers):
        process = _through(f, process)
    return process


def _through(f: Watcher, process: Process) -> Process:
    return lambda primitive, operands, params: f(process, primitive, operands, params)
