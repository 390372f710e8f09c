"""The base of invertible maps between tensors, and those made of other maps or of shapes alone: composed, over several
dimensions as a whole, reshaped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from flame.distributions import constraints
from flame.distributions.constraints import Constraint
from flame.functions import PUBLIC
from flame.tensor import Tensor


class Transform:
    """y = t(x), x = t.inv(y), log |dy / dx| = t.log_abs_det_jacobian(x, y).

    Subclasses give `_call`, `_inverse` and `log_abs_det_jacobian`, the sets they map between, and whether they are bijective and of
    one sign. `domain_event_dim` and `codomain_event_dim` count the dimensions that are mapped as a whole.
    """

    domain: Constraint = constraints.real
    codomain: Constraint = constraints.real
    bijective: Any = False
    sign: Any = 1
    #: the attributes by which two of a class are equal; None: each is equal to itself alone
    _same: tuple[str, ...] | None = None

    def __init__(self, cache_size: int = 0):
        if cache_size not in (0, 1):
            raise ValueError("cache_size must be 0 or 1")
        self._cache_size = cache_size
        self._last: tuple[Any, Any] = (None, None)

    @property
    def event_dim(self) -> int:
        return self.domain.event_dim

    @property
    def inv(self) -> Transform:
        """The transform the other way round: t.inv.inv is t."""
        return _Inverse(self)

    def with_cache(self, cache_size: int = 1) -> Transform:
        """This transform, keeping its last value and what that was sent to (1) or nothing (0)."""
        if self._cache_size == cache_size:
            return self
        if cache_size not in (0, 1):
            raise ValueError("cache_size must be 0 or 1")
        new = copy.copy(self)
        new._cache_size, new._last = cache_size, (None, None)
        return new

    def __eq__(self, other: Any) -> bool:
        if self is other or self._same is None or type(self) is not type(other):
            return self is other
        return all(_equal(getattr(self, name), getattr(other, name)) for name in self._same)

    def __hash__(self) -> int:
        return id(self) if self._same is None else hash(type(self))

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


def _equal(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) or isinstance(b, Tensor)):
        return a == b
    same = a == b
    return bool(same.all()) if isinstance(same, Tensor) else same


def summed(x: Tensor, n: int) -> Tensor:
    """Summed over the last n dimensions."""
    return x.sum(tuple(range(-n, 0))) if n else x


class _Inverse(Transform):
    """A transform the other way round."""

    _same = ("_other",)

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

    def with_cache(self, cache_size: int = 1) -> Transform:
        return self if self._other._cache_size == cache_size else self._other.with_cache(cache_size).inv

    def __repr__(self) -> str:
        return f"Inverse({self._other!r})"


class ComposeTransform(Transform):
    """Transforms one after the other."""

    _same = ("parts",)

    def __init__(self, parts: Sequence[Transform], cache_size: int = 0):
        super().__init__(cache_size)
        self.parts = list(parts)
        self.bijective = all(p.bijective for p in self.parts)
        if self.parts:
            n = self.parts[-1].codomain.event_dim
            for p in reversed(self.parts):
                n = max(n + p.domain.event_dim - p.codomain.event_dim, p.domain.event_dim)
            self.domain = over(self.parts[0].domain, n)
            n = self.parts[0].domain.event_dim
            for p in self.parts:
                n = max(n + p.codomain.event_dim - p.domain.event_dim, p.codomain.event_dim)
            self.codomain = over(self.parts[-1].codomain, n)

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

    def with_cache(self, cache_size: int = 1) -> Transform:
        return self if self._cache_size == cache_size else ComposeTransform(self.parts, cache_size)

    def __repr__(self) -> str:
        return f"ComposeTransform({self.parts!r})"


def over(c: Constraint, event_dim: int) -> Constraint:
    return constraints.independent(c, event_dim - c.event_dim) if event_dim > c.event_dim else c


class IndependentTransform(Transform):
    """A transform whose last batch dimensions are mapped as a whole: log-derivatives are summed over them."""

    _same = ("base_transform", "reinterpreted_batch_ndims")

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

    @property
    def sign(self) -> Any:  # type: ignore[override]
        return self.base_transform.sign

    def forward_shape(self, shape: Any) -> Any:
        return self.base_transform.forward_shape(shape)

    def inverse_shape(self, shape: Any) -> Any:
        return self.base_transform.inverse_shape(shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return summed(self.base_transform.log_abs_det_jacobian(x, y), self.reinterpreted_batch_ndims)


class ReshapeTransform(Transform):
    """Another shape of each event."""

    bijective = True
    _same = ("in_shape", "out_shape")

    def __init__(self, in_shape: Any, out_shape: Any, cache_size: int = 0):
        super().__init__(cache_size)
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        if math.prod(self.in_shape) != math.prod(self.out_shape):
            raise ValueError("in_shape, out_shape have different numbers of elements")
        self.domain = over(constraints.real, len(self.in_shape))
        self.codomain = over(constraints.real, len(self.out_shape))

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
