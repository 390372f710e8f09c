"""Attention in Triton: kernels whose scores are never in memory, held to float64, and the tensor-core code that they become.

Kernels are run by Triton's interpreter on NumPy memory; the binaries are for GPUs that are not there.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import flame
from flame import dtypes as dt
from flame.compiler import attention_kernels
from flame.compiler.chain import chain, limits
from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.index_math import evaluate
from flame.compiler.interpret import interpret
from flame.compiler.kernel import Contract, Kernel, verify
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import CallStep, KernelStep, Program
from flame.compiler.program_interpret import run_interpreted as run_program
from flame.compiler.schedule import GpuSchedule, choose_gpu, tiled_candidates
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.compiler.transform import merge_axes
from flame.errors import Refused
from flame.primitive import Spec, registered
from flame.runtime.triton_tools import compile_triton, run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

GPU = gpu("sm_90")
SMALL = GpuSchedule("chain", m_block=16, n_block=16)
TOLERANCE = {dt.float32: 1e-5, dt.float16: 6e-3, dt.bfloat16: 5e-2}


def attention_graph(
    q: tuple, k: tuple, v: tuple, d: dt.dtype = dt.float32, bias: Spec | None = None, keep: Spec | None = None, **how: Any
) -> Graph:
    """y, lse, dq, dk, dv of q, k, v and the cotangent of y."""
    b = Builder()
    q_, k_, v_ = (b.input(Spec(x, d), n) for x, n in ((q, "q"), (k, "k"), (v, "v")))
    g = b.input(Spec((*q[:-1], v[-1]), d), "g")
    more = []
    if bias or keep:
        more = [b.input(bias, "bias") if bias else 0.0, b.input(keep, "keep") if keep else 1.0]
    with b:
        b.graph.outputs = attend(b, q_, k_, v_, g, *more, **({"scale": 0.3, "causal": False} | how))
    return b.graph


def attend(b: Builder, q: Value, k: Value, v: Value, g: Value, *more: Any, **how: Any) -> list[Value]:
    y, lse = registered("attention")(q, k, v, *more, **how)
    wide = [registered("cast")(x, dtype=dt.float32) if x.dtype is not dt.float32 else x for x in (y, g)]
    delta = registered("sum")(registered("mul")(*wide), dim=(len(q.shape) - 1,), keepdim=False)
    return [y, lse, *registered("attention_grad")(q, k, v, lse, delta, g, *more, **how)]


def arrays_of(graph: Graph, r: np.random.Generator) -> list[np.ndarray]:
    def one(v: Value) -> np.ndarray:
        if v.dtype.kind == "b":
            return r.random(v.shape) < 0.7
        return (r.random(v.shape) < 0.8 if v.name == "keep" else r.standard_normal(v.shape)).astype(v.dtype.numpy)

    return [one(v) for v in graph.inputs]


def exact(graph: Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The results in float64, the residuals of the gradient among them."""
    wide = {v: a.astype(np.float64) if v.dtype.kind == "f" else a for v, a in zip(graph.inputs, arrays)}
    for n in graph.nodes:
        params = {k: dt.float64 if isinstance(x, dt.dtype) and x.kind == "f" else x for k, x in n.params.items()}
        got = n.primitive.eager(*(wide[x] if isinstance(x, Value) else x for x in n.operands), **params)
        wide.update(zip(n.outputs, got if isinstance(got, tuple) else (got,)))
    return [wide[v] for v in graph.outputs]


def run(program: Program, arrays: list[np.ndarray], schedule: GpuSchedule | None) -> list[np.ndarray]:
    """A program step by step, its chains in Triton's interpreter and the rest by the kernel IR's own."""
    slots: dict[int, np.ndarray] = dict(zip(program.inputs, arrays))
    for i, s in enumerate(program.slots):
        slots.setdefault(i, np.zeros(s.spec.shape, s.spec.dtype.numpy))
    for step in program.steps:
        assert isinstance(step, KernelStep)
        if chain(step.kernel) is None:
            interpret(step.kernel, {b: slots[s].reshape(-1) for b, s in step.buffers.items()}, step.symbols)
            continue
        source = to_triton(step.kernel, schedule or choose_gpu(step.kernel, GPU))
        run_interpreted(source, {b: slots[s] for b, s in step.buffers.items()}, step.symbols)
    return [slots[i] for i in program.outputs]


