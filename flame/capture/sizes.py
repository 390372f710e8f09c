"""Sizes and other whole numbers in a path that differ from call to call.

    Size        one of them, as an expression over the numbers that a run has bound: `Size(e).of(bindings)`
    SizedSpec   a spec whose shape holds such; its `shape` is that of the run in flight
    takes       whether a parameter is what a step wants, binding what is bound there first
    Sizing      while recording: which numbers of the new branch belong together, told by the old branch beside it

The second time that a place of the tree is reached with another size, recording goes on beside the branch that is there (its
SHADOW). A number that was `before` there and is `now` here becomes a symbol, or an expression of symbols that had the right
values both times. That is a guess only: whenever the path is followed, the number that Python really gives is compared with the
expression. What is between (the shapes of results, the parameters in derivative rules) is not guessed but computed, by the shape
rules and derivative rules themselves, run on symbolic sizes (`flame.compiler.dims`); what they find out on the way are facts,
which are checked at the step where they were found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flame.capture.trace import Expr, Ref, Slot, Step, exact
from flame.compiler.dims import LEAST, Dim, Fact, Space, as_tuple
from flame.compiler.graph import infer_specs
from flame.compiler.index_math import E, ex, names, show, subst, var
from flame.primitive import Primitive, Spec
from flame.symbol import Symbolic, evaluate
from flame.tensor import Tensor


class Size:
    """A whole number as an expression over the numbers bound so far. Equal expressions are one object."""

    __slots__ = ("expr", "slot", "of")

    def __init__(self, e: E):
        self.expr = e
        #: its place among the bindings, if it is just one of them
        self.slot = next((k for k in map(_slot_of, names(e)) if e == symbol(k)), None)
        self.of: Callable[[Sequence[Any]], int] = compiled(e)

    def __repr__(self) -> str:
        return str(self.expr)


def symbol(slot: int) -> E:
    return var(f"s{slot}")


def _slot_of(name: str) -> int:
    return int(name[1:])


@functools.lru_cache(None)
def size(e: E) -> Size:
    return Size(e)


@functools.lru_cache(4096)
def compiled(e: E) -> Callable[[Sequence[Any]], int]:
    """The value of an expression, as a function of the bindings."""
    return eval(f"lambda b: {show(e, {n: f'b[{_slot_of(n)}]' for n in names(e)})}", {})


@functools.lru_cache(4096)
def condition(facts: tuple[Fact, ...]) -> Callable[[Sequence[Any]], bool]:
    """Whether facts hold, as a function of the bindings."""
    tests = [
        f"({show(f.expr, {n: f'b[{_slot_of(n)}]' for n in names(f.expr)})}) {'>=' if f.kind == 'ge' else '=='} 0" for f in facts
    ]
    return eval(f"lambda b: {' and '.join(tests) or 'True'}", {})


class SizedSpec(Spec):
    """A spec of which `dims` is the shape, with Sizes in it; `shape` is what that is in the run in flight (or was, in the last)."""

    __slots__ = ("capture", "dims", "_token", "_shape")
    capture: Any
    dims: tuple
    _token: Any
    _shape: tuple[int, ...]

    def __init__(self, capture: Any, dims: tuple, dtype: Any):
        for name, value in (("capture", capture), ("dims", dims), ("dtype", dtype), ("_token", None), ("_shape", ())):
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        run = self.capture.run
        if run is not None and self._token is not run.token:
            object.__setattr__(self, "_shape", sized_at(self.dims, run.bindings))
            object.__setattr__(self, "_token", run.token)
        return self._shape

    @property
    def now(self) -> Spec:
        """A plain spec of today's shape."""
        return Spec(self.shape, self.dtype)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.dims))}]"


def dims_of(spec: Spec) -> tuple:
    """A shape, with Sizes where there are any."""
    return spec.dims if type(spec) is SizedSpec else spec.shape


def sized_at(x: Any, bindings: Sequence[Any]) -> Any:
    """A shape or parameter with numbers in place of Sizes."""
    if type(x) is Size:
        return x.of(bindings)
    return tuple([sized_at(y, bindings) for y in x]) if type(x) is tuple else x


def params_at(step: Step, bindings: Sequence[Any]) -> dict[str, Any]:
    """A step's parameters as they are now."""
    if not step.sized:
        return step.params
    return {k: sized_at(v, bindings) for k, v in step.params.items()}


def holds_sizes(x: Any) -> bool:
    return type(x) is Size or (type(x) is tuple and any(map(holds_sizes, x)))


