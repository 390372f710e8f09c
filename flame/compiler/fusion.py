"""Fusion: a graph cut into kernels, with a cost and a reason for every yes and no.

    fuse(graph, target) -> Fused

    choose roots   which values may stand in memory                         flame.compiler.roots
    settle         every root alone has a kernel, or stays a call
    join           neighbours become one kernel where it has a form (`flame.compiler.lower` refuses with a reason) and
                   costs less than the two (`flame.compiler.cost`)
    batch          small kernels of equal shape that have nothing to do with each other share a launch
    panels         rows and columns of the same arrays in one kernel, on GPUs (`flame.compiler.panels`)
    split          reductions with too few rows for the machine are done in two steps
    together       small pointwise kernels of different sizes share a launch, on GPUs (`flame.compiler.together`)

Neighbours are a group's producers, its consumers, and its siblings: groups that read the same large array. Each pair is
tried once, and equal pairs are lowered once (`flame.compiler.templates`), so that time is near linear in the graph.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flame.compiler import attention_kernels, panels
from flame.compiler.cost import LARGE, rates
from flame.compiler.dims import hint, space_of
from flame.compiler.graph import Graph, Node, Value
from flame.compiler.groups import Group, Groups
from flame.compiler.kernel import Kernel, Load, domain, stage
from flame.compiler.lower import describe, reduced_operand
from flame.compiler.program import Decision, Fused, FusedKernel
from flame.compiler.roots import Plan, choose_roots
from flame.compiler.splitting import split, steps_of
from flame.compiler.target import Target
from flame.compiler.templates import Attempt, Templates, places_of
from flame.compiler.together import together
from flame.errors import Refused

#: statements, buffers and chained nodes that one kernel may have
_STATEMENTS, _BUFFERS, _DEPTH = 256, 32, 120
#: statements and loads that a contraction's epilogue may have
_EPILOGUE, _EPILOGUE_LOADS = 80, 10
#: siblings that are looked at for each array, how far off in rank, and from how many bytes on sharing an array matters
_SIBLINGS, _FAR, _WORTH_SHARING = 6, 48, 4096
#: launches that a kernel's own time may be worth and still be batched; buffers of a batch
_SMALL, _BATCH_BUFFERS = 10.0, 24
#: bytes that may wait in one kernel of unrelated groups, for each that it saves
_WAITING = 4
_TWO_CONTRACTIONS = "a kernel holds one contraction"


def fuse(graph: Graph, target: Target) -> Fused:
    """Kernels and calls in an order to run in, and every decision with its reason."""
    space = space_of(graph)
    templates = Templates(target, None if space is None else space.symbols, places_of(graph))
    plan = _settle(graph, target, templates)
    fusion = _Fusion(plan, target, templates)
    fusion.join()
    fusion.batch()
    return together(fusion.fused(), target)


def _settle(graph: Graph, target: Target, templates: Templates) -> Plan:
    """A plan under which every root has a kernel. What a kernel can't hold becomes a call; before that, what a refused root
    is computed from is given memory of its own."""
    called: dict[Node, str] = {}
    stored: dict[Value, None] = {}
    while True:
        plan = choose_roots(graph, target, called, stored)
        templates.under(plan.in_memory)
        changed = False
        for r in plan.roots:
            got = templates.lower([r], [r])
            assert r.node is not None
            reason = got.refusal or (_waste(got.template.kernel) if got.template and not target.is_gpu else "")
            if not reason:
                continue
            inside = [v for v in r.node.values if not plan.in_memory(v)]
            if inside and got.refusal:
                stored.update(dict.fromkeys(inside))
            else:
                called[r.node] = reason
            changed = True
        for n in plan.chained:
            try:
                plan.made[n] = attention_kernels.kernels(n, plan.in_memory, templates.symbols)
            except Refused:
                inside = [v for v in n.values if not plan.in_memory(v)]
                if not inside:
                    raise
                stored.update(dict.fromkeys(inside))
                changed = True
        if not changed:
            chained = "a chain of contractions: scores are never in memory"
            for n, why in plan.calls.items():
                verdict, reason = ("kernel", chained) if n in plan.chained else ("called", why)
                plan.decisions.append(Decision(verdict, describe(n), reason))
            return plan


def _waste(kernel: Kernel) -> str:
    """Why a contraction had better stay a call: most of what it would multiply is masked (a dilated convolution)."""
    if kernel.contraction is None:
        return ""
    holes = {c for s in kernel.statements if isinstance(s, Load) for c in s.mask if c.kind == "eq"}
    return f"{len(holes)} strides leave holes that a kernel would multiply by 0" if holes else ""


@dataclass(frozen=True, slots=True)
class _Form:
    """What counting elements needs to know of a root."""

    numel: Any
    contracted: bool
    reduced: Value | None  #: what it reduces, unless that has as many elements
    walked: Any = 0  #: how many that has

    @classmethod
    def of(cls, r: Value) -> _Form:
        numel = r.spec.numel
        x = reduced_operand(r)
        contracted = r.node is not None and r.node.primitive.kind == "contract"
        if x is None or (walked := x.spec.numel) == numel:
            return cls(numel, contracted, None)
        return cls(numel, contracted, x, walked)


def _misshapen(roots: Sequence[Value], stored: Sequence[Value], forms: Mapping[Value, _Form]) -> str:
    """Why these roots can't make one kernel, as far as counting elements shows it; lowering looks closer."""
    contracted = [r for r in roots if forms[r].contracted]
    reduced = [(r, x) for r in roots if (x := forms[r].reduced) is not None]
    if len(contracted) > 1:
        return _TWO_CONTRACTIONS
    summed = len(reduced) == 1 and reduced[0][1] in contracted and contracted[0] not in stored
    if contracted and reduced and not summed:
        return "a kernel holds reductions or a contraction, not both"
    sizes = {forms[r].numel for r in stored}
    if contracted and reduced:
        allowed = {forms[reduced[0][0]].numel}
    elif contracted:
        allowed = {forms[contracted[0]].numel}
    elif reduced:
        r, first = reduced[0][0], forms[reduced[0][0]]
        for q, _ in reduced[1:]:
            if (forms[q].numel, forms[q].walked) != (first.numel, first.walked):
                return f"{describe(r)} and {describe(q)} reduce unequal numbers of elements"
        allowed = {first.numel, first.walked}
    else:
        allowed = {max(sizes, key=hint)}
    if not sizes <= allowed:
        return f"results of {sorted(sizes, key=hint)} elements where the kernel would walk {sorted(allowed, key=hint)}"
    return ""


