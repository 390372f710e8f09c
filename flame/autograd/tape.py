"""The tape: running a primitive eagerly, remembering how to differentiate it, and writing in place.

`Eager` is the base interpreter. `assign(target, value)` is the one way in which memory that a tensor shows is overwritten: the
target takes the value's data, and in gradient mode its history; every in-place operation is a functional one and an assign.
Views remember base and chain, so that a write through a view rewrites the base's history (PyTorch's rebase), and a view whose
base was written is given its history anew at its next use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flame.autograd.nodes import (  # noqa: F401  (what stands on the tape is asked for here)
    AccumulateGrad,
    Edge,
    Node,
    alias,
    edge,
    edge_of,
    filled,
    fit,
    full,
    requires_grad,
    reshape,
    zeros,
)
from flame.dtypes import _BY_NUMPY
from flame.ops.declare import quiet
from flame.ops.strided import shows_an_element_twice
from flame.primitive import Primitive, force, install_base_interpreter, placement, registered
from flame.reasons import COMPLEX
from flame.runtime import gpu_eager, memory
from flame.runtime.cuda import gpu as gpu_at
from flame.runtime.device import as_device
from flame.runtime.device_array import DeviceArray, to_device
from flame.runtime.eager_kernels import LEAST, eager_kernels
from flame.runtime.gpu_copy import host, overwrite
from flame.runtime.lines import user_source  # noqa: F401  (asked for here by capture)
from flame.runtime.scarcity import refusal, unmet
from flame.symbol import Symbolic
from flame.tensor import Storage, Tensor, View, wrap

permute, slice_scatter = registered("permute"), registered("slice_scatter")
view_as_real, view_as_complex = registered("view_as_real"), registered("view_as_complex")
diagonal_scatter, as_strided_scatter = map(registered, ("diagonal_scatter", "as_strided_scatter"))
transfer = registered("transfer")


#: the meanings that run as native kernels on large arrays
_NATIVE = eager_kernels()
#: of each primitive: what runs, and the dtypes that its shape rule was seen to take
_MEANINGS: dict[Primitive, tuple[Callable, set]] = {}
#: what NumPy raises of operands that do not fit, and where memory is short
_REFUSED = (ValueError, TypeError, IndexError, OverflowError, MemoryError)
_new: Any = object.__new__
_new_tuple: Any = tuple.__new__
_ndarray, _asarray = np.ndarray, np.asarray


def _meaning(primitive: Primitive) -> tuple[Callable, set]:
    found = _MEANINGS[primitive] = _NATIVE.get(primitive) or primitive.eager, set()
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Direct:
    """How an elementwise primitive runs on floats where nothing has to be found out: by a ufunc that is all of its meaning (None:
    there is none), on less than `most` elements."""

    primitive: Primitive
    ufunc: Callable[..., Any] | None
    most: int
    differentiable: bool

    @classmethod
    def of(cls, p: Primitive) -> Direct:
        f = getattr(p.eager, "numpy", None)
        plain = p.kind == "elementwise" and isinstance(f, np.ufunc) and f.nout == 1
        return cls(p, f if plain else None, LEAST if p in _NATIVE else sys.maxsize, p.vjp is not None)


class Eager:
    """The base interpreter: NumPy, native kernels where it is slow, and the tape."""

    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        arrays = []
        record = False
        kind: Any = None  #: the dtype of all operands; where they differ, of each
        for o in operands:
            if isinstance(o, Tensor):
                a = o._array
                if a is None or ((s := o._storage) is not None and s.pending is not None):
                    a = o._data()
                arrays.append(a)
                d = a.dtype
                kind = d if kind is None or kind is d else (kind, d)
                if not record and (o._node is not None or o._requires_grad or o._view is not None):
                    if force.grad and primitive.vjp is not None:
                        record = o._view is None or requires_grad(o)
            else:
                arrays.append(o.value if type(o) is Symbolic else o)
        if kind is None:
            kind = params.get("dtype")
        meaning, admitted = _MEANINGS.get(primitive) or _meaning(primitive)
        if placement.gpu:
            meaning = _placed(primitive, operands, arrays, params.get("place", "cpu")) or meaning
        if kind not in admitted:  # what the rule refuses NumPy may take, and mean something else by it
            infer(primitive, operands, params)
            admitted.add(kind)
        try:
            try:
                got = meaning(*arrays, **params)
            except MemoryError:
                got = _with_more_room(meaning, primitive, operands, arrays, params)
        except BaseException:  # (what raised is not run again: on a GPU what failed before it is told once)
            infer(primitive, operands, params)
            raise
        if type(got) is tuple:
            return _several(primitive, operands, params, got, record)
        t = _new(Tensor)
        t._array = got
        if placement.gpu and type(got) is not DeviceArray and not params.get("place") and _floats(operands):
            t._floating = True
        if primitive.view:
            _link_view(t, operands[0], arrays[0], primitive, params)
        if record and _BY_NUMPY[got.dtype].kind in "fc":
            t._node = (Node(primitive, operands, params, tuple([edge_of(o) for o in operands]), (t,)), 0)
        return t

    def one(self, how: Direct, x: Tensor, a: Any) -> Any:
        """`process(how.primitive, (x,), {})` of a tensor whose array `a` is of floats."""
        f, s = how.ufunc, x._storage
        if f is None or a.size >= how.most or not placement.direct or (s is not None and s.pending is not None):
            return self.process(how.primitive, (x,), {})
        try:
            got = quiet.run(f, a, order="C")
        except _REFUSED:  # it says why not
            return self.process(how.primitive, (x,), {})
        t = _new(Tensor)
        t._array = got if type(got) is _ndarray else _asarray(got)
        if (x._node is not None or x._requires_grad or x._view is not None) and how.differentiable and force.grad:
            e = edge_of(x)
            if e is not None:
                t._node = (Node(how.primitive, (x,), {}, (e,), (t,)), 0)
        return t

    def two(self, how: Direct, x: Any, y: Any) -> Any:
        """`process(how.primitive, (x, y), {})` of two tensors of one floating dtype, or of one and a number."""
        f = how.ufunc
        if f is None or not placement.direct:
            return self.process(how.primitive, (x, y), {})
        a, b = x, y
        record = False
        if isinstance(x, Tensor):
            a = x._array
            s = x._storage
            if a.size >= how.most or (s is not None and s.pending is not None):
                return self.process(how.primitive, (x, y), {})
            record = x._node is not None or x._requires_grad or x._view is not None
        if isinstance(y, Tensor):
            b = y._array
            s = y._storage
            if (a is x and (b.size >= how.most or b.itemsize <= 2)) or (s is not None and s.pending is not None):
                return self.process(how.primitive, (x, y), {})
            record = record or y._node is not None or y._requires_grad or y._view is not None
        elif a.itemsize <= 2:  # (no number is rounded to a narrow dtype)
            return self.process(how.primitive, (x, y), {})
        try:
            got = quiet.run(f, a, b, order="C")
        except _REFUSED:  # it says why not
            return self.process(how.primitive, (x, y), {})
        t = _new(Tensor)
        t._array = got if type(got) is _ndarray else _asarray(got)
        if record and how.differentiable and force.grad:
            e = (edge_of(x) if a is not x else None, edge_of(y) if b is not y else None)
            if e[0] is not None or e[1] is not None:
                t._node = (Node(how.primitive, (x, y), {}, e, (t,)), 0)
        return t

    def composite(self, f: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Any:
        """A named function over primitives."""
        return f(*args, **kwargs)


def _with_more_room(meaning: Callable, primitive: Primitive, operands: tuple, arrays: list, params: dict) -> Any:
    """`meaning(*arrays, **params)`, for which there was no memory, once what was kept for later is given back.

    Raises OutOfMemoryError, with the operation, its operands and the line.
    """
    memory.shared.release()
    try:
        return meaning(*arrays, **params)
    except MemoryError as error:
        wanted = unmet(error)
    made = infer(primitive, operands, params)
    specs = made if type(made) is tuple else (made,)
    given = ", ".join(str(o.spec) if isinstance(o, Tensor) else str(o) for o in operands)
    what = f"{primitive.name}({given}), which makes {', '.join(map(str, specs))}"
    raise refusal(wanted or sum(s.nbytes for s in specs), what)


def _link_view(t: Tensor, x: Tensor, array: Any, primitive: Primitive, params: dict) -> None:
    out = t._array
    if type(out) is DeviceArray:
        if out.memory is not array.memory:
            return
    elif out.size and not np.may_share_memory(out, array):
        return
    show(t, x, ((primitive, tuple(params.items())),))


def show(t: Tensor, x: Tensor, steps: tuple) -> None:
    """Have `t`, which shows memory of `x`, be its view by so many steps."""
    storage = x.storage_of()
    t._storage = storage
    v = x._view
    if v is None:
        t._view = _new_tuple(View, (x, steps, storage.version))  # (as View does, in a third of the time)
    else:
        t._view = _new_tuple(View, (v.base, (*v.chain, *steps), storage.version))


def _several(primitive: Primitive, operands: tuple, params: dict, got: tuple, record: bool) -> tuple:
    """The results of an operation that has several."""
    outs = tuple([wrap(a) for a in got])
    if record:
        node = None
        for i, t in enumerate(outs):
            if _BY_NUMPY[t._array.dtype].kind in "fc":
                if node is None:
                    node = Node(primitive, operands, params, tuple(map(edge_of, operands)), outs)
                t._node = (node, i)
    return outs


def _placed(primitive: Primitive, operands: tuple, arrays: list, place: str) -> Callable | None:
    """Where tensors live on GPUs: what runs an operation there, given its arrays, of which those without dimensions, positions, and
    what was made for no device in particular may be on the CPU; None for an operation on the CPU. `place` is where something is
    to be made.

    Raises RuntimeError where tensors are on several devices.
    """
    if primitive is transfer:
        return moved
    gpu = next((a.gpu for a in arrays if type(a) is DeviceArray), None)
    if gpu is None:
        if place == "cpu":
            return None
        gpu = gpu_at(as_device(place).index)
    for i, (o, a) in enumerate(zip(operands, arrays, strict=True)):
        if not isinstance(o, Tensor) or (type(a) is DeviceArray and a.gpu is gpu):
            continue
        if type(a) is not DeviceArray and (o._floating or (primitive.positions is not None and a.dtype.kind in "iu")):
            arrays[i] = to_device(gpu, a)
        elif type(a) is DeviceArray or a.ndim or primitive.kind not in ("elementwise", "create"):
            there = [x.device for x in operands if isinstance(x, Tensor)]
            named = " and ".join(dict.fromkeys(map(str, there)))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {named}! ({primitive.name})"
            )
    return lambda *given, **params: gpu_eager.run(gpu, primitive, given, params)


def moved(a: Any, *, device: str, source: str) -> Any:
    """A copy of an array on a device."""
    there = as_device(device)
    return np.array(host(a), order="C") if there.type == "cpu" else to_device(gpu_at(there.index), host(a))


def _beside(f: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """`f(*args, **kwargs)`, with what it makes from no tensors on the GPU of the first tensor that is on one."""
    if force.place is None:
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor) and x.device.type != "cpu":
                force.place = x.device
                try:
                    return f(*args, **kwargs)
                finally:
                    force.place = None
    return f(*args, **kwargs)


placement.beside = _beside


def _floats(operands: tuple) -> bool:
    """Whether an operation on the CPU made something for no device in particular: flame itself made all that went in, by itself."""
    return all([o._floating for o in operands if isinstance(o, Tensor)])


def infer(primitive: Primitive, operands: tuple, params: dict) -> Any:
    """The shape rule on what operands are known to be."""
    return primitive.infer(*(o.spec if isinstance(o, Tensor) else getattr(o, "value", o) for o in operands), **params)


eager = Eager()
install_base_interpreter(eager)


# -------------------------------------------------------------------- writing in place


def write_through(base: Any, chain: tuple, value: Any) -> Any:
    """What `base` becomes when `value` is written to the view of it that `chain` makes: a functional update."""
    if not chain:
        return value
    (p, params), rest = chain[0], chain[1:]
    params = dict(params)
    if rest:
        value = write_through(p(base, **params), rest, value)
    match p.name:
        case "slice":
            return slice_scatter(base, value, **params)
        case "permute":
            dims = params["dims"]
            return permute(value, dims=tuple(sorted(range(len(dims)), key=dims.__getitem__)))
        case "reshape":
            return reshape(value, shape=tuple(base.shape))
        case "diagonal":
            return diagonal_scatter(base, value, **params)
        case "view_as_real":
            return view_as_complex(value)
        case "view_as_complex":
            return view_as_real(value)
        case "as_strided":
            return as_strided_scatter(base, value, **params)
        case _:
            raise RuntimeError(
                f"an in-place operation cannot write through {p.name}(): several elements of the result show one element of "
                "memory, or it is not a view that can be written. Clone the tensor before writing to it."
            )


def check_writable(t: Tensor) -> None:
    """Raise what PyTorch raises where autograd or memory forbids a write to `t`."""
    if force.grad and t._node is None and t._requires_grad and (t._view is None):
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    v = t._view
    if v is not None:
        if force.grad and v.base._requires_grad and v.base._node is None:
            raise RuntimeError("a view of a leaf Variable that requires grad is being used in an in-place operation.")
        check_chain(v.chain)
    if t._array is not None:
        check_memory(t._array)


def check_chain(chain: tuple) -> None:
    """Raise where a chain of views shows one element several times."""
    for p, params in chain:
        if p.name in ("expand", "window"):
            raise RuntimeError(SHARED_ELEMENTS)
        if p.name == "as_strided" and shows_an_element_twice(dict(params)["size"], dict(params)["stride"]):
            raise RuntimeError(SHARED_ELEMENTS)


def check_memory(a: Any) -> None:
    """Raise where an array can't be written."""
    if not a.flags.writeable:
        if any(s == 0 and n > 1 for s, n in zip(a.strides, a.shape, strict=True)) or not a.flags.owndata:
            raise RuntimeError(SHARED_ELEMENTS)
        raise RuntimeError(
            "the memory of this tensor is read-only (it was made from a read-only array): clone() it before writing to it"
        )


