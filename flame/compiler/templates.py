"""Lowering by example: groups that differ in the names of their values alone are lowered once.

A group's KEY spells the nodes between its roots and memory in one canonical order, values as numbers. Twelve equal layers
make twelve equal keys, one lowering, and one kernel object with twelve sets of buffers. Refusals are remembered as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flame.compiler.cost import Cost, cost
from flame.compiler.graph import Node, Value
from flame.compiler.index_math import Symbols
from flame.compiler.kernel import Kernel
from flame.compiler.lower import lower
from flame.compiler.rewrite import static_key
from flame.compiler.target import Target
from flame.errors import Refused


@dataclass(frozen=True, slots=True)
class Template:
    """A kernel whose buffers are numbered values of a key, and what it costs."""

    kernel: Kernel
    buffers: dict[str, int]
    cost: Cost


@dataclass(frozen=True, slots=True)
class Attempt:
    """A group lowered: its template and the values that its key numbered; or why there is no kernel."""

    template: Template | None
    values: list[Value]
    refusal: str = ""

    @property
    def buffers(self) -> dict[str, Value]:
        assert self.template is not None
        return {b: self.values[i] for b, i in self.template.buffers.items()}


class Templates:
    """The lowerings of one compilation.

    A root's FRAGMENT is what stands between it and memory, spelled once a plan; a group's key is its roots' fragments with
    the values that they read numbered across the group, and which of the roots are stored.
    """

    def __init__(self, target: Target, symbols: Symbols | None = None):
        self.target = target
        self.symbols = symbols
        self._in_memory: Callable[[Value], bool] = lambda v: v.node is None
        self._known: dict[tuple, Template | str] = {}
        self._fragments: dict[Value, tuple[int, tuple[Value, ...]]] = {}
        self._signatures: dict[Node, int] = {}
        self._interned: dict[Any, int] = {}

    def under(self, in_memory: Callable[[Value], bool]) -> None:
        """From now on, these values may stand in memory."""
        self._in_memory = in_memory
        self._fragments.clear()

    def lower(self, roots: Sequence[Value], stored: Sequence[Value]) -> Attempt:
        """The kernel that computes these roots from memory, and stores those of them that are `stored`."""
        number: dict[Value, int] = {}
        spelled: list[int] = []
        for r in roots:
            fragment, reads = self._fragment(r)
            spelled.append(fragment)
            for x in reads:
                spelled.append(number.setdefault(x, len(number)))
            spelled.append(number.setdefault(r, len(number)))
        key = (tuple(spelled), tuple([number[r] for r in stored]))
        values = list(number)
        known = self._known.get(key)
        if known is None:
            here = frozenset(roots)
            known = self._known[key] = self._make(stored, lambda v: v not in here and self._in_memory(v), number)
        if isinstance(known, Template):
            return Attempt(known, values)
        return Attempt(None, values, re.sub(r"%(\d+)\b", lambda m: f"%{values[int(m[1])].name}", known))

    def _make(self, stored: Sequence[Value], in_memory: Callable[[Value], bool], number: dict[Value, int]) -> Template | str:
        try:
            made = lower(stored, in_memory, symbols=self.symbols)
        except Refused as refusal:
            by_name = {v.name: str(i) for v, i in number.items()}
            return re.sub(r"%(\w+)", lambda m: "%" + by_name.get(m[1], m[1]), str(refusal))
        return Template(made.kernel, {b: number[v] for b, v in made.buffers.items()}, cost(made.kernel, self.target))

    def _fragment(self, root: Value) -> tuple[int, tuple[Value, ...]]:
        """A number for all that stands between `root` and memory, and the values that it reads there, in its order."""
        found = self._fragments.get(root)
        if found is not None:
            return found
        number: dict[Value, int] = {}
        reads: list[Value] = []
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
                spelled.append((self._signature(node), *[number[x] for x in node.operands if isinstance(x, Value)]))
            number[v] = len(number)
            pending.pop()
        found = self._fragments[root] = (self._intern(tuple(spelled)), tuple(reads))
        return found

    def _signature(self, node: Node) -> int:
        """A number for everything of a node but its operands that are values."""
        found = self._signatures.get(node)
        if found is None:
            constants = tuple(None if isinstance(x, Value) else static_key(x) for x in node.operands)
            params = tuple((k, static_key(node.params[k])) for k in sorted(node.params))
            shape = (node.primitive, constants, params, node.output.spec, node.note, node.source)
            found = self._signatures[node] = self._intern(shape)
        return found

    def _intern(self, x: Any) -> int:
        return self._interned.setdefault(x, len(self._interned))
