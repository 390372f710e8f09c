"""One kernel from a group of graph values, by pulling: to store an element, ask which elements it is made from.

    lower(roots, in_memory) -> Lowered          raises Refused(reason) where the roots do not make one kernel

The LEAD root gives the kernel its axes, one for each dimension that is not 1. Every value is then asked for at an index (a
tuple of expressions over the axes) and under a GUARD (conditions outside which nobody looks at it), down to values in memory,
which are loads. What a primitive reads is said by its own record (`flame.ops.access`), so that nothing here knows a
primitive by name. The other roots stand where the lead reads them, or where their shape falls onto the axes.

A kernel keeps to one form, which is what schedules and renderers count on, and what makes lowering fusion's legality test:

    pointwise     every store covers all axes
    reduction     all reductions sweep the same axes; stores cover all axes, or all but the swept ones
    contraction   one contraction, whose summed axes nothing else names; stores cover all other axes

An index covers axes when it is a one-to-one map from their points to the elements of the shape: through permutations and
reshapes alike, its flat address is a mixed-radix number of the axes. A reduction or contraction is only computed at such an
index, once for each of its elements. Where a division stands in the way (group norm reads statistics at channel // k), the
lead's axis is split in two and lowering starts again.

float16 and bfloat16 are computed in float32 and rounded where they are stored or cast, or enter a contraction. Arrays of no
elements are never read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flame import dtypes
from flame.compiler.dims import Symbols, hint, same_sizes
from flame.compiler.graph import Node, Operand, Value, identifier
from flame.compiler.index_math import ZERO, E, divisions, ex, implied, names, simplify, simplify_conds, var
from flame.compiler.kernel import Buffer, Contract, Kernel, Reduce, Store, names_in
from flame.compiler.writer import NO_GUARD, Guard, Writer, compute_dtype, flatten, single_axis
from flame.dtypes import dtype
from flame.errors import Refused
from flame.ops.access import Choice, Cond, Contraction, Index, Read, Reduction
from flame.primitive import Number

#: what a reduction over nothing gives
_IDENTITY: dict[str, Number] = {"sum": 0, "prod": 1, "any": False, "all": True}
_MOST_SPLITS = 8
NOTHING: Mapping[Node, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Lowered:
    """A kernel, and the graph value that each of its buffers is."""

    kernel: Kernel
    buffers: dict[str, Value]


def lower(
    roots: Sequence[Value],
    in_memory: Callable[[Value], bool],
    name: str = "",
    symbols: Symbols | None = None,
    params: Mapping[Node, dict[str, Any]] = NOTHING,
) -> Lowered:
    """One kernel that stores `roots` and loads what `in_memory` (roots themselves are computed).

    Raises Refused with the reason where the group does not have one of the forms above. `name` replaces the name that the
    kernel gets from what it does; `symbols` are those that shapes and parameters may name; `params` are those of some movements
    in the place of their own.
    """
    lead = max(reversed(roots), key=_leadership)  # of equals the last: it reads the others, and so says where they stand
    extents: list[tuple[int, ...]] = [(d,) for d in _walked(lead)]
    for _ in range(_MOST_SPLITS):
        try:
            return Lowering(roots, lead, in_memory, extents, symbols, params).finish(name)
        except _Split as cut:
            old = extents[cut.dim]
            parts = (old[cut.place] // cut.inner, cut.inner)
            extents[cut.dim] = (*old[: cut.place], *parts, *old[cut.place + 1 :])
    raise Refused(f"{describe(lead)}: its axes would have to be cut more than {_MOST_SPLITS} times")


def reduced_operand(v: Value) -> Value | None:
    """What a kernel would reduce to make `v`; None if `v` is no reduction of something."""
    node = v.node
    if node is None or node.primitive.kind != "reduce" or node.primitive.lower is None:
        return None
    x = node.operands[0]
    return x if isinstance(x, Value) and x.spec.numel else None


def describe(x: Value | Node) -> str:
    """A node or value in words, for a reason: softmax's sum %v7."""
    node = x.node if isinstance(x, Value) else x
    if node is None:
        return f"the input %{x.name}" if isinstance(x, Value) else "an input"
    of = f"{node.note}'s " if node.note and node.note != node.primitive.name else ""
    return f"{of}{node.primitive.name} %{node.outputs[0].name}"


