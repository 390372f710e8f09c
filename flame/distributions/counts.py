"""Distributions of counts: Poisson, binomial, negative binomial, multinomial."""

from __future__ import annotations

from typing import Any

from flame.distributions import constraints
from flame.distributions.discrete import Categorical, _Binary, _one_of
from flame.distributions.distribution import Distribution
from flame.distributions.gamma import drawn_gamma
from flame.distributions.utils import broadcast_all
from flame.functions import PUBLIC
from flame.functions.random import binomial, poisson
from flame.tensor import Tensor

log, lgamma, xlogy = PUBLIC["log"], PUBLIC["lgamma"], PUBLIC["xlogy"]


def _soft(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return PUBLIC["clamp"](x, min=0.0) + PUBLIC["log1p"](PUBLIC["exp"](-PUBLIC["abs"](x)))


class Poisson(Distribution):
    """How often what happens `rate` times on average happens."""

    arg_constraints = {"rate": constraints.nonnegative}
    support = constraints.nonnegative_integer

    def __init__(self, rate: Any, validate_args: bool | None = None):
        (self.rate,) = broadcast_all(rate)
        super().__init__(self.rate.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        return self.rate

    @property
    def mode(self) -> Tensor:
        return PUBLIC["floor"](self.rate)

    @property
    def variance(self) -> Tensor:
        return self.rate

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return poisson(PUBLIC["broadcast_to"](self.rate.detach(), self._extended_shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        return xlogy(value, self.rate) - self.rate - lgamma(value + 1.0)

    def cdf(self, value: Tensor) -> Tensor:
        return PUBLIC["igammac"](
            PUBLIC["floor"](value) + 1.0, PUBLIC["broadcast_to"](self.rate, tuple((value + self.rate).shape))
        )


class _Trials(_Binary):
    """A number of trials besides a probability or log-odds."""

    def __init__(self, total_count: Any, probs: Any, logits: Any, validate_args: bool | None):
        _one_of(probs, logits)
        given = probs if logits is None else logits
        n, given = broadcast_all(total_count, given)
        self.total_count = n.to(given.dtype) if n.dtype is not given.dtype else n
        super().__init__(given if logits is None else None, None if logits is None else given, validate_args)


class Binomial(_Trials):
    """How many of `total_count` trials succeed."""

    arg_constraints = _Binary.arg_constraints | {"total_count": constraints.nonnegative_integer}

    def __init__(self, total_count: Any = 1, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        super().__init__(total_count, probs, logits, validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.total_count)

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.probs

    @property
    def mode(self) -> Tensor:
        return PUBLIC["minimum"](PUBLIC["floor"]((self.total_count + 1.0) * self.probs), self.total_count)

    @property
    def variance(self) -> Tensor:
        return self.total_count * self.probs * (1.0 - self.probs)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return binomial(*(PUBLIC["broadcast_to"](x.detach(), shape) for x in (self.total_count, self.probs)))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        n, x = self.total_count, self.logits
        return value * x - n * _soft(x) + lgamma(n + 1.0) - lgamma(value + 1.0) - lgamma(n - value + 1.0)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values, 0 to total_count, as a first dimension. Raises NotImplementedError where total_count differs."""
        most = self.total_count.max()
        if not bool((self.total_count == most).all()):
            raise NotImplementedError("Inhomogeneous total count not supported by `enumerate_support`.")
        values = PUBLIC["arange"](int(most) + 1).to(self.total_count.dtype)
        values = values.reshape(-1, *[1] * len(self._batch_shape))
        return PUBLIC["broadcast_to"](values, (values.shape[0], *self._batch_shape)) if expand else values

    def entropy(self) -> Tensor:
        """Summed over all values, which takes one total_count."""
        values = self.enumerate_support(False)
        p = Binomial(self.total_count, logits=self.logits, validate_args=False).log_prob(values)
        return -(PUBLIC["exp"](p) * p).sum(0)


class NegativeBinomial(_Trials):
    """How many successes come before `total_count` failures."""

    arg_constraints = {"total_count": constraints.nonnegative, "probs": constraints.half_open_interval(0.0, 1.0),
                       "logits": constraints.real}  # fmt: skip
    support = constraints.nonnegative_integer

    def __init__(self, total_count: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        super().__init__(total_count, probs, logits, validate_args)

    @property
    def mean(self) -> Tensor:
        return self.total_count * PUBLIC["exp"](self.logits)

    @property
    def mode(self) -> Tensor:
        return PUBLIC["clamp"](PUBLIC["floor"]((self.total_count - 1.0) * PUBLIC["exp"](self.logits)), min=0.0)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1.0 + PUBLIC["exp"](self.logits))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        rate = drawn_gamma(self.total_count.detach(), self._extended_shape(sample_shape)) * PUBLIC["exp"](self.logits.detach())
        return poisson(rate)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        n, x = self.total_count, self.logits
        norm = lgamma(n + value) - lgamma(value + 1.0) - lgamma(n)
        norm = PUBLIC["where"](n + value == 0, 0.0, norm)
        return -n * _soft(x) - value * _soft(-x) + norm


class Multinomial(Distribution):
    """How often each class comes in `total_count` draws."""

    total_count: int

    def __init__(self, total_count: int = 1, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        if not isinstance(total_count, int):
            raise NotImplementedError("inhomogeneous total_count is not supported")
        self.total_count = total_count
        self._categorical = Categorical(probs, logits, validate_args)
        super().__init__(self._categorical.batch_shape, (self._categorical._num_events,), validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.multinomial(self.total_count)

    @property
    def probs(self) -> Tensor:
        return self._categorical.probs

    @property
    def logits(self) -> Tensor:
        return self._categorical.logits

    @property
    def mean(self) -> Tensor:
        return self.probs * float(self.total_count)

    @property
    def variance(self) -> Tensor:
        return self.probs * (1.0 - self.probs) * float(self.total_count)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        index = self._categorical.sample((self.total_count, *sample_shape))
        return PUBLIC["one_hot"](index, self._categorical._num_events).sum(0).to(self.probs.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        x = PUBLIC["where"]((value == 0) & (self.logits == -float("inf")), 0.0, self.logits)
        return lgamma(value.sum(-1) + 1.0) - lgamma(value + 1.0).sum(-1) + (x * value).sum(-1)

    def entropy(self) -> Tensor:
        n = PUBLIC["tensor"](float(self.total_count), dtype=self.probs.dtype)
        values = PUBLIC["arange"](1, self.total_count + 1).to(self.probs.dtype).reshape(-1, *[1] * self.probs.ndim)
        p = PUBLIC["exp"](Binomial(float(self.total_count), probs=self.probs, validate_args=False).log_prob(values))
        return n * self._categorical.entropy() - lgamma(n + 1.0) + (p * lgamma(values + 1.0)).sum((0, -1))

    def __repr__(self) -> str:
        return f"Multinomial(total_count: {self.total_count}, probs: {tuple(self.probs.shape)})"
