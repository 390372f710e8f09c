"""The thread pool that compiled kernels share: native workers, written as LLVM IR so that no Python runs between kernels.

    flame_parallel_for(pool, fn, bufs, syms, chunks)     runs fn(bufs, syms, c, c + 1) for every c, on all threads, and returns

One job at a time. A job is published as a 64-bit word, generation << 32 | chunks left; whoever takes a chunk (the caller works
too) does so by compare-and-swap on that word, and reads the job's function only afterwards: as long as the chunk it holds is
not done the job cannot end, so nothing it reads can change. The caller waits until all chunks are done, never for a worker. A
second caller, or a caller inside a job, finds the pool busy and runs its chunks itself.

Idle workers watch the generation for some microseconds and then sleep: on a futex on Linux, on a condition variable where
there is pthread but no futex. Elsewhere, and after anything that keeps threads from starting, everything runs on the caller
(`Pool.serial_reason` says why). Before waking sleepers the caller moves them off the CPU that it runs on (Linux): woken
threads are otherwise often queued there, behind the very thread that waits for them, and give no speed-up.

Workers start at the first program that has parallel work, end at exit, and are started anew in a forked child when it needs
them. They are plain pthreads that Python never sees, and no signal is delivered to them.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import re
import signal
import sys
from typing import Final

from flame.knobs import knobs
from flame.runtime import llvm_jit
from flame.runtime.locks import Lock

#: Offsets in the pool's memory: what different threads write lies on different cache lines.
_AT: Final = {
    "generation": 0, "sleepers": 64, "word": 128, "done": 192, "caller_sleeps": 256, "busy": 320,
    "fn": 384, "bufs": 392, "syms": 400, "chunks": 408, "stop": 448, "spin": 452, "steer": 456, "cpu": 460, "workers": 464,
    "started": 512, "mutex": 576, "condition": 704, "all_cpus": 832, "other_cpus": 960, "thread_ids": 1088,
}  # fmt: skip
_MOST_WORKERS: Final = 255
_STEERED: Final = 16  #: moving a thread is a system call; past this many there are idle CPUs to wake on
_SIZE: Final = _AT["thread_ids"] + 4 * (_MOST_WORKERS + 1)
_SPIN: Final = 2000  #: pauses before a worker sleeps: 20 to 60 us
_CPU_BYTES: Final = 128  #: of a CPU set, as in the C library

_SYSCALLS: Final = {  # futex, gettid, sched_setaffinity
    "x86_64": (202, 186, 203), "aarch64": (98, 178, 122), "riscv64": (98, 178, 122),
}  # fmt: skip

_WAITING: Final = {
    "futex": """
