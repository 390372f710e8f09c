"""Taking tensors apart and putting them together: split and chunk, cat and stack, repeats, padding, grids, diagonals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flame.functions.elementwise import PUBLIC, public
from flame.functions.promotion import deliver, result_type, to_dtype
from flame.functions.shape import (
    COPY,
    EXPAND,
    PERMUTE,
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
from flame.primitive import registered
from flame.tensor import Tensor, method

FLIP, PAD, CAT, WINDOW = map(registered, ("flip", "pad", "cat", "window"))


@public()
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
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple:
    """At most `chunks` parts of equal size (the last may be smaller)."""
    if chunks <= 0:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    n = input.shape[wrap_dim(dim, input.ndim, "chunk")]
    return split(input, max(1, -(-n // chunks)), dim)


@public()
def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple:
    d = wrap_dim(dim, input.ndim, "tensor_split")
    n = input.shape[d]
    if isinstance(indices_or_sections, int):
        k = indices_or_sections
        cuts = [i * (n // k) + min(i, n % k) for i in range(1, k)]
    else:
        cuts = [min(max(int(i) + (n if i < 0 else 0), 0), n) for i in indices_or_sections]
    edges = [0, *cuts, n]
    return tuple(take_slice(input, d, min(a, b), b) for a, b in zip(edges, edges[1:], strict=False))


@public()
def flip(input: Tensor, *dims: Any) -> Tensor:
    """Elements in reverse order along `dims`: a copy."""
    ds = dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims
    return FLIP(input, dims=wrap_dims(ds, input.ndim, "flip")) if ds else COPY(input)


PUBLIC["fliplr"] = Tensor.fliplr = lambda input: flip(input, 1)  # type: ignore[attr-defined]
PUBLIC["flipud"] = Tensor.flipud = lambda input: flip(input, 0)  # type: ignore[attr-defined]


@public()
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
    ts = list(tensors)
    if not ts:
        raise RuntimeError(f"{op}(): expected a non-empty list of Tensors")
    for i, x in enumerate(ts):
        if not isinstance(x, Tensor):
            raise TypeError(f"expected Tensor as element {i} in argument 0, but got {type(x).__name__}")
    d = result_type(*ts)
    return [to_dtype(x, d) for x in ts]


def cat(tensors: Any, dim: int = 0, *, out: Tensor | None = None) -> Tensor:
    """Tensors end to end along an existing dimension. Raises RuntimeError where other sizes differ."""
    ts = _joined(tensors, "cat")
    kept = [x for x in ts if tuple(x.shape) != (0,)] or ts[:1]
    if kept[0].ndim == 0:
        raise RuntimeError("zero-dimensional tensor (at position 0) cannot be concatenated")
    d = wrap_dim(dim, kept[0].ndim, "cat")
    return deliver(CAT(*kept, dim=d), out, "cat")


for _n in ("cat", "concat", "concatenate"):
    PUBLIC[_n] = cat


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
        return tuple(at_least(x) for x in (tensors[0] if len(tensors) == 1 else tensors))

    at_least.__name__ = f"atleast_{n}d"
    return at_least


for _k in (1, 2, 3):
    PUBLIC[f"atleast_{_k}d"] = _at_least(_k)


def hstack(tensors: Any) -> Tensor:
    ts = [PUBLIC["atleast_1d"](x) for x in tensors]
    return cat(ts, 0 if ts[0].ndim == 1 else 1)


def vstack(tensors: Any) -> Tensor:
    return cat([PUBLIC["atleast_2d"](x) for x in tensors], 0)


def dstack(tensors: Any) -> Tensor:
    return cat([PUBLIC["atleast_3d"](x) for x in tensors], 2)


PUBLIC.update(hstack=hstack, vstack=vstack, row_stack=vstack, dstack=dstack)


@method()
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
def repeat_interleave(input: Tensor, repeats: Any, dim: int | None = None) -> Tensor:
    """Each element `repeats` times (an int, or a tensor with one count each)."""
    x, d = (reshape(input, -1), 0) if dim is None else (input, wrap_dim(dim, input.ndim, "repeat_interleave"))
    if isinstance(repeats, int):
        s = tuple(x.shape)
        y = EXPAND(RESHAPE(x, shape=(*s[: d + 1], 1, *s[d + 1 :])), shape=(*s[: d + 1], repeats, *s[d + 1 :]))
        return RESHAPE(COPY(y), shape=(*s[:d], s[d] * repeats, *s[d + 1 :]))
    counts = repeats.tolist()
    counts = [counts] * x.shape[d] if isinstance(counts, int) else counts
    index = [i for i, c in enumerate(counts) for _ in range(c)]
    return PUBLIC["index_select"](x, d, PUBLIC["tensor"](index))


@method()
def unfold(self: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """All windows of `size` elements along a dimension, `step` apart, the window as a last dimension: a view."""
    d = wrap_dim(dimension, self.ndim, "unfold")
    return WINDOW(self, dim=d, size=size, step=step, dilation=1)


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
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements where the two dimensions' indices differ by `offset`, as a last dimension (a copy)."""
    n = input.ndim
    a, b = wrap_dim(dim1, n, "diagonal"), wrap_dim(dim2, n, "diagonal")
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    x = PERMUTE(input, dims=(*[d for d in range(n) if d not in (a, b)], a, b))
    h, w = x.shape[-2:]
    start, count = (offset, min(h, w - offset)) if offset >= 0 else (-offset * w, min(h + offset, w))
    count = max(count, 0)
    flat = RESHAPE(x, shape=(*x.shape[:-2], h * w))
    if count == 0:
        return take_slice(flat, n - 2, 0, 0)
    return take_slice(flat, n - 2, start, start + (count - 1) * (w + 1) + 1, w + 1)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple:
    """Coordinate grids of 1-d tensors; indexing "ij" or "xy"."""
    ts = list(tensors[0]) if len(tensors) == 1 and not isinstance(tensors[0], Tensor) else list(tensors)
    if indexing not in ("ij", "xy"):
        raise RuntimeError(f'meshgrid: indexing must be one of "xy" or "ij", but received: {indexing}')
    swap = indexing == "xy" and len(ts) >= 2
    if swap:
        ts[0], ts[1] = ts[1], ts[0]
    shape = tuple(x.numel() for x in ts)
    out = [expand(reshape(x, *[-1 if i == j else 1 for j in range(len(ts))]), *shape) for i, x in enumerate(ts)]
    if swap:
        out = [transpose(x, 0, 1) for x in out]
        out[0], out[1] = out[1], out[0]
    return tuple(out)


PUBLIC["meshgrid"] = meshgrid
