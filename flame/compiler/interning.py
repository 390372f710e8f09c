"""A table of interned objects: one object for equal keys, for as long as anybody holds it.

    table = Interned(make)          table(key) -> the object of that key, made by make(key) if there is none

`weakref.WeakValueDictionary` does the same, at three times the time a look-up; expressions are looked up so often that it was a
tenth of compiling. An object may die anywhere, in the middle of a look-up too, so dying does no more than append to a list;
whoever makes the next object takes the dead out of the table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import ref

T = TypeVar("T")


class _Entry(ref[T]):
    """A weak reference that knows its key."""

    __slots__ = ("key",)
    key: Hashable


class Interned(Generic[T]):
    """Any number of threads may ask at once."""

    def __init__(self, make: Callable[..., T]):
        self._make = make
        self._entries: dict[Hashable, _Entry[T]] = {}
        self._dead: list[_Entry[T]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __call__(self, key: Hashable) -> T:
        entry = self._entries.get(key)
        found = None if entry is None else entry()
        return self._enter(key) if found is None else found

    def _enter(self, key: Hashable) -> T:
        entries, dead = self._entries, self._dead
        with self._lock:
            while dead:
                gone = dead.pop()
                if entries.get(gone.key) is gone:
                    del entries[gone.key]
            entry = entries.get(key)
            found = None if entry is None else entry()
            if found is None:
                found = self._make(key)
                entry = entries[key] = _Entry(found, dead.append)  # type: ignore[arg-type]
                entry.key = key
            return found
