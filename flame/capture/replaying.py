"""`mode="replay"`: calls that skip the user's Python, where that was proved to make no difference.

    call 1      recorded
    call 2, 3   followed; what they did is written down as a recipe (`flame.capture.recipe`), with all that Python could see
                (`flame.capture.watching`)
    call 4 on   if both recipes are one, and arguments and all that was seen are as they were: inputs are gathered, the plan runs

An Entry is one recipe. `entry.call(args, kwargs)` gives the result, or MISS where anything is not as it was. Its calls number 2,
4, 8, ... are audits: Python runs after all, and what it does is compared with the recipe; a difference raises ReplayError.

Entries whose results carry no gradient and which write nothing call the plan directly, and any number of threads may do so at
once. Others put a Run together that stands where the followed one stood (`thoroughly`) and end it as that one was
ended, one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from threading import get_ident
from typing import Any

import numpy as np

from flame import dtypes
from flame.autograd.saving import each_by_itself
from flame.autograd.tape import AccumulateGrad, edge
from flame.capture import segment
from flame.capture.arguments import MISS, Arguments, matcher
from flame.capture.recipe import Before, Recipe, Source, observe, other_path, places
from flame.capture.run import Run
from flame.capture.segment import Plan, check_positions, scalar_array
from flame.capture.state import weak
from flame.capture.trace import Capture, Step, Trace, Window
from flame.capture.watching import Unprovable, Watch
from flame.changes import changes
from flame.errors import ReplayError
from flame.functions.random import default_generator
from flame.precision import in_force
from flame.primitive import force, placement
from flame.reasons import REPLAY_BROKEN, REPLAY_READS, REPLAY_STATE, REPLAY_VARIES, REPLAY_WRONG
from flame.runtime.device_array import device_of
from flame.runtime.executable import Executable
from flame.runtime.gpu_copy import duplicate
from flame.runtime.memory import shared
from flame.runtime.threads import shared as pool
from flame.symbol import evaluate
from flame.tensor import Storage, Tensor

MOST_ENTRIES = 8
MOST_CANDIDATES = 64
_new: Any = object.__new__
#: asks for the one region of the process; gives whether it was free
Alone = Callable[[], "AbstractContextManager[bool]"]


class Entry:
    """One recipe, ready to be done again: `call(args, kwargs)` gives the result, or MISS."""

    def __init__(self, capture: Capture, key: tuple, watch: Watch, recipe: Recipe, args: tuple, kwargs: dict, alone: Alone):
        self.capture = capture
        self.key = key
        self.watch = watch
        self.recipe = recipe
        self.alone = alone
        self.grad, self.inference, self.casts = force.grad, force.inference, in_force.casts
        self.calls = self.reported = 0
        self.audit_at = 2
        self.plan: Plan | None = recipe.leaf.plan
        self.plain = self._is_plain()
        self._names: dict[str, Any] = {
            "entry": self,
            "watch": watch,
            "force": force,
            "in_force": in_force,
            "changes": changes,
            "placement": placement,
            "each_by_itself": each_by_itself,
            "new": _new,
            "Tensor": Tensor,
        }
        if self.plain:
            self._names |= self._prepare()
        told = self._told_by_the_program(Arguments(args, kwargs).tensors) if self.plain else frozenset()
        self.call: Callable[[tuple, dict], Any] = matcher(args, kwargs, partial(self._ending, bool(told)), self._names, told)

    @property
    def path(self) -> list[Step]:
        """The steps of the recipe's path."""
        found = []
        s = self.recipe.at
        while s.kind != "root":
            found.append(s)
            s = s.parent
        return found[::-1]

    @property
    def due(self) -> bool:
        """Whether the next call is an audit."""
        return self.calls + 1 >= self.audit_at

    def _ending(self, direct: bool, tensors: list[str], arrays: list[str]) -> list[str]:
        """What a call does once its arguments are known to fit; a `direct` one goes to the native program by itself."""
        lines = [f"if force.interpreter is not None or force.grad is not {self.grad}: return MISS"]
        lines.append(f"if force.inference is not {self.inference} or in_force.casts is not entry.casts: return MISS")
        lines.append("if placement.watched and each_by_itself(): return MISS")
        if self.watch.loose:
            lines.append("if not (watch.holds() if watch.token is changes.now else watch.still()): return MISS")
        else:
            lines.append("if watch.token is not changes.now and not watch.still(): return MISS")
        lines += ["n = entry.calls + 1", "if n >= entry.audit_at: return MISS"]
        held = ", ".join(tensors) + ("," if tensors else "")
        if not self.plain or self._special:
            how = "plainly" if self.plain else "thoroughly"
            lines += [f"result = entry.{how}(({held}))", "if result is not MISS: entry.calls = n"]
            return [*lines, "return result"]
        inputs = [arrays[s[1]] if s[0] == "argument" else f"held{n}" for n, s in enumerate(self._sources)]
        inputs += [f"number{n}" for n in range(len(self._scalars))]
        without = [f"plain{n}" for n in range(len(self._without_history))]
        self._names |= dict(zip(without, self._without_history, strict=True))
        lines += [f"if {t}._node is not None: return MISS" for t in without]
        for n, (number, *bounds, what) in enumerate(self._positions):
            self._names |= {"check_positions": check_positions, f"where{n}": what}
            lines.append(f"check_positions({inputs[number]}, {', '.join(map(repr, bounds))}, where{n})")
        if direct:
            lines += self._directly(inputs)
        else:
            lines.append(f"results = forward([{', '.join(inputs)}])")
        lines.append("entry.calls = n")
        for i, n in enumerate(self._outputs):
            lines += [f"t{i} = new(Tensor)", f"t{i}._array = {f'o{n}' if direct else f'results[{n}]'}"]
        return [*lines, f"return {self._spelled(self.recipe.result, tensors)}"]

    def _told_by_the_program(self, tensors: list[Tensor]) -> frozenset[int]:
        """The numbers of the arguments whose arrays the native program itself compares with what it was made for, before it runs;
        empty where it is not called directly."""
        f: Any = self._forward
        if self._special or self._positions or not self._outputs or type(f) is not Executable or f.native is None:
            return frozenset()
        given = {s[1]: n for n, s in enumerate(self._sources) if s[0] == "argument"}
        # It asks for memory in rows, which has strides of its own where every size is 2 or more.
        if not all(size > 1 for n in given.values() for size in f.recipe.inputs[n].shape):
            return frozenset()
        arrays = [*self._held.values(), *self._numbers(), *(tensors[i]._array for i in given)]
        if any(type(a) is not np.ndarray or not (a.flags.c_contiguous and a.flags.aligned) for a in arrays):
            return frozenset()
        return frozenset(given)

    def _directly(self, inputs: list[str]) -> list[str]:
        """The lines of `Executable.__call__` for one native stage, without its frame and lists; where somebody looks on, they are
        left to it."""
        f: Any = self._forward
        enter, plan, makers, arena, refuse, parallel = f.native
        made = [f"o{n}" for n in range(len(makers))]
        self._names |= {f"make{n}": m for n, m in enumerate(makers)}
        self._names |= {"enter": enter, "plan": plan, "take": shared.take_arena, "give": shared.give_arena, "refuse": refuse}
        self._names |= {"pool": pool}
        lines = ["if placement.watched:", f"    {', '.join(made)}, = forward([{', '.join(inputs)}])", "else:"]
        lines += [f"    {o} = make{n}()" for n, o in enumerate(made)]
        lines += ["    if pool.wanting: pool.start()"] if parallel else []
        given = ", ".join([*inputs, *made])
        if arena:
            lines += [
                f"    block = take({arena}, refuse)",
                f"    wrong = enter(plan, block.address, {given})",
                "    give(block)",
            ]
            return [*lines, "    if wrong is not None: return MISS"]
        return [*lines, f"    if enter(plan, 0, {given}) is not None: return MISS"]

    def _spelled(self, result: tuple, tensors: list[str]) -> str:
        """The expression that makes a result, of t0, t1, ... and the arguments."""

        def named(x: Any) -> str:
            name = f"c{len(self._names)}"
            self._names[name] = x
            return name

        match result:
            case ("made", i):
                return f"t{i}"
            case ("source", ("argument", i)):
                return tensors[i]
            case ("source", ("held", k)):
                return named(self.watch.held[k][0])
            case ("source", s):
                return f"entry.find({named(s)}, ({''.join(t + ', ' for t in tensors)}))"
            case ("constant", c):
                return named(c)
            case ("tuple", t, parts):
                items = "".join(self._spelled(p, tensors) + ", " for p in parts)
                return f"({items})" if t is tuple else f"{named(t._make)}(({items}))"
            case ("list", parts):
                return f"[{', '.join(self._spelled(p, tensors) for p in parts)}]"
            case (_, keys, parts):
                return f"{{{', '.join(f'{named(k)}: {self._spelled(p, tensors)}' for k, p in zip(keys, parts, strict=True))}}}"
        raise AssertionError(result)

    # ---- without gradients and writes

    def _is_plain(self) -> bool:
        r, plan = self.recipe, self.plan
        if plan is None or plan.flags or plan.extremes or plan.backward is not None:
            return False
        if r.writes or r.gradients or r.without:
            return False
        if any(s[0] == "gradient" for s in r.sources):
            return False
        if any(m.window is not None or m.ref.edge is not None for m in r.made):
            return False
        return plan.forward.distinct and len({m.ref.value for m in r.made}) == len(r.made)

    def _prepare(self) -> dict[str, Any]:
        """What a plain call reads, as names for its code."""
        r, plan = self.recipe, self.plan
        assert plan is not None
        bindings = self.bindings()
        self._forward = plan.forward.at(plan.sizes(bindings))
        self._positions = [
            (n, *(x(bindings) if callable(x) else x for x in (least, size)), what) for n, least, size, what in plan.positions
        ]
        self._outputs = [plan.place[m.ref.value] for m in r.made]
        self._sources = [r.sources[i] for i in plan.arrays]
        held = {n: self.watch.held[s[1]][0] for n, s in enumerate(self._sources) if s[0] == "held"}
        self._held = {n: t._array for n, t in held.items()}
        #: held tensors that in-place operations could give a history, which the results would then carry on
        self._without_history = [t for t in held.values() if not t._requires_grad and t._node is None] if self.grad else []
        self._scalars = plan.scalars
        self._special = bool(r.random)
        numbers = self._numbers()
        arrays = {f"held{n}": a for n, a in self._held.items()} | {f"number{n}": a for n, a in enumerate(numbers)}
        return {**arrays, "forward": self._forward}

    def _numbers(self) -> list[Any]:
        bindings = self.bindings()
        return [scalar_array(value_of(expr, bindings), d) for expr, d in self._scalars]

    def plainly(self, tensors: tuple) -> Any:
        """A plain call with random numbers, indices to check, or buffers that could have been given a history."""
        for t in self._without_history:
            if t._node is not None:
                return MISS
        inputs = [tensors[s[1]]._array if s[0] == "argument" else self._held[n] for n, s in enumerate(self._sources)]
        inputs += self._numbers()
        for number, least, size, what in self._positions:
            check_positions(inputs[number], least, size, what)
        default_generator.offset += self.recipe.drawn
        results = self._forward(inputs)
        made = []
        for n in self._outputs:
            t = _new(Tensor)
            t._array = results[n]
            made.append(t)
        return self.build(self.recipe.result, made, tensors)

    def inputs_differ(self, run: Any) -> bool:
        """Whether the arrays that would be read are not those of a run of the same path."""
        if not self.plain:
            return False
        arrays = [run.originals.get(i, run.externals[i][0]) for i in self.plan.arrays]  # type: ignore[union-attr]
        return any(arrays[n]._array is not a for n, a in self._held.items())

    # ---- with them

    def thoroughly(self, tensors: tuple) -> Any:
        with self.alone() as mine:
            return self._stand_in(tensors) if mine else MISS

    def _stand_in(self, tensors: tuple) -> Any:
        """Stand where the run stood that was observed, with today's tensors, and end it."""
        r, capture = self.recipe, self.capture
        if not self._gradients_as_before(tensors):
            return MISS
        run: Any = capture.spare
        if run is None:
            run = Run(capture, capture.root, get_ident())
        else:
            capture.spare = None
            run.begin(capture.root, get_ident())
        run.following, run.bindings = True, self.bindings()
        try:
            for i, (source, step) in enumerate(zip(r.sources, r.inputs, strict=True)):
                t = self.find(source, tensors)
                run.next = step
                if t is None or (run.enter(t) is None and not self._enter(run, t, i)) or (t._hooks is not None and hooked(t)):
                    return MISS
            run.at = r.at
            if r.writes and not self._write(run):
                return MISS
            made = self._pending(run)
            for s, k in r.gradients:
                self.find(s, tensors)._grad = None if k is None else made[k]
            segment.flush(run, r.leaf)
        finally:
            run.close()
        run.rest()
        default_generator.offset += r.drawn
        return self.build(r.result, made, tensors)

    def _gradients_as_before(self, tensors: Sequence) -> bool:
        """Whether those `.grad` are None that were, where that matters."""
        return all((self.find(s, tensors)._grad is None) is empty for s, empty in self.recipe.without)

    def _fits(self, t: Tensor, i: int) -> bool:
        """Whether a tensor from outside is what input step `i` of the path asks for."""
        step: Step = self.recipe.inputs[i]
        k, volatile = step.key, t._handed_out()  # (before the array has a name here: it counts who holds it)
        a = t._array
        if (
            a is None
            or (a.shape, a.strides) != self.recipe.shapes[i]
            or a.dtype is not step.numpy
            or volatile is not k.volatile
            or (k.device is not None and device_of(a) != k.device)
        ):
            return False
        e = edge(t)
        return (e is not None) is k.differentiable and (e is None or (type(e[0]) is AccumulateGrad) is k.leaf)

    def audits(self, key: tuple, tensors: Sequence) -> bool:
        """Whether a call of this kind is one that would have been replayed."""
        if self.key != key or not self.watch.still() or not self._gradients_as_before(tensors):
            return False
        outside = [self.find(s, tensors) for s in self.recipe.sources]
        if any(t is None or not self._fits(t, i) or hooked(t) for i, t in enumerate(outside)):
            return False
        if len(set(map(id, outside))) < len(outside):  # an argument that is seen in another way, too
            return False
        return not self.recipe.writes or len({id(t.storage_of()) for t in outside}) == len(outside)

    def _enter(self, run: Any, t: Tensor, i: int) -> bool:
        """An outside tensor that does not come as it came last, made known as its first use would make it; whether it fits."""
        if not self._fits(t, i):
            return False
        step = self.recipe.inputs[i]
        ref, st = step.outs[0], t.storage_of()
        if st.pending is not None or t._ref is not None or (st.window is not None and self.recipe.writes):
            return False  # one memory under two names
        if step.key.differentiable:
            run.edges[ref.edge] = edge(t)
        if step.key.volatile:
            snapshot: Tensor = _new(Tensor)
            snapshot._array = duplicate(t._array, "K")
            snapshot._node = run.edges.get(ref.edge)
            snapshot._ref = ref
            run.track(snapshot)
            run.externals.append((snapshot, ref, None))
            return True
        window = Window(t, ref.value, ref.spec, st)
        window.next, st.window = st.window, window
        window.members.append(weak(t))
        run.externals.append((t, ref, window))
        t._ref = ref
        t._trace = Trace(window, (), None)
        return True

    def _write(self, run: Any) -> bool:
        """Outside memory holds other values from here on; whether it can be written."""
        for w in self.recipe.writes:
            t, _, window = run.externals[w.external]
            if window.next is not None or not t._array.flags.writeable:
                return False
            window.current, window.version, window.mutations = w.current, w.version, w.mutations
            window.storage.pending = run
            t._ref = w.ref
            run.written.append(window)
        return True

    def _pending(self, run: Any) -> list[Tensor]:
        made: list[Tensor] = [_new(Tensor) for _ in self.recipe.made]
        windows: dict[int, Window] = {}
        for t, m in zip(made, self.recipe.made, strict=True):
            t._array = None
            t._ref = m.ref
            if m.window is not None:
                w = windows.get(m.window)
                if w is None:
                    w = windows[m.window] = Window(None, m.current, m.ref.spec, Storage())
                    w.version = m.version
                t._storage = w.storage
                t._trace = Trace(w, m.chain, None if m.root is None else made[m.root])
            run.track(t)
        return made

    # ---- both

    def find(self, source: Source, tensors: Sequence) -> Any:
        match source:
            case ("argument", i):
                return tensors[i]
            case ("held", k):
                return self.watch.held[k][0]
            case (_, of):
                return self.find(of, tensors)._grad

    def bindings(self) -> list:
        r = self.recipe
        taken = {i for seed, at, _ in r.random for i in (seed, at)}
        plain = iter(r.numbers)
        bindings = [None if i in taken else next(plain) for i in range(len(r.numbers) + len(taken))]
        for seed, at, before in r.random:
            bindings[seed] = default_generator.seed_value
            bindings[at] = default_generator.offset + before
        return bindings

    def build(self, result: tuple, made: list[Tensor], tensors: tuple) -> Any:
        match result:
            case ("made", i):
                return made[i]
            case ("constant", c):
                return c
            case ("source", s):
                return self.find(s, tensors)
            case ("tuple", t, parts):
                items = [self.build(p, made, tensors) for p in parts]
                return tuple(items) if t is tuple else t._make(items)
            case ("list", parts):
                return [self.build(p, made, tensors) for p in parts]
            case (_, keys, parts):
                return dict(zip(keys, (self.build(p, made, tensors) for p in parts), strict=True))


