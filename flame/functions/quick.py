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
from flame.primitive import applied, force, placement
from flame.runtime.eager_kernels import LEAST
from flame.tensor import Tensor

Quick = tuple[type, str, Any, tuple, Literal["plain", "star"]]

_new: Any = object.__new__
_add, _asarray = np.add.reduce, np.asarray
#: what a sum over all of so many dimensions is given
_ALL: Final = [{"dim": tuple(range(n)), "keepdim": False} for n in range(65)]
#: the steps of x[i] by the shape of x and i
_ROWS: Final[dict[tuple, tuple]] = {}
_MOST_ROWS: Final = 4096
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
    """x[i] of a whole number, where nothing is recorded."""
    if type(key) is int and force.interpreter is None and placement.direct:
        a = self._array
        s = self._storage
        if a is not None and (s is None or s.pending is None) and a.ndim > 0 and not (force.grad and edge_of(self) is not None):
            shape = a.shape
            n = shape[0]
            i = key if key >= 0 else key + n
            if i >= 0 and i < n:
                steps = _ROWS.get((shape, i))
                if steps is None:
                    steps = _row(shape, i)
                t = _new(Tensor)
                t._array = a[i, ...]
                show(t, self, steps)
                return t
    return otherwise(self, key)


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
    """The views that x[i] is."""
    if len(_ROWS) >= _MOST_ROWS:
        _ROWS.clear()
    more = shape[1:]
    starts, stops, steps = (i, *[0] * len(more)), (i + 1, *more), (1,) * len(shape)
    made = (SLICE, (("starts", starts), ("stops", stops), ("steps", steps))), (RESHAPE, (("shape", more),))
    _ROWS[shape, i] = made
    return made


def quick() -> Iterator[Quick]:
    """All of them."""
    methods: dict[str, Any] = dict(vars(Tensor))
    for name, f in methods.items():
        how = DIRECT.get(f) if callable(f) else None
        if how is not None:
            yield Tensor, name, unary, (how, f), "plain"
    yield Tensor, "sum", total, (methods["sum"],), "plain"
    yield Tensor, "__getitem__", row, (methods["__getitem__"],), "plain"
    yield Tensor, "__matmul__", product, (methods["__matmul__"],), "plain"
    yield Tensor, "t", transposed, (methods["t"],), "plain"
    for name in ("view", "reshape"):
        yield Tensor, name, view, (methods[name],), "star"
