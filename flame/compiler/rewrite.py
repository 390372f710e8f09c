"""The engine that rebuilds a graph under equations, and dead-code elimination.

    equation(rewriter, node) -> Value | None        a value of equal spec that equals the node's result, bit for bit

`rebuild` walks a graph once, in order. Every node is offered to the equations of its primitive (and to those for "*") with
its operands already rewritten; where none holds, the node is kept, unless an equal one was made before: nodes have no
effects, so two applications of one primitive to the same operands and parameters are one value (numbers compare by type and
then bits: 1, True and 1.0 differ, and so do 0.0 and -0.0). What an equation makes, it makes with `Rewriter.apply`, which
offers it to the equations again. An equation looks at a bounded number of nodes upstream, so the walk is linear.

Values that survive keep their names; notes and sources pass from a node to what replaces it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from flame.compiler.graph import Graph, Node, Operand, Value, infer
from flame.errors import VerificationError
from flame.primitive import Primitive, registered

Equation = Callable[["Rewriter", Node], Value | None]
#: primitive name -> its equations, tried in order; those under "*" are tried first, on every node with one result
Equations = Mapping[str, Iterable[Equation]]


def static_key(x: Any) -> Hashable:
    """A dictionary key for a number or parameter that tells apart what Python's `==` does not."""
    if isinstance(x, float):
        return float, struct.pack("<d", x)
    if isinstance(x, int):
        return type(x), x
    if isinstance(x, tuple):
        return tuple(map(static_key, x))
    return x


def rename(x: Operand, mapping: Mapping[Value, Value]) -> Operand:
    return mapping[x] if isinstance(x, Value) else x


class Rewriter:
    """A graph under construction, in which equal values are one value."""

    def __init__(self, equations: Equations, commutative: frozenset[str] = frozenset(), name: str = "graph"):
        self.graph = Graph(name=name)
        self.note = ""
        self.source = ""
        self._always = tuple(equations.get("*", ()))
        self._equations = {k: self._always + tuple(v) for k, v in equations.items() if k != "*"}
        self._commutative = commutative
        self._made: dict[Hashable, tuple[Value, ...]] = {}
        self._taken: set[str] = set()
        self._unnamed: set[Value] = set()
        self._count = 0

    def apply(self, primitive: str | Primitive, *operands: Operand, **params: Any) -> Value:
        """The value of a primitive (with one result) on values of this graph; existing, rewritten or new."""
        p = registered(primitive) if isinstance(primitive, str) else primitive
        key = self._key(p, operands, params)
        if (found := self._made.get(key)) is not None:
            return found[0]
        node = Node(p, operands, params, (), self.note, self.source)
        node.outputs = tuple(Value(s, node, i, self._fresh()) for i, s in enumerate(infer(p, operands, params)))
        self._unnamed.update(node.outputs)
        return self._settle(key, node)[0]

    def input(self, v: Value) -> None:
        """Enter an input; the rebuilt graph has the same input values as the graph it is rebuilt from."""
        self.graph.inputs.append(v)
        self._taken.add(v.name)

    def copy(self, n: Node, operands: tuple[Operand, ...]) -> tuple[Value, ...]:
        """The results of `n` on operands of this graph."""
        self.note, self.source = n.note, n.source
        key = self._key(n.primitive, operands, n.params)
        if (found := self._made.get(key)) is not None:
            return found
        node = Node(n.primitive, operands, n.params, (), n.note, n.source)
        node.outputs = tuple(Value(o.spec, node, o.index, o.name) for o in n.outputs)
        self._unnamed.clear()
        got = self._settle(key, node)
        if got[0] in self._unnamed:  # made just now in place of the node's result
            got[0].name = n.output.name
        return got

    def reserve(self, names: Iterable[str]) -> None:
        """Keep names from being given to values that equations make."""
        self._taken.update(names)

    def _settle(self, key: Hashable, node: Node) -> tuple[Value, ...]:
        if len(node.outputs) == 1:
            for equation in self._equations.get(node.primitive.name, self._always):
                better = equation(self, node)
                if better is not None:
                    if better.spec != node.output.spec:
                        raise VerificationError(
                            f"{node}: {equation.__name__} gives {better.spec} where {node.output.spec} stood"
                        )
                    self._made[key] = (better,)
                    return (better,)
        self._made[key] = node.outputs
        self.graph.nodes.append(node)
        return node.outputs

    def _key(self, p: Primitive, operands: tuple[Operand, ...], params: dict[str, Any]) -> Hashable:
        args = [x if isinstance(x, Value) else static_key(x) for x in operands]
        if p.name in self._commutative:
            args.sort(key=hash)
        return p, tuple(args), tuple((k, static_key(params[k])) for k in sorted(params))

    def _fresh(self) -> str:
        while True:
            self._count += 1
            name = f"w{self._count}"
            if name not in self._taken:
                self._taken.add(name)
                return name


def rebuild(graph: Graph, equations: Equations, commutative: frozenset[str] = frozenset()) -> Graph:
    """An equal graph on the same inputs, with the equations applied, equal values joined and dead nodes dropped."""
    rw = Rewriter(equations, commutative, graph.name)
    rw.reserve(v.name for v in graph.values())
    now: dict[Value, Value] = {}
    for v in graph.inputs:
        rw.input(v)
        now[v] = v
    for n in eliminate_dead(graph).nodes:
        now.update(zip(n.outputs, rw.copy(n, tuple(rename(x, now) for x in n.operands)), strict=True))
    rw.graph.outputs = [now[o] for o in graph.outputs]
    return eliminate_dead(rw.graph)


def eliminate_dead(graph: Graph) -> Graph:
    """The graph without nodes that no result depends on. Inputs stay; nodes are shared with `graph`."""
    live: set[Value] = set(graph.outputs)
    kept: list[Node] = []
    for n in reversed(graph.nodes):
        if not live.isdisjoint(n.outputs):
            kept.append(n)
            live.update(n.values)
    return Graph(graph.inputs, kept[::-1], graph.outputs, graph.name)
