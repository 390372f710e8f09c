"""Kernel IR -> LLVM IR: the entry of the CPU renderer.

    to_llvm(kernel, schedule, cpu) -> LlvmSource        pure: the same arguments give the same text

A kernel is cut into nests (`nests.plan`), each of which becomes one phase: rows and columns by `llvm_rows`, contractions by
`llvm_contract`. What a nest computes for a later one stands in workspace, and to both it is a buffer like any other.
"""

from __future__ import annotations

from flame.compiler.contract_groups import groups_of
from flame.compiler.cpu_cost import cone, statement_cost
from flame.compiler.graph import identifier
from flame.compiler.index_math import E, ex, var
from flame.compiler.kernel import Buffer, Contract, Kernel, Load, Reduce, Statement, Store
from flame.compiler.llvm_axes import lanes_for, vector_axis
from flame.compiler.llvm_columns import ColumnWriter, column_sums
from flame.compiler.llvm_contract import ContractWriter
from flame.compiler.llvm_dot import DotWriter, dot_tile
from flame.compiler.llvm_plane_taps import TapWriter, tapped_of
from flame.compiler.llvm_planes import PlaneWriter, planes_of
from flame.compiler.llvm_rows import PARTS, Entry, RowWriter, begin
from flame.compiler.llvm_slide import SlidingWriter, sliding
from flame.compiler.llvm_text import Function, module
from flame.compiler.llvm_turn import TurnWriter, turned_loads
from flame.compiler.llvm_winograd import WinogradWriter
from flame.compiler.llvm_winograd_windows import winograd
from flame.compiler.nests import PART, Nest, Sink, Sweep, in_stages, loads_of, needed, part_of, plan, points, sinks_of
from flame.compiler.schedule_cpu import CpuSchedule
from flame.compiler.target_cpu import CpuTarget, LlvmSource, Phase


def to_llvm(kernel: Kernel, schedule: CpuSchedule, cpu: CpuTarget) -> LlvmSource:
    """Render a verified kernel for a CPU."""
    name = identifier(kernel.name)
    kernel = in_stages(kernel)
    nests = apart(kernel, plan(kernel), cpu)
    parts, places, workspace = keep_between(kernel, nests)
    functions: list[Function] = []
    constants: list[str] = []
    phases: list[Phase] = []
    notes: list[str] = []
    for i, (part, nest) in enumerate(parts):
        entry_name = name if len(parts) == 1 else f"{name}_{i}"
        groups = groups_of(part, nest, cpu)
        tile = dot_tile(part, nest, cpu)
        if groups is not None and tile is None:
            slide, few = sliding(part, groups, cpu), winograd(part, groups, nest, cpu)
            tiles: ContractWriter
            if few is not None:
                tiles = WinogradWriter(part, nest, groups, few, schedule, cpu, entry_name, workspace)
            elif slide is not None:
                tiles = SlidingWriter(part, nest, slide, schedule, cpu, entry_name, workspace)
            else:
                tiles = ContractWriter(part, nest, groups, schedule, cpu, entry_name, workspace)
            made, its_phases, its_constants = tiles.write(places, len(kernel.buffers))
            functions += made
            phases += its_phases
            constants += its_constants
            workspace = tiles.workspace_end
            notes.append(f"{entry_name}: {tiles.describe()}")
            continue
        entry = begin(entry_name, part, places, cpu, len(kernel.buffers))
        planes = _over_planes(part, nest, schedule, cpu, entry) if tile is None else None
        if planes is not None:
            phases.append(planes.write(entry_name))
            functions.append(entry.function)
            constants += planes.point.globals()
            notes.append(f"{entry_name}: {planes.describe()}")
            continue
        lane = schedule.vector_axis or vector_axis(part, nest, lanes_for(part, nest, cpu))
        turned = lane in nest.outer and turned_loads(part, nest, lane)[1]
        writer: RowWriter
        if tile is not None:
            writer = DotWriter(part, nest, schedule, cpu, entry, tile)
        else:
            kind = TurnWriter if turned else ColumnWriter if column_sums(part, nest, lane) else RowWriter
            writer = kind(part, nest, schedule, cpu, entry)
        phases.append(writer.write(entry_name))
        functions.append(entry.function)
        constants += writer.point.globals()
        notes.append(f"{entry_name}: {writer.describe()}")
    externals = set().union(*(f.externals for f in functions)) if functions else set()
    return LlvmSource(
        text=f"; {kernel.name}\n" + module(functions, constants),
        phases=tuple(phases),
        parameters=(*kernel.buffers, *kernel.symbols),
        workspace_bytes=workspace,
        externals=tuple(sorted(externals)),
        notes=tuple(notes),
    )


