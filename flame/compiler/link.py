"""From fused kernels to a program: every array gets a slot, every kernel and opaque node becomes a step; and its verifier.

`link` gives temps no place yet: that is `flame.compiler.memory`'s work. `own_results` is to be run on the graph before it is
fused: it sees to it that a result is never an input, so that every result has a step that writes it.
"""

from __future__ import annotations

from collections.abc import Mapping

from flame.compiler.dims import is_symbolic
from flame.compiler.graph import Graph, Node, Value
from flame.compiler.index_math import evaluate
from flame.compiler.kernel import Kernel, Store, numel, typical
from flame.compiler.program import Argument, CallStep, Decision, Fused, KernelStep, Program, Slot, Step
from flame.errors import VerificationError
from flame.primitive import Number, Primitive, registered


def own_results(graph: Graph) -> Graph:
    """The graph with a `copy` where a result is an input: results are memory of their own."""
    inputs = set(graph.inputs)
    if inputs.isdisjoint(graph.outputs):
        return graph
    taken = {v.name for v in graph.values()}
    nodes, outputs = list(graph.nodes), []
    copies: dict[Value, Value] = {}
    for v in graph.outputs:
        if v in inputs and v not in copies:
            node = Node(registered("copy"), (v,), {}, (), "copy of an input")
            name = f"{v.name}_copy"
            while name in taken:
                name += "_"
            taken.add(name)
            copies[v] = Value(v.spec, node, 0, name)
            node.outputs = (copies[v],)
            nodes.append(node)
        outputs.append(copies.get(v, v))
    return Graph(graph.inputs, nodes, outputs, graph.name)


def link(graph: Graph, fused: Fused) -> Program:
    """The program of a graph, from what fusion made of it. Temps have offset 0 still."""
    slots: list[Slot] = []
    place: dict[Value, int] = {}
    decisions = list(fused.decisions)
    results = {v: i for i, v in enumerate(dict.fromkeys(graph.outputs))}

    def enter(v: Value) -> int:
        if v not in place:
            place[v] = len(slots)
            if v in results:
                slots.append(Slot(v.spec, "output", results[v], 0, v.name))
            else:
                slots.append(Slot(v.spec, "temp", 0, 0, v.name))
        return place[v]

    for i, v in enumerate(graph.inputs):
        place[v] = len(slots)
        slots.append(Slot(v.spec, "input", i, 0, v.name))
    read = {x for s in fused.steps for x in (s.values if isinstance(s, Node) else s[1].values())} | set(results)
    steps: list[Step] = []
    for made in fused.steps:
        if isinstance(made, Node):
            arguments = tuple(Argument(_slot(place, x, made)) if isinstance(x, Value) else x for x in made.operands)
            steps.append(CallStep(made, arguments, tuple(enter(o) if o in read else -1 for o in made.outputs)))
            continue
        kernel, values, library = made
        for b, v in values.items():
            if kernel.buffers[b].role == "out":
                enter(v)
        buffers = {b: _slot(place, values[b], kernel) for b in kernel.buffers}
        call = None
        if library is not None:
            call = library_call(kernel, values, buffers, library)
            if call is None:
                decisions.append(
                    Decision("refused", f"library call for {library}", "an operand is not a view of what the kernel reads")
                )
        symbols = typical(kernel) | fused.symbols.get(len(steps), {})
        steps.append(KernelStep(kernel, buffers, symbols, call, _notes(kernel)))
    for v in graph.outputs:
        _slot(place, v, graph.name)
    inputs = tuple(range(len(graph.inputs)))
    return Program(
        graph.name, graph, tuple(slots), tuple(steps), inputs, tuple(place[v] for v in graph.outputs), 0, tuple(decisions)
    )


def _slot(place: Mapping[Value, int], v: Value, reader: object) -> int:
    if v not in place:
        raise VerificationError(f"{reader!r} reads {v}, which no step before it has made")
    return place[v]


