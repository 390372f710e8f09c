"""Taking tensors apart and putting them together: split and chunk, cat and stack, repeats, padding, grids, diagonals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flame.dtypes import int64
from flame.functions.elementwise import PUBLIC, public
from flame.functions.forms import with_out
from flame.functions.promotion import deliver, result_type, to_dtype
from flame.functions.shape import (
    COPY,
    EXPAND,
    RESHAPE,
    as_shape,
    expand,
    reshape,
    take_slice,
    transpose,
    unsqueeze,
    wrap_dim,
    wrap_dims,
)
from flame.primitive import followed, registered
from flame.tensor import Tensor, method

FLIP, PAD, CAT, WINDOW, DIAGONAL = map(registered, ("flip", "pad", "cat", "window", "diagonal"))


@public()
@followed
def split(tensor: Tensor, split_size_or_sections: Any = None, dim: int = 0, *, split_size: Any = None) -> tuple:
    """Parts of a size (the last may be smaller), or of the listed sizes."""
    how = split_size_or_sections if split_size is None else split_size
    d = wrap_dim(dim, tensor.ndim, "split")
    n = tensor.shape[d]
    if isinstance(how, Sequence):
        if sum(how) != n:
            raise RuntimeError(
                f"split_with_sizes expects split_sizes to sum exactly to {n} (input tensor's size at dimension {d}), but got "
                f"split_sizes={list(how)}"
            )
        sizes = list(how)
    else:
        if how <= 0:
            raise RuntimeError(f"split expects split_size be positive, but got split_size={how}")
        sizes = [min(how, n - i) for i in range(0, n, how)] or [0]
    out, at = [], 0
    for size in sizes:
        out.append(take_slice(tensor, d, at, at + size))
        at += size
    return tuple(out)


PUBLIC["split_with_sizes"] = Tensor.split_with_sizes = split  # type: ignore[attr-defined]


@public()
@followed
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple:
    """At most `chunks` parts of equal size (the last may be smaller)."""
    if chunks <= 0:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    n = input.shape[wrap_dim(dim, input.ndim, "chunk")]
    return split(input, max(1, -(-n // chunks)), dim)


@public()
@followed
def tensor_split(
    input: Tensor, indices_or_sections: Any = None, dim: int = 0, *, indices: Any = None, sections: Any = None
) -> tuple:
    """Parts of (nearly) equal size, or cut at the listed places; both may be given as integer tensors, which are read."""
    how = next((v for v in (indices_or_sections, indices, sections) if v is not None), None)
    if input.ndim == 0:
        raise RuntimeError("tensor_split expected at least a 1-dimensional tensor, but got a tensor with 0 dims")
    d = wrap_dim(dim, input.ndim, "tensor_split")
    n = input.shape[d]
    if isinstance(how, Tensor):
        if how.dtype is not int64 or how.ndim > 1:
            raise RuntimeError(
                "tensor_split expected tensor_indices_or_sections to be a zero-dimensional or one-dimensional tensor of dtype "
                f"long, but got {list(how.shape)} {how.dtype!r}"
            )
        how = how.tolist()
    if isinstance(how, int):
        k = how
        if k <= 0:
            raise RuntimeError(f"number of sections must be larger than 0, got {k}")
        cuts = [i * (n // k) + min(i, n % k) for i in range(1, k)]
    elif how is None:
        raise TypeError("tensor_split() missing 1 required positional argument: 'indices_or_sections'")
    else:
        for i in how if isinstance(how, Sequence) else ():
            if not isinstance(i, int):
                raise TypeError(
                    f"tensor_split(): argument 'indices_or_sections' must be int or tuple of ints, not {type(how).__name__} of "
                    f"{type(i).__name__}"
                )
        cuts = [min(max(int(i) + (n if i < 0 else 0), 0), n) for i in how]
    edges = [0, *cuts, n]
    return tuple(take_slice(input, d, min(a, b), b) for a, b in zip(edges, edges[1:], strict=False))


@public()
@followed
def flip(input: Tensor, *args: Any, dims: Any = None) -> Tensor:
    """Elements in reverse order along `dims`: a copy."""
    given = args if dims is None else (dims,)
    ds = given[0] if len(given) == 1 and isinstance(given[0], Sequence) else given
    return FLIP(input, dims=wrap_dims(ds, input.ndim, "flip")) if ds else COPY(input)


@public()
def fliplr(input: Tensor) -> Tensor:
    """Columns in reverse order."""
    if input.ndim < 2:
        raise RuntimeError("Input must be >= 2-d.")
    return flip(input, 1)


@public()
def flipud(input: Tensor) -> Tensor:
    """Rows in reverse order."""
    if input.ndim < 1:
        raise RuntimeError("Input must be >= 1-d.")
    return flip(input, 0)


@public()
def rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """Turned by k quarters from the first of `dims` towards the second."""
    if len(dims) != 2:
        raise RuntimeError(f"expected total rotation dims == 2, but got dims = {len(dims)}")
    if input.ndim < 2:
        raise RuntimeError(f"expected total dims >= 2, but got total dims = {input.ndim}")
    a, b = wrap_dim(dims[0], input.ndim, "rot90"), wrap_dim(dims[1], input.ndim, "rot90")
    if a == b:
        raise RuntimeError(f"expected rotation dims to be different, but got dim0 = {dims[0]} and dim1 = {dims[1]}")
    match k % 4:
        case 0:
            return COPY(input)
        case 1:
            return transpose(flip(input, b), a, b)
        case 2:
            return flip(input, a, b)
        case _:
            return flip(transpose(input, a, b), b)


@public()
@followed
def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Elements moved along dimensions, those that leave coming back at the other end."""
    if dims is None:
        return reshape(roll(reshape(input, -1), shifts, 0), *input.shape)
    shifts = shifts if isinstance(shifts, Sequence) else [shifts]
    dims = dims if isinstance(dims, Sequence) else [dims]
    if len(shifts) != len(dims):
        raise RuntimeError(f"shifts and dimensions must align. shifts: {len(shifts)}, dims:{len(dims)}")
    x = input
    for k, dim in zip(shifts, dims, strict=True):
        d = wrap_dim(dim, x.ndim, "roll")
        n = x.shape[d]
        k = k % n if n else 0
        if k:
            x = CAT(take_slice(x, d, n - k, n), take_slice(x, d, 0, n - k), dim=d)
    return x if x is not input else COPY(x)


