"""Views: reshape, permute, expand, and slicing's relatives; how dimensions and sizes are read from arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flame.autograd.tape import reshape as RESHAPE
from flame.changes import changes
from flame.dtypes import dtype as DType
from flame.formats import contiguous_format, order, preserve_format
from flame.functions.elementwise import PUBLIC, public
from flame.functions.promotion import number, tensor_operand
from flame.primitive import broadcast_shapes as _broadcast_shapes
from flame.primitive import followed, force, registered
from flame.reasons import SHAPE_IN_PLACE
from flame.runtime.device_array import reshaped_strides
from flame.tensor import Size, Tensor, method

PERMUTE, EXPAND, SLICE, COPY = map(registered, ("permute", "expand", "slice", "copy"))


def wrap_dim(dim: Any, ndim: int, op: str = "") -> int:
    """A dimension counted from 0. Raises IndexError (PyTorch's words) out of range; a 0-d tensor counts as one dimension."""
    if type(dim) is int and -ndim <= dim < ndim:  # (the commonest)
        return dim % ndim
    if not isinstance(dim, int) or isinstance(dim, bool):
        n = number(dim)
        if type(n) is not int:
            raise TypeError(f"{op or 'this function'}(): argument 'dim' must be int, not {type(dim).__name__}")
        dim = n
    m = max(ndim, 1)
    if not -m <= dim < m:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-m}, {m - 1}], but got {dim})"
            + (f" in {op}()" if op else "")
        )
    return dim % m


def wrap_dims(dim: Any, ndim: int, op: str = "") -> tuple[int, ...]:
    """Dimensions, sorted; None or () means all. Raises RuntimeError for a repeated one."""
    if type(dim) is int and -ndim <= dim < ndim:
        return (dim % ndim,)
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return tuple(range(ndim))
    if not isinstance(dim, Sequence):
        return (wrap_dim(dim, ndim, op),) if ndim else (wrap_dim(dim, ndim, op),)[:0]
    out = sorted(wrap_dim(d, ndim, op) for d in dim)
    if len(set(out)) != len(out):
        raise RuntimeError(f"{op}: dim {next(d for d in out if out.count(d) > 1)} appears multiple times in the list of dims")
    return tuple(out) if ndim else ()


def as_shape(shape: Sequence[Any], op: str) -> tuple[int, ...]:
    """(2, 3), ((2, 3),), Size or integer tensors as plain ints."""
    if len(shape) == 1 and type(shape[0]) is not int and isinstance(shape[0], Sequence):
        shape = shape[0]
    if all([type(d) is int for d in shape]):
        return tuple(shape)
    out = []
    for d in shape:
        n = d if type(d) is int else int(d) if isinstance(d, Tensor) and d.numel() == 1 else number(d)
        if type(n) is not int:
            raise TypeError(f"{op}(): sizes must be ints, but got {type(d).__name__} ({d!r})")
        out.append(n)
    return tuple(out)


