"""Effects: memory that is written inside a segment, and aliases of it.

A write rebinds the window of the memory to a new value; what other tensors of the window hold goes stale. Through a view the whole
is rewritten functionally (`write_through`), in value and in history. Memory that was handed to NumPy, or that several windows show,
is written eagerly between two segments.
"""

from __future__ import annotations

from typing import Any

from flame.autograd import tape
from flame.autograd.tape import eager_assign, edge, user_source, write_through
from flame.capture.state import RunState, SegmentEnded, new_object, same_refs, scattered, weak
from flame.capture.trace import Ref, Slot, Stale, Step, Trace, Window, same_number
from flame.primitive import Primitive, force, placement
from flame.reasons import OTHER_WRITE, SHARED_MEMORY_WRITTEN
from flame.runtime.gpu_copy import overwrite
from flame.tensor import Tensor


def _rebase(view: Any, value: Any) -> None:
    """The base of a view takes the history of `value` there, which is in its memory already."""
    v = view._view
    base = v.base
    if edge(value) is None and edge(base) is None:
        return
    base._node = write_through(base, v.chain, value)._node
    if base._node is not None:
        base._requires_grad = False
    view._view = v._replace(version=view._version)


class Effects(RunState):
    """Writes and detached aliases."""

    __slots__ = ()

    _handle: Any
    bind_slot: Any

    def assign(self, target: Tensor, value: Tensor) -> Tensor:
        """Memory is overwritten: rebind the window, rewrite the history of the views' root."""
        write, given = self.next, value._ref
        if write is not None and self._is_whole_write(write, target, given) and self._writes_freely(target):
            self._follow_write(write, target, given)
            return target
        try:
            tref, vref = self._ref_or_input(target), self._ref_or_input(value)
        except SegmentEnded:
            if placement.gpu and scattered((target, value)):
                return self.now()._eagerly(lambda: eager_assign(target, value))
            return force.interpreter.assign(target, value)
        if not self.alive:
            return force.interpreter.assign(target, value)
        if self.unlinked:
            self.link()
        self._check_writable(target)
        st = target.storage_of()
        if target._ref is None or target._handed_out() or (st.window is not None and st.window.next is not None):
            self.break_(SHARED_MEMORY_WRITTEN)
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
        self._rebind(w, whole_ref.value, target, root)
        target._ref = self.capture.ref(vref.value, vref.edge if grad else tref.edge, tref.spec)
        if root is not None and new_root is not None:
            root._ref = self.capture.ref(new_root._ref.value, new_root._ref.edge if grad else root_ref.edge, root_ref.spec)
            if not grad and tref.edge is None and root_ref.edge is not None:  # a view made without history has its base's now
                target._ref = Stale(self.capture, vref.value, None, tref.spec)
        if w.external is not None:
            st.pending = self
        return target

    def follow_inplace(self, primitive: Primitive, target: Tensor, others: tuple) -> bool:
        """Whether an in-place operation on a whole window is what comes next in the tree; goes on past it if it is."""
        step = self.next
        if (
            step is None
            or step.plain is not primitive
            or step.grad is not force.grad
            or step.operands[0] is not target._ref
            or not step.children
        ):
            return False
        write: Step = step.children[0]
        out = step.outs[0]
        if (
            not self._is_whole_write(write, target, out)
            or len(others) != len(step.operands) - 1
            or not self._writes_freely(target)
        ):
            return False
        n = len(self.bindings)
        for a, o in zip(step.operands[1:], others, strict=True):
            if a is o or (isinstance(o, Tensor) and a is o._ref):
                continue
            kind = type(a)
            if kind is Slot and type(o) is a.type and self.bind_slot(a, o):
                continue
            if (kind is int or kind is float) and same_number(a, o):
                continue
            del self.bindings[n:]
            return False
        self._follow_write(write, target, out)
        return True

    def _is_whole_write(self, write: Step, target: Tensor, value: Any) -> bool:
        """Whether a step writes this value to the whole of the target's memory."""
        if write.kind != "write" or write.grad is not force.grad or self.inner is not None:
            return False
        old, given, whole = write.operands
        return old is target._ref and given is value and whole is value

    def _writes_freely(self, target: Tensor) -> bool:
        """Whether nothing but the target's own window has to be thought of: no view, no memory shared with anybody."""
        if force.grad and target._requires_grad and target._node is None:
            return False
        seen: Trace | None = target._trace
        w: Window = self.window_of(target) if seen is None or seen.window is None else seen.window
        trace: Trace = target._trace
        outside: Tensor | None = w.external
        if trace.chain or trace.root is not None or w.storage.volatile:
            return False
        return outside is None or (w.storage.window.next is None and outside._array.flags.writeable)

    def _follow_write(self, write: Step, target: Tensor, value: Ref) -> None:
        trace: Trace = target._trace
        w: Window = trace.window
        old: Ref = target._ref
        self.advance(write)
        self._rebind(w, value.value, target, None)
        after: Ref = write.key
        if after is None:  # (of this step it always is this one)
            after = write.key = self.capture.ref(value.value, value.edge if write.grad else old.edge, old.spec)
        target._ref = after
        if w.external is not None:
            w.storage.pending = self
        if not write.children:
            self.run_out()

    def _rebind(self, w: Window, value: int, target: Tensor, root: Tensor | None) -> None:
        """The window holds another value; what its other members knew of it is stale."""
        if self.unlinked:
            self.link()
        w.current = value
        w.version += 1
        w.mutations += 1
        if w.mutations == 1:
            self.written.append(w)
        if len(w.members) > 1:
            t: Tensor | None
            for m in w.members:
                t = m()
                if t is not None and t is not target and t is not root and t._ref is not None and type(t._ref) is not Stale:
                    t._ref = Stale(self.capture, t._ref.value, t._ref.edge, t._ref.spec)

    def _write_step(self, *key: Any) -> None:
        """Follow or enter the step that says what is overwritten."""
        operands, grad = key[:3], key[3]
        if self.following and self.inner is None:
            for c in self.at.children:
                if c.kind == "write" and c.grad is grad and same_refs(c.operands, operands):
                    self.advance(c)
                    if not c.children:
                        self.run_out()
                    return
            self.diverge(OTHER_WRITE)
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
        if root is not None:
            tape.check_writable(root)  # which may itself be a view of what was made before this segment
        tape.check_chain(trace.chain)
        if trace.window.external is not None:
            tape.check_memory(trace.window.external._array)

    def _write_memory(self, target: Tensor, value: Tensor, root: Tensor | None, new_root: Tensor | None) -> None:
        """Recording: the write itself, and the tape's side of it."""
        if root is None:
            self._suspended(lambda: eager_assign(target, value))
            return
        storage = target.storage_of()
        tape.about_to_write(storage)
        overwrite(target._array, value._array)
        storage.version += 1
        if force.grad:
            target._node = value._node if value._node is not None else (edge(value) if value._requires_grad else None)
            root._node = new_root._node  # type: ignore[union-attr]
            if root._node is not None:
                root._requires_grad = False
            if root._view is not None:  # a view made before this segment: its base has a new history too
                self._suspended(lambda: _rebase(root, new_root))
        # written without gradient, a view of what wants one is given its base's history at its next use, as eagerly
        v = target._view
        if v is not None and (force.grad or target._node is not None or not tape.requires_grad(v.base)):
            target._view = v._replace(version=storage.version)

    def detach(self, t: Tensor) -> Tensor:
        if t._ref is None and t._handed_out():
            return self._suspended(lambda: t.detach())  # type: ignore[attr-defined]
        try:
            ref = self._ref_or_input(t)
        except SegmentEnded:
            return force.interpreter.detach(t)
        if not self.alive:
            return force.interpreter.detach(t)
        n = new_object(Tensor)
        w = self.window_of(t)
        n._array = None if self.following else t._array
        n._storage = w.storage
        n._trace = Trace(w, t._trace.chain, None)
        n._ref = self.capture.ref(ref.value, None, ref.spec)
        w.members.append(weak(n))
        self.track(n)
        return n
