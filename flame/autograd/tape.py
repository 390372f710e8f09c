"""The tape: running a primitive eagerly, remembering how to differentiate it, and writing in place.

    edge ::= (node, index)           who gets the cotangent of a tensor: result `index` of `node`
    Node ::= primitive, operands (a tensor where a rule reads its values, else its Spec), params, edges, versions
    AccumulateGrad(leaf)             the end of every path: adds to `leaf.grad`

`Eager` is the base interpreter. `assign(target, value)` is the one way in which memory that a tensor shows is overwritten: the
target takes the value's data, and in gradient mode its history; every in-place operation is a functional one and an assign.
Views remember base and chain, so that a write through a view rewrites the base's history (PyTorch's rebase), and a view whose
base was written is given its history anew at its next use.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import flame.ops  # noqa: F401  (enters the primitives in the registry)
from flame.dtypes import _BY_NUMPY
from flame.ops.strided import shows_an_element_twice
from flame.primitive import Primitive, Rule, force, install_base_interpreter, placement, registered
from flame.reasons import COMPLEX
from flame.runtime.cuda import gpu as gpu_at
from flame.runtime.device import as_device
from flame.runtime.device_array import DeviceArray, to_device
from flame.runtime.eager_kernels import eager_kernels
from flame.runtime.gpu_copy import host, overwrite
from flame.runtime.gpu_eager import run as run_on_gpu
from flame.runtime.lines import user_source  # noqa: F401  (asked for here by capture)
from flame.symbol import Symbolic
from flame.tensor import Storage, Tensor, View, wrap

Edge = tuple  # (Node, index)

full, reshape, permute, slice_scatter = map(registered, ("full", "reshape", "permute", "slice_scatter"))
view_as_real, view_as_complex = registered("view_as_real"), registered("view_as_complex")
diagonal_scatter, as_strided_scatter = map(registered, ("diagonal_scatter", "as_strided_scatter"))
reduce_sum, transfer = registered("sum"), registered("transfer")


class Node:
    """One recorded application of a primitive."""

    __slots__ = (
        "primitive", "operands", "params", "edges", "versions", "results", "outputs", "hooks", "released", "source", "segment",
        "metadata", "step", "__weakref__",
    )  # fmt: skip

    def __init__(self, primitive: Primitive, operands: tuple, params: dict, edges: tuple, outs: tuple):
        self.primitive = primitive
        self.params = params
        self.edges = edges
        self.hooks: list | None = None
        self.released = False
        self.source = ""
        self.segment: Any = force.interpreter
        self.metadata: dict = {}
        self.step: Any = None  #: the step of a capture that it was recorded as
        wanted = tuple([e is not None for e in edges])
        found = _SAVED.get((primitive, wanted))
        keep_output, keep = _saved(primitive, wanted) if found is None else found
        kept: list = []
        versions = []
        for i, o in enumerate(operands):
            if isinstance(o, Tensor):
                if keep[i]:
                    versions.append((o, o._version, o._reassigned))
                    kept.append(o)
                else:
                    kept.append(o.spec)
            else:
                kept.append(o)
        self.operands = tuple(kept)
        self.outputs = tuple(o.spec for o in outs)
        self.results: tuple = ()
        if keep_output:
            self.results = tuple([alias(o) for o in outs])
            versions += [(y, o._version, 0) for y, o in zip(self.results, outs, strict=True)]
        self.versions = versions

    def name(self) -> str:
        return "".join(p.capitalize() for p in self.primitive.name.split("_")) + "Backward0"

    @property
    def next_functions(self) -> tuple:
        return tuple((None, 0) if e is None else e for e in self.edges)

    def __repr__(self) -> str:
        return f"<{self.name()} object at {id(self):#x}>"

    def register_hook(self, hook: Callable) -> Any:
        raise RuntimeError("hooks on graph nodes are not supported: register one on the tensor with Tensor.register_hook")

    def check_saved(self) -> None:
        """Raise unless everything that the rules read still holds what it held."""
        if self.released:
            raise RuntimeError(
                "Trying to backward through the graph a second time (or directly access saved tensors after they have already "
                "been freed). Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). "
                "Specify retain_graph=True if you need to backward through the graph a second time or if you need to access "
                "saved tensors after calling backward."
            )
        for t, version, reassigned in self.versions:
            now = t._version
            if now != version or t._reassigned != reassigned:  # written, or given other memory
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{t.dtype!r} {list(t.shape)}], which is an operand or the result of {self.primitive.name}"
                    f"{' at ' + self.source if self.source else ''}, is at version {now}; expected version {version} instead."
                )

    def apply(self, cotangents: list) -> list:
        """The cotangents of the operands, given those of the results (None: zero)."""
        self.check_saved()
        p = self.primitive
        ys: Any = self.outputs
        if self.results:
            ys = tuple([alias(y) for y in self.results])
            for i, (y, saved) in enumerate(zip(ys, self.results, strict=True)):
                y.__class__ = saved.__class__
                y._node = (self, i) if y.dtype.is_differentiable else None
                y._ref = saved._ref
        if len(self.outputs) == 1:
            g, y = cotangents[0], ys[0]
        else:
            g = tuple(zeros(s) if c is None else c for c, s in zip(cotangents, self.outputs, strict=True))
            y = ys
        out: list = []
        if isinstance(p.vjp, Rule) and p.vjp.joint:
            answers = p.vjp.apply(g, y, *self.operands, **self.params)
            pairs = zip(self.edges, answers, self.operands, strict=True)
            return [None if e is None or a is None else fit(a, o) for e, a, o in pairs]
        variadic = not isinstance(p.vjp, tuple)
        for i, e in enumerate(self.edges):
            rule = p.rule(i) if e is not None else None
            if rule is None:
                out.append(None)
            elif variadic:
                out.append(fit(rule.apply(g, y, *self.operands, operand=i, **self.params), self.operands[i]))
            else:
                out.append(fit(rule.apply(g, y, *self.operands, **self.params), self.operands[i]))
        return out

    def release(self) -> None:
        """Let go of what was saved."""
        self.released = bool(self.versions) or self.released
        self.versions = []
        self.results = ()
        self.operands = tuple(o.spec if isinstance(o, Tensor) else o for o in self.operands)


_SAVED: dict[tuple[Primitive, tuple[bool, ...]], tuple[bool, tuple[bool, ...]]] = {}


def _saved(primitive: Primitive, wanted: tuple[bool, ...]) -> tuple[bool, tuple[bool, ...]]:
    """Whether the rules of the operands that are `wanted` read the result; and of each operand, whether they read it."""
    rules = [rule for i, w in enumerate(wanted) if w and (rule := primitive.rule(i)) is not None]
    operands = tuple([any(rule.saves(j) for rule in rules) for j in range(len(wanted))])
    found = _SAVED[primitive, wanted] = any(rule.saves_output for rule in rules), operands
    return found


class AccumulateGrad:
    """The sink of a leaf."""

    __slots__ = ("tensor", "hooks", "post_hooks", "segment", "__weakref__")
    edges: tuple = ()
    next_functions: tuple = ()
    outputs: tuple = (None,)
    released = False

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.hooks: list | None = None
        self.post_hooks: dict | None = None
        self.segment: Any = None

    def name(self) -> str:
        return "AccumulateGrad"

    @property
    def variable(self) -> Tensor:
        return self.tensor


def zeros(spec: Any) -> Any:
    """A tensor of zeros like `spec`."""
    return full(0, shape=tuple(spec.shape), dtype=spec.dtype)


def fit(g: Any, operand: Any) -> Any:
    """Undo broadcasting: a cotangent with the operand's shape."""
    if g is None or g.shape == operand.shape:
        return g
    want = tuple(operand.shape)
    lead = g.ndim - len(want)
    dims = tuple(range(lead)) + tuple(i + lead for i, d in enumerate(want) if d == 1 and g.shape[i + lead] != 1)
    g = reduce_sum(g, dim=dims, keepdim=False) if dims else g
    return reshape(g, shape=want) if tuple(g.shape) != want else g


