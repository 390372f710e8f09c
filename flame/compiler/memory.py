"""Where temps live: lifetimes over the order of the steps, and offsets in one arena.

A temp is alive from the step that writes it first to the step that uses it last, both included; two that are alive together
never share memory. The steps are walked once: what dies is given back, neighbouring holes are joined, and a new temp takes
the smallest hole that holds it (which is also the memory touched most recently, more often than not). Two passes run before:
`in_place` lets a kernel write over an operand that dies with it, and `update` lets the new value of a parameter be
written where the caller keeps the old one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace

from flame.compiler.cost import LARGE
from flame.compiler.index_math import evaluate, names
from flame.compiler.kernel import Contract, Kernel, Load, Reduce, Statement, Store, domain, numel, reads, typical
from flame.compiler.program import Argument, CallStep, KernelStep, Program, Step

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def lifetimes(program: Program) -> dict[int, tuple[int, int]]:
    """For each temp that a step uses, the numbers of the first and last step that does."""
    out: dict[int, tuple[int, int]] = {}
    for k, step in enumerate(program.steps):
        for i in (*step.writes, *step.reads):
            if program.slots[i].kind == "temp":
                out[i] = out.get(i, (k, k))[0], k
    return out


def plan(program: Program) -> Program:
    """The program with an offset for every temp."""
    live = lifetimes(program)
    born: list[list[int]] = [[] for _ in program.steps]
    dying: list[list[int]] = [[] for _ in program.steps]
    for i, (first, last) in live.items():
        if program.slots[i].bytes:
            born[first].append(i)
            dying[last].append(i)
    arena = _Arena()
    offset: dict[int, int] = {}
    for k in range(len(program.steps)):
        for i in sorted(born[k], key=lambda i: -program.slots[i].bytes):
            offset[i] = arena.take(aligned(program.slots[i].bytes))
        for i in dying[k]:
            arena.give_back(offset[i], aligned(program.slots[i].bytes))
    slots = tuple(replace(s, offset=offset.get(i, 0)) if s.kind == "temp" else s for i, s in enumerate(program.slots))
    return replace(program, slots=slots, arena_bytes=arena.size)


class _Arena:
    """Memory with holes: `size` so far, and the holes by place and by size."""

    def __init__(self) -> None:
        self.size = 0
        self._at: dict[int, int] = {}  # where a hole begins -> its size
        self._until: dict[int, int] = {}  # where a hole ends -> where it begins
        self._by_size: list[tuple[int, int]] = []  # (size, begin), sorted

    def take(self, n: int) -> int:
        k = bisect_left(self._by_size, (n, -1))
        if k < len(self._by_size):
            size, begin = self._by_size[k]
            self._drop(begin, size)
            if size > n:
                self._add(begin + n, size - n)
            return begin
        begin = self._until.get(self.size, self.size)  # grow the hole at the end, if there is one
        if begin < self.size:
            self._drop(begin, self.size - begin)
        self.size = begin + n
        return begin

    def give_back(self, begin: int, n: int) -> None:
        if begin in self._until:
            before = self._until[begin]
            n += begin - before
            self._drop(before, begin - before)
            begin = before
        if begin + n in self._at:
            after = self._at[begin + n]
            self._drop(begin + n, after)
            n += after
        self._add(begin, n)

    def _add(self, begin: int, n: int) -> None:
        self._at[begin] = n
        self._until[begin + n] = begin
        insort(self._by_size, (n, begin))

    def _drop(self, begin: int, n: int) -> None:
        del self._at[begin], self._until[begin + n]
        del self._by_size[bisect_left(self._by_size, (n, begin))]


def in_place(program: Program) -> Program:
    """The program with kernels that write over a temp which dies with them, where that is safe.

    Safe is a kernel without reductions whose stores all run over the same axes (so that one loop does everything), for a
    pair of buffers of equal dtype and shape, if every load of the one has the index of the only store of the other. A call
    that adds to a copy of its first operand is given that operand where its result is to be.
    """
    live = lifetimes(program)
    same: dict[int, int] = {}  # a slot that is gone -> the slot whose memory it has
    pairs: dict[Kernel, list[tuple[str, str]]] = {}  # equal layers share their kernels, before and after
    joined: dict[tuple[Kernel, str, str], Kernel] = {}
    steps: list[Step] = []
    for k, step in enumerate(program.steps):
        if isinstance(step, KernelStep) and step.library is None:
            if step.kernel not in pairs:
                pairs[step.kernel] = pairs_in_place(step.kernel)
            for old, new in pairs[step.kernel]:
                i, j = same.get(step.buffers[old], step.buffers[old]), step.buffers[new]
                if program.slots[i].kind == program.slots[j].kind == "temp" and live[i][1] == k and live[j][0] == k:
                    buffers = {b: s for b, s in step.buffers.items() if b != new}
                    which = step.kernel, old, new
                    if which not in joined:
                        joined[which] = _joined(*which)
                    step = replace(step, kernel=joined[which], buffers=buffers)
                    same[j] = i
                    live[i] = live[i][0], live[j][1]
        if isinstance(step, CallStep) and step.node.primitive.name in _ADDS_TO_FIRST:
            first, j = step.arguments[0], step.outputs[0]
            i = first.slot if isinstance(first, Argument) and not first.views else -1
            dies = i in live and live[i][1] == k and i not in same and i not in same.values()
            if dies and j >= 0 and program.slots[j].kind != "input" and program.slots[i].spec == program.slots[j].spec:
                if j not in live or live[j][0] == k:
                    same[i] = j
                    if j in live:
                        live[j] = live[i][0], live[j][1]
        steps.append(step)
    return program if not same else _renumbered(program, steps, same)


def update(program: Program, updates: Sequence[tuple[int, int]], guards: Sequence[int]) -> Program:
    """The program with results written where the caller keeps what they replace: pairs (input, result), by their numbers.

    Such a result's slot becomes the input's, where no step reads the input after the result is written, and the writing step
    reads it element by element at most. Memory of the caller's changes altogether or not at all: nothing that may raise runs
    later, and `guards`, the numbers of the results that forbid it where they are true, are computed before. `updated` of the
    program says which inputs were done so; the others are left as they were.
    """
    same: dict[int, int] = {}
    if not updates:
        return program
    stops = tuple(dict.fromkeys(program.outputs[g] for g in guards))
    steps = _guards_first(program.steps, stops)
    raising = [k for k, s in enumerate(steps) if _may_raise(s) or not set(stops).isdisjoint(s.writes)]
    done = set(program.updated)
    writers: dict[int, list[int]] = {}
    readers: dict[int, list[int]] = {}
    for k, s in enumerate(steps):
        for slots_of, found in ((s.writes, writers), (s.reads, readers)):
            for slot in slots_of:
                found.setdefault(slot, []).append(k)
    joined: dict[tuple[Kernel, str, str], Kernel | None] = {}  # equal layers share their kernels, before and after
    for i, r in updates:
        old, new = program.inputs[i], program.outputs[r]
        a, b = program.slots[old], program.slots[new]
        if old in done or new in same or b.kind != "output" or a.spec != b.spec or not a.spec.numel:
            continue
        written, read = writers[new], readers.get(old, [])
        first, last = written[0], max(read, default=-1)
        if last > first or (raising and raising[-1] >= first):
            continue
        step = steps[first]
        if last == first:
            if not isinstance(step, KernelStep) or step.library is not None or len(written) > 1:
                continue
            x, y = (next(n for n, s in step.buffers.items() if s == slot) for slot in (old, new))
            which = step.kernel, x, y
            if which not in joined:
                joined[which] = _joined(*which) if may_be_one(*which) else None
            one = joined[which]
            if one is None:
                continue
            buffers = {n: s for n, s in step.buffers.items() if n != y}
            steps[first] = replace(step, kernel=one, buffers=buffers)
        same[new] = old
        done.add(old)
    if not same:
        return program
    program = _renumbered(replace(program, updated=tuple(sorted(done)), guards=stops), steps, same)
    kept = [i for i, s in enumerate(program.slots) if s.kind == "output"]
    number = {i: n for n, i in enumerate(kept)}
    slots = tuple(replace(s, index=number[i]) if i in number else s for i, s in enumerate(program.slots))
    return replace(program, slots=slots)


def _may_raise(step: Step) -> bool:
    """May a step raise, on operands whose positions were checked before?"""
    if not isinstance(step, CallStep):
        return False
    p = step.node.primitive
    return p.positions is None and p.name not in _NEVER_RAISE


#: calls whose eager functions take every value
_NEVER_RAISE = frozenset(
    "attention attention_grad flex_attention_grad recurrent recurrent_grad cumsum cumprod sort argsort".split()
)


def _guards_first(steps: Sequence[Step], guards: Sequence[int]) -> list[Step]:
    """The steps with those in front that guards are made by."""
    wanted, early = set(guards), set()
    for k in range(len(steps) - 1, -1, -1):
        if not wanted.isdisjoint(steps[k].writes):
            early.add(k)
            wanted.update(steps[k].reads)
    return [s for k, s in enumerate(steps) if k in early] + [s for k, s in enumerate(steps) if k not in early]


def may_be_one(kernel: Kernel, old: str, new: str) -> bool:
    """May a kernel write the buffer `new` over the buffer `old` that it reads: does every element's only load precede its store?

    A contraction's epilogue loads at the point where it stores; what a contraction is computed from varies with its summed axes
    and so never has the index of a store. Beside reductions (an optimizer's update in the kernel that sums its gradient), `old`
    must be read by none of them, and only where all that is made of it is stored in the sweep in which `new` is: a second sweep
    would load it again.
    """
    stores = [s for s in kernel.stores if s.buffer == new]
    a, b = kernel.buffers[old], kernel.buffers[new]
    if len(stores) != 1 or (a.role, b.role) != ("in", "out") or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if len({domain(kernel, s) for s in kernel.stores}) != 1:
        return False
    (s,) = stores
    if any(isinstance(r, Reduce) for r in kernel.statements) and not _read_in_one_sweep(kernel, old, s):
        return False
    if s.mask or any(n[0] == "%" for e in s.index for n in names(e)):
        return False
    contractions = [c for c in kernel.statements if isinstance(c, Contract)]
    if any(old in {t.buffer for t in _loads_under(kernel, c)} for c in contractions):
        return False
    return {t.index for t in kernel.statements if isinstance(t, Load) and t.buffer == old} == {s.index}


def _read_in_one_sweep(kernel: Kernel, old: str, writer: Store) -> bool:
    """Is a buffer of a kernel with reductions read by none of them, and only for stores that wait for what `writer` waits for?"""
    sums = [s for s in kernel.statements if isinstance(s, Reduce | Contract)]
    if any(isinstance(s, Contract) or old in {t.buffer for t in _loads_under(kernel, s)} for s in sums):
        return False

    def awaited(s: Store) -> set[str]:
        return {r.name for r in _under(kernel, s) if isinstance(r, Reduce)}

    reading = [s for s in kernel.stores if old in {t.buffer for t in _loads_under(kernel, s)}]
    return all(awaited(s) == awaited(writer) for s in reading)


def _loads_under(kernel: Kernel, s: Statement) -> list[Load]:
    """Every load that a statement's value is made from."""
    return [t for t in _under(kernel, s) if isinstance(t, Load)]


def _under(kernel: Kernel, s: Statement) -> list[Statement]:
    """Every statement that a statement's value is made from."""
    found: list[Statement] = []
    todo, seen = list(reads(s)), set(reads(s))
    while todo:
        t = kernel.definitions[todo.pop()]
        found.append(t)
        new = [r for r in reads(t) if r not in seen]
        seen.update(new)
        todo += new
    return found


#: calls whose result is their first operand, changed in places: routines and eager functions take both in one memory
_ADDS_TO_FIRST = frozenset({"index_add"})


def pairs_in_place(kernel: Kernel) -> list[tuple[str, str]]:
    """Pairs (buffer read, buffer written) of a kernel without reductions that may be one buffer, each buffer in one at most. Of
    contractions, only large ones: a sum so far that one adds to."""
    if any(isinstance(s, Reduce) for s in kernel.statements):
        return []
    least = LARGE if kernel.contraction is not None else 0
    loaded = dict.fromkeys(s.buffer for s in kernel.statements if isinstance(s, Load))
    pairs: list[tuple[str, str]] = []
    for s in kernel.stores:
        free = [b for b in loaded if all(b != taken for taken, _ in pairs)]
        if (
            least
            and evaluate(numel(kernel.buffers[s.buffer]), typical(kernel)) * kernel.buffers[s.buffer].dtype.itemsize < least
        ):
            continue
        old = next((b for b in free if may_be_one(kernel, b, s.buffer)), None)
        if old is not None:
            pairs.append((old, s.buffer))
    return pairs


def _joined(kernel: Kernel, old: str, new: str) -> Kernel:
    """The kernel with what it stored in `new` stored over `old`."""
    buffers = {b: replace(x, role="inout") if b == old else x for b, x in kernel.buffers.items() if b != new}
    statements = (replace(s, buffer=old) if isinstance(s, Store) and s.buffer == new else s for s in kernel.statements)
    return Kernel(kernel.name, buffers, kernel.axes, kernel.symbols, statements, kernel.values)


def _renumbered(program: Program, steps: list[Step], same: dict[int, int]) -> Program:
    """The program with the slots in `same` gone."""
    kept = [i for i in range(len(program.slots)) if i not in same]
    number = {i: k for k, i in enumerate(kept)}
    number |= {j: number[i] for j, i in same.items()}

    def call(c: CallStep) -> CallStep:
        arguments = tuple(replace(x, slot=number[x.slot]) if isinstance(x, Argument) else x for x in c.arguments)
        return replace(c, arguments=arguments, outputs=tuple(number[i] if i >= 0 else i for i in c.outputs))

    moved: list[Step] = []
    for s in steps:
        if isinstance(s, CallStep):
            moved.append(call(s))
        else:
            buffers = {b: number[i] for b, i in s.buffers.items()}
            moved.append(replace(s, buffers=buffers, library=None if s.library is None else call(s.library)))
    return replace(
        program,
        slots=tuple(program.slots[i] for i in kept),
        steps=tuple(moved),
        inputs=tuple(number[i] for i in program.inputs),
        outputs=tuple(number[i] for i in program.outputs),
        updated=tuple(number[i] for i in program.updated),
        guards=tuple(number[i] for i in program.guards),
    )
