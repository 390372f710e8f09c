"""Arrays from data, from sizes, and from other arrays, under the standard's names."""

from __future__ import annotations

from typing import Any

import numpy as np

from flame import dtypes
from flame.array_api.data_types import array
from flame.dtypes import dtype as DType
from flame.functions import PUBLIC
from flame.functions.promotion import number, to_dtype
from flame.primitive import registered
from flame.tensor import Tensor


def _shape(shape: Any) -> tuple[int, ...]:
    return (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(n) for n in shape)


def asarray(obj: Any, /, *, dtype: DType | None = None, device: Any = None, copy: bool | None = None) -> Tensor:
    """An array of numbers, nested sequences of them, another array, or anything with `__dlpack__` or a buffer.

    copy=None shares memory where it can, True never does, False raises ValueError where a copy is needed.
    """
    if isinstance(obj, Tensor | np.ndarray) or hasattr(obj, "__dlpack__"):
        x = obj if isinstance(obj, Tensor) else PUBLIC["from_numpy"](_plain(obj))
    elif isinstance(obj, memoryview | bytearray) or (hasattr(obj, "__buffer__") and not isinstance(obj, bytes | np.generic)):
        x = PUBLIC["from_numpy"](_plain(np.asarray(obj)))
    else:
        if copy is False:
            raise ValueError(f"asarray: a {type(obj).__name__} can't become an array without a copy")
        return PUBLIC["tensor"](obj, dtype=dtype, device=device)
    converts = dtype is not None and dtype is not x.dtype
    moves = device is not None and x.to(device) is not x
    if copy is False and (converts or moves):
        raise ValueError(f"asarray: an array of {x.dtype!r} on {x.device} can't become {dtype!r} on {device} without a copy")
    if moves:
        x = x.to(device)
    if converts:
        return registered("cast")(x, dtype=dtype)
    return registered("copy")(x) if copy else x


def _plain(obj: Any) -> np.ndarray:
    a = obj if isinstance(obj, np.ndarray) else np.from_dlpack(obj)
    return a.copy() if any(s < 0 for s in a.strides) else a


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """An array over the memory of another library's (a copy if asked for). Raises BufferError where it can't be shared."""
    return PUBLIC["from_dlpack"](x, device=device, copy=copy)


def arange(start: Any, /, stop: Any = None, step: Any = 1, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    """start, start + step, ... before stop; empty where the step leads away from it."""
    a, b = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise ValueError("arange: step must not be 0")
    d = dtype or (dtypes.int64 if all(isinstance(v, int) for v in (a, b, step)) else dtypes.get_default_dtype())
    if (b - a) / step <= 0:
        return PUBLIC["empty"](0, dtype=d, device=device)
    return PUBLIC["arange"](a, b, step, dtype=d, device=device)


def empty(shape: Any, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    return PUBLIC["empty"](_shape(shape), dtype=dtype, device=device)


def zeros(shape: Any, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    return PUBLIC["zeros"](_shape(shape), dtype=dtype, device=device)


def ones(shape: Any, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    return PUBLIC["ones"](_shape(shape), dtype=dtype, device=device)


def full(shape: Any, fill_value: Any, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    """An array of one value; its dtype is that of the scalar, unless given."""
    if dtype is None and number(fill_value) is not None:
        dtype = dtypes.dtype_of_number(number(fill_value))
    return PUBLIC["full"](_shape(shape), fill_value, dtype=dtype, device=device)


def empty_like(x: Tensor, /, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    return PUBLIC["empty_like"](array(x, "empty_like"), dtype=dtype, device=device)


def zeros_like(x: Tensor, /, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    return PUBLIC["zeros_like"](array(x, "zeros_like"), dtype=dtype, device=device)


def ones_like(x: Tensor, /, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    return PUBLIC["ones_like"](array(x, "ones_like"), dtype=dtype, device=device)


def full_like(x: Tensor, /, fill_value: Any, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    return PUBLIC["full_like"](array(x, "full_like"), fill_value, dtype=dtype, device=device)


def eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: DType | None = None, device: Any = None) -> Tensor:
    """Ones on the diagonal `k` of an n_rows by n_cols array of zeros."""
    m = n_rows if n_cols is None else n_cols
    rows = PUBLIC["arange"](n_rows, device=device).reshape(n_rows, 1)
    on = PUBLIC["arange"](m, device=device) - rows == k
    return to_dtype(on, dtype or dtypes.get_default_dtype())


def linspace(
    start: Any, stop: Any, /, num: int, *, dtype: DType | None = None, device: Any = None, endpoint: bool = True
) -> Tensor:
    """`num` evenly spaced numbers from start to stop, which is the last of them only if `endpoint`."""
    if num < 0:
        raise ValueError(f"linspace: num must not be negative, got {num}")
    default = dtypes.get_default_dtype()
    d = dtype or (default.to_complex() if isinstance(start, complex) or isinstance(stop, complex) else default)
    wide = np.complex128 if d.kind == "c" else np.float64
    values = np.linspace(start, stop, num, endpoint=endpoint, dtype=wide)
    return PUBLIC["tensor"](np.floor(values) if d.kind in "ui" else values, dtype=d, device=device)


def meshgrid(*arrays: Tensor, indexing: str = "xy") -> tuple[Tensor, ...]:
    """Coordinate arrays of vectors; "xy" exchanges the first two dimensions, "ij" does not."""
    if indexing not in ("xy", "ij"):
        raise ValueError(f'meshgrid: indexing must be "xy" or "ij", got {indexing!r}')
    if len({array(x, "meshgrid", "arrays").dtype for x in arrays}) > 1:
        raise ValueError("meshgrid: the arrays must have one dtype")
    if any(x.ndim > 1 for x in arrays):
        raise ValueError("meshgrid: the arrays must have at most one dimension")
    return tuple(PUBLIC["meshgrid"](*arrays, indexing=indexing)) if arrays else ()


def tril(x: Tensor, /, *, k: int = 0) -> Tensor:
    """The elements on and below the diagonal k of matrices; zeros elsewhere."""
    return PUBLIC["tril"](_matrices(x, "tril"), k)


def triu(x: Tensor, /, *, k: int = 0) -> Tensor:
    """The elements on and above the diagonal k of matrices; zeros elsewhere."""
    return PUBLIC["triu"](_matrices(x, "triu"), k)


def _matrices(x: Any, op: str) -> Tensor:
    if array(x, op).ndim < 2:
        raise ValueError(f"{op}: expected an array of at least two dimensions, but got {list(x.shape)}")
    return x
