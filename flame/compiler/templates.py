"""Lowering by example: groups that differ in the names of their values alone are lowered once.

A group's KEY spells the nodes between its roots and memory in one canonical order, values as numbers. Twelve equal layers
make twelve equal keys, one lowering, and one kernel object with twelve sets of buffers. Refusals are remembered as well.

An unrolled loop reads x[:, 0], x[:, 1], ...: steps that are equal but for a PLACE in memory. Where an array in memory is sliced at
many places (`places_of`), the place is left out of the key, and is a symbol of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flame.compiler.cost import Cost, cost
from flame.compiler.dims import Symbols
from flame.compiler.graph import Graph, Node, Value
from flame.compiler.index_math import var
from flame.compiler.kernel import Kernel
from flame.compiler.lower import NOTHING, lower
from flame.compiler.rewrite import static_key
from flame.compiler.target import Target
from flame.errors import Refused


@dataclass(frozen=True, slots=True)
class Template:
    """A kernel whose buffers are numbered values of a key, and what it costs."""

    kernel: Kernel
    buffers: dict[str, int]
    cost: Cost
    places: tuple[str, ...] = ()  #: the symbols that stand for places, "" for those that the kernel does not need


@dataclass(frozen=True, slots=True)
class Attempt:
    """A group lowered: its template and the values that its key numbered; or why there is no kernel."""

    template: Template | None
    values: list[Value]
    refusal: str = ""
    places: tuple[int, ...] = ()

    @property
    def buffers(self) -> dict[str, Value]:
        assert self.template is not None
        return {b: self.values[i] for b, i in self.template.buffers.items()}

    @property
    def symbols(self) -> dict[str, int]:
        """The values of the kernel's symbols that are places."""
        assert self.template is not None
        return {n: at for n, at in zip(self.template.places, self.places, strict=True) if n}


#: slices of one array at places of their own, from which on the place is a symbol
_MANY = 8

NO_PLACES: Mapping[Node, tuple[int, ...]] = {}
Place = tuple[Node, int]  #: a slice, and a dimension that it takes one element of


def places_of(graph: Graph) -> dict[Node, tuple[int, ...]]:
    """The slices of one element of a dimension, of arrays that are sliced so at many places; and those dimensions."""
    found: dict[tuple[Value, int], list[Node]] = {}
    for n in graph.nodes:
        x = n.operands[0] if n.primitive.name == "slice" else None
        if isinstance(x, Value):
            for d, (size, of) in enumerate(zip(n.output.shape, x.shape, strict=True)):
                if type(size) is type(of) is int and size == 1 < of:
                    found.setdefault((x, d), []).append(n)
    out: dict[Node, tuple[int, ...]] = {}
    for (_, d), nodes in found.items():
        if len(nodes) >= _MANY:
            for n in nodes:
                out[n] = (*out.get(n, ()), d)
    return out


