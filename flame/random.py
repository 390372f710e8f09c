"""flame.random: the default generator's functions, under torch.random's names."""

from __future__ import annotations

from flame.functions.random import (
    default_generator,
    fork_rng,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)
from flame.knobs import knobs

__all__ = [
    "are_deterministic_algorithms_enabled",
    "default_generator",
    "fork_rng",
    "get_rng_state",
    "initial_seed",
    "manual_seed",
    "seed",
    "set_rng_state",
    "use_deterministic_algorithms",
]


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Have equal calls give equal bits, also where another order of sums were faster: scattered sums on a GPU. (On a CPU they do
    so anyway, for one number of threads.) Everything has such a form, so there is nothing to warn of."""
    if not isinstance(mode, bool):
        raise TypeError(f"use_deterministic_algorithms(): argument 'mode' must be bool, not {type(mode).__name__}")
    knobs.deterministic = mode


def are_deterministic_algorithms_enabled() -> bool:
    return knobs.deterministic
