"""Derivatives of graphs, by replaying the derivative rules of their primitives.

    pull_back      inside a Builder's graph: from cotangents of some values to cotangents of others (reverse mode)
    joint_graph    Graph -> one graph of results and gradients, for a step that is compiled whole
    differentiate  Graph -> Joint: a forward and a backward graph, with what is kept between them (see `partition`)

A rule is called as `apply(g, y, *operands, **params)` (with `operand=i` for variadic primitives) and answers with the cotangent
of one operand. Elementwise rules may answer in the shape of the result: broadcasting is undone here, once, and so is a
difference in dtype. A primitive of several results is given tuples for g and y, with zeros where no cotangent flows. The
forward nodes are used as they are, so results keep their bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from flame.compiler.graph import Builder, Graph, Node, Value
from flame.compiler.partition import Joint, partition
from flame.compiler.simplify import simplify
from flame.ops.replay import fitted
from flame.primitive import Rule, registered, takes_none


def pull_back(
    builder: Builder,
    of: Sequence[Value],
    cotangents: Sequence[Value],
    wrt: Sequence[Value],
    blocked: Collection[Value] = (),
) -> list[Value | None]:
    """The cotangents of `wrt`, given those of the values `of`; None where no derivative flows.

    All values are of `builder`'s graph, to which the nodes of the backward pass are appended. Nothing flows through the
    `blocked` values (what a user detached). Cotangents are added in reverse order of the uses, as eager differentiation
    does. A value both in `of` and `wrt` has its own cotangent among what is added.
    """
    nodes = list(builder.graph.nodes)
    reached = _reached(nodes, wrt, blocked)
    flowing: dict[Value, Value] = {}
    before = builder.note, builder.source
    with builder:
        for v, g in zip(of, cotangents, strict=True):
            if g.spec != v.spec:
                raise RuntimeError(f"pull_back: the cotangent of {v} must be {v.spec}, but it is {g.spec}")
            _accumulate(flowing, v, g)
        for n in reversed(nodes):
            if reached.isdisjoint(n.outputs) or not any(o in flowing for o in n.outputs):
                continue
            builder.note = f"{n.note or n.primitive.name} backward"
            builder.source = n.source
            _through(n, flowing, reached)
    builder.note, builder.source = before
    return [flowing.get(v) for v in wrt]


def _reached(nodes: Iterable[Node], wrt: Iterable[Value], blocked: Collection[Value]) -> set[Value]:
    """The values that vary smoothly with `wrt`, themselves among them."""
    barred = set(blocked)
    reached = {v for v in wrt if v.dtype.is_floating_point} - barred
    for n in nodes:
        for i, v in enumerate(n.operands):
            if isinstance(v, Value) and v in reached and n.primitive.rule(i) is not None:
                reached.update(o for o in n.outputs if o.dtype.is_floating_point and o not in barred)
                break
    return reached


def _through(n: Node, flowing: dict[Value, Value], reached: set[Value]) -> None:
    """Add to `flowing` what a node passes on to its operands."""
    p = n.primitive
    if len(n.outputs) == 1:
        g: Any = flowing[n.output]
        y: Any = n.output
    else:
        full = registered("full")
        g = tuple(flowing.get(o) for o in n.outputs)
        if not takes_none(p):
            g = tuple(full(0, shape=o.shape, dtype=o.dtype) if c is None else c for c, o in zip(g, n.outputs, strict=True))
        y = n.outputs
    if isinstance(p.vjp, Rule) and p.vjp.joint:
        for x, got in zip(n.operands, p.vjp.apply(g, y, *n.operands, **n.params), strict=True):
            if isinstance(x, Value) and x in reached and got is not None:
                _accumulate(flowing, x, fitted(got, x))
        return
    for i, x in enumerate(n.operands):
        if not isinstance(x, Value) or x not in reached or (rule := p.rule(i)) is None:
            continue
        which = {"operand": i} if isinstance(p.vjp, Rule) else {}
        got = rule.apply(g, y, *n.operands, **n.params, **which)
        if got is not None:
            _accumulate(flowing, x, fitted(got, x))


def _accumulate(flowing: dict[Value, Value], v: Value, g: Value) -> None:
    flowing[v] = registered("add")(flowing[v], g) if v in flowing else g


def joint_graph(
    graph: Graph, wrt: Sequence[int], of: Sequence[int], blocked: Collection[Value] = ()
) -> tuple[Graph, tuple[int | None, ...]]:
    """One graph of `graph`'s results and gradients, and the place of each gradient among its results.

    `wrt` numbers inputs, `of` numbers floating results. The joint graph has, after `graph`'s inputs, one input for each of
    `of` (its cotangent), and after `graph`'s results those gradients that flow; None stands for one that does not.
    """
    for i in of:
        if not graph.outputs[i].dtype.is_floating_point:
            raise RuntimeError(f"only results of floating-point dtype have gradients, but result {i} is {graph.outputs[i]}")
    joint = Graph(list(graph.inputs), list(graph.nodes), list(graph.outputs), graph.name)
    builder = Builder(joint)
    taken = {v.name for v in graph.values()}
    cotangents = []
    for k, v in enumerate(graph.outputs[i] for i in of):
        name = f"d_{v.name}"
        while name in taken:
            name = f"d{k}_{name}"
        taken.add(name)
        cotangents.append(builder.input(v.spec, name))
    got = pull_back(builder, [graph.outputs[i] for i in of], cotangents, [graph.inputs[i] for i in wrt], blocked)
    place: list[int | None] = []
    for g in got:
        place.append(None if g is None else len(joint.outputs))
        if g is not None:
            joint.outputs.append(g)
    return joint, tuple(place)


def differentiate(
    graph: Graph, wrt: Sequence[int], of: Sequence[int], *, optimize: bool = True, blocked: Collection[Value] = ()
) -> Joint:
    """Forward and backward graph of `graph`, for gradients of the results `of` by the inputs `wrt` (both numbered).

    `optimize` simplifies the two as one graph first, so that what both compute is computed once.
    """
    joint, gradients = joint_graph(graph, wrt, of, blocked)
    if optimize:
        joint = simplify(joint)
    return partition(joint, len(graph.inputs), len(graph.outputs), gradients)
