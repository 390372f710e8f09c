"""Solving linear systems, inverses, determinants, Cholesky and LU factors."""

from __future__ import annotations

from typing import NamedTuple

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed, with_out
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.shape import EXPAND, RESHAPE, take_slice, unsqueeze
from flame.linalg.arguments import batched, matrices, same_dtype
from flame.primitive import registered
from flame.tensor import Tensor

INVERSE, SOLVE, TRIANGULAR, CHOLESKY, SLOGDET, DET = map(
    registered, ("inverse", "solve", "solve_triangular", "cholesky", "slogdet", "det")
)
LU_PIVOTS, LU_PACKED, PIVOT_ORDER, GATHER, ARGSORT = map(
    registered, ("lu_pivots", "lu_packed", "pivot_order", "gather", "argsort")
)
CAT = registered("cat")


def adjoint(x: Tensor) -> Tensor:
    return x.mH  # type: ignore[attr-defined]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return PUBLIC["matmul"](a, b)


class InvEx(NamedTuple):
    """What inv_ex gives."""

    inverse: Tensor
    info: Tensor


class SolveEx(NamedTuple):
    """What solve_ex gives."""

    result: Tensor
    info: Tensor


class CholeskyEx(NamedTuple):
    """What cholesky_ex gives."""

    L: Tensor
    info: Tensor


class Slogdet(NamedTuple):
    """What linalg.slogdet gives."""

    sign: Tensor
    logabsdet: Tensor


class LUFactor(NamedTuple):
    """What lu_factor gives."""

    LU: Tensor
    pivots: Tensor


class LUFactorEx(NamedTuple):
    """What lu_factor_ex gives."""

    LU: Tensor
    pivots: Tensor
    info: Tensor


class LU(NamedTuple):
    """What linalg.lu gives: P L U = A."""

    P: Tensor
    L: Tensor
    U: Tensor


# -------------------------------------------------------------------- inverses and solves


@with_out
def inv(A: Tensor) -> Tensor:
    """The inverse of square matrices. Raises LinAlgError for a singular one."""
    return INVERSE(matrices(A, "linalg.inv", square=True), check=True)[0]


@with_out
def inv_ex(A: Tensor, *, check_errors: bool = False) -> InvEx:
    """The inverse, and 0 (or a positive number, where the matrix is singular) for each matrix."""
    return InvEx(*INVERSE(matrices(A, "linalg.inv_ex", square=True), check=bool(check_errors)))


def _right_side(A: Tensor, B: Tensor, op: str) -> tuple[Tensor, bool]:
    """B as matrices, and whether it held vectors: a 1-d B, or one with the batch shape of A and a dimension more."""
    vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and tuple(B.shape) == tuple(A.shape[:-1]))
    if B.ndim == 0 or (not vector and B.shape[-2] != A.shape[-1]) or (vector and B.shape[-1] != A.shape[-1]):
        raise RuntimeError(
            f"{op}: Incompatible shapes of A and B for the equation AX = B ({A.shape[-2]}x{A.shape[-1]} and {list(B.shape)})"
        )
    return (unsqueeze(B, -1) if vector else B), vector


def _solved(A: Tensor, B: Tensor, left: bool, check: bool, op: str) -> tuple[Tensor, Tensor]:
    a, b = matrices(A, op, square=True), tensor_operand(B, op, "B")
    same_dtype(a, b, op)
    if left:
        b, vector = _right_side(a, b, op)
        x, info = SOLVE(*batched(a, b, op), check=check)
        return (RESHAPE(x, shape=tuple(x.shape)[:-1]) if vector else x), info
    if b.ndim == 1 or (b.ndim == a.ndim - 1 and tuple(b.shape) == tuple(a.shape[:-1])):
        raise RuntimeError(
            f"{op}: Vector broadcasting of the left hand side is not supported for left=False. In this case "
            "linalg.solve is equivalent to B / A.squeeze(-1)"
        )
    if b.shape[-1] != a.shape[-1]:
        raise RuntimeError(f"{op}: Incompatible shapes of A and B for the equation XA = B")
    x, info = SOLVE(*batched(_transposed(a), _transposed(b), op), check=check)
    return _transposed(x), info


