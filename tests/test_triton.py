"""Triton source: it computes what the kernel IR means, compiles for GPUs that are not there, and reads as it should.

It is run by Triton's interpreter on NumPy memory and held to `compiler/interpret.py`. `--update-golden` rewrites the texts in
tests/golden.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import kernels_for_tests as made
import numpy as np
import pytest
import random_kernels
from graphs_for_tests import transformer

import flame.ops.elementwise  # noqa: F401
from flame import dtypes
from flame.compiler.fusion import fuse
from flame.compiler.graph import Node
from flame.compiler.index_math import evaluate, ex, var
from flame.compiler.kernel import Buffer, Const, Contract, IndexOf, Kernel, Load, Op, Reduce, Store, digest, verify
from flame.compiler.schedule import GpuSchedule, choose_gpu, sides
from flame.compiler.target import Target
from flame.compiler.to_triton import TritonSource, to_triton
from flame.compiler.transform import merge_axes
from flame.errors import CompileError, MissingTargetError, Refused
from flame.primitive import REGISTRY, Primitive, Scalar, Spec
from flame.runtime import triton_tools
from flame.runtime.triton_tools import compile_triton, run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

GPU = Target("cuda", "sm_90", lanes=32, units=132, cache=227 * 1024)
CASES = made.cases()
GOLDEN = Path(__file__).parent / "golden"


@cache
def reference(name: str) -> dict[str, np.ndarray]:
    return made.run(CASES[name])


def chosen(case: made.Case) -> GpuSchedule:
    return choose_gpu(case[0], GPU, case[2])


def check(case: made.Case, schedule: GpuSchedule, expected: dict[str, np.ndarray] | None = None) -> TritonSource:
    """Run a kernel under a schedule, and compare with the interpreter of the IR."""
    kernel, buffers, symbols = case
    source = to_triton(kernel, schedule)
    got = {n: np.ascontiguousarray(a).copy() for n, a in buffers.items()}
    run_interpreted(source, got, symbols)
    narrow = any(a.dtype.itemsize == 2 and a.dtype.kind in "fV" for a in buffers.values())
    for n, want in (expected or made.run(case)).items():
        if n not in kernel.outputs:
            continue
        a, b = got[n].astype(np.float64).ravel(), want.astype(np.float64).ravel()
        size = max(1.0, float(np.abs(b, where=np.isfinite(b), out=np.zeros_like(b)).max(initial=0)))
        if want.dtype.kind in "iub":
            np.testing.assert_array_equal(a, b, err_msg=source.text)
        else:
            rtol, atol = (2e-2, 2e-2) if narrow else (1e-12, 1e-13) if want.dtype == np.float64 else (1e-4, 1e-5)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * size, err_msg=source.text)
    return source


# ---- meaning


@pytest.mark.parametrize("name", CASES)
def test_source_means_what_the_kernel_means(name: str) -> None:
    schedule = chosen(CASES[name])
    if name == "attention":  # three loops deep: few programs, or the interpreter takes long
        schedule = replace(schedule, x_block=256)
    check(CASES[name], schedule, reference(name))


SWEPT = [n for n, (k, _, _) in CASES.items() if k.reduce_axes and n != "attention"]
SMALL = {
    "loops of small tiles": {"form": "rows", "x_block": 4, "r_block": 8},
    "a row a program": {"form": "rows", "x_block": 1, "r_block": 16},
    "wide addresses": {"form": "rows", "x_block": 8, "r_block": 32, "wide": True},
}


@pytest.mark.parametrize("which", SMALL)
@pytest.mark.parametrize("name", SWEPT[::3])
def test_every_tiling_of_a_sweep_gives_the_same(name: str, which: str) -> None:
    schedule = replace(chosen(CASES[name]), **SMALL[which])
    if to_triton(CASES[name][0], schedule).grid(CASES[name][2])[0] <= 16:
        check(CASES[name], schedule, reference(name))


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if chosen(c).form == "dot" and "stride1" not in n][::2])
def test_every_tiling_of_a_contraction_gives_the_same(name: str) -> None:
    found = sides(CASES[name][0])
    assert found is not None
    for i, lanes in enumerate(("", *(found.k if len(found.k) > 1 else ()))):
        schedule = GpuSchedule(
            "dot", m_block=32, n_block=16, k_block=32 if i else 16, group=1 + i, k_lanes=lanes, wide=bool(i % 2)
        )
        check(CASES[name], schedule, reference(name))


@pytest.mark.parametrize("name", ["transpose_add_float32", "permute", "pad", "pointwise_symbolic", "repeat"])
def test_tiles_may_have_two_sides(name: str) -> None:
    kernel = CASES[name][0]
    for columns in (tuple(kernel.axes)[:1], tuple(kernel.axes)[1:]):
        check(CASES[name], GpuSchedule(x_block=32, y_block=16, columns=columns), reference(name))


@pytest.mark.parametrize("seed", range(40))
def test_random_kernels_under_random_schedules(seed: int) -> None:
    case = random_kernels.random_case(seed * 7919)
    kernel, buffers, symbols = case
    r = random.Random(seed)
    schedule = chosen(case)
    if seed % 3:
        found, k = sides(kernel), 1 << r.randint(4, 5)
        lanes = r.choice(("", *found.k)) if found and schedule.form == "dot" else ""
        x = 1 << (r.randint(0, 5) if kernel.reduce_axes else r.randint(4, 8))
        schedule = replace(
            schedule,
            x_block=x,
            r_block=1 << r.randint(1, 6),
            wide=r.random() < 0.4,
            m_block=16,
            n_block=32,
            k_block=k,
            k_lanes=lanes,
        )
    if to_triton(kernel, schedule).grid(symbols)[0] <= 16:
        check(case, schedule)
    merged = merge_axes(kernel)
    shaped = {n: a.reshape([evaluate(d, symbols) for d in merged.buffers[n].shape]) for n, a in buffers.items()}
    again = (merged, shaped, symbols)
    if seed % 2 and to_triton(merged, chosen(again)).grid(symbols)[0] <= 16:
        check(again, chosen(again), made.run(case))


def elementwise_samples() -> Iterator[tuple[Primitive, list[np.ndarray]]]:
    for p in REGISTRY.values():
        if p.kind == "elementwise" and p.scalar is not None and p.samples is not None and p.name != "cast":
            seen = set()
            for operands, params in p.samples():
                kinds = tuple(getattr(a, "dtype", None) for a in operands)
                if params or None in kinds or kinds in seen or any(k.itemsize == 2 and k.kind in "fV" for k in kinds):
                    continue
                shape = np.broadcast_shapes(*(a.shape for a in operands))
                if 0 not in shape:
                    seen.add(kinds)
                    yield p, [np.ascontiguousarray(np.broadcast_to(a, shape)).reshape(-1) for a in operands]


def elementwise_kernel(name: str, kinds: list[dtypes.dtype], n: int) -> Kernel:
    i, out = var("i"), REGISTRY[name].infer(*(Spec((n,), d) for d in kinds)).dtype
    buffers = {f"x{j}": Buffer(f"x{j}", d, (ex(n),)) for j, d in enumerate(kinds)} | {"o": Buffer("o", out, (ex(n),), "out")}
    loads = [Load(f"v{j}", f"x{j}", (i,), (), 0, d) for j, d in enumerate(kinds)]
    result = Op("r", name, tuple(s.name for s in loads), out)
    return Kernel(f"one_{name}", buffers, {"i": ex(n)}, {}, [*loads, result, Store("o", (i,), "r")])


@pytest.mark.parametrize("name", sorted({p.name for p, _ in elementwise_samples()}))
def test_elementwise_primitives_have_a_spelling_that_is_right(name: str) -> None:
    for p, operands in elementwise_samples():
        if p.name == name:
            kinds = [dtypes.from_numpy_dtype(a.dtype) for a in operands]
            kernel = elementwise_kernel(name, kinds, operands[0].size)
            out = np.zeros(operands[0].size, kernel.buffers["o"].dtype.numpy)
            run_interpreted(
                to_triton(kernel, GpuSchedule(x_block=64)), {f"x{j}": a for j, a in enumerate(operands)} | {"o": out}
            )
            with np.errstate(all="ignore"):
                want = np.asarray(p.eager(*operands))
            rtol = 1e-12 if dtypes.float64 in kinds else 1e-5
            np.testing.assert_allclose(out.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=rtol / 10)


def test_what_a_prologue_makes_of_masked_lanes_stays_out_of_reductions() -> None:
    """Masked lanes of a prologue that makes NaN of nothing (0 / 0) stay out of sums, maxima and products."""
    i, j = var("i"), var("j")
    f = dtypes.float32
    body = [
        Load("x", "x", (i, j), (), 0, f),
        Op("q", "div", ("x", "x"), f),
        Reduce("s", "sum", ("q",), ("j",), f),
        Reduce("m", "max", ("q",), ("j",), f),
        Op("t", "add", ("s", "m"), f),
        Store("o", (i,), "t"),
    ]
    buffers = {"x": Buffer("x", f, (ex(5), ex(13))), "o": Buffer("o", f, (ex(5),), "out")}
    kernel = Kernel("ratio", buffers, {"i": ex(5), "j": ex(13)}, {}, body)
    for r in (4, 16):
        o = np.zeros(5, np.float32)
        run_interpreted(to_triton(kernel, GpuSchedule(x_block=2, r_block=r)), {"x": np.full((5, 13), 2, np.float32), "o": o})
        assert o.tolist() == [14.0] * 5


@pytest.mark.parametrize("r_block", [8, 64])
def test_a_buffer_updated_in_place_is_written_when_nothing_reads_it_any_more(r_block: int) -> None:
    i, j = var("i"), var("j")
    f = dtypes.float32
    body = [
        Load("x", "p", (i, j), (), 0, f),
        Const("one", 1.0, f),
        Op("y", "add", ("x", "one"), f),
        Store("p", (i, j), "y"),
        Reduce("s", "sum", ("y",), ("j",), f),
        Op("z", "div", ("y", "s"), f),
        Store("o", (i, j), "z"),
    ]
    buffers = {"p": Buffer("p", f, (ex(3), ex(37)), "inout"), "o": Buffer("o", f, (ex(3), ex(37)), "out")}
    kernel = Kernel("in_place", buffers, {"i": ex(3), "j": ex(37)}, {}, body)
    verify(kernel)
    p = np.arange(111, dtype=np.float32).reshape(3, 37)
    arrays = {"p": p.copy(), "o": np.zeros((3, 37), np.float32)}
    run_interpreted(to_triton(kernel, GpuSchedule(x_block=1, r_block=r_block)), arrays)
    np.testing.assert_array_equal(arrays["p"], p + 1)
    np.testing.assert_allclose(arrays["o"], (p + 1) / (p + 1).sum(1, keepdims=True), rtol=1e-6)


def simple(name: str, axes: dict[str, int], shapes: dict[str, tuple], body: list, outputs: tuple[str, ...] = ("o",)) -> Kernel:
    """A kernel whose buffers have the dtypes that its loads and stores say."""
    kinds = {s.name: s.dtype for s in body if not isinstance(s, Store)}
    held = {s.buffer: s.dtype if isinstance(s, Load) else kinds[s.value] for s in body if isinstance(s, Load | Store)}
    buffers = {b: Buffer(b, held[b], tuple(map(ex, shape)), "out" if b in outputs else "in") for b, shape in shapes.items()}
    kernel = Kernel(name, buffers, {a: ex(n) for a, n in axes.items()}, {}, body)
    verify(kernel)
    return kernel


def test_index_division_rounds_down_where_its_numerator_is_negative() -> None:
    i = var("i")
    e = (5 - i) // 3 * 100 + (5 - i) % 4
    kernel = simple("down", {"i": 20}, {"o": (20,)}, [IndexOf("v", e, dtypes.int64), Store("o", (i,), "v")])
    o = np.zeros(20, np.int64)
    run_interpreted(to_triton(kernel, GpuSchedule(x_block=32)), {"o": o})
    assert o.tolist() == [(5 - n) // 3 * 100 + (5 - n) % 4 for n in range(20)]


def test_what_both_prologues_make_of_masked_lanes_stays_out_of_products() -> None:
    """exp(0) * exp(0) = 1 beyond the end of the summed axis."""
    i, j, k, f = var("i"), var("j"), var("k"), dtypes.float32
    body = [
        Load("x", "x", (i, k), (), 0, f),
        Load("y", "y", (k, j), (), 0, f),
        Op("a", "exp", ("x",), f),
        Op("b", "exp", ("y",), f),
        Contract("c", ("a", "b"), ("k",), f),
        Store("o", (i, j), "c"),
    ]
    kernel = simple("exps", {"i": 20, "j": 18, "k": 21}, {"x": (20, 21), "y": (21, 18), "o": (20, 18)}, body)
    r = np.random.default_rng(1)
    arrays = {"x": r.random((20, 21), np.float32), "y": r.random((21, 18), np.float32), "o": np.zeros((20, 18), np.float32)}
    source = to_triton(kernel, GpuSchedule("dot", m_block=32, n_block=32, k_block=16))
    run_interpreted(source, arrays)
    np.testing.assert_allclose(arrays["o"], np.exp(arrays["x"]) @ np.exp(arrays["y"]), rtol=1e-5)
    assert source.text.count("tl.where(") == 2


def test_of_the_programs_that_share_an_address_one_stores() -> None:
    i, j, f = var("i"), var("j"), dtypes.float32
    body = [Load("x", "x", (j,), (), 0, f), Store("o", (i, j), "x"), Op("n", "neg", ("x",), f), Store("p", (j,), "n")]
    kernel = simple("shared", {"i": 5, "j": 9}, {"x": (9,), "o": (5, 9), "p": (9,)}, body, ("o", "p"))
    source = to_triton(kernel, GpuSchedule(x_block=16))
    assert re.search(r"tl\.store\(p_ptr \+ j, n, mask=.*\(i == 0\)\)", source.text)
    arrays = {"x": np.arange(9, dtype=np.float32), "o": np.zeros((5, 9), np.float32), "p": np.zeros(9, np.float32)}
    run_interpreted(source, arrays)
    assert arrays["p"].tolist() == [-float(n) for n in range(9)]


@pytest.mark.parametrize("d", [d for d in dtypes.ALL + dtypes.BITS if not d.is_narrow_float], ids=lambda d: d.name)
def test_constants_keep_their_dtype_wherever_they_stand(d: dtypes.dtype) -> None:
    """In memory, beside a value, beside each other, and chosen."""
    i = var("i")
    low, high = (False, True) if d is dtypes.bool_ else (3, 2**d.itemsize * 8 - 1) if d.kind in "ui" else (0.1, 1e30)
    choice = Load("c", "c", (i,), (), 0, dtypes.bool_)
    body = [choice, Const("l", low, d), Const("h", high, d), Store("p", (i,), "l")]
    body += [Op("w", "where", ("c", "l", "h"), d), Op("m", "maximum", ("l", "h"), d), Op("n", "where", ("c", "w", "m"), d)]
    body.append(Store("o", (i,), "n"))
    kernel = simple("numbers", {"i": 6}, {"c": (6,), "o": (6,), "p": (6,)}, body, ("o", "p"))
    c = np.array([True, False] * 3)
    arrays = {"c": c, "o": np.zeros(6, d.numpy), "p": np.zeros(6, d.numpy)}
    source = to_triton(kernel, GpuSchedule(x_block=4))
    run_interpreted(source, arrays)
    np.testing.assert_array_equal(arrays["p"], np.full(6, low, d.numpy))
    np.testing.assert_array_equal(arrays["o"], np.where(c, np.asarray(low, d.numpy), np.asarray(high, d.numpy)))
    assert compile_triton(source, "sm_90").code


def test_names_that_python_or_triton_hold_already_are_given_others() -> None:
    i = var("tl")
    buffers = {"for": Buffer("for", dtypes.float32, (ex(9),)), "tl": Buffer("tl", dtypes.float32, (ex(9),), "out")}
    load = Load("range", "for", (i,), (), 0, dtypes.float32)
    kernel = Kernel(
        "lambda", buffers, {"tl": ex(9)}, {}, [load, Op("a b", "neg", ("range",), dtypes.float32), Store("tl", (i,), "a b")]
    )
    arrays = {"for": np.arange(9, dtype=np.float32), "tl": np.zeros(9, np.float32)}
    run_interpreted(to_triton(kernel, GpuSchedule(x_block=4)), arrays)
    np.testing.assert_array_equal(arrays["tl"], -np.arange(9))


# ---- sizes, refusals, errors


def test_no_elements_are_no_programs() -> None:
    source = to_triton(CASES["empty"][0], chosen(CASES["empty"]))
    assert 0 in source.grid({})


def test_addresses_beyond_32_bits_need_a_wide_schedule() -> None:
    kernel, buffers, symbols = CASES["pointwise_symbolic"]
    large = {n: 2**30 for n in symbols}
    assert choose_gpu(kernel, GPU, large).wide and not choose_gpu(kernel, GPU, symbols).wide
    narrow = to_triton(kernel, chosen(CASES["pointwise_symbolic"]))
    assert narrow.fits(symbols) and not narrow.fits(large)
    assert to_triton(kernel, choose_gpu(kernel, GPU, large)).fits(large)
    with pytest.raises(ValueError, match="wide"):
        run_interpreted(narrow, buffers, large)


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    for name in ("softmax_float32_77", "pad", "matrix_vector_row", "matmul_nn_int32_33x45x29"):
        with pytest.raises(Refused):
            to_triton(CASES[name][0], GpuSchedule("dot"))


def test_what_is_not_a_buffer_of_the_kernel_is_refused() -> None:
    kernel, buffers, _ = CASES["pad"]
    source = to_triton(kernel, chosen(CASES["pad"]))
    with pytest.raises(ValueError, match="float32"):
        run_interpreted(source, buffers | {"x": buffers["x"].astype(np.float64)})
    with pytest.raises(ValueError, match="contiguous"):
        run_interpreted(source, buffers | {"x": np.asfortranarray(buffers["x"])})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have Triton say that it is another version."""
    import triton

    def say(version: str) -> None:
        monkeypatch.setattr(triton, "__version__", version)
        triton_tools.load_triton.cache_clear()

    yield say
    triton_tools.load_triton.cache_clear()


