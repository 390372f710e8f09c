"""Custom differentiable functions: `autograd.Function`, with forward and backward as static methods."""

from __future__ import annotations

from typing import Any

from flame.autograd.modes import no_grad
from flame.autograd.saving import PackedTensor
from flame.autograd.saving import in_force as saving
from flame.autograd.tape import alias, edge, zeros
from flame.primitive import force
from flame.reasons import CUSTOM_FUNCTION
from flame.tensor import Tensor


class FunctionContext:
    """What `forward` leaves for `backward`."""

    def __init__(self) -> None:
        self._saved: list = []
        self._freed = False
        self._node: Any = None
        self._outputs: tuple = ()
        self._not_differentiable: set[int] = set()
        self._dirty: tuple = ()
        self.materialize_grads = True
        self.needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors (or None) for `saved_tensors`; each is checked for in-place changes."""
        for t in tensors:
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(f"save_for_backward can only save variables, but argument is of type {type(t).__name__}")
        self._saved = [(t, None if t is None else t._version) for t in tensors]
        if saving.hooks:
            self._saved = [(None if t is None else PackedTensor(t, saving.hooks[-1], edge(t)), None) for t in tensors]

    @property
    def saved_tensors(self) -> tuple:
        if self._freed:
            raise RuntimeError(
                "Trying to backward through the graph a second time (or directly access saved tensors after they have already "
                "been freed). Specify retain_graph=True if you need to backward through the graph a second time."
            )
        out = []
        for t, version in self._saved:
            if isinstance(t, PackedTensor):
                t = t.tensor()
            elif t is not None and t._version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{t.dtype!r} {list(t.shape)}], saved by {self._node.name() if self._node else 'a Function'}, is at version "
                    f"{t._version}; expected version {version} instead."
                )
            out.append(t)
        return tuple(out)

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self._not_differentiable = {id(t) for t in tensors}

    def mark_dirty(self, *tensors: Tensor) -> None:
        self._dirty = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self.materialize_grads = value


#: under PyTorch's name
FunctionCtx = FunctionContext


class FunctionNode:
    """The tape's record of one application of a `Function`."""

    def __init__(self, cls: type, ctx: FunctionContext, edges: tuple, inputs: tuple):
        self.cls = cls
        self.ctx = ctx
        self.edges = edges
        self.outputs: tuple = ()
        self.hooks: list | None = None
        self.segment: Any = None
        self.inputs = tuple(t.spec if isinstance(t, Tensor) else None for t in inputs)

    @property
    def released(self) -> bool:
        return self.ctx._freed

    @property
    def next_functions(self) -> tuple:
        return tuple((None, 0) if e is None else e for e in self.edges)

    def name(self) -> str:
        return f"{self.cls.__name__}Backward"

    def apply(self, cotangents: list) -> list:
        gs = cotangents
        if self.ctx.materialize_grads:
            gs = [zeros(s) if g is None and s is not None else g for g, s in zip(cotangents, self.outputs, strict=True)]
        got = self._followed(gs) if force.resting is not None else self.cls.backward(self.ctx, *gs)  # type: ignore[attr-defined]
        got = got if isinstance(got, tuple) else (got,)
        if len(got) > len(self.edges) and all(g is None for g in got[len(self.edges) :]):
            got = got[: len(self.edges)]
        if len(got) != len(self.edges):
            raise RuntimeError(
                f"function {self.name()} returned an incorrect number of gradients (expected {len(self.edges)}, got {len(got)})"
            )
        for i, (g, e, s) in enumerate(zip(got, self.edges, self.inputs, strict=True)):
            if g is not None and e is not None and s is not None and tuple(g.shape) != tuple(s.shape):
                raise RuntimeError(
                    f"Function {self.name()} returned an invalid gradient at index {i} - got {list(g.shape)} but expected shape "
                    f"compatible with {list(s.shape)}"
                )
        return [g if e is not None else None for g, e in zip(got, self.edges, strict=True)]

    def _followed(self, cotangents: list) -> Any:
        """Call backward as a captured segment of its own, in the midst of a backward pass between two others."""
        run = force.resting
        force.interpreter, force.resting = run, None
        try:
            got = self.cls.backward(self.ctx, *cotangents)  # type: ignore[attr-defined]
            force.interpreter.leave(CUSTOM_FUNCTION, self.cls.__name__)
            return got
        finally:
            force.interpreter, force.resting = None, force.interpreter

    def release(self) -> None:
        if self.ctx._saved:
            self.ctx._freed = True
            self.ctx._saved = []


class Function:
    """Base of custom functions, used through `MyFunction.apply(*args)`.

    `forward(ctx, *args)` computes under no_grad; `backward(ctx, *grads)` returns one gradient (or None) for each argument of
    forward, and is itself differentiable where it is written with flame operations. A `setup_context(ctx, inputs, output)`
    may be given, and forward then takes no ctx.
    """

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("You must implement the forward function for custom autograd.Function.")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("You must implement the backward method for your custom autograd.Function.")

    setup_context: Any = None

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        if force.grad and any(a._batching is not None and a._batching.leads_below(a) for a in args if isinstance(a, Tensor)):
            raise RuntimeError(
                f"vmap: the backward of {cls.__name__} is written for single examples, and gradient is wanted of a whole batch: "
                "take the gradient inside, vmap(grad(f)), or write the function as operations"
            )
        ctx = FunctionContext()
        ctx.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        with no_grad():
            if cls.setup_context is None:
                out = cls.forward(ctx, *args, **kwargs)
            else:
                out = cls.forward(*args, **kwargs)
                cls.setup_context(ctx, args, out)
        outs = out if isinstance(out, tuple) else (out,)
        if not (force.grad and any(ctx.needs_input_grad)):
            return out
        run, refs = force.interpreter, None
        if run is not None:  # what forward did was followed; its backward is a stage of backward passes, or a node of the tape
            refs = run.function_refs(args, outs, ctx._dirty) if hasattr(run, "function_refs") else None
            if refs is None:
                force.interpreter.leave(CUSTOM_FUNCTION, cls.__name__)
        ends = () if refs is not None else tuple(edge(a) if isinstance(a, Tensor) else None for a in args)
        node = FunctionNode(cls, ctx, ends, args)
        ctx._node = node
        if refs is not None:
            node.outputs = tuple(t.spec if isinstance(t, Tensor) else None for t in outs)
            wants = [isinstance(t, Tensor) and t.dtype.is_differentiable for t in outs]
            apart = ctx._not_differentiable
            run.function(node, args, refs, [t if w and id(t) not in apart else None for t, w in zip(outs, wants, strict=True)])
            return out
        result = []
        for i, t in enumerate(outs):
            if isinstance(t, Tensor):
                if any(t is a for a in args) and not any(t is d for d in ctx._dirty):
                    t = alias(t)
                if t.dtype.is_differentiable and id(outs[i]) not in ctx._not_differentiable:
                    t._node = (node, i)
            result.append(t)
        node.outputs = tuple(t.spec if isinstance(t, Tensor) else None for t in result)
        return tuple(result) if isinstance(out, tuple) else result[0]
