"""Index expressions: integer polynomials over axes, symbols and floor divisions, and what follows from their bounds.

    E    ::= sum of  coefficient * atom * atom * ..        canonical: sorted, like terms added, interned
    atom ::= name | Div(E, E) | Mod(E, E) | Val(name)      floor semantics; a divisor is positive wherever it is evaluated

Expressions are made by `var`, `val`, `ex` and the operators + - * // %, which know nothing of the names' ranges and only
simplify what is true of all integers. `Bounds` states the ranges: an axis lies in [0, extent), a symbol at its lower bound or
above, a value between two expressions. `simplify`, `nonneg`, `extreme`, `implied` and `simplify_conds` take one; nothing is
ambient. Proofs put extremes for axes and values, and then look at the signs of a polynomial in (symbol - lower bound).

Equal expressions are one object; their order is that of their names. An axis of extent 0 has no points, so that anything is
true of expressions that name it: a division by the constant 0, which shape arithmetic on empty arrays makes, gives 0.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flame.compiler.atoms import Atom, Div, Mod, Monomial, Val, atom_key, quotient_of
from flame.compiler.interning import Interned
from flame.ops.access import Cond


class E:
    """An integer polynomial. `terms` are (monomial, coefficient) pairs, highest degree first, the constant last."""

    __slots__ = ("terms", "const", "_hash", "_text", "_names", "__weakref__")
    terms: tuple[tuple[Monomial, int], ...]
    const: int | None  #: its value if it is a constant, else None
    _hash: int
    _text: str | None
    _names: frozenset[str] | None

    def __new__(cls, terms: Mapping[Monomial, int]) -> E:
        kept = [t for t in terms.items() if t[1]]
        if len(kept) > 1:
            kept.sort(key=lambda t: (-len(t[0]), tuple(map(atom_key, t[0]))))
        return _interned(tuple(kept))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, int) and self.const == other)

    def __reduce__(self) -> tuple:
        return (E, (dict(self.terms),))

    def __repr__(self) -> str:
        if self._text is None:
            self._text = show(self)
        return self._text

    def __add__(self, other: E | int) -> E:
        if not isinstance(other, E):
            other = ex(other)
        if not other.terms:
            return self
        if not self.terms:
            return other
        d = dict(self.terms)
        for m, c in other.terms:
            d[m] = d.get(m, 0) + c
        return _recombined(d, NOTHING)

    __radd__ = __add__

    def __neg__(self) -> E:
        return E({m: -c for m, c in self.terms})

    def __sub__(self, other: E | int) -> E:
        return self + -ex(other)

    def __rsub__(self, other: E | int) -> E:
        return -self + other

    def __mul__(self, other: E | int) -> E:
        if type(other) is int:
            return self if other == 1 else E({m: c * other for m, c in self.terms})
        if not isinstance(other, E):
            other = ex(other)
        if other is ONE:
            return self
        if self is ONE:
            return other
        d: dict[Monomial, int] = {}
        for m, c in self.terms:
            for n, b in other.terms:
                q = tuple(sorted(m + n, key=atom_key)) if m and n else m or n
                d[q] = d.get(q, 0) + c * b
        return E(d)

    __rmul__ = __mul__

    def __floordiv__(self, other: E | int) -> E:
        return _divide(self, ex(other), NOTHING)[0]

    def __rfloordiv__(self, other: int) -> E:
        return ex(other) // self

    def __mod__(self, other: E | int) -> E:
        return _divide(self, ex(other), NOTHING)[1]

    def __rmod__(self, other: int) -> E:
        return ex(other) % self


def _made(terms: tuple[tuple[Monomial, int], ...]) -> E:
    e = object.__new__(E)
    e.terms, e._text, e._names = terms, None, None
    e.const = 0 if not terms else terms[0][1] if len(terms) == 1 and not terms[0][0] else None
    e._hash = object.__hash__(e) if e.const is None else hash(e.const)
    return e


_interned = Interned(_made)


def ex(x: Any) -> E:
    """`x` as an expression: one already, an int, or a size that is an expression (`flame.compiler.dims.Dim`)."""
    if isinstance(x, E):
        return x
    if type(x) is int:
        return _constant(x)
    e = getattr(x, "expression", None)
    return _constant(operator.index(x)) if e is None else e


@functools.lru_cache(4096)
def _constant(n: int) -> E:
    return E({(): n})


def var(name: str) -> E:
    """An axis or a symbol."""
    return E({(name,): 1})


def val(name: str) -> E:
    """The value of the kernel statement `name`."""
    return E({(Val(name),): 1})


ZERO, ONE = ex(0), ex(1)


class Bounds:
    """What is known of the names: axis -> extent, symbol -> its lower bound, value -> (lowest, highest), None if unknown.
    `facts` (of `Symbols`) are tried where the bounds alone prove nothing.

    Extents and the bounds of values name symbols only. Answers are remembered here, so keep one `Bounds` for each kernel.
    """

    __slots__ = ("axes", "symbols", "values", "facts", "_memo")

    def __init__(
        self,
        axes: Mapping[str, E | int] | None = None,
        symbols: Mapping[str, int] | None = None,
        values: Mapping[str, tuple[E | int | None, E | int | None]] | None = None,
    ):
        self.axes = {a: ex(e) for a, e in (axes or {}).items()}
        self.symbols = dict(symbols or {})
        self.facts: tuple[E, ...] = getattr(symbols, "facts", ())
        self.values = {
            v: (lo if lo is None else ex(lo), hi if hi is None else ex(hi)) for v, (lo, hi) in (values or {}).items()
        }
        self._memo: dict[tuple, Any] = {}

    def fixed(self, a: Atom) -> bool:
        """Is it made of symbols alone?"""
        if isinstance(a, str):
            return a in self.symbols
        return not isinstance(a, Val) and all(n in self.symbols for n in names(a.numerator) | names(a.divisor))


NOTHING = Bounds()


def _remembered(function: Any) -> Any:
    """Keep the answers of `function(e, .., bounds)` in `bounds`; nothing is kept where nothing is known."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        bounds: Bounds = arguments[-1]
        if bounds is NOTHING:
            return function(*arguments)
        key = (function, *arguments[:-1])
        memo = bounds._memo
        got = memo.get(key, memo)
        if got is memo:
            got = memo[key] = function(*arguments)
        return got

    return call


