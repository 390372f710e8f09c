"""Ready parametrizations: weight normalisation, spectral normalisation, orthogonal matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from flame import linalg
from flame.autograd import no_grad
from flame.functions.elementwise import PUBLIC
from flame.nn import functional as F
from flame.nn.init import orthonormal
from flame.nn.modules.conv import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from flame.nn.modules.module import Module
from flame.nn.utils.parametrize import register_parametrization
from flame.tensor import Tensor


def norm_except_dim(v: Tensor, dim: int) -> Tensor:
    """The 2-norms of the slices of v along `dim`, with dimensions kept; -1: the norm of all of v, a number."""
    if dim == -1:
        return (v * v).sum().sqrt()
    rest = tuple(d for d in range(v.ndim) if d != dim)
    return (v * v).sum(rest, True).sqrt() if rest else v.abs()


class _WeightNorm(Module):
    """g v / |v| (Salimans and Kingma, 2016)."""

    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = -1 if dim is None else dim

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return weight_v * (weight_g / norm_except_dim(weight_v, self.dim))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return norm_except_dim(weight, self.dim), weight


def _tensor(module: Module, name: str) -> Tensor:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    return weight


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """A weight as its length (`original0`, one a slice along `dim`, or one in all for None) and its direction (`original1`)."""
    _tensor(module, name)
    register_parametrization(module, name, _WeightNorm(dim), unsafe=True)
    return module


def as_matrix(weight: Tensor, dim: int) -> Tensor:
    """The weight with `dim` in front and the others flattened."""
    if dim:
        weight = weight.permute(dim, *(d for d in range(weight.ndim) if d != dim))
    return weight.flatten(1)


def default_dim(module: Module) -> int:
    """Which dimension of a layer's weight counts its outputs."""
    return 1 if isinstance(module, ConvTranspose1d | ConvTranspose2d | ConvTranspose3d) else 0


class _SpectralNorm(Module):
    """The weight over its largest singular value, found by power iteration (Miyato et al., 2018)."""

    def __init__(self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12) -> None:
        super().__init__()
        n = weight.ndim
        if not -n <= dim < n:
            raise IndexError(f"Dimension out of range (expected to be in range of [-{n}, {n - 1}] but got {dim})")
        if n_power_iterations <= 0:
            raise ValueError(f"Expected n_power_iterations to be positive, but got n_power_iterations={n_power_iterations}")
        self.dim, self.eps, self.n_power_iterations = dim % n, eps, n_power_iterations
        if n > 1:
            with no_grad():
                m = as_matrix(weight.detach(), self.dim)
                for name, size in (("_u", m.shape[0]), ("_v", m.shape[1])):
                    self.register_buffer(name, F.normalize(PUBLIC["randn"](size, dtype=m.dtype), dim=0, eps=eps))
            self._iterate(m, 15)

    def _iterate(self, m: Tensor, times: int) -> None:
        with no_grad():
            for _ in range(times):
                self._u.copy_(F.normalize(m @ self._v, dim=0, eps=self.eps))
                self._v.copy_(F.normalize(m.mT @ self._u, dim=0, eps=self.eps))

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        m = as_matrix(weight, self.dim)
        if self.training:
            self._iterate(m.detach(), self.n_power_iterations)
        u, v = self._u.clone(), self._v.clone()  # the next call writes over them
        return weight / u.dot(m @ v)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


