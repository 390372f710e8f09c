"""Indexing and assignment, and the functions that gather and scatter.

`x[...]` is taken apart into a basic part (slices, ints, None, Ellipsis: views) and an advanced part (tensors, lists, masks), which
acts on what the basic part leaves. Places of the advanced dimensions follow PyTorch: at the first one if they are adjacent after
ints were applied, else in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flame import dtypes
from flame.autograd.tape import assign
from flame.functions.combined import masked_fill
from flame.functions.elementwise import PUBLIC, public
from flame.functions.promotion import number, operand, tensor_operand, to_dtype
from flame.functions.shape import EXPAND, RESHAPE, SLICE, wrap_dim
from flame.functions.taking import typed
from flame.primitive import followed, registered
from flame.tensor import Tensor, beside, floating, method

GATHER, SCATTER, SCATTER_ADD, INDEX_SELECT, INDEX_ADD, INDEX_ND, INDEX_PUT = map(
    registered, ("gather", "scatter", "scatter_add", "index_select", "index_add", "index_nd", "index_put")
)


def _as_index(k: Any) -> Any:
    """A list or NumPy array as an index tensor."""
    a = np.asarray(k)
    if a.size == 0:
        a = a.astype(np.int64)
    if a.dtype.kind not in "iub":
        raise IndexError(f"tensors used as indices must be long, int, byte or bool tensors, not {a.dtype}")
    return floating(a if a.dtype == np.bool_ else a.astype(np.int64))


def _items(key: Any) -> list:
    if isinstance(key, tuple):
        return list(key)
    if isinstance(key, list) and any(isinstance(k, slice | type(None) | type(Ellipsis) | Tensor) for k in key):
        return list(key)
    return [key]


class _Parsed:
    """A key against a shape: slices for the basic part, the shape it leaves, and (dimension, index tensor) pairs on that."""

    def __init__(self, x: Tensor, key: Any):
        shape = tuple(x.shape)
        items = _items(key)
        used = 0
        for k in items:
            if isinstance(k, Tensor) and k.dtype.kind == "b":
                used += k.ndim
            elif k is not None and k is not Ellipsis and not isinstance(k, bool):
                used += 1
        if used > len(shape):
            raise IndexError(f"too many indices for tensor of dimension {len(shape)}")
        if not any(k is Ellipsis for k in items):
            items.append(Ellipsis)
        elif sum(k is Ellipsis for k in items) > 1:
            raise IndexError("an index can only have a single ellipsis ('...')")
        starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
        left: list[int] = []
        advanced: list[tuple[int, Tensor]] = []
        d = 0
        plain = True
        for k in items:
            if k is Ellipsis:
                for _ in range(len(shape) - used):
                    left.append(shape[d])
                    d += 1
            elif k is None:
                left.append(1)
                plain = False
            elif isinstance(k, slice):
                a, b, s = _slice(k, shape[d])
                starts[d], stops[d], steps[d] = a, b, s
                left.append(max(0, -(-(b - a) // s)))
                d += 1
            elif isinstance(k, bool | np.bool_):
                advanced.append((len(left), floating(np.asarray([bool(k)]))))
                left.append(1)
                plain = False
            elif isinstance(k, Tensor) or isinstance(k, Sequence | np.ndarray):
                t = k if isinstance(k, Tensor) else _as_index(k)
                if t.dtype.kind == "f":
                    raise IndexError(f"tensors used as indices must be long, int, byte or bool tensors, not {t.dtype!r}")
                if t.ndim == 0 and t.dtype.kind != "b" and isinstance(k, np.ndarray):
                    k = int(t)
                    starts[d], stops[d] = _one(k, shape[d], d)
                    d += 1
                    plain = False
                    continue
                for j in range(t.ndim if t.dtype.kind == "b" else 1):
                    if t.dtype.kind == "b" and t.shape[j] != shape[d]:
                        raise IndexError(
                            f"The shape of the mask {list(t.shape)} at index {j} does not match the shape of the indexed tensor "
                            f"{list(shape)} at index {d}"
                        )
                    if j == 0:
                        advanced.append((len(left), t))
                    left.append(shape[d])
                    d += 1
            else:
                i = number(k)
                if type(i) is not int:
                    raise TypeError(
                        "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid indices (got "
                        f"{type(k).__name__})"
                    )
                starts[d], stops[d] = _one(i, shape[d], d)
                d += 1
                plain = False
        self.starts, self.stops, self.steps = tuple(starts), tuple(stops), tuple(steps)
        self.left = tuple(left)
        self.whole = self.starts == (0,) * len(shape) and self.stops == shape and all(s == 1 for s in steps)
        self.plain = plain
        self.advanced = advanced

    def basic(self, x: Tensor) -> Tensor:
        """The view that the basic part makes."""
        y = x
        if not self.whole:
            y = SLICE(y, starts=self.starts, stops=self.stops, steps=self.steps)
        if not self.plain or (self.whole and not self.advanced):
            y = RESHAPE(y, shape=self.left)
        return y


def _slice(k: slice, n: int) -> tuple[int, int, int]:
    def whole(v: Any) -> Any:
        return v if v is None or type(v) is int else v.__index__()

    step = whole(k.step)
    if step is not None and step <= 0:
        raise ValueError("step must be greater than zero")
    a, b, s = slice(whole(k.start), whole(k.stop), step).indices(n)
    return a, max(a, b), s


def _one(i: int, n: int, d: int) -> tuple[int, int]:
    if not -n <= i < n:
        raise IndexError(f"index {i} is out of bounds for dimension {d} with size {n}")
    i %= n
    return i, i + 1


def nonzero_indices(mask: Tensor) -> tuple:
    """The positions of true elements, one index tensor a dimension. Reads values."""
    return tuple(beside(mask, np.ascontiguousarray(a)) for a in np.nonzero(mask._read()))


def _indices(parsed: _Parsed, shape: Sequence[int]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Index tensors (int64, non-negative meaning left to the primitive) and the dimensions they index."""
    tensors, dims = [], []
    for d, t in parsed.advanced:
        if t.dtype.kind == "b" or t.dtype is dtypes.uint8:
            for j, i in enumerate(nonzero_indices(t)):
                tensors.append(i)
                dims.append(d + j)
        else:
            tensors.append(to_dtype(t, dtypes.int64))
            dims.append(d)
    return tensors, tuple(dims)


