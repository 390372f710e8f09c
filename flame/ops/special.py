"""Eager meanings of the functions that NumPy has not: erf, erfc, lgamma, digamma, trigamma, sigmoid.

float64 goes through the C library where it has the function; float32 is computed by the same definitions as in kernels, a
block at a time so that the intermediate arrays stay in cache. Operands are NumPy arrays of float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flame.ops import machine, vector_math
from flame.ops.machine import NumpyMachine

_BLOCK = 16384


class _InQuiet(NumpyMachine):
    """NumpyMachine for code that runs with warnings off already, on float32: it sets nothing at each operation."""

    def emit(self, op: str, *operands: Any) -> Any:
        if op == "fma":
            out = operands[0] * operands[1]
            out += operands[2]
            return out
        f = _UFUNCS.get(op)
        return f(*operands) if f else super().emit(op, *operands)


_UFUNCS: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "lt": np.less,
    "shift_right": np.right_shift,
    "shift_left": np.left_shift,
}
_machine = _InQuiet()


def _in_blocks(define: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    for i in range(0, flat.size, _BLOCK):
        out[i : i + _BLOCK] = define(_machine, flat[i : i + _BLOCK])
    return out.reshape(np.shape(x))


def _library(f: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(f, 1, 1)(x), x.dtype) if x.size else np.empty(x.shape, x.dtype)


def erf(x: np.ndarray) -> np.ndarray:
    return _in_blocks(vector_math.erf, x) if x.dtype == np.float32 else _library(math.erf, x)


def erfc(x: np.ndarray) -> np.ndarray:
    return _in_blocks(vector_math.erfc, x) if x.dtype == np.float32 else _library(math.erfc, x)


def lgamma(x: np.ndarray) -> np.ndarray:
    return _library(machine.lgamma, x)


#: 1, -1 and 0 as arrays: ufuncs take these at a third of what a Python number costs them
_UNITS = {np.dtype(t): (np.array(1, t), np.array(-1, t), np.array(0, t)) for t in (np.float16, np.float32, np.float64)}


def sigmoid(x: np.ndarray) -> np.ndarray:
    """exp(min(x, 0)) / (1 + exp(-|x|)): neither overflows, and below 0 they are the same."""
    one, minus, zero = _UNITS[x.dtype]
    return np.exp(np.minimum(x, zero)) / (np.exp(np.copysign(x, minus)) + one)


#: B(2k) of the asymptotic series, and how far arguments are shifted up before it is used
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)
_SHIFT = 10


def digamma(x: np.ndarray) -> np.ndarray:
    """The derivative of lgamma: reflection below 0, recurrence up to 10, then the asymptotic series. NaN at the poles but 0."""
    x = np.asarray(x)
    z = x.astype(np.float64)
    low = z <= 0
    up = np.where(low, 1 - z, z)
    below = np.zeros_like(up)
    for _ in range(_SHIFT):
        step = up < _SHIFT
        below += np.where(step, 1 / np.where(step, up, 1), 0)
        up = np.where(step, up + 1, up)
    square = 1 / (up * up)
    series = np.zeros_like(up)
    for k in range(len(_BERNOULLI), 0, -1):
        series = (series + _BERNOULLI[k - 1] / (2 * k)) * square
    value = np.log(up) - 0.5 / up - series - below
    # the fraction alone goes into the tangent, which keeps it accurate far from 0
    value = np.where(low, value - math.pi / np.tan(math.pi * (z - np.rint(z))), value)
    value = np.where(low & (z == np.rint(z)), np.where(z == 0, np.copysign(np.inf, -z), np.nan), value)
    return value.astype(x.dtype)


def trigamma(x: np.ndarray) -> np.ndarray:
    """The derivative of digamma, in the same three steps."""
    x = np.asarray(x)
    z = x.astype(np.float64)
    low = z <= 0
    up = np.where(low, 1 - z, z)
    below = np.zeros_like(up)
    for _ in range(_SHIFT):
        step = up < _SHIFT
        below += np.where(step, 1 / np.where(step, up * up, 1), 0)
        up = np.where(step, up + 1, up)
    square = 1 / (up * up)
    series = np.zeros_like(up)
    for k in range(len(_BERNOULLI), 0, -1):
        series = (series + _BERNOULLI[k - 1]) * square
    value = 1 / up + 0.5 * square + series / up + below
    reflected = (math.pi / np.sin(math.pi * (z - np.rint(z)))) ** 2 - value
    return np.where(low, reflected, value).astype(x.dtype)


def by_definition(define: Callable[..., Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The eager meaning of a one-operand function that only its definition on a machine gives."""

    def eager(x: np.ndarray) -> np.ndarray:
        return _in_blocks(define, x)

    return eager
