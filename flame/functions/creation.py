"""Tensors from data, from sizes, and from other tensors; conversion between dtypes and devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flame import dtypes
from flame.autograd.tape import assign
from flame.dtypes import dtype as DType
from flame.formats import order, preserve_format
from flame.functions.elementwise import PUBLIC, public
from flame.functions.placing import placed, resolved
from flame.functions.promotion import cast, deliver, number, operand, tensor_operand, to_dtype
from flame.functions.shape import EXPAND, RESHAPE, as_shape, laid, wrap_dim
from flame.functions.taking import typed
from flame.primitive import placement, registered
from flame.runtime.device import CPU
from flame.runtime.gpu_exchange import CUDA as DLPACK_CUDA
from flame.runtime.gpu_exchange import adopted, imported
from flame.tensor import Size, Tensor, method, wrap

FULL, IOTA, WHERE, TRANSFER = map(registered, ("full", "iota", "where", "transfer"))


def _device(d: Any) -> None:
    """Raise unless tensors can live there."""
    if d is not None:
        resolved(d)


def _finish(t: Tensor, requires_grad: bool) -> Tensor:
    return t.requires_grad_(True) if requires_grad else t  # type: ignore[attr-defined]


def _from_data(data: Any, d: DType | None, op: str) -> np.ndarray:
    """A fresh C-contiguous array: Python floats as the default dtype, ints as int64, arrays in their own dtype."""
    if isinstance(data, np.ndarray | np.generic):
        dtypes.from_numpy_dtype(data.dtype)
        return np.array(data, None if d is None else d.numpy, order="C")
    try:
        found = _scan(data)
        if found:
            data = _plain(data)
        a = np.array(data)
        if d is dtypes.uint64 and a.dtype.kind == "f":  # (what NumPy makes of small and large integers together)
            whole = np.array(data, object)
            a = whole.astype(d.numpy) if all(type(n) is int and n >= 0 for n in whole.flat) else a
    except ValueError as e:
        raise ValueError(f"{op}: the nested sequences have different lengths: {e}") from None
    if a.dtype == object or a.dtype.kind in "US":
        raise TypeError(f"{op}: can't make a tensor of {type(data).__name__} values such as {str(data)[:40]!r}")
    if d is not None:
        return np.array(a.astype(d.numpy), order="C")
    if a.dtype.kind == "c" and not found:
        return a.astype(dtypes.get_default_dtype().to_complex().numpy)
    if a.dtype.kind == "c":
        return a
    if a.dtype.kind == "f":
        return a.astype(dtypes.get_default_dtype().numpy) if not found or a.dtype == np.float64 else a
    if a.size == 0:
        return a.astype(dtypes.get_default_dtype().numpy)
    return a.astype(np.bool_ if a.dtype.kind == "b" else np.int64)


def _scan(x: Any) -> bool:
    """Whether a nest of sequences holds tensors or arrays."""
    if isinstance(x, Tensor | np.ndarray | np.generic):
        return True
    return isinstance(x, list | tuple) and any(map(_scan, x[:64]))


def _plain(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x._read()
    return [_plain(y) for y in x] if isinstance(x, list | tuple) else x


@placed
def tensor(
    data: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False
) -> Tensor:
    """A new tensor that copies `data`: a number, nested sequences, an array, a tensor."""
    _device(device)
    if not isinstance(data, Tensor) and hasattr(data, "__cuda_array_interface__"):
        return _finish(registered("copy")(as_tensor(data, dtype)), requires_grad)
    if isinstance(data, Tensor):
        return _finish(wrap(np.array(data._read(), None if dtype is None else dtype.numpy, order="C")), requires_grad)
    return _finish(wrap(_from_data(data, dtype, "tensor")), requires_grad)


@placed
def as_tensor(data: Any, dtype: DType | None = None, device: Any = None) -> Tensor:
    """`data` itself where it is a tensor of that dtype, sharing memory with a NumPy or CUDA array of it, else a copy."""
    _device(device)
    if isinstance(data, Tensor):
        return to_dtype(data, dtype) if dtype is not None else data
    if isinstance(data, np.ndarray) and (dtype is None or data.dtype == dtype.numpy):
        return from_numpy(data)
    if hasattr(data, "__cuda_array_interface__"):
        return to_dtype(
            _shown(adopted(data)), dtype or dtypes.from_numpy_dtype(np.dtype(data.__cuda_array_interface__["typestr"]))
        )
    return tensor(data, dtype=dtype)


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A tensor over the memory of a NumPy array. Raises TypeError for other things and unsupported dtypes."""
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(ndarray).__name__})")
    dtypes.from_numpy_dtype(ndarray.dtype)
    if any(s < 0 for s in ndarray.strides):
        raise ValueError(
            "At least one stride in the given numpy array is negative, and tensors with negative strides are not currently "
            "supported. (You can probably work around this by making a copy of your array with array.copy().)"
        )
    t = wrap(ndarray)
    t.storage_of().volatile = True
    return t


