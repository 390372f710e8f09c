"""Sizes that differ from call to call: what stands in shapes and parameters where a number is not known yet.

    Dim     a size as an expression over symbols; computes and compares like the int that it will be
    Space   what is known of the symbols: their least values, the values they have now, facts found so far

Shape rules, derivative rules and compiler passes are written for ints, and are run on Dims as they are. Arithmetic stays
symbolic. A comparison is answered from what is proved where that suffices; else from the values of now, and the answer is noted
as a fact: what was made under it holds wherever its facts do, and whoever uses it checks them (`Space.facts`). Two different
expressions count as unequal without a fact, once a graph is built (`settled`): everything behind the shape rules must be right
for sizes in general, and equality only ever permits a shortcut. An equation that names a symbol alone eliminates it.

Sizes are at least 2: 0 and 1 mean something else to broadcasting, so that they are never symbolic.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flame.compiler.index_math import ZERO, Bounds, E, evaluate, ex, implied, names, nonneg, simplify, subst, var
from flame.ops.access import Cond
from flame.symbol import Symbolic

LEAST = 2  #: the least size that may be symbolic


@dataclass(frozen=True, slots=True)
class Fact:
    """`expr >= 0` ("ge") or `expr == 0` ("eq")."""

    expr: E
    kind: str

    def holds(self, values: Mapping[str, int]) -> bool:
        x = evaluate(self.expr, values)
        return x >= 0 if self.kind == "ge" else x == 0

    def __str__(self) -> str:
        return f"{self.expr} {'>=' if self.kind == 'ge' else '=='} 0"


class Symbols(dict[str, int]):
    """Symbols by name with their least values, and `facts`: expressions over them that are never negative."""

    def __init__(self, least: Mapping[str, int] = {}, facts: Iterable[E] = ()):
        super().__init__(least)
        self.facts: tuple[E, ...] = tuple(facts)

    def used_by(self, found: frozenset[str]) -> Symbols:
        """Those among `found`, with the facts that are about nothing else."""
        return Symbols({n: v for n, v in self.items() if n in found}, [e for e in self.facts if names(e) <= found])


class Space:
    """The symbols of one graph. `values` are those of now, `least` what they never fall below."""

    def __init__(self, values: Mapping[str, int], least: Mapping[str, int], facts: Iterable[Fact] = ()):
        self.values = dict(values)
        self.least = dict(least)
        self.facts: list[Fact] = []
        self.settled = True
        self._known: set[Fact] = set()
        self._lower: list[Cond] = []
        self._same: dict[str, E] = {}  #: symbols that an equation gave another expression
        self._sizes: dict[E, Any] = {}  #: what `size` answered: equal sizes are one object
        self._results: dict[tuple, Any] = {}  #: of arithmetic
        self._unequal: set[E] = set()  #: differences that are never 0 for all that is known
        self._zero: set[E] = set()  #: expressions that are 0, by equations that eliminate nothing
        self._bounds = Bounds(symbols=self.least)
        for f in facts:
            self.learn(f)

    def add(self, symbol: str, value: int, least: int) -> None:
        """A new symbol."""
        self.values[symbol] = value
        self.least[symbol] = least
        self._sizes.clear()
        self._results.clear()
        self._bounds = Bounds(symbols=self.least)

    def symbol(self, name: str) -> Any:
        return self.size(var(name))

    def size(self, e: E) -> Any:
        """A Dim, or the int that it always is."""
        got = self._sizes.get(e)
        if got is None:
            n = self.normal(e)
            got = n.const
            if got is None:
                got = self._sizes.get(n)
                if got is None:
                    got = self._sizes[n] = Dim(self, n)
            self._sizes[e] = got
        return got

    def normal(self, e: E) -> E:
        if self._same:
            e = subst(e, self._same)
        return simplify(e, self._bounds)

    def now(self, e: E) -> int:
        return int(evaluate(e, self.values))

    @property
    def symbols(self) -> Symbols:
        """For a kernel: the least value of each symbol, with the inequalities that are known."""
        kept = {n: v for n, v in self.least.items() if n not in self._same}
        return Symbols(kept, tuple(self.normal(c.expr) for c in self._lower))

    def learn(self, fact: Fact) -> None:
        """Take a fact for granted from now on."""
        if fact in self._known:
            return
        self._known.add(fact)
        self.facts.append(fact)
        if fact.kind == "ge":
            e = self.normal(fact.expr)
            name = next(iter(names(e)), "")
            low = e - var(name) if name in self.least else ex(1)
            if low.const is not None and low.const <= 0:  # a symbol, less a number
                self.least[name] = max(self.least[name], -low.const)
                self._bounds = Bounds(symbols=self.least)
                self._results.clear()
            else:
                self._lower.append(Cond(e))
        elif fact.kind == "eq":
            self._zero.add(_primitive(self.normal(fact.expr)))
            self._eliminate(fact.expr)

    def _eliminate(self, e: E) -> None:
        """Use `e == 0` to write a symbol as an expression of the others, if one stands in it alone."""
        e = self._undivided(self.normal(e))
        for m, c in e.terms:
            if len(m) != 1 or not isinstance(m[0], str):
                continue
            rest = E({n: k for n, k in e.terms if n != m})
            if m[0] in names(rest) or any(k % c for _, k in rest.terms):
                continue
            other = E({n: -k // c for n, k in rest.terms})
            self._sizes.clear()
            self._results.clear()
            self._unequal.clear()
            self._same = {s: subst(x, {m[0]: other}) for s, x in self._same.items()} | {m[0]: other}
            low = self.least[m[0]]
            if not nonneg(other - low, self._bounds):
                self._lower.append(Cond(other - low))
            return

    def _undivided(self, e: E) -> E:
        """An expression without the symbols that all its terms have as a factor, which are not 0."""
        common = [a for a in dict.fromkeys(e.terms[0][0]) if self.positive(E({(a,): 1}) - 1)] if e.terms else []
        for a in common:
            while all(a in m for m, _ in e.terms):
                e = E({tuple(x for i, x in enumerate(m) if i != m.index(a)): c for m, c in e.terms})
        return e

    def positive(self, e: E) -> bool:
        """Is `e >= 0` proved?"""
        e = self.normal(e)
        return nonneg(e, self._bounds) or (bool(self._lower) and implied(e, self._lower, self._bounds))

    def equal(self, a: E, b: E) -> bool:
        if a is b:
            return True
        d = a - b
        if self.settled and d in self._unequal:
            return False
        d = self.normal(d)
        if d.const is not None:
            return d.const == 0
        if self._zero and _primitive(d) in self._zero:
            return True
        if self.settled and not self._same:
            self._unequal.add(d)
        if self.settled or self.now(d) != 0 or self.positive(d - 1) or self.positive(-d - 1):
            return False
        self.learn(Fact(d, "eq"))
        return True

    @contextmanager
    def granting(self) -> Iterator[None]:
        """Meanwhile, expressions that are equal now count as equal, which is noted as a fact."""
        before, self.settled = self.settled, False
        try:
            yield
        finally:
            self.settled = before

    def at_least(self, a: E, b: E) -> bool:
        d = self.normal(a - b)
        if d.const is not None:
            return d.const >= 0
        if self.positive(d):
            return True
        if self.positive(-d - 1):
            return False
        holds = self.now(d) >= 0
        self.learn(Fact(d if holds else -d - 1, "ge"))
        return holds

    def fix(self, e: E) -> int:
        """Somebody needs the number itself: what is made from here on is for this value alone."""
        value = self.now(e)
        d = self.normal(e - value)
        if d.const is None:
            self.learn(Fact(d, "eq"))
        return value


def _arithmetic(f: Callable[[E, E], E], name: str) -> tuple[Callable, Callable]:
    def forward(a: Dim, b: Any) -> Any:
        if type(b) is float or type(b) is Symbolic:
            return getattr(a.number, f"__{name}__")(b)
        if type(b) not in (int, bool, Dim):
            return NotImplemented
        results = a.space._results
        key = (name, a._e, b._e if type(b) is Dim else b)
        got = results.get(key)
        if got is None:
            got = results[key] = a.space.size(f(a.expression, ex(b)))
        return got

    def backward(a: Dim, b: Any) -> Any:
        if type(b) is float:
            return getattr(a.number, f"__r{name}__")(b)
        if type(b) not in (int, bool):
            return NotImplemented
        return a.space.size(f(ex(b), a.expression))

    return forward, backward


class Dim:
    """A size that is an expression; never one that is a number."""

    __slots__ = ("space", "_e")

    def __init__(self, space: Space, e: E):
        self.space = space
        self._e = e

    @property
    def expression(self) -> E:
        return self.space.normal(self._e) if self.space._same else self._e  # (made normal)

    @property
    def value(self) -> int:
        return self.space.now(self._e)

    @property
    def number(self) -> Symbolic:
        """It as a number to compute with in floating point."""
        return Symbolic(self.space.now(self._e), as_tuple(self.expression))

    def __hash__(self) -> int:
        return hash(self.expression)

    def __repr__(self) -> str:
        return str(self.expression)

    def __format__(self, spec: str) -> str:
        return format(str(self.expression), spec)

    def __index__(self) -> int:
        return self.space.fix(self._e)

    __int__ = __index__

    def __float__(self) -> float:
        return float(self.space.fix(self._e))

    def __bool__(self) -> bool:
        return not self.space.equal(self._e, ZERO)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is Dim or type(other) is int or isinstance(other, E):
            return self.space.equal(self._e, ex(other))
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __ge__(self, other: Any) -> bool:
        return self.space.at_least(self._e, _bound(other, math.ceil))

    def __gt__(self, other: Any) -> bool:
        return self.space.at_least(self._e, _bound(other, math.floor) + 1)

    def __le__(self, other: Any) -> bool:
        return self.space.at_least(_bound(other, math.floor), self._e)

    def __lt__(self, other: Any) -> bool:
        return self.space.at_least(_bound(other, math.ceil) - 1, self._e)

    def __neg__(self) -> Any:
        return self.space.size(-self.expression)

    def __abs__(self) -> Any:
        return self if self >= 0 else -self

    def __truediv__(self, other: Any) -> Any:
        return operator.truediv(self.number, other.number if type(other) is Dim else other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.number

    def __pow__(self, other: Any) -> Any:
        if type(other) is int and 0 <= other <= 8:
            return math.prod([self] * other)
        return operator.pow(self.number, other.number if type(other) is Dim else other)

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other


for _name, _f in (
    ("add", lambda a, b: a + b),
    ("sub", lambda a, b: a - b),
    ("mul", lambda a, b: a * b),
    ("floordiv", lambda a, b: a // b),
    ("mod", lambda a, b: a % b),
):
    _forward, _backward = _arithmetic(_f, _name)
    setattr(Dim, f"__{_name}__", _forward)
    setattr(Dim, f"__r{_name}__", _backward)


def _primitive(e: E) -> E:
    """The expression without what all its coefficients have in common, and with a positive first one."""
    common = math.gcd(*(c for _, c in e.terms)) * (-1 if e.terms and e.terms[0][1] < 0 else 1)
    return E({m: c // common for m, c in e.terms}) if common not in (0, 1) else e


def _bound(x: Any, rounding: Callable[[float], int]) -> E:
    if type(x) is float:
        return ex(2**62 if x == math.inf else -(2**62) if x == -math.inf else rounding(x))
    return ex(x)


def as_tuple(e: E) -> Any:
    """An expression over symbols named s0, s1, .. in the words of `flame.symbol`, whose slots have those numbers."""

    def atom(a: Any) -> Any:
        if isinstance(a, str):
            return ("slot", int(a[1:]))
        op = "floordiv" if type(a).__name__ == "Div" else "mod"
        return (op, as_tuple(a.numerator), as_tuple(a.divisor))

    out: Any = None
    for m, c in e.terms:
        t: Any = None if c == 1 and m else c
        for a in m:
            t = atom(a) if t is None else ("mul", t, atom(a))
        out = t if out is None else ("add", out, t)
    return 0 if out is None else out


def hint(x: Any) -> Any:
    """Today's value of a size, for choices that change how fast something is and not what it gives."""
    return x.space.now(x._e) if type(x) is Dim else x


def hints(shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(map(hint, shape))


def same_sizes(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Are they the same sizes, in any order?"""
    left = list(b)
    for x in a:
        if x not in left:
            return False
        left.remove(x)
    return not left


def space_of(graph: Any) -> Space | None:
    """The space of a graph's sizes; None where all are numbers."""
    shapes = (v.shape for v in graph.inputs)
    params = (x for n in graph.nodes for x in n.params.values())
    return next((s for s in map(space_in, (*shapes, *params)) if s is not None), None)


def space_in(x: Any) -> Space | None:
    """The space of the first Dim in a shape or parameter."""
    if type(x) is Dim:
        return x.space
    return next((s for s in map(space_in, x) if s is not None), None) if type(x) is tuple else None


def is_symbolic(x: Any) -> bool:
    """Does a parameter or shape hold a Dim?"""
    return type(x) is Dim or (type(x) is tuple and any(map(is_symbolic, x)))


def at(x: Any, values: Mapping[str, int]) -> Any:
    """A parameter or shape with its Dims as numbers."""
    if type(x) is Dim:
        return int(evaluate(x.expression, values))
    return tuple(at(y, values) for y in x) if type(x) is tuple else x
