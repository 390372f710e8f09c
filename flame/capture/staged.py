"""Python in the midst of a backward pass: hooks on results, and the backward of custom functions, without an end of the graph.

    stage ::= edges, and what is called with their gradients       of a hook: its tensor's edge; of a Function: those of its results

A hook that is registered on a result, and a Function whose results want gradient, are stages of the run. `backward()` and `grad()`
then go in several gradient steps: each stops at the edges of stages, the last made of which is complete (what it depends on was
made before it) and is called, in Python, as part of the function; the next step starts from what it gives.

    w -> * -> y -> exp -> sum -> loss          y.register_hook(h)
    step 1: gradient of loss, as far as y;  h(g) is ordinary operations;  step 2: gradient of y, given h(g)

That needs all of the tape in the segment. Where a segment ends and results still lead through a stage (backward comes later), or in
the midst of a backward pass (a hook reads a value), the path is run for real instead of as kernels, so that the tape has it, and
the place where the stage was entered is marked: from the next call on the graph ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from flame.autograd.engine import deliver, heard, let_go, run_engine, start, topological, walk
from flame.autograd.function import FunctionNode
from flame.autograd.tape import AccumulateGrad, edge, user_source
from flame.capture.gradients import Gradients, _accumulate_all
from flame.capture.state import SegmentEnded, new_object, same_refs
from flame.capture.tape_model import model
from flame.capture.trace import Ref, Step
from flame.precision import in_force, put_in_force
from flame.primitive import force, registered
from flame.reasons import (
    HOOK_CALLED,
    OTHER_GRADIENT,
    OTHER_OPERATION,
    SHARED_MEMORY_READ,
)
from flame.tensor import Tensor

add = registered("add")


class Hook:
    """One hook of a result, which can be taken away."""

    __slots__ = ("f", "removed", "node", "entry")

    def __init__(self, f: Callable):
        self.f = f
        self.removed = False
        self.node: Any = None
        self.entry: tuple = ()

    def put(self, end: Any) -> None:
        """On the tape, too."""
        self.node, self.entry = end[0], (end[1], self.f)
        if not self.removed:
            self.node.hooks = [*(self.node.hooks or ()), self.entry]

    def remove(self) -> None:
        self.removed = True
        if self.node is not None:
            self.node.hooks = [h for h in self.node.hooks or () if h is not self.entry] or None


class Stage:
    """A place in the backward pass where Python is called, with the gradients of some edges."""

    __slots__ = ("edges", "ends", "hooks", "node", "outputs", "position", "real")

    def __init__(self, edges: tuple[int, ...], ends: list, position: Step):
        self.edges = edges
        self.ends = ends  #: where gradient goes on: tensors that nobody else holds, None where none does
        self.position = position  #: the step after which it was entered
        self.hooks: list[tuple[int, Hook]] = []
        self.node: FunctionNode | None = None
        self.outputs: tuple[int, ...] = ()  #: of a Function: the places of the edges among its results
        self.real: dict[int, Any] = {}  #: the edges on the tape, where there is one

    def call(self, given: dict[int, Any]) -> tuple[list, list]:
        """Where gradient goes on, and what gradient: hooks, then a Function's backward."""
        for e, hook in list(self.hooks):
            if e in given and not hook.removed:
                given[e] = heard(hook.f, given[e])
        for e in self.edges:  # (and those that came when the segment had ended)
            node, i = self.real.get(e, (None, 0))
            for entry in list(node.hooks or ()) if e in given and node is not None else ():
                if entry[0] == i and not any(entry is h.entry for _, h in self.hooks):
                    given[e] = heard(entry[1], given[e])
        if self.node is None:
            if self.edges[0] < 0:
                self.ends[0]._array = given[self.edges[0]]._data()  # (only its kind is asked for)
            return [*self.ends], [given[e] for e in self.edges]
        gs: list[Any] = [None] * len(self.node.outputs)
        for e, i in zip(self.edges, self.outputs, strict=True):
            gs[i] = given.get(e)
        answers = self.node.apply(gs)
        on = [(t, g) for t, g in zip(self.ends, answers, strict=True) if t is not None and g is not None]
        return [t for t, _ in on], [g for _, g in on]


