"""Gradients: a call of backward() or grad() is one step of the path, with the operations of the engine inside.

It is followed by the identity of what is differentiated. Accumulation into leaves comes after it as ordinary operations. Where the
gradient would leave the segment (an outer tape, hooks, custom Functions) the segment ends and the engine runs between two.
"""

from __future__ import annotations

from typing import Any

from flame.autograd.engine import (
    accumulate,
    accumulate_into,
    deliver,
    eager_backward,
    eager_grad,
    heard,
    run_engine,
    start,
    topological,
)
from flame.autograd.tape import AccumulateGrad, edge, user_source
from flame.capture.sizes import condition
from flame.capture.state import RunState, SegmentEnded, new_object, same_refs, scattered
from flame.capture.trace import Step
from flame.primitive import force, placement, registered
from flame.reasons import GRADIENT_LEAVES, HOOK_CALLED, NO_GRADIENT, OTHER_GRADIENT, SHARED_MEMORY_READ
from flame.symbol import evaluate
from flame.tensor import Tensor

COPY = registered("copy")


class Gradients(RunState):
    """Gradient steps."""

    __slots__ = ()

    _ref_or_input: Any

    def backward(self, ts: list, given: list | None, retain: bool, create_graph: bool, leaves: list | None) -> None:
        """backward(): one gradient step, then ordinary accumulation into the leaves."""
        got = self._gradient(ts, given, leaves, retain, create_graph)
        if got is None:
            return self.now()._eagerly(lambda: eager_backward(ts, given, retain, create_graph, leaves), calls_back=True)
        if leaves is not None:
            nodes = self.now().ends(leaves)
            gs = self._heard(nodes, [g for _, g in got], create_graph)
            return deliver(list(zip(leaves, nodes, gs, strict=True)), create_graph)
        before, force.grad = force.grad, create_graph
        try:
            _accumulate_all(got, create_graph)
        finally:
            force.grad = before

    def grad(self, ys: list, xs: list, given: list | None, retain: bool, create_graph: bool) -> list:
        """autograd.grad(): one gradient step."""
        got = self._gradient(ys, given, xs, retain, create_graph)
        if got is None:
            return self.now()._eagerly(lambda: eager_grad(ys, xs, given, retain, create_graph), calls_back=True)
        return self._heard(self.now().ends(xs), [g for _, g in got], create_graph)

    def ends(self, xs: list) -> list:
        """Of tensors from outside, the nodes where their gradients go; of others None."""
        found = []
        for x in xs:
            if x._ref is None:  # (NumPy shares its memory)
                end = edge(x)
            else:
                end = self.edge_of(x._ref.edge) if x._ref.edge in self.edges else None
            found.append(None if end is None else end[0])
        return found

    def _heard(self, nodes: list, gs: list, create_graph: bool) -> list:
        """The gradients of leaves, as the hooks on these leave them."""
        before, force.grad = force.grad, create_graph
        known: dict[int, Any] = {}
        try:
            for i, (n, g) in enumerate(zip(nodes, gs, strict=True)):
                if g is not None and isinstance(n, AccumulateGrad) and n.hooks:
                    if id(n) not in known:
                        for _, hook in list(n.hooks):
                            g = heard(hook, g)
                        known[id(n)] = g
                    gs[i] = known[id(n)]
        finally:
            force.grad = before
        return gs

    def _gradient(self, ys: list, given: list | None, xs: list | None, retain: bool, create_graph: bool) -> list | None:
        """[(leaf, its node, or None; cotangent)], or None after leaving the segment, where the engine must run outside of it."""
        operands = [*ys, *([] if given is None else [g for g in given if g is not None]), *(xs or [])]
        if not all(isinstance(t, Tensor) for t in operands):
            start(ys, given, "backward")
        try:
            refs = [self._ref_or_input(t) for t in operands]
        except SegmentEnded:
            if placement.gpu and scattered(operands):
                return None
            return force.interpreter._gradient(ys, given, xs, retain, create_graph)
        if not self.alive:
            return force.interpreter._gradient(ys, given, xs, retain, create_graph)
        if self.originals and self.rewritten():
            self.leave(SHARED_MEMORY_READ)
            return None
        mask = None if given is None else tuple(g is not None for g in given)
        options = (len(ys), mask, None if xs is None else len(xs), retain, create_graph)
        if self.following:
            for step in self.at.children:
                if step.kind == "gradient" and step.options == options and same_refs(step.operands, refs):
                    if not self._guards_hold(step):
                        continue
                    return self._follow_gradient(step, xs)
            if any(c.kind == "end" and c.key == "break" for c in self.at.children):
                self.leave(GRADIENT_LEAVES)
                return None
            self.diverge(OTHER_GRADIENT)
        return self._record_gradient(ys, given, xs, refs, options)

    def _run_engine(self, ys: list, given: list | None, options: tuple, wanted: list) -> dict:
        if self.sizing is None:
            roots, gs = start(ys, given, "backward")
        else:
            with self.sizing.space.granting():  # shapes that are equal now have to be equal whenever this is followed
                roots, gs = start(ys, given, "backward")
        return run_engine(roots, gs, retain_graph=options[3], create_graph=options[4], wanted=wanted, deaf=True)

    def _guards_hold(self, step: Step) -> bool:
        if step.facts and not condition(step.facts)(self.bindings):
            return False
        return all(evaluate(expr, self.bindings) == answer for expr, answer in step.guards)

    def _follow_gradient(self, step: Step, xs: list | None) -> list:
        self.advance(step)
        got: list[Any] = []
        for r in step.outs:
            if r is None:
                got.append(None)
                continue
            t: Tensor = new_object(Tensor)
            t._array = None
            t._ref = r
            self.track(t)
            got.append(t)
        if not step.children:
            self.run_out()
        if xs is None:
            edges = self.edges
            leaves = [edges[e] for e in step.key]
            return [(x[0] if type(x) is tuple else _leaf(x), g) for x, g in zip(leaves, got, strict=True)]
        return [(None, g) for g in got]

    def _record_gradient(self, ys: list, given: list | None, xs: list | None, refs: list, options: tuple) -> list | None:
        roots: list[Any] = [edge(y) for y in ys]
        if any(e is None for e in roots):
            start(ys, given, "backward")  # says what is wrong
        nodes = topological(roots)
        numbers = {e: k for k, e in self.outside_edges().items()}
        leaves: list[tuple[int, Any]] = []
        for n in nodes:
            if isinstance(n, AccumulateGrad):
                k = numbers.get((n, 0))
                if k is None:
                    self.leave(GRADIENT_LEAVES)
                    return None
                leaves.append((k, n))
            elif n.hooks or getattr(n, "segment", None) is not self.token:
                self.leave(HOOK_CALLED if n.hooks else GRADIENT_LEAVES)
                return None
        wanted: list[Any] = [(n, 0) for _, n in leaves] if xs is None else [edge(x) for x in xs]
        if any(e is None for e in wanted):
            self.leave(NO_GRADIENT)
            return None
        self.inner = []
        self.guards = []
        self.gradient_source = user_source()
        facts = [] if self.sizing is None else self.sizing.space.facts
        known = len(facts)
        try:
            if self.sizing is None:
                got = self._run_engine(ys, given, options, wanted)
            else:
                with self.sizing.symbolic_tape(nodes, [*ys, *(given or ())]):
                    got = self._run_engine(ys, given, options, wanted)
            inner = self.inner
        finally:
            self.inner = None
        results = [got.get(e) for e in wanted]
        step = Step("gradient")
        step.operands = tuple(refs)
        step.options = options
        step.inner = inner
        step.guards = tuple(self.guards)
        step.facts = tuple(facts[known:])  # found by the rules themselves, or by their operations
        step.source = self.gradient_source
        step.outs = tuple(None if g is None else self._ref_or_input(g) for g in results)
        step.key = tuple(k for k, _ in leaves)
        self.guards = []
        self.add(step)
        if xs is None:
            return list(zip((n for _, n in leaves), results, strict=True))
        return [(None, g) for g in results]


def _leaf(t: Tensor) -> Any:
    """A leaf, or its end of the tape where there is one: hooks may be on it."""
    end = None if t._accumulator is None else t._accumulator()
    return t if end is None else end


def _accumulate_all(got: list, create_graph: bool) -> None:
    """Gradients to where they belong: the leaves, each as itself or as the end of its tape."""
    t: Tensor
    for leaf, g in got:
        if g is None:
            continue
        if isinstance(leaf, AccumulateGrad):
            _accumulate_heard(leaf, g, create_graph)
            continue
        t = leaf
        if create_graph or t._grad is not None:
            accumulate(t, g, create_graph)
        else:
            t._grad = _copied(g)


def _accumulate_heard(leaf: AccumulateGrad, g: Any, create_graph: bool) -> None:
    for _, hook in list(leaf.hooks or ()):
        g = heard(hook, g)
    accumulate_into(leaf, g, create_graph)


def _copied(g: Tensor) -> Tensor:
    """The first gradient of a leaf."""
    run = force.interpreter
    got = None if run is None or run.next is None else run.plain(COPY, g)
    return COPY(g) if got is None else got
