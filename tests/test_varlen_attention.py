"""Attention over sequences that lie one after the other: eager, compiled and in Triton's interpreter, forward and backward, against
every sequence by itself in float64; and that no other keys are walked."""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any

import numpy as np
import pytest
from test_flex_attention import TILE

import flame
from flame.compiler.chain import chain, limits
from flame.compiler.graph import Graph
from flame.compiler.interpret import interpret
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import Argument, CallStep
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.nn.attention import varlen
from flame.nn.attention.varlen import AuxRequest, varlen_attn, varlen_attn_out
from flame.runtime.cpu import target
from flame.runtime.triton_tools import run_interpreted

E, W = 6, 5
#: lengths of queries and of keys (none, one, more than a tile), rows behind the last sequence
LENGTHS = [
    ((3, 0, 40, 1, 9), (5, 2, 33, 0, 9), 2),
    ((7,), (7,), 0),
    ((0,), (3,), 1),
    ((17, 17, 17), (17, 17, 17), 0),
]
WINDOWS = [(-1, -1), (-1, 0), (4, 0), (3, 2), (0, -1)]


def given(lengths: Any, d: Any = flame.float32, heads: tuple[int, int] = (4, 2), seed: int = 5) -> list[Any]:
    """q, k, v, the cotangent of the result, and where sequences begin."""
    queries, keys, behind = lengths
    flame.manual_seed(seed)
    t, s = sum(queries) + behind, sum(keys) + behind
    shapes = ((t, heads[0], E), (s, heads[1], E), (s, heads[1], W), (t, heads[0], W))
    tensors = [flame.randn(*x).to(d).requires_grad_(n < 3) for n, x in enumerate(shapes)]
    return [*tensors, *(flame.tensor(np.cumsum([0, *x]), dtype=flame.int32) for x in (queries, keys))]


def step(window: tuple[int, int]) -> Any:
    def f(q: Any, k: Any, v: Any, w: Any, cu_q: Any, cu_k: Any) -> Any:
        y, lse = varlen_attn(q, k, v, cu_q, cu_k, 1, 1, return_aux=AuxRequest(lse=True), window_size=window, enable_gqa=True)
        loss = (y * w).sum() + lse.clamp(min=-9.0).sum()
        return (y, lse, *flame.autograd.grad(loss, (q, k, v)))

    return f


