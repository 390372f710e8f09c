"""Parametrizations, lazy layers, fusion, calls with other weights: beside PyTorch on its own weights, and by their promises."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
from flame.nn.utils import fusion, parametrizations, parametrize
from flame.nn.utils.stateless import functional_call


def close(a: Any, b: Any, tol: float = 2e-5) -> None:
    x, y = (np.asarray(t.detach().numpy(), np.float64) for t in (a, b))
    assert x.shape == y.shape
    np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


def load_into(torch: Any, theirs: Any, ours: nn.Module) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({k: torch.tensor(v.numpy().copy()) for k, v in ours.state_dict().items()})


# -------------------------------------------------------------------- parametrizations beside PyTorch

#: id -> (layer of a library, how it is parametrized, shape of the input)
NORMS: dict[str, tuple[Callable, Callable, tuple]] = {
    "weight norm": (lambda n: n.Linear(3, 4), lambda n, m: n.utils.parametrizations.weight_norm(m), (2, 3)),
    "weight norm, dim 1": (lambda n: n.Conv2d(3, 4, 2), lambda n, m: n.utils.parametrizations.weight_norm(m, dim=1), (2, 3, 5, 5)),
    "weight norm in all": (lambda n: n.Linear(3, 4), lambda n, m: n.utils.parametrizations.weight_norm(m, dim=None), (2, 3)),
    "spectral norm": (
        lambda n: n.Linear(3, 4), lambda n, m: n.utils.parametrizations.spectral_norm(m, n_power_iterations=2), (2, 3),
    ),
    "spectral norm, transposed": (
        lambda n: n.ConvTranspose1d(3, 4, 2), lambda n, m: n.utils.parametrizations.spectral_norm(m), (2, 3, 5),
    ),
    "orthogonal": (lambda n: n.Linear(4, 4), lambda n, m: n.utils.parametrizations.orthogonal(m), (2, 4)),
    "cayley": (lambda n: n.Linear(3, 5), lambda n, m: n.utils.parametrizations.orthogonal(m, orthogonal_map="cayley"), (2, 3)),
    "householder, wide": (lambda n: n.Linear(5, 3), lambda n, m: n.utils.parametrizations.orthogonal(m), (2, 5)),
    "older weight norm": (lambda n: n.Linear(3, 4), lambda n, m: n.utils.weight_norm(m), (2, 3)),
    "older spectral norm": (lambda n: n.Conv1d(3, 4, 2), lambda n, m: n.utils.spectral_norm(m), (2, 3, 5)),
}  # fmt: skip


def drawn(shape: tuple) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.oracle
@pytest.mark.parametrize("key", NORMS)
@pytest.mark.filterwarnings("ignore:`.*weight_norm` is deprecated:FutureWarning")
def test_normalised_weights_agree_with_pytorch(torch: Any, key: str) -> None:
    make, change, shape = NORMS[key]
    flame.manual_seed(2)
    ours, theirs = change(nn, make(nn)), change(torch.nn, make(torch.nn))
    if key in ("orthogonal", "cayley", "householder, wide"):  # somewhere else than at the identity
        with flame.no_grad():
            n, k = ours.weight.shape  # (off the diagonal, which PyTorch's householder map takes as whole numbers)
            ours.parametrizations.weight.original.add_(flame.randn(n, k) * 0.2 * (1 - flame.eye(n, k)))
    load_into(torch, theirs, ours)
    assert repr(ours) == repr(theirs)
    for mode in (True, True, False):
        ours.train(mode)
        theirs.train(mode)
        x, t = flame.tensor(drawn(shape), requires_grad=True), torch.tensor(drawn(shape), requires_grad=True)
        y, z = ours(x), theirs(t)
        close(y, z)
        for m in (ours, theirs):
            m.zero_grad()
        (y * y).sum().backward()
        (z * z).sum().backward()
        close(x.grad, t.grad, 1e-4)
        for (n, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert p.grad is not None, n
            close(p.grad, q.grad, 2e-4)
        for b, c in zip(ours.buffers(), theirs.buffers(), strict=True):
            close(b, c, 1e-4)


@pytest.mark.parametrize("key", ["weight norm", "spectral norm", "householder, wide"])
def test_compiled_parametrizations_are_the_eager_ones(key: str) -> None:
    make, change, shape = NORMS[key]
    eager = change(nn, make(nn))
    compiled = flame.compile(copy.deepcopy(eager))
    for k in range(3):
        a, b = (m(flame.tensor(drawn(shape) + k)) for m in (eager, compiled))
        close(a, b)
        a.sum().backward()
        b.sum().backward()
    for p, q in zip((*eager.parameters(), *eager.buffers()), (*compiled.parameters(), *compiled.buffers()), strict=True):
        close(p, q)
        if p.grad is not None:
            close(p.grad, q.grad, 1e-4)


class Symmetric(nn.Module):
    def forward(self, x: flame.Tensor) -> flame.Tensor:
        return x.triu() + x.triu(1).mT

    def right_inverse(self, x: flame.Tensor) -> flame.Tensor:
        return x.triu()


class Doubled(nn.Module):
    def forward(self, x: flame.Tensor) -> flame.Tensor:
        return x * 2.0

    def right_inverse(self, x: flame.Tensor) -> flame.Tensor:
        return x / 2.0


def test_a_parametrized_tensor_is_computed_from_its_original() -> None:
    m = nn.Linear(3, 3)
    w = m.weight
    optimizer = flame.optim.SGD(m.parameters(), lr=0.1)
    parametrize.register_parametrization(m, "weight", Symmetric())
    assert m.parametrizations.weight.original is w  # what an optimizer holds stays what is trained
    assert (m.weight == m.weight.mT).all() and type(m).__name__ == "ParametrizedLinear" and isinstance(m, nn.Linear)
    before = m.weight.detach().clone()
    m(flame.ones(1, 3)).sum().backward()
    optimizer.step()
    assert (m.weight != before).any() and (m.weight == m.weight.mT).all()
    parametrize.register_parametrization(m, "weight", Doubled())
    close(m.weight, m.parametrizations.weight[0](w) * 2.0)
    target = flame.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]])
    m.weight = target
    close(m.weight, target)
    assert parametrize.is_parametrized(m, "weight") and not parametrize.is_parametrized(m, "bias")
    assert parametrize.type_before_parametrizations(m) is nn.Linear
    parametrize.register_parametrization(m, "bias", Doubled())
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        close(twin(flame.ones(2, 3)), m(flame.ones(2, 3)))
        with flame.no_grad():
            twin.parametrizations.weight.original.zero_()
        assert not twin.weight.any() and m.weight.any()
    fresh = nn.Linear(3, 3)
    parametrize.transfer_parametrizations_and_params(m, fresh)
    close(fresh.weight, m.weight)
    parametrize.remove_parametrizations(m, "bias")
    assert "bias" in m._parameters and parametrize.is_parametrized(m)
    parametrize.remove_parametrizations(m, "weight")
    assert type(m) is nn.Linear and list(m.state_dict()) == ["bias", "weight"] and m.weight is w
    close(m.weight, target)


def test_parametrized_tensors_are_computed_once_where_that_is_wanted() -> None:
    calls = []

    class Counted(nn.Module):
        def forward(self, x: flame.Tensor) -> flame.Tensor:
            calls.append(1)
            return x

    m = nn.RNNCell(2, 2)
    parametrize.register_parametrization(m, "weight_hh", Counted())
    calls.clear()
    with parametrize.cached():
        for _ in range(3):
            m(flame.ones(1, 2))
    assert len(calls) == 1
    m(flame.ones(1, 2))
    assert len(calls) == 2
    layers = nn.LSTM(2, 3)
    parametrizations.weight_norm(layers, "weight_hh_l0")
    assert tuple(layers(flame.ones(4, 1, 2))[0].shape) == (4, 1, 3)


def test_parametrizations_that_do_not_fit_are_refused() -> None:
    class Half(nn.Module):
        def forward(self, x: flame.Tensor) -> Any:
            return x[:1]

    class Wide(nn.Module):
        def forward(self, x: flame.Tensor) -> Any:
            return x.double()

    m = nn.Linear(2, 2)
    for bad, words in ((Half(), "shape"), (Wide(), "dtype")):
        with pytest.raises(ValueError, match=words):
            parametrize.register_parametrization(m, "weight", bad)
    assert type(m) is nn.Linear and list(m.state_dict()) == ["weight", "bias"]
    with pytest.raises(ValueError, match="does not have a parameter"):
        parametrize.register_parametrization(m, "nothing", Doubled())
    with pytest.raises(ValueError, match="does not have a parametrization on"):
        parametrize.remove_parametrizations(m, "weight")
    with pytest.raises(ValueError, match="no parameter or buffer"):
        parametrizations.spectral_norm(m, "nothing")
    with pytest.raises(ValueError, match="positive"):
        parametrizations.spectral_norm(m, n_power_iterations=0)
    with pytest.raises(ValueError, match="Expected a matrix"):
        parametrizations.orthogonal(m, "bias")
    with pytest.raises(ValueError, match="orthogonal_map"):
        parametrizations.orthogonal(m, orthogonal_map="x")
    parametrizations.weight_norm(m)
    with pytest.raises(ValueError, match="sequence of"):
        parametrize.remove_parametrizations(m, "weight", leave_parametrized=False)
    with pytest.raises(AttributeError, match="prune is not there"):
        nn.utils.prune  # noqa: B018


@pytest.mark.parametrize("way", ["matrix_exp", "cayley", "householder"])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)], ids=str)
def test_orthogonal_matrices_stay_orthogonal(way: str, shape: tuple[int, int]) -> None:
    m = parametrizations.orthogonal(nn.Linear(*shape, bias=False), orthogonal_map=way)
    optimizer = flame.optim.SGD(m.parameters(), lr=0.5)
    first = m.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        (m.weight * flame.tensor(drawn(tuple(m.weight.shape)))).sum().backward()
        optimizer.step()
    w = m.weight if shape[0] >= shape[1] else m.weight.mT
    w = w if w.shape[0] <= w.shape[1] else w.mT
    close(w @ w.mT, flame.eye(min(shape)), 1e-5)
    assert (m.weight - first).abs().max().item() > 1e-3
    given = nn.init.orthogonal_(flame.empty(*m.weight.shape))
    m.weight = given
    close(m.weight, given, 1e-5)
    plain = parametrizations.orthogonal(nn.Linear(*shape), orthogonal_map=way, use_trivialization=False)
    w = plain.weight if plain.weight.shape[0] <= plain.weight.shape[1] else plain.weight.mT
    close(w @ w.mT, flame.eye(min(shape)), 1e-5)


@pytest.mark.filterwarnings("ignore:`.*weight_norm` is deprecated:FutureWarning")
def test_older_normalisations_can_be_taken_away() -> None:
    for add, remove in (
        (nn.utils.weight_norm, nn.utils.remove_weight_norm),
        (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
    ):
        m = add(nn.Linear(3, 4)).eval()
        x = flame.ones(2, 3)
        y = m(x)
        with pytest.raises(RuntimeError, match="two"):
            add(m)
        remove(m)
        close(m(x), y)
        assert list(m._parameters) == ["bias", "weight"] and not m._buffers and not m._hooked
        with pytest.raises(ValueError, match="not found"):
            remove(m)


# -------------------------------------------------------------------- lazy layers

LAZY: list[tuple[str, tuple, tuple]] = [
    ("LazyLinear", (4,), (2, 3)),
    *((f"LazyConv{n}d", (4, 2), (2, 6, *[5] * n)) for n in (1, 2, 3)),
    *((f"LazyConvTranspose{n}d", (4, 2), (2, 6, *[3] * n)) for n in (1, 2, 3)),
    *((f"Lazy{kind}Norm{n}d", (), (2, 3, *[4] * n)) for kind in ("Batch", "Instance") for n in (1, 2, 3)),
]


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "args", "shape"), LAZY, ids=lambda v: v if isinstance(v, str) else "")
def test_lazy_layers_become_ordinary_ones_as_pytorchs_do(torch: Any, name: str, args: tuple, shape: tuple) -> None:
    kwargs: dict[str, Any] = dict(groups=2) if "Conv" in name else {}
    ours, theirs = getattr(nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)
    assert list(dict(ours.named_parameters())) == list(dict(theirs.named_parameters())) and ours.has_uninitialized_params()
    optimizer = flame.optim.SGD(ours.parameters(), lr=0.1)
    plain = getattr(nn, name[4:])
    flame.manual_seed(3)
    y = ours(flame.tensor(drawn(shape)))
    theirs(torch.tensor(drawn(shape)))
    assert type(ours) is plain and not ours._hooked
    load_into(torch, theirs.eval(), ours.eval())
    close(ours(flame.tensor(drawn(shape))), theirs(torch.tensor(drawn(shape))))
    flame.manual_seed(3)
    more = dict(affine=True, track_running_stats=True) if "Instance" in name else {}
    same = plain(shape[-1] if name == "LazyLinear" else shape[1], *args, **kwargs, **more)
    for a, b in zip(ours.parameters(), same.parameters(), strict=True):
        assert np.array_equal(a.detach().numpy(), b.detach().numpy())
    y.sum().backward()
    optimizer.step()
    assert any((a != b).any() for a, b in zip(ours.parameters(), same.parameters(), strict=True))


def test_lazy_layers_take_what_is_loaded() -> None:
    source = nn.Linear(3, 4)
    m = nn.LazyLinear(4)
    with pytest.raises(RuntimeError, match="uninitialized parameter"):
        _ = m.weight.shape
    assert "UninitializedParameter" in repr(m.weight) and copy.deepcopy(m).has_uninitialized_params()
    m.load_state_dict(source.state_dict())
    assert not m.has_uninitialized_params()
    close(m(flame.ones(2, 3)), source(flame.ones(2, 3)))
    assert type(m) is nn.Linear and m.in_features == 3
    one = nn.Sequential(nn.LazyConv1d(2, 3), nn.LazyBatchNorm1d()).double()
    two = copy.deepcopy(one)
    assert one(flame.ones(2, 4, 5, dtype=flame.float64)).dtype is flame.float64
    assert two[0].has_uninitialized_params() and tuple(two(flame.ones(2, 6, 5, dtype=flame.float64)).shape) == (2, 2, 3)
    with pytest.raises(RuntimeError, match="Expected 2D"):
        nn.LazyConv1d(2, 3)(flame.ones(3))
    with pytest.raises(TypeError):
        nn.LazyLinear()
    compiled = flame.compile(nn.LazyLinear(2))
    assert [tuple(compiled(flame.ones(4, 3)).shape) for _ in range(3)] == [(4, 2)] * 3


# -------------------------------------------------------------------- fusion, other weights, other helpers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_normalisation_is_folded_into_the_layer_before_it(bias: bool, affine: bool) -> None:
    for layer, bn, x, transpose in (
        (nn.Conv2d(3, 4, 2, groups=1, bias=bias), nn.BatchNorm2d(4, affine=affine), flame.randn(2, 3, 5, 5), False),
        (nn.ConvTranspose1d(3, 4, 2, bias=bias), nn.BatchNorm1d(4, affine=affine), flame.randn(2, 3, 5), True),
        (nn.Linear(3, 4, bias=bias), nn.BatchNorm1d(4, affine=affine), flame.randn(6, 3), None),
    ):
        for p in bn.parameters():
            nn.init.uniform_(p, 0.5, 1.5)
        for _ in range(3):
            bn(layer(flame.randn(*x.shape)))
        with pytest.raises(AssertionError, match="only for eval"):
            fusion.fuse_conv_bn_eval(layer, bn)
        layer.eval()
        bn.eval()
        if transpose is None:
            fused = fusion.fuse_linear_bn_eval(layer, bn)
        else:
            fused = fusion.fuse_conv_bn_eval(layer, bn, transpose)
        close(fused(x), bn(layer(x)), 1e-5)
        assert fused.weight.requires_grad and layer.weight is not fused.weight


def test_a_module_is_called_with_other_weights() -> None:
    m = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    m[1].weight = m[0].bias  # shared
    m.eval()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    w, x = flame.eye(2, requires_grad=True), flame.randn(4, 2)
    y = functional_call(m, {"0.weight": w * 2.0, "0.bias": flame.zeros(2), "1.running_mean": flame.ones(2)}, x)
    y.square().sum().backward()
    assert w.grad is not None and not y.detach().any()  # the shared scale is the bias that was given, zero
    assert all((v == before[k]).all() for k, v in m.state_dict().items() if "num_batches" not in k)
    a = functional_call(m, [{"0.weight": w}, {"0.bias": flame.ones(2)}], (x,), {}, tie_weights=False)
    assert tuple(a.shape) == (4, 2)
    with pytest.raises(KeyError, match="nothing"):
        functional_call(m, {"nothing": w}, x)
    with pytest.raises(RuntimeError, match="Missing"):
        functional_call(m, {"0.weight": w}, x, strict=True)
    with pytest.raises(ValueError, match="multiple values"):
        functional_call(m, {"0.bias": flame.ones(2), "1.weight": flame.zeros(2)}, x)
    with pytest.raises(ValueError, match="multiple dictionaries"):
        functional_call(m, [{"0.bias": w}, {"0.bias": w}], x)

    def raising(_: Any) -> None:
        raise ValueError("inside")

    m[0].register_forward_pre_hook(lambda module, args: raising(args))
    with pytest.raises(ValueError, match="inside"):
        functional_call(m, {"0.weight": flame.zeros(2, 2)}, x)
    assert (m[0].weight == before["0.weight"]).all()


def test_small_helpers_of_modules() -> None:
    m = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU()))
    m.set_submodule("1.0", nn.GELU())
    assert isinstance(m[1][0], nn.GELU)
    m.set_submodule("1.more", nn.Tanh())
    for target, module, error in (("", nn.ReLU(), ValueError), ("1.x", 3, ValueError), ("9.x", nn.ReLU(), AttributeError)):
        with pytest.raises(error):
            m.set_submodule(target, module)
    with pytest.raises(AttributeError):
        m.set_submodule("1.other", nn.ReLU(), strict=True)
    assert m.to_empty()[0].weight.requires_grad and tuple(m[0].weight.shape) == (3, 2)
    flame.manual_seed(0)
    a = flame.rand(1)
    flame.manual_seed(0)
    made = nn.utils.skip_init(nn.Linear, 2, 3, bias=False)
    assert flame.rand(1).item() == a.item() and made.bias is None
    with pytest.raises(RuntimeError, match="Expected a Module"):
        nn.utils.skip_init(int, 3)
    with pytest.raises(RuntimeError, match="device"):
        nn.utils.skip_init(nn.ReLU)


# -------------------------------------------------------------------- names and defaults

#: differences that are meant: PyTorch hides these behind *args, or has arguments of deprecated names
OTHERWISE = {"Container", "GRU", "LSTM", "RNN", "NLLLoss2d", "Module", "Hardtanh"}


@pytest.mark.oracle
def test_layers_have_pytorchs_arguments_and_defaults(torch: Any) -> None:
    if not hasattr(torch.nn, "LinearCrossEntropyLoss"):
        pytest.skip("this version of PyTorch has fewer arguments")

    def arguments(cls: Any) -> list[tuple[str, str]]:
        ps = inspect.signature(cls).parameters.values()
        plain = [p for p in ps if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return [(p.name, getattr(p.default, "__name__", str(p.default))) for p in plain]

    checked = 0
    for name in nn.__all__:
        ours, theirs = getattr(nn, name), getattr(torch.nn, name, None)
        if isinstance(ours, type) and theirs is not None and name not in OTHERWISE:
            assert arguments(ours) == arguments(theirs), name
            checked += 1
    assert checked > 150
    names = [n for n in dir(torch.nn) if n[0].isupper() and isinstance(getattr(torch.nn, n), type)]
    assert [n for n in names if not hasattr(nn, n)] == []


def test_older_names_warn_and_do_the_same() -> None:
    w = flame.empty(3, 4)
    for name, args in (
        ("uniform", ()), ("normal", ()), ("constant", (2.0,)), ("eye", ()), ("xavier_uniform", ()), ("xavier_normal", ()),
        ("kaiming_uniform", ()), ("kaiming_normal", ()), ("orthogonal", ()), ("sparse", (0.5,)),
    ):  # fmt: skip
        with pytest.warns(FutureWarning, match=f"nn.init.{name}_"):
            flame.manual_seed(3)
            old = getattr(nn.init, name)(w, *args).clone()
        flame.manual_seed(3)
        assert np.array_equal(old.numpy(), getattr(nn.init, name + "_")(w, *args).numpy())
    with pytest.warns(FutureWarning, match="nn.init.dirac_"):
        nn.init.dirac(flame.empty(2, 2, 3))
    p = flame.ones(4, requires_grad=True)
    p.grad = flame.ones(4)
    with pytest.warns(FutureWarning, match="clip_grad_norm_"):
        assert nn.utils.clip_grad_norm(p, 1.0).item() == 2.0
    np.testing.assert_allclose(p.grad.numpy(), 0.5, rtol=1e-4)
