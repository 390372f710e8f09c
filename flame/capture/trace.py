"""What capture remembers of a function: a tree of steps, and the names that values have in it.

    tree    ::= root step*                      each step's children are the steps that were ever seen to follow it
    step    ::= input key -> ref                the first use of a tensor from outside
              | op primitive(operand*, params) grad -> ref*
              | write target value whole                  memory is overwritten: what it held, what is written, all of it after
              | gradient ref* options inner* -> ref*      a call of backward() or grad(), or a part of one: the engine's op steps
              | function ref* -> ref*         results of an autograd.Function: the values that its forward made, with their edges
              | end kind -> root                a break or the return; what follows a break is a tree of its own
    operand ::= ref | number | Slot k           a Slot is a number that differs from call to call
    ref     ::= (value, edge)                   interned: the follower compares by identity

A ref is what an operand IS: a value (an array's contents at one moment) and a gradient edge (where its cotangent goes, None for
none). Equal values with different edges are different operands. Ids are per compiled function and never reused.
"""

from __future__ import annotations

import struct
import sys
import weakref
from dataclasses import dataclass, field
from typing import Any

from flame.capture.control import Options
from flame.primitive import Primitive, Spec
from flame.reasons import Reason
from flame.runtime.device import device


class Ref:
    """The identity of a tensor inside a capture."""

    __slots__ = ("capture", "value", "edge", "spec")
    stale = False

    def __init__(self, capture: Any, value: int, edge: int | None, spec: Spec):
        self.capture = capture
        self.value = value
        self.edge = edge
        self.spec = spec

    @property
    def run(self) -> Any:
        """The segment in flight that this belongs to, or None."""
        return self.capture.run

    def __repr__(self) -> str:
        return f"%{self.value}" + ("" if self.edge is None else f"^{self.edge}")


class Stale(Ref):
    """The ref of a tensor whose memory was written through another tensor since: to be derived anew at its next use."""

    __slots__ = ()
    stale = True


@dataclass(frozen=True, slots=True)
class Slot:
    """A run-time number: its place among the bindings of a path, and its Python type."""

    index: int
    type: type


@dataclass(frozen=True, slots=True)
class Expr:
    """A number computed from slots (inside the gradient steps of a path)."""

    expr: Any


def same_number(a: Any, b: Any) -> bool:
    """Equal in type, then in bits: NaN is itself, -0.0 is not 0.0, True is not 1."""
    if a is b:
        return True
    t = type(a)
    if t is not type(b):
        return False
    if t is float:
        return struct.pack("<d", a) == struct.pack("<d", b)
    return a == b


def exact(a: Any, b: Any) -> bool:
    """`same_number` on nested tuples and other static parameters."""
    if type(a) is not type(b):
        return False
    if type(a) is tuple:
        return len(a) == len(b) and all(map(exact, a, b))
    return same_number(a, b) if isinstance(a, int | float) else a == b


_NOTHING: frozenset = frozenset()


