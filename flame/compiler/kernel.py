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
three times). A reduced axis that an operand does not vary with counts its value once a point. STAGE is how many reductions
stand upstream. A store's address must vary with every axis of its value's domain.
Arithmetic is in the statement's dtype. float16 and bfloat16 are storage: nothing but load, cast, store and a contraction's
operands has those dtypes. reduce accumulates in its own dtype (float32 for narrow floats, by the casts around it); contract's
products are unrounded and accumulate in its dtype. Integer arithmetic wraps. max and min carry NaN. argmax and argmin are
int64, the first of equals, NaN being the extreme, counted row-major over their axes in the order given. Buffers are
contiguous, row-major, and do not overlap, except that an "inout" buffer is read and written at equal addresses only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from flame.compiler.dims import Symbols
from flame.compiler.index_math import ONE, ZERO, Bounds, E, evaluate, ex, extreme, implied, names, subst, val, var
from flame.dtypes import bool_, dtype, int64, uint8, uint32
from flame.errors import VerificationError
from flame.ops.access import Cond
from flame.ops.machine import BASIC, COMPARISONS
from flame.primitive import REGISTRY, Spec


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
Definition = Const | IndexOf | Load | Op | Reduce | Contract

REDUCTIONS = frozenset({"sum", "prod", "max", "min", "any", "all", "argmax", "argmin"})


class Kernel:
    """`buffers` by name in parameter order; `axes` and `symbols` by name (a symbol's value is its lower bound).

    `values` promises the range of integer values used in indices, where it is known from elsewhere (an index that was
    checked before the kernel runs): name -> (lowest, highest). A kernel is not changed after it is made.
    """

    def __init__(
        self,
        name: str,
        buffers: dict[str, Buffer],
        axes: dict[str, E],
        symbols: dict[str, int],
        statements: Iterable[Statement],
        values: Mapping[str, tuple[E, E]] | None = None,
    ):
        self.name = name
        self.buffers = buffers
        self.axes = {a: ex(e) for a, e in axes.items()}
        self.symbols = symbols
        self.statements: tuple[Statement, ...] = tuple(statements)
        self.values = dict(values or {})
        self.definitions: dict[str, Definition] = {s.name: s for s in self.statements if not isinstance(s, Store)}
        self.domains: dict[str, frozenset[str]] = {}
        for s in self.statements:
            if not isinstance(s, Store):
                self.domains[s.name] = domain(self, s)

    @cached_property
    def bounds(self) -> Bounds:
        """The ranges of axes, symbols and of the integer values whose range is known."""
        ranges: dict[str, tuple[E | int | None, E | int | None]] = {}
        known = Bounds(self.axes, self.symbols, self.values)
        for s in self.definitions.values():
            if isinstance(s, IndexOf):
                ranges[s.name] = (extreme(s.expr, -1, known), extreme(s.expr, 1, known))
            elif s.dtype is bool_ or s.dtype is uint8:
                ranges[s.name] = (0, 1 if s.dtype is bool_ else 255)
        return Bounds(self.axes, self.symbols, ranges | self.values) if ranges else known

    @property
    def sizes_known(self) -> bool:
        """Whether every extent is a number. (Symbols may still be places in memory.)"""
        return all(e.const is not None for e in self.axes.values())

    @cached_property
    def reduce_axes(self) -> tuple[str, ...]:
        """The axes that some statement reduces, in the order of `axes`."""
        reduced = {a for s in self.statements if isinstance(s, Reduce | Contract) for a in s.axes}
        return tuple(a for a in self.axes if a in reduced)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The buffers that are stored to, in the order of their first store."""
        return tuple(dict.fromkeys(s.buffer for s in self.statements if isinstance(s, Store)))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The buffers that are loaded from, in the order of their first load."""
        return tuple(dict.fromkeys(s.buffer for s in self.statements if isinstance(s, Load)))

    @cached_property
    def stores(self) -> tuple[Store, ...]:
        return tuple(s for s in self.statements if isinstance(s, Store))

    @cached_property
    def contraction(self) -> Contract | None:
        """Its first contraction, if it has one."""
        return next((s for s in self.statements if isinstance(s, Contract)), None)

    def __str__(self) -> str:
        return text(self)

    def __repr__(self) -> str:
        return f"<kernel {self.name}: {len(self.statements)} statements over {', '.join(self.axes) or 'no axes'}>"


