"""The basic operations that every kernel target has, as one abstract machine; and the machine that is NumPy.

A `Scalar.define` is written against this class once, and gives NumPy values (`NumpyMachine`, for eager and tests), kernel
statements, LLVM IR and Triton source. Values are the machine's own; Python numbers may stand for constants of the other
operand's dtype. There is no broadcasting to think of: a value is one element (or a vector of lanes).

Semantics: IEEE arithmetic in the operands' dtype, without reassociation. `div` of integers is not basic (see elementwise's
floor and truncating division). `maximum` and `minimum` give NaN if either operand is NaN. Comparisons give bool, and are
false on NaN but for `ne`. `shift_right` is arithmetic on signed, logical on unsigned. Shifts by the width or more are not
defined. `mul_high` is the upper half of an unsigned 32-bit product. `cast` float -> int truncates (out of range: undefined),
to bool is `!= 0`, float -> narrower float rounds to nearest even. `bitcast` keeps the bits, between equal widths. `rint`
rounds halves to even.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from flame import dtypes
from flame.dtypes import dtype

#: name -> number of operands; the names are also those of kernel IR ops
BASIC: dict[str, int] = {
    "add": 2, "sub": 2, "mul": 2, "div": 2, "fma": 3, "neg": 1, "abs": 1, "sqrt": 1,
    "floor": 1, "ceil": 1, "trunc": 1, "rint": 1, "maximum": 2, "minimum": 2,
    "eq": 2, "ne": 2, "lt": 2, "le": 2, "gt": 2, "ge": 2,
    "logical_and": 2, "logical_or": 2, "logical_not": 1,
    "bitwise_and": 2, "bitwise_or": 2, "bitwise_xor": 2, "bitwise_not": 1,
    "shift_left": 2, "shift_right": 2, "mul_high": 2, "floor_divide_int": 2, "remainder_int": 2,
    "where": 3,
}  # fmt: skip
COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
#: float64 functions that a machine takes from its platform's mathematics library (`libm(name, *x)`), and Triton from tl
LIBM = frozenset(
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh erf erfc pow atan2 fmod lgamma".split()
)


class Machine:
    """Base of all machines: the basic operations by name, over `emit`."""

    #: functions of `LIBM` that the platform has in float32 too, within 2 units in the last place and in few instructions
    native: frozenset[str] = frozenset()
    #: `libm` takes the lanes of a float64 vector one by one: what is written out in basic operations is faster
    vectors: bool = False

    def emit(self, op: str, *operands: Any) -> Any:
        """Apply the basic operation `op`; at least one operand is a value, the others may be numbers of its dtype."""
        raise NotImplementedError(op)

    def const(self, value: bool | int | float, d: dtype) -> Any:
        raise NotImplementedError

    def cast(self, x: Any, d: dtype) -> Any:
        raise NotImplementedError

    def bitcast(self, x: Any, d: dtype) -> Any:
        raise NotImplementedError

    def dtype(self, x: Any) -> dtype:
        raise NotImplementedError

    def libm(self, name: str, *x: Any) -> Any:
        """A function of `LIBM` on float64 (or float32) values, at the platform's accuracy."""
        raise NotImplementedError

    #: functions that are written out in float64 whatever the platform's library has
    written: frozenset[str] = frozenset()

    def far_quadrant(self, x: Any, q: Any, r: Any, low: Any) -> tuple[Any, Any, Any] | None:
        """Quarter turns and radians left of a float64, right for large numbers too; None where `rarely` is for them."""
        return None

    def rarely(self, name: str, condition: Any, value: Any, *x: Any) -> Any:
        """`value`, but where `condition` holds, as it rarely does, a function of `LIBM` of x: taken only where a lane needs it."""
        return self.where(condition, self.libm(name, *x), value)

    def __getattr__(self, name: str) -> Any:
        if name not in BASIC:
            raise AttributeError(f"{type(self).__name__} has no operation {name!r}")

        def op(*operands: Any) -> Any:
            return self.emit(name, *operands)

        return op


_NUMPY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
    "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint,
    "maximum": np.maximum, "minimum": np.minimum,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "logical_and": np.logical_and, "logical_or": np.logical_or, "logical_not": np.logical_not,
    "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
    "bitwise_not": np.bitwise_not, "shift_left": np.left_shift, "shift_right": np.right_shift,
    "floor_divide_int": np.floor_divide, "remainder_int": np.remainder, "where": np.where,
}  # fmt: skip


class NumpyMachine(Machine):
    """Values are NumPy arrays. `fma` rounds twice (NumPy has no fused form): up to 1 ULP more error than a kernel."""

    def emit(self, op: str, *operands: Any) -> Any:
        with np.errstate(all="ignore"):
            if op == "fma":
                return operands[0] * operands[1] + operands[2]
            if op == "mul_high":
                a, b = (np.asarray(x, np.uint32).astype(np.uint64) for x in operands)
                return ((a * b) >> np.uint64(32)).astype(np.uint32)
            like = next(x.dtype for x in reversed(operands) if isinstance(x, np.ndarray | np.generic))
            return _NUMPY[op](*(x if isinstance(x, np.ndarray | np.generic) else np.asarray(x, like) for x in operands))

    def const(self, value: bool | int | float, d: dtype) -> Any:
        return np.asarray(value, d.numpy)

    def cast(self, x: Any, d: dtype) -> Any:
        with np.errstate(all="ignore"):
            return np.asarray(x).astype(d.numpy)

    def bitcast(self, x: Any, d: dtype) -> Any:
        return np.asarray(x).view(d.numpy)

    def dtype(self, x: Any) -> dtype:
        return dtypes.from_numpy_dtype(np.asarray(x).dtype)

    def libm(self, name: str, *x: Any) -> Any:
        spelled = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "atan2": "arctan2", "pow": "power"}.get(name, name)
        with np.errstate(all="ignore"):
            if (f := getattr(np, spelled, None)) is None:
                of_one = lgamma if name == "lgamma" else _never_raising(getattr(math, name))
                f = np.vectorize(of_one, otypes=[np.asarray(x[0]).dtype])
            return f(*x)


def _never_raising(f: Any) -> Any:
    """A function of `math` with C's answer where Python raises: infinite at poles and beyond float64."""

    def g(x: float) -> float:
        try:
            return f(x)
        except (ValueError, OverflowError):
            return math.inf

    return g


def _lgamma() -> Any:
    """The C library's lgamma of one float, that compiled code calls too: Python's own is off by thousands of units beside its
    zeros, at 2 for one. Python's where a system has no such library to ask."""
    try:
        f = ctypes.PyDLL(None).lgamma
    except (AttributeError, OSError, TypeError):
        return _never_raising(math.lgamma)
    f.restype, f.argtypes = ctypes.c_double, [ctypes.c_double]
    return f


lgamma: Any = _lgamma()
