"""Which values of a graph may stand in memory, before anything is grouped: the ROOTS of kernels.

    choose_roots(graph, target) -> Plan

A root is computed by some kernel, and may be stored by it; every other value is computed where it is read, as often as it is
read. Roots are: results; reductions and contractions; what a library call reads; the end of the pointwise chain that only one
contraction feeds (its store sinks below the chain, which becomes its epilogue); what a contraction computes its products
from; and a value that is read more than once and costs more to rebuild than to keep. Being a root is an offer: where a kernel
turns out to hold a root and all its readers, the root is not stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flame import dtypes
from flame.compiler.attention_kernels import has_kernels, reads_through_views
from flame.compiler.cost import LARGE, operations, rates
from flame.compiler.dims import hint
from flame.compiler.graph import Graph, Node, Value
from flame.compiler.kernel import Kernel
from flame.compiler.lower import describe
from flame.compiler.program import Decision
from flame.compiler.rewrite import eliminate_dead
from flame.compiler.target import Target

#: nodes and arrays that one root may be computed from: longer chains are cut
_LONGEST, _WIDEST = 48, 24
#: multiply-adds from which on a library's matmul is worth leaving the compiled code for
LIBRARY_WORK = 1 << 20


@dataclass(slots=True)
class Plan:
    """`roots` in graph order, each with the values in memory that its kernel reads, and the nodes in between.

    `calls` are the nodes that stay calls, with the reason, or (`chained`) have kernels of their own, with what those read,
    and (`made`) those kernels; `library` the contractions that a library runs where it may; `running` the sums that are stored so
    that not all of their terms are there at once.
    """

    graph: Graph
    roots: dict[Value, None] = field(default_factory=dict)
    reads: dict[Value, frozenset[Value]] = field(default_factory=dict)
    depth: dict[Value, int] = field(default_factory=dict)
    calls: dict[Node, str] = field(default_factory=dict)
    chained: dict[Node, frozenset[Value]] = field(default_factory=dict)
    made: dict[Node, list[tuple[Kernel, dict[str, Value]]]] = field(default_factory=dict)
    library: dict[Value, Node] = field(default_factory=dict)
    running: frozenset[Value] = frozenset()
    decisions: list[Decision] = field(default_factory=list)

    def in_memory(self, v: Value) -> bool:
        return v.node is None or v in self.roots or v.node in self.calls


def choose_roots(graph: Graph, target: Target, called: dict[Node, str], stored: Iterable[Value]) -> Plan:
    """The plan of a graph. `called` are nodes that no kernel can hold, `stored` values that have to be roots, as was found
    when their readers were lowered."""
    plan = Plan(Graph(graph.inputs, eliminate_dead(graph).nodes, graph.outputs, graph.name))
    users = plan.graph.users()
    outputs = set(graph.outputs)
    plan.calls = dict(called)
    for n in plan.graph.nodes:
        if n.primitive.scalar is None and n.primitive.lower is None:
            plan.calls[n] = n.primitive.refused.get("lower") or n.primitive.refused.get("scalar") or "it has no kernel form"
            if has_kernels(n, target):
                plan.chained[n] = frozenset()
    wanted = _wanted(plan, target, users, outputs)
    wanted.update((v, "its reader needs it in memory") for v in stored)
    _walk(plan, target, users, outputs, wanted)
    return plan


def beneath_views(v: Value) -> Value:
    """The value that `v` shows through permutations, reshapes and the like."""
    while v.node is not None and v.node.primitive.view and isinstance(v.node.operands[0], Value):
        v = v.node.operands[0]
    return v


def _computed(v: Value) -> bool:
    return v.node is not None and v.node.primitive.kind != "create"


def _wanted(plan: Plan, target: Target, users: dict[Value, list[Node]], outputs: set[Value]) -> dict[Value, str]:
    """Values that are roots whatever they cost, with the reason ("" where it goes without saying)."""
    wanted: dict[Value, str] = {v: "" for v in outputs if v.node is not None}
    for n in plan.graph.nodes:
        kind = n.primitive.kind
        if n in plan.chained:  # what scores are biased and kept by is computed there
            bases = map(beneath_views, reads_through_views(n))
            wanted.update((v, f"{describe(n)} reads it") for v in bases if v.node is not None)
        elif n in plan.calls:
            wanted.update((v, f"{describe(n)} is a call that reads it") for v in n.values if v.node is not None)
        elif kind == "reduce":
            wanted[n.output] = ""
        elif kind == "contract":
            wanted[n.output] = ""
            if target.library_matmul and _is_library_matmul(n, users[n.output]):
                plan.library[n.output] = n
            for v in n.values:
                base = beneath_views(v)
                if _computed(base):
                    wanted.setdefault(base, f"{describe(n)} reads it")
        elif kind == "index":
            for v in n.values:
                base = beneath_views(v)
                if _computed(base) and hint(base.spec.numel) < hint(n.output.spec.numel):
                    wanted.setdefault(base, f"{describe(n)} reads its elements more than once")
    plan.running = frozenset(_running_sums(plan, wanted))
    wanted.update((v, "a running sum, whose terms need not be there together") for v in plan.running)
    ends: dict[Value, Value | None] = {}
    for n in plan.graph.nodes:
        if n.primitive.kind == "contract" and n not in plan.calls and n.output not in plan.library:
            end = _end_of_chain(n.output, users, outputs, wanted, ends)
            if end is not n.output:
                wanted.setdefault(end, f"the epilogue of {describe(n)} ends here")
    return wanted


def _running_sums(plan: Plan, wanted: Mapping[Value, str]) -> list[Value]:
    """Large sums of contractions that are summed further: a loop's weight gradients. In one kernel, all of them would be in memory
    at once; kept in between, each is its contraction's epilogue, over the sum so far."""
    terms: dict[Value, int] = {}  # how many arrays of its size a value is computed of
    found = []
    for n in plan.graph.nodes:
        v = n.output if len(n.outputs) == 1 else None
        if v is None or hint(v.spec.nbytes) < LARGE:
            continue
        if n.primitive.kind == "contract":
            terms[v] = 1
        elif v in wanted or not (n.primitive.scalar is not None or n.primitive.view):
            continue
        else:
            operands = [x for x in n.values if x in terms and x.spec.numel == v.spec.numel]
            terms[v] = sum(terms[x] for x in operands)
            if n.primitive.name == "add" and len(operands) == 2 and terms[v] > 2:
                most = max(operands, key=terms.__getitem__)
                if terms[most] > 1:
                    found.append(most)
                    terms[v] -= terms[most] - 1
    return found


