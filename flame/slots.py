"""Slots that are None until they are set: `class Thing(with_slots(("always",), ("seldom", ...)))`.

An instance's ordinary slots have to be set before they are read. A class attribute beside an instance's dictionary has a default,
but is slower to read, and is nowhere that native code could find it. CPython knows a third kind: a member that reads as None while
nothing is there; no statement of Python makes one, so the descriptors are made by the interpreter's own function. Where that can't
be done, the names are class attributes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any, Final

_NONE_WHERE_EMPTY: Final = 6  # T_OBJECT
_MEMBER: Final = object.__basicsize__ + 24  # PyMemberDescrObject: head, d_type, d_name, d_qualname, d_member


class _MemberDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("type", ctypes.c_int), ("offset", ctypes.c_ssize_t), ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]  # fmt: skip


_kept: Final[list[Any]] = []  # descriptors refer to these


def with_slots(always: Sequence[str], seldom: Sequence[str]) -> type:
    """A base class with these slots: those of `always` are set by whoever makes an instance, those of `seldom` are None before."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return type("Slots", (), dict.fromkeys([*always, *seldom]))
    cls = type("Slots", (), {"__slots__": (*always, *seldom)})
    trial = cls()
    for name in seldom:
        member = vars(cls)[name]
        made = _descriptor(cls, name, _MemberDef.from_address(ctypes.c_int64.from_address(id(member) + _MEMBER).value).offset)
        mark = object()
        member.__set__(trial, mark)
        if made.__get__(trial) is not mark:
            return type("Slots", (), dict.fromkeys([*always, *seldom]))
        member.__delete__(trial)
        if made.__get__(trial) is not None:
            return type("Slots", (), dict.fromkeys([*always, *seldom]))
        setattr(cls, name, made)
    return cls


def _descriptor(cls: type, name: str, offset: int) -> Any:
    member = _MemberDef(name.encode(), _NONE_WHERE_EMPTY, offset, 0, None)
    _kept.append(member)
    make = ctypes.pythonapi.PyDescr_NewMember
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.py_object, ctypes.c_void_p]
    return make(cls, ctypes.addressof(member))
