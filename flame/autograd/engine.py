"""Backward: walking the tape from results to leaves.

`backward(tensors, ...)` accumulates into leaves; `grad(outputs, inputs, ...)` returns cotangents. Both end in `run_engine`: nodes
in reverse topological order, each called once with the sum of its cotangents (Linnainmaa 1970; the order is that of a
depth-first walk over edges, as in Autograd by Maclaurin et al. 2015). With `create_graph` the rules themselves are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Protocol
from weakref import WeakSet

from flame.autograd.anomaly import applied
from flame.autograd.saving import anomaly
from flame.autograd.tape import AccumulateGrad, Edge, edge, filled
from flame.precision import in_force, put_in_force
from flame.primitive import force, registered
from flame.tensor import Tensor

add, copy = registered("add"), registered("copy")


class Clock(Protocol):
    """Who measures what passes through the tape take: each that the user begins runs inside of `passing()`."""

    def passing(self) -> AbstractContextManager[None]: ...


clocks: WeakSet[Clock] = WeakSet()


def topological(roots: Sequence[Edge], barrier: Collection[Edge] = ()) -> list:
    """The nodes that the roots reach, not going through the edges of `barrier`, each before those it sends cotangents to."""
    return walk(roots, barrier)[0]


def walk(roots: Sequence[Edge], barrier: Collection[Edge] = ()) -> tuple[list, dict[Any, set[int]]]:
    """The same, and of nodes that stand for a captured segment the results that are reached: only what these depend on is gone
    through."""
    order: list = []
    seen: set = set()
    for root, _ in roots:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(root.edges))]
        while stack:
            node, rest = stack[-1]
            for e in rest:
                if e is not None and e[0] not in seen and e not in barrier:
                    seen.add(e[0])
                    stack.append((e[0], iter(e[0].edges)))
                    break
            else:
                order.append(node)
                stack.pop()
    order.reverse()
    if not any([hasattr(kind, "reaching") for kind in set(map(type, order))]):
        return order, {}
    reached: dict[Any, set[int]] = {}
    for node, i in roots:
        reached.setdefault(node, set()).add(i)
    for node in order:
        results = reached.get(node)
        if results is None:
            continue
        edges = node.edges
        if hasattr(node, "reaching"):
            edges = [e for i in results for e in node.reaching(i)]
        for e in edges:
            if e is not None and e not in barrier:
                reached.setdefault(e[0], set()).add(e[1])
    order = [node for node in order if node in reached]
    return order, {node: reached[node] for node in order if hasattr(node, "reaching")}


def let_go(order: Sequence[Any], segments: dict[Any, set[int]]) -> None:
    """What a walk came through is not differentiated again."""
    for node in order:
        if node in segments:
            node.release(segments[node])
        elif not isinstance(node, AccumulateGrad):
            node.release()


def run_engine(
    roots: Sequence[Edge],
    cotangents: Sequence[Any],
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
    wanted: Sequence[Edge] | None = None,
    barrier: Collection[Edge] = (),
    deaf: bool = False,
    called: Sequence = (),
) -> dict[Edge, Any]:
    """Propagate; accumulate into leaves if `wanted` is None, else collect (and return) the cotangents of `wanted` edges.

    Nothing flows on beyond the edges of `barrier`, and what leads to none of the wanted ones is not gone through. A node may
    stand for a whole captured segment (it has `reaching`): where a hook or a wanted edge lies inside of what it stands for, it is
    asked to go through its operations one by one; where these were made before, and have hooks, it stands aside for them. Hooks
    are not called if it is `deaf`, nor are those that were `called` before.
    """
    stop = frozenset(barrier)
    order, segments = walk([r for r in roots if r not in stop], stop)
    aside = {node for node in segments if node.aside}  # (as it was for the walk: hooks may change it)
    asked_for: dict[Edge, Edge] = {}
    if aside and wanted is not None:
        asked_for = {(node, i): node.inside[i] for node, i in wanted if node in aside and (node, i) not in stop}
        wanted = [asked_for.get(e, e) for e in wanted]
    pending: dict[Any, dict[int, Any]] = {}
    before, casts = force.grad, in_force.casts
    force.grad = create_graph
    if casts is not None:  # a gradient has the dtype that its forward operation chose
        put_in_force(None)
    collected: dict[Edge, Any] = {}
    needed: set | None = None
    partly: set[Edge] = set()  # results of whole segments, not every one of which leads on

    def leads(e: Edge | None) -> bool:
        if e is None:
            return False
        if e in stop:
            return e in targets
        return e in partly if hasattr(e[0], "reaching") else e[0] in needed  # type: ignore[operator]

    if wanted is not None:
        targets = set(wanted)
        target_nodes = {e[0] for e in targets}
        needed = set()
        for node in reversed(order):
            if hasattr(node, "reaching"):
                on = [i for i in range(len(node.outputs)) if _on_the_way(node, i, targets) or any(map(leads, node.reaching(i)))]
                partly.update((node, i) for i in on)
                if on:
                    needed.add(node)
            elif node in target_nodes or any(map(leads, node.edges)):
                needed.add(node)
    try:
        for (node, i), g in zip(roots, cotangents, strict=True):
            if (node, i) in stop:
                collected[(node, i)] = add(collected[(node, i)], g) if (node, i) in collected else g
            else:
                _accumulate(pending, node, i, g)
        plain = needed is None and not stop and not segments and not anomaly.on
        if plain:
            go_through(order, pending, create_graph, deaf, called)
        for node in () if plain else order:
            gs = pending.pop(node, None)
            if gs is None or (needed is not None and node not in needed):
                continue
            if node in aside:
                inside = node.inside
                _spread(pending, collected, stop, [inside[i] for i in gs], list(gs.values()))
                continue
            segment = hasattr(node, "reaching")
            if segment and needed is not None:
                gs = {i: g for i, g in gs.items() if _on_the_way(node, i, targets) or any(map(leads, node.reaching(i)))}
                if not gs:
                    continue
            aims = () if needed is None else [i for i in range(len(node.outputs)) if (node, i) in targets]
            asked = None
            if segment and needed is not None:
                asked = [j for j, e in enumerate(node.operands) if leads(e)]
                asked = None if len(asked) == len(node.operands) else asked
            heard_here: list = []
            if segment and (node.hooks or aims):
                cotangents = [gs.get(i) for i in range(len(node.outputs))]
                if _inside(node, gs, aims) or (node.hooks and not node.serves(cotangents)):
                    got, found = node.open(cotangents, aims, asked)
                    collected.update({(node, i): g for i, g in found.items()})
                    _spread(pending, collected, stop, node.operands, got)
                    continue
            if node.hooks and not deaf:
                heard_here = list(node.hooks)
                _hear(heard_here, gs, called)
            for i in aims:
                if i in gs:
                    collected[(node, i)] = gs[i]
            if isinstance(node, AccumulateGrad):
                if wanted is None:
                    accumulate_into(node, gs[0], create_graph)
                continue
            if needed is not None and segment:
                gs = {i: g for i, g in gs.items() if any(map(leads, node.reaching(i)))}
                if not gs:
                    continue
            elif needed is not None and not any(map(leads, node.edges)):
                continue
            cotangents = [gs.get(i) for i in range(len(node.outputs))]
            if segment and node.hooks and _inside(node, gs, aims):  # a hook hooked what its gradient comes through next
                got, _ = node.open(cotangents, (), asked, heard_here)
            else:
                given = (cotangents, asked) if segment else (cotangents,)
                got = applied(node, partial(node.apply, *given)) if anomaly.on else node.apply(*given)
            _spread(pending, collected, stop, node.operands if segment else node.edges, got)
    finally:
        force.grad = before
        if casts is not None:
            put_in_force(casts)
    if not retain_graph:
        let_go(order, segments)
    for e, real in asked_for.items():
        if real in collected:
            collected[e] = collected[real]
    return collected


def go_through(order: list, pending: dict, create_graph: bool, deaf: bool, called: Sequence) -> None:
    """Call every node once, where all leaves are wanted and no node stands for a segment."""
    for node in order:
        gs = pending.pop(node, None)
        if gs is None:
            continue
        if node.hooks and not deaf:
            _hear(node.hooks, gs, called)
        if type(node) is AccumulateGrad:
            accumulate_into(node, gs[0], create_graph)
            continue
        if len(node.outputs) == 1:
            cotangents = [gs.get(0)]
        else:
            cotangents = [gs.get(i) for i in range(len(node.outputs))]
        got = node.apply(cotangents)
        for e, g in zip(node.edges, got, strict=True):
            if e is not None and g is not None:
                _accumulate(pending, e[0], e[1], g)


def _hear(hooks: Sequence, gs: dict, called: Sequence) -> None:
    """The gradients of a node's results, as its hooks leave them."""
    for entry in list(hooks):
        i, hook = entry
        if gs.get(i) is not None and not any(entry is c for c in called):
            gs[i] = heard(hook, gs[i])


