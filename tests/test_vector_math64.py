"""float64 functions in vectors: within 2 units in the last place of extended precision, right at the ends; and compiled so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
from flame.ops.machine import NumpyMachine
from flame.ops.vector_math64 import WIDE

pytestmark = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="needs a long double of more than 64 bits as oracle")
SPECIAL = [
    0.0,
    -0.0,
    1,
    -1,
    np.inf,
    -np.inf,
    np.nan,
    5e-324,
    -5e-324,
    2.3e-308,
    1.8e308,
    -1.8e308,
    709.78,
    709.79,
    -708.4,
    -745.1,
]
SPECIAL += [-745.2, 1 + 2e-16, 1 - 1e-16, -1 + 1e-16, 0.3465, 0.3467, 1e-17, -1e-17, 1e17, 22.1, 2.0**53, 2.0**-1022]


class VectorMachine(NumpyMachine):
    vectors = True


def arguments(seed: int, n: int) -> np.ndarray:
    r = np.random.default_rng(seed)
    bits = r.integers(0, 1 << 64, n, dtype=np.uint64).view(np.float64)
    spans = [r.uniform(-span, span, n // 4) for span in (1e-3, 1, 3, 40, 750)]
    return np.concatenate([SPECIAL, bits, *spans, 1 + r.uniform(-1e-6, 1e-6, n // 4)])


def assert_within(got: np.ndarray, want: np.ndarray, bound: float, x: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        close = want.astype(np.float64)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(close))
        finite = np.isfinite(close) & np.isfinite(got)
        odd = ~np.isnan(close) & ~finite & (got != close)
        assert not (odd & (np.abs(want) < 1.797693134862315e308)).any(), x[odd]
        unit = np.maximum(np.spacing(np.abs(close)), 5e-324)
        error = np.where(finite, np.abs(got - want) / unit, 0)
    worst = int(error.argmax())
    assert error[worst] <= bound, f"{float(error[worst]):.3g} units at {x[worst]!r}: {got[worst]!r}, not {close[worst]!r}"
    zero = close == 0
    np.testing.assert_array_equal(np.signbit(got[zero & (got == 0)]), np.signbit(close[zero & (got == 0)]))


@pytest.mark.parametrize("name", sorted(WIDE))
def test_within_two_units(name: str) -> None:
    x = arguments(7, 100_000)
    with np.errstate(all="ignore"):
        want = getattr(np, name)(x.astype(np.longdouble))
        assert_within(WIDE[name](VectorMachine(), x), want, 3.0, x)  # (NumPy's fma rounds twice)
    f = flame.compile(lambda t: getattr(flame, name)(t))
    for _ in range(3):
        got = f(flame.tensor(x)).numpy()
    assert_within(got, want, 2.0, x)


@pytest.mark.parametrize("name", [*sorted(WIDE), "sigmoid", "softplus", "softmax"])
def test_kernels_of_float64_call_no_library(name: str) -> None:
    def take(t: Any) -> Any:
        return (
            flame.nn.functional.softmax(t, -1)
            if name == "softmax"
            else getattr(flame.nn.functional, name, getattr(flame, name, None))(t)
        )

    f = flame.compile(take)
    for _ in range(3):
        f(flame.randn(4, 33).double())
    assert f.kernels and not any(f"@{name}(" in k.llvm or "@exp(" in k.llvm for k in f.kernels)
