"""What makes a program ready: kernels compiled once, side by side, from the disk; what is refused, and what is said then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels_for_tests import F32, Make, cases, i
from programs_for_tests import add_one, chain, program_of

import flame
from flame.capture import compiled as capture_compiled
from flame.compiler.graph import Graph
from flame.compiler.index_math import evaluate, ex
from flame.compiler.kernel import Kernel
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep, Program
from flame.errors import CompileError, MissingTargetError, Refused, VerificationError
from flame.knobs import knobs
from flame.runtime import cache, cpu, entry, executable, llvm_jit, threads
from flame.runtime.cache import DiskCache
from flame.runtime.executable import Executable


def test_kernels_that_differ_in_names_alone_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = cpu.to_llvm
    monkeypatch.setattr(cpu, "to_llvm", lambda k, s, c: made.append(k.name) or real(k, s, c))
    monkeypatch.setattr(cache, "_shared", DiskCache(None))
    e = Executable(chain(12_347, 3))
    assert len(made) == 1 and len({id(k) for k in e.kernels.values()}) == 1
    Executable(chain(12_347, 1))
    assert len(made) == 1


def test_a_kernel_comes_from_the_disk_in_another_process(tmp_path: Path) -> None:
    script = """
import sys, json
sys.path.insert(0, TESTS)
import numpy as np
from kernels_for_tests import cases
from programs_for_tests import program_of
from flame.runtime import cpu, llvm_jit
from flame.runtime.executable import Executable
cpu._compiler_fingerprint = lambda: "one compiler"  # its files may be edited while this runs
compiled = []
real = llvm_jit.compile_object
llvm_jit.compile_object = lambda *a, **k: compiled.append(k.get("what")) or real(*a, **k)
results = []
for name in NAMES:
    program, arrays = program_of(cases()[name])
    results += [float(np.nan_to_num(y.astype(np.float64)).sum()) for y in Executable(program)(arrays)]