def _on_the_way(segment: Any, i: int, targets: set) -> bool:
    """Whether a wanted edge is a result of a segment, or lies between it and the segment's operands."""
    return (segment, i) in targets or any((segment, j) in targets for j in segment.passing(i))


def _inside(segment: Any, gs: dict, aims: Collection[int]) -> bool:
    """Whether gradient of some result flows through another one of the segment that has a hook or is wanted."""
    watched = {i for i, _ in segment.hooks or ()}.union(aims)
    return any(not watched.isdisjoint(segment.passing(j)) for j, g in gs.items() if g is not None)


def _spread(pending: dict, collected: dict, stop: Collection[Edge], edges: Sequence[Edge | None], got: Sequence[Any]) -> None:
    """Hand the cotangents of a node's operands on."""
    for e, g in zip(edges, got, strict=True):
        if e is None or g is None:
            continue
        if e in stop:
            collected[e] = add(collected[e], g) if e in collected else g
        else:
            _accumulate(pending, e[0], e[1], g)


def _accumulate(pending: dict, node: Any, i: int, g: Any) -> None:
    slots = pending.get(node)
    if slots is None:
        slots = {}
        pending[node] = slots
    have = slots.get(i)
    slots[i] = g if have is None else add(have, g)


def heard(hook: Callable, g: Any) -> Any:
    """A gradient, as a hook leaves it. Raises TypeError where that is no tensor, RuntimeError where it is one of another kind."""
    got = hook(g)
    if got is None:
        return g
    if not isinstance(got, Tensor):
        raise TypeError(f"expected Variable, but hook returned '{type(got).__name__}'")
    name = getattr(hook, "__name__", type(hook).__name__)
    if got.dtype is not g.dtype:
        raise RuntimeError(f"hook '{name}' has changed the type of value (was {g.dtype!r} got {got.dtype!r})")
    if got.shape != g.shape:
        raise RuntimeError(f"hook '{name}' has changed the size of value (was {list(g.shape)} got {list(got.shape)})")
    return got


