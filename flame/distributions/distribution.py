"""The base of distributions: shapes, sampling, and the check of arguments.

batch_shape   the shape of independent distributions that one object holds
event_shape   the shape of one draw
sample(s)     s + batch_shape + event_shape
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flame.autograd.modes import no_grad
from flame.distributions import constraints
from flame.distributions.constraints import Constraint, is_dependent
from flame.functions import PUBLIC
from flame.tensor import Size, Tensor


class Distribution:
    """A probability distribution. Subclasses give `rsample` or `sample`, `log_prob`, and the moments they have."""

    has_rsample = False
    _validate_args = True
    #: names of parameters and, for each, what must hold
    arg_constraints: dict[str, Constraint] = {}
    #: the values that draws take
    support: Any = None

    def __init__(self, batch_shape: Any = (), event_shape: Any = (), validate_args: bool | None = None):
        self._batch_shape, self._event_shape = Size(batch_shape), Size(event_shape)
        if validate_args is not None:
            self._validate_args = validate_args
        self._check_parameters()

    def _check_parameters(self) -> None:
        for name, constraint in self.arg_constraints.items() if self._validate_args else ():
            v = self.__dict__.get(name)
            if is_dependent(constraint):
                continue
            if isinstance(v, Tensor) and not bool(constraint.check(v).all()):
                raise ValueError(
                    f"Expected parameter {name} (Tensor of shape {tuple(v.shape)}) of distribution {type(self).__name__} to be "
                    f"{constraint.words}, but found invalid values:\n{v}"
                )

    @staticmethod
    def set_default_validate_args(value: bool) -> None:
        """Whether distributions check their arguments unless told otherwise."""
        Distribution._validate_args = bool(value)

    @property
    def batch_shape(self) -> Size:
        return self._batch_shape

    @property
    def event_shape(self) -> Size:
        return self._event_shape

    def _extended_shape(self, sample_shape: Any = ()) -> tuple[int, ...]:
        return (*sample_shape, *self._batch_shape, *self._event_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, through which no gradient flows."""
        with no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws that are differentiable functions of the parameters."""
        raise NotImplementedError(f"{type(self).__name__} has no reparametrised draws: use sample() and log_prob()")

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density (or probability) at `value`."""
        raise NotImplementedError(f"{type(self).__name__}.log_prob is not known")

    def cdf(self, value: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}.cdf is not known")

    def icdf(self, value: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}.icdf is not known")

    def entropy(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}.entropy is not known")

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}.mean is not known")

    @property
    def mode(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no mode")

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}.variance is not known")

    @property
    def stddev(self) -> Tensor:
        return PUBLIC["sqrt"](self.variance)

    def perplexity(self) -> Tensor:
        return PUBLIC["exp"](self.entropy())

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        """This distribution with its parameters expanded to another batch shape (filled into `_instance`, where one is given)."""
        new = object.__new__(type(self)) if _instance is None else _instance
        new.__dict__ |= self.__dict__
        new._batch_shape = Size(batch_shape)
        for k, v in self.__dict__.items():
            if isinstance(v, Tensor) and tuple(v.shape)[: len(self._batch_shape)] == tuple(self._batch_shape):
                tail = tuple(v.shape)[len(self._batch_shape) :]
                new.__dict__[k] = PUBLIC["broadcast_to"](v, (*batch_shape, *tail))
            elif isinstance(v, Distribution):
                new.__dict__[k] = v.expand(batch_shape)
        return new

    def _valid(self, value: Any, support: Callable[[Tensor], Tensor] | None = None, words: str = "") -> None:
        if not self._validate_args:
            return
        if not isinstance(value, Tensor):
            raise ValueError(f"The value argument to log_prob must be a Tensor, but got {type(value).__name__}")
        n = len(self._event_shape)
        if n and tuple(value.shape)[-n:] != tuple(self._event_shape):
            raise ValueError(
                f"The right-most size of value must match event_shape: {tuple(value.shape)} vs {tuple(self._event_shape)}."
            )
        if support is None and self.support is not None:
            support, words = self.support.check, self.support.words
        if support is not None and not bool(support(value).all()):
            raise ValueError(
                f"Expected value argument (Tensor of shape {tuple(value.shape)}) to be within the support ({words}) of the "
                f"distribution {self!r}, but found invalid values:\n{value}"
            )

    def _validate_sample(self, value: Any) -> None:
        """Raises ValueError where densities are asked at what is no tensor, of another shape or outside the support."""
        self._valid(value)

    def _get_checked_instance(self, cls: type, _instance: Any = None) -> Any:
        """An empty object of this class for `expand` to fill in: that of `cls`, or a subclass's that has cls's constructor."""
        if _instance is None and type(self).__init__ is not cls.__init__:  # type: ignore[misc]
            raise NotImplementedError(
                f"Subclass {type(self).__name__} of {cls.__name__} that defines a custom __init__ method must also define a custom "
                ".expand() method."
            )
        return object.__new__(type(self)) if _instance is None else _instance

    def __repr__(self) -> str:
        shown = [
            f"{k}: {v if v.numel() == 1 else tuple(v.shape)}"
            for k in self.arg_constraints
            if isinstance(v := self.__dict__.get(k), Tensor)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


POSITIVE, REAL, UNIT = constraints.positive, constraints.real, constraints.unit_interval
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
