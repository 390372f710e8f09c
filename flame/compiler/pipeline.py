"""From a captured graph to a program: every pass, in order. Read `compile_graph` first.

    expand        what this target has no routine for               Graph -> Graph
    simplify      equations, common subexpressions, dead code       Graph -> Graph
    lay out       copies in the order that convolutions read        Graph -> Graph
    own results   results that are inputs are copied                Graph -> Graph
    fuse          groups of nodes, lowered to kernels               Graph -> Fused
    link          slots and steps                                   Fused -> Program
    update        results written over the inputs they replace      Program -> Program
    in place      kernels that write over what dies with them       Program -> Program
    plan memory   offsets in one arena                              Program -> Program

A graph whose sizes are symbolic becomes a program whose kernels are for all of them; `concrete.program_at` makes one that can be
run of it, for sizes that are known.

Each pass is a function of data; nothing here reads a clock, a file or the environment: whoever compiles passes them in. One
runner (`Passes.run`) names, times, verifies and shows every pass. Differentiation stands before all this, in
`flame.compiler.autodiff`, because a training step hands its forward and backward graphs in separately or as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flame.compiler import kernel as kernel_ir
from flame.compiler.dims import space_of
from flame.compiler.expand import expand, refusals
from flame.compiler.fusion import fuse
from flame.compiler.graph import Graph
from flame.compiler.layouts import lay_out
from flame.compiler.link import link, own_results, verify_program
from flame.compiler.memory import in_place, plan, update
from flame.compiler.program import Fused, Program
from flame.compiler.simplify import simplify
from flame.compiler.target import Target
from flame.errors import CompileError, VerificationError

Log = Callable[[str, str], None]  #: called with a topic (passes, graph, fusion, kernels) and a text
Clock = Callable[[], float]  #: seconds


def compile_graph(
    graph: Graph,
    target: Target,
    *,
    updates: Sequence[tuple[int, int]] = (),
    guards: Sequence[int] = (),
    log: Log | None = None,
    verify: bool = False,
    clock: Clock | None = None,
) -> Program:
    """The program of a graph on a target. `updates` are pairs (input, result), by number: such a result may be written over
    the caller's input, which is then what is returned for it (`Program.updated`), unless one of the results `guards` is true.

    `verify` checks the result of every pass, and raises VerificationError with the pass to blame. Any other failure inside a
    pass is a CompileError that names it.
    """
    passes = Passes(graph.name, log, verify, clock)
    passes.check("capture", graph)
    refused = refusals(graph, target)
    graph = passes.run("expand", expand, graph, target)
    graph = passes.run("simplify", simplify, graph)
    graph = passes.run("lay out", lay_out, graph, target)
    graph = passes.run("own results", own_results, graph)
    fused = passes.run("fuse", fuse, graph, target)
    program = passes.run("link", link, graph, fused)
    program = replace(program, decisions=(*refused, *program.decisions))
    program = passes.run("update", update, program, updates, guards)
    program = passes.run("in place", in_place, program)
    if space_of(graph) is None:  # else at each set of sizes anew: see `flame.compiler.concrete`
        program = passes.run("plan memory", plan, program)
    return program


@dataclass
class Passes:
    """The runner of passes. `seconds` has what each took, if there is a clock."""

    name: str
    log: Log | None = None
    verify: bool = False
    clock: Clock | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, f: Callable[..., Any], *data: Any) -> Any:
        """`f(*data)`, the pass of that name."""
        begin = self.clock() if self.clock else 0.0
        try:
            got = f(*data)
        except VerificationError:
            raise
        except Exception as error:
            raise CompileError(f"{self.name}: the pass '{name}' failed: {type(error).__name__}: {error}") from error
        if self.clock:
            self.seconds[name] = self.clock() - begin
        self.check(name, got)
        if self.log:
            self._show(name, got, data[0])
        return got

    def check(self, name: str, data: Graph | Fused | Program) -> None:
        """Raise VerificationError if `data`, what the pass made, breaks its own grammar; only if asked to verify."""
        if not self.verify:
            return
        match data:
            case Graph():
                data.verify(name)
            case Program():
                for k in data.kernels:
                    kernel_ir.verify(k, name)
                verify_program(data, name)

    def _show(self, name: str, got: Graph | Fused | Program, before: Any) -> None:
        assert self.log is not None
        took = f" in {1e3 * self.seconds[name]:.2f} ms" if name in self.seconds else ""
        self.log("passes", f"{self.name}: {name}{took}: {_size(got)}")
        match got:
            case Graph():
                if len(got.nodes) != len(before.nodes) or str(got) != str(before):
                    self.log("graph", f"after {name}:\n{got}")
            case Program():
                if name == "link":
                    self.log("fusion", "\n".join(map(str, got.decisions)))
                    self.log("kernels", "\n\n".join(map(str, got.kernels)))
                if name == "plan memory":
                    self.log("passes", str(got))


def _size(data: Graph | Fused | Program) -> str:
    match data:
        case Graph():
            return f"{len(data.nodes)} nodes"
        case Program():
            return f"{len(data.steps)} steps, {len(data.slots)} slots, arena {data.arena_bytes} bytes"
    return f"{len(data.steps)} steps"