declare i64 @syscall(i64, ...)
define internal void @sleep_while(ptr %pool, ptr %at, i32 %expected) {
  call i64 (i64, ...) @syscall(i64 FUTEX, ptr %at, i64 128, i32 %expected, ptr null, ptr null, i64 0)
  ret void
}
define internal void @wake(ptr %pool, ptr %at, i64 %count) {
  call i64 (i64, ...) @syscall(i64 FUTEX, ptr %at, i64 129, i64 %count, ptr null, ptr null, i64 0)
  ret void
}
define internal i32 @thread_id() {
  %t = call i64 (i64, ...) @syscall(i64 GETTID)
  %t32 = trunc i64 %t to i32
  ret i32 %t32
}
define internal void @move_thread(i32 %id, ptr %cpus) {
  call i64 (i64, ...) @syscall(i64 SETAFFINITY, i32 %id, i64 128, ptr %cpus)
  ret void
}
declare i32 @sched_getcpu()
""",
    # One condition variable for both waits: sleepers look again at what they wait for, so waking too many is only slow.
    "pthread": """
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
define internal void @sleep_while(ptr %pool, ptr %at, i32 %expected) {
  %m = getelementptr i8, ptr %pool, i64 $mutex
  %c = getelementptr i8, ptr %pool, i64 $condition
  call i32 @pthread_mutex_lock(ptr %m)
  br label %look
look:
  %now = load atomic i32, ptr %at seq_cst, align 4
  %same = icmp eq i32 %now, %expected
  br i1 %same, label %wait, label %leave
wait:
  call i32 @pthread_cond_wait(ptr %c, ptr %m)
  br label %look
leave:
  call i32 @pthread_mutex_unlock(ptr %m)
  ret void
}
define internal void @wake(ptr %pool, ptr %at, i64 %count) {
  %m = getelementptr i8, ptr %pool, i64 $mutex
  %c = getelementptr i8, ptr %pool, i64 $condition
  call i32 @pthread_mutex_lock(ptr %m)
  call i32 @pthread_cond_broadcast(ptr %c)
  call i32 @pthread_mutex_unlock(ptr %m)
  ret void
}
define internal i32 @thread_id() {
  ret i32 0
}
define internal void @move_thread(i32 %id, ptr %cpus) {
  ret void
}
define internal i32 @sched_getcpu() {
  ret i32 0
}
""",
}
# Where nobody can be woken there are no workers either, and these are never reached.
_WAITING["none"] = """
define internal void @sleep_while(ptr %pool, ptr %at, i32 %expected) {
  ret void
}
define internal void @wake(ptr %pool, ptr %at, i64 %count) {
  ret void
}
define internal i32 @thread_id() {
  ret i32 0
}
define internal void @move_thread(i32 %id, ptr %cpus) {
  ret void
}
define internal i32 @sched_getcpu() {
  ret i32 0
}
"""

_PAUSE: Final = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}

_POOL: Final = """
define internal void @work(ptr %pool) {                 ; take chunks until none is left
entry:
  %word = getelementptr i8, ptr %pool, i64 $word
  %done = getelementptr i8, ptr %pool, i64 $done
  br label %look
look:
  %w = load atomic i64, ptr %word acquire, align 8
  %left = and i64 %w, 4294967295
  %none = icmp eq i64 %left, 0
  br i1 %none, label %leave, label %take
take:
  %w1 = sub i64 %w, 1
  %swap = cmpxchg ptr %word, i64 %w, i64 %w1 acq_rel acquire
  %mine = extractvalue {i64, i1} %swap, 1
  br i1 %mine, label %run, label %retry
retry:
  PAUSE
  br label %look
run:
  %fn.p = getelementptr i8, ptr %pool, i64 $fn
  %bufs.p = getelementptr i8, ptr %pool, i64 $bufs
  %syms.p = getelementptr i8, ptr %pool, i64 $syms
  %chunks.p = getelementptr i8, ptr %pool, i64 $chunks
  %fn = load ptr, ptr %fn.p
  %bufs = load ptr, ptr %bufs.p
  %syms = load ptr, ptr %syms.p
  %chunks = load i64, ptr %chunks.p
  %begin = sub i64 %chunks, %left
  %end = add i64 %begin, 1
  call void %fn(ptr %bufs, ptr %syms, i64 %begin, i64 %end)
  %before = atomicrmw add ptr %done, i32 1 seq_cst
  %now = add i32 %before, 1
  %all = trunc i64 %chunks to i32
  %last = icmp eq i32 %now, %all
  br i1 %last, label %finish, label %look
finish:                                                 ; the caller's job may be over from here on: touch only the pool
  %asleep.p = getelementptr i8, ptr %pool, i64 $caller_sleeps
  %asleep = load atomic i32, ptr %asleep.p seq_cst, align 4
  %awake = icmp eq i32 %asleep, 0
  br i1 %awake, label %look, label %rouse
rouse:
  call void @wake(ptr %pool, ptr %done, i64 1)
  br label %look
leave:
  ret void
}