def _end_of_chain(
    v: Value,
    users: dict[Value, list[Node]],
    outputs: set[Value],
    wanted: dict[Value, str],
    ends: dict[Value, Value | None],
) -> Value:
    """The last pointwise value in the chain that `v` alone feeds, element for element.

    `ends` has the last one after each value that a chain went through before (None: there is none): the chains of an
    unrolled loop's weight gradients meet in one long sum.
    """
    path, at, numel = [v], v, v.spec.numel
    end: Value | None = None
    while len(users[at]) == 1 and at not in outputs and (at is v or at not in wanted):
        n = users[at][0]
        if len(n.outputs) != 1 or n.output.spec.numel != numel:
            break
        if n.primitive.scalar is None and not (n.primitive.view and n.primitive.kind == "movement"):
            break
        at = n.output
        path.append(at)
        if at in ends:
            end = ends[at]
            break
    for x in reversed(path[1:]):
        ends[x] = end
        if end is None and x.node is not None and x.node.primitive.scalar is not None:
            end = x
    while end is not None and end is not v and end.node is not None and end.node.primitive.name == "cast":
        (narrow,) = end.node.values  # (stored as it is, and cast where it is read, if the cast makes more bytes of it)
        if narrow.dtype.itemsize >= end.dtype.itemsize:
            break
        end = narrow
    return v if end is None else end


def _is_library_matmul(n: Node, users: list[Node]) -> bool:
    """Is it one large product of matrices that a library reads where they lie, and not summed further at once?"""
    if n.primitive.name != "matmul" or n.output.dtype not in (dtypes.float32, dtypes.float64):
        return False
    a, b = n.operands
    if not isinstance(a, Value) or not isinstance(b, Value) or not _library_reads(a) or not _library_reads(b):
        return False
    each = math.prod(n.output.shape[-2:]) * a.shape[-1]
    whole = n.output.spec.numel * a.shape[-1]
    summed = len(users) == 1 and users[0].primitive.kind == "reduce"
    return hint(each) >= LIBRARY_WORK // 4 and hint(whole) >= LIBRARY_WORK and not summed


