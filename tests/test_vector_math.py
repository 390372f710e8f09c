"""The functions that kernels compute are as accurate in float32 as their file says, at every kind of argument.

Arguments are random bit patterns (all magnitudes, subnormals, infinities, NaN), dense draws where the functions turn, and the
special values in all pairs; the oracle is float64. Run on a machine whose fma rounds once, and on one where it rounds twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
from flame.ops import vector_math
from flame.ops.machine import LIBM, NumpyMachine, lgamma


class FusedMachine(NumpyMachine):
    """NumPy with float32 fma by way of float64: the product is exact there."""

    def emit(self, op: str, *operands: Any) -> Any:
        if op == "fma" and any(getattr(x, "dtype", None) == np.float32 for x in operands):
            with np.errstate(all="ignore"):
                a, b, c = (np.asarray(x, np.float32).astype(np.float64) for x in operands)
                return (a * b + c).astype(np.float32)
        return super().emit(op, *operands)


def each(f: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    return np.vectorize(f, otypes=[float])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x)))


ORACLE: dict[str, Callable[..., np.ndarray]] = {
    **{n: getattr(np, n) for n in "exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh hypot".split()},
    **{"a" + n: getattr(np, "arc" + n) for n in "sin cos tan sinh cosh tanh tan2".split()},
    "pow": np.power,
    "erf": each(math.erf),
    "erfc": each(math.erfc),
    "lgamma": each(lgamma),
    "sigmoid": sigmoid,
}
BOUND = dict.fromkeys(ORACLE, 2.0) | {"tan": 4.0}
BINARY = {"pow", "atan2", "hypot"}
SPECIAL = np.array(
    [
        0.0,
        -0.0,
        1,
        -1,
        0.5,
        -0.5,
        2,
        -2,
        3,
        -3,
        np.inf,
        -np.inf,
        np.nan,
        1e-45,
        -1e-45,
        1.1754944e-38,
        3.4028235e38,
        -3.4028235e38,
    ]
    + [88.72, 88.73, -87.4, -103.9, -104, 127.9, 128, -149, -150, 0.92, 0.95, 0.6, 1 + 1.2e-7, 1 - 6e-8, -1 - 1.2e-7, 2.5, 1e9],
    np.float32,
)


def arguments(seed: int, n: int) -> np.ndarray:
    r = np.random.default_rng(seed)
    bits = r.integers(0, 1 << 32, n, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = [r.uniform(-span, span, n // 5) for span in (1, 4, 12, 100, 1e4)]
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.concatenate([SPECIAL, bits, *dense]).astype(np.float32)


def assert_within(got: np.ndarray, want: np.ndarray, bound: float, *x: np.ndarray) -> None:
    """Within `bound` ULP of the exact result; NaN, infinities and the signs of zeros equal."""

    def shown(where: np.ndarray) -> str:
        i = int(np.flatnonzero(where)[0])
        return f"at {[float(v[i]) for v in x]}: {float(got[i])!r}, not {float(want[i])!r}"

    with np.errstate(all="ignore"):
        assert not (wrong := np.isnan(got) != np.isnan(want)).any(), shown(wrong)
        unit = np.maximum(2.0 ** (np.floor(np.log2(np.abs(want))) - 23), 2.0**-149)
        largest = float(np.finfo(np.float32).max)
        error = (
            np.abs(np.where(np.isinf(got), np.copysign(largest * (1 + 2.0**-24), got), got.astype(np.float64)) - want) / unit
        )
        error[(got == want) | np.isnan(want)] = 0
        error[np.isinf(got) & (np.abs(want) > largest) & ((got > 0) == (want > 0))] = 0
    assert not (wrong := ~(error <= bound)).any(), f"{error.max():.3g} ULP, {shown(error == error.max())}"
    assert not (wrong := (got == 0) & (want == 0) & (np.signbit(got) != np.signbit(want))).any(), shown(wrong)


@pytest.mark.parametrize("name", ORACLE)
@pytest.mark.parametrize(("machine", "slack"), [(FusedMachine(), 0.0), (NumpyMachine(), 1.0)], ids=["fused", "twice-rounded"])
def test_float32_is_within_its_bound(name: str, machine: NumpyMachine, slack: float) -> None:
    n = 25_000 if name in ("lgamma", "erf", "erfc") else 100_000  # those oracles go one element at a time
    x: tuple[np.ndarray, ...] = (arguments(1, n),)
    if name in BINARY:
        pairs = np.array(np.meshgrid(SPECIAL, SPECIAL)).reshape(2, -1)
        r = np.random.default_rng(2)
        x = (
            np.concatenate([x[0], pairs[0], r.uniform(0, 4, n)]).astype(np.float32),
            np.concatenate([r.permutation(arguments(3, n)), pairs[1], r.uniform(-60, 60, n)]).astype(np.float32),
        )
    with np.errstate(all="ignore"):
        want = ORACLE[name](*(v.astype(np.float64) for v in x))
    got = getattr(vector_math, name)(machine, *x)
    assert got.dtype == np.float32
    assert_within(got, want, BOUND[name] + slack, *x)


def test_large_arguments_are_reduced_exactly() -> None:
    """Float32 values that lie closest to multiples of pi / 2, and the largest there are."""
    whole = np.arange(1, 400_000, dtype=np.float64)
    near = (whole * (np.pi / 2)).astype(np.float32)
    hard = near[np.argsort(np.abs(near.astype(np.float64) - whole * (np.pi / 2)))[:2000]]
    x = np.concatenate([hard, -hard, 2.0 ** np.arange(-30, 128), [3.4028235e38, 16367173.0 * 2.0**72]]).astype(np.float32)
    for name in ("sin", "cos", "tan"):
        want = getattr(np, name)(x.astype(np.float64))
        assert_within(getattr(vector_math, name)(FusedMachine(), x), want, BOUND[name], x)
        compiled = flame.compile(getattr(flame, name))
        for _ in range(2):
            got = compiled(flame.from_numpy(x)).numpy()
        assert_within(got, want, BOUND[name], x)


@pytest.mark.parametrize("name", sorted(ORACLE))
def test_float64_is_the_library(name: str) -> None:
    r = np.random.default_rng(4)
    x = [r.uniform(1.1, 5, 1000) if name == "acosh" else r.uniform(0.01, 0.99, 1000) for _ in range(1 + (name in BINARY))]
    got = getattr(vector_math, name)(NumpyMachine(), *x)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, ORACLE[name](*x), rtol=1e-14)
    empty = [np.empty(0) for _ in x]
    assert getattr(vector_math, name)(NumpyMachine(), *empty).shape == (0,)


@pytest.mark.parametrize("d", ["int8", "uint8", "int32", "int64"])
def test_integer_powers_wrap(d: str) -> None:
    r = np.random.default_rng(5)
    x, y = r.integers(0, 100, 500).astype(d), r.integers(0, 127, 500).astype(d)
    modulus = 1 << (8 * x.itemsize)
    want = np.array([pow(int(a), int(b), modulus) for a, b in zip(x, y, strict=True)], object)
    got = vector_math.pow(NumpyMachine(), x, y)
    assert got.dtype == np.dtype(d)
    assert [int(v) % modulus for v in got] == want.tolist()


def test_every_library_function_is_one_that_machines_have() -> None:
    """What the definitions ask of `libm` is in its list: run each in float64 on a machine that notes the names."""
    asked: set[str] = set()

    class Noting(NumpyMachine):
        def libm(self, name: str, *x: Any) -> Any:
            asked.add(name)
            return super().libm(name, *x)

    for name in ORACLE:
        getattr(vector_math, name)(Noting(), *[np.full(2, 0.5)] * (1 + (name in BINARY)))
    assert asked <= LIBM and len(asked) > 15
