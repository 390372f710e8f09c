"""LLVM kernels, run on this machine, against the kernel IR's interpreter."""

from __future__ import annotations

import ctypes
import inspect
import re
from dataclasses import replace

import kernels_for_tests as given
import llvmlite.binding as llvm
import numpy as np
import pytest
from llvm_for_tests import HOST, Runner, link
from random_kernels import random_case

import flame
from flame import dtypes
from flame.compiler import cpu_cost
from flame.compiler.index_math import ex, var
from flame.compiler.kernel import Kernel, Store
from flame.compiler.llvm_machine import LlvmMachine
from flame.compiler.llvm_text import Function
from flame.compiler.schedule_cpu import CpuSchedule, choose_cpu
from flame.compiler.target_cpu import CpuTarget, LlvmSource, Phase
from flame.compiler.to_llvm import to_llvm
from flame.ops.machine import COMPARISONS, NumpyMachine
from flame.primitive import REGISTRY
from flame.runtime import cpu, llvm_jit

TOLERANCE = {"float32": 3e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1.6e-2}
CASES = given.cases()
NARROW_AND_WIDE = [
    n for n in CASES if n.startswith(("pointwise", "softmax", "row_argmax", "matmul", "convolution", "layer_norm"))
]


def agree(kernel: Kernel, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    for name, w in want.items():
        tolerance = TOLERANCE.get(kernel.buffers[name].dtype.name, 0)
        with np.errstate(over="ignore"):  # what is infinite in the buffer's dtype
            w = np.asarray(w).astype(kernel.buffers[name].dtype.numpy)
        np.testing.assert_allclose(
            got[name].astype(np.float64), w.astype(np.float64), rtol=tolerance, atol=tolerance, err_msg=name
        )


def check(case: given.Case, cpu: CpuTarget = HOST) -> Runner:
    """A case equals the interpreter, and is the same to the bit run whole and chunk by chunk."""
    kernel, arrays, symbols = case
    runner = Runner(kernel, cpu)
    whole, parts = ({b: a.copy() for b, a in arrays.items()} for _ in range(2))
    runner.bind(whole, symbols, split=False)()
    runner.bind(parts, symbols, split=True)()
    agree(kernel, whole, given.expected(case))
    for b in kernel.outputs:
        assert whole[b].tobytes() == parts[b].tobytes(), f"{b} depends on how the chunks are run"
    return runner


@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_what_the_interpreter_does(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("seed", [*range(40), 326, 344])
def test_random_kernels_compute_what_the_interpreter_does(seed: int) -> None:
    check(random_case(seed))


@pytest.mark.parametrize("target", ["sse2", "no_f16c", "lanes16"])
def test_nothing_depends_on_the_instructions_of_this_machine(target: str) -> None:
    """Other vector widths and missing instructions give the same results (run here, as far as this machine can)."""
    cpu = {
        "sse2": CpuTarget(HOST.triple, "x86-64", HOST.features & {"64bit", "sse", "sse2", "cx8", "fxsr", "mmx", "cmov"}, 4, 16),
        "no_f16c": replace(HOST, features=frozenset(f for f in HOST.features - {"f16c"} if not f.startswith("avx512"))),
        "lanes16": replace(HOST, lanes_f32=16, registers=32),
    }[target]
    if not HOST.is_x86:
        pytest.skip("the targets of this test are x86 ones")
    for name in NARROW_AND_WIDE:
        check(CASES[name], cpu)


@pytest.mark.parametrize("triple,name,features,lanes,registers", [
    ("aarch64-linux-gnu", "neoverse-n1", frozenset({"neon"}), 4, 32),
    ("arm64-apple-macosx", "apple-m1", frozenset({"neon"}), 4, 32),
    ("x86_64-linux-gnu", "skylake-avx512", frozenset({"avx512f", "avx512vl", "avx512bw", "avx512dq", "fma", "f16c"}), 16, 32),
])  # fmt: skip
def test_code_is_made_for_processors_that_are_not_there(
    triple: str, name: str, features: frozenset[str], lanes: int, registers: int
) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    cpu = CpuTarget(triple, name, features, lanes, registers)
    for case in NARROW_AND_WIDE:
        kernel = CASES[case][0]
        source = to_llvm(kernel, choose_cpu(kernel, cpu), cpu)
        module = llvm.parse_assembly(source.text)
        module.verify()
        tm = llvm.Target.from_triple(triple).create_target_machine(
            cpu=name, features=",".join("+" + f for f in sorted(features))
        )
        assert len(tm.emit_object(module)) > 0
        assert "neon" not in features or "llvm.x86" not in source.text
        if "neon" in features and case == "matmul_nn_float32_33x45x29":
            text = tm.emit_assembly(module)
            assert re.search(r"\bfmla(\.4s)?\s+v\d+", text), f"no multiply-adds of four lanes in\n{text}"
            assert not re.search(r"%[xyz]mm\d", text)


#: bytes that x86's moves of one element write
MOVES = {"movb": 1, "movw": 2, "movl": 4, "movq": 8, "vmovd": 4, "vmovss": 4, "vmovq": 8, "vmovsd": 8, "vmovlps": 8}


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
@pytest.mark.parametrize("wide,narrow", [(4, 2), (4, 1), (8, 4), (8, 2), (8, 1), (2, 1)])
def test_a_store_under_a_known_mask_writes_what_the_mask_has(wide: int, narrow: int, lanes: int) -> None:
    """LLVM cuts integers as it stores them, and under a known mask of one lane it would store what was not cut yet."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    many = frozenset({"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma", "f16c"})
    for target in (HOST, CpuTarget("x86_64-unknown-linux-gnu", "skylake-avx512", many, 16, 32)):
        f = Function("some", [("ptr", "bufs"), ("ptr", "syms"), ("i64", "begin"), ("i64", "end")])
        t, u = f"i{8 * narrow}", f"i{8 * wide}"
        source, to = (f.load("ptr", f.address("%bufs", b, "ptr"), 8) for b in range(2))
        x = f.emit(f"trunc <{lanes} x {u}> {f.load(f'<{lanes} x {u}>', source, wide)} to <{lanes} x {t}>")
        for lane in range(lanes):
            mask = "<" + ", ".join(f"i1 {int(j == lane)}" for j in range(lanes)) + ">"
            LlvmMachine(f, target).store_some(t, lanes, x, f.address(to, lane * (lanes + 1), t), narrow, mask)
        text = "\n".join([*sorted(f.declarations), f.text()])
        if target is not HOST:
            stores = re.findall(r"^\s+(v?mov\w+)\s+%\w+, -?\w*\(%(?!rsp)", llvm_jit.assembly(text, target), re.M)
            assert all(MOVES.get(s, 0) <= narrow for s in stores), f"{stores}\n{text}"
            continue
        (run,) = link(LlvmSource(text, (Phase("some", ex(1)),), ()), HOST)
        elements = np.random.default_rng(lanes).integers(0, 256, lanes * wide, np.uint8)
        there = np.full(lanes * lanes * (lanes + 1) * narrow, 0xA5, np.uint8)
        want = there.copy()
        for lane in range(lanes):
            at = (lane * (lanes + 1) + lane) * narrow
            want[at : at + narrow] = elements[lane * wide : lane * wide + narrow]
        run((ctypes.c_void_p * 2)(elements.ctypes.data, there.ctypes.data), None, 0, 1)
        assert np.array_equal(there, want), text


def test_the_same_kernel_gives_the_same_text() -> None:
    kernel = CASES["layer_norm_float32"][0]
    assert to_llvm(kernel, CpuSchedule(), HOST).text == to_llvm(kernel, CpuSchedule(), HOST).text


# ---- dtypes


def one_op(name: str, kinds: list[dtypes.dtype], out: dtypes.dtype, arrays: list[np.ndarray]) -> given.Case:
    m = given.Make(name, i=arrays[0].size)
    i = var("i")
    values = [m.load(f"x{n}", (i,), d, wide=False, array=a) for n, (d, a) in enumerate(zip(kinds, arrays, strict=True))]
    m.store("o", (i,), m.op(name, *values, d=out))
    return m.case()


def result(case: given.Case) -> np.ndarray:
    kernel, arrays, symbols = case
    fresh: dict[str, np.ndarray] = {b: a.copy() for b, a in arrays.items()}
    Runner(kernel).bind(fresh, symbols)()
    return fresh["o"]


def numbers(d: dtypes.dtype, n: int = 203) -> np.ndarray:
    """Ordinary and extreme values of a dtype."""
    r = np.random.default_rng(d.itemsize * 7 + ord(d.kind))
    if d.kind == "b":
        return r.integers(0, 2, n).astype(bool)
    if d.kind in "iu":
        info = np.iinfo(d.numpy)
        x = r.integers(info.min, info.max, n, dtype=d.numpy, endpoint=True)
        x[: n // 2] = r.integers(-9 if d.kind == "i" else 0, 10, n // 2).astype(d.numpy)
        x[:4] = [0, 1, info.min, info.max]
        return x
    x = r.standard_normal(n) * np.exp(r.uniform(-30, 30, n) if d.itemsize > 2 else r.uniform(-12, 11, n))
    x[: n // 3] = r.standard_normal(n // 3) * 4
    x[:7] = [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 0.5]
    with np.errstate(over="ignore"):
        return x.astype(d.numpy)


EVERY = dtypes.ALL + dtypes.BITS


def castable(source: dtypes.dtype, target: dtypes.dtype) -> np.ndarray:
    """Numbers of one dtype that a cast to the other is defined for."""
    x = numbers(source)
    if source.kind != "f" or target.kind not in "iu":
        return x
    info = np.iinfo(target.numpy)
    wide = np.trunc(np.nan_to_num(x.astype(np.float64), posinf=0, neginf=0))
    wide = np.clip(wide, max(info.min, -(2.0**52)), min(info.max, 2.0**52)).astype(source.numpy).astype(np.float64)
    return np.where((wide <= info.max) & (wide >= info.min), wide, 0).astype(source.numpy)


@pytest.mark.parametrize("source", EVERY, ids=str)
def test_casts_are_numpys(source: dtypes.dtype) -> None:
    i = var("i")
    make = given.Make(f"casts_of_{source.name}", i=203)
    for t in EVERY:
        x = make.load(f"x_{t.name}", (i,), source, wide=False, array=castable(source, t))
        make.store(f"o_{t.name}", (i,), make.op("cast", x, d=t))
    kernel, arrays, _ = make.case()
    fresh = {b: a.copy() for b, a in arrays.items()}
    Runner(kernel).bind(fresh, {})()
    for t in EVERY:
        got = fresh[f"o_{t.name}"]
        with np.errstate(all="ignore"):
            want = arrays[f"x_{t.name}"].astype(t.numpy)
        if t.kind != "f":
            np.testing.assert_array_equal(got, want, err_msg=t.name)
            continue
        both_nan = np.isnan(got.astype(np.float64)) & np.isnan(want.astype(np.float64))
        bits = f"u{t.itemsize}"
        np.testing.assert_array_equal(np.where(both_nan, 0, got.view(bits)), np.where(both_nan, 0, want.view(bits)), t.name)


@pytest.mark.parametrize("has_half", [True, False])
def test_every_float16_goes_to_float32_and_back(has_half: bool) -> None:
    cpu = HOST if has_half else replace(HOST, features=HOST.features - {"f16c", "avx512f", "avx512fp16"})
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    case = one_op("cast", [dtypes.float16], dtypes.float32, [x])
    wide: dict[str, np.ndarray] = {"x0": x.copy(), "o": np.zeros(x.size, np.float32)}
    Runner(case[0], cpu).bind(wide, {})()
    np.testing.assert_array_equal(wide["o"], x.astype(np.float32))
    finite = x[np.isfinite(x)].astype(np.float32)
    near = np.concatenate([finite * np.float32(f) for f in (1, 1 + 2**-11, 1 - 2**-12, 1 + 2**-10)])
    case = one_op("cast", [dtypes.float32], dtypes.float16, [near])
    back: dict[str, np.ndarray] = {"x0": near, "o": np.zeros(near.size, np.float16)}
    Runner(case[0], cpu).bind(back, {})()
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(back["o"], near.astype(np.float16))


BINARY = ["add", "sub", "mul", "div", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge"]
BINARY += ["bitwise_and", "bitwise_or", "bitwise_xor", "floor_divide_int", "remainder_int"]
UNARY = ["neg", "abs", "sqrt", "floor", "ceil", "trunc", "rint", "bitwise_not"]


@pytest.mark.parametrize("d", [d for d in EVERY if not d.is_narrow_float and d.kind != "b"], ids=str)
def test_basic_operations_are_numpys(d: dtypes.dtype) -> None:
    floating = ("div", "sqrt", "floor", "ceil", "trunc", "rint")
    integral = [op for op in BINARY + UNARY if op.startswith("bitwise") or op.endswith("_int")]
    ops = [op for op in BINARY + UNARY if op not in (integral if d.kind == "f" else floating)]
    i, x, y = var("i"), numbers(d), np.roll(numbers(d), 31)
    make = given.Make(f"operations_on_{d.name}", i=x.size)
    a, b = make.load("x", (i,), d, wide=False, array=x), make.load("y", (i,), d, wide=False, array=y)
    for op in ops:
        make.store(
            f"o_{op}", (i,), make.op(op, *((a, b) if op in BINARY else (a,)), d=dtypes.bool_ if op in COMPARISONS else d)
        )
    kernel, arrays, _ = make.case()
    fresh = {n: array.copy() for n, array in arrays.items()}
    Runner(kernel).bind(fresh, {})()
    for op in ops:
        want = NumpyMachine().emit(op, *((x, y) if op in BINARY else (x,)))
        np.testing.assert_array_equal(fresh[f"o_{op}"], want, err_msg=op)


@pytest.mark.parametrize("op", ["maximum", "minimum"])
def test_a_limit_that_is_a_constant_lets_nan_pass(op: str) -> None:
    i, x = var("i"), numbers(dtypes.float32)
    make = given.Make(op, i=x.size)
    v, c = make.load("x", (i,), array=x), make.const(0.25, dtypes.float32)
    make.store("left", (i,), make.op(op, v, c))
    make.store("right", (i,), make.op(op, c, v))
    kernel, arrays, _ = make.case()
    fresh = {n: a.copy() for n, a in arrays.items()}
    Runner(kernel).bind(fresh, {})()
    want = NumpyMachine().emit(op, x, np.float32(0.25))
    np.testing.assert_array_equal(fresh["left"], want)
    np.testing.assert_array_equal(fresh["right"], want)


@pytest.mark.parametrize("op", ["shift_left", "shift_right"])
@pytest.mark.parametrize("d", dtypes.INTS + dtypes.BITS, ids=str)
def test_shifts_are_numpys(op: str, d: dtypes.dtype) -> None:
    x = numbers(d)
    by = (np.arange(x.size) % (8 * d.itemsize)).astype(d.numpy)
    np.testing.assert_array_equal(result(one_op(op, [d, d], d, [x, by])), NumpyMachine().emit(op, x, by))


def test_the_upper_half_of_a_product() -> None:
    x = numbers(dtypes.uint32)
    y = np.roll(x, 5)
    want = ((x.astype(np.uint64) * y) >> np.uint64(32)).astype(np.uint32)
    np.testing.assert_array_equal(result(one_op("mul_high", [dtypes.uint32] * 2, dtypes.uint32, [x, y])), want)


# ---- contractions and sums at sizes that reach every edge


@pytest.mark.parametrize(
    "m,n,k", [(4, 8, 64), (6, 16, 1030), (7, 17, 65), (13, 33, 2), (50, 100, 37), (97, 41, 129), (5, 300, 1100), (12, 90, 261)]
)
@pytest.mark.parametrize("turned", ["nn", "nt", "tn", "tt"])
def test_products_of_every_shape_and_orientation(m: int, n: int, k: int, turned: str) -> None:
    i, j, q = var("i"), var("j"), var("k")
    for d in {"nt": (dtypes.float32, dtypes.bfloat16), "nn": (dtypes.float64, dtypes.int32)}.get(turned, (dtypes.float32,)):
        make = given.Make(f"product_{turned}_{d.name}", i=m, j=n, k=k)
        x = make.load("x", (q, i) if turned[0] == "t" else (i, q), d, wide=False)
        y = make.load("y", (j, q) if turned[1] == "t" else (q, j), d, wide=False)
        make.store("o", (i, j), make.contract(x, y, "k"))
        kernel, arrays, symbols = make.case()
        want = given.expected((kernel, arrays, symbols))
        runner = Runner(kernel)
        for split in (False, True):
            fresh = {b: a.copy() for b, a in arrays.items()}
            runner.bind(fresh, symbols, split)()
            scale = 1e-5 * np.sqrt(k) if d is not dtypes.float64 else 1e-13 * k
            np.testing.assert_allclose(fresh["o"], want["o"], rtol=scale, atol=scale)


@pytest.mark.parametrize("m,n,k", [(7, 17, 65), (13, 33, 1031), (50, 100, 36)])
@pytest.mark.parametrize("turned", ["nn", "tt"])
def test_products_of_narrow_integers_wrap_as_int32(m: int, n: int, k: int, turned: str) -> None:
    i, j, q = var("i"), var("j"), var("k")
    r = np.random.default_rng(k)
    for left, right in ((dtypes.int8, dtypes.int8), (dtypes.uint8, dtypes.int8), (dtypes.int16, dtypes.int16)):
        make = given.Make(f"product_{turned}", i=m, j=n, k=k)
        a, b = (np.iinfo(d.numpy) for d in (left, right))
        x = r.integers(a.min, a.max + 1, (k, m) if turned[0] == "t" else (m, k)).astype(left.numpy)
        y = r.integers(b.min, b.max + 1, (n, k) if turned[1] == "t" else (k, n)).astype(right.numpy)
        x.flat[:4] = a.min  # -2^15 twice by itself is 2^31
        y.flat[:4] = b.min
        u = make.load("x", (q, i) if turned[0] == "t" else (i, q), left, array=x)
        v = make.load("y", (j, q) if turned[1] == "t" else (q, j), right, array=y)
        u, v = (make.op("cast", z, d=dtypes.int32) for z in (u, v))
        make.store("o", (i, j), make.contract(u, v, "k", d=dtypes.int32))
        kernel, arrays, symbols = make.case()
        runner = Runner(kernel)
        runner.bind(arrays, symbols, True)()
        wide = (x.T if turned[0] == "t" else x).astype(np.int64) @ (y.T if turned[1] == "t" else y).astype(np.int64)
        np.testing.assert_array_equal(arrays["o"], wide.astype(np.int32))


@pytest.mark.parametrize("d", [dtypes.float32, dtypes.float64, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("n,k", [(1000, 300), (1030, 67), (2500, 64), (257, 2100), (64, 517), (3, 130)])
def test_products_with_a_vector(n: int, k: int, d: dtypes.dtype) -> None:
    """A matrix in rows along k, or along n; what is stored reads the sum and something else."""
    j, q = var("j"), var("k")
    for form in ("rows", "columns", "sum"):
        make = given.Make(f"vector_{form}", j=n, k=k)
        y = make.load("y", (j, q) if form == "rows" else (q, j), d, wide=False)
        x = make.load("x", (q,), d, wide=False)
        total = make.reduce("sum", make.op("cast", y, d=dtypes.float32) if d.is_narrow_float else y, "k")
        total = total if form == "sum" else make.contract(x, y, "k")
        make.store("o", (j,), total)
        case = make.case()
        want = given.expected(case)
        runner = Runner(case[0])
        for split in (False, True):
            fresh = {b: a.copy() for b, a in case[1].items()}
            runner.bind(fresh, case[2], split)()
            scale = 1e-13 * k if d is dtypes.float64 else 1e-5 * np.sqrt(k)
            np.testing.assert_allclose(fresh["o"], want["o"], rtol=scale, atol=scale)


@pytest.mark.parametrize("axis", ["rows", "columns", "all"])
def test_long_sums_stay_accurate(axis: str) -> None:
    """A million additions of 0.1 to one accumulator would be off by a percent."""
    i, j = var("i"), var("j")
    n = 1 << 20
    make = given.Make(f"long_{axis}", **({"i": 3, "j": n} if axis == "rows" else {"i": n, "j": 3}))
    shape = (3, n) if axis == "rows" else (n, 3)
    x = make.load("x", (i, j), array=np.full(shape, 0.1, np.float32))
    if axis == "all":
        make.store("o", (), make.reduce("sum", x, "i", "j"), shape=())
    else:
        make.store("o", (i,) if axis == "rows" else (j,), make.reduce("sum", x, "j" if axis == "rows" else "i"))
    kernel, arrays, _ = make.case()
    fresh = {b: a.copy() for b, a in arrays.items()}
    Runner(kernel).bind(fresh, {})()
    want = np.float64(np.float32(0.1)) * n * (3 if axis == "all" else 1)
    np.testing.assert_allclose(fresh["o"], want, rtol=1e-4)


def test_what_is_read_and_written_in_place_is_read_first() -> None:
    i, j = var("i"), var("j")
    make = given.Make("in_place", i=9, j=35)
    make.buffer("x", dtypes.float32, (9, 35), "inout", given.random_array((9, 35), dtypes.float32, 3))
    x = make.load("x", (i, j))
    total = make.reduce("sum", x, "j")
    y = make.op("sub", x, total)
    make.statements.append(Store("x", (i, j), y))
    make.store("square", (i, j), make.op("mul", x, x))
    make.store("total", (i,), total)
    make.store("columns", (j,), make.reduce("sum", x, "i"))
    case = make.case()
    want = given.expected(case)
    fresh = {b: a.copy() for b, a in case[1].items()}
    Runner(case[0]).bind(fresh, {})()
    agree(case[0], fresh, want)


@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize("size", [(1, 1), (5, 67), (300, 3), (64, 257)])
def test_an_update_by_a_sum_happens_where_state_and_parameter_lie(size: tuple[int, int], axis: str) -> None:
    case = given.summed_update(*size, axis)
    want = given.expected(case)
    fresh = {b: a.copy() for b, a in case[1].items()}
    Runner(case[0]).bind(fresh, {})()
    agree(case[0], fresh, want)


# ---- primitives that a kernel calls


def applied(primitive: str, kinds: tuple[dtypes.dtype, ...], times: int, n: int) -> given.Case:
    """`times` applications of a primitive to vectors and, now and then, to one number for all lanes."""
    m = given.Make(f"often_{primitive}", i=n)
    d = kinds[0]
    xs = [m.load(f"x{k}", (var("i"),), d) for k in range(len(kinds))]
    for t in range(times):
        shift = m.const(0.125 * t, d)
        operands = [m.op("add", xs[0], shift), *xs[1:]]
        if t % 4 == 3 and len(operands) > 1:
            operands[-1] = m.const(0.5 + t, d)
        m.store(f"y{t}", (var("i"),), m.op(primitive, *operands))
    m.store("one", (var("i"),), m.op(primitive, *[m.const(0.75, d)] * len(kinds)))
    return m.case()


def long_primitives() -> list[tuple[str, int]]:
    """Those that may be called, with their number of operands."""
    found = []
    for p in REGISTRY.values():
        if p.kind == "elementwise" and p.scalar is not None and p.scalar.define is not None and p.vjp is not None:
            count = len(inspect.signature(p.scalar.define).parameters) - 1
            if cpu_cost.op_cost(p.name, (dtypes.float32,) * count) >= 12:
                found.append((p.name, count))
    return sorted(found)


@pytest.mark.parametrize("primitive, count", long_primitives())
def test_a_primitive_that_is_called_gives_the_bits_of_one_that_is_written_out(
    primitive: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = dtypes.float64 if primitive in ("exp", "erf", "pow") else dtypes.float32
    kernel, arrays, symbols = applied(primitive, (d,) * count, 9, 21)
    assert cpu_cost.called_often(kernel) == {primitive}
    results = []
    for outlined in (True, False):
        if not outlined:
            monkeypatch.setattr(cpu_cost, "_OFTEN", 1 << 30)
        runner = Runner(kernel)
        assert len(re.findall(rf"define internal .*@{primitive}_float", runner.source.text)) == outlined
        got = {b: a.copy() for b, a in arrays.items()}
        runner.bind(got, symbols)()
        results.append(got)
    for b in kernel.outputs:
        assert results[0][b].tobytes() == results[1][b].tobytes(), b


def test_kernels_of_much_work_or_of_unknown_sizes_call_nothing() -> None:
    kinds = (dtypes.float32,)
    assert cpu_cost.called_often(applied("tanh", kinds, 9, 64)[0]) == {"tanh"}
    assert cpu_cost.called_often(applied("tanh", kinds, 6, 64)[0]) == set()
    assert cpu_cost.called_often(applied("tanh", kinds, 9, 1 << 20)[0]) == set()
    m = given.Make("symbolic")
    n = m.symbol("n", 50)
    m.axes["i"] = n
    x = m.load("x", (var("i"),), dtypes.float32)
    for t in range(9):
        m.store(f"y{t}", (var("i"),), m.op("tanh", m.op("add", x, m.const(float(t), dtypes.float32))))
    assert cpu_cost.called_often(m.case()[0]) == set()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 64), (40, 33), (7, 1000)])
def test_arrays_that_are_shifted_around_are_read_where_they_lie(shape: tuple[int, int]) -> None:
    """Neighbours that wrap around, and parts that are joined, in one pass; away from the edges nothing is masked."""
    x = np.random.default_rng(0).standard_normal(shape)

    def stencil(u: flame.Tensor) -> flame.Tensor:
        return u.roll(1, 0) * 2 + u.roll(-1, 0) * 3 + u.roll(1, 1) * 5 + u.roll(-3, 1) * 7 + flame.cat([u[1:], u[:1] * 2]) * 11

    compiled = flame.compile(stencil)
    for _ in range(3):
        got = compiled(flame.tensor(x))
    rolled = np.roll(x, 1, 0) * 2 + np.roll(x, -1, 0) * 3 + np.roll(x, 1, 1) * 5 + np.roll(x, -3, 1) * 7
    np.testing.assert_allclose(got.numpy(), rolled + np.concatenate([x[1:], x[:1] * 2]) * 11, rtol=1e-13, atol=1e-13)


def test_a_shift_takes_one_load_without_a_mask_away_from_the_edges() -> None:
    shift = flame.compile(lambda u: u.roll(1, 0) + u.roll(1, 1))
    for _ in range(3):
        shift(flame.ones(64, 512, dtype=flame.float64))
    loops = re.findall(r"body\d+:\n(?:(?!br ).)*?store[^\n]*\n", shift.kernels[0].llvm, re.S)
    assert any(loop.count(" = load <") == 2 and "masked" not in loop for loop in loops)


@pytest.mark.parametrize(("size", "spread"), [(64, False), (127, True), (256, True)])
def test_products_are_cut_for_threads_from_some_fifty_microseconds_on(size: int, spread: bool) -> None:
    """Two threads take half as long for 127 cubed (and NumPy's BLAS uses them); for 64 cubed, waking one takes longer."""
    x, y = (flame.randn(size, size) for _ in range(2))
    product = flame.compile(lambda a, b: a @ b, mode="replay")
    for _ in range(2):
        got = product(x, y)
    np.testing.assert_allclose(got.numpy(), x.numpy() @ y.numpy(), rtol=1e-4, atol=1e-3)
    (made,) = product.kernels
    main = cpu.load(made.kernel).phases[-1]
    assert (main.count({}) > 1) == spread
    assert (main.microseconds >= cpu.PARALLEL_MICROSECONDS) == spread