def _shown(array: Any) -> Tensor:
    """A tensor over GPU memory that is another library's too."""
    placement.gpu = True
    t = wrap(array)
    t.storage_of().volatile = "address"
    return t


def from_dlpack(ext_tensor: Any, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor over the memory of another library's array (or a copy, if asked for), through DLPack.

    Raises BufferError where the memory can't be shared as asked, TypeError for objects without `__dlpack__`.
    """
    if device is not None:
        _device(device)
    if not hasattr(ext_tensor, "__dlpack__"):
        raise TypeError(f"from_dlpack: expected an object with __dlpack__, but got {type(ext_tensor).__name__}")
    if ext_tensor.__dlpack_device__()[0] == DLPACK_CUDA:
        t = _shown(imported(ext_tensor))
        return t if device is None or t.device == resolved(device) else t.to(device)
    a = np.from_dlpack(ext_tensor, device=None if device is None else "cpu", copy=copy)
    return from_numpy(a) if all(s >= 0 for s in a.strides) else wrap(a.copy())


def _dtype(d: Any, op: str) -> DType:
    if d is None:
        return dtypes.get_default_dtype()
    if not isinstance(d, DType):
        raise TypeError(f"{op}(): argument 'dtype' must be flame.dtype, not {type(d).__name__}")
    return d


def _filled(name: str, value: Any) -> None:
    def function(
        *size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, out: Tensor | None = None,
        layout: Any = None, pin_memory: bool = False, memory_format: Any = None,
    ) -> Tensor:  # fmt: skip
        _device(device)
        t = FULL(value, shape=_sizes(size, name), dtype=_dtype(dtype, name))
        return _finish(deliver(t, out, name), requires_grad)

    def like(
        input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, layout: Any = None,
        memory_format: Any = None,
    ) -> Tensor:  # fmt: skip
        _device(device)
        x = tensor_operand(input, name + "_like")
        return _finish(FULL(value, shape=tuple(x.shape), dtype=dtype or x.dtype), requires_grad)

    def new(self: Tensor, *size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        _device(device)
        return _finish(FULL(value, shape=_sizes(size, "new_" + name), dtype=dtype or self.dtype), requires_grad)

    function.__name__, like.__name__, new.__name__ = name, name + "_like", "new_" + name
    PUBLIC[name], PUBLIC[name + "_like"] = placed(function), placed(like)
    setattr(Tensor, "new_" + name, placed(new))


def _sizes(size: Sequence[Any], op: str) -> tuple[int, ...]:
    s = as_shape(size, op)
    for n in s:
        if n < 0:
            raise RuntimeError(f"Trying to create tensor with negative dimension {n}: {list(s)}")
    return s


for _n, _v in (("zeros", 0), ("ones", 1), ("empty", 0)):
    _filled(_n, _v)


@placed
def full(
    size: Any, fill_value: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, out: Any = None,
    layout: Any = None,
) -> Tensor:  # fmt: skip
    """A tensor of one value; its dtype is that of the number, unless given."""
    _device(device)
    v = operand(fill_value, "full", "fill_value")
    d = dtype or (v.dtype if isinstance(v, Tensor) else dtypes.dtype_of_number(getattr(v, "value", v)))
    v = to_dtype(RESHAPE(v, shape=()), d) if isinstance(v, Tensor) else v
    return _finish(
        deliver(FULL(v, shape=_sizes((size,) if isinstance(size, Sequence) else (size,), "full"), dtype=d), out, "full"),
        requires_grad,
    )


@placed
def full_like(
    input: Tensor, fill_value: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    return full(tuple(input.shape), fill_value, dtype=dtype or input.dtype, device=device, requires_grad=requires_grad)


@method()
@placed
def new_full(self: Tensor, size: Any, fill_value: Any, *, dtype: DType | None = None, device: Any = None) -> Tensor:
    return full(size, fill_value, dtype=dtype or self.dtype, device=device)


@method()
@placed
def new_tensor(
    self: Tensor, data: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    return tensor(data, dtype=dtype or self.dtype, device=device, requires_grad=requires_grad)


@placed
def arange(
    start: Any, end: Any = None, step: Any = 1, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False,
    out: Any = None,
) -> Tensor:  # fmt: skip
    """start, start + step, ... before end. int64 where all are ints, else the default dtype."""
    _device(device)
    a, b, s = (0, start, step) if end is None else (start, end, step)
    a, b, s = (x.item() if isinstance(x, Tensor) else number(x) for x in (a, b, s))
    if a is None or b is None or s is None:
        raise TypeError("arange(): start, end and step must be Numbers")
    if s == 0:
        raise RuntimeError("step must be nonzero")
    if dtype is None and out is not None and out.dtype is dtypes.int64 and math.isfinite(s) and int(s) == 0:
        raise ValueError(f"arange(): step must be nonzero, but in the integers of out {s} is 0")
    if dtype is not None and dtype is dtypes.int64 and all(map(math.isfinite, (a, b, s))) and int(s) != 0:
        a, b, s = int(a), int(b), int(s)
    if not (math.isfinite(a) and math.isfinite(b)):
        raise RuntimeError(f"unsupported range: {a} -> {b}")
    n = math.ceil((b - a) / s)
    if (b - a) * s < 0:
        raise RuntimeError("upper bound and lower bound inconsistent with step sign")
    d = dtype or (dtypes.get_default_dtype() if any(isinstance(x, float) for x in (a, b, s)) else dtypes.int64)
    work = d if d.kind != "f" else dtypes.float64
    t = IOTA(size=n, dtype=work)
    t = t * s if s != 1 else t
    t = t + a if a != 0 else t
    return _finish(deliver(to_dtype(t, d), out, "arange"), requires_grad)


def _real(v: Any, op: str, d: DType) -> Any:
    """A start or an end for numbers of the dtype d. Raises RuntimeError for a complex tensor where d is not complex."""
    if isinstance(v, Tensor) and v.dtype.kind == "c" and d.kind != "c":
        raise RuntimeError(f"{op}(): complex numbers can't be safely cast to {d!r}: got a tensor of {v.dtype!r}")
    return v


def _steps(n: Any) -> None:
    if not isinstance(n, int):
        raise TypeError(f"linspace(): argument 'steps' must be int, not {type(n).__name__}")
    if n < 0:
        raise RuntimeError("number of steps must be non-negative")


@placed
def linspace(
    start: Any, end: Any, steps: int, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False,
    out: Any = None, layout: Any = None,
) -> Tensor:  # fmt: skip
    """`steps` evenly spaced values from start to end, both included."""
    _device(device)
    _steps(steps)
    d = _dtype(dtype, "linspace")
    if d.kind == "c" or complex in (type(start), type(end)):
        start, end = complex(start), complex(end)
        of = d.to_real() if d.kind == "c" else d
        parts = [linspace(u, v, steps, dtype=of) for u, v in ((start.real, end.real), (start.imag, end.imag))]
        return _finish(deliver(PUBLIC["complex"](*parts), out, "linspace"), requires_grad)
    a, b = float(_real(start, "linspace", d)), float(_real(end, "linspace", d))
    t = IOTA(size=int(steps), dtype=dtypes.float64)
    if steps > 1:
        step = (b - a) / (steps - 1)
        t = WHERE(t < steps // 2, t * step + a, b - (steps - 1 - t) * step)
    else:
        t = t * 0 + a
    if d.kind != "f":
        t = PUBLIC["trunc"](t)
    return _finish(deliver(to_dtype(t, d), out, "linspace"), requires_grad)


@placed
def logspace(
    start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: DType | None = None, device: Any = None,
    requires_grad: bool = False, out: Any = None, layout: Any = None,
) -> Tensor:  # fmt: skip
    """`base` to the powers of linspace(start, end, steps)."""
    _device(device)
    _steps(steps)
    d = _dtype(dtype, "logspace")
    start, end = _real(start, "logspace", d), _real(end, "logspace", d)
    power = linspace(start, end, steps, dtype=dtypes.float64)
    if d.kind != "f":
        power = PUBLIC["trunc"](power)
    y = registered("pow")(FULL(float(base), shape=(), dtype=dtypes.float64), power)
    return _finish(deliver(to_dtype(y, d), out, "logspace"), requires_grad)


@placed
def eye(
    n: int, m: int | None = None, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, out: Any = None,
    layout: Any = None,
) -> Tensor:  # fmt: skip
    """Ones on the diagonal of an n by m matrix."""
    _device(device)
    if n < 0 or (m is not None and m < 0):
        raise RuntimeError(f"n must be greater or equal to 0, got {n if n < 0 else m}")
    rows = RESHAPE(IOTA(size=n, dtype=dtypes.int64), shape=(n, 1))
    y = to_dtype(rows == IOTA(size=n if m is None else m, dtype=dtypes.int64), _dtype(dtype, "eye"))
    return _finish(deliver(y, out, "eye"), requires_grad)


def _triangle(name: str, lower: bool) -> None:
    def function(input: Tensor, diagonal: int = 0) -> Tensor:
        x = tensor_operand(input, name)
        if x.ndim < 2:
            raise RuntimeError(f"{name}: input tensor must have at least 2 dimensions")
        n, m = x.shape[-2:]
        i = RESHAPE(IOTA(size=n, dtype=dtypes.int64), shape=(n, 1))
        j = IOTA(size=m, dtype=dtypes.int64)
        keep = j <= i + diagonal if lower else j >= i + diagonal
        return WHERE(keep, x, False if x.dtype.kind == "b" else 0)

    def in_place(self: Tensor, diagonal: int = 0) -> Tensor:
        return assign(self, function(self, diagonal))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"The {'lower' if lower else 'upper'} triangle of matrices, from the given diagonal; zero elsewhere."
    public(name)(function)
    setattr(Tensor, name + "_", in_place)


_triangle("tril", True)
_triangle("triu", False)


@placed
def tril_indices(
    row: int, col: int, offset: int = 0, *, dtype: DType = dtypes.int64, device: Any = None, layout: Any = None
) -> Tensor:
    """The positions of the lower triangle of a row by col matrix, [2, n]."""
    _triangle_sizes(row, col, device)
    return wrap(np.stack(np.tril_indices(row, offset, col)).astype(dtype.numpy))


def _triangle_sizes(row: int, col: int, device: Any) -> None:
    _device(device)
    if row < 0 or col < 0:
        raise RuntimeError(f"{'row' if row < 0 else 'col'} must be non-negative, got {row if row < 0 else col}")


@placed
def triu_indices(
    row: int, col: int, offset: int = 0, *, dtype: DType = dtypes.int64, device: Any = None, layout: Any = None
) -> Tensor:
    """The positions of the upper triangle of a row by col matrix, [2, n]."""
    _triangle_sizes(row, col, device)
    return wrap(np.stack(np.triu_indices(row, offset, col)).astype(dtype.numpy))


@public()
def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Matrices with the last dimension on their diagonal."""
    if input.ndim == 0:
        raise RuntimeError("diag_embed: input must have at least one dimension")
    if wrap_dim(dim1, input.ndim + 1, "diag_embed") == wrap_dim(dim2, input.ndim + 1, "diag_embed"):
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    n = input.shape[-1] + abs(offset)
    i = RESHAPE(IOTA(size=n, dtype=dtypes.int64), shape=(n, 1))
    j = IOTA(size=n, dtype=dtypes.int64)
    x = PUBLIC["constant_pad_nd"](input, (offset, 0) if offset > 0 else (0, -offset)) if offset else input
    x = EXPAND(RESHAPE(x, shape=(*x.shape[:-1], 1, n)), shape=(*x.shape[:-1], n, n))
    y = WHERE(j == i + offset, x, 0)
    k = y.ndim
    a, b = wrap_dim(dim1, k, "diag_embed"), wrap_dim(dim2, k, "diag_embed")
    return y if (a, b) == (k - 2, k - 1) else PUBLIC["movedim"](y, (k - 2, k - 1), (a, b))


@public()
def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """The diagonal of a matrix, or the matrix with a vector as its diagonal."""
    if input.ndim == 1:
        return diag_embed(input, diagonal)
    if input.ndim == 2:
        return registered("copy")(PUBLIC["diagonal"](input, diagonal))
    raise RuntimeError(f"diag(): Supports 1D or 2D tensors. Got {input.ndim}D")


@public()
@typed
def trace(input: Tensor) -> Tensor:
    if input.ndim != 2:
        raise RuntimeError("trace: expected a matrix, but got tensor with dim " + str(input.ndim))
    return PUBLIC["diagonal"](input).sum()


@public()
def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """The matrix with all elements of the tensor on its diagonal."""
    return diag_embed(RESHAPE(input, shape=(input.numel(),)), offset)


@public()
def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """Vectors of int64 with a 1 at the class."""
    if input.dtype is not dtypes.int64:
        raise RuntimeError(f"one_hot is only applicable to index tensor of type LongTensor, got {input.dtype!r}")
    if num_classes == -1:
        num_classes = int(input.max().item()) + 1  # type: ignore[attr-defined]
    return to_dtype(input.unsqueeze(-1) == IOTA(size=num_classes, dtype=dtypes.int64), dtypes.int64)  # type: ignore[attr-defined]


@placed
def empty_strided(
    size: Any, stride: Any, *, dtype: DType | None = None, layout: Any = None, device: Any = None, requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """A tensor of given sizes and strides over fresh memory."""
    _device(device)
    s, t = as_shape((size,), "empty_strided"), as_shape((stride,), "empty_strided")
    if len(s) != len(t):
        raise RuntimeError(f"dimensionality of sizes ({len(s)}) must match dimensionality of strides ({len(t)})")
    if any(n < 0 for n in t):
        raise RuntimeError(f"empty_strided: negative strides are not supported, got {list(t)}")
    _sizes(s, "empty_strided")
    n = 0 if 0 in s else 1 + sum((k - 1) * v for k, v in zip(s, t, strict=True))
    flat = FULL(0, shape=(n,), dtype=_dtype(dtype, "empty_strided"))
    return _finish(registered("as_strided")(flat, size=s, stride=t, offset=0), requires_grad)


@placed
def empty_permuted(
    size: Any, physical_layout: Any, *, dtype: DType | None = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False, pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """A tensor whose dimensions lie in memory in the order of `physical_layout`, outermost first."""
    _device(device)
    s, order = _sizes((size,), "empty_permuted"), as_shape((physical_layout,), "empty_permuted")
    if len(s) != len(order):
        raise RuntimeError(
            "Number of dimensions in size does not match the length of the physical_layout; i.e. len(size) = "
            f"{len(s)} is not equal to len(physical_layout) = {len(order)}"
        )
    for d in order:
        if not 0 <= d < len(s):
            raise RuntimeError(f"Dimension out of range (expected to be between 0 and {len(s) - 1}, but got {d})")
    if len(set(order)) != len(order):
        raise RuntimeError(f"Duplicate dim not allowed: {list(order)}")
    memory = FULL(0, shape=tuple(s[d] for d in order), dtype=_dtype(dtype, "empty_permuted"))
    back = tuple(sorted(range(len(s)), key=order.__getitem__))
    return _finish(registered("permute")(memory, dims=back), requires_grad)


@method()
@placed
def new_empty_strided(
    self: Tensor, size: Any, stride: Any, dtype: DType | None = None, layout: Any = None, device: Any = None,
    pin_memory: bool = False, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    return empty_strided(size, stride, dtype=dtype or self.dtype, device=device, requires_grad=requires_grad)


@method()
@placed
def new(self: Tensor, *args: Any, device: Any = None) -> Tensor:
    """The legacy constructor: `x.new(2, 3)` is uninitialised of that shape, `x.new([1, 2])` holds the data; in x's dtype."""
    if len(args) == 1 and isinstance(args[0], Tensor):
        return as_tensor(args[0], self.dtype)
    if len(args) == 1 and isinstance(args[0], list | tuple | np.ndarray) and not isinstance(args[0], Size):
        return tensor(args[0], dtype=self.dtype)
    return FULL(0, shape=_sizes(args or (0,), "new"), dtype=self.dtype)


for _f in (
    empty_strided, empty_permuted,
    tensor, as_tensor, from_numpy, from_dlpack, full, full_like, arange, linspace, logspace, eye, tril_indices, triu_indices,
):  # fmt: skip
    PUBLIC[_f.__name__] = _f
PUBLIC["asarray"] = as_tensor
PUBLIC["scalar_tensor"] = tensor


# -------------------------------------------------------------------- conversion


@method()
def to(self: Tensor, *args: Any, dtype: DType | None = None, device: Any = None, non_blocking: bool = False, copy: bool = False,
       memory_format: Any = None) -> Tensor:  # fmt: skip
    """This tensor with another dtype or device, itself where nothing changes; `to(dtype)`, `to(device)`, `to(other)`."""
    for a in args:
        if isinstance(a, DType):
            dtype = a
        elif isinstance(a, Tensor):
            dtype, device = a.dtype, a.device
        elif isinstance(a, str) or type(a).__name__ == "device" or (isinstance(a, int) and not isinstance(a, bool)):
            device = a
        elif a is not None and not isinstance(a, bool):
            raise TypeError(f"to(): unexpected argument of type {type(a).__name__}: expected a dtype, a device or a tensor")
    x = self
    if dtype is not None and dtype is not self.dtype:
        x = cast(x, dtype=dtype)
    where = None if device is None else resolved(device)
    if where is not None and (placement.gpu or where.type != "cpu") and where != self.device:
        x = TRANSFER(x, device=str(where), source=str(self.device))
    if memory_format in (None, preserve_format):
        return registered("copy")(x) if copy and x is self else x
    order(memory_format, x.ndim, "to")
    return laid(x, memory_format, "to") if (copy and x is self) or not x.is_contiguous(memory_format) else x


for _name, _d in {
    "float": dtypes.float32, "double": dtypes.float64, "half": dtypes.float16, "bfloat16": dtypes.bfloat16, "int": dtypes.int32,
    "long": dtypes.int64, "short": dtypes.int16, "char": dtypes.int8, "byte": dtypes.uint8, "bool": dtypes.bool_,
    "cfloat": dtypes.complex64, "cdouble": dtypes.complex128,
}.items():  # fmt: skip
    setattr(Tensor, _name, lambda self, memory_format=None, _d=_d: to(self, _d, memory_format=memory_format))


@method()
def type_as(self: Tensor, other: Tensor) -> Tensor:
    return to_dtype(self, other.dtype)


@method("type")
def type_(self: Tensor, dtype: Any = None) -> Any:
    if dtype is None:
        kind = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long", "int32": "Int",
                "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool", "complex64": "ComplexFloat",
                "complex128": "ComplexDouble"}[self.dtype.name]  # fmt: skip
        return f"flame.{kind}Tensor"
    return to_dtype(self, dtype)


@method()
def cpu(self: Tensor, memory_format: Any = None) -> Tensor:
    """This tensor in host memory."""
    return to(self, device=CPU) if placement.gpu else self


@method()
def cuda(self: Tensor, device: Any = None, non_blocking: bool = False) -> Tensor:
    return to(self, device="cuda" if device is None else device)


@public()
def numel(input: Tensor) -> int:
    return math.prod(input.shape)