def close(got: list[np.ndarray], want: list[np.ndarray], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        size = max(1.0, float(np.abs(b, where=np.isfinite(b), out=np.zeros_like(b)).max(initial=0)))
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=0, atol=tolerance * size)


def random_case(seed: int) -> tuple[Graph, GpuSchedule]:
    """Sizes that fit no tile, heads that share keys, masks of any shape that broadcasts, any dtype, any tile."""
    r = random.Random(seed)
    t, s, e, w = r.randint(1, 40), r.randint(2, 45), r.choice((2, 7, 16, 20)), r.choice((3, 16, 17))
    heads, shared = r.choice((((), ()), ((2,), (2,)), ((4,), (2,)), ((2, 3), (2, 1)), ((2, 2), (2, 2))))
    if t == 1 and heads == shared:
        t = 2
    scores = (*heads, t, s)
    d = r.choice((dt.float32, dt.float32, dt.float16, dt.bfloat16))

    def spread(kind: dt.dtype) -> Spec:
        shape = tuple(n if r.random() < 0.6 else 1 for n in scores)
        return Spec(shape[r.randint(0, len(shape) - 1) :], kind)

    bias = r.choice((None, spread(dt.bool_), spread(d), spread(dt.float32)))
    keep = spread(dt.float32) if r.random() < 0.4 else None
    how = {"causal": r.random() < 0.5, "softcap": r.choice((0.0, 0.0, 2.0))}
    graph = attention_graph((*heads, t, e), (*shared, s, e), (*shared, s, w), d, bias, keep, **how)
    schedule = replace(SMALL, m_block=r.choice((16, 32, 32)), n_block=r.choice((16, 32, 32)), wide=r.random() < 0.3)
    return graph, schedule


@pytest.mark.parametrize("seed", range(16))
def test_random_attention_under_random_tiles(seed: int) -> None:
    graph, schedule = random_case(seed)
    program = compile_graph(graph, GPU, verify=True)
    assert sum(chain(k) is not None for k in program.kernels) == 3
    arrays = arrays_of(graph, np.random.default_rng(seed))
    d = graph.inputs[0].dtype
    want = exact(graph, arrays)
    close(run(program, arrays, schedule), want, TOLERANCE[d])
    close(run_program(program, arrays), want, TOLERANCE[d])


def masked(mask: Any, t: int = 33, s: int = 50) -> Graph:
    """Attention under a mask that is made of positions, in the graph."""
    b = Builder()
    q, k, v, g = (b.input(Spec((n, 8), dt.float32), x) for x, n in (("q", t), ("k", s), ("v", s), ("g", t)))
    with b:
        rows = registered("reshape")(registered("iota")(size=t, dtype=dt.int64), shape=(t, 1))
        b.graph.outputs = attend(
            b, q, k, v, g, mask(rows, registered("iota")(size=s, dtype=dt.int64)), 1.0, scale=0.3, causal=False
        )
    return b.graph


def op(name: str) -> Any:
    return registered(name)


