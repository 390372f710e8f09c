"""flame.distributions and flame.signal.windows against PyTorch; draws against moments; what is refused; honest namespaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame

R = np.random.default_rng(5)
LOC, SCALE, P = R.standard_normal((3, 4)), R.uniform(0.5, 2, (4,)), R.uniform(0.1, 0.9, (3, 4))
M = R.standard_normal((2, 3, 3)) * 0.3 + np.eye(3)
COVARIANCE = M @ np.swapaxes(M, -1, -2)
CORRELATION = np.linalg.cholesky(COVARIANCE)
CORRELATION = CORRELATION / np.linalg.norm(CORRELATION, axis=-1, keepdims=True)
FIVE = np.concatenate([P, P[:, :1]], 1) / np.concatenate([P, P[:, :1]], 1).sum(1, keepdims=True)

#: name -> how it is made of a module (flame or PyTorch) and its tensors, and values at which it is asked
MADE: dict[str, tuple[Any, Any]] = {
    "Normal": (lambda d, t: d.Normal(t(LOC), t(SCALE)), LOC + 0.3),
    "Laplace": (lambda d, t: d.Laplace(t(LOC), t(SCALE)), LOC + 0.3),
    "Gumbel": (lambda d, t: d.Gumbel(t(LOC), t(SCALE)), LOC + 0.3),
    "Cauchy": (lambda d, t: d.Cauchy(t(LOC), t(SCALE)), LOC + 0.3),
    "LogNormal": (lambda d, t: d.LogNormal(t(LOC), t(SCALE)), P),
    "HalfNormal": (lambda d, t: d.HalfNormal(t(SCALE)), P),
    "Exponential": (lambda d, t: d.Exponential(t(SCALE)), P),
    "Uniform": (lambda d, t: d.Uniform(t(LOC), t(LOC + SCALE)), LOC + SCALE * 0.3),
    "Bernoulli": (lambda d, t: d.Bernoulli(t(P)), (P > 0.5).astype(float)),
    "Bernoulli by logits": (lambda d, t: d.Bernoulli(logits=t(LOC)), (P > 0.5).astype(float)),
    "Geometric": (lambda d, t: d.Geometric(t(P)), np.floor(P * 7)),
    "Categorical": (lambda d, t: d.Categorical(t(P)), np.array([0.0, 3.0, 1.0])),
    "Categorical by logits": (lambda d, t: d.Categorical(logits=t(LOC)), np.array([0.0, 3.0, 1.0])),
    "OneHotCategorical": (lambda d, t: d.OneHotCategorical(t(P)), np.eye(4)[[0, 3, 1]]),
    "MultivariateNormal": (lambda d, t: d.MultivariateNormal(t(LOC[:2, :3]), t(COVARIANCE)), LOC[:2, :3] + 0.2),
    "Independent": (lambda d, t: d.Independent(d.Normal(t(LOC), t(SCALE)), 1), LOC + 0.1),
    "Gamma": (lambda d, t: d.Gamma(t(P * 4), t(SCALE)), P),
    "Chi2": (lambda d, t: d.Chi2(t(P * 9)), P),
    "InverseGamma": (lambda d, t: d.InverseGamma(t(P + 4.5), t(SCALE)), P),
    "Beta": (lambda d, t: d.Beta(t(P * 3), t(SCALE)), P),
    "Dirichlet": (lambda d, t: d.Dirichlet(t(P * 5)), P / P.sum(-1, keepdims=True)),
    "StudentT": (lambda d, t: d.StudentT(t(P + 4), t(LOC), t(SCALE)), LOC + 0.3),
    "FisherSnedecor": (lambda d, t: d.FisherSnedecor(t(P * 3), t(SCALE + 9)), P),
    "HalfCauchy": (lambda d, t: d.HalfCauchy(t(SCALE)), P),
    "VonMises": (lambda d, t: d.VonMises(t(LOC), t(SCALE)), LOC + 0.3),
    "Weibull": (lambda d, t: d.Weibull(t(SCALE), t(P + 1)), P),
    "Pareto": (lambda d, t: d.Pareto(t(SCALE), t(P + 4)), SCALE + P),
    "Kumaraswamy": (lambda d, t: d.Kumaraswamy(t(P + 1), t(SCALE)), P),
    "LogisticNormal": (
        lambda d, t: d.LogisticNormal(t(LOC), t(SCALE)),
        FIVE,
    ),
    "Poisson": (lambda d, t: d.Poisson(t(P * 20)), np.floor(P * 20)),
    "Binomial": (lambda d, t: d.Binomial(12, t(P)), np.floor(P * 12)),
    "Binomial by logits": (lambda d, t: d.Binomial(t(np.full((4,), 30.0)), logits=t(LOC)), np.floor(P * 12)),
    "NegativeBinomial": (lambda d, t: d.NegativeBinomial(t(SCALE + 2), t(P * 0.7)), np.floor(P * 12)),
    "Multinomial": (lambda d, t: d.Multinomial(6, t(P)), np.array([[1.0, 2, 0, 3], [6, 0, 0, 0], [1, 1, 2, 2]])),
    "MixtureSameFamily": (lambda d, t: d.MixtureSameFamily(d.Categorical(t(P)), d.Normal(t(LOC), t(SCALE))), LOC[:, 0] + 0.1),
    "TransformedDistribution": (
        lambda d, t: d.TransformedDistribution(
            d.Normal(t(LOC), t(SCALE)), [d.AffineTransform(1.0, -2.0), d.SigmoidTransform()]
        ),
        P,
    ),
    "ContinuousBernoulli": (lambda d, t: d.ContinuousBernoulli(t(np.where(P < 0.3, 0.5, P))), P),
    "ContinuousBernoulli by logits": (lambda d, t: d.ContinuousBernoulli(logits=t(LOC)), P),
    "LowRankMultivariateNormal": (
        lambda d, t: d.LowRankMultivariateNormal(t(LOC[:2, :3]), t(M[..., :2]), t(P[:2, :3])),
        LOC[:2, :3] + 0.2,
    ),
    "Wishart": (lambda d, t: d.Wishart(t(np.array([4.5, 7.0])), t(COVARIANCE)), COVARIANCE * 3),
    "LKJCholesky": (lambda d, t: d.LKJCholesky(3, t(SCALE[:2])), CORRELATION),
    "RelaxedBernoulli": (lambda d, t: d.RelaxedBernoulli(t(np.array(0.7)), t(P)), P),
    "RelaxedOneHotCategorical": (lambda d, t: d.RelaxedOneHotCategorical(t(np.array(0.7)), t(P)), P / P.sum(-1, keepdims=True)),
}
#: moments that are not known to PyTorch either, or infinite
NO_MOMENTS = {"TransformedDistribution", "RelaxedBernoulli", "RelaxedOneHotCategorical", "LogisticNormal", "LKJCholesky"}
NO_ENTROPY = NO_MOMENTS | {"FisherSnedecor", "VonMises", "NegativeBinomial", "MixtureSameFamily", "Kumaraswamy", "Poisson"}


CDF = {*"Normal Laplace Cauchy Gumbel LogNormal Exponential Uniform HalfNormal HalfCauchy Gamma Chi2 Weibull Pareto".split(),
       "Kumaraswamy", "MixtureSameFamily", "TransformedDistribution", "InverseGamma", "ContinuousBernoulli",
       "ContinuousBernoulli by logits"}  # fmt: skip
DIVERGE = [n for n in MADE if n not in {
    "Gumbel", "Cauchy", "HalfNormal", "InverseGamma", "StudentT", "FisherSnedecor", "HalfCauchy", "VonMises", "Weibull",
    "Kumaraswamy", "NegativeBinomial", "Multinomial", "MixtureSameFamily", "RelaxedBernoulli", "RelaxedOneHotCategorical",
    "Binomial by logits", "LKJCholesky", "Wishart",
}]  # fmt: skip


def asked(module: Any, name: str) -> dict[str, Any]:
    make, at = MADE[name]
    d = make(module.distributions, lambda a: module.tensor(a))
    value = module.tensor(at)
    out = {"batch": tuple(d.batch_shape), "event": tuple(d.event_shape), "log_prob": d.log_prob(value)}
    for n in ("mean", "variance", "stddev") if name not in NO_MOMENTS else ():
        out[n] = getattr(d, n)
    if name not in (
        "Beta",
        "Dirichlet",
        "Cauchy",
        "MixtureSameFamily",
        "Multinomial",
        "NegativeBinomial",
        "Kumaraswamy",
        "ContinuousBernoulli",
        "ContinuousBernoulli by logits",
        *NO_MOMENTS,
    ):
        out["mode"] = d.mode
    if name not in NO_ENTROPY:
        out["entropy"] = d.entropy()
    if name in CDF:
        out["cdf"] = d.cdf(value)
    if name in ("Normal", "Laplace", "Exponential", "Uniform", "HalfCauchy", "Weibull", "Pareto", "TransformedDistribution"):
        out["icdf"] = d.icdf(module.tensor(P))
    out["support"] = d.support.check(value)
    wide = d.expand((2, *d.batch_shape))
    if value.shape == d.batch_shape + d.event_shape:
        out["expanded"] = wide.log_prob(value)
    assert tuple(wide.batch_shape) == (2, *d.batch_shape) and type(wide) is type(d)
    return out


def array(x: Any) -> np.ndarray:
    return np.asarray(x.detach().numpy() if hasattr(x, "detach") else x)


@pytest.mark.oracle
@pytest.mark.parametrize("name", MADE)
def test_densities_and_moments_agree_with_pytorch(torch: Any, name: str) -> None:
    ours, theirs = asked(flame, name), asked(torch, name)
    for key, want in theirs.items():
        np.testing.assert_allclose(array(ours[key]), array(want), rtol=1e-6, atol=1e-9, err_msg=key)


@pytest.mark.oracle
@pytest.mark.parametrize("name", DIVERGE)
def test_divergences_agree_with_pytorch(torch: Any, name: str) -> None:
    def divergence(m: Any) -> Any:
        make = MADE[name][0]
        p = make(m.distributions, lambda a: m.tensor(a))
        scale = 1.0 if name == "MultivariateNormal" else 0.9
        q = make(m.distributions, lambda a: m.tensor(a * scale if a is not COVARIANCE else a * 1.5))
        return m.distributions.kl.kl_divergence(p, q)

    np.testing.assert_allclose(array(divergence(flame)), array(divergence(torch)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [n for n in MADE if n not in {"Cauchy", "HalfCauchy", "VonMises", "Pareto", *NO_MOMENTS}])
def test_draws_have_the_moments(name: str) -> None:
    flame.manual_seed(1)
    d = MADE[name][0](flame.distributions, lambda a: flame.tensor(a))
    draws = d.sample((4000,))
    assert tuple(draws.shape) == (4000, *d.batch_shape, *d.event_shape) and not draws.requires_grad
    d.log_prob(draws)
    if "Categorical" in name and "OneHot" not in name:
        counts = np.stack([(array(draws) == k).mean(0) for k in range(4)], -1)
        np.testing.assert_allclose(counts, array(d.probs), atol=0.05)
        return
    if name == "LogNormal":
        draws, d = draws.log(), flame.distributions.Normal(d.loc, d.scale)
    spread = array(d.stddev)
    assert (np.abs(array(draws).mean(0) - array(d.mean)) < 0.1 * np.maximum(spread, 0.3) + 0.02).all()
    np.testing.assert_allclose(array(draws).std(0), spread, rtol=0.15, atol=0.02)


def test_reparametrised_draws_lead_to_the_parameters_and_compile() -> None:
    loc = flame.zeros(3, requires_grad=True)
    flame.distributions.Normal(loc, 2.0).rsample((5,)).sum().backward()
    assert loc.grad.tolist() == [5.0, 5.0, 5.0]

    def loss(x: Any) -> Any:
        q = flame.distributions.Normal(x, x.exp(), validate_args=False)
        prior = flame.distributions.Normal(0.0, 1.0, validate_args=False)
        return flame.distributions.kl_divergence(q, prior).sum() + q.rsample().sum()

    x = flame.tensor([0.1, 0.2])
    compiled = flame.compile(loss, fullgraph=True)
    for seed in range(3):
        flame.manual_seed(seed)
        want = loss(x).item()
        flame.manual_seed(seed)
        assert abs(compiled(x).item() - want) < 1e-5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda d: d.Normal(0.0, -1.0), ValueError, "greater than 0.0"),
        (lambda d: d.Normal("x", 1.0), ValueError, "Number or Tensor"),
        (lambda d: d.Categorical(), ValueError, "but not both"),
        (lambda d: d.Categorical(flame.tensor(1.0)), ValueError, "one-dimensional"),
        (lambda d: d.Categorical(flame.ones(3)).log_prob(flame.tensor(3)), ValueError, "support"),
        (lambda d: d.Uniform(1.0, 0.0), ValueError, "low>= high"),
        (lambda d: d.Independent(d.Normal(0.0, 1.0), 1), ValueError, "reinterpreted_batch_ndims"),
        (lambda d: d.MultivariateNormal(flame.zeros(2), -flame.eye(2)), ValueError, "positive definite"),
        (lambda d: d.kl_divergence(d.Normal(0.0, 1.0), d.Exponential(1.0)), NotImplementedError, "Exponential"),
        (lambda d: d.Wishart(1.5, flame.eye(3)), ValueError, "ndim - 1"),
        (lambda d: d.LKJCholesky(1), ValueError, "greater than or equal to 2"),
        (lambda d: d.LowRankMultivariateNormal(flame.zeros(2), flame.ones(3, 1), flame.ones(2)), ValueError, "2 x m"),
        (lambda d: d.GeneralizedPareto(0.0, 1.0, -1.0).log_prob(flame.tensor(2.0)), ValueError, "support"),
        (lambda d: d.Gamma(-1.0, 1.0), ValueError, "concentration"),
        (lambda d: d.Gamma(1.0, 1.0).log_prob(flame.tensor(-1.0)), ValueError, "support"),
        (lambda d: d.Dirichlet(flame.tensor(1.0)), ValueError, "one-dimensional"),
        (lambda d: d.Poisson(1.0).log_prob(flame.tensor(0.5)), ValueError, "integers"),
        (lambda d: d.Binomial(3, 0.5).log_prob(flame.tensor(4.0)), ValueError, "support"),
        (lambda d: d.Poisson(1.0).rsample(), NotImplementedError, "reparametrised"),
        (lambda d: d.TransformedDistribution(d.Normal(0.0, 1.0), [3]), ValueError, "Transform"),
        (lambda d: d.MixtureSameFamily(d.Categorical(flame.ones(3)), d.Normal(flame.zeros(2), 1.0)), ValueError, "components"),
        (lambda d: flame.poisson(flame.tensor([1])), RuntimeError, "floating"),
    ],
)
def test_what_is_refused(call: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call(flame.distributions)


#: name -> a distribution, and its distribution function in SciPy
CONTINUOUS: dict[str, tuple[Any, Any]] = {
    "Gamma": (lambda d, t: d.Gamma(t(3.3), t(2.0)), lambda s: s.gamma(3.3, scale=0.5)),
    "Gamma, small": (lambda d, t: d.Gamma(t(0.3), t(1.0)), lambda s: s.gamma(0.3)),
    "Beta": (lambda d, t: d.Beta(t(0.7), t(2.5)), lambda s: s.beta(0.7, 2.5)),
    "StudentT": (lambda d, t: d.StudentT(t(3.0)), lambda s: s.t(3)),
    "FisherSnedecor": (lambda d, t: d.FisherSnedecor(t(3.0), t(8.0)), lambda s: s.f(3, 8)),
    "InverseGamma": (lambda d, t: d.InverseGamma(t(2.0), t(3.0)), lambda s: s.invgamma(2, scale=3)),
    "Chi2": (lambda d, t: d.Chi2(t(5.0)), lambda s: s.chi2(5)),
    "VonMises": (lambda d, t: d.VonMises(t(0.0), t(2.0)), lambda s: s.vonmises(2)),
    "HalfCauchy": (lambda d, t: d.HalfCauchy(t(2.0)), lambda s: s.halfcauchy(scale=2)),
    "Weibull": (lambda d, t: d.Weibull(t(2.0), t(1.5)), lambda s: s.weibull_min(1.5, scale=2)),
    "Pareto": (lambda d, t: d.Pareto(t(2.0), t(3.0)), lambda s: s.pareto(3, scale=2)),
    "Normal": (lambda d, t: d.Normal(t(1.0), t(2.0)), lambda s: s.norm(1, 2)),
    "Laplace": (lambda d, t: d.Laplace(t(1.0), t(2.0)), lambda s: s.laplace(1, 2)),
    "Gumbel": (lambda d, t: d.Gumbel(t(1.0), t(2.0)), lambda s: s.gumbel_r(1, 2)),
    "Cauchy": (lambda d, t: d.Cauchy(t(1.0), t(2.0)), lambda s: s.cauchy(1, 2)),
    "Exponential": (lambda d, t: d.Exponential(t(2.0)), lambda s: s.expon(scale=0.5)),
    "Uniform": (lambda d, t: d.Uniform(t(1.0), t(3.0)), lambda s: s.uniform(1, 2)),
    "LogNormal": (lambda d, t: d.LogNormal(t(0.3), t(0.5)), lambda s: s.lognorm(0.5, scale=np.exp(0.3))),
    "HalfNormal": (lambda d, t: d.HalfNormal(t(2.0)), lambda s: s.halfnorm(scale=2)),
    "GeneralizedPareto": (lambda d, t: d.GeneralizedPareto(t(1.0), t(2.0), t(0.3)), lambda s: s.genpareto(0.3, 1, 2)),
    "GeneralizedPareto, bounded": (
        lambda d, t: d.GeneralizedPareto(t(0.0), t(2.0), t(-0.7)),
        lambda s: s.genpareto(-0.7, 0, 2),
    ),
    "GeneralizedPareto, exponential": (lambda d, t: d.GeneralizedPareto(t(0.0), t(2.0), t(0.0)), lambda s: s.expon(scale=2)),
    "Kumaraswamy": (lambda d, t: d.Kumaraswamy(t(1.0), t(2.5)), lambda s: s.beta(1, 2.5)),
    "RelaxedBernoulli": (lambda d, t: d.RelaxedBernoulli(t(1.0), t(0.5)), lambda s: s.uniform()),
    "LKJCholesky": (lambda d, t: _Entry(d.LKJCholesky(3, t(1.5)), 1), lambda s: s.beta(2.0, 2.0, -1, 2)),
    "Wishart": (lambda d, t: _Entry(d.Wishart(t(4.0), t([[2.0, 0.3], [0.3, 1.0]])), 0), lambda s: s.chi2(4, scale=2)),
}


class _Entry:
    """Draws of one entry of the correlation (1: below the diagonal) or matrix (0: the first)."""

    def __init__(self, d: Any, kind: int) -> None:
        self.d, self.kind = d, kind

    def sample(self, shape: Any) -> Any:
        x = self.d.sample(shape)
        return (x @ x.mT)[..., 2, 1] if self.kind else x[..., 0, 0]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_draws_follow_the_distribution(name: str) -> None:
    """Kolmogorov and Smirnov's test: the distance between the two distribution functions."""
    stats = pytest.importorskip("scipy.stats")
    flame.manual_seed(11)
    make, known = CONTINUOUS[name]
    x = array(make(flame.distributions, lambda v: flame.tensor(v, dtype=flame.float64)).sample((20000,)))
    assert stats.kstest(x, known(stats).cdf).statistic < 0.0138  # (one in a thousand)