define ptr @flame_worker(ptr %pool) {
entry:
  %generation = getelementptr i8, ptr %pool, i64 $generation
  %sleepers = getelementptr i8, ptr %pool, i64 $sleepers
  %stop = getelementptr i8, ptr %pool, i64 $stop
  %spin.p = getelementptr i8, ptr %pool, i64 $spin
  %started = getelementptr i8, ptr %pool, i64 $started
  %g0 = load atomic i32, ptr %generation seq_cst, align 4
  %id = call i32 @thread_id()
  %n = atomicrmw add ptr %started, i32 1 seq_cst
  %ids = getelementptr i8, ptr %pool, i64 $thread_ids
  %slot = getelementptr i32, ptr %ids, i32 %n
  store atomic i32 %id, ptr %slot monotonic, align 4
  br label %idle
idle:
  %g = phi i32 [%g0, %entry], [%seen, %job], [%g, %sleep]
  %stopped = load atomic i32, ptr %stop seq_cst, align 4
  %go.on = icmp eq i32 %stopped, 0
  br i1 %go.on, label %watch, label %quit
watch:
  %most = load atomic i32, ptr %spin.p monotonic, align 4
  br label %spin
spin:
  %k = phi i32 [0, %watch], [%k1, %pause]
  %seen = load atomic i32, ptr %generation seq_cst, align 4
  %new = icmp ne i32 %seen, %g
  br i1 %new, label %awake, label %bored
bored:
  %k1 = add i32 %k, 1
  %more = icmp slt i32 %k1, %most
  br i1 %more, label %pause, label %sleep
pause:
  PAUSE
  br label %spin
sleep:
  %s0 = atomicrmw add ptr %sleepers, i32 1 seq_cst
  call void @sleep_while(ptr %pool, ptr %generation, i32 %g)
  %s1 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %idle
awake:
  %stopped2 = load atomic i32, ptr %stop seq_cst, align 4
  %go.on2 = icmp eq i32 %stopped2, 0
  br i1 %go.on2, label %job, label %quit
job:
  call void @work(ptr %pool)
  br label %idle
quit:
  ret ptr null
}

define internal void @move_workers(ptr %pool) {                ; move the workers off the CPU that the caller runs on
entry:
  %wanted.p = getelementptr i8, ptr %pool, i64 $steer
  %wanted = load i32, ptr %wanted.p
  %no = icmp eq i32 %wanted, 0
  br i1 %no, label %leave, label %look
look:
  %cpu = call i32 @sched_getcpu()
  %cpu.p = getelementptr i8, ptr %pool, i64 $cpu
  %before = load i32, ptr %cpu.p
  %same = icmp eq i32 %cpu, %before
  %odd = icmp uge i32 %cpu, CPU_BITS
  %keep = or i1 %same, %odd
  br i1 %keep, label %leave, label %mask
mask:
  store i32 %cpu, ptr %cpu.p
  %all = getelementptr i8, ptr %pool, i64 $all_cpus
  %other = getelementptr i8, ptr %pool, i64 $other_cpus
  call void @llvm.memcpy.p0.p0.i64(ptr %other, ptr %all, i64 CPU_BYTES, i1 false)
  %byte.i = lshr i32 %cpu, 3
  %bit.i32 = and i32 %cpu, 7
  %bit.i = trunc i32 %bit.i32 to i8
  %byte.p = getelementptr i8, ptr %other, i32 %byte.i
  %byte = load i8, ptr %byte.p
  %bit = shl i8 1, %bit.i
  %rest = xor i8 %bit, -1
  %cleared = and i8 %byte, %rest
  store i8 %cleared, ptr %byte.p
  %started = getelementptr i8, ptr %pool, i64 $started
  %ids = getelementptr i8, ptr %pool, i64 $thread_ids
  %n0 = load atomic i32, ptr %started seq_cst, align 4
  %n = call i32 @llvm.umin.i32(i32 %n0, i32 STEERED)
  br label %next
next:
  %i = phi i32 [0, %mask], [%i1, %move]
  %more = icmp ult i32 %i, %n
  br i1 %more, label %move, label %leave
move:
  %id.p = getelementptr i32, ptr %ids, i32 %i
  %id = load atomic i32, ptr %id.p monotonic, align 4
  call void @move_thread(i32 %id, ptr %other)
  %i1 = add i32 %i, 1
  br label %next
leave:
  ret void
}