MASKS = {
    "causal": (lambda i, j: op("le")(j, i), 1),
    "causal, the ends aligned": (lambda i, j: op("le")(j, op("add")(i, 17)), 1),
    "a window": (lambda i, j: op("logical_and")(op("le")(j, i), op("lt")(op("sub")(i, j), 12)), 2),
    "a band": (lambda i, j: op("logical_and")(op("lt")(op("sub")(j, i), 9), op("lt")(op("sub")(i, j), 9)), 2),
    "later keys": (lambda i, j: op("gt")(j, i), 1),
    "a prefix": (lambda i, j: op("logical_or")(op("le")(j, i), op("lt")(j, 17)), 0),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_positions_are_never_in_memory_and_hidden_tiles_are_not_walked(name: str) -> None:
    mask, conditions = MASKS[name]
    graph = masked(mask)
    program = compile_graph(graph, GPU, verify=True)
    chains = [k for k in program.kernels if chain(k) is not None]
    assert len(chains) == 3
    for k in chains:
        assert all(int(evaluate(n, {})) != 33 * 50 for b in k.buffers.values() for n in b.shape) and "bias" not in k.buffers
        found = chain(k)
        assert found is not None and len(limits(k, found).visible) == conditions
        text = to_triton(k, SMALL).text
        assert ("whole_end" in text) == bool(conditions)
    arrays = arrays_of(graph, np.random.default_rng(1))
    close(run(program, arrays, SMALL), exact(graph, arrays), 1e-5)


def test_keys_that_no_row_of_a_tile_sees_are_not_read() -> None:
    """Values that are no numbers would show: 0 * NaN."""
    graph = attention_graph((16, 8), (64, 8), (64, 8), causal=True)
    (kernel, _), *_ = made(graph)
    buffers = {b.name: np.ones([int(evaluate(n, {})) for n in b.shape], np.float32) for b in kernel.buffers.values()}
    buffers["v"][16:] = np.nan
    run_interpreted(to_triton(kernel, SMALL), buffers)
    assert np.isfinite(buffers["y"]).all()
    run_interpreted(to_triton(kernel, replace(SMALL, n_block=32)), buffers)
    assert np.isnan(buffers["y"]).all()


def made(graph: Graph) -> list[tuple[Kernel, dict[str, Value]]]:
    nodes = [n for n in graph.nodes if n.primitive.name in ("attention", "attention_grad")]
    out = []
    for n in nodes:
        out += attention_kernels.kernels(n, lambda v: v.node is None or v.node.primitive.name != "iota")
    return out


def test_dropout_draws_where_it_is_needed_and_the_same_numbers() -> None:
    b = Builder()
    shape = (2, 33, 40)
    q, g = (b.input(Spec((2, 33, 16), dt.float32), x) for x in "qg")
    k, v = (b.input(Spec((2, 40, 16), dt.float32), x) for x in "kv")
    seed, offset = (b.input(Spec((), dt.int64), x) for x in ("seed", "offset"))
    with b:
        bits = op("cast")(op("shift_right")(op("random_bits")(seed, offset, shape=shape), 8), dtype=dt.float32)
        keep = op("mul")(op("cast")(op("ge")(op("mul")(bits, 2.0**-24), 0.25), dtype=dt.float32), 1 / 0.75)
        b.graph.outputs = attend(b, q, k, v, g, 0.0, keep, scale=0.25, causal=True)
    program = compile_graph(b.graph, GPU, verify=True)
    assert all(s.spec.numel < 2 * 33 * 40 for s in program.slots), "the bits of all scores stand nowhere"
    arrays = [*arrays_of(b.graph, np.random.default_rng(3))[:4], np.asarray(7), np.asarray(5)]
    close(run(program, arrays, SMALL), exact(b.graph, arrays), 1e-5)


def test_a_bias_of_slopes_is_computed_at_the_scores() -> None:
    """ALiBi: head h adds -2^-h (i - j)."""
    b = Builder()
    q, k, v, g = (b.input(Spec((1, 4, 40, 8), dt.float16), x) for x in "qkvg")
    slopes = b.input(Spec((4, 1, 1), dt.float16), "slopes")
    with b:
        place = op("cast")(op("iota")(size=40, dtype=dt.int64), dtype=dt.float16)
        distance = op("sub")(place, op("reshape")(place, shape=(40, 1)))
        b.graph.outputs = attend(b, q, k, v, g, op("mul")(slopes, distance), 1.0, scale=0.3, causal=True)
    program = compile_graph(b.graph, GPU, verify=True)
    assert all(s.spec.numel <= 4 * 40 * 8 for s in program.slots)
    arrays = arrays_of(b.graph, np.random.default_rng(3))
    close(run(program, arrays, SMALL), exact(b.graph, arrays), 1e-2)


@pytest.mark.parametrize("d", [dt.float32, dt.float16], ids=lambda d: d.name)
def test_a_row_that_attends_to_nothing_is_0(d: dt.dtype) -> None:
    graph = attention_graph((2, 20, 8), (2, 30, 8), (2, 30, 8), d, Spec((20, 30), dt.bool_))
    arrays = arrays_of(graph, np.random.default_rng(0))
    arrays[4][3] = arrays[4][19] = False
    program = compile_graph(graph, GPU)
    for got in (run(program, arrays, SMALL), run_program(program, arrays)):
        y, lse, dq, dk, dv = got
        assert not y[:, 3].any() and not dq[:, 19].any() and np.isneginf(lse[:, 3]).all()
        assert all(np.isfinite(x).all() for x in (y, dq, dk, dv))
        close(got, exact(graph, arrays), TOLERANCE[d])


def test_operands_are_read_through_their_views() -> None:
    """(batch, position, head, number) as models have it, and a result that nobody asked for."""
    b = Builder()
    q, k, v = (b.input(Spec((2, 20, 3, 8), dt.float32), x) for x in "qkv")
    with b:
        y, _ = op("attention")(*(op("permute")(x, dims=(0, 2, 1, 3)) for x in (q, k, v)), scale=0.3, causal=True)
        b.graph.outputs = [y]
    program = compile_graph(b.graph, GPU, verify=True)
    assert len(program.steps) == 1
    arrays = arrays_of(b.graph, np.random.default_rng(0))
    close(run(program, arrays, SMALL), exact(b.graph, arrays), 1e-5)


def test_heads_that_share_keys_stand_in_one_tile_where_queries_are_few() -> None:
    graph = attention_graph((2, 8, 1, 16), (2, 2, 50, 16), (2, 2, 50, 16))
    (kernel, _), *_ = made(graph)
    chosen = choose_gpu(kernel, GPU)
    assert len(chosen.rows) == 1 and to_triton(kernel, chosen).grid({}) == (4, 1, 1)
    arrays = arrays_of(graph, np.random.default_rng(0))
    close(run(compile_graph(graph, GPU), arrays, None), exact(graph, arrays), 1e-5)


def test_axes_may_be_merged_before() -> None:
    graph = attention_graph((2, 3, 20, 8), (2, 3, 30, 8), (2, 3, 30, 8), causal=True)
    r = np.random.default_rng(0)
    for kernel, _ in made(graph):
        arrays = {
            b.name: r.standard_normal([int(evaluate(n, {})) for n in b.shape]).astype(b.dtype.numpy)
            for b in kernel.buffers.values()
        }
        merged = merge_axes(kernel)
        assert len(merged.axes) < len(kernel.axes) and chain(merged) is not None
        got = {n: a.copy() for n, a in arrays.items()}
        shaped = {n: a.reshape([int(evaluate(x, {})) for x in merged.buffers[n].shape]) for n, a in got.items()}
        run_interpreted(to_triton(merged, SMALL), shaped)
        run_interpreted(to_triton(kernel, SMALL), arrays)
        for n in kernel.outputs:
            np.testing.assert_array_equal(arrays[n], got[n])


# ---- what is made otherwise, and why


@pytest.mark.parametrize(
    ("sizes", "d", "reason"),
    [
        (((2, 5, 300), (2, 6, 300), (2, 6, 4)), dt.float32, "wider than 256"),
        (((2, 5, 8), (2, 6, 8), (2, 6, 4)), dt.float64, "float64"),
        (((2, 1, 8), (2, 6, 8), (2, 6, 4)), dt.float32, "one query"),
        (((2, 5, 8), (2, 1, 8), (2, 1, 4)), dt.float32, "one key"),
    ],
)
def test_what_has_no_such_kernels_is_made_of_smaller_primitives_with_a_reason(sizes: tuple, d: dt.dtype, reason: str) -> None:
    b = Builder()
    q, k, v = (b.input(Spec(x, d), n) for x, n in zip(sizes, "qkv"))
    with b:
        b.graph.outputs = [*op("attention")(q, k, v, scale=0.5, causal=False)]
    program = compile_graph(b.graph, GPU, verify=True)
    assert not any(isinstance(s, CallStep) for s in program.steps)
    assert any(x.verdict == "expanded" and reason in x.reason for x in program.decisions)
    arrays = arrays_of(b.graph, np.random.default_rng(0))
    close(run_program(program, arrays), exact(b.graph, arrays), 1e-5)


def test_kernels_that_are_no_chain_are_refused() -> None:
    graph = attention_graph((2, 20, 8), (2, 30, 8), (2, 30, 8))
    (kernel, _), *_ = made(graph)
    with pytest.raises(Refused, match="rows"):
        to_triton(kernel, replace(SMALL, rows=("nothing",)))
    plain = Kernel(
        kernel.name, kernel.buffers, kernel.axes, {}, [s for s in kernel.statements if not isinstance(s, Contract)][:1]
    )
    with pytest.raises(Refused, match="chain"):
        to_triton(plain, SMALL)
    verify(kernel)


# ---- the code


def large(d: dt.dtype = dt.float16, width: int = 64, **how: Any) -> list[Kernel]:
    shape = (4, 16, 2048, width)
    return [k for k, _ in made(attention_graph(shape, shape, shape, d, causal=True, **how))]


@pytest.mark.parametrize(
    ("arch", "which", "width", "words"),
    [
        ("sm_90", 0, 128, ("wgmma.mma_async", "cp.async")),
        ("sm_90", 2, 64, ("wgmma.mma_async", "cp.async")),
        ("sm_80", 1, 64, ("mma.sync", "cp.async")),
        ("sm_100", 0, 64, ("tcgen05.mma", "cp.async")),
        ("gfx942", 0, 64, ("v_mfma",)),
    ],
)
def test_it_multiplies_on_tensor_cores_and_spills_nothing(arch: str, which: int, width: int, words: tuple[str, ...]) -> None:
    kernel = large(width=width)[which]
    binary = compile_triton(to_triton(kernel, choose_gpu(kernel, gpu(arch))), arch)
    assert all(w in binary.asm for w in words), [w for w in words if w not in binary.asm]
    assert binary.spills == 0 and binary.shared <= gpu(arch).cache


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "sm_100", "gfx942"])
def test_candidates_fit_their_target(arch: str) -> None:
    target = gpu(arch)
    for d in (dt.float16, dt.float32):
        for width in (16, 64, 80, 128, 256):
            for kernel in large(d, width):
                found = tiled_candidates(kernel, target)
                assert found[0] == choose_gpu(kernel, target) and len(set(found)) == len(found)
                for s in found:
                    walked = 2 * s.n_block * max(16, 1 << (width - 1).bit_length()) * d.itemsize
                    assert s.stages == 1 or walked * (1 if arch == "gfx942" else s.stages) <= target.cache


