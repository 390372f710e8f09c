"""Writing a kernel a statement at a time: its axes, index arithmetic over them, and values that are made only once.

`Writer` knows the kernel IR and nothing of graphs; `flame.compiler.lower` pulls values through it. Equal statements are one
statement. Narrow floats are widened where they are loaded or cast, and narrowed where they leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from flame import dtypes
from flame.compiler.dims import Dim, Symbols
from flame.compiler.index_math import (
    ONE,
    ZERO,
    Bounds,
    E,
    divisions,
    ex,
    extreme,
    implied,
    names,
    nonneg,
    simplify,
    val,
    var,
)
from flame.compiler.kernel import Buffer, Const, IndexOf, Load, Op, Statement
from flame.dtypes import dtype
from flame.ops.access import Cond, Index
from flame.primitive import Number

Guard = tuple[Cond, ...]
NO_GUARD: Guard = ()


def compute_dtype(d: dtype) -> dtype:
    """The dtype that kernels compute a value of dtype `d` in."""
    return d.accumulator


def single_axis(e: E) -> str | None:
    """The name that `e` consists of, if that is all of it."""
    t = e.terms
    if len(t) == 1 and t[0][1] == 1 and len(t[0][0]) == 1 and isinstance(t[0][0][0], str):
        return t[0][0][0]
    return None


def flatten(index: Sequence[E], shape: Sequence[int]) -> E:
    """The row-major address of an element, in elements."""
    out, stride = ZERO, 1
    for e, d in zip(reversed(index), reversed(shape), strict=True):
        out = out + e * stride
        stride *= d
    return out


class Writer:
    """A kernel in the making: what was written so far, with the domain and dtype of every value."""

    def __init__(self, symbols: Symbols | None = None) -> None:
        self.bounds = Bounds(symbols=symbols)
        self.axes: dict[str, Any] = {}  #: extents are ints, or sizes that are expressions
        self.statements: list[Statement] = []
        self.domains: dict[str, frozenset[str]] = {}
        self.dtypes: dict[str, dtype] = {}
        self.buffers: dict[str, Buffer] = {}
        self._known: dict[tuple, str] = {}
        self._widened: dict[str, str] = {}  #: float32 value -> the narrow one that it was cast from

    # ---- axes, and what covers them

    def axis(self, extent: Any, prefix: str) -> str:
        name = f"{prefix}{len(self.axes)}"
        self.axes[name] = extent
        self.bounds.axes[name] = ex(extent)
        return name

    def spread(self, shape: tuple[int, ...], axes: Sequence[str]) -> Index | None:
        """The index at which an array of this shape is walked by `axes` in order, if no dimension has to be divided."""
        extents = [self.axes[a] for a in axes]
        if [d for d in shape if d != 1] == extents:
            rest = iter(axes)
            return tuple(ZERO if d == 1 else var(next(rest)) for d in shape)
        if math.prod(shape) != math.prod(extents) or 0 in shape:
            return None
        index = self.unflatten(flatten([var(a) for a in axes], extents), shape)
        return None if any(True for e in index for _ in divisions(e)) else index

    def unflatten(self, flat: E, shape: Sequence[int]) -> Index:
        """The index of the element at a row-major address."""
        index: list[E] = []
        for d in reversed(shape):
            index.append(ZERO if d == 1 else simplify(flat % d, self.bounds))
            flat = simplify(flat // d, self.bounds)
        return tuple(reversed(index))

    def cover(self, index: Index, shape: tuple[int, ...]) -> frozenset[str] | None:
        """The axes whose points `index` maps one-to-one onto the elements of `shape`; None if it does no such thing."""
        found: set[str] = set()
        for e, d in zip(index, shape, strict=True):  # the common case: each dimension an axis of its own
            if d == 1:
                if e != ZERO:  # (where a padded sum is read, say: i0 - 5, which is 0 at one point alone)
                    break
                continue
            a = single_axis(e)
            if a is None or a in found or self.axes[a] != d:
                break
            found.add(a)
        else:
            return frozenset(found)
        if not self.inside(shape, index, NO_GUARD):
            return None
        flat = simplify(flatten(index, shape), self.bounds)
        strides: dict[str, E] = {}
        for monomial, c in flat.terms:
            moving = [x for x in monomial if x in self.axes]
            if len(moving) != 1 or not isinstance(moving[0], str) or not all(isinstance(x, str) for x in monomial):
                return None
            a = moving[0]
            strides[a] = strides.get(a, ZERO) + E({tuple(x for x in monomial if x != a): c})
        step, left = ONE, dict(strides)
        while left:  # a mixed-radix number: each stride is the product of the extents below it
            lowest = next((x for x, stride in left.items() if stride == step), None)
            if lowest is None:
                return None
            step = step * ex(self.axes[lowest])
            del left[lowest]
        return frozenset(strides) if step == ex(math.prod(shape)) else None

    def inside(self, shape: Sequence[int], index: Index, given: Guard, trusting: bool = True) -> bool:
        """Is the index proved to lie in the shape? `trusting`: values of index arrays are, as they were checked when made (against
        the array that was looked up, of which this one may be a part)."""
        for e, d in zip(index, shape, strict=True):
            if trusting and any(n[0] == "%" for n in names(e)):
                continue
            for proof in (e, d - 1 - e):
                if not (implied(proof, given, self.bounds) if given else nonneg(proof, self.bounds)):
                    return False
        return True

    # ---- statements

    def emit(self, make: Callable[..., Any], *cells: Any, domain: frozenset[str], note: str = "") -> str:
        """The value make(name, *cells), written unless an equal one stands already. The last cell is its dtype."""
        key = (make, *(repr(c) if isinstance(c, float) else c for c in cells))  # 0.0 and -0.0 differ
        name = self._known.get(key)
        if name is None:
            name = self._known[key] = f"v{len(self.domains)}"
            self.statements.append(make(name, *cells, note) if note else make(name, *cells))
            self.domains[name] = domain
            self.dtypes[name] = cells[-1]
        return name

    def const(self, x: Number, d: dtype) -> str:
        """A number as a value of dtype `d`; integers wrap as the dtype does."""
        d = compute_dtype(d)
        if d.kind in "ui":
            width = 8 * d.itemsize
            x = int(x) & ((1 << width) - 1)
            x = x - (1 << width) if d.kind == "i" and x >> (width - 1) else x
        else:
            x = bool(x) if d.kind == "b" else float(x)
        return self.emit(Const, x, d, domain=frozenset())

    def number(self, x: Any, d: dtype) -> str:
        """A number, or a size that is an expression, as a value of dtype `d`."""
        return self.index_value(x.expression, d) if type(x) is Dim else self.const(x, d)

    def op(self, op: str, values: Sequence[str], d: dtype, note: str = "") -> str:
        domains = [self.domains[v] for v in values]
        domain = domains[0] if len(domains) == 1 else frozenset().union(*domains)
        return self.emit(Op, op, tuple(values), d, domain=domain, note=note)

    def cast(self, v: str, d: dtype, note: str = "") -> str:
        """`v` as a value that is computed with: rounded to `d`, and widened again if `d` is narrow."""
        if d.is_narrow_float:
            return self.widen(self.narrow(v, d))
        return v if self.dtypes[v] is d else self.op("cast", (v,), d, note)

    def narrow(self, v: str, d: dtype) -> str:
        """`v` in the dtype `d` that it is stored in."""
        if self.dtypes[v] is d:
            return v
        before = self._widened.get(v)
        return before if before is not None and self.dtypes[before] is d else self.op("cast", (v,), d)

    def widen(self, v: str) -> str:
        """A loaded or rounded value as one to compute with."""
        if not self.dtypes[v].is_narrow_float:
            return v
        wide = self.op("cast", (v,), dtypes.float32)
        self._widened[wide] = v
        return wide

    def load(self, buffer: str, index: Index, mask: Guard, outside: Number) -> str:
        d = self.buffers[buffer].dtype
        other = float(outside) if d.kind == "f" else bool(outside) if d.kind == "b" else int(outside)
        return self.widen(self.emit(Load, buffer, index, mask, other, d, domain=self.index_domain(index, mask)))

    # ---- integers

    def index_value(self, e: E, d: dtype) -> str:
        """An integer expression as a value of dtype `d`."""
        e = simplify(e, self.bounds)
        domain = self.index_domain((e,))
        if d in (dtypes.int32, dtypes.int64):
            return self.emit(IndexOf, e, d, domain=domain)
        return self.cast(self.emit(IndexOf, e, self._index_dtype(e), domain=domain), d)

    def checked_index(self, v: str, extent: Any) -> E:
        """The integer value `v` in [-extent, extent), counted from 0.

        A value outside reads the nearest element: a kernel can't raise, and must not leave its buffers. Whoever wants an
        error checks before.
        """
        d, last = self.dtypes[v], max(extent - 1, 0)
        if d.kind == "i":
            below = self.op("lt", (v, self.const(0, d)), dtypes.bool_)
            v = self.op("where", (below, self.op("add", (v, self.number(extent, d)), d), v), d)
            v = self.op("maximum", (v, self.const(0, d)), d)
        if type(last) is Dim or last < 2 ** (8 * d.itemsize - (d.kind == "i")) - 1:
            v = self.op("minimum", (v, self.number(last, d)), d)
        self.bounds.values[v] = (ZERO, ex(last))
        return val(v)

    def condition(self, conds: Guard) -> str:
        """The conjunction of conditions as a bool."""
        out = ""
        for c in conds:
            d = self._index_dtype(c.expr)
            i = self.emit(IndexOf, c.expr, d, domain=self.index_domain((c.expr,)))
            b = self.op(c.kind, (i, self.const(0, d)), dtypes.bool_)
            out = self.op("logical_and", (out, b), dtypes.bool_) if out else b
        return out

    def _index_dtype(self, e: E) -> dtype:
        """int32 where every value of `e` is proved to fit, and int64 elsewhere."""
        for sign in (-1, 1):
            end = extreme(e, sign, self.bounds)
            if end is None or end.const is None or abs(end.const) >= 2**31:
                return dtypes.int64
        return dtypes.int32

    def index_domain(self, index: Sequence[E], mask: Guard = NO_GUARD) -> frozenset[str]:
        """The axes that an access varies with, through the values inside it too."""
        found: set[str] = set()
        for e in (*index, *(c.expr for c in mask)):
            for n in names(e):
                found |= self.domains[n[1:]] if n[0] == "%" else {n} & self.axes.keys()
        return frozenset(found)