@method("__getitem__")
@followed
def getitem(self: Tensor, key: Any) -> Tensor:
    """PyTorch's indexing: views for slices and ints, copies for tensors and masks."""
    if type(key) is int and self.ndim:  # the commonest, straight
        n = self.shape[0]
        if not -n <= key < n:
            raise IndexError(f"index {key} is out of bounds for dimension 0 with size {n}")
        s = tuple(self.shape)
        key %= n
        zeros, ones = (0,) * (len(s) - 1), (1,) * len(s)
        y = SLICE(self, starts=(key, *zeros), stops=(key + 1, *s[1:]), steps=ones)
        return RESHAPE(y, shape=s[1:])
    if isinstance(key, Tensor) and self.ndim and key.dtype is dtypes.int64:
        return INDEX_ND(self, key, dims=(0,))
    parsed = _Parsed(self, key)
    y = parsed.basic(self)
    if not parsed.advanced:
        return y
    tensors, dims = _indices(parsed, y.shape)
    return INDEX_ND(y, *tensors, dims=dims)


@method("__setitem__")
def setitem(self: Tensor, key: Any, value: Any) -> None:
    """Write `value` (a number or tensor that broadcasts) to the indexed elements."""
    parsed = _Parsed(self, key)
    y = parsed.basic(self)
    v = operand(value, "__setitem__", "value") if not isinstance(value, Sequence | np.ndarray) else PUBLIC["tensor"](value)
    if isinstance(v, Tensor):
        v = to_dtype(v, self.dtype)
    elif type(v) is float and self.dtype.kind != "f":
        v = int(v)
    if not parsed.advanced:
        if isinstance(v, Tensor):
            lead = v.ndim - y.ndim
            if lead > 0 and all(d == 1 for d in v.shape[:lead]):
                v = RESHAPE(v, shape=tuple(v.shape)[lead:])
            y.copy_(v)  # type: ignore[attr-defined]
        else:
            y.fill_(v)  # type: ignore[attr-defined]
        return
    target = self if y is self else y
    if len(parsed.advanced) == 1 and parsed.advanced[0][1].dtype.kind == "b" and (not isinstance(v, Tensor) or v.numel() == 1):
        d, mask = parsed.advanced[0]
        after = y.ndim - d - mask.ndim
        m = RESHAPE(mask, shape=(*mask.shape, *[1] * after)) if after else mask
        v = v if not isinstance(v, Tensor) else RESHAPE(v, shape=())
        assign(target, masked_fill(y, m, v))
        return
    tensors, dims = _indices(parsed, y.shape)
    shape = INDEX_ND.infer(y.spec, *(t.spec for t in tensors), dims=dims).shape
    if not isinstance(v, Tensor):
        v = PUBLIC["full"]((), v, dtype=self.dtype)
    lead = v.ndim - len(shape)
    if lead > 0 and all(d == 1 for d in v.shape[:lead]):
        v = RESHAPE(v, shape=tuple(v.shape)[lead:])
    if tuple(v.shape) != shape:
        if v.ndim > len(shape) or any(a not in (1, b) for a, b in zip(reversed(v.shape), reversed(shape), strict=False)):
            raise RuntimeError(
                f"shape mismatch: value tensor of shape {list(v.shape)} cannot be broadcast to indexing result of shape "
                f"{list(shape)}"
            )
        v = EXPAND(v, shape=shape)
    assign(target, INDEX_PUT(y, v, *tensors, dims=dims, accumulate=False))


