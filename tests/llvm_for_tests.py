"""Runs `LlvmSource`s in this process, for tests of the renderer alone: serial, no cache, one workspace a call."""

from __future__ import annotations

import ctypes

import llvmlite.binding as llvm
import numpy as np

from flame.compiler.kernel import Kernel
from flame.compiler.schedule_cpu import CpuSchedule, choose_cpu
from flame.compiler.target_cpu import CpuTarget, LlvmSource
from flame.compiler.to_llvm import to_llvm

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
_ALIVE: list[object] = []


def host() -> CpuTarget:
    """This machine, as far as the tests need it."""
    found = llvm.get_host_cpu_features()
    features = frozenset(k for k, on in found.items() if on)
    lanes = 16 if "avx512f" in features else 8 if "avx2" in features else 4
    return CpuTarget(llvm.get_default_triple(), llvm.get_host_cpu_name(), features, lanes, 32 if lanes == 16 else 16)


HOST = host()


def machine(cpu: CpuTarget, codegen: int) -> llvm.TargetMachine:
    known = llvm.get_host_cpu_features()
    flags = ",".join(("+" if k in cpu.features else "-") + k for k in known)
    return llvm.Target.from_triple(cpu.triple).create_target_machine(cpu=cpu.name, features=flags, opt=codegen)


def link(source: LlvmSource, cpu: CpuTarget = HOST) -> list:
    """The phases as ctypes functions."""
    tm = machine(cpu, source.codegen)
    m = llvm.parse_assembly(source.text)
    m.verify()
    m.triple, m.data_layout = cpu.triple, str(tm.target_data)
    if source.passes:
        options = llvm.create_pipeline_tuning_options(speed_level=source.passes)
        builder = llvm.create_pass_builder(tm, options)
        builder.getModulePassManager().run(m, builder)
    engine = llvm.create_mcjit_compiler(m, tm)
    engine.finalize_object()
    _ALIVE.append((engine, m))
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    return [kind(engine.get_function_address(p.entry)) for p in source.phases]


def aligned(count: int) -> np.ndarray:
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count]


class Runner:
    """A compiled kernel: call it with arrays (outputs are written) and symbols."""

    def __init__(self, kernel: Kernel, cpu: CpuTarget = HOST, schedule: CpuSchedule | None = None):
        self.kernel = kernel
        self.source = to_llvm(kernel, schedule or choose_cpu(kernel, cpu), cpu)
        self.functions = link(self.source, cpu)

    def bind(self, arrays: dict[str, np.ndarray], symbols: dict[str, int], split: bool = False):  # type: ignore[no-untyped-def]
        """A function of no arguments that runs all phases; `split`: chunk by chunk, in reverse order."""
        pointers = [arrays[b].ctypes.data for b in self.kernel.buffers]
        size = self.source.workspace(symbols)
        workspace = aligned(size)
        workspace.fill(0xFF)
        if size:
            pointers.append(workspace.ctypes.data)
        p = (ctypes.c_void_p * max(1, len(pointers)))(*pointers)
        s = (ctypes.c_int64 * max(1, len(self.kernel.symbols)))(*(symbols[n] for n in self.kernel.symbols))
        work = [(f, self.source.chunks(i, symbols)) for i, f in enumerate(self.functions)]

        def call(keep: object = (workspace, arrays)) -> None:
            for f, chunks in work:
                if split:
                    for c in reversed(range(chunks)):
                        f(p, s, c, c + 1)
                else:
                    f(p, s, 0, chunks)

        return call
