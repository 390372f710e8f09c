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

import threading
import weakref
from typing import Any

import numpy as np

from flame.autograd import tape
from flame.autograd.engine import accumulate_into, eager_backward, eager_grad, run_engine, start, topological
from flame.autograd.tape import AccumulateGrad, edge, eager, eager_assign, user_source, write_through
from flame.capture import replay, segment
from flame.capture.trace import Capture, Expr, InputKey, Ref, Slot, Stale, Step, Trace, Window, exact, same_number
from flame.errors import GraphBreakError
from flame.primitive import Primitive, force
from flame.symbol import Symbolic, evaluate
from flame.tensor import Tensor

_new = object.__new__
_weak = weakref.ref
MAX_CHILDREN = 24  #: different continuations of one step before a function is handed over to eager
MAX_STEPS = 400_000  #: steps recorded for one function before the same


def memory_key(a: Any) -> tuple:
    """What tells one piece of memory, seen one way, from another."""
    return a.__array_interface__["data"][0], a.shape, a.strides


class SegmentEnded(Exception):
    """The segment ended inside an operation, which is to be begun again in the next one."""


class Run:
    """One segment of one call."""

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
        self.externals: list[tuple[Tensor, Ref, Window | None]] = []  #: one for each input step: tensor (or snapshot), ref, window
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

    # ---------------------------------------------------------------- operands

    def ref_of(self, t: Tensor) -> Ref:
        """The ref of an operand, by the slow path: an outside tensor, or one whose memory was written since."""
        r = t._ref
        if r is not None:
            if r.capture is not self.capture:
                raise RuntimeError(
                    "this tensor belongs to a compiled call that is still running on another thread; use it on that thread, or "
                    "after the call"
                )
            return self._derive(t) if type(r) is Stale else r
        return self._input(t)

    def _derive(self, t: Tensor) -> Ref:
        trace = t._trace
        w, old = trace.window, t._ref
        if not trace.chain:
            new = self.capture.ref(w.current, old.edge, old.spec)
        else:
            root = trace.root
            before = force.grad
            if root is not None:
                start_at = len(root._trace.chain) if root._trace is not None else 0
                y: Any = root
                force.grad = before or (self.ref_of(root).edge is not None)
            else:
                start_at, y, force.grad = 0, self._handle(w), False
            try:
                for p, items in trace.chain[start_at:]:
                    y = self.process(p, (y,), dict(items))
            finally:
                force.grad = before
            r = y._ref
            new = r if root is not None else self.capture.ref(r.value, old.edge, old.spec)
            if root is not None and t._array is not None and y._array is not None:  # recording: the tape's side of it
                t._node = y._node
                if t._view is not None:
                    t._view = t._view._replace(version=t._version)
        t._ref = new
        return new

    def _handle(self, w: Window) -> Tensor:
        """A tensor that stands for the whole of a window, outside the tape."""
        t = _new(Tensor)
        t._ref = self.capture.ref(w.current, None, w.spec)
        t._trace = Trace(w, (), None)
        t._storage = w.storage
        if not self.following:
            t._array = w.external._array if w.external is not None else w.base
        self._track(t)
        return t

    def _track(self, t: Tensor) -> None:
        self.tracked.append(_weak(t))

    def window_of(self, t: Tensor) -> Window:
        """The window of a tensor that has a ref; made now for the result of an operation."""
        trace = t._trace
        if trace is None:
            w = Window(None, t._ref.value, t._ref.spec, t.storage_of())
            if not self.following:
                w.base = t._array
            w.members.append(_weak(t))
            trace = t._trace = Trace(w, (), None)
        return trace.window

    def _input(self, t: Tensor) -> Ref:
        st = t.storage_of()
        if t._array is None or (st.pending is not None and st.pending is not self):
            raise RuntimeError("a tensor that another thread's compiled call still has to compute is used here")
        if self.inner is not None:
            raise AssertionError("a derivative rule reads a tensor that capture does not know")
        a = t._array
        window = None
        volatile = st.volatile
        if not volatile and (others := self.windows.get(id(st))) is not None:
            key = memory_key(a)
            for w in others:
                if memory_key(w.external._array) == key and t._view is None and w.external._view is None:
                    window = w
                elif w.mutations:
                    self.break_("memory that was written is read through another tensor")
                    raise SegmentEnded
        e = t._node if t._view is None and t._node is not None else edge(t)
        leaf = e is None or type(e[0]) is AccumulateGrad
        alias = None if window is None else window.current
        step = None
        if self.following:
            for c in self.at.children:
                k = c.key
                if (
                    c.kind == "input"
                    and c.numpy is a.dtype
                    and k.spec.shape == a.shape
                    and k.strides == a.strides
                    and k.differentiable is (e is not None)
                    and k.leaf is leaf
                    and k.alias == alias
                    and k.volatile is volatile
                ):
                    step = c
                    break
            else:
                self.diverge(f"a tensor of {t.spec} is used", None)
        if step is None:
            step = Step("input")
            spec = t.spec
            step.key = InputKey(spec, a.strides, e is not None, leaf, alias, volatile)
            step.numpy = spec.dtype.numpy
            value = self.capture.new_id() if window is None else window.current
            step.outs = (self.capture.ref(value, None if e is None else self.capture.new_id(), spec),)
            step.source = user_source()
            self.add(step)
        else:
            self.advance(step)
        ref = step.outs[0]
        if e is not None:
            self.edges[ref.edge] = e
            self.edge_tensors[ref.edge] = t
        if volatile:
            snapshot = _new(Tensor)
            snapshot._array = np.array(a, order="K")
            snapshot._node = e
            snapshot._ref = ref
            self._track(snapshot)
            self.snapshots[ref] = snapshot
            self.externals.append((snapshot, ref, None))
        else:
            if window is None:
                window = Window(t, ref.value, ref.spec, st)
                self.windows.setdefault(id(st), []).append(window)
                self.externals.append((t, ref, window))
            else:
                self.externals.append((t, ref, None))
            t._ref = ref
            t._trace = Trace(window, (), None)
            window.members.append(_weak(t))
        if not step.children and self.following:
            self.run_out()
        return ref

    # ---------------------------------------------------------------- operations

    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        """Follow or record one operation."""
        step = self.next
        if step is not None and step.primitive is primitive and step.grad is force.grad and self.inner is None:
            for a, o in zip(step.operands, operands, strict=False):
                if a is not getattr(o, "_ref", None) and a is not o:
                    break
            else:
                if step.plain:
                    return self.follow(step)
                if len(step.outs) == 1 and step.params == params and not step.exact_params and len(operands) == len(step.operands):
                    self.at = step
                    t = _new(Tensor)
                    t._ref = step.outs[0]
                    if step.view:
                        self._link_view(t, operands[0], step)
                    self.tracked.append(_weak(t))
                    if step.children:
                        self.next = step.children[0]
                    else:
                        self.run_out()
                    return t
        refs = []
        try:
            for o in operands:
                if isinstance(o, Tensor):
                    r = o._ref
                    if r.__class__ is not Ref or r.capture is not self.capture:
                        if primitive.view and o._storage is not None and o._storage.volatile and r is None:
                            return self._untraced(primitive, operands, params)
                        r = self.ref_of(o)
                    refs.append(r)
                else:
                    refs.append(o)
        except SegmentEnded:
            return force.interpreter.process(primitive, operands, params)
        if not self.alive:
            return force.interpreter.process(primitive, operands, params)
        if self.following and self.inner is None:
            grad = force.grad
            for step in self.at.children:
                if step.primitive is primitive and step.grad is grad and self.matches(step, refs, params):
                    self.advance(step)
                    outs = step.outs
                    if len(outs) == 1:
                        t = _new(Tensor)
                        t._ref = outs[0]
                        if step.view:
                            self._link_view(t, operands[0], step)
                        self.tracked.append(_weak(t))
                        got: Any = t
                    else:
                        made = []
                        for r in outs:
                            t = _new(Tensor)
                            t._ref = r
                            self.tracked.append(_weak(t))
                            made.append(t)
                        got = tuple(made)
                    if not step.children:
                        self.run_out()
                    return got
            self.diverge_at_op(primitive, refs, params)
        return self.record(primitive, operands, refs, params)

    def follow(self, step: Step) -> Tensor:
        """Go on to a step that is known to be the next one: the result of a plain operation, pending."""
        self.at = step
        t = _new(Tensor)
        t._ref = step.outs[0]
        self.tracked.append(_weak(t))
        children = step.children
        if children:
            self.next = children[0]
        else:
            self.run_out()
        return t

    def matches(self, step: Step, refs: list, params: dict) -> bool:
        """Whether an operation is that step; binds the slots of its operands if it is."""
        n = len(self.bindings)
        want = step.operands
        if len(want) != len(refs):
            return False
        for a, b in zip(want, refs, strict=True):
            if a is b:
                continue
            if a.__class__ is Slot:
                if b.__class__ is a.type and self.bind_slot(a, b):
                    continue
            elif a.__class__ is not Ref and b.__class__ is not Ref and same_number(a, b):
                continue
            del self.bindings[n:]
            return False
        if step.params != params or (step.exact_params and not all(exact(v, params[k]) for k, v in step.params.items())):
            del self.bindings[n:]
            return False
        return True

    def bind_slot(self, slot: Slot, value: Any) -> bool:
        b = self.bindings
        if slot.index < len(b):
            return same_number(b[slot.index], value)
        while len(b) < slot.index:  # slots of an operation that raised
            b.append(None)
        b.append(value)
        return True

    def _link_view(self, t: Tensor, x: Tensor, step: Step) -> None:
        w = self.window_of(x)
        trace = x._trace
        t._storage = w.storage
        t._trace = Trace(w, (*trace.chain, (step.primitive, step.items)), trace.root if trace.root is not None else x)
        w.members.append(_weak(t))

    def _untraced(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        """A view of memory that NumPy shares is made at once: it is nothing but a description of real memory."""
        force.interpreter = None
        try:
            return eager.process(primitive, operands, params)
        finally:
            force.interpreter = self

    def record(self, primitive: Primitive, operands: tuple, refs: list, params: dict) -> Any:
        """Run an operation eagerly and enter its step."""
        shadow = self.shadow if self.inner is None else None
        if shadow is not None and (shadow.primitive is not primitive or len(shadow.operands) != len(refs)):
            shadow = None
        values: list = []
        want: list = []
        for i, (o, r) in enumerate(zip(operands, refs, strict=True)):
            if isinstance(o, Tensor):
                values.append(self.snapshots.get(r, o))
                want.append(r)
                continue
            if type(o) is Symbolic:
                values.append(o)
                want.append(Slot(o.expr[1], type(o.value)) if o.expr[0] == "slot" else Expr(o.expr))
                continue
            slot = None
            if self.inner is None and type(o) in (int, float):
                if primitive.kind == "random":
                    slot = self.generalise(o, None)
                elif shadow is not None:
                    slot = self.generalise(o, shadow.operands[i])
            if slot is None:
                values.append(o)
                want.append(o)
            else:
                values.append(Symbolic(o, ("slot", slot.index), self.guards))
                want.append(slot)
        grad = force.grad
        force.interpreter = None
        try:
            got = eager.process(primitive, tuple(values), params)
        finally:
            force.interpreter = self
        outs = got if type(got) is tuple else (got,)
        step = Step("op", primitive)
        step.operands = tuple(want)
        step.params = params
        step.items = tuple(params.items())
        step.exact_params = _holds_ambiguous(params.values())
        step.plain = not params and len(outs) == 1 and not primitive.view and len(refs) <= 3
        step.grad = grad
        step.note = force.note
        node = next((t._node[0] for t in outs if t._node is not None), None)
        step.source = user_source() if self.inner is None else self._gradient_source
        refs_out = []
        for t in outs:
            v = self.capture.new_id()
            spec = t.spec
            r = self.capture.ref(v, v if t._node is not None else None, spec)
            refs_out.append(r)
            t._ref = r
            self._track(t)
        step.outs = tuple(refs_out)
        if node is not None:
            node.segment = self.token
            node.source = step.source
            if node.output is not None:
                node.output._ref = refs_out[0]
                self._track(node.output)
        if primitive.view and outs[0]._view is not None:
            step.view = True
            self._link_view(outs[0], operands[0], step)
        self.add(step)
        return got

    def generalise(self, value: Any, old: Any) -> Slot | None:
        """A slot for a number, where the old branch had another number (or a slot) in its place; None where it had this one."""
        if old is None:
            key: Any = object()
        elif type(old) is Slot:
            if old.type is not type(value):
                return None
            key = (old.index, type(value), value)
        elif type(old) is type(value) and not same_number(old, value):
            key = (type(value), old, value)
        else:
            return None
        index = self.symbols.get(key)
        if index is None or not same_number(self.bindings[index], value):
            index = self.symbols[key] = len(self.bindings)
            self.bindings.append(value)
        return Slot(index, type(value))

    def add(self, step: Step) -> None:
        """Enter a recorded step at the place where the run is."""
        if self.inner is not None:
            self.inner.append(step)
            return
        self.capture.stats.recorded += 1
        if self.replaces is not None:  # only now is the specialised branch superseded
            parent, old = self.replaces
            self.replaces = None
            if parent is self.at and old in parent.children and _has_slots(step):
                parent.children.remove(old)
        self.at.children.insert(0, step)
        if len(self.at.children) > MAX_CHILDREN or self.capture.stats.recorded > MAX_STEPS:
            self.capture.given_up = self.capture.given_up or (
                f"more than {MAX_CHILDREN} different continuations were seen at {step.source or 'one step'}"
                if len(self.at.children) > MAX_CHILDREN
                else f"more than {MAX_STEPS} steps were recorded"
            )
        step.parent = self.at
        step.depth = self.at.depth + 1
        self.advance(step)
        if self.shadow is not None:
            self.shadow = self.shadow.children[0] if self.shadow.children else None

    # ---------------------------------------------------------------- leaving the path

    def diverge_at_op(self, primitive: Primitive, refs: list, params: dict) -> None:
        """The operation is no known next step. A sibling that differs only in numbers lends its shape for slots."""
        for c in self.at.children:
            if (
                c.primitive is primitive
                and c.grad is force.grad
                and len(c.operands) == len(refs)
                and c.params == params
                and all(_alike(a, b) for a, b in zip(c.operands, refs, strict=True))
            ):
                self.shadow = c
                self.replaces = (self.at, c)
                self.capture.stats.generalised += 1
                break
        self.diverge(f"{primitive.name} follows", primitive)

    def diverge(self, what: str, primitive: Primitive | None) -> None:
        seen = next((c for c in self.at.children), None)
        expected = "nothing" if seen is None else seen.primitive.name if seen.primitive else seen.kind
        if primitive is not None and seen is not None and seen.primitive is primitive:
            what = f"{primitive.name} has other operands, numbers or parameters"
        self.capture.stats.count(self.capture.stats.diverged, user_source(), f"{what}, where {expected} was recorded")
        self.fall_back()

    def run_out(self) -> None:
        """The known path ends without an end: an earlier call raised here."""
        self.fall_back()

    def fall_back(self) -> None:
        """Run the followed prefix eagerly and go on recording."""
        self.following = False
        self.next = None
        if self.at is not self.root:
            replay.materialise(self)

    # ---------------------------------------------------------------- writing

    def assign(self, target: Tensor, value: Tensor) -> Tensor:
        """Memory is overwritten: rebind the window, rewrite the history of the views' root."""
        try:
            tref, vref = self._ref_or_input(target), self._ref_or_input(value)
        except SegmentEnded:
            return force.interpreter.assign(target, value)
        if not self.alive:
            return force.interpreter.assign(target, value)
        self._check_writable(target)
        st = target.storage_of()
        if st.volatile or tref is None or len(self.windows.get(id(st), ())) > 1:
            self.break_("memory that NumPy or another tensor shares is written")
            return self._eagerly(lambda: eager_assign(target, value))
        w = self.window_of(target)
        trace = target._trace
        grad = force.grad
        root = trace.root
        new_root = None
        if root is not None:
            rel = trace.chain[len(root._trace.chain) if root._trace is not None else 0 :]
            root_ref = self.ref_of(root)
            new_root = write_through(root, rel, value)
            whole: Any = new_root
            if root._trace is not None and root._trace.chain:
                whole = self._without_grad(lambda: write_through(self._handle(w), root._trace.chain, new_root))
        elif trace.chain:
            whole = self._without_grad(lambda: write_through(self._handle(w), trace.chain, value))
        else:
            whole = value
        if not self.alive:
            return force.interpreter.assign(target, value)
        vref = self.ref_of(value) if value._ref is None else value._ref
        whole_ref = vref if whole is value else whole._ref
        self._write_step(tref, vref, whole_ref, grad)
        if not self.following:
            self._write_memory(target, value, root, new_root)
        w.current = whole_ref.value
        w.version += 1
        w.mutations += 1
        if w.mutations == 1:
            self.written.append(w)
        for m in w.members:
            t = m()
            if t is not None and t is not target and t is not root and t._ref is not None and type(t._ref) is not Stale:
                t._ref = Stale(self.capture, t._ref.value, t._ref.edge, t._ref.spec)
        target._ref = self.capture.ref(vref.value, vref.edge if grad else tref.edge, tref.spec)
        if root is not None and new_root is not None:
            root._ref = self.capture.ref(new_root._ref.value, new_root._ref.edge if grad else root_ref.edge, root_ref.spec)
        if w.external is not None:
            st.pending = self
        return target

    def _write_step(self, *key: Any) -> None:
        """Follow or enter the step that says what is overwritten."""
        operands, grad = key[:3], key[3]
        if self.following and self.inner is None:
            for c in self.at.children:
                if c.kind == "write" and c.grad is grad and _same_refs(c.operands, operands):
                    self.advance(c)
                    if not c.children:
                        self.run_out()
                    return
            self.diverge("memory is written", None)
        step = Step("write")
        step.operands = operands
        step.grad = grad
        step.source = user_source()
        self.add(step)

    def _ref_or_input(self, t: Tensor) -> Ref:
        r = t._ref
        return r if r.__class__ is Ref and r.capture is self.capture else self.ref_of(t)

    def _check_writable(self, target: Tensor) -> None:
        tape.check_writable(target)
        trace = target._trace
        if trace is None:
            return
        root = trace.root
        if root is not None and force.grad and root._requires_grad and root._node is None:
            raise RuntimeError("a view of a leaf Variable that requires grad is being used in an in-place operation.")
        tape.check_chain(trace.chain)
        if trace.window.external is not None:
            tape.check_memory(trace.window.external._array)

    def _write_memory(self, target: Tensor, value: Tensor, root: Tensor | None, new_root: Tensor | None) -> None:
        """Recording: the write itself, and the tape's side of it."""
        if root is None:
            self._suspended(lambda: eager_assign(target, value))
            return
        np.copyto(target._array, value._array)
        storage = target.storage_of()
        storage.version += 1
        if force.grad:
            target._node = value._node if value._node is not None else (edge(value) if value._requires_grad else None)
            root._node = new_root._node  # type: ignore[union-attr]
            if root._node is not None:
                root._requires_grad = False
        if target._view is not None:
            target._view = target._view._replace(version=storage.version)

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

    def detach(self, t: Tensor) -> Tensor:
        if t._ref is None and t._storage is not None and t._storage.volatile:
            return self._suspended(lambda: t.detach())  # type: ignore[attr-defined]
        try:
            ref = self._ref_or_input(t)
        except SegmentEnded:
            return force.interpreter.detach(t)
        if not self.alive:
            return force.interpreter.detach(t)
        n = _new(Tensor)
        w = self.window_of(t)
        n._array = None if self.following else t._array
        n._storage = w.storage
        n._trace = Trace(w, t._trace.chain, None)
        n._ref = self.capture.ref(ref.value, None, ref.spec)
        w.members.append(_weak(n))
        self._track(n)
        return n

    # ---------------------------------------------------------------- gradients

    _gradient_source = ""

    def backward(self, ts: list, given: list | None, retain: bool, create_graph: bool, leaves: list | None) -> None:
        """backward(): one gradient step, then ordinary accumulation into the leaves."""
        if leaves is not None:
            self.leave("backward(inputs=...)")
            return self._now()._eagerly(lambda: eager_backward(ts, given, retain, create_graph, leaves))
        got = self._gradient(ts, given, None, retain, create_graph)
        if got is None:
            return self._now()._eagerly(lambda: eager_backward(ts, given, retain, create_graph, None))
        before, force.grad = force.grad, create_graph
        try:
            for node, g in got:
                if g is not None:
                    accumulate_into(node, g, create_graph)
        finally:
            force.grad = before

    def grad(self, ys: list, xs: list, given: list | None, retain: bool, create_graph: bool) -> list:
        """autograd.grad(): one gradient step."""
        got = self._gradient(ys, given, xs, retain, create_graph)
        if got is None:
            return self._now()._eagerly(lambda: eager_grad(ys, xs, given, retain, create_graph))
        return [g for _, g in got]

    def _now(self) -> Run:
        return force.interpreter

    def _gradient(self, ys: list, given: list | None, xs: list | None, retain: bool, create_graph: bool) -> list | None:
        """[(leaf node or None, cotangent)], or None after leaving the segment, where the engine must run outside of it."""
        operands = [*ys, *([] if given is None else [g for g in given if g is not None]), *(xs or [])]
        if not all(isinstance(t, Tensor) for t in operands):
            start(ys, given, "backward")
        try:
            refs = [self._ref_or_input(t) for t in operands]
        except SegmentEnded:
            return force.interpreter._gradient(ys, given, xs, retain, create_graph)
        if not self.alive:
            return force.interpreter._gradient(ys, given, xs, retain, create_graph)
        mask = None if given is None else tuple(g is not None for g in given)
        options = (len(ys), mask, None if xs is None else len(xs), retain, create_graph)
        if self.following:
            for step in self.at.children:
                if step.kind == "gradient" and step.options == options and _same_refs(step.operands, refs):
                    if not self._hooks_free(step) or not self._guards_hold(step):
                        continue
                    return self._follow_gradient(step, xs)
            if any(c.kind == "end" and c.key == "break" for c in self.at.children):
                self.leave("the gradient leaves the compiled region")
                return None
            self.diverge("a gradient is taken", None)
        return self._record_gradient(ys, given, xs, refs, options)

    def _hooks_free(self, step: Step) -> bool:
        for e in step.key:
            node = self.edges[e][0]
            if node.hooks or (isinstance(node, AccumulateGrad) and node.post_hooks):
                return False
        return True

    def _guards_hold(self, step: Step) -> bool:
        return all(evaluate(expr, self.bindings) == answer for expr, answer in step.guards)

    def _follow_gradient(self, step: Step, xs: list | None) -> list:
        self.advance(step)
        got = []
        for r in step.outs:
            if r is None:
                got.append(None)
                continue
            t = _new(Tensor)
            t._ref = r
            self._track(t)
            got.append(t)
        if not step.children:
            self.run_out()
        if xs is None:
            return [(self.edges[e][0], g) for e, g in zip(step.key, got, strict=True)]
        return [(None, g) for g in got]

    def _record_gradient(self, ys: list, given: list | None, xs: list | None, refs: list, options: tuple) -> list | None:
        roots = [edge(y) for y in ys]
        if any(e is None for e in roots):
            start(ys, given, "backward")  # says what is wrong
        nodes = topological([e[0] for e in roots])  # type: ignore[index]
        known = {self.edges[k]: k for k in self.edges}
        leaves: list[tuple[int, Any]] = []
        for n in nodes:
            if isinstance(n, AccumulateGrad):
                k = known.get((n, 0))
                if k is None or n.hooks or n.post_hooks:
                    self.leave("a gradient hook, or a leaf from outside the compiled region")
                    return None
                leaves.append((k, n))
            elif getattr(n, "segment", None) is not self.token or n.hooks:
                self.leave("the gradient leaves the compiled region")
                return None
        wanted = [(n, 0) for _, n in leaves] if xs is None else [edge(x) for x in xs]
        if any(e is None for e in wanted):
            self.leave("a gradient of a tensor that needs none")
            return None
        retain, create_graph = options[3:]
        self.inner = []
        self.guards = []
        self._gradient_source = user_source()
        try:
            roots, gs = start(ys, given, "backward")
            got = run_engine(roots, gs, retain_graph=retain, create_graph=create_graph, wanted=wanted)
            inner = self.inner
        finally:
            self.inner = None
        results = [got.get(e) for e in wanted]
        step = Step("gradient")
        step.operands = tuple(refs)
        step.options = options
        step.inner = inner
        step.guards = tuple(self.guards)
        step.source = self._gradient_source
        step.outs = tuple(None if g is None else self._ref_or_input(g) for g in results)
        step.key = tuple(k for k, _ in leaves) if xs is None else ()
        self.guards = []
        self.add(step)
        if xs is None:
            return list(zip((n for _, n in leaves), results, strict=True))
        return [(None, g) for g in results]

    # ---------------------------------------------------------------- reading and ending

    def read(self, t: Tensor) -> None:
        """A user reads values: end the segment if it owes them, or would owe them when followed."""
        st = t._storage
        if st is not None and st.pending is self:
            return self.break_("a value is read that was written in the region")
        if t._ref is None:
            return
        if t._ref.capture is not self.capture:
            raise RuntimeError("this tensor belongs to a compiled call that is still running on another thread")
        trace = t._trace
        if trace is not None and trace.window.external is not None and not trace.window.mutations and t._array is not None:
            return
        self.break_("a value is read")

    def settle(self, t: Tensor) -> None:
        """Framework code reads memory."""
        if threading.get_ident() != self.thread:
            raise RuntimeError(
                "this tensor belongs to a compiled call that is still running on another thread; use it on that thread, or after "
                "the call"
            )
        if self.following and self.alive:
            self.break_("memory is read")

    def leave(self, reason: str) -> None:
        self.break_(reason)

    def outside(self, f: Any, reason: str) -> Any:
        """Run something that capture does not follow."""
        self.break_(reason)
        return self._now()._eagerly(f)

    def break_(self, reason: str) -> None:
        """End the segment here and start the next."""
        if not self.alive:
            return
        if self.inner is not None:
            raise AssertionError("a derivative rule reads values")
        source = user_source()
        options = self.capture.options
        if options is not None and options.fullgraph:
            self.end("deopt")
            force.interpreter = None
            raise GraphBreakError(f"{source}: {reason}, which ends the captured graph; fullgraph=True forbids that")
        self.capture.stats.count(self.capture.stats.breaks, source, reason)
        leaf = self.end("break")
        force.interpreter = Run(self.capture, leaf.successor)  # type: ignore[arg-type]

    def end(self, kind: str) -> Step:
        """Run what was followed; leave no trace on tensors."""
        leaf = next((c for c in self.at.children if c.kind == "end" and c.key == kind), None)
        force.interpreter = None
        try:
            if self.following:
                if leaf is not None and kind != "deopt":
                    segment.flush(self, leaf)
                else:
                    self.fall_back()
            if leaf is None:
                leaf = Step("end")
                leaf.key = kind
                leaf.successor = Step("root")
                self.at.children.append(leaf)
        finally:
            self.close()
        self.capture.stats.followed += self.at.depth if self.following else 0
        return leaf

    def live(self) -> list[Tensor]:
        """The pending tensors that somebody still holds."""
        return [t for t in [w() for w in self.tracked] if t is not None]

    def close(self) -> None:
        self.alive = False
        self.capture.run = None
        for t in self.live():
            t._ref = None
            t._trace = None
        for t, _, w in self.externals:
            t._ref = None
            t._trace = None
            if t._storage is not None:
                t._storage.pending = None
            if w is not None:
                w.storage.pending = None


def _alike(a: Any, b: Any) -> bool:
    """The same operand, but perhaps for a number's value."""
    if a is b:
        return True
    if type(a) is Ref or type(b) is Ref:
        return False
    t = a.type if type(a) is Slot else type(a)
    return t is type(b) and (t in (int, float) or a == b)


def _has_slots(step: Step) -> bool:
    return any(type(o) is Slot for o in step.operands)


def _same_refs(a: tuple, b: Any) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _holds_ambiguous(values: Any) -> bool:
    return any(
        isinstance(v, float | bool) or v in (0, 1) or (type(v) is tuple and _holds_ambiguous(v))
        for v in values
        if isinstance(v, int | float | tuple)
    )

