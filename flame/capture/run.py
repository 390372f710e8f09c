"""One segment in flight: the interpreter that is in force while a compiled function's Python runs.

A Run starts at a root of the tree. While the steps that the user's Python takes are in the tree, it FOLLOWS: nothing is computed,
an operation only checks that it is a known next step and hands back a tensor that is pending. Where the segment ends (a value is
read, the function returns) the whole path runs as kernels (`flame.capture.segment`). At a step that is not in the tree the
followed prefix is run for real (`flame.capture.replay`) and the Run RECORDS: operations run eagerly, tape and all, and their steps
enter the tree.

Invariants, by the names used here: an operand's identity is its ref. A tensor from outside becomes an input step at its first use.
The same memory is the same window only where neither tensor is an autograd view; writing to memory that is seen through several
windows, or that was handed to NumPy, ends the segment and happens eagerly. Refs of the members of a window that was written go
stale and are derived anew. Nothing here uses a tensor's truth value or ==.
"""

from __future__ import annotations

from threading import get_ident
from typing import Any

from flame.autograd.tape import user_source
from flame.capture import segment
from flame.capture.compiled import say
from flame.capture.control import control, demands
from flame.capture.effects import Effects
from flame.capture.follow import Follower
from flame.capture.known import UNKNOWN, Calls
from flame.capture.record import Recorder
from flame.capture.staged import Staged
from flame.capture.trace import Step, Window
from flame.capture.updates import Updates
from flame.errors import GraphBreakError
from flame.knobs import knobs
from flame.precision import casting
from flame.primitive import Primitive, force, placement
from flame.reasons import OTHER_END, VALUE_READ, WRITTEN_VALUE_READ, Reason
from flame.tensor import Tensor

AFTER_A_BREAK = "the path after a break was followed for the first time"


def followed(given: tuple, named: dict, f: Any, otherwise: Any) -> Any:
    """The call of a method that is the function `f`, which capture knows: what native code puts in its place. `otherwise` is what
    stood there."""
    run: Run = force.interpreter
    if type(run) is Run and not placement.gpu and not casting.threads:
        got = run.known(f, given, named)
        if got is not UNKNOWN:
            return got
    return otherwise(*given, **named)


def written(self: Tensor, other: Any, primitive: Primitive, otherwise: Any) -> Any:
    """The same for a method that overwrites a tensor by a primitive of it and another operand."""
    run: Run = force.interpreter
    if type(run) is Run and run.follow_inplace(primitive, self, (other,)):
        return self
    return otherwise(self, other)


