"""LLVM IR text -> object code -> addresses, in this process.

    compile_object(text, cpu)         bytes of a relocatable object
    compile_objects(jobs, cpu)        those of many, side by side
    cached_object(text, cpu)          the same, from the disk cache where it has it
    link(object, symbols, imports)    Linked: addresses, valid as long as the process lives

Code is position independent in the small code model; JITLink makes the stubs for far calls, and unlike the older MCJIT it
reports symbols that are missing instead of jumping to nothing. Linked libraries are never unloaded: a thread may still be in
one, and a function pointer that outlives its library is a crash without a message.

Whoever is in LLVM has a target machine and a context to itself, and all but the threads of one `compile_objects` hold one lock.
The end of the process waits for that lock, and keeps it: a thread that is still in LLVM while its globals are destroyed takes
the process with it.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import itertools
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Final

from flame.compiler.target_cpu import CpuTarget
from flame.errors import CompileError, MissingTargetError
from flame.runtime import cache
from flame.runtime.cache import DiskCache
from flame.runtime.locks import Lock

try:
    import llvmlite
    import llvmlite.binding as llvm
except ImportError:  # the interpreting backend works without
    llvmlite = llvm = None

_lock: Final = Lock()
atexit.register(_lock.__enter__)
_machines: Final[dict[tuple[CpuTarget, int], list[Any]]] = {}  #: those that nobody has at present
_linker: Any = None
_serial: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class Linked:
    """Where the exported symbols of one object are."""

    addresses: Mapping[str, int]

    def __getitem__(self, symbol: str) -> int:
        return self.addresses[symbol]


def available() -> bool:
    return llvm is not None


def require() -> None:
    """Make LLVM ready, once. Raises MissingTargetError where llvmlite is not installed."""
    global _linker
    if llvm is None:
        raise MissingTargetError("the 'llvm' backend needs the package llvmlite: pip install llvmlite")
    if _linker is not None:
        return
    with _lock:
        if _linker is None:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            # The linker's own machine only names the platform: objects come to it compiled.
            linker = llvm.create_lljit_compiler(_host_machine(), use_jit_link=sys.platform != "win32", suppress_errors=True)
            immortal(linker)
            _linker = linker


def version() -> str:
    """What object code depends on besides its text and its target."""
    return f"llvmlite {llvmlite.__version__} llvm {'.'.join(map(str, llvm.llvm_version_info))}" if llvm is not None else "none"


def _host_machine() -> Any:
    return llvm.Target.from_default_triple().create_target_machine(reloc="pic", codemodel="small", jit=True)


@contextmanager
def _machine(cpu: CpuTarget, codegen: int) -> Iterator[Any]:
    """LLVM's description of the target, for one user at a time; there come to be as many as are needed at once."""
    spare = _machines.setdefault((cpu, codegen), [])
    try:
        machine = spare.pop()
    except IndexError:
        machine = _new_machine(cpu, codegen)
    try:
        yield machine
    finally:
        spare.append(machine)


def _new_machine(cpu: CpuTarget, codegen: int) -> Any:
    features = [f"+{f}" for f in sorted(cpu.features)]
    if cpu.name and cpu.triple == llvm.get_default_triple() and cpu.name == llvm.get_host_cpu_name():
        # A CPU's name implies features that a virtual machine may have taken away from this one.
        features += [f"-{f}" for f, has in sorted(_host_features().items()) if not has and f not in cpu.features]
    return llvm.Target.from_triple(cpu.triple).create_target_machine(
        cpu=cpu.name, features=",".join(features), opt=codegen, reloc="pic", codemodel="small", jit=True
    )


def compile_object(text: str, cpu: CpuTarget, *, passes: int = 0, codegen: int = 2, what: str = "module") -> bytes:
    """Object code of LLVM IR text. `passes` is the level of the pass pipeline (0: none), `codegen` of instruction selection.

    Raises CompileError, naming `what`, where LLVM refuses the text.
    """
    with _lock, _addresses_as_written(cpu, codegen), _prepared(text, cpu, passes, codegen, what) as (machine, module):
        return machine.emit_object(module)


