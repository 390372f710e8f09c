"""More functions of elements, composed of primitives: angles, signs, steps, exponents, and the special functions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flame import dtypes
from flame.dtypes import dtype as DType
from flame.functions.elementwise import PUBLIC, binary
from flame.functions.forms import formed
from flame.functions.promotion import (
    as_floating,
    operand,
    result_type,
    tensor_operand,
    to_dtype,
)
from flame.functions.taking import typed
from flame.primitive import registered
from flame.tensor import Tensor

WHOLE = PUBLIC["round"]
ROUND = registered("round")
WHERE, FULL, COPY, ABS, SIGN, BITCAST, EXPAND = map(registered, ("where", "full", "copy", "abs", "sign", "bitcast", "expand"))


def floating(x: Any, op: str) -> Tensor:
    """A tensor argument in a floating dtype: its own, or the default one."""
    return as_floating(tensor_operand(x, op))[0]


def filled(x: Any, value: Any, dtype: DType | None = None) -> Tensor:
    return FULL(value, shape=tuple(x.shape), dtype=dtype or x.dtype)


# -------------------------------------------------------------------- one operand


@formed(inplace=True)
@typed
def deg2rad(input: Tensor) -> Tensor:
    """Degrees as radians."""
    return floating(input, "deg2rad") * (math.pi / 180)


@formed(inplace=True)
@typed
def rad2deg(input: Tensor) -> Tensor:
    """Radians as degrees."""
    return floating(input, "rad2deg") * (180 / math.pi)


@formed(inplace=True)
def sinc(input: Tensor) -> Tensor:
    """sin(pi x) / (pi x), and 1 at 0; smooth there to all orders that rules reach through a short series."""
    x = floating(input, "sinc") * math.pi
    tiny = PUBLIC["abs"](x) < 1e-2
    safe = WHERE(tiny, 1.0, x)
    y = x * x
    return WHERE(tiny, 1.0 - y * (1 / 6 - y * (1 / 120 - y / 5040)), registered("sin")(safe) / safe)


@formed(method=True)
def signbit(input: Tensor) -> Tensor:
    """Whether the sign bit is set: true for -0.0 and negative NaN too."""
    x = tensor_operand(input, "signbit")
    if x.dtype.kind in "bu":
        return filled(x, False, dtypes.bool_)
    if x.dtype.kind != "f":
        return x < 0
    return BITCAST(x, dtype=dtypes.BY_NAME[f"int{8 * x.dtype.itemsize}"]) < 0


@formed()
def positive(input: Tensor) -> Tensor:
    """The tensor itself. Raises RuntimeError for booleans."""
    x = tensor_operand(input, "positive")
    if x.dtype.kind == "b":
        raise RuntimeError("The `+` operator, on a bool tensor is not supported.")
    return x


@formed()
@typed
def isposinf(input: Tensor) -> Tensor:
    x = tensor_operand(input, "isposinf")
    return x == math.inf if x.dtype.kind == "f" else filled(x, False, dtypes.bool_)


@formed()
@typed
def isneginf(input: Tensor) -> Tensor:
    x = tensor_operand(input, "isneginf")
    return x == -math.inf if x.dtype.kind == "f" else filled(x, False, dtypes.bool_)


@formed()
def fill(input: Tensor, value: Any) -> Tensor:
    """A tensor of this shape and dtype in which every element is `value`, a number or a 0-d tensor."""
    x = tensor_operand(input, "fill")
    v = operand(value, "fill", "value")
    if isinstance(v, Tensor):
        if v.ndim:
            raise RuntimeError(f"fill only supports 0-dimension value tensor but got tensor with {v.ndim} dimensions.")
        return COPY(EXPAND(to_dtype(v, x.dtype), shape=tuple(x.shape)))
    if type(v) is float and x.dtype.kind not in "fc":
        v = bool(v) if x.dtype.kind == "b" else int(v)
    return filled(x, v)


@formed("round", inplace=True)
def round_(input: Tensor, *, decimals: int = 0) -> Tensor:
    """To the nearest number of `decimals` decimals, halves to the even one."""
    x = tensor_operand(input, "round")
    if x.dtype.kind != "f":
        if decimals or x.dtype.kind == "b":
            raise NotImplementedError(f'"round_cpu" not implemented for {x.dtype!r} with decimals={decimals}')
        return WHOLE(x)
    if not decimals:
        return ROUND(x)
    ten = float(10 ** abs(decimals))
    return ROUND(x * ten) / ten if decimals > 0 else ROUND(x / ten) * ten


class Frexp(NamedTuple):
    """What frexp gives."""

    mantissa: Tensor
    exponent: Tensor


@formed()
def frexp(input: Tensor) -> Frexp:
    """Mantissa in [0.5, 1) and exponent (int32) with input == mantissa * 2 ** exponent. Raises RuntimeError for integers."""
    x = tensor_operand(input, "frexp")
    if x.dtype.kind != "f":
        raise RuntimeError("frexp() only supports floating-point dtypes")
    return Frexp(*registered("frexp")(x))


@formed("sgn", inplace=True)
def sgn(input: Tensor) -> Tensor:
    """-1, 0 or 1."""
    x = tensor_operand(input, "sgn")
    return COPY(x) if x.dtype.kind == "b" else SIGN(x)


PUBLIC["sign"] = PUBLIC["sgn"]
Tensor.sign = sgn  # type: ignore[attr-defined]


# -------------------------------------------------------------------- two operands


binary("gcd", registered("gcd"))
binary("lcm", registered("lcm"))
binary("igamma", registered("igamma"), floating=True)
binary("igammac", registered("igammac"), floating=True)


@formed(inplace=True)
def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 below 0, 1 above, `values` at 0. Raises RuntimeError where the dtypes differ."""
    x, v = tensor_operand(input, "heaviside"), tensor_operand(values, "heaviside", "values")
    if x.dtype is not v.dtype:
        raise RuntimeError("heaviside is not yet implemented for tensors with different dtypes.")
    if x.dtype.kind == "b":
        return x | v
    above = WHERE(x > 0, FULL(1, shape=(), dtype=x.dtype), FULL(0, shape=(), dtype=x.dtype))
    return WHERE((x == 0).detach(), v, above)


