"""Native kernels behind eager calls on large arrays.

    eager_kernels()        what to call for a primitive in the place of its `eager`, for those that have something to win

    eager call ::= few elements (`least`), or operands of unequal shapes   -> the primitive's own meaning in NumPy
                 | else                                                    -> a kernel of that one primitive over n elements

erf takes NumPy some forty passes over memory, a draw of random bits sixty, and exp one of scalar code; a kernel reads each
operand once, in vectors and on all cores: 15 times as fast for erf, expm1 or acos, 10 for random bits, 2 to 3 for exp (a
quarter of a million floats, AVX2, two cores). The number of elements is a symbol of the kernel, so that each is compiled once
for a dtype, and kept on disk. Which of the two runs depends on shapes alone, so that equal calls give equal bits. They agree
as compiled and eager programs do: random bits to the bit, functions within their error bounds. Whatever is in the way of
native code (no llvmlite, an unusual CPU) leaves a primitive to NumPy, once and for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from flame.compiler.cpu_cost import calls_library, op_cost
from flame.compiler.graph import Graph
from flame.compiler.index_math import var
from flame.compiler.kernel import Buffer, IndexOf, Kernel, Load, Op, Statement, Store
from flame.compiler.program import KernelStep, Program, Slot
from flame.dtypes import _BY_NUMPY, dtype, float32, int64, uint32
from flame.errors import CompileError, MissingTargetError, Refused, VerificationError
from flame.knobs import knobs
from flame.ops.declare import as_operand
from flame.primitive import REGISTRY, Primitive, Spec, registered
from flame.runtime.eager_programs import REFUSALS, EagerProgram
from flame.runtime.executable import Executable

#: elements from which on a native call (some 3 us) is repaid where NumPy takes one pass or two
LEAST: Final = 16384
#: the same where NumPy takes many, each of which costs 0.5 us or more by itself: a series, a composite. (Any number would repay the
#: call; but what is this small is often met a few times only, and the first call of a size takes 0.3 ms, of all sizes 50 ms.)
LEAST_OF_MANY: Final = 64
#: executables that are kept of each primitive: one for each dtype and number of elements
_MOST: Final = 256
#: instructions an element, below which NumPy's one pass is as good; and from which on a function that NumPy lacks takes it many
_FEW: Final = 3
_SERIES: Final = 30
_N: Final = "n"
#: what NumPy reduces with one element a step, or in passes
_PROGRAMS: Final = ("sum", "amax", "amin", "prod")


def eager_kernels() -> dict[Primitive, Callable[..., Any]]:
    """By primitive, the function that stands in for its `eager`."""
    found: dict[Primitive, Callable[..., Any]] = {}
    for p in REGISTRY.values():
        if p.kind == "elementwise" and p.scalar is not None and p.scalar.define is not None:
            found[p] = EagerKernel(p)
    for name in _PROGRAMS:
        found[registered(name)] = EagerReduction(registered(name))
    random_bits = registered("random_bits")
    found[random_bits] = EagerDraw(random_bits)
    return found


class EagerKernel:
    """The eager meaning of an elementwise primitive, by native code where that pays."""

    def __init__(self, primitive: Primitive):
        self.primitive = primitive
        self.made: dict[tuple, Executable] = {}
        self.off = ""  #: why every call is left to NumPy
        self._worth: dict[dtype, bool] = {}
        self.least = least(primitive)

    def __call__(self, *operands: Any, **params: Any) -> Any:
        x = operands[0]
        if type(x) is not np.ndarray:
            x = operands[-1]
        if x.size >= self.least and not self.off and not params and knobs.eager_kernels:
            got = self._native(x, operands)
            if got is not None:
                return got
        return self.primitive.eager(*operands, **params)

    def _native(self, x: np.ndarray, operands: tuple) -> np.ndarray | None:
        """The result for operands that are arrays like `x`, or numbers; None: NumPy is to do it."""
        d = _BY_NUMPY[x.dtype]
        worth = self._worth.get(d)
        if worth is None:
            worth = self._worth[d] = is_worth_it(self.primitive, d, len(operands))
        if not worth:
            return None
        arrays, full = [], []
        for o in operands:
            if type(o) is np.ndarray:
                if o.shape != x.shape or o.dtype != x.dtype:
                    return None
                arrays.append(o.reshape(-1))
            elif d.is_narrow_float:  # numbers are not rounded to the narrow dtype
                return None
            else:
                arrays.append(np.asarray(as_operand(o, x.dtype)))
            full.append(type(o) is np.ndarray)
        run = self.executable((d, *full, x.size), lambda: elementwise_kernel(self.primitive, d, full))
        return None if run is None else run(arrays)[0].reshape(x.shape)

    def executable(self, key: tuple, kernel: Callable[[], Kernel]) -> Executable | None:
        """The executable for key = (.., number of elements)."""
        got = self.made.get(key)
        if got is None:
            try:
                got = Executable(program_of(kernel(), key[-1]))
            except (CompileError, MissingTargetError, Refused, VerificationError) as why:
                self.off = str(why)
                return None
            keep(self.made, key, got, _MOST)
        return got


def keep(made: dict, key: Any, got: Any, most: int) -> None:
    """Enter something under a key, of at most so many: the oldest go."""
    while len(made) >= most:
        made.pop(next(iter(made)), None)
    made[key] = got


def least(p: Primitive) -> int:
    """From how many elements on a kernel of `p` may be worth a native call."""
    if p.kind != "elementwise" or hasattr(np, p.name):
        return LEAST
    try:
        return LEAST_OF_MANY if op_cost(p.name, (float32,)) >= _SERIES else LEAST
    except TypeError:  # (of several operands)
        return LEAST


def is_worth_it(p: Primitive, d: dtype, operands: int) -> bool:
    """Does a kernel of `p` beat NumPy?"""
    if d.kind != "f":
        return False
    kinds = (d.accumulator,) * operands
    cost = op_cost(p.name, kinds)
    if isinstance(getattr(p.eager, "numpy", None), np.ufunc):  # one pass: is it one of few instructions, or of equal C calls?
        return cost >= _FEW and not calls_library(p.name, kinds)
    return cost > 0


class EagerReduction:
    """The eager meaning of a reduction of one array, by a program for arrays of any sizes."""

    def __init__(self, primitive: Primitive):
        self.primitive = primitive
        self.programs: dict[tuple, EagerProgram] = {}
        self.made: dict[tuple, Executable] = {}
        self.off = ""  #: why every call is left to NumPy

    def __call__(self, x: Any, **params: Any) -> Any:
        if x.size >= LEAST and not self.off and _BY_NUMPY[x.dtype].kind == "f" and x.flags.c_contiguous and knobs.eager_kernels:
            key = (x.shape, x.dtype, *params.values())
            run = self.made.get(key) or self._executable(key, x, params)
            if run is not None:
                return run([x])[0]
        return self.primitive.eager(x, **params)

    def _executable(self, key: tuple, x: np.ndarray, params: dict[str, Any]) -> Executable | None:
        said = tuple(params.items())
        program = self.programs.get(said)
        if program is None:
            program = self.programs[said] = EagerProgram(self.primitive.name, self.primitive, params)
        try:
            got = program.ready([(x.shape, _BY_NUMPY[x.dtype])]).forward
        except REFUSALS as why:
            self.off = str(why)
            return None
        keep(self.made, key, got, _MOST)
        return got


class EagerDraw(EagerKernel):
    """The same for `random_bits`, whose operands are numbers."""

    def __call__(self, seed: Any, offset: Any, *, shape: tuple[int, ...], place: str = "") -> Any:
        n = math.prod(shape)
        if n >= LEAST and not self.off and knobs.eager_kernels:
            run = self.executable((n,), draw_kernel)
            if run is not None:
                return run([np.asarray(seed, np.int64), np.asarray(offset, np.int64)])[0].reshape(shape)
        return self.primitive.eager(seed, offset, shape=shape)


def elementwise_kernel(p: Primitive, d: dtype, full: Sequence[bool]) -> Kernel:
    """y[i] = p(x0[i], ..) for i < n; an operand that is not full is one element."""
    i = var("i")
    buffers: dict[str, Buffer] = {}
    statements: list[Statement] = []
    values = []
    for j, whole in enumerate(full):
        buffers[f"x{j}"] = Buffer(f"x{j}", d, (var(_N),) if whole else ())
        statements.append(Load(f"a{j}", f"x{j}", (i,) if whole else (), (), 0.0, d))
        values.append(_converted(statements, f"a{j}", d, d.accumulator))
    result = p.infer(*[Spec((), d)] * len(full)).dtype
    statements.append(Op("y", p.name, tuple(values), result.accumulator))
    buffers["out"] = Buffer("out", result, (var(_N),), "out")
    statements.append(Store("out", (i,), _converted(statements, "y", result.accumulator, result)))
    return Kernel(f"{p.name}_{d.name}", buffers, {"i": var(_N)}, {_N: 1}, statements)


def _converted(statements: list[Statement], v: str, before: dtype, after: dtype) -> str:
    if before is after:
        return v
    statements.append(Op(f"{v}_cast", "cast", (v,), after))
    return f"{v}_cast"


def draw_kernel() -> Kernel:
    """out[i] = the seed's word at offset + i."""
    i = var("i")
    statements: list[Statement] = [
        Load("s", "seed", (), (), 0, int64),
        Load("o", "offset", (), (), 0, int64),
        IndexOf("at", i, int64),
        Op("position", "add", ("o", "at"), int64),
        Op("word", "philox_word", ("s", "position"), uint32),
        Store("out", (i,), "word"),
    ]
    buffers = {name: Buffer(name, int64, ()) for name in ("seed", "offset")}
    buffers["out"] = Buffer("out", uint32, (var(_N),), "out")
    return Kernel("random_bits", buffers, {"i": var(_N)}, {_N: 1}, statements)


def program_of(kernel: Kernel, n: int) -> Program:
    """One kernel over n elements as a program."""
    slots: list[Slot] = []
    buffers: dict[str, int] = {}
    for b in kernel.buffers.values():
        buffers[b.name] = len(slots)
        slots.append(Slot(Spec((n,) if b.shape else (), b.dtype), "input" if b.role == "in" else "output", 0))
    inputs = tuple(i for i, s in enumerate(slots) if s.kind == "input")
    outputs = tuple(i for i, s in enumerate(slots) if s.kind == "output")
    return Program(kernel.name, Graph(), tuple(slots), (KernelStep(kernel, buffers, {_N: n}),), inputs, outputs)