class Step:
    """One node of the tree. `kind` is "root", "input", "op", "write", "gradient", "function" or "end"."""

    __slots__ = (
        "kind", "primitive", "operands", "params", "exact_params", "grad", "outs", "children", "note", "source", "key", "inner",
        "guards", "options", "successor", "plan", "plans", "view", "items", "tape",
        "parent", "macros", "numpy", "depth", "plain", "paths", "waiting", "sized", "binds", "facts", "refused",
        "interrupts",
    )  # fmt: skip

    def __init__(self, kind: str, primitive: Primitive | None = None):
        self.kind = kind
        self.primitive = primitive
        self.operands: tuple = ()
        self.params: dict = {}
        self.exact_params = False  #: params hold floats or booleans, which == confuses with other numbers
        self.grad = True
        self.outs: tuple = ()
        self.children: list[Step] = []
        self.note = ""
        self.source = ""
        self.key: Any = None  #: input: what a tensor must be to match; write: the ref of what was overwritten whole
        self.inner: list[Step] = []  #: gradient: the op steps of the engine
        self.guards: tuple = ()
        self.options: Any = None  #: gradient: what the call was
        self.successor: Step | None = None  #: end of a break: the root of what follows
        self.plan: Any = None  #: end: what was compiled for the path that ends here, and ran last
        self.plans: list | None = None  #: all that was, each for other facts about sizes
        self.waiting: Any = None  #: end: the job that compiles for it in the background
        self.view = False
        self.parent: Any = None
        self.macros: list | None = None  #: the calls that were seen to begin after this step (`flame.capture.known`)
        self.depth = 0
        self.paths = 1  #: root: different ways that were seen to go on from it
        self.plain: Primitive | None = None  #: op: its primitive, where operands alone tell it: no params, one result, no view
        self.numpy: Any = None  #: input: the NumPy dtype
        self.tape: Any = None  #: end: the tape that eager would have, by the edges asked for
        self.items: tuple = ()  #: params as items, for view chains
        self.sized = False  #: its params (an input: its shape) hold Sizes, or it rests on facts about some
        self.binds: tuple[
            tuple[int, int, Any], ...
        ] = ()  #: whole numbers that it names first: (slot, least, value when recorded)
        self.facts: tuple = ()  #: what has to hold of the Sizes on the path
        self.interrupts = (
            False  #: hooks and custom functions after it are asked for by later backward passes: the graph ends there
        )
        self.refused: frozenset[Primitive] = _NOTHING  #: operations that were seen to raise here

    def __repr__(self) -> str:
        what = self.primitive.name if self.primitive else self.key or self.options or ""
        return f"{self.kind} {what}{self.operands} -> {self.outs}"


@dataclass(frozen=True, slots=True)
class InputKey:
    """What the first use of an outside tensor is told apart by."""

    spec: Spec
    strides: tuple  #: in bytes; Sizes among them as in the shape
    differentiable: bool
    leaf: bool
    alias: int | None  #: the value whose memory it is, where another tensor of the same memory came before
    volatile: bool
    contiguous: bool = True  #: row-major and dense: strides follow from the shape
    device: device | None = None  #: where it is; None: where the others are


#: the keys of inputs that stand alone (no alias of others, not volatile), each once, so that they are compared by identity
_KEYS: dict[InputKey, InputKey] = {}


def interned(key: InputKey) -> InputKey:
    """The one key equal to this one, where tensors may remember it (`Known`)."""
    return key if key.volatile or key.alias is not None else _KEYS.setdefault(key, key)


class Known:
    """How an outside tensor last entered a segment, kept on the tensor: where nothing of this changed, it enters so again.

    The trace is used again with its window, which is empty (`external` None) between two segments.
    """

    __slots__ = ("key", "array", "storage", "wants", "trace", "window", "writeable")

    def __init__(self, key: InputKey, array: Any, wants: bool | None, trace: Trace):
        self.key = key
        self.array = array  #: the very array object: whoever could give it another shape has made the tensor volatile
        self.wants = wants
        self.writeable: bool = array.flags.writeable
        self.trace = trace
        self.window = trace.window
        self.storage = trace.window.storage


MOST_REASONS = 1000


