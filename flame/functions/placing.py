"""Where tensors are made: the device that a caller names, or that of a neighbour, or the default.

A primitive that makes something of no tensors has a parameter for its place, which it takes from `force.place`; without one, what
it makes goes wherever it is used. `placed` wraps the functions that users call, so that what they make has a place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.primitive import force, placement
from flame.runtime.cuda import gpu
from flame.runtime.device import CPU, DEFAULT, as_device
from flame.runtime.device import device as Device
from flame.tensor import Tensor


def get_default_device() -> Device:
    """Where tensors are made that no device is given for."""
    return DEFAULT[0]


def set_default_device(device: Any) -> None:
    """Have tensors made on `device` where none is given (None: on the CPU)."""
    d = as_device(device)
    if d.type != "cpu":
        resolved(d)
    DEFAULT[0] = d


def resolved(d: Any) -> Device:
    """The device with its index. Raises MissingTargetError where tensors can't live there."""
    d = as_device(d)
    if d.type == "cpu":
        return CPU
    found = gpu(d.index).device
    placement.gpu = True
    return found


def placed(f: Any) -> Any:
    """A function that makes a tensor, by its keyword `device` on any device: by default that of its first argument, if that is a
    tensor, else where the function of flame's that calls it was given tensors, else the default device."""

    @functools.wraps(f)
    def make(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("pin_memory"):
            rest = {k: v for k, v in kwargs.items() if k not in ("pin_memory", "requires_grad")}
            return make(*args, **rest).pin_memory().requires_grad_(bool(kwargs.get("requires_grad")))
        device = kwargs.get("device")
        if device is None and not placement.gpu and DEFAULT[0] is CPU:
            return f(*args, **kwargs)
        if device is None:
            first = args[0] if args else kwargs.get("input")
            if not isinstance(first, Tensor) and hasattr(first, "__cuda_array_interface__"):
                return f(*args, **kwargs)  # (it stays where it is)
            if isinstance(first, Tensor):
                where = first.device
            else:  # what a function makes for itself lies beside what it was given
                where = resolved(DEFAULT[0]) if force.place is None else force.place
        else:
            where = resolved(device)
        if where.type == "cpu" and not placement.gpu:
            return f(*args, **kwargs)
        kwargs["device"] = None
        out = kwargs.get("out")
        if isinstance(out, Tensor):
            where = out.device
        wants = kwargs.pop("requires_grad", False)
        with placing(where):
            t = f(*args, **kwargs)
            if t.device != where:
                t = t.to(where)
        return t.requires_grad_(True) if wants else t

    return make


@contextmanager
def placing(where: Device) -> Iterator[None]:
    """Meanwhile tensors that are made from none are made there, on this thread."""
    before = force.place
    force.place = where
    try:
        yield
    finally:
        force.place = before


PUBLIC["get_default_device"], PUBLIC["set_default_device"] = get_default_device, set_default_device