@pytest.mark.parametrize(
    ("version", "told"),
    [("3.2.0", "3.2.0 is too old"), ("2.10.1", "too old"), ("nightly", "too old"), ("4.0.0", "4.0.0 is a new major version")],
)
def test_a_triton_that_is_not_known_is_named(pretend: Callable[[str], None], version: str, told: str) -> None:
    pretend(version)
    with pytest.raises(MissingTargetError, match=told + ".*3.6 to 3.9"):
        triton_tools.load_triton()


def test_a_newer_triton_is_tried_with_a_warning_and_blamed_in_errors(pretend: Callable[[str], None]) -> None:
    pretend("3.99.1")
    source = to_triton(CASES["pad"][0], chosen(CASES["pad"]))
    with pytest.warns(RuntimeWarning, match="3.99.1 is newer than what was tested"):
        compile_triton(source, "sm_90")
    with pytest.raises(CompileError, match="newer than what flame was tested with"):
        compile_triton(replace(source, text=source.text.replace("tl.load(", "tl.nonsense(")), "sm_90")


def test_what_triton_refuses_is_reported_with_its_words() -> None:
    source = to_triton(CASES["pad"][0], chosen(CASES["pad"]))
    with pytest.raises(CompileError, match=r"(?s)pad: .*sm_90.*nonsense"):
        compile_triton(replace(source, text=source.text.replace("tl.load(", "tl.nonsense(")), "sm_90")
    with pytest.raises(CompileError, match="entry point takes"):
        triton_tools._check_parameters(source, ".visible .entry pad(.param .u64 a, .param .u32 b)\n{")
    with pytest.raises(ValueError, match="no GPU architecture"):
        compile_triton(source, "pentium")


