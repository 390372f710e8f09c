"""Tensors resized, pointed at other memory, or asked where they lie: methods that change or tell what a tensor stands on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flame.autograd.tape import assign
from flame.dtypes import dtype as DType
from flame.functions.creation import from_numpy
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import tensor_operand
from flame.functions.shape import RESHAPE, as_shape
from flame.primitive import force, registered
from flame.reasons import SHAPE_IN_PLACE
from flame.tensor import Tensor, method, wrap


def frombuffer(
    buffer: Any, *, dtype: DType, count: int = -1, offset: int = 0, requires_grad: bool = False
) -> Tensor:  # fmt: skip
    """A vector over the memory of an object with Python's buffer protocol: `count` elements (-1: all) from byte `offset` on. Of
    memory that may not be written (bytes) it is a copy.

    Raises TypeError for a dtype that is none; ValueError for other objects, an empty buffer, an offset outside of it, a count that
    does not fit, and bytes that are no whole number of elements; RuntimeError where a dtype can't require gradients.
    """
    if not isinstance(dtype, DType):
        raise TypeError(f"frombuffer(): argument 'dtype' must be flame.dtype, not {type(dtype).__name__}")
    try:
        memory = memoryview(buffer)
    except TypeError as e:
        raise ValueError(f"object does not implement Python buffer protocol: {type(buffer).__name__}") from e
    length, size = memory.nbytes, dtype.itemsize
    if length == 0 or count == 0:
        raise ValueError(f"both buffer length ({length}) and count ({count}) must not be 0")
    if not 0 <= offset < length:
        raise ValueError(
            f"offset ({offset} bytes) must be non-negative and no greater than buffer length ({length} bytes) minus 1"
        )
    if count < 0 and (length - offset) % size:
        raise ValueError(
            f"buffer length ({length} bytes) after offset ({offset} bytes) must be a multiple of element size ({size})"
        )
    count = (length - offset) // size if count < 0 else count
    if count * size > length - offset:
        raise ValueError(
            f"requested buffer length ({count} * {size} bytes) after offset ({offset} bytes) must not be greater than actual "
            f"buffer length ({length} bytes)"
        )
    a = np.frombuffer(memory, dtype.numpy, count, offset)
    t = wrap(a.copy()) if memory.readonly else from_numpy(a)
    return t.requires_grad_() if requires_grad else t


PUBLIC["frombuffer"] = frombuffer


@method()
def resize_(self: Tensor, *sizes: Any, memory_format: Any = None) -> Tensor:
    """This tensor with another shape, in place: row-major over its elements, the memory grown where there are too few (new
    elements have any value). Raises RuntimeError where it requires gradient, or is a view that would have to grow."""
    shape = as_shape(sizes, "resize_")
    if self.requires_grad:
        raise RuntimeError("cannot resize variables that require grad")
    if any(n < 0 for n in shape):
        raise RuntimeError(f"resize_: Trying to create tensor with negative dimension: {list(shape)}")
    if tuple(self.shape) == shape:
        return self
    if force.interpreter is not None:
        force.interpreter.leave(SHAPE_IN_PLACE, "resize_")
    a, n = self._data(), math.prod(shape)
    if not isinstance(a, np.ndarray):
        raise RuntimeError("resize_: a tensor on a GPU keeps its size: make a new one by torch.empty".replace("torch", "flame"))
    if self._view is not None and n > a.size:
        raise RuntimeError(f"resize_: a view of {a.size} elements can't grow to {n}: resize its base, or clone() it")
    if n <= a.size and a.flags.c_contiguous:
        self._array = a.reshape(-1)[:n].reshape(shape)
        return self
    grown = np.empty(n, a.dtype)
    grown[: min(n, a.size)] = np.ascontiguousarray(a).reshape(-1)[:n]
    self._array, self._storage = grown.reshape(shape), None
    return self


@method()
def resize_as_(self: Tensor, the_template: Tensor, *, memory_format: Any = None) -> Tensor:
    """`resize_` to another tensor's shape."""
    return resize_(self, *the_template.shape)


