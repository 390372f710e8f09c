"""What distributions share, under torch.distributions.utils' names: numbers and tensors of one shape, probabilities and logits,
vectors and lower triangles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flame.autograd.modes import enable_grad
from flame.functions import PUBLIC
from flame.functions.promotion import number
from flame.legacy import finfo
from flame.nn.functional.activation import softmax
from flame.tensor import Tensor

euler_constant = 0.57721566490153286060


def broadcast_all(*values: Any) -> tuple[Tensor, ...]:
    """Numbers and tensors as tensors of one shape; numbers take a tensor's dtype, or the default one."""
    like = next((v for v in values if isinstance(v, Tensor)), None)
    ts = []
    for v in values:
        if not isinstance(v, Tensor):
            n = number(v)
            if n is None:
                raise ValueError(f"Input arguments must all be instances of Number or Tensor, but got {type(v).__name__}")
            v = PUBLIC["tensor"](float(n), dtype=None if like is None or like.dtype.kind != "f" else like.dtype)
        ts.append(v)
    return PUBLIC["broadcast_tensors"](*ts)


def clamp_probs(probs: Tensor) -> Tensor:
    """Probabilities kept within [eps, 1 - eps] of their dtype."""
    eps = finfo(probs.dtype).eps
    return PUBLIC["clamp"](probs, eps, 1 - eps)


def logits_to_probs(logits: Tensor, is_binary: bool = False) -> Tensor:
    """Probabilities of log-odds (`is_binary`), or of unnormalised log-probabilities along the last dimension."""
    return PUBLIC["sigmoid"](logits) if is_binary else softmax(logits, -1)


def probs_to_logits(probs: Tensor, is_binary: bool = False) -> Tensor:
    """Log-odds (`is_binary`) or log-probabilities, of probabilities kept away from 0 and 1."""
    p = clamp_probs(probs)
    return PUBLIC["log"](p) - PUBLIC["log1p"](-p) if is_binary else PUBLIC["log"](p)


class lazy_property:
    """A property that is computed where it is first read, and an attribute of the object from then on."""

    def __init__(self, wrapped: Callable[[Any], Any]):
        self.wrapped = wrapped
        functools.update_wrapper(self, wrapped)  # type: ignore[arg-type]

    def __get__(self, instance: Any, obj_type: Any = None) -> Any:
        if instance is None:
            return self
        with enable_grad():
            value = self.wrapped(instance)
        setattr(instance, self.wrapped.__name__, value)
        return value


def _below(n: int, diag: int, like: Tensor) -> Tensor:
    """Where an n by n matrix has its lower triangle up to diagonal `diag`: positions in the flattened matrix, row by row."""
    rows, columns = PUBLIC["tril_indices"](n, n, diag)
    return (rows * n + columns).to(like.device)


def tril_matrix_to_vec(mat: Tensor, diag: int = 0) -> Tensor:
    """The lower triangles of matrices [..., n, n], up to diagonal `diag`, as vectors, row by row.

    Raises ValueError where matrices have no such diagonal.
    """
    n = mat.shape[-1]
    if not -n <= diag < n:
        raise ValueError(f"diag ({diag}) provided is outside [{-n}, {n - 1}].")
    return PUBLIC["index_select"](mat.flatten(-2), -1, _below(n, diag, mat))


def vec_to_tril_matrix(vec: Tensor, diag: int = 0) -> Tensor:
    """Vectors [..., m] as the lower triangles, up to diagonal `diag`, of matrices [..., n, n] that are zero elsewhere.

    Raises ValueError where no square matrix has so many numbers there.
    """
    m = vec.shape[-1]
    # n^2 + (1 + 2 diag) n - |diag| (diag + 1) = 2 m
    n = round((-(1 + 2 * diag) + ((1 + 2 * diag) ** 2 + 8 * m + 4 * abs(diag) * (diag + 1)) ** 0.5) / 2)
    at = _below(n, diag, vec)
    if at.shape[0] != m:
        raise ValueError(
            f"The size of last dimension is {m} which cannot be expressed as the lower triangular part of a square D x D matrix."
        )
    flat = PUBLIC["zeros"]((*tuple(vec.shape)[:-1], n * n), dtype=vec.dtype, device=vec.device)
    return PUBLIC["index_copy"](flat, -1, at, vec).unflatten(-1, (n, n))


__all__ = [
    "broadcast_all", "clamp_probs", "euler_constant", "lazy_property", "logits_to_probs", "probs_to_logits", "tril_matrix_to_vec",
    "vec_to_tril_matrix",
]  # fmt: skip
