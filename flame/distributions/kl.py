"""Kullback-Leibler divergences, by pairs of kinds of distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

from flame.distributions.bounded import ContinuousBernoulli
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
from flame.distributions.counts import Binomial, Poisson
from flame.distributions.discrete import Bernoulli, Categorical, Geometric, Independent, OneHotCategorical
from flame.distributions.distribution import Distribution
from flame.distributions.gamma import Beta, Dirichlet, Gamma
from flame.distributions.matrices import LowRankMultivariateNormal, Wishart
from flame.distributions.transformed import Pareto, TransformedDistribution
from flame.distributions.transforms import Transform
from flame.functions import PUBLIC
from flame.linalg import solve_triangular
from flame.tensor import Tensor

log, where, lgamma, digamma = (PUBLIC[n] for n in ("log", "where", "lgamma", "digamma"))
_EULER = 0.57721566490153286
_RULES: dict[tuple[type, type], Callable] = {}


def register_kl(type_p: type, type_q: type) -> Callable:
    """Decorate a function of two distributions of these types that gives their divergence."""

    def enter(f: Callable) -> Callable:
        _RULES[type_p, type_q] = f
        return f

    return enter


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """The divergence of q from p, of batch shape. Raises NotImplementedError for a pair without a rule."""
    for a in type(p).__mro__:
        for b in type(q).__mro__:
            rule = _RULES.get((a, b))
            if rule is not None:
                return rule(p, q)
    raise NotImplementedError(f"No KL(p || q) is implemented for p type {type(p).__name__} and q type {type(q).__name__}")


@register_kl(Normal, Normal)
def _normal(p: Normal, q: Normal) -> Tensor:
    ratio = p.scale / q.scale
    apart = (p.loc - q.loc) / q.scale
    return (ratio * ratio + apart * apart - 1.0) * 0.5 - log(ratio)


@register_kl(LogNormal, LogNormal)
def _log_normal(p: LogNormal, q: LogNormal) -> Tensor:
    return _normal(Normal(p.loc, p.scale, False), Normal(q.loc, q.scale, False))


@register_kl(Laplace, Laplace)
def _laplace(p: Laplace, q: Laplace) -> Tensor:
    apart = PUBLIC["abs"](p.loc - q.loc)
    return -log(p.scale / q.scale) + apart / q.scale + p.scale / q.scale * PUBLIC["exp"](-apart / p.scale) - 1.0


@register_kl(Exponential, Exponential)
def _exponential(p: Exponential, q: Exponential) -> Tensor:
    ratio = q.rate / p.rate
    return ratio - log(ratio) - 1.0


@register_kl(Uniform, Uniform)
def _uniform(p: Uniform, q: Uniform) -> Tensor:
    outside = (q.low > p.low) | (q.high < p.high)
    return where(outside, math.inf, log((q.high - q.low) / (p.high - p.low)))


@register_kl(MultivariateNormal, MultivariateNormal)
def _multivariate(p: MultivariateNormal, q: MultivariateNormal) -> Tensor:
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"KL of multivariate normals of event shapes {tuple(p.event_shape)} and {tuple(q.event_shape)}: they differ"
        )
    m = solve_triangular(q.scale_tril, PUBLIC["broadcast_to"](p.scale_tril, tuple(q.scale_tril.shape)), upper=False)
    z = solve_triangular(q.scale_tril, (q.loc - p.loc).unsqueeze(-1), upper=False)
    half = ((m * m).sum((-2, -1)) + (z * z).sum((-2, -1)) - float(p.event_shape[0])) * 0.5
    return half + q._half_log_det() - p._half_log_det()


def _whole(d: LowRankMultivariateNormal) -> MultivariateNormal:
    return MultivariateNormal(d.loc, scale_tril=d.scale_tril, validate_args=False)


@register_kl(LowRankMultivariateNormal, LowRankMultivariateNormal)
def _low_rank(p: LowRankMultivariateNormal, q: LowRankMultivariateNormal) -> Tensor:
    return _multivariate(_whole(p), _whole(q))


@register_kl(MultivariateNormal, LowRankMultivariateNormal)
def _to_low_rank(p: MultivariateNormal, q: LowRankMultivariateNormal) -> Tensor:
    return _multivariate(p, _whole(q))


@register_kl(LowRankMultivariateNormal, MultivariateNormal)
def _from_low_rank(p: LowRankMultivariateNormal, q: MultivariateNormal) -> Tensor:
    return _multivariate(_whole(p), q)


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _continuous_bernoulli(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    return p.mean * (p.logits - q.logits) + p._log_scale() - q._log_scale()


@register_kl(Wishart, Wishart)
def _wishart(p: Wishart, q: Wishart) -> Tensor:
    n = p.event_shape[-1]
    inner = solve_triangular(q.scale_tril, PUBLIC["broadcast_to"](p.scale_tril, tuple(q.scale_tril.shape)), upper=False)
    scales = q.df * (q._half_log_det() - p._half_log_det()) + 0.5 * p.df * ((inner * inner).sum((-2, -1)) - float(n))
    gammas = PUBLIC["mvlgamma"](q.df / 2.0, n) - PUBLIC["mvlgamma"](p.df / 2.0, n)
    return scales + gammas + (p.df - q.df) / 2.0 * p._mvdigamma()


@register_kl(Bernoulli, Bernoulli)
def _bernoulli(p: Bernoulli, q: Bernoulli) -> Tensor:
    a, x, y = p.probs, p.logits, q.logits
    soft = lambda v: PUBLIC["clamp"](v, min=0.0) + PUBLIC["log1p"](PUBLIC["exp"](-PUBLIC["abs"](v)))
    one = a * (soft(-y) - soft(-x))
    return one + (1.0 - a) * (soft(y) - soft(x))


@register_kl(Geometric, Geometric)
def _geometric(p: Geometric, q: Geometric) -> Tensor:
    return -p.entropy() - PUBLIC["log1p"](-q.probs) / p.probs - q.logits


@register_kl(Categorical, Categorical)
def _categorical(p: Categorical, q: Categorical) -> Tensor:
    t = p.probs * (p.logits - q.logits)
    t = where(q.probs == 0, math.inf, t)
    return where(p.probs == 0, 0.0, t).sum(-1)


@register_kl(OneHotCategorical, OneHotCategorical)
def _one_hot(p: OneHotCategorical, q: OneHotCategorical) -> Tensor:
    return _categorical(p._categorical, q._categorical)


@register_kl(Independent, Independent)
def _independent(p: Independent, q: Independent) -> Tensor:
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise NotImplementedError("KL of Independent distributions of different reinterpreted_batch_ndims")
    return p._summed(kl_divergence(p.base_dist, q.base_dist))


@register_kl(Gamma, Gamma)
def _gamma(p: Gamma, q: Gamma) -> Tensor:
    a, b = p.concentration, q.concentration
    ratio = q.rate / p.rate
    return b * -log(ratio) + lgamma(b) - lgamma(a) + (a - b) * digamma(a) + a * (ratio - 1.0)


@register_kl(Exponential, Gamma)
def _exponential_gamma(p: Exponential, q: Gamma) -> Tensor:
    return _gamma(Gamma(PUBLIC["ones_like"](p.rate), p.rate, False), q)


@register_kl(Gamma, Exponential)
def _gamma_exponential(p: Gamma, q: Exponential) -> Tensor:
    return _gamma(p, Gamma(PUBLIC["ones_like"](q.rate), q.rate, False))


@register_kl(Beta, Beta)
def _beta(p: Beta, q: Beta) -> Tensor:
    return _dirichlet(p._both, q._both)


@register_kl(Dirichlet, Dirichlet)
def _dirichlet(p: Dirichlet, q: Dirichlet) -> Tensor:
    a, b = p.concentration, q.concentration
    total = a.sum(-1)
    norm = lgamma(total) - lgamma(b.sum(-1)) - (lgamma(a) - lgamma(b)).sum(-1)
    return norm + ((a - b) * (digamma(a) - digamma(total).unsqueeze(-1))).sum(-1)


@register_kl(Poisson, Poisson)
def _poisson(p: Poisson, q: Poisson) -> Tensor:
    return p.rate * (log(p.rate) - log(q.rate)) - (p.rate - q.rate)


@register_kl(Binomial, Binomial)
def _binomial(p: Binomial, q: Binomial) -> Tensor:
    if bool((p.total_count < q.total_count).any()):
        raise NotImplementedError("KL between Binomials where q.total_count > p.total_count is not implemented")
    one = p.total_count * (p.probs * (p.logits - q.logits) + PUBLIC["log1p"](-p.probs) - PUBLIC["log1p"](-q.probs))
    return where(p.total_count > q.total_count, math.inf, one)


@register_kl(HalfNormal, HalfNormal)
def _half_normal(p: HalfNormal, q: HalfNormal) -> Tensor:
    zero = PUBLIC["zeros_like"](p.scale)
    return _normal(Normal(zero, p.scale, False), Normal(zero, q.scale, False))


@register_kl(Gumbel, Gumbel)
def _gumbel(p: Gumbel, q: Gumbel) -> Tensor:
    ratio, away = p.scale / q.scale, q.loc / q.scale
    part = -log(ratio) - away + p.loc / q.scale
    moved = PUBLIC["exp"](away + lgamma(1.0 + ratio) - p.loc / q.scale)
    return part + ratio * _EULER + moved - (1.0 + _EULER)


@register_kl(Cauchy, Cauchy)
def _cauchy(p: Cauchy, q: Cauchy) -> Tensor:
    total = (p.scale + q.scale) ** 2 + (p.loc - q.loc) ** 2
    return log(total) - log(4.0 * p.scale * q.scale)


@register_kl(Pareto, Pareto)
def _pareto(p: Pareto, q: Pareto) -> Tensor:
    scale_ratio, ratio = p.scale / q.scale, q.alpha / p.alpha
    return where(p.scale < q.scale, math.inf, q.alpha * log(scale_ratio) - log(ratio) + ratio - 1.0)


@register_kl(Laplace, Normal)
def _laplace_normal(p: Laplace, q: Normal) -> Tensor:
    square = (p.scale / q.scale) ** 2
    return square + 0.5 * ((p.loc - q.loc) / q.scale) ** 2 - 0.5 * log(2.0 * square) - 1.0 + 0.5 * math.log(math.pi)


@register_kl(Uniform, Normal)
def _uniform_normal(p: Uniform, q: Normal) -> Tensor:
    width = p.high - p.low
    from_mean = ((p.high + p.low - 2.0 * q.loc) / 2.0) ** 2
    part = log(math.sqrt(math.pi * 2) * q.scale / width)
    return part + (width**2 / 12.0 + from_mean) / (2.0 * q.scale**2)


@register_kl(Exponential, Normal)
def _exponential_normal(p: Exponential, q: Normal) -> Tensor:
    variance, rate = q.scale**2, p.rate
    part = 0.5 * log(rate**2 * variance * (2 * math.pi))
    return part - 1.0 + (1.0 / rate**2 - q.loc / rate + q.loc**2 / 2.0) / variance


@register_kl(Gamma, Normal)
def _gamma_normal(p: Gamma, q: Normal) -> Tensor:
    variance, beta, a = q.scale**2, p.rate, p.concentration
    part = 0.5 * log(beta**2 * variance * (2 * math.pi)) - a - lgamma(a)
    return part + (a - 1.0) * digamma(a) + (0.5 * (a**2 + a) / beta**2 - q.loc * a / beta + 0.5 * q.loc**2) / variance


@register_kl(TransformedDistribution, TransformedDistribution)
def _transformed(p: TransformedDistribution, q: TransformedDistribution) -> Tensor:
    same = len(p.transforms) == len(q.transforms) and all(
        type(a) is type(b) and a.__dict__.keys() == b.__dict__.keys() and _alike(a, b)
        for a, b in zip(p.transforms, q.transforms, strict=True)
    )
    if not same or p.event_shape != q.event_shape:
        raise NotImplementedError("KL of distributions transformed differently: compare the base distributions")
    more = len(p.event_shape) - len(p.base_dist.event_shape)
    divergence = kl_divergence(p.base_dist, q.base_dist)
    return divergence.sum(tuple(range(-more, 0))) if more > 0 else divergence


def _alike(a: Transform, b: Transform) -> bool:
    """Whether two transforms of a kind have the same parameters."""
    for k, v in a.__dict__.items():
        w = b.__dict__[k]
        if isinstance(v, Tensor) and isinstance(w, Tensor):
            if v is not w and not (v.shape == w.shape and bool((v == w).all())):
                return False
        elif isinstance(v, int | float | str) and v != w:
            return False
    return True
