"""What was asked of capture: `Options` of one compiled function, and what `control` holds for all of them for a while.

A stance says what compiled functions do when they are called: "default" captures and compiles; "force_eager" runs all eagerly;
"eager_on_recompile" runs what is compiled and eagerly what is not; "fail_on_recompile" raises there.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

#: different paths through one segment of a function before it is handed over to eager
RECOMPILE_LIMIT = 32

#: by name, whether new paths are recorded and compiled ("yes", "no", or "raise"); PyTorch's names
STANCES = {
    "default": "yes",
    "eager_then_compile": "yes",
    "aot_eager_then_compile": "yes",
    "force_eager": "no",
    "eager_on_recompile": "no",
    "fail_on_recompile": "raise",
}


@dataclass(frozen=True, slots=True)
class Options:
    """How a function is to be compiled: the arguments of `flame.compile`."""

    fullgraph: bool = False
    dynamic: bool | None = None
    mode: str = "default"
    backend: str = "auto"
    recompile_limit: int = RECOMPILE_LIMIT
    background: bool = False  #: compile on a thread of its own, and run eagerly until that is done
    never_slower: bool = True  #: run eagerly what is measured to be slower compiled


class Control:
    """In force for every compiled function, on every thread."""

    __slots__ = ("compiling", "eager", "stance")

    def __init__(self) -> None:
        self.take("default")

    def take(self, stance: str) -> None:
        self.stance = stance
        self.eager = stance == "force_eager"
        self.compiling = STANCES[stance]


class Demands(threading.local):
    """In force on this thread."""

    error_on_break: bool = False


control = Control()
demands = Demands()
