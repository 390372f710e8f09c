"""Following: an operation is checked against the tree, and hands back a tensor that is pending.

Operands are known by their refs. A tensor from outside enters at its first use, as an input step; one whose memory was written
through another is derived anew. The hot path is `process`: identity of primitive, gradient mode, operands.
"""

from __future__ import annotations

from typing import Any

from flame.autograd.tape import AccumulateGrad, eager, edge, infer, user_source
from flame.capture.differences import of_input
from flame.capture.sizes import SizedSpec, dims_of, holds_sizes, takes, takes_params
from flame.capture.state import RunState, SegmentEnded, new_object, scattered, weak, whereabouts
from flame.capture.trace import InputKey, Known, Ref, Slot, Stale, Step, Trace, Window, exact, interned, same_number
from flame.primitive import Primitive, force, placement, registered
from flame.reasons import COMPLEX, OTHER_DEVICE, OTHER_TENSOR, OVERLAPPING_READ
from flame.runtime.device import CPU, as_device
from flame.runtime.device import device as Device
from flame.runtime.device_array import address_of
from flame.runtime.gpu_copy import duplicate
from flame.tensor import Storage, Tensor

TRANSFER = registered("transfer")


def memory_key(a: Any) -> tuple:
    """What tells one piece of memory, seen one way, from another."""
    return address_of(a), a.shape, a.strides


