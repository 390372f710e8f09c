"""Distributions of whole numbers and of classes, and several distributions as one."""

from __future__ import annotations

import math
from typing import Any

from flame.distributions import constraints
from flame.distributions.distribution import REAL, UNIT, Distribution
from flame.distributions.utils import broadcast_all, probs_to_logits
from flame.functions import PUBLIC
from flame.functions.random import bernoulli, multinomial, uniform
from flame.tensor import Size, Tensor

log, where = PUBLIC["log"], PUBLIC["where"]


def _one_of(probs: Any, logits: Any) -> None:
    if (probs is None) == (logits is None):
        raise ValueError("Either `probs` or `logits` must be specified, but not both.")


class _Binary(Distribution):
    """A parameter in [0, 1], as probability or as log-odds."""

    arg_constraints = {"probs": UNIT, "logits": REAL}

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        _one_of(probs, logits)
        (given,) = broadcast_all(probs if logits is None else logits)
        self.__dict__["probs" if logits is None else "logits"] = given
        super().__init__(given.shape, (), validate_args)

    def __getattr__(self, name: str) -> Any:
        if name == "probs" and "logits" in self.__dict__:
            return PUBLIC["sigmoid"](self.logits)
        if name == "logits" and "probs" in self.__dict__:
            return probs_to_logits(self.probs, is_binary=True)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class Bernoulli(_Binary):
    """1 with probability `probs`, else 0."""

    support = constraints.boolean

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        p = self.probs
        return where(p == 0.5, math.nan, (p >= 0.5).to(p.dtype))

    @property
    def variance(self) -> Tensor:
        return self.probs * (1.0 - self.probs)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        p = PUBLIC["broadcast_to"](self.probs.detach(), self._extended_shape(sample_shape))
        return bernoulli(p)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        x = self.logits
        return value * x - PUBLIC["clamp"](x, min=0.0) - PUBLIC["log1p"](PUBLIC["exp"](-PUBLIC["abs"](x)))

    def entropy(self) -> Tensor:
        x, p = self.logits, self.probs
        return PUBLIC["clamp"](x, min=0.0) + PUBLIC["log1p"](PUBLIC["exp"](-PUBLIC["abs"](x))) - x * p


class Geometric(_Binary):
    """Failures before the first success: 0, 1, 2, ..."""

    support = constraints.nonnegative_integer

    @property
    def mean(self) -> Tensor:
        return 1.0 / self.probs - 1.0

    @property
    def mode(self) -> Tensor:
        return PUBLIC["zeros_like"](self.probs)

    @property
    def variance(self) -> Tensor:
        return (1.0 / self.probs - 1.0) / self.probs

    def sample(self, sample_shape: Any = ()) -> Tensor:
        p = self.probs.detach()
        u = uniform(self._extended_shape(sample_shape), p.dtype)
        return PUBLIC["floor"](PUBLIC["log1p"](-u) / PUBLIC["log1p"](-p))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        p = self.probs
        return PUBLIC["xlogy"](value, 1.0 - p) + log(p)

    def entropy(self) -> Tensor:
        return Bernoulli(probs=self.probs, validate_args=False).entropy() / self.probs


