"""Limits of element types (`finfo`, `iinfo`), questions about tensors, and the legacy constructors (`FloatTensor(2, 3)`)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from flame import dtypes
from flame.dtypes import dtype
from flame.functions import PUBLIC
from flame.functions.creation import tensor
from flame.functions.placing import resolved
from flame.functions.promotion import tensor_operand, to_dtype
from flame.tensor import Size, Tensor


class finfo:
    """The limits of a floating (or complex: those of its parts) dtype: bits, eps, min, max, tiny, smallest_normal, resolution."""

    def __init__(self, type: dtype | None = None):
        d = dtypes.get_default_dtype() if type is None else type
        if not isinstance(d, dtype) or d.kind not in "fc":
            raise TypeError(
                f"torch.finfo() requires a floating point input type. Use torch.iinfo to handle '{d}'".replace(
                    "torch.", "flame."
                )
            )
        i = ml_dtypes.finfo(np.dtype(d.numpy.type(0).real.dtype) if d.kind == "c" else d.numpy)
        self.dtype = d.name if d.kind == "f" else f"float{d.itemsize * 4}"
        self.bits = int(i.bits)
        self.eps, self.max, self.min = float(i.eps), float(i.max), float(i.min)
        self.smallest_normal = self.tiny = float(i.smallest_normal)
        self.resolution = float(i.resolution)

    def __repr__(self) -> str:
        return (
            f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, eps={self.eps:g}, "
            f"smallest_normal={self.smallest_normal:g}, tiny={self.tiny:g}, dtype={self.dtype})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, finfo) and self.dtype == other.dtype

    def __hash__(self) -> int:
        return hash(self.dtype)


class iinfo:
    """The limits of an integer dtype: bits, min, max."""

    def __init__(self, type: dtype):
        if not isinstance(type, dtype) or type.kind not in "ui":
            raise TypeError(
                f"torch.iinfo() requires an integer input type. Use torch.finfo to handle '{type}'".replace("torch.", "flame.")
            )
        i = np.iinfo(type.numpy)
        self.dtype, self.bits, self.min, self.max = type.name, int(i.bits), int(i.min), int(i.max)

    def __repr__(self) -> str:
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, iinfo) and self.dtype == other.dtype

    def __hash__(self) -> int:
        return hash(self.dtype)


def is_floating_point(input: Tensor) -> bool:
    return tensor_operand(input, "is_floating_point").dtype.kind == "f"


def is_complex(input: Tensor) -> bool:
    return tensor_operand(input, "is_complex").dtype.kind == "c"


def is_nonzero(input: Tensor) -> bool:
    """Whether the one element is not 0. Raises RuntimeError for any other number of elements."""
    x = tensor_operand(input, "is_nonzero")
    if x.numel() != 1:
        raise RuntimeError(
            f"Boolean value of Tensor with {'no' if x.numel() == 0 else 'more than one'} value{'s' * (x.numel() == 0)} is ambiguous"
        )
    return bool(x.item())


def is_storage(obj: object) -> bool:
    return False


class _Legacy(type):
    """Makes `isinstance(x, FloatTensor)` ask for the dtype."""

    of: dtype

    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, Tensor) and x.dtype is cls.of


def _legacy(name: str, d: dtype, on_gpu: bool = False) -> Any:
    def __new__(cls: Any, *args: Any, device: Any = None) -> Tensor:
        if on_gpu:
            return make(*args).to(resolved(device or "cuda"))
        return make(*args)

    def make(*args: Any) -> Tensor:
        if len(args) == 1 and isinstance(args[0], Tensor):
            return to_dtype(args[0], d)
        if args and all(isinstance(a, int) and not isinstance(a, bool) for a in args) or not args:
            return PUBLIC["empty"](args or (0,), dtype=d)
        if len(args) == 1 and isinstance(args[0], Size):
            return PUBLIC["empty"](tuple(args[0]), dtype=d)
        if len(args) == 1:
            return tensor(args[0], dtype=d)
        raise TypeError(f"{name}(): expected sizes or one sequence, but got {len(args)} arguments")

    doc = f"Legacy: `{name}(2, 3)` is uninitialised of that shape, `{name}([1, 2])` holds the data; {d.name}."
    return _Legacy(name, (), {"__new__": __new__, "__doc__": doc, "of": d, "dtype": d})


LEGACY = {
    f"{k}Tensor": _legacy(f"{k}Tensor", d)
    for k, d in {
        "Float": dtypes.float32, "Double": dtypes.float64, "Half": dtypes.float16, "BFloat16": dtypes.bfloat16,
        "Long": dtypes.int64, "Int": dtypes.int32, "Short": dtypes.int16, "Char": dtypes.int8, "Byte": dtypes.uint8,
        "Bool": dtypes.bool_,
    }.items()
}  # fmt: skip
LEGACY_CUDA = {n: _legacy(f"cuda.{n}", t.of, True) for n, t in LEGACY.items()}


def set_default_tensor_type(t: Any, /) -> None:
    """Legacy: `set_default_dtype` by a legacy constructor, or its name ("torch.DoubleTensor").

    Raises TypeError for constructors of what is not floating, and for other things; AttributeError for names that are none.
    """
    if isinstance(t, str):
        name = t.rpartition(".")[2]
        if name not in LEGACY:
            raise AttributeError(f"set_default_tensor_type(): there is no constructor {t!r}: use one of {', '.join(LEGACY)}")
        t = LEGACY[name]
    if not isinstance(t, _Legacy):
        raise TypeError(f"set_default_tensor_type(): expected a legacy constructor as flame.DoubleTensor, but got {t!r}")
    if not t.of.is_floating_point:
        raise TypeError(f"only floating-point types are supported as the default type, but {t.__name__} is of {t.of!r}")
    dtypes.set_default_dtype(t.of)


PUBLIC_NAMES: dict[str, Any] = {
    "finfo": finfo, "iinfo": iinfo, "is_floating_point": is_floating_point, "is_complex": is_complex, "is_nonzero": is_nonzero,
    "is_storage": is_storage, "set_default_tensor_type": set_default_tensor_type, **LEGACY,
}  # fmt: skip