def _library_reads(v: Value) -> bool:
    """Can a matrix library read `v` as a view of memory: strides exist, and one of the last two dimensions has stride 1?"""
    strides = strides_of(v)
    if strides is None:
        return False
    (m, n), (row, column) = v.shape[-2:], strides[-2:]
    return (column == 1 and (row >= n or m == 1)) or (row == 1 and (column >= m or n == 1))


def strides_of(v: Value) -> list[int] | None:
    """The strides of a view in elements of the contiguous value beneath it; None if it is not one without a copy."""
    node = v.node
    if node is None or not node.primitive.view or not isinstance(node.operands[0], Value):
        return [math.prod(v.shape[i + 1 :]) for i in range(v.ndim)]
    x = node.operands[0]
    under = strides_of(x)
    if under is None:
        return None
    match node.primitive.name:
        case "permute":
            return [under[i] for i in node.params["dims"]]
        case "expand":
            lead = v.ndim - x.ndim
            return [0] * lead + [
                0 if n != v.shape[lead + i] else s for i, (n, s) in enumerate(zip(x.shape, under, strict=True))
            ]
        case "reshape":
            return _reshaped(x.shape, under, v.shape)
    return None


def _reshaped(old: tuple[int, ...], strides: list[int], new: tuple[int, ...]) -> list[int] | None:
    """Strides after a reshape that copies nothing: each new dimension lies inside a run of old ones that are contiguous."""
    runs: list[tuple[int, int]] = []  # (size, stride), outermost first, neighbours joined where contiguous
    for n, s in zip(old, strides, strict=True):
        if n == 1:
            continue
        if runs and runs[-1][1] == s * n:
            runs[-1] = (runs[-1][0] * n, s)
        else:
            runs.append((n, s))
    out: list[int] = []
    size, step = runs.pop() if runs else (1, 1)
    for n in reversed(new):
        if n == 1:
            out.append(step)
            continue
        if size == 1 and runs:
            size, step = runs.pop()
        if size % n:
            return None
        out.append(step)
        size, step = size // n, step * n
    return out[::-1]


def _only_at_scores(plan: Plan, v: Value, users: list[Node]) -> bool:
    """Is `v` read where kernels of their own compute it a tile at a time, and nowhere else? Its array may be a large one."""
    return all(n in plan.chained and v not in reads_through_views(n) for n in users)


def _walk(plan: Plan, target: Target, users: dict[Value, list[Node]], outputs: set[Value], wanted: dict[Value, str]) -> None:
    """Decide on every value in order, and note what each root reads."""
    price = rates(target)
    leaves: dict[Value, frozenset[Value]] = {}
    between: dict[Value, frozenset[Node]] = {}
    for n in plan.graph.nodes:
        if n in plan.chained:
            read: set[Value] = set()
            for x in n.values:
                read |= {x} if plan.in_memory(x) else leaves[x]
            plan.chained[n] = frozenset(read)
        if n in plan.calls:
            continue
        v = n.output
        reads: set[Value] = set()
        nodes: set[Node] = {n}
        for x in n.values:
            if plan.in_memory(x):
                reads.add(x)
            else:
                reads |= leaves[x]
                nodes |= between[x]
        reason = wanted.get(v)
        uses = len(users[v])
        if reason is None and uses > 1 and n.primitive.kind != "create" and not _only_at_scores(plan, v, users[v]):
            work = sum(operations(m.primitive, m.output.dtype, len(m.operands)) * hint(m.output.spec.numel) for m in nodes
                       if m.primitive.scalar is not None or m.primitive.kind == "random")  # fmt: skip
            touched = sum(min(hint(x.spec.nbytes), hint(v.spec.numel) * x.dtype.itemsize) for x in reads)
            rebuild = touched / price.bandwidth + work / price.operations
            keep = rebuild + uses * hint(v.spec.nbytes) / price.bandwidth + price.launch / 2
            if keep <= uses * rebuild:
                reason = f"read {uses} times: {keep:.0f} ns to keep, {uses * rebuild:.0f} ns to rebuild each time"
        if reason is None and (len(nodes) > _LONGEST or len(reads) > _WIDEST):
            reason = f"computed by {len(nodes)} nodes from {len(reads)} arrays: the chain is cut here"
        if reason is None:
            leaves[v], between[v] = frozenset(reads), frozenset(nodes)
            continue
        plan.roots[v] = None
        plan.reads[v] = frozenset(reads)
        plan.depth[v] = len(nodes)
        if reason:
            plan.decisions.append(Decision("stored", describe(v), reason))