def library_call(kernel: Kernel, values: Mapping[str, Value], buffers: Mapping[str, int], node: Node) -> CallStep | None:
    """`node` as a call on the kernel's own buffers, its operands being seen through views; None where they are not."""
    written = [b for b, s in kernel.buffers.items() if s.role != "in"]
    if len(written) != 1 or len(node.outputs) != 1 or values[written[0]] is not node.output:
        return None
    held = {v: buffers[b] for b, v in values.items() if kernel.buffers[b].role == "in"}
    arguments: list[Argument | Number] = []
    for x in node.operands:
        views: list[tuple[Primitive, dict]] = []
        while isinstance(x, Value) and x not in held:
            if x.node is None or not x.node.primitive.view or not isinstance(x.node.operands[0], Value):
                return None
            views.append((x.node.primitive, x.node.params))
            x = x.node.operands[0]
        arguments.append(Argument(held[x], tuple(views[::-1])) if isinstance(x, Value) else x)
    return CallStep(node, tuple(arguments), (buffers[written[0]],))


def _notes(kernel: Kernel) -> tuple[str, ...]:
    found = (getattr(s, "note", "") for s in kernel.statements if not isinstance(s, Store))
    return tuple(dict.fromkeys(filter(None, found)))


def verify_program(program: Program, after: str = "") -> None:
    """Raise VerificationError unless slots, steps and memory agree: buffers fit their slots, nothing is read before it is
    written, inputs that are not updated are never written, every result is, and temps alive at the same time share no memory."""
    where = f"{program.name}{after and ' after ' + after}"

    def check(holds: bool, told: str) -> None:
        if not holds:
            raise VerificationError(f"{where}: {told}")

    written = set(program.inputs)
    for i, s in enumerate(program.slots):
        check((s.kind == "input") == (i in written), f"slot s{i} ({s}) and the list of inputs disagree")
    for step in program.steps:
        if isinstance(step, KernelStep):
            check(list(step.buffers) == list(step.kernel.buffers), f"{step}: the buffers bound are not the kernel's")
            for b, i in step.buffers.items():
                buffer, spec = step.kernel.buffers[b], program.slots[i].spec
                size = numel(buffer)
                fits = spec.numel == (size if is_symbolic(spec.shape) else evaluate(size, step.symbols))
                check(
                    buffer.dtype is spec.dtype and fits,
                    f"{step}: buffer {b} is {size} of {buffer.dtype.name}, slot s{i} is {spec}",
                )
            check(len(set(step.buffers.values())) == len(step.buffers), f"{step}: two buffers are one slot")
        for i in step.reads:
            check(i in written, f"{step}: s{i} is read before it is written")
        for i in step.writes:
            check(program.slots[i].kind != "input" or i in program.updated, f"{step}: the input s{i} is written")
            written.add(i)
    for i in program.outputs:
        check((program.slots[i].kind == "output" or i in program.updated) and i in written, f"the result s{i} is never written")
    _check_memory(program, where)


def _check_memory(program: Program, where: str) -> None:
    """Sweep over the steps with the set of live temps in address order."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for k, step in enumerate(program.steps):
        for i in (*step.reads, *step.writes):
            if program.slots[i].kind == "temp":
                first.setdefault(i, k)
                last[i] = k
    born: dict[int, list[int]] = {}
    for i, k in first.items():
        born.setdefault(k, []).append(i)
    live: list[int] = []
    for k in sorted(born):
        live = [i for i in live if last[i] >= k] + [i for i in born[k] if program.slots[i].bytes]
        live.sort(key=lambda i: program.slots[i].offset)
        end = 0
        for i in live:
            s = program.slots[i]
            if program.arena_bytes and s.offset < end:
                raise VerificationError(f"{where}: {s} (s{i}) overlaps a temp that is alive at the same time")
            end = s.offset + s.bytes
        if program.arena_bytes and end > program.arena_bytes:
            raise VerificationError(f"{where}: the temps need {end} bytes, the arena has {program.arena_bytes}")
