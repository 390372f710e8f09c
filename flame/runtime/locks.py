"""A lock that a forked child finds open.

A child has one thread. A lock that another thread of its parent held at the fork would never be released there, and waiting
for it would hang. What such locks guard here (tables that only grow, lists of free memory) is usable at every moment.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


class Lock:
    """A re-entrant lock, for use with `with`."""

    __slots__ = ("_lock", "__weakref__")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: Any) -> None:
        self._lock.release()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _open_all() -> None:
    for lock in list(_locks):
        lock._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
