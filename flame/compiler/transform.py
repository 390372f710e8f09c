"""Kernel to kernel, keeping the meaning: `merge_axes` and `split_reduction`.

`merge_axes` walks neighbouring axes as one wherever every address allows it, on flat addresses: a renderer then sees one
long axis instead of several short ones. `split_reduction` cuts a reduction with too few rows to fill a machine into parts,
reduced by a first kernel, and joined by a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from flame.compiler.index_math import Bounds, E, divisions, ex, names, simplify, simplify_conds, subst, val, var
from flame.compiler.kernel import (
    Buffer,
    Const,
    Contract,
    Definition,
    IndexOf,
    Kernel,
    Load,
    Op,
    Reduce,
    Statement,
    Store,
    domain,
    expressions,
    flat,
    identity,
    numel,
    reads,
    stage,
)
from flame.dtypes import bool_, dtype, int32, int64
from flame.ops.access import Cond


def fresh(name: str, taken: Iterable[str]) -> str:
    """`name`, or it with a number after it, so that it is not in `taken`."""
    taken, out, count = set(taken), name, 2
    while out in taken:
        out, count = f"{name}_{count}", count + 1
    return out


def map_expressions(s: Statement, f: Callable[[E], E]) -> Statement:
    """The statement with `f` applied to its index expressions and conditions."""
    match s:
        case IndexOf():
            return replace(s, expr=f(s.expr))
        case Load() | Store():
            return replace(s, index=tuple(map(f, s.index)), mask=tuple(Cond(f(c.expr), c.kind) for c in s.mask))
    return s


# ---- merging axes


def merge_axes(kernel: Kernel) -> Kernel:
    """The kernel with as few axes as its addresses allow, and flat buffers where axes were merged.

    An axis of extent 1 goes away. Axes a and b become one, c = a*B + b with B the extent of b, where every value and every
    reduction has both or neither, and no address, condition or index value needs c // B or c % B. A buffer that is not
    indexed by a merged axis keeps its dimensions. An arg reduction counts row-major: it merges its axes in that order only.
    """
    kernel = _without_single_points(kernel)
    merged: set[str] = set()
    flattened = _flatten(kernel, kernel.buffers)
    pair = True
    while pair:
        pair = False
        for a, b in _candidates(flattened):
            joined = _merge(flattened, a, b)
            if joined is not None:
                flattened, pair = joined, True
                merged |= {a, b}
                break
    if not merged:
        return _with_simple_masks(kernel)
    touched = {s.buffer for s in kernel.statements if isinstance(s, Load | Store) and any(names(e) & merged for e in s.index)}
    plain = {id(new): old for old, new in zip(kernel.statements, flattened.statements, strict=True)}
    statements = [
        replace(s, index=plain[id(s)].index) if isinstance(s, Load | Store) and s.buffer not in touched else s  # type: ignore[union-attr]
        for s in flattened.statements
    ]
    buffers = {n: flattened.buffers[n] if n in touched else b for n, b in kernel.buffers.items()}
    return _with_simple_masks(Kernel(kernel.name, buffers, flattened.axes, kernel.symbols, statements, kernel.values))


def _with_simple_masks(kernel: Kernel) -> Kernel:
    """Conditions that are proved or follow from others taken off; `-1 >= 0` alone where they cannot hold."""
    statements = []
    for s in kernel.statements:
        if isinstance(s, Load | Store) and s.mask:
            mask = simplify_conds(s.mask, kernel.bounds)
            s = replace(s, mask=(Cond(ex(-1)),) if mask is None else mask)
        statements.append(s)
    return Kernel(kernel.name, kernel.buffers, kernel.axes, kernel.symbols, statements, kernel.values)


def _without_single_points(kernel: Kernel) -> Kernel:
    """Axes of extent 1 put at 0, except where a reduction would be left without axes."""
    ones = {a for a, n in kernel.axes.items() if n == 1}
    for s in kernel.statements:
        if isinstance(s, Reduce) and ones.issuperset(s.axes):
            ones.discard(s.axes[0])
    if not ones:
        return kernel
    zero = dict.fromkeys(ones, 0)
    statements = []
    for s in kernel.statements:
        s = map_expressions(s, lambda e: subst(e, zero))
        if isinstance(s, Reduce | Contract):
            s = replace(s, axes=tuple(a for a in s.axes if a not in ones))
        statements.append(s)
    axes = {a: n for a, n in kernel.axes.items() if a not in ones}
    return Kernel(kernel.name, kernel.buffers, axes, kernel.symbols, statements, kernel.values)


def flatten(kernel: Kernel) -> Kernel:
    """The kernel with all its buffers as vectors."""
    return _flatten(kernel, kernel.buffers)


def _flatten(kernel: Kernel, buffers: Mapping[str, Buffer]) -> Kernel:
    """The kernel with its buffers as vectors."""
    statements = [
        replace(s, index=(simplify(flat(kernel, s), kernel.bounds),)) if isinstance(s, Load | Store) else s
        for s in kernel.statements
    ]
    vectors = {n: replace(b, shape=(numel(b),)) for n, b in buffers.items()}
    return Kernel(kernel.name, vectors, kernel.axes, kernel.symbols, statements, kernel.values)


def _candidates(kernel: Kernel) -> Iterator[tuple[str, str]]:
    """Pairs of axes that the same values and the same reductions have."""
    alike: dict[tuple, list[str]] = {}
    for a in kernel.axes:
        has = tuple(v for v, d in kernel.domains.items() if a in d)
        reduced = tuple(s.name for s in kernel.statements if isinstance(s, Reduce | Contract) and a in s.axes)
        stored = tuple(i for i, s in enumerate(kernel.stores) if a in domain(kernel, s))
        alike.setdefault((has, reduced, stored), []).append(a)
    for group in alike.values():
        yield from ((a, b) for a in group for b in group if a != b)


def _merge(kernel: Kernel, a: str, b: str) -> Kernel | None:
    """The kernel with one axis for a (outer) and b (inner); None where an expression would need a division for it."""
    extent = kernel.axes[b]
    both = fresh(f"{a}{b}", (*kernel.axes, *kernel.symbols, *kernel.buffers))
    axes = {both if n == b else n: e * kernel.axes[a] if n == b else e for n, e in kernel.axes.items() if n != a}
    known = Bounds({**kernel.axes, **axes}, kernel.symbols, kernel.bounds.values)
    parts: dict[str, E | int] = {a: var(both) // extent, b: var(both) % extent}

    def joined(e: E) -> E:
        return simplify(subst(e, parts), known)

    statements = []
    for s in kernel.statements:
        for e in expressions(s):
            if not names(e).isdisjoint(parts) and _divisions_of(joined(e), {both}) > _divisions_of(e, parts):
                return None
        s = map_expressions(s, joined)
        if isinstance(s, Reduce | Contract) and a in s.axes:
            if isinstance(s, Reduce) and s.op.startswith("arg") and s.axes.index(a) + 1 != s.axes.index(b):
                return None
            s = replace(s, axes=tuple(both if n == b else n for n in s.axes if n != a))
        statements.append(s)
    return Kernel(kernel.name, kernel.buffers, axes, kernel.symbols, statements, kernel.values)


def _divisions_of(e: E, axes: Iterable[str]) -> int:
    """How many divisions and remainders `e` has of the axes."""
    return sum(not (names(d.numerator) | names(d.divisor)).isdisjoint(axes) for d in divisions(e))


# ---- splitting a reduction


def split_reduction(kernel: Kernel, parts: int) -> tuple[Kernel, Kernel] | None:
    """(the kernel that reduces each of `parts` parts, the kernel that joins them), run one after the other.

    The longest axis that all reductions share is cut. The parts go through buffers (named part, part_2, ..) that are
    outputs of the first kernel and inputs of the second; every other buffer keeps its name. None where that cannot be done:
    a reduction of a reduction, a store along the reduced axis, or fewer than two parts.
    """
    reductions = [s for s in kernel.statements if isinstance(s, Reduce | Contract)]
    depth = stage(kernel)
    if not reductions or any(depth[v] for s in reductions for v in reads(s)):
        return None
    shared = set(reductions[0].axes).intersection(*(s.axes for s in reductions))
    for s in reductions:
        if isinstance(s, Reduce) and s.op.startswith("arg"):  # parts of the outermost axis keep the order of equals
            shared &= {s.axes[0]}
    shared -= set().union(*(domain(kernel, s) for s in kernel.stores))
    if any(n[0] == "%" and depth[n[1:]] for s in kernel.statements for e in expressions(s) for n in names(e)):
        return None  # an index that is itself reduced
    sizes = {a: n for a, n in kernel.axes.items() if a in shared}
    if not sizes:
        return None
    axis = max(sizes, key=lambda a: sizes[a].const or 1 << 62)
    length = sizes[axis]
    if length.const is not None:
        parts = min(parts, length.const)
        if parts > 1:
            parts = -(-length.const // -(-length.const // parts))  # no part is empty
    if parts < 2:
        return None
    return _Split(kernel, axis, parts, reductions).kernels()


class _Split:
    """The two kernels in the making: `first` ends in stores of the parts, `second` begins with their loads."""

    def __init__(self, kernel: Kernel, axis: str, parts: int, reductions: list[Reduce | Contract]):
        taken = {*kernel.axes, *kernel.symbols, *kernel.buffers}
        self.kernel = kernel
        self.axis = axis
        self.reductions = reductions
        self.part = fresh(f"{axis}_part", taken)
        self.within = fresh(f"{axis}_in", taken)
        self.size = (kernel.axes[axis] + (parts - 1)) // parts
        self.parts = ex(parts)
        self.axes = {self.part: self.parts}
        self.axes |= {self.within if a == axis else a: self.size if a == axis else n for a, n in kernel.axes.items()}
        self.bounds = Bounds(self.axes, kernel.symbols, kernel.bounds.values)
        self.whole = var(self.part) * self.size + var(self.within)
        guard = simplify_conds((Cond(kernel.axes[axis] - 1 - self.whole),), self.bounds)
        assert guard is not None  # some part has a point inside
        self.guard = guard
        self.first: dict[str, Definition] = {}
        self.second: dict[str, Definition] = {}
        self.out: list[Store] = []
        self.buffers: dict[str, Buffer] = {}
        self.names = set(kernel.definitions)
        self.filled: set[str] = set()  #: loads whose value beyond the end is some reduction's neutral element
        self.inside: str | None = None  #: the value that says whether a point lies before the end

    def kernels(self) -> tuple[Kernel, Kernel]:
        for s in self.reductions:
            self.reduce(s)
        for t in self.kernel.stores:
            for v in reads(t):
                self.late(v)
        ends = [*self.second.values(), *self.kernel.stores]
        return self.make("part", [*self.first.values(), *self.out], self.axes), self.make(
            "join", ends, {self.part: self.parts} | {a: n for a, n in self.kernel.axes.items() if a != self.axis}
        )

    def make(self, name: str, statements: list[Statement], axes: dict[str, E]) -> Kernel:
        loaded = {s.buffer for s in statements if isinstance(s, Load)}
        stored = {s.buffer for s in statements if isinstance(s, Store)}
        buffers = {}
        for n, b in (self.kernel.buffers | self.buffers).items():
            if n in loaded or n in stored:
                role = "in" if n not in stored else "inout" if n in loaded or b.role == "inout" else "out"
                buffers[n] = replace(b, role=role)
        values = {v: r for v, r in self.kernel.values.items() if any(getattr(s, "name", None) == v for s in statements)}
        out = Kernel(f"{self.kernel.name}_{name}", buffers, axes, self.kernel.symbols, statements, values)
        used: set[str] = set().union(*(domain(out, s) for s in statements), *(getattr(s, "axes", ()) for s in statements))
        return Kernel(out.name, buffers, {a: n for a, n in axes.items() if a in used}, out.symbols, statements, values)

    def name(self, v: str, suffix: str) -> str:
        v = fresh(f"{v}_{suffix}", self.names)
        self.names.add(v)
        return v

    def early(self, v: str) -> str:
        """`v`, computed in the first kernel."""
        s = self.kernel.definitions[v]
        if v not in self.first:
            for u in reads(s):
                self.early(u)
            moved = map_expressions(s, lambda e: simplify(subst(e, {self.axis: self.whole}), self.bounds))
            if isinstance(moved, Load) and self.axis in self.kernel.domains[v]:
                moved = replace(moved, mask=(*moved.mask, *(c for c in self.guard if c not in moved.mask)))
            self.first[v] = moved  # type: ignore[assignment]
        return v

    def late(self, v: str) -> None:
        """`v`, computed in the second kernel."""
        if v not in self.second:
            for u in reads(self.kernel.definitions[v]):
                self.late(u)
            self.second[v] = self.kernel.definitions[v]

    def add(self, s: Definition) -> str:
        self.first[s.name] = s
        return s.name

    def guarded(self, v: str, neutral: bool | int | float) -> str:
        """`v`, and `neutral` beyond the end of the last part: whatever a prologue made of what was not loaded."""
        if not self.guard:
            return v
        load = self.first[v]
        if isinstance(load, Load) and self.axis in self.kernel.domains[v]:
            masked = bool(self.kernel.definitions[v].mask)  # type: ignore[union-attr]
            if not masked and v not in self.filled:  # what an unmasked load gives outside is ours to say, once
                self.first[v] = load = replace(load, other=neutral)
                self.filled.add(v)
            if load.other == neutral:
                return v
        if self.inside is None:
            left = self.add(IndexOf(self.name(self.axis, "left"), self.guard[0].expr, int64))
            zero = self.add(Const(self.name(self.axis, "zero"), 0, int64))
            self.inside = self.add(Op(self.name(self.axis, "inside"), "ge", (left, zero), bool_))
        d = self.kernel.definitions[v].dtype
        wide = self.add(Op(self.name(v, "wide"), "cast", (v,), d.accumulator)) if d.is_narrow_float else v
        fill = self.add(Const(self.name(v, "neutral"), neutral, d.accumulator))
        kept = self.add(Op(self.name(v, "kept"), "where", (self.inside, wide, fill), d.accumulator))
        return self.add(Op(self.name(v, "narrow"), "cast", (kept,), d)) if d.is_narrow_float else kept

    def through(self, v: str, d: dtype) -> str:
        """Store `v` of the first kernel, a part, and load it in the second: the name it has there."""
        varies = Kernel("", {}, self.axes, self.kernel.symbols, self.first.values()).domains[v]
        at = {a: n for a, n in self.axes.items() if a in varies or a == self.part}
        buffer = fresh("part", {*self.kernel.buffers, *self.buffers})
        self.buffers[buffer] = Buffer(buffer, d, tuple(at.values()), "out")
        index = tuple(var(a) for a in at)
        self.out.append(Store(buffer, index, v))
        part = self.name(v, "part")
        self.second[part] = Load(part, buffer, index, (), 0, d)
        return part

    def reduce(self, s: Reduce | Contract) -> None:
        axes = tuple(self.within if a == self.axis else a for a in s.axes)
        inputs = [self.early(v) for v in s.operands]
        if isinstance(s, Contract):
            a, b = (self.guarded(v, 0) for v in inputs)
            self.add(replace(s, operands=(a, b), axes=axes))
            part = self.through(s.name, s.dtype)
            self.second[s.name] = Reduce(s.name, "sum", (part,), (self.part,), s.dtype, s.note)
        elif s.op.startswith("arg"):
            self.arg_reduce(s, inputs[0], axes)
        else:
            operand = self.guarded(inputs[0], identity(s.op, s.dtype))
            self.add(replace(s, operands=(operand,), axes=axes))
            part = self.through(s.name, s.dtype)
            self.second[s.name] = Reduce(s.name, s.op, (part,), (self.part,), s.dtype, s.note)

    def arg_reduce(self, s: Reduce, operand: str, axes: tuple[str, ...]) -> None:
        """Each part's extreme and where it is; then the first part that has the extreme of extremes."""
        d, extreme = self.kernel.definitions[operand].dtype, s.op[3:]
        operand = self.guarded(operand, identity(extreme, d))
        if d is bool_:
            d = int32
            operand = self.add(Op(self.name(operand, "wide"), "cast", (operand,), d))
        self.add(replace(s, operands=(operand,), axes=axes))
        best = self.add(Reduce(self.name(s.name, "best"), extreme, (operand,), axes, d))
        inner = self.size
        for a in s.axes[1:]:
            inner = inner * self.kernel.axes[a]
        start = self.add(IndexOf(self.name(s.name, "start"), var(self.part) * inner, int64))
        where = self.add(Op(self.name(s.name, "where"), "add", (s.name, start), int64))
        first = self.name(s.name, "first")
        part = self.through(best, d)
        self.second[first] = Reduce(first, s.op, (part,), (self.part,), int64, s.note)
        load = self.second.pop(self.through(where, int64))
        assert isinstance(load, Load)
        at = tuple(val(first) if e is var(self.part) else e for e in load.index)
        self.second[s.name] = replace(load, name=s.name, index=at, note=s.note)
