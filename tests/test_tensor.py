"""What a tensor promises: promotion, views and writes through them, indexing, printing, and the tape under all of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import flame

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")

# -------------------------------------------------------------------- promotion

NUMBERS = (True, 3, 2.5)
OPERATORS: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "pow": lambda a, b: a**b,
    "lt": lambda a, b: a < b,
    "and": lambda a, b: a & b,
}


def outcome(f: Callable) -> str:
    """The dtype of a result, or that there is none."""
    try:
        return str(f().dtype).split(".")[1]
    except (RuntimeError, TypeError, NotImplementedError):
        return "refused"


@pytest.mark.oracle
@pytest.mark.parametrize("op", OPERATORS)
def test_promotion_is_pytorchs(torch: Any, op: str) -> None:
    f = OPERATORS[op]

    def operands(module: Any) -> list[Any]:
        ts = [module.ones(shape, dtype=getattr(module, d)) for d in DTYPES for shape in ((2,), ())]
        return [*ts, *NUMBERS]

    wrong = []
    for (i, (a, b)), (c, d) in zip(
        enumerate(product(operands(flame), repeat=2)), product(operands(torch), repeat=2), strict=True
    ):
        if not isinstance(a, flame.Tensor) and not isinstance(b, flame.Tensor):
            continue
        ours, theirs = outcome(lambda: f(a, b)), outcome(lambda: f(c, d))
        if ours != theirs:
            wrong.append(f"{i}: {a!r} {op} {b!r}: {ours}, PyTorch {theirs}")
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.oracle
def test_in_place_keeps_the_dtype_or_refuses_as_pytorch_does(torch: Any) -> None:
    def change(module: Any, a: str, b: Any, op: str) -> str:
        x = module.ones(2, dtype=getattr(module, a))
        y = module.ones(2, dtype=getattr(module, b)) if isinstance(b, str) else b
        return outcome(lambda: getattr(x, op)(y))

    wrong = [
        (a, b, op, change(flame, a, b, op), change(torch, a, b, op))
        for a, b, op in product(DTYPES, (*DTYPES, *NUMBERS), ("add_", "mul_", "div_", "pow_", "copy_", "lt_"))
        if change(flame, a, b, op) != change(torch, a, b, op) and not (op == "copy_" and not isinstance(b, str))
    ]
    assert not wrong, wrong[:20]


def test_data_gives_pytorchs_dtypes() -> None:
    t = flame.tensor
    assert t(1).dtype is flame.int64 and t(1.0).dtype is flame.float32 and t(True).dtype is flame.bool
    assert t([1, 2.5]).dtype is flame.float32 and t([True, 2]).dtype is flame.int64 and t([]).dtype is flame.float32
    assert t(np.zeros(2)).dtype is flame.float64 and t([t(1), t(2)]).dtype is flame.int64
    assert flame.full((2,), 3).dtype is flame.int64 and flame.arange(3).dtype is flame.int64
    assert flame.arange(0, 1, 0.25).dtype is flame.float32
    with pytest.raises(ValueError, match="different lengths"):
        t([[1, 2], [3]])
    with pytest.raises(TypeError):
        t(["a"])


# -------------------------------------------------------------------- indexing


def random_index(rng: np.random.Generator, shape: tuple[int, ...], advanced: bool) -> tuple:
    """One index for an array of this shape, of the kinds that PyTorch and NumPy understand alike."""
    out: list[Any] = []
    adjacent: list[int] = []  # advanced indices side by side: NumPy moves separated ones to the front, as PyTorch does
    length = int(rng.integers(1, 4))
    for n in shape[: int(rng.integers(0, len(shape) + 1))]:
        kind = rng.integers(0, 6 if advanced else 4)
        if kind == 0 and n:
            out.append(int(rng.integers(-n, n)))
        elif kind == 4 and n:
            adjacent.append(len(out))
            out.append(rng.integers(-n, n, length))
        elif kind == 5 and n and not adjacent:
            adjacent.append(len(out))
            mask = rng.random(n) < 0.5
            mask[:length] = True
            mask[length:] = False
            out.append(rng.permutation(mask) if length <= n else rng.integers(0, n, length))
        else:
            a, b = sorted(int(v) for v in rng.integers(-n - 1, n + 2, 2))
            out.append(slice(None) if kind == 1 else slice(a, b, int(rng.integers(1, 3))))
    if rng.random() < 0.3:
        out.insert(int(rng.integers(0, len(out) + 1)), None)
    if rng.random() < 0.3:
        out.append(Ellipsis)
    return tuple(out)


def ours(index: tuple) -> tuple:
    return tuple(flame.tensor(i) if isinstance(i, np.ndarray) else i for i in index)


def examples(count: int, advanced: bool = True) -> list[tuple[np.ndarray, tuple]]:
    rng = np.random.default_rng(7)
    out = []
    while len(out) < count:
        shape = tuple(int(d) for d in rng.integers(0 if rng.random() < 0.1 else 1, 5, rng.integers(1, 5)))
        a = rng.standard_normal(shape).astype(np.float32)
        index = random_index(rng, shape, advanced)
        basic_ints = any(isinstance(i, int) for i in index)
        arrays = sum(isinstance(i, np.ndarray) for i in index)
        if arrays and basic_ints:  # NumPy counts integers among advanced indices, PyTorch does not
            continue
        try:
            a[index]
        except IndexError:
            continue
        out.append((a, index))
    return out


def test_reading_by_any_index_is_numpys() -> None:
    for a, index in examples(400):
        got, want = flame.tensor(a)[ours(index)].numpy(), a[index]
        assert got.shape == want.shape and np.array_equal(got, want), (a.shape, index)


def test_basic_indices_share_memory() -> None:
    for a, index in examples(150, advanced=False):
        t = flame.tensor(a)
        v = t[ours(index)]
        b = a.copy()
        b[index] = 7
        v.fill_(7)
        assert np.array_equal(t.numpy(), b), (a.shape, index)
        assert v._version == t._version


def test_writing_by_any_index_is_numpys() -> None:
    rng = np.random.default_rng(1)
    for a, index in examples(400):
        shape = a[index].shape
        value: Any = rng.standard_normal(tuple(1 if rng.random() < 0.2 else d for d in shape)).astype(np.float32)
        places = np.arange(a.size).reshape(a.shape)[index]
        if rng.random() < 0.3 or np.unique(places).size != places.size:  # which of two writes wins is not promised
            value = 2.5
        t, b = flame.tensor(a), a.copy()
        b[index] = value
        t[ours(index)] = flame.tensor(value) if isinstance(value, np.ndarray) else value
        assert np.array_equal(t.numpy(), b), (a.shape, index)


def test_gradients_of_reading_and_writing_by_any_index() -> None:
    rng = np.random.default_rng(2)
    for a, index in examples(150):
        w = rng.standard_normal(a[index].shape).astype(np.float32)
        x = flame.tensor(a, requires_grad=True)
        (x[ours(index)] * flame.tensor(w)).sum().backward()
        want = np.zeros_like(a)
        np.add.at(want, index, w)
        np.testing.assert_allclose(x.grad.numpy(), want, rtol=1e-5, atol=1e-6)
        places = np.arange(a.size).reshape(a.shape)[index]
        if np.unique(places).size != places.size:
            continue
        v = flame.tensor(w, requires_grad=True)
        x.grad = None
        y = x * 2
        y[ours(index)] = v
        c = rng.standard_normal(a.shape).astype(np.float32)
        (y * flame.tensor(c)).sum().backward()
        np.testing.assert_allclose(v.grad.numpy(), c[index], rtol=1e-5)
        kept = 2 * c
        kept[index] = 0
        got = np.zeros_like(a) if x.grad is None else x.grad.numpy()  # None: all of y was overwritten
        np.testing.assert_allclose(got, kept, rtol=1e-5)


def test_wrong_indices_say_so() -> None:
    t = flame.zeros(3, 4)
    for index, error in ((3, "out of"), ((0, 0, 0), "too many indices"), ((slice(None), 4), "out of")):
        with pytest.raises(IndexError, match=error):
            t[index]
    with pytest.raises((IndexError, TypeError)):
        t[1.5]
    with pytest.raises(ValueError, match="step must be"):
        t[::-1]
    with pytest.raises(IndexError):
        t[flame.tensor([True, False])]
    with pytest.raises((IndexError, RuntimeError)):
        t[flame.tensor([5])]
    with pytest.raises(RuntimeError):
        t[0] = flame.zeros(3)
    with pytest.raises(TypeError, match="0-d tensor"):
        iter(flame.tensor(1.0))


# -------------------------------------------------------------------- views, versions, writes


def test_views_share_versions_and_copies_do_not() -> None:
    x = flame.arange(6.0)
    v, c = x.view(2, 3), x.clone()
    x.add_(1)
    v[0].mul_(2)
    assert x._version == v._version == 2 and c._version == 0
    assert x.tolist() == [2, 4, 6, 4, 5, 6]
    assert x.data_ptr() == v.data_ptr() and v[1].storage_offset() == 3 and v.t().stride() == (1, 3)
    assert not v.t().is_contiguous() and v.t().contiguous().is_contiguous()
    with pytest.raises(RuntimeError, match="view"):
        v.t().view(6)
    assert v.t().reshape(6).tolist() == [2, 4, 4, 5, 6, 6]


def test_writes_where_autograd_forbids_them() -> None:
    leaf = flame.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        leaf.add_(1)
    with pytest.raises(RuntimeError, match="a view of a leaf Variable that requires grad"):
        leaf[0].add_(1)
    with flame.no_grad():
        leaf.add_(1)
    assert leaf.tolist() == [2, 2, 2] and leaf.requires_grad
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        flame.ones(1).expand(3).add_(1)
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        flame.ones(1).add_(flame.ones(3))


def test_a_saved_value_that_was_overwritten_is_noticed() -> None:
    x = flame.ones(3, requires_grad=True)
    y = x * 2
    z = y * y
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    y = x * 2
    z = y + y
    y.add_(1)  # not needed for the gradient
    z.sum().backward()
    assert x.grad.tolist() == [4, 4, 4]


def test_history_follows_writes_through_views() -> None:
    x = flame.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    y = x * 1
    v = y.view(2, 2)[1]
    v.mul_(x[:2])  # y = [x0, x1, x2 x0, x3 x1]
    (y * flame.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert x.grad.tolist() == [1 + 300, 10 + 4000, 100, 2000]
    z = flame.zeros(2, 2)
    w = z[0]
    z[:, 0] = x[:2].detach().requires_grad_()
    assert w.requires_grad and w.grad_fn is not None and w[0].item() == 1


def test_detached_tensors_share_memory_but_no_history() -> None:
    x = flame.ones(2, requires_grad=True)
    d = (x * 3).detach()
    assert not d.requires_grad and d.grad_fn is None and d.is_leaf
    y = x.detach()
    y.add_(5)
    assert x.tolist() == [6, 6]
    x.data.zero_()
    assert x.tolist() == [0, 0]
    x.data = flame.tensor([1.0, 2.0])
    assert x.tolist() == [1, 2] and x.requires_grad


# -------------------------------------------------------------------- reading, printing, copying


@pytest.mark.oracle
def test_printing_is_pytorchs(torch: Any) -> None:
    def build(m: Any) -> list[Any]:
        return [
            m.tensor(1), m.tensor(2.5), m.tensor([1.0, 2.0]), m.tensor([[1, -2], [30, 4]]), m.tensor([True, False]), m.tensor([]),
            m.tensor([1.5, 2.25], dtype=m.float64), m.tensor([1, 2], dtype=m.int32), m.tensor([0.5, 1.0], requires_grad=True),
            m.tensor([[[1.0]]]), m.zeros(2, 3), m.tensor([0.1234567, 2.0]), m.tensor([float("nan"), float("inf"), 1.0]),
            m.tensor([1.0, 2.0], dtype=m.bfloat16), m.zeros(0, 3), m.tensor([-1.0, 100.5]), m.tensor(3, dtype=m.uint8),
            m.tensor([1e10, 1.0]), m.tensor([1e-6, 1.0]), m.arange(3.0), m.tensor([1.0, 2.5e5]),
            m.arange(50), m.arange(30.0).reshape(2, 3, 5) / 7, m.arange(2000.0), m.arange(4000).reshape(40, 100),
            m.arange(1200.0).reshape(2, 2, 300), m.tensor([[True], [False]]), -m.arange(23) * 1000, m.tensor(float("nan")),
        ]  # fmt: skip

    wrong = [
        (repr(a), repr(b))
        for a, b in zip(build(flame), build(torch), strict=True)
        if repr(a) != repr(b).replace("torch", "flame")
    ]
    assert not wrong, "\n".join(f"{a}\n   PyTorch: {b}" for a, b in wrong)


def test_printing_names_where_a_value_comes_from() -> None:
    x = flame.ones(2, requires_grad=True)
    assert repr(x + 1) == "tensor([2., 2.], grad_fn=<AddBackward0>)"
    assert f"{flame.tensor(2.5):.2f}" == "2.50"
    assert repr(flame.ones(2).shape) == "flame.Size([2])"


def test_one_element_becomes_a_number() -> None:
    assert flame.tensor([2.5]).item() == 2.5 and int(flame.tensor(3.7)) == 3 and float(flame.tensor(3)) == 3.0
    assert [10, 20, 30][flame.tensor(1)] == 20 and bool(flame.tensor([0.0])) is False
    with pytest.raises(RuntimeError, match="2 elements cannot be converted to Scalar"):
        flame.ones(2).item()
    with pytest.raises(RuntimeError, match="Boolean value of Tensor with more than one value is ambiguous"):
        bool(flame.ones(2))
    with pytest.raises(TypeError, match="only integer tensors"):
        [1, 2][flame.tensor(1.0)]
    with pytest.raises(TypeError, match="len"):
        len(flame.tensor(1.0))
    assert len(flame.ones(4, 2)) == 4 and 1.0 in flame.ones(2) and 5.0 not in flame.ones(2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_pickles_and_copies(dtype: str) -> None:
    d = getattr(flame, dtype)
    t = flame.tensor([[0, 1, 1], [1, 0, 1]]).to(d).t()
    for other in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t), t.clone()):
        assert other.dtype is d and other.shape == (3, 2) and flame.equal(other, t)
        other.fill_(0)
        assert t.any()
    a = t.numpy()
    assert np.shares_memory(a, t.numpy())
    if dtype != "bfloat16":
        assert flame.from_numpy(a.copy()).dtype is d
        assert flame.equal(flame.from_dlpack(t.contiguous()), t)
    with pytest.raises(RuntimeError, match="requires grad"):
        flame.ones(2, requires_grad=True).numpy()


# -------------------------------------------------------------------- the tape


def test_gradients_add_up_in_leaves() -> None:
    x = flame.ones(2, requires_grad=True)
    for _ in range(2):
        (x * 3).sum().backward()
    assert x.grad.tolist() == [6, 6]
    g = x.grad
    (x * 1).sum().backward()
    assert x.grad is g and g.tolist() == [7, 7]
    x.grad = None
    a, b = flame.ones(2, requires_grad=True), flame.ones(2, requires_grad=True)
    (a + b).sum().backward()
    a.grad.add_(1)
    assert b.grad.tolist() == [1, 1]  # no two leaves share a gradient


def test_backward_refuses_what_pytorch_refuses() -> None:
    x = flame.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        (x * 2).backward()
    with pytest.raises(RuntimeError, match="does not require grad and does not have a grad_fn"):
        flame.ones(1).backward()
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        (x * 2).backward(flame.ones(3))
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        flame.autograd.grad((x * 2).sum(), flame.ones(1, requires_grad=True))
    unused = flame.ones(1, requires_grad=True)
    assert flame.autograd.grad((x * 2).sum(), [x, unused], allow_unused=True)[1] is None
    assert flame.autograd.grad((x * 2).sum(), unused, materialize_grads=True)[0].item() == 0
    with pytest.raises(RuntimeError, match="floating point"):
        flame.ones(2, dtype=flame.int64).requires_grad_()
    with pytest.raises(RuntimeError, match="only change requires_grad flags of leaf"):
        (x * 2).requires_grad_(False)
    with pytest.raises(RuntimeError, match="assigned grad has"):
        x.grad = flame.ones(3)


def test_modes_nest_and_come_back() -> None:
    x = flame.ones(1, requires_grad=True)
    with flame.no_grad():
        assert not (x * 2).requires_grad
        with flame.enable_grad():
            assert (x * 2).requires_grad
        with pytest.raises(ZeroDivisionError), flame.enable_grad():
            1 / 0  # noqa: B018
        assert not flame.is_grad_enabled()
    assert flame.is_grad_enabled()

    @flame.no_grad()
    def f() -> bool:
        return (x * 2).requires_grad

    assert not f() and (x * 2).requires_grad
    flame.set_grad_enabled(False)
    assert not (x * 2).requires_grad
    flame.set_grad_enabled(True)
    with flame.set_grad_enabled(False):
        assert not flame.is_grad_enabled()
    with flame.inference_mode():
        assert not (x * 2).requires_grad
    assert flame.is_grad_enabled()


def test_second_and_third_derivatives() -> None:
    x = flame.tensor([0.3, -1.2], dtype=flame.float64, requires_grad=True)
    (g,) = flame.autograd.grad((x**4).sum() + x.sin().sum(), x, create_graph=True)
    (h,) = flame.autograd.grad(g.sum(), x, create_graph=True)
    (k,) = flame.autograd.grad(h.sum(), x)
    a = x.detach().numpy()
    np.testing.assert_allclose(g.detach().numpy(), 4 * a**3 + np.cos(a), rtol=1e-12)
    np.testing.assert_allclose(h.detach().numpy(), 12 * a**2 - np.sin(a), rtol=1e-12)
    np.testing.assert_allclose(k.numpy(), 24 * a - np.cos(a), rtol=1e-12)
    (x * x).sum().backward(create_graph=True)
    (x.grad * x.grad).sum().backward(inputs=[x])  # 4 x^2: 8 x on top of 2 x
    np.testing.assert_allclose(x.grad.detach().numpy(), 10 * a, rtol=1e-12)


COMPOSITES: dict[str, Callable] = {
    "softmax": lambda x: (x.softmax(-1) * x).sum(),
    "log_softmax": lambda x: (x.log_softmax(0) ** 2).sum(),
    "layer_norm": lambda x: (flame.nn.functional.layer_norm(x, (4,)) ** 3).sum(),
    "gelu": lambda x: flame.nn.functional.gelu(x).sum(),
    "matmul": lambda x: ((x @ x.t()) ** 2).sum(),
    "conv1d": lambda x: (flame.nn.functional.conv1d(x.reshape(1, 1, 12), x[:1, :3].reshape(1, 1, 3)) ** 2).sum(),
    "cumsum": lambda x: (x.cumsum(1) ** 2).sum(),
    "indexing": lambda x: (x[:, flame.tensor([0, 0, 2])] ** 3).sum(),
    "norm": lambda x: x.norm() * x.norm(1),
    "prod": lambda x: x.prod(1).sum(),
    "std": lambda x: (x.std(1) * x.var(0).sum()).sum(),
    "amax": lambda x: (x.amax(1) * x.min()).sum(),
    "in-place": lambda x: (x * 2).mul_(x).exp_().sum(),
    "cross_entropy": lambda x: flame.nn.functional.cross_entropy(x, flame.tensor([1, 3, 0])),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_derivatives_are_those_of_small_steps(name: str) -> None:
    """First and second derivatives along random directions, against central differences in float64."""
    f = COMPOSITES[name]
    rng = np.random.default_rng(4)
    a, u, v = rng.standard_normal((3, 3, 4))

    def grad(a: np.ndarray, order: int = 1) -> np.ndarray:
        x = flame.tensor(a, requires_grad=True)
        (g,) = flame.autograd.grad(f(x), x, create_graph=order == 2)
        if order == 2:
            (g,) = flame.autograd.grad((g * flame.tensor(v)).sum(), x, allow_unused=True, materialize_grads=True)
        return g.numpy()

    e = 1e-5
    steep = (f(flame.tensor(a + e * u)).item() - f(flame.tensor(a - e * u)).item()) / (2 * e)
    np.testing.assert_allclose((grad(a) * u).sum(), steep, rtol=1e-6, atol=1e-7)
    curved = ((grad(a + e * u) - grad(a - e * u)) * v).sum() / (2 * e)
    np.testing.assert_allclose((grad(a, 2) * u).sum(), curved, rtol=1e-5, atol=1e-6)


def test_hooks_on_tensors() -> None:
    x, log = flame.ones(2, requires_grad=True), []
    y = x * 2
    handle = y.register_hook(lambda g: log.append(g.tolist()) or g * 10)
    y.sum().backward(retain_graph=True)
    assert log == [[1, 1]] and x.grad.tolist() == [20, 20]
    handle.remove()
    x.grad = None
    y.retain_grad()
    y.sum().backward()
    assert x.grad.tolist() == [2, 2] and y.grad.tolist() == [1, 1] and len(log) == 1
    x.grad = None
    x.register_hook(lambda g: g * 3)
    x.register_post_accumulate_grad_hook(lambda t: log.append(t.grad.tolist()))
    (x * 1).sum().backward()
    assert log[-1] == [3, 3]
    with pytest.raises(RuntimeError, match="doesn't require gradient"):
        flame.ones(1).register_hook(print)


def test_a_leaf_has_one_end_of_the_tape_as_long_as_a_graph_knows_it() -> None:
    """What PyTorch does where a leaf is frozen between forward and backward."""

    def frozen() -> tuple[Any, Any, list]:
        w, log = flame.tensor([1.0, 2.0], requires_grad=True), []
        w.register_hook(lambda g: log.append(("gradient", g.tolist())))
        w.register_post_accumulate_grad_hook(lambda p: log.append(("there", None if p.grad is None else p.grad.tolist())))
        y = (w * 2).sum()
        w.requires_grad_(False)
        return w, y, log

    w, y, log = frozen()
    w.requires_grad_(True)
    (y + (w * 3).sum()).backward()
    assert log == [("gradient", [5.0, 5.0]), ("there", [5.0, 5.0])] and w.grad.tolist() == [5.0, 5.0]
    w, y, log = frozen()
    y.backward(retain_graph=True)
    assert log == [("gradient", [2.0, 2.0]), ("there", None)] and w.grad is None, "it wants none any more"
    w.requires_grad_(True)
    assert flame.autograd.grad(y, [w])[0].tolist() == [2.0, 2.0]
    w, y, log = frozen()
    w.mul_(flame.ones(2, requires_grad=True))
    with pytest.raises(RuntimeError, match="moved into the graph interior"):
        y.backward()
    w = flame.tensor([1.0, 2.0], requires_grad=True)
    y = (w * 2).sum()
    w.detach_()
    y.backward()
    assert w.grad is None


class Cube(flame.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, scale: float) -> Any:
        ctx.save_for_backward(x)
        ctx.scale = scale
        return x * x * x * scale

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * 3 * x * x * ctx.scale, None


def test_functions_of_ones_own() -> None:
    x = flame.tensor([1.0, 2.0], requires_grad=True)
    y = Cube.apply(x, 2.0)
    assert y.grad_fn.name() == "CubeBackward" and y.tolist() == [2, 16]
    (g,) = flame.autograd.grad(y.sum(), x, create_graph=True)
    assert g.tolist() == [6, 24]
    assert flame.autograd.grad(g.sum(), x)[0].tolist() == [12, 24]
    y = Cube.apply(x * 1, 1.0)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()

    class Wrong(Cube):
        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g

    with pytest.raises(RuntimeError, match="incorrect number of gradients"):
        Wrong.apply(x, 1.0).sum().backward()


def test_deep_graphs_do_not_recurse() -> None:
    x = flame.ones(1, requires_grad=True)
    y = x
    for _ in range(5000):
        y = y + 1
    y.backward()
    assert x.grad.item() == 1


def test_a_view_made_without_gradient_is_not_written_with_it() -> None:
    """As PyTorch: the history of what the view shows would be lost."""
    w = flame.ones(3, requires_grad=True)
    t = flame.ones(2, 3) * w
    with flame.no_grad():
        y, z = t[0:2], t.t()
    for write in (lambda: y.copy_(flame.ones(3)), lambda: y.mul_(2.0), lambda: z.fill_(1.0), lambda: y[0].zero_()):
        with pytest.raises(RuntimeError, match="A view was created in no_grad mode and is being modified inplace"):
            write()
    assert t.requires_grad and np.array_equal(t.detach().numpy(), np.ones((2, 3)))
    with flame.no_grad():
        y.mul_(2.0)
    t.sum().backward()
    assert np.array_equal(w.grad.numpy(), np.full(3, 2.0))
