"""The tape's record of a compiled segment whose results carry gradient: one node for all of them.

Backward runs the compiled backward on what forward left. Where that does not serve (derivatives of derivatives, hooks and wanted
gradients inside of the segment) the path is run again through the eager tape, whose nodes stand for this one from then on. What
is refused is what the tape would refuse (`flame.capture.tape_model`): a second time, memory written since.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from flame.autograd.engine import let_go, run_engine, walk
from flame.capture import replay
from flame.capture.tape_model import FREED, TapeModel
from flame.capture.trace import Step
from flame.compiler.concrete import spec_at
from flame.primitive import force
from flame.tensor import Storage, Tensor, wrap


class TroubledNode:
    """The tape's record of a result that can't be differentiated any more: what it depends on was freed or overwritten."""

    hooks: Any = None
    segment: Any = None
    released = True
    outputs: tuple = (None,)

    def __init__(self, name: str, edges: tuple, kind: str, step: Step):
        self._name = name
        self.edges = self.next_functions = edges  #: where its gradient would flow: who asks for none of it is not refused
        self._kind = kind
        self._step = step

    def name(self) -> str:
        return f"Compiled<{self._name}>Backward"

    def apply(self, cotangents: list) -> list:
        if self._kind == FREED:
            raise RuntimeError(SECOND_TIME)
        spec = self._step.outs[0].spec
        assert self._step.primitive is not None
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: an operand or the "
            f"result of {self._step.primitive.name} ({spec}) at {self._step.source} was written after it was used."
        )

    def release(self) -> None:
        pass


SECOND_TIME = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have already been freed). "
    "Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). Specify retain_graph=True if "
    "you need to backward through the graph a second time or if you need to access saved tensors after calling backward."
)


class SegmentNode:
    """The tape's record of a compiled segment whose results carry gradient."""

    def __init__(self, run: Any, plan: Any, tape: TapeModel):
        self.plan = plan
        self.tape = tape
        self.guarded = frozenset().union(*(tape.saved[e] for e in plan.differentiated if e in tape.saved))
        self.path = plan.path
        self.externals = list(run.externals)
        self.external_edges = dict(run.outside_edges())
        self.bindings = list(run.bindings)
        self.index = {e: i for i, e in enumerate(plan.differentiated)}
        self.sizes = plan.sizes(run.bindings)
        self.outputs = tuple(spec_at(s, self.sizes) for s in plan.differentiated_specs)
        self.inner_edges = [e for _, e in plan.input_edges]
        if plan.replayed:
            self.inner_edges = list(run.edges)
        self.edges = tuple(run.edges[e] for e in self.inner_edges)
        self.hooks: list | None = None
        self.segment: Any = None
        self.freed: set[int] = set()  #: operations of the path whose saved values were let go
        self.saved: list[np.ndarray] = []
        #: memory that the tape guards: the tensor from outside that showed it, storage, version, spec, its name in the tape model
        self.versions: list[tuple[Any, Storage, int, Any, int]] = []
        self.opened: dict[int, Any] | None = None  #: the tape of a re-execution: from then on it stands for this node
        self._held: set[int] = set()
        self._shared: list[tuple[Storage, int]] = []  #: memory of others that backward reads, and as which of the saved arrays
        self._done = False
        self.name_of = run.capture.name

    def name(self) -> str:
        return f"Compiled<{self.name_of}>Backward"

    @property
    def next_functions(self) -> tuple:
        return self.edges

    def keep(self, inputs: list, results: list, run: Any, alive: list[Tensor]) -> None:
        """Hold what backward reads and what a re-execution starts from. Memory of others is shared until it is written."""
        arrays, home = self.plan.arrays, self.tape.home
        at: dict[int, int] = {}
        for i, r in enumerate(self.plan.residuals):
            if r.source == "output":
                self._held.add(id(results[r.index]))
                at[id(results[r.index])] = i
                self.saved.append(results[r.index])
                continue
            if r.index < len(arrays):
                self._shared.append((self.externals[arrays[r.index]][0].storage_of(), i))
            self.saved.append(inputs[r.index])
        for i, (t, ref, w) in enumerate(self.externals):
            st = t.storage_of()
            before = wrap(t._array)
            before._storage = st
            self.externals[i] = (before, ref, None)
            self._watch(st)
            if (ref in run.snapshots if w is None else not w.mutations) and home(ref.value) in self.guarded:
                self.versions.append((t, st, st.version, ref.spec, home(ref.value)))
        for w in run.written:
            if w.external is not None and home(w.current) in self.guarded:
                self.versions.append((None, w.storage, -1, w.spec, home(w.current)))
        for t in alive:
            m = home(t._ref.value)
            if m in self.guarded and t._array is None and (t._trace is None or t._trace.window.external is None):
                st = t.storage_of()
                self.versions.append((None, st, -1, t._ref.spec, m))
                place = self.plan.place.get(t._ref.value)
                if place is not None and id(results[place]) in self._held:
                    self._shared.append((st, at[id(results[place])]))
                    self._watch(st)

    def _watch(self, storage: Storage) -> None:
        """Be told before memory is written."""
        told = storage.keepers
        if told is None:
            told = storage.keepers = []
        elif len(told) > 15:
            told[:] = [w for w in told if w() is not None]
        told.append(weakref.ref(self))

    def keep_copies(self, storage: Storage) -> None:
        """This memory is written next."""
        if self._done:
            return
        copies: dict[int, np.ndarray] = {}

        def copy(a: np.ndarray) -> np.ndarray:
            return copies.setdefault(id(a), np.array(a, order="K"))

        for t, _, _ in self.externals:
            if t._storage is storage:
                t._array, t._storage = copy(t._array), Storage()
        for st, i in self._shared:
            if st is storage:
                self.saved[i] = copy(self.saved[i])

    def settled(self) -> None:
        """Called when results have their memory: from now on a write to guarded memory is an error."""
        self.versions = [(t, st, st.version if at < 0 else at, spec, v) for t, st, at, spec, v in self.versions]

    def holds(self, value: int, a: np.ndarray) -> bool:
        """Whether a result must be handed out as a copy, because backward reads it and nobody guards it."""
        return id(a) in self._held and self.tape.home(value) not in self.guarded

    @property
    def released(self) -> bool:
        return bool(self.freed)

    def _check(self, cotangents: list) -> None:
        needed: set[int] = set()
        for e, g in zip(self.plan.differentiated, cotangents, strict=True):
            if g is not None:
                needed |= self.tape.saved.get(e, frozenset())
                if not self.freed.isdisjoint(self.tape.holders.get(e, ())):
                    raise RuntimeError(SECOND_TIME)
        if self._done and any(self.tape.holders.values()):
            raise RuntimeError(SECOND_TIME)
        for t, st, version, spec, value in self.versions:
            if (st.version != version or (t is not None and t._storage is not st)) and value in needed:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{spec}], which the compiled {self.name_of} reads in its backward, is at version {st.version}; expected "
                    f"version {version} instead."
                )

    def reaching(self, i: int) -> list:
        """The outside edges that gradient of a result flows to."""
        reached = self.tape.reaches.get(self.plan.differentiated[i], frozenset())
        return [self.external_edges[k] for k in reached if k in self.external_edges]

    def passing(self, i: int) -> list[int]:
        """The other results that gradient of a result flows through."""
        through = self.tape.passes.get(self.plan.differentiated[i], frozenset())
        return [self.index[e] for e in through if e in self.index]

    def apply(self, cotangents: list) -> list:
        self._check(cotangents)
        if self.plan.backward is None or force.grad or self.opened is not None:
            return self._replay(cotangents)[0]
        arrays = list(self.saved)
        for g, s in zip(cotangents, self.outputs, strict=True):
            arrays.append(np.zeros(s.shape, s.dtype.numpy) if g is None else g._data())
        got = self.plan.backward(arrays, self.sizes)
        reached: set[int] = set()
        for e, g in zip(self.plan.differentiated, cotangents, strict=True):
            if g is not None:
                reached |= self.tape.reaches.get(e, frozenset())
        seen: set[int] = set()
        out: list = []
        for e, i in zip(self.inner_edges, self.plan.gradients, strict=True):
            if i is None or e not in reached:
                out.append(None)
            else:
                a = got[i]
                out.append(wrap(a.copy() if id(a) in seen else a))
                seen.add(id(a))
        return out

    def open(self, cotangents: list, aims: Iterable[int]) -> tuple[list, dict[int, Any]]:
        """As `apply`, through one operation after the other: hooks on results are called with all of their gradient. The other
        answer is the gradients of those results that are aimed at."""
        self._check(cotangents)
        return self._replay(cotangents, aims)

    def _replay(self, cotangents: list, aims: Iterable[int] | None = None) -> tuple[list, dict[int, Any]]:
        """Through the tape of a re-execution from the original inputs, which is made at its first need. Hooks are called inside
        of it if `aims` is given."""
        tape = self.opened
        if tape is None:
            before, force.grad = force.grad, True
            try:
                _, tape = replay.run_path(self.path, self.externals, self.external_edges, self.bindings)
            finally:
                force.grad = before
            self.opened = tape
        of = self.plan.differentiated
        roots = [tape[e] for e, g in zip(of, cotangents, strict=True) if g is not None]
        gs = [g for g in cotangents if g is not None]
        operands = [self.external_edges[e] for e in self.inner_edges]
        inside = {i: tape[of[i]] for i in aims or ()}
        wanted = [*operands, *inside.values()]
        with self._hooked([] if aims is None else [(*tape[of[i]], hook) for i, hook in self.hooks or ()]):
            got = run_engine(roots, gs, retain_graph=True, create_graph=force.grad, wanted=wanted, barrier=operands)
        return [got.get(e) for e in operands], {i: got[e] for i, e in inside.items() if e in got}

    @contextmanager
    def _hooked(self, hooks: list) -> Iterator[None]:
        """The hooks of results are those of the operations that make them, meanwhile."""
        before = {node: node.hooks for node, _, _ in hooks}
        try:
            for node, i, hook in hooks:
                node.hooks = [*(node.hooks or ()), (i, hook)]
            yield
        finally:
            for node, own in before.items():
                node.hooks = own

    def release(self, results: Iterable[int]) -> None:
        """Let go of what backward came through on its way from these results; others can still be differentiated."""
        edges = [self.plan.differentiated[i] for i in results]
        if self.opened is not None:
            let_go(*walk([self.opened[e] for e in edges], frozenset(self.external_edges.values())))
        for e in edges:
            self.freed |= self.tape.holders.get(e, frozenset())
        holders = [self.tape.holders.get(e, frozenset()) for e in self.plan.differentiated]
        if all(h and h <= self.freed for h in holders):
            self.saved = []
            self.externals = []
            self.versions = []
            self.opened = None
            self._done = True
