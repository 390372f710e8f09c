"""How a kernel is run on a GPU: one frozen record beside the kernel, and the heuristics that choose it.

`choose_gpu(kernel, target, hints)` answers with the schedule that sizes and target suggest; a tuner may hand `to_triton`
another one. Every schedule gives the same results up to the order of sums (and `precision`). `hints` are likely values of the
kernel's symbols: they steer sizes of tiles and never correctness, but for `wide` (see there).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from flame.compiler.chain import Chain, chain
from flame.compiler.copy_engine import describable
from flame.compiler.cost import operations
from flame.compiler.index_math import E, evaluate, ex, subst
from flame.compiler.kernel import Contract, Kernel, Load, Op, Reduce, Store, domain, domain_of, flat, numel, reads, stage
from flame.compiler.schedule_tiles import ChainShape, Product, chain_tiles, power_of_two, product_tiles
from flame.compiler.target import Target
from flame.dtypes import FLOAT8, bool_, dtype, float32, float64, int8, int32
from flame.primitive import REGISTRY

#: basic operations from which on a primitive's own values fill a thread's registers: lgamma and integer powers spill at 8 elements
#: a thread, and not at 2
HEAVY = 200.0


@dataclass(frozen=True, slots=True)
class GpuSchedule:
    """Sizes that `to_triton` takes as given. Blocks are powers of two."""

    form: Literal["rows", "dot", "chain"] = "rows"
    #: rows: points of the parallel axes, and lanes of a sweep; a sweep over more points is a loop
    x_block: int = 1024
    r_block: int = 1024
    #: chain: the axes of rows that make a tile (those left out are dealt to programs), `m_block` rows by `n_block` walked
    #: rows: parallel axes in the order in which x walks them (those left out follow in the kernel's order); `columns` get a
    #: side of the tile of their own, `y_block` long (pointwise kernels only)
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    y_block: int = 32
    #: rows: the axis that a program walks down, `x_block` rows at a time, summing columns as it goes (see `panel_of`)
    panel: str = ""
    #: dot: the tile of the result, how much of the summed axes is taken at a time, rows of tiles that share their columns
    m_block: int = 64
    n_block: int = 64
    k_block: int = 32
    group: int = 8
    #: dot: the summed axis that lanes run along, the others being walked one point at a time; empty: all flattened
    k_lanes: str = ""
    #: dot: of float32 operands
    precision: Literal["ieee", "tf32", "tf32x3"] = "ieee"
    #: dot: operands of 8-bit floats are multiplied as they are; else as float16, which holds all of their numbers
    float8: bool = False
    #: dot: operands are copied to shared memory a tile at a time by the copy engine (TMA), where they lie as it takes them
    descriptors: bool = False
    #: dot: some warps copy and others multiply
    specialized: bool = False
    #: dot: at most so many programs, each of which makes one tile after the other, the next one's operands on their way while the
    #: last one is stored; 0: a program for each tile
    programs: int = 0
    warps: int = 4
    stages: int = 3
    #: positions and addresses in 64 bits. Without it the launcher checks `TritonSource.fits`.
    wide: bool = False
    #: may a product and a sum be rounded once, where the kernel rounds twice?
    fp_fusion: bool = False


def product(extents: Iterable[E]) -> E:
    out = ex(1)
    for e in extents:
        out = out * e
    return out


def positions(kernel: Kernel) -> tuple[E, ...]:
    """What has to be counted: the elements of each buffer, the points of the parallel axes, and those of the reduced ones."""
    reduced = kernel.reduce_axes
    spaces = ([a for a in kernel.axes if a not in reduced], reduced)
    return (*(numel(b) for b in kernel.buffers.values()), *(product(kernel.axes[a] for a in axes) for axes in spaces))


def fits_in_32_bits(kernel: Kernel, symbols: Mapping[str, int]) -> bool:
    """May positions and addresses be held in 32 bits? (With room for the part of a tile that hangs over an edge.)"""
    return all(evaluate(e, symbols) < 2**31 - 2**20 for e in positions(kernel))


# ---- what kind of kernel


@dataclass(frozen=True, slots=True)
class Sides:
    """The axes of a contraction: of the left operand alone, of the right alone, of both, and the summed ones."""

    m: tuple[str, ...]
    n: tuple[str, ...]
    batch: tuple[str, ...]
    k: tuple[str, ...]


def factors(kernel: Kernel, c: Contract) -> tuple[str, str]:
    """What a tiled product multiplies: the operands, or the 8-bit floats that both were widened from, whose products are exact."""
    a, b = (
        s.operands[0] if isinstance(s, Op) and s.op == "cast" and kernel.definitions[s.operands[0]].dtype in FLOAT8 else v
        for v in c.operands
        for s in (kernel.definitions[v],)
    )
    both = all(kernel.definitions[v].dtype in FLOAT8 for v in (a, b))
    return (a, b) if both and c.dtype is float32 else (c.operands[0], c.operands[1])


def sides(kernel: Kernel) -> Sides | None:
    """The sides of a kernel that is one contraction with what is fused to it, in a form that a tiled matrix product takes;
    None where it is anything else."""
    contractions = [s for s in kernel.statements if isinstance(s, Contract)]
    if len(contractions) != 1 or any(isinstance(s, Reduce) for s in kernel.statements):
        return None
    c = contractions[0]
    left, right = (kernel.definitions[v].dtype for v in factors(kernel, c))
    alike = left is right or (left in FLOAT8 and right in FLOAT8)
    if not alike or not _has_dot(left, c.dtype):
        return None
    still = {a for a, e in kernel.axes.items() if e == 1}
    a, b = (kernel.domains[v] - set(c.axes) - still for v in c.operands)
    stored = frozenset[str]().union(*(domain(kernel, s) for s in kernel.stores)) - still
    if stored & set(c.axes) or not (a | b) <= stored:
        return None
    free = [x for x in kernel.axes if x in stored]
    return Sides(
        tuple(x for x in free if x in a and x not in b),
        tuple(x for x in free if x in b and x not in a),
        tuple(x for x in free if (x in a) == (x in b)),
        tuple(x for x in c.axes if x not in still),
    )


def _has_dot(operand: dtype, accumulator: dtype) -> bool:
    if operand is int8:
        return accumulator is int32
    return accumulator is (float64 if operand is float64 else float32) and operand.kind == "f"


def unit_stride_axis(kernel: Kernel, s: Load | Store) -> str | None:
    """The axis along which a load or store runs through memory element by element, if there is one."""
    address = flat(kernel, s)
    origin = subst(address, {a: 0 for a in kernel.axes})
    for a, extent in kernel.axes.items():
        if extent != 1 and subst(address, {b: (1 if b == a else 0) for b in kernel.axes}) - origin == 1:
            return a
    return None


# ---- heuristics


def choose_gpu(kernel: Kernel, target: Target, hints: Mapping[str, int] | None = None) -> GpuSchedule:
    """The schedule that sizes and target suggest. Symbols without a hint count as 512, or their lower bound."""
    env = {n: max(low, 512) for n, low in kernel.symbols.items()} | dict(hints or {})
    wide = not fits_in_32_bits(kernel, env)
    tiled = _tiled(kernel, target, env)
    return replace(tiled[0] if tiled else _choose_rows(kernel, target, env), wide=wide)


def tiled_candidates(kernel: Kernel, target: Target, hints: Mapping[str, int] | None = None) -> list[GpuSchedule]:
    """Schedules of a kernel that multiplies tiles that a tuner may measure, what `choose_gpu` takes first; none for others.
    Each fits the target by the estimates of `flame.compiler.schedule_tiles`."""
    env = {n: max(low, 512) for n, low in kernel.symbols.items()} | dict(hints or {})
    wide = not fits_in_32_bits(kernel, env)
    found = _tiled(kernel, target, env)
    by_engine: list[GpuSchedule] = []
    sided = sides(kernel) if found and found[0].form == "dot" and "tma" in target.features else None
    c = kernel.contraction
    if sided is not None and c is not None and describable(kernel, factors(kernel, c), sided.m, sided.n, sided.k):
        large = [s for s in found if s.m_block >= 64 and s.n_block >= 64][:4]
        by_engine = [replace(s, descriptors=True) for s in large]
        by_engine += [replace(s, descriptors=True, specialized=True, warps=4) for s in large if s.m_block * s.n_block <= 2**14]
    lasting = [replace(s, programs=target.units) for s in (*found[:2], *by_engine) if _tiles(kernel, s, env) > target.units]
    return list(dict.fromkeys(replace(s, wide=wide) for s in (*found[:4], *by_engine, *lasting, *found[4:])))


def _tiles(kernel: Kernel, s: GpuSchedule, env: Mapping[str, int]) -> int:
    """How many tiles a product makes; 0 for other kernels."""
    found = sides(kernel) if s.form == "dot" else None
    if found is None:
        return 0
    m, n, batch = (evaluate(product(kernel.axes[a] for a in axes), env) for axes in (found.m, found.n, found.batch))
    return -(-m // s.m_block) * -(-n // s.n_block) * batch


def _tiled(kernel: Kernel, target: Target, env: Mapping[str, int]) -> list[GpuSchedule]:
    """Schedules of a kernel that multiplies tiles, the best guess first; none for others."""
    linked = chain(kernel)
    if linked is not None:
        return _chains(kernel, target, linked, env)
    found = sides(kernel)
    if found is None:
        return []
    size = {side: evaluate(product(kernel.axes[a] for a in getattr(found, side)), env) for side in ("m", "n", "k", "batch")}
    if min(size["m"], size["n"]) < 2 or min(size["k"], size["m"] * size["n"]) < 4:
        return []
    return _dots(kernel, target, found, size)


def _dots(kernel: Kernel, target: Target, found: Sides, size: dict[str, int]) -> list[GpuSchedule]:
    """Schedules of a product, the best guess first."""
    contraction = kernel.contraction
    assert contraction is not None
    kind = kernel.definitions[factors(kernel, contraction)[0]].dtype
    own = kind not in FLOAT8 or "fp8" in target.features
    lanes, depth = "", size["k"]
    if len(found.k) > 1:
        extents = {a: kernel.axes[a].const or 512 for a in found.k}
        longest = max(found.k, key=lambda a: extents[a])
        if extents[longest] >= 16:
            lanes, depth = longest, extents[longest]
    after = kernel.statements[kernel.statements.index(contraction) :]
    done = sum(isinstance(s, Op) and s.op != "cast" and len(kernel.domains[s.name]) > 1 for s in after)
    precision = product_precision(kind, target)
    p = Product(size["m"], size["n"], size["batch"], depth, kind.itemsize if own else 2, contraction.dtype.itemsize, done)
    return [
        GpuSchedule(
            "dot",
            m_block=t.m,
            n_block=t.n,
            k_block=t.k,
            k_lanes=lanes,
            precision=precision,
            float8=own and kind in FLOAT8,
            warps=t.warps,
            stages=t.stages,
        )  # fmt: skip
        for t in product_tiles(p, target, precision != "ieee")
        if not lanes or t.m * t.n <= 1 << 14  # the addresses of a window take registers: larger tiles were seen to spill
    ]


def product_precision(kind: dtype, target: Target) -> Literal["ieee", "tf32", "tf32x3"]:
    """How products of float32 are taken: as the target's owner chose."""
    return "tf32" if kind is float32 and "tf32" in target.features and target.matmul_precision == "high" else "ieee"


