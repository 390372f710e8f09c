"""Functions of one argument against an exact reference, at every float there is: `python -m scripts.every_float FUNCTION...
[--dtype float32] [--part 1/1]`.

All 2^32 float32 (or 65,536 float16, bfloat16) bit patterns go through the native kernel of each function, and the largest error is
shown, in units in the last place, with its argument. Without a FUNCTION all are measured. The reference is float64 (NumPy's, the C
library's), which is 2^29 times as fine as float32; where mpmath is installed, the worst arguments are computed once more with it.
A float32 function takes 3 to 15 minutes; `--part 2/8` measures the second eighth of the patterns. float64 has no every: 10^6
patterns of all magnitudes are compared with long double, or mpmath. Exits with 1 if a bound is passed.

`functions()` are the elementwise primitives of one float operand, as the registry has them; each needs an entry in `ORACLE`.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

import flame
from flame.ops.machine import lgamma
from flame.primitive import REGISTRY, Primitive, Spec, registered
from flame.tensor import wrap

Oracle = Callable[[np.ndarray], np.ndarray]


def each(f: Callable[[float], float]) -> Oracle:
    def guarded(x: float) -> float:
        try:
            return f(x)
        except (ValueError, OverflowError):  # of a pole, and beyond the largest number
            return math.inf

    return np.vectorize(guarded, otypes=[float])


def sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small / (1 + small), 1 / (1 + small))


def erfinv(x: np.ndarray) -> np.ndarray:
    """By Newton's method on erf, and on erfc where that is finer."""
    erf, erfc = each(math.erf), each(math.erfc)
    a = np.abs(x)
    tail = np.log1p(-(np.minimum(a, 1 - 2.0**-53) ** 2))
    b = 2 / (np.pi * 0.147) + tail / 2
    y = np.sqrt(np.sqrt(b * b - tail / 0.147) - b)  # (Winitzki's approximation)
    for _ in range(4):
        off = np.where(a < 0.5, erf(y) - a, (1 - a) - erfc(y))
        y = y - off * (np.sqrt(np.pi) / 2) * np.exp(y * y)
    y = np.where(a < 1e-8, a * (np.sqrt(np.pi) / 2), y)
    return np.copysign(np.where(a < 1, y, np.where(a == 1, np.inf, np.nan)), x)


#: what each function gives, in float64, for float64
ORACLE: Final[dict[str, Oracle]] = {
    **{n: getattr(np, n) for n in "exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh".split()},
    **{"a" + n: getattr(np, "arc" + n) for n in "sin cos tan sinh cosh tanh".split()},
    **{n: getattr(np, n) for n in "abs sqrt square floor ceil trunc".split()},
    "copy": lambda x: x,
    "neg": np.negative,
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "relu": lambda x: np.where(x < 0, 0.0, x),  # (of -0 it is -0)
    "sign": lambda x: np.where(x > 0, 1.0, np.where(x < 0, -1.0, 0.0)),  # (of NaN it is 0, as PyTorch's)
    "round": np.rint,
    "frac": lambda x: np.where(np.isinf(x), np.nan, x - np.trunc(x)),
    "sigmoid": sigmoid,
    "erf": each(math.erf),
    "erfc": each(math.erfc),
    "lgamma": each(lgamma),
    "erfinv": erfinv,
}
#: rounded once, so half a unit
EXACT: Final = frozenset("abs sqrt square sign floor ceil trunc copy neg reciprocal relu round frac".split())
#: units in the last place of float32
BOUND: Final = dict.fromkeys(ORACLE, 2.0) | dict.fromkeys(EXACT, 0.5) | {"tan": 4.0, "lgamma": 4.0, "erfinv": 4.0}
MANTISSA: Final = {"float32": 23, "float16": 10, "bfloat16": 7, "float64": 52}
SMALLEST: Final = {"float32": -149, "float16": -24, "bfloat16": -133, "float64": -1074}  #: exponents of the least subnormals


