"""Kernels that are a chain of contractions: what an attention's have in common, whichever way they sum.

    chain(kernel) -> Chain | None
    limits(kernel, chain) -> Limits        where scores are minus infinity, as far as positions alone say it

    inner     contract(rows operand, walked operand) over numbers of a head        -> scores: batch, rows, walked
    between   anything pointwise; perhaps max over walked, and the sum over walked of exponentials under it
    outer     contract(scores, walked operand) over walked                         -> batch, rows, numbers of a head

A program of a GPU holds a tile of rows and goes along `walked` with a tile of scores at a time, which is never in memory. Max
and sum are taken online: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from flame.compiler.index_math import E, ex, names
from flame.compiler.kernel import Const, Contract, IndexOf, Kernel, Op, Reduce, domain, reads, stage


@dataclass(frozen=True, slots=True)
class Softmax:
    """max over walked, and sum over walked of power = exp(scores - under), `under` being made of the maximum."""

    top: str
    total: str
    scores: str
    under: str
    power: str
    op: str  #: exp or exp2


@dataclass(frozen=True, slots=True)
class Chain:
    """The roles of a kernel's axes and statements. A contraction stands with its operands in order: rows, walked."""

    batch: tuple[str, ...]
    rows: tuple[str, ...]
    walked: tuple[str, ...]
    inner: tuple[tuple[Contract, str, str], ...]
    outer: tuple[tuple[Contract, str, str], ...]
    softmax: Softmax | None


def chain(kernel: Kernel) -> Chain | None:
    """The roles, where a kernel is a chain; None where it is anything else."""
    if sum(isinstance(s, Contract) for s in kernel.statements) < 2:
        return None
    return _found(kernel)


@lru_cache(maxsize=256)
def _found(kernel: Kernel) -> Chain | None:
    contracts = [s for s in kernel.statements if isinstance(s, Contract)]
    depth = stage(kernel)
    inner = [c for c in contracts if not any(depth[v] for v in c.operands)]
    outer = [c for c in contracts if c not in inner]
    if not inner or not outer or len({c.axes for c in outer}) != 1:
        return None
    walked = frozenset(outer[0].axes)
    sided = [x for c in inner if (x := _sides(c, lambda v: walked <= kernel.domains[v])) is not None]
    summed = [x for c in outer if (x := _sides(c, lambda v: not depth[v])) is not None]
    if len(sided) < len(inner) or len(summed) < len(outer):
        return None
    space = kernel.domains[inner[0].name]
    if not walked <= space or any(kernel.domains[c.name] != space or walked.intersection(c.axes) for c in inner):
        return None
    of_walked = [kernel.domains[w] for _, _, w in (*sided, *summed)]
    shared = frozenset.intersection(*of_walked) - walked
    batch, rows = space & shared, space - shared - walked
    for c, a, _ in summed:
        if not kernel.domains[a] <= space or not batch | rows <= kernel.domains[c.name]:
            return None
    reductions = [s for s in kernel.statements if isinstance(s, Reduce)]
    softmax = None
    if reductions:
        softmax = _softmax(kernel, reductions, walked)
        if softmax is None:
            return None
    if softmax is not None and any(softmax.total in _upstream(kernel, a) for _, a, _ in summed):
        return None  # what is summed is divided by a sum that is not there yet
    if not rows or any(walked & domain(kernel, s) for s in kernel.stores):
        return None

    def ordered(axes: frozenset[str]) -> tuple[str, ...]:
        return tuple(a for a in kernel.axes if a in axes)

    return Chain(ordered(batch), ordered(rows), ordered(walked), tuple(sided), tuple(summed), softmax)


def _upstream(kernel: Kernel, v: str) -> set[str]:
    """A value and all that it is made from."""
    out, pending = set[str](), [v]
    while pending:
        x = pending.pop()
        if x not in out:
            out.add(x)
            pending += reads(kernel.definitions[x])
    return out


def _sides(c: Contract, is_walked: Callable[[str], bool]) -> tuple[Contract, str, str] | None:
    """The contraction and its operands, the walked one last; None unless just one is."""
    a, b = c.operands
    first, second = is_walked(a), is_walked(b)
    return None if first == second else (c, b, a) if first else (c, a, b)


def _softmax(kernel: Kernel, reductions: list[Reduce], walked: frozenset[str]) -> Softmax | None:
    """The two reductions of an online softmax."""
    if [s.op for s in reductions] != ["max", "sum"] or any(frozenset(s.axes) != walked for s in reductions):
        return None
    top, total = reductions
    power = kernel.definitions[total.operands[0]]
    if not isinstance(power, Op) or power.op not in ("exp", "exp2"):
        return None
    difference = kernel.definitions[power.operands[0]]
    if not isinstance(difference, Op) or difference.op != "sub" or difference.operands[0] != top.operands[0]:
        return None
    under = difference.operands[1]
    pending = [under]
    while pending:  # of the maximum and numbers alone
        v = pending.pop()
        s = kernel.definitions[v]
        if v != top.name and not isinstance(s, Const | Op):
            return None
        pending += [] if v == top.name else reads(s)
    return Softmax(top.name, total.name, top.operands[0], under, power.name, power.op)


