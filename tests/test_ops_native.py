"""Every primitive that a kernel can spell gives its eager meaning when compiled for this machine's CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_ops import assert_close, each, spec_of
from test_vector_math import BINARY, BOUND, ORACLE, SPECIAL, arguments, assert_within

from flame import dtypes
from flame.compiler.graph import Builder
from flame.compiler.pipeline import compile_graph
from flame.compiler.target import Target
from flame.primitive import REGISTRY, Primitive
from flame.runtime.executable import Executable

pytest.importorskip("llvmlite")

SPELLED = [p for p in sorted(REGISTRY.values(), key=lambda p: p.name) if p.scalar is not None or p.lower is not None]


def run(p: Primitive, operands: tuple, params: dict) -> np.ndarray:
    """One application of `p`, captured, compiled and run."""
    b = Builder()
    values = [b.input(spec_of(x)) if isinstance(x, np.ndarray) else x for x in operands]
    with b:
        b.graph.outputs = [p(*values, **params)]
    program = compile_graph(b.graph, Target("cpu", lanes=8))
    (out,) = Executable(program)([x for x in operands if isinstance(x, np.ndarray)])
    return out


def one_of_each(p: Primitive, most: int = 4) -> list[tuple[tuple, dict]]:
    """The largest sample of each combination of dtypes, and one with a number among its operands; `most` in all."""
    found: dict[Any, tuple[tuple, dict]] = {}
    for operands, params in p.samples():
        arrays = [x for x in operands if isinstance(x, np.ndarray)]
        ds = tuple(x.dtype for x in arrays) + tuple(v for v in params.values() if isinstance(v, dtypes.dtype))
        size = sum(x.size for x in arrays)
        key = (ds, len(arrays) == len(operands))
        if key not in found or size > sum(np.size(x) for x in found[key][0]):
            found[key] = (operands, params)
    picked = sorted(found.items(), key=lambda kv: (kv[0][1], "float32" in str(kv[0][0]), str(kv[0][0])), reverse=True)
    step = max(1, len(picked) // most)
    return [sample for _, sample in picked[::step]][:most]


@each(SPELLED)
def test_compiled_result_is_the_eager_one(p: Primitive) -> None:
    for operands, params in one_of_each(p):
        want = p.eager(*operands, **params)
        got = run(p, operands, params)
        assert got.dtype == want.dtype
        assert_close(got, want, spec_of(want).dtype)


@pytest.mark.parametrize("name", ORACLE)
def test_compiled_functions_are_within_their_bound(name: str) -> None:
    n = 10_000
    x: tuple[np.ndarray, ...] = (arguments(11, n),)
    if name in BINARY:
        pairs = np.array(np.meshgrid(SPECIAL, SPECIAL)).reshape(2, -1)
        r = np.random.default_rng(12)
        x = (np.concatenate([x[0], pairs[0]]), np.concatenate([r.permutation(arguments(13, n)), pairs[1]]))
    with np.errstate(all="ignore"):
        want = ORACLE[name](*(v.astype(np.float64) for v in x))
    assert_within(run(REGISTRY[name], x, {}), want, BOUND[name], *x)
