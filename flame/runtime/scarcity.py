"""What is said where there is no memory left for a computation on the CPU.

    refusal(nbytes, what, parts)      the OutOfMemoryError: how much was wanted, for what, at which line, and who holds memory
    refused_program(recipe, nbytes)   the same of a compiled program, with its largest arrays and their lines
    unmet(error)                      the bytes that NumPy says it could not have

Which lines hold memory is known while somebody watches (`flame.profiler.memory`): `accounts` are asked then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from flame.errors import OutOfMemoryError
from flame.runtime.cuda_statistics import spelled
from flame.runtime.lines import user_source
from flame.runtime.recipe import Recipe

LINES: Final = 8
#: each gives bytes by what holds them, the largest first
accounts: Final[list[Callable[[], Mapping[str, int]]]] = []


def refusal(nbytes: int, what: str, parts: Iterable[tuple[int, str]] = ()) -> OutOfMemoryError:
    """The error for `nbytes` that `what` wanted; `parts` are what it is made of, as (bytes, words)."""
    line = user_source()
    text = f"CPU out of memory. Tried to allocate {spelled(nbytes)} for {what}{line and ', at '}{line}."
    parts = list(parts)
    if parts:
        text += "\nIts largest arrays:" + "".join(f"\n  {spelled(n)}: {told}" for n, told in parts)
    if not accounts:
        return OutOfMemoryError(f"{text}\n(Inside `with flame.profiler.memory.watching():` this says which lines hold memory.)")
    held = [line for account in accounts for line in list(account().items())[:LINES]]
    text += "\nMost is held by what was made at:" + "".join(f"\n  {line}: {spelled(n)}" for line, n in held)
    return OutOfMemoryError(text)


def unmet(error: MemoryError) -> int:
    """Bytes; 0 where the error does not say."""
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    return 0 if shape is None or dtype is None else math.prod(shape) * dtype.itemsize


def refused_program(recipe: Recipe, nbytes: int) -> OutOfMemoryError:
    """The error for `nbytes` that a compiled program wanted: for its arena, or for a result."""
    results = sum(s.nbytes for s in recipe.owned)
    what = f"compiled {recipe.name} ({spelled(recipe.arena_bytes)} of temporary arrays, {spelled(results)} of results)"
    return refusal(nbytes, what, recipe.largest)