def _walked(root: Value) -> tuple[int, ...]:
    """The shape whose points a kernel with this root alone walks."""
    x = reduced_operand(root)
    return root.shape if x is None else x.shape


def _leadership(root: Value) -> tuple:
    """How fit a root is to give the kernel its axes: by points walked; then those that cover them; then pointwise ones."""
    pointwise = root.node is not None and root.node.primitive.scalar is not None
    return (hint(math.prod(_walked(root))), reduced_operand(root) is None, pointwise, root.ndim)


class _Split(Exception):
    """Start again, with axis number `place` of the lead's dimension `dim` cut into (extent // inner, inner)."""

    def __init__(self, dim: int, place: int, inner: int):
        super().__init__(dim, place, inner)
        self.dim, self.place, self.inner = dim, place, inner


def _at_operand_of_reduction(node: Node, kept: Sequence[E], reduced: Sequence[E], shape: tuple[int, ...]) -> Index:
    """Where a reduction's operand is read: `kept` runs over the dimensions that stay, `reduced` over the others (not 1)."""
    dim = node.params["dim"]
    stays, runs = iter(kept), iter(reduced)
    return tuple((ZERO if n == 1 else next(runs)) if i in dim else next(stays) for i, n in enumerate(shape))


def _at_result_of_reduction(node: Node, index: Index) -> Index:
    """Where a reduction's result stands whose operand is read at `index`."""
    dim, keep = node.params["dim"], node.params["keepdim"]
    return tuple(ZERO if i in dim else e for i, e in enumerate(index) if keep or i not in dim)


