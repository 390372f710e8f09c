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
from flame.absent import FUNCTIONS, METHODS, NAMES
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
#: names that are there under another one, or on objects of another kind: what stands for them
ELSEWHERE = {
    "exponential": "Tensor.exponential_", "uniform": "Tensor.uniform_", "cauchy": "Tensor.cauchy_",
    "geometric": "Tensor.geometric_",
    "log_normal": "Tensor.log_normal_", "slice": "indexing with slices", "grid_sampler_2d": "nn.functional.grid_sample",
    "grid_sampler_3d": "nn.functional.grid_sample", "max_pool2d_with_indices_backward": "nn.functional.max_pool2d and backward()",
    "index_put": "Tensor.index_put", "fill": "full_like",
    "index": "x[...]",
    "linalg.ldl_factor": "linalg.lu_factor, or linalg.eigh",
    "linalg.ldl_factor_ex": "linalg.lu_factor_ex",
    "linalg.ldl_solve": "linalg.lu_solve",
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


def is_there(kind: str, name: str) -> bool:
    if (kind == "functions" and name in FUNCTIONS) or (kind == "methods" and name in METHODS):
        return False  # (it is there to say what to use instead)
    for place in PLACES[kind]:
        try:
            resolved(place, name)
            return True
        except AttributeError:
            continue
    return False


def instead(name: str) -> str:
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    found = NAMES.get(name.rpartition(".")[2])
    if found is not None:
        return found
    method = METHODS.get(name) or FUNCTIONS.get(name)
    return (method.__doc__ or "").partition("NotImplementedError: ")[2].rstrip(".") if method else "nothing yet"


def page() -> str:
    rows, absent = [], []
    for tier, kind, names in lists():
        missing = [n for n in names if not is_there(kind, n)]
        rows.append(f"| {tier} | {kind} | {len(names)} | {len(names) - len(missing)} |")
        absent += [f"| {tier} | `{n}` | {instead(n)} |" for n in missing]
    kernels = sum(1 for p in REGISTRY.values() if p.scalar is not None or p.lower is not None)
    slopes = sum(1 for p in REGISTRY.values() if p.vjp is not None)
    text = HEAD + "| tier | list | names | there |\n|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
    text += "## What is not there under its name\n\n| tier | name | what to use |\n|---|---|---|\n" + "\n".join(absent) + "\n\n"
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
