"""Where the tensors of a file come to: `map_location`, as PyTorch reads it.

map_location ::= None            where they were saved from
               | device          all of them there
               | dict            from the device of a key to that of its value; others where they were saved from
               | callable        called with a tensor in host memory and the name of its device: it answers with the tensor to
                                 use, or with None for the device that it was saved from
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flame.errors import MissingTargetError
from flame.functions.placing import resolved
from flame.tensor import Tensor

Mover = Callable[[Tensor, str], Tensor]  #: of a tensor in host memory and the name of the device that it was saved from


def mover(map_location: Any, what: str = "load") -> Mover:
    """What takes tensors where they are to be. Raises MissingTargetError where a device that is asked for is not there."""
    if isinstance(map_location, dict):
        places = {str(k): resolved(v) for k, v in map_location.items()}
        return lambda t, saved: _moved(t, places[saved]) if saved in places else _back(t, saved, what)
    if callable(map_location):

        def chosen(t: Tensor, saved: str) -> Tensor:
            got = map_location(t, saved)
            if got is None:
                return _back(t, saved, what)
            if not isinstance(got, Tensor):
                raise TypeError(f"{what}: map_location must answer with a tensor or None, got {type(got).__name__}")
            return got

        return chosen
    if map_location is None:
        return lambda t, saved: _back(t, saved, what)
    place = resolved(map_location)
    return lambda t, saved: _moved(t, place)


def _moved(t: Tensor, place: Any) -> Tensor:
    return t.to(place) if place.type != "cpu" else t


def _back(t: Tensor, saved: str, what: str) -> Tensor:
    """To where it was saved from."""
    if saved == "cpu":
        return t
    try:
        return t.to(saved)
    except (MissingTargetError, RuntimeError) as e:
        raise MissingTargetError(
            f"{what}: a tensor was saved from {saved}, which is not there ({e}). Say where tensors should go: map_location='cpu'"
        ) from e
