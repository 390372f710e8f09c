"""Element types under the standard's rules: promotion by dtype alone (0-d arrays count in full), kinds, limits.

Python scalars take part as the standard says: they are read in the arrays' dtype, and a complex one lifts a real one. What the
standard leaves open (integers with floats) promotes as everywhere in flame, to the floating dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from flame import dtypes
from flame.dtypes import dtype as DType
from flame.functions import PUBLIC
from flame.functions.promotion import number, to_dtype
from flame.primitive import registered
from flame.tensor import Tensor

_KINDS = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "f",
    "complex floating": "c",
    "numeric": "iufc",
}


def array(x: Any, op: str, place: str = "x") -> Tensor:
    """Raise TypeError unless x is a flame array."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: argument '{place}' must be a flame array, not {type(x).__name__}: make one with asarray")
    return x


def of_kind(x: Any, kinds: str, op: str, place: str = "x") -> Tensor:
    """An array of one of these kinds of dtype. Raises TypeError for others."""
    t = array(x, op, place)
    if t.dtype.kind not in kinds:
        words = [n for n, k in _KINDS.items() if len(k) == 1 and k in kinds]
        raise TypeError(f"{op}: expected a dtype that is {' or '.join(words)}, but got {t.dtype!r}")
    return t


def result_type(*arrays_and_dtypes: Any) -> DType:
    """The dtype that results from combining arrays, dtypes and Python scalars; shapes do not matter.

    Raises TypeError where there is none: for a float scalar with integer arrays, a number with booleans, uint64 with signed
    integers; ValueError without an array or dtype.
    """
    found: DType | None = None
    scalars: list[Any] = []
    for x in arrays_and_dtypes:
        d = x.dtype if isinstance(x, Tensor) else x
        if not isinstance(d, DType):
            n = number(x)
            if n is None:
                raise TypeError(f"result_type: expected arrays, dtypes and Python scalars, but got {type(x).__name__}")
            scalars.append(n)
        elif found is None:
            found = d
        elif (found.kind == "b") != (d.kind == "b"):
            raise TypeError(f"result_type: {found!r} and {d!r} have no common dtype: cast the booleans with astype")
        else:
            found = dtypes.promote_types(found, d)
    if found is None:
        raise ValueError("result_type: expected at least one array or dtype")
    for s in scalars:
        if isinstance(s, bool):
            if found.kind != "b":
                raise TypeError(f"result_type: a Python bool does not go with {found!r}: cast the array, or give a number")
        elif isinstance(s, int):
            if found.kind == "b":
                raise TypeError("result_type: a Python int does not go with bool arrays: cast the array first")
        elif isinstance(s, float):
            if found.kind not in "fc":
                raise TypeError(f"result_type: a Python float does not go with {found!r}: cast the array to a floating dtype")
        elif found.kind not in "fc":
            raise TypeError(f"result_type: a Python complex does not go with {found!r}: cast the array to a floating dtype")
        else:
            found = found.to_complex()
    return found


def together(op: str, kinds: str, *xs: Any) -> list[Tensor]:
    """Arrays and scalars as arrays of their common dtype, which is of one of these kinds."""
    if not any(isinstance(x, Tensor) for x in xs):
        raise TypeError(f"{op}: expected at least one array, but got {', '.join(type(x).__name__ for x in xs)}")
    d = result_type(*xs)
    if d.kind not in kinds:
        words = [n for n, k in _KINDS.items() if len(k) == 1 and k in kinds]
        raise TypeError(f"{op}: expected a dtype that is {' or '.join(words)}, but got {d!r}")
    return [to_dtype(x, d) if isinstance(x, Tensor) else scalar(x, d, op) for x in xs]


def scalar(x: Any, d: DType, op: str) -> Tensor:
    """A Python scalar as a 0-d array. Raises OverflowError for an int that the dtype can't hold."""
    if d.kind in "ui":
        limits = np.iinfo(d.numpy)
        if not limits.min <= x <= limits.max:
            raise OverflowError(f"{op}: Python int {x} is out of bounds for {d!r}")
    return registered("full")(x, shape=(), dtype=d)


def astype(x: Tensor, dtype: DType, /, *, copy: bool = True, device: Any = None) -> Tensor:
    """The elements as another dtype; the array itself only where that changes nothing and not `copy`.

    Raises TypeError for complex numbers as real ones: take `real` or `abs`.
    """
    t = array(x, "astype")
    if device is not None:
        t = t.to(device)
    if t.dtype.kind == "c" and dtype.kind not in "c":
        raise TypeError(
            f"astype: {t.dtype!r} can't be cast to {dtype!r}, which is not complex: take real(x), imag(x) or abs(x)"
        )
    if t.dtype is dtype:
        return registered("copy")(t) if copy else t
    return registered("cast")(t, dtype=dtype)


def can_cast(from_: Any, to: DType, /) -> bool:
    """Whether promoting the two gives `to`; never across kinds."""
    d = from_.dtype if isinstance(from_, Tensor) else from_
    if not isinstance(d, DType) or not isinstance(to, DType):
        raise TypeError("can_cast: expected an array or dtype, and a dtype")
    if d.kind != to.kind and not (d.kind == "u" and to.kind == "i") and not (d.kind == "f" and to.kind == "c"):
        return False
    return dtypes.promote_types(d, to) is to if {d.itemsize, d.kind} != {8, "u"} or d is to else False


def isdtype(dtype: DType, kind: Any) -> bool:
    """Whether a dtype is `kind`: a dtype, the name of a kind ("integral", "real floating", ...), or one of a tuple of these."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, str):
        if kind not in _KINDS:
            raise ValueError(f"isdtype: unrecognized data type kind {kind!r}: the kinds are {', '.join(_KINDS)}")
        return dtype.kind in _KINDS[kind]
    if not isinstance(kind, DType):
        raise TypeError(f"isdtype: expected a dtype, the name of a kind, or a tuple of these, but got {type(kind).__name__}")
    return dtype is kind


@dataclass(frozen=True)
class finfo_object:
    """The limits of a real floating dtype; of a complex one, those of its parts."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@dataclass(frozen=True)
class iinfo_object:
    """The limits of an integer dtype."""

    bits: int
    max: int
    min: int
    dtype: DType


def finfo(type: Any, /) -> finfo_object:
    """The limits of a floating dtype, or of an array's."""
    d = type.dtype if isinstance(type, Tensor) else type
    if not isinstance(d, DType) or d.kind not in "fc":
        raise TypeError(f"finfo: expected a floating-point dtype or array, but got {d!r}")
    real = d.to_real()
    i: Any = ml_dtypes.finfo(real.numpy)
    return finfo_object(int(i.bits), float(i.eps), float(i.max), float(i.min), float(i.smallest_normal), real)


def iinfo(type: Any, /) -> iinfo_object:
    """The limits of an integer dtype, or of an array's."""
    d = type.dtype if isinstance(type, Tensor) else type
    if not isinstance(d, DType) or d.kind not in "ui":
        raise TypeError(f"iinfo: expected an integer dtype or array, but got {d!r}")
    i = np.iinfo(d.numpy)
    return iinfo_object(int(i.bits), int(i.max), int(i.min), d)


def broadcast_to(x: Tensor, /, shape: tuple[int, ...]) -> Tensor:
    return PUBLIC["broadcast_to"](array(x, "broadcast_to"), tuple(shape))


def broadcast_arrays(*arrays: Tensor) -> tuple[Tensor, ...]:
    return tuple(PUBLIC["broadcast_tensors"](*(array(x, "broadcast_arrays", "arrays") for x in arrays))) if arrays else ()
