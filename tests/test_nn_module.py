"""Module: registration, state, hooks, copies, containers, and how models are printed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
import flame.nn.functional as F
from tests.test_nn import close

# -------------------------------------------------------------------- Module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False))
        self.scale = nn.Parameter(flame.ones(2))
        self.register_buffer("seen", flame.zeros(1))
        self.register_buffer("hidden", flame.zeros(1), persistent=False)
        self.extra = nn.Buffer(flame.ones(2))

    def forward(self, x: flame.Tensor) -> flame.Tensor:
        return self.rest(self.norm(self.a(x))) * self.scale


KEYS = (
    "scale seen extra a.weight a.bias norm.weight norm.bias norm.running_mean norm.running_var norm.num_batches_tracked "
    "rest.1.weight"
).split()


def test_registration_and_walking() -> None:
    m = Net()
    assert list(m.state_dict()) == KEYS
    assert [n for n, _ in m.named_parameters()] == [
        "scale", "a.weight", "a.bias", "norm.weight", "norm.bias", "rest.1.weight",
    ]  # fmt: skip
    assert [n for n, _ in m.named_buffers()] == [
        "seen", "hidden", "extra", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    ]  # fmt: skip
    assert [n for n, _ in m.named_modules()] == ["", "a", "norm", "rest", "rest.0", "rest.1"]
    assert [n for n, _ in m.named_children()] == ["a", "norm", "rest"]
    assert m.get_submodule("rest.1") is m.rest[1] and m.get_parameter("a.bias") is m.a.bias
    assert m.get_buffer("norm.running_mean") is m.norm.running_mean
    with pytest.raises(AttributeError, match="has no attribute `b`"):
        m.get_submodule("b")
    m.b = m.a  # shared modules and parameters are listed once
    assert len(list(m.parameters())) == 6 and len(list(m.named_parameters(remove_duplicate=False))) == 8
    del m.b
    assert not hasattr(m, "b") and "b" not in dict(m.named_children())


def test_attributes_that_register_refuse_other_things() -> None:
    m = Net()
    with pytest.raises(TypeError, match="cannot assign 'int' as parameter 'scale'"):
        m.scale = 3
    with pytest.raises(TypeError, match="cannot assign 'flame.tensor.Tensor' as parameter 'scale'"):
        m.scale = flame.ones(2)
    with pytest.raises(TypeError, match="cannot assign 'str' as child module 'a'"):
        m.a = "x"
    with pytest.raises(TypeError, match="cannot assign 'flame.tensor.Tensor' as child module 'a'"):
        m.a = flame.ones(1)
    with pytest.raises(KeyError, match="attribute 'a' already exists"):
        m.register_parameter("a", nn.Parameter(flame.ones(1)))
    with pytest.raises(KeyError, match="buffer name can.*t contain"):
        m.register_buffer("x.y", flame.ones(1))
    with pytest.raises(TypeError, match="cannot assign 'flame.tensor.Tensor' object to parameter 'late'"):
        m.register_parameter("late", nn.Parameter(flame.ones(1)) * 2)
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'nothing'"):
        getattr(m, "nothing")  # noqa: B009
    m.scale = None
    assert m.scale is None and "scale" not in m.state_dict()
    m.scale = nn.Parameter(flame.zeros(2))
    m.seen = flame.ones(1)
    assert m.state_dict()["seen"].item() == 1

    class Early(nn.Module):
        def __init__(self) -> None:
            self.w = nn.Parameter(flame.ones(1))

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Early()


def test_attributes_are_what_is_registered() -> None:
    """Registered parts are plain attributes too: whatever changes the one changes the other."""
    m = Net()
    p, q = m.scale, nn.Parameter(flame.zeros(2))
    m._parameters["scale"] = q
    assert m.scale is q
    m.scale = p
    assert m._parameters["scale"] is p
    assert m._parameters.pop("scale") is p and not hasattr(m, "scale")
    m.scale = nn.Linear(1, 1)  # the name may change its kind
    assert "scale" in m._modules and "scale" not in m._parameters
    m.scale = q
    assert m.scale is q and "scale" not in m._modules
    m._modules.update(rest=nn.Identity())
    assert isinstance(m.rest, nn.Identity)
    m._modules = {"a": m.a}
    assert not hasattr(m, "rest") and [n for n, _ in m.named_children()] == ["a"]
    m._buffers.clear()
    assert not hasattr(m, "seen") and list(m.buffers()) == []
    del m.a
    assert "a" not in m.__dict__ and list(m.children()) == []
    m._parameters |= {"late": p}
    assert m.late is p and m._parameters.setdefault("late", q) is p
    for other in (copy.copy(m), copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert list(other._parameters) == ["scale", "late"]
        other.scale = nn.Parameter(flame.ones(1))
        assert other._parameters["scale"] is other.scale and m.scale is q


def test_state_is_loaded_and_misfits_are_all_named() -> None:
    a, b = Net(), Net()
    assert repr(b.load_state_dict(a.state_dict())) == "<All keys matched successfully>"
    x = flame.randn(5, 3)
    assert np.array_equal(a(x).detach().numpy(), b(x).detach().numpy())
    state = a.state_dict()
    del state["scale"]
    state["rest.9.weight"] = flame.ones(1)
    state["a.weight"] = flame.ones(2, 2)
    with pytest.raises(RuntimeError) as e:
        b.load_state_dict(state)
    assert str(e.value) == (
        'Error(s) in loading state_dict for Net:\n\tMissing key(s) in state_dict: "scale". \n\t'
        'Unexpected key(s) in state_dict: "rest.9.weight". \n\tsize mismatch for a.weight: copying a param with shape '
        "flame.Size([2, 2]) from checkpoint, the shape in current model is flame.Size([4, 3])."
    )
    del state["a.weight"]
    got = b.load_state_dict(state, strict=False)
    assert got.missing_keys == ["scale", "a.weight"] and got.unexpected_keys == ["rest.9.weight"]
    w = flame.full((4, 3), 7.0)
    b.load_state_dict({"a.weight": w}, strict=False, assign=True)
    assert b.a.weight[0, 0].item() == 7 and isinstance(b.a.weight, nn.Parameter) and b.a.weight.requires_grad


def test_state_dict_shares_memory_and_has_no_history() -> None:
    m = nn.Linear(2, 2)
    s = m.state_dict()
    assert not s["weight"].requires_grad
    with flame.no_grad():
        m.weight.fill_(3)
    assert s["weight"][0, 0].item() == 3
    assert m.state_dict(keep_vars=True)["weight"] is m.weight
    assert list(m.state_dict(prefix="x.")) == ["x.weight", "x.bias"]


def test_modes_conversion_and_application() -> None:
    m = Net()
    m.eval()
    assert not any(c.training for c in m.modules())
    m.train()
    assert all(c.training for c in m.modules())
    assert m.double() is m and m.a.weight.dtype is flame.float64 and m.norm.num_batches_tracked.dtype is flame.int64
    assert isinstance(m.a.weight, nn.Parameter)
    assert m(flame.randn(4, 3, dtype=flame.float64)).dtype is flame.float64
    m.to(flame.bfloat16)
    assert m.scale.dtype is flame.bfloat16
    m.to("cpu").to(dtype=flame.float32)
    assert m.scale.dtype is flame.float32
    with pytest.raises(TypeError, match="only accepts floating"):
        m.to(flame.int32)
    names = []
    m.apply(lambda c: names.append(type(c).__name__))
    assert names == ["Linear", "BatchNorm1d", "ReLU", "Linear", "Sequential", "Net"]
    m(flame.randn(4, 3)).sum().backward()
    m.zero_grad()
    assert all(p.grad is None for p in m.parameters())
    m.requires_grad_(False)
    assert not m(flame.randn(4, 3)).requires_grad


def test_gradients_follow_a_conversion() -> None:
    m = nn.Linear(2, 1)
    m(flame.ones(1, 2)).sum().backward()
    m.double()
    assert m.weight.grad.dtype is flame.float64
    m(flame.ones(1, 2, dtype=flame.float64)).sum().backward()
    assert m.weight.grad.tolist() == [[2, 2]]


def test_copies_and_pickles_are_independent() -> None:
    m = Net()
    m(flame.randn(4, 3)).sum().backward()
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert isinstance(other.a.weight, nn.Parameter) and other.a.weight is not m.a.weight
        for k, v in m.state_dict().items():
            assert np.array_equal(v.numpy(), other.state_dict()[k].numpy())
        with flame.no_grad():
            other.scale.fill_(9)
        assert m.scale[0].item() == 1
        other(flame.randn(4, 3)).sum().backward()
    assert np.array_equal(copy.deepcopy(m).scale.grad.numpy(), m.scale.grad.numpy())


def test_forward_hooks() -> None:
    m, log = nn.Linear(2, 2), []
    handles = [
        m.register_forward_pre_hook(lambda mod, args: log.append("pre") or (args[0] * 2,)),
        m.register_forward_hook(lambda mod, args, out: log.append("post") or out + 1),
        m.register_forward_pre_hook(lambda mod, args: log.append("first"), prepend=True),
        m.register_forward_hook(lambda mod, args, kwargs, out: log.append(sorted(kwargs)), with_kwargs=True),
    ]
    x = flame.ones(1, 2)
    want = F.linear(x * 2, m.weight, m.bias) + 1
    assert np.array_equal(m(x).detach().numpy(), want.detach().numpy())
    assert log == ["first", "pre", "post", []]
    for h in handles:
        h.remove()
    assert not m._hooked
    log.clear()
    m(x)
    assert log == []
    m.register_forward_hook(lambda mod, args, out: log.append(out), always_call=True)
    with pytest.raises(RuntimeError):
        m(flame.ones(1, 5))
    assert log == [None]


def test_backward_hooks_see_and_change_gradients() -> None:
    m, log = nn.Linear(2, 1, bias=False), []

    def hook(mod: Any, grad_in: tuple, grad_out: tuple) -> tuple:
        log.append((grad_in[0].tolist(), grad_out[0].tolist()))
        return (grad_in[0] * 10,)

    with flame.no_grad():
        m.weight.copy_(flame.tensor([[2.0, 3.0]]))
    m.register_full_backward_hook(hook)
    m.register_full_backward_pre_hook(lambda mod, g: (g[0] * 5,))
    x = flame.ones(1, 2, requires_grad=True)
    m(x).sum().backward()
    assert log == [([[10.0, 15.0]], [[5.0]])]
    assert x.grad.tolist() == [[100, 150]] and m.weight.grad.tolist() == [[5, 5]]
    log.clear()
    m2 = nn.Linear(2, 1)
    m2.register_full_backward_hook(lambda mod, gi, go: log.append(gi))
    m2(flame.ones(1, 2)).sum().backward()
    assert log == [(None,)]


def test_compiled_modules_are_the_module() -> None:
    m = Net()
    c = flame.compile(m)
    assert isinstance(c, Net) and c._orig_mod is m and list(c.state_dict()) == KEYS
    assert c.a is m.a and list(c.parameters())[0] is m.scale
    c.eval()
    assert not m.training
    c.train()
    for _ in range(3):
        x = flame.randn(4, 3)
        other = copy.deepcopy(m)
        close(c(x), other(x))
        close(m.norm.running_mean, other.norm.running_mean)
    assert c.stats.calls == 3
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(c, "nothing")  # noqa: B009
    c.scale = nn.Parameter(flame.zeros(2))
    assert not m(x).any() and not c(x).any()
    clone = pickle.loads(pickle.dumps(c))
    assert type(clone) is Net
    twin = copy.deepcopy(c)
    assert twin.scale is not m.scale and not twin(x).any()

    m.compile()
    for _ in range(3):
        assert not m(x).any()
    assert type(copy.deepcopy(m)) is Net


def test_containers() -> None:
    s = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert len(s) == 3 and isinstance(s[1], nn.ReLU) and s[-1].out_features == 1 and len(s[:2]) == 2
    s.append(nn.Tanh()).insert(1, nn.Identity())
    assert [type(m).__name__ for m in s] == ["Linear", "Identity", "ReLU", "Linear", "Tanh"]
    del s[1]
    assert list(dict(s.named_children())) == ["0", "1", "2", "3"]
    assert isinstance(s.pop(-1), nn.Tanh)
    s[1] = nn.GELU()
    assert isinstance(s[1], nn.GELU)
    assert len(s + nn.Sequential(nn.ReLU())) == 4 and len(s * 2) == 6
    with pytest.raises(IndexError):
        s[7]
    named = nn.Sequential({"first": nn.Linear(2, 2), "second": nn.ReLU()})
    assert list(named.state_dict()) == ["first.weight", "first.bias"] and isinstance(named.second, nn.ReLU)

    items = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    items += [nn.ReLU()]
    assert len(items) == 4 and len(items[1:]) == 3 and len(list(items.parameters())) == 6
    items.insert(0, nn.Tanh())
    assert isinstance(items[0], nn.Tanh) and isinstance(items[4], nn.ReLU)
    with pytest.raises(NotImplementedError):
        items(1)

    table = nn.ModuleDict({"a": nn.Linear(1, 1)})
    table["b"] = nn.ReLU()
    assert list(table) == ["a", "b"] and "a" in table and list(table.state_dict()) == ["a.weight", "a.bias"]
    assert isinstance(table.pop("b"), nn.ReLU) and len(table) == 1

    ps = nn.ParameterList([flame.ones(2), nn.Parameter(flame.zeros(1))])
    ps.append(flame.ones(3))
    assert list(ps.state_dict()) == ["0", "1", "2"] and ps[0].requires_grad and len(ps[1:]) == 2
    pd = nn.ParameterDict({"x": flame.ones(2)})
    pd["y"] = nn.Parameter(flame.zeros(1))
    assert list(pd.keys()) == ["x", "y"] and [n for n, _ in pd.named_parameters()] == ["x", "y"]
    del pd["x"]
    assert "x" not in pd and len(pd) == 1


@pytest.mark.oracle
def test_models_are_printed_as_pytorch_prints_them(torch: Any) -> None:
    def build(nn: Any) -> Any:
        block = lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        return nn.ModuleDict({"a": nn.ModuleList([block(), block(), nn.Tanh()]), "b": nn.Sequential(), "c": nn.ModuleList()})

    assert repr(build(nn)) == repr(build(torch.nn))
    for n in (nn, torch.nn):
        assert repr(n.MultiheadAttention(4, 2)).startswith("MultiheadAttention(\n  (out_proj):")