def takes(want: Any, given: Any, step: Step, bindings: list) -> bool:
    """Whether a parameter (or shape) is what a step wants. Binds what the step is the first to name."""
    t = type(want)
    if t is Size:
        if type(given) is not int:
            return False
        k = want.slot
        if k is not None and (k >= len(bindings) or bindings[k] is None):
            least = next((least for slot, least, _ in step.binds if slot == k), None)
            if least is None or given < least:
                return False
            while len(bindings) <= k:
                bindings.append(None)
            bindings[k] = given
            return True
        return want.of(bindings) == given
    if t is tuple:
        return (
            type(given) is tuple
            and len(want) == len(given)
            and all([takes(a, b, step, bindings) for a, b in zip(want, given, strict=True)])
        )
    return exact(want, given)


def takes_params(step: Step, params: Mapping[str, Any], bindings: list) -> bool:
    """Whether an operation's parameters are a step's, and the facts hold that it rests on."""
    before = bindings[:]
    if len(params) == len(step.params) and all(
        [k in params and takes(v, params[k], step, bindings) for k, v in step.params.items()]
    ):
        if not step.facts or condition(step.facts)(bindings):
            return True
    bindings[:] = before
    return False


class SizedTensor(Tensor):
    """What derivative rules see while a path with Sizes is recorded: a tensor whose shape is symbolic. Tensors are made such for
    the time being, and are themselves again afterwards (`Sizing.symbolic_tape`)."""

    __slots__ = ()
    sizing: Sizing | None = None  #: the one that is recording

    @property
    def shape(self) -> Any:  # type: ignore[override]
        return self.spec.shape

    @property
    def spec(self) -> Spec:  # type: ignore[override]
        ref, sizing = self._ref, SizedTensor.sizing
        assert sizing is not None
        return sizing.symbolic_spec(ref.spec) if ref is not None else Spec(self._array.shape, self.dtype)

    def numel(self) -> Any:
        return self.spec.numel


