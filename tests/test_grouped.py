"""Products by groups: eager, compiled, their gradients, and what a GPU runs of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
import flame.nn.functional as F
from flame import dtypes
from flame.compiler.gpu_routines import gpu_routine
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import CallStep
from flame.compiler.target import gpu
from flame.primitive import Spec, registered

ENDS = [5, 5, 21, 30]  #: groups of 5, none, 16 and 9; two rows behind them


def experts(x: Any, w: Any, offs: Any) -> Any:
    """Rows by the weights of their expert, which lie as a linear layer's."""
    return F.grouped_mm(x, w.transpose(-2, -1), offs=offs)


def given(d: Any = flame.float32) -> tuple[Any, Any, Any]:
    flame.manual_seed(3)
    x, w = (flame.randn(*s).to(d).requires_grad_() for s in ((32, 6), (4, 7, 6)))
    return x, w, flame.tensor(ENDS, dtype=flame.int32)


def exactly(x: Any, w: Any) -> list[np.ndarray]:
    """y, and the gradients of the sum of its squares."""
    x, w = (t.detach().double().numpy() for t in (x, w))
    y, dx, dw = np.zeros((32, 7)), np.zeros(x.shape), np.zeros(w.shape)
    for g, (a, b) in enumerate(zip([0, *ENDS], ENDS)):
        y[a:b] = x[a:b] @ w[g].T
        dx[a:b], dw[g] = 2 * y[a:b] @ w[g], 2 * y[a:b].T @ x[a:b]
    return [y, dx, dw]


def step(x: Any, w: Any, offs: Any) -> Any:
    y = experts(x, w, offs)
    return (y, *flame.autograd.grad(y.square().sum(), (x, w)))


@pytest.mark.parametrize("d", [flame.float32, flame.bfloat16, flame.float16], ids=str)
def test_rows_meet_the_matrix_of_their_group(d: Any) -> None:
    x, w, offs = given(d)
    tolerance = {flame.float32: 1e-5, flame.float16: 2e-2, flame.bfloat16: 1e-1}[d]
    compiled = flame.compile(step)
    for got in (step(x, w, offs), compiled(x, w, offs), compiled(x, w, offs)):
        for a, b in zip(got, exactly(x, w), strict=True):
            assert a.dtype is d
            np.testing.assert_allclose(a.detach().float().numpy(), b, rtol=tolerance, atol=tolerance * np.abs(b).max())
    assert not compiled.stats.breaks


def test_transposed_matrices_are_read_as_they_lie() -> None:
    """Of weights and their gradient no copy is made on a GPU."""
    x, w, offs = given()
    compiled = flame.compile(step)
    for _ in range(2):
        compiled(x, w, offs)
    steps = compile_graph(compiled.graphs[0], gpu("sm_90")).steps
    calls = [s for s in steps if isinstance(s, CallStep)]
    assert sorted(s.node.params["turned"] for s in calls) == [(False, False), (False, True), (True, False)]
    # (what is left is the gradient of weights, turned to lie as they do)
    assert sum("permute" in getattr(getattr(s, "kernel", None), "name", "") for s in steps) == 1


@pytest.mark.parametrize("form", ["rows", "columns", "sums"])
def test_derivatives_of_both_orders(form: str) -> None:
    flame.manual_seed(4)
    shapes = {"rows": ((5, 2), (3, 2, 3)), "columns": ((3, 2, 3), (3, 5)), "sums": ((2, 5), (5, 3))}[form]
    offs = flame.tensor([2, 2, 4], dtype=flame.int32)
    for turned in ((False, False), (True, True)):
        a, b = (flame.randn(*s, dtype=flame.float64) for s in shapes)
        a, b = (x.mT.contiguous() if t else x for x, t in zip((a, b), turned))
        f = lambda a, b, turned=turned: registered("grouped_mm")(a, b, offs, turned=turned)
        operands = (a.requires_grad_(), b.requires_grad_())
        assert flame.autograd.gradcheck(f, operands) and flame.autograd.gradgradcheck(f, operands)


def test_a_batch_of_matrices_needs_no_groups() -> None:
    a, b = flame.randn(3, 4, 5), flame.randn(3, 5, 2)
    flame.testing.assert_close(F.grouped_mm(a, b), a @ b)


def test_positions_beyond_32_bits_are_wide() -> None:
    for t, wide in ((2**20, False), (2**21, True)):
        specs = [Spec((t, 1024), dtypes.bfloat16), Spec((8, 1024, 64), dtypes.bfloat16), Spec((8,), dtypes.int32)]
        (launch,) = gpu_routine(registered("grouped_mm"), specs, {"turned": (False, False)}, gpu("sm_90")).launches
        assert launch.source.wide is wide and ("tl.int64)" in launch.source.text.split("row_in")[0]) is wide


def test_what_does_not_fit_is_refused() -> None:
    x, w, offs = given()
    for operands, how, words in (
        ((x, w.mT), {}, "have to provide offs"),
        ((w, w.mT), {"offs": offs}, "have to provide offs"),
        ((x, w), {"offs": offs}, "contraction dimension"),
        ((x, w.mT), {"offs": offs.long()}, "int32"),
        ((x, w[:3].mT), {"offs": offs}, "as many matrices as groups"),
        ((x, w.mT), {"offs": offs, "bias": x}, "bias is not supported"),
        ((x, w.mT), {"offs": offs, "out_dtype": flame.float16}, "output dtype must match"),
        ((x.double(), w.mT.double()), {"offs": offs}, "float32, bfloat16 or float16"),
        ((x, w.mT.half()), {"offs": offs}, "float32, bfloat16 or float16"),
        ((x[0], w.mT), {"offs": offs}, "2-D or 3-D"),
        ((w, w), {}, "expected"),
    ):
        with pytest.raises(RuntimeError, match=words):
            F.grouped_mm(*operands, **how)  # type: ignore[misc]


@pytest.mark.oracle
def test_pytorch_says_the_same(torch: Any) -> None:
    if not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("this PyTorch has no grouped_mm")
    r = np.random.default_rng(0)
    ends = np.array([8, 8, 20, 24], np.int32)
    for shapes in (((24, 16), (4, 16, 8)), ((4, 8, 16), (16, 24)), ((16, 24), (24, 8)), ((4, 8, 16), (4, 16, 8))):
        arrays = [r.standard_normal(s).astype(np.float32) for s in shapes]
        made = []
        for lib, f in ((flame, F.grouped_mm), (torch, torch.nn.functional.grouped_mm)):
            a, b = (lib.tensor(x, requires_grad=True) for x in arrays)
            y = f(a, b, offs=None if a.ndim == b.ndim == 3 else lib.tensor(ends))
            y.square().sum().backward()
            made.append([x.detach().numpy() for x in (y, a.grad, b.grad)])
        for mine, other in zip(*made, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)
