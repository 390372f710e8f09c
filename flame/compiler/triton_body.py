"""The inside of a Triton kernel, written statement by statement: scopes, tiles, masks, loads, stores.

A program of the grid works on a tile. `Lanes` are one direction of it: a flat position that walks some of the kernel's axes.
A `Scope` is a stretch of source in which names are good: the whole body, or a loop inside it. `Body.compute(values)` writes
what is needed for some values and is not yet there, in the kernel's order; so rendering the same value in another scope (the
next sweep over a row) writes it again there. Who decides on lanes, loops and sweeps stands above: `triton_rows`,
`triton_contract`.

Every value is held with the tile dimensions it extends along, which may be more than its domain says: a row's sum is one
number a row, even of values that are the same in all rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flame.compiler.index_math import Bounds, Div, E, Mod, Val, atoms, ex, extreme, names, nonneg, simplify, subst, var
from flame.compiler.kernel import (
    Const,
    Contract,
    Definition,
    IndexOf,
    Kernel,
    Load,
    Op,
    Reduce,
    Store,
    domain,
    domain_of,
    flat,
    reads,
)
from flame.compiler.schedule import product
from flame.compiler.triton_text import Functions, Names, Text, literal, spell, tl, typed
from flame.dtypes import int32, int64
from flame.errors import Refused
from flame.ops.access import Cond

Dims = frozenset[int]
NO_DIMS: Dims = frozenset()
#: what stands before a file's name in file:line: source is the same wherever the user's files lie
_FOLDERS = re.compile(r"(?<!\S)\S*[/\\](?=[^/\\\s]+:\d+)")
INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Lanes:
    """One direction of the tile. `dim` None: a single position, the same for the whole tile."""

    name: str
    axes: tuple[str, ...]
    dim: int | None = None
    mask: str = ""  #: the variable that is true where the position is inside; empty: it always is

    @property
    def dims(self) -> Dims:
        return NO_DIMS if self.dim is None else frozenset((self.dim,))


@dataclass(slots=True)
class Scope:
    values: dict[str, tuple[Text, Dims]] = field(default_factory=dict)
    places: dict[str, tuple[str, Dims]] = field(default_factory=dict)  #: axis -> its text
    lanes: list[Lanes] = field(default_factory=list)
    masks: dict[str, str] = field(default_factory=dict)  #: a long mask -> its name
    tile: tuple[str, ...] | None = None  #: the block of each tile dimension; None: as outside
    inner: dict[frozenset[str], Scope] = field(default_factory=dict)  #: scopes that may be entered again


class Body:
    """Source in the making."""

    def __init__(self, kernel: Kernel, wide: bool):
        self.kernel = kernel
        self.wide = wide  #: positions and addresses in 64 bits
        self.functions = Functions()
        self.names = Names()
        self.entry = self.names.fresh(kernel.name)
        self.pointers = {b: self.names.fresh(f"{b}_ptr") for b in kernel.buffers}
        self.sizes = {n: self.names.fresh(f"size_{n}") for n in kernel.symbols}
        self.constants: dict[str, int] = {}
        self.lines: list[str] = []
        self.scopes = [Scope()]
        self.uses_libdevice = False
        self.describes = False  #: makes descriptors of arrays
        #: axes with a single point are not walked: their index is 0
        self.still = {a: 0 for a, e in kernel.axes.items() if e == 1}
        #: lanes that walk several axes -> how many points they have; such an axis -> its place as a function of the lanes
        self._walks: dict[str, E] = {}
        self._unwalked: dict[str, E] = {}
        self._reach: Bounds | None = None
        self._spare: set[str] = set()  #: names whose lines go if nothing reads them
        #: values that equal another one in the stretch that is being written, because of where it is
        self.passed: dict[str, str] = {}
        #: operations that are written in a way of their own
        self.spellings: dict[str, str] = {}
        self._depth = 1
        self._note = ""

    # ---- lines

    def line(self, text: str, note: str = "") -> None:
        note = _FOLDERS.sub("", " ".join(note.split()))
        if note and note != self._note:
            text += f"  # {note}"
        self._note = note or self._note
        self.uses_libdevice |= "libdevice." in text
        self.lines.append("    " * self._depth + text)

    def comment(self, text: str) -> None:
        if self.lines and not self.lines[-1].endswith(":"):
            self.lines.append("")
        self.line(f"# {text}")

    def finished(self) -> list[str]:
        """The lines, without those that only say where an axis is and that nothing reads."""
        out: list[str] = []
        used: set[str] = set()
        for text in reversed(self.lines):
            name, _, right = text.strip().partition(" = ")
            if name in self._spare and name not in used:
                continue
            used.update(re.findall(r"\w+", right or text))
            out.append(text)
        return out[::-1]

    @contextmanager
    def loop(self, head: str) -> Iterator[Scope]:
        """An indented block with a scope of its own."""
        self.line(head)
        self._depth += 1
        self.scopes.append(Scope())
        try:
            yield self.scopes[-1]
        finally:
            self.scopes.pop()
            self._depth -= 1

    @contextmanager
    def scope(self, scope: Scope) -> Iterator[Scope]:
        """Names that are good for a while, at the same indentation; `scope` may be entered again."""
        self.scopes.append(scope)
        try:
            yield scope
        finally:
            self.scopes.pop()

    def constant(self, name: str, value: int) -> str:
        """A compile-time parameter of the kernel."""
        self.constants[name] = value
        return name

    # ---- tiles and lanes

    @property
    def tile(self) -> tuple[str, ...]:
        return next((s.tile for s in reversed(self.scopes) if s.tile is not None), ())

    def shape(self, dims: Dims | None = None) -> str:
        """The shape of a value that extends along `dims` (None: along all)."""
        return "[" + ", ".join(b if dims is None or i in dims else "1" for i, b in enumerate(self.tile)) + "]"

    def spread(self, text: str, dims: Dims) -> str:
        """The text of a value, made as large as the tile."""
        return text if len(dims) == len(self.tile) else f"tl.broadcast_to({text}, {self.shape()})"

    def lanes_of(self, axes: Iterable[str]) -> list[Lanes]:
        """The lanes in force that walk any of `axes`."""
        wanted = set(axes)
        found: dict[str, Lanes] = {}
        for s in self.scopes:
            for lanes in s.lanes:
                if wanted & set(lanes.axes):
                    found[lanes.name] = lanes
        return list(found.values())

    def walker(self, axes: Sequence[str], hint: str) -> str:
        """A name for the position of lanes that walk `axes`: that of a single axis, else `hint`."""
        return self.names.fresh(axes[0] if len(axes) == 1 else f"{hint}_flat" if hint in self.kernel.axes else hint)

    def count(self, axes: Iterable[str]) -> E:
        return product(self.kernel.axes[a] for a in axes)

    def size(self, e: E) -> str:
        """An extent as text that can stand as a factor."""
        text = self.spell_index(e, {})
        return text if text.isidentifier() or text.isdigit() else f"({text})"

    def place(self, lanes: Lanes) -> None:
        """Write what each axis of the lanes is at their position, and enter them in the innermost scope."""
        scope = self.scopes[-1]
        scope.lanes.append(lanes)
        if len(lanes.axes) == 1:
            scope.places[lanes.axes[0]] = (lanes.name, lanes.dims)
            return
        below = ex(1)
        for a in reversed(lanes.axes):
            extent = self.kernel.axes[a]
            text = lanes.name if below == 1 else f"{lanes.name} // {self.size(below)}"
            place = var(lanes.name) // below
            if a != lanes.axes[0]:
                text += f" % {self.size(extent)}"
                place = place % extent
            name = self.names.fresh(a)
            self.line(f"{name} = {text}")
            self._spare.add(name)
            self._unwalked[name] = place
            scope.places[a] = (name, lanes.dims)
            below = below * extent
        self._walks[lanes.name] = below
        self._reach = None

    def _rejoined(self, e: E) -> E | None:
        """`e`, an expression in places, as one in the lanes that they come from, if it is one without divisions: x for
        x // 8 * 8 + x % 8. Triton then sees that neighbours are neighbours in memory."""
        here = {n: self._unwalked[n] for n in names(e) if n in self._unwalked}
        if len(here) < 2:
            return None
        if self._reach is None:
            self._reach = Bounds(self._walks, self.kernel.symbols)
        whole = simplify(subst(e, here), self._reach)
        return None if any(isinstance(a, Div | Mod) for a in atoms(whole)) else whole

    # ---- index expressions

    def where_is(self, axis: str) -> tuple[str, Dims]:
        for s in reversed(self.scopes):
            if axis in s.places:
                return s.places[axis]
        raise AssertionError(f"axis {axis} is not walked here")

    def spell_index(self, e: E, env: dict[str, str]) -> str:
        """`e` in Triton. Its division truncates, so it stands for floor division only where that makes no difference."""

        def factor(x: E) -> str:
            text = self.spell_index(x, env)
            return text if text.isidentifier() or text.isdigit() else f"({text})"

        def atom(a: object) -> str:
            match a:
                case str():
                    return env.get(a) or self.sizes[a]
                case Val():
                    return env["%" + a.name]
                case Div() | Mod():
                    if nonneg(a.numerator, self.kernel.bounds):
                        return f"({factor(a.numerator)} {'//' if isinstance(a, Div) else '%'} {factor(a.divisor)})"
                    f = self.functions.library("_floor_divide_int" if isinstance(a, Div) else "_remainder_int")
                    return f"{f}({self.spell_index(a.numerator, env)}, {self.spell_index(a.divisor, env)})"
            raise AssertionError(a)

        out = ""
        for monomial, c in e.terms:
            parts = [atom(a) for a in monomial]
            if abs(c) != 1 or not parts:
                parts.append(str(abs(c)))
            sign = (" - " if c < 0 else " + ") if out else ("-" if c < 0 else "")
            out += sign + " * ".join(parts)
        return out or "0"

    def index(self, e: E, wide: bool = False) -> tuple[str, Dims]:
        """An integer expression where the tile stands, as text, and what it extends along."""
        e = simplify(subst(e, self.still), self.kernel.bounds)
        env: dict[str, str] = {}
        dims = NO_DIMS
        places: dict[str, E] = {}
        for n in sorted(names(e)):
            if n in self.kernel.symbols:
                env[n] = f"{self.sizes[n]}.to(tl.int64)" if wide else self.sizes[n]
                continue
            if n[0] == "%":
                value, along = self.lookup(n[1:])
                kind = self.kernel.definitions[n[1:]].dtype
                held = int64 if wide or self.wide or kind.name in ("uint32", "uint64") else int32
                if value.value is not None:
                    env[n] = f"({value.alone})"
                elif kind.itemsize < held.itemsize or kind.kind == "u":
                    env[n] = f"{value.text}.to({tl(held)})"
                else:
                    env[n] = value.text
            else:
                place, along = self.where_is(n)
                places[n] = var(place)
                env[n] = f"{place}.to(tl.int64)" if wide and not self.wide else place
            dims |= along
        whole = self._rejoined(subst(e, places))
        if whole is not None:
            e = whole
            kept = {n: t for n, t in env.items() if n[0] == "%" or n in self.kernel.symbols}
            env = {n: f"{n}.to(tl.int64)" if wide and not self.wide else n for n in names(e)} | kept
        text = self.spell_index(e, env)
        if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
            text = text[1:-1]
        return text, dims

    def conditions(self, mask: Iterable[Cond]) -> list[tuple[str, Dims]]:
        """Each condition as text, and what it extends along."""
        out = []
        for c in mask:
            # i - 2 >= 0 is written i >= 2, and 10 - i >= 0 is i <= 10
            e = simplify(subst(c.expr, self.still), self.kernel.bounds)
            plus = {m: k for m, k in e.terms if m and k > 0}
            minus = {m: -k for m, k in e.terms if m and k < 0}
            last = next((k for m, k in e.terms if not m), 0)
            if plus:
                left, sign, right = E(plus), ">=", E(minus) - last
            else:
                left, sign, right = E(minus), "<=", ex(last)
            (a, along), (b, across) = self.index(left), self.index(right)
            out.append((f"({a} {sign if c.kind == 'ge' else '=='} {b})", along | across))
        return out

    # ---- values

    def lookup(self, v: str) -> tuple[Text, Dims]:
        for s in reversed(self.scopes):
            if v in s.values:
                return s.values[v]
        raise AssertionError(f"{v} is used before it is there")

    def has(self, v: str) -> bool:
        return any(v in s.values for s in self.scopes)

    def define(self, v: str, text: str, dims: Dims, note: str = "", scope: Scope | None = None) -> str:
        """Write an assignment, and let `v` stand for it, in the innermost scope or the one given."""
        name = self.names.fresh(v)
        self.line(f"{name} = {text}", note)
        (scope or self.scopes[-1]).values[v] = (Text(name, self.kernel.definitions[v].dtype), dims)
        return name

    def missing(self, values: Iterable[str]) -> set[str]:
        """What has to be written before `values` are there."""
        out: set[str] = set()
        todo = list(values)
        while todo:
            v = todo.pop()
            if v not in out and not self.has(v):
                out.add(v)
                todo.extend((self.passed[v],) if v in self.passed else reads(self.kernel.definitions[v]))
        return out

    def compute(self, values: Iterable[str], only: Callable[[str], bool] | None = None) -> None:
        """Write what `values` need and is not there, in the kernel's order; of it, only the values that `only` accepts."""
        missing = self.missing(values)
        if missing:
            for v, s in self.kernel.definitions.items():
                if v in missing and (only is None or only(v)):
                    self._write(s)

    def _write(self, s: Definition) -> None:
        if s.name in self.passed:
            self.scopes[-1].values[s.name] = self.lookup(self.passed[s.name])
            return
        match s:
            case Const():
                self.scopes[-1].values[s.name] = (Text.number(s.value, s.dtype), NO_DIMS)
            case IndexOf():
                self._write_index(s)
            case Load():
                text, dims = self.load(s)
                self.define(s.name, text, dims, s.note)
            case Op():
                args = [self.lookup(v) for v in s.operands]
                dims = frozenset[int]().union(*(d for _, d in args))
                given = self.spellings.get(s.op)
                text = (
                    spell(s.op, tuple(t for t, _ in args), s.dtype, self.functions)
                    if given is None
                    else given.format(*(t.alone for t, _ in args))
                )
                self.define(s.name, text, dims, s.note)
            case Reduce() | Contract():
                raise AssertionError(f"{s.name} is needed before its sweep")

    def _write_index(self, s: IndexOf) -> None:
        e = simplify(subst(s.expr, self.still), self.kernel.bounds)
        if e.const is not None:
            self.scopes[-1].values[s.name] = (Text.number(e.const, s.dtype), NO_DIMS)
            return
        ends = [extreme(e, sign, self.kernel.bounds) for sign in (-1, 1)]
        small = all(x is not None and x.const is not None and abs(x.const) <= INT32_MAX for x in ends)
        text, dims = self.index(e, wide=not small)
        self.define(s.name, f"({text}).to({tl(s.dtype)})" if not text.isidentifier() else f"{text}.to({tl(s.dtype)})", dims)

    # ---- memory

    def pointer(self, s: Load | Store) -> tuple[str, Dims]:
        text, dims = self.index(flat(self.kernel, s))
        p = self.pointers[s.buffer]
        if text == "0":
            return p, dims
        return (f"{p} + {text}" if text.isidentifier() or text.isdigit() else f"{p} + ({text})"), dims

    def load(self, s: Load, zero: bool = False) -> tuple[str, Dims]:
        """The text of a load; `zero`: it gives 0 where the tile hangs over the edge."""
        pointer, dims = self.pointer(s)
        conditions = self.conditions(s.mask)
        axes = domain_of(self.kernel, (*s.index, *(c.expr for c in s.mask)))
        terms = [(lanes.mask, lanes.dims) for lanes in self.lanes_of(axes) if lanes.mask] + conditions
        if not terms:
            return f"tl.load({pointer})", dims
        reach = dims.union(*(d for _, d in terms))
        if reach != dims:
            pointer = f"tl.broadcast_to({pointer}, {self.shape(reach)})"
        mask = self._mask(s.buffer, [t for t, _ in terms])
        other = ""
        if conditions or zero:
            value = s.other if conditions else 0
            text = typed(value, s.dtype) if s.dtype.itemsize == 8 else literal(value, s.dtype)
            other = f", other={text}"
        return f"tl.load({pointer}, mask={mask}{other})", reach

    def _mask(self, buffer: str, terms: list[str]) -> str:
        """The conjunction of terms; a long one gets a line and a name, good for all that asks for the same."""
        text = " & ".join(dict.fromkeys(terms))
        if len(terms) < 4:
            return text
        for s in reversed(self.scopes):
            if text in s.masks:
                return s.masks[text]
        name = self.names.fresh(f"{buffer}_in")
        self.line(f"{name} = {text}")
        self.scopes[-1].masks[text] = name
        return name

    def store(self, s: Store) -> None:
        """Write a store; of the points that share an address, one stores."""
        value, along = self.lookup(s.value)
        pointer, dims = self.pointer(s)
        here = domain(self.kernel, s)
        terms = [(lanes.mask, lanes.dims) for lanes in self.lanes_of(here) if lanes.mask] + self.conditions(s.mask)
        idle = [a for scope in self.scopes for lanes in scope.lanes for a in lanes.axes if a not in here]
        if idle and self.kernel.buffers[s.buffer].role == "inout":
            raise Refused(f"{s.buffer} is updated in place at addresses that do not vary with {', '.join(idle)}")
        terms += [(f"({text} == 0)", where) for text, where in (self.where_is(a) for a in dict.fromkeys(idle))]
        reach = dims.union(along, *(d for _, d in terms))
        if reach != dims:
            pointer = f"tl.broadcast_to({pointer}, {self.shape(reach)})"
        mask = self._mask(s.buffer, [t for t, _ in terms])
        self.line(f"tl.store({pointer}, {value.alone}{', mask=' + mask if mask else ''})")
