"""Known calls: functions of the framework that are followed in one check, from what they are called with to what they give.

    known call ::= function argument* -> result*        kept by the step after which it began
    argument   ::= ref | constant | Several(argument*)
    result     ::= ref | view of argument n | argument n

A composite or a function such as `transpose` is a stretch of the path, and all that it computes comes from its arguments: it
reads no values, draws no random numbers, writes nothing and uses no other tensors, or it is not learned. Called at the same place
of the tree with what it was called with before, it goes to the end of its stretch at once. Tensors from outside among the
arguments become inputs in order of the arguments, whether the call is known or not.
"""

from __future__ import annotations

from typing import Any, Final

from flame import dtypes
from flame.capture.sizes import SizedSpec
from flame.capture.state import RunState, SegmentEnded, new_object, weak
from flame.capture.trace import Ref, Slot, Step, Trace, exact
from flame.dtypes import dtype
from flame.precision import casting, in_force
from flame.primitive import force
from flame.tensor import Tensor

MOST_SIZES = 1024  #: sets of sizes that one call is remembered for
MOST = 8  #: known calls kept by one step: where arguments never are the same, remembering them helps nobody
UNKNOWN: Final = object()  #: what a call that is not known gives
_CONSTANTS = (int, float, bool, str, dtype, type(None), type(Ellipsis))


class Several:
    """A tuple or list of arguments, or a slice."""

    __slots__ = ("type", "items")

    def __init__(self, kind: type, items: tuple):
        self.type = kind
        self.items = items


class Result:
    """One result: fresh (`argument` < 0), an argument itself, or a view of it."""

    __slots__ = ("ref", "argument", "chain", "before", "whole")

    def __init__(self, ref: Ref | None, argument: int, chain: tuple):
        self.ref = ref
        self.argument = argument
        self.chain = chain
        self.before: tuple | None = None  #: the chain of an argument that is a view itself, and both together
        self.whole = chain


class Macro:
    """A known call."""

    __slots__ = (
        "function", "given", "positional", "names", "grad", "default", "casts", "last", "only", "results", "pack", "checked",
    )  # fmt: skip

    def __init__(
        self, function: Any, given: tuple, positional: int, names: tuple, last: Step, results: list[Result], pack: Any
    ):
        self.function = function
        self.given = given
        self.positional = positional
        self.names = names
        # what framework functions depend on beside their arguments; whoever adds to it adds it here and where calls are looked up
        self.grad = force.grad
        self.default = dtypes._default_float
        self.casts = in_force.casts
        self.last = last
        #: the ref of a call that gives one fresh tensor
        self.only = results[0].ref if pack is None and results[0].argument < 0 else None
        self.results = results
        self.pack = pack  #: what makes one value of the results; None: there is one result
        #: with Sizes among its arguments: the bindings under which its operations were checked one by one, and the results then.
        #: A call makes its numbers from its arguments alone, so that they are what they were then
        self.checked: dict[tuple, list[Result]] | None = None


