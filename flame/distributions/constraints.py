"""What values of parameters and draws must hold, under torch.distributions.constraints' names.

A constraint says what it is in words, and whether tensors fulfil it (`check`, over the last `event_dim` dimensions as a whole).
Each set is a class of its own, so that a registry (`constraint_registry`) can find a transform by it; sets without parameters are
there as their one instance (`positive`), the others as their class (`greater_than(2.0)`). A set of your own is a subclass of
Constraint with a `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flame.functions import PUBLIC
from flame.linalg import eigvalsh
from flame.tensor import Tensor


class Constraint:
    """A set of values. Subclasses give `check`."""

    is_discrete: Any = False  #: is the set countable?
    event_dim: Any = 0  #: how many of the last dimensions are one value

    @property
    def words(self) -> str:
        """The set as it is named in errors."""
        return repr(self)

    def check(self, value: Tensor) -> Tensor:
        """Whether each value (each event) lies in the set: bool, of value's shape less the last `event_dim` dimensions."""
        raise NotImplementedError(f"{type(self).__name__}.check is not known")

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}()"


def _with_bounds(self: Constraint) -> str:
    return f"{type(self).__name__.lstrip('_')}({', '.join(f'{k}={v}' for k, v in self.__dict__.items())})"


def _plain(name: str, words: str, holds: Callable[[Tensor], Any], event_dim: int = 0, is_discrete: bool = False) -> Constraint:
    """The one instance of a new class for a set without parameters."""
    cells = {"words": words, "check": staticmethod(holds), "event_dim": event_dim, "is_discrete": is_discrete}
    made = type(f"_{name}", (Constraint,), {"__doc__": f"{words.capitalize()}.", "__module__": __name__, **cells})
    globals()[made.__name__] = made  # (so that it can be pickled)
    return made()


def _whole(v: Tensor) -> Tensor:
    return v == PUBLIC["floor"](v)


def _definite(v: Tensor) -> Tensor:
    w = PUBLIC["det"]  # (leading minors: enough for what is small, and needs no factorisation that may fail)
    n = v.shape[-1]
    fine = symmetric.check(v)
    for k in range(1, n + 1):
        fine = fine & (w(v[..., :k, :k]) > 0)
    return fine


def _not_negative(v: Tensor) -> Tensor:
    return symmetric.check(v) & (eigvalsh(v) >= 0).all(-1)


real = _plain("Real", "real numbers", lambda v: v == v)
boolean = _plain("Boolean", "0 or 1", lambda v: (v == 0) | (v == 1), is_discrete=True)
one_hot = _plain("OneHot", "one-hot vectors", lambda v: ((v == 0) | (v == 1)).all(-1) & (v.sum(-1) == 1), 1, is_discrete=True)
simplex = _plain(
    "Simplex", "non-negative vectors whose sum is 1", lambda v: (v >= 0).all(-1) & ((v.sum(-1) - 1).abs() < 1e-6), 1
)
square = _plain(
    "Square",
    "square matrices",
    lambda v: PUBLIC["full"](tuple(v.shape)[:-2], v.shape[-1] == v.shape[-2], dtype=(v == v).dtype),
    2,
)
lower_triangular = _plain("LowerTriangular", "lower triangular matrices", lambda v: (v.tril() == v).flatten(-2).all(-1), 2)
lower_cholesky = _plain(
    "LowerCholesky",
    "lower triangular matrices with a positive diagonal",
    lambda v: (v.tril() == v).flatten(-2).all(-1) & (v.diagonal(dim1=-2, dim2=-1) > 0).all(-1),
    2,
)
corr_cholesky = _plain(
    "CorrCholesky",
    "lower Cholesky factors of correlation matrices",
    lambda v: lower_cholesky.check(v) & (((v * v).sum(-1) - 1).abs() <= (1e-4 if v.dtype.itemsize == 4 else 1e-8)).all(-1),
    2,
)
symmetric = _plain("Symmetric", "symmetric matrices", lambda v: PUBLIC["isclose"](v, v.mT, atol=1e-6).flatten(-2).all(-1), 2)
positive_definite = _plain("PositiveDefinite", "symmetric matrices with positive eigenvalues", _definite, 2)
positive_semidefinite = _plain("PositiveSemidefinite", "symmetric matrices without negative eigenvalues", _not_negative, 2)


class _Above(Constraint):
    """Numbers bounded from below."""

    def __init__(self, lower_bound: Any):
        self.lower_bound = lower_bound

    __repr__ = _with_bounds


class _GreaterThan(_Above):
    @property
    def words(self) -> str:
        return f"greater than {self.lower_bound}"

    def check(self, value: Tensor) -> Tensor:
        return self.lower_bound < value


class _GreaterThanEq(_Above):
    @property
    def words(self) -> str:
        return f"at least {self.lower_bound}"

    def check(self, value: Tensor) -> Tensor:
        return self.lower_bound <= value


