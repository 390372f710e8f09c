"""Modules as functions of their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from flame.functions import PUBLIC
from flame.nn.modules.module import Module
from flame.tensor import Tensor


def functional_call(
    module: Module,
    parameter_and_buffer_dicts: Any,
    args: Any = None,
    kwargs: dict | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """Call a module with the given tensors in the places of its parameters and buffers, which are back in place afterwards.

    `parameter_and_buffer_dicts` maps names (as in state_dict) to tensors; several dicts are joined. With `tie_weights` a
    parameter that stands under several names is replaced under all of them. Raises RuntimeError for names that are not there,
    and with `strict` for names that are not given.
    """
    given: dict[str, Tensor] = {}
    for d in parameter_and_buffer_dicts if isinstance(parameter_and_buffer_dicts, Sequence) else [parameter_and_buffer_dicts]:
        for k, v in d.items():
            if k in given:
                raise ValueError(f"{[k]} appeared in multiple dictionaries; behavior of functional call is ambiguous")
            given[k] = v
    places: dict[str, tuple[dict[str, Any], str]] = {}
    same: dict[int, list[str]] = {}
    for prefix, m in module.named_modules(remove_duplicate=False):
        for held in (cast(dict[str, Any], m._parameters), cast(dict[str, Any], m._buffers)):
            for n, t in held.items():
                if t is not None:
                    name = f"{prefix}.{n}" if prefix else n
                    places[name] = held, n
                    same.setdefault(id(t), []).append(name)
    unknown = [k for k in given if k not in places]
    if unknown:
        raise RuntimeError(f"Unexpected key(s): {', '.join(unknown)}: the module has no such parameter or buffer")
    values = dict(given)
    if tie_weights:
        for names in same.values():
            tied = {id(given[n]): given[n] for n in names if n in given}
            if len(tied) > 1:
                keys = sorted(n for n in names if n in given)
                raise ValueError(
                    f"functional_call got multiple values for keys {keys}, which are tied. Consider using tie_weights=False"
                )
            for n in names if tied else ():
                values[n] = next(iter(tied.values()))
    if strict and (missing := [k for k in places if k not in values]):
        raise RuntimeError(f"Missing key(s): {', '.join(missing)}")
    before = {k: places[k][0][places[k][1]] for k in values}
    args = () if args is None else args if isinstance(args, tuple) else (args,)
    try:
        for k, v in values.items():
            place, n = places[k]
            place[n] = v
        return module(*args, **(kwargs or {}))
    finally:
        for k, v in before.items():
            place, n = places[k]
            place[n] = v


def stack_module_state(models: Sequence[Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and the buffers of models of one kind, each stacked along a new first dimension."""
    if not models:
        raise RuntimeError("stack_module_state: Expected at least one model, got 0.")
    if any(type(m) is not type(models[0]) for m in models):
        raise RuntimeError("stack_module_state: Expected all models to be of the same class.")
    if len({m.training for m in models}) > 1:
        raise RuntimeError("stack_module_state: Expected all models to have the same training/eval mode.")
    params = {
        k: PUBLIC["stack"]([dict(m.named_parameters())[k] for m in models]).detach().requires_grad_(p.requires_grad)
        for k, p in models[0].named_parameters()
    }
    buffers = {k: PUBLIC["stack"]([dict(m.named_buffers())[k] for m in models]) for k, _ in models[0].named_buffers()}
    return params, buffers
