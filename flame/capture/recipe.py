"""What a followed call did, said without its tensors: enough to do it again without its Python.

    recipe ::= path (the step that ends it)
               source*              where each tensor from outside was found
               number*              the run-time numbers, those of random draws told apart
               made*                the tensors that outlive the call: their refs, windows and views
               write*               which outside memory was written, with what
               gradient*            what became of `.grad` of outside tensors
               result               the structure that was returned, of made tensors, sources and constants
    source ::= argument i | held k (of the `Watch`) | gradient of source

`observe` reads it from a run whose segment has just been computed. What can't be said raises `Unprovable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flame.autograd.tape import AccumulateGrad
from flame.capture.sizes import params_at, sized_at
from flame.capture.trace import Expr, Ref, Slot, Step, exact
from flame.capture.watching import CONSTANTS, Unprovable, Watch
from flame.functions.random import default_generator
from flame.reasons import (
    REPLAY_ALIAS,
    REPLAY_BROKEN,
    REPLAY_HOOKS,
    REPLAY_KEPT,
    REPLAY_NUMBER,
    REPLAY_OUTSIDE,
    REPLAY_RANDOM,
    REPLAY_RESULT,
    REPLAY_VIEW,
    REPLAY_WRITES,
)
from flame.symbol import evaluate
from flame.tensor import Tensor

#: ("argument", i), ("held", k), ("gradient", source)
Source = tuple


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that outlives the call."""

    ref: Ref
    window: int | None  #: which of the call's own windows it shows, if it was seen as memory at all
    current: int  #: the value that the window holds
    version: int
    chain: tuple
    root: int | None  #: the made tensor that it is an autograd view of


@dataclass(frozen=True, slots=True)
class Write:
    """Outside memory that was written: of which external, the value it holds now, how often it was written."""

    external: int
    ref: Ref
    current: int
    version: int
    mutations: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """See the head of this file. Refs and steps compare by identity."""

    leaf: Step
    at: Step  #: the step before it
    inputs: tuple[Step, ...]
    sources: tuple[Source, ...]
    shapes: tuple[tuple, ...]  #: of each source: shape and strides
    numbers: tuple
    random: tuple[tuple[int, int, int], ...]  #: (slot of the seed, slot of the offset, words drawn before)
    drawn: int  #: words in all
    made: tuple[Made, ...]
    writes: tuple[Write, ...]
    gradients: tuple[tuple[Source, int | None], ...]  #: whose `.grad` became which made tensor, or None
    without: tuple[tuple[Source, bool], ...]  #: whose `.grad` was None before, where that matters
    result: Any

    def difference(self, other: Recipe) -> Unprovable | None:
        """What `other` does otherwise."""
        if self.leaf is not other.leaf:
            return Unprovable(REPLAY_BROKEN, "it took another path than the call before")
        if self.sources != other.sources:
            i = next(i for i, (a, b) in enumerate(zip(self.sources, other.sources, strict=True)) if a != b)
            return Unprovable(REPLAY_BROKEN, "another tensor was used than in the call before", source=self.inputs[i].source)
        for a, b in zip(self.numbers, other.numbers, strict=True):
            if not exact(a, b):
                return Unprovable(REPLAY_NUMBER, repr(a), repr(b))
        if self.random != other.random or self.drawn != other.drawn:
            return Unprovable(REPLAY_RANDOM)
        if not same_result(self.result, other.result):
            return Unprovable(REPLAY_RESULT, f"{shown(other.result)}, where it held {shown(self.result)}")
        if (self.made, self.writes, self.gradients) != (other.made, other.writes, other.gradients):
            return Unprovable(REPLAY_KEPT, "another tensor than in the call before")
        return None


def other_path(old: Sequence[Step], bound: Sequence[Any], new: Sequence[Step], bindings: Sequence[Any]) -> str:
    """Where two paths do different things; empty if they only know numbers and sizes in different ways (as constants, or as what
    differs from call to call), as the tree comes to do with time."""
    names: dict[int, int] = {}

    def same(was: Any, now: Any) -> bool:
        if isinstance(was, Ref) or isinstance(now, Ref):
            return isinstance(was, Ref) and isinstance(now, Ref) and names.get(was.value) == now.value
        return exact(_number(was, bound), _number(now, bindings))

    def pairs(olds: Sequence[Step], news: Sequence[Step]) -> str:
        for a, b in zip(olds, news, strict=False):
            what = f"{_said(b)}{' at ' + b.source if b.source else ''}, where {_said(a)} was replayed"
            if a.kind != b.kind or a.primitive is not b.primitive or a.grad is not b.grad or len(a.operands) != len(b.operands):
                return what
            random = a.primitive is not None and a.primitive.kind == "random"
            if a.kind != "input" and not random and not all(map(same, a.operands, b.operands)):
                return what + " with other operands"
            if a.options != b.options or not exact(*(tuple(params_at(*x).items()) for x in ((a, bound), (b, bindings)))):
                return what + " with other parameters"
            if len(a.inner) != len(b.inner) or (said := pairs(a.inner, b.inner)):
                return said or what
            names.update((r.value, q.value) for r, q in zip(a.outs, b.outs, strict=True) if r is not None and q is not None)
        longer, how = (news, "followed") if len(news) > len(olds) else (olds, "was replayed")
        return "" if len(olds) == len(news) else f"{_said(longer[min(len(olds), len(news))])} {how} where the other path ended"

    return pairs(old, new)


