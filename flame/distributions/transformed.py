"""Distributions made of others: by transforms, by mixing, by relaxing classes to the simplex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flame.distributions import constraints
from flame.distributions.continuous import Exponential, Normal, Uniform
from flame.distributions.discrete import Categorical, Independent, OneHotCategorical, _Binary
from flame.distributions.distribution import POSITIVE, REAL, Distribution
from flame.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
    StickBreakingTransform,
    Transform,
    summed,
)
from flame.distributions.utils import broadcast_all
from flame.functions import PUBLIC
from flame.functions.random import rejected, uniform
from flame.nn.functional.activation import log_softmax
from flame.primitive import registered
from flame.special import xlog1py
from flame.tensor import Size, Tensor

log, exp, where = PUBLIC["log"], PUBLIC["exp"], PUBLIC["where"]


class TransformedDistribution(Distribution):
    """Draws of a distribution, sent through transforms; densities go the other way."""

    def __init__(self, base_distribution: Distribution, transforms: Any, validate_args: bool | None = None):
        ts = [transforms] if isinstance(transforms, Transform) else list(transforms)
        if not all(isinstance(t, Transform) for t in ts):
            raise ValueError(f"transforms must be a Transform or a list of Transforms, but was {transforms}")
        self.transforms: Sequence[Transform] = ts
        base_shape = tuple(base_distribution.batch_shape) + tuple(base_distribution.event_shape)
        transform = ComposeTransform(ts)
        if len(base_shape) < transform.domain.event_dim:
            raise ValueError(
                f"base_distribution needs to have shape with size at least {transform.domain.event_dim}, but got {base_shape}."
            )
        shape = tuple(transform.forward_shape(base_shape))
        expanded = tuple(transform.inverse_shape(shape))
        if expanded != base_shape:
            cut = len(expanded) - len(base_distribution.event_shape)
            base_distribution = base_distribution.expand(expanded[:cut])
        more = transform.domain.event_dim - len(base_distribution.event_shape)
        self.base_dist = Independent(base_distribution, more) if more > 0 else base_distribution
        change = transform.codomain.event_dim - transform.domain.event_dim
        event_dim = max(transform.codomain.event_dim, len(self.base_dist.event_shape) + change)
        cut = len(shape) - event_dim
        super().__init__(Size(shape[:cut]), Size(shape[cut:]), validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        if not self.transforms:
            return self.base_dist.support
        last = self.transforms[-1].codomain
        n = len(self._event_shape)
        return constraints.independent(last, n - last.event_dim) if n > last.event_dim else last

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        new = object.__new__(type(self)) if _instance is None else _instance
        new.__dict__ |= self.__dict__
        shape = tuple(batch_shape) + tuple(self._event_shape)
        for t in reversed(self.transforms):
            shape = tuple(t.inverse_shape(shape))
        cut = len(shape) - len(self.base_dist.event_shape)
        new.base_dist = self.base_dist.expand(shape[:cut])
        for k in self.arg_constraints:
            v = self.__dict__.get(k)
            if isinstance(v, Tensor) and v.shape == self._batch_shape:
                new.__dict__[k] = PUBLIC["broadcast_to"](v, tuple(batch_shape))
        new._batch_shape = Size(batch_shape)
        return new

    def _through(self, x: Tensor) -> Tensor:
        for t in self.transforms:
            x = t(x)
        return x

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._through(self.base_dist.sample(sample_shape)).detach()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._through(self.base_dist.rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        n = len(self._event_shape)
        total: Any = 0.0
        y = value
        for t in reversed(self.transforms):
            if not t.bijective:
                raise NotImplementedError(f"{type(t).__name__} is not bijective: densities do not go through it")
            x = t.inv(y)
            n += t.domain.event_dim - t.codomain.event_dim
            total = total - summed(t.log_abs_det_jacobian(x, y), n - t.domain.event_dim)
            y = x
        return total + summed(self.base_dist.log_prob(y), n - len(self.base_dist.event_shape))

    def _monotone(self, value: Tensor) -> Any:
        sign: Any = 1
        for t in self.transforms:
            sign = sign * t.sign
        return value if isinstance(sign, int) and sign == 1 else sign * (value - 0.5) + 0.5

    def cdf(self, value: Tensor) -> Tensor:
        self._valid(value)
        for t in reversed(self.transforms):
            value = t.inv(value)
        return self._monotone(self.base_dist.cdf(value))

    def icdf(self, value: Tensor) -> Tensor:
        return self._through(self.base_dist.icdf(self._monotone(value)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_dist!r}, {list(self.transforms)!r})"


class Weibull(TransformedDistribution):
    """The Weibull distribution of `scale` and shape `concentration`."""

    arg_constraints = {"scale": POSITIVE, "concentration": POSITIVE}
    support = constraints.positive  # type: ignore[assignment]

    def __init__(self, scale: Any, concentration: Any, validate_args: bool | None = None):
        self.scale, self.concentration = broadcast_all(scale, concentration)
        base = Exponential(PUBLIC["ones_like"](self.scale), False)
        transforms = [PowerTransform(1.0 / self.concentration), AffineTransform(0.0, self.scale)]
        super().__init__(base, transforms, validate_args)

    @property
    def mean(self) -> Tensor:
        return self.scale * exp(PUBLIC["lgamma"](1.0 + 1.0 / self.concentration))

    @property
    def mode(self) -> Tensor:
        k = self.concentration
        return where(k > 1, self.scale * ((k - 1.0) / k) ** (1.0 / k), 0.0)

    @property
    def variance(self) -> Tensor:
        k = 1.0 / self.concentration
        return self.scale**2 * (exp(PUBLIC["lgamma"](1.0 + 2.0 * k)) - exp(2.0 * PUBLIC["lgamma"](1.0 + k)))

    def entropy(self) -> Tensor:
        k = 1.0 / self.concentration
        return 0.57721566490153286 * (1.0 - k) + log(self.scale * k) + 1.0


class Pareto(TransformedDistribution):
    """The Pareto distribution from `scale` on, of power `alpha`."""

    arg_constraints = {"scale": POSITIVE, "alpha": POSITIVE}

    def __init__(self, scale: Any, alpha: Any, validate_args: bool | None = None):
        self.scale, self.alpha = broadcast_all(scale, alpha)
        base = Exponential(self.alpha, False)
        super().__init__(base, [ExpTransform(), AffineTransform(0.0, self.scale)], validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.greater_than_eq(self.scale)

    @property
    def mean(self) -> Tensor:
        a = PUBLIC["clamp"](self.alpha, min=1.0)
        return a * self.scale / (a - 1.0)

    @property
    def mode(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        a = PUBLIC["clamp"](self.alpha, min=2.0)
        return self.scale**2 * a / ((a - 1.0) ** 2 * (a - 2.0))

    def entropy(self) -> Tensor:
        return log(self.scale / self.alpha) + (1.0 + 1.0 / self.alpha)


class Kumaraswamy(TransformedDistribution):
    """Numbers in (0, 1), much as the beta distribution, with a simple distribution function."""

    arg_constraints = {"concentration1": POSITIVE, "concentration0": POSITIVE}
    support = constraints.unit_interval  # type: ignore[assignment]

    def __init__(self, concentration1: Any, concentration0: Any, validate_args: bool | None = None):
        self.concentration1, self.concentration0 = broadcast_all(concentration1, concentration0)
        one = PUBLIC["ones_like"](self.concentration0)
        eps = 2.0**-52 if one.dtype.itemsize == 8 else 2.0**-23
        base = Uniform(one * 0.0, one, False)
        transforms = [
            AffineTransform(eps / 2, 1 - eps),
            PowerTransform(1.0 / self.concentration0),
            AffineTransform(1.0, -1.0),
            PowerTransform(1.0 / self.concentration1),
        ]
        super().__init__(base, transforms, validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        a, b = self.concentration1, self.concentration0
        return log(a * b) + PUBLIC["xlogy"](a - 1.0, value) + xlog1py(b - 1.0, -(value**a))

    def _moment(self, n: int) -> Tensor:
        a, b = 1.0 + n / self.concentration1, self.concentration0
        return exp(log(b) + PUBLIC["lgamma"](a) + PUBLIC["lgamma"](b) - PUBLIC["lgamma"](a + b))

    @property
    def mean(self) -> Tensor:
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        return self._moment(2) - self._moment(1) ** 2

    @property
    def mode(self) -> Tensor:
        a, b = self.concentration1, self.concentration0
        inside = (a > 1) & (b > 1)
        mode = ((a - 1.0) / where(inside, a * b - 1.0, 1.0)) ** (1.0 / a)
        return where((a < 1) | (b < 1), math.nan, where(inside, mode, where(a == 1, 0.0, 1.0)))

    def entropy(self) -> Tensor:
        t1, t0 = 1.0 - 1.0 / self.concentration1, 1.0 - 1.0 / self.concentration0
        h0 = PUBLIC["digamma"](self.concentration0 + 1.0) + 0.57721566490153286
        return t0 + t1 * h0 - log(self.concentration1) - log(self.concentration0)


class LogisticNormal(TransformedDistribution):
    """Normals of n numbers, sent to n + 1 positive ones of sum 1."""

    arg_constraints = {"loc": REAL, "scale": POSITIVE}
    support = constraints.simplex  # type: ignore[assignment]

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None):
        base = Normal(loc, scale, False)
        if not base.batch_shape:
            base = base.expand((1,))  # type: ignore[assignment]
        self.loc, self.scale = base.loc, base.scale
        super().__init__(base, StickBreakingTransform(), validate_args)


class HalfCauchy(Distribution):
    """The absolute value of a Cauchy distribution about 0."""

    has_rsample = True
    arg_constraints = {"scale": POSITIVE}
    support = constraints.nonnegative

    def __init__(self, scale: Any, validate_args: bool | None = None):
        (self.scale,) = broadcast_all(scale)
        super().__init__(self.scale.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        return PUBLIC["full_like"](self.scale, math.inf)

    @property
    def mode(self) -> Tensor:
        return PUBLIC["zeros_like"](self.scale)

    @property
    def variance(self) -> Tensor:
        return PUBLIC["full_like"](self.scale, math.inf)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        u = uniform(self._extended_shape(sample_shape), self.scale.dtype)
        return self.scale * PUBLIC["tan"](u * (math.pi / 2))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        z = value / self.scale
        density = math.log(2 / math.pi) - log(self.scale) - PUBLIC["log1p"](z * z)
        return where(value >= 0, density, -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        return PUBLIC["atan"](value / self.scale) * (2 / math.pi)

    def icdf(self, value: Tensor) -> Tensor:
        return self.scale * PUBLIC["tan"](value * (math.pi / 2))

    def entropy(self) -> Tensor:
        return log(self.scale) + math.log(2 * math.pi)


class VonMises(Distribution):
    """Angles about `loc`, of `concentration`: the normal distribution of a circle."""

    arg_constraints = {"loc": REAL, "concentration": POSITIVE}
    support = constraints.real

    def __init__(self, loc: Any, concentration: Any, validate_args: bool | None = None):
        self.loc, self.concentration = broadcast_all(loc, concentration)
        super().__init__(self.loc.shape, (), validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The circular variance, 1 - I1(k) / I0(k)."""
        k = self.concentration
        return 1.0 - PUBLIC["i1e"](k) / PUBLIC["i0e"](k)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        k = PUBLIC["broadcast_to"](self.concentration.detach(), self._extended_shape(sample_shape))
        x = rejected(registered("von_mises_sample"), k) + self.loc.detach()
        return PUBLIC["remainder"](x + math.pi, 2 * math.pi) - math.pi

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        k = self.concentration
        return k * (PUBLIC["cos"](value - self.loc) - 1.0) - math.log(2 * math.pi) - log(PUBLIC["i0e"](k))

    def entropy(self) -> Tensor:
        k = self.concentration
        return math.log(2 * math.pi) + log(PUBLIC["i0e"](k)) + k * self.variance


