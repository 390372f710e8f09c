"""Choosing, limiting, mixing and comparing: functions of several elements, filling and copying in place."""

from __future__ import annotations

from typing import Any

from flame import dtypes
from flame.autograd.tape import assign
from flame.functions import fused
from flame.functions.elementwise import MAXIMUM, MINIMUM, PUBLIC, WHERE, public
from flame.functions.promotion import (
    as_floating,
    check_fits,
    deliver,
    expand,
    of_booleans,
    operand,
    promoted,
    result_type,
    tensor_operand,
    to_dtype,
    with_tensor,
)
from flame.functions.taking import typed
from flame.primitive import followed, registered
from flame.tensor import Tensor, method


@public()
@followed
def where(condition: Tensor, input: Any = None, other: Any = None, *, out: Tensor | None = None) -> Any:
    """input where condition, else other. With the condition alone: the indices of its true elements, as a tuple."""
    if input is None and other is None:
        return PUBLIC["nonzero"](condition, as_tuple=True)
    if isinstance(input, Tensor) and not isinstance(condition, Tensor):
        raise TypeError(f"where(): argument 'condition' must be Tensor, not {type(condition).__name__}")
    if condition.dtype.kind != "b":
        if condition.dtype is not dtypes.uint8:
            raise RuntimeError(
                f"where expected condition to be a boolean tensor, but got a tensor with dtype {condition.dtype!r}"
            )
        condition = condition != 0
    a, b = operand(input, "where", "input"), operand(other, "where")
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = PUBLIC["full"]((), a, dtype=result_type(a, b))
    return deliver(WHERE(condition, *_where_operands(a, b)), out, "where")


def _where_operands(a: Any, b: Any) -> tuple:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype is b.dtype:
        return a, b
    d = result_type(a, b)
    return to_dtype(a, d), to_dtype(b, d)


def _where_method(self: Tensor, condition: Tensor, other: Any) -> Tensor:
    return where(condition, self, other)


Tensor.where = _where_method  # type: ignore[attr-defined]


_PLAIN = (int, float)


@public("clamp", "clip")
@followed
def clamp(input: Tensor, min: Any = None, max: Any = None, *, out: Tensor | None = None) -> Tensor:
    """Elements limited to [min, max]; either may be None, a number or a tensor."""
    x = tensor_operand(input, "clamp")
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None".replace("torch.", ""))
    if type(min) in _PLAIN and type(max) in _PLAIN and x.dtype.kind == "f":
        return deliver(fused.limited(x, min, max), out, "clamp")
    if min is not None:
        xs = promoted(x, operand(min, "clamp", "min"))
        x = of_booleans(MAXIMUM, *xs)(*xs[::-1])  # (of two zeros the second is the answer: it is x's)
    if max is not None:
        xs = promoted(x, operand(max, "clamp", "max"))
        x = of_booleans(MINIMUM, *xs)(*xs[::-1])
    return deliver(x, out, "clamp")


@public("clamp_", "clip_")
def clamp_(self: Tensor, min: Any = None, max: Any = None) -> Tensor:
    return assign(self, to_dtype(clamp(self, min, max), self.dtype))


@public()
def clamp_min(input: Tensor, min: Any) -> Tensor:
    return clamp(input, min=min)


@public()
def clamp_max(input: Tensor, max: Any) -> Tensor:
    return clamp(input, max=max)


@public()
@followed
@typed
def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """input + weight * (end - input)."""
    return input + (end - input) * weight


@public()
def lerp_(self: Tensor, end: Tensor, weight: Any) -> Tensor:
    return assign(self, to_dtype(lerp(self, end, weight), self.dtype))


@public()
@followed
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """input + value * tensor1 * tensor2."""
    product = tensor1 * tensor2
    return input + (product if type(value) is int and value == 1 else product * value)


