"""Arrays made from nothing: constants and counters. Everything else that creates (eye, linspace, tril) is built on these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype as DType
from flame.ops.access import At, Index
from flame.ops.declare import as_operand
from flame.primitive import Number, Primitive, Spec, register


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    for n in shape:
        if n < 0:
            raise RuntimeError(f"{name}: trying to create a tensor with negative dimension {n}: {list(shape)}")
    return shape


def _full_infer(value: Spec | Number, *, shape: tuple[int, ...], dtype: DType, place: str = "") -> Spec:
    if isinstance(value, Spec) and (value.shape or value.dtype is not dtype):
        raise RuntimeError(f"full: expected a number or a 0-d tensor of {dtype} as the value, but got {value}")
    return Spec(_shape("full", shape), dtype)


def _full_eager(value: Any, *, shape: tuple[int, ...], dtype: DType, place: str = "") -> np.ndarray:
    d = dtype.numpy
    if isinstance(value, np.ndarray) or d.kind not in "ui":
        return np.full(shape, value, d)
    return np.full(shape, as_operand(value, d), d)


def _full_lower(at: At, index: Index, *value: Any, shape: tuple[int, ...], dtype: DType, place: str = "") -> Any:
    return at.const(value[0], dtype) if value and not isinstance(value[0], Spec) else at.value(0, ())


def _full_samples() -> Iterator[tuple[tuple, dict]]:
    for d in dtypes.ALL + dtypes.BITS:
        for shape in ((2, 3), (), (0,), (5,)):
            yield (1,), {"shape": shape, "dtype": d}
        yield (np.asarray(2, d.numpy),), {"shape": (4,), "dtype": d}
    yield (float("nan"),), {"shape": (3,), "dtype": dtypes.float32}
    yield (-1,), {"shape": (3,), "dtype": dtypes.int8}
    yield (float("-inf"),), {"shape": (2, 2), "dtype": dtypes.bfloat16}


full: Primitive = register(
    "full",
    kind="create",
    infer=_full_infer,
    eager=_full_eager,
    vjp=(lambda g, _y, _value, *, shape, dtype, place="": g,),
    lower=_full_lower,
    samples=_full_samples,
    doc="full(value, *, shape, dtype): every element is `value`, a number or a 0-d tensor of that dtype.",
)


def _iota_infer(*, size: int, dtype: DType, place: str = "") -> Spec:
    if dtype.kind == "b":
        raise NotImplementedError('"iota" not implemented for flame.bool: it gives integer or floating-point tensors')
    return Spec(_shape("iota", (size,)), dtype)


def _iota_samples() -> Iterator[tuple[tuple, dict]]:
    for d in dtypes.ALL:
        if d.kind != "b":
            for size in (0, 1, 7, 120):
                yield (), {"size": size, "dtype": d}


iota: Primitive = register(
    "iota",
    kind="create",
    infer=_iota_infer,
    eager=lambda *, size, dtype, place="": np.arange(size).astype(dtype.numpy),
    lower=lambda at, index, *, size, dtype, place="": at.index_value(index[0], dtype),
    samples=_iota_samples,
    refused={"vjp": "it has no operands"},
    doc="iota(*, size, dtype): 0, 1, 2, ... size - 1.",
)
