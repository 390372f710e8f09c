"""Kernel -> loop nests: which statements a CPU computes together, in what order, and what is kept in between.

    plan   ::= nest*                       run in order; what a later nest needs of an earlier one is kept in workspace
    nest   ::= outer axis* sweep*          the outer axes are walked once, their points are independent of each other
    sweep  ::= inner axis* (reduce | contract | store)*      at each outer point, one after the other

A sink is what forces values into being: a reduction, a contraction or a store. Everything else is computed where a sink needs
it, and again where another sweep needs it. A reduction fits a nest whose outer axes are its domain; a store fits one whose
outer axes are among its own. So softmax is one nest (rows outside; three sweeps of the row).

A reduction over just the outer axes of a nest that reads the same arrays (the weight gradients beside a norm's backward pass)
runs across that nest: every chunk adds up rows of its own in workspace, and a small nest of its own joins these parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flame.compiler.index_math import evaluate
from flame.compiler.kernel import Contract, Kernel, Load, Reduce, Statement, Store, domain, domain_of, reads, typical
from flame.errors import Refused

Sink = Reduce | Contract | Store


@dataclass(slots=True)
class Sweep:
    """`axes` in loop order (none: at the outer point itself)."""

    axes: tuple[str, ...]
    reduces: list[Reduce | Contract] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    across: list[Reduce] = field(default_factory=list)  #: over the outer axes: accumulated in memory, joined by a later nest


@dataclass(slots=True)
class Nest:
    outer: tuple[str, ...]
    sweeps: list[Sweep] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)  #: reductions' results that later nests read
    joins: Reduce | None = None  #: the reduction whose parts it joins

    @property
    def reduces(self) -> list[Reduce | Contract]:
        return [r for s in self.sweeps for r in s.reduces]

    @property
    def stores(self) -> list[Store]:
        return [t for s in self.sweeps for t in s.stores]

    @property
    def across(self) -> list[Reduce]:
        return [r for s in self.sweeps for r in s.across]


def reductions_under(kernel: Kernel, name: str) -> frozenset[str]:
    """The reductions and contractions that a value needs directly: those not below another reduction."""
    found: set[str] = set()
    todo, seen = [name], {name}
    while todo:
        s = kernel.definitions[todo.pop()]
        if isinstance(s, Reduce | Contract):
            found.add(s.name)
            continue
        for v in reads(s):
            if v not in seen:
                seen.add(v)
                todo.append(v)
    return frozenset(found)


def needed(kernel: Kernel, s: Sink) -> frozenset[str]:
    """The reductions that a sink reads."""
    return frozenset().union(*(reductions_under(kernel, v) for v in reads(s)))


def walked(kernel: Kernel, s: Sink) -> frozenset[str]:
    """The axes that a sink is run over."""
    own = frozenset(s.axes) if isinstance(s, Reduce | Contract) else frozenset()
    return domain(kernel, s) | own


ACROSS = 1 << 14  #: at most so many results for a reduction that runs across a nest
LARGE = 1 << 16  #: from so many points on, a reduction to few results is done in two
STAGED = frozenset({"sum", "prod", "max", "min", "any", "all"})
SMALL = 1 << 14  #: from so many points on, a store leaves a nest that is not parallel


class _Plan:
    """The nests so far, and where each reduction is made."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.nests: list[Nest] = []
        self.where: dict[str, int] = {}  # reduction -> the nest after which it is known
        self.sweep: dict[str, int] = {}  # reduction -> its sweep there
        self.needs = {id(s): needed(kernel, s) for s in kernel.statements if isinstance(s, Reduce | Contract | Store)}

    def in_order(self, axes: frozenset[str]) -> tuple[str, ...]:
        return tuple(a for a in self.kernel.axes if a in axes)

    def earliest(self, s: Sink) -> int:
        """The first nest in which all that a sink reads is known, or may be."""
        return max((self.where[r] for r in self.needs[id(s)]), default=0)

    def first_sweep(self, nest: int, s: Sink) -> int:
        return max((self.sweep[r] + 1 for r in self.needs[id(s)] if self.where[r] == nest), default=0)

    def sweep_for(self, nest: int, s: Sink, inner: tuple[str, ...]) -> int:
        """The first sweep of those axes in which a sink may stand."""
        sweeps = self.nests[nest].sweeps
        at = self.first_sweep(nest, s)
        if isinstance(s, Store) and self.kernel.buffers[s.buffer].role == "inout":  # after all that read the old contents
            reading = [i for i, q in enumerate(sweeps) if any(reads_buffer(self.kernel, t, s.buffer) for t in sinks_of(q))]
            at = max([at, *reading])
        while at < len(sweeps) and sweeps[at].axes != inner:
            at += 1
        if at == len(sweeps):
            sweeps.append(Sweep(inner))
        return at

    def add_reduce(self, s: Reduce | Contract) -> None:
        kept = self.kernel.domains[s.name]
        inner = s.axes if isinstance(s, Reduce) else self.in_order(frozenset(s.axes))
        fits = [i for i in range(self.earliest(s), len(self.nests)) if frozenset(self.nests[i].outer) == kept]
        if not fits:
            self.nests.append(Nest(self.in_order(kept)))
            fits = [len(self.nests) - 1]
        at = self.sweep_for(fits[0], s, inner)
        self.nests[fits[0]].sweeps[at].reduces.append(s)
        self.where[s.name], self.sweep[s.name] = fits[0], at

    def add_across(self, s: Reduce) -> bool:
        """Let a reduction run across a nest of rows, if one reads the same arrays."""
        columns = self.in_order(self.kernel.domains[s.name])
        mine = {t.buffer for t in loads_of(self.kernel, s) if len(self.kernel.domains[t.name]) > len(columns)}
        for i in range(self.earliest(s), len(self.nests)):
            nest = self.nests[i]
            theirs = {t.buffer for q in nest.sweeps for r in sinks_of(q) for t in loads_of(self.kernel, r)}
            if frozenset(nest.outer) != frozenset(s.axes) or not mine & theirs or nest.joins or not nest.reduces:
                continue
            last = max(k for k, q in enumerate(nest.sweeps) if q.axes) if any(q.axes for q in nest.sweeps) else 0
            at = max(self.sweep_for(i, s, columns), last if nest.sweeps[last].axes == columns else 0)
            nest.sweeps[at].across.append(s)
            part = Reduce(s.name, s.op, (part_of(s.name),), (PART,), s.dtype, s.note)
            self.nests.append(Nest(columns, [Sweep((PART,), reduces=[part])], joins=s))
            self.where[s.name], self.sweep[s.name] = len(self.nests) - 1, 0
            return True
        return False

    def add_store(self, t: Store) -> None:
        run = walked(self.kernel, t)
        first = self.earliest(t)
        if self.kernel.buffers[t.buffer].role == "inout":
            for i, nest in enumerate(self.nests):
                if any(reads_buffer(self.kernel, q, t.buffer) for s in nest.sweeps for q in sinks_of(s)):
                    first = max(first, i)
        fits = [i for i in range(first, len(self.nests)) if self._fits(self.nests[i], run)]
        if not fits:
            self.nests.append(Nest(self.in_order(run)))
            fits = [len(self.nests) - 1]
        chosen = next((i for i in fits if any(self.where[r] == i for r in self.needs[id(t)])), fits[-1])
        at = self.sweep_for(chosen, t, self.in_order(run - frozenset(self.nests[chosen].outer)))
        self.nests[chosen].sweeps[at].stores.append(t)

    def _fits(self, nest: Nest, run: frozenset[str]) -> bool:
        """May a store over these axes join a nest, and should it? A large one leaves a nest that would not be parallel."""
        outer = frozenset(nest.outer)
        if not outer <= run or (nest.joins is not None and outer != run):
            return False
        return bool(outer) or not run or points(self.kernel, run) <= SMALL

    def keep(self) -> None:
        """Note for every nest what later ones read of it."""
        for i, nest in enumerate(self.nests):
            for s in [*nest.reduces, *nest.stores, *nest.across]:
                for r in sorted(self.needs.get(id(s), ())):
                    if self.where[r] != i and r not in self.nests[self.where[r]].keep:
                        self.nests[self.where[r]].keep.append(r)


