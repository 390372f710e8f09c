"""How this interpreter's objects lie in memory, found out and tried before anything relies on it.

    usable()          why native code can't be used here; "" where it can
    counts()          how references are counted
    offsets(cls)      slot name -> bytes from the start of an instance

Only what the CPython of every supported version has in common is relied on: an object begins with its count and its type, lists
and tuples say their size behind it, and a slot is at the offset that its member descriptor gives. Each of these is read on real
objects first.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import sysconfig
from typing import Any, Final

from flame.runtime import llvm_jit

HEAD: Final = object.__basicsize__
TYPE: Final = HEAD - 8
SIZE: Final = HEAD
TUPLE_ITEMS: Final = tuple.__basicsize__
LIST_ITEMS: Final = HEAD + 8
LIST_ROOM: Final = HEAD + 16
_MEMBER: Final = HEAD + 24  # PyMemberDescrObject: head, d_type, d_name, d_qualname, d_member
_OFFSET: Final = 16  # PyMemberDef: name, type, offset


def word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


@functools.cache
def usable() -> str:
    """The reason why not, or nothing."""
    if sys.implementation.name != "cpython":
        return f"the interpreter is {sys.implementation.name}, not CPython"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this build of CPython has no interpreter lock"
    if ctypes.sizeof(ctypes.c_void_p) != 8 or HEAD != 16:
        return "objects of this interpreter begin in another way"
    if not llvm_jit.available():
        return "llvmlite is not installed"
    mark, more = object(), object()
    pair, items = (mark, more), [mark, more, mark]
    if word(id(mark) + TYPE) != id(object):
        return "an object's type is elsewhere"
    if word(id(pair) + SIZE) != 2 or [word(id(pair) + TUPLE_ITEMS + 8 * i) for i in range(2)] != [id(mark), id(more)]:
        return "tuples lie in another way"
    inside = word(id(items) + LIST_ITEMS)
    if word(id(items) + SIZE) != 3 or [word(inside + 8 * i) for i in range(3)] != [id(mark), id(more), id(mark)]:
        return "lists lie in another way"
    grown = [mark]
    for n in range(2, 40):  # (room for how many there is: never for fewer than there are, and more at times)
        grown.append(mark)
        if not n <= word(id(grown) + LIST_ROOM) <= 2 * n + 8:
            return "lists grow in another way"
    if word(id(grown) + LIST_ROOM) * 8 + list.__basicsize__ != grown.__sizeof__():
        return "lists grow in another way"
    return ""


@functools.cache
def counts() -> str:
    """How references are counted at an object's start: "i64", or "i32" where that is less than zero for what is never freed.
    Nothing where it is not found to be so: the interpreter's own functions know."""
    if sys.byteorder != "little" or hasattr(sys, "gettotalrefcount"):  # (a build that counts all references there are)
        return ""
    if sys.version_info < (3, 12):
        kind, width = "i64", ctypes.c_int64
    elif sys.version_info < (3, 15):
        kind, width = "i32", ctypes.c_int32
        if any(width.from_address(id(x)).value >= 0 for x in (None, True)):
            return ""
    else:
        return ""
    mark = object()
    before = width.from_address(id(mark)).value
    held = [mark, mark, mark]
    during = width.from_address(id(mark)).value
    del held
    steady = width.from_address(id(mark)).value == before
    return kind if steady and 0 < before < 100 and during == before + 3 else ""


class Elsewhere(RuntimeError):
    """A slot does not lie where its descriptor says."""


def offsets(cls: type) -> dict[str, int]:
    """Of every slot of a class and its bases. Raises Elsewhere where one does not hold what is put there."""
    found: dict[str, int] = {}
    trial: Any = object.__new__(cls)
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            if type(member).__name__ != "member_descriptor" or base.__module__ == "builtins":
                continue
            offset = word(word(id(member) + _MEMBER) + _OFFSET)
            mark = object()
            if not HEAD <= offset <= cls.__basicsize__ - 8:
                raise Elsewhere(f"{cls.__name__}.{name}")
            _put(trial, member, mark)
            if word(id(trial) + offset) != id(mark):
                raise Elsewhere(f"{cls.__name__}.{name}")
            member.__delete__(trial)
            if word(id(trial) + offset) != 0:
                raise Elsewhere(f"{cls.__name__}.{name}")
            found[name] = offset
    return found


def _put(trial: Any, member: Any, mark: object) -> None:
    member.__set__(trial, mark)
