"""Triton kernels compiled side by side, in processes of their own: Triton holds the interpreter's lock while it compiles.

    binaries = compile_all([(source, "sm_90"), ...])            one answer for each: a Binary, or the CompileError it raised

Workers are child processes (`flame.runtime.children`) that run a loop of this module and talk over pipes in the words of
`flame.runtime.gpu_binary`. They are started when there is enough to do, wait for more, and end when the parent's end of the pipe
closes, also if it is killed.

    question ::= length | JSON: [architecture, source]        answer ::= length | "b" binary | "e" the error's text
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

from flame.compiler.to_triton import TritonSource
from flame.errors import CompileError
from flame.runtime import children
from flame.runtime.gpu_binary import read, source_read, source_written, written
from flame.runtime.locks import Lock
from flame.runtime.triton_tools import Binary, compile_triton

#: a worker takes a second to start: kernels a worker has to have, for it to be worth it
WORTH_A_WORKER = 6
MOST_WORKERS = 8

Job = tuple[TritonSource, str]
Answer = Binary | CompileError


def compile_all(jobs: Sequence[Job], workers: int | None = None) -> list[Answer]:
    """The binary of each (source, architecture), in order; an error where Triton refused, which is not raised.

    `workers` is how many processes may be at it: by default as many as there are processors, eight at most, fewer where there is
    little to do. With one, or where none can be started, this process compiles.
    """
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS, len(jobs) // WORTH_A_WORKER)
    workers = min(workers, len(jobs))
    answers: list[Answer | None] = [None] * len(jobs)
    if workers > 1:
        _share(jobs, answers, _staff.at_least(workers))
    return [_compiled(job) if a is None else a for job, a in zip(jobs, answers, strict=True)]


def _compiled(job: Job) -> Answer:
    try:
        return compile_triton(*job)
    except CompileError as error:
        return error


def _share(jobs: Sequence[Job], answers: list[Answer | None], staff: list[_Worker]) -> None:
    """Have the workers answer what they can. Jobs whose worker died stay unanswered."""
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(jobs)):
        left.put(i)

    def attend(worker: _Worker) -> None:
        with worker.busy:
            while worker.alive:
                try:
                    i = left.get_nowait()
                except queue.Empty:
                    return
                answers[i] = worker.ask(jobs[i])

    threads = [threading.Thread(target=attend, args=(w,), name="flame-compile", daemon=True) for w in staff]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


class _Worker:
    """A child process that compiles, one kernel at a time."""

    def __init__(self) -> None:
        self.process = children.start(__name__, "serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.busy = threading.Lock()
        self.alive = True

    def ask(self, job: Job) -> Answer | None:
        """Its answer; None where it died on the way, after which it is not alive."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            source, arch = job
            _send(self.process.stdin, json.dumps([arch, source_written(source).decode()]).encode())
            answer = _receive(self.process.stdout)
        except (OSError, EOFError):
            self.end()
            return None
        return read(answer[1:]) if answer[:1] == b"b" else CompileError(answer[1:].decode())

    def end(self) -> None:
        self.alive = False
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()


class _Staff:
    """The workers of this process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._workers: list[_Worker] = []
        self._process = 0

    def at_least(self, n: int) -> list[_Worker]:
        with self._lock:
            if self._process != os.getpid():  # after a fork the parent's workers are not ours
                self._workers, self._process = [], os.getpid()
            self._workers = [w for w in self._workers if w.alive]
            try:
                while len(self._workers) < n:
                    self._workers.append(_Worker())
            except OSError:  # no more processes: those that there are do it, or this one
                pass
            return self._workers[:n]

    def dismiss(self) -> None:
        with self._lock:
            if self._process == os.getpid():
                for w in self._workers:
                    w.end()
            self._workers = []


_staff = _Staff()
atexit.register(_staff.dismiss)


def dismiss() -> None:
    """End the workers. They come back when there is something to do."""
    _staff.dismiss()


# ---- in the child


def serve() -> None:
    """Answer jobs until the pipe closes. What compilers print goes to stderr: stdout is the answers' pipe."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            arch, source = json.loads(_receive(sys.stdin.buffer))
        except EOFError:
            return
        made = _compiled((source_read(source.encode()), arch))
        _send(out, b"b" + written(made) if isinstance(made, Binary) else b"e" + str(made).encode())


def _send(pipe: BinaryIO | Any, data: bytes) -> None:
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> bytes:
    """Raises EOFError where the other side is gone."""
    size = pipe.read(8)
    if len(size) < 8:
        raise EOFError("the pipe is closed")
    n = int.from_bytes(size, "little")
    data = pipe.read(n)
    if len(data) < n:
        raise EOFError("the pipe closed within an answer")
    return data
