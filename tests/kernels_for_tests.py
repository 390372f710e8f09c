"""Kernels written straight in the IR, for the tests of whatever reads it: `cases()` by name (random ones: random_kernels.py).

A case is (kernel, buffers, symbols): inputs hold random numbers, outputs zeros. `run(case)` gives what the interpreter makes
of a case, in fresh arrays; `expected(case)` does so in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import flame.ops.elementwise  # noqa: F401  registers exp and the other functions used here
from flame import dtypes
from flame.compiler.index_math import E, evaluate, ex, val, var
from flame.compiler.interpret import interpret
from flame.compiler.kernel import (
    Buffer,
    Const,
    Contract,
    IndexOf,
    Kernel,
    Load,
    Op,
    Reduce,
    Statement,
    Store,
)
from flame.dtypes import dtype
from flame.ops.access import Cond

Case = tuple[Kernel, dict[str, np.ndarray], dict[str, int]]
F32, F64, F16, BF16 = dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16
I32, I64, BOOL = dtypes.int32, dtypes.int64, dtypes.bool_


class Make:
    """Writes a kernel a statement at a time; every method gives the new value's name."""

    def __init__(self, name: str, **axes: int | E):
        self.name = name
        self.axes = {a: ex(n) for a, n in axes.items()}
        self.symbols: dict[str, int] = {}
        self.given: dict[str, int] = {}
        self.buffers: dict[str, Buffer] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.statements: list[Statement] = []
        self.kinds: dict[str, dtype] = {}

    def symbol(self, name: str, value: int, low: int = 2) -> E:
        self.symbols[name], self.given[name] = low, value
        return var(name)

    def buffer(self, name: str, d: dtype, shape: Sequence[int | E], role: str, array: np.ndarray | None = None) -> str:
        if name not in self.buffers:
            self.buffers[name] = Buffer(name, d, tuple(map(ex, shape)), role)
            sizes = [int(evaluate(ex(e), self.given)) for e in shape]
            if array is None:
                array = np.zeros(sizes, d.numpy) if role == "out" else random_array(sizes, d, sum(map(ord, self.name + name)))
            self.arrays[name] = np.ascontiguousarray(array.reshape(sizes))
        return name

    def add(self, make: Callable[[str], Any]) -> str:
        name = f"t{len(self.kinds)}"
        s = make(name)
        self.kinds[name] = s.dtype
        self.statements.append(s)
        return name

    def const(self, value: bool | int | float, d: dtype) -> str:
        return self.add(lambda v: Const(v, value, d))

    def index(self, e: E, d: dtype = I64) -> str:
        return self.add(lambda v: IndexOf(v, e, d))

    def load(
        self, name: str, index: Sequence[int | E], d: dtype = F32, *, shape: Sequence[int | E] | None = None, mask: Any = (),
        other: Any = 0, wide: bool = True, role: str = "in", array: np.ndarray | None = None,
    ) -> str:  # fmt: skip
        """Load; the buffer is made at its first use. `shape` may be left out where every index is a plain axis."""
        at = tuple(map(ex, index))
        if shape is None:
            shape = [self.axes[str(e)] for e in at] if name not in self.buffers else ()
        self.buffer(name, d, shape, role, array)
        got = self.add(lambda v: Load(v, name, at, tuple(mask), other, d, f"{name} of {self.name}"))
        return self.op("cast", got, d=F32) if wide and d.is_narrow_float else got

    def op(self, name: str, *operands: str, d: dtype | None = None) -> str:
        kind = d or (BOOL if name in ("eq", "ne", "lt", "le", "gt", "ge") else self.kinds[operands[-1]])
        return self.add(lambda v: Op(v, name, operands, kind))

    def reduce(self, name: str, operand: str, *axes: str) -> str:
        kind = I64 if name.startswith("arg") else self.kinds[operand]
        return self.add(lambda v: Reduce(v, name, (operand,), axes, kind))

    def contract(self, a: str, b: str, *axes: str, d: dtype | None = None) -> str:
        kind = d or self.kinds[a].accumulator
        return self.add(lambda v: Contract(v, (a, b), axes, kind))

    def store(
        self, name: str, index: Sequence[int | E], value: str, *, d: dtype | None = None, shape: Any = None, mask: Any = ()
    ) -> None:
        d = d or self.kinds[value]
        at = tuple(map(ex, index))
        self.buffer(name, d, [self.axes[str(e)] for e in at] if shape is None else shape, "out")
        if d is not self.kinds[value]:
            value = self.op("cast", value, d=d)
        self.statements.append(Store(name, at, value, tuple(mask)))

    def case(self) -> Case:
        return Kernel(self.name, self.buffers, self.axes, self.symbols, self.statements), self.arrays, self.given


