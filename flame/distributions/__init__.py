"""flame.distributions: probability distributions under torch.distributions' names.

Draws come from flame's generator, so that a seed gives the same numbers eager and compiled. Each distribution also stands in a
module of its own name, as `distributions.normal.Normal`.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

from flame.distributions import (
    bounded,
    constraint_registry,
    constraints,
    continuous,
    counts,
    discrete,
    gamma,
    kl,
    matrices,
    transformed,
    transforms,
    utils,
)
from flame.distributions.bounded import ContinuousBernoulli, GeneralizedPareto
from flame.distributions.constraint_registry import biject_to, transform_to
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
from flame.distributions.counts import Binomial, Multinomial, NegativeBinomial, Poisson
from flame.distributions.discrete import Bernoulli, Categorical, Geometric, Independent, OneHotCategorical
from flame.distributions.distribution import Distribution
from flame.distributions.gamma import Beta, Chi2, Dirichlet, FisherSnedecor, InverseGamma, StudentT
from flame.distributions.gamma import Gamma as Gamma
from flame.distributions.kl import kl_divergence, register_kl
from flame.distributions.matrices import LKJCholesky, LowRankMultivariateNormal, Wishart
from flame.distributions.transformed import (
    HalfCauchy,
    Kumaraswamy,
    LogisticNormal,
    MixtureSameFamily,
    OneHotCategoricalStraightThrough,
    Pareto,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    TransformedDistribution,
    VonMises,
    Weibull,
)

globals().update({_n: getattr(transforms, _n) for _n in transforms.__all__})
_DISTRIBUTIONS = (
    Bernoulli, Beta, Binomial, Categorical, Cauchy, Chi2, ContinuousBernoulli, Dirichlet, Exponential, FisherSnedecor, Gamma,
    GeneralizedPareto, Geometric, Gumbel, HalfCauchy, HalfNormal, Independent, InverseGamma, Kumaraswamy, Laplace, LKJCholesky,
    LogisticNormal, LogNormal, LowRankMultivariateNormal, MixtureSameFamily, Multinomial, MultivariateNormal, NegativeBinomial,
    Normal, OneHotCategorical, OneHotCategoricalStraightThrough, Pareto, Poisson, RelaxedBernoulli, RelaxedOneHotCategorical,
    StudentT, TransformedDistribution, Uniform, VonMises, Weibull, Wishart,
)  # fmt: skip
_PLACES = {
    "StudentT": "studentT", "FisherSnedecor": "fishersnedecor", "OneHotCategorical": "one_hot_categorical",
    "OneHotCategoricalStraightThrough": "one_hot_categorical", "RelaxedOneHotCategorical": "relaxed_categorical",
    "VonMises": "von_mises", "LKJCholesky": "lkj_cholesky", "LowRankMultivariateNormal": "lowrank_multivariate_normal",
}  # fmt: skip


def _enter() -> None:
    """distributions.log_normal.LogNormal and so on."""
    for d in _DISTRIBUTIONS:
        name = _PLACES.get(d.__name__) or re.sub(r"(?<!^)(?=[A-Z])", "_", d.__name__).lower()
        place = globals().get(name)
        if place is None:
            place = globals()[name] = SimpleNamespace()
        setattr(place, d.__name__, d)


_enter()
__all__ = [
    *(d.__name__ for d in _DISTRIBUTIONS), *transforms.__all__, "Distribution", "biject_to", "bounded", "constraint_registry",
    "constraints", "continuous", "counts", "discrete", "gamma", "kl", "kl_divergence", "matrices", "register_kl", "transform_to",
    "transformed", "transforms", "utils",
]  # fmt: skip