class _Fusion:
    """Groups being joined."""

    def __init__(self, plan: Plan, target: Target, templates: Templates):
        self.plan = plan
        self.target = target
        self.templates = templates
        self.groups = Groups()
        self.decisions = plan.decisions
        self._outputs = set(plan.graph.outputs)
        self._attempts: dict[Group, Attempt] = {}
        self._forms = {r: _Form.of(r) for r in plan.roots}
        self._free = {r for r in plan.roots if r not in plan.library and r.spec.numel != 0}
        self._contracted = {r for r, f in self._forms.items() if f.contracted}
        self._copied = {r for r in plan.roots if r.node is not None and r.node.primitive.name == "copy"}
        self._unfitness: dict[Kernel, str] = {}
        for n in plan.graph.nodes:
            if n in plan.calls:
                self.groups.add(n.outputs, plan.chained.get(n, n.values), n)
            elif n.output in plan.roots:
                self.groups.add(n.outputs, plan.reads[n.output])

    # ---- one group

    def attempt(self, g: Group) -> Attempt:
        found = self._attempts.get(g)
        if found is None:
            found = self._attempts[g] = self._lower(g.roots)
        return found

    def _lower(self, roots: Sequence[Value]) -> Attempt:
        """A group's kernel: roots that nobody else reads are not stored."""
        return self.templates.lower(roots, self._stored(roots))

    def _stored(self, roots: Sequence[Value]) -> list[Value]:
        here, readers = frozenset(roots), self.groups.readers
        return [r for r in roots if r in self._outputs or any(q not in here for q in readers.get(r, ()))]

    def _is_fixed(self, g: Group) -> bool:
        """Groups that take no part: calls, library calls, and arrays without elements."""
        return g.call is not None or not self._free.issuperset(g.roots)

    # ---- joining neighbours

    def join(self) -> None:
        work = deque(g for g in self.groups.all() if not self._is_fixed(g))
        tried: set[tuple[Group, Group]] = set()
        while work:
            g = work.popleft()
            if g.into is not None:
                continue
            for h, related in self._neighbours(g):
                a, b = (g, h) if g.rank < h.rank else (h, g)
                if (a, b) in tried:
                    continue
                tried.add((a, b))
                reason = self._objection(a, b, related)
                if reason.startswith("saves"):
                    self.decisions.append(Decision("fused", f"{a} with {b}", reason))
                    work.appendleft(self._merge(a, b))
                    break
                self.decisions.append(Decision("refused", f"{a} with {b}", reason))

    def _merge(self, a: Group, b: Group) -> Group:
        merged = self.groups.merge(a, b)
        first = merged.roots[0]
        depth = self.plan.depth
        depth[first] = depth[a.roots[0]] + depth[b.roots[0]]
        return merged

    def _neighbours(self, g: Group) -> list[tuple[Group, bool]]:
        """Producers and consumers (True), then siblings (False), those that share most first."""
        groups = self.groups
        sizes: dict[Group, Any] = dict.fromkeys(groups.above(g), 0)
        for r in g.roots:
            for x in groups.reads[r]:
                h = groups.of.get(x)
                if h in sizes:
                    sizes[h] += hint(x.spec.nbytes)
        below = dict.fromkeys(groups.below(g), 0)
        for r in g.roots:
            size = hint(r.spec.nbytes)
            for h in {groups.of[q] for q in groups.readers.get(r, ())}:
                if h is not g:
                    below[h] += size
        shared = {h: (True, n) for h, n in (*sizes.items(), *below.items())}
        large = [[x for x in groups.reads[r] if hint(x.spec.nbytes) >= _WORTH_SHARING] for r in g.roots]
        for x in dict.fromkeys(x for found in large for x in sorted(found, key=lambda v: v.name)):
            readers = groups.readers[x]
            here = bisect_left(readers, groups.position[g.roots[0]], key=groups.position.__getitem__)
            around = dict.fromkeys(groups.of[q] for q in readers[max(here - _SIBLINGS, 0) : here + len(g.roots) + _SIBLINGS])
            near = [h for h in around if h is not g and abs(h.rank - g.rank) <= _FAR]
            near = sorted(near, key=lambda h: abs(h.rank - g.rank))[:_SIBLINGS]
            for h in near:
                if h not in shared:
                    shared[h] = (False, hint(x.spec.nbytes))
        free = self._free
        found = [(h, related, size) for h, (related, size) in shared.items() if h.call is None and free.issuperset(h.roots)]
        found.sort(key=lambda f: (not f[1], -f[2], f[0].rank))
        return [(h, related) for h, related, _ in found]

    def _objection(self, a: Group, b: Group, related: bool) -> str:
        """Why a and b stay apart; or, beginning with "saves", what joining them is worth."""
        if self.plan.depth[a.roots[0]] + self.plan.depth[b.roots[0]] > _DEPTH:
            return f"a chain of more than {_DEPTH} nodes"
        laid_out = [r for r in a.roots if r in self._copied and b in self.groups.below(a)] if self._copied else []
        if laid_out and any(r.node is not None and r.node.primitive.kind == "contract" for r in self._inside(b)):
            return f"{describe(laid_out[0])} is there to lie as the contraction reads it"
        if not (self._contracted.isdisjoint(a.roots) or self._contracted.isdisjoint(b.roots)):
            return _TWO_CONTRACTIONS
        roots = sorted((*a.roots, *b.roots), key=self.groups.position.__getitem__)
        stored = self._stored(roots)
        reason = _misshapen(roots, stored, self._forms) or self._too_wide(roots, stored) or self.groups.why_not(a, b)
        if reason:
            return reason
        joint = self.templates.lower(roots, stored)
        if joint.template is None:
            return joint.refusal
        reason = self._unfit(joint.template.kernel)
        if reason:
            return reason
        one, two = self.attempt(a).template, self.attempt(b).template
        if one is None or two is None:
            return "one of the two has no kernel"
        saved = one.cost.time + two.cost.time - joint.template.cost.time
        if saved <= 0:
            return f"costs {-saved:.0f} ns more than two kernels"
        bytes_saved = one.cost.bytes + two.cost.bytes - joint.template.cost.bytes
        if not related and bytes_saved <= 0:
            return "they share a launch and nothing else"
        if self._waiting(a, b, related) > _WAITING * bytes_saved:
            return "large arrays of one would wait for the other"
        if any(r in self.plan.running and r not in stored for r in a.roots):
            return "a running sum, whose terms need not be there together"
        return f"saves {bytes_saved} bytes and {saved:.0f} ns"

    def _waiting(self, a: Group, b: Group, related: bool) -> int:
        """Bytes of large temporary arrays that `a`, or one of two unrelated groups, alone reads: in one kernel with the other, they
        have to be there when that can run."""
        of_one, of_other = (frozenset[Value]().union(*(self.groups.reads[r] for r in g.roots)) for g in (a, b))
        waiting = of_one - of_other if related else of_one ^ of_other
        sizes = [hint(x.spec.nbytes) for x in waiting if x.node is not None]
        return sum(n for n in sizes if n >= LARGE)

    def _inside(self, g: Group) -> Iterator[Value]:
        """What a group computes."""
        pending, seen = list(g.roots), set[Value]()
        while pending:
            v = pending.pop()
            if v in seen or v.node is None or (v not in g.roots and self.plan.in_memory(v)):
                continue
            seen.add(v)
            yield v
            pending += v.node.values

    def _too_wide(self, roots: Sequence[Value], stored: Sequence[Value]) -> str:
        """Why a kernel of these roots would have too many buffers, before it is lowered."""
        read = frozenset().union(*[self.groups.reads[r] for r in roots]).difference(roots)
        buffers = len(read) + len(stored)
        return f"{buffers} buffers are more than {_BUFFERS}" if buffers > _BUFFERS else ""

    def _unfit(self, kernel: Kernel) -> str:
        """Why a kernel that has a form is no good."""
        found = self._unfitness.get(kernel)
        if found is None:
            found = self._unfitness[kernel] = self._look_at(kernel)
        return found

    def _look_at(self, kernel: Kernel) -> str:
        if len(kernel.statements) > _STATEMENTS:
            return f"{len(kernel.statements)} statements are more than {_STATEMENTS}"
        if kernel.contraction is not None:
            return self._bad_epilogue(kernel)
        return self._bad_sweeps(kernel)

    def _bad_epilogue(self, kernel: Kernel) -> str:
        after = kernel.statements[[s is kernel.contraction for s in kernel.statements].index(True) + 1 :]
        loads = sum(isinstance(s, Load) for s in after)
        if len(after) > _EPILOGUE or loads > _EPILOGUE_LOADS:
            return f"an epilogue of {len(after)} statements and {loads} loads holds too many values at once"
        return ""

    def _bad_sweeps(self, kernel: Kernel) -> str:
        """A row that is swept again should still be near: rows that are few and long are better walked by two kernels."""
        swept = frozenset(kernel.reduce_axes)
        if not swept or not any(swept & domain(kernel, s) for s in kernel.stores):
            return ""
        stages = stage(kernel)
        if not any(stages[s.value] for s in kernel.stores if swept & domain(kernel, s)):
            return ""
        row = math.prod(kernel.axes[a].const or 1 for a in swept)
        rows = math.prod(kernel.axes[a].const or 1 for a in kernel.axes if a not in swept)
        loads = [s for s in kernel.statements if isinstance(s, Load) and swept & kernel.domains[s.name]]
        held = row * max(sum(s.dtype.itemsize for s in loads), 1)
        if self.target.is_gpu:
            few = rows < self.target.units / 4 and row > 4096
            return f"{rows} rows of {row}: too few for a second sweep" if few or row > 1 << 19 else ""
        few = rows < self.target.units and row > 1 << 14
        far = held > 2 * self.target.cache
        return f"{rows} rows of {row}: a second sweep would read {held} bytes again" if few or far else ""

    # ---- batching

    def batch(self) -> None:
        """Join small kernels of equal shape that are independent: the updates and the norms of many small parameters."""
        price = rates(self.target)
        alike: dict[tuple, list[Group]] = {}
        for g in self.groups.all():
            if self._is_fixed(g):
                continue
            template = self.attempt(g).template
            if template is None or template.cost.time - price.launch > _SMALL * price.launch:
                continue
            kernel = template.kernel
            if kernel.contraction is None:
                shape = tuple((e, a in kernel.reduce_axes) for a, e in kernel.axes.items())
                alike.setdefault(shape, []).append(g)
        for shape, found in alike.items():
            if shape and len(found) > 1:
                self._batch(found)

    def _batch(self, found: list[Group]) -> None:
        open_batches: list[Group] = []
        for g in found:
            for i, h in enumerate(open_batches):
                if self._fits_batch(h, g):
                    reason = "equal shapes, and a launch is worth more than either"
                    self.decisions.append(Decision("fused", f"{h} with {g}", reason))
                    open_batches[i] = self._merge(h, g)
                    break
            else:
                open_batches = [*open_batches[-3:], g]

    def _fits_batch(self, a: Group, b: Group) -> bool:
        one, two = self.attempt(a).template, self.attempt(b).template
        if one is None or two is None or len(one.kernel.buffers) + len(two.kernel.buffers) > _BATCH_BUFFERS:
            return False
        if b in self.groups.below(a) or a in self.groups.below(b) or self.groups.why_not(a, b) or self._waiting(a, b, False):
            return False
        roots = sorted((*a.roots, *b.roots), key=self.groups.position.__getitem__)
        joint = self._lower(roots)
        return joint.template is not None and not self._unfit(joint.template.kernel)

    # ---- the answer

    def fused(self) -> Fused:
        steps: list[FusedKernel | Node] = []
        attempts: dict[int, tuple[Group, Attempt]] = {}  # by the step's identity: equal layers share their kernels
        for g in self.groups.all():
            if g.call in self.plan.made:
                steps += [(kernel, buffers, None) for kernel, buffers in self.plan.made[g.call]]
                continue
            if g.call is not None:
                steps.append(g.call)
                continue
            got = self.attempt(g)
            assert got.template is not None, f"{g} lost its kernel: {got.refusal}"
            library = self.plan.library.get(g.roots[0]) if len(g.roots) == 1 else None
            steps.append((got.template.kernel, got.buffers, library))
            attempts[id(steps[-1])] = g, got
        joined, decisions = panels.join(steps, self.target)
        self.decisions += decisions
        out = Fused(decisions=self.decisions)
        halves: dict[Kernel, tuple[Kernel, Kernel] | None] = {}
        for step in joined:
            if isinstance(step, Node) or id(step) not in attempts:
                out.steps.append(step)
                continue
            (g, got), (kernel, buffers, library) = attempts[id(step)], step
            assert got.template is not None
            if kernel not in halves:
                halves[kernel] = None if library else split(kernel, got.template.cost, self.target)
            cut = halves[kernel]
            if got.symbols:
                out.symbols[len(out.steps)] = got.symbols
            if cut is None:
                out.steps.append(step)
            else:
                out.steps += steps_of(*cut, buffers)
                reason = f"{kernel.name} has too few results to keep the machine busy"
                self.decisions.append(Decision("split", repr(g), reason))
        return out