def functions(dtype: str = "float32") -> list[Primitive]:
    """The elementwise primitives that make a float of this dtype from one."""
    d = getattr(flame, dtype)
    found = []
    for p in REGISTRY.values():
        if p.kind != "elementwise" or p.scalar is None or p.samples is None:
            continue
        operands, params = next(iter(p.samples()))
        if len(operands) != 1 or params:
            continue
        try:
            made = p.infer(Spec((1,), d))
        except (RuntimeError, TypeError, NotImplementedError):  # not of floats
            continue
        if made.dtype is d:
            found.append(p)
    return found


def units(got: np.ndarray, want: np.ndarray, dtype: str) -> np.ndarray:
    """How far results are from exact ones, in units in the last place: infinite where one is NaN and the other is not, where an
    infinity is wrong, or the sign of a zero. An infinity just above the largest number counts as the next one."""
    with np.errstate(all="ignore"):
        got = got.astype(want.dtype)
        bits = MANTISSA[dtype]
        unit = np.ldexp(np.ones_like(want), np.maximum(np.frexp(want)[1] - 1 - bits, SMALLEST[dtype]))
        largest = np.ldexp(2 - np.ldexp(want.dtype.type(1), -bits), {5: 15}.get(15 - bits, 1023 if bits == 52 else 127))
        seen = np.where(np.isinf(got) & np.isfinite(want), np.copysign(largest + np.ldexp(largest, -bits - 1), got), got)
        error = np.abs(seen - want) / unit
        error[np.isinf(got) & (np.abs(want) > largest) & ((got > 0) == (want > 0))] = 0
        error[got == want] = 0
        error[np.isnan(got) & np.isnan(want)] = 0
        wrong = (np.isnan(got) != np.isnan(want)) | ((got == 0) & (want == 0) & (np.signbit(got) != np.signbit(want)))
        error[wrong | np.isnan(error)] = np.inf
    return error


def floats(dtype: str, part: int = 0, parts: int = 1) -> Iterator[Any]:
    """Every float of a dtype as tensors, and as float64."""
    many = 1 << (32 if dtype == "float32" else 16)
    step = min(many, 1 << 22)
    for begin in range(part * step, many, parts * step):
        word = np.uint32 if dtype == "float32" else np.uint16
        yield wrap(np.arange(begin, begin + step, dtype=word).view(getattr(flame, dtype).numpy))


