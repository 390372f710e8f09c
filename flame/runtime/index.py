"""Whole programs on disk, by what they compute: a second process that captures a known graph compiles nothing.

    name(text, facts)                          the key of a program, from its graph's text (`flame.compiler.spelling`)
    enter(name, lines, facts, executables)     keep the recipes of one graph, or of its forward and backward
    look_up(name, lines)                       Found: executables, and the facts

A name covers everything that decides what a graph is compiled to: the text, how it was asked for, the CPU, the number of
threads, LLVM's version and flame's own source files. An entry is JSON under the guard of `flame.runtime.cache` (the user's own
folder, a hash over every byte) and names the kernels that it runs, which are entries of their own. What an entry does not say,
a program as people read it, is derived from the graph when somebody asks. Anything that does not fit is a miss.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flame.knobs import knobs
from flame.runtime import cache, cpu, llvm_jit
from flame.runtime.executable import Executable
from flame.runtime.recipe import CallUse, Unencodable, decoded, encoded


@dataclass(frozen=True, slots=True)
class Found:
    """What was kept: executables in the order in which they were entered."""

    executables: tuple[Executable, ...]
    facts: Any


def name(text: str, *facts: str) -> str:
    """The key of what a graph of that text becomes on this machine, asked for with these facts."""
    return cache.key("program", text, *facts, *_circumstances(cpu.target().units))


@functools.cache
def _circumstances(units: int) -> tuple[str, ...]:
    """What is the same for all programs of a process. (`units` are the threads, which the user may change.)"""
    t = cpu.target()
    target = f"{t.kind} {t.arch} {t.lanes} {t.units} {t.cache} {t.library_matmul} {sorted(t.features)}"
    return target, llvm_jit.fingerprint(cpu.host()), llvm_jit.version(), cpu.source_fingerprint("runtime/*.py")


def enter(name: str, lines: str, facts: Any, executables: Sequence[Executable]) -> None:
    """Keep them. `lines` are the user's lines, hashed: they matter where an error of the program would show one."""
    try:
        recipes = [encoded(e.recipe) for e in executables]
    except Unencodable as why:
        _say(f"{executables[0].name} is not kept: {why}")
        return
    calls = any(isinstance(u, CallUse) for e in executables for u in e.recipe.uses)
    entry = json.dumps({"lines": lines if calls else "", "facts": facts, "recipes": recipes})
    cache.shared().put(name, entry.encode())


def look_up(name: str, lines: str, names: Sequence[str]) -> Found | None:
    """What was entered under `name`, called by other `names`; None where it isn't there, or not whole."""
    entry = cache.shared().get(name)
    if entry is None:
        return None
    try:
        found = json.loads(entry)
        recipes, facts = [decoded(r) for r in found["recipes"]], found["facts"]
        if found["lines"] not in ("", lines) or len(recipes) != len(names):
            return None
    except (ValueError, KeyError, TypeError):  # Unencodable among them
        return None
    made = [Executable.of(replace(r, name=n)) for r, n in zip(recipes, names, strict=True)]
    executables = tuple(e for e in made if e is not None)
    if len(executables) < len(made):
        return None
    _say(f"{' and '.join(names)}: the program was found on disk")
    return Found(executables, facts)


def _say(text: str) -> None:
    if "cache" in knobs.log:
        print(f"[flame cache] {text}", file=sys.stderr)
