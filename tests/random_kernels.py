"""Random kernels, for fuzzing whatever reads or rewrites the IR: `random_case(seed)` gives a case as in kernels_for_tests.

The same seed gives the same kernel. Loads are permuted, broadcast, sliced, reversed, strided, padded, folded (two axes in one
dimension) and unfolded (one axis in two); values go through arithmetic, reductions, contractions and second sweeps. What
would magnify rounding is left out: conditions and arg reductions look at loaded values, never at computed ones.
"""

from __future__ import annotations

import random

from kernels_for_tests import BF16, BOOL, F16, F32, F64, I64, Case, Make

from flame import dtypes
from flame.compiler.index_math import E, evaluate, ex, val, var
from flame.ops.access import Cond

EXTENTS = (1, 2, 3, 4, 5, 6, 8, 12, 17, 33)


class _Random(Make):
    def __init__(self, seed: int):
        super().__init__(f"random{seed}")
        self.r = random.Random(seed)
        self.kept = [f"i{n}" for n in range(self.r.choice((1, 2, 2, 3)))]
        self.reduced = [f"r{n}" for n in range(self.r.choice((0, 1, 1, 2)))]
        for a in (*self.kept, *self.reduced):
            size = self.r.choice(EXTENTS)
            self.axes[a] = self.symbol(f"n_{a}", size + 1) if self.r.random() < 0.12 else ex(size)

    def pick(self, axes: list[str], most: int = 9) -> list[str]:
        """Some of the axes, in any order."""
        n = min(len(axes), self.r.randint(min(1, len(axes)), most))
        return self.r.sample(axes, n)

    def dimension(self, a: str) -> tuple[list[E], list[E], list[Cond]]:
        """Indices that walk axis `a`, the extents of their dimensions, and the condition to load."""
        x, n, p = var(a), self.axes[a], self.r.randint(1, 3)
        match self.r.randrange(12):
            case 0:
                return [x + p], [n + p + 1], []
            case 1:
                return [n - 1 - x], [n], []
            case 2:
                return [2 * x + 1], [2 * n + 1], []
            case 3:
                return [x - p], [n + 2], [Cond(x - p), Cond(n + 1 + p - x)]
            case 4 if n.const is not None and n.const > p:
                return [x], [n - p], [Cond(n - 1 - p - x)]
            case 5 | 6 if n.const in (4, 6, 8, 12):
                d = self.r.choice((2, n.const // 2))
                return [x // d, x % d], [ex(n.const // d), ex(d)], []
            case 7 if n.const is not None:
                return [x // 2], [(n + 1) // 2], []
            case 8 if n.const is not None:
                return [x % 3], [ex(3)], []
        return [x], [n], []

    def input(self, axes: list[str], kind: dtypes.dtype | None = None) -> str:
        """A load that varies with `axes`, as float32 unless `kind` is given."""
        d = kind or self.r.choice((F32, F32, F32, F64, F16, BF16, dtypes.int32, dtypes.uint8))
        index: list[E] = []
        shape: list[E] = []
        mask: list[Cond] = []
        if len(axes) > 1 and self.r.random() < 0.25:
            a, b = axes[:2]
            axes = axes[2:]
            index, shape = [var(a) * self.axes[b] + var(b)], [self.axes[a] * self.axes[b]]
        for a in axes:
            i, s, c = self.dimension(a)
            index, shape, mask = index + i, shape + s, mask + c
        if self.r.random() < 0.05 and index:
            n = self.r.randint(3, 9)
            at = self.add_index(axes, n)
            index, shape = [val(at), *index], [ex(n), *shape]
        other = self.r.choice((0, 0, 1)) if mask else 0
        got = self.load(f"x{len(self.buffers)}", index, d, shape=shape, mask=mask, other=other, wide=kind is None)
        return got if self.kinds[got] is F32 or kind is not None else self.op("cast", got, d=F32)

    def add_index(self, axes: list[str], n: int) -> str:
        """An integer in [0, n) from memory."""
        axes = axes or self.kept
        raw = self.load(f"x{len(self.buffers)}", [var(a) for a in axes], I64, shape=[self.axes[a] for a in axes])
        return self.op("remainder_int", raw, self.const(n, I64))

    def combine(self, *values: str) -> str:
        """One float32 value of them all."""
        out = values[0]
        for v in values[1:]:
            name = self.r.choice(("add", "sub", "mul", "maximum", "minimum", "add"))
            out = self.op(name, *self.r.sample((out, v), 2))
        match self.r.randrange(6):
            case 0:
                return self.op("neg", out)
            case 1:
                return self.op("exp", self.op("neg", self.op("abs", out)))
            case 2:
                return self.op("mul", out, self.const(self.r.choice((0.5, -2.0, 3.0)), F32))
            case 3:
                return self.op("where", self.input(self.pick(self.kept), BOOL), out, self.const(1.5, F32))
            case 4:
                return self.op("add", out, self.op("cast", self.index(var(self.kept[0]) + 1), d=F32))
        return out

    def output(self, v: str) -> None:
        """Store `v`, permuted, perhaps reversed or into a part of a larger buffer, perhaps rounded."""
        axes = [a for a in self.axes if a in self.case()[0].domains[v]]
        self.r.shuffle(axes)
        index, shape = [], []
        for a in axes:
            n = self.axes[a]
            at, size = self.r.choice(((var(a), n), (var(a), n), (var(a), n), (n - 1 - var(a), n), (var(a) + 1, n + 2)))
            index.append(at)
            shape.append(size)
        rounded = self.r.choice((None, None, None, F16, BF16)) if self.kinds[v] is F32 else None
        mask = [Cond(self.axes[axes[0]] - 2 - var(axes[0]))] if axes and self.r.random() < 0.1 else []
        self.store(f"o{len(self.buffers)}", index, v, d=rounded, shape=shape, mask=mask)


def random_case(seed: int) -> Case:
    m = _Random(seed)
    r, every = m.r, [*m.kept, *m.reduced]
    values = [m.input(m.pick(every)) for _ in range(r.randint(1, 3))]
    if m.reduced and r.random() < 0.35:
        left = m.input([*m.pick(m.kept, 2), *m.reduced], F32)
        right = m.input([*m.reduced, *m.pick(m.kept, 2)], F32)
        if r.random() < 0.4:
            left = m.op("mul", left, m.input(m.pick(m.kept)))
        product = m.contract(left, right, *m.reduced)
        m.output(m.combine(product, m.input(m.pick(m.kept))))
        return m.case()
    x = m.combine(*values)
    if not m.reduced:
        m.output(x)
        if r.random() < 0.4:
            m.output(m.combine(x, values[0]))
        return m.case()
    reductions = [m.reduce(r.choice(("sum", "max", "min", "sum")), x, *m.reduced) for _ in range(r.randint(1, 2))]
    total = m.combine(*reductions, m.input(m.pick(m.kept)))
    m.output(total)
    match r.randrange(4):
        case 0:
            m.output(m.combine(x, total))
        case 1:
            again = m.op("sub", x, total)
            m.output(m.op("mul", again, m.reduce("max", again, *m.reduced)))
        case 2:
            name = r.choice(("argmax", "argmin", "any", "all"))
            m.output(m.reduce(name, m.input(m.pick(every), BOOL if name in ("any", "all") else F32), *m.reduced))
    return m.case()


def sizes(case: Case) -> dict[str, int]:
    """The extents of a case's axes."""
    return {a: int(evaluate(n, case[2])) for a, n in case[0].axes.items()}