class Staged(Gradients):
    """Stages, and backward passes that go through them."""

    __slots__ = ()

    fall_back: Callable[[], None]

    # ---- entering stages

    def hook_on(self, t: Tensor, f: Callable) -> Callable[[], None] | None:
        """Note a hook on a result, and give what removes it; None where the graph has to end."""
        position = self.at
        ref = None if position.interrupts else self._known_ref(t)
        if ref is None or ref.edge is None or ref.edge in self.edges:
            return None
        stage = (self.stages or {}).get(ref.edge)
        if stage is None:
            stage = self._enter(Stage((ref.edge,), [self._end(t, ref)], position))
            if not self.following:
                stage.real[ref.edge] = edge(t)
        hook = Hook(f)
        stage.hooks.append((ref.edge, hook))
        if not self.following:
            hook.put(stage.real[ref.edge])
        return hook.remove

    def function_refs(self, args: tuple, outs: tuple, dirty: tuple) -> list[Ref | None] | None:
        """The refs of a custom function's tensors, if its call can be a stage; else None."""
        if self.at.interrupts or dirty or self.inner is not None:
            return None
        seen: set[int] = set()
        for o in outs:
            if not isinstance(o, Tensor):
                continue
            r, trace = o._ref, o._trace
            if r.__class__ is not Ref or r.capture is not self.capture or r.edge is not None or id(o) in seen:
                return None
            if any(o is a for a in args) or o._batching is not None or o.dtype.is_complex:
                return None
            window = None if trace is None else trace.window
            if trace is not None and (trace.chain or trace.root is not None or window is None or window.external is not None):
                return None
            seen.add(id(o))
        refs: list[Ref | None] = []
        for a in args:
            r = self._known_ref(a) if isinstance(a, Tensor) else None
            if r is None and isinstance(a, Tensor):
                return None
            refs.append(r)
        return None if self.at.interrupts else refs  # (arguments that were new are known by now: here is where it is entered)

    def function(self, node: FunctionNode, args: tuple, refs: list, outs: Sequence[Tensor | None]) -> None:
        """Enter the call of a custom function; `outs` are its results that get a gradient (None for others)."""
        position = self.at
        places = tuple(i for i, t in enumerate(outs) if t is not None)
        made: list[Any] = [outs[i] for i in places]
        if not made:
            return
        marks = tuple(t._ref for t in made)
        step = None
        if self.following:
            for c in self.at.children:
                if c.kind == "function" and same_refs(c.operands, refs) and same_refs(c.key, marks) and c.options[1] == places:
                    step = c
                    break
            else:
                self.diverge(OTHER_OPERATION, f"autograd.Function {node.cls.__name__}")
        new = step is None
        if step is None:
            step = Step("function")
            step.operands, step.key = tuple(refs), marks
            step.options = bool(node.ctx._saved), places
            step.source = user_source()
            step.outs = tuple(self.capture.ref(r.value, self.capture.new_id(), r.spec) for r in marks)
        ends = [None if r is None or r.edge is None else self._end(a, r) for a, r in zip(args, refs, strict=True)]
        stage = self._enter(Stage(tuple(r.edge for r in step.outs), ends, position))
        stage.node, stage.outputs = node, places
        node.edges = tuple(None if t is None else (t, 0) for t in ends)  # (whether there are any; where to is known below)
        if not self.following:
            node.edges = tuple(edge(a) if isinstance(a, Tensor) else None for a in args)
            node.segment = self.token
            for i, t, r in zip(places, made, step.outs, strict=True):
                t._node = (node, i)
                stage.real[r.edge] = t._node
        for t, r in zip(made, step.outs, strict=True):
            t._ref = r
        if new:
            self.add(step)
        else:
            self.advance(step)
            if not step.children:
                self.run_out()

    def _enter(self, stage: Stage) -> Stage:
        if self.stages is None:
            self.stages = {}
        for e in stage.edges:
            self.stages[e] = stage
        return stage

    def _known_ref(self, t: Tensor) -> Ref | None:
        """The ref of a tensor, unless the segment ends over it."""
        try:
            ref = self._ref_or_input(t)
        except SegmentEnded:
            return None
        return ref if self.alive and force.interpreter is self else None

    def _end(self, t: Tensor, ref: Ref) -> Tensor:
        """A tensor that stands for a place on the tape. It is not tracked: nobody wants its values."""
        n: Tensor = new_object(Tensor)
        n._array = None
        n._ref = ref
        if not self.following:
            n._array, n._node = t._array, edge(t)
        return n

    # ---- leaving the path with stages

    def functions(self) -> dict[int, FunctionNode]:
        """The nodes of custom functions, by the first of their edges."""
        return {s.edges[0]: s.node for s in (self.stages or {}).values() if s.node is not None}

    def stages_are_real(self, values: dict[int, Tensor], tape: dict[int, Any]) -> None:
        """There is a tape now: stages stand there."""
        for stage in dict.fromkeys((self.stages or {}).values()):
            if stage.real:
                continue
            stage.real = {e: tape[e] for e in stage.edges}
            if stage.node is not None:
                stage.node.segment = self.token
            for t in stage.ends:
                if t is not None:
                    t._array, t._node = values[t._ref.value]._array, tape[t._ref.edge]
            for e, hook in stage.hooks:
                hook.put(stage.real[e])

    def part_with_stages(self) -> None:
        """The segment ends: where stages are wanted afterwards, on the tape, see that there is one, and that the next call ends
        its graph where they are entered."""
        stages: dict[int, Stage] = self.stages
        wanted = set(stages) if self.midway else self._wanted_stages(stages)
        if not wanted:
            return
        for e in wanted:
            stages[e].position.interrupts = True
        if self.following:
            self.fall_back()

    def _wanted_stages(self, stages: dict[int, Stage]) -> set[int]:
        """The stages that living results lead through. (What only the stages hold does not count as living.)"""
        contexts = [s.node.ctx for s in dict.fromkeys(stages.values()) if s.node is not None]
        saved = [c._saved for c in contexts]
        ends = [(s, s.ends) for s in dict.fromkeys(stages.values())]
        for c in contexts:
            c._saved = []
        if not self.following:
            for s, _ in ends:
                s.ends = []
        try:
            refs = [t._ref for t in self.live()]
        finally:
            for c, kept in zip(contexts, saved, strict=True):
                c._saved = kept
        refs += [t._ref for t, r, _ in self.externals if t._ref is not None and t._ref.edge != r.edge]
        edges = frozenset(r.edge for r in refs if r.edge is not None and r.edge not in self.edges)
        if not edges:
            return set()
        found = model(self.path, edges).through(edges)
        return {e for e in stages if e in found}

    # ---- backward passes

    def backward(self, ts: list, given: list | None, retain: bool, create_graph: bool, leaves: list | None) -> None:
        if not self.stages or not all(isinstance(t, Tensor) for t in (*ts, *(given or ()), *(leaves or ())) if t is not None):
            return super().backward(ts, given, retain, create_graph, leaves)
        got = self._pass(ts, given, leaves, retain, create_graph)
        run = force.interpreter
        if got is None:
            return run.backward(ts, given, retain, create_graph, leaves)
        before, force.grad = force.grad, create_graph
        try:
            if leaves is None:
                return _accumulate_all(list(got.items()), create_graph)
        finally:
            force.grad = before
        nodes = run.ends(leaves)
        gs = run._heard(nodes, [got.get(i) for i in range(len(leaves))], create_graph)
        deliver(list(zip(leaves, nodes, gs, strict=True)), create_graph)

    def grad(self, ys: list, xs: list, given: list | None, retain: bool, create_graph: bool) -> list:
        if not self.stages or not all(isinstance(t, Tensor) for t in (*ys, *(given or ()), *xs) if t is not None):
            return super().grad(ys, xs, given, retain, create_graph)
        got = self._pass(ys, given, xs, retain, create_graph)
        run = force.interpreter
        if got is None:
            return run.grad(ys, xs, given, retain, create_graph)
        return run._heard(run.ends(xs), [got.get(i) for i in range(len(xs))], create_graph)

    def _pass(self, ys: list, given: list | None, xs: list | None, retain: bool, create_graph: bool) -> dict | None:
        """Gradients by leaf (its node), or by number among `xs`. None after the segment ended before anything was done."""
        stages = dict(self.stages)
        if self.originals and self.rewritten():
            self.leave(SHARED_MEMORY_READ)
            return None
        found: dict[Any, Any] = {}
        todo: dict[int, Any] = {}
        before, casts = force.grad, in_force.casts
        got = self._step(ys, given, xs, create_graph, stages)
        if got is None:
            return None
        force.grad = create_graph
        if casts is not None:  # a gradient has the dtype that its forward operation chose
            put_in_force(None)
        self.midway += 1
        sources: list[tuple[list, Any, tuple]] = [(ys, given, ())]
        every = dict(stages)
        try:
            while True:
                for into, new in zip((found, todo), got, strict=True):
                    for k, g in new:
                        into[k] = add(into[k], g) if k in into else g
                if not todo:
                    break
                stage = self._next(todo, stages)
                of = {e: todo.pop(e) for e in stage.edges if e in todo}
                for e in stage.edges:
                    stages.pop(e, None)
                roots, gs = stage.call(of)
                sources += [(roots, gs, stage.edges)] if roots else []
                late = self._late(stage, every)
                if late:  # a hook hooked something before it, and perhaps gradient went through there already
                    stages.update(late)
                    every.update(late)
                    found.clear()
                    todo.clear()
                    got = self._steps(sources, xs, create_graph, stages, every)
                else:
                    got = self._steps(sources[-1:] if roots else [], xs, create_graph, stages, stages)
        finally:
            self.midway -= 1
            force.grad = before
            if casts is not None:
                put_in_force(casts)
        if not retain:
            self._release(ys)
        return found

    def _late(self, stage: Stage, every: dict[int, Stage]) -> dict[int, Stage]:
        """Stages that the call of one has made of what was before it."""
        if self.alive and force.interpreter is self:
            return {e: s for e, s in (self.stages or {}).items() if e not in every and e < stage.edges[0]}
        known = {end for s in every.values() for end in s.real.values()}
        found: dict[int, Stage] = {}
        for node in topological([edge(t) for t in stage.ends if t is not None]):  # type: ignore[misc]
            if isinstance(node, AccumulateGrad):
                continue
            for i in {i for i, _ in node.hooks or ()}:
                if (node, i) in known:
                    continue
                place: Tensor = new_object(Tensor)
                place._array, place._node = None, (node, i)
                key = -1 - len(every) - len(found)
                found[key] = Stage((key,), [place], stage.position)
                found[key].real[key] = (node, i)
        return found

    def _next(self, todo: dict[int, Any], stages: dict[int, Stage]) -> Stage:
        """The stage all of whose gradient is known: the last one made."""
        last = max(todo)
        if min(todo) < 0:  # (the segment has ended, and the tape tells their order)
            order = topological([stages[e].real[e] for e in todo])
            last = min(todo, key=lambda e: order.index(stages[e].real[e][0]))
        return stages[last]

    def _steps(
        self, sources: list, xs: list | None, create_graph: bool, stages: dict[int, Stage], stops: dict[int, Stage]
    ) -> tuple[list, list]:
        """What several steps give together, as far as the stages `stops`; of these, those in `stages` are still to be called."""
        found: tuple[list, list] = [], []
        for roots, gs, own in sources:
            before = {e: s for e, s in stops.items() if e not in own}
            got = self._step(roots, gs, xs, create_graph, before)
            if got is None:
                got = self._step_eagerly(roots, gs, xs, create_graph, before)
            found[0].extend(got[0])
            found[1].extend((e, g) for e, g in got[1] if e in stages)
        return found

    def _all_here(self, ys: list) -> bool:
        """Whether the tape behind these tensors is all of this segment: leaves known here, stages, and what was recorded."""
        roots: list[Any] = [edge(y) for y in ys]
        if any(e is None for e in roots):
            start(ys, None, "backward")  # says what is wrong
        ours = {end[0] for s in self.stages.values() for end in s.real.values()}
        ends = set(self.outside_edges().values())
        for n in topological(roots):
            if isinstance(n, AccumulateGrad):
                if (n, 0) not in ends:
                    return False
            elif n not in ours and (n.hooks or getattr(n, "segment", None) is not self.token):
                return False
        return True

    def _step(self, roots: list, given: list | None, xs: list | None, create_graph: bool, stages: dict[int, Stage]) -> Any:
        """One gradient step, as far as the stages that were not called yet: pairs (leaf or number, gradient), and pairs (edge of a
        stage, gradient). None where this segment is over."""
        if not self.alive or force.interpreter is not self:
            return None
        operands = [*roots, *([] if given is None else [g for g in given if g is not None]), *(xs or ())]
        refs = [self._known_ref(t) for t in operands]
        if not self.alive or force.interpreter is not self:
            return None
        stops = tuple(sorted(stages))
        mask = None if given is None else tuple(g is not None for g in given)
        options = (len(roots), mask, (None if xs is None else len(xs), stops), True, create_graph)
        if self.following:
            for step in self.at.children:
                if step.kind == "gradient" and step.options == options and same_refs(step.operands, refs):
                    if self._guards_hold(step):
                        got = self._follow_gradient(step, [])
                        return self._sorted(step, [g for _, g in got], stops)
            if any(c.kind == "end" and c.key == "break" for c in self.at.children) and not self.midway:
                self.leave(HOOK_CALLED)
                return None
            self.diverge(OTHER_GRADIENT)
        if not self.midway and not self._all_here(roots):
            self.leave(HOOK_CALLED)
            return None
        return self._record_step(roots, given, xs, refs, options, stages)

    def _sorted(self, step: Step, gs: list, stops: tuple) -> tuple[list, list]:
        n = len(gs) - len(stops)
        if step.options[2][0] is None:
            keys: Any = [self.edge_of(e)[0] for e in step.key]
        else:
            keys = range(n)
        found = [(k, g) for k, g in zip(keys, gs[:n], strict=True) if g is not None]
        return found, [(e, g) for e, g in zip(stops, gs[n:], strict=True) if g is not None]

    def _record_step(
        self, roots: list, given: list | None, xs: list | None, refs: list, options: tuple, stages: dict[int, Stage]
    ) -> Any:
        stops: tuple[int, ...] = options[2][1]
        barrier = [stages[e].real[e] for e in stops]
        real: list[Any] = [edge(t) for t in roots]
        if any(e is None for e in real):
            start(roots, given, "backward")  # says what is wrong
        nodes = topological([e for e in real if e not in barrier], barrier)
        numbers = {e: k for k, e in self.outside_edges().items()}
        leaves = [(numbers[n, 0], n) for n in nodes if isinstance(n, AccumulateGrad)] if xs is None else []
        ends: list[Any] = [(n, 0) for _, n in leaves] if xs is None else [edge(x) for x in xs]
        if any(e is None for e in ends):
            raise RuntimeError("One of the differentiated Tensors does not require grad")
        targets = {e[0] for e in ends}
        through = [e for e in barrier if xs is None or not targets.isdisjoint(topological([e]))]
        self.inner, self.guards = [], []
        self.gradient_source = user_source()
        facts = [] if self.sizing is None else self.sizing.space.facts
        known = len(facts)

        def engine() -> dict:
            with nullcontext() if self.sizing is None else self.sizing.space.granting():
                first, gs = start(roots, given, "backward")
            return run_engine(
                first, gs, retain_graph=True, create_graph=options[4], wanted=[*ends, *through], barrier=barrier, deaf=True
            )

        try:
            if self.sizing is None:
                got = engine()
            else:
                with self.sizing.symbolic_tape(nodes, [*roots, *(g for g in given or () if g is not None)]):
                    got = engine()
            inner = self.inner
        finally:
            self.inner = None
        results = [None if e in barrier else got.get(e) for e in ends] + [got.get(e) if e in through else None for e in barrier]
        step = Step("gradient")
        step.operands, step.options, step.inner = tuple(refs), options, inner
        step.guards, step.facts = tuple(self.guards), tuple(facts[known:])
        step.source = self.gradient_source
        step.outs = tuple(None if g is None else self._ref_or_input(g) for g in results)
        step.key = tuple(k for k, _ in leaves)
        self.guards = []
        self.add(step)
        return self._sorted(step, results, stops)

    def _step_eagerly(self, roots: list, given: list, xs: list | None, create_graph: bool, stages: dict[int, Stage]) -> Any:
        """The same on the tape: the segment ended in the midst of the backward pass."""
        force.interpreter.leave(HOOK_CALLED)
        barrier = {stages[e].real[e]: e for e in stages}

        def engine() -> Any:
            first, gs = start(roots, given, "backward")
            on = [e for e in first if e not in barrier]
            ends: list[Any]
            if xs is None:
                ends = [(n, 0) for n in topological(on, barrier) if isinstance(n, AccumulateGrad)]
                keys: Any = [n for n, _ in ends]
            else:
                ends, keys = [edge(x) for x in xs], range(len(xs))
            targets = {e[0] for e in ends}
            through = [e for e in barrier if xs is None or not targets.isdisjoint(topological([e]))]
            got = run_engine(
                first, gs, retain_graph=True, create_graph=create_graph, wanted=[*ends, *through], barrier=barrier, deaf=True
            )
            found = [(k, got[e]) for k, e in zip(keys, ends, strict=True) if e not in barrier and e in got]
            return found, [(barrier[e], got[e]) for e in through if e in got]

        return force.interpreter._eagerly(engine)

    def _release(self, ys: list) -> None:
        """What the pass came through is not differentiated again."""
        if not self.alive or force.interpreter is not self:
            return let_go(*walk([e for e in map(edge, ys) if e is not None]))
        refs = [self._known_ref(y) for y in ys]
        options = (len(ys), None, "release", False, False)
        if self.following:
            for step in self.at.children:
                if step.kind == "gradient" and step.options == options and same_refs(step.operands, refs):
                    for e in step.key:
                        self.stages[e].node.release()
                    self.advance(step)
                    if not step.children:
                        self.run_out()
                    return
            self.diverge(OTHER_GRADIENT)
        order, segments = walk([e for e in map(edge, ys) if e is not None])
        functions = {node: e for e, node in self.functions().items()}
        step = Step("gradient")
        step.operands, step.options, step.source = tuple(refs), options, user_source()
        step.key = tuple(functions[n] for n in order if n in functions)
        let_go(order, segments)
        self.add(step)
