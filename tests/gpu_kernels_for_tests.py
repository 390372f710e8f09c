"""Every kernel that is compiled for GPUs that are not there, by name: what the table of registers and spills is made of.

    of_operators(arch, dtypes)     each primitive of the registry that has a kernel form, on a large array where that is simple
    of_routines(arch)              the launches of every routine
    of_cases(arch)                 the hand-written kernels of `kernels_for_tests`
    of_rows(arch)                  norms, softmax, losses and updates at the sizes of real models
    of_tiles(arch)                 attention, also with changed scores, and convolutions at such sizes, forward and backward
    of_corpus(arch)                the model corpus

Each gives (name, source). A kernel of two names is given twice; whoever compiles looks at `source.digest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import kernels_for_tests as made
import numpy as np
from corpus import PROGRAMS, captured

import flame
import flame.nn.functional as F
from flame import dtypes
from flame.compiler.gpu_routines import gpu_routine, has_routine
from flame.compiler.graph import Builder, Graph
from flame.compiler.pipeline import compile_graph
from flame.compiler.program import KernelStep
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import Target, gpu
from flame.compiler.to_triton import TritonSource, to_triton
from flame.dtypes import from_numpy_dtype
from flame.nn import LinearCrossEntropyOptions
from flame.nn.attention.flex_attention import create_block_mask, flex_attention
from flame.nn.attention.varlen import varlen_attn
from flame.primitive import REGISTRY, Primitive, Spec

Named = Iterator[tuple[str, TritonSource]]
LARGE = (512, 1000)


def of_graph(name: str, graph: Graph, target: Target) -> Named:
    for i, step in enumerate(compile_graph(graph, target).steps):
        if isinstance(step, KernelStep):
            yield f"{name}/{i}", to_triton(step.kernel, choose_gpu(step.kernel, target, step.symbols))


# ---- operators


def sample_of(p: Primitive, d: str) -> tuple[list[Any], dict] | None:
    """Specs and numbers of a sample whose first array has the dtype of that name; enlarged where any size will do."""
    best: tuple[int, list[Any], dict] | None = None
    for operands, params in p.samples() if p.samples else ():
        arrays = [a for a in operands if isinstance(a, np.ndarray)]
        given = from_numpy_dtype(arrays[0].dtype).name if arrays else getattr(params.get("dtype"), "name", "float32")
        size = sum(a.size for a in arrays)
        if given == d and (best is None or size > best[0]) and (size or not arrays):
            best = (
                size,
                [Spec(a.shape, from_numpy_dtype(a.dtype)) if isinstance(a, np.ndarray) else a for a in operands],
                params,
            )
    if best is None:
        return None
    _, specs, params = best
    if p.kind == "elementwise":
        specs = [Spec(LARGE, s.dtype) if isinstance(s, Spec) else s for s in specs]
    elif p.kind == "reduce" and "dim" in params:
        specs, params = [Spec(LARGE, specs[0].dtype)], params | {"dim": (1,)}
    return specs, params


def of_operators(arch: str, kinds: Sequence[str]) -> Named:
    target = gpu(arch)
    for p in sorted(REGISTRY.values(), key=lambda p: p.name):
        if p.scalar is None and p.lower is None:
            continue
        for d in kinds:
            found = sample_of(p, d)
            if found is None:
                continue
            graph = Graph(name=p.name)
            with Builder(graph) as builder:
                values = [builder.input(s) if isinstance(s, Spec) else s for s in found[0]]
                out = p(*values, **found[1])
            graph.outputs = list(out) if isinstance(out, tuple) else [out]
            yield from of_graph(f"operator/{p.name}/{d}", graph, target)


def of_routines(arch: str, kinds: Sequence[str]) -> Named:
    target = gpu(arch)
    for p in sorted(REGISTRY.values(), key=lambda p: p.name):
        if not has_routine(p):
            continue
        for d in kinds:
            found = sample_of(p, d)
            for deterministic in (False, True) if found else ():
                assert found is not None
                made = gpu_routine(p, found[0], found[1], target, deterministic)
                for i, launch in enumerate(made.launches):
                    yield f"routine/{p.name}/{d}{'/in order' if deterministic else ''}/{i}", launch.source


# ---- kernels


def of_cases(arch: str) -> Named:
    target = gpu(arch)
    for name, (kernel, _, symbols) in made.cases().items():
        yield f"case/{name}", to_triton(kernel, choose_gpu(kernel, target, symbols))


def _backward(f: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any) -> Any:
        f(*args).sum().backward()
        return [a.grad for a in args if a.requires_grad]

    return step


def _given(*shape: int, dtype: Any = flame.float32) -> Any:
    return flame.randn(*shape).to(dtype).requires_grad_()


def _updates() -> Any:
    parameters = [flame.nn.Parameter(flame.randn(*s)) for s in ((256, 64), (64,), (33, 7), (100,))]
    optimizer = flame.optim.AdamW(parameters, lr=1e-3)

    def step(*grads: Any) -> None:
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g
        optimizer.step()

    return step, tuple(flame.randn(*p.shape) for p in parameters)


ROWS: dict[str, Callable[[], tuple[Callable, tuple]]] = {
    "softmax bfloat16 4096": lambda: (lambda x: F.softmax(x, -1), (flame.randn(256, 4096).to(flame.bfloat16),)),
    "softmax float32 32768": lambda: (lambda x: F.softmax(x, -1), (flame.randn(64, 32768),)),
    "softmax bfloat16 262144": lambda: (lambda x: F.softmax(x, -1), (flame.randn(40, 262144).to(flame.bfloat16),)),
    "softmax backward float32 4096": lambda: (
        _backward(lambda x, w: F.softmax(x, -1) * w),
        (_given(64, 4096), flame.randn(64, 4096)),
    ),
    "layer_norm backward bfloat16 4096": lambda: (
        _backward(lambda x, w, b: F.layer_norm(x, (4096,), w, b).square()),
        (_given(128, 4096, dtype=flame.bfloat16), _given(4096, dtype=flame.bfloat16), _given(4096, dtype=flame.bfloat16)),
    ),
    "rms_norm backward float32 8192": lambda: (
        _backward(lambda x, w: F.rms_norm(x, (8192,), w).square()),
        (_given(64, 8192), _given(8192)),
    ),
    "cross_entropy float32 131072": lambda: (
        _backward(lambda x, y: F.cross_entropy(x, y)),
        (_given(40, 131072), flame.randint(0, 131072, (40,))),
    ),
    "linear cross entropy in chunks bfloat16 4096": lambda: (
        _backward(lambda x, w, y: F.linear_cross_entropy(x, w, y, options=LinearCrossEntropyOptions(batch_chunk_size=64))),
        (_given(128, 256, dtype=flame.bfloat16), _given(4096, 256, dtype=flame.bfloat16), flame.randint(0, 4096, (128,))),
    ),
    "dropout of gelu bfloat16": lambda: (
        _backward(lambda x: F.dropout(F.gelu(x), 0.1)),
        (_given(128, 1024, dtype=flame.bfloat16),),
    ),
    "embedding bfloat16": lambda: (
        _backward(lambda i, w: F.embedding(i, w)),
        (flame.randint(0, 500, (8, 64)), _given(500, 256, dtype=flame.bfloat16)),
    ),
    "adamw of four": _updates,
    "scaled product float8 512": lambda: (
        lambda a, b, s: flame._scaled_mm(a, b, s, s.t(), out_dtype=flame.bfloat16),
        (flame.randn(512, 256).to(flame.float8_e4m3fn), flame.randn(256, 512).to(flame.float8_e4m3fn), flame.rand(512, 1)),
    ),
    "row scales and casts to float8": lambda: (
        lambda x: (x / (x.abs().amax(1, True) / 448.0)).to(flame.float8_e4m3fn),
        (flame.randn(64, 4096).to(flame.bfloat16),),
    ),
}


def _attended(
    score_mod: Callable | None, mask_mod: Callable | None, dtype: Any, length: int, width: int, heads: int = 4
) -> tuple[Callable, tuple]:
    """Attention with changed scores, whose keys are shared by pairs of heads; and its gradients."""
    mask = None if mask_mod is None else create_block_mask(mask_mod, None, None, length, length)
    given = tuple(_given(1, h, length, width, dtype=dtype) for h in (heads, heads // 2, heads // 2))
    return _backward(lambda q, k, v: flex_attention(q, k, v, score_mod, mask, enable_gqa=True)), given


def _slopes() -> Callable:
    slopes = flame.rand(4)
    return lambda score, b, h, i, j: score + slopes[h] * (j - i)


def _documents(length: int) -> Callable:
    """Sequences of other lengths, one after the other."""
    document = (flame.arange(length) * 7 // length).to(flame.int32)
    return lambda b, h, i, j: (document[i] == document[j]) & (i >= j)


def _causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    return i >= j


def _window(b: Any, h: Any, i: Any, j: Any) -> Any:
    return (i >= j) & (i - j < 256)


def _attention(length: int, width: int, dtype: Any, **how: Any) -> tuple[Callable, tuple]:
    given = tuple(_given(1, h, length, width, dtype=dtype) for h in (4, 2, 2))
    return _backward(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **how)), given


def _in_one_tensor(length: int, width: int, dtype: Any) -> tuple[Callable, tuple]:
    given = tuple(_given(length, h, width, dtype=dtype) for h in (4, 2, 2))
    starts = flame.arange(0, length + 1, length // 8, dtype=flame.int32)
    how: dict[str, Any] = {"window_size": (-1, 0), "enable_gqa": True}
    return _backward(lambda q, k, v, cu: varlen_attn(q, k, v, cu, cu, length, length, **how)), (*given, starts)


def _convolution(dtype: Any, channels: int, side: int, groups: int = 1, **how: Any) -> tuple[Callable, tuple]:
    x, w = _given(4, channels, side, side, dtype=dtype), _given(channels, channels // groups, 3, 3, dtype=dtype)
    return _backward(lambda x, w: F.conv2d(x, w, padding=1, groups=groups, **how).square()), (x, w)


#: what walks tiles, at the sizes of real models; compiling one of these takes as long as many others
TILES: dict[str, Callable[[], tuple[Callable, tuple]]] = {
    "attention causal bfloat16 1024x128": lambda: _attention(1024, 128, flame.bfloat16, is_causal=True),
    "attention float16 1024x64": lambda: _attention(1024, 64, flame.float16),
    "flex ALiBi causal bfloat16 1024x128": lambda: _attended(_slopes(), _causal, flame.bfloat16, 1024, 128),
    "flex soft cap in a window float16 1024x64": lambda: _attended(
        lambda s, b, h, i, j: 20.0 * flame.tanh(s / 20.0), _window, flame.float16, 1024, 64
    ),
    "flex of several lengths bfloat16 1024x64": lambda: _attended(None, _documents(1024), flame.bfloat16, 1024, 64),
    "flex relative float32 512x64": lambda: _attended(lambda s, b, h, i, j: s + 0.01 * (j - i), None, flame.float32, 512, 64),
    "sequences in one tensor bfloat16 1024x128": lambda: _in_one_tensor(1024, 128, flame.bfloat16),
    "convolution bfloat16 64 at 56": lambda: _convolution(flame.bfloat16, 64, 56),
    "convolution of groups bfloat16 64 at 28": lambda: _convolution(flame.bfloat16, 64, 28, 4),
    "convolution of stride 2 float16 128 at 28": lambda: _convolution(flame.float16, 128, 28, stride=2),
    "products of a batch bfloat16 8x512": lambda: (
        _backward(lambda a, b: (a @ b).square()),
        (_given(8, 512, 256, dtype=flame.bfloat16), _given(8, 256, 512, dtype=flame.bfloat16)),
    ),
}


@cache
def row_graphs(name: str) -> tuple[Graph, ...]:
    flame.manual_seed(5)
    step, arguments = (ROWS.get(name) or TILES[name])()
    compiled = flame.compile(step)
    for _ in range(3):
        for a in arguments:
            a.grad = None
        compiled(*arguments)
    return tuple(compiled.graphs)


def of_rows(arch: str) -> Named:
    target = gpu(arch)
    for name in ROWS:
        for i, graph in enumerate(row_graphs(name)):
            yield from of_graph(f"rows/{name}/{i}", graph, target)


def of_tiles(arch: str) -> Named:
    target = gpu(arch)
    for name in TILES:
        for i, graph in enumerate(row_graphs(name)):
            yield from of_graph(f"tiles/{name}/{i}", graph, target)
    groups, (t, k, n) = Spec((8,), dtypes.int32), (4096, 1024, 512)
    x, w, g = (Spec(shape, dtypes.bfloat16) for shape in ((t, k), (8, n, k), (t, n)))
    for i, (a, b, turned) in enumerate(((x, w, (False, True)), (g, w, (False, False)), (g, x, (True, False)))):
        for launch in gpu_routine(REGISTRY["grouped_mm"], [a, b, groups], {"turned": turned}, target).launches:
            yield f"tiles/experts bfloat16 8x{k}x{n}/{i}", launch.source


def of_corpus(arch: str) -> Named:
    target = gpu(arch)
    for name in PROGRAMS:
        for i, (graph, _) in enumerate(captured(name)):
            yield from of_graph(f"corpus/{name}/{i}", graph, target)


#: what CI compiles: one dtype of each operator; and all of it
FEW, ALL = ("float32", "int64"), ("float32", "bfloat16", "float64", "int32", "int64", "uint8", "bool")


def everything(arch: str, kinds: Sequence[str] = ALL) -> Named:
    yield from of_operators(arch, kinds)
    yield from of_routines(arch, kinds)
    yield from of_cases(arch)
    yield from of_rows(arch)
    yield from of_tiles(arch)
    yield from of_corpus(arch)


assert dtypes.ALL
