"""Composites that run as one native program: what they give is what their operations give, to any order of derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn.functional as F
from flame.autograd import fused
from flame.autograd.fused import FusedNode
from flame.knobs import knobs


def draw(*shape: int, seed: int = 0, low: float = -3.0, high: float = 3.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape)


def classes(n: int, *shape: int) -> np.ndarray:
    t = np.random.default_rng(n).integers(0, n, shape)
    t.reshape(-1)[:1] = -100
    return t


ROWS = (64, 257)
#: name -> (function, floating operands, further arguments)
CASES: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...], tuple]] = {
    "softmax": (lambda x: F.softmax(x, -1), (draw(*ROWS),), ()),
    "softmax of columns": (lambda x: F.softmax(x, 0), (draw(*ROWS),), ()),
    "log_softmax": (lambda x: F.log_softmax(x, 1), (draw(5, 40, 83),), ()),
    "logsumexp": (lambda x: flame.logsumexp(x, (0, 2), True), (draw(5, 40, 83),), ()),
    "var": (lambda x: x.var(-1), (draw(*ROWS),), ()),
    "std of all": (lambda x: x.std(), (draw(*ROWS),), ()),
    "norm": (lambda x: x.norm(dim=0), (draw(*ROWS),), ()),
    "clamp": (lambda x: x.clamp(-1, 1.5), (draw(*ROWS),), ()),
    "gelu": (F.gelu, (draw(*ROWS),), ()),
    "gelu tanh": (lambda x: F.gelu(x, "tanh"), (draw(*ROWS),), ()),
    "silu": (F.silu, (draw(*ROWS),), ()),
    "mish": (F.mish, (draw(*ROWS),), ()),
    "softplus": (lambda x: F.softplus(x, 2.0, 3.0), (draw(*ROWS),), ()),
    "elu": (lambda x: F.elu(x, 0.7), (draw(*ROWS),), ()),
    "selu": (F.selu, (draw(*ROWS),), ()),
    "celu": (lambda x: F.celu(x, 0.7), (draw(*ROWS),), ()),
    "leaky_relu": (F.leaky_relu, (draw(*ROWS),), ()),
    "hardswish": (F.hardswish, (draw(*ROWS),), ()),
    "hardsigmoid": (F.hardsigmoid, (draw(*ROWS),), ()),
    "hardtanh": (F.hardtanh, (draw(*ROWS),), ()),
    "logsigmoid": (F.logsigmoid, (draw(*ROWS),), ()),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (257,), w, b), (draw(*ROWS), draw(257), draw(257, seed=1)), ()),
    "layer_norm of two": (lambda x: F.layer_norm(x, (40, 83)), (draw(5, 40, 83),), ()),
    "rms_norm": (lambda x, w: F.rms_norm(x, (257,), w), (draw(*ROWS), draw(257)), ()),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (draw(4, 6, 27, 31), draw(6), draw(6, seed=1)), ()),
    "batch_norm": (
        lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b),
        (draw(4, 6, 27, 31), draw(6), draw(6, seed=1)),
        (draw(6), draw(6, low=0.5)),
    ),
    "batch_norm, training": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        (draw(4, 6, 27, 31), draw(6), draw(6, seed=1)),
        (),
    ),
    "mse_loss": (F.mse_loss, (draw(*ROWS), draw(*ROWS, seed=1)), ()),
    "mse_loss, broadcast": (lambda x, t: F.mse_loss(x, t, reduction="none"), (draw(*ROWS), draw(257)), ()),
    "l1_loss": (lambda x, t: F.l1_loss(x, t, reduction="sum"), (draw(*ROWS), draw(*ROWS, seed=1)), ()),
    "smooth_l1_loss": (F.smooth_l1_loss, (draw(*ROWS), draw(*ROWS, seed=1)), ()),
    "huber_loss": (F.huber_loss, (draw(*ROWS), draw(*ROWS, seed=1)), ()),
    "bce with logits": (F.binary_cross_entropy_with_logits, (draw(*ROWS), draw(*ROWS, low=0.0, high=1.0)), ()),
    "cross_entropy": (F.cross_entropy, (draw(*ROWS),), (classes(257, 64),)),
    "cross_entropy, smoothed": (
        lambda x, t: F.cross_entropy(x, t, reduction="none", label_smoothing=0.1),
        (draw(5, 40, 83),),
        (classes(40, 5, 83),),
    ),
}  # fmt: skip
#: of these, derivatives are of some operations that other dtypes than float64 decide otherwise
TOLERANCE = {"float64": 1e-9, "float32": 3e-5, "bfloat16": 0.06, "float16": 0.01}


def tensors(arrays: tuple[np.ndarray, ...], dtype: Any, grad: bool) -> list[flame.Tensor]:
    made = [flame.tensor(a).to(dtype) for a in arrays]
    return [t.requires_grad_() for t in made] if grad else made


def others(arrays: tuple, dtype: Any) -> list[flame.Tensor]:
    return [flame.tensor(a).to(dtype) if a.dtype.kind == "f" else flame.tensor(a) for a in arrays]


@pytest.fixture
def by_operations() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Calls a function with programs switched off."""

    def call(f: Callable[[], Any]) -> Any:
        knobs.eager_kernels = False
        try:
            return f()
        finally:
            knobs.eager_kernels = True

    yield call


