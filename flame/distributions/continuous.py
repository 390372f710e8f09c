"""Distributions of real numbers, and of vectors of them."""

from __future__ import annotations

import math
from typing import Any

from flame.distributions import constraints
from flame.distributions.covariance import covariance_factor
from flame.distributions.distribution import HALF_LOG_TWO_PI, POSITIVE, REAL, Distribution
from flame.distributions.utils import broadcast_all
from flame.functions import PUBLIC
from flame.functions.random import gaussian, uniform
from flame.linalg import solve_triangular
from flame.primitive import broadcast_shapes
from flame.tensor import Tensor

log, exp, where = PUBLIC["log"], PUBLIC["exp"], PUBLIC["where"]


class _LocationScale(Distribution):
    """loc + scale * a standard draw."""

    has_rsample = True
    support = constraints.real
    arg_constraints = {"loc": REAL, "scale": POSITIVE}

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    def _standard(self, value: Tensor) -> Tensor:
        self._valid(value)
        return (value - self.loc) / self.scale

    def _uniform(self, sample_shape: Any) -> Tensor:
        """In (0, 1): neither end is drawn."""
        u = uniform(self._extended_shape(sample_shape), self.loc.dtype)
        return u + 2.0**-26


class Normal(_LocationScale):
    """The normal distribution of mean `loc` and standard deviation `scale`."""

    @property
    def stddev(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        return self.scale * self.scale

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + gaussian(self._extended_shape(sample_shape), self.loc.dtype) * self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        z = self._standard(value)
        return z * z * -0.5 - log(self.scale) - HALF_LOG_TWO_PI

    def cdf(self, value: Tensor) -> Tensor:
        return (PUBLIC["erf"](self._standard(value) * math.sqrt(0.5)) + 1.0) * 0.5

    def icdf(self, value: Tensor) -> Tensor:
        return self.loc + self.scale * PUBLIC["erfinv"](value * 2.0 - 1.0) * math.sqrt(2)

    def entropy(self) -> Tensor:
        return log(self.scale) + (0.5 + HALF_LOG_TWO_PI)


class Laplace(_LocationScale):
    """The Laplace distribution: two exponentials, back to back."""

    @property
    def variance(self) -> Tensor:
        return self.scale * self.scale * 2.0

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        u = self._uniform(sample_shape) * 2.0 - 1.0
        return self.loc - self.scale * PUBLIC["sign"](u) * PUBLIC["log1p"](-PUBLIC["clamp"](PUBLIC["abs"](u), max=1 - 2.0**-24))

    def log_prob(self, value: Tensor) -> Tensor:
        return -log(self.scale * 2.0) - PUBLIC["abs"](self._standard(value))

    def cdf(self, value: Tensor) -> Tensor:
        z = self._standard(value)
        return PUBLIC["sign"](z) * PUBLIC["expm1"](-PUBLIC["abs"](z)) * -0.5 + 0.5

    def icdf(self, value: Tensor) -> Tensor:
        t = value - 0.5
        return self.loc - self.scale * PUBLIC["sign"](t) * PUBLIC["log1p"](PUBLIC["abs"](t) * -2.0)

    def entropy(self) -> Tensor:
        return log(self.scale * 2.0) + 1.0


class Gumbel(_LocationScale):
    """The Gumbel distribution, of the largest of many."""

    @property
    def mean(self) -> Tensor:
        return self.loc + self.scale * 0.57721566490153286

    @property
    def variance(self) -> Tensor:
        return self.scale * self.scale * (math.pi**2 / 6)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc - self.scale * log(-log(PUBLIC["clamp"](self._uniform(sample_shape), max=1 - 2.0**-24)))

    def log_prob(self, value: Tensor) -> Tensor:
        z = self._standard(value)
        return -z - exp(-z) - log(self.scale)

    def cdf(self, value: Tensor) -> Tensor:
        return exp(-exp(-self._standard(value)))

    def entropy(self) -> Tensor:
        return log(self.scale) + 1.57721566490153286


class Cauchy(_LocationScale):
    """The Cauchy distribution; it has no mean."""

    @property
    def mean(self) -> Tensor:
        return PUBLIC["full_like"](self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        return PUBLIC["full_like"](self.loc, math.inf)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * PUBLIC["tan"]((self._uniform(sample_shape) - 0.5) * math.pi)

    def log_prob(self, value: Tensor) -> Tensor:
        z = self._standard(value)
        return -math.log(math.pi) - log(self.scale) - PUBLIC["log1p"](z * z)

    def cdf(self, value: Tensor) -> Tensor:
        return PUBLIC["atan"](self._standard(value)) * (1 / math.pi) + 0.5

    def entropy(self) -> Tensor:
        return log(self.scale) + math.log(4 * math.pi)


class LogNormal(_LocationScale):
    """exp of a normal distribution."""

    support = constraints.positive

    @property
    def mean(self) -> Tensor:
        return exp(self.loc + self.scale * self.scale * 0.5)

    @property
    def mode(self) -> Tensor:
        return exp(self.loc - self.scale * self.scale)

    @property
    def variance(self) -> Tensor:
        s = self.scale * self.scale
        return PUBLIC["expm1"](s) * exp(self.loc * 2.0 + s)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return exp(Normal(self.loc, self.scale, False).rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        return Normal(self.loc, self.scale, False).log_prob(log(value)) - log(value)

    def cdf(self, value: Tensor) -> Tensor:
        return Normal(self.loc, self.scale, False).cdf(log(value))

    def entropy(self) -> Tensor:
        return Normal(self.loc, self.scale, False).entropy() + self.loc


class HalfNormal(Distribution):
    """The absolute value of a normal distribution of mean 0."""

    has_rsample = True
    support = constraints.nonnegative
    arg_constraints = {"scale": POSITIVE}

    def __init__(self, scale: Any, validate_args: bool | None = None):
        (self.scale,) = broadcast_all(scale)
        super().__init__(self.scale.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        return self.scale * math.sqrt(2 / math.pi)

    @property
    def mode(self) -> Tensor:
        return PUBLIC["zeros_like"](self.scale)

    @property
    def variance(self) -> Tensor:
        return self.scale * self.scale * (1 - 2 / math.pi)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return PUBLIC["abs"](gaussian(self._extended_shape(sample_shape), self.scale.dtype)) * self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        z = value / self.scale
        return where(value >= 0, z * z * -0.5 - log(self.scale) + (math.log(2) - HALF_LOG_TWO_PI), -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        return PUBLIC["erf"](value / self.scale * math.sqrt(0.5))

    def entropy(self) -> Tensor:
        return log(self.scale) + (0.5 + HALF_LOG_TWO_PI - math.log(2))


class Exponential(Distribution):
    """The exponential distribution of `rate`."""

    has_rsample = True
    support = constraints.nonnegative
    arg_constraints = {"rate": POSITIVE}

    def __init__(self, rate: Any, validate_args: bool | None = None):
        (self.rate,) = broadcast_all(rate)
        super().__init__(self.rate.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        return 1.0 / self.rate

    @property
    def mode(self) -> Tensor:
        return PUBLIC["zeros_like"](self.rate)

    @property
    def variance(self) -> Tensor:
        return 1.0 / (self.rate * self.rate)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return -PUBLIC["log1p"](-uniform(self._extended_shape(sample_shape), self.rate.dtype)) / self.rate

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        return log(self.rate) - self.rate * value

    def cdf(self, value: Tensor) -> Tensor:
        return -PUBLIC["expm1"](-self.rate * value)

    def icdf(self, value: Tensor) -> Tensor:
        return -PUBLIC["log1p"](-value) / self.rate

    def entropy(self) -> Tensor:
        return 1.0 - log(self.rate)


class Uniform(Distribution):
    """The uniform distribution on [low, high)."""

    has_rsample = True
    arg_constraints = {"low": REAL, "high": REAL}

    def __init__(self, low: Any, high: Any, validate_args: bool | None = None):
        self.low, self.high = broadcast_all(low, high)
        super().__init__(self.low.shape, (), validate_args)
        if self._validate_args and not bool((self.low < self.high).all()):
            raise ValueError("Uniform is not defined when low>= high")

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.interval(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        return (self.high + self.low) / 2.0

    @property
    def mode(self) -> Tensor:
        return PUBLIC["full_like"](self.high, math.nan)

    @property
    def variance(self) -> Tensor:
        width = self.high - self.low
        return width * width / 12.0

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.low + uniform(self._extended_shape(sample_shape), self.low.dtype) * (self.high - self.low)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        return where((value >= self.low) & (value < self.high), -log(self.high - self.low), -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        return PUBLIC["clamp"]((value - self.low) / (self.high - self.low), 0.0, 1.0)

    def icdf(self, value: Tensor) -> Tensor:
        return value * (self.high - self.low) + self.low

    def entropy(self) -> Tensor:
        return log(self.high - self.low)


class MultivariateNormal(Distribution):
    """The normal distribution of vectors, by one of covariance, precision, or the Cholesky factor of the covariance."""

    has_rsample = True
    support = constraints.real_vector
    arg_constraints = {"loc": REAL}

    def __init__(
        self,
        loc: Tensor,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        if loc.ndim < 1:
            raise ValueError("loc must be at least one-dimensional.")
        m = covariance_factor(covariance_matrix, precision_matrix, scale_tril)
        n = loc.shape[-1]
        batch = broadcast_shapes(tuple(m.shape[:-2]), tuple(loc.shape[:-1]))
        self.loc = PUBLIC["broadcast_to"](loc, (*batch, n))
        self.scale_tril = PUBLIC["broadcast_to"](m, (*batch, n, n))
        super().__init__(batch, (n,), validate_args)

    @property
    def covariance_matrix(self) -> Tensor:
        return self.scale_tril @ self.scale_tril.mT

    @property
    def precision_matrix(self) -> Tensor:
        return PUBLIC["cholesky_inverse"](self.scale_tril)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (self.scale_tril * self.scale_tril).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        z = gaussian(self._extended_shape(sample_shape), self.loc.dtype)
        return self.loc + (self.scale_tril @ z.unsqueeze(-1)).squeeze(-1)

    def _half_log_det(self) -> Tensor:
        return log(PUBLIC["diagonal"](self.scale_tril, 0, -2, -1)).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        z = solve_triangular(self.scale_tril, (value - self.loc).unsqueeze(-1), upper=False).squeeze(-1)
        return (z * z).sum(-1) * -0.5 - self._half_log_det() - self.loc.shape[-1] * HALF_LOG_TWO_PI

    def entropy(self) -> Tensor:
        return self._half_log_det() + self.loc.shape[-1] * (0.5 + HALF_LOG_TWO_PI)