print(json.dumps([len(compiled), results]))
"""
    names = ["softmax_float32_77", "pointwise_symbolic", "softmax_symbolic", "matmul_symbolic", "column_sum_float32", "casts"]
    script = script.replace("TESTS", repr(str(Path(__file__).parent))).replace("NAMES", repr(names))
    environment = {**os.environ, "FLAME_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "random"}
    answers = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=100, env=environment)
        assert done.returncode == 0, done.stderr.decode()
        answers.append(json.loads(done.stdout))
    assert answers[0][0] >= len(names) and answers[1][0] == 0, "the second process compiled something"
    assert answers[0][1] == answers[1][1]


def test_a_damaged_entry_is_compiled_anew(tmp_path: Path) -> None:
    store = DiskCache(tmp_path)
    kernel = add_one(4321)
    for damage in (lambda b: b[:50], lambda b: b[:-3] + b"abc", lambda b: b""):
        cpu._loaded.clear()
        cpu.load(kernel, store=store)
        (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
        path.write_bytes(damage(path.read_bytes()))
        cpu._loaded.clear()
        assert cpu.load(kernel, store=store).phases
    # intact for the store, but not what this version writes
    name = path.parent.name + path.name
    for payload in (b"", b"{}\nobject", b"[1]\n", b"nonsense", b'{"phases": [["f", "__import__(1)", 1]], "workspace": "0"}\n'):
        store.put(name, payload)
        cpu._loaded.clear()
        assert cpu.load(kernel, store=store).phases


@pytest.mark.parametrize("beyond", ["load", "store"])
def test_no_native_code_is_made_of_a_kernel_that_may_leave_its_buffers(tmp_path: Path, beyond: str) -> None:
    m = Make("beyond", i=8)
    m.store("y", (i,), m.load("x", (i,), F32))
    good = m.case()[0]
    name = "x" if beyond == "load" else "y"
    buffers = good.buffers | {name: replace(good.buffers[name], shape=(ex(7),))}
    bad = Kernel("beyond", buffers, good.axes, good.symbols, good.statements)
    store = DiskCache(tmp_path)
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"may leave \[0, 7\)(.|\n)*before native code"):
            cpu.load(bad, store=store)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert cpu.load(good, store=store).phases


def test_a_graph_whose_kernel_is_wrong_runs_op_by_op_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def one_more(graph: Graph, *args: Any, **kwargs: Any) -> Program:
        program = compile_graph(graph, *args, **kwargs)
        (step,) = program.steps
        assert isinstance(step, KernelStep)
        k = step.kernel
        axes = {a: e + 1 for a, e in k.axes.items()}
        wrong = Kernel(k.name, k.buffers, axes, k.symbols, k.statements, k.values)
        return replace(program, steps=(replace(step, kernel=wrong),))

    monkeypatch.setattr(capture_compiled, "compile_graph", one_more)
    monkeypatch.setattr(knobs, "verify", False)
    f = flame.compile(lambda x: x * 2 + 1)
    x = flame.arange(1003.0)
    for _ in range(3):
        assert f(x).numpy().tolist() == [2 * v + 1 for v in range(1003)]
    assert any("may leave" in reason for _, reason in f.stats.fallbacks)
    assert "runs op by op" in capsys.readouterr().err


def test_kernels_of_a_program_are_compiled_side_by_side_and_then_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[str] = []
    batches: list[list[str]] = []
    one, many = llvm_jit.compile_object, llvm_jit.compile_objects
    monkeypatch.setattr(llvm_jit, "compile_object", lambda *a, **k: alone.append(k["what"]) or one(*a, **k))

    def batch(jobs: Iterable[llvm_jit.Job], *a: Any) -> list[Any]:
        all_jobs = [*jobs]
        batches.append([j.what for j in all_jobs])
        return many(all_jobs, *a)

    monkeypatch.setattr(llvm_jit, "compile_objects", batch)
    monkeypatch.setattr(cache, "_shared", DiskCache(None))
    monkeypatch.setattr(threads, "get_num_threads", lambda: 3)
    kernels = [add_one(n) for n in (601, 602, 603, 604, 601)]
    wrong = add_one(605)
    wrong = Kernel("wrong", wrong.buffers, {"i": ex(606)}, {}, wrong.statements)
    cpu.prepare([*kernels, wrong])
    assert [len(b) for b in batches] == [4]  # equal kernels once, and not what is wrong
    loaded = [cpu.load(k) for k in kernels]
    assert alone == [] and loaded[0] is loaded[-1] and not any(k.from_disk for k in loaded)
    cpu.prepare(kernels)
    assert [len(b) for b in batches] == [4, 0]
    with pytest.raises(VerificationError, match="may leave"):
        cpu.load(wrong)
    for n, k in zip((601, 602), loaded, strict=False):
        assert (Executable(chain(n, 0))([np.zeros(n, np.float32)])[0] == 1).all() and k.phases


def test_the_compilers_own_sources_are_part_of_a_kernels_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskCache(tmp_path)
    for fingerprint, hits in (("one", 0), ("one", 1), ("two", 1)):
        monkeypatch.setattr(cpu, "_compiler_fingerprint", lambda f=fingerprint: f)
        cpu._loaded.clear()
        cpu.load(add_one(777), store=store)
        assert store.hits == hits


@pytest.mark.parametrize("text", ["0", "-3", "n + 1", "n // 4 + 7 * m", "(n * m + 3) // 8 % 5", "-(n // 2) - m", "n * n"])
def test_expressions_come_back_from_text(text: str) -> None:
    e = cpu._expression(text)
    again = cpu._expression(cpu.show(e))
    assert again == e
    for n, m in ((0, 1), (5, 3), (100, 7)):
        assert int(evaluate(e, {"n": n, "m": m})) == eval(text, {"n": n, "m": m})


def test_a_refused_kernel_is_interpreted_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*a: object) -> None:
        raise Refused("no such loop")

    monkeypatch.setattr(cpu, "to_llvm", refuse)
    monkeypatch.setattr(cache, "_shared", DiskCache(None))
    e = Executable(chain(9_871, 1))
    assert ["no such loop" in d.reason and d.verdict == "interpreted" for d in e.decisions] == [True, True]
    assert (e([np.zeros(9_871, np.float32)])[0] == 2).all()


def test_a_kernel_that_cannot_be_compiled_is_named_with_the_users_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        text, phases, workspace_bytes, externals, passes, codegen = "nonsense", (), 0, (), 0, 2

    monkeypatch.setattr(cpu, "to_llvm", lambda *a: Broken())
    monkeypatch.setattr(cache, "_shared", DiskCache(None))
    m = Make("strange", i=1237)
    m.store("y", (i,), m.op("neg", m.load("x", (i,))))
    program, _ = program_of(m.case())
    with pytest.raises(CompileError, match=r"(?s)kernel strange: LLVM refuses.*model\.py:7"):
        Executable(program)


def test_generated_code_can_be_read() -> None:
    e = Executable(chain(64, 0))
    (kernel,) = e.kernels.values()
    assert "define void" in kernel.source.text and "ret" in kernel.asm


def test_without_llvmlite_the_interpreting_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm_jit, "llvm", None)
    with pytest.raises(MissingTargetError, match="llvmlite"):
        Executable(chain(6, 1))
    (y,) = Executable(chain(6, 1), backend="interpret")([np.zeros(6, np.float32)])
    assert (y == 2).all()


def test_where_arrays_cannot_be_read_natively_python_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as m:
        m.setattr(entry, "arrays_are_readable", lambda: False)
        slow = entry._link()
    assert slow.enter is None
    monkeypatch.setattr(executable, "entry", lambda: slow)
    for program, arrays in (program_of(cases()["softmax_float32_77"]), (chain(40_000, 2), [np.zeros(40_000, np.float32)])):
        e = Executable(program)
        got = e(arrays)
        monkeypatch.setattr(executable, "entry", lambda: entry.entry())
        for a, b in zip(got, Executable(program)(arrays), strict=True):
            np.testing.assert_array_equal(a, b)
        monkeypatch.setattr(executable, "entry", lambda: slow)
    with pytest.raises(RuntimeError, match="input 0 must be"):
        e([np.zeros(3)])


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of llvm, interpret"):
        Executable(chain(3, 0), backend="cuda")  # type: ignore[arg-type]