PART = "part"  #: the axis of what chunks have accumulated


def part_of(name: str) -> str:
    """The value that stands for what one chunk has accumulated of a reduction."""
    return f"{name}_part"


def points(kernel: Kernel, axes: frozenset[str]) -> int:
    """How many points some axes have (symbols at a typical value)."""
    out = 1
    for a in axes:
        out *= int(evaluate(kernel.axes[a], typical(kernel)))
    return out


def plan(kernel: Kernel) -> list[Nest]:
    """The nests of a kernel, in the order in which they run."""
    making = _Plan(kernel)
    reduces = [s for s in kernel.statements if isinstance(s, Reduce | Contract)]
    later = _may_run_across(kernel, reduces, making.needs)
    for s in reduces:
        if s not in later:
            making.add_reduce(s)
    stores = sorted(kernel.stores, key=lambda t: kernel.buffers[t.buffer].role == "inout")
    waiting = [t for t in stores if making.needs[id(t)] & {s.name for s in later}]
    for t in stores:
        if t not in waiting and kernel.buffers[t.buffer].role != "inout":
            making.add_store(t)
    for s in later:
        if not making.add_across(s):
            making.add_reduce(s)
    for t in stores:
        if t in waiting or kernel.buffers[t.buffer].role == "inout":
            making.add_store(t)
    making.keep()
    _read_before_written(kernel, making.nests)
    return making.nests


