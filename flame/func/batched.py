"""Batched tensors, and the interpreter that runs primitives on them: what `vmap` is made of.

    Batched  ::= value (a tensor), batch          what one example sees of `value`: all of it, or (if batch) of its first
                                                  dimension, which counts examples, one
    Batching ::= size, randomness, outer          the interpreter of one vmap; `outer` is the one below it

A primitive on batched tensors is one primitive, or a few, on their values, run under `outer` (`flame.func.rules` says which): so
vmaps nest, what is captured is the batched program, and gradients from outside flow through the values as through any tensors.
Gradients taken inside are of single examples: their tape is of batched tensors, beside that of the values, and its rules run
on batched tensors again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flame.autograd.engine import eager_backward, eager_grad
from flame.autograd.tape import Node, assign, eager_assign, edge, requires_grad
from flame.func.rules import RULES, moved
from flame.interpreting import Inner
from flame.primitive import Primitive, Spec, force, registered
from flame.tensor import Size, Tensor, View

EXPAND, RESHAPE = registered("expand"), registered("reshape")
_NO_CONTROL = (
    "vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow. Each example would take a way of "
    "its own: compute both results and choose with flame.where"
)
_NO_ITEM = (
    "vmap: It looks like you're calling .item() on a Tensor. We don't support vmap over calling .item() on a Tensor, as each "
    "example has a value of its own; keep it a tensor"
)
_NO_VALUES = (
    "vmap: the values of a batched tensor are read, or the shape of a result depends on them (nonzero, unique, a boolean mask as "
    "an index); each example has values of its own: use flame.where, or an operation whose result has a fixed shape"
)


class Batched(Tensor):
    """One example's view of a tensor of examples."""

    _value: Tensor
    _batch: bool
    _batching: Any

    def _data(self) -> Any:
        raise RuntimeError(_NO_VALUES)

    def _read(self) -> Any:
        if not self._batch:
            return self._batching.below(self._value._read)
        raise RuntimeError(_NO_VALUES)

    def _alias(self) -> Batched:
        t = batched(self._value, self._batch, self._batching)
        t._storage = self.storage_of()
        return t

    def __bool__(self) -> bool:
        if self._batch and self.numel() == 1:
            raise RuntimeError(_NO_CONTROL)
        return super().__bool__()

    def item(self) -> Any:
        if self._batch and self.numel() == 1:
            raise RuntimeError(_NO_ITEM)
        return super().item()

    def numpy(self, *, force: bool = False) -> Any:
        return self._read()

    __array__: Any = lambda self, dtype=None, copy=None: self._read()

    @property
    def shape(self) -> Size:
        s = self._value.shape
        return s[1:] if self._batch else s

    @property
    def ndim(self) -> int:
        return self._value.ndim - self._batch

    @property
    def dtype(self) -> Any:
        return self._value.dtype

    @property
    def device(self) -> Any:
        return self._value.device

    @property
    def spec(self) -> Spec:
        return Spec(tuple(self.shape), self._value.dtype)

    def _layout(self) -> Any:
        a = self._value._layout()
        if not self._batch:
            return a
        return a[0] if a.shape[0] else a.reshape(a.shape[1:] if 0 in a.shape[1:] else (0,))

    def __repr__(self) -> str:
        return f"BatchedTensor({'batch of ' * self._batch}{self._value!r})"


def batched(value: Tensor, batch: bool, batching: Batching) -> Batched:
    t = object.__new__(Batched)
    t._array = None
    t._value, t._batch, t._batching = value, batch, batching
    return t


