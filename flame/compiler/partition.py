"""A joint graph cut in two: what runs forward, what runs backward, and what is kept in between.

    Joint = forward graph   (inputs)                    -> results, extra residuals
            backward graph  (residuals, cotangents)     -> gradients that flow

Whatever does not depend on a cotangent can run forward. Of that, the backward pass needs some values; each it either reads
(kept since the forward pass: a RESIDUAL) or recomputes from others. The choice is a minimum cut: keeping a value costs the
bytes to write and to read it (to read only, if it is an input or a result anyway), recomputing an elementwise value costs a
part of its bytes by how hard it is, views and constants are free, and reductions, contractions, random draws, gathers and
opaque calls are never recomputed. (After the formulation of AOTAutograd's min-cut partitioner: C. Chen et al. in "PyTorch 2",
ASPLOS 2024; here the price of recomputing is part of the cut, so no further heuristics are needed.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flame.compiler.dims import hint
from flame.compiler.graph import Graph, Node, Operand, Value
from flame.compiler.min_cut import UNBOUNDED, Network
from flame.compiler.program import Decision
from flame.compiler.rewrite import eliminate_dead

#: Prices in sixteenths of a byte moved. A polynomial of 15 steps on a vector takes about as long as streaming its operand
#: through memory; an addition is some fifteenth of that; division and square root are between.
_BYTE = 16
_HARD = 16
_MIDDLE = 4
_EASY = 1
_MIDDLING = frozenset({"div", "sqrt", "rsqrt", "reciprocal"})


@dataclass(frozen=True, slots=True)
class Residual:
    """Where an input of the backward graph comes from: an input or a result of the forward graph, by number."""

    source: Literal["input", "output"]
    index: int


@dataclass(frozen=True, slots=True)
class Joint:
    """`forward` has the original `results` first, then extra residuals. `backward` takes `residuals`, in order, then one
    cotangent for each result that is differentiated. `gradients` has, for each input that was asked for, the number of a
    backward result, or None where no derivative flows."""

    forward: Graph
    backward: Graph
    results: int
    residuals: tuple[Residual, ...]
    gradients: tuple[int | None, ...]
    decisions: tuple[Decision, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the extra residuals."""
        return sum(hint(v.spec.nbytes) for v in self.forward.outputs[self.results :])


def partition(joint: Graph, inputs: int, results: int, gradients: Sequence[int | None]) -> Joint:
    """Cut a joint graph whose first `inputs` inputs and first `results` results are those of the forward function; further
    inputs are cotangents, further results gradients, which `gradients` numbers among all results."""
    joint = eliminate_dead(joint)
    primal, cotangents = joint.inputs[:inputs], joint.inputs[inputs:]
    late = _depends_on(joint, cotangents)
    forward_nodes = [n for n in joint.nodes if n.output not in late]
    backward_nodes = [n for n in joint.nodes if n.output in late]
    wanted = dict.fromkeys(v for n in backward_nodes for v in n.values if v not in late)
    wanted |= dict.fromkeys(v for v in joint.outputs[results:] if v not in late)
    constants = _constants(forward_nodes)

    kept = _cheapest(forward_nodes, primal, joint.outputs[:results], wanted, constants)
    redone = _recomputed(forward_nodes, wanted, kept)

    place = {v: Residual("input", i) for i, v in enumerate(primal)}
    for i, v in enumerate(joint.outputs[:results]):
        place.setdefault(v, Residual("output", i))
    outputs = joint.outputs[:results]
    residuals = []
    for v in kept:
        if v not in place:
            place[v] = Residual("output", len(outputs))
            outputs.append(v)
        residuals.append(place[v])
    forward = eliminate_dead(Graph(list(primal), forward_nodes, outputs, joint.name))
    done = set(forward.nodes)
    backward = _copied(kept, cotangents, [*redone, *backward_nodes], joint.outputs[results:], f"{joint.name}_backward")
    return Joint(
        forward,
        backward,
        results,
        tuple(residuals),
        tuple(None if g is None else g - results for g in gradients),
        _explained(kept, [n for n in redone if n in done], place, results),
    )


def _depends_on(graph: Graph, inputs: Iterable[Value]) -> set[Value]:
    """The inputs and everything made from them."""
    late = set(inputs)
    for n in graph.nodes:
        if any(v in late for v in n.values):
            late.update(n.outputs)
    return late


def _constants(nodes: Iterable[Node]) -> set[Value]:
    """Values that depend on no input: they are made again where they are needed, never kept, if that is cheap."""
    out: set[Value] = set()
    for n in nodes:
        if _price(n) is not None and all(v in out for v in n.values):
            out.update(n.outputs)
    return out


