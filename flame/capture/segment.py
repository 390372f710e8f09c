"""From a followed path to kernels: the graph of a segment, what is compiled for it, and its place on the tape.

A segment's graph has the outside arrays and run-time numbers as inputs, and as results the pending tensors that are still alive at
its end plus what was written to outside memory. Which those are is known only at the flush; the set of a path only grows, so that
it is compiled a few times at most. Where a result carries gradient out of the segment, forward and backward are compiled from one
joint graph and the results hang on one SegmentNode; derivatives of derivatives re-run the path through the eager tape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flame.autograd.tape import about_to_write
from flame.capture import replay
from flame.capture.background import compile_meanwhile, compile_now
from flame.capture.compiled import Compiled, collector_paused, compile_pair, compile_segment
from flame.capture.control import control
from flame.capture.segment_node import SegmentNode, TroubledNode
from flame.capture.sizes import Size, SizedSpec, compiled, condition
from flame.capture.tape_model import TapeModel, model, op_steps
from flame.capture.trace import Capture, Expr, Ref, Slot, Step, Trace, Window
from flame.compiler.dims import Dim, Space, as_tuple
from flame.compiler.graph import Builder, Graph, Value
from flame.dtypes import dtype, int64
from flame.errors import PositionError
from flame.ops.declare import as_operand
from flame.primitive import Spec, placement, registered
from flame.runtime.device import CPU
from flame.runtime.gpu_copy import duplicate, host, overwrite
from flame.symbol import evaluate
from flame.tensor import Tensor

COPY, LT, GE, ANY, LOGICAL_OR, AMIN, AMAX = map(registered, ("copy", "lt", "ge", "any", "logical_or", "amin", "amax"))


class Plan:
    """What is compiled for one path and one set of results."""

    __slots__ = (
        "all_arrays", "arrays", "asked", "backward", "blocked", "device", "differentiated", "differentiated_specs",
        "edges", "extremes", "facts", "flags", "forward", "gradients", "graph", "input_edges", "keeps", "known", "path", "place",
        "positions", "replayed", "residuals", "scalars", "signature", "space", "steady", "updated", "values",
    )  # fmt: skip

    def __init__(self, run: Any, values: frozenset[int], edges: frozenset[int], keeps: bool):
        """`keeps`: the inputs have to outlive it, as they are."""
        self.keeps = keeps
        self.values = tuple(sorted(values))
        self.edges = tuple(sorted(edges))
        builder = Builder(Graph(name=run.capture.name))
        self.path = run.path
        self.device = run.device if placement.gpu else CPU
        self.space = self._sizes(run)
        self.arrays: list[int] = []  #: numbers among the run's externals
        self.scalars: list[tuple[Any, dtype]] = []
        made: dict[int, Value] = {}
        known: dict[Any, Value] = {}
        carrying: dict[int, int | None] = {}  #: value id -> the edge that its graph value stands for
        self.blocked: list[Value] = []
        self.replayed = False
        self.input_edges: list[tuple[int, int]] = []  #: (graph input, edge id)
        for i, (_, ref, _w) in enumerate(run.externals):
            if ref.value in made:
                if ref.edge is not None:
                    self.replayed = True  # one memory under two gradient edges
                continue
            v = made[ref.value] = builder.input(self._spec(ref.spec))
            carrying[ref.value] = ref.edge
            if ref.edge is not None:
                self.input_edges.append((len(self.arrays), ref.edge))
            self.arrays.append(i)
        wanted = bool(edges)
        copies: dict[tuple[int, int | None], Value] = {}

        def operand(o: Any, like: dtype) -> Any:
            if type(o) is Ref:
                v = made[o.value]
                if not wanted or carrying.get(o.value) == o.edge:
                    return v
                if o.edge is not None:
                    self.replayed = True
                    return v
                k = (o.value, None)
                if k not in copies:
                    copies[k] = builder.process(COPY, (v,), {})
                    self.blocked.append(copies[k])
                return copies[k]
            if isinstance(o, Slot | Expr):
                number = (("slot", o.index) if isinstance(o, Slot) else o.expr, like)
                if number not in known:
                    known[number] = builder.input(Spec((), like), f"n{len(self.scalars)}")
                    self.scalars.append(number)
                return known[number]
            return o

        self.signature: list = []  #: of the results asked for last
        #: what that meant: whether one carries gradient; the tape; whether results go straight to where they are wanted
        self.asked: tuple[bool, TapeModel | None, bool] = (False, None, False)
        for step in [s for whole in self.path for s in (op_steps([whole]) if whole.kind != "function" else [whole])]:
            p = step.primitive
            if p is None:  # a custom function: what its forward made, with gradient that is not of these operations
                carrying.update({r.value: r.edge for r in step.outs})
                continue
            like = number_dtype(step)
            builder.note, builder.source = step.note, step.source
            params = {k: self._sized(v) for k, v in step.params.items()} if step.sized else step.params
            node = builder.append(p, tuple([operand(o, like) for o in step.operands]), params)
            for r, v in zip(step.outs, node.outputs, strict=True):
                made[r.value] = v
                carrying[r.value] = r.edge
                if wanted and r.edge is None:
                    self.blocked.append(v)
        graph = builder.graph
        # scalars were added among the arrays: put arrays first
        order = [v for v in graph.inputs if not v.name.startswith("n")] + [v for v in graph.inputs if v.name.startswith("n")]
        graph.inputs[:] = order
        graph.outputs[:] = [made[v] for v in self.values]
        self.positions, flags, extremes = position_checks(self.path, made, builder, operand, self.device.type == "cpu")
        self.flags = [(len(graph.outputs) + i, what) for i, (_, what) in enumerate(flags)]
        graph.outputs += [v for v, _ in flags]
        self.extremes = [(len(graph.outputs) + 2 * i, *about) for i, (_, *about) in enumerate(extremes)]
        graph.outputs += [v for pair, *_ in extremes for v in pair]
        self.graph = graph
        self.place = {v: i for i, v in enumerate(self.values)}
        self.differentiated = [e for e in self.edges if e in self.place]
        if set(self.edges) - set(self.place):
            raise AssertionError("a result's gradient edge is not among the results")
        self.differentiated_specs = tuple(made[e].spec for e in self.differentiated)
        self.known = len(self.space.facts) if self.space is not None else 0
        self.steady = False  #: whether it fits whatever sizes there are
        self.backward: Compiled | None = None
        self.facts: tuple = ()
        self.updated = [] if keeps else self._updates(run)
        #: whether all that came from outside is an input, in order
        self.all_arrays = self.arrays == list(range(len(run.externals)))

    def make(self, capture: Capture) -> None:
        """Compile it. From the graph alone: the run that it came from may be over."""
        if self.edges and not self.replayed:
            self.forward, self.backward, self.residuals, self.gradients = compile_pair(
                capture,
                self.graph,
                [i for i, _ in self.input_edges],
                [self.place[e] for e in self.differentiated],
                self.blocked,
                self.device,
            )
        else:
            self.forward = compile_segment(capture, self.graph, self.updated, [i for i, _ in self.flags], self.device)
            self.residuals, self.gradients = (), ()
        self.facts = tuple(self.space.facts) if self.space is not None else ()
        if self.space is None and not self.forward.symbols:
            self.steady = self.forward.more is None

    def _updates(self, run: Any) -> list[tuple[int, int]]:
        """Pairs (input, result) of outside memory that is written whole: its new value may be computed into it.
        (Not where backward wants what it was.)"""
        number = {run.externals[i][1].value: n for n, i in enumerate(self.arrays)}
        found = []
        for w in run.written:
            t = w.external
            if t is not None and t._view is None and w.current in self.place:
                held = next((r.value for x, r, v in run.externals if v is w and x is t), None)
                if held in number and run.externals[self.arrays[number[held]]][0]._array is t._array:
                    found.append((number[held], self.place[w.current]))
        return found

    def _sizes(self, run: Any) -> Space | None:
        """The symbols of the path, with what holds of them on it."""
        binds = [b for s in self.path for b in s.binds]
        if not binds:
            return None
        names = {f"s{k}": least for k, least, _ in binds if type(run.bindings[k]) is int}
        space = Space({n: run.bindings[int(n[1:])] for n in names}, names)
        for s in self.path:
            for f in s.facts:
                space.learn(f)
        return space

    def _sized(self, x: Any) -> Any:
        """A shape or parameter with Dims in place of Sizes."""
        if type(x) is Size:
            assert self.space is not None
            return self.space.size(x.expr)
        return tuple([self._sized(y) for y in x]) if type(x) is tuple else x

    def _spec(self, spec: Spec) -> Spec:
        return Spec(self._sized(spec.dims), spec.dtype) if type(spec) is SizedSpec else spec

    def fits(self, bindings: list) -> bool:
        """Whether what compiling found out of the sizes holds of those of now."""
        if self.steady:
            return True
        if self.facts and not condition(self.facts)(bindings):
            return False
        return self.forward.more is None or self.forward.serves(self.sizes(bindings))

    def sizes(self, bindings: list) -> dict[str, int]:
        """The values of the symbols."""
        return {} if self.space is None else {n: bindings[int(n[1:])] for n in self.space.values}

    def inputs(self, run: Any) -> list[np.ndarray]:
        externals = run.externals
        out: list = []
        t: Tensor
        if self.all_arrays:
            for t, _, _ in externals:
                out.append(t._array)
        else:
            for i in self.arrays:
                t = externals[i][0]
                out.append(t._array)
        if self.scalars:
            self._append_scalars(run.bindings, out)
        return out

    def _append_scalars(self, bindings: list, out: list) -> None:
        for expr, d in self.scalars:
            value = bindings[expr[1]] if expr[0] == "slot" else evaluate(expr, bindings)
            out.append(scalar_array(value, d))


def scalar_array(value: Any, d: dtype) -> np.ndarray:
    """A run-time number as the 0-d array that kernels read."""
    return np.array(as_operand(value, d.numpy) if d.kind != "f" else value, d.numpy)


def number_dtype(step: Step) -> dtype:
    """The dtype in which a step's number operands are read."""
    p = step.primitive
    assert p is not None
    if p.kind == "random":
        return int64
    if "dtype" in step.params:
        return step.params["dtype"]
    specs = [o.spec for o in step.operands if type(o) is Ref]
    if p.name == "where":
        return step.outs[0].spec.dtype
    return specs[0].dtype if specs else step.outs[0].spec.dtype


