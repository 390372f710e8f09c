"""The primitive: one record that everything else is derived from; its registry; and `bind`, the way every one is called.

    operand  ::= tensor | number                 positional; what an interpreter's values are, plus Python numbers
    params   ::= keyword arguments, static and hashable (ints, strings, dtypes, tuples of these)
    bind     ::= primitive operand* param* -> the answer of the interpreter in force

Operands of one primitive are strict: tensors among them have equal dtypes (except where a record says otherwise, as
`where`'s condition and `gather`'s index), and a Python number is read in that dtype. Promotion is done above, by the
methods that users call. Elementwise primitives broadcast as NumPy does; whoever differentiates undoes it once.

An interpreter is an object with `process(primitive, operands, params)`. The base interpreter runs things eagerly (it is
installed by `flame.tensor`); tracing a graph and following a captured one are others, pushed for a while on one thread.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from flame.dtypes import dtype
from flame.precision import casting, has_policy, in_force

Number = bool | int | float


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of an array without its values."""

    shape: tuple[int, ...]
    dtype: dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Scalar:
    """How one element of an elementwise primitive is computed inside a kernel.

    `define(m, *operands)` builds it from a machine's basic operations (`flame.ops.machine.Machine`): the same function
    makes NumPy, LLVM IR and Triton source. None means that the primitive's own name is a basic operation of every machine.
    `triton` is an optional Triton spelling that is at least as accurate, with {0}, {1}, ... for the operands.
    """

    define: Callable[..., Any] | None = None
    triton: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """The cotangent of one operand: `apply(g, y, *operands, **params)`.

    In the function it is made from, a parameter whose name begins with an underscore is used for its shape and dtype only,
    so that its values need not be kept for the backward pass: `lambda g, _y, _a, b: g * b` keeps `b` alone.
    """

    apply: Callable[..., Any]
    saves_output: bool
    saves_operands: tuple[bool, ...]  #: one flag an operand; the last stands for all that follow in a variadic primitive
    joint: bool = False  #: answers with the cotangents of all operands at once, unless asked for that of `operand`
    first: int | None = None  #: of a joint rule: operands from this one on have no derivative
    absent: bool = False  #: of several results: those that nothing flows into are None, not zeros

    def saves(self, operand: int) -> bool:
        return self.saves_operands[min(operand, len(self.saves_operands) - 1)]

    @classmethod
    def of(cls, f: Callable[..., Any]) -> Rule:
        ps = list(inspect.signature(f).parameters.values())
        positional = [p for p in ps if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        variadic = next((p for p in ps if p.kind is p.VAR_POSITIONAL), None)
        if len(positional) < 2:
            raise TypeError("a derivative rule takes (g, y, *operands, **params)")
        keeps = tuple(not p.name.startswith("_") for p in positional[2:])
        if variadic is not None:
            keeps += (not variadic.name.startswith("_"),)
        return cls(
            f,
            not positional[1].name.startswith("_"),
            keeps,
            getattr(f, "joint", False),
            getattr(f, "first", None),
            getattr(f, "absent", False),
        )


def joint(f: Callable[..., Any], first: int | None = None, absent: bool = False) -> Callable[..., Any]:
    """A rule `f(g, y, *operands, **params)` that answers with a tuple, one cotangent an operand, as the rule of a primitive; with
    `first`, operands from that number on have no derivative, and None in their place. With `absent`, cotangents of results that
    nothing flows into are None."""

    @functools.wraps(f)
    def rule(*arguments: Any, operand: int | None = None, **params: Any) -> Any:
        answers = f(*arguments, **params)
        return answers if operand is None else answers[operand]

    rule.joint, rule.first, rule.absent = True, first, absent  # type: ignore[attr-defined]
    return rule


@dataclass(frozen=True, eq=False, slots=True)
class Primitive:
    """One operation. Identity is the object; `name` is its name in graphs, kernels and messages."""

    name: str
    #: elementwise | reduce | movement | contract | index | create | random | opaque
    kind: str
    #: shape rule: infer(*specs_or_numbers, **params) -> Spec, or a tuple of Specs for several results. Raises what the
    #: user's call should raise when operands do not fit.
    infer: Callable[..., Any]
    #: meaning on NumPy arrays: eager(*arrays_or_numbers, **params) -> array (or tuple)
    eager: Callable[..., Any]
    #: one rule an operand (None: no derivative flows there); a single Rule for a variadic primitive, which is then
    #: also given `operand=i`, or for one whose cotangents are computed together (`joint`); None: not differentiable
    vjp: tuple[Rule | None, ...] | Rule | None = None
    scalar: Scalar | None = None
    #: for structural kinds: how a kernel reads it (see flame.ops.access); None with scalar None: an opaque library call
    lower: Any = None
    #: which operands hold positions, and in what they must lie: positions(*specs, **params) -> ((operand, dim, size, least), ...);
    #: eager checks them itself, compiled code before it runs
    positions: Callable[..., Any] | None = None
    #: the result shares the operand's memory (reshape, permute, slice, expand, ...)
    view: bool = False
    #: samples() -> iterator of (operands, params), operands being NumPy arrays and numbers
    samples: Callable[[], Iterator[tuple[tuple, dict]]] | None = None
    #: for elementwise primitives whose derivative is needed nowhere (comparisons) or whose record leaves a cell empty on
    #: purpose: the cell's name -> the reason
    refused: dict[str, str] = field(default_factory=dict)
    #: names of the Tensor methods and functions that come from this record as they are ("" means none)
    method: str = ""
    doc: str = ""

    def __call__(self, *operands: Any, **params: Any) -> Any:
        return applied(self, operands, params)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple:
        return (registered, (self.name,))

    def rule(self, operand: int) -> Rule | None:
        """The derivative rule of one operand, or None."""
        if isinstance(self.vjp, tuple):
            return self.vjp[operand] if operand < len(self.vjp) else None
        if self.vjp is not None and self.vjp.first is not None and operand >= self.vjp.first:
            return None
        return self.vjp


def takes_none(p: Primitive) -> bool:
    """Is a primitive's rule told None for results that nothing flows into?"""
    return isinstance(p.vjp, Rule) and p.vjp.absent


class Maker(Primitive):
    """A primitive of kind create or random: it may have no tensors among its operands, and its result then lives where its
    parameter `place` says, the name of a device; left out, it goes wherever it is used."""

    __slots__ = ()

    def __call__(self, *operands: Any, **params: Any) -> Any:
        place = force.place
        if place is not None and not any([hasattr(o, "shape") for o in operands]):
            params["place"] = str(place)
        return bind(self, *operands, **params)


REGISTRY: dict[str, Primitive] = {}


def registered(name: str) -> Primitive:
    return REGISTRY[name]


def register(
    name: str,
    *,
    kind: str,
    infer: Callable[..., Any],
    eager: Callable[..., Any],
    vjp: Sequence[Callable[..., Any] | None] | Callable[..., Any] | None = None,
    **cells: Any,
) -> Primitive:
    """Make a primitive and enter it in the registry; `vjp` is given as plain functions."""
    if name in REGISTRY:
        raise ValueError(f"primitive {name!r} is registered twice")
    rules: tuple[Rule | None, ...] | Rule | None
    if vjp is None:
        rules = None
    elif callable(vjp):
        rules = Rule.of(vjp)
    else:
        rules = tuple(None if f is None else Rule.of(f) for f in vjp)
    made = Maker if kind in ("create", "random") else Primitive
    p = REGISTRY[name] = made(name, kind, infer, eager, rules, **cells)
    return p


class Interpreter(Protocol):
    def process(self, primitive: Primitive, operands: tuple, params: dict) -> Any: ...

    def composite(self, f: Callable[..., Any], name: str, args: tuple, kwargs: dict) -> Any: ...


class _Force(threading.local):
    """What is in force on this thread: the interpreter (None: the base interpreter), and whether derivatives are recorded."""

    interpreter: Any = None
    resting: Any = None  #: the interpreter that a backward pass in its midst, run by the base one, calls the user's Python with
    grad: bool = True
    inference: bool = False
    examples: tuple[int, ...] = ()  #: the batches for each of whose examples random numbers are drawn anew
    note: str = ""  #: the composite that is running: a comment in generated code
    place: Any = None  #: the device for what is made from no tensors; None: that of whatever it meets


class _Placement:
    """Whether any array was ever made on a GPU: until then nobody need ask where an array is. `beside(f, args, kwargs)` calls a
    function with what it makes from no tensors placed where its tensors are.

    `direct`: all arrays are NumPy's, and nobody has eager operations `watched`, so that who is sure of its operands may call NumPy.
    `whole`: all arrays are NumPy's, and nobody who watches wants composites taken `apart` into their operations.
    """

    __slots__ = ("gpu", "watched", "apart", "direct", "whole", "beside")
    gpu: bool
    watched: bool
    apart: bool
    direct: bool
    whole: bool

    def __init__(self) -> None:
        for name in ("gpu", "watched", "apart"):
            object.__setattr__(self, name, False)
        self.beside: Callable[[Callable[..., Any], tuple, dict], Any] = lambda f, args, kwargs: f(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        object.__setattr__(self, "direct", not (self.gpu or self.watched))
        object.__setattr__(self, "whole", not (self.gpu or self.apart))


force = _Force()
placement = _Placement()
_base: Interpreter | None = None


def install_base_interpreter(interpreter: Interpreter) -> None:
    """Called once, by the module that owns eager tensors."""
    global _base
    _base = interpreter


def bind(primitive: Primitive, *operands: Any, **params: Any) -> Any:
    """Apply a primitive under the interpreter in force."""
    return applied(primitive, operands, params)


def applied(primitive: Primitive, operands: tuple, params: dict[str, Any]) -> Any:
    """The same, given tuple and dictionary."""
    run = force.interpreter
    return (_base if run is None else run).process(primitive, operands, params)  # type: ignore[union-attr]


@contextmanager
def interpreting(interpreter: Interpreter | None) -> Iterator[None]:
    """Put `interpreter` in force on this thread (None: the base interpreter)."""
    before = force.interpreter
    force.interpreter = interpreter
    try:
        yield
    finally:
        force.interpreter = before


def composite(f: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function over primitives by its name: graphs, explanations and generated kernels show it; capture knows its calls."""
    return _known_by_capture(f, f.__name__)


def followed(f: Callable[..., Any]) -> Callable[..., Any]:
    """Have capture know the calls of a function over primitives, which is no more than its operations: it leaves no name."""
    return _known_by_capture(f, "")


#: composite's function -> what tells of an argument of a wrong type, asked where a call (args, kwargs) has failed
telling: dict[Callable[..., Any], Callable[[tuple, dict], TypeError | None]] = {}
#: what functions fail with that were given a string for a tensor or a number
FAILURES = (AttributeError, ValueError, RuntimeError, IndexError)


def _tell(f: Callable[..., Any], args: tuple, kwargs: dict, failure: Exception) -> None:
    told = telling[f](args, kwargs) if f in telling else None
    if told is not None:
        raise told from failure


#: NumPy's words for parameters, which PyTorch takes in place of its own
_SYNONYMS = {"axis": "dim", "keepdims": "keepdim"}


def renamed(f: Callable[..., Any], kwargs: dict) -> dict | None:
    """The arguments by name of a call that failed, with PyTorch's words in place of NumPy's; None where that changes nothing."""
    if kwargs.keys().isdisjoint(_SYNONYMS):
        return None
    taken = inspect.signature(f).parameters
    found = {_SYNONYMS[k] if k in _SYNONYMS and k not in taken and _SYNONYMS[k] in taken else k: v for k, v in kwargs.items()}
    return found if len(found) == len(kwargs) and found.keys() != kwargs.keys() else None


def synonymous(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, called with `axis` for `dim` and `keepdims` for `keepdim` too: as composites are, which need no further function."""
    if hasattr(f, "composite") or "dim" not in inspect.signature(f).parameters:
        return f

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return f(*args, **kwargs)
        except TypeError:
            words = renamed(f, kwargs)
            if words is None:
                raise
        return f(*args, **words)

    return call


def _known_by_capture(f: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(f)
    def known(*args: Any, **kwargs: Any) -> Any:
        try:
            run = force.interpreter
            if run is not None:
                if placement.gpu:
                    return placement.beside(lambda *a, **k: run.composite(f, name, a, k), args, kwargs)
                return run.composite(f, name, args, kwargs)
            return placement.beside(f, args, kwargs) if placement.gpu else f(*args, **kwargs)
        except FAILURES as e:
            _tell(f, args, kwargs, e)
            raise
        except TypeError:
            words = renamed(f, kwargs)
            if words is None:
                raise
        return known(*args, **words)

    policy = f.__name__
    if not has_policy(policy):
        known.composite = known, f, name  # type: ignore[attr-defined]
        return known

    @functools.wraps(known)
    def with_policy(*args: Any, **kwargs: Any) -> Any:  # (`precise(known)` in one function: a second one cost 0.15 us a call)
        if casting.threads and (casts := in_force.casts) is not None:
            return casts.call(policy, known, args, kwargs)
        if placement.gpu:
            return known(*args, **kwargs)
        try:
            run = force.interpreter
            return f(*args, **kwargs) if run is None else run.composite(f, name, args, kwargs)
        except FAILURES as e:
            _tell(f, args, kwargs, e)
            raise
        except TypeError:
            words = renamed(f, kwargs)
            if words is None:
                raise
        return with_policy(*args, **words)

    with_policy.policy = policy  # type: ignore[attr-defined]
    with_policy.composite = with_policy, f, name  # type: ignore[attr-defined]
    return with_policy


def beside(f: Callable[..., Any]) -> Callable[..., Any]:
    """Have what a function of flame's makes from no tensors lie where its first tensor on a GPU is. (Composites do so anyway.)"""

    @functools.wraps(f)
    def placed(*args: Any, **kwargs: Any) -> Any:
        return placement.beside(f, args, kwargs) if placement.gpu else f(*args, **kwargs)

    return placed


def broadcast_shapes(*shapes: tuple[int, ...], op: str = "broadcast_shapes") -> tuple[int, ...]:
    """The shape that all broadcast to. Raises RuntimeError (PyTorch's words) where they do not fit."""
    first = shapes[0]
    if all(s == first for s in shapes):
        return first
    n = max(map(len, shapes))
    out = [1] * n
    for s in shapes:
        for i, d in enumerate(s, n - len(s)):
            if d != 1 and out[i] != d:
                if out[i] != 1:
                    raise RuntimeError(
                        f"{op}: the size of tensor a ({out[i]}) must match the size of tensor b ({d}) at non-singleton "
                        f"dimension {i}; the shapes were {', '.join(map(str, map(list, shapes)))}"
                    )
                out[i] = d
    return tuple(out)
