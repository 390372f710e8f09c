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


GUARD = 128  #: bytes on either side of what a kernel may write
UNTOUCHED = 0xA5


class Guarded:
    """Memory for an array, as it is aligned, with bytes around it that nobody may write."""

    def __init__(self, size: int, address: int = 0):
        raw = np.full(size + 2 * GUARD + 64, UNTOUCHED, np.uint8)
        start = GUARD + (address - raw.ctypes.data - GUARD) % 64
        self.raw, self.inside = raw, slice(start, start + size)
        self.bytes = raw[self.inside]

    def check(self, what: str) -> None:
        around = (self.raw[: self.inside.start], self.raw[self.inside.stop :])
        assert all(bool((x == UNTOUCHED).all()) for x in around), f"{what}: bytes outside of it were written"


class Runner:
    """A compiled kernel: call it with arrays (outputs are written, and nothing around them) and symbols."""

    def __init__(self, kernel: Kernel, cpu: CpuTarget = HOST, schedule: CpuSchedule | None = None):
        self.kernel = kernel
        self.source = to_llvm(kernel, schedule or choose_cpu(kernel, cpu), cpu)
        self.functions = link(self.source, cpu)

    def bind(self, arrays: dict[str, np.ndarray], symbols: dict[str, int], split: bool = False):  # type: ignore[no-untyped-def]
        """A function of no arguments that runs all phases; `split`: chunk by chunk, in reverse order."""
        given = {b: arrays[b] for b in self.kernel.buffers}
        assert all(a.flags.c_contiguous for a in given.values())
        memory = {b: Guarded(a.nbytes, a.ctypes.data) for b, a in given.items()}
        memory["workspace"] = workspace = Guarded(self.source.workspace(symbols))
        workspace.bytes.fill(0xFF)
        pointers = [memory[b].bytes.ctypes.data for b in given]
        if workspace.bytes.size:
            pointers.append(workspace.bytes.ctypes.data)
        p = (ctypes.c_void_p * max(1, len(pointers)))(*pointers)
        s = (ctypes.c_int64 * max(1, len(self.kernel.symbols)))(*(symbols[n] for n in self.kernel.symbols))
        work = [(f, self.source.chunks(i, symbols)) for i, f in enumerate(self.functions)]

        def call() -> None:
            for b, a in given.items():
                memory[b].bytes[:] = a.reshape(-1).view(np.uint8)
            for f, chunks in work:
                if split:
                    for c in reversed(range(chunks)):
                        f(p, s, c, c + 1)
                else:
                    f(p, s, 0, chunks)
            for b, m in memory.items():
                m.check(f"{self.kernel.name}: {b}")
            for b in self.kernel.outputs:
                given[b].reshape(-1).view(np.uint8)[:] = memory[b].bytes

        return call
