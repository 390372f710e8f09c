"""Routines for GPUs: each computes what its primitive's eager function gives, and compiles for GPUs that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

import flame  # noqa: F401
from flame import dtypes
from flame.compiler import triton_scan, triton_sort
from flame.compiler.gpu_routine import Array, GpuRoutine
from flame.compiler.gpu_routines import gpu_routine, has_routine, reason_why_not
from flame.compiler.target import Target, gpu
from flame.compiler.to_triton import TritonSource
from flame.dtypes import from_numpy_dtype
from flame.errors import Refused
from flame.primitive import REGISTRY, Primitive, Spec
from flame.runtime.triton_tools import compile_triton, run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

GPU = gpu("sm_90")


def specs(operands: tuple) -> list[Any]:
    return [Spec(a.shape, from_numpy_dtype(a.dtype)) if isinstance(a, np.ndarray) else a for a in operands]


def run(routine: GpuRoutine, operands: tuple, results: tuple[Spec, ...]) -> list[np.ndarray]:
    """The routine in Triton's interpreter; memory holds all ones before it is written, which is NaN for floats."""

    def fresh(s: Spec) -> np.ndarray:
        return np.full(s.nbytes, 0xFF if s.dtype is not dtypes.bool_ else 1, np.uint8).view(s.dtype.numpy).reshape(s.shape)

    arrays = {Array("operand", i): np.array(a, order="C") for i, a in enumerate(operands) if isinstance(a, np.ndarray)}
    before = {k: a.copy() for k, a in arrays.items()}
    arrays |= {Array("scratch", i): fresh(s) for i, s in enumerate(routine.scratch)}
    arrays |= {Array("result", i): fresh(s) for i, s in enumerate(results)}
    for launch in routine.launches:
        run_interpreted(launch.source, {b: arrays[a] for b, a in launch.arrays.items()}, launch.symbols)
    for k, a in before.items():
        np.testing.assert_array_equal(arrays[k], a, err_msg=f"{k} was written")
    return [arrays[Array("result", i)] for i in range(len(results))]


def check(p: Primitive, operands: tuple, params: dict, target: Target = GPU, deterministic: bool = False) -> GpuRoutine:
    routine = gpu_routine(p, specs(operands), params, target, deterministic)
    with np.errstate(all="ignore"):
        want = p.eager(*operands, **params)
    want = tuple(map(np.asarray, want if isinstance(want, tuple) else (want,)))
    got = run(routine, operands, tuple(Spec(w.shape, from_numpy_dtype(w.dtype)) for w in want))
    for a, b in zip(got, want, strict=True):
        near(a, b, f"{p.name} {specs(operands)} {params}\n{routine}")
    return routine


def near(a: np.ndarray, b: np.ndarray, about: str) -> None:
    if b.dtype.kind in "iub":
        np.testing.assert_array_equal(a, b, err_msg=about)
        return
    tolerance = 1e-12 if b.dtype == np.float64 else 2e-5 if b.dtype == np.float32 else 2e-2
    size = max(1.0, float(np.abs(b.astype(np.float64), where=np.isfinite(b), out=np.zeros(b.shape)).max(initial=0)))
    np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), tolerance, tolerance * size, err_msg=about)


WITH_ROUTINE = sorted(n for n, p in REGISTRY.items() if has_routine(p))


@cache
def samples(name: str) -> list[tuple[tuple, dict]]:
    p = REGISTRY[name]
    assert p.samples is not None
    return [(o, q) for o, q in p.samples() if not any(isinstance(a, np.ndarray) and a.dtype.kind == "c" for a in o)]


def some(name: str, step: int) -> list[tuple[tuple, dict]]:
    """Every so many of the samples: all dtypes, and all shapes between them."""
    return samples(name)[::step]


@pytest.mark.parametrize("name", WITH_ROUTINE)
def test_routines_compute_what_eager_does(name: str) -> None:
    for operands, params in some(name, 5):
        check(REGISTRY[name], operands, params)


WRITES = ["scatter", "scatter_add", "scatter_reduce", "index_add", "index_put", "as_strided_scatter"]


@pytest.mark.parametrize("name", WRITES)
def test_scattered_writes_may_be_asked_to_keep_an_order(name: str) -> None:
    for operands, params in some(name, 11):
        routine = check(REGISTRY[name], operands, params, deterministic=True)
        assert not any("atomic_add" in launch.source.text for launch in routine.launches)


