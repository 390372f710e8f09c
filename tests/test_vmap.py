"""vmap: every primitive on a batch against a loop over examples, nests of transformations against PyTorch, and refusals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import flame
from flame.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from flame.func.rules import RULES
from flame.primitive import REGISTRY, Primitive
from flame.tensor import wrap

PRIMITIVES = sorted(REGISTRY.values(), key=lambda p: p.name)
SIZE = 3


def examples(a: np.ndarray, k: int) -> np.ndarray:
    """Example k made of an operand: scaled floats (definite matrices stay so), integers in another order."""
    if a.dtype.kind in "fcV":
        return np.asarray(a * np.asarray((1, 0.5, 0.75)[k], a.dtype)).astype(a.dtype)
    return np.roll(a, k)


def results(y: Any) -> list[np.ndarray]:
    return [np.asarray(t.detach().numpy()) for t in (y if isinstance(y, tuple) else (y,))]


def check(p: Primitive, operands: tuple, params: dict, which: tuple[bool, ...]) -> None:
    whole: list[Any] = []
    for x, m in zip(operands, which, strict=True):
        if m:
            stacked = np.stack([examples(x, k) for k in range(SIZE)])
            whole.append(wrap(np.ascontiguousarray(np.moveaxis(stacked, 0, -1)) if x.ndim % 2 else stacked))
        else:
            whole.append(wrap(np.array(x)) if isinstance(x, np.ndarray) else x)
    dims = tuple((-1 if x.ndim % 2 else 0) if m else None for x, m in zip(operands, which, strict=True))
    try:
        want = []
        for k in range(SIZE):
            each = [wrap(examples(x, k)) if m else v for x, v, m in zip(operands, whole, which, strict=True)]
            want.append(results(p(*each, **params)))
    except (RuntimeError, IndexError, ValueError) as e:
        with pytest.raises(type(e)):
            vmap(lambda *xs: p(*xs, **params), in_dims=dims)(*whole)
        return
    got = results(vmap(lambda *xs: p(*xs, **params), in_dims=dims)(*whole))
    assert len(got) == len(want[0])
    for g, ws in zip(got, zip(*want, strict=True), strict=True):
        w = np.stack(ws)
        assert g.shape == w.shape and g.dtype == w.dtype
        if g.dtype.kind == "V":
            g, w = g.astype(np.float32), w.astype(np.float32)
        np.testing.assert_allclose(g, w, rtol=2e-2 if ws[0].dtype.itemsize == 2 else 2e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("p", PRIMITIVES, ids=lambda p: p.name)
def test_every_primitive_on_a_batch_is_a_loop_over_examples(p: Primitive) -> None:
    if p.name == "iota":
        return  # (it has no operands)
    assert p in RULES
    if p.kind == "random":
        return  # (its operands are numbers; how examples draw is tested below)
    cases = list(p.samples()) if p.samples else []
    r = np.random.default_rng(0)
    assert cases
    tried = 0
    for at in r.permutation(len(cases))[:12]:
        operands, params = cases[at]
        arrays = [isinstance(x, np.ndarray) for x in operands]
        if not any(arrays):
            continue
        subsets = [
            s for s in itertools.product((False, True), repeat=len(operands))
            if any(s) and all(a or not m for a, m in zip(arrays, s, strict=True))
        ]  # fmt: skip
        for which in subsets if len(subsets) <= 4 else [subsets[i] for i in r.permutation(len(subsets))[:4]]:
            check(p, operands, params, which)
            tried += 1
    assert tried or p.name == "full"


X = np.random.default_rng(1).standard_normal((4, 3, 5))
W = np.random.default_rng(2).standard_normal((5, 2))
V = np.random.default_rng(3).standard_normal((5,))


def programs(t: Any) -> dict[str, Any]:
    """What is computed with `t` (flame or PyTorch) from x [4, 3, 5], w [5, 2] and v [5]."""
    f, n = t.func, t.nn.functional
    loss = lambda w, x: ((x @ w).tanh() ** 2).sum()
    attend = lambda q: n.scaled_dot_product_attention(q, q, q)
    return {
        "nested": lambda x, w, v: f.vmap(f.vmap(lambda r: r * r.sum()))(x),
        "nested dims": lambda x, w, v: f.vmap(f.vmap(lambda a, b: a.dot(b), in_dims=(0, None)), in_dims=(0, None))(x, v),
        "inner dims": lambda x, w, v: f.vmap(f.vmap(lambda c: c.cumsum(0), in_dims=1, out_dims=1), in_dims=1, out_dims=2)(x),
        "outer product": lambda x, w, v: f.vmap(lambda a: f.vmap(lambda b: a * b)(v))(v),
        "matmuls": lambda x, w, v: f.vmap(lambda a: (a @ w, a @ v, w.T @ a.T, a.T @ a))(x),
        "negative dims": lambda x, w, v: f.vmap(lambda a: a.sum(0), in_dims=-1, out_dims=-1)(x),
        "nests": lambda x, w, v: f.vmap(lambda d, p: d["a"] @ p[0], ({"a": 0}, (None, None)))({"a": x}, (w, v[:2])),
        "dict out": lambda x, w, v: f.vmap(lambda a: {"y": a.exp(), "z": (a.sum(), a.mean(0))})(x)["z"],
        "several out_dims": lambda x, w, v: f.vmap(lambda a: (a, a.sum(1)), out_dims=(2, 1))(x),
        "unbatched result": lambda x, w, v: f.vmap(lambda a: (v * 2, a))(x),
        "chunks": lambda x, w, v: f.vmap(lambda a: (a @ w, a.sum()), chunk_size=3, out_dims=(1, 0))(x),
        "softmax": lambda x, w, v: f.vmap(lambda a: n.softmax(a, -1) + n.log_softmax(a, 0))(x),
        "layer norm": lambda x, w, v: f.vmap(lambda a: n.layer_norm(a, (5,), v, v))(x),
        "loss": lambda x, w, v: f.vmap(lambda a: n.cross_entropy(a, t.tensor([0, 1, 4])))(x),
        "conv": lambda x, w, v: f.vmap(lambda a: n.conv1d(a[None], x[:2, :, :3], padding=1)[0])(x),
        "conv weights": lambda x, w, v: f.vmap(lambda k: n.conv1d(x, k[None]))(x[:, :, :2]),
        "attention": lambda x, w, v: f.vmap(lambda a: attend(a[None])[0])(x),
        "indexing": lambda x, w, v: f.vmap(lambda a: (a[1], a[:, ::2], a[..., -1], a[None, 1:], a[[0, 2]], a[:, [1, 1, 0]]))(x),
        "batched index": lambda x, w, v: f.vmap(lambda i: (v[i], w[i, 1], x[:, :, i]))(t.tensor([[0, 1], [4, 2]])),
        "gather": lambda x, w, v: f.vmap(lambda a, i: a.gather(1, i))(x[:2], t.tensor([[[0, 1]], [[4, 2]]])),
        "where": lambda x, w, v: f.vmap(lambda a: t.where(a > 0, a, -2 * a).clamp(max=1.0))(x),
        "sort": lambda x, w, v: f.vmap(lambda a: t.sort(a, 0)[0] + t.topk(a, 2, dim=0)[0].sum(0))(x),
        "linalg": lambda x, w, v: f.vmap(lambda a: t.linalg.solve(a @ a.T + t.eye(3, dtype=a.dtype), a[:, 0]))(x),
        "einsum": lambda x, w, v: f.vmap(lambda a: t.einsum("ij,jk->ki", a, w))(x),
        "cat and stack": lambda x, w, v: f.vmap(lambda a: t.cat([a[0], v, t.stack([a.sum(), a.max()])]))(x),
        "in place": lambda x, w, v: f.vmap(lambda a: a.clone().add_(v).mul_(2))(x),
        "in place on a view": lambda x, w, v: f.vmap(assigned)(x),
        "new zeros": lambda x, w, v: f.vmap(lambda a: (a.new_zeros(3, 5).add_(a), t.zeros_like(a).copy_(a[:1])))(x),
        "per-sample gradients": lambda x, w, v: f.vmap(f.grad(loss), in_dims=(None, 0))(w, x),
        "gradient of vmap": lambda x, w, v: f.grad(lambda p: f.vmap(lambda a: loss(p, a))(x).sum())(w),
        "gradient of a view in place": lambda x, w, v: f.vmap(f.grad(lambda a: assigned(a).sin().sum()))(x),
        "gradient of gradient": lambda x, w, v: f.vmap(f.grad(lambda a: f.grad(lambda b: (b**3).sum())(a).sum()))(x),
        "gradient, vmap, gradient": lambda x, w, v: f.grad(lambda p: (f.vmap(f.grad(loss), (None, 0))(p, x) ** 2).sum())(w),
        "hessian by vmap": lambda x, w, v: f.vmap(f.hessian(lambda a: (a**3).prod()))(x[0]),
        "hessian": lambda x, w, v: f.hessian(lambda a: ((a @ w) ** 3).sum())(v),
        "jacobians": lambda x, w, v: (f.jacrev(lambda a: (a @ w).tanh())(v), f.jacfwd(lambda a: (a @ w).tanh())(v)),
        "jacobians of two": lambda x, w, v: f.jacrev(lambda a, b: {"y": a @ b}, argnums=(0, 1))(v, w),
        "forward of two": lambda x, w, v: f.jacfwd(lambda a, b: (a @ b, a.sum()), argnums=(0, 1))(v, w),
        "jacobian in chunks": lambda x, w, v: f.jacrev(lambda a: (a @ w).sin(), chunk_size=3)(x),
        "vmap of jacrev": lambda x, w, v: f.vmap(f.jacrev(lambda a: (a @ w).tanh()))(x[0]),
        "vmap of jacfwd": lambda x, w, v: f.vmap(f.jacfwd(lambda a: (a @ w).tanh()))(x[0]),
        "jacrev of vmap": lambda x, w, v: f.jacrev(f.vmap(lambda a: (a * v).sum().exp()))(x[0]),
        "jacfwd of jacrev": lambda x, w, v: f.jacfwd(f.jacrev(lambda a: (a @ w).tanh().sum()))(v),
        "jacrev of jacfwd": lambda x, w, v: f.jacrev(f.jacfwd(lambda a: (a @ w).tanh().sum()))(v),
        "third order": lambda x, w, v: f.jacrev(f.hessian(lambda a: (a**4).sum()))(v[:2]),
        "jvp by vmap": lambda x, w, v: f.vmap(lambda u: f.jvp(lambda a: (a @ w).tanh(), (v,), (u,))[1])(x[0]),
        "vjp by vmap": lambda x, w, v: f.vmap(f.vjp(lambda a: (a @ w).tanh(), v)[1])(w),
        "jvp in vmap": lambda x, w, v: f.vmap(lambda a: f.jvp(lambda b: (b @ w).sin(), (a,), (a * 2,)))(x[0]),
    }  # fmt: skip


def assigned(a: Any) -> Any:
    b = a * 1
    b[1] = b[0] * 2
    b[:, 1:3] += 1
    c = b.T
    c[0].mul_(3)
    return b


def numpy(x: Any) -> list:
    if isinstance(x, dict):
        return [v for k in x for v in numpy(x[k])]
    if isinstance(x, tuple | list):
        return [v for y in x for v in numpy(y)]
    return [np.asarray(x.detach().numpy())]


def same(got: Any, want: Any) -> None:
    got, want = numpy(got), numpy(want)
    assert [a.shape for a in got] == [a.shape for a in want]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


NAMES = list(programs(flame))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_nests_of_transformations_agree_with_pytorch(torch: Any, name: str) -> None:
    same(programs(flame)[name](*map(flame.tensor, (X, W, V))), programs(torch)[name](*map(torch.tensor, (X, W, V))))


@pytest.mark.parametrize("name", NAMES)
def test_nests_of_transformations_compile(name: str) -> None:
    f = programs(flame)[name]
    args = tuple(map(flame.tensor, (X, W, V)))
    want = f(*args)
    compiled = flame.compile(f)
    for _ in range(2):
        same(compiled(*args), want)


def test_a_batch_is_one_operation() -> None:
    seen = []

    class Watch:
        next = None

        def process(self, p: Primitive, operands: tuple, params: dict) -> Any:
            seen.append(p.name)
            with flame.primitive.interpreting(None):
                return p(*operands, **params)

        def composite(self, f: Any, name: str, args: tuple, kwargs: dict) -> Any:
            return f(*args, **kwargs)

    x = flame.tensor(np.random.default_rng(0).standard_normal((100, 8)))
    with flame.primitive.interpreting(Watch()):  # type: ignore[arg-type]
        vmap(lambda r: (r * r).exp().sum())(x)
    assert seen == ["mul", "exp", "sum"]


def test_gradients_flow_through_the_batch_to_what_stands_outside() -> None:
    w = flame.tensor(W, requires_grad=True)
    x = flame.tensor(X, requires_grad=True)
    y = vmap(lambda a: (a @ w).tanh().sum())(x)
    y.sum().backward()
    got = w.grad.clone(), x.grad.clone()
    w.grad = x.grad = None
    (x @ w).tanh().sum().backward()
    same(got, (w.grad, x.grad))
    w.grad = None
    inner = vmap(grad(lambda a: ((a @ w) ** 3).sum()))(x.detach())
    inner.sum().backward()
    got = w.grad.clone()
    w.grad = None
    z = flame.tensor(X, requires_grad=True)
    (g,) = flame.autograd.grad(((z @ w) ** 3).sum(), z, create_graph=True)
    g.sum().backward()
    same(got, w.grad)


def test_chance() -> None:
    x = flame.zeros(6)
    drop = lambda v: flame.nn.functional.dropout(v + flame.ones(20), 0.5)
    for f in (lambda v: v + flame.rand(()), drop, lambda v: v + flame.bernoulli(flame.full((3,), 0.5))):
        with pytest.raises(RuntimeError, match="randomness"):
            vmap(f)(x)
    rows = vmap(drop, randomness="different")(x)
    assert len({tuple(r) for r in rows.tolist()}) > 1
    rows = vmap(drop, randomness="same")(x)
    assert len({tuple(r) for r in rows.tolist()}) == 1
    rows = vmap(lambda v: v + flame.rand(()), randomness="same", chunk_size=4)(x)
    assert len(set(rows.tolist())) == 1
    nested = vmap(lambda a: vmap(lambda b: a + b + flame.rand(()), randomness="different")(x), randomness="different")(x)
    assert len(set(nested.reshape(-1).tolist())) == 36
    nested = vmap(lambda a: vmap(lambda b: a + b + flame.rand(()), randomness="same")(x), randomness="different")(x)
    assert len(set(nested.reshape(-1).tolist())) == 6
    flame.manual_seed(3)
    a = vmap(lambda v: v + flame.randn(5), randomness="different")(x)
    after = flame.rand(())
    flame.manual_seed(3)
    b = flame.randn(6, 5)
    assert float(after) == float(flame.rand(()))  # the stream goes on behind what all examples took
    assert a.shape == b.shape


def test_custom_functions_see_examples() -> None:
    class Cube(flame.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x * x

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (x,) = ctx.saved_tensors
            return g * 3 * x * x

    x = flame.tensor(X)
    same(vmap(grad(lambda a: Cube.apply(a).sum()))(x), 3 * x * x)
    same(vmap(lambda a: Cube.apply(a))(x), x**3)
    with pytest.raises(RuntimeError, match="take the gradient inside"):
        vmap(lambda a: Cube.apply(a).sum())(flame.tensor(X, requires_grad=True))


SHARED = flame.zeros(3, 5)


def data_dependent(a: Any) -> Any:
    if a.sum() > 0:
        return a
    return -a


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: vmap(data_dependent)(x), RuntimeError, "data-dependent control flow"),
        (lambda x: vmap(lambda a: a * a.sum().item())(x), RuntimeError, r"\.item\(\)"),
        (lambda x: vmap(lambda a: a[a > 0])(x), RuntimeError, "flame.where"),
        (lambda x: vmap(lambda a: flame.nonzero(a))(x), RuntimeError, "values"),
        (lambda x: vmap(lambda a: a + flame.tensor(a.numpy()))(x), RuntimeError, "values"),
        (lambda x: vmap(lambda a: SHARED.add_(a))(x), RuntimeError, "inplace arithmetic"),
        (lambda x: vmap(lambda a: flame.zeros(3, 5)[1:].add_(a[1:]))(x), RuntimeError, "inplace arithmetic"),
        (lambda x: vmap(lambda a: a, out_dims=None)(x), ValueError, "out_dim is None"),
        (lambda x: vmap(lambda a: a, out_dims=(0, 1))(x), ValueError, "out_dims"),
        (lambda x: vmap(lambda a: a, out_dims=5)(x), IndexError, "out of range"),
        (lambda x: vmap(lambda: 1)(), ValueError, "no inputs"),
        (lambda x: vmap(lambda a: a, in_dims=None)(x), ValueError, "at least one Tensor"),
        (lambda x: vmap(lambda a, b: a, in_dims=(0,))(x, x), ValueError, "not compatible"),
        (lambda x: vmap(lambda a, b: a)(x, 2.0), ValueError, "non-Tensor"),
        (lambda x: vmap(lambda a: a, chunk_size=0)(x), ValueError, "chunk_size"),
        (lambda x: vmap(lambda a: a, randomness="maybe")(x), RuntimeError, "randomness"),
        (lambda x: vmap(lambda a: a @ flame.ones(4, 4))(x), RuntimeError, "multiplied"),
        (lambda x: jacrev(lambda a: a, chunk_size=-1)(x), ValueError, "chunk_size"),
    ],
)
def test_what_is_refused(call: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call(flame.tensor(X.astype(np.float32)))
    assert flame.primitive.force.interpreter is None


def test_sizes_of_one_and_none() -> None:
    f = lambda a: (a.sin() @ flame.ones(5, 2)).sum(0)
    for n in (0, 1):
        x = flame.tensor(X.astype(np.float32)[:n])
        got = vmap(f)(x)
        assert tuple(got.shape) == (n, 2)
        same(got, (x.sin() @ flame.ones(5, 2)).sum(1))
    assert tuple(vmap(grad(lambda a: f(a).sum()))(flame.zeros(0, 3, 5)).shape) == (0, 3, 5)
    assert tuple(jacrev(f)(flame.zeros(0, 5)).shape) == (2, 0, 5)
    assert tuple(jacfwd(f)(flame.zeros(3, 5)).shape) == (2, 3, 5)
    assert tuple(hessian(lambda a: f(a).sum())(flame.zeros(3, 5)).shape) == (3, 5, 3, 5)


def test_products_with_jacobians_agree_with_the_jacobian() -> None:
    f = lambda a: (a @ flame.tensor(W)).tanh() * a.sum()
    v, u = flame.tensor(V), flame.tensor(X[0, 0])
    whole = jacrev(f)(v)
    same(jvp(f, (v,), (u,))[1], whole @ u)
    g = flame.tensor([0.5, -2.0], dtype=flame.float64)
    same(vjp(f, v)[1](g)[0], g @ whole)
    same(jacfwd(f)(v), whole)