# ---- compiling


#: without those that differ from another in the element type alone, and take the same way through the compiler
DISTINCT = [n for n in CASES if not re.search(r"_(uint8|int16|int64|float16|tn|tt)(_|$)", n)]


@pytest.mark.parametrize("name", DISTINCT)
def test_kernels_compile_for_a_gpu_that_is_not_there(name: str) -> None:
    source = to_triton(CASES[name][0], chosen(CASES[name]))
    binary = compile_triton(source, "sm_80" if DISTINCT.index(name) % 2 else "sm_90")
    assert binary.code[:4] == b"\x7fELF" and f".entry {source.entry}(" in binary.asm
    assert not binary.warnings
    if chosen(CASES[name]).form == "rows":
        assert binary.spills == 0, f"{binary.registers} registers, {binary.spills} bytes on the stack\n{source.text}"


ELSEWHERE = ["casts", "softmax_bfloat16_77", "row_argmax_nan", "column_sum_int64", "matmul_nn_float64_33x45x29"]
ELSEWHERE += ["matmul_nn_bfloat16_gelu_33x45x29", "matmul_nn_int8_33x45x29", "convolution_stride1_bfloat16"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_100", "gfx942"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_kernels_compile_for_other_gpus(name: str, arch: str) -> None:
    if arch == "gfx942" and "float64" in name:
        pytest.skip("older versions of Triton multiply no tiles of float64 there")
    binary = compile_triton(to_triton(CASES[name][0], chosen(CASES[name])), arch)
    assert binary.code[:4] == b"\x7fELF" and binary.arch == arch
    assert binary.spills == 0 and binary.registers > 0


def test_contractions_use_tensor_cores_and_are_pipelined() -> None:
    kernel = CASES["matmul_nn_bfloat16_33x45x29"][0]
    extents = {"i": 1024, "j": 1024, "k": 512}
    shapes = {"x": ("i", "k"), "y": ("k", "j"), "o": ("i", "j")}
    buffers = {n: replace(b, shape=tuple(ex(extents[a]) for a in shapes[n])) for n, b in kernel.buffers.items()}
    large = Kernel("matmul", buffers, {a: ex(n) for a, n in extents.items()}, {}, kernel.statements)
    verify(large)
    source = to_triton(large, choose_gpu(large, GPU))
    assert "mask" not in source.text
    assert "mma.sync" in compile_triton(source, "sm_80").asm and "wgmma" in (hopper := compile_triton(source, "sm_90").asm)
    assert "cp.async" in hopper


def test_products_and_sums_round_apart_unless_the_schedule_says_otherwise() -> None:
    i, f = var("i"), dtypes.float32
    body = [
        Load("x", "x", (i,), (), 0, f),
        Op("p", "mul", ("x", "x"), f),
        Op("s", "add", ("p", "x"), f),
        Store("o", (i,), "s"),
    ]
    buffers = {"x": Buffer("x", f, (ex(64),)), "o": Buffer("o", f, (ex(64),), "out")}
    kernel = Kernel("fusable", buffers, {"i": ex(64)}, {}, body)
    apart, fused = (compile_triton(to_triton(kernel, GpuSchedule(x_block=64, fp_fusion=x)), "sm_90") for x in (False, True))
    assert _disassembled(apart.code).count("FFMA") == 0 and _disassembled(fused.code).count("FFMA") > 0


def _disassembled(cubin: bytes) -> str:
    import tempfile

    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        return subprocess.run([tool, "-sass", f.name], capture_output=True, text=True, check=True).stdout


def test_compiling_and_interpreting_live_in_one_process() -> None:
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    source = check(CASES["softmax_float32_77"], chosen(CASES["softmax_float32_77"]))
    assert isinstance(tl.sum, JITFunction) and isinstance(tl.cdiv, JITFunction)
    assert compile_triton(source, "sm_90").code


def test_nothing_of_triton_is_imported_before_it_is_needed() -> None:
    code = "import sys, flame, flame.runtime.triton_tools; sys.exit('triton' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}).returncode == 0
    )