@dataclass(slots=True)
class Statistics:
    """What a compiled function did. Breaks, divergences, compilations and fallbacks are counted by (user line, reason)."""

    calls: int = 0
    replayed: int = 0  #: calls whose Python was skipped (mode="replay")
    followed: int = 0
    recorded: int = 0
    flushed: int = 0
    compiled: int = 0
    compile_seconds: float = 0.0
    compilations: dict[tuple[str, str], int] = field(
        default_factory=dict
    )  #: by the line where the path began to differ, and cause
    generalised: int = 0
    breaks: dict[tuple[str, str], int] = field(default_factory=dict)
    diverged: dict[tuple[str, str], int] = field(default_factory=dict)
    fallbacks: dict[tuple[str, str], int] = field(default_factory=dict)

    def __str__(self) -> str:
        """What happened, by the user's lines."""
        steps = f"{self.followed} steps followed, {self.recorded} recorded; {self.flushed} segments ran as kernels"
        skipped = f" ({self.replayed} of them replayed)" if self.replayed else ""
        lines = [f"{self.calls} calls{skipped}; {steps}; {self.compiled} compilations in {self.compile_seconds:.2f} s"]
        tables = (
            ("breaks", self.breaks), ("other paths", self.diverged), ("compilations", self.compilations),
            ("run eagerly", self.fallbacks),
        )  # fmt: skip
        for title, table in tables:
            if table:
                lines.append(f"{title}:")
                lines += [f"  {n} x {source + ': ' if source else ''}{reason}" for (source, reason), n in table.items()]
        return "\n".join(lines)

    def count(self, table: dict, source: str, reason: str) -> None:
        """Count it; of endlessly many reasons (they may name values) those beyond the first thousand are counted together."""
        key = (source, reason)
        if key not in table and len(table) >= MOST_REASONS:
            key = (source, f"{reason.split(' ', 1)[0]} (and other values)")
        table[key] = table.get(key, 0) + 1


class Window:
    """A piece of memory inside one run: what it holds now, and who sees it."""

    __slots__ = ("external", "current", "version", "mutations", "members", "spec", "base", "storage", "next")

    def __init__(self, external: Any, current: int, spec: Spec, storage: Any):
        self.external = external  #: the outside tensor whose memory it is; None: memory of an op's result
        self.current = current  #: value id
        self.version = 0
        self.mutations = 0
        self.members: list[weakref.ref] = []
        self.spec = spec
        self.base: Any = None  #: the array, once there is one
        self.storage = storage
        self.next: Window | None = None  #: of an outside tensor: another window of the same storage


class Trace:
    """Where a tensor sits in a window: the views that lead from the window's whole to it, and the tensor that it is an autograd
    view of (None: it is nobody's, as a detached one)."""

    __slots__ = ("window", "chain", "root")

    def __init__(self, window: Any, chain: tuple, root: Any):
        self.window: Any = window  #: None until somebody asks: that of `root` (see `Follower.window_of`)
        self.chain = chain
        self.root = root


class Capture:
    """All that is known of one compiled function: the tree, the interned refs, what was compiled, statistics."""

    __slots__ = (
        "given_up", "jobs", "name", "options", "plans", "programs", "refs", "root", "run", "spare", "stats", "values",
        "__dict__", "__weakref__",
    )  # fmt: skip

    def __init__(self, name: str, options: Options):
        self.name = name
        self.options = options
        self.root = Step("root")
        self.run: Any = None
        self.refs: dict[tuple[int, int | None], Ref] = {}
        self.values = 0
        self.stats = Statistics()
        self.given_up = ""  #: why the function runs eagerly from now on, if it does
        self.plans: list = []  #: every compiled segment, in order of compilation
        self.programs: dict = {}
        self.jobs: list = []  #: what compiles in the background, or did last
        self.spare: Any = None  #: a run that ended, to be begun again
        self.derived_twice: Any = None  #: a weak method that hears of results that were differentiated twice outside

    def ref(self, value: int, edge: int | None, spec: Spec) -> Ref:
        """The one ref of (value, edge)."""
        k = (value, edge)
        r = self.refs.get(k)
        if r is None:
            r = self.refs[k] = Ref(self, value, edge, spec)
        return r

    def give_up(self, reason: Reason, *details: object) -> None:
        """Hand the function over to eager from its next call on, and say so."""
        if not self.given_up:
            self.given_up = reason.text(*details)
            print(f"flame: {self.name} runs eagerly from its next call on: {self.given_up}. {reason.remedy}", file=sys.stderr)

    def new_id(self) -> int:
        self.values += 1
        return self.values