def hooked(t: Tensor) -> bool:
    """Whether a gradient hook is registered on a leaf."""
    return t._hooks is not None and bool(t._hooks.hooks or t._hooks.post_hooks)


def value_of(expr: tuple, bindings: list) -> Any:
    """A run-time number of a plan."""
    return bindings[expr[1]] if expr[0] == "slot" else evaluate(expr, bindings)


class Candidate:
    """What may become an entry: arguments of one kind, and what the last call with them did."""

    def __init__(self, key: tuple, watch: Watch):
        self.key = key
        self.watch = watch
        self.recipe: Recipe | None = None
        self.tries = 0


class Observation:
    """One call whose Python runs while replay looks on. `result` is set before the call's segment ends."""

    def __init__(
        self, replays: Replays, key: tuple, args: tuple, kwargs: dict, tensors: list, seen: Any, audited: Entry | None
    ):
        self.replays = replays
        self.key = key
        self.args, self.kwargs = args, kwargs
        self.audited = audited
        self.candidate: Candidate = seen
        self.watch: Watch = seen.watch
        self.before = Before.now(tensors, self.watch)
        self.recipe: Recipe | None = None
        self.problem: Unprovable | None = None
        self.result: Any = None
        self.read_at = ""  #: where Python read values of a tensor from outside, which ends no segment

    def __call__(self, run: Any, leaf: Step) -> None:
        """The run's segment has been computed, and its tensors still have their refs."""
        if leaf.key != "return" or run.root is not run.capture.root or not run.following:
            return
        try:
            if self.read_at:
                raise Unprovable(REPLAY_READS, source=self.read_at)
            self.recipe = observe(run, leaf, self.result, self.watch, self.before)
            if self.audited is not None and self.audited.inputs_differ(run):
                self.problem = Unprovable(REPLAY_BROKEN, "a parameter or buffer has other memory, and nothing told of it")
        except Unprovable as e:
            self.problem = e
        finally:
            self.result = None