define void @flame_parallel_for(ptr %pool, ptr %fn, ptr %bufs, ptr %syms, i64 %chunks) {
entry:
  %busy = getelementptr i8, ptr %pool, i64 $busy
  %workers.p = getelementptr i8, ptr %pool, i64 $workers
  %workers = load atomic i32, ptr %workers.p monotonic, align 4
  %alone = icmp eq i32 %workers, 0
  %few = icmp slt i64 %chunks, 2
  %many = icmp sgt i64 %chunks, 2147483647
  %s0 = or i1 %alone, %few
  %s1 = or i1 %s0, %many
  br i1 %s1, label %serial, label %try
try:
  %swap = cmpxchg ptr %busy, i32 0, i32 1 acq_rel monotonic
  %mine = extractvalue {i32, i1} %swap, 1
  br i1 %mine, label %publish, label %serial
serial:
  call void %fn(ptr %bufs, ptr %syms, i64 0, i64 %chunks)
  ret void
publish:
  %fn.p = getelementptr i8, ptr %pool, i64 $fn
  %bufs.p = getelementptr i8, ptr %pool, i64 $bufs
  %syms.p = getelementptr i8, ptr %pool, i64 $syms
  %chunks.p = getelementptr i8, ptr %pool, i64 $chunks
  %done = getelementptr i8, ptr %pool, i64 $done
  %word = getelementptr i8, ptr %pool, i64 $word
  %asleep = getelementptr i8, ptr %pool, i64 $caller_sleeps
  %sleepers = getelementptr i8, ptr %pool, i64 $sleepers
  %generation = getelementptr i8, ptr %pool, i64 $generation
  store ptr %fn, ptr %fn.p
  store ptr %bufs, ptr %bufs.p
  store ptr %syms, ptr %syms.p
  store i64 %chunks, ptr %chunks.p
  store atomic i32 0, ptr %done monotonic, align 4
  store atomic i32 0, ptr %asleep monotonic, align 4
  %g = load atomic i32, ptr %generation monotonic, align 4
  %g1 = add i32 %g, 1
  %high = zext i32 %g1 to i64
  %shifted = shl i64 %high, 32
  %w = or i64 %shifted, %chunks
  store atomic i64 %w, ptr %word seq_cst, align 8
  store atomic i32 %g1, ptr %generation seq_cst, align 4
  %s = load atomic i32, ptr %sleepers seq_cst, align 4
  %nobody = icmp eq i32 %s, 0
  br i1 %nobody, label %own, label %rouse
rouse:
  call void @move_workers(ptr %pool)
  %others = sub i64 %chunks, 1
  call void @wake(ptr %pool, ptr %generation, i64 %others)
  br label %own
own:
  call void @work(ptr %pool)
  %all = trunc i64 %chunks to i32
  br label %wait
wait:
  %k = phi i32 [0, %own], [%k1, %pause], [0, %doze], [0, %sleep]
  %d = load atomic i32, ptr %done seq_cst, align 4
  %finished = icmp eq i32 %d, %all
  br i1 %finished, label %leave, label %watch
watch:
  %k1 = add i32 %k, 1
  %more = icmp slt i32 %k1, 4000
  br i1 %more, label %pause, label %doze
pause:
  PAUSE
  br label %wait
doze:
  store atomic i32 1, ptr %asleep seq_cst, align 4
  %d2 = load atomic i32, ptr %done seq_cst, align 4
  %finished2 = icmp eq i32 %d2, %all
  br i1 %finished2, label %wait, label %sleep
sleep:
  call void @sleep_while(ptr %pool, ptr %done, i32 %d2)
  br label %wait
leave:
  store atomic i32 0, ptr %busy release, align 4
  ret void
}

