"""Register tiles of contractions, as machine code for processors that need not be there: multiply-adds and no spills in the inner
loop, dot instructions of bfloat16 where there are any (their arithmetic written out, to run it here); where constants stand; and
that all of the runtime's code is made for AArch64, on Linux and macOS."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import kernels_for_tests as given
import numpy as np
import pytest
from llvm_for_tests import HOST, Runner, link

from flame import dtypes
from flame.compiler.index_math import var
from flame.compiler.kernel import Kernel
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget
from flame.compiler.to_llvm import to_llvm
from flame.primitive import Spec, registered
from flame.runtime import entry, llvm_jit, threads
from flame.runtime.routines import routine

i, j, k = map(var, "ijk")
AVX512 = frozenset({"avx2", "avx512f", "avx512vl", "avx512bw", "avx512dq", "fma", "f16c"})
LINUX, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
TARGETS = {
    "avx2": CpuTarget(LINUX, "haswell", frozenset({"avx2", "fma", "f16c"}), 8, 16),
    "avx512": CpuTarget(LINUX, "skylake-avx512", AVX512, 16, 32),
    "avx512_bf16": CpuTarget(LINUX, "cooperlake", AVX512 | {"avx512bf16"}, 16, 32),
    "neon": CpuTarget(ARM, "neoverse-n1", frozenset({"neon"}), 4, 32),
    "neon_bf16": CpuTarget(ARM, "neoverse-v1", frozenset({"neon", "bf16"}), 4, 32),
    "apple_m1": CpuTarget("arm64-apple-macosx", "apple-m1", frozenset({"neon"}), 4, 32),
    "apple_m2": CpuTarget("arm64-apple-macosx", "apple-m2", frozenset({"neon", "bf16"}), 4, 32),
}
KINDS = (dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.float16, dtypes.int8)
SIZES = ((96, 192, 256), (97, 50, 64), (13, 40, 300), (512, 512, 2048))


@pytest.fixture(autouse=True)
def every_target() -> None:
    llvm_jit.require()
    llvm_jit.llvm.initialize_all_targets()
    llvm_jit.llvm.initialize_all_asmprinters()


def product(m: int, n: int, depth: int | None, turned: str, d: dtypes.dtype, out: dtypes.dtype, epilogue: bool) -> given.Case:
    make = given.Make(f"matmul_{turned}_{d.name}_{m}x{n}x{depth}", i=m, j=n, k=depth or 1)
    if depth is None:
        make.axes["k"] = make.symbol("depth", 61)
    x = make.load("x", (i, k) if turned[0] == "n" else (k, i), d, wide=False)
    y = make.load("y", (k, j) if turned[1] == "n" else (j, k), d, wide=False)
    r = make.contract(x, y, "k", d=dtypes.int32 if d is dtypes.int8 else None)
    if epilogue:
        r = make.op("add", r, make.load("bias", (j,), make.kinds[r]))
    make.store("o", (i, j), r, d=out)
    return make.case()


def tile_loop(kernel: Kernel, target: CpuTarget) -> tuple[list[str], str]:
    """The multiplying instructions of a tile's inner loop, and its text."""
    source = to_llvm(kernel, CpuSchedule(), target)
    text = llvm_jit.assembly(source.text, target, codegen=source.codegen)
    found = re.search(r"^_?\w+_tile:.*?(?=^_?matmul\w+:|\Z)", text, re.S | re.M)
    assert found is not None, source.notes
    multiplies = re.compile(r"\b(vfmadd\w+|fmla|vdpbf16ps|bfdot|vpmaddwd|vpdpwssd|mla|vpmulld|vmul[ps][sd]|fmul)\b")
    blocks = re.split(r"^\.?L\w+:|^; %bb", found[0], flags=re.M)
    hot = max(blocks, key=lambda b: len(multiplies.findall(b)))
    return multiplies.findall(hot), hot


def expected(name: str, d: dtypes.dtype) -> str:
    if d is dtypes.int8:
        return (
            "mla" if "avx" not in name else "vpdpwssd" if name == "avx512_bf16" else "vpmaddwd"
        )  # (LLVM's of multiply and add)
    if d is dtypes.bfloat16 and (name.endswith("bf16") or name == "apple_m2"):
        return "vdpbf16ps" if "avx" in name else "bfdot"
    return "fmla" if "avx" not in name else "vfmadd231pd" if d is dtypes.float64 else "vfmadd231ps"


