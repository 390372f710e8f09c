"""How tensors lie in memory, as programs name it: `strided`, `sparse_coo`; `contiguous_format`, `channels_last`, ...

A memory format is an order of the dimensions from the slowest to the fastest. `order(format, ndim)` gives it.
"""

from __future__ import annotations

from collections.abc import Sequence


class _Named:
    """One of a few constants, known by its name, pickled too."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"flame.{self.name}"

    def __reduce__(self) -> str:
        return self.name


class layout(_Named):
    """What holds a tensor's elements: memory with strides, or coordinates beside values."""

    __slots__ = ()


class memory_format(_Named):
    """The order in which the elements of a dense tensor lie."""

    __slots__ = ()


strided, sparse_coo = layout("strided"), layout("sparse_coo")
contiguous_format, preserve_format = memory_format("contiguous_format"), memory_format("preserve_format")
channels_last, channels_last_3d = memory_format("channels_last"), memory_format("channels_last_3d")
_RANKS = {channels_last: 4, channels_last_3d: 5}


def order(format: memory_format, ndim: int, op: str) -> tuple[int, ...]:
    """The dimensions from the slowest to the fastest. Raises RuntimeError where the format is not one of so many dimensions."""
    if not isinstance(format, memory_format):
        raise TypeError(f"{op}(): argument 'memory_format' must be flame.memory_format, not {type(format).__name__}")
    rank = _RANKS.get(format)
    if rank is None:
        return tuple(range(ndim))
    if ndim != rank:
        raise RuntimeError(f"{op}: required rank {rank} tensor to use {format.name} format, but got {ndim} dimensions")
    return (0, *range(2, ndim), 1)


def lies_in(order: Sequence[int], shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements lie densely with the dimensions in this order; dimensions of size 1 may have any stride."""
    step = 1
    if 0 in shape:
        return True
    for d in reversed(order):
        if shape[d] != 1 and strides[d] != step:
            return False
        step *= shape[d]
    return True
