"""An array in a GPU's memory: what a tensor on a GPU holds where one on the CPU holds a NumPy array.

    DeviceArray ::= memory (an allocation, alive as long as an array shows it) layout (a NumPy array over its address)

The layout is never read: it says where each element lies, and views of it (slices, transposes, anything that NumPy answers
without touching an element) are the layouts of views of the array. Whatever needs values is a kernel or a copy, made by
`flame.runtime.gpu_eager`; here are the moves of bytes: `to_device`, `host`, `duplicate`, `overwrite`.

The functions at the end take arrays of both kinds, for code that does not care where an array lives.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flame.primitive import placement
from flame.runtime.device import CPU, device


class DeviceArray:
    """`shape`, `strides` (bytes), `dtype` and so on are NumPy's; the memory is `gpu`'s."""

    __slots__ = ("memory", "layout", "gpu", "__weakref__")
    __array_ufunc__ = None  # NumPy's functions refuse it by TypeError

    def __init__(self, gpu: Any, memory: Any, layout: np.ndarray):
        self.gpu = gpu
        self.memory = memory
        self.layout = layout

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self.layout.strides

    @property
    def dtype(self) -> np.dtype:
        return self.layout.dtype

    @property
    def ndim(self) -> int:
        return self.layout.ndim

    @property
    def size(self) -> int:
        return self.layout.size

    @property
    def itemsize(self) -> int:
        return self.layout.itemsize

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes

    @property
    def flags(self) -> Any:
        return self.layout.flags

    @property
    def base(self) -> Any:
        return None

    @property
    def address(self) -> int:
        """Of the first element; without elements, that of its memory."""
        return self.layout.__array_interface__["data"][0] if self.layout.size else self.memory.address

    @property
    def device(self) -> device:
        return self.gpu.device

    @property
    def contiguous(self) -> bool:
        return self.layout.flags.c_contiguous

    @property
    def start(self) -> int:
        """The number of elements before the first one in its memory."""
        return (self.address - self.memory.address) // self.layout.itemsize

    def seen(self, view: Callable[..., np.ndarray], **params: Any) -> DeviceArray:
        """A view of it: what NumPy makes of its layout without touching an element."""
        return DeviceArray(self.gpu, self.memory, view(self.layout, **params))

    def reshaped(self, shape: tuple[int, ...]) -> DeviceArray | None:
        """The same elements in row-major order under another shape; None where strides do not allow that."""
        strides = reshaped_strides(self.shape, self.strides, shape, self.itemsize)
        return None if strides is None else self.at(self.address, shape, strides)

    def at(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> DeviceArray:
        """Another layout over the same memory."""
        return DeviceArray(self.gpu, self.memory, layout_at(address, shape, self.dtype, strides))

    def span(self) -> DeviceArray:
        """The stretch of memory from its first element to its last, as one dimension."""
        steps = [s // self.itemsize * (n - 1) for n, s in zip(self.shape, self.strides, strict=True)]
        return self.at(self.address, (sum(steps) + 1 if self.size else 0,), (self.itemsize,))

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __repr__(self) -> str:
        return f"DeviceArray({self.device}, {self.dtype}{list(self.shape)})"


def layout_at(address: int, shape: Sequence[int], dtype: np.dtype, strides: Sequence[int] | None = None) -> np.ndarray:
    """A NumPy array over memory that must not be read from here."""
    itemsize, n = dtype.itemsize, math.prod(shape)
    if strides is not None and n:
        n = 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True)) // itemsize
    if not n:
        return np.ndarray(tuple(shape), dtype)
    buffer: Any = (ctypes.c_byte * (n * itemsize)).from_address(address)
    return np.ndarray(tuple(shape), dtype, buffer, 0, None if strides is None else tuple(strides))


def reshaped_strides(
    old: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...], itemsize: int
) -> tuple[int, ...] | None:
    """The strides under which memory that lies as `old` and `strides` say shows shape `new`; None where there are none.

    Dimensions of both are matched from the left in the shortest runs of equally many elements; a run of the old ones must lie
    like one dimension.
    """
    if 0 in old:
        return tuple(itemsize * math.prod(new[i + 1 :]) for i in range(len(new)))
    kept = [(n, s) for n, s in zip(old, strides, strict=True) if n != 1]
    out: list[int] = []
    i = j = 0
    while i < len(kept):
        a, b, begin = kept[i][0], 1, j
        while True:
            if b < a:
                b, j = b * new[j], j + 1
            elif a < b:
                i += 1
                if kept[i - 1][1] != kept[i][0] * kept[i][1]:
                    return None
                a *= kept[i][0]
            else:
                break
        step, run = kept[i][1], []
        for n in reversed(new[begin:j]):
            run.append(step)
            step *= n
        out += reversed(run)
        i += 1
    return (*out, *[itemsize] * (len(new) - j))


# ---------------------------------------------------------------------------------------------------- making and moving


def empty(gpu: Any, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
    """Uninitialised, in row-major order."""
    placement.gpu = True
    memory = gpu.allocate(max(math.prod(shape) * dtype.itemsize, 1))
    return DeviceArray(gpu, memory, layout_at(memory.address, shape, dtype))


def to_device(gpu: Any, a: np.ndarray) -> DeviceArray:
    """A copy of a NumPy array in a GPU's memory, in row-major order."""
    plain = np.ascontiguousarray(a).reshape(a.shape)
    made = empty(gpu, plain.shape, plain.dtype)
    if plain.size:
        gpu.copy_in(made.address, plain)
    return made


def is_device(a: Any) -> bool:
    return type(a) is DeviceArray


def device_of(a: Any) -> device:
    """Where an array of either kind lives."""
    return a.gpu.device if type(a) is DeviceArray else CPU


def address_of(a: Any) -> int:
    """The address of the first element of an array of either kind."""
    return a.address if type(a) is DeviceArray else a.__array_interface__["data"][0]


def share_memory(a: Any, b: Any) -> bool:
    """Whether two arrays of either kind may show the same memory."""
    if type(a) is DeviceArray and type(b) is DeviceArray:
        return a.memory is b.memory
    return type(a) is type(b) and bool(np.may_share_memory(a, b))
