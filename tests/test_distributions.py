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
}


def asked(module: Any, name: str) -> dict[str, Any]:
    make, at = MADE[name]
    d = make(module.distributions, lambda a: module.tensor(a))
    value = module.tensor(at)
    out = {"batch": tuple(d.batch_shape), "event": tuple(d.event_shape), "log_prob": d.log_prob(value)}
    for n in ("mean", "variance", "stddev"):
        out[n] = getattr(d, n)
    out["entropy"] = d.entropy()
    if name in ("Normal", "Laplace", "Cauchy", "Gumbel", "LogNormal", "Exponential", "Uniform", "HalfNormal"):
        out["cdf"] = d.cdf(value)
    if name in ("Normal", "Laplace", "Exponential", "Uniform"):
        out["icdf"] = d.icdf(module.tensor(P))
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
@pytest.mark.parametrize("name", [n for n in MADE if n not in ("Gumbel", "Cauchy", "HalfNormal")])
def test_divergences_agree_with_pytorch(torch: Any, name: str) -> None:
    def divergence(m: Any) -> Any:
        make = MADE[name][0]
        p = make(m.distributions, lambda a: m.tensor(a))
        scale = 1.0 if name == "MultivariateNormal" else 0.9
        q = make(m.distributions, lambda a: m.tensor(a * scale if a is not COVARIANCE else a * 1.5))
        return m.distributions.kl.kl_divergence(p, q)

    np.testing.assert_allclose(array(divergence(flame)), array(divergence(torch)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [n for n in MADE if n != "Cauchy"])
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
        (lambda d: d.Normal(0.0, -1.0), ValueError, "positive"),
        (lambda d: d.Normal("x", 1.0), ValueError, "Number or Tensor"),
        (lambda d: d.Categorical(), ValueError, "but not both"),
        (lambda d: d.Categorical(flame.tensor(1.0)), ValueError, "one-dimensional"),
        (lambda d: d.Categorical(flame.ones(3)).log_prob(flame.tensor(3)), ValueError, "support"),
        (lambda d: d.Uniform(1.0, 0.0), ValueError, "low>= high"),
        (lambda d: d.Independent(d.Normal(0.0, 1.0), 1), ValueError, "reinterpreted_batch_ndims"),
        (lambda d: d.MultivariateNormal(flame.zeros(2), -flame.eye(2)), ValueError, "positive definite"),
        (lambda d: d.kl_divergence(d.Normal(0.0, 1.0), d.Exponential(1.0)), NotImplementedError, "Exponential"),
        (lambda d: d.Gamma, AttributeError, "numpy.random.Generator"),
    ],
)
def test_what_is_refused(call: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call(flame.distributions)


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
        (flame.sparse_coo_tensor, "dense"),
        (flame.ones(2).to_sparse, "dense"),
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
