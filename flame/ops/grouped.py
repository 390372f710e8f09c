"""Products of matrices by groups, whose sizes are data: a mixture's experts, each with the tokens that were sent to it.

    grouped_mm(a, b, offs; turned)        offs int32 [G], non-decreasing: group g goes from offs[g - 1] (or 0) to offs[g]
        rows     a [T, K], b [G, K, N] -> [T, N]         y[t] = a[t] b[g] for the rows t of group g; 0 behind the last group
        columns  a [G, M, K], b [K, T] -> [M, T]         the same of columns
        sums     a [M, T], b [T, N] -> [G, M, N]         y[g] = the sum over group g of columns of a times rows of b

`turned` says of a and b whether they lie with their last two dimensions exchanged: so the derivatives, which are such products
themselves, need no transposed copies. Narrow floats are added up in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from flame import dtypes
from flame.dtypes import int32
from flame.ops.blas import product
from flame.ops.declare import draw, draws, is_narrow, quiet, widened
from flame.primitive import Primitive, Spec, joint, register

Form = Literal["rows", "columns", "sums"]
Turned = tuple[bool, bool]
Shape = tuple[Any, ...]


def form_of(a: Shape, b: Shape) -> Form:
    return "sums" if len(a) == len(b) else "rows" if len(a) == 2 else "columns"


def turned_back(shape: Shape, turned: bool) -> Shape:
    """The shape that is meant, of what lies with its last two dimensions exchanged."""
    return (*shape[:-2], shape[-1], shape[-2]) if turned else shape


def _infer(a: Spec, b: Spec, offs: Spec, *, turned: Turned = (False, False)) -> Spec:
    said = f"{a}, {b} and offs {offs}"
    if a.dtype is not b.dtype or a.dtype.kind != "f":
        raise RuntimeError(f"grouped_mm: expected two matrices of one floating dtype, but got {said}")
    if offs.ndim != 1 or offs.dtype is not int32:
        raise RuntimeError(f"grouped_mm: expected offs to be int32 [groups], but got {said}")
    if not (a.ndim == 2 and b.ndim in (2, 3) or a.ndim == 3 and b.ndim == 2):
        raise RuntimeError(f"grouped_mm: expected matrices of 2 and 3, 3 and 2, or 2 and 2 dimensions, but got {said}")
    x, y = turned_back(a.shape, turned[0]), turned_back(b.shape, turned[1])
    if x[-1] != y[-2]:
        raise RuntimeError(f"grouped_mm: contraction dimension of the two matrices must match, but got {said}")
    form = form_of(x, y)
    if form != "sums" and (y if form == "rows" else x)[0] != offs.shape[0]:
        raise RuntimeError(f"grouped_mm: expected as many matrices as groups, but got {said}")
    lead = (offs.shape[0],) if form == "sums" else ()
    return Spec((*lead, x[-2], y[-1]), a.dtype)


def _eager(a: np.ndarray, b: np.ndarray, offs: np.ndarray, *, turned: Turned = (False, False)) -> np.ndarray:
    d = a.dtype
    x, y = (np.swapaxes(m, -1, -2) if t else m for m, t in zip((a, b), turned, strict=True))
    form = form_of(x.shape, y.shape)
    if is_narrow(d):
        x, y = widened(x), widened(y)
    lead = (len(offs),) if form == "sums" else ()
    out = np.zeros((*lead, x.shape[-2], y.shape[-1]), x.dtype)
    count = x.shape[-2] if form == "rows" else y.shape[-1] if form == "columns" else x.shape[-1]

    def run() -> np.ndarray:
        begin = 0
        for g, end in enumerate(np.clip(offs, 0, count).tolist()):
            if form == "rows":
                out[begin:end] = product(x[begin:end], y[g])
            elif form == "columns":
                out[:, begin:end] = product(x[g], y[:, begin:end])
            else:
                out[g] = product(x[:, begin:end], y[begin:end])
            begin = end
        return out.astype(d, copy=False)

    return quiet.run(run)


def _times(x: Any, in_x: bool, y: Any, in_y: bool, offs: Any, flipped: bool) -> Any:
    """x y, of what lies turned or not; `flipped`: the result is to lie turned."""
    if flipped:
        return grouped_mm(y, x, offs, turned=(not in_y, not in_x))
    return grouped_mm(x, y, offs, turned=(in_x, in_y))


def _vjp(g: Any, _y: Any, a: Any, b: Any, offs: Any, *, turned: Turned = (False, False)) -> tuple[Any, ...]:
    """g b^T and a^T g: for rows, columns and sums alike, each in its own form."""
    in_a, in_b = turned
    return _times(g, False, b, not in_b, offs, in_a), _times(a, not in_a, g, False, offs, in_b), None


def _samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("grouped_mm")
    cases: tuple[tuple[int, int, int, list[int], int], ...] = (
        (3, 5, 4, [2, 2, 6], 7),
        (1, 1, 1, [1], 1),
        (17, 18, 20, [0, 19, 36], 36),
        (2, 3, 4, [], 0),
        (4, 0, 3, [2, 3], 4),
    )
    for d in (x for x in dtypes.ALL if x.kind == "f"):
        for n, (m, k, columns, offs, t) in enumerate(cases):
            shapes: tuple[tuple[Shape, Shape], ...] = (
                ((t, k), (len(offs), k, columns)),
                ((len(offs), m, k), (k, t)),
                ((m, t), (t, columns)),
            )
            for i, (one, two) in enumerate(shapes):
                turned = (bool((n + i) & 1), bool((n + i) & 2))
                a, b = (draw(r, d, turned_back(s, x), -1, 1) for s, x in zip((one, two), turned, strict=True))
                yield (a, b, np.array(offs, np.int32)), {"turned": turned}


grouped_mm: Primitive = register(
    "grouped_mm",
    kind="opaque",
    infer=_infer,
    eager=_eager,
    vjp=joint(_vjp, first=2),
    refused={"lower": "where its groups end is data: a routine on a GPU, NumPy's products on a CPU"},
    samples=_samples,
    doc="grouped_mm(a, b, offs, *, turned): products of rows, of columns, or sums over them, by groups that end at offs.",
)
