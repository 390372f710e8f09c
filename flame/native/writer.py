"""Writing one function: lines and registers, the references that it holds, what its names mean."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flame.native import layout
from flame.native.units import Module, Unit, Untranslatable, Value, definition, hinted, parameters, rest

_MISSING: Any = object()


class Writer:
    """One function under translation."""

    run_for: Callable[[ast.For], None]

    def __init__(self, module: Module, unit: Unit):
        self.m = module
        self.unit = unit
        self.function = unit.function
        self.tree = definition(unit.function)
        self.parameters = [*parameters(unit.function), *unit.free]
        self.lines: list[str] = []
        self.places: list[str] = []  #: variables and temporaries
        self.arrays: list[str] = []
        self.variables: dict[str, type | None] = {}
        self.sure = set(self.parameters)  #: variables that surely are set where the text has come to
        self.declared: dict[str, type | None] = dict(unit.likely)
        self.assigned = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.n = 0
        self.open: list[str] = []  #: temporaries of the statement
        self.spare: list[str] = []  #: places where none is now
        self.loops: list[tuple[str, str]] = []
        self.failing = "fail"  #: where to go with an error set
        #: what is still to be done before the function is left, the innermost last, and where to go if that fails
        self.endings: list[tuple[list[ast.stmt], str]] = []
        self.guarded = False  #: whether anything is done after a failure
        #: of a function of (self, *args, **kwargs): what these are called
        self.rest = rest(unit.function)

    # ---- names and lines

    def fresh(self, what: str = "v") -> str:
        self.n += 1
        return f"%{what}{self.n}"

    def label(self, what: str) -> str:
        self.n += 1
        return f"{what}{self.n}"

    def emit(self, line: str) -> None:
        self.lines.append("  " + line)

    def begin(self, label: str) -> None:
        self.lines.append(f"{label}:")

    def do(self, instruction: str, what: str = "v") -> str:
        r = self.fresh(what)
        self.emit(f"{r} = {instruction}")
        return r

    def refuse(self, node: ast.AST, what: str = "") -> Untranslatable:
        line = self.function.__code__.co_firstlineno + getattr(node, "lineno", 1) - 1
        return Untranslatable(f"{self.function.__qualname__}, line {line}: {what or type(node).__name__} can't be translated")

    def branch(self, condition: str, yes: str, no: str) -> None:
        self.emit(f"br i1 {condition}, label %{yes}, label %{no}")

    def jump(self, label: str) -> None:
        self.emit(f"br label %{label}")

    def check(self, register: str) -> None:
        """Fail where a call gave nothing."""
        bad, good = self.do(f"icmp eq ptr {register}, null"), self.label("good")
        self.branch(bad, self.failing, good)
        self.begin(good)

    def check_number(self, register: str, kind: str = "i32") -> None:
        bad, good = self.do(f"icmp slt {kind} {register}, 0"), self.label("good")
        self.branch(bad, self.failing, good)
        self.begin(good)

    # ---- references

    def place(self) -> str:
        """A place for a reference that is held until the statement ends; nothing is there now."""
        if self.spare:
            p = self.spare.pop()
        else:
            p = self.fresh("t")
            self.places.append(p)
        self.open.append(p)
        return p

    def temporary(self, register: str) -> str:
        """Hold a new reference until the statement ends."""
        p = self.place()
        self.emit(f"store ptr {register}, ptr {p}")
        return p

    def hold(self, v: Value) -> Value:
        """The same value, good until the statement ends."""
        if not v.loose:
            return v
        self.take(v.register)
        self.temporary(v.register)
        return Value(v.register, v.hint, v.constant)

    def take(self, register: str) -> None:
        self.emit(f"call void @flame_incref(ptr {register})")

    def release(self, places: Sequence[str]) -> None:
        for p in places:  # (by value: a place whose address is passed to nobody becomes a register)
            x = self.do(f"load ptr, ptr {p}")
            self.emit(f"store ptr null, ptr {p}")
            self.emit(f"call void @flame_decref(ptr {x})")

    @contextmanager
    def statement(self) -> Iterator[None]:
        before, self.open = self.open, []
        yield
        self.release(self.open)
        self.spare += self.open
        self.open = before

    def new(self, register: str, hint: type | None = None) -> Value:
        """What a call gave: a new reference, or nothing where it failed."""
        self.check(register)
        self.temporary(register)
        return Value(register, hint)

    def constant(self, x: Any) -> Value:
        return Value(self.m.constant(x), hinted(type(x), self.m), x)

    # ---- the function

    # ---- names

    def _parameter_hint(self, name: str) -> type | None:
        if name in self.unit.likely:
            return self.unit.likely[name]
        if name == "self" and self.unit.owner is not None:
            owner = self.unit.owner
            return self.m.hints.receivers.get(owner, owner)
        return self.named(self.function.__annotations__.get(name))

    def named(self, annotation: Any) -> type | None:
        """The class of an annotation that hints are of."""
        if isinstance(annotation, str):
            for word in re.findall(r"[\w.]+", re.sub(r"\[.*\]", "", annotation)):
                name, *rest = word.split(".")
                found = self.look_up(name, None)
                for attribute in rest:
                    found = getattr(found, attribute, None)
                if isinstance(found, type) and hinted(found, self.m) is not None:
                    return found
        return None

    def look_up(self, name: str, otherwise: Any = _MISSING) -> Any:
        f = self.function
        if f.__closure__ is not None and name in f.__code__.co_freevars:
            return f.__closure__[f.__code__.co_freevars.index(name)].cell_contents
        if name in f.__globals__:
            return f.__globals__[name]
        got = getattr(builtins, name, otherwise)
        if got is _MISSING:
            raise Untranslatable(f"{f.__qualname__}: nothing is named {name}")
        return got

    def set_variable(self, name: str, v: Value) -> None:
        p = f"%local.{name}"
        if name not in self.variables:
            self.places.append(p)
            self.variables[name] = self.declared.get(name) or v.hint
        elif self.variables[name] is None:
            self.variables[name] = v.hint
        self.take(v.register)
        old = self.do(f"load ptr, ptr {p}")
        self.emit(f"store ptr {v.register}, ptr {p}")
        self.emit(f"call void @flame_decref(ptr {old})")
        self.sure.add(name)

    def complain(self, kind: type[Exception], words: str) -> None:
        self.emit(f"call void @PyErr_SetObject(ptr {self.m.constant(kind)}, ptr {self.m.constant(words)})")
        self.jump(self.failing)

    # ---- objects

    def piece(self, name: str) -> str:
        """A function of `flame.native.pieces`, in place where the unit is worth it."""
        return f"@{name}_here" if self.unit.often else f"@{name}"

    def is_exactly(self, register: str, cls: type) -> str:
        p = self.do(f"getelementptr i8, ptr {register}, i64 {layout.TYPE}")
        found = self.do(f"load ptr, ptr {p}")
        return self.do(f"icmp eq ptr {found}, {self.m.constant(cls)}")

    def like(self, register: str, cls: type) -> str:
        """The class of a value where its instances lie as those of `cls`; else `cls`."""
        p = self.do(f"getelementptr i8, ptr {register}, i64 {layout.TYPE}")
        found = self.do(f"load ptr, ptr {p}")
        chosen = self.m.constant(cls)
        for other in self.m.hints.alike[cls]:
            same = self.do(f"icmp eq ptr {found}, {self.m.constant(other)}")
            chosen = self.do(f"select i1 {same}, ptr {self.m.constant(other)}, ptr {chosen}")
        return chosen

    def _is_builtin(self, name: ast.Name, what: Any) -> bool:
        return name.id not in self.variables and name.id not in self.assigned and self.look_up(name.id, None) is what