def identity(op: str, d: dtype) -> bool | int | float:
    """What a reduction of no elements gives: the neutral element of its monoid (arg reductions: index 0)."""
    match op:
        case "sum" | "prod" | "any" | "all":
            neutral = int(op in ("prod", "all"))
            return float(neutral) if d.kind == "f" else bool(neutral) if d.kind == "b" else neutral
        case "max" | "min":
            if d.kind == "f":
                return -math.inf if op == "max" else math.inf
            if d.kind == "b":
                return op == "min"
            bits = 8 * d.itemsize
            low, high = (0, 2**bits - 1) if d.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            return low if op == "max" else high
        case "argmax" | "argmin":
            return 0
    raise ValueError(f"no reduction is named {op!r}")


# ---- reading a kernel


def expressions(s: Statement) -> tuple[E, ...]:
    """The integer expressions of a statement: index, then mask."""
    match s:
        case IndexOf():
            return (s.expr,)
        case Load() | Store():
            return (*s.index, *(c.expr for c in s.mask))
    return ()


def operands(s: Statement) -> tuple[str, ...]:
    """The values that a statement computes with (those inside its index expressions not among them)."""
    match s:
        case Op() | Reduce() | Contract():
            return s.operands
        case Store():
            return (s.value,)
    return ()


def reads(s: Statement) -> tuple[str, ...]:
    """Every value that a statement needs: operands, then those inside its index expressions."""
    inside = (n[1:] for e in expressions(s) for n in sorted(names(e)) if n[0] == "%")
    return tuple(dict.fromkeys((*operands(s), *inside)))


def names_in(kernel: Kernel) -> frozenset[str]:
    """Every name in its extents, buffers' shapes, index expressions and promised ranges."""
    found = [*kernel.axes.values(), *(d for b in kernel.buffers.values() for d in b.shape)]
    found += [e for s in kernel.statements for e in expressions(s)] + [e for pair in kernel.values.values() for e in pair]
    return frozenset().union(*map(names, found))


def domain_of(kernel: Kernel, exprs: Iterable[E]) -> frozenset[str]:
    """The axes that index expressions vary with, through the values inside them too."""
    out: set[str] = set()
    for e in exprs:
        for n in names(e):
            if n[0] == "%":
                out |= kernel.domains.get(n[1:], frozenset())
            elif n in kernel.axes:
                out.add(n)
    return frozenset(out)


def domain(kernel: Kernel, s: Statement) -> frozenset[str]:
    """The axes that a statement's result varies with; for a store, those that it is run over."""
    out = domain_of(kernel, expressions(s)).union(*(kernel.domains.get(v, frozenset()) for v in operands(s)))
    return out.difference(s.axes) if isinstance(s, Reduce | Contract) else out


def stage(kernel: Kernel) -> dict[str, int]:
    """How many reductions stand upstream of each value, itself included."""
    out: dict[str, int] = {}
    for s in kernel.definitions.values():
        out[s.name] = max((out[v] for v in reads(s)), default=0) + isinstance(s, Reduce | Contract)
    return out


def users(kernel: Kernel) -> dict[str, list[Statement]]:
    """The statements that read each value, in order."""
    out: dict[str, list[Statement]] = {v: [] for v in kernel.definitions}
    for s in kernel.statements:
        for v in reads(s):
            out[v].append(s)
    return out


def bounds(kernel: Kernel) -> Bounds:
    return kernel.bounds


def numel(buffer: Buffer) -> E:
    out = ONE
    for d in buffer.shape:
        out = out * d
    return out


def strides(buffer: Buffer) -> tuple[E, ...]:
    """In elements, row-major."""
    out = [ONE]
    for d in reversed(buffer.shape[1:]):
        out.append(out[-1] * d)
    return tuple(reversed(out[: len(buffer.shape)]))


def flat(kernel: Kernel, s: Load | Store) -> E:
    """The address of a load or store, in elements from the start of its buffer."""
    out = ZERO
    for e, stride in zip(s.index, strides(kernel.buffers[s.buffer]), strict=True):
        out = out + e * stride
    return out


TYPICAL = 64  #: what a symbol counts in estimates


def typical(kernel: Kernel) -> dict[str, int]:
    """Values of the symbols for estimates, which decide how fast something is and not what it gives."""
    return {n: max(low, TYPICAL) for n, low in kernel.symbols.items()}


def bytes_moved(kernel: Kernel, symbols: Mapping[str, int] | None = None) -> int:
    """An estimate of the memory traffic in bytes if caches were perfect: each distinct element moved once, an element that
    is read and written twice. Symbols without a value count as `TYPICAL`."""
    env = {**typical(kernel), **(symbols or {})}
    seen: dict[tuple[str, bool], dict[tuple[E, ...], int]] = {}
    for s in kernel.statements:
        if isinstance(s, Load | Store):
            points = ONE
            for a in domain_of(kernel, s.index):
                points = points * kernel.axes[a]
            seen.setdefault((s.buffer, isinstance(s, Store)), {})[s.index] = evaluate(points, env)
    total = 0
    for (b, _), reached in seen.items():
        buffer = kernel.buffers[b]
        total += min(evaluate(numel(buffer), env), sum(reached.values())) * buffer.dtype.itemsize
    return total


