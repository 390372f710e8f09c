"""Never slower: whether a compiled function is faster than eager, found out while it is called.

    trial ::= round*             round ::= (compiled call, eager call)*        other calls run by the verdict so far

A round begins once the function has been followed for a while (`FIRST`). It takes calls in pairs, one compiled and one eager, and
compares the two of a pair, which must have been given arguments of the same kind. It ends where compiled is clearly faster in
the first two (so that most functions run eagerly twice), or after `PAIRS` of them. Where compiled was slower in most, a second
round decides, and then the function runs eagerly, with a reason that `stats` and `explain()` show. From then on a round is run at
every doubling of its calls, and two in a row that compiled does not lose give the function back to its kernels. Where compiled
won, one more round much later settles it: what else the machine did meanwhile must not decide for good.

What a call took is the call itself and, where its results carry gradients, the passes through the tape (`backward`, `grad`) that
its thread begins before it calls the function again: kernels of backward count, and what else is differentiated there is the same
in both calls of a pair. Calls whose gradients nobody took by then are not compared: their backward is still to come.

Results are those of the one or the other, which differ by rounding at most. What is not judged: calls that recorded or compiled,
fullgraph and replayed functions, and functions that are compiled in the background. FLAME_NEVER_SLOWER=0 turns it off, and so does
options={"never_slower": False}.

Derivatives of derivatives that are taken outside of a function run its operations again, on the tape: what was compiled has only
cost time then. Where that happens to the results of `TWICE` calls in a row, the next calls run eagerly, and then one is compiled to
see whether it is still so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from flame.autograd.engine import clocks
from flame.primitive import placement
from flame.runtime import cuda
from flame.tensor import Tensor

FIRST = 12  #: calls that were followed to their end, before the first round
LATER = 8  #: times as many calls until the next round, of a function that won or was handed over
PAIRS = 5  #: of a round
APART = 10  #: pairs on arguments of two kinds, after which a round is left undecided
LOST = 3  #: pairs of a round that compiled must lose to lose the round; it takes two rounds in a row to change the verdict
SLOWER = 1.1  #: from this ratio of times on, a pair is lost
FASTER = 0.85  #: up to this ratio a pair is clearly won;
CLEAR = 2  #: as many at the beginning of a round win it

TWICE = 3  #: calls in a row whose results were differentiated twice
REST, LONGEST = 31, 511  #: calls that run eagerly then, doubled each time

clock = time.perf_counter


class Trial:
    """The state of one function's trial. `turn` says how the next call is run, `took` hears of one that was measured."""

    def __init__(self) -> None:
        self.eager = False  #: the verdict
        self.done = False  #: compiled is faster: nothing is measured any more
        self.ratio = 0.0  #: compiled to eager, the median of the round that decided last
        self._calls = 0
        self._next = FIRST
        self._against = 0  #: rounds in a row that speak against the verdict
        self._pairs: list[float] = []
        self._measuring = ""  #: "compiled" or "eager" while a round is on
        self._kind: Any = None
        self._compiled = 0.0
        self._won = False  #: a round, before this one
        self._apart = 0  #: pairs of this round that were not compared
        self._open: Passes | None = None  #: the last call that was measured, as long as its backward may be to come

    def wait(self, passes: Passes) -> None:
        """The measured call's results carry gradients: the passes through the tape until the next call are a part of it."""
        self._open = passes
        clocks.add(passes)

    def conclude(self) -> bool:
        """Before another call: the one that waited is over. Whether the verdict changed."""
        passes, self._open = self._open, None
        if passes is None:
            return False
        clocks.discard(passes)
        return self.took((passes.kind, passes.count), passes.seconds, passes.count > 0 and passes.plain())

    def turn(self) -> str:
        """ "compiled" or "eager": measure the next call, run so; "": run it by the verdict and measure nothing."""
        if not self._measuring:
            self._calls += 1
            if self._calls < self._next:
                return ""
            self._measuring = "compiled"
        return self._measuring

    def took(self, kind: Any, seconds: float, counts: bool = True) -> bool:
        """A measured call on arguments of a kind; it `counts` unless it recorded or compiled. Whether the verdict changed."""
        if self._measuring == "compiled":
            if counts:
                self._kind, self._compiled, self._measuring = kind, seconds, "eager"
            else:
                self._measuring, self._next = "", self._calls + FIRST
            return False
        self._measuring = "compiled"
        if kind == self._kind:
            self._pairs.append(self._compiled / max(seconds, 1e-9))
            if len(self._pairs) == PAIRS or len(self._pairs) == CLEAR and max(self._pairs) <= FASTER:
                return self._judge()
            return False
        self._apart += 1
        if self._apart == APART:  # arguments change all the time: half of the calls would be eager for good
            self._pairs, self._measuring, self._apart = [], "", 0
            self._next = LATER * self._calls
        return False

    def _judge(self) -> bool:
        """The end of a round."""
        pairs, self._pairs, self._measuring, self._apart = sorted(self._pairs), [], "", 0
        self.ratio = pairs[len(pairs) // 2]
        lost = sum(r > SLOWER for r in pairs) >= LOST
        before = self.eager
        self._against = self._against + 1 if lost is not before else 0
        if self._against == 2:
            self.eager, self._against = lost, 0
        if self._against:
            self._next = self._calls + FIRST
        elif self.eager:
            self._next = max(LATER * FIRST, 2 * self._calls)
        else:
            self.done, self._won = self._won, True
            self._next = LATER * self._calls
        self._won = self._won and not lost
        return self.eager is not before


class Passes:
    """What follows a measured call: the passes through the tape that its thread begins. `seconds` are the call's own at first."""

    MOST = 16  #: after these, nobody is waiting for the function's next call any more

    def __init__(self, kind: Any, seconds: float, plain: Callable[[], bool]):
        self.kind, self.seconds = kind, seconds
        self.plain = plain  #: was nothing recorded or compiled since the call?
        self.count = 0
        self._thread = get_ident()
        self._inside = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """One pass; those that hooks begin within it are a part of it."""
        if self._inside or get_ident() != self._thread:
            yield
            return
        self._inside = True
        wait_for_gpus()
        begin = clock()
        try:
            yield
        finally:
            wait_for_gpus()
            self.seconds += clock() - begin
            self.count += 1
            self._inside = False
            if self.count == self.MOST:
                clocks.discard(self)


class Twice:
    """Counts calls, one after the other, whose results were differentiated twice from outside."""

    __slots__ = ("last", "streak")

    def __init__(self) -> None:
        self.last = self.streak = 0

    def happened(self, call: int) -> int:
        """To a result of this call, by number. How many calls in a row it are now: 0 if that is known of this call already."""
        if call == self.last:
            return 0
        self.streak = self.streak + 1 if call == self.last + 1 else 1
        self.last = call
        return self.streak


class Rest:
    """Calls that run eagerly, after which the trial `before` goes on, if there is one."""

    __slots__ = ("before", "calls")

    def __init__(self, streak: int, before: Trial | None):
        self.calls = min(REST << min(streak - TWICE, 8), LONGEST)
        self.before = before


def kind_of(x: Any) -> Any:
    """What calls are told apart by: shapes and dtypes of tensors, numbers as they are, of everything else its type."""
    match x:
        case Tensor():
            return tuple(x.shape), x.dtype
        case bool() | int() | float() | str() | None:
            return x
        case tuple() | list():
            return tuple([kind_of(y) for y in x])
        case dict():
            return tuple([(k, kind_of(y)) for k, y in x.items()])
    return type(x)


def carries_gradients(x: Any) -> bool:
    """Does a result hold a tensor that backward may start from?"""
    match x:
        case Tensor():
            return bool(x.requires_grad)
        case tuple() | list():
            return any(map(carries_gradients, x))
        case dict():
            return any(map(carries_gradients, x.values()))
    return not (x is None or isinstance(x, bool | int | float | str))


def wait_for_gpus() -> None:
    """What was launched so far is no part of what is measured next; what it launches is."""
    if placement.gpu:
        cuda.synchronize_all()


def measured(trial: Trial, run: Callable[[], Any], kind: Any, settled: Callable[[], Any]) -> tuple[Any, bool]:
    """A call that is measured, and whether the verdict changed. `settled()` is equal before and after a call that only followed
    what was known."""
    before = settled()
    wait_for_gpus()
    begin = clock()
    result = run()
    wait_for_gpus()
    seconds = clock() - begin
    if carries_gradients(result):
        trial.wait(Passes(kind, seconds, lambda: settled() == before))
        return result, False
    return result, trial.took(kind, seconds, settled() == before)
