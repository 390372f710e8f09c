"""The CPU that this process runs on, described for the compiler; and kernels made ready to be called on it.

    host()            CpuTarget, what `to_llvm` writes code for
    target()          Target, what fusion and scheduling look at
    load(kernel)      NativeKernel: compiled once in a process and, through the disk cache, once on a machine
    prepare(kernels)  compiles those of a whole program side by side, for `load` to find
    ahead(routines)   compiles routines on a thread, while the program that they are for is being made
    recall(name)      what another process stored, by its name

A kernel is known by its `digest`, so kernels that differ in names alone are one. On disk an entry is a line of JSON (phases and
sizes, as expressions over the kernel's symbols) and the object code. Its key also covers the compiler's own source files, so
that a changed compiler never meets what an older one left.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from flame.compiler.index_math import E, evaluate, ex, show, var
from flame.compiler.kernel import Kernel, canonical, text, verify
from flame.compiler.schedule_cpu import CpuSchedule, choose_cpu
from flame.compiler.target import Target
from flame.compiler.target_cpu import CpuTarget, LlvmSource
from flame.compiler.to_llvm import to_llvm
from flame.errors import CompileError, Refused, VerificationError
from flame.runtime import cache, llvm_jit, threads
from flame.runtime.cache import DiskCache
from flame.runtime.locks import Lock

#: An estimated total below this is not spread over threads: waking one costs as much.
PARALLEL_MICROSECONDS: Final = 50.0


@functools.cache
def host() -> CpuTarget:
    """This machine's CPU, with what LLVM and the operating system say of it."""
    name, features = llvm_jit.host_cpu()
    wide = "avx512f" in features and "avx512vl" in features
    lanes = 16 if wide else 8 if "avx2" in features else 4
    many = wide or platform.machine().lower() in ("aarch64", "arm64", "riscv64")
    return CpuTarget(
        triple=llvm_jit.host_triple(),
        name=name,
        features=features,
        lanes_f32=lanes,
        registers=32 if many else 16,
        l1=_cache_bytes(1) or 32 << 10,
        l2=_cache_bytes(2) or 512 << 10,
    )


@functools.cache
def _host_target(units: int) -> Target:
    cpu = host()
    return Target("cpu", arch=cpu.name, lanes=cpu.lanes_f32, units=units, cache=cpu.l2, features=cpu.features)


def target() -> Target:
    """This machine as fusion and scheduling see it, with the threads that the pool has now."""
    return _host_target(threads.get_num_threads())


def _cache_bytes(level: int) -> int:
    """Bytes of a core's data cache of that level, or 0 where nobody says."""
    for index in range(8):
        about = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}")
        try:
            if (about / "type").read_text().strip() != "Instruction" and int((about / "level").read_text()) == level:
                size = (about / "size").read_text().strip()
                return int(size.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
        except (OSError, ValueError):
            break
    if platform.system() == "Darwin":
        value = ctypes.c_int64()
        room = ctypes.c_size_t(8)
        for name in (f"hw.perflevel0.l{level}{'d' * (level == 1)}cachesize", f"hw.l{level}{'d' * (level == 1)}cachesize"):
            if ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(room), None, 0) == 0:
                return value.value
    return 0


@dataclass(frozen=True, slots=True)
class NativePhase:
    """One function of a kernel in memory: `function(bufs, syms, begin, end)` runs those of its chunks."""

    function: int
    chunks: E
    microseconds: float

    def count(self, symbols: Mapping[str, int]) -> int:
        """How many chunks there are."""
        return int(evaluate(self.chunks, symbols))


