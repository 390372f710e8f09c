"""Kullback-Leibler divergences, by pairs of kinds of distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

from flame.distributions.continuous import Exponential, Laplace, LogNormal, MultivariateNormal, Normal, Uniform
from flame.distributions.discrete import Bernoulli, Categorical, Geometric, Independent, OneHotCategorical
from flame.distributions.distribution import Distribution
from flame.functions import PUBLIC
from flame.linalg import solve_triangular
from flame.tensor import Tensor

log, where = PUBLIC["log"], PUBLIC["where"]
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
