"""Rows and columns of one array in one kernel: what a norm hands back to its input, and to its weight, from one reading.

    join(steps, target) -> steps, decisions

A kernel that reduces rows (the gradient by the input needs two sums over each) and one that reduces columns of the same arrays
(the gradients by weight and bias) read the same memory. Joined, a program takes a PANEL of rows: it walks down it, does each row,
and adds what the row gives to the columns' sums, which it stores as a part; a small second kernel adds the parts up.

    first    p < parts, i < size, j < row        all that the row kernel did; reduce over i; store part[p, j]
    second   p < parts, j < row                  reduce over p; what the column kernel did with its sums

How such a kernel is scheduled says `flame.compiler.schedule.panel_of`, and `flame.compiler.triton_panel` writes it. A row has to
fit in registers beside the columns' sums, and the rows have to be cut in equal panels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flame.compiler.graph import Node, Value
from flame.compiler.index_math import ex, subst, val, var
from flame.compiler.kernel import (
    Buffer,
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
    reads,
    rename,
    stage,
)
from flame.compiler.program import Decision, FusedKernel
from flame.compiler.schedule import panel_fits
from flame.compiler.target import Target
from flame.compiler.transform import flatten, map_expressions, merge_axes
from flame.primitive import Spec

Step = FusedKernel | Node
I, J, P = "i", "j", "p"

#: reductions that parts can be joined from, by themselves
_JOINED = frozenset({"sum", "prod", "max", "min", "any", "all"})


def join(steps: Sequence[Step], target: Target) -> tuple[list[Step], list[Decision]]:
    """The steps with row kernels and column kernels of the same arrays joined. Only on GPUs."""
    out = list(steps)
    decisions: list[Decision] = []
    if not target.is_gpu:
        return out, decisions
    rows = [k for k in range(len(out)) if _is_row_kernel(out[k])]
    columns = [k for k in range(len(out)) if _is_column_kernel(out[k])]
    gone: set[int] = set()
    after: dict[int, list[Step]] = {}
    for a in rows:
        for b in columns:
            if b in gone or a in gone or a == b:
                continue
            where = _common_place(out, a, b)
            if where is None:
                continue
            made = _joined(out[a], out[b], target)  # type: ignore[arg-type]
            if isinstance(made, str):
                if made:
                    decisions.append(Decision("refused", f"{_name(out[a])} with {_name(out[b])}", made))
                continue
            reason = f"reads {made.saved} bytes once for rows and columns"
            decisions.append(Decision("fused", f"{_name(out[a])} with {_name(out[b])}", reason))
            other = b if where == a else a
            gone.add(other)
            gone.add(where)
            after[where] = [made.first, made.second]
            break
    final: list[Step] = []
    for k, step in enumerate(out):
        if k in after:
            final += after[k]
        elif k not in gone:
            final.append(step)
    return final, decisions


def _name(step: Step) -> str:
    return step.primitive.name if isinstance(step, Node) else step[0].name


def _swept(step: Step) -> frozenset[str]:
    """The axes of the one set that all reductions of a kernel sweep; none where there is another kind of statement."""
    if isinstance(step, Node) or step[2] is not None:
        return frozenset()
    kernel = step[0]
    if kernel.symbols or not kernel.sizes_known or any(isinstance(s, Contract) for s in kernel.statements):
        return frozenset()
    sets = {frozenset(s.axes) for s in kernel.statements if isinstance(s, Reduce)}
    return sets.pop() if len(sets) == 1 else frozenset()


def _is_row_kernel(step: Step) -> bool:
    """Does it store along what it reduces, too?"""
    swept = _swept(step)
    return bool(swept) and any(swept & domain(step[0], s) for s in step[0].stores)  # type: ignore[index]


def _is_column_kernel(step: Step) -> bool:
    """Does it only reduce, once, and keep some axis?"""
    swept = _swept(step)
    if not swept:
        return False
    kernel: Kernel = step[0]  # type: ignore[index]
    kept = swept < kernel.axes.keys() and not any(swept & domain(kernel, s) for s in kernel.stores)
    return kept and max(stage(kernel).values()) == 1 and all(s.op in _JOINED for s in _reduces(kernel))


def _reduces(kernel: Kernel) -> list[Reduce]:
    return [s for s in kernel.statements if isinstance(s, Reduce)]


def _values(step: Step, written: bool) -> set[Value]:
    if isinstance(step, Node):
        return set(step.outputs if written else step.values)
    kernel, values, _ = step
    return {v for b, v in values.items() if (kernel.buffers[b].role == "out") == written}


def _common_place(steps: Sequence[Step], a: int, b: int) -> int | None:
    """Where both kernels may run at once: at one of the two places, if nothing in between stands in the way."""
    one, two = steps[a], steps[b]
    if _values(one, False).isdisjoint(_values(two, False) | _values(two, True)):
        return None
    if not _values(two, True).isdisjoint(_values(one, False)):
        return None
    first, last = min(a, b), max(a, b)
    between = steps[first + 1 : last]
    needed = _values(steps[last], False)
    if all(needed.isdisjoint(_values(s, True)) for s in between):
        return first
    made = _values(steps[first], True)
    return last if all(made.isdisjoint(_values(s, False)) for s in between) else None


@dataclass(frozen=True, slots=True)
class _Made:
    first: FusedKernel
    second: FusedKernel
    saved: int


def _over_two(kernel: Kernel, swept: frozenset[str], rows: bool) -> Kernel | None:
    """The kernel on flat buffers over the axes "i" and "j", if its axes merge to two; `rows`: "j" is the swept one."""
    merged = merge_axes(kernel)
    inner = frozenset(a for s in _reduces(merged) for a in s.axes)
    if len(merged.axes) != 2 or len(inner) != 1:
        return None
    (a,) = inner
    (b,) = merged.axes.keys() - inner
    return rename(flatten(merged), {a: J if rows else I, b: I if rows else J, **_fresh_buffers(merged)})


def _fresh_buffers(kernel: Kernel) -> dict[str, str]:
    """Names for buffers that are those of no axis."""
    return {b: f"{b}_" for b in kernel.buffers if b in (I, J, P)}


def panels(rows: int, target: Target) -> int:
    """Into how many panels to cut: two to four for each multiprocessor, all equal; 0 where that cannot be."""
    return next((n for n in range(4 * target.units, target.units - 1, -1) if rows % n == 0 and rows >= 2 * n), 0)


def _joined(one: FusedKernel, two: FusedKernel, target: Target) -> _Made | str:
    """Both in one, or why not; "" where they have nothing in common to begin with."""
    row = _over_two(one[0], _swept(one), True)
    column = _over_two(two[0], _swept(two), False)
    if row is None or column is None or row.axes != column.axes:
        return ""
    n, m = (row.axes[a].const or 0 for a in (I, J))
    parts = panels(n, target)
    if not parts:
        return f"{n} rows are not cut in equal panels for {target.units} multiprocessors"
    if not panel_fits(target, m, len(_reduces(column)), row):
        return f"a row of {m} does not fit in registers beside the sums of {len(_reduces(column))} columns"
    both = _Both(row, dict(zip(row.buffers, one[1].values(), strict=True)))
    values = dict(zip(column.buffers, two[1].values(), strict=True))
    refusal = both.add(column, values)
    if refusal or not both.shared:
        return refusal
    return both.cut(parts, n // parts, two)


class _Both:
    """The row kernel with the column kernel's statements added to it, what is equal once."""

    def __init__(self, row: Kernel, values: dict[str, Value]):
        self.row = row
        self.values = dict(values)
        self.buffers = dict(row.buffers)
        self.statements: list[Statement] = list(row.statements)
        self.kinds = dict(row.values)
        self.shared = 0  #: bytes that are read once instead of twice
        self.known: dict[tuple, str] = {}
        self.names: dict[str, str] = {}
        for s in row.definitions.values():
            self.known.setdefault(self._key(s), s.name)

    def _key(self, s: Definition) -> tuple:
        """Equal for statements that compute the same."""
        if isinstance(s, Load):
            return ("load", self.values[s.buffer], s.index, s.mask, repr(s.other))
        fields = [getattr(s, f) for f in s.__slots__ if f not in ("name", "note")]
        return (type(s), *map(repr, fields))

    def add(self, column: Kernel, values: dict[str, Value]) -> str:
        """Take in the column kernel; a reason where it does not go."""
        held = {v: b for b, v in self.values.items()}
        names: dict[str, str] = {}
        for b, buffer in column.buffers.items():
            v = values[b]
            names[b] = held.get(v) or f"c_{b}"
            if v not in held:
                self.buffers[names[b]] = replace(buffer, name=names[b])
                self.values[names[b]] = v
        taken = {"%" + v: f"%c_{v}" for v in column.definitions}
        column = rename(column, names | taken)
        self.column = column
        stored = {s.buffer: s for s in self.row.stores}
        for s in column.definitions.values():
            s = self._renamed(s)
            if isinstance(s, Load) and s.buffer in stored:
                store = stored[s.buffer]
                if store.index != s.index or store.mask or s.mask:
                    return f"columns read {s.buffer} where rows do not write it"
                self.names[s.name] = store.value
                continue
            key = self._key(s)
            if key in self.known:
                if isinstance(s, Load) and {I, J} <= domain(self.row, s):
                    self.shared += math.prod(e.const or 1 for e in self.row.axes.values()) * s.dtype.itemsize
                self.names[s.name] = self.known[key]
                continue
            self.known[key] = s.name
            self.statements.append(s)
            if s.name in column.values:
                self.kinds[s.name] = column.values[s.name]
        self.stores = [replace(s, value=self.names.get(s.value, s.value)) for s in column.stores]
        return ""

    def _renamed(self, s: Definition) -> Definition:
        """`s` on the names that equal values have already."""
        mapping = {u: self.names[u] for u in reads(s) if u in self.names}
        if not mapping:
            return s
        from_values = {f"%{u}": val(v) for u, v in mapping.items()}
        s = map_expressions(s, lambda e: subst(e, from_values))  # type: ignore[assignment]
        if isinstance(s, Op | Reduce):
            s = replace(s, operands=tuple(mapping.get(u, u) for u in s.operands))
        return s

    def cut(self, parts: int, size: int, two: FusedKernel) -> _Made | str:
        """The two kernels."""
        whole = {I: var(P) * size + var(I)}
        columns = [s for s in self.statements if isinstance(s, Reduce) and s.axes == (I,)]
        late = {s.name for s in columns}
        for s in self.statements:
            if not isinstance(s, Store) and not late.isdisjoint(reads(s)):
                late.add(s.name)
        first: list[Statement] = []
        for s in self.statements:
            if isinstance(s, Store) or s.name not in late or s in columns:
                first.append(map_expressions(s, lambda e: subst(e, whole)))
        m = self.row.axes[J]
        buffers = {b: self.buffers[b] for b in self.row.buffers}
        second: dict[str, Statement] = {}
        second_buffers: dict[str, Buffer] = {}
        values: dict[str, Value] = {}
        origin = next(v.name for v in two[1].values())
        for k, q in enumerate(columns):
            part = f"part{k}"
            buffers[part] = Buffer(part, q.dtype, (ex(parts), m), "out")
            second_buffers[part] = Buffer(part, q.dtype, (ex(parts), m))
            values[part] = Value(Spec((parts, m.const or 0), q.dtype), None, 0, f"{origin}_{part}")
            first.append(Store(part, (var(P), var(J)), q.name))
            second[f"{q.name}_part"] = Load(f"{q.name}_part", part, (var(P), var(J)), (), 0, q.dtype)
            second[q.name] = replace(q, operands=(f"{q.name}_part",), axes=(P,))
        made = {s.name: s for s in self.statements if not isinstance(s, Store)}

        def take(v: str) -> None:
            if v not in second:
                for u in reads(made[v]):
                    take(u)
                second[v] = made[v]

        for s in self.stores:
            for v in reads(s):
                take(v)
        ends: list[Statement] = [*second.values(), *self.stores]
        for s in ends:
            if isinstance(s, Load | Store) and s.buffer not in second_buffers:
                second_buffers[s.buffer] = self.buffers[s.buffer]
        for s in first:
            if isinstance(s, Load) and s.buffer not in buffers:
                buffers[s.buffer] = self.buffers[s.buffer]
        panel = Kernel(f"{self.row.name}_and_columns", buffers, {P: ex(parts), I: ex(size), J: m}, {}, first, self.kinds)
        if any(I in domain(panel, s) for s in ends if isinstance(s, IndexOf)) or any(
            I in self.row.domains.get(v, frozenset()) for v in second
        ):
            return "what follows the columns' sums needs the rows"
        ranges = {v: r for v, r in self.kinds.items() if v in second}
        joined = Kernel(f"{self.column.name}_joined", second_buffers, {P: ex(parts), J: m}, {}, ends, ranges)
        every = self.values | values
        return _Made(
            (panel, {b: every[b] for b in panel.buffers}, None),
            (joined, {b: every[b] for b in joined.buffers}, None),
            self.shared,
        )
