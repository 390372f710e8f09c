"""A graph or program whose sizes are symbolic, at sizes that are known: what can be run.

graph_at(graph, values)        every size a number
program_at(program, values)    the same kernels, bound to numbers, with memory planned for them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flame.compiler.dims import at
from flame.compiler.graph import Graph, Node, Value
from flame.compiler.memory import plan
from flame.compiler.program import Argument, CallStep, KernelStep, Program, Step
from flame.primitive import Spec


def spec_at(spec: Spec, values: Mapping[str, int]) -> Spec:
    return Spec(at(spec.shape, values), spec.dtype)


def params_at(params: Mapping[str, Any], values: Mapping[str, int]) -> dict[str, Any]:
    return {k: at(v, values) for k, v in params.items()}


def graph_at(graph: Graph, values: Mapping[str, int]) -> Graph:
    """The graph with every size a number."""
    made: dict[Value, Value] = {}

    def value(v: Value, node: Node | None) -> Value:
        new = made[v] = Value(spec_at(v.spec, values), node, v.index, v.name)
        return new

    inputs = [value(v, None) for v in graph.inputs]
    nodes = []
    for n in graph.nodes:
        operands = tuple(made[x] if isinstance(x, Value) else x for x in n.operands)
        node = Node(n.primitive, operands, params_at(n.params, values), (), n.note, n.source)
        node.outputs = tuple(value(o, node) for o in n.outputs)
        nodes.append(node)
    return Graph(inputs, nodes, [made[v] for v in graph.outputs], graph.name)


def program_at(program: Program, values: Mapping[str, int]) -> Program:
    """The program at these values of its symbols."""

    def call(c: CallStep) -> CallStep:
        n = c.node
        operands = tuple(
            Value(spec_at(x.spec, values), x.node, x.index, x.name) if isinstance(x, Value) else x for x in n.operands
        )
        node = Node(n.primitive, operands, params_at(n.params, values), (), n.note, n.source)
        node.outputs = tuple(Value(spec_at(o.spec, values), node, o.index, o.name) for o in n.outputs)
        arguments = tuple(
            Argument(a.slot, tuple((p, params_at(q, values)) for p, q in a.views)) if isinstance(a, Argument) else a
            for a in c.arguments
        )
        return CallStep(node, arguments, c.outputs)

    steps: list[Step] = []
    for s in program.steps:
        if isinstance(s, CallStep):
            steps.append(call(s))
            continue
        symbols = {n: values.get(n, known) for n, known in s.symbols.items()}
        steps.append(KernelStep(s.kernel, s.buffers, symbols, None if s.library is None else call(s.library), s.notes))
    slots = tuple(replace(s, spec=spec_at(s.spec, values)) for s in program.slots)
    return plan(replace(program, slots=slots, steps=tuple(steps)))
