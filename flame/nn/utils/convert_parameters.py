"""Parameters as one vector, and back."""

from __future__ import annotations

from collections.abc import Iterable

from flame.functions.elementwise import PUBLIC
from flame.tensor import Tensor


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements, in order, as one vector (through which gradients flow)."""
    return PUBLIC["cat"]([p.reshape(-1) for p in parameters])  # type: ignore[attr-defined]


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Write a vector's elements to the parameters, in order. Raises RuntimeError where the sizes do not add up."""
    if not isinstance(vec, Tensor):
        raise TypeError(f"expected flame.Tensor, but got: {type(vec).__name__}")
    ps = list(parameters)
    if sum(p.numel() for p in ps) != vec.numel():
        raise RuntimeError(f"the parameters have {sum(p.numel() for p in ps)} elements, the vector {vec.numel()}")
    at = 0
    for p in ps:
        p.data = vec[at : at + p.numel()].reshape(p.shape).clone()  # type: ignore[attr-defined, index]
        at += p.numel()