# ---- printing


def _conds(mask: Iterable[Cond]) -> str:
    return " and ".join(f"{c.expr} {'>=' if c.kind == 'ge' else '=='} 0" for c in mask)


def _statement(s: Statement) -> str:
    match s:
        case Const():
            return f"{s.name} = const {s.value!r}"
        case IndexOf():
            return f"{s.name} = index {s.expr}"
        case Load():
            guard = f" if {_conds(s.mask)} else {s.other!r}" if s.mask else ""
            return f"{s.name} = load {s.buffer}[{', '.join(map(str, s.index))}]{guard}"
        case Op():
            return f"{s.name} = {s.op}({', '.join(s.operands)})"
        case Reduce():
            return f"{s.name} = reduce.{s.op}({', '.join(s.operands)}) over {', '.join(s.axes)}"
        case Contract():
            return f"{s.name} = contract({', '.join(s.operands)}) over {', '.join(s.axes)}"
        case Store():
            guard = f" if {_conds(s.mask)}" if s.mask else ""
            return f"store {s.buffer}[{', '.join(map(str, s.index))}] = {s.value}{guard}"


def text(kernel: Kernel, notes: bool = True) -> str:
    """The kernel as the grammar has it; to the right, each value's dtype<domain> and what the user called."""
    buffers = (f"{b.role} {b.name}: {b.dtype.name}[{', '.join(map(str, b.shape))}]" for b in kernel.buffers.values())
    symbols = [f"{n} >= {low}" for n, low in kernel.symbols.items()]
    symbols += [f"{e} >= 0" for e in getattr(kernel.symbols, "facts", ())]
    lines = [f"kernel {kernel.name}({', '.join((*buffers, *symbols))})"]
    lines.append("  " + ", ".join(f"{a} < {e}" for a, e in kernel.axes.items()) if kernel.axes else "  no axes")
    rows = []
    for s in kernel.statements:
        kind, note = "", ""
        if not isinstance(s, Store):
            kind = f"{s.dtype.name}<{', '.join(a for a in kernel.axes if a in kernel.domains[s.name])}>"
            if s.name in kernel.values:
                kind += " in [{}, {}]".format(*kernel.values[s.name])
            note = getattr(s, "note", "") if notes else ""
        rows.append((_statement(s), kind, note))
    left = min(max((len(r[0]) for r in rows), default=0), 72)
    middle = max((len(r[1]) for r in rows), default=0)
    for row, kind, note in rows:
        lines.append(f"    {row:{left}}  {kind:{middle}}  {'# ' + note if note else ''}".rstrip())
    return "\n".join(lines)


# ---- names


def rename(kernel: Kernel, mapping: Mapping[str, str], name: str | None = None) -> Kernel:
    """The kernel under other names. `mapping` has "%v" for a value v, and the plain names of buffers, axes and symbols,
    which must not clash with each other."""
    env = {
        k: val(n[1:]) if k[0] == "%" else var(n)
        for k, n in mapping.items()
        if k[0] == "%" or k in kernel.axes or k in kernel.symbols
    }

    def plain(n: str) -> str:
        return mapping.get(n, n)

    def value(v: str) -> str:
        return mapping.get("%" + v, "%" + v)[1:]

    def e(x: E) -> E:
        return subst(x, env)

    def conds(mask: tuple[Cond, ...]) -> tuple[Cond, ...]:
        return tuple(Cond(e(c.expr), c.kind) for c in mask)

    def statement(s: Statement) -> Statement:
        match s:
            case Const():
                return replace(s, name=value(s.name))
            case IndexOf():
                return replace(s, name=value(s.name), expr=e(s.expr))
            case Load():
                index = tuple(map(e, s.index))
                return replace(s, name=value(s.name), buffer=plain(s.buffer), index=index, mask=conds(s.mask))
            case Op():
                return replace(s, name=value(s.name), operands=tuple(map(value, s.operands)))
            case Reduce():
                axes = tuple(map(plain, s.axes))
                return replace(s, name=value(s.name), operands=tuple(map(value, s.operands)), axes=axes)
            case Contract():
                a, b = map(value, s.operands)
                return replace(s, name=value(s.name), operands=(a, b), axes=tuple(map(plain, s.axes)))
            case Store():
                index = tuple(map(e, s.index))
                return Store(plain(s.buffer), index, value(s.value), conds(s.mask))

    return Kernel(
        name or kernel.name,
        {plain(b.name): replace(b, name=plain(b.name), shape=tuple(map(e, b.shape))) for b in kernel.buffers.values()},
        {plain(a): e(x) for a, x in kernel.axes.items()},
        Symbols({plain(n): low for n, low in kernel.symbols.items()}, map(e, getattr(kernel.symbols, "facts", ()))),
        map(statement, kernel.statements),
        {value(v): (e(lo), e(hi)) for v, (lo, hi) in kernel.values.items()},
    )


