"""Recording: an operation runs eagerly, tape and all, and its step enters the tree; and how a followed path is left for that.

Where the new branch differs from an old one by a Python number alone, the number becomes a slot: a run-time input of the segment.
Random draws have slots for seed and offset from the first.
"""

from __future__ import annotations

from typing import Any

from flame.autograd.tape import eager, user_source
from flame.capture import replay
from flame.capture.compiled import say
from flame.capture.control import control
from flame.capture.differences import of_operation
from flame.capture.sizes import Size, SizedTensor, Sizing, holds_sizes, number_of, sized_at
from flame.capture.state import RunState
from flame.capture.trace import Expr, Ref, Slot, Step, same_number
from flame.compiler.dims import Dim
from flame.errors import RecompileError
from flame.knobs import knobs
from flame.primitive import Primitive, force, placement
from flame.reasons import OTHER_OPERANDS, OTHER_OPERATION, RECOMPILE_FORBIDDEN, TOO_MANY_PATHS, TOO_MANY_STEPS, Reason
from flame.symbol import Symbolic
from flame.tensor import Tensor

MAX_STEPS = 400_000  #: steps recorded for one function before it is handed over to eager


def refs_among(operands: list) -> bool:
    return any([isinstance(o, Ref) for o in operands])


class Recorder(RunState):
    """Steps that enter the tree."""

    __slots__ = ()

    _link_view: Any

    def record(self, primitive: Primitive, operands: tuple, refs: list, params: dict) -> Any:
        """Run an operation eagerly and enter its step."""
        shadow = self.shadow if self.inner is None else None
        if shadow is not None and (shadow.primitive is not primitive or len(shadow.operands) != len(refs)):
            shadow = None
        sizing = self.sizing
        wanted = params if sizing is None or not params else self._sized_params(shadow, refs, params)
        if wanted is not params:
            params = {k: sized_at(v, self.bindings) for k, v in wanted.items()}
        values: list = []
        want: list = []
        for i, (o, r) in enumerate(zip(operands, refs, strict=True)):
            if isinstance(o, Tensor):
                values.append(self.snapshots.get(r, o))
                want.append(r)
                continue
            if type(o) is Dim:
                o = number_of(o)
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
        symbolic = [t for t in values if type(t) is SizedTensor]
        for t in symbolic:  # the tape of this operation is an ordinary one
            t.__class__ = Tensor  # type: ignore[assignment]
        made_here = params
        if placement.gpu and not refs_among(refs) and "place" not in params and (here := self.seat()) is not None:
            made_here = {**params, "place": str(here)} if primitive.kind in ("create", "random") else params
        try:
            got = eager.process(primitive, tuple(values), made_here)
        except (RuntimeError, TypeError, ValueError, IndexError):
            if self.inner is None:
                self.at.refused |= {primitive}
            raise
        finally:
            force.interpreter = self
            for t in symbolic:  # (some of them are the rules' own, and may live on in the tape of second derivatives)
                sizing.swap(t)
        outs = got if type(got) is tuple else (got,)
        step = Step("op", primitive)
        step.operands = tuple(want)
        step.params = wanted
        step.items = tuple(params.items())
        step.exact_params = _holds_ambiguous(params.values())
        specs = [t.spec for t in outs]
        if sizing is not None:
            specs, step.facts = sizing.results(primitive, want, wanted, specs)
            step.binds = sizing.bound()
            step.sized = bool(step.facts) or wanted is not params
        if not params and len(outs) == 1 and not primitive.view and len(refs) <= 3 and not step.sized:
            step.plain = primitive
        step.grad = grad
        step.note = force.note
        node = next((t._node[0] for t in outs if t._node is not None), None)
        step.source = user_source() if self.inner is None else self.gradient_source
        refs_out = []
        for t, spec in zip(outs, specs, strict=True):
            v = self.capture.new_id()
            r = self.capture.ref(v, v if t._node is not None else None, spec)
            refs_out.append(r)
            t._ref = r
            self.track(t)
        step.outs = tuple(refs_out)
        if node is not None:
            node.segment = self.token
            node.source = step.source
            node.step = step
            for y, r in zip(node.results, refs_out, strict=False):
                y._ref = r
                self.track(y)
        if sizing is not None and self.inner is not None:
            for t in outs if node is None else (*outs, *node.results):
                sizing.swap(t)
        if primitive.view and outs[0]._view is not None:
            step.view = True
            self._link_view(outs[0], operands[0], step, step.items)
        self.add(step)
        return got

    def sized(self) -> Sizing:
        """What is known of the sizes on the path, from now on."""
        if self.sizing is None:
            self.sizing = Sizing(self)
        return self.sizing

    def beside(self, shadow: Step) -> None:
        """Record beside a branch of other sizes from here on."""
        self.shadow = shadow
        self.sized().walked(shadow)

    def _sized_params(self, shadow: Step | None, refs: list, params: dict) -> dict:
        """An operation's parameters with Sizes where they vary, or as they are."""
        sizing = self.sizing
        if self.inner is not None:
            found = {k: sizing.parameter(None, v) for k, v in params.items()}
        elif shadow is None:
            sizing.beside(refs, ())
            found = {k: sizing.unshadowed(k, v) for k, v in params.items()}
        else:
            sizing.beside(refs, shadow.operands)
            found = {k: sizing.parameter(shadow.params.get(k), v) for k, v in params.items()}
        return found if any(map(holds_sizes, found.values())) else params

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
        if self.at.children:
            self.another_path(step.source)
        self.at.children.insert(0, step)
        if self.capture.stats.recorded > MAX_STEPS:
            self.capture.give_up(TOO_MANY_STEPS, MAX_STEPS, step.source)
        step.parent = self.at
        step.depth = self.at.depth + 1
        self.advance(step)
        if self.shadow is not None:
            self.shadow = self.shadow.children[0] if self.shadow.children else None
            if self.sizing is not None and self.shadow is not None:
                self.sizing.walked(self.shadow)

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
        else:
            beside = self._of_other_params(primitive, refs, params)
            if beside is not None:
                self._diverge_from(primitive, refs, params)
                self.capture.stats.generalised += 1
                return self.beside(beside)
        self._diverge_from(primitive, refs, params)

    def _diverge_from(self, primitive: Primitive, refs: list, params: dict) -> None:
        """Say what differs from the nearest known step, and leave the path."""
        if any(c.primitive is primitive for c in self.at.children):
            what = of_operation(primitive, refs, params, self.at.children, self.bindings)
            self.diverge(OTHER_OPERANDS, primitive.name, what)
        else:
            self.diverge(OTHER_OPERATION, primitive.name)

    def _of_other_params(self, primitive: Primitive, refs: list, params: dict) -> Step | None:
        """A known next step that this operation would be but for whole numbers in its parameters."""
        if self.capture.options.dynamic is False:
            return None
        found = [
            c
            for c in self.at.children
            if c.primitive is primitive
            and c.grad is force.grad
            and len(c.operands) == len(refs)
            and c.params.keys() == params.keys()
            and all(_alike(a, b) for a, b in zip(c.operands, refs, strict=True))
            and all(_alike_parameters(c.params[k], v) for k, v in params.items())
        ]
        return next((c for c in found if c.sized), found[0] if found else None)

    def diverge(self, reason: Reason, *details: object) -> None:
        """Leave the path, for a reason whose text ends in what was recorded here."""
        source, cause = user_source(), reason.text(*details, _named(self.at.children))
        self.cause = (source, cause)
        self.capture.stats.count(self.capture.stats.diverged, source, cause)
        if knobs.log:
            say("recompiles", f"{self.capture.name}: another path from {source} on: {cause}")
        if control.compiling == "yes":
            self.fall_back()
        else:
            scratch = self.unknown(cause, self.at)
            self.fall_back()
            self.at = scratch

    def unknown(self, cause: str, at: Step) -> Step:
        """A path goes on that is not known, and the stance forbids to record it: raise, or give a step after `at` that
        is in no tree, from which what follows is recorded for nothing."""
        if control.compiling == "raise":
            if self.alive:
                self.end("deopt")
            raise RecompileError(f"{user_source()}: {RECOMPILE_FORBIDDEN.text(cause)}. {RECOMPILE_FORBIDDEN.remedy}")
        scratch = Step("scratch")
        scratch.parent, scratch.depth = at, at.depth
        return scratch

    def another_path(self, source: str) -> None:
        """Count a path that branches off here; one too many ends capture of the function."""
        self.root.paths += 1
        limit = self.capture.options.recompile_limit
        if self.root.paths > limit:
            self.capture.give_up(TOO_MANY_PATHS, limit, source)

    def run_out(self) -> None:
        """The known path ends without an end: an earlier call raised here."""
        self.fall_back()

    def fall_back(self) -> None:
        """Run the followed prefix eagerly and go on recording."""
        self.following = False
        self.next = None
        if self.at is not self.root:
            replay.materialise(self)
        if any(s.binds or s.facts for s in self.path):
            self.sized()