class Calls(RunState):
    """Calls that are known, and learning them."""

    __slots__ = ()

    enter: Any

    def composite(self, f: Any, name: str, args: Any, kwargs: dict) -> Any:
        """Follow a call that is known here; else run it, and know it from then on."""
        begin = self.at
        got = self.known(f, args, kwargs)
        return self._call(f, name, args, kwargs, begin) if got is UNKNOWN else got

    def known(self, f: Any, args: Any, kwargs: dict) -> Any:
        """Follow a call that is known here; UNKNOWN of any other."""
        macros = self.at.macros
        if macros is None or self.next is None:
            return UNKNOWN
        if kwargs:
            names: tuple = tuple(kwargs)
            given = (*args, *kwargs.values())
        else:
            names, given = (), args
        n, grad, default = len(args), force.grad, dtypes._default_float
        casts = in_force.casts if casting.threads else None
        m: Macro
        for m in macros:
            if (
                m.function is f
                and m.positional == n
                and m.grad is grad
                and m.default is default
                and m.casts is casts
                and (m.names == names if kwargs else not m.names)
            ):
                for want, a in zip(m.given, given):
                    if type(want) is Ref:
                        if isinstance(a, Tensor):
                            r = a._ref
                            if r is want or (r is None and self.enter(a) is want):
                                continue
                        break
                    if want is not a and not self._fits(want, a):
                        break
                else:
                    if m.checked is not None and tuple(self.bindings) not in m.checked:
                        continue
                    if m.only is None:
                        return self._follow_call(m, given)
                    last: Step = m.last
                    self.at = last
                    got = new_object(Tensor)
                    got._array = None
                    got._ref = m.only
                    self.tracked.append(weak(got))
                    if last.children:
                        self.next = last.children[0]
                    else:
                        self.run_out()
                    return got
        return UNKNOWN

    def _fits(self, want: Any, a: Any) -> bool:
        """Whether an argument is what it was: tensors by ref, everything else by type and bits."""
        if want is a:
            return True
        kind = type(want)
        if kind is Ref:
            if isinstance(a, Tensor):
                r = a._ref
                return r is want or (r is None and self.enter(a) is want)
            return False
        if kind is Several:
            if type(a) is not want.type:
                return False
            items = (a.start, a.stop, a.step) if want.type is slice else a
            if len(items) != len(want.items):
                return False
            for x, y in zip(want.items, items):
                if not self._fits(x, y):
                    return False
            return True
        return not isinstance(a, Tensor) and exact(want, a)

    def _follow_call(self, m: Macro, given: Any) -> Any:
        last: Step = m.last
        self.at = last
        got: Any
        if m.only is not None:
            got = new_object(Tensor)
            got._array = None
            got._ref = m.only
            self.tracked.append(weak(got))
        else:
            results: list = m.results if m.checked is None else m.checked[tuple(self.bindings)]
            if m.pack is None:
                got = self._result(results[0], given)
            else:
                made: list = []
                for r in results:
                    made.append(self._result(r, given))
                got = tuple(made) if m.pack is tuple else m.pack(made)
        children = last.children
        if children:
            self.next = children[0]
        else:
            self.run_out()
        return got

    def _result(self, r: Result, given: tuple) -> Tensor:
        if r.ref is None:
            return given[r.argument]
        t = new_object(Tensor)
        t._array = None
        t._ref = r.ref
        if r.argument >= 0:
            base: Tensor = given[r.argument]
            trace: Trace | None = base._trace
            if trace is None:
                t._trace = Trace(None, r.chain, base)
            else:
                if trace.chain is not r.before:
                    r.before, r.whole = trace.chain, (*trace.chain, *r.chain)
                t._trace = Trace(None, r.whole, base if trace.root is None else trace.root)
            self.unlinked = True
        self.tracked.append(weak(t))
        return t

    def _call(self, f: Any, name: str, args: Any, kwargs: dict, begin: Step) -> Any:
        """A call that is not known where it begins; it may be known where its inputs are."""
        if self.inner is not None:
            return f(*args, **kwargs)
        given = (*args, *kwargs.values()) if kwargs else args
        try:
            arguments = self._arguments(given)
        except SegmentEnded:
            arguments = None
        if arguments is None or not self.alive or force.interpreter is not self:
            return _noted(f, name, args, kwargs)
        start, names = self.at, tuple(kwargs)
        if start is not begin and self.next is not None and start.macros is not None:
            for m in start.macros:
                if (
                    m.function is f
                    and m.positional == len(args)
                    and m.names == names
                    and m.grad is force.grad
                    and m.default is dtypes._default_float
                    and m.casts is in_force.casts
                    and all(map(self._fits, m.given, given))
                    and (m.checked is None or tuple(self.bindings) in m.checked)
                ):
                    return self._follow_call(m, given)
        bindings = tuple(self.bindings)
        grad, shadowed, reads = force.grad, self.shadow is not None, self.reads
        got = _noted(f, name, args, kwargs)
        steady = force.interpreter is self and self.alive and force.grad is grad and self.reads == reads
        if steady and not shadowed and self.shadow is None:
            m = self._learned(f, given, arguments, len(args), names, start, got)
            if m is not None:
                remember(begin, m, bindings)
                if start is not begin:
                    remember(start, m, bindings)
        return got

    def _arguments(self, x: Any) -> tuple | None:
        """Refs for tensors, everything else as it is; None where something can't be told apart for sure."""
        out: list[Any] = []
        for a in x:
            kind = type(a)
            if kind in _CONSTANTS:
                out.append(a)
            elif isinstance(a, Tensor):
                r = a._ref
                if r.__class__ is not Ref or r.capture is not self.capture:
                    if r is None and a._handed_out():
                        return None
                    r = self.ref_of(a)
                out.append(r)
            elif isinstance(a, tuple | list | slice):
                inner = self._arguments((a.start, a.stop, a.step) if isinstance(a, slice) else a)
                if inner is None:
                    return None
                # (a tuple of constants is told by itself, most often at once)
                out.append(a if type(a) is tuple and all(type(i) in _CONSTANTS for i in a) else Several(kind, inner))
            else:
                return None
        return tuple(out)

    def _learned(
        self, f: Any, given: tuple, arguments: tuple, positional: int, names: tuple, start: Step, got: Any
    ) -> Macro | None:
        """What is to be known of a call that ended just now, if it can be followed at once."""
        sized = _sized(arguments)
        made: set[Ref] = set()
        values: set[int] = set()
        s = self.at
        while s is not start:
            if s is None or s.kind != "op" or s.primitive is None or s.primitive.kind == "random":
                return None
            if s.binds or any(o.__class__ is Slot for o in s.operands):
                return None
            sized = sized or s.sized
            made.update(s.outs)
            values.update(r.value for r in s.outs)
            s = s.parent
        kind = type(got)
        if isinstance(got, Tensor):
            several, pack = [got], None
        elif kind is tuple or kind is list:
            several, pack = list(got), (tuple if kind is tuple else list)
        elif isinstance(got, tuple) and hasattr(got, "_make"):
            several, pack = list(got), kind._make
        else:
            return None
        if not several:
            return None
        results: list[Result] = []
        homes: set[int] = set()
        for t in several:
            r = self._result_of(t, given, made, values, homes)
            if r is None:
                return None
            results.append(r)
        m = Macro(f, arguments, positional, names, self.at, results, pack)
        if sized:
            m.checked = {}
        return m

    def _result_of(self, t: Any, given: tuple, made: set[Ref], values: set[int], homes: set[int]) -> Result | None:
        for i, a in enumerate(given):
            if a is t:
                return Result(None, i, ()) if isinstance(t, Tensor) else None
        if type(t) is not Tensor or t._ref not in made:
            return None
        trace = t._trace
        if trace is None:
            return Result(t._ref, -1, ())
        w = self.window_of(t)
        for i, a in enumerate(given):  # a view of an argument
            if not isinstance(a, Tensor) or a._ref is None or a._trace is None:
                continue
            seen = a._trace
            chain = seen.chain
            if (
                self.window_of(a) is w
                and trace.root is (a if seen.root is None else seen.root)
                and len(trace.chain) > len(chain)
                and trace.chain[: len(chain)] == chain
            ):
                return Result(t._ref, i, trace.chain[len(chain) :])
        if w.external is not None or w.current not in values or not t.is_contiguous() or id(w) in homes:
            return None
        homes.add(id(w))
        return Result(t._ref, -1, ())  # a view of what nobody else sees


