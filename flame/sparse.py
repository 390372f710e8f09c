"""flame.sparse: tensors that keep their few elements that are not zero, by coordinates (COO), under torch.sparse's names.

    SparseTensor ::= indices [sparse_dim, nnz], values [nnz, *dense sizes], size

What is computed with one is computed with its values, which are a tensor like any other: gradients flow to them, and to the dense
operands beside them. Coordinates may come several times, and count as their sum; `coalesce` adds them up, in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype as DType
from flame.formats import sparse_coo
from flame.functions import PUBLIC
from flame.functions.promotion import number, tensor_operand, to_dtype
from flame.primitive import registered
from flame.tensor import Size, Tensor, wrap

INDEX_ADD, INDEX_SELECT, FULL = map(registered, ("index_add", "index_select", "full"))


class SparseTensor:
    """A tensor of `size` that is zero but for `values` at `indices`."""

    is_sparse = True
    is_cuda = False
    layout = sparse_coo
    __array_priority__ = 1000.0

    def __init__(self, indices: Tensor, values: Tensor, size: Sequence[int], coalesced: bool = False):
        self._i, self._v, self._size, self._coalesced = indices, values, Size(size), coalesced

    # ---------------------------------------------------------------- what it is

    @property
    def shape(self) -> Size:
        return self._size

    def size(self, dim: int | None = None) -> Any:
        return self._size if dim is None else self._size[dim]

    @property
    def ndim(self) -> int:
        return len(self._size)

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return self._size.numel()

    @property
    def dtype(self) -> DType:
        return self._v.dtype

    @property
    def device(self) -> Any:
        return self._v.device

    @property
    def requires_grad(self) -> bool:
        return self._v.requires_grad

    def requires_grad_(self, requires_grad: bool = True) -> SparseTensor:
        self._v.requires_grad_(requires_grad)
        return self

    @property
    def grad(self) -> SparseTensor | None:
        """The gradient of a leaf: at its own coordinates alone."""
        g = self._v.grad
        return None if g is None else SparseTensor(self._i, g, self._size, self._coalesced)

    def sparse_dim(self) -> int:
        return self._i.shape[0]

    def dense_dim(self) -> int:
        return self._v.ndim - 1

    def _nnz(self) -> int:
        return self._v.shape[0]

    def is_coalesced(self) -> bool:
        return self._coalesced

    def indices(self) -> Tensor:
        """The coordinates, [sparse_dim, nnz]. Raises RuntimeError unless coalesced."""
        if not self._coalesced:
            raise RuntimeError("Cannot get indices on an uncoalesced tensor, please call .coalesce() first")
        return self._i

    def values(self) -> Tensor:
        """The elements, [nnz, ...]. Raises RuntimeError unless coalesced."""
        if not self._coalesced:
            raise RuntimeError("Cannot get values on an uncoalesced tensor, please call .coalesce() first")
        return self._v

    def _indices(self) -> Tensor:
        return self._i

    def _values(self) -> Tensor:
        return self._v

    def __len__(self) -> int:
        return self._size[0]

    def __repr__(self) -> str:
        head = f"tensor(indices={self._i!r},\n       values={self._v!r},\n"
        return f"{head}       size={tuple(self._size)}, nnz={self._nnz()}, layout={self.layout})"

    # ---------------------------------------------------------------- other forms

    def _with(self, values: Tensor, coalesced: bool | None = None) -> SparseTensor:
        return SparseTensor(self._i, values, self._size, self._coalesced if coalesced is None else coalesced)

    def _flat(self) -> Tensor:
        """Where each element stands among those of the sparse dimensions, in row-major order."""
        at: Any = None
        for d in range(self.sparse_dim()):
            row = PUBLIC["select"](self._i, 0, d)
            at = row if at is None else at * self._size[d] + row
        return FULL(0, shape=(self._nnz(),), dtype=dtypes.int64) if at is None else at

    def coalesce(self) -> SparseTensor:
        """Each coordinate once, in row-major order, with the sum of its values. Reads the coordinates."""
        if self._coalesced:
            return self
        flat, place = np.unique(self._flat()._read(), return_inverse=True)
        zero = FULL(0, shape=(len(flat), *self._v.shape[1:]), dtype=self.dtype)
        values = INDEX_ADD(zero, wrap(place.astype(np.int64).reshape(-1)), self._v, dim=0)
        sizes = tuple(self._size)[: self.sparse_dim()]
        rows = np.stack(np.unravel_index(flat, sizes)) if sizes else np.zeros((0, len(flat)))
        return SparseTensor(wrap(np.ascontiguousarray(rows, np.int64)), values, self._size, True)

    def to_dense(self, dtype: DType | None = None) -> Tensor:
        n = math.prod(tuple(self._size)[: self.sparse_dim()])
        zero = FULL(0, shape=(n, *self._v.shape[1:]), dtype=self.dtype)
        dense = INDEX_ADD(zero, self._flat(), self._v, dim=0) if n else zero
        y = PUBLIC["reshape"](dense, tuple(self._size))
        return y if dtype is None else to_dtype(y, dtype)

    def to_sparse(self, sparse_dim: int | None = None) -> SparseTensor:
        return self

    def detach(self) -> SparseTensor:
        return self._with(self._v.detach())

    def clone(self) -> SparseTensor:
        return SparseTensor(self._i.clone(), self._v.clone(), self._size, self._coalesced)

    def to(self, *args: Any, **kwargs: Any) -> SparseTensor:
        return self._with(self._v.to(*args, **kwargs))

    def cpu(self) -> SparseTensor:
        return self

    def float(self) -> SparseTensor:
        return self._with(self._v.float())

    def double(self) -> SparseTensor:
        return self._with(self._v.double())

    def backward(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("backward() of a sparse tensor is not there: reduce it to a number first, as by flame.sparse.sum")

    def transpose(self, dim0: int, dim1: int) -> SparseTensor:
        a, b = (d % self.ndim for d in (dim0, dim1))
        n = self.sparse_dim()
        if a >= n or b >= n:
            raise RuntimeError(f"transpose(): dimensions {dim0} and {dim1} must be sparse ones, of which there are {n}")
        order = list(range(n))
        order[a], order[b] = order[b], order[a]
        size = list(self._size)
        size[a], size[b] = size[b], size[a]
        return SparseTensor(INDEX_SELECT(self._i, PUBLIC["tensor"](order), dim=0), self._v, size)

    def t(self) -> SparseTensor:
        if self.ndim != 2:
            raise RuntimeError(f"t() expects a tensor with 2 dimensions, but this one has {self.ndim}")
        return self.transpose(0, 1)

    T = property(t)

    # ---------------------------------------------------------------- arithmetic

    def __neg__(self) -> SparseTensor:
        return self._with(-self._v)

    def __mul__(self, other: Any) -> Any:
        """By a number, or element by element by a dense tensor of the same size (the result is as sparse as this)."""
        if number(other) is not None or (isinstance(other, Tensor) and other.ndim == 0):
            return self._with(self._v * other)
        if isinstance(other, SparseTensor):
            other = other.to_dense()
        if not isinstance(other, Tensor):
            return NotImplemented
        if other.shape != self._size:
            raise RuntimeError(f"mul: the sizes {list(self._size)} and {list(other.shape)} of a sparse product must be equal")
        return self._with(self._v * _picked(other, self))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if number(other) is None and not (isinstance(other, Tensor) and other.ndim == 0):
            raise RuntimeError("Sparse division requires a number or a 0-d tensor as divisor: the others hold zeros")
        return self._with(self._v / other)

    def __add__(self, other: Any) -> Any:
        """With a sparse tensor of that size a sparse one, with a dense one a dense one."""
        if isinstance(other, Tensor):
            return self.to_dense() + other
        if not isinstance(other, SparseTensor):
            return NotImplemented
        if other._size != self._size or other.sparse_dim() != self.sparse_dim():
            raise RuntimeError(f"add: expected sparse tensors of one size, but got {list(self._size)} and {list(other._size)}")
        d = dtypes.promote_types(self.dtype, other.dtype)
        values = PUBLIC["cat"]([to_dtype(self._v, d), to_dtype(other._v, d)], 0)
        return SparseTensor(PUBLIC["cat"]([self._i, other._i], 1), values, self._size)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __matmul__(self, other: Any) -> Tensor:
        return mm(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return mm(self.t(), tensor_operand(other, "matmul").t()).t()

    def mm(self, mat2: Any) -> Tensor:
        return mm(self, mat2)

    matmul = spmm = mm

    def sum(self, dim: Any = None) -> Any:
        return sum(self, dim)


def _picked(x: Tensor, s: SparseTensor) -> Tensor:
    """The elements of a dense tensor at the coordinates of a sparse one."""
    n = s.sparse_dim()
    flat = PUBLIC["reshape"](x, (math.prod(tuple(x.shape)[:n]), *tuple(x.shape)[n:]))
    return INDEX_SELECT(flat, s._flat(), dim=0)


def sparse_coo_tensor(
    indices: Any, values: Any = None, size: Any = None, *, dtype: DType | None = None, device: Any = None,
    pin_memory: bool = False, requires_grad: bool = False, check_invariants: bool | None = None, is_coalesced: bool | None = None,
) -> SparseTensor:  # fmt: skip
    """A sparse tensor of coordinates [sparse_dim, nnz] and values [nnz, ...]; its size is the least that holds them, unless given.

    Raises RuntimeError where coordinates, values and size do not fit each other.
    """
    if values is None and size is None:  # sizes alone: all zeros
        size, indices = indices, np.zeros((len(tuple(indices)), 0), np.int64)
        values = PUBLIC["zeros"](0, dtype=dtype)
    i = to_dtype(PUBLIC["as_tensor"](indices), dtypes.int64)
    v = PUBLIC["as_tensor"](values, dtype=dtype)
    if i.ndim != 2:
        raise RuntimeError(f"indices must be sparse_dim x nnz, but got: {list(i.shape)}")
    if v.ndim == 0:
        v = PUBLIC["broadcast_to"](v, (i.shape[1],)).clone()
    if v.shape[0] != i.shape[1]:
        raise RuntimeError(
            f"indices and values must have same nnz, but got nnz from indices: {i.shape[1]}, from values: {v.shape[0]}"
        )
    a = i._read()
    if a.size and a.min() < 0:
        raise RuntimeError(f"found negative index {a.min()} for dim {int(np.argwhere(a < 0)[0][0])}")
    if size is None:
        if not a.shape[1]:
            raise RuntimeError("sparse_coo_tensor: a tensor without elements needs its size to be given")
        size = (*(int(n) + 1 for n in a.max(1)), *v.shape[1:])
    size = tuple(int(n) for n in size)
    if len(size) != i.shape[0] + v.ndim - 1:
        raise RuntimeError(
            f"number of dimensions must be sparse_dim ({i.shape[0]}) + dense_dim ({v.ndim - 1}), but got {len(size)}"
        )
    if size[i.shape[0] :] != tuple(v.shape)[1:]:
        raise RuntimeError(f"values of size {list(v.shape)} do not fit dense sizes {list(size[i.shape[0] :])}")
    for d, row in enumerate(a):
        if row.size and row.max() >= size[d]:
            raise RuntimeError(f"size is inconsistent with indices: for dim {d}, size is {size[d]} but found index {row.max()}")
    if requires_grad:
        v = v.detach().requires_grad_()
    return SparseTensor(i, v, size, bool(is_coalesced))


def to_sparse(self: Tensor, sparse_dim: int | None = None, *, layout: Any = None) -> SparseTensor:
    """The elements that are not zero, by coordinates of the first `sparse_dim` dimensions (all of them). Reads values."""
    if layout not in (None, SparseTensor.layout):
        raise RuntimeError(f"to_sparse: the layout {layout!r} is not there: flame has coordinates (sparse_coo) alone")
    n = self.ndim if sparse_dim is None else sparse_dim
    if not 0 <= n <= self.ndim or (n == 0 and self.ndim):
        raise RuntimeError(f"to_sparse: sparse_dim must be from 1 to {self.ndim}, got {sparse_dim}")
    a = self.detach()._read()
    here = a != 0
    if n < self.ndim:
        here = here.reshape(*a.shape[:n], -1).any(-1)
    at = np.stack(np.nonzero(here)) if n else np.zeros((0, int(bool(here))), np.int64)
    s = SparseTensor(wrap(np.ascontiguousarray(at, np.int64)), self, tuple(self.shape), True)
    if not n:
        return SparseTensor(s._i, PUBLIC["reshape"](self, (1,))[: at.shape[1]], (), True)
    flat = np.ravel_multi_index(tuple(at), a.shape[:n]) if at.shape[1] else np.zeros(0, np.int64)
    rows = PUBLIC["reshape"](self, (math.prod(a.shape[:n]), *a.shape[n:]))
    return SparseTensor(s._i, INDEX_SELECT(rows, wrap(flat.astype(np.int64)), dim=0), tuple(self.shape), True)


def mm(sparse: Any, dense: Any) -> Any:
    """A sparse matrix times a dense one (or a vector): rows of `dense`, weighted and added up. Gradients flow to both.

    Raises RuntimeError for shapes that do not fit, and for two sparse operands TypeError: make one of them dense.
    """
    if isinstance(sparse, Tensor) and isinstance(dense, Tensor):
        return PUBLIC["mm"](sparse, dense)
    if isinstance(sparse, Tensor):
        return sparse @ dense
    if isinstance(dense, SparseTensor):
        raise TypeError("sparse.mm(): argument 'mat2' must be dense: call to_dense() on one of the operands")
    d = tensor_operand(dense, "sparse.mm", "mat2")
    if sparse.ndim != 2 or sparse.sparse_dim() != 2:
        raise RuntimeError(f"sparse.mm: expected a sparse matrix, but got sizes {list(sparse.shape)}")
    if d.ndim not in (1, 2) or d.shape[0] != sparse.shape[1]:
        raise RuntimeError(f"mm: Argument #2: expected to have {sparse.shape[1]} rows, but got {list(d.shape)}")
    if d.dtype is not sparse.dtype:
        raise RuntimeError(f"expected mat1 and mat2 to have the same dtype, but got: {sparse.dtype!r} != {d.dtype!r}")
    rows, columns = PUBLIC["unbind"](sparse._i, 0)
    weights = sparse._v if d.ndim == 1 else PUBLIC["unsqueeze"](sparse._v, -1)
    parts = INDEX_SELECT(d, columns, dim=0) * weights
    zero = FULL(0, shape=(sparse.shape[0], *tuple(d.shape)[1:]), dtype=d.dtype)
    return INDEX_ADD(zero, rows, parts, dim=0)


def addmm(mat: Tensor, mat1: Any, mat2: Any, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """beta * mat + alpha * (mat1 @ mat2), mat1 sparse."""
    return mat * beta + mm(mat1, mat2) * alpha


def sampled_addmm(input: Any, mat1: Tensor, mat2: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> SparseTensor:
    """alpha * (mat1 @ mat2) where the sparse matrix `input` [m, n] has elements, + beta * input: sparse, with its coordinates.

    mat1 is [m, k], mat2 [k, n]; only the products that are asked for are computed. Gradients flow to all three. Raises
    NotImplementedError unless `input` is sparse, RuntimeError for shapes or dtypes that do not fit. (PyTorch takes CSR tensors
    here; flame, COO.)
    """
    if isinstance(input, Tensor):
        raise NotImplementedError("sparse.sampled_addmm(): argument 'input' must be a sparse tensor: call to_sparse() on it")
    if not isinstance(input, SparseTensor):
        raise TypeError(f"sparse.sampled_addmm(): argument 'input' must be a sparse tensor, not {type(input).__name__}")
    a, b = tensor_operand(mat1, "sparse.sampled_addmm", "mat1"), tensor_operand(mat2, "sparse.sampled_addmm", "mat2")
    s = input.coalesce()
    if s.ndim != 2 or s.sparse_dim() != 2 or a.ndim != 2 or b.ndim != 2:
        raise RuntimeError(
            f"sampled_addmm: expected matrices, but got sizes {list(s.shape)}, {list(a.shape)} and {list(b.shape)}"
        )
    if a.dtype is not b.dtype or a.dtype is not s.dtype:
        raise RuntimeError(
            f"sampled_addmm: Expected input, mat1 and mat2 to have the same dtype, but got {s.dtype!r}, {a.dtype!r} and {b.dtype!r}"
        )
    if a.shape[1] != b.shape[0]:
        raise RuntimeError(
            f"sampled_addmm: mat1 and mat2 shapes cannot be multiplied ({a.shape[0]}x{a.shape[1]} and {b.shape[0]}x{b.shape[1]})"
        )
    if (a.shape[0], b.shape[1]) != tuple(s.shape):
        raise RuntimeError(f"sampled_addmm: the product is {[a.shape[0], b.shape[1]]}, but input has sizes {list(s.shape)}")
    rows, columns = PUBLIC["unbind"](s._i, 0)
    products = PUBLIC["sum"](INDEX_SELECT(a, rows, dim=0) * PUBLIC["t"](INDEX_SELECT(b, columns, dim=1)), 1)
    return s._with(products * alpha + s._v * beta)


def sum(input: SparseTensor, dim: Any = None, dtype: DType | None = None) -> Any:
    """The sum of all elements, a 0-d tensor; over dimensions, what is left of them: sparse while a sparse dimension is left."""
    s = input if dtype is None else input.to(dtype)
    if dim is None:
        return PUBLIC["sum"](s._v)
    dims = {d % s.ndim for d in (dim if isinstance(dim, Sequence) else (dim,))}
    n = s.sparse_dim()
    v = s._v
    inner = [d - n + 1 for d in dims if d >= n]
    v = PUBLIC["sum"](v, inner) if inner else v
    keep = [d for d in range(n) if d not in dims]
    size = [s.shape[d] for d in range(s.ndim) if d not in dims]
    if not keep:
        return PUBLIC["sum"](v, 0)
    return SparseTensor(INDEX_SELECT(s._i, PUBLIC["tensor"](keep), dim=0), v, size, len(keep) == n and s._coalesced)


def _by_slices(input: SparseTensor, dim: int, dtype: DType | None, name: str) -> tuple[SparseTensor, int | None, Any]:
    """What softmax is of: coalesced and floating; None and the dimension of the values to go along; or the number of slices along
    a sparse dimension and, for each element, which it is in."""
    if not isinstance(input, SparseTensor):
        raise TypeError(f"{name}(): argument 'input' must be a sparse tensor, not {type(input).__name__}")
    s = (input if dtype is None else input.to(dtype)).coalesce()
    if s.dtype.kind != "f":
        raise NotImplementedError(f'"{name}" not implemented for {s.dtype!r}: it takes floats')
    if not -s.ndim <= dim < s.ndim:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-s.ndim}, {s.ndim - 1}], but got {dim})")
    dim, n = dim % s.ndim, s.sparse_dim()
    if dim >= n:
        return s, None, dim - n + 1
    at, count = FULL(0, shape=(s._nnz(),), dtype=dtypes.int64), 1
    for d in range(n):
        if d != dim:
            at, count = at * s.shape[d] + PUBLIC["select"](s._i, 0, d), count * s.shape[d]
    return s, count, at


def _spread(at: Tensor, like: Tensor) -> Tensor:
    """A number an element as indices of whole values."""
    return PUBLIC["broadcast_to"](PUBLIC["reshape"](at, (-1, *[1] * (like.ndim - 1))), tuple(like.shape))


def log_softmax(input: SparseTensor, dim: int, *, dtype: DType | None = None) -> SparseTensor:
    """The logarithm of `softmax`, at the same coordinates."""
    s, count, at = _by_slices(input, dim, dtype, "log_softmax")
    if count is None:
        return s._with(PUBLIC["log_softmax"](s._v, at))
    most = FULL(0, shape=(count, *tuple(s._v.shape)[1:]), dtype=s.dtype)
    most = PUBLIC["scatter_reduce"](most, 0, _spread(at, s._v), s._v.detach(), "amax", include_self=False)
    x = s._v - INDEX_SELECT(most, at, dim=0)
    total = INDEX_ADD(PUBLIC["zeros_like"](most), at, PUBLIC["exp"](x), dim=0)
    return s._with(x - PUBLIC["log"](INDEX_SELECT(total, at, dim=0)))


def softmax(input: SparseTensor, dim: int, *, dtype: DType | None = None) -> SparseTensor:
    """Along `dim`, exp of the elements that are there divided by their sum: what is not there counts as -inf. Gradients flow.

    Raises TypeError for dense input, IndexError for a dimension that is not there, NotImplementedError for whole numbers.
    """
    return (y := log_softmax(input, dim, dtype=dtype))._with(PUBLIC["exp"](y._v))


def spdiags(diagonals: Tensor, offsets: Tensor, shape: Sequence[int], layout: Any = None) -> SparseTensor:
    """The matrix of `shape` whose diagonal offsets[i] (0 the main one, above it positive) is row i of `diagonals`, element j of
    which stands in column j. A vector and a number are one diagonal. Gradients flow to the diagonals.

    Raises RuntimeError unless offsets differ, are as many as diagonals, and shape is that of a matrix, and for a layout other than
    sparse_coo.
    """
    if layout not in (None, sparse_coo):
        raise RuntimeError(f"spdiags: the layout {layout!r} is not there: flame has coordinates (sparse_coo) alone")
    x, k = tensor_operand(diagonals, "spdiags", "diagonals"), tensor_operand(offsets, "spdiags", "offsets")
    x = PUBLIC["unsqueeze"](x, 0) if x.ndim == 1 else x
    at = np.atleast_1d(k._read())
    if len(tuple(shape)) != 2:
        raise RuntimeError(f"Output shape must be 2d, but got {tuple(shape)}")
    if x.ndim != 2 or at.ndim != 1:
        raise RuntimeError(
            f"Diagonals must be vector or matrix and offsets a vector, but got {x.ndim} and {at.ndim} dimensions"
        )
    if at.dtype.kind not in "iu" or len(at) != x.shape[0]:
        raise RuntimeError(f"Offset tensor must hold whole numbers, one a diagonal ({x.shape[0]}), but got {list(at)}")
    if len(set(at.tolist())) != len(at):
        raise RuntimeError(f"Offset tensor contains duplicate values: {list(at)}")
    rows, columns = int(shape[0]), int(shape[1])
    which, column = np.meshgrid(np.arange(len(at)), np.arange(min(x.shape[1], columns)), indexing="ij")
    row = column - at[:, None]
    there = (row >= 0) & (row < rows)
    flat = which[there] * x.shape[1] + column[there]
    places = np.stack([row[there], column[there]]).astype(np.int64)
    values = INDEX_SELECT(PUBLIC["reshape"](x, (-1,)), wrap(flat.astype(np.int64)), dim=0)
    return SparseTensor(wrap(np.ascontiguousarray(places)), values, (rows, columns))


def sparse_mask(self: Tensor, mask: SparseTensor) -> SparseTensor:
    """The elements at the coordinates of a sparse tensor of the same size, zeros too. Gradients flow to them. Raises TypeError
    unless `mask` is sparse, RuntimeError for another size."""
    if not isinstance(mask, SparseTensor):
        raise TypeError(f"sparse_mask(): argument 'mask' must be a sparse tensor, not {type(mask).__name__}")
    if self.shape != mask.shape:
        raise RuntimeError(
            f"sparse_mask(): operands have incompatible sizes; self has {list(self.shape)}, mask {list(mask.shape)}"
        )
    return mask._with(_picked(self, mask))


def _dense_only(name: str) -> Any:
    def method(self: Tensor) -> Tensor:
        raise RuntimeError(f"{name} expected sparse coordinate tensor layout but got Strided: call to_sparse() first")

    method.__name__ = method.__qualname__ = name
    return method


Tensor.to_sparse = to_sparse  # type: ignore[attr-defined]
Tensor.to_sparse_coo = lambda self: to_sparse(self)  # type: ignore[attr-defined]
Tensor.sparse_mask = sparse_mask  # type: ignore[attr-defined]
Tensor.to_dense = lambda self, dtype=None: self if dtype is None else to_dtype(self, dtype)  # type: ignore[attr-defined]
for _n in ("coalesce", "is_coalesced", "indices", "values", "sparse_dim", "dense_dim"):
    setattr(Tensor, _n, _dense_only(_n))
NAMES = {"sparse_coo_tensor": sparse_coo_tensor, "spmm": mm}
