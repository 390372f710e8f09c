"""How a structural primitive is read, one element at a time: the words that `Primitive.lower` answers in.

A kernel is made by pulling: to know one element of a result, ask which elements of the operands it comes from. An index is a
tuple of integer expressions (`E`, made by `flame.compiler.index_math`: they know + - * // % with ints and each other; here
they are only handled). `lower` is a function of the record and answers with one of:

    movement, index   lower(at, index, *specs, **params) -> Read
    reduce            Reduction(op)                          params: dim (sorted, non-negative), keepdim
    contract          lower(index, *specs, **params) -> Contraction
    create, random    lower(at, index, **params) -> a kernel value made with `at`

`at` is the lowering in progress (`At` below). Specs are those of the operands; a number operand is passed as itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

E = Any  # an integer expression
Index = tuple[E, ...]


@dataclass(frozen=True, slots=True)
class Cond:
    """`expr >= 0` (kind "ge") or `expr == 0` (kind "eq")."""

    expr: E
    kind: str = "ge"


@dataclass(frozen=True, slots=True)
class Choice:
    """Operand number `operand` at `index`, where every condition holds."""

    operand: int
    index: Index
    conds: tuple[Cond, ...] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """The first choice whose conditions hold; `fill` (of the result's dtype) where none does.

    A choice is only evaluated where its conditions hold, so its index may be out of range elsewhere. A permutation is one
    choice without conditions; padding is one with; concatenation is several.
    """

    choices: tuple[Choice, ...]
    fill: bool | int | float = 0


@dataclass(frozen=True, slots=True)
class Reduction:
    """A monoid over the dimensions `dim`. op: sum | prod | max | min | any | all | argmax | argmin.

    max and min carry NaN; arg reductions give the first index of the extreme (NaN counts as the extreme), as int64, counted
    along the flattened reduced dimensions (there is one, or all of them).
    """

    op: str


@dataclass(frozen=True, slots=True)
class Contraction:
    """sum over the axes of left * right: products unrounded, carried in the accumulator of the operands' dtype.

    `extents` are the sizes of the summed axes; `left` and `right` take the tuple of their expressions and give the element
    of operand 0 and of operand 1, under conditions (elsewhere the factor is 0).
    """

    extents: tuple[int, ...]
    left: Callable[[Index], Choice]
    right: Callable[[Index], Choice]


class At(Protocol):
    """What a `lower` may ask of the lowering in progress."""

    def load_index(self, operand: int, index: Index, extent: int) -> E:
        """The integer element of an operand as an expression in [0, extent); a negative one counts from the end.

        Bounds were checked by whoever made the indices (eagerly, or by the check that runs before the kernel).
        """

    def value(self, operand: int, index: Index) -> Any:
        """An element of an operand (or the number it is) as a kernel value."""

    def index_value(self, expr: E, dtype: Any) -> Any:
        """An integer expression as a kernel value of that dtype."""

    def const(self, value: bool | int | float, dtype: Any) -> Any:
        """A constant as a kernel value."""

    def op(self, name: str, *values: Any, dtype: Any) -> Any:
        """The kernel value of a basic operation, or of an elementwise primitive that has a `Scalar`, on kernel values."""