class Lowering(Writer):
    """The lowering of one group; without a lead, of values that are asked for one by one (`value`)."""

    def __init__(
        self,
        roots: Sequence[Value],
        lead: Value | None,
        in_memory: Callable[[Value], bool],
        extents: list[tuple[int, ...]],
        symbols: Symbols | None,
        params: Mapping[Node, dict[str, Any]],
    ):
        super().__init__(symbols)
        self.params = params
        self.in_memory = in_memory
        self.values: dict[str, Value] = {}  #: buffer -> graph value
        self.words: dict[str, bool] = {}  #: what is computed, in order -> is it a word worth a place in the name?
        self.roots: dict[Value, list[Index]] = {r: [] for r in roots}  #: root -> where it is read
        self.swept: tuple[str, ...] | None = None  #: the axes that reductions or the contraction remove
        self.contraction: Node | None = None
        self._covers: list[tuple[Node, frozenset[str]]] = []
        self._memo: dict[tuple, str] = {}
        self._inputs: dict[Value, str] = {}
        self._place_of: dict[str, tuple[int, int]] = {}  #: axis -> dimension of the lead, place among that dimension's axes
        self._stores: list[tuple[Value, Index, str, frozenset[str]]] = []
        if lead is None:
            return
        self._lead(lead, extents)
        points = math.prod(self.axes.values())
        rest = [r for r in self.roots if r is not lead]
        for r in sorted(rest, key=lambda r: (math.prod(_walked(r)) != points, reduced_operand(r) is None)):
            self._follow(r)

    # ---- where roots are stored

    def _lead(self, lead: Value, extents: list[tuple[int, ...]]) -> None:
        """Make the axes of the lead and store it."""
        reduction = lead.node if reduced_operand(lead) is not None else None
        removed = frozenset(reduction.params["dim"]) if reduction is not None else frozenset()
        full: list[E] = []
        for dim, parts in enumerate(extents):
            e = ZERO
            for place, n in enumerate(parts):
                if n != 1:
                    a = self.axis(n, "r" if dim in removed else "i")
                    self._place_of[a] = (dim, place)
                    e = e * n + var(a)
            full.append(e)
        if reduction is None:
            self._store(lead, tuple(full))
        else:
            self.swept = tuple(a for a, (dim, _) in self._place_of.items() if dim in removed) or None
            self._store(lead, _at_result_of_reduction(reduction, tuple(full)))

    def _follow(self, r: Value) -> None:
        """Store a root that is not the lead: where it was read, if that covers it, else where its shape falls."""
        for index in self.roots[r]:
            if self.cover(index, r.shape) is not None:
                return self._store(r, index)
        all_axes = tuple(self.axes)
        if reduced_operand(r) is not None:
            assert r.node is not None
            operand = self.spread(_walked(r), all_axes)
            place = None if operand is None else _at_result_of_reduction(r.node, operand)
        else:
            place = self.spread(r.shape, all_axes)
            if place is None and self.swept:
                place = self.spread(r.shape, tuple(a for a in all_axes if a not in self.swept))
        if place is None:
            raise Refused(f"{describe(r)} walks {list(_walked(r))}, the kernel {list(self.axes.values())}")
        self._store(r, place)

    def _store(self, r: Value, index: Index) -> None:
        cover = self.cover(index, r.shape) if r.spec.numel else frozenset(self.axes)
        if cover is None:
            raise Refused(f"{describe(r)} would be stored at {_show(index)}, not once for each of its elements")
        self._stores.append((r, index, self.narrow(self.value(r, index, NO_GUARD), r.dtype), cover))

    def _must_cover(self, node: Node, index: Index) -> frozenset[str]:
        """The axes that cover the result of a reduction or contraction. Raises Refused, or _Split where that may help."""
        cover = self.cover(index, node.output.shape)
        if cover is None:
            self._split_divided(index)
            raise Refused(f"{describe(node)} is read at {_show(index)}, not once for each of its elements")
        return cover

    def _split_divided(self, index: Index) -> None:
        """Raise _Split if `index` divides an axis of the lead by one of its factors."""
        for e in index:
            for d in divisions(e):
                a, k = single_axis(d.numerator), d.divisor.const
                if a in self._place_of and k is not None and self.axes[a] % k == 0:
                    raise _Split(*self._place_of[a], k)

    # ---- pulling

    def value(self, v: Operand, index: Index, guard: Guard, d: dtype | None = None) -> str:
        """The kernel value of an element of `v`, or of a number, which is read in the dtype `d`."""
        if not isinstance(v, Value):
            assert d is not None
            return self.const(v, d)
        key = (v, index, guard)
        name = self._memo.get(key)
        if name is None:
            name = self._memo[key] = self._pull(v, index, guard)
        return name

    def _pull(self, v: Value, index: Index, guard: Guard) -> str:
        node = v.node
        if v.spec.numel == 0:
            return self.const(0, v.dtype)
        if v in self.roots:
            self.roots[v].append(index)
        elif self.in_memory(v):
            return self._load(v, index, guard)
        if node is None:
            return self._load(v, index, guard)
        p = node.primitive
        if p.scalar is not None:
            name = self._elementwise(node, index, guard)
        elif p.lower is None:
            raise Refused(f"{describe(node)} is a library call")
        elif p.kind == "reduce":
            name = self._reduce(node, index)
        elif p.kind == "contract":
            name = self._contract(node, index)
        else:
            got = p.lower(_At(self, node, guard), index, *_specs(node), **self.params.get(node, node.params))
            name = self._read(node, got, guard) if isinstance(got, Read) else got
        self._speak(node)
        return name

    def _speak(self, node: Node) -> None:
        worth = node.primitive.kind not in ("movement", "create")
        word = node.note or node.primitive.name
        self.words[word] = worth or self.words.get(word, False)

    def _load(self, v: Value, index: Index, guard: Guard, fill: Number | None = None) -> str:
        """An element of memory. With `fill`, the value outside the guard; without, nobody asks for it there."""
        inside = self.inside(v.shape, index, NO_GUARD, trusting=not guard)
        if not inside and not (guard and self.inside(v.shape, index, guard)):
            raise Refused(f"{describe(v)} is read at {_show(index)}, which is not proved to lie in {list(v.shape)}")
        b = self._inputs.get(v)
        if b is None:
            b = self._inputs[v] = f"in{len(self._inputs)}"
            self.buffers[b] = Buffer(b, v.dtype, tuple(map(ex, v.shape)))
            self.values[b] = v
        return self.load(b, index, guard if fill is not None or not inside else NO_GUARD, 0 if fill is None else fill)

    def _elementwise(self, node: Node, index: Index, guard: Guard) -> str:
        p, d = node.primitive, node.output.dtype
        like = d if p.name == "where" else next((x.dtype for x in node.values), d)
        args = []
        for i, x in enumerate(node.operands):
            if isinstance(x, Value):
                behind = len(index) - x.ndim
                at = tuple(ZERO if n == 1 else index[behind + j] for j, n in enumerate(x.shape))
                args.append(self.value(x, at, guard))
            else:
                args.append(self.const(x, dtypes.bool_ if p.name == "where" and i == 0 else like))
        if p.name == "cast":  # with where, the words that the kernel IR has of its own
            return self.cast(args[0], d, _note(node))
        if p.name == "bitcast":
            return self.widen(self.op("bitcast", (self.narrow(args[0], like),), d, _note(node)))
        if p.name == "copy":
            return args[0]
        if node.params:
            raise Refused(f"{describe(node)} has parameters {sorted(node.params)}, which a scalar operation does not take")
        return self.op(p.name, args, compute_dtype(d), _note(node))

    def _read(self, node: Node, read: Read, guard: Guard) -> str:
        """The first choice whose conditions hold, as nested selects; a masked load where that says it all."""
        d = node.output.dtype
        picks: list[tuple[Guard, str]] = []
        last: str | None = None
        for n, choice in enumerate(read.choices):
            both = simplify_conds((*guard, *choice.conds), self.bounds)
            own = simplify_conds(choice.conds, self.bounds)
            if both is None or own is None:
                continue
            own = tuple(c for c in own if c.kind != "ge" or not guard or not implied(c.expr, guard, self.bounds))
            index = self._simplified(choice.index)
            x = node.operands[choice.operand]
            if not own:
                last = self.value(x, index, both, d)
                break
            if n == len(read.choices) - 1:
                last = self._masked(x, index, both, read.fill)
                if last is not None:
                    break
            picks.append((own, self.value(x, index, both, d)))
            if len(own) == 1 and own[0].kind == "ge":  # the choices below are for where it does not hold
                guard = simplify_conds((*guard, Cond(-own[0].expr - 1)), self.bounds) or guard
        if last is None:
            last = self.const(read.fill, d)
        for conds, v in reversed(picks):
            last = self.op("where", (self.condition(conds), v, last), compute_dtype(d), _note(node))
        return last

    def _masked(self, x: Operand, index: Index, conds: Guard, fill: Number) -> str | None:
        """`x` where the conditions hold and `fill` elsewhere, if views alone stand between it and memory: one load."""
        while isinstance(x, Value) and x not in self.roots and x.spec.numel:
            node = x.node
            if self.in_memory(x) or node is None:
                return self._load(x, index, conds, fill)
            p = node.primitive
            if p.kind != "movement" or p.lower is None:
                return None
            read = p.lower(_At(self, node, conds), index, *_specs(node), **self.params.get(node, node.params))
            if not isinstance(read, Read) or len(read.choices) != 1:
                return None
            (choice,) = read.choices
            own = simplify_conds(choice.conds, self.bounds)
            if own != () and repr(float(read.fill)) != repr(float(fill)):
                return None
            both = None if own is None else simplify_conds((*conds, *own), self.bounds)
            if both is None:
                return self.const(fill, x.dtype)
            self._speak(node)
            x, index, conds = node.operands[choice.operand], self._simplified(choice.index), both
        return None

    def _simplified(self, index: Index) -> Index:
        return tuple(simplify(ex(e), self.bounds) for e in index)

    # ---- reductions and contractions

    def _reduce(self, node: Node, index: Index) -> str:
        p, x, out = node.primitive, node.operands[0], node.output
        reduction = p.lower if isinstance(p.lower, Reduction) else p.lower(**node.params)
        op, acc = reduction.op, compute_dtype(out.dtype)
        if not isinstance(x, Value):
            raise Refused(f"{describe(node)} reduces a number")
        if x.spec.numel == 0:
            if op not in _IDENTITY:
                raise Refused(f"{describe(node)} reduces no elements")
            return self.const(_IDENTITY[op], out.dtype)
        if op == "sum" and self._is_bare_contraction(x):
            return self._summed_contraction(node, x, index)
        if self.contraction is not None:
            raise Refused(f"{describe(node)} reduces, and {describe(self.contraction)} contracts: a kernel does one of the two")
        cover = self._must_cover(node, index)
        dim, keep = node.params["dim"], node.params["keepdim"]
        extents = [x.shape[i] for i in dim if x.shape[i] != 1]
        reduced, axes = self._sweep(node, extents, cover) if extents else ([], ())
        kept = [e for i, e in enumerate(index) if not keep or i not in dim]
        if axes:
            self._covers.append((node, cover))
        v = self.value(x, _at_operand_of_reduction(node, kept, reduced, x.shape), NO_GUARD)
        if op in ("any", "all"):
            v = self.cast(v, dtypes.bool_)
        elif op in ("argmax", "argmin"):
            v = self.cast(v, dtypes.int32) if x.dtype.kind == "b" else v
        elif x.dtype.kind == "b" and op in ("max", "min"):
            op = "any" if op == "max" else "all"
        else:
            v = self.cast(v, acc)
        return self._over(node, op, v, axes, acc)

    def _sweep(self, node: Node, extents: list[int], cover: frozenset[str]) -> tuple[list[E], tuple[str, ...]]:
        """Indices that run over `extents` (none of them 1), and the axes that they run along, in their order.

        The axes are those that the kernel sweeps already; or those that the result does not vary with; or, where it varies
        with all there are, new ones.
        """
        axes = self.swept
        if axes is None:
            axes = tuple(a for a in self.axes if a not in cover) or tuple([self.axis(n, "r") for n in extents])
        if not cover.isdisjoint(axes) or math.prod(self.axes[a] for a in axes) != math.prod(extents):
            here = "x".join(str(self.axes[a]) for a in axes) or "nothing"
            raise Refused(f"{describe(node)} sweeps {'x'.join(map(str, extents))}, the kernel {here}")
        self.swept = axes
        sizes = [self.axes[a] for a in axes]
        if same_sizes(sizes, extents):
            left, ordered = list(axes), []
            for n in extents:
                a = next(a for a in left if self.axes[a] == n)
                left.remove(a)
                ordered.append(a)
            return [var(a) for a in ordered], tuple(ordered)
        return list(self.unflatten(flatten([var(a) for a in axes], sizes), extents)), axes

    def _over(self, node: Node, op: str, v: str, axes: tuple[str, ...], acc: dtype) -> str:
        """Reduce `v` over axes, some of which it may not depend on."""
        here = tuple(a for a in axes if a in self.domains[v])
        times = math.prod(self.axes[a] for a in axes if a not in here)
        if op in ("argmax", "argmin"):
            if not here:
                return self.const(0, acc)
            if times != 1:
                raise Refused(f"{describe(node)} looks along axes that its operand does not depend on")
        if times != 1 and op == "prod":
            raise Refused(f"{describe(node)} is a power: its operand does not depend on the axes reduced")
        if here:
            domain = self.domains[v] - frozenset(here)
            v = self.emit(Reduce, op, (v,), here, acc, domain=domain, note=_note(node))
        return self.op("mul", (v, self.number(times, acc)), acc) if times != 1 and op == "sum" else v

    def _is_bare_contraction(self, x: Value) -> bool:
        """Would `x` be contracted in this kernel, for nobody but the one who asks?"""
        made = x.node is not None and x.node.primitive.kind == "contract" and x.node.primitive.lower is not None
        return made and x not in self.roots and not self.in_memory(x) and not self._covers

    def _summed_contraction(self, node: Node, x: Value, index: Index) -> str:
        """A sum over dimensions of a contraction: one contraction that sums over more (a batched weight gradient)."""
        assert x.node is not None
        cover = self._once(node, index, self.swept or ())
        dim, keep = node.params["dim"], node.params["keepdim"]
        extents = [x.shape[i] for i in dim if x.shape[i] != 1]
        reduced, axes = self._sweep(node, extents, cover) if extents else ([], ())
        kept = [e for i, e in enumerate(index) if not keep or i not in dim]
        return self._contraction(x.node, _at_operand_of_reduction(node, kept, reduced, x.shape), cover, axes)

    def _contract(self, node: Node, index: Index) -> str:
        if self.swept is not None:
            other = "another contraction" if self.contraction is not None else "reductions"
            raise Refused(f"{describe(node)}: a kernel holds one contraction, and this one has {other} already")
        return self._contraction(node, index, self._once(node, index, ()), ())

    def _once(self, node: Node, index: Index, removed: Sequence[str]) -> frozenset[str]:
        """The axes that cover a contraction's result: all there are, but for those that are removed."""
        cover = self._must_cover(node, index)
        again = math.prod(n for a, n in self.axes.items() if a not in cover and a not in removed)
        if again != 1:
            raise Refused(f"{describe(node)} would be computed {again} times")
        return cover

    def _contraction(self, node: Node, index: Index, cover: frozenset[str], also: tuple[str, ...]) -> str:
        """The contraction `node` at `index`, summed over the axes `also` too."""
        contraction: Contraction = node.primitive.lower(index, *_specs(node), **node.params)
        acc = compute_dtype(node.output.dtype)
        if 0 in contraction.extents:
            return self.const(0, acc)
        summed = tuple(ZERO if n == 1 else var(self.axis(n, "r")) for n in contraction.extents)
        axes = (*also, *(a for e in summed for a in names(e)))
        self.swept, self.contraction = axes, node
        self._covers.append((node, cover))
        a, b = (self._factor(node, side(summed)) for side in (contraction.left, contraction.right))
        if axes and all(frozenset(axes) <= self.domains[v] for v in (a, b)):
            domain = (self.domains[a] | self.domains[b]) - frozenset(axes)
            return self.emit(Contract, (a, b), axes, acc, domain=domain, note=_note(node))
        factors = [
            self.cast(v, acc) for v, x in ((a, node.operands[0]), (b, node.operands[1])) if isinstance(x, Value) or x != 1
        ]
        product = self.op("mul", factors, acc, _note(node)) if len(factors) == 2 else factors[0]
        return self._over(node, "sum", product, axes, acc)

    def _factor(self, node: Node, choice: Choice) -> str:
        """One operand's element in the dtype it is stored in, 0 where the conditions do not hold."""
        x = node.operands[choice.operand]
        if not isinstance(x, Value):
            return self.const(x, node.output.dtype)
        index = self._simplified(choice.index)
        self._split_divided(index)
        conds = simplify_conds(choice.conds, self.bounds)
        if conds is None:
            return self.narrow(self.const(0, x.dtype), x.dtype)
        if not conds:
            return self.narrow(self.value(x, index, NO_GUARD), x.dtype)
        v = self._masked(x, index, conds, 0)
        if v is None:
            picked = (self.condition(conds), self.value(x, index, conds), self.const(0, x.dtype))
            v = self.op("where", picked, compute_dtype(x.dtype))
        return self.narrow(v, x.dtype)

    # ---- the end

    def finish(self, name: str) -> Lowered:
        """Check the kernel's form, and write its stores."""
        everything = frozenset(self.axes)
        kept = everything - frozenset(self.swept or ())
        for node, cover in self._covers:
            if cover != kept:
                again = math.prod(self.axes[a] for a in kept - cover)
                raise Refused(f"{describe(node)} would be computed {again} times")
        statements = list(self.statements)
        for n, (r, index, v, cover) in enumerate(self._stores):
            if cover != kept and (cover != everything or self.contraction is not None):
                raise Refused(f"{describe(r)} covers {sorted(cover)} of the axes {sorted(everything)}")
            if not self.domains[v] <= cover:
                raise Refused(f"{describe(r)} varies along {sorted(self.domains[v] - cover)}, where it is not stored")
            b = f"out{n}"
            self.buffers[b] = Buffer(b, r.dtype, tuple(map(ex, r.shape)), "out")
            self.values[b] = r
            statements.append(Store(b, index, v))
        used = frozenset().union(*self.domains.values(), *(cover for *_, cover in self._stores))
        axes = {a: ex(n) for a, n in self.axes.items() if a in used}
        ranges = {v: (lo, hi) for v, (lo, hi) in self.bounds.values.items() if lo is not None and hi is not None}
        named = Kernel("", self.buffers, axes, self.bounds.symbols, statements, ranges)
        symbols = Symbols(self.bounds.symbols, self.bounds.facts).used_by(names_in(named))
        kernel = Kernel(name or self._name(used), self.buffers, axes, symbols, statements, ranges)
        return Lowered(kernel, self.values)

    def _name(self, used: frozenset[str]) -> str:
        """What the kernel does, and over how much: softmax_2048x1024."""
        words = [w for w, worth in self.words.items() if worth] or list(self.words) or ["copy"]
        plain = list(dict.fromkeys(w.removesuffix(" backward") for w in words))
        if len(plain) > 3:
            plain = [plain[0], plain[1], plain[-1]]
        if any(w.endswith(" backward") for w in words):
            plain.append("backward")
        size = "x".join(str(n) for a, n in self.axes.items() if a in used)
        return identifier("_".join(filter(None, (*plain, size))))