def accumulate_into(leaf: AccumulateGrad, g: Tensor, create_graph: bool) -> None:
    """leaf.grad += g, if it still wants one. The first one is a copy: rules may hand one tensor to two leaves.

    Raises RuntimeError where the leaf is the result of an operation by now.
    """
    t = leaf.tensor
    if t._node is not None:
        raise RuntimeError("leaf variable has been moved into the graph interior")
    if t._requires_grad:
        accumulate(t, g, create_graph)
    if leaf.post_hooks:
        for hook in list(leaf.post_hooks.values()):
            hook(t)


def accumulate(t: Tensor, g: Tensor, create_graph: bool) -> None:
    """The same for a leaf without hooks."""
    have = t._grad
    if have is None:
        t._grad = g if create_graph else copy(g)
    elif have.shape != g.shape:
        _refuse_shape(t, have, g)
    elif create_graph:
        t._grad = add(have, g)
    else:
        have.add_(g)  # type: ignore[attr-defined]


def _refuse_shape(t: Tensor, have: Tensor, g: Tensor) -> None:
    raise RuntimeError(
        f"a gradient of shape {list(g.shape)} can't be added to .grad of shape {list(have.shape)}: the tensor, of shape "
        f"{list(t.shape)} now, was given data of another shape meanwhile. Set .grad to None, and differentiate before that"
    )


