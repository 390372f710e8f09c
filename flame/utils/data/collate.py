"""Samples into batches: tensors are stacked, numbers become tensors, containers are kept with their parts collated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy as np

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.tensor import Tensor, wrap

_UNKNOWN = "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found "


def _is_named_tuple(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(x, "_fields")


def _like(x: Any, entries: Any) -> Any:
    """A container of the same class as `x` with other entries; a plain one where its class can't be made so."""
    if isinstance(x, Mapping):
        try:
            if isinstance(x, MutableMapping):
                made: Any = copy.copy(x)
                made.update(entries)
                return made
            return type(x)(entries)  # type: ignore[call-arg]
        except TypeError:
            return dict(entries)
    if _is_named_tuple(x):
        return type(x)(*entries)
    try:
        if isinstance(x, MutableSequence):
            made = copy.copy(x)  # type: ignore[assignment]
            for i, v in enumerate(entries):
                made[i] = v
            return made
        return type(x)(entries)
    except TypeError:
        return list(entries)


def _from_array(a: np.ndarray | np.generic) -> Tensor:
    """A tensor over an array, where flame has its dtype. Raises TypeError where not."""
    array = np.asarray(a)
    dtypes.from_numpy_dtype(array.dtype)
    return wrap(np.ascontiguousarray(array).reshape(array.shape))


def default_convert(data: Any) -> Any:
    """NumPy arrays as tensors, inside of containers too; everything else as it is."""
    if isinstance(data, np.ndarray | np.generic) and data.dtype.kind not in "SUOV":
        return _from_array(data)
    if isinstance(data, Mapping):
        return _like(data, {k: default_convert(v) for k, v in data.items()})
    if _is_named_tuple(data):
        return _like(data, [default_convert(v) for v in data])
    if isinstance(data, tuple):
        return [default_convert(v) for v in data]
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return _like(data, [default_convert(v) for v in data])
    return data


def default_collate(batch: Sequence[Any]) -> Any:
    """One batch of a list of samples: tensors and arrays get a new first dimension, numbers a tensor, containers keep their form.

    Floats become float64, as Python's are. Raises TypeError for samples of other types, RuntimeError for samples that differ in
    size.
    """
    return collated(batch, {})


def collated(batch: Sequence[Any], rules: dict[Any, Callable]) -> Any:
    """`default_collate` with further rules: type -> function of a list of samples."""
    first = batch[0]
    for kind, rule in rules.items():
        if isinstance(first, kind):
            return rule(batch)
    if isinstance(first, Tensor):
        if any(tuple(t.shape) != tuple(first.shape) for t in batch):
            shapes = next((list(t.shape) for t in batch if tuple(t.shape) != tuple(first.shape)), [])
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(first.shape)} at entry 0 and {shapes} later: give "
                "DataLoader a collate_fn that pads or keeps lists"
            )
        return PUBLIC["stack"](list(batch), 0)
    if isinstance(first, np.ndarray) or (isinstance(first, np.generic) and first.dtype.kind not in "SU"):
        if first.dtype.kind in "SUOV":
            raise TypeError(
                f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found {first.dtype}"
            )
        return collated([_from_array(a) for a in batch], rules)
    if isinstance(first, float):
        return PUBLIC["tensor"](list(batch), dtype=dtypes.float64)
    if isinstance(first, int):
        return PUBLIC["tensor"](list(batch))
    if isinstance(first, str | bytes):
        return batch
    if isinstance(first, Mapping):
        return _like(first, {k: collated([d[k] for d in batch], rules) for k in first})
    if _is_named_tuple(first):
        return _like(first, [collated(column, rules) for column in zip(*batch, strict=True)])
    if isinstance(first, Sequence):
        if any(len(s) != len(first) for s in batch):
            raise RuntimeError("each element in list of batch should be of equal size")
        columns = [collated(column, rules) for column in zip(*batch, strict=True)]
        return columns if isinstance(first, tuple) else _like(first, columns)
    raise TypeError(f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found {type(first)}")
