"""Invertible maps between tensors with the logarithm of their derivative, under torch.distributions.transforms' names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flame.distributions import constraints
from flame.distributions.constraints import Constraint
from flame.functions import PUBLIC
from flame.nn.functional.activation import logsigmoid, softplus
from flame.primitive import broadcast_shapes
from flame.tensor import Tensor

log, exp = PUBLIC["log"], PUBLIC["exp"]


class Transform:
    """y = t(x), x = t.inv(y), log |dy / dx| = t.log_abs_det_jacobian(x, y).

    Subclasses give `_call`, `_inverse` and `log_abs_det_jacobian`, the sets they map between, and whether they are bijective and of
    one sign. `domain_event_dim` and `codomain_event_dim` count the dimensions that are mapped as a whole.
    """

    domain: Constraint = constraints.real
    codomain: Constraint = constraints.real
    bijective = True
    sign: Any = 1

    def __init__(self, cache_size: int = 0):
        self._cache_size = cache_size
        self._last: tuple[Any, Any] = (None, None)

    @property
    def event_dim(self) -> int:
        return self.domain.event_dim

    @property
    def inv(self) -> Transform:
        return _Inverse(self)

    def __call__(self, x: Tensor) -> Tensor:
        if self._cache_size and x is self._last[0]:
            return self._last[1]
        y = self._call(x)
        if self._cache_size:
            self._last = x, y
        return y

    def _inverted(self, y: Tensor) -> Tensor:
        if self._cache_size and y is self._last[1]:
            return self._last[0]
        return self._inverse(y)

    def _call(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}._call is not known")

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}.log_abs_det_jacobian is not known")

    def forward_shape(self, shape: Any) -> Any:
        return shape

    def inverse_shape(self, shape: Any) -> Any:
        return shape

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def summed(x: Tensor, n: int) -> Tensor:
    """Summed over the last n dimensions."""
    return x.sum(tuple(range(-n, 0))) if n else x


class _Inverse(Transform):
    """A transform the other way round."""

    def __init__(self, other: Transform):
        super().__init__()
        self._other = other
        self.domain, self.codomain = other.codomain, other.domain
        self.bijective = other.bijective

    @property
    def sign(self) -> Any:  # type: ignore[override]
        return self._other.sign

    @property
    def inv(self) -> Transform:
        return self._other

    def __call__(self, x: Tensor) -> Tensor:
        return self._other._inverted(x)

    def _inverted(self, y: Tensor) -> Tensor:
        return self._other(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self._other.log_abs_det_jacobian(y, x)

    def forward_shape(self, shape: Any) -> Any:
        return self._other.inverse_shape(shape)

    def inverse_shape(self, shape: Any) -> Any:
        return self._other.forward_shape(shape)

    def __repr__(self) -> str:
        return f"Inverse({self._other!r})"


class ComposeTransform(Transform):
    """Transforms one after the other."""

    def __init__(self, parts: Sequence[Transform], cache_size: int = 0):
        super().__init__(cache_size)
        self.parts = list(parts)
        self.bijective = all(p.bijective for p in self.parts)
        if self.parts:
            n = self.parts[-1].codomain.event_dim
            for p in reversed(self.parts):
                n = max(n + p.domain.event_dim - p.codomain.event_dim, p.domain.event_dim)
            self.domain = _over(self.parts[0].domain, n)
            n = self.parts[0].domain.event_dim
            for p in self.parts:
                n = max(n + p.codomain.event_dim - p.domain.event_dim, p.codomain.event_dim)
            self.codomain = _over(self.parts[-1].codomain, n)

    @property
    def sign(self) -> Any:  # type: ignore[override]
        return math.prod(p.sign for p in self.parts)

    def _call(self, x: Tensor) -> Tensor:
        for p in self.parts:
            x = p(x)
        return x

    def _inverse(self, y: Tensor) -> Tensor:
        for p in reversed(self.parts):
            y = p._inverted(y)
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        n = self.domain.event_dim
        total: Any = None
        for p in self.parts:
            z = p(x)
            part = summed(p.log_abs_det_jacobian(x, z), n - p.domain.event_dim)
            total = part if total is None else total + part
            n += p.codomain.event_dim - p.domain.event_dim
            x = z
        return PUBLIC["zeros_like"](x) if total is None else total

    def forward_shape(self, shape: Any) -> Any:
        for p in self.parts:
            shape = p.forward_shape(shape)
        return shape

    def inverse_shape(self, shape: Any) -> Any:
        for p in reversed(self.parts):
            shape = p.inverse_shape(shape)
        return shape

    def __repr__(self) -> str:
        return f"ComposeTransform({self.parts!r})"


def _over(c: Constraint, event_dim: int) -> Constraint:
    return constraints.independent(c, event_dim - c.event_dim) if event_dim > c.event_dim else c


class IndependentTransform(Transform):
    """A transform whose last batch dimensions are mapped as a whole: log-derivatives are summed over them."""

    def __init__(self, base_transform: Transform, reinterpreted_batch_ndims: int, cache_size: int = 0):
        super().__init__(cache_size)
        self.base_transform, self.reinterpreted_batch_ndims = base_transform, reinterpreted_batch_ndims
        self.domain = constraints.independent(base_transform.domain, reinterpreted_batch_ndims)
        self.codomain = constraints.independent(base_transform.codomain, reinterpreted_batch_ndims)
        self.bijective = base_transform.bijective

    def _call(self, x: Tensor) -> Tensor:
        return self.base_transform(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.base_transform.inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return summed(self.base_transform.log_abs_det_jacobian(x, y), self.reinterpreted_batch_ndims)


class ReshapeTransform(Transform):
    """Another shape of each event."""

    def __init__(self, in_shape: Any, out_shape: Any, cache_size: int = 0):
        super().__init__(cache_size)
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        if math.prod(self.in_shape) != math.prod(self.out_shape):
            raise ValueError("in_shape, out_shape have different numbers of elements")
        self.domain = _over(constraints.real, len(self.in_shape))
        self.codomain = _over(constraints.real, len(self.out_shape))

    def _call(self, x: Tensor) -> Tensor:
        return x.reshape(tuple(x.shape)[: x.ndim - len(self.in_shape)] + self.out_shape)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.reshape(tuple(y.shape)[: y.ndim - len(self.out_shape)] + self.in_shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return PUBLIC["zeros"](tuple(x.shape)[: x.ndim - len(self.in_shape)], dtype=x.dtype)

    def _changed(self, shape: Any, a: tuple, b: tuple) -> tuple:
        cut = len(shape) - len(a)
        if cut < 0 or tuple(shape)[cut:] != a:
            raise ValueError(f"Shape mismatch: expected {tuple(shape)[max(cut, 0) :]} but got {a}")
        return tuple(shape)[:cut] + b

    def forward_shape(self, shape: Any) -> Any:
        return self._changed(shape, self.in_shape, self.out_shape)

    def inverse_shape(self, shape: Any) -> Any:
        return self._changed(shape, self.out_shape, self.in_shape)


class ExpTransform(Transform):
    """y = exp(x)."""

    codomain = constraints.positive

    def _call(self, x: Tensor) -> Tensor:
        return exp(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return log(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x


class PowerTransform(Transform):
    """y = x ** exponent, of positive numbers."""

    domain = codomain = constraints.positive

    def __init__(self, exponent: Any, cache_size: int = 0):
        super().__init__(cache_size)
        self.exponent = exponent if isinstance(exponent, Tensor) else PUBLIC["tensor"](float(exponent))

    @property
    def sign(self) -> Any:  # type: ignore[override]
        return self.exponent.sign()

    def _call(self, x: Tensor) -> Tensor:
        return x**self.exponent

    def _inverse(self, y: Tensor) -> Tensor:
        return y ** (1.0 / self.exponent)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return log(PUBLIC["abs"](self.exponent * y / x))

    def forward_shape(self, shape: Any) -> Any:
        return broadcast_shapes(tuple(shape), tuple(self.exponent.shape))

    inverse_shape = forward_shape


class SigmoidTransform(Transform):
    """y = 1 / (1 + exp(-x)), kept away from 0 and 1."""

    codomain = constraints.unit_interval

    def _call(self, x: Tensor) -> Tensor:
        low = 2.2250738585072014e-308 if x.dtype.itemsize == 8 else 1.1754943508222875e-38
        eps = 2.0**-53 if x.dtype.itemsize == 8 else 2.0**-24
        return PUBLIC["clamp"](PUBLIC["sigmoid"](x), low, 1 - eps)

    def _inverse(self, y: Tensor) -> Tensor:
        return log(y) - PUBLIC["log1p"](-y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -softplus(-x) - softplus(x)


class SoftplusTransform(Transform):
    """y = log(1 + exp(x))."""

    codomain = constraints.positive

    def _call(self, x: Tensor) -> Tensor:
        return softplus(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return log(-PUBLIC["expm1"](-y)) + y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return logsigmoid(x)


class TanhTransform(Transform):
    """y = tanh(x)."""

    codomain = constraints.interval(-1.0, 1.0)

    def _call(self, x: Tensor) -> Tensor:
        return PUBLIC["tanh"](x)

    def _inverse(self, y: Tensor) -> Tensor:
        return PUBLIC["atanh"](y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return (math.log(2.0) - x - softplus(x * -2.0)) * 2.0


class AbsTransform(Transform):
    """y = |x|; not bijective: its inverse is y itself."""

    codomain = constraints.positive
    bijective = False

    def _call(self, x: Tensor) -> Tensor:
        return PUBLIC["abs"](x)

    def _inverse(self, y: Tensor) -> Tensor:
        return y


class AffineTransform(Transform):
    """y = loc + scale * x, over the last `event_dim` dimensions as a whole."""

    def __init__(self, loc: Any, scale: Any, event_dim: int = 0, cache_size: int = 0):
        super().__init__(cache_size)
        self.loc, self.scale = loc, scale
        self.domain = self.codomain = _over(constraints.real, event_dim)

    @property
    def sign(self) -> Any:  # type: ignore[override]
        return self.scale.sign() if isinstance(self.scale, Tensor) else (self.scale > 0) - (self.scale < 0)

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.scale * x

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) / self.scale

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        s = self.scale
        size = log(PUBLIC["abs"](s)) if isinstance(s, Tensor) else math.log(abs(s)) + PUBLIC["zeros_like"](x)
        return summed(PUBLIC["broadcast_to"](size, tuple(x.shape)), self.event_dim)

    def forward_shape(self, shape: Any) -> Any:
        more = [tuple(v.shape) for v in (self.loc, self.scale) if isinstance(v, Tensor)]
        return broadcast_shapes(tuple(shape), *more)

    inverse_shape = forward_shape


class SoftmaxTransform(Transform):
    """exp, scaled to sum 1; not bijective: the inverse is log."""

    domain, codomain = constraints.real_vector, constraints.simplex
    bijective = False

    def _call(self, x: Tensor) -> Tensor:
        e = exp(x - PUBLIC["amax"](x, -1, True))
        return e / e.sum(-1, keepdim=True)

    def _inverse(self, y: Tensor) -> Tensor:
        return log(y)


class StickBreakingTransform(Transform):
    """Vectors of n real numbers to n + 1 positive ones of sum 1: each takes a share of what those before it left."""

    domain, codomain = constraints.real_vector, constraints.simplex

    def _shares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = x.shape[-1] - PUBLIC["arange"](x.shape[-1]).to(x.dtype)
        return PUBLIC["sigmoid"](x - log(left)), left

    def _call(self, x: Tensor) -> Tensor:
        z, _ = self._shares(x)
        rest = PUBLIC["cumprod"](1.0 - z, -1)
        return PUBLIC["constant_pad_nd"](z, (0, 1), 1.0) * PUBLIC["constant_pad_nd"](rest, (1, 0), 1.0)

    def _inverse(self, y: Tensor) -> Tensor:
        first = y[..., :-1]
        left = first.shape[-1] - PUBLIC["arange"](first.shape[-1]).to(y.dtype)
        rest = PUBLIC["clamp"](1.0 - PUBLIC["cumsum"](first, -1), min=1.1754943508222875e-38)
        return log(first) - log(rest) + log(left)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        left = x.shape[-1] - PUBLIC["arange"](x.shape[-1]).to(x.dtype)
        z = x - log(left)
        return (-z + logsigmoid(z) + log(y[..., :-1])).sum(-1)

    def forward_shape(self, shape: Any) -> Any:
        return (*tuple(shape)[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: Any) -> Any:
        return (*tuple(shape)[:-1], shape[-1] - 1)


class LowerCholeskyTransform(Transform):
    """Matrices to lower triangular ones with a positive diagonal: its exponential."""

    domain, codomain = _over(constraints.real, 2), constraints.lower_cholesky

    def _call(self, x: Tensor) -> Tensor:
        return x.tril(-1) + PUBLIC["diag_embed"](exp(x.diagonal(dim1=-2, dim2=-1)))

    def _inverse(self, y: Tensor) -> Tensor:
        return y.tril(-1) + PUBLIC["diag_embed"](log(y.diagonal(dim1=-2, dim2=-1)))


class CumulativeDistributionTransform(Transform):
    """A distribution's cdf, whose inverse is its icdf."""

    codomain = constraints.unit_interval

    def __init__(self, distribution: Any, cache_size: int = 0):
        super().__init__(cache_size)
        self.distribution = distribution
        self.domain = distribution.support

    def _call(self, x: Tensor) -> Tensor:
        return self.distribution.cdf(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.distribution.icdf(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.distribution.log_prob(x)


class StackTransform(Transform):
    """A transform for each slice along a dimension."""

    def __init__(self, tseq: Sequence[Transform], dim: int = 0, cache_size: int = 0):
        super().__init__(cache_size)
        self.transforms, self.dim = list(tseq), dim
        self.bijective = all(t.bijective for t in self.transforms)

    def _each(self, f: Any, *xs: Tensor) -> Tensor:
        if xs[0].shape[self.dim] != len(self.transforms):
            raise ValueError(
                f"StackTransform: dimension {self.dim} has size {xs[0].shape[self.dim]}, not {len(self.transforms)}"
            )
        rows = zip(self.transforms, *(PUBLIC["unbind"](x, self.dim) for x in xs), strict=True)
        return PUBLIC["stack"]([f(t, *row) for t, *row in rows], self.dim)

    def _call(self, x: Tensor) -> Tensor:
        return self._each(lambda t, v: t(v), x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._each(lambda t, v: t.inv(v), y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._each(lambda t, v, w: t.log_abs_det_jacobian(v, w), x, y)


identity_transform = ComposeTransform([])

__all__ = [
    "AbsTransform", "AffineTransform", "ComposeTransform", "CumulativeDistributionTransform", "ExpTransform",
    "IndependentTransform", "LowerCholeskyTransform", "PowerTransform", "ReshapeTransform", "SigmoidTransform",
    "SoftmaxTransform", "SoftplusTransform", "StackTransform", "StickBreakingTransform", "TanhTransform", "Transform",
    "identity_transform",
]  # fmt: skip