class Sizing:
    """What a recording run knows of the sizes on its path."""

    def __init__(self, run: Any):
        self.run = run
        self.capture = run.capture
        self.space = Space({}, {})
        self.pairs: dict[int, tuple[int, int]] = {}  #: slot -> its value on the branch beside this one, and here
        self.old: dict[int, Any] = {}  #: what the slots of the shadow were when it was recorded
        self.map: dict[int, E] = {}  #: slot of the shadow -> what it is here
        self.near: list[tuple[E, Any, int]] = []  #: sizes of the operands at hand: here, before (None: not known), their values
        self.first: tuple = ()  #: the shape of the first of them
        self._bound: list[tuple[int, int, int]] = []
        self._swapped: list[Tensor] = []
        for s in run.path:
            for k, least, sample in s.binds:
                if type(run.bindings[k]) is int:
                    self.space.add(f"s{k}", run.bindings[k], least)
                    self.pairs[k] = (sample, run.bindings[k])
                self.old[k] = sample
                self.map[k] = symbol(k)
            for f in s.facts:
                self.space.learn(f)

    # ---- numbers that are told apart by the branch beside

    def walked(self, shadow: Step) -> None:
        """Recording stands beside a step of the shadow."""
        for k, _, sample in shadow.binds:
            self.old[k] = sample

    def number(self, before: Any, now: int, least: int, guess: bool = True) -> Any:
        """A number in place of what the shadow has there: a Size, or the number itself."""
        shadow = before
        if type(before) is Size:
            known = {f"s{k}": self.map[k] for k in map(_slot_of, names(before.expr)) if k in self.map}
            if len(known) == len(names(before.expr)):
                e = subst(before.expr, known)
                if self.space.now(e) == now:
                    return self._size(e)
            if any(k not in self.old for k in map(_slot_of, names(before.expr))):
                return now
            before = before.of(self.old)  # type: ignore[arg-type]
        if type(before) is not int or before == now:
            return now
        found = self._fitting(before, now, guess)
        if found is None and (before < least or now < least):
            return now
        e = symbol(self._bind(before, now, least)) if found is None else found
        if type(shadow) is Size and shadow.slot is not None and shadow.slot not in self.map:
            self.map[shadow.slot] = e
        return self._size(e)

    def beside(self, operands: Sequence[Any], shadow: Sequence[Any]) -> None:
        """The operands of the operation that is recorded next, and those that the shadow has there (or none). Their sizes, and
        products of neighbouring ones, are what its parameters are likely to be."""
        self.near.clear()
        self.first = next((o.spec.dims for o in operands if type(o) is Ref and type(o.spec) is SizedSpec), ())
        for i, o in enumerate(operands):
            if type(o) is not Ref or type(o.spec) is not SizedSpec:
                continue
            dims = o.spec.dims
            before = dims_of(shadow[i].spec) if i < len(shadow) and type(shadow[i]) is Ref else ()
            old = [self._before(d) for d in before] if len(before) == len(dims) else [None] * len(dims)
            for k in range(len(dims)):
                e = ex(1)
                was: int | None = 1
                for d, o_d in zip(dims[k:], old[k:], strict=True):
                    e = e * (d.expr if type(d) is Size else d)
                    was = None if was is None or o_d is None else was * o_d
                    if names(e):
                        self.near.append((e, was, self.space.now(e)))

    def _before(self, d: Any) -> int | None:
        """What a size of the shadow was when it was recorded."""
        if type(d) is not Size:
            return d
        return d.of(self.old) if all(s in self.old for s in map(_slot_of, names(d.expr))) else None  # type: ignore[arg-type]

    def unshadowed(self, name: str, now: Any) -> Any:
        """A parameter where there is no shadow to tell sizes from constants. In a shape, what an operand's size is now is that
        size; the bounds of a slice are those of the dimension, or multiples of what it is a multiple of."""
        if name == "shape":
            return tuple([next((self._size(e) for e, _, b in self.near if b == n and n >= LEAST), n) for n in now])
        if name in ("starts", "stops") and len(now) == len(self.first):
            return tuple([self._part(n, d) for n, d in zip(now, self.first, strict=True)])
        return now

    def _part(self, n: int, d: Any) -> Any:
        if type(d) is not Size or n == 0:
            return n
        if self.space.now(d.expr) == n:
            return d
        for monomial, _ in d.expr.terms if len(d.expr.terms) == 1 and len(d.expr.terms[0][0]) > 1 else ():
            for name in monomial:
                e = var(name) if isinstance(name, str) else ex(1)
                if self.space.now(e) > 1 and n % self.space.now(e) == 0:
                    return self._size(e * (n // self.space.now(e)))
        return n

    def _size(self, e: E) -> Any:
        e = self.space.normal(e)
        return size(e) if e.const is None else e.const

    def _bind(self, before: int, now: int, least: int) -> int:
        slot = len(self.run.bindings)
        self.run.bindings.append(now)
        self.space.add(f"s{slot}", now, least)
        self.pairs[slot] = (before, now)
        self._bound.append((slot, least, now))
        return slot

    def bound(self) -> tuple[tuple[int, int, int], ...]:
        """What was bound since this was asked last."""
        out, self._bound = tuple(self._bound), []
        return out

    def _fitting(self, o: int, n: int, guess: bool) -> E | None:
        """The plainest expression of the symbols that was `o` before and is `n` now; without `guess`, only a symbol itself."""
        varying = [(symbol(k), a, b) for k, (a, b) in self.pairs.items() if a != b]
        for e, a, b in self.near if guess else ():
            if (a, b) == (o, n):
                return e
        for e, a, b in varying:
            if (a, b) == (o, n):
                return e
        if not guess:
            return None
        for e, a, b in varying:
            if n - b == o - a:
                return e + (n - b)
        for e, a, b in varying:
            if a > 0 < b and o % a == 0 and n % b == 0 and o // a == n // b:
                return e * (o // a)
        for e, a, b in varying:
            for c in range(2, 9):
                if (a // c, b // c) == (o, n):
                    return e // c
                if (-(-a // c), -(-b // c)) == (o, n):
                    return (e + (c - 1)) // c
        everything = [(symbol(k), a, b) for k, (a, b) in self.pairs.items()]
        for i, (e, a, b) in enumerate(everything):
            for f, c, d in everything[i:]:
                if a * c > 0 and b * d > 0 and o % (a * c) == 0 and n % (b * d) == 0 and o // (a * c) == n // (b * d):
                    return e * f * (o // (a * c))
        for e, a, b in varying:
            if (n - o) % (b - a) == 0 and (k := (n - o) // (b - a)) > 0:
                return e * k + (o - k * a)
        return None

    def parameter(self, before: Any, now: Any, least: int = 0) -> Any:
        """A parameter in place of the shadow's, number by number."""
        if type(now) is tuple:
            if type(before) is not tuple or len(before) != len(now):
                before = [None] * len(now)
            return tuple([self.parameter(a, b, least) for a, b in zip(before, now, strict=True)])
        if type(now) is Dim:
            return self._size(now.expression)
        return self.number(before, now, least) if type(now) is int and type(before) in (int, Size) else now

    def dimensions(self, before: tuple, now: tuple[int, ...]) -> tuple:
        """The shape of a tensor from outside in place of the shadow's: what varies alike is one size."""
        return tuple([n if n < LEAST else self.number(o, n, LEAST, guess=False) for o, n in zip(before, now, strict=True)])

    # ---- what follows from them

    def symbolic(self, x: Any) -> Any:
        """A shape or parameter with Dims in place of Sizes."""
        if type(x) is Size:
            return self.space.size(x.expr)
        return tuple([self.symbolic(y) for y in x]) if type(x) is tuple else x

    def symbolic_spec(self, spec: Spec) -> Spec:
        return Spec(self.symbolic(spec.dims), spec.dtype) if type(spec) is SizedSpec else spec

    def results(
        self, primitive: Primitive, want: Sequence[Any], params: dict, specs: Sequence[Spec]
    ) -> tuple[list[Spec], tuple[Fact, ...]]:
        """The specs of an operation's results, which are `specs` now; and the facts that they rest on."""
        symbolic = any(type(o) is Ref and type(o.spec) is SizedSpec for o in want) or any(map(holds_sizes, params.values()))
        if not symbolic:
            return list(specs), ()
        n = len(self.space.facts)
        operands = [self.symbolic_spec(o.spec) if type(o) is Ref else plain_number(o, self.run.bindings) for o in want]
        given = {k: self.symbolic(v) for k, v in params.items()}
        try:
            found: Sequence[Spec] = infer_specs(primitive, operands, given)
            for s in found:
                for d in s.shape:
                    if type(d) is Dim and not d >= LEAST:
                        self.space.fix(d.expression)
            dims = [tuple([self._size(d.expression) if type(d) is Dim else d for d in s.shape]) for s in found]
            right = [(sized_at(d, self.run.bindings), s.dtype) for d, s in zip(dims, found, strict=True)] == [
                (s.shape, s.dtype) for s in specs
            ]
        except (TypeError, ValueError, RuntimeError, IndexError, ArithmeticError):
            right = False
        if not right:  # a rule that can't be run on symbolic sizes: from here on, the path is for these sizes alone
            for x in (*(s.shape for s in operands if isinstance(s, Spec)), *given.values()):
                self._fix(x)
            dims = [s.shape for s in specs]
        out = [SizedSpec(self.capture, d, s.dtype) if holds_sizes(d) else s for d, s in zip(dims, specs, strict=True)]
        return out, tuple(self.space.facts[n:])

    def _fix(self, x: Any) -> None:
        if type(x) is Dim:
            self.space.fix(x.expression)
        elif type(x) is tuple:
            for y in x:
                self._fix(y)

    # ---- derivative rules on symbolic sizes

    def swap(self, t: Any) -> None:
        """Make a tensor show its symbolic shape, until `symbolic_tape` ends."""
        if type(t) is Tensor and t._ref is not None and type(t._ref.spec) is SizedSpec:
            t.__class__ = SizedTensor
            self._swapped.append(t)

    @contextmanager
    def symbolic_tape(self, nodes: Iterable[Any], tensors: Iterable[Any]) -> Iterator[None]:
        """Meanwhile, the rules of these nodes of the tape see symbolic sizes, in tensors and in parameters."""
        before = []
        SizedTensor.sizing = self
        try:
            for node in nodes:
                step = getattr(node, "step", None)
                if step is None:
                    continue
                before.append((node, node.operands, node.params, node.outputs))
                for t in (*node.operands, *node.results):
                    self.swap(t)
                node.operands = tuple(
                    self.symbolic_spec(o.spec) if isinstance(x, Spec) and type(o) is Ref else x
                    for x, o in zip(node.operands, step.operands, strict=True)
                )
                node.params = {k: self.symbolic(v) for k, v in step.params.items()}
                node.outputs = tuple(self.symbolic_spec(r.spec) for r in step.outs)
            for t in tensors:
                self.swap(t)
            yield
        finally:
            SizedTensor.sizing = None
            for node, operands, params, outputs in before:
                node.params, node.outputs = params, outputs
                if not node.released:
                    node.operands = operands
            for t in self._swapped:
                if type(t) is SizedTensor:
                    t.__class__ = Tensor  # type: ignore[assignment]
            self._swapped.clear()


def plain_number(o: Any, bindings: Sequence[Any]) -> Any:
    """A number operand as it is now."""
    if type(o) is Slot:
        return bindings[o.index]
    if type(o) is Expr:
        return evaluate(o.expr, bindings)
    return o


def number_of(d: Dim) -> Symbolic:
    """A size as a number operand."""
    return Symbolic(d.space.now(d.expression), as_tuple(d.expression))