class LogitRelaxedBernoulli(_Binary):
    """The log-odds of a relaxed Bernoulli draw."""

    has_rsample = True
    support = constraints.real

    def __init__(self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        self.temperature = temperature
        super().__init__(probs, logits, validate_args)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        x = self.logits
        u = PUBLIC["clamp"](uniform(self._extended_shape(sample_shape), x.dtype), 2.0**-24, 1 - 2.0**-24)
        return (log(u) - PUBLIC["log1p"](-u) + x) / self.temperature

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        apart = self.logits - value * self.temperature
        soft = PUBLIC["clamp"](apart, min=0.0) + PUBLIC["log1p"](exp(-PUBLIC["abs"](apart)))
        size = log(self.temperature) if isinstance(self.temperature, Tensor) else math.log(self.temperature)
        return size + apart - 2.0 * soft


class _Relaxed(TransformedDistribution):
    """A relaxed distribution: its base is in logits, and has the parameters."""

    @property
    def logits(self) -> Tensor:
        return self.base_dist.logits  # type: ignore[attr-defined]

    @property
    def probs(self) -> Tensor:
        return self.base_dist.probs  # type: ignore[attr-defined]

    @property
    def temperature(self) -> Any:
        return self.base_dist.temperature  # type: ignore[attr-defined]


class RelaxedBernoulli(_Relaxed):
    """Numbers in (0, 1) in the place of Bernoulli's 0 and 1: the nearer the lower the temperature (Maddison et al., 2017)."""

    support = constraints.unit_interval  # type: ignore[assignment]

    def __init__(self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        base = LogitRelaxedBernoulli(temperature, probs, logits, validate_args)
        super().__init__(base, SigmoidTransform(), validate_args)


class ExpRelaxedCategorical(Distribution):
    """The logarithms of a relaxed one-hot draw."""

    has_rsample = True
    support = constraints.real_vector

    def __init__(self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        self._categorical = Categorical(probs, logits, validate_args)
        self.temperature = temperature
        super().__init__(self._categorical.batch_shape, (self._categorical._num_events,), validate_args)

    @property
    def probs(self) -> Tensor:
        return self._categorical.probs

    @property
    def logits(self) -> Tensor:
        return self._categorical.logits

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        x = self.logits
        u = PUBLIC["clamp"](uniform(self._extended_shape(sample_shape), x.dtype), 2.0**-24, 1 - 2.0**-24)
        scores = (x - log(-log(u))) / self.temperature
        return scores - PUBLIC["logsumexp"](scores, -1, True)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        k = self._categorical._num_events
        score = self.logits - value * self.temperature
        score = (score - PUBLIC["logsumexp"](score, -1, True)).sum(-1)
        size = log(self.temperature) if isinstance(self.temperature, Tensor) else math.log(self.temperature)
        return score + math.lgamma(k) + size * float(k - 1)


class RelaxedOneHotCategorical(_Relaxed):
    """Positive vectors of sum 1 in the place of one-hot ones: the nearer the lower the temperature (Jang et al., 2017)."""

    support = constraints.simplex  # type: ignore[assignment]

    def __init__(self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None):
        base = ExpRelaxedCategorical(temperature, probs, logits, validate_args)
        super().__init__(base, ExpTransform(), validate_args)


class OneHotCategoricalStraightThrough(OneHotCategorical):
    """One-hot draws through which the gradient of the probabilities goes (Bengio et al., 2013)."""

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.sample(sample_shape) + (self.probs - self.probs.detach())


class MixtureSameFamily(Distribution):
    """Draws of one of several distributions of a kind (along the last batch dimension), chosen by a Categorical."""

    def __init__(
        self, mixture_distribution: Categorical, component_distribution: Distribution, validate_args: bool | None = None
    ):
        if not isinstance(mixture_distribution, Categorical):
            raise ValueError("The Mixture distribution needs to be an instance of distributions.Categorical")
        if not isinstance(component_distribution, Distribution):
            raise ValueError("The Component distribution need to be an instance of distributions.Distribution")
        shape = tuple(component_distribution.batch_shape)
        k = mixture_distribution._num_events
        if not shape or shape[-1] != k:
            raise ValueError(
                f"`mixture_distribution` has {k} components, `component_distribution` {shape[-1] if shape else 'no'}: they differ"
            )
        lead = tuple(mixture_distribution.batch_shape)
        if lead and lead != shape[:-1] and any(a not in (1, b) for a, b in zip(lead[::-1], shape[:-1][::-1], strict=False)):
            raise ValueError(f"the batch shapes {lead} and {shape[:-1]} do not fit")
        self._mixture_distribution, self._component_distribution = mixture_distribution, component_distribution
        self._num_component = k
        super().__init__(shape[:-1], tuple(component_distribution.event_shape), validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        new = object.__new__(type(self)) if _instance is None else _instance
        new.__dict__ |= self.__dict__
        new._mixture_distribution = self._mixture_distribution.expand(batch_shape)
        new._component_distribution = self._component_distribution.expand((*batch_shape, self._num_component))
        new._batch_shape = Size(batch_shape)
        return new

    @property
    def mixture_distribution(self) -> Categorical:
        return self._mixture_distribution

    @property
    def component_distribution(self) -> Distribution:
        return self._component_distribution

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.MixtureSameFamilyConstraint(self._component_distribution.support)

    def _weights(self) -> Tensor:
        p = self._mixture_distribution.probs
        return p.reshape((*tuple(p.shape), *[1] * len(self._event_shape)))

    @property
    def mean(self) -> Tensor:
        return (self._weights() * self._component_distribution.mean).sum(-1 - len(self._event_shape))

    @property
    def variance(self) -> Tensor:
        d, w = -1 - len(self._event_shape), self._weights()
        c = self._component_distribution
        return (w * c.variance).sum(d) + (w * (c.mean - self.mean.unsqueeze(d)) ** 2).sum(d)

    def _each(self, value: Tensor) -> Tensor:
        return value.unsqueeze(-1 - len(self._event_shape))

    def cdf(self, value: Tensor) -> Tensor:
        return (self._component_distribution.cdf(self._each(value)) * self._mixture_distribution.probs).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        parts = self._component_distribution.log_prob(self._each(value))
        return PUBLIC["logsumexp"](parts + log_softmax(self._mixture_distribution.logits, -1), -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        chosen = self._mixture_distribution.expand(self._batch_shape).sample(sample_shape)
        x = self._component_distribution.sample(sample_shape)
        n = len(self._event_shape)
        d = chosen.ndim
        index = chosen.reshape((*tuple(chosen.shape), 1, *[1] * n))
        index = PUBLIC["broadcast_to"](index, (*tuple(chosen.shape), 1, *self._event_shape))
        return PUBLIC["gather"](x, d, index).squeeze(d)

    def __repr__(self) -> str:
        return f"MixtureSameFamily({self._mixture_distribution!r}, {self._component_distribution!r})"
