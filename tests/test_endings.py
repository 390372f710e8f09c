"""The end of a process: compiled functions that are called from `__del__`, threads that are stopped in the middle of compiling; and
that no two threads are given one machine of LLVM's."""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flame.runtime import cache, cpu, llvm_apart, llvm_jit
from flame.runtime.cache import DiskCache
from tests.test_processes import run
from tests.test_runtime import COUNT

LATE = """
import os
import flame
from flame.capture import native

class Late:
    def __init__(self, f):
        self.f, self.x, self.write = f, flame.ones(3), os.write

    def __del__(self):
        try:
            for _ in range(8):
                y = self.f(self.x)
            said = f"gave {y.item()}"
        except RuntimeError as error:
            said = f"refused: {error}"
        self.write(1, said.encode())

f = flame.compile(lambda x: (x * 2 + 1).sum(), backend="eager")
"""

WARM = """
from flame.native import layout
layout.usable()
for _ in range(native.OFTEN - 4):
    f(flame.ones(3))
late = Late(f)
"""

HELD = """
import functools
import threading
from flame.runtime import locks
late = Late(flame.compile(lambda x: (x * 2 + 1).sum(), backend="interpret"))
exec('''
def hold():
    with compiling:
        held.set()
        threading.Event().wait()
''', space := {"threading": threading, "compiling": locks.compiling, "held": (held := threading.Event())})
threading.Thread(target=space["hold"], daemon=True).start()
held.wait()
"""

INSIDE = """
import atexit, threading
at_work = False
atexit.register(lambda: print("at work" if at_work else "nobody is at work"))  # (the last to be called)
import flame
from flame.runtime import llvm_jit

text = "".join(
    f"define double @f{i}(double %x) {{\\n  %a0 = fadd double %x, 1.0\\n"
    + "".join(f"  %a{j} = fmul double %a{j - 1}, %a{j // 2}\\n" for j in range(1, 300))
    + "  ret double %a299\\n}\\n"
    for i in range(20)
)
jobs = [llvm_jit.Job(text, 0, 2, f"kernel {i}") for i in range(3)]
begun = threading.Event()
emit = llvm_jit._emit
llvm_jit._emit = lambda *given: begun.set() or emit(*given)

def work():
    global at_work
    at_work = True
    llvm_jit.compile_objects(jobs, llvm_jit.baseline(), 2)
    at_work = False
    threading.Event().wait()

threading.Thread(target=work, daemon=True).start()
background = flame.compile(lambda x: (x.tanh() * 2).sum(0), options={"background": True})
begun.wait()
for _ in range(3):
    background(flame.ones(5, 2))
"""

SHORT = """
import threading, time
import flame
from flame.capture import native

def slow():
    begun.set()
    time.sleep(0.3)
    print("half of it")
    return made()

def other():
    print("all of it")
    return capture()

begun, made, capture = threading.Event(), lambda: Nothing(), lambda: Nothing()
class Nothing:
    places = []
    def begin(self): return None
    def link(self): return self
    def put(self): pass
    def take_away(self): pass
native.native_eager.made, native._made = slow, other
f = flame.compile(lambda x: x * 2, backend="eager")
for _ in range(native.OFTEN + 1):
    f(flame.ones(3))
begun.wait()
"""


def test_a_call_so_late_that_no_thread_begins_any_more_runs_in_python(tmp_path: Path) -> None:
    """It is the call after which native code is made, on a thread of its own."""
    assert run(LATE + WARM, tmp_path) == "gave 9.0"


def test_a_call_that_needs_what_a_stopped_thread_holds_is_refused(tmp_path: Path) -> None:
    assert run(LATE + HELD, tmp_path).startswith("refused: the interpreter ends")


def test_a_process_ends_after_its_threads_are_out_of_llvm(tmp_path: Path) -> None:
    assert run(INSIDE, tmp_path, FLAME_NUM_THREADS="2").strip() == "nobody is at work"


def test_a_process_that_ends_drops_the_native_code_that_is_not_begun(tmp_path: Path) -> None:
    assert run(SHORT, tmp_path).strip() == "half of it"
    assert run(SHORT + "native.wait()", tmp_path).split("\n")[:2] == ["half of it", "all of it"]


def test_threads_that_compile_at_once_have_a_machine_each(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    shared: list[Any] = []
    emit = llvm_jit._emit

    def slow(machine: Any, module: Any) -> bytes:
        if id(machine) in used:
            shared.append(machine)
        used.append(id(machine))
        time.sleep(0.02)
        got = emit(machine, module)
        used.remove(id(machine))
        return got

    monkeypatch.setattr(llvm_jit, "_emit", slow)
    jobs = [llvm_jit.Job(COUNT.replace("count", f"count{i}"), 0, 1, f"kernel {i}") for i in range(4)]
    threads = [threading.Thread(target=llvm_jit.compile_objects, args=(jobs, cpu.host(), 3)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not shared


APART = """
import flame
from flame.runtime import llvm_apart, llvm_jit
making = llvm_apart.begin({text!r}, llvm_jit.baseline(), passes=1, what="a test")
print(llvm_jit.name_of({text!r}, llvm_jit.baseline(), passes=1))
"""
NAMED = COUNT.replace("count", "apart")


@pytest.mark.parametrize("text, made", [(NAMED, True), ("no code", False)])
def test_what_another_process_compiles_is_on_disk_though_this_one_ended(tmp_path: Path, text: str, made: bool) -> None:
    store = DiskCache(tmp_path)
    program = APART.format(text=text) + ("" if made else "making.wait()\n")
    name = run(program, tmp_path, FLAME_CACHE="1", FLAME_CACHE_DIR=str(tmp_path)).strip()
    for _ in range(1200 if made else 1):
        if store.holds(name):
            break
        time.sleep(0.1)
    assert store.holds(name) == made
    if made:
        assert store.get(name) == llvm_jit.compile_object(text, llvm_jit.baseline(), passes=1)


def test_without_a_store_or_a_python_to_start_nothing_is_made_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = functools.partial(llvm_apart.begin, NAMED, llvm_jit.baseline(), passes=1, what="a test")
    monkeypatch.setattr(cache, "_shared", DiskCache(None))
    assert begin() is None
    monkeypatch.setattr(cache, "_shared", DiskCache(tmp_path))
    monkeypatch.setattr("sys.executable", "/usr/bin/blender")
    assert begin() is None
    monkeypatch.undo()


def test_while_native_code_is_compiled_apart_nobody_is_held_up(tmp_path: Path) -> None:
    """Others compile meanwhile; a forked child does not wait for what only its parent is told of; then it comes into force."""
    program = """
import os
import flame
from flame.capture import native
from flame.runtime.locks import compiling

class Apart:
    places = []
    def begin(self): return self
    def link(self): return self
    def put(self): pass
    def take_away(self): pass
    def wait(self):
        free.append(compiling._lock.acquire(False))
        compiling._lock.release()
        if len(free) == 1:
            pid = os.fork()
            if pid == 0:
                os._exit(0 if all(job.over for job in native._State.jobs.values()) else 1)
            left.append(os.waitpid(pid, 0)[1])

free, left = [], []
native.native_eager.made = native._made = Apart
f = flame.compile(lambda x: x * 2, backend="eager")
for _ in range(native.OFTEN + 1):
    f(flame.ones(3))
native.wait()
print(native._State.force, free, left)
"""
    said = run(program, tmp_path, FLAME_NATIVE="auto").strip()
    assert said == "('eager', 'capture') [True, True] [0]"