@pytest.mark.parametrize("deterministic", [False, True])
def test_positions_that_repeat_are_added_up(deterministic: bool) -> None:
    r = np.random.default_rng(3)
    for d, columns in ((np.float32, 5), (np.float64, 260), (np.int64, 1), (np.float16, 3)):
        n = 20 if columns < 100 else 6
        x, src = ((r.standard_normal((k, columns)) * 3).astype(d) for k in (4, n))
        check(REGISTRY["index_add"], (x, r.integers(-4, 4, n), src), {"dim": 0}, GPU, deterministic)
    numbers = r.integers(0, 4, (2, 11))
    x, src = r.random((2, 9)).astype(np.float32), r.random((2, 11)).astype(np.float32)
    check(REGISTRY["scatter_add"], (x, numbers, src), {"dim": 1}, GPU, deterministic)
    check(REGISTRY["scatter_reduce"], (x, numbers, src), {"dim": 1, "reduce": "prod"}, GPU, deterministic)


def test_extremes_keep_nan() -> None:
    x, src = np.zeros((1, 4), np.float32), np.array([[1, np.nan, -1, 2]], np.float32)
    for reduce in ("amax", "amin"):
        check(REGISTRY["scatter_reduce"], (x, np.array([[0, 1, 2, 1]]), src), {"dim": 1, "reduce": reduce})


@pytest.mark.parametrize(("n", "kind"), [(17, np.float32), (100, np.float32), (33, np.int64), (33, np.bool_)])
def test_rows_longer_than_a_block_are_merged(monkeypatch: pytest.MonkeyPatch, n: int, kind: type) -> None:
    monkeypatch.setattr(triton_sort, "BLOCK", 16)
    r = np.random.default_rng(n)
    x = r.integers(0, 9, (2, n, 2)).astype(kind)
    if kind is np.float32:
        x[0, ::5] = np.nan
        x[1, ::4] = -0.0
    for name, descending in (("sort", False), ("argsort", n % 2 > 0), ("argsort", n % 2 == 0)):
        check(REGISTRY[name], (x,), {"dim": 1, "descending": descending})


@pytest.mark.parametrize("n", [129, 192])
@pytest.mark.parametrize("name", ["cumsum", "cumprod", "logcumsumexp", "cummax_index"])
def test_few_long_rows_are_scanned_in_chunks(monkeypatch: pytest.MonkeyPatch, name: str, n: int) -> None:
    monkeypatch.setattr(triton_scan, "CHUNK", 64)
    x = np.random.default_rng(n).standard_normal((2, n)).astype(np.float32)
    for a, dim in ((x, 1), (np.ascontiguousarray(x.T), 0)):
        assert len(check(REGISTRY[name], (a,), {"dim": dim}).launches) == 3


def test_rows_of_many_tiles_carry_on() -> None:
    x = np.random.default_rng(1).standard_normal((70, 3)).astype(np.float32)
    for name in ("cumsum", "cummin_index"):
        assert len(check(REGISTRY[name], (x,), {"dim": 0}).launches) == 1


def test_what_has_no_routine_says_why() -> None:
    with pytest.raises(Refused, match=r"cholesky.*one after the other"):
        gpu_routine(REGISTRY["cholesky"], [Spec((3, 3), dtypes.float32)], {"check": True}, GPU)
    silent = [p.name for p in REGISTRY.values() if not has_kernel(p) and not reason_why_not(p)]
    assert not silent


def has_kernel(p: Primitive) -> bool:
    return p.scalar is not None or p.lower is not None or has_routine(p)


def test_positions_beyond_32_bits_are_wide() -> None:
    n = 2**31
    source = gpu_routine(REGISTRY["cumsum"], [Spec((2, n), dtypes.uint8)], {"dim": 1}, GPU).launches[0].source
    assert source.wide and "tl.int64" in source.text and {p.type for p in source.parameters if p.symbol} == {"i64"}


#: names of kernels that are written by hand; the others are kernels of the IR
WRITTEN = {"argsort", "merge_to_positions", "searchsorted", "combine_runs", "add_rows", "put_rows", "cumsum", "cummax_index"}


def sources() -> Iterator[TritonSource]:
    """One source for each entry, whatever its dtypes."""
    seen = set()
    for name in ("argsort", "searchsorted", "index_add", "scatter_reduce", "scatter", "cumsum", "cummax_index", "logcumsumexp"):
        for deterministic in (False, True):
            for operands, params in some(name, 7):
                for launch in gpu_routine(REGISTRY[name], specs(operands), params, GPU, deterministic).launches:
                    if launch.source.entry not in seen:
                        seen.add(launch.source.entry)
                        yield launch.source


def test_routines_compile_for_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sort, "BLOCK", 2)
    tried = set()
    for i, source in enumerate(sources()):
        if source.entry in WRITTEN:
            arch = ("sm_80", "sm_90", "sm_100", "gfx942")[i % 4]
            binary = compile_triton(source, arch)
            assert binary.spills == 0 and not binary.warnings, (source.entry, arch, binary.warnings)
        tried.add(source.entry)
    assert tried >= WRITTEN