define void @flame_pool_stop(ptr %pool) {
  %stop = getelementptr i8, ptr %pool, i64 $stop
  %generation = getelementptr i8, ptr %pool, i64 $generation
  store atomic i32 1, ptr %stop seq_cst, align 4
  %g = atomicrmw add ptr %generation, i32 1 seq_cst
  call void @wake(ptr %pool, ptr %generation, i64 2147483647)
  ret void
}

define void @flame_pool_lock(ptr %pool) {               ; wait until no job runs, and let none begin
entry:
  %busy = getelementptr i8, ptr %pool, i64 $busy
  br label %try
try:
  %swap = cmpxchg ptr %busy, i32 0, i32 1 acq_rel monotonic
  %mine = extractvalue {i32, i1} %swap, 1
  br i1 %mine, label %leave, label %wait
wait:
  PAUSE
  br label %try
leave:
  ret void
}

define void @flame_pool_unlock(ptr %pool) {
  %busy = getelementptr i8, ptr %pool, i64 $busy
  store atomic i32 0, ptr %busy release, align 4
  ret void
}
declare i32 @llvm.umin.i32(i32, i32)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""
_SYMBOLS: Final = ("flame_worker", "flame_parallel_for", "flame_pool_stop", "flame_pool_lock", "flame_pool_unlock")


def waiting_kind() -> str:
    """How threads can sleep and be woken here: "futex", "pthread" or "none"."""
    if sys.platform == "linux" and platform.machine() in _SYSCALLS:
        return "futex"
    return "pthread" if os.name == "posix" else "none"


def pool_text(waiting: str) -> str:
    """The pool's code as LLVM IR text."""
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    declared, pause = _PAUSE.get(machine, ("", ""))
    text = declared + _WAITING[waiting] + _POOL.replace("PAUSE", pause)
    for word, number in zip(("FUTEX", "GETTID", "SETAFFINITY"), _SYSCALLS.get(machine, ())):
        text = re.sub(rf"\b{word}\b", str(number), text)
    for word, number in (("STEERED", _STEERED), ("CPU_BYTES", _CPU_BYTES), ("CPU_BITS", 8 * _CPU_BYTES)):
        text = re.sub(rf"\b{word}\b", str(number), text)
    return re.sub(r"\$(\w+)", lambda m: str(_AT[m[1]]), text)


