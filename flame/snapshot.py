"""The state that a function reaches, taken and put back: so that it can be run again from where it was.

    s = Snapshot(fn, args, kwargs)      walk from the arguments, the closure, the globals that the code names, and `self`
    s.restore()                         everything found is as it was
    s.tensors()                         what is in it now, by name

Held are tensors (values, gradients, versions), NumPy arrays, lists, dicts and sets, the attributes of modules, optimizers,
schedulers, generators and of objects whose class stands in the function's own module, and the streams of random numbers.
What a function does elsewhere (files, the screen, objects of other classes) is not undone.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from flame.functions.random import Generator, default_generator
from flame.jit import CompiledFunction
from flame.nn import Module
from flame.optim.lr_scheduler import LRScheduler
from flame.optim.optimizer import Optimizer
from flame.runtime.gpu_copy import duplicate, host, overwrite
from flame.tensor import Tensor

_ATTRIBUTED = (Module, Optimizer, LRScheduler, Generator)
_TENSOR_FIELDS = ("_array", "_storage", "_requires_grad", "_grad", "_node", "_view")
#: objects looked at before the walk ends: a function that reaches more reaches something that is no state of its own
_MOST = 200_000


class Snapshot:
    """What `fn(*args, **kwargs)` may change, as it is now."""

    def __init__(self, fn: Callable, args: tuple = (), kwargs: dict | None = None):
        self._home = _module_of(fn)
        self._undo: list[Callable[[], None]] = []
        self._named: dict[int, tuple[str, Tensor]] = {}
        self._seen: dict[int, Any] = {}
        self._random = random.getstate(), np.random.get_state()
        todo: list[tuple[str, Any]] = [("", fn), ("", default_generator)]
        todo += [(f"argument {i}", a) for i, a in enumerate(args)] + list((kwargs or {}).items())
        todo.reverse()
        while todo and len(self._seen) < _MOST:
            name, x = todo.pop()
            if id(x) not in self._seen and not isinstance(x, _ATOMS):
                self._seen[id(x)] = x
                todo += reversed(list(self._visit(name, x)))

    def _visit(self, name: str, x: Any) -> Iterator[tuple[str, Any]]:
        """Hold one object; the objects that it leads to."""
        match x:
            case Tensor():
                self._hold_tensor(x)
                self._named[id(x)] = (name or "tensor", x)
                if x._grad is not None and id(x._grad) not in self._seen:
                    self._seen[id(x._grad)] = x._grad
                    self._hold_tensor(x._grad)
            case np.ndarray() if x.flags.writeable and x.dtype != object:
                copy = x.copy()
                self._undo.append(lambda: np.copyto(x, copy))
            case dict():
                self._hold_dict(x)
                for i, (k, v) in enumerate(list(x.items())):
                    plain = isinstance(k, str)
                    yield (f"{name}.{k}" if name else k) if plain else f"{name}[{i}]", v
                    if not plain:
                        yield f"{name}[{i}]", k
            case list() | tuple() | set() | frozenset():
                if isinstance(x, list | set):
                    self._hold_items(x)
                yield from [(f"{name}.{i}" if name else str(i), v) for i, v in enumerate(x)]
            case CompiledFunction():
                yield name, x.__wrapped__  # type: ignore[attr-defined]
            case MethodType():
                yield name, x.__self__
                yield name, x.__func__
            case functools.partial():
                yield from [(name, v) for v in (x.func, *x.args, *x.keywords.values())]
            case FunctionType() if x.__module__ == self._home or not (x.__module__ or "").startswith("flame."):
                self._hold_variables(x)
                yield from _reached(x)
            case _ if isinstance(x, _ATTRIBUTED) or (type(x).__module__ == self._home and not isinstance(x, type)):
                d = getattr(x, "__dict__", None)
                if d is not None and id(d) not in self._seen:
                    self._seen[id(d)] = d
                    self._hold_dict(d)
                    registries = ("_parameters", "_buffers", "_modules")
                    yield from [(name if k in registries else f"{name}.{k}" if name else k, v) for k, v in list(d.items())]

    def _hold_tensor(self, t: Tensor) -> None:
        values = [getattr(t, f) for f in _TENSOR_FIELDS]
        copy = None if t._array is None else duplicate(t._array, "K")
        version = t._storage.version if t._storage is not None else 0

        def undo() -> None:
            for f, v in zip(_TENSOR_FIELDS, values):
                setattr(t, f, v)
            if copy is not None and t._array.flags.writeable:
                overwrite(t._array, copy)
            if t._storage is not None:
                t._storage.version = version

        self._undo.append(undo)

    def _hold_dict(self, d: dict) -> None:
        items = dict(d)

        def undo() -> None:
            if len(d) != len(items) or any(k not in d or d[k] is not v for k, v in items.items()):
                d.clear()
                d.update(items)

        self._undo.append(undo)

    def _hold_variables(self, fn: FunctionType) -> None:
        """What the names in a function's code stand for: `nonlocal` and `global` may change that."""
        before = [(cell, v) for cell, v in _cells(fn)]
        globals_before = {n: fn.__globals__[n] for n in _names(fn.__code__) if n in fn.__globals__}

        def undo() -> None:
            for cell, v in before:
                cell.cell_contents = v
            for n, v in globals_before.items():
                if fn.__globals__.get(n) is not v:
                    fn.__globals__[n] = v

        self._undo.append(undo)

    def _hold_items(self, x: list | set) -> None:
        items = list(x)

        def undo() -> None:
            if isinstance(x, list):
                x[:] = items
            else:
                x.clear()
                x.update(items)

        self._undo.append(undo)

    def restore(self) -> None:
        """Put everything back. May be called any number of times."""
        for undo in self._undo:
            undo()
        random.setstate(self._random[0])
        np.random.set_state(self._random[1])

    def tensors(self) -> dict[str, np.ndarray]:
        """Copies of what the tensors found, and their gradients, hold now."""
        found: dict[str, np.ndarray] = {}
        for name, t in self._named.values():
            while name in found:
                name += "'"
            found[name] = np.array(host(t._data()))
            if t._grad is not None:
                found[f"{name}.grad"] = np.array(host(t._grad._data()))
        return found


_ATOMS = (type(None), bool, int, float, complex, str, bytes, CodeType)


def _module_of(fn: Any) -> str:
    """The module that the function's own classes stand in; of a framework object, none."""
    home = getattr(fn, "__module__", None) or type(fn).__module__
    return "" if home.split(".")[0] in ("flame", "builtins", "numpy") else home


def _cells(fn: FunctionType) -> Iterator[tuple[CellType, Any]]:
    """The variables of a closure that have values."""
    for cell in fn.__closure__ or ():
        try:
            yield cell, cell.cell_contents
        except ValueError:
            continue


def _reached(fn: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function's code can name: its closure, its defaults, the globals that it mentions."""
    names = {id(cell): n for n, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ())}
    found = [(names[id(cell)], v) for cell, v in _cells(fn)]
    found += [("", v) for v in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values())]
    found += [(n, fn.__globals__[n]) for n in dict.fromkeys(_names(fn.__code__)) if n in fn.__globals__]
    # Modules first: a parameter is better known by its name there than by its place in an optimizer.
    yield from sorted(found, key=lambda f: not isinstance(f[1], Module))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for c in code.co_consts:
        if isinstance(c, CodeType):
            yield from _names(c)