class _LessThan(Constraint):
    def __init__(self, upper_bound: Any):
        self.upper_bound = upper_bound

    __repr__ = _with_bounds

    @property
    def words(self) -> str:
        return f"less than {self.upper_bound}"

    def check(self, value: Tensor) -> Tensor:
        return value < self.upper_bound


class _Between(_Above):
    """Numbers bounded from both sides."""

    def __init__(self, lower_bound: Any, upper_bound: Any):
        super().__init__(lower_bound)
        self.upper_bound = upper_bound

    @property
    def words(self) -> str:
        return f"between {self.lower_bound} and {self.upper_bound}"

    def check(self, value: Tensor) -> Tensor:
        return (self.lower_bound <= value) & (value <= self.upper_bound)


class _Interval(_Between):
    pass


class _HalfOpenInterval(_Between):
    @property
    def words(self) -> str:
        return f"from {self.lower_bound} to below {self.upper_bound}"

    def check(self, value: Tensor) -> Tensor:
        return (self.lower_bound <= value) & (value < self.upper_bound)


class _IntegerInterval(_Between):
    is_discrete = True

    @property
    def words(self) -> str:
        return f"integers from {self.lower_bound} to {self.upper_bound}"

    def check(self, value: Tensor) -> Tensor:
        return _whole(value) & super().check(value)


class _IntegerGreaterThan(_Above):
    is_discrete = True

    @property
    def words(self) -> str:
        return f"integers of at least {self.lower_bound}"

    def check(self, value: Tensor) -> Tensor:
        return _whole(value) & (value >= self.lower_bound)


class _Multinomial(Constraint):
    """Counts of at most `upper_bound` in all."""

    is_discrete = True
    event_dim = 1

    def __init__(self, upper_bound: Any):
        self.upper_bound = upper_bound

    @property
    def words(self) -> str:
        return f"counts whose sum is at most {self.upper_bound}"

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0).all(-1) & (value.sum(-1) <= self.upper_bound)


class _IndependentConstraint(Constraint):
    """`base_constraint`, over `reinterpreted_batch_ndims` more dimensions as a whole."""

    def __init__(self, base_constraint: Constraint, reinterpreted_batch_ndims: int):
        if not isinstance(base_constraint, Constraint) or reinterpreted_batch_ndims < 0:
            raise ValueError(
                f"independent: expected a Constraint and a number of dimensions >= 0, got {base_constraint!r} and "
                f"{reinterpreted_batch_ndims!r}"
            )
        self.base_constraint, self.reinterpreted_batch_ndims = base_constraint, reinterpreted_batch_ndims

    @property
    def words(self) -> str:
        return self.base_constraint.words

    @property
    def is_discrete(self) -> Any:  # type: ignore[override]
        return self.base_constraint.is_discrete

    @property
    def event_dim(self) -> Any:  # type: ignore[override]
        return self.base_constraint.event_dim + self.reinterpreted_batch_ndims

    def __repr__(self) -> str:
        return f"IndependentConstraint({self.base_constraint!r}, {self.reinterpreted_batch_ndims})"

    def check(self, value: Tensor) -> Tensor:
        fine, n = self.base_constraint.check(value), self.reinterpreted_batch_ndims
        if fine.ndim < n:
            raise ValueError(f"Expected value.dim() >= {self.event_dim} but got {value.dim()}")
        return fine.flatten(-n).all(-1) if n else fine


class MixtureSameFamilyConstraint(Constraint):
    """The set of a mixture's components, for values without the dimension that counts the components."""

    def __init__(self, base_constraint: Constraint):
        if not isinstance(base_constraint, Constraint):
            raise ValueError(f"base_constraint: expected a Constraint, got {base_constraint!r}")
        self.base_constraint = base_constraint

    def __repr__(self) -> str:
        return f"MixtureSameFamilyConstraint({self.base_constraint!r})"

    @property
    def words(self) -> str:
        return self.base_constraint.words

    @property
    def is_discrete(self) -> Any:  # type: ignore[override]
        return self.base_constraint.is_discrete

    @property
    def event_dim(self) -> Any:  # type: ignore[override]
        return self.base_constraint.event_dim

    def check(self, value: Tensor) -> Tensor:
        """Whether each value lies in the set of every component."""
        n = self.event_dim
        if value.ndim < n:
            raise ValueError(f"Expected value.dim() >= {n} but got {value.ndim}")
        each = self.base_constraint.check(value.unsqueeze(-1 - n))
        at = value.ndim - n
        return each.flatten(at).all(-1) if each.ndim > at else each


class _Several(Constraint):
    """A constraint for each part of a dimension."""

    def __init__(self, cseq: Sequence[Constraint], dim: int):
        if not all(isinstance(c, Constraint) for c in cseq):
            raise ValueError(f"cseq: expected Constraints, got {list(cseq)!r}")
        self.cseq, self.dim = list(cseq), dim

    @property
    def is_discrete(self) -> Any:  # type: ignore[override]
        return any(c.is_discrete for c in self.cseq)