# -------------------------------------------------------------------- joining


def _joined(tensors: Any, op: str) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        raise TypeError(f"{op}(): argument 'tensors' (position 1) must be tuple of Tensors, not Tensor")
    ts = list(tensors)
    if not ts:
        kind = ValueError if op == "cat" else RuntimeError
        raise kind(f"{op}(): expected a non-empty list of Tensors")
    for i, x in enumerate(ts):
        if not isinstance(x, Tensor):
            raise TypeError(f"expected Tensor as element {i} in argument 0, but got {type(x).__name__}")
    d = ts[0].dtype
    if all([x.dtype is d for x in ts]):
        return ts
    d = result_type(*ts)
    return [to_dtype(x, d) for x in ts]


def _alike(tensors: Any, dim: Any) -> int:
    """Where tensors of one dtype and rank, none of them empty, are joined along; -1 where that has to be found out."""
    if type(dim) is not int or (type(tensors) is not list and type(tensors) is not tuple):
        return -1
    n, d = 0, None
    for x in tensors:
        a = x._array if isinstance(x, Tensor) else None
        if a is None or a.size == 0:
            return -1
        if d is None:
            n, d = a.ndim, a.dtype
        elif a.dtype is not d or a.ndim != n:
            return -1
    return dim % n if -n <= dim < n else -1


@followed
def cat(tensors: Any, dim: int = 0, *, out: Tensor | None = None) -> Tensor:
    """Tensors end to end along an existing dimension. Raises RuntimeError where other sizes differ."""
    if out is None and (d := _alike(tensors, dim)) >= 0:  # the commonest, straight
        return CAT(*tensors, dim=d)
    ts = _joined(tensors, "cat")
    kept = [x for x in ts if x.ndim != 1 or x.shape[0] != 0] or ts[:1]
    if kept[0].ndim == 0:
        raise RuntimeError("zero-dimensional tensor (at position 0) cannot be concatenated")
    d = wrap_dim(dim, kept[0].ndim, "cat")
    return deliver(CAT(*kept, dim=d), out, "cat")


