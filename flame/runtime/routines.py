"""Calls that a CPU runs natively: primitives that no kernel holds, but that have a routine of their own.

    found = routine(primitive, operands' specs, params, cpu)       None: the primitive's eager function runs it

A routine runs inside a plan, between kernels, as one more phase, and is kept on disk as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flame.compiler import llvm_attention
from flame.compiler.index_math import ex
from flame.compiler.llvm_attention import Attention, Routine
from flame.compiler.target_cpu import CpuTarget, LlvmSource, Phase
from flame.primitive import Primitive, Spec
from flame.runtime import cpu


@dataclass(frozen=True, slots=True)
class NativeRoutine:
    """`stored` is the name by which `cpu.recall` has its one phase; its buffers are operands, results, workspace."""

    stored: str
    symbols: tuple[int, ...]
    chunks: int
    workspace: int  #: bytes
    microseconds: float


def routine(
    primitive: Primitive, operands: Sequence[Spec], params: Mapping[str, Any], target: CpuTarget
) -> NativeRoutine | None:
    """The routine that runs a primitive on arrays of these specs, compiled at need."""
    if primitive.name not in _MAKERS or not all(s.numel for s in operands):
        return None
    q, k, v = operands[:3]
    attention = Attention(q.dtype, q.shape[-1], v.shape[-1], bool(params["causal"]), float(params["scale"]))
    made = _written(primitive.name, attention, target)
    heads, queries, keys = math.prod(q.shape[:-2]), q.shape[-2], k.shape[-2]
    return NativeRoutine(
        cpu.load_routine(LlvmSource(made.text, (Phase(made.entry, ex(1)),), ()), primitive.name, target),
        made.sizes(heads, queries, keys),
        made.chunks(heads, queries),
        made.workspace(heads, queries, keys),
        made.microseconds(heads, queries, keys),
    )


_MAKERS = {"attention": llvm_attention.forward, "attention_grad": llvm_attention.backward}


@functools.lru_cache(maxsize=256)
def _written(name: str, attention: Attention, target: CpuTarget) -> Routine:
    return _MAKERS[name](attention, target)
