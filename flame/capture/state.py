"""What a segment in flight knows: the data of a Run, which the files beside this one act on.

A Run (`flame.capture.run`) is put together from a Follower (operands and operations that are checked against the tree), a Recorder
(operations that enter it), Effects (writes and detached aliases) and Gradients. Each is a class over this state.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from flame.capture.trace import Capture, Ref, Step, Window
from flame.primitive import force
from flame.tensor import Tensor

new_object = object.__new__
weak = weakref.ref


class SegmentEnded(Exception):
    """The segment ended inside an operation, which is to be begun again in the next one."""


class RunState:
    """One segment of one call."""

    # what the parts of a Run call of each other
    process: Callable[..., Any]
    record: Callable[..., Any]
    ref_of: Callable[[Tensor], Ref]
    window_of: Callable[[Tensor], Window]
    add: Callable[[Step], None]
    diverge: Callable[..., None]
    run_out: Callable[[], None]
    break_: Callable[..., None]
    leave: Callable[..., None]
    end: Callable[[str], Step]
    another_path: Callable[[str], None]
    unknown: Callable[[str, Step], Step]
    live: Callable[[], list[Tensor]]

    def __init__(self, capture: Capture, root: Step):
        self.capture = capture
        capture.run = self
        self.thread = threading.get_ident()
        self.token = object()  #: marks tape nodes made while this segment was recorded
        self.root = root
        self.at = root
        self.following = bool(root.children)
        self.next: Step | None = root.children[0] if root.children else None  #: the likeliest next step, while following
        self.tracked: list[weakref.ref] = []  #: every tensor that was given a ref, except those from outside
        self.externals: list[
            tuple[Tensor, Ref, Window | None]
        ] = []  #: one for each input step: tensor (or snapshot), ref, window
        self.windows: dict[int, list[Window]] = {}
        self.edges: dict[int, Any] = {}  #: edge id -> tape edge of an outside tensor
        self.edge_tensors: dict[int, Tensor] = {}
        self.bindings: list = []
        self.snapshots: dict[Ref, Tensor] = {}
        self.inner: list[Step] | None = None
        self.guards: list = []
        self.shadow: Step | None = None  #: while re-recording: the old branch's step, whose numbers may differ
        self.replaces: tuple[Step, Step] | None = None
        self.symbols: dict = {}
        self.alive = True
        self.written: list[Window] = []

    def advance(self, step: Step) -> None:
        self.at = step
        self.next = step.children[0] if self.following and step.children else None

    @property
    def path(self) -> list[Step]:
        """The steps from the root to here."""
        found = []
        s = self.at
        while s is not self.root:
            found.append(s)
            s = s.parent
        found.reverse()
        return found

    def track(self, t: Tensor) -> None:
        self.tracked.append(weak(t))

    def _without_grad(self, f: Any) -> Any:
        before, force.grad = force.grad, False
        try:
            return f()
        finally:
            force.grad = before

    def _suspended(self, f: Any) -> Any:
        """Call `f` with the base interpreter in force, as part of what this run is doing."""
        force.interpreter = None
        try:
            return f()
        finally:
            force.interpreter = self

    def _eagerly(self, f: Any) -> Any:
        """Call `f` eagerly between two segments (after a break)."""
        run = force.interpreter
        force.interpreter = None
        try:
            return f()
        finally:
            force.interpreter = run

    def now(self) -> Any:
        """The run in force, after this one may have ended."""
        return force.interpreter


def same_refs(a: tuple, b: Any) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
