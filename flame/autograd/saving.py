"""What the tape saves for backward, through functions of the user's: the hooks in force, and nodes that keep what they packed.

    hooks ::= (pack, unpack)      pack(tensor) gives what is kept; unpack(kept) a tensor equal to it; the innermost are in force

While hooks are in force on some thread, operations are watched there and their nodes become `PackedNode`s, which unpack when
their rules are applied; nobody else's nodes know of hooks. What was packed counts: whether the tensor is written later is not
looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from flame.autograd.tape import Node, alias
from flame.autograd.watch import Process
from flame.primitive import Primitive, interpreting
from flame.tensor import Tensor

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


class _InForce(threading.local):
    def __init__(self) -> None:
        self.hooks: list[Hooks] = []
        self.refused: list[str] = []  #: why no hooks may be used, the innermost last


in_force = _InForce()


class _Anomaly:
    """Whether what makes a gradient NaN is looked for (`flame.autograd.anomaly`), on all threads."""

    __slots__ = ("on", "nan")

    def __init__(self) -> None:
        self.on = self.nan = False


anomaly = _Anomaly()


def each_by_itself() -> bool:
    """Whether operations of this thread are to run one by one, by the node: somebody packs what they save, or looks for NaN."""
    return bool(in_force.hooks) or anomaly.on


class PackedTensor:
    """A saved tensor in its packed form, and where its gradient goes."""

    __slots__ = ("kept", "unpack", "edge", "spec")

    def __init__(self, t: Tensor, hooks: Hooks, edge: Any):
        pack, self.unpack = hooks
        self.spec = t.spec
        self.edge = edge
        before, in_force.hooks = in_force.hooks, []  # (what packing computes is not packed)
        try:
            with interpreting(None):
                self.kept = pack(alias(t))
        finally:
            in_force.hooks = before

    def tensor(self) -> Tensor:
        """The tensor again. Raises TypeError where unpacking gives none, RuntimeError for one of another shape or dtype."""
        with interpreting(None):
            got = self.unpack(self.kept)
        if not isinstance(got, Tensor):
            raise TypeError(
                f"Output of saved tensor unpack_hook expected to be a Tensor but got result of type {type(got).__name__}"
            )
        if got.spec != self.spec:
            raise RuntimeError(f"saved_tensors_hooks: unpack_hook was to give {self.spec}, but it gave {got.spec}")
        t = alias(got)
        t._node = self.edge
        return t


class PackedNode(Node):
    """A node whose saved tensors are packed: `metadata` has their packed forms, by place."""

    __slots__ = ()

    def pack(self, hooks: Hooks) -> None:
        operands = {i: PackedTensor(o, hooks, self.edges[i]) for i, o in enumerate(self.operands) if isinstance(o, Tensor)}
        results = [PackedTensor(y, hooks, None) for y in self.results]
        self.metadata[_PACKED] = operands, results
        self._forget()

    def _forget(self) -> None:
        self.operands = tuple(o.spec if isinstance(o, Tensor) else o for o in self.operands)
        self.results = ()
        self.versions = []

    def apply(self, cotangents: list) -> list:
        packed = self.metadata.get(_PACKED)
        if packed is None or self.released:
            self.released = True
            return super().apply(cotangents)  # says that it was freed
        operands, results = packed
        self.operands = tuple(operands[i].tensor() if i in operands else o for i, o in enumerate(self.operands))
        self.results = tuple(r.tensor() for r in results)
        try:
            return super().apply(cotangents)
        finally:
            self._forget()

    def release(self) -> None:
        self.released = self.metadata.pop(_PACKED, None) is not None or self.released


_PACKED = "packed"


def packing(process: Process, primitive: Primitive, operands: tuple, params: dict) -> Any:
    """An operation whose node, if it leaves one, packs what it saved (see `flame.autograd.watch`)."""
    got = process(primitive, operands, params)
    hooks = in_force.hooks
    if hooks:
        outs = got if type(got) is tuple else (got,)
        node = next((t._node[0] for t in outs if t._node is not None), None)
        if (
            type(node) is Node
            and node.primitive is primitive
            and (node.results or any(isinstance(o, Tensor) for o in node.operands))
        ):
            node.__class__ = PackedNode
            PackedNode.pack(node, hooks[-1])  # type: ignore[arg-type]
    return got
