"""Rows added at positions, natively: every dtype, dimension and index, in memory of its own or over its first operand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
from flame import dtypes as dt
from flame.compiler.graph import Builder
from flame.compiler.pipeline import compile_graph
from flame.compiler.program_interpret import run_interpreted
from flame.primitive import Spec, registered
from flame.runtime import cpu
from flame.runtime.executable import Executable

#: shape of what is added to, shape of the index, dimension
CASES = [((5, 3), (7,), 0), ((6, 1), (4,), 0), ((3, 40, 9), (2, 4), 1), ((4, 7), (3,), 1), ((9, 300), (50,), 0), ((4,), (), 0)]


@pytest.mark.parametrize("over", [False, True], ids=["beside", "over"])
@pytest.mark.parametrize("d", [dt.float32, dt.float64, dt.int32, dt.int64, dt.bfloat16, dt.uint8], ids=lambda d: d.name)
def test_index_add_is_the_eager_one(d: Any, over: bool) -> None:
    before = flame.get_num_threads()
    r = np.random.default_rng(3)
    for k, (shape, at, dim) in enumerate(CASES):
        flame.set_num_threads(1 + k % 2)
        of = dt.int32 if k % 3 == 2 else dt.int64
        b = Builder()
        x, i = b.input(Spec(shape, d), "x"), b.input(Spec(at, of), "i")
        src = b.input(Spec(shape[:dim] + at + shape[dim + 1 :], d), "s")
        with b:
            base = registered("mul")(x, 2) if over else x
            y = registered("index_add")(base, i, src, dim=dim)
        b.graph.outputs = [y]
        arrays = [
            r.integers(0, 5, shape).astype(d.numpy),
            r.integers(-shape[dim], shape[dim], at).astype(of.numpy),
            r.integers(0, 5, src.shape).astype(d.numpy),
        ]
        program = compile_graph(b.graph, cpu.target(), verify=True)
        if over:
            assert len(program.slots) == 4, "the product is computed where the result is"
        run = Executable(program)
        assert ("call" in run.recipe.runs) == (d.itemsize < 4), "narrow numbers by the eager function"
        kept = [a.copy() for a in arrays]
        (got,) = run(arrays)
        np.testing.assert_array_equal(got, run_interpreted(program, arrays)[0])
        assert all(np.array_equal(a, c) for a, c in zip(arrays, kept, strict=True))
    flame.set_num_threads(before)


def test_positions_outside_are_refused_and_write_nothing() -> None:
    table = flame.randn(6, 4).requires_grad_()

    def step(at: Any) -> Any:
        table.grad = None
        flame.nn.functional.embedding(at, table).square().sum().backward()
        return table.grad

    compiled = flame.compile(step)
    at = flame.tensor([0, 5, 5, 2])
    for _ in range(3):
        np.testing.assert_allclose(compiled(at).numpy(), step(at).numpy(), rtol=1e-6)
    with pytest.raises(IndexError):
        compiled(flame.tensor([0, 6, 1, 2]))
    np.testing.assert_allclose(compiled(at).numpy(), step(at).numpy(), rtol=1e-6)
