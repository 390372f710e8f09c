"""Reductions and limits of several operations, as functions of primitives that run as one program (`flame.autograd.fused`)."""

from __future__ import annotations

from typing import Any

from flame.autograd.fused import fixed, fused, with_number
from flame.dtypes import float32
from flame.primitive import registered

ADD, SUB, MUL, DIV, EXP, LOG, SQRT, CAST = map(registered, ("add", "sub", "mul", "div", "exp", "log", "sqrt", "cast"))
SUM, AMAX, WHERE, EQ, ISINF, RESHAPE = map(registered, ("sum", "amax", "where", "eq", "isinf", "reshape"))
MAXIMUM, MINIMUM = registered("maximum"), registered("minimum")


def wide(x: Any) -> Any:
    """What sums over it are computed in: float32 for narrower floating dtypes, so that a result is rounded once."""
    return CAST(x, dtype=float32) if x.dtype.kind == "f" and x.dtype.itemsize < 4 else x


def narrowed(y: Any, x: Any) -> Any:
    """A result computed from `wide(x)` in the dtype of x, if that is narrower."""
    return CAST(y, dtype=x.dtype) if x.dtype.kind == "f" and x.dtype.itemsize < 4 else y


def exponentials(x: Any, dim: int) -> tuple[Any, Any]:
    """x less its maximum along `dim`, and the sum of that one's exponentials."""
    z = SUB(x, AMAX(fixed(x), dim=(dim,), keepdim=True)) if x.shape[dim] else x
    return z, SUM(EXP(z), dim=(dim,), keepdim=True)


@fused
def softmax(x: Any, *, dim: int) -> Any:
    given, x = x, wide(x)
    e = EXP(SUB(x, AMAX(fixed(x), dim=(dim,), keepdim=True))) if x.shape[dim] else x
    return narrowed(DIV(e, SUM(e, dim=(dim,), keepdim=True)), given)


@fused
def log_softmax(x: Any, *, dim: int) -> Any:
    given, x = x, wide(x)
    z, total = exponentials(x, dim)
    return narrowed(SUB(z, LOG(total)), given)


@fused
def logsumexp(x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    top = AMAX(fixed(x), dim=dims, keepdim=True)
    top = WHERE(ISINF(top), 0.0, top)
    out = ADD(LOG(SUM(EXP(SUB(x, top)), dim=dims, keepdim=True)), top)
    return out if keepdim else RESHAPE(out, shape=tuple([n for i, n in enumerate(x.shape) if i not in dims]))


@fused
def var(x: Any, n: float, free: float, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    """Squared deviations from the mean over n elements, over `free`."""
    d = SUB(x, with_number(DIV, SUM(x, dim=dims, keepdim=True), n))
    return with_number(DIV, SUM(MUL(d, d), dim=dims, keepdim=keepdim), free)


@fused
def root_of_squares(x: Any, *, dims: tuple[int, ...], keepdim: bool, smooth: bool) -> Any:
    """The 2-norm; if `smooth`, with derivative 0 at 0."""
    total = SUM(MUL(x, x), dim=dims, keepdim=keepdim)
    if not smooth:
        return SQRT(total)
    zero = EQ(total, 0.0)
    return WHERE(zero, 0.0, SQRT(WHERE(zero, 1.0, total)))


@fused
def limited(x: Any, least: float, most: float) -> Any:
    """x within [least, most]; of two zeros the answer is x's, as it is the second operand."""
    return with_number(MINIMUM, with_number(MAXIMUM, x, least, first=True), most, first=True)
