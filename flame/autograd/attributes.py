"""What autograd hangs on Tensor: `backward`, hooks, `detach`, `grad`, `grad_fn`, `data`, `requires_grad`, `is_leaf`.

Under an interpreter each asks it first; where capture can't follow, it ends the graph and says why.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from flame.autograd.engine import backward
from flame.autograd.tape import AccumulateGrad, edge, requires_grad
from flame.changes import changes
from flame.primitive import force, registered
from flame.reasons import DATA_ASSIGNED, DETACHED_IN_PLACE, GRAD_FN_READ, HOOK_REGISTERED, REQUIRES_GRAD_CHANGED
from flame.tensor import Tensor

add = registered("add")


class RemovableHandle:
    """Takes a hook away: `handle.remove()`, or at the end of `with handle`."""

    def __init__(self, remove: Callable[[], None]):
        self._remove: Callable[[], None] | None = remove

    def remove(self) -> None:
        if self._remove is not None:
            self._remove()
            self._remove = None

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()


def _outside_leaf(t: Tensor) -> bool:
    """Whether a tensor is a leaf from outside of the captured segment, whose end of the tape is there."""
    return bool(t._array is not None and t._node is None and t._view is None and t._requires_grad and t.is_leaf)


def register_hook(self: Tensor, hook: Callable) -> RemovableHandle:
    """Call `hook(grad)` when the gradient of this tensor is known; what it returns (if not None) replaces it."""
    if not _requires(self):
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    run = force.interpreter
    if run is not None and not _outside_leaf(self):
        take_away = run.hook_on(self, hook) if hasattr(run, "hook_on") else None
        if take_away is not None:
            return RemovableHandle(take_away)
        force.interpreter.leave(HOOK_REGISTERED)
    e = edge(self)
    assert e is not None
    node, entry = e[0], (e[1], hook)
    node.hooks = [*(node.hooks or ()), entry]
    if isinstance(node, AccumulateGrad):
        self._hooks = node
    changes.note()

    def remove() -> None:
        for n in _ends(node):
            n.hooks = [h for h in n.hooks or () if h is not entry] or None

    return RemovableHandle(remove)


def _ends(node: Any) -> Iterator[Any]:
    """A node, and those that took its place as the end of a leaf that was given data of another kind."""
    while node is not None:
        yield node
        node = getattr(node, "later", None)


def register_post_accumulate_grad_hook(self: Tensor, hook: Callable) -> RemovableHandle:
    """Call `hook(tensor)` after a gradient was added to this leaf's `.grad`."""
    run = force.interpreter
    if run is not None and not _outside_leaf(self):
        run.leave(HOOK_REGISTERED)
    e = edge(self)
    if e is None or not isinstance(e[0], AccumulateGrad):
        raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
    node = e[0]
    key = object()
    node.post_hooks = {**(node.post_hooks or {}), key: hook}
    self._hooks = node
    changes.note()

    def remove() -> None:
        for n in _ends(node):
            n.post_hooks = {k: v for k, v in (n.post_hooks or {}).items() if k is not key} or None

    return RemovableHandle(remove)


def retain_grad(self: Tensor) -> None:
    """Keep `.grad` of a tensor that is not a leaf."""
    if not _requires(self):
        raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
    if self.is_leaf or self._retains_grad:
        return
    self._retains_grad = True

    this = weakref.ref(self)  # (the tape keeps hooks)

    def keep(g: Tensor) -> None:
        t = this()
        if t is not None:
            t._grad = g if t._grad is None else add(t._grad, g)

    register_hook(self, keep)


def _backward(
    self: Tensor, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
) -> None:
    backward([self], None if gradient is None else [gradient], retain_graph, create_graph, inputs=inputs)


def detach(self: Tensor) -> Tensor:
    """The same memory, outside the graph."""
    run = force.interpreter
    if run is not None:
        return run.detach(self)
    t = object.__new__(Tensor)
    t._array = self._data()
    t._storage = self.storage_of()
    return t


def detach_(self: Tensor) -> Tensor:
    """Take this tensor out of the graph."""
    run = force.interpreter
    if run is not None:
        run.leave(DETACHED_IN_PLACE)
    if self._view is not None:
        raise RuntimeError("Can't detach views in-place. Use detach() instead.")
    self._node = None
    self._requires_grad = False
    changes.note()
    return self


def requires_grad_(self: Tensor, requires_grad: bool = True) -> Tensor:
    """Set whether a leaf wants a gradient. Raises RuntimeError for integer tensors and for results."""
    now = globals()["requires_grad"](self)
    if bool(requires_grad) == now:
        return self
    if requires_grad and not self.dtype.is_differentiable:
        raise RuntimeError(
            f"only Tensors of floating point and complex dtype can require gradients; this one is {self.dtype!r}"
        )
    if not requires_grad and self._node is not None:
        raise RuntimeError(
            "you can only change requires_grad flags of leaf variables. If you want to use a computed variable in a subgraph "
            "that doesn't require differentiation use var_no_grad = var.detach()."
        )
    run = force.interpreter
    if run is not None:
        run.leave(REQUIRES_GRAD_CHANGED)
    self._requires_grad = bool(requires_grad)  # (its end of the tape stays the one that graphs and hooks know)
    changes.note()
    return self


