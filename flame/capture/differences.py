"""What differs between an operation, or a tensor from outside, and what the tree knows at that place: the words of FL2002 and
FL2003, with the old value and the new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flame.capture.sizes import Size, sized_at
from flame.capture.trace import Ref, Slot, Step, exact
from flame.primitive import Primitive, Spec, force


def of_operation(primitive: Primitive, refs: Sequence[Any], params: dict, children: Sequence[Step], bindings: list) -> str:
    """Of an operation from the nearest of the steps known here that are of the same primitive: what was, and what is."""
    found = [_operation(s, refs, params, bindings) for s in children if s.primitive is primitive]
    found.sort(key=len)
    return "; ".join(found[0])


def _operation(step: Step, refs: Sequence[Any], params: dict, bindings: list) -> list[str]:
    said = []
    if step.grad is not force.grad:
        said.append(f"gradient mode was {_on(step.grad)} and is {_on(force.grad)}")
    if len(step.operands) != len(refs):
        said.append(f"it had {len(step.operands)} operands and has {len(refs)}")
    else:
        for i, (was, now) in enumerate(zip(step.operands, refs, strict=True), 1):
            if isinstance(was, Slot) and was.type is type(now):
                continue
            if was is not now and (isinstance(was, Ref) or isinstance(now, Ref) or not exact(was, now)):
                said.append(f"operand {i} was {_operand(was, now, bindings)} and is {_operand(now, was, bindings)}")
    for name in sorted(step.params.keys() | params.keys()):
        was, now = step.params.get(name, "missing"), params.get(name, "missing")
        if step.sized and bindings:
            was = _known_sizes(was, bindings)
        if not exact(was, now):
            said.append(f"{name} was {was} and is {now}")
    return said


def _known_sizes(x: Any, bindings: list) -> Any:
    """With numbers for Sizes, as far as they are bound."""
    try:
        return sized_at(x, bindings)
    except (IndexError, TypeError):
        return x


def _on(grad: bool) -> str:
    return "on" if grad else "off"


def _operand(x: Any, other: Any, bindings: list) -> str:
    match x:
        case Slot():
            return f"any {x.type.__name__}"
        case Ref():
            if not isinstance(other, Ref):
                return f"a tensor ({x.spec})"
            if str(other.spec) != str(x.spec):
                return f"a tensor of {x.spec}"
            if x.value == other.value:
                return "a tensor with a gradient" if x.edge is not None else "a tensor without one"
            return f"the {x.spec} tensor %{x.value}"
        case Size():
            return f"the size {x}"
        case _:
            return repr(x)


def of_input(
    spec: Spec, strides: tuple, differentiable: bool, leaf: bool, alias: Any, volatile: bool, children: Sequence[Step]
) -> tuple[Any, ...]:
    """A tensor from outside, and the nearest that was recorded here, each described as far as they differ. The second is missing
    where no tensor was recorded here."""
    found = []
    for key in [c.key for c in children if c.kind == "input"]:
        now, was = [str(spec)], [f"one of {key.spec}"]
        same_kind = str(spec) == str(key.spec)
        if same_kind and strides != key.strides:
            _both(now, was, f"with strides of {strides} bytes", f"with strides of {key.strides} bytes")
        if differentiable is not key.differentiable:
            _both(now, was, *_either(differentiable, "that requires a gradient", "that requires none"))
        elif differentiable and leaf is not key.leaf:
            _both(now, was, *_either(leaf, "that is a leaf", "that is the result of an operation"))
        if alias != key.alias:
            _both(now, was, *_either(alias is None, "that came once", "that came before under another name"))
        if volatile is not key.volatile:
            _both(now, was, *_either(volatile, "whose memory NumPy shares", "whose memory is its own"))
        found.append((not same_kind, len(now), (" ".join(now), " ".join(was))))
    return min(found, default=(False, 0, (spec,)))[2]


def _both(now: list[str], was: list[str], a: str, b: str) -> None:
    now.append(a)
    was.append(b)


def _either(condition: bool, yes: str, no: str) -> tuple[str, str]:
    return (yes, no) if condition else (no, yes)
