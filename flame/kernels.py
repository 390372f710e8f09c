"""What was made of a function, to be held and read: `compiled.kernels`, `compiled.graphs`, `compiled.gpu_kernels(arch)`.

A `KernelHandle` is one kernel, by its meaning: kernels that differ in names alone are one handle. It renders and compiles at
need, for this machine's CPU and for GPUs that need not be there. `Inventory` finds the handles of a capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flame.capture.compiled import Compiled
from flame.capture.trace import Capture
from flame.compiler.graph import Graph
from flame.compiler.kernel import Kernel, bytes_moved, digest
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import Decision, KernelStep, Program
from flame.compiler.schedule import choose_gpu
from flame.compiler.schedule_cpu import choose_cpu
from flame.compiler.target import DEFAULT_GPU, Target, gpu
from flame.compiler.target_cpu import LlvmSource
from flame.compiler.to_llvm import to_llvm
from flame.compiler.to_triton import TritonSource, to_triton
from flame.errors import CompileError, Refused
from flame.runtime import cpu, llvm_jit
from flame.runtime.triton_tools import Binary, compile_triton

#: what a handle's kernel was fused for where that is this machine, whatever it is called
HOST = Target("cpu", "host")


class KernelHandle:
    """One kernel. `kernel` is its IR; `notes` are what it is of the user's program ("softmax model.py:12").

    `target` is the machine that it was fused for. `uses` counts the steps that run it; `symbols` are the values of its run-time
    numbers in the first of them. `runs_by` is "native", "library" or "interpreted" for a kernel that a compiled function runs,
    and "" for one that is only made to be read.
    """

    def __init__(self, step: KernelStep, target: Target, runs_by: str = ""):
        self.kernel: Kernel = step.kernel
        self.target = target
        self.symbols = dict(step.symbols)
        self.notes: tuple[str, ...] = step.notes
        self.uses = 1
        self.runs_by = runs_by
        self._binaries: dict[str, Binary] = {}

    def used_again(self, step: KernelStep) -> None:
        """Count another step that runs the same kernel."""
        self.uses += 1
        self.notes = tuple(dict.fromkeys((*self.notes, *step.notes)))

    @property
    def name(self) -> str:
        return self.kernel.name

    @property
    def digest(self) -> str:
        """A hash of what it computes, names apart."""
        return digest(self.kernel)

    @property
    def bytes_moved(self) -> int:
        """Bytes that one run reads and writes, if caches were perfect."""
        return bytes_moved(self.kernel, self.symbols)

    def triton_source(self, arch: str = "") -> TritonSource:
        """The kernel in Triton with all that compiling needs, scheduled for a GPU (by default the one that it was fused for,
        or an H100). Raises CompileError where the renderer refuses it."""
        target = self.target if not arch and self.target.is_gpu else gpu(arch or DEFAULT_GPU)
        try:
            return to_triton(self.kernel, choose_gpu(self.kernel, target, self.symbols))
        except Refused as reason:
            raise CompileError(f"{self.name} has no form in Triton: {reason}") from reason

    @property
    def triton(self) -> str:
        """Its Triton source."""
        return self.triton_source().text

    def _llvm_source(self) -> LlvmSource:
        llvm_jit.require()
        try:
            return to_llvm(self.kernel, choose_cpu(self.kernel, cpu.host()), cpu.host())
        except Refused as reason:
            raise CompileError(f"{self.name} has no form in LLVM IR: {reason}") from reason

    @property
    def llvm(self) -> str:
        """Its LLVM IR, as compiled for this machine, names apart. Raises MissingTargetError where llvmlite is missing."""
        return self._llvm_source().text

    @property
    def asm(self) -> str:
        """This machine's code for it, as text. Raises MissingTargetError where llvmlite is not installed."""
        s = self._llvm_source()
        return llvm_jit.assembly(s.text, cpu.host(), passes=s.passes, codegen=s.codegen, what=self.name)

    def binary(self, arch: str = DEFAULT_GPU) -> Binary:
        """Compiled for a GPU that need not be there, with its registers and shared memory. Raises MissingTargetError where
        Triton is not installed, CompileError where it refuses."""
        found = self._binaries.get(arch)
        if found is None:
            found = self._binaries[arch] = compile_triton(self.triton_source(arch), arch)
        return found

    def ptx(self, arch: str = DEFAULT_GPU) -> str:
        """Its assembly for a GPU: PTX, or AMD's for "gfx..."."""
        return self.binary(arch).asm

    def cubin(self, arch: str = DEFAULT_GPU) -> bytes:
        """Its machine code for a GPU, as a driver loads it."""
        return self.binary(arch).code

    def __str__(self) -> str:
        return str(self.kernel)

    def __repr__(self) -> str:
        return f"<kernel {self.name}: {', '.join(self.notes) or 'no known line'}>"


class Inventory:
    """What was made of one capture. Handles stay the same objects from look to look."""

    def __init__(self, capture: Capture):
        self._capture = capture
        self._handles: dict[str, KernelHandle] = {}
        self._seen: dict[int, Any] = {}  #: programs by id, which are kept so that ids stay theirs

    def compiled(self) -> Iterator[Compiled]:
        """Forward and backward of every segment, each once, in the order in which they were compiled."""
        found: dict[int, Compiled] = {}
        for plan in list(self._capture.plans):
            for c in (plan.forward, plan.backward):
                if c is not None:
                    found.setdefault(id(c), c)
        return iter(found.values())

    def graphs(self) -> list[Graph]:
        return [c.graph for c in self.compiled()]

    def kernels(self) -> list[KernelHandle]:
        """Kernels that differ in more than names, in the order of their first use."""
        for c in self.compiled():
            if c.program is not None and id(c.program) not in self._seen:
                self._seen[id(c.program)] = c.program
                collect(c.program, c.gpu or HOST, self._handles, _runs(c))
        return list(self._handles.values())

    def gpu_kernels(self, arch: str = DEFAULT_GPU) -> list[KernelHandle]:
        """The captured graphs fused anew for a GPU."""
        found: dict[str, KernelHandle] = {}
        target = gpu(arch)
        for graph in self.graphs():
            collect(compile_graph(graph, target), target, found)
        return list(found.values())

    def decisions(self) -> list[Decision]:
        return [d for c in self.compiled() for d in c.decisions]


def _runs(c: Compiled) -> Callable[[int, KernelStep], str]:
    """By what a compiled graph runs its steps."""
    runs = () if c.executable is None else c.executable.runs
    return lambda i, step: runs[i] if i < len(runs) else "interpreted"


def collect(
    program: Program,
    target: Target,
    into: dict[str, KernelHandle],
    runs_by: Callable[[int, KernelStep], str] = lambda i, step: "",
) -> None:
    """Add a program's kernels to handles by digest."""
    for i, step in enumerate(program.steps):
        if isinstance(step, KernelStep):
            key = digest(step.kernel)
            if key in into:
                into[key].used_again(step)
            else:
                into[key] = KernelHandle(step, target, runs_by(i, step))