def _capture_ref(self: Tensor) -> Any:
    """What capture knows of a tensor, after writes to the memory that it shows; None outside of a captured segment."""
    r = self._ref
    return r.run.ref_of(self) if r is not None and r.stale and r.run is not None else r


def _is_leaf(self: Tensor) -> bool:
    r = _capture_ref(self)
    if r is not None and (r.edge is None or r.run is None or r.edge not in r.run.edges):
        return r.edge is None
    requires_grad(self)
    return self._node is None


def _requires(self: Tensor) -> bool:
    r = _capture_ref(self)
    return requires_grad(self) if r is None else r.edge is not None


def _get_grad(self: Tensor) -> Tensor | None:
    return self._grad


def _set_grad(self: Tensor, g: Tensor | None) -> None:
    if g is not None:
        if not isinstance(g, Tensor):
            raise TypeError(f"assigned grad expected to be a Tensor or None but got {type(g).__name__}")
        if g is self:
            raise RuntimeError("can't assign Variable as its own grad")
        if g.shape != self.shape or g.dtype is not self.dtype:
            raise RuntimeError(
                f"assigned grad has {g.dtype!r} {list(g.shape)}, the tensor has {self.dtype!r} {list(self.shape)}: they must match"
            )
    self._grad = g


def _grad_fn(self: Tensor) -> Any:
    r = _capture_ref(self)
    if r is not None and r.edge is not None and (self._array is None or self._node is not None):
        if force.interpreter is None:
            self._data()  # says that another thread has still to compute it
        else:
            force.interpreter.leave(GRAD_FN_READ)
    requires_grad(self)
    return None if self._node is None else self._node[0]


def _get_data(self: Tensor) -> Tensor:
    return detach(self)


def _set_data(self: Tensor, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"Variable data has to be a tensor, but got {type(value).__name__}")
    run = force.interpreter
    if run is not None:
        run.leave(DATA_ASSIGNED)
    wants = requires_grad(self)
    if wants and not value.dtype.is_differentiable:
        raise RuntimeError(
            f"data set to a tensor that requires gradients must be floating point or complex dtype, but got {value.dtype!r}"
        )
    historic = self._node is not None or self._accumulator is not None
    if wants and historic and (value.dtype is not self.dtype or value.shape != self.shape):
        _part_with_history(self, value)
    self._array = value._data()
    self._known = None
    self._storage = value.storage_of()
    self._view = None
    self._reassigned += 1
    changes.note()


def _part_with_history(t: Tensor, value: Tensor) -> None:
    """Gradients of what was computed before `t` got data of another dtype or shape have the old kind: they end in a node of their
    own, and go into `.grad` by themselves. Into the history of a result they go with the old dtype."""
    if t._node is None:
        old = None if t._accumulator is None else t._accumulator()
        if old is not None:
            t._accumulator = None
            found = edge(t)
            assert found is not None
            new = found[0]
            new.hooks, new.post_hooks, old.later = old.hooks, old.post_hooks, new
            if t._hooks is old:
                t._hooks = new
    elif value.dtype is not t.dtype:
        before = force.grad, force.interpreter
        force.grad, force.interpreter = True, None
        try:
            t._node = registered("cast")(t, dtype=value.dtype)._node
        finally:
            force.grad, force.interpreter = before


def _get_requires(self: Tensor) -> bool:
    return _requires(self)


def _set_requires(self: Tensor, value: bool) -> None:
    requires_grad_(self, bool(value))


Tensor.backward = _backward  # type: ignore[attr-defined]
for _f in (register_hook, register_post_accumulate_grad_hook, retain_grad, detach, detach_, requires_grad_):
    setattr(Tensor, _f.__name__, _f)
Tensor.is_leaf = property(_is_leaf)  # type: ignore[attr-defined]
Tensor.requires_grad = property(_get_requires, _set_requires)  # type: ignore[attr-defined]
Tensor.grad = property(_get_grad, _set_grad, lambda self: _set_grad(self, None))  # type: ignore[attr-defined]
Tensor.grad_fn = property(_grad_fn)  # type: ignore[attr-defined]
Tensor.data = property(_get_data, _set_data)  # type: ignore[attr-defined]
Tensor.retains_grad = property(lambda self: self._retains_grad)  # type: ignore[attr-defined]
Tensor.output_nr = property(lambda self: 0 if self._node is None else self._node[1])  # type: ignore[attr-defined]
