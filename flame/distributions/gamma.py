"""The gamma distribution and what is made of it: chi-squared, beta, Dirichlet, Student's t, Fisher's F, the inverse gamma.

Draws are differentiable by the parameters: those of gammas implicitly (flame.ops.rejection), the others as functions of gammas.
"""

from __future__ import annotations

import math
from typing import Any

from flame.distributions import constraints
from flame.distributions.distribution import POSITIVE, REAL, Distribution
from flame.distributions.utils import broadcast_all
from flame.functions import PUBLIC
from flame.functions.random import gaussian, standard_gamma
from flame.tensor import Tensor

log, lgamma, digamma, xlogy = PUBLIC["log"], PUBLIC["lgamma"], PUBLIC["digamma"], PUBLIC["xlogy"]


def least(x: Tensor) -> float:
    """The least normal number of a tensor's dtype: what draws are kept above."""
    return 2.2250738585072014e-308 if x.dtype.itemsize == 8 else 1.1754943508222875e-38 if x.dtype.itemsize == 4 else 6.2e-05


def drawn_gamma(a: Tensor, shape: Any) -> Tensor:
    """Gamma draws of rate 1, positive."""
    return PUBLIC["clamp"](standard_gamma(PUBLIC["broadcast_to"](a, shape)), min=least(a))


