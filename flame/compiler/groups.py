"""Groups of roots under construction: an acyclic graph whose nodes are merged two at a time.

Every group has a rank, and whoever reads a group's value has a higher one, so that sorting by rank is an order to run in.
Merging needs no path through a third group; the search for one stays between the two ranks, and so does the repair of ranks
after a merge (Pearce and Kelly, "A dynamic topological sort algorithm for directed acyclic graphs", 2007).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flame.compiler.graph import Node, Value

#: groups that a search for a path visits before it gives up: kernels that far apart are not neighbours
_FARTHEST = 64


@dataclass(eq=False, slots=True)
class Group:
    """The roots of one kernel in graph order; or, with `call`, the results of a node that stays a call."""

    roots: tuple[Value, ...]
    rank: int
    call: Node | None = None
    into: Group | None = None  #: what it was merged into
    below: list[Group] = field(default_factory=list)  #: those that read its values, as of when they were asked for
    above: list[Group] = field(default_factory=list)  #: those whose values it reads
    merged_below: bool = False  #: whether one of `below` was merged since
    merged_above: bool = False

    def __repr__(self) -> str:
        return "+".join(f"%{r.name}" for r in self.roots)


class Groups:
    """`reads` gives, for a root (or the first result of a call), the values in memory that it is made from."""

    def __init__(self) -> None:
        self.of: dict[Value, Group] = {}
        self.reads: dict[Value, frozenset[Value] | tuple[Value, ...]] = {}
        self.readers: dict[Value, list[Value]] = {}
        self.position: dict[Value, int] = {}
        self._ranks = 0

    def add(self, roots: tuple[Value, ...], reads: Iterable[Value], call: Node | None = None) -> Group:
        """Enter a group after everything that it reads."""
        g = Group(roots, self._ranks, call)
        self._ranks += 1
        first = roots[0]
        self.reads[first] = frozenset(reads)
        for x in self.reads[first]:
            self.readers.setdefault(x, []).append(first)
            h = self.of.get(x)
            if h is not None and h not in g.above:
                g.above.append(h)
                h.below.append(g)
        for r in roots:
            self.of[r] = g
            self.position[r] = len(self.position)
        return g

    def all(self) -> list[Group]:
        """The groups in an order to run in."""
        return sorted(dict.fromkeys(self.of.values()), key=lambda g: g.rank)

    def below(self, g: Group) -> list[Group]:
        """The groups that read `g`'s values."""
        if g.merged_below:
            g.below = _current(g, g.below)
            g.merged_below = False
        return g.below

    def above(self, g: Group) -> list[Group]:
        """The groups whose values `g` reads."""
        if g.merged_above:
            g.above = _current(g, g.above)
            g.merged_above = False
        return g.above

    def merge(self, a: Group, b: Group) -> Group:
        """One group of the two. `why_not(a, b)` was asked before, and had no objection."""
        if a.rank > b.rank:
            a, b = b, a
        down, up = self._reach(a, b.rank, 1, b), self._reach(b, a.rank, -1, a)
        assert down is not None and up is not None
        ranks = sorted([a.rank, b.rank, *(g.rank for g in (*down, *up))])
        roots = tuple(sorted((*a.roots, *b.roots), key=self.position.__getitem__))
        merged = Group(roots, 0)
        up.sort(key=lambda g: g.rank)
        down.sort(key=lambda g: g.rank)
        for g, rank in zip([*up, merged, *down], [*ranks[: len(up) + 1], *ranks[len(up) + 2 :]], strict=True):
            g.rank = rank
        a.into = b.into = merged
        merged.below = _current(merged, (*a.below, *b.below))
        merged.above = _current(merged, (*a.above, *b.above))
        for h in merged.below:
            h.merged_above = True
        for h in merged.above:
            h.merged_below = True
        for r in roots:
            self.of[r] = merged
        return merged

    def why_not(self, a: Group, b: Group) -> str:
        """Why the two can't run as one; empty if they can."""
        if a.rank > b.rank:
            a, b = b, a
        down = self._reach(a, b.rank, 1, b)
        if down is None:
            return "too many kernels lie between"
        direct = frozenset(self.above(b))
        if any(g in direct for g in down):
            return "another kernel lies between"
        return "too many kernels lie between" if self._reach(b, a.rank, -1, a) is None else ""

    def _reach(self, start: Group, end: int, way: int, other: Group) -> list[Group] | None:
        """The groups reached from `start` downward (way 1) or upward (-1) before rank `end`, without a step to `other`."""
        step = self.below if way > 0 else self.above
        seen: set[Group] = set()
        found: list[Group] = []
        pending = [start]
        while pending:
            for h in step(pending.pop()):
                if (h.rank < end if way > 0 else h.rank > end) and h is not other and h not in seen:
                    if len(found) >= _FARTHEST:
                        return None
                    seen.add(h)
                    found.append(h)
                    pending.append(h)
        return found


def _current(g: Group, found: Iterable[Group]) -> list[Group]:
    """The groups that stand for `found` now, each once, without `g` itself."""
    out: dict[Group, None] = {}
    for h in found:
        while h.into is not None:
            h = h.into
        if h is not g:
            out[h] = None
    return list(out)