def test_compiling_leaves_no_files_in_the_home_folder(tmp_path: Path) -> None:
    code = (
        "import kernels_for_tests as m; from flame.compiler.schedule import GpuSchedule;"
        "from flame.compiler.to_triton import to_triton; from flame.runtime.triton_tools import compile_triton;"
        "compile_triton(to_triton(m.cases()['slice'][0], GpuSchedule()), 'sm_90')"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path), "TRITON_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


# ---- text


def fixed(name: str, define: object = None, triton: str | None = None) -> Primitive:
    old = REGISTRY[name]
    return Primitive(name, "elementwise", old.infer, old.eager, scalar=Scalar(define, triton))  # type: ignore[arg-type]


@pytest.fixture
def fixed_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """exp and sigmoid with definitions that stay as they are, whatever becomes of the real ones."""
    monkeypatch.setitem(REGISTRY, "exp", fixed("exp", lambda m, x: m.libm("exp", x), "tl.exp({0})"))

    def sigmoid(m, x):  # type: ignore[no-untyped-def]
        e = m.libm("exp", m.neg(m.abs(x)))
        return m.div(m.where(m.lt(x, 0.0), e, 1.0), m.add(e, 1.0))

    monkeypatch.setitem(REGISTRY, "sigmoid", fixed("sigmoid", sigmoid))