@dataclass(frozen=True, slots=True)
class _At:
    """`flame.ops.access.At`: what a record may ask of the lowering in progress."""

    lowering: Lowering
    node: Node
    guard: Guard

    def load_index(self, operand: int, index: Index, extent: int) -> E:
        v = self.lowering.value(self.node.operands[operand], tuple(map(ex, index)), self.guard, dtypes.int64)
        return self.lowering.checked_index(v, extent)

    def value(self, operand: int, index: Index) -> str:
        x = self.node.operands[operand]
        if not isinstance(x, Value):  # read by itself: there is no other operand whose dtype it would have
            return self.lowering.const(x, dtypes.dtype_of_number(x))
        return self.lowering.value(x, self.lowering._simplified(index), self.guard)

    def index_value(self, expr: E | int, dtype: Any) -> str:
        return self.lowering.index_value(ex(expr), dtype)

    def const(self, value: Number, dtype: Any) -> str:
        return self.lowering.number(value, dtype)

    def op(self, name: str, *values: str | Number, dtype: Any) -> str:
        low = self.lowering
        like = next((low.dtypes[v] for v in values if isinstance(v, str)), dtype)
        args = [v if isinstance(v, str) else low.number(v, like) for v in values]
        if name == "cast":
            return low.cast(args[0], dtype, _note(self.node))
        return low.op(name, args, compute_dtype(dtype), _note(self.node))


def _specs(node: Node) -> list[Any]:
    return [x.spec if isinstance(x, Value) else x for x in node.operands]


def _show(index: Index) -> str:
    return f"[{', '.join(map(str, index))}]"


def _note(node: Node) -> str:
    return "  ".join(filter(None, (node.note, node.source)))
