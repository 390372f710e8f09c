"""Tensors that a Module notices when they are assigned to it: `Parameter` (trained) and `Buffer` (state that is not)."""

from __future__ import annotations

from typing import Any

from flame.dtypes import from_numpy_dtype
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


class Uninitialized:
    """What parameters and buffers without a shape share. `materialize` gives them one, in place."""

    _becomes: type

    def materialize(self, shape: Any, device: Any = None, dtype: Any = None) -> None:
        """Become an ordinary parameter (or buffer) of this shape, its values not yet set."""
        me: Any = self
        d = object.__getattribute__(self, "_array").dtype if dtype is None else dtype.numpy
        made = PUBLIC["empty"](*shape, dtype=from_numpy_dtype(d), device=me.device if device is None else device)
        me.__class__ = self._becomes
        me.data = made

    @property
    def shape(self) -> Any:
        raise RuntimeError(
            "Can't access the shape of an uninitialized parameter or buffer. This error usually happens in `load_state_dict` when "
            "trying to load an uninitialized parameter into an initialized one. Call `forward` to initialize the parameters before "
            "accessing their attributes."
        )

    def detach(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict) -> Any:
        if id(self) not in memo:
            me: Any = self
            memo[id(self)] = type(self)(dtype=me.dtype, requires_grad=me.requires_grad)  # type: ignore[call-arg]
        return memo[id(self)]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class UninitializedParameter(Uninitialized, Parameter):
    """A parameter that has no shape yet."""

    _becomes = Parameter

    def __new__(cls, requires_grad: bool = True, device: Any = None, dtype: Any = None) -> Any:
        return _as(cls, PUBLIC["empty"](0, dtype=dtype, device=device), requires_grad)


class UninitializedBuffer(Uninitialized, Buffer):
    """A buffer that has no shape yet."""

    _becomes = Buffer

    def __new__(cls, requires_grad: bool = False, device: Any = None, dtype: Any = None, persistent: bool = True) -> Any:
        t = _as(cls, PUBLIC["empty"](0, dtype=dtype, device=device), requires_grad)
        t.persistent = persistent
        return t


def is_lazy(param: Any) -> bool:
    """Whether a parameter or buffer has no shape yet."""
    return isinstance(param, Uninitialized)


__all__ = ["Buffer", "Parameter", "UninitializedBuffer", "UninitializedParameter", "is_lazy"]