@pytest.mark.parametrize("name", [n for n in CONTINUOUS if n.startswith("GeneralizedPareto")])
def test_generalized_pareto_is_scipys(name: str) -> None:
    stats = pytest.importorskip("scipy.stats")
    make, known = CONTINUOUS[name]
    d, of = make(flame.distributions, lambda v: flame.tensor(v, dtype=flame.float64)), known(stats)
    x = of.ppf(np.linspace(0.05, 0.95, 7))
    t = flame.tensor(x)
    for got, want in ((d.log_prob(t), of.logpdf(x)), (d.cdf(t), of.cdf(x)), (d.log_survival_function(t), of.logsf(x)),
                      (d.icdf(d.cdf(t)), x), (d.mean, of.mean()), (d.variance, of.var()), (d.entropy(), of.entropy())):  # fmt: skip
        np.testing.assert_allclose(array(got), want, rtol=1e-7)


def test_divergence_of_wisharts_is_the_mean_of_their_log_ratio() -> None:
    d, t = flame.distributions, lambda a: flame.tensor(np.asarray(a))
    flame.manual_seed(3)
    p, q = d.Wishart(t([4.5, 7.0]), t(COVARIANCE)), d.Wishart(t([4.05, 6.3]), t(COVARIANCE * 1.5))
    x = p.sample((6000,))
    np.testing.assert_allclose(array(d.kl_divergence(p, q)), array((p.log_prob(x) - q.log_prob(x)).mean(0)), atol=0.04)
    assert array(d.kl_divergence(p, p)).tolist() == pytest.approx([0, 0], abs=1e-12)