for _n in ("cat", "concat", "concatenate"):
    PUBLIC[_n] = cat


@followed
def stack(tensors: Any, dim: int = 0, *, out: Tensor | None = None) -> Tensor:
    """Tensors of equal shape along a new dimension."""
    ts = _joined(tensors, "stack")
    for i, x in enumerate(ts):
        if x.shape != ts[0].shape:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(ts[0].shape)} at entry 0 and {list(x.shape)} at "
                f"entry {i}"
            )
    d = wrap_dim(dim, ts[0].ndim + 1, "stack")
    return cat([unsqueeze(x, d) for x in ts], d, out=out)


PUBLIC["stack"] = stack


def _at_least(n: int) -> Any:
    def at_least(*tensors: Any) -> Any:
        if len(tensors) == 1 and isinstance(tensors[0], Tensor):
            x = tensors[0]
            if n == 3 and x.ndim == 2:
                return unsqueeze(x, -1)
            if n == 3 and x.ndim == 1:
                return reshape(x, 1, -1, 1)
            return x if x.ndim >= n else reshape(x, *[1] * (n - x.ndim), *x.shape)
        if any(isinstance(x, str) for x in tensors):
            raise TypeError(f"{at_least.__name__}(): expected tensors, but got {[type(x).__name__ for x in tensors]}")
        return tuple(at_least(x) for x in (tensors[0] if len(tensors) == 1 else tensors))

    at_least.__name__ = f"atleast_{n}d"
    return at_least


for _k in (1, 2, 3):
    PUBLIC[f"atleast_{_k}d"] = _at_least(_k)


def hstack(tensors: Any) -> Tensor:
    ts = [PUBLIC["atleast_1d"](x) for x in _joined(tensors, "hstack")]
    return cat(ts, 0 if ts[0].ndim == 1 else 1)


def vstack(tensors: Any) -> Tensor:
    return cat([PUBLIC["atleast_2d"](x) for x in _joined(tensors, "vstack")], 0)


def dstack(tensors: Any) -> Tensor:
    return cat([PUBLIC["atleast_3d"](x) for x in _joined(tensors, "dstack")], 2)


def column_stack(tensors: Any) -> Tensor:
    """Vectors (and scalars) as the columns of a matrix, matrices beside each other."""
    return cat([reshape(x, x.numel(), 1) if x.ndim <= 1 else x for x in tensors], 1)


for _f in (hstack, vstack, dstack, column_stack):
    PUBLIC[_f.__name__] = with_out(_f)
PUBLIC["row_stack"] = PUBLIC["vstack"]


def _split_along(name: str, least: int) -> None:
    def function(input: Tensor, indices_or_sections: Any) -> tuple:
        if input.ndim < least:
            raise RuntimeError(
                f"torch.{name} requires a tensor with at least {least} dimension{'s' * (least > 1)}, but got a tensor with "
                f"{input.ndim} dimensions!".replace("torch.", "")
            )
        d = {"vsplit": 0, "dsplit": 2}.get(name, 0 if input.ndim == 1 else 1)
        if isinstance(indices_or_sections, int):
            if indices_or_sections <= 0 or input.shape[d] % indices_or_sections:
                raise RuntimeError(
                    f"{name} attempted to split along dimension {d}, but the size of the dimension {input.shape[d]} is not "
                    f"divisible by the split_size {indices_or_sections}!"
                )
        return tensor_split(input, indices_or_sections, d)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"tensor_split along dimension {0 if name == 'vsplit' else 2 if name == 'dsplit' else '1 (0 of a vector)'}."
    )
    public(name)(function)


for _n, _k in (("hsplit", 1), ("vsplit", 2), ("dsplit", 3)):
    _split_along(_n, _k)


