"""Mathematical functions defined on the abstract machine, element by element, branch-free: what kernels compute."""

from __future__ import annotations

import math
from typing import Any

from flame.dtypes import by_name
from flame.ops.machine import Machine


def _library(name: str) -> Any:
    def define(m: Machine, *x: Any) -> Any:
        return m.libm(name, *x)

    define.__name__ = name
    return define


exp, exp2, expm1 = _library("exp"), _library("exp2"), _library("expm1")
log, log2, log10, log1p = _library("log"), _library("log2"), _library("log10"), _library("log1p")
sin, cos, tan = _library("sin"), _library("cos"), _library("tan")
asin, acos, atan, atan2 = _library("asin"), _library("acos"), _library("atan"), _library("atan2")
sinh, cosh, tanh = _library("sinh"), _library("cosh"), _library("tanh")
erf, erfc, lgamma = _library("erf"), _library("erfc"), _library("lgamma")


def copysign(m: Machine, x: Any, y: Any) -> Any:
    """The magnitude of x with the sign of y."""
    bits = m.dtype(x).itemsize * 8
    i = by_name(f"int{bits}")
    sign = -(1 << (bits - 1))
    magnitude = m.bitwise_and(m.bitcast(x, i), ~sign)
    return m.bitcast(m.bitwise_or(magnitude, m.bitwise_and(m.bitcast(y, i), sign)), m.dtype(x))


def asinh(m: Machine, x: Any) -> Any:
    a = m.abs(x)
    small = log1p(m, m.add(a, m.div(m.mul(a, a), m.add(m.sqrt(m.fma(a, a, 1.0)), 1.0))))
    large = m.add(log(m, a), math.log(2))
    return copysign(m, m.where(m.gt(a, 1e8), large, small), x)


def acosh(m: Machine, x: Any) -> Any:
    t = m.sub(x, 1.0)
    small = log1p(m, m.add(t, m.sqrt(m.fma(t, t, m.mul(t, 2.0)))))
    return m.where(m.gt(x, 1e8), m.add(log(m, x), math.log(2)), small)


def atanh(m: Machine, x: Any) -> Any:
    a = m.abs(x)
    return copysign(m, m.mul(log1p(m, m.div(m.mul(a, 2.0), m.sub(1.0, a))), 0.5), x)


def sigmoid(m: Machine, x: Any) -> Any:
    e = exp(m, m.neg(m.abs(x)))
    d = m.add(e, 1.0)
    return m.div(m.where(m.lt(x, 0.0), e, 1.0), d)


def pow(m: Machine, x: Any, y: Any) -> Any:
    return m.libm("pow", x, y) if m.dtype(x).kind == "f" else _integer_pow(m, x, y)


def _integer_pow(m: Machine, x: Any, y: Any) -> Any:
    """By squaring, one step a bit of the exponent (wrapping; y >= 0)."""
    out = m.const(1, m.dtype(x))
    for _ in range(m.dtype(x).itemsize * 8 - 1):
        out = m.where(m.ne(m.bitwise_and(y, 1), 0), m.mul(out, x), out)
        x = m.mul(x, x)
        y = m.shift_right(y, 1)
    return out


def hypot(m: Machine, x: Any, y: Any) -> Any:
    """sqrt(x * x + y * y) without overflow in between; infinite if either is, even beside NaN."""
    x, y = m.abs(x), m.abs(y)
    large, small = m.maximum(x, y), m.minimum(x, y)
    ratio = m.where(m.eq(large, 0.0), large, m.div(small, large))
    length = m.mul(large, m.sqrt(m.fma(ratio, ratio, 1.0)))
    infinite = m.logical_or(m.eq(x, math.inf), m.eq(y, math.inf))
    return m.where(infinite, math.inf, length)
