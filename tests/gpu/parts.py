"""The GPU suite in parts, each a process of its own: an error of a GPU is final for the process that it happens in.

    InParts(config)      a plugin: `pytest -m gpu` collects as always, then runs each part by `pytest --one-process=FD @ids`
    OneProcess(fd)       the plugin of such a process: tells of every test as it starts and ends, and stops where the device is lost

The reports of a part are the session's own, shown and counted as they come. What a process leaves undone (it crashed, said
nothing for a part's patience, or lost the device) goes on in another one, without the test that it ended with, which has failed.
Parts run in the order below, several at a time where there are processors for it; `alone` ones by themselves. Each has a limit of
its own and all together have `SECONDS`: what is not reached is skipped, and says so.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from flame.errors import CudaError
from flame.runtime import cuda

#: of the whole suite
SECONDS = 500.0
#: seconds in which a process comes to its first test
START = 90.0
#: in which every case of every part is over in Triton's interpreter, and each case of it
UNLIMITED, SLOW = 24 * 3600.0, 900.0
#: processes that one part may take, before what is left of it is given up
MOST = 6


@dataclass(frozen=True)
class Part:
    """`tests` is searched in a test's FILE::NAME."""

    name: str
    tests: str
    seconds: float
    patience: float = 90.0  #: seconds that a process may be silent for
    alone: bool = False  #: beside no other part: it measures


#: the most telling first; a test belongs to the first part that names it
PARTS = (
    Part("device", "described|come_back|launch_is_cheap|events_tell", 60, alone=True),
    Part("errors", "wild_pointer|test_an_index_that_is_not_there", 120),
    Part("allocator", "memory_is_reused|out_of_memory|pinned", 60),
    Part("streams", "streams_are_ordered|threads_work_on", 60),
    Part("graphs", "a_graph_gives", 60),
    Part("sanitizer", "memory_checkers", 250, patience=130),
    Part("kernels", "a_kernel_is_what_it_means", 200),
    Part("operators", "operations_mean_what", 250),
    Part("models", "programs_of_the_corpus|network_trains", 300),
    Part("gradients", "gradients_of_operations", 300),
    Part("tensors", "test_on_gpu_tensors", 200),
    Part("layers", "test_on_gpu_layers", 300),
    Part("capture", "test_on_gpu_capture", 300),
    Part("others", "", 120),
)


def part_of(test: str) -> Part:
    return next(p for p in PARTS if re.search(p.tests, test))


def ended(number: int, frame: object) -> NoReturn:
    """The end of a suite that is told to end: its processes end with it, and its table is shown."""
    pytest.exit(f"ended by {signal.Signals(number).name}", returncode=128 + number)


