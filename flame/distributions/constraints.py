"""What values of parameters and draws must hold, under torch.distributions.constraints' names.

A constraint says what it is in words, and whether tensors fulfil it (`check`, over the last `event_dim` dimensions as a whole).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flame.functions import PUBLIC
from flame.tensor import Tensor


@dataclass(frozen=True, eq=False)
class Constraint:
    """A set of values."""

    words: str
    holds: Callable[[Tensor], Tensor]
    event_dim: int = 0
    is_discrete: bool = False

    def check(self, value: Tensor) -> Tensor:
        """Whether each value (each event) lies in the set."""
        return self.holds(value)

    def __repr__(self) -> str:
        return f"Constraint({self.words})"


def _whole(v: Tensor) -> Tensor:
    return v == PUBLIC["floor"](v)


real = Constraint("real numbers", lambda v: v == v)
real_vector = Constraint("vectors of real numbers", lambda v: (v == v).all(-1), 1)
positive = Constraint("positive", lambda v: v > 0)
nonnegative = Constraint("not negative", lambda v: v >= 0)
unit_interval = Constraint("in [0, 1]", lambda v: (v >= 0) & (v <= 1))
boolean = Constraint("0 or 1", lambda v: (v == 0) | (v == 1), is_discrete=True)
nonnegative_integer = Constraint("non-negative integers", lambda v: (v >= 0) & _whole(v), is_discrete=True)
positive_integer = Constraint("positive integers", lambda v: (v > 0) & _whole(v), is_discrete=True)
one_hot = Constraint("one-hot vectors", lambda v: ((v == 0) | (v == 1)).all(-1) & (v.sum(-1) == 1), 1, is_discrete=True)
simplex = Constraint("non-negative vectors whose sum is 1", lambda v: (v >= 0).all(-1) & ((v.sum(-1) - 1).abs() < 1e-6), 1)
square = Constraint("square matrices", lambda v: PUBLIC["ones"](tuple(v.shape)[:-2], dtype=(v == v).dtype), 2)
lower_triangular = Constraint("lower triangular matrices", lambda v: (v.tril() == v).flatten(-2).all(-1), 2)
lower_cholesky = Constraint(
    "lower triangular matrices with a positive diagonal",
    lambda v: (v.tril() == v).flatten(-2).all(-1) & (v.diagonal(dim1=-2, dim2=-1) > 0).all(-1),
    2,
)
corr_cholesky = Constraint(
    "lower Cholesky factors of correlation matrices",
    lambda v: lower_cholesky.check(v) & (((v * v).sum(-1) - 1).abs() <= (1e-4 if v.dtype.itemsize == 4 else 1e-8)).all(-1),
    2,
)
symmetric = Constraint("symmetric matrices", lambda v: PUBLIC["isclose"](v, v.mT, atol=1e-6).flatten(-2).all(-1), 2)
positive_definite = Constraint("symmetric matrices with positive eigenvalues", lambda v: _definite(v), 2)


def _definite(v: Tensor) -> Tensor:
    w = PUBLIC["det"]  # (leading minors: enough for what is small, and needs no factorisation that may fail)
    n = v.shape[-1]
    fine = symmetric.check(v)
    for k in range(1, n + 1):
        fine = fine & (w(v[..., :k, :k]) > 0)
    return fine


def greater_than(lower_bound: Any) -> Constraint:
    return Constraint(f"greater than {lower_bound}", lambda v: v > lower_bound)


def greater_than_eq(lower_bound: Any) -> Constraint:
    return Constraint(f"at least {lower_bound}", lambda v: v >= lower_bound)


def less_than(upper_bound: Any) -> Constraint:
    return Constraint(f"less than {upper_bound}", lambda v: v < upper_bound)


def interval(lower_bound: Any, upper_bound: Any) -> Constraint:
    return Constraint(f"between {lower_bound} and {upper_bound}", lambda v: (v >= lower_bound) & (v <= upper_bound))


def half_open_interval(lower_bound: Any, upper_bound: Any) -> Constraint:
    return Constraint(f"from {lower_bound} to below {upper_bound}", lambda v: (v >= lower_bound) & (v < upper_bound))


def integer_interval(lower_bound: Any, upper_bound: Any) -> Constraint:
    return Constraint(
        f"integers from {lower_bound} to {upper_bound}",
        lambda v: _whole(v) & (v >= lower_bound) & (v <= upper_bound),
        is_discrete=True,
    )


def multinomial(upper_bound: Any) -> Constraint:
    return Constraint(
        f"non-negative integers whose sum is {upper_bound}",
        lambda v: ((v >= 0) & _whole(v)).all(-1) & (v.sum(-1) <= upper_bound),
        1,
        is_discrete=True,
    )


def independent(base: Constraint, reinterpreted_batch_ndims: int) -> Constraint:
    """`base`, over that many more dimensions as a whole."""
    n = reinterpreted_batch_ndims

    def holds(v: Tensor) -> Tensor:
        fine = base.check(v)
        return fine.flatten(-n).all(-1) if n else fine

    return Constraint(base.words, holds, base.event_dim + n, base.is_discrete)
