"""Tensors that a Module notices when they are assigned to it: `Parameter` (trained) and `Buffer` (state that is not)."""

from __future__ import annotations

from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.tensor import Tensor


def _as(cls: type, data: Any, requires_grad: bool) -> Any:
    """A leaf of class `cls` over the memory of `data`."""
    if data is None:
        data = PUBLIC["empty"](0)
    if not isinstance(data, Tensor):
        raise TypeError(f"{cls.__name__}: expected a Tensor as data, got {type(data).__name__}")
    t = data.detach()  # type: ignore[attr-defined]
    t.__class__ = cls
    if requires_grad:
        t.requires_grad_(True)
    return t


class Parameter(Tensor):
    """A tensor that a Module registers among its parameters. Shares the memory of `data`."""

    def __new__(cls, data: Any = None, requires_grad: bool = True) -> Any:
        return _as(cls, data, requires_grad)

    def __repr__(self) -> str:
        return "Parameter containing:\n" + Tensor.__repr__(self)


class Buffer(Tensor):
    """A tensor that a Module registers among its buffers; `persistent` ones are part of its state_dict."""

    persistent: bool

    def __new__(cls, data: Any = None, *, persistent: bool = True) -> Any:
        t = _as(cls, data, False)
        t.persistent = persistent
        return t


__all__ = ["Buffer", "Parameter"]
