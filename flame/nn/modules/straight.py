"""Modules whose `forward` is one function: followed as the call of that function (see `Module.__call__`)."""

from __future__ import annotations

from typing import Any

from flame.capture import native
from flame.precision import casting
from flame.primitive import placement
from flame.tensor import Tensor


class Straight:
    """That `forward(input)` of a class is `public(input, *attributes)` and no more, where `public` is a composite: while somebody
    follows what runs, the call of a module is then the call of that function, with no Python in between."""

    __slots__ = ("forward", "function", "home", "key", "name", "names", "public")

    def __init__(self, forward: Any, public: Any, names: tuple[str, ...], home: Any) -> None:
        itself, self.function, self.name = public.composite
        if itself is not public:
            raise TypeError(f"{public.__name__} is more than its composite")
        self.forward, self.public, self.names = forward, public, names
        self.home, self.key = vars(home), public.__name__  #: where forward finds the function

    def arguments(self, forward: Any, x: Any, d: dict) -> list | None:
        """What the function is called with for an instance with the `__dict__` d; None where something was put in the place of
        any of this, or functions are called in another way just now."""
        if forward is not self.forward or "forward" in d or casting.threads or placement.gpu or not isinstance(x, Tensor):
            return None
        if self.home[self.key] is not self.public:
            return None
        given: list = [x]
        for name in self.names:
            if name not in d:
                return None
            given.append(d[name])
        return given


native.also(Straight, "arguments")