def position_checks(
    path: list[Step], made: dict[int, Value], builder: Builder, number: Callable[[Any, dtype], Any], readable: bool = True
) -> tuple[list, list, list]:
    """What must be looked at so that no index leaves its array: graph inputs (number, least, size, words); values of the graph that
    are true where a computed index is out of range (value, words); and where the host can't read inputs, nor wait for what is
    computed, the extremes of every index ((lowest, highest), least, size, words). `number` makes an operand of a size."""
    numbers = {v: i for i, v in enumerate(builder.graph.inputs)}
    on_inputs, computed, extremes = [], [], []
    seen: set = set()
    for step in op_steps(path):
        p = step.primitive
        if p is None or p.positions is None:
            continue
        for k, dim, size, least in p.positions(
            *(made[o.value].spec if type(o) is Ref else o for o in step.operands), **step.params
        ):
            v = made[step.operands[k].value]
            what = f"dimension {dim} with size {{}} ({p.name} at {step.source})"
            if (v, least, size) in seen or v.spec.numel == 0:
                continue
            seen.add((v, least, size))
            if v in numbers and readable:
                on_inputs.append((numbers[v], _bound(least), _bound(size), what))
                continue
            if _is_place(v, size):
                continue
            builder.note, builder.source = "index check", step.source
            dims = {"dim": tuple(range(v.ndim)), "keepdim": False}
            if readable:
                low, high = number(_operand(least), v.dtype), number(_operand(size), v.dtype)
                wrong = builder.process(LOGICAL_OR, (builder.process(LT, (v, low), {}), builder.process(GE, (v, high), {})), {})
                computed.append((builder.process(ANY, (wrong,), dims) if v.ndim else wrong, what.format(size)))
            else:
                pair = [builder.process(f, (v,), dims) if v.ndim else builder.process(COPY, (v,), {}) for f in (AMIN, AMAX)]
                extremes.append((pair, _bound(least), _bound(size), what))
    return on_inputs, computed, extremes