class Gamma(Distribution):
    """The gamma distribution of shape `concentration` and inverse scale `rate`."""

    has_rsample = True
    arg_constraints = {"concentration": POSITIVE, "rate": POSITIVE}
    support = constraints.nonnegative

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None):
        self.concentration, self.rate = broadcast_all(concentration, rate)
        super().__init__(self.concentration.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.rate

    @property
    def mode(self) -> Tensor:
        return PUBLIC["clamp"]((self.concentration - 1.0) / self.rate, min=0.0)

    @property
    def variance(self) -> Tensor:
        return self.concentration / (self.rate * self.rate)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        x = drawn_gamma(self.concentration, self._extended_shape(sample_shape)) / self.rate
        return PUBLIC["clamp"](x, min=least(x))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        a, b = self.concentration, self.rate
        return xlogy(a, b) + xlogy(a - 1.0, value) - b * value - lgamma(a)

    def cdf(self, value: Tensor) -> Tensor:
        self._valid(value)
        return PUBLIC["igamma"](self.concentration, self.rate * value)

    def entropy(self) -> Tensor:
        a = self.concentration
        return a - log(self.rate) + lgamma(a) + (1.0 - a) * digamma(a)


class Chi2(Gamma):
    """The sum of the squares of `df` standard normals."""

    arg_constraints = {"df": POSITIVE}

    def __init__(self, df: Any, validate_args: bool | None = None):
        (df,) = broadcast_all(df)
        super().__init__(df * 0.5, 0.5, False)
        self._validate_args = type(self)._validate_args if validate_args is None else validate_args
        self._check_parameters()

    @property
    def df(self) -> Tensor:
        return self.concentration * 2.0


class InverseGamma(Distribution):
    """One over a gamma draw."""

    has_rsample = True
    arg_constraints = {"concentration": POSITIVE, "rate": POSITIVE}
    support = constraints.positive

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None):
        self.concentration, self.rate = broadcast_all(concentration, rate)
        super().__init__(self.concentration.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        a = self.concentration
        return PUBLIC["where"](a > 1, self.rate / (a - 1.0), math.inf)

    @property
    def mode(self) -> Tensor:
        return self.rate / (self.concentration + 1.0)

    @property
    def variance(self) -> Tensor:
        a = self.concentration
        return PUBLIC["where"](a > 2, self.rate**2 / ((a - 1.0) ** 2 * (a - 2.0)), math.inf)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.rate / drawn_gamma(self.concentration, self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        a, b = self.concentration, self.rate
        return xlogy(a, b) - (a + 1.0) * log(value) - b / value - lgamma(a)

    def cdf(self, value: Tensor) -> Tensor:
        return PUBLIC["igammac"](self.concentration, self.rate / value)

    def entropy(self) -> Tensor:
        a = self.concentration
        return a + log(self.rate) + lgamma(a) - (1.0 + a) * digamma(a)


class Dirichlet(Distribution):
    """Positive vectors of sum 1: gammas of these concentrations, scaled."""

    has_rsample = True
    arg_constraints = {"concentration": constraints.independent(constraints.positive, 1)}
    support = constraints.simplex

    def __init__(self, concentration: Tensor, validate_args: bool | None = None):
        if not isinstance(concentration, Tensor) or concentration.ndim < 1:
            raise ValueError("`concentration` parameter must be at least one-dimensional.")
        self.concentration = concentration
        super().__init__(tuple(concentration.shape)[:-1], tuple(concentration.shape)[-1:], validate_args)

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    @property
    def mode(self) -> Tensor:
        less = PUBLIC["clamp"](self.concentration - 1.0, min=0.0)
        mode = less / less.sum(-1, keepdim=True)
        flat = (self.concentration < 1).all(-1, keepdim=True)
        corner = PUBLIC["one_hot"](PUBLIC["argmax"](mode, -1), self.concentration.shape[-1]).to(mode.dtype)
        return PUBLIC["where"](flat, corner, mode)

    @property
    def variance(self) -> Tensor:
        total = self.concentration.sum(-1, keepdim=True)
        return self.concentration * (total - self.concentration) / (total * total * (total + 1.0))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        g = drawn_gamma(self.concentration, self._extended_shape(sample_shape))
        return g / g.sum(-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        a = self.concentration
        return xlogy(a - 1.0, value).sum(-1) + lgamma(a.sum(-1)) - lgamma(a).sum(-1)

    def entropy(self) -> Tensor:
        a = self.concentration
        k, total = a.shape[-1], a.sum(-1)
        return lgamma(a).sum(-1) - lgamma(total) - (k - total) * digamma(total) - ((a - 1.0) * digamma(a)).sum(-1)


class Beta(Distribution):
    """Numbers in (0, 1): the share of one of two gammas in their sum."""

    has_rsample = True
    arg_constraints = {"concentration1": POSITIVE, "concentration0": POSITIVE}
    support = constraints.unit_interval

    def __init__(self, concentration1: Any, concentration0: Any, validate_args: bool | None = None):
        self.concentration1, self.concentration0 = broadcast_all(concentration1, concentration0)
        super().__init__(self.concentration1.shape, (), validate_args)

    @property
    def _both(self) -> Dirichlet:
        return Dirichlet(PUBLIC["stack"]([self.concentration1, self.concentration0], -1), False)

    @property
    def mean(self) -> Tensor:
        return self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def mode(self) -> Tensor:
        return self._both.mode[..., 0]

    @property
    def variance(self) -> Tensor:
        total = self.concentration1 + self.concentration0
        return self.concentration1 * self.concentration0 / (total * total * (total + 1.0))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        a, b = drawn_gamma(self.concentration1, shape), drawn_gamma(self.concentration0, shape)
        return a / (a + b)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        a, b = self.concentration1, self.concentration0
        return xlogy(a - 1.0, value) + xlogy(b - 1.0, 1.0 - value) + lgamma(a + b) - lgamma(a) - lgamma(b)

    def entropy(self) -> Tensor:
        return self._both.entropy()


class StudentT(Distribution):
    """Student's t distribution of `df` degrees of freedom, moved and scaled."""

    has_rsample = True
    arg_constraints = {"df": POSITIVE, "loc": REAL, "scale": POSITIVE}
    support = constraints.real

    def __init__(self, df: Any, loc: Any = 0.0, scale: Any = 1.0, validate_args: bool | None = None):
        self.df, self.loc, self.scale = broadcast_all(df, loc, scale)
        super().__init__(self.df.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        return PUBLIC["where"](self.df > 1, self.loc, math.nan)

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        d = self.df
        known = self.scale**2 * d / PUBLIC["where"](d > 2, d - 2.0, 1.0)
        return PUBLIC["where"](d > 2, known, PUBLIC["where"](d > 1, PUBLIC["full_like"](d, math.inf), math.nan))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        z = gaussian(shape, self.df.dtype)
        chi2 = drawn_gamma(self.df * 0.5, shape) * 2.0
        return self.loc + self.scale * (z * PUBLIC["rsqrt"](chi2 / self.df))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        z, d = (value - self.loc) / self.scale, self.df
        norm = log(self.scale) + 0.5 * log(d) + 0.5 * math.log(math.pi) + lgamma(0.5 * d) - lgamma(0.5 * (d + 1.0))
        return -0.5 * (d + 1.0) * PUBLIC["log1p"](z * z / d) - norm

    def entropy(self) -> Tensor:
        d = self.df
        beta = lgamma(0.5 * d) + math.lgamma(0.5) - lgamma(0.5 * (1.0 + d))
        return log(self.scale) + 0.5 * (d + 1.0) * (digamma(0.5 * (d + 1.0)) - digamma(0.5 * d)) + 0.5 * log(d) + beta


class FisherSnedecor(Distribution):
    """Fisher's F distribution: the ratio of two chi-squared draws, each over its degrees of freedom."""

    has_rsample = True
    arg_constraints = {"df1": POSITIVE, "df2": POSITIVE}
    support = constraints.positive

    def __init__(self, df1: Any, df2: Any, validate_args: bool | None = None):
        self.df1, self.df2 = broadcast_all(df1, df2)
        super().__init__(self.df1.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        return PUBLIC["where"](self.df2 > 2, self.df2 / (self.df2 - 2.0), math.nan)

    @property
    def mode(self) -> Tensor:
        mode = (self.df1 - 2.0) / self.df1 * self.df2 / (self.df2 + 2.0)
        return PUBLIC["where"](self.df1 > 2, mode, math.nan)

    @property
    def variance(self) -> Tensor:
        a, b = self.df1, self.df2
        return PUBLIC["where"](b > 4, 2.0 * b**2 * (a + b - 2.0) / (a * (b - 2.0) ** 2 * (b - 4.0)), math.nan)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        a, b = drawn_gamma(self.df1 * 0.5, shape) / self.df1, drawn_gamma(self.df2 * 0.5, shape) / self.df2
        return PUBLIC["clamp"](a / b, min=least(a))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        a, b = self.df1 * 0.5, self.df2 * 0.5
        ratio = self.df1 / self.df2
        norm = lgamma(a + b) - lgamma(a) - lgamma(b)
        return norm + a * log(ratio) + (a - 1.0) * log(value) - (a + b) * PUBLIC["log1p"](ratio * value)