def canonical(kernel: Kernel) -> tuple[Kernel, dict[str, str]]:
    """The kernel named b0.. (buffers, in parameter order), i0.. (axes), n0.. (symbols), v0.. (values); and old -> new, with
    "%v" for values. Kernels that differ in names alone become the same; notes stay, and do not count in `digest`."""
    mapping = {b: f"b{i}" for i, b in enumerate(kernel.buffers)}
    mapping |= {a: f"i{i}" for i, a in enumerate(kernel.axes)}
    mapping |= {n: f"n{i}" for i, n in enumerate(kernel.symbols)}
    mapping |= {"%" + v: f"%v{i}" for i, v in enumerate(kernel.definitions)}
    return rename(kernel, mapping, "kernel"), mapping


def digest(kernel: Kernel) -> str:
    """A hash of what the kernel computes: equal for kernels that differ in names and notes alone."""
    return hashlib.sha256(text(canonical(kernel)[0], notes=False).encode()).hexdigest()


# ---- verification


def verify(kernel: Kernel, after: str = "") -> None:
    """Raise VerificationError unless the kernel obeys the grammar and the rules above; `after` names the pass to blame.

    Every index is proved in bounds wherever its mask holds, except one that contains val(): whoever made it vouches for it.
    """
    try:
        _verify(kernel)
    except VerificationError as error:
        raise VerificationError(f"{error}{after and ' (after ' + after + ')'}\n{kernel}") from None


def _require(condition: object, message: str) -> None:
    if not condition:
        raise VerificationError(message)


def _verify(kernel: Kernel) -> None:
    spaces = [*kernel.buffers, *kernel.axes, *kernel.symbols]
    _require(len(set(spaces)) == len(spaces), f"{kernel.name}: two of its buffers, axes and symbols share a name")
    for a, extent in kernel.axes.items():
        _require(names(extent) <= kernel.symbols.keys(), f"axis {a} < {extent}: an extent is made of symbols alone")
        _require(implied(extent, (), kernel.bounds), f"axis {a} < {extent}: not known to be 0 or more")
    for b in kernel.buffers.values():
        _require(b.role in ("in", "out", "inout"), f"buffer {b.name}: role {b.role!r}")
        for d in b.shape:
            _require(isinstance(d, E) and names(d) <= kernel.symbols.keys(), f"buffer {b.name}: extent {d}")
    seen: set[str] = set()
    for s in kernel.statements:
        line = _statement(s)
        for v in operands(s):
            _require(v in seen, f"{line}: {v} is used before it is made")
        for e in expressions(s):
            _require(isinstance(e, E), f"{line}: {e!r} is not an index expression")
            for n in names(e):
                if n[0] == "%":
                    _require(n[1:] in seen, f"{line}: {n} is used before it is made")
                    _require(kernel.definitions[n[1:]].dtype.kind in "iub", f"{line}: {n} is not an integer")
                else:
                    _require(n in kernel.axes or n in kernel.symbols, f"{line}: no axis or symbol is named {n}")
        if isinstance(s, Load | Store):
            _verify_access(kernel, s, line)
        if isinstance(s, Store):
            continue
        _require(s.name not in seen, f"{line}: {s.name} is made twice")
        _verify_dtypes(kernel, s, line)
        seen.add(s.name)
    for b in kernel.buffers.values():
        _require(b.role == "in" or b.name in kernel.outputs, f"buffer {b.name} is an output, and nothing is stored to it")


