"""Switching the recording of derivatives on and off for a thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flame.primitive import force


class _Mode:
    """A context manager that is also a decorator, as PyTorch's."""

    grad: bool
    inference = False

    def __init__(self, fn: Callable | None = None):
        self._before: list[tuple[bool, bool]] = []
        self._fn = fn
        if fn is not None:
            functools.update_wrapper(self, fn)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if args and callable(args[0]):  # used as a bare decorator: @no_grad
            return cls()(args[0])
        return object.__new__(cls)

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

    grad = False


class enable_grad(_Mode):
    """Recording goes on inside, also within `no_grad`."""

    grad = True


class inference_mode(_Mode):
    """As `no_grad`. `inference_mode(False)` leaves things as they are outside of it."""

    grad = False
    inference = True

    def __init__(self, mode: Any = True):
        super().__init__()
        self._mode = bool(mode)

    def __enter__(self) -> None:
        self._before.append((force.grad, force.inference))
        if self._mode:
            force.grad, force.inference = False, True

    def _clone(self) -> _Mode:
        return type(self)(self._mode)


class set_grad_enabled(_Mode):
    """`set_grad_enabled(mode)` acts at once, and as a context manager puts back what was."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, mode: bool):
        super().__init__()
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