class Batching(Inner):
    """The interpreter of one vmap over `size` examples."""

    next: Any = None  #: (a captured path would have its next step here)

    def __init__(self, size: int, randomness: str, outer: Any):
        self.size, self.randomness, self.outer = size, randomness, outer

    # ---------------------------------------------------------------- running primitives

    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        random = primitive.kind == "random"
        if random and self.randomness == "error":
            raise RuntimeError(
                "vmap: called random operation while in randomness error mode. Please either use the 'same' or 'different' "
                "randomness flags on vmap or perform the randomness operation out of vmap"
            )
        mine = [isinstance(o, Batched) and o._batching is self for o in operands]
        spread = (random and self.randomness == "different") or any(m and o._batch for m, o in zip(mine, operands, strict=True))
        if random and spread and self.randomness == "same":
            raise RuntimeError(
                "vmap: a draw whose parameters differ between examples can't be the same for all: use randomness='different'"
            )
        values = [o._value if m else o for m, o in zip(mine, operands, strict=True)]
        if not spread:
            got = self.below(primitive, *values, **params)
            if primitive.kind == "create":  # made inside: what batched values may be written to
                return batched(got, False, self)
            if not any(mine):
                return got
        else:
            if not random:  # what does not fit is said of single examples
                primitive.infer(*(o.spec if isinstance(o, Tensor) else getattr(o, "value", o) for o in operands), **params)
            batches = [m and o._batch for m, o in zip(mine, operands, strict=True)]
            rule = RULES[primitive]
            got = self.below(rule, primitive, self.size, values, batches, params)
        single = not isinstance(got, tuple)
        outs = tuple([batched(y, spread, self) for y in ((got,) if single else got)])
        if primitive.view and single and mine[0]:
            self._link(outs[0], operands[0], primitive, params)
        if (
            force.grad
            and primitive.vjp is not None
            and any(m and requires_grad(o) for m, o in zip(mine, operands, strict=True))
        ):
            node = None
            for i, t in enumerate(outs):
                if t.dtype.is_differentiable:
                    if node is None:
                        edges = tuple([edge(o) if m else None for m, o in zip(mine, operands, strict=True)])
                        node = Node(primitive, operands, params, edges, outs)
                    t._node = (node, i)
        return outs[0] if single else outs

    def _link(self, t: Batched, x: Any, primitive: Primitive, params: dict) -> None:
        """A view of an example is a view where the values are one."""
        if not _one_memory(t._value, x._value):
            return
        t._storage = storage = x.storage_of()
        step = (primitive, tuple(params.items()))
        v = x._view
        t._view = View(x, (step,), storage.version) if v is None else View(v.base, (*v.chain, step), storage.version)

    def owns(self, x: Any) -> bool:
        return isinstance(x, Batched) and x._batching is self

    # ---------------------------------------------------------------- what else interpreters are asked for

    def assign(self, target: Any, value: Any) -> Tensor:
        if not self.owns(target):
            if self.owns(value) and value._batch:
                raise RuntimeError(_NO_ROOM)
            return self.below(assign, target, value._value if self.owns(value) else value)
        if self.owns(value) and value._batch and not target._batch and target._storage is None and not requires_grad(target):
            target._value, target._batch = self.below(registered("copy"), value._value), True  # nothing else shows its memory
            target._node = value._node if force.grad else None
            target.storage_of().version += 1
            return target
        return eager_assign(target, value, self._write)

    def _write(self, target: Any, value: Any) -> None:
        batch = self.owns(value) and value._batch
        if batch and not target._batch:
            raise RuntimeError(_NO_ROOM)
        v = value._value if self.owns(value) else value
        if target._batch and not batch:
            v = self.below(EXPAND, v, shape=(self.size, *v.shape))
        self.below(assign, target._value, v)

    def update(self, f: Callable, tensors: Sequence[Tensor], numbers: tuple) -> None:
        f(tensors, numbers)

    def leads_below(self, t: Tensor) -> bool:
        """Whether the values of a batched tensor carry gradient from outside."""
        x = t
        while isinstance(x, Batched):
            x = x._value
            if x.requires_grad:
                return True
        return False

    def detach(self, t: Tensor) -> Tensor:
        if not self.owns(t):
            return self.below(t.detach)  # type: ignore[attr-defined]
        new = batched(self.below(t._value.detach), t._batch, self)
        new._storage = t.storage_of()
        return new

    def backward(self, ts: list, given: list | None, retain: bool, create_graph: bool, leaves: list | None) -> None:
        if self.outer is not None and not any(map(self.owns, (*ts, *(given or ()), *(leaves or ())))):
            self.below(self.outer.backward, ts, given, retain, create_graph, leaves)
        else:
            eager_backward(ts, given, retain, create_graph, leaves)

    def grad(self, ys: list, xs: list, given: list | None, retain: bool, create_graph: bool) -> list:
        if self.outer is None or any(map(self.owns, (*ys, *xs))):
            return eager_grad(ys, xs, given, retain, create_graph)
        if not any(map(self.owns, given or ())):
            return self.below(self.outer.grad, ys, xs, given, retain, create_graph)
        if not captured(self.outer):
            return eager_grad(ys, xs, given, retain, create_graph)
        rows = []  # what is captured has no tape yet: one cotangent a time, and the compiler fuses them
        for k in range(self.size):
            gs = [self.below(_example, g._value, k) if self.owns(g) and g._batch else self.value(g) for g in given or ()]
            rows.append(self.below(self.outer.grad, ys, xs, gs, True, create_graph))
        found = [next((g for g in column if g is not None), None) for column in zip(*rows, strict=True)]
        return [None if g is None else self._stacked([r[i] for r in rows], g) for i, g in enumerate(found)]

    def _stacked(self, rows: list, like: Tensor) -> Batched:
        def stack() -> Tensor:
            zero = registered("full")(0, shape=tuple(like.shape), dtype=like.dtype)
            parts = [RESHAPE(zero if g is None else g, shape=(1, *like.shape)) for g in rows]
            return registered("cat")(*parts, dim=0)

        return batched(self.below(stack), True, self)

    def value(self, x: Any) -> Any:
        return x._value if self.owns(x) else x

    # ---------------------------------------------------------------- the way in and out

    def enter(self, x: Tensor, dim: int | None) -> Tensor:
        """A tensor whose dimension `dim` counts examples, as one of them sees it."""
        if dim is None:
            return x
        return batched(self.below(_examples_first, x, dim % x.ndim), True, self)

    def unvaried(self, x: Tensor) -> Batched:
        """A tensor that is the same for all examples, with a tape of its own."""
        return x if isinstance(x, Batched) and x._batching is self else batched(x, False, self)

    def result(self, y: Tensor, dim: int | None, name: str) -> Tensor:
        """The results of all examples, along `dim` (None: all give the same)."""
        value, batch = (y._value, y._batch) if isinstance(y, Batched) and y._batching is self else (y, False)
        if dim is None:
            if batch:
                raise ValueError(
                    f"vmap({name}, ...): `{name}` can not return a BatchedTensor when out_dim is None: give a dimension for it"
                )
            return value
        if not -(value.ndim + (not batch)) <= dim < value.ndim + (not batch):
            raise IndexError(
                f"Dimension out of range (expected to be in range of [{-value.ndim}, {value.ndim - 1}], but got {dim})"
            )
        if not batch:
            value = EXPAND(value, shape=(self.size, *value.shape))
        return moved(value, 0, dim % value.ndim)


_NO_ROOM = (
    "vmap: inplace arithmetic(self, *extra_args) is not possible because there exists a Tensor `other` in extra_args that has more "
    "elements than `self`: each example would write the same memory. Use the out-of-place operation, or make the tensor inside of "
    "the function (zeros_like)"
)


def _examples_first(x: Tensor, dim: int) -> Tensor:
    return moved(x, dim, 0)


def _example(x: Tensor, k: int) -> Tensor:
    n = x.ndim
    row = registered("slice")(x, starts=(k, *[0] * (n - 1)), stops=(k + 1, *x.shape[1:]), steps=(1,) * n)
    return RESHAPE(row, shape=tuple(x.shape)[1:])


def captured(run: Any) -> bool:
    """Whether an interpreter stands on a captured segment."""
    while isinstance(run, Batching):
        run = run.outer
    return run is not None


def _one_memory(a: Tensor, b: Tensor) -> bool:
    """Whether `a`, made from `b` by a view, shows its memory: what neither eager nor capture has linked is a copy."""
    if a._storage is not None:
        return a._storage is b._storage
    trace = a._trace
    return trace is not None and bool(trace.chain)
