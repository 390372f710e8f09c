"""What a function's Python can see besides its arguments, as it was at one moment, and whether it still is that.

    watch = Watch(roots)      walks from functions and objects to all that their code can reach
    watch.holds()             the cheap check: what can change without being noted (globals, closures, lists, dicts, objects)
    watch.still()             the whole check: modules too; needed when `changes.now` is another token

Walked are closures, defaults, the globals that code names, attributes of objects, classes and Python modules by the names that the
code uses, containers, modules of flame (`Noted`) with all that hangs on them. The code of Python's own library, of NumPy and of
flame counts as constant. What can't be looked into raises `Unprovable`.

Everything found is held, so an identity can't be another object's later.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from collections import deque
from collections.abc import Iterable
from operator import is_, itemgetter
from typing import Any

import numpy as np

from flame import dtypes
from flame.changes import Noted, changes
from flame.dtypes import dtype
from flame.primitive import Primitive
from flame.reasons import REPLAY_OPAQUE, Reason
from flame.runtime.device import device
from flame.tensor import Tensor

LIBRARY = frozenset(sys.stdlib_module_names - {"__main__"} | {"flame", "numpy", "ml_dtypes", "builtins"})
CONSTANTS = (
    bool, int, float, complex, str, bytes, range, slice, type(None), type(...), type(NotImplemented), dtype, device, enum.Enum,
    Primitive, np.generic, np.dtype, np.ufunc, types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.MethodWrapperType, types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType,
)  # fmt: skip
#: attributes of modules that hold registries and hooks, which are looked at by themselves
_OWN = frozenset(
    "_parameters _buffers _modules _forward_pre_hooks _forward_hooks _backward_pre_hooks _backward_hooks _state_hooks "
    "_non_persistent_buffers_set _compiled_call".split()
)
_MOST = 200_000  #: objects walked; what has more is not watched
#: special methods that the code of a captured function can't come through
_MAKING = frozenset("__init__ __new__ __repr__ __str__ __init_subclass__ __reduce__ __reduce_ex__ __del__ __set_name__".split())


class Unprovable(Exception):
    """Why Python can't be skipped."""

    def __init__(self, reason: Reason, *details: object, source: str = ""):
        super().__init__(reason.text(*details))
        self.text = reason.text(*details)
        self.source = source


