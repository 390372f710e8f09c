"""Which definition of a mathematical function a machine takes: float32's of our own, or float64's, written out (`WIDE`) or its
platform's library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flame.dtypes import float64
from flame.ops.machine import LIBM, Machine
from flame.ops.vector_angles64 import ANGLES
from flame.ops.vector_math64 import FUNCTIONS
from flame.ops.vector_powers64 import POWERS

Define = Callable[..., Any]
#: float64 functions that are written out, for machines whose library takes lanes one by one
WIDE: dict[str, Define] = {**FUNCTIONS, **ANGLES, **POWERS}


def library_in_float64(define: Define) -> Define:
    """The definition for float32, the platform's function of the same name for float64 and where float32 has one."""
    name = define.__name__
    assert name in LIBM, name

    @functools.wraps(define)
    def either(m: Machine, *x: Any) -> Any:
        wide = m.dtype(x[0]) is float64
        if wide and name in WIDE and (m.vectors or name in m.written):
            return WIDE[name](m, *x)
        return m.libm(name, *x) if wide or name in m.native else define(m, *x)

    return either