@pytest.mark.parametrize("d", KINDS, ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_tiles_multiply_and_add_in_one_instruction_and_spill_nothing(name: str, d: dtypes.dtype) -> None:
    for m, n, depth in SIZES if d is not dtypes.float64 else SIZES[:2]:
        for turned in ("nn", "tt") if m == 97 else ("nn",):
            kernel = product(m, n, depth, turned, d, dtypes.int32 if d is dtypes.int8 else d, True)[0]
            found, loop = tile_loop(kernel, TARGETS[name])
            assert len(found) >= 8 and set(found) == {expected(name, d)}, f"{name} {kernel.name}\n{loop}"
            spilled = re.search(r".*(\(%rsp|\[sp).*", loop)
            assert spilled is None, f"{name} {kernel.name}: {spilled and spilled[0]}\n{loop}"


#: what the instructions compute, with one rounding a product: x86 the upper of two first
WRITTEN_OUT = """
define internal <{n} x float> @written_out(<{n} x float> %z, <{m} x bfloat> %a, <{m} x bfloat> %b) {{
  %x = bitcast <{m} x bfloat> %a to <{n} x i32>
  %y = bitcast <{m} x bfloat> %b to <{n} x i32>
  %xu = and <{n} x i32> %x, splat (i32 -65536)
  %yu = and <{n} x i32> %y, splat (i32 -65536)
  %xl = shl <{n} x i32> %x, splat (i32 16)
  %yl = shl <{n} x i32> %y, splat (i32 16)
  %x1 = bitcast <{n} x i32> %xu to <{n} x float>
  %y1 = bitcast <{n} x i32> %yu to <{n} x float>
  %x0 = bitcast <{n} x i32> %xl to <{n} x float>
  %y0 = bitcast <{n} x i32> %yl to <{n} x float>
  %z1 = call <{n} x float> @llvm.fma.v{n}f32(<{n} x float> %x1, <{n} x float> %y1, <{n} x float> %z)
  %z0 = call <{n} x float> @llvm.fma.v{n}f32(<{n} x float> %x0, <{n} x float> %y0, <{n} x float> %z1)
  ret <{n} x float> %z0
}}
declare <{n} x float> @llvm.fma.v{n}f32(<{n} x float>, <{n} x float>, <{n} x float>)
"""


class WrittenOut(Runner):
    """A kernel for a processor with dot instructions of bfloat16, run on this one."""

    def __init__(self, kernel: Kernel, target: CpuTarget):
        self.kernel = kernel
        source = to_llvm(kernel, CpuSchedule(), target)
        name = "llvm.x86.avx512bf16.dpbf16ps.512" if target.is_x86 else "llvm.aarch64.neon.bfdot.v4f32.v8bf16"
        assert f"@{name}(" in source.text, source.notes
        lines = [t for t in source.text.split("\n") if not (t.startswith("declare") and ("llvm.fma." in t or name in t))]
        others = {t for t in source.text.split("\n") if t.startswith("declare") and "llvm.fma." in t}
        n = target.lanes_f32
        text = "\n".join(lines).replace(f"@{name}(", "@written_out(") + WRITTEN_OUT.format(n=n, m=2 * n)
        text += "\n".join(t for t in others if f"v{n}f32" not in t)
        self.source = replace(source, text=text)
        self.functions = link(self.source, HOST)


@pytest.mark.skipif(not HOST.is_x86, reason="the vectors of this test are split by LLVM for x86")
@pytest.mark.parametrize("name", ["avx512_bf16", "neon_bf16"])
@pytest.mark.parametrize("turned", ["nn", "nt", "tn", "tt"])
def test_bfloat16_in_pairs_computes_what_the_interpreter_does(name: str, turned: str) -> None:
    """Odd and even depths, one of several blocks, one that is known at run time; edges in both directions."""
    for m, n, depth in [(33, 45, 29), (24, 64, 30), (23, 40, 1033), (20, 48, None)]:
        case = product(m, n, depth, turned, dtypes.bfloat16, dtypes.float32, True)
        kernel, arrays, symbols = case
        runner, want = WrittenOut(kernel, TARGETS[name]), given.expected(case)["o"]
        for split in (False, True):
            fresh = {b: a.copy() for b, a in arrays.items()}
            runner.bind(fresh, symbols, split)()
            np.testing.assert_allclose(fresh["o"], want, rtol=3e-5, atol=3e-5 * np.sqrt(depth or 61))


def test_what_was_computed_in_float32_is_not_taken_in_pairs() -> None:
    """Factors are rounded where the program says so, and nowhere else."""
    make = given.Make("scaled", i=32, j=64, k=48)
    x = make.op("mul", make.load("x", (i, k), dtypes.bfloat16), make.load("s", (k,)))
    make.store("o", (i, j), make.contract(x, make.load("y", (k, j), dtypes.bfloat16), "k"))
    text = to_llvm(make.case()[0], CpuSchedule(), TARGETS["avx512_bf16"]).text
    assert "llvm.fma.v16f32" in text and "dpbf16ps" not in text


# ---- machines that are not there

ELSEWHERE = [n for n in TARGETS if "neon" in n or "apple" in n]


def routines(target: CpuTarget) -> list[Any]:
    """One of each of the runtime's routines, and both directions where there are two."""

    def of(name: str, *shapes: tuple[int, ...], **params: Any) -> Any:
        kinds = [dtypes.int64 if s == (5,) else dtypes.float32 for s in shapes]
        return routine(registered(name), [Spec(s, d) for s, d in zip(shapes, kinds, strict=True)], params, target)

    q, rows, state = (2, 3, 16, 8), (7, 3, 16), (3, 16)
    window = {"kernel": (3, 3), "step": (2, 2), "dilation": (1, 1), "size": (9, 9), "lo": (1, 1)}
    put = routine(registered("window_put"), [Spec((2, 5, 5), dtypes.float32), Spec((2, 5, 5), dtypes.int64)], window, target)
    found = [put, of("index_add", (9, 4), (5,), (5, 4), dim=0)]
    found += [of("attention", q, q, q, causal=c, scale=0.5) for c in (False, True)]
    found.append(of("attention_grad", q, q, q, q, (2, 3, 16), q, causal=True, scale=0.5))
    for mode, gates in (("LSTM", 4), ("GRU", 3), ("RNN_TANH", 1)):
        given_ = [(7, 3, gates * 16), (gates * 16, 16), state, *([state] if mode == "LSTM" else [])]
        found.append(of("recurrent", *given_, mode=mode, reverse=False))
        kept = {"LSTM": 7, "GRU": 5}.get(mode, 4)
        given_ = [(gates * 16, 16), state, rows, (7, 3, gates * 16), rows, rows, rows][:kept]
        found.append(of("recurrent_grad", *given_, mode=mode, reverse=True))
    return found


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("op", "many"), [("exp", False), ("erf", True)])
def test_instructions_of_avx2_read_many_constants_where_they_stand(name: str, op: str, many: bool) -> None:
    """Few are in registers before the loop; AVX-512 repeats a number as it reads it, and NEON has room."""
    make = given.Make(f"{op}_constants", i=64, j=256)
    make.store("o", (i, j), make.op(op, make.load("x", (i, j))))
    source = to_llvm(make.case()[0], CpuSchedule(), TARGETS[name])
    text = llvm_jit.assembly(source.text, TARGETS[name], codegen=source.codegen)
    read = re.findall(r"vfmadd\d+ps\s+\.Lfloat_\w+\(%rip\)", text)
    if many and name == "avx2":
        assert len(read) > 15 and len(re.findall(r"vbroadcastss", text)) < 5
    else:
        assert not read and "private global" not in source.text


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_runtimes_own_code_is_made_for_other_machines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[name]
    apple = "apple" in name
    monkeypatch.setattr("platform.machine", lambda: "arm64" if apple else "aarch64")
    monkeypatch.setattr("sys.platform", "darwin" if apple else "linux")
    assert threads.waiting_kind() == ("pthread" if apple else "futex")
    pool = threads.pool_text(threads.waiting_kind())
    assert "llvm.aarch64.hint" in pool and ("@syscall" in pool) is not apple
    texts = {"pool": pool, "entry": entry.text()}
    made = [r for r in routines(target) if r is not None]
    assert len(made) >= 10
    texts |= {f"{n} {r.called}": r.source.text for n, r in enumerate(made)}
    for what, text in texts.items():
        assert "llvm.x86" not in text, what
        obj = llvm_jit.compile_object(text, target, codegen=1, what=what)
        assert obj[:4] == (b"\xcf\xfa\xed\xfe" if apple else b"\x7fELF"), what


@pytest.mark.parametrize("name", ["neon", "apple_m1"])
def test_a_kernel_of_every_class_is_made_for_other_machines(name: str) -> None:
    target = TARGETS[name]
    classes = {n.split("_")[0]: case for n, case in given.cases().items()}  # (the last of each)
    assert len(classes) > 25
    for case in classes.values():
        source = to_llvm(case[0], CpuSchedule(), target)
        assert "llvm.x86" not in source.text
        assert llvm_jit.compile_object(source.text, target, passes=source.passes, codegen=source.codegen, what=case[0].name)
