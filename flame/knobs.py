"""Every setting that flame reads from the environment, in one place.

Read once, at import; tests replace `knobs` fields directly. Each field is documented where it stands and used where its
name says. A boolean is true for "1", "true", "yes", "on".
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field


def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")


def _topics(name: str) -> frozenset[str]:
    return frozenset(t.strip() for t in os.environ.get(name, "").split(",") if t.strip())


def _count(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name}={text!r}: expected a whole number of at least 1")
    return int(text)


def _choice(name: str, of: tuple[str, ...]) -> str:
    """One of some words, of which the first holds where nothing is said."""
    text = os.environ.get(name, "").strip().lower() or of[0]
    if text not in of:
        raise ValueError(f"{name}={text!r}: expected one of {', '.join(of)}")
    return text


def _user_cache() -> str:
    """`flame` in the folder where the platform keeps a user's caches; empty where it names none."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "") or os.path.expanduser("~/.cache")
    return os.path.join(base, "flame") if os.path.isabs(base) else ""


@dataclass(slots=True)
class Knobs:
    """The settings in force."""

    #: FLAME_LOG: topics printed to stderr, of capture, breaks, recompiles, graph, fusion, kernels, passes, cache
    log: frozenset[str] = field(default_factory=lambda: _topics("FLAME_LOG"))
    #: FLAME_DISABLE: compiled functions run eagerly
    disable: bool = field(default_factory=lambda: _flag("FLAME_DISABLE"))
    #: FLAME_CACHE_DIR: where compiled kernels are kept; by default in the user's cache folder; empty where there is none
    cache_dir: str = field(default_factory=lambda: os.environ.get("FLAME_CACHE_DIR", "") or _user_cache())
    #: FLAME_CACHE: "0" keeps nothing on disk
    cache: bool = field(default_factory=lambda: os.environ.get("FLAME_CACHE", "1") != "0")
    #: FLAME_NUM_THREADS: threads that compiled kernels use; by default one for each CPU this process may run on
    num_threads: int = field(
        default_factory=lambda: _count(
            "FLAME_NUM_THREADS", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    )
    #: FLAME_NEVER_SLOWER: "0" keeps compiled what was measured to be slower than eager
    never_slower: bool = field(default_factory=lambda: os.environ.get("FLAME_NEVER_SLOWER", "1") != "0")
    #: CUDA_LAUNCH_BLOCKING: every GPU launch is waited for, so that an error names the kernel that made it
    launch_blocking: bool = field(default_factory=lambda: _flag("CUDA_LAUNCH_BLOCKING"))
    #: FLAME_CUDA_CACHING: "0" gives every GPU allocation to the driver, so that memory checkers see each
    cuda_caching: bool = field(default_factory=lambda: os.environ.get("FLAME_CUDA_CACHING", "1") != "0")
    #: FLAME_MATMUL_PRECISION: of float32 on GPUs, "highest" (all of its bits), "high" or "medium" (tensor cores, on 10 of them);
    #: also `set_float32_matmul_precision`
    matmul_precision: str = field(default_factory=lambda: _choice("FLAME_MATMUL_PRECISION", ("highest", "high", "medium")))
    #: FLAME_DETERMINISTIC: equal calls give equal bits on a GPU too, where that costs time; also `use_deterministic_algorithms`
    deterministic: bool = field(default_factory=lambda: _flag("FLAME_DETERMINISTIC"))
    #: FLAME_NATIVE: "0" keeps the hot paths of capture and of eager operations in Python, "1" has them as native code from the
    #: first compiled function, or operation, on; by default a child process compiles them once there were many calls
    native: str = field(default_factory=lambda: _choice("FLAME_NATIVE", ("auto", "0", "1")))
    #: FLAME_EAGER_KERNELS: "0" has NumPy run all eager operations, one by one; else native kernels run what they are faster at
    eager_kernels: bool = field(default_factory=lambda: os.environ.get("FLAME_EAGER_KERNELS", "1") != "0")
    #: FLAME_VERIFY: check every graph and kernel after every pass, always and not only where it is cheap
    verify: bool = field(default_factory=lambda: _flag("FLAME_VERIFY"))


knobs = Knobs()
