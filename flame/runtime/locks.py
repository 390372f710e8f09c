"""Locks and forks: a lock that a forked child finds open, and one that a fork waits for.

A child has one thread. A `Lock` that another thread of its parent held at the fork would never be released there, and waiting
for it would hang. What such locks guard (tables that only grow, lists of free memory) is usable at every moment.

Where the interpreter ends, threads that still run are stopped wherever they are, and never open what they hold: whoever is called
so late, from `__del__`, is told instead of waiting (RuntimeError).
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  (see ForkWaits)
import os
import sys
import threading
import weakref
from typing import Any


def _take(lock: Any) -> None:
    if not lock.acquire(False):
        if sys.is_finalizing():
            raise RuntimeError("the interpreter ends, and a thread that it has stopped holds what this needs")
        lock.acquire()


class ForkWaits:
    """A re-entrant lock that a fork waits for, so that what it guards is never in the middle in a child.

    For work whose state can't be thrown open: a compiler's own locks and memory. A fork takes as long as the work in hand. Python's
    executors take a lock of their own at a fork, which such work may need to end: what is registered last runs first, so this
    file imports them.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._lock.release
            )

    def __enter__(self) -> None:
        _take(self._lock)

    def __exit__(self, *error: Any) -> None:
        self._lock.release()


#: held by whoever compiles: one at a time, and no fork meanwhile
compiling = ForkWaits()


class Lock:
    """A re-entrant lock, for use with `with`."""

    __slots__ = ("_lock", "__weakref__")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        _take(self._lock)

    def __exit__(self, *error: Any) -> None:
        self._lock.release()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _open_all() -> None:
    for lock in list(_locks):
        lock._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