def _operand(size: Any) -> Any:
    """A size as an operand of a step."""
    return Expr(as_tuple(size.expression)) if type(size) is Dim else size


def _bound(size: Any) -> Any:
    """A size as a function of the bindings, or the number it is."""
    return compiled(size.expression) if type(size) is Dim else size


def _is_place(v: Value, size: int) -> bool:
    """Whether a value is the place of an extreme among at most `size` elements, and so in range."""
    while v.node is not None and v.node.primitive.kind == "movement" and v.node.primitive.view:
        v = v.node.operands[0]  # type: ignore[assignment]
    if v.node is None or v.node.primitive.name not in ("argmax", "argmin"):
        return False
    x = v.node.operands[0]
    return isinstance(x, Value) and math.prod(x.shape[d] for d in v.node.params["dim"]) <= size


def check_positions(a: np.ndarray, least: int, size: int, what: str) -> None:
    if a.min() < least or a.max() >= size:
        bad = next(int(i) for i in a.flat if not least <= i < size)
        raise PositionError(f"index {bad} is out of bounds for {what.format(size)}")


def flush(run: Any, leaf: Step) -> None:
    """End a followed segment: compute what is alive, fill it in, write what was written."""
    run.capture.stats.flushed += 1
    alive = run.survive()
    signature = _signature(run, alive)
    plan = leaf.plan
    if plan is not None and plan.signature == signature and plan.fits(run.bindings):
        differentiated, tape, straight = plan.asked
    else:
        asked = _plan(run, leaf, alive)
        if asked is None:
            return
        plan, differentiated, tape = asked
        plan.signature = signature
        straight = not differentiated and tape is None and _goes_straight(run, alive, plan)
        plan.asked = differentiated, tape, straight
    inputs = plan.inputs(run)
    if plan.positions:
        _look_at_positions(run, plan, inputs)
    node, partial = (None, None) if tape is None else _node(run, plan, tape, alive, differentiated)
    w: Window
    t: Tensor
    for w in run.written:  # kernels may compute a new value where the old one lies
        if w.storage.keepers is not None:
            about_to_write(w.storage)
    results = plan.forward(inputs) if plan.space is None else plan.forward(inputs, plan.sizes(run.bindings))
    if plan.flags:
        _look_at_flags(plan, results)
    if plan.extremes:
        _look_later(run, plan, results)
    if not straight or not _base_alone(run.written):
        _fill(run, plan, tape, node, partial, alive, inputs, results)
        return
    place = plan.place
    for w in run.written:
        if w.external is not None:
            t = w.external
            a = results[place[w.current]]
            if a is not t._array:  # (else it was computed there)
                overwrite(t._array, a)
            w.storage.version += w.mutations
    seen = []
    for t in alive:
        if t._array is None:
            r: Ref = t._ref
            if t._trace is None and r.edge is None:
                t._array = results[place[r.value]]
            else:
                seen.append(t)
    if seen:
        _show(run, plan, results, seen)