def _transposed(x: Tensor) -> Tensor:
    return PUBLIC["transpose"](x, -2, -1)


@with_out
def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """The X with A X = B (X A = B with left=False); B [.., n, k], or vectors. Raises LinAlgError for a singular A."""
    return _solved(A, B, left, True, "linalg.solve")[0]


@with_out
def solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> SolveEx:
    """solve that does not raise for singular matrices, and says in `info` which they are."""
    return SolveEx(*_solved(A, B, left, bool(check_errors), "linalg.solve_ex"))


@with_out
def solve_triangular(A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """The X with A X = B for triangular A (X A = B with left=False); only that triangle of A is read."""
    op = "linalg.solve_triangular"
    a, b = matrices(A, op, square=True), matrices(B, op, "B")
    same_dtype(a, b, op)
    if a.shape[-1] != b.shape[-2 if left else -1]:
        raise RuntimeError(
            f"{op}: Incompatible shapes of A and B for the equation {'AX' if left else 'XA'} = B "
            f"({list(a.shape)} and {list(b.shape)})"
        )
    if left:
        return TRIANGULAR(*batched(a, b, op), upper=bool(upper), unitriangular=bool(unitriangular))
    x = TRIANGULAR(*batched(_transposed(a), _transposed(b), op), upper=not upper, unitriangular=bool(unitriangular))
    return _transposed(x)


class TriangularSolve(NamedTuple):
    """What triangular_solve gives."""

    solution: Tensor
    cloned_coefficient: Tensor


@formed()
def triangular_solve(
    input: Tensor, A: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> TriangularSolve:
    """The older form of linalg.solve_triangular: the X with A X = input (A^T X = input if `transpose`)."""
    b, a = matrices(input, "triangular_solve", "b"), matrices(A, "triangular_solve", square=True)
    same_dtype(a, b, "triangular_solve")
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError(f"triangular_solve: Incompatible matrix sizes: A is {list(a.shape)} and b is {list(b.shape)}")
    a, b = batched(a, b, "triangular_solve")
    m, up = (_transposed(a), not upper) if transpose else (a, upper)
    return TriangularSolve(TRIANGULAR(m, b, upper=bool(up), unitriangular=bool(unitriangular)), registered("copy")(a))


# -------------------------------------------------------------------- determinants


@with_out
def det(A: Tensor) -> Tensor:
    """Determinants of square matrices."""
    return DET(matrices(A, "linalg.det", square=True))


@with_out
def slogdet(A: Tensor) -> Slogdet:
    """The sign of the determinant and the logarithm of its absolute value."""
    return Slogdet(*SLOGDET(matrices(A, "linalg.slogdet", square=True)))


@formed()
def logdet(input: Tensor) -> Tensor:
    """The logarithm of the determinant: NaN where that is negative, -inf where it is 0."""
    sign, log = slogdet(input)
    if sign.is_complex():
        return log + PUBLIC["log"](sign)
    return registered("where")(sign == -1, float("nan"), log)


# -------------------------------------------------------------------- Cholesky


def _lower(A: Tensor, check: bool, op: str) -> tuple[Tensor, Tensor]:
    left, info = CHOLESKY(matrices(A, op, square=True), check=check)
    return PUBLIC["tril"](left), info


@with_out
def cholesky_ex(A: Tensor, *, upper: bool = False, check_errors: bool = False) -> CholeskyEx:
    """The Cholesky factor, and 0 or the order of the first leading minor that is not positive definite."""
    a = matrices(A, "linalg.cholesky", square=True)
    left, info = _lower(adjoint(a) if upper else a, bool(check_errors), "linalg.cholesky")
    return CholeskyEx(adjoint(left) if upper else left, info)


@with_out
def cholesky(A: Tensor, *, upper: bool = False) -> Tensor:
    """The lower triangular L with L L^H = A (or upper, U^H U = A). Raises LinAlgError if A is not positive definite."""
    return cholesky_ex(A, upper=upper, check_errors=True).L


@formed("cholesky")
def legacy_cholesky(input: Tensor, upper: bool = False) -> Tensor:
    """The Cholesky factor of positive definite matrices."""
    return cholesky(input, upper=upper)


@formed()
def cholesky_solve(input: Tensor, L: Tensor, upper: bool = False) -> Tensor:
    """The X with A X = input, given A's Cholesky factor."""
    b, f = matrices(input, "cholesky_solve", "b"), matrices(L, "cholesky_solve", square=True)
    same_dtype(f, b, "cholesky_solve")
    if f.shape[-1] != b.shape[-2]:
        raise RuntimeError(
            f"Incompatible matrix sizes for cholesky_solve: each A matrix is "
            f"{f.shape[-1]} by {f.shape[-1]} but each "
            f"b matrix is {b.shape[-2]} by {b.shape[-1]}"
        )
    f, b = batched(f, b, "cholesky_solve")
    low = adjoint(f) if upper else f
    y = TRIANGULAR(low, b, upper=False, unitriangular=False)
    return TRIANGULAR(adjoint(low), y, upper=True, unitriangular=False)


@formed()
def cholesky_inverse(L: Tensor, upper: bool = False) -> Tensor:
    """The inverse of a matrix, given its Cholesky factor."""
    f = matrices(L, "cholesky_inverse", square=True)
    eye = EXPAND(PUBLIC["eye"](f.shape[-1], dtype=f.dtype), shape=tuple(f.shape))
    return cholesky_solve(eye, f, upper)


# -------------------------------------------------------------------- LU


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """The rows of matrices in another order."""
    return GATHER(x, EXPAND(unsqueeze(order, -1), shape=tuple(x.shape)), dim=x.ndim - 2)


def _factored(A: Tensor, op: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L and U in one matrix, pivots, the order of the rows, info. The square part is factored without exchanging rows, after
    they were exchanged; what is beside or below it follows by triangular solves, which makes all of it differentiable."""
    a = matrices(A, op)
    m, n = a.shape[-2:]
    k = min(m, n)
    pivots, order, info = LU_PIVOTS(a.detach())  # type: ignore[attr-defined]
    a = _rows(a, order)
    d = a.ndim
    square = take_slice(take_slice(a, d - 2, 0, k), d - 1, 0, k)
    packed = LU_PACKED(square)
    if n > k:
        right = TRIANGULAR(packed, take_slice(a, d - 1, k, n), upper=False, unitriangular=True)
        packed = CAT(packed, right, dim=d - 1)
    if m > k:
        low = TRIANGULAR(_transposed(packed), _transposed(take_slice(a, d - 2, k, m)), upper=False, unitriangular=False)
        packed = CAT(packed, _transposed(low), dim=d - 2)
    return packed, pivots, order, info


def _no_pivot(pivot: bool, op: str) -> None:
    if not pivot:
        raise RuntimeError(f"{op}: LU without pivoting is not implemented on the CPU: leave pivot=True")


@with_out
def lu_factor(A: Tensor, *, pivot: bool = True) -> LUFactor:
    """L and U packed in one matrix, and the rows exchanged (from 1); for lu_solve."""
    _no_pivot(pivot, "linalg.lu_factor")
    packed, pivots, _, _ = _factored(A, "linalg.lu_factor")
    return LUFactor(packed, pivots)


@with_out
def lu_factor_ex(A: Tensor, *, pivot: bool = True, check_errors: bool = False) -> LUFactorEx:
    """lu_factor, with the place of the first zero pivot (0: there is none)."""
    _no_pivot(pivot, "linalg.lu_factor_ex")
    packed, pivots, _, info = _factored(A, "linalg.lu_factor_ex")
    return LUFactorEx(packed, pivots, info)


def _unpacked(packed: Tensor) -> tuple[Tensor, Tensor]:
    m, n = packed.shape[-2:]
    k, d = min(m, n), packed.ndim
    low = PUBLIC["tril"](take_slice(packed, d - 1, 0, k), -1)
    one = PUBLIC["eye"](m, k, dtype=packed.dtype)
    return low + one, PUBLIC["triu"](take_slice(packed, d - 2, 0, k))


def _permutation(order: Tensor, d: dtypes.dtype) -> Tensor:
    """P with P L U = A: column i has its 1 in the row that row i came from."""
    n = order.shape[-1]
    return to_dtype(unsqueeze(PUBLIC["arange"](n), -1) == unsqueeze(order, -2), d)


@with_out
def lu(A: Tensor, *, pivot: bool = True) -> LU:
    """Permutation, lower and upper triangular factors: P L U = A."""
    _no_pivot(pivot, "linalg.lu")
    packed, _, order, _ = _factored(A, "linalg.lu")
    return LU(_permutation(order, packed.dtype), *_unpacked(packed))


class LUUnpack(NamedTuple):
    """What lu_unpack gives."""

    P: Tensor
    L: Tensor
    U: Tensor


@formed(method=False)
def lu_unpack(LU_data: Tensor, LU_pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True) -> LUUnpack:
    """P, L and U of what lu_factor gives."""
    packed = matrices(LU_data, "lu_unpack")
    if LU_pivots.dtype is not dtypes.int32:
        raise RuntimeError(
            "lu_unpack: LU_pivots is expected to be a contiguous tensor of int32 dtype. Note: this function is "
            "intended to be used with the output produced by linalg.lu_factor"
        )
    empty = PUBLIC["zeros"](0, dtype=packed.dtype)
    P = _permutation(PIVOT_ORDER(LU_pivots, rows=packed.shape[-2]), packed.dtype) if unpack_pivots else empty
    low, up = _unpacked(packed) if unpack_data else (empty, empty)
    return LUUnpack(P, low, up)


@formed("lu", method=True)
def legacy_lu(A: Tensor, pivot: bool = True, get_infos: bool = False) -> tuple:
    """The older form of linalg.lu_factor."""
    packed, pivots, info = lu_factor_ex(A, pivot=pivot)
    return LUFactorEx(packed, pivots, info) if get_infos else (packed, pivots)


@with_out
def lu_solve(LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    """The X with A X = B (X A = B with left=False; A^H for A if `adjoint`), given A's lu_factor."""
    op = "linalg.lu_solve"
    f, b = matrices(LU, op, "LU", square=True), matrices(B, op, "B")
    same_dtype(f, b, op)
    if pivots.dtype is not dtypes.int32:
        raise RuntimeError(f"{op}: pivots should be a Tensor of scalar type torch.int32".replace("torch", "flame"))
    if tuple(pivots.shape) != tuple(f.shape[:-1]):
        raise RuntimeError(f"{op}: Number of pivots per batch should be same as the dimension of the matrix")
    if f.shape[-1] != b.shape[-2 if left else -1]:
        raise RuntimeError(
            f"{op}: Incompatible shapes of A and B for the equation {'AX' if left else 'XA'} = B "
            f"({list(f.shape)} and {list(b.shape)})"
        )
    if not left:  # X A = B is A^H X^H = B^H
        return lu_solve(LU, pivots, b.mH, adjoint=not adjoint).mH  # type: ignore[attr-defined]
    order = PIVOT_ORDER(pivots, rows=f.shape[-1])
    f, b = batched(f, b, op)
    order = EXPAND(order, shape=tuple(f.shape)[:-1])
    if adjoint:
        y = TRIANGULAR(f.mH, b, upper=False, unitriangular=False)  # type: ignore[attr-defined]
        y = TRIANGULAR(f.mH, y, upper=True, unitriangular=True)  # type: ignore[attr-defined]
        return _rows(y, ARGSORT(order, dim=order.ndim - 1, descending=False))
    y = TRIANGULAR(f, _rows(b, order), upper=False, unitriangular=True)
    return TRIANGULAR(f, y, upper=True, unitriangular=False)


@formed("lu_solve")
def legacy_lu_solve(b: Tensor, LU_data: Tensor, LU_pivots: Tensor) -> Tensor:
    """The X with A X = b, given A's factors."""
    return lu_solve(LU_data, LU_pivots, b)


for _names, _f in ((("inverse",), inv), (("det",), det), (("slogdet",), slogdet)):
    formed(*_names)(_f)