# -------------------------------------------------------------------- functions


def _index_operand(index: Any, op: str) -> Tensor:
    i = tensor_operand(index, op, "index")
    if i.numel() and i.dtype not in (dtypes.int64, dtypes.int32):
        kind = IndexError if op == "index_fill" else RuntimeError
        raise kind(f"{op}(): Expected dtype int64 for index, but got {i.dtype!r}")
    return to_dtype(i, dtypes.int64)


@public()
@followed
def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """out[i][j] = input[index[i][j]][j] for dim 0, and so on: one element for each element of `index`."""
    i = _index_operand(index, "gather")
    d = wrap_dim(dim, input.ndim, "gather")
    if i.numel() == 0:
        return registered("full")(0, shape=tuple(i.shape), dtype=input.dtype)
    if input.ndim == 0 or i.ndim == 0:
        return RESHAPE(GATHER(_lined(input), _lined(i), dim=0), shape=tuple(i.shape))
    GATHER.infer(input.spec, i.spec, dim=d)
    return GATHER(input, i, dim=d)


def _lined(x: Tensor) -> Tensor:
    """A tensor of no dimensions as one of a single dimension; others as they are."""
    return RESHAPE(x, shape=(1,)) if x.ndim == 0 else x


@public()
@followed
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """As gather, with the other dimensions broadcast."""
    if dim is None:
        return gather(input.reshape(-1), 0, indices.reshape(-1))  # type: ignore[attr-defined]
    d = wrap_dim(dim, input.ndim, "take_along_dim")
    if indices.ndim != input.ndim:
        raise RuntimeError(
            f"take_along_dim(): input and indices should have the same number of dimensions, but got {input.ndim} dimensions for "
            f"input, and {indices.ndim} dimensions for indices"
        )
    if input.ndim == 0:
        return gather(input, 0, indices)
    a, b = list(input.shape), list(indices.shape)
    for k in range(len(a)):
        if k != d:
            if a[k] != b[k] and 1 not in (a[k], b[k]):
                raise RuntimeError(
                    f"The size of tensor a ({a[k]}) must match the size of tensor b ({b[k]}) at non-singleton dimension {k}"
                )
            a[k] = b[k] = a[k] if b[k] == 1 else b[k]
    i = EXPAND(_index_operand(indices, "take_along_dim"), shape=tuple(b))
    i = registered("where")(i < 0, i + a[d], i)
    return GATHER(EXPAND(input, shape=tuple(a)), i, dim=d)