def test_no_distribution_is_forgotten() -> None:
    """Each has its densities held to PyTorch's or SciPy's, and its draws to moments or to a distribution function."""
    names = {d.__name__ for d in flame.distributions._DISTRIBUTIONS}
    straight = {"OneHotCategoricalStraightThrough"}  # (a OneHotCategorical whose draws have gradients)
    drawn = {n.partition(",")[0] for n in CONTINUOUS} | {n for n in MADE if n not in NO_MOMENTS}
    assert names - straight - {n.partition(" ")[0] for n in MADE} == {"GeneralizedPareto"}
    # those that are transforms of others' draws
    assert names - straight - drawn == {"LogisticNormal", "TransformedDistribution", "RelaxedOneHotCategorical"}


@pytest.mark.parametrize("name", [n for n in MADE if " by logits" not in n])
def test_draws_are_the_same_numbers_compiled(name: str) -> None:
    d = MADE[name][0](flame.distributions, lambda a: flame.tensor(a))
    compiled = flame.compile(lambda: d.sample((2,)))
    for seed in range(2):
        flame.manual_seed(seed)
        want = [array(d.sample((2,))), array(flame.rand(2))]
        flame.manual_seed(seed)
        got = [array(compiled()), array(flame.rand(2))]
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.3, 9.5, 10.5, 400.0])
def test_counts_follow_the_distribution(rate: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    flame.manual_seed(12)
    n = 20000
    t = lambda v: flame.full((n,), v, dtype=flame.float64)
    p = rate / 500
    cases = [(flame.poisson(t(rate)), stats.poisson(rate)), (flame.binomial(t(500.0), t(p)), stats.binom(500, p)),
             (flame.binomial(t(500.0), t(1 - p)), stats.binom(500, 1 - p)),
             (flame.distributions.NegativeBinomial(t(5.0), t(p)).sample(), stats.nbinom(5, 1 - p))]  # fmt: skip
    for drawn, known in cases:
        x = np.sort(array(drawn))
        at = np.unique(x)
        below = np.searchsorted(x, at, side="right") / n
        assert np.abs(below - known.cdf(at)).max() < 0.0138


def test_draws_of_gammas_are_the_same_compiled_whole_and_in_parts() -> None:
    d = flame.distributions

    def draw(a: Any) -> Any:
        g = d.Gamma(a, 2.0, validate_args=False).rsample((3,))
        b = d.Beta(a, 1.5, validate_args=False).rsample()
        return g.sum() * 0.5 + b.sum(), d.Poisson(a * 9, validate_args=False).sample((2,)), d.StudentT(a).sample()

    a = flame.tensor([0.4, 1.0, 7.0])
    compiled = flame.compile(draw)
    for seed in range(4):
        flame.manual_seed(seed)
        want = [*draw(a), flame.rand(3)]
        flame.manual_seed(seed)
        got = [*compiled(a), flame.rand(3)]
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(array(x), array(y), rtol=1e-6)
    flame.manual_seed(5)
    whole = flame.poisson(flame.full((10,), 20.0))
    flame.manual_seed(5)
    parts = [flame.poisson(flame.full((n,), 20.0)) for n in (4, 6)]
    assert whole.tolist() == flame.cat(parts).tolist()
    vmap = flame.func.vmap
    for randomness in ("different",):
        flame.manual_seed(6)
        rows = vmap(lambda r: flame.poisson(r), randomness=randomness)(flame.full((5, 10), 20.0))
        flame.manual_seed(6)
        assert rows.tolist() == flame.poisson(flame.full((5, 10), 20.0)).tolist()
    with pytest.raises(RuntimeError, match="different"):
        vmap(flame.poisson, randomness="same")(flame.ones(3))


def test_implicit_gradients_are_those_of_the_quantile() -> None:
    """A draw x at a fixed probability q satisfies P(a, x) = q: its derivative by a is that of the quantile function."""
    special = pytest.importorskip("scipy.special")
    slope = flame.primitive.registered("gamma_slope")
    for a in (0.05, 0.7, 1.0, 3.0, 40.0, 900.0, 2.0e4):
        q = np.array([0.001, 0.2, 0.5, 0.9, 0.9999])
        h = 1e-5 * a
        x = special.gammaincinv(a, q)
        want = (special.gammaincinv(a + h, q) - special.gammaincinv(a - h, q)) / (2 * h)
        keep = x > 1e-250
        got = array(slope(flame.full((5,), a, dtype=flame.float64), flame.tensor(x)))
        np.testing.assert_allclose(got[keep], want[keep], rtol=2e-5)
    a = flame.tensor([2.0, 3.0], dtype=flame.float64, requires_grad=True)
    flame.manual_seed(0)
    x = flame.distributions.Gamma(a, 1.0).rsample((20000,))
    x.mean(0).sum().backward()  # E[x] = a
    np.testing.assert_allclose(array(a.grad), 1.0, atol=0.03)
    b = flame.tensor([2.0, 3.0, 0.5], dtype=flame.float64, requires_grad=True)
    y = flame.distributions.Dirichlet(b).rsample((20000,))
    y.mean(0)[0].backward()  # E[y_0] = b_0 / sum b
    np.testing.assert_allclose(array(b.grad), [3.5 / 5.5**2, -2 / 5.5**2, -2 / 5.5**2], atol=0.01)


TRANSFORMS: dict[str, Any] = {
    **{n: (lambda d, n=n: getattr(d, n)()) for n in ("ExpTransform", "SigmoidTransform", "SoftplusTransform", "TanhTransform")},
    "AffineTransform": lambda d: d.AffineTransform(0.5, -2.0),
    "AffineTransform of events": lambda d: d.AffineTransform(0.5, 3.0, event_dim=1),
    "PowerTransform": lambda d: d.ComposeTransform([d.ExpTransform(), d.PowerTransform(2.5)]),
    "ComposeTransform": lambda d: d.ComposeTransform([d.AffineTransform(0.1, 0.5), d.TanhTransform(), d.AffineTransform(1.0, 2.0)]),
    "IndependentTransform": lambda d: d.IndependentTransform(d.ExpTransform(), 1),
    "ReshapeTransform": lambda d: d.ReshapeTransform((4,), (2, 2)),
    "StickBreakingTransform": lambda d: d.StickBreakingTransform(),
    "StackTransform": lambda d: d.StackTransform([d.ExpTransform(), d.AffineTransform(1.0, 2.0), d.TanhTransform()], 0),
    "CumulativeDistributionTransform": lambda d: d.CumulativeDistributionTransform(d.Normal(0.0, 2.0)),
    "inverse": lambda d: d.ExpTransform().inv.inv,
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_go_back_and_know_their_derivative(name: str) -> None:
    t = TRANSFORMS[name](flame.distributions)
    x = flame.tensor(LOC * 0.7, requires_grad=True)
    y = t(x)
    np.testing.assert_allclose(array(t.inv(y)), array(x), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(array(t.inv.log_abs_det_jacobian(y, x)), -array(t.log_abs_det_jacobian(x, y)), rtol=1e-6)
    got = array(t.log_abs_det_jacobian(x, y))
    if t.domain.event_dim == 0:
        (g,) = flame.autograd.grad(y.sum(), x)
        np.testing.assert_allclose(got, np.log(np.abs(array(g))), rtol=1e-7, atol=1e-8)
    else:
        for i in range(3):
            whole = array(flame.func.jacrev(lambda v: t(v[None])[0].reshape(-1))(x[i].detach()))
            want = np.linalg.slogdet(whole[: whole.shape[1]])[1]
            np.testing.assert_allclose(got[i], want, rtol=1e-6, atol=1e-8)
    assert tuple(t.forward_shape(tuple(x.shape))) == tuple(y.shape) and tuple(t.inverse_shape(tuple(y.shape))) == tuple(x.shape)


@pytest.mark.oracle
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_agree_with_pytorch(torch: Any, name: str) -> None:
    ours, theirs = TRANSFORMS[name](flame.distributions), TRANSFORMS[name](torch.distributions)
    a, b = flame.tensor(LOC * 0.7), torch.tensor(LOC * 0.7)
    np.testing.assert_allclose(array(ours(a)), array(theirs(b)), rtol=1e-8)
    np.testing.assert_allclose(
        array(ours.log_abs_det_jacobian(a, ours(a))), array(theirs.log_abs_det_jacobian(b, theirs(b))), rtol=1e-7, atol=1e-8
    )
    assert (ours.domain.event_dim, ours.codomain.event_dim) == (theirs.domain.event_dim, theirs.codomain.event_dim)


@pytest.mark.oracle
def test_divergences_of_unlike_distributions_agree_with_pytorch(torch: Any) -> None:
    def pairs(m: Any) -> list:
        d, t = m.distributions, lambda a: m.tensor(a)
        normal, gamma = d.Normal(t(LOC), t(SCALE)), d.Gamma(t(P * 4), t(SCALE))
        return [
            d.kl_divergence(p, q)
            for p, q in [
                (d.Exponential(t(P)), gamma), (gamma, d.Exponential(t(P))), (d.Laplace(t(LOC), t(P)), normal),
                (d.Uniform(t(LOC), t(LOC + P)), normal), (d.Exponential(t(P)), normal), (gamma, normal),
                (d.Gumbel(t(LOC), t(P)), d.Gumbel(t(LOC * 2), t(SCALE))), (d.Cauchy(t(LOC), t(P)), d.Cauchy(t(P), t(SCALE))),
                (d.HalfNormal(t(P)), d.HalfNormal(t(SCALE))), (d.Binomial(5, t(P)), d.Binomial(5, t(P * 0.5))),
                (d.Pareto(t(SCALE + 1), t(P)), d.Pareto(t(SCALE), t(P * 2))),
            ]
        ]  # fmt: skip

    for k, (a, b) in enumerate(zip(pairs(flame), pairs(torch), strict=True)):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-6, atol=1e-8, err_msg=str(k))


WINDOWS: list[tuple[str, dict]] = [
    *[(n, {}) for n in "bartlett blackman cosine hamming hann nuttall".split()],
    ("exponential", {"tau": 2.0}), ("gaussian", {"std": 1.5}), ("kaiser", {"beta": 7.0}), ("general_hamming", {"alpha": 0.6}),
    ("general_cosine", {"a": [0.4, 0.3, 0.2, 0.1]}),
]  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "more"), WINDOWS, ids=[n for n, _ in WINDOWS])
def test_windows_agree_with_pytorch(torch: Any, name: str, more: dict) -> None:
    for n in (0, 1, 2, 7, 8):
        for sym in (True, False):
            got = getattr(flame.signal.windows, name)(n, sym=sym, dtype=flame.float64, **more)
            want = getattr(torch.signal.windows, name)(n, sym=sym, dtype=torch.float64, **more)
            np.testing.assert_allclose(array(got), array(want), atol=1e-9)
    for legacy in ("hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window"):
        np.testing.assert_allclose(array(getattr(flame, legacy)(9)), array(getattr(torch, legacy)(9)), atol=1e-6)
    with pytest.raises(ValueError, match="non-negative"):
        getattr(flame.signal.windows, name)(-1, **more)


