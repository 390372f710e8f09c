"""Following: an operation is checked against the tree, and hands back a tensor that is pending.

Operands are known by their refs. A tensor from outside enters at its first use, as an input step; one whose memory was written
through another is derived anew. The hot path is `process`: identity of primitive, gradient mode, operands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flame.autograd.tape import AccumulateGrad, eager, edge, user_source
from flame.capture.sizes import SizedSpec, dims_of, holds_sizes, takes, takes_params
from flame.capture.state import RunState, SegmentEnded, new_object, weak
from flame.capture.trace import InputKey, Known, Macro, Ref, Slot, Stale, Step, Trace, Window, exact, interned, same_number
from flame.dtypes import dtype
from flame.primitive import Primitive, force
from flame.reasons import OTHER_TENSOR, OVERLAPPING_READ
from flame.tensor import Tensor

MOST_SIZES = 1024  #: sets of sizes that one composite is remembered for


def memory_key(a: Any) -> tuple:
    """What tells one piece of memory, seen one way, from another."""
    return a.__array_interface__["data"][0], a.shape, a.strides


class Follower(RunState):
    """Operands and operations."""

    diverge_at_op: Any

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
        return trace.window

    def _input(self, t: Tensor) -> Ref:
        """The ref of a tensor from outside, which is an input step."""
        step, known = self.next, t._known
        if (
            known is not None
            and step is not None
            and known.key is step.key
            and known.array is t._array
            and known.storage is t._storage
            and t._requires_grad is known.wants
            and t._node is None
            and t._view is None
        ):
            st: Any = known.storage
            if st.window is None and st.pending is None and not st.volatile:  # as it came before, and alone
                return self._enter(t, step, known)
        return self._new_input(t)

    def _enter(self, t: Tensor, step: Step, known: Known) -> Ref:
        ref = step.outs[0]
        w = known.window
        w.external = t
        w.current = ref.value
        if w.mutations:
            w.mutations = w.version = 0
        known.storage.window = w
        if known.wants:
            self.edges[ref.edge] = t
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
                    and (k.spec.shape == a.shape and k.strides == a.strides if not c.sized else self._has_size(c, a))
                    and k.differentiable is (e is not None)
                    and k.leaf is leaf
                    and k.alias == alias
                    and k.volatile is volatile
                ):
                    step = c
                    break
            else:
                beside = self._of_other_size(a, (e is not None, leaf, alias, volatile))
                self.diverge(OTHER_TENSOR, t.spec)
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
                and (self.sizing or beside.key.spec.shape != a.shape or beside.key.strides != a.strides)
            ):
                spec, strides = self._sized_spec(step, beside, spec, a)
            else:
                strides = a.strides
            like = InputKey(spec, strides, e is not None, leaf, alias, volatile, a.flags.c_contiguous)
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
            snapshot._array = np.array(a, order="K")
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
            and (c.key.differentiable, c.key.leaf, c.key.alias, c.key.volatile) == flags
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
        if step is not None and step.primitive is primitive and step.grad is force.grad and self.inner is None:
            bound = len(self.bindings)
            for a, o in zip(step.operands, operands, strict=False):
                if o.__class__ is float:
                    if a is not o and not self.takes(a, o):
                        del self.bindings[bound:]
                        break
                elif a is not getattr(o, "_ref", None) and a is not o:
                    del self.bindings[bound:]
                    break
            else:
                if step.plain:
                    return self.follow(step)
                if (
                    len(step.outs) == 1
                    and not step.sized
                    and step.params == params
                    and (not step.exact_params or all([exact(v, params[k]) for k, v in step.items]))
                    and len(operands) == len(step.operands)
                ):
                    self.at = step
                    t = new_object(Tensor)
                    t._ref = step.outs[0]
                    if step.view:
                        self._link_view(t, operands[0], step, step.items)
                    self.made.append(t)
                    if step.children:
                        self.next = step.children[0]
                    else:
                        self.run_out()
                    return t
                del self.bindings[bound:]
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
                        t._ref = outs[0]
                        if step.view:
                            self._link_view(t, operands[0], step, tuple(params.items()))
                        self.made.append(t)
                        got: Any = t
                    else:
                        made = []
                        for r in outs:
                            t = new_object(Tensor)
                            t._ref = r
                            self.made.append(t)
                            made.append(t)
                        got = tuple(made)
                    if not step.children:
                        self.run_out()
                    return got
            self.diverge_at_op(primitive, refs, params)
        return self.record(primitive, operands, refs, params)

    # A composite is a stretch of operations, and everything it computes comes from its arguments: it reads no values, draws no
    # random numbers and writes nothing, or it is no Macro. Called with what it was called with at this place of the tree before,
    # it goes to the end of the stretch in one check.

    def composite(self, f: Any, args: tuple, kwargs: dict) -> Any:
        """Follow a composite that is known here; else run it, and know it from then on."""
        if self.inner is not None:
            return f(*args, **kwargs)
        try:
            arguments = self._arguments((args, tuple(kwargs.items())) if kwargs else args)
        except SegmentEnded:
            arguments = None
        if arguments is None or not self.alive:
            return f(*args, **kwargs)
        name, grad, start = force.note, force.grad, self.at
        if self.following and start.macros is not None:
            for m in start.macros:
                if m.name == name and m.grad is grad and _same_arguments(m.arguments, arguments):
                    if m.checked is None or tuple(self.bindings) in m.checked:
                        return self._follow_macro(m)
                    break
        bindings = tuple(self.bindings)
        shadowed = self.shadow is not None
        got = f(*args, **kwargs)
        if force.interpreter is self and not shadowed and self.shadow is None:
            self._learn(name, arguments, grad, start, got, bindings)
        return got

    def _arguments(self, x: Any) -> tuple | None:
        """Refs for tensors, everything else as it is; None where something can't be told apart for sure."""
        out = []
        for a in x:
            t = type(a)
            if a is None or t in (int, float, bool, str) or t is dtype:
                out.append(a)
            elif isinstance(a, Tensor):
                r = a._ref
                if r.__class__ is not Ref or r.capture is not self.capture:
                    if r is None and a._handed_out():
                        return None
                    r = self.ref_of(a)
                out.append(r)
            elif isinstance(a, tuple | list):
                inner = self._arguments(a)
                if inner is None:
                    return None
                out.append(inner)
            else:
                return None
        return tuple(out)

    def _learn(self, name: str, arguments: tuple, grad: bool, start: Step, got: Any, bindings: tuple) -> None:
        results = got if type(got) is tuple else (got,)
        sized = False
        made: set[Ref] = set()
        values: set[int] = set()
        s = self.at
        while s is not start:
            if s.kind != "op" or s.primitive is None or s.primitive.kind == "random":
                return
            if any(o.__class__ is Slot for o in s.operands) or s.binds:
                return
            sized = sized or s.sized
            made.update(s.outs)
            values.update(r.value for r in s.outs)
            s = s.parent
        if len(values) < 2:
            return
        for t in results:
            if type(t) is not Tensor or t._ref not in made or not t.is_contiguous():
                return
            if t._trace is not None and (t._trace.window.external is not None or t._trace.window.current not in values):
                return
        if start.macros is None:
            start.macros = []
        if sized:
            for m in start.macros:
                if m.name == name and m.grad is grad and m.last is self.at and _same_arguments(m.arguments, arguments):
                    if m.checked is not None and len(m.checked) < MOST_SIZES:
                        m.checked.add(bindings)
                    return
        checked = {bindings} if sized else None
        outs = tuple(t._ref for t in results)
        start.macros.append(Macro(name, arguments, grad, self.at, outs, type(got) is not tuple, checked))

    def _follow_macro(self, m: Macro) -> Any:
        self.advance(m.last)
        made = []
        for r in m.outs:
            t = new_object(Tensor)
            t._ref = r
            self.track(t)
            made.append(t)
        if not m.last.children:
            self.run_out()
        return made[0] if m.single else tuple(made)

    def follow(self, step: Step) -> Tensor:
        """Go on to a step that is known to be the next one: the result of a plain operation, pending."""
        self.at = step
        t = new_object(Tensor)
        t._ref = step.outs[0]
        self.made.append(t)
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

    def takes(self, want: Any, x: float) -> bool:
        """Whether a step's operand is this number, told quickly; binds its slot if it is one."""
        if want.__class__ is Slot:
            return want.type is float and self.bind_slot(want, x)
        return want.__class__ is float and want == x and x != 0.0  # (equal to the bit, but for zeros)

    def bind_slot(self, slot: Slot, value: Any) -> bool:
        b = self.bindings
        if slot.index < len(b):
            return same_number(b[slot.index], value)
        while len(b) < slot.index:  # slots of an operation that raised
            b.append(None)
        b.append(value)
        return True

    def _link_view(self, t: Tensor, x: Tensor, step: Step, items: tuple) -> None:
        w = self.window_of(x)
        trace = x._trace
        t._storage = w.storage
        t._trace = Trace(w, (*trace.chain, (step.primitive, items)), trace.root if trace.root is not None else x)
        w.members.append(weak(t))

    def _untraced(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        """A view of memory that NumPy shares is made at once: it is nothing but a description of real memory."""
        force.interpreter = None
        try:
            return eager.process(primitive, operands, params)
        finally:
            force.interpreter = self


def _same_arguments(a: tuple, b: tuple) -> bool:
    """Refs by identity, tuples element by element, everything else by type and bits."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if x is y:
            continue
        if x.__class__ is Ref or y.__class__ is Ref:
            return False
        if type(x) is tuple and type(y) is tuple:
            if not _same_arguments(x, y):
                return False
        elif not exact(x, y):
            return False
    return True