class Follower(RunState):
    """Operands and operations."""

    __slots__ = ()

    diverge_at_op: Any
    outside: Any

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
        t = new_object(Tensor)
        t._array = None
        t._ref = self.capture.ref(w.current, None, w.spec)
        t._trace = Trace(w, (), None)
        t._storage = w.storage
        if not self.following:
            t._array = w.external._array if w.external is not None else w.base
        self.track(t)
        return t

    def window_of(self, t: Tensor) -> Window:
        """The window of a tensor that has a ref; made now for the result of an operation."""
        trace = t._trace
        if trace is None:
            w = Window(None, t._ref.value, t._ref.spec, t.storage_of())
            if not self.following:
                w.base = t._array
            w.members.append(weak(t))
            trace = t._trace = Trace(w, (), None)
        elif trace.window is None:
            trace.window = w = self.window_of(trace.root)
            t._storage = w.storage
            w.members.append(weak(t))
        return trace.window

    def version_of(self, t: Tensor) -> int:
        """The version of a tensor's memory, with the writes that are pending (which are counted where the segment ends)."""
        version = 0 if t._storage is None else t._storage.version
        if not self.following or self.survivors is not None or t._trace is None:
            return version
        w = self.window_of(t)
        return max(version, w.version) if w.external is None else version + w.mutations

    def link(self) -> None:
        """Tell windows of the views that were made since: what is about to be written has to know who sees it."""
        self.unlinked = False
        begin, self.linked = self.linked, len(self.tracked)
        for w in self.tracked[begin:]:
            t = w()
            if t is not None and t._trace is not None and t._trace.window is None:
                self.window_of(t)

    def _input(self, t: Tensor) -> Ref:
        """The ref of a tensor from outside, which is an input step."""
        r = self.enter(t)
        return self._new_input(t) if r is None else r

    def enter(self, t: Tensor) -> Ref | None:
        """The same for one that comes as it came before, alone and as the next step; None for any other."""
        step, known = self.next, t._known
        if step is None:
            return None
        if known is None:
            return self._enter_first(t, step) if step.kind == "input" and t._storage is None else None
        if (
            known.key is step.key
            and known.array is t._array
            and known.storage is t._storage
            and t._requires_grad is known.wants
            and t._node is None
            and t._view is None
        ):
            st: Any = known.storage
            if st.window is None and st.pending is None and not st.volatile:  # as it came before, and alone
                ref: Ref = step.outs[0]
                w: Window = known.window
                st.window = w
                w.external = t
                w.current = ref.value
                if w.mutations:
                    w.mutations = w.version = 0
                t._ref = ref
                t._trace = known.trace
                self.externals.append((t, ref, w))
                self.at = step
                children = step.children
                if children:
                    self.next = children[0]
                else:
                    self.run_out()
                return ref
        return None

    def _enter_first(self, t: Tensor, step: Step) -> Ref | None:
        """The same for one that never was seen by anything: memory of its own, without a history."""
        a, key = t._array, step.key
        if (
            a is None
            or step.sized
            or key.differentiable
            or key.volatile
            or key.alias is not None
            or step.numpy is not a.dtype
            or t._requires_grad
            or t._node is not None
            or t._view is not None
            or key.spec.shape != a.shape
            or key.strides != a.strides
            or placement.gpu
            or self.inner is not None
        ):
            return None
        ref: Ref = step.outs[0]
        st: Storage = t.storage_of()
        w = Window(t, ref.value, ref.spec, st)
        st.window = w
        w.members.append(weak(t))
        t._ref = ref
        t._trace = Trace(w, (), None)
        self.externals.append((t, ref, w))
        self.at = step
        children = step.children
        if children:
            self.next = children[0]
        else:
            self.run_out()
        return ref

    def _new_input(self, t: Tensor) -> Ref:
        st = t.storage_of()
        if t._array is None or (st.pending is not None and st.pending is not self):
            raise RuntimeError("a tensor that another thread's compiled call still has to compute is used here")
        if self.inner is not None:
            raise AssertionError("a derivative rule reads a tensor that capture does not know")
        volatile = t._handed_out()  # (before the array has a name here: it counts who holds it)
        a = t._array
        window = None
        if not volatile and (w := st.window) is not None:
            key = memory_key(a)
            while w is not None:
                if memory_key(w.external._array) == key and t._view is None and w.external._view is None:
                    window = w
                elif w.mutations:
                    self.break_(OVERLAPPING_READ)
                    raise SegmentEnded
                w = w.next
        there = None
        if placement.gpu:
            there = whereabouts(t)
            if self.is_elsewhere(there):
                raise SegmentEnded
        e = t._node if t._view is None and t._node is not None else edge(t)
        if not self.alive:  # a view of memory with pending writes: its history was made anew, for which these were made
            raise SegmentEnded
        leaf = e is None or type(e[0]) is AccumulateGrad
        alias = None if window is None else window.current
        step = None
        if self.following:
            for c in self.at.children:
                k = c.key
                if (
                    c.kind == "input"
                    and c.numpy is a.dtype
                    and (k.spec.shape == a.shape and k.strides == a.strides if not c.sized else self._has_size(c, a))
                    and k.differentiable is (e is not None)
                    and k.leaf is leaf
                    and k.alias == alias
                    and k.volatile is volatile
                    and k.device is there
                ):
                    step = c
                    break
            else:
                beside = self._of_other_size(a, (e is not None, leaf, alias, volatile, there))
                said = of_input(t.spec, a.strides, e is not None, leaf, alias, volatile, self.at.children)
                self.diverge(OTHER_TENSOR, *said)
                if beside is not None:
                    self.beside(beside)
        if step is None:
            step = Step("input")
            spec: Any = t.spec
            step.numpy = spec.dtype.numpy
            beside = self.shadow
            if (
                beside is not None
                and self._alike_but_for_sizes(beside, a)
                and (self.sizing or beside.sized or beside.key.spec.shape != a.shape or beside.key.strides != a.strides)
            ):
                spec, strides = self._sized_spec(step, beside, spec, a)
            else:
                strides = a.strides
            like = InputKey(spec, strides, e is not None, leaf, alias, volatile, a.flags.c_contiguous, there)
            step.key = like if step.sized else interned(like)
            value = self.capture.new_id() if window is None else window.current
            step.outs = (self.capture.ref(value, None if e is None else self.capture.new_id(), spec),)
            step.source = user_source()
            self.add(step)
        else:
            self.advance(step)
        ref = step.outs[0]
        if e is not None:
            self.edges[ref.edge] = e
        if volatile:
            snapshot = new_object(Tensor)
            snapshot._array = duplicate(a, "K")
            snapshot._storage = st  # (whose versions the tape compares)
            snapshot._node = e
            snapshot._ref = ref
            self.track(snapshot)
            self.snapshots[ref] = snapshot
            self.originals[len(self.externals)] = t
            self.externals.append((snapshot, ref, None))
        else:
            if window is None:
                window = Window(t, ref.value, ref.spec, st)
                window.next, st.window = st.window, window
                self.externals.append((t, ref, window))
            else:
                self.externals.append((t, ref, None))
            t._ref = ref
            t._trace = Trace(window, (), None)
            window.members.append(weak(t))
            if alias is None and leaf and t._view is None and not step.sized:
                t._known = Known(step.key, a, t._requires_grad, t._trace)
        if not step.children and self.following:
            self.run_out()
        return ref

    # ---- where things are

    @property
    def device(self) -> Device:
        """Where this segment's tensors are."""
        return self.seat() or CPU

    def seat(self) -> Device | None:
        """The device that what is on the path so far says; None: it says nothing."""
        s = self.at
        while s is not self.root:
            if s.kind == "input" and s.key.device is not None:
                return s.key.device
            place = s.params.get("place", "") if s.kind == "op" and s.params else ""
            if place:
                return as_device(place)
            s = s.parent
        return None

    def is_elsewhere(self, there: Device | None, what: str = "a tensor") -> bool:
        """End the segment where it is on another device than `there`."""
        here = self.seat()
        if here is None or there is None or here == there:
            return False
        self.break_(OTHER_DEVICE, f"{what} on {there} after others on {here}")
        return True

    # ---- tensors from outside whose sizes vary

    def _has_size(self, step: Step, a: Any) -> bool:
        """Whether an array has the shape that an input step wants, in which there are Sizes."""
        key = step.key
        dims, n = dims_of(key.spec), len(self.bindings)
        if len(dims) != a.ndim or key.contiguous is not a.flags.c_contiguous:
            return False
        if takes(dims, a.shape, step, self.bindings) and (key.contiguous or takes(key.strides, a.strides, step, self.bindings)):
            return True
        del self.bindings[n:]
        return False

    def _of_other_size(self, a: Any, flags: tuple) -> Step | None:
        """A known next step that this array would be but for sizes; one that has Sizes rather than one that has not."""
        if self.capture.options.dynamic is False:
            return None
        found = [
            c
            for c in self.at.children
            if c.kind == "input"
            and self._alike_but_for_sizes(c, a)
            and (c.key.differentiable, c.key.leaf, c.key.alias, c.key.volatile, c.key.device) == flags
        ]
        return next((c for c in found if c.sized), found[0] if found else None)

    def _alike_but_for_sizes(self, c: Step, a: Any) -> bool:
        return (
            self.capture.options.dynamic is not False
            and c.kind == "input"
            and c.numpy is a.dtype
            and len(dims_of(c.key.spec)) == a.ndim
            and c.key.contiguous is a.flags.c_contiguous
        )

    def _sized_spec(self, step: Step, beside: Step, spec: Any, a: Any) -> tuple[Any, tuple]:
        """The spec and strides of a new input step, with Sizes where they differ from those of the one beside it."""
        sizing, key = self.sized(), beside.key
        dims = sizing.dimensions(dims_of(key.spec), spec.shape)
        strides = a.strides if key.contiguous else sizing.parameter(key.strides, a.strides)
        step.binds = sizing.bound()
        step.sized = holds_sizes(dims) or holds_sizes(strides)
        return SizedSpec(self.capture, dims, spec.dtype) if holds_sizes(dims) else spec, strides

    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        """Follow or record one operation."""
        step = self.next
        if step is not None and step.primitive is primitive and step.grad is force.grad:
            bound = len(self.bindings)
            for a, o in zip(step.operands, operands):
                if a is o or (isinstance(o, Tensor) and a is o._ref):
                    continue
                if not self.takes(a, o):
                    del self.bindings[bound:]
                    break
            else:
                if step.plain:
                    return self.follow(step)
                if (
                    len(step.outs) == 1
                    and not step.sized
                    and step.params == params
                    and (not step.exact_params or self._exactly(step, params))
                    and len(operands) == len(step.operands)
                ):
                    self.at = step
                    t = new_object(Tensor)
                    t._array = None
                    t._ref = step.outs[0]
                    if step.view:
                        self._link_view(t, operands[0], step, step.items)
                    self.tracked.append(weak(t))
                    if step.children:
                        self.next = step.children[0]
                    else:
                        self.run_out()
                    return t
                del self.bindings[bound:]
        return self.find(primitive, operands, params)

    def _exactly(self, step: Step, params: dict) -> bool:
        """Whether parameters that are equal to a step's are so to the bit."""
        return all([exact(v, params[k]) for k, v in step.items])

    def find(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        """An operation that is not the likeliest next step: another one that is known, or one to be recorded."""
        if placement.gpu and self.inner is None:
            place = params.get("place", "")
            if primitive is TRANSFER or (place and self.is_elsewhere(as_device(place), primitive.name)):
                f = lambda: eager.process(primitive, operands, params)
                return self.outside(f, OTHER_DEVICE, primitive.name) if primitive is TRANSFER else self.now()._eagerly(f)
        if primitive.name.endswith("complex") or any([isinstance(o, Tensor) and o.dtype.kind == "c" for o in operands]):
            if self.inner is None:
                return self.outside(lambda: eager.process(primitive, operands, params), COMPLEX, primitive.name)
        refs = []
        try:
            for o in operands:
                if isinstance(o, Tensor):
                    r = o._ref
                    if r.__class__ is not Ref or r.capture is not self.capture:
                        if primitive.view and r is None and o._handed_out():
                            return self._untraced(primitive, operands, params)
                        r = self.ref_of(o)
                    refs.append(r)
                else:
                    refs.append(o)
        except SegmentEnded:
            if placement.gpu and scattered(operands):
                return self.now()._eagerly(lambda: eager.process(primitive, operands, params))
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
                        t = new_object(Tensor)
                        t._array = None
                        t._ref = outs[0]
                        if step.view:
                            self._link_view(t, operands[0], step, tuple(params.items()))
                        self.tracked.append(weak(t))
                        got: Any = t
                    else:
                        made = []
                        for r in outs:
                            t = new_object(Tensor)
                            t._array = None
                            t._ref = r
                            self.tracked.append(weak(t))
                            made.append(t)
                        got = tuple(made)
                    if not step.children:
                        self.run_out()
                    return got
            if primitive in self.at.refused:
                infer(primitive, operands, params)  # raises what it raised before, if it was for the operands' shapes or dtypes
            self.diverge_at_op(primitive, refs, params)
        return self.record(primitive, operands, refs, params)

    def follow(self, step: Step) -> Tensor:
        """Go on to a step that is known to be the next one: the result of a plain operation, pending."""
        self.at = step
        t = new_object(Tensor)
        t._array = None
        t._ref = step.outs[0]
        self.tracked.append(weak(t))
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
        if step.sized:
            if takes_params(step, params, self.bindings):
                return True
            del self.bindings[n:]
            return False
        if step.params != params or (step.exact_params and not all(exact(v, params[k]) for k, v in step.params.items())):
            del self.bindings[n:]
            return False
        return True

    def takes(self, want: Any, x: Any) -> bool:
        """Whether a step's operand is this number, told quickly; binds its slot if it is one."""
        kind = type(x)
        if type(want) is Slot:
            return want.type is kind and self.bind_slot(want, x)
        if type(want) is not kind:
            return False
        return want == x and x != 0.0 if kind is float else kind is int and want == x  # (equal to the bit, but for zeros)

    def plain(self, primitive: Primitive, x: Tensor) -> Tensor | None:
        """The result of an operation on one tensor, where that is a plain next step; else None."""
        r = x._ref
        if r is None:
            r = self.enter(x)
        step = self.next
        if step is not None and step.plain is primitive and step.operands[0] is r and step.grad is force.grad:
            return self.follow(step)
        return None

    def pair(self, primitive: Primitive, x: Tensor, y: Tensor) -> Tensor | None:
        """The same for two tensors."""
        r = x._ref
        if r is None:
            r = self.enter(x)
        o = y._ref
        if o is None and r is not None:  # (inputs enter in order)
            o = self.enter(y)
        step = self.next
        if step is not None and step.plain is primitive and step.grad is force.grad:
            want = step.operands
            if want[0] is r and want[1] is o:
                return self.follow(step)
        return None

    def bind_slot(self, slot: Slot, value: Any) -> bool:
        b = self.bindings
        if slot.index < len(b):
            return same_number(b[slot.index], value)
        while len(b) < slot.index:  # slots of an operation that raised
            b.append(None)
        b.append(value)
        return True

    def _link_view(self, t: Tensor, x: Tensor, step: Step, items: tuple) -> None:
        trace: Trace | None = x._trace
        link = (step.primitive, items)
        if trace is None:
            t._trace = Trace(None, (link,), x)
        else:
            t._trace = Trace(None, (*trace.chain, link), x if trace.root is None else trace.root)
        if self.following:
            self.unlinked = True  # (most are never asked for)
        else:
            self.window_of(t)

    def _untraced(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        """A view of memory that NumPy shares is made at once: it is nothing but a description of real memory."""
        force.interpreter = None
        try:
            return eager.process(primitive, operands, params)
        finally:
            force.interpreter = self
