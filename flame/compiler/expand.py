"""Primitives that only some targets have a routine or kernels for, made of smaller ones for the others.

expand(graph, target) -> Graph         the results keep their meaning; sums may be taken in another order
refusals(graph, target) -> Decisions   which nodes that concerns where it is not plain, and why
"""

from __future__ import annotations

from flame.compiler.attention_kernels import refusal
from flame.compiler.graph import Builder, Graph, Node, Value
from flame.compiler.program import Decision
from flame.compiler.target import Target
from flame.ops import attention, flex, phases, pool, recurrent

_COMPOSED = {**attention.composed, **flex.composed, **phases.composed, **pool.composed, **recurrent.composed}


def why_expanded(n: Node, target: Target) -> str:
    """Why a target has neither routine nor kernels for a node; "" where it has, or where nothing else could be meant."""
    if n.primitive.name not in _COMPOSED:
        return ""
    if n.primitive.name in phases.composed:
        taken = not target.is_gpu and phases.has_phases(*n.operands, **n.params)
        return "a strided gradient would multiply holes" if taken else ""
    if n.primitive.name in flex.composed:
        if target.is_gpu:
            return refusal(n)
        bounded = n.params["modification"].bounds is not None  # where NumPy leaves out what smaller primitives would compute
        return "" if bounded else "the routine of a CPU takes no function of scores"
    if n.primitive.name not in attention.composed:
        return "a GPU has no routine for it" if target.is_gpu else ""
    if target.is_gpu:
        return refusal(n)
    q, k, *_ = n.values
    if len(n.operands) not in (3, 6):
        return "the routine of a CPU takes no mask and drops nothing"
    if n.params.get("softcap"):
        return "the routine of a CPU bends no scores"
    return "" if q.shape[:-2] == k.shape[:-2] else "the routine of a CPU wants a head of keys for each head of queries"


def refusals(graph: Graph, target: Target) -> list[Decision]:
    """The nodes that `expand` makes smaller ones of, with the reason."""
    out = []
    for n in graph.nodes:
        reason = why_expanded(n, target)
        if reason:
            of = f"{n.note}'s " if n.note and n.note != n.primitive.name else ""
            out.append(Decision("expanded", f"{of}{n.primitive.name} %{n.output.name}", reason))
    return out


def expand(graph: Graph, target: Target) -> Graph:
    """The graph as a target without routines of its own for some primitives runs it."""
    if not any(why_expanded(n, target) for n in graph.nodes):
        return graph
    made = Graph(list(graph.inputs), [], [], graph.name)
    builder = Builder(made)
    place: dict[Value, Value] = {}
    with builder:
        for n in graph.nodes:
            builder.note, builder.source = n.note, n.source
            operands = tuple([place.get(x, x) if isinstance(x, Value) else x for x in n.operands])
            if why_expanded(n, target):
                place.update(zip(n.outputs, _COMPOSED[n.primitive.name](*operands, **n.params), strict=True))
            else:
                place.update(zip(n.outputs, builder.append(n.primitive, operands, n.params).outputs, strict=True))
    made.outputs = [place.get(v, v) for v in graph.outputs]
    return made
