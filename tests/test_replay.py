"""`mode="replay"`: the same results without Python where that is safe, Python where it is not, and audits that tell."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn.functional as F
from flame import nn
from flame.changes import changes

CALLS = 7


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def tensor(*shape: int, seed: int = 0, grad: bool = False) -> Any:
    return flame.tensor(array(*shape, seed=seed), requires_grad=grad)


def agrees(f: Callable, calls: list, *, replayed: int, after: Callable = lambda y: y, backend: str = "auto") -> Any:
    """Compiled in replay mode, `f` gives eager's results at every call, and at least so many of them skip Python."""
    compiled = flame.compile(f, mode="replay", backend=backend)
    for args in calls:
        want, got = after(f(*args)), after(compiled(*args))
        close(got, want)
    assert compiled.stats.replayed >= replayed, compiled.stats
    assert compiled.stats.calls == len(calls)
    return compiled


def close(got: Any, want: Any) -> None:
    assert type(got) is type(want)
    if isinstance(want, flame.Tensor):
        assert got.shape == want.shape and got.dtype is want.dtype and got.requires_grad == want.requires_grad
        np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=2e-5, atol=1e-6)
    elif isinstance(want, tuple | list):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            close(a, b)
    elif isinstance(want, dict):
        assert list(got) == list(want)
        for k in want:
            close(got[k], want[k])
    else:
        assert got == want


# ---- what is replayed


def of_shapes(*shapes: tuple, n: int = CALLS) -> list:
    return [tuple(tensor(*s, seed=10 * i + j) for j, s in enumerate(shapes)) for i in range(n)]


