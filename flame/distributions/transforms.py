"""Invertible maps between tensors with the logarithm of their derivative, under torch.distributions.transforms' names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flame.distributions import constraints
from flame.distributions.transform import ComposeTransform, IndependentTransform, ReshapeTransform, Transform, over, summed
from flame.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from flame.functions import PUBLIC
from flame.legacy import finfo
from flame.linalg import cholesky
from flame.nn.functional.activation import logsigmoid, softplus
from flame.primitive import broadcast_shapes
from flame.tensor import Tensor

log, exp = PUBLIC["log"], PUBLIC["exp"]


class ExpTransform(Transform):
    """y = exp(x)."""

    bijective = True
    _same = ()

    codomain = constraints.positive

    def _call(self, x: Tensor) -> Tensor:
        return exp(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return log(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x


class PowerTransform(Transform):
    """y = x ** exponent, of positive numbers."""

    bijective = True
    _same = ("exponent",)

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

    bijective = True
    _same = ()

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

    bijective = True
    _same = ()

    codomain = constraints.positive

    def _call(self, x: Tensor) -> Tensor:
        return softplus(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return log(-PUBLIC["expm1"](-y)) + y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return logsigmoid(x)


class TanhTransform(Transform):
    """y = tanh(x)."""

    bijective = True
    _same = ()

    codomain = constraints.interval(-1.0, 1.0)

    def _call(self, x: Tensor) -> Tensor:
        return PUBLIC["tanh"](x)

    def _inverse(self, y: Tensor) -> Tensor:
        return PUBLIC["atanh"](y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return (math.log(2.0) - x - softplus(x * -2.0)) * 2.0


class AbsTransform(Transform):
    """y = |x|; not bijective: its inverse is y itself."""

    _same = ()

    codomain = constraints.positive
    bijective = False

    def _call(self, x: Tensor) -> Tensor:
        return PUBLIC["abs"](x)

    def _inverse(self, y: Tensor) -> Tensor:
        return y


class AffineTransform(Transform):
    """y = loc + scale * x, over the last `event_dim` dimensions as a whole."""

    bijective = True
    _same = ("loc", "scale", "event_dim")

    def __init__(self, loc: Any, scale: Any, event_dim: int = 0, cache_size: int = 0):
        super().__init__(cache_size)
        self.loc, self.scale = loc, scale
        self.domain = self.codomain = over(constraints.real, event_dim)

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

    _same = ()

    domain, codomain = constraints.real_vector, constraints.simplex
    bijective = False

    def _call(self, x: Tensor) -> Tensor:
        e = exp(x - PUBLIC["amax"](x, -1, True))
        return e / e.sum(-1, keepdim=True)

    def _inverse(self, y: Tensor) -> Tensor:
        return log(y)


class StickBreakingTransform(Transform):
    """Vectors of n real numbers to n + 1 positive ones of sum 1: each takes a share of what those before it left."""

    bijective = True
    _same = ()

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

    _same = ()

    domain, codomain = over(constraints.real, 2), constraints.lower_cholesky

    def _call(self, x: Tensor) -> Tensor:
        return x.tril(-1) + PUBLIC["diag_embed"](exp(x.diagonal(dim1=-2, dim2=-1)))

    def _inverse(self, y: Tensor) -> Tensor:
        return y.tril(-1) + PUBLIC["diag_embed"](log(y.diagonal(dim1=-2, dim2=-1)))


class PositiveDefiniteTransform(Transform):
    """Matrices to positive definite ones: L L^T, where L is what LowerCholeskyTransform makes of them."""

    _same = ()
    domain, codomain = over(constraints.real, 2), constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        factor = LowerCholeskyTransform()(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return LowerCholeskyTransform().inv(cholesky(y))


class CorrCholeskyTransform(Transform):
    """Vectors of n (n - 1) / 2 real numbers to lower Cholesky factors of n by n correlation matrices: rows of length 1.

    The numbers fill the strict lower triangle row by row; tanh makes each the part that its place takes, with its sign, of the
    length which the places before it in the row have left (Lewandowski, Kurowicka and Joe 2009, as Stan's manual spells it out).
    """

    bijective = True
    _same = ()
    domain, codomain = constraints.real_vector, constraints.corr_cholesky

    def _call(self, x: Tensor) -> Tensor:
        eps = finfo(x.dtype).eps
        parts = vec_to_tril_matrix(PUBLIC["clamp"](PUBLIC["tanh"](x), -1 + eps, 1 - eps), -1)
        left = PUBLIC["cumprod"](PUBLIC["sqrt"](1.0 - parts * parts), -1)
        n = parts.shape[-1]
        whole = parts + PUBLIC["eye"](n, dtype=x.dtype, device=x.device)
        return whole * PUBLIC["constant_pad_nd"](left[..., :-1], (1, 0), 1.0)

    def _inverse(self, y: Tensor) -> Tensor:
        left = PUBLIC["constant_pad_nd"](1.0 - PUBLIC["cumsum"](y * y, -1)[..., :-1], (1, 0), 1.0)
        return PUBLIC["atanh"](tril_matrix_to_vec(y, -1) / PUBLIC["sqrt"](tril_matrix_to_vec(left, -1)))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the strict lower triangle of y by x: y has more numbers than that."""
        left = tril_matrix_to_vec(1.0 - PUBLIC["cumsum"](y * y, -1), -2)
        return 0.5 * log(left).sum(-1) - 2.0 * (x + softplus(-2.0 * x) - math.log(2.0)).sum(-1)

    def forward_shape(self, shape: Any) -> Any:
        if len(shape) < 1:
            raise ValueError("Too few dimensions on input")
        n = (1 + math.isqrt(1 + 8 * shape[-1])) // 2
        if n * (n - 1) // 2 != shape[-1]:
            raise ValueError(f"Input is not a flattened lower-diagonal number: {shape[-1]} is not n * (n - 1) / 2")
        return (*tuple(shape)[:-1], n, n)

    def inverse_shape(self, shape: Any) -> Any:
        if len(shape) < 2:
            raise ValueError("Too few dimensions on input")
        if shape[-2] != shape[-1]:
            raise ValueError("Input is not square")
        return (*tuple(shape)[:-2], shape[-1] * (shape[-1] - 1) // 2)


class CumulativeDistributionTransform(Transform):
    """A distribution's cdf, whose inverse is its icdf."""

    bijective = True
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
        self.domain = constraints.stack([t.domain for t in self.transforms], dim)
        self.codomain = constraints.stack([t.codomain for t in self.transforms], dim)

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


class CatTransform(Transform):
    """A transform for each run of lengths[i] positions along a dimension (of one position each where no lengths are given)."""

    def __init__(self, tseq: Sequence[Transform], dim: int = 0, lengths: Sequence[int] | None = None, cache_size: int = 0):
        super().__init__(cache_size)
        if not all(isinstance(t, Transform) for t in tseq):
            raise ValueError(f"tseq: expected Transforms, got {list(tseq)!r}")
        self.transforms, self.dim = list(tseq), dim
        self.lengths = [1] * len(self.transforms) if lengths is None else list(lengths)
        if len(self.lengths) != len(self.transforms):
            raise ValueError(f"CatTransform: {len(self.transforms)} transforms, but {len(self.lengths)} lengths")
        self.bijective = all(t.bijective for t in self.transforms)
        self.domain = constraints.cat([t.domain for t in self.transforms], dim, self.lengths)
        self.codomain = constraints.cat([t.codomain for t in self.transforms], dim, self.lengths)

    @property
    def length(self) -> int:
        return sum(self.lengths)

    def _split(self, x: Tensor) -> Sequence[Tensor]:
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] != self.length:
            raise ValueError(f"CatTransform: expected {self.length} positions along dimension {self.dim} of {tuple(x.shape)}")
        return PUBLIC["split"](x, self.lengths, self.dim)

    def _each(self, f: Any, *xs: Tensor) -> list[Tensor]:
        return [f(t, *parts) for t, *parts in zip(self.transforms, *map(self._split, xs), strict=True)]

    def _call(self, x: Tensor) -> Tensor:
        return PUBLIC["cat"](self._each(lambda t, v: t(v), x), self.dim)

    def _inverse(self, y: Tensor) -> Tensor:
        return PUBLIC["cat"](self._each(lambda t, v: t.inv(v), y), self.dim)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each position, or of each event: where `dim` lies within the events, their sum."""
        n = self.event_dim

        def part(t: Transform, v: Tensor, w: Tensor) -> Tensor:
            return summed(t.log_abs_det_jacobian(v, w), n - t.event_dim)

        parts = self._each(part, x, y)
        dim = self.dim - x.ndim if self.dim >= 0 else self.dim
        return PUBLIC["cat"](parts, dim + n) if dim + n < 0 else sum(parts[1:], parts[0])


identity_transform = ComposeTransform([])

__all__ = [
    "AbsTransform", "AffineTransform", "CatTransform", "ComposeTransform", "CorrCholeskyTransform",
    "CumulativeDistributionTransform", "ExpTransform", "IndependentTransform", "LowerCholeskyTransform",
    "PositiveDefiniteTransform", "PowerTransform", "ReshapeTransform", "SigmoidTransform",
    "SoftmaxTransform", "SoftplusTransform", "StackTransform", "StickBreakingTransform", "TanhTransform", "Transform",
    "identity_transform",
]  # fmt: skip
