"""The table of what kernels use on GPUs, read and written: tests/golden/gpu_kernels.txt. `scripts/gpu_table.py` makes it.

row ::= name | use (one for each target)          use ::= registers shared spills
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flame.compiler.to_triton import TritonSource
from flame.errors import CompileError
from flame.runtime.triton_pool import compile_all

PATH = Path(__file__).parent / "golden" / "gpu_kernels.txt"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True, slots=True)
class Use:
    registers: int
    shared: int  #: bytes
    spills: int

    def __str__(self) -> str:
        return f"{self.registers} {self.shared} {self.spills}"


def distinct(named: Iterable[tuple[str, TritonSource]]) -> dict[str, TritonSource]:
    """Each kernel once, under the first name that it comes by."""
    found: dict[str, tuple[str, TritonSource]] = {}
    for name, source in named:
        found.setdefault(source.digest, (name, source))
    return dict(found.values())


def compiled(named: Iterable[tuple[str, TritonSource]], arch: str) -> tuple[dict[str, Use], list[str]]:
    """What each distinct kernel uses; and what failed, with the reason."""
    wanted = distinct(named)
    answers = compile_all([(source, arch) for source in wanted.values()])
    uses: dict[str, Use] = {}
    failed = []
    for name, b in zip(wanted, answers, strict=True):
        if isinstance(b, CompileError):
            failed.append(f"{name} for {arch}: {b}")
        elif b.warnings or b.code[:4] != b"\x7fELF":
            failed.append(f"{name} for {arch}: {b.warnings or 'no machine code'}")
        else:
            uses[name] = Use(b.registers, b.shared, b.spills)
    return uses, failed


def write(rows: dict[str, dict[str, Use]], version: str) -> None:
    lines = [f"# registers, bytes of shared memory, spills; for {', '.join(TARGETS)}; compiled by Triton {version}"]
    for name in sorted(rows):
        lines.append(" | ".join((name, *(str(rows[name].get(a, "-")) for a in TARGETS))))
    PATH.write_text("\n".join(lines) + "\n")


def read() -> dict[str, dict[str, Use]]:
    rows: dict[str, dict[str, Use]] = {}
    for line in PATH.read_text().splitlines()[1:]:
        name, *uses = line.split(" | ")
        rows[name] = {a: Use(*map(int, u.split())) for a, u in zip(TARGETS, uses, strict=True) if u != "-"}
    return rows


def version() -> str:
    """The Triton that the table was made with."""
    return PATH.read_text().partition("\n")[0].rpartition(" ")[2]


def is_product(row: dict[str, Use]) -> bool:
    """Whether it is a tiled product, by the shared memory that its operands' tiles take on NVIDIA's GPUs."""
    return max((row[a].shared for a in row if a.startswith("sm_")), default=0) > 4096
