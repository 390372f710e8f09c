"""cuBLASLt as a candidate of the autotuner: which kernels it is asked for, what it is told, and that results are right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from fake_cublas import FakeCublasLt
from fake_cuda import FakeLibrary, gpu_for_tests

import flame
import flame.nn.functional as F
from flame.compiler.index_math import ex, var
from flame.compiler.kernel import Buffer, Contract, Kernel, Load, Store
from flame.compiler.library_product import product_of
from flame.compiler.program import KernelStep
from flame.dtypes import int8, int32
from flame.errors import MissingTargetError, Refused
from flame.runtime import cache, cublas, cuda, gpu_autotune
from flame.runtime.cublas import DECLARATIONS, NUMBERS, CublasLt, open_library

pytest.importorskip("triton", reason="Triton is installed on Linux only")


def nvidias(name: str) -> str:
    """NVIDIA's own declarations, from the package of bindings that holds them as text."""
    found = find_spec("nvmath")
    if found is None or not found.submodule_search_locations:
        pytest.skip("NVIDIA's bindings are not installed: pip install nvmath-python")
    return (Path(found.submodule_search_locations[0]) / "bindings" / name).read_text(encoding="utf-8")


def test_every_number_is_nvidias() -> None:
    text = nvidias("cycublasLt.pxd") + nvidias("cycublas.pxd")
    for name, number in NUMBERS.items():
        found = re.search(rf'"{name}" = (\d+)\n', text)
        assert name.startswith("CUDA_R_") or (found is not None and int(found[1]) == number), name


def test_every_type_of_data_is_nvidias() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="the bindings are not installed")
    for name, number in NUMBERS.items():
        if name.startswith("CUDA_R_"):
            assert int(getattr(runtime.cudaDataType, name)) == number, name


def test_every_declaration_is_nvidias() -> None:
    theirs = {n: a for n, a in re.findall(r"^cdef cublasStatus_t (\w+)\((.*?)\) except", nvidias("cycublasLt.pxd"), re.M)}
    for name, arguments in re.findall(r"^(\w+)\((.*)\)$", DECLARATIONS, re.M):
        assert theirs[name] == arguments, name


class Library:
    """A fake device with a fake library."""

    def __init__(self, fake: FakeLibrary):
        self.fake, self.lt = fake, FakeCublasLt(fake)

    def found(self) -> CublasLt:
        return CublasLt(self.lt)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    store = cache.DiskCache(tmp_path)
    monkeypatch.setattr(cache, "shared", lambda: store)
    monkeypatch.setattr(gpu_autotune, "_chosen", {})
    monkeypatch.setattr(gpu_autotune, "measured", {})
    monkeypatch.setattr(gpu_autotune, "ROUNDS", 1)
    monkeypatch.setattr(fake_cuda, "run_interpreted", lambda *_: None)  # kernels of flame's own are no matter here
    with gpu_for_tests() as fake:
        made = Library(fake)
        monkeypatch.setattr(fake, "products", made.found)
        fake.cost = lambda source: 5.0
        made.lt.best = 1
        yield made
    assert not made.lt.alive, f"left over: {made.lt.alive}"


def run(f: Callable, *inputs: Any) -> tuple[Any, list[str]]:
    """What a tuned function gives, and by what its kernels ran."""
    g = flame.compile(f, mode="max-autotune-no-cudagraphs", options={"never_slower": False})
    with flame.no_grad():
        for _ in range(2):
            y = g(*inputs)
    flame.cuda.synchronize()
    return y, [r for c in g.compiled_graphs() for r in c.executable.runs]


