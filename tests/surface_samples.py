"""Sample calls of the public functions: by name, arguments in which `T` stands for an array that a test fills in.

    case ::= (arguments, keywords)              positional and keyword arguments of flame.<name> and of PyTorch's namesake
    T(shape, kind)                              kind: "f" any float, "p" positive, "u" in (0, 1), "i" ints, "n" ints from 0,
                                                "b" booleans, "s" well-conditioned matrices, "d" positive definite ones,
                                                "l" lower triangular ones; "c" positive and constant: not differentiated
    I([..])                                     an index: the same integers in every dtype

`NOT_SMOOTH` are those that are not differentiated, `READS` those whose result has a size that depends on values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class T:
    """An array to be drawn."""

    shape: tuple[int, ...]
    kind: str = "f"

    def draw(self, r: np.random.Generator, dtype: Any) -> np.ndarray:
        match self.kind:
            case "f":
                a = r.uniform(-2, 2, self.shape)
            case "p":
                a = r.uniform(0.3, 3, self.shape)
            case "u":
                a = r.uniform(0.1, 0.9, self.shape)
            case "s":
                a = r.uniform(-1, 1, self.shape) + 2 * np.eye(*self.shape[-2:])
            case "c":
                a = r.uniform(1.2, 3, self.shape)
            case "l":
                a = np.tril(r.uniform(-1, 1, self.shape)) + 2 * np.eye(self.shape[-1])
            case "d":
                b = r.uniform(-1, 1, self.shape)
                a = b @ np.swapaxes(b, -1, -2) + np.eye(self.shape[-1])
            case "i":
                return np.asarray(r.integers(-6, 6, self.shape), np.int64)
            case "n":
                return np.asarray(r.integers(0, 6, self.shape), np.int64)
            case _:
                return np.asarray(r.integers(0, 2, self.shape), np.bool_)
        return np.asarray(a).astype(dtype)


@dataclass(frozen=True)
class I:  # noqa: E742
    """An index."""

    values: tuple


def index(*values: Any) -> I:
    return I(values)


def case(*args: Any, **kwargs: Any) -> tuple[tuple, dict]:
    return args, kwargs


x, v, p, u = T((3, 4)), T((5,)), T((3, 4), "p"), T((3, 4), "u")
e, z, big = T((0, 3)), T(()), T((2, 3, 4))
m, s, d, b2 = T((4, 3)), T((3, 3), "s"), T((2, 3, 3), "d"), T((3, 4), "b")

CASES: dict[str, list[tuple[tuple, dict]]] = {
    # elements
    **{n: [case(x), case(z), case(e)] for n in "deg2rad rad2deg sinc sgn positive i0".split()},
    **{n: [case(x), case(z)] for n in "special.i0e special.i1 special.i1e special.erfcx special.ndtr special.log_ndtr".split()},
    "special.ndtri": [case(u)],
    **{
        f"special.{n}": [case(x, 3), case(x, T((4,), "n"))]
        for n in (
            *(f"{s}chebyshev_polynomial_{k}" for k in "tuvw" for s in ("", "shifted_")),
            *"hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l legendre_polynomial_p".split(),
        )
    },
    "hash_tensor": [case(x), case(x, 1), case(T((3, 4), "i"), (0, 1), keepdim=True), case(b2, 0)],
    "special.entr": [case(p), case(z)],
    "special.xlog1py": [case(x, p), case(x, T((4,), "p"))],
    "special.zeta": [case(T((3, 4), "c"), p)],
    "mvlgamma": [case(T((3,), "p"), 1)],
    "polygamma": [case(k, p) for k in (0, 1, 2, 3)],
    "igamma": [case(T((3, 4), "c"), T((4,), "p"))],
    "igammac": [case(T((3, 4), "c"), T((4,), "p"))],
    "signbit": [case(x), case(T((3,), "i"))],
    "isposinf": [case(x), case(T((3,), "i"))],
    "isneginf": [case(x)],
    "frexp": [case(x)],
    "heaviside": [case(x, T((4,)))],
    "ldexp": [case(x, T((4,), "n"))],
    "logaddexp2": [case(x, T((4,)))],
    "gcd": [case(T((5,), "i"), T((5,), "i"))],
    "lcm": [case(T((5,), "i"), T((5,), "i"))],
    "round": [case(x, decimals=1), case(x)],
    "fmax": [case(x, T((4,))), case(b2, b2)],
    # order and statistics
    "quantile": [
        case(x, 0.3), case(x, T((2,), "u"), dim=1), case(x, 0.5, dim=0, keepdim=True), case(v, 0.4, interpolation="nearest"),
        case(x, T((3,), "u"), dim=0, keepdim=True, interpolation="lower"), case(x, 0.7, 1, interpolation="midpoint"),
    ],
    "nanquantile": [case(x, 0.3), case(x, 0.5, dim=1)],
    "nanmedian": [case(x), case(x, 1), case(x, 0, True), case(z)],
    "mode": [case(T((4, 6), "n")), case(T((6,), "n"), 0, True), case(z)],
    "msort": [case(x), case(z)],
    "cummax": [case(x, 1), case(big, -2), case(z, 0)],
    "cummin": [case(x, 0)],
    "logcumsumexp": [case(x, 1), case(big, 0), case(z, 0)],
    "cov": [case(x), case(v), case(x, correction=0), case(x, fweights=index(1, 2, 1, 3)), case(x, aweights=T((4,), "p"))],
    "corrcoef": [case(x), case(v)],
    "bincount": [case(T((7,), "n")), case(T((7,), "n"), minlength=9), case(T((4,), "n"), T((4,), "p"))],
    "histc": [case(x, 5, -1, 1), case(x, 4), case(x, bins=3, min=-2, max=2)],
    "histogram": [case(v, 4), case(v, 3, range=(-1.0, 1.0)), case(v, 3, density=True, weight=T((5,), "p"))],
    "histogramdd": [case(T((6, 2)), [3, 2])],
    "diff": [case(x), case(x, 2, 0), case(x, 1, 1, T((3, 1)), T((3, 2))), case(b2)],
    "trapezoid": [case(x), case(x, T((4,))), case(x, dx=0.5, dim=0), case(x, T((3, 4)), dim=0)],
    "cumulative_trapezoid": [case(x), case(x, T((4,)), dim=-1)],
    "gradient": [case(x), case(x, spacing=2.0), case(x, dim=1, edge_order=2), case(v, spacing=(index(0.0, 1.0, 3.0, 4.0, 6.0),))],
    "renorm": [case(x, 2, 0, 1.0), case(big, 1.5, 1, 0.5)],
    "cdist": [case(x, T((5, 4))), case(big, T((1, 2, 4)), 1.0), case(T((30, 2)), T((3, 2))), case(x, x, 3.0)],
    "norm": [case(x), case(x, 3, 1), case(x, 1), case(x, float("inf"), 0), case(s, "nuc")],
    "aminmax": [case(x), case(x, dim=1), case(x, dim=0, keepdim=True)],
    "cumsum": [case(x, 1), case(x, 0, dtype="float64")],
    # finding
    "searchsorted": [case(index(1.0, 2.0, 3.0), x), case(index(1.0, 2.0), x, right=True), case(index(0.5, 1.5), 1.0, side="right")],
    "bucketize": [case(x, index(-1.0, 0.0, 1.0)), case(x, index(0.0, 1.0), out_int32=True, right=True)],
    "isin": [case(T((5,), "n"), T((3,), "n")), case(T((5,), "n"), T((20,), "n"), invert=True), case(T((5,), "n"), 2)],
    "unique_consecutive": [case(T((9,), "b")), case(T((9,), "b"), True, True), case(T((4, 2), "b"), dim=0)],
    "nonzero_static": [case(b2, size=4), case(b2, size=20, fill_value=7)],
    "unravel_index": [case(T((4,), "n"), (2, 3))],
    "combinations": [case(v), case(T((3,)), 3, True)],
    # scatters
    "scatter_reduce": [
        case(T((3, 4), "p"), 0, index([0, 1, 0, 2], [1, 1, 0, 0]), T((2, 4), "p"), r, include_self=k)
        for r in ("sum", "prod", "mean", "amax", "amin")
        for k in (True, False)
    ],
    "index_reduce": [
        case(T((3, 4), "p"), 0, index(0, 2, 0), T((3, 4), "p"), r, include_self=k)
        for r in ("prod", "mean", "amax", "amin")
        for k in (True, False)
    ],
    "scatter": [case(x, 0, index([0, 1, 2, 0]), T((1, 4)), reduce="add"), case(z, 0, index(0), T((1,)))],
    "index_fill": [case(x, 1, index(0, 2, 0), 2.0), case(x, 0, index(1), z)],
    "index_add": [case(x, 1, index(0, 2, 0), T((3, 3)), alpha=2)],
    "masked_scatter": [case(x, b2, T((12,)))],
    "put": [case(x, index(0, 5, 7), T((3,))), case(x, index(0, 5, 5), T((3,)), True)],
    "select_scatter": [case(x, T((4,)), 0, 1), case(x, T((3,)), 1, -1)],
    "slice_scatter": [case(x, T((2, 4)), 0, 1), case(x, T((3, 2)), 1, 0, 4, 2)],
    "diagonal_scatter": [case(x, T((3,))), case(big, T((4, 1)), 1, 1, 0)],
    "as_strided_scatter": [case(x, T((2, 2)), (2, 2), (4, 1), 1)],
    "take_along_dim": [case(x, index([0, 1, -1, 2]), 0), case(v, index(0, 4, 2))],
    # parts
    "as_strided": [case(x, (2, 2), (4, 1), 1), case(x, (3, 3), (1, 2)), case(x, (3,), (5,))],
    "diagonal": [case(x), case(x, 1), case(big, -1, 1, 2), case(x, 9)],
    "diagflat": [case(v), case(x, 1)],
    "hsplit": [case(x, 2), case(v, [1, 3])],
    "vsplit": [case(m, 2)],
    "dsplit": [case(big, [1, 3])],
    "tensor_split": [case(v, 3), case(x, [1, 2], 1), case(x, index(1, 2), 1)],
    "column_stack": [case([v, T((5, 2))]), case([z, z])],
    "block_diag": [case(x, z, v)],
    "cartesian_prod": [case(v, T((2,)))],
    "rot90": [case(x, k) for k in (-1, 0, 1, 2)] + [case(big, 1, (1, 2))],
    "meshgrid": [case(v, T((3,)), indexing="xy"), case(v, T((3,)), indexing="ij")],
    "repeat_interleave": [case(v, index(1, 0, 2, 1, 1)), case(x, 2, 1), case(index(2, 1, 0))],
    "flip": [case(x, (0, 1)), case(x, dims=(1,))],
    # products
    "addbmm": [case(T((3, 5)), T((2, 3, 4)), T((2, 4, 5)), beta=0.5, alpha=2)],
    "addr": [case(x, T((3,)), T((4,)), alpha=2)],
    "cross": [case(T((3, 4)), T((3, 4))), case(T((2, 3)), T((2, 3)), 1)],
    "tensordot": [case(x, T((4, 2)), 1), case(big, T((3, 2)), ([0, 1], [1, 0]))],
    # linear algebra
    **{n: [case(s), case(d)] for n in ("inverse", "det", "linalg.det", "linalg.inv", "linalg.matrix_exp", "logdet")},
    "linalg.slogdet": [case(d), case(s)],
    "linalg.solve": [case(s, T((3, 2))), case(s, T((3,))), case(d, T((2, 3, 2))), case(s, T((2, 3)), left=False)],
    "linalg.solve_triangular": [
        case(s, T((3, 2)), upper=True), case(s, T((2, 3)), upper=False, left=False),
        case(s, T((3, 1)), upper=True, unitriangular=True),
    ],
    "linalg.cholesky": [case(d), case(d, upper=True)],
    "cholesky_solve": [case(T((3, 2)), T((3, 3), "l"))],
    "cholesky_inverse": [case(T((2, 3, 3), "l"))],
    "linalg.lu": [case(s), case(m), case(x)],
    "linalg.lu_factor": [case(s), case(m)],
    "linalg.ldl_factor": [case(s), case(d), case(T((4, 4)))],
    "linalg.ldl_factor_ex": [case(s), case(d, hermitian=True), case(T((0, 0)))],
    "linalg.ldl_solve": [case(d, index([1, 2, 3], [1, 2, 3]), T((2, 3, 2))), case(s, index(-2, -2, 3), T((3, 1)))],
    "linalg.qr": [case(s), case(m), case(x)],
    "linalg.svdvals": [case(m), case(x)],
    "linalg.eigvalsh": [case(d)],
    "linalg.pinv": [case(m), case(x), case(d, hermitian=True)],
    "linalg.matrix_rank": [case(m), case(s, atol=0.1)],
    "linalg.cond": [case(s), case(s, 1), case(s, "fro")],
    "linalg.norm": [case(x), case(x, "fro"), case(x, 2), case(v, 3), case(x, 1, 1), case(big, "nuc", (0, 2))],
    "linalg.vector_norm": [case(x), case(x, 3.5, 1), case(x, 0)],
    "linalg.matrix_norm": [case(x), case(big, 1, (0, 1), True), case(x, float("-inf")), case(x, -2)],
    "linalg.multi_dot": [case([x, T((4, 2)), T((2, 5))]), case([v, T((5, 2)), T((2,))])],
    "linalg.matrix_power": [case(s, 3), case(s, -2), case(s, 0)],
    "linalg.tensorinv": [case(T((2, 2, 2, 2)), 2)],
    "linalg.tensorsolve": [case(T((2, 3, 6)), T((2, 3)))],
    "linalg.vander": [case(v), case(x, N=3)],
    "linalg.vecdot": [case(x, x), case(x, T((3, 1)), dim=0)],
    "linalg.householder_product": [case(m, T((3,)))],
}  # fmt: skip

#: those whose results have no derivatives, or not at these samples
NOT_SMOOTH = {
    *"signbit isposinf isneginf gcd lcm bincount histc histogram histogramdd searchsorted bucketize isin mode".split(),
    *"linalg.ldl_factor linalg.ldl_factor_ex linalg.ldl_solve hash_tensor".split(),
    *"unique_consecutive nonzero_static unravel_index linalg.matrix_rank fmax sgn".split(),
}
#: those that read values: a captured segment ends there
READS = {"bincount", "histc", "histogram", "histogramdd", "unique_consecutive", "repeat_interleave", "tensor_split", "cov"}
#: where PyTorch itself raises, or answers for more than the triangle that is read
NOT_THERE = {"heaviside", "scatter", "linalg.cond", "linalg.pinv", "cholesky_solve", "cholesky_inverse", "as_strided_scatter"}
#: where PyTorch has no derivatives
NOT_THERE |= {n for n in CASES if "_polynomial_" in n}
#: differentiated once but not twice: by the rules of gamma functions, and at kinks
ONCE = {"round", "frexp", "heaviside", "nanmedian", "linalg.vector_norm"}
