"""Never slower: whether a compiled function is faster than eager, found out while it is called.

    trial ::= round*             round ::= (compiled call, eager call)*        other calls run by the verdict so far

A round begins once the function has been followed for a while (`FIRST`). It takes calls in pairs, one compiled and one eager, and
compares the two of a pair, which must have been given arguments of the same kind. It ends at the first pair in which compiled is
clearly faster (so that most functions run eagerly once), or after `PAIRS` of them. Where compiled was slower in most, a second
round decides, and then the function runs eagerly, with a reason that `stats` and `explain()` show. From then on a round is run at
every doubling of its calls, and the first one that compiled does not lose gives the function back to its kernels.

Results are those of the one or the other, which differ by rounding at most. What is not judged: calls that recorded or compiled,
results that carry gradients (backward is part of what they cost, and is not seen here), fullgraph and replayed functions, and
functions that are compiled in the background. FLAME_NEVER_SLOWER=0 turns it off, and so does options={"never_slower": False}.

Derivatives of derivatives that are taken outside of a function run its operations again, on the tape: what was compiled has only
cost time then. Where that happens to the results of `TWICE` calls in a row, the next calls run eagerly, and then one is compiled to
see whether it is still so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flame.primitive import placement
from flame.runtime import cuda
from flame.tensor import Tensor

FIRST = 12  #: calls that were followed to their end, before the first round
PAIRS = 5  #: of a round
LOST = 4  #: pairs of a round that compiled must lose to lose the round
SLOWER = 1.1  #: from this ratio of times on, a pair is lost
FASTER = 0.85  #: up to this ratio, nothing more needs to be measured

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
        self._rounds = 0  #: in a row that compiled lost
        self._pairs: list[float] = []
        self._measuring = ""  #: "compiled" or "eager" while a round is on
        self._kind: Any = None
        self._compiled = 0.0

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
            if self._pairs[-1] <= FASTER or len(self._pairs) == PAIRS:
                return self._judge()
        return False

    def _judge(self) -> bool:
        """The end of a round."""
        pairs, self._pairs, self._measuring = sorted(self._pairs), [], ""
        self.ratio = pairs[len(pairs) // 2]
        lost = pairs[0] > FASTER and sum(r > SLOWER for r in pairs) >= LOST
        before = self.eager
        if not lost:
            self._rounds = 0
            self.eager, self.done = False, not before
            self._next = self._calls + FIRST
        else:
            self._rounds += 1
            self.eager = before or self._rounds >= 2
            self._next = max(8 * FIRST, 2 * self._calls) if self.eager else self._calls + FIRST
        return self.eager is not before


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
        trial.done = True
        return result, False
    return result, trial.took(kind, seconds, settled() == before)