def _chains(kernel: Kernel, target: Target, found: Chain, env: Mapping[str, int]) -> list[GpuSchedule]:
    """Schedules of a chain, the best guess first. Rows are those of the innermost axis; of all, where that is short: the
    heads that share keys then stand in one tile."""
    kind = kernel.definitions[found.inner[0][1]].dtype

    def extent(*axes: str) -> int:
        return evaluate(product(kernel.axes[a] for a in axes), env)

    def padded(c: Contract) -> int:
        own = set(c.axes) - set(found.walked) or kernel.domains[c.name] - {*found.batch, *found.rows}
        return max(16, power_of_two(extent(*own)))

    rows = found.rows[-1:] if extent(found.rows[-1]) >= 64 else found.rows
    held = {a: padded(c) for c, a, _ in found.inner}
    walked = {b: padded(c) for c, _, b in (*found.inner, *found.outer)}
    batch = extent(*found.batch, *(a for a in found.rows if a not in rows))
    lane = max(found.walked, key=lambda a: extent(a))
    shape = ChainShape(
        extent(*rows), batch, extent(lane), kind.itemsize, tuple(held.values()), tuple(walked.values()),
        tuple(padded(c) for c, _, _ in found.outer), found.softmax is not None,
        sum(isinstance(s, Op) and kernel.domains[s.name] >= {rows[-1], lane} for s in kernel.statements),
    )  # fmt: skip
    precision = product_precision(kind, target)
    return [
        GpuSchedule("chain", m_block=t.m, n_block=t.n, rows=rows, precision=precision, warps=t.warps, stages=t.stages)
        for t in chain_tiles(shape, target)
    ]


