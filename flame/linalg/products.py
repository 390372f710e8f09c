"""Products of vectors and matrices, powers, exponentials, and tensors solved as matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flame.dtypes import float32
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed, with_out
from flame.functions.promotion import promoted, tensor_operand
from flame.functions.shape import EXPAND, RESHAPE, wrap_dim
from flame.functions.taking import typed, typed_as
from flame.linalg.arguments import floating_tensor, matrices, same_dtype
from flame.linalg.solving import inv, solve
from flame.primitive import broadcast_shapes, registered
from flame.tensor import Tensor

MATRIX_EXP = registered("matrix_exp")


def matmul(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The matrix product; flame.matmul."""
    return PUBLIC["matmul"](input, other, out=out)


@with_out
def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """The dot products along `dim`, other dimensions broadcasting; x is conjugated."""
    a, b = tensor_operand(x, "linalg.vecdot", "x"), tensor_operand(y, "linalg.vecdot", "y")
    if a.dtype is not b.dtype:
        raise RuntimeError(f"linalg.vecdot: Expected x and y to have the same dtype, but found {a.dtype!r} and {b.dtype!r}")
    a = a.conj() if a.is_complex() else a  # type: ignore[attr-defined]
    if a.dtype.kind == "b":
        return PUBLIC["any"](a & b, dim)
    y = PUBLIC["sum"](a * b, dim)
    return y if y.dtype is b.dtype else registered("cast")(y, dtype=b.dtype)


def _crossed(a: Tensor, b: Tensor, d: int) -> Tensor:
    part = lambda x, k: PUBLIC["narrow"](x, d, k, 1)
    turn = lambda x: PUBLIC["cat"]([part(x, 1), part(x, 2), part(x, 0)], d)
    return turn(a * turn(b) - turn(a) * b)


@with_out
@typed
def cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    """The cross product of vectors of three elements along `dim`, other dimensions broadcasting."""
    a, b = tensor_operand(input, "linalg.cross"), tensor_operand(other, "linalg.cross", "other")
    if a.ndim != b.ndim:
        raise RuntimeError("linalg.cross: inputs must have the same number of dimensions.")
    d = wrap_dim(dim, a.ndim, "linalg.cross")
    if a.ndim == 0 or a.shape[d] != 3 or b.shape[d] != 3:
        raise RuntimeError(
            f"linalg.cross: inputs dimension {dim} must have length 3. Got "
            f"{a.shape[d] if a.ndim else 0} and {b.shape[d] if b.ndim else 0}"
        )
    shape = broadcast_shapes(tuple(a.shape), tuple(b.shape), op="linalg.cross")
    a, b = promoted(a, b)
    return _crossed(EXPAND(a, shape=shape), EXPAND(b, shape=shape), d)


@formed("cross")
def legacy_cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """The cross product; without `dim` along the first dimension of size 3."""
    a = tensor_operand(input, "cross")
    if dim is None:
        dim = next((i for i, n in enumerate(a.shape) if n == 3), None)
        if dim is None:
            raise RuntimeError("no dimension of size 3 in input")
    return cross(a, other, dim=dim)


