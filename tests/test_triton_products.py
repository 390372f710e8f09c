"""Matrix products in Triton: tiles that fit, the copy engine's descriptors, parts of long sums; against float64."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import flame.ops  # noqa: F401
from flame import dtypes as dt
from flame.compiler.graph import Builder
from flame.compiler.index_math import evaluate
from flame.compiler.kernel import Kernel
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep
from flame.compiler.schedule import choose_gpu, tiled_candidates
from flame.compiler.schedule_tiles import Product, product_fits, product_tiles
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.errors import Refused
from flame.primitive import Spec, registered
from flame.runtime.triton_tools import compile_triton, run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

GPU = gpu("sm_90")
TOLERANCE = {dt.float16: 1e-2, dt.bfloat16: 5e-2, dt.float32: 1e-5, dt.float64: 1e-12, dt.int8: 0.0}


def product(
    m: int,
    n: int,
    k: int,
    d: Any,
    turned: tuple[bool, bool] = (False, False),
    batch: tuple = (),
    bias: bool = False,
) -> Builder:
    """x @ w, either stored turned round; with a bias and a sigmoid if asked for."""
    b, op, r = Builder(), registered, len(batch)
    swap = (*range(r), r + 1, r)
    with b:
        x = b.input(Spec((*batch, k, m) if turned[0] else (*batch, m, k), d), "x")
        w = b.input(Spec((*batch, n, k) if turned[1] else (*batch, k, n), d), "w")
        x, w = (op("permute")(v, dims=swap) if t else v for v, t in zip((x, w), turned))
        y = op("matmul")(x, w)
        if bias:
            y = op("sigmoid")(op("add")(y, b.input(Spec((n,), d), "bias")))
    b.graph.outputs = [y]
    return b


def kernel_of(b: Builder) -> Kernel:
    (step,) = compile_graph(b.graph, GPU, verify=True).steps
    assert isinstance(step, KernelStep)
    return step.kernel


def check(b: Builder, seed: int = 0, **changes: Any) -> None:
    """The program in Triton's interpreter against float64."""
    r = np.random.default_rng(seed)
    program = compile_graph(b.graph, GPU, verify=True)
    d = b.graph.inputs[0].dtype
    arrays = [
        r.integers(-9, 9, v.shape).astype(v.dtype.numpy) if d.kind == "i" else r.standard_normal(v.shape).astype(v.dtype.numpy)
        for v in b.graph.inputs
    ]
    slots: dict[int, np.ndarray] = dict(zip(program.inputs, arrays))
    for i, s in enumerate(program.slots):
        slots.setdefault(i, np.zeros(s.spec.shape, s.spec.dtype.numpy))
    for step in program.steps:
        assert isinstance(step, KernelStep)
        chosen = choose_gpu(step.kernel, GPU)
        source = to_triton(step.kernel, replace(chosen, **changes) if chosen.form == "dot" else chosen)
        run_interpreted(source, {n: slots[s] for n, s in step.buffers.items()})
    values = dict(zip(b.graph.inputs, (a.astype(np.float64 if d.kind == "f" else np.int64) for a in arrays)))
    for n in b.graph.nodes:
        values[n.output] = n.primitive.eager(*(values[x] for x in n.values), **n.params)
    want = values[b.graph.outputs[0]].astype(b.graph.outputs[0].dtype.numpy).astype(np.float64)
    got = slots[program.outputs[0]].astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[d] * max(1.0, float(np.abs(want).max(initial=0))))


@pytest.mark.parametrize("seed", range(16))
def test_random_products_under_random_tiles(seed: int) -> None:
    r = random.Random(seed)
    d = r.choice((dt.float16, dt.bfloat16, dt.float32, dt.float64))
    turned = (r.random() < 0.5, r.random() < 0.5)
    batch = r.choice(((), (), (2,), (2, 1)))
    b = product(r.randint(2, 50), r.randint(2, 50), r.randint(4, 70), d, turned, batch, bias=r.random() < 0.5)
    check(
        b, seed, m_block=r.choice((16, 32)), n_block=r.choice((16, 32)), k_block=r.choice((16, 32)), group=r.choice((1, 2, 8))
    )


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_tiles_fetched_by_the_copy_engine_are_the_same(turned: tuple[bool, bool]) -> None:
    for batch in ((), (3,)):
        check(product(40, 24, 48, dt.float16, turned, batch, bias=True), descriptors=True, m_block=16, n_block=16, k_block=32)


@pytest.mark.parametrize("seed", range(6))
def test_programs_that_make_a_tile_after_the_other_are_the_same(seed: int) -> None:
    r = random.Random(seed)
    sizes = (r.randint(33, 70), r.randint(17, 60), r.randint(4, 40))
    engine = seed % 3 == 2
    if engine:
        sizes = (40, 48, 32)
    turned = (r.random() < 0.5, r.random() < 0.5)
    b = product(*sizes, dt.float16 if engine else dt.float32, turned, r.choice(((), (3,))), bias=True)
    check(b, seed, programs=r.choice((1, 2, 5, 100)), descriptors=engine, m_block=16, n_block=16, k_block=32, group=2)