def _choose_rows(kernel: Kernel, target: Target, env: Mapping[str, int]) -> GpuSchedule:
    swept = {a for a in kernel.reduce_axes if kernel.axes[a] != 1}
    stored = frozenset[str]().union(*(domain(kernel, s) for s in kernel.stores))
    parallel = [a for a in kernel.axes if a in stored and a not in swept and kernel.axes[a] != 1]
    points = evaluate(product(kernel.axes[a] for a in parallel), env)
    if not swept:
        return _choose_pointwise(kernel, parallel, points, env)
    panel = panel_of(kernel)
    if panel:
        return _choose_panel(kernel, target, panel, env)
    # the longest sweep decides, and along what most bytes run
    lengths = [
        evaluate(product(kernel.axes[a] for a in swept.intersection(s.axes)), env)
        for s in kernel.statements
        if isinstance(s, Reduce | Contract)
    ]
    longest = max(lengths)
    score = 0
    for s in kernel.statements:
        if isinstance(s, Load | Store):
            a = unit_stride_axis(kernel, s)
            if a is not None:
                weight = evaluate(product(kernel.axes[x] for x in domain_of(kernel, s.index)), env)
                score += weight * kernel.buffers[s.buffer].dtype.itemsize * (1 if a in swept else -1)
    live = _live_values(kernel)
    if score < 0 and parallel:  # memory runs along the parallel axes: a column to each lane
        x = max(1, min(128, power_of_two(points)))
        while x > 32 and points // x < target.units:  # rather more programs; 32 lanes still read whole lines of memory
            x //= 2
        r = max(1, min(2048 // x, power_of_two(longest)))
        return GpuSchedule(x_block=x, r_block=r, warps=4)
    r = power_of_two(longest)
    if not kernel.sizes_known or not _fits_in_registers(kernel, target, r, swept):
        r = min(r, 512 if live > 8 else 2048 if longest >= 16384 else 1024)
    x = 1 if r >= 512 or points == 1 else max(1, min(1024 // r, power_of_two(points)))
    tile = x * r
    return GpuSchedule(x_block=x, r_block=r, warps=row_warps(target, tile))


def row_warps(target: Target, tile: int) -> int:
    """Warps for a tile of a row kernel: 16 elements a thread, or fewer where the tile is small; at most 1024 threads."""
    lanes = target.lanes
    if tile >= 64 * lanes:
        return min(1024 // lanes, tile // (16 * lanes))
    return 4 if tile > 4 * lanes else 1


def _fits_in_registers(kernel: Kernel, target: Target, r: int, swept: set[str]) -> bool:
    """May a whole row of `r` elements stay in registers from one sweep to the next? Measured on compiled kernels: softmax and
    layer norm of 32768 elements take 48 to 64 registers of 1024 threads, and spill nothing."""
    threads = target.lanes * row_warps(target, r)
    each = -(-r // threads)
    spare = 24 if target.arch.startswith("sm_10") else 16  # for addresses and the like: 8 more where 10 stores spilled
    needed = spare + each * (held_values(kernel, swept) + 0.5)
    return r <= 1024 or needed <= min(target.thread_registers, target.registers // threads)


def panel_of(kernel: Kernel) -> str:
    """The axis down which a program can walk, where a kernel reduces rows and, last of all, sums columns of what it computed of
    them: as `flame.compiler.panels` makes them. Empty for other kernels."""
    sets = {frozenset(s.axes) for s in kernel.statements if isinstance(s, Reduce)}
    if len(sets) != 2 or not kernel.sizes_known or kernel.contraction is not None:
        return ""
    for down in sets:
        (along,) = sets - {down}
        if len(down) != 1 or down & along:
            continue
        sums = {s.name for s in kernel.statements if isinstance(s, Reduce) and frozenset(s.axes) == down}
        rows = [s for s in kernel.statements if isinstance(s, Reduce) and frozenset(s.axes) == along]
        last = all(sums.isdisjoint(reads(s)) for s in kernel.definitions.values())
        whole = all(along <= kernel.domains[v] for v in sums) and all(down <= kernel.domains[s.name] for s in rows)
        simple = all(s.op not in ("argmax", "argmin") for s in kernel.statements if isinstance(s, Reduce) and s.name in sums)
        if last and whole and simple:
            return next(iter(down))
    return ""


def panel_fits(target: Target, row: int, sums: int, kernel: Kernel) -> bool:
    """May a row of so many elements stay in registers beside so many columns' sums?"""
    swept = {a for s in kernel.statements if isinstance(s, Reduce) for a in s.axes}
    r = power_of_two(row)
    threads = target.lanes * row_warps(target, max(r, 1024))
    needed = 16 + -(-max(r, 1024) // threads) * (held_values(kernel, swept) + sums + 1)
    return needed <= min(target.thread_registers, target.registers // threads)


def _panel_size(kernel: Kernel, panel: str, env: Mapping[str, int]) -> tuple[int, int]:
    """Elements of a row, and sums of columns."""
    sums = [s for s in kernel.statements if isinstance(s, Reduce)]
    row = product(kernel.axes[a] for a in kernel.reduce_axes if a != panel)
    return evaluate(row, env), sum(s.axes == (panel,) for s in sums)


def _choose_panel(kernel: Kernel, target: Target, panel: str, env: Mapping[str, int]) -> GpuSchedule:
    r = power_of_two(_panel_size(kernel, panel, env)[0])
    x = max(1, min(1024 // r, power_of_two(evaluate(kernel.axes[panel], env))))
    return GpuSchedule(x_block=x, r_block=r, panel=panel, warps=row_warps(target, x * r))


def held_values(kernel: Kernel, swept: set[str]) -> float:
    """How many 32-bit registers an element of a row takes, at most, between one sweep over it and the next."""
    depth = stage(kernel)
    last: dict[str, int] = {}  # value -> the sweep that reads it last
    for s in kernel.statements:
        when = max((depth[v] for v in reads(s)), default=0)
        for v in reads(s):
            last[v] = max(last.get(v, 0), when)
    most = 0.0
    for border in range(max(depth.values(), default=0)):
        across = [v for v, when in last.items() if depth[v] <= border < when and kernel.domains[v] & swept]
        most = max(most, sum(max(kernel.definitions[v].dtype.itemsize, 2) / 4 for v in across))
    return most


def _choose_pointwise(kernel: Kernel, parallel: list[str], points: int, env: Mapping[str, int]) -> GpuSchedule:
    weights: dict[str, int] = {}
    for s in kernel.statements:
        if isinstance(s, Load | Store) and (a := unit_stride_axis(kernel, s)) in parallel:
            weight = evaluate(product(kernel.axes[x] for x in domain_of(kernel, s.index)), env)
            weights[a] = weights.get(a, 0) + weight * kernel.buffers[s.buffer].dtype.itemsize
    ranked = sorted(weights, key=lambda a: (-weights[a], parallel.index(a)))
    extents = {a: evaluate(kernel.axes[a], env) for a in parallel}
    if len(ranked) > 1 and weights[ranked[1]] * 4 >= weights[ranked[0]] and all(extents[a] >= 16 for a in ranked[:2]):
        first, second = sorted(ranked[:2], key=parallel.index)
        rows = tuple(a for a in parallel if a not in (first, second)) + (first,)
        return GpuSchedule(x_block=32, y_block=32, rows=rows, columns=(second,), warps=4)
    live = _live_values(kernel)
    block = 1024 if points >= 2**18 and live <= 12 else 512 if points >= 2**16 else 256
    if _heaviest(kernel) > HEAVY:
        block = 256
    return GpuSchedule(x_block=max(32, min(block, power_of_two(points))), warps=4 if block > 128 and points > 128 else 1)


def _heaviest(kernel: Kernel) -> float:
    """Basic operations of the elementwise primitive in it that makes most of them."""
    return max(
        (
            operations(REGISTRY[s.op], kernel.definitions[s.operands[-1]].dtype, len(s.operands))
            for s in kernel.statements
            if isinstance(s, Op) and s.op in REGISTRY and s.operands
        ),
        default=0.0,
    )


def _live_values(kernel: Kernel) -> int:
    """How many values are alive at once, at most, if statements are computed in order and what is stored is stored last."""
    last: dict[str, int] = {}
    for i, s in enumerate(kernel.statements):
        used = (s.value,) if isinstance(s, Store) else getattr(s, "operands", ())
        for v in used:
            last[v] = i
    alive, most = 0, 0
    ends: dict[int, int] = {}
    for i in last.values():
        ends[i] = ends.get(i, 0) + 1
    for i, s in enumerate(kernel.statements):
        if not isinstance(s, Store) and s.name in last and s.dtype is not bool_ and kernel.domains[s.name]:
            alive += 1
            most = max(most, alive)
        alive -= ends.get(i, 0)
        alive = max(alive, 0)
    return most