def _over_planes(
    kernel: Kernel, nest: Nest, schedule: CpuSchedule, cpu: CpuTarget, entry: Entry
) -> PlaneWriter | TapWriter | None:
    """What writes windows that slide over planes, if that is what a nest is."""
    planes = planes_of(kernel, nest, cpu)
    if planes is not None:
        return PlaneWriter(kernel, nest, planes, schedule, cpu, entry)
    tapped = tapped_of(kernel, nest, cpu)
    return None if tapped is None else TapWriter(kernel, nest, tapped, schedule, cpu, entry)


def apart(kernel: Kernel, nests: list[Nest], cpu: CpuTarget) -> list[Nest]:
    """Dear work at the end of short rows gets a nest of its own: there it runs in vectors, at the row's end one by one."""
    in_place = {b.name for b in kernel.buffers.values() if b.role == "inout"}
    out: list[Nest] = []
    for nest in nests:
        out.append(nest)
        dots = dot_tile(kernel, nest, cpu) is not None
        ends = [s for s in nest.sweeps if not s.axes and s.stores and not s.reduces and not s.across]
        if not ends or not nest.reduces or nest.joins or groups_of(kernel, nest, cpu) and not dots:
            continue
        if not dots and vector_axis(kernel, nest, lanes_for(kernel, nest, cpu)) in nest.outer:
            continue
        row = sum(points(kernel, frozenset(r.axes)) * (2 + _work(kernel, r)) for r in nest.reduces) / cpu.lanes_f32
        stores = [t for s in ends for t in s.stores]
        others = [t for n in nests for s in n.sweeps for t in sinks_of(s) if not any(t is m for m in stores)]
        if any(in_place & _touched(kernel, t) for t in others):  # (what is updated stays in one sweep with all that reads it)
            continue
        if SCALAR_WORK * max(_work(kernel, t) for t in stores) < row or points(kernel, frozenset(nest.outer)) < cpu.lanes_f32:
            continue
        nest.sweeps = [s for s in nest.sweeps if s not in ends]
        made = {r.name for r in nest.reduces}
        nest.keep += sorted({r for t in stores for r in needed(kernel, t)} & made - set(nest.keep))
        out.append(Nest(nest.outer, [Sweep((), stores=stores)]))
    return out


SCALAR_WORK = 20  #: what an instruction at a row's end weighs against one in its loop: it waits for the one before it


def _touched(kernel: Kernel, s: Sink) -> set[str]:
    """The buffers that a sink reads and writes."""
    return {t.buffer for t in [*loads_of(kernel, s), s] if isinstance(t, Load | Store)}


def _work(kernel: Kernel, s: Sink) -> int:
    return sum(statement_cost(kernel, v) for v in cone(kernel, s))


def keep_between(kernel: Kernel, nests: list[Nest]) -> tuple[list[tuple[Kernel, Nest]], dict[str, E], E]:
    """Each nest with the kernel as it sees it. A reduction of an earlier nest is a load from workspace, and one that a later
    nest reads is stored there; of one that runs across a nest, the parts stand there. Gives also the new buffers' offsets in
    workspace, in bytes, and its size."""
    buffers, places, offset = dict(kernel.buffers), {}, ex(0)
    axes = dict(kernel.axes)
    kept: dict[str, tuple[E, ...]] = {}
    made: dict[str, int] = {}

    def place(name: str, r: str, shape: tuple[E, ...]) -> None:
        nonlocal offset
        d = kernel.definitions[r].dtype
        buffers[name] = Buffer(name, d, shape, "inout")
        places[name] = offset
        size = ex(d.itemsize)
        for e in shape:
            size = size * e
        offset = offset + (size + 63) // 64 * 64

    for i, nest in enumerate(nests):
        for r in nest.keep:
            made[r], kept[r] = i, tuple(var(a) for a in nest.outer)
            place(f"kept_{r}", r, tuple(kernel.axes[a] for a in nest.outer))
        if nest.keep:
            nest.sweeps.append(Sweep((), stores=[Store(f"kept_{r}", kept[r], r) for r in nest.keep]))
        if nest.joins is not None:
            axes[PART] = ex(PARTS)
            place(part_of(nest.joins.name), nest.joins.name, (ex(PARTS), *(kernel.axes[a] for a in nest.outer)))
    if not places:
        return [(kernel, nest) for nest in nests], {}, offset
    parts = []
    for i, nest in enumerate(nests):
        statements: list[Statement] = []
        for s in kernel.statements:
            if isinstance(s, Reduce | Contract) and made.get(s.name, i) < i:
                statements.append(Load(s.name, f"kept_{s.name}", kept[s.name], (), 0, s.dtype))
            elif nest.joins is s:
                part = part_of(nest.joins.name)
                index = (var(PART), *(var(a) for a in nest.outer))
                statements += [Load(part, part, index, (), 0, nest.joins.dtype), nest.reduces[0]]
            else:
                statements.append(s)
        parts.append((Kernel(kernel.name, buffers, axes, kernel.symbols, statements, kernel.values), nest))
    return parts, places, offset