class Templates:
    """The lowerings of one compilation.

    A root's FRAGMENT is what stands between it and memory, spelled once a plan; a group's key is its roots' fragments with
    the values that they read numbered across the group, and which of the roots are stored.
    """

    def __init__(self, target: Target, symbols: Symbols | None = None, places: Mapping[Node, tuple[int, ...]] = NO_PLACES):
        self.target = target
        self.symbols = symbols
        self._places = places
        self._in_memory: Callable[[Value], bool] = lambda v: v.node is None
        self._known: dict[tuple, Template | str] = {}
        self._fragments: dict[Value, tuple[int, tuple[Value, ...], tuple[Place, ...]]] = {}
        self._signatures: dict[tuple[Node, tuple[int, ...]], int] = {}
        self._interned: dict[Any, int] = {}

    def under(self, in_memory: Callable[[Value], bool]) -> None:
        """From now on, these values may stand in memory."""
        self._in_memory = in_memory
        self._fragments.clear()

    def lower(self, roots: Sequence[Value], stored: Sequence[Value]) -> Attempt:
        """The kernel that computes these roots from memory, and stores those of them that are `stored`."""
        number: dict[Value, int] = {}
        spelled: list[int] = []
        place: dict[Place, int] = {}
        for r in roots:
            fragment, reads, places = self._fragment(r)
            spelled.append(fragment)
            for x in reads:
                spelled.append(number.setdefault(x, len(number)))
            spelled.append(number.setdefault(r, len(number)))
            for p in places:
                spelled.append(place.setdefault(p, len(place)))
        key = (tuple(spelled), tuple([number[r] for r in stored]))
        values = list(number)
        at = tuple([n.params["starts"][d] for n, d in place]) if place else ()
        known = self._known.get(key)
        if known is None:
            here = frozenset(roots)
            known = self._known[key] = self._make(stored, lambda v: v not in here and self._in_memory(v), number, place)
        if isinstance(known, Template):
            return Attempt(known, values, "", at)
        return Attempt(None, values, re.sub(r"%(\d+)\b", lambda m: f"%{values[int(m[1])].name}", known))

    def _make(
        self,
        stored: Sequence[Value],
        in_memory: Callable[[Value], bool],
        number: dict[Value, int],
        place: dict[Place, int],
    ) -> Template | str:
        symbols, params = self._with_places(place) if place else (self.symbols, NOTHING)
        try:
            made = lower(stored, in_memory, symbols=symbols, params=params)
        except Refused as refusal:
            by_name = {v.name: str(i) for v, i in number.items()}
            return re.sub(r"%(\w+)", lambda m: "%" + by_name.get(m[1], m[1]), str(refusal))
        names = tuple(n if n in made.kernel.symbols else "" for n in map(_symbol, place.values()))
        return Template(made.kernel, {b: number[v] for b, v in made.buffers.items()}, cost(made.kernel, self.target), names)

    def _with_places(self, place: dict[Place, int]) -> tuple[Symbols, dict[Node, dict[str, Any]]]:
        """The symbols with one more for every place, and the slices' parameters in terms of them."""
        known = self.symbols or Symbols()
        least, facts = dict(known), list(known.facts)
        params: dict[Node, dict[str, Any]] = {}
        for (n, d), k in place.items():
            x = n.operands[0]
            assert isinstance(x, Value)
            at = var(_symbol(k))
            least[_symbol(k)] = 0
            facts.append(x.shape[d] - 1 - at)
            starts = params.setdefault(n, dict(n.params))["starts"]
            params[n]["starts"] = (*starts[:d], at, *starts[d + 1 :])
        return Symbols(least, facts), params

    def _fragment(self, root: Value) -> tuple[int, tuple[Value, ...], tuple[Place, ...]]:
        """A number for all that stands between `root` and memory, the values that it reads there, in its order, and the places
        at which it reads some."""
        found = self._fragments.get(root)
        if found is not None:
            return found
        number: dict[Value, int] = {}
        reads: list[Value] = []
        places: list[Place] = []
        spelled: list[tuple[int, ...]] = []
        pending = [root]
        while pending:
            v = pending[-1]
            if v in number:
                pending.pop()
                continue
            node = v.node
            if node is None or (v is not root and self._in_memory(v)):
                spelled.append((-1, self._intern(v.spec)))
                reads.append(v)
            else:
                missing = [x for x in node.operands if isinstance(x, Value) and x not in number]
                if missing:
                    pending.extend(reversed(missing))
                    continue
                at = self._places.get(node, ())
                if at and not self._in_memory(node.operands[0]):  # type: ignore[arg-type]
                    at = ()
                places += [(node, d) for d in at]
                spelled.append((self._signature(node, at), *[number[x] for x in node.operands if isinstance(x, Value)]))
            number[v] = len(number)
            pending.pop()
        found = self._fragments[root] = (self._intern(tuple(spelled)), tuple(reads), tuple(places))
        return found

    def _signature(self, node: Node, places: tuple[int, ...]) -> int:
        """A number for everything of a node but its operands that are values, and where it slices dimensions that are `places`."""
        found = self._signatures.get((node, places))
        if found is None:
            constants = tuple(None if isinstance(x, Value) else static_key(x) for x in node.operands)
            given = node.params
            if places:
                free = {k: tuple([None if d in places else x for d, x in enumerate(given[k])]) for k in ("starts", "stops")}
                given = given | free
            params = tuple((k, static_key(given[k])) for k in sorted(given))
            shape = (node.primitive, constants, params, places, node.output.spec, node.note, node.source)
            found = self._signatures[node, places] = self._intern(shape)
        return found

    def _intern(self, x: Any) -> int:
        return self._interned.setdefault(x, len(self._interned))


def _symbol(k: int) -> str:
    return f"at{k}"