def exactly(args: list[Any], window: tuple[int, int], used: Any = None) -> list[np.ndarray]:
    """A sequence after the other, by the formula, in float64; derivatives written out as well."""
    q, k, v, w = (a.detach().double().numpy() for a in args[:4])
    cu_q, cu_k = (a.tolist() for a in args[4:])
    group = q.shape[1] // k.shape[1]
    y, lse = np.zeros((*q.shape[:2], v.shape[2])), np.full(q.shape[1::-1], -np.inf)
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for n in range(len(cu_q) - 1):
        a, b, c = cu_q[n], cu_q[n + 1], cu_k[n]
        d = cu_k[n + 1] if used is None else c + used[n]
        place = np.arange(b - a)[:, None] + (d - c) - (b - a)
        j = np.arange(d - c)
        hidden = np.zeros((b - a, d - c), bool)
        if window[0] >= 0:
            hidden |= j < place - window[0]
        if window[1] >= 0:
            hidden |= j > place + window[1]
        for h in range(q.shape[1]):
            e = np.where(hidden, -np.inf, q[a:b, h] @ k[c:d, h // group].T / math.sqrt(q.shape[2]))
            top = e.max(1, initial=-np.inf)
            p = np.exp(e - np.where(np.isinf(top), 0, top)[:, None])
            total = p.sum(1)
            p /= np.where(total == 0, 1, total)[:, None]
            y[a:b, h] = p @ v[c:d, h // group]
            with np.errstate(divide="ignore"):
                lse[h, a:b] = np.where(total == 0, -np.inf, top + np.log(total))
            g = w[a:b, h]
            seen = lse[h, a:b] > -9.0
            ds = p * (g @ v[c:d, h // group].T - (g * y[a:b, h]).sum(1)[:, None] + seen[:, None]) / math.sqrt(q.shape[2])
            dq[a:b, h] = ds @ k[c:d, h // group]
            dk[c:d, h // group] += ds.T @ q[a:b, h]
            dv[c:d, h // group] += p.T @ g
    return [y, lse, dq, dk, dv]


def close(got: Any, want: list[np.ndarray], tolerance: float = 2e-5) -> None:
    for a, b in zip(got, want, strict=True):
        a = a.detach().float().numpy() if isinstance(a, flame.Tensor) else a
        most = float(np.abs(b[np.isfinite(b)]).max(initial=1.0))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * most)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_sequence_attends_to_itself(lengths: Any, window: tuple[int, int]) -> None:
    args = given(lengths)
    close(step(window)(*args), exactly(args, window))


def test_compiled_for_a_cpu_and_in_tritons_interpreter() -> None:
    window = (3, 2)
    compiled = flame.compile(step(window))
    for seed in (5, 6):
        args = given(LENGTHS[0], seed=seed)
        close(compiled(*args), exactly(args, window))
    assert compiled.stats.compiled == 1 and not compiled.stats.breaks
    (graph,) = compiled.graphs
    on_cpu = [s.node.primitive.name for s in compile_graph(graph, target()).steps if isinstance(s, CallStep)]
    assert on_cpu.count("flex_attention") == on_cpu.count("flex_attention_grad") == 1
    got = run_on_gpu(graph, args)
    for b in exactly(args, window):
        layouts = [b] if b.ndim == 2 else [b, b.transpose(1, 0, 2)]  # (kernels may leave heads first)
        same = [(a.reshape(x.shape), x) for a in got for x in layouts if a.size == x.size]
        assert any(np.allclose(a, x, rtol=1e-4, atol=1e-4) for a, x in same)


def run_on_gpu(graph: Graph, args: list[Any]) -> list[np.ndarray]:
    """Three flash kernels, by Triton's interpreter; what is around them by the kernel IR's own, and calls by NumPy."""
    program = compile_graph(graph, gpu("sm_90"), verify=True)
    assert sum(chain(k) is not None for k in program.kernels) == 3
    scores = args[0].shape[0] * args[1].shape[0]
    assert not any(math.prod(s.spec.shape) >= scores for s in program.slots)
    left = args[::-1]  # where keys begin is read before where queries do
    slots: dict[int, np.ndarray] = {}
    for i, v in zip(program.inputs, graph.inputs, strict=True):
        mine = next(a for a in left if tuple(a.shape) == tuple(v.shape))
        left = [a for a in left if a is not mine]
        slots[i] = mine.detach().clone().numpy()
    for i, s in enumerate(program.slots):
        slots.setdefault(i, np.zeros(s.spec.shape, s.spec.dtype.numpy))

    def operand(a: Any) -> Any:
        if not isinstance(a, Argument):
            return a
        array = slots[a.slot]
        for primitive, params in a.views:
            array = primitive.eager(array, **params)
        return array

    for st in program.steps:
        if isinstance(st, CallStep):
            assert st.node.primitive.name == "searchsorted"
            slots[st.outputs[0]][...] = st.node.primitive.eager(*map(operand, st.arguments), **st.node.params)
        elif chain(st.kernel) is None:
            interpret(st.kernel, {b: slots[i] for b, i in st.buffers.items()}, st.symbols)
        else:
            run_interpreted(to_triton(st.kernel, TILE), {b: slots[i] for b, i in st.buffers.items()}, st.symbols)
    return [slots[i] for i in program.outputs]


def test_other_sequences_are_not_walked() -> None:
    lengths = ((16, 32, 16), (16, 48, 16), 0)
    args = given(lengths, flame.float32, (1, 1))
    compiled = flame.compile(step((-1, -1)))
    for _ in range(2):
        compiled(*args)
    found = [k for k in compile_graph(compiled.graphs[0], gpu("sm_90")).kernels if chain(k)]
    assert len(found) == 3
    for k in found:
        bounds = limits(k, chain(k))  # type: ignore[arg-type]
        assert len(bounds.visible) == 2 and bounds.decided
        text = to_triton(k, TILE).text
        assert "tl.min(since" in text and "tl.max(until" in text


def test_pages_of_keys_and_how_many_count() -> None:
    """A cache of pages in any order gives what the same keys in one piece give."""
    q, k, v, _, cu_q, cu_k = given(((2, 1, 3), (8, 8, 8), 0))
    used = flame.tensor([5, 8, 3], dtype=flame.int32)
    with flame.no_grad():
        y, lse = varlen_attn(
            q, k, v, cu_q, cu_k, 3, 8, return_aux=AuxRequest(True), window_size=(-1, 0), enable_gqa=True, seqused_k=used
        )
        want = exactly([q, k, v, flame.zeros(*y.shape), cu_q, cu_k], (-1, 0), used.tolist())
        close((y, lse), want[:2])
        table = flame.tensor([[4, 0], [5, 2], [1, 3]], dtype=flame.int32)
        pages = [flame.zeros(6, 4, *x.shape[1:]) for x in (k, v)]
        for page, x in zip(pages, (k, v), strict=True):
            page[table.reshape(-1).long()] = x.detach().reshape(6, 4, *x.shape[1:])
        how: dict[str, Any] = {"window_size": (-1, 0), "enable_gqa": True, "seqused_k": used, "block_table": table}
        flame.testing.assert_close(varlen_attn(q, pages[0], pages[1], cu_q, None, 3, 8, **how), y)
        out = flame.zeros(*y.shape)
        got, sums = varlen_attn_out(out, q, pages[0], pages[1], cu_q, None, 3, 8, return_aux=AuxRequest(lse=True), **how)
        assert got is out
        flame.testing.assert_close(out, y)
        flame.testing.assert_close(sums, lse)


@pytest.mark.parametrize("d", [flame.float16, flame.bfloat16, flame.float64], ids=str)
def test_every_floating_dtype(d: Any) -> None:
    args = given(LENGTHS[0], d)
    got = step((-1, 0))(*args)
    assert got[0].dtype is d and got[1].dtype is (d if d is flame.float64 else flame.float32)
    close(got, exactly(args, (-1, 0)), {flame.float16: 2e-2, flame.bfloat16: 1e-1}.get(d, 1e-6))


def test_derivatives_of_second_order() -> None:
    args = given(((3, 4), (3, 5), 0), flame.float64, (1, 1))
    q, k, v, w, cu_q, cu_k = args
    q, k, v, w = (x.detach()[:, :, :2].requires_grad_() for x in (q, k, v, w))
    f = lambda q, k, v: varlen_attn(q, k, v, cu_q, cu_k, 4, 5, window_size=(-1, 0)) * w
    assert flame.autograd.gradcheck(f, (q, k, v)) and flame.autograd.gradgradcheck(f, (q, k, v))


def test_what_does_not_fit_is_refused() -> None:
    q, k, v, _, cu_q, cu_k = given(((3, 4), (3, 5), 0))

    def attend(*operands: Any, **how: Any) -> Any:
        a, b, c, d, e = operands or (q, k, v, cu_q, cu_k)
        return varlen_attn(a, b, c, d, e, 4, 5, **{"enable_gqa": True} | how)

    with pytest.raises(ValueError, match="enable_gqa=True"):
        attend(enable_gqa=False)
    with pytest.raises(ValueError, match="multiple of kv heads"):
        attend(q[:, :3], k, v, cu_q, cu_k)
    with pytest.raises(ValueError, match="length 2"):
        attend(window_size=(1, 2, 3))
    with pytest.raises(RuntimeError, match=r"cu_seq_k to be int32 \[3\]"):
        attend(q, k, v, cu_q, cu_k.long())
    with pytest.raises(RuntimeError, match=r"cu_seq_k to be int32 \[3\]"):
        attend(q, k, v, cu_q, cu_k[:2])
    with pytest.raises(RuntimeError, match="cu_seq_k, where"):
        attend(q, k, v, cu_q, None)
    with pytest.raises(RuntimeError, match="3-D"):
        attend(q[0], k, v, cu_q, cu_k)
    with pytest.raises(RuntimeError, match="one floating dtype"):
        attend(q, k.double(), v, cu_q, cu_k)
    used = flame.tensor([1, 2], dtype=flame.int32)
    with pytest.raises(RuntimeError, match="seqused_k is an inference-only parameter"):
        attend(seqused_k=used)
    with flame.no_grad(), pytest.raises(RuntimeError, match="needs seqused_k"):
        attend(q, k[None], v[None], cu_q, None, block_table=flame.zeros(2, 1, dtype=flame.int32))
    with pytest.raises(RuntimeError, match="expected an out of"):
        varlen_attn_out(flame.zeros(2), q, k, v, cu_q, cu_k, 4, 5, enable_gqa=True)


@pytest.mark.oracle
def test_signatures_are_those_of_pytorch() -> None:
    theirs = importlib.import_module("torch.nn.attention.varlen")

    for name in ("varlen_attn", "varlen_attn_out"):
        mine, other = (inspect.signature(getattr(m, name)).parameters.values() for m in (varlen, theirs))
        assert [(p.name, p.kind, p.default) for p in mine] == [(p.name, p.kind, p.default) for p in other]
    assert AuxRequest._field_defaults == theirs.AuxRequest._field_defaults
