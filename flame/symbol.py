"""Numbers that change from call to call, while a derivative rule is written down once.

    expr ::= ("slot", k) | (op, expr or number, ...)        op: add sub mul truediv floordiv mod pow neg log

When capture has learned that a Python number varies, rules see a `Symbolic` in its place: it knows today's value and the
expression that gives tomorrow's. It is deliberately not an int or float, so that code which would bake the value in fails
with a TypeError instead of going stale. Comparing one answers with today's value and records the answer as a guard.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

Expr = Any  # a nested tuple, or a number

_OPS: dict[str, Callable] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    "floordiv": operator.floordiv, "mod": operator.mod, "pow": operator.pow, "neg": operator.neg, "log": math.log,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip


def evaluate(e: Expr, slots: Sequence[Any]) -> Any:
    """The value of an expression, given what the slots hold now."""
    if type(e) is not tuple:
        return e
    if e[0] == "slot":
        return slots[e[1]]
    return _OPS[e[0]](*[evaluate(x, slots) for x in e[1:]])


class Symbolic:
    """A number with the expression that it came from. `guards` collects comparisons made on it."""

    __slots__ = ("value", "expr", "guards")

    def __init__(self, value: Any, expr: Expr, guards: list | None = None):
        self.value = value
        self.expr = expr
        self.guards = guards

    def __repr__(self) -> str:
        return f"Symbolic({self.value})"

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self != 0)


def plain(x: Any) -> Any:
    """Today's value of a number or a size that may be symbolic, for choices that do not change what is computed."""
    return x if type(x) is int else getattr(x, "value", x)


def log(x: Any) -> Any:
    """The natural logarithm of a positive number, symbolic or not."""
    return Symbolic(math.log(x.value), ("log", x.expr), x.guards) if type(x) is Symbolic else math.log(x)


def _expr(x: Any) -> Expr:
    return x.expr if type(x) is Symbolic else x


def _binary(name: str) -> tuple[Callable, Callable]:
    f = _OPS[name]

    def forward(a: Symbolic, b: Any) -> Any:
        if type(b) is not Symbolic and not isinstance(b, int | float):
            return NotImplemented
        return Symbolic(f(a.value, plain(b)), (name, a.expr, _expr(b)), a.guards)

    def backward(a: Symbolic, b: Any) -> Any:
        if not isinstance(b, int | float):
            return NotImplemented
        return Symbolic(f(b, a.value), (name, b, a.expr), a.guards)

    return forward, backward


def _comparison(name: str) -> Callable:
    f = _OPS[name]

    def compare(a: Symbolic, b: Any) -> Any:
        if type(b) is not Symbolic and not isinstance(b, int | float):
            return NotImplemented
        answer = f(a.value, plain(b))
        if a.guards is not None:
            a.guards.append(((name, a.expr, _expr(b)), answer))
        return answer

    return compare


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _f, _r = _binary(_name)
    setattr(Symbolic, f"__{_name}__", _f)
    setattr(Symbolic, f"__r{_name}__", _r)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Symbolic, f"__{_name}__", _comparison(_name))
setattr(Symbolic, "__neg__", lambda a: Symbolic(-a.value, ("neg", a.expr), a.guards))  # noqa: B010