def block_diag(*tensors: Tensor) -> Tensor:
    """A matrix with the given ones on its diagonal and zeros elsewhere."""
    ts = []
    for k, x in enumerate(_joined(tensors, "block_diag")):
        if x.ndim > 2:
            raise RuntimeError(
                f"torch.block_diag: Input tensors must have 2 or fewer dimensions. Input {k} has {x.ndim} dimensions".replace(
                    "torch.", ""
                )
            )
        ts.append(reshape(x, *(1,) * (2 - x.ndim), *x.shape))
    width, left, rows = sum(x.shape[1] for x in ts), 0, []
    for x in ts:
        rows.append(PAD(x, lo=(0, left), hi=(0, width - left - x.shape[1]), value=0))
        left += x.shape[1]
    return cat(rows, 0)


PUBLIC["block_diag"] = block_diag


def cartesian_prod(*tensors: Tensor) -> Tensor:
    """All combinations of the elements of vectors, one a row."""
    for x in tensors:
        if x.ndim != 1:
            raise RuntimeError(f"Expect a 1D vector, but got shape {list(x.shape)}")
    if len(tensors) == 1:
        return tensors[0]
    return stack([reshape(g, -1) if g.numel() else reshape(g, 0) for g in meshgrid(*tensors)], 1)


PUBLIC["cartesian_prod"] = cartesian_prod


@public("sum_to_size")
def sum_to_size(input: Tensor, *size: Any) -> Tensor:
    """Summed over what would have to be broadcast, so that the shape becomes `size`."""
    want = as_shape(size, "sum_to_size")
    s = tuple(input.shape)
    lead = len(s) - len(want)
    if lead < 0 or any(w not in (1, n) for w, n in zip(want, s[lead:], strict=True)):
        raise RuntimeError(f"size {{{list(want)}}} is not expandable to size {{{list(s)}}}.")
    dims = tuple(range(lead)) + tuple(lead + i for i, w in enumerate(want) if w == 1 and s[lead + i] != 1)
    if not dims:
        return input
    return RESHAPE(registered("sum")(input, dim=dims, keepdim=False), shape=want)


@method()
@followed
def repeat(self: Tensor, *sizes: Any) -> Tensor:
    """The tensor repeated along each dimension (new ones in front)."""
    reps = as_shape(sizes, "repeat")
    s = tuple(self.shape)
    lead = len(reps) - len(s)
    if lead < 0:
        raise RuntimeError("Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor")
    s = (1,) * lead + s
    inter = [v for r, d in zip(reps, s, strict=True) for v in (1, d)]
    wide = [v for r, d in zip(reps, s, strict=True) for v in (r, d)]
    x = EXPAND(RESHAPE(self, shape=tuple(inter)), shape=tuple(wide))
    return RESHAPE(COPY(x), shape=tuple(r * d for r, d in zip(reps, s, strict=True)))


@public()
def tile(input: Tensor, *dims: Any) -> Tensor:
    reps = as_shape(dims, "tile")
    return repeat(input, *(1,) * (input.ndim - len(reps)), *reps)