def start(outputs: Sequence[Tensor], given: Sequence[Any] | None, op: str) -> tuple[list[Edge], list[Any]]:
    """Edges and first cotangents, checked."""
    if given is None:
        given = [None] * len(outputs)
    if len(given) != len(outputs):
        raise RuntimeError(f"{op}: got {len(outputs)} tensors and {len(given)} gradients")
    edges, gs = [], []
    for i, (t, g) in enumerate(zip(outputs, given, strict=True)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: element {i} is a {type(t).__name__}, expected a Tensor")
        e = edge(t)
        if e is None:
            raise RuntimeError(f"element {i} of tensors does not require grad and does not have a grad_fn")
        if g is None:
            if t.numel() != 1:
                raise RuntimeError(
                    f"grad can be implicitly created only for scalar outputs; this one has shape {list(t.shape)}"
                )
            if t.dtype.is_complex:
                raise RuntimeError(f"grad can be implicitly created only for real scalar outputs but got {t.dtype!r}")
            g = filled(1, t)
        else:
            if not isinstance(g, Tensor):
                raise TypeError(f"gradients can be either Tensors or None, but got {type(g).__name__}")
            if g.shape != t.shape:
                raise RuntimeError(
                    f"Mismatch in shape: grad_output[{i}] has a shape of {list(g.shape)} and output[{i}] has a shape of "
                    f"{list(t.shape)}."
                )
            if g.dtype is not t.dtype:
                g = registered("cast")(g, dtype=t.dtype)
        edges.append(e)
        gs.append(g)
    return edges, gs


def _timed(f: Callable, *arguments: Any) -> Any:
    """A pass that the user began, under the eyes of all clocks."""
    with ExitStack() as stack:
        for clock in list(clocks):
            stack.enter_context(clock.passing())
        return f(*arguments)


def _tensors(x: Any) -> list:
    return [x] if isinstance(x, Tensor) or x is None else list(x)


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    grad_variables: Any = None,
    inputs: Any = None,
) -> None:
    """Sum the gradients of `tensors` into the `.grad` of the leaves (or of `inputs` alone).

    Raises RuntimeError where a tensor needs no gradient, a non-scalar is given no gradient, or the graph was freed.
    """
    ts = _tensors(tensors)
    given = None if grad_tensors is None else _tensors(grad_tensors)
    retain = create_graph if retain_graph is None else retain_graph
    leaves = None if inputs is None else _tensors(inputs)
    if leaves is not None and not leaves:
        raise RuntimeError("'inputs' argument to backward() cannot be empty.")
    run = force.interpreter
    if run is not None:
        run.backward(ts, given, retain, create_graph, leaves)
    elif clocks:
        _timed(eager_backward, ts, given, retain, create_graph, leaves)
    else:
        eager_backward(ts, given, retain, create_graph, leaves)


def eager_backward(ts: list, given: list | None, retain: bool, create_graph: bool, leaves: list | None = None) -> None:
    edges, gs = start(ts, given, "backward")
    if leaves is None:
        run_engine(edges, gs, retain_graph=retain, create_graph=create_graph)
        return
    wanted = []
    for x in leaves:
        e = edge(x)
        if e is None:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
        wanted.append(e)
    got = run_engine(edges, gs, retain_graph=retain, create_graph=create_graph, wanted=wanted)
    deliver([(x, e[0], got.get(e)) for x, e in zip(leaves, wanted, strict=True)], create_graph)


def deliver(gradients: Sequence[tuple[Tensor, Any, Any]], create_graph: bool) -> None:
    """Add what `backward(inputs=...)` found to `.grad`: of leaves (a tensor and its node), and of results."""
    before = force.grad
    force.grad = create_graph
    try:
        for x, node, g in gradients:
            if g is not None and isinstance(node, AccumulateGrad):
                accumulate_into(node, g, create_graph)
            elif g is not None:
                x._grad = g if x._grad is None else add(x._grad, g)
    finally:
        force.grad = before


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple:
    """The gradients of the sum of `outputs` (weighted by `grad_outputs`) with respect to each of `inputs`, as a tuple.

    Raises RuntimeError where an input is not reached and neither `allow_unused` nor `materialize_grads` is set.
    """
    if not only_inputs:
        raise RuntimeError("only_inputs=False is no longer supported: call backward() instead")
    if is_grads_batched:
        raise RuntimeError("is_grads_batched=True is not supported: call grad() once for each row, or use flame.func.vmap")
    ys, xs = _tensors(outputs), _tensors(inputs)
    given = None if grad_outputs is None else _tensors(grad_outputs)
    retain = create_graph if retain_graph is None else retain_graph
    run = force.interpreter
    if run is not None:
        got = run.grad(ys, xs, given, retain, create_graph)
    elif clocks:
        got = _timed(eager_grad, ys, xs, given, retain, create_graph)
    else:
        got = eager_grad(ys, xs, given, retain, create_graph)
    out = []
    for i, (x, g) in enumerate(zip(xs, got, strict=True)):
        if g is None and materialize_grads:
            g = filled(0, x)
        if g is None and not allow_unused:
            raise RuntimeError(
                "One of the differentiated Tensors appears to not have been used in the graph. "
                f"Set allow_unused=True if this is the desired behavior. (It is input {i}, of shape {list(x.shape)}.)"
            )
        out.append(g)
    return tuple(out)


def eager_grad(ys: list, xs: list, given: list | None, retain: bool, create_graph: bool) -> list:
    edges, gs = start(ys, given, "grad")
    wanted = []
    for x in xs:
        e = edge(x)
        if e is None:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
        wanted.append(e)
    got = run_engine(edges, gs, retain_graph=retain, create_graph=create_graph, wanted=wanted)
    return [got.get(e) for e in wanted]
