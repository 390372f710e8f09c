"""The commonest small calls at once: what native code puts in the place of the methods that do them step by step.

    quick ::= (class, method, function, what it is given further, how it is called)

A function here takes a method's arguments, and the method itself, to which it leaves whatever is not the commonest case: another
interpreter, a watcher, a GPU, automatic casts, operands of other kinds, a mistake. It does the same as the method: the same NumPy
functions in the same order, the same views, the same nodes on the tape. In Python that would gain little; translated
(`flame.capture.native`), it takes a small operation to half a microsecond above what NumPy takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import numpy as np

from flame.autograd.nodes import Node, edge_of
from flame.autograd.tape import Direct, eager, show
from flame.functions.elementwise import DIRECT
from flame.functions.linear import MATMUL
from flame.functions.reduction import SUM
from flame.functions.shape import PERMUTE, RESHAPE, SLICE
from flame.ops.declare import quiet
from flame.precision import casting
from flame.primitive import applied, force, placement, registered
from flame.runtime.eager_kernels import LEAST
from flame.tensor import Tensor

Quick = tuple[type, str, Any, tuple, Literal["plain", "star"]]

_new: Any = object.__new__
_add: Any = np.add.reduce
_asarray, _ndarray = np.asarray, np.ndarray
_running: Any = np.add.accumulate
CUMSUM = registered("cumsum")
_QUOTIENT: Final = Direct.of(registered("div"))
_POWER: Final = Direct.of(registered("pow"))
_PRODUCTS: Final = frozenset((0.5, 1.0, 2.0, 3.0))  #: powers that are something else
#: what a sum over all of so many dimensions is given
_ALL: Final = [{"dim": tuple(range(n)), "keepdim": False} for n in range(65)]
#: the steps of x[i] by the shape of x and i
_ROWS: Final[dict[tuple, tuple]] = {}
_MOST_ROWS: Final = 4096
#: what a reduction of so many dimensions is given, by (dim,) and (dim, keepdim)
_ALONG: Final = {
    (n, given): {"dim": (given[0] % n,), "keepdim": given[-1] is True}
    for n in range(1, 7)
    for d in range(-n, n)
    for given in ((d,), (d, False), (d, True))
}
#: what a transposition of a matrix is given, and the view that it is
_TURN: Final = {"dims": (1, 0)}
_TURNED: Final = ((PERMUTE, (("dims", (1, 0)),)),)


def unary(self: Tensor, how: Direct, otherwise: Callable) -> Any:
    """A function of floats."""
    if force.interpreter is None and not casting.threads:
        a = self._array
        if a is not None and a.dtype.kind == "f":
            return eager.one(how, self, a)
    return otherwise(self)


def total(self: Tensor, otherwise: Callable) -> Any:
    """x.sum()"""
    if force.interpreter is None and placement.direct and not casting.threads:
        a = self._array
        s = self._storage
        if a is not None and (s is None or s.pending is None):
            d = a.dtype
            if d.kind == "f" and d.itemsize > 2 and a.size < LEAST and a.ndim > 0:
                t = _new(Tensor)
                t._array = _asarray(quiet.run(_add, a, None))
                if (self._node is not None or self._requires_grad or self._view is not None) and force.grad:
                    e = edge_of(self)
                    if e is not None:
                        t._node = (Node(SUM, (self,), _ALL[a.ndim], (e,), (t,)), 0)
                return t
    return otherwise(self)


def view(self: Tensor, sizes: tuple, otherwise: Callable) -> Any:
    """x.view(sizes) and x.reshape(sizes) of what lies in one piece."""
    if force.interpreter is None and placement.direct:
        a = self._array
        s = self._storage
        if a is not None and (s is None or s.pending is None) and a.flags.c_contiguous:
            n = 1
            for d in sizes:
                if type(d) is not int or d < 0:
                    n = -1
                    break
                n = n * d
            if n == a.size:
                t = _new(Tensor)
                t._array = a.reshape(sizes)
                show(t, self, ((RESHAPE, (("shape", sizes),)),))
                if (self._node is not None or self._requires_grad or self._view is not None) and force.grad:
                    e = edge_of(self)
                    if e is not None:
                        t._node = (Node(RESHAPE, (self,), dict(shape=sizes), (e,), (t,)), 0)
                return t
    return otherwise(self, *sizes)


def row(self: Tensor, key: Any, otherwise: Callable) -> Any:
    """x[i] of a whole number."""
    if type(key) is int and force.interpreter is None and placement.direct:
        a = self._array
        s = self._storage
        if a is not None and (s is None or s.pending is None) and a.ndim > 0:
            shape = a.shape
            n = shape[0]
            i = key if key >= 0 else key + n
            if i >= 0 and i < n:
                known = _ROWS.get((shape, i))
                if known is None:
                    known = _row(shape, i)
                e = None
                if (self._node is not None or self._requires_grad or self._view is not None) and force.grad:
                    e = edge_of(self)
                t = _new(Tensor)
                t._array = a[i, ...]
                show(t, self, known[0])
                if e is not None:  # (the slice that it is a reshaping of stands on the tape)
                    part = _new(Tensor)
                    part._array = a[known[1]]
                    show(part, self, known[2])
                    part._node = (Node(SLICE, (self,), known[3], (e,), (part,)), 0)
                    t._node = (Node(RESHAPE, (part,), known[4], (part._node,), (t,)), 0)
                return t
    return otherwise(self, key)


def sums(self: Tensor, given: tuple, otherwise: Callable) -> Any:
    """x.sum(), x.sum(dim), x.sum(dim, keepdim)"""
    if len(given) == 0:
        return total(self, otherwise)
    return along(self, given, SUM, _add, otherwise)


def along(self: Tensor, given: tuple, primitive: Any, reduce: Any, otherwise: Callable) -> Any:
    """x.sum(dim), x.amax(dim, keepdim) of floats."""
    if force.interpreter is None and placement.direct and not casting.threads:
        a = self._array
        s = self._storage
        if a is not None and (s is None or s.pending is None):
            d = a.dtype
            if d.kind == "f" and d.itemsize > 2 and a.size < LEAST and a.size > 0:
                params = _dimension(a.ndim, given)
                if params is not None:
                    got = quiet.run(reduce, a, params["dim"], None, None, params["keepdim"])
                    t = _new(Tensor)
                    t._array = got if type(got) is _ndarray and got.flags.c_contiguous else _asarray(got, order="C")
                    if (self._node is not None or self._requires_grad or self._view is not None) and force.grad:
                        e = edge_of(self)
                        if e is not None:
                            t._node = (Node(primitive, (self,), params, (e,), (t,)), 0)
                    return t
    return otherwise(self, *given)


def mean(self: Tensor, given: tuple, otherwise: Callable) -> Any:
    """x.mean(dim) of floats: a sum and a quotient."""
    t = along(self, given, SUM, _add, nothing)
    if t is None:
        return otherwise(self, *given)
    return eager.two(_QUOTIENT, t, float(self._array.shape[given[0]]))


def nothing(*_: Any) -> None:
    """In the place of a slower way, for who has one of their own."""


def place(self: Tensor, given: tuple, primitive: Any, name: str, otherwise: Callable) -> Any:
    """x.argmax(dim) of floats."""
    if force.interpreter is None and placement.direct:
        a = self._array
        s = self._storage
        if a is not None and (s is None or s.pending is None):
            d = a.dtype
            if d.kind == "f" and d.itemsize > 2 and a.size < LEAST and a.size > 0 and len(given) == 1:
                params = _dimension(a.ndim, given)
                if params is not None:
                    t = _new(Tensor)
                    t._array = _asarray(a.argmax(params["dim"][0]) if name == "argmax" else a.argmin(params["dim"][0]))
                    return t
    return otherwise(self, *given)


def scan(self: Tensor, given: tuple, otherwise: Callable) -> Any:
    """x.cumsum(dim) of floats."""
    if force.interpreter is None and placement.direct and not casting.threads:
        a = self._array
        s = self._storage
        if a is not None and (s is None or s.pending is None) and len(given) == 1:
            d = a.dtype
            if d.kind == "f" and d.itemsize > 2 and a.size < LEAST and a.flags.c_contiguous:
                params = _dimension(a.ndim, given)
                if params is not None:
                    dim = params["dim"][0]
                    t = _new(Tensor)
                    t._array = quiet.run(_running, a, dim)
                    if (self._node is not None or self._requires_grad or self._view is not None) and force.grad:
                        e = edge_of(self)
                        if e is not None:
                            t._node = (Node(CUMSUM, (self,), dict(dim=dim), (e,), (t,)), 0)
                    return t
    return otherwise(self, *given)


def power(self: Tensor, other: Any, otherwise: Callable) -> Any:
    """x ** 2.5 of floats."""
    if type(other) is float and force.interpreter is None and not casting.threads:
        a = self._array
        if a is not None and a.dtype.kind == "f" and other not in _PRODUCTS:
            return eager.two(_POWER, self, other)
    return otherwise(self, other)


def _dimension(ndim: int, given: tuple) -> dict[str, Any] | None:
    """What a reduction along one dimension is given: of (dim,) or (dim, keepdim) as callers have them."""
    n = len(given)
    if n < 1 or n > 2 or type(given[0]) is not int or (n == 2 and type(given[1]) is not bool):
        return None
    return _ALONG.get((ndim, given))


def product(self: Tensor, other: Any, otherwise: Callable) -> Any:
    """x @ y of two matrices of floats."""
    if force.interpreter is None and not casting.threads and isinstance(other, Tensor):
        a = self._array
        b = other._array
        if a is not None and b is not None and a.ndim == 2 and b.ndim == 2:
            d = a.dtype
            if d is b.dtype and d.kind == "f":
                return applied(MATMUL, (self, other), {})
    return otherwise(self, other)


def transposed(self: Tensor, otherwise: Callable) -> Any:
    """x.t() of a matrix."""
    if force.interpreter is None and placement.direct:
        a = self._array
        s = self._storage
        if a is not None and (s is None or s.pending is None) and a.ndim == 2:
            t = _new(Tensor)
            t._array = a.transpose()
            show(t, self, _TURNED)
            if (self._node is not None or self._requires_grad or self._view is not None) and force.grad:
                e = edge_of(self)
                if e is not None:
                    t._node = (Node(PERMUTE, (self,), _TURN, (e,), (t,)), 0)
            return t
    return otherwise(self)


def _row(shape: tuple[int, ...], i: int) -> tuple:
    """The views that x[i] is; its slice for NumPy, the first of the views, and what both primitives are given."""
    if len(_ROWS) >= _MOST_ROWS:
        _ROWS.clear()
    more = shape[1:]
    starts, stops, steps = (i, *[0] * len(more)), (i + 1, *more), (1,) * len(shape)
    cut, turn = {"starts": starts, "stops": stops, "steps": steps}, {"shape": more}
    chain = (SLICE, tuple(cut.items())), (RESHAPE, tuple(turn.items()))
    made = chain, (slice(i, i + 1), ...), chain[:1], cut, turn
    _ROWS[shape, i] = made
    return made


def quick() -> Iterator[Quick]:
    """All of them."""
    methods: dict[str, Any] = dict(vars(Tensor))
    for name, f in methods.items():
        how = DIRECT.get(f) if callable(f) else None
        if how is not None:
            yield Tensor, name, unary, (how, f), "plain"
    yield Tensor, "mean", mean, (methods["mean"],), "star"
    yield Tensor, "cumsum", scan, (methods["cumsum"],), "star"
    for name, reduce in (("amax", np.maximum.reduce), ("amin", np.minimum.reduce)):
        yield Tensor, name, along, (registered(name), reduce, methods[name]), "star"
    for name in ("argmax", "argmin"):
        yield Tensor, name, place, (registered(name), name, methods[name]), "star"
    yield Tensor, "sum", sums, (methods["sum"],), "star"
    yield Tensor, "__getitem__", row, (methods["__getitem__"],), "plain"
    yield Tensor, "__pow__", power, (methods["__pow__"],), "plain"
    yield Tensor, "__matmul__", product, (methods["__matmul__"],), "plain"
    yield Tensor, "t", transposed, (methods["t"],), "plain"
    for name in ("view", "reshape"):
        yield Tensor, name, view, (methods[name],), "star"
