"""Write docs/surface.md: which of PyTorch's names flame has, by tier; `--check` fails where the page is not what this tree gives.

`surface_names.txt` lists the names: tier 1 is what ordinary model, training and research code uses, tier 2 the rest of the
operators that a user may reach for. A name of an operator counts as there if it is a function of flame or of one of its
namespaces, or a method of tensors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import flame
from flame.absent import NAMES
from flame.array_api.info import DTYPES
from flame.primitive import REGISTRY

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "surface.md"
#: where the names of a list are looked for
PLACES: dict[str, tuple[Any, ...]] = {
    "functions": (flame,),
    "methods": (flame.Tensor,),
    "nn.functional": (flame.nn.functional,),
    "nn": (flame.nn,),
    "optim": (flame.optim,),
    "lr_scheduler": (flame.optim.lr_scheduler,),
    "operators": (flame, flame.Tensor, flame.special, flame.linalg),
}
#: what PyTorch's own table of operators calls otherwise than programs write it, there and here: how it is written
WRITTEN = {
    "exponential": "Tensor.exponential_", "uniform": "Tensor.uniform_", "cauchy": "Tensor.cauchy_",
    "geometric": "Tensor.geometric_", "log_normal": "Tensor.log_normal_",
    "slice": "Tensor.__getitem__", "index": "Tensor.__getitem__",
    "max_pool2d_with_indices_backward": "Tensor.backward",
}  # fmt: skip
HEAD = """# The surface

Which of PyTorch's names flame has. Made by `python scripts/surface.py`; a test compares. Tier 1 is what ordinary model, training
and research code uses, counted over about a hundred public files; tier 2 the rest of the operators that a user may reach for.
Signatures, defaults, dtype rules and error types are PyTorch's. What is not there says so when it is reached for, and what to use
instead.

"""


def lists() -> list[tuple[str, str, list[str]]]:
    """(tier, kind, names) as the file has them."""
    out: list[tuple[str, str, list[str]]] = []
    for line in (HERE / "surface_names.txt").read_text().splitlines():
        if line.startswith("tier "):
            tier, _, kind = line[5:].partition(": ")
            out.append((tier, kind, []))
        elif line:
            out[-1][2].extend(line.split())
    return out


def resolved(place: Any, name: str) -> Any:
    """What a dotted name means there; raises AttributeError where it means nothing."""
    for part in name.split("."):
        place = getattr(place, part)
    return place


def refused(kind: str, name: str) -> str:
    """What a function that is there only to say so says is to be used instead; "" for all others."""
    for place in PLACES[kind]:
        try:
            found = resolved(place, name)
        except AttributeError:
            continue
        return (
            (getattr(found, "__doc__", "") or "").partition("Raises NotImplementedError: ")[2].rstrip(".")
            if _refuses(found)
            else ""
        )
    return ""


def _refuses(f: Any) -> bool:
    return (getattr(f, "__doc__", "") or "").startswith("Raises NotImplementedError: ")


def is_there(kind: str, name: str) -> bool:
    if name in WRITTEN:
        return resolved(flame, WRITTEN[name]) is not None
    for place in PLACES[kind]:
        try:
            return not _refuses(resolved(place, name))
        except AttributeError:
            continue
    return False


def instead(kind: str, name: str) -> str:
    return refused(kind, name) or NAMES.get(name.rpartition(".")[2]) or "nothing yet"


def counts() -> tuple[list[tuple[str, str, int, int]], list[tuple[str, str, str]]]:
    """(tier, list, names, there) of each list and of each tier as a whole; (tier, list, name) of what is not there."""
    rows, absent = [], []
    for tier, kind, names in lists():
        missing = [n for n in names if not is_there(kind, n)]
        rows.append((tier, kind, len(names), len(names) - len(missing)))
        absent += [(tier, kind, n) for n in missing]
    for t in sorted({r[0] for r in rows}):
        of = [r for r in rows if r[0] == t]
        rows.append((t, "all", sum(r[2] for r in of), sum(r[3] for r in of)))
    return rows, absent


def page() -> str:
    found, missing = counts()
    rows = [f"| {tier} | {kind} | {n} | {there} ({100 * there / n:.1f} %) |" for tier, kind, n, there in found]
    absent = [f"| {tier} | {kind} | `{n}` | {instead(kind, n)} |" for tier, kind, n in missing]
    written = [f"| `{n}` | `{w}` |" for n, w in sorted(WRITTEN.items())]
    kernels = sum(1 for p in REGISTRY.values() if p.scalar is not None or p.lower is not None)
    slopes = sum(1 for p in REGISTRY.values() if p.vjp is not None)
    text = HEAD + "| tier | list | names | there |\n|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
    text += "## What is not there\n\n| tier | list | name | what to use |\n|---|---|---|---|\n" + "\n".join(absent) + "\n\n"
    text += (
        "Some names of the lists are those of PyTorch's table of operators for what programs write otherwise, with PyTorch as "
        "here:\n\n| in the table | written |\n|---|---|\n" + "\n".join(written) + "\n\n"
    )
    text += (
        "## What it is made of\n\n"
        f"{len(REGISTRY)} primitives ([operators.md](operators.md)): {kernels} are spelled in fused kernels, "
        f"{len(REGISTRY) - kernels} run as library calls inside compiled programs; {slopes} have derivatives, each held to finite "
        "differences and, with the functions over them, to PyTorch's where it is installed. Every one of them has a rule for "
        "`flame.func.vmap`.\n\n"
        f"`flame.array_api` has the {len(DTYPES)} dtypes and all functions of the array API standard 2024.12, `fft` and `linalg` "
        f"extensions included. `flame.distributions` has {len(flame.distributions._DISTRIBUTIONS)} distributions and "
        f"{len(flame.distributions.transforms.__all__) - 2} transforms. `flame.sparse` has tensors by coordinates (COO).\n"
    )
    return text


def main() -> int:
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text() != page():
            print(f"{PAGE} is not what this tree gives: run python scripts/surface.py")
            return 1
        return 0
    PAGE.write_text(page())
    for tier, kind, n, there in counts()[0]:
        print(f"tier {tier}, {kind}: {there} of {n}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