@formed(inplace=True)
def ldexp(input: Tensor, other: Tensor) -> Tensor:
    """input * 2 ** other."""
    a, b = tensor_operand(input, "ldexp"), tensor_operand(other, "ldexp", "other")
    if b.dtype.kind == "b" and a.dtype.kind == "f":
        raise NotImplementedError(f'"ldexp" not implemented for exponents of {b.dtype!r}: cast them to an integer dtype first')
    d = result_type(a, b)
    d = d if d.kind in "fc" else dtypes.get_default_dtype()
    return to_dtype(a, d) * PUBLIC["exp2"](to_dtype(b, d))


@formed(inplace=False)
def logaddexp2(input: Tensor, other: Tensor) -> Tensor:
    """log2(2 ** input + 2 ** other), without overflow."""
    a, b = as_floating(tensor_operand(input, "logaddexp2"), tensor_operand(other, "logaddexp2", "other"))
    top, low = PUBLIC["maximum"](a, b), PUBLIC["minimum"](a, b)
    same = a == b
    apart = WHERE(same, 0.0, low - top)
    return top + WHERE(same, 1.0, PUBLIC["log1p"](registered("exp2")(apart)) * (1 / math.log(2)))


# -------------------------------------------------------------------- special functions


@formed(inplace=True)
@typed
def mvlgamma(input: Tensor, p: int) -> Tensor:
    """The logarithm of the gamma function of p dimensions, plus its constant: the sum of lgamma(x - k / 2) over k < p."""
    if not isinstance(p, int) or p < 1:
        raise RuntimeError("p has to be greater than or equal to 1")
    x = floating(input, "mvlgamma")
    y = registered("lgamma")(x)
    for k in range(1, p):
        y = y + registered("lgamma")(x - k / 2)
    return y + p * (p - 1) / 4 * math.log(math.pi)


def polygamma(n: Any, input: Any) -> Tensor:
    """The n-th derivative of digamma. `n` is an int that is not negative."""
    if isinstance(n, Tensor):
        n, input = input, n  # the method: x.polygamma(n)
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"polygamma(): argument 'n' must be int, not {type(n).__name__}")
    if n < 0:
        raise RuntimeError("polygamma(n, x) does not support negative n.")
    x = floating(input, "polygamma")
    if n == 0:
        return registered("digamma")(x)
    if n == 1:
        return registered("trigamma")(x)
    return registered("zeta")(float(n + 1), x) * float((-1) ** (n + 1) * math.factorial(n))


formed("polygamma", inplace=True)(polygamma)