# ---- where scores are minus infinity


@dataclass(frozen=True, slots=True)
class Looked:
    """A bound that is looked up for each row: `position`, one of walked axes, lies below `value + plus` (`upper`), or from there
    on."""

    position: E
    upper: bool
    value: str
    plus: int


@dataclass(frozen=True, slots=True)
class Limits:
    """`visible` are expressions: a score is minus infinity where one of them is negative; and bounds that rows look up, beyond
    which it is, too. `decided` are the selections that say so, each with the value that it gives where none is."""

    visible: tuple[E | Looked, ...]
    decided: dict[str, str]


def limits(kernel: Kernel, found: Chain) -> Limits:
    """What the selections among the scores say of positions: the bounds of a causal mask, of a window, of a length."""
    visible: list[E | Looked] = []
    decided: dict[str, str] = {}
    certain: set[str] = set()  #: conditions that hold where nothing is hidden
    if found.softmax is not None:
        pending = [found.softmax.scores]
    else:  # the one exponential that is made of scores
        depth, walked = stage(kernel), frozenset(found.walked)
        powers = [s for s in kernel.definitions.values() if isinstance(s, Op) and s.op in ("exp", "exp2") and depth[s.name]]
        pending = [s.operands[0] for s in powers if walked <= kernel.domains[s.name]] if len(powers) == 1 else []
    seen: set[str] = set()
    while pending:
        v = pending.pop()
        s = kernel.definitions[v]
        if v in seen or not isinstance(s, Op):
            continue
        seen.add(v)
        if s.op == "where" and _is_least(kernel, s.operands[2]):
            conditions, whole = _conditions(kernel, s.operands[0], frozenset(found.walked))
            visible += conditions
            if whole:
                decided[v] = s.operands[1]
                certain.add(s.operands[0])
            pending.append(s.operands[1])
        elif s.op == "mul" and isinstance(n := kernel.definitions[s.operands[1]], Const) and n.value > 0:
            pending.append(s.operands[0])
        elif s.op in ("sub", "add"):  # what is added to minus infinity changes nothing, or is no number
            pending.append(s.operands[0])
    for d in kernel.definitions.values():  # cotangents are chosen by the same conditions
        if isinstance(d, Op) and d.op == "where" and d.operands[0] in certain:
            decided[d.name] = d.operands[1]
    return Limits(tuple(dict.fromkeys(visible)), decided)


def _is_least(kernel: Kernel, v: str) -> bool:
    s = kernel.definitions[v]
    return isinstance(s, Const) and s.value == float("-inf")


def _conditions(kernel: Kernel, v: str, walked: frozenset[str]) -> tuple[list[E | Looked], bool]:
    """Expressions that are all non-negative, and bounds that all hold, wherever the bool `v` is true; and whether it is true
    wherever they are."""
    s = kernel.definitions[v]
    if not isinstance(s, Op):
        return [], False
    if s.op in ("logical_and", "bitwise_and"):
        (one, all_of_one), (two, all_of_two) = (_conditions(kernel, x, walked) for x in s.operands)
        return one + two, all_of_one and all_of_two
    if s.op not in _TURNED:
        return [], False
    op, (a, b) = s.op, s.operands
    left, right = _position(kernel, a), _position(kernel, b)
    if left is not None and right is not None:
        return [{"le": right - left, "lt": right - left - 1, "ge": left - right, "gt": left - right - 1}[op]], True
    if right is not None:
        op, a, b, left = _TURNED[op], b, a, right
    if left is None or kernel.definitions[b].dtype.kind not in "iu" or kernel.domains[b] & walked or stage(kernel)[b]:
        return [], False
    return [Looked(left, op in ("lt", "le"), b, int(op in ("le", "gt")))], True


#: comparisons, and what they are with their sides exchanged
_TURNED = {"le": "ge", "lt": "gt", "ge": "le", "gt": "lt"}


def _position(kernel: Kernel, v: str) -> E | None:
    """An integer value as an expression of positions."""
    s = kernel.definitions[v]
    match s:
        case Const() if s.dtype.kind in "iu":
            return ex(int(s.value))
        case IndexOf():
            return s.expr
        case Op() if s.op == "cast" and s.dtype.kind == "i":
            return _position(kernel, s.operands[0])
        case Op() if s.op in ("add", "sub"):
            terms = [_position(kernel, x) for x in s.operands]
            if terms[0] is None or terms[1] is None:
                return None
            return terms[0] + terms[1] if s.op == "add" else terms[0] - terms[1]
    return None


def coefficient(e: E, axis: str) -> int | None:
    """By what `axis` is multiplied in `e`; None where it stands in a product or a division."""
    out = 0
    for monomial, c in e.terms:
        if monomial == (axis,):
            out = c
        elif any(axis in names(E({(a,): 1})) for a in monomial):
            return None
    return out
