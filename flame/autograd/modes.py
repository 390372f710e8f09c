"""Switching the recording of derivatives on and off for a thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flame.primitive import force


class _Mode:
    """A context manager that is also a decorator, as PyTorch's."""

    __slots__ = ("_before",)
    grad: bool
    inference = False
    _before: list[tuple[bool, bool]]

    def __new__(cls, orig_func: Callable | None = None) -> Any:
        if orig_func is not None:  # used as a bare decorator: @no_grad
            return cls()(orig_func)
        made = object.__new__(cls)
        made._before = []
        return made

    def __enter__(self) -> None:
        self._before.append((force.grad, force.inference))
        force.grad = self.grad
        force.inference = self.inference

    def __exit__(self, *error: Any) -> None:
        force.grad, force.inference = self._before.pop()

    def __call__(self, fn: Callable) -> Callable:
        clone = self._clone

        @functools.wraps(fn)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with clone():
                return fn(*args, **kwargs)

        return inside

    def _clone(self) -> _Mode:
        return type(self)()


class no_grad(_Mode):
    """Nothing done inside is recorded for differentiation."""

    __slots__ = ()
    grad = False


class enable_grad(_Mode):
    """Recording goes on inside, also within `no_grad`."""

    __slots__ = ()
    grad = True


class inference_mode(_Mode):
    """As `no_grad`. `inference_mode(False)` leaves things as they are outside of it."""

    grad = False
    inference = True
    _mode: bool

    def __new__(cls, mode: Any = True) -> Any:
        if callable(mode):  # used as a bare decorator
            return cls()(mode)
        made = _Mode.__new__(cls)
        made._mode = bool(mode)
        return made

    def __enter__(self) -> None:
        self._before.append((force.grad, force.inference))
        if self._mode:
            force.grad, force.inference = False, True

    def _clone(self) -> _Mode:
        return type(self)(self._mode)


class set_grad_enabled(_Mode):
    """`set_grad_enabled(mode)` acts at once, and as a context manager puts back what was."""

    def __new__(cls, mode: bool) -> Any:
        return _Mode.__new__(cls)

    def __init__(self, mode: bool):
        self._before.append((force.grad, force.inference))
        self.grad = force.grad = bool(mode)

    def __enter__(self) -> None:
        force.grad = self.grad

    def _clone(self) -> _Mode:
        mode = self.grad
        force.grad, force.inference = self._before[-1]
        return set_grad_enabled(mode)


def is_grad_enabled() -> bool:
    return force.grad


def is_inference_mode_enabled() -> bool:
    return force.inference
