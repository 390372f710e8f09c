"""What stands on the tape: the record of one operation, the sinks of leaves, and where a tensor's cotangent goes.

edge ::= (node, index)           who gets the cotangent of a tensor: result `index` of `node`
Node ::= primitive, operands (a tensor where a rule reads its values, else its Spec), params, edges, versions
AccumulateGrad(leaf)             the end of every path: adds to `leaf.grad`
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flame.ops  # noqa: F401  (enters the primitives in the registry)
from flame.primitive import Primitive, Rule, Spec, force, placement, registered, takes_none
from flame.slots import with_slots
from flame.tensor import Tensor, View, spec_of, version

Edge = tuple  # (Node, index)
_new: Any = object.__new__

full, reshape, reduce_sum = map(registered, ("full", "reshape", "sum"))


_ALWAYS = ("primitive", "operands", "params", "edges", "versions", "results", "outputs", "released", "source")
_SELDOM = ("hooks", "segment", "step", "_metadata")

if TYPE_CHECKING:

    class _Slots:
        primitive: Primitive
        operands: tuple
        params: dict
        edges: tuple
        versions: list
        results: tuple
        outputs: tuple
        released: bool
        source: str
        hooks: list | None
        segment: Any
        step: Any  #: the step of a capture that it was recorded as
        _metadata: dict | None
else:
    _Slots = with_slots(_ALWAYS, _SELDOM)


class Node(_Slots):
    """One recorded application of a primitive."""

    if not TYPE_CHECKING:
        __slots__ = ("__weakref__",)

    def __init__(self, primitive: Primitive, operands: tuple, params: dict, edges: tuple, outs: tuple):
        self.primitive = primitive
        self.params = params
        self.edges = edges
        self.released = False
        self.source = ""
        n = len(edges)
        if n == 2:
            wanted: tuple[bool, ...] = (edges[0] is not None, edges[1] is not None)
        else:
            wanted = (True,) if n == 1 else tuple([e is not None for e in edges])
        keep_output, keep, any_kept = _SAVED.get((primitive, wanted)) or _saved(primitive, wanted)
        versions: list = []
        if any_kept:
            kept: list = []
            for o, k in zip(operands, keep):
                if isinstance(o, Tensor):
                    if k:
                        versions.append((o, version(o), o._reassigned))
                        kept.append(o)
                    else:
                        kept.append(spec_of(o))
                else:
                    kept.append(o)
            self.operands = tuple(kept)
        elif n == 2:
            x, y = operands
            self.operands = (spec_of(x) if isinstance(x, Tensor) else x, spec_of(y) if isinstance(y, Tensor) else y)
        else:
            self.operands = tuple([spec_of(o) if isinstance(o, Tensor) else o for o in operands])
        self.outputs = (spec_of(outs[0]),) if len(outs) == 1 else tuple([spec_of(o) for o in outs])
        self.results: tuple = ()
        if keep_output:
            results = tuple([alias(o) for o in outs])
            self.results = results
            for y, o in zip(results, outs, strict=True):
                versions.append((y, version(o), 0))
        self.versions = versions

    @property
    def metadata(self) -> dict:
        """A place for whatever somebody wants to remember here."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

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
        for t, then, reassigned in self.versions:
            if version(t) != then or t._reassigned != reassigned:  # written, or given other memory
                raise self._modified(t, then)

    def _modified(self, t: Tensor, then: int) -> RuntimeError:
        return RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"[{t.dtype!r} {list(t.shape)}], which is an operand or the result of {self.primitive.name}"
            f"{' at ' + self.source if self.source else ''}, is at version {version(t)}; expected version {then} instead."
        )

    def apply(self, cotangents: list) -> list:
        """The cotangents of the operands, given those of the results (None: zero)."""
        self.check_saved()
        if placement.gpu and force.place is None:
            return self._applied_beside(cotangents)
        return self._applied(cotangents)

    def _applied_beside(self, cotangents: list) -> list:
        """What rules make from no tensors lies beside the cotangents."""
        force.place = next((g.device for g in cotangents if g is not None and g.device.type != "cpu"), None)
        try:
            return self._applied(cotangents)
        finally:
            force.place = None

    def _applied(self, cotangents: list) -> list:
        p = self.primitive
        ys: Any = self.outputs
        if self.results:
            ys = self._results()
        if len(self.outputs) != 1 or type(p.vjp) is not tuple:
            return self._spread_over(cotangents, ys)
        given = (cotangents[0], ys[0], *self.operands)
        rules: tuple = p.vjp
        params = self.params
        operands = self.operands
        out: list = []
        i = 0
        for e in self.edges:
            rule = rules[i] if e is not None and i < len(rules) else None
            out.append(None if rule is None else fit(rule.apply(*given, **params), operands[i]))
            i += 1
        return out

    def _results(self) -> tuple:
        """The results as derivative rules read them."""
        ys = tuple([alias(y) for y in self.results])
        for i, (y, saved) in enumerate(zip(ys, self.results, strict=True)):
            y.__class__ = saved.__class__
            y._node = (self, i) if y.dtype.is_differentiable else None
            y._ref = saved._ref
        return ys

    def _spread_over(self, cotangents: list, ys: tuple) -> list:
        """`_applied` of a primitive of several results, of any number of operands, or with one rule for all operands."""
        p = self.primitive
        if len(self.outputs) == 1:
            g, y = cotangents[0], ys[0]
        else:
            g = tuple(cotangents) if takes_none(p) else tuple(map(_or_zeros, cotangents, self.outputs))
            y = ys
        if isinstance(p.vjp, Rule) and p.vjp.joint:
            answers = p.vjp.apply(g, y, *self.operands, **self.params)
            pairs = zip(self.edges, answers, self.operands, strict=True)
            return [None if e is None or a is None else fit(a, o) for e, a, o in pairs]
        variadic = not isinstance(p.vjp, tuple)
        out: list = []
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
        if self.versions:
            self.released = True
            self.versions = []
            self.results = ()
            self.operands = tuple([spec_of(o) if isinstance(o, Tensor) else o for o in self.operands])