def test_namespaces_answer_for_a_cpu() -> None:
    assert not flame.accelerator.is_available() and flame.accelerator.current_accelerator() is None
    assert not flame.cuda.is_available() and not flame.backends.cuda.is_built() and not flame.backends.mps.is_available()
    flame.backends.cudnn.benchmark = True
    flame.backends.cudnn.benchmark = False
    assert not flame.distributed.is_available()
    for call, words in (
        (flame.distributed.init_process_group, "one process"),
        (flame.onnx.export, "explain"),
        (flame.hub.load_state_dict_from_url, "flame.load"),
    ):
        with pytest.raises(NotImplementedError, match=words):
            call()
    with pytest.raises(AttributeError, match="flame.explain"):
        _ = flame.fx
    with pytest.raises(RuntimeError):
        flame.cuda.FloatTensor(2)


def test_legacy_constructors_and_limits() -> None:
    assert flame.FloatTensor([1, 2]).dtype is flame.float32 and flame.LongTensor(2, 3).shape == (2, 3)
    assert isinstance(flame.ones(2), flame.FloatTensor) and not isinstance(flame.ones(2).long(), flame.FloatTensor)
    for d, n in ((flame.float32, np.float32), (flame.float64, np.float64), (flame.float16, np.float16)):
        info, want = flame.finfo(d), np.finfo(n)
        assert (info.bits, info.eps, info.max, info.tiny) == (want.bits, want.eps, want.max, want.tiny)
    assert flame.finfo(flame.bfloat16).eps == 2**-7
    assert (flame.iinfo(flame.int8).min, flame.iinfo(flame.uint8).max) == (-128, 255)
    with pytest.raises(TypeError, match="floating point"):
        flame.finfo(flame.int32)
    assert flame.is_floating_point(flame.ones(1)) and not flame.is_complex(flame.ones(1)) and flame.is_nonzero(flame.ones(1))
