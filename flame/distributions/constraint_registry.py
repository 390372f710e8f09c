"""From constraints to transforms: `transform_to(c)` gives a map of the real numbers onto c, `biject_to(c)` one that has an inverse.

    scale = transform_to(Normal.arg_constraints["scale"])(unconstrained)

`biject_to` is for densities (its transforms know log |dy / dx|); `transform_to` for optimisation, where another map onto the set
may be better behaved (softmax for the simplex). More sets are entered by `register`, or into a registry of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame.distributions import constraints, transforms
from flame.distributions.constraints import Constraint
from flame.distributions.transforms import Transform

Factory = Callable[[Any], Transform]


class ConstraintRegistry:
    """Classes of constraints, and for each the function that makes a transform of a constraint."""

    def __init__(self) -> None:
        self._registry: dict[type, Factory] = {}

    def register(self, constraint: Any, factory: Factory | None = None) -> Any:
        """Enter `factory` for a subclass of Constraint, or for the class of a constraint; without `factory`, a decorator.

        Raises TypeError where `constraint` is neither.
        """
        if factory is None:
            return lambda f: self.register(constraint, f)
        kind = type(constraint) if isinstance(constraint, Constraint) else constraint
        if not (isinstance(kind, type) and issubclass(kind, Constraint)):
            raise TypeError(f"Expected constraint to be either a Constraint subclass or instance, but got {constraint}")
        self._registry[kind] = factory
        return factory

    def __call__(self, constraint: Constraint) -> Transform:
        """The transform onto a constraint's set. Raises NotImplementedError where none is registered for its class."""
        factory = self._registry.get(type(constraint))
        if factory is None:
            raise NotImplementedError(f"Cannot transform {type(constraint).__name__} constraints")
        return factory(constraint)


biject_to = ConstraintRegistry()
transform_to = ConstraintRegistry()


def _scaled(t: Transform, loc: Any, scale: Any) -> Transform:
    return transforms.ComposeTransform([t, transforms.AffineTransform(loc, scale)])


def _between(c: Any) -> Transform:
    low, high = c.lower_bound, c.upper_bound
    if isinstance(low, int | float) and isinstance(high, int | float) and (low, high) == (0, 1):
        return transforms.SigmoidTransform()
    return _scaled(transforms.SigmoidTransform(), low, high - low)


def _enter(registry: ConstraintRegistry) -> None:
    """What both registries say, each of its own transforms."""
    rows: list[tuple[Any, Factory]] = [
        (constraints.real, lambda c: transforms.identity_transform),
        (constraints.greater_than, lambda c: _scaled(transforms.ExpTransform(), c.lower_bound, 1)),
        (constraints.greater_than_eq, lambda c: _scaled(transforms.ExpTransform(), c.lower_bound, 1)),
        (constraints.less_than, lambda c: _scaled(transforms.ExpTransform(), c.upper_bound, -1)),
        (constraints.interval, _between),
        (constraints.half_open_interval, _between),
        (constraints.corr_cholesky, lambda c: transforms.CorrCholeskyTransform()),
        (
            constraints.independent,
            lambda c: transforms.IndependentTransform(registry(c.base_constraint), c.reinterpreted_batch_ndims),
        ),
        (constraints.cat, lambda c: transforms.CatTransform([registry(p) for p in c.cseq], c.dim, c.lengths)),
        (constraints.stack, lambda c: transforms.StackTransform([registry(p) for p in c.cseq], c.dim)),
    ]
    for constraint, factory in rows:
        registry.register(constraint, factory)


_enter(biject_to)
_enter(transform_to)
biject_to.register(constraints.simplex, lambda c: transforms.StickBreakingTransform())
transform_to.register(constraints.simplex, lambda c: transforms.SoftmaxTransform())
transform_to.register(constraints.lower_cholesky, lambda c: transforms.LowerCholeskyTransform())
transform_to.register(constraints.positive_definite, lambda c: transforms.PositiveDefiniteTransform())
transform_to.register(constraints.positive_semidefinite, lambda c: transforms.PositiveDefiniteTransform())

__all__ = ["ConstraintRegistry", "biject_to", "transform_to"]