_SAVED: dict[tuple[Primitive, tuple[bool, ...]], tuple[bool, tuple[bool, ...], bool]] = {}


def _saved(primitive: Primitive, wanted: tuple[bool, ...]) -> tuple[bool, tuple[bool, ...], bool]:
    """Whether the rules of the operands that are `wanted` read the result; of each operand, whether they read it; and any."""
    rules = [rule for i, w in enumerate(wanted) if w and (rule := primitive.rule(i)) is not None]
    operands = tuple([any(rule.saves(j) for rule in rules) for j in range(len(wanted))])
    found = _SAVED[primitive, wanted] = any(rule.saves_output for rule in rules), operands, any(operands)
    return found


if TYPE_CHECKING:

    class _SinkSlots:
        tensor: Tensor
        hooks: list | None
        post_hooks: dict | None
        segment: Any
else:
    _SinkSlots = with_slots(("tensor",), ("hooks", "post_hooks", "segment", "later"))


class AccumulateGrad(_SinkSlots):
    """The sink of a leaf."""

    if not TYPE_CHECKING:
        __slots__ = ("__weakref__",)
    edges: tuple = ()
    next_functions: tuple = ()
    outputs: tuple = (None,)
    released = False

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def name(self) -> str:
        return "AccumulateGrad"

    @property
    def variable(self) -> Tensor:
        return self.tensor


def _or_zeros(g: Any, spec: Any) -> Any:
    return zeros(spec) if g is None else g


def zeros(spec: Any) -> Any:
    """A tensor of zeros like `spec`."""
    return full(0, shape=tuple(spec.shape), dtype=spec.dtype)


def filled(value: int, like: Any, shape: tuple | None = None) -> Any:
    """A tensor of one number, of the dtype of another, where that one is and (unless another is given) of its shape."""
    where = {"place": str(like.device)} if placement.gpu and like.device.type != "cpu" else {}
    return full(value, shape=tuple(like.shape) if shape is None else shape, dtype=like.dtype, **where)


def fit(g: Any, operand: Any) -> Any:
    """Undo broadcasting: a cotangent with the operand's shape."""
    if g is None:
        return g
    if type(g) is Tensor and type(operand) is Spec:  # (the commonest, without making a Size)
        a = g._array
        if a is not None and a.shape == operand.shape:
            return g
    return g if g.shape == operand.shape else _narrowed(g, operand)


def _narrowed(g: Any, operand: Any) -> Any:
    """The sum over what an operand was broadcast along."""
    want = tuple(operand.shape)
    lead = g.ndim - len(want)
    dims = tuple(range(lead)) + tuple(i + lead for i, d in enumerate(want) if d == 1 and g.shape[i + lead] != 1)
    g = reduce_sum(g, dim=dims, keepdim=False) if dims else g
    return reshape(g, shape=want) if tuple(g.shape) != want else g


def alias(t: Tensor) -> Tensor:
    """Another object for the same memory, outside the tape."""
    if t._batching is not None:
        return t._alias()
    a: Any = _new(Tensor)
    a._array = t._array
    a._storage = t.storage_of()
    return a


def edge_of(operand: Any) -> Edge | None:
    """Where the cotangent of an operand goes, if it is a tensor that has one."""
    if not isinstance(operand, Tensor):
        return None
    if operand._view is None:
        n = operand._node
        if n is not None:
            return n
        if not operand._requires_grad:
            return None
    return edge(operand)


def edge(t: Tensor) -> Edge | None:
    """Where the cotangent of `t` goes, or None."""
    v = t._view
    if v is not None and v.version != version(t):
        _renew_view(t, v)
    n = t._node
    if n is not None:
        return n
    if not t._requires_grad:
        return None
    known = t._accumulator
    a = None if known is None else known()
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