def random_array(shape: Sequence[int], d: dtype, seed: int) -> np.ndarray:
    """Numbers that every dtype holds well: floats around 1 in size, small integers, fair bools."""
    r = np.random.default_rng(seed)
    if d.kind == "f":
        return r.standard_normal(shape).astype(d.numpy)
    if d.kind == "b":
        return r.integers(0, 2, shape).astype(bool)
    return r.integers(0 if d.kind == "u" else -9, 10, shape).astype(d.numpy)


def run(case: Case, precise: bool = False) -> dict[str, np.ndarray]:
    """The outputs of a case by the interpreter, in fresh arrays (float64 ones where `precise`)."""
    kernel, arrays, symbols = case
    fresh = {n: a.copy() for n, a in arrays.items()}
    if precise:
        for b in kernel.buffers.values():
            if b.role == "out" and b.dtype.kind == "f":
                fresh[b.name] = fresh[b.name].astype(np.float64)
    interpret(kernel, fresh, symbols, precise)
    return {n: fresh[n] for n in kernel.outputs}


def expected(case: Case) -> dict[str, np.ndarray]:
    return run(case, precise=True)


i, j, k, b, h, c = map(var, "ijkbhc")


def _pointwise(d: dtype) -> Case:
    m = Make(f"pointwise_{d.name}", i=37, j=21)
    x, y, z = m.load("x", (i, j), d), m.load("y", (j,), d), m.load("z", (i, j), d)
    if d is BOOL:
        out = m.op("logical_or", m.op("logical_and", x, y), m.op("logical_not", z))
    elif d.kind in "iu":
        out = m.op("bitwise_xor", m.op("add", m.op("mul", x, y), m.op("minimum", x, z)), m.op("sub", y, z))
    else:
        out = m.op("where", m.op("lt", x, z), m.op("add", m.op("mul", x, y), z), m.op("maximum", m.op("abs", x), y))
    m.store("o", (i, j), out, d=d)
    return m.case()


def _pointwise_symbolic() -> Case:
    m = Make("pointwise_symbolic")
    n = m.symbol("n", 19)
    m.axes = {"i": n, "j": ex(8)}
    m.store("o", (i, j), m.op("add", m.load("x", (i, j)), m.load("y", (i,))))
    return m.case()


def _scalar() -> Case:
    m = Make("scalar")
    m.store("o", (), m.op("mul", m.load("x", (), shape=()), m.const(0.5, F32)), shape=())
    return m.case()


def _empty() -> Case:
    m = Make("empty", i=0, j=5)
    m.store("o", (i, j), m.op("neg", m.load("x", (i, j))))
    return m.case()


def _empty_sum(op: str) -> Case:
    m = Make(f"empty_{op}", i=7, j=0)
    m.store("o", (i,), m.reduce(op, m.load("x", (i, j)), "j"))
    return m.case()


def _transpose_add(d: dtype = F32) -> Case:
    m = Make(f"transpose_add_{d.name}", i=33, j=50)
    m.store("o", (i, j), m.op("add", m.load("x", (j, i), d), m.load("y", (i, j), d)), d=d)
    return m.case()


def _permute() -> Case:
    m = Make("permute", b=3, h=4, i=9, j=16)
    m.store("o", (b, h, i, j), m.op("neg", m.load("x", (b, i, h, j))))
    return m.case()


def _slice() -> Case:
    m = Make("slice", i=10, j=13)
    x = m.load("x", (2 * i + 1, j + 3), shape=(22, 16))
    m.store("o", (i, 12 - j), x, shape=(10, 13))
    return m.case()


def _pad() -> Case:
    m = Make("pad", i=12, j=15)
    inside = (Cond(i - 2), Cond(10 - i), Cond(j - 1), Cond(13 - j))
    x = m.load("x", (i - 2, j - 1), shape=(9, 13), mask=inside, other=-1.5)
    m.store("o", (i, j), m.op("mul", x, x))
    return m.case()


def _concatenate() -> Case:
    m = Make("concatenate", i=5, j=17)
    x = m.load("x", (i, j), shape=(5, 6), mask=(Cond(5 - j),))
    y = m.load("y", (i, j - 6), shape=(5, 11), mask=(Cond(j - 6),))
    left = m.op("le", m.index(j), m.const(5, I64))
    m.store("o", (i, j), m.op("where", left, x, y))
    return m.case()


