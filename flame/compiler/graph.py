"""The captured graph: SSA over primitives, functional, in order.

    graph   ::= graph(value*) node* -> value*
    node    ::= value, ... = primitive(operand*, param*)          # composite, user's file:line
    operand ::= value | number
    value   ::= %name: dtype[shape]                               no aliasing, no mutation

Views and in-place updates were resolved by capture; a node has no effect but its results. Nodes stand in an order in which
every value is made before it is used. `Graph.verify` re-runs every shape rule. Graphs are built with `Builder`, which is an
interpreter: inside `with builder:` the ordinary primitives append nodes (this is how derivative rules are replayed).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flame.compiler.dims import space_in
from flame.errors import VerificationError
from flame.primitive import Number, Primitive, Spec, interpreting

if TYPE_CHECKING:
    import networkx as nx


class Value:
    """One array of a graph. `node` made it (None: a graph input); `index` is its place among that node's results."""

    __slots__ = ("spec", "node", "index", "name")

    def __init__(self, spec: Spec, node: Node | None = None, index: int = 0, name: str = ""):
        self.spec = spec
        self.node = node
        self.index = index
        self.name = name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def dtype(self) -> Any:
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        return len(self.spec.shape)

    def __repr__(self) -> str:
        return f"%{self.name}: {self.spec}"


Operand = Value | Number


@dataclass(eq=False, slots=True)
class Node:
    """One application of a primitive."""

    primitive: Primitive
    operands: tuple[Operand, ...]
    params: dict[str, Any]
    outputs: tuple[Value, ...] = ()
    note: str = ""  #: the composite that the user called ("softmax"), if any
    source: str = ""  #: the user's "file:line"

    @property
    def output(self) -> Value:
        return self.outputs[0]

    @property
    def values(self) -> Iterator[Value]:
        """Its operands that are values."""
        return (v for v in self.operands if isinstance(v, Value))

    def __repr__(self) -> str:
        return f"{self.outputs[0].name if self.outputs else '?'} = {self.primitive.name}"


@dataclass(eq=False)
class Graph:
    """A function of its inputs. Results may repeat, and may be inputs."""

    inputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    name: str = "graph"

    def values(self) -> Iterator[Value]:
        yield from self.inputs
        for n in self.nodes:
            yield from n.outputs

    def users(self) -> dict[Value, list[Node]]:
        """Who reads each value, in order, once for each node."""
        found: dict[Value, list[Node]] = {v: [] for v in self.values()}
        for n in self.nodes:
            for v in dict.fromkeys(n.values):
                found[v].append(n)
        return found

    def verify(self, after: str = "") -> None:
        """Raise VerificationError unless the grammar holds and every result has the spec that its shape rule gives."""
        seen = set(self.inputs)
        if len(seen) != len(self.inputs):
            raise VerificationError(f"{self.name}: an input is listed twice{after and ' after ' + after}")
        for n in self.nodes:
            for v in n.values:
                if v not in seen:
                    raise VerificationError(f"{n}: operand {v} is used before it is made{after and ' after ' + after}")
            specs = infer(n.primitive, n.operands, n.params)
            if specs != tuple(o.spec for o in n.outputs):
                raise VerificationError(
                    f"{n}: the shape rule gives {[*map(str, specs)]}, the node has {[str(o.spec) for o in n.outputs]}"
                    f"{after and ' after ' + after}"
                )
            for i, o in enumerate(n.outputs):
                if o.node is not n or o.index != i or o in seen:
                    raise VerificationError(f"{n}: result {o} is not its own{after and ' after ' + after}")
                seen.add(o)
        for o in self.outputs:
            if o not in seen:
                raise VerificationError(f"{self.name}: result {o} is never made{after and ' after ' + after}")

    def to_networkx(self) -> nx.DiGraph:
        """Nodes are values' names, edges run from what is read to what is made; for analysis and drawing."""
        import networkx as nx  # a quarter of what importing flame would take, and few draw

        g: nx.DiGraph = nx.DiGraph(name=self.name)
        for v in self.inputs:
            g.add_node(v.name, label=str(v), kind="input")
        for n in self.nodes:
            for o in n.outputs:
                g.add_node(o.name, label=f"{n.primitive.name}\n{o.spec}", kind=n.primitive.kind)
                for v in n.values:
                    g.add_edge(v.name, o.name)
        return g

    def __str__(self) -> str:
        lines = [f"{self.name}({', '.join(map(repr, self.inputs))})"]
        for n in self.nodes:
            args = [f"%{a.name}" if isinstance(a, Value) else repr(a) for a in n.operands]
            args += [f"{k}={v!r}" for k, v in n.params.items()]
            left = ", ".join(map(repr, n.outputs))
            tail = "  ".join(filter(None, (n.note, n.source)))
            lines.append(f"  {left} = {n.primitive.name}({', '.join(args)})" + (f"    # {tail}" if tail else ""))
        lines.append(f"  -> {', '.join('%' + o.name for o in self.outputs)}")
        return "\n".join(lines)


