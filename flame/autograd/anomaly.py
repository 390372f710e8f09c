"""Finding what makes a gradient NaN: `detect_anomaly`, `set_detect_anomaly`.

    with detect_anomaly():          operations remember where they were called
        loss = f(x)
        loss.backward()             raises at the first node that gives NaN, and warns of the line that it came from

The mode counts for all threads. While it is in force, compiled functions run eagerly: in a fused kernel no operation is by itself.
What was recorded by a compiled function before is looked at as one node.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

from flame.autograd.saving import anomaly
from flame.autograd.watch import Process, unwatch, watch
from flame.primitive import Primitive, force
from flame.reasons import DISABLED
from flame.tensor import Tensor

_CALLED = "called at"


def remembering(process: Process, primitive: Primitive, operands: tuple, params: dict) -> Any:
    """An operation whose node, if it leaves one, remembers the call (see `flame.autograd.watch`)."""
    got = process(primitive, operands, params)
    outs = got if type(got) is tuple else (got,)
    node = next((t._node[0] for t in outs if t._node is not None), None)
    if node is not None:
        node.metadata.setdefault(_CALLED, _users_lines())
    return got


def _users_lines() -> str:
    """The stack of calls, without flame's own."""
    frames = [(f, n) for f, n in traceback.walk_stack(sys._getframe(1)) if not _ours(f)]
    return "".join(traceback.StackSummary.extract(reversed(frames)).format())


def _ours(f: FrameType) -> bool:
    module = f.f_globals.get("__name__", "")
    return module.startswith("flame.") and not module.startswith("flame.demo.")


def applied(node: Any, call: Callable[[], Any]) -> Any:
    """What a node's rule gives. Raises RuntimeError where that is NaN; whatever is raised, the forward call is told of first."""
    try:
        got = call()
        for i, g in enumerate(got if anomaly.nan else ()):
            if isinstance(g, Tensor) and g.dtype.is_differentiable and np.isnan(g._read()).any():
                raise RuntimeError(f"Function '{node.name()}' returned nan values in its {i}th output.")
    except Exception:
        lines = node.metadata.get(_CALLED)
        told = f" Traceback of forward call that caused the error:\n{lines}" if lines else (
            " No forward pass information available. Enable detect anomaly during forward pass for more information."
        )  # fmt: skip
        warnings.warn(f"Error detected in {node.name()}.{told}", stacklevel=2)
        raise
    return got


def _put(on: bool, nan: bool) -> None:
    """Put the mode in force."""
    if on != anomaly.on:
        if on:
            watch(remembering, whole=True)
        else:
            unwatch(remembering)
    anomaly.on, anomaly.nan = on, nan


class detect_anomaly:
    """Have backward find the operation whose gradient is the first to be NaN (RuntimeError), and warn of its forward call.

    check_nan: False has it tell of the forward call of what raises alone. A context manager; warns that it takes time.
    """

    def __init__(self, check_nan: bool = True) -> None:
        self.check_nan = check_nan
        self._before: list[tuple] = []
        warnings.warn(
            "Anomaly Detection has been enabled. This mode will increase the runtime and should only be enabled for debugging.",
            stacklevel=2,
        )

    def __enter__(self) -> None:
        run = force.interpreter
        if run is not None:
            run.leave(DISABLED, "what runs inside of detect_anomaly")
            run, force.interpreter = force.interpreter, None
        self._before.append((anomaly.on, anomaly.nan, run))
        _put(True, self.check_nan)

    def __exit__(self, *error: Any) -> None:
        on, nan, run = self._before.pop()
        _put(on, nan)
        if run is not None:
            force.interpreter = run


class set_detect_anomaly:
    """Switch the mode of `detect_anomaly` on or off, at once; as a context manager it puts back what was. Raises RuntimeError
    inside of a compiled function, which is to be told before it begins."""

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        if force.interpreter is not None:
            raise RuntimeError(
                "set_detect_anomaly(): call it outside of the compiled function, or use `with detect_anomaly():`"
            )
        self._before = anomaly.on, anomaly.nan
        _put(mode, check_nan)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        _put(*self._before)


def is_anomaly_enabled() -> bool:
    return anomaly.on


def is_anomaly_check_nan_enabled() -> bool:
    return anomaly.on and anomaly.nan
