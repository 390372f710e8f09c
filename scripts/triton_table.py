"""What Triton makes of contractions on each GPU: a table of registers, spills, shared memory and the instructions used.

    python -m scripts.triton_table            writes docs/triton-contractions.md
    python -m scripts.triton_table --arch sm_90

No GPU is needed: kernels are compiled, and the binaries read. Schedules are those that `choose_gpu` takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flame  # noqa: F401  (fills the registry)
from flame import dtypes as dt
from flame.compiler.graph import Builder
from flame.compiler.kernel import Kernel, digest
from flame.compiler.pipeline import compile_graph
from flame.compiler.schedule import GpuSchedule, choose_gpu
from flame.compiler.target import Target, gpu
from flame.compiler.to_triton import to_triton
from flame.errors import CompileError
from flame.primitive import Spec, registered
from flame.runtime.triton_tools import compile_triton, load_triton

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
WORDS = ("wgmma", "tcgen05.mma", "mma.sync", "v_mfma", "cp.async")
TABLE = Path(__file__).parent.parent / "docs" / "triton-contractions.md"


def graphs() -> Iterator[tuple[str, Builder]]:
    """What is compiled: a name, and the graph."""
    op = registered
    for d in (dt.float16, dt.float32):
        for what, m, n, k in (
            ("matmul 4096^3", 4096, 4096, 4096),
            ("matmul 512^3", 512, 512, 512),
            ("matmul 8 rows", 8, 4096, 4096),
        ):
            b = Builder()
            with b:
                b.graph.outputs = [op("matmul")(b.input(Spec((m, k), d)), b.input(Spec((k, n), d)))]
            yield f"matmul {what} {d.name}", b
    b = Builder()
    with b:
        x, w, bias = (b.input(Spec(shape, dt.bfloat16)) for shape in ((8192, 768), (3072, 768), (3072,)))
        y = op("add")(op("matmul")(x, op("permute")(w, dims=(1, 0))), bias)
        b.graph.outputs = [op("mul")(y, op("sigmoid")(y))]
    yield "linear, bias, silu bfloat16", b
    b = Builder()
    with b:
        b.graph.outputs = [op("matmul")(b.input(Spec((64, 65536), dt.float16)), b.input(Spec((65536, 64), dt.float16)))]
    yield "matmul 64x64 over 65536 float16", b
    b = Builder()
    with b:
        b.graph.outputs = [op("matmul")(b.input(Spec((1024, 1024), dt.int8)), b.input(Spec((1024, 1024), dt.int8)))]
    yield "matmul int8", b
    for d, width in ((dt.float16, 64), (dt.float16, 128)):
        b = Builder()
        shape = (4, 16, 2048, width)
        q, keys, v, g = (b.input(Spec(shape, d)) for _ in range(4))
        with b:
            y, lse = op("attention")(q, keys, v, scale=0.1, causal=True)
            delta = b.input(Spec(shape[:-1], dt.float32))
            b.graph.outputs = [y, *op("attention_grad")(q, keys, v, lse, delta, g, scale=0.1, causal=True)]
        yield f"causal attention, heads of {width}, {d.name}", b
    how = {"padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    for which, stride in (("conv", 1), ("conv_input_grad", 2), ("conv_weight_grad", 1)):
        b = Builder()
        image, filters, made = (32, 64, 56, 56), (128, 64, 3, 3), (32, 128, 56 // stride, 56 // stride)
        pairs = {"conv": (image, filters), "conv_input_grad": (made, filters), "conv_weight_grad": (image, made)}
        more: dict[str, Any] = {"conv_input_grad": {"input_shape": image}, "conv_weight_grad": {"weight_shape": filters}}
        with b:
            b.graph.outputs = [
                op(which)(
                    *(b.input(Spec(s, dt.float16)) for s in pairs[which]), stride=(stride, stride), **more.get(which, {}), **how
                )
            ]
        yield f"{which} 3x3, stride {stride}, float16", b


def contractions(b: Builder, target: Target) -> Iterator[Kernel]:
    seen = set()
    for kernel in compile_graph(b.graph, target).kernels:
        if kernel.contraction is not None and digest(kernel) not in seen:
            seen.add(digest(kernel))
            yield kernel


def tile(s: GpuSchedule) -> str:
    if s.form == "rows":
        return f"rows {s.x_block} x {s.r_block}, {s.warps} warps"
    deep = f" x {s.k_block}" if s.form == "dot" else ""
    return f"{s.m_block} x {s.n_block}{deep}, {s.warps} warps, {s.stages} stages"


def rows(architectures: tuple[str, ...]) -> Iterator[str]:
    for name, b in graphs():
        for arch in architectures:
            target = gpu(arch)
            for kernel in contractions(b, target):
                schedule = choose_gpu(kernel, target)
                about = f"| {name} | {kernel.name} | {arch} | {tile(schedule)} "
                try:
                    made = compile_triton(to_triton(kernel, schedule), arch)
                except CompileError as error:
                    yield f"{about}| {str(error).splitlines()[0][:80]} | | | |"
                    continue
                used = ", ".join(w for w in WORDS if w in made.asm)
                yield f"{about}| {made.registers} | {made.spills} | {made.shared} | {used} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append")
    given = parser.parse_args()
    head = [
        "# Contractions in Triton",
        "",
        f"Compiled by Triton {load_triton().__version__} with no GPU, under the schedules that the heuristics choose.",
        "Registers are of a thread, shared memory is bytes of a program. `python -m scripts.triton_table` writes this page.",
        "",
        "| what | kernel | GPU | tile | registers | spills | shared | instructions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    out = list(head)
    for line in rows(tuple(given.arch or ARCHITECTURES)):
        print(line, flush=True)
        out.append(line)
    if given.arch:
        return
    TABLE.write_text("\n".join(out) + "\n")
    print(f"written: {TABLE}", file=sys.stderr)


if __name__ == "__main__":
    main()
