"""Moving elements in and out of a GPU's memory, however they lie there.

host(a)               a NumPy array of the values; waits for them
duplicate(a)          a copy in row-major order, in memory of its own
contiguous(a)         the array itself where it can be given to a kernel as it is, else a duplicate
overwrite(to, from_)  an array's elements over another of equal shape and dtype, which may be on the host

What lies in one stretch is moved by the driver. Else one kernel moves it, whose extents, strides and starts are all symbols: it is
compiled once for a size of element and a number of dimensions, after dimensions that lie like one were made one.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np

from flame.compiler.index_math import E, ex, var
from flame.compiler.kernel import Buffer, Kernel, Load, Statement, Store
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import Target
from flame.compiler.to_triton import TritonSource, to_triton
from flame.dtypes import dtype, int8, int16, int32, int64
from flame.primitive import Primitive
from flame.runtime.device_array import DeviceArray, empty, to_device

#: what a kernel may take for granted of the address of a buffer
ALIGNMENT: Final = 16

_WORDS: Final = {1: int8, 2: int16, 4: int32, 8: int64}


def host(a: Any) -> np.ndarray:
    """The values as a NumPy array of their own, in row-major order; a NumPy array as it is."""
    if type(a) is not DeviceArray:
        return a
    out = np.empty(a.shape, a.dtype)
    if a.size:
        a = a if a.contiguous else duplicate(a)
        a.gpu.copy_out(out, a.address)
    return out


def duplicate(a: Any, order: str = "C") -> Any:
    """A copy in memory of its own; `order` "K" keeps how a NumPy array lies."""
    if type(a) is not DeviceArray:
        return np.array(a, order=order)  # type: ignore[call-overload]
    made = empty(a.gpu, a.shape, a.dtype)
    overwrite(made, a)
    return made


def contiguous(a: DeviceArray) -> DeviceArray:
    return a if a.contiguous and a.address % ALIGNMENT == 0 else duplicate(a)


def overwrite(to: Any, from_: Any) -> None:
    """Write the elements of `from_` over those of `to`, which has its shape and dtype. Either may be on the host."""
    if type(to) is not DeviceArray:
        np.copyto(to, host(from_))
        return
    if not to.size:
        return
    gpu = to.gpu
    if type(from_) is not DeviceArray:
        plain = np.ascontiguousarray(from_)
        if to.contiguous:
            gpu.copy_in(to.address, plain)
        else:
            overwrite(to, to_device(gpu, plain))
        return
    if from_.gpu is not gpu:
        overwrite(to, to_device(gpu, host(from_)))
    elif to.contiguous and from_.contiguous:
        gpu.copy(to.address, from_.address, to.nbytes)
    else:
        _by_kernel(to, from_)


def view(primitive: Primitive, x: DeviceArray, params: dict[str, Any]) -> DeviceArray | None:
    """What a view primitive makes of an array; None where the elements would have to move."""
    return x.reshaped(params["shape"]) if primitive.name == "reshape" else x.seen(primitive.eager, **params)


def _by_kernel(to: DeviceArray, from_: DeviceArray) -> None:
    shape, ways = _merged(from_, to)
    itemsize = to.itemsize
    if itemsize not in _WORDS:  # complex numbers of 16 bytes: as pairs of words
        shape, ways = (*shape, itemsize // 8), [(*w, 8) for w in ways]
        itemsize = 8
    gpu = to.gpu
    starts = [(a.address - a.memory.address) // itemsize for a in (from_, to)]
    ends = [s + 1 + sum((n - 1) * (w // itemsize) for n, w in zip(shape, way, strict=True)) for s, way in zip(starts, ways)]
    values = [*shape]
    for start, way, end in zip(starts, ways, ends):
        values += [start, *(w // itemsize for w in way), end]
    wide = max(ends) >= 2**31 - 2**20
    source = copy_source(_WORDS[itemsize], len(shape), gpu.target, wide)
    function = gpu.compile(source)
    symbols = dict(zip((p.symbol for p in source.parameters[2:]), values, strict=True))
    function.launch(source.grid(symbols), (from_.memory.address, to.memory.address, *values))


def _merged(*arrays: DeviceArray) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The common shape, and the strides of each, with dimensions joined that lie like one in all of them."""
    shape: list[int] = []
    ways: list[list[int]] = [[] for _ in arrays]
    for i, n in enumerate(arrays[0].shape):
        if n == 1:
            continue
        steps = [a.strides[i] for a in arrays]
        if shape and all(way[-1] == n * s for way, s in zip(ways, steps)):
            shape[-1] *= n
            for way, s in zip(ways, steps):
                way[-1] = s
        else:
            shape.append(n)
            for way, s in zip(ways, steps):
                way.append(s)
    return tuple(shape), [tuple(w) for w in ways]


@cache
def copy_source(word: dtype, dimensions: int, target: Target, wide: bool) -> TritonSource:
    """The kernel that moves elements of so many dimensions. Its parameters after the pointers: extents; then of either side the
    start, the strides, and the end, in elements."""
    axes = {f"i{d}": var(f"n{d}") for d in range(dimensions)}
    symbols = {f"n{d}": 1 for d in range(dimensions)}
    places: list[tuple[E]] = []
    for side in ("from", "to"):
        place = var(f"{side}_start") + sum((var(f"i{d}") * var(f"{side}_{d}") for d in range(dimensions)), ex(0))
        places.append((place,))
        symbols |= {f"{side}_start": 0} | {f"{side}_{d}": 0 for d in range(dimensions)} | {f"{side}_end": 1}
    buffers = {"x": Buffer("x", word, (var("from_end"),)), "y": Buffer("y", word, (var("to_end"),), "out")}
    statements: list[Statement] = [Load("v", "x", places[0], (), 0, word), Store("y", places[1], "v")]
    kernel = Kernel(f"copy_{word.name}_{dimensions}d", buffers, axes, symbols, statements)
    hints = {name: 2**31 if wide else 64 for name in symbols}
    return to_triton(kernel, choose_gpu(kernel, target, hints))


def scalars(gpu: Any, numbers: list[np.ndarray]) -> list[DeviceArray]:
    """Arrays without dimensions on a GPU, sent there together."""
    packed = np.zeros(ALIGNMENT * len(numbers), np.uint8)
    for k, a in enumerate(numbers):
        packed[k * ALIGNMENT : k * ALIGNMENT + a.itemsize] = np.frombuffer(a.tobytes(), np.uint8)
    sent = to_device(gpu, packed)
    return [DeviceArray(gpu, sent.memory, sent.address + k * ALIGNMENT, (), a.dtype) for k, a in enumerate(numbers)]
