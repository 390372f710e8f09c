"""The standard's elementwise functions: flame's own, by dtype kinds, with promotion by dtype alone.

kinds: b bool, i signed, u unsigned, f real floating, c complex floating
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame import dtypes
from flame.array_api.data_types import of_kind, scalar, together
from flame.functions import PUBLIC
from flame.functions.promotion import number, to_dtype
from flame.primitive import registered
from flame.tensor import Tensor

WHERE, MINIMUM, MAXIMUM, CONJUGATE = map(registered, ("where", "minimum", "maximum", "conjugate"))
_FLOATING, _REAL, _NUMERIC, _ANY = "fc", "iuf", "iufc", "biufc"


def _unary(name: str, kinds: str, function: Callable[[Tensor], Tensor] | None = None) -> Callable:
    compute = function or PUBLIC[name]

    def f(x: Tensor, /) -> Tensor:
        return compute(of_kind(x, kinds, name))

    f.__name__ = f.__qualname__ = name
    f.__doc__ = getattr(compute, "__doc__", None)
    return f


def _binary(name: str, kinds: str, public: str = "") -> Callable:
    compute = PUBLIC[public or name]

    def f(x1: Any, x2: Any, /) -> Tensor:
        return compute(*together(name, kinds, x1, x2))

    f.__name__ = f.__qualname__ = name
    f.__doc__ = getattr(compute, "__doc__", None)
    return f


def _whole(name: str) -> Callable[[Tensor], Tensor]:
    """Rounding: integers are as they are."""
    return lambda x: PUBLIC[name](x) if x.dtype.kind == "f" else registered("copy")(x)


def _round(x: Tensor) -> Tensor:
    if x.dtype.kind != "c":
        return _whole("round")(x)
    return PUBLIC["complex"](PUBLIC["round"](PUBLIC["real"](x)), PUBLIC["round"](PUBLIC["imag"](x)))


def _sign(x: Tensor) -> Tensor:
    if x.dtype.kind == "c":
        return PUBLIC["sgn"](x)
    return PUBLIC["sign"](x) if x.dtype.kind != "f" else WHERE(PUBLIC["isnan"](x), x, PUBLIC["sign"](x))


def _always(value: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: registered("full")(value, shape=tuple(x.shape), dtype=dtypes.bool_)


def _asked(name: str, of_integers: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: PUBLIC[name](x) if x.dtype.kind in "fc" else _always(of_integers)(x)


def _negative(x: Tensor) -> Tensor:
    return PUBLIC["neg"](x)


abs = _unary("abs", _NUMERIC)
acos, acosh = _unary("acos", _FLOATING), _unary("acosh", _FLOATING)
asin, asinh = _unary("asin", _FLOATING), _unary("asinh", _FLOATING)
atan, atanh = _unary("atan", _FLOATING), _unary("atanh", _FLOATING)
cos, cosh, sin, sinh, tan, tanh = (_unary(n, _FLOATING) for n in ("cos", "cosh", "sin", "sinh", "tan", "tanh"))
exp, expm1, log, log1p, log2, log10 = (_unary(n, _FLOATING) for n in ("exp", "expm1", "log", "log1p", "log2", "log10"))
sqrt, reciprocal = _unary("sqrt", _FLOATING), _unary("reciprocal", _FLOATING)
square = _unary("square", _NUMERIC)
positive, negative = _unary("positive", _NUMERIC), _unary("negative", _NUMERIC, _negative)
ceil, floor, trunc = (_unary(n, _REAL, _whole(n)) for n in ("ceil", "floor", "trunc"))
round, sign = _unary("round", _NUMERIC, _round), _unary("sign", _NUMERIC, _sign)
isfinite, isinf, isnan = (_unary(n, _NUMERIC, _asked(n, n == "isfinite")) for n in ("isfinite", "isinf", "isnan"))
signbit = _unary("signbit", "f")
logical_not = _unary("logical_not", "b")
bitwise_invert = _unary("bitwise_invert", "biu", PUBLIC["bitwise_not"])
conj = _unary("conj", _NUMERIC, lambda x: CONJUGATE(x) if x.dtype.kind == "c" else x)
real = _unary("real", _NUMERIC)
imag = _unary("imag", _NUMERIC, lambda x: PUBLIC["imag"](x) if x.dtype.kind == "c" else PUBLIC["zeros_like"](x))

add, subtract, multiply = _binary("add", _NUMERIC), _binary("subtract", _NUMERIC), _binary("multiply", _NUMERIC)
divide, pow = _binary("divide", _FLOATING), _binary("pow", _NUMERIC)
floor_divide, remainder = _binary("floor_divide", _REAL), _binary("remainder", _REAL)
maximum, minimum = _binary("maximum", _REAL), _binary("minimum", _REAL)
atan2, copysign, hypot, logaddexp, nextafter = (
    _binary(n, "f") for n in ("atan2", "copysign", "hypot", "logaddexp", "nextafter")
)
equal, not_equal = _binary("equal", _ANY, "eq"), _binary("not_equal", _ANY)
greater, greater_equal = _binary("greater", _REAL), _binary("greater_equal", _REAL)
less, less_equal = _binary("less", _REAL), _binary("less_equal", _REAL)
logical_and, logical_or, logical_xor = (_binary(n, "b") for n in ("logical_and", "logical_or", "logical_xor"))
bitwise_and, bitwise_or, bitwise_xor = (_binary(n, "biu") for n in ("bitwise_and", "bitwise_or", "bitwise_xor"))
bitwise_left_shift, bitwise_right_shift = _binary("bitwise_left_shift", "iu"), _binary("bitwise_right_shift", "iu")


def clip(x: Tensor, /, min: Any = None, max: Any = None) -> Tensor:
    """Elements moved into [min, max], which broadcast with x; the dtype is x's. NaN stays."""
    y = of_kind(x, _REAL, "clip")
    for bound, nearest in ((min, MAXIMUM), (max, MINIMUM)):
        if bound is None:
            continue
        if isinstance(bound, Tensor):
            b = to_dtype(of_kind(bound, _REAL, "clip", "min, max"), y.dtype)
        else:
            n = number(bound)
            if n is None:
                raise TypeError(f"clip: min and max must be arrays or numbers, not {type(bound).__name__}")
            if y.dtype.kind != "f":
                if isinstance(n, float):
                    raise TypeError(f"clip: a float bound does not go with {y.dtype!r}")
                limits = dtypes_limits(y.dtype)
                n = limits[0] if n < limits[0] else limits[1] if n > limits[1] else n
            b = scalar(n, y.dtype, "clip")
        y = nearest(y, b)
    return registered("copy")(y) if y is x else y


def dtypes_limits(d: dtypes.dtype) -> tuple[int, int]:
    """The least and largest number of an integer dtype."""
    bits = 8 * d.itemsize
    return (0, (1 << bits) - 1) if d.kind == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)


def where(condition: Tensor, x1: Any, x2: Any, /) -> Tensor:
    """x1 where the condition holds, else x2; all three broadcast."""
    c = of_kind(condition, "b", "where", "condition")
    return WHERE(c, *together("where", _ANY, x1, x2))


def matrix_transpose(x: Tensor, /) -> Tensor:
    """The last two dimensions exchanged."""
    if of_kind(x, _ANY, "matrix_transpose").ndim < 2:
        raise ValueError(f"matrix_transpose: expected at least two dimensions, but got {list(x.shape)}")
    return x.mT
