"""Reading PyTorch's own files (`.pt`, `.pth`), tensors and plain containers only, without executing anything.

Such a file is a ZIP archive of stored (never compressed) members: `data.pkl`, a program for a stack machine, and `data/0`, `data/1`
.., the memory of tensors. The machine here knows the instructions that build numbers, strings and containers, and a fixed table
of names; an instruction or a name that is not in these tables ends the reading. No name is ever imported or called.
"""

from __future__ import annotations

import collections
import errno
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flame import dtypes
from flame.nn.parameter import Parameter
from flame.runtime.device import device
from flame.serialization.format import FileFormatError
from flame.serialization.places import Mover, mover
from flame.serialization.structure import remade, safe_class
from flame.tensor import Size, Tensor, wrap

_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8", "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
}  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A name that the file mentions; it stands for itself until it is called for."""

    text: str


@dataclass(frozen=True)
class Memory:
    """The memory of one or several tensors: an array of one dimension."""

    array: np.ndarray
    first: dict[tuple, Tensor]  #: the tensors made over it, by how they show it


def named(text: str) -> Name | dtypes.dtype:
    """A name, or the dtype that it means."""
    package, _, last = text.rpartition(".")
    return dtypes.BY_NAME[last] if package == "torch" and last in dtypes.BY_NAME else Name(text)


class _Mark:
    """Where a container's items begin on the stack."""


MARK = _Mark()