def close(got: flame.Tensor, want: flame.Tensor, dtype: Any) -> None:
    assert got.shape == want.shape
    assert got.dtype is want.dtype
    a, b = (np.asarray(t.detach().to(flame.float64).numpy()) for t in (got, want))
    tolerance = TOLERANCE[dtype.name]
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0.0))))


def derivatives(name: str, dtype: Any, order: int) -> list[flame.Tensor]:
    f, arrays, more = CASES[name]
    xs = tensors(arrays, dtype, True)
    y = f(*xs, *others(more, dtype))
    weights = flame.tensor(draw(*y.shape, seed=7)).to(dtype)
    found = [y, *flame.autograd.grad(y, xs, weights, create_graph=order > 1)]
    if order > 1:
        gs = [g for g in found[1:] if g.requires_grad]
        if gs:
            total = sum((g * flame.tensor(draw(*g.shape, seed=9)).to(dtype)).sum() for g in gs)
            found += [g for g in flame.autograd.grad(total, xs, allow_unused=True) if g is not None]
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_program_gives_what_its_operations_give(name: str, by_operations: Any) -> None:
    dtype = flame.float32
    f, arrays, more = CASES[name]
    xs = tensors(arrays, dtype, False)
    close(f(*xs, *others(more, dtype)), by_operations(lambda: f(*xs, *others(more, dtype))), dtype)
    got, want = derivatives(name, dtype, 1), by_operations(lambda: derivatives(name, dtype, 1))
    assert "Fused" in type(got[0].grad_fn).__name__ or name == "std of all"
    for a, b in zip(got, want, strict=True):
        close(a, b, dtype)


@pytest.mark.parametrize("name", ["softmax", "cross_entropy", "layer_norm", "gelu", "norm", "mse_loss", "batch_norm, training"])
def test_derivatives_of_derivatives_are_those_of_the_operations(name: str, by_operations: Any) -> None:
    got, want = derivatives(name, flame.float64, 2), by_operations(lambda: derivatives(name, flame.float64, 2))
    assert len(got) == len(want) > 2
    for a, b in zip(got, want, strict=True):
        close(a, b, flame.float64)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["softmax", "layer_norm", "cross_entropy", "silu"])
def test_narrow_floats(name: str, dtype: str, by_operations: Any) -> None:
    d = getattr(flame, dtype)
    for a, b in zip(derivatives(name, d, 1), by_operations(lambda: derivatives(name, d, 1)), strict=True):
        close(a, b, d)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (16, 16), (33, 129)])
