"""The elementwise primitives of arithmetic, one row each: sums and products, divisions, extremes, rounding, functions.

A row reads: name, the element types it takes, its meaning on NumPy arrays, a derivative rule for each operand (written in
these same primitives; g is the cotangent of the result y), its definition on a machine where its name is not a basic
operation already, and samples. Derivatives at kinks follow PyTorch: 0 for abs and relu at 0, halves for maximum on ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flame import dtypes, symbol
from flame.ops import special, vector_division
from flame.ops import vector_math as vm
from flame.ops.create import full
from flame.ops.declare import (
    FLOAT,
    NUMBER,
    elementwise,
    infer_elementwise,
)
from flame.ops.declare import operands as sampled
from flame.ops.logic import eq, ge, gt, le, logical_and, logical_not, lt, where
from flame.ops.machine import Machine
from flame.ops.vector_math64 import erfinv as erfinv64
from flame.primitive import Primitive, Spec, register, registered
from flame.symbol import Symbolic

_STEP = "its result does not vary smoothly with its operands"

_some, _pair = sampled(NUMBER, (-4, 4)), sampled(NUMBER, (-4, 4), (-4, 4))
_floats, _float_pair = sampled(FLOAT, (-4, 4)), sampled(FLOAT, (-4, 4), (-4, 4))
_positive, _unit = sampled(FLOAT, (0.1, 6)), sampled(FLOAT, (-0.9, 0.9))


def _nothing(g: Any) -> Any:
    return full(0.0, shape=g.shape, dtype=g.dtype)


def conj(x: Any) -> Any:
    """The conjugate of an operand of a rule: of a complex number or array; anything else is its own."""
    if isinstance(x, complex):
        return x.conjugate()
    return conjugate(x) if getattr(getattr(x, "dtype", None), "kind", "") == "c" else x


conjugate: Primitive = register(
    "conjugate",
    kind="opaque",
    infer=lambda x: x,
    eager=lambda x: np.array(np.conjugate(x), x.dtype, order="C"),
    vjp=(lambda g, _y, _x: conjugate(g),),
    refused={"lower": "complex numbers have no kernel form"},
    samples=sampled(FLOAT, (-4, 4)),
    doc="The complex conjugate; a real array is copied.",
)

# ---------------------------------------------------------------------------------------------------------- arithmetic

add: Primitive = elementwise("add", NUMBER, np.add, vjp=(lambda g, _y, _a, _b: g, lambda g, _y, _a, _b: g), samples=_pair)
sub: Primitive = elementwise(
    "sub", NUMBER, np.subtract, vjp=(lambda g, _y, _a, _b: g, lambda g, _y, _a, _b: neg(g)), samples=_pair
)
mul: Primitive = elementwise(
    "mul", NUMBER, np.multiply, vjp=(lambda g, _y, _a, b: mul(g, conj(b)), lambda g, _y, a, _b: mul(g, conj(a))), samples=_pair
)
div: Primitive = elementwise(
    "div",
    FLOAT,
    np.divide,
    vjp=(lambda g, _y, _a, b: div(g, conj(b)), lambda g, y, _a, b: neg(mul(g, conj(div(y, b))))),
    samples=sampled(FLOAT, (-4, 4), (0.5, 4)),
)
neg: Primitive = elementwise("neg", NUMBER, np.negative, vjp=(lambda g, _y, _x: neg(g),), samples=_some)
abs: Primitive = elementwise("abs", NUMBER, np.abs, vjp=(lambda g, _y, x: mul(g, sign(x)),), samples=_some)
square: Primitive = elementwise(
    "square",
    NUMBER,
    np.square,
    vjp=(lambda g, _y, x: mul(g, conj(mul(x, 2.0))),),
    scalar=lambda m, x: m.mul(x, x),
    samples=_some,
)
reciprocal: Primitive = elementwise(
    "reciprocal",
    FLOAT,
    np.reciprocal,
    vjp=(lambda g, y, _x: neg(mul(g, conj(mul(y, y)))),),
    scalar=lambda m, x: m.div(m.const(1.0, m.dtype(x)), x),
    samples=_positive,
)
sqrt: Primitive = elementwise("sqrt", FLOAT, np.sqrt, vjp=(lambda g, y, _x: div(g, conj(mul(y, 2.0))),), samples=_positive)
rsqrt: Primitive = elementwise(
    "rsqrt",
    FLOAT,
    lambda x: 1 / np.sqrt(x),
    vjp=(lambda g, y, _x: mul(mul(g, -0.5), conj(mul(y, mul(y, y)))),),
    scalar=lambda m, x: m.div(m.const(1.0, m.dtype(x)), m.sqrt(x)),
    samples=_positive,
)


def _sign(m: Any, x: Any) -> Any:
    d = m.dtype(x)
    return m.where(m.gt(x, 0), m.const(1, d), m.where(m.lt(x, 0), m.const(0 if d.kind == "u" else -1, d), m.const(0, d)))


sign: Primitive = elementwise(
    "sign",
    NUMBER,
    lambda x: np.asarray((x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)),
    vjp=(lambda g, _y, _x: _nothing(g),),
    scalar=_sign,
    samples=_some,
    doc="-1, 0 or 1; 0 for NaN.",
)


def _infer_division(name: str, takes: str = NUMBER) -> Callable[..., Spec]:
    infer = infer_elementwise(name, takes, None)

    def checked(a: Any, b: Any) -> Spec:
        spec = infer(a, b)
        if spec.dtype.kind != "f" and not isinstance(b, Spec) and b == 0:
            raise RuntimeError(f"{name}: ZeroDivisionError: integer division by 0")
        return spec

    return checked


def _divisor(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """f, after integer divisors were looked through for 0. (A kernel can't raise: it gives 0 there.)"""

    def eager(a: Any, b: Any) -> Any:
        if b.dtype.kind in "ui" and not np.all(b):
            raise RuntimeError(f"{name}: ZeroDivisionError: integer division by 0")
        return f(a, b)

    eager.numpy = f  # type: ignore[attr-defined]
    return eager


def _guarded(m: Any, f: Callable[..., Any], a: Any, b: Any) -> Any:
    """f(a, b) on integers, 0 where b is 0: processors trap on that."""
    zero = m.eq(b, 0)
    d = m.dtype(b)
    return m.where(zero, m.const(0, d), f(a, m.where(zero, m.const(1, d), b)))


def _floor_divide(m: Any, a: Any, b: Any) -> Any:
    if m.dtype(a).kind != "f":
        return _guarded(m, m.floor_divide_int, a, b)
    # the remainder is exact, so (a - remainder) / b is a whole number but for one rounding
    rest = vector_division.fmod(m, a, b)
    q = m.div(m.sub(a, rest), b)
    q = m.where(m.logical_and(m.ne(rest, 0.0), m.ne(m.lt(b, 0.0), m.lt(rest, 0.0))), m.sub(q, 1.0), q)
    whole = m.floor(q)
    whole = m.where(m.gt(m.sub(q, whole), 0.5), m.add(whole, 1.0), whole)
    exact = m.div(a, b)
    whole = m.where(m.eq(q, 0.0), vm.copysign(m, m.const(0.0, m.dtype(a)), exact), whole)
    return m.where(m.eq(b, 0.0), exact, whole)


def _remainder(m: Any, a: Any, b: Any) -> Any:
    if m.dtype(a).kind != "f":
        return _guarded(m, m.remainder_int, a, b)
    rest = vector_division.fmod(m, a, b)
    return m.where(m.logical_and(m.ne(rest, 0.0), m.ne(m.lt(b, 0.0), m.lt(rest, 0.0))), m.add(rest, b), rest)


def _trunc_divide(m: Any, a: Any, b: Any) -> Any:
    if m.dtype(a).kind == "f":
        return m.trunc(m.div(a, b))

    def truncated(a: Any, b: Any) -> Any:
        q = m.floor_divide_int(a, b)
        rest = m.sub(a, m.mul(q, b))
        up = m.logical_and(m.ne(rest, 0), m.ne(m.lt(a, 0), m.lt(b, 0)))
        return m.where(up, m.add(q, 1), q)

    return _guarded(m, truncated, a, b)


def _fmod(m: Any, a: Any, b: Any) -> Any:
    if m.dtype(a).kind == "f":
        return vector_division.fmod(m, a, b)
    return _guarded(m, lambda a, b: m.sub(a, m.mul(_trunc_divide(m, a, b), b)), a, b)


def _eager_remainder(a: Any, b: Any) -> Any:
    if b.dtype.kind in "ui":
        return np.remainder(a, b)
    rest = np.fmod(a, b)  # (np.remainder gives a zero the divisor's sign; PyTorch and kernels leave it the dividend's)
    return np.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


def _eager_trunc_divide(a: Any, b: Any) -> Any:
    if b.dtype.kind not in "ui":
        return np.trunc(a / b)
    q, rest = np.divmod(a, b)
    return q + ((rest != 0) & ((a < 0) != (b < 0))).astype(q.dtype)


_quotients = sampled(NUMBER, (-9, 9), (1, 4))
floor_divide: Primitive = elementwise(
    "floor_divide",
    NUMBER,
    _divisor("floor_divide", np.floor_divide),
    infer=_infer_division("floor_divide"),
    vjp=(lambda g, _y, _a, _b: _nothing(g), lambda g, _y, _a, _b: _nothing(g)),
    scalar=_floor_divide,
    samples=_quotients,
)
trunc_divide: Primitive = elementwise(
    "trunc_divide",
    NUMBER,
    _divisor("trunc_divide", _eager_trunc_divide),
    infer=_infer_division("trunc_divide"),
    vjp=(lambda g, _y, _a, _b: _nothing(g), lambda g, _y, _a, _b: _nothing(g)),
    scalar=_trunc_divide,
    samples=_quotients,
)
remainder: Primitive = elementwise(
    "remainder",
    NUMBER,
    _divisor("remainder", _eager_remainder),
    infer=_infer_division("remainder"),
    vjp=(lambda g, _y, _a, _b: g, lambda g, _y, a, b: neg(mul(g, floor_divide(a, b)))),
    scalar=_remainder,
    samples=_quotients,
    doc="What is left of a floor division: it has the divisor's sign.",
)
fmod: Primitive = elementwise(
    "fmod",
    NUMBER,
    _divisor("fmod", np.fmod),
    infer=_infer_division("fmod"),
    vjp=(lambda g, _y, _a, _b: g, lambda g, _y, a, b: neg(mul(g, trunc_divide(a, b)))),
    scalar=_fmod,
    samples=_quotients,
    doc="What is left of a truncating division: it has the dividend's sign.",
)


def _infer_pow() -> Callable[..., Spec]:
    infer = infer_elementwise("pow", NUMBER, None)

    def checked(a: Any, b: Any) -> Spec:
        spec = infer(a, b)
        if spec.dtype.kind not in "fc" and not isinstance(b, Spec) and b < 0:
            raise RuntimeError("pow: Integers to negative integer powers are not allowed.")
        return spec

    return checked


def _eager_pow(a: Any, b: Any) -> Any:
    if b.dtype.kind == "i" and np.any(low := np.less(b, 0)):  # only 1 and -1 have a reciprocal among integers: 0 for others
        flipped = np.where(np.bitwise_and(b, 1), a, np.abs(a))
        return np.where(low, np.where(np.abs(a) == 1, flipped, 0), np.power(a, np.where(low, 0, b))).astype(a.dtype)
    return np.power(a, b)


_NUMBERS: Any = (int, float, complex, Symbolic)


def _pow_base(g: Any, _y: Any, a: Any, b: Any) -> Any:
    if isinstance(b, _NUMBERS):
        return _nothing(g) if b == 0 else mul(g, conj(mul(pow(a, b - 1), b)))
    return where(eq(b, 0.0), 0.0, mul(g, conj(mul(pow(a, sub(b, 1.0)), b))))


def _pow_exponent(g: Any, y: Any, a: Any, b: Any) -> Any:
    if isinstance(a, _NUMBERS):
        if a == 0:
            return where(ge(b, 0.0), 0.0, mul(g, mul(y, -math.inf)))
        return mul(g, conj(mul(y, symbol.log(a) if a > 0 else math.nan)))
    if getattr(getattr(b, "dtype", None), "kind", "") == "c":
        return where(eq(a, 0.0), 0.0, mul(g, conj(mul(y, log(a)))))
    return where(logical_and(eq(a, 0.0), ge(b, 0.0)), 0.0, mul(g, mul(y, log(a))))


pow: Primitive = elementwise(
    "pow",
    NUMBER,
    _eager_pow,
    infer=_infer_pow(),
    vjp=(_pow_base, _pow_exponent),
    scalar=vm.pow,
    samples=sampled(NUMBER, (0.4, 3), (0, 3)),
)


hypot: Primitive = elementwise(
    "hypot",
    FLOAT,
    np.hypot,
    vjp=(lambda g, y, a, _b: mul(g, div(a, y)), lambda g, y, _a, b: mul(g, div(b, y))),
    scalar=vm.hypot,
    samples=_float_pair,
)


def _over_square(a: Any, length: Any) -> Any:
    return div(div(a, length), length)


def _half_on_ties(g: Any, loses: Any, a: Any, b: Any) -> Any:
    return where(loses, 0.0, where(eq(a, b), mul(g, 0.5), g))


maximum: Primitive = elementwise(
    "maximum",
    NUMBER,
    np.maximum,
    vjp=(lambda g, _y, a, b: _half_on_ties(g, lt(a, b), a, b), lambda g, _y, a, b: _half_on_ties(g, lt(b, a), a, b)),
    samples=_pair,
    doc="The larger; NaN where either is NaN.",
)
minimum: Primitive = elementwise(
    "minimum",
    NUMBER,
    np.minimum,
    vjp=(lambda g, _y, a, b: _half_on_ties(g, gt(a, b), a, b), lambda g, _y, a, b: _half_on_ties(g, gt(b, a), a, b)),
    samples=_pair,
    doc="The smaller; NaN where either is NaN.",
)
fmax: Primitive = elementwise(
    "fmax",
    NUMBER,
    np.fmax,
    vjp=(
        lambda g, _y, a, b: where(logical_and(eq(a, a), logical_not(lt(a, b))), g, 0.0),
        lambda g, _y, a, b: where(logical_and(eq(b, b), logical_not(ge(a, b))), g, 0.0),
    ),
    scalar=lambda m, a, b: m.where(m.logical_or(m.ge(a, b), m.ne(b, b)), a, b),
    samples=_pair,
    doc="The larger; the other one where one is NaN.",
)
fmin: Primitive = elementwise(
    "fmin",
    NUMBER,
    np.fmin,
    vjp=(
        lambda g, _y, a, b: where(logical_and(eq(a, a), logical_not(gt(a, b))), g, 0.0),
        lambda g, _y, a, b: where(logical_and(eq(b, b), logical_not(le(a, b))), g, 0.0),
    ),
    scalar=lambda m, a, b: m.where(m.logical_or(m.le(a, b), m.ne(b, b)), a, b),
    samples=_pair,
    doc="The smaller; the other one where one is NaN.",
)
relu: Primitive = elementwise(
    "relu",
    NUMBER,
    lambda x: np.maximum(x.dtype.type(0), x),  # (of two zeros the second is the answer: -0.0 stays what it is, as in kernels)
    vjp=(lambda g, y, _x: where(gt(y, 0.0), g, 0.0),),
    scalar=lambda m, x: m.maximum(0, x),
    samples=_some,
)


def _signed_ratio(g: Any, y: Any, a: Any, _b: Any) -> Any:
    return where(eq(a, 0.0), 0.0, mul(g, div(y, a)))


copysign: Primitive = elementwise(
    "copysign",
    FLOAT,
    np.copysign,
    vjp=(_signed_ratio, lambda g, _y, _a, _b: _nothing(g)),
    scalar=vm.copysign,
    samples=_float_pair,
)

# ------------------------------------------------------------------------------------------------------------ rounding

floor: Primitive = elementwise("floor", FLOAT, np.floor, vjp=(lambda g, _y, _x: _nothing(g),), samples=_floats)
ceil: Primitive = elementwise("ceil", FLOAT, np.ceil, vjp=(lambda g, _y, _x: _nothing(g),), samples=_floats)
trunc: Primitive = elementwise("trunc", FLOAT, np.trunc, vjp=(lambda g, _y, _x: _nothing(g),), samples=_floats)
round: Primitive = elementwise(
    "round",
    FLOAT,
    np.rint,
    vjp=(lambda g, _y, _x: _nothing(g),),
    scalar=lambda m, x: m.rint(x),
    samples=_floats,
    doc="To the nearest whole number, halves to the even one.",
)
frac: Primitive = elementwise(
    "frac",
    FLOAT,
    lambda x: x - np.trunc(x),
    vjp=(lambda g, _y, _x: g,),
    scalar=lambda m, x: m.sub(x, m.trunc(x)),
    samples=_floats,
)

# ----------------------------------------------------------------------------------------------- mathematical functions

exp: Primitive = elementwise("exp", FLOAT, np.exp, vjp=(lambda g, y, _x: mul(g, conj(y)),), scalar=vm.exp, samples=_floats)
exp2: Primitive = elementwise(
    "exp2", FLOAT, np.exp2, vjp=(lambda g, y, _x: mul(g, conj(mul(y, math.log(2)))),), scalar=vm.exp2, samples=_floats
)
expm1: Primitive = elementwise(
    "expm1", FLOAT, np.expm1, vjp=(lambda g, y, _x: mul(g, conj(add(y, 1.0))),), scalar=vm.expm1, samples=_floats
)
log: Primitive = elementwise("log", FLOAT, np.log, vjp=(lambda g, _y, x: div(g, conj(x)),), scalar=vm.log, samples=_positive)
log2: Primitive = elementwise(
    "log2", FLOAT, np.log2, vjp=(lambda g, _y, x: div(g, conj(mul(x, math.log(2)))),), scalar=vm.log2, samples=_positive
)
log10: Primitive = elementwise(
    "log10", FLOAT, np.log10, vjp=(lambda g, _y, x: div(g, conj(mul(x, math.log(10)))),), scalar=vm.log10, samples=_positive
)
log1p: Primitive = elementwise(
    "log1p", FLOAT, np.log1p, vjp=(lambda g, _y, x: div(g, conj(add(x, 1.0))),), scalar=vm.log1p, samples=_unit
)
sin: Primitive = elementwise("sin", FLOAT, np.sin, vjp=(lambda g, _y, x: mul(g, conj(cos(x))),), scalar=vm.sin, samples=_floats)
cos: Primitive = elementwise(
    "cos", FLOAT, np.cos, vjp=(lambda g, _y, x: neg(mul(g, conj(sin(x)))),), scalar=vm.cos, samples=_floats
)
tan: Primitive = elementwise(
    "tan", FLOAT, np.tan, vjp=(lambda g, y, _x: mul(g, conj(add(mul(y, y), 1.0))),), scalar=vm.tan, samples=_unit
)
asin: Primitive = elementwise(
    "asin", FLOAT, np.arcsin, vjp=(lambda g, _y, x: mul(g, conj(rsqrt(sub(1.0, mul(x, x))))),), scalar=vm.asin, samples=_unit
)
acos: Primitive = elementwise(
    "acos",
    FLOAT,
    np.arccos,
    vjp=(lambda g, _y, x: neg(mul(g, conj(rsqrt(sub(1.0, mul(x, x)))))),),
    scalar=vm.acos,
    samples=_unit,
)
atan: Primitive = elementwise(
    "atan", FLOAT, np.arctan, vjp=(lambda g, _y, x: div(g, conj(add(mul(x, x), 1.0))),), scalar=vm.atan, samples=_floats
)
sinh: Primitive = elementwise(
    "sinh", FLOAT, np.sinh, vjp=(lambda g, _y, x: mul(g, conj(cosh(x))),), scalar=vm.sinh, samples=_floats
)
cosh: Primitive = elementwise(
    "cosh", FLOAT, np.cosh, vjp=(lambda g, _y, x: mul(g, conj(sinh(x))),), scalar=vm.cosh, samples=_floats
)
tanh: Primitive = elementwise(
    "tanh", FLOAT, np.tanh, vjp=(lambda g, y, _x: mul(g, conj(sub(1.0, mul(y, y)))),), scalar=vm.tanh, samples=_floats
)
asinh: Primitive = elementwise(
    "asinh",
    FLOAT,
    np.arcsinh,
    vjp=(lambda g, _y, x: mul(g, conj(rsqrt(add(mul(x, x), 1.0)))),),
    scalar=vm.asinh,
    samples=_floats,
)
acosh: Primitive = elementwise(
    "acosh",
    FLOAT,
    np.arccosh,
    vjp=(lambda g, _y, x: mul(g, conj(mul(rsqrt(sub(x, 1.0)), rsqrt(add(x, 1.0))))),),
    scalar=vm.acosh,
    samples=sampled(FLOAT, (1.2, 6)),
)
atanh: Primitive = elementwise(
    "atanh", FLOAT, np.arctanh, vjp=(lambda g, _y, x: div(g, conj(sub(1.0, mul(x, x)))),), scalar=vm.atanh, samples=_unit
)
atan2: Primitive = elementwise(
    "atan2",
    FLOAT,
    np.arctan2,
    vjp=(
        lambda g, _y, a, b: mul(g, _over_square(b, hypot(a, b))),
        lambda g, _y, a, b: neg(mul(g, _over_square(a, hypot(a, b)))),
    ),
    scalar=vm.atan2,
    samples=_float_pair,
)
sigmoid: Primitive = elementwise(
    "sigmoid",
    FLOAT,
    special.sigmoid,
    vjp=(lambda g, y, _x: mul(g, conj(mul(y, sub(1.0, y)))),),
    scalar=vm.sigmoid,
    samples=_floats,
)
erf: Primitive = elementwise(
    "erf",
    FLOAT,
    special.erf,
    vjp=(lambda g, _y, x: mul(g, mul(exp(neg(mul(x, x))), 2 / math.sqrt(math.pi))),),
    scalar=vm.erf,
    samples=_floats,
)
erfc: Primitive = elementwise(
    "erfc",
    FLOAT,
    special.erfc,
    vjp=(lambda g, _y, x: mul(g, mul(exp(neg(mul(x, x))), -2 / math.sqrt(math.pi))),),
    scalar=vm.erfc,
    samples=_floats,
)
lgamma: Primitive = elementwise(
    "lgamma", FLOAT, special.lgamma, vjp=(lambda g, _y, x: mul(g, digamma(x)),), scalar=vm.lgamma, samples=_positive
)
_LIBRARY = "a series of its own for each range: computed by the library, not in a kernel"
digamma: Primitive = elementwise(
    "digamma", FLOAT, special.digamma, vjp=(lambda g, _y, x: mul(g, trigamma(x)),), opaque=_LIBRARY, samples=_positive
)
trigamma: Primitive = elementwise(
    "trigamma",
    FLOAT,
    special.trigamma,
    vjp=(lambda g, _y, x: mul(g, mul(registered("zeta")(3.0, x), -2.0)),),
    opaque=_LIBRARY,
    samples=_positive,
)
nextafter: Primitive = elementwise(
    "nextafter",
    FLOAT,
    np.nextafter,
    vjp=_STEP,
    opaque="a step of one ULP, which no model needs inside a kernel: computed by the library",
    samples=_float_pair,
)


def _erfinv(m: Machine, x: Any) -> Any:
    """The inverse of erf.

    Polynomials of M. Giles (Approximating the erfinv function, GPU Computing Gems, 2010), one in the middle and one in the tails.
    """
    if m.dtype(x) is dtypes.float64:
        return erfinv64(m, x)
    d = m.dtype(x)
    a = m.abs(x)
    rest = m.sub(1.0, a)
    w = m.neg(vm.log(m, m.mul(rest, m.add(a, 1.0))))

    def polynomial(t: Any, coefficients: tuple[float, ...]) -> Any:
        p = m.const(coefficients[0], d)
        for c in coefficients[1:]:
            p = m.fma(p, t, m.const(c, d))
        return p

    middle = polynomial(
        m.sub(w, 2.5),
        (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
         0.246640727, 1.50140941),
    )  # fmt: skip
    tail = polynomial(
        m.sub(m.sqrt(m.maximum(w, 5.0)), 3.0),
        (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
         1.00167406, 2.83297682),
    )  # fmt: skip
    y = m.mul(m.where(m.lt(w, 5.0), middle, tail), a)
    y = m.where(m.lt(x, 0.0), m.neg(y), y)
    y = m.where(m.eq(x, 0.0), x, m.where(m.eq(a, 1.0), m.mul(x, float("inf")), y))
    return m.where(m.gt(a, 1.0), float("nan"), y)


erfinv: Primitive = elementwise(
    "erfinv",
    FLOAT,
    special.by_definition(_erfinv),
    vjp=(lambda g, y, _x: mul(g, mul(exp(mul(y, y)), math.sqrt(math.pi) / 2)),),
    scalar=_erfinv,
    samples=_unit,
    doc="erfinv(x): the y in (-inf, inf) with erf(y) = x.",
)
