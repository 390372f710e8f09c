"""A kernel's statements at one point, or at a vector of neighbouring points, written as LLVM IR.

Axes are bound to integers as loops are opened: `bind(axis, Linear)`. An integer is `Linear`: a scalar part, a stride along the
lanes, and a vector part for what is neither; so an address knows whether the lanes read one element, neighbours, or scattered
ones. Values are pulled: `need(name)` writes what is missing and remembers it.

Scopes nest as the loops do. Everything is written in the outermost scope that binds the axes it depends on, in front of the
loops inside it (`Function.into`), so loop-invariant code never needs finding again.

Memory outside a mask is not touched: an address is replaced by that of a constant (loads) or of scratch memory (stores)
unless a masked instruction does the same more cheaply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from flame.compiler.index_math import Bounds, Div, E, Mod, Val, ex, names, nonneg, subst, var
from flame.compiler.kernel import Const, IndexOf, Kernel, Load, Op, Store
from flame.compiler.llvm_address import address, index_type
from flame.compiler.llvm_machine import LlvmMachine, Value
from flame.compiler.llvm_text import Function, Int, Lines, element, literal, memory_element, repeat, suffix, vector, wide
from flame.dtypes import bool_, dtype, int32, int64
from flame.ops.access import Cond


@dataclass(frozen=True, slots=True)
class Linear:
    """scalar + stride * lane + vector[lane]. `aligned`: the scalar is a multiple of the number of lanes."""

    scalar: Int = 0
    stride: int = 0
    vector: str | None = None
    aligned: bool = False

    @property
    def uniform(self) -> bool:
        return self.stride == 0 and self.vector is None


@dataclass(slots=True)
class Scope:
    """`place` stands in front of what the scope holds; `memo` has what was written in it."""

    place: Lines
    memo: dict[Any, Any] = field(default_factory=dict)


class Point:
    """Where a kernel is being evaluated. `lanes` is the width of its vectors."""

    def __init__(
        self,
        kernel: Kernel,
        function: Function,
        machine: LlvmMachine,
        lanes: int,
        buffers: dict[str, str],
        symbols: dict[str, str],
        prefix: str = "",
    ):
        self.kernel = kernel
        self.function = function
        self.machine = machine
        self.lanes = lanes
        self.buffers = buffers
        self.scopes = [Scope(function.slot())]
        self.axes: dict[str, tuple[Linear, int]] = {s: (Linear(v), 0) for s, v in symbols.items()}
        self.integer = index_type(kernel)
        self.tail: str | None = None  #: a mask of the lanes that exist, at a loop's end
        self.within: dict[str, tuple[int, int]] = {}  #: axes known to lie in [first, last) here, for dropping masks
        self.special: Callable[[str], Value | None] = lambda name: None
        self.prefix = prefix  #: of the names of its globals
        self.constants: dict[str, str] = {}  #: globals by name, for the module
        self._sink: list[str] = []

    # -- scopes

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Open before a loop or a copy of its body; bindings and values made inside end with it."""
        axes, tail = dict(self.axes), self.tail
        self.scopes.append(Scope(self.function.slot()))
        try:
            yield
        finally:
            self.axes, self.tail = axes, tail
            self.scopes.pop()

    def open(self) -> None:
        """As `scope`, for points that walk together: closed by `close`."""
        self.scopes.append(Scope(self.function.slot()))

    def close(self, axes: dict[str, tuple[Linear, int]]) -> None:
        """End the innermost scope; `axes` are the bindings from before it."""
        self.scopes.pop()
        self.axes = axes

    def fork(self) -> Point:
        """Another point that sees the same open scopes, and then opens its own."""
        other = copy(self)
        other.scopes, other.axes = list(self.scopes), dict(self.axes)
        return other

    def bind(self, axis: str, at: Linear) -> None:
        self.axes[axis] = (at, len(self.scopes) - 1)

    def define(self, name: str, value: Value) -> None:
        """Give a statement its value in this scope."""
        self.scopes[-1].memo[name] = value

    def _find(self, key: Any) -> tuple[Any, int] | None:
        for depth in range(len(self.scopes) - 1, -1, -1):
            memo = self.scopes[depth].memo
            if key in memo:
                return memo[key], depth
        return None

    def _at(self, depth: int) -> Any:
        if depth == len(self.scopes) - 1:
            return nullcontext()
        return self.function.into(self.scopes[depth + 1].place)

    # -- integers

    def integer_of(self, e: E) -> Int:
        """An expression that does not vary along the lanes."""
        at, _ = self.linear(e)
        if not at.uniform:
            raise AssertionError(f"{e} varies along the lanes")
        return at.scalar

    def linear(self, e: E) -> tuple[Linear, int]:
        """The value of an expression, and the depth of the scope it was written in."""
        found = self._find(e)
        if found is not None:
            return found
        total, deepest = Linear(), 0
        for part, depth in self._parts(e):
            deepest = max(deepest, depth)
            with self._at(deepest):
                total = self._add(total, part)
        self.scopes[deepest].memo[e] = total
        return total, deepest

    def _parts(self, e: E) -> list[tuple[Linear, int]]:
        """The terms of an expression, outermost scope first."""
        parts = []
        for monomial, coefficient in e.terms:
            product, depth = Linear(coefficient), 0
            for atom in monomial:
                factor, at = self._atom(atom)
                depth = max(depth, at)
                with self._at(depth):
                    product = self._multiply(product, factor)
            parts.append((product, depth))
        parts.sort(key=lambda p: p[1])
        return parts

    def _add(self, a: Linear, b: Linear) -> Linear:
        v = a.vector or b.vector
        if a.vector and b.vector:
            v = self.function.emit(f"add {self._vector_type} {a.vector}, {b.vector}")
        return Linear(self.function.add(a.scalar, b.scalar), a.stride + b.stride, v)

    def _multiply(self, a: Linear, b: Linear) -> Linear:
        f = self.function
        if a.uniform and b.uniform:
            return Linear(f.mul(a.scalar, b.scalar))
        if b.uniform:
            a, b = b, a
        if a.uniform and isinstance(a.scalar, int):
            v = b.vector
            if v and a.scalar != 1:
                v = f.emit(f"mul {self._vector_type} {v}, {repeat(str(a.scalar), self.integer, self.lanes)}")
            return Linear(f.mul(a.scalar, b.scalar), a.scalar * b.stride, v)
        return Linear(0, 0, f.emit(f"mul {self._vector_type} {self.spread(a)}, {self.spread(b)}"))

    @property
    def _vector_type(self) -> str:
        return wide(self.integer, self.lanes)

    def spread(self, x: Linear) -> str:
        """As a vector of integers."""
        f, out = self.function, x.vector
        if x.stride:
            steps = vector([x.stride * i for i in range(self.lanes)], self.integer)
            out = steps if out is None else f.emit(f"add {self._vector_type} {out}, {steps}")
        if x.scalar != 0 or out is None:
            scalar = x.scalar
            if isinstance(scalar, str) and self.integer == "i32":
                scalar = f.emit(f"trunc i64 {scalar} to i32")
            same = f.splat(str(scalar), self.integer, self.lanes)
            out = same if out is None else f.emit(f"add {self._vector_type} {out}, {same}")
        return out

    def _atom(self, a: Any) -> tuple[Linear, int]:
        if isinstance(a, str):
            return self.axes[a]
        found = self._find(a)
        if found is not None:
            return found
        if isinstance(a, Val):
            x = self.need(a.name)
            depth = self.depth_of(a.name)
            with self._at(depth):
                whole = int32 if x.lanes > 1 and self.integer == "i32" else int64
                text = self.machine.cast(x, whole).text
                number: Int = int(text) if text.lstrip("-").isdigit() else text
                out = Linear(number) if x.lanes == 1 else Linear(0, 0, text)
        else:
            n, at_n = self.linear(a.numerator)
            d, at_d = self.linear(a.divisor)
            depth = max(at_n, at_d)
            with self._at(depth):
                out = self._division(a, n, d)
        self.scopes[depth].memo[a] = out
        return out, depth

    def _division(self, a: Div | Mod, n: Linear, d: Linear) -> Linear:
        f, is_div = self.function, isinstance(a, Div)
        positive = nonneg(a.numerator, self.kernel.bounds)
        if n.uniform and d.uniform:
            return Linear(self._floor(is_div, n.scalar, d.scalar, positive))
        if (
            n.stride == 1
            and n.vector is None
            and isinstance(d.scalar, int)
            and d.uniform
            and self._in_step(a.numerator, d.scalar)
        ):
            whole = self._floor(is_div, n.scalar, d.scalar, positive)
            return Linear(whole) if is_div else Linear(whole, 1, None, True)
        t = self._vector_type
        x, y = self.spread(n), self.spread(d)
        if positive:
            return Linear(0, 0, f.emit(f"{'udiv' if is_div else 'urem'} {t} {x}, {y}"))
        kind = int32 if self.integer == "i32" else int64
        q, r = self.machine.divide(Value(x, kind, self.lanes), Value(y, kind, self.lanes))
        return Linear(0, 0, (q if is_div else r).text)

    def _floor(self, is_div: bool, n: Int, d: Int, positive: bool) -> Int:
        f = self.function
        if isinstance(n, int) and isinstance(d, int):
            if d == 0:
                return 0
            return n // d if is_div else n % d
        if positive:
            return f.div(n, d) if is_div else f.rem(n, d)
        q, r = self.machine.divide(Value(str(n), int64), Value(str(d), int64))
        return (q if is_div else r).text

    def _in_step(self, e: E, divisor: int) -> bool:
        """Do the lanes stay within one multiple of the divisor? So if all begin at a multiple of the number of lanes."""
        if divisor % self.lanes:
            return False
        for monomial, c in e.terms:
            if len(monomial) == 1 and isinstance(monomial[0], str) and c == 1:
                at = self.axes[monomial[0]][0]
                if at.stride and at.aligned:
                    continue
            if c % self.lanes or any(not isinstance(a, str) or not self.axes[a][0].uniform for a in monomial):
                return False
        return True

    # -- values

    def varies(self, domain: frozenset[str]) -> bool:
        """Does a value of this domain differ between lanes?"""
        return any(not self.axes[a][0].uniform for a in domain if a in self.axes)

    def depth_of(self, name: str) -> int:
        found = self._find(name)
        if found is None:
            raise AssertionError(f"{name} has no value yet")
        return found[1]

    def need(self, name: str) -> Value:
        """The value of a statement here."""
        found = self._find(name)
        if found is not None:
            return found[0]
        given = self.special(name)
        if given is not None:
            self.scopes[-1].memo[name] = given
            return given
        value, depth = self.compute(name)
        self.scopes[depth].memo[name] = value
        return value

    def compute(self, name: str) -> tuple[Value, int]:
        """Write a statement anew; gives its value and the depth at which it stands."""
        s = self.kernel.definitions[name]
        match s:
            case Const():
                return self.machine.const(s.value, s.dtype), 0
            case IndexOf():
                return self._index_value(s)
            case Load():
                return self._load(s)
            case Op():
                operands = [self.need(v) for v in s.operands]
                depth = max((self.depth_of(v) for v in s.operands), default=0)
                with self._at(depth):
                    return self.machine.apply(s.op, operands, s.dtype), depth
        raise AssertionError(f"{name} is needed before its sweep")

    def _index_value(self, s: IndexOf) -> tuple[Value, int]:
        at, depth = self.linear(s.expr)
        with self._at(depth):
            if at.uniform:
                return self.machine.cast(Value(str(at.scalar), int64), s.dtype), depth
            kind = int32 if self.integer == "i32" else int64
            return self.machine.cast(Value(self.spread(at), kind, self.lanes), s.dtype), depth

    # -- masks

    def conditions(self, mask: tuple[Cond, ...]) -> tuple[str | None, str | None, int]:
        """(what holds for all lanes alike, what holds lane by lane, depth); None: always."""
        same: str | None = None
        each: str | None = None
        depth_same = depth_each = 0
        f = self.function
        for c in mask:
            known = self._known(c)
            if known is not None:  # here, where its axes are what they are
                depth_same = max(depth_same, *(self.axes[a][1] for a in names(c.expr) if a in self.axes))
                if known:
                    continue
                return "false", None, max(depth_same, depth_each)
            at, depth = self.linear(c.expr)
            predicate = "sge" if c.kind == "ge" else "eq"
            if at.uniform:
                depth_same = max(depth_same, depth)
                with self._at(depth_same):
                    holds = f.emit(f"icmp {predicate} i64 {at.scalar}, 0")
                    same = holds if same is None else f.emit(f"and i1 {same}, {holds}")
            else:
                depth_each = max(depth_each, depth)
                with self._at(depth_each):
                    holds = f.emit(f"icmp {predicate} {self._vector_type} {self.spread(at)}, zeroinitializer")
                    t = wide("i1", self.lanes)
                    each = holds if each is None else f.emit(f"and {t} {each}, {holds}")
        return same, each, max(depth_same, depth_each)

    def _known(self, c: Cond) -> bool | None:
        """Whether a condition holds for all lanes here, or for none, as far as numbers and ranges that axes are bound to tell."""
        env: dict[str, E | int] = {}
        ranges = dict(self.kernel.axes)
        for a in names(c.expr):
            if a in self.within:
                first, last = self.within[a]
            elif a in self.axes and self.axes[a][0].vector is None and isinstance(self.axes[a][0].scalar, int):
                at = self.axes[a][0]
                first = last = int(at.scalar)
                if at.stride not in (0, 1):
                    continue
                n = self.kernel.axes[a].const if a in self.kernel.axes else None
                last = first + (self.lanes if at.stride else 1)
                last = last if n is None or not at.stride else min(last, n)
            else:
                continue
            env[a] = first if last == first + 1 else var(a) + first
            ranges[a] = ex(last - first)
        if not env:
            return None
        e, bounds = subst(c.expr, env), Bounds(ranges, self.kernel.symbols, self.kernel.values)
        if c.kind == "ge":
            return True if nonneg(e, bounds) else False if nonneg(-e - 1, bounds) else None
        if e.const is not None:
            return e.const == 0
        return False if nonneg(e - 1, bounds) or nonneg(-e - 1, bounds) else None

    def both(self, same: str | None, each: str | None) -> str | None:
        """One mask of lanes."""
        if same is None:
            return each
        wide_same = self.function.splat(same, "i1", self.lanes)
        return wide_same if each is None else self.function.emit(f"and {wide('i1', self.lanes)} {each}, {wide_same}")

    def _with_tail(self, each: str | None) -> str | None:
        if self.tail is None:
            return each
        return self.tail if each is None else self.function.emit(f"and {wide('i1', self.lanes)} {each}, {self.tail}")

    # -- memory

    def pointer_of(self, s: Load | Store) -> tuple[str, Linear, int]:
        """The address of lane 0, what is left to add for the others, and the depth of both."""
        t = memory_element(self.kernel.buffers[s.buffer].dtype)
        e = address(self.kernel, s)
        key = ("address", s.buffer, e)
        found = self._find(key)
        if found is not None:
            return (*found[0], found[1])
        pointer, rest, deepest = self.buffers[s.buffer], Linear(), 0
        for part, depth in self._parts(e):
            deepest = max(deepest, depth)
            with self._at(deepest):
                pointer = self.function.address(pointer, part.scalar, t)
                rest = self._add(rest, Linear(0, part.stride, part.vector))
        self.scopes[deepest].memo[key] = (pointer, rest)
        return pointer, rest, deepest

    def place(self, s: Load, at: dict[str, Int]) -> str:
        """The address of a load where some axes have these values."""
        q = self.fork()
        q.open()
        for axis, i in at.items():
            q.bind(axis, Linear(i))
        pointer, rest, _ = q.pointer_of(s)
        assert rest.uniform, f"{s.name} varies along the lanes"
        return pointer

    def load(self, s: Load) -> Value:
        """A load that is not among the kernel's statements, written here and not remembered."""
        pointer, rest, _ = self.pointer_of(s)
        return self._load_at(s, pointer, rest, None, None)

    def _load(self, s: Load) -> tuple[Value, int]:
        pointer, rest, depth = self.pointer_of(s)
        same, each, depth_of_mask = self.conditions(s.mask)
        depth = max(depth, depth_of_mask)
        if not rest.uniform and self.tail is not None:
            depth = len(self.scopes) - 1  # the tail's mask was made where the lanes were
        for v in (n for e in s.index for n in _values(e)):
            depth = max(depth, self.depth_of(v))
        with self._at(depth):
            return self._load_at(s, pointer, rest, same, each), depth

    def _load_at(self, s: Load, pointer: str, rest: Linear, same: str | None, each: str | None) -> Value:
        f, n, d = self.function, self.lanes, s.dtype
        t, align = memory_element(d), d.itemsize
        other = literal(s.other, d)
        if d is bool_:
            other = "1" if s.other else "0"
        if rest.uniform:
            guard = same
            if each is not None:
                some = f.call("i1", f"llvm.vector.reduce.or.v{n}i1", [(wide("i1", n), each)])
                guard = some if guard is None else f.emit(f"and i1 {guard}, {some}")
            x = Value(f.load(t, self._or_constant(guard, pointer, t, other, 1), align), d)
            x = self._from_memory(x)
            if each is None:
                return x
            kept = Value(each, bool_, n)
            return self.machine.emit("where", kept, self.machine.widen(x, n), self.machine.const(s.other, d))
        mask = self._with_tail(each)
        if rest.stride == 1 and rest.vector is None:
            if mask is None:
                text = f.load(wide(t, n), self._or_constant(same, pointer, t, other, n), align)
            else:
                whole = self.both(same, mask)
                arguments: list[tuple[str, Int]] = [
                    (f"ptr align {align}", pointer), (wide("i1", n), whole or ""), (wide(t, n), repeat(other, t, n))
                ]  # fmt: skip
                text = f.call(wide(t, n), f"llvm.masked.load.{suffix(t, n)}.p0", arguments)
            return self._from_memory(Value(text, d, n))
        if rest.stride == -1 and rest.vector is None and mask is None and same is None:
            start = f.address(pointer, 1 - n, t)
            back = f.load(wide(t, n), start, align)
            return self._from_memory(Value(f.shuffle(t, n, back, back, range(n - 1, -1, -1)), d, n))
        if rest.stride == 2 and rest.vector is None and mask is None:
            start = self._or_constant(same, pointer, t, other, 2 * n)
            low = f.load(wide(t, n), start, align)
            high = f.load(wide(t, n), f.address(start, n - 1, t), align)  # ends with the last element that is wanted
            order = [2 * i if 2 * i < n else 2 * i + 1 for i in range(n)]
            return self._from_memory(Value(f.shuffle(t, n, low, high, order), d, n))
        if rest.stride == 2 and rest.vector is None and d.itemsize >= 4:
            return Value(self._every_second(pointer, t, align, self.both(same, mask) or "", other), d, n)
        pointers = self._pointers(pointer, rest, t)
        guard = self.both(same, mask)
        if guard is not None:
            filler = f.splat(self._constant(t, other, 1), "ptr", n)
            pointers = f.emit(f"select {wide('i1', n)} {guard}, {wide('ptr', n)} {pointers}, {wide('ptr', n)} {filler}")
        arguments = [
            (f"{wide('ptr', n)} align {align}", pointers), (wide("i1", n), repeat("true", "i1", n)), (wide(t, n), "poison")
        ]  # fmt: skip
        return self._from_memory(Value(f.call(wide(t, n), f"llvm.masked.gather.{suffix(t, n)}.v{n}p0", arguments), d, n))

    def _every_second(self, pointer: str, t: str, align: int, mask: str, other: str) -> str:
        """Every second element from `pointer` on, under a mask of lanes: by two masked loads."""
        f, n, holds = self.function, self.lanes, wide("i1", self.lanes)
        halves = []
        for start, odd in ((0, 0), (n - 1, 1)):
            lanes = [(start + e) // 2 if e % 2 == odd else n for e in range(n)]
            which = f.emit(f"shufflevector {holds} {mask}, {holds} zeroinitializer, <{n} x i32> {vector(lanes, 'i32')}")
            given: list[tuple[str, Int]] = [
                (f"ptr align {align}", f.address(pointer, start, t)), (holds, which), (wide(t, n), repeat(other, t, n))
            ]  # fmt: skip
            halves.append(f.call(wide(t, n), f"llvm.masked.load.{suffix(t, n)}.p0", given))
        return f.shuffle(t, n, halves[0], halves[1], [2 * i if 2 * i < n else 2 * i + 1 for i in range(n)])

    def _from_memory(self, x: Value) -> Value:
        """A byte of a bool is true where it is not 0."""
        if x.dtype is not bool_:
            return x
        t = wide("i8", x.lanes)
        return Value(self.function.emit(f"icmp ne {t} {x.text}, {'0' if x.lanes == 1 else 'zeroinitializer'}"), bool_, x.lanes)

    def _pointers(self, pointer: str, rest: Linear, t: str) -> str:
        steps = self.spread(rest)
        return self.function.emit(f"getelementptr {t}, ptr {pointer}, {self._vector_type} {steps}")

    def _constant(self, t: str, text: str, count: int) -> str:
        """The address of `count` equal elements in constant memory."""
        key = f"{t} {text}"
        name = self.constants.get(key)
        if name is None:
            name = f"@{self.prefix}.same{len(self.constants)}"
            self.constants[key] = name
        return name

    def _or_constant(self, guard: str | None, pointer: str, t: str, other: str, count: int) -> str:
        if guard is None:
            return pointer
        return self.function.emit(f"select i1 {guard}, ptr {pointer}, ptr {self._constant(t, other, count)}")

    def globals(self) -> list[str]:
        """The constants that loads outside their masks read, each as long as two vectors."""
        return [
            f"{name} = private unnamed_addr constant [{2 * self.lanes} x {key.split()[0]}] "
            f"[{', '.join([key] * (2 * self.lanes))}], align 64"
            for key, name in self.constants.items()
        ]

    def store(self, s: Store, value: Value | None = None) -> None:
        """Write a store at the present point."""
        f, n = self.function, self.lanes
        x = value if value is not None else self.need(s.value)
        d: dtype = self.kernel.buffers[s.buffer].dtype
        t, align = memory_element(d), d.itemsize
        pointer, rest, _ = self.pointer_of(s)
        same, each, _ = self.conditions(s.mask)
        if not rest.uniform:
            x = self.machine.widen(x, n)
        text = x.text
        if d is bool_:
            text = f.emit(f"zext {x.type} {text} to {wide('i8', x.lanes)}")
        if rest.uniform:
            if x.lanes > 1 or each is not None:
                raise AssertionError(f"the store to {s.buffer} has one address for all lanes")
            f.store(t, text, self._or_sink(same, pointer), align)
            return
        mask = self._with_tail(each)
        if rest.stride == 1 and rest.vector is None:
            if mask is None:
                f.store(wide(t, n), text, self._or_sink(same, pointer), align)
                return
            self.machine.store_some(t, n, text, pointer, align, self.both(same, mask) or "")
            return
        pointers = self._pointers(pointer, rest, t)
        guard = self.both(same, mask)
        if guard is not None:
            sink = f.splat(self._or_sink("false", pointer), "ptr", n)
            pointers = f.emit(f"select {wide('i1', n)} {guard}, {wide('ptr', n)} {pointers}, {wide('ptr', n)} {sink}")
        every = repeat("true", "i1", n)
        scattered = [(wide(t, n), text), (f"{wide('ptr', n)} align {align}", pointers), (wide("i1", n), every)]
        f.call("void", f"llvm.masked.scatter.{suffix(t, n)}.v{n}p0", scattered)

    def _or_sink(self, guard: str | None, pointer: str) -> str:
        """Where a store goes that its mask forbids: stack memory that nobody reads."""
        if guard is None:
            return pointer
        if not self._sink:
            self._sink.append(self.function.scratch("i64", self.lanes))
        sink = self._sink[0]
        return sink if guard == "false" else self.function.emit(f"select i1 {guard}, ptr {pointer}, ptr {sink}")


def _values(e: E) -> Iterator[str]:
    from_names = e.terms
    for monomial, _ in from_names:
        for a in monomial:
            if isinstance(a, Val):
                yield a.name
            elif isinstance(a, Div | Mod):
                yield from _values(a.numerator)
                yield from _values(a.divisor)


def vector_of(d: dtype, lanes: int) -> str:
    """The register type of `lanes` elements of a dtype."""
    return wide(element(d), lanes)
