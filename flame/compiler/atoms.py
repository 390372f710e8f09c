"""What index expressions are products of: names, floor divisions, remainders, and the integer values of statements.

    atom ::= name | Div(E, E) | Mod(E, E) | Val(name)          monomial ::= atom * atom * ..

`flame.compiler.index_math` makes them and says what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame.compiler.index_math import E


class _Division:
    """Two of one kind with the same parts are equal. Hash and key are worked out once: expressions are looked up a lot."""

    __slots__ = ("numerator", "divisor", "_hash", "_key")

    def __init__(self, numerator: E, divisor: E):
        self.numerator = numerator
        self.divisor = divisor
        self._hash = hash((numerator, divisor))
        self._key = ""

    @property
    def key(self) -> str:
        if not self._key:
            self._key = f"~({self.numerator}) {type(self).__name__} ({self.divisor})"
        return self._key

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _Division) and type(other) is type(self)
        return same and self.numerator is other.numerator and self.divisor is other.divisor  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.numerator}, {self.divisor})"


class Div(_Division):
    """numerator // divisor, rounded down."""

    __slots__ = ()


class Mod(_Division):
    """numerator % divisor, in [0, divisor)."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Val:
    """The integer value of a kernel statement."""

    name: str

    @property
    def key(self) -> str:
        return "%" + self.name


Atom = str | Div | Mod | Val
Monomial = tuple[Atom, ...]


def atom_key(a: Atom) -> str:
    return a if isinstance(a, str) else a.key


def quotient_of(m: Monomial, by: Iterable[Atom]) -> Monomial | None:
    """The monomial `m` without the factors `by`; None if it does not have them all."""
    left = list(m)
    for a in by:
        if a not in left:
            return None
        left.remove(a)
    return tuple(left)