@dataclass(frozen=True, slots=True)
class Job:
    """What `compile_object` takes."""

    text: str
    passes: int
    codegen: int
    what: str


def compile_objects(jobs: Iterable[Job], cpu: CpuTarget, workers: int) -> list[bytes | CompileError]:
    """The object of every job, or why there is none, made by so many threads; the caller is one of them, after it has gone
    through `jobs`: code that is written job by job is compiled while the next is being written.

    llvmlite lets only one thread into LLVM; `_emit` goes around that where nearly all of the time is spent.
    """
    coming = iter(jobs)
    first = [*itertools.islice(coming, 2)]
    if workers < 2 or len(first) < 2:
        return [_attempt(j, cpu, alone=True) for j in itertools.chain(first, coming)]
    made: list[bytes | CompileError] = []
    waiting: list[tuple[int, int, Job]] = []  # the longest first: all threads end at about one time
    guard = threading.Lock()

    def work() -> bool:
        with guard:
            if not waiting:
                return False
            _, i, job = heappop(waiting)
        made[i] = _attempt(job, cpu)
        return True

    with _lock, _addresses_as_written(cpu):
        with ThreadPoolExecutor(workers - 1, "flame-llvm") as pool:
            try:
                begun = []
                for i, job in enumerate(itertools.chain(first, coming)):
                    made.append(b"")
                    with guard:
                        heappush(waiting, (-len(job.text), i, job))
                    with suppress(RuntimeError):  # (the interpreter ends: there are no further threads)
                        begun.append(pool.submit(work))
                while work():
                    pass
                for done in begun:
                    done.result()
            finally:  # (whoever interrupts this waits for the jobs that were begun, not for all)
                with guard:
                    waiting.clear()
    return made


def _attempt(j: Job, cpu: CpuTarget, *, alone: bool = False) -> bytes | CompileError:
    try:
        if alone:
            return compile_object(j.text, cpu, passes=j.passes, codegen=j.codegen, what=j.what)
        with _prepared(j.text, cpu, j.passes, j.codegen, j.what) as (machine, module):
            return _emit(machine, module)
    except CompileError as error:
        return error


def _emit(machine: Any, module: Any) -> bytes:
    """`machine.emit_object(module)` without llvmlite's lock, under which LLVM would do one thing at a time. Nobody else has
    this machine or the module's context, which is all that LLVM asks of threads."""
    unlocked = getattr(llvm.ffi.lib.LLVMPY_TargetMachineEmitToMemory, "_cfn", None)
    if unlocked is None:  # another llvmlite
        return machine.emit_object(module)
    with llvm.ffi.OutputString() as wrong:
        buffer = unlocked(machine, module, 1, wrong)
        if not buffer:
            raise CompileError(f"LLVM makes no object: {wrong}")
    try:
        return ctypes.string_at(llvm.ffi.lib.LLVMPY_GetBufferStart(buffer), llvm.ffi.lib.LLVMPY_GetBufferSize(buffer))
    finally:
        llvm.ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


def assembly(text: str, cpu: CpuTarget, *, passes: int = 0, codegen: int = 2, what: str = "module") -> str:
    """The same for people to read."""
    with _lock, _addresses_as_written(cpu, codegen), _prepared(text, cpu, passes, codegen, what) as (machine, module):
        return machine.emit_assembly(module)


#: the LLVM in which the option below may be given again and again; one that did not know it would end the process
_TRIED_LLVM: Final = 22


@contextmanager
def _addresses_as_written(cpu: CpuTarget, codegen: int = 1) -> Iterator[None]:
    """No loop strength reduction meanwhile, where code is made for the x86's rich addresses. Renderers write addresses as these
    take them: kernels are as fast without it (1.03 times, by geometric mean of 23 kinds; none slower by more than their noise),
    and making them takes a third less. The option is the process's, so others that use LLVM get theirs back."""
    require()
    if codegen > 1 or not cpu.is_x86 or llvm.llvm_version_info[0] != _TRIED_LLVM:
        yield
        return
    llvm.set_option("flame", "-disable-lsr=true")
    try:
        yield
    finally:
        llvm.set_option("flame", "-disable-lsr=false")