def tensor(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> Any:
    return flame.tensor(rng.integers(-3, 4, shape) / 4, dtype=getattr(flame, dtype), device="cuda")


FORMS: dict[str, tuple[Callable, tuple[tuple[int, ...], ...]]] = {
    "product": (lambda a, b: a @ b, ((24, 32), (32, 16))),
    "linear": (F.linear, ((24, 32), (16, 32))),
    "bias": (F.linear, ((24, 32), (16, 32), (16,))),
    "relu": (lambda x, w, b: F.relu(F.linear(x, w, b)), ((24, 32), (16, 32), (16,))),
    "gelu": (lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"), ((24, 32), (16, 32), (16,))),
    "rows of rows": (lambda x, w: x @ w, ((3, 8, 32), (32, 16))),
    "left across": (lambda a, b: a.T @ b, ((32, 24), (32, 16))),
    "both across": (lambda a, b: a.T @ b.T, ((32, 24), (16, 32))),
    "scaled": (lambda a, b: (a @ b) * 0.5, ((24, 32), (32, 16))),
    "added to": (lambda a, b, c: c * 2 - a @ b, ((24, 32), (32, 16), (24, 16))),
    "all of it": (lambda x, w, b, c: F.relu(F.linear(x, w, b) + c), ((24, 32), (16, 32), (16,), (24, 16))),
    "batch": (lambda a, b: a @ b, ((3, 24, 32), (3, 32, 16))),
    "batch of batches": (lambda a, b: a @ b.transpose(-1, -2), ((2, 3, 24, 32), (2, 3, 16, 32))),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_and_what_surrounds_them(name: str, dtype: str, library: Library, rng: np.random.Generator) -> None:
    f, shapes = FORMS[name]
    inputs = [tensor(rng, *s, dtype=dtype) for s in shapes]
    got, runs = run(f, *inputs)
    want = f(*(x.cpu().double() for x in inputs)).numpy()
    assert runs == ["cuBLASLt"]
    assert library.lt.products[-1][0] == 1 and got.dtype is inputs[0].dtype
    np.testing.assert_allclose(got.cpu().double().numpy(), want, rtol=1e-2 if dtype == "bfloat16" else 1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(dtype: str, library: Library, rng: np.random.Generator) -> None:
    a, b = tensor(rng, 24, 32, dtype=dtype), tensor(rng, 32, 16, dtype=dtype)
    got, runs = run(flame.matmul, a, b)
    want = a.cpu().double() @ b.cpu().double()
    assert runs == ["cuBLASLt"]
    np.testing.assert_allclose(got.cpu().double().numpy(), want.numpy(), rtol=1e-3)


@pytest.mark.parametrize("kinds", [("float8_e4m3fn", "float8_e4m3fn"), ("float8_e5m2", "float8_e4m3fn")])
@pytest.mark.parametrize("bias", [False, True])
def test_floats_of_8_bits_and_their_scales(
    kinds: tuple[str, str], bias: bool, library: Library, rng: np.random.Generator
) -> None:
    a, b = tensor(rng, 32, 64, dtype=kinds[0]), tensor(rng, 16, 64, dtype=kinds[1])
    x, y = flame.tensor(2.0, device="cuda"), flame.tensor(0.25, device="cuda")
    added = tensor(rng, 16, dtype="bfloat16")
    f = lambda a, b, x, y, c: flame._scaled_mm(a, b.T, x, y, bias=c if bias else None, out_dtype=flame.bfloat16)
    got, runs = run(f, a, b, x, y, added)
    assert runs == ["cuBLASLt"] and {17, 18} <= set(library.lt.products[-1][1])
    want = 0.5 * a.cpu().float().numpy() @ b.cpu().float().numpy().T
    want = want + added.cpu().float().numpy() if bias else want
    np.testing.assert_allclose(got.cpu().float().numpy(), want, rtol=1e-2, atol=1e-2)


def test_bytes_are_added_up_as_integers(library: Library, rng: np.random.Generator) -> None:
    i, j, k = map(var, "ijk")
    shape = lambda *n: tuple(map(ex, n))
    buffers = {
        "a": Buffer("a", int8, shape(24, 32)),
        "b": Buffer("b", int8, shape(16, 32)),
        "y": Buffer("y", int32, shape(24, 16), "out"),
    }
    statements: list[Any] = [
        Load("x", "a", (i, k), (), 0, int8),
        Load("w", "b", (j, k), (), 0, int8),
        Contract("s", ("x", "w"), ("k",), int32),
        Store("y", (i, j), "s"),
    ]
    kernel = Kernel("bytes", buffers, {"i": ex(24), "j": ex(16), "k": ex(32)}, {}, statements)
    gpu = cuda.gpu()
    a, b, y = (rng.integers(-9, 9, n).astype(d) for n, d in (((24, 32), np.int8), ((16, 32), np.int8), ((24, 16), np.int32)))
    held = {name: gpu.allocate(x.nbytes) for name, x in zip("aby", (a, b, y), strict=True)}
    for name, x in zip("ab", (a, b), strict=True):
        gpu.copy_in(held[name], x)
    chosen = gpu_autotune.tuned(gpu, kernel, {})
    assert isinstance(chosen, gpu_autotune.ByLibrary)
    chosen.launch(None, {name: m.address for name, m in held.items()})
    gpu.copy_out(y, held["y"])
    np.testing.assert_array_equal(y, a.astype(np.int32) @ b.T.astype(np.int32))
    del chosen


def test_float32_is_rounded_first_where_that_is_chosen(library: Library, rng: np.random.Generator) -> None:
    a, b = tensor(rng, 24, 32), tensor(rng, 32, 16)
    for precision, number in (("highest", "CUBLAS_COMPUTE_32F"), ("high", "CUBLAS_COMPUTE_32F_FAST_TF32")):
        flame.set_float32_matmul_precision(precision)
        try:
            run(lambda a, b: a @ b, a, b)
        finally:
            flame.set_float32_matmul_precision("highest")
        assert library.lt.products[-1][1][-1] == NUMBERS[number]


def test_it_is_taken_only_where_it_is_faster_and_remembered(library: Library, rng: np.random.Generator) -> None:
    a, b = tensor(rng, 24, 32), tensor(rng, 32, 16)
    library.lt.best = None
    _, runs = run(lambda a, b: a @ b, a, b)
    assert runs == ["triton"] and len(library.lt.products) > 2
    [times] = gpu_autotune.measured.values()
    assert sum(isinstance(choice, cublas.Algorithm) for choice, _ in times) == 2
    library.lt.best = 0
    _, runs = run(lambda a, b: a @ b + 1e-9 * 0, a, b)  # another program of the same kernel: known
    assert runs == ["triton"]
    gpu_autotune.measured.clear()
    c = tensor(rng, 40, 32)
    _, runs = run(lambda a, b: a @ b, c, b)
    assert runs == ["cuBLASLt"] and gpu_autotune.measured
    gpu_autotune._chosen.clear()
    gpu_autotune.measured.clear()
    _, runs = run(lambda a, b: a @ b, c, b)  # found on disk
    assert runs == ["cuBLASLt"] and not gpu_autotune.measured


def test_a_profile_shows_it(library: Library, rng: np.random.Generator) -> None:
    a, b = tensor(rng, 24, 32), tensor(rng, 32, 16)
    g = flame.compile(lambda a, b: a @ b, mode="max-autotune-no-cudagraphs", options={"never_slower": False})
    with flame.no_grad():
        for _ in range(2):
            g(a, b)
        with flame.profiler.profile() as seen:
            g(a, b)
    assert "cuBLASLt 24x16x32 float32" in {a.key for a in seen.key_averages()}


def test_equal_bits_are_asked_for_where_they_are_wanted(library: Library, rng: np.random.Generator) -> None:
    flame.use_deterministic_algorithms(True)
    try:
        run(lambda a, b: a @ b, tensor(rng, 24, 32), tensor(rng, 32, 16))
    finally:
        flame.use_deterministic_algorithms(False)
    [asked] = [a for a in library.lt.asked.values()][-1:]
    assert asked[NUMBERS["CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK"]] == 0


def test_what_it_does_not_support_runs_as_before(library: Library, rng: np.random.Generator) -> None:
    library.lt.supports = False
    _, runs = run(lambda a, b: a @ b, tensor(rng, 24, 32), tensor(rng, 32, 16))
    assert runs == ["triton"]


REFUSED: dict[str, tuple[Callable, tuple[tuple[int, ...], ...]]] = {
    "another activation": (lambda a, b: F.silu(a @ b), ((24, 32), (32, 16))),
    "an exact gelu": (lambda a, b: F.gelu(a @ b), ((24, 32), (32, 16))),
    "a factor that is an array": (lambda a, b, c: (a @ b) * c, ((24, 32), (32, 16), (24, 16))),
    "rows that are not in one piece": (lambda a, b: a[:, ::2] @ b, ((24, 64), (32, 16))),
    "a window": (lambda x, w: F.conv2d(x, w, padding=1), ((2, 4, 8, 8), (8, 4, 3, 3))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_kernels_are_not_asked_for(name: str, library: Library, rng: np.random.Generator) -> None:
    f, shapes = REFUSED[name]
    _, runs = run(f, *(tensor(rng, *s) for s in shapes))
    assert "cuBLASLt" not in runs and not library.lt.products


def test_sums_without_products_say_why() -> None:
    g = flame.compile(lambda x: x.sum(-1), backend="interpret")
    for _ in range(2):
        g(flame.ones(4, 8))
    [program] = [c.program for c in g.compiled_graphs()]
    assert program is not None
    for step in program.steps:
        if isinstance(step, KernelStep):
            with pytest.raises(Refused, match="one product"):
                product_of(step.kernel, step.symbols)


def test_a_machine_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "_paths", lambda: iter(("/nowhere/libcublasLt.so.13",)))
    open_library.cache_clear()
    with pytest.raises(MissingTargetError, match="cuBLASLt is not installed"):
        open_library(13)
    open_library.cache_clear()
