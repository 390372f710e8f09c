"""float64 functions in vectors: within 2 units in the last place of extended precision, right at the ends; and compiled so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
from flame.ops.machine import NumpyMachine, lgamma
from flame.ops.vector_library import WIDE
from scripts.every_float import ORACLE

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


def assert_within(got: np.ndarray, want: np.ndarray, bound: float, *x: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        close = want.astype(np.float64)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(close))
        finite = np.isfinite(close) & np.isfinite(got)
        odd = ~np.isnan(close) & ~finite & (got != close)
        assert not (odd & (np.abs(want) < 1.797693134862315e308)).any(), [v[odd] for v in x]
        unit = np.maximum(np.spacing(np.abs(close)), 5e-324)
        error = np.where(finite, np.abs(got - want) / unit, 0)
    worst = int(error.argmax())
    assert error[worst] <= bound, (
        f"{float(error[worst]):.3g} units at {[v[worst] for v in x]}: {got[worst]!r}, not {close[worst]!r}"
    )
    zero = close == 0
    np.testing.assert_array_equal(np.signbit(got[zero & (got == 0)]), np.signbit(close[zero & (got == 0)]))


ANGLES = {"sin", "cos", "tan"}
#: the C library's, within a unit; of lgamma within two
BY_ONE = {
    "erf": np.vectorize(math.erf, otypes=[float]),
    "erfc": np.vectorize(math.erfc, otypes=[float]),
    "lgamma": np.vectorize(lgamma, otypes=[float]),
}
EXACT: dict[str, Callable[..., np.ndarray]] = {
    **{n: getattr(np, n) for n in "exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh".split()},
    **{"a" + n: getattr(np, "arc" + n) for n in "sin cos tan tan2 cosh".split()},
    "pow": np.power,
    **BY_ONE,
}
#: of those that need an fma that rounds once, which NumPy does not have
BOUND = dict.fromkeys(("sin", "cos", "log2", "log10", "pow", "atan", "acosh"), 2.0)
BOUND |= {"tan": 4.0, "erf": 2.5, "erfc": 2.5, "lgamma": 6.0}
BINARY = ("pow", "atan2")


def angles() -> np.ndarray:
    """Where the reduction is hard: what lies nearest to multiples of pi / 2, at every size, and on both sides of its limit."""
    r = np.random.default_rng(8)
    whole = np.concatenate([np.arange(1.0, 20_000), np.rint(2.0 ** r.uniform(14, 29.3, 20_000))])
    near = (whole.astype(np.longdouble) * np.longdouble("1.57079632679489661923132169163975144")).astype(np.float64)
    hard = [2.0**30, np.nextafter(2.0**30, 0), np.nextafter(2.0**30, 2.0**31), 5.5e8]
    return np.concatenate([near, -near, r.uniform(-(2.0**31), 2.0**31, 20_000), hard])


def operands(name: str) -> tuple[np.ndarray, ...]:
    x = arguments(7, 10_000 if name in BY_ONE else 100_000)
    r = np.random.default_rng(9)
    if name in ANGLES:
        x = np.concatenate([x, angles()])
    if name == "lgamma":
        return (
            np.concatenate([x, *(k + r.normal(0, d, 500) for k in (0, 1, 2) for d in (1e-9, 1e-3)), r.uniform(0, 9, 10_000)]),
        )
    if name not in BINARY:
        return (x,)
    pairs = np.array(np.meshgrid(SPECIAL, SPECIAL)).reshape(2, -1)
    near = 1 + r.uniform(-1e-5, 1e-5, 20_000)
    bases = np.concatenate([x, pairs[0], r.uniform(0, 4, 20_000), near, -np.arange(1.0, 40), np.arange(40.0)])
    exponents = np.concatenate([r.permutation(x), pairs[1], r.uniform(-600, 600, 20_000), r.uniform(-7e7, 7e7, 20_000)])
    return bases, np.concatenate([exponents, np.arange(-20.0, 19), r.integers(-300, 300, 40)])


@pytest.mark.parametrize("name", sorted(WIDE))
def test_within_two_units(name: str) -> None:
    x = operands(name)
    with np.errstate(all="ignore"):
        wide = x if name in BY_ONE else tuple(v.astype(np.longdouble) for v in x)
        want = EXACT[name](*wide).astype(np.longdouble)
        if name not in BOUND:
            assert_within(WIDE[name](VectorMachine(), *x), want, 3.0, *x)  # (NumPy's fma rounds twice)
    f = flame.compile(lambda *t: getattr(flame, name)(*t))
    for _ in range(3):
        got = f(*map(flame.from_numpy, x)).numpy()
    assert_within(got, want, BOUND.get(name, 2.0), *x)


def test_powers_of_the_base_have_exact_logarithms() -> None:
    f = flame.compile(lambda a, b: (a.log2(), b.log10(), flame.pow(2.0, a.log2()), flame.exp2(a.log2())))
    two, ten = 2.0 ** np.arange(-1074, 1024), 10.0 ** np.arange(23)
    for _ in range(3):
        of_2, of_10, *again = (t.numpy() for t in f(flame.from_numpy(two), flame.from_numpy(ten)))
    np.testing.assert_array_equal(of_2, np.arange(-1074, 1024))
    np.testing.assert_array_equal(of_10, np.arange(23))
    for back in again:
        np.testing.assert_array_equal(back, two)


@pytest.mark.parametrize("name", [*sorted(WIDE), "sigmoid", "softplus", "softmax"])
def test_kernels_of_float64_call_no_library(name: str) -> None:
    def take(t: Any) -> Any:
        if name in BINARY:
            return getattr(flame, name)(t, t + 1)
        return (
            flame.nn.functional.softmax(t, -1)
            if name == "softmax"
            else (getattr(flame.nn.functional, name, None) or getattr(flame, name))(t)
        )

    f = flame.compile(take)
    for _ in range(3):
        f(flame.rand(4, 33).double() + 1)
    text = "".join(k.llvm.split("@rarely_")[0] if name in ANGLES | {"lgamma"} else k.llvm for k in f.kernels)
    assert text and f"@{name}(" not in text.split("define", 1)[1] and "@exp(" not in text


@pytest.mark.parametrize("d", ["float32", "float64"])
@pytest.mark.parametrize("name", ["fmod", "remainder", "floor_divide"])
def test_what_division_leaves_is_exact(name: str, d: str) -> None:
    """Numbers of every size beside each other, quotients that are whole or nearly, and quotients of more bits than a float has."""
    r = np.random.default_rng(11)
    word = np.uint32 if d == "float32" else np.uint64
    bits = [r.integers(0, np.iinfo(word).max, 20_000, dtype=word).view(d) for _ in range(2)]
    whole = r.integers(1, 1 << 23, 20_000).astype(d)
    y = (10.0 ** r.uniform(-30, 5, 20_000)).astype(d) * r.choice(np.array([-1, 1], d), 20_000)
    pairs = np.array(np.meshgrid(SPECIAL, SPECIAL)).reshape(2, -1).astype(d)
    with np.errstate(all="ignore"):
        beside = [np.nextafter(whole * y, np.array(to, d)) for to in (-np.inf, np.inf)]
        a = np.concatenate([bits[0], pairs[0], whole * y, *beside, y * 1e12])
        b = np.concatenate([bits[1], pairs[1], y, y, y, y])
        want = np.fmod(a, b)
        if name == "remainder":
            want = np.where((want != 0) & ((want < 0) != (b < 0)), want + b, want)
    f = flame.compile(lambda x, y: getattr(flame, name)(x, y))
    for _ in range(3):
        got = f(flame.from_numpy(a), flame.from_numpy(b)).numpy()
    if name == "floor_divide":
        want = getattr(flame, name)(flame.from_numpy(a), flame.from_numpy(b)).numpy()
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got) & ~np.isnan(got), np.signbit(want) & ~np.isnan(want))


def test_erfinv_undoes_erf_to_its_bound() -> None:
    """erf(y) of a y beside erfinv(x) differs from x by the slope: both are measured in units of y."""
    r = np.random.default_rng(12)
    x = np.concatenate([r.uniform(-1, 1, 20_000), 1 - 2.0 ** r.uniform(-50, -1, 20_000), 10.0 ** r.uniform(-300, 0, 5000)])
    f = flame.compile(flame.erfinv)
    for _ in range(3):
        y = f(flame.from_numpy(x)).numpy()
    want = ORACLE["erfinv"](x)
    assert (np.abs(y - want) <= 6 * np.spacing(np.abs(want))).all()
