"""Complex tensors: made of real ones, taken apart, conjugated. They are eager: compiled code runs these between its kernels."""

from __future__ import annotations

import math
from typing import Any

from flame import dtypes
from flame.functions.elementwise import PUBLIC, public
from flame.functions.forms import formed
from flame.functions.mathematics import filled
from flame.functions.promotion import as_floating, tensor_operand, to_dtype
from flame.functions.shape import select
from flame.primitive import registered
from flame.tensor import Tensor

VIEW_AS_REAL, VIEW_AS_COMPLEX, CONJUGATE = map(registered, ("view_as_real", "view_as_complex", "conjugate"))
WHERE = registered("where")


@public()
def view_as_real(input: Tensor) -> Tensor:
    """Real and imaginary part as a last dimension of size 2: a view. Raises RuntimeError for real tensors."""
    x = tensor_operand(input, "view_as_real")
    if x.dtype.kind != "c":
        raise RuntimeError("view_as_real is only supported for complex tensors")
    return VIEW_AS_REAL(x)


@public()
def view_as_complex(input: Tensor) -> Tensor:
    """A last dimension of size 2 as real and imaginary part: a view. Raises RuntimeError where sizes or strides forbid it."""
    x = tensor_operand(input, "view_as_complex")
    VIEW_AS_COMPLEX.infer(x.spec)
    if x.stride(-1) != 1:
        raise RuntimeError("Tensor must have a last dimension with stride 1")
    if any(s % 2 for s in x.stride()[:-1]):
        raise RuntimeError("Tensor must have a stride divisible by 2 for all but last dimension")
    return VIEW_AS_COMPLEX(x)


def _joined(a: Tensor, b: Tensor) -> Tensor:
    return VIEW_AS_COMPLEX(PUBLIC["stack"]([a, b], -1))


@formed(method=False)
def complex(real: Tensor, imag: Tensor) -> Tensor:
    """A complex tensor of its parts, float32 or float64, which broadcast."""
    a, b = tensor_operand(real, "complex", "real"), tensor_operand(imag, "complex", "imag")
    for x in (a, b):
        if x.dtype not in (dtypes.float32, dtypes.float64):
            raise RuntimeError(f"Expected both inputs to be Half, Float or Double tensors but got {a.dtype!r} and {b.dtype!r}")
    if a.dtype is not b.dtype:
        raise RuntimeError(f"Expected object of scalar type {a.dtype!r} but got scalar type {b.dtype!r} for second argument")
    return _joined(*PUBLIC["broadcast_tensors"](a, b))


@formed(method=False)
def polar(abs: Tensor, angle: Tensor) -> Tensor:
    """abs * exp(i angle)."""
    a, b = tensor_operand(abs, "polar", "abs"), tensor_operand(angle, "polar", "angle")
    if a.dtype is not b.dtype or a.dtype not in (dtypes.float32, dtypes.float64):
        raise RuntimeError(
            f"Expected both inputs to be Float or Double tensors of one dtype but got {a.dtype!r} and {b.dtype!r}"
        )
    return _joined(a * PUBLIC["cos"](b), a * PUBLIC["sin"](b))


def real(input: Tensor) -> Tensor:
    """The real parts: a view. A real tensor is its own."""
    x = tensor_operand(input, "real")
    return select(VIEW_AS_REAL(x), -1, 0) if x.dtype.kind == "c" else x


def imag(input: Tensor) -> Tensor:
    """The imaginary parts: a view. Raises RuntimeError for real tensors."""
    x = tensor_operand(input, "imag")
    if x.dtype.kind != "c":
        raise RuntimeError(f"imag is not implemented for tensors with non-complex dtypes, but got {x.dtype!r}")
    return select(VIEW_AS_REAL(x), -1, 1)


def _set(part: Any) -> Any:
    def put(self: Tensor, value: Any) -> None:
        part(self).copy_(value)

    return put


PUBLIC.update(real=real, imag=imag)
Tensor.real = property(real, _set(real))  # type: ignore[attr-defined]
Tensor.imag = property(imag, _set(imag))  # type: ignore[attr-defined]


@formed("conj", "conj_physical", inplace=True)
def conj(input: Tensor) -> Tensor:
    """The complex conjugate; a real tensor itself."""
    x = tensor_operand(input, "conj")
    return CONJUGATE(x) if x.dtype.kind == "c" else x


@public("resolve_conj", "resolve_neg")
def resolve_conj(input: Tensor) -> Tensor:
    """The tensor itself: conjugates are computed at once."""
    return tensor_operand(input, "resolve_conj")


Tensor.is_conj = lambda self: False  # type: ignore[attr-defined]
Tensor.is_neg = lambda self: False  # type: ignore[attr-defined]
PUBLIC["is_conj"] = PUBLIC["is_neg"] = lambda input: False
Tensor.mH = property(lambda self: conj(self.mT))  # type: ignore[attr-defined]


def _hermitian(self: Tensor) -> Tensor:
    """The matrix transposed and conjugated. Raises RuntimeError for other numbers of dimensions than 2 and 0."""
    if self.ndim not in (0, 2):
        raise RuntimeError(
            f"tensor.H is only supported on matrices (2-D tensors). Got {self.ndim}-D tensor: of batches of matrices, use mH"
        )
    return conj(PUBLIC["t"](self))


Tensor.H = property(_hermitian)  # type: ignore[attr-defined]
PUBLIC["adjoint"] = Tensor.adjoint = lambda self: self.mH  # type: ignore[attr-defined]

_absolute, _sgn = PUBLIC["abs"], PUBLIC["sgn"]


@formed("abs", "absolute")
def absolute(input: Tensor) -> Tensor:
    """The absolute value; of complex numbers the modulus, which is real."""
    x = tensor_operand(input, "abs")
    if x.dtype.kind != "c":
        return _absolute(x)
    parts = VIEW_AS_REAL(x)
    a, b = select(parts, -1, 0), select(parts, -1, 1)
    zero = (a == 0) & (b == 0)
    return WHERE(zero, 0.0, registered("hypot")(WHERE(zero, 1.0, a), WHERE(zero, 1.0, b)))


@formed("sgn", inplace=True)
def sgn(input: Tensor) -> Tensor:
    """-1, 0 or 1; of a complex number the number over its modulus."""
    x = tensor_operand(input, "sgn")
    if x.dtype.kind != "c":
        return _sgn(x)
    size = absolute(x)
    return x / to_dtype(WHERE(size == 0, 1.0, size), x.dtype)


@formed()
def angle(input: Tensor) -> Tensor:
    """The angle of complex numbers; of real ones 0, or pi where negative."""
    x = tensor_operand(input, "angle")
    if x.dtype.kind == "c":
        return registered("atan2")(imag(x), real(x))
    (x,) = as_floating(x)
    flat = WHERE((x < 0).detach(), filled(x, math.pi), filled(x, 0.0))
    return WHERE(registered("isnan")(x), x, flat)


@formed()
def isreal(input: Tensor) -> Tensor:
    """Whether the imaginary part is 0."""
    x = tensor_operand(input, "isreal")
    return imag(x) == 0 if x.dtype.kind == "c" else filled(x, True, dtypes.bool_)


@formed("vdot")
def vdot(input: Tensor, other: Tensor) -> Tensor:
    """The dot product of vectors, the first conjugated."""
    return PUBLIC["dot"](conj(input), other)


Tensor.__abs__ = lambda self: absolute(self)  # type: ignore[method-assign]
