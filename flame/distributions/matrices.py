"""Distributions over matrices, or with a matrix of low rank in them: Wishart, LKJCholesky, LowRankMultivariateNormal."""

from __future__ import annotations

import math
import warnings
from typing import Any

from flame.distributions import constraints
from flame.distributions.covariance import covariance_factor
from flame.distributions.distribution import HALF_LOG_TWO_PI, POSITIVE, REAL, Distribution
from flame.distributions.gamma import Beta, drawn_gamma, least
from flame.distributions.utils import broadcast_all
from flame.functions import PUBLIC
from flame.functions.random import gaussian
from flame.linalg import cholesky, slogdet, solve_triangular
from flame.primitive import broadcast_shapes
from flame.tensor import Tensor

log, mvlgamma, broadcast_to = PUBLIC["log"], PUBLIC["mvlgamma"], PUBLIC["broadcast_to"]


def _counted(n: int, like: Tensor, start: int = 0) -> Tensor:
    return PUBLIC["arange"](start, start + n, dtype=like.dtype)


class Wishart(Distribution):
    """Positive definite matrices: the sum of `df` outer products of normal vectors of this covariance, for whole `df`.

    Drawn by Bartlett's decomposition: L A Aᵀ Lᵀ, with L the covariance's Cholesky factor and A lower triangular, normal below the
    diagonal and with roots of chi-squared draws on it (Anderson, An Introduction to Multivariate Statistical Analysis, 2003).
    Raises ValueError where `df` is not greater than the number of rows less 1.
    """

    has_rsample = True
    support = constraints.positive_definite
    arg_constraints = {"df": POSITIVE}

    def __init__(
        self,
        df: Any,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        m = covariance_factor(covariance_matrix, precision_matrix, scale_tril, AssertionError)
        n = m.shape[-1]
        if not isinstance(df, Tensor):
            df = PUBLIC["tensor"](float(df), dtype=m.dtype)
        batch = broadcast_shapes(tuple(m.shape[:-2]), tuple(df.shape))
        self.df, self.scale_tril = broadcast_to(df, batch), broadcast_to(m, (*batch, n, n))
        if bool((self.df <= n - 1).any()):
            raise ValueError(f"Value of df={df} expected to be greater than ndim - 1 = {n - 1}.")
        if bool((self.df < n).any()):
            warnings.warn(
                "Low df values detected. Singular samples are highly likely to occur for ndim - 1 < df < ndim.", stacklevel=2
            )
        super().__init__(batch, (n, n), validate_args)

    @property
    def covariance_matrix(self) -> Tensor:
        return self.scale_tril @ self.scale_tril.mT

    @property
    def precision_matrix(self) -> Tensor:
        return PUBLIC["cholesky_inverse"](self.scale_tril)

    @property
    def mean(self) -> Tensor:
        return self.df[..., None, None] * self.covariance_matrix

    @property
    def mode(self) -> Tensor:
        factor = self.df - float(self.event_shape[-1] + 1)
        return PUBLIC["where"](factor > 0, factor, math.nan)[..., None, None] * self.covariance_matrix

    @property
    def variance(self) -> Tensor:
        v = self.covariance_matrix
        d = PUBLIC["diagonal"](v, 0, -2, -1)
        return self.df[..., None, None] * (v * v + d[..., :, None] * d[..., None, :])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        n = self.event_shape[-1]
        halves = (self.df.unsqueeze(-1) - _counted(n, self.df)) * 0.5
        roots = PUBLIC["sqrt"](drawn_gamma(halves, (*sample_shape, *self.batch_shape, n)) * 2.0)
        below = PUBLIC["tril"](gaussian(self._extended_shape(sample_shape), self.df.dtype), -1)
        half = self.scale_tril @ (below + PUBLIC["diag_embed"](PUBLIC["clamp"](roots, min=least(roots))))
        return half @ half.mT

    def _half_log_det(self) -> Tensor:
        return log(PUBLIC["diagonal"](self.scale_tril, 0, -2, -1)).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        n = self.event_shape[-1]
        inner = PUBLIC["cholesky_solve"](value, self.scale_tril)
        return (
            -self.df * (n * math.log(2) / 2 + self._half_log_det())
            - mvlgamma(self.df / 2.0, n)
            + (self.df - float(n + 1)) / 2.0 * slogdet(value).logabsdet
            - PUBLIC["diagonal"](inner, 0, -2, -1).sum(-1) / 2.0
        )

    def _mvdigamma(self) -> Tensor:
        n = self.event_shape[-1]
        return PUBLIC["digamma"](self.df[..., None] / 2.0 - _counted(n, self.df) / 2.0).sum(-1)

    def entropy(self) -> Tensor:
        n = self.event_shape[-1]
        return (
            (n + 1) * (n * math.log(2) / 2 + self._half_log_det())
            + mvlgamma(self.df / 2.0, n)
            - (self.df - float(n + 1)) / 2.0 * self._mvdigamma()
            + self.df * (n / 2)
        )


class LKJCholesky(Distribution):
    """Lower Cholesky factors of correlation matrices, whose density is the determinant's power `concentration` - 1.

    Drawn row by row by the onion method of Lewandowski, Kurowicka and Joe (2009): the squared length of what stands left of the
    diagonal is a beta draw, its direction is uniform. Raises ValueError where `dim` is below 2.
    """

    arg_constraints = {"concentration": POSITIVE}
    support = constraints.corr_cholesky

    def __init__(self, dim: int, concentration: Any = 1.0, validate_args: bool | None = None):
        if dim < 2:
            raise ValueError(f"Expected dim to be an integer greater than or equal to 2. Found dim={dim}.")
        self.dim = dim
        (self.concentration,) = broadcast_all(concentration)
        super().__init__(self.concentration.shape, (dim, dim), validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        row = PUBLIC["clamp"](_counted(self.dim, self.concentration, -1), min=0.0)  # 0, 0, 1, 2, ...
        rest = self.concentration.unsqueeze(-1) + 0.5 * (self.dim - 2) - row * 0.5
        lengths = Beta(row * 0.5 + 0.5, rest, False).sample(sample_shape)
        z = PUBLIC["tril"](gaussian(self._extended_shape(sample_shape), self.concentration.dtype), -1)
        squares = (z * z).sum(-1, keepdim=True)
        left = z * PUBLIC["sqrt"](lengths.unsqueeze(-1) / PUBLIC["where"](squares == 0, 1.0, squares))
        diagonal = PUBLIC["sqrt"](PUBLIC["clamp"](1.0 - (left * left).sum(-1), min=least(left)))
        return left + PUBLIC["diag_embed"](diagonal)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        rows = self.dim - 1
        a = self.concentration
        powers = 2.0 * (a - 1.0).unsqueeze(-1) + (float(self.dim) - _counted(rows, a, 2))
        unscaled = (powers * log(PUBLIC["diagonal"](value, 0, -2, -1)[..., 1:])).sum(-1)
        top = a + 0.5 * rows
        return unscaled - 0.5 * rows * math.log(math.pi) - mvlgamma(top - 0.5, rows) + PUBLIC["lgamma"](top) * rows


class LowRankMultivariateNormal(Distribution):
    """Normal vectors of covariance W Wᵀ + diag(d), `cov_factor` W of few columns: nothing of the whole covariance's size is
    inverted, but I + Wᵀ diag(1/d) W (Woodbury's identity and the determinant's lemma).

    loc [.., n], cov_factor [.., n, r], cov_diag [.., n]. Raises ValueError where these shapes do not fit each other.
    """

    has_rsample = True
    support = constraints.real_vector
    arg_constraints = {"loc": REAL, "cov_factor": REAL, "cov_diag": POSITIVE}

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, validate_args: bool | None = None):
        if loc.ndim < 1:
            raise ValueError("loc must be at least one-dimensional.")
        n = loc.shape[-1]
        if cov_factor.ndim < 2:
            raise ValueError("cov_factor must be at least two-dimensional, with optional leading batch dimensions")
        if cov_factor.shape[-2] != n:
            raise ValueError(f"cov_factor must be a batch of matrices with shape {n} x m")
        if tuple(cov_diag.shape[-1:]) != (n,):
            raise ValueError(f"cov_diag must be a batch of vectors with shape ({n},)")
        try:
            batch = broadcast_shapes(tuple(loc.shape[:-1]), tuple(cov_factor.shape[:-2]), tuple(cov_diag.shape[:-1]))
        except (RuntimeError, ValueError):
            shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in
                               (("loc", loc), ("cov_factor", cov_factor), ("cov_diag", cov_diag)))  # fmt: skip
            raise ValueError(f"Incompatible batch shapes: {shapes}") from None
        self.loc, self.cov_diag = broadcast_to(loc, (*batch, n)), broadcast_to(cov_diag, (*batch, n))
        self.cov_factor = broadcast_to(cov_factor, (*batch, n, cov_factor.shape[-1]))
        super().__init__(batch, (n,), validate_args)

    def _scaled(self) -> Tensor:
        return self.cov_factor.mT / self.cov_diag.unsqueeze(-2)

    def _capacitance(self) -> Tensor:
        """The Cholesky factor of I + Wᵀ diag(1/d) W."""
        c = self._scaled() @ self.cov_factor
        return cholesky(c + PUBLIC["eye"](c.shape[-1], dtype=c.dtype))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (self.cov_factor * self.cov_factor).sum(-1) + self.cov_diag

    @property
    def covariance_matrix(self) -> Tensor:
        return self.cov_factor @ self.cov_factor.mT + PUBLIC["diag_embed"](self.cov_diag)

    @property
    def scale_tril(self) -> Tensor:
        roots = PUBLIC["sqrt"](self.cov_diag).unsqueeze(-1)
        w = self.cov_factor / roots
        inner = w @ w.mT
        return roots * cholesky(inner + PUBLIC["eye"](inner.shape[-1], dtype=inner.dtype))

    @property
    def precision_matrix(self) -> Tensor:
        a = solve_triangular(self._capacitance(), self._scaled(), upper=False)
        return PUBLIC["diag_embed"](1.0 / self.cov_diag) - a.mT @ a

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        z = gaussian((*shape[:-1], self.cov_factor.shape[-1]), self.loc.dtype)
        e = gaussian(shape, self.loc.dtype)
        return self.loc + (self.cov_factor @ z.unsqueeze(-1)).squeeze(-1) + PUBLIC["sqrt"](self.cov_diag) * e

    def _log_det(self, c: Tensor) -> Tensor:
        return 2.0 * log(PUBLIC["diagonal"](c, 0, -2, -1)).sum(-1) + log(self.cov_diag).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        self._valid(value)
        apart = value - self.loc
        c = self._capacitance()
        inner = solve_triangular(c, self._scaled() @ apart.unsqueeze(-1), upper=False).squeeze(-1)
        distance = (apart * apart / self.cov_diag).sum(-1) - (inner * inner).sum(-1)
        return -0.5 * (self._log_det(c) + distance) - self.loc.shape[-1] * HALF_LOG_TWO_PI

    def entropy(self) -> Tensor:
        return 0.5 * self._log_det(self._capacitance()) + self.loc.shape[-1] * (0.5 + HALF_LOG_TWO_PI)