@method()
def get_device(self: Tensor) -> int:
    """The GPU's number, -1 in host memory."""
    d = self.device
    return -1 if d.type == "cpu" else d.index or 0


@method()
def is_same_size(self: Tensor, other: Tensor) -> bool:
    """Whether the shapes are equal."""
    return tuple(self.shape) == tuple(other.shape)


@method()
def is_nonzero(self: Tensor) -> bool:
    """Whether the one element is not zero. Raises RuntimeError for other than one element."""
    return bool(self)


@method()
def is_set_to(self: Tensor, tensor: Tensor) -> bool:
    """Whether both are the same memory with the same shape and strides."""
    a, b = self._data(), tensor._data()
    return a is b or (
        a.shape == b.shape and self.stride() == tensor.stride() and self.data_ptr() == tensor.data_ptr() and bool(a.size)  # type: ignore[attr-defined]
    )


def _each(f: Callable[..., Any], self: Tensor, *others: Tensor) -> Tensor:
    arrays = np.broadcast_arrays(*[t._read() for t in (self, *others)])
    values = [f(*xs) for xs in zip(*(a.reshape(-1).tolist() for a in arrays), strict=True)]
    return assign(self, wrap(np.asarray(values, self.dtype.numpy).reshape(tuple(self.shape))))


@method()
def apply_(self: Tensor, callable: Callable[[Any], Any]) -> Tensor:
    """Every element x becomes `callable(x)`, one by one, in Python."""
    return _each(callable, self)


@method()
def map_(self: Tensor, tensor: Tensor, callable: Callable[[Any, Any], Any]) -> Tensor:
    """Every element becomes `callable` of it and the other tensor's, one by one, in Python."""
    return _each(callable, self, tensor)


def _copied(name: str) -> None:
    """`name_copy`: what the function gives, in memory of its own."""

    def function(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = (PUBLIC.get(name) or getattr(Tensor, name))(tensor_operand(input, name + "_copy"), *args, **kwargs)
        copy = registered("copy")
        return tuple(copy(v) for v in y) if isinstance(y, tuple | list) else copy(y)

    function.__name__ = function.__qualname__ = f"{name}_copy"
    function.__doc__ = f"`{name}`, in memory of its own."
    PUBLIC[f"{name}_copy"] = function


for _name in (
    "as_strided detach diagonal expand narrow permute select split split_with_sizes squeeze t transpose unbind unfold unsqueeze "
    "view view_as_real view_as_complex"
).split():
    _copied(_name)
_narrow_copy = PUBLIC["narrow_copy"]


def narrow_copy(input: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """`narrow`, in memory of its own. Raises RuntimeError for a dimension that is too large, where `narrow` raises
    IndexError."""
    if isinstance(input, Tensor) and type(dim) is int and dim >= input.ndim:
        raise RuntimeError(f"narrow_copy(): expected dim < {input.ndim}, the number of dimensions, but got {dim}")
    return _narrow_copy(input, dim, start, length)


PUBLIC["narrow_copy"] = narrow_copy
Tensor.narrow_copy = narrow_copy  # type: ignore[attr-defined]
Tensor.is_cpu = property(lambda self: self.device.type == "cpu")  # type: ignore[attr-defined]


def range_(
    start: Any, end: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """start, start + step, ... up to `end`, included; a float dtype unless told otherwise (PyTorch's older form of arange)."""
    if end is None:
        start, end = 0, start
    n = math.floor((end - start) / step) + 1
    d = dtype or PUBLIC["tensor"](0.0).dtype
    y = PUBLIC["arange"](n, dtype=d, device=device) * step + start
    y = RESHAPE(y, shape=(n,)).to(d)  # type: ignore[attr-defined]
    return y.requires_grad_() if requires_grad else y


PUBLIC["range"] = range_
