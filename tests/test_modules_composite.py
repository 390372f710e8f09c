"""Modules that are followed as one call, alone and in a row, until anything of them changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn.functional as F
from flame import nn
from tests.test_modules_compiled import same, t


def _patched(where: Any, name: str, value: Any) -> Callable[[], None]:
    had, before = name in vars(where), vars(where).get(name)
    setattr(where, name, value)
    return lambda: setattr(where, name, before) if had else delattr(where, name)


@pytest.mark.parametrize("how", ["instance", "class", "function", "hook", "property", "subclass"])
def test_a_module_that_is_one_composite_is_another_once_anything_of_it_is_replaced(how: str) -> None:
    """The call of such a module is followed as the call of its function, while both are what they were."""
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4))
    compiled = flame.compile(lambda x: net(x))
    with flame.no_grad():
        for k in range(4):
            same(compiled(t(2, 3, seed=k)), net(t(2, 3, seed=k)))
        first: Any = net[0]
        linear = F.linear
        undo: Callable[[], Any] = lambda: None
        match how:
            case "instance":
                first.forward = lambda x: F.linear(x, first.weight * 2)
                undo = lambda: delattr(first, "forward")
            case "class":
                undo = _patched(nn.Linear, "forward", lambda self, x: F.linear(x, self.weight * 3))
            case "function":
                undo = _patched(F, "linear", lambda x, w, b: linear(x, w * 4, b))
            case "hook":
                undo = first.register_forward_hook(lambda m, args, y: y * 5).remove
            case "property":
                w = first.weight
                del first.weight
                kind = type("Scaled", (nn.Linear,), {"weight": property(lambda self: w * 6)})
                object.__setattr__(first, "__class__", kind)
            case "subclass":
                object.__setattr__(
                    first, "__class__", type("Other", (nn.Linear,), {"forward": lambda self, x: x[..., :1] * self.bias})
                )
        before = compiled.stats.calls
        try:
            for k in range(4):
                same(compiled(t(2, 3, seed=k)), net(t(2, 3, seed=k)))
        finally:
            undo()
        for k in range(4):
            same(compiled(t(2, 3, seed=k)), net(t(2, 3, seed=k)))
        assert compiled.stats.calls >= before and compiled.stats.diverged


@pytest.mark.parametrize("how", ["append", "swap", "weight", "train", "inplace", "nested", "call", "dict", "random walk"])
def test_modules_in_a_row_that_are_one_call_are_others_once_anything_of_them_changes(how: str) -> None:
    """A Sequential of modules that are composites is followed as one call, while all of them are what they were."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    net: Any = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.5), nn.ReLU(), nn.LayerNorm(4)).eval()
    if how == "nested":
        net = nn.Sequential(nn.Linear(4, 4), inner, nn.ReLU())
    compiled = flame.compile(lambda x: net(x) + net(x * 2), fullgraph=how not in ("train", "call"))

    def check(calls: int = 4) -> None:
        for k in range(calls):
            x = t(2, 4, seed=k)
            flame.manual_seed(k)
            got = compiled(x)
            flame.manual_seed(k)
            same(got, net(x) + net(x * 2))

    def change(kind: int) -> None:
        first = net[0]
        if kind == 0:
            first.weight = nn.Parameter(first.weight.detach() * 1.5)
        elif kind == 1:
            net[0] = nn.Linear(4, 4)
        elif kind == 2:
            net.append(nn.Tanh())
        elif kind == 3:
            first.bias = None
        elif kind == 4:
            vars(first)["weight"] = first.weight.detach() * 2
        else:
            forward = type(first).forward
            first.forward = lambda x: forward(first, x) * 3

    with flame.no_grad():
        check()
        match how:
            case "append" | "swap" | "weight" | "dict":
                change({"append": 2, "swap": 1, "weight": 0, "dict": 4}[how])
            case "train":
                net.train()
                check()
                net.eval()
            case "inplace":
                net[3].inplace = True
            case "nested":
                inner[0] = nn.Linear(4, 4)
            case "call":
                kind = type("Loud", (nn.Linear,), {"__call__": lambda self, x: nn.Linear.__call__(self, x) * 2})
                net[0].__class__ = kind
            case "random walk":
                for kind in np.random.default_rng(0).integers(0, 6, 8):
                    change(int(kind))
                    check(3)
        check()


def test_modules_in_a_row_are_one_call_to_capture() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.ReLU())
    compiled = flame.compile(lambda x: net(x), fullgraph=True)
    for k in range(4):
        same(compiled(t(2, 4, seed=k)), net(t(2, 4, seed=k)))
    links = net._modules.chain
    assert links.function is not None and [n for _, n in links.function.parts] == [2, 1, 1]
    linears = {type(c).__name__ for s in _steps(compiled._capture.root) for m in s.macros or () for c in [m.function]}
    assert "Chained" in linears
    for changed in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        same(changed(t(2, 4)), net(t(2, 4)))
        assert changed._modules.chain is None
    net.append(nn.Tanh())
    assert net._modules.chain is None  # (it holds none of the modules that were there)


def _steps(root: Any) -> list[Any]:
    found = [root]
    for s in found:
        found += s.children
    return found


def test_what_a_subclass_asks_for_by_getattr_is_what_is_registered() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(super().__getattr__("inner"), name)

    wrapper: Any = Wrapper(nn.Linear(3, 4))
    assert wrapper.in_features == 3 and wrapper.inner is super(Wrapper, wrapper).__getattr__("inner")
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'depth'"):
        _ = wrapper.depth
    with pytest.raises(AttributeError, match="'ReLU' object has no attribute 'depth'"):
        _ = nn.ReLU().depth


@pytest.mark.parametrize(
    "m", [nn.Linear(3, 4), nn.LayerNorm(3), nn.GELU(), nn.ReLU(), nn.Softmax(-1), nn.Dropout(), nn.GroupNorm(1, 3)]
)
def test_modules_that_are_one_composite_are_followed_without_their_forward(m: Any) -> None:
    straight = type(m)._straight
    given = straight.arguments(type(m).forward, t(2, 3), m.__dict__)
    assert given is not None and len(given) == 1 + len(straight.names)


def test_a_compiled_container_is_followed_as_one_call_until_something_in_it_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    compiled, x, heard = flame.compile(model), flame.randn(5, 3), []

    def same() -> None:
        with flame.no_grad():
            for _ in range(3):
                np.testing.assert_allclose(compiled(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)

    same()
    steps, calls = [compiled._compiled._capture.root], []
    for s in steps:
        calls += [m.function for m in s.macros or ()]
        steps += s.children
    assert any(len(getattr(f, "parts", ())) == 3 for f in calls)  # (a call of all three)
    hook = model[1].register_forward_hook(lambda m, args, out: heard.append(out.shape))
    same()
    assert len(heard) == 6
    hook.remove()
    hook = model.register_forward_hook(lambda m, args, out: out + 1)
    same()
    hook.remove()
    vars(model[1])["forward"] = lambda input: input * 3
    same()
    del vars(model[1])["forward"]
    model[1] = nn.Tanh()
    same()
