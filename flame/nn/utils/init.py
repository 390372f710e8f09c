"""Making a module without filling its parameters."""

from __future__ import annotations

import inspect
from typing import Any

from flame.functions.random import fork_rng
from flame.nn.modules.module import Module


def skip_init(module_cls: type, *args: Any, **kwargs: Any) -> Any:
    """A module whose parameters are to be set by the caller: random numbers drawn for it do not count.

    Raises RuntimeError for something that is no Module class or takes no `device`.
    """
    if not (isinstance(module_cls, type) and issubclass(module_cls, Module)):
        raise RuntimeError(f"Expected a Module; got {module_cls}")
    if "device" not in inspect.signature(module_cls).parameters:
        raise RuntimeError("Module must support a 'device' arg to skip initialization")
    with fork_rng():
        return module_cls(*args, **kwargs)
