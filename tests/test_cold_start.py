"""What a process's first compiled call does not do twice, or does at once with something else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn.functional as F
from flame.runtime import cache, cpu, llvm_jit, threads
from flame.runtime.cache import DiskCache


def test_source_files_are_read_again_only_where_one_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, read = tmp_path / "flame" / "compiler", Path.read_bytes
    compiler.mkdir(parents=True)
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "flame" / "runtime" / "cache.py"))
    monkeypatch.setattr(cache, "_shared", DiskCache(tmp_path / "store"))
    monkeypatch.setattr(cpu, "_RESTING_SECONDS", -1.0)
    reads: list[str] = []

    def reading(p: Path) -> bytes:
        reads.append(p.name)
        return read(p)

    monkeypatch.setattr(Path, "read_bytes", reading)
    assert cpu.source_fingerprint() != cpu.source_fingerprint()  # there are no files
    for name in ("one.py", "two.py", "no_source.txt"):
        (compiler / name).write_text("x = 1\n")
    first = cpu.source_fingerprint()
    assert reads == ["one.py", "two.py"] and cpu.source_fingerprint() == first and len(reads) == 2
    (compiler / "two.py").write_text("x = 22\n")
    second = cpu.source_fingerprint()
    assert second not in (first, "") and len(reads) == 4
    monkeypatch.setattr(cpu, "_RESTING_SECONDS", 3600.0)  # what was written just now may be written again
    (compiler / "two.py").write_text("x = 333\n")
    assert cpu.source_fingerprint() == cpu.source_fingerprint() and len(reads) == 8


def test_routines_are_compiled_while_their_program_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    by: dict[str, str] = {}
    one = llvm_jit._attempt

    def attempt(job: llvm_jit.Job, *a: Any, **k: Any) -> Any:
        by[job.what] = threading.current_thread().name
        return one(job, *a, **k)

    monkeypatch.setattr(llvm_jit, "_attempt", attempt)
    monkeypatch.setattr(cache, "_shared", DiskCache(None))
    monkeypatch.setattr(threads, "get_num_threads", lambda: 2)
    q = flame.randn(2, 3, 7, 5)
    f = flame.compile(lambda q: F.scaled_dot_product_attention(q, q, q, scale=0.3751) * 2)
    expected = F.scaled_dot_product_attention(q, q, q, scale=0.3751) * 2
    for _ in range(3):
        got = f(q)
    assert by["attention"] == "flame-ahead" and len(by) > 1
    assert np.allclose(got.numpy(), expected.numpy(), atol=1e-6)


def test_llvm_is_left_as_it_was_by_those_who_leave_a_pass_out() -> None:
    text = """
    define void @f(ptr %a, i64 %n) {
    entry:
      br label %head
    head:
      %i = phi i64 [0, %entry], [%next, %head]
      %k = mul nsw i64 %i, 48
      %p = getelementptr float, ptr %a, i64 %k
      store float 1.0, ptr %p
      %next = add nsw i64 %i, 1
      %more = icmp slt i64 %next, %n
      br i1 %more, label %head, label %after
    after:
      ret void
    }"""
    target = cpu.host()

    def plainly() -> bytes:
        with llvm_jit._lock, llvm_jit._prepared(text, target, 0, 1, "f") as (machine, module):
            return machine.emit_object(module)

    before = plainly()
    short = llvm_jit.compile_object(text, target, codegen=1)
    assert plainly() == before == llvm_jit.compile_objects([llvm_jit.Job(text, 0, 2, "f")] * 2, target, 1)[0]
    assert llvm_jit.compile_objects([llvm_jit.Job(text, 0, 1, "f")] * 3, target, 2) == [short] * 3 and plainly() == before
    if target.is_x86 and llvm_jit.llvm.llvm_version_info[0] == llvm_jit._TRIED_LLVM:
        assert short != before
