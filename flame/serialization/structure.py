"""Nested containers as JSON, with tensors taken out: what `flame.save` writes beside the arrays of a safetensors file.

    node ::= null | bool | int | float | string | [node*] | {"$": kind, "v": ..}
    kind ::= dict | ordered dict | counter | defaultdict | tuple | set | frozenset | deque      v: [node*] or [[node, node]*]
           | tensor | parameter | buffer | array | scalar                                       v: the array's name
           | float | int | bytes | complex | dtype | device | size | slice | range              v: how it is written
           | object                                                                             a class that was declared safe

Two tensors that show the same memory in the same way are one array in the file, and share memory again when loaded. Other
overlaps, and containers that are met twice, are stored as often as they are met.
"""

from __future__ import annotations

import base64
import collections
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from flame import dtypes
from flame.errors import MissingTargetError
from flame.nn.parameter import Buffer, Parameter
from flame.primitive import force
from flame.runtime.device import device
from flame.runtime.device_array import address_of, device_of
from flame.runtime.gpu_copy import host
from flame.serialization.format import FileFormatError
from flame.serialization.places import Mover
from flame.tensor import Size, Tensor, wrap

_FACTORIES: dict[str, Any] = {"None": None, "list": list, "dict": dict, "set": set, "int": int, "float": float}
_safe: dict[str, type] = {}


# -------------------------------------------------------------------- classes that a user declares safe


def _class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def add_safe_globals(safe_globals: Sequence[type]) -> None:
    """Let objects of these classes be saved and loaded, by their `__dict__` (or `__getstate__` and `__setstate__`)."""
    for cls in safe_globals:
        if not isinstance(cls, type):
            raise TypeError(f"add_safe_globals: expected classes, got {cls!r}")
        _safe[_class_name(cls)] = cls


def get_safe_globals() -> list[type]:
    """The classes that were declared safe."""
    return list(_safe.values())


def clear_safe_globals() -> None:
    """Forget all classes that were declared safe."""
    _safe.clear()


@contextmanager
def _declared(classes: Sequence[type]) -> Iterator[None]:
    before = dict(_safe)
    add_safe_globals(classes)
    try:
        yield
    finally:
        _safe.clear()
        _safe.update(before)


def safe_globals(safe_globals: Sequence[type]) -> Any:
    """A context in which these classes are declared safe."""
    return _declared(safe_globals)


def safe_class(name: str) -> type | None:
    """The class of this name, if it was declared safe."""
    return _safe.get(name)


def remade(cls: type, state: Any) -> Any:
    """An object of a class that was declared safe, with this state and without a call of `__init__`."""
    x: Any = object.__new__(cls)
    restore = getattr(x, "__setstate__", None)
    if restore is not None:
        restore(state)
    elif isinstance(state, dict):
        x.__dict__.update(state)
    elif state is not None:
        raise FileFormatError(f"the state of a {_class_name(cls)} is damaged: expected a dict, got {type(state).__name__}")
    return x


# -------------------------------------------------------------------- saving


def _settled(t: Tensor) -> Any:
    """A tensor's array, wherever it is; a captured segment that owes it ends."""
    if force.interpreter is not None:
        force.interpreter.read(t)
    return t._data()