def cached_object(
    text: str, cpu: CpuTarget, *, passes: int = 0, codegen: int = 2, what: str = "module", store: DiskCache | None = None
) -> bytes:
    """`compile_object`, or its result from the disk."""
    store = store or cache.shared()
    name = name_of(text, cpu, passes=passes, codegen=codegen)
    found = store.get(name)
    if found is None:
        found = compile_object(text, cpu, passes=passes, codegen=codegen, what=what)
        store.put(name, found)
    return found


def name_of(text: str, cpu: CpuTarget, *, passes: int = 0, codegen: int = 2) -> str:
    """What the object is called on the disk."""
    return cache.key("object", text, fingerprint(cpu), f"{passes} {codegen}", version())


def host_triple() -> str:
    require()
    return llvm.get_default_triple()


def host_cpu() -> tuple[str, frozenset[str]]:
    """LLVM's name of this CPU, and the features that it has and the operating system lets be used."""
    require()
    return llvm.get_host_cpu_name(), frozenset(f for f, has in _host_features().items() if has)


@functools.cache
def _host_features() -> dict[str, bool]:
    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell on this platform
        return {}


def baseline() -> CpuTarget:
    """This machine's architecture without anything that some of its CPUs lack."""
    require()
    return CpuTarget(llvm.get_default_triple(), "")


def fingerprint(cpu: CpuTarget) -> str:
    """All of a CPU description, in the same words in every process."""
    facts = (cpu.triple, cpu.name, *sorted(cpu.features), cpu.lanes_f32, cpu.registers, cpu.l1, cpu.l2)
    return " ".join(map(str, facts))


@contextmanager
def _prepared(text: str, cpu: CpuTarget, passes: int, codegen: int, what: str) -> Iterator[tuple[Any, Any]]:
    """A machine and a verified module, after the passes, that nobody else has; the module goes before its context."""
    require()
    with _machine(cpu, codegen) as machine, llvm.create_context() as context:
        try:
            module = llvm.parse_assembly(text, context)
        except RuntimeError as error:
            raise _refused(what, error) from error
        with module:
            module.triple = cpu.triple
            module.data_layout = str(machine.target_data)
            try:
                module.verify()
            except RuntimeError as error:
                raise _refused(what, error) from error
            if passes > 0:
                _optimize(machine, module, passes)
            yield machine, module


def _refused(what: str, error: RuntimeError) -> CompileError:
    return CompileError(f"{what}: LLVM refuses the generated code: {str(error).strip()}")


def _optimize(machine: Any, module: Any, level: int) -> None:
    with llvm.create_pipeline_tuning_options(speed_level=level) as options:
        options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = level > 1
        with llvm.create_pass_builder(machine, options) as builder, builder.getModulePassManager() as passes:
            passes.run(module, builder)


def immortal(x: object) -> None:
    """Have an object outlive the interpreter: machine code, and what it refers to, may be asked for by what is destroyed last,
    after the globals of modules are gone."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(x))


def link(
    obj: bytes,
    symbols: Iterable[str],
    imports: Mapping[str, int] | None = None,
    *,
    externals: Iterable[str] = (),
    what: str = "module",
) -> Linked:
    """Load an object and give the addresses of `symbols`. Undefined symbols are looked for in `imports`, then in the process.

    Raises CompileError where one is missing; LLVM does not say which, so `externals` are the ones to be looked at then.
    """
    with _lock:
        require()
        library = llvm.JITLibraryBuilder().add_object_img(obj).add_current_process()
        for name in symbols:
            library.export_symbol(name)
        for name, address in (imports or {}).items():
            library.import_symbol(name, address)
        try:
            tracker = library.link(_linker, f"flame.{next(_serial)}")
        except RuntimeError as error:
            missing = [n for n in externals if not llvm.address_of_symbol(n) and n not in (imports or {})]
            why = f"this process has no {', '.join(missing)}" if missing else str(error).strip()
            raise CompileError(f"{what}: the compiled code cannot be loaded: {why}") from error
        immortal(tracker)
        return Linked({name: tracker[name] for name in symbols})
