"""Numerical calculus along a dimension: differences, integrals by the trapezoidal rule, derivatives."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

from flame import dtypes
from flame.functions.elementwise import PUBLIC
from flame.functions.forms import formed
from flame.functions.promotion import tensor_operand, to_dtype
from flame.functions.reduction import sum
from flame.functions.shape import RESHAPE, take_slice, wrap_dim
from flame.functions.taking import typed
from flame.primitive import registered
from flame.tensor import Tensor

FULL, COPY = map(registered, ("full", "copy"))

CUMMAX, CUMMIN, CUMSUM = registered("cummax_index"), registered("cummin_index"), registered("cumsum")


@formed()
def diff(input: Tensor, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Tensor:
    """Differences of neighbours along `dim`, `n` times; `prepend` and `append` are joined on first."""
    x = tensor_operand(input, "diff")
    if x.ndim == 0:
        raise RuntimeError("diff expects input to be at least one-dimensional")
    d = wrap_dim(dim, x.ndim, "diff")
    if n < 0:
        raise RuntimeError(f"order must be non-negative but got {n}")
    parts = [p for p in (prepend, x, append) if p is not None]
    for p in parts:
        if p.ndim != x.ndim:
            raise RuntimeError("diff expects prepend or append to be the same dimension as input")
    x = PUBLIC["cat"](parts, d) if len(parts) > 1 else x
    if n == 0:
        return COPY(x)
    for _ in builtins.range(builtins.min(n, x.shape[d])):
        size = x.shape[d]
        if size == 0:
            break
        a, b = take_slice(x, d, 1, size), take_slice(x, d, 0, size - 1)
        x = registered("logical_xor")(a, b) if x.dtype.kind == "b" else a - b
    return x


def _spread(x: Tensor, values: Tensor, d: int) -> Tensor:
    """A vector along dimension d of x."""
    return RESHAPE(values, shape=tuple(values.numel() if i == d else 1 for i in builtins.range(x.ndim)))


def _steps(x: Tensor, d: int, spacing: Any, dx: Any) -> Any:
    """The widths between neighbours along d: a number, or a tensor that broadcasts."""
    if spacing is None:
        return 1.0 if dx is None else dx
    s = tensor_operand(spacing, "trapezoid", "x")
    if s.ndim == 1:
        if s.numel() != x.shape[d]:
            raise RuntimeError(
                f"trapezoid: There must be one `x` value for each sample point, got {s.numel()} and {x.shape[d]}"
            )
        return _spread(x, take_slice(s, 0, 1, s.numel()) - take_slice(s, 0, 0, s.numel() - 1), d)
    lead = x.ndim - s.ndim
    s = RESHAPE(s, shape=(*[1] * builtins.max(lead, 0), *s.shape))
    k = d + builtins.max(-lead, 0)
    return take_slice(s, k, 1, s.shape[k]) - take_slice(s, k, 0, s.shape[k] - 1)


def _areas(y: Tensor, x: Any, dx: Any, d: int) -> Tensor:
    n = y.shape[d]
    total = take_slice(y, d, 1, n) + take_slice(y, d, 0, n - 1)
    return (
        total * _steps(y, d, x, dx) * 0.5
        if y.dtype.kind == "f" or x is not None or isinstance(dx, float)
        else (total * _steps(y, d, x, dx) / 2)
    )


@formed("trapezoid", "trapz", method=False)
def trapezoid(y: Tensor, x: Any = None, *, dx: Any = None, dim: int = -1) -> Tensor:
    """The integral by the trapezoidal rule along `dim`; sample points `x`, or `dx` apart."""
    v = tensor_operand(y, "trapezoid", "y")
    d = wrap_dim(dim, v.ndim, "trapezoid")
    if v.dtype.kind == "b" or (isinstance(x, Tensor) and x.dtype.kind == "b"):
        raise RuntimeError("trapezoid: received a bool input for `x` or `y`, but bool is not supported")
    if v.ndim and v.shape[d] == 0:
        s = tuple(v.shape)
        return FULL(0, shape=s[:d] + s[d + 1 :], dtype=v.dtype)
    return sum(_areas(v, x, dx, d), d)


@formed(method=False)
def cumulative_trapezoid(y: Tensor, x: Any = None, *, dx: Any = None, dim: int = -1) -> Tensor:
    """The running integral by the trapezoidal rule along `dim`."""
    v = tensor_operand(y, "cumulative_trapezoid", "y")
    d = wrap_dim(dim, v.ndim, "cumulative_trapezoid")
    if v.dtype.kind == "b" or (isinstance(x, Tensor) and x.dtype.kind == "b"):
        raise RuntimeError("cumulative_trapezoid: received a bool input for `x` or `y`, but bool is not supported")
    return PUBLIC["cumsum"](_areas(v, x, dx, d), d)


@typed
def gradient(input: Tensor, *, spacing: Any = 1, dim: Any = None, edge_order: int = 1) -> list:
    """Derivatives along each of `dim` by central differences, one-sided of order `edge_order` (1 or 2) at the ends.

    `spacing` is a number, numbers, or vectors of coordinates, one a dimension. Gives a list with a tensor a dimension.
    """
    x = tensor_operand(input, "gradient")
    if edge_order not in (1, 2):
        raise RuntimeError("gradient only supports edge_order=1 and edge_order=2.")
    dims = (
        list(builtins.range(x.ndim))
        if dim is None
        else [wrap_dim(d, x.ndim, "gradient") for d in (dim if isinstance(dim, Sequence) else [dim])]
    )
    if len(set(dims)) != len(dims):
        raise RuntimeError(f"gradient: dim {dims} contains a dimension more than once")
    spaces = list(spacing) if isinstance(spacing, Sequence) else [1 if spacing is None else spacing] * len(dims)
    if len(spaces) != len(dims):
        raise RuntimeError(
            f"gradient expected spacing to be unspecified, a scalar or a list of length {len(dims)}, but got {len(spaces)}"
        )
    for d in dims:
        if x.shape[d] < edge_order + 1:
            raise RuntimeError(
                f"gradient expected each dimension size to be at least edge_order+1, but got {x.shape[d]} in dimension {d}"
            )
    y = x if x.dtype.kind in "fc" else to_dtype(x, dtypes.get_default_dtype())
    return [_slope(y, d, h, edge_order) for d, h in zip(dims, spaces, strict=True)]


def _slope(x: Tensor, d: int, spacing: Any, edge_order: int) -> Tensor:
    n = x.shape[d]
    if isinstance(spacing, Tensor) and spacing.ndim == 1:
        if spacing.numel() != n:
            raise RuntimeError(f"gradient expected {n} coordinates along dimension {d}, but got {spacing.numel()}")
        h = _spread(x, take_slice(spacing, 0, 1, n) - take_slice(spacing, 0, 0, n - 1), d)
    else:
        step = spacing if not isinstance(spacing, Tensor) else RESHAPE(spacing, shape=())
        one = FULL(1.0, shape=tuple(n - 1 if i == d else 1 for i in builtins.range(x.ndim)), dtype=x.dtype)
        h = one * step

    def part(t: Tensor, a: int, b: int) -> Tensor:
        size = t.shape[d]
        return take_slice(t, d, a % (size + 1) if a >= 0 else size + a, b if b > 0 else size + b)

    a, b = part(h, 0, n - 2), part(h, 1, n - 1)
    inner = (
        part(x, 2, n) * (a / (b * (a + b))) + part(x, 1, n - 1) * ((b - a) / (a * b)) - part(x, 0, n - 2) * (b / (a * (a + b)))
    )
    first, last = part(h, 0, 1), part(h, n - 2, n - 1)
    if edge_order == 1:
        left = (part(x, 1, 2) - part(x, 0, 1)) / first
        right = (part(x, n - 1, n) - part(x, n - 2, n - 1)) / last
    else:
        p, q = first, part(h, 1, 2)
        left = (
            part(x, 0, 1) * (-(p * 2 + q) / (p * (p + q)))
            + part(x, 1, 2) * ((p + q) / (p * q))
            - part(x, 2, 3) * (p / (q * (p + q)))
        )
        p, q = part(h, n - 3, n - 2), last
        right = (
            part(x, n - 3, n - 2) * (q / (p * (p + q)))
            - part(x, n - 2, n - 1) * ((p + q) / (p * q))
            + part(x, n - 1, n) * ((q * 2 + p) / (q * (p + q)))
        )
    return PUBLIC["cat"]([left, inner, right], d)


PUBLIC["gradient"] = gradient