@dataclass(frozen=True, eq=False, slots=True)
class NativeKernel:
    """A kernel (under canonical names) that can be called."""

    kernel: Kernel
    cpu: CpuTarget
    schedule: CpuSchedule
    phases: tuple[NativePhase, ...]
    workspace_bytes: E
    seconds: float  #: that it took to make it ready
    from_disk: bool
    stored: str = ""  #: its name in the store, by which `recall` finds its phases

    def workspace(self, symbols: Mapping[str, int]) -> int:
        return int(evaluate(self.workspace_bytes, symbols))

    @property
    def source(self) -> LlvmSource:
        """The LLVM IR that it was made from, written again."""
        return to_llvm(self.kernel, self.schedule, self.cpu)

    @property
    def llvm(self) -> str:
        """Its LLVM IR."""
        return self.source.text

    @property
    def asm(self) -> str:
        """Its machine code as text."""
        s = self.source
        return llvm_jit.assembly(s.text, self.cpu, passes=s.passes, codegen=s.codegen, what=self.kernel.name)


_names: Final[WeakKeyDictionary[Kernel, tuple[Kernel, str]]] = WeakKeyDictionary()


def named(kernel: Kernel) -> tuple[Kernel, str]:
    """A kernel under canonical names, and its digest; made once, as equal layers are one kernel in many steps."""
    got = _names.get(kernel)
    if got is None:
        plain = canonical(kernel)[0]
        got = _names[kernel] = plain, hashlib.sha256(text(plain, notes=False).encode()).hexdigest()
    return got


_loaded: dict[tuple[str, CpuSchedule, CpuTarget], NativeKernel] = {}
_lock: Final = Lock()


def load(
    kernel: Kernel, cpu: CpuTarget | None = None, schedule: CpuSchedule | None = None, store: DiskCache | None = None
) -> NativeKernel:
    """The kernel, compiled and in memory.

    Raises CompileError, naming the kernel, where that fails; VerificationError where the kernel itself is wrong: native code
    is made of nothing that is not proved to stay in its buffers, because what it wrote beyond them would be anybody's memory.
    """
    cpu = cpu or host()
    plain, what = named(kernel)
    schedule = schedule or choose_cpu(plain, cpu)
    known = (what, schedule, cpu)
    with _lock:
        got = _loaded.get(known)
        if got is None:
            got = _loaded[known] = _load(plain, kernel, cpu, schedule, known[0], store or cache.shared())
            _recalled[got.stored] = got.phases
    return got


_recalled: dict[str, tuple[NativePhase, ...]] = {}


def recall(stored: str) -> tuple[NativePhase, ...]:
    """The phases of a kernel that was stored under that name, by this process or another; empty if it is not there any more."""
    with _lock:
        got = _recalled.get(stored)
        if got is None:
            entry = cache.shared().get(stored)
            made = _decoded(entry) if entry is not None else None
            got = () if made is None else _linked(made, f"kernel {stored[:12]}")
            if got:
                _recalled[stored] = got
    return got


def load_routine(source: LlvmSource, what: str, cpu: CpuTarget) -> str:
    """Compile code that is no kernel's (or find it on the disk); gives the name by which `recall` has it."""
    store = cache.shared()
    name = _routine_name(source, cpu)
    with _lock:
        if name not in _recalled:
            made = _fresh.pop(name, None)
            if made is None:
                entry = store.get(name)
                made = _decoded(entry) if entry is not None else None
            if made is None:
                obj = llvm_jit.compile_object(source.text, cpu, passes=source.passes, codegen=source.codegen, what=what)
                made = _made(source, obj)
                store.put(name, _encoded(made))
            _recalled[name] = _linked(made, what)
    return name


def _routine_name(source: LlvmSource, cpu: CpuTarget) -> str:
    """Of code that is no kernel's, in the store."""
    return cache.key("routine", source.text, llvm_jit.fingerprint(cpu), llvm_jit.version())


@dataclass(frozen=True, slots=True)
class _Made:
    """What compiling a kernel gives: all that is needed to link it, here or in another process."""

    phases: list[tuple[str, E, float]]
    workspace: E
    externals: list[str]
    obj: bytes