# ---- reading expressions


def atoms(e: E) -> Iterator[Atom]:
    """The atoms of `e` itself (not those inside its divisions), each once."""
    return iter(dict.fromkeys(a for m, _ in e.terms for a in m))


def divisions(e: E) -> Iterator[Div | Mod]:
    """Every division and remainder in `e`, inner ones first."""
    for a in atoms(e):
        if isinstance(a, Div | Mod):
            yield from divisions(a.numerator)
            yield from divisions(a.divisor)
            yield a


def names(e: E) -> frozenset[str]:
    """The axes and symbols in `e`, and "%v" for a value v."""
    if e._names is None:
        found: set[str] = set()
        for a in atoms(e):
            if isinstance(a, str):
                found.add(a)
            elif isinstance(a, Val):
                found.add(a.key)
            else:
                found |= names(a.numerator) | names(a.divisor)
        e._names = frozenset(found)
    return e._names


def subst(e: E, env: Mapping[str, E | int]) -> E:
    """`e` with names replaced ("%v" for a value v). Only what is true of all integers is simplified."""
    if names(e).isdisjoint(env):
        return e
    out = ZERO
    for m, c in e.terms:
        t = ex(c)
        for a in m:
            if isinstance(a, str):
                t = t * env.get(a, var(a))
            elif isinstance(a, Val):
                t = t * env.get(a.key, E({(a,): 1}))
            else:
                x, d = subst(a.numerator, env), subst(a.divisor, env)
                t = t * (x // d if isinstance(a, Div) else x % d)
        out = out + t
    return out


def evaluate(e: E, env: Mapping[str, Any]) -> Any:
    """The value of `e` where `env` gives ints or NumPy integer arrays for its names ("%v" for a value v)."""
    out: Any = 0
    for m, c in e.terms:
        t: Any = c
        for a in m:
            if isinstance(a, str):
                t = t * env[a]
            elif isinstance(a, Val):
                t = t * env[a.key]
            else:
                x, d = evaluate(a.numerator, env), evaluate(a.divisor, env)
                t = t * (x // d if isinstance(a, Div) else x % d)
        out = out + t
    return out


def show(e: E, env: Mapping[str, str] | None = None) -> str:
    """`e` in Python's (and Triton's) spelling; `env` gives the text of names ("%v" for a value v), already in parentheses
    where it needs them. `//` and `%` round down, as in Python."""
    env = env or {}

    def factor(x: E) -> str:
        text = show(x, env)
        simple = len(x.terms) <= 1 and (x.const is not None or (x.terms[0][1] == 1 and len(x.terms[0][0]) == 1))
        return text if simple and not text.startswith("-") and " " not in text else f"({text})"

    def spell(a: Atom, alone: bool) -> str:
        if isinstance(a, str):
            return env.get(a, a)
        if isinstance(a, Val):
            return env.get(a.key, a.key)
        text = f"{factor(a.numerator)} {'//' if isinstance(a, Div) else '%'} {factor(a.divisor)}"
        return text if alone else f"({text})"

    out = ""
    for m, c in sorted(e.terms, key=lambda t: t[1] < 0):
        alone = len(m) == 1 and (c == 1 or (c == -1 and out != ""))
        parts = [spell(a, alone) for a in m]
        if abs(c) != 1 or not parts:
            parts.insert(0, str(abs(c)))
        out += ((" - " if c < 0 else " + ") if out else ("-" if c < 0 else "")) + "*".join(parts)
    return out or "0"


# ---- bounds


@_remembered
def extreme(e: E, sign: int, bounds: Bounds) -> E | None:
    """An upper (sign +1) or lower (-1) bound of `e` over all axes and values, made of symbols alone; None if unknown."""
    out = ZERO
    for m, c in e.terms:
        moving = [a for a in m if not bounds.fixed(a)]
        if not moving:
            out = out + E({m: c})
            continue
        still = [a for a in m if bounds.fixed(a)]
        if not all(nonneg(E({(a,): 1}), bounds) for a in still):
            return None
        side = 1 if (c > 0) == (sign > 0) else 0
        ranges = [_range(a, bounds) for a in moving]
        if len(ranges) > 1 and not all(lo is not None and nonneg(lo, bounds) for lo, _ in ranges):
            return None
        t = E({tuple(still): c})
        for r in ranges:
            end = r[side]
            if end is None:
                return None
            t = t * end
        out = out + t
    return out


@_remembered
def _range(a: Atom, bounds: Bounds) -> tuple[E | None, E | None]:
    """The lowest and highest value of an atom that is not made of symbols alone."""
    if isinstance(a, str):
        return (ZERO, bounds.axes[a] - 1) if a in bounds.axes else (None, None)
    if isinstance(a, Val):
        return bounds.values.get(a.name, (None, None))
    lo, hi = extreme(a.numerator, -1, bounds), extreme(a.numerator, 1, bounds)
    positive = lo is not None and nonneg(lo, bounds)
    if isinstance(a, Mod):
        d = extreme(a.divisor, 1, bounds)
        small = positive and hi is not None and (d is None or nonneg(d - 1 - hi, bounds))
        return ZERO, hi if small else None if d is None else d - 1
    if all(bounds.fixed(x) for x in atoms(a.divisor)):  # floor division is monotone in its numerator
        return tuple(None if end is None else _divide(end, a.divisor, bounds)[0] for end in (lo, hi))  # type: ignore[return-value]
    return (ZERO, hi) if positive else (None, None)


@_remembered
def nonneg(e: E, bounds: Bounds) -> bool:
    """Is `e >= 0` proved, at every point and for every value of the symbols? False: not proved."""
    c = e.const
    if c is not None:
        return c >= 0
    lowest = extreme(e, -1, bounds)
    if _at_least_0(lowest, bounds):
        return True
    if not bounds.facts or lowest is None or names(lowest).isdisjoint(frozenset().union(*map(names, bounds.facts))):
        return False
    plain = Bounds(bounds.axes, bounds.symbols, bounds.values)
    return _implied(lowest, list(bounds.facts), plain, 2)


def _at_least_0(lowest: E | None, bounds: Bounds) -> bool:
    """Is an expression of symbols alone proved to be 0 or more by their least values?"""
    while lowest is not None and lowest.const is None:
        a = next((a for a in atoms(lowest) if not isinstance(a, str)), None)
        if a is None:
            shift = {s: var(s) + bounds.symbols[s] for s in names(lowest)}
            return all(c >= 0 for _, c in subst(lowest, shift).terms)
        lowest = None if isinstance(a, Val) else _without(a, lowest, bounds)
    return lowest is not None and lowest.const is not None and lowest.const >= 0


def _without(a: Div | Mod, e: E, bounds: Bounds) -> E | None:
    """A polynomial without the division `a` of symbols, which is non-negative only where `e` is; None if there is none.

    x // d lies in [(x - d + 1) / d, x / d]: everything is multiplied by d, which is positive.
    """
    rest, cofactor = [], []
    for m, c in e.terms:
        if a not in m:
            rest.append((m, c))
            continue
        others = list(m)
        others.remove(a)
        if a in others or not all(nonneg(E({(x,): 1}), bounds) for x in others):
            return None
        cofactor.append((tuple(others), c))
    out = E(dict(rest)) * (a.divisor if isinstance(a, Div) else 1)
    for m, c in cofactor:
        if isinstance(a, Div):
            end = a.numerator if c < 0 else a.numerator - a.divisor + 1
        else:
            end = a.divisor - 1 if c < 0 else ZERO
        out = out + E({m: c}) * end
    return None if any(a in m for m, _ in out.terms) else out


def implied(e: E, hyps: Iterable[Cond], bounds: Bounds) -> bool:
    """Is `e >= 0` proved wherever all of `hyps` hold?"""
    given = [h for c in hyps for h in ((c.expr,) if c.kind == "ge" else (c.expr, -c.expr))]
    return _implied(e, given, bounds, 3) or any(nonneg(-h - 1, bounds) for h in given)  # what never holds implies anything


def _implied(e: E, given: list[E], bounds: Bounds, depth: int) -> bool:
    """Takes multiples of hypotheses off `e`, each so that one monomial goes away, until the bounds alone suffice."""
    if nonneg(e, bounds):
        return True
    for i, h in enumerate(given):
        if h.const is not None:
            continue
        lead, by = h.terms[0]
        for m, c in e.terms:
            factors = quotient_of(m, lead)
            if factors is None or c * by <= 0:
                continue
            if not all(bounds.fixed(a) and nonneg(E({(a,): 1}), bounds) for a in factors):
                continue
            g = math.gcd(c, by)
            p, q = abs(by) // g, abs(c) // g  # e is an integer, so that p*e > -p suffices
            left = e * p - E({factors: q}) * h + (p - 1)
            if _implied(left, given[:i] + given[i + 1 :], bounds, depth - 1) if depth else nonneg(left, bounds):
                return True
    for m, c in e.terms if depth else ():  # look through one division: k + c*(x // d) >= 0
        a = m[0] if len(m) == 1 else ""
        if isinstance(a, Div) and a.divisor.const and abs(c) == 1:
            inner = a.numerator if c == 1 else a.divisor - 1 - a.numerator
            if _implied((e - E({m: c})) * a.divisor + inner, given, bounds, depth - 1):
                return True
    return False


def simplify_conds(conds: Iterable[Cond], bounds: Bounds) -> tuple[Cond, ...] | None:
    """The conditions simplified, without those that are proved or follow from the others; None if they cannot all hold."""
    kept: list[Cond] = []
    for c in conds:
        e = simplify(c.expr, bounds)
        g = math.gcd(*(k for m, k in e.terms if m)) or 1
        if c.kind == "eq" and dict(e.terms).get((), 0) % g:
            return None
        e = E({m: k // g for m, k in e.terms})
        if c.kind == "eq" and e.terms and e.terms[0][1] < 0:
            e = -e
        if nonneg(-e - 1, bounds) or (c.kind == "eq" and nonneg(e - 1, bounds)):
            return None
        new = Cond(e, c.kind)
        if not (nonneg(e, bounds) if c.kind == "ge" else e == 0) and new not in kept:
            kept.append(new)
    lower = [c.expr for c in kept if c.kind == "ge"]
    if any(nonneg(-(e + h) - 1, bounds) for i, e in enumerate(lower) for h in lower[i + 1 :]):
        return None
    for c in tuple(kept):
        others = [d for d in kept if d is not c]
        if c.kind == "ge" and others and implied(c.expr, others, bounds):
            kept = others
    return tuple(kept)


# ---- simplification


@_remembered
def simplify(e: E, bounds: Bounds) -> E:
    """An equal expression, with the divisions that the bounds decide removed."""
    if not any(isinstance(a, Div | Mod) for a in atoms(e)):
        return e
    out = ZERO
    for m, c in e.terms:
        t = ex(c)
        for a in m:
            if isinstance(a, Div | Mod):
                q, r = _divide(simplify(a.numerator, bounds), simplify(a.divisor, bounds), bounds)
                t = t * (q if isinstance(a, Div) else r)
            else:
                t = t * E({(a,): 1})
        out = out + t
    return _recombined(dict(out.terms), bounds)


@_remembered
def _divide(e: E, d: E, bounds: Bounds) -> tuple[E, E]:
    """(e // d, e % d), simplified."""
    if d.const is not None and d.const <= 0:
        if d.const == 0:
            return ZERO, ZERO
        raise ValueError(f"({e}) // ({d}): an index expression is divided by positive numbers only")
    if d == 1:
        return e, ZERO
    if e.const is not None and d.const is not None:
        return ex(e.const // d.const), ex(e.const % d.const)
    whole, rest = _split(e, d)
    k = _quotient(rest, d, bounds)  # e = q*d + r with 0 <= r < d
    if k is not None:
        return whole + k, rest - d * k
    found = _common_factor(rest, d, bounds)  # r = g*a + b with 0 <= b < g, g a factor of d
    if found is not None:
        g, a, b = found
        q, r = _divide(a, _split(d, g)[0], bounds)
        return whole + q, g * r + b
    q, r = E({(Div(rest, d),): 1}), E({(Mod(rest, d),): 1})
    if len(rest.terms) == 1 and rest.terms[0][1] == 1 and len(rest.terms[0][0]) == 1:
        inner = rest.terms[0][0][0]
        if isinstance(inner, Div):  # (x // a) // d = x // (a*d)
            q = _divide(inner.numerator, inner.divisor * d, bounds)[0]
        elif isinstance(inner, Mod):
            times, left = _split(inner.divisor, d)
            if left == 0:  # x % (k*d) % d = x % d,  x % (k*d) // d = x // d % k
                above, r = _divide(inner.numerator, d, bounds)
                q = _divide(above, times, bounds)[1]
    return whole + q, r


def _split(e: E, d: E) -> tuple[E, E]:
    """q and r with e = q*d + r: what can be divided term by term."""
    if d.const is not None:
        q, r = {}, {}
        for m, c in e.terms:
            if m:
                q[m] = (abs(c) // d.const) * (1 if c > 0 else -1)
                r[m] = c - q[m] * d.const
            else:
                q[m], r[m] = divmod(c, d.const)
        return E(q), E(r)
    lead, by = d.terms[0]
    quotient = ZERO
    for m, c in e.terms:
        left = quotient_of(m, lead)
        if c % by == 0 and left is not None:
            quotient = quotient + E({left: c // by})
    return quotient, e - quotient * d


def _quotient(r: E, d: E, bounds: Bounds) -> int | None:
    """The constant k with k*d <= r < (k + 1)*d, if that is proved."""
    lo = extreme(r, -1, bounds)
    if lo is not None and lo.const is not None and d.const is not None:
        hi = extreme(r, 1, bounds)
        if hi is not None and hi.const is not None:
            k = lo.const // d.const
            return k if hi.const // d.const == k else None
    return next((k for k in (0, -1) if nonneg(r - k * d, bounds) and nonneg((k + 1) * d - 1 - r, bounds)), None)


def _common_factor(r: E, d: E, bounds: Bounds) -> tuple[E, E, E] | None:
    """(g, a, b) with r = g*a + b, 0 <= b < g, where g divides d."""
    if d.const is not None:
        numbers = {math.gcd(c, d.const) for m, c in r.terms if m} - {1, d.const}
        factors = [ex(g) for g in sorted(numbers, reverse=True)]
    elif len(d.terms) == 1:
        m, c = d.terms[0]
        factors = [E({m: 1})] if c != 1 else []
        factors += [E({tuple(x for i, x in enumerate(m) if i != j): c}) for j in range(len(m)) if len(m) > 1 or c != 1]
        factors += [E({(a,): 1}) for a in dict.fromkeys(m) if len(m) > 2]
    else:
        return None
    for g in factors:
        a, b = _split(r, g)
        if a != 0 and (k := _quotient(b, g, bounds)) is not None:
            return g, a + k, b - g * k
    return None


def _recombined(terms: dict[Monomial, int], bounds: Bounds) -> E:
    """c*d*(x // d) + c*(x % d) = c*x,  and  c*d*(x // d % k) + c*(x % d) = c*(x % (k*d))."""
    for m, c in terms.items():
        for a in m:
            if c and isinstance(a, Mod):
                rest = list(m)
                rest.remove(a)
                joined = _partner(terms, rest, c, a, bounds)
                if joined is not None:
                    partner, whole = joined
                    left = {n: k for n, k in terms.items() if n not in (m, partner)}
                    for n, k in (E({tuple(rest): c}) * whole).terms:
                        left[n] = left.get(n, 0) + k
                    return _recombined(left, bounds)
    return E(terms)


def _partner(terms: dict[Monomial, int], rest: list[Atom], c: int, a: Mod, bounds: Bounds) -> tuple[Monomial, E] | None:
    """The monomial that together with c * rest * a makes c * rest * whole, and that whole."""
    for n, k in terms.items():
        for b in quotient_of(n, rest) or ():
            if not isinstance(b, Div | Mod) or E({n: k}) != E({tuple(sorted((*rest, b), key=atom_key)): c}) * a.divisor:
                continue
            above = _divide(a.numerator, a.divisor, bounds)[0]
            if isinstance(b, Div):
                if E({(b,): 1}) is above:
                    return n, a.numerator
            elif b.numerator is above:
                return n, _divide(a.numerator, a.divisor * b.divisor, bounds)[1]
    return None