def alias(t: Tensor) -> Tensor:
    """Another object for the same memory, outside the tape."""
    if t._batching is not None:
        return t._alias()
    a = wrap(t._array)
    a._storage = t.storage_of()
    return a


def edge(t: Tensor) -> Edge | None:
    """Where the cotangent of `t` goes, or None."""
    v = t._view
    if v is not None and v.version != t._version:
        _renew_view(t, v)
    if t._node is not None:
        return t._node
    if not t._requires_grad:
        return None
    a = None if t._accumulator is None else t._accumulator()
    if a is None:
        a = AccumulateGrad(t)
        t._accumulator = weakref.ref(a)  # weakly, as the node holds the leaf; hooks keep it (`Tensor._hooks`)
    return (a, 0)


def _renew_view(t: Tensor, v: View) -> None:
    """The base was written since this view was made: its history is the base's now, seen through the chain."""
    t._view = v._replace(version=t._version)
    if not requires_grad(v.base):
        t._node = None
        return
    v.base._data()  # (a captured segment that owes its values ends here, while its run is in force, and not below)
    before = force.grad, force.interpreter
    force.grad, force.interpreter = True, v.base._batching
    try:
        x: Any = v.base
        for p, params in v.chain:
            x = p(x, **dict(params))
        t._node = x._node
    finally:
        force.grad, force.interpreter = before


