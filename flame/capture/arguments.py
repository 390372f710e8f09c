"""The arguments of a call as `mode="replay"` tells them apart: their structure, what kind of tensors they hold, their numbers.

    given = Arguments(args, kwargs)    a key that is equal for calls that Python can't tell apart, and the tensors in order
    call = matcher(args, kwargs, ending, names)
                                       call(args, kwargs) -> MISS for other arguments, else what the lines of `ending` return

    argument ::= tensor | tuple, list or dict (of string keys) of arguments | constant (compared by type and bits)
               | anything else (compared by identity; `Watch` looks into it)

The matcher is written as source for these arguments and compiled by Python, so that a call costs a few comparisons an argument
and no walk over structures (closures and loops that did the same took 3 us longer). It asks the same of a tensor as an input step
of the tree does (`flame.capture.trace.InputKey`), but for memory that NumPy shares, which makes no difference to who reads it anew
at each call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from flame.autograd.tape import AccumulateGrad, edge, requires_grad
from flame.capture.trace import same_number
from flame.capture.watching import Unprovable
from flame.reasons import REPLAY_OPAQUE
from flame.runtime.device_array import DeviceArray, device_of
from flame.tensor import Tensor

MISS = object()  #: the answer to a call that something else must do
_SIMPLE = (int, bool, str, bytes, type(None))


class Arguments:
    """See the head of this file. `tensors` holds each tensor once; `others` is what is compared by identity."""

    def __init__(self, args: tuple, kwargs: dict):
        self.tensors: list[Tensor] = []
        self.others: list[Any] = []
        self._index: dict[int, int] = {}
        self.key = (*map(self._of, args), tuple(kwargs), *map(self._of, kwargs.values()))

    def _of(self, x: Any) -> tuple:
        t = type(x)
        if isinstance(x, Tensor):
            i = self._index.get(id(x))
            if i is not None:
                return ("same", i)
            self._index[id(x)] = len(self.tensors)
            self.tensors.append(x)
            if x._array is None:
                raise Unprovable(REPLAY_OPAQUE, "a tensor that is still to be computed")
            volatile = x._handed_out()  # (before the array has a name here: it counts who holds it)
            a, e = x._array, edge(x)
            leaf = e is None or type(e[0]) is AccumulateGrad
            return (t, device_of(a), a.dtype, a.shape, a.strides, e is not None, leaf, volatile, x._view is not None)
        if t in _SIMPLE:
            return (t, x)
        if t is float:
            return (t, struct.pack("<d", x))
        if t is complex:
            return (t, repr(x))
        if isinstance(x, tuple | list):
            return (t, *map(self._of, x))
        if t is dict:
            if not all(type(k) is str for k in x):
                raise Unprovable(REPLAY_OPAQUE, "a dict whose keys are no strings")
            return (t, tuple(x), *map(self._of, x.values()))
        self.others.append(x)
        return ("object", id(x))


class _Source:
    """The lines of a matcher, and the objects that they name."""

    def __init__(self, told: frozenset[int]) -> None:
        self.told = told
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"same_number": same_number, "requires_grad": requires_grad, "MISS": MISS}
        self.tensors: list[str] = []
        self.arrays: list[str] = []
        self.variable: dict[int, str] = {}
        self.count = 0

    def name(self, x: Any) -> str:
        n = f"k{len(self.names)}"
        self.names[n] = x
        return n

    def fresh(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def unless(self, condition: str) -> None:
        self.lines.append(f"    if not ({condition}): return MISS")

    def items(self, xs: Any) -> list[tuple[str, Any]]:
        return [(self.fresh(), x) for x in xs]

    def unpack(self, pairs: list[tuple[str, Any]], of: str) -> None:
        if pairs:
            self.lines.append(f"    {''.join(n + ', ' for n, _ in pairs)}= {of}")
        for n, x in pairs:
            self.check(n, x)

    def check(self, v: str, x: Any) -> None:
        t = type(x)
        if isinstance(x, Tensor):
            self.check_tensor(v, x)
        elif x is None or t is bool:
            self.unless(f"{v} is {x!r}")
        elif t in _SIMPLE:
            self.unless(f"type({v}) is {self.name(t)} and {v} == {self.name(x)}")
        elif t is float:
            self.unless(f"{v} is {self.name(x)} or same_number({v}, {self.name(x)})")
        elif t is complex:
            self.unless(f"type({v}) is complex and repr({v}) == {repr(x)!r}")
        elif isinstance(x, tuple | list):
            self.unless(f"type({v}) is {self.name(t)} and len({v}) == {len(x)}")
            self.unpack(self.items(x), v)
        elif t is dict:
            self.unless(f"type({v}) is dict and list({v}) == {self.name(list(x))}")
            self.unpack(self.items(x.values()), f"{v}.values()")
        else:
            self.unless(f"{v} is {self.name(x)}")

    def check_tensor(self, v: str, t: Tensor) -> None:
        if id(t) in self.variable:
            self.unless(f"{v} is {self.variable[id(t)]}")
            return
        self.variable[id(t)] = v
        told = len(self.tensors) in self.told
        self.tensors.append(v)
        a = t._array
        self.unless(f"type({v}) is {self.name(type(t))}")
        array = self.fresh()
        self.arrays.append(array)
        self.lines.append(f"    {array} = {v}._array")
        if not told:
            self.unless(
                f"{array} is not None and {array}.shape == {self.name(a.shape)} and {array}.dtype is {self.name(a.dtype)} "
                f"and {array}.strides == {self.name(a.strides)} and type({array}) is {self.name(type(a))}"
            )
        if type(a) is DeviceArray:
            self.unless(f"{array}.gpu is {self.name(a.gpu)}")
        e = edge(t)
        if t._view is not None:
            self.unless(f"{v}._view is not None and requires_grad({v}) is {e is not None}")
        elif e is None:
            self.unless(f"not {v}._requires_grad and {v}._node is None and {v}._view is None")
        elif t._node is None:
            self.unless(f"{v}._requires_grad and {v}._node is None and {v}._view is None")
        else:
            self.unless(f"{v}._node is not None and {v}._view is None")


def matcher(
    args: tuple,
    kwargs: dict,
    ending: Callable[[list[str], list[str]], list[str]],
    names: dict,
    told: frozenset[int] = frozenset(),
) -> Callable:
    """See the head of this file. `ending(tensors, arrays)` gives the lines that follow the check, where the tensors and their
    arrays have these names; `names` are what else these lines use. The arrays of the tensors number `told` are not compared: the
    lines of `ending` do."""
    s = _Source(told)
    s.unless(f"len(args) == {len(args)}")
    if kwargs:
        s.unless(f"list(kwargs) == {s.name(list(kwargs))}")
    else:
        s.lines.append("    if kwargs: return MISS")
    s.unpack(s.items(args), "args")
    s.unpack(s.items(kwargs.values()), "kwargs.values()")
    n = len(s.tensors)
    if n == 2:
        s.unless(f"{s.tensors[0]} is not {s.tensors[1]}")
    elif n > 2:
        s.unless(f"len({{{', '.join(f'id({v})' for v in s.tensors)}}}) == {n}")
    s.lines += [f"    {line}" for line in ending(s.tensors, s.arrays)]
    s.names.update(names)
    exec("def call(args, kwargs):\n" + "\n".join(s.lines), s.names)
    return s.names["call"]
