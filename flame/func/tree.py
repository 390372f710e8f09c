"""Nests of tuples, lists and dicts with tensors for leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame.tensor import Tensor


def flatten(x: Any) -> tuple[list, Callable[[list], Any]]:
    """The leaves (everything that is no tuple, list or dict), and the function that puts others in their places."""
    if isinstance(x, dict):
        parts = [flatten(v) for v in x.values()]
        keys = list(x)
        make: Callable[[list], Any] = lambda vs: type(x)(zip(keys, vs, strict=True))
    elif isinstance(x, tuple | list):
        parts = [flatten(v) for v in x]
        make = (lambda vs: type(x)(*vs)) if hasattr(x, "_fields") else type(x)
    else:
        return [x], lambda vs: vs[0]
    sizes = [len(leaves) for leaves, _ in parts]

    def rebuild(vs: list) -> Any:
        out, at = [], 0
        for n, (_, again) in zip(sizes, parts, strict=True):
            out.append(again(vs[at : at + n]))
            at += n
        return make(out)

    return [v for leaves, _ in parts for v in leaves], rebuild


def mapped(f: Callable[[Tensor], Any], x: Any) -> Any:
    """The nest with f applied to its tensors."""
    leaves, rebuild = flatten(x)
    return rebuild([f(v) if isinstance(v, Tensor) else v for v in leaves])


def tensors(x: Any) -> list[Tensor]:
    return [v for v in flatten(x)[0] if isinstance(v, Tensor)]