def _named(children: list[Step]) -> str:
    """What was recorded here, for a message."""
    if not children:
        return "nothing"
    c = children[0]
    if c.primitive is not None:
        return c.primitive.name
    match c.kind:
        case "input":
            return f"one of {c.key.spec}"
        case "end":
            return "a break" if c.key == "break" else "the return" if c.key == "return" else "an error"
        case kind:
            return f"a {kind}"


def _alike(a: Any, b: Any) -> bool:
    """The same operand, but perhaps for a number's value."""
    if a is b:
        return True
    if type(a) is Ref or type(b) is Ref:
        return False
    t = a.type if type(a) is Slot else type(a)
    return t is type(b) and (t in (int, float) or a == b)


def _alike_parameters(a: Any, b: Any) -> bool:
    """The same parameter, but perhaps for whole numbers from 0 on."""
    if type(a) is tuple:
        return type(b) is tuple and len(a) == len(b) and all(map(_alike_parameters, a, b))
    if type(b) is int and b >= 0:
        return type(a) is Size or (type(a) is int and a >= 0)
    return type(a) is type(b) and a == b


def _has_slots(step: Step) -> bool:
    return any(type(o) is Slot for o in step.operands)


def _holds_ambiguous(values: Any) -> bool:
    return any(
        isinstance(v, float | bool) or v in (0, 1) or (type(v) is tuple and _holds_ambiguous(v))
        for v in values
        if isinstance(v, int | float | tuple)
    )