def _look_at_positions(run: Any, plan: Plan, inputs: list) -> None:
    for number, least, size, what in plan.positions:
        if callable(size):
            least, size = least(run.bindings) if callable(least) else least, size(run.bindings)
        check_positions(inputs[number], least, size, what)


def _look_at_flags(plan: Plan, results: list) -> None:
    for number, what in plan.flags:
        if host(results[number]):
            raise PositionError(f"an index is out of bounds for {what}")


def _look_later(run: Any, plan: Plan, results: list) -> None:
    """Indices on a GPU: an error shows when the device has come to it."""
    for at, least, size, what in plan.extremes:
        least, size = [n(run.bindings) if callable(n) else n for n in (least, size)]
        results[at].gpu.checks.add(results[at], results[at + 1], least, size, what.format(size))


def _base_alone(written: list) -> bool:
    """Whether no memory from outside is written through what the tape sees as a view."""
    w: Window
    for w in written:
        if w.external is not None:
            t: Tensor = w.external
            if t._view is not None:
                return False
    return True


def _node(
    run: Any, plan: Plan, tape: TapeModel, alive: list, differentiated: bool
) -> tuple[SegmentNode | None, dict[int, Spec]]:
    """The segment's place on the tape, if it has one; and the edges through which a part of the gradient flows."""
    partial: dict[int, Spec] = {}
    if tape.sound:
        written = [w.external for w in run.written if w.external is not None]
        partial = {t._ref.edge: t.spec for t in (*alive, *written) if tape.sound.get(t._ref.edge)}
    return SegmentNode(run, plan, tape, partial) if differentiated or partial else None, partial


def _show(run: Any, plan: Plan, results: list, seen: list) -> None:
    """Views of results, and results that carry the gradient of something from outside."""
    place = plan.place
    replay.show(seen, lambda v: results[place[v]], run.edge_of)


def _fill(
    run: Any,
    plan: Plan,
    tape: TapeModel | None,
    node: SegmentNode | None,
    partial: Any,
    alive: list,
    inputs: list,
    results: list,
) -> None:
    """Results to where they are wanted, in whatever way that is."""
    place = plan.place
    if node is not None:
        node.keep(inputs, results, run, alive)
    given: set[int] = set()

    def array_of(v: int) -> np.ndarray:
        a = results[place[v]]
        if id(a) in given or (node is not None and node.holds(v, a)):
            a = duplicate(a)
        given.add(id(a))
        return a

    def edge_of(e: int) -> Any:
        if e in run.edges:
            return run.edge_of(e)
        if tape is not None and e in tape.trouble and e not in partial:
            leads = tuple(run.edge_of(k) for k in tape.reaches[e])
            return (TroubledNode(run.capture.name, leads, *tape.trouble[e]), 0)
        assert node is not None
        return (node, node.index[e])

    replay.fill(run, alive, array_of, edge_of)
    if node is not None:
        node.settled()


