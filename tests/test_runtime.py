"""The machine room: devices, memory that is handed out again, native code, the thread pool, and the native entry."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import flame
from flame import dtypes
from flame.capture import background
from flame.compiler.target_cpu import CpuTarget
from flame.errors import CompileError
from flame.primitive import Spec
from flame.runtime import cpu, entry, llvm_jit, memory, threads
from flame.runtime.entry import NativeStep, Plan
from flame.runtime.locks import Lock
from flame.runtime.threads import Pool

# ---- native code

COUNT = """
define void @count(ptr %bufs, ptr %syms, i64 %begin, i64 %end) {  ; adds 1 to bufs[0][c] for every chunk c
entry:
  %p = load ptr, ptr %bufs
  br label %head
head:
  %c = phi i64 [%begin, %entry], [%next, %body]
  %more = icmp slt i64 %c, %end
  br i1 %more, label %body, label %leave
body:
  %q = getelementptr i32, ptr %p, i64 %c
  %old = atomicrmw add ptr %q, i32 1 seq_cst
  %next = add i64 %c, 1
  br label %head
leave:
  ret void
}
define void @fill(ptr %bufs, ptr %syms, i64 %begin, i64 %end) {   ; bufs[1][0] = bufs[0][0] + syms[0] + syms[1]
  %p = load ptr, ptr %bufs
  %q.p = getelementptr ptr, ptr %bufs, i64 1
  %q = load ptr, ptr %q.p
  %x = load i64, ptr %p
  %a = load i64, ptr %syms
  %b.p = getelementptr i64, ptr %syms, i64 1
  %b = load i64, ptr %b.p
  %xa = add i64 %x, %a
  %xab = add i64 %xa, %b
  store i64 %xab, ptr %q
  ret void
}
"""


@pytest.fixture(scope="module")
def code() -> llvm_jit.Linked:
    return llvm_jit.link(llvm_jit.compile_object(COUNT, llvm_jit.baseline()), ["count", "fill"])


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("unlocked", [True, False])
def test_objects_made_side_by_side_are_those_made_one_by_one(
    workers: int, unlocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not unlocked:  # an llvmlite that keeps its lock
        function = type("Locked", (), {})()
        monkeypatch.setitem(llvm_jit.llvm.ffi.lib._fntab, "LLVMPY_TargetMachineEmitToMemory", function)
        monkeypatch.setattr(
            llvm_jit.llvm.TargetMachine, "emit_object", lambda self, module: b"locked" + str(module).encode(), raising=True
        )
    texts = [COUNT.replace("count", f"count{i}") for i in range(9)]
    texts[4] = "define void @f() { ret i32 0 }"
    jobs = [llvm_jit.Job(t, 0, 1 + i % 2, f"kernel {i}") for i, t in enumerate(texts)]
    made = llvm_jit.compile_objects(jobs, cpu.host(), workers)
    for i, (j, obj) in enumerate(zip(jobs, made, strict=True)):
        if i == 4:
            assert isinstance(obj, CompileError) and "kernel 4" in str(obj)
        else:
            assert isinstance(obj, bytes)
            if unlocked:
                assert obj == llvm_jit.compile_object(j.text, cpu.host(), codegen=j.codegen)
                assert llvm_jit.link(obj, [f"count{i}"])[f"count{i}"]
            else:
                assert obj.startswith(b"locked") and f"count{i}".encode() in obj
    assert llvm_jit.compile_objects([], cpu.host(), workers) == []


def test_objects_are_made_while_further_code_is_being_written(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, attempt = threading.Event(), llvm_jit._attempt
    monkeypatch.setattr(llvm_jit, "_attempt", lambda *a: begun.set() or attempt(*a))

    def written() -> Iterator[llvm_jit.Job]:
        for i in range(4):
            if i == 3:
                assert begun.wait(20), "nobody compiles yet"
            yield llvm_jit.Job(COUNT.replace("count", f"count{i}"), 0, 1, f"kernel {i}")

    made = llvm_jit.compile_objects(written(), cpu.host(), 2)
    assert [llvm_jit.link(obj, [f"count{i}"])[f"count{i}"] > 0 for i, obj in enumerate(made)] == [True] * 4


def test_a_writer_that_fails_ends_the_compiling() -> None:
    def written() -> Iterator[llvm_jit.Job]:
        for i in range(3):
            yield llvm_jit.Job(COUNT.replace("count", f"count{i}"), 0, 1, f"kernel {i}")
        raise KeyError("the fourth")

    with pytest.raises(KeyError, match="the fourth"):
        llvm_jit.compile_objects(written(), cpu.host(), 2)
    assert not any(t.name.startswith("flame-llvm") for t in threading.enumerate())


def test_wrong_text_is_a_compile_error_that_names_its_kernel() -> None:
    with pytest.raises(CompileError, match="kernel softmax.*LLVM refuses"):
        llvm_jit.compile_object("define void @f() { ret i32 0 }", llvm_jit.baseline(), what="kernel softmax")
    with pytest.raises(CompileError, match="LLVM refuses"):
        llvm_jit.compile_object("nonsense", llvm_jit.baseline())


def test_a_missing_symbol_is_an_error_and_not_a_crash() -> None:
    text = "declare void @flame_no_such_function()\ndefine void @f() {\n call void @flame_no_such_function()\n ret void\n}"
    obj = llvm_jit.compile_object(text, llvm_jit.baseline())
    with pytest.raises(CompileError, match="kernel f.*has no flame_no_such_function"):
        llvm_jit.link(obj, ["f"], externals=["sin", "flame_no_such_function"], what="kernel f")
    with pytest.raises(CompileError):
        llvm_jit.link(obj, ["g"])
    assert llvm_jit.link(obj, ["f"], {"flame_no_such_function": 1234})["f"]


@pytest.mark.parametrize("passes", [0, 1, 2, 3])
@pytest.mark.parametrize("codegen", [0, 1, 2, 3])
def test_every_level_of_optimisation_gives_the_same_code(passes: int, codegen: int) -> None:
    text = "define double @f(double %x) {\n %y = call double @sin(double %x)\n ret double %y\n}\ndeclare double @sin(double)"
    obj = llvm_jit.compile_object(text, cpu.host(), passes=passes, codegen=codegen)
    f = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(llvm_jit.link(obj, ["f"])["f"])
    assert f(0.5) == float(np.sin(0.5))


def test_objects_are_kept_on_disk_by_everything_that_they_depend_on(tmp_path: object) -> None:
    store = cpu.DiskCache(tmp_path)  # type: ignore[arg-type]
    base = llvm_jit.baseline()
    first = llvm_jit.cached_object(COUNT, base, store=store)
    assert store.hits == 0
    assert llvm_jit.cached_object(COUNT, base, store=store) == first
    assert store.hits == 1
    for text, target, level in ((COUNT + "\n", base, 2), (COUNT, cpu.host(), 2), (COUNT, base, 0)):
        llvm_jit.cached_object(text, target, codegen=level, store=store)
    assert store.hits == 1


def test_the_host_is_described() -> None:
    host = cpu.host()
    assert host.triple and host.lanes_f32 in (4, 8, 16) and host.registers in (16, 32)
    assert 8 << 10 <= host.l1 < host.l2 <= 64 << 20
    assert cpu.target().kind == "cpu" and cpu.target().units == threads.get_num_threads()
    assert llvm_jit.fingerprint(host) == llvm_jit.fingerprint(CpuTarget(**{f: getattr(host, f) for f in host.__slots__}))


# ---- threads

Call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64)


class Counter:
    """Chunks counted by a pool."""

    def __init__(self, pool: Pool, code: llvm_jit.Linked, size: int = 64):
        self.counts = np.zeros(size, np.int32)
        self._bufs = (ctypes.c_void_p * 1)(self.counts.ctypes.data)
        self._call = Call(pool.parallel_for)
        self._pool, self._code = pool, code

    def run(self, chunks: int) -> None:
        self._call(self._pool.address, self._code["count"], ctypes.addressof(self._bufs), None, chunks)


WAITING = [k for k in ("futex", "pthread") if k == threads.waiting_kind() or (k == "pthread" and os.name == "posix")]


@pytest.fixture(params=[(k, n) for k in WAITING for n in (2, 5)], ids=lambda p: f"{p[0]}-{p[1]}")
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    made = Pool(request.param[1], request.param[0])
    made.start()
    yield made
    made.close()


def test_every_chunk_runs_exactly_once(pool: Pool, code: llvm_jit.Linked) -> None:
    counter = Counter(pool, code)
    jobs = [0, 1, 2, 3, 7, 64] * 100
    for i, chunks in enumerate(jobs):
        counter.run(chunks)
        if i % 100 == 50:
            time.sleep(0.005)  # workers fall asleep, and are woken
    assert [*counter.counts] == [sum(c > i for c in jobs) for i in range(64)]


def test_callers_at_the_same_time_do_not_disturb_each_other(pool: Pool, code: llvm_jit.Linked) -> None:
    def work(_: int) -> bool:
        counter = Counter(pool, code)
        for _ in range(300):
            counter.run(64)
        return bool((counter.counts == 300).all())

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(work, range(4)))


def test_the_number_of_threads_changes_between_jobs(pool: Pool, code: llvm_jit.Linked) -> None:
    counter = Counter(pool, code)
    total = 0
    for n in (1, 3, 2, 1, 4):
        pool.resize(n)
        assert pool.threads == n and pool.wanting == (n > 1)
        counter.run(64)  # before the workers are there
        pool.start()
        for _ in range(20):
            counter.run(64)
        total += 21
    assert (counter.counts == total).all()


def test_a_closed_pool_still_runs_everything(pool: Pool, code: llvm_jit.Linked) -> None:
    pool.close()
    pool.resize(3)
    assert not pool.wanting
    counter = Counter(pool, code)
    counter.run(64)
    assert (counter.counts == 1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_starts_workers_of_its_own(pool: Pool, code: llvm_jit.Linked) -> None:
    counter = Counter(pool, code)
    counter.run(64)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            alone = pool._int32("workers").value == 0 and pool._int32("sleepers").value == 0
            counter.run(64)
            if pool.wanting and alone:
                pool.start()
                for _ in range(50):
                    counter.run(64)
                status = int(not (counter.counts == 52).all())
        finally:
            os._exit(status)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0
    counter.run(64)
    assert (counter.counts == 2).all()


def test_where_threads_cannot_be_had_the_caller_does_all(code: llvm_jit.Linked) -> None:
    pool = Pool(4, "none")
    assert pool.threads == 1 and not pool.wanting and "pthreads" in pool.serial_reason
    counter = Counter(pool, code)
    counter.run(64)
    assert (counter.counts == 1).all()


def test_the_process_ends_while_workers_sleep_and_while_a_daemon_computes() -> None:
    script = """
