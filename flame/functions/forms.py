"""The other forms of a function: with `out=`, as a method, and in place.

`public` (flame.functions.elementwise) enters a function as it is. What is entered here by `formed` gets `out=` in flame's
namespace, is a method of Tensor by the same name, and, if asked for, has an in-place method `name_`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from flame.autograd.tape import assign
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import cast, deliver
from flame.precision import precise
from flame.primitive import force, registered, synonymous
from flame.tensor import Tensor

COPY = registered("copy")


def with_out(f: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """`f` with a keyword `out`: a tensor, or a tuple of them where `f` gives a tuple. What is given is returned."""
    name, f = name or f.__name__, precise(f)

    @functools.wraps(f)
    def function(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        y = f(*args, **kwargs)
        if out is None:
            return y
        if isinstance(y, tuple):
            outs = [deliver(v, o, name) for v, o in zip(y, out, strict=True)]
            return type(y)(*outs) if hasattr(y, "_fields") else tuple(outs)
        return deliver(y, out, name)

    s = inspect.signature(f)
    if "out" not in s.parameters:
        more = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Tensor | None")
        last = [p for p in s.parameters.values() if p.kind is p.VAR_KEYWORD]
        function.__signature__ = s.replace(  # type: ignore[attr-defined]
            parameters=[*(p for p in s.parameters.values() if p not in last), more, *last]
        )
    return function


def in_place(f: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The method that writes `f`'s result over its first argument, whose dtype must be able to hold it."""

    @functools.wraps(f)
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = f(COPY(self) if force.grad and self.requires_grad else self, *args, **kwargs)
        if y.shape != self.shape:
            raise RuntimeError(
                f"{name}: output with shape {list(self.shape)} doesn't match the broadcast shape {list(y.shape)}"
            )
        if y.dtype is not self.dtype:
            if y.dtype.category > self.dtype.category:
                raise RuntimeError(f"result type {y.dtype!r} can't be cast to the desired output type {self.dtype!r}")
            y = cast(y, dtype=self.dtype)
        return assign(self, COPY(y) if y is self else y)

    method.__name__ = method.__qualname__ = name
    return method


def formed(*names: str, method: bool = True, inplace: bool = False) -> Callable:
    """Enter a function under its name, or those given: in flame's namespace with `out=`, as a method, and in place."""

    def enter(f: Callable) -> Callable:
        f = synonymous(precise(f))
        for n in names or (f.__name__,):
            PUBLIC[n] = with_out(f, n)
            if method:
                setattr(Tensor, n, f)
            if inplace:
                change = in_place(f, n + "_")
                setattr(Tensor, n + "_", change)
                PUBLIC[n + "_"] = change
        return f

    return enter
