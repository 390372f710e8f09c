"""Batches of sequences of unequal length: padded tensors, and packed ones in which no padding is computed.

A packed batch holds the rows of all sequences, longest first, step by step: `data` [sum of lengths, ...] and `batch_sizes`, how
many sequences are still running at each step. Packing and unpacking are gathers by positions known on the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.tensor import Tensor


class _Fields(NamedTuple):
    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None


class PackedSequence(_Fields):
    """What `pack_padded_sequence` makes; recurrent layers take it and give one back."""

    def __new__(
        cls, data: Tensor, batch_sizes: Tensor, sorted_indices: Tensor | None = None, unsorted_indices: Tensor | None = None
    ) -> PackedSequence:
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        if batch_sizes.dtype is not dtypes.int64:
            raise ValueError(f"PackedSequence: expected batch_sizes of dtype int64, got {batch_sizes.dtype!r}")
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def _with(self, data: Tensor) -> PackedSequence:
        return self if data is self.data else PackedSequence(data, self.batch_sizes, self.sorted_indices, self.unsorted_indices)

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """The same sequences with their data on another device or of another dtype."""
        return self._with(self.data.to(*args, **kwargs))

    def cpu(self) -> PackedSequence:
        return self._with(self.data.cpu())

    def cuda(self, *args: Any, **kwargs: Any) -> PackedSequence:
        return self._with(self.data.cuda(*args, **kwargs))

    def pin_memory(self) -> PackedSequence:
        return self._with(self.data.pin_memory())

    def double(self) -> PackedSequence:
        return self.to(dtypes.float64)

    def float(self) -> PackedSequence:
        return self.to(dtypes.float32)

    def half(self) -> PackedSequence:
        return self.to(dtypes.float16)

    def long(self) -> PackedSequence:
        return self.to(dtypes.int64)

    def int(self) -> PackedSequence:
        return self.to(dtypes.int32)

    @property
    def is_cuda(self) -> bool:
        return self.data.is_cuda

    def is_pinned(self) -> bool:
        return self.data.is_pinned()


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """The permutation that undoes a given one (None for None)."""
    if permutation is None:
        return None
    return PUBLIC["tensor"](np.argsort(np.asarray(permutation.tolist(), np.int64), kind="stable"))


def _lengths(lengths: Any) -> list[int]:
    return [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]


def _counts(lengths: Sequence[int]) -> list[int]:
    """How many sequences are longer than t, for each step t; `lengths` never grow."""
    return [sum(n > t for n in lengths) for t in range(lengths[0])]


def pack_padded_sequence(input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> PackedSequence:
    """Pack input [T, N, ...] (or [N, T, ...]) of the given lengths, which must not grow unless `enforce_sorted` is False.

    Raises RuntimeError for lengths that are not positive, not sorted, or not one a sequence.
    """
    ns = _lengths(lengths)
    if not ns:
        raise RuntimeError("Cannot pack empty tensors.")
    x = input.transpose(0, 1) if batch_first else input
    if x.ndim < 2 or len(ns) != x.shape[1]:
        raise RuntimeError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {len(ns)} (batch_size={x.shape[1] if x.ndim > 1 else 0})"
        )
    order = None
    if not enforce_sorted:
        places = np.argsort(-np.asarray(ns), kind="stable")
        ns, order = [ns[k] for k in places], PUBLIC["tensor"](places)
        x = PUBLIC["index_select"](x, 1, order)
    if ns[-1] <= 0 or min(ns) <= 0:
        raise RuntimeError(
            f"Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0: {ns}"
        )
    if any(a < b for a, b in zip(ns, ns[1:], strict=False)):
        raise RuntimeError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can pass `enforce_sorted=False` "
            f"to pack_padded_sequence: {ns}"
        )
    if ns[0] > x.shape[0]:
        raise RuntimeError(f"pack_padded_sequence: a length of {ns[0]} is more than the {x.shape[0]} steps of the input")
    counts, batch = _counts(ns), x.shape[1]
    where = np.concatenate([t * batch + np.arange(n) for t, n in enumerate(counts)])
    rows = x.reshape(x.shape[0] * batch, *x.shape[2:])
    data = PUBLIC["index_select"](rows, 0, PUBLIC["tensor"](where))
    return PackedSequence(data, PUBLIC["tensor"](counts), order)


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """([T, N, ...] or [N, T, ...] in the order before packing, lengths [N]); ends are filled with `padding_value`.

    Raises ValueError where `total_length` is less than the longest sequence.
    """
    counts = [int(n) for n in sequence.batch_sizes.tolist()]
    steps, batch, rows = len(counts), counts[0], sequence.data.shape[0]
    if total_length is not None:
        if total_length < steps:
            raise ValueError(
                "Expected total_length to be at least the length of the longest sequence in input, but got total_length="
                f"{total_length} and max sequence length being {steps}"
            )
        steps = total_length
    where = np.full((steps, batch), rows, np.int64)  # the row behind the last one is padding
    at = 0
    for t, n in enumerate(counts):
        where[t, :n] = np.arange(at, at + n)
        at += n
    lengths = np.array([sum(n > b for n in counts) for b in range(batch)], np.int64)
    if sequence.unsorted_indices is not None:
        places = np.asarray(sequence.unsorted_indices.tolist(), np.int64)
        where, lengths = where[:, places], lengths[places]
    if batch_first:
        where = where.T
    x = sequence.data
    padding = PUBLIC["full"]((1, *x.shape[1:]), padding_value, dtype=x.dtype)
    full = PUBLIC["index_select"](PUBLIC["cat"]([x, padding]), 0, PUBLIC["tensor"](where.reshape(-1)))
    return full.reshape(*where.shape, *x.shape[1:]), PUBLIC["tensor"](lengths)


def pad_sequence(
    sequences: Tensor | Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Tensors [L_i, ...] side by side as [T, N, ...] (or [N, T, ...]), filled up on one side to the longest.

    Raises RuntimeError for something that is no iterable of tensors, or where trailing dimensions differ.
    """
    if padding_side not in ("right", "left"):
        raise ValueError(f"pad_sequence: padding_side should be 'right' or 'left', got {padding_side!r}")
    if not isinstance(sequences, Iterable):
        raise RuntimeError(f"pad_sequence: Expected iterable for input sequences, but got arg of type: {type(sequences)}")
    xs = list(sequences.unbind(0)) if isinstance(sequences, Tensor) else list(sequences)
    if not xs:
        raise RuntimeError("pad_sequence: received an empty list of sequences")
    rest = tuple(xs[0].shape[1:])
    if any(tuple(x.shape[1:]) != rest for x in xs):
        raise RuntimeError(
            f"pad_sequence: all but the first dimension must agree, but got {', '.join(str(list(x.shape)) for x in xs)}"
        )
    longest = max(x.shape[0] for x in xs)
    full = []
    for x in xs:
        missing = longest - x.shape[0]
        pads = (0, missing) if padding_side == "right" else (missing, 0)
        full.append(PUBLIC["constant_pad_nd"](x, (*[0] * (2 * len(rest)), *pads), padding_value) if missing else x)
    return PUBLIC["stack"](full, 0 if batch_first else 1)


def unpad_sequence(padded_sequences: Tensor, lengths: Any, batch_first: bool = False) -> list[Tensor]:
    """The sequences of a padded tensor, each cut to its length."""
    x = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    return [x[k, :n] for k, n in enumerate(_lengths(lengths))]


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Pack tensors [L_i, ...]."""
    return pack_padded_sequence(pad_sequence(sequences), [x.shape[0] for x in sequences], enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The tensors [L_i, ...] that were packed."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)
