"""flame.distributions: probability distributions under torch.distributions' names.

Draws come from flame's generator, so that a seed gives the same numbers eager and compiled. Each distribution also stands in a
module of its own name, as `distributions.normal.Normal`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flame.distributions import continuous, discrete, kl
from flame.distributions.continuous import (
    Cauchy,
    Exponential,
    Gumbel,
    HalfNormal,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)
from flame.distributions.discrete import Bernoulli, Categorical, Geometric, Independent, OneHotCategorical
from flame.distributions.distribution import Distribution
from flame.distributions.kl import kl_divergence, register_kl

normal = SimpleNamespace(Normal=Normal)
categorical = SimpleNamespace(Categorical=Categorical)
bernoulli = SimpleNamespace(Bernoulli=Bernoulli)
uniform = SimpleNamespace(Uniform=Uniform)
exponential = SimpleNamespace(Exponential=Exponential)
laplace = SimpleNamespace(Laplace=Laplace)
independent = SimpleNamespace(Independent=Independent)
multivariate_normal = SimpleNamespace(MultivariateNormal=MultivariateNormal)

__all__ = [
    "Bernoulli", "Categorical", "Cauchy", "Distribution", "Exponential", "Geometric", "Gumbel", "HalfNormal", "Independent",
    "Laplace", "LogNormal", "MultivariateNormal", "Normal", "OneHotCategorical", "Uniform", "continuous", "discrete", "kl",
    "kl_divergence", "register_kl",
]  # fmt: skip

_SAMPLED_BY_REJECTION = {
    "Gamma",
    "Beta",
    "Dirichlet",
    "Chi2",
    "StudentT",
    "Poisson",
    "Binomial",
    "NegativeBinomial",
    "VonMises",
}


def __getattr__(name: str) -> Any:
    if name in _SAMPLED_BY_REJECTION:
        raise AttributeError(
            f"flame.distributions.{name} is not there: its draws take a number of steps that depends on chance. Draw with "
            "numpy.random.Generator, and write its density with flame.lgamma"
        )
    raise AttributeError(f"module 'flame.distributions' has no attribute {name!r}")