class OneProcess:
    """Tells of this process's tests, a line of JSON each, on a file descriptor."""

    def __init__(self, config: pytest.Config, fd: int):
        self.config = config
        self.to = os.fdopen(fd, "w", encoding="utf-8")
        self.failed = False

    def _say(self, **about: Any) -> None:
        self.to.write(json.dumps(about) + "\n")
        self.to.flush()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say(starts=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed
        self._say(report=self.config.hook.pytest_report_to_serializable(config=self.config, report=report))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._say(ends=nodeid)
        if self.failed and cuda.opened():
            self.failed = False
            try:
                cuda.gpu().synchronize()
            except CudaError:  # (Python's own end could wait for the device, or fail as the tests did)
                os._exit(1)
            except Exception:  # an error of one program's own, which was told here instead of there
                pass


class Running:
    """A part, what is left of it, and the process that it is in."""

    def __init__(self, part: Part, left: list[pytest.Item], until: float):
        self.part, self.until = part, until
        self.left = {i.nodeid: i for i in left}
        self.processes = 0

    def start(self, flags: Sequence[str], root: Path) -> None:
        """A process for what is left; `root` is where tests' names begin."""
        self.pipe, theirs = os.pipe()
        os.set_blocking(self.pipe, False)
        self.ids, self.log = tempfile.NamedTemporaryFile("w", suffix=".txt"), tempfile.TemporaryFile()
        self.ids.write("\n".join(self.left))
        self.ids.flush()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", f"--one-process={theirs}"]
        self.process = subprocess.Popen(
            [*command, *flags, f"@{self.ids.name}"], cwd=root, pass_fds=[theirs],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.processes += 1
        self.first, self.started = len(self.left), False
        self.current, self.why, self.said, self.heard = "", "", b"", time.monotonic()

    def lines(self) -> Iterator[dict[str, Any]]:
        """What the process has said since."""
        with suppress(BlockingIOError):
            while got := os.read(self.pipe, 1 << 16):
                self.said, self.heard, self.started = self.said + got, time.monotonic(), True
        *whole, self.said = self.said.split(b"\n")
        yield from map(json.loads, whole)

    def over(self) -> bool:
        """Whether the process has ended, or ends now because it may not go on; `why` says so."""
        now = time.monotonic()
        if self.process.poll() is None:
            if now > self.until:
                self.why = "time"
            elif now - self.heard > (patience := self.part.patience if self.started else max(self.part.patience, START)):
                self.why = f"its process said nothing for {patience:.0f} s and was ended"
            else:
                return False
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.why = self.why or f"its process ended with {signal.Signals(-code).name if code < 0 else code}"
        return True

    def close(self) -> str:
        """The end of the log of a process that is over."""
        os.close(self.pipe)
        self.ids.close()
        self.log.seek(0)
        with self.log:
            return self.log.read().decode(errors="replace")[-4000:]


class InParts:
    """Runs collected tests part by part."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self.begun = time.monotonic()
        fake, whole = (bool(config.getoption(flag)) for flag in ("--fake-gpu", "--whole"))
        self.flags = [*(["--fake-gpu"] if fake else []), *(["--whole"] if whole else [])]
        self.at_once = 1 if fake else max(1, min(4, (os.cpu_count() or 1) // 4))
        self.seconds = UNLIMITED if whole else SECONDS
        self.parts = [replace(p, seconds=UNLIMITED, patience=SLOW) for p in PARTS] if whole else [*PARTS]

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.config.option.collectonly or session.testsfailed:
            return None
        of: dict[str, list[pytest.Item]] = {p.name: [] for p in PARTS}
        for item in session.items:
            of[part_of(item.nodeid).name].append(item)
        waiting = [p for p in self.parts if of[p.name]]
        running: list[Running] = []
        before = signal.signal(signal.SIGTERM, ended)
        try:
            while (waiting or running) and not (session.shouldfail or session.shouldstop):
                while waiting and self._room(waiting[0], running):
                    p = waiting.pop(0)
                    now = time.monotonic()
                    r = Running(p, of[p.name], min(now + p.seconds, self.begun + self.seconds))
                    if self._started(r):
                        running.append(r)
                select.select([r.pipe for r in running], [], [], 0.5)
                time.sleep(0.02)  # (a pipe whose end is closed is always ready)
                for r in [*running]:
                    over = r.over()
                    self._hear(r)
                    if over and not self._goes_on(r, r.close()):
                        running.remove(r)
        finally:
            signal.signal(signal.SIGTERM, before)
            for r in running:
                with suppress(ProcessLookupError):
                    os.killpg(r.process.pid, signal.SIGKILL)
                r.process.wait()
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        return True

    def _room(self, p: Part, running: list[Running]) -> bool:
        if p.alone or any(r.part.alone for r in running):
            return not running
        return len(running) < self.at_once

    def _started(self, r: Running) -> bool:
        """Whether there is time left to start a process for what is left; else it is skipped."""
        if time.monotonic() > r.until - 3.0:
            self._skip(r)
            return False
        r.start(self.flags, self.config.rootpath)
        return True

    def _hear(self, r: Running) -> None:
        hook = self.config.hook
        for said in r.lines():
            match said:
                case {"starts": test}:
                    r.current = test
                    hook.pytest_runtest_logstart(nodeid=test, location=r.left[test].location)
                case {"report": data}:
                    report = hook.pytest_report_from_serializable(config=self.config, data=data)
                    if isinstance(report.longrepr, list):  # what JSON makes of a skipped test's (file, line, reason)
                        report.longrepr = tuple(report.longrepr)
                    hook.pytest_runtest_logreport(report=report)
                case {"ends": test}:
                    r.current = ""
                    hook.pytest_runtest_logfinish(nodeid=test, location=r.left.pop(test).location)

    def _goes_on(self, r: Running, log: str) -> bool:
        """Whether another process does what the one that ended has left."""
        if r.why == "time":
            self._skip(r)
        elif r.current:
            self._tell(r.left.pop(r.current), "failed", f"{r.why}\n{log}")
        elif len(r.left) == r.first:
            for item in r.left.values():
                self._tell(item, "failed", f"{r.why} before its first test\n{log}")
            r.left.clear()
        if r.processes >= MOST:
            self._skip(r, f"{MOST} processes of its part have ended before their time")
        return bool(r.left) and self._started(r)

    def _skip(self, r: Running, why: str = "") -> None:
        told = why or f"time is over: {r.part.name} has {r.part.seconds:.0f} s, the whole suite {self.seconds:.0f} s"
        for item in r.left.values():
            self._tell(item, "skipped", told)
        r.left.clear()

    def _tell(self, item: pytest.Item, outcome: Literal["failed", "skipped"], why: str) -> None:
        path, line, _ = item.location
        told: Any = (path, line, f"Skipped: {why}") if outcome == "skipped" else why
        report = pytest.TestReport(item.nodeid, item.location, {}, outcome, told, "call")
        self.config.hook.pytest_runtest_logreport(report=report)