def test_what_does_not_lie_as_the_copy_engine_takes_it_is_refused() -> None:
    for sizes in ((40, 24, 45), (40, 21, 48)):  # rows that begin at no multiple of 16 bytes
        kernel = kernel_of(product(*sizes, dt.float16))
        with pytest.raises(Refused, match="copy engine"):
            to_triton(kernel, replace(choose_gpu(kernel, GPU), descriptors=True))
        assert not any(s.descriptors for s in tiled_candidates(kernel, GPU))


def test_a_long_sum_of_few_tiles_is_taken_in_parts() -> None:
    b = product(24, 20, 20000, dt.float32)
    program = compile_graph(b.graph, GPU, verify=True)
    first, second = program.kernels
    assert choose_gpu(first, GPU).form == "dot" and second.contraction is None
    parts = int(evaluate(first.buffers["part"].shape[0], {}))
    assert parts > 1 and 0 < len(program.steps) == 2
    r = np.random.default_rng(0)
    x, w = r.standard_normal((24, 20000)).astype(np.float32), r.standard_normal((20000, 20)).astype(np.float32)
    held = {"part": np.zeros((parts, 24, 20), np.float32), "out0": np.zeros((24, 20), np.float32), "in0": x, "in1": w}
    for kernel in (first, second):
        chosen = choose_gpu(kernel, GPU)
        if chosen.form == "dot":
            chosen = replace(chosen, m_block=32, n_block=32, k_block=512)
        run_interpreted(to_triton(kernel, chosen), {n: held[n] for n in kernel.buffers})
    np.testing.assert_allclose(held["out0"], x.astype(np.float64) @ w, atol=1e-3)


def test_bytes_are_multiplied_exactly() -> None:
    check(product(40, 24, 64, dt.int8), m_block=16, n_block=16, k_block=32)


def large(d: Any = dt.float16, **how: Any) -> Kernel:
    return kernel_of(product(4096, 4096, 4096, d, **how))


@pytest.mark.parametrize(
    ("arch", "changes", "words"),
    [
        ("sm_90", {}, ("wgmma.mma_async", "cp.async.cg")),
        ("sm_80", {}, ("mma.sync", "cp.async.cg")),
        ("sm_90", {"programs": 132, "descriptors": True, "specialized": False}, ("wgmma.mma_async", "cp.async.bulk.tensor")),
        ("sm_80", {"programs": 108, "descriptors": False}, ("mma.sync", "cp.async.cg")),
        ("sm_90", {"descriptors": True}, ("wgmma.mma_async", "cp.async.bulk.tensor")),
        ("sm_100", {"descriptors": True, "specialized": True}, ("tcgen05.mma", "cp.async.bulk.tensor")),
        ("gfx942", {}, ("v_mfma",)),
    ],
)
def test_large_products_use_what_the_target_has(arch: str, changes: dict, words: tuple[str, ...]) -> None:
    kernel = large()
    if changes:
        found = tiled_candidates(kernel, gpu(arch))
        schedule = next(s for s in found if all(getattr(s, n) == x for n, x in changes.items()))
    else:
        schedule = choose_gpu(kernel, gpu(arch))
    source = to_triton(kernel, schedule)
    binary = compile_triton(source, arch)
    assert all(w in binary.asm for w in words), [w for w in words if w not in binary.asm]
    assert binary.spills == 0 and binary.shared <= gpu(arch).cache
    assert (binary.scratch > 0) == source.descriptors == bool(changes.get("descriptors"))
    if schedule.programs:
        assert source.grid() == (schedule.programs, 1, 1) == (gpu(arch).units, 1, 1)
    if changes.get("specialized"):
        assert binary.threads > schedule.warps * 32, "the warps that copy"


def test_an_epilogue_leaves_room_in_registers() -> None:
    kernel = large(dt.bfloat16, bias=True)
    chosen = choose_gpu(kernel, GPU)
    assert compile_triton(to_triton(kernel, chosen), "sm_90").spills == 0


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "sm_100", "gfx942"])
def test_tiles_fit_their_target(arch: str) -> None:
    target = gpu(arch)
    for width in (1, 2, 4, 8):
        for m, n, k, batch in ((1, 1, 1, 1), (33, 45, 29, 7), (8, 4096, 4096, 1), (4096, 4096, 64, 1), (128, 128, 1 << 20, 1)):
            p = Product(m, n, batch, k, width, 8 if width == 8 else 4)
            for tf32 in (False, True):
                tiles = product_tiles(p, target, tf32)
                assert tiles and len(set(tiles)) == len(tiles)
                for t in tiles:
                    assert product_fits(t, p, target) and t.m & (t.m - 1) == t.n & (t.n - 1) == t.k & (t.k - 1) == 0
