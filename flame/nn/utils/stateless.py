"""Calling a module with other parameters and buffers than its own, for the one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flame.tensor import Tensor


def _places(module: Any) -> dict[str, tuple[Any, str]]:
    """Dotted names -> (registry of the module that has it, name in there); a shared tensor under each of its names."""
    out = {}
    for prefix, m in module.named_modules(remove_duplicate=False):
        for registry in (m._parameters, m._buffers):
            for name, t in registry.items():
                if t is not None:
                    out[f"{prefix}.{name}" if prefix else name] = (registry, name)
    return out


@contextmanager
def replaced(module: Any, tensors: Mapping[str, Tensor], tie_weights: bool = True, strict: bool = False) -> Iterator[None]:
    """The module with these tensors in the place of its own. Raises RuntimeError for names that it does not have."""
    places = _places(module)
    unknown = [k for k in tensors if k not in places]
    missing = [k for k in places if k not in tensors] if strict else []
    if unknown or missing:
        parts = [
            f"{what} key(s): {', '.join(map(repr, keys))}"
            for what, keys in (("Unexpected", unknown), ("Missing", missing))
            if keys
        ]
        raise (RuntimeError if strict else KeyError)(f"functional_call on {type(module).__name__}: {'; '.join(parts)}")
    new: dict[str, Tensor] = dict(tensors)
    if tie_weights:
        by_tensor: dict[int, Tensor] = {}
        for k, t in tensors.items():
            registry, name = places[k]
            old = by_tensor.setdefault(id(registry[name]), t)
            if old is not t:
                raise ValueError(
                    f"functional_call got multiple values for keys tied to {k!r}; pass the same tensor or tie_weights=False"
                )
        for k, (registry, name) in places.items():
            if k not in new and id(registry[name]) in by_tensor:
                new[k] = by_tensor[id(registry[name])]
    before = [(places[k], places[k][0][places[k][1]]) for k in new]
    try:
        for k, t in new.items():
            registry, name = places[k]
            registry[name] = t
        yield
    finally:
        for (registry, name), t in before:
            registry[name] = t


def functional_call(
    module: Any, parameters_and_buffers: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]], args: Any = None,
    kwargs: dict[str, Any] | None = None, *, tie_weights: bool = True, strict: bool = False,
) -> Any:  # fmt: skip
    """`module(*args, **kwargs)` with parameters and buffers taken from a dict (or several) of dotted names.

    Those not named keep the module's own, unless `strict`. A tensor that the module shares between names may be given by one.
    """
    dicts = [parameters_and_buffers] if isinstance(parameters_and_buffers, Mapping) else list(parameters_and_buffers)
    tensors: dict[str, Tensor] = {}
    for d in dicts:
        for k, t in d.items():
            if k in tensors:
                raise ValueError(f"{k!r} appeared in multiple dictionaries; behavior of functional call is ambiguous")
            tensors[k] = t
    if args is None:
        args = ()
    elif not isinstance(args, tuple):
        args = (args,)
    with replaced(module, tensors, tie_weights, strict):
        return module(*args, **(kwargs or {}))