@contextmanager
def ahead(routines: Sequence[tuple[str, LlvmSource]]) -> Iterator[None]:
    """Compile routines meanwhile, on a thread that has ended when this ends: LLVM is asked for nothing by whoever cuts a graph
    into kernels, and a GPT's routines are a fifth of all its machine code. Without a second thread, nothing happens."""
    helper = threading.Thread(target=prepare, args=((), host(), routines, 1), name="flame-ahead")
    begun = False
    if routines and threads.get_num_threads() > 1:
        with suppress(RuntimeError):  # (the interpreter ends: there are no further threads)
            helper.start()
            begun = True
    try:
        yield
    finally:
        if begun:
            helper.join()


def prepare(
    kernels: Iterable[Kernel],
    cpu: CpuTarget | None = None,
    routines: Iterable[tuple[str, LlvmSource]] = (),
    workers: int | None = None,
) -> None:
    """Compile side by side what is not compiled yet: `load` finds it then, and `load_routine` the `routines`, each with what it
    is called. What fails is left to those two to report. `workers` are as many threads as kernels run on, unless it says."""
    cpu = cpu or host()
    wanted: dict[str, LlvmSource] = {}
    store = cache.shared()

    def missing(name: str) -> bool:
        return name not in wanted and name not in _fresh and not store.holds(name)

    def jobs() -> Iterator[llvm_jit.Job]:
        for called, source in dict.fromkeys(routines):
            name = _routine_name(source, cpu)
            if name not in _recalled and missing(name):
                wanted[name] = source
                yield llvm_jit.Job(source.text, source.passes, source.codegen, called)
        for kernel in dict.fromkeys(kernels):
            plain, what = named(kernel)
            schedule = choose_cpu(plain, cpu)
            name = _stored_name(what, schedule, cpu)
            if (what, schedule, cpu) not in _loaded and missing(name):
                try:
                    source = _source(plain, kernel, cpu, schedule)
                except (Refused, CompileError, VerificationError):
                    continue
                wanted[name] = source
                yield llvm_jit.Job(source.text, source.passes, source.codegen, f"kernel {kernel.name}")

    with _lock:
        objects = llvm_jit.compile_objects(jobs(), cpu, workers or threads.get_num_threads())
        for (name, source), obj in zip(wanted.items(), objects, strict=True):
            if isinstance(obj, bytes):
                made = _fresh[name] = _made(source, obj)
                store.put(name, _encoded(made))


_fresh: Final[dict[str, _Made]] = {}  #: compiled by `prepare`, not loaded yet


def _stored_name(what: str, schedule: CpuSchedule, cpu: CpuTarget) -> str:
    """Of the kernel of that digest, in the store."""
    return cache.key("kernel", what, repr(schedule), llvm_jit.fingerprint(cpu), llvm_jit.version(), _compiler_fingerprint())


def _source(kernel: Kernel, given: Kernel, cpu: CpuTarget, schedule: CpuSchedule) -> LlvmSource:
    verify(given, "before native code")
    return to_llvm(kernel, schedule, cpu)


def _made(source: LlvmSource, obj: bytes) -> _Made:
    phases = [(p.entry, p.chunks, p.microseconds) for p in source.phases]
    return _Made(phases, source.workspace_bytes, list(source.externals), obj)


def _load(kernel: Kernel, given: Kernel, cpu: CpuTarget, schedule: CpuSchedule, what: str, store: DiskCache) -> NativeKernel:
    begin = time.perf_counter()
    name = _stored_name(what, schedule, cpu)
    made = _fresh.pop(name, None)
    found = None
    if made is None:
        entry = store.get(name)
        found = made = _decoded(entry) if entry is not None else None
    called = given.name
    if made is None:  # (what is on disk was verified when it was made)
        source = _source(kernel, given, cpu, schedule)
        obj = llvm_jit.compile_object(source.text, cpu, passes=source.passes, codegen=source.codegen, what=f"kernel {called}")
        made = _made(source, obj)
        store.put(name, _encoded(made))
    functions = _linked(made, f"kernel {called}")
    seconds = time.perf_counter() - begin
    return NativeKernel(kernel, cpu, schedule, functions, made.workspace, seconds, found is not None, name)


