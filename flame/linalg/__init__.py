"""flame.linalg: linear algebra under torch.linalg's names, and the older names that stand in flame itself.

Factorisations run in NumPy (LAPACK) in float32 and float64, and are differentiable; compiled code calls them between kernels.
"""

from __future__ import annotations

from flame.errors import LinAlgError
from flame.linalg.decompositions import (
    eig,
    eigh,
    eigvals,
    eigvalsh,
    householder_product,
    lstsq,
    matrix_rank,
    pinv,
    qr,
    svd,
    svdvals,
)
from flame.linalg.indefinite import ldl_factor, ldl_factor_ex, ldl_solve
from flame.linalg.norms import cond, matrix_norm, norm, vector_norm
from flame.linalg.products import (
    cross,
    diagonal,
    matmul,
    matrix_exp,
    matrix_power,
    multi_dot,
    tensorinv,
    tensorsolve,
    vander,
    vecdot,
)
from flame.linalg.solving import (
    cholesky,
    cholesky_ex,
    det,
    inv,
    inv_ex,
    lu,
    lu_factor,
    lu_factor_ex,
    lu_solve,
    slogdet,
    solve,
    solve_ex,
    solve_triangular,
)

__all__ = [
    "LinAlgError", "cholesky", "cholesky_ex", "cond", "cross", "det", "diagonal", "eig", "eigh", "eigvals", "eigvalsh",
    "householder_product", "inv", "inv_ex", "ldl_factor", "ldl_factor_ex", "ldl_solve", "lstsq",
    "lu", "lu_factor", "lu_factor_ex", "lu_solve", "matmul", "matrix_exp",
    "matrix_norm", "matrix_power", "matrix_rank", "multi_dot", "norm", "pinv", "qr", "slogdet", "solve", "solve_ex",
    "solve_triangular", "svd", "svdvals", "tensorinv", "tensorsolve", "vander", "vecdot", "vector_norm",
]  # fmt: skip
