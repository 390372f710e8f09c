"""Triton for products by groups (`flame.ops.grouped`): one launch, however many groups there are and whatever their sizes.

    rows     a program makes a tile of rows of one group. Groups have whole tiles each, so there are at most as many tiles as
             rows ask for and one more for every group; a program finds its group by adding up the groups' tiles. What lies
             behind the last group is one more, of no terms. Columns are rows of the transposed product.
    sums     a program makes a tile of one group's product, along the group's own stretch.

How operands lie is in the strides. The groups' ends are read by every program, and never by the host.
"""

from __future__ import annotations

from flame.compiler.gpu_routine import Array, Making, written
from flame.compiler.index_math import ex, var
from flame.compiler.schedule import product_precision
from flame.compiler.schedule_tiles import power_of_two
from flame.compiler.target import Target
from flame.dtypes import dtype, float32, float64, int32
from flame.ops.grouped import Turned, form_of, turned_back
from flame.primitive import Spec

Given = tuple[Array, Spec]


def grouped(making: Making, a: Given, b: Given, offs: Given, turned: Turned, out: Array) -> None:
    """Add the launch that computes grouped_mm(a, b, offs; turned)."""
    shapes = [turned_back(x[1].shape, t) for x, t in zip((a, b), turned, strict=True)]
    form = form_of(*shapes)
    if form == "columns":  # (x y)^T = y^T x^T: of the turned operands, which lie the other way round
        _rows(making, b, not turned[1], a, not turned[0], offs, out, True)
    elif form == "rows":
        _rows(making, a, turned[0], b, turned[1], offs, out, False)
    else:
        _sums(making, a, turned[0], b, turned[1], offs, out)


def _blocks(d: dtype, m: int, n: int, k: int) -> tuple[int, int, int, int]:
    """M_BLOCK, N_BLOCK, K_BLOCK and warps."""
    if d is float64:
        return 16, 16, 16, 4
    wide = d is float32
    sides = [max(16, min(64 if wide else 128, power_of_two(x))) for x in (m, n)]
    return sides[0], sides[1], max(16, min(32 if wide else 64, power_of_two(k))), 8 if sides[0] * sides[1] > 8192 else 4


def _dot(d: dtype, target: Target) -> str:
    precision = f', input_precision="{product_precision(d, target)}"' if d is float32 else ""
    return f"tl.dot(x, y, acc{precision}{', out_dtype=tl.float64' if d is float64 else ''})"


_SIGNATURE = """    T,
    K: tl.constexpr,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    G_BLOCK: tl.constexpr,
    M_BLOCK: tl.constexpr,
    N_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
):"""


