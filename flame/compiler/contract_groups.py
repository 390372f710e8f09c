"""The axes of a contraction in four groups by what varies with them: rows, columns, batch and what is summed.

    groups_of(kernel, nest, target) -> Groups          None where tiles of registers do not pay
    grouped(kernel, groups) -> Kernel                  over one axis a group

Each group made one axis, every contraction reads left[batch, m, k] * right[batch, n, k].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flame.compiler.cpu_cost import cone
from flame.compiler.index_math import E, ex, simplify, subst, var
from flame.compiler.kernel import Contract, IndexOf, Kernel, Load, Statement, Store
from flame.compiler.llvm_axes import product, size, unit_axes
from flame.compiler.nests import Nest
from flame.compiler.target_cpu import CpuTarget
from flame.ops.access import Cond

M, N, K, BATCH = "group_m", "group_n", "group_k", "group_b"
TAP, REST = "tap", "group_k_rest"  #: k by two axes, see `by_taps`
MOST_TAPS = 25


@dataclass(frozen=True)
class Groups:
    """The axes of a contraction by role; `left` and `right` are its factors, exchanged where that serves the result."""

    contract: Contract
    left: str
    right: str
    m: tuple[str, ...]
    n: tuple[str, ...]
    k: tuple[str, ...]
    batch: tuple[str, ...]


def groups_of(kernel: Kernel, nest: Nest, target: CpuTarget) -> Groups | None:
    """The groups, if this nest is one contraction with stores at its points, worth tiles; None: rows serve it better."""
    if len(nest.reduces) != 1 or not isinstance(nest.reduces[0], Contract):
        return None
    c = nest.reduces[0]
    first = next(s for s in nest.sweeps if s.reduces)
    if first.stores or any(s.axes for s in nest.sweeps if s is not first):
        return None
    left, right = c.operands
    on_left, on_right = kernel.domains[left], kernel.domains[right]
    summed = frozenset(c.axes)
    if not summed or not summed <= on_left & on_right:
        return None

    def order(axes: frozenset[str]) -> tuple[str, ...]:
        return tuple(a for a in kernel.axes if a in axes)

    m, n, batch = order(on_left - on_right), order(on_right - on_left), order(on_left & on_right - summed)
    outputs = [unit_axes(kernel, t) for t in nest.stores]
    if any(unit & set(m) for unit in outputs) and not any(unit & set(n) for unit in outputs):
        left, right, m, n = right, left, n, m
    got = Groups(c, left, right, m, n, order(summed), batch)
    return got if worth_tiles(kernel, got, target) else None


def worth_tiles(kernel: Kernel, g: Groups, target: CpuTarget) -> bool:
    """Tiles pay for packing only with several rows, a few vectors of columns and some depth."""
    rows, columns, depth = (size(kernel, product(kernel, axes)) for axes in (g.m, g.n, g.k))
    if not g.m or not g.n:
        return False
    known = all(product(kernel, axes).const is not None for axes in (g.m, g.n, g.k))
    if not known:
        return True  # sizes are the least there may be
    return rows >= 4 and columns >= target.lanes_f32 and depth >= 4 and rows * columns * depth >= 1 << 13


def taps_of(kernel: Kernel, g: Groups) -> int:
    """How many points the last short axes of k have (the window of a convolution), if there is another axis before them."""
    taps = 1
    for a in reversed(g.k[1:]):
        n = kernel.axes[a].const
        if n is None or taps * n > MOST_TAPS:
            break
        taps *= n
    return taps


def loads_under(kernel: Kernel, factor: str) -> list[Load]:
    """The loads that a factor's values come from."""
    return [s for v in cone(kernel, Store("", (), factor)) if isinstance(s := kernel.definitions[v], Load)]


def positions(kernel: Kernel, factor: str) -> list[E]:
    """Every position that a factor's values depend on."""
    found: list[E] = []
    for v in cone(kernel, Store("", (), factor)):
        s = kernel.definitions[v]
        if isinstance(s, IndexOf):
            found.append(s.expr)
        elif isinstance(s, Load):
            found += [*s.index, *(c.expr for c in s.mask)]
    return found


def by_taps(kernel: Kernel, taps: int) -> Kernel:
    """A grouped kernel with k as taps * REST + TAP, for packing tap by tap: what depends on the tap alone is computed once."""
    axes: dict[str, E] = {}
    for a, e in kernel.axes.items():
        axes |= {REST: e // taps, TAP: ex(taps)} if a == K else {a: e}
    return over(kernel, axes, {K: var(REST) * taps + var(TAP)})


def grouped(kernel: Kernel, g: Groups) -> Kernel:
    """The same kernel over one axis a group: the old axes are digits of the new ones, the last the fastest."""
    axes: dict[str, E] = {}
    at: dict[str, E | int] = {}
    for name, members in ((BATCH, g.batch), (M, g.m), (N, g.n), (K, g.k)):
        axes[name] = product(kernel, members)
        at |= digits(kernel, name, members)
    return over(kernel, axes, at, g.contract)


def digits(kernel: Kernel, name: str, members: tuple[str, ...]) -> dict[str, E | int]:
    """Some axes as the digits of one, the last the fastest."""
    out: dict[str, E | int] = {}
    rest: E = var(name)
    for i, a in enumerate(reversed(members)):
        out[a] = rest if i == len(members) - 1 else rest % kernel.axes[a]
        rest = rest // kernel.axes[a]
    return out


def over(kernel: Kernel, axes: dict[str, E], at: Mapping[str, E | int], contract: Contract | None = None) -> Kernel:
    """The kernel over other axes, where the old ones are these expressions of them; `contract` sums over K then."""
    bounds = Kernel(kernel.name, kernel.buffers, axes, kernel.symbols, (), kernel.values).bounds

    def e(x: E) -> E:
        return simplify(subst(x, at), bounds)

    def conds(mask: tuple[Cond, ...]) -> tuple[Cond, ...]:
        return tuple(Cond(e(c.expr), c.kind) for c in mask)

    out: list[Statement] = []
    for s in kernel.statements:
        match s:
            case Load():
                s = Load(s.name, s.buffer, tuple(map(e, s.index)), conds(s.mask), s.other, s.dtype, s.note)
            case Store():
                s = Store(s.buffer, tuple(map(e, s.index)), s.value, conds(s.mask))
            case IndexOf():
                s = IndexOf(s.name, e(s.expr), s.dtype)
            case Contract() if s is contract:
                s = Contract(s.name, s.operands, (K,), s.dtype, s.note)
        out.append(s)
    return Kernel(kernel.name, kernel.buffers, axes, kernel.symbols, out, kernel.values)
