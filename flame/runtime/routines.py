"""Calls that a CPU runs natively: primitives that no kernel holds, but that have a routine of their own.

    found = routine(primitive, operands' specs, params, cpu)       None: the primitive's eager function runs it
    cpu.load_routine(found.source, found.called, cpu)              compiles it
    routines_of(graph, target, cpu)                                those that a graph will want, before it is compiled

A routine runs inside a plan, between kernels, as one more phase, and is kept on disk as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flame.compiler import llvm_attention, llvm_recurrent, llvm_recurrent_grad, llvm_scatter, llvm_windows
from flame.compiler.attention_plan import Attention, Routine
from flame.compiler.expand import why_expanded
from flame.compiler.graph import Graph, Value
from flame.compiler.index_math import ex
from flame.compiler.llvm_scatter import IndexAdd
from flame.compiler.llvm_windows import WindowPut
from flame.compiler.recurrent_plan import Recurrent, RecurrentRoutine
from flame.compiler.target import Target
from flame.compiler.target_cpu import CpuTarget, LlvmSource, Phase
from flame.primitive import Primitive, Spec


@dataclass(frozen=True, slots=True)
class NativeRoutine:
    """A program of one phase, called so; its buffers are operands, results, workspace."""

    called: str
    source: LlvmSource
    symbols: tuple[int, ...]
    chunks: int
    workspace: int  #: bytes
    microseconds: float


def routine(
    primitive: Primitive, operands: Sequence[Spec], params: Mapping[str, Any], target: CpuTarget
) -> NativeRoutine | None:
    """The routine that runs a primitive on arrays of these specs."""
    make = _ROUTINES.get(primitive.name)
    if make is None or not all(s.numel for s in operands):
        return None
    return make(primitive.name, operands, params, target)


def routines_of(graph: Graph, target: Target, cpu: CpuTarget) -> list[tuple[str, LlvmSource]]:
    """The routines that the graph's calls will be run by, each once, with what it is called."""
    found: dict[tuple[str, LlvmSource], None] = {}
    for n in graph.nodes:
        if n.primitive.name in _ROUTINES and not why_expanded(n, target):
            specs = [x.spec for x in n.operands if isinstance(x, Value)]
            made = routine(n.primitive, specs, n.params, cpu) if len(specs) == len(n.operands) else None
            if made is not None:
                found[made.called, made.source] = None
    return list(found)


def _attention(name: str, operands: Sequence[Spec], params: Mapping[str, Any], target: CpuTarget) -> NativeRoutine:
    q, k, v = operands[:3]
    attention = Attention(q.dtype, q.shape[-1], v.shape[-1], bool(params["causal"]), float(params["scale"]))
    made = _written(name, attention, target)
    heads, queries, keys = math.prod(q.shape[:-2]), q.shape[-2], k.shape[-2]
    return NativeRoutine(
        made.entry,
        _source(made.text, made.entry),
        made.sizes(heads, queries, keys),
        made.chunks(heads, queries),
        made.workspace(heads, queries, keys),
        made.microseconds(heads, queries, keys),
    )


@functools.lru_cache(maxsize=256)
def _written(name: str, attention: Attention, target: CpuTarget) -> Routine:
    maker = llvm_attention.forward if name == "attention" else llvm_attention.backward
    return maker(attention, target)


def _index_add(name: str, operands: Sequence[Spec], params: Mapping[str, Any], target: CpuTarget) -> NativeRoutine | None:
    x, index, src = operands
    if x.dtype.itemsize < 4 or index.dtype.kind != "i":  # narrow numbers are added up in wider ones
        return None
    dim = params["dim"]
    lead, rows, columns = math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :])
    chunks = llvm_scatter.chunks(lead, columns)
    text = llvm_scatter.index_add(IndexAdd(x.dtype, index.dtype), target)
    microseconds = 1e-4 * (x.nbytes + 3 * src.nbytes) / 8
    return NativeRoutine(name, _source(text, name), (lead, rows, index.numel, columns, chunks), chunks, 0, microseconds)


def _window_put(name: str, operands: Sequence[Spec], params: Mapping[str, Any], target: CpuTarget) -> NativeRoutine | None:
    g, at = operands
    if g.dtype.itemsize < 4:  # narrow numbers are added up in wider ones
        return None
    n = len(params["kernel"])
    lead, windows, size = math.prod(g.shape[:-n]), g.shape[-n:], params["size"]
    what = WindowPut(g.dtype, at.dtype, params["kernel"], params["step"], params["dilation"])
    chunks = max(1, min(llvm_windows.MOST_CHUNKS, lead))
    microseconds = 1e-3 * (1.5 * g.numel + 0.1 * lead * math.prod(size))
    symbols = (lead, chunks, *windows, *size, *params["lo"])
    return NativeRoutine(name, _source(llvm_windows.window_put(what, target), name), symbols, chunks, 0, microseconds)


def _recurrent(name: str, operands: Sequence[Spec], params: Mapping[str, Any], target: CpuTarget) -> NativeRoutine | None:
    backward = name == "recurrent_grad"
    if backward and len(operands) != {"LSTM": 7, "GRU": 5}.get(params["mode"], 4):
        return None  # something flows into what was kept
    h, steps = operands[1 if backward else 2], operands[3 if backward else 0].shape[0]
    batch, size = h.shape
    what = Recurrent(h.dtype, params["mode"], bool(params["reverse"]), size)
    made = _written_recurrent(backward, what, target)
    return NativeRoutine(
        made.entry,
        _source(made.text, made.entry),
        made.sizes(steps, batch),
        made.chunks(batch),
        made.workspace(batch),
        made.microseconds(steps, batch),
    )


@functools.lru_cache(maxsize=256)
def _written_recurrent(backward: bool, what: Recurrent, target: CpuTarget) -> RecurrentRoutine:
    return (llvm_recurrent_grad.backward if backward else llvm_recurrent.forward)(what, target)


def _source(text: str, entry: str) -> LlvmSource:
    return LlvmSource(text, (Phase(entry, ex(1)),), ())


_ROUTINES: dict[str, Callable[..., NativeRoutine | None]] = {
    "attention": _attention,
    "attention_grad": _attention,
    "index_add": _index_add,
    "recurrent": _recurrent,
    "recurrent_grad": _recurrent,
    "window_put": _window_put,
}