def spectral_norm(
    module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> Module:
    """Divide a weight by its largest singular value; `dim` counts the rows of its matrix."""
    weight = _tensor(module, name)
    where = default_dim(module) if dim is None else dim
    register_parametrization(module, name, _SpectralNorm(weight, n_power_iterations, where, eps))
    return module


class _Orthogonal(Module):
    """A matrix with orthonormal columns (rows, where it is wide), by one of three maps (Lezcano-Casado, 2019)."""

    def __init__(self, weight: Tensor, orthogonal_map: str, use_trivialization: bool = True) -> None:
        super().__init__()
        self.orthogonal_map = orthogonal_map
        self.trivialized = use_trivialization
        if use_trivialization:
            self.register_buffer("base", None)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.shape[-2] < x.shape[-1]
        x = x.mT if wide else x
        n, k = x.shape[-2:]
        if self.orthogonal_map == "householder":
            a = x.tril(-1)
            tau = 2.0 / (1.0 + (a * a).sum(-2))
            q = linalg.householder_product(a, tau)
            q = q * PUBLIC["diagonal"](x.detach(), 0, -2, -1).sign().unsqueeze(-2)
        else:
            a = x.tril()
            if n != k:
                a = PUBLIC["cat"]([a, PUBLIC["zeros"](*a.shape[:-1], n - k, dtype=a.dtype)], -1)
            a = a - a.mT
            if self.orthogonal_map == "matrix_exp":
                q = linalg.matrix_exp(a)
            else:
                one = PUBLIC["eye"](n, dtype=a.dtype)
                q = linalg.solve(one - a * 0.5, one + a * 0.5)
            q = q[..., :k] if n != k else q
        if self.trivialized and self.base is not None:
            q = self.base @ q
        return q.mT if wide else q

    def right_inverse(self, q: Tensor) -> Tensor:
        if q.ndim != 2:
            raise ValueError(f"orthogonal: expected a matrix, but got shape {list(q.shape)}")
        first = q
        wide = q.shape[0] < q.shape[1]
        q = q.mT if wide else q
        n, k = q.shape
        if not self.trivialized:
            if self.orthogonal_map != "householder":
                raise NotImplementedError(
                    "It is not possible to assign to the matrix exponential or the Cayley parametrizations when "
                    "use_trivialization=False."
                )
            h, tau = np.linalg.qr(q.detach().numpy(), mode="raw")  # reflectors below the diagonal, transposed
            a = np.array(h.T[:, :k])
            at = np.arange(k)
            a[at, at] = np.where(a[at, at] < 0, -1.0, 1.0) * np.where(tau == 0, -1.0, 1.0)
            made = PUBLIC["tensor"](a, dtype=first.dtype)
            return made.mT.contiguous() if wide else made
        if n != k:
            q = PUBLIC["cat"]([q, PUBLIC["randn"](n, n - k, dtype=q.dtype)], -1)
        off = (q.mT @ q - PUBLIC["eye"](n, dtype=q.dtype)).abs().max().item()
        self.base = q.detach().clone() if off < 1e-5 * n else orthonormal(q.detach())
        return -PUBLIC["eye"](*first.shape, dtype=first.dtype)  # where every map gives the identity


def orthogonal(
    module: Module, name: str = "weight", orthogonal_map: str | None = None, *, use_trivialization: bool = True
) -> Module:
    """Keep a matrix orthogonal: by "matrix_exp", "cayley" or "householder" (None: matrix_exp if it is square).

    Raises ValueError for tensors of less than two dimensions and for other maps.
    """
    weight = _tensor(module, name)
    if weight.ndim < 2:
        raise ValueError(f"Expected a matrix or batch of matrices. Got a tensor of {weight.ndim} dimensions.")
    if orthogonal_map is None:
        orthogonal_map = "matrix_exp" if weight.shape[-2] == weight.shape[-1] else "householder"
    if orthogonal_map not in ("matrix_exp", "cayley", "householder"):
        raise ValueError(f'orthogonal_map has to be one of "matrix_exp", "cayley", "householder". Got: {orthogonal_map}')
    made: Any = _Orthogonal(weight, orthogonal_map, use_trivialization)
    if not use_trivialization and orthogonal_map != "householder":
        made.__dict__["right_inverse"] = None  # nothing can be assigned: the weight is read as the map's argument
    register_parametrization(module, name, made, unsafe=True)
    return module