class Pool:
    """Workers and the memory they watch. The process has one, `shared`; tests make their own."""

    def __init__(self, threads: int, waiting: str | None = None):
        self.waiting = waiting_kind() if waiting is None else waiting
        #: why everything runs on the caller; empty where workers can be had
        self.serial_reason = "this platform has no pthreads" if self.waiting == "none" else ""
        self._memory = ctypes.create_string_buffer(_SIZE + 128)
        llvm_jit.immortal(self._memory)  # (compiled code has its address)
        #: what the first argument of flame_parallel_for is
        self.address = -(-ctypes.addressof(self._memory) // 128) * 128
        self._threads: list[ctypes.c_void_p] = []
        self._code: llvm_jit.Linked | None = None
        self._closed = False
        self._lock = Lock()
        self.resize(threads)
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    @property
    def parallel_for(self) -> int:
        """The address of flame_parallel_for."""
        return self._functions()["flame_parallel_for"]

    def resize(self, threads: int) -> None:
        """Have `threads` threads work, the caller being one of them. Waits for a running job where workers must go."""
        with self._lock:
            self._end()
            self.threads = 1 if self.serial_reason else min(threads, _MOST_WORKERS + 1)
            #: `start` has something to do: whoever is about to run parallel work looks at this first
            self.wanting = self.threads > 1 and not self._closed

    def start(self) -> None:
        """Start the workers that are wanted."""
        with self._lock:
            if not self.wanting:
                return
            self.wanting = False
            call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
            code = self._functions()
            # Held meanwhile: a caller that saw the earlier workers may still be about to publish a job.
            call(code["flame_pool_lock"])(self.address)
            try:
                self._start(code)
            finally:
                call(code["flame_pool_unlock"])(self.address)

    def _start(self, code: llvm_jit.Linked) -> None:
        after = _AT["busy"] + 4
        ctypes.memset(self.address, 0, _AT["busy"])
        ctypes.memset(self.address + after, 0, _SIZE - after)
        self._int32("spin").value = _SPIN
        self._int32("cpu").value = -1
        libc = ctypes.CDLL(None)
        if self.waiting == "pthread":
            libc.pthread_mutex_init(ctypes.c_void_p(self.address + _AT["mutex"]), None)
            libc.pthread_cond_init(ctypes.c_void_p(self.address + _AT["condition"]), None)
        cpus = self._write_cpus()
        masked = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            for _ in range(self.threads - 1):
                thread = ctypes.c_void_p()
                worker, memory = ctypes.c_void_p(code["flame_worker"]), ctypes.c_void_p(self.address)
                error = libc.pthread_create(ctypes.byref(thread), None, worker, memory)
                if error:
                    self.serial_reason = "" if self._threads else f"no thread could be started: {os.strerror(error)}"
                    break
                self._threads.append(thread)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        self._int32("steer").value = int(self.waiting == "futex" and 0 < len(self._threads) < cpus)
        self._int32("workers").value = len(self._threads)

    def close(self) -> None:
        """End the workers for good; what runs later runs on its caller."""
        with self._lock:
            self._closed = True
            self.wanting = False
            self._end()

    def _functions(self) -> llvm_jit.Linked:
        if self._code is None:
            text = pool_text(self.waiting)
            obj = llvm_jit.cached_object(text, llvm_jit.baseline(), what="thread pool")
            self._code = llvm_jit.link(obj, _SYMBOLS, what="thread pool")
        return self._code

    def _end(self) -> None:
        if not self._threads:
            return
        code = self._functions()
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        call(code["flame_pool_lock"])(self.address)
        self._int32("workers").value = 0
        call(code["flame_pool_stop"])(self.address)
        libc = ctypes.CDLL(None)
        for thread in self._threads:
            libc.pthread_join(thread, None)
        self._threads.clear()
        call(code["flame_pool_unlock"])(self.address)

    def _forget(self) -> None:
        """In a forked child: its workers do not exist, and whoever ran a job is not there."""
        self._threads.clear()
        ctypes.memset(self.address, 0, _SIZE)
        self.wanting = self.threads > 1 and not self._closed

    def _int32(self, field: str) -> ctypes.c_int32:
        return ctypes.c_int32.from_address(self.address + _AT[field])

    def _write_cpus(self) -> int:
        """Note which CPUs the workers may use; how many these are."""
        if not hasattr(os, "sched_getaffinity"):
            return 0
        cpus = os.sched_getaffinity(0)
        mask = sum(1 << c for c in cpus if c < 8 * _CPU_BYTES).to_bytes(_CPU_BYTES, sys.byteorder)
        ctypes.memmove(self.address + _AT["all_cpus"], mask, _CPU_BYTES)
        return len(cpus)


shared: Final = Pool(knobs.num_threads)


def get_num_threads() -> int:
    """How many threads compiled kernels use."""
    return shared.threads


def set_num_threads(count: int) -> None:
    """Let compiled kernels use `count` threads. Results do not depend on it.

    Raises TypeError or RuntimeError, as PyTorch does, unless `count` is a positive int.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"set_num_threads expects an int, but got {type(count).__name__}")
    if count < 1:
        raise RuntimeError("set_num_threads expects a positive integer")
    shared.resize(count)