def test_sizes_that_are_one_or_equal_or_odd(shape: tuple[int, int], monkeypatch: Any, by_operations: Any) -> None:
    monkeypatch.setattr(fused, "LEAST_OF_MANY", 1)
    for f in (lambda x: F.softmax(x, -1), lambda x: F.layer_norm(x, x.shape[1:]), lambda x: F.mse_loss(x, x[:1])):
        results = []
        for call in (lambda g: g(), by_operations):
            x = flame.tensor(draw(*shape), dtype=flame.float32, requires_grad=True)
            y = call(lambda x=x, f=f: f(x))
            results.append((y, *flame.autograd.grad((y * y).sum(), x)))
        for a, b in zip(*results, strict=True):
            close(a, b, flame.float32)


def test_one_compilation_serves_other_sizes(monkeypatch: Any) -> None:
    made: list[str] = []
    from flame.runtime import eager_programs

    compile_graph = eager_programs.compile_graph

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append("one")
        return compile_graph(*args, **kwargs)

    monkeypatch.setattr(eager_programs, "compile_graph", counted)
    monkeypatch.setattr(eager_programs.index, "look_up", lambda *a: None)

    @fused.fused
    def twice_softened(x: Any) -> Any:
        return F.fused.silu.f(F.fused.silu.f(x))

    for n in (300, 301, 977, 64):
        x = flame.tensor(draw(100 if n > 64 else 400, n))
        twice_softened(x)
    assert made == ["one"]


def test_non_contiguous_operands_and_views() -> None:
    x = flame.tensor(draw(257, 128), requires_grad=True)
    y = F.softmax(x.t()[:, ::2], -1)
    assert isinstance(y.grad_fn, FusedNode)
    y[0].sum().backward()
    z = flame.tensor(x.detach().numpy().copy(), requires_grad=True)
    knobs.eager_kernels = False
    try:
        F.softmax(z.t()[:, ::2], -1)[0].sum().backward()
    finally:
        knobs.eager_kernels = True
    np.testing.assert_allclose(x.grad.numpy(), z.grad.numpy(), atol=1e-12)


def test_what_backward_reads_must_not_be_written() -> None:
    x = flame.tensor(draw(*ROWS), requires_grad=True)
    h = x * 1.0
    y = F.gelu(h)
    h.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    h = x * 1.0
    y = F.softmax(h, -1)  # whose derivative reads its result alone
    h.add_(1.0)
    y[0, 0].backward()
    assert x.grad is not None
    with pytest.raises(RuntimeError, match="second time"):
        y[0, 0].backward()


def test_one_tensor_as_two_operands() -> None:
    x = flame.tensor(draw(*ROWS), requires_grad=True)
    (g,) = flame.autograd.grad(F.mse_loss(x, x * 1.0) + F.l1_loss(x, x), x, create_graph=True)
    assert float(g.detach().abs().max()) == 0.0


def test_targets_that_are_no_class_are_refused_as_they_are_by_the_operations() -> None:
    x, t = flame.tensor(draw(*ROWS)), flame.full((64,), 257, dtype=flame.int64)
    with pytest.raises(IndexError):
        F.cross_entropy(x, t)


def test_hooks_on_saved_tensors_and_profilers_see_operations() -> None:
    x = flame.tensor(draw(*ROWS), requires_grad=True)
    packed: list[Any] = []

    def pack(t: flame.Tensor) -> flame.Tensor:
        packed.append(t)
        return t

    with flame.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = F.silu(x)
    assert packed and not isinstance(y.grad_fn, FusedNode)


def test_equal_calls_give_equal_bits() -> None:
    x = flame.tensor(draw(*ROWS), dtype=flame.float32)
    first = F.softmax(x, -1).numpy()
    assert all((F.softmax(x, -1).numpy() == first).all() for _ in range(3))