def gated() -> made.Case:
    """Two branches with a mask, notes and a primitive that becomes a function."""
    m = made.Make("gated", i=50, j=33)
    i, j = var("i"), var("j")
    x, y = m.load("x", (i, j)), m.load("y", (j,))
    g = m.op("mul", x, m.op("sigmoid", m.op("add", x, y)))
    m.store("o", (i, j), m.op("where", m.op("lt", x, y), g, m.const(float("-inf"), dtypes.float32)))
    kernel, buffers, symbols = m.case()
    noted = [replace(s, note="silu  model.py:12") if isinstance(s, Op) and s.op != "where" else s for s in kernel.statements]
    return Kernel("gated", kernel.buffers, kernel.axes, kernel.symbols, noted), buffers, symbols


GOLDENS = {
    "gated": (gated, {}),
    "softmax": ("softmax_float16_77", {}),
    "softmax_looped": ("softmax_float32_3000", {"x_block": 1, "r_block": 1024}),
    "argmax": ("row_argmax_float32", {}),
    "column_sum": ("column_sum_bfloat16", {"wide": True}),
    "mean_backward": ("layer_norm_backward", {"x_block": 1, "r_block": 64}),
    "transpose": ("transpose_add_float16", {}),
    "padded": ("pad", {}),
    "gathered": ("embedding", {}),
    "matmul": ("matmul_nn_bfloat16_gelu_33x45x29", {}),
    "matmul_symbolic": ("matmul_symbolic", {}),
    "convolution": ("convolution_stride2_float32", {"k_lanes": "c", "k_block": 16}),
    "batched": ("batched_matmul_float16", {}),
}