def _said(s: Step) -> str:
    return s.primitive.name if s.primitive is not None else "a tensor from outside" if s.kind == "input" else f"a {s.kind}"


def _number(x: Any, bindings: Sequence[Any]) -> Any:
    """A number operand as it is with these bindings."""
    if isinstance(x, Slot):
        return bindings[x.index]
    return evaluate(x.expr, bindings) if isinstance(x, Expr) else sized_at(x, bindings)


def walk_result(x: Any, tensor: Callable[[Tensor], Any]) -> Any:
    """The structure of a result; tensors by what `tensor` says of them. ("made", i), ("source", s), ("constant", c),
    ("tuple", type, parts), ("list", parts), ("dict", keys, parts)."""
    t = type(x)
    if isinstance(x, Tensor):
        return tensor(x)
    if t is tuple or (isinstance(x, tuple) and hasattr(x, "_make")):
        return ("tuple", t, tuple(walk_result(v, tensor) for v in x))
    if t is list:
        return ("list", tuple(walk_result(v, tensor) for v in x))
    if t is dict:
        return ("dict", tuple(x), tuple(walk_result(v, tensor) for v in x.values()))
    if isinstance(x, CONSTANTS) or isinstance(x, tuple) and all(isinstance(v, int) for v in x):
        return ("constant", x)
    raise Unprovable(REPLAY_RESULT, f"an object of type {t.__name__}")


def same_result(a: tuple, b: tuple) -> bool:
    if a[0] != b[0]:
        return False
    match a[0]:
        case "constant":
            x, y = a[1], b[1]
            if isinstance(x, complex):
                return type(y) is complex and repr(x) == repr(y)
            return x is y or (isinstance(x, int | float | str | bytes | tuple) and exact(x, y))
        case "tuple" | "dict" | "list":
            return a[1:-1] == b[1:-1] and len(a[-1]) == len(b[-1]) and all(map(same_result, a[-1], b[-1]))
        case _:
            return a == b


def shown(result: tuple) -> str:
    """A result's structure for a message."""
    match result:
        case ("constant", c):
            return repr(c)
        case (("made" | "source"), _):
            return "a tensor"
        case ("tuple", _, parts):
            return f"({', '.join(map(shown, parts))})"
        case ("list", parts):
            return f"[{', '.join(map(shown, parts))}]"
        case (_, keys, parts):
            return f"{{{', '.join(f'{k!r}: {shown(p)}' for k, p in zip(keys, parts, strict=True))}}}"
    raise AssertionError(result)


def places(before: Before) -> tuple[dict[int, Source], set[int]]:
    """Where tensors known before the call are found, by id; and which are found in several ways."""
    where: dict[int, Source] = {}
    twice: set[int] = set()
    for source, t, g in before.known:
        for x, s in ((t, source), (g, ("gradient", source))):
            if x is not None:
                if id(x) in where:
                    twice.add(id(x))
                where.setdefault(id(x), s)
    return where, twice


@dataclass(slots=True)
class Before:
    """What has to be known of the moment before the call."""

    seed: int
    offset: int
    known: list[tuple[Source, Tensor, Tensor | None]]  #: arguments and held tensors, with their gradients

    @classmethod
    def now(cls, tensors: Sequence[Tensor], watch: Watch) -> Before:
        known: list[tuple[Source, Tensor, Tensor | None]] = [(("argument", i), t, t._grad) for i, t in enumerate(tensors)]
        known += [(("held", k), t, t._grad) for k, (t, _) in enumerate(watch.held)]
        return cls(default_generator.seed_value, default_generator.offset, known)