class Machine:
    """Runs the instructions of one `data.pkl`. `memory(kind, key, count)` gives a storage."""

    def __init__(self, file: str, memory: Callable[[str, str, int], Memory]) -> None:
        self.file, self._memory = file, memory
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def fail(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self.file}: {what}")

    def pop(self) -> Any:
        if not self.stack:
            raise self.fail("data.pkl is damaged: it takes more than there is")
        return self.stack.pop()

    def items(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
        for k in range(len(self.stack) - 1, -1, -1):
            if self.stack[k] is MARK:
                got = self.stack[k + 1 :]
                del self.stack[k:]
                return got
        raise self.fail("data.pkl is damaged: a mark is missing")

    def run(self, program: bytes) -> Any:
        """The object that the program builds. Raises FileFormatError."""
        try:
            for instruction, argument, _ in pickletools.genops(program):
                if instruction.name == "STOP":
                    break
                self.step(instruction.name, argument)
            got = self.pop()
        except FileFormatError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError, UnicodeError) as e:
            raise self.fail(f"data.pkl is damaged: {type(e).__name__}: {e}") from e
        if self.stack:
            raise self.fail("data.pkl is damaged: it leaves something behind")
        self.check_names(got)
        return got

    def check_names(self, x: Any) -> None:
        """No name stands for itself in what was built."""
        waiting, seen = [x], set()
        while waiting:
            x = waiting.pop()
            if id(x) in seen:
                continue
            seen.add(id(x))
            if isinstance(x, Name):
                raise self.fail(f"data.pkl holds the name {x.text}, not a value")
            if isinstance(x, Memory | _Mark):
                raise self.fail("data.pkl is damaged: it holds something that is no value")
            if isinstance(x, dict):
                waiting += [*x.keys(), *x.values()]
            elif isinstance(x, list | tuple | set | frozenset):
                waiting += x

    def step(self, name: str, argument: Any) -> None:
        s = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                s.append(None)
            case "NEWTRUE" | "NEWFALSE":
                s.append(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "INT" | "LONG" | "LONG1" | "LONG4" | "BINFLOAT" | "FLOAT" | "BINUNICODE":
                s.append(argument)
            case "SHORT_BINUNICODE" | "BINUNICODE8" | "UNICODE" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                s.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING" | "STRING":
                s.append(argument)
            case "MARK":
                s.append(MARK)
            case "EMPTY_LIST":
                s.append([])
            case "EMPTY_DICT":
                s.append({})
            case "EMPTY_TUPLE":
                s.append(())
            case "EMPTY_SET":
                s.append(set())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(name[-1])
                s.append(tuple([self.pop() for _ in range(n)][::-1]))
            case "TUPLE":
                s.append(tuple(self.items()))
            case "LIST":
                s.append(self.items())
            case "DICT":
                s.append(self.pairs(self.items()))
            case "FROZENSET":
                s.append(frozenset(self.items()))
            case "APPEND" | "APPENDS":
                new = [self.pop()] if name == "APPEND" else self.items()
                self.top(list).extend(new)
            case "ADDITEMS":
                new = self.items()
                self.top(set).update(new)
            case "SETITEM" | "SETITEMS":
                new = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.items()
                self.top(dict).update(self.pairs(new))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[int(argument)] = s[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = s[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                s.append(self.memo[int(argument)])
            case "POP":
                self.pop()
            case "POP_MARK":
                self.items()
            case "DUP":
                s.append(s[-1])
            case "GLOBAL":
                s.append(named(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                last, first = self.pop(), self.pop()
                s.append(named(f"{first}.{last}"))
            case "BINPERSID":
                s.append(self.storage(self.pop()))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                s.append(self.call(function, arguments))
            case "NEWOBJ":
                arguments, cls = self.pop(), self.pop()
                s.append(self.new(cls, arguments))
            case "BUILD":
                state = self.pop()
                s.append(self.built(self.pop(), state))
            case _:
                raise self.fail(f"data.pkl has an instruction {name} that does more than build tensors and containers")

    def top(self, kind: type) -> Any:
        """The container that items are put into."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise self.fail(f"data.pkl is damaged: expected a {kind.__name__} to put items into")
        return self.stack[-1]

    def pairs(self, items: list[Any]) -> dict[Any, Any]:
        return dict(zip(items[::2], items[1::2], strict=True))

    # ---------------------------------------------------------------- the names that are known

    def storage(self, identity: Any) -> Memory:
        """`identity` is ("storage", class, key, location, count)."""
        match identity:
            case ("storage", Name(text=text), str(key), str(), int(count)) if text.rpartition(".")[2] in _STORAGES:
                return self._memory(_STORAGES[text.rpartition(".")[2]], key, count)
        raise self.fail(f"data.pkl names a storage of an unknown kind: {str(identity)[:80]}")

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise self.fail("data.pkl is damaged: it calls something that is no name")
        match function.text:
            case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor":
                return self.tensor(*arguments[:5])
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
                data, requires_grad = arguments[:2]
                return Parameter(_is(data, Tensor), requires_grad=bool(requires_grad))
            case "torch._tensor._rebuild_from_type_v2":  # (function, class, arguments, state)
                return self.call(arguments[0], arguments[2])
            case "collections.OrderedDict":
                return collections.OrderedDict(*arguments[:1])
            case "collections.Counter":
                return collections.Counter(*arguments[:1])
            case "collections.defaultdict":
                kinds = {"builtins.list": list, "builtins.dict": dict, "builtins.int": int, "builtins.float": float}
                kind = arguments[0].text.replace("__builtin__", "builtins") if arguments and arguments[0] is not None else ""
                return collections.defaultdict(kinds[kind] if kind else None)
            case "builtins.set" | "__builtin__.set":
                return set(*arguments[:1])
            case "builtins.frozenset" | "__builtin__.frozenset":
                return frozenset(*arguments[:1])
            case "builtins.slice" | "__builtin__.slice":
                return slice(*arguments)
            case "builtins.complex" | "__builtin__.complex":
                return complex(*arguments)
            case "_codecs.encode":  # bytes, as protocol 2 writes them
                text, coding = arguments
                if coding != "latin1":
                    raise self.fail(f"data.pkl encodes bytes as {coding!r}")
                return str(text).encode("latin1")
            case "torch.Size":
                return Size(arguments[0])
            case "torch.device":
                return device(*arguments)
        raise self.fail(
            f"data.pkl wants to call {function.text}, which is not among the names that are needed for tensors and containers; "
            "nothing was executed"
        )

    def new(self, cls: Any, arguments: Any) -> Any:
        """An object without a state yet: of the few classes known, or of one that the user declared safe."""
        if isinstance(cls, Name):
            if cls.text in ("collections.OrderedDict", "collections.Counter", "torch.Size"):
                return self.call(cls, arguments)
            declared = safe_class(cls.text)
            if declared is not None and arguments == ():
                return declared
            raise self.fail(
                f"data.pkl holds an object of class {cls.text}: only tensors and containers are read; a class can be declared by "
                "flame.serialization.add_safe_globals"
            )
        raise self.fail("data.pkl is damaged: it makes an object of something that is no class")

    def built(self, target: Any, state: Any) -> Any:
        if isinstance(target, type):
            return remade(target, state)
        if isinstance(target, collections.OrderedDict) and isinstance(state, dict):
            target.__dict__.update(state)  # the versions of modules in a state_dict
            return target
        raise self.fail(f"data.pkl sets the state of a {type(target).__name__}")

    def tensor(self, memory: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False) -> Tensor:
        """A view of a storage, if it stays inside of it."""
        m = _is(memory, Memory)
        sizes, steps = tuple(map(_count, shape)), tuple(map(_count, stride))
        if len(sizes) != len(steps) or len(sizes) > 64:
            raise self.fail(f"a tensor of shape {sizes} has strides {steps}")
        last = _count(offset) + sum((n - 1) * s for n, s in zip(sizes, steps, strict=True))
        if 0 not in sizes and last >= m.array.size:
            raise self.fail(f"a tensor of shape {sizes} and strides {steps} reaches element {last} of {m.array.size}")
        key = (offset, sizes, steps)
        if key not in m.first:
            if 0 in sizes:
                a = np.empty(sizes, m.array.dtype)
            else:
                bytes_ = tuple(s * m.array.itemsize for s in steps)
                a = np.lib.stride_tricks.as_strided(m.array[offset:], sizes, bytes_)
            m.first[key] = wrap(a)
        t = m.first[key].detach()
        return t.requires_grad_() if requires_grad is True else t


def _is(x: Any, cls: type) -> Any:
    if not isinstance(x, cls):
        raise TypeError(f"expected a {cls.__name__}, got {type(x).__name__}")
    return x


def _count(x: Any) -> int:
    if type(x) is not int or not 0 <= x < 1 << 62:
        raise ValueError(f"expected a number of elements, got {x!r}")
    return x


def load_pytorch(f: str | os.PathLike | Any, map_location: Any = None) -> Any:
    """The tensors and plain containers that `torch.save` wrote to the path or binary file `f` (PyTorch 1.6 and later).

    Tensors that shared memory share it again, those of the same shape and strides at least. Raises FileFormatError (a
    RuntimeError) for files that are damaged, of the older format, or hold anything else, as whole modules: save a state_dict.
    """
    move = mover("cpu" if map_location is None else map_location, "load_pytorch")
    name = str(f) if isinstance(f, str | os.PathLike) else str(getattr(f, "name", type(f).__name__))
    try:
        with zipfile.ZipFile(f) as archive:
            return _placed(_contents(archive, name), move, {})
    except FileFormatError:
        raise
    except OSError as e:
        if e.errno != errno.EINVAL:  # (a damaged table of contents leads to places in front of the file)
            raise
        damage: Exception = e
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, RuntimeError, OverflowError, struct.error) as e:
        damage = e
    raise FileFormatError(
        f"{name}: not a file that PyTorch 1.6 or later wrote, or damaged ({damage}); PyTorch can save an older one anew"
    )


def _placed(x: Any, move: Mover, known: dict[int, Tensor]) -> Any:
    """What was read, with its tensors where they are to be. (The file names devices of another machine: all count as the CPU.)"""
    if isinstance(x, Tensor):
        if id(x) not in known:
            got = move(x.detach(), "cpu") if isinstance(x, Parameter) else move(x, "cpu")
            known[id(x)] = x if not got.is_cuda else Parameter(got, x.requires_grad) if isinstance(x, Parameter) else got
        return known[id(x)]
    if isinstance(x, dict):
        for k, v in x.items():
            x[k] = _placed(v, move, known)
    elif isinstance(x, list):
        x[:] = [_placed(v, move, known) for v in x]
    return tuple([_placed(v, move, known) for v in x]) if type(x) is tuple else x


def _contents(archive: zipfile.ZipFile, name: str) -> Any:
    fail = lambda what: FileFormatError(f"{name}: {what}")
    members = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise fail(f"the member {info.filename!r} is compressed, which PyTorch never does")
        members[info.filename] = info
    programs = [n for n in members if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(programs) != 1:
        scripted = " (it may be a TorchScript file, which is not read)" if any("constants.pkl" in n for n in members) else ""
        raise fail(f"expected one data.pkl in the archive, found {len(programs)}{scripted}")
    root = programs[0].rpartition("/")[0]
    if f"{root}/constants.pkl" in members:
        raise fail("this is a TorchScript file, which is a program; only files of torch.save are read")
    if f"{root}/byteorder" in members and archive.read(f"{root}/byteorder") != b"little":
        raise fail("the numbers in this file are big-endian, which is not supported")
    loaded: dict[str, tuple[str, Memory]] = {}

    def memory(kind: str, key: str, count: int) -> Memory:
        if key in loaded:
            if loaded[key][0] != kind:
                raise fail(f"the storage {key!r} is used as {loaded[key][0]} and as {kind}")
            return loaded[key][1]
        d = dtypes.BY_NAME.get(kind)
        if d is None:
            raise fail(f"the storage {key!r} is of dtype {kind}, which flame does not have")
        info = members.get(f"{root}/data/{key}")
        if info is None or info.file_size != _count(count) * d.itemsize:
            have = "it is missing" if info is None else f"it has {info.file_size} bytes"
            raise fail(f"the storage {key!r} should hold {count} elements of {kind}, but {have}")
        a = np.frombuffer(bytearray(archive.read(info)), d.numpy)  # (reading checks the member's CRC)
        if kind == "bool" and a.size and int(a.view(np.uint8).max()) > 1:
            raise fail(f"the storage {key!r} holds bytes that are no booleans")
        loaded[key] = (kind, Memory(a, {}))
        return loaded[key][1]

    return Machine(name, memory).run(archive.read(programs[0]))