def _linked(made: _Made, what: str) -> tuple[NativePhase, ...]:
    code = llvm_jit.link(made.obj, [p[0] for p in made.phases], externals=made.externals, what=what)
    return tuple(NativePhase(code[entry], chunks, us) for entry, chunks, us in made.phases)


def _encoded(made: _Made) -> bytes:
    facts = {
        "phases": [[entry, show(chunks), us] for entry, chunks, us in made.phases],
        "workspace": show(made.workspace),
        "externals": made.externals,
    }
    return json.dumps(facts).encode() + b"\n" + made.obj


def _decoded(entry: bytes) -> _Made | None:
    """The reverse, or None for what this version does not understand."""
    head, _, obj = entry.partition(b"\n")
    try:
        facts = json.loads(head)
        phases = [(str(name), _expression(chunks), float(us)) for name, chunks, us in facts["phases"]]
        return _Made(phases, _expression(facts["workspace"]), [str(n) for n in facts["externals"]], obj)
    except (ValueError, KeyError, TypeError, SyntaxError):
        return None


def _expression(written: str) -> E:
    """What `show` wrote."""

    def read(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int(n)):
                return ex(n)
            case ast.Name(id=name):
                return var(name)
            case ast.UnaryOp(op=ast.USub(), operand=x):
                return -read(x)
            case ast.BinOp(left=a, op=op, right=b):
                x, y = read(a), read(b)
                match op:
                    case ast.Add():
                        return x + y
                    case ast.Sub():
                        return x - y
                    case ast.Mult():
                        return x * y
                    case ast.FloorDiv():
                        return x // y
                    case ast.Mod():
                        return x % y
        raise ValueError(f"not an integer expression: {written!r}")

    return read(ast.parse(written, mode="eval").body)


@functools.cache
def _compiler_fingerprint() -> str:
    """A hash of the source files that decide what code a kernel becomes."""
    return source_fingerprint()


def source_fingerprint(*more: str) -> str:
    """A hash of the compiler's own source files, and of `more` by their patterns; without such files, of nothing seen before.

    Reading them took a third of the time in which a small program is found on disk: what the hash was is kept there as well, under
    what the file system says of every file, the time of its last change among it.
    """
    root = Path(cache.__file__).parent.parent
    files = sorted(f for p in ("dtypes.py", "primitive.py", "ops/*.py", "compiler/*.py", *more) for f in _matching(root, p))
    if not files:
        return hashlib.sha256(os.urandom(32)).hexdigest()
    states = [os.stat(f) for f in files]
    seen = [f"{f} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for f, s in zip(files, states, strict=True)]
    store, name = cache.shared(), cache.key("sources", *seen)
    known = store.get(name)
    if known is not None:
        return known.decode("ascii", "replace")
    h = hashlib.sha256()
    for f in files:
        path = Path(f)
        h.update(path.name.encode())
        h.update(path.read_bytes())
    digest = h.hexdigest()
    if max(s.st_ctime for s in states) < time.time() - _RESTING_SECONDS:
        store.put(name, digest.encode())
    return digest


_RESTING_SECONDS: Final = 2.0  #: a file changed so lately may change again without its times telling


def _matching(root: Path, pattern: str) -> list[str]:
    """The files of a pattern: one file, or those of a folder with an ending."""
    folder, _, name = pattern.rpartition("/")
    at = os.path.join(root, folder)
    if not name.startswith("*"):
        return [f] if os.path.exists(f := os.path.join(at, name)) else []
    with suppress(FileNotFoundError), os.scandir(at) as found:
        return [e.path for e in found if e.name.endswith(name[1:])]
    return []