def observe(run: Any, leaf: Step, result: Any, watch: Watch, before: Before) -> Recipe:
    """The recipe of a call that was one followed segment, which has just been computed."""
    path = run.path
    inputs = [s for s in path if s.kind == "input"]
    where, twice = places(before)

    def source_of(t: Tensor, step: Step) -> Source:
        s = where.get(id(t))
        if s is None:
            raise Unprovable(REPLAY_OUTSIDE, t.spec, source=step.source)
        if id(t) in twice:
            raise Unprovable(REPLAY_ALIAS, f"a tensor of {t.spec}", source=step.source)
        return s

    sources = []
    number_of: dict[int, int] = {}
    for n, ((t, _, w), step) in enumerate(zip(run.externals, inputs, strict=True)):
        original = run.originals.get(n, t)
        sources.append(source_of(original, step))
        if step.key.alias is not None or (w is None and n not in run.originals):
            raise Unprovable(REPLAY_ALIAS, f"the memory of a tensor of {t.spec}", source=step.source)
        number_of[id(original)] = n
    if run.stages:
        raise Unprovable(REPLAY_HOOKS, "a result, or a custom function")
    if watch.hooked:
        raise Unprovable(REPLAY_HOOKS, watch.hooked)
    for node, _ in run.outside_edges().values():
        if node.hooks or (isinstance(node, AccumulateGrad) and node.post_hooks):
            raise Unprovable(REPLAY_HOOKS, "a tensor")

    random, drawn = _draws(path, run.bindings, before)
    made, place = _made(run, number_of)
    writes = _writes(run, sources, number_of, watch)
    gradients = []
    accounted: set[int] = set()
    for source, t, g in before.known:
        if t._grad is not g:
            i = None if t._grad is None else place.get(id(t._grad))
            if t._grad is not None and i is None:
                raise Unprovable(REPLAY_KEPT, "a gradient that is no result of the call")
            gradients.append((source, i))
            if i is not None:
                accounted.add(i)

    def of_result(t: Tensor) -> Any:
        i = place.get(id(t))
        if i is not None:
            accounted.add(i)
            return ("made", i)
        if id(t) in number_of or id(t) in where:
            return ("source", source_of(t, leaf))
        raise Unprovable(REPLAY_VIEW, t.spec)

    structure = walk_result(result, of_result)
    grown = True
    while grown:
        roots = {r for i in accounted if (r := made[i].root) is not None} - accounted
        accounted |= roots
        grown = bool(roots)
    for i, m in enumerate(made):
        if i not in accounted:
            raise Unprovable(REPLAY_KEPT, f"a tensor of {m.ref.spec}")
    matters = bool(gradients) or any(s.kind == "gradient" for s in path) or any(s[0] == "gradient" for s in sources)
    return Recipe(
        leaf=leaf,
        at=run.at,
        inputs=tuple(inputs),
        sources=tuple(sources),
        shapes=tuple((t._array.shape, t._array.strides) for t, _, _ in run.externals),
        numbers=tuple(b for i, b in enumerate(run.bindings) if not any(i in r[:2] for r in random)),
        random=random,
        drawn=drawn,
        made=tuple(made),
        writes=writes,
        gradients=tuple(gradients),
        without=tuple((s, g is None) for s, t, g in before.known if t._requires_grad) if matters else (),
        result=structure,
    )


def _draws(path: list[Step], bindings: list, before: Before) -> tuple[tuple, int]:
    """Which numbers are the random stream's, and how far the call moves it."""
    found, drawn = [], 0
    for s in path:
        if s.kind == "op" and s.primitive is not None and s.primitive.kind == "random":
            seed, at = s.operands
            if not isinstance(seed, Slot) or not isinstance(at, Slot):
                raise Unprovable(REPLAY_RANDOM, source=s.source)
            if bindings[seed.index] != before.seed or bindings[at.index] != before.offset + drawn:
                raise Unprovable(REPLAY_RANDOM, source=s.source)
            found.append((seed.index, at.index, drawn))
            drawn += -(-math.prod(params_at(s, bindings)["shape"]) // 4) * 4
    if default_generator.seed_value != before.seed or default_generator.offset != before.offset + drawn:
        raise Unprovable(REPLAY_RANDOM)
    return tuple(found), drawn


def _made(run: Any, externals: dict[int, int]) -> tuple[list[Made], dict[int, int]]:
    """The tensors of the segment that are still alive, and their places by id."""
    snapshots = {id(t) for t, _, _ in run.externals}
    alive = [t for t in run.live() if id(t) not in snapshots]
    place = {id(t): i for i, t in enumerate(alive)}
    windows: dict[int, int] = {}
    made = []
    for t in alive:
        trace = t._trace
        if trace is None:
            made.append(Made(t._ref, None, t._ref.value, 0, (), None))
            continue
        w = trace.window
        if w.external is not None:
            raise Unprovable(REPLAY_VIEW, t.spec)
        if t._ref.stale:
            raise Unprovable(REPLAY_KEPT, "a view of memory that was written afterwards")
        root = None if trace.root is None else place[id(trace.root)]
        number = windows.setdefault(id(w), len(windows))
        made.append(Made(t._ref, number, w.current, w.version, trace.chain, root))
    return made, place


def _writes(run: Any, sources: list[Source], number_of: dict[int, int], watch: Watch) -> tuple[Write, ...]:
    found = []
    for w in run.written:
        t = w.external
        if t is None:
            continue
        n = number_of[id(t)]
        source = sources[n]
        while source[0] == "gradient":
            source = source[1]
        if source[0] == "held" and source[1] not in watch.owned:
            raise Unprovable(REPLAY_WRITES, watch.held[source[1]][1])
        if t._ref.edge != run.externals[n][1].edge:
            raise Unprovable(REPLAY_WRITES, "a tensor that takes up gradient history by it")
        found.append(Write(n, t._ref, w.current, w.version, w.mutations))
    return tuple(found)