class Encoder:
    """Makes nodes, and collects `arrays` by name. Names are paths, so that other readers of the file see what belongs where."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._known: dict[tuple, str] = {}
        self._kept: list[Any] = []  # what `_known` speaks of lives as long as this
        self._open: set[int] = set()

    def _array(self, a: Any, path: str) -> str:
        """The name under which an array is stored."""
        where = (address_of(a), a.shape, a.strides, a.dtype, device_of(a)) if a.size else (path,)
        if where in self._known:
            return self._known[where]
        base = name = path or "tensor"
        n = 1
        while name in self.arrays or name == "__metadata__":
            n += 1
            name = f"{base}~{n}"
        self._known[where], self.arrays[name] = name, host(a)
        self._kept.append(a)
        return name

    def _tensor(self, t: Tensor, path: str) -> dict:
        kind = "parameter" if isinstance(t, Parameter) else "buffer" if isinstance(t, Buffer) else "tensor"
        node: dict[str, Any] = {"$": kind, "v": self._array(_settled(t), path)}
        if t.requires_grad:
            node["grad"] = True
        if t.is_cuda:
            node["device"] = str(t.device)
        if isinstance(t, Buffer):
            node["persistent"] = bool(t.persistent)
        return node

    def node(self, x: Any, path: str = "") -> Any:
        """`x` as JSON. Raises TypeError for what has no place in a file, ValueError for a container that holds itself."""
        if x is None or isinstance(x, bool | str):
            return x if x is None or type(x) in (bool, str) else self._refuse(x, path)
        if isinstance(x, Tensor):
            return self._tensor(x, path)
        if isinstance(x, np.ndarray | np.generic):
            a = np.asarray(x)
            dtypes.from_numpy_dtype(a.dtype)
            return {"$": "array" if isinstance(x, np.ndarray) else "scalar", "v": self._array(a if a.shape else a.copy(), path)}
        plain = self._plain(x)
        if plain is not None:
            return plain[0]
        if id(x) in self._open:
            raise ValueError(f"save: the object at {path or 'the top'!r} contains itself")
        self._open.add(id(x))
        try:
            return self._container(x, path)
        except RecursionError:
            raise ValueError(f"save: containers are nested too deeply at {path[:60]!r}") from None
        finally:
            self._open.discard(id(x))

    def _plain(self, x: Any) -> tuple | None:
        """A value without parts, in a tuple."""
        t = type(x)
        if t is int:
            return (x if x.bit_length() < 64 else {"$": "int", "v": hex(x)},)
        if t is float:
            return (x if math.isfinite(x) else {"$": "float", "v": repr(x)},)
        if t in (bytes, bytearray):
            return ({"$": t.__name__, "v": base64.b64encode(x).decode("ascii")},)
        if t is complex:
            return ({"$": "complex", "v": [x.real.hex(), x.imag.hex()]},)
        if t is dtypes.dtype:
            return ({"$": "dtype", "v": x.name},)
        if t is device:
            return ({"$": "device", "v": str(x)},)
        if t is Size:
            return ({"$": "size", "v": list(x)},)
        if t is range:
            return ({"$": "range", "v": [x.start, x.stop, x.step]},)
        return None

    def _container(self, x: Any, path: str) -> Any:
        below = lambda k: f"{path}.{k}" if path else str(k)
        each = lambda items: [self.node(v, below(i)) for i, v in enumerate(items)]
        pairs = lambda d: [[self.node(k, below("keys")), self.node(v, below(k))] for k, v in d.items()]
        t = type(x)
        if t is list:
            return each(x)
        if t in (tuple, set, frozenset, collections.deque):
            return {"$": t.__name__, "v": each(x)} | ({"most": x.maxlen} if t is collections.deque else {})
        if t is slice:
            return {"$": "slice", "v": each((x.start, x.stop, x.step))}
        if t in (dict, collections.Counter):
            return {"$": t.__name__.lower(), "v": pairs(x)}
        if t is collections.OrderedDict:
            node = {"$": "ordered dict", "v": pairs(x)}
            if x.__dict__:  # a module's state_dict has the versions of its modules there
                node["more"] = pairs(x.__dict__)
            return node
        if t is collections.defaultdict:
            name = next((k for k, f in _FACTORIES.items() if f is x.default_factory), None)
            if name is not None:
                return {"$": "defaultdict", "v": pairs(x), "of": name}
        if _safe.get(_class_name(t)) is t:
            state = x.__getstate__()
            return {"$": "object", "v": _class_name(t), "state": self.node(state, path)}
        return self._refuse(x, path)

    def _refuse(self, x: Any, path: str) -> Any:
        hint = "save its state_dict() instead" if hasattr(x, "state_dict") else (
            "save what it is made of, or declare its class by flame.serialization.add_safe_globals"
        )  # fmt: skip
        raise TypeError(f"save: can't save an object of class {_class_name(type(x))} (at {path or 'the top'!r}): {hint}")


# -------------------------------------------------------------------- loading


class Decoder:
    """Makes objects from nodes. `array(name)` gives a stored array; `move` takes tensors to their device; `fail(what)` makes the
    error for a node that is damaged."""

    def __init__(self, array: Callable[[str], np.ndarray], names: Any, file: str, move: Mover) -> None:
        self._array, self._names, self._file, self._move = array, frozenset(names), file, move
        self._tensors: dict[str, Tensor] = {}

    def fail(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self._file}: the description of the contents is damaged: {what}")

    def _stored(self, node: dict) -> np.ndarray:
        name = node.get("v")
        if not isinstance(name, str) or name not in self._names:
            raise self.fail(f"no array of the name {name!r}")
        return self._array(name)

    def tensor(self, name: str, saved: str = "cpu") -> Tensor:
        """The tensor over a stored array, which was `saved` from a device: another one over the same memory at each call."""
        if name not in self._names:
            raise self.fail(f"no array of the name {name!r}")
        if name in self._tensors:
            return self._tensors[name].detach()
        t = self._tensors[name] = self._move(wrap(self._array(name)), saved)
        return t

    def object(self, node: Any) -> Any:
        """What a node stands for. Raises FileFormatError."""
        try:
            return self._object(node)
        except (FileFormatError, MissingTargetError):
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError, MemoryError) as e:
            raise self.fail(f"{type(e).__name__}: {e}") from e

    def _object(self, node: Any) -> Any:
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if isinstance(node, list):
            return [self._object(v) for v in node]
        kind, v = node["$"], node["v"]
        each = lambda: [self._object(x) for x in v]
        pairs = lambda items=v: [(self._object(k), self._object(x)) for k, x in items]
        match kind:
            case "tensor" | "parameter" | "buffer":
                return self._tensor_of(kind, node)
            case "array":
                return self._stored(node)
            case "scalar":
                return self._stored(node)[()]
            case "dict":
                return dict(pairs())
            case "ordered dict":
                made = collections.OrderedDict(pairs())
                made.__dict__.update(pairs(node.get("more", [])))
                return made
            case "counter":
                return collections.Counter(dict(pairs()))
            case "defaultdict":
                return collections.defaultdict(_FACTORIES[node["of"]], pairs())
            case "tuple":
                return tuple(each())
            case "set":
                return set(each())
            case "frozenset":
                return frozenset(each())
            case "deque":
                return collections.deque(each(), node["most"])
            case "slice":
                return slice(*each())
            case "range":
                return range(*map(int, v))
            case "size":
                return Size(int(n) for n in v)
            case "float":
                return float(v)
            case "int":
                return int(v, 16)
            case "bytes" | "bytearray":
                data = base64.b64decode(v, validate=True)
                return data if kind == "bytes" else bytearray(data)
            case "complex":
                return complex(*map(float.fromhex, v))
            case "dtype":
                return dtypes.BY_NAME[v]
            case "device":
                return device(v)
            case "object":
                cls = safe_class(v)
                if cls is None:
                    raise self.fail(
                        f"it holds an object of class {v!r}; declare the class by flame.serialization.add_safe_globals to load it"
                    )
                return remade(cls, self._object(node["state"]))
        raise self.fail(f"a node of the unknown kind {kind!r}")

    def _tensor_of(self, kind: str, node: dict) -> Tensor:
        t = self.tensor(node["v"], str(device(node["device"])) if "device" in node else "cpu")
        grad = bool(node.get("grad", False))
        if kind == "parameter":
            return Parameter(t, requires_grad=grad)
        if kind == "buffer":
            return Buffer(t, persistent=bool(node.get("persistent", True)))
        return t.requires_grad_() if grad else t
