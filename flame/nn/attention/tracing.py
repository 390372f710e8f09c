"""A user's function of single numbers, run once on stand-ins and written down as steps (`flame.ops.flex.Step`).

    tracing = Tracing(what, device, specs)          stand-ins of these specs: `tracing.inputs`
    y = tracing.run(f, *tracing.inputs)             may be called several times
    steps, result = tracing.forward(y)              and the tensors that were looked up: `tracing.tables`

What a function does to other tensors runs as it always does, and what it then reads of them beside a stand-in is one of its tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from flame import dtypes
from flame.interpreting import Inner
from flame.ops.flex import TABLES, Step, V
from flame.primitive import Primitive, Spec, force, registered
from flame.tensor import Size, Tensor

_ONE_NUMBER = (
    "a score's function is of single numbers: it may compute with them, and look a tensor up at an index for each dimension"
)


def is_negative_zero(x: Any) -> bool:
    return type(x) is float and x == 0 and math.copysign(1.0, x) < 0


class StandIn(Tensor):
    """One number of every score, or a table of which some dimensions have been looked up (`partial`)."""

    _number: V
    _spec: Spec
    _tracing: Any
    _partial: tuple

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"{self._tracing.what}: the value of a score or of its place is read, each has its own: choose with flame.where"
        )

    _data = _read = __bool__ = item = numpy = tolist = __array__ = __index__ = __int__ = __float__ = _refuse  # type: ignore[assignment]

    @property
    def shape(self) -> Size:
        return Size(self._spec.shape)

    @property
    def ndim(self) -> int:
        return len(self._spec.shape)

    @property
    def dtype(self) -> Any:
        return self._spec.dtype

    @property
    def device(self) -> Any:
        return self._tracing.device

    @property
    def spec(self) -> Spec:
        return self._spec

    def __repr__(self) -> str:
        return f"StandIn(%{self._number.n}: {self._spec})"


class Tracing(Inner):
    """The interpreter of one trace; `outer` is the one below it."""

    next: Any = None

    def __init__(self, what: str, device: Any, specs: Sequence[Spec]):
        self.what, self.device, self.outer = what, device, force.interpreter
        self.steps: list[Step | None] = []
        self.tables: list[Tensor] = []
        self.inputs = [self._made(V(n), s) for n, s in enumerate(specs)]
        self._specs = list(specs)

    def _made(self, number: V, spec: Spec, partial: tuple = ()) -> StandIn:
        t = object.__new__(StandIn)
        t._array = None
        t._number, t._spec, t._tracing, t._partial = number, spec, self, partial
        return t

    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any:
        if not any(isinstance(o, StandIn) for o in operands):
            return self.below(primitive, *operands, **params)
        if primitive.name == "index_nd":
            return self._looked_up(operands, params["dims"])
        if primitive.name in ("reshape", "expand", "permute") and operands[0].ndim == 0 and not any(params.values()):
            return operands[0]
        if primitive.scalar is None or "scalar" in primitive.refused:
            raise RuntimeError(f"{self.what}: {primitive.name} can't be part of it: {_ONE_NUMBER}")
        given = [self._operand(o) for o in operands]
        for o in operands:
            if isinstance(o, Tensor) and o.ndim:
                raise RuntimeError(f"{self.what}: {primitive.name} meets a tensor of {list(o.shape)}: {_ONE_NUMBER}")
        spec = primitive.infer(*(o.spec if isinstance(o, Tensor) else getattr(o, "value", o) for o in operands), **params)
        return self._step(primitive.name, tuple(given), params, spec)

    def _step(self, name: str, operands: tuple, params: dict, spec: Spec) -> StandIn:
        self.steps.append(Step(name, operands, tuple(params.items())))
        return self._made(V(-len(self.steps)), spec)  # numbered from the end until the tables are counted

    def _operand(self, o: Any) -> Any:
        if isinstance(o, StandIn):
            return o._number
        if (
            isinstance(o, bool | int | float) and o == o and not is_negative_zero(o)
        ):  # (which equal other steps, or not their own)
            return o
        if not isinstance(o, Tensor):  # a number that may be another one next time: it is handed in
            value = getattr(o, "value", o)
            d = dtypes.int64 if isinstance(value, int) else dtypes.get_default_dtype()
            o = self.below(registered("full"), o, shape=(), dtype=d)
        for n, t in enumerate(self.tables):
            if t is o:
                return ("table", n)
        self.tables.append(o)
        return ("table", len(self.tables) - 1)

    def _looked_up(self, operands: tuple, dims: tuple) -> Any:
        x, *indices = operands
        before: tuple = ()
        if isinstance(x, StandIn):
            table, before = x._partial if x._partial else (None, ())
            if table is None:
                raise RuntimeError(f"{self.what}: a score or its place is looked up, not a tensor: {_ONE_NUMBER}")
        else:
            table = x
        if any(i.ndim for i in indices) or dims != tuple(range(len(dims))):
            raise RuntimeError(f"{self.what}: {_ONE_NUMBER}, the first one first")
        found = (*before, *indices)
        rest = tuple(x.shape)[len(dims) :]
        if rest:
            return self._made(V(0), Spec(rest, x.dtype), (table, found))
        given = (self._operand(table), *(self._operand(i) for i in found))
        return self._step("index_nd", given, {"dims": tuple(range(len(found)))}, Spec((), x.dtype))

    # ---------------------------------------------------------------- what else interpreters are asked for

    def assign(self, target: Any, value: Any) -> Tensor:
        raise RuntimeError(f"{self.what}: nothing may be written in it: use operations that give new tensors")

    def detach(self, t: Tensor) -> Tensor:
        return t if isinstance(t, StandIn) else self.below(t.detach)  # type: ignore[attr-defined]

    def run(self, f: Callable, *args: Any) -> Any:
        """f(*args) under this interpreter; its result is one number of every score."""
        force.interpreter = self
        try:
            y = f(*args)
        finally:
            force.interpreter = self.outer
        if not isinstance(y, Tensor):
            raise RuntimeError(f"{self.what}: expected it to return a tensor, but got {type(y).__name__}")
        if y.ndim or (isinstance(y, StandIn) and y._partial):
            raise RuntimeError(f"{self.what}: expected it to return one number, but got a tensor of {list(y.shape)}")
        return y

    def forward(self, result: Any) -> tuple[tuple[Step, ...], V]:
        """The steps with their final numbers, and the result's."""
        first = TABLES + len(self.tables)

        def number(o: Any) -> Any:
            if isinstance(o, V):
                return o if o.n >= 0 else V(first - o.n - 1)
            return V(TABLES + o[1]) if isinstance(o, tuple) else o

        steps = tuple(Step(s.primitive, tuple(map(number, s.operands)), s.params) for s in self.steps if s is not None)
        return steps, number(self._operand(result))