def _noted(f: Any, name: str, args: Any, kwargs: dict) -> Any:
    """Call `f` with its name in force, unless it is part of another one."""
    if not name or force.note:
        return f(*args, **kwargs)
    force.note = name
    try:
        return f(*args, **kwargs)
    finally:
        force.note = ""


def remember(step: Step, m: Any, bindings: tuple = ()) -> None:
    """Keep a known call (or update) where it begins, the latest first."""
    if step.macros is None:
        step.macros = []
    if m.checked is not None:
        for old in step.macros:
            if old.checked is not None and old.last is m.last and old.function is m.function and _alike(old, m):
                if len(old.checked) < MOST_SIZES:
                    old.checked[bindings] = m.results
                return
        m.checked[bindings] = m.results
    step.macros.insert(0, m)
    del step.macros[MOST:]


def _sized(arguments: tuple) -> bool:
    """Whether the shape of an argument differs from call to call."""
    return any(type(a.spec) is SizedSpec if type(a) is Ref else type(a) is Several and _sized(a.items) for a in arguments)


def _alike(a: Macro, b: Macro) -> bool:
    """Whether two known calls are one, but for the sizes that they were checked for."""
    same = (
        a.positional == b.positional
        and a.names == b.names
        and a.grad is b.grad
        and a.default is b.default
        and a.casts is b.casts
    )
    return same and len(a.given) == len(b.given) and all(map(_same, a.given, b.given))


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if a.__class__ is Several and b.__class__ is Several:
        return a.type is b.type and len(a.items) == len(b.items) and all(map(_same, a.items, b.items))
    return a.__class__ is not Ref and exact(a, b)