SHARED_ELEMENTS = (
    "unsupported operation: more than one element of the written-to tensor refers to a single memory location. Please clone() the "
    "tensor before performing the operation."
)


def assign(target: Tensor, value: Tensor) -> Tensor:
    """`target`'s memory takes `value`'s data (equal shape and dtype); in gradient mode its history becomes `value`'s."""
    if force.grad and not value.requires_grad:
        if target.requires_grad:
            if not target.is_leaf:
                n = target.ndim  # what was there before still has a gradient, which is zero
                value = slice_scatter(target, value, starts=(0,) * n, stops=tuple(target.shape), steps=(1,) * n)
        elif (base := _shown(target)) is not None and base.requires_grad:
            raise RuntimeError(VIEW_WITHOUT_GRAD)
    run = force.interpreter
    if run is not None and target.dtype.is_complex and target._batching is None:
        return run.outside(lambda: eager_assign(target, value), COMPLEX, "a write")
    if run is not None:
        return run.assign(target, value)
    return eager_assign(target, value)


def _shown(t: Tensor) -> Tensor | None:
    """What a view is a view of."""
    v, trace = t._view, t._trace
    return v.base if v is not None else None if trace is None else trace.root


VIEW_WITHOUT_GRAD = (
    "A view was created in no_grad mode and is being modified inplace with grad mode enabled. What it shows carries gradient, "
    "of which the view knows nothing: make the view where gradients are recorded, or write to it under no_grad."
)


