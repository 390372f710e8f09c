"""Composites that run as one native program unless arrays are tiny: forward, and backward on the tape.

    @fused
    def silu(x): return mul(x, sigmoid(x))         written with primitives alone, operands first, static parameters as keywords

    call ::= under an interpreter, on a GPU, few elements, or   -> the function itself, operation by operation
             watched by somebody who wants each operation
           | else                                                -> a program of `flame.runtime.eager_programs`, made at the
                                                                    first use of shapes and dtypes of one pattern

The function is the definition: what a program gives is what it gives, but for rounding, and capture, vmap and whoever else looks
at operations sees those of the function. On the tape, a call is one `FusedNode`. Its derivative is a program as well; derivatives
that are to be differentiated again go through the function's own operations. Which way a call takes depends on its shapes and
dtypes alone, so that equal programs give equal bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from flame.autograd.engine import run_engine
from flame.autograd.tape import Node, alias, edge, requires_grad, zeros
from flame.autograd.watch import Process, watched
from flame.dtypes import _BY_NUMPY
from flame.knobs import knobs
from flame.primitive import Primitive, force, placement, registered
from flame.runtime.eager_kernels import LEAST_OF_MANY, keep
from flame.runtime.eager_programs import REFUSALS, EagerProgram, Ready
from flame.tensor import Tensor, wrap

#: sets of shapes for which a function is kept ready
_MOST: Final = 512
_UNKNOWN: Final[Any] = object()
CAST = registered("cast")

#: numbers that were operands, as arrays beside operands of a dtype
_NUMBERS: Final[dict[tuple, np.ndarray]] = {}


def _number(d: np.dtype, n: Any) -> np.ndarray:
    """A number as an operand beside arrays of dtype `d`."""
    made = np.array(n, _BY_NUMPY[d].accumulator.numpy)
    made.flags.writeable = False
    if n:  # (0.0 equals -0.0)
        keep(_NUMBERS, (d, n), made, _MOST)
    return made


def fixed(x: Any) -> Any:
    """A value that no derivative flows through, in what `fused` functions are written of."""
    return x.detach() if isinstance(x, Tensor) else force.interpreter.fixed(x)


def with_number(p: Primitive, x: Any, n: Any, *, first: bool = False) -> Any:
    """p(x, n), or p(n, x), of a value and a number, in what `fused` functions are written of."""
    if not hasattr(n, "dtype") or n.dtype is x.dtype:
        return p(n, x) if first else p(x, n)
    wide = CAST(x, dtype=n.dtype)
    return CAST(p(n, wide) if first else p(wide, n), dtype=x.dtype)


class Fused:
    """A function under `fused`."""

    def __init__(self, f: Callable[..., Any], admits: Callable[..., bool] | None = None):
        self.f = f
        self.admits = admits  #: whether the values of these arrays may be given to a program
        name = f.__name__.strip("_")
        self.primitive = Primitive(name, "opaque", f, f)
        self.programs: dict[tuple, EagerProgram] = {}
        self.bound: dict[tuple, Ready | None] = {}  #: None where operands of these kinds are left to the function
        functools.update_wrapper(self, f)

    def __call__(self, *operands: Any, **static: Any) -> Any:
        if force.interpreter is None and placement.whole:
            a = operands[0]._array
            if a is not None and a.size >= LEAST_OF_MANY and knobs.eager_kernels:
                got = self._native(operands, static)
                if got is not None:
                    return got
        return self.f(*operands, **static)

    def _native(self, operands: tuple, static: dict[str, Any]) -> Any:
        """By a program; None: operation by operation."""
        arrays: list[np.ndarray] = []
        kinds: list[Any] = []
        wrt: tuple[int, ...] = ()
        grad = force.grad
        for o in operands:
            if isinstance(o, Tensor):
                a = o._data()
                d = a.dtype
                if grad and (o._requires_grad or o._node is not None or o._view is not None) and requires_grad(o):
                    wrt += (len(arrays),)
                arrays.append(a)
                kinds.append((a.shape, d))
            elif o is None:
                kinds.append(None)
            else:
                number = _NUMBERS.get((arrays[0].dtype, o))
                arrays.append(_number(arrays[0].dtype, o) if number is None else number)
                kinds.append(0)
        key = (*kinds, wrt, *static.values())
        ready = self.bound.get(key, _UNKNOWN)
        if ready is _UNKNOWN:
            ready = self._bind(kinds, wrt, static)
            keep(self.bound, key, ready, _MOST)
        if ready is None or (self.admits is not None and not self.admits(*arrays, **static)):
            return None
        if placement.watched:
            process: Process = lambda _p, _o, _s: self._run(operands, static, arrays, ready, wrt)
            return watched(process)(self.primitive, operands, static)
        return self._run(operands, static, arrays, ready, wrt)

    def _run(
        self, operands: tuple, static: dict[str, Any], arrays: list[np.ndarray], ready: Ready, wrt: tuple[int, ...]
    ) -> Any:
        results = ready.forward(arrays)
        if wrt:
            return FusedNode.leave(self, operands, static, arrays, ready, results)
        return wrap(results[0]) if ready.results == 1 else tuple(map(wrap, results))

    def _bind(self, kinds: list, wrt: tuple[int, ...], static: dict[str, Any]) -> Ready | None:
        known = _BY_NUMPY
        if any(type(k) is tuple and known[k[1]].kind not in "fbui" for k in kinds) or known[kinds[0][1]].kind != "f":
            return None
        like = known[kinds[0][1]]
        if wrt and any(known[kinds[i][1]].kind != "f" for i in wrt if type(kinds[i]) is tuple):
            return None
        program = self.programs.get(tuple(static.items()))
        if program is None:
            program = self.programs[tuple(static.items())] = EagerProgram(self.primitive.name, self.f, dict(static))
        given = [(k[0], known[k[1]]) if type(k) is tuple else None if k is None else like.accumulator for k in kinds]
        try:
            return program.ready(given, wrt)
        except REFUSALS:
            if knobs.verify:
                raise
            return None


def fused(f: Callable[..., Any]) -> Fused:
    """See the head of this file. The first operand is a tensor; others are tensors, numbers, or None. A number of a
    narrow floating dtype is not rounded to it: a program has it in float32 (`with_number`)."""
    return Fused(f)


def fused_where(admits: Callable[..., bool]) -> Callable[[Callable[..., Any]], Fused]:
    """The same; programs are for arrays of which `admits(*arrays, **static)` holds."""
    return lambda f: Fused(f, admits)


class FusedNode(Node):
    """The tape's record of a program that ran forward."""

    __slots__ = ("fused", "given", "ready", "kept")

    def __init__(self, fused: Fused, operands: tuple, static: dict[str, Any], arrays: list, ready: Ready, results: list):
        self.primitive = fused.primitive
        self.fused = fused
        self.params = static
        self.ready = ready
        self.edges = tuple([edge(o) if isinstance(o, Tensor) else None for o in operands])
        self.released = False
        self.source = ""
        self.results = ()
        self.operands = ()
        #: the operands, with the versions of tensors: what derivatives of derivatives begin with
        self.given = tuple([(o, o._version, o._reassigned) if isinstance(o, Tensor) else (o, 0, 0) for o in operands])
        self.kept: list[Any] = []  #: the arrays that backward reads, in order
        self.versions = []
        tensors = [g for g in self.given if g[0] is not None]
        for r in ready.residuals:
            if r.source == "output":
                self.kept.append(results[r.index])
            else:
                self.kept.append(arrays[r.index])
                if isinstance(tensors[r.index][0], Tensor):
                    self.versions.append(tensors[r.index])

    @staticmethod
    def leave(fused: Fused, operands: tuple, static: dict[str, Any], arrays: list, ready: Ready, results: list) -> Any:
        """Put a call on the tape, and answer with its results."""
        node = FusedNode(fused, operands, static, arrays, ready, results)
        outs = tuple([wrap(a) for a in results[: ready.results]])
        node.outputs = tuple([t.spec for t in outs])
        for r in ready.residuals:
            if r.source == "output" and r.index < ready.results:
                node.versions.append((alias(outs[r.index]), 0, 0))
        for i, t in enumerate(outs):
            if node.outputs[i].dtype.is_differentiable:
                t._node = (node, i)
        return outs if len(outs) > 1 else outs[0]

    def apply(self, cotangents: list) -> list:
        """The cotangents of the operands, given those of the results (None: zero)."""
        self.check_saved()
        gs = [
            g if g is not None else zeros(s) for g, s in zip(cotangents, self.outputs, strict=True) if s.dtype.is_differentiable
        ]
        if force.grad or force.interpreter is not None or any([g._batching is not None for g in gs]) or placement.gpu:
            return self._replayed(gs)
        assert self.ready.backward is not None
        found = self.ready.backward([*self.kept, *[g._data() for g in gs]])
        gradients = iter(self.ready.gradients)
        out: list[Any] = []
        for e in self.edges:
            k = None if e is None else next(gradients)
            out.append(None if k is None else wrap(found[k]))
        return out

    def _replayed(self, cotangents: list) -> list:
        """The same by the operations that the function is made of, which can be differentiated and followed in their turn."""
        if not self.given:
            self.released = True
            self.check_saved()  # says that it was freed
        create, before = force.grad, self.versions
        self.versions = [g for g in self.given if isinstance(g[0], Tensor)]
        try:
            self.check_saved()
        finally:
            self.versions = before
        operands: list[Any] = []
        for (o, _, _), e in zip(self.given, self.edges, strict=True):
            if isinstance(o, Tensor):
                o = alias(o)
                o._node = e
            operands.append(o)
        force.grad = True
        try:
            got = self.fused.f(*operands, **self.params)
        finally:
            force.grad = create
        outs = [t for t in (got if isinstance(got, tuple) else (got,)) if t.dtype.is_differentiable]
        roots = [(edge(t), g) for t, g in zip(outs, cotangents, strict=True)]
        wanted = [e for e in self.edges if e is not None]
        found = run_engine(
            [e for e, _ in roots if e is not None], [g for e, g in roots if e is not None],
            retain_graph=create, create_graph=create, wanted=wanted, barrier=wanted,
        )  # fmt: skip
        return [None if e is None else found.pop(e, None) for e in self.edges]

    def release(self) -> None:
        self.released = bool(self.versions or self.kept) or self.released
        self.versions, self.kept, self.given = [], [], ()