def test_source_is_a_function_of_the_graph_alone() -> None:
    one, two = ([to_triton(k, SMALL).text for k in large()] for _ in range(2))
    assert one == two


def test_float32_is_multiplied_on_tensor_cores_where_that_is_asked_for() -> None:
    kernel = large(dt.float32)[0]
    chosen = choose_gpu(kernel, replace(gpu("sm_80"), matmul_precision="high"))
    assert choose_gpu(kernel, gpu("sm_80")).precision == "ieee" and chosen.precision == "tf32"
    assert "ieee" not in to_triton(kernel, chosen).text
    assert choose_gpu(kernel, replace(gpu("gfx90a"), matmul_precision="high")).precision == "ieee", "it has none"


def test_the_precision_of_float32_is_a_setting() -> None:
    before = flame.get_float32_matmul_precision()
    assert before == "highest" and not flame.backends.cuda.matmul.allow_tf32
    try:
        flame.set_float32_matmul_precision("medium")
        assert flame.backends.cuda.matmul.allow_tf32 and flame.get_float32_matmul_precision() == "medium"
        flame.backends.cuda.matmul.allow_tf32 = False
        assert flame.get_float32_matmul_precision() == "highest"
        with pytest.raises(ValueError, match="expected one of highest, high, medium"):
            flame.set_float32_matmul_precision("low")
    finally:
        flame.set_float32_matmul_precision(before)