@pytest.mark.usefixtures("fixed_functions")
@pytest.mark.parametrize("name", GOLDENS)
def test_source_reads_as_it_did(name: str, update_golden: bool) -> None:
    which, changes = GOLDENS[name]
    case = which() if callable(which) else CASES[which]
    source = check(case, replace(chosen(case), **changes))
    header = f"# {source.constexprs}, {source.warps} warps, {source.stages} stages, grid {source.grid(case[2])}\n"
    path = GOLDEN / f"{name}.py.txt"
    if update_golden:
        path.write_text(header + source.text)
    assert header + source.text == path.read_text(), "the source changed: look at it, then pytest --update-golden"


def test_source_is_a_function_of_kernel_and_schedule_alone() -> None:
    code = (
        "import kernels_for_tests as m; from flame.compiler.schedule import choose_gpu\n"
        "from flame.compiler.target import Target\n"
        "from flame.compiler.to_triton import to_triton\n"
        "for k, b, s in m.cases().values():\n"
        "    print(to_triton(k, choose_gpu(k, Target('cuda', 'sm_90', lanes=32, units=132, cache=227 * 1024), s)).digest)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "77"}
    elsewhere = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout.split()
    assert elsewhere == [to_triton(c[0], chosen(c)).digest for c in CASES.values()]


def test_masks_stand_only_where_a_tile_hangs_over() -> None:
    kernel, *_ = CASES["softmax_float32_77"]
    even = Kernel(
        "even",
        {n: replace(b, shape=(ex(8), ex(64))) for n, b in kernel.buffers.items()},
        {"i": ex(8), "j": ex(64)},
        {},
        kernel.statements,
    )
    assert "mask" not in to_triton(even, GpuSchedule(x_block=4, r_block=64)).text
    assert "mask" not in to_triton(even, GpuSchedule(x_block=1, r_block=16)).text
    assert "mask=j_in" in to_triton(kernel, GpuSchedule(x_block=1, r_block=128)).text


def test_neighbours_in_memory_are_seen_as_such() -> None:
    """A flat walk over several axes is addressed by the walk where all of them lie in order."""
    source = to_triton(CASES["pointwise_float32"][0], GpuSchedule(x_block=256))
    assert re.search(r"x_ptr \+ x, mask", source.text) and re.search(r"y_ptr \+ j, mask", source.text)


def test_what_fusion_makes_for_a_gpu_is_rendered_and_right() -> None:
    """A small transformer and its loss, kernel by kernel, on numbers of their own."""
    fused = fuse(transformer(layers=1), GPU)
    distinct = {digest(step[0]): step[0] for step in fused.steps if not isinstance(step, Node)}
    assert len(distinct) > 5
    r = np.random.default_rng(7)
    for kernel in map(merge_axes, distinct.values()):
        buffers = {}
        for b in kernel.buffers.values():
            shape = [int(evaluate(d, {})) for d in b.shape]
            numbers = r.standard_normal(shape) if b.dtype.kind == "f" else np.zeros(shape)
            buffers[b.name] = numbers.astype(b.dtype.numpy)
        case = (kernel, buffers, {})
        if to_triton(kernel, chosen(case)).grid({})[0] <= 40:
            check(case, chosen(case))
