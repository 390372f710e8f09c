"""What flame finds on this machine: `facts()`, shown by `flame doctor` and printed under the demo's figures."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

from flame.knobs import knobs

#: distributions that flame uses, and what each is for
PACKAGES = {
    "numpy": "eager arrays",
    "llvmlite": "native CPU kernels",
    "triton": "GPU kernels",
    "networkx": "graph analysis",
    "ml_dtypes": "bfloat16 in NumPy",
    "cuda-core": "launching on NVIDIA GPUs (extra: cuda)",
    "scikit-learn": "the demo's digits (extra: demo)",
}


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def facts() -> list[tuple[str, str]]:
    """Pairs (what, found), in the order in which a reader wants them."""
    found = [
        ("flame", version("flame-jit") or "run from a source tree that is not installed"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("processor", f"{processor()}, {knobs.num_threads} of {os.cpu_count()} CPUs in use"),
    ]
    found += [(name, f"{version(name) or 'not installed'}: {use}") for name, use in PACKAGES.items()]
    return found


def processor() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
