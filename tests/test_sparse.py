"""Sparse tensors by coordinates: their forms, products and sums against dense ones, gradients, PyTorch, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame

R = np.random.default_rng(4)
I = R.integers(0, 4, (2, 9))
V, D, X = R.standard_normal(9), R.standard_normal((5, 3)), R.standard_normal((4, 5))
DENSE = np.zeros((4, 5))
np.add.at(DENSE, tuple(I), V)


def made(t: Any, **more: Any) -> Any:
    return t.sparse_coo_tensor(t.tensor(I), t.tensor(V), (4, 5), **more)


def array(x: Any) -> np.ndarray:
    x = x.to_dense() if x.is_sparse else x
    return np.asarray(x.detach().numpy())


COMPUTED = {
    "dense": lambda t, s, d, x: s,
    "coalesced": lambda t, s, d, x: s.coalesce(),
    "values": lambda t, s, d, x: s.coalesce().values(),
    "indices": lambda t, s, d, x: s.coalesce().indices(),
    "product": lambda t, s, d, x: t.sparse.mm(s, d),
    "operator": lambda t, s, d, x: s @ d,
    "by a vector": lambda t, s, d, x: s @ d[:, 0],
    "spmm": lambda t, s, d, x: t.spmm(s, d),
    "transposed": lambda t, s, d, x: t.sparse.mm(s.t(), x),
    "addmm": lambda t, s, d, x: t.sparse.addmm(d[:4] * 1, s, d, beta=0.5, alpha=2.0),
    "scaled": lambda t, s, d, x: s * 3.0,
    "halved": lambda t, s, d, x: s / 2,
    "negative": lambda t, s, d, x: -s,
    "added": lambda t, s, d, x: s + s.t().t(),
    "subtracted": lambda t, s, d, x: (s - s * 2).coalesce(),
    "beside dense": lambda t, s, d, x: x + s,
    "sum": lambda t, s, d, x: t.sparse.sum(s),
    "sum over rows": lambda t, s, d, x: t.sparse.sum(s, 0),
    "sum over columns": lambda t, s, d, x: t.sparse.sum(s, dim=[1]),
    "from dense": lambda t, s, d, x: (x * (x > 0)).to_sparse(),
    "hybrid": lambda t, s, d, x: (x * (x > 0.5)).to_sparse(1),
    "of its least size": lambda t, s, d, x: t.sparse_coo_tensor(t.tensor(I), t.tensor(V)),
    "softmax over rows": lambda t, s, d, x: t.sparse.softmax(s, 0),
    "softmax over columns": lambda t, s, d, x: t.sparse.softmax(s, -1),
    "its logarithm": lambda t, s, d, x: t.sparse.log_softmax(s.float(), 1, dtype=t.float64),
    "softmax of rows": lambda t, s, d, x: t.sparse.softmax((x * (x > 0.5)).to_sparse(1), 0),
    "softmax within rows": lambda t, s, d, x: t.sparse.softmax((x * (x > 0.5)).to_sparse(1), 1),
    "softmax of nothing": lambda t, s, d, x: t.sparse.softmax((x * 0).to_sparse(), 1),
    "diagonals": lambda t, s, d, x: t.sparse.spdiags(x, t.tensor([0, -2, 1, 3]), (6, 5)),
    "a diagonal": lambda t, s, d, x: t.sparse.spdiags(x[0], t.tensor([1]), (3, 9)),
    "masked": lambda t, s, d, x: x.sparse_mask(s.coalesce()),
    "masked rows": lambda t, s, d, x: x.sparse_mask((x * (x > 0.5)).to_sparse(1).coalesce()),
    "of dense rows": lambda t, s, d, x: t.sparse_coo_tensor(t.tensor([[0, 2, 0]]), x[:3], (4, 5)).coalesce(),
}


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_sparse_programs_agree_with_pytorch(torch: Any, name: str) -> None:
    got, want = (COMPUTED[name](t, made(t), t.tensor(D), t.tensor(X)) for t in (flame, torch))
    assert tuple(got.shape) == tuple(want.shape) and got.is_sparse == want.is_sparse
    np.testing.assert_allclose(array(got), array(want), rtol=1e-12)


def test_sparse_and_dense_agree() -> None:
    s, d = made(flame), flame.tensor(D)
    np.testing.assert_allclose(array(s), DENSE)
    np.testing.assert_allclose(array(s @ d), DENSE @ D)
    np.testing.assert_allclose(array(flame.tensor(X).t() @ s), X.T @ DENSE)
    c = s.coalesce()
    assert c.is_coalesced() and c._nnz() == len({tuple(p) for p in I.T}) and c.coalesce() is c
    back = flame.tensor(DENSE).to_sparse()
    assert back.indices().tolist() == c.indices().tolist() and back.shape == (4, 5) and back.numel() == 20
    np.testing.assert_allclose(array(s * flame.tensor(X)), DENSE * X)
    for n in (0, 1):
        empty = flame.sparse_coo_tensor(flame.zeros(2, n, dtype=flame.int64), flame.ones(n), (3, 2))
        assert float(empty.to_dense().sum()) == n and (empty @ flame.ones(2, 2)).shape == (3, 2)


def test_gradients_flow_to_values_and_dense_operands() -> None:
    v, d = flame.tensor(V, requires_grad=True), flame.tensor(D, requires_grad=True)
    f = lambda v, d: (flame.sparse.mm(flame.sparse_coo_tensor(flame.tensor(I), v, (4, 5)), d) ** 2).sum()
    assert flame.autograd.gradcheck(f, (v, d)) and flame.autograd.gradgradcheck(f, (v, d))
    s = made(flame, requires_grad=True)
    flame.sparse.sum(s * 2.0).backward()
    assert s.requires_grad and s.grad.is_sparse and s.grad._values().tolist() == [2.0] * 9
    x = flame.tensor(X, requires_grad=True)
    (x.to_sparse() @ d).sum().backward()
    np.testing.assert_allclose(array(x.grad), np.broadcast_to(D.sum(1), (4, 5)))
    assert flame.autograd.gradcheck(lambda a: made(flame).to_dense() @ a, d)


def test_products_compile() -> None:
    i = flame.tensor(I)
    f = lambda v, d: flame.sparse.mm(flame.sparse_coo_tensor(i, v, (4, 5)), d).tanh()
    compiled = flame.compile(f)
    for _ in range(3):
        flame.testing.assert_close(compiled(flame.tensor(V), flame.tensor(D)), f(flame.tensor(V), flame.tensor(D)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: made(flame).indices(), RuntimeError, "uncoalesced"),
        (lambda: flame.ones(2).indices(), RuntimeError, "Strided"),
        (lambda: flame.ones(2).coalesce(), RuntimeError, "to_sparse"),
        (lambda: flame.sparse_coo_tensor([[0, 1]], [1.0]), RuntimeError, "same nnz"),
        (lambda: flame.sparse_coo_tensor([[0, 9]], [1.0, 2.0], (3,)), RuntimeError, "inconsistent"),
        (lambda: flame.sparse_coo_tensor([[0, -1]], [1.0, 2.0]), RuntimeError, "negative"),
        (lambda: flame.sparse_coo_tensor([0, 1], [1.0, 2.0]), RuntimeError, "sparse_dim x nnz"),
        (lambda: flame.sparse_coo_tensor([[0]], [1.0], (2, 2)), RuntimeError, "dense_dim"),
        (lambda: made(flame) @ flame.ones(4, 2).double(), RuntimeError, "5 rows"),
        (lambda: made(flame) @ flame.ones(5, 2), RuntimeError, "same dtype"),
        (lambda: made(flame) @ made(flame), TypeError, "to_dense"),
        (lambda: made(flame) / flame.ones(4, 5), RuntimeError, "divisor"),
        (lambda: made(flame) + flame.sparse_coo_tensor([[0]], [1.0], (3,)), RuntimeError, "one size"),
        (lambda: flame.ones(2).to_sparse(layout="flame.sparse_csr"), RuntimeError, "sparse_coo"),
        (lambda: made(flame).backward(), RuntimeError, "sparse.sum"),
        (lambda: flame.sparse_csr_tensor, AttributeError, "sparse_coo_tensor"),
        (lambda: flame.sparse.softmax(flame.ones(2), 0), TypeError, "sparse tensor"),
        (lambda: flame.sparse.softmax(made(flame), 2), IndexError, "out of range"),
        (lambda: flame.sparse.log_softmax(made(flame).to(flame.int64), 0), NotImplementedError, "takes floats"),
        (lambda: flame.sparse.spdiags(flame.ones(2, 2), flame.tensor([1, 1]), (2, 2)), RuntimeError, "duplicate"),
        (lambda: flame.sparse.spdiags(flame.ones(2, 2), flame.tensor([1]), (2, 2)), RuntimeError, "one a diagonal"),
        (lambda: flame.sparse.spdiags(flame.ones(2), flame.tensor([1]), (2, 2, 2)), RuntimeError, "2d"),
        (lambda: flame.ones(2, 2).sparse_mask(made(flame)), RuntimeError, "sizes"),
        (lambda: flame.ones(4, 5).sparse_mask(flame.ones(4, 5)), TypeError, "sparse tensor"),
    ],
)
def test_what_is_refused(call: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_products_at_given_places() -> None:
    r = np.random.default_rng(0)
    dense = r.standard_normal((4, 5)) * (r.random((4, 5)) > 0.5)
    a, b = (flame.tensor(r.standard_normal(s), requires_grad=True) for s in ((4, 3), (3, 5)))
    v = flame.tensor(dense, requires_grad=True)
    got = flame.sparse.sampled_addmm(v.to_sparse(), a, b, beta=0.5, alpha=2.0).to_dense()
    want = (2 * (a @ b) + 0.5 * v) * flame.tensor(dense != 0)
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=1e-12, atol=1e-12)
    for g, h in zip(*(flame.autograd.grad((y * y).sum(), (a, b, v)) for y in (got, want)), strict=True):
        np.testing.assert_allclose(g.numpy(), h.numpy(), rtol=1e-12, atol=1e-12)
    with pytest.raises(NotImplementedError, match="sparse tensor"):
        flame.sparse.sampled_addmm(v, a, b)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        flame.sparse.sampled_addmm(v.to_sparse(), a, a)


def test_gradients_of_softmax_masks_and_diagonals() -> None:
    i = made(flame).coalesce().indices()
    v = flame.randn(i.shape[1], dtype=flame.float64, requires_grad=True)
    x = flame.randn(4, 5, dtype=flame.float64, requires_grad=True)
    weights = flame.randn(4, 5, dtype=flame.float64)
    of = lambda v: flame.sparse_coo_tensor(i, v, (4, 5), is_coalesced=True)
    for f, at in (
        (lambda v: (flame.sparse.softmax(of(v), 1) * weights).values(), v),
        (lambda v: flame.sparse.log_softmax(of(v), 0).values(), v),
        (lambda x: x.sparse_mask(of(v.detach())).values(), x),
        (lambda x: flame.sparse.spdiags(x, flame.tensor([0, -2, 1, 3]), (6, 4)).to_dense(), x),
    ):
        assert flame.autograd.gradcheck(f, (at,)) and flame.autograd.gradgradcheck(f, (at,))