def _price(n: Node) -> int | None:
    """What recomputing a node's results costs; None where it is out of the question."""
    match n.primitive.kind:
        case "create":
            return 0
        case "movement":
            return 0 if n.primitive.view else _EASY * hint(n.output.spec.nbytes)
        case "elementwise":
            if n.primitive.scalar is not None and n.primitive.scalar.define is not None:
                return _HARD * hint(n.output.spec.nbytes)
            return (_MIDDLE if n.primitive.name in _MIDDLING else _EASY) * hint(n.output.spec.nbytes)
    return None


def _cheapest(
    nodes: Sequence[Node], primal: Sequence[Value], results: Sequence[Value], wanted: Iterable[Value], constants: set[Value]
) -> list[Value]:
    """The values to keep, in the order in which they are made.

    A value v is an edge v_in -> v_out; on the source's side of a cut stands what exists after the forward pass, on the sink's
    side what the backward pass has to make. Cutting v's edge keeps v. Its operands' v_out -> v_in edges have no bound: what
    is recomputed needs its operands. The source's edge to v_in is the price of recomputing v.
    """
    net = Network()
    needed = _upstream(nodes, wanted)
    free = {*primal, *results}
    ends: dict[Value, tuple[int, int]] = {}
    order: list[Value] = []

    def enter(v: Value, price: int) -> tuple[int, int]:
        a, b = net.node(), net.node()
        ends[v] = a, b
        order.append(v)
        if price:
            net.edge(0, a, price)
        # empty arrays cost one unit, so that keeping nothing is cheaper than keeping them
        net.edge(a, b, max(1, hint(v.spec.nbytes) * _BYTE * (1 if v in free else 2)))
        return a, b

    for v in primal:
        if v in needed:
            enter(v, UNBOUNDED)
    for n in nodes:
        if not any(o in needed for o in n.outputs):
            continue
        price = _price(n)
        for o in n.outputs:
            if o in constants:
                continue
            a, _ = enter(o, UNBOUNDED if price is None else price)
            if price is not None:
                for v in n.values:
                    if v not in constants:
                        net.edge(ends[v][1], a)
    for v in wanted:
        if v not in constants:
            net.edge(ends[v][1], 1)
    kept_side = net.source_side()
    return [v for v in order if kept_side[ends[v][0]] and not kept_side[ends[v][1]]]


def _upstream(nodes: Sequence[Node], wanted: Iterable[Value]) -> set[Value]:
    """What could be kept in place of the wanted values: they, and what they can be recomputed from."""
    needed = set(wanted)
    for n in reversed(nodes):
        if _price(n) is not None and any(o in needed for o in n.outputs):
            needed.update(n.values)
    return needed


def _recomputed(nodes: Sequence[Node], wanted: Iterable[Value], kept: Iterable[Value]) -> list[Node]:
    """The forward nodes that run again to make the wanted values from the kept ones."""
    have, missing = set(kept), set(wanted)
    missing -= have
    out = []
    for n in reversed(nodes):
        if any(o in missing for o in n.outputs):
            out.append(n)
            missing.update(v for v in n.values if v not in have)
    return out[::-1]


def _copied(
    kept: Sequence[Value], cotangents: Sequence[Value], nodes: Iterable[Node], outputs: Sequence[Value], name: str
) -> Graph:
    """The backward graph: nodes of the joint graph on inputs of its own."""
    now: dict[Value, Value] = {}
    graph = Graph(name=name)
    for i, v in enumerate([*kept, *cotangents]):
        now[v] = Value(v.spec, None, i, v.name)
        graph.inputs.append(now[v])

    def moved(x: Operand) -> Operand:
        return now[x] if isinstance(x, Value) else x

    for n in nodes:
        copy = Node(n.primitive, tuple(map(moved, n.operands)), n.params, (), n.note, n.source)
        copy.outputs = tuple(Value(o.spec, copy, o.index, o.name) for o in n.outputs)
        for o, new in zip(n.outputs, copy.outputs, strict=True):
            now.setdefault(o, new)  # a result that was kept stays the kept one
        graph.nodes.append(copy)
    graph.outputs = [now[o] for o in outputs]
    return graph


def _explained(
    kept: Iterable[Value], redone: Iterable[Node], place: dict[Value, Residual], results: int
) -> tuple[Decision, ...]:
    told = []
    for v in kept:
        r = place[v]
        if r.source == "output" and r.index >= results:
            why = "recomputing it costs more" if v.node is not None and _price(v.node) is not None else "it can't be recomputed"
            told.append(Decision("saved", repr(v), f"{hint(v.spec.nbytes)} bytes for the backward pass; {why}"))
    told += [Decision("recomputed", repr(n.output), f"{n.primitive.name} again costs less than keeping it") for n in redone]
    return tuple(told)
