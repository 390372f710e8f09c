"""An array in a GPU's memory: what a tensor on a GPU holds where one on the CPU holds a NumPy array.

    DeviceArray ::= memory (an allocation, alive as long as an array shows it) address shape strides dtype

Its layout is a NumPy array over that address, which is never read: it says where each element lies, and views of it (slices,
transposes, anything that NumPy answers without touching an element) are the layouts of views of the array. Whatever needs values is
a kernel (`flame.runtime.gpu_eager`) or a copy (`flame.runtime.gpu_copy`).

The functions at the end take arrays of both kinds, for code that does not care where an array lives.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from flame.primitive import placement
from flame.runtime.device import CPU, device
from flame.runtime.lines import user_source


class DeviceArray:
    """`shape`, `strides` (bytes), `dtype` and so on are NumPy's; the memory is `gpu`'s."""

    __slots__ = ("gpu", "memory", "address", "shape", "strides", "dtype", "contiguous", "_layout", "__weakref__")
    __array_ufunc__ = None  # NumPy's functions refuse it by TypeError
    base = None

    def __init__(self, gpu: Any, memory: Any, address: int, shape: tuple, dtype: np.dtype, strides: tuple | None = None):
        """`strides` None: in row-major order. An array without elements has the address of its memory."""
        self.gpu = gpu
        self.memory = memory
        self.shape: tuple[int, ...] = shape
        self.dtype = dtype
        #: of the first element
        self.address: int = address
        self._layout: np.ndarray | None = None
        if strides is None:
            self.contiguous = True
            self.strides: tuple[int, ...] = dense_strides(shape, dtype.itemsize)
        else:
            self.strides = strides
            self.contiguous = self.layout.flags.c_contiguous

    @property
    def layout(self) -> np.ndarray:
        """A NumPy array that lies like this one, which must not be read."""
        found = self._layout
        if found is None:
            found = self._layout = layout_at(self.address, self.shape, self.dtype, self.strides)
        return found

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def flags(self) -> Any:
        return self.layout.flags

    @property
    def device(self) -> device:
        return self.gpu.device

    @property
    def start(self) -> int:
        """The number of elements before the first one in its memory."""
        return (self.address - self.memory.address) // self.dtype.itemsize

    def seen(self, view: Callable[..., np.ndarray], **params: Any) -> DeviceArray:
        """A view of it: what NumPy makes of its layout without touching an element."""
        got = view(self.layout, **params)
        address = got.__array_interface__["data"][0] if got.size else self.memory.address
        made = DeviceArray(self.gpu, self.memory, address, got.shape, got.dtype, got.strides)
        made._layout = got  # (which knows whether it may be written)
        return made

    def reshaped(self, shape: tuple[int, ...]) -> DeviceArray | None:
        """The same elements in row-major order under another shape; None where strides do not allow that."""
        if self.contiguous:
            return DeviceArray(self.gpu, self.memory, self.address, shape, self.dtype)
        strides = reshaped_strides(self.shape, self.strides, shape, self.dtype.itemsize)
        return None if strides is None else self.at(self.address, shape, strides)

    def at(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> DeviceArray:
        """Another layout over the same memory."""
        return DeviceArray(self.gpu, self.memory, address, shape, self.dtype, strides)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __repr__(self) -> str:
        return f"DeviceArray({self.device}, {self.dtype}{list(self.shape)})"


@functools.lru_cache(4096)
def dense_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """In bytes, for row-major order."""
    out, step = [], itemsize
    for n in reversed(shape):
        out.append(step)
        step *= n or 1
    return tuple(reversed(out))


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


#: bytes from which on an allocation remembers the line that asked for it
LARGE: Final = 1 << 20


def empty(gpu: Any, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
    """Uninitialised, in row-major order."""
    if not placement.gpu:
        placement.gpu = True
    nbytes = math.prod(shape) * dtype.itemsize
    memory = gpu.allocate(nbytes or 1, user_source() if nbytes >= LARGE else "")
    return DeviceArray(gpu, memory, memory.address, tuple(shape), dtype)


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
