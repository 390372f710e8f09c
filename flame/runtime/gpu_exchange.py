"""GPU memory that is shared with other libraries: DLPack capsules and `__cuda_array_interface__`, both ways, without a copy.

    exported(array, stream, versioned) -> capsule          for `__dlpack__`
    imported(producer) -> DeviceArray                      from whatever has `__dlpack__` for a CUDA device
    described(array) -> dict; adopted(producer)            the CUDA array interface, version 3

Layouts are those of dlpack.h 1.x. A capsule holds the array until its consumer, or its own end if nobody consumed it, calls the
deleter. The consumer's stream waits for the producer's.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any, Final

import numpy as np

from flame.dtypes import BY_NAME, FOREIGN, from_numpy_dtype
from flame.runtime.cuda import gpu
from flame.runtime.device_array import DeviceArray, dense_strides
from flame.runtime.gpu_copy import ALIGNMENT

CUDA: Final = 2  #: kDLCUDA

#: kinds of NumPy dtypes -> DLDataTypeCode
_CODES: Final = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_BFLOAT: Final = 4
_NAMES: Final = {0: "int", 1: "uint", 2: "float", _BFLOAT: "bfloat", 5: "complex"}


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


_DELETER: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64), ("tensor", _Tensor),
    ]  # fmt: skip


_KINDS: Final[dict[bytes, type[ctypes.Structure]]] = {b"dltensor": _Managed, b"dltensor_versioned": _Versioned}

_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype, _capsule_new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule_rename = ctypes.pythonapi.PyCapsule_SetName
_capsule_rename.restype, _capsule_rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
# of a capsule that is about to go, which may not be given new references
_dying_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_GetName", ctypes.pythonapi))
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

#: what capsules hold, by a number that stands in them
_held: Final[dict[int, tuple]] = {}
_numbers: Final = itertools.count(1)


@_DELETER
def _delete(managed: int) -> None:
    _held.pop(_Managed.from_address(managed).context, None)


@_DELETER
def _delete_versioned(managed: int) -> None:
    _held.pop(_Versioned.from_address(managed).context, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _unconsumed(capsule: int) -> None:
    """The end of a capsule: one that was consumed has another name by now."""
    name = _dying_name(capsule)
    if name in _KINDS:
        managed = _dying_pointer(capsule, name)
        (_delete if name == b"dltensor" else _delete_versioned)(managed)


def exported(a: DeviceArray, stream: Any = None, versioned: bool = False) -> Any:
    """A DLPack capsule over the memory of an array. `stream` is the consumer's: -1 for one that needs no waiting, None or 1 for
    the default stream, else a driver's handle. Raises BufferError for a dtype that DLPack has no word for."""
    d = from_numpy_dtype(a.dtype)
    if d.name == "bfloat16":
        code = _BFLOAT
    elif a.dtype.kind in _CODES and d not in FOREIGN:
        code = _CODES[a.dtype.kind]
    else:
        raise BufferError(f"{d.name} cannot be exported through DLPack; cast it first")
    if stream is None or stream != -1:
        a.gpu.wait_for(0 if stream in (None, 0, 1) else int(stream), a.gpu, a.gpu.current_stream)
    n = a.ndim
    shape = (ctypes.c_int64 * n)(*a.shape)
    strides = (ctypes.c_int64 * n)(*(s // a.itemsize for s in a.strides))
    tensor = _Tensor(a.address, CUDA, a.gpu.index, n, code, 8 * a.itemsize, 1, shape, strides, 0)
    number = next(_numbers)
    made: Any
    if versioned:
        made = _Versioned(1, 0, number, ctypes.cast(_delete_versioned, ctypes.c_void_p), 0, tensor)
    else:
        made = _Managed(tensor, number, ctypes.cast(_delete, ctypes.c_void_p))
    _held[number] = (a, shape, strides, made)
    name = b"dltensor_versioned" if versioned else b"dltensor"
    return _capsule_new(ctypes.addressof(made), name, ctypes.cast(_unconsumed, ctypes.c_void_p))


class _Lease:
    """Another library's memory: it is told when nobody shows it any more."""

    def __init__(self, managed: Any):
        self.managed = managed

    def __del__(self) -> None:
        if self.managed.deleter:
            _DELETER(self.managed.deleter)(ctypes.addressof(self.managed))


def imported(producer: Any) -> DeviceArray:
    """An array over the memory of an object with `__dlpack__`, on a CUDA device. Raises BufferError for what is none."""
    kind, index = producer.__dlpack_device__()
    if kind != CUDA:
        raise BufferError(f"from_dlpack: expected memory of a CPU (1) or a CUDA device (2), got device type {kind}")
    on = gpu(int(index))
    try:
        capsule = producer.__dlpack__(stream=on.current_stream or 1, max_version=(1, 0))
    except TypeError:  # written before versions were
        capsule = producer.__dlpack__(stream=on.current_stream or 1)
    name = _capsule_name(capsule)
    if name not in _KINDS:
        raise BufferError(f"from_dlpack: the capsule is a {name!r}: it was consumed before, or is no DLPack capsule")
    managed: Any = _KINDS[name].from_address(_capsule_pointer(capsule, name))
    if name == b"dltensor_versioned" and managed.major > 1:
        raise BufferError(f"from_dlpack: version {managed.major}.{managed.minor} of DLPack is not known; 1 is")
    t = managed.tensor
    dtype = _dtype(t.code, t.bits, t.lanes)
    shape = tuple(t.shape[: t.ndim])
    strides = tuple(s * dtype.itemsize for s in t.strides[: t.ndim]) if t.strides else dense_strides(shape, dtype.itemsize)
    _capsule_rename(capsule, _USED[name])
    return _over(on, (t.data or 0) + t.byte_offset, shape, strides, dtype, _Lease(managed))


_USED: Final = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}


def _dtype(code: int, bits: int, lanes: int) -> np.dtype:
    name = "bool" if code == 6 else f"{_NAMES.get(code, '?')}{bits}"
    if lanes != 1 or name not in BY_NAME:
        raise BufferError(f"from_dlpack: dtype code {code} of {bits} bits and {lanes} lanes is no dtype of flame")
    return BY_NAME[name].numpy


def _over(on: Any, address: int, shape: tuple, strides: tuple, dtype: np.dtype, owner: Any) -> DeviceArray:
    nbytes = (1 + sum((n - 1) * (s // dtype.itemsize) for n, s in zip(shape, strides, strict=True))) * dtype.itemsize
    lead = address % ALIGNMENT  # what a kernel is given begins at a multiple of it
    memory = on.adopt(address - lead, 0 if 0 in shape else lead + nbytes, owner)
    return DeviceArray(on, memory, address, shape, dtype, strides)


def described(a: DeviceArray) -> dict[str, Any]:
    """What `__cuda_array_interface__` says of an array. Raises AttributeError for bfloat16 and 8-bit floats: it has no
    word for them."""
    if a.dtype.kind not in "iufcb" or from_numpy_dtype(a.dtype) in FOREIGN:
        raise AttributeError(f"{from_numpy_dtype(a.dtype).name} has no word in the CUDA array interface: use DLPack")
    return {
        "shape": a.shape,
        "strides": None if a.contiguous else a.strides,
        "typestr": a.dtype.str,
        "data": (a.address if a.size else 0, False),
        "version": 3,
        "stream": a.gpu.current_stream or 1,
    }


def adopted(producer: Any) -> DeviceArray:
    """An array over the memory of an object with `__cuda_array_interface__`, which is kept alive. Raises TypeError for dtypes that
    are none of flame's and for masks."""
    about = producer.__cuda_array_interface__
    dtype = np.dtype(about["typestr"])
    from_numpy_dtype(dtype)
    if about.get("mask") is not None:
        raise TypeError("a CUDA array with a mask is not supported")
    shape = tuple(about["shape"])
    strides = about.get("strides") or dense_strides(shape, dtype.itemsize)
    on = gpu(_index_of(producer))
    stream = about.get("stream")
    if stream is not None:
        on.wait_for(on.current_stream, on, 0 if stream in (0, 1) else int(stream))
    return _over(on, about["data"][0], shape, tuple(strides), dtype, producer)


def _index_of(producer: Any) -> int | None:
    """The device that a library says its array is on, in one of the ways in which they do."""
    where = getattr(producer, "device", None)
    index = getattr(where, "id", getattr(where, "index", None))
    return index if isinstance(index, int) else None
