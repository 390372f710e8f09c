"""What translating a function begins with: what is to be translated, what is likely of it, and the objects that it names.

unit       a Python function that is to be translated; it goes on being the definition of what the native code does
hint       the class that a value most likely has. Slots of such a value, items of such a tuple, calls of such a method are
           done in place where the class is exactly that one, and as Python does them otherwise: a wrong hint costs time only
value      a pointer to an object. It is borrowed, from a local variable, a constant or a temporary
temporary  a reference that is held until its statement ends
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Untranslatable(Exception):
    """A function uses what can't be translated: a mistake of whoever listed it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A function that is to be native. `free` names what is not the same in every closure of one code: further arguments."""

    symbol: str
    function: types.FunctionType
    owner: type | None = None
    free: tuple[str, ...] = ()
    #: variables -> the class that they most likely have, where no annotation says so
    likely: Mapping[str, type] = field(default_factory=dict)
    #: how many of the last parameters are not given by whoever calls, but by each closure, as `free` is
    bound: int = 0
    #: whether it runs so often that what it reads is read in place, which is more text to compile
    often: bool = False

    @property
    def shared(self) -> bool:
        """Whether it is the code of closures, and nothing that is called by itself."""
        return bool(self.free or self.bound)


@dataclass(slots=True)
class Hints:
    """What is likely. `slots` are the classes whose slots are read in place; `alike` those whose instances lie as another's;
    `attributes` (class, name) -> class of what is there; `receivers` class -> the one that `self` has in its methods."""

    slots: dict[type, dict[str, int]] = field(default_factory=dict)
    #: of these, the names that read as None while nothing is there
    empty: dict[type, frozenset[str]] = field(default_factory=dict)
    alike: dict[type, tuple[type, ...]] = field(default_factory=dict)
    attributes: dict[tuple[type, str], type] = field(default_factory=dict)
    receivers: dict[type, type] = field(default_factory=dict)
    #: methods that an instance may have one of its own of: (class, name)
    own: frozenset[tuple[type, str]] = frozenset()
    #: threading.local objects -> the cells that remember this thread's dictionary, and what a name is where it is not set
    locals: dict[int, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Value:
    """A register that points to an object; `loose` if it is only good until something is called."""

    register: str
    hint: type | None = None
    constant: Any = None
    loose: bool = False


class Module:
    """Text under construction: functions, and the objects that they name."""

    def __init__(self, units: Sequence[Unit], hints: Hints):
        self.hints = hints
        self.units = {u.symbol: u for u in units}
        plain = [u for u in units if not u.shared and not rest(u.function)]
        self.by_function = {id(u.function): u for u in plain}
        self.by_method = {(u.owner, u.function.__name__): u for u in plain if u.owner is not None}
        self.objects: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._interned: dict[tuple[type, Any], Any] = {}
        self.cells: list[str] = []

    def constant(self, x: Any) -> str:
        """The symbol of an object, whose address it is."""
        if type(x) in (str, int, float):
            x = self._interned.setdefault((type(x), repr(x)), x)
        elif type(x) is tuple:
            x = self._interned.setdefault((tuple, repr(x)), x)
        name = self._names.get(id(x))
        if name is None:
            word = re.sub(r"\W+", "_", getattr(x, "__name__", "") or (x if type(x) is str else type(x).__name__))
            name = self._names[id(x)] = f"o{len(self.objects)}.{word[:24]}"
            self.objects[name] = x
        return f"@{name}"


def parameters(function: types.FunctionType) -> list[str]:
    """The plain ones."""
    code = function.__code__
    if code.co_kwonlyargcount or (rest(function) and (code.co_argcount != 1 or function.__defaults__)):
        raise Untranslatable(f"{function.__qualname__} has arguments that are not plain ones")
    return list(code.co_varnames[: code.co_argcount])


def rest(function: types.FunctionType) -> tuple[str, str] | None:
    """What further arguments by position and by name are called (""), if there may be any: they can only be passed on."""
    code = function.__code__
    n, several, named = code.co_argcount, code.co_flags & inspect.CO_VARARGS, code.co_flags & inspect.CO_VARKEYWORDS
    if not several and not named:
        return None
    return code.co_varnames[n] if several else "", code.co_varnames[n + bool(several)] if named else ""


def defaults(function: types.FunctionType) -> tuple:
    return function.__defaults__ or ()


def definition(function: types.FunctionType) -> ast.FunctionDef:
    found = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(found, ast.FunctionDef)
    return found


def hinted(cls: type, m: Module) -> type | None:
    return cls if cls in m.hints.slots or cls in (list, tuple, weakref.ref) else None