class Run(Follower, Calls, Updates, Recorder, Effects, Staged):
    """One segment of one call."""

    __slots__ = ()

    def read(self, t: Tensor) -> None:
        """A user reads values: end the segment if it owes them, or would owe them when followed."""
        st = t._storage
        if st is not None and st.pending is self:
            return self.break_(WRITTEN_VALUE_READ)
        if self.observer is not None:
            self.observer.read_at = user_source()
        if t._ref is None:
            self.reads += 1
            return
        if t._ref.capture is not self.capture:
            raise RuntimeError("this tensor belongs to a compiled call that is still running on another thread")
        trace = t._trace
        if trace is not None and trace.window is None:
            self.window_of(t)
        if trace is not None and trace.window.external is not None and not trace.window.mutations and t._array is not None:
            self.reads += 1
            return
        self.break_(VALUE_READ)

    def settle(self, t: Tensor) -> None:
        """Framework code reads memory."""
        if get_ident() != self.thread:
            raise RuntimeError(
                "this tensor belongs to a compiled call that is still running on another thread; use it on that thread, or after "
                "the call"
            )
        if self.following and self.alive:
            self.break_(VALUE_READ)

    def leave(self, reason: Reason, *details: object) -> None:
        self.break_(reason, *details)

    def outside(self, f: Any, reason: Reason, *details: object) -> Any:
        """Run something that capture does not follow."""
        self.break_(reason, *details)
        return self.now()._eagerly(f)

    def break_(self, reason: Reason, *details: object) -> None:
        """End the segment here and start the next."""
        if not self.alive:
            return
        if self.inner is not None:
            raise AssertionError("a derivative rule reads values")
        source = user_source()
        text = reason.text(*details)
        if self.capture.options.fullgraph or demands.error_on_break:
            self.end("deopt")
            by = "fullgraph=True" if self.capture.options.fullgraph else "error_on_graph_break(True)"
            raise GraphBreakError(
                f"{source}: {text}, which ends the captured graph; {by} forbids that. {reason.remedy} (docs/graph-breaks.md)",
                reason.code,
                source,
            )
        self.capture.stats.count(self.capture.stats.breaks, source, text)
        if knobs.log:
            say("breaks", f"{self.capture.name}: {source}: {text}")
        after: Any = self.end("break").successor
        after.source = source
        if not after.children and control.compiling != "yes":
            after = self.unknown("what follows a break was never recorded", after)
        force.interpreter = Run(self.capture, after, self.thread)

    def end(self, kind: str) -> Step:
        """Run what was followed; leave no trace on tensors."""
        if self.stages:
            self.part_with_stages()
        leaf = self.next
        if leaf is None or leaf.kind != "end" or leaf.key != kind:
            leaf = next((c for c in self.at.children if c.kind == "end" and c.key == kind), None)
        force.interpreter = None
        try:
            if self.following:
                if kind == "deopt" and leaf is None:
                    self.fall_back()
                elif leaf is not None:
                    segment.flush(self, leaf)
                    if self.observer is not None:
                        self.observer(self, leaf)
                else:
                    self.diverge(OTHER_END)
            if leaf is None:
                leaf = Step("end")
                leaf.key = kind
                leaf.source, leaf.note = self.cause or (self.root.source, AFTER_A_BREAK if self.root.source else "")
                leaf.successor = Step("root")
                if kind != "deopt" and self.at.children:
                    self.another_path(user_source())
                self.at.children.append(leaf)
        finally:
            self.close()
        self.capture.stats.followed += self.at.depth if self.following else 0
        return leaf

    def returned(self) -> None:
        """The function returned: end the segment."""
        try:
            if self._returned_as_known():
                return
        except BaseException:
            self.close()
            raise
        self.end("return")

    def _returned_as_known(self) -> bool:
        """The same where that is what comes next on the path; whether it is."""
        leaf = self.next
        if leaf is None or leaf.kind != "end" or leaf.key != "return" or not self.following:
            return False
        if self.observer is not None or self.stages is not None:  # (somebody looks on; stages are parted with)
            return False
        force.interpreter = None
        segment.flush(self, leaf)
        self.close()
        if self.following:
            self.capture.stats.followed += self.at.depth
        return True

    def close(self) -> None:
        self.alive = False
        self.next = None
        self.capture.run = None
        self.sizing = self.stages = None  # (they hold this run)
        if self.originals and not self.following:  # what the tape saved of them is what NumPy sees
            self._as_seen_outside()
        t: Tensor
        w: Window | None
        for t in self.live():
            t._ref = None
            t._trace = None
        for t, _, w in self.externals:
            t._ref = None
            t._trace = None
            if w is None:
                if t._storage is not None:
                    t._storage.pending = None
            else:
                st = w.storage
                st.pending = st.window = None
                w.external = w.next = None
                if len(w.members) > 1:
                    del w.members[1:]
                if t._storage is not st and t._storage is not None:
                    t._storage.pending = None

    def _as_seen_outside(self) -> None:
        for i, t in self.originals.items():
            self.externals[i][0]._array = t._array

    def rest(self) -> None:
        """Hold nothing until another call begins."""
        self.survivors = self.observer = None
        self.unlinked = False
        self.linked = 0
        self.externals, self.tracked = [], []
        if self.edged:
            self.leads, self.edged = {}, 0
        if self.bindings:
            self.bindings = []
        if self.written:
            self.written = []
        if self.snapshots:
            self.snapshots.clear()
            self.originals.clear()
        self.capture.spare = self
