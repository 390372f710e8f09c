"""Small pointwise kernels of different sizes in one launch: the updates of a model's many small parameters.

    together(fused, target) -> Fused

Kernels that have nothing to do with each other become one over the longest of their arrays, each part masked to its own length.
A masked lane loads nothing, so what this costs is a few instructions; what it saves is a launch each. Lengths within a factor of
`RATIO` go together, and only where a kernel takes no longer than a launch does.

A group waits until something reads what one of its members makes, or the program ends, and runs there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from flame.compiler.graph import Node, Value
from flame.compiler.index_math import E, divisions, ex, names, var
from flame.compiler.kernel import Buffer, Contract, Kernel, Load, Reduce, Statement, Store, domain, expressions, rename
from flame.compiler.program import Decision, Fused, FusedKernel
from flame.compiler.target import Target
from flame.compiler.transform import merge_axes
from flame.ops.access import Cond

#: elements from which on a kernel is worth a launch of its own; lengths that go together; buffers and statements of a launch
LARGEST, RATIO, BUFFERS, STATEMENTS = 1 << 18, 64, 96, 600


@dataclass(slots=True)
class _Group:
    alone: Kernel  #: the first member as it was, for where it stays alone
    members: list[tuple[Kernel, dict[str, Value]]] = field(default_factory=list)
    made: set[Value] = field(default_factory=set)
    longest: int = 0
    shortest: int = 1 << 62

    def takes(self, kernel: Kernel, n: int) -> bool:
        held = sum(len(k.buffers) for k, _ in self.members) + len(kernel.buffers)
        length = sum(len(k.statements) for k, _ in self.members) + len(kernel.statements)
        fits = max(self.longest, n) <= RATIO * min(self.shortest, n)
        return fits and held <= BUFFERS and length <= STATEMENTS


def together(fused: Fused, target: Target) -> Fused:
    """The steps with small independent pointwise kernels joined. Only on GPUs: on a CPU a kernel costs no launch."""
    if not target.is_gpu:
        return fused
    out = Fused(decisions=list(fused.decisions))
    open_groups: list[_Group] = []

    def close(groups: list[_Group]) -> None:
        for g in groups:
            open_groups.remove(g)
            if len(g.members) == 1:
                out.steps.append((g.alone, g.members[0][1], None))
                continue
            kernel, buffers = _joined(g.members, g.longest)
            out.steps.append((kernel, buffers, None))
            names = ", ".join(k.name for k, _ in g.members)
            reason = f"{len(g.members)} small kernels that have nothing to do with each other share a launch"
            out.decisions.append(Decision("fused", names, reason))

    for i, step in enumerate(fused.steps):
        reads = set(step.values) if isinstance(step, Node) else _values(step, ("in", "inout"))
        close([g for g in open_groups if not g.made.isdisjoint(reads)])
        flat = None if isinstance(step, Node) or step[2] is not None else flattened(step[0])
        if flat is None:
            if i in fused.symbols:
                out.symbols[len(out.steps)] = fused.symbols[i]
            out.steps.append(step)
            continue
        assert not isinstance(step, Node)
        n = flat.axes["x"].const or 0
        group = next((g for g in open_groups if g.takes(flat, n)), None)
        if group is None:
            group = _Group(step[0])
            open_groups.append(group)
        group.members.append((flat, step[1]))
        group.made |= _values(step, ("out", "inout"))
        group.longest, group.shortest = max(group.longest, n), min(group.shortest, n)
    close(list(open_groups))
    return out


def _values(step: FusedKernel, roles: tuple[str, ...]) -> set[Value]:
    kernel, values, _ = step
    return {v for b, v in values.items() if kernel.buffers[b].role in roles}


def flattened(kernel: Kernel) -> Kernel | None:
    """The kernel over a single axis "x", if it is small, pointwise, and can be written so."""
    if kernel.symbols or any(isinstance(s, Reduce | Contract) for s in kernel.statements):
        return None
    points = 1
    for e in kernel.axes.values():
        if e.const is None:
            return None
        points *= e.const
    if not 1 < points <= LARGEST:
        return None
    merged = merge_axes(kernel)
    if len(merged.axes) != 1 or any(not domain(merged, s) for s in merged.stores):
        return None
    if any([*divisions(e)] or any(n[0] == "%" for n in names(e)) for s in merged.statements for e in expressions(s)):
        return None  # an address beyond a part's length is only proved to be masked where it is a sum
    (axis,) = merged.axes
    return merged if axis == "x" else rename(merged, {axis: "x"})


def _joined(members: list[tuple[Kernel, dict[str, Value]]], longest: int) -> tuple[Kernel, dict[str, Value]]:
    """One kernel that does what all members do; what several read is one buffer."""
    held: dict[Value, str] = {}
    buffers: dict[str, Buffer] = {}
    values: dict[str, Value] = {}
    statements: list[Statement] = []
    ranges: dict[str, tuple[E, E]] = {}
    for i, (kernel, given) in enumerate(members):
        mapping = {f"%{v}": f"%p{i}_{v}" for v in kernel.definitions}
        for b in kernel.buffers.values():
            v = given[b.name]
            if b.role == "in" and v in held:
                mapping[b.name] = held[v]
                continue
            mapping[b.name] = f"p{i}_{b.name}"
            if b.role == "in":
                held[v] = mapping[b.name]
            values[mapping[b.name]] = v
        part = rename(kernel, mapping)
        n = part.axes["x"]
        inside = () if n == longest else (Cond(n - 1 - var("x")),)
        buffers |= {b: part.buffers[b] for b in part.buffers if b not in buffers}
        statements += [_masked(part, s, inside) for s in part.statements]
        ranges |= part.values
    name = f"{members[0][0].name}_and_{len(members) - 1}_more"
    return Kernel(name, buffers, {"x": ex(longest)}, {}, statements, ranges), values


def _masked(kernel: Kernel, s: Statement, inside: tuple[Cond, ...]) -> Statement:
    """A load or store that varies along x, where x lies inside the part."""
    if inside and isinstance(s, Load | Store) and "x" in domain(kernel, s):
        return replace(s, mask=(*s.mask, *inside))
    return s
