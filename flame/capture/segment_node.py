"""The tape's record of a compiled segment whose results carry gradient: one node for all of them.

Backward runs the compiled backward on what forward left. Where that does not serve (derivatives of derivatives, hooks and wanted
gradients inside of the segment) the path is run again through the eager tape, whose nodes stand for this one from then on. What
is refused is what the tape would refuse (`flame.capture.tape_model`): a second time, memory written since.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flame.autograd.engine import let_go, run_engine, walk
from flame.autograd.tape import Node, edge
from flame.capture import replay
from flame.capture.shared import seen_in, written_parts
from flame.capture.state import same_bits
from flame.capture.tape_model import FREED, TapeModel
from flame.capture.trace import Step, Window
from flame.compiler.concrete import spec_at
from flame.primitive import Spec, force
from flame.runtime.cuda import gpu
from flame.runtime.device_array import DeviceArray, empty, to_device
from flame.runtime.gpu_copy import duplicate, host
from flame.tensor import Storage, Tensor, wrap


class TroubledNode:
    """The tape's record of a result that can't be differentiated any more, on no way: what it depends on was freed or
    overwritten."""

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
        raise damaged(self._kind, self._step)

    def release(self) -> None:
        pass


def damaged(kind: str, step: Step) -> RuntimeError:
    """What the tape raises of an operation whose saved values are gone."""
    if kind == FREED:
        return RuntimeError(SECOND_TIME)
    assert step.primitive is not None
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: an operand or the "
        f"result of {step.primitive.name} ({step.outs[0].spec}) at {step.source} was written after it was used."
    )


SECOND_TIME = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have already been freed). "
    "Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). Specify retain_graph=True if "
    "you need to backward through the graph a second time or if you need to access saved tensors after calling backward."
)


class SegmentNode:
    """The tape's record of a compiled segment whose results carry gradient."""

    def __init__(self, run: Any, plan: Any, tape: TapeModel, partial: dict[int, Spec]):
        """`partial` are the results, by edge, that can be differentiated on some ways only: one operation after the other."""
        self.plan = plan
        self.tape = tape
        self.differentiated = (*plan.differentiated, *partial)
        self.guarded = frozenset().union(*(tape.saved[e] for e in self.differentiated if e in tape.saved))
        self.path = plan.path
        self.externals = list(run.externals)
        self.external_edges = dict(run.outside_edges())
        self.bindings = list(run.bindings)
        self.index = {e: i for i, e in enumerate(self.differentiated)}
        self.sizes = plan.sizes(run.bindings)
        self.outputs = (*(spec_at(s, self.sizes) for s in plan.differentiated_specs), *partial.values())
        self.inner_edges = [e for _, e in plan.input_edges]
        if plan.backward is None:
            self.inner_edges = list(run.edges)
        self.operands = tuple(run.edges[e] for e in self.inner_edges)
        self._hooks: list | None = None
        self._heard: list[tuple[Any, tuple]] = []  #: hooks of results, each with what stands for it in the re-execution
        self.segment: Any = None
        self.freed: set[int] = set()  #: operations of the path whose saved values were let go
        self.saved: list[np.ndarray] = []
        #: memory that the tape guards: the tensor from outside that showed it, storage, version, spec, its name in the tape model
        self.versions: list[tuple[Any, Storage, int, Any, int]] = []
        self.opened: dict[int, Any] | None = None  #: the tape of a re-execution: from then on it stands for this node
        #: memory that backward reads as it is then: storage, its array, the value that it held; and of what was handed out since
        #: (NumPy writes without telling), the array, a copy of what it held then, the value
        self._shown: list[tuple[Storage, np.ndarray, int]] = []
        self._unsafe: list[tuple[np.ndarray, np.ndarray, int]] = []
        self._originals: list[tuple[Tensor, Tensor]] = []  #: what stands for a tensor from outside in it, and that tensor
        self._overwritten: list[tuple[Window, Any]] = []  #: memory from outside that the segment writes
        self._new: list[Tensor] = []  #: results that guarded memory is shown by, until they have it
        self._held: set[int] = set()
        self._shared: list[tuple[Storage, int]] = []  #: memory of others that backward reads, and as which of the saved arrays
        self._done = False
        self.name_of = run.capture.name
        self._call = run.capture, run.capture.stats.calls

    def name(self) -> str:
        return f"Compiled<{self.name_of}>Backward"

    @property
    def next_functions(self) -> tuple:
        return self.operands

    @property
    def aside(self) -> bool:
        """Whether gradient goes through the operations of the re-execution themselves, which other ways may lead through, too:
        a hook on one of them is to hear all of it."""
        return self._hooks is not None and self.opened is not None and not self.freed

    @property
    def inside(self) -> tuple:
        """The edges of the re-execution that results stand for."""
        assert self.opened is not None
        return tuple([self.opened[e] for e in self.differentiated])

    @property
    def edges(self) -> tuple:
        return self.inside if self.aside else self.operands

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
            if home(ref.value) not in self.guarded:
                continue
            original = run.originals.get(i)
            self._originals.append((before, t if original is None else original))
            if original is not None:
                self._unsafe.append((original._array, before._array, ref.value))
            elif w is None or not w.mutations:
                self._shown.append((st, before._array, ref.value))
            if ref in run.snapshots if w is None else not w.mutations:
                self.versions.append((t, st, st.version, ref.spec, home(ref.value)))
        for w in run.written:
            if w.external is not None and home(w.current) in self.guarded:
                self.versions.append((None, w.storage, -1, w.spec, home(w.current)))
                self._overwritten.append((w, w.external._array))
        for t in alive:
            m = home(t._ref.value)
            if m in self.guarded and t._array is None and (t._trace is None or t._trace.window.external is None):
                st = t.storage_of()
                self.versions.append((None, st, -1, t._ref.spec, m))
                self._new.append(t)
                self._watch(st)
                place = self.plan.place.get(t._ref.value)
                if place is not None and id(results[place]) in self._held:
                    self._shared.append((st, at[id(results[place])]))

    def _watch(self, storage: Storage) -> None:
        """Be told before memory is written."""
        told = storage.keepers
        if told is None:
            told = storage.keepers = []
        elif len(told) > 15:
            told[:] = [w for w in told if w() is not None]
        told.append(weakref.ref(self))

    def keep_copies(self, storage: Storage, written: bool = True) -> None:
        """This memory is written next."""
        if self._done or self.opened is not None:
            return
        copies: dict[int, np.ndarray] = {}

        def copy(a: np.ndarray) -> np.ndarray:
            if id(a) not in copies:
                copies[id(a)] = duplicate(a, "K")
            return copies[id(a)]

        for t, _, _ in self.externals:
            if t._storage is storage:
                t._array = copy(t._array)
                if written:
                    t._storage = Storage()
        for st, i in self._shared:
            if st is storage:
                self.saved[i] = copy(self.saved[i])
        if not written:
            self._unsafe += [(a, copy(a), v) for st, a, v in self._shown if st is storage]
            self._shown = [shown for shown in self._shown if shown[0] is not storage]

    def settled(self) -> None:
        """Called when results have their memory: from now on a write to guarded memory is an error."""
        self.versions = [(t, st, st.version if at < 0 else at, spec, v) for t, st, at, spec, v in self.versions]
        for t in self._new:
            w = None if t._trace is None else t._trace.window
            if w is None:
                self._shown.append((t.storage_of(), t._array, t._ref.value))
            else:
                self._show(w, w.base)
        for w, whole in self._overwritten:  # (only now: who watched before was told of the segment's own write)
            self._show(w, whole)
            self._watch(w.storage)
        self._new, self._overwritten = [], []

    def _show(self, w: Window, whole: Any) -> None:
        """Memory that the user sees, and what of it was written as a part."""
        self._shown.append((w.storage, whole, w.current))
        if w.mutations:
            self._shown += [(w.storage, part, value) for part, value in written_parts(self.path, w, whole)]

    def handed_out(self, storage: Storage) -> None:
        """This memory may be written from now on without a word: what it holds is kept, to run again on and to compare with."""
        self.keep_copies(storage, written=False)

    def _rewritten(self) -> bool:
        """Whether memory that backward reads as it is holds something else than it did."""
        return any(not same_bits(host(now), host(then)) for now, then, _ in self._unsafe)

    def holds(self, value: int, a: np.ndarray) -> bool:
        """Whether a result must be handed out as a copy, because backward reads it and nobody guards it."""
        return id(a) in self._held and self.tape.home(value) not in self.guarded

    @property
    def released(self) -> bool:
        return bool(self.freed)

    def _check(self, cotangents: list, asked: Sequence[int] | None, aims: Iterable[int] = ()) -> None:
        """Raise what the tape would raise on the way from these results to the edges that are asked for (None: all)."""
        needed: set[int] = set()
        given = [e for e, g in zip(self.differentiated, cotangents, strict=True) if g is not None]
        if asked is None:
            for e in given:
                if e in self.tape.trouble:
                    raise damaged(*self.tape.trouble[e])
                needed |= self.tape.saved.get(e, frozenset())
                if not self.freed.isdisjoint(self.tape.holders.get(e, ())):
                    raise RuntimeError(SECOND_TIME)
        else:
            wanted = {self.inner_edges[j] for j in asked}.union([self.differentiated[i] for i in aims])
            way = self.tape.way(frozenset(given), frozenset(wanted))
            if way.damaged is not None:
                raise damaged(*way.damaged)
            if not self.freed.isdisjoint(way.holders):
                raise RuntimeError(SECOND_TIME)
            needed.update(way.saved)
        for t, st, version, spec, value in self.versions:
            if (st.version != version or (t is not None and t._storage is not st)) and value in needed:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{spec}], which the compiled {self.name_of} reads in its backward, is at version {st.version}; expected "
                    f"version {version} instead."
                )

    def reaching(self, i: int) -> list:
        """The edges that gradient of a result flows to: outside ones, unless this node stands aside."""
        if self.aside:
            return [self.inside[i]]
        reached = self.tape.reaches.get(self.differentiated[i], frozenset())
        return [self.external_edges[k] for k in reached if k in self.external_edges]

    def passing(self, i: int) -> list[int]:
        """The other results that gradient of a result flows through."""
        if self.aside:
            return []
        through = self.tape.passes.get(self.differentiated[i], frozenset())
        return [self.index[e] for e in through if e in self.index]

    @property
    def hooks(self) -> list | None:
        """Pairs (result, hook)."""
        return self._hooks

    @hooks.setter
    def hooks(self, hooks: list | None) -> None:
        """They are those of operations, too, where these stand for this node."""
        self._hooks = hooks
        if self.opened is None:
            return
        known, self._heard = self._heard, []
        for node in {self.opened[e][0] for e in self.differentiated}:
            node.hooks = None
        for entry in hooks or ():
            node, i = self.opened[self.differentiated[entry[0]]]
            ours = next((own for theirs, own in known if theirs is entry), (i, entry[1]))
            self._heard.append((entry, ours))
            node.hooks = [*(node.hooks or ()), ours]

    def serves(self, cotangents: list) -> bool:
        """Whether the compiled backward is for these, as far as can be told from them."""
        n = len(self.plan.differentiated)
        return not (
            self._done
            or self.plan.backward is None
            or force.grad
            or self.opened is not None
            or any(g is not None for g in cotangents[n:])
        )

    def apply(self, cotangents: list, asked: Sequence[int] | None = None) -> list:
        """The cotangents of the operands; of those only that are asked for, by number, where others are not wanted (None: all)."""
        self._check(cotangents, asked)
        if not self.serves(cotangents) or self._rewritten():
            return self._replay(cotangents, asked)[0]
        n = len(self.plan.differentiated)
        arrays = list(self.saved)
        for g, s in zip(cotangents[:n], self.outputs, strict=False):
            arrays.append(self._zeros(s) if g is None else g._data())
        got = self.plan.backward(arrays, self.sizes)
        reached: set[int] = set()
        for e, g in zip(self.plan.differentiated, cotangents, strict=False):
            if g is not None:
                reached |= self.tape.reaches.get(e, frozenset())
        if asked is not None:
            reached.intersection_update([self.inner_edges[j] for j in asked])
        seen: set[int] = set()
        out: list = []
        for e, i in zip(self.inner_edges, self.plan.gradients, strict=True):
            if i is None or e not in reached:
                out.append(None)
            else:
                a = got[i]
                out.append(wrap(duplicate(a) if id(a) in seen else a))
                seen.add(id(a))
        return out

    def _zeros(self, s: Spec) -> Any:
        a = np.zeros(s.shape, s.dtype.numpy)
        return a if self.plan.device.type == "cpu" else to_device(gpu(self.plan.device.index), a)

    def open(
        self, cotangents: list, aims: Iterable[int], asked: Sequence[int] | None = None, called: Sequence = ()
    ) -> tuple[list, dict[int, Any]]:
        """As `apply`, through one operation after the other: hooks on results are called with all of their gradient, but for
        those that were `called` before. The other answer is the gradients of those results that are aimed at."""
        self._check(cotangents, asked, aims)
        return self._replay(cotangents, asked, aims, called)

    def _reopen(self) -> dict[int, Any]:
        """The tape of a re-execution from the original inputs, as the tape would be now."""
        for t, ref, _ in self.externals:
            t._node = None if ref.edge is None else self.external_edges[ref.edge]
        before, force.grad = force.grad, True
        try:
            values, tape = replay.run_path(self.path, self.externals, self.external_edges, self.bindings)
        finally:
            force.grad = before
        # what is saved here of the memory of inputs and results is that memory itself, as on the tape: what is written to it from
        # now on is noticed, or read, and so is what was written before
        stands: dict[int, tuple[Storage, int, bool]] = {}
        for t, st, version, _, m in self.versions:
            ours = values[m].storage_of()
            intact = st.version == version and (t is None or t._storage is st)
            stands[id(ours)] = st, ours.version, intact and stands.get(id(ours), (st, 0, True))[2]
        shown = [(a, values[v]._data()) for a, v in [(a, v) for _, a, v in self._shown] + [(a, v) for a, _, v in self._unsafe]]
        shown = [(now, ours) for now, ours in shown if now is not ours]
        for node in {node for e, (node, _) in tape.items() if e not in self.external_edges and isinstance(node, Node)}:
            versions = []
            for x, version, reassigned in node.versions:
                stand = stands.get(id(x._storage))
                if stand is not None and version == stand[1]:
                    x._storage = stand[0]
                    version = stand[0].version if stand[2] else -1
                    x._array = seen_in(shown, x._array)
                versions.append((x, version, reassigned))
            node.versions = versions
        return tape

    def _replay(
        self, cotangents: list, asked: Sequence[int] | None, aims: Iterable[int] = (), called: Sequence | None = None
    ) -> tuple[list, dict[int, Any]]:
        """Through the tape of a re-execution, which is made at its first need. Hooks that were `called` already (None: all) are
        not called inside of it."""
        tape = self.opened
        if tape is None:
            tape = self.opened = self._reopen()
            capture, call = self._call
            told = None if capture.derived_twice is None or not force.grad else capture.derived_twice()
            if told is not None:
                told(call)
            self.hooks = self._hooks  # they are on its operations from now on
        if force.grad:
            for t, original in self._originals:
                t._node = edge(original)  # (a leaf may have been frozen, or thawed, meanwhile)
        of = self.differentiated
        roots = [tape[e] for e, g in zip(of, cotangents, strict=True) if g is not None]
        gs = [g for g in cotangents if g is not None]
        operands = [self.external_edges[e] for e in self.inner_edges]
        inside = {i: tape[of[i]] for i in aims}
        wanted = [*(operands if asked is None else [operands[j] for j in asked]), *inside.values()]
        silent = [ours for theirs, ours in self._heard if called is None or any(theirs is c for c in called)]
        got = run_engine(roots, gs, retain_graph=True, create_graph=force.grad, wanted=wanted, barrier=operands, called=silent)
        found = {e: got.get(e) for e in wanted}
        # (memory that NumPy shares is another input at each use, with one gradient for all)
        return [found.pop(e, None) for e in operands], {i: got[e] for i, e in inside.items() if e in got}

    def release(self, results: Iterable[int]) -> None:
        """Let go of what backward came through on its way from these results; others can still be differentiated."""
        edges = [self.differentiated[i] for i in results]
        if self.opened is not None:
            let_go(*walk([self.opened[e] for e in edges], frozenset(self.external_edges.values())))
        for e in edges:
            self.freed |= self.tape.holders.get(e, frozenset())
        holders = [self.tape.holders.get(e, frozenset()) for e in self.differentiated]
        if all(h and h <= self.freed for h in holders):
            self.saved = []
            self.externals = [(unread(t), ref, None) for t, ref, _ in self.externals] if self.tape.bare else []
            self.versions = []
            self.opened = None
            self._shown, self._unsafe, self._originals = [], [], []
            self._done = True


def unread(t: Tensor) -> Tensor:
    """A tensor of the same kind whose values nobody needs: it holds no memory."""
    a = t._array
    if type(a) is DeviceArray:
        return wrap(empty(a.gpu, (), a.dtype).seen(np.broadcast_to, shape=a.shape))
    return wrap(np.broadcast_to(np.zeros((), a.dtype), a.shape))