def requires_grad(t: Tensor) -> bool:
    v = t._view
    if v is not None and v.version != t._version:
        edge(t)
    return t._requires_grad or t._node is not None


#: the meanings that run as native kernels on large arrays
_NATIVE = eager_kernels()
#: of each primitive: what runs, and the dtypes that its shape rule was seen to take
_MEANINGS: dict[Primitive, tuple[Callable, set]] = {}
_new: Any = object.__new__


def _meaning(primitive: Primitive) -> tuple[Callable, set]:
    found = _MEANINGS[primitive] = _NATIVE.get(primitive) or primitive.eager, set()
    return found


class Eager:
    """The base interpreter: NumPy, native kernels where it is slow, and the tape."""

    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        arrays = []
        record = False
        kind: Any = None  #: the dtype of all operands; where they differ, of each
        grad = force.grad and primitive.vjp is not None
        for o in operands:
            if isinstance(o, Tensor):
                a = o._array
                if a is None or o._storage is not None:
                    a = o._data()
                arrays.append(a)
                kind = a.dtype if kind is None or kind is a.dtype else (kind, a.dtype)
                if grad and not record and (o._requires_grad or o._node is not None or o._view is not None):
                    record = requires_grad(o)
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
            got = meaning(*arrays, **params)
        except (ValueError, TypeError, IndexError, OverflowError):
            infer(primitive, operands, params)  # says it in the primitive's own words, if the operands do not fit
            raise
        if type(got) is tuple:
            outs = tuple(wrap(a) for a in got)
        else:
            t = _new(Tensor)
            t._array = got
            if placement.gpu and type(got) is not DeviceArray and not params.get("place") and _floats(operands):
                t._floating = True
            if primitive.view:
                _link_view(t, operands[0], arrays[0], primitive, params)
            if not record:
                return t
            outs = (t,)
        if record:
            node = None
            for i, t in enumerate(outs):
                if _BY_NUMPY[t._array.dtype].kind in "fc":
                    if node is None:
                        edges = tuple([edge(o) if isinstance(o, Tensor) else None for o in operands])
                        node = Node(primitive, operands, params, edges, outs)
                    t._node = (node, i)
        return outs if type(got) is tuple else outs[0]

    def composite(self, f: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Any:
        """A named function over primitives."""
        return f(*args, **kwargs)


def _link_view(t: Tensor, x: Tensor, array: Any, primitive: Primitive, params: dict) -> None:
    out = t._array
    if type(out) is DeviceArray:
        if out.memory is not array.memory:
            return
    elif out.size and not np.may_share_memory(out, array):
        return
    t._storage = storage = x.storage_of()
    step = (primitive, tuple(params.items()))
    v = x._view
    t._view = View(x, (step,), storage.version) if v is None else View(v.base, (*v.chain, step), storage.version)


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
    return lambda *given, **params: run_on_gpu(gpu, primitive, given, params)


def moved(a: Any, *, device: str, source: str) -> Any:
    """A copy of an array on a device."""
    there = as_device(device)
    return np.array(host(a), order="C") if there.type == "cpu" else to_device(gpu_at(there.index), host(a))


def _beside(f: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """`f(*args, **kwargs)`, with what it makes from no tensors on the GPU of the first tensor that is on one."""
    if force.place is None:
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor) and type(x._array) is DeviceArray:
                force.place = x._array.device
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
    if force.grad and target.requires_grad and not target.is_leaf and not value.requires_grad:
        n = target.ndim  # what was there before still has a gradient, which is zero
        value = slice_scatter(target, value, starts=(0,) * n, stops=tuple(target.shape), steps=(1,) * n)
    run = force.interpreter
    if run is not None and target.dtype.is_complex and target._batching is None:
        return run.outside(lambda: eager_assign(target, value), COMPLEX, "a write")
    if run is not None:
        return run.assign(target, value)
    return eager_assign(target, value)


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