def _write_part() -> Case:
    m = Make("write_part", i=6, j=10)
    x = m.load("x", (i, j))
    m.store("o", (2 * i + 1, j), x, shape=(12, 10), mask=(Cond(j - 3),))
    return m.case()


def _repeat() -> Case:
    m = Make("repeat", i=12, j=15)
    m.store("o", (i, j), m.load("x", (i % 4, j // 3), shape=(4, 5)))
    return m.case()


def _arange() -> Case:
    m = Make("arange", i=9, j=11)
    tri = m.op("ge", m.index(i - j, I32), m.const(0, I32))
    m.store("o", (i, j), m.op("where", tri, m.load("x", (i, j)), m.const(float("-inf"), F32)))
    return m.case()


def _row(op: str, d: dtype = F32, rows: int = 13, columns: int = 100) -> Case:
    m = Make(f"row_{op}_{d.name}", i=rows, j=columns)
    x = m.load("x", (i, j), d)
    r = m.reduce(op, x, "j")
    m.store("o", (i,), r, d=None if op.startswith("arg") else d)
    return m.case()


def _row_nan(op: str) -> Case:
    m = Make(f"row_{op}_nan", i=6, j=37)
    x = random_array((6, 37), F32, 5)
    x[1, 20] = x[1, 30] = np.nan
    x[2, :] = np.nan
    x[3, 4], x[4, 5] = np.inf, -np.inf
    x[5, :] = 2.0
    m.store("o", (i,), m.reduce(op, m.load("x", (i, j), array=x), "j"))
    return m.case()


def _any_all(op: str) -> Case:
    m = Make(f"row_{op}", i=40, j=5)
    m.store("o", (i,), m.reduce(op, m.load("x", (i, j), BOOL), "j"))
    return m.case()


def _all_of_it(op: str) -> Case:
    m = Make(f"whole_{op}", i=23, j=45)
    m.store("o", (), m.reduce(op, m.load("x", (i, j)), "i", "j"), shape=())
    return m.case()


def _column(op: str, d: dtype = F32) -> Case:
    m = Make(f"column_{op}_{d.name}", i=67, j=45)
    m.store("o", (j,), m.reduce(op, m.load("x", (i, j), d), "i"), d=None if op.startswith("arg") else d)
    return m.case()


def _middle_sum() -> Case:
    m = Make("middle_sum", i=5, j=31, k=17)
    m.store("o", (i, k), m.reduce("sum", m.load("x", (i, j, k)), "j"))
    return m.case()


def _softmax(d: dtype = F32, rows: int = 11, columns: int = 77) -> Case:
    m = Make(f"softmax_{d.name}_{columns}", i=rows, j=columns)
    x = m.load("x", (i, j), d)
    e = m.op("exp", m.op("sub", x, m.reduce("max", x, "j")))
    m.store("o", (i, j), m.op("div", e, m.reduce("sum", e, "j")), d=d)
    return m.case()


def _layer_norm(d: dtype = F32) -> Case:
    m = Make(f"layer_norm_{d.name}", i=9, j=96)
    x = m.load("x", (i, j), d)
    n = m.const(1 / 96, m.kinds[x])
    mean = m.op("mul", m.reduce("sum", x, "j"), n)
    centred = m.op("sub", x, mean)
    variance = m.op("mul", m.reduce("sum", m.op("mul", centred, centred), "j"), n)
    scale = m.op("div", m.const(1.0, m.kinds[x]), m.op("sqrt", m.op("add", variance, m.const(1e-5, m.kinds[x]))))
    normal = m.op("mul", centred, scale)
    m.store("o", (i, j), m.op("add", m.op("mul", normal, m.load("w", (j,), d)), m.load("bias", (j,), d)), d=d)
    m.store("mean", (i,), mean)
    m.store("scale", (i,), scale)
    return m.case()


def _layer_norm_backward() -> Case:
    """Row reductions and column reductions in one kernel."""
    m = Make("layer_norm_backward", i=24, j=40)
    g, x, w = m.load("g", (i, j)), m.load("x", (i, j)), m.load("w", (j,))
    n = m.const(1 / 40, F32)
    gw = m.op("mul", g, w)
    mean = m.op("mul", m.reduce("sum", gw, "j"), n)
    along = m.op("mul", m.reduce("sum", m.op("mul", gw, x), "j"), n)
    m.store("dx", (i, j), m.op("sub", m.op("sub", gw, mean), m.op("mul", x, along)))
    m.store("dw", (j,), m.reduce("sum", m.op("mul", g, x), "i"))
    m.store("db", (j,), m.reduce("sum", g, "i"))
    return m.case()


def _cross_entropy() -> Case:
    m = Make("cross_entropy", i=14, j=50)
    x = m.load("x", (i, j))
    top = m.reduce("max", x, "j")
    total = m.reduce("sum", m.op("exp", m.op("sub", x, top)), "j")
    label = m.load("label", (i,), I64, array=np.arange(14) * 3)
    chosen = m.load("x", (i, val(label)))
    m.store("o", (i,), m.op("sub", m.op("add", m.op("log", total), top), chosen))
    return m.case()


def _embedding() -> Case:
    m = Make("embedding", i=21, j=32)
    token = m.load("token", (i,), I64, array=np.random.default_rng(3).integers(0, 10, 21))
    m.store("o", (i, j), m.load("table", (val(token), j), shape=(10, 32)))
    return m.case()


def _gather() -> Case:
    """Along rows, with an index for each element; negative ones count from the end."""
    m = Make("gather", i=7, j=9)
    raw = m.load("index", (i, j), I64, array=np.random.default_rng(4).integers(-12, 12, (7, 9)))
    end = m.op("add", raw, m.const(12, I64))
    at = m.op("where", m.op("lt", raw, m.const(0, I64)), end, raw)
    m.store("o", (i, j), m.load("x", (i, val(at)), shape=(7, 12)))
    return m.case()


def _dropout_like() -> Case:
    """Integer arithmetic beside floats: bits of a counter, shifted, compared."""
    m = Make("bits", i=64)
    u = dtypes.uint32
    counter = m.op("cast", m.index(i * 7 + 3, I64), d=u)
    mixed = m.op("bitwise_xor", m.op("mul_high", counter, m.const(0xD2511F53, u)), m.op("mul", counter, m.const(0xCD9E8D57, u)))
    unit = m.op("mul", m.op("cast", m.op("shift_right", mixed, m.const(8, u)), d=F32), m.const(2.0**-24, F32))
    keep = m.op("ge", unit, m.const(0.25, F32))
    m.store("o", (i,), m.op("where", keep, m.load("x", (i,)), m.const(0.0, F32)))
    return m.case()


def _bitcast() -> Case:
    m = Make("bitcast", i=50)
    bits = m.op("bitcast", m.load("x", (i,)), d=I32)
    m.store("o", (i,), m.op("bitcast", m.op("bitwise_and", bits, m.const(0x7FFFFFFF, I32)), d=F32))
    m.store("bits", (i,), bits)
    return m.case()


def _casts() -> Case:
    m = Make("casts", i=40)
    x = m.load("x", (i,), I32)
    m.store("to_float", (i,), m.op("cast", x, d=F32))
    m.store("to_byte", (i,), m.op("cast", x, d=dtypes.int8))
    m.store("to_bool", (i,), m.op("cast", x, d=BOOL))
    m.store("to_half", (i,), m.op("cast", m.op("cast", x, d=F32), d=BF16))
    y = m.load("y", (i,), F64)
    m.store("to_long", (i,), m.op("cast", m.op("mul", y, m.const(9.0, F64)), d=I64))
    m.store("narrow", (i,), m.op("cast", y, d=F32))
    return m.case()


def _inout() -> Case:
    """A parameter updated in place."""
    m = Make("inout", i=70)
    p = m.load("p", (i,), role="inout")
    m.store("p", (i,), m.op("sub", p, m.op("mul", m.load("g", (i,)), m.const(0.1, F32))))
    return m.case()


def summed_update(rows: int, columns: int, axis: str) -> Case:
    """What a gradient is summed from, and an optimizer's update by the sum, in one kernel: state and parameter in place."""
    m = Make(f"summed_update_{axis}_{rows}x{columns}", i=rows, j=columns)
    kept = (j,) if axis == "columns" else (i,)
    g = m.reduce("sum", m.load("x", (i, j)), "i" if axis == "columns" else "j")
    v, p = m.load("v", kept, role="inout"), m.load("p", kept, role="inout")
    moved = m.op("add", m.op("mul", v, m.const(0.9, F32)), m.op("mul", g, g))
    m.store("g", kept, g)
    m.store("v", kept, moved)
    scale = m.op("add", m.op("sqrt", m.op("abs", moved)), m.const(0.5, F32))
    m.store("p", kept, m.op("sub", p, m.op("div", m.op("exp", m.op("neg", m.op("abs", g))), scale)))
    return m.case()


def _matmul(
    d: dtype = F32, a: str = "n", t: str = "n", size: tuple[int, int, int] = (33, 45, 29), epilogue: bool = False
) -> Case:
    rows, columns, inner = size
    m = Make(f"matmul_{a}{t}_{d.name}{'_gelu' if epilogue else ''}_{rows}x{columns}x{inner}", i=rows, j=columns, k=inner)
    x = m.load("x", (i, k) if a == "n" else (k, i), d, wide=False)
    y = m.load("y", (k, j) if t == "n" else (j, k), d, wide=False)
    r = m.contract(x, y, "k", d=I32 if d is dtypes.int8 else None)
    if epilogue:
        kind = m.kinds[r]
        r = m.op("add", r, m.load("bias", (j,), d))
        r = m.op("mul", r, m.op("maximum", r, m.const(0.0, kind)))
    m.store("o", (i, j), r, d=I32 if d is dtypes.int8 else d)
    return m.case()


def _matmul_prologue() -> Case:
    """A scaled and squared left factor, a padded right one: the mask's zero must hold after the prologue."""
    m = Make("matmul_prologue", i=20, j=24, k=31)
    x = m.op("exp", m.op("mul", m.load("x", (i, k)), m.load("s", (i,))))
    y = m.load("y", (k - 3, j), shape=(25, 24), mask=(Cond(k - 3), Cond(27 - k)))
    m.store("o", (i, j), m.contract(x, y, "k"))
    return m.case()


def _batched_matmul(d: dtype = F32) -> Case:
    """Queries times keys from (batch, time, head, feature)."""
    m = Make(f"batched_matmul_{d.name}", b=2, h=3, i=17, j=19, k=16)
    x, y = m.load("x", (b, i, h, k), d, wide=False), m.load("y", (b, j, h, k), d, wide=False)
    r = m.contract(x, y, "k")
    m.store("o", (b, h, i, j), m.op("mul", r, m.const(0.25, m.kinds[r])), d=d)
    return m.case()


def _matrix_vector(kind: str) -> Case:
    m = Make(f"matrix_vector_{kind}", i=1 if kind == "row" else 50, j=50 if kind == "row" else 1, k=37)
    m.store("o", (i, j), m.contract(m.load("x", (i, k)), m.load("y", (k, j)), "k"))
    return m.case()


def _outer() -> Case:
    m = Make("outer", i=12, j=14, k=1)
    m.store("o", (i, j), m.contract(m.load("x", (i, k)), m.load("y", (k, j)), "k"))
    return m.case()


def _empty_matmul() -> Case:
    m = Make("empty_matmul", i=4, j=5, k=0)
    m.store("o", (i, j), m.contract(m.load("x", (i, k)), m.load("y", (k, j)), "k"))
    return m.case()


def _attention() -> Case:
    """softmax(q k^T) v in one kernel: two contractions, the second over the first's column."""
    m = Make("attention", b=3, i=10, j=18, k=8, c=8)
    s = m.contract(m.load("q", (b, i, k)), m.load("key", (b, j, k)), "k")
    e = m.op("exp", m.op("sub", s, m.reduce("max", s, "j")))
    p = m.op("div", e, m.reduce("sum", e, "j"))
    m.store("o", (b, i, c), m.contract(p, m.load("v", (b, j, c)), "j"))
    return m.case()


def _convolution(stride: int = 1, d: dtype = F32) -> Case:
    """x[b, c, 11, 13] with w[o, c, 3, 3], padded by 1."""
    high, wide = (11 + stride - 1) // stride, (13 + stride - 1) // stride
    m = Make(f"convolution_stride{stride}_{d.name}", b=2, o=6, y=high, x=wide, c=5, r=3, s=3)
    o, y, x, r, s = map(var, "oyxrs")
    row, column = stride * y + r - 1, stride * x + s - 1
    inside = (Cond(row), Cond(10 - row), Cond(column), Cond(12 - column))
    image = m.load("image", (b, c, row, column), d, shape=(2, 5, 11, 13), mask=inside, wide=False)
    weight = m.load("weight", (o, c, r, s), d, wide=False)
    m.store("out", (b, o, y, x), m.contract(image, weight, "c", "r", "s"), d=d)
    return m.case()


def _convolution_weight() -> Case:
    """The gradient of a convolution's weights: summed over batch and space."""
    m = Make("convolution_weight", o=6, c=5, r=3, s=3, b=2, y=7, x=8)
    o, y, x, r, s = map(var, "oyxrs")
    row, column = y + r - 1, x + s - 1
    inside = (Cond(row), Cond(6 - row), Cond(column), Cond(7 - column))
    image = m.load("image", (b, c, row, column), shape=(2, 5, 7, 8), mask=inside)
    m.store("dw", (o, c, r, s), m.contract(image, m.load("g", (b, o, y, x)), "b", "y", "x"))
    return m.case()


def _max_pool() -> Case:
    m = Make("max_pool", b=3, y=6, x=5, r=2, s=2)
    y, x, r, s = map(var, "yxrs")
    image = m.load("image", (b, 2 * y + r, 2 * x + s), shape=(3, 12, 11))
    m.store("o", (b, y, x), m.reduce("max", image, "r", "s"))
    m.store("at", (b, y, x), m.reduce("argmax", image, "r", "s"))
    return m.case()


def _symbolic_softmax() -> Case:
    m = Make("softmax_symbolic")
    m.axes = {"i": m.symbol("n", 7), "j": m.symbol("m", 33)}
    x = m.load("x", (i, j))
    e = m.op("exp", m.op("sub", x, m.reduce("max", x, "j")))
    m.store("o", (i, j), m.op("div", e, m.reduce("sum", e, "j")))
    return m.case()


def _symbolic_matmul() -> Case:
    m = Make("matmul_symbolic")
    m.axes = {"i": m.symbol("n", 21), "j": ex(24), "k": m.symbol("m", 13)}
    m.store("o", (i, j), m.contract(m.load("x", (i, k)), m.load("y", (k, j)), "k"))
    return m.case()


@functools.cache
def _all() -> dict[str, Case]:
    made = [_pointwise(d) for d in dtypes.ALL]
    made += [_pointwise_symbolic(), _scalar(), _empty(), _empty_sum("sum"), _empty_sum("max"), _empty_sum("prod")]
    made += [_transpose_add(), _transpose_add(F16), _permute(), _slice(), _pad(), _concatenate(), _write_part(), _repeat()]
    made += [_arange(), _any_all("any"), _any_all("all"), _all_of_it("sum"), _all_of_it("max"), _middle_sum()]
    made += [_row(op, d) for op in ("sum", "max") for d in (F32, F64, F16, BF16, I32, I64, dtypes.int8)]
    made += [_row("min"), _row("prod", columns=12), _row("argmax"), _row("argmin"), _row("argmax", I32), _row("argmax", BOOL)]
    made += [_row("argmin", BF16), *(_row_nan(op) for op in ("max", "min", "argmax", "argmin", "sum"))]
    made += [_column("sum"), _column("max"), _column("argmax"), _column("sum", BF16), _column("sum", F64), _column("sum", I64)]
    made += [_softmax(), _softmax(F16), _softmax(BF16), _softmax(F64), _softmax(columns=3000, rows=2), _softmax(columns=1)]
    made += [_layer_norm(), _layer_norm(BF16), _layer_norm(F64), _layer_norm_backward(), _cross_entropy(), _embedding()]
    made += [_gather(), _dropout_like(), _bitcast(), _casts(), _inout(), _symbolic_softmax(), _symbolic_matmul()]
    made += [_matmul(a=a, t=t) for a in "nt" for t in "nt"] + [_matmul(d) for d in (F64, F16, BF16, I32, dtypes.int8)]
    made += [_matmul(epilogue=True), _matmul(BF16, epilogue=True), _matmul(size=(1, 1, 1)), _matmul(size=(3, 130, 260))]
    made += [_matmul_prologue(), _batched_matmul(), _batched_matmul(F16), _matrix_vector("row"), _matrix_vector("column")]
    made += [_outer(), _empty_matmul(), _attention(), _convolution(), _convolution(2), _convolution(d=BF16)]
    made += [_convolution_weight(), _max_pool()]
    assert len({kernel.name for kernel, _, _ in made}) == len(made)
    return {kernel.name: (kernel, arrays, symbols) for kernel, arrays, symbols in made}


def cases() -> dict[str, Case]:
    """Every hand-written case by name, with fresh arrays."""
    return {n: (kernel, {b: a.copy() for b, a in arrays.items()}, dict(s)) for n, (kernel, arrays, s) in _all().items()}