class Replays:
    """The entries of one compiled function."""

    def __init__(self, fn: Callable, capture: Capture, alone: Alone):
        self._fn = fn
        self._alone = alone
        self._capture = capture
        self.entries: list[Entry] = []
        self._candidates: dict[tuple, list[Candidate]] = {}
        self._watch: Watch | None = None  #: the last one made for arguments without objects
        self._skip = self._refusals = 0
        self._stopped = False

    def report(self) -> None:
        """Bring the statistics up to date, which calls leave to those who read them."""
        for e in self.entries:
            self._capture.stats.replayed += e.calls - e.reported
            self._capture.stats.calls += e.calls - e.reported
            e.reported = e.calls

    def begin(self, args: tuple, kwargs: dict) -> Observation | None:
        """Look on at a call whose Python is about to run; None where there is nothing to learn."""
        due = [e for e in self.entries if e.due]
        if self._stopped or (self._skip > 0 and not due):
            self._skip -= self._skip > 0
            return None
        try:
            given = Arguments(args, kwargs)
            key = (force.grad, force.inference, in_force.casts, dtypes.get_default_dtype(), given.key)
            for e in due:
                if e.key == key and e.watch.token is changes.now and e.watch.holds() and (name := e.watch.difference()):
                    self._stop(Unprovable(REPLAY_STATE, f"{name}, of which nothing told"))
                if e.audits(key, given.tensors):
                    return Observation(self, key, args, kwargs, given.tensors, e, e)
            if key not in self._candidates:  # to look around is worth its time for what comes again
                self._candidates[key] = []
                if len(self._candidates) > MOST_CANDIDATES:
                    self._candidates.clear()
                    raise Unprovable(REPLAY_VARIES, MOST_CANDIDATES)
                return None
            candidates = self._candidates[key]
            seen = next((c for c in candidates if c.watch.still()), None)
            if seen is None:
                seen = Candidate(key, self._look_around(given.others))
                candidates[:] = [seen, *candidates[:1]]  # (two: a module in training, and the same in evaluation)
            return Observation(self, key, args, kwargs, given.tensors, seen, None)
        except Unprovable as e:
            self._refuse(e)
            return None

    def _look_around(self, others: list) -> Watch:
        if not others and self._watch is not None and self._watch.still():
            return self._watch
        roots = [(getattr(self._fn, "__name__", "the function"), self._fn), *(("an argument", x) for x in others)]
        watch = Watch(roots)
        if not others:
            self._watch = watch
        return watch

    def settle(self, o: Observation, run: Any) -> None:
        """A call that was looked on at is over. `run` is the segment that it ended in, or None.

        Raises ReplayError where an audit met a difference.
        """
        if run is None or run.root is not self._capture.root:
            problem: Unprovable | None = Unprovable(REPLAY_BROKEN, "it has breaks")
        else:
            problem = o.problem
        if o.audited is not None:
            return self._audit(o, o.audited, run, problem)
        if problem is None and o.recipe is None:
            return  # recorded, or compiled in the background: not yet
        if problem is None and (name := o.watch.difference()):
            problem = Unprovable(REPLAY_STATE, name)
        before, o.candidate.recipe = o.candidate.recipe, o.recipe
        if problem is None and before is not None:
            assert o.recipe is not None
            if before.leaf is not o.recipe.leaf and o.candidate.tries < 3:
                o.candidate.tries += 1  # the tree may have come to know numbers and sizes as symbols
                return
            problem = before.difference(o.recipe)
            if problem is None:
                entry = Entry(self._capture, o.key, o.watch, o.recipe, o.args, o.kwargs, self._alone)
                self.entries = [entry, *(e for e in self.entries if not e.watch.swapped())][:MOST_ENTRIES]
                self._candidates[o.key].remove(o.candidate)
                self._refusals = 0
        if problem is not None:
            self._refuse(problem)

    def _audit(self, o: Observation, e: Entry, run: Any, problem: Unprovable | None) -> None:
        """Compare what a call did with what would have been replayed."""
        if problem is None and (name := o.watch.difference()):
            problem = Unprovable(REPLAY_STATE, name)
        if problem is None and (o.recipe is None or o.recipe.leaf is not e.recipe.leaf):
            # another way through the tree, which may mean no more than that numbers and sizes have become symbols meanwhile
            where, _ = places(o.before)
            sources = tuple(where.get(id(run.originals.get(n, t))) for n, (t, _, _) in enumerate(run.externals))
            said = other_path(e.path, e.bindings(), run.path, run.bindings)
            if said or sources != e.recipe.sources:
                problem = Unprovable(REPLAY_BROKEN, f"it took another path: {said or 'other tensors are used'}")
            else:
                self.entries = [x for x in self.entries if x is not e]
                return
        elif problem is None:
            assert o.recipe is not None
            problem = e.recipe.difference(o.recipe)
        e.audit_at = 2 * e.audit_at
        if problem is not None:
            self._stop(problem)

    def _stop(self, problem: Unprovable) -> None:
        """Never replay again, and say why."""
        self.entries, self._candidates, self._watch, self._stopped = [], {}, None, True
        self._count(problem)
        text = REPLAY_WRONG.text(self._capture.name, problem.text)
        where = f"{problem.source}: " if problem.source else ""
        raise ReplayError(f"{where}{text}. {REPLAY_WRONG.remedy} (docs/graph-breaks.md)")

    def _refuse(self, problem: Unprovable) -> None:
        """Count why, and look on again only after a while, each time a longer one."""
        self._count(problem)
        self._refusals += 1
        self._skip = 2 ** min(self._refusals, 12)

    def _count(self, problem: Unprovable) -> None:
        stats = self._capture.stats
        stats.count(stats.fallbacks, problem.source, problem.text)
