"""Whether indices named places that are there, looked at without waiting for the device.

    checks.add(lowest, highest, least, size, words)   two numbers that kernels compute: the extremes of an index
    checks.send(stream)                               have those of a stream (None: of all) copied to the host behind its work
    checks.look()                                     those that have come: raises PositionError for the first that is out of range

Kernels read the nearest place where an index leaves its array, so that nothing else goes wrong meanwhile. The error shows late, as
all that a GPU finds out does: where somebody waits for the stream next (a value is read, `synchronize`), or some calls later. It
names the line of the call it belongs to. Under CUDA_LAUNCH_BLOCKING=1 every check is looked at in its own call.

Checks are sent `TOGETHER`, so that a program that never reads a value hears of them too; `MOST` batches may be on their way.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy as np

from flame.errors import PositionError
from flame.knobs import knobs
from flame.runtime.locks import Lock

#: checks of a stream that are sent to the host together, where nobody waits for it before
TOGETHER: Final = 32
#: batches on their way before the oldest is waited for
MOST: Final = 8
#: bytes that a number takes on the host
_ROOM: Final = 8

Check = tuple[Any, Any, int, int, str]  #: device arrays of the extremes, bounds, words


class _Batch:
    """Checks of a stream, whose numbers are in `held` once `event` has passed."""

    __slots__ = ("checks", "event", "held")

    def __init__(self, checks: list[Check], held: np.ndarray, event: int):
        self.checks, self.held, self.event = checks, held, event

    def raise_if_wrong(self) -> None:
        for i, (lowest, highest, least, size, words) in enumerate(self.checks):
            low, high = (int(self.held[2 * i + k, : a.itemsize].view(a.dtype)[0]) for k, a in enumerate((lowest, highest)))
            if low < least or high >= size:
                raise PositionError(f"index {low if low < least else high} is out of bounds for {words}")


class Checks:
    """The checks of one device (a `Gpu`)."""

    def __init__(self, gpu: Any):
        self.gpu = gpu
        self.waiting: dict[int, list[Check]] = {}  #: by stream; streams without any are not there
        self.sent: deque[_Batch] = deque()
        self._lock = Lock()

    def add(self, lowest: Any, highest: Any, least: int, size: int, words: str) -> None:
        """Device arrays of one element each, computed on the current stream: right where least <= lowest and highest < size."""
        stream = self.gpu.current_stream
        with self._lock:
            of_stream = self.waiting.setdefault(stream, [])
            of_stream.append((lowest, highest, least, size, words))
        if knobs.launch_blocking:
            self.send(stream)
            self.look(wait=True)
        elif len(of_stream) >= TOGETHER:
            self.send(stream)
            self.look()

    def send(self, stream: int | None = None) -> None:
        """Copy what waits to the host, without waiting for it."""
        gpu = self.gpu
        with self._lock:
            for s in [*self.waiting] if stream is None else [stream]:
                checks = self.waiting.pop(s, None)
                if checks is None:
                    continue
                held = gpu.pinned.empty((2 * len(checks), _ROOM), np.dtype(np.uint8))
                with gpu.calling():
                    for i, check in enumerate(checks):
                        for k, a in enumerate(check[:2]):
                            gpu.driver.copy_out(held[2 * i + k].ctypes.data, a.address, a.itemsize, s)
                    event = gpu.take_event(False, False)
                    gpu.driver.record_event(event, s)
                self.sent.append(_Batch(checks, held, event))

    def look(self, wait: bool = False) -> None:
        """Look at the batches that have come; `wait` for all that were sent. Raises PositionError, and forgets the batch."""
        gpu = self.gpu
        while True:
            with self._lock:
                if not self.sent:
                    return
                batch = self.sent[0]
                with gpu.calling():
                    if wait or len(self.sent) > MOST:
                        gpu.driver.synchronize_event(batch.event)
                    elif not gpu.driver.event_is_done(batch.event):
                        if not self._others_done():
                            return
                        continue
                self.sent.popleft()
            gpu.give_event(batch.event, False, False)
            batch.raise_if_wrong()

    def _others_done(self) -> bool:
        """Whether a batch behind the first has come before it, from another stream; it is then the first."""
        for i, batch in enumerate(self.sent):
            if i and self.gpu.driver.event_is_done(batch.event):
                del self.sent[i]
                self.sent.appendleft(batch)
                return True
        return False

    def close(self) -> None:
        """Forget all of them."""
        for batch in self.sent:
            self.gpu.give_event(batch.event, False, False)
        self.sent.clear()
        self.waiting.clear()
