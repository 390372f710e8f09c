"""What the eager tape would have kept of a followed path, and where it would refuse to differentiate.

A compiled segment keeps other things for backward than the tape does. So that errors are the tape's all the same ("modified by an
in-place operation", "a second time"), its bookkeeping is simulated on the path, once: every piece of memory has a version, every
operation that carries gradient saves what its rules read, a write raises the version, backward without retain_graph lets go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flame.capture.trace import Ref, Step

FREED = "freed"
MODIFIED = "modified"


def op_steps(path: list[Step]) -> Iterator[Step]:
    """The operations of a path, those of its gradient steps among them."""
    for s in path:
        if s.kind == "op":
            yield s
        elif s.kind == "gradient":
            yield from s.inner


@dataclass
class _Record:
    """One operation on the tape."""

    step: Step
    number: int  #: among all of the path
    edges: tuple[int, ...]  #: its own
    feeds: tuple[int, ...]  #: those of its operands
    saved: list[tuple[int, int, int]] = field(default_factory=list)  #: (value, memory, version)
    frees: bool = False  #: a custom function that saves what only it knows
    damage: str = ""  #: FREED or MODIFIED, if it can't be differentiated any more where the path ends


@dataclass(frozen=True, slots=True)
class Way:
    """The operations between some edges and some others: what is to blame if one was damaged, the pieces of memory that they
    hold, and the numbers of those that hold any."""

    damaged: tuple[str, Step] | None
    saved: frozenset[int]
    holders: frozenset[int]


@dataclass
class TapeModel:
    """`trouble` names the edges that can't be differentiated: edge -> (FREED or MODIFIED, the step to blame). `reaches` has for
    every edge the outside edges that gradient flows to. `passes` are those of the given edges that it flows through on its way.
    `saved` are the pieces of memory that the tape holds at the end, by edge, and `holders` the operations, numbered, that hold
    them; `memory` names the piece that a value is in (by the first value that was)."""

    trouble: dict[int, tuple[str, Step]]
    reaches: dict[int, frozenset[int]]
    passes: dict[int, frozenset[int]]
    saved: dict[int, frozenset[int]]
    holders: dict[int, frozenset[int]]
    memory: dict[int, int]
    #: of an edge in trouble: the outside edges that no way through what was damaged leads to
    sound: dict[int, frozenset[int]]
    bare: bool  #: whether some way leads through operations that save nothing, and so stays open when all is freed
    _order: list[_Record]
    _made: dict[int, _Record]
    _ways: dict[tuple[frozenset[int], frozenset[int]], Way] = field(default_factory=dict)

    def home(self, value: int) -> int:
        return self.memory.get(value, value)

    def through(self, edges: Iterable[int]) -> set[int]:
        """The edges that can still be come through in backward from these."""
        open_: set[int | None] = {e for e in edges if e not in self.trouble or self.sound.get(e)}
        return {e for record in _behind(self._order, self._made, open_) for e in record.edges}

    def way(self, edges: frozenset[int], wanted: frozenset[int]) -> Way:
        """What backward from these edges visits where only some edges are wanted."""
        found = self._ways.get((edges, wanted))
        if found is None:
            leads = set(wanted)
            on = []
            for record in reversed(_behind(self._order, self._made, set(edges))):
                if not leads.isdisjoint(record.feeds):
                    leads.update(record.edges)
                    on.append(record)
            found = self._ways[edges, wanted] = Way(
                next(((r.damage, r.step) for r in reversed(on) if r.damage), None),
                frozenset(m for r in on for _, m, _ in r.saved),
                frozenset(r.number for r in on if r.saved),
            )
        return found


def model(path: list[Step], edges: frozenset[int]) -> TapeModel:
    """Simulate the tape along a path, as far as the given edges are concerned."""
    memory: dict[int, int] = {}
    version: dict[int, int] = {}
    made: dict[int, _Record] = {}
    order: list[_Record] = []

    def op(s: Step) -> None:
        for o in s.operands:
            if type(o) is Ref and o.value not in memory:
                memory[o.value] = o.value
        home = memory[s.operands[0].value] if s.view else None
        for r in s.outs:
            memory[r.value] = r.value if home is None else home
        if not any(r.edge is not None for r in s.outs):
            return
        p = s.primitive
        assert p is not None
        keep, keep_output = [False] * len(s.operands), False
        for i, o in enumerate(s.operands):
            rule = p.rule(i) if type(o) is Ref and o.edge is not None else None
            if rule is not None:
                keep_output |= rule.saves_output
                for j in range(len(keep)):
                    keep[j] |= rule.saves(j)
        record = _Record(
            s,
            len(order),
            tuple(r.edge for r in s.outs if r.edge is not None),
            tuple(dict.fromkeys(o.edge for o in s.operands if type(o) is Ref and o.edge is not None)),
        )
        for o, k in zip(s.operands, keep, strict=True):
            if k and type(o) is Ref:
                m = memory[o.value]
                record.saved.append((o.value, m, version.get(m, 0)))
        if keep_output:
            for v in [r.value for r in s.outs]:
                record.saved.append((v, memory[v], version.get(memory[v], 0)))
        order.append(record)
        for e in record.edges:
            made[e] = record

    for s in path:
        match s.kind:
            case "input":
                memory.setdefault(s.outs[0].value, s.outs[0].value)
            case "op":
                op(s)
            case "write":
                target, value, whole = s.operands
                m = memory.setdefault(target.value, target.value)
                version[m] = version.get(m, 0) + 1
                memory[whole.value] = memory[value.value] = m
            case "function":
                order.append(
                    _Record(
                        s,
                        len(order),
                        tuple(r.edge for r in s.outs),
                        tuple(dict.fromkeys(r.edge for r in s.operands if r is not None and r.edge is not None)),
                        frees=s.options[0],
                    )
                )
                for e in order[-1].edges:
                    made[e] = order[-1]
            case "gradient":
                for inner in s.inner:
                    op(inner)
                n_y, _, _, retain, _ = s.options
                if not retain:
                    for record in _behind(order, made, {r.edge for r in s.operands[:n_y]}):
                        if record.saved or record.frees:
                            record.damage = FREED
    for record in order:
        if not record.damage and any(version.get(m, 0) != at for _, m, at in record.saved):
            record.damage = MODIFIED
    trouble: dict[int, tuple[str, Step]] = {}
    reaches: dict[int, frozenset[int]] = {}
    passes: dict[int, frozenset[int]] = {}
    saved: dict[int, frozenset[int]] = {}
    holders: dict[int, frozenset[int]] = {}
    sound: dict[int, frozenset[int]] = {}
    bare = False
    for e in edges:
        behind = _behind(order, made, {e})
        outside: set[int] = set()
        held: set[int] = set()
        through: set[int] = set()
        tainted: set[int] = set()
        held_back: set[int] = set()
        for record in behind:
            outside.update(f for f in record.feeds if f not in made)
            through.update(f for f in record.feeds if f in edges)
            held.update(m for _, m, _ in record.saved)
            if record.damage:
                trouble.setdefault(e, (record.damage, record.step))
            if record.damage or not tainted.isdisjoint(record.edges):
                tainted.update(record.feeds)
            if record.saved or record.frees or not held_back.isdisjoint(record.edges):
                held_back.update(record.feeds)
        reaches[e], passes[e], saved[e] = frozenset(outside), frozenset(through), frozenset(held)
        holders[e] = frozenset(record.number for record in behind if record.saved)
        if e in trouble:
            sound[e] = frozenset(outside - tainted)
        bare = bare or not held_back >= outside | through
    return TapeModel(trouble, reaches, passes, saved, holders, memory, sound, bare, order, made)


def _behind(order: list[_Record], made: dict[int, _Record], edges: set[int | None]) -> list[_Record]:
    """The records that backward from these edges visits, last first."""
    reach = {e for e in edges if e in made}
    if not reach:
        return []
    found = []
    for record in reversed(order):
        if not reach.isdisjoint(record.edges):
            found.append(record)
            reach.update(f for f in record.feeds if f in made)
    return found
