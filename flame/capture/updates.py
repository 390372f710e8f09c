"""Updates: a function that writes many tensors by many others (an optimizer's step), followed in one check of them all.

    update ::= function tensor* number* -> write*         kept by the step after which it began

Everything it computes comes from its tensors and numbers, and all it does is to overwrite tensors among them whole; a number is
used as it is given, or is written in the function. Where a number varies from call to call (a bias correction, a learning rate)
the path has a slot, and the update knows which of its numbers are meant. What would have to be thought of at a write (views,
memory that others see) has the operations followed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flame.capture.known import remember
from flame.capture.sizes import SizedSpec
from flame.capture.state import RunState, SegmentEnded
from flame.capture.trace import Known, Ref, Slot, Step, Trace, Window, same_number
from flame.primitive import force
from flame.tensor import Storage, Tensor


class Update:
    """A known update."""

    __slots__ = ("function", "positional", "given", "numbers", "fixed", "slots", "written", "last", "checked")

    def __init__(
        self, function: Any, given: tuple, numbers: tuple, fixed: tuple, slots: tuple, written: tuple, last: Step
    ) -> None:
        self.function = function
        self.positional = -1  # (it is no call: see `flame.capture.known`)
        self.given = given  #: refs
        self.numbers = numbers
        self.fixed = fixed  #: places of numbers that have to be what they were
        self.slots = slots  #: (slot, places of the numbers that it may be)
        self.written = (
            written  #: (place of the tensor, its ref afterwards, how often it was written), in order of the first write
        )
        self.last = last
        self.checked = None


class Updates(RunState):
    """Updates that are known, and learning them."""

    __slots__ = ()

    enter: Any
    _arguments: Any
    bind_slot: Callable[[Slot, Any], bool]

    def update(self, f: Callable, tensors: Sequence[Tensor], numbers: tuple) -> None:
        """Follow an update that is known here; else run it, and know it from then on."""
        begin = self.at
        if self.next is not None and self._follow_known(f, tensors, numbers):
            return
        if self.inner is not None or force.grad or not all(type(x) is float or type(x) is int for x in numbers):
            f(tensors, numbers)
            return
        try:
            given = self._arguments(tensors)
        except SegmentEnded:
            given = None
        if given is None or not self.alive or force.interpreter is not self:
            f(tensors, numbers)
            return
        start = self.at
        if start is not begin and self.next is not None and self._follow_known(f, tensors, numbers):
            return
        shadowed, reads = self.shadow is not None, self.reads
        f(tensors, numbers)
        steady = force.interpreter is self and self.alive and not force.grad and self.reads == reads
        if steady and not shadowed and self.shadow is None:
            u = self._learned_update(f, tensors, given, numbers, start)
            if u is not None:
                remember(begin, u)
                if start is not begin:
                    remember(start, u)

    def _follow_known(self, f: Callable, tensors: Sequence[Tensor], numbers: tuple) -> bool:
        if force.grad:
            return False
        u: Update
        for u in self.at.macros or ():
            if u.function is f and len(u.given) == len(tensors) and self._follow_update(u, tensors, numbers):
                return True
        return False

    def _follow_update(self, u: Update, tensors: Sequence[Tensor], numbers: tuple) -> bool:
        t: Tensor
        for want, t in zip(u.given, tensors, strict=True):
            r = t._ref
            if r is not want and (r is not None or self.enter(t) is not want):
                return False
        if len(numbers) != len(u.numbers) or not all([same_number(numbers[j], u.numbers[j]) for j in u.fixed]):
            return False
        for slot, places in u.slots:
            x = numbers[places[0]]
            if type(x) is not slot.type or not all([same_number(numbers[j], x) for j in places]):
                return False
        windows = self._free_windows([tensors[i] for i, _, _ in u.written])
        if windows is None:
            return False
        n = len(self.bindings)
        for slot, places in u.slots:
            if not self.bind_slot(slot, numbers[places[0]]):
                del self.bindings[n:]
                return False
        w: Window
        for (i, ref, count), w in zip(u.written, windows, strict=True):
            t = tensors[i]
            t._ref = ref
            w.current = ref.value
            w.version += count
            if not w.mutations:
                self.written.append(w)
            w.mutations += count
            if w.external is not None:
                w.storage.pending = self
        self.advance(u.last)
        if not u.last.children:
            self.run_out()
        return True

    def _free_windows(self, targets: list[Tensor]) -> list[Window] | None:
        """The windows of tensors of which each is all of a piece of memory that nobody else sees here, and may be written; None
        if one is not."""
        if self.unlinked:
            self.link()
        windows = []
        t: Tensor
        for t in targets:
            trace: Trace | None = t._trace
            w: Window = self.window_of(t) if trace is None or trace.window is None else trace.window
            here: Any = t._trace
            st: Storage = w.storage
            if here.chain or here.root is not None or st.volatile or len(w.members) != 1:
                return None
            if w.external is not None:
                known: Known | None = t._known
                if w.external is not t or st.window.next is not None or known is None or not known.writeable:
                    return None
            windows.append(w)
        return windows

    def _learned_update(
        self, f: Callable, tensors: Sequence[Tensor], given: tuple, numbers: tuple, start: Step
    ) -> Update | None:
        steps: list[Step] = []
        s = self.at
        while s is not start:
            if s is None:
                return None
            steps.append(s)
            s = s.parent
        place = {r: i for i, r in enumerate(given)}
        if len(place) != len(given) or any(type(r.spec) is SizedSpec for r in given):
            return None
        slots: dict[int, Slot] = {}
        literals: list = []
        written: dict[int, list] = {}
        for s in reversed(steps):
            if s.kind == "op" and s.primitive is not None and s.primitive.kind != "random" and not s.binds and not s.sized:
                for o in s.operands:
                    if type(o) is Slot:
                        slots[o.index] = o
                    elif type(o) is not Ref:
                        literals.append(o)
            elif s.kind == "write" and not s.grad and s.operands[1] is s.operands[2] and s.operands[0] in place:
                old, value, _ = s.operands
                i = place.pop(old)
                new = self.capture.ref(value.value, old.edge, old.spec)
                place[new] = i
                written[i] = [new, written[i][1] + 1 if i in written else 1]
            else:
                return None
        targets = [tensors[i] for i in written]
        if any(t._ref is not new for t, (new, _) in zip(targets, written.values(), strict=True)):
            return None
        if self._free_windows(targets) is None:
            return None
        meant = []
        for k in sorted(slots):
            places = tuple(j for j, x in enumerate(numbers) if same_number(x, self.bindings[k]))
            if not places:
                return None
            meant.append((slots[k], places))
        varying = {j for _, places in meant for j in places if not any(same_number(x, numbers[j]) for x in literals)}
        fixed = tuple(j for j in range(len(numbers)) if j not in varying)
        ends = tuple((i, new, count) for i, (new, count) in written.items())
        return Update(f, given, numbers, fixed, tuple(meant), ends, self.at)