def _signature(run: Any, alive: list[Tensor]) -> list:
    """What tells which values and edges are asked for."""
    signature: list = []
    t: Tensor
    for t in alive:
        signature.append(t._ref)
        trace: Trace | None = t._trace
        if trace is not None:
            w: Window = trace.window
            if w.external is None:
                signature.append(w.current)
            else:
                signature.append("delivered" if t._array is not None else "outside")
    if run.written:
        for w in run.written:
            if w.external is not None:
                signature.append(w.current)
        for t, _, _ in run.externals:
            signature.append(t._ref)
    return signature


def _goes_straight(run: Any, alive: list[Tensor], plan: Plan) -> bool:
    """Whether every result is wanted at one place, as it is: as new memory, or as data alone in memory from outside."""
    if not plan.forward.distinct:
        return False
    before = {id(t): ref for t, ref, w in run.externals if w is not None}
    wanted: list[int] = []
    windows = {id(t._trace.window): t._trace.window for t in alive if t._array is None and t._trace is not None}
    wanted += [w.current for w in windows.values() if w.external is None and w.base is None]
    for t in alive:
        if t._array is None:
            if t._trace is None:
                wanted.append(t._ref.value)
        elif t._trace is None or t._trace.window.external is None:
            return False
    for w in run.written:
        t = w.external
        if t is not None:
            if id(t) not in before or t._ref.edge != before[id(t)].edge:
                return False
            wanted.append(w.current)
    changed = any(w is None and t._ref.edge != ref.edge for t, ref, w in run.externals) if run.written else False
    return not changed and len(set(wanted)) == len(wanted)


def _plan(run: Any, leaf: Step, alive: list[Tensor]) -> tuple[Plan, bool, TapeModel | None] | None:
    """The plan that gives what is asked for, compiled if it must be; whether a result carries gradient, and the tape if so.
    None where nothing is left to do."""
    values: set[int] = set()
    edges: set[int] = set()
    for t in alive:
        if t._array is not None and t._trace is not None and t._trace.window.external is not None:
            continue
        trace = t._trace
        if trace is None:
            values.add(t._ref.value)
        elif trace.window.external is None:
            values.add(trace.window.current)
        e = t._ref.edge
        if e is not None and e not in run.edges:
            edges.add(e)
    for w in run.written:
        if w.external is not None:
            values.add(w.current)
    for t, ref, _ in run.externals if run.written else ():
        e = t._ref.edge
        if e is not None and e != ref.edge and e not in run.edges:
            edges.add(e)
    if not values and not edges:  # nothing to compute; views of memory from outside still want to be made
        replay.fill(run, alive, _absent, run.outside_edges().__getitem__)
        return None
    tape = None
    if edges:
        tape = leaf.tape.get(frozenset(edges)) if leaf.tape is not None else None
        if tape is None:
            leaf.tape = leaf.tape or {}
            tape = leaf.tape[frozenset(edges)] = model(run.path, frozenset(edges))
        edges -= tape.trouble.keys()
        values |= edges
    differentiated = bool(edges)
    keeps = differentiated or (tape is not None and any(tape.sound.values()))
    plans = leaf.plans
    if plans is None:
        plans = leaf.plans = []
    at = next((i for i, p in enumerate(plans) if p.fits(run.bindings)), len(plans))
    plan = plans[at] if at < len(plans) else None
    if plan is None and plans:  # compiled before, but for sizes of which other facts hold
        run.another_path(run.at.source)
    if plan is None or not (values <= set(plan.values) and edges <= set(plan.edges) and plan.keeps >= keeps):
        if control.compiling != "yes":
            run.unknown("a recorded path was not compiled yet", run.at)
            run.fall_back()
            return None
        meanwhile = run.capture.options.background
        if meanwhile and leaf.waiting is not None and not leaf.waiting.lost and (not leaf.waiting.over or leaf.waiting.error):
            run.fall_back()
            return None
        cause = leaf.note or "the path was followed for the first time"
        if plan is not None:
            cause = f"more of what it computes is used afterwards ({len(values - set(plan.values))} more)"
            values |= set(plan.values)
            edges |= set(plan.edges)
        with collector_paused():
            wanted = Plan(run, frozenset(values), frozenset(edges), keeps or plan is not None and plan.keeps)
            if not meanwhile:
                plan = compile_now(run.capture, leaf, wanted, plan, cause)
        if meanwhile:
            compile_meanwhile(run.capture, leaf, wanted, plan, cause)
            run.fall_back()
            return None
        assert plan is not None
    leaf.plan = plan
    return plan, differentiated, tape


def _absent(value: int) -> Any:
    raise AssertionError(f"value {value} was not asked for")
