"""Random bits by counting: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

The stream of a seed is a function of the position alone, so that draws are the same eager and compiled, whole and in parts:

    position p:  counter (p // 4 as 64 bits, 0, 0), key (seed's low half, seed's high half), word p % 4

uniform, normal, dropout and the rest are built on these bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from flame.dtypes import int64, uint32
from flame.ops.access import At, Index
from flame.ops.declare import draws
from flame.ops.machine import Machine
from flame.primitive import Number, Primitive, Scalar, Spec, broadcast_shapes, register

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF
_BLOCK = 4096


def philox(counter: np.ndarray, seed: int) -> np.ndarray:
    """The four words of each 64-bit counter (uint64[n]) as uint32[n, 4]."""
    low, shift = np.uint64(_MASK), np.uint64(32)
    c0, c1 = counter & low, counter >> shift
    c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        a, b = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])  # 32 by 32 bits: no wrap
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ np.uint64(k0), b & low, (a >> shift) ^ c3 ^ np.uint64(k1), a & low
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def _philox_word(m: Machine, seed: Any, position: Any) -> Any:
    """The same on a machine, for one position."""
    block = m.shift_right(position, 2)
    c0, c1 = m.cast(block, uint32), m.cast(m.shift_right(block, 32), uint32)
    c2 = c3 = m.const(0, uint32)
    k0, k1 = m.cast(seed, uint32), m.cast(m.shift_right(seed, 32), uint32)
    for i in range(_ROUNDS):
        if i:
            k0, k1 = m.add(k0, _WEYL[0]), m.add(k1, _WEYL[1])
        c0, c1, c2, c3 = (
            m.bitwise_xor(m.bitwise_xor(m.mul_high(c2, _MULTIPLIERS[1]), c1), k0),
            m.mul(c2, _MULTIPLIERS[1]),
            m.bitwise_xor(m.bitwise_xor(m.mul_high(c0, _MULTIPLIERS[0]), c3), k1),
            m.mul(c0, _MULTIPLIERS[0]),
        )
    word = m.bitwise_and(position, 3)
    return m.where(m.lt(word, 2), m.where(m.eq(word, 0), c0, c1), m.where(m.eq(word, 2), c2, c3))


def _word_infer(seed: Spec | Number, position: Spec | Number) -> Spec:
    specs = [s for s in (seed, position) if isinstance(s, Spec)]
    if not specs or any(s.dtype is not int64 for s in specs):
        raise RuntimeError(f"philox_word: expected int64 tensors, but got {seed} and {position}")
    return Spec(broadcast_shapes(*(s.shape for s in specs), op="philox_word"), uint32)


def _word_eager(seed: Any, position: Any) -> np.ndarray:
    seeds, positions = np.broadcast_arrays(np.asarray(seed, np.int64), np.asarray(position, np.int64))
    out = np.empty(seeds.shape, np.uint32)
    for s in np.unique(seeds):
        at = seeds == s
        p = positions[at].astype(np.uint64)
        out[at] = np.take_along_axis(philox(p >> np.uint64(2), int(s)), (p & np.uint64(3)).astype(np.int64)[:, None], 1)[:, 0]
    return out


def _word_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("philox_word")
    yield (np.asarray(0), np.arange(9)), {}
    yield (np.asarray([[1], [-5]]), r.integers(0, 1 << 62, (2, 7))), {}
    yield (3, r.integers(0, 100, (0,))), {}
    yield (r.integers(-(1 << 62), 1 << 62, (5,)), 7), {}


philox_word: Primitive = register(
    "philox_word",
    kind="elementwise",
    infer=_word_infer,
    eager=_word_eager,
    scalar=Scalar(_philox_word),
    samples=_word_samples,
    refused={"vjp": "bits have no derivative"},
    doc="philox_word(seed, position): the word of the seed's stream at a position >= 0; int64 operands, uint32 result.",
)


def _bits_infer(seed: Spec | Number, offset: Spec | Number, *, shape: tuple[int, ...], place: str = "") -> Spec:
    for s in (seed, offset):
        if isinstance(s, Spec) and (s.shape or s.dtype is not int64):
            raise RuntimeError(f"random_bits: expected a number or a 0-d int64 tensor as seed and offset, but got {s}")
    if any(n < 0 for n in shape):
        raise RuntimeError(f"random_bits: trying to create a tensor with negative dimension: {list(shape)}")
    return Spec(shape, uint32)


def _bits_eager(seed: Any, offset: Any, *, shape: tuple[int, ...], place: str = "") -> np.ndarray:
    seed, offset = int(seed), int(offset)
    out = np.empty(shape, np.uint32)
    first, last = offset // 4, -(-(offset + out.size) // 4)
    words = np.empty((max(last - first, 0), 4), np.uint32)
    for i in range(0, len(words), _BLOCK):  # a block at a time stays in cache
        stop = min(i + _BLOCK, len(words))
        words[i:stop] = philox(np.arange(first + i, first + stop, dtype=np.uint64), seed)
    skip = offset - 4 * first
    out.reshape(-1)[:] = words.reshape(-1)[skip : skip + out.size]
    return out


def _bits_lower(at: At, index: Index, *_operands: Any, shape: tuple[int, ...], place: str = "") -> Any:
    flat: Any = 0
    for n, i in zip(shape, index, strict=True):
        flat = flat * n + i
    position = at.op("add", at.value(1, ()), at.index_value(flat, int64), dtype=int64)
    return at.op("philox_word", at.value(0, ()), position, dtype=uint32)


def _bits_samples() -> Iterator[tuple[tuple, dict]]:
    for seed, offset, shape in ((0, 0, (4,)), (7, 5, (3, 6)), (1 << 40, 2, ()), (-3, 1 << 35, (2, 3)), (1, 3, (0, 2))):
        yield (seed, offset), {"shape": shape}
        yield (np.asarray(seed), np.asarray(offset)), {"shape": shape}


random_bits: Primitive = register(
    "random_bits",
    kind="random",
    infer=_bits_infer,
    eager=_bits_eager,
    lower=_bits_lower,
    samples=_bits_samples,
    refused={"vjp": "bits have no derivative"},
    doc="random_bits(seed, offset, *, shape): element i is the word at position offset + i of the seed's stream.",
)
