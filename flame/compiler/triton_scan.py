"""Triton for scans: running sums, products, log-sums and extremes along a dimension.

    scan(making, name, x, spec, dim, out)       rows longer than one tile carry the last tile's total on

The array is seen as rows that run along `dim`: row x of lead * columns begins at x // columns * (n * columns) + x % columns and
steps by `columns`. A program takes a tile of rows and walks along them, so that with columns memory is read in order across
rows, without along them. Few long rows are cut into chunks: the chunks' totals are scanned first, by the same kernel, and each
chunk starts from the total of those before it (three launches, the array read twice, the same result on every run).

A state is what is carried: one value, or for running extremes the value and its place, of equals the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flame.compiler.gpu_routine import Array, Making, written
from flame.compiler.index_math import var
from flame.compiler.schedule_tiles import power_of_two
from flame.compiler.to_triton import TritonSource
from flame.compiler.triton_text import typed
from flame.dtypes import bool_, dtype, int32, int64
from flame.dtypes import by_name as dtype_named
from flame.primitive import Spec

#: elements that one chunk of a long row has; rows are cut where there are fewer than a third of the multiprocessors
CHUNK = 8192

_COMBINE = {
    "cumsum": ("a, b", "    return a + b"),
    "cumprod": ("a, b", "    return a * b"),
    "logcumsumexp": (
        "a, b",
        """    top = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    low = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    # equal ones may be infinite, where their difference is no number
    return tl.where(top == low, top + 0.6931471805599453, top + libdevice.log1p(libdevice.exp(low - top)))""",
    ),
    "cummax_index": (
        "a, i, b, j",
        """    later = (b >= a) | (b != b)
    return tl.where(later, b, a), tl.where(later, j, i)""",
    ),
    "cummin_index": (
        "a, i, b, j",
        """    later = (b <= a) | (b != b)
    return tl.where(later, b, a), tl.where(later, j, i)""",
    ),
}


@dataclass(frozen=True, slots=True)
class State:
    """What a scan carries: the dtypes of its parts, and what each starts from."""

    dtypes: tuple[dtype, ...]
    start: tuple[int | float, ...]


def state_of(name: str, d: dtype) -> State:
    if name.endswith("_index"):
        kind = int32 if d is bool_ else d.accumulator
        low = name == "cummax_index"
        if kind.kind == "f":
            first: int | float = -math.inf if low else math.inf
        else:
            bits, signed = 8 * kind.itemsize, kind.kind == "i"
            least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
            first = least if low else most
        return State((kind, int64), (first, 0))
    kind = d.accumulator if d.kind == "f" else int64
    return State((kind,), ({"cumsum": 0, "cumprod": 1, "logcumsumexp": -math.inf}[name],))


def scan(making: Making, name: str, x: Array, spec: Spec, dim: int, out: Array, result: dtype) -> None:
    """Add the launches that write the running `name` of x along `dim` to `out`, of dtype `result`."""
    if not spec.numel:
        return
    n, columns = spec.shape[dim], math.prod(spec.shape[dim + 1 :])
    rows = spec.numel // n
    sizes = {"rows": rows, "n": n, "columns": columns}
    if 3 * rows >= making.target.units or n <= 2 * CHUNK:
        source = source_of(name, spec.dtype, result, sizes)
        making.launch(source, {"x": x, "out": out}, sizes)
        return
    chunks = -(-n // CHUNK)
    sizes["chunks"] = chunks
    state = state_of(name, spec.dtype)
    totals = [making.array((rows, chunks), d) for d in state.dtypes]
    before = [making.array((rows, chunks), d) for d in state.dtypes]
    making.launch(source_of(name, spec.dtype, result, sizes, "totals"), {"x": x, **_named("total", totals)}, sizes)
    few = {"rows": rows, "n": chunks, "columns": 1}
    given = {**_named("total", totals), **_named("before", before)}
    making.launch(source_of(name, spec.dtype, result, few, "before"), given, few)
    making.launch(source_of(name, spec.dtype, result, sizes, "chunks"), {"x": x, **_named("before", before), "out": out}, sizes)


def _named(word: str, arrays: list[Array]) -> dict[str, Array]:
    return {f"{word}{i}": a for i, a in enumerate(arrays)}


def source_of(name: str, given: dtype, result: dtype, sizes: dict[str, int], part: str = "rows") -> TritonSource:
    """`part`: whole rows; or of chunks the "totals", what comes "before" each (from the totals), the "chunks" themselves."""
    state = state_of(name, given)
    count = range(len(state.dtypes))
    chunked = part in ("totals", "chunks")
    n = min(sizes["n"], CHUNK) if chunked else sizes["n"]
    columns = sizes["columns"] > 1
    r_block = min(power_of_two(n), 32 if columns else 2048)
    x_block = max(1, min((2048 if columns else 1024) // r_block, power_of_two(sizes["rows"]), 128))
    element = f"tl.{state.dtypes[0].name}"
    lines: list[str] = []

    def write(text: str) -> None:
        lines.append("    " + text)

    write("pid = tl.program_id(0).to(INDEX)")
    if chunked:
        write("chunk = pid % chunks")
        write("pid = pid // chunks")
    write("x = pid * X_BLOCK + tl.arange(0, X_BLOCK)[:, None]")
    write("x_in = x < rows")
    write("base = x // columns * (n * columns) + x % columns" if columns else "base = x * n")
    for i in count:
        start = typed(state.start[i], state.dtypes[i])
        if part == "chunks":
            write(f"carry{i} = tl.load(before{i}_ptr + x * chunks + chunk, mask=x_in)")
        else:
            write(f"carry{i} = tl.zeros([X_BLOCK, 1], tl.{state.dtypes[i].name}) + {start}")
    write(
        "for start in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, n), R_BLOCK):"
        if chunked
        else "for start in range(0, n, R_BLOCK):"
    )
    write("    r = start + tl.arange(0, R_BLOCK)[None, :]")
    write("    inside = x_in & (r < n)")
    write("    at = base + r * columns" if columns else "    at = base + r")
    if part == "before":
        for i in count:
            write(f"    v{i} = tl.load(total{i}_ptr + at, mask=inside, other={typed(state.start[i], state.dtypes[i])})")
    else:
        write(f"    given = tl.load(x_ptr + at, mask=inside).to({element})")
        write(f"    v0 = tl.where(inside, given, {typed(state.start[0], state.dtypes[0])})")
        if len(state.dtypes) == 2:
            write("    v1 = tl.where(inside, tl.broadcast_to(r, [X_BLOCK, R_BLOCK]), 0).to(tl.int64)")
    values = ", ".join(f"v{i}" for i in count)
    carry = ", ".join(f"carry{i}" for i in count)
    tile = f"({values})" if len(state.dtypes) == 2 else values
    totals = ", ".join(f"total{i}" for i in count)
    if part != "totals":
        inner = ", ".join(f"s{i}" for i in count)
        write(f"    {inner} = tl.associative_scan({tile}, 1, _combine)")
    if part == "before":
        # what a chunk starts from has nothing of the chunk itself
        write(f"    {inner} = _combine({carry}, {inner})")
        for i in count:
            write(f"    tl.store(before{i}_ptr + at + 1, s{i}, mask=inside & (r + 1 < n))")
            write(f"    tl.store(before{i}_ptr + at, carry{i}, mask=inside & (r == 0))")
    elif part != "totals":
        write(f"    {inner} = _combine({carry}, {inner})")
        last = f"s{len(state.dtypes) - 1}"
        write(f"    tl.store(out_ptr + at, {last}{_narrowed(state.dtypes[-1], result)}, mask=inside)")
    write(f"    {totals} = tl.reduce({tile}, 1, _combine)")
    write(f"    {carry} = _combine({carry}, {', '.join(f'total{i}[:, None]' for i in count)})")
    if part == "totals":
        for i in count:
            write(f"tl.store(total{i}_ptr + x * chunks + chunk, carry{i}, mask=x_in)")
    buffers = {
        "rows": [("x", given), ("out", result)],
        "totals": [("x", given), *((f"total{i}", d) for i, d in enumerate(state.dtypes))],
        "before": [*((f"{w}{i}", d) for w in ("total", "before") for i, d in enumerate(state.dtypes))],
        "chunks": [("x", given), *((f"before{i}", d) for i, d in enumerate(state.dtypes)), ("out", result)],
    }[part]
    symbols = ["rows", "n", "columns", *(["chunks"] if chunked else [])]
    constants = {"X_BLOCK": x_block, "R_BLOCK": r_block, **({"CHUNK": CHUNK} if chunked else {})}
    entry = name if part == "rows" else f"{name}_{part}"
    names = [f"{b}_ptr" for b, _ in buffers] + symbols + [f"{c}: tl.constexpr" for c in constants]
    parameters, body = _COMBINE[name]
    head = f"@triton.jit\ndef _combine({parameters}):\n{body}\n\n\n@triton.jit\ndef {entry}({', '.join(names)}):\n"
    if name == "logcumsumexp":
        head = "from triton.language.extra import libdevice\n\n\n" + head
    directions = [(var("rows"), x_block), *([(var("chunks"), 1)] if chunked else [])]
    warps = 8 if x_block * r_block >= 2048 else 4 if x_block * r_block > 256 else 1
    return written(entry, head + "\n".join(lines), buffers, symbols, constants, directions, warps=warps, sizes=sizes)


def _narrowed(d: dtype, result: dtype) -> str:
    return "" if d is result else f".to(tl.{dtype_named(result.name).name})"
