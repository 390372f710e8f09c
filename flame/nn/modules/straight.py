"""Modules whose `forward` is one function: followed as the call of that function (see `Module.__call__`)."""

from __future__ import annotations

from typing import Any

from flame.capture import native
from flame.functions.refusing import guarded
from flame.precision import casting
from flame.primitive import placement


class Straight:
    """That `forward(input)` of a class is `public(input, *attributes)` and no more, where `public` is a composite: while somebody
    follows what runs, the call of a module is then the call of that function, with no Python in between."""

    __slots__ = ("forward", "found", "function", "home", "key", "name", "names", "public")

    def __init__(self, forward: Any, public: Any, names: tuple[str, ...], home: Any) -> None:
        itself, self.function, self.name = public.composite
        if itself is not public:
            raise TypeError(f"{public.__name__} is more than its composite")
        self.forward, self.public, self.names = forward, public, names
        self.home, self.key = vars(home), public.__name__  #: where forward finds the function
        self.found = public  #: what it finds there

    def arguments(self, forward: Any, x: Any, d: dict) -> list | None:
        """What the function is called with for an instance with the `__dict__` d; None where something was put in the place of
        any of this, or functions are called in another way just now."""
        if forward is not self.forward or "forward" in d or casting.threads or placement.gpu:
            return None
        there = self.home[self.key]
        if there is not self.found and not self._accepts(there):
            return None
        given: list = [x]
        for name in self.names:
            if name not in d:
                return None
            given.append(d[name])
        return given

    def _accepts(self, there: Any) -> bool:
        """Whether what forward finds is the function behind a guard that tells of wrong arguments: from now on that is asked for,
        and told of by the same words."""
        if self.found is not self.public or getattr(there, "guards", None) is not self.public:
            return False
        self.found, self.function = there, guarded(self.function, self.key)
        return True


native.also(Straight, "arguments")
