"""Write docs/operators.md from the registry of primitives; `--check` fails where the page is not what the registry gives."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import flame.ops  # noqa: F401  (fills the registry)
from flame import dtypes
from flame.compiler.gpu_routines import has_routine
from flame.primitive import REGISTRY, Primitive, Rule

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operators.md"
HEAD = """# Operators

Made from the registry of primitives by `python scripts/operators.py`; a test compares. What users call (softmax, layer_norm, an
optimizer's update) is composed of these. "kernel" means that the compiler spells it in fused kernels for CPUs and GPUs; "library
call" that a compiled program runs its eager meaning as a step of its own; "GPU: routine" that a GPU has kernels of its own for it.

| operator | kind | dtypes | gradient | compiled as | meaning |
|---|---|---|---|---|---|
"""


def element_types(p: Primitive) -> str:
    """The dtypes that its samples' first array operand comes in, shortened where a whole family is there."""
    found: set[str] = set()
    for operands, params in p.samples() if p.samples else ():
        arrays = [x for x in operands if isinstance(x, np.ndarray)]
        given = params.get("dtype")
        d = dtypes.from_numpy_dtype(arrays[0].dtype) if arrays else given
        if d is not None and d in dtypes.ALL:
            found.add(d.name)
    out = []
    for name, family in (("floats", dtypes.FLOATS), ("ints", dtypes.INTS)):
        if {d.name for d in family} <= found:
            out.append(name)
            found -= {d.name for d in family}
    return ", ".join(sorted(found) + out) or "—"


def gradient(p: Primitive) -> str:
    if p.vjp is None:
        return f"none: {p.refused['vjp']}" if "vjp" in p.refused else "none"
    if isinstance(p.vjp, Rule):
        return "every operand"
    places = [str(i) for i, r in enumerate(p.vjp) if r is not None]
    return "yes" if len(places) == len(p.vjp) else "operand " + ", ".join(places)


def how_compiled(p: Primitive) -> str:
    if p.scalar is not None or p.lower is not None:
        return "kernel"
    reason = p.refused.get("lower") or p.refused.get("scalar") or "no kernel form"
    return f"CPU: library call; GPU: routine ({reason})" if has_routine(p) else f"library call: {reason}"


def page() -> str:
    rows = []
    for p in sorted(REGISTRY.values(), key=lambda p: (p.kind, p.name)):
        cells = [f"`{p.name}`", p.kind, element_types(p), gradient(p), how_compiled(p), p.doc]
        rows.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
    return HEAD + "\n".join(rows) + f"\n\n{len(rows)} primitives.\n"


def main() -> int:
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text() != page():
            print(f"{PAGE} is not what the registry gives: run python scripts/operators.py")
            return 1
        return 0
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
