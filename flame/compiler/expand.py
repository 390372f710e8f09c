"""Primitives that only some targets have a routine for, made of smaller ones for the others.

expand(graph, target) -> Graph         the results keep their meaning; sums may be taken in another order
"""

from __future__ import annotations

from flame.compiler.graph import Builder, Graph, Value
from flame.compiler.target import Target
from flame.ops import attention, pool

_COMPOSED = {**attention.composed, **pool.composed}


def expand(graph: Graph, target: Target) -> Graph:
    """The graph as a target without routines of its own runs it; a CPU has them all."""
    if not target.is_gpu or not any(n.primitive.name in _COMPOSED for n in graph.nodes):
        return graph
    made = Graph(list(graph.inputs), [], [], graph.name)
    builder = Builder(made)
    place: dict[Value, Value] = {}
    with builder:
        for n in graph.nodes:
            builder.note, builder.source = n.note, n.source
            operands = tuple([place.get(x, x) if isinstance(x, Value) else x for x in n.operands])
            smaller = _COMPOSED.get(n.primitive.name)
            if smaller is not None:
                place.update(zip(n.outputs, smaller(*operands, **n.params), strict=True))
            else:
                place.update(zip(n.outputs, builder.append(n.primitive, operands, n.params).outputs, strict=True))
    made.outputs = [place.get(v, v) for v in graph.outputs]
    return made
