"""Row kernels in Triton: sums that ride on a maximum, the schedules that are offered for tuning."""

from __future__ import annotations

from dataclasses import replace

import kernels_for_tests as made
import numpy as np
import pytest
from test_triton import CASES, GPU

from flame import dtypes
from flame.compiler.index_math import evaluate, ex, var
from flame.compiler.interpret import interpret
from flame.compiler.kernel import Buffer, Kernel, Load, Op, Reduce, Store, verify
from flame.compiler.schedule import GpuSchedule, choose_gpu
from flame.compiler.schedule_candidates import LIMIT, candidates
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.runtime.triton_tools import compile_triton, run_interpreted


def softmax_parts(d: dtypes.dtype, rows: int, n: int, columns: bool = False) -> Kernel:
    """The maximum of each row (or column) and the sum of exponentials less it."""
    i, j = var("i"), var("j")
    at = (j, i) if columns else (i, j)
    acc = d.accumulator
    body = [
        Load("x", "x", at, (), 0, d),
        *([Op("w", "cast", ("x",), acc)] if acc is not d else []),
        Reduce("m", "max", ("w" if acc is not d else "x",), ("j",), acc),
        Op("d", "sub", ("w" if acc is not d else "x", "m"), acc),
        Op("e", "exp", ("d",), acc),
        Reduce("s", "sum", ("e",), ("j",), acc),
        Store("o", (i,), "m"),
        Store("p", (i,), "s"),
    ]
    shape = (ex(n), ex(rows)) if columns else (ex(rows), ex(n))
    buffers = {"x": Buffer("x", d, shape), "o": Buffer("o", acc, (ex(rows),), "out"), "p": Buffer("p", acc, (ex(rows),), "out")}
    kernel = Kernel("parts", buffers, {"i": ex(rows), "j": ex(n)}, {}, body)
    verify(kernel)
    return kernel


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("d", [dtypes.float32, dtypes.float64, dtypes.bfloat16], ids=lambda d: d.name)
def test_a_sum_of_exponentials_rides_on_the_maximum(d: dtypes.dtype, columns: bool) -> None:
    """Also where the maximum comes late, is infinite, or is no number, and where all is minus infinity."""
    inf = np.inf
    kernel = softmax_parts(d, 6, 21, columns)
    x = np.random.default_rng(0).standard_normal((6, 21)) * 3
    x[0, :9] = -inf
    x[1] = -inf
    x[2, 20] = inf
    x[3, 12] = np.nan
    x[4] = np.linspace(-90, 90, 21)
    x = np.ascontiguousarray(x.T if columns else x).astype(d.numpy)
    acc = d.accumulator.numpy
    want = {"x": x, "o": np.zeros(6, acc), "p": np.zeros(6, acc)}
    interpret(kernel, want, {})
    for schedule in (GpuSchedule(x_block=1, r_block=4), GpuSchedule(x_block=4, r_block=8), GpuSchedule(x_block=2, r_block=16)):
        source = to_triton(kernel, schedule)
        assert source.text.count("for ") == 1 and "with it" in source.text
        got = {"x": x.copy(), "o": np.zeros(6, acc), "p": np.zeros(6, acc)}
        run_interpreted(source, got)
        for b in "op":
            np.testing.assert_allclose(got[b], want[b], rtol=1e-12 if d is dtypes.float64 else 1e-5)


def test_a_sum_of_something_else_is_swept_by_itself() -> None:
    kernel = softmax_parts(dtypes.float32, 3, 21)
    other = [replace(s, operands=("m", "x")) if getattr(s, "name", "") == "d" else s for s in kernel.statements]
    changed = Kernel("parts", kernel.buffers, kernel.axes, {}, other)
    assert to_triton(changed, GpuSchedule(x_block=1, r_block=4)).text.count("for ") == 2
    assert "with it" not in to_triton(kernel, GpuSchedule(x_block=1, r_block=32)).text  # a row that is one tile is read once


@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize("size", [(1, 1), (5, 67), (64, 257)])
def test_an_update_by_a_sum_happens_where_state_and_parameter_lie(size: tuple[int, int], axis: str) -> None:
    kernel, arrays, _ = case = made.summed_update(*size, axis)
    want = made.expected(case)
    run_interpreted(to_triton(kernel, choose_gpu(kernel, GPU)), arrays)
    for b in "gvp":
        np.testing.assert_allclose(arrays[b], want[b], rtol=1e-4, atol=1e-4, err_msg=b)


def long_rows(name: str, rows: int, n: int) -> Kernel:
    """A kernel of the cases, on rows of another length."""
    kernel = CASES[name][0]
    extents = dict(zip(kernel.axes, (ex(rows), ex(n)), strict=True))
    shape = {b.name: tuple(ex(rows) if d == kernel.axes["i"] else ex(n) for d in b.shape) for b in kernel.buffers.values()}
    buffers = {b.name: replace(b, shape=shape[b.name]) for b in kernel.buffers.values()}
    return Kernel(kernel.name, buffers, extents, {}, kernel.statements)


@pytest.mark.parametrize(("n", "r"), [(4096, 4096), (32768, 32768), (131072, 2048)])
def test_rows_stay_in_registers_while_they_fit(n: int, r: int) -> None:
    kernel = long_rows("softmax_bfloat16_77", 8192, n)
    schedule = choose_gpu(kernel, GPU)
    assert schedule.r_block == r and schedule.x_block == 1
    binary = compile_triton(to_triton(kernel, schedule), "sm_90")
    assert binary.spills == 0 and binary.registers * binary.threads <= GPU.registers


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_candidates_fit_the_target(arch: str) -> None:
    target = gpu(arch)
    for name, case in list(CASES.items())[::5]:
        found = candidates(case[0], target, case[2])
        assert found[0] == choose_gpu(case[0], target, case[2]) and 1 <= len(found) <= LIMIT == 24
        assert len(set(found)) == len(found), name
        for s in found[1:]:
            assert s.warps * target.lanes <= 1024


@pytest.mark.parametrize(
    "name", ["softmax_float16_77", "transpose_add_float16", "column_sum_bfloat16", "matmul_nn_bfloat16_33x45x29"]
)
def test_candidates_give_the_same(name: str) -> None:
    kernel, buffers, symbols = CASES[name]
    want = made.run(CASES[name])
    for s in candidates(kernel, GPU, symbols)[1:8:3]:
        got = {n: a.copy() for n, a in buffers.items()}
        run_interpreted(to_triton(kernel, s), got, symbols)
        for b in kernel.outputs:
            size = float(np.abs(want[b].astype(np.float64)).max())
            np.testing.assert_allclose(got[b].astype(np.float64), want[b].astype(np.float64), rtol=2e-2, atol=2e-2 * size)


def test_there_is_something_to_choose_from() -> None:
    matmul = CASES["matmul_nn_bfloat16_33x45x29"][0]
    extents = {"i": 4096, "j": 4096, "k": 1024}
    shapes = {"x": ("i", "k"), "y": ("k", "j"), "o": ("i", "j")}
    buffers = {n: replace(b, shape=tuple(ex(extents[a]) for a in shapes[n])) for n, b in matmul.buffers.items()}
    large = Kernel("matmul", buffers, {a: ex(n) for a, n in extents.items()}, {}, matmul.statements)
    assert len(candidates(large, GPU)) >= 6
    assert len(candidates(long_rows("softmax_bfloat16_77", 8192, 4096), GPU)) >= 6
    assert all(evaluate(e, {}) for e in large.axes.values())
