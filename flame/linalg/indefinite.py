"""Factors of symmetric and Hermitian matrices that need not be definite, and solving with them."""

from __future__ import annotations

from typing import NamedTuple

from flame import dtypes
from flame.functions.forms import with_out
from flame.functions.shape import EXPAND
from flame.linalg.arguments import batched, matrices, same_dtype
from flame.primitive import registered
from flame.tensor import Tensor

FACTOR, SOLVE = registered("ldl_factor"), registered("ldl_solve")


class LDLFactor(NamedTuple):
    """What ldl_factor gives."""

    LD: Tensor
    pivots: Tensor


class LDLFactorEx(NamedTuple):
    """What ldl_factor_ex gives."""

    LD: Tensor
    pivots: Tensor
    info: Tensor


@with_out
def ldl_factor_ex(A: Tensor, *, hermitian: bool = False, check_errors: bool = False) -> LDLFactorEx:
    """L and D with A = L D L^T (L D L^H if `hermitian`) in one matrix [*, n, n], pivots [*, n] (int32) and the place of the first
    zero of D (int32 [*], from 1; 0: there is none). Reads the lower triangle of A. The factors have no derivatives.

    `pivots` as LAPACK's sytrf has them: a row's partner from 1; two equal negative ones stand for a block of two rows. Raises
    LinAlgError for a zero of D where `check_errors`, RuntimeError where A is not made of square matrices of floats.
    """
    x = matrices(A, "linalg.ldl_factor_ex", square=True)
    return LDLFactorEx(*FACTOR(x, hermitian=bool(hermitian), check=bool(check_errors)))


@with_out
def ldl_factor(A: Tensor, *, hermitian: bool = False) -> LDLFactor:
    """ldl_factor_ex without the place of a zero. Raises LinAlgError where D has one."""
    return LDLFactor(*ldl_factor_ex(A, hermitian=hermitian, check_errors=True)[:2])


@with_out
def ldl_solve(LD: Tensor, pivots: Tensor, B: Tensor, *, hermitian: bool = False) -> Tensor:
    """The X [*, n, k] with A X = B, given A's ldl_factor_ex. Gradients flow to B.

    Raises RuntimeError for shapes or dtypes that do not fit, IndexError for a B that is no matrix.
    """
    op = "linalg.ldl_solve"
    if isinstance(B, Tensor) and B.ndim < 2:
        raise IndexError(f"{op}: B must have at least 2 dimensions, but has shape {list(B.shape)}")
    f, b = matrices(LD, op, "LD", square=True), matrices(B, op, "B")
    same_dtype(f, b, op)
    if pivots.dtype not in dtypes.INTS:
        raise RuntimeError(f"{op}: Expected pivots to be integers. Got {pivots.dtype!r}")
    if tuple(pivots.shape) != tuple(f.shape)[:-1]:
        raise RuntimeError(
            f"{op}: Expected LD.shape[:-1] and pivots.shape to be the same, but got pivots with shape {list(pivots.shape)} instead"
        )
    if f.shape[-1] != b.shape[-2]:
        raise RuntimeError(
            f"Incompatible matrix sizes for {op}: each A matrix is {f.shape[-1]} by {f.shape[-1]} but each b matrix is "
            f"{b.shape[-2]} by {b.shape[-1]}"
        )
    f, b = batched(f, b, op)
    return SOLVE(f, EXPAND(pivots, shape=tuple(f.shape)[:-1]), b, hermitian=bool(hermitian))
