"""The harness of the adversarial programs for capture: each runs eagerly and compiled, and all that can be seen must agree.

    program ::= a function of `wrap` that wraps whatever it wants captured, drives it over several calls, and returns observations

`wrap` is the identity for the eager run and `flame.compile` for the other. A program makes its own world (tensors, lists,
modules, generators) anew in each run, so that the two can't touch each other. `drive` is the usual loop; what a call raises is
observed by type and first words. A test file registers its programs with `@program` and ends in `agree(case, backend)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import flame
from tests.fuzz_capture import difference, observe

Wrap = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """One program. `native`: also run through LLVM, as all are but those that take long, or round 16 bits at other places.
    `follows`: capture must have followed something, or the test says nothing. `host`: it shares memory with NumPy, which only
    tensors on a CPU do."""

    body: Callable[[Wrap], list]
    module: str
    native: bool
    follows: bool
    host: bool

    @property
    def name(self) -> str:
        return self.body.__name__


_cases: list[Case] = []


def program(body: Any = None, *, native: bool = True, follows: bool = True, host: bool = False) -> Any:
    """Register a program of the calling file."""
    if body is None:
        return functools.partial(program, native=native, follows=follows, host=host)
    _cases.append(Case(body, body.__module__, native, follows, host))
    return body


def cases(module: str) -> list:
    """The programs of a test file, as pytest parameters (case, backend)."""
    out = []
    for c in _cases:
        if c.module == module:
            out.append(pytest.param(c, "eager", id=c.name))
            if c.native:
                out.append(pytest.param(c, "llvm", id=f"{c.name}-llvm"))
    return out


def programs(module: str) -> list[Case]:
    """The programs of a test file."""
    return [c for c in _cases if c.module == module]


def agree(case: Case, backend: str, mode: str = "default", host: list | None = None) -> int:
    """Run a program both ways and compare. How many calls were replayed. `host`: what was observed of it on a CPU, with which the
    eager run must agree too, so that what both ways do wrong is seen, an error above all."""
    compiled: list = []

    def wrap(f: Any) -> Any:
        compiled.append(flame.compile(f, backend=backend, mode=mode))
        return compiled[-1]

    flame.manual_seed(0)
    want = case.body(lambda f: f)
    if host is not None:
        found = difference(host, anywhere(want), rtol=1e-3, atol=1e-4)
        assert not found, f"{case.name}, run eagerly, differs from the CPU at {found}"
    flame.manual_seed(0)
    got = case.body(wrap)
    found = difference(want, got, rtol=1e-5 if backend == "eager" else 1e-4, atol=1e-6 if backend == "eager" else 1e-5)
    assert not found, f"{case.name} differs at {found}"
    stats = [c.stats for c in compiled]
    failed = [k for s in stats for k in s.fallbacks if "another thread" not in k[1] and " replay: " not in k[1]]
    assert not failed, f"{case.name} could not be compiled: {failed}"
    if case.follows:
        assert any(s.followed for s in stats), f"{case.name} was never followed: {stats}"
    return sum(s.replayed for s in stats)


def anywhere(seen: Any) -> Any:
    """An observation, with no word of the device in what was printed."""
    if isinstance(seen, list | tuple):
        return type(seen)([anywhere(s) for s in seen])
    if isinstance(seen, dict):
        return {k: anywhere(s) for k, s in seen.items()}
    return seen.replace(", device='cuda:0'", "") if isinstance(seen, str) else seen


ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError, OverflowError)


def watch(call: Callable[[], Any]) -> Any:
    """What a call gives, or what it raises, as plain data."""
    try:
        return observe(call())
    except ERRORS as e:
        return f"{type(e).__name__}: {str(e)[:40]}"


def drive(f: Callable, inputs: Iterable[Any], *world: Any, after: Callable | None = None) -> list:
    """Call `f` on each input (a tuple: its arguments) and observe the result and the world; callables in it are asked.

    `after(result)` runs between a call and its observation: a backward pass, a write to what came out.
    """
    seen = []
    for given in inputs:
        args = given if isinstance(given, tuple) else (given,)

        def call(args: tuple = args) -> Any:
            result = f(*args)
            if after is not None:
                after(result)
            return result

        seen.append([watch(call), observe([w() if callable(w) and not isinstance(w, flame.Tensor) else w for w in world])])
    return seen


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def tensor(*shape: int, seed: int = 0, grad: bool = False) -> Any:
    return flame.tensor(array(*shape, seed=seed), requires_grad=grad)


def batches(*shape: int, n: int = 7, seed: int = 100, grad: bool = False) -> list:
    """Fresh inputs of one shape, one a call."""
    return [tensor(*shape, seed=seed + i, grad=grad) for i in range(n)]


def of_sizes(sizes: Sequence[int], *rest: int, seed: int = 200) -> list:
    """Inputs whose first dimension changes from call to call."""
    return [tensor(n, *rest, seed=seed + i) for i, n in enumerate(sizes)]