class Watch:
    """See the head of this file. `held` are the tensors found, in order, with their names; `owned` the places among them of
    parameters and buffers; `hooked` names a module that has hooks, if any does."""

    def __init__(self, roots: Iterable[tuple[str, Any]]):
        self.held: list[tuple[Tensor, str]] = []
        self.place: dict[int, int] = {}  #: id of a held tensor -> its place
        self.owned: set[int] = set()
        self.hooked = ""
        self._modules: list[tuple[dict, tuple, tuple]] = []
        self._sequences: list[tuple[Any, tuple]] = []
        self._mappings: list[tuple[Any, tuple, tuple]] = []
        self._sets: list[tuple[Any, frozenset]] = []
        self._cells: list[tuple[Any, Any]] = []
        self._code_cells: list[tuple[Any, Any]] = []
        self._bound: list[tuple[Any, Any, tuple]] = []  #: namespace, getter of the names used, what they were bound to
        self._seen: dict[int, Any] = {}
        self._names: set[str] = set()
        self._spaces: dict[int, tuple[Any, str, set[str]]] = {}
        self._stack: list[tuple[str, Any]] = list(roots)
        self.token = changes.now
        self._default = dtypes.get_default_dtype()
        self._walk()
        #: whether anything is seen whose changes nobody notes
        self.loose = bool(self._sequences or self._mappings or self._cells or self._sets or self._bound)
        self._settings = [(t, t._array, bool(t._requires_grad)) for t, _ in self.held]

    # ---- whether it still is so

    def holds(self) -> bool:
        """Whether nothing has changed among what nobody notes changes of."""
        for items, was in self._sequences:
            if len(items) != len(was) or not all(map(is_, items, was)):
                return False
        for d, keys, values in self._mappings:
            if len(d) != len(keys) or not all(map(is_, d, keys)) or not all(map(is_, d.values(), values)):
                return False
        if not _hold(self._cells):
            return False
        for members, were in self._sets:
            if members != were:
                return False
        for space, get, values in self._bound:
            try:
                if not all(map(is_, get(space), values)):
                    return False
            except KeyError:
                return False
        return True

    def still(self) -> bool:
        """Whether nothing has changed at all; then the token is today's."""
        token = changes.now
        if self._default is not dtypes.get_default_dtype() or not self.holds() or not _hold(self._code_cells):
            return False
        for d, keys, values in self._modules:
            if len(d) != len(keys) or not all(map(is_, d, keys)) or not all(map(is_, d.values(), values)):
                return False
        for t, array, requires_grad in self._settings:
            if t._array is not array or bool(t._requires_grad) is not requires_grad:  # (None means no)
                return False
            if t._hooks is not None and (t._hooks.hooks or t._hooks.post_hooks):
                return False
        self.token = token
        return True

    def swapped(self) -> bool:
        """Whether a tensor that is held has left its place: this watch will hardly ever hold again, but keeps its memory."""
        if any(t._array is not array for t, array, _ in self._settings):
            return True
        for d, keys, values in self._modules:
            if any(isinstance(v, Tensor) and d.get(k) is not v for k, v in zip(keys, values, strict=True)):
                return True
        return False

    def difference(self) -> str:
        """What has changed, in words; empty if nothing has."""
        if self.still():
            return ""
        for d, keys, values in (*self._modules, *self._mappings):
            for k, v in zip(keys, values, strict=True):
                if d.get(k, d) is not v:
                    return f"{k} of {self._named(d)}"
            if len(d) != len(keys):
                return f"{next(k for k in reversed(d) if k not in keys)} of {self._named(d)}"
        for space, get, values in self._bound:
            names = get.__reduce__()[1]
            for n, v in zip(names, values, strict=True):
                if space.get(n, space) is not v:
                    return f"{space.get('__name__', space.get('__qualname__', ''))}.{n}"
        for items, was in self._sequences:
            if len(items) != len(was) or not all(map(is_, items, was)):
                return f"a {type(items).__name__} of {len(was)} items"
        return "a variable of a closure, a set, or the default dtype"

    def _named(self, d: dict) -> str:
        for x in self._seen.values():
            if getattr(x, "__dict__", None) is d:
                return f"a {type(x).__name__}"
        return f"a dict of {len(d)} items"

    # ---- the walk

    def _walk(self) -> None:
        while True:
            while self._stack:
                name, x = self._stack.pop()
                if isinstance(x, CONSTANTS) or id(x) in self._seen:
                    continue
                self._seen[id(x)] = x
                if len(self._seen) > _MOST:
                    raise Unprovable(REPLAY_OPAQUE, f"{name} (more than {_MOST} objects)")
                self._visit(name, x)
            if not self._look_up():
                break
        for space, _, names in self._spaces.values():
            if names:
                these = sorted(names)
                self._bound.append((space, itemgetter(these[0], *these), (space[these[0]], *(space[n] for n in these))))

    def _look_up(self) -> bool:
        """Put on the stack what the names used by now mean in the namespaces met by now; whether there was anything."""
        for space, where, done in self._spaces.values():
            for n in (self._names & space.keys()) - done:
                done.add(n)
                self._stack.append((f"{where}.{n}" if where else n, space[n]))
        return bool(self._stack)

    def _visit(self, name: str, x: Any) -> None:
        put = self._stack.append
        match x:
            case Tensor():
                self.place[id(x)] = len(self.held)
                self.held.append((x, name))
            case Noted():
                self._visit_module(name, x)
            case types.FunctionType():
                self._visit_function(name, x)
            case types.MethodType():
                put((name, x.__self__))
                put((name, x.__func__))
            case functools.partial():
                put((name, x.func))
                put((name, x.args))
                put((name, x.keywords))
            case staticmethod() | classmethod():
                put((name, x.__func__))
            case property():
                put((name, x.fget))
            case functools.cached_property():
                put((name, x.func))
            case types.ModuleType():
                if not _in_library(x.__name__):
                    self._space(vars(x), x.__name__)
            case type():
                for c in x.__mro__:
                    if not _in_library(c.__module__):
                        self._visit_class(c)
            case tuple() | frozenset():
                self._stack += [(f"{name}[{i}]", v) for i, v in enumerate(x)]
            case list() | deque():
                self._sequences.append((x, tuple(x)))
                self._stack += [(f"{name}[{i}]", v) for i, v in enumerate(x)]
            case dict():
                self._visit_dict(name, x)
            case set():
                self._sets.append((x, frozenset(x)))
                self._stack += [(name, v) for v in x]
            case _:
                self._visit_object(name, x)

    def _visit_dict(self, name: str, d: Any) -> None:
        self._mappings.append((d, tuple(d), tuple(d.values())))
        self._stack += [(f"{name}[{k!r}]" if isinstance(k, str | int) else name, v) for k, v in d.items()]
        self._stack += [(name, k) for k in d]

    def _visit_module(self, name: str, m: Any) -> None:
        d = vars(m)
        if d.get("_hooked"):
            self.hooked = self.hooked or name
        self._modules.append((d, tuple(d), tuple(d.values())))
        for k, v in d.items():
            if k not in _OWN:
                self._stack.append((f"{name}.{k}", v))
        for registry in ("_parameters", "_buffers"):
            for k, t in d.get(registry, {}).items():
                if t is not None and id(t) not in self._seen:
                    self._seen[id(t)] = t
                    self.owned.add(len(self.held))
                    self.place[id(t)] = len(self.held)
                    self.held.append((t, f"{name}.{k}"))
                elif t is not None:
                    self.owned.add(self.place[id(t)])
        self._names.add("forward")
        self._stack.append((type(m).__name__, type(m)))

    def _visit_function(self, name: str, f: Any) -> None:
        if _in_library(f.__globals__.get("__name__") or ""):  # it may be what a decorator made of a user's function
            self._visit_cells(name, f, only=_Foreign)
            return
        self._use(f.__code__)
        self._space(f.__globals__, "")
        self._visit_cells(name, f)
        self._stack += [(name, f.__defaults__), (name, f.__kwdefaults__)]

    def _visit_cells(self, name: str, f: Any, only: Any = object) -> None:
        for free, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            try:
                v = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            if id(cell) not in self._seen and isinstance(v, only):
                self._seen[id(cell)] = cell
                (self._code_cells if _is_code(v) or only is not object else self._cells).append((cell, v))
                self._stack.append((free, v))

    def _use(self, code: types.CodeType) -> None:
        self._names.update(code.co_names)
        for c in code.co_consts:
            if isinstance(c, types.CodeType):
                self._use(c)

    def _visit_class(self, c: type) -> None:
        space = vars(c)
        self._space(space, c.__name__)
        self._names.update(n for n, v in space.items() if n[:2] == "__" and n not in _MAKING and type(v) is types.FunctionType)

    def _visit_object(self, name: str, x: Any) -> None:
        d = getattr(x, "__dict__", None)
        inner = d.get("__wrapped__") if isinstance(d, dict) else None
        if inner is not None and _in_library(type(x).__module__):  # a compiled function, a cached one
            self._stack.append((name, inner))
            return
        if type(x).__module__ == "flame.functions.random":  # a generator: what it draws stands in the path
            return
        if not isinstance(d, dict) or hasattr(x, "__next__") or any("__slots__" in vars(c) for c in type(x).__mro__[:-1]):
            raise Unprovable(REPLAY_OPAQUE, f"{name} (of type {type(x).__name__})")
        if _in_library(type(x).__module__) and not type(x).__module__.startswith("flame."):
            if type(x).__module__ not in ("types", "argparse"):  # namespaces
                raise Unprovable(REPLAY_OPAQUE, f"{name} (of type {type(x).__name__})")
        self._mappings.append((d, tuple(d), tuple(d.values())))
        self._stack += [(f"{name}.{k}", v) for k, v in d.items()]
        self._stack.append((type(x).__name__, type(x)))

    def _space(self, space: Any, where: str) -> None:
        if id(space) not in self._spaces:
            self._spaces[id(space)] = (space, where, set())


def _hold(cells: list[tuple[Any, Any]]) -> bool:
    """Whether cells of closures hold what they held."""
    try:
        for cell, was in cells:
            if cell.cell_contents is not was:
                return False
    except ValueError:  # emptied
        return False
    return True


#: what the closure of a library's function may hold of the user's
_Foreign = (types.FunctionType, types.MethodType, functools.partial, Tensor, Noted)


def _is_code(x: Any) -> bool:
    return isinstance(x, types.FunctionType | types.BuiltinFunctionType | types.ModuleType | type | property | staticmethod)


def _in_library(module: str) -> bool:
    return module.partition(".")[0] in LIBRARY and not module.startswith("flame.demo")
