"""Complex arrays from real ones and back, and discrete Fourier transforms: library calls.

Fourier transforms are along the dimensions `dims`, unscaled: `inverse` turns the sign of the exponent alone, and whoever calls
scales. Cotangents follow PyTorch: for complex x the cotangent is dL/d(re) + i dL/d(im).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from flame import dtypes
from flame.ops.contract import matmul
from flame.ops.create import iota
from flame.ops.declare import draws
from flame.ops.elementwise import add, conj, div, mul, sub
from flame.ops.linalg import adjoint, column, on_diagonal, row, solve
from flame.ops.logic import cast, eq, where
from flame.ops.movement import pad, reshape, slice
from flame.ops.strided import diagonal
from flame.primitive import Primitive, Spec, register

Ints = tuple[int, ...]
_COMPLEX = {"lower": "complex numbers have no kernel form: computed by the library"}


def _complex(name: str, x: Spec) -> None:
    if x.dtype.kind != "c":
        raise RuntimeError(f"{name} is only supported for complex tensors, but got {x.dtype}")


def _no_samples() -> Iterator[tuple[tuple, dict]]:
    r = draws("spectral")
    for d in (dtypes.complex64, dtypes.complex128):
        yield ((r.standard_normal((3, 4)) + 1j * r.standard_normal((3, 4))).astype(d.numpy),), {}


def _real_infer(x: Spec) -> Spec:
    _complex("view_as_real", x)
    return Spec((*x.shape, 2), x.dtype.to_real())


def _real_eager(x: np.ndarray) -> np.ndarray:
    part = x.real
    return as_strided(part, (*x.shape, 2), (*x.strides, part.itemsize)) if x.size else np.zeros((*x.shape, 2), part.dtype)


def _pair_infer(x: Spec) -> Spec:
    if x.dtype not in (dtypes.float32, dtypes.float64):
        raise RuntimeError(
            f"view_as_complex is only supported for half, float and double tensors, but got a tensor of {x.dtype}"
        )
    if not x.ndim or x.shape[-1] != 2:
        raise RuntimeError(f"Tensor must have a last dimension of size 2, but got {list(x.shape)}")
    return Spec(x.shape[:-1], x.dtype.to_complex())


def _pair_eager(x: np.ndarray) -> np.ndarray:
    d = np.complex64 if x.dtype == np.float32 else np.complex128
    if x.strides[-1] == x.itemsize and all(s % (2 * x.itemsize) == 0 for s in x.strides[:-1]):
        return x.view(d)[..., 0] if x.size else np.zeros(x.shape[:-1], d)
    return np.ascontiguousarray(x).view(d)[..., 0]


def _pairs() -> Iterator[tuple[tuple, dict]]:
    r = draws("view_as_complex")
    for d in (np.float32, np.float64):
        yield (r.standard_normal((3, 4, 2)).astype(d),), {}


view_as_real: Primitive = register(
    "view_as_real",
    kind="opaque",
    view=True,
    infer=_real_infer,
    eager=_real_eager,
    vjp=(lambda g, _y, _x: view_as_complex(g),),
    refused=_COMPLEX,
    samples=_no_samples,
    doc="view_as_real(x): real and imaginary part as a last dimension, in the same memory.",
)
view_as_complex: Primitive = register(
    "view_as_complex",
    kind="opaque",
    view=True,
    infer=_pair_infer,
    eager=_pair_eager,
    vjp=(lambda g, _y, _x: view_as_real(g),),
    refused=_COMPLEX,
    samples=_pairs,
    doc="view_as_complex(x): a last dimension of two as real and imaginary part, in the same memory.",
)

# ------------------------------------------------------------------------------------------------------ Fourier transforms


def _fft_infer(x: Spec, *, dims: Ints, inverse: bool) -> Spec:
    _complex("fft", x)
    return x


def _fft_eager(x: np.ndarray, *, dims: Ints, inverse: bool) -> np.ndarray:
    if not dims or not x.size:
        return np.array(x, order="C")
    y = np.fft.ifftn(x, axes=dims, norm="forward") if inverse else np.fft.fftn(x, axes=dims)
    return np.asarray(y, x.dtype, order="C")


def _fft_samples() -> Iterator[tuple[tuple, dict]]:
    for operands, _ in _no_samples():
        for inverse in (False, True):
            yield operands, {"dims": (1,), "inverse": inverse}
            yield operands, {"dims": (0, 1), "inverse": inverse}


fft_complex: Primitive = register(
    "fft_complex",
    kind="opaque",
    infer=_fft_infer,
    eager=_fft_eager,
    vjp=(lambda g, _y, _x, *, dims, inverse: fft_complex(g, dims=dims, inverse=not inverse),),
    refused=_COMPLEX,
    samples=_fft_samples,
    doc="fft_complex(x, *, dims, inverse): the discrete Fourier transform along dims, unscaled.",
)


def half(shape: Ints, dim: int) -> Ints:
    return (*shape[:dim], shape[dim] // 2 + 1, *shape[dim + 1 :])


def _r2c_infer(x: Spec, *, dim: int) -> Spec:
    if x.dtype not in (dtypes.float32, dtypes.float64):
        raise RuntimeError(f"rfft expects a real floating point input tensor (float32 or float64), but got {x.dtype}")
    return Spec(half(x.shape, dim), x.dtype.to_complex())


def _r2c_vjp(g: Any, _y: Any, _x: Any, *, dim: int) -> Any:
    """The cotangent filled with zeros to the whole length, transformed back; its real part."""
    n, k = _x.shape[dim], g.shape[dim]
    lo = (0,) * len(_x.shape)
    hi = tuple(n - k if d == dim else 0 for d in range(len(_x.shape)))
    whole = pad(g, lo=lo, hi=hi, value=0) if n > k else g
    return cast(fft_complex(whole, dims=(dim,), inverse=True), dtype=_x.dtype)


def _reals() -> Iterator[tuple[tuple, dict]]:
    r = draws("rfft")
    for d in (np.float32, np.float64):
        for shape in ((3, 4), (2, 5)):
            yield (r.standard_normal(shape).astype(d),), {"dim": 1}


rfft_complex: Primitive = register(
    "rfft_complex",
    kind="opaque",
    infer=_r2c_infer,
    eager=lambda x, *, dim: np.asarray(np.fft.rfft(x, axis=dim), np.result_type(x.dtype, np.complex64), order="C"),
    vjp=(_r2c_vjp,),
    refused=_COMPLEX,
    samples=_reals,
    doc="rfft_complex(x, *, dim): the first half of the transform of real numbers, unscaled.",
)


def _c2r_infer(x: Spec, *, dim: int, n: int) -> Spec:
    _complex("irfft", x)
    if x.shape[dim] != n // 2 + 1:
        raise RuntimeError(f"irfft: {n} real numbers have {n // 2 + 1} coefficients, but got {x.shape[dim]}")
    return Spec((*x.shape[:dim], n, *x.shape[dim + 1 :]), x.dtype.to_real())


def _c2r_vjp(g: Any, _y: Any, _x: Any, *, dim: int, n: int) -> Any:
    """The coefficients that stand for their mirrored ones too count twice."""
    y = rfft_complex(g, dim=dim)
    k = n // 2 + 1
    s = tuple(y.shape)
    last = k - 1 if n % 2 == 0 else k  # what is its own mirror: the first, and the last of an even number
    if last > 1:
        starts = tuple(1 if d == dim else 0 for d in range(len(s)))
        stops = tuple(last if d == dim else m for d, m in enumerate(s))
        middle = slice(y, starts=starts, stops=stops, steps=(1,) * len(s))
        y = add(y, pad(middle, lo=starts, hi=tuple(k - last if d == dim else 0 for d in range(len(s))), value=0))
    return y


def _c2r_samples() -> Iterator[tuple[tuple, dict]]:
    for operands, _ in _no_samples():
        yield operands, {"dim": 1, "n": 6}
        yield operands, {"dim": 0, "n": 5}


irfft_complex: Primitive = register(
    "irfft_complex",
    kind="opaque",
    infer=_c2r_infer,
    eager=lambda x, *, dim, n: np.asarray(np.fft.irfft(x, n, axis=dim, norm="forward"), x.real.dtype, order="C"),
    vjp=(_c2r_vjp,),
    refused=_COMPLEX,
    samples=_c2r_samples,
    doc="irfft_complex(x, *, dim, n): n real numbers from half of their transform, unscaled.",
)

# ------------------------------------------------------------------------------------------------------ eigenvalues


def _eig_infer(x: Spec) -> tuple[Spec, Spec]:
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise RuntimeError(f"linalg.eig: A must be batches of square matrices, but got {list(x.shape)}")
    if x.dtype.kind not in "fc":
        raise RuntimeError(f"linalg.eig: expected a floating point or complex tensor, but got {x.dtype}")
    c = x.dtype.to_complex()
    return Spec(x.shape[:-1], c), Spec(x.shape, c)


def _eig_eager(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c = np.result_type(x.dtype, np.complex64)
    w, v = np.linalg.eig(x)
    return np.asarray(w, c, order="C"), np.asarray(v, c, order="C")


def _squares() -> Iterator[tuple[tuple, dict]]:
    r = draws("eig")
    for d in (np.float32, np.float64):
        yield ((r.standard_normal((3, 3)) + np.diag([3.0, 0, -3])).astype(d),), {}


def _real_part(x: Any) -> Any:
    pair = view_as_real(x)
    n = len(pair.shape)
    first = slice(pair, starts=(0,) * n, stops=(*pair.shape[:-1], 1), steps=(1,) * n)
    return reshape(first, shape=tuple(x.shape))


def _eig_vjp(g: Any, y: Any, x: Any) -> Any:
    """C. Boeddeker et al., "On the computation of complex-valued gradients" (2017), of eigenvectors of unit length: what of g[1]
    lies along an eigenvector has no effect."""
    w, v = y
    n = w.shape[-1]
    back = adjoint(v)
    along = matmul(back, g[1])
    own = mul(diagonal(along, offset=0, dim1=len(x.shape) - 2, dim2=len(x.shape) - 1), 0.5)
    along = sub(along, matmul(back, mul(v, row(add(own, conj(own))))))
    apart = conj(sub(row(w), column(w)))
    i = reshape(iota(size=n, dtype=dtypes.int64), shape=(n, 1))
    same = eq(iota(size=n, dtype=dtypes.int64), i)
    inner = add(where(same, 0.0, div(along, where(same, 1.0, apart))), on_diagonal(g[0]))
    whole = solve(back, matmul(inner, back), check=False)[0]
    return whole if x.dtype.is_complex else _real_part(whole)


eig_complex: Primitive = register(
    "eig_complex",
    kind="opaque",
    infer=_eig_infer,
    eager=_eig_eager,
    vjp=(_eig_vjp,),
    refused=_COMPLEX,
    samples=_squares,
    doc="eig_complex(x): eigenvalues and eigenvectors of square matrices.",
)