import ctypes, threading, time, numpy as np
from flame.runtime import llvm_jit, threads
text = '''COUNT'''
code = llvm_jit.link(llvm_jit.compile_object(text, llvm_jit.baseline()), ["count"])
threads.set_num_threads(3)
pool = threads.shared
pool.start()
counts = np.zeros(64, np.int32)
bufs = (ctypes.c_void_p * 1)(counts.ctypes.data)
call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64)(pool.parallel_for)
def forever():
    while True:
        call(pool.address, code["count"], ctypes.addressof(bufs), None, 64)
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.05)
print("leaving", counts[0] > 0, flush=True)
""".replace("COUNT", COUNT)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout.split() == [b"leaving", b"True"], done.stderr.decode()


def test_set_num_threads_says_what_it_wants() -> None:
    before = threads.get_num_threads()
    try:
        threads.set_num_threads(3)
        assert threads.get_num_threads() == 3
        for wrong in (0, -1):
            with pytest.raises(RuntimeError, match="positive"):
                threads.set_num_threads(wrong)
        for kind in (1.0, "2", None, True):
            with pytest.raises(TypeError, match="expects an int"):
                threads.set_num_threads(kind)  # type: ignore[arg-type]
        assert threads.get_num_threads() == 3
    finally:
        threads.set_num_threads(before)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", "s390x"])
@pytest.mark.parametrize("waiting", ["futex", "pthread", "none"])
def test_the_pool_can_be_compiled_for_other_machines(machine: str, waiting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if waiting == "futex" and machine == "s390x":
        pytest.skip("its system call numbers are not known, so it waits by pthread")
    monkeypatch.setattr("platform.machine", lambda: machine)
    text = threads.pool_text(waiting)
    assert "$" not in text and "PAUSE" not in text and "FUTEX" not in text
    llvm_jit.llvm.initialize_all_targets()
    llvm_jit.llvm.initialize_all_asmprinters()
    triple = {"x86_64": "x86_64-apple-darwin"}.get(machine, f"{machine}-unknown-linux-gnu")
    assert llvm_jit.compile_object(text, CpuTarget(triple, ""), what=machine)


# ---- the native entry

I64 = dtypes.int64


def spec(*shape: int, dtype: dtypes.dtype = I64) -> Spec:
    return Spec(shape, dtype)


def test_a_plan_runs_its_steps_in_order_on_arrays_and_scratch(code: llvm_jit.Linked) -> None:
    steps = [
        NativeStep(code["fill"], (0, -1 - 64), 1, symbols=(10, 1)),
        NativeStep(code["fill"], (-1 - 64, -1), 1, symbols=(200, 0)),
        NativeStep(code["fill"], (-1, 2), 0, symbols=(999, 999)),  # no chunks: nothing runs
        NativeStep(code["fill"], (-1, 1), 1, symbols=(3000, 0)),
    ]
    plan = Plan([spec(1), spec(1), spec(1)], steps)
    arena = np.zeros(100, np.uint8)
    x, y, z = (np.array([v]) for v in (5, 0, 7))
    functions = entry.entry()
    assert functions.enter is not None
    assert functions.enter(plan.address, arena.ctypes.data, x, y, z) is None
    assert (x[0], y[0], z[0]) == (5, 3216, 7)
    y[0] = 0
    pointers = (ctypes.c_void_p * 3)(*(a.ctypes.data for a in (x, y, z)))
    functions.run(plan.address, arena.ctypes.data, ctypes.addressof(pointers))
    assert y[0] == 3216


def test_arrays_that_do_not_fit_are_told_by_number_and_nothing_runs(code: llvm_jit.Linked) -> None:
    plan = Plan([spec(2, 3), spec(2, 3)], [NativeStep(code["count"], (1,), 3)])
    enter = entry.entry().enter
    assert enter is not None
    good = np.zeros((2, 3), np.int64)

    class Sub(np.ndarray):
        pass

    misaligned = np.zeros(49, np.uint8)[1:].view(np.int64).reshape(2, 3)
    big_endian = np.zeros((2, 3), ">i8")
    bad: list[object] = [
        np.zeros((3, 2), np.int64), np.zeros((2, 3), np.float64), np.zeros((2, 3), np.uint64), np.zeros((2, 3, 1), np.int64),
        np.zeros(6, np.int64), np.zeros((), np.int64), np.zeros((2, 6), np.int64)[:, ::2], np.zeros((3, 2), np.int64).T,
        good.view(Sub), misaligned, big_endian, 5, None, "x", [1, 2], np.int64(3), memoryview(good),
    ]  # fmt: skip
    for wrong in bad:
        assert enter(plan.address, 0, wrong, good) == 0
        assert enter(plan.address, 0, good, wrong) == 1
    assert not good.any()
    assert enter(plan.address, 0, good, good) is None
    assert good.view(np.int32).ravel()[:3].tolist() == [1, 1, 1]


def test_references_are_neither_lost_nor_kept(code: llvm_jit.Linked) -> None:
    plan = Plan([spec(4)], [NativeStep(code["count"], (0,), 4)])
    enter = entry.entry().enter
    assert enter is not None
    a, bad = np.zeros(4, np.int64), np.zeros(5, np.int64)
    before = [sys.getrefcount(x) for x in (a, bad, None, I64.numpy)]
    for _ in range(1000):
        enter(plan.address, 0, a)
        enter(plan.address, 0, bad)
    after = [sys.getrefcount(x) for x in (a, bad, None, I64.numpy)]
    assert all(abs(x - y) < 50 for x, y in zip(before, after)), (before, after)


def test_results_are_made_where_the_plan_runs(code: llvm_jit.Linked) -> None:
    """`answer` checks what it is given as `enter` does, makes the rest, and loses no reference."""
    answer = entry.entry().answer
    assert answer is not None
    plan = Plan(
        [spec(1), spec(2, 3), spec(), spec(0, 4)], [NativeStep(code["count"], (1,), 3), NativeStep(code["count"], (2,), 1)]
    )
    x, bad = np.array([5]), np.array([5.0])
    before = [sys.getrefcount(o) for o in (x, bad, I64.numpy)]
    for _ in range(500):
        made = answer(plan.address, 0, [x])
        assert isinstance(made, list) and [a.shape for a in made] == [(2, 3), (), (0, 4)]
        assert answer(plan.address, 0, [bad]) == 0 and answer(plan.address, 0, [x, x]) == 1
        assert answer(plan.address, 0, [x, np.zeros((2, 3), np.int64), np.array(0), np.zeros((0, 4), np.int64), x]) == 4
        with pytest.raises(SystemError):
            answer(plan.address, 0, (x,))  # type: ignore[arg-type]
    assert isinstance(made, list) and all(a.dtype is I64.numpy and a.flags.carray and a.flags.owndata for a in made)
    del made
    after = [sys.getrefcount(o) for o in (x, bad, I64.numpy)]
    assert all(abs(m - n) < 50 for m, n in zip(before, after)), (before, after)


def test_results_that_find_no_memory_are_told(code: llvm_jit.Linked) -> None:
    answer = entry.entry().answer
    assert answer is not None
    plan = Plan([spec(1), spec(1 << 50)], [NativeStep(code["count"], (0,), 1)])
    x = np.array([5])
    assert answer(plan.address, 0, [x]) == -1 and x[0] == 5


def test_python_runs_while_a_long_plan_does(code: llvm_jit.Linked) -> None:
    """A plan that another thread runs does not hold the interpreter lock, unless it says that it is short."""
    slow = Plan([spec(1 << 20, dtype=dtypes.int32)], [NativeStep(code["count"], (0,), 1 << 20)] * 30)
    enter = entry.entry().enter
    assert enter is not None
    big = np.zeros(1 << 20, np.int32)
    finished = threading.Event()

    def work() -> None:
        for _ in range(5):
            enter(slow.address, 0, big)
        finished.set()

    worker = threading.Thread(target=work)
    worker.start()
    seen = set()
    while not finished.is_set():
        seen.add(int(big[0]) % 30)
    worker.join()
    assert len(seen) > 3, "only whole runs were seen"
    assert (big == 150).all()


def test_the_layout_of_arrays_is_tried_before_it_is_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert entry.arrays_are_readable()
    for field in ("data", "nd", "dimensions", "descr", "flags"):
        monkeypatch.setitem(entry._FIELDS, field, entry._FIELDS[field] + 8)
        assert not entry.arrays_are_readable(), field
        monkeypatch.undo()


def test_a_short_plan_keeps_the_interpreter_lock(code: llvm_jit.Linked) -> None:
    """With another thread computing in Python, a call that let go would wait milliseconds for its next turn, each time."""
    step = NativeStep(code["count"], (0,), 1, microseconds=0.1)
    plan = Plan([spec(1)], [step])
    long = Plan([spec(1)], [NativeStep(code["count"], (0,), 1, microseconds=30.0)])
    unknown = Plan([spec(1)], [step, NativeStep(code["count"], (0,), 1)])
    assert [p._words[4] for p in (plan, long, unknown)] == [0, 1, 1]
    enter = entry.entry().enter
    assert enter is not None
    a = np.zeros(1, np.int64)
    for p in (plan, long, unknown):
        assert enter(p.address, 0, a) is None
    assert a[0] == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_finds_locks_open_that_another_thread_held() -> None:
    lock, held, done = Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends the child if it waits for ever
        with lock, lock:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    done.set()
    holder.join()


@pytest.mark.skipif(memory._heap() is None or not os.path.exists("/proc/self/statm"), reason="not glibc's heap")
def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    large = np.ones(24 << 20, np.uint8)
    del large  # from now on arrays of up to this size are in the heap
    many = [np.ones(1 << 20, np.uint8) for _ in range(150)]
    most, last = resident(), many[-1]
    del many
    memory.trim()
    assert resident() < most - (100 << 20) and last.all()


def test_compiling_gives_back_what_the_recorded_call_held(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(background, "trim", lambda: given.append(1))
    f = flame.compile(lambda x: x * 2 + 1)
    for n in (0, 1, 1):
        f(flame.ones(3))
        assert len(given) == n