@public()
@followed
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices of `dim` that a vector of indices names."""
    i = _index_operand(index, "index_select")
    if i.ndim > 1:
        raise IndexError("index_select(): Index is supposed to be a vector")
    d = wrap_dim(dim, input.ndim, "index_select")
    i = RESHAPE(i, shape=(1,)) if i.ndim == 0 else i
    if input.ndim == 0:
        return RESHAPE(INDEX_SELECT(RESHAPE(input, shape=(1,)), i, dim=0), shape=())
    return INDEX_SELECT(input, i, dim=d)


@public()
@followed
def take(input: Tensor, index: Tensor) -> Tensor:
    """Elements of the flattened tensor."""
    i = _index_operand(index, "take")
    return INDEX_ND(input.reshape(-1), i, dims=(0,))  # type: ignore[attr-defined]


def _source(input: Tensor, index: Tensor, src: Any, op: str) -> Tensor:
    if isinstance(src, Tensor):
        if src.dtype is not input.dtype:
            raise RuntimeError(f"{op}(): Expected self.dtype to be equal to src.dtype, got {input.dtype!r} and {src.dtype!r}")
        for d, (n, m) in enumerate(zip(index.shape, src.shape, strict=False)):
            if n > m:
                raise RuntimeError(
                    f"Expected index {list(index.shape)} to be no larger than src {list(src.shape)} (dimension {d})"
                )
        if tuple(src.shape) != tuple(index.shape):
            zeros, ones = (0,) * src.ndim, (1,) * src.ndim
            src = SLICE(src, starts=zeros, stops=tuple(index.shape), steps=ones)
        return src
    return registered("full")(operand(src, op, "value"), shape=tuple(index.shape), dtype=input.dtype)


@public()
@followed
def scatter(input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None) -> Tensor:
    """A copy with input[index[i][j]][j] = src[i][j] (dim 0), and so on; `src` a tensor or a number."""
    if reduce not in (None, "add", "multiply"):
        raise RuntimeError(f"reduce argument must be either add or multiply, got {reduce}.")
    i = _index_operand(index, "scatter")
    d = wrap_dim(dim, input.ndim, "scatter")
    if i.numel() == 0:
        return registered("copy")(input)
    s = _source(input, i, value if src is None else src, "scatter")
    x, i, s = _lined(input), _lined(i), _lined(s)
    SCATTER.infer(x.spec, i.spec, s.spec, dim=d)
    if reduce == "multiply":
        y = registered("scatter_reduce")(x, i, s, dim=d, reduce="prod")
    else:
        y = (SCATTER if reduce is None else SCATTER_ADD)(x, i, s, dim=d)
    return RESHAPE(y, shape=()) if input.ndim == 0 else y


@public()
@followed
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """As scatter, adding to what is there."""
    i = _index_operand(index, "scatter_add")
    d = wrap_dim(dim, input.ndim, "scatter_add")
    if i.numel() == 0:
        return registered("copy")(input)
    x, s, i = _lined(input), _lined(_source(input, i, src, "scatter_add")), _lined(i)
    SCATTER_ADD.infer(x.spec, i.spec, s.spec, dim=d)
    y = SCATTER_ADD(x, i, s, dim=d)
    return RESHAPE(y, shape=()) if input.ndim == 0 else y


@public()
@followed
def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    """A copy with the slices of `source` added to those that `index` names."""
    i = _index_operand(index, "index_add")
    d = wrap_dim(dim, input.ndim, "index_add")
    if i.ndim > 1:
        raise IndexError(f"index_add_(): Index is supposed to be a vector, but got dim: {i.ndim} with type: {i.dtype!r}")
    if source.dtype is not input.dtype:
        raise RuntimeError(f"index_add_(): self ({input.dtype!r}) and source ({source.dtype!r}) must have the same scalar type")
    if source.ndim == 0 and i.numel() != 1:
        raise IndexError(f"index_add_(): source is one element, and index has {i.numel()}")
    s = source if alpha == 1 else source * alpha
    x, s, i = _lined(input), _lined(s), _lined(i)
    INDEX_ADD.infer(x.spec, i.spec, s.spec, dim=d)
    y = INDEX_ADD(x, i, s, dim=d)
    return RESHAPE(y, shape=()) if input.ndim == 0 else y


@public()
@followed
def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    d = wrap_dim(dim, input.ndim, "index_copy")
    i = _index_operand(index, "index_copy")
    if i.ndim > 1:
        raise IndexError(f"index_copy_(): Index should have dimension 1 or 0 (got {i.ndim})")
    if source.ndim == input.ndim and i.numel() != (source.shape[d] if source.ndim else 1):
        n = source.shape[d] if source.ndim else 1
        raise IndexError(f"index_copy_(): Number of indices ({i.numel()}) should be equal to source.size(dim) ({n})")
    if source.ndim and input.ndim and source.ndim != input.ndim:
        raise IndexError(
            f"index_copy_(): source and destination must have as many dimensions, but got {source.ndim} and {input.ndim}"
        )
    if 0 in (source.ndim, input.ndim) and source.ndim < 2 and source.numel() != i.numel():
        raise IndexError(f"index_copy_(): Number of indices ({i.numel()}) should be equal to source's ({source.numel()})")
    if input.ndim == 0:
        line = SCATTER(_lined(input), RESHAPE(i, shape=(i.numel(),)), _lined(source), dim=0)
        return RESHAPE(line, shape=())
    n = [1] * input.ndim
    n[d] = i.numel()
    return SCATTER(input, EXPAND(RESHAPE(i, shape=tuple(n)), shape=tuple(source.shape)), source, dim=d)


@public()
@followed
def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    d = wrap_dim(dim, input.ndim, "index_fill")
    i = _index_operand(index, "index_fill")
    if i.ndim > 1:
        raise RuntimeError(f"index_fill_(): Index has to be a vector/scalar, but has {i.ndim} dimensions")
    v = operand(value, "index_fill", "value")
    if isinstance(v, Tensor):
        if v.ndim:
            raise RuntimeError(
                f"index_fill_ only supports a 0-dimensional value tensor, but got tensor with {v.ndim} dimension(s)."
            )
        v = to_dtype(v, input.dtype)
    elif type(v) is float and input.dtype.kind != "f":
        v = bool(v) if input.dtype.kind == "b" else int(v)
    x = _lined(input)
    full, n = registered("full"), x.shape[d]
    i = registered("where")(_lined(i) < 0, _lined(i) + n, _lined(i))
    hit = SCATTER(full(False, shape=(n,), dtype=dtypes.bool_), i, full(True, shape=tuple(i.shape), dtype=dtypes.bool_), dim=0)
    y = registered("where")(RESHAPE(hit, shape=tuple(n if k == d else 1 for k in range(x.ndim))), v, x)
    return RESHAPE(y, shape=()) if input.ndim == 0 else y


@public()
@followed
@typed
def index_put(input: Tensor, indices: Sequence[Any], values: Tensor, accumulate: bool = False) -> Tensor:
    parsed = _Parsed(input, tuple(slice(None) if i is None else i for i in indices))
    tensors, dims = _indices(parsed, input.shape)
    shape = INDEX_ND.infer(input.spec, *(t.spec for t in tensors), dims=dims).shape
    v = to_dtype(values, input.dtype)
    v = EXPAND(v, shape=shape) if tuple(v.shape) != shape else v
    return INDEX_PUT(input, v, *tensors, dims=dims, accumulate=bool(accumulate))


def _in_place(name: str, f: Any) -> None:
    def in_place(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return assign(self, f(self, *args, **kwargs))

    in_place.__name__ = name + "_"
    setattr(Tensor, name + "_", in_place)


for _n, _f in (
    ("scatter", scatter), ("scatter_add", scatter_add), ("index_add", index_add), ("index_copy", index_copy),
    ("index_fill", index_fill), ("index_put", index_put),
):  # fmt: skip
    _in_place(_n, _f)


@public()
def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where `mask` is true, as a vector. Its size depends on values: a captured segment ends here."""
    if mask.dtype.kind != "b":
        raise RuntimeError(f"masked_select: expected BoolTensor for mask, but got {mask.dtype!r}")
    shape = PUBLIC["broadcast_shapes"](tuple(input.shape), tuple(mask.shape)) or (1,)
    return getitem(EXPAND(input, shape=tuple(shape)), EXPAND(mask, shape=tuple(shape)))


