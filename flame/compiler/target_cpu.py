"""What is known of a CPU when code is made for it, and what is handed over once it is made.

`CpuTarget` is plain data: the runtime fills it from the host, tests fill it by hand (code for a CPU that is not there can be
made and read). `LlvmSource` is what `to_llvm` answers with and what the runtime compiles and calls:

    source  ::= text phase+ parameter*            phase ::= (entry, chunks)
    entry   ::= void @entry(ptr bufs, ptr syms, i64 begin, i64 end)

`bufs` is an array of pointers, one a buffer in the kernel's order and then, if `workspace_bytes` is not 0, one to that much
scratch memory, aligned to 64 bytes, which all chunks and phases of one invocation share and whose contents are undefined
before it. `syms` is an array of i64, the symbols' values in the kernel's order. A call runs the chunks [begin, end) of one
phase. Chunks of a phase are independent: they may run in any order, on any threads. Phases run in order, each after all
chunks of the one before. The number of chunks does not depend on the number of threads, so results do not either.
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.index_math import E, evaluate, ex


@dataclass(frozen=True, slots=True)
class CpuTarget:
    """A CPU. `features` are LLVM's names of what it has ("avx2", "fma", "f16c", "avx512f", "neon", ...)."""

    triple: str
    name: str  #: LLVM's name of the CPU ("znver3", "apple-m1", "generic")
    features: frozenset[str] = frozenset()
    lanes_f32: int = 4  #: float32 in one vector register: 4 (SSE, NEON), 8 (AVX2), 16 (AVX-512)
    registers: int = 16  #: vector registers: 16 (AVX2), 32 (AVX-512, NEON)
    l1: int = 32 << 10  #: bytes of data cache nearest a core
    l2: int = 512 << 10  #: bytes of the next, a core's share

    @property
    def vector_bytes(self) -> int:
        return 4 * self.lanes_f32

    @property
    def has_fma(self) -> bool:
        """Fused multiply-add in hardware; without it `fma` is a call of the C library, right and slow."""
        return not self.is_x86 or bool(self.features & {"fma", "fma4", "avx512f"})

    @property
    def has_half(self) -> bool:
        """float16 <-> float32 conversion in hardware."""
        return not self.is_x86 or bool(self.features & {"f16c", "avx512f"})

    @property
    def folds_constants(self) -> bool:
        """Instructions take a vector from memory, but none that is one number repeated (AVX-512's do): a constant is then best
        kept there whole. Loaded by an instruction of its own it takes one of the registers that the processor renames to, and
        so shortens how far it sees ahead."""
        return self.is_x86 and self.lanes_f32 == 8

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith(("x86_64", "i386", "i686", "amd64"))


@dataclass(frozen=True, slots=True)
class Phase:
    """One function of a source. `microseconds` estimates all its chunks on one core (symbols at their smallest)."""

    entry: str
    chunks: E
    microseconds: float = 0.0


@dataclass(frozen=True, slots=True)
class LlvmSource:
    """A kernel as LLVM IR text; numbers of chunks and `workspace_bytes` are expressions over its symbols."""

    text: str
    phases: tuple[Phase, ...]
    parameters: tuple[str, ...]  #: buffers' names, then symbols'
    workspace_bytes: E = ex(0)
    externals: tuple[str, ...] = ()  #: C functions that the text calls and the linker must find (exp, erff, ...)
    passes: int = 0  #: LLVM's optimisation level for the pass pipeline; 0: none is needed
    codegen: int = 1  #: LLVM's optimisation level for instruction selection
    notes: tuple[str, ...] = ()  #: what the schedule chose, for people

    def workspace(self, symbols: dict[str, int]) -> int:
        """Bytes of scratch memory that an invocation needs."""
        return int(evaluate(self.workspace_bytes, symbols))

    def chunks(self, phase: int, symbols: dict[str, int]) -> int:
        """How many chunks a phase has."""
        return int(evaluate(self.phases[phase].chunks, symbols))
