"""flame.func, autograd.functional, gradcheck and testing: against PyTorch's namesakes, nested, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
from flame import nn

A = np.random.default_rng(3).standard_normal((3, 4))
B = np.random.default_rng(4).standard_normal((4,))


def numpy(x: Any) -> Any:
    if isinstance(x, tuple | list):
        return [numpy(v) for v in x]
    if isinstance(x, dict):
        return {k: numpy(v) for k, v in x.items()}
    return np.asarray(x.detach().numpy()) if hasattr(x, "detach") else x


def same(x: Any, y: Any) -> None:
    if isinstance(x, list):
        assert len(x) == len(y)
        for a, b in zip(x, y, strict=True):
            same(a, b)
    elif isinstance(x, dict):
        assert x.keys() == y.keys()
        for k in x:
            same(x[k], y[k])
    else:
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10)


def programs(t: Any) -> dict[str, Any]:
    """What is computed with `t` (flame or PyTorch) in each test, from a matrix and a vector."""
    f = t.func
    value = lambda a, b: ((a @ b).sin() * (a * a).sum(1)).sum()
    vector = lambda a, b: (a @ b).tanh()
    nested = lambda x: {"y": x.sin(), "z": (x * 2, x.sum())}
    return {
        "grad": lambda a, b: f.grad(value)(a, b),
        "grad of both": lambda a, b: f.grad(value, argnums=(0, 1))(a, b),
        "grad and value": lambda a, b: f.grad_and_value(value)(a, b),
        "aux": lambda a, b: f.grad(lambda x: (x.sin().sum(), x * 2), has_aux=True)(b),
        "grad of grad": lambda a, b: f.grad(lambda x: f.grad(lambda y: (y**3).sum())(x).sum())(b),
        "vjp": lambda a, b: f.vjp(vector, a, b)[1](t.ones(3, dtype=t.float64)),
        "vjp of nest": lambda a, b: f.vjp(nested, b)[1]({"y": b, "z": (b * 3, b.sum())}),
        "jvp": lambda a, b: f.jvp(vector, (a, b), (a * 2, b + 1)),
        "jacrev": lambda a, b: f.jacrev(vector, argnums=(0, 1))(a, b),
        "jacfwd": lambda a, b: f.jacfwd(vector)(a, b),
        "jacobian of nest": lambda a, b: f.jacrev(nested)(b),
        "hessian": lambda a, b: f.hessian(lambda x: (x**3).prod())(b),
        "vmap": lambda a, b: f.vmap(lambda r: (r.sin(), r.sum()))(a),
        "vmap dims": lambda a, b: f.vmap(lambda c, v: c * v.sum(), in_dims=(1, None), out_dims=1)(a, b),
        "per-sample gradients": lambda a, b: f.vmap(f.grad(lambda w, r: (r @ w).cos()), in_dims=(None, 0))(b, a),
        "jacobian by vmap": lambda a, b: f.vmap(f.vjp(lambda x: x.sin() * x, b)[1])(t.eye(4, dtype=t.float64)),
        "functional vjp": lambda a, b: t.autograd.functional.vjp(vector, (a, b), t.ones(3, dtype=t.float64)),
        "functional jvp": lambda a, b: t.autograd.functional.jvp(vector, (a, b), (a, b)),
        "functional jacobian": lambda a, b: t.autograd.functional.jacobian(vector, (a, b)),
        "functional hessian": lambda a, b: t.autograd.functional.hessian(value, (a, b)),
        "functional hessian of one": lambda a, b: t.autograd.functional.hessian(lambda x: (x**3).sum(), b),
        "functional vhp": lambda a, b: t.autograd.functional.vhp(lambda x: (x**4).sum(), b, b * 2),
        "functional hvp": lambda a, b: t.autograd.functional.hvp(lambda x: (x**4).sum(), b, b * 2),
    }


NAMES = list(programs(flame))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_functions_of_functions_agree_with_pytorch(torch: Any, name: str) -> None:
    got = numpy(programs(flame)[name](flame.tensor(A), flame.tensor(B)))
    want = numpy(programs(torch)[name](torch.tensor(A), torch.tensor(B)))
    same(got, want)


@pytest.mark.parametrize("name", [n for n in NAMES if "grad" not in n and "functional" not in n])
def test_functions_of_functions_compile(name: str) -> None:
    f = programs(flame)[name]
    a, b = flame.tensor(A), flame.tensor(B)
    want = numpy(f(a, b))
    compiled = flame.compile(f)
    for _ in range(3):
        same(numpy(compiled(a, b)), want)


def test_results_lead_to_outer_tensors_alone() -> None:
    x = flame.tensor(B)
    assert not flame.func.grad(lambda v: (v * v).sum())(x).requires_grad
    w = flame.tensor(B, requires_grad=True)
    g = flame.func.grad(lambda v: (v * v * w).sum())(x)
    g.sum().backward()
    same(numpy(w.grad), numpy(2 * x))
    jac = flame.func.jacrev(lambda v: v**3)(w)
    jac.sum().backward()
    same(numpy(w.grad), numpy(2 * x + 6 * x))


def test_functional_call_puts_parameters_back() -> None:
    m = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    x = flame.randn(5, 4)
    before = {k: v for k, v in m.state_dict(keep_vars=True).items()}
    params = {k: v.detach() * 2 for k, v in m.named_parameters()}
    y = flame.func.functional_call(m, params, (x,))
    assert all(v is before[k] for k, v in m.state_dict(keep_vars=True).items())
    with flame.no_grad():
        for k, p in m.named_parameters():
            p.copy_(params[k])
    same(numpy(y), numpy(m(x)))
    g = flame.func.grad(lambda p: flame.func.functional_call(m, p, (x,)).pow(2).sum())(params)
    assert {k: tuple(v.shape) for k, v in g.items()} == {k: tuple(v.shape) for k, v in params.items()}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        flame.func.functional_call(m, {"nothing": x}, (x,))


def test_an_ensemble_by_vmap() -> None:
    models = [nn.Linear(4, 2) for _ in range(3)]
    params, buffers = flame.func.stack_module_state(models)
    x = flame.randn(5, 4)
    got = flame.func.vmap(lambda p, b: flame.func.functional_call(models[0], (p, b), (x,)))(params, buffers)
    np.testing.assert_allclose(numpy(got), np.stack([numpy(m(x)) for m in models]), rtol=1e-6, atol=1e-6)


def test_vmap_and_chance() -> None:
    draw = lambda v: v + flame.rand(())
    x = flame.zeros(4)
    with pytest.raises(RuntimeError, match="randomness"):
        flame.func.vmap(draw)(x)
    assert len(set(flame.func.vmap(draw, randomness="different")(x).tolist())) == 4
    assert len(set(flame.func.vmap(draw, randomness="same")(x).tolist())) == 1


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: flame.func.grad(lambda v: v * 2)(x), RuntimeError, "scalar tensor"),
        (lambda x: flame.func.grad(lambda v: v.sum(), argnums=2)(x), RuntimeError, "argnum=2"),
        (lambda x: flame.func.grad(lambda v: v.sum())(flame.tensor([1, 2])), RuntimeError, "floating point"),
        (lambda x: flame.func.vmap(lambda v: v, in_dims=3)(x), ValueError, "dimensionality 1"),
        (lambda x: flame.func.vmap(lambda v, w: v, in_dims=(0, 0))(x, x[:2]), ValueError, "same size"),
        (lambda x: flame.func.vmap(lambda v: 1.0)(x), ValueError, "only return Tensors"),
        (lambda x: flame.func.jvp(lambda v: v, (x,), (x[:2],)), RuntimeError, "tangents of shapes"),
        (lambda x: flame.autograd.functional.hessian(lambda v: v, x), RuntimeError, "single element"),
        (lambda x: flame.autograd.functional.vjp(lambda v: v, x), RuntimeError, "can only be None"),
        (lambda x: flame.autograd.functional.jacobian(lambda v: 3, x), TypeError, "Tensor"),
        (lambda x: flame.autograd.gradcheck(lambda v: v, x), ValueError, "require gradient"),
    ],
)
def test_what_is_refused(call: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call(flame.tensor(B))


class WrongSlope(flame.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * 3


def test_gradcheck_tells_right_from_wrong() -> None:
    x = flame.tensor(A, requires_grad=True)
    y = flame.tensor(B, requires_grad=True)
    check, twice = flame.autograd.gradcheck, flame.autograd.gradgradcheck
    assert check(lambda a, b: (a @ b).sin(), (x, y)) and check(lambda a: (a.sum(0), a.exp()), x, fast_mode=True)
    assert twice(lambda a, b: (a @ b).sin(), (x, y))
    c = flame.complex(x.detach(), x.detach() * 0.7 + 0.2).requires_grad_()
    for fast in (False, True):
        assert check(lambda a: (flame.fft.fft(a) * a.conj()).abs(), c, fast_mode=fast)
        assert check(flame.fft.rfft, x, fast_mode=fast) and twice(lambda a: (a * a).angle(), c, fast_mode=fast)
        with pytest.raises(RuntimeError, match="Jacobian mismatch"):
            check(lambda a: a * a.detach(), c, fast_mode=fast)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        check(WrongSlope.apply, y)
    assert not check(WrongSlope.apply, y, raise_exception=False)
    with pytest.raises(RuntimeError, match="not deterministic"):
        check(lambda a: a * flame.rand(()), y)


def test_assert_close() -> None:
    close = flame.testing.assert_close
    x = flame.tensor([1.0, 2.0, float("nan")])
    close(x[:2], x[:2] * (1 + 1e-7))
    close({"a": [x[:1], 3]}, {"a": [x[:1].clone(), 3]})
    close(x, x.clone(), equal_nan=True)
    close(1.0, 1.0 + 1e-9)
    close(flame.tensor([1, 2]), np.array([1, 2]))
    for a, b, words in (
        (x, x, "Mismatched elements: 1 / 3"),
        (x[:2], x[:1], "'shape' do not match"),
        (x[:2], x[:2].double(), "'dtype' do not match"),
        ([x[0]], [x[1]], r"item \[0\]"),
        (1, 2, "Scalars are not equal"),
        ({"a": 1}, {"b": 1}, "keys of the mappings"),
    ):
        with pytest.raises(AssertionError, match=words):
            close(a, b)
    with pytest.raises(ValueError, match="rtol and atol"):
        close(x, x, rtol=1.0)
    with pytest.raises(TypeError, match="No comparison pair"):
        close(x, "x")
    with pytest.raises(AssertionError, match="mine"):
        close(1, 2, msg=lambda m: "mine: " + m)


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("point", [False, True])
def test_captured_results_require_grad_where_eager_ones_do(weight: bool, point: bool) -> None:
    """Only what leads to a tensor outside of the transform can be differentiated, whoever runs it."""
    w, k = flame.ones(3, requires_grad=True), flame.full((3,), 2.0)
    u = (flame.arange(3.0) * 0.3).requires_grad_(point)

    def results(u: flame.Tensor) -> list:
        f = lambda v: (v * (w if weight else k)).tanh()
        total = lambda v: f(v).sum()
        y, pull = flame.func.vjp(f, u)
        return [
            y,
            pull(k)[0],
            flame.func.jvp(f, (u,), (k,))[1],
            flame.func.jacrev(f)(u),
            flame.func.jacfwd(f)(u),
            flame.func.hessian(total)(u),
            flame.func.grad(total)(u),
            flame.func.grad_and_value(total)(u)[1],
            flame.func.vmap(flame.func.grad(total))(flame.stack([u, u])),
        ]

    def gradients(ys: list) -> list:
        w.grad = u.grad = None
        if any(y.requires_grad for y in ys):
            sum(y.sum() for y in ys if y.requires_grad).backward()
        return [None if t.grad is None else t.grad.numpy() for t in (w, u)]

    want = results(u)
    assert [y.requires_grad for y in want] == [weight or point] * 9
    slopes = gradients(want)
    compiled = flame.compile(results, backend="eager")
    for _ in range(3):
        got = compiled(u)
        assert [y.requires_grad for y in got] == [weight or point] * 9
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-6)
        for a, b in zip(gradients(got), slopes, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
