"""Translated functions made builtins, and put in the place of what they were translated from.

    native = Native(units, hints)      translated
    native.begin()                     object code is being made for it by another process: see `flame.runtime.llvm_apart`
    native.link()                      compiled (or found on disk) and linked
    native.put(), native.take_away()   the builtins are in force; the Python functions are

A method becomes a method descriptor of its class, a function a builtin in its module; what was bound before by another name goes on
being the Python function, which does the same.
"""

from __future__ import annotations

import ctypes
import sys
import types
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from flame.native import layout, pieces
from flame.native.translate import translated
from flame.native.units import Hints, Module, Unit, Untranslatable, parameters, rest
from flame.runtime import llvm_apart, llvm_jit

_VARIABLE: Final = 0x0001 | 0x0002  # a tuple, and a dictionary or nothing
_FASTCALL_KEYWORDS: Final = 0x0080 | 0x0002


class _MethodDef(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("method", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]


_WHAT: Final = "native capture"
_ours: Final[dict[int, Any]] = {}  #: every builtin that was made, by identity


@dataclass(frozen=True, slots=True)
class Closure:
    """One closure of a unit: the method `name` of `owner`, and the objects that it is of. Called in another `way` than is said, it
    is the Python method that stands there:

        plain   so many arguments as the unit has parameters besides; the unit takes these
        star    any number of arguments, unnamed; the unit takes a tuple of them
        call    any arguments; the unit takes a tuple, and a dictionary of the named ones that is its own
        whole   any arguments; the unit takes a tuple that begins with the object that the method is called of, and a dictionary
    """

    unit: str
    owner: type
    name: str
    given: tuple[Any, ...]
    way: Literal["plain", "star", "call", "whole"] = "plain"


class Native:
    """See the head of this file. Raises `Untranslatable` where a function can't be translated."""

    def __init__(self, units: Sequence[Unit], hints: Hints, closures: Sequence[Closure] = ()):
        module = Module(units, hints)
        for number, found in enumerate(hints.locals.values()):
            found["cell"] = f"@cell{number}"
            module.cells.append(f"cell{number}")
        numbers = {
            "type": layout.TYPE,
            "size": layout.SIZE,
            "list_items": layout.LIST_ITEMS,
            "list_room": layout.LIST_ROOM,
            "tuple_items": layout.TUPLE_ITEMS,
        }
        basics: dict[str, Any] = {
            "True": True,
            "False": False,
            "None": None,
            "list": list,
            "tuple": tuple,
            "int": int,
            "float": float,
        }
        basics |= {"object": object, "typetype": type, "TypeError": TypeError, "weakref": weakref.ref}
        basics["fresh"] = "native code has no place for what only an attribute's computation made"
        body = translated(module) + "\n".join(_thunk(module, c) for c in closures)
        names = {k: module.constant(x)[1:] for k, x in basics.items()}
        declared = "".join(f"@{n} = external global i8\n" for n in module.objects)
        text = declared + pieces.text({**numbers, **names}, layout.counts()) + body
        self.text = text
        self._units, self._closures, self._objects = units, closures, module.objects
        #: where each is put: class or module, name, what was there, the builtin
        self.places: list[tuple[Any, str, Any, Any]] = []

    def begin(self) -> llvm_apart.Making | None:
        """Have object code made by another process. None where it is there, or only this one can make it."""
        return llvm_apart.begin(self.text, llvm_jit.baseline(), passes=1, what=_WHAT)

    def link(self) -> Native:
        """Itself, with builtins. Raises CompileError where LLVM refuses."""
        units, closures, objects = self._units, self._closures, self._objects
        symbols = [f"py.{u.symbol}" for u in units if not u.shared] + [f"py.{c.owner.__name__}.{c.name}" for c in closures]
        imports = {name: id(x) for name, x in objects.items()}
        for name in pieces.INTERPRETER:
            address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
            assert address is not None
            imports[name] = address
        obj = llvm_jit.cached_object(self.text, llvm_jit.baseline(), passes=1, what=_WHAT)
        code = llvm_jit.link(obj, symbols, imports, what=_WHAT)
        llvm_jit.immortal(objects)  # (as what builtins refer to)
        for u in units:
            if u.shared:
                continue
            f = u.function
            if u.owner is not None:
                self.places.append((u.owner, f.__name__, f, _descriptor(u.owner, f, code[f"py.{u.symbol}"])))
            else:
                where = sys.modules[f.__module__]
                self.places.append((where, f.__name__, f, _builtin(f, code[f"py.{u.symbol}"])))
        for c in closures:
            flags = _VARIABLE if c.way == "call" else _FASTCALL_KEYWORDS
            f = vars(c.owner)[c.name]
            self.places.append((c.owner, c.name, f, _descriptor(c.owner, f, code[f"py.{c.owner.__name__}.{c.name}"], flags)))
        _ours.update((id(builtin), builtin) for *_, builtin in self.places)
        return self

    def put(self) -> None:
        for where, name, function, builtin in self.places:
            there = vars(where)[name]
            if there is function or id(there) in _ours:  # (else somebody put something in its place, which stays)
                setattr(where, name, builtin)

    def take_away(self) -> None:
        for where, name, function, builtin in self.places:
            if vars(where)[name] is builtin:
                setattr(where, name, function)


def _thunk(m: Module, c: Closure) -> str:
    """A method that passes on what its closure is of."""
    unit = m.units[c.unit]
    if len(c.given) != len(unit.free) + unit.bound:
        raise Untranslatable(f"{c.owner.__name__}.{c.name} is no closure of {c.unit}")
    name = f"@py.{c.owner.__name__}.{c.name}"
    given = "".join(f", ptr {m.constant(x)}" for x in c.given)
    if c.way == "call":
        return f"""define ptr {name}(ptr %self, ptr %args, ptr %named) {{
  %none = icmp eq ptr %named, null
  br i1 %none, label %without, label %with
without:
  %made = call ptr @PyDict_New()
  %wrong = icmp eq ptr %made, null
  br i1 %wrong, label %fail, label %go
go:
  %got = call ptr @{c.unit}(ptr %self, ptr %args, ptr %made{given})
  call void @flame_decref(ptr %made)
  ret ptr %got
with:
  %answer = call ptr @{c.unit}(ptr %self, ptr %args, ptr %named{given})
  ret ptr %answer
fail:
  ret ptr null
}}
"""
    if c.way == "whole":
        return f"""define ptr {name}(ptr %self, ptr %args, i64 %count, ptr %names) {{
  %all = call ptr @flame_packed_behind(ptr %self, ptr %args, i64 %count)
  %wrong = icmp eq ptr %all, null
  br i1 %wrong, label %fail, label %name
name:
  %named = call ptr @flame_rest_dict(ptr %args, i64 %count, ptr %names)
  %none = icmp eq ptr %named, null
  br i1 %none, label %drop, label %go
go:
  %got = call ptr @{c.unit}(ptr %all, ptr %named{given})
  call void @flame_decref(ptr %named)
  call void @flame_decref(ptr %all)
  ret ptr %got
drop:
  call void @flame_decref(ptr %all)
  br label %fail
fail:
  ret ptr null
}}
"""
    n = len(parameters(unit.function)) - 1 - unit.bound
    taken = range(n if c.way == "plain" else 0)
    loads = [f"  %p{i} = getelementptr ptr, ptr %args, i64 {i}\n  %a{i} = load ptr, ptr %p{i}" for i in taken]
    passed = "".join(f", ptr %a{i}" for i in range(n))
    fits, more, after = f"icmp eq i64 %count, {n}", "", ""
    if c.way == "star":
        fits = "icmp sge i64 %count, 0"
        more = "  %a0 = call ptr @flame_packed(ptr %args, i64 %count)\n  %wrong = icmp eq ptr %a0, null\n"
        more += "  br i1 %wrong, label %fail, label %packed\npacked:\n"
        after = "  call void @flame_decref(ptr %a0)\n"
    return f"""define ptr {name}(ptr %self, ptr %args, i64 %count, ptr %names) {{
  %fits = {fits}
  %unnamed = icmp eq ptr %names, null
  %plain = and i1 %fits, %unnamed
  br i1 %plain, label %go, label %other
go:
{more}{chr(10).join(loads)}
  %got = call ptr @{c.unit}(ptr %self{passed}{given})
{after}  ret ptr %got
other:
  %slow = call ptr @flame_otherwise(ptr {m.constant(vars(c.owner)[c.name])}, ptr %self, ptr %args, i64 %count, ptr %names)
  ret ptr %slow
{"fail:" + chr(10) + "  ret ptr null" if c.way == "star" else ""}
}}
"""


def _method(function: Any, address: int, flags: int = _FASTCALL_KEYWORDS) -> _MethodDef:
    """(Of one that takes any arguments, people may ask for its signature.)"""
    name = function.__name__
    further = isinstance(function, types.FunctionType) and flags == _FASTCALL_KEYWORDS and rest(function)
    doc = f"{name}($self, /, *args, **kwargs)\n--\n\n".encode() if further else None
    made = _MethodDef(name.encode(), address, flags, doc)
    llvm_jit.immortal(made)
    return made


def _descriptor(owner: type, function: Any, address: int, flags: int = _FASTCALL_KEYWORDS) -> Any:
    make = ctypes.pythonapi.PyDescr_NewMethod
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.py_object, ctypes.c_void_p]
    return make(owner, ctypes.addressof(_method(function, address, flags)))


def _builtin(function: Any, address: int) -> Any:
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.py_object]
    return make(ctypes.addressof(_method(function, address)), None, function.__module__)
