"""A followed path run for real: what happens when the user's Python leaves it, and for derivatives of derivatives.

`run_path` executes steps one by one through the eager interpreter, with the tape, on the tensors that came from outside.
`materialise` does that for a run that has to leave its path, gives every pending tensor its array and its place on the tape, and
applies what was written to outside memory. `fill` is the part of it that compiled segments share.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from flame.autograd.engine import let_go, walk
from flame.autograd.function import Function, FunctionContext, FunctionNode
from flame.autograd.tape import about_to_write, eager, eager_assign
from flame.capture.shared import show_to_tape
from flame.capture.sizes import params_at
from flame.capture.tape_model import op_steps
from flame.capture.trace import Expr, Ref, Slot, Step
from flame.primitive import force
from flame.runtime.device_array import DeviceArray
from flame.runtime.gpu_copy import duplicate, overwrite, view
from flame.symbol import Symbolic, evaluate
from flame.tensor import Tensor, View

_new = object.__new__


def bound(operand: Any, bindings: Sequence[Any], guards: list | None = None) -> Any:
    """A number operand as it is now; slots and expressions stay symbolic for the derivative rules."""
    if type(operand) is Slot:
        return Symbolic(bindings[operand.index], ("slot", operand.index), guards)
    if type(operand) is Expr:
        return Symbolic(evaluate(operand.expr, bindings), operand.expr, guards)
    return operand


def run_path(
    path: Iterable[Step],
    externals: Sequence[tuple[Tensor, Ref, Any]],
    edges: dict[int, Any],
    bindings: Sequence[Any],
    made: Callable[[Tensor, Ref, Any], None] | None = None,
    functions: Mapping[int, FunctionNode] = {},
    wanted: Container[int] | None = None,
) -> tuple[dict[int, Tensor], dict[int, Any]]:
    """Values (as tensors) and tape edges of everything on the path. `made(tensor, ref, node)` is told of each result. `functions`
    are the nodes of custom functions, by their first edge; those that nothing leads through any more need none. Results other than
    the `wanted` are let go after their last use (None: all are kept), so that a path takes no more memory than it took eagerly.

    A write makes a new value, and is counted as a version of the memory that it overwrites: what the tape saved of the old value
    is refused from then on, as if it had been written.
    """
    values: dict[int, Tensor] = {}
    tape: dict[int, Any] = dict(edges)
    path = list(path)
    computed = {r.value for s in path for r in s.outs if s.kind == "op"}
    #: what the tape saves of these is these themselves (but where they show what is written on the path)
    outside = {ref: t for t, ref, _ in externals if ref.value not in computed}
    for t, ref, _ in externals:
        if ref.value not in values:
            values[ref.value] = t

    done = {} if wanted is None else _last_uses(path, wanted)
    here = next((str(t._array.device) for t, _, _ in externals if type(t._array) is DeviceArray), "")

    def tensor(ref: Ref) -> Tensor:
        if ref in outside:
            return outside[ref]
        source = values[ref.value]
        t = _new(Tensor)
        t._array = source._array
        t._storage = source.storage_of()
        t._ref = ref if made is not None else None
        if ref.edge is not None:
            t._node = tape[ref.edge]
        return t

    def run(step: Step) -> None:
        force.grad = step.grad
        operands = tuple([tensor(o) if type(o) is Ref else bound(o, bindings) for o in step.operands])
        params = params_at(step, bindings)
        if here and step.primitive.kind in ("create", "random") and "place" not in params:  # type: ignore[union-attr]
            params = {**params, "place": here}
        got = eager.process(step.primitive, operands, params)  # type: ignore[arg-type]
        outs = got if type(got) is tuple else (got,)
        node = next((t._node[0] for t in outs if t._node is not None), None)
        if step.primitive.view:  # type: ignore[union-attr]
            # Written memory may lie otherwise here than it did: what was a copy is one, what was a view counts as one.
            outs[0]._storage = operands[0].storage_of() if step.view else None
        for r, t in zip(step.outs, outs, strict=True):
            t._view = None
            values[r.value] = t
            if t._node is not None:
                tape[r.edge] = t._node
                t._node[0].source, t._node[0].step = step.source, step
            if made is not None:
                made(t, r, node)
        for v in done.get(id(step), ()):
            del values[v]

    def write(step: Step) -> None:
        target, value, whole = step.operands
        storage = values[target.value].storage_of()
        storage.version += 1
        for r in (value, whole):
            t = _new(Tensor)
            t._array, t._storage = values[r.value]._array, storage
            values[r.value] = t

    def function(step: Step) -> None:
        node = functions.get(step.outs[0].edge) or FunctionNode(Function, FunctionContext(), (), ())
        node.edges = tuple([None if r is None or r.edge is None else tape[r.edge] for r in step.operands])
        for i, r in zip(step.options[1], step.outs, strict=True):
            tape[r.edge] = (node, i)

    before = force.grad, force.interpreter
    force.interpreter = None
    try:
        for step in path:
            if step.kind == "op":
                run(step)
            elif step.kind == "write":
                write(step)
            elif step.kind == "function":
                function(step)
            elif step.kind == "gradient":
                for s in step.inner:
                    run(s)
                n_y, _, _, retain, _ = step.options
                if not retain:
                    let_go(*walk([tape[r.edge] for r in step.operands[:n_y]]))
    finally:
        force.grad, force.interpreter = before
    return values, tape


def _last_uses(path: list[Step], wanted: Container[int]) -> dict[int, list[int]]:
    """By step (its id): the results that nobody asks for after it. Operands of writes are not among them: their arrays say what
    memory holds."""
    last: dict[int, Step] = {}
    written: set[int] = set()
    for s in op_steps(path):
        last.update((r.value, s) for r in s.outs)
        last.update((o.value, s) for o in s.operands if type(o) is Ref and o.value in last)
    for s in path:
        if s.kind == "write":
            written.update(o.value for o in s.operands)
    done: dict[int, list[int]] = {}
    for v, s in last.items():
        if v not in written and v not in wanted:
            done.setdefault(id(s), []).append(v)
    return done


def materialise(run: Any) -> None:
    """Leave the path: everything pending becomes real, and what was pending for outside memory is written."""

    def made(t: Tensor, r: Ref, node: Any) -> None:
        t._ref = r
        run.track(t)
        if node is not None:
            node.segment = run.token
            nodes.append(node)
            for y in node.results:
                if y._array is t._array:
                    y._ref = r
                    run.track(y)

    alive = run.live()
    nodes: list = []
    path = run.path
    windows = [t._trace.window for t in alive if t._trace is not None and t._trace.window is not None] + list(run.written)
    ends = [t for stage in (run.stages or {}).values() for t in stage.ends if t is not None]
    wanted = {t._ref.value for t in (*alive, *ends) if t._ref is not None} | {w.current for w in windows}
    values, tape = run_path(path, run.externals, run.outside_edges(), run.bindings, made, run.functions(), wanted)
    run.stages_are_real(values, tape)
    for t in alive:  # what the tape saved and what the user holds is one memory: a write to one is seen at the other
        if t._array is not None:
            continue
        if t._trace is None:
            t._storage = values[t._ref.value].storage_of()
        elif t._trace.window.external is None:
            t._trace.window.storage = values[t._trace.window.current].storage_of()
    pending = [t for t in alive if t._array is None]
    fill(run, alive, lambda v: duplicate(values[v]._data()), lambda e: tape[e], counted=True)
    if nodes:
        show_to_tape(run, path, pending, values, nodes)


def fill(
    run: Any, alive: Sequence[Tensor], array_of: Callable[[int], Any], edge_of: Callable[[int], Any], counted: bool = False
) -> None:
    """Give pending tensors arrays and edges. `array_of(value)` must be fresh memory at every call, but may be the memory that is
    to be written with the value. `counted`: versions of memory tell of the path's writes already."""
    before = force.grad, force.interpreter
    force.interpreter = None
    try:
        originals = {id(t): r for t, r, _ in run.externals}
        for w in run.written:
            t = w.external
            if t is None:
                continue
            w.storage.pending = None
            versions = 0 if counted else max(w.mutations, 1)
            if t._view is None and t._ref.edge == originals[id(t)].edge:  # data alone: most parameters of a training step
                a = array_of(w.current)
                if a is not t._array:  # (else it was computed there)
                    about_to_write(w.storage)
                    overwrite(t._array, a)
                w.storage.version += versions
                if run.following is False:
                    w.storage.pending = run
                continue
            value = _new(Tensor)
            value._array = array_of(w.current)
            e = t._ref.edge
            changed = e != originals[id(t)].edge
            if changed and e is not None:
                value._node = edge_of(e)
            force.grad = changed
            version = t._version
            eager_assign(t, value)
            t._storage.version = version + versions
            if run.following is False:
                w.storage.pending = run
        for t, ref, w in run.externals if run.written else ():
            e = t._ref.edge
            if w is None and e != ref.edge:  # written where another tensor shows the same memory: that one took the data
                t._node = None if e is None else edge_of(e)
                t._requires_grad = t._requires_grad and e is None
        force.grad = before[0]
        show(alive, array_of, edge_of)
    finally:
        force.grad, force.interpreter = before