def _rows(making: Making, x: Given, x_turned: bool, y: Given, y_turned: bool, offs: Given, out: Array, turned: bool) -> None:
    """out[t, n] = sum over k of x[t, k] y[g, k, n]; it lies turned if `turned`."""
    t, k = turned_back(x[1].shape, x_turned)
    groups, _, n = turned_back(y[1].shape, y_turned)
    if not t * n:
        return
    d = x[1].dtype
    m_block, n_block, k_block, warps = _blocks(d, max(t // max(groups, 1), 1), n, k)
    x_at = "row[:, None] + k[None, :].to(INDEX) * T" if x_turned else "row[:, None] * K + k[None, :]"
    y_at = "column[None, :] * K + k[:, None]" if y_turned else "k[:, None] * N + column[None, :]"
    out_at = "row[:, None] + column[None, :].to(INDEX) * T" if turned else "row[:, None] * N + column[None, :]"
    text = f"""@triton.jit
def grouped_rows(
    x_ptr,
    y_ptr,
    offs_ptr,
    out_ptr,
{_SIGNATURE}
    tile = tl.program_id(0) // tl.cdiv(N, N_BLOCK)
    column = tl.program_id(0) % tl.cdiv(N, N_BLOCK) * N_BLOCK + tl.arange(0, N_BLOCK)

    # whose tile it is: every group has whole tiles, and what is behind the last one is a group of no terms
    g = tl.arange(0, G_BLOCK)
    begins = tl.load(offs_ptr + g - 1, mask=(g > 0) & (g <= GROUPS), other=0)
    ends = tl.where(g == GROUPS, T, tl.load(offs_ptr + g, mask=g < GROUPS, other=0))
    begins = tl.minimum(tl.maximum(begins, 0), T)
    ends = tl.minimum(tl.maximum(ends, begins), T)
    tiles = tl.where(g <= GROUPS, tl.cdiv(ends - begins, M_BLOCK), 0)
    upto = tl.cumsum(tiles, 0)
    group = tl.sum((upto <= tile).to(tl.int32), 0)
    first = tl.sum(tl.where(g == group, begins - (upto - tiles) * M_BLOCK, 0), 0)
    end = tl.sum(tl.where(g == group, ends, 0), 0)
    row = (first + tile * M_BLOCK + tl.arange(0, M_BLOCK)).to(INDEX)
    row_in = row < end
    column_in = column < N

    acc = tl.zeros([M_BLOCK, N_BLOCK], tl.{"float64" if d is float64 else "float32"})
    y_ptr += group.to(tl.int64) * (K * N)
    for k_start in range(0, tl.where(group < GROUPS, K, 0), K_BLOCK):
        k = k_start + tl.arange(0, K_BLOCK)
        x = tl.load(x_ptr + ({x_at}), mask=row_in[:, None] & (k < K)[None, :], other=0)
        y = tl.load(y_ptr + ({y_at}), mask=(k < K)[:, None] & column_in[None, :], other=0)
        acc = {_dot(d, making.target)}
    tl.store(out_ptr + ({out_at}), acc.to(out_ptr.dtype.element_ty), mask=row_in[:, None] & column_in[None, :])
"""
    constants = {
        "K": k, "N": n, "GROUPS": groups, "G_BLOCK": power_of_two(groups + 1),
        "M_BLOCK": m_block, "N_BLOCK": n_block, "K_BLOCK": k_block,
    }  # fmt: skip
    grid = [(var("T") + groups * m_block, m_block), (ex(n), n_block)]
    _launch(making, "grouped_rows", text, d, constants, grid, t, max(t * k, t * n), warps, (x[0], y[0], offs[0], out))


def _sums(making: Making, x: Given, x_turned: bool, y: Given, y_turned: bool, offs: Given, out: Array) -> None:
    """out[g, m, n] = sum over t of group g of x[m, t] y[t, n]."""
    m, t = turned_back(x[1].shape, x_turned)
    n = turned_back(y[1].shape, y_turned)[1]
    groups = offs[1].shape[0]
    if not m * n * groups:
        return
    d = x[1].dtype
    m_block, n_block, k_block, warps = _blocks(d, m, n, max(t // groups, 1))
    x_at = "k[None, :] * K + row[:, None]" if x_turned else "row[:, None].to(INDEX) * T + k[None, :]"
    y_at = "column[None, :].to(INDEX) * T + k[:, None]" if y_turned else "k[:, None] * N + column[None, :]"
    text = f"""@triton.jit
def grouped_sums(
    x_ptr,
    y_ptr,
    offs_ptr,
    out_ptr,
{_SIGNATURE}
    tile = tl.program_id(0) // GROUPS
    group = tl.program_id(0) % GROUPS
    row = tile // tl.cdiv(N, N_BLOCK) * M_BLOCK + tl.arange(0, M_BLOCK)
    column = tile % tl.cdiv(N, N_BLOCK) * N_BLOCK + tl.arange(0, N_BLOCK)
    row_in = row < K
    column_in = column < N
    begin = tl.minimum(tl.maximum(tl.load(offs_ptr + group - 1, mask=group > 0, other=0), 0), T)
    end = tl.minimum(tl.load(offs_ptr + group), T)

    acc = tl.zeros([M_BLOCK, N_BLOCK], tl.{"float64" if d is float64 else "float32"})
    for k_start in range(begin, end, K_BLOCK):
        k = (k_start + tl.arange(0, K_BLOCK)).to(INDEX)
        x = tl.load(x_ptr + ({x_at}), mask=row_in[:, None] & (k < end)[None, :], other=0)
        y = tl.load(y_ptr + ({y_at}), mask=(k < end)[:, None] & column_in[None, :], other=0)
        acc = {_dot(d, making.target)}
    place = group.to(tl.int64) * (K * N) + row[:, None] * N + column[None, :]
    tl.store(out_ptr + place, acc.to(out_ptr.dtype.element_ty), mask=row_in[:, None] & column_in[None, :])
"""
    constants = {
        "K": m, "N": n, "GROUPS": groups, "G_BLOCK": 1,
        "M_BLOCK": m_block, "N_BLOCK": n_block, "K_BLOCK": k_block,
    }  # fmt: skip
    grid = [(ex(m), m_block), (ex(n), n_block), (ex(groups), 1)]
    _launch(making, "grouped_sums", text, d, constants, grid, t, max(t * m, t * n), warps, (x[0], y[0], offs[0], out))


def _launch(
    making: Making, entry: str, text: str, d: dtype, constants: dict, grid: list, t: int, most: int, warps: int, arrays: tuple
) -> None:
    """`most`: elements of the largest array that positions of T reach into."""
    buffers = [("x", d), ("y", d), ("offs", int32), ("out", d)]
    source = written(entry, text, buffers, ["T"], constants, grid, warps=warps, sizes={"T": t}, reach=most)
    making.launch(source, dict(zip(("x", "y", "offs", "out"), arrays, strict=True)), {"T": t})
