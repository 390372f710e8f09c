"""`Inner`: what interpreters that stand on another one have in common (those of `flame.func` and of flex attention's functions).

An interpreter is what operations ask before they run (`force.interpreter`). An inner one has taken the place of `outer`: what it
does not do itself it asks for below, with the outer one in force.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame.primitive import Primitive, force


class Inner:
    """Base of such an interpreter."""

    outer: Any  #: the interpreter below; None: operations run

    def below(self, f: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call f under the outer interpreter, which may put another one in its own place."""
        force.interpreter = self.outer
        try:
            return f(*args, **kwargs)
        finally:
            self.outer = force.interpreter
            force.interpreter = self

    def composite(self, f: Callable, name: str, args: tuple, kwargs: dict) -> Any:
        return f(*args, **kwargs)

    def follow_inplace(self, primitive: Primitive, target: Any, others: tuple) -> bool:
        return False

    def read(self, t: Any) -> None:
        if self.outer is not None:
            self.below(self.outer.read, t)

    def outside(self, f: Callable, reason: Any, what: str = "") -> Any:
        return f()

    def leave(self, reason: Any, what: str = "") -> None:
        if self.outer is not None:
            self.below(self.outer.leave, reason, what)
