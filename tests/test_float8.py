"""8-bit floats: casts bit by bit, arithmetic by way of float32, and products in tensor cores; against `ml_dtypes`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import flame
from flame import dtypes
from flame.compiler.kernel import Kernel
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.ops import float8
from flame.ops.machine import NumpyMachine
from flame.runtime.triton_tools import compile_triton, run_interpreted

E4, E5 = dtypes.FLOAT8
EVERY = np.arange(256, dtype=np.uint8)
formats = pytest.mark.parametrize("d", dtypes.FLOAT8, ids=lambda d: d.name)


def numbers(d: Any) -> np.ndarray:
    """What may be rounded wrongly: every number of the format, what lies halfway between two, the neighbours, the ends."""
    values = np.sort(EVERY.view(d.numpy).astype(np.float32))
    values = values[np.isfinite(values)]
    halves = (values[1:] + values[:-1]) / 2
    around = [np.nextafter(halves, np.float32(x)) for x in (1e9, -1e9)]
    r = np.random.default_rng(3)
    bits = r.integers(0, 1 << 32, 20000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = (r.standard_normal(5000) * np.exp2(r.integers(-20, 18, 5000))).astype(np.float32)
    ends = np.array([np.inf, -np.inf, np.nan, -0.0, 464, 465, 65536, 61439, 61440], np.float32)
    return np.concatenate([values, halves, *around, bits, near, ends])


def same(a: np.ndarray, b: np.ndarray, d: Any) -> None:
    """Equal bits, but for NaN's."""
    with np.errstate(all="ignore"):
        x, y = (v.view(d.numpy).astype(np.float32) for v in (a, b))
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(np.signbit(x[x == x]), np.signbit(y[y == y]))


@formats
def test_casts_are_right_for_every_number(d: Any) -> None:
    m, x = NumpyMachine(), numbers(d)
    values = EVERY.view(d.numpy).astype(np.float32)
    np.testing.assert_array_equal(float8.widened(m, EVERY, d), values)
    np.testing.assert_array_equal(float8.halved(m, EVERY, d).astype(np.float32), values)
    with np.errstate(all="ignore"):
        want = x.astype(d.numpy)
    same(float8.narrowed(m, x, d), want, d)


def kernel_of(f: Any, *args: Any, arch: str = "sm_90") -> Kernel:
    """The one kernel that a GPU would run."""
    compiled = flame.compile(f)
    for _ in range(2):
        compiled(*args)
    (graph,) = compiled.graphs
    (step,) = compile_graph(graph, gpu(arch), verify=True).steps
    assert isinstance(step, KernelStep)
    return step.kernel


def interpreted(kernel: Kernel, schedule: Any, inputs: list[np.ndarray], out: np.ndarray) -> np.ndarray:
    given = iter(inputs)
    run_interpreted(
        to_triton(kernel, schedule),
        {n: out if b.role == "out" else np.ascontiguousarray(next(given)) for n, b in kernel.buffers.items()},
    )
    return out


@formats
def test_kernels_cast_and_compute_as_eager_does(d: Any) -> None:
    x = flame.tensor(numbers(d)[:2000])

    def f(x: Any) -> Any:
        return (x.to(d).float() * 1.5 + 0.25).to(d)

    want, compiled = f(x).numpy(), flame.compile(f)
    for _ in range(2):
        same(compiled(x).numpy(), want, d)
    kernel = kernel_of(f, x)
    got = interpreted(kernel, choose_gpu(kernel, gpu("sm_90")), [x.clone().numpy()], np.zeros(x.shape, d.numpy))
    same(got, want, d)


@formats
def test_arithmetic_goes_through_float32(d: Any) -> None:
    r = np.random.default_rng(1)
    a, b = (r.standard_normal((5, 7)).astype(np.float32).astype(d.numpy) for _ in range(2))
    x, y = flame.from_numpy(a), flame.from_numpy(b)
    wide = [v.astype(np.float32) for v in (a, b)]
    for got, want in ((x + y, wide[0] + wide[1]), (x * 2, wide[0] * 2), (x.exp(), np.exp(wide[0])), (x.sum(1), wide[0].sum(1))):
        assert got.dtype is d
        same(got.numpy(), want.astype(d.numpy), d)
    assert x.tolist() == wide[0].tolist() and x[1, 2].item() == float(wide[0][1, 2])
    assert flame.cat([x, y]).dtype is d and flame.finfo(d).bits == 8 and d.itemsize == 1