def _verify_access(kernel: Kernel, s: Load | Store, line: str) -> None:
    buffer = kernel.buffers.get(s.buffer)
    if buffer is None:
        raise VerificationError(f"{line}: there is no buffer {s.buffer}")
    _require(len(s.index) == len(buffer.shape), f"{line}: {len(s.index)} indices for {len(buffer.shape)} dimensions")
    for e, d in zip(s.index, buffer.shape, strict=True):
        if any(n[0] == "%" for n in names(e)):
            continue
        for fact in (e, d - 1 - e):
            _require(implied(fact, s.mask, kernel.bounds), f"{line}: {fact} >= 0 is not proved, so {e} may leave [0, {d})")
    if isinstance(s, Load):
        _require(buffer.role != "out", f"{line}: {buffer.name} is only written")
        if buffer.role == "inout":
            same = all(t.index == s.index for t in kernel.stores if t.buffer == s.buffer)
            _require(same, f"{line}: {buffer.name} is read and written at different addresses")
        return
    _require(buffer.role != "in", f"{line}: {buffer.name} is only read")
    kind = kernel.definitions[s.value].dtype
    _require(kind is buffer.dtype, f"{line}: a {kind.name} is stored to a buffer of {buffer.dtype.name}")
    varies = domain(kernel, s) - domain_of(kernel, s.index)
    _require(not varies, f"{line}: what is stored varies with {', '.join(sorted(varies))}, its address does not")


def _verify_dtypes(kernel: Kernel, s: Definition, line: str) -> None:
    kinds = [kernel.definitions[v].dtype for v in operands(s)]
    out = s.dtype
    shown = f"{line}: {', '.join(k.name for k in kinds)} -> {out.name}"
    match s:
        case Load():
            _require(out is kernel.buffers[s.buffer].dtype, f"{shown} from a buffer of another dtype")
            return
        case Contract():
            a, b = kinds
            _require(a is b, f"{shown}: the factors differ in dtype")
            fits = a.kind == out.kind and out.itemsize >= a.itemsize and a is not bool_
            _require(fits, f"{shown}: not an accumulator of these factors")
        case Reduce():
            _require(s.op in REDUCTIONS and len(kinds) == 1, f"{shown}: no such reduction")
            if s.op in ("any", "all"):
                _require(kinds[0] is out is bool_, f"{shown}: any and all are of bool")
            elif s.op in ("argmax", "argmin"):
                _require(out is int64, f"{shown}: arg reductions are int64")
            else:
                _require(kinds[0] is out and out is not bool_, f"{shown}: a reduction keeps its operand's dtype, not bool")
        case Op():
            _verify_op(s, kinds, shown)
            if s.op in ("cast", "bitcast"):
                return
            kinds = [k for k in kinds if k is not bool_]
    if isinstance(s, Reduce | Contract):
        _require(set(s.axes) <= kernel.axes.keys(), f"{line}: no such axis")
        _require(len(set(s.axes)) == len(s.axes), f"{line}: an axis is named twice")
        _require(s.axes or isinstance(s, Contract), f"{line}: reduces nothing")
    computed = [out] if isinstance(s, Contract) else [out, *kinds]
    _require(not any(k.is_narrow_float for k in computed), f"{shown}: float16 and bfloat16 are storage, cast them first")


def _verify_op(s: Op, kinds: list[dtype], shown: str) -> None:
    out = s.dtype
    if s.op in ("cast", "bitcast"):
        _require(len(kinds) == 1, f"{shown}: takes one operand")
        _require(s.op == "cast" or kinds[0].itemsize == out.itemsize, f"{shown}: the widths differ")
    elif s.op in BASIC:
        _require(len(kinds) == BASIC[s.op], f"{shown}: takes {BASIC[s.op]} operands")
        if s.op in COMPARISONS:
            _require(kinds[0] is kinds[1] and out is bool_, f"{shown}: compares equal dtypes, and gives bool")
        elif s.op == "where":
            _require(kinds[0] is bool_ and kinds[1] is kinds[2] is out, f"{shown}: where(bool, x, x) -> x")
        elif s.op.startswith("logical"):
            _require({*kinds, out} == {bool_}, f"{shown}: is of bool")
        elif s.op.startswith("shift"):
            _require(kinds[0] is out and all(k.kind in "iu" for k in kinds), f"{shown}: shifts integers")
        else:
            _require({*kinds} == {out}, f"{shown}: the operands' dtype is the result's")
            _require(s.op != "mul_high" or out is uint32, f"{shown}: is of uint32")
    else:
        p = REGISTRY.get(s.op)
        if p is None or p.scalar is None:
            raise VerificationError(f"{shown}: neither a basic operation nor an elementwise primitive")
        try:
            spec = p.infer(*(Spec((), k) for k in kinds))
        except (TypeError, ValueError, RuntimeError) as error:
            raise VerificationError(f"{shown}: {error}") from error
        _require(spec.dtype is out, f"{shown}: the primitive gives {spec.dtype.name}")
