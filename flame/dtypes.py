"""Element types, their NumPy forms, and PyTorch's promotion rules.

    dtype ::= bool | uint8 | int8 | int16 | int32 | int64 | float16 | bfloat16 | float32 | float64
            | uint16 | uint32 | uint64          (storage and bit arithmetic only: no promotion with other dtypes)
            | float8_e4m3fn | float8_e5m2   (storage: computed in float32 and rounded once; no promotion with other dtypes)
            | complex64 | complex128            (eager: compiled code runs these operations between its kernels)

Promotion is a join in a lattice: within a category the wider wins, across categories the higher (bool < integer <
floating). float16 with bfloat16 gives float32, uint8 with a signed integer gives the next wider signed one. A Python
number only lifts the category, and does so to the default dtype of its category.
"""

from __future__ import annotations

from typing import Final

import ml_dtypes
import numpy as np

from flame.changes import changes

_CATEGORY: Final = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


class dtype:
    """An element type. Compare with `is` or `==`; there is one object for each type."""

    __slots__ = ("name", "numpy", "kind", "itemsize", "category")

    def __init__(self, name: str, numpy_type: object, kind: str):
        self.name = name
        self.numpy = np.dtype(numpy_type)  # type: ignore[call-overload]
        self.kind = kind  #: 'b' bool, 'u' unsigned, 'i' signed, 'f' floating, 'c' complex
        self.itemsize = self.numpy.itemsize
        self.category = _CATEGORY[kind]

    @property
    def is_floating_point(self) -> bool:
        return self.kind == "f"

    @property
    def is_complex(self) -> bool:
        return self.kind == "c"

    @property
    def is_differentiable(self) -> bool:
        """Floating or complex: what gradients are of."""
        return self.kind in "fc"

    def to_real(self) -> dtype:
        """The dtype of the parts of complex numbers; a real dtype itself."""
        return self if self.kind != "c" else float32 if self.itemsize == 8 else float64

    def to_complex(self) -> dtype:
        """The complex dtype whose parts are of this one (of float32, if this is narrower)."""
        return self if self.kind == "c" else complex128 if self is float64 else complex64

    @property
    def is_signed(self) -> bool:
        return self.kind in "ifc"

    @property
    def is_narrow_float(self) -> bool:
        """Of 16 or 8 bits: kernels and reductions compute these in float32 and round once."""
        return self.kind == "f" and self.itemsize <= 2

    @property
    def accumulator(self) -> dtype:
        """What sums and contractions of this type are carried in."""
        return float32 if self.is_narrow_float else self

    def __repr__(self) -> str:
        return f"flame.{self.name}"

    def __reduce__(self) -> tuple:
        return (by_name, (self.name,))


def by_name(name: str) -> dtype:
    return BY_NAME[name]


bool_ = dtype("bool", np.bool_, "b")
uint8 = dtype("uint8", np.uint8, "u")
uint16 = dtype("uint16", np.uint16, "u")
uint32 = dtype("uint32", np.uint32, "u")
uint64 = dtype("uint64", np.uint64, "u")
int8 = dtype("int8", np.int8, "i")
int16 = dtype("int16", np.int16, "i")
int32 = dtype("int32", np.int32, "i")
int64 = dtype("int64", np.int64, "i")
float16 = dtype("float16", np.float16, "f")
bfloat16 = dtype("bfloat16", ml_dtypes.bfloat16, "f")
float32 = dtype("float32", np.float32, "f")
float64 = dtype("float64", np.float64, "f")
float8_e4m3fn = dtype("float8_e4m3fn", ml_dtypes.float8_e4m3fn, "f")
float8_e5m2 = dtype("float8_e5m2", ml_dtypes.float8_e5m2, "f")
complex64 = dtype("complex64", np.complex64, "c")
complex128 = dtype("complex128", np.complex128, "c")

ALL: Final = (bool_, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64)
BITS: Final = (uint16, uint32, uint64)
FLOAT8: Final = (float8_e4m3fn, float8_e5m2)
#: what NumPy has no type of its own for
FOREIGN: Final = frozenset({bfloat16, *FLOAT8})
COMPLEX: Final = (complex64, complex128)
FLOATS: Final = tuple(d for d in ALL if d.kind == "f")
INTS: Final = tuple(d for d in ALL if d.kind in "ui")
BY_NAME: Final = {d.name: d for d in ALL + BITS + FLOAT8 + COMPLEX}
_BY_NUMPY: Final = {d.numpy: d for d in ALL + BITS + FLOAT8 + COMPLEX}
_SIGNED: Final = {1: int8, 2: int16, 4: int32, 8: int64}

_default_float = float32


def get_default_dtype() -> dtype:
    return _default_float


def set_default_dtype(d: dtype) -> None:
    """Set the dtype of floating tensors made from Python floats and by factories; float32 at first.

    Raises TypeError unless `d` is a floating dtype.
    """
    global _default_float
    if not isinstance(d, dtype) or not d.is_floating_point:
        raise TypeError(f"set_default_dtype: expected a floating-point dtype, got {d!r}")
    _default_float = d
    changes.note()


def from_numpy_dtype(d: object) -> dtype:
    """The flame dtype of a NumPy dtype (byte order must be native). Raises TypeError for one that has none."""
    got = _BY_NUMPY.get(np.dtype(d))  # type: ignore[call-overload]
    if got is None:
        names = ", ".join(x.name for x in ALL)
        raise TypeError(f"can't convert a NumPy array of dtype {d}; the supported dtypes are: {names}")
    return got


def dtype_of_number(x: bool | int | float | complex) -> dtype:
    """The dtype that a Python number takes when it becomes a tensor by itself."""
    if isinstance(x, bool):
        return bool_
    if isinstance(x, complex):
        return _default_float.to_complex()
    return int64 if isinstance(x, int) else _default_float


def _promote(a: dtype, b: dtype) -> dtype:
    if a is b:
        return a
    if a in FLOAT8 or b in FLOAT8:
        raise RuntimeError(
            f"Promotion for Float8 Types is not supported, attempted to promote {a.name} and {b.name}: cast one of them"
        )
    if "c" in (a.kind, b.kind):
        return complex128 if float64 in (a, b) or complex128 in (a, b) else complex64
    if a.category != b.category:
        return a if a.category > b.category else b
    if a.kind == b.kind:
        if a.itemsize == b.itemsize:  # float16 with bfloat16
            return float32
        return a if a.itemsize > b.itemsize else b
    u, i = (a, b) if a.kind == "u" else (b, a)
    if i.itemsize > u.itemsize:
        return i
    if u.itemsize == 8:
        raise TypeError(f"promotion between {a} and {b} is not defined: cast one of them")
    return _SIGNED[u.itemsize * 2]


_TABLE: Final = {(a, b): _promote(a, b) for a in ALL + COMPLEX for b in ALL + COMPLEX}


def promote_types(a: dtype, b: dtype) -> dtype:
    """The smallest dtype that both can be cast to safely, PyTorch's table. Raises TypeError where there is none."""
    got = _TABLE.get((a, b))
    return got if got is not None else _promote(a, b)
