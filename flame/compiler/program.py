"""What a compiled graph is: slots of memory and the steps that fill them. Data only; `flame.runtime` gives it life.

    program ::= name slot* step* inputs outputs arena_bytes
    slot    ::= spec input i | spec output i | spec temp offset     one contiguous, row-major array
    step    ::= kernel {buffer: slot} {symbol: int} [library]       one fused kernel
              | call primitive(argument*) -> slot*                  a primitive run by its eager function
    argument::= view of a slot | number                             view: primitives applied to it that NumPy answers without
                                                                    a copy (permute, reshape of contiguous memory, expand)

Meaning. Steps run in order. An input slot is the caller's memory and is never written, unless it is one of `updated`: then it
holds a result afterwards, which is what the caller asked for by naming input and result in a pair. An output slot is fresh
memory that the caller keeps; graph results that are the same value share one slot. Temps live in one arena of `arena_bytes` at
64-byte aligned offsets; two temps may have overlapping memory where their lifetimes do not meet, so a temp holds nothing before
its first write. A kernel's "inout" buffer is one slot that is read and written. A kernel step with `library` may be run by that
call instead, with results that differ by rounding only.

Built by `flame.compiler.pipeline.compile_graph`; its meaning in NumPy is `flame.compiler.program_interpret`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from flame.compiler.graph import Graph, Node, Value
from flame.compiler.kernel import Kernel
from flame.primitive import Number, Primitive, Spec


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pass did or did not do, and why: what `explain()` shows.

    `verdict` is one word ("fused", "refused", "stored", "saved", "recomputed", ...), `what` names the values or nodes.
    """

    verdict: str
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.what} ({self.reason})"


#: What fusion makes of one group: the kernel, the graph value that each of its buffers is, and the node that a library may
#: run instead (its operands are buffers' values, or reached from them by nodes that are views).
FusedKernel = tuple[Kernel, dict[str, Value], Node | None]


@dataclass(slots=True)
class Fused:
    """What fusion makes of a graph: kernels and opaque nodes, in an order in which values are made before they are used."""

    steps: list[FusedKernel | Node] = field(default_factory=list)
    symbols: dict[int, dict[str, int]] = field(default_factory=dict)  #: of some steps, by number: what their symbols stand for
    decisions: list[Decision] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slot:
    """One array. `index` counts among the program's inputs or its output slots; `offset` is a temp's place in the arena."""

    spec: Spec
    kind: Literal["input", "output", "temp"]
    index: int = 0
    offset: int = 0
    name: str = ""  #: the graph value's

    @property
    def bytes(self) -> int:
        return self.spec.nbytes

    def __str__(self) -> str:
        where = f"temp+{self.offset}" if self.kind == "temp" else f"{self.kind} {self.index}"
        return f"{self.spec} {where}"


@dataclass(frozen=True, slots=True)
class Argument:
    """A slot seen through views: `views` are applied in order by their eager functions, each to one array."""

    slot: int
    views: tuple[tuple[Primitive, dict[str, Any]], ...] = ()

    def __str__(self) -> str:
        return f"s{self.slot}" + "".join(f".{p.name}({', '.join(f'{k}={v}' for k, v in q.items())})" for p, q in self.views)


@dataclass(frozen=True, slots=True)
class CallStep:
    """`node.primitive.eager(*arguments, **node.params)`; its results go to the slots `outputs` (-1: nobody reads it)."""

    node: Node
    arguments: tuple[Argument | Number, ...]
    outputs: tuple[int, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(a.slot for a in self.arguments if isinstance(a, Argument)))

    @property
    def writes(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(s for s in self.outputs if s >= 0))

    def __str__(self) -> str:
        args = [str(a) if isinstance(a, Argument) else repr(a) for a in self.arguments]
        args += [f"{k}={v!r}" for k, v in self.node.params.items()]
        left = ", ".join(f"s{s}" if s >= 0 else "_" for s in self.outputs)
        return f"{left} = {self.node.primitive.name}({', '.join(args)})"


@dataclass(frozen=True, slots=True)
class KernelStep:
    """One kernel on slots. `notes` say what of the user's program it is ("softmax model.py:12"), without repetition."""

    kernel: Kernel
    buffers: dict[str, int]  #: kernel buffer's name -> slot, in the kernel's parameter order
    symbols: dict[str, int] = field(default_factory=dict)
    library: CallStep | None = None
    notes: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        found = [s for b, s in self.buffers.items() if self.kernel.buffers[b].role != "out"]
        return tuple(dict.fromkeys(found))

    @property
    def writes(self) -> tuple[int, ...]:
        return tuple(s for b, s in self.buffers.items() if self.kernel.buffers[b].role != "in")

    def __str__(self) -> str:
        shown = [f"{b}=s{s}" for b, s in self.buffers.items()] + [f"{k}={v}" for k, v in self.symbols.items()]
        text = f"{self.kernel.name}({', '.join(shown)})"
        if self.library is not None:
            text += f"    or {self.library}"
        return text + (f"    # {', '.join(self.notes)}" if self.notes else "")


Step = KernelStep | CallStep


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled graph. `inputs` and `outputs` give the slot of every input and result of `graph`, in its order."""

    name: str
    graph: Graph
    slots: tuple[Slot, ...]
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arena_bytes: int = 0
    decisions: tuple[Decision, ...] = ()
    updated: tuple[int, ...] = ()  #: the slots of inputs that results are written over
    guards: tuple[int, ...] = ()  #: results of one bool: the program stops where one is true, and other results are undefined

    @property
    def kernels(self) -> list[Kernel]:
        return [s.kernel for s in self.steps if isinstance(s, KernelStep)]

    @property
    def output_slots(self) -> tuple[int, ...]:
        """The distinct slots of the results, by their `index`: what the caller's fresh memory is made for."""
        return tuple(dict.fromkeys(self.outputs))

    def __str__(self) -> str:
        held = [f"  s{i}: {s}" + (f"    # %{s.name}" if s.name else "") for i, s in enumerate(self.slots)]
        run = [f"  {s}" for s in self.steps]
        left = ", ".join(f"s{i}" for i in self.inputs)
        right = ", ".join(f"s{i}" for i in self.outputs)
        return "\n".join([f"program {self.name}({left}) arena {self.arena_bytes} bytes", *held, *run, f"  -> {right}"])