def in_stages(kernel: Kernel) -> Kernel:
    """The kernel with every large reduction to few results done in two: rows first, which are parallel, then what they give."""
    statements: list[Statement] = []
    for s in kernel.statements:
        if isinstance(s, Reduce) and len(s.axes) > 1 and s.op in STAGED:
            columns = kernel.domains[s.name]
            if points(kernel, columns) <= 4 and points(kernel, columns | frozenset(s.axes)) >= LARGE:
                axes = [a for a in kernel.axes if a in s.axes]
                rows = axes[:1]
                while len(rows) < len(axes) - 1 and points(kernel, frozenset(rows)) < 16:
                    rows.append(axes[len(rows)])
                each = f"{s.name}_rows"
                if points(kernel, frozenset(rows)) > 1 and each not in kernel.definitions:
                    statements.append(Reduce(each, s.op, s.operands, tuple(axes[len(rows) :]), s.dtype, s.note))
                    s = Reduce(s.name, s.op, (each,), tuple(rows), s.dtype, s.note)
        statements.append(s)
    if len(statements) == len(kernel.statements):
        return kernel
    return Kernel(kernel.name, kernel.buffers, kernel.axes, kernel.symbols, statements, kernel.values)


def _may_run_across(kernel: Kernel, reduces: list[Reduce | Contract], needs: dict[int, frozenset[str]]) -> list[Reduce]:
    """Reductions whose axes are the rows of another one, and which no other one reads."""
    read = frozenset().union(*(needs[id(s)] for s in reduces)) if reduces else frozenset()
    found = []
    for s in reduces:
        if not isinstance(s, Reduce) or s.op.startswith("arg") or s.name in read:
            continue
        columns = kernel.domains[s.name]
        rows = any(kernel.domains[r.name] == frozenset(s.axes) and frozenset(r.axes) == columns for r in reduces)
        if rows and columns and points(kernel, columns) <= ACROSS and PART not in kernel.axes:
            found.append(s)
    return found


def _read_before_written(kernel: Kernel, nests: list[Nest]) -> None:
    """Raise Refused if memory that is updated in place would be read after its update."""
    written: dict[str, tuple[int, int]] = {}
    for i, nest in enumerate(nests):
        for j, sweep in enumerate(nest.sweeps):
            for s in sinks_of(sweep):
                for t in loads_of(kernel, s):
                    if written.get(t.buffer, (i, j)) < (i, j):
                        raise Refused(f"{kernel.name}: {t.buffer} would be read after it was updated in place")
            written |= {t.buffer: (i, j) for t in sweep.stores if kernel.buffers[t.buffer].role == "inout"}


def sinks_of(sweep: Sweep) -> list[Sink]:
    return [*sweep.reduces, *sweep.across, *sweep.stores]


def reads_buffer(kernel: Kernel, s: Sink, buffer: str) -> bool:
    """Does a sink load from a buffer, not looking behind reductions?"""
    return any(t.buffer == buffer for t in loads_of(kernel, s))


def loads_of(kernel: Kernel, s: Sink) -> list[Load]:
    """The loads that a sink reads through, not looking behind reductions."""
    found: list[Load] = []
    todo, seen = list(reads(s)), set(reads(s))
    while todo:
        v = todo.pop()
        t = kernel.definitions.get(v)  # None: the parts of a reduction that runs across a nest
        if t is None or isinstance(t, Reduce | Contract):
            continue
        if isinstance(t, Load):
            found.append(t)
        for r in reads(t):
            if r not in seen:
                seen.add(r)
                todo.append(r)
    return found


def address_axes(kernel: Kernel, s: Load | Store) -> frozenset[str]:
    """The axes that a load's or store's address varies with."""
    return domain_of(kernel, s.index)
