"""The kernel IR: what one fused kernel computes, without saying how it is scheduled.

    kernel ::= name(buffer*, symbol*) axis* stmt*          axis ::= name < E
    stmt   ::= v = const c
             | v = index E                                  an integer expression as a value
             | v = load buf[E, ..] if Cond* else c          outside its mask: c, and memory is not touched
             | v = op(v, ..)                                a basic operation (flame.ops.machine.BASIC), cast, bitcast, or an
                                                            elementwise primitive that has a Scalar
             | v = reduce.op(v, ..) over axes               sum prod max min any all argmax argmin
             | v = contract(v, v) over axes
             | store buf[E, ..] = v if Cond*
    E      ::= polynomial with integer coefficients over atoms;  atom ::= axis | symbol | E // E | E % E | val(v)
    Cond   ::= E >= 0 | E == 0

Meaning. An axis is neither parallel nor sequential: a value's DOMAIN is the set of axes that it depends on; reduce and
contract remove axes; a later statement may name the same axis again, which is a new sweep over it (softmax sweeps its row
three times). STAGE is how many reductions stand upstream. A store's address must vary with every axis of its value's domain.
Arithmetic is in the statement's dtype. float16 and bfloat16 are storage: nothing but load, cast, store and a contraction's
operands has those dtypes. reduce accumulates in its own dtype (float32 for narrow floats, by the casts around it); contract's
products are unrounded and accumulate in its dtype. Integer arithmetic wraps. max and min carry NaN. argmax and argmin are
int64, the first of equals, NaN being the extreme, counted row-major over their axes in the order given. Buffers are
contiguous, row-major, and do not overlap, except that an "inout" buffer is read and written at equal addresses only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flame.compiler.index_math import E
from flame.dtypes import dtype
from flame.ops.access import Cond


@dataclass(frozen=True, slots=True)
class Buffer:
    name: str
    dtype: dtype
    shape: tuple[E, ...]
    role: str = "in"  #: in | out | inout


@dataclass(frozen=True, slots=True)
class Const:
    name: str
    value: bool | int | float
    dtype: dtype


@dataclass(frozen=True, slots=True)
class IndexOf:
    name: str
    expr: E
    dtype: dtype


@dataclass(frozen=True, slots=True)
class Load:
    name: str
    buffer: str
    index: tuple[E, ...]
    mask: tuple[Cond, ...]
    other: bool | int | float
    dtype: dtype
    note: str = ""


@dataclass(frozen=True, slots=True)
class Op:
    name: str
    op: str
    operands: tuple[str, ...]
    dtype: dtype
    note: str = ""  #: what the user called, and where: a comment in generated code


@dataclass(frozen=True, slots=True)
class Reduce:
    name: str
    op: str
    operands: tuple[str, ...]
    axes: tuple[str, ...]
    dtype: dtype
    note: str = ""


@dataclass(frozen=True, slots=True)
class Contract:
    name: str
    operands: tuple[str, str]
    axes: tuple[str, ...]
    dtype: dtype
    note: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    buffer: str
    index: tuple[E, ...]
    value: str
    mask: tuple[Cond, ...] = ()


Statement = Const | IndexOf | Load | Op | Reduce | Contract | Store


class Kernel:
    """`buffers` by name in parameter order; `axes` and `symbols` by name (a symbol's value is its lower bound)."""

    def __init__(
        self,
        name: str,
        buffers: dict[str, Buffer],
        axes: dict[str, E],
        symbols: dict[str, int],
        statements: tuple[Statement, ...],
    ):
        self.name = name
        self.buffers = buffers
        self.axes = axes
        self.symbols = symbols
        self.statements = statements
        self.definitions: dict[str, Any] = {s.name: s for s in statements if not isinstance(s, Store)}
        self.domains: dict[str, frozenset[str]] = {}
