"""The product of matrices of 8-bit floats, with the scales that bring their numbers into range."""

from __future__ import annotations

from typing import Any

from flame.dtypes import FLOAT8, dtype, float32
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import tensor_operand, to_dtype
from flame.primitive import composite, registered
from flame.tensor import Tensor

MATMUL, CAST = registered("matmul"), registered("cast")


@composite
def scaled_mm(
    input: Tensor,
    mat2: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """(input @ mat2) * scale_a * scale_b + bias, times scale_result, as `out_dtype` (None: that of input).

    input [M, K] and mat2 [K, N] are of 8-bit floats, the two kinds in any pair; scales are float32, of one element, or [M, 1] for
    input and [1, N] for mat2; bias has N elements. Products are exact and are added up in float32. One kernel where it is
    compiled: in tensor cores of a GPU that multiplies these types (sm_89 and later), on others by float16, which holds all
    their numbers. Sizes need not be multiples of 16, nor `mat2` be stored by columns. `use_fast_accum` is taken and changes
    nothing. Raises RuntimeError for other dtypes and for shapes that do not fit.
    """
    a, b = tensor_operand(input, "_scaled_mm"), tensor_operand(mat2, "_scaled_mm", "mat2")
    if a.dtype not in FLOAT8 or b.dtype not in FLOAT8:
        raise RuntimeError(f"_scaled_mm: expected both matrices to be of 8-bit floats, but got {a.dtype!r} and {b.dtype!r}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise RuntimeError(f"_scaled_mm: expected [M, K] and [K, N], but got {list(a.shape)} and {list(b.shape)}")
    rows, columns = a.shape[0], b.shape[1]
    y = MATMUL(CAST(a, dtype=float32), CAST(b, dtype=float32))
    for name, s, whole in (("scale_a", scale_a, (rows, 1)), ("scale_b", scale_b, (1, columns))):
        y = y * _scale(name, s, whole)
    if bias is not None:
        if bias.numel() != columns:
            raise RuntimeError(f"_scaled_mm: expected a bias of {columns} elements, but got {list(bias.shape)}")
        y = y + to_dtype(bias, float32).reshape(columns)  # type: ignore[attr-defined]
    if scale_result is not None:
        y = y * _scale("scale_result", scale_result, (1, 1))
    return to_dtype(y, out_dtype or a.dtype)


PUBLIC["_scaled_mm"] = scaled_mm


def _scale(name: str, s: Any, whole: tuple[Any, int] | tuple[int, Any]) -> Any:
    s = tensor_operand(s, "_scaled_mm", name)
    if s.dtype is not float32 or (s.numel() != 1 and tuple(s.shape) != whole):
        raise RuntimeError(
            f"_scaled_mm: expected {name} to be float32 of one element or {list(whole)}, but got {s.dtype!r} {list(s.shape)}"
        )
    return s.reshape(()) if s.numel() == 1 else s  # type: ignore[attr-defined]
