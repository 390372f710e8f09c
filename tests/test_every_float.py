"""Every function of one float, as the registry lists them: all 65,536 float16 and bfloat16, 10^7 bit patterns of float32.

What is measured is what users call: large tensors, so native kernels where there are any; and one compiled function of all.
`python -m scripts.every_float` takes all 2^32 float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
from flame.primitive import registered
from flame.tensor import wrap
from scripts.every_float import BOUND, ORACLE, floats, functions, narrow_bound, sampled, units, widened

NAMES = [p.name for p in functions()]
SLOW = {"erf", "erfc", "lgamma", "erfinv"}  #: whose reference goes one element at a time
#: of float32, each function's share of 10^7
PATTERNS = {n: 40_000 if n in SLOW else 300_000 for n in NAMES}


def test_every_function_of_one_float_has_a_reference() -> None:
    assert set(NAMES) == set(ORACLE) == set(BOUND)
    assert {p.name for d in ("float16", "bfloat16", "float64") for p in functions(d)} == set(NAMES)
    assert len(NAMES) > 35
    assert sum(PATTERNS.values()) > 10**7


def told(error: np.ndarray, x: np.ndarray, got: np.ndarray, want: np.ndarray) -> str:
    k = int(error.argmax())
    return f"{error[k]:.4g} ULP at {x[k]!r}: {got[k]!r}, not {want[k]!r}"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_float16_and_bfloat16(dtype: str) -> None:
    (t,) = floats(dtype)
    x = widened(t)
    assert x.size == 1 << 16 and np.isnan(x).sum() > 0
    compiled = flame.compile(lambda t: [registered(n)(t) for n in NAMES])
    for _ in range(2):
        fused = compiled(t)
    for name, of_all in zip(NAMES, fused, strict=True):
        with np.errstate(all="ignore"):
            want = np.asarray(ORACLE[name](x))
        for result in (registered(name)(t), of_all):
            assert result.dtype is t.dtype
            got = widened(result)
            error = units(got, want, dtype)
            assert error.max() <= narrow_bound(name, dtype), f"{name}: {told(error, x, got, want)}"


@pytest.mark.parametrize("name", NAMES)
def test_float32_bit_patterns(name: str) -> None:
    bits = sampled(PATTERNS[name], NAMES.index(name))
    got = registered(name)(wrap(bits)).numpy()
    with np.errstate(all="ignore"):
        x = bits.astype(np.float64)
        want = np.asarray(ORACLE[name](x))
    error = units(got, want, "float32")
    assert error.max() <= BOUND[name], told(error, x, got, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_measure_sees_what_is_wrong(dtype: str) -> None:
    d: Any = getattr(flame, dtype).numpy
    one, tiny = np.ones(1), np.array([2.0 ** {"float16": -24, "bfloat16": -133, "float32": -149}[dtype]])
    info = 2.0 ** -{"float16": 10, "bfloat16": 7, "float32": 23}[dtype]
    assert units((one + info).astype(d), one, dtype) == 1
    assert units((one - info / 2).astype(d), one, dtype) == 0.5
    assert units(2 * tiny.astype(d), tiny, dtype) == 1
    largest = (
        wrap(np.array([0x7C00 - 1 if dtype == "float16" else 0x7F80 - 1], np.uint16).view(d)) if dtype != "float32" else None
    )
    top = np.array([np.finfo(np.float32).max], np.float64) if largest is None else widened(largest)
    infinite, zero, nan = np.array([np.inf]), np.zeros(1), np.array([np.nan])
    assert units(infinite.astype(d), 4 * top, dtype) == 0 and 0 < units(infinite.astype(d), top, dtype) <= 1
    for got, want in [(nan, one), (one, nan), (-zero, zero), (infinite, one * 0.5), (one, infinite), (-infinite, 4 * top)]:
        assert units(got.astype(d), want, dtype) > 4
    assert units(nan.astype(d), nan, dtype) == units(-zero.astype(d), -zero, dtype) == 0
