"""flame.array_api: the Python array API standard, version 2024.12, with its `fft` and `linalg` extensions.

Arrays are flame's tensors, and `x.__array_namespace__()` is this module. Functions have the standard's names, signatures and dtype
rules (promotion by dtype alone, 0-d arrays included; sums of unsigned integers in uint64), and gradients flow through them.
Operators and methods of a tensor (`x + y`, `x.sum()`) keep PyTorch's rules where these differ from the standard's: a 0-d operand
then only counts by its kind of dtype.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from flame.array_api import fft, linalg
from flame.array_api.creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    full,
    full_like,
    linspace,
    meshgrid,
    ones,
    ones_like,
    tril,
    triu,
    zeros,
    zeros_like,
)
from flame.array_api.data_types import (
    astype,
    broadcast_arrays,
    broadcast_to,
    can_cast,
    finfo,
    iinfo,
    isdtype,
    result_type,
)
from flame.array_api.elementwise import (
    abs,
    acos,
    acosh,
    add,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    bitwise_and,
    bitwise_invert,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    ceil,
    clip,
    conj,
    copysign,
    cos,
    cosh,
    divide,
    equal,
    exp,
    expm1,
    floor,
    floor_divide,
    greater,
    greater_equal,
    hypot,
    imag,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    matrix_transpose,
    maximum,
    minimum,
    multiply,
    negative,
    nextafter,
    not_equal,
    positive,
    pow,
    real,
    reciprocal,
    remainder,
    round,
    sign,
    signbit,
    sin,
    sinh,
    sqrt,
    square,
    subtract,
    tan,
    tanh,
    trunc,
    where,
)
from flame.array_api.info import __array_namespace_info__
from flame.array_api.linalg import matmul, tensordot, vecdot
from flame.array_api.manipulation import (
    concat,
    expand_dims,
    flip,
    moveaxis,
    permute_dims,
    repeat,
    reshape,
    roll,
    squeeze,
    stack,
    take,
    take_along_axis,
    tile,
    unstack,
)
from flame.array_api.reductions import (
    all,
    any,
    argmax,
    argmin,
    argsort,
    count_nonzero,
    cumulative_prod,
    cumulative_sum,
    diff,
    max,
    mean,
    min,
    nonzero,
    prod,
    searchsorted,
    sort,
    std,
    sum,
    unique_all,
    unique_counts,
    unique_inverse,
    unique_values,
    var,
)
from flame.dtypes import bool_ as bool
from flame.dtypes import (
    complex64,
    complex128,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from flame.tensor import Tensor

__array_api_version__ = "2024.12"
e, pi, inf, nan, newaxis = math.e, math.pi, math.inf, math.nan, None
_VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12")


def _namespace(self: Tensor, /, *, api_version: str | None = None) -> Any:
    """The namespace of the array API standard for this tensor. Raises ValueError for versions that it does not have."""
    if api_version is not None and api_version not in _VERSIONS:
        raise ValueError(
            f"__array_namespace__: the version {api_version!r} is not there: the versions are {', '.join(_VERSIONS)}"
        )
    return sys.modules[__name__]


def _to_device(self: Tensor, device: Any, /, *, stream: Any = None) -> Tensor:
    """The tensor on a device: itself where it is there already."""
    if stream is not None:
        raise ValueError("to_device: stream must be None: copies are made on the current stream")
    return self.to(device)


Tensor.__array_namespace__ = _namespace  # type: ignore[attr-defined]
Tensor.to_device = _to_device  # type: ignore[attr-defined]