def about_to_write(storage: Storage) -> None:
    """Memory is overwritten next: whoever may have to run again on what it holds makes a copy now."""
    keepers = storage.keepers
    if keepers is not None:
        storage.keepers = None
        for w in keepers:
            keeper = w()
            if keeper is not None:
                keeper.keep_copies(storage)


def update(f: Callable[[Sequence[Tensor], tuple], None], tensors: Sequence[Tensor], numbers: tuple) -> None:
    """Call `f(tensors, numbers)`, which overwrites some of the tensors, whole, with what it makes of them and of the numbers. It
    uses the numbers as they are, and no other tensors: so capture can know all of it by what it is given."""
    run = force.interpreter
    if run is None:
        f(tensors, numbers)
    else:
        run.update(f, tensors, numbers)


def eager_assign(target: Tensor, value: Tensor, write: Callable[[Tensor, Tensor], None] | None = None) -> Tensor:
    """`assign` on the tape; `write` copies the data where that is not one copy from array to array."""
    check_writable(target)
    value_edge = edge(value) if force.grad else None
    target_edge = edge(target)
    v = target._view
    base = None if v is None else v.base
    base_new = None
    if base is not None and force.grad and (value_edge is not None or edge(base) is not None):
        base_new = write_through(base, v.chain, value)  # type: ignore[union-attr]
    storage = target.storage_of()
    if write is None:
        new = value._data()
        about_to_write(storage)
        if type(target._array) is DeviceArray or type(new) is DeviceArray:
            overwrite(target._array, new)
        else:
            np.copyto(target._array, new)
    else:
        write(target, value)
    storage.version += 1
    if base_new is not None:
        base._node = base_new._node  # type: ignore[union-attr]
        base._requires_grad = False if base._node is not None else base._requires_grad  # type: ignore[union-attr]
        target._view = v._replace(version=storage.version)  # type: ignore[union-attr]
        target._node = value_edge
    elif force.grad and (value_edge is not None or target_edge is not None):
        target._node = value_edge
        if value_edge is not None:
            target._requires_grad = False
    if v is not None and target._view is v and (base is None or not requires_grad(base)):
        target._view = v._replace(version=storage.version)
    return target
