"""Attention as kernels: `flame.ops.attention` and `flame.ops.flex` in the kernel IR, for targets that walk scores in tiles.

    refusal(node)               why a node has no kernels of this kind; "" where it has
    kernels(node, in_memory)    [(kernel, {buffer: graph value})]
        attention, flex_attention               y and lse, in one kernel
        attention_grad, flex_attention_grad     dq in one kernel, dk and dv in another

    s = contract(q, k) over d           rows by keys; never in memory
    x = s * scale, bent, biased, masked; or changed by any function of it and its place
    m = max of x over keys; p = exp(x - m); l = sum of p        (backward: p = exp(x - lse))
    y = contract(p * keep, v) over keys, divided by l           (backward: three contractions of its own)

A kernel here is a CHAIN of contractions (`flame.compiler.chain`): inner ones make scores, outer ones sum over what the scores
are walked along. Queries, keys and values are read through the views that stand before them. Bias and keep are computed where
they are read: a causal mask made of positions, ALiBi's slopes, dropout's bits and the like are a few instructions on a tile of
scores and never stand in memory. Narrow floats take their exponentials to base 2, which GPUs have an instruction for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flame.compiler.dims import Symbols
from flame.compiler.graph import Builder, Graph, Node, Operand, Value, identifier
from flame.compiler.index_math import ZERO, E, ex, names, var
from flame.compiler.kernel import Buffer, Contract, Kernel, Reduce, Store, names_in, rename
from flame.compiler.lower import NOTHING, Lowering
from flame.compiler.target import Target
from flame.compiler.writer import NO_GUARD, Guard
from flame.dtypes import bool_, dtype, float32, float64, int32
from flame.ops import flex
from flame.ops.access import Cond, Index
from flame.primitive import Spec

_CHAINED = frozenset({"attention", "attention_grad", *flex.composed})
WIDEST = 256  #: numbers of a head that a tile holds
_LOG2E = 1.4426950408889634

Made = list[tuple[Kernel, dict[str, Value]]]


def refusal(node: Node) -> str:
    """Why there are no kernels for a node of the two primitives: what `explain()` shows. "" where there are."""
    q, k, v = (x for x in node.operands[:3] if isinstance(x, Value))
    if q.dtype is float64:
        return "float64 has no tiles of scores: made of smaller primitives"
    if not all(type(x.shape[-1]) is int for x in (q, v)):
        return "the width of a head is symbolic"
    if max(q.shape[-1], v.shape[-1]) > WIDEST:
        return f"a head of {max(q.shape[-1], v.shape[-1])} numbers is wider than {WIDEST}"
    if 0 in (*q.shape, *k.shape, *v.shape):
        return "there are no scores"
    if 1 in (q.shape[-1], v.shape[-1], k.shape[-2]):
        return "one key, or a head of one number: there is nothing to tile"
    if q.shape[-2] == 1 and q.shape[:-2] == k.shape[:-2]:
        return "one query a head: there are no tiles of rows"
    return ""


def has_kernels(node: Node, target: Target) -> bool:
    """Is it a node that `kernels` is for? (Those with a refusal are gone by then: `flame.compiler.expand`.)"""
    return target.is_gpu and node.primitive.name in _CHAINED


def kernels(node: Node, in_memory: Callable[[Value], bool], symbols: Symbols | None = None) -> Made:
    """The kernels of a node, in an order to run in, each with the graph value that each buffer is.

    `in_memory` says which values stand in memory; what is between them and the node is computed in the kernels. Raises
    Refused where that cannot be."""
    form = _Modified if node.primitive.name in flex.composed else _Chain
    if not node.primitive.name.endswith("_grad"):
        return [form(node, in_memory, symbols).forward()]
    return [form(node, in_memory, symbols).toward_queries(), form(node, in_memory, symbols).toward_keys()]


class _Chain(Lowering):
    """The lowering of one kernel."""

    def __init__(self, node: Node, in_memory: Callable[[Value], bool], symbols: Symbols | None):
        super().__init__([], None, in_memory, [], symbols, NOTHING)
        self.node = node
        self.swept, self.contraction = (), node  # whatever reduces has to stand in memory
        self.q, self.k, self.v = (x for x in node.operands[:3] if isinstance(x, Value))
        grad = node.primitive.name.endswith("_grad")
        self.more: tuple[Operand, ...] = node.operands[6:] if grad else node.operands[3:]
        self.of_rows: tuple[Operand, ...] = node.operands[3:6] if grad else ()  #: lse, delta, g
        self.kind: dtype = self.q.dtype
        self.spoken: dict[str, str] = {}  #: buffer -> what it is called
        self.base2 = self.kind.is_narrow_float
        lead = self.q.shape[:-2]
        self.key_lead: tuple[E, ...] = tuple(self._walk(n, "z") for n in self.k.shape[:-2])
        self.lead = self.key_lead
        self.heads: tuple[str, ...] = ()  #: the axis of the heads that share keys
        if lead and lead[-1] != self.k.shape[-3]:
            count = lead[-1] // self.k.shape[-3]
            each = self._walk(count, "h")
            self.heads = tuple(names(each))
            self.lead = (*self.key_lead[:-1], self.key_lead[-1] * count + each)
        self.i, self.j = self._walk(self.q.shape[-2], "i"), self._walk(self.k.shape[-2], "j")
        self.d, self.e = self._walk(self.q.shape[-1], "d"), self._walk(self.v.shape[-1], "e")

    def _walk(self, n: int, prefix: str) -> E:
        """An axis of its own, or 0 for one point."""
        return ZERO if n == 1 else var(self.axis(n, prefix))

    # ---- values

    def _named(self, name: str, v: Operand, index: Index) -> str:
        """An element of an operand, whose buffer gets its name."""
        before = len(self.buffers)
        out = self.value(v, index, NO_GUARD)
        if len(self.buffers) == before + 1:
            self.spoken[next(reversed(self.buffers))] = name
        return out

    def _narrow(self, name: str, v: Operand, index: Index) -> str:
        """The same as it stands in memory."""
        return self.narrow(self._named(name, v, index), self.kind)

    def _number(self, x: float) -> str:
        return self.const(x, float32)

    def _op(self, name: str, *values: str) -> str:
        return self.op(name, values, bool_ if name in ("eq", "le", "ge") else float32, self._said)

    @property
    def _said(self) -> str:
        return "  ".join(filter(None, (self.node.note or self.node.primitive.name, self.node.source)))

    def _contracted(self, a: str, b: str, *along: E) -> str:
        """A contraction over some axes; a product, where they have one point."""
        axes = tuple(x for e in along for x in names(e))
        domain = (self.domains[a] | self.domains[b]) - frozenset(axes)
        return self.emit(Contract, (a, b), axes, float32, domain=domain, note=self._said)

    def _over_keys(self, op: str, v: str) -> str:
        axes = tuple(names(self.j))
        return self.emit(Reduce, op, (v,), axes, float32, domain=self.domains[v] - frozenset(axes), note=self._said)

    def _at_scores(self, x: Value) -> str:
        """An operand that broadcasts to the scores."""
        at = (*self.lead, self.i, self.j)[len(self.lead) + 2 - x.ndim :]
        return self.value(x, tuple(ZERO if n == 1 else e for n, e in zip(x.shape, at, strict=True)), NO_GUARD)

    def _exponents(self) -> tuple[str, str]:
        """The exponents of the scores (to base 2 where `base2`), and tanh of the bent ones ("" without)."""
        scale, cap = float(self.node.params["scale"]), float(self.node.params.get("softcap", 0.0))
        unit = _LOG2E if self.base2 else 1.0
        k = self._narrow("k", self.k, (*self.key_lead, self.j, self.d))
        s, bent = self._contracted(self._narrow("q", self.q, (*self.lead, self.i, self.d)), k, self.d), ""
        if cap:
            bent = self._op("tanh", self._op("mul", s, self._number(scale / cap)))
            s = self._op("mul", bent, self._number(cap * unit))
        elif scale * unit != 1.0:
            s = self._op("mul", s, self._number(scale * unit))
        bias = self.more[0] if self.more else 0.0
        if isinstance(bias, Value) and bias.dtype.kind == "b":
            s = self._op("where", self._at_scores(bias), s, self._number(-math.inf))
        elif isinstance(bias, Value):
            more = self.cast(self._at_scores(bias), float32)
            s = self._op("add", s, more if unit == 1.0 else self._op("mul", more, self._number(unit)))
        if self.node.params["causal"]:
            s = self._op("where", self.condition((Cond(self.i - self.j),)), s, self._number(-math.inf))
        return s, bent

    def _power(self, x: str) -> str:
        return self._op("exp2" if self.base2 else "exp", x)

    def _finite(self, x: str) -> str:
        """0 in the place of minus infinity: what a row that attends to nothing has."""
        if not (self.more and isinstance(self.more[0], Value)):
            return x
        return self._op("where", self._op("eq", x, self._number(-math.inf)), self._number(0.0), x)

    def _kept(self, p: str) -> str:
        keep = self.more[1] if self.more else 1.0
        return self._op("mul", p, self.cast(self._at_scores(keep), float32)) if isinstance(keep, Value) else p

    # ---- kernels

    def forward(self) -> tuple[Kernel, dict[str, Value]]:
        y, lse = self.node.outputs
        x, _ = self._exponents()
        top = self._over_keys("max", x)
        under = self._finite(top)
        p = self._power(self._op("sub", x, under))
        total = self._over_keys("sum", p)
        v = self._narrow("v", self.v, (*self.key_lead, self.j, self.e))
        result = self._contracted(self.narrow(self._kept(p), self.kind), v, self.j)
        if under != top:
            nothing = self._op("eq", total, self._number(0.0))
            result = self._op("div", result, self._op("where", nothing, self._number(1.0), total))
        else:
            result = self._op("div", result, total)
        log = self._op("add", under, self._op("log2" if self.base2 else "log", total))
        if self.base2:
            log = self._op("mul", log, self._number(1 / _LOG2E))
        stores = [
            ("y", y, (*self.lead, self.i, self.e), self.narrow(result, self.kind)),
            ("lse", lse, (*self.lead, self.i), log),
        ]
        return self._made("attention", stores)

    def _slopes(self) -> tuple[str, str]:
        """p * keep and ds, as they enter contractions."""
        x, bent = self._exponents()
        given_lse, given_delta, given_g = self.of_rows
        lse = self._finite(self._named("lse", given_lse, (*self.lead, self.i)))
        p = self._power(self._op("sub", x, self._op("mul", lse, self._number(_LOG2E)) if self.base2 else lse))
        g = self._narrow("g", given_g, (*self.lead, self.i, self.e))
        dp = self._contracted(g, self._narrow("v", self.v, (*self.key_lead, self.j, self.e)), self.e)
        delta = self._named("delta", given_delta, (*self.lead, self.i))
        ds = self._toward_scores(self._op("mul", p, self._op("sub", self._kept(dp), delta)), bent)
        return self.narrow(self._kept(p), self.kind), self.narrow(ds, self.kind)

    def _toward_scores(self, ds: str, bent: str) -> str:
        """The cotangent of scores, given that of exponents."""
        return self._op("mul", ds, self._op("sub", self._number(1.0), self._op("mul", bent, bent))) if bent else ds

    def _scaled(self, x: str) -> str:
        return self.narrow(self._op("mul", x, self._number(float(self.node.params["scale"]))), self.kind)

    def toward_queries(self) -> tuple[Kernel, dict[str, Value]]:
        _, ds = self._slopes()
        dq = self._contracted(ds, self._narrow("k", self.k, (*self.key_lead, self.j, self.d)), self.j)
        return self._made("attention_dq", [("dq", self.node.outputs[0], (*self.lead, self.i, self.d), self._scaled(dq))])

    def toward_keys(self) -> tuple[Kernel, dict[str, Value]]:
        p, ds = self._slopes()
        along = (*map(var, self.heads), self.i)
        dk = self._contracted(ds, self._narrow("q", self.q, (*self.lead, self.i, self.d)), *along)
        dv = self._contracted(p, self._narrow("g", self.of_rows[2], (*self.lead, self.i, self.e)), *along)
        _, of_k, of_v = self.node.outputs
        stores = [
            ("dk", of_k, (*self.key_lead, self.j, self.d), self._scaled(dk)),
            ("dv", of_v, (*self.key_lead, self.j, self.e), self.narrow(dv, self.kind)),
        ]
        return self._made("attention_dk_dv", stores)

    def _made(self, name: str, stores: list[tuple[str, Value, Index, str]]) -> tuple[Kernel, dict[str, Value]]:
        statements = list(self.statements)
        for b, r, index, v in stores:
            self.buffers[b] = Buffer(b, r.dtype, tuple(map(ex, r.shape)), "out")
            self.values[b] = r
            statements.append(Store(b, index, v))
        axes = {a: ex(n) for a, n in self.axes.items()}
        ranges = {v: (lo, hi) for v, (lo, hi) in self.bounds.values.items() if lo is not None and hi is not None}
        draft = Kernel("", self.buffers, axes, self.bounds.symbols, statements, ranges)
        used = frozenset[str]().union(*draft.domains.values())
        axes = {a: n for a, n in axes.items() if a in used}
        draft = Kernel("", self.buffers, axes, self.bounds.symbols, statements, ranges)
        symbols = Symbols(self.bounds.symbols, self.bounds.facts).used_by(names_in(draft))
        size = "x".join(str(n) for n in axes.values())
        kernel = Kernel(identifier(f"{name}_{size}"), self.buffers, axes, symbols, statements, ranges)
        return rename(kernel, self.spoken), {self.spoken.get(b, b): v for b, v in self.values.items()}


class _Modified(_Chain):
    """The lowering of a kernel whose scores are changed by a function of their place: its steps are nodes beside the graph, over
    values that stand for what the kernel has at hand."""

    def __init__(self, node: Node, in_memory: Callable[[Value], bool], symbols: Symbols | None):
        super().__init__(node, in_memory, symbols)
        self.modification: flex.Modification = node.params["modification"]
        shape = (*self.q.shape[:-1], self.k.shape[-2])
        self.steps = Builder(Graph())
        whole = Spec(shape, float32)
        self.score, self.cotangent = self.steps.input(whole), self.steps.input(whole)
        self.at_hand: dict[Value, str] = {}
        self.places = [self.steps.input(Spec(tuple(n if d == x else 1 for x in range(4)), int32)) for d, n in enumerate(shape)]
        self.numbers: list[Any] = [self.score, *self.places, *self.more]

    def _pull(self, v: Value, index: Index, guard: Guard) -> str:
        if v in self.at_hand:
            return self.at_hand[v]
        if v in self.places:
            return self.index_value(ex(index[self.places.index(v)]), int32)
        return super()._pull(v, index, guard)

    def _at(self, v: Any) -> str:
        """What a step gives at the place of the scores."""
        if not isinstance(v, Value):
            return self._number(v)
        return self._at_scores(v)

    def _exponents(self) -> tuple[str, str]:
        k = self._narrow("k", self.k, (*self.key_lead, self.j, self.d))
        s = self._contracted(self._narrow("q", self.q, (*self.lead, self.i, self.d)), k, self.d)
        self.at_hand[self.score] = self._op("mul", s, self._number(float(self.node.params["scale"])))
        with self.steps:
            changed = self.modification.modified(self.numbers, lambda p, *operands, **params: p(*operands, **params))
        e = self.cast(self._at(changed), float32)
        return (self._op("mul", e, self._number(_LOG2E)) if self.base2 else e), ""

    def _finite(self, x: str) -> str:
        return self._op("where", self._op("eq", x, self._number(-math.inf)), self._number(0.0), x)

    def _kept(self, p: str) -> str:
        return p

    def _toward_scores(self, ds: str, bent: str) -> str:
        self.at_hand[self.cotangent] = ds
        with self.steps:
            slope = self.modification.pulled(
                self.numbers, self.cotangent, lambda p, *operands, **params: p(*operands, **params)
            )
        return self._number(0.0) if slope is None else self._at(slope)


def reads_through_views(node: Node) -> tuple[Value, ...]:
    """The operands that have to stand in memory, views of them apart: all but what the scores are biased and kept by."""
    count = 6 if node.primitive.name.endswith("_grad") else 3
    return tuple(x for x in node.operands[:count] if isinstance(x, Value))
