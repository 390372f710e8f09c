"""flame.distributions' constraints, the transforms onto them, and the registry between the two, against PyTorch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
from flame.distributions import biject_to, constraints, transform_to, transforms

R = np.random.default_rng(11)
P = R.dirichlet(np.ones(6), 4)
X = R.standard_normal((4, 2, 6, 6))

#: name -> the constraint, made of a module's `constraints` and its `tensor`
SETS: dict[str, Callable[[Any, Any], Any]] = {
    **{
        n: (lambda c, t, n=n: getattr(c, n))
        for n in (
            "real", "real_vector", "positive", "nonnegative", "unit_interval", "boolean", "nonnegative_integer",
            "positive_integer", "one_hot", "simplex", "square", "lower_triangular", "lower_cholesky", "corr_cholesky",
            "symmetric", "positive_definite", "positive_semidefinite",
        )
    },
    "greater_than": lambda c, t: c.greater_than(0.5),
    "greater_than_eq": lambda c, t: c.greater_than_eq(-0.5),
    "less_than": lambda c, t: c.less_than(0.25),
    "interval": lambda c, t: c.interval(-1.5, 0.5),
    "interval of tensors": lambda c, t: c.interval(t(X[0, 0, 0] - 1), t(X[0, 0, 0] + 1)),
    "half_open_interval": lambda c, t: c.half_open_interval(0.0, 1.0),
    "integer_interval": lambda c, t: c.integer_interval(-1, 3),
    "multinomial": lambda c, t: c.multinomial(3),
    "independent": lambda c, t: c.independent(c.positive, 2),
    "mixture": lambda c, t: c.MixtureSameFamilyConstraint(c.positive),
    "cat": lambda c, t: c.cat([c.positive, c.real, c.less_than(0.0)], -1, [1, 2, 3]),
    "cat of events": lambda c, t: c.cat([c.simplex, c.real_vector], 0, [1, 3]),
    "stack": lambda c, t: c.stack([c.positive, c.real, c.unit_interval, c.real, c.interval(1.0, 2.0), c.positive], -1),
}  # fmt: skip
#: sets that real vectors of n numbers are sent to from fewer or more numbers: how many
FROM = {"corr_cholesky": (4, 2, 15)}


def made(m: Any, name: str) -> Any:
    return SETS[name](m.distributions.constraints, m.tensor)


def array(x: Any) -> np.ndarray:
    return np.asarray(x.detach().numpy() if hasattr(x, "detach") else x)


def values(name: str) -> list[np.ndarray]:
    """Arrays of which some lie in the set and some do not."""
    spd = X @ np.swapaxes(X, -1, -2)
    low = np.linalg.cholesky(spd)
    unit = low / np.linalg.norm(low, axis=-1, keepdims=True)
    pairs = [X, spd, low, unit, np.tril(X), np.round(X), np.eye(6), np.abs(X) / np.abs(X).sum(-1, keepdims=True)]
    return [*pairs, (X > 0).astype(float), np.zeros((6, 6)), X[..., :4, :], P]


@pytest.mark.oracle
@pytest.mark.parametrize("name", SETS)
def test_sets_agree_with_pytorch(torch: Any, name: str) -> None:
    ours, theirs = made(flame, name), made(torch, name)
    assert (ours.event_dim, ours.is_discrete) == (theirs.event_dim, theirs.is_discrete)
    if name != "interval of tensors":
        assert repr(ours) == repr(theirs)
    assert not constraints.is_dependent(ours)
    for v in values(name):
        square = "cat" in name or name.endswith(("cholesky", "symmetric", "definite"))
        if (v.shape[0] != 4) if name == "cat of events" else (square and v.shape[-2] != 6):
            continue
        got, want = ours.check(flame.tensor(v)), theirs.check(torch.tensor(v))
        assert got.dtype is flame.bool and got.shape == tuple(want.shape)
        np.testing.assert_array_equal(array(got), array(want))


@pytest.mark.oracle
@pytest.mark.parametrize("registry", ["biject_to", "transform_to"])
@pytest.mark.parametrize("name", SETS)
def test_transforms_of_the_registries_agree_with_pytorch(torch: Any, name: str, registry: str) -> None:
    x = R.standard_normal(FROM.get(name, (4, 2, 6, 6)))
    try:
        theirs = getattr(torch.distributions, registry)(made(torch, name))
    except NotImplementedError as e:
        with pytest.raises(NotImplementedError, match=str(e)):
            getattr(flame.distributions, registry)(made(flame, name))
        return
    if name == "cat of events" and registry == "biject_to":
        return  # (the simplex has one number more than it was made of, real vectors have not: they cannot be joined)
    ours = getattr(flame.distributions, registry)(made(flame, name))
    a, b = flame.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a), theirs(b)
    np.testing.assert_allclose(array(y), array(z), rtol=1e-9, atol=1e-12)
    (y * y).sum().backward()
    (z * z).sum().backward()
    np.testing.assert_allclose(array(a.grad), array(b.grad), rtol=1e-7, atol=1e-10)
    # (in single precision too: rows of correlations that hold to a millionth)
    c = made(flame, name)
    assert bool(c.check(ours(flame.tensor(x, dtype=flame.float32)) if name == "corr_cholesky" else y.detach()).all())
    np.testing.assert_allclose(array(ours.inv(y)), array(theirs.inv(z)), rtol=1e-6, atol=1e-8)
    assert ours.inv.inv is ours and ours.bijective == theirs.bijective
    assert tuple(ours.forward_shape(x.shape)) == tuple(theirs.forward_shape(torch.Size(x.shape)))
    assert tuple(ours.inverse_shape(y.shape)) == tuple(theirs.inverse_shape(z.shape))
    if theirs.bijective and name not in ("cat of events",) and registry == "biject_to":
        got, want = ours.log_abs_det_jacobian(a, y), theirs.log_abs_det_jacobian(b, z)
        np.testing.assert_allclose(array(got), np.broadcast_to(array(want), got.shape), rtol=1e-7, atol=1e-9)


def test_a_determinant_of_a_jacobian_is_one() -> None:
    """CatTransform and CorrCholeskyTransform against the determinant of the derivative itself."""
    t = transforms.CatTransform([transforms.ExpTransform(), transforms.TanhTransform()], -1, [2, 3])
    x = flame.tensor(R.standard_normal(5))
    jacobian = flame.func.jacrev(t)(x)
    flame.testing.assert_close(t.log_abs_det_jacobian(x, t(x)).sum(), flame.linalg.slogdet(jacobian)[1])
    corr = transforms.CorrCholeskyTransform()
    x = flame.tensor(R.standard_normal((2, 6)))
    for row in x:
        strict = flame.func.jacrev(lambda v: flame.distributions.utils.tril_matrix_to_vec(corr(v), -1))(row)
        flame.testing.assert_close(corr.log_abs_det_jacobian(row, corr(row)), flame.linalg.slogdet(strict)[1])


def test_a_registry_of_ones_own_and_a_set_of_ones_own() -> None:
    class Even(constraints.Constraint):
        event_dim = 1

        def check(self, value: Any) -> Any:
            return (value % 2 == 0).all(-1)

    registry = flame.distributions.constraint_registry.ConstraintRegistry()

    @registry.register(Even)
    def onto_even(c: Any) -> Any:
        return transforms.AffineTransform(0.0, 2.0)

    assert registry(Even()) == transforms.AffineTransform(0.0, 2.0) and repr(Even()) == "Even()"
    registry.register(Even(), lambda c: transforms.identity_transform)
    assert registry(Even()) is transforms.identity_transform
    with pytest.raises(TypeError, match="Constraint subclass or instance"):
        registry.register(3, lambda c: None)
    with pytest.raises(NotImplementedError, match="Cannot transform Even"):
        transform_to(Even())

    class OfEven(flame.distributions.Distribution):
        arg_constraints = {"at": Even()}
        support = Even()

        def __init__(self, at: Any):
            self.at = at
            super().__init__(at.shape[:-1], at.shape[-1:])

    with pytest.raises(ValueError, match=r"Even\(\)"):
        OfEven(flame.tensor([1.0, 2.0]))
    OfEven(flame.tensor([4.0, 2.0]))


def test_supports_that_depend_are_known_of_the_object_alone() -> None:
    d = flame.distributions
    assert constraints.is_dependent(d.Uniform.support) and not constraints.is_dependent(d.Normal.support)
    with pytest.raises(NotImplementedError, match="statically"):
        _ = d.Uniform.support.event_dim
    with pytest.raises(ValueError, match="dependent"):
        constraints.dependent.check(flame.ones(1))
    assert constraints.dependent(event_dim=2).event_dim == 2
    inner = d.Uniform(flame.zeros(3), flame.full((3,), 2.0))
    y = transform_to(inner.support)(flame.linspace(-9, 9, 3))
    assert bool(inner.support.check(y).all()) and float(y[2]) > 1.9
    for prior in (d.Gamma(1.0, 1.0), d.Dirichlet(flame.ones(3)), d.LKJCholesky(3), d.Wishart(flame.tensor(3.0), flame.eye(2))):
        x = prior.sample()
        again = transform_to(prior.support)(transform_to(prior.support).inv(x))
        np.testing.assert_allclose(array(again), array(x), rtol=1e-3, atol=1e-4)


def test_transforms_are_equal_by_what_they_do() -> None:
    t = transforms
    equal: list[Callable[[], Any]] = [
        t.ExpTransform, t.CorrCholeskyTransform, lambda: t.AffineTransform(flame.ones(2), 3.0), lambda: t.PowerTransform(2.0),
        lambda: t.ComposeTransform([t.ExpTransform(), t.TanhTransform()]), lambda: t.ExpTransform().inv,
        lambda: t.IndependentTransform(t.ExpTransform(), 1), lambda: t.ReshapeTransform((2,), (1, 2)),
    ]  # fmt: skip
    for i, a in enumerate(equal):
        for j, b in enumerate(equal):
            assert (a() == b()) is (i == j)
        assert hash(a()) == hash(a())
        cached = a().with_cache()
        assert cached == a() and cached.with_cache(1) is cached
    x = flame.ones(2)
    kept = t.ExpTransform(cache_size=1)
    assert kept(x) is kept(x) and kept.inv(kept(x)) is x and t.ExpTransform()(x) is not t.ExpTransform()(x)
    with pytest.raises(ValueError, match="cache_size"):
        t.ExpTransform(cache_size=2)
    for name in SETS:
        pickle.loads(pickle.dumps(copy.deepcopy(made(flame, name))))
    with pytest.raises(ValueError, match="lengths"):
        t.CatTransform([t.ExpTransform()], lengths=[1, 2])
    with pytest.raises(ValueError, match="expected 2 positions"):
        t.CatTransform([t.ExpTransform()], lengths=[2])(flame.ones(3))
    with pytest.raises(ValueError, match=r"n \* \(n - 1\)"):
        t.CorrCholeskyTransform().forward_shape((4,))
    with pytest.raises(ValueError, match="square"):
        t.CorrCholeskyTransform().inverse_shape((4, 3))


@pytest.mark.oracle
def test_utilities_agree_with_pytorch(torch: Any) -> None:
    def asked(m: Any) -> list[Any]:
        u = m.distributions.utils
        x = m.tensor(X[0])
        p = m.tensor([0.0, 0.25, 1.0])
        out = [
            u.clamp_probs(p),
            u.probs_to_logits(p),
            u.probs_to_logits(p, True),
            u.logits_to_probs(x),
            u.logits_to_probs(x, True),
        ]
        out += [u.tril_matrix_to_vec(x, d) for d in (-3, -1, 0, 2, 5)]
        out += [u.vec_to_tril_matrix(u.tril_matrix_to_vec(x, d), d) for d in (-1, 0, 1)]
        return [*out, *u.broadcast_all(2.0, x, m.tensor(1.0))]

    for got, want in zip(asked(flame), asked(torch), strict=True):
        np.testing.assert_allclose(array(got), array(want), rtol=1e-6)
    u = flame.distributions.utils
    for call in (
        lambda: u.tril_matrix_to_vec(flame.ones(2, 2), 2),
        lambda: u.vec_to_tril_matrix(flame.ones(4)),
        lambda: u.broadcast_all("a", 1.0),
    ):
        with pytest.raises(ValueError):
            call()

    class Half:
        asked = 0

        @u.lazy_property
        def value(self) -> float:
            self.asked += 1
            return 0.5

    h = Half()
    assert (h.value, h.value, h.asked) == (0.5, 0.5, 1) and biject_to(constraints.real) is transforms.identity_transform
