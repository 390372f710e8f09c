"""Compiling plans, now or on a thread of its own while the program goes on (`options={"background": True}`).

    job = submit(work)                   work() runs on the compiling thread, after what was submitted before
    job = submit_around(begin, finish)   both do, with a wait between for what other processes do, which holds nobody up
    job.over                             whether it ran, or never will

The thread lives while there is work. It is no daemon: a process that ends waits for the compilation in hand (a thread that is
killed inside of LLVM takes the process with it) and drops the others. A fork waits for the one in hand, too; in the child, where
the thread does not exist, all others are over and `lost`, and are submitted anew by whoever needs them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from flame.capture.compiled import collector_paused, say
from flame.capture.trace import Capture, Step
from flame.knobs import knobs
from flame.reasons import NOT_COMPILED
from flame.runtime.locks import Lock, compiling
from flame.runtime.memory import trim


class Job:
    """`error` is what the work raised."""

    def __init__(self, work: Callable[[], None] | None):
        self._work = work
        self._done = threading.Event()
        self.error: Exception | None = None
        self.lost = False

    @property
    def over(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is over, after at most so many seconds."""
        return self._done.wait(timeout)

    def run(self) -> None:
        try:
            if self._work is not None:
                with compiling:
                    self._work()
        except Exception as e:  # whoever submitted it says so
            self.error = e
        finally:
            self._finish()

    def lose(self) -> None:
        self.lost = True
        self._finish()

    def _finish(self) -> None:
        self._work = None  # (it may hold a whole graph)
        self._done.set()


class _Queue:
    """The process's."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()  #: the first is in hand
        self.around: list[Job] = []  #: of two halves, that are not over
        self.lock = Lock()
        self.thread: threading.Thread | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def submit(self, job: Job) -> None:
        if sys.is_finalizing() or not threading.main_thread().is_alive():
            return job.lose()  # (a thread that begins now is waited for by nobody, or never runs)
        with self.lock:
            self.jobs.append(job)
            if self.thread is not None:
                return
            thread = self.thread = threading.Thread(target=self._work, name="flame compiles", daemon=False)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, or no thread can be had
            self._work()

    def _work(self) -> None:
        while True:
            with self.lock:
                if not threading.main_thread().is_alive():
                    while self.jobs:
                        self.jobs.popleft().lose()
                if not self.jobs:
                    self.thread = None
                    return
                job = self.jobs[0]
            job.run()
            with self.lock:
                if self.jobs and self.jobs[0] is job:
                    self.jobs.popleft()

    def _forget(self) -> None:
        self.thread = None
        while self.jobs:
            self.jobs.popleft().lose()
        while self.around:
            self.around.pop().lose()


_queue = _Queue()


def submit(work: Callable[[], None]) -> Job:
    """Have `work` done on the compiling thread."""
    job = Job(work)
    _queue.submit(job)
    return job


class Waited(Protocol):
    """Something that goes on elsewhere."""

    def wait(self) -> None: ...


def submit_around(begin: Callable[[], Waited | None], finish: Callable[[], None], after: Job | None = None) -> Job:
    """Have `begin()` done on the compiling thread and, once what it gave is waited for, `finish()`; both come `after` another job.
    A process that ends in the meantime does not wait, and drops the second half."""
    whole = Job(None)

    def half(work: Callable[[], None]) -> None:
        job = submit(work)
        job.wait()
        whole.lost, whole.error = job.lost, job.error

    def run() -> None:
        begun: list[Waited | None] = []
        try:
            if after is not None:
                after.wait()
            half(lambda: begun.append(begin()))
            if begun:
                if begun[0] is not None:
                    begun[0].wait()
                half(finish)
        finally:
            whole.run()
            with suppress(ValueError):
                _queue.around.remove(whole)

    _queue.around.append(whole)
    try:
        threading.Thread(target=run, name="flame waits", daemon=True).start()
    except RuntimeError:  # the interpreter ends, or no thread can be had
        _queue.around.remove(whole)
        whole.lose()
    return whole


def compile_now(capture: Capture, leaf: Step, plan: Any, old: Any, cause: str) -> Any:
    """Make a plan (`flame.capture.segment.Plan`) for the path that ends in `leaf`, in the place of one that gave less."""
    started = time.perf_counter()
    with compiling, collector_paused():
        plan.make(capture)
    trim()  # of what the recorded operations held
    seconds = time.perf_counter() - started
    leaf.plans = [p for p in leaf.plans or [] if p is not old] + [plan]
    stats = capture.stats
    stats.compiled += 1
    stats.compile_seconds += seconds
    stats.count(stats.compilations, leaf.source, cause)
    capture.plans.append(plan)
    if knobs.log:
        where = f"{leaf.source}: " if leaf.source else ""
        n = len(plan.path)
        say("recompiles", f"{capture.name}: {where}a segment of {n} steps was compiled in {seconds:.2f} s: {cause}")
    return plan


def compile_meanwhile(capture: Capture, leaf: Step, plan: Any, old: Any, cause: str) -> None:
    """The same on a thread of its own. What it raises is counted, and the path goes on running step by step."""

    def work() -> None:
        try:
            compile_now(capture, leaf, plan, old, cause)
        except Exception as e:
            text = NOT_COMPILED.text(capture.name, f"{type(e).__name__}: {e}")
            capture.stats.count(capture.stats.fallbacks, leaf.source, text)
            raise

    job = leaf.waiting = submit(work)
    capture.jobs = [j for j in capture.jobs if not j.over] + [job]
