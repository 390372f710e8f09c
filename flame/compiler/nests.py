"""Kernel -> loop nests: which statements a CPU computes together, in what order, and what is kept in between.

    plan   ::= nest*                       run in order; what a later nest needs of an earlier one is kept in workspace
    nest   ::= outer axis* sweep*          the outer axes are walked once, their points are independent of each other
    sweep  ::= inner axis* (reduce | contract | store)*      at each outer point, one after the other

A sink is what forces values into being: a reduction, a contraction or a store. Everything else is computed where a sink needs
it, and again where another sweep needs it. A reduction fits a nest whose outer axes are its domain; a store fits one whose
outer axes are among its own. So softmax is one nest (rows outside; three sweeps of the row), and a kernel that reduces first
rows and then columns is two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flame.compiler.kernel import Contract, Kernel, Load, Reduce, Store, domain, domain_of, reads
from flame.errors import Refused

Sink = Reduce | Contract | Store


@dataclass(slots=True)
class Sweep:
    """`axes` in loop order (none: at the outer point itself)."""

    axes: tuple[str, ...]
    reduces: list[Reduce | Contract] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)


@dataclass(slots=True)
class Nest:
    outer: tuple[str, ...]
    sweeps: list[Sweep] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)  #: reductions' results that later nests read

    @property
    def reduces(self) -> list[Reduce | Contract]:
        return [r for s in self.sweeps for r in s.reduces]

    @property
    def stores(self) -> list[Store]:
        return [t for s in self.sweeps for t in s.stores]


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


def plan(kernel: Kernel) -> list[Nest]:
    """The nests of a kernel, in the order in which they run."""
    order = list(kernel.axes)
    needs = {id(s): needed(kernel, s) for s in kernel.statements if isinstance(s, Reduce | Contract | Store)}
    where: dict[str, int] = {}  # reduction -> its nest
    sweep_of: dict[str, int] = {}  # reduction -> its sweep there
    nests: list[Nest] = []

    def in_order(axes: frozenset[str]) -> tuple[str, ...]:
        return tuple(a for a in order if a in axes)

    def first_sweep(nest: int, s: Sink) -> int:
        """The first sweep of a nest in which everything that a sink reads is known."""
        return max((sweep_of[r] + 1 for r in needs[id(s)] if where[r] == nest), default=0)

    def put(nest: int, s: Sink, inner: tuple[str, ...]) -> None:
        sweeps = nests[nest].sweeps
        at = first_sweep(nest, s)
        if isinstance(s, Store) and kernel.buffers[s.buffer].role == "inout":  # after all that read the old contents
            at = max([at, *(i for i, q in enumerate(sweeps) if any(reads_buffer(kernel, t, s.buffer) for t in sinks_of(q)))])
        while True:
            if at == len(sweeps):
                sweeps.append(Sweep(inner))
            if sweeps[at].axes == inner:
                break
            at += 1
        if isinstance(s, Store):
            sweeps[at].stores.append(s)
        else:
            sweeps[at].reduces.append(s)
            where[s.name], sweep_of[s.name] = nest, at

    def earliest(s: Sink) -> int:
        return max((where[r] for r in needs[id(s)]), default=0)

    sinks = [s for s in kernel.statements if isinstance(s, Reduce | Contract)]
    for s in sinks:
        kept = kernel.domains[s.name]
        inner = s.axes if isinstance(s, Reduce) else in_order(frozenset(s.axes))
        fits = [i for i in range(earliest(s), len(nests)) if frozenset(nests[i].outer) == kept]
        if not fits:
            nests.append(Nest(in_order(kept)))
            fits = [len(nests) - 1]
        put(fits[0], s, inner)
    for t in _stores_in_order(kernel):
        run = walked(kernel, t)
        first = earliest(t)
        if kernel.buffers[t.buffer].role == "inout":
            reading = [
                i for i, n in enumerate(nests) if any(reads_buffer(kernel, q, t.buffer) for s in n.sweeps for q in sinks_of(s))
            ]
            first = max([first, *reading])
        fits = [i for i in range(first, len(nests)) if frozenset(nests[i].outer) <= run and _worth(nests[i], run)]
        if not fits:
            nests.append(Nest(in_order(run)))
            fits = [len(nests) - 1]
        chosen = next((i for i in fits if any(where[r] == i for r in needs[id(t)])), fits[-1])
        put(chosen, t, in_order(run - frozenset(nests[chosen].outer)))
    _keep(kernel, nests, needs, where)
    _read_before_written(kernel, nests)
    return nests


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
    return [*sweep.reduces, *sweep.stores]


def reads_buffer(kernel: Kernel, s: Sink, buffer: str) -> bool:
    """Does a sink load from a buffer, not looking behind reductions?"""
    return any(t.buffer == buffer for t in loads_of(kernel, s))


def _stores_in_order(kernel: Kernel) -> list[Store]:
    """Stores, those over memory that is also read last, so that nothing is read after it was overwritten."""
    return sorted(kernel.stores, key=lambda t: kernel.buffers[t.buffer].role == "inout")


def _worth(nest: Nest, run: frozenset[str]) -> bool:
    """A store over many axes joins a nest over none only if that has something to do with it: it would not be parallel."""
    return bool(nest.outer) or not run or bool(nest.reduces)


def _keep(kernel: Kernel, nests: list[Nest], needs: dict[int, frozenset[str]], where: dict[str, int]) -> None:
    for i, nest in enumerate(nests):
        for s in [*nest.reduces, *nest.stores]:
            for r in needs[id(s)]:
                if where[r] != i and r not in nests[where[r]].keep:
                    nests[where[r]].keep.append(r)


def loads_of(kernel: Kernel, s: Sink, stop: frozenset[str] = frozenset()) -> list[Load]:
    """The loads that a sink reads through, not looking behind reductions or the names in `stop`."""
    found: list[Load] = []
    todo, seen = list(reads(s)), set(reads(s))
    while todo:
        v = todo.pop()
        t = kernel.definitions[v]
        if isinstance(t, Reduce | Contract) or v in stop:
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