def _inferred(shape: tuple[int, ...], n: int, op: str) -> tuple[int, ...]:
    """The shape with its -1 filled in."""
    if math.prod(shape) == n and (not shape or min(shape) >= 0):
        return shape
    unknown = [i for i, d in enumerate(shape) if d == -1]
    if any(d < -1 for d in shape):
        raise RuntimeError(f"invalid shape dimension {min(shape)} in {list(shape)}")
    if len(unknown) > 1:
        raise RuntimeError("only one dimension can be inferred")
    known = math.prod(d for d in shape if d != -1)
    if unknown:
        if known == 0:
            raise RuntimeError(
                f"cannot reshape tensor of {n} elements into shape {list(shape)} because the unspecified dimension size -1 can be "
                "any value and is ambiguous"
            )
        if n % known == 0:
            return tuple(n // known if d == -1 else d for d in shape)
    elif known == n:
        return shape
    raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {n}")


@method()
@followed
def reshape(self: Tensor, *shape: Any) -> Tensor:
    """The elements in row-major order as another shape; one size may be -1. A view where memory allows it."""
    want = _inferred(as_shape(shape, "reshape"), self.numel(), "reshape")
    return RESHAPE(self, shape=want)


PUBLIC["reshape"] = lambda input, shape: reshape(input, shape)


@method()
@followed
def view(self: Tensor, *shape: Any) -> Tensor:
    """As reshape, but never a copy: raises RuntimeError where the memory does not allow a view."""
    if len(shape) == 1 and isinstance(shape[0], DType):
        raise RuntimeError("view(dtype) reinterprets bits, which is not supported: use Tensor.to(dtype) to convert values")
    a = self._layout()
    want = _inferred(as_shape(shape, "view"), a.size, "view")
    if not a.flags.c_contiguous and not _viewable(a, want):
        raise RuntimeError(
            "view size is not compatible with input tensor's size and stride (at least one dimension spans across two contiguous "
            "subspaces). Use .reshape(...) instead."
        )
    return RESHAPE(self, shape=want)


def _viewable(a: Any, shape: tuple[int, ...]) -> bool:
    return reshaped_strides(a.shape, a.strides, shape, a.itemsize) is not None


@method()
def view_as(self: Tensor, other: Tensor) -> Tensor:
    return view(self, *other.shape)


@method()
def reshape_as(self: Tensor, other: Tensor) -> Tensor:
    return reshape(self, *other.shape)


@public()
@followed
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim to end_dim as one."""
    x = tensor_operand(input, "flatten")
    a, b = wrap_dim(start_dim, x.ndim, "flatten"), wrap_dim(end_dim, x.ndim, "flatten")
    if a > b:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    s = tuple(x.shape)
    want = (*s[:a], math.prod(s[a : b + 1]), *s[b + 1 :]) if x.ndim else (1,)
    return x if want == s else RESHAPE(x, shape=want)


@public()
@followed
def ravel(input: Tensor) -> Tensor:
    """One dimension, contiguous: a view where the memory allows it."""
    return contiguous(reshape(input, -1))


@public()
@followed
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension `dim` as several; one size may be -1."""
    d = wrap_dim(dim, input.ndim, "unflatten")
    s = tuple(input.shape)
    return RESHAPE(input, shape=(*s[:d], *_inferred(as_shape((sizes,), "unflatten"), s[d], "unflatten"), *s[d + 1 :]))


@public()
@followed
def permute(input: Tensor, *dims: Any) -> Tensor:
    """The dimensions in another order: a view."""
    ds = dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims
    if len(ds) != input.ndim:
        raise RuntimeError(
            f"permute: number of dimensions in the tensor input does not match the length of the desired ordering of dimensions "
            f"i.e. input.dim() = {input.ndim} is not equal to len(dims) = {len(ds)}"
        )
    order = tuple(wrap_dim(d, input.ndim, "permute") for d in ds)
    if len(set(order)) != len(order):
        raise RuntimeError(f"permute(): duplicate dims are not allowed: {list(ds)}")
    return PERMUTE(input, dims=order)


@public("transpose", "swapaxes", "swapdims")
@followed
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions exchanged: a view."""
    n = input.ndim
    a, b = wrap_dim(dim0, n, "transpose"), wrap_dim(dim1, n, "transpose")
    if n == 0:
        return PERMUTE(input, dims=())
    order = list(range(n))
    order[a], order[b] = b, a
    return PERMUTE(input, dims=tuple(order))


@public()
@followed
def t(input: Tensor) -> Tensor:
    """The transpose of a matrix; vectors and scalars as they are."""
    if input.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {input.ndim}D")
    return transpose(input, 0, 1) if input.ndim == 2 else PERMUTE(input, dims=tuple(range(input.ndim)))


@followed
def _T(self: Tensor) -> Tensor:
    return PERMUTE(self, dims=tuple(reversed(range(self.ndim))))


@followed
def _mT(self: Tensor) -> Tensor:
    if self.ndim < 2:
        raise RuntimeError(f"tensor.mT is only supported on matrices or batches of matrices. Got {self.ndim}-D tensor.")
    return transpose(self, -2, -1)


Tensor.T = property(_T)  # type: ignore[attr-defined]
Tensor.mT = property(_mT)  # type: ignore[attr-defined]
Tensor.H = property(t)  # type: ignore[attr-defined]
Tensor.mH = property(_mT)  # type: ignore[attr-defined]
PUBLIC["adjoint"] = Tensor.adjoint = _mT  # type: ignore[attr-defined]


@public("movedim", "moveaxis")
@followed
def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """The source dimensions at the destination places; the others keep their order."""
    n = input.ndim
    src = [wrap_dim(d, n, "movedim") for d in (source if isinstance(source, Sequence) else [source])]
    dst = [wrap_dim(d, n, "movedim") for d in (destination if isinstance(destination, Sequence) else [destination])]
    if len(src) != len(dst):
        raise RuntimeError(
            f"movedim: Invalid source or destination dims: source ({src}) and destination ({dst}) differ in length"
        )
    for what, ds in (("source", src), ("destination", dst)):
        if len(set(ds)) != len(ds):
            given = source if what == "source" else destination
            raise RuntimeError(f"movedim: repeated dim in `{what}` ({list(given)})")
    order = [d for d in range(n) if d not in src]
    for at, s in sorted(zip(dst, src, strict=True)):
        order.insert(at, s)
    return PERMUTE(input, dims=tuple(order))


@public()
@followed
def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    """Without dimensions of size 1: all of them, or those of `dim` that have it."""
    s = tuple(input.shape)
    if dim is None:
        drop = set(range(len(s)))
    elif isinstance(dim, Sequence):
        drop = set(wrap_dims(dim, len(s), "squeeze")) if dim and s else set()
    else:
        drop = {wrap_dim(dim, len(s), "squeeze")}
    return RESHAPE(input, shape=tuple(d for i, d in enumerate(s) if d != 1 or i not in drop))


@public()
@followed
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With a dimension of size 1 inserted before `dim`."""
    d = wrap_dim(dim, input.ndim + 1, "unsqueeze")
    s = tuple(input.shape)
    return RESHAPE(input, shape=(*s[:d], 1, *s[d:]))


def _in_shape(name: str, f: Any) -> None:
    """The in-place form of a view: the tensor object itself is given the other shape."""

    def in_place(self: Tensor, *args: Any) -> Tensor:
        if force.interpreter is not None:
            force.interpreter.leave(SHAPE_IN_PLACE, name)
        got = f(self, *args)
        self._array, self._view, self._node = got._array, got._view, got._node
        self._known = None
        changes.note()
        return self

    setattr(Tensor, name + "_", in_place)


for _n, _f in (("squeeze", squeeze), ("unsqueeze", unsqueeze), ("t", t), ("transpose", transpose)):
    _in_shape(_n, _f)


@method()
@followed
def expand(self: Tensor, *sizes: Any) -> Tensor:
    """Dimensions of size 1 (and new leading ones) repeated to `sizes` without copying; -1 keeps a size."""
    want = as_shape(sizes, "expand")
    s = tuple(self.shape)
    lead = len(want) - len(s)
    if lead < 0:
        raise RuntimeError(
            f"expand: the number of sizes provided ({len(want)}) must be greater or equal to the number of dimensions in the "
            f"tensor ({len(s)})"
        )
    full = []
    for i, d in enumerate(want):
        have = s[i - lead] if i >= lead else None
        if d == -1:
            if have is None:
                raise RuntimeError("expand: -1 is not allowed in a leading, non-existing dimension")
            d = have
        elif have is not None and have not in (1, d):
            raise RuntimeError(
                f"The expanded size of the tensor ({d}) must match the existing size ({have}) at non-singleton dimension {i}.  "
                f"Target sizes: {list(want)}.  Tensor sizes: {list(s)}"
            )
        full.append(d)
    if tuple(full[lead:]) == s and full[:lead] == [1] * lead:  # nothing is repeated: what is seen can be written, too
        return RESHAPE(self, shape=(*full[:lead], *s))
    return EXPAND(self, shape=tuple(full))


@method()
def expand_as(self: Tensor, other: Tensor) -> Tensor:
    return expand(self, *other.shape)


@public()
def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    return expand(input, *size)


PUBLIC["broadcast_shapes"] = lambda *shapes: Size(
    _broadcast_shapes(*[(s,) if isinstance(s, int) else tuple(s) for s in shapes], op="broadcast_shapes")
)


def broadcast_tensors(*tensors: Any) -> tuple:
    ts = tensors[0] if len(tensors) == 1 and not isinstance(tensors[0], Tensor) else tensors
    shape = _broadcast_shapes(*[tuple(x.shape) for x in ts], op="broadcast_tensors")
    return tuple(EXPAND(x, shape=shape) for x in ts)


PUBLIC["broadcast_tensors"] = broadcast_tensors


@method()
@followed
def contiguous(self: Tensor, memory_format: Any = contiguous_format) -> Tensor:
    """This tensor, or a copy of it, with row-major memory, or memory in the order of a format (`channels_last`)."""
    if memory_format is preserve_format:
        raise RuntimeError("preserve memory format is unsupported by the contiguous operator")
    return self if self.is_contiguous(memory_format) else laid(self, memory_format, "contiguous")


def laid(x: Tensor, format: Any, op: str) -> Tensor:
    """A copy whose memory is in the order of a format; `preserve_format` and None mean row-major here."""
    dims = tuple(range(x.ndim)) if format is None else order(format, x.ndim, op)
    if dims == tuple(range(x.ndim)):
        return COPY(x)
    back = tuple(dims.index(d) for d in range(x.ndim))
    return PERMUTE(COPY(PERMUTE(x, dims=dims)), dims=back)


@public()
@followed
def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """A copy, through which gradients flow; row-major, or in the order of a format."""
    return laid(input, memory_format, "clone")


# -------------------------------------------------------------------- parts


def take_slice(x: Tensor, dim: int, start: int, stop: int, step: int = 1) -> Tensor:
    s = tuple(x.shape)
    starts, stops, steps = [0] * len(s), list(s), [1] * len(s)
    starts[dim], stops[dim], steps[dim] = start, stop, step
    return SLICE(x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


@public()
@followed
def narrow(input: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """`length` elements of a dimension, from `start`: a view."""
    if input.ndim == 0:
        raise RuntimeError("narrow() cannot be applied to a 0-dim tensor.")
    d = wrap_dim(dim, input.ndim, "narrow")
    n = input.shape[d]
    if isinstance(start, Tensor) and (start.ndim or start.dtype.kind not in "ui"):
        raise RuntimeError("start must be an 0-dim integral Tensor.")
    if isinstance(start, float):
        raise TypeError(f"narrow(): argument 'start' must be int or Tensor, not float (got {start})")
    start = int(start)
    if not -n <= start <= n:
        raise IndexError(f"start out of range (expected to be in range of [{-n}, {n}], but got {start})")
    start = start + n if start < 0 else start
    if length < 0:
        raise RuntimeError("narrow(): length must be non-negative.")
    if start + length > n:
        raise RuntimeError(f"start ({start}) + length ({length}) exceeds dimension size ({n}).")
    return take_slice(input, d, start, start + length)


@public()
@followed
def select(input: Tensor, dim: int, index: Any) -> Tensor:
    """One element of a dimension, which goes: a view."""
    if input.ndim == 0:
        raise IndexError("select() cannot be applied to a 0-dim tensor.")
    d = wrap_dim(dim, input.ndim, "select")
    if isinstance(index, float):
        raise TypeError(f"select(): argument 'index' must be int, not float (got {index})")
    n, i = input.shape[d], int(index)
    if not -n <= i < n:
        raise IndexError(f"select(): index {i} out of range for tensor of size {list(input.shape)} at dimension {d}")
    i %= n
    s = tuple(input.shape)
    return RESHAPE(take_slice(input, d, i, i + 1), shape=s[:d] + s[d + 1 :])


@public()
@followed
def unbind(input: Tensor, dim: int = 0) -> tuple:
    d = wrap_dim(dim, input.ndim, "unbind")
    return tuple(select(input, d, i) for i in range(input.shape[d]))
