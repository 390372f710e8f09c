"""Which of three matrices a distribution of vectors or matrices was given, as the one that it computes with."""

from __future__ import annotations

from flame.functions import PUBLIC
from flame.linalg import cholesky
from flame.tensor import Tensor


def covariance_factor(
    covariance_matrix: Tensor | None,
    precision_matrix: Tensor | None,
    scale_tril: Tensor | None,
    error: type[Exception] = ValueError,
) -> Tensor:
    """The lower Cholesky factor of the covariance, shape (..., n, n).

    Raises `error` where not exactly one matrix is given, ValueError for one of fewer than two dimensions or one that is not
    positive definite.
    """
    given = {"covariance_matrix": covariance_matrix, "precision_matrix": precision_matrix, "scale_tril": scale_tril}
    present = [(name, m) for name, m in given.items() if m is not None]
    if len(present) != 1:
        raise error("Exactly one of covariance_matrix or precision_matrix or scale_tril may be specified.")
    name, m = present[0]
    if m.ndim < 2:
        raise ValueError(f"{name} must be at least two-dimensional, with optional leading batch dimensions")
    if m is scale_tril:
        return m
    try:
        return cholesky(m if m is covariance_matrix else PUBLIC["inverse"](m))
    except RuntimeError as e:
        raise ValueError(f"Expected parameter {name} to be positive definite: {e}") from None