@public()
def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """The positions of elements that are not zero: [n, ndim], or one vector a dimension. Reads values."""
    x = RESHAPE(input, shape=(1,)) if input.ndim == 0 else input
    found = nonzero_indices(x if x.dtype.kind == "b" else registered("ne")(x, 0))
    if as_tuple:
        return found
    if input.ndim == 0:
        return beside(input, np.zeros((found[0].numel(), 0), np.int64))
    return beside(input, np.stack([f._read() for f in found], 1))


PUBLIC["argwhere"] = Tensor.argwhere = lambda input: nonzero(input)  # type: ignore[attr-defined]


@public()
@typed
def unique(
    input: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The distinct elements (or slices along `dim`), in order; optionally where each went and how many there are. Reads values."""
    got = np.unique(input._read(), return_inverse=True, return_counts=True, axis=dim)
    values, inverse, counts = (beside(input, np.ascontiguousarray(a)) for a in got)
    if dim is None:
        inverse = RESHAPE(inverse, shape=tuple(input.shape))
    out = (values, *([inverse] if return_inverse else []), *([counts] if return_counts else []))
    return out if len(out) > 1 else values


def _iterate(self: Tensor) -> Any:
    if self.ndim == 0:
        raise TypeError("iteration over a 0-d tensor")
    return iter([Tensor.__getitem__(self, i) for i in range(self.shape[0])])


def _contains(self: Tensor, x: Any) -> bool:
    return bool((self == x).any())  # type: ignore[attr-defined]


Tensor.__iter__ = _iterate  # type: ignore[attr-defined]
Tensor.__contains__ = _contains  # type: ignore[attr-defined]