def sampled(n: int, seed: int, dtype: str = "float32") -> np.ndarray:
    """About `n` floats of every sign and exponent: the ends of each stretch, and as many of each between."""
    bits, word = MANTISSA[dtype], np.dtype(f"uint{32 if dtype == 'float32' else 64}")
    exponents = 1 << (word.itemsize * 8 - bits)
    r = np.random.default_rng(seed)
    within = r.integers(0, 1 << bits, (exponents, max(1, n // exponents)), dtype=np.uint64)
    within[:, :4] = [0, 1, (1 << bits) - 1, 1 << (bits - 1)][: within.shape[1]]
    every = (np.arange(exponents, dtype=np.uint64)[:, None] << np.uint64(bits)) | within
    return every.astype(word).view(dtype).reshape(-1)


def widened(x: Any) -> np.ndarray:
    """A tensor's values in float64."""
    with np.errstate(invalid="ignore"):  # (signalling NaNs)
        return np.asarray(x.double().numpy() if x.dtype is not flame.float32 else x.numpy().astype(np.float64))


def exactly(name: str, x: float) -> Any:
    """The function of mpmath's, with 200 bits; None without mpmath, or where it has no such function."""
    try:
        mpmath: Any = importlib.import_module("mpmath")
    except ImportError:
        return None
    names = {"lgamma": lambda v: mpmath.log(abs(mpmath.gamma(v))), "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v))}
    names |= {"exp2": lambda v: mpmath.power(2, v), "log2": lambda v: mpmath.log(v, 2), "rsqrt": lambda v: 1 / mpmath.sqrt(v)}
    f = names.get(name) or getattr(mpmath, name, None)
    if f is None or not math.isfinite(x):
        return None
    with mpmath.workprec(200):
        try:
            return f(mpmath.mpf(x))
        except (ValueError, ZeroDivisionError):
            return None


def worst(name: str, dtype: str, part: int = 0, parts: int = 1) -> tuple[float, float, int]:
    """The largest error of a function over every float, its argument, and how many were measured."""
    f, oracle = registered(name), ORACLE[name]
    most, at, count = 0.0, 0.0, 0
    for t in floats(dtype, part, parts):
        x = widened(t)
        with np.errstate(all="ignore"):
            error = units(widened(f(t)), np.asarray(oracle(x)), dtype)
        k = int(error.argmax())
        count += x.size
        if error[k] > most:
            most, at = float(error[k]), float(x[k])
    got = float(widened(f(flame.tensor([at] * 16384, dtype=getattr(flame, dtype))))[0])
    exact = exactly(name, at)
    if exact is not None and math.isfinite(most) and math.isfinite(got):
        unit = 2.0 ** max(math.frexp(float(exact))[1] - 1 - MANTISSA[dtype], SMALLEST[dtype])
        most = float(abs(exact - got) / unit)
    return most, at, count


def worst_float64(name: str, n: int = 1 << 20) -> tuple[float, float, int]:
    """The largest error over a sample of float64: against long double, or the C library's float64 (then only to a unit)."""
    x = np.concatenate([sampled(n // 2, 1, "float64"), np.random.default_rng(2).uniform(-40, 40, n // 2)])
    oracle = ORACLE[name]
    by_one = name in ("erf", "erfc", "lgamma", "erfinv")
    with np.errstate(all="ignore"):
        want = np.asarray(oracle(x if by_one else x.astype(np.longdouble)))
        got = registered(name)(flame.from_numpy(x)).numpy()
        error = units(got, want.astype(np.longdouble), "float64")
        if by_one:
            for k in np.argsort(error)[-64:]:
                exact = exactly(name, float(x[k]))
                if exact is not None and math.isfinite(error[k]):
                    error[k] = float(abs(exact - float(got[k])) / max(float(np.spacing(abs(got[k]))), 5e-324))
    k = int(error.argmax())
    return float(error[k]), float(x[k]), x.size


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = {d: [p.name for p in functions(d)] for d in MANTISSA}
    parser.add_argument("functions", nargs="*", metavar="FUNCTION", help=", ".join(known["float32"]))
    parser.add_argument("--dtype", choices=MANTISSA, default="float32")
    parser.add_argument("--part", default="1/1", help="2/8: the second eighth of the patterns")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    passed = True
    for name in given.functions or known[given.dtype]:
        if name not in known[given.dtype]:
            parser.error(f"{name!r} is no function of one {given.dtype}: expected some of {', '.join(known[given.dtype])}")
        begin = time.perf_counter()
        most, at, count = worst_float64(name) if given.dtype == "float64" else worst(name, given.dtype, part - 1, parts)
        bound = BOUND[name] if given.dtype in ("float32", "float64") else narrow_bound(name, given.dtype)
        passed = passed and most <= bound
        verdict = "" if most <= bound else f"  beyond its bound of {bound:g}"
        seconds = time.perf_counter() - begin
        print(f"{name:<11} {most:8.4f} ULP at {at!r:<24} {count} patterns, {seconds:.0f} s{verdict}", flush=True)
    return 0 if passed else 1


def narrow_bound(name: str, dtype: str) -> float:
    """Of a function that is computed in float32 and rounded once."""
    return 0.5 + BOUND[name] * 2.0 ** (MANTISSA[dtype] - 23) * (name not in EXACT)


if __name__ == "__main__":
    sys.exit(main())
