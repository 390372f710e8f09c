"""Derivatives of a function of primitives, from its operations' rules: what the rule of a primitive may fall back on that is
defined by smaller ones.

    pulled(f, operands, cotangents) -> the cotangents of the operands, None where none flows

The operations and the rules run under the interpreter in force, so that they are traced, recorded or differentiated again as
everything else is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flame.primitive import Primitive, Rule, bind, force, interpreting, registered, takes_none


class _Tape:
    """Notes what is applied to what."""

    def __init__(self, below: Any):
        self.below = below
        self.steps: list[tuple[Primitive, tuple, dict, Any]] = []

    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        with interpreting(self.below):
            y = bind(primitive, *operands, **params)
        self.steps.append((primitive, operands, params, y))
        return y

    def composite(self, f: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Any:
        return f(*args, **kwargs)


def pulled(f: Callable[..., Any], operands: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
    """The cotangents of `operands` (numbers among them have none), given those of the results of f(*operands), which is a tuple."""
    tape = _Tape(force.interpreter)
    with interpreting(tape):
        results = f(*operands)
    flowing: dict[int, Any] = {}  # by identity: the tape holds all that it knows of
    reached = {id(x) for x in operands if _is_floating(x)}
    for p, xs, _, y in tape.steps:
        if any(id(x) in reached and p.rule(i) is not None for i, x in enumerate(xs)):
            reached.update(id(v) for v in (y if isinstance(y, tuple) else (y,)) if _is_floating(v))
    for y, g in zip(results, cotangents, strict=True):
        _accumulate(flowing, y, g)
    for p, xs, params, y in reversed(tape.steps):
        ys = y if isinstance(y, tuple) else (y,)
        gs = [flowing.pop(id(v), None) for v in ys]
        if all(g is None for g in gs):
            continue
        if not takes_none(p):
            full = registered("full")
            gs = [full(0, shape=tuple(v.shape), dtype=v.dtype) if g is None else g for g, v in zip(gs, ys, strict=True)]
        given = tuple(gs) if isinstance(y, tuple) else gs[0]
        if isinstance(p.vjp, Rule) and p.vjp.joint:
            for x, got in zip(xs, p.vjp.apply(given, y, *xs, **params), strict=True):
                if id(x) in reached and got is not None:
                    _accumulate(flowing, x, fitted(got, x))
            continue
        for i, x in enumerate(xs):
            if id(x) in reached and (rule := p.rule(i)) is not None:
                which = {"operand": i} if isinstance(p.vjp, Rule) else {}
                got = rule.apply(given, y, *xs, **params, **which)
                if got is not None:
                    _accumulate(flowing, x, fitted(got, x))
    return tuple(flowing.get(id(x)) if id(x) in reached else None for x in operands)


def _is_floating(x: Any) -> bool:
    return hasattr(x, "shape") and x.dtype.is_floating_point


def _accumulate(flowing: dict[int, Any], v: Any, g: Any) -> None:
    flowing[id(v)] = registered("add")(flowing[id(v)], g) if id(v) in flowing else g


def fitted(g: Any, x: Any) -> Any:
    """A rule's answer in the shape and dtype of the operand that it is for: summed over what broadcast, or broadcast itself.

    `g` and `x` are values of the interpreter in force.
    """
    if g.shape != x.shape:
        lead = len(g.shape) - len(x.shape)
        dims = tuple(i for i, d in enumerate(g.shape) if i < lead or (x.shape[i - lead] == 1 and d != 1))
        if dims:
            g = registered("sum")(g, dim=dims, keepdim=True)
        if lead:
            g = registered("reshape")(g, shape=tuple(g.shape[lead:]) if lead > 0 else (1,) * -lead + tuple(g.shape))
        if g.shape != x.shape:
            g = registered("expand")(g, shape=tuple(x.shape))
    return g if g.dtype is x.dtype else registered("cast")(g, dtype=x.dtype)