@with_out
def diagonal(A: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """The diagonal of matrices: a view."""
    return PUBLIC["diagonal"](A, offset, dim1, dim2)


@with_out
def matrix_power(A: Tensor, n: int) -> Tensor:
    """A to the n-th power, n an integer; a negative one inverts first."""
    if not isinstance(n, int):
        raise TypeError(f"linalg_matrix_power(): argument 'n' must be int, not {type(n).__name__}")
    a = floating_tensor(A, "linalg.matrix_power") if n < 0 else tensor_operand(A, "linalg.matrix_power", "A")
    if a.ndim < 2:
        raise RuntimeError("linalg.matrix_power: The input tensor A must have at least 2 dimensions.")
    if a.shape[-1] != a.shape[-2]:
        raise RuntimeError(
            f"linalg.matrix_power: A must be batches of square matrices, but they are {a.shape[-2]} by {a.shape[-1]} matrices"
        )
    if n == 0:
        return registered("copy")(EXPAND(PUBLIC["eye"](a.shape[-1], dtype=a.dtype), shape=tuple(a.shape)))
    if n < 0:
        a, n = inv(a), -n
    result: Tensor | None = None
    while n:
        if n & 1:
            result = a if result is None else matmul(result, a)
        n >>= 1
        a = matmul(a, a) if n else a
    assert result is not None
    return registered("copy")(result) if result is A else result


@with_out
def matrix_exp(A: Tensor) -> Tensor:
    """The matrix exponential of square matrices."""
    a = tensor_operand(A, "linalg.matrix_exp", "A")
    if a.dtype.is_narrow_float:
        return registered("cast")(matrix_exp(registered("cast")(a, dtype=float32)), dtype=a.dtype)
    return MATRIX_EXP(matrices(a, "linalg.matrix_exp", square=True))


formed("matrix_exp")(matrix_exp)
formed("matrix_power")(matrix_power)


@with_out
def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """The product of a chain of matrices in the order that takes the fewest multiplications (T. Cormen et al., Introduction to
    Algorithms, 15.2); the first and the last may be vectors."""
    ts = list(tensors)
    if len(ts) < 2:
        raise RuntimeError("multi_dot(): expected at least 2 tensors but got " + str(len(ts)))
    for i, t in enumerate(ts):
        least = 1 if i in (0, len(ts) - 1) else 2
        if not least <= t.ndim <= 2:
            raise RuntimeError(f"multi_dot(): tensor {i} must be {'1D or ' if least == 1 else ''}2D but got {t.ndim}D")
        if t.dtype is not ts[0].dtype:
            raise RuntimeError(
                f"multi_dot(): all tensors must have be the same dtype but tensor 0 is "
                f"{ts[0].dtype!r} and tensor {i} "
                f"{t.dtype!r}"
            )
    row, col = ts[0].ndim == 1, ts[-1].ndim == 1
    ts[0] = RESHAPE(ts[0], shape=(1, ts[0].numel())) if row else ts[0]
    ts[-1] = RESHAPE(ts[-1], shape=(ts[-1].numel(), 1)) if col else ts[-1]
    sizes = [t.shape[0] for t in ts] + [ts[-1].shape[1]]
    for i, t in enumerate(ts):
        if t.shape[1] != sizes[i + 1]:
            raise RuntimeError(
                f"multi_dot(): tensors {i} and {i + 1} with shapes {list(t.shape)} and {list(ts[i + 1].shape)} cannot be multiplied"
            )
    n = len(ts)
    cost = [[0] * n for _ in range(n)]
    cut = [[0] * n for _ in range(n)]
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            options = [(cost[i][k] + cost[k + 1][j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j)]
            cost[i][j], cut[i][j] = min(options)

    def product(i: int, j: int) -> Tensor:
        return ts[i] if i == j else matmul(product(i, cut[i][j]), product(cut[i][j] + 1, j))

    y = product(0, n - 1)
    return RESHAPE(y, shape=tuple(y.shape)[1 if row else 0 : 1 if col else 2])


PUBLIC["chain_matmul"] = lambda *matrices: multi_dot(matrices) if len(matrices) > 1 else matrices[0]


@with_out
def tensorinv(A: Tensor, ind: int = 2) -> Tensor:
    """The inverse of a tensor as a matrix whose rows are its first `ind` dimensions."""
    x = tensor_operand(A, "linalg.tensorinv", "A")
    if ind <= 0:
        raise RuntimeError("Expected a strictly positive integer for 'ind'")
    left, right = tuple(x.shape[:ind]), tuple(x.shape[ind:])
    if math.prod(left) != math.prod(right):
        raise RuntimeError(
            "Expected self to satisfy the requirement prod(self.shape[ind:]) == prod(self.shape[:ind]), but got "
            f"{math.prod(right)} != {math.prod(left)}"
        )
    return RESHAPE(inv(RESHAPE(x, shape=(math.prod(left), math.prod(right)))), shape=right + left)


@with_out
def tensorsolve(A: Tensor, B: Tensor, dims: Any = None) -> Tensor:
    """The X with tensordot(A, X, X.ndim) == B; `dims` of A are moved to its end first."""
    a, b = tensor_operand(A, "linalg.tensorsolve", "A"), tensor_operand(B, "linalg.tensorsolve", "B")
    if dims is not None:
        moved = [wrap_dim(d, a.ndim, "linalg.tensorsolve") for d in dims]
        a = PUBLIC["movedim"](a, moved, list(range(a.ndim - len(moved), a.ndim)))
    shape = tuple(a.shape)[b.ndim :]
    n = math.prod(shape)
    if n != b.numel() or a.numel() != n * n:
        raise RuntimeError(
            "Expected self to satisfy the requirement prod(self.shape[other.ndim:]) == prod(self.shape[:other.ndim]), but got "
            f"{n} != {math.prod(tuple(a.shape)[: b.ndim])}"
        )
    same_dtype(a, b, "linalg.tensorsolve")
    return RESHAPE(solve(RESHAPE(a, shape=(n, n)), RESHAPE(b, shape=(n,))), shape=shape)


@with_out
@typed_as("linalg_vander")
def vander(x: Tensor, *, N: int | None = None) -> Tensor:
    """Vandermonde matrices: the powers 0 to N - 1 of the last dimension, as a new one."""
    t = tensor_operand(x, "linalg.vander", "x")
    if t.ndim == 0 and N is None:
        raise RuntimeError("linalg.vander: x must have at least one dimension, unless N is given")
    n = t.shape[-1] if N is None else N
    if n <= 1:
        raise RuntimeError("N must be greater than 1.")
    t = t if t.dtype.kind != "b" else registered("cast")(t, dtype=PUBLIC["arange"](0).dtype)
    s = tuple(t.shape)
    wide = EXPAND(RESHAPE(t, shape=(*s, 1)), shape=(*s, n - 1))
    powers = PUBLIC["cumprod"](wide, -1)
    y = PUBLIC["cat"]([PUBLIC["ones"]((*s, 1), dtype=powers.dtype), powers], -1)
    return RESHAPE(y, shape=(1, n)) if not s else y


@formed("vander", method=False)
def legacy_vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    """The Vandermonde matrix of a vector, powers falling unless `increasing`."""
    if x.ndim != 1:
        raise RuntimeError("x must be a one-dimensional tensor.")
    n = x.shape[0] if N is None else N
    if n <= 1:
        ones = PUBLIC["ones"]((x.shape[0], max(n, 0)), dtype=x.dtype)
        return ones
    y = vander(x, N=n)
    return y if increasing else PUBLIC["flip"](y, (-1,))
