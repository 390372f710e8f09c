"""Triton for the quarter turns in large float64 numbers, what sine, cosine and tangent begin with.

CUDA's library does this by a table on each thread's stack; here the 1280 bits of 2 / pi are constants, of which a tree of
selections takes the 256 that matter. It is a branch of the whole tile, which no tile takes that has no number beyond 2^30. The
method is that of Payne and Hanek, "Radian Reduction for Trigonometric Functions" (1983): |x| = m 2^e, and bits of 2 / pi whose
product with 2^e is a multiple of 4 change nothing.
"""

from __future__ import annotations

from functools import cache

#: 2 / pi in words of 64 bits, after 64 zeros
_WORDS = (
    0x0, 0xA2F9836E4E441529, 0xFC2757D1F534DDC0, 0xDB6295993C439041, 0xFE5163ABDEBBC561, 0xB7246E3A424DD2E0,
    0x06492EEA09D1921C, 0xFE1DEB1CB129A73E, 0xE88235F52EBB4484, 0xE99C7026B45F7E41, 0x3991D639835339F4, 0x9C845F8BBDF9283B,
    0x1FF897FFDE05980F, 0xEF2F118B5A0A6D1F, 0x6D367ECF27CB09B7, 0x4F463F669E5FEA2D, 0x7527BAC7EBE5F17B, 0x3D0739F78A5292EA,
    0x6BFB5FB11F8D5D08, 0x56033046FC7B6BAB,
)  # fmt: skip
#: how many words are still wanted when the place's bit has been decided
_STAGES = ((16, 4), (8, 11), (4, 7), (2, 5), (1, 4))

_REST = """
    lead = tl.full([], 63, tl.uint64) - shift
    one = tl.full([], 1, tl.uint64)
    w2 = (a0 << shift) | (a1 >> one >> lead)
    w1 = (a1 << shift) | (a2 >> one >> lead)
    w0 = (a2 << shift) | (a3 >> one >> lead)
    # the product's last 192 bits, of which two are the quarter turns
    h0 = tl.umulhi(number, w0)
    p1 = number * w1 + h0
    p2 = number * w2 + tl.umulhi(number, w1) + (p1 < h0).to(tl.uint64)
    p0 = number * w0
    two = tl.full([], 2, tl.uint64)
    high = (p2 << two) | (p1 >> tl.full([], 62, tl.uint64))
    rest = (p1 << two) | (p0 >> tl.full([], 62, tl.uint64))
    turns = (p2 >> tl.full([], 62, tl.uint64)).to(tl.int64)
    # to the nearest: a fraction in [-1/2, 1/2), as its size and sign
    below = high.to(tl.int64, bitcast=True) < 0
    turns = tl.where(below, turns + 1, turns)
    carry = (rest == 0).to(tl.uint64)
    high = tl.where(below, ~high + carry, high)
    rest = tl.where(below, ~rest + one, rest)
    # its first bit to the front
    size = (high.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1023
    up = tl.minimum(tl.maximum(62 - size, tl.zeros_like(size)), tl.full([], 62, tl.int64)).to(tl.uint64)
    high = (high << up) | (rest >> one >> (tl.full([], 63, tl.uint64) - up))
    rest = rest << up
    unit = ((959 - up.to(tl.int64)) << 52).to(tl.float64, bitcast=True)
    tail = (high & tl.full([], 2047, tl.uint64)).to(tl.float64) + rest.to(tl.float64) * 5.421010862427522e-20
    first = ((high >> tl.full([], 11, tl.uint64)) << tl.full([], 11, tl.uint64)).to(tl.float64) * unit
    # times pi / 2
    big = first * tl.full([], 1.5707963267948966, tl.float64)
    small = tl.fma(first, tl.full([], 1.5707963267948966, tl.float64), -big)
    small += first * tl.full([], 6.123233995736766e-17, tl.float64) + tail * unit * tl.full([], 1.5707963267948966, tl.float64)
    sum = big + small
    small = (big - sum) + small
    turned = below != (x < 0.0)
    sum = tl.where(turned, -sum, sum)
    small = tl.where(turned, -small, small)
    turns = tl.where(x < 0.0, -turns, turns)
    endless = ((word >> tl.full([], 52, tl.uint64)) & tl.full([], 2047, tl.uint64)) == 2047
    return turns, tl.where(endless, float("nan"), sum), tl.where(endless, 0.0, small)
"""


@cache
def far_turns() -> str:
    """The function `_far_turns(x)`: (quarter turns, what is left as a sum of two numbers) of float64 beyond 2^30."""
    lines = [
        "@triton.jit",
        "def _far_turns(x):",
        '    """Quarter turns in |x| >= 2^30, and the radians left, as a sum."""',
        "    word = x.to(tl.uint64, bitcast=True)",
        "    number = (word & tl.full([], 4503599627370495, tl.uint64)) | tl.full([], 4503599627370496, tl.uint64)",
        "    at = ((word >> tl.full([], 52, tl.uint64)) & tl.full([], 2047, tl.uint64)).to(tl.int64) - 1013",
        "    at = tl.minimum(tl.maximum(at, tl.zeros_like(at)), tl.full([], 1087, tl.int64))",
        "    shift = (at & 63).to(tl.uint64)",
        "    place = at >> 6",
    ]
    words = [f"tl.full([], {w - (1 << 64) if w >> 63 else w}, tl.int64).to(tl.uint64, bitcast=True)" for w in _WORDS]
    for bit, wanted in _STAGES:
        lines.append(f"    bit = (place & {bit}) != 0")
        made = []
        for j in range(len(words) if bit == 16 else wanted):
            beyond = words[j + bit] if j + bit < len(words) else words[j]
            if beyond == words[j]:
                made.append(words[j])
                continue
            lines.append(f"    b{bit}_{j} = tl.where(bit, {beyond}, {words[j]})")
            made.append(f"b{bit}_{j}")
        words = made
    lines += [f"    a{j} = {words[j]}" for j in range(4)]
    return "\n".join(lines) + _REST.rstrip("\n")


#: where no number of a tile is large, nothing is computed
FAR_QUADRANT = '''
@triton.jit
def _far_quadrant(x, q, r, low):
    """The quarter turns of x, and what is left: those given, or for large numbers others."""
    far = (tl.abs(x) >= 1073741824.0) | (x != x)
    if _any(far):
        turns, rest, tail = _far_turns(x)
        q = tl.where(far, turns, q)
        r = tl.where(far, rest, r)
        low = tl.where(far, tail, low)
    return q, r, low
'''
ANY = '''
@triton.jit
def _any(x):
    """Does it hold anywhere in a tile?"""
    x = x.to(tl.int32)
    if len(x.shape) > 0:
        return tl.max(x, None) != 0
    else:
        return x != 0
'''
