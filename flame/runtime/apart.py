"""An executable run step by step, each with the time that it took: what a profiler asks for.

A native call that runs all kernels of a program in a row is made of as many calls as it has kernels; that costs a microsecond or
two each. Results are the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from flame.runtime import cpu, memory, threads
from flame.runtime.entry import NativeStep, Plan
from flame.runtime.executable import Executable, Stage, fitted, interpreted_stage
from flame.runtime.recipe import CallUse, GuardUse, InterpretedUse, NativeUse

#: told of a step's number, and when it began and ended, in nanoseconds
Told = Callable[[int, int, int], None]


class Apart:
    """The stages of an executable, one a step of its program."""

    def __init__(self, executable: Executable):
        self._of = executable
        recipe = executable.recipe
        arrays = [*recipe.inputs, *recipe.owned]
        #: step, what runs it, and the arrays after it of which none may be true for the next to run
        self._stages: list[tuple[int, Stage, list[int]]] = []
        pending: list[NativeStep] = []
        step = -1

        def finish() -> None:
            if pending:
                self._stages.append((step, executable.native_stage(Plan(arrays, pending)), []))
                pending.clear()

        for use in recipe.uses:
            match use:
                case NativeUse():
                    if use.phase == 0:
                        finish()
                        step += 1
                    function = cpu.recall(use.kernel)[use.phase].function
                    pending.append(NativeStep(function, use.places, use.chunks, use.parallel, use.symbols, use.microseconds))
                case GuardUse():
                    finish()
                    self._stages[-1][2].append(use.at)
                case CallUse():
                    finish()
                    step += 1
                    self._stages.append((step, executable.call_stage(use), []))
                case InterpretedUse():
                    finish()
                    step += 1
                    self._stages.append((step, interpreted_stage(use), []))
        finish()
        self._parallel = any(isinstance(u, NativeUse) and u.parallel for u in recipe.uses)

    def __call__(self, arrays: Sequence[np.ndarray], told: Told) -> list[np.ndarray]:
        """What `Executable.__call__` does."""
        recipe, clock = self._of.recipe, time.perf_counter_ns
        if len(arrays) != len(recipe.inputs):
            raise TypeError(f"{recipe.name} takes {len(recipe.inputs)} arrays, got {len(arrays)}")
        given = list(arrays)
        held = [
            fitted(a, spec, f"{recipe.name}: input {i}") for i, (a, spec) in enumerate(zip(given, recipe.inputs, strict=True))
        ]
        held += [make() for make in self._of._makers]
        if self._parallel and threads.shared.wanting:
            threads.shared.start()
        block = memory.shared.take_arena(max(recipe.arena_bytes, 1), self._of._refuse)
        try:
            for step, stage, stops in self._stages:
                begin = clock()
                stage(held, block)
                told(step, begin, clock())
                if any(held[s].any() for s in stops):
                    break
        finally:
            memory.shared.give_arena(block)
        for i in recipe.updated:
            if held[i] is not given[i]:
                np.copyto(given[i], held[i])
                held[i] = given[i]
        return [held[i].copy() if whole else held[i] for i, whole in recipe.results]
