"""Attention whose scores a function changes: eager, compiled and in Triton's interpreter, forward and backward, against the
formula written out in float64; and that its scores are in no memory of a GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
from flame.compiler.chain import chain, limits
from flame.compiler.graph import Graph
from flame.compiler.interpret import interpret
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep
from flame.compiler.schedule import GpuSchedule
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.nn.attention.flex_attention import (
    and_masks,
    create_block_mask,
    create_mask,
    flex_attention,
    noop_mask,
    or_masks,
)
from flame.runtime.triton_tools import run_interpreted

B, H, K, T, S, E, W = 2, 2, 1, 17, 19, 6, 5
flame.manual_seed(11)
SLOPES = flame.rand(H)
DOCUMENT = flame.randint(0, 3, (B, 32))
TABLE = flame.randn(H, 64)


def alibi(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score + SLOPES[h] * (j - i)


def soft_cap(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return 2.0 * flame.tanh(score / 2.0)


def relative(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score * (1.0 + 0.25 * h) + TABLE[h, i - j + 32]


def by_halves(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return flame.where(i >= j, score.sigmoid() * score, TABLE[h][j] - score)


def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    return i >= j


def window(b: Any, h: Any, i: Any, j: Any) -> Any:
    return (i >= j) & (i - j <= 4)


def documents(b: Any, h: Any, i: Any, j: Any) -> Any:
    return (DOCUMENT[b, i] == DOCUMENT[b, j]) & (i + 3 >= j)


def inputs(dtype: Any = flame.float32) -> list[Any]:
    flame.manual_seed(5)
    shapes = ((B, H, T, E), (B, K, S, E), (B, K, S, W), (B, H, T, W))
    return [flame.randn(*s).to(dtype).requires_grad_(n < 3) for n, s in enumerate(shapes)]


def step(score_mod: Any, block_mask: Any) -> Callable[..., Any]:
    def f(q: Any, k: Any, v: Any, w: Any) -> Any:
        y, lse = flex_attention(q, k, v, score_mod, block_mask, enable_gqa=True, return_lse=True)
        loss = (y * w).sum() + lse.clamp(min=-9.0).sum()
        return (y, lse, *flame.autograd.grad(loss, (q, k, v)))

    return f


def exactly(score_mod: Any, mask_mod: Any, args: list[Any]) -> list[np.ndarray]:
    """The same written out, in float64."""
    q, k, v, w = (a.detach().double().requires_grad_() for a in args)
    at = [flame.arange(n).reshape(*(n if d == x else 1 for x in range(4))) for d, n in enumerate((B, H, T, S))]
    keys, values = (x.repeat_interleave(H // K, 1) for x in (k, v))
    e = q @ keys.mT / math.sqrt(E)
    if score_mod is by_halves:  # a table is looked up whole where the indices are arrays
        e = flame.where(at[2] >= at[3], e.sigmoid() * e, TABLE.double()[at[1], at[3]] - e)
    elif score_mod is not None:
        e = score_mod(e, *at)
    if mask_mod is not None:
        e = flame.where(mask_mod(*at), e, -math.inf)
    top = e.detach().amax(-1, True).nan_to_num(neginf=0.0)
    p = (e - top).exp()
    total = p.sum(-1, True)
    y = (p / flame.where(total == 0, 1.0, total)) @ values
    lse = (top + flame.where(total == 0, 1e-300, total).log())[..., 0]
    loss = (y * w).sum() + lse.clamp(min=-9.0).sum()
    lse = flame.where(total[..., 0] == 0, -math.inf, lse)
    return [x.detach().numpy() for x in (y, lse, *flame.autograd.grad(loss, (q, k, v)))]


def close(got: Any, want: list[np.ndarray], tolerance: float = 2e-5) -> None:
    for a, b in zip(got, want, strict=True):
        a = a.detach().float().numpy() if isinstance(a, flame.Tensor) else a
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b[np.isfinite(b)]).max())))


CASES = [
    (None, None),
    (alibi, causal),
    (soft_cap, window),
    (relative, documents),
    (by_halves, None),
    (None, and_masks(window, or_masks(documents, causal))),
]


def named(case: Any) -> str:
    return "-".join(getattr(f, "__name__", "none") for f in case)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_scores_are_changed_as_written(case: Any) -> None:
    score_mod, mask_mod = case
    mask = None if mask_mod is None else create_block_mask(mask_mod, B, H, T, S)
    args = inputs()
    want = exactly(score_mod, mask_mod, args)
    f = step(score_mod, mask)
    close(f(*args), want)
    compiled = flame.compile(f)
    for _ in range(2):
        close(compiled(*args), want)
    assert compiled.stats.compiled == 1 and not compiled.stats.breaks
    for graph in compiled.graphs if mask_mod or score_mod is by_halves else ():
        run_on_gpu(graph, args, want)


def run_on_gpu(graph: Graph, args: list[Any], want: list[np.ndarray]) -> None:
    """Three flash kernels, by Triton's interpreter; what is around them by the kernel IR's own."""
    program = compile_graph(graph, gpu("sm_90"), verify=True)
    assert sum(chain(k) is not None for k in program.kernels) == 3
    assert not any(math.prod(s.spec.shape) >= B * H * T * S for s in program.slots)
    given = {tuple(a.shape): a for a in (*args, SLOPES, DOCUMENT, TABLE)}
    slots = {i: given[tuple(v.shape)].detach().clone().numpy() for i, v in zip(program.inputs, graph.inputs, strict=True)}
    for i, s in enumerate(program.slots):
        slots.setdefault(i, np.zeros(s.spec.shape, s.spec.dtype.numpy))
    for st in program.steps:
        assert isinstance(st, KernelStep)
        if chain(st.kernel) is None:
            interpret(st.kernel, {b: slots[i].reshape(-1) for b, i in st.buffers.items()}, st.symbols)
        else:
            run_interpreted(to_triton(st.kernel, TILE), {b: slots[i] for b, i in st.buffers.items()}, st.symbols)
    made = [slots[i] for i in program.outputs]
    for b in want:
        same = [a for a in made if a.size == b.size]
        assert any(np.allclose(a.reshape(b.shape), b, rtol=1e-4, atol=1e-4) for a in same)


TILE = GpuSchedule("chain", m_block=16, n_block=16)


def test_what_a_mask_hides_by_positions_is_not_walked() -> None:
    args = inputs(flame.float16)
    for mask_mod, sides in ((causal, 1), (window, 2), (documents, 1)):
        compiled = flame.compile(step(soft_cap, create_block_mask(mask_mod, None, None, T, S)))
        for _ in range(2):
            compiled(*args)
        kernels = compile_graph(compiled.graphs[0], gpu("sm_90")).kernels
        for k in kernels:
            found = chain(k)
            if found is not None:
                assert len(limits(k, found).visible) == sides


@pytest.mark.parametrize("d", [flame.float16, flame.bfloat16, flame.float64], ids=str)
def test_every_floating_dtype(d: Any) -> None:
    args = inputs(d)
    got = step(relative, create_block_mask(causal, None, None, T, S))(*args)
    assert got[0].dtype is d and got[1].dtype is (d if d is flame.float64 else flame.float32)
    close(got, exactly(relative, causal, args), {flame.float16: 2e-2, flame.bfloat16: 1e-1}.get(d, 1e-6))


def test_tables_that_require_gradient_have_one() -> None:
    q, k, v, w = inputs()
    table = TABLE.clone().requires_grad_()

    def score_mod(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return score + table[h, i - j + 32]

    (flex_attention(q, k, v, score_mod, enable_gqa=True) * w).sum().backward()
    e = q @ k.repeat_interleave(H, 1).mT / math.sqrt(E)
    at = [flame.arange(n).reshape(*(n if d == x else 1 for x in range(4))) for d, n in enumerate((B, H, T, S))]
    again = TABLE.clone().requires_grad_()
    y = flame.softmax(e + again[at[1], at[2] - at[3] + 32], -1) @ v.repeat_interleave(H, 1)
    (want,) = flame.autograd.grad((y * w).sum(), again)
    assert table.grad is not None
    flame.testing.assert_close(table.grad, want, rtol=1e-4, atol=1e-5)


def test_numbers_of_the_function_may_change_from_call_to_call() -> None:
    q, k, v, _ = inputs()
    compiled = flame.compile(
        lambda c: flex_attention(q, k, v, lambda s, b, h, i, j: s * c - (i - j).abs() * c, enable_gqa=True)
    )
    for c in (1.0, 1.0, 0.5, 0.5, 0.25, 0.25, -0.0):
        want = flex_attention(q, k, v, lambda s, b, h, i, j, c=c: s * c - (i - j).abs() * c, enable_gqa=True)
        flame.testing.assert_close(compiled(c), want, rtol=1e-5, atol=1e-6)


def test_masks_as_tensors_and_by_blocks() -> None:
    dense = create_mask(window, None, 2, 23, 19)
    i, j = np.arange(23)[:, None], np.arange(19)
    want = (i >= j) & (i - j <= 4)
    np.testing.assert_array_equal(dense.numpy(), np.broadcast_to(want, (1, 2, 23, 19)))
    m = create_block_mask(window, None, 2, 23, 19, BLOCK_SIZE=4)
    blocks: Any = np.pad(want, ((0, 1), (0, 1))).reshape(6, 4, 5, 4).any((1, 3))
    np.testing.assert_array_equal(m.to_dense().numpy()[0, 1], blocks)
    counts, columns = (m.kv_num_blocks + m.full_kv_num_blocks).numpy()[0, 0], m.kv_indices.numpy()[0, 0]
    np.testing.assert_array_equal(counts, blocks.sum(1))
    assert all(blocks[r, c] for r in range(6) for c in columns[r, : m.kv_num_blocks[0, 0, r].item()])
    assert m.sparsity() == pytest.approx(100 * (1 - blocks.mean())) and m.shape == (1, 2, 23, 19)
    assert create_block_mask(noop_mask, 1, 1, 8, 8, BLOCK_SIZE=4).full_kv_num_blocks.tolist() == [[[2, 2]]]


def test_what_is_no_function_of_single_numbers_is_refused() -> None:
    q, k, v, _ = inputs()

    def attend(f: Any, mask: Any = None) -> Any:
        return flex_attention(q, k, v, f, mask, enable_gqa=True)

    with pytest.raises(RuntimeError, match="value of a score or of its place is read"):
        attend(lambda s, b, h, i, j: s if i > j else -s)
    with pytest.raises(RuntimeError, match="single numbers"):
        attend(lambda s, b, h, i, j: s + TABLE)
    with pytest.raises(RuntimeError, match="one number"):
        attend(lambda s, b, h, i, j: TABLE[h])
    with pytest.raises(RuntimeError, match="reshape can't be part of it"):
        attend(lambda s, b, h, i, j: s.unsqueeze(0))
    with pytest.raises(RuntimeError, match="return a tensor"):
        attend(lambda s, b, h, i, j: 1.0)
    with pytest.raises(RuntimeError, match="floating"):
        attend(lambda s, b, h, i, j: i)
    with pytest.raises(RuntimeError, match="bool"):
        create_block_mask(lambda b, h, i, j: i - j, None, None, T, S)
    with pytest.raises(ValueError, match="enable_gqa"):
        flex_attention(q, k, v)
    with pytest.raises(ValueError, match="4D"):
        flex_attention(q[0], k[0], v[0])
    with pytest.raises(ValueError, match="block_mask was created for shape"):
        attend(None, create_block_mask(causal, None, None, 8, 8))
    with pytest.raises(RuntimeError, match="callable"):
        and_masks(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("compiled", [False, True])
def test_derivatives_of_second_order(compiled: bool) -> None:
    q, k, v = (flame.randn(1, 2, n, 3, dtype=flame.float64, requires_grad=True) for n in (4, 5, 5))

    def written_out(q: Any, k: Any, v: Any) -> Any:
        return flame.softmax(2.0 * flame.tanh(q @ k.mT / math.sqrt(3) / 2.0), -1) @ v

    def penalty(attention: Any) -> Any:
        y = attention(q, k, v).square().sum()
        first = flame.autograd.grad(y, (q, k, v), create_graph=True)
        return flame.autograd.grad(sum((g * g).sum() for g in first), (q, k, v))

    flexible = functools.partial(penalty, functools.partial(flex_attention, score_mod=soft_cap))
    run = flame.compile(flexible) if compiled else flexible
    for _ in range(3 if compiled else 1):
        for got, meant in zip(run(), penalty(written_out), strict=True):
            np.testing.assert_allclose(got.numpy(), meant.numpy(), rtol=1e-9, atol=1e-12)