def test_no_other_dtype_is_promoted_with_them() -> None:
    x = flame.ones(3).to(E4)
    for other in (E5, flame.float32, flame.float16, flame.int32):
        with pytest.raises(RuntimeError, match="Promotion for Float8 Types is not supported"):
            x + flame.ones(3).to(other)


def test_they_are_kept_in_files(tmp_path: Any) -> None:
    state = {d.name: flame.randn(4, 3).to(d) for d in dtypes.FLOAT8}
    path = str(tmp_path / "state.safetensors")
    flame.save(state, path)
    got = flame.load(path)
    for d in dtypes.FLOAT8:
        assert got[d.name].dtype is d
        same(got[d.name].numpy(), state[d.name].numpy(), d)


def factors(m: int, n: int, k: int, kinds: tuple[Any, Any] = (E4, E4)) -> list[Any]:
    flame.manual_seed(7)
    a, b = flame.randn(m, k).to(kinds[0]), flame.randn(k, n).to(kinds[1])
    return [a, b, flame.rand(m, 1), flame.rand(1, n), flame.randn(n).bfloat16()]


def product(a: Any, b: Any, scale_a: Any, scale_b: Any, bias: Any) -> Any:
    return flame._scaled_mm(a, b, scale_a, scale_b, bias, out_dtype=flame.bfloat16)


@pytest.mark.parametrize("kinds", [(E4, E4), (E4, E5), (E5, E5)], ids=str)
def test_scaled_products_are_one_kernel_and_exact(kinds: Any) -> None:
    args = factors(37, 21, 70, kinds)
    a, b, sa, sb, bias = (t.clone().numpy().astype(np.float64) for t in args)
    want = (a @ b) * sa * sb + bias
    compiled = flame.compile(product)
    for got in (product(*args), compiled(*args), compiled(*args)):
        np.testing.assert_allclose(got.float().numpy(), want, rtol=8e-3, atol=1e-2)
    for arch in ("sm_90", "sm_80"):
        kernel = kernel_of(product, *args, arch=arch)
        schedule = choose_gpu(kernel, gpu(arch))
        assert schedule.form == "dot" and schedule.float8 == (arch == "sm_90")
        out = np.zeros((37, 21), dtypes.bfloat16.numpy)
        got = interpreted(kernel, schedule, [t.clone().numpy() for t in args], out)
        np.testing.assert_allclose(got.astype(np.float32), want, rtol=8e-3, atol=1e-2)


def test_tensor_cores_multiply_them_where_they_can() -> None:
    kernel = kernel_of(product, *factors(128, 64, 128))
    tile = replace(choose_gpu(kernel, gpu("sm_90")), m_block=64, n_block=16, warps=4)
    binary = compile_triton(to_triton(kernel, tile), "sm_90")
    assert "m64n16k32.f32.e4m3.e4m3" in binary.asm and binary.spills == 0


def test_what_does_not_fit_is_refused() -> None:
    a, b, sa, sb, _ = factors(4, 5, 6)
    with pytest.raises(RuntimeError, match="8-bit floats"):
        flame._scaled_mm(a.float(), b, sa, sb)
    with pytest.raises(RuntimeError, match=r"expected \[M, K\] and \[K, N\]"):
        flame._scaled_mm(a, b.t(), sa, sb)
    with pytest.raises(RuntimeError, match="scale_b"):
        flame._scaled_mm(a, b, sa, sb.t())
    with pytest.raises(RuntimeError, match="bias of 5"):
        flame._scaled_mm(a, b, sa, sb, flame.ones(4))
    assert flame._scaled_mm(a, b, sa[0, 0], sb).dtype is E4
