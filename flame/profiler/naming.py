"""The kernels of a profile by their names and the user's lines.

While a program runs only the numbers of its steps are noted. What they are is said by the compiled graph that the executable was
made for; one that came from the disk is compiled anew for that, when somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterable

from flame.capture.compiled import Compiled
from flame.compiler.kernel import bytes_moved
from flame.compiler.program import CallStep, KernelStep, Step
from flame.jit import compiled_functions
from flame.profiler.events import Event
from flame.runtime.executable import Executable

Owners = dict[int, tuple[Executable, Compiled]]


def owners() -> Owners:
    """The compiled graph of every executable that a living function has, by the executable's id (which is held, so that it stays
    its own)."""
    return {id(e): (e, c) for f in compiled_functions() for c in f.compiled_graphs() for e in c.executables()}


def name_kernels(unnamed: Iterable[tuple[Event, Executable, int]], known: Owners) -> None:
    """Give every kernel event its name, lines and bytes."""
    for event, executable, number in unnamed:
        _, owner = known.get(id(executable), (None, None))
        steps = () if owner is None or owner.program is None else owner.program.steps
        run_by = executable.runs[number] if number < len(executable.runs) else ""
        if number < len(steps):
            _describe(event, steps[number], run_by)
        else:  # a large array's operation, which runs as a kernel of its own
            event.name = executable.name
        event.arguments["program"], event.arguments["runs by"] = executable.name, run_by


def _describe(event: Event, step: Step, run_by: str) -> None:
    match step:
        case KernelStep():
            event.name = step.kernel.name
            event.source = ", ".join(" ".join(n.split()) for n in step.notes)
            if step.kernel.sizes_known:
                event.arguments["bytes moved"] = bytes_moved(step.kernel, step.symbols)
        case CallStep():
            event.name = step.node.primitive.name
            event.source = " ".join(x for x in (step.node.note, step.node.source) if x)
    if run_by and run_by != "native":
        event.name += f" ({run_by})"
