"""Programs as people write them, fused for GPUs that are not there: every kernel compiles, and computes what its IR means.

Kernels of whole training steps, captured, are rendered to Triton, compiled to machine code for two generations of GPUs, and run
by Triton's interpreter on NumPy memory, on the arrays that the programs really had. Equal kernels are looked at once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from corpus import PROGRAMS, captured

from flame import float32, kernels
from flame.compiler.interpret import interpret
from flame.compiler.kernel import digest
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import Argument, CallStep, KernelStep, Program, Slot
from flame.compiler.schedule import choose_gpu
from flame.compiler.to_triton import TritonSource, to_triton
from flame.runtime.triton_tools import compile_triton, run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

ARCHES = ("sm_80", "sm_90")


@cache
def programs(name: str, arch: str = "sm_90") -> list[tuple[Program, list[np.ndarray]]]:
    return [(compile_graph(graph, kernels.gpu(arch), verify=True), arrays) for graph, arrays in captured(name)]


def source(step: KernelStep, arch: str = "sm_90") -> TritonSource:
    return to_triton(step.kernel, choose_gpu(step.kernel, kernels.gpu(arch), step.symbols))


@cache
def distinct(arch: str = "sm_90") -> dict[str, tuple[str, KernelStep]]:
    """Every kernel of the corpus, by digest, with the first program that has it."""
    found: dict[str, tuple[str, KernelStep]] = {}
    for name in PROGRAMS:
        for program, _ in programs(name, arch):
            for step in program.steps:
                if isinstance(step, KernelStep):
                    found.setdefault(digest(step.kernel), (name, step))
    return found


def agree(got: np.ndarray, want: np.ndarray, about: str, rough: bool = True) -> None:
    """Equal integers; floats as near as another order of summing leaves them, by the largest magnitude of the result. `rough`:
    float64 may come from float32, whose functions are right within some units in the last place."""
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want, err_msg=about)
        return
    a, b = got.astype(np.float64), want.astype(np.float64)
    size = float(np.abs(b, where=np.isfinite(b), out=np.zeros_like(b)).max(initial=0.0))
    tolerance = 2e-2 if want.dtype.itemsize == 2 else 1e-12 if want.dtype == np.float64 and not rough else 2e-5
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * size, err_msg=about)


def nans(slot: Slot) -> np.ndarray:
    """Memory that shows where it is read before it is written: all bits set, which is NaN for every float."""
    return np.full(slot.bytes, 0xFF, np.uint8).view(slot.spec.dtype.numpy).reshape(slot.spec.shape)


def run(program: Program, arrays: list[np.ndarray], seen: set[str]) -> list[np.ndarray]:
    """The program in NumPy; each kernel that was not seen before also as Triton, on the same memory."""
    memory = [arrays[s.index].copy() if s.kind == "input" else nans(s) for s in program.slots]
    for step in program.steps:
        if isinstance(step, CallStep):
            call(step, memory)
            continue
        buffers = {b: memory[i] for b, i in step.buffers.items()}
        key = digest(step.kernel)
        copies = {b: a.copy() for b, a in buffers.items()} if key not in seen else {}
        interpret(step.kernel, buffers, step.symbols)
        if copies:
            seen.add(key)
            text = source(step)
            run_interpreted(text, copies, step.symbols)
            rough = any(s.dtype is float32 for s in step.kernel.definitions.values())
            for b in step.kernel.buffers:
                agree(copies[b], buffers[b], f"{step}\nbuffer {b}\n{step.kernel}\n{text.text}", rough)
    return [memory[i] for i in program.outputs]


def call(step: CallStep, memory: list[np.ndarray]) -> None:
    def value(x: Any) -> Any:
        if not isinstance(x, Argument):
            return x
        array = memory[x.slot]
        for primitive, params in x.views:
            array = primitive.eager(array, **params)
        return array

    with np.errstate(all="ignore"):
        got = step.node.primitive.eager(*map(value, step.arguments), **step.node.params)
    for i, array in zip(step.outputs, got if isinstance(got, tuple) else (got,), strict=True):
        if i >= 0:
            memory[i][...] = array


_seen: set[str] = set()


@pytest.mark.parametrize("name", PROGRAMS)
def test_generated_source_computes_what_the_kernels_mean(name: str) -> None:
    ran = 0
    for program, arrays in programs(name):
        before = len(_seen)
        got = run(program, arrays, _seen)
        ran += len(_seen) - before
        want = evaluate(program, arrays)
        for v, a, b in zip(program.graph.outputs, got, want, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            near(a, b, f"{program.name}: {v}")
    assert ran, "every kernel of this program is in another one too: it adds nothing to the corpus"


def evaluate(program: Program, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The graph by its primitives' eager functions."""
    held: dict[Any, Any] = dict(zip(program.graph.inputs, arrays, strict=True))
    with np.errstate(all="ignore"):
        for n in program.graph.nodes:
            got = n.primitive.eager(*[held[o] if o in held else o for o in n.operands], **n.params)
            held.update(zip(n.outputs, got if isinstance(got, tuple) else (got,), strict=True))
    return [np.asarray(held[o]) for o in program.graph.outputs]


def near(a: np.ndarray, b: np.ndarray, about: str) -> None:
    """Over a whole program rounding adds up, and narrow types are rounded at other places where kernels are fused."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = float(np.abs(b, where=np.isfinite(b), out=np.zeros_like(b)).max(initial=0.0))
    np.testing.assert_allclose(a, b, rtol=0, atol=(0.05 if "bfloat16" in about else 1e-3) * max(size, 1e-6), err_msg=about)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_generated_source_compiles_for(name: str, arch: str) -> None:
    mine = [step for first, step in distinct(arch).values() if first == name]
    assert mine
    if arch != ARCHES[-1]:  # of what is the same text for the newest, one kernel: with a product, if there is one
        known = {repr(source(step, ARCHES[-1])) for _, step in distinct(ARCHES[-1]).values()}
        same = [step for step in mine if repr(source(step, arch)) in known]
        shown = sorted(same, key=lambda step: "tl.dot" not in source(step, arch).text)[:1]
        mine = [step for step in mine if step not in same] + shown
    for step in mine:
        binary = compile_triton(source(step, arch), arch)
        assert binary.code[:4] == b"\x7fELF" and not binary.warnings, binary.warnings
        assert binary.shared <= kernels.gpu(arch).cache
