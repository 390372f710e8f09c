"""`Module.to` and its kin: parameters and buffers of another dtype or on another device, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from flame.autograd import no_grad
from flame.dtypes import dtype as DType
from flame.nn.parameter import Parameter, is_lazy
from flame.tensor import Tensor

Self = TypeVar("Self", bound="Conversion")


class Conversion:
    """The part of Module that replaces the data of what it holds. `_apply` is the one way in."""

    if TYPE_CHECKING:  # a Module has them
        _parameters: dict[str, Parameter | None]
        _buffers: dict[str, Tensor | None]

        def children(self) -> Iterator[Any]: ...

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Replace the data of parameters and their gradients, and buffers, by `fn` of it."""
        if recurse:
            for child in self.children():
                child._apply(fn)
        with no_grad():
            for p in self._parameters.values():
                if p is None:
                    continue
                data = fn(p.data)  # type: ignore[attr-defined]
                grad = p.grad  # type: ignore[attr-defined]
                p.data = data  # type: ignore[attr-defined]
                if grad is not None:
                    p.grad = fn(grad).requires_grad_(grad.requires_grad)  # type: ignore[attr-defined]
            for name, b in self._buffers.items():
                if is_lazy(b):
                    b.data = fn(b.data)  # type: ignore[union-attr]
                elif b is not None:
                    self._buffers[name] = fn(b)
        return self

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Move parameters and buffers in place: `to(dtype)` (floating ones alone), `to(device)`, `to(tensor)`."""
        dtype, device = kwargs.get("dtype"), kwargs.get("device")
        for a in args:
            if isinstance(a, DType):
                dtype = a
            elif isinstance(a, Tensor):
                dtype, device = a.dtype, a.device
            elif a is not None and not isinstance(a, bool):
                device = a
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"nn.Module.to only accepts floating point or complex dtypes, but got desired dtype={dtype!r}")

        def convert(t: Tensor) -> Tensor:
            d = dtype if dtype is not None and t.dtype.is_floating_point else None
            return t.to(device=device, dtype=d)  # type: ignore[attr-defined]

        return self._apply(convert)

    def _cast(self: Self, name: str) -> Self:
        return self._apply(lambda t: getattr(t, name)() if t.dtype.is_floating_point else t)

    def float(self: Self) -> Self:
        return self._cast("float")

    def double(self: Self) -> Self:
        return self._cast("double")

    def half(self: Self) -> Self:
        return self._cast("half")

    def bfloat16(self: Self) -> Self:
        return self._cast("bfloat16")

    def type(self: Self, dst_type: DType) -> Self:
        return self._apply(lambda t: t.to(dst_type))  # type: ignore[attr-defined]

    def to_empty(self: Self, *, device: Any = None, recurse: bool = True) -> Self:
        """Give parameters and buffers fresh memory, whose values are not set."""
        empty = lambda t: t.new_empty(tuple(t.shape)) if device is None else t.new_empty(tuple(t.shape), device=device)
        return self._apply(empty, recurse)

    def cpu(self: Self) -> Self:
        return self._apply(lambda t: t.cpu())  # type: ignore[attr-defined]

    def cuda(self: Self, device: Any = None) -> Self:
        return self._apply(lambda t: t.cuda(device))  # type: ignore[attr-defined]

    def share_memory(self: Self) -> Self:
        raise RuntimeError("share_memory() is not supported: tensors do not live in memory that processes share")
