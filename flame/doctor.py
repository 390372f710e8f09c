"""What flame finds on this machine: `facts()`, shown by `flame doctor` and printed under the demo's figures."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

from flame.errors import MissingTargetError
from flame.knobs import knobs
from flame.runtime import cache, cpu, cuda
from flame.runtime.cuda_statistics import spelled

#: distributions that flame uses, and what each is for
PACKAGES = {
    "numpy": "eager arrays",
    "llvmlite": "native CPU kernels",
    "triton": "GPU kernels",
    "networkx": "graph analysis",
    "ml_dtypes": "bfloat16 in NumPy",
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
        ("vectors", vectors()),
    ]
    found += [(name, f"{version(name) or 'not installed'}: {use}") for name, use in PACKAGES.items()]
    return [*found, ("GPU", gpus()), ("kernel cache", kernel_cache())]


def gpus() -> str:
    """The GPUs that programs can run on, or why there are none."""
    try:
        runtime = cuda.runtime()
    except MissingTargetError as missing:
        return str(missing)
    driver = runtime.driver
    names = [f"{driver.device_name(i)}, {spelled(driver.total_memory(i))}" for i in range(runtime.count)]
    return f"{'; '.join(names)}; driver for CUDA {'.'.join(map(str, driver.version()))}"


def processor() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def vectors() -> str:
    """What native kernels are written for."""
    try:
        host = cpu.host()
    except MissingTargetError as missing:
        return str(missing)
    return (
        f"{host.name or host.triple}: {host.lanes_f32} float32 in a register, {host.registers} registers, "
        f"caches of {host.l1 >> 10} and {host.l2 >> 10} KiB a core"
    )


def kernel_cache() -> str:
    """Where compiled kernels are kept, how many, and why not where they are not."""
    store = cache.shared()
    if store.disabled:
        return f"off: {store.disabled}"
    files = [entry for entry in store.folder.rglob("*") if entry.is_file()] if store.folder.is_dir() else []
    return f"{store.folder}: {len(files)} files, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB"
