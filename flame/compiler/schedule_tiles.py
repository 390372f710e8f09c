"""Tiles of contractions on GPUs, as data: what may be tried, what fits, and what is taken where nothing is measured.

    product_tiles(Product, target) -> [Tile]      a matrix product, a convolution: best guess first
    chain_tiles(ChainShape, target) -> [Tile]     attention and its gradients: best guess first

Every tile given fits the target: its shared memory by the bytes that the pipeline's stages hold, its registers by an estimate
of what accumulators, scores and fragments take. The estimates were held against what Triton's binaries use for sm_80, sm_90,
sm_100 and gfx942 (`scripts/triton_table.py` writes the table); the order is a guess from published kernels, until a tuner that
measures says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from flame.compiler.target import Target

#: 32-bit registers of a thread that addresses, masks and loop counters take
_OVERHEAD = 40
#: registers that a thread may have, and what is left of them for the estimates' errors
_MOST, _SPARE = 255, 10


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of a tile (of a chain: rows, and walked positions), summed positions at a time, warps, stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def power_of_two(n: int) -> int:
    """The least power of two that is no less than n."""
    return 1 << max(0, n - 1).bit_length()


def _threads(target: Target, warps: int) -> int:
    return warps * target.lanes


def _through_shared(target: Target) -> bool:
    """Do matrix instructions read both operands from shared memory?"""
    return target.arch.startswith("sm_") and int(target.arch[3:].rstrip("a")) >= 90


def _staged(target: Target, stages: int) -> int:
    """Copies of a step's operands that are in shared memory at a time."""
    return max(1, min(stages, 2) - 1) if target.arch.startswith("gfx") else stages


# ---- products


@dataclass(frozen=True, slots=True)
class Product:
    """A contraction's sizes: rows, columns, members of the batch, summed positions in a run; bytes of an operand's element
    and of the accumulator's; operations that the epilogue does with each element of a tile."""

    m: int
    n: int
    batch: int
    k: int
    width: int
    wide: int = 4
    epilogue: int = 0


_HALF = (
    (128, 256, 64, 8, 3), (256, 128, 64, 8, 3), (128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 32, 4, 4),
    (128, 64, 64, 4, 4), (64, 128, 64, 4, 4), (64, 64, 64, 4, 4), (64, 64, 32, 4, 4), (32, 64, 64, 4, 4), (64, 32, 64, 4, 4),
    (32, 32, 64, 2, 4), (16, 64, 128, 4, 4), (64, 16, 128, 4, 4), (16, 32, 128, 2, 4), (32, 16, 128, 2, 4), (16, 16, 128, 1, 4),
)  # fmt: skip
_SINGLE = (
    (128, 64, 16, 8, 3), (64, 128, 16, 8, 3), (64, 64, 16, 4, 3), (64, 32, 16, 4, 3), (32, 64, 16, 4, 3), (32, 32, 32, 4, 3),
    (16, 64, 32, 4, 3), (64, 16, 32, 4, 3), (16, 32, 32, 2, 3), (32, 16, 32, 2, 3), (16, 16, 32, 1, 3),
)  # fmt: skip
_TF32 = (
    (128, 128, 32, 8, 3), (128, 64, 32, 4, 3), (64, 128, 32, 4, 3), (64, 64, 32, 4, 3), (64, 32, 32, 4, 3), (32, 64, 32, 4, 3),
    (32, 32, 32, 4, 3), (16, 64, 32, 4, 3), (64, 16, 32, 4, 3), (16, 16, 32, 1, 3),
)  # fmt: skip
_DOUBLE = (
    (64, 64, 16, 8, 2),
    (64, 32, 16, 4, 2),
    (32, 64, 16, 4, 2),
    (32, 32, 16, 4, 2),
    (16, 32, 16, 2, 2),
    (16, 16, 16, 1, 2),
)


def product_fits(tile: Tile, p: Product, target: Target) -> bool:
    """Does a program of this tile fit a multiprocessor?"""
    held = (tile.m * tile.k + tile.k * tile.n) * p.width
    if held * _staged(target, tile.stages) > target.cache:
        return False
    each = tile.m * tile.n / _threads(target, tile.warps)
    fragments = 0.0 if _through_shared(target) and p.width <= 2 else (tile.m + tile.n) * 16 * p.width / 4 / target.lanes
    most = 2 * _MOST if target.arch.startswith("gfx9") else _MOST
    return _OVERHEAD + each * (p.wide / 4) * (1 + 0.5 * min(p.epilogue, 2)) + fragments <= most - _SPARE


