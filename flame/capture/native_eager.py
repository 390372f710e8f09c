"""What of eager operations is native: the base interpreter, the tape's nodes, operators, and the commonest small methods at once
(`flame.functions.quick`). It is put in force as capture's native code is (`flame.capture.native`), with it or alone.
"""

from __future__ import annotations

from typing import Any, Final

from flame import primitive, tensor
from flame.autograd import engine, nodes, tape
from flame.autograd.nodes import AccumulateGrad, Node
from flame.autograd.tape import Direct, Eager
from flame.functions import quick
from flame.native import layout
from flame.native.install import Closure, Native
from flame.native.units import Hints, Unit
from flame.precision import casting
from flame.primitive import Primitive, Spec, force, placement
from flame.runtime import gpu_eager
from flame.runtime.cuda_gpu import Gpu, Memory
from flame.runtime.cuda_memory import Allocator, Block
from flame.runtime.cuda_statistics import Account
from flame.runtime.device_array import DeviceArray
from flame.runtime.gpu_straight import Straight
from flame.tensor import Storage, Tensor

#: what launching goes through
OF_GPUS: Final[tuple[tuple[type, str], ...]] = (
    (Straight, "addresses run"),
    (Gpu, "allocate put"),
    (Allocator, "take _collect"),
    (Account, "add remove"),
    (Memory, "__init__"),
    (DeviceArray, "__init__"),
)
_METHODS: Final[tuple[tuple[type, str], ...]] = (
    (Storage, "__init__"),
    (Tensor, "storage_of"),
    (Node, "__init__"),
    (Node, "apply"),
    (Node, "_applied"),
    (Node, "_results"),
    (Node, "check_saved"),
    (Node, "release"),
    (AccumulateGrad, "__init__"),
    (Eager, "process"),
    (Eager, "one"),
    (Eager, "two"),
    *((cls, name) for cls, names in OF_GPUS for name in names.split()),
    (gpu_eager._Ready, "run"),
)
_FUNCTIONS: Final[tuple[Any, ...]] = (
    tensor.spec_of, tensor.version, nodes.alias, nodes.edge_of, nodes.edge, nodes.fit, tape._link_view, tape.show,
    primitive.applied, engine.go_through, engine._accumulate, engine.accumulate_into, engine.accumulate,
    gpu_eager.run, gpu_eager._call, gpu_eager.exactly,
)  # fmt: skip
_LIKELY: Final = dict.fromkeys(("o", "x", "y", "operand", "self", "other", "t", "g", "have"), Tensor) | {"node": Node}


def operators() -> tuple[Any, list[tuple[str, Any]]]:
    """The function that operators are closures of, and these, as Python has them."""
    f = vars(Tensor)["__mul__"]
    return f, [(n, g) for n, g in vars(Tensor).items() if getattr(g, "__code__", None) is f.__code__]


def of_gpus(hints: Hints) -> None:
    """What of launching lies in slots."""
    for cls in (Straight, Allocator, Block, Account, Memory, DeviceArray, gpu_eager._Ready):
        hints.slots[cls] = layout.offsets(cls)
    hints.attributes |= {
        (Straight, "gpu"): Gpu, (Gpu, "memory"): Allocator, (Block, "bin"): list, (gpu_eager._Ready, "straight"): Straight,
    }  # fmt: skip


def slots_of_tensors(hints: Hints) -> None:
    """How tensors lie in memory, and what of a thread is asked for."""
    hints.slots[Tensor] = offsets = layout.offsets(Tensor)
    hints.empty[Tensor] = frozenset(offsets) - {"_array"}
    hints.alike[Tensor] = tuple(c for c in Tensor.__subclasses__() if offsets.keys().isdisjoint(vars(c)))
    hints.locals[id(force)] = {"interpreter": None, "grad": True, "place": None}


def made() -> Native:
    """The native code of eager operations."""
    hints = Hints()
    for cls in (Storage, Node, AccumulateGrad, Direct, Primitive, Spec, type(placement), type(casting)):
        hints.slots[cls] = layout.offsets(cls)
    slots_of_tensors(hints)
    of_gpus(hints)
    for cls in (Node, AccumulateGrad):
        fresh = object.__new__(cls)
        hints.empty[cls] = frozenset(n for n in hints.slots[cls] if getattr(fresh, n, n) is None)
    hints.slots[Eager], hints.own = {}, frozenset({(Eager, "process")})  # (it has one of its own while somebody watches)
    hints.attributes[Tensor, "_storage"] = Storage
    units = [
        Unit(f"{cls.__name__}.{name}", vars(cls)[name], cls, (), _LIKELY if cls not in _OWN else _OTHERS)
        for cls, name in _METHODS
    ]
    units += [Unit(f.__name__, f, None, (), _LIKELY) for f in _FUNCTIONS]
    f, closures = operators()
    units.append(Unit("operator", f, None, f.__code__.co_freevars, _LIKELY))
    found = [Closure("operator", Tensor, n, tuple(c.cell_contents for c in g.__closure__)) for n, g in closures]
    for cls, name, function, given, way in quick.quick():
        symbol = f"quick.{function.__name__}"
        if all(u.symbol != symbol for u in units):
            units.append(Unit(symbol, function, None, (), _LIKELY, len(given)))
        found.append(Closure(symbol, cls, name, given, way))
    found.append(Closure("applied", Primitive, "__call__", (), "call"))
    return Native(units, hints, found)


#: classes in whose methods these names are other things
_OWN: Final = (Node, AccumulateGrad, Eager, gpu_eager._Ready, *(cls for cls, _ in OF_GPUS))
_OTHERS: Final = {n: c for n, c in _LIKELY.items() if n != "self"}