def show(alive: Sequence[Tensor], array_of: Callable[[int], Any], edge_of: Callable[[int], Any]) -> None:
    """Give pending tensors their arrays, as views of each other where they are, and edges. (No interpreter is in force.)"""
    waiting = [t for t in alive if t._array is None]
    for t in waiting:
        trace = t._trace
        if trace is None:
            t._array = array_of(t._ref.value)
        else:
            w = trace.window
            if w.external is not None:
                a = w.external._array
            else:
                if w.base is None:
                    w.base = array_of(w.current)
                a = w.base
            for p, items in trace.chain:
                a = p.eager(a, **dict(items)) if type(a) is not DeviceArray else view(p, a, dict(items))
            t._array = a
            t._storage = w.storage
            w.storage.version = max(w.storage.version, w.version) if w.external is None else w.storage.version
    for t in waiting:
        trace, ref = t._trace, t._ref
        if ref.edge is not None:
            t._node = edge_of(ref.edge)
        if trace is not None and trace.root is not None:
            root = trace.root
            rel = trace.chain[len(root._trace.chain) if root._trace is not None else 0 :]
            v = root._view
            stale = type(ref) is not Ref
            version = -1 if stale else t._version
            t._view = View(root, rel, version) if v is None else View(v.base, (*v.chain, *rel), version)
