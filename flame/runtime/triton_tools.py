"""Triton as a compiler, and as an interpreter: from a `TritonSource` to a binary for any GPU, or to results on NumPy memory.

`compile_triton(source, arch)` makes a cubin ("sm_80", "sm_90", "sm_100") or an hsaco ("gfx942") on any machine, with no GPU,
driver or other framework there, and checks the entry point's parameters against the source's. `run_interpreted(source,
buffers, symbols)` runs the very same text on the CPU, one program at a time (see `triton_interpreter`).

Triton is imported by the first call, since that takes a second. What differs between its versions stands in this file and in
`triton_interpreter`; releases 3.6 to 3.9 are known to work.
"""

from __future__ import annotations

import linecache
import os
import re
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from flame.compiler.to_triton import TritonSource
from flame.dtypes import FLOAT8
from flame.errors import CompileError, MissingTargetError
from flame.runtime.triton_interpreter import interpret

#: the releases that this was written for and is tested with: from the oldest to the newest
OLDEST, NEWEST = (3, 6), (3, 9)


@dataclass(frozen=True, slots=True)
class Binary:
    """A compiled kernel. `code` is what a driver loads; `asm` the assembly text it was made from (PTX or AMD's)."""

    entry: str
    arch: str
    code: bytes
    asm: str
    shared: int  #: bytes of shared memory that a launch asks for
    threads: int  #: in a program
    registers: int  #: of a thread
    stack: int  #: bytes of a thread's frame in memory, used or not
    spills: int  #: instructions that put a thread's registers there
    scratch_pointers: int  #: pointers that a launch passes after the source's own parameters; null, but for the first where
    #: `scratch` is not 0
    scratch: int = 0  #: bytes of device memory that a launch lends to each of its programs (all in one piece)
    scratch_align: int = 1
    warnings: tuple[str, ...] = ()


@cache
def load_triton() -> ModuleType:
    """The triton package. Raises MissingTargetError where it is not installed, too old, or of another major version; warns
    (RuntimeWarning, once) where it is newer than the releases that were tested, whose errors then say so too."""
    try:
        import triton
        import triton.backends.compiler
        import triton.compiler
    except ImportError as error:
        raise MissingTargetError(f"GPU kernels are compiled by Triton, which can't be imported: {error}") from error
    version = _version(triton)
    known = f"flame knows Triton {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if version < OLDEST:
        raise MissingTargetError(f"Triton {triton.__version__} is too old: {known}")
    if version[0] > NEWEST[0]:
        raise MissingTargetError(f"Triton {triton.__version__} is a new major version: {known}; install one of these")
    if version > NEWEST:
        told = f"Triton {triton.__version__} is newer than what was tested: {known}; if kernels fail, install one of these"
        warnings.warn(told, RuntimeWarning, stacklevel=2)
    return triton


def _version(triton: ModuleType) -> tuple[int, int]:
    """Major and minor number; (0, 0) for a name that has none."""
    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _called(triton: ModuleType) -> str:
    """The version in words, for an error."""
    untested = " (newer than what flame was tested with)" if _version(triton) > NEWEST else ""
    return f"Triton {triton.__version__}{untested}"


def _file(source: TritonSource) -> str:
    return f"<flame kernel {source.entry} {source.digest[:12]}>"


@contextmanager
def _module(source: TritonSource) -> Iterator[dict[str, Any]]:
    """The source's module, executed. While the context lasts, `inspect` finds its text, which Triton asks for."""
    load_triton()
    name = _file(source)
    linecache.cache[name] = (len(source.text), None, source.text.splitlines(True), name)
    try:
        namespace: dict[str, Any] = {"__name__": f"flame_kernel_{source.digest[:12]}"}
        exec(compile(source.text, name, "exec"), namespace)
        yield namespace
    finally:
        linecache.cache.pop(name, None)


# ---- compiling


class _Scratch:
    """A folder of our own for the files that Triton's compiler leaves, while any thread compiles; flame keeps its own cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._before: Any = None

    def __enter__(self) -> None:
        knobs = load_triton().knobs
        with self._lock:
            if self._users == 0:
                self._folder = tempfile.TemporaryDirectory(prefix="flame-triton-")
                self._before = knobs.cache.__dict__.get("dir", knobs)
                knobs.cache.__dict__["dir"] = self._folder.name
            self._users += 1

    def __exit__(self, *error: object) -> None:
        knobs = load_triton().knobs
        with self._lock:
            self._users -= 1
            if self._users == 0:
                if self._before is knobs:
                    del knobs.cache.__dict__["dir"]
                else:
                    knobs.cache.__dict__["dir"] = self._before
                assert self._folder is not None
                self._folder.cleanup()
                self._folder = None


_scratch = _Scratch()


def gpu_target(arch: str) -> Any:
    """Triton's description of a GPU architecture. Raises ValueError for one that is neither "sm_NN" nor "gfxNNN"."""
    load_triton()
    from triton.backends.compiler import GPUTarget

    if found := re.fullmatch(r"sm_(\d+)a?", arch):
        return GPUTarget("cuda", int(found[1]), 32)
    if re.fullmatch(r"gfx[0-9a-f]+", arch):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    raise ValueError(f"{arch!r} is no GPU architecture: expected sm_80, sm_90, sm_100, gfx942 or the like")