class _Cat(_Several):
    """`cseq[i]` holds for the next lengths[i] positions of dimension `dim`."""

    def __init__(self, cseq: Sequence[Constraint], dim: int = 0, lengths: Sequence[int] | None = None):
        super().__init__(cseq, dim)
        self.lengths = [1] * len(self.cseq) if lengths is None else list(lengths)
        if len(self.lengths) != len(self.cseq):
            raise ValueError(f"cat: {len(self.cseq)} constraints, but {len(self.lengths)} lengths")

    @property
    def event_dim(self) -> Any:  # type: ignore[override]
        return max(c.event_dim for c in self.cseq)

    def check(self, value: Tensor) -> Tensor:
        parts = PUBLIC["split"](value, self.lengths, self.dim)
        return PUBLIC["cat"]([c.check(v) for c, v in zip(self.cseq, parts, strict=True)], self.dim)


class _Stack(_Several):
    """`cseq[i]` holds at position i of dimension `dim`."""

    def __init__(self, cseq: Sequence[Constraint], dim: int = 0):
        super().__init__(cseq, dim)

    @property
    def event_dim(self) -> Any:  # type: ignore[override]
        n = max(c.event_dim for c in self.cseq)
        return n + 1 if self.dim + n < 0 else n

    def check(self, value: Tensor) -> Tensor:
        rows = PUBLIC["unbind"](value, self.dim)
        return PUBLIC["stack"]([c.check(v) for c, v in zip(self.cseq, rows, strict=True)], self.dim)


class _Dependent(Constraint):
    """A set that other parameters decide: it is known of an instance alone."""

    def __init__(self, *, is_discrete: Any = NotImplemented, event_dim: Any = NotImplemented):
        self._is_discrete, self._event_dim = is_discrete, event_dim

    def _known(self, what: str) -> Any:
        found = getattr(self, f"_{what}")
        if found is NotImplemented:
            raise NotImplementedError(f".{what} cannot be determined statically")
        return found

    @property
    def is_discrete(self) -> Any:  # type: ignore[override]
        return self._known("is_discrete")

    @property
    def event_dim(self) -> Any:  # type: ignore[override]
        return self._known("event_dim")

    def __call__(self, *, is_discrete: Any = NotImplemented, event_dim: Any = NotImplemented) -> _Dependent:
        """The same, with what is known of it already."""
        return _Dependent(
            is_discrete=self._is_discrete if is_discrete is NotImplemented else is_discrete,
            event_dim=self._event_dim if event_dim is NotImplemented else event_dim,
        )

    def check(self, value: Tensor) -> Tensor:
        raise ValueError("Cannot determine validity of dependent constraint")

    def __repr__(self) -> str:
        return "Dependent()"


class _DependentProperty(property, _Dependent):
    """A property that gives a constraint; read of the class it is a dependent constraint itself."""

    def __init__(
        self, fn: Callable[[Any], Any] | None = None, *, is_discrete: Any = NotImplemented, event_dim: Any = NotImplemented
    ):
        property.__init__(self, fn)
        _Dependent.__init__(self, is_discrete=is_discrete, event_dim=event_dim)

    def __call__(self, fn: Callable[[Any], Any]) -> _DependentProperty:  # type: ignore[override]
        return _DependentProperty(fn, is_discrete=self._is_discrete, event_dim=self._event_dim)


def is_dependent(constraint: Any) -> bool:
    """Is a set known only once other parameters are?"""
    return isinstance(constraint, _Dependent)


greater_than, greater_than_eq, less_than = _GreaterThan, _GreaterThanEq, _LessThan
interval, half_open_interval, integer_interval = _Interval, _HalfOpenInterval, _IntegerInterval
multinomial, independent, cat, stack = _Multinomial, _IndependentConstraint, _Cat, _Stack
dependent, dependent_property = _Dependent(), _DependentProperty
real_vector = independent(real, 1)
positive, nonnegative, unit_interval = greater_than(0.0), greater_than_eq(0.0), interval(0.0, 1.0)
nonnegative_integer, positive_integer = _IntegerGreaterThan(0), _IntegerGreaterThan(1)

__all__ = [
    "Constraint", "MixtureSameFamilyConstraint", "boolean", "cat", "corr_cholesky", "dependent", "dependent_property",
    "greater_than", "greater_than_eq", "half_open_interval", "independent", "integer_interval", "interval", "is_dependent",
    "less_than", "lower_cholesky", "lower_triangular", "multinomial", "nonnegative", "nonnegative_integer", "one_hot", "positive",
    "positive_definite", "positive_integer", "positive_semidefinite", "real", "real_vector", "simplex", "square", "stack",
    "symmetric", "unit_interval",
]  # fmt: skip
