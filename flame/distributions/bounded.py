"""ContinuousBernoulli, on [0, 1], and GeneralizedPareto, over a threshold."""

from __future__ import annotations

import math
from typing import Any

from flame.distributions import constraints
from flame.distributions.discrete import _Binary
from flame.distributions.distribution import POSITIVE, REAL, Distribution
from flame.distributions.utils import broadcast_all
from flame.functions import PUBLIC
from flame.functions.random import uniform
from flame.tensor import Tensor

log, log1p, expm1, where = PUBLIC["log"], PUBLIC["log1p"], PUBLIC["expm1"], PUBLIC["where"]


class ContinuousBernoulli(_Binary):
    """Numbers in [0, 1] whose density goes as probs^x (1 - probs)^(1 - x): Loaiza-Ganem and Cunningham, 2019.

    With l = logits the density is l e^(l x) / (e^l - 1). Where `probs` lies between the two `lims`, close to 1/2, series in l
    stand for what would be 0 / 0.
    """

    has_rsample = True
    support = constraints.unit_interval

    def __init__(
        self,
        probs: Any = None,
        logits: Any = None,
        lims: tuple[float, float] = (0.499, 0.501),
        validate_args: bool | None = None,
    ):
        self._lims = lims
        super().__init__(probs, logits, validate_args)

    def _split(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where logits are small; the logits; and the same with 1 in place of the small ones."""
        p, x = self.probs, self.logits
        small = (p > self._lims[0]) & (p <= self._lims[1])
        return small, x, where(small, 1.0, x)

    def _log_scale(self) -> Tensor:
        """log(l / (e^l - 1))."""
        small, x, far = self._split()
        size = PUBLIC["abs"](far)
        exact = log(size) - log1p(-PUBLIC["exp"](-size)) - PUBLIC["clamp"](far, min=0.0)
        square = x * x
        return where(small, x * -0.5 - square / 24.0 + square * square / 2880.0, exact)

    @property
    def mean(self) -> Tensor:
        small, x, far = self._split()
        return where(small, 0.5 + x / 12.0 - x * x * x / 720.0, -1.0 / expm1(-far) - 1.0 / far)

    @property
    def mode(self) -> Tensor:
        p = self.probs
        return where(p == 0.5, math.nan, (p >= 0.5).to(p.dtype))

    @property
    def variance(self) -> Tensor:
        small, x, far = self._split()
        root = 2.0 * PUBLIC["sinh"](far * 0.5)
        return where(small, 1 / 12 - x * x / 240.0, 1.0 / (far * far) - 1.0 / (root * root))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.icdf(uniform(self._extended_shape(sample_shape), self.logits.dtype))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        return self.logits * value + self._log_scale()

    def cdf(self, value: Tensor) -> Tensor:
        self._valid(value)
        small, _, far = self._split()
        return PUBLIC["clamp"](where(small, value, expm1(far * value) / expm1(far)), 0.0, 1.0)

    def icdf(self, value: Tensor) -> Tensor:
        small, _, far = self._split()
        # of the side on which e^l does not overflow: x at l is 1 - x at -l
        size = -PUBLIC["abs"](far)
        below = log1p(where(far > 0, 1.0 - value, value) * expm1(size)) / size
        return where(small, value, where(far > 0, 1.0 - below, below))

    def entropy(self) -> Tensor:
        return -self._log_scale() - self.logits * self.mean


class GeneralizedPareto(Distribution):
    """What lies over a threshold `loc`: exponential where `concentration` is 0, with heavier tails above, bounded below 0."""

    has_rsample = True
    arg_constraints = {"loc": REAL, "scale": POSITIVE, "concentration": REAL}

    def __init__(self, loc: Any, scale: Any, concentration: Any, validate_args: bool | None = None):
        self.loc, self.scale, self.concentration = broadcast_all(loc, scale, concentration)
        super().__init__(self.loc.shape, (), validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        k = self.concentration
        return constraints.interval(self.loc, where(k < 0, self.loc - self.scale / where(k < 0, k, -1.0), math.inf))

    def _split(self) -> tuple[Tensor, Tensor]:
        zero = PUBLIC["abs"](self.concentration) <= 1e-8
        return zero, where(zero, 1.0, self.concentration)

    @property
    def mean(self) -> Tensor:
        k = self.concentration
        return where(k < 1, self.loc + self.scale / (1.0 - where(k < 1, k, 0.5)), math.nan)

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        k = self.concentration
        safe = where(k < 0.5, k, 0.25)
        return where(k < 0.5, self.scale**2 / ((1.0 - safe) ** 2 * (1.0 - 2.0 * safe)), math.nan)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.icdf(uniform(self._extended_shape(sample_shape), self.loc.dtype))

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        zero, k = self._split()
        z = (value - self.loc) / self.scale
        y = 1.0 / k + 1.0
        return -log(self.scale) - where(zero, z, where(y == 0, 0.0, y * log1p(k * z)))

    def log_survival_function(self, value: Tensor) -> Tensor:
        """The logarithm of the probability of more than `value`."""
        self._valid(value)
        zero, k = self._split()
        z = (value - self.loc) / self.scale
        return where(zero, -z, -log1p(k * z) / k)

    def log_cdf(self, value: Tensor) -> Tensor:
        """The logarithm of the probability of at most `value`."""
        return log1p(-PUBLIC["exp"](self.log_survival_function(value)))

    def cdf(self, value: Tensor) -> Tensor:
        return -expm1(self.log_survival_function(value))

    def icdf(self, value: Tensor) -> Tensor:
        zero, k = self._split()
        u = log1p(-value)
        return self.loc + self.scale * where(zero, -u, expm1(-k * u) / k)

    def entropy(self) -> Tensor:
        return log(self.scale) + self.concentration + 1.0