def compile_triton(source: TritonSource, arch: str) -> Binary:
    """Compile for a GPU that need not be there. Raises CompileError with Triton's words where it refuses, and where the entry
    point's parameters are not those that a launch would pass."""
    triton = load_triton()
    target = gpu_target(arch)
    signature = {p.name: p.type for p in source.parameters} | dict.fromkeys(source.constexprs, "constexpr")
    places = {n: (i,) for i, n in enumerate(signature)}
    aligned = {places[p.name]: [["tt.divisibility", 16]] for p in source.parameters if p.buffer}
    options: dict[str, Any] = {"num_warps": source.warps, "num_stages": source.stages, "enable_fp_fusion": source.fp_fusion}
    if target.backend == "cuda":
        options["enable_reflect_ftz"] = False  # denormal numbers are numbers
    elif source.stages > 2:
        options["num_stages"] = 2  # that backend counts the stage being computed
    constants = {places[n]: value for n, value in source.constexprs.items()}
    with _module(source) as module, _scratch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            ast = triton.compiler.ASTSource(module[source.entry], signature, constants, aligned)
            made = triton.compile(ast, target=target, options=options)
        except Exception as error:  # whatever Triton raises, from its own classes to plain RuntimeError
            raise CompileError(f"{source.entry}: {_called(triton)} for {arch}: {error}") from error
    said = tuple(str(w.message) for w in caught)
    if target.backend == "cuda":
        ptx, code = made.asm["ptx"], made.asm["cubin"]
        registers, stack, spills = _cubin_resources(code)
        extra = _check_parameters(source, ptx)
        threads = max(source.warps, int(getattr(made.metadata, "num_warps", 0) or 0)) * 32  # warps that only copy count
    else:
        ptx, code = made.asm["amdgcn"], made.asm["hsaco"]
        words = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
        registers, stack, spills = (_number(ptx, rf"\.{word}:\s*(\d+)") for word in words)
        extra = _count_amd_parameters(source, ptx)
        threads = source.warps * target.warp_size
    lent = (
        int(getattr(made.metadata, "global_scratch_size", 0) or 0),
        int(getattr(made.metadata, "global_scratch_align", 1) or 1),
    )
    return Binary(source.entry, arch, code, ptx, made.metadata.shared, threads, registers, stack, spills, extra, *lent, said)


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else -1


def _check_parameters(source: TritonSource, ptx: str) -> int:
    """Compare the entry point's parameters with the source's; how many pointers come after them."""
    entry = re.search(rf"\.entry\s+{re.escape(source.entry)}\s*\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise CompileError(f"{source.entry}: the PTX has no entry point of that name")
    found = re.findall(r"\.param\s+\.([a-z]\d+)", entry[1])
    wanted = ["u64" if p.buffer else f"u{p.dtype.itemsize * 8}" for p in source.parameters]
    rest = found[len(wanted) :]
    if found[: len(wanted)] != wanted or any(t != "u64" for t in rest):
        raise CompileError(f"{source.entry}: the entry point takes ({', '.join(found)}), a launch passes ({', '.join(wanted)})")
    return len(rest)


def _count_amd_parameters(source: TritonSource, asm: str) -> int:
    """As `_check_parameters`, from the kernel's metadata."""
    listed = re.search(r"\.args:(.*?)\n\s+\.group_segment", asm, re.DOTALL)
    sizes = [int(n) for n in re.findall(r"\.size:\s*(\d+)", listed[1])] if listed else []
    wanted = [8 if p.buffer else p.dtype.itemsize for p in source.parameters]
    if sizes[: len(wanted)] != wanted or any(n != 8 for n in sizes[len(wanted) :]):
        raise CompileError(f"{source.entry}: the entry point takes parameters of {sizes} bytes, a launch passes {wanted}")
    return len(sizes) - len(wanted)


def _cubin_resources(code: bytes) -> tuple[int, int, int]:
    """(registers a thread, bytes of stack, stores to it), as NVIDIA's tool reads a cubin; -1 where that tool is missing."""
    folder = os.path.join(os.path.dirname(load_triton().__file__ or ""), "backends", "nvidia", "bin")
    tool = os.path.join(folder, "cuobjdump")
    if not os.access(tool, os.X_OK):
        return -1, -1, -1
    with tempfile.TemporaryDirectory(prefix="flame-cubin-") as d:
        path = os.path.join(d, "kernel.cubin")
        with open(path, "wb") as f:
            f.write(code)
        done = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        stack = _number(said, r"STACK:(\d+)")
        spills = 0
        if stack > 0:  # a frame may be declared and never used
            listing = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=False).stdout
            spills = len(re.findall(r"\bSTL\b", listing))
    return _number(said, r"REG:(\d+)"), stack, spills


# ---- interpreting


def run_interpreted(source: TritonSource, buffers: Mapping[str, np.ndarray], symbols: Mapping[str, int] | None = None) -> None:
    """Run a kernel in Triton's interpreter on C-contiguous arrays, in place. Raises CompileError with the kernel's line
    where it fails, ValueError for arrays and symbols that the kernel does not fit."""
    symbols = dict(symbols or {})
    if not source.fits(symbols):
        raise ValueError(f"{source.entry}: these sizes need a schedule that is wide")
    arguments: list[Any] = []
    for p in source.parameters:
        if p.symbol:
            arguments.append(int(symbols[p.symbol]))
            continue
        a = buffers[p.buffer]
        if a.dtype != p.dtype.numpy or not a.flags.c_contiguous:
            raise ValueError(f"{source.entry}: buffer {p.buffer} is a contiguous array of {p.dtype.name}, got {a.dtype}")
        arguments.append(a.view(np.uint8) if p.dtype in FLOAT8 else a)
    grid = source.grid(symbols)
    if 0 in grid:
        return
    with _module(source) as module:
        interpret(module, source, arguments, grid)