@public()
@followed
def repeat_interleave(input: Tensor, repeats: Any = None, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    """Each element `repeats` times (an int, or a tensor with one count each, which is read)."""
    if repeats is None:
        return repeat_interleave(PUBLIC["arange"](input.shape[0]), input)
    x, d = (reshape(input, -1), 0) if dim is None else (input, wrap_dim(dim, input.ndim, "repeat_interleave"))
    if isinstance(repeats, int):
        if repeats < 0:
            raise RuntimeError(f"Repeats must be non-negative, but got {repeats}")
        s = tuple(x.shape)
        y = EXPAND(RESHAPE(x, shape=(*s[: d + 1], 1, *s[d + 1 :])), shape=(*s[: d + 1], repeats, *s[d + 1 :]))
        return RESHAPE(COPY(y), shape=(*s[:d], s[d] * repeats, *s[d + 1 :]))
    if isinstance(repeats, Tensor) and repeats.dtype.kind not in "ui":
        raise RuntimeError("repeats has to be Long or Int tensor")
    counts = repeats.tolist() if isinstance(repeats, Tensor) else list(repeats)
    counts = [counts] * x.shape[d] if isinstance(counts, int) else counts * x.shape[d] if len(counts) == 1 else counts
    if len(counts) != x.shape[d]:
        raise RuntimeError(
            f"repeats must have the same size as input along dim, but got repeats.size(0) = {len(counts)} and input.size({d}) = "
            f"{x.shape[d]}"
        )
    if any(c < 0 for c in counts):
        raise RuntimeError("repeats can not be negative")
    index = [i for i, c in enumerate(counts) for _ in range(c)]
    return PUBLIC["index_select"](x, d, PUBLIC["tensor"](index, dtype=int64))


@method()
@followed
def unfold(self: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """All windows of `size` elements along a dimension, `step` apart, the window as a last dimension: a view."""
    if isinstance(size, float) or isinstance(step, float):
        raise TypeError(f"unfold(): argument '{'size' if isinstance(size, float) else 'step'}' must be int, not float")
    d = wrap_dim(dimension, self.ndim, "unfold")
    if size < 0 or step <= 0:
        raise RuntimeError(f"size is {size} but must be >= 0" if size < 0 else f"step is {step} but must be > 0")
    longest = self.shape[d] if self.ndim else 1
    if size > longest:
        raise RuntimeError(f"maximum size for tensor at dimension {d} is {longest} but size is {size}")
    if self.ndim == 0:
        return take_slice(RESHAPE(self, shape=(1,)), 0, 0, size)
    if size == 0:
        s = tuple(self.shape)
        return RESHAPE(take_slice(self, d, 0, 0), shape=(*s[:d], s[d] // step + 1, *s[d + 1 :], 0))
    return WINDOW(self, dim=d, size=size, step=step, dilation=1)


@followed
def constant_pad(x: Tensor, pad: Sequence[int], value: float = 0.0) -> Tensor:
    """PyTorch's padding: pairs for the last dimension first; negative amounts cut."""
    if len(pad) % 2 or len(pad) // 2 > x.ndim:
        raise RuntimeError(f"Padding length must be divisible by 2 and at most twice the number of dimensions, got {list(pad)}")
    lo, hi = [0] * x.ndim, [0] * x.ndim
    for i in range(len(pad) // 2):
        lo[x.ndim - 1 - i], hi[x.ndim - 1 - i] = int(pad[2 * i]), int(pad[2 * i + 1])
    for d in range(x.ndim):
        if lo[d] < 0 or hi[d] < 0:
            n = x.shape[d]
            x = take_slice(x, d, max(0, -lo[d]), n - max(0, -hi[d]))
            lo[d], hi[d] = max(lo[d], 0), max(hi[d], 0)
    return PAD(x, lo=tuple(lo), hi=tuple(hi), value=value) if any(lo) or any(hi) else COPY(x)


PUBLIC["constant_pad_nd"] = constant_pad


@public()
@followed
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements where the two dimensions' indices differ by `offset`, as a last dimension: a view."""
    n = input.ndim
    a, b = wrap_dim(dim1, n, "diagonal"), wrap_dim(dim2, n, "diagonal")
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    return DIAGONAL(input, offset=int(offset), dim1=a, dim2=b)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple:
    """Coordinate grids of 1-d tensors; indexing "ij" or "xy"."""
    ts = list(tensors[0]) if len(tensors) == 1 and not isinstance(tensors[0], Tensor) else list(tensors)
    if not ts:
        raise RuntimeError("meshgrid expects a non-empty TensorList")
    for x in ts:
        if x.ndim > 1:
            raise RuntimeError(f"Expected 0D or 1D tensor in the tensor list but got: {list(x.shape)}")
        if x.dtype is not ts[0].dtype:
            raise RuntimeError("meshgrid expects all tensors to have the same dtype")
    if indexing not in ("ij", "xy"):
        raise RuntimeError(f'meshgrid: indexing must be one of "xy" or "ij", but received: {indexing}')
    swap = indexing == "xy" and len(ts) >= 2
    if swap:
        ts[0], ts[1] = ts[1], ts[0]
    shape = tuple(x.numel() for x in ts)
    out = [expand(reshape(x, *[-1 if i == j else 1 for j in range(len(ts))]), *shape) for i, x in enumerate(ts)]
    if swap:
        out[0], out[1] = out[1], out[0]
    return tuple(out)


PUBLIC["meshgrid"] = meshgrid
