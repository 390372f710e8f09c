"""Memory that others see: NumPy's arrays, DLPack capsules, the CUDA array interface, plain addresses; and pinned memory, from which
a GPU reads by itself.

Whoever was handed memory may write it without a word, so capture takes a copy at each use of it from then on
(`Storage.hand_out`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flame import dtypes
from flame.primitive import force as in_force
from flame.primitive import placement
from flame.runtime import cuda
from flame.runtime.device import as_device
from flame.runtime.device_array import address_of
from flame.runtime.gpu_copy import duplicate
from flame.runtime.gpu_exchange import CUDA, described, exported
from flame.tensor import Tensor, method, wrap


@method()
def data_ptr(self: Tensor) -> int:
    return address_of(_handed_memory(self))


@method()
def numpy(self: Tensor, *, force: bool = False) -> np.ndarray:
    """The values as a NumPy array that shares this tensor's memory (bfloat16 and the 8-bit floats come as `ml_dtypes` has them).

    Raises RuntimeError if the tensor requires grad (use `.detach().numpy()`), unless `force`.
    """
    if self.requires_grad:
        if not force:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        return self.detach().numpy(force=True)
    _must_be_on_host(self, force)
    a = self._read()
    if a is self._array:
        self.storage_of().hand_out()
    return a


def _must_be_on_host(self: Tensor, moved: bool = False) -> None:
    """Raise TypeError, as PyTorch does, where NumPy can't see this tensor's memory."""
    if placement.gpu and not moved and self.is_cuda:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )


@method()
def __array__(self: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if self.requires_grad:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
    _must_be_on_host(self)
    a = self._read()
    if dtype is not None and np.dtype(dtype) != a.dtype:
        if copy is False:
            raise ValueError(f"cannot give a {a.dtype} tensor as {np.dtype(dtype)} without a copy")
        return a.astype(dtype)
    if copy:
        return a.copy()
    self.storage_of().hand_out()
    return a


@method()
def __dlpack__(
    self: Tensor,
    *,
    stream: Any = None,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None,
    copy: bool | None = None,
) -> Any:
    """A DLPack capsule of this memory (of a copy, if asked for); versioned where `max_version` is at least (1, 0). On a GPU
    `stream` is the consumer's, which waits for what was launched so far.

    Raises BufferError for tensors that require gradient, for bfloat16 and 8-bit floats on the CPU, for other devices, and
    for a stream of the CPU.
    """
    if self.requires_grad:
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
    if placement.gpu and self.is_cuda:
        here = self.__dlpack_device__()
        if dl_device is not None and tuple(dl_device) != here:
            raise BufferError(f"this tensor is on {self.device}, device {here}; it can't be exported to {tuple(dl_device)}")
        a = _handed_memory(self)
        return exported(duplicate(a) if copy else a, stream, max_version is not None and max_version >= (1, 0))
    if self.dtype in dtypes.FOREIGN:
        raise BufferError(f"{self.dtype.name} cannot be exported through NumPy's DLPack; cast to float32 first")
    if stream is not None and stream != -1:
        raise BufferError(f"stream must be None for memory of the CPU, got {stream!r}")
    if dl_device is not None and tuple(dl_device) != (1, 0):
        raise BufferError(f"this tensor is on the CPU, device (1, 0); it can't be exported to device {tuple(dl_device)}")
    return self.numpy().__dlpack__(max_version=max_version, dl_device=dl_device, copy=copy)


@method()
def __dlpack_device__(self: Tensor) -> tuple[int, int]:
    return (CUDA, self.device.index or 0) if placement.gpu and self.is_cuda else (1, 0)


def _cuda_array_interface(self: Tensor) -> dict[str, Any]:
    """What other GPU libraries ask for. Raises AttributeError on the CPU, RuntimeError where gradient is required."""
    if not (placement.gpu and self.is_cuda):
        raise AttributeError(f"Can't get __cuda_array_interface__ on non-CUDA tensor type: {self.type()}")
    if self.requires_grad:
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad. Use tensor.detach() instead.")
    return described(_handed_memory(self))


def _handed_memory(self: Tensor) -> Any:
    """The array on the device, whose memory others may write from now on."""
    if in_force.interpreter is not None:
        in_force.interpreter.read(self)
    a = self._data()
    self.storage_of().hand_out("address")  # nobody can tell when the address is forgotten
    return a


Tensor.__cuda_array_interface__ = property(_cuda_array_interface)  # type: ignore[attr-defined]


@method()
def is_pinned(self: Tensor, device: Any = None) -> bool:
    """Is this host memory pinned, so that a GPU reads it without a copy aside? False where no GPU is in use."""
    if not cuda.opened() or self.is_cuda:
        return False
    a = self._data()
    return any(on.pinned.find(a) is not None for on in cuda.runtime().gpus.values())


@method()
def pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """A copy in pinned memory, without a history; the tensor itself if it is pinned.

    Raises RuntimeError where there is no GPU, and for a tensor that is on one.
    """
    if not cuda.available():
        raise RuntimeError("Cannot access accelerator device when none is available: memory is pinned for a GPU to read.")
    if self.is_cuda:
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")
    if self.is_pinned():
        return self
    a = self._read()
    pinned = cuda.gpu(as_device(device).index if device is not None else None).pinned.empty(a.shape, a.dtype)
    pinned[...] = a
    return wrap(pinned)


@method()
def is_shared(self: Tensor) -> bool:
    """Do other processes see this memory? On a GPU they may be let; on the CPU they never do, as tensors go to workers by copies in
    shared memory (`flame.utils.data`)."""
    return bool(self.is_cuda)
