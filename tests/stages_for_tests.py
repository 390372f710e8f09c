"""Programs with Python in the midst of their backward passes, eager against compiled: what they share.

program(state, w, x, log) -> tensor     is called several times; what it leaves in its state, on w and in the log is compared
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flame
from tests.fuzz_capture import difference
from tests.test_capture_stages import FIXED, run


class State:
    """What lives outside of a compiled function, made anew for each run."""

    def __init__(self) -> None:
        self.calls = 0
        self.total = flame.zeros(3)
        self.kept: list = []
        self.handle: Any = None
        self.other = flame.tensor([1.0, -2.0, 0.5], requires_grad=True)


def attempt(log: list, f: Callable[[], Any]) -> Any:
    try:
        return f()
    except Exception as e:
        log.append(type(e).__name__)
        return None


def both(program: Callable, compile: Callable[[Callable], Callable], turn: bool) -> str:
    """Where eager and compiled differ."""
    seen = []
    for wrap in (lambda f: f, compile):
        flame.manual_seed(1)
        s = State()

        def body(w: Any, x: Any, log: list, s: State = s) -> Any:
            got = program(s, w, x, log)
            kept = [t for t in s.kept if isinstance(t, flame.Tensor) and not t.requires_grad]
            return [got, s.total.clone(), *[t + 0.0 for t in kept]]

        seen.append(run(body, wrap, FIXED, turn))
    return difference(seen[0], seen[1], rtol=1e-5, atol=1e-6)