def infer(primitive: Primitive, operands: Iterable[Operand], params: dict[str, Any]) -> tuple[Spec, ...]:
    """The specs of a node's results, by the primitive's shape rule."""
    return infer_specs(primitive, [v.spec if isinstance(v, Value) else v for v in operands], params)


def infer_specs(primitive: Primitive, operands: list[Spec | Number], params: dict[str, Any]) -> tuple[Spec, ...]:
    """The same, given specs in place of values. Where sizes are symbolic and the rule refuses them as different expressions, it
    is asked again with the equations granted that hold now."""
    try:
        got = primitive.infer(*operands, **params)
    except (RuntimeError, ValueError, IndexError):
        space = next(
            (s for s in map(space_in, (*(o.shape for o in operands if isinstance(o, Spec)), *params.values())) if s), None
        )
        if space is None:
            raise
        with space.granting():
            got = primitive.infer(*operands, **params)
    return got if isinstance(got, tuple) else (got,)


class Builder:
    """An interpreter that appends nodes to a graph. `note` and `source` are stamped on every node it makes."""

    def __init__(self, graph: Graph | None = None):
        self.graph = graph or Graph()
        self.note = ""
        self.source = ""
        taken = (v.name[1:] for v in self.graph.values() if v.name[:1] == "v" and v.name[1:].isdigit())
        self._count = max(map(int, taken), default=-1) + 1
        #: what shape rules answered: of a primitive without parameters on values, by the identity of their specs (held here too)
        self._inferred: dict[tuple, tuple[tuple[Spec, ...], list]] = {}
        self._specs: dict[Spec, Spec] = {}  #: of known sizes: equal ones are made one, so that the above finds them

    def input(self, spec: Spec, name: str = "") -> Value:
        v = Value(spec, None, len(self.graph.inputs), name or f"a{len(self.graph.inputs)}")
        self.graph.inputs.append(v)
        return v

    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        node = self.append(primitive, operands, params)
        return node.outputs[0] if len(node.outputs) == 1 else node.outputs

    def append(self, primitive: Primitive, operands: tuple, params: dict) -> Node:
        node = Node(primitive, operands, params, (), self.note, self.source)
        specs: tuple[Spec, ...] | None = None
        if not params and not any([o.__class__ is not Value for o in operands]):
            held = [o.spec for o in operands]  # type: ignore[union-attr]
            key = (primitive, *map(id, held))
            known = self._inferred.get(key)
            if known is None:
                made = infer_specs(primitive, held, params)  # type: ignore[arg-type]
                known = self._inferred[key] = tuple(map(self._one, made)), held
            specs = known[0]
        outs = []
        for i, spec in enumerate(infer(primitive, operands, params) if specs is None else specs):
            outs.append(Value(spec, node, i, f"v{self._count}"))
            self._count += 1
        node.outputs = tuple(outs)
        self.graph.nodes.append(node)
        return node

    def _one(self, spec: Spec) -> Spec:
        return self._specs.setdefault(spec, spec) if all([type(n) is int for n in spec.shape]) else spec

    def composite(self, f: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """A named function over primitives: its nodes are appended one by one."""
        return f(*args, **kwargs)

    def __enter__(self) -> Builder:
        self._force = interpreting(self)
        self._force.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._force.__exit__(*error)


def identifier(text: str) -> str:
    """`text` made fit to be a name in generated code."""
    return re.sub(r"\W+", "_", text).strip("_") or "x"