def product_tiles(p: Product, target: Target, tf32: bool = False) -> list[Tile]:
    """Tiles for a product, the best guess first."""
    table = _HALF if p.width <= 2 else (_TF32 if tf32 else _SINGLE) if p.width == 4 else _DOUBLE
    least = 32 if p.width == 1 else 16
    deepest = max(least, power_of_two(p.k))
    rows, columns = max(16, power_of_two(p.m)), max(16, power_of_two(p.n))
    found: dict[Tile, None] = {}
    for m, n, k, warps, stages in table:
        if m <= rows and n <= columns:
            deep = max(least, min(k * (2 if p.width == 1 else 1), deepest))
            tile = Tile(m, n, deep, warps, min(stages, 2) if target.arch.startswith("gfx") else stages)
            while tile.stages > 2 and not product_fits(tile, p, target):
                tile = Tile(m, n, deep, warps, tile.stages - 1)
            if product_fits(tile, p, target):
                found[tile] = None
    tiles = list(found) or [Tile(16, 16, least, 1, 2)]
    return sorted(tiles, key=lambda t: (_cycles(t, p, target, tf32), -t.m * t.n))


def _cycles(t: Tile, p: Product, target: Target, tf32: bool) -> float:
    """A guess at the time of one summed position, for all the rounds of programs that the multiprocessors take: products, or
    the operands' way from the L2 cache, whichever is longer, and what each step costs whatever its size."""
    rounds = -(-(-(-p.m // t.m) * -(-p.n // t.n) * p.batch) // max(target.units, 1))
    tensor = 2048 if _through_shared(target) else 1024  # multiply-adds a cycle of 16 bits, by the data sheets
    rate = {1: 2.0 * tensor, 2: 1.0 * tensor, 4: tensor / 2 if tf32 else 96, 8: 64}[p.width]
    return rounds * (max(t.m * t.n / rate, (t.m + t.n) * p.width / 64) + 256 / t.k)


# ---- chains


@dataclass(frozen=True, slots=True)
class ChainShape:
    """A chain's sizes: rows of a tile's axes, all programs' batch, walked positions; bytes of an element; padded numbers of
    a head that rows hold (`held`, one an inner contraction), that each step reads (`walked`) and that are accumulated
    (`summed`)."""

    rows: int
    batch: int
    length: int
    width: int
    held: tuple[int, ...]
    walked: tuple[int, ...]
    summed: tuple[int, ...]
    online: bool = True  #: keeps each row's maximum and sum
    steps: int = 0  #: operations on each score


_CHAINS = (
    (128, 128, 8, 2), (128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 2), (64, 128, 4, 2), (64, 64, 4, 3), (64, 64, 4, 2),
    (64, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2), (64, 32, 8, 2), (32, 64, 4, 2), (32, 32, 4, 2), (64, 16, 8, 2),
    (32, 16, 4, 2), (16, 64, 4, 2), (16, 32, 4, 2), (16, 16, 4, 1),
)  # fmt: skip


#: operations on a score that attention does of its own accord
_STEPS = 6


def chain_fits(tile: Tile, c: ChainShape, target: Target) -> bool:
    """Does a program of this tile fit a multiprocessor?"""
    through = _through_shared(target) and c.width <= 2
    held = tile.m * sum(c.held) * c.width
    steps = tile.n * sum(c.walked) * c.width * _staged(target, tile.stages)
    if steps + (held if through or c.width > 2 else 0) > target.cache - 1024:
        return False
    threads = _threads(target, tile.warps)
    scores = 1.5 if through else 2.0  # they are there once as sums and once as what the next product reads
    more = max(0, c.steps - _STEPS) if c.online else 0
    scores += 0.2 * more  # places, what is looked up, what waits for its turn: seen to spill without
    numbers = tile.m * sum(c.summed) + scores * tile.m * tile.n * len(c.held)
    fragments = 0.0 if through else held / 4
    if len(c.held) > 1 and not through:
        fragments /= 2  # they are read from shared memory again where registers are short
    if target.arch.startswith("gfx") and max(tile.m * max(c.summed), 2 * tile.m * tile.n) > 8192:
        return False  # seen to spill, after a minute of compiling
    if c.width > 2 and tile.m * tile.n > (2048 if more else 4096):
        return False  # products of float32 without tensor cores: long code, and no faster
    if c.online and tile.m < 16 * tile.warps and target.lanes == 32:
        return False  # warps would share rows, and go through memory for each row's maximum
    return _OVERHEAD + (numbers + fragments) / threads <= _MOST - _SPARE


def chain_tiles(c: ChainShape, target: Target) -> list[Tile]:
    """Tiles for a chain, the best guess first: the most scores at a time, with all multiprocessors busy."""
    rows, length = max(16, power_of_two(c.rows)), max(16, power_of_two(c.length))
    found: list[Tile] = []
    for m, n, warps, stages in _CHAINS:
        tile = Tile(m, n, 0, warps, min(stages, 2) if target.arch.startswith("gfx") else stages)
        if m <= rows and n <= length and tile not in found and chain_fits(tile, c, target):
            found.append(tile)
    found = found or [Tile(16, 16, 0, 4, 1)]

    def order(t: Tile) -> tuple:
        programs = -(-c.rows // t.m) * c.batch
        few = programs < target.units
        return (few, -programs if few else 0, -(t.m * t.n) / (1 if t.warps == 4 else 1.5), t.warps, -t.stages)

    return sorted(found, key=order)