PROGRAMS: dict[str, tuple[Callable, list]] = {
    "pointwise": (lambda x: (x * 2 + 1).relu(), of_shapes((3, 4))),
    "two": (lambda x, y: (x @ y).softmax(-1), of_shapes((3, 4), (4, 5))),
    "empty": (lambda x: x.exp().sum(0), of_shapes((0, 4))),
    "scalar": (lambda x: x.exp(), of_shapes(())),
    "one element": (lambda x: x - x.mean(), of_shapes((1,))),
    "tuple": (lambda x: (x + 1, [x * 2, None], {"a": x.sum(), "b": 3, "c": "d", "e": (1.5, True)}), of_shapes((3,))),
    "odd structures": (lambda x: {("a", 1): x * 2, 3: [(x + 1, ())], None: {}}, of_shapes((3,))),
    "same twice": (lambda x: (lambda y: (y, y))(x * 2), of_shapes((3,))),
    "argument back": (lambda x: (x, x * 2), of_shapes((3,))),
    "a view of a result": (lambda x: (x * 2).t(), of_shapes((3, 4))),
    "result and its view": (lambda x: (lambda y: (y, y[1:]))(x * 2), of_shapes((3, 4))),
    "written result": (lambda x: (lambda y: y.add_(1).mul_(x))(x * 2), of_shapes((3, 4))),
    "nothing": (lambda x: (x * 2, None)[1], of_shapes((3,))),
    "structure": (lambda d: d["a"][0] * d["b"] + d["a"][1], [({"a": t, "b": 2.0},) for t in of_shapes((3,), (3,))]),
    "number": (lambda x, k: x * k, [(x, 2.5) for (x,) in of_shapes((3,))]),
    "complex": (lambda x, z: (x * z.real + z.imag, z), [(x, complex(2.5, -i // 99)) for i, (x,) in enumerate(of_shapes((3,)))]),
    "integers": (lambda x: (x * 3) % 5, [(flame.arange(6) + i,) for i in range(CALLS)]),
    "booleans": (lambda x: (x > 0, x.abs() > 0.5), of_shapes((6,))),
    "half": (lambda x: x.half() * 2, of_shapes((5,))),
    "columns": (lambda x: x + 1, [(x.t(),) for (x,) in of_shapes((3, 4))]),
    "strided": (lambda x: x + 1, [(x[::2],) for (x,) in of_shapes((6, 4))]),
    "from numpy": (lambda x: x + 1, [(flame.from_numpy(array(4, seed=i)),) for i in range(CALLS)]),
    "gather": (lambda x, i: x[i], [(x, flame.tensor([0, 2, 1])) for (x,) in of_shapes((3, 4))]),
    "computed index": (lambda x: x[(x.sum(1) > 0).long()], of_shapes((3, 4))),
    "no grad": (lambda x: x * 2, [(x.requires_grad_(),) for (x,) in of_shapes((3,))]),
}


@pytest.mark.parametrize("backend", ["auto", "interpret"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_replayed_is_eager(name: str, backend: str) -> None:
    f, calls = PROGRAMS[name]
    with flame.no_grad() if name == "no grad" else flame.enable_grad():
        agrees(f, calls, replayed=2, backend=backend)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_modules_are_replayed(train: bool, grad: bool) -> None:
    flame.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Sequential(nn.GELU(), nn.Dropout(0.5)), nn.Linear(8, 2)).train(
        train
    )
    twin = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Sequential(nn.GELU(), nn.Dropout(0.5)), nn.Linear(8, 2)).train(
        train
    )
    twin.load_state_dict(net.state_dict())
    f = flame.compile(net, mode="replay")
    with flame.set_grad_enabled(grad):
        for i in range(9):
            x = tensor(5, 4, seed=i)
            flame.manual_seed(i // 2)
            want = [twin(x), twin(x)]
            flame.manual_seed(i // 2)
            close([f(x), f(x)], want)
            if grad:
                want[1].sum().backward()
                f(x).sum().backward()
                twin(x)  # (its statistics have seen the batch as often)
                for p, q in zip(net.parameters(), twin.parameters(), strict=True):
                    p.grad = q.grad = None
            else:
                f(x), twin(x)
    for (name, a), b in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
    assert f.stats.replayed > 15 and not f.stats.fallbacks, f.stats


def test_gradients_flow_through_replayed_calls() -> None:
    w, v = tensor(3, 3, seed=1, grad=True), tensor(3, 3, seed=1, grad=True)
    f = flame.compile(lambda x, w: ((x @ w).tanh(), (w * 2).t()), mode="replay")
    for i in range(CALLS):
        x = tensor(2, 3, seed=i)
        a, b = f(x, w)
        (a.sum() + (b * b).sum()).backward()
        ((x @ v).tanh().sum() + ((v * 2).t() ** 2).sum()).backward()
        np.testing.assert_allclose(w.grad.numpy(), v.grad.numpy(), rtol=1e-5)
    assert f.stats.replayed >= 3
    y = f(tensor(2, 3), w)[0].sum()
    (g,) = flame.autograd.grad(y, [w], create_graph=True)
    (h,) = flame.autograd.grad(g.square().sum(), [w])
    z = (tensor(2, 3) @ v).tanh().sum()
    (k,) = flame.autograd.grad(flame.autograd.grad(z, [v], create_graph=True)[0].square().sum(), [v])
    np.testing.assert_allclose(h.numpy(), k.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("zero", ["before", "inside", "never"])
def test_a_training_step_is_replayed(zero: str) -> None:
    def train(wrap: Callable) -> tuple:
        net = nn.Linear(3, 2)
        net.load_state_dict({"weight": tensor(2, 3, seed=5), "bias": tensor(2, seed=6)})

        @wrap
        def step(net, x):
            if zero == "inside":
                net.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            with flame.no_grad():
                for p in net.parameters():
                    p.sub_(0.1 * p.grad)
            return loss.detach()

        losses = []
        for i in range(12):
            if zero == "before":
                net.zero_grad()
            losses.append(step(net, tensor(4, 3, seed=i)).item())
        return losses, [p.detach().numpy() for p in net.parameters()], [p.grad.numpy() for p in net.parameters()], step

    want, got = train(lambda f: f), train(lambda f: flame.compile(f, mode="replay"))
    for a, b in zip(want[:3], got[:3], strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6)
    assert got[3].stats.replayed >= 5, got[3].stats


def test_random_numbers_go_on_as_eager() -> None:
    f = lambda x: F.dropout(x, 0.5) + flame.rand(4) + flame.randn(4)
    compiled = flame.compile(f, mode="replay")
    x = tensor(4)
    for seed in range(3):
        flame.manual_seed(seed)
        want = [f(x) for _ in range(CALLS)]
        state = flame.get_rng_state()
        flame.manual_seed(seed)
        close([compiled(x) for _ in range(CALLS)], want)
        assert flame.get_rng_state().tolist() == state.tolist()
    assert compiled.stats.replayed > 10


def test_results_are_new_memory_at_each_call() -> None:
    f = flame.compile(lambda x: x * 2, mode="replay")
    x = tensor(3)
    ys = [f(x) for _ in range(CALLS)]
    assert len({y.data_ptr() for y in ys}) == CALLS
    ys[-1].fill_(0)
    assert ys[-2].tolist() == (x * 2).tolist()


def test_a_written_argument_is_written_by_each_call() -> None:
    f = flame.compile(lambda x, y: x.add_(y), mode="replay")
    x, y = flame.zeros(3), flame.ones(3)
    for i in range(CALLS):
        got = f(x, y)
        assert got is x and x.tolist() == [i + 1.0] * 3 and x._version == i + 1
    assert f.stats.replayed >= 3
    assert f(x, x) is x and x.tolist() == [2.0 * CALLS] * 3, "one tensor twice is another kind of call"
    base = flame.zeros(6)
    for _ in range(CALLS):
        f(base[::2], y)
    assert base.tolist() == [CALLS, 0] * 3
    shared = flame.zeros(3)
    other = shared.detach()
    for _ in range(CALLS):
        f(shared, other)
        shared.add_(1)
    want = 0
    for _ in range(CALLS):
        want = 2 * want + 1
    assert shared.tolist() == [want] * 3


# ---- what is told apart


def test_each_kind_of_argument_is_a_call_of_its_own() -> None:
    def f(x, k, flag):
        return (x * k, flag) if flag else (x - k, k)

    compiled = flame.compile(f, mode="replay")
    kinds = [
        (tensor(3), 2.0, True), (tensor(3), 3.0, True), (tensor(3), 2, True), (tensor(3), 2.0, False), (tensor(3), 0.0, True),
        (tensor(3), -0.0, True), (tensor(4), 2.0, True), (tensor(3, 1), 2.0, True), (flame.arange(3), 2.0, True),
    ]  # fmt: skip
    for _ in range(8):
        for args in kinds:
            got, want = compiled(*args), f(*args)
            close(got, want)
            assert np.signbit(got[0].numpy()).tolist() == np.signbit(want[0].numpy()).tolist()
    close(compiled(x=tensor(3), k=2.0, flag=True), f(tensor(3), 2.0, True))
    close(compiled(tensor(3), flag=True, k=2.0), f(tensor(3), 2.0, True))
    with pytest.raises(TypeError):
        compiled(tensor(3), 2.0)
    with pytest.raises(TypeError):
        compiled(tensor(3), 2.0, True, 4)


@pytest.mark.parametrize("grad", [False, True])
def test_sizes_share_a_path_and_are_replayed_each(grad: bool) -> None:
    w = tensor(4, seed=3, grad=grad)

    def f(x):
        return (x * w).sum(0) / x.shape[0], x.reshape(-1) * 2, x.flatten().cumsum(0)

    compiled = flame.compile(f, mode="replay")
    table = flame.compile(lambda x, i: x[i] + x.shape[0], mode="replay")
    for i in range(10):
        for n in (3, 5, 7, 6):
            x = tensor(n, 4, seed=i)
            want, got = f(x), compiled(x)
            close(got, want)
            if grad:
                got[0].sum().backward()
                g, w.grad = w.grad, None
                want[0].sum().backward()
                np.testing.assert_allclose(g.numpy(), w.grad.numpy(), rtol=1e-5)
                w.grad = None
            last = flame.tensor([n - 1])
            close(table(x, last), x[n - 1 :] + n)
            with pytest.raises(IndexError):
                table(x, last + 1)
    assert compiled.stats.replayed >= 12, compiled.stats
    assert compiled.stats.compiled < 4 and table.stats.replayed >= 8


def test_the_program_itself_tells_arguments_apart_where_it_is_called_directly() -> None:
    """Rows of two elements and more: their arrays are compared natively, and what does not fit is a call of another kind."""

    def f(x: Any, y: Any) -> Any:
        return x @ y + x, x.stride()

    def entries(*args: Any) -> Any:
        compiled = flame.compile(f, mode="replay")
        for _ in range(CALLS):
            close(compiled(*args), f(*args))
        assert compiled.stats.replayed > 0
        return compiled

    def direct(compiled: Any) -> bool:
        return any("enter" in e._names for e in compiled._replays.entries)

    x, y = tensor(5, 5), tensor(5, 5, seed=1)
    compiled = entries(x, y)
    assert direct(compiled)
    count = compiled.stats.replayed
    others: list[tuple[Any, Any]] = [
        (x.t(), y), (x, y.t()), (x, flame.empty(5, 10)[:, ::2].copy_(y)), (x.double(), y.double()),
        (flame.tensor(array(5, 6))[:, :5], y),
    ]  # fmt: skip
    for args in others:
        close(compiled(*args), f(*args))
    assert compiled.stats.replayed == count
    for _ in range(2):  # (the first is an audit)
        close(compiled(x, y), f(x, y))
    assert compiled.stats.replayed == count + 1
    close(compiled(x[:4], y), f(x[:4], y))
    assert not direct(entries(tensor(1, 1), tensor(1, 1)))  # (rows of one element have strides that the program does not see)
    assert not direct(entries(tensor(4, 4).t(), tensor(4, 4)))
    with flame.profiler.profile() as p:
        close(compiled(x, y), f(x, y))
    assert any(e.kind == "program" for e in p.events())


def test_gradient_mode_and_what_wants_gradients_are_told_apart() -> None:
    f = flame.compile(lambda x: (x * 2, flame.is_grad_enabled(), flame.is_inference_mode_enabled()), mode="replay")
    plain, leaf = tensor(3), tensor(3, grad=True)
    for _ in range(CALLS):
        for x in (plain, leaf, leaf * 1, leaf[:]):
            y, enabled, _ = f(x)
            assert y.requires_grad is x.requires_grad and enabled
        with flame.no_grad():
            assert f(leaf)[1:] == (False, False)
        with flame.inference_mode():
            assert f(leaf)[1:] == (False, True)
    assert f.stats.replayed > 10
    plain.requires_grad_()
    assert f(plain)[0].requires_grad


def test_default_dtype_is_seen() -> None:
    f = flame.compile(lambda x: x + flame.full((3,), 0.5), mode="replay")
    x = flame.arange(3)
    for _ in range(CALLS):
        assert f(x).dtype is flame.float32
    flame.set_default_dtype(flame.float64)
    try:
        assert f(x).dtype is flame.float64
    finally:
        flame.set_default_dtype(flame.float32)
    assert f(x).dtype is flame.float32


class Net(nn.Module):
    k = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3))
        self.register_buffer("shift", flame.zeros(3))
        self.scale = 1.0
        self.settings = {"power": 1, "names": ["a"]}
        self.about = types.SimpleNamespace(offset=0.0)

    def forward(self, x):
        y = self.inner(x) * self.scale + self.shift
        if self.training:
            y = y + 10
        if "b" in self.settings["names"]:
            y = -y
        return (y ** self.settings["power"] + self.about.offset) * self.k


def flip(n: Net) -> None:
    n.k = 2.0


def rebind(n: Net) -> None:
    n.inner[0].weight.data = tensor(3, 3, seed=77)


CHANGES: dict[str, Callable[[Net], Any]] = {
    "train": lambda n: n.eval(),
    "attribute": lambda n: setattr(n, "scale", 3.0),
    "new attribute": lambda n: setattr(n, "about", types.SimpleNamespace(offset=4.0)),
    "object": lambda n: setattr(n.about, "offset", 1.0),
    "dict": lambda n: n.settings.update(power=2),
    "list": lambda n: n.settings["names"].append("b"),
    "parameter": lambda n: setattr(n.inner[0], "weight", nn.Parameter(tensor(3, 3, seed=9))),
    "no bias": lambda n: n.inner[0].register_parameter("bias", None),
    "frozen": lambda n: n.requires_grad_(False),
    "buffer": lambda n: setattr(n, "shift", flame.ones(3)),
    "buffer in its registry": lambda n: n._buffers.__setitem__("shift", flame.ones(3)),
    "child": lambda n: n.inner.append(nn.Tanh()),
    "another child": lambda n: n.inner.__setitem__(0, nn.Identity()),
    "dtype": lambda n: n.double().float(),
    "loaded": lambda n: n.load_state_dict({k: v * 2 for k, v in n.state_dict().items()}),
    "assigned": lambda n: n.load_state_dict({k: v * 2 for k, v in n.state_dict().items()}, assign=True),
    "hook": lambda n: n.inner[0].register_forward_hook(lambda m, a, y: y * 2),
    "shadowed": flip,
    "class": lambda n: setattr(type(n), "k", 5.0),
    "method": lambda n: setattr(n, "forward", lambda x: x * 7),
    "data": rebind,
    "in place": lambda n: n.inner[0].weight.data.mul_(2),
    "history": lambda n: n.shift.add_(n.inner[0].bias),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("grad", [False, True])
def test_whatever_changes_in_a_module_is_seen_by_the_next_call(name: str, grad: bool) -> None:
    class Mine(Net):
        k = 1.0

    net = Mine()
    f = flame.compile(net, mode="replay")
    x = tensor(2, 3)
    with flame.set_grad_enabled(grad):
        for _ in range(CALLS):
            close(f(x), net(x))
        assert f.stats.replayed >= 2, f.stats
        token = changes.now
        CHANGES[name](net)
        noted = changes.now is not token
        assert noted or name in ("object", "dict", "list", "loaded", "class", "in place", "history")
        for _ in range(2 * CALLS):
            close(f(x), net(x))


def test_flips_between_training_and_evaluation_keep_both_entries() -> None:
    net = Net()
    f = flame.compile(net, mode="replay")
    x = tensor(2, 3)
    for i in range(40):
        net.train(i % 2 == 0)
        close(f(x), net(x))
    assert f.stats.replayed > 15


closure_k = 2.0
closure_table = flame.ones(3)
closure_list: list = [1.0]


def test_globals_closures_and_defaults_are_seen() -> None:
    global closure_k, closure_table
    shift = 1.0

    def helper(x):
        return x * closure_k + closure_list[0]

    by = flame.ones(3)

    def f(x, *, by=by):
        return helper(x) + closure_table + shift + by

    compiled = flame.compile(f, mode="replay")
    x = tensor(3)

    def check() -> None:
        before = compiled.stats.replayed
        for _ in range(CALLS):
            close(compiled(x), f(x))
        assert compiled.stats.replayed > before

    try:
        check()
        closure_k = 3.0
        check()
        closure_table = flame.zeros(3)
        check()
        shift = 5.0
        check()
        closure_list[0] = 7.0
        check()
        f.__kwdefaults__["by"] = flame.zeros(3)
        check()
        f.__kwdefaults__["by"].add_(1)  # values are read at each call
        check()
    finally:
        closure_k, closure_table, closure_list[0] = 2.0, flame.ones(3), 1.0


def test_objects_and_methods() -> None:
    class Affine:
        def __init__(self) -> None:
            self.k, self.w = 2.0, tensor(3, seed=4)

        @flame.compile(mode="replay")
        def f(self, x):
            return x * self.k + self.w

    a, b = Affine(), Affine()
    x = tensor(3)
    for _ in range(CALLS):
        close(a.f(x), x * a.k + a.w)
        close(b.f(x), x * b.k + b.w)
    assert a.f.stats.replayed >= 4
    a.k = 3.0
    for _ in range(CALLS):
        close(a.f(x), x * 3.0 + a.w)
    a.w = b.w * 2
    close(a.f(x), x * 3.0 + a.w)
