"""What PyTorch says of its CUDA build; here there is none. How GPUs multiply matrices of float32 is chosen here."""

from __future__ import annotations

from typing import Any

from flame.knobs import knobs

PRECISIONS = ("highest", "high", "medium")


def set_float32_matmul_precision(precision: str) -> None:
    """How GPUs multiply matrices of float32: "highest" with all of its bits, "high" and "medium" on tensor cores, which read 10
    bits of the 23 and add in float32. What was compiled before keeps its precision. On a CPU it changes nothing.

    Raises ValueError for any other word.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"set_float32_matmul_precision: expected one of {', '.join(PRECISIONS)}, but got {precision!r}")
    knobs.matmul_precision = precision


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` set; "highest" by default."""
    return knobs.matmul_precision


class _Matmul:
    """`allow_tf32` is another word for the precision of float32."""

    allow_fp16_reduced_precision_reduction = True
    allow_bf16_reduced_precision_reduction = True

    @property
    def allow_tf32(self) -> bool:
        return knobs.matmul_precision != "highest"

    @allow_tf32.setter
    def allow_tf32(self, allow: Any) -> None:
        knobs.matmul_precision = "high" if allow else "highest"


matmul = _Matmul()


def is_built() -> bool:
    return False


def flash_sdp_enabled() -> bool:
    return False


def mem_efficient_sdp_enabled() -> bool:
    return False


def math_sdp_enabled() -> bool:
    return True