class Categorical(Distribution):
    """Classes 0 to n - 1, with the probabilities of the last dimension of `probs` (any weights), or of `logits`."""

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        _one_of(probs, logits)
        given = probs if logits is None else logits
        if not isinstance(given, Tensor) or given.ndim < 1:
            raise ValueError(f"`{'probs' if logits is None else 'logits'}` parameter must be at least one-dimensional.")
        check = self._validate_args if validate_args is None else validate_args
        if logits is None:
            if check and not (bool((given >= 0).all()) and bool((given.sum(-1) > 0).all())):
                raise ValueError(
                    f"Expected parameter probs (Tensor of shape {tuple(given.shape)}) of distribution Categorical to be "
                    f"non-negative with a positive sum, but found invalid values:\n{given}"
                )
            self.probs = given / given.sum(-1, keepdim=True)
            self._given = "probs"
        else:
            if check and not bool((given == given).all()):
                raise ValueError(
                    f"Expected parameter logits of distribution Categorical to be real numbers, but found:\n{given}"
                )
            self.logits = given - PUBLIC["logsumexp"](given, -1, True)
            self._given = "logits"
        self._param = self.__dict__[self._given]
        self._num_events = given.shape[-1]
        super().__init__(tuple(given.shape)[:-1], (), validate_args)

    def __getattr__(self, name: str) -> Any:
        if name == "probs" and "logits" in self.__dict__:
            return PUBLIC["exp"](self.logits)
        if name == "logits" and "probs" in self.__dict__:
            return probs_to_logits(self.probs)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self._num_events - 1)

    @property
    def mean(self) -> Tensor:
        return PUBLIC["full"](tuple(self._batch_shape), math.nan, dtype=self._param.dtype)

    @property
    def variance(self) -> Tensor:
        return self.mean

    @property
    def mode(self) -> Tensor:
        return PUBLIC["argmax"](self._param, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        rows = self.probs.detach().reshape(-1, self._num_events)
        n = math.prod(sample_shape)
        if n == 0 or rows.shape[0] == 0:
            return PUBLIC["zeros"](self._extended_shape(sample_shape), dtype=PUBLIC["arange"](0).dtype)
        return multinomial(rows, n, True).T.reshape(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        x = self.logits
        index = value.long().unsqueeze(-1)
        shape = PUBLIC["broadcast_shapes"](tuple(index.shape)[:-1], tuple(x.shape)[:-1])
        index = PUBLIC["broadcast_to"](index, (*shape, 1))
        x = PUBLIC["broadcast_to"](x, (*shape, self._num_events))
        return PUBLIC["gather"](x, -1, index).squeeze(-1)

    def entropy(self) -> Tensor:
        least = -3.4028234663852886e38 if self._param.dtype.itemsize == 4 else -1.7976931348623157e308
        x = PUBLIC["clamp"](self.logits, min=least) if self._param.dtype.itemsize >= 4 else self.logits
        return -(x * self.probs).sum(-1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._given}: {tuple(self._param.shape)})"


class OneHotCategorical(Distribution):
    """Categorical, with one-hot vectors for classes."""

    support = constraints.one_hot

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        self._categorical = Categorical(probs, logits, validate_args)
        super().__init__(self._categorical.batch_shape, (self._categorical._num_events,), validate_args)

    @property
    def probs(self) -> Tensor:
        return self._categorical.probs

    @property
    def logits(self) -> Tensor:
        return self._categorical.logits

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        return PUBLIC["one_hot"](self._categorical.mode, self._categorical._num_events).to(self.probs.dtype)

    @property
    def variance(self) -> Tensor:
        return self.probs * (1.0 - self.probs)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        index = self._categorical.sample(sample_shape)
        return PUBLIC["one_hot"](index, self._categorical._num_events).to(self.probs.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        return self._categorical.log_prob(PUBLIC["argmax"](value, -1))

    def entropy(self) -> Tensor:
        return self._categorical.entropy()


class Independent(Distribution):
    """A distribution whose last batch dimensions are read as part of the event: log-probabilities are summed over them."""

    def __init__(self, base_distribution: Distribution, reinterpreted_batch_ndims: int, validate_args: bool | None = None):
        n = len(base_distribution.batch_shape)
        if reinterpreted_batch_ndims > n:
            raise ValueError(
                "Expected reinterpreted_batch_ndims <= len(base_distribution.batch_shape), actual "
                f"{reinterpreted_batch_ndims} vs {n}"
            )
        self.base_dist = base_distribution
        self.reinterpreted_batch_ndims = reinterpreted_batch_ndims
        shape = tuple(base_distribution.batch_shape) + tuple(base_distribution.event_shape)
        cut = n - reinterpreted_batch_ndims
        super().__init__(Size(shape[:cut]), Size(shape[cut:]), validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(self.base_dist.support, self.reinterpreted_batch_ndims)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        cut = tuple(self._event_shape)[: self.reinterpreted_batch_ndims]
        new = object.__new__(type(self)) if _instance is None else _instance
        new.__dict__ |= self.__dict__ | {"base_dist": self.base_dist.expand((*batch_shape, *cut))}
        new._batch_shape = Size(batch_shape)
        return new

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def mode(self) -> Tensor:
        return self.base_dist.mode

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def _summed(self, x: Tensor) -> Tensor:
        k = self.reinterpreted_batch_ndims
        return x.sum(tuple(range(x.ndim - k, x.ndim))) if k else x

    def log_prob(self, value: Tensor) -> Tensor:
        return self._summed(self.base_dist.log_prob(value))

    def entropy(self) -> Tensor:
        return self._summed(self.base_dist.entropy())

    def __repr__(self) -> str:
        return f"Independent({self.base_dist}, {self.reinterpreted_batch_ndims})"