@public()
def addcmul_(self: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    return assign(self, to_dtype(addcmul(self, tensor1, tensor2, value=value), self.dtype))


@public()
@followed
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """input + value * tensor1 / tensor2."""
    quotient = tensor1 / tensor2
    return input + (quotient if type(value) is int and value == 1 else quotient * value)


@public()
def addcdiv_(self: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    return assign(self, to_dtype(addcdiv(self, tensor1, tensor2, value=value), self.dtype))


@public()
@followed
def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """log(exp(input) + exp(other)), without overflow."""
    a, b = as_floating(tensor_operand(input, "logaddexp"), tensor_operand(other, "logaddexp", "other"))
    top = MAXIMUM(a, b).detach()
    top = WHERE(registered("isinf")(top), 0.0, top)
    return PUBLIC["log"](PUBLIC["exp"](a - top) + PUBLIC["exp"](b - top)) + top


@public()
@followed
@typed
def xlogy(input: Any, other: Any) -> Tensor:
    """input * log(other), and 0 where input is 0 (NaN where other is)."""
    with_tensor(input, other, op="xlogy")
    a, b = as_floating(operand(input, "xlogy", "input"), operand(other, "xlogy"))
    b = b if isinstance(b, Tensor) else PUBLIC["full"]((), float(b), dtype=a.dtype)
    product = a * PUBLIC["log"](b)
    zero = (a == 0) & ~registered("isnan")(b) if isinstance(a, Tensor) else registered("logical_not")(registered("isnan")(b))
    return WHERE(zero, 0.0, product) if isinstance(a, Tensor) or a == 0 else product


@public()
@followed
def nan_to_num(input: Tensor, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """NaN and infinities replaced, by default with 0 and the dtype's largest and smallest number."""
    x = tensor_operand(input, "nan_to_num")
    if x.dtype.kind != "f":
        return registered("copy")(x)
    import ml_dtypes

    info = ml_dtypes.finfo(x.dtype.numpy)
    x = WHERE(registered("isnan")(x), float(nan), x)
    x = WHERE(x == float("inf"), float(info.max) if posinf is None else float(posinf), x)
    return WHERE(x == float("-inf"), float(info.min) if neginf is None else float(neginf), x)


@public()
@followed
@typed
def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """log(x / (1 - x)), x limited to [eps, 1 - eps] first if eps is given."""
    (x,) = as_floating(tensor_operand(input, "logit"))
    if eps is not None:
        x = clamp(x, eps, 1 - eps)
    return PUBLIC["log"](x / (1 - x))


@public()
@followed
def isclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Tensor:
    """|input - other| <= atol + rtol * |other|, and equal infinities."""
    a, b = tensor_operand(input, "isclose"), tensor_operand(other, "isclose", "other")
    if a.dtype is not b.dtype:
        raise RuntimeError(f"{a.dtype!r} did not match {b.dtype!r}")
    for what, v in (("rtol", rtol), ("atol", atol)):
        if v < 0:
            raise RuntimeError(f"{what} must be greater than or equal to zero, but got {v}")
    if a.dtype.kind == "b":
        return a == b
    same = a == b
    if a.dtype.kind == "f":
        close = registered("isfinite")(a) & registered("isfinite")(b) & ((a - b).abs() <= atol + rtol * b.abs())  # type: ignore[attr-defined]
        if equal_nan:
            same = same | (registered("isnan")(a) & registered("isnan")(b))
        return same | close
    return same | ((a - b).abs() <= atol + rtol * b.abs())  # type: ignore[attr-defined]


@public()
def allclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    return bool(isclose(input, other, rtol, atol, equal_nan).all())  # type: ignore[attr-defined]


@public()
def equal(input: Tensor, other: Tensor) -> bool:
    """Whether both have the same shape and elements."""
    return input.shape == other.shape and bool((input == other).all())  # type: ignore[attr-defined]


@public()
@followed
def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`value` (a number or 0-d tensor) where `mask`, else the element."""
    if mask.dtype.kind != "b":
        raise RuntimeError(f"masked_fill_ only supports boolean masks, but got mask with dtype {mask.dtype!r}")
    v = operand(value, "masked_fill", "value")
    if isinstance(v, Tensor):
        if v.ndim:
            raise RuntimeError(
                f"masked_fill only supports a 0-dimensional value tensor, but got tensor with {v.ndim} dimension(s)."
            )
        if v.is_complex() and not input.is_complex():  # type: ignore[attr-defined]
            raise RuntimeError(f"value cannot be converted to type {input.dtype!r} without overflow")
        v = to_dtype(v, input.dtype)
    elif (type(v) is float and input.dtype.kind not in "fc") or (type(v) is complex and input.dtype.kind != "c"):
        raise RuntimeError(f"value cannot be converted to type {input.dtype!r} without overflow")
    return WHERE(mask, v, input)


@public()
def masked_fill_(self: Tensor, mask: Tensor, value: Any) -> Tensor:
    return assign(self, masked_fill(self, mask, value))


@method()
def fill_(self: Tensor, value: Any) -> Tensor:
    """Every element becomes `value`, a number or 0-d tensor."""
    v = operand(value, "fill_", "value")
    if isinstance(v, Tensor):
        if v.ndim:
            raise RuntimeError(f"fill_ only supports 0-dimension value tensor but got tensor with {v.ndim} dimensions.")
        v = to_dtype(v, self.dtype)
    return assign(self, registered("full")(v, shape=tuple(self.shape), dtype=self.dtype))


@method()
def zero_(self: Tensor) -> Tensor:
    return fill_(self, 0)


@method()
def copy_(self: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """The elements of `src`, broadcast and cast, written here."""
    x = src if isinstance(src, Tensor) else PUBLIC["as_tensor"](src)
    if x.shape != self.shape:
        check_fits(self, x, "copy_")
        x = expand(x, shape=tuple(self.shape))
    x = to_dtype(x, self.dtype)
    return assign(self, registered("copy")(x))
