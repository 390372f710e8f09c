"""What a segment in flight knows: the data of a Run, which the files beside this one act on.

A Run (`flame.capture.run`) is put together from a Follower (operands and operations that are checked against the tree), a Recorder
(operations that enter it), Effects (writes and detached aliases) and Gradients. Each is a class over this state.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from flame.autograd.tape import edge
from flame.capture.trace import Capture, Ref, Step, Trace, Window
from flame.primitive import force
from flame.runtime.device import CPU
from flame.runtime.device import device as Device
from flame.runtime.device_array import DeviceArray
from flame.tensor import Tensor

new_object = object.__new__
weak = weakref.ref


class SegmentEnded(Exception):
    """The segment ended inside an operation, which is to be begun again in the next one."""


class RunState:
    """One segment of one call."""

    __slots__ = (
        "alive", "at", "bindings", "capture", "cause", "edged", "externals", "following", "gradient_source", "guards",
        "inner", "leads", "linked", "midway", "next", "observer", "originals", "reads", "replaces", "root", "shadow", "sizing",
        "snapshots", "stages", "survivors", "symbols", "thread", "token", "tracked", "unlinked", "written",
    )  # fmt: skip

    # what the parts of a Run call of each other
    process: Callable[..., Any]
    record: Callable[..., Any]
    ref_of: Callable[[Tensor], Ref]
    window_of: Callable[[Tensor], Window]
    link: Callable[[], None]
    add: Callable[[Step], None]
    diverge: Callable[..., None]
    run_out: Callable[[], None]
    break_: Callable[..., None]
    leave: Callable[..., None]
    end: Callable[[str], Step]
    another_path: Callable[[str], None]
    unknown: Callable[[str, Step], Step]
    sized: Callable[[], Any]
    beside: Callable[[Step], None]
    seat: Callable[[], Any]

    def __init__(self, capture: Capture, root: Step, thread: int):
        self.alive = False
        self.capture = capture
        #: every tensor that was given a ref, except those from outside (weakly: a user may watch them go)
        self.tracked: list[weakref.ref] = []
        #: one for each input step: tensor (or snapshot), ref, window
        self.externals: list[tuple[Tensor, Ref, Window | None]] = []
        self.leads: dict[int, Any] = {}  #: `edges`, as far as they were asked for
        self.edged = 0  #: of that many externals
        self.bindings: list = []
        self.survivors: list[Tensor] | None = None  #: at the end of a segment: those that are alive
        self.snapshots: dict[Ref, Tensor] = {}
        self.originals: dict[int, Tensor] = {}  #: place among the externals -> the tensor that a snapshot was taken of
        self.observer: Any = None  #: asked when a followed segment has been computed and its tensors still have their refs
        self.written: list[Window] = []
        self.reads = 0  #: how often a user read values that were there
        self.unlinked = False  #: whether views were made whose windows do not know of them
        self.linked = 0  #: that many of `tracked` were looked at for such views
        self.inner: list[Step] | None = None
        self.guards: list = []
        self.shadow: Step | None = None  #: while re-recording: the old branch's step, whose numbers may differ
        self.replaces: tuple[Step, Step] | None = None
        self.symbols: dict = {}
        self.cause: tuple[str, str] | None = None  #: where and why the last known path was left
        self.gradient_source = ""
        self.stages: Any = None  #: edge -> a `flame.capture.staged.Stage`, where Python has a place in backward passes
        self.midway = 0  #: how many backward passes are under way, at a stage
        self.sizing: Any = None  #: while recording a path with Sizes: a `flame.capture.sizes.Sizing`
        self.begin(root, thread)

    def begin(self, root: Step, thread: int) -> None:
        """Stand at a root, new or as new."""
        self.capture.run = self
        self.thread = thread
        self.root = self.at = root
        children = root.children
        if children:
            self.following = True
            self.next: Step | None = children[0]  #: the likeliest next step, while following
        else:
            self.following = False
            self.next = None
        self.token = object()  #: marks tape nodes made while this segment was recorded
        self.alive = True

    @property
    def edges(self) -> dict[int, Any]:
        """Edge id -> tape edge of an outside tensor, or a leaf (see `edge_of`)."""
        leads, externals = self.leads, self.externals
        if self.edged < len(externals):
            for t, ref, _ in externals[self.edged :]:
                if ref.edge is not None and ref.edge not in leads:
                    leads[ref.edge] = t
            self.edged = len(externals)
        return leads

    def edge_of(self, e: int) -> Any:
        """The tape edge of an outside tensor. That of a leaf is made when it is first asked for."""
        leads = self.edges
        got = leads[e]
        if got.__class__ is not tuple:
            got = leads[e] = edge(got)
        return got

    def outside_edges(self) -> dict[int, Any]:
        """Edge id -> tape edge, of every outside tensor that has one."""
        leads = self.edges
        for e in leads:
            self.edge_of(e)
        return leads

    def leads_to(self, t: Tensor) -> list:
        """The tape edges that gradient of a followed tensor flows to: those of tensors from outside and of leaves made here."""
        wanted = {t._ref.edge} - {None}
        step = self.at
        while step is not None:
            for s in reversed(step.inner) if step.kind == "gradient" else (step,):
                made = wanted.intersection([r.edge for r in s.outs])
                if made and s.kind in ("op", "function"):
                    wanted -= made
                    wanted.update(o.edge for o in s.operands if isinstance(o, Ref) and o.edge is not None)
            step = step.parent
        return [self.edge_of(e) for e in wanted]

    def rewritten(self) -> bool:
        """Whether NumPy wrote memory since it was read."""
        return any(not same_bits(t._array, self.externals[i][0]._array) for i, t in self.originals.items())

    def live(self) -> list[Tensor]:
        """The pending tensors that somebody still holds."""
        if self.survivors is not None:
            return self.survivors
        alive: list[Tensor] = []
        w: weakref.ref
        for w in self.tracked:
            found = w()
            if found is not None:
                alive.append(found)
        if self.unlinked:
            self.unlinked = False
            t: Tensor
            for t in alive:
                trace: Trace | None = t._trace
                if trace is not None and trace.window is None:
                    self.window_of(t)
        return alive

    def survive(self) -> list[Tensor]:
        """The same where the segment ends: who lives now is dealt with until `close`."""
        alive = self.survivors = self.live()
        return alive

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

    def _eagerly(self, f: Any, calls_back: bool = False) -> Any:
        """Call `f` eagerly between two segments (after a break). A backward pass `calls_back` Python that can be followed."""
        before, run = force.resting, force.interpreter
        force.interpreter, force.resting = None, run if calls_back else None
        try:
            return f()
        finally:
            force.interpreter = force.resting if calls_back else run
            force.resting = before

    def now(self) -> Any:
        """The run in force, after this one may have ended."""
        return force.interpreter


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one shape and dtype hold the same, to the bit."""
    x, y = (np.ascontiguousarray(z).reshape(-1).view(np.uint8) for z in (a, b))
    return np.array_equal(x, y)


def same_refs(a: tuple, b: Any) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def whereabouts(t: Tensor) -> Device | None:
    """The device that a tensor with an array is on; None for one that any device takes."""
    a = t._array
    return a.device if type(a) is DeviceArray else CPU if a is not None and a.ndim and not t._floating else None


def scattered(operands: Iterable) -> bool:
    """Whether operands are on several devices: no segment takes them then, however new."""
    places = {whereabouts(t) for t in operands if isinstance(t, Tensor)}
    return len(places - {None}) > 1
